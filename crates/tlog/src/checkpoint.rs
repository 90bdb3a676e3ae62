//! Checkpoints (C2SP tlog-checkpoint): what a log signs, and proofs that carry one (C2SP tlog-proof).

use core::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::note::{Note, Signer, Verifier};
use crate::proof::InclusionProof;
use crate::tree::Hash;
use crate::{TlogError, limits};

/// What a log says about itself at one moment: whose log it is, how many entries it has, and the root over them.
///
/// ```
/// use stvor_crypto::SystemRandom;
/// use stvor_tlog::{Checkpoint, Hash, Note, Signer};
/// let signer = Signer::generate("example.com/log", &mut SystemRandom::new())?;
/// let checkpoint = Checkpoint::new("example.com/log", 1, Hash::leaf(b"first"))?;
/// let signed = checkpoint.sign(&[&signer])?.to_string();
///
/// let note = Note::parse(signed.as_bytes())?;
/// let read = Checkpoint::open(&note, "example.com/log", &[signer.verifier().clone()])?;
/// assert_eq!((read.size(), read.root()), (1, Hash::leaf(b"first")));
/// # Ok::<(), stvor_tlog::TlogError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    origin: String,
    size: u64,
    root: Hash,
    extensions: Vec<String>,
}

impl Checkpoint {
    /// A checkpoint without extension lines.
    ///
    /// # Errors
    /// [`TlogError::Malformed`] when the origin is empty, longer than [`limits::MAX_NAME`] bytes or holds control
    /// characters; [`TlogError::Full`] past [`limits::MAX_SIZE`].
    pub fn new(origin: &str, size: u64, root: Hash) -> Result<Self, TlogError> {
        if origin.is_empty() || origin.len() > limits::MAX_NAME || origin.chars().any(char::is_control) {
            return Err(TlogError::malformed("origin", "it is empty, too long, or holds control characters"));
        }
        if size > limits::MAX_SIZE {
            return Err(TlogError::Full);
        }
        Ok(Self { origin: origin.to_owned(), size, root, extensions: Vec::new() })
    }

    /// With an extension line, for example a time.
    ///
    /// # Errors
    /// [`TlogError::Malformed`] when the line is empty or holds control characters.
    pub fn with_extension(mut self, line: &str) -> Result<Self, TlogError> {
        if line.is_empty() || line.chars().any(char::is_control) {
            return Err(TlogError::malformed("extension line", "it is empty or holds control characters"));
        }
        self.extensions.push(line.to_owned());
        Ok(self)
    }

    /// Reads the text of a note.
    ///
    /// # Errors
    /// [`TlogError::Malformed`] for everything that [`Checkpoint`] does not write.
    pub fn parse(text: &str) -> Result<Self, TlogError> {
        let malformed = |reason| TlogError::malformed("checkpoint", reason);
        let text = text.strip_suffix('\n').ok_or(malformed("its last line does not end"))?;
        let mut lines = text.split('\n');
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(malformed("it has fewer than three lines"));
        };
        let checkpoint = Self::new(origin, parse_number(size)?, Hash::from_base64(root)?)?;
        lines.try_fold(checkpoint, Self::with_extension)
    }

    /// Reads a signed note, if one of `trusted` signed it and it is of the log `origin`.
    ///
    /// # Errors
    /// As [`Note::open`] and [`Checkpoint::parse`]; [`TlogError::OtherLog`].
    pub fn open(note: &Note, origin: &str, trusted: &[Verifier]) -> Result<Self, TlogError> {
        let checkpoint = Self::parse(note.open(trusted)?)?;
        if checkpoint.origin != origin {
            return Err(TlogError::OtherLog { found: checkpoint.origin, expected: origin.to_owned() });
        }
        Ok(checkpoint)
    }

    /// Signs with each of `signers`.
    ///
    /// # Errors
    /// As [`Note::sign`].
    pub fn sign(&self, signers: &[&Signer]) -> Result<Note, TlogError> {
        Note::sign(&self.to_string(), signers)
    }

    /// Whose log it is.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// How many entries it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root over them.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.root
    }

    /// Further lines, in their order.
    #[must_use]
    pub fn extensions(&self) -> &[String] {
        &self.extensions
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n{}", self.origin, self.size, self.root.to_base64())?;
        self.extensions.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// A decimal number in its one canonical form.
fn parse_number(text: &str) -> Result<u64, TlogError> {
    let malformed = TlogError::malformed("number", "it is not decimal, or not in its shortest form");
    match text.parse::<u64>() {
        Ok(number) if number.to_string() == text => Ok(number),
        _ => Err(malformed),
    }
}

const HEADER: &str = "c2sp.org/tlog-proof@v1";

/// A proof that stands alone: where an entry is, what leads from it to the root, the checkpoint that signs the root, and
/// bytes that the application puts beside (C2SP tlog-proof).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProofFile {
    /// Which entry.
    pub index: u64,
    /// From the entry to the root.
    pub proof: InclusionProof,
    /// Bytes of the application. They are not authenticated.
    pub extra: Option<Vec<u8>>,
    /// The signed checkpoint.
    pub checkpoint: Note,
}

impl ProofFile {
    /// Reads a proof file.
    ///
    /// # Errors
    /// [`TlogError::Malformed`], also past [`limits::MAX_PROOF_FILE`] bytes and [`limits::MAX_PROOF`] hashes.
    pub fn parse(bytes: &[u8]) -> Result<Self, TlogError> {
        let malformed = |reason| TlogError::malformed("proof file", reason);
        if bytes.len() > limits::MAX_PROOF_FILE {
            return Err(malformed("it is longer than 131072 bytes"));
        }
        let text = core::str::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8"))?;
        let (head, note) = text.split_once("\n\n").ok_or(malformed("it has no empty line"))?;
        let mut lines = head.split('\n').peekable();
        if lines.next() != Some(HEADER) {
            return Err(malformed("it does not begin with c2sp.org/tlog-proof@v1"));
        }
        let extra =
            lines.next_if(|line| line.starts_with("extra ")).and_then(|line| line.strip_prefix("extra "));
        let extra = extra.map(|extra| STANDARD.decode(extra)).transpose();
        let extra = extra.map_err(|_| malformed("its extra data is not base64"))?;
        let index = lines.next().and_then(|line| line.strip_prefix("index "));
        let index = parse_number(index.ok_or(malformed("it has no index"))?)?;
        let hashes = lines.map(Hash::from_base64).collect::<Result<Vec<_>, _>>()?;
        if hashes.len() > limits::MAX_PROOF {
            return Err(malformed("it has more than 128 hashes"));
        }
        let checkpoint = Note::parse(note.as_bytes())?;
        Ok(Self { index, proof: InclusionProof(hashes), extra, checkpoint })
    }

    /// Verifies that `entry` is in the log `origin`, as a checkpoint says that one of `trusted` signed.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`TlogError::BadProof`].
    pub fn verify(&self, entry: &[u8], origin: &str, trusted: &[Verifier]) -> Result<Checkpoint, TlogError> {
        let checkpoint = Checkpoint::open(&self.checkpoint, origin, trusted)?;
        self.proof.verify((self.index, Hash::leaf(entry)), (checkpoint.size, checkpoint.root))?;
        Ok(checkpoint)
    }
}

impl fmt::Display for ProofFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        if let Some(extra) = &self.extra {
            writeln!(f, "extra {}", STANDARD.encode(extra))?;
        }
        writeln!(f, "index {}", self.index)?;
        self.proof.0.iter().try_for_each(|hash| writeln!(f, "{}", hash.to_base64()))?;
        write!(f, "\n{}", self.checkpoint)
    }
}
