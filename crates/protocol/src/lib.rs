//! The STVOR end-to-end protocol, without I/O: X3DH with an ML-KEM secret, a double ratchet, sessions, trust and repair.
//!
//! Everything is a function over values. An operation takes records, bytes, the time and randomness, and returns a
//! result and [`Effects`]: what the caller must commit, in one transaction, before anything is sent or acknowledged. On
//! an error nothing is returned, so what was stored stands.
//!
//! - [`identity`], [`recovery`], [`devices`], [`prekey`]: our keys, the secret that they can follow from, the signed device
//!   list, bundles.
//! - [`session`]: a [`Conversation`] encrypts and decrypts; it rests on the handshake (X3DH) and the ratchet.
//! - [`envelope`], [`plaintext`]: the bytes of a message, outside and inside.
//! - [`group`]: signed membership, and one encryption for all members.
//! - [`trust`], [`safety`], [`rotation`]: pins, policies, safety numbers; how a pin follows a key that hands over.
//! - [`repair`]: what follows when a message can not be read.
//! - [`signal`]: the wire format of Signal's protocol, version 3, for those who have to speak it.
//! - [`effects`]: rows as values. [`limits`]: every bound. [`profile`]: primitives and labels.

pub mod counter;
pub mod devices;
pub mod effects;
pub mod envelope;
mod error;
pub mod group;
mod handshake;
pub mod identity;
pub mod limits;
pub mod plaintext;
pub mod prekey;
pub mod profile;
mod ratchet;
pub mod recovery;
pub mod repair;
pub mod rotation;
pub mod safety;
pub mod session;
pub mod signal;
pub mod trust;

pub use counter::CounterKey;
pub use devices::{SignedDeviceList, SignedDeviceListIn};
pub use effects::{Effect, Effects, RecordKey, RecordKind, Records, partition_of};
pub use envelope::{Incoming, SessionId};
pub use error::ProtocolError;
pub use identity::Identity;
pub use plaintext::{Acknowledged, ContentKind, Padding, Plaintext, RetryRequest};
pub use prekey::{
    KemKind, KemPrekeyIn, KemPublicPrekey, Maintenance, OneTimeIn, OneTimePublic, PrekeyBundle,
    PrekeyBundleIn, PrekeyUpload, Prekeys, ServerCounts, SignedPrekeyIn, SignedPrekeyPublic,
};
pub use recovery::{RecoveryRoot, RecoverySecret};
pub use repair::{Failed, Failure, RepairRoute, Resend, ResendFacts, may_resend};
pub use rotation::{Followed, RotationChain};
pub use safety::{QrOutcome, SafetyNumber, SafetyParty};
pub use session::{Context, Conversation, Delivery, Encrypted, Received, Standing, Started};
pub use trust::{
    EarlierKey, FirstContact, IdentityEvent, OnMismatch, Pin, TrustDecision, TrustPolicy, TrustQuestion,
    Verdict, judge,
};
