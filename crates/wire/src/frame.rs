//! Frames as bytes: caps, strictness, and the way to the checked types.
//!
//! ```
//! use stvor_wire::{ClientMessage, Phase, client::Credit, frame};
//! let credit = ClientMessage::Credit(Credit { window_messages: 16, window_bytes: 65_536 });
//! let bytes = frame::encode_client(&credit);
//! assert_eq!(frame::decode_client(bytes, Phase::LoggedIn)?, credit);
//! # Ok::<(), stvor_wire::FrameError>(())
//! ```

use prost::Message as _;
use prost::bytes::Bytes;
use prost::encoding::{WireType, decode_key, decode_varint};

use crate::client::ClientMessage;
use crate::limits::{MAX_FRAME_AFTER_AUTH, MAX_FRAME_BEFORE_AUTH};
use crate::problem::Code;
use crate::proto;
use crate::server::ServerMessage;

/// How far a connection has come: decides how large a frame may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before READY.
    LoggingIn,
    /// After READY.
    LoggedIn,
}

impl Phase {
    /// The largest frame in bytes.
    #[must_use]
    pub const fn max_frame(self) -> usize {
        match self {
            Self::LoggingIn => MAX_FRAME_BEFORE_AUTH,
            Self::LoggedIn => MAX_FRAME_AFTER_AUTH,
        }
    }
}

/// Bytes that are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The frame exceeds its cap.
    #[error("a frame of {length} bytes is too large: {limit} bytes at most here")]
    TooLarge {
        /// Bytes received.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The bytes are not protobuf, or not of the announced shape.
    #[error("the frame is not a protobuf message of this protocol")]
    Protobuf,
    /// The frame holds no body.
    #[error("the frame is empty")]
    Empty,
    /// The frame holds a body that this build does not know.
    #[error("the frame holds a body of number {0}, which this build does not know")]
    UnknownBody(u32),
    /// The frame holds more than one body.
    #[error("the frame holds more than one body")]
    ManyBodies,
    /// A field is absent or out of range.
    #[error("the field `{0}` is absent or out of range")]
    Field(&'static str),
}

impl FrameError {
    /// The wire code that answers it.
    #[must_use]
    pub const fn wire_code(self) -> Code {
        match self {
            Self::TooLarge { .. } => Code::FrameTooLarge,
            _ => Code::MalformedFrame,
        }
    }
}

impl stvor_base::ErrorCode for FrameError {
    fn code(&self) -> &'static str {
        self.wire_code().as_str()
    }
}

/// Reads a frame of a client.
///
/// # Errors
/// [`FrameError`] when the bytes exceed the cap of `phase` or are not exactly one frame with every field in range.
pub fn decode_client(bytes: impl Into<Bytes>, phase: Phase) -> Result<ClientMessage, FrameError> {
    let bytes = bytes.into();
    let number = one_body(&bytes, phase)?;
    let frame = proto::ClientFrame::decode(bytes).map_err(|_| FrameError::Protobuf)?;
    frame.body.ok_or(FrameError::UnknownBody(number))?.try_into()
}

/// Reads a frame of a relay.
///
/// # Errors
/// As [`decode_client`].
pub fn decode_server(bytes: impl Into<Bytes>, phase: Phase) -> Result<ServerMessage, FrameError> {
    let bytes = bytes.into();
    let number = one_body(&bytes, phase)?;
    let frame = proto::ServerFrame::decode(bytes).map_err(|_| FrameError::Protobuf)?;
    frame.body.ok_or(FrameError::UnknownBody(number))?.try_into()
}

/// The bytes of a client's message.
#[must_use]
pub fn encode_client(message: &ClientMessage) -> Bytes {
    proto::ClientFrame { body: Some(message.into()) }.encode_to_vec().into()
}

/// The bytes of a relay's message.
#[must_use]
pub fn encode_server(message: &ServerMessage) -> Bytes {
    proto::ServerFrame { body: Some(message.into()) }.encode_to_vec().into()
}

