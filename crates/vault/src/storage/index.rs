//! The full-text index. It is in memory only, made from what can be read when it is first needed, and dropped when the keys
//! are: nothing of it is ever on a disk, and nothing of a forgotten memory is left in it.

use std::collections::{BTreeMap, HashMap};

use rusqlite::{Connection, ErrorCode, params};

use super::failed;
use super::steps::Steps;
use crate::level::Level;
use crate::memory::MemoryId;
use crate::{VaultError, limits};

const PAGE: usize = 4_096;
/// Bytes that a namespace takes beside its pages: a connection, and what SQLite knows of its tables.
const SPACE: usize = 128 << 10;
/// Bytes that it takes at most to know the row of a memory, and the memory of a row.
const PLACE: usize = 160;
/// Pages of lists that are brought together in one change: it takes as much room beside them until it is done.
const GATHER: i64 = 1_024;
/// Steps of SQLite that it takes to come to the next match and to rank it.
const RANK: u64 = 13;

/// How much one search finds and takes at most, for each level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Memories that it finds.
    pub(crate) count: usize,
    /// Steps until the first match is known, where a word has a star.
    pub(crate) beginnings: u64,
    /// Steps until it is known where none has, and while matches are ranked; beside those that each match takes, however long the
    /// lists are that it stands in.
    pub(crate) steps: u64,
}

/// Words of memories, apart for each namespace: what one of them takes slows down no other, and each can go by itself.
#[derive(Debug, Default)]
pub(crate) struct Index {
    spaces: HashMap<String, Space>,
    /// Counts searches, which tells what was searched longest ago.
    searches: u64,
}

/// Words of the memories of a namespace, one table for each level, so that what a caller may not recall takes no part in the ranking
/// of what they may.
#[derive(Debug)]
pub(crate) struct Space {
    connection: Connection,
    steps: Steps,
    /// The memory of each row.
    levels: BTreeMap<Level, HashMap<i64, MemoryId>>,
    places: HashMap<MemoryId, (Level, i64)>,
    /// The last search of it.
    searched: u64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hit {
    pub(crate) id: MemoryId,
    pub(crate) rank: f64,
}

impl Index {
    /// How many namespaces are in it.
    #[cfg(test)]
    pub(crate) fn namespaces(&self) -> usize {
        self.spaces.len()
    }

    /// Whether the memories of a namespace are in it.
    pub(crate) fn holds(&self, namespace: &str) -> bool {
        self.spaces.contains_key(namespace)
    }

    /// The same, for a search: of all namespaces this one now has the longest to stay.
    pub(crate) fn holds_for_search(&mut self, namespace: &str) -> bool {
        self.searches += 1;
        let Some(space) = self.spaces.get_mut(namespace) else { return false };
        space.searched = self.searches;
        true
    }

    /// From here on the memories of this namespace are in it.
    pub(crate) fn hold(&mut self, namespace: &str, mut space: Space) {
        space.searched = self.searches;
        self.spaces.insert(namespace.to_owned(), space);
    }

    /// Drops what was searched longest ago until all that is left has room beside `beside` bytes in `most`.
    pub(crate) fn make_room(&mut self, beside: usize, most: usize) -> Result<(), VaultError> {
        let mut sizes = Vec::new();
        for (namespace, space) in &self.spaces {
            sizes.push((space.searched, namespace.clone(), space.size()?));
        }
        let mut all = sizes.iter().fold(beside, |all, (_, _, size)| all.saturating_add(*size));
        sizes.sort_unstable();
        for (_, namespace, size) in sizes {
            if all <= most {
                break;
            }
            self.spaces.remove(&namespace);
            all = all.saturating_sub(size);
        }
        Ok(())
    }

    /// Takes in the words of a memory of a namespace that is in it. Where they do not fit, nothing of the namespace is in it any more.
    pub(crate) fn add(&mut self, id: MemoryId, (namespace, level): (&str, Level), text: &str) {
        let Some(space) = self.spaces.get_mut(namespace) else { return };
        if space.add(id, level, text).is_err() {
            self.spaces.remove(namespace);
        }
    }

    /// Drops the words of a memory.
    pub(crate) fn remove(&mut self, id: &MemoryId) {
        // What may still hold them is dropped as a whole.
        self.spaces.retain(|_, space| space.remove(id).is_ok());
    }

