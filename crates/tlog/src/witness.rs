//! Witnesses (C2SP tlog-cosignature and tlog-witness): somebody else who saw each checkpoint, and that each log only grew. A log
//! that was written anew, with every copy that its owner has, does not continue what the witness signed.
//!
//! ```
//! use stvor_crypto::SystemRandom;
//! use stvor_tlog::witness::{AddCheckpoint, Cosigner, Witness};
//! use stvor_tlog::{Checkpoint, ConsistencyProof, Frontier, Hash, Signer};
//! let rng = &mut SystemRandom::new();
//! let log = Signer::generate("example.com/log", rng)?;
//! let mut witness = Witness::new();
//! witness.trust("example.com/log", log.verifier().clone())?;
//! let cosigner = Cosigner::generate("witness.example/1", rng)?;
//!
//! let mut tree = Frontier::new();
//! tree.append(Hash::leaf(b"first"), &mut Vec::new())?;
//! let note = Checkpoint::new("example.com/log", tree.size(), tree.root())?.sign(&[&log])?;
//! let asked = AddCheckpoint { old_size: 0, proof: ConsistencyProof(Vec::new()), note };
//! let signed = witness.add(&asked, (&cosigner, 1_800_000_000))?;
//! assert_eq!(cosigner.verifier().open(&signed)?, 1_800_000_000);
//! # Ok::<(), stvor_tlog::TlogError>(())
//! ```

use core::fmt;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use stvor_crypto::ed25519::{PublicKey, SigningKey};
use stvor_crypto::{Random, Secret};

use crate::note::{check_name, hex, key_id_of};
use crate::{Checkpoint, ConsistencyProof, Hash, Note, TlogError, Verifier, limits};

/// The number of timestamped Ed25519 cosignatures in keys.
const COSIGNATURE: u8 = 4;

fn message(time: u64, text: &str) -> Vec<u8> {
    format!("cosignature/v1\ntime {time}\n{text}").into_bytes()
}

/// The key of a witness.
#[derive(Debug)]
pub struct Cosigner {
    key: SigningKey,
    verifier: CosignatureVerifier,
}

impl Cosigner {
    /// A fresh key.
    ///
    /// # Errors
    /// [`TlogError::Malformed`] for a name that no key can have; [`TlogError::Crypto`].
    pub fn generate(name: &str, rng: &mut dyn Random) -> Result<Self, TlogError> {
        Self::from_seed(name, &Secret::random(rng)?)
    }

    /// The key of a seed.
    ///
    /// # Errors
    /// As [`Cosigner::generate`].
    pub fn from_seed(name: &str, seed: &Secret<32>) -> Result<Self, TlogError> {
        check_name(name)?;
        let key = SigningKey::from_seed(seed)?;
        let id = key_id_of(name, COSIGNATURE, key.public());
        let verifier = CosignatureVerifier { name: name.to_owned(), id, key: *key.public() };
        Ok(Self { key, verifier })
    }

    /// The seed, for storing the key.
    #[must_use]
    pub fn seed(&self) -> Secret<32> {
        self.key.seed()
    }

    /// Who verifies what this signs.
    #[must_use]
    pub fn verifier(&self) -> &CosignatureVerifier {
        &self.verifier
    }

    /// Signs a checkpoint at a time in seconds since the Unix epoch. The note that comes back holds this signature only.
    fn sign(&self, note: &Note, time: u64) -> Result<Note, TlogError> {
        let signature = self.key.sign(&message(time, note.unverified_text()))?;
        let bytes = [&time.to_be_bytes()[..], &signature].concat();
        Ok(note.with_only(&self.verifier.name, self.verifier.id, bytes))
    }
}

/// Who verifies a witness's signatures. Its text form is `name+id+base64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CosignatureVerifier {
    name: String,
    id: [u8; 4],
    key: PublicKey,
}

