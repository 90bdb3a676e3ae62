//! Conversations: all sessions with one device of a peer.
//!
//! There is one *current* session, which sends; up to 40 *archived* ones, which still decrypt late messages; and
//! perhaps a repair *candidate*, which becomes current when it is answered. A message names its session, so only that
//! one is tried.

mod accept;
mod conversation;
mod decrypt;
mod one;
mod send;
mod stored;

pub(crate) use conversation::{Active, slot_of};
pub use conversation::{Context, Conversation};
pub use decrypt::{Delivery, Received, Standing};
pub(crate) use one::{Ends, Session, SessionRecords, Terms};
pub use send::{Encrypted, Started};
pub(crate) use stored::{Realm, Slot, StoredKeys};
