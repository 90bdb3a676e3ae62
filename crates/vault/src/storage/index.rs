//! The full-text index. It is in memory only, made from what can be read when it is first needed, and dropped when the keys
//! are: nothing of it is ever on a disk, and nothing of a forgotten memory is left in it.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, OptionalExtension, params};

use super::failed;
use crate::level::Level;
use crate::memory::MemoryId;
use crate::{VaultError, limits};

/// Words of memories, one table for each namespace and level, so that what a caller may not recall takes no part in the
/// ranking of what they may.
#[derive(Debug)]
pub(crate) struct Index {
    connection: Connection,
    tables: HashMap<(String, Level), String>,
    places: HashMap<MemoryId, (String, i64)>,
    /// Namespaces whose memories are in it.
    held: HashSet<String>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hit {
    pub(crate) id: MemoryId,
    pub(crate) rank: f64,
}

impl Drop for Index {
    fn drop(&mut self) {
        self.wipe();
    }
}

impl Index {
    pub(crate) fn new() -> Result<Self, VaultError> {
        let connection = Connection::open_in_memory().map_err(|error| failed(&error))?;
        connection.set_prepared_statement_cache_capacity(256);
        let most = limits::MAX_INDEX / 4_096;
        let done = connection.execute_batch(&format!(
            "PRAGMA page_size = 4096; PRAGMA max_page_count = {most}; PRAGMA secure_delete = ON; PRAGMA temp_store = MEMORY;"
        ));
        done.map_err(|error| failed(&error))?;
        Ok(Self { connection, tables: HashMap::new(), places: HashMap::new(), held: HashSet::new() })
    }

    /// Overwrites every page that held words.
    fn wipe(&self) {
        let _ = self.connection.execute_batch("ROLLBACK");
        for table in self.tables.values() {
            // What is dropped is overwritten (`secure_delete`).
            let _ = self.connection.execute_batch(&format!("DROP TABLE IF EXISTS {table}"));
        }
    }

    /// Whether the memories of a namespace are in it.
    pub(crate) fn holds(&self, namespace: &str) -> bool {
        self.held.contains(namespace)
    }

    /// From here on they are.
    pub(crate) fn hold(&mut self, namespace: &str) {
        self.held.insert(namespace.to_owned());
    }

    /// Begins a group of changes.
    pub(crate) fn begin(&self) -> Result<(), VaultError> {
        self.connection.execute_batch("BEGIN").map_err(|error| failed(&error))
    }

    /// Ends it.
    pub(crate) fn end(&self) -> Result<(), VaultError> {
        self.connection.execute_batch("COMMIT").map_err(|error| failed(&error))
    }

    /// Takes in the words of a memory.
    pub(crate) fn add(
        &mut self,
        id: MemoryId,
        (namespace, level): (&str, Level),
        text: &str,
    ) -> Result<(), VaultError> {
        let place = (namespace.to_owned(), level);
        let table = match self.tables.get(&place) {
            Some(table) => table.clone(),
            None => {
                let table = format!("words_{}", self.tables.len());
                let sql = format!(
                    "CREATE VIRTUAL TABLE {table} USING fts5(text, id UNINDEXED, tokenize = 'unicode61 remove_diacritics 2')"
                );
                self.connection.execute_batch(&sql).map_err(|error| failed(&error))?;
                let secure = format!("INSERT INTO {table}({table}, rank) VALUES ('secure-delete', 1)");
                self.connection.execute_batch(&secure).map_err(|error| failed(&error))?;
                self.tables.insert(place, table.clone());
                table
            }
        };
        let insert = || {
            let sql = format!("INSERT INTO {table} (text, id) VALUES (?1, ?2)");
            self.connection.prepare_cached(&sql)?.execute(params![text, id.as_bytes()])
        };
        insert().map_err(|error| failed(&error))?;
        self.places.insert(id, (table, self.connection.last_insert_rowid()));
        Ok(())
    }

    /// Drops the words of a memory.
    pub(crate) fn remove(&mut self, id: &MemoryId) -> Result<(), VaultError> {
        let Some((table, row)) = self.places.remove(id) else { return Ok(()) };
        let sql = format!("DELETE FROM {table} WHERE rowid = ?1");
        let removed = self.connection.execute(&sql, [row]);
        removed.map(|_| ()).map_err(|error| failed(&error))
    }

