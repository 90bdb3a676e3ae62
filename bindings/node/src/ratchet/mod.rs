//! The low-level entry point: sessions without a relay and without a store, synchronous.
//!
//! A message is what section "Messages" of the specification says, with the time set to zero: what carries these messages
//! keeps time if anybody does. So envelope, header and ciphertext can travel apart and be put together again.

mod pair;
mod saved;
mod session;
mod shape;

pub use pair::{NativeKeyPair, generate_key_pair, restore_key_pair};
pub use session::{NativeSession, establish_session, restore_session};
