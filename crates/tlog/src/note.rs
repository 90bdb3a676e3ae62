//! Signed notes: text with signatures beneath (C2SP signed-note), and the keys that make and verify them.

use core::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use stvor_crypto::ed25519::{PublicKey, SigningKey};
use stvor_crypto::kdf::sha256;
use stvor_crypto::{Random, Secret, SecretBytes};

use crate::{TlogError, limits};

/// The number of Ed25519 in keys.
const ED25519: u8 = 1;
/// How a signature line begins.
const DASH: &str = "\u{2014} ";
const PRIVATE: &str = "PRIVATE+KEY+";

/// A name that a key may have.
pub(crate) fn check_name(name: &str) -> Result<(), TlogError> {
    let bad = name.is_empty()
        || name.len() > limits::MAX_NAME
        || name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+');
    if bad {
        return Err(TlogError::malformed(
            "key name",
            "it is empty, too long, or holds a space or a plus sign",
        ));
    }
    Ok(())
}

fn key_id(name: &str, public: &PublicKey) -> [u8; 4] {
    key_id_of(name, ED25519, public)
}

/// The id of a key of this kind.
pub(crate) fn key_id_of(name: &str, kind: u8, public: &PublicKey) -> [u8; 4] {
    let [a, b, c, d, ..] = sha256(&[name.as_bytes(), b"\n", &[kind], public.as_bytes()]);
    [a, b, c, d]
}

pub(crate) fn hex(id: [u8; 4]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Who signs notes: a name and an Ed25519 key.
#[derive(Debug)]
pub struct Signer {
    key: SigningKey,
    verifier: Verifier,
}

impl Signer {
    /// A signer with a fresh key.
    ///
    /// # Errors
    /// [`TlogError::Malformed`] for a name that is empty, longer than [`limits::MAX_NAME`] bytes, or holds white space or
    /// a plus sign; [`TlogError::Crypto`].
    pub fn generate(name: &str, rng: &mut dyn Random) -> Result<Self, TlogError> {
        Self::from_seed(name, &Secret::random(rng)?)
    }

    /// The signer of a seed.
    ///
    /// # Errors
    /// As [`Signer::generate`].
    pub fn from_seed(name: &str, seed: &Secret<32>) -> Result<Self, TlogError> {
        check_name(name)?;
        let key = SigningKey::from_seed(seed)?;
        let verifier = Verifier::new(name, *key.public())?;
        Ok(Self { key, verifier })
    }

    /// Reads the form `PRIVATE+KEY+name+id+base64` that Go's note package writes.
    ///
    /// # Errors
    /// [`TlogError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, TlogError> {
        let malformed = |reason| TlogError::malformed("signer key", reason);
        let rest = text.strip_prefix(PRIVATE).ok_or(malformed("it does not begin with PRIVATE+KEY+"))?;
        let mut parts = rest.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(malformed("it has fewer than five parts"));
        };
        let bytes = STANDARD.decode(key).map_err(|_| malformed("its key is not base64"))?;
        let bytes = SecretBytes::from(bytes);
        let Some((&ED25519, seed)) = bytes.expose().split_first() else {
            return Err(malformed("its key is not Ed25519"));
        };
        let seed = Secret::from_slice(seed).map_err(|_| malformed("its key is not 32 bytes long"))?;
        let signer = Self::from_seed(name, &seed)?;
        if hex(signer.verifier.id) != id {
            return Err(malformed("its id is not that of its name and key"));
        }
        Ok(signer)
    }

    /// The form that [`Signer::parse`] reads. It is secret.
    #[must_use]
    pub fn to_text(&self) -> SecretBytes {
        let mut key = vec![ED25519];
        key.extend_from_slice(self.key.seed().expose());
        let key = SecretBytes::from(key);
        let id = hex(self.verifier.id);
        format!("{PRIVATE}{}+{id}+{}", self.verifier.name, STANDARD.encode(key.expose())).into_bytes().into()
    }

    /// The seed, for storing the key.
    #[must_use]
    pub fn seed(&self) -> Secret<32> {
        self.key.seed()
    }

    /// Who verifies what this signs.
    #[must_use]
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }
}

