//! Tiles (C2SP tlog-tiles): 256 hashes of one height in a file, and 256 entries in a bundle.

use core::fmt;

use crate::tree::{HASH_BYTES, Hash};
use crate::{TlogError, limits};

/// Hashes in a full tile, and entries in a full bundle.
pub const WIDTH: usize = 256;
/// Heights of the tree that a tile spans.
pub const HEIGHT: u8 = 8;
/// The highest level of tiles that a log of [`limits::MAX_SIZE`] has.
pub const MAX_LEVEL: u8 = 7;

/// What a tile holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Row {
    /// Hashes of the subtrees of height 8 times this: 0 for leaves.
    Level(u8),
    /// Entries.
    Entries,
}

/// The place of a tile: what it holds, how many full ones are before it, and how many hashes or entries are in it.
///
/// ```
/// use stvor_tlog::tile::{Row, Tile};
/// let tile = Tile { row: Row::Level(0), index: 1_234_067, width: 5 };
/// assert_eq!(tile.to_string(), "tile/0/x001/x234/067.p/5");
/// assert_eq!(Tile::parse("tile/0/x001/x234/067.p/5")?, tile);
/// # Ok::<(), stvor_tlog::TlogError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tile {
    /// What it holds.
    pub row: Row,
    /// How many full tiles of the row are before it.
    pub index: u64,
    /// How many hashes or entries are in it: 1 to [`WIDTH`].
    pub width: u16,
}

impl Tile {
    /// Reads the path of a tile.
    ///
    /// # Errors
    /// [`TlogError::Malformed`] for everything that this type does not print.
    pub fn parse(path: &str) -> Result<Self, TlogError> {
        let malformed = || TlogError::malformed("tile path", "it is not tile/<level>/<index>[.p/<width>]");
        let rest = path.strip_prefix("tile/").ok_or_else(malformed)?;
        let (row, rest) = rest.split_once('/').ok_or_else(malformed)?;
        let row = match row {
            "entries" => Row::Entries,
            level => {
                Row::Level(level.parse().ok().filter(|level| *level <= MAX_LEVEL).ok_or_else(malformed)?)
            }
        };
        let (index, width) = match rest.split_once(".p/") {
            Some((index, width)) => (index, width.parse().map_err(|_| malformed())?),
            None => (rest, 256),
        };
        let digits: String = index.chars().filter(char::is_ascii_digit).collect();
        let tile = Self { row, index: digits.parse().map_err(|_| malformed())?, width };
        let known = (1..=256).contains(&width) && tile.index <= limits::MAX_SIZE && tile.to_string() == path;
        if known { Ok(tile) } else { Err(malformed()) }
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row {
            Row::Level(level) => write!(f, "tile/{level}/")?,
            Row::Entries => f.write_str("tile/entries/")?,
        }
        let mut above = self.index / 1000;
        let mut parts = Vec::new();
        while above > 0 {
            parts.push(above % 1000);
            above /= 1000;
        }
        parts.iter().rev().try_for_each(|part| write!(f, "x{part:03}/"))?;
        write!(f, "{:03}", self.index % 1000)?;
        if usize::from(self.width) < WIDTH { write!(f, ".p/{}", self.width) } else { Ok(()) }
    }
}

/// The hashes of a tile, from its file.
///
/// # Errors
/// [`TlogError::Malformed`] for another length than that of `width` hashes.
pub fn decode_hashes(bytes: &[u8], width: usize) -> Result<Vec<Hash>, TlogError> {
    if bytes.len() != width * HASH_BYTES {
        return Err(TlogError::malformed("tile", "its length is not that of its hashes"));
    }
    Ok(bytes.as_chunks().0.iter().map(|hash| Hash(*hash)).collect())
}

/// The entries of a bundle, from its file: each with its length in two bytes, big-endian, before it.
///
/// # Errors
/// [`TlogError::Malformed`] when there are not exactly `width` entries.
pub fn decode_entries(bytes: &[u8], width: usize) -> Result<Vec<&[u8]>, TlogError> {
    let malformed = || TlogError::malformed("entry bundle", "it does not hold the entries that it should");
    let mut rest = bytes;
    let mut entries = Vec::with_capacity(width.min(WIDTH));
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length));
        let (entry, after) = after.split_at_checked(length).ok_or_else(malformed)?;
        if entries.len() == width {
            return Err(malformed());
        }
        entries.push(entry);
        rest = after;
    }
    if rest.is_empty() && entries.len() == width { Ok(entries) } else { Err(malformed()) }
}

/// Puts an entry at the end of a bundle.
///
/// # Errors
/// [`TlogError::EntryTooLong`] past [`limits::MAX_ENTRY`].
pub fn encode_entry(bundle: &mut Vec<u8>, entry: &[u8]) -> Result<(), TlogError> {
    let length = u16::try_from(entry.len()).map_err(|_| TlogError::EntryTooLong(entry.len()))?;
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    Ok(())
}

/// The tiles of one row of a log of `size` entries: how many are full, and how wide the last one is (0 if there is none).
pub(crate) fn extent(row: Row, size: u64) -> (u64, u16) {
    let count = match row {
        Row::Level(level) => size.checked_shr(u32::from(level) * u32::from(HEIGHT)).unwrap_or(0),
        Row::Entries => size,
    };
    (count / WIDTH as u64, u16::try_from(count % WIDTH as u64).unwrap_or(0))
}