/// Checks that the bytes are one length-delimited field and nothing else, and returns its number: protobuf itself
/// would merge two bodies and skip an unknown one.
fn one_body(bytes: &[u8], phase: Phase) -> Result<u32, FrameError> {
    let limit = phase.max_frame();
    if bytes.len() > limit {
        return Err(FrameError::TooLarge { length: bytes.len(), limit });
    }
    if bytes.is_empty() {
        return Err(FrameError::Empty);
    }
    let mut rest = bytes;
    let (number, wire_type) = decode_key(&mut rest).map_err(|_| FrameError::Protobuf)?;
    if wire_type != WireType::LengthDelimited {
        return Err(FrameError::UnknownBody(number));
    }
    let length = decode_varint(&mut rest).map_err(|_| FrameError::Protobuf)?;
    match u64::try_from(rest.len()).unwrap_or(u64::MAX).cmp(&length) {
        core::cmp::Ordering::Equal => Ok(number),
        core::cmp::Ordering::Less => Err(FrameError::Protobuf),
        core::cmp::Ordering::Greater => Err(FrameError::ManyBodies),
    }
}

/// Checks of single fields, shared by both directions.
pub(crate) mod field {
    use core::num::NonZeroU64;

    use stvor_base::{Address, DeviceId, MessageId, UserId};

    use prost::bytes::Bytes;

    use super::FrameError;
    use crate::client::CounterMac;
    use crate::proto;

    pub(crate) fn user(name: &str) -> Result<UserId, FrameError> {
        UserId::from_canonical(name).map_err(|_| FrameError::Field("user"))
    }

    pub(crate) fn device(id: u32) -> Result<DeviceId, FrameError> {
        DeviceId::new(id).map_err(|_| FrameError::Field("device"))
    }

    pub(crate) fn address(wire: Option<&proto::Address>) -> Result<Address, FrameError> {
        let wire = wire.ok_or(FrameError::Field("address"))?;
        Ok(Address::new(user(&wire.user)?, device(wire.device)?))
    }

    pub(crate) fn to_proto(address: &Address) -> proto::Address {
        proto::Address { user: address.user.as_str().to_owned(), device: address.device.get() }
    }

    pub(crate) fn message_id(bytes: &[u8]) -> Result<MessageId, FrameError> {
        MessageId::try_from(bytes).map_err(|_| FrameError::Field("msg_id"))
    }

    pub(crate) fn request(id: u64) -> Result<NonZeroU64, FrameError> {
        NonZeroU64::new(id).ok_or(FrameError::Field("request_id"))
    }

    pub(crate) fn array<const N: usize>(bytes: &[u8], name: &'static str) -> Result<[u8; N], FrameError> {
        bytes.try_into().map_err(|_| FrameError::Field(name))
    }

    /// A public key: 65 bytes of P-256 or 32 of Curve25519.
    pub(crate) fn key(bytes: &[u8], name: &'static str) -> Result<stvor_base::KeyBytes, FrameError> {
        bytes.try_into().map_err(|_| FrameError::Field(name))
    }

    /// A field that is empty or has its one length.
    pub(crate) fn optional<const N: usize>(
        bytes: &[u8],
        name: &'static str,
    ) -> Result<Option<[u8; N]>, FrameError> {
        if bytes.is_empty() { Ok(None) } else { array(bytes, name).map(Some) }
    }

    pub(crate) fn counter_mac(bytes: &[u8]) -> Result<Option<CounterMac>, FrameError> {
        optional(bytes, "counter_mac")
    }

    pub(crate) fn of_counter_mac(mac: Option<&CounterMac>) -> Bytes {
        mac.map_or_else(Bytes::new, |mac| Bytes::copy_from_slice(mac))
    }

    pub(crate) fn at_most(length: usize, limit: usize, name: &'static str) -> Result<(), FrameError> {
        if length <= limit { Ok(()) } else { Err(FrameError::Field(name)) }
    }

    pub(crate) fn capabilities(names: &[String]) -> Result<(), FrameError> {
        at_most(names.len(), crate::limits::MAX_CAPABILITIES, "capabilities")?;
        let fits = |name: &String| name.len() <= crate::limits::MAX_CAPABILITY_BYTES;
        if names.iter().all(fits) { Ok(()) } else { Err(FrameError::Field("capabilities")) }
    }
}
