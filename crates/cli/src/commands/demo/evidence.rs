//! What the relay holds: its files are read as a thief would read them, and damaged as a bad disk would.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, params};

use crate::failure::{Failure, Result};

/// Shortest word that is searched for: shorter ones occur by chance.
const SHORTEST_WORD: usize = 5;

/// What a search through files found.
#[derive(Debug, Default)]
pub(crate) struct Search {
    /// Files that were read.
    pub(crate) files: usize,
    /// Bytes that were read.
    pub(crate) bytes: u64,
    /// Words that occur, whatever their case.
    pub(crate) found: Vec<String>,
}

/// Looks for words in every file of a directory, as UTF-8 and in any case.
pub(crate) fn search(directory: &Path, words: &[String]) -> Result<Search> {
    let failed = |source| Failure::File { what: "can not read", path: directory.to_owned(), source };
    let mut search = Search::default();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if !path.is_file() {
            continue;
        }
        let mut content = std::fs::read(&path).map_err(failed)?;
        search.files += 1;
        search.bytes += content.len() as u64;
        content.make_ascii_lowercase();
        for word in words {
            let wanted = word.to_ascii_lowercase();
            if !search.found.contains(word)
                && content.windows(wanted.len()).any(|place| place == wanted.as_bytes())
            {
                search.found.push(word.clone());
            }
        }
    }
    Ok(search)
}

/// The words of texts that are long enough to search for, each once.
pub(crate) fn words<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut words: Vec<String> = texts
        .flat_map(|text| text.split(|c: char| !c.is_alphabetic()))
        .filter(|word| word.len() >= SHORTEST_WORD)
        .map(str::to_ascii_lowercase)
        .collect();
    words.sort();
    words.dedup();
    words
}

/// The stored blobs, oldest first. Reads beside a running relay.
pub(crate) fn blobs(database: &Path) -> Result<Vec<Vec<u8>>> {
    let read = || -> rusqlite::Result<Vec<Vec<u8>>> {
        let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut statement = connection.prepare("SELECT blob FROM messages ORDER BY device, seq")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        rows.collect()
    };
    read().map_err(|error| sql("read", database, &error))
}

/// Flips one bit near the end of the stored blob at `place` (0 is the oldest), while no relay runs.
pub(crate) fn corrupt(database: &Path, place: usize) -> Result {
    let write = || -> rusqlite::Result<usize> {
        let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let offset = i64::try_from(place).unwrap_or(i64::MAX);
        let (id, mut blob): (i64, Vec<u8>) = connection.query_row(
            "SELECT rowid, blob FROM messages ORDER BY device, seq LIMIT 1 OFFSET ?1",
            params![offset],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        // Well inside the ciphertext, so that nothing but its authentication can notice.
        let middle = blob.len() * 3 / 4;
        if let Some(byte) = blob.get_mut(middle) {
            *byte ^= 0x01;
        }
        connection.execute("UPDATE messages SET blob = ?1 WHERE rowid = ?2", params![blob, id])
    };
    match write().map_err(|error| sql("damage", database, &error))? {
        1 => Ok(()),
        _ => Err(Failure::Coded {
            code: "DEMO_FAILED",
            message: "the relay's database holds no message to damage".to_owned(),
            retryable: false,
        }),
    }
}

fn sql(what: &str, database: &Path, error: &rusqlite::Error) -> Failure {
    Failure::Coded {
        code: "DEMO_FAILED",
        message: format!("can not {what} the relay's database {}: {error}", database.display()),
        retryable: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_finds_words_in_any_case_and_only_those_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), b"\x00\x01The TREASURE is\xff").unwrap();
        std::fs::write(dir.path().join("b"), b"nothing").unwrap();
        let found = search(dir.path(), &["treasure".to_owned(), "garden".to_owned()]).unwrap();
        assert_eq!((found.files, found.bytes, found.found), (2, 25, vec!["treasure".to_owned()]));
    }

    #[test]
    fn words_are_long_enough_and_come_once() {
        let words = words(["The treasure, the Treasure! under an oak"].into_iter());
        assert_eq!(words, ["treasure", "under"]);
    }
}