    /// Finds memories of a namespace and the given levels that hold all words, best first. Where more than
    /// [`limits::MAX_RANKED`] of a level hold them, the newest of these are ranked: ranking looks at every match.
    pub(crate) fn find(
        &self,
        (namespace, levels): (&str, &[Level]),
        words: &[String],
        count: usize,
    ) -> Result<Vec<Hit>, VaultError> {
        let query = words.join(" ");
        let mut hits = Vec::new();
        for level in levels {
            let Some(table) = self.tables.get(&(namespace.to_owned(), *level)) else { continue };
            let newest = format!(
                "SELECT rowid FROM {table} WHERE {table} MATCH ?1 ORDER BY rowid DESC LIMIT 1 OFFSET ?2"
            );
            let sql = format!(
                "SELECT id, rank FROM {table} WHERE {table} MATCH ?1 AND rowid >= ?3 ORDER BY rank LIMIT ?2"
            );
            let read = || {
                let most = i64::try_from(limits::MAX_RANKED).unwrap_or(i64::MAX) - 1;
                let mut statement = self.connection.prepare_cached(&newest)?;
                let from: Option<i64> =
                    statement.query_row(params![query, most], |row| row.get(0)).optional()?;
                let mut statement = self.connection.prepare_cached(&sql)?;
                let limit = i64::try_from(count).unwrap_or(i64::MAX);
                let rows = statement.query_map(params![query, limit, from.unwrap_or(0)], |row| {
                    Ok(Hit { id: MemoryId::from_bytes(row.get(0)?), rank: row.get(1)? })
                })?;
                rows.collect::<rusqlite::Result<Vec<_>>>()
            };
            hits.extend(read().map_err(|error| failed(&error))?);
        }
        hits.sort_by(|a, b| a.rank.total_cmp(&b.rank));
        hits.truncate(count);
        Ok(hits)
    }
}

/// The words of a search, each quoted, so that nothing in them is syntax. A word that ends with a star finds words that
/// begin with it.
///
/// # Errors
/// [`VaultError::Invalid`] without words, or with more than [`limits::MAX_WORDS`].
pub(crate) fn words(query: &str) -> Result<Vec<String>, VaultError> {
    let quoted = query.split_whitespace().filter_map(|word| {
        let (word, star) = match word.strip_suffix('*') {
            Some(word) => (word, "*"),
            None => (word, ""),
        };
        let clean: String = word.chars().filter(|c| *c != '"' && *c != '\0').collect();
        clean.contains(char::is_alphanumeric).then(|| format!("\"{clean}\"{star}"))
    });
    let quoted: Vec<String> = quoted.collect();
    if quoted.is_empty() || quoted.len() > limits::MAX_WORDS || query.len() > limits::MAX_TEXT {
        return Err(VaultError::invalid("a search has 1 to 16 words"));
    }
    Ok(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> MemoryId {
        MemoryId::from_bytes([number; 16])
    }

    #[test]
    fn words_are_found_by_namespace_and_level_and_not_after_removal() {
        let mut index = Index::new().unwrap();
        index.add(id(1), ("a", Level::Working), "the quick brown fox").unwrap();
        index.add(id(2), ("a", Level::Private), "the quick red fox").unwrap();
        index.add(id(3), ("b", Level::Working), "the quick fox").unwrap();
        let find = |index: &Index, levels: &[Level], query: &str| {
            let hits = index.find(("a", levels), &words(query).unwrap(), 10).unwrap();
            hits.into_iter().map(|hit| hit.id).collect::<Vec<_>>()
        };
        assert_eq!(find(&index, &[Level::Working], "quick fox"), [id(1)]);
        assert_eq!(find(&index, &[Level::Working, Level::Private], "QUICK*").len(), 2);
        assert_eq!(find(&index, &[Level::Working, Level::Private], "quick green"), []);
        index.remove(&id(1)).unwrap();
        assert_eq!(find(&index, &[Level::Working], "fox"), []);
    }

    #[test]
    fn of_very_many_matches_the_newest_are_ranked() {
        let mut index = Index::new().unwrap();
        let name = |number: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
            MemoryId::from_bytes(bytes)
        };
        index.begin().unwrap();
        for number in 0..=limits::MAX_RANKED {
            // The oldest would be the best.
            let text = if number == 0 { "tea" } else { "tea and many other words" };
            index.add(name(number), ("a", Level::Working), text).unwrap();
        }
        index.end().unwrap();
        let find = |index: &Index| {
            let hits = index.find(("a", &[Level::Working]), &words("tea").unwrap(), limits::MAX_RANKED + 9);
            hits.unwrap().into_iter().map(|hit| hit.id).collect::<Vec<_>>()
        };
        let found = find(&index);
        assert!(found.len() == limits::MAX_RANKED && !found.contains(&name(0)), "one too many");
        index.remove(&name(1)).unwrap();
        assert_eq!(find(&index)[0], name(0), "just as many as are ranked");
    }

    #[test]
    fn nothing_in_a_search_is_syntax() {
        let mut index = Index::new().unwrap();
        index.add(id(1), ("a", Level::Working), "bank-pin and a'b NEAR text").unwrap();
        for query in
            ["bank-pin", "a'b", "NEAR", "text OR", "te\"xt", "(text", "text:pin", "^text", "-pin", "*"]
        {
            if let Ok(words) = words(query) {
                index.find(("a", &[Level::Working]), &words, 10).unwrap();
            }
        }
        assert!(words("").is_err() && words("\"' * -").is_err());
        assert!(words(&"word ".repeat(limits::MAX_WORDS)).is_ok());
        assert!(words(&"word ".repeat(limits::MAX_WORDS + 1)).is_err());
    }
}
