//! A store in memory that several clients open as if they were processes, and clients that can be killed.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use stvor::store::{
    ChangeSet, Key, MemoryStore, Page, Row, RowValue, Scan, Stats, Store, StoreError, StoreFacts, StorePlace,
    StoreProvider,
};
use stvor::{App, Client, Clock, Timestamp};
use tokio::runtime::Runtime;

use super::builder;

/// One store in memory for all that open it.
#[derive(Debug, Clone, Default)]
pub struct SharedMemory {
    rows: Arc<MemoryStore>,
    /// One process has it to itself.
    alone: bool,
    steps: Arc<AtomicUsize>,
}

impl SharedMemory {
    /// One that is of one process, and is there when that opens it again.
    pub fn alone() -> Self {
        Self { alone: true, ..Self::default() }
    }

    /// How often it was asked something, or had done it.
    pub fn steps(&self) -> usize {
        self.steps.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl StoreProvider for SharedMemory {
    fn facts(&self) -> StoreFacts {
        // What is opened again by one process is sealed as what is on a disk.
        let (durable, shared) = (self.alone, !self.alone);
        StoreFacts { kind: "shared memory", durable, shared, atomic: true, local: false }
    }

    async fn open(&self, _: &StorePlace) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::new(Opened {
            rows: Arc::clone(&self.rows),
            alone: self.alone,
            steps: Arc::clone(&self.steps),
        }))
    }
}

/// Closing it closes it for nobody else.
#[derive(Debug)]
struct Opened {
    rows: Arc<MemoryStore>,
    alone: bool,
    steps: Arc<AtomicUsize>,
}

impl Opened {
    /// As over a network: other tasks run between a question and what is done about it.
    async fn step(&self) {
        self.steps.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
    }
}

#[async_trait]
impl Store for Opened {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Row>>, StoreError> {
        self.step().await;
        self.rows.get(keys).await
    }

    async fn scan(&self, scan: Scan) -> Result<Page<Row>, StoreError> {
        self.step().await;
        self.rows.scan(scan).await
    }

    async fn commit(&self, changes: ChangeSet<RowValue>) -> Result<(), StoreError> {
        self.step().await;
        let done = self.rows.commit(changes).await;
        if self.alone {
            // Who has it alone may be dropped between what is done and its answer.
            self.step().await;
        }
        done
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        self.rows.sweep(now, limit).await
    }

    async fn walk(&self, after: Option<&Key>, limit: usize) -> Result<Page<Row>, StoreError> {
        self.rows.walk(after, limit).await
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        self.rows.stats().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// How long an instance of these tests may be silent.
pub const LEASE: Duration = Duration::from_millis(1_500);

/// Everything that instances of one user have in common.
#[derive(Clone)]
pub struct Fleet {
    pub url: String,
    pub stores: Arc<dyn StoreProvider>,
    pub keyfile: PathBuf,
    pub clock: Option<Arc<dyn Clock>>,
}

impl Fleet {
    /// Instances on a store in memory; their common key stands in `directory`.
    pub fn in_memory(url: &str, directory: &Path) -> Self {
        let stores = Arc::new(SharedMemory::default());
        Self { url: url.to_owned(), stores, keyfile: directory.join("key"), clock: None }
    }

    pub async fn app(&self) -> App {
        let builder = builder(&self.url).store(Arc::clone(&self.stores)).keyfile(&self.keyfile);
        let builder = match &self.clock {
            Some(clock) => builder.clock(Arc::clone(clock)),
            None => builder,
        };
        builder.instance_lease(LEASE).open().await.unwrap()
    }

    pub async fn start(&self, user: &str) -> Instance {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let (fleet, user) = (self.clone(), user.to_owned());
        let connected = runtime.spawn(async move { fleet.app().await.connect(&user).await.unwrap() });
        let client = connected.await.unwrap();
        Instance { runtime: Some(runtime), client: Some(client) }
    }
}

/// A client in a runtime of its own, so that all of it can end at any await.
pub struct Instance {
    runtime: Option<Runtime>,
    client: Option<Client>,
}

impl Instance {
    /// Does something there.
    pub async fn run<T, F>(&self, act: impl FnOnce(Client) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.spawn(act).await.unwrap()
    }

    /// Starts something there, which ends with it.
    pub fn spawn<T, F>(&self, act: impl FnOnce(Client) -> F) -> tokio::task::JoinHandle<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let runtime = self.runtime.as_ref().expect("it runs");
        runtime.spawn(act(self.client.clone().expect("it runs")))
    }

    /// As `kill -9`: nothing of it goes on, and nobody is told.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        // Dropping its last handle must not close it in order, in the runtime of the test.
        let _never_dropped = core::mem::ManuallyDrop::new(self.client.take());
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.end();
    }
}
