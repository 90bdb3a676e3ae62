//! Reading an archive: whole, or event by event.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use stvor_keys::recipients::Opening;
use stvor_tlog::{
    Checkpoint, Frontier, Hash, InclusionProof, MemoryNodes, Node, Note, ProofFile, TlogError, Verifier,
};

use super::{ArchiveHead, FORMAT, First};
use crate::audit::Event;
use crate::{VaultError, limits};

/// The log that an archive has to be of: its name, and keys that may have signed it.
pub type Trust<'a> = (&'a str, &'a [Verifier]);

/// An event of an archive.
#[derive(Debug)]
pub struct Archived<'a> {
    /// Its number in the log.
    pub seq: u64,
    /// The bytes that the log hashes.
    pub entry: &'a [u8],
    /// What was said to the request.
    pub said: Option<String>,
}

impl Archived<'_> {
    /// The event, with what was said to it.
    ///
    /// # Errors
    /// [`VaultError::Tampered`] when it is no event that this version knows.
    pub fn event(&self) -> Result<Event, VaultError> {
        let mut event: Event = serde_json::from_slice(self.entry)
            .map_err(|_| VaultError::tampered(format!("the event {}", self.seq), "it is not understood"))?;
        event.said.clone_from(&self.said);
        Ok(event)
    }
}

/// An archive that was read whole and held against its checkpoint.
#[derive(Debug)]
pub struct Archive {
    note: Note,
    checkpoint: Checkpoint,
    head: ArchiveHead,
    events: Vec<Vec<u8>>,
    nodes: MemoryNodes,
}

/// Takes an event, and the subtrees that it completes.
type Taker<'a> = dyn FnMut(Archived<'_>, &[Node]) -> Result<(), VaultError> + 'a;

/// What is left of an archive when its events went by.
struct Whole {
    note: Note,
    checkpoint: Checkpoint,
    head: ArchiveHead,
    /// The edge of the log that it goes on from.
    edge: Frontier,
}

/// Lines of an archive, one at a time.
struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
}

impl<R: Read> Lines<R> {
    /// The next line without its end, if there is one.
    fn next(&mut self) -> Result<Option<&[u8]>, &'static str> {
        self.line.clear();
        let most = limits::MAX_ARCHIVE_LINE;
        let read = self.reader.by_ref().take(most + 1).read_until(b'\n', &mut self.line);
        match read.map_err(|_| "it is cut short or was changed")? {
            0 => Ok(None),
            _ if self.line.pop() == Some(b'\n') => Ok(Some(&self.line)),
            length if length as u64 > most => Err("a line is longer than any event"),
            _ => Err("it is cut short"),
        }
    }
}

/// Reads an archive and gives each event to `each`. What that is told is only known to be in the log when this returns without an
/// error.
fn read(
    path: &Path,
    opening: &Opening,
    (origin, trusted): Trust<'_>,
    each: &mut Taker<'_>,
) -> Result<Whole, VaultError> {
    let bad = |reason: &str| VaultError::tampered(format!("the archive {}", path.display()), reason);
    let file = fs::File::open(path).map_err(|error| VaultError::io("opening", path, &error))?;
    let reader = BufReader::new(opening.reader(BufReader::new(file))?);
    let mut lines = Lines { reader, line: Vec::new() };
    let first = lines.next().map_err(bad)?.ok_or_else(|| bad("it is empty"))?;
    let (note, first) = head(first, path)?;
    let checkpoint = Checkpoint::open(&note, origin, trusted)?;
    let roots = first.edge.iter().map(|root| Hash::from_base64(root)).collect::<Result<_, _>>()?;
    let edge = Frontier::resume(first.from, roots)?;
    let mut tree = edge.clone();
    let mut complete = Vec::new();
    let mut under_way: Option<Vec<u8>> = None;
    loop {
        let line = lines.next().map_err(bad)?;
        let words = line.filter(|line| line.starts_with(b"\""));
        if words.is_some() && (!first.words || under_way.is_none()) {
            return Err(bad("words stand where an event should"));
        }
        let said = words.map(serde_json::from_slice::<String>).transpose();
        let said = said.map_err(|_| bad("what was said to an event is not understood"))?;
        if let Some(entry) = under_way.take() {
            complete.clear();
            let seq = tree.size();
            tree.append(Hash::leaf(&entry), &mut complete)?;
            each(Archived { seq, entry: &entry, said }, &complete)?;
        }
        match line {
            None => break,
            Some(line) if words.is_none() => under_way = Some(line.to_vec()),
            Some(_) => {}
        }
    }
    if (tree.size(), tree.root()) != (checkpoint.size(), checkpoint.root()) {
        return Err(bad("its events are not those that its checkpoint signs"));
    }
    let root = checkpoint.root().to_base64();
    let head = ArchiveHead { from: first.from, size: checkpoint.size(), root, words: first.words };
    Ok(Whole { note, checkpoint, head, edge })
}

