//! Asking a witness, and being one: see [`stvor_tlog::witness`].
//!
//! The service speaks over a Unix socket, one request a connection: the body of C2SP tlog-witness's `add-checkpoint`, answered by
//! `ok`, an empty line and the note with the witness's signature alone; or the line `newest <origin>`, answered by that of the
//! newest signed checkpoint. What is refused is answered by `no <code>` (and the size, for a conflict).

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use stvor_base::ErrorCode as _;
use stvor_tlog::witness::{AddCheckpoint, CosignatureVerifier, Cosigner, Witness};
use stvor_tlog::{Checkpoint, ConsistencyProof, Note, TlogError, Verifier};

use crate::clock::Clock;
use crate::engine::backup::Known;
use crate::recovery::switch::replace_file;
use crate::storage::make_directory;
use crate::{Vault, VaultError, limits};

/// The file of the newest checkpoint that a witness signed, in the vault's directory.
pub const WITNESSED: &str = "witnessed";

/// A witness with a directory for what it knows.
#[derive(Debug)]
pub struct WitnessService {
    directory: PathBuf,
    cosigner: Cosigner,
    witness: Witness,
    /// The newest note of each log, with the witness's signature.
    notes: BTreeMap<String, Note>,
}

fn bad_state(path: &Path) -> VaultError {
    VaultError::tampered(path.display().to_string(), "it is not the memory of a witness")
}

impl WitnessService {
    /// Takes up the witness whose memory is in `directory`, or begins a new one.
    ///
    /// # Errors
    /// [`VaultError::Tampered`] for a memory that is not understood, [`VaultError::Io`].
    pub fn open(directory: &Path, cosigner: Cosigner) -> Result<Self, VaultError> {
        make_directory(directory)?;
        let memory = directory.join("memory");
        let witness = match fs::read_to_string(&memory) {
            Ok(text) => Witness::parse(&text).map_err(|_| bad_state(&memory))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Witness::new(),
            Err(error) => return Err(VaultError::io("reading", &memory, &error)),
        };
        let path = directory.join("notes");
        let notes = match fs::read(&path) {
            Ok(bytes) => {
                let texts: BTreeMap<String, String> =
                    serde_json::from_slice(&bytes).map_err(|_| bad_state(&path))?;
                let parse = |(origin, text): (String, String)| Ok((origin, Note::parse(text.as_bytes())?));
                texts
                    .into_iter()
                    .map(parse)
                    .collect::<Result<_, TlogError>>()
                    .map_err(|_| bad_state(&path))?
            }
            Err(_) => BTreeMap::new(),
        };
        Ok(Self { directory: directory.to_owned(), cosigner, witness, notes })
    }

    /// Trusts a key of a log.
    ///
    /// # Errors
    /// [`VaultError::Log`], [`VaultError::Io`].
    pub fn trust(&mut self, origin: &str, verifier: Verifier) -> Result<(), VaultError> {
        self.witness.trust(origin, verifier)?;
        self.save(&self.witness)
    }

    /// Who verifies what this signs.
    #[must_use]
    pub fn verifier(&self) -> &CosignatureVerifier {
        self.cosigner.verifier()
    }

    fn save(&self, witness: &Witness) -> Result<(), VaultError> {
        replace_file(&self.directory.join("memory"), witness.to_text().as_bytes())
    }

    /// Signs a checkpoint that continues what was signed before. What it remembers is on the disk before the signature leaves.
    ///
    /// # Errors
    /// As [`Witness::add`]; [`VaultError::Io`].
    pub fn add(&mut self, asked: &AddCheckpoint, seconds: u64) -> Result<Note, VaultError> {
        let mut witness = self.witness.clone();
        let signed = witness.add(asked, (&self.cosigner, seconds))?;
        self.save(&witness)?;
        self.witness = witness;
        let origin = Checkpoint::parse(signed.unverified_text())?.origin().to_owned();
        let mut whole = asked.note.clone();
        whole.merge(&signed)?;
        self.notes.insert(origin, whole);
        let texts: BTreeMap<&String, String> = self.notes.iter().map(|(o, n)| (o, n.to_string())).collect();
        let bytes = serde_json::to_vec(&texts).map_err(|error| VaultError::Database(error.to_string()))?;
        replace_file(&self.directory.join("notes"), &bytes)?;
        Ok(signed)
    }

