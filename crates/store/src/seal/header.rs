//! Rows in clear that a sealed store keeps about itself.

use super::cipher::{KEPT_NAMES, Keys, Ring};
use crate::adapter::{Row, RowValue};
use crate::change::{Expect, Key, Op, RowVersion};
use crate::{StoreError, Table};
use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_crypto::kdf::sha256;
use stvor_keys::{KeyHolder, WrappedKey};

/// The newest format of headers that this build reads: 1, and 2 for a store whose data key was replaced.
pub const FORMAT: u16 = 2;

/// The newest layouts of records that this build reads and writes, all kinds together: raised by one whenever a record of any kind gets
/// a layout, or a place, that programs before do not know. Rows are sealed, so this number stands beside them in clear, and a program
/// of lower layouts finds out before it writes anything. A store without the number is one of layouts 1.
pub const LAYOUTS: u32 = 1;

/// The format of sealed rows, part of their associated data.
pub(super) const ROW_FORMAT: u16 = 1;

const MAGIC: &[u8; 8] = b"STVORSTO";
const CHECKSUM: usize = 16;

/// Which store this is and who opens it. Encoded: magic (8), format (2), store id (16), u32 BE length and wrapped key; in
/// format 2 then how often the data key was replaced (4), the first epoch of this one (4), the sealed names key (60), and
/// u32 BE length and the wrapped key before, or length 0 when no row of its epochs is left; then the first 16 bytes of
/// SHA-256 over all before.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) store: [u8; 16],
    pub(super) key: WrappedKey,
    /// `None`: the data key is the first one.
    pub(super) rotated: Option<Rotated>,
}

/// What the header of a store says whose data key was replaced.
#[derive(Debug, Clone)]
pub(super) struct Rotated {
    pub(super) times: u32,
    pub(super) since: u32,
    pub(super) names: [u8; KEPT_NAMES],
    /// While rows of earlier epochs are there.
    pub(super) previous: Option<WrappedKey>,
}

impl Header {
    /// The header of a fresh store.
    pub(super) fn first(store: [u8; 16], key: WrappedKey) -> Self {
        Self { store, key, rotated: None }
    }

    /// The keys, opened by their holder.
    pub(super) fn open(&self, holder: &dyn KeyHolder) -> Result<Keys, StoreError> {
        let current = holder.unwrap(&self.key, &self.store)?;
        let previous = self.rotated.as_ref().and_then(|rotated| rotated.previous.as_ref());
        let previous = previous.map(|wrapped| holder.unwrap(wrapped, &self.store)).transpose()?;
        Ok(Keys::with_ring(self.store, Ring::of(self, current, previous)?))
    }

    pub(super) fn key() -> Key {
        Key::new(Table::Header, *b"store", *b"header")
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.raw(MAGIC).u16(1 + u16::from(self.rotated.is_some())).raw(&self.store).bytes(&self.key.encode());
        if let Some(rotated) = &self.rotated {
            out.u32(rotated.times).u32(rotated.since).raw(&rotated.names);
            out.bytes(&rotated.previous.as_ref().map(WrappedKey::encode).unwrap_or_default());
        }
        let sum = sha256(&[out.as_slice()]);
        out.raw(sum.get(..CHECKSUM).unwrap_or_default());
        out.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let body = bytes.len().checked_sub(CHECKSUM).and_then(|length| bytes.split_at_checked(length));
        let (body, sum) = body.ok_or_else(|| StoreError::corrupt("its header ends too early"))?;
        if !body.starts_with(MAGIC) || !sha256(&[body]).starts_with(sum) {
            return Err(StoreError::corrupt("the checksum of its header does not match"));
        }
        let damaged = |error: CodecError| StoreError::corrupt(format!("its header: {error}"));
        let mut input = Reader::new(body);
        input.raw(MAGIC.len()).map_err(damaged)?;
        let format = input.u16().map_err(damaged)?;
        if format == 0 || format > FORMAT {
            return Err(StoreError::TooNew { found: format.into(), known: FORMAT.into() });
        }
        let store = *input.array().map_err(damaged)?;
        let key = WrappedKey::decode(input.bytes(stvor_keys::limits::MAX_WRAPPED).map_err(damaged)?)?;
        let rotated = if format == 1 { None } else { Some(Rotated::decode(&mut input, damaged)?) };
        input.finish().map_err(damaged)?;
        Ok(Self { store, key, rotated })
    }

    /// Writes the header: a first one, or over the one that is there. Each change has a version of its own.
    pub(super) fn write(&self, version: u64, expect: Expect) -> Op<RowValue> {
        let value = RowValue { bytes: self.encode(), version: RowVersion(version) };
        Op::Put { key: Self::key(), value, expires: None, expect }
    }
}

impl Rotated {
    fn decode(
        input: &mut Reader<'_>,
        damaged: impl Fn(CodecError) -> StoreError + Copy,
    ) -> Result<Self, StoreError> {
        let times = input.u32().map_err(damaged)?;
        let since = input.u32().map_err(damaged)?;
        let names = *input.array().map_err(damaged)?;
        let previous = match input.bytes(stvor_keys::limits::MAX_WRAPPED).map_err(damaged)? {
            [] => None,
            wrapped => Some(WrappedKey::decode(wrapped)?),
        };
        Ok(Self { times, since, names, previous })
    }
}

