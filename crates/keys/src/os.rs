//! A key in the operating system's keyring.

use crate::{DataKey, HolderKind, KeyError, KeyHolder, WrappedKey};
use stvor_crypto::{Random, Secret, SecretBytes};

/// Where in a keyring a key is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyringItem {
    /// The program, for example `stvor`.
    pub service: String,
    /// Which of its keys: a name that no other store on this machine has.
    pub account: String,
}

/// A keyring. The operating system's is `SystemKeyring` (feature `os-keyring`).
pub trait SecretService: core::fmt::Debug + Send + Sync {
    /// The secret of an item, `None` when there is none.
    ///
    /// # Errors
    /// [`KeyError::Keyring`] when the keyring is locked or absent.
    fn load(&self, item: &KeyringItem) -> Result<Option<SecretBytes>, KeyError>;

    /// Stores a secret, over one that is there.
    ///
    /// # Errors
    /// [`KeyError::Keyring`].
    fn save(&self, item: &KeyringItem, secret: &SecretBytes) -> Result<(), KeyError>;

    /// Removes a secret if it is there.
    ///
    /// # Errors
    /// [`KeyError::Keyring`].
    fn remove(&self, item: &KeyringItem) -> Result<(), KeyError>;
}

/// A key that was found in, or put into, a keyring.
#[derive(Debug)]
pub struct OsKeyring {
    key: Secret<32>,
}

impl OsKeyring {
    /// Puts a fresh key into the keyring.
    ///
    /// # Errors
    /// [`KeyError::Exists`] when the item is there, which stays as it is; [`KeyError::Keyring`];
    /// [`KeyError::Crypto`].
    pub fn create(
        service: &dyn SecretService,
        item: &KeyringItem,
        rng: &mut dyn Random,
    ) -> Result<Self, KeyError> {
        if service.load(item)?.is_some() {
            return Err(KeyError::Exists { holder: HolderKind::OsKeyring.name(), name: name(item) });
        }
        let key = Secret::random(rng)?;
        let secret = SecretBytes::from(&key);
        service.save(item, &secret)?;
        // Some keyrings accept what they do not keep; a key that is gone tomorrow is found out today.
        match service.load(item)? {
            Some(kept) if kept == secret => Ok(Self { key }),
            _ => Err(KeyError::Keyring("it did not keep the key".into())),
        }
    }

    /// Fetches the key from the keyring.
    ///
    /// # Errors
    /// [`KeyError::Missing`], [`KeyError::Malformed`] when the item is not 32 bytes, [`KeyError::Keyring`].
    pub fn read(service: &dyn SecretService, item: &KeyringItem) -> Result<Self, KeyError> {
        let holder = HolderKind::OsKeyring.name();
        let secret = service.load(item)?.ok_or_else(|| KeyError::Missing { holder, name: name(item) })?;
        let key = Secret::from_slice(secret.expose())
            .map_err(|_| KeyError::Malformed { holder, reason: "it is not 32 bytes long" })?;
        Ok(Self { key })
    }
}

fn name(item: &KeyringItem) -> String {
    format!("{}/{}", item.service, item.account)
}

impl KeyHolder for OsKeyring {
    fn kind(&self) -> HolderKind {
        HolderKind::OsKeyring
    }

    fn wrap(&self, data_key: &DataKey, context: &[u8], rng: &mut dyn Random) -> Result<WrappedKey, KeyError> {
        WrappedKey::seal((self.kind(), &[]), &self.key, (data_key, context), rng)
    }

    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<DataKey, KeyError> {
        if !wrapped.parameters_for(self.kind())?.is_empty() {
            return Err(KeyError::Corrupt("a key in a keyring has no parameters"));
        }
        wrapped.open(&self.key, context)
    }
}

/// The keyring of the operating system: Secret Service, Keychain or Credential Manager.
#[cfg(feature = "os-keyring")]
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemKeyring;

#[cfg(feature = "os-keyring")]
impl SystemKeyring {
    fn entry(item: &KeyringItem) -> Result<keyring::Entry, KeyError> {
        keyring::Entry::new(&item.service, &item.account)
            .map_err(|error| KeyError::Keyring(error.to_string()))
    }
}

#[cfg(feature = "os-keyring")]
impl SecretService for SystemKeyring {
    fn load(&self, item: &KeyringItem) -> Result<Option<SecretBytes>, KeyError> {
        match Self::entry(item)?.get_secret() {
            Ok(secret) => Ok(Some(secret.into())),
            Err(keyring::Error::NoEntry) => Ok(None),
            Err(error) => Err(KeyError::Keyring(error.to_string())),
        }
    }

    fn save(&self, item: &KeyringItem, secret: &SecretBytes) -> Result<(), KeyError> {
        Self::entry(item)?.set_secret(secret.expose()).map_err(|error| KeyError::Keyring(error.to_string()))
    }

    fn remove(&self, item: &KeyringItem) -> Result<(), KeyError> {
        match Self::entry(item)?.delete_credential() {
            Ok(()) | Err(keyring::Error::NoEntry) => Ok(()),
            Err(error) => Err(KeyError::Keyring(error.to_string())),
        }
    }
}
