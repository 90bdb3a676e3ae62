//! XSalsa20-Poly1305 as libsodium's secretbox writes it, for reading what older vaults wrote. Nothing is written with it.

use crypto_secretbox::aead::{AeadInPlace, KeyInit};
use crypto_secretbox::{Key, Nonce, Tag, XSalsa20Poly1305};

use crate::{CryptoError, Secret, SecretBytes};

/// Opens a box: 16 bytes of tag, then the ciphertext.
///
/// # Errors
/// [`CryptoError::DecryptFailed`].
pub fn open(key: &Secret<32>, nonce: &[u8; 24], sealed: &[u8]) -> Result<SecretBytes, CryptoError> {
    let (tag, body) = sealed.split_first_chunk::<16>().ok_or(CryptoError::DecryptFailed)?;
    let mut plain = SecretBytes::from_slice(body);
    let opened = XSalsa20Poly1305::new(Key::from_slice(key.expose())).decrypt_in_place_detached(
        Nonce::from_slice(nonce),
        b"",
        plain.expose_mut(),
        Tag::from_slice(tag),
    );
    opened.map(|()| plain).map_err(|_| CryptoError::DecryptFailed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of NaCl's paper "Cryptography in NaCl" (section 10), which each library's tests have.
    #[test]
    fn the_box_of_the_nacl_paper_opens() {
        let key = "1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389";
        let nonce = "69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37";
        let sealed = concat!(
            "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186a",
            "c0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae",
            "90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74",
            "e355a5"
        );
        let bytes = |text: &str| hex::decode(text).unwrap();
        let key = Secret::from_slice(&bytes(key)).unwrap();
        let nonce: [u8; 24] = bytes(nonce).try_into().unwrap();
        let mut sealed = bytes(sealed);
        let plain = open(&key, &nonce, &sealed).unwrap();
        assert!(plain.expose().starts_with(&bytes("be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd4")));
        assert_eq!(plain.len(), 131);
        sealed[40] ^= 1;
        assert!(open(&key, &nonce, &sealed).is_err());
        assert!(open(&key, &nonce, &[0; 15]).is_err());
    }
}
