//! Rows in Redis 7 or later, single or Cluster: a server-side function commits change sets, each of them whole or not at all.
//!
//! All keys of a place have one hash tag, so a place is in one slot: `stvor:{…}:rows`, `:order`, `:expiry` and `:meta`. Any
//! number of processes may have one user's store open. What a commit acknowledged is as durable as the server's settings
//! make it: [`StoreProvider::findings`](crate::StoreProvider::findings) tells which of them would lose it. A call whose
//! answer was lost is repeated; the function knows it again and answers as before.

mod link;
mod writer;

use crate::adapter::{Page, Row, RowValue, Scan, Stats, Store, check_commit, check_get, check_sweep};
use crate::change::{ChangeSet, Key, RowVersion};
use crate::provider::{Finding, StoreFacts, StorePlace, StoreProvider};
use crate::seal::removed_for_good;
use crate::server::{Queue, ServerOptions, back_off};
use crate::{StoreError, Table, limits};
use async_trait::async_trait;
use link::Link;
use redis::{Cmd, FromRedisValue, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use stvor_base::Timestamp;
use stvor_crypto::{Secret, SystemRandom};
use tokio::time::Instant;
use writer::Writer;

/// The newest layout of keys and rows that this build reads.
const SCHEMA: u32 = 1;

/// Version (8) and expiry (8) stand before the sealed bytes of a row.
const HEAD: usize = 16;

/// The expiry of a row that has none.
const NEVER: u64 = u64::MAX;

/// Stores in Redis: one for each place.
///
/// ```no_run
/// use std::sync::Arc;
/// use stvor_store::{OpenKey, RedisStores, SecretBytes, ServerOptions, StorePlace, StoreProvider, open_at};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let options = ServerOptions::new().password_file("/run/secrets/redis");
/// let stores = RedisStores::with_options(&["rediss://redis.example:6379"], options)?;
/// for finding in stores.findings().await? {
///     eprintln!("{finding}"); // appendfsync and the like
/// }
/// let place = StorePlace::new("wss://relay.example:443", "app", "bot");
/// let key = OpenKey::Passphrase(SecretBytes::from_slice(b"from a file or a prompt"));
/// let store = open_at(&stores, &place, key).await?.store;
/// # Ok::<(), stvor_store::StoreError>(())
/// # });
/// ```
#[derive(Clone)]
pub struct RedisStores {
    /// For reads; and for writes, which may wait for replicas and would make reads wait, too.
    reads: Arc<Link>,
    writes: Arc<Link>,
}

impl core::fmt::Debug for RedisStores {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("RedisStores").field(&self.reads.name).finish()
    }
}

impl RedisStores {
    /// Stores at a server or at a cluster, of which this is one server: `redis://` or, with TLS, `rediss://`. Nothing is
    /// dialled yet.
    ///
    /// # Errors
    /// [`StoreError::Adapter`] when the URL can not be read.
    pub fn new(url: &str) -> Result<Self, StoreError> {
        Self::with_options(&[url], ServerOptions::new())
    }

    /// [`RedisStores::new`] with certificates or a password from files, and with several servers: of a cluster, to begin
    /// at, or a primary and its replicas, of which the first that is a primary is taken.
    ///
    /// # Errors
    /// As [`RedisStores::new`].
    pub fn with_options(urls: &[&str], options: ServerOptions) -> Result<Self, StoreError> {
        // The library takes the process's provider of primitives; where the application has chosen none, it is ours.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let reads = Arc::new(Link::new(urls, options)?);
        let writes = Arc::new(Link::for_writes(&reads));
        Ok(Self { reads, writes })
    }
}

#[async_trait]
impl StoreProvider for RedisStores {
    fn facts(&self) -> StoreFacts {
        StoreFacts { kind: "redis", durable: true, shared: true, atomic: true, local: false }
    }

