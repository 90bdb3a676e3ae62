//! What one flavour of the protocol fixes: its suite, labels and sizes, as a table.
//!
//! The state machine is one: it names primitives through [`stvor_crypto::suite`], and labels and sizes through the
//! [`Profile`] of the identity that it works for.

pub mod p256;
pub mod x25519;

use stvor_crypto::{kem, suite};

pub use stvor_base::Suite;

/// Length of a signature.
pub const SIGNATURE: usize = suite::SIGNATURE_BYTES;

/// Length of an authentication tag.
pub const TAG: usize = suite::TAG_BYTES;

/// Length of the longest nonce.
pub const MAX_NONCE: usize = Suite::X25519.nonce_bytes();

/// Length of a KEM public key.
pub const KEM_PUBLIC: usize = kem::PUBLIC_KEY_BYTES;

/// Length of a KEM ciphertext.
pub const KEM_CIPHERTEXT: usize = kem::CIPHERTEXT_BYTES;

/// A flavour of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Its suite: the number in envelopes, transcripts and associated data.
    pub suite: Suite,
    /// Length of the header: ratchet key, previous chain length, message number, nonce.
    pub header: usize,
    /// Its labels.
    pub label: Labels,
}

/// Labels. Each is used for one purpose of one profile only, and none is a prefix of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Labels {
    /// A device's signature over a signed prekey.
    pub signed_prekey: &'static [u8],
    /// A device's signature over a KEM prekey of either kind.
    pub kem_prekey: &'static [u8],
    /// The hash of the handshake's transcript.
    pub transcript: &'static [u8],
    /// The first root key.
    pub handshake: &'static [u8],
    /// The session id.
    pub session_id: &'static [u8],
    /// A step of the root chain.
    pub root: &'static [u8],
    /// A message's key.
    pub message: &'static [u8],
    /// The associated data of a message.
    pub associated_data: &'static [u8],
    /// The mark of an accepted handshake.
    pub handshake_mark: &'static [u8],
    /// A member's signature over a change of a group, and the hash of one.
    pub group_change: &'static [u8],
    /// The state of a group.
    pub group_state: &'static [u8],
    /// The associated data of a group message.
    pub group_data: &'static [u8],
    /// The key of a group message.
    pub group_message: &'static [u8],
    /// The signature of a sender key over a group message.
    pub group_signature: &'static [u8],
    /// What a chain remembers of whom it was given to.
    pub group_recipient: &'static [u8],
    /// A safety number.
    pub safety: &'static [u8],
    /// The salt of a recovery secret.
    pub recovery_salt: &'static [u8],
    /// A key that follows from a recovery secret.
    pub recovered_key: &'static [u8],
}

macro_rules! profile {
    ($suite:expr, $name:literal, $agreement:literal) => {
        $crate::profile::Profile {
            suite: $suite,
            header: $suite.key_bytes() + 4 + 4 + $suite.nonce_bytes(),
            label: $crate::profile::Labels {
                signed_prekey: concat!("STVOR 1 ", $name, " signed prekey").as_bytes(),
                kem_prekey: concat!("STVOR 1 ", $name, " KEM prekey").as_bytes(),
                transcript: concat!("STVOR 1 ", $name, " handshake transcript").as_bytes(),
                handshake: concat!("STVOR 1 ", $name, " ", $agreement).as_bytes(),
                session_id: concat!("STVOR 1 ", $name, " session id").as_bytes(),
                root: concat!("STVOR 1 ", $name, " root chain").as_bytes(),
                message: concat!("STVOR 1 ", $name, " message key").as_bytes(),
                associated_data: concat!("STVOR 1 ", $name, " associated data").as_bytes(),
                handshake_mark: concat!("STVOR 1 ", $name, " handshake mark").as_bytes(),
                group_change: concat!("STVOR 1 ", $name, " group change").as_bytes(),
                group_state: concat!("STVOR 1 ", $name, " group state").as_bytes(),
                group_data: concat!("STVOR 1 ", $name, " group associated data").as_bytes(),
                group_message: concat!("STVOR 1 ", $name, " group message key").as_bytes(),
                group_signature: concat!("STVOR 1 ", $name, " group sender signature").as_bytes(),
                group_recipient: concat!("STVOR 1 ", $name, " group recipient").as_bytes(),
                safety: concat!("STVOR 1 ", $name, " safety number").as_bytes(),
                recovery_salt: concat!("STVOR 1 ", $name, " recovery salt").as_bytes(),
                recovered_key: concat!("STVOR 1 ", $name, " recovered key").as_bytes(),
            },
        }
    };
}
pub(crate) use profile;

/// The profile of a suite.
#[must_use]
pub const fn of(suite: Suite) -> &'static Profile {
    match suite {
        Suite::X25519 => &x25519::PROFILE,
        _ => &p256::PROFILE,
    }
}
