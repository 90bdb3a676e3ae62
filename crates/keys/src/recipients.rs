//! Files that are sealed to somebody: the age format (age-encryption.org/v1), which the programs `age` and `rage` open too.
//!
//! ```
//! use std::io::{Read, Write};
//! use stvor_keys::recipients::{Identity, Opening, Sealing};
//!
//! let identity = Identity::generate();
//! let mut file = Vec::new();
//! let mut writer = Sealing::to(vec![identity.recipient()]).writer(&mut file)?;
//! writer.write_all(b"for one reader")?;
//! writer.finish()?;
//!
//! let mut text = String::new();
//! Opening::with(vec![identity]).reader(&file[..])?.read_to_string(&mut text)?;
//! assert_eq!(text, "for one reader");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use core::fmt;
use core::str::FromStr;
use std::io::{Read, Write};

use age::secrecy::{ExposeSecret, SecretString};
use age::stream::{StreamReader, StreamWriter};
use age::{DecryptError, Decryptor, Encryptor, scrypt, x25519};
use stvor_crypto::SecretBytes;

use crate::{KeyError, limits};

const HOLDER: &str = "age key";

fn malformed(reason: &'static str) -> KeyError {
    KeyError::Malformed { holder: HOLDER, reason }
}

/// Who can open a file: an X25519 public key, `age1...`.
#[derive(Debug, Clone)]
pub struct Recipient(x25519::Recipient);

impl FromStr for Recipient {
    type Err = KeyError;

    /// # Errors
    /// [`KeyError::Malformed`] for anything but `age1` and 58 characters.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        text.trim().parse().map(Self).map_err(|_| malformed("a recipient looks like age1..., 62 characters"))
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The private half of a recipient, `AGE-SECRET-KEY-1...`.
pub struct Identity(x25519::Identity);

impl Identity {
    /// A fresh one, from the operating system's randomness, which age draws itself.
    #[must_use]
    pub fn generate() -> Self {
        Self(x25519::Identity::generate())
    }

    /// Its public half.
    #[must_use]
    pub fn recipient(&self) -> Recipient {
        Recipient(self.0.to_public())
    }

    /// The line that goes into an identity file. It is secret.
    #[must_use]
    pub fn to_secret_line(&self) -> SecretBytes {
        SecretBytes::from_slice(self.0.to_string().expose_secret().as_bytes())
    }

    /// All identities of an identity file, as `age-keygen` writes it: one a line; empty lines and comments are passed over.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] when there is none, or a line is none.
    pub fn parse_file(text: &SecretBytes) -> Result<Vec<Self>, KeyError> {
        let text = core::str::from_utf8(text.expose()).map_err(|_| malformed("the file is not text"))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let all = lines.map(str::parse).collect::<Result<Vec<_>, _>>()?;
        if all.is_empty() { Err(malformed("the file holds no identity")) } else { Ok(all) }
    }
}

impl FromStr for Identity {
    type Err = KeyError;

    /// # Errors
    /// [`KeyError::Malformed`].
    fn from_str(text: &str) -> Result<Self, KeyError> {
        text.parse().map(Self).map_err(|_| malformed("an identity looks like AGE-SECRET-KEY-1..."))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// How a file is sealed.
#[derive(Debug)]
pub struct Sealing(To);

enum To {
    Recipients(Vec<Recipient>),
    Passphrase(SecretString, Option<u8>),
}

impl fmt::Debug for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recipients(all) => f.debug_list().entries(all.iter().map(ToString::to_string)).finish(),
            Self::Passphrase(..) => f.write_str("[redacted]"),
        }
    }
}

fn passphrase(secret: &SecretBytes) -> Result<SecretString, KeyError> {
    let bad = |reason| KeyError::Malformed { holder: "passphrase", reason };
    if secret.is_empty() || secret.len() > limits::MAX_PASSPHRASE {
        return Err(bad("it is empty, or longer than 4096 bytes"));
    }
    let text = core::str::from_utf8(secret.expose()).map_err(|_| bad("it is not text"))?;
    Ok(SecretString::from(text.to_owned()))
}

impl Sealing {
    /// Each of the recipients can open it.
    #[must_use]
    pub fn to(recipients: Vec<Recipient>) -> Self {
        Self(To::Recipients(recipients))
    }

