//! Bundles of others: as they come from a relay, and checked.

use stvor_base::{Address, AppId, DeviceId, KeyBytes, Suite, Timestamp};
use stvor_crypto::kem::EncapsulationKey;
use stvor_crypto::suite::{PublicKey, VerifyingKey};

use super::{KemKind, Signed};
use crate::devices::{PeerKeys, SignedDeviceList, SignedDeviceListIn};
use crate::error::ProtocolError;
use crate::limits;
use crate::profile;

/// A signed prekey as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedPrekeyIn {
    /// Its id.
    pub id: u32,
    /// When it was made, milliseconds since the Unix epoch.
    pub created: u64,
    /// Its key: as many bytes as the suite's keys have.
    pub public: Vec<u8>,
    /// The device's signature: 64 bytes.
    pub signature: Vec<u8>,
}

/// A one-time prekey as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneTimeIn {
    /// Its id.
    pub id: u32,
    /// Its key: as many bytes as the suite's keys have.
    pub public: Vec<u8>,
}

/// A KEM prekey as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KemPrekeyIn {
    /// Which kind.
    pub kind: KemKind,
    /// Its id.
    pub id: u32,
    /// When it was made, milliseconds since the Unix epoch.
    pub created: u64,
    /// Its key: 1184 bytes.
    pub public: Vec<u8>,
    /// The device's signature: 64 bytes.
    pub signature: Vec<u8>,
}

/// A prekey bundle as it came from a relay, not checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrekeyBundleIn {
    /// The user's signed device list.
    pub list: SignedDeviceListIn,
    /// Which device's bundle.
    pub device: u32,
    /// The signed prekey.
    pub signed: SignedPrekeyIn,
    /// A one-time prekey, if the relay had one.
    pub one_time: Option<OneTimeIn>,
    /// A KEM prekey, one-time or last resort.
    pub kem: KemPrekeyIn,
}

/// A bundle that holds together: every signature was checked up to the user key. Whose user key it is, is judged when
/// a session is started with it.
#[derive(Debug, Clone)]
pub struct PrekeyBundle {
    pub(crate) address: Address,
    pub(crate) list: SignedDeviceList,
    pub(crate) keys: PeerKeys,
    pub(crate) agreement: PublicKey,
    pub(crate) signed: (u32, PublicKey),
    pub(crate) one_time: Option<(u32, PublicKey)>,
    pub(crate) kem: (KemKind, u32, EncapsulationKey),
}

impl PrekeyBundleIn {
    /// Checks everything that can be checked without knowing the user.
    ///
    /// # Errors
    /// [`ProtocolError::BadDeviceList`], [`ProtocolError::BadBundle`] when anything is absent, malformed, not signed
    /// or not of `address`, [`ProtocolError::StaleBundle`] when the signed prekey or the last-resort KEM prekey is older
    /// than 30 days.
    pub fn validate(
        &self,
        app: &AppId,
        address: &Address,
        now: Timestamp,
    ) -> Result<PrekeyBundle, ProtocolError> {
        let bad = ProtocolError::BadBundle;
        let list = self.list.validate(app, &address.user)?;
        if DeviceId::new(self.device).ok() != Some(address.device) {
            return Err(bad("it is of another device"));
        }
        let keys = list.keys_of(address)?;
        let (suite, label) = (keys.suite(), &profile::of(keys.suite()).label);
        let device =
            VerifyingKey::from_bytes(&keys.signing).map_err(|_| bad("the device key is malformed"))?;
        let agreement =
            PublicKey::from_bytes(&keys.agreement).map_err(|_| bad("the device key is malformed"))?;
        let verify = |label: &[u8], signed: &Signed<'_>, signature: &[u8]| {
            device.verify(label, &signed.message(), signature).map_err(|_| bad("a signature does not verify"))
        };
        let point = |bytes: &[u8], what| {
            let bytes = KeyBytes::try_from(bytes).ok().filter(|bytes| bytes.suite() == suite);
            bytes.and_then(|bytes| PublicKey::from_bytes(&bytes).ok()).ok_or(bad(what))
        };

        let created = Timestamp::from_millis(self.signed.created);
        let (id, key) = (self.signed.id, self.signed.public.as_slice());
        let signed = Signed { app, owner: address, kind: None, id, created, key };
        verify(label.signed_prekey, &signed, &self.signed.signature)?;
        let signed_key = point(key, "the signed prekey is malformed")?;

        let kem_created = Timestamp::from_millis(self.kem.created);
        let (kem_id, kem_key) = (self.kem.id, self.kem.public.as_slice());
        let kind = Some(self.kem.kind);
        let kem = Signed { app, owner: address, kind, id: kem_id, created: kem_created, key: kem_key };
        verify(label.kem_prekey, &kem, &self.kem.signature)?;
        let kem_key =
            EncapsulationKey::from_bytes(kem_key).map_err(|_| bad("the KEM prekey is malformed"))?;

        let stale = |created| now.since(created) > limits::BUNDLE_MAX_AGE;
        if stale(created) || (self.kem.kind == KemKind::LastResort && stale(kem_created)) {
            return Err(ProtocolError::StaleBundle(address.clone()));
        }
        let one_time = match &self.one_time {
            None => None,
            Some(key) => Some((key.id, point(&key.public, "the one-time prekey is malformed")?)),
        };
        Ok(PrekeyBundle {
            address: address.clone(),
            list,
            keys,
            agreement,
            signed: (id, signed_key),
            one_time,
            kem: (self.kem.kind, kem_id, kem_key),
        })
    }
}

impl PrekeyBundle {
    /// Whose bundle it is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The suite of its keys.
    #[must_use]
    pub const fn suite(&self) -> Suite {
        self.keys.suite()
    }

    /// The user key that it presents.
    #[must_use]
    pub fn user_key(&self) -> &KeyBytes {
        &self.keys.user
    }
}
