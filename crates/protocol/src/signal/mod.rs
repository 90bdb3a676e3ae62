//! The protocol of Signal, version 3, as npm `libsignal` 6 and WhatsApp speak it: X3DH, the double ratchet with
//! AES-256-CBC and HMAC-SHA256, sender keys for groups.
//!
//! It is here for those who have to speak it, and weaker than our own profiles: no post-quantum secret, 8 bytes of MAC, and
//! outer fields of a first message that nothing authenticates (see [`cipher`]). Where a peer forces
//! something weaker, the result says so as [`Compatibility`].
//!
//! As everywhere in this crate an operation is a function over values: it takes a [`SessionRecord`] and changes it, or
//! fails and leaves it as it was. What else must be stored in the same transaction is in what it returns. The steps of
//! chains, their keys and the limits are those of our own ratchet.
//!
//! - [`address`], [`keys`], [`bundle`]: names, key pairs, what a session starts from.
//! - [`session`] starts sessions; [`cipher`] encrypts and decrypts; [`record`] is what is stored.
//! - [`wire`]: the bytes of messages, checked before anything is computed.
//! - [`group`]: sender keys. [`fingerprint`]: safety numbers as Signal shows them.
//!
//! What a caller owes (order, one commit, judging identities) stands in the book, `docs/signal.md`, with a whole conversation.
//!
//! ```
//! use stvor_base::Timestamp;
//! use stvor_crypto::SystemRandom;
//! use stvor_protocol::signal::{cipher, session, Context, KeyPair, PreKeyBundleIn, PreKeyMessage, Prekeys, SessionRecord};
//! let rng = &mut SystemRandom::new();
//! let now = Timestamp::from_millis(1_700_000_000_000);
//! let (alice, bob, signed) = (KeyPair::generate(rng)?, KeyPair::generate(rng)?, KeyPair::generate(rng)?);
//! let context = |identity| Context { identity, registration_id: 1, now };
//!
//! let bundle = PreKeyBundleIn {
//!     registration_id: 1,
//!     identity: bob.public().to_bytes().to_vec(),
//!     signed_id: 7,
//!     signed: signed.public().to_bytes().to_vec(),
//!     signature: bob.sign(&signed.public().to_bytes(), rng)?.to_vec(),
//!     one_time: None,
//! };
//! let mut hers = SessionRecord::new();
//! let started = session::start(&mut hers, &context(&alice), &bundle.validate()?, rng)?;
//! assert_eq!(started.compatibility.len(), 3, "no post-quantum secret, a short MAC, no one-time prekey");
//! let sent = cipher::encrypt(&mut hers, &context(&alice), b"hello")?;
//!
//! let mut his = SessionRecord::new();
//! let message = PreKeyMessage::parse(&sent.body)?;
//! assert_eq!((message.signed_prekey(), message.prekey()), (7, None));
//! let prekeys = Prekeys { signed: Some(&signed), one_time: None };
//! let received = cipher::decrypt_prekey(&mut his, &context(&bob), (&message, prekeys), rng)?;
//! assert_eq!(received.plaintext.expose(), b"hello");
//! # Ok::<(), stvor_protocol::signal::SignalError>(())
//! ```

/// The code of the page, compiled and run by `cargo test --doc`.
#[cfg(doctest)]
#[doc = include_str!("../../../../docs/signal.md")]
struct Page;

pub mod address;
pub mod bundle;
pub mod cipher;
mod error;
pub mod fingerprint;
pub mod group;
mod json;
pub mod keys;
mod ratchet;
pub mod record;
pub mod session;
pub mod wire;
#[cfg(test)]
pub(crate) mod work;

pub use address::ProtocolAddress;
pub use bundle::{OneTimeIn, PreKeyBundle, PreKeyBundleIn};
pub use cipher::{Context, Decrypted, Encrypted, MessageKind, Prekeys, PublicContext};
pub use error::SignalError;
pub use fingerprint::{Fingerprint, ScanOutcome};
pub use group::{SenderKeyRecord, SenderKeyText};
pub use keys::{KeyPair, PublicKey};
pub use record::{SessionRecord, SessionView};
pub use session::{Compatibility, Started};
pub use wire::{PreKeyMessage, SenderKeyDistribution, WhisperMessage};