    async fn open(&self, place: &StorePlace) -> Result<Arc<dyn Store>, StoreError> {
        // A server that is not there is an error at once.
        self.reads.connection().await?;
        let random = Secret::<16>::random(&mut SystemRandom::new())?;
        let keys = Keys::new(place);
        let link = Arc::clone(&self.reads);
        let (writer_link, writer_keys) = (Arc::clone(&self.writes), keys.clone());
        let (name, acknowledged) = (hex(random.expose()), Arc::new(AtomicU64::new(0)));
        let writer = Writer::new((writer_link, writer_keys), name, Arc::clone(&acknowledged));
        let queue = Queue::start(|jobs| writer.run(jobs));
        let store = RedisStore { link, keys, queue, acknowledged };
        let checked = store.check_schema().await;
        if checked.is_err() {
            store.queue.close().await;
        }
        checked.map(|()| Arc::new(store) as Arc<dyn Store>)
    }

    async fn findings(&self) -> Result<Vec<Finding>, StoreError> {
        self.reads.findings().await
    }

    async fn status(&self) -> Result<Vec<(&'static str, String)>, StoreError> {
        let mut status = self.reads.status().await?;
        status.push(("schema", SCHEMA.to_string()));
        Ok(status)
    }

    /// The four keys of the place go, marks of openings included; then the note that this was meant is made.
    async fn destroy(&self, place: &StorePlace) -> Result<(), StoreError> {
        let mut command = redis::cmd("DEL");
        Keys::new(place).all().iter().for_each(|key| {
            command.arg(key);
        });
        let (mut connection, number) = self.writes.connection().await?;
        let done = connection.query(&command).await;
        if done.is_err() {
            self.writes.broke(number).await;
        }
        done.map_err(|error| self.writes.error(&error))?;
        let store = self.open(place).await?;
        let noted = store.commit(removed_for_good()).await;
        noted.and(store.close().await)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// The names of a place's keys.
#[derive(Debug, Clone)]
struct Keys([String; 4]);

impl Keys {
    fn new(place: &StorePlace) -> Self {
        let tag = hex(&place.tag());
        Self(["rows", "order", "expiry", "meta"].map(|name| format!("stvor:{{{tag}}}:{name}")))
    }

    fn all(&self) -> &[String; 4] {
        &self.0
    }

    fn rows(&self) -> &str {
        let [rows, ..] = &self.0;
        rows
    }

    fn order(&self) -> &str {
        let [_, order, ..] = &self.0;
        order
    }

    fn meta(&self) -> &str {
        let [.., meta] = &self.0;
        meta
    }

    /// The begin of a call of a function.
    fn call(&self, command: &str, function: &str) -> Cmd {
        let mut call = redis::cmd(command);
        call.arg(function).arg(self.0.len()).arg(&self.0);
        call
    }
}

/// What all fields of a partition begin with: table 1, length of the partition 2, partition.
fn partition_prefix(table: Table, partition: &[u8]) -> Vec<u8> {
    let length = u16::try_from(partition.len()).unwrap_or(u16::MAX);
    [&[table.id()], length.to_be_bytes().as_slice(), partition].concat()
}

fn field(key: &Key) -> Vec<u8> {
    let mut field = partition_prefix(key.table, &key.partition);
    field.extend_from_slice(&key.sort);
    field
}

/// The key whose field this is.
fn key_of(field: &[u8]) -> Option<Key> {
    let (&table, rest) = field.split_first()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (partition, sort) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    Some(Key::new(Table::from_id(table)?, partition, sort))
}

/// The first bytes that come after everything with this prefix. A prefix begins with a table's number, which is not 255.
fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            break;
        }
    }
    end
}

fn encode(value: &RowValue, expires: Option<Timestamp>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + value.bytes.len());
    bytes.extend_from_slice(&value.version.0.to_be_bytes());
    bytes.extend_from_slice(&expires.map_or(NEVER, |at| at.as_millis()).to_be_bytes());
    bytes.extend_from_slice(&value.bytes);
    bytes
}

