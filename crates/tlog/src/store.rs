//! A log in a directory, laid out as C2SP tlog-tiles: entries, tiles, and the checkpoint that signs them. Served as
//! static files it is a log that any client of that format reads.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoint;
use crate::note::{Note, Signer, Verifier};
use crate::tile::{self, HEIGHT, Row, Tile, WIDTH};
use crate::tree::{Frontier, Hash, Node, Nodes};
use crate::{ConsistencyProof, InclusionProof, ProofFile, TlogError, limits};

/// The name of the file that holds the newest checkpoint.
const CHECKPOINT: &str = "checkpoint";

/// Tiles that are kept after they were read.
const CACHED_TILES: usize = 64;

/// A log in a directory. One process writes it at a time, which its owner sees to; any number may read.
///
/// ```
/// use stvor_crypto::SystemRandom;
/// use stvor_tlog::{Signer, TileLog};
/// # let directory = tempfile::tempdir()?;
/// let signer = Signer::generate("example.com/log", &mut SystemRandom::new())?;
/// let trusted = [signer.verifier().clone()];
/// let mut log = TileLog::create(directory.path(), &signer)?;
/// for number in 0..1000 {
///     log.append(format!("entry {number}").as_bytes())?;
/// }
/// let checkpoint = log.publish(&[&signer])?;
/// assert_eq!(checkpoint.size(), 1000);
///
/// let log = TileLog::open(directory.path(), "example.com/log", &trusted)?;
/// let proof = log.prove(42)?;
/// proof.verify(b"entry 42", "example.com/log", &trusted)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TileLog {
    tiles: Tiles,
    frontier: Frontier,
    /// What is not published yet, on top of the last full tiles.
    pending: BTreeMap<(Row, u64), Vec<u8>>,
    published: (Checkpoint, Note),
}

impl TileLog {
    /// Begins a log in `directory`, which is made if it is not there, with a signed checkpoint of no entries. Its origin is
    /// the signer's name.
    ///
    /// # Errors
    /// [`TlogError::Io`], also when a log is there already.
    pub fn create(directory: &Path, signer: &Signer) -> Result<Self, TlogError> {
        fs::create_dir_all(directory).map_err(|error| TlogError::io("creating", directory, &error))?;
        let path = directory.join(CHECKPOINT);
        if path.exists() {
            let error = std::io::Error::from(ErrorKind::AlreadyExists);
            return Err(TlogError::io("beginning a log beside", &path, &error));
        }
        let checkpoint = Checkpoint::new(signer.verifier().name(), 0, Hash::empty())?;
        let note = checkpoint.sign(&[signer])?;
        write(&path, note.to_string().as_bytes())?;
        Ok(Self {
            tiles: Tiles::new(directory),
            frontier: Frontier::new(),
            pending: BTreeMap::new(),
            published: (checkpoint, note),
        })
    }

    /// Opens the log in `directory`, verifies its checkpoint, and that the tiles on its right edge lead to the root that
    /// was signed. [`TileLog::audit`] looks at all the others.
    ///
    /// # Errors
    /// [`TlogError::Missing`], [`TlogError::Corrupt`], [`TlogError::Io`]; as [`Checkpoint::open`].
    pub fn open(directory: &Path, origin: &str, trusted: &[Verifier]) -> Result<Self, TlogError> {
        let bytes = read(&directory.join(CHECKPOINT))?;
        let note = Note::parse(&bytes)?;
        let checkpoint = Checkpoint::open(&note, origin, trusted)?;
        let tiles = Tiles::new(directory);
        tiles.size.set(checkpoint.size());
        let frontier = Frontier::load(&tiles, checkpoint.size())?;
        if frontier.root() != checkpoint.root() {
            return Err(TlogError::Corrupt("a tile on the right edge".into()));
        }
        let mut log = Self { tiles, frontier, pending: BTreeMap::new(), published: (checkpoint, note) };
        log.reload()?;
        Ok(log)
    }

    /// Takes the partial tiles up again, which the next entries widen.
    fn reload(&mut self) -> Result<(), TlogError> {
        self.pending.clear();
        let size = self.published.0.size();
        for row in rows() {
            let (index, width) = tile::extent(row, size);
            if width > 0 {
                let bytes = self.tiles.bytes(Tile { row, index, width })?;
                self.pending.insert((row, index), bytes);
            }
        }
        Ok(())
    }

