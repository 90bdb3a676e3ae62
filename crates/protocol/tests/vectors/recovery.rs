//! Identities that follow from a secret. The file was made by a third implementation, in another language.

use stvor_base::{Address, AppId, DeviceId, Timestamp, UserId};
use stvor_crypto::kdf::sha256;
use stvor_crypto::random::DeterministicRandom;
use stvor_crypto::{Secret, SecretBytes};
use stvor_protocol::*;

use super::consume::{array, bytes, number, text};
use super::{frozen, suite};

/// Made elsewhere, so as it stands.
pub fn cases() -> serde_json::Value {
    frozen("recovery.json")
}

#[test]
fn a_recovery_secret_gives_the_frozen_identity_and_device_list() {
    let file = frozen("recovery.json");
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    let mut keys = Vec::new();
    for case in cases {
        let (app, user) =
            (AppId::new(text(&case["app"])).unwrap(), UserId::new(text(&case["user"])).unwrap());
        let address = Address::new(user.clone(), DeviceId::new(number(&case["device"])).unwrap());
        let root = match case["entropy"].as_str() {
            Some(_) => {
                let entropy = Secret::new(array(&case["entropy"]));
                RecoveryRoot::stretch(suite(), RecoverySecret::Phrase(&entropy), &app, &user)
            }
            None => {
                let words = SecretBytes::from_slice(text(&case["passphrase"]).as_bytes());
                RecoveryRoot::stretch(suite(), RecoverySecret::Passphrase(&words), &app, &user)
            }
        };
        let mut rng = DeterministicRandom::from_label("any");
        let now = Timestamp::from_millis(1);
        let (identity, _) = Identity::recover(&app, &address, (&root.unwrap(), now), &mut rng).unwrap();
        assert_eq!(identity.user_key()[..], bytes(&case["user_public"]));
        assert_eq!(identity.device_key()[..], bytes(&case["signing_public"]));
        let list = identity.signed_list();
        assert_eq!(list.bytes, bytes(&case["device_list"]));
        assert_eq!(sha256(&[&list.bytes])[..], bytes(&case["device_list_hash"]));
        assert!(list.validate(&app, &user).is_ok());
        keys.push(bytes(&case["user_public"]));
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 4, "each user, device and secret has keys of its own");
}
