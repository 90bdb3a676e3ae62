//! The two rows in clear that a sealed store keeps about itself.

use crate::adapter::RowValue;
use crate::change::{Expect, Key, Op, RowVersion};
use crate::{StoreError, Table};
use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_crypto::kdf::sha256;
use stvor_keys::WrappedKey;

/// The format of headers and of sealed rows that this build writes, and the newest that it reads.
pub const FORMAT: u16 = 1;

const MAGIC: &[u8; 8] = b"STVORSTO";
const CHECKSUM: usize = 16;

/// Which store this is and who opens it. Encoded: magic (8), format (2), store id (16), u32 BE length and wrapped key,
/// first 16 bytes of SHA-256 over all before.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) store: [u8; 16],
    pub(super) key: WrappedKey,
}

impl Header {
    pub(super) fn key() -> Key {
        Key::new(Table::Header, *b"store", *b"header")
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.raw(MAGIC).u16(FORMAT).raw(&self.store).bytes(&self.key.encode());
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
        if format != FORMAT {
            return Err(StoreError::TooNew { found: format.into(), known: FORMAT.into() });
        }
        let store = *input.array().map_err(damaged)?;
        let key = WrappedKey::decode(input.bytes(stvor_keys::limits::MAX_WRAPPED).map_err(damaged)?)?;
        input.finish().map_err(damaged)?;
        Ok(Self { store, key })
    }

    /// Writes the header: a first one, or over the one that is there.
    pub(super) fn write(&self, expect: Expect) -> Op<RowValue> {
        let value = RowValue { bytes: self.encode(), version: RowVersion(0) };
        Op::Put { key: Self::key(), value, expires: None, expect }
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