fn head(line: &[u8], path: &Path) -> Result<(Note, First), VaultError> {
    let bad = |reason: &str| VaultError::tampered(format!("the archive {}", path.display()), reason);
    let first: First = serde_json::from_slice(line).map_err(|_| bad("it is no archive of a log"))?;
    if !(1..=FORMAT).contains(&first.archive) {
        return Err(bad("it is of a version that this program does not know"));
    }
    Ok((Note::parse(first.checkpoint.as_bytes())?, first))
}

/// Reads an archive of the log that is trusted, and holds every event in it against the checkpoint, without keeping them in memory.
/// Returns what it says about itself, for [`crate::Vault::prune`], and its checkpoint.
///
/// # Errors
/// As [`Archive::open`].
pub fn check(path: &Path, opening: &Opening, trust: Trust<'_>) -> Result<(ArchiveHead, Note), VaultError> {
    let whole = read(path, opening, trust, &mut |_, _| Ok(()))?;
    Ok((whole.head, whole.note))
}

/// The same, with each event in turn. What `with` is told is only known to be in the log when this returns without an error.
///
/// # Errors
/// As [`Archive::open`]; what `with` says.
pub fn each(
    path: &Path,
    opening: &Opening,
    trust: Trust<'_>,
    mut with: impl FnMut(Archived<'_>) -> Result<(), VaultError>,
) -> Result<ArchiveHead, VaultError> {
    Ok(read(path, opening, trust, &mut |event, _| with(event))?.head)
}

impl Archive {
    /// Reads an archive of the log that is trusted, and holds every event in it against the checkpoint.
    ///
    /// # Errors
    /// [`VaultError::Key`] when it does not open, [`VaultError::Log`] when none of the keys signed it, [`VaultError::Tampered`].
    pub fn open(path: &Path, opening: &Opening, trust: Trust<'_>) -> Result<Self, VaultError> {
        let (mut events, mut hashes): (Vec<Vec<u8>>, Vec<Node>) = (Vec::new(), Vec::new());
        let mut take = |event: Archived<'_>, complete: &[Node]| {
            events.push(event.entry.to_vec());
            hashes.extend_from_slice(complete);
            Ok(())
        };
        let Whole { note, checkpoint, head, edge } = read(path, opening, trust, &mut take)?;
        let mut nodes = MemoryNodes::after(&edge);
        nodes.put(&hashes)?;
        Ok(Self { note, checkpoint, head, events, nodes })
    }

    /// What it says about itself.
    #[must_use]
    pub fn head(&self) -> &ArchiveHead {
        &self.head
    }

    /// The checkpoint that signs it.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// An event, as the log hashes it, and the proof that it is in the log.
    ///
    /// # Errors
    /// [`VaultError::Log`] when there is no such event in the archive.
    pub fn prove(&self, event: u64) -> Result<(&[u8], ProofFile), VaultError> {
        let at = event.checked_sub(self.head.from).and_then(|at| usize::try_from(at).ok());
        let entry = at.and_then(|at| self.events.get(at));
        let entry = entry.ok_or_else(|| TlogError::Missing(format!("the event {event}")))?;
        let proof = InclusionProof::make(&self.nodes, event, self.checkpoint.size())?;
        Ok((entry, ProofFile { index: event, proof, extra: None, checkpoint: self.note.clone() }))
    }
}
