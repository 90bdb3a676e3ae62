//! What stands in a state before it is sealed: the head, entries of the journal, and rows.

use crate::adapter::RowValue;
use crate::change::{Key, RowVersion};
use crate::memory::Kept;
use crate::{StoreError, Table, limits};
use stvor_base::Timestamp;
use stvor_base::codec::{CodecError, Reader, Writer};

/// What a commit does to one row: another value, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) key: Key,
    pub(crate) row: Option<Kept>,
}

/// Where all the others are. Rows of the partitions of a name are under that name, all others in pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// The layouts of the records in the rows, see [`crate::LAYOUTS`]: said in the state that is read first, before rows of tables that
    /// a program does not know.
    pub(super) layouts: u32,
    pub(super) store: [u8; 16],
    /// Changes with each opening.
    pub(super) owner: [u8; 16],
    /// The last entry of the journal that is in the pages.
    pub(super) seq: u64,
    pub(super) pages: Vec<PageRef>,
    pub(super) names: Vec<NameRef>,
}

/// A page holds the rows from its first key to the first key of the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PageRef {
    pub(super) first: Key,
    pub(super) number: u32,
    pub(super) seq: u64,
}

/// Rows under the id of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NameRef {
    pub(super) id: String,
    pub(super) partitions: Vec<(Table, Vec<u8>)>,
    /// What is saved there holds at least this entry of the journal.
    pub(super) seq: u64,
}

/// One commit, or several that came together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) store: [u8; 16],
    pub(super) owner: [u8; 16],
    pub(super) seq: u64,
    /// The entry before it. Numbers between were given out and did not count: their save failed, but may have landed.
    pub(super) previous: u64,
    pub(super) changes: Vec<Changed>,
}

/// The rows of a page or of a name, as of an entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) store: [u8; 16],
    pub(super) seq: u64,
    pub(super) rows: Vec<(Key, Kept)>,
}

const HEAD: u8 = 1;
const ENTRY: u8 = 2;
const ROWS: u8 = 3;
/// A head that begins with the number of the layouts. One without is of layouts 1.
const HEAD_OF_LAYOUTS: u8 = 4;

/// Bytes of a name: a user's id and more.
const MAX_NAME: usize = 1_024;

fn count(out: &mut Writer, length: usize) {
    out.u32(u32::try_from(length).unwrap_or(u32::MAX));
}

fn put_key(out: &mut Writer, key: &Key) {
    out.u8(key.table.id()).bytes(&key.partition).bytes(&key.sort);
}

fn take_table(input: &mut Reader<'_>) -> Result<Table, CodecError> {
    Table::from_id(input.u8()?).ok_or(CodecError::Value)
}

fn take_key(input: &mut Reader<'_>) -> Result<Key, CodecError> {
    let table = take_table(input)?;
    let partition = input.bytes(limits::MAX_KEY_PART)?;
    Ok(Key::new(table, partition, input.bytes(limits::MAX_KEY_PART)?))
}

fn put_row(out: &mut Writer, (value, expires): &Kept) {
    out.u64(value.version.0).u8(expires.is_some().into()).u64(expires.unwrap_or_default().as_millis());
    out.bytes(&value.bytes);
}

fn take_row(input: &mut Reader<'_>) -> Result<Kept, CodecError> {
    let version = RowVersion(input.u64()?);
    let expires = input.bool()?;
    let at = Timestamp::from_millis(input.u64()?);
    let bytes = input.bytes(limits::MAX_VALUE)?.to_vec();
    Ok((RowValue { bytes, version }, expires.then_some(at)))
}

