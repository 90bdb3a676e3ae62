//! Where the stores of an app's users come from: the seam between the SDK and the adapters.

use crate::seal::removed_for_good;
use crate::sqlite::files;
use crate::{ChangeSet, MemoryStore, Op, SqliteStore, Store, StoreError, Table};
use async_trait::async_trait;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stvor_base::codec::Writer;
use stvor_crypto::kdf::sha256;

/// The file in a user's directory that holds the sealed rows of an embedded store.
pub const STORE_FILE: &str = "store.db";

/// Whose rows a store holds: one user of one app at one relay. The same user elsewhere has another store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct StorePlace {
    /// The relay's origin: scheme, host and port.
    pub relay: String,
    /// The app's id.
    pub app: String,
    /// The user's id.
    pub user: String,
    /// The user's private directory on this machine: embedded stores keep their files in it, and the default keyfile of
    /// any durable store stands in it. `None` for an app that keeps nothing here.
    pub directory: Option<PathBuf>,
}

impl StorePlace {
    /// The place of a user, without a directory on this machine.
    ///
    /// ```
    /// use stvor_store::StorePlace;
    ///
    /// let place = StorePlace::new("wss://relay.example:443", "app", "bob");
    /// assert_ne!(place.tag(), StorePlace::new("wss://relay.example:443", "ap", "pbob").tag());
    /// assert_eq!(place.clone().in_directory("/var/lib/bob").tag(), place.tag());
    /// ```
    #[must_use]
    pub fn new(relay: impl Into<String>, app: impl Into<String>, user: impl Into<String>) -> Self {
        Self { relay: relay.into(), app: app.into(), user: user.into(), directory: None }
    }

    /// The same place with a directory on this machine.
    #[must_use]
    pub fn in_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// 16 bytes that name this place in a database that several users share: the first half of SHA-256 over relay, app
    /// and user. It keeps places apart and is no secret: who guesses all three names can check the guess.
    #[must_use]
    pub fn tag(&self) -> [u8; 16] {
        let mut names = Writer::new();
        names.bytes(self.relay.as_bytes()).bytes(self.app.as_bytes()).bytes(self.user.as_bytes());
        let hash = sha256(&[b"STVOR store place v1", names.as_slice()]);
        let mut tag = [0; 16];
        tag.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        tag
    }

    /// Where the keyfile of this place is, when no other key was asked for; `None` without a directory.
    #[must_use]
    pub fn default_keyfile(&self) -> Option<PathBuf> {
        Some(crate::default_keyfile(&self.file()?))
    }

    /// The file of an embedded store.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(STORE_FILE))
    }
}

/// What kind of store a provider opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreFacts {
    /// What people call it: `sqlite`, `postgres`, `redis`, `memory`.
    pub kind: &'static str,
    /// What a commit acknowledged outlives the process.
    pub durable: bool,
    /// Several processes may have the store of one user open at a time.
    pub shared: bool,
    /// A change set is applied whole or not at all. Without it a crash can leave a used one-time key in place, or a
    /// message without its session state.
    pub atomic: bool,
    /// It keeps files in the user's directory on this machine.
    pub local: bool,
}

impl StoreFacts {
    /// What follows from the facts alone.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        if !self.durable {
            found.push(Finding::new(
                "store_not_durable",
                format!("the {} store keeps nothing over a restart", self.kind),
                "give the app a durable store: a directory, PostgreSQL or Redis",
            ));
        }
        if !self.atomic {
            found.push(Finding::new(
                "store_not_atomic",
                format!("the {} store can not apply a change set whole or not at all", self.kind),
                "use a store with transactions: SQLite, PostgreSQL, Redis, or an implementation of `Store` of your own",
            ));
        }
        found
    }
}

/// Something about a store that production should not have, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A stable name, in lower case.
    pub code: &'static str,
    /// What was found.
    pub what: String,
    /// How to mend it.
    pub fix: String,
}

impl Finding {
    /// A finding.
    #[must_use]
    pub fn new(code: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { code, what: what.into(), fix: fix.into() }
    }
}

