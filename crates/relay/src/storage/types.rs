//! What goes in and out of a store.

use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use stvor_base::{Address, AppId, DeviceId, MessageId, Timestamp, UserId};
use stvor_wire::Code;
use stvor_wire::client::{CounterMac, Lane};
use stvor_wire::keys::{DeviceBundle, KeyCounts};
use stvor_wire::server::Registration;

/// The number of a device, and of its mailbox. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MailboxId(pub i64);

/// A device as it proved itself at log-in: its number, and which of its keys. A rotation keeps the number and raises the
/// generation, so whoever proved the keys of before acts no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The device.
    pub device: MailboxId,
    /// Counts the rotations of its keys.
    pub generation: u64,
}

/// A logical refusal: nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub code: Code,
    /// In words.
    pub detail: &'static str,
    /// For LANE_GAP: the number expected next.
    pub expected_lane: u64,
}

impl Refusal {
    /// A refusal.
    #[must_use]
    pub const fn new(code: Code, detail: &'static str) -> Self {
        Self { code, detail, expected_lane: 0 }
    }
}

/// An operation that did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store refused it.
    #[error("{}", .0.detail)]
    Refused(Refusal),
    /// The store can not work just now: disk full, database locked, queue full.
    #[error("the relay's store can not work now ({0}); retry, and look at the disk")]
    Unavailable(String),
    /// The database was written by a newer build.
    #[error("the relay's database has a newer format ({0}) than this build reads: start the newer build")]
    TooNew(String),
    /// The file is no database, or a part of it is missing or damaged.
    #[error(
        "the relay's database is damaged or is none ({0}): nothing was changed; put a backup in its place"
    )]
    Corrupt(String),
    /// Another relay holds the database.
    #[error("another relay uses the database {0}: stop it, or give this one a database of its own")]
    InUse(String),
}

impl StoreError {
    /// A refusal.
    #[must_use]
    pub const fn refused(code: Code, detail: &'static str) -> Self {
        Self::Refused(Refusal::new(code, detail))
    }
}

impl stvor_base::ErrorCode for StoreError {
    fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code.as_str(),
            Self::Unavailable(_) => "STORE_UNAVAILABLE",
            Self::TooNew(_) => "FORMAT_TOO_NEW",
            Self::Corrupt(_) => "STORE_CORRUPT",
            Self::InUse(_) => "STORE_IN_USE",
        }
    }

    fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// A message on its way into a mailbox.
#[derive(Debug, Clone)]
pub struct Put {
    /// Where to.
    pub mailbox: MailboxId,
    /// The app of both.
    pub app: Arc<AppId>,
    /// The sending device.
    pub sender: MailboxId,
    /// Of the keys that it proved itself with.
    pub generation: u64,
    /// The sending device's address, as authenticated.
    pub from: Arc<Address>,
    /// Chosen by the sender.
    pub msg_id: MessageId,
    /// Its place among the sender's messages to this mailbox.
    pub lane: Lane,
    /// The sender's counter.
    pub counter: u64,
    /// The sender's MAC over it, which nobody else can judge.
    pub counter_mac: Option<CounterMac>,
    /// The envelope.
    pub blob: Bytes,
    /// When the relay received it.
    pub received_at: Timestamp,
    /// When it is dropped.
    pub expires_at: Timestamp,
}

/// What became of a [`Put`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is durable, at this place.
    New {
        /// Its place in the mailbox.
        seq: u64,
    },
    /// It had been accepted before.
    Duplicate,
}

/// How an acknowledged message is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// By its place in the mailbox.
    Seq(u64),
    /// By its sender, together with its id: for copies that were delivered before they had a place.
    From(MailboxId),
}

/// One acknowledged message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckRow {
    /// Where.
    pub place: Place,
    /// Its id.
    pub msg_id: MessageId,
}

/// How much to read at once.
#[derive(Debug, Clone, Copy)]
pub struct PageLimit {
    /// Rows.
    pub rows: usize,
    /// Blob bytes.
    pub bytes: usize,
}

/// A stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its place.
    pub seq: u64,
    /// Its id.
    pub msg_id: MessageId,
    /// Who sent it,
    pub from: Address,
    /// and from which device.
    pub sender: MailboxId,
    /// The envelope.
    pub blob: Bytes,
    /// When the relay received it.
    pub received_at: Timestamp,
}

/// Some messages of a mailbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// In order of their seq.
    pub rows: Vec<Row>,
    /// Whether these are all there are: no limit cut them short.
    pub complete: bool,
}

/// What a sweep removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Messages that expired unread.
    pub messages: u64,
    /// Forgotten message ids.
    pub ids: u64,
}

