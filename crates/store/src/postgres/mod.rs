//! Rows in PostgreSQL: one transaction for each group of change sets, checked under a lock of their store.
//!
//! One database serves any number of users, and any number of processes may have one user's store open. What a commit
//! acknowledged is as durable as the server's settings make it: [`StoreProvider::findings`](crate::StoreProvider::findings)
//! tells which of them would lose it. When a connection breaks while a commit is under way, the adapter connects again
//! and finds out whether it was applied, by a mark that every transaction leaves.

mod connect;
mod rows;
mod writer;

use crate::adapter::{Page, Row, RowValue, Scan, Stats, Store, check_commit, check_get, check_sweep};
use crate::change::{ChangeSet, Key};
use crate::provider::{Finding, StoreFacts, StorePlace, StoreProvider};
use crate::server::{Queue, ServerOptions, back_off};
use crate::{StoreError, limits};
use async_trait::async_trait;
use connect::{Connection, Pool, Server};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use stvor_base::Timestamp;
use stvor_crypto::{Secret, SystemRandom};
use tokio::time::{Instant, timeout};
use writer::Writer;

/// Stores in a PostgreSQL database, version 14 or later: one for each place, all in the same tables.
///
/// ```no_run
/// use std::sync::Arc;
/// use stvor_store::{OpenKey, PostgresStores, SecretBytes, StorePlace, open_at};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let stores = PostgresStores::new("postgres://stvor@db.example/stvor?sslmode=require")?;
/// let place = StorePlace::new("wss://relay.example:443", "app", "bot");
/// let key = OpenKey::Passphrase(SecretBytes::from_slice(b"from a file or a prompt"));
/// let store = open_at(&stores, &place, key).await?.store;
/// # Ok::<(), stvor_store::StoreError>(())
/// # });
/// ```
#[derive(Clone)]
pub struct PostgresStores {
    server: Server,
    pool: Pool,
}

impl core::fmt::Debug for PostgresStores {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("PostgresStores").field(&self.server.name).finish()
    }
}

impl PostgresStores {
    /// Stores at a URL as libpq reads it: `postgres://user@host:port/database?sslmode=require`. Several hosts
    /// with `target_session_attrs=read-write` follow a failover. Nothing is dialled yet.
    ///
    /// # Errors
    /// [`StoreError::Adapter`] when the URL can not be read.
    pub fn new(url: &str) -> Result<Self, StoreError> {
        Self::with_options(url, ServerOptions::new())
    }

    /// [`PostgresStores::new`] with certificates or a password from files.
    ///
    /// # Errors
    /// As [`PostgresStores::new`].
    pub fn with_options(url: &str, options: ServerOptions) -> Result<Self, StoreError> {
        if !options.assured_settings.is_empty() {
            return Err(StoreError::Adapter(
                "PostgreSQL tells its settings: vouching for some (assured_settings) is for Redis".into(),
            ));
        }
        let server = Server::new(url, options)?;
        let pool = server.pool(limits::SERVER_CONNECTIONS)?;
        Ok(Self { server, pool })
    }

    async fn connection(&self) -> Result<Connection, StoreError> {
        self.pool.get().await.map_err(|failure| self.server.pool_error(failure))
    }

    /// Whether the schema is the newest. A connection that broke while it waited in the pool is no answer: another one is asked.
    async fn is_migrated(&self) -> Result<bool, StoreError> {
        let (deadline, mut broken) = (Instant::now() + limits::SERVER_TIMEOUT, 0);
        loop {
            let client = self.connection().await?;
            let asked = self.server.is_migrated(&client);
            let answer = self.server.in_time(limits::SERVER_TIMEOUT, asked).await;
            if !matches!(answer, Err(StoreError::Unreachable { .. })) {
                return answer;
            }
            drop(deadpool::managed::Object::take(client));
            if broken > limits::SERVER_CONNECTIONS || Instant::now() >= deadline {
                return answer;
            }
            broken += 1;
        }
    }
}

#[async_trait]
impl StoreProvider for PostgresStores {
    fn facts(&self) -> StoreFacts {
        StoreFacts { kind: "postgres", durable: true, shared: true, atomic: true, local: false }
    }

    async fn open(&self, place: &StorePlace) -> Result<Arc<dyn Store>, StoreError> {
        // Migrated, or made, by the first write: opening with a key that turns out to be wrong writes nothing.
        let ready = Arc::new(AtomicBool::new(self.is_migrated().await?));
        let random = Secret::<16>::random(&mut SystemRandom::new())?;
        let (place, acknowledged) = (place.tag(), Arc::new(AtomicI64::new(0)));
        let writer = Writer {
            server: self.server.clone(),
            pool: self.pool.clone(),
            place,
            writer: *random.expose(),
            seq: 0,
            acknowledged: Arc::clone(&acknowledged),
            ready: Arc::clone(&ready),
        };
        let queue = Queue::start(|jobs| writer.run(jobs));
        Ok(Arc::new(PostgresStore { stores: self.clone(), place, queue, acknowledged, ready }))
    }

    async fn findings(&self) -> Result<Vec<Finding>, StoreError> {
        let client = self.connection().await?;
        self.server.in_time(limits::SERVER_TIMEOUT, self.server.findings(&client)).await
    }

