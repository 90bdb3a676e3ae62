//! Prekeys as they travel. The relay checks sizes and keeps them; clients judge the signatures.

use core::fmt;

use prost::bytes::Bytes;
use stvor_base::{DeviceId, KeyBytes, Timestamp};

use crate::frame::{FrameError, field};
use crate::limits::{KEM_KEY_BYTES, SIGNATURE_BYTES};
use crate::proto;

/// A medium-term prekey of a device.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedPrekey {
    /// Its number. 0 is a number.
    pub id: u32,
    /// Its public key.
    pub key: KeyBytes,
    /// When it was made.
    pub created_at: Timestamp,
    /// The device signing key's signature.
    pub signature: [u8; SIGNATURE_BYTES],
}

/// A prekey that serves one handshake.
#[derive(Clone, PartialEq, Eq)]
pub struct OneTimePrekey {
    /// Its number.
    pub id: u32,
    /// Its public key.
    pub key: KeyBytes,
}

/// A key-encapsulation prekey: one-time, or the last resort.
#[derive(Clone, PartialEq, Eq)]
pub struct KemPrekey {
    /// Its number.
    pub id: u32,
    /// An ML-KEM-768 encapsulation key, [`KEM_KEY_BYTES`] long.
    pub key: Bytes,
    /// When it was made.
    pub created_at: Timestamp,
    /// The device signing key's signature.
    pub signature: [u8; SIGNATURE_BYTES],
}

macro_rules! short_debug {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.id)
            }
        }
    )*};
}
short_debug!(SignedPrekey, OneTimePrekey, KemPrekey);

/// What a relay holds for a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyCounts {
    /// One-time prekeys left.
    pub one_time: u32,
    /// One-time KEM prekeys left.
    pub kem_one_time: u32,
    /// The signed prekey's number, if there is one.
    pub signed_prekey_id: Option<u32>,
    /// The last-resort KEM prekey's number, if there is one.
    pub kem_last_resort_id: Option<u32>,
}

/// What is needed to start a session with one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceBundle {
    /// The device.
    pub device: DeviceId,
    /// Its signed prekey.
    pub signed_prekey: SignedPrekey,
    /// A one-time prekey, unless none is left or a fetch bound is reached.
    pub one_time: Option<OneTimePrekey>,
    /// A KEM prekey.
    pub kem: KemPrekey,
    /// Whether `kem` is the last resort.
    pub kem_is_last_resort: bool,
}

impl TryFrom<proto::SignedPrekey> for SignedPrekey {
    type Error = FrameError;

    fn try_from(wire: proto::SignedPrekey) -> Result<Self, FrameError> {
        Ok(Self {
            id: wire.id,
            key: field::key(&wire.key, "signed_prekey.key")?,
            created_at: Timestamp::from_millis(wire.created_at),
            signature: field::array(&wire.signature, "signed_prekey.signature")?,
        })
    }
}

impl From<&SignedPrekey> for proto::SignedPrekey {
    fn from(key: &SignedPrekey) -> Self {
        Self {
            id: key.id,
            key: Bytes::copy_from_slice(&key.key),
            created_at: key.created_at.as_millis(),
            signature: Bytes::copy_from_slice(&key.signature),
        }
    }
}

impl TryFrom<proto::OneTimePrekey> for OneTimePrekey {
    type Error = FrameError;

    fn try_from(wire: proto::OneTimePrekey) -> Result<Self, FrameError> {
        Ok(Self { id: wire.id, key: field::key(&wire.key, "one_time.key")? })
    }
}

impl From<&OneTimePrekey> for proto::OneTimePrekey {
    fn from(key: &OneTimePrekey) -> Self {
        Self { id: key.id, key: Bytes::copy_from_slice(&key.key) }
    }
}

impl TryFrom<proto::KemPrekey> for KemPrekey {
    type Error = FrameError;

    fn try_from(wire: proto::KemPrekey) -> Result<Self, FrameError> {
        if wire.key.len() != KEM_KEY_BYTES {
            return Err(FrameError::Field("kem.key"));
        }
        Ok(Self {
            id: wire.id,
            key: wire.key,
            created_at: Timestamp::from_millis(wire.created_at),
            signature: field::array(&wire.signature, "kem.signature")?,
        })
    }
}

impl From<&KemPrekey> for proto::KemPrekey {
    fn from(key: &KemPrekey) -> Self {
        Self {
            id: key.id,
            key: key.key.clone(),
            created_at: key.created_at.as_millis(),
            signature: Bytes::copy_from_slice(&key.signature),
        }
    }
}

impl From<Option<proto::KeyCounts>> for KeyCounts {
    fn from(wire: Option<proto::KeyCounts>) -> Self {
        let wire = wire.unwrap_or_default();
        Self {
            one_time: wire.one_time,
            kem_one_time: wire.kem_one_time,
            signed_prekey_id: wire.signed_prekey_id,
            kem_last_resort_id: wire.kem_last_resort_id,
        }
    }
}

impl From<KeyCounts> for proto::KeyCounts {
    fn from(counts: KeyCounts) -> Self {
        Self {
            one_time: counts.one_time,
            kem_one_time: counts.kem_one_time,
            signed_prekey_id: counts.signed_prekey_id,
            kem_last_resort_id: counts.kem_last_resort_id,
        }
    }
}

impl TryFrom<proto::DeviceBundle> for DeviceBundle {
    type Error = FrameError;

    fn try_from(wire: proto::DeviceBundle) -> Result<Self, FrameError> {
        Ok(Self {
            device: field::device(wire.device)?,
            signed_prekey: wire.signed_prekey.ok_or(FrameError::Field("signed_prekey"))?.try_into()?,
            one_time: wire.one_time.map(TryInto::try_into).transpose()?,
            kem: wire.kem.ok_or(FrameError::Field("kem"))?.try_into()?,
            kem_is_last_resort: wire.kem_is_last_resort,
        })
    }
}

impl From<&DeviceBundle> for proto::DeviceBundle {
    fn from(bundle: &DeviceBundle) -> Self {
        Self {
            device: bundle.device.get(),
            signed_prekey: Some((&bundle.signed_prekey).into()),
            one_time: bundle.one_time.as_ref().map(Into::into),
            kem: Some((&bundle.kem).into()),
            kem_is_last_resort: bundle.kem_is_last_resort,
        }
    }
}
