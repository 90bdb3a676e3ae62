//! Prekey bundles: what a session with somebody starts from.

use super::keys::PublicKey;
use super::{SignalError, keys};

/// A one-time prekey as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneTimeIn {
    /// Its id; 0 is one like any other.
    pub id: u32,
    /// The public key, 33 bytes.
    pub public: Vec<u8>,
}

/// A bundle as it came, unchecked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreKeyBundleIn {
    /// The peer's registration id.
    pub registration_id: u32,
    /// The peer's identity key, 33 bytes.
    pub identity: Vec<u8>,
    /// Id of the signed prekey.
    pub signed_id: u32,
    /// The signed prekey, 33 bytes.
    pub signed: Vec<u8>,
    /// The identity's signature over those 33 bytes: 64 bytes.
    pub signature: Vec<u8>,
    /// A one-time prekey, if the server had one left.
    pub one_time: Option<OneTimeIn>,
}

/// A bundle whose keys are well-formed and whose signature verified. That the identity is the right one, nothing here says.
#[derive(Debug, Clone)]
pub struct PreKeyBundle {
    pub(super) registration_id: u32,
    pub(super) identity: PublicKey,
    pub(super) signed: (u32, PublicKey),
    pub(super) one_time: Option<(u32, PublicKey)>,
}

impl PreKeyBundleIn {
    /// Checks the keys and, always, the signature.
    ///
    /// # Errors
    /// [`SignalError::BadBundle`].
    pub fn validate(&self) -> Result<PreKeyBundle, SignalError> {
        let key = |bytes: &[u8], what| PublicKey::from_bytes(bytes).map_err(|_| SignalError::BadBundle(what));
        let identity = key(&self.identity, "the identity key is malformed")?;
        let signed = key(&self.signed, "the signed prekey is malformed")?;
        if self.signature.len() != stvor_crypto::xeddsa::SIGNATURE_BYTES {
            return Err(SignalError::BadBundle("the signature of the signed prekey is absent or malformed"));
        }
        identity
            .verify(&signed.to_bytes(), &self.signature)
            .map_err(|_| SignalError::BadBundle("the signature of the signed prekey does not verify"))?;
        let one_time = match &self.one_time {
            Some(prekey) => Some((prekey.id, key(&prekey.public, "the one-time prekey is malformed")?)),
            None => None,
        };
        let signed = (self.signed_id, signed);
        Ok(PreKeyBundle { registration_id: self.registration_id, identity, signed, one_time })
    }
}

impl PreKeyBundle {
    /// The identity that the bundle is of: judge it before a session is stored.
    #[must_use]
    pub fn identity(&self) -> [u8; keys::PUBLIC_KEY] {
        self.identity.to_bytes()
    }
}
