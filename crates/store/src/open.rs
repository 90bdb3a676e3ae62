//! Opening a store with a key.

use crate::provider::{StorePlace, StoreProvider, remove_keyfile};
use crate::sqlite::files;
use crate::{Sealed, SecretBytes, SqliteStore, Store, StoreError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stvor_crypto::SystemRandom;
use stvor_keys::{HolderKind, KeyHolder, Keyfile, KeyringItem, NamedKeyring, Passphrase, SecretService};

/// The key that opens a store.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum OpenKey {
    /// The keyfile beside the database, or in the user's directory on this machine if the database is elsewhere. A
    /// fresh database gets one.
    #[default]
    Default,
    /// A passphrase. Read it from a prompt, a file or a descriptor, never from the command line.
    Passphrase(SecretBytes),
    /// A keyfile elsewhere. For a fresh database it is made if it is not there.
    Keyfile(PathBuf),
    /// An item of the system's keyring. For a fresh database it is made if it is not there.
    OsKeyring {
        /// The keyring, mostly `stvor_keys::SystemKeyring`.
        service: Arc<dyn SecretService>,
        /// Which item.
        item: KeyringItem,
    },
    /// A key holder of any kind.
    Holder(Arc<dyn KeyHolder>),
}

impl OpenKey {
    fn kind(&self) -> HolderKind {
        match self {
            Self::Default | Self::Keyfile(_) => HolderKind::Keyfile,
            Self::Passphrase(_) => HolderKind::Passphrase,
            Self::OsKeyring { .. } => HolderKind::OsKeyring,
            Self::Holder(holder) => holder.kind(),
        }
    }
}

/// Something that whoever opened the store should tell its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// A keyfile was made. Who has it and the database can read everything; without it nobody can.
    KeyfileCreated {
        /// Where.
        path: PathBuf,
    },
}

/// A store that is open.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Sealed,
    /// What its owner should know.
    pub notice: Option<Notice>,
}

/// Where the keyfile of the database at `path` is, when no other key was asked for.
#[must_use]
pub fn default_keyfile(path: &Path) -> PathBuf {
    files::beside(path, ".key")
}

/// Opens the SQLite store at `path`, or makes it.
///
/// # Errors
/// As [`SqliteStore::open`] and [`Sealed::open`]; [`StoreError::KeyRequired`] when the store opens with another kind of
/// key than was given; [`StoreError::Key`] when the key is not there, malformed, readable by others, or wrong.
pub async fn open(path: impl Into<PathBuf>, key: OpenKey) -> Result<Opened, StoreError> {
    let sqlite = SqliteStore::open(path).await?;
    let keyfile = default_keyfile(sqlite.path());
    open_adapter(Arc::new(sqlite), key, Some(keyfile)).await
}

/// Opens the store of a place by its provider, or makes it. A store that is neither durable nor shared is sealed under a
/// key that nobody keeps, whatever key is given.
///
/// ```
/// use stvor_store::{ChangeSet, Key, MemoryStores, OpenKey, StorePlace, Table, open_at};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let place = StorePlace::new("wss://relay.example:443", "app", "bob");
/// let store = open_at(&MemoryStores, &place, OpenKey::Default).await?.store;
/// let mut changes = ChangeSet::new();
/// changes.put(Key::new(Table::Custom, *b"a", *b"b"), b"value".to_vec());
/// store.commit(changes).await?;
/// # Ok::<(), stvor_store::StoreError>(())
/// # }).unwrap();
/// ```
///
/// # Errors
/// As [`StoreProvider::open`] and [`open`]. Of several processes that open a fresh store at once one makes it, and the
/// others open what it made.
pub async fn open_at(
    provider: &dyn StoreProvider,
    place: &StorePlace,
    key: OpenKey,
) -> Result<Opened, StoreError> {
    let adapter = provider.open(place).await?;
    let facts = provider.facts();
    if !facts.durable && !facts.shared {
        return Ok(Opened { store: Sealed::ephemeral(adapter)?, notice: None });
    }
    let mut opened = open_adapter(adapter, key, provider.default_keyfile(place)).await?;
    opened.store = opened.store.shared(facts.shared);
    // One process at a time has files of its own locked, and what it gave up ends with it.
    if !facts.shared && !facts.local {
        opened.store = opened.store.after_another();
    }
    Ok(opened)
}

/// Opens what `adapter` keeps, or seals it if it is empty. `keyfile` is what [`OpenKey::Default`] means. The adapter is
/// closed when this fails.
///
/// # Errors
/// As [`open`].
pub async fn open_adapter(
    adapter: Arc<dyn Store>,
    key: OpenKey,
    keyfile: Option<PathBuf>,
) -> Result<Opened, StoreError> {
    let opened = open_sealed(Arc::clone(&adapter), key, keyfile).await;
    // The lock is free again when the caller hears of it, and what they hear is why the store did not open.
    if opened.is_err()
        && let Err(error) = adapter.close().await
    {
        tracing::warn!(%error, "a store that could not be opened did not close cleanly either");
    }
    opened
}

