//! What the primitives of one message cost by themselves, called as directly as their libraries allow.
//!
//! Each side of a message: 2 HMAC-SHA-256 (message key and next chain key), 1 HKDF-SHA-256, SHA-256 of the associated
//! data, 12 random bytes, AES-256-GCM key set-up and seal or open at the padded length. A ping-pong message adds what
//! turning the ratchet needs: a P-256 key pair, 2 ECDH and 2 HKDF of 64 bytes. The libraries are those that are fastest
//! at each, independent of what `stvor-crypto` wraps.
//!
//! A message of Signal's protocol, version 3, has on each side: 2 HMAC-SHA-256 of the chain, 1 HKDF-SHA-256 of 80 bytes,
//! AES-256-CBC key set-up and encryption or decryption, and HMAC-SHA-256 of identities and message. A ping-pong message adds an
//! X25519 key pair, 2 agreements and 2 HKDF of 64 bytes.

use std::hint::black_box;

use aes::Aes256;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{Algorithm, ECDH_P256, PrivateKey, UnparsedPublicKey, X25519, agree};
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt as _, BlockModeEncrypt as _, KeyIvInit as _};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use rand::Rng as _;
use sha2::{Digest as _, Sha256};

use crate::Outcome;

/// Bytes under the seal of a message in the smallest bucket: 512 less envelope (27), header (85) and tag (16).
pub const PADDED: usize = 384;

/// Bytes that the associated data of such a message hashes: label and suite, both ends, envelope and header.
pub const ASSOCIATED: usize = 480;

/// What both sides of a chain share, and one message of it.
pub struct Floor {
    chain: [u8; 32],
    associated: Vec<u8>,
    padded: Vec<u8>,
    sealed: Vec<u8>,
    nonce: [u8; 12],
    own: PrivateKey,
    theirs: Vec<u8>,
}

fn failed<E>(_unspecified: E) -> Box<dyn std::error::Error + Send + Sync> {
    "a primitive refused the floor's input".into()
}

fn hmac(key: &[u8; 32], input: u8) -> Outcome<[u8; 32]> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(failed)?;
    mac.update(&[input]);
    Ok(mac.finalize().into_bytes().into())
}

fn hkdf<const N: usize>(salt: &[u8], secret: &[u8]) -> Outcome<[u8; N]> {
    let mut out = [0; N];
    Hkdf::<Sha256>::new(Some(salt), secret).expand(b"STVOR floor of a message", &mut out).map_err(failed)?;
    Ok(out)
}

/// One turn of a ratchet on a curve: a key pair, two agreements, two steps of the root chain.
fn turn(
    curve: &'static Algorithm,
    (own, theirs): (&PrivateKey, &[u8]),
    root: &[u8; 32],
) -> Outcome<[u8; 64]> {
    let fresh = PrivateKey::generate(curve)?;
    black_box(fresh.compute_public_key()?);
    let step = |key: &PrivateKey, root: &[u8]| -> Outcome<[u8; 64]> {
        let theirs = UnparsedPublicKey::new(curve, theirs);
        agree(key, theirs, failed(()), |secret| hkdf::<64>(root, secret))
    };
    let received = step(own, root)?;
    step(&fresh, &received[..32])
}

impl Floor {
    /// A message of [`PADDED`] bytes, ready to be sealed and opened again and again.
    ///
    /// # Errors
    /// When a primitive refuses.
    pub fn new() -> Outcome<Self> {
        let theirs = PrivateKey::generate(&ECDH_P256)?.compute_public_key()?.as_ref().to_vec();
        let mut floor = Self {
            chain: [7; 32],
            associated: vec![1; ASSOCIATED],
            padded: vec![2; PADDED],
            sealed: Vec::new(),
            nonce: [0; 12],
            own: PrivateKey::generate(&ECDH_P256)?,
            theirs,
        };
        floor.sealed = floor.seal_at([0; 12])?;
        Ok(floor)
    }

    fn key(&self) -> Outcome<LessSafeKey> {
        let seed = hmac(&self.chain, 1)?;
        black_box(hmac(&self.chain, 2)?);
        let key: [u8; 32] = hkdf(&[], &seed)?;
        Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key)?))
    }

    fn seal_at(&self, nonce: [u8; 12]) -> Outcome<Vec<u8>> {
        let key = self.key()?;
        let associated: [u8; 32] = Sha256::digest(&self.associated).into();
        let mut out = Vec::with_capacity(PADDED + 16);
        out.extend_from_slice(&self.padded);
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce, Aad::from(associated), &mut out)?;
        Ok(out)
    }

    /// The sending side of a message.
    ///
    /// # Errors
    /// When a primitive refuses.
    pub fn seal(&self) -> Outcome<Vec<u8>> {
        let mut nonce = [0; 12];
        rand::rng().fill_bytes(&mut nonce);
        self.seal_at(nonce)
    }

    /// The receiving side of a message; draws 12 random bytes as the other does.
    ///
    /// # Errors
    /// When a primitive refuses.
    pub fn open(&self) -> Outcome<Vec<u8>> {
        let mut unused = [0; 12];
        rand::rng().fill_bytes(&mut unused);
        black_box(unused);
        let key = self.key()?;
        let associated: [u8; 32] = Sha256::digest(&self.associated).into();
        let mut text = self.sealed.clone();
        let nonce = Nonce::assume_unique_for_key(self.nonce);
        let length = key.open_in_place(nonce, Aad::from(associated), &mut text)?.len();
        text.truncate(length);
        Ok(text)
    }

    /// One turn of the ratchet: a key pair, two agreements, two steps of the root chain.
    ///
    /// # Errors
    /// When a primitive refuses.
    pub fn turn(&self) -> Outcome<[u8; 64]> {
        turn(&ECDH_P256, (&self.own, &self.theirs), &self.chain)
    }

    /// Both sides of a message on a chain.
    ///
    /// # Errors
    /// When a primitive refuses.
    pub fn one_way(&self) -> Outcome<()> {
        black_box((self.seal()?, self.open()?));
        Ok(())
    }

    /// Both sides of a message that answers: [`Floor::one_way`] and [`Floor::turn`].
    ///
    /// # Errors
    /// When a primitive refuses.
    pub fn ping_pong(&self) -> Outcome<()> {
        black_box(self.turn()?);
        self.one_way()
    }
}