/// How often the store was opened for writing. Each opening seals under a key of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Epoch(pub(super) u32);

impl Epoch {
    /// Row versions are signed 64-bit numbers in SQL databases, so epochs end one bit early.
    const LAST: u32 = u32::MAX >> 1;

    pub(super) fn key() -> Key {
        Key::new(Table::Header, *b"store", *b"epoch")
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut input = Reader::new(bytes);
        match (input.u32(), input.finish()) {
            (Ok(epoch), Ok(())) if epoch <= Self::LAST => Ok(Self(epoch)),
            _ => Err(StoreError::corrupt("the row of its epoch")),
        }
    }

    pub(super) fn next(self) -> Result<Self, StoreError> {
        if self.0 >= Self::LAST {
            return Err(StoreError::Limit { what: "openings of a store", limit: Self::LAST as usize });
        }
        Ok(Self(self.0 + 1))
    }

    pub(super) fn write(self, expect: Expect) -> Op<RowValue> {
        let value = RowValue { bytes: self.0.to_be_bytes().to_vec(), version: RowVersion(self.0.into()) };
        Op::Put { key: Self::key(), value, expires: None, expect }
    }
}

/// The layouts of the records in a store: a row whose value is the number (4 bytes, big-endian), which is its version, too.
/// There is none while the number is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layouts(pub(crate) u32);

impl Layouts {
    const FIRST: Self = Self(1);

    pub(crate) fn key() -> Key {
        Key::new(Table::Header, *b"store", *b"layouts")
    }

    /// What a store says in this row, if a program of layouts `known` can read it.
    pub(crate) fn read(row: Option<&Row>, known: u32) -> Result<Self, StoreError> {
        let Some(row) = row else { return Ok(Self::FIRST) };
        let number = <[u8; 4]>::try_from(row.value.bytes.as_slice()).map_or(0, u32::from_be_bytes);
        if number <= Self::FIRST.0 || row.value.version.0 != number.into() {
            return Err(StoreError::corrupt("the row of its layouts"));
        }
        if number > known {
            return Err(StoreError::TooNew { found: number, known });
        }
        Ok(Self(number))
    }

    /// Writes a higher number over this one.
    pub(super) fn raise(self, number: u32) -> Op<RowValue> {
        let expect = match self {
            Self::FIRST => Expect::Absent,
            Self(found) => Expect::Version(RowVersion(found.into())),
        };
        let value = RowValue { bytes: number.to_be_bytes().to_vec(), version: RowVersion(number.into()) };
        Op::Put { key: Self::key(), value, expires: None, expect }
    }

    /// What the first commit of a fresh store writes.
    pub(super) fn first(number: u32) -> Option<Op<RowValue>> {
        (number > Self::FIRST.0).then(|| Self::FIRST.raise(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(bytes: &[u8], version: u64) -> Row {
        let value = RowValue { bytes: bytes.to_vec(), version: RowVersion(version) };
        Row { key: Layouts::key(), value, expires: None }
    }

    /// What later programs write, byte by byte: this one has to understand it.
    #[test]
    fn the_number_of_the_layouts_is_read_as_it_is_written_and_nothing_else_is() {
        assert_eq!(Layouts::key(), Key::new(Table::Header, *b"store", *b"layouts"));
        let Op::Put { value, expires: None, expect: Expect::Absent, .. } = Layouts::FIRST.raise(2) else {
            panic!("the first raise makes the row")
        };
        assert_eq!((value.bytes.as_slice(), value.version), ([0, 0, 0, 2].as_slice(), RowVersion(2)));
        let Op::Put { expect, .. } = Layouts(2).raise(3) else { panic!("a raise writes the row") };
        assert_eq!(expect, Expect::Version(RowVersion(2)));
        assert!(Layouts::first(1).is_none(), "a store of the first layouts is as it ever was");

        assert_eq!(Layouts::read(None, 1).unwrap(), Layouts(1));
        let of = |bytes: &[u8], version, known| Layouts::read(Some(&row(bytes, version)), known);
        assert_eq!(of(&[0, 0, 1, 2], 258, 258).unwrap(), Layouts(258));
        assert!(matches!(of(&[0, 0, 1, 2], 258, 257), Err(StoreError::TooNew { found: 258, known: 257 })));
        let bad: [(&[u8], u64); 6] = [
            (&[0, 0, 0, 0], 0),
            (&[0, 0, 0, 1], 1),
            (&[0, 0, 0, 2], 3),
            (&[0, 0, 2], 2),
            (&[0, 0, 0, 2, 0], 2),
            (&[], 0),
        ];
        for (bytes, version) in bad {
            assert!(matches!(of(bytes, version, u32::MAX), Err(StoreError::Corrupt { .. })), "{bytes:?}");
        }
    }
}