    /// How many entries there are, published or not.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// The newest published checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.published.0
    }

    /// The newest published checkpoint with its signatures.
    #[must_use]
    pub fn note(&self) -> &Note {
        &self.published.1
    }

    /// Appends an entry, in memory: [`TileLog::publish`] writes it. Returns its index.
    ///
    /// # Errors
    /// [`TlogError::EntryTooLong`], [`TlogError::Full`].
    pub fn append(&mut self, entry: &[u8]) -> Result<u64, TlogError> {
        if entry.len() > limits::MAX_ENTRY {
            return Err(TlogError::EntryTooLong(entry.len()));
        }
        let index = self.frontier.size();
        let mut complete: Vec<Node> = Vec::new();
        self.frontier.append(Hash::leaf(entry), &mut complete)?;
        let bundle = self.pending.entry((Row::Entries, index / WIDTH as u64)).or_default();
        tile::encode_entry(bundle, entry)?;
        for node in complete.iter().filter(|node| node.level % HEIGHT == 0) {
            let place = (Row::Level(node.level / HEIGHT), node.index / WIDTH as u64);
            self.pending.entry(place).or_default().extend_from_slice(&node.hash.0);
        }
        Ok(index)
    }

    /// Writes what was appended, syncs it, then signs and writes the checkpoint over it. When this fails the log on disk is
    /// as before; what was appended is kept and can be published later.
    ///
    /// # Errors
    /// [`TlogError::Io`], [`TlogError::Crypto`].
    pub fn publish(&mut self, signers: &[&Signer]) -> Result<Checkpoint, TlogError> {
        let size = self.frontier.size();
        let checkpoint = Checkpoint::new(self.published.0.origin(), size, self.frontier.root())?;
        let note = checkpoint.sign(signers)?;
        for ((row, index), bytes) in &self.pending {
            let (full, width) = tile::extent(*row, size);
            let width = if *index < full { 256 } else { width };
            self.tiles.put(Tile { row: *row, index: *index, width }, bytes)?;
        }
        write(&self.tiles.directory.join(CHECKPOINT), note.to_string().as_bytes())?;
        self.pending.retain(|(row, index), _| *index >= tile::extent(*row, size).0);
        self.tiles.size.set(size);
        self.published = (checkpoint.clone(), note);
        Ok(checkpoint)
    }

    /// A published entry.
    ///
    /// # Errors
    /// [`TlogError::OutOfRange`], [`TlogError::Missing`], [`TlogError::Malformed`], [`TlogError::Corrupt`] when it is not
    /// what its leaf's hash was made of, [`TlogError::Io`].
    pub fn entry(&self, index: u64) -> Result<Vec<u8>, TlogError> {
        let size = self.published.0.size();
        if index >= size {
            return Err(TlogError::OutOfRange { what: "entry", asked: index, size });
        }
        let tile = self.tiles.holding(Row::Entries, index);
        let bytes = self.tiles.bytes(tile)?;
        let entries = tile::decode_entries(&bytes, usize::from(tile.width))?;
        let at = usize::try_from(index % WIDTH as u64).unwrap_or(WIDTH);
        let entry = entries.get(at).ok_or_else(|| TlogError::Missing(format!("entry {index}")))?;
        if self.tiles.node(0, index)? != Hash::leaf(entry) {
            return Err(TlogError::Corrupt(format!("entry {index}")));
        }
        Ok(entry.to_vec())
    }

    /// Proves a published entry against the newest published checkpoint.
    ///
    /// # Errors
    /// As [`InclusionProof::make`].
    pub fn prove(&self, index: u64) -> Result<ProofFile, TlogError> {
        let proof = InclusionProof::make(&self.tiles, index, self.published.0.size())?;
        Ok(ProofFile { index, proof, extra: None, checkpoint: self.published.1.clone() })
    }

    /// Proves that the newest published checkpoint continues the one of `old` entries.
    ///
    /// # Errors
    /// As [`ConsistencyProof::make`].
    pub fn prove_consistency(&self, old: u64) -> Result<ConsistencyProof, TlogError> {
        ConsistencyProof::make(&self.tiles, old, self.published.0.size())
    }

    /// Reads everything that is published: every entry, every hash of every tile, up to the root that was signed.
    ///
    /// # Errors
    /// [`TlogError::Corrupt`], [`TlogError::Missing`] and [`TlogError::Malformed`], with the first place that is wrong.
    pub fn audit(&self) -> Result<(), TlogError> {
        let size = self.published.0.size();
        let mut tree = Frontier::new();
        let mut complete = Vec::new();
        for index in 0..size.div_ceil(WIDTH as u64) {
            let tile = self.tiles.holding(Row::Entries, index * WIDTH as u64);
            let bytes = self.tiles.bytes(tile)?;
            let entries = tile::decode_entries(&bytes, usize::from(tile.width));
            let entries = entries.map_err(|_| TlogError::Corrupt(tile.to_string()))?;
            for entry in entries {
                complete.clear();
                let at = tree.size();
                tree.append(Hash::leaf(entry), &mut complete)?;
                for node in complete.iter().filter(|node| node.level % HEIGHT == 0) {
                    if self.tiles.node(node.level, node.index)? != node.hash {
                        let level = node.level / HEIGHT;
                        let place = self.tiles.holding(Row::Level(level), node.index);
                        return Err(TlogError::Corrupt(format!("entry {at}, or {place}")));
                    }
                }
            }
        }
        if tree.root() == self.published.0.root() {
            Ok(())
        } else {
            Err(TlogError::Corrupt("the checkpoint".into()))
        }
    }
}

