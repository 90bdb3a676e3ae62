//! Tables whose rows are only right together. Each row is sealed, but a row that is removed, or an older copy of it, opens as
//! well as the newest: so a sum over all rows of each table is kept, and sealed with every checkpoint.
//!
//! The sum is the additive multiset hash of Clarke et al. (ASIACRYPT 2003): HMAC-SHA256 of each row, added modulo 2^256. It
//! changes with a row in constant time and never leaves the process but sealed. It is kept in a temporary table, which is in
//! memory and follows the transactions and savepoints of the rows themselves.

use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};
use stvor_crypto::Secret;
use stvor_crypto::kdf::hmac_sha256;

use super::rows::Rows;
use super::{Database, failed};
use crate::VaultError;
use crate::reading;

/// Rows that are counted at a time.
const ROWS: usize = 2_048;

pub(super) const SUMS: &str =
    "CREATE TEMP TABLE sums (of INTEGER PRIMARY KEY, sum BLOB NOT NULL, doubted INTEGER NOT NULL) STRICT";

/// A bound table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    /// Keys, settings and other single records.
    Slot,
    /// Which memories serve an intent.
    Intent,
    /// The event of the newest recall of each memory with a cooldown.
    Recall,
    /// Agents.
    Agent,
    /// Requests for approval.
    Approval,
    /// The digest of each memory's newest header.
    Fresh,
}

/// A sum over each table, in the order of [`Table::ALL`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sums([[u8; 32]; Table::ALL.len()]);

impl Sums {
    /// What no table adds up to, for when nobody knows what they should.
    pub(crate) fn unknown() -> Self {
        Self([[0xff; 32]; Table::ALL.len()])
    }
}

impl Table {
    pub(crate) const ALL: [Self; 6] =
        [Self::Slot, Self::Intent, Self::Recall, Self::Agent, Self::Approval, Self::Fresh];

    /// The table, and its two columns.
    pub(super) fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Slot => ("slot", "name", "record"),
            Self::Intent => ("intent", "intent", "id"),
            Self::Recall => ("recall", "id", "event"),
            Self::Agent => ("agent", "credential", "record"),
            Self::Approval => ("approval", "id", "record"),
            Self::Fresh => ("fresh", "id", "header"),
        }
    }

    /// What is in it, for people.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Slot => "keys and settings",
            Self::Intent => "intents",
            Self::Recall => "recalls",
            Self::Agent => "agents",
            Self::Approval => "approvals",
            Self::Fresh => "memories",
        }
    }

    fn number(self) -> u8 {
        self as u8
    }
}

/// What a row counts.
fn term(secret: &Secret<32>, table: Table, (key, value): (&[u8], &[u8])) -> [u8; 32] {
    let length = (key.len() as u64).to_be_bytes();
    *hmac_sha256(secret.expose(), &[&[table.number()], &length, key, value]).expose()
}

/// Adds a number of 256 bits, or takes it away.
fn fold(sum: &mut [u8; 32], term: &[u8; 32], away: bool) {
    let mut carry = u16::from(away);
    for (byte, other) in sum.iter_mut().zip(term) {
        let other = if away { !other } else { *other };
        let [low, high] = (u16::from(*byte) + u16::from(other) + carry).to_le_bytes();
        (*byte, carry) = (low, high.into());
    }
}