impl CosignatureVerifier {
    /// Reads `name+id+base64`.
    ///
    /// # Errors
    /// [`TlogError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, TlogError> {
        let malformed = |reason| TlogError::malformed("witness key", reason);
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(malformed("it has fewer than three parts"));
        };
        check_name(name)?;
        let bytes = STANDARD.decode(key).map_err(|_| malformed("its key is not base64"))?;
        let Some((&COSIGNATURE, key)) = bytes.split_first() else {
            return Err(malformed("its key is not one for cosignatures"));
        };
        let key = PublicKey::from_bytes(key).map_err(|_| malformed("its key is not 32 bytes long"))?;
        let verifier = Self { name: name.to_owned(), id: key_id_of(name, COSIGNATURE, &key), key };
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

    /// When the witness signed the note, in seconds since the Unix epoch.
    ///
    /// # Errors
    /// [`TlogError::Untrusted`] when it did not, [`TlogError::BadSignature`] when its signature does not verify.
    pub fn open(&self, note: &Note) -> Result<u64, TlogError> {
        let bytes = note.signature_of(&self.name, self.id).ok_or(TlogError::Untrusted)?;
        let bad = || TlogError::BadSignature { name: self.name.clone() };
        let (time, signature) = bytes.split_first_chunk::<8>().ok_or_else(bad)?;
        let time = u64::from_be_bytes(*time);
        self.key.verify(&message(time, note.unverified_text()), signature).map_err(|_| bad())?;
        Ok(time)
    }
}

impl fmt::Display for CosignatureVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = STANDARD.encode([&[COSIGNATURE][..], self.key.as_bytes()].concat());
        write!(f, "{}+{}+{key}", self.name, hex(self.id))
    }
}

/// A checkpoint with the proof that it goes on from an earlier one: what a log asks of a witness, the body of C2SP tlog-witness's
/// `add-checkpoint`. It stands alone: who has the earlier checkpoint verifies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddCheckpoint {
    /// The size that the witness signed last, as the log knows it.
    pub old_size: u64,
    /// That the checkpoint continues that size.
    pub proof: ConsistencyProof,
    /// The signed checkpoint.
    pub note: Note,
}

impl AddCheckpoint {
    /// Reads the body.
    ///
    /// # Errors
    /// [`TlogError::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, TlogError> {
        let malformed = |reason| TlogError::malformed("proof of a checkpoint", reason);
        let text = core::str::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8"))?;
        let (head, note) = text.split_once("\n\n").ok_or(malformed("it has no empty line"))?;
        let mut lines = head.lines();
        let old = lines.next().and_then(|line| line.strip_prefix("old "));
        let old = old.filter(|old| *old == "0" || !old.starts_with('0'));
        let old_size = old.and_then(|old| old.parse().ok()).ok_or(malformed("its first line is no size"))?;
        let proof = lines.map(Hash::from_base64).collect::<Result<Vec<_>, _>>()?;
        if proof.len() > limits::MAX_PROOF {
            return Err(malformed("its proof is too long"));
        }
        Ok(Self { old_size, proof: ConsistencyProof(proof), note: Note::parse(note.as_bytes())? })
    }

    /// Verifies that the log of its checkpoint goes on from that of `old`, and that both are signed for the log `origin`: the later
    /// one with the first key of `trusted`, the earlier one with any of them. So give the present key first: who has a retired one
    /// can sign a log that goes on otherwise. Returns the earlier checkpoint and the later one.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`TlogError::BadProof`].
    pub fn verify(
        &self,
        old: &Note,
        origin: &str,
        trusted: &[Verifier],
    ) -> Result<(Checkpoint, Checkpoint), TlogError> {
        let old = Checkpoint::open(old, origin, trusted)?;
        let present = trusted.get(..1).unwrap_or_default();
        let new = Checkpoint::open(&self.note, origin, present)?;
        if self.old_size != old.size() {
            return Err(TlogError::BadProof { what: "consistency" });
        }
        self.proof.verify((old.size(), old.root()), (new.size(), new.root()))?;
        Ok((old, new))
    }
}

impl fmt::Display for AddCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "old {}", self.old_size)?;
        self.proof.0.iter().try_for_each(|hash| writeln!(f, "{}", hash.to_base64()))?;
        write!(f, "\n{}", self.note)
    }
}