async fn open_sealed(
    adapter: Arc<dyn Store>,
    key: OpenKey,
    beside: Option<PathBuf>,
) -> Result<Opened, StoreError> {
    // `None`: fresh, and really empty, before a key is made that would stand where the right one is to be restored.
    let info = Sealed::info_or_empty(adapter.as_ref()).await?;
    if let Some(info) = info
        && key.kind() != info.holder
    {
        return Err(StoreError::KeyRequired { holder: info.holder.name() });
    }
    let fresh = info.is_none();
    let held = tokio::task::spawn_blocking(move || holder(beside, key, fresh)).await;
    let (holder, notice) =
        held.map_err(|error| StoreError::Adapter(format!("reading the key did not finish: {error}")))??;
    let store = Sealed::open(adapter, holder).await?;
    Ok(Opened { store, notice })
}

/// Removes the store at `path`: database, journal and the keyfile beside it. A keyfile elsewhere and an item of a
/// keyring stay.
///
/// # Errors
/// As [`SqliteStore::destroy`].
pub async fn destroy(path: impl Into<PathBuf>) -> Result<(), StoreError> {
    SqliteStore::destroy(path).await
}

/// Removes everything that is stored for a place, and its default keyfile. A keyfile elsewhere and an item of a keyring
/// stay.
///
/// # Errors
/// As [`StoreProvider::destroy`].
pub async fn destroy_at(provider: &dyn StoreProvider, place: &StorePlace) -> Result<(), StoreError> {
    provider.destroy(place).await?;
    match provider.default_keyfile(place) {
        Some(path) if files::parent(&path).exists() => remove_keyfile(&path),
        _ => Ok(()),
    }
}

/// The holder of a key, for [`Sealed::rewrap`] and [`Sealed::rotate`]. `keyfile` is what [`OpenKey::Default`] means; `make`
/// makes a keyfile, or an item of a keyring, that is not there.
///
/// # Errors
/// [`StoreError::Key`] when the key is not there, malformed or readable by others.
pub async fn key_holder(
    key: OpenKey,
    keyfile: Option<PathBuf>,
    make: bool,
) -> Result<Arc<dyn KeyHolder>, StoreError> {
    let held = tokio::task::spawn_blocking(move || holder(keyfile, key, make)).await;
    let held =
        held.map_err(|error| StoreError::Adapter(format!("reading the key did not finish: {error}")))?;
    held.map(|(holder, _)| holder)
}

type Held = (Arc<dyn KeyHolder>, Option<Notice>);

fn holder(beside: Option<PathBuf>, key: OpenKey, fresh: bool) -> Result<Held, StoreError> {
    match key {
        OpenKey::Default => {
            let path = beside.ok_or_else(|| {
                StoreError::Adapter(
                    "there is no directory on this machine for a default keyfile; give a passphrase, a keyfile or \
                     another key"
                        .into(),
                )
            })?;
            files::remove_drafts(&path)?;
            let (key, notice) = keyfile(&path, fresh)?;
            // Also for one that is left from an opening that was cut short before it could say so.
            Ok((key, notice.or_else(|| fresh.then_some(Notice::KeyfileCreated { path }))))
        }
        OpenKey::Keyfile(path) => keyfile(&path, fresh),
        OpenKey::Holder(holder) => Ok((holder, None)),
        OpenKey::Passphrase(secret) => Ok((Arc::new(Passphrase::new(secret)?), None)),
        OpenKey::OsKeyring { service, item } => {
            // Of processes that open a fresh store at once each makes a key of its own name; the header says whose counts.
            Ok((Arc::new(NamedKeyring::new(service, item)), None))
        }
    }
}

fn keyfile(path: &Path, fresh: bool) -> Result<Held, StoreError> {
    // One that is there for a fresh store is left from an opening that was cut short, or is shared on purpose.
    if !fresh || path.exists() {
        return Ok((Arc::new(Keyfile::read(path)?), None));
    }
    files::make_directory(path)?;
    let key = match Keyfile::create(path, &mut SystemRandom::new()) {
        Ok(key) => key,
        // Another process that opens the same fresh store was faster.
        Err(_) if path.exists() => return Ok((Arc::new(Keyfile::read(path)?), None)),
        Err(error) => return Err(error.into()),
    };
    tracing::warn!(
        path = %path.display(),
        "made a keyfile: who has it and the database can read everything, without it nobody can"
    );
    Ok((Arc::new(key), Some(Notice::KeyfileCreated { path: path.to_owned() })))
}