    /// Who knows the passphrase can open it; a guess takes about a second on this machine (scrypt).
    ///
    /// # Errors
    /// [`KeyError::Malformed`] for a passphrase that is empty, too long or not UTF-8.
    pub fn passphrase(secret: &SecretBytes) -> Result<Self, KeyError> {
        Ok(Self(To::Passphrase(passphrase(secret)?, None)))
    }

    /// As [`Sealing::passphrase`], with scrypt's N as a power of two (1 to 22), for tests that may not wait.
    ///
    /// # Errors
    /// [`KeyError::Malformed`].
    pub fn passphrase_with_work(secret: &SecretBytes, log_n: u8) -> Result<Self, KeyError> {
        if !(1..=22).contains(&log_n) {
            return Err(KeyError::Malformed { holder: "passphrase", reason: "its cost is out of range" });
        }
        Ok(Self(To::Passphrase(passphrase(secret)?, Some(log_n))))
    }

    /// Seals what is written to it. [`Writer::finish`] must be called, or the file does not open.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] without recipients, [`KeyError::Sealed`] when `output` fails.
    pub fn writer<W: Write>(&self, output: W) -> Result<Writer<W>, KeyError> {
        let sealed = match &self.0 {
            To::Recipients(all) => {
                Encryptor::with_recipients(all.iter().map(|one| &one.0 as &dyn age::Recipient))
            }
            To::Passphrase(secret, log_n) => {
                let mut recipient = scrypt::Recipient::new(secret.clone());
                if let Some(log_n) = log_n {
                    recipient.set_work_factor(*log_n);
                }
                Encryptor::with_recipients(core::iter::once(&recipient as &dyn age::Recipient))
            }
        };
        let sealed = sealed.map_err(|error| match error {
            age::EncryptError::MissingRecipients => malformed("there are no recipients"),
            other => KeyError::Sealed(other.to_string()),
        })?;
        sealed.wrap_output(output).map(Writer).map_err(|error| KeyError::Sealed(error.to_string()))
    }
}

/// Seals what is written to it.
pub struct Writer<W: Write>(StreamWriter<W>);

impl<W: Write> Writer<W> {
    /// Writes the end, and gives the output back.
    ///
    /// # Errors
    /// What the output says.
    pub fn finish(self) -> std::io::Result<W> {
        self.0.finish()
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl<W: Write> fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writer")
    }
}

/// How a file is opened.
#[derive(Debug)]
pub struct Opening(With);

enum With {
    Identities(Vec<Identity>),
    Passphrase(SecretString),
}

impl fmt::Debug for With {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Opening {
    /// With whichever of these it was sealed to.
    #[must_use]
    pub fn with(identities: Vec<Identity>) -> Self {
        Self(With::Identities(identities))
    }

    /// With the passphrase.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] for a passphrase that is empty, too long or not UTF-8.
    pub fn passphrase(secret: &SecretBytes) -> Result<Self, KeyError> {
        Ok(Self(With::Passphrase(passphrase(secret)?)))
    }

    /// Opens a file. What is read is authenticated in pieces of 64 KiB; a file that was cut short ends with an error, so act
    /// on what was read only when the end was reached.
    ///
    /// # Errors
    /// [`KeyError::Wrong`] for another key, [`KeyError::OtherHolder`] for another kind of key, [`KeyError::Malformed`] for
    /// a file that is no age file or was changed, [`KeyError::Sealed`] when `input` fails.
    pub fn reader<R: Read>(&self, input: R) -> Result<Reader<R>, KeyError> {
        let file = Decryptor::new(input).map_err(failed)?;
        let other = |needs, given| KeyError::OtherHolder { needs, given };
        let opened = match &self.0 {
            With::Identities(_) if file.is_scrypt() => return Err(other("passphrase", HOLDER)),
            With::Passphrase(_) if !file.is_scrypt() => return Err(other(HOLDER, "passphrase")),
            With::Identities(all) => file.decrypt(all.iter().map(|one| &one.0 as &dyn age::Identity)),
            With::Passphrase(secret) => {
                let identity = scrypt::Identity::new(secret.clone());
                file.decrypt(core::iter::once(&identity as &dyn age::Identity))
            }
        };
        opened.map(Reader).map_err(|error| match (error, &self.0) {
            (DecryptError::DecryptionFailed | DecryptError::NoMatchingKeys, With::Passphrase(_)) => {
                KeyError::Wrong { holder: "passphrase" }
            }
            (error, _) => failed(error),
        })
    }
}

fn failed(error: DecryptError) -> KeyError {
    let bad = |reason| KeyError::Malformed { holder: "age file", reason };
    match error {
        DecryptError::NoMatchingKeys | DecryptError::DecryptionFailed => KeyError::Wrong { holder: HOLDER },
        DecryptError::InvalidHeader | DecryptError::UnknownFormat => bad("it is no file of this format"),
        DecryptError::InvalidMac => bad("its beginning was changed"),
        DecryptError::ExcessiveWork { .. } => {
            bad("its passphrase costs more work than this machine should do")
        }
        DecryptError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            bad("it is cut short")
        }
        DecryptError::Io(error) => KeyError::Sealed(error.to_string()),
        _ => bad("it does not open"),
    }
}

