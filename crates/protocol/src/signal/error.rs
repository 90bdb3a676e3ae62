//! What can go wrong, with the codes of the rest of the crate.

use stvor_base::ErrorCode;
use stvor_base::codec::CodecError;
use stvor_crypto::CryptoError;

/// Why an operation of the Signal profile was refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignalError {
    /// The bytes are not a message of this protocol.
    #[error("the bytes are not a Signal message of version 3: {0}")]
    Malformed(&'static str),
    /// A message of another protocol version.
    #[error("the message has protocol version byte {0:#04x}; this library speaks version 3 (0x33)")]
    Version(u8),
    /// More bytes than are looked at.
    #[error("the message has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Bytes given.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A prekey bundle does not hold together, or the signature of its signed prekey is absent or wrong.
    #[error("the prekey bundle is refused: {0}")]
    BadBundle(&'static str),
    /// There is no session to send on.
    #[error("there is no open session; get a prekey bundle and start one")]
    NoSession,
    /// No session decrypts the message.
    #[error("the message did not decrypt with any known session")]
    Undecryptable,
    /// A message that was decrypted before, or whose stored key is gone.
    #[error("the message was received before (or so long ago that its key is gone)")]
    Duplicate,
    /// A handshake that was accepted before, and whose session is gone.
    #[error("the handshake was used before and its session is gone")]
    Replay,
    /// The message is further ahead of its chain than may be computed for one message.
    #[error("the message is {ahead} ahead of the last one received, the limit is {limit}")]
    TooFarAhead {
        /// How far.
        ahead: u32,
        /// How far is allowed.
        limit: u32,
    },
    /// The handshake uses a prekey that does not exist here (any more).
    #[error("the first message uses {0} prekey {1}, which is not known here")]
    UnknownPrekey(&'static str, u32),
    /// The message comes from another identity than the session's.
    #[error("the message carries another identity than its session was made with")]
    IdentityChanged,
    /// No sender key for a group message.
    #[error("there is no sender key for this group and sender; the sender has to distribute it again")]
    NoSenderKey,
    /// A stored record does not read back.
    #[error("the stored record is damaged: {0}")]
    BadRecord(&'static str),
    /// A name or number that can not be part of an address.
    #[error("an address is a name without a dot, of 1 to 256 bytes, and a device number: {0}")]
    BadAddress(&'static str),
    /// A stored record of a later version than this build knows.
    #[error("the stored record has version {0}, which this build does not know; update")]
    TooNew(u8),
    /// A primitive failed.
    #[error("cryptography failed: {0}")]
    Crypto(#[from] CryptoError),
}

impl ErrorCode for SignalError {
    fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "MALFORMED_MESSAGE",
            Self::Version(_) => "UNSUPPORTED_VERSION",
            Self::TooLarge { .. } => "MESSAGE_TOO_LARGE",
            Self::BadBundle(_) => "BAD_BUNDLE",
            Self::NoSession => "NO_SESSION",
            Self::Undecryptable => "UNDECRYPTABLE",
            Self::Duplicate => "DUPLICATE",
            Self::Replay => "REPLAY",
            Self::TooFarAhead { .. } => "TOO_FAR_AHEAD",
            Self::UnknownPrekey(..) => "UNKNOWN_PREKEY",
            Self::IdentityChanged => "IDENTITY_CHANGED",
            Self::NoSenderKey => "NO_SENDER_KEY",
            Self::BadRecord(_) => "BAD_RECORD",
            Self::BadAddress(_) => "INVALID_NAME",
            Self::TooNew(_) => "FORMAT_TOO_NEW",
            Self::Crypto(error) => error.code(),
        }
    }

    fn retryable(&self) -> bool {
        matches!(self, Self::NoSession | Self::NoSenderKey)
    }
}

/// Of stored bytes.
impl From<CodecError> for SignalError {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::Version(version) => Self::TooNew(version),
            CodecError::Short => Self::BadRecord("it ends too early"),
            CodecError::Trailing => Self::BadRecord("bytes follow it"),
            _ => Self::BadRecord("a value is not allowed"),
        }
    }
}
