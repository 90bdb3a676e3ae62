//! Every adapter keeps every promise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::sync::Arc;
use stvor_store::{MemoryStore, SqliteStore, Store, StoreError, conformance};

struct Memory;

#[async_trait::async_trait]
impl conformance::Subject for Memory {
    async fn open(&self, _: &str) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::new(MemoryStore::new()))
    }

    fn durable(&self) -> bool {
        false
    }
}

struct Sqlite(tempfile::TempDir);

#[async_trait::async_trait]
impl conformance::Subject for Sqlite {
    async fn open(&self, name: &str) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::new(SqliteStore::open(self.0.path().join(name)).await?))
    }

    fn durable(&self) -> bool {
        true
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_store_conforms() {
    assert_eq!(conformance::run(&Memory).await.unwrap(), 13);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sqlite_store_conforms() {
    let subject = Sqlite(tempfile::tempdir().unwrap());
    assert_eq!(conformance::run(&subject).await.unwrap(), 13);
}