/// Whether a free name may be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consent {
    /// It may.
    Allowed,
    /// The client did not ask for it.
    NotAsked,
    /// It takes a client token that names the user.
    Closed,
}

/// What a log-in may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission {
    /// Register a free name.
    pub register: Consent,
    /// Take a name over from another identity.
    pub replace: bool,
}

/// A log-in whose signatures were checked.
#[derive(Debug, Clone)]
pub struct Attach {
    /// The app.
    pub app: AppId,
    /// Who.
    pub address: Address,
    /// The parsed list.
    pub list: stvor_base::devices::DeviceList,
    /// Its signed bytes.
    pub list_bytes: Bytes,
    /// The user key's signature over them.
    pub list_signature: [u8; 64],
    /// Rotations that lead to the list's user key, as they came; their signatures were checked.
    pub rotations: Option<(stvor_base::rotations::Rotations, Bytes)>,
    /// What it may do.
    pub permission: Permission,
    /// Whether the connection receives: then it takes over from earlier ones.
    pub receive: bool,
    /// A new mailbox epoch, should the mailbox be new: random.
    pub fresh_epoch: u64,
}

/// An open mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its number.
    pub device: MailboxId,
    /// Of the keys that the log-in proved.
    pub generation: u64,
    /// What happened to the name.
    pub registration: Registration,
    /// Which numbering its messages have.
    pub epoch: u64,
    /// Rises with each receiving connection.
    pub fence: u64,
    /// Highest counter seen from the device.
    pub highest_counter: u64,
    /// The MAC that came with it.
    pub counter_mac: Option<CounterMac>,
    /// Highest seq that expired or was dropped unread.
    pub lost_seq: u64,
    /// Highest seq given out.
    pub last_seq: u64,
    /// Its prekeys.
    pub keys: KeyCounts,
    /// Devices that are gone with this log-in (replaced identity, shorter list), or have other keys since (rotation): their
    /// connections end.
    pub removed: Vec<MailboxId>,
}

impl Attached {
    /// Who logged in.
    #[must_use]
    pub const fn holder(&self) -> Holder {
        Holder { device: self.device, generation: self.generation }
    }
}

/// Which bundles, and whether to pop one-time prekeys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Take {
    /// Only these; empty for all.
    pub devices: Vec<DeviceId>,
    /// No prekeys at all.
    pub devices_only: bool,
    /// Hand out one-time prekeys.
    pub one_time: bool,
}

/// A user's bundles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserBundles {
    /// Signed bytes of the device list.
    pub list: Bytes,
    /// The signature.
    pub signature: [u8; 64],
    /// The user's rotations, or empty.
    pub rotations: Bytes,
    /// Of devices that have keys.
    pub bundles: Vec<DeviceBundle>,
    /// Devices whose one-time prekeys just fell below [`crate::limits::KEYS_LOW`].
    pub low: Vec<(MailboxId, KeyCounts)>,
}

/// What the directory knows of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registered {
    /// It is registered.
    pub registered: bool,
    /// A device has keys.
    pub has_keys: bool,
}

/// An app token as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Names it in lists and for revocation; says nothing about the token.
    pub id: String,
    /// [`stvor_wire::token::AppToken::hash`].
    pub hash: [u8; 32],
    /// The app.
    pub app: AppId,
    /// What people call it.
    pub label: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

impl TokenRecord {
    /// Whether it lets anybody in.
    #[must_use]
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }
}

/// How much a store keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Messages in one mailbox.
    pub mailbox_messages: u64,
    /// Blob bytes in one mailbox.
    pub mailbox_bytes: u64,
    /// Messages of one sender in one mailbox.
    pub sender_messages: u64,
    /// Blob bytes of one sender in one mailbox.
    pub sender_bytes: u64,
    /// How long a message id is recognised.
    pub dedup: Duration,
    /// Bytes of the whole database; `None` for what the disk holds.
    pub database_bytes: Option<u64>,
    /// Messages an app may send in a calendar month (UTC); `None` for any number.
    pub monthly_messages: Option<u64>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            mailbox_messages: crate::limits::MAILBOX_MESSAGES,
            mailbox_bytes: crate::limits::MAILBOX_BYTES,
            sender_messages: crate::limits::SENDER_MESSAGES,
            sender_bytes: crate::limits::SENDER_BYTES,
            dedup: crate::limits::DEDUP,
            database_bytes: None,
            monthly_messages: None,
        }
    }
}

/// Names used in log lines: never the name itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserKey {
    /// The app.
    pub app: AppId,
    /// The user.
    pub user: UserId,
}