/// What a witness remembers of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    trusted: Vec<Verifier>,
    /// The newest checkpoint that it signed.
    newest: Option<(u64, Hash)>,
}

/// A witness's memory: which logs it knows, and the newest checkpoint of each. A value; who serves it stores it before a
/// signature leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Witness(BTreeMap<String, Known>);

impl Witness {
    /// A witness that knows no log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts a key of a log; a log may have several, while it changes them.
    ///
    /// # Errors
    /// [`TlogError::Full`] past [`limits::MAX_LOGS`].
    pub fn trust(&mut self, origin: &str, verifier: Verifier) -> Result<(), TlogError> {
        if self.0.len() >= limits::MAX_LOGS && !self.0.contains_key(origin) {
            return Err(TlogError::Full);
        }
        let known = self.0.entry(origin.to_owned()).or_default();
        if known.trusted.len() >= limits::MAX_SIGNATURES {
            return Err(TlogError::Full);
        }
        if !known.trusted.contains(&verifier) {
            known.trusted.push(verifier);
        }
        Ok(())
    }

    /// The size and root that were signed last for a log.
    #[must_use]
    pub fn newest(&self, origin: &str) -> Option<(u64, Hash)> {
        self.0.get(origin)?.newest
    }

    /// Signs a checkpoint if it continues what was signed before.
    ///
    /// # Errors
    /// [`TlogError::Untrusted`] for a log or key that is not known, [`TlogError::Conflict`] when the witness signed another size
    /// last, [`TlogError::BadProof`] when the log does not continue it: it was written anew.
    pub fn add(
        &mut self,
        asked: &AddCheckpoint,
        (cosigner, time): (&Cosigner, u64),
    ) -> Result<Note, TlogError> {
        let claimed = Checkpoint::parse(asked.note.unverified_text())?;
        let known = self.0.get_mut(claimed.origin()).ok_or(TlogError::Untrusted)?;
        let checkpoint = Checkpoint::open(&asked.note, claimed.origin(), &known.trusted)?;
        let (size, root) = known.newest.unwrap_or((0, Hash::empty()));
        if asked.old_size > checkpoint.size() {
            return Err(TlogError::OutOfRange {
                what: "size",
                asked: asked.old_size,
                size: checkpoint.size(),
            });
        }
        if asked.old_size != size {
            return Err(TlogError::Conflict { size });
        }
        asked.proof.verify((size, root), (checkpoint.size(), checkpoint.root()))?;
        let signed = cosigner.sign(&asked.note, time)?;
        known.newest = Some((checkpoint.size(), checkpoint.root()));
        Ok(signed)
    }

    /// The text that the witness is stored as: for each log its origin, keys, and the newest size and root.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = String::from("STVOR witness v1\n");
        for (origin, known) in &self.0 {
            out += &format!("log {origin}\n");
            known.trusted.iter().for_each(|key| out += &format!("key {key}\n"));
            if let Some((size, root)) = known.newest {
                out += &format!("at {size} {}\n", root.to_base64());
            }
        }
        out
    }

    /// Reads that text.
    ///
    /// # Errors
    /// [`TlogError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, TlogError> {
        let bad = || TlogError::malformed("witness's memory", "a line is not understood");
        let mut lines = text.lines();
        if lines.next() != Some("STVOR witness v1") {
            return Err(bad());
        }
        let (mut witness, mut origin) = (Self::new(), None);
        for line in lines {
            match line.split_once(' ').ok_or_else(bad)? {
                ("log", name) => origin = Some(name),
                ("key", key) => witness.trust(origin.ok_or_else(bad)?, Verifier::parse(key)?)?,
                ("at", rest) => {
                    let (size, root) = rest.split_once(' ').ok_or_else(bad)?;
                    let newest = (size.parse().map_err(|_| bad())?, Hash::from_base64(root)?);
                    let known = origin.and_then(|origin| witness.0.get_mut(origin)).ok_or_else(bad)?;
                    known.newest = Some(newest);
                }
                _ => return Err(bad()),
            }
        }
        Ok(witness)
    }
}
