//! What must be stored, as values.
//!
//! The protocol touches no storage. An operation names the rows that it needs ([`RecordKey`]), the caller loads them
//! into [`Records`] and hands them in; the operation hands back [`Effects`], which the caller commits together with its
//! own rows in one transaction, or not at all. Nothing goes out and nothing is acknowledged before that commit.

use std::collections::{HashMap, HashSet};

use stvor_base::codec::Writer;
use stvor_base::{Address, GroupId, Timestamp, UserId};
use stvor_crypto::SecretBytes;

/// Which table a row belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RecordKind {
    /// The device's own keys. One row.
    Identity,
    /// What was generated and uploaded. One row.
    PrekeyState,
    /// A signed prekey's private half, by id.
    SignedPrekey,
    /// A one-time prekey's private half, by id.
    OneTimePrekey,
    /// A KEM prekey's private half, by kind and id.
    KemPrekey,
    /// What is known of a conversation apart from its sessions, by peer.
    Conversation,
    /// What changes with each message of the current session and of the repair candidate, by peer.
    Session,
    /// What changes only with each turn of those, by peer.
    SessionRoot,
    /// The handshake that goes with each message of an unanswered session, by peer.
    PendingHandshake,
    /// A replaced session, by peer and session id.
    ArchivedSession,
    /// Which message keys are stored, by peer.
    SkippedIndex,
    /// One message key, by peer; then session, ratchet key and number.
    SkippedKeys,
    /// The pinned identity of a user.
    Pin,
    /// A handshake that was accepted, by prekey generation and base-key hash.
    HandshakeMark,
    /// The lock against concurrent copies, by peer and nonce.
    ReplayMark,
    /// Repairs under way, by peer.
    Repair,
    /// A change of a group, by group and hash.
    GroupChange,
    /// Our own chain of a group, by group.
    OwnChain,
    /// Whom our chains were given to, by group.
    ChainRecipients,
    /// Which chains of a member device are kept, by group and a hash of its address.
    SenderIndex,
    /// A chain of a member device, by that device and the chain's id.
    SenderChain,
    /// Which message keys of group chains are stored, by the sending device.
    SenderSkippedIndex,
    /// One of those, by the sending device; then chain and number.
    SenderSkippedKeys,
}

/// The name of a row.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordKey {
    /// Its table.
    pub kind: RecordKind,
    /// What it belongs to, for example a peer. May be empty.
    pub partition: Vec<u8>,
    /// Which one of those. May be empty.
    pub sort: Vec<u8>,
}

impl RecordKey {
    /// The only row of a kind.
    #[must_use]
    pub fn single(kind: RecordKind) -> Self {
        Self { kind, partition: Vec::new(), sort: Vec::new() }
    }

    /// A row of a device of a peer.
    #[must_use]
    pub fn of_peer(kind: RecordKind, peer: &Address, sort: &[u8]) -> Self {
        Self { kind, partition: partition_of(peer), sort: sort.to_vec() }
    }

    /// A row of a group.
    #[must_use]
    pub fn of_group(kind: RecordKind, group: GroupId, sort: &[u8]) -> Self {
        Self { kind, partition: group.as_bytes().to_vec(), sort: sort.to_vec() }
    }

    /// A row of our own with a number.
    #[must_use]
    pub fn numbered(kind: RecordKind, id: u32) -> Self {
        Self { kind, partition: Vec::new(), sort: id.to_be_bytes().to_vec() }
    }

    /// The pin of a user.
    #[must_use]
    pub fn pin(user: &UserId) -> Self {
        Self { kind: RecordKind::Pin, partition: user.as_str().as_bytes().to_vec(), sort: Vec::new() }
    }
}

/// The partition of everything that belongs to a device of a peer.
#[must_use]
pub fn partition_of(peer: &Address) -> Vec<u8> {
    let mut out = Writer::with_capacity(peer.user.as_str().len() + 8);
    peer.encode(&mut out);
    out.finish()
}

/// One write.
#[derive(Debug)]
pub enum Effect {
    /// Writes a row, over an older one if there is one.
    Put {
        /// Which row.
        key: RecordKey,
        /// What it holds from now on.
        value: SecretBytes,
        /// When it may be swept.
        expires: Option<Timestamp>,
    },
    /// Writes a row that must not exist yet: if it does, the whole transaction must fail.
    Insert {
        /// Which row.
        key: RecordKey,
        /// What it holds.
        value: SecretBytes,
        /// When it may be swept.
        expires: Option<Timestamp>,
    },
    /// Removes a row, if it is there.
    Delete {
        /// Which row.
        key: RecordKey,
    },
}

impl Effect {
    /// The row that this is about.
    #[must_use]
    pub fn key(&self) -> &RecordKey {
        match self {
            Self::Put { key, .. } | Self::Insert { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// The writes of one operation, in order. All are committed in one transaction, or none.
#[derive(Debug, Default)]
#[must_use = "nothing is stored until these are committed"]
pub struct Effects(Vec<Effect>);

impl Effects {
    /// No writes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a row.
    pub fn put(&mut self, key: RecordKey, value: SecretBytes) -> &mut Self {
        self.push(Effect::Put { key, value, expires: None })
    }

    /// Adds a row that expires.
    pub fn put_until(&mut self, key: RecordKey, value: SecretBytes, expires: Timestamp) -> &mut Self {
        self.push(Effect::Put { key, value, expires: Some(expires) })
    }

    /// Adds a row that must not exist yet.
    pub fn insert(&mut self, key: RecordKey, value: SecretBytes, expires: Option<Timestamp>) -> &mut Self {
        self.push(Effect::Insert { key, value, expires })
    }

    /// Removes a row.
    pub fn delete(&mut self, key: RecordKey) -> &mut Self {
        self.push(Effect::Delete { key })
    }

    /// Appends the writes of a later operation, so that both go into one transaction. A later put or delete of a row
    /// takes the place of an earlier put or delete of that row; inserts all stay.
    pub fn append(&mut self, later: Self) -> &mut Self {
        if !self.0.is_empty() {
            let rewritten: HashSet<&RecordKey> =
                later.0.iter().filter(|e| !matches!(e, Effect::Insert { .. })).map(Effect::key).collect();
            self.0.retain(|e| matches!(e, Effect::Insert { .. }) || !rewritten.contains(e.key()));
        }
        self.0.extend(later.0);
        self
    }

    /// The writes.
    #[must_use]
    pub fn as_slice(&self) -> &[Effect] {
        &self.0
    }

    /// The writes.
    #[must_use]
    pub fn into_vec(self) -> Vec<Effect> {
        self.0
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn push(&mut self, effect: Effect) -> &mut Self {
        self.0.push(effect);
        self
    }
}

/// Rows that were loaded. A row that is not in here does not exist in the store.
#[derive(Debug, Default)]
pub struct Records(HashMap<RecordKey, SecretBytes>);

impl Records {
    /// No rows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a row.
    pub fn insert(&mut self, key: RecordKey, value: SecretBytes) {
        self.0.insert(key, value);
    }

    /// The row, if it exists.
    #[must_use]
    pub fn get(&self, key: &RecordKey) -> Option<&SecretBytes> {
        self.0.get(key)
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(RecordKey, SecretBytes)> for Records {
    fn from_iter<I: IntoIterator<Item = (RecordKey, SecretBytes)>>(rows: I) -> Self {
        Self(rows.into_iter().collect())
    }
}