    /// As [`Space::find`], in the one of a namespace.
    pub(crate) fn find(
        &self,
        (namespace, levels): (&str, &[Level]),
        words: &[String],
        bounds: Bounds,
        taken: &mut Vec<u64>,
    ) -> Result<Option<Vec<Hit>>, VaultError> {
        let Some(space) = self.spaces.get(namespace) else { return Ok(Some(Vec::new())) };
        space.find(levels, words, bounds, taken)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // Overwrites every page that held words, those of a group that was not ended, too, as far as it can be.
        for end in ["COMMIT", "ROLLBACK"] {
            let _ = self.connection.execute_batch(end);
        }
        for level in self.levels.keys() {
            // What is dropped is overwritten (`secure_delete`).
            let _ = self.connection.execute_batch(&format!("DROP TABLE IF EXISTS {}", table(*level)));
        }
    }
}

fn table(level: Level) -> String {
    format!("words_{}", level.number())
}

impl Space {
    /// One that takes `most` bytes.
    pub(crate) fn new(most: usize) -> Result<Self, VaultError> {
        let mut connection = Connection::open_in_memory().map_err(|error| failed(&error))?;
        let done = connection.execute_batch(&format!(
            "PRAGMA page_size = {PAGE}; PRAGMA max_page_count = {}; PRAGMA secure_delete = ON; PRAGMA temp_store = MEMORY;",
            (most / PAGE).max(1)
        ));
        done.map_err(|error| failed(&error))?;
        let steps = Steps::of(&mut connection).map_err(|error| failed(&error))?;
        Ok(Self { connection, steps, levels: BTreeMap::new(), places: HashMap::new(), searched: 0 })
    }

