//! A key in the operating system's keyring.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// Bytes of the random part of an item's name.
const ID: usize = 16;

/// The key of one store, in an item of its own whose name the store says.
///
/// A keyring has no way to put something in only if nothing is there, so of two processes that make a key under one name at
/// the same time one would lose its own. Here each makes its key under a name that nobody else has, and the store decides
/// whose counts: only one of them can write the store's header, and the wrapped key in it names the item.
///
/// One of these is for one store: of another one that it opens it would take the key that it made for the first away.
///
/// An item under the plain name, where there is one, is used as it is: somebody put it there, on each machine that opens a shared store for
/// example, or an earlier version made it.
pub struct NamedKeyring {
    service: Arc<dyn SecretService>,
    item: KeyringItem,
    current: Mutex<Option<Current>>,
}

/// The key in use.
struct Current {
    /// Empty for the item under the plain name.
    id: Vec<u8>,
    key: Secret<32>,
    /// This holder put it there.
    made: bool,
}

impl core::fmt::Debug for NamedKeyring {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("NamedKeyring").field("item", &self.item).finish_non_exhaustive()
    }
}

impl NamedKeyring {
    /// Of the store that `item` stands for. Nothing is asked of the keyring yet.
    #[must_use]
    pub fn new(service: Arc<dyn SecretService>, item: KeyringItem) -> Self {
        Self { service, item, current: Mutex::new(None) }
    }

    fn item_of(&self, id: &[u8]) -> KeyringItem {
        if id.is_empty() {
            return self.item.clone();
        }
        let id = id.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        KeyringItem { account: format!("{} {id}", self.item.account), ..self.item.clone() }
    }

    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn first(&self, rng: &mut dyn Random) -> Result<Current, KeyError> {
        if self.service.load(&self.item)?.is_some() {
            let OsKeyring { key } = OsKeyring::read(self.service.as_ref(), &self.item)?;
            return Ok(Current { id: Vec::new(), key, made: false });
        }
        let id = Secret::<ID>::random(rng)?.expose().to_vec();
        let OsKeyring { key } = OsKeyring::create(self.service.as_ref(), &self.item_of(&id), rng)?;
        Ok(Current { id, key, made: true })
    }
}

impl KeyHolder for NamedKeyring {
    fn kind(&self) -> HolderKind {
        HolderKind::OsKeyring
    }

    fn wrap(&self, data_key: &DataKey, context: &[u8], rng: &mut dyn Random) -> Result<WrappedKey, KeyError> {
        let mut current = self.current();
        let used = match current.take() {
            Some(used) => used,
            None => self.first(rng)?,
        };
        let wrapped = WrappedKey::seal((self.kind(), &used.id), &used.key, (data_key, context), rng);
        *current = Some(used);
        wrapped
    }

    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<DataKey, KeyError> {
        let id = wrapped.parameters_for(self.kind())?;
        if !id.is_empty() && id.len() != ID {
            return Err(KeyError::Corrupt("the name of a key in a keyring has another length"));
        }
        let OsKeyring { key } = OsKeyring::read(self.service.as_ref(), &self.item_of(id))?;
        let opened = wrapped.open(&key, context)?;
        let mut current = self.current();
        // That it opens does not say yet that the store has it.
        let made = current.as_ref().is_some_and(|before| before.made && before.id == id);
        let before = current.replace(Current { id: id.to_vec(), key, made });
        drop(current);
        // Another process was faster: what this one made is of no use to anybody.
        if let Some(lost) = before.filter(|before| before.made && before.id != id) {
            self.service.remove(&self.item_of(&lost.id))?;
        }
        Ok(opened)
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
