//! A device's proof that a send counter is its own.
//!
//! A relay that gives back the highest counter that it saw can hold it back, or give an earlier one. With the MAC it can not
//! make one up: so it can not drive a device that was never rolled back to throw its sessions away. See "Rollback" in the
//! specification.

use core::fmt;

use stvor_base::codec::Writer;
use stvor_crypto::Secret;
use stvor_crypto::kdf::{hkdf_sha256_unsalted, hmac_sha256};

use crate::error::ProtocolError;
use crate::identity::Identity;

/// The same for every suite: what it leads to is an HMAC.
const LABEL: &[u8] = b"STVOR 1 send counter";

/// Bytes of the proof: a whole HMAC-SHA256.
pub const COUNTER_MAC: usize = 32;

/// The key of the proofs of one device: it follows from the device's keys, is of no use for anything else, and changes with
/// the identity.
///
/// ```
/// use stvor_base::{Address, AppId, DeviceId, Timestamp, UserId};
/// use stvor_crypto::SystemRandom;
/// use stvor_protocol::Identity;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (app, address) = (AppId::new("acme")?, Address::new(UserId::new("alice")?, DeviceId::FIRST));
/// let (alice, _) = Identity::create(&app, &address, Timestamp::from_millis(0), &mut SystemRandom::new())?;
/// let key = alice.counter_key()?;
/// assert!(key.proves(7, &key.mac(7)));
/// assert!(!key.proves(8, &key.mac(7)));
/// # Ok(()) }
/// ```
pub struct CounterKey(Secret<32>);

impl fmt::Debug for CounterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CounterKey([redacted])")
    }
}

impl CounterKey {
    /// Of the scalars of signing and agreement key, 32 bytes each, for one device of one app.
    pub(crate) fn derive(identity: &Identity, scalars: &[u8]) -> Self {
        let mut info = Writer::new();
        info.raw(LABEL).bytes(identity.app().as_str().as_bytes());
        identity.address().encode(&mut info);
        Self(hkdf_sha256_unsalted::<32>(scalars, info.as_slice()))
    }

    /// The proof of a counter, 32 bytes.
    #[must_use]
    pub fn mac(&self, counter: u64) -> [u8; COUNTER_MAC] {
        *hmac_sha256(self.0.expose(), &[&counter.to_be_bytes()]).expose()
    }

    /// Whether this device made the proof, for this counter. Takes the same time for every wrong one.
    #[must_use]
    pub fn proves(&self, counter: u64, mac: &[u8; COUNTER_MAC]) -> bool {
        hmac_sha256(self.0.expose(), &[&counter.to_be_bytes()]) == Secret::new(*mac)
    }
}

impl Identity {
    /// The key with which this device proves its send counters.
    ///
    /// # Errors
    /// [`ProtocolError::Crypto`] when the keys can not be opened.
    pub fn counter_key(&self) -> Result<CounterKey, ProtocolError> {
        Ok(self.device_scalars(|scalars| CounterKey::derive(self, scalars))?)
    }
}

#[cfg(test)]
mod tests {
    use stvor_base::{Address, AppId, DeviceId, Timestamp, UserId};
    use stvor_crypto::random::DeterministicRandom;

    use super::*;

    fn identity(app: &str, user: &str, device: u32, seed: &str) -> Identity {
        let address = Address::new(UserId::new(user).unwrap(), DeviceId::new(device).unwrap());
        let mut rng = DeterministicRandom::from_label(seed);
        Identity::create(&AppId::new(app).unwrap(), &address, Timestamp::from_millis(1), &mut rng).unwrap().0
    }

    #[test]
    fn a_proof_holds_for_its_counter_and_its_device_only() {
        let own = identity("acme", "alice", 1, "a").counter_key().unwrap();
        let mac = own.mac(41);
        assert!(own.proves(41, &mac));
        assert!(!own.proves(40, &mac) && !own.proves(42, &mac) && !own.proves(41, &[0; 32]));
        // The same keys under another name, device or app, and other keys under the same.
        for other in [
            identity("acme", "alicia", 1, "a"),
            identity("acme", "alice", 2, "a"),
            identity("acme2", "alice", 1, "a"),
            identity("acme", "alice", 1, "b"),
        ] {
            assert!(!other.counter_key().unwrap().proves(41, &mac));
        }
        for bit in 0..256 {
            let mut flipped = mac;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!own.proves(41, &flipped), "{bit}");
        }
    }

    #[test]
    fn a_proof_survives_the_store_and_prints_no_key() {
        let made = identity("acme", "alice", 1, "a");
        let record = made.to_record().unwrap();
        let (before, after) =
            (made.counter_key().unwrap(), Identity::from_record(&record).unwrap().counter_key().unwrap());
        assert!(after.proves(9, &before.mac(9)));
        assert_eq!(format!("{after:?}"), "CounterKey([redacted])");
    }
}
