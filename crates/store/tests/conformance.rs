//! Every adapter keeps every promise, on real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::sync::Arc;
use stvor_store::{
    MemoryStore, PostgresStores, RedisStores, SqliteStore, Store, StoreError, StorePlace, StoreProvider,
    conformance,
};
use stvor_testkit::{Postgres, Redis, RedisCluster};

/// Checks of the suite for every adapter, and of the one for several openings.
const CHECKS: usize = 19;
const SHARED_CHECKS: usize = 5;

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

/// Stores at a server: a place for each check.
struct Served(Box<dyn StoreProvider>);

#[async_trait::async_trait]
impl conformance::Subject for Served {
    async fn open(&self, name: &str) -> Result<Arc<dyn Store>, StoreError> {
        self.0.open(&StorePlace::new("ws://relay", "app", name)).await
    }

    fn durable(&self) -> bool {
        true
    }
}

async fn conforms(stores: impl StoreProvider) {
    let subject = Served(Box::new(stores));
    assert_eq!(conformance::run(&subject).await.unwrap(), CHECKS);
    assert_eq!(conformance::run_shared(&subject).await.unwrap(), SHARED_CHECKS);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_store_conforms() {
    assert_eq!(conformance::run(&Memory).await.unwrap(), CHECKS);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sqlite_store_conforms() {
    let subject = Sqlite(tempfile::tempdir().unwrap());
    assert_eq!(conformance::run(&subject).await.unwrap(), CHECKS);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_postgres_store_conforms() {
    let Some(server) = Postgres::start().unwrap() else { return };
    conforms(PostgresStores::new(&server.database().unwrap().url).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_redis_store_conforms() {
    let Some(server) = Redis::start().unwrap() else { return };
    conforms(RedisStores::new(&server.url()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_redis_store_conforms_on_a_cluster() {
    let Some(cluster) = RedisCluster::start().unwrap() else { return };
    conforms(RedisStores::new(&cluster.urls()[1]).unwrap()).await;
}
