//! What can go wrong, with stable codes.

use stvor_base::codec::CodecError;
use stvor_base::{Address, ErrorCode, Suite, UserId};

use crate::trust::TrustQuestion;

/// Why an operation of the protocol was refused. Nothing was changed.
///
/// What an unauthenticated peer caused is told in one word, [`Undecryptable`](Self::Undecryptable), whatever the
/// check that failed: an attacker learns nothing from it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The peer's identity is not the pinned one.
    #[error(
        "the identity of {0} is not the one that was pinned; compare safety numbers before you accept it"
    )]
    IdentityChanged(UserId),
    /// The policy asks for verified peers only.
    #[error(
        "{0} is not verified and the trust policy asks for it; compare safety numbers and verify the peer"
    )]
    NotVerified(UserId),
    /// The policy wants a decision; call again with one.
    #[error("the identity of {} waits for a decision of yours", .0.user)]
    AwaitingTrust(Box<TrustQuestion>),
    /// A prekey bundle does not hold together, or a signature in it is absent, malformed or wrong.
    #[error("the prekey bundle is refused: {0}")]
    BadBundle(&'static str),
    /// The signed prekey of a bundle is older than 30 days.
    #[error("the prekey bundle of {0} is too old; the device has to come online before a session can start")]
    StaleBundle(Address),
    /// A device list is malformed, wrongly signed, older than one seen before, or a fork.
    #[error("the device list is refused: {0}")]
    BadDeviceList(&'static str),
    /// Rotations of a user's key are malformed, or not signed by all their keys.
    #[error("the rotations of the user's key are refused: {0}")]
    BadRotation(&'static str),
    /// The peer shows a key that handed over to another one since.
    #[error(
        "{0} shows an identity that was rotated away from; an old copy of it is in use, or the relay gives out an old one"
    )]
    IdentitySuperseded(UserId),
    /// An old key of the peer handed over to two different ones: somebody else has it. No policy takes the other one.
    #[error(
        "an old key of {0} handed over to two different identities, so somebody else has that key; the one that was followed first counts, and no other is taken unless you name it after comparing safety numbers"
    )]
    IdentityForked(UserId),
    /// A handshake that was accepted before, and whose session is gone.
    #[error("the handshake was used before and its session is gone")]
    Replay,
    /// A message that was decrypted before.
    #[error("the message was received before")]
    Duplicate,
    /// A message that comes too late: its stored key was destroyed (30 days old, or pushed out by 2,000 newer ones), or its
    /// session is of an identity that handed over to another one, and is not read any more, or not so far.
    #[error("the message came after its key was given up; the sender is asked to send it again")]
    KeyGone,
    /// The content is larger than 64 KiB.
    #[error("the message has {size} bytes, the limit is {limit}; split it")]
    MessageTooLarge {
        /// Bytes given.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// There is no session to send on: get a prekey bundle and start one.
    #[error("there is no usable session with {0}; fetch a prekey bundle and start one")]
    NoSession(Address),
    /// The message names a session that is not known here.
    #[error("the message names a session that is not known here")]
    UnknownSession,
    /// The message did not decrypt.
    #[error("the message did not decrypt")]
    Undecryptable,
    /// The handshake uses a prekey that does not exist here (any more).
    #[error("the handshake uses a prekey that is not known here")]
    UnknownPrekey,
    /// The message is more than 2,000 ahead of its chain.
    #[error("the message is {ahead} ahead of the last one received, the limit is {limit}")]
    TooFarAhead {
        /// How far.
        ahead: u32,
        /// How far is allowed.
        limit: u32,
    },
    /// A bundle or message is of another suite of primitives than our identity. Nothing can be agreed on: an app chooses its
    /// suite once for all its users.
    #[error(
        "the peer uses the suite {theirs} and this identity {ours}; all users of an app must be set up with one suite"
    )]
    SuiteMismatch {
        /// The suite of our identity.
        ours: Suite,
        /// The suite that was presented.
        theirs: Suite,
    },
    /// The bytes are not a message of this protocol.
    #[error("the bytes are not a message of this protocol: {0}")]
    Malformed(CodecError),
    /// A message or record of a later version than this build knows.
    #[error("the {what} has version {version}, which this build does not know; update")]
    TooNew {
        /// Which thing.
        what: &'static str,
        /// Its version.
        version: u8,
    },
    /// A stored record does not read back.
    #[error("the stored {0} record is damaged")]
    BadRecord(&'static str),
    /// A row that the operation had asked for by its `needs` was not handed in, though it exists.
    #[error("the stored {0} row was not loaded")]
    MissingRow(&'static str),
    /// An identity exists already; identities are created once.
    #[error("an identity exists already and is never replaced silently")]
    IdentityExists,
    /// A fresh session was started within the hour.
    #[error("a repair session with {0} was started within the last hour")]
    RepairBudget(Address),
    /// A change of a group is malformed, wrongly signed, or not its author's to make.
    #[error("the group change is refused: {0}")]
    BadChange(&'static str),
    /// A change builds on one that is not here: it waits, or a member is asked for the other.
    #[error("the group change builds on one that is not here yet; ask a member for what is missing")]
    ChangeEarly,
    /// The group has as many members or changes as a group can have, or is asked to take in more at once.
    #[error("the group can not take more {what}, the limit is {limit}")]
    GroupFull {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// A user is not a member of the group, or not with this identity.
    #[error("{0} is not a member of the group")]
    NotMember(UserId),
    /// The message was encrypted with a sender key that is not here.
    #[error("the sender key of the group message is not here; ask its sender for it")]
    UnknownSenderKey,
    /// A primitive failed: the random source is unhealthy, or a key is damaged.
    #[error("cryptography failed: {0}")]
    Crypto(#[from] stvor_crypto::CryptoError),
}

impl ErrorCode for ProtocolError {
    fn code(&self) -> &'static str {
        match self {
            Self::IdentityChanged(_) => "IDENTITY_CHANGED",
            Self::NotVerified(_) => "IDENTITY_NOT_VERIFIED",
            Self::AwaitingTrust(_) => "AWAITING_TRUST",
            Self::BadBundle(_) => "BAD_BUNDLE",
            Self::StaleBundle(_) => "STALE_BUNDLE",
            Self::BadDeviceList(_) => "BAD_DEVICE_LIST",
            Self::BadRotation(_) => "BAD_ROTATION",
            Self::IdentitySuperseded(_) => "IDENTITY_SUPERSEDED",
            Self::IdentityForked(_) => "IDENTITY_FORKED",
            Self::Replay => "REPLAY",
            Self::Duplicate => "DUPLICATE",
            Self::KeyGone => "MESSAGE_KEY_GONE",
            Self::MessageTooLarge { .. } => "MESSAGE_TOO_LARGE",
            Self::NoSession(_) => "NO_SESSION",
            Self::UnknownSession => "UNKNOWN_SESSION",
            Self::Undecryptable => "UNDECRYPTABLE",
            Self::UnknownPrekey => "UNKNOWN_PREKEY",
            Self::TooFarAhead { .. } => "TOO_FAR_AHEAD",
            Self::SuiteMismatch { .. } => "SUITE_MISMATCH",
            Self::Malformed(_) => "MALFORMED_MESSAGE",
            Self::TooNew { .. } => "FORMAT_TOO_NEW",
            Self::BadRecord(_) => "BAD_RECORD",
            Self::MissingRow(_) => "MISSING_ROW",
            Self::IdentityExists => "IDENTITY_EXISTS",
            Self::RepairBudget(_) => "REPAIR_BUDGET",
            Self::BadChange(_) => "BAD_GROUP_CHANGE",
            Self::ChangeEarly => "GROUP_CHANGE_EARLY",
            Self::GroupFull { .. } => "GROUP_FULL",
            Self::NotMember(_) => "NOT_A_MEMBER",
            Self::UnknownSenderKey => "UNKNOWN_SENDER_KEY",
            Self::Crypto(error) => error.code(),
        }
    }

    fn retryable(&self) -> bool {
        matches!(self, Self::StaleBundle(_) | Self::NoSession(_) | Self::RepairBudget(_))
    }
}

impl ProtocolError {
    /// Whether a message that failed like this is worth a repair: what the peer sent is lost unless asked for again.
    /// A duplicate loses nothing, a decision or a missing row comes with another call, a newer format needs an update.
    /// A replay may be the first copy of a message whose session was destroyed here; if it is not, the sender has its
    /// receipt and does not answer. Whoever speaks another suite can not be asked.
    #[must_use]
    pub fn wants_repair(&self) -> bool {
        matches!(
            self,
            Self::UnknownSession
                | Self::IdentitySuperseded(_)
                | Self::Replay
                | Self::KeyGone
                | Self::Undecryptable
                | Self::UnknownPrekey
                | Self::TooFarAhead { .. }
                | Self::Malformed(_)
        )
    }

    /// A stored record could not be read.
    pub(crate) fn record(what: &'static str) -> impl Fn(CodecError) -> Self {
        move |error| match error {
            CodecError::Version(version) => Self::TooNew { what, version },
            _ => Self::BadRecord(what),
        }
    }
}
