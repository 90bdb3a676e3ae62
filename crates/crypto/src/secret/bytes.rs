//! Fixed and variable length secrets.

use core::fmt;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::CryptoError;

/// `N` secret bytes on the heap, so that moving the value leaves nothing behind.
///
/// ```
/// use stvor_crypto::Secret;
/// let key = Secret::<32>::new([7; 32]);
/// assert_eq!(format!("{key:?}"), "[redacted]");
/// assert!(key == key.duplicate());
/// assert_eq!(key.expose()[0], 7);
/// ```
pub struct Secret<const N: usize>(Box<[u8; N]>);

impl<const N: usize> Secret<N> {
    /// Takes the bytes and wipes the copy that was passed. A copy that the caller keeps is the caller's to wipe.
    #[must_use]
    pub fn new(mut bytes: [u8; N]) -> Self {
        let mut secret = Self::zeroed();
        secret.0.copy_from_slice(bytes.as_slice());
        bytes.as_mut_slice().zeroize();
        secret
    }

    /// `N` zero bytes, to be filled through [`Secret::expose_mut`].
    #[must_use]
    pub fn zeroed() -> Self {
        // Not asked of the allocator as zeroes: glibc before 2.41 goes past the caches of its threads for those.
        Self(Box::new(core::hint::black_box([0; N])))
    }

    /// Copies `bytes`, which must be `N` long.
    ///
    /// # Errors
    /// [`CryptoError::BadLength`].
    pub fn from_slice(bytes: &[u8]) -> Result<Self, CryptoError> {
        if bytes.len() != N {
            return Err(CryptoError::BadLength { expected: N, got: bytes.len() });
        }
        let mut secret = Self::zeroed();
        secret.0.copy_from_slice(bytes);
        Ok(secret)
    }

    /// `N` fresh random bytes.
    ///
    /// # Errors
    /// What `rng` says.
    pub fn random(rng: &mut dyn crate::Random) -> Result<Self, CryptoError> {
        let mut secret = Self::zeroed();
        rng.fill(secret.expose_mut())?;
        Ok(secret)
    }

    /// The bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }

    /// The bytes, to be written.
    #[must_use]
    pub fn expose_mut(&mut self) -> &mut [u8; N] {
        &mut self.0
    }

    /// A second copy, on purpose.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self(self.0.clone())
    }
}

/// As a slice: the library fills those at once, and arrays byte by byte.
impl<const N: usize> Zeroize for Secret<N> {
    fn zeroize(&mut self) {
        self.0.as_mut_slice().zeroize();
    }
}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        self.zeroize();
    }
}

impl<const N: usize> ZeroizeOnDrop for Secret<N> {}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl<const N: usize> PartialEq for Secret<N> {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }
}

impl<const N: usize> Eq for Secret<N> {}

/// Secret bytes of any length.
///
/// ```
/// use stvor_crypto::SecretBytes;
/// let text = SecretBytes::from(b"words".to_vec());
/// assert_eq!(format!("{text:?}"), "[redacted]");
/// assert_eq!(text.expose(), b"words");
/// assert!(text != SecretBytes::from(b"word".to_vec()));
/// ```
#[derive(Default)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Copies `bytes`.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// The bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, to be written. Their number is fixed, so that nothing is left behind by growth.
    #[must_use]
    pub fn expose_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Drops all but the first `length` bytes, wiping what goes.
    pub fn truncate(&mut self, length: usize) {
        if let Some(rest) = self.0.get_mut(length..) {
            rest.zeroize();
            self.0.truncate(length);
        }
    }

    /// Keeps the `length` bytes from `start` on (as far as there are so many), in the same allocation, and wipes the rest.
    ///
    /// ```
    /// use stvor_crypto::SecretBytes;
    /// let mut text = SecretBytes::from_slice(b"some words");
    /// text.keep(5, 5);
    /// assert_eq!(text.expose(), b"words");
    /// ```
    pub fn keep(&mut self, start: usize, length: usize) {
        let start = start.min(self.0.len());
        let end = start.saturating_add(length).min(self.0.len());
        self.0.copy_within(start..end, 0);
        self.truncate(end - start);
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A second copy, on purpose.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self(self.0.clone())
    }

    /// Gives the bytes up as an ordinary vector, without copying. Wiping them is the caller's from here on.
    #[must_use]
    pub fn into_exposed(mut self) -> Vec<u8> {
        core::mem::take(&mut self.0)
    }
}

/// The spare room too: bytes that were cut off may have been there. As slices, which the library fills at once.
impl Zeroize for SecretBytes {
    fn zeroize(&mut self) {
        self.0.as_mut_slice().zeroize();
        self.0.spare_capacity_mut().zeroize();
        self.0.clear();
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.zeroize();
    }
}

impl ZeroizeOnDrop for SecretBytes {}

/// Takes the vector over, without copying; it is wiped with the secret.
impl From<Vec<u8>> for SecretBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl<const N: usize> From<&Secret<N>> for SecretBytes {
    fn from(secret: &Secret<N>) -> Self {
        Self::from_slice(secret.expose())
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl PartialEq for SecretBytes {
    /// The length is not secret, the bytes are.
    fn eq(&self, other: &Self) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }
}

impl Eq for SecretBytes {}
