//! Published vectors: FIPS 180-4, RFC 4231, RFC 5869, RFC 6979, and one implementation against another.

#![allow(clippy::unwrap_used)] // Clippy exempts `#[test]` functions, not their helpers.

use stvor_crypto::kdf;
use stvor_crypto::kem::{DecapsulationKey, EncapsulationKey};
use stvor_crypto::p256::{AgreementKey, SigningKey};
use stvor_crypto::random::{DeterministicRandom, Random};
use stvor_crypto::{CryptoError, Secret, SystemRandom};

fn unhex(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap()
}

fn secret<const N: usize>(text: &str) -> Secret<N> {
    Secret::from_slice(&unhex(text)).unwrap()
}

#[test]
fn sha_2_hashes_its_published_examples() {
    assert_eq!(
        hex::encode(kdf::sha256(&[b"a", b"", b"bc"])),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    assert_eq!(
        hex::encode(kdf::sha512(&[b"ab", b"c"])),
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
         2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
    );
    let million = vec![b'a'; 1_000_000];
    assert_eq!(
        hex::encode(kdf::sha256(&[&million])),
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
    );
}

#[test]
fn hmac_follows_rfc_4231() {
    let tag = kdf::hmac_sha256(b"Jefe", &[b"what do ya want ", b"for nothing?"]);
    let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
    assert_eq!(hex::encode(tag.expose()), expected);
    // Case 6: a key longer than a block.
    let tag = kdf::hmac_sha256(&[0xaa; 131], &[b"Test Using Larger Than Block-Size Key - Hash Key First"]);
    let expected = "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54";
    assert_eq!(hex::encode(tag.expose()), expected);
}

#[test]
fn hkdf_follows_rfc_5869() {
    let okm = kdf::hkdf_sha256::<42>(
        &unhex("000102030405060708090a0b0c"),
        &[0x0b; 22],
        &unhex("f0f1f2f3f4f5f6f7f8f9"),
    );
    assert_eq!(
        hex::encode(okm.expose()),
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    );
    // Case 3: no salt, no info.
    let okm = kdf::hkdf_sha256::<42>(b"", &[0x0b; 22], b"");
    assert_eq!(
        hex::encode(okm.expose()),
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    );
}

#[test]
fn deterministic_signatures_follow_rfc_6979_with_low_s() {
    // A.2.5, message "sample", SHA-256. Its s is in the upper half, so ours is n - s.
    let key =
        SigningKey::from_bytes(&secret("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721"))
            .unwrap();
    assert_eq!(
        hex::encode(key.public().as_bytes()),
        "0460fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6\
         7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299"
    );
    let signature = key.sign_deterministic(b"sam", b"ple").unwrap();
    assert_eq!(
        hex::encode(&signature.as_bytes()[..32]),
        "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716"
    );
    // n - f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8
    assert_eq!(
        hex::encode(&signature.as_bytes()[32..]),
        "0834e36ad29a83bf2bc9385e491d6099c8fdf9d1ed67aa7ea5f51f93782857a9"
    );
    assert!(key.public().verify(b"sample", b"", &signature).is_ok());
}

#[test]
fn both_signature_implementations_verify_each_other() {
    let mut rng = DeterministicRandom::from_label("signature twins");
    for round in 0..50u8 {
        let key = SigningKey::generate(&mut rng).unwrap();
        let message = vec![round; usize::from(round)];
        let fast = key.sign(b"label", &message).unwrap();
        let twin = key.sign_with(&mut rng, b"label", &message).unwrap();
        assert_eq!(twin, key.sign_deterministic(b"label", &message).unwrap());
        assert_ne!(fast, key.sign_with(&mut SystemRandom::new(), b"label", &message).unwrap());
        let verifier = p256::ecdsa::VerifyingKey::from_sec1_bytes(key.public().as_bytes()).unwrap();
        for signature in [fast, twin] {
            assert!(key.public().verify(b"label", &message, &signature).is_ok());
            let foreign = p256::ecdsa::Signature::from_slice(signature.as_bytes()).unwrap();
            let text = [b"label", &message[..]].concat();
            assert!(p256::ecdsa::signature::Verifier::verify(&verifier, &text, &foreign).is_ok());
            // The upper half of the pair verifies in the library and is refused here.
            let (r, s) = foreign.split_scalars();
            let high = p256::ecdsa::Signature::from_scalars(*r, -*s).unwrap();
            assert!(p256::ecdsa::signature::Verifier::verify(&verifier, &text, &high).is_ok());
            let refused = stvor_crypto::p256::Signature::from_bytes(&high.to_bytes());
            assert_eq!(refused, Err(CryptoError::BadSignature));
        }
    }
}

#[test]
fn both_agreement_implementations_agree() {
    let mut rng = DeterministicRandom::from_label("agreement twins");
    for _ in 0..20 {
        let ours = AgreementKey::generate(&mut rng).unwrap();
        let fresh = AgreementKey::generate(&mut SystemRandom::new()).unwrap();
        let twin = p256::SecretKey::from_slice(fresh.to_bytes().expose()).unwrap();
        let point = p256::PublicKey::from_sec1_bytes(ours.public().as_bytes()).unwrap();
        let expected = p256::ecdh::diffie_hellman(twin.to_nonzero_scalar(), point.as_affine());
        assert_eq!(fresh.agree(ours.public()).unwrap().expose()[..], expected.raw_secret_bytes()[..]);
        assert_eq!(ours.agree(fresh.public()).unwrap(), fresh.agree(ours.public()).unwrap());
        let restored = AgreementKey::from_bytes(&fresh.to_bytes()).unwrap();
        assert_eq!(restored.public(), fresh.public());
    }
}

#[test]
fn both_kem_implementations_open_each_other() {
    let mut rng = DeterministicRandom::from_label("kem twins");
    for _ in 0..10 {
        let key = DecapsulationKey::generate(&mut rng).unwrap();
        let restored = DecapsulationKey::from_bytes(&key.to_bytes()).unwrap();
        assert_eq!(restored.public(), key.public());
        let public = EncapsulationKey::from_bytes(key.public().as_bytes()).unwrap();
        let (reproducible, first) = public.encapsulate(&mut rng).unwrap();
        let (fresh, second) = public.encapsulate(&mut SystemRandom::new()).unwrap();
        assert_ne!(reproducible, fresh);
        let twin = ml_kem::DecapsulationKey::<ml_kem::MlKem768>::from_seed((*key.to_bytes().expose()).into());
        for (ciphertext, secret) in [(reproducible, first), (fresh, second)] {
            assert_eq!(restored.decapsulate(&ciphertext).unwrap(), secret);
            let opened = ml_kem::Decapsulate::decapsulate(&twin, &(*ciphertext.as_bytes()).into());
            assert_eq!(opened[..], secret.expose()[..]);
            // Implicit rejection: a changed ciphertext gives the same other secret in both.
            let mut changed = *ciphertext.as_bytes();
            changed[7] ^= 1;
            let opened = ml_kem::Decapsulate::decapsulate(&twin, &changed.into());
            let ours =
                restored.decapsulate(&stvor_crypto::kem::Ciphertext::from_bytes(&changed).unwrap()).unwrap();
            assert_eq!(opened[..], ours.expose()[..]);
            assert!(ours != secret);
        }
    }
}

#[test]
fn both_aead_implementations_open_each_other() {
    use aes_gcm::KeyInit;
    use aes_gcm::aead::{Aead, Payload};
    let mut rng = DeterministicRandom::from_label("aead twins");
    for length in [0usize, 1, 15, 16, 17, 64, 1000] {
        let key = Secret::<32>::random(&mut rng).unwrap();
        let mut nonce = [0; 12];
        rng.fill(&mut nonce).unwrap();
        let text = vec![length as u8; length];
        let mut ours = text.clone();
        stvor_crypto::aead::Aes256Gcm::new(&key).seal(&nonce, b"aad", &mut ours).unwrap();
        let twin = aes_gcm::Aes256Gcm::new(key.expose().into());
        let theirs = twin.encrypt(&nonce.into(), Payload { msg: &text, aad: b"aad" }).unwrap();
        assert_eq!(ours, theirs);
    }
}

#[test]
fn the_reproducible_stream_is_hmac_of_a_counter_however_it_is_cut() {
    let mut whole = [0; 100];
    DeterministicRandom::new([7; 32]).fill(&mut whole).unwrap();
    let mut expected = Vec::new();
    for counter in 0..4u64 {
        expected.extend_from_slice(kdf::hmac_sha256(&[7; 32], &[&counter.to_be_bytes()]).expose());
    }
    assert_eq!(whole[..], expected[..100]);
    let mut cut = DeterministicRandom::new([7; 32]);
    let mut parts = [0; 100];
    for part in parts.chunks_mut(7) {
        cut.fill(part).unwrap();
    }
    assert_eq!(whole, parts);
    let passed_on: &mut dyn Random = &mut &mut cut;
    assert!(passed_on.deterministic());
}