    /// Serves one request after the other, until accepting fails.
    ///
    /// # Errors
    /// What accepting says.
    pub fn serve(&mut self, listener: &UnixListener, clock: &dyn Clock) -> std::io::Result<()> {
        loop {
            let (stream, _) = listener.accept()?;
            // An asker that breaks off, or waits, harms itself.
            let _ = self.answer(&stream, clock.now().wall / 1_000);
        }
    }

    fn answer(&mut self, mut stream: &UnixStream, seconds: u64) -> std::io::Result<()> {
        stream.set_write_timeout(Some(limits::WITNESS_DEADLINE))?;
        let body = read_request(stream)?;
        let text = String::from_utf8_lossy(&body);
        let answer = match text.trim_end().strip_prefix("newest ") {
            Some(origin) => self.notes.get(origin).cloned().ok_or(VaultError::Log(TlogError::Untrusted)),
            None => AddCheckpoint::parse(&body)
                .map_err(VaultError::from)
                .and_then(|asked| self.add(&asked, seconds)),
        };
        let answer = match answer {
            Ok(note) => format!("ok\n\n{note}"),
            Err(VaultError::Log(TlogError::Conflict { size })) => format!("no LOG_WITNESS_CONFLICT {size}\n"),
            Err(error) => format!("no {}\n", error.code()),
        };
        stream.write_all(answer.as_bytes())
    }
}

/// Reads a request. The deadline is for all of it: who sends a byte now and then keeps nobody else waiting.
fn read_request(mut stream: &UnixStream) -> std::io::Result<Vec<u8>> {
    let start = Instant::now();
    let mut body = Vec::new();
    loop {
        let left = limits::WITNESS_DEADLINE.checked_sub(start.elapsed()).filter(|left| !left.is_zero());
        stream.set_read_timeout(Some(left.ok_or(std::io::ErrorKind::TimedOut)?))?;
        let mut part = [0; 4_096];
        let count = stream.read(&mut part)?;
        body.extend_from_slice(part.get(..count).unwrap_or_default());
        if count == 0 {
            return Ok(body);
        }
        if body.len() as u64 > limits::MAX_WITNESS_REQUEST {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
    }
}

/// Asks the witness behind a socket. The outer result is the connection, the inner the witness's word.
fn ask(socket: &Path, body: &str) -> Result<Result<Note, TlogError>, VaultError> {
    let failed = |error: std::io::Error| VaultError::io("asking the witness at", socket, &error);
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(2 * limits::WITNESS_DEADLINE)).map_err(failed)?;
    stream.write_all(body.as_bytes()).and_then(|()| stream.shutdown(Shutdown::Write)).map_err(failed)?;
    let mut answer = String::new();
    stream.take(limits::MAX_WITNESS_REQUEST).read_to_string(&mut answer).map_err(failed)?;
    if let Some(note) = answer.strip_prefix("ok\n\n") {
        return Ok(Note::parse(note.as_bytes()));
    }
    let refused = answer.trim_end().strip_prefix("no ");
    let refused = refused.ok_or_else(|| VaultError::invalid("the witness's answer is not understood"))?;
    Ok(Err(match refused.split_once(' ') {
        Some(("LOG_WITNESS_CONFLICT", size)) => match size.parse() {
            Ok(size) => TlogError::Conflict { size },
            Err(_) => TlogError::Untrusted,
        },
        _ if refused == "LOG_PROOF_INVALID" => TlogError::BadProof { what: "consistency" },
        _ => TlogError::Untrusted,
    }))
}

