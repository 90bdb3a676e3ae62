//! Every bound of this crate and its reason.

use std::time::Duration;

/// Messages that one stream hands to JavaScript and that are not settled there yet. More wait in the store.
pub(crate) const STREAM_WINDOW: usize = 64;

/// Bytes of a root certificate: chains of PEM are shorter by far.
pub(crate) const MAX_CERTIFICATE: usize = 64 * 1024;

/// Bytes of a bundle or handshake: device lists and keys are shorter by far.
pub(crate) const MAX_HANDSHAKE: usize = 16 * 1024;

/// Bytes of a saved session: the protocol bounds the message keys that are in it.
pub(crate) const MAX_SAVED: usize = 16 * 1024 * 1024;

/// Bytes of a state that a storage adapter answers: what the store saves has no more, sealed.
pub(crate) const MAX_STATE: usize = stvor::narrow::MAX_STATE + 1_024;

/// Bytes that a key management service answers: what it wraps is a key, and the record of a store has room for so many.
pub(crate) const MAX_WRAPPED: usize = stvor_keys::limits::MAX_PARAMETERS;

/// How long a key management service has for an answer.
pub(crate) const KMS_PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of the private half of an identity pair.
pub(crate) const MAX_PRIVATE_KEY: usize = 32;

/// The longest wait that JavaScript can ask for, in milliseconds: as long as its own timers can.
pub(crate) const LONGEST_WAIT: f64 = 2_147_483_647.0;

/// URLs of one cluster to begin at.
pub(crate) const MAX_STORE_URLS: usize = 64;

/// Handshakes that a key pair accepts for one bundle. Each leaves a mark that refuses its replay for as long as the bundle's keys
/// live; past this the bundle has to be renewed.
pub(crate) const MAX_HANDSHAKES: usize = 4_096;

/// Messages of one batch: as many as a conversation may have waiting.
pub(crate) const MAX_BATCH: usize = stvor::limits::MAX_PENDING;

/// Outcomes of sends that are handed over at once.
pub(crate) const SEND_BATCH: usize = 128;

/// Recipients of one backup.
pub(crate) const MAX_RECIPIENTS: usize = 64;

/// Bytes of the text of an age key file.
pub(crate) const MAX_AGE_KEYS: usize = 64 * 1024;

/// Entries of one look at the journal.
pub(crate) const MAX_JOURNAL: usize = 1_000;

/// Events that are handed over at once.
pub(crate) const EVENT_BATCH: usize = 64;
