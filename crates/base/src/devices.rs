//! The byte layout of a device list.
//!
//! A user is a signing key, and the key signs the list of the user's devices (specification, "Device list"). The
//! protocol signs and pins lists, the relay reads the signing key of a device to check log-ins: both need this layout,
//! so it stands below both. Checking the signature is the reader's business.

use crate::address::{AppId, DeviceId, MAX_APP_ID_BYTES, MAX_USER_ID_BYTES, UserId};
use crate::codec::{CodecError, Reader, Writer};
use crate::suite::{KeyBytes, Suite};

/// What a user's signature over a device list covers first, so that it can pass for nothing else.
#[must_use]
pub const fn device_list_label(suite: Suite) -> &'static [u8] {
    match suite {
        Suite::P256 => b"STVOR 1 P256 device list",
        Suite::X25519 => b"STVOR 1 X25519 device list",
    }
}

/// What a device's signature over a relay log-in covers first.
#[must_use]
pub const fn login_label(suite: Suite) -> &'static [u8] {
    match suite {
        Suite::P256 => b"STVOR 1 P256 relay login",
        Suite::X25519 => b"STVOR 1 X25519 relay login",
    }
}

/// Devices of one user at most.
pub const MAX_DEVICES: usize = 16;

/// Length of a signature: of ECDSA r, then s, big-endian, s in the lower half; of Ed25519 as RFC 8032 has it.
pub const SIGNATURE_BYTES: usize = 64;

/// Layout version of the list.
const VERSION: u8 = 1;

/// One device: its number and its two public keys, never one key for both jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceEntry {
    /// The device's number.
    pub id: DeviceId,
    /// Checks prekey and log-in signatures.
    pub signing_key: KeyBytes,
    /// Takes part in X3DH.
    pub agreement_key: KeyBytes,
}

/// What a user says of their devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceList {
    /// The app that the user belongs to.
    pub app: AppId,
    /// The user.
    pub user: UserId,
    /// The user's signing key: what contacts pin. Its suite is the list's.
    pub user_key: KeyBytes,
    /// Counts up from 1 with each change.
    pub version: u64,
    /// SHA-256 of the signed bytes of the version before; zeros in version 1.
    pub previous: [u8; 32],
    /// 1 to [`MAX_DEVICES`] devices in ascending order of their numbers.
    pub devices: Vec<DeviceEntry>,
}

impl DeviceList {
    /// The suite of the list: of the user's key. A list that was read has no key of another one.
    #[must_use]
    pub const fn suite(&self) -> Suite {
        self.user_key.suite()
    }

