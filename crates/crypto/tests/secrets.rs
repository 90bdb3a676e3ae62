//! Secrets do not show, do not compare early, and keys are parsed strictly.

use std::collections::HashSet;

use proptest::prelude::*;
use stvor_base::ErrorCode;
use stvor_crypto::aead::Aes256Gcm;
use stvor_crypto::kem::{self, Ciphertext, DecapsulationKey, EncapsulationKey};
use stvor_crypto::p256::{self, AgreementKey, PublicKey, Signature, SigningKey};
use stvor_crypto::random::DeterministicRandom;
use stvor_crypto::suite::Suite;
use stvor_crypto::{CryptoError, Secret, SecretBytes, Shielded, SystemRandom, secret};

fn rng() -> DeterministicRandom {
    DeterministicRandom::from_label("secrets")
}

#[test]
fn debug_shows_no_secret() {
    let mut rng = rng();
    let agreement = AgreementKey::generate(&mut rng).unwrap();
    let signing = SigningKey::generate(&mut rng).unwrap();
    let decapsulation = DecapsulationKey::generate(&mut rng).unwrap();
    let key = Secret::<32>::new([0xab; 32]);
    let snapshots = [
        (format!("{key:?}"), "[redacted]"),
        (format!("{:?}", SecretBytes::from(&key)), "[redacted]"),
        (format!("{:?}", Aes256Gcm::new(&key)), "[redacted]"),
        (format!("{:?}", Shielded::new(key.expose()).unwrap()), "[shielded]"),
        (format!("{:?}", DeterministicRandom::new([0xab; 32])), "DeterministicRandom([redacted])"),
    ];
    for (shown, expected) in snapshots {
        assert_eq!(shown, expected);
    }
    let hidden = |shown: String, secret: &[u8]| {
        assert!(shown.len() < 120, "{shown}");
        assert!(!shown.contains(&hex::encode(&secret[..4])), "{shown}");
        assert!(!shown.contains(&format!("{:?}", &secret[..4])), "{shown}");
    };
    hidden(format!("{agreement:?}"), agreement.to_bytes().expose());
    hidden(format!("{signing:?}"), signing.to_bytes().expose());
    hidden(format!("{decapsulation:?}"), decapsulation.to_bytes().expose());
    let public = hex::encode(&agreement.public().as_bytes()[1..5]);
    assert_eq!(format!("{agreement:?}"), format!("AgreementKey {{ public: PublicKey({public}..), .. }}"));
    let signature = signing.sign_deterministic(b"", b"").unwrap();
    assert_eq!(format!("{signature:?}"), format!("Signature({}..)", hex::encode(&signature.as_bytes()[..4])));
    let (ciphertext, _) = decapsulation.public().encapsulate(&mut rng).unwrap();
    assert_eq!(format!("{ciphertext:?}"), "Ciphertext(1088 bytes)");
}

#[test]
fn secrets_hold_their_bytes_and_their_length() {
    assert_eq!(
        Secret::<32>::from_slice(&[0; 31]).err(),
        Some(CryptoError::BadLength { expected: 32, got: 31 })
    );
    assert_eq!(
        Secret::<32>::from_slice(&[0; 33]).err(),
        Some(CryptoError::BadLength { expected: 32, got: 33 })
    );
    let mut secret = Secret::<4>::from_slice(b"abcd").unwrap();
    let copy = secret.duplicate();
    secret.expose_mut()[0] = b'x';
    assert_eq!(secret.expose(), b"xbcd");
    assert!(secret != copy);
    let mut bytes = SecretBytes::from_slice(b"abcdef");
    let copy = bytes.duplicate();
    bytes.truncate(9);
    assert_eq!((bytes.len(), bytes.is_empty()), (6, false));
    bytes.truncate(2);
    bytes.expose_mut()[1] = b'!';
    assert_eq!(bytes.expose(), b"a!");
    assert!(bytes != copy && bytes != SecretBytes::default());
    assert!(SecretBytes::default().is_empty());
    assert_eq!(copy.into_exposed(), b"abcdef");
}

#[test]
fn zeroize_clears_a_secret_in_place() {
    use zeroize::Zeroize;
    let mut secret = Secret::new([7; 64]);
    secret.zeroize();
    assert_eq!(secret.expose(), &[0; 64]);
    fn wiped_on_drop<T: zeroize::ZeroizeOnDrop>() {}
    wiped_on_drop::<Secret<32>>();
    wiped_on_drop::<SecretBytes>();
}