impl Vault {
    /// Has the log's newest checkpoint signed by the witness at `socket`, and keeps that beside the vault. Returns the size and
    /// the time in seconds that the witness signed.
    ///
    /// # Errors
    /// [`VaultError::Tampered`] when the witness saw another log, or a longer one; [`VaultError::Log`] when it does not know the
    /// log or its key; [`VaultError::Io`].
    pub fn ask_witness(
        &self,
        socket: &Path,
        witness: &CosignatureVerifier,
    ) -> Result<(u64, u64), VaultError> {
        let mut old_size = 0;
        for _ in 0..3 {
            let asked = self.ask(move |engine| engine.add_checkpoint(old_size)).wait()?;
            match ask(socket, &asked.to_string())? {
                Ok(signed) => {
                    let mut note = asked.note;
                    note.merge(&signed)?;
                    let time = witness.open(&note)?;
                    replace_file(&self.path().join(WITNESSED), note.to_string().as_bytes())?;
                    let size = Checkpoint::parse(note.unverified_text())?.size();
                    return Ok((size, time));
                }
                Err(TlogError::Conflict { size }) => old_size = size,
                Err(TlogError::BadProof { .. }) => {
                    return Err(VaultError::tampered(
                        "the log",
                        "the witness saw another one: it was written anew",
                    ));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(VaultError::invalid("somebody else asks the witness for this log all the time"))
    }

    /// Holds the log against the newest checkpoint that the witness signed. Returns its size and time.
    ///
    /// # Errors
    /// [`VaultError::Tampered`] when the log is shorter, or another one; as [`Vault::ask_witness`].
    pub fn verify_with_witness(
        &self,
        socket: &Path,
        witness: &CosignatureVerifier,
    ) -> Result<(u64, u64), VaultError> {
        let origin = self.ask(|engine| Ok(engine.held()?.base.signer.verifier().name().to_owned())).wait()?;
        let note = ask(socket, &format!("newest {origin}\n"))??;
        let time = witness.open(&note)?;
        let size = Checkpoint::parse(note.unverified_text())?.size();
        match self.ask(move |engine| engine.compare(&note)).wait()? {
            Known::Holds => Ok((size, time)),
            Known::Longer(known) => {
                Err(VaultError::tampered("the log", format!("it was cut: the witness signed {known} events")))
            }
            Known::Other => {
                Err(VaultError::tampered("the log", "the witness saw another one: it was written anew"))
            }
        }
    }
}

impl crate::engine::Engine {
    /// The newest checkpoint, with the proof that it continues one of `old_size`.
    pub(crate) fn add_checkpoint(&mut self, old_size: u64) -> Result<AddCheckpoint, VaultError> {
        self.held()?;
        let text = self.database.checkpoint()?.ok_or_else(|| TlogError::Missing("the checkpoint".into()))?;
        let note = Note::parse(text.as_bytes())?;
        let size = Checkpoint::parse(note.unverified_text())?.size();
        if old_size > size {
            return Err(VaultError::tampered(
                "the log",
                format!("it was cut: the witness signed {old_size} events"),
            ));
        }
        let proof = ConsistencyProof::make(&self.database, old_size, size)?;
        Ok(AddCheckpoint { old_size, proof, note })
    }

    /// Proves that the log of a checkpoint, of the newest one where none is given, goes on from that of an earlier one.
    pub(crate) fn prove_consistency(
        &self,
        old: &Note,
        new: Option<Note>,
    ) -> Result<AddCheckpoint, VaultError> {
        let trust = self.held()?.base.trust();
        let newest = || -> Result<Note, VaultError> {
            let text = self.database.checkpoint()?;
            let text = text.ok_or_else(|| TlogError::Missing("the checkpoint".into()))?;
            Ok(Note::parse(text.as_bytes())?)
        };
        let note = new.map_or_else(newest, Ok)?;
        let (from, to) = (trust.open(old)?, trust.open(&note)?);
        if from.size() > to.size() {
            return Err(VaultError::invalid("the first checkpoint is the later one: exchange the two"));
        }
        for known in [old, &note] {
            match self.compare(known)? {
                Known::Holds => {}
                Known::Longer(size) => {
                    let reason = format!("it was cut: the checkpoint signs {size} events");
                    return Err(VaultError::tampered("the log", reason));
                }
                Known::Other => {
                    let reason = "it is not the one that the checkpoint signs: it was written anew";
                    return Err(VaultError::tampered("the log", reason));
                }
            }
        }
        let proof = ConsistencyProof::make(&self.database, from.size(), to.size())?;
        // Both ends are right, and so is the log between them: a node that a proof takes may still have been changed.
        let holds = proof.verify((from.size(), from.root()), (to.size(), to.root()));
        holds.map_err(|_| VaultError::tampered("the log", "a node of its tree was changed"))?;
        Ok(AddCheckpoint { old_size: from.size(), proof, note })
    }
}
