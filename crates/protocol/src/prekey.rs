//! Prekeys: what lets others start a session while this device is away.
//!
//! A *generation* is one signed prekey and one last-resort KEM prekey under the same id; it is replaced weekly. Beside it
//! there are one-time prekeys of both kinds. Signatures are the device's and cover a label, the app, the user, the
//! device, for KEM prekeys their kind, the id, the time of creation and the key:
//!
//! ```text
//! label | u32 length, app | u32 length, user | u32 device | [u8 KEM kind] | u32 id | u64 created | u32 length, key
//! ```
//!
//! Ids start at 0, which is an id like any other.

mod bundle;
mod own;

pub use bundle::{KemPrekeyIn, OneTimeIn, PrekeyBundle, PrekeyBundleIn, SignedPrekeyIn};
pub use own::{
    KemPublicPrekey, Maintenance, OneTimePublic, PrekeyUpload, Prekeys, ServerCounts, SignedPrekeyPublic,
};
pub(crate) use own::{kem_key, one_time_key, signed_key};

use stvor_base::codec::{CodecError, Writer};
use stvor_base::{Address, AppId, Timestamp};

use crate::effects::{RecordKey, RecordKind};

/// Which KEM prekeys there are. Their ids are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KemKind {
    /// Handed out once.
    OneTime,
    /// Handed out when no one-time one is left, any number of times.
    LastResort,
}

impl KemKind {
    /// Its byte in signatures, envelopes and rows.
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::OneTime => 1,
            Self::LastResort => 2,
        }
    }

    /// The kind of a byte.
    ///
    /// # Errors
    /// [`CodecError::Value`] for a byte that is no kind.
    pub const fn from_byte(byte: u8) -> Result<Self, CodecError> {
        match byte {
            1 => Ok(Self::OneTime),
            2 => Ok(Self::LastResort),
            _ => Err(CodecError::Value),
        }
    }
}

/// What a prekey's signature covers besides the label.
pub(crate) struct Signed<'a> {
    pub(crate) app: &'a AppId,
    pub(crate) owner: &'a Address,
    pub(crate) kind: Option<KemKind>,
    pub(crate) id: u32,
    pub(crate) created: Timestamp,
    pub(crate) key: &'a [u8],
}

impl Signed<'_> {
    pub(crate) fn message(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(512 + self.key.len());
        out.bytes(self.app.as_str().as_bytes());
        self.owner.encode(&mut out);
        if let Some(kind) = self.kind {
            out.u8(kind.to_byte());
        }
        out.u32(self.id).u64(self.created.as_millis()).bytes(self.key);
        out.finish()
    }
}

/// The row of a KEM prekey.
pub(crate) fn kem_row(kind: KemKind, id: u32) -> RecordKey {
    let mut sort = vec![kind.to_byte()];
    sort.extend_from_slice(&id.to_be_bytes());
    RecordKey { kind: RecordKind::KemPrekey, partition: Vec::new(), sort }
}

/// The partition of the handshake marks that go when a generation is destroyed.
pub(crate) fn mark_partition(generation: u32) -> Vec<u8> {
    generation.to_be_bytes().to_vec()
}