    /// Bytes that it takes.
    pub(crate) fn size(&self) -> Result<usize, VaultError> {
        let pages = self.connection.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0));
        let pages = pages.map_err(|error| failed(&error))?;
        let pages = usize::try_from(pages).unwrap_or(usize::MAX).saturating_mul(PAGE);
        Ok(SPACE.saturating_add(pages).saturating_add(self.places.len().saturating_mul(PLACE)))
    }

    /// Begins a group of changes.
    pub(crate) fn begin(&self) -> Result<(), VaultError> {
        self.connection.execute_batch("BEGIN").map_err(|error| failed(&error))
    }

    /// Ends it.
    pub(crate) fn end(&self) -> Result<(), VaultError> {
        self.connection.execute_batch("COMMIT").map_err(|error| failed(&error))
    }

    /// Brings the lists of words together that came in apart, group by group: a search goes through each part.
    pub(crate) fn gather(&self) -> Result<(), VaultError> {
        for level in self.levels.keys() {
            let table = table(*level);
            let merge = format!("INSERT INTO {table}({table}, rank) VALUES ('merge', ?1)");
            // Below zero it begins with all of them, from there it goes on; a change of less than two rows is none.
            let mut pages = -GATHER;
            loop {
                let before = self.connection.total_changes();
                self.connection.execute(&merge, [pages]).map_err(|error| failed(&error))?;
                if self.connection.total_changes().saturating_sub(before) < 2 {
                    break;
                }
                pages = GATHER;
            }
        }
        Ok(())
    }

    /// Takes in the words of a memory.
    pub(crate) fn add(&mut self, id: MemoryId, level: Level, text: &str) -> Result<(), VaultError> {
        // It may have been read with a change that comes once more.
        self.remove(&id)?;
        let table = table(level);
        if !self.levels.contains_key(&level) {
            let sql = format!(
                "CREATE VIRTUAL TABLE {table} USING fts5(text, tokenize = 'unicode61 remove_diacritics 2')"
            );
            self.connection.execute_batch(&sql).map_err(|error| failed(&error))?;
            self.levels.insert(level, HashMap::new());
            let secure = format!("INSERT INTO {table}({table}, rank) VALUES ('secure-delete', 1)");
            self.connection.execute_batch(&secure).map_err(|error| failed(&error))?;
        }
        let insert = || {
            let sql = format!("INSERT INTO {table} (text) VALUES (?1)");
            self.connection.prepare_cached(&sql)?.execute(params![text])
        };
        insert().map_err(|error| failed(&error))?;
        let row = self.connection.last_insert_rowid();
        self.places.insert(id, (level, row));
        self.levels.entry(level).or_default().insert(row, id);
        Ok(())
    }

    /// Drops the words of a memory.
    pub(crate) fn remove(&mut self, id: &MemoryId) -> Result<(), VaultError> {
        let Some((level, row)) = self.places.remove(id) else { return Ok(()) };
        let sql = format!("DELETE FROM {} WHERE rowid = ?1", table(level));
        self.connection.execute(&sql, [row]).map_err(|error| failed(&error))?;
        if let Some(rows) = self.levels.get_mut(&level) {
            rows.remove(&row);
        }
        Ok(())
    }

    /// Finds memories of the given levels that hold all words, best first. Where more than [`limits::MAX_RANKED`] of a level hold them,
    /// the newest of these are ranked: ranking looks at every match.
    ///
    /// Of a word with a star all that begin so are gone through before the first match is known, and once more to rank. Of a word that
    /// stands in very many places the list is gone through to rank, and that of one that is made of several (`a-b-a`) once for each of
    /// these. Nothing is returned where that takes more than the bounds say; notes the steps of each part.
    fn find(
        &self,
        levels: &[Level],
        words: &[String],
        bounds: Bounds,
        taken: &mut Vec<u64>,
    ) -> Result<Option<Vec<Hit>>, VaultError> {
        let mut hits = Vec::new();
        for level in levels {
            let Some(rows) = self.levels.get(level) else { continue };
            match self.ranked(*level, words, bounds, taken) {
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
                    return Ok(None);
                }
                ranked => {
                    let best = ranked.map_err(|error| failed(&error))?.into_iter().take(bounds.count);
                    hits.extend(best.filter_map(|(rank, row)| Some(Hit { id: *rows.get(&row)?, rank })));
                }
            }
        }
        hits.sort_by(|a, b| a.rank.total_cmp(&b.rank));
        hits.truncate(bounds.count);
        Ok(Some(hits))
    }

    /// The rank and row of the newest [`limits::MAX_RANKED`] memories of a level that hold all words, best first.
    fn ranked(
        &self,
        level: Level,
        words: &[String],
        bounds: Bounds,
        taken: &mut Vec<u64>,
    ) -> rusqlite::Result<Vec<(f64, i64)>> {
        let (table, all) = (table(level), words.join(" "));
        let starred = words.iter().any(|word| word.ends_with('*'));
        let first = if starred { bounds.beginnings } else { bounds.steps };
        // Without a rank, for which the lists of all words are gone through to their ends.
        let any = || {
            let sql = format!("SELECT rowid FROM {table} WHERE {table} MATCH ?1 ORDER BY rowid DESC");
            self.connection.prepare_cached(&sql)?.exists(params![all])
        };
        if !self.steps.within(first, taken, any)? {
            return Ok(Vec::new());
        }
        // Sorted here: SQLite would carry along all places of the words for that, and rank what it returns once more.
        let read = || {
            let sql = format!("SELECT rank, rowid FROM {table} WHERE {table} MATCH ?1 ORDER BY rowid DESC");
            let mut statement = self.connection.prepare_cached(&sql)?;
            let (mut rows, mut found) = (statement.query(params![all])?, Vec::new());
            while found.len() < limits::MAX_RANKED {
                let Some(row) = rows.next()? else { break };
                found.push((row.get(0)?, row.get(1)?));
                self.steps.forgive(RANK);
            }
            Ok::<_, rusqlite::Error>(found)
        };
        let mut found: Vec<(f64, i64)> = self.steps.within(bounds.steps, taken, read)?;
        // Of equal ones the older first.
        found.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        Ok(found)
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

    /// As for the owner.
    const FREE: Bounds = Bounds { count: 1_000, beginnings: u64::MAX, steps: u64::MAX };

    fn id(number: u8) -> MemoryId {
        MemoryId::from_bytes([number; 16])
    }

    /// One of very many.
    fn name(number: usize) -> MemoryId {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
        MemoryId::from_bytes(bytes)
    }

    /// How many memories of level 1 a search finds, if any comes of it, and what steps its parts took.
    fn look(space: &Space, query: &str, bounds: Bounds) -> (Option<usize>, Vec<u64>) {
        let (mut taken, words) = (Vec::new(), words(query).unwrap());
        let hits = space.find(&[Level::Working], &words, bounds, &mut taken).unwrap();
        (hits.map(|hits| hits.len()), taken)
    }

    #[test]
    fn words_are_found_by_namespace_and_level_and_not_after_removal() {
        let mut index = Index::default();
        for namespace in ["a", "b"] {
            index.hold(namespace, Space::new(limits::MAX_INDEX).unwrap());
        }
        index.add(id(1), ("a", Level::Working), "the quick brown fox");
        index.add(id(2), ("a", Level::Private), "the quick red fox");
        index.add(id(3), ("b", Level::Working), "the quick fox");
        let find = |index: &Index, levels: &[Level], query: &str| {
            let hits = index.find(("a", levels), &words(query).unwrap(), FREE, &mut Vec::new()).unwrap();
            hits.unwrap().into_iter().map(|hit| hit.id).collect::<Vec<_>>()
        };
        assert_eq!(find(&index, &[Level::Working], "quick fox"), [id(1)]);
        assert_eq!(find(&index, &[Level::Working, Level::Private], "QUICK*").len(), 2);
        assert_eq!(find(&index, &[Level::Working, Level::Private], "quick green"), []);
        // The newest words of a memory are all that there are.
        index.add(id(1), ("a", Level::Working), "a slow fox");
        assert_eq!(find(&index, &[Level::Working], "quick"), []);
        index.remove(&id(1));
        assert_eq!(find(&index, &[Level::Working], "fox"), []);
    }

    #[test]
    fn what_was_searched_longest_ago_makes_room_and_what_does_not_fit_leaves_nothing() {
        let mut index = Index::default();
        for namespace in ["a", "b", "c"] {
            index.holds_for_search(namespace);
            let mut space = Space::new(1 << 20).unwrap();
            space.add(id(namespace.as_bytes()[0]), Level::Working, "tea").unwrap();
            index.hold(namespace, space);
        }
        let one = index.spaces["a"].size().unwrap();
        assert!(index.holds_for_search("a") && !index.holds_for_search("d"));
        index.make_room(0, 3 * one).unwrap();
        assert_eq!(index.spaces.len(), 3, "all fit");
        index.make_room(0, 3 * one - 1).unwrap();
        assert!(index.holds("a") && !index.holds("b") && index.holds("c"));
        index.make_room(one, 2 * one).unwrap();
        assert!(index.holds("a") && !index.holds("c"));
        // A memory after which it is full.
        let text: String = (0..1 << 18).map(|number| format!("{number} ")).collect();
        index.add(id(9), ("a", Level::Working), &text);
        assert!(!index.holds("a"), "a search does not find half of it");
    }

    #[test]
    fn of_very_many_matches_the_newest_are_ranked() {
        let mut space = Space::new(limits::MAX_INDEX).unwrap();
        space.begin().unwrap();
        for number in 0..=limits::MAX_RANKED {
            // The oldest would be the best.
            let text = if number == 0 { "tea" } else { "tea and many other words" };
            space.add(name(number), Level::Working, text).unwrap();
        }
        space.end().unwrap();
        let find = |space: &Space| {
            let bounds = Bounds { count: limits::MAX_RANKED + 9, ..FREE };
            let hits = space.find(&[Level::Working], &words("tea").unwrap(), bounds, &mut Vec::new());
            hits.unwrap().unwrap().into_iter().map(|hit| hit.id).collect::<Vec<_>>()
        };
        let found = find(&space);
        assert!(found.len() == limits::MAX_RANKED && !found.contains(&name(0)), "one too many");
        space.remove(&name(1)).unwrap();
        assert_eq!(find(&space)[0], name(0), "just as many as are ranked");
    }

    #[test]
    fn lists_that_are_brought_together_find_and_forget_as_before() {
        let mut space = Space::new(limits::MAX_INDEX).unwrap();
        for group in 0..40 {
            space.begin().unwrap();
            for number in 0..50 {
                let text = format!("tea of group{group} and number{number} {}", "word ".repeat(30));
                space.add(name(group * 50 + number), Level::Working, &text).unwrap();
            }
            space.end().unwrap();
        }
        space.remove(&name(7)).unwrap();
        let parts = |space: &Space| {
            let sql = "SELECT count(DISTINCT segid) FROM words_1_idx";
            space.connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap()
        };
        let ask = |space: &Space, query: &str| {
            let found = space.find(&[Level::Working], &words(query).unwrap(), FREE, &mut Vec::new());
            found.unwrap().unwrap()
        };
        let all = ["tea", "group3", "number7", "gro*", "group0 number7"];
        let before = all.map(|query| ask(&space, query));
        assert!(parts(&space) > 1);
        space.gather().unwrap();
        assert_eq!(parts(&space), 1);
        assert_eq!(all.map(|query| ask(&space, query)), before);
        assert!(before[4].is_empty() && before[1].len() == 50);
        space.gather().unwrap();
        space.remove(&name(8)).unwrap();
        space.add(name(9_999), Level::Working, "group0 number8").unwrap();
        assert_eq!(ask(&space, "group0 number8").iter().map(|hit| hit.id).collect::<Vec<_>>(), [name(9_999)]);
    }

    #[test]
    fn words_with_a_star_are_looked_for_in_so_many_steps_and_no_more() {
        let mut space = Space::new(limits::MAX_INDEX).unwrap();
        space.begin().unwrap();
        for number in 0..100_u8 {
            let words = (0..1_000_u32).map(|word| format!("a{:05} ", u32::from(number) * 1_000 + word));
            space.add(id(number), Level::Working, &words.collect::<String>()).unwrap();
        }
        space.end().unwrap();
        let find = |space: &Space, query: &str, most: u64| {
            let (found, taken) = look(space, query, Bounds { beginnings: most, ..FREE });
            (found, taken[0])
        };
        let (all, steps) = find(&space, "a*", u64::MAX);
        assert!(all == Some(100) && steps > 384, "{all:?} {steps}");
        // Each of them, and however many a search has.
        assert_eq!(find(&space, "a*", steps + 128).0, Some(100));
        let (none, taken) = find(&space, "a*", 256);
        assert!(none.is_none() && taken > 256 && taken < steps, "{none:?} {taken}");
        assert_eq!(find(&space, "a* a0* a*", steps).0, None);
        // What begins so is few, and whole words are not held to that bound.
        assert_eq!(find(&space, "a123*", 256).0, Some(1));
        assert_eq!(find(&space, "a12345", 0).0, Some(1));
        // It goes on after that.
        space.add(id(200), Level::Working, &"b ".repeat(10_000)).unwrap();
        assert_eq!((find(&space, "b*", 256).0, find(&space, "a*", u64::MAX).0), (Some(1), Some(100)));
    }

    #[test]
    fn whole_words_are_looked_for_in_so_many_steps_and_no_more() {
        let filled = |texts: &[(usize, &str)]| {
            let mut space = Space::new(limits::MAX_INDEX).unwrap();
            space.begin().unwrap();
            let all = texts.iter().flat_map(|(count, text)| core::iter::repeat_n(*text, *count));
            for (number, text) in all.enumerate() {
                space.add(name(number), Level::Working, text).unwrap();
            }
            space.end().unwrap();
            space
        };
        let within = |steps: u64| Bounds { count: limits::MAX_PAGE + 1, steps, ..FREE };
        // Matches take what they take, however many they are.
        let space = filled(&[(2 * limits::MAX_RANKED, "tea and many other words")]);
        for query in ["tea", "tea words", "te*", "many-other"] {
            let (found, taken) = look(&space, query, within(512));
            assert!(found == Some(limits::MAX_PAGE + 1), "{query} {taken:?}");
            assert!(taken.iter().all(|steps| *steps < 512), "{query} {taken:?}");
        }
        // One list is gone through often.
        let space = filled(&[(20, "tea ".repeat(2_000).as_str())]);
        let often = ["tea"; 100].join("-");
        let (all, taken) = look(&space, &often, within(u64::MAX));
        let most = taken.iter().copied().max().unwrap();
        assert!(all == Some(20) && most > 2_048, "{all:?} {taken:?}");
        // Each of its statements may be looked at a little earlier than the time before.
        assert_eq!(look(&space, &often, within(most + 256)).0, Some(20));
        let (none, taken) = look(&space, &often, within(512));
        assert!(none.is_none() && taken.iter().all(|steps| *steps <= 640), "{none:?} {taken:?}");
        assert_eq!(look(&space, "tea", within(512)).0, Some(20), "and it goes on after that");
        // To rank few the lists are gone through more often than to find them.
        let space = filled(&[(100, "tea ".repeat(10_000).as_str()), (limits::MAX_RANKED, "tea tea tea tea")]);
        let query = "tea-tea-tea-tea";
        let (all, taken) = look(&space, query, within(u64::MAX));
        let [find, rank] = taken[..] else { panic!("{taken:?}") };
        assert!(all == Some(limits::MAX_PAGE + 1) && rank > find + 512, "{all:?} {taken:?}");
        let (none, taken) = look(&space, query, within((find + rank) / 2));
        assert!(none.is_none() && taken.len() == 2, "{none:?} {taken:?}");
    }

    #[test]
    fn nothing_in_a_search_is_syntax() {
        let mut space = Space::new(limits::MAX_INDEX).unwrap();
        space.add(id(1), Level::Working, "bank-pin and a'b NEAR text").unwrap();
        for query in
            ["bank-pin", "a'b", "NEAR", "text OR", "te\"xt", "(text", "text:pin", "^text", "-pin", "*"]
        {
            if let Ok(words) = words(query) {
                space.find(&[Level::Working], &words, FREE, &mut Vec::new()).unwrap().unwrap();
            }
        }
        assert!(words("").is_err() && words("\"' * -").is_err());
        assert!(words(&"word ".repeat(limits::MAX_WORDS)).is_ok());
        assert!(words(&"word ".repeat(limits::MAX_WORDS + 1)).is_err());
    }
}