/// Reads as many values as the bytes say, each of which takes some of the bytes.
fn list<T>(
    input: &mut Reader<'_>,
    mut read: impl FnMut(&mut Reader<'_>) -> Result<T, CodecError>,
) -> Result<Vec<T>, CodecError> {
    let length = input.u32()?;
    let mut values = Vec::new();
    for _ in 0..length {
        values.push(read(input)?);
    }
    Ok(values)
}

fn decode<T>(
    bytes: &[u8],
    (kind, what): (u8, &str),
    read: impl FnOnce(&mut Reader<'_>) -> Result<T, CodecError>,
) -> Result<T, StoreError> {
    let mut input = Reader::new(bytes);
    let read = || {
        if input.u8()? != kind {
            return Err(CodecError::Value);
        }
        let value = read(&mut input)?;
        input.finish()?;
        Ok(value)
    };
    let read: Result<T, CodecError> = read();
    read.map_err(|error| StoreError::corrupt(format!("{what}: {error}")))
}

impl Head {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(64 + 128 * (self.pages.len() + self.names.len()));
        match self.layouts {
            1 => out.u8(HEAD),
            layouts => out.u8(HEAD_OF_LAYOUTS).u32(layouts),
        };
        out.raw(&self.store).raw(&self.owner).u64(self.seq);
        count(&mut out, self.pages.len());
        for page in &self.pages {
            put_key(&mut out, &page.first);
            out.u32(page.number).u64(page.seq);
        }
        count(&mut out, self.names.len());
        for name in &self.names {
            out.bytes(name.id.as_bytes()).u64(name.seq);
            count(&mut out, name.partitions.len());
            for (table, partition) in &name.partitions {
                out.u8(table.id()).bytes(partition);
            }
        }
        out.finish()
    }

    /// Reads what a program of layouts `known` can go on with.
    pub(super) fn decode(bytes: &[u8], known: u32) -> Result<Self, StoreError> {
        // What follows the number may be laid out otherwise, too.
        let number = bytes.strip_prefix(&[HEAD_OF_LAYOUTS]).and_then(|rest| rest.first_chunk::<4>());
        let layouts = number.map_or(1, |number| u32::from_be_bytes(*number));
        if layouts > known {
            return Err(StoreError::TooNew { found: layouts, known });
        }
        let kind = if number.is_some() { HEAD_OF_LAYOUTS } else { HEAD };
        decode(bytes, (kind, "its head"), |input| {
            if number.is_some() && input.u32()? < 2 {
                return Err(CodecError::Value);
            }
            let (store, owner, seq) = (*input.array()?, *input.array()?, input.u64()?);
            let pages = list(input, |input| {
                Ok(PageRef { first: take_key(input)?, number: input.u32()?, seq: input.u64()? })
            })?;
            let names = list(input, |input| {
                let id = core::str::from_utf8(input.bytes(MAX_NAME)?).map_err(|_| CodecError::Value)?;
                let (id, seq) = (id.to_owned(), input.u64()?);
                let partitions = list(input, |input| {
                    Ok((take_table(input)?, input.bytes(limits::MAX_KEY_PART)?.to_vec()))
                })?;
                Ok(NameRef { id, partitions, seq })
            })?;
            Ok(Self { layouts, store, owner, seq, pages, names })
        })
    }
}

impl Entry {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(1_024);
        out.u8(ENTRY).raw(&self.store).raw(&self.owner).u64(self.seq).u64(self.previous);
        count(&mut out, self.changes.len());
        for change in &self.changes {
            put_key(&mut out, &change.key);
            out.u8(change.row.is_some().into());
            if let Some(row) = &change.row {
                put_row(&mut out, row);
            }
        }
        out.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        decode(bytes, (ENTRY, "an entry of its journal"), |input| {
            let (store, owner) = (*input.array()?, *input.array()?);
            let (seq, previous) = (input.u64()?, input.u64()?);
            let changes = list(input, |input| {
                let key = take_key(input)?;
                let row = if input.bool()? { Some(take_row(input)?) } else { None };
                Ok(Changed { key, row })
            })?;
            Ok(Self { store, owner, seq, previous, changes })
        })
    }
}