/// What both sides of a chain of Signal's protocol share, and one message of it.
pub struct SignalFloor {
    chain: [u8; 32],
    text: Vec<u8>,
    sealed: Vec<u8>,
    own: PrivateKey,
    theirs: Vec<u8>,
}

/// Bytes that the MAC of such a message is over besides the ciphertext: both identities, version, ratchet key and numbers.
const AUTHENTICATED: usize = 2 * 33 + 1 + 35 + 2 + 2 + 2;

impl SignalFloor {
    /// A message of `text`, ready to be sealed and opened again and again.
    ///
    /// # Errors
    /// When a primitive refuses.
    pub fn new(text: &[u8]) -> Outcome<Self> {
        let theirs = PrivateKey::generate(&X25519)?.compute_public_key()?.as_ref().to_vec();
        let own = PrivateKey::generate(&X25519)?;
        let mut floor = Self { chain: [7; 32], text: text.to_vec(), sealed: Vec::new(), own, theirs };
        floor.sealed = floor.seal()?;
        Ok(floor)
    }

    /// Keys of cipher and MAC, 32 bytes each, and an initialisation vector of 16.
    fn keys(&self) -> Outcome<[u8; 80]> {
        let seed = hmac(&self.chain, 1)?;
        black_box(hmac(&self.chain, 2)?);
        hkdf(&[], &seed)
    }

    fn mac(keys: &[u8; 80], ciphertext: &[u8]) -> Outcome<[u8; 32]> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&keys[32..64]).map_err(failed)?;
        mac.update(&[1; AUTHENTICATED]);
        mac.update(ciphertext);
        Ok(mac.finalize().into_bytes().into())
    }

    /// The sending side of a message.
    ///
    /// # Errors
    /// When a primitive refuses.
    pub fn seal(&self) -> Outcome<Vec<u8>> {
        let keys = self.keys()?;
        let length = self.text.len();
        let mut out = vec![0; length + 16 - length % 16];
        out[..length].copy_from_slice(&self.text);
        let cipher = cbc::Encryptor::<Aes256>::new_from_slices(&keys[..32], &keys[64..]).map_err(failed)?;
        cipher.encrypt_padded::<Pkcs7>(&mut out, length).map_err(failed)?;
        black_box(Self::mac(&keys, &out)?);
        Ok(out)
    }

    /// The receiving side of a message.
    ///
    /// # Errors
    /// When a primitive refuses.
    pub fn open(&self) -> Outcome<Vec<u8>> {
        let keys = self.keys()?;
        black_box(Self::mac(&keys, &self.sealed)?);
        let mut text = self.sealed.clone();
        let cipher = cbc::Decryptor::<Aes256>::new_from_slices(&keys[..32], &keys[64..]).map_err(failed)?;
        let length = cipher.decrypt_padded::<Pkcs7>(&mut text).map_err(failed)?.len();
        text.truncate(length);
        Ok(text)
    }

    /// Both sides of a message on a chain.
    ///
    /// # Errors
    /// When a primitive refuses.
    pub fn one_way(&self) -> Outcome<()> {
        black_box((self.seal()?, self.open()?));
        Ok(())
    }

    /// Both sides of a message that answers: [`SignalFloor::one_way`] and a turn of the ratchet.
    ///
    /// # Errors
    /// When a primitive refuses.
    pub fn ping_pong(&self) -> Outcome<()> {
        black_box(turn(&X25519, (&self.own, &self.theirs), &self.chain)?);
        self.one_way()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_and_every_seal_differs() {
        let floor = Floor::new().unwrap();
        assert_eq!(floor.open().unwrap(), vec![2; PADDED]);
        assert_ne!(floor.seal().unwrap(), floor.seal().unwrap());
        assert_ne!(floor.turn().unwrap(), floor.turn().unwrap());
    }

    #[test]
    fn what_the_floor_of_signal_seals_opens() {
        let floor = SignalFloor::new(b"sixteen bytes ok").unwrap();
        assert_eq!(floor.seal().unwrap().len(), 32);
        assert_eq!(floor.open().unwrap(), b"sixteen bytes ok");
        floor.ping_pong().unwrap();
    }
}
