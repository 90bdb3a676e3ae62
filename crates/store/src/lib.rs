//! Atomic, sealed storage for STVOR clients.
//!
//! [`Sealed`] is what the SDK uses: it seals values, hashes names, and hands [`ChangeSet`]s, which apply whole or not
//! at all, to a [`Store`]. A store is an adapter that keeps sealed bytes: [`MemoryStore`] or [`SqliteStore`] here,
//! PostgreSQL (feature `postgres`) or Redis (feature `redis`), or one of your own. A [`StoreProvider`] opens them, one for
//! each user of an app.
//!
//! ```
//! use stvor_store::{ChangeSet, Expect, Key, Op, Scan, Sealed, StoreError, Table};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let store = Sealed::in_memory()?;
//! let key = Key::new(Table::History, *b"bob", 1_u64.to_be_bytes());
//! let mut changes = ChangeSet::new();
//! changes.insert(key.clone(), b"hello".to_vec());
//! let version = store.commit(changes).await?;
//!
//! let page = store.scan(Scan::of(Table::History, *b"bob").newest_first().limit(10)).await?;
//! assert_eq!(page.rows[0].value.expose(), b"hello");
//!
//! let again: ChangeSet = [Op::insert(key.clone(), b"twice".to_vec())].into_iter().collect();
//! assert!(matches!(store.commit(again).await, Err(StoreError::Conflict { op: 0 })));
//!
//! let update = Op::put(key, b"hello again".to_vec()).expecting(Expect::Version(version));
//! store.commit([update].into_iter().collect()).await?;
//! # Ok::<(), StoreError>(())
//! # }).unwrap();
//! ```

mod adapter;
mod change;
pub mod conformance;
mod error;
pub mod limits;
mod memory;
pub mod narrow;
mod open;
#[cfg(feature = "postgres")]
mod postgres;
mod provider;
#[cfg(feature = "redis")]
mod redis;
mod seal;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod server;
mod sqlite;
mod table;

#[cfg(feature = "redis")]
pub use self::redis::RedisStores;
pub use adapter::{Page, Row, RowValue, Scan, Stats, Store};
pub use change::{ChangeSet, Expect, Key, Op, RowVersion};
pub use error::StoreError;
pub use memory::MemoryStore;
pub use open::{
    Notice, OpenKey, Opened, default_keyfile, destroy, destroy_at, key_holder, open, open_adapter, open_at,
};
#[cfg(feature = "postgres")]
pub use postgres::PostgresStores;
pub use provider::{Finding, MemoryStores, STORE_FILE, SqliteStores, StoreFacts, StorePlace, StoreProvider};
pub use seal::{FORMAT, LAYOUTS, Record, Rotation, Sealed, StoreInfo};
#[cfg(any(feature = "postgres", feature = "redis"))]
pub use server::ServerOptions;
pub use sqlite::SqliteStore;
pub use stvor_crypto::SecretBytes;
pub use table::Table;