fn decode(bytes: &[u8]) -> Result<(RowValue, Option<Timestamp>), StoreError> {
    let damaged = || StoreError::corrupt("a row in Redis has not the size of a row");
    let (version, rest) = bytes.split_first_chunk::<8>().ok_or_else(damaged)?;
    let (expires, sealed) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
    if sealed.len() > limits::MAX_VALUE {
        return Err(damaged());
    }
    let expires = u64::from_be_bytes(*expires);
    let value = RowValue { bytes: sealed.to_vec(), version: RowVersion(u64::from_be_bytes(*version)) };
    Ok((value, (expires != NEVER).then(|| Timestamp::from_millis(expires))))
}

/// A field and what it holds.
type Found = (Vec<u8>, RowValue, Option<Timestamp>);

/// One place's rows.
struct RedisStore {
    link: Arc<Link>,
    keys: Keys,
    queue: Queue,
    /// What the writer holds the server to.
    acknowledged: Arc<AtomicU64>,
}

impl core::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("RedisStore").field(&self.link.name).finish()
    }
}

impl RedisStore {
    /// Asks, and again on another connection while the server is away.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let (deadline, mut tries) = (Instant::now() + limits::SERVER_PATIENCE, 0);
        loop {
            if self.queue.is_closed() {
                return Err(StoreError::Closed);
            }
            let error = match self.ask_once(command).await {
                Ok(answer) => return self.read(answer),
                Err(error) => error,
            };
            if !matches!(error, StoreError::Unreachable { .. }) || Instant::now() >= deadline {
                return Err(error);
            }
            back_off(&mut tries).await;
        }
    }

    async fn ask_once(&self, command: &Cmd) -> Result<Value, StoreError> {
        let (mut connection, number) = self.link.connection().await?;
        let failure = match connection.query(command).await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        if writer::is_unknown_function(failure.code(), failure.detail()) {
            self.link.load(&mut connection, self.keys.meta()).await?;
            return Err(self.link.unreachable("its functions were gone and are loaded again"));
        }
        let error = self.link.error(&failure);
        if matches!(error, StoreError::Unreachable { .. }) {
            self.link.broke(number).await;
        }
        Err(error)
    }

    /// Rows by their fields, from one on and before another, and whether more follow.
    async fn range(
        &self,
        (from, end): (Vec<u8>, Vec<u8>),
        (limit, reverse): (usize, bool),
    ) -> Result<(Vec<Found>, bool), StoreError> {
        let mut call = self.keys.call("FCALL_RO", "stvor_v5_scan");
        call.arg(from).arg(end).arg(limit).arg(u8::from(reverse)).arg(limits::MAX_SCAN_BYTES);
        let answer: Vec<Value> = self.ask(&call).await?;
        let mut answer = answer.into_iter();
        let more = self.read::<i64>(answer.next().unwrap_or(Value::Nil))? == 1;
        let mut found = Vec::with_capacity(answer.len() / 2);
        while let (Some(name), Some(bytes)) = (answer.next(), answer.next()) {
            let (name, bytes): (Vec<u8>, Vec<u8>) = (self.read(name)?, self.read(bytes)?);
            let (value, expires) = decode(&bytes)?;
            found.push((name, value, expires));
        }
        Ok((found, more))
    }

    fn read<T: FromRedisValue>(&self, answer: Value) -> Result<T, StoreError> {
        redis::from_redis_value(answer).map_err(|_| {
            StoreError::corrupt(format!("{} answers otherwise than a store does", self.link.name))
        })
    }

    /// Refuses a layout of a newer version, untouched.
    async fn check_schema(&self) -> Result<(), StoreError> {
        let mut ask = redis::cmd("HGET");
        ask.arg(self.keys.meta()).arg("schema");
        match self.ask::<Option<u32>>(&ask).await? {
            Some(found) if found > SCHEMA => Err(StoreError::TooNew { found, known: SCHEMA }),
            // The first write notes it: nothing is written by opening.
            _ => Ok(()),
        }
    }

    async fn length(&self, command: &str, key: &str) -> Result<u64, StoreError> {
        let mut count = redis::cmd(command);
        count.arg(key);
        self.ask(&count).await
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Row>>, StoreError> {
        check_get(keys)?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("HMGET");
        command.arg(self.keys.rows());
        keys.iter().for_each(|key| {
            command.arg(field(key));
        });
        let found: Vec<Option<Vec<u8>>> = self.ask(&command).await?;
        let row = |(key, bytes): (&Key, Option<Vec<u8>>)| {
            let read = bytes.map(|bytes| decode(&bytes)).transpose()?;
            Ok(read.map(|(value, expires)| Row { key: key.clone(), value, expires }))
        };
        keys.iter().zip(found).map(row).collect()
    }

    async fn scan(&self, scan: Scan) -> Result<Page<Row>, StoreError> {
        scan.check()?;
        let prefix = partition_prefix(scan.table, &scan.partition);
        let from = [prefix.as_slice(), scan.from.as_deref().unwrap_or_default()].concat();
        let end = match &scan.before {
            Some(before) => [prefix.as_slice(), before].concat(),
            None => after(&prefix),
        };
        let (found, more) = self.range((from, end), (scan.limit, scan.reverse)).await?;
        let mut rows = Vec::with_capacity(found.len());
        for (name, value, expires) in found {
            let sort = name.strip_prefix(prefix.as_slice());
            let sort = sort.ok_or_else(|| StoreError::corrupt("a scan met a row of another partition"))?;
            rows.push(Row { key: Key::new(scan.table, scan.partition.as_slice(), sort), value, expires });
        }
        Ok(Page { rows, more })
    }

    async fn commit(&self, changes: ChangeSet<RowValue>) -> Result<(), StoreError> {
        check_commit(&changes)?;
        self.queue.commit(changes).await
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        check_sweep(limit)?;
        self.queue.sweep(now, limit).await
    }

    /// In the order of the fields: by table, by length of the partition, by partition, by sort key.
    async fn walk(&self, after: Option<&Key>, limit: usize) -> Result<Page<Row>, StoreError> {
        check_sweep(limit)?;
        after.map_or(Ok(()), Key::check)?;
        let from = after.map_or_else(Vec::new, |key| [field(key).as_slice(), &[0]].concat());
        let (found, more) = self.range((from, vec![u8::MAX]), (limit, false)).await?;
        let row = |(name, value, expires): (Vec<u8>, _, _)| {
            let key = key_of(&name).ok_or_else(|| StoreError::corrupt("a field is no key of a row"))?;
            Ok(Row { key, value, expires })
        };
        Ok(Page { rows: found.into_iter().map(row).collect::<Result<_, StoreError>>()?, more })
    }

    fn accept_put_back(&self) {
        self.acknowledged.store(0, Ordering::SeqCst);
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        let mut rows = self.length("HLEN", self.keys.rows()).await?;
        if rows == 0 && self.length("ZCARD", self.keys.order()).await? > 0 {
            // Another process may have made the first rows in between.
            rows = self.length("HLEN", self.keys.rows()).await?;
            if rows == 0 {
                return Err(StoreError::Emptied);
            }
        }
        let mut bytes = redis::cmd("HGET");
        bytes.arg(self.keys.meta()).arg("bytes");
        let value_bytes: Option<u64> = self.ask(&bytes).await?;
        let value_bytes = value_bytes.unwrap_or(0);
        Ok(Stats { rows, value_bytes, disk_bytes: value_bytes })
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.queue.close().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the first release wrote: it has to be read for ever.
    #[test]
    fn rows_have_the_bytes_of_layout_1() {
        let key = Key::new(Table::Custom, b"partition".as_slice(), b"sort".as_slice());
        assert_eq!(hex::encode(field(&key)), "400009706172746974696f6e736f7274");
        assert_eq!(key_of(&field(&key)), Some(key));
        let value = RowValue { bytes: b"sealed".to_vec(), version: RowVersion(0x0102_0304_0506_0708) };
        let at = Timestamp::from_millis(1_700_000_000_000);
        for (expires, bytes) in [
            (None, "0102030405060708ffffffffffffffff7365616c6564"),
            (Some(at), "01020304050607080000018bcfe568007365616c6564"),
        ] {
            assert_eq!(hex::encode(encode(&value, expires)), bytes);
            assert_eq!(decode(&hex::decode(bytes).unwrap()).unwrap(), (value.clone(), expires));
        }
    }
}
