//! FIDO2 credentials from making to removing, on a token in memory.
#![cfg(feature = "fido2")]
#![allow(clippy::unwrap_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use stvor_crypto::SecretBytes;
use stvor_keys::KeyError;
use stvor_keys::fido2::{Ask, Assertion, Credential, Ctap2, Fido2Token, Presence};
use stvor_testkit::SoftAuthenticator;

fn pin(text: &str) -> SecretBytes {
    SecretBytes::from_slice(text.as_bytes())
}

fn ask(
    token: &mut SoftAuthenticator,
    credential: &Credential,
    (salt, challenge): (u8, u8),
    pin: Option<&SecretBytes>,
) -> Result<Assertion, KeyError> {
    let (salt, challenge) = ([salt; 32], [challenge; 32]);
    Ctap2::new(token).ask(&Ask { credential: &credential.id, salt: &salt, challenge: &challenge, pin })
}

#[test]
fn a_credential_lives_from_registration_to_removal() {
    for two in [false, true] {
        let mut token = SoftAuthenticator::new(Some("1234"), two).unwrap();
        let right = pin("1234");
        assert!(Ctap2::new(&mut token).list(&right).unwrap().is_empty());
        let first = Ctap2::new(&mut token).register("vault", Some(&right)).unwrap();
        let other = Ctap2::new(&mut token).register("vault", Some(&right)).unwrap();
        let mut listed = Ctap2::new(&mut token).list(&right).unwrap();
        listed.sort();
        let mut made = [first.id.clone(), other.id.clone()];
        made.sort();
        assert_eq!(listed, made);

        let answer = ask(&mut token, &first, (1, 7), Some(&right)).unwrap();
        answer.presence.verify(&first.public, &[7; 32]).unwrap();
        let again = ask(&mut token, &first, (1, 8), Some(&right)).unwrap();
        assert!(answer.secret == again.secret, "one salt, one secret");
        assert!(ask(&mut token, &first, (2, 7), Some(&right)).unwrap().secret != answer.secret);
        assert!(ask(&mut token, &other, (1, 7), Some(&right)).unwrap().secret != answer.secret);

        Ctap2::new(&mut token).remove(&first.id, &right).unwrap();
        assert!(matches!(ask(&mut token, &first, (1, 7), Some(&right)), Err(KeyError::Token(_))));
        assert!(matches!(Ctap2::new(&mut token).remove(&first.id, &right), Err(KeyError::Token(_))));
        assert_eq!(Ctap2::new(&mut token).list(&right).unwrap(), [other.id]);
    }
}

#[test]
fn presence_is_of_one_credential_one_challenge_and_a_touch() {
    let mut token = SoftAuthenticator::new(Some("1234"), true).unwrap();
    let right = pin("1234");
    let right = Some(&right);
    let [first, other] = [(); 2].map(|()| Ctap2::new(&mut token).register("vault", right).unwrap());
    let presence = ask(&mut token, &first, (1, 7), right).unwrap().presence;
    presence.verify(&first.public, &[7; 32]).unwrap();
    assert!(presence.verify(&first.public, &[8; 32]).is_err(), "another challenge");
    assert!(presence.verify(&other.public, &[7; 32]).is_err(), "another credential");
    for at in 0..presence.authenticator_data.len() {
        let mut changed = presence.clone();
        changed.authenticator_data[at] ^= 1;
        assert!(changed.verify(&first.public, &[7; 32]).is_err(), "{at}");
    }
    let cut = Presence { signature: presence.signature[1..].to_vec(), ..presence };
    assert!(cut.verify(&first.public, &[7; 32]).is_err());
    token.touched = false;
    assert!(matches!(ask(&mut token, &first, (1, 7), right), Err(KeyError::Token(_))));
    token.present = false;
    assert!(matches!(ask(&mut token, &first, (1, 7), right), Err(KeyError::Token(_))));
}

#[test]
fn a_token_without_a_pin_is_not_enrolled_since_a_later_one_would_change_its_secrets() {
    for two in [false, true] {
        let mut token = SoftAuthenticator::new(None, two).unwrap();
        for given in [None, Some(&pin("1234"))] {
            let refused = Ctap2::new(&mut token).register("vault", given).unwrap_err();
            assert!(matches!(refused, KeyError::Pin(reason) if reason.contains("set one")), "{refused:?}");
        }
        token.set_pin("1234");
        let credential = Ctap2::new(&mut token).register("vault", Some(&pin("1234"))).unwrap();
        let before = ask(&mut token, &credential, (1, 7), Some(&pin("1234"))).unwrap().secret;
        token.set_pin("another one");
        let after = ask(&mut token, &credential, (1, 7), Some(&pin("another one"))).unwrap().secret;
        assert!(before == after, "another PIN changes nothing");
    }
}

#[test]
fn a_wrong_pin_is_told_and_locks_the_token_in_the_end() {
    for two in [false, true] {
        let mut token = SoftAuthenticator::new(Some("1234"), two).unwrap();
        assert!(matches!(Ctap2::new(&mut token).register("vault", None), Err(KeyError::Pin(_))));
        for _ in 0..8 {
            let refused = Ctap2::new(&mut token).register("vault", Some(&pin("4321")));
            assert!(matches!(refused, Err(KeyError::Pin(_))), "{refused:?}");
        }
        let locked = Ctap2::new(&mut token).register("vault", Some(&pin("1234")));
        assert!(matches!(locked, Err(KeyError::Pin(reason)) if reason.contains("locked")));
    }
}

/// A token that answers with these bytes, whatever it is asked.
#[derive(Debug)]
struct Babble(Vec<u8>);

impl stvor_keys::fido2::Ctap2Transport for Babble {
    fn exchange(&mut self, _: &[u8]) -> Result<Vec<u8>, KeyError> {
        Ok(self.0.clone())
    }
}

#[test]
fn a_token_that_babbles_is_refused() {
    let nested = [vec![0], vec![0x81; 5_000]].concat();
    for answer in [vec![], vec![0], vec![0, 0xff], vec![0, 0xa0], vec![0, 0xa0, 0], nested, vec![0; 8_000]] {
        let refused = Ctap2::new(Babble(answer.clone())).register("vault", None);
        assert!(matches!(refused, Err(KeyError::Token(_))), "{answer:?}");
    }
}
