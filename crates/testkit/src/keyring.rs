//! A keyring in memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use stvor_crypto::SecretBytes;
use stvor_keys::{KeyError, KeyringItem, SecretService};

/// Keeps what it is given, as a keyring of an operating system does.
///
/// ```
/// use stvor_keys::{KeyringItem, SecretService};
/// use stvor_testkit::MemoryKeyring;
/// let (ring, item) = (MemoryKeyring::default(), KeyringItem { service: "s".into(), account: "a".into() });
/// assert!(ring.load(&item)?.is_none() && ring.is_empty());
/// # Ok::<(), stvor_keys::KeyError>(())
/// ```
#[derive(Debug, Default)]
pub struct MemoryKeyring(Mutex<HashMap<KeyringItem, SecretBytes>>);

impl MemoryKeyring {
    /// How many items it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl SecretService for MemoryKeyring {
    fn load(&self, item: &KeyringItem) -> Result<Option<SecretBytes>, KeyError> {
        let items = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(items.get(item).map(SecretBytes::duplicate))
    }

    fn save(&self, item: &KeyringItem, secret: &SecretBytes) -> Result<(), KeyError> {
        let mut items = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        items.insert(item.clone(), secret.duplicate());
        Ok(())
    }

    fn remove(&self, item: &KeyringItem) -> Result<(), KeyError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(item);
        Ok(())
    }
}
