//! A store in memory that does not answer what a test wants it not to.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use stvor_base::Timestamp;
use stvor_store::{
    ChangeSet, Key, MemoryStore, Op, Page, Row, RowValue, Scan, Stats, Store, StoreError, StoreFacts,
    StorePlace, StoreProvider, Table,
};

type Which = fn(&Scan) -> bool;

#[derive(Debug, Default)]
pub(crate) struct Hiccups {
    rows: MemoryStore,
    away: Mutex<Option<Which>>,
    refused: AtomicUsize,
    full: AtomicBool,
    lost: Mutex<Option<Table>>,
}

impl Hiccups {
    /// Answers none of these from now on.
    pub(crate) fn refuse(&self, which: Option<Which>) {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = which;
    }

    /// Takes nothing from now on, or again everything.
    pub(crate) fn fill(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    /// Takes the next commit that has to do with this table, and answers as if the connection broke meanwhile.
    pub(crate) fn lose_answer(&self, of: Table) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(of);
    }

    /// The row at this place on disk.
    pub(crate) async fn row(&self, at: &Key) -> RowValue {
        self.rows.get(core::slice::from_ref(at)).await.unwrap().pop().flatten().unwrap().value
    }

    /// Writes a row as an attacker would who has the database.
    pub(crate) async fn put(&self, at: &Key, row: RowValue) {
        self.rows.commit([Op::put(at.clone(), row)].into_iter().collect()).await.unwrap();
    }

    /// Alters a row, so that it does not open any more.
    pub(crate) async fn alter(&self, at: &Key) {
        let mut row = self.row(at).await;
        *row.bytes.last_mut().unwrap() ^= 1;
        self.put(at, row).await;
    }

    /// How many of them were asked.
    pub(crate) fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }
}

#[async_trait::async_trait]
impl Store for Hiccups {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Row>>, StoreError> {
        self.rows.get(keys).await
    }
    async fn scan(&self, scan: Scan) -> Result<Page<Row>, StoreError> {
        let away = *self.away.lock().unwrap_or_else(PoisonError::into_inner);
        if away.is_some_and(|which| which(&scan)) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(StoreError::Unreachable { server: "test".into(), reason: "away".into() });
        }
        self.rows.scan(scan).await
    }
    async fn commit(&self, changes: ChangeSet<RowValue>) -> Result<(), StoreError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(StoreError::Full);
        }
        let lost = {
            let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            lost.take_if(|of| changes.ops.iter().any(|op| op.table() == *of))
        };
        self.rows.commit(changes).await?;
        match lost {
            Some(_) => Err(StoreError::Uncertain { server: "test".into() }),
            None => Ok(()),
        }
    }
    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        self.rows.sweep(now, limit).await
    }
    async fn stats(&self) -> Result<Stats, StoreError> {
        self.rows.stats().await
    }
    async fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Opens that one.
#[derive(Debug)]
struct Opens {
    store: Arc<Hiccups>,
    shared: bool,
}

#[async_trait::async_trait]
impl StoreProvider for Opens {
    fn facts(&self) -> StoreFacts {
        StoreFacts { kind: "hiccups", durable: false, shared: self.shared, atomic: true, local: false }
    }

    async fn open(&self, _: &StorePlace) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::clone(&self.store) as Arc<dyn Store>)
    }
}

/// A client on such a store whose relay is not there.
pub(crate) async fn client(store: &Arc<Hiccups>) -> crate::Client {
    connect(crate::App::builder(), (store, false)).await
}

/// One of several on such a store, whose key is in a directory.
pub(crate) async fn instance(store: &Arc<Hiccups>, directory: &tempfile::TempDir) -> crate::Client {
    connect(crate::App::builder().keyfile(directory.path().join("key")), (store, true)).await
}

async fn connect(app: crate::AppBuilder, (store, shared): (&Arc<Hiccups>, bool)) -> crate::Client {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let app = app.app_token("stvor_dev_test123").relay_url(format!("ws://{nobody}"));
    let opens = Opens { store: Arc::clone(store), shared };
    let options = crate::ConnectOptions { allow_unregistered: true, ..crate::ConnectOptions::default() };
    app.store(Arc::new(opens)).open().await.unwrap().connect_with("alice", options).await.unwrap()
}