#[test]
fn a_shielded_secret_opens_to_itself_each_time() {
    for length in [0, 1, 32, 5000] {
        let bytes = vec![0x5a; length];
        let shielded = Shielded::new(&bytes).unwrap();
        assert_eq!((shielded.len(), shielded.is_empty()), (length, length == 0));
        for _ in 0..2 {
            assert!(shielded.open(|opened| opened == bytes).unwrap());
        }
    }
    // Locking may be refused by a limit; asking must not fail.
    let _ = secret::is_locked();
}

#[test]
fn scalars_are_accepted_in_range_only() {
    let order = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    let below = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632550";
    let one = format!("{:064x}", 1);
    for (text, good) in
        [(order, false), (below, true), (&one, true), (&"0".repeat(64), false), (&"f".repeat(64), false)]
    {
        let scalar = Secret::from_slice(&hex::decode(text).unwrap()).unwrap();
        assert_eq!(AgreementKey::from_bytes(&scalar).is_ok(), good, "{text}");
        assert_eq!(SigningKey::from_bytes(&scalar).is_ok(), good, "{text}");
    }
}

#[test]
fn public_keys_have_one_form() {
    let key = AgreementKey::generate(&mut rng()).unwrap();
    let good = *key.public().as_bytes();
    assert_eq!(PublicKey::from_bytes(&good).unwrap(), *key.public());
    assert_eq!(PublicKey::try_from(&good[..]).unwrap(), *key.public());
    let compressed = [&[2 + (good[64] & 1)][..], &good[1..33]].concat();
    let mut hybrid = good;
    hybrid[0] = 6 + (good[64] & 1);
    let mut off = good;
    off[64] ^= 1;
    let longer = [&good[..], &[0]].concat();
    let mut identity = [0; 65];
    identity[0] = 4;
    let mut unreduced = [0xff; 65];
    unreduced[0] = 4;
    for bad in [&compressed, &hybrid[..], &off, &longer, &good[..64], &[], &[0], &identity, &unreduced] {
        assert_eq!(PublicKey::from_bytes(bad).err(), Some(CryptoError::BadKey), "{}", hex::encode(bad));
    }
    let other = AgreementKey::generate(&mut SystemRandom::new()).unwrap();
    let set = HashSet::from([key.public().clone(), key.public().clone(), other.public().clone()]);
    assert_eq!(set.len(), 2);
    let smaller = key.public().min(other.public());
    assert_eq!(smaller.as_bytes(), key.public().as_bytes().min(other.public().as_bytes()));
}

#[test]
fn signatures_bind_label_message_and_key() {
    let mut rng = rng();
    let key = SigningKey::generate(&mut rng).unwrap();
    let other = SigningKey::generate(&mut rng).unwrap();
    let signature = key.sign(b"label", b"message").unwrap();
    let refused = Err(CryptoError::BadSignature);
    assert_eq!(key.public().verify(b"label", b"message", &signature), Ok(()));
    assert_eq!(key.public().verify(b"lable", b"message", &signature), refused);
    assert_eq!(key.public().verify(b"label", b"messages", &signature), refused);
    assert_eq!(other.public().verify(b"label", b"message", &signature), refused);
    for bit in 0..512 {
        let mut changed = *signature.as_bytes();
        changed[bit / 8] ^= 1 << (bit % 8);
        let verdict = Signature::from_bytes(&changed)
            .and_then(|signature| key.public().verify(b"label", b"message", &signature));
        assert_eq!(verdict, refused, "bit {bit}");
    }
    for length in [0, 63, 65] {
        assert_eq!(Signature::from_bytes(&vec![1; length]).err(), Some(CryptoError::BadSignature));
    }
    assert_eq!(Signature::from_bytes(&[0; 64]).err(), Some(CryptoError::BadSignature));
    assert_eq!(Signature::try_from(&signature.as_bytes()[..]), Ok(signature));
    let restored = SigningKey::from_bytes(&key.to_bytes()).unwrap();
    assert_eq!(restored.public(), key.public());
}

#[test]
fn kem_values_are_parsed_by_length_and_form() {
    let key = DecapsulationKey::generate(&mut rng()).unwrap();
    let public = key.public().as_bytes();
    assert_eq!(EncapsulationKey::try_from(&public[..]).unwrap(), *key.public());
    let mut unreduced = *public;
    unreduced[..3].fill(0xff);
    for bad in [&unreduced[..], &public[1..], &[&public[..], &[0]].concat(), &[]] {
        assert_eq!(EncapsulationKey::from_bytes(bad).err(), Some(CryptoError::BadKey));
    }
    for length in [0, kem::CIPHERTEXT_BYTES - 1, kem::CIPHERTEXT_BYTES + 1] {
        let expected = CryptoError::BadLength { expected: kem::CIPHERTEXT_BYTES, got: length };
        assert_eq!(Ciphertext::try_from(&vec![0; length][..]).err(), Some(expected));
    }
}

