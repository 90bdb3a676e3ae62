//! Every bound of this crate, each with its reason.

use core::time::Duration;
use stvor_base::Timestamp;

/// Bytes in one value as an adapter sees it, sealed: 256 KiB. A session record, a message and a prekey batch are far
/// below; larger things are attachments and do not belong in rows.
pub const MAX_VALUE: usize = 256 * 1024;

/// Bytes that sealing adds to a value: a 12-byte nonce and a 16-byte tag.
pub const SEAL_OVERHEAD: usize = 28;

/// Bytes in one value before sealing.
pub const MAX_PLAIN_VALUE: usize = MAX_VALUE - SEAL_OVERHEAD;

/// Bytes in a partition or in a sort key. Addresses (the longest names) stay below it twice over.
pub const MAX_KEY_PART: usize = 512;

/// Operations in one change set: a full one-time prekey batch of both kinds, 2,000 skipped keys and the rows of a
/// message fit several times.
pub const MAX_OPS: usize = 8_192;

/// Bytes of keys and values in one change set: 16 MiB, so that a queue of change sets has a bound in bytes.
pub const MAX_CHANGE_BYTES: usize = 16 * 1024 * 1024;

/// Keys in one [`Store::get`](crate::Store::get): the rows that a decryption can name (2,000 skipped keys and 41
/// sessions) fit.
pub const MAX_GET: usize = 4_096;

/// Rows in one page of a scan, and rows that one sweep removes.
pub const MAX_SCAN: usize = 1_000;

/// Bytes of values in one page of a scan; the page ends early and says so. 8 MiB.
pub const MAX_SCAN_BYTES: usize = 8 * 1024 * 1024;

/// Bytes of change sets that wait for the SQLite writer or are being written; a further `commit` waits for room. 64 MiB,
/// and as much again in memory: each is kept beside the queue until it is applied, since it may have to be tried again.
pub const MAX_QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// The least that a waiting change set counts for, so that there are at most 1,024.
pub const QUEUE_UNIT_BYTES: usize = 64 * 1024;

/// Bytes of a database up to which opening it checks every page; above, damage is found when a page is read. 64 MiB.
pub const MAX_CHECK_BYTES: u64 = 64 * 1024 * 1024;

/// Change sets that share one transaction and one fsync.
pub const MAX_GROUP: usize = 256;

/// Groups that are on their way to a Redis at once: the server works on one while the other is made or answered.
pub const GROUPS_AT_ONCE: usize = 2;

/// Change sets that one call of a function of Redis has: others wait for it while it runs.
pub const SETS_PER_CALL: usize = 32;

/// The longest that the writer waits for more change sets to share its fsync, in microseconds.
pub const MAX_GROUP_WAIT_MICROS: u64 = 2_000;

/// SQLite connections that read.
pub const READERS: usize = 4;

/// The latest expiry of a row: SQL databases have signed 64-bit numbers. Sealing brings a later one down to it.
pub const LATEST_EXPIRY: Timestamp = Timestamp::from_millis(u64::MAX >> 1);

/// Epoch keys that a sealed store keeps at hand. Rows written in one opening of the store share one.
pub const MAX_EPOCH_KEYS: usize = 64;

/// Seals under one epoch key. Nonces are 96 random bits, for which SP 800-38D allows 2^32 seals a key.
pub const MAX_SEALS_PER_EPOCH: u64 = 1 << 32;

/// How often an opening tries to take an epoch: each failed try means that another process took one, so it takes as many
/// processes that open one store at the same moment to pass this.
pub const MAX_EPOCH_TRIES: usize = 256;

/// Bytes of change sets that share one transaction on a server: 16 MiB, as many as the largest one has.
pub const MAX_GROUP_BYTES: usize = MAX_CHANGE_BYTES;

/// Connections to a database server that all stores of one provider share.
pub const SERVER_CONNECTIONS: usize = 16;

/// Servers of a Redis Cluster that are remembered besides those that were named, to dial it again: all are dialled at once, and
/// one that answers is enough.
pub const CLUSTER_SERVERS: usize = 16;

/// How long dialling a database server may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a database server may take for one answer; also how long it keeps a transaction whose client was cut off.
pub const SERVER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a call waits for a database server that went away, until that is an error.
pub const SERVER_PATIENCE: Duration = Duration::from_secs(30);

/// How long one call of a narrow adapter may take, if nothing else was said.
pub const ADAPTER_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes of one state of a narrow adapter before it is sealed. 32 MiB: a full change set, and the keys of many rows that it
/// deletes.
pub const MAX_STATE: usize = 32 * 1024 * 1024;

/// Ids that the journal of a narrow store is kept under, in a ring.
pub const JOURNAL_SLOTS: u64 = 64;

/// Entries of the journal after which pages are written: well before the ring is full, so that a commit seldom waits for it.
pub const JOURNAL_LENGTH: u64 = 48;

/// Bytes of the journal after which pages are written. 4 MiB.
pub const JOURNAL_BYTES: usize = 4 * 1024 * 1024;

/// How long a narrow store rests before it writes pages by itself.
pub const JOURNAL_REST: Duration = Duration::from_millis(200);

/// Bytes of change sets from which on no further ones share an entry of the journal. 1 MiB.
pub const GROUP_BYTES: usize = 1024 * 1024;

/// Bytes of rows in a page of a narrow store, unless one row has more. 64 KiB.
pub const PAGE_BYTES: usize = 64 * 1024;

/// Peers whose sessions are kept under their own ids; those of more peers are kept with the other rows. Their names
/// are in the head, which is written with each set of pages.
pub const MAX_NAMES: usize = 1_024;

/// Commits that wait for a narrow store's writer; a further one waits for room.
pub const NARROW_QUEUE: usize = 64;

/// States that are loaded side by side when a narrow store is opened.
pub const NARROW_LOADS: usize = 16;

/// How long an adapter may take to answer before the caller gets [`StoreError::Timeout`](crate::StoreError::Timeout).
pub const ADAPTER_PATIENCE: Duration = Duration::from_secs(120);