    async fn status(&self) -> Result<Vec<(&'static str, String)>, StoreError> {
        let client = self.connection().await?;
        self.server.in_time(limits::SERVER_TIMEOUT, self.server.status(&client)).await
    }
}

/// One place's rows.
struct PostgresStore {
    stores: PostgresStores,
    place: [u8; 16],
    queue: Queue,
    /// What the writer holds the server to.
    acknowledged: Arc<AtomicI64>,
    /// The tables are of the newest version.
    ready: Arc<AtomicBool>,
}

impl core::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("PostgresStore").field(&self.stores.server.name).finish()
    }
}

impl PostgresStore {
    /// Reads, and again on another connection while the server is away.
    async fn read(&self, ask: Ask<'_>) -> Result<Found, StoreError> {
        let server = &self.stores.server;
        let (deadline, mut tries) = (Instant::now() + limits::SERVER_PATIENCE, 0);
        loop {
            if self.queue.is_closed() {
                return Err(StoreError::Closed);
            }
            let (error, again) = match self.stores.connection().await {
                Ok(client) => {
                    let failed = match timeout(limits::SERVER_TIMEOUT, self.read_on(&client, ask)).await {
                        Ok(Ok(found)) => return found,
                        Ok(Err(failure)) => (server.error(&failure), connect::is_transient(&failure)),
                        Err(_) => {
                            let reason = "it did not answer in time".to_owned();
                            (StoreError::Unreachable { server: server.name.to_string(), reason }, true)
                        }
                    };
                    drop(deadpool::managed::Object::take(client));
                    failed
                }
                Err(error) => (error.clone(), matches!(error, StoreError::Unreachable { .. })),
            };
            if !again || Instant::now() >= deadline {
                return Err(error);
            }
            back_off(&mut tries).await;
        }
    }

    async fn read_on(
        &self,
        client: &Connection,
        ask: Ask<'_>,
    ) -> Result<Result<Found, StoreError>, tokio_postgres::Error> {
        // Until something was written nobody may have made a store in this database.
        if !self.ready.load(Ordering::Relaxed) && !connect::has_tables(client).await? {
            return Ok(Ok(ask.nothing()));
        }
        Ok(match ask {
            Ask::Get(keys) => rows::get(client, &self.place, keys).await?.map(Found::Rows),
            Ask::Scan(scan) => rows::scan(client, &self.place, scan).await?.map(Found::Page),
            Ask::Walk(after, limit) => {
                rows::walk(client, &self.place, (after, limit)).await?.map(Found::Page)
            }
            Ask::Count => Ok(Found::Count(rows::count(client, &self.place).await?)),
        })
    }
}

/// A read.
#[derive(Clone, Copy)]
enum Ask<'a> {
    Get(&'a [Key]),
    Scan(&'a Scan),
    Walk(Option<&'a Key>, usize),
    Count,
}

impl Ask<'_> {
    /// What there is in a database without any store.
    fn nothing(self) -> Found {
        match self {
            Self::Get(keys) => Found::Rows(vec![None; keys.len()]),
            Self::Scan(_) | Self::Walk(..) => Found::Page(Page { rows: Vec::new(), more: false }),
            Self::Count => Found::Count((0, 0)),
        }
    }
}

/// What a read found.
enum Found {
    Rows(Vec<Option<Row>>),
    Page(Page<Row>),
    Count((u64, u64)),
}

/// A read answers what it was asked.
fn mixed_up<T>() -> Result<T, StoreError> {
    Err(StoreError::Adapter("a read was answered by another one's answer".into()))
}

#[async_trait]
impl Store for PostgresStore {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Row>>, StoreError> {
        check_get(keys)?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        match self.read(Ask::Get(keys)).await? {
            Found::Rows(rows) => Ok(rows),
            _ => mixed_up(),
        }
    }

    async fn scan(&self, scan: Scan) -> Result<Page<Row>, StoreError> {
        scan.check()?;
        match self.read(Ask::Scan(&scan)).await? {
            Found::Page(page) => Ok(page),
            _ => mixed_up(),
        }
    }

    async fn commit(&self, changes: ChangeSet<RowValue>) -> Result<(), StoreError> {
        check_commit(&changes)?;
        self.queue.commit(changes).await
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        check_sweep(limit)?;
        self.queue.sweep(now, limit).await
    }

    async fn walk(&self, after: Option<&Key>, limit: usize) -> Result<Page<Row>, StoreError> {
        check_sweep(limit)?;
        after.map_or(Ok(()), Key::check)?;
        match self.read(Ask::Walk(after, limit)).await? {
            Found::Page(page) => Ok(page),
            _ => mixed_up(),
        }
    }

    fn accept_put_back(&self) {
        self.acknowledged.store(0, Ordering::SeqCst);
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        let Found::Count((rows, value_bytes)) = self.read(Ask::Count).await? else { return mixed_up() };
        // Several places share the tables: what one of them takes on the disk nobody knows better.
        Ok(Stats { rows, value_bytes, disk_bytes: value_bytes })
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.queue.close().await;
        Ok(())
    }
}
