//! Proofs about a memory that show nothing else of it: that it was there, that its level is at most so much, that it was stored
//! before or after a time.
//!
//! The vault logs, on request, a *commitment leaf* for a memory: Pedersen commitments to level and time and a salted hash of
//! the content, and nothing that names the memory. A proof is that leaf, its inclusion in a signed checkpoint (RFC 6962), and a
//! Bulletproofs range proof over one of its commitments. So it is sound against everybody but the vault at the moment of the
//! commitment: **the vault's owner could commit to a memory that never was**. What a verifier learns beyond the claim: that the
//! leaf is there, where in the log it stands, and the size of the log.
//!
//! An [`Vault::attest`] is something else: a signed statement in clear, which says that the holder of the log's key says so.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use stvor_base::codec::Writer;
use stvor_crypto::commitment::{Bound, Commitment};
use stvor_crypto::kdf::sha256;
use stvor_tlog::{Checkpoint, Note, ProofFile, Verifier};

use crate::audit::{Event, Operation, hex};
use crate::engine::agents::OWNER;
use crate::level::Level;
use crate::memory::MemoryId;
use crate::{Vault, VaultError, limits};

/// What the proof is made of, as its file says.
pub const SYSTEM: &str =
    "RFC 6962 inclusion; Pedersen commitment on ristretto255; Bulletproofs range proof, 64 bits";
const ATTESTATION: &str = "STVOR attestation v1";

/// What a commitment leaf holds. In hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commitments {
    /// To the level, 0 to 5.
    pub level: String,
    /// To the time when it was stored, in milliseconds since the Unix epoch.
    pub stored: String,
    /// SHA-256 of a salt and the content; nothing when the content's key was not held.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub content: Option<String>,
}

/// What is claimed of a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Claim {
    /// The prover knows what a commitment in the log was made of.
    Exists,
    /// Its level is at most this.
    LevelAtMost(Level),
    /// It was stored at this time or before, in milliseconds since the Unix epoch.
    StoredAtOrBefore(u64),
    /// It was stored at this time or after.
    StoredAtOrAfter(u64),
}

impl Claim {
    fn bound(self) -> Bound {
        match self {
            Self::Exists => Bound::AtLeast(0),
            Self::LevelAtMost(level) => Bound::AtMost(level.number().into()),
            Self::StoredAtOrBefore(time) => Bound::AtMost(time),
            Self::StoredAtOrAfter(time) => Bound::AtLeast(time),
        }
    }

    /// Whether it is about the level, and not about the time.
    pub(crate) fn of_level(self) -> bool {
        matches!(self, Self::LevelAtMost(_))
    }
}

/// A proof, as it is handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PropertyProof {
    /// The version, 1.
    pub format: u32,
    /// [`SYSTEM`].
    pub system: String,
    /// What it proves.
    pub claim: Claim,
    /// For whom, or for what: the verifier's word, so that a proof is not shown to others as if it were made for them.
    pub audience: String,
    /// The commitment leaf, as the log hashes it.
    pub leaf: String,
    /// Its inclusion (C2SP tlog-proof), with the checkpoint.
    pub inclusion: String,
    /// The range proof, in base64.
    pub range: String,
}

/// What the range proof is bound to.
pub(crate) fn context(leaf: &[u8], audience: &str) -> Vec<u8> {
    let mut out = Writer::new();
    out.raw(b"STVOR property proof v1").bytes(leaf).bytes(audience.as_bytes());
    out.finish()
}

/// The salted hash of a content.
pub(crate) fn content_commitment(salt: &[u8; 32], content: &[u8]) -> String {
    hex(&sha256(&[b"STVOR content commitment v1", salt, content]))
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    let bytes =
        digits.chunks_exact(2).filter_map(|pair| u8::try_from(pair.first()? * 16 + pair.last()?).ok());
    let bytes: Vec<u8> = bytes.collect();
    bytes.try_into().ok().filter(|_| text.len() == 64)
}

impl PropertyProof {
    /// Verifies it, with nothing but the log's name and keys. `audience` is what the verifier asked for. Returns the checkpoint
    /// that the leaf is in.
    ///
    /// # Errors
    /// [`VaultError::Unproven`] when it does not prove its claim for this audience; [`VaultError::Log`] when the leaf is not in
    /// a log with this name and keys.
    pub fn verify(
        &self,
        (origin, trusted): (&str, &[Verifier]),
        audience: &str,
    ) -> Result<Checkpoint, VaultError> {
        let unproven = |reason| VaultError::Unproven(reason);
        if self.format != 1 || self.system != SYSTEM {
            return Err(unproven("it is of another version or proof system"));
        }
        if self.audience != audience {
            return Err(unproven("it was made for somebody else"));
        }
        let inclusion = ProofFile::parse(self.inclusion.as_bytes())?;
        let checkpoint = inclusion.verify(self.leaf.as_bytes(), origin, trusted)?;
        let commitments = self.commitments()?;
        let which = if self.claim.of_level() { &commitments.level } else { &commitments.stored };
        let bytes = unhex(which).ok_or_else(|| unproven("its leaf is not understood"))?;
        let range = STANDARD.decode(&self.range).map_err(|_| unproven("its range proof is not base64"))?;
        let context = context(self.leaf.as_bytes(), audience);
        let shown = Commitment::from_bytes(bytes).verify(self.claim.bound(), &context, &range);
        shown.map_err(|_| unproven("its range proof does not show the claim"))?;
        Ok(checkpoint)
    }

