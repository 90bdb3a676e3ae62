//! Four narrow interfaces in place of a transactional store: a replay cache, pinned fingerprints, a place for sealed
//! states, and the user's key pair.
//!
//! Implement these where a database can not be given to the SDK as a whole, for example because an application keeps all
//! its state behind a service of its own. Where a whole [`Store`](crate::Store) is possible, it is the better choice.
//!
//! # What is promised
//!
//! [`Narrow`] makes a [`Store`](crate::Store) of a [`SessionStore`], whose only power is to replace one state by another. All rows
//! are kept in memory. Every commit is one sealed journal entry and so one `save`; from time to time the rows are written as
//! pages and the journal begins anew. A crash at any moment is repaired when the store is opened: the journal that follows
//! the last pages is applied again. This is weaker than a transactional store in three ways:
//!
//! - it is as atomic and as durable as one `save` is: a store that can write half a state, or that forgets what it
//!   acknowledged, loses messages or whole identities (it is found and refused as `STORE_CORRUPT` or `ROW_TAMPERED`, not hidden);
//! - nothing locks it: two processes on the same states destroy each other's. The second one is noticed, but late, and so is
//!   that the states were removed: with the next pages, not with the next commit;
//! - the replay cache and the fingerprints are separate stores: a mark can stand there for a message whose commit failed. Such a
//!   message is refused as a replay, and asked for again.
//!
//! # Names
//!
//! What belongs to the sessions with a peer is saved under the peer's id, everything else under ids that begin with
//! [`RESERVED`]. A state is one opaque sealed byte string: AES-256-GCM under a key derived from the private key of the identity
//! pair, bound to the id that it is saved under.

mod adapters;
mod blobs;
mod format;
mod store;
mod writer;

pub use adapters::{
    Adapters, FingerprintStore, IdentityPair, IdentityStore, Interface, ReplaceFingerprint, ReplayCache,
    SessionStore,
};
pub(crate) use format::Changed;
pub use store::Narrow;

/// For implementing the four traits.
pub use async_trait::async_trait;

pub use crate::StoreError;
pub use crate::limits::MAX_STATE;

/// What the ids begin with under which states are saved that are not of one peer.
pub const RESERVED: &str = "_stvor/";