/// Who verifies notes: a name and an Ed25519 public key. Its text form is `name+id+base64`.
///
/// ```
/// use stvor_tlog::Verifier;
/// let key = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8";
/// assert_eq!(Verifier::parse(key)?.to_string(), key);
/// # Ok::<(), stvor_tlog::TlogError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifier {
    name: String,
    id: [u8; 4],
    key: PublicKey,
}

impl Verifier {
    /// The verifier of a name and a key.
    ///
    /// # Errors
    /// [`TlogError::Malformed`] as [`Signer::generate`].
    pub fn new(name: &str, key: PublicKey) -> Result<Self, TlogError> {
        check_name(name)?;
        Ok(Self { name: name.to_owned(), id: key_id(name, &key), key })
    }

    /// Reads `name+id+base64`.
    ///
    /// # Errors
    /// [`TlogError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, TlogError> {
        let malformed = |reason| TlogError::malformed("verifier key", reason);
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(malformed("it has fewer than three parts"));
        };
        let bytes = STANDARD.decode(key).map_err(|_| malformed("its key is not base64"))?;
        let Some((&ED25519, key)) = bytes.split_first() else {
            return Err(malformed("its key is not Ed25519"));
        };
        let key = PublicKey::from_bytes(key).map_err(|_| malformed("its key is not 32 bytes long"))?;
        let verifier = Self::new(name, key)?;
        if hex(verifier.id) != id {
            return Err(malformed("its id is not that of its name and key"));
        }
        Ok(verifier)
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = STANDARD.encode([&[ED25519][..], self.key.as_bytes()].concat());
        write!(f, "{}+{}+{key}", self.name, hex(self.id))
    }
}

/// One signature line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Signature {
    name: String,
    id: [u8; 4],
    bytes: Vec<u8>,
}

/// A note as it was read or signed. Nothing in it is to be believed before [`Note::open`] says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<Signature>,
}

impl Note {
    /// Signs a text with each of `signers`.
    ///
    /// # Errors
    /// [`TlogError::Malformed`] when the text is empty, does not end with a line end, or holds control characters;
    /// [`TlogError::Crypto`].
    pub fn sign(text: &str, signers: &[&Signer]) -> Result<Self, TlogError> {
        check_text(text)?;
        let signatures = signers.iter().map(|signer| {
            let bytes = signer.key.sign(text.as_bytes())?.to_vec();
            Ok(Signature { name: signer.verifier.name.clone(), id: signer.verifier.id, bytes })
        });
        Ok(Self { text: text.to_owned(), signatures: signatures.collect::<Result<_, TlogError>>()? })
    }

    /// Reads a note: text, an empty line, at least one signature line.
    ///
    /// # Errors
    /// [`TlogError::Malformed`], also past [`limits::MAX_NOTE`] bytes and [`limits::MAX_SIGNATURES`] signatures.
    pub fn parse(bytes: &[u8]) -> Result<Self, TlogError> {
        let malformed = |reason| TlogError::malformed("note", reason);
        if bytes.len() > limits::MAX_NOTE {
            return Err(malformed("it is longer than 65536 bytes"));
        }
        let all = core::str::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8"))?;
        let end = all.rfind("\n\n").ok_or(malformed("it has no empty line before its signatures"))?;
        let (text, rest) = all.split_at_checked(end + 1).ok_or(malformed("it is cut short"))?;
        check_text(text)?;
        let lines = rest.strip_prefix('\n').and_then(|lines| lines.strip_suffix('\n'));
        let lines = lines.ok_or(malformed("its last line does not end"))?;
        let signatures = lines.split('\n').map(parse_signature).collect::<Result<Vec<_>, _>>()?;
        if signatures.len() > limits::MAX_SIGNATURES {
            return Err(malformed("it has more than 64 signatures"));
        }
        Ok(Self { text: text.to_owned(), signatures })
    }

