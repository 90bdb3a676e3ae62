//! AES-256-CBC with PKCS#7 padding, for the wire format of Signal. Nothing here authenticates: a caller checks a MAC or
//! a signature over the ciphertext before it decrypts, or a peer learns from the padding.

use aes::Aes256;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt as _, BlockModeEncrypt as _, KeyIvInit as _};

use crate::{CryptoError, SecretBytes};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes of an initialisation vector, and of a block.
pub const IV_BYTES: usize = 16;

/// Appends the ciphertext of `plaintext` to `out`: its length, rounded up to the next multiple of 16, at least one byte
/// of padding.
///
/// ```
/// use stvor_crypto::cbc_pkcs7 as cbc;
/// let (key, iv) = ([1; 32], [2; 16]);
/// let mut sealed = Vec::new();
/// cbc::encrypt(&key, &iv, b"sixteen bytes ok", &mut sealed);
/// assert_eq!(sealed.len(), 32);
/// assert_eq!(cbc::decrypt(&key, &iv, &sealed)?.expose(), b"sixteen bytes ok");
/// # Ok::<(), stvor_crypto::CryptoError>(())
/// ```
pub fn encrypt(key: &[u8; KEY_BYTES], iv: &[u8; IV_BYTES], plaintext: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(plaintext);
    out.resize(start + plaintext.len() + IV_BYTES - plaintext.len() % IV_BYTES, 0);
    let cipher = cbc::Encryptor::<Aes256>::new(key.into(), iv.into());
    let Ok(_) = cipher.encrypt_padded::<Pkcs7>(&mut out[start..], plaintext.len()) else {
        unreachable!("there is room for the padding")
    };
}

/// The plaintext of `ciphertext`.
///
/// # Errors
/// [`CryptoError::DecryptFailed`] for a length that is no multiple of 16 or zero, and for wrong padding.
pub fn decrypt(
    key: &[u8; KEY_BYTES],
    iv: &[u8; IV_BYTES],
    ciphertext: &[u8],
) -> Result<SecretBytes, CryptoError> {
    let mut bytes = SecretBytes::from_slice(ciphertext);
    let cipher = cbc::Decryptor::<Aes256>::new(key.into(), iv.into());
    let plaintext =
        cipher.decrypt_padded::<Pkcs7>(bytes.expose_mut()).map_err(|_| CryptoError::DecryptFailed)?;
    let length = plaintext.len();
    bytes.truncate(length);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_those_of_sp_800_38a() {
        // F.2.5, CBC-AES256.Encrypt. Padding adds one block behind.
        let key = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4";
        let key: [u8; 32] = hex::decode(key).unwrap().try_into().unwrap();
        let iv: [u8; 16] = core::array::from_fn(|index| u8::try_from(index).unwrap());
        let plaintext = hex::decode("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710").unwrap();
        let mut sealed = b"before".to_vec();
        encrypt(&key, &iv, &plaintext, &mut sealed);
        let sealed = sealed.strip_prefix(b"before").unwrap();
        assert_eq!(
            hex::encode(&sealed[..64]),
            "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d39f23369a9d9bacfa530e26304231461b2eb05e2c39be9fcda6c19078c6a9d1b"
        );
        assert_eq!(sealed.len(), 80);
        assert_eq!(decrypt(&key, &iv, sealed).unwrap().expose(), plaintext);
    }

    #[test]
    fn wrong_lengths_and_padding_are_refused() {
        let (key, iv) = ([1; 32], [2; 16]);
        for length in [0, 1, 15, 17, 31] {
            assert_eq!(decrypt(&key, &iv, &vec![0; length]), Err(CryptoError::DecryptFailed), "{length}");
        }
        let mut sealed = Vec::new();
        encrypt(&key, &iv, b"", &mut sealed);
        assert_eq!(decrypt(&key, &iv, &sealed).unwrap().expose(), b"");
        assert_eq!(decrypt(&key, &[3; 16], &sealed), Err(CryptoError::DecryptFailed), "the padding is 17");
    }
}