#[test]
fn codes_are_distinct_and_stable() {
    let all = [
        (CryptoError::BadKey, "BAD_KEY"),
        (CryptoError::BadSignature, "BAD_SIGNATURE"),
        (CryptoError::DecryptFailed, "DECRYPT_FAILED"),
        (CryptoError::BadLength { expected: 1, got: 2 }, "BAD_LENGTH"),
        (CryptoError::AgreementFailed, "AGREEMENT_FAILED"),
        (CryptoError::BadParameter("salt"), "BAD_PARAMETER"),
        (CryptoError::RandomnessUnhealthy, "RNG_UNHEALTHY"),
        (CryptoError::RandomnessUnavailable, "RNG_UNAVAILABLE"),
        (CryptoError::Internal("test"), "CRYPTO_INTERNAL"),
    ];
    for (error, code) in all {
        assert_eq!(error.code(), code);
        assert_eq!(error.render(), format!("{error} [{code}]"));
        assert_eq!(error.retryable(), code == "RNG_UNAVAILABLE");
    }
    assert_eq!((Suite::P256.number(), Suite::P256.name()), (1, "P256"));
    assert_eq!((Suite::X25519.number(), Suite::X25519.name()), (2, "X25519"));
    assert_eq!(Suite::from_number(3), None);
    assert_eq!((p256::PUBLIC_KEY_BYTES, p256::PRIVATE_KEY_BYTES, p256::SIGNATURE_BYTES), (65, 32, 64));
}

proptest! {
    #[test]
    fn sealed_bytes_open_only_unchanged(
        text in proptest::collection::vec(any::<u8>(), 0..300),
        aad in proptest::collection::vec(any::<u8>(), 0..50),
        flip in any::<proptest::sample::Index>(),
    ) {
        let key = Aes256Gcm::new(&Secret::new([3; 32]));
        let mut sealed = text.clone();
        key.seal(&[1; 12], &aad, &mut sealed).unwrap();
        let mut separate = text.clone();
        let tag = key.seal_in_place_separate_tag(&[1; 12], &aad, &mut separate).unwrap();
        prop_assert_eq!([&separate[..], &tag].concat(), sealed.clone());
        prop_assert_eq!(key.open_in_place_separate_tag(&[1; 12], &aad, &tag, &mut separate), Ok(()));
        prop_assert_eq!(&separate, &text);
        let mut opened = sealed.clone();
        prop_assert_eq!(&*key.open(&[1; 12], &aad, &mut opened).unwrap(), &text[..]);
        let mut changed = sealed.clone();
        let bit = flip.index(changed.len() * 8);
        changed[bit / 8] ^= 1 << (bit % 8);
        let refused = Some(CryptoError::DecryptFailed);
        prop_assert_eq!(key.open(&[1; 12], &aad, &mut changed).err(), refused);
        prop_assert_eq!(key.open(&[2; 12], &aad, &mut sealed.clone()).err(), refused);
        prop_assert_eq!(key.open(&[1; 12], &[&aad[..], b"x"].concat(), &mut sealed.clone()).err(), refused);
        let other = Aes256Gcm::new(&Secret::new([4; 32]));
        prop_assert_eq!(other.open(&[1; 12], &aad, &mut sealed.clone()).err(), refused);
        let (text, tag) = sealed.split_at_mut(text.len());
        let mut tag: [u8; 16] = (*tag).try_into().unwrap();
        tag[0] ^= 1;
        prop_assert_eq!(key.open_in_place_separate_tag(&[1; 12], &aad, &tag, text).err(), refused);
        prop_assert_eq!(key.open(&[1; 12], &aad, &mut [0; 15]).err(), refused);
    }

    #[test]
    fn parsers_never_panic_and_return_what_they_took(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        if let Ok(key) = PublicKey::from_bytes(&bytes) {
            prop_assert_eq!(&key.as_bytes()[..], &bytes[..]);
        }
        if let Ok(signature) = Signature::from_bytes(&bytes) {
            prop_assert_eq!(&signature.as_bytes()[..], &bytes[..]);
        }
    }
}