    /// The text, if a verifier of `trusted` signed it. Signatures by others are passed over, so a key is changed by
    /// trusting its successor too while the log signs with both.
    ///
    /// # Errors
    /// [`TlogError::Untrusted`] when none signed it; [`TlogError::BadSignature`] when a signature under the name and id of
    /// a trusted key does not verify, whatever the others say.
    pub fn open(&self, trusted: &[Verifier]) -> Result<&str, TlogError> {
        let mut verified = false;
        for signature in &self.signatures {
            for verifier in trusted {
                if verifier.name != signature.name || verifier.id != signature.id {
                    continue;
                }
                let verdict = verifier.key.verify(self.text.as_bytes(), &signature.bytes);
                verdict.map_err(|_| TlogError::BadSignature { name: verifier.name.clone() })?;
                verified = true;
            }
        }
        if verified { Ok(&self.text) } else { Err(TlogError::Untrusted) }
    }

    /// The text, verified or not.
    #[must_use]
    pub fn unverified_text(&self) -> &str {
        &self.text
    }

    /// The bytes of the signature under this name and id.
    pub(crate) fn signature_of(&self, name: &str, id: [u8; 4]) -> Option<&[u8]> {
        let found = self.signatures.iter().find(|one| one.name == name && one.id == id);
        found.map(|one| one.bytes.as_slice())
    }

    /// The same text with this signature alone.
    pub(crate) fn with_only(&self, name: &str, id: [u8; 4], bytes: Vec<u8>) -> Self {
        let signatures = vec![Signature { name: name.to_owned(), id, bytes }];
        Self { text: self.text.clone(), signatures }
    }

    /// Puts the signatures of another copy of the same note beneath this one: how a witness's signature joins the log's.
    ///
    /// # Errors
    /// [`TlogError::Malformed`] when the texts differ, or too many signatures come together.
    pub fn merge(&mut self, other: &Self) -> Result<(), TlogError> {
        if self.text != other.text {
            return Err(TlogError::malformed("note", "its text is another one"));
        }
        let new = other.signatures.iter().filter(|signature| !self.signatures.contains(signature));
        let new: Vec<_> = new.cloned().collect();
        if self.signatures.len() + new.len() > limits::MAX_SIGNATURES {
            return Err(TlogError::malformed("note", "it has more than 64 signatures"));
        }
        self.signatures.extend(new);
        Ok(())
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|signature| {
            let bytes = STANDARD.encode([&signature.id[..], &signature.bytes].concat());
            writeln!(f, "{DASH}{} {bytes}", signature.name)
        })
    }
}

fn check_text(text: &str) -> Result<(), TlogError> {
    if !text.ends_with('\n') {
        return Err(TlogError::malformed("note", "its text does not end with a line end"));
    }
    if text.chars().any(|c| c < ' ' && c != '\n') {
        return Err(TlogError::malformed("note", "its text holds control characters"));
    }
    Ok(())
}

fn parse_signature(line: &str) -> Result<Signature, TlogError> {
    let malformed = |reason| TlogError::malformed("signature line", reason);
    let rest = line.strip_prefix(DASH).ok_or(malformed("it does not begin with a dash and a space"))?;
    let (name, bytes) = rest.split_once(' ').ok_or(malformed("it has no signature"))?;
    check_name(name)?;
    let bytes = STANDARD.decode(bytes).map_err(|_| malformed("its signature is not base64"))?;
    match bytes.split_first_chunk::<4>() {
        Some((id, bytes)) if !bytes.is_empty() => {
            Ok(Signature { name: name.to_owned(), id: *id, bytes: bytes.to_vec() })
        }
        _ => Err(malformed("its signature is too short")),
    }
}