    /// The bytes that are signed (after [`device_list_label`]) and sent.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(self.suite().layout(VERSION))
            .bytes(self.app.as_str().as_bytes())
            .bytes(self.user.as_str().as_bytes())
            .raw(&self.user_key)
            .u64(self.version)
            .raw(&self.previous)
            .u8(u8::try_from(self.devices.len()).unwrap_or(u8::MAX));
        for device in &self.devices {
            out.u32(device.id.get()).raw(&device.signing_key).raw(&device.agreement_key);
        }
        out.finish()
    }

    /// Reads a list. The signature is not looked at.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are not exactly one list in canonical form: devices out of order or twice, none
    /// or more than [`MAX_DEVICES`], one key in both jobs (also of two devices), a device that signs with the user's key,
    /// version 0, bytes after the end.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        let suite = Suite::of_layout(input.u8()?, VERSION)?;
        let text = |bytes| core::str::from_utf8(bytes).map_err(|_| CodecError::Value);
        let app = AppId::new(text(input.bytes(MAX_APP_ID_BYTES)?)?).map_err(|_| CodecError::Value)?;
        let user =
            UserId::from_canonical(text(input.bytes(MAX_USER_ID_BYTES)?)?).map_err(|_| CodecError::Value)?;
        let user_key = KeyBytes::read(&mut input, suite)?;
        let version = input.u64()?;
        let previous = *input.array()?;
        let count = usize::from(input.u8()?);
        if version == 0 || count == 0 || count > MAX_DEVICES || (version == 1 && previous != [0; 32]) {
            return Err(CodecError::Value);
        }
        let mut devices: Vec<DeviceEntry> = Vec::with_capacity(count);
        for _ in 0..count {
            let id = DeviceId::new(input.u32()?).map_err(|_| CodecError::Value)?;
            let entry = DeviceEntry {
                id,
                signing_key: KeyBytes::read(&mut input, suite)?,
                agreement_key: KeyBytes::read(&mut input, suite)?,
            };
            let in_order = devices.last().is_none_or(|before| before.id < id);
            if !in_order || entry.signing_key == user_key {
                return Err(CodecError::Value);
            }
            devices.push(entry);
        }
        input.finish()?;
        let signs = |key| key == user_key || devices.iter().any(|device| device.signing_key == key);
        if devices.iter().any(|device| signs(device.agreement_key)) {
            return Err(CodecError::Value);
        }
        Ok(Self { app, user, user_key, version, previous, devices })
    }

    /// The device with this number.
    #[must_use]
    pub fn device(&self, id: DeviceId) -> Option<&DeviceEntry> {
        self.devices.iter().find(|device| device.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> DeviceList {
        list_of(Suite::P256)
    }

    fn list_of(suite: Suite) -> DeviceList {
        let key = |byte| KeyBytes::try_from(&vec![byte; suite.key_bytes()][..]).unwrap();
        let entry = |id, byte| DeviceEntry {
            id: DeviceId::new(id).unwrap(),
            signing_key: key(byte),
            agreement_key: key(byte + 1),
        };
        DeviceList {
            app: AppId::new("app").unwrap(),
            user: UserId::new("alice").unwrap(),
            user_key: key(9),
            version: 2,
            previous: [3; 32],
            devices: vec![entry(1, 20), entry(4, 30)],
        }
    }

    #[test]
    fn a_list_reads_back_and_every_cut_is_refused() {
        for suite in Suite::ALL {
            let bytes = list_of(suite).encode();
            assert_eq!(DeviceList::decode(&bytes), Ok(list_of(suite)));
            for length in 0..bytes.len() {
                assert!(DeviceList::decode(&bytes[..length]).is_err(), "{length}");
            }
            assert_eq!(DeviceList::decode(&[bytes, vec![0]].concat()), Err(CodecError::Trailing));
        }
    }

    #[test]
    fn a_list_read_as_one_of_another_suite_is_refused() {
        for (suite, other) in [(Suite::P256, Suite::X25519), (Suite::X25519, Suite::P256)] {
            let mut bytes = list_of(suite).encode();
            bytes[0] = other.layout(VERSION);
            assert!(DeviceList::decode(&bytes).is_err(), "{suite}");
            let mut mixed = list_of(suite);
            mixed.devices[0].agreement_key = list_of(other).devices[0].agreement_key;
            assert!(DeviceList::decode(&mixed.encode()).is_err(), "{suite}");
        }
    }

    #[test]
    fn disorder_and_shared_keys_are_refused() {
        let refused = |change: fn(&mut DeviceList)| {
            let mut list = list();
            change(&mut list);
            DeviceList::decode(&list.encode()) == Err(CodecError::Value)
        };
        assert!(refused(|l| l.devices.swap(0, 1)));
        assert!(refused(|l| l.devices[1].id = l.devices[0].id));
        assert!(refused(|l| l.devices[0].agreement_key = l.devices[0].signing_key));
        assert!(refused(|l| l.devices[0].agreement_key = l.devices[1].signing_key));
        assert!(refused(|l| l.devices[1].agreement_key = l.user_key));
        assert!(refused(|l| l.devices[0].signing_key = l.user_key));
        assert!(refused(|l| l.devices.clear()));
        assert!(refused(|l| l.version = 0));
        assert!(refused(|l| l.version = 1));
    }

    #[test]
    fn a_list_holds_at_most_sixteen_devices() {
        let with = |count: usize| {
            let mut list = list();
            let template = list.devices[0].clone();
            list.devices = (1..=count)
                .map(|id| DeviceEntry {
                    id: DeviceId::new(u32::try_from(id).unwrap()).unwrap(),
                    ..template.clone()
                })
                .collect();
            DeviceList::decode(&list.encode())
        };
        assert!(with(MAX_DEVICES).is_ok());
        assert_eq!(with(MAX_DEVICES + 1), Err(CodecError::Value));
    }
}