/// What was sealed.
pub struct Reader<R: Read>(StreamReader<R>);

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(out)
    }
}

impl<R: Read> fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(sealing: &Sealing, text: &[u8]) -> Vec<u8> {
        let mut writer = sealing.writer(Vec::new()).unwrap();
        writer.write_all(text).unwrap();
        writer.finish().unwrap()
    }

    fn opened(opening: &Opening, file: &[u8]) -> Result<Vec<u8>, KeyError> {
        let mut text = Vec::new();
        let mut reader = opening.reader(file)?;
        reader.read_to_end(&mut text).map_err(|error| KeyError::Sealed(error.to_string()))?;
        Ok(text)
    }

    #[test]
    fn a_file_opens_for_each_recipient_and_nobody_else() {
        let [one, two, other] = [(); 3].map(|()| Identity::generate());
        let file = sealed(&Sealing::to(vec![one.recipient(), two.recipient()]), b"words");
        for identity in [one, two] {
            assert_eq!(opened(&Opening::with(vec![identity]), &file).unwrap(), b"words");
        }
        let refused = opened(&Opening::with(vec![other]), &file);
        assert!(matches!(refused, Err(KeyError::Wrong { .. })), "{refused:?}");
        let phrase = Opening::passphrase(&SecretBytes::from_slice(b"words")).unwrap();
        assert!(matches!(opened(&phrase, &file), Err(KeyError::OtherHolder { .. })));
        assert!(matches!(Sealing::to(vec![]).writer(Vec::new()), Err(KeyError::Malformed { .. })));
    }

    #[test]
    fn a_wrong_passphrase_a_changed_file_and_a_cut_one_are_told_apart() {
        let [right, wrong] = [b"right", b"wrong"].map(|text| SecretBytes::from_slice(text));
        let file = sealed(&Sealing::passphrase_with_work(&right, 4).unwrap(), &[7; 100_000]);
        let right = Opening::passphrase(&right).unwrap();
        assert_eq!(opened(&right, &file).unwrap(), [7; 100_000]);
        let wrong = opened(&Opening::passphrase(&wrong).unwrap(), &file);
        assert!(matches!(wrong, Err(KeyError::Wrong { holder: "passphrase" })), "{wrong:?}");
        for length in [0, 20, 100, file.len() - 70_000, file.len() - 1] {
            assert!(opened(&right, file.get(..length).unwrap()).is_err(), "{length}");
        }
        for at in (0..file.len()).step_by(997).chain(0..150) {
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert!(opened(&right, &changed).is_err(), "{at}");
        }
    }

    #[test]
    fn identity_files_are_read_as_age_keygen_writes_them() {
        let identity = Identity::generate();
        let mut text = b"# created: today\n\n".to_vec();
        text.extend_from_slice(identity.to_secret_line().expose());
        text.push(b'\n');
        let read = Identity::parse_file(&text.into()).unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].recipient().to_string(), identity.recipient().to_string());
        assert_eq!(format!("{identity:?}"), "[redacted]");
        for bad in ["", "# nothing\n", "AGE-SECRET-KEY-1QQ\n"] {
            assert!(Identity::parse_file(&SecretBytes::from_slice(bad.as_bytes())).is_err(), "{bad}");
        }
        assert!("age1nothing".parse::<Recipient>().is_err());
    }
}
