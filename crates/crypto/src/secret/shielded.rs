//! Long-lived keys, encrypted while they rest in memory.

use core::cell::OnceCell;
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
/// The key is the hash of 4 KiB of random bytes that this process draws once and keeps locked in memory. A bug or a side
/// channel that reads memory with errors must read all of them without one, besides the ciphertext: at one wrong bit in
/// ten thousand, one attempt in 26 does; with 16 KiB it would be one in 490,000. It does not protect against someone who
/// reads the whole memory at one moment. The size is a trade: deriving the key costs about 2 us, with 16 KiB about 8,
/// and each turn of a ratchet does it once (see [`ShieldKey`]).
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

/// The key of this process's shielded secrets, derived when it is first needed. Make one for an operation that opens or
/// shields several times, and drop it with the operation: it must not outlive the moment.
///
/// ```
/// use stvor_crypto::{ShieldKey, Shielded};
/// let key = ShieldKey::new();
/// let old = Shielded::new_with(b"old", &key)?;
/// let new = old.open_with(&key, |old| Shielded::new_with(&[old, b"er"].concat(), &key))??;
/// assert!(new.open(|bytes| bytes == b"older")?);
/// # Ok::<(), stvor_crypto::CryptoError>(())
/// ```
#[derive(Default)]
pub struct ShieldKey(OnceCell<Aes256Gcm>);

impl ShieldKey {
    /// A key that is not derived yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(OnceCell::new())
    }

    fn get(&self) -> Result<&Aes256Gcm, CryptoError> {
        match self.0.get() {
            Some(key) => Ok(key),
            None => {
                let key = process_key()?;
                Ok(self.0.get_or_init(|| key))
            }
        }
    }
}

impl fmt::Debug for ShieldKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
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
        Self::new_with(bytes, &ShieldKey::new())
    }

    /// As [`Shielded::new`], with a key that the operation has.
    ///
    /// # Errors
    /// As [`Shielded::new`].
    pub fn new_with(bytes: &[u8], key: &ShieldKey) -> Result<Self, CryptoError> {
        let key = key.get()?;
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
        self.open_with(&ShieldKey::new(), work)
    }

    /// As [`Shielded::open`], with a key that the operation has.
    ///
    /// # Errors
    /// As [`Shielded::open`].
    pub fn open_with<R>(&self, key: &ShieldKey, work: impl FnOnce(&[u8]) -> R) -> Result<R, CryptoError> {
        let key = key.get()?;
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
