//! Opening a store on disk with a key.

use crate::sqlite::files;
use crate::{Sealed, SecretBytes, SqliteStore, Store, StoreError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stvor_crypto::SystemRandom;
use stvor_keys::{HolderKind, KeyHolder, Keyfile, KeyringItem, OsKeyring, Passphrase, SecretService};

/// The key that opens a store.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum OpenKey {
    /// The keyfile beside the database. A fresh database gets one.
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
    let path = sqlite.path().to_owned();
    let adapter: Arc<dyn Store> = Arc::new(sqlite);
    let opened = open_sealed(Arc::clone(&adapter), path, key).await;
    // The lock is free again when the caller hears of it, and what they hear is why the store did not open.
    if opened.is_err()
        && let Err(error) = adapter.close().await
    {
        tracing::warn!(%error, "a store that could not be opened did not close cleanly either");
    }
    opened
}

async fn open_sealed(adapter: Arc<dyn Store>, path: PathBuf, key: OpenKey) -> Result<Opened, StoreError> {
    let info = Sealed::info(adapter.as_ref()).await?;
    if let Some(info) = info {
        let given = match key {
            OpenKey::Default | OpenKey::Keyfile(_) => HolderKind::Keyfile,
            OpenKey::Passphrase(_) => HolderKind::Passphrase,
            OpenKey::OsKeyring { .. } => HolderKind::OsKeyring,
        };
        if given != info.holder {
            return Err(StoreError::KeyRequired { holder: info.holder.name() });
        }
    }
    let fresh = info.is_none();
    if fresh && adapter.stats().await?.rows > 0 {
        // Before a key is made that would stand where the right one is to be restored.
        return Err(StoreError::headless());
    }
    let held = tokio::task::spawn_blocking(move || holder(&path, key, fresh)).await;
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

type Held = (Arc<dyn KeyHolder>, Option<Notice>);

fn holder(path: &Path, key: OpenKey, fresh: bool) -> Result<Held, StoreError> {
    match key {
        OpenKey::Default => {
            let path = default_keyfile(path);
            files::remove_drafts(&path)?;
            let (key, notice) = keyfile(&path, fresh)?;
            // Also for one that is left from an opening that was cut short before it could say so.
            Ok((key, notice.or_else(|| fresh.then_some(Notice::KeyfileCreated { path }))))
        }
        OpenKey::Keyfile(path) => keyfile(&path, fresh),
        OpenKey::Passphrase(secret) => Ok((Arc::new(Passphrase::new(secret)?), None)),
        OpenKey::OsKeyring { service, item } => {
            let missing = fresh && service.load(&item)?.is_none();
            let key = if missing {
                OsKeyring::create(service.as_ref(), &item, &mut SystemRandom::new())?
            } else {
                OsKeyring::read(service.as_ref(), &item)?
            };
            Ok((Arc::new(key), None))
        }
    }
}

fn keyfile(path: &Path, fresh: bool) -> Result<Held, StoreError> {
    // One that is there for a fresh store is left from an opening that was cut short, or is shared on purpose.
    if !fresh || path.exists() {
        return Ok((Arc::new(Keyfile::read(path)?), None));
    }
    files::make_directory(path)?;
    let key = Keyfile::create(path, &mut SystemRandom::new())?;
    tracing::warn!(
        path = %path.display(),
        "made a keyfile: who has it and the database can read everything, without it nobody can"
    );
    Ok((Arc::new(key), Some(Notice::KeyfileCreated { path: path.to_owned() })))
}