fn rows() -> impl Iterator<Item = Row> {
    (0..=tile::MAX_LEVEL).map(Row::Level).chain([Row::Entries])
}

/// The tiles of a directory, as far as they are published.
#[derive(Debug)]
struct Tiles {
    directory: PathBuf,
    size: std::cell::Cell<u64>,
    cache: RefCell<BTreeMap<Tile, Vec<Hash>>>,
}

impl Tiles {
    fn new(directory: &Path) -> Self {
        let size = std::cell::Cell::new(0);
        Self { directory: directory.to_owned(), size, cache: RefCell::default() }
    }

    /// The tile that holds the hash or entry `index` of a row.
    fn holding(&self, row: Row, index: u64) -> Tile {
        let (full, width) = tile::extent(row, self.size.get());
        let index = index / WIDTH as u64;
        Tile { row, index, width: if index < full { 256 } else { width } }
    }

    fn bytes(&self, tile: Tile) -> Result<Vec<u8>, TlogError> {
        read(&self.directory.join(tile.to_string()))
    }

    fn put(&self, tile: Tile, bytes: &[u8]) -> Result<(), TlogError> {
        let path = self.directory.join(tile.to_string());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| TlogError::io("creating", parent, &error))?;
        }
        self.cache.borrow_mut().remove(&tile);
        write(&path, bytes)
    }
}

impl Nodes for Tiles {
    fn node(&self, level: u8, index: u64) -> Result<Hash, TlogError> {
        let height = level % HEIGHT;
        let tile = self.holding(Row::Level(level / HEIGHT), index << height);
        let missing = || TlogError::Missing(tile.to_string());
        let mut cache = self.cache.borrow_mut();
        if !cache.contains_key(&tile) {
            if tile.width == 0 {
                return Err(missing());
            }
            let hashes = tile::decode_hashes(&self.bytes(tile)?, usize::from(tile.width));
            let hashes = hashes.map_err(|_| TlogError::Corrupt(tile.to_string()))?;
            if cache.len() >= CACHED_TILES {
                cache.pop_first();
            }
            cache.insert(tile, hashes);
        }
        let hashes = cache.get(&tile).ok_or_else(missing)?;
        let from = usize::try_from((index << height) % WIDTH as u64).unwrap_or(WIDTH);
        let hashes = hashes.get(from..from + (1 << height)).ok_or_else(missing)?;
        let mut row = hashes.to_vec();
        while row.len() > 1 {
            row = row.as_chunks().0.iter().map(|[left, right]| Hash::node(*left, *right)).collect();
        }
        row.first().copied().ok_or_else(missing)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlogError> {
    fs::read(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => TlogError::Missing(path.display().to_string()),
        _ => TlogError::io("reading", path, &error),
    })
}

/// Replaces a file with one that is whole and synced: after a power cut there is the old one or the new one.
fn write(path: &Path, bytes: &[u8]) -> Result<(), TlogError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let draft = PathBuf::from(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&draft)
        .map_err(|error| TlogError::io("creating", &draft, &error))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(|error| TlogError::io("writing", &draft, &error))?;
    fs::rename(&draft, path).map_err(|error| TlogError::io("naming", path, &error))?;
    if let Some(parent) = path.parent().filter(|_| cfg!(unix)) {
        let synced = File::open(parent).and_then(|directory| directory.sync_all());
        synced.map_err(|error| TlogError::io("syncing", parent, &error))?;
    }
    Ok(())
}