    /// Verifies that a content is the one that its leaf commits to. That shows nothing where the proof itself was not
    /// [verified](Self::verify).
    ///
    /// # Errors
    /// [`VaultError::Unproven`] when it is another one, or the leaf commits to none.
    pub fn verify_content(&self, opening: &ContentOpening, content: &[u8]) -> Result<(), VaultError> {
        let commitments = self.commitments()?;
        if commitments.content.is_none() {
            return Err(VaultError::Unproven(
                "its leaf commits to no content: the key of it was not held then",
            ));
        }
        match opening.matches(&commitments, content) {
            true => Ok(()),
            false => Err(VaultError::Unproven("the content is not the one that its leaf commits to")),
        }
    }

    fn commitments(&self) -> Result<Commitments, VaultError> {
        let unproven = |reason| VaultError::Unproven(reason);
        let leaf: Event =
            serde_json::from_str(&self.leaf).map_err(|_| unproven("its leaf is not understood"))?;
        let commitments = leaf.commitment.filter(|_| leaf.operation == Operation::Commit);
        commitments.ok_or_else(|| unproven("its leaf holds no commitment"))
    }
}

/// The salt that shows a content to be the committed one, if its owner wants that. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContentOpening {
    /// In hexadecimal digits.
    pub salt: String,
}

impl core::fmt::Debug for ContentOpening {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl ContentOpening {
    /// Whether this content is the committed one.
    #[must_use]
    pub fn matches(&self, commitments: &Commitments, content: &[u8]) -> bool {
        let expected = unhex(&self.salt).map(|salt| content_commitment(&salt, content));
        expected.is_some() && expected == commitments.content
    }
}

/// A statement that the holder of the log's key signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attestation {
    /// The statement.
    pub statement: String,
    /// When it was signed, in milliseconds since the Unix epoch.
    pub at: u64,
}

impl Attestation {
    /// The signed text.
    pub(crate) fn text(origin: &str, at: u64, statement: &str) -> String {
        format!("{ATTESTATION}\nlog {origin}\nat {at}\n{statement}\n")
    }

    /// Opens a signed attestation of a log.
    ///
    /// # Errors
    /// [`VaultError::Log`] when none of the keys signed it, [`VaultError::Unproven`] when it is no attestation of this log.
    pub fn open(note: &Note, (origin, trusted): (&str, &[Verifier])) -> Result<Self, VaultError> {
        let text = note.open(trusted)?;
        let other = || VaultError::Unproven("it is no attestation of this log");
        let rest = text.strip_prefix(&format!("{ATTESTATION}\nlog {origin}\nat ")).ok_or_else(other)?;
        let (at, statement) = rest.split_once('\n').ok_or_else(other)?;
        let at = at.parse().map_err(|_| other())?;
        let statement = statement.strip_suffix('\n').ok_or_else(other)?.to_owned();
        Ok(Self { statement, at })
    }
}

impl Vault {
    /// Logs a commitment leaf for a memory, once. Returns where in the log it stands.
    ///
    /// # Errors
    /// [`crate::Refusal`], [`VaultError::Tampered`], [`VaultError::LogUnavailable`].
    pub fn commit_memory(&self, id: MemoryId) -> Result<u64, VaultError> {
        self.ask(move |engine| engine.commit_memory(id)).wait()
    }

    /// Proves a claim of a memory, for an audience (at most [`limits::MAX_TEXT`] bytes). Commits to the memory first, if that was
    /// not done.
    ///
    /// # Errors
    /// [`VaultError::Unproven`] when the claim is not true; as [`Vault::commit_memory`].
    pub fn prove_property(
        &self,
        id: MemoryId,
        claim: Claim,
        audience: &str,
    ) -> Result<PropertyProof, VaultError> {
        if audience.len() > limits::MAX_TEXT {
            return Err(VaultError::invalid("an audience has at most 4096 bytes"));
        }
        let index = self.commit_memory(id)?;
        let audience = audience.to_owned();
        self.ask(move |engine| {
            let mut event = Event::new(engine.clock.now(), OWNER, Operation::Prove);
            event.memory = Some(id);
            engine.audited(event, |engine, event| {
                engine.note(event, &audience)?;
                let (leaf, inclusion) = engine.prove(index)?;
                let opening = engine.opening(id, claim)?;
                let untrue = || VaultError::Unproven("the claim is not true of this memory");
                let context = context(&leaf, &audience);
                let range = opening.prove(claim.bound(), &context, &mut engine.rng).map_err(|_| untrue())?;
                Ok(PropertyProof {
                    format: 1,
                    system: SYSTEM.into(),
                    claim,
                    audience,
                    leaf: String::from_utf8_lossy(&leaf).into_owned(),
                    inclusion: inclusion.to_string(),
                    range: STANDARD.encode(range),
                })
            })
        })
        .wait()
    }

    /// What shows a content to be the committed one.
    ///
    /// # Errors
    /// As [`Vault::commit_memory`].
    pub fn content_opening(&self, id: MemoryId) -> Result<ContentOpening, VaultError> {
        self.ask(move |engine| {
            let mut event = Event::new(engine.clock.now(), OWNER, Operation::Prove);
            event.memory = Some(id);
            engine.audited(event, |engine, _| engine.content_opening(id))
        })
        .wait()
    }

    /// Signs a statement of one line (at most [`limits::MAX_TEXT`] bytes) with the log's key, and logs that.
    ///
    /// # Errors
    /// [`VaultError::Invalid`], [`crate::Refusal::Cold`], [`VaultError::LogUnavailable`].
    pub fn attest(&self, statement: &str) -> Result<Note, VaultError> {
        let statement = statement.to_owned();
        self.ask(move |engine| engine.attest(&statement)).wait()
    }
}