/// What a value counts as.
fn append(out: &mut Vec<u8>, value: ValueRef<'_>) {
    match value {
        ValueRef::Integer(number) => out.extend(number.to_be_bytes()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => out.extend(bytes),
        ValueRef::Null | ValueRef::Real(_) => {}
    }
}

fn bytes(value: ValueRef<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    append(&mut out, value);
    out
}

/// Rows that are counted at a time, in one piece of memory.
#[derive(Default)]
struct Pairs {
    bytes: Vec<u8>,
    /// Where the key and the value of each row end.
    rows: Vec<(usize, usize)>,
}

impl Pairs {
    /// The next rows, if there are more, in what is done with.
    fn read(mut pairs: Self, from: &mut rusqlite::Rows<'_>) -> rusqlite::Result<Option<Self>> {
        pairs.bytes.clear();
        pairs.rows.clear();
        while pairs.rows.len() < ROWS {
            let Some(row) = from.next()? else { break };
            append(&mut pairs.bytes, row.get_ref(0)?);
            let key = pairs.bytes.len();
            append(&mut pairs.bytes, row.get_ref(1)?);
            pairs.rows.push((key, pairs.bytes.len()));
        }
        Ok(Some(pairs).filter(|pairs| !pairs.rows.is_empty()))
    }

    fn sum(&self, secret: &Secret<32>, table: Table) -> [u8; 32] {
        let (mut sum, mut begin) = ([0; 32], 0);
        for (key, end) in &self.rows {
            let of = |from, to| self.bytes.get(from..to).unwrap_or_default();
            fold(&mut sum, &term(secret, table, (of(begin, *key), of(*key, *end))), false);
            begin = *end;
        }
        sum
    }
}

impl Database {
    /// From here on changes are counted, beginning with `expected`. Without that, with what the tables hold now. Tables that
    /// hold something else are doubted.
    pub(crate) fn bind(&mut self, secret: Secret<32>, expected: Option<&Sums>) -> Rows<()> {
        self.bound = Some(secret);
        let found = self.count_rows()?;
        self.put_sums(expected.unwrap_or(&found), &found)
    }

    /// Counts under another key from here on, what the tables hold now: that has to be what was counted. A group that is
    /// undone takes the sums back and not the key, so the vault has to be opened anew then.
    pub(crate) fn rebind(&mut self, secret: Secret<32>) -> Rows<()> {
        if let Some(table) = self.unsound()?.first() {
            let place = format!("what the vault keeps of {}", table.what());
            return Err(VaultError::tampered(place, "a record was removed, added or set back"));
        }
        self.bound = Some(secret);
        self.bind_anew()
    }

    /// Takes what the tables hold now for what they should hold.
    pub(crate) fn bind_anew(&self) -> Rows<()> {
        let found = self.count_rows()?;
        self.put_sums(&found, &found)
    }

    fn put_sums(&self, expected: &Sums, found: &Sums) -> Rows<()> {
        for ((table, expected), found) in Table::ALL.iter().zip(&expected.0).zip(&found.0) {
            let values = params![table.number(), expected, expected != found];
            self.execute("INSERT OR REPLACE INTO temp.sums VALUES (?1, ?2, ?3)", values)?;
        }
        Ok(())
    }

    /// Reads the tables, and adds up what their rows count.
    fn count_rows(&self) -> Rows<Sums> {
        let mut sums = Sums::default();
        let Some(secret) = &self.bound else { return Ok(sums) };
        let read = |table: Table, sum: &mut [u8; 32]| {
            let (name, key, value) = table.names();
            let mut statement =
                self.connection.prepare(&format!("SELECT {key}, {value} FROM main.{name}"))?;
            let mut rows = statement.query([])?;
            let part = |spare| Pairs::read(spare, &mut rows);
            let take = |part: [u8; 32]| {
                fold(sum, &part, false);
                Ok::<_, rusqlite::Error>(())
            };
            reading::piped(part, |pairs: &Pairs| pairs.sum(secret, table), take)
        };
        for (table, sum) in Table::ALL.into_iter().zip(&mut sums.0) {
            read(table, sum).map_err(|error| failed(&error))?;
        }
        Ok(sums)
    }

    /// The sums, as the changes that were made through here left them.
    pub(crate) fn sums(&self) -> Rows<Sums> {
        let mut sums = Sums::default();
        for (table, sum) in Table::ALL.into_iter().zip(&mut sums.0) {
            *sum = self.sum(table)?;
        }
        Ok(sums)
    }

    fn sum(&self, table: Table) -> Rows<[u8; 32]> {
        let read = || {
            let mut statement = self.connection.prepare_cached("SELECT sum FROM temp.sums WHERE of = ?1")?;
            statement.query_row([table.number()], |row| row.get(0)).optional()
        };
        let missing = || VaultError::Database("the tables are not bound".into());
        read().map_err(|error| failed(&error))?.ok_or_else(missing)
    }

    /// Tables that did not hold what they should when they were bound.
    pub(crate) fn doubted(&self) -> Rows<Vec<Table>> {
        let read = || {
            let mut statement = self.connection.prepare_cached("SELECT of FROM temp.sums WHERE doubted")?;
            let rows = statement.query_map([], |row| row.get::<_, u8>(0))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let doubted = read().map_err(|error| failed(&error))?;
        Ok(Table::ALL.into_iter().filter(|table| doubted.contains(&table.number())).collect())
    }

    /// Tables that do not hold now what they should.
    pub(crate) fn unsound(&self) -> Rows<Vec<Table>> {
        let (expected, found) = (self.sums()?, self.count_rows()?);
        let pairs = Table::ALL.into_iter().zip(expected.0.iter().zip(&found.0));
        Ok(pairs.filter(|(_, (expected, found))| expected != found).map(|(table, _)| table).collect())
    }

    /// Counts the change of a row.
    pub(super) fn replaced(
        &self,
        (table, key): (Table, &[u8]),
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Rows<()> {
        self.changed.set(true);
        let Some(secret) = &self.bound else { return Ok(()) };
        let mut sum = self.sum(table)?;
        for (value, away) in [(old, true), (new, false)] {
            if let Some(value) = value {
                fold(&mut sum, &term(secret, table, (key, value)), away);
            }
        }
        self.execute("UPDATE temp.sums SET sum = ?2 WHERE of = ?1", params![table.number(), sum]).map(|_| ())
    }

    /// Whether a bound table was changed since this was last asked.
    pub(crate) fn take_changed(&self) -> bool {
        self.changed.replace(false)
    }

    /// Removes all rows.
    pub(crate) fn clear(&self, table: Table) -> Rows<()> {
        let (name, key, value) = table.names();
        let read = || {
            let mut statement =
                self.connection.prepare(&format!("SELECT {key}, {value} FROM main.{name}"))?;
            let rows = statement.query_map([], |row| Ok((bytes(row.get_ref(0)?), bytes(row.get_ref(1)?))))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let rows = read().map_err(|error| failed(&error))?;
        // Each row by its own, so that nothing is removed that was not counted.
        rows.iter().try_for_each(|(key, value)| self.replaced((table, key), Some(value), None))?;
        self.run(&format!("DELETE FROM main.{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_in_any_order_is_taken_away_in_any_other() {
        let secret = Secret::new([7; 32]);
        let rows: Vec<[u8; 32]> = (0..50_u8).map(|n| term(&secret, Table::Slot, (&[n], &[n, n]))).collect();
        let (mut one, mut other) = ([0; 32], [0; 32]);
        rows.iter().for_each(|row| fold(&mut one, row, false));
        rows.iter().rev().for_each(|row| fold(&mut other, row, false));
        assert_eq!(one, other);
        fold(&mut other, &rows[3], true);
        assert_ne!(one, other);
        rows.iter().for_each(|row| fold(&mut one, row, true));
        assert_eq!(one, [0; 32]);
        assert_ne!(
            term(&secret, Table::Agent, (b"ab", b"c")),
            term(&secret, Table::Agent, (b"a", b"bc")),
            "key and value are told apart"
        );
    }
}
