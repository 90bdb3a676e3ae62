//! The signed list of a user's devices.
//!
//! A user is a signing key. It signs the list of the user's devices, so a relay can neither add a device nor take the
//! place of one. The bytes of a list are laid out in [`stvor_base::devices`]; the signature covers
//! the suite's label ([`device_list_label`]), then those bytes.

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::devices::{DeviceList, device_list_label};
use stvor_base::{Address, AppId, KeyBytes, Suite, UserId};
use stvor_crypto::kdf::sha256;
use stvor_crypto::suite::{PublicKey, VerifyingKey};

use crate::error::ProtocolError;

/// A device list and its signature as they came, not checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedDeviceListIn {
    /// The list.
    pub bytes: Vec<u8>,
    /// The user key's signature over it: 64 bytes.
    pub signature: Vec<u8>,
}

/// A device list whose signature was checked, with the bytes that were signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedDeviceList {
    list: DeviceList,
    hash: [u8; 32],
}

impl SignedDeviceListIn {
    /// Checks form, owner and signature. Whether the user key is the one that we know is another question
    /// ([`crate::trust`]).
    ///
    /// # Errors
    /// [`ProtocolError::BadDeviceList`]: malformed, of another app or user, wrongly signed, or without exactly one
    /// device (until a user can have several).
    pub fn validate(&self, app: &AppId, user: &UserId) -> Result<SignedDeviceList, ProtocolError> {
        let refused = ProtocolError::BadDeviceList;
        let list = DeviceList::decode(&self.bytes).map_err(|_| refused("it is malformed"))?;
        if list.app != *app {
            return Err(refused("it is of another app"));
        }
        if list.user != *user {
            return Err(refused("it is of another user"));
        }
        if list.devices.len() != 1 {
            return Err(refused("it does not have exactly one device"));
        }
        let key =
            VerifyingKey::from_bytes(&list.user_key).map_err(|_| refused("its user key is malformed"))?;
        key.verify(device_list_label(list.suite()), &self.bytes, &self.signature)
            .map_err(|_| refused("its signature does not verify"))?;
        Ok(SignedDeviceList { list, hash: sha256(&[&self.bytes]) })
    }
}

impl SignedDeviceList {
    /// The list.
    #[must_use]
    pub fn list(&self) -> &DeviceList {
        &self.list
    }

    /// SHA-256 of the signed bytes.
    #[must_use]
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// The keys of a device of this user.
    ///
    /// # Errors
    /// [`ProtocolError::BadDeviceList`] when the list does not name the device, or its keys are no points.
    pub(crate) fn keys_of(&self, address: &Address) -> Result<PeerKeys, ProtocolError> {
        let refused = ProtocolError::BadDeviceList;
        let entry = self.list.device(address.device).ok_or(refused("it does not name the device"))?;
        let keys =
            PeerKeys { user: self.list.user_key, signing: entry.signing_key, agreement: entry.agreement_key };
        let valid = VerifyingKey::from_bytes(&keys.signing).is_ok()
            && PublicKey::identity_from_bytes(&keys.agreement).is_ok();
        if valid { Ok(keys) } else { Err(refused("a device key is malformed")) }
    }
}

/// The public identity of one device: the user's key and the device's two keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerKeys {
    pub(crate) user: KeyBytes,
    pub(crate) signing: KeyBytes,
    pub(crate) agreement: KeyBytes,
}

impl PeerKeys {
    /// The suite of all three.
    pub(crate) const fn suite(&self) -> Suite {
        self.user.suite()
    }

    pub(crate) fn read(input: &mut Reader<'_>, suite: Suite) -> Result<Self, CodecError> {
        let mut key = || KeyBytes::read(input, suite);
        Ok(Self { user: key()?, signing: key()?, agreement: key()? })
    }

    /// Appends user, signing and agreement key.
    pub(crate) fn encode(&self, out: &mut Writer) {
        out.raw(&self.user).raw(&self.signing).raw(&self.agreement);
    }
}
