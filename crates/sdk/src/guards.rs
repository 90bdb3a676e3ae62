//! The application's own stores for nonces and fingerprints, asked beside what the engine itself knows.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use stvor_base::{Address, UserId};
use stvor_protocol::{Effect, Effects, Pin, RecordKind, partition_of};
use stvor_store::narrow::{Adapters, Narrow};
use stvor_store::{Key, Sealed, StoreError, StoreFacts, Table};

use crate::error::Error;
use crate::error::Result;
use crate::limits;

/// What the application's own four stores promise together.
pub(crate) const FACTS: StoreFacts =
    StoreFacts { kind: "adapters", durable: true, shared: false, atomic: false, local: false };

/// What production should know of them: beside what follows from the facts, that they see more than any other store.
pub(crate) fn findings() -> Vec<stvor_store::Finding> {
    let all = |mut finding: stvor_store::Finding| {
        finding.what.push_str(
            ", and three of its adapters are told peers' names in clear, the fourth has the user's key",
        );
        finding
    };
    FACTS.findings().into_iter().map(all).collect()
}

/// What a message's nonce is remembered by.
pub(crate) type Nonce = [u8; 12];

/// What the rows of a peer's sessions are in.
const OF_SESSIONS: [Table; 4] = [Table::Session, Table::ArchivedSession, Table::SkippedKeys, Table::Peer];

/// The narrow adapters of one client.
#[derive(Debug)]
pub(crate) struct Guards {
    adapters: Adapters,
    store: Arc<Narrow>,
    unfinished: Mutex<Unfinished>,
}

/// Nonces that we marked ourselves and whose messages are not stored yet: these may come again. Lost with the process, in which
/// case the message is refused as a replay and asked for again.
#[derive(Debug, Default)]
struct Unfinished {
    known: HashSet<Nonce>,
    order: VecDeque<Nonce>,
}

impl Guards {
    pub(crate) fn new(adapters: Adapters, store: Arc<Narrow>) -> Self {
        Self { adapters, store, unfinished: Mutex::default() }
    }

    fn unfinished(&self) -> std::sync::MutexGuard<'_, Unfinished> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what belongs to the sessions with a peer under the peer's name.
    pub(crate) fn name(&self, sealed: &Sealed, peer: &Address) {
        let partition = partition_of(peer);
        let on_disk = |table| {
            let key = sealed.key_on_disk(&Key::new(table, partition.as_slice(), Vec::new()));
            (table, key.partition)
        };
        self.store.name(peer.user.as_str(), OF_SESSIONS.map(on_disk));
    }

    /// Whether a message that decrypts was seen before all the same: after the other stores were put back, say.
    pub(crate) async fn is_replay(&self, peer: &UserId, nonce: Nonce) -> Result<bool> {
        if self.unfinished().known.contains(&nonce) {
            return Ok(false);
        }
        {
            let mut unfinished = self.unfinished();
            while unfinished.order.len() >= limits::MAX_UNFINISHED_NONCES
                && let Some(oldest) = unfinished.order.pop_front()
            {
                unfinished.known.remove(&oldest);
            }
        }
        let marked = self.adapters.check_and_mark(peer.as_str(), &nonce).await;
        // Also when it is not known whether it was marked: a hang may have done it.
        if !matches!(marked, Ok(true)) {
            let mut unfinished = self.unfinished();
            if unfinished.known.insert(nonce) {
                unfinished.order.push_back(nonce);
            }
        }
        marked.map_err(Error::passed)
    }

    /// These messages are stored.
    pub(crate) fn finish(&self, nonces: &[Nonce]) {
        let mut unfinished = self.unfinished();
        for nonce in nonces {
            if unfinished.known.remove(nonce) {
                unfinished.order.retain(|known| known != nonce);
            }
        }
    }

    /// Whether the pinned identity of a peer is the one of the application's own store.
    pub(crate) async fn vouches_for(&self, peer: &UserId, user_key: &[u8]) -> Result<bool> {
        self.adapters.verify(peer.as_str(), user_key).await.map_err(Error::passed)
    }

    /// Stores the identity of a peer in the application's own store; `false` when that holds another one.
    pub(crate) async fn pins(&self, peer: &UserId, user_key: &[u8]) -> Result<bool> {
        self.adapters.pin(peer.as_str(), user_key).await.map_err(Error::passed)
    }

    /// Whether the application's own store can replace an identity.
    pub(crate) fn replaces(&self) -> bool {
        self.adapters.replaces()
    }

    /// Puts an identity in the place of the old one in the application's own store; `false` when that holds another one.
    pub(crate) async fn moves(&self, peer: &UserId, keys: (&[u8], &[u8])) -> Result<bool> {
        self.adapters.replace(peer.as_str(), keys).await.map_err(Error::passed)
    }

    /// The pair that is the user's signing key.
    pub(crate) fn identity(&self) -> &stvor_store::narrow::IdentityPair {
        self.store.identity_pair()
    }
}

/// The identity that effects pin, if they pin one.
pub(crate) fn pinned(effects: &Effects) -> Option<Pin> {
    effects.as_slice().iter().rev().find_map(|effect| match effect {
        Effect::Put { key, value, .. } | Effect::Insert { key, value, .. } if key.kind == RecordKind::Pin => {
            Pin::from_record(value).ok()
        }
        _ => None,
    })
}

/// What the store of narrow adapters is opened with.
pub(crate) async fn open(adapters: &Adapters) -> core::result::Result<(Sealed, Guards), StoreError> {
    let narrow = Arc::new(Narrow::open(adapters).await?);
    let holder = Arc::new(stvor_keys::IdentityKey::new(&narrow.identity_pair().private()));
    let sealed = match Sealed::open(Arc::clone(&narrow) as Arc<dyn stvor_store::Store>, holder).await {
        Ok(sealed) => sealed,
        Err(error) => {
            let _ = stvor_store::Store::close(&*narrow).await;
            return Err(error);
        }
    };
    Ok((sealed, Guards::new(adapters.clone(), narrow)))
}