impl core::fmt::Display for Finding {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}: {}", self.what, self.fix)
    }
}

/// Opens adapters. One provider serves all users of an app.
#[async_trait]
pub trait StoreProvider: core::fmt::Debug + Send + Sync + 'static {
    /// What kind of store this opens.
    fn facts(&self) -> StoreFacts;

    /// Opens the adapter of one place: empty the first time, with what it held later.
    ///
    /// # Errors
    /// What the adapter meets: see its own documentation.
    async fn open(&self, place: &StorePlace) -> Result<Arc<dyn Store>, StoreError>;

    /// Where the keyfile of a place is, when no other key was asked for; `None` where there is no room for one.
    fn default_keyfile(&self, place: &StorePlace) -> Option<PathBuf> {
        place.default_keyfile()
    }

    /// What is weak about this store for production, as far as it can be seen now: settings of a server are asked for.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] and the like when a server can not be asked.
    async fn findings(&self) -> Result<Vec<Finding>, StoreError> {
        Ok(self.facts().findings())
    }

    /// What the server of these stores is and how it is set, as names and values in a fixed order: for people who look for
    /// what is wrong. Nothing for stores without a server.
    ///
    /// # Errors
    /// As [`StoreProvider::findings`].
    async fn status(&self) -> Result<Vec<(&'static str, String)>, StoreError> {
        Ok(Vec::new())
    }

    /// Removes everything that is stored for a place, its header included, for good. The user closed the store before. Where
    /// other processes may have it open still, one empty row stays, so that none of them takes this for an accident; it goes
    /// when a store is begun there.
    ///
    /// # Errors
    /// As [`StoreProvider::open`] and [`Store::commit`].
    async fn destroy(&self, place: &StorePlace) -> Result<(), StoreError> {
        let store = self.open(place).await?;
        let mut everything: ChangeSet<_> =
            Table::ALL.map(|table| Op::DeleteTable { table }).into_iter().collect();
        if self.facts().shared {
            everything.ops.extend(removed_for_good().ops);
        }
        let removed = store.commit(everything).await;
        removed.and(store.close().await)
    }
}

/// A SQLite database in each user's directory: the default.
#[derive(Debug, Clone, Copy, Default)]
pub struct SqliteStores;

impl SqliteStores {
    fn file(place: &StorePlace) -> Result<PathBuf, StoreError> {
        place.file().ok_or_else(|| {
            StoreError::Adapter("a SQLite store needs a directory on this machine; none was given".into())
        })
    }
}

#[async_trait]
impl StoreProvider for SqliteStores {
    fn facts(&self) -> StoreFacts {
        StoreFacts { kind: "sqlite", durable: true, shared: false, atomic: true, local: true }
    }

    /// Beside the database itself, should `store.db` be a link to it.
    fn default_keyfile(&self, place: &StorePlace) -> Option<PathBuf> {
        Some(crate::default_keyfile(&files::resolve(place.file()?).ok()?))
    }

    async fn open(&self, place: &StorePlace) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::new(SqliteStore::open(Self::file(place)?).await?))
    }

    async fn destroy(&self, place: &StorePlace) -> Result<(), StoreError> {
        SqliteStore::destroy(Self::file(place)?).await
    }
}

/// A store in memory for each opening: for tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemoryStores;

#[async_trait]
impl StoreProvider for MemoryStores {
    fn default_keyfile(&self, _: &StorePlace) -> Option<PathBuf> {
        None
    }

    fn facts(&self) -> StoreFacts {
        StoreFacts { kind: "memory", durable: false, shared: false, atomic: true, local: false }
    }

    async fn open(&self, _: &StorePlace) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::new(MemoryStore::new()))
    }

    async fn destroy(&self, _: &StorePlace) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Removes a keyfile and what is left of interrupted attempts to make it.
pub(crate) fn remove_keyfile(path: &Path) -> Result<(), StoreError> {
    files::remove_drafts(path)?;
    files::remove(path)
}
