//! Long-lived keys, encrypted while they rest in memory.

use core::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::locked::PreKey;
use super::{Secret, SecretBytes};
use crate::CryptoError;
use crate::aead::Aes256Gcm;
use crate::random::{Random, SystemRandom};

/// A secret that rests encrypted in memory and is opened for one closure at a time.
///
/// The key is the hash of 16 KiB of random bytes that this process draws once and keeps locked in memory. A bug or a side
/// channel that reads memory with errors must read all of them without one, besides the ciphertext. It does not
/// protect against someone who reads the whole memory at one moment.
///
/// Opening hashes the 16 KiB anew (about 10 us), so this is for keys that are used now and then, not for each message.
///
/// ```
/// use stvor_crypto::Shielded;
/// let shielded = Shielded::new(b"root key")?;
/// assert_eq!(shielded.open(|bytes| bytes.len())?, 8);
/// # Ok::<(), stvor_crypto::CryptoError>(())
/// ```
pub struct Shielded {
    number: u64,
    sealed: Vec<u8>,
}

static PRE_KEY: OnceLock<(Box<PreKey>, bool)> = OnceLock::new();
static NEXT: AtomicU64 = AtomicU64::new(0);

fn process_key() -> Result<Aes256Gcm, CryptoError> {
    let (pre_key, _) = match PRE_KEY.get() {
        Some(ready) => ready,
        None => {
            let (mut fresh, locked) = PreKey::locked();
            SystemRandom::new().fill(&mut fresh.0)?;
            PRE_KEY.get_or_init(|| (fresh, locked))
        }
    };
    let key = Secret::new(crate::kdf::sha256(&[b"STVOR shielded memory v1", &pre_key.0]));
    Ok(Aes256Gcm::new(&key))
}

/// Whether the process key is locked in memory (out of swap). False when the system refused, or nothing was shielded yet.
#[must_use]
pub fn is_locked() -> bool {
    PRE_KEY.get().is_some_and(|(_, locked)| *locked)
}

impl Shielded {
    /// Shields a copy of `bytes`. Wiping the original is the caller's.
    ///
    /// # Errors
    /// [`CryptoError::RandomnessUnhealthy`] or [`CryptoError::RandomnessUnavailable`], at the first use in a process.
    pub fn new(bytes: &[u8]) -> Result<Self, CryptoError> {
        let key = process_key()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut sealed = Vec::with_capacity(bytes.len() + crate::aead::TAG_BYTES);
        sealed.extend_from_slice(bytes);
        key.seal(&nonce(number), &[], &mut sealed)?;
        Ok(Self { number, sealed })
    }

    /// Opens, calls `work` with the bytes, wipes them.
    ///
    /// # Errors
    /// [`CryptoError::DecryptFailed`] when the memory was changed.
    pub fn open<R>(&self, work: impl FnOnce(&[u8]) -> R) -> Result<R, CryptoError> {
        let key = process_key()?;
        let mut opened = SecretBytes::from_slice(&self.sealed);
        let length = key.open(&nonce(self.number), &[], opened.expose_mut())?.len();
        Ok(work(opened.expose().get(..length).unwrap_or_default()))
    }

    /// How many bytes are shielded.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sealed.len().saturating_sub(crate::aead::TAG_BYTES)
    }

    /// Whether none are.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One number is used once in a process, and the key is of this process.
fn nonce(number: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    nonce
}

impl fmt::Debug for Shielded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[shielded]")
    }
}