impl Rows {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(limits::PAGE_BYTES);
        out.u8(ROWS).raw(&self.store).u64(self.seq);
        count(&mut out, self.rows.len());
        for (key, row) in &self.rows {
            put_key(&mut out, key);
            put_row(&mut out, row);
        }
        out.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        decode(bytes, (ROWS, "a page of its rows"), |input| {
            let (store, seq) = (*input.array()?, input.u64()?);
            let rows = list(input, |input| Ok((take_key(input)?, take_row(input)?)))?;
            Ok(Self { store, seq, rows })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(sort: &[u8]) -> Key {
        Key::new(Table::Custom, b"partition".as_slice(), sort)
    }

    fn kept(expires: Option<Timestamp>) -> Kept {
        (RowValue { bytes: b"sealed".to_vec(), version: RowVersion(7) }, expires)
    }

    /// What the first release wrote: it has to be read for ever.
    #[test]
    fn states_have_the_bytes_of_the_first_format() {
        let (store, owner) = ([1; 16], [2; 16]);
        let head = Head {
            layouts: 1,
            store,
            owner,
            seq: 3,
            pages: vec![PageRef { first: key(b""), number: 4, seq: 5 }],
            names: vec![NameRef {
                id: "bob".into(),
                partitions: vec![(Table::Custom, b"partition".to_vec())],
                seq: 6,
            }],
        };
        assert_eq!(
            hex::encode(head.encode()),
            "0101010101010101010101010101010101020202020202020202020202020202020000000000000003000000014000000009706172746974696f6e000000000000000400000000000000050000000100000003626f620000000000000006000000014000000009706172746974696f6e"
        );
        assert_eq!(Head::decode(&head.encode(), 1).unwrap(), head);
        let changes =
            vec![Changed { key: key(b"a"), row: Some(kept(None)) }, Changed { key: key(b"b"), row: None }];
        let entry = Entry { store, owner, seq: 9, previous: 8, changes };
        assert_eq!(
            hex::encode(entry.encode()),
            "02010101010101010101010101010101010202020202020202020202020202020200000000000000090000000000000008000000024000000009706172746974696f6e0000000161010000000000000007000000000000000000000000067365616c65644000000009706172746974696f6e000000016200"
        );
        assert_eq!(Entry::decode(&entry.encode()).unwrap(), entry);
        let at = Timestamp::from_millis(1_700_000_000_000);
        let rows = Rows { store, seq: 9, rows: vec![(key(b"a"), kept(Some(at)))] };
        assert_eq!(
            hex::encode(rows.encode()),
            "03010101010101010101010101010101010000000000000009000000014000000009706172746974696f6e00000001610000000000000007010000018bcfe56800000000067365616c6564"
        );
        assert_eq!(Rows::decode(&rows.encode()).unwrap(), rows);
    }

    #[test]
    fn a_head_says_its_layouts_first_and_only_once_they_are_raised() {
        let head = |layouts| Head {
            layouts,
            store: [1; 16],
            owner: [2; 16],
            seq: 3,
            pages: Vec::new(),
            names: Vec::new(),
        };
        let (first, raised) = (head(1).encode(), head(258).encode());
        assert_eq!(first, [&[1_u8][..], &[1; 16], &[2; 16], &[0, 0, 0, 0, 0, 0, 0, 3], &[0; 8]].concat());
        assert_eq!(raised, [&[4_u8, 0, 0, 1, 2][..], &first[1..]].concat());
        assert_eq!(Head::decode(&first, 1).unwrap(), head(1));
        assert_eq!(Head::decode(&raised, 258).unwrap(), head(258));
        // Whatever a newer program has put behind the number.
        let newer = [&raised[..5], b"something else"].concat();
        assert!(matches!(Head::decode(&newer, 257), Err(StoreError::TooNew { found: 258, known: 257 })));
        assert!(matches!(Head::decode(&newer, 258), Err(StoreError::Corrupt { .. })));
        for number in [0, 1] {
            let low = [&[4_u8, 0, 0, 0, number][..], &first[1..]].concat();
            assert!(matches!(Head::decode(&low, 9), Err(StoreError::Corrupt { .. })), "{number}");
        }
    }
}
