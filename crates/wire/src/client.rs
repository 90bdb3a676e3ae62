//! What a client says, checked.

use core::fmt;
use core::num::NonZeroU64;
use core::time::Duration;

use prost::bytes::Bytes;
use stvor_base::{Address, DeviceId, MessageId, Timestamp, UserId};

use crate::frame::{FrameError, field};
use crate::keys::{KemPrekey, OneTimePrekey, SignedPrekey};
use crate::limits;
use crate::proto::{self, client_frame::Body, hello};

pub use crate::proto::Mode;

/// One frame of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "made and taken apart at once, never kept in numbers")]
pub enum ClientMessage {
    /// First frame.
    Hello(Hello),
    /// Proof of the device.
    Auth(Auth),
    /// One blob for one mailbox.
    Send(Send),
    /// One blob for several mailboxes.
    SendMany(SendMany),
    /// Messages that are stored here.
    Ack(Ack),
    /// A new window.
    Credit(Credit),
    /// Senders that are not delivered on this connection any more.
    Hold(Hold),
    /// Asks for a pong.
    Ping {
        /// Comes back in the pong.
        nonce: u64,
    },
    /// Answers a ping.
    Pong {
        /// As in the ping.
        nonce: u64,
    },
    /// Adds prekeys.
    UploadKeys(UploadKeys),
    /// Asks for bundles.
    FetchBundle(FetchBundle),
    /// Asks about a user.
    UserStatus {
        /// Comes back in the answer.
        request_id: NonZeroU64,
        /// Who.
        user: UserId,
    },
    /// Deletes the logged-in user.
    DeleteAccount {
        /// Comes back in the answer.
        request_id: NonZeroU64,
    },
}

/// What lets a client in.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// An app token.
    AppToken(String),
    /// A client token (JWT).
    ClientToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AppToken(_) => "AppToken([redacted])",
            Self::ClientToken(_) => "ClientToken([redacted])",
        })
    }
}

/// HELLO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The protocol version that the client speaks.
    pub protocol_version: u32,
    /// What lets it in.
    pub credential: Credential,
    /// Who wants to log in.
    pub address: Address,
    /// Optional abilities.
    pub capabilities: Vec<String>,
}

/// AUTH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// Signed bytes of the user's device list, at most [`limits::MAX_DEVICE_LIST_BYTES`].
    pub device_list: Bytes,
    /// The user key's signature over them.
    pub device_list_signature: [u8; limits::SIGNATURE_BYTES],
    /// The origin that the client dialled.
    pub origin: String,
    /// The challenge's server time.
    pub time: Timestamp,
    /// The device key's signature over the transcript.
    pub signature: [u8; limits::SIGNATURE_BYTES],
    /// Receive or send only; never unspecified.
    pub mode: Mode,
    /// The last cursor, or empty.
    pub resume_cursor: Bytes,
    /// Register what the relay does not know.
    pub register: bool,
    /// Take the name over from another identity.
    pub replace_identity: bool,
    /// Which store the device's keys are in.
    pub store_mark: Option<[u8; limits::STORE_MARK_BYTES]>,
    /// The user's rotations ([`stvor_base::rotations`]), or empty.
    pub rotations: Bytes,
}

/// The running number of a message in its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane {
    /// Chosen at random by the sending device for this mailbox.
    pub epoch: u64,
    /// 1, 2, 3 ... without gaps.
    pub number: NonZeroU64,
}

/// One mailbox of a send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// The mailbox.
    pub to: Address,
    /// The message's id.
    pub msg_id: MessageId,
    /// Its place, unless the message is ephemeral.
    pub lane: Option<Lane>,
}

/// A device's MAC over its send counter.
pub type CounterMac = [u8; limits::COUNTER_MAC_BYTES];

/// SEND.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// Where to. `lane` is there exactly for messages that are kept.
    pub recipient: Recipient,
    /// The envelope, at most [`limits::MAX_BLOB_BYTES`]. Whether it is a padding bucket is the relay's business.
    pub blob: Bytes,
    /// Rises with each message of the device; 0: not counted.
    pub counter: u64,
    /// The device's MAC over the counter, which only the device can judge.
    pub counter_mac: Option<CounterMac>,
    /// How long to keep it; zero for the relay's retention time.
    pub ttl: Duration,
}

/// SEND_MANY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendMany {
    /// Where to: 1 to [`limits::MAX_RECIPIENTS`], all ephemeral or none.
    pub recipients: Vec<Recipient>,
    /// As in [`Send`].
    pub blob: Bytes,
    /// As in [`Send`].
    pub counter: u64,
    /// As in [`Send`].
    pub counter_mac: Option<CounterMac>,
    /// As in [`Send`].
    pub ttl: Duration,
}

/// One acknowledged message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckOne {
    /// As delivered; 0 for a copy without one.
    pub seq: u64,
    /// The message's id.
    pub msg_id: MessageId,
}

/// ACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// As in the deliveries.
    pub mailbox_epoch: u64,
    /// Everything that this connection delivered with a seq up to this one.
    pub up_to: Option<AckOne>,
    /// Single messages, at most [`limits::MAX_SINGLE_ACKS`].
    pub single: Vec<AckOne>,
}

/// CREDIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    /// Most messages un-ACKed at once; 0 pauses.
    pub window_messages: u32,
    /// Most blob bytes un-ACKed at once.
    pub window_bytes: u32,
}

/// The name of the ability to understand HOLD.
pub const HOLD: &str = "hold";

/// HOLD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Un-ACKed messages, each of a sender that is held: 1 to [`limits::MAX_HELD`].
    pub msg_ids: Vec<MessageId>,
}

/// UPLOAD_KEYS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadKeys {
    /// Comes back in the answer.
    pub request_id: NonZeroU64,
    /// Replaces the signed prekey.
    pub signed_prekey: Option<SignedPrekey>,
    /// Replaces the last resort.
    pub kem_last_resort: Option<KemPrekey>,
    /// Added, at most [`limits::MAX_ONE_TIME_PER_UPLOAD`].
    pub one_time: Vec<OneTimePrekey>,
    /// Added, at most [`limits::MAX_KEM_PER_UPLOAD`].
    pub kem_one_time: Vec<KemPrekey>,
    /// Forget the old one-time prekeys first.
    pub replace_one_time: bool,
}

/// FETCH_BUNDLE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchBundle {
    /// Comes back in the answer.
    pub request_id: NonZeroU64,
    /// Whose bundles.
    pub user: UserId,
    /// How long the relay waits for the user to appear, at most [`limits::MAX_WAIT_MS`].
    pub wait: Duration,
    /// No prekeys, only the device list.
    pub devices_only: bool,
    /// No one-time prekeys.
    pub without_one_time: bool,
    /// Only for these; empty for all.
    pub devices: Vec<DeviceId>,
}

fn lane(epoch: u64, number: u64, ephemeral: bool) -> Result<Option<Lane>, FrameError> {
    match (NonZeroU64::new(number), ephemeral) {
        (Some(number), false) => Ok(Some(Lane { epoch, number })),
        (None, true) if epoch == 0 => Ok(None),
        _ => Err(FrameError::Field("lane")),
    }
}

fn blob(bytes: Bytes) -> Result<Bytes, FrameError> {
    field::at_most(bytes.len(), limits::MAX_BLOB_BYTES, "blob")?;
    Ok(bytes)
}

fn counter(counter: u64, ephemeral: bool) -> Result<u64, FrameError> {
    if counter == 0 && !ephemeral { Err(FrameError::Field("counter")) } else { Ok(counter) }
}

impl TryFrom<proto::Hello> for Hello {
    type Error = FrameError;

    fn try_from(wire: proto::Hello) -> Result<Self, FrameError> {
        let credential = match wire.credential.ok_or(FrameError::Field("credential"))? {
            hello::Credential::AppToken(token) => {
                field::at_most(token.len(), limits::MAX_TOKEN_BYTES, "app_token")?;
                Credential::AppToken(token)
            }
            hello::Credential::ClientToken(token) => {
                field::at_most(token.len(), limits::MAX_CLIENT_TOKEN_BYTES, "client_token")?;
                Credential::ClientToken(token)
            }
        };
        field::capabilities(&wire.capabilities)?;
        Ok(Self {
            protocol_version: wire.protocol_version,
            credential,
            address: field::address(wire.address.as_ref())?,
            capabilities: wire.capabilities,
        })
    }
}

impl TryFrom<proto::Auth> for Auth {
    type Error = FrameError;

    fn try_from(wire: proto::Auth) -> Result<Self, FrameError> {
        field::at_most(wire.device_list.len(), limits::MAX_DEVICE_LIST_BYTES, "device_list")?;
        field::at_most(wire.origin.len(), limits::MAX_ORIGIN_BYTES, "origin")?;
        field::at_most(wire.rotations.len(), limits::MAX_ROTATIONS_BYTES, "rotations")?;
        field::at_most(wire.resume_cursor.len(), limits::MAX_CURSOR_BYTES, "resume_cursor")?;
        let mode = match wire.mode() {
            Mode::Unspecified => return Err(FrameError::Field("mode")),
            mode => mode,
        };
        Ok(Self {
            mode,
            device_list: wire.device_list,
            device_list_signature: field::array(&wire.device_list_signature, "device_list_signature")?,
            origin: wire.origin,
            time: Timestamp::from_millis(wire.time),
            signature: field::array(&wire.signature, "signature")?,
            resume_cursor: wire.resume_cursor,
            register: wire.register,
            replace_identity: wire.replace_identity,
            store_mark: field::optional(&wire.store_mark, "store_mark")?,
            rotations: wire.rotations,
        })
    }
}

impl TryFrom<proto::Send> for Send {
    type Error = FrameError;

    fn try_from(wire: proto::Send) -> Result<Self, FrameError> {
        Ok(Self {
            recipient: Recipient {
                to: field::address(wire.to.as_ref())?,
                msg_id: field::message_id(&wire.msg_id)?,
                lane: lane(wire.lane_epoch, wire.lane, wire.ephemeral)?,
            },
            blob: blob(wire.blob)?,
            counter: counter(wire.counter, wire.ephemeral)?,
            counter_mac: field::counter_mac(&wire.counter_mac)?,
            ttl: Duration::from_millis(wire.ttl_ms),
        })
    }
}

impl TryFrom<proto::SendMany> for SendMany {
    type Error = FrameError;

    fn try_from(wire: proto::SendMany) -> Result<Self, FrameError> {
        field::at_most(wire.recipients.len(), limits::MAX_RECIPIENTS, "recipients")?;
        if wire.recipients.is_empty() {
            return Err(FrameError::Field("recipients"));
        }
        let recipient = |to: &proto::Recipient| {
            Ok(Recipient {
                to: field::address(to.to.as_ref())?,
                msg_id: field::message_id(&to.msg_id)?,
                lane: lane(to.lane_epoch, to.lane, wire.ephemeral)?,
            })
        };
        Ok(Self {
            recipients: wire.recipients.iter().map(recipient).collect::<Result<_, FrameError>>()?,
            blob: blob(wire.blob)?,
            counter: counter(wire.counter, wire.ephemeral)?,
            counter_mac: field::counter_mac(&wire.counter_mac)?,
            ttl: Duration::from_millis(wire.ttl_ms),
        })
    }
}

impl TryFrom<&proto::AckOne> for AckOne {
    type Error = FrameError;

    fn try_from(wire: &proto::AckOne) -> Result<Self, FrameError> {
        Ok(Self { seq: wire.seq, msg_id: field::message_id(&wire.msg_id)? })
    }
}

impl TryFrom<proto::Ack> for Ack {
    type Error = FrameError;

    fn try_from(wire: proto::Ack) -> Result<Self, FrameError> {
        field::at_most(wire.single.len(), limits::MAX_SINGLE_ACKS, "single")?;
        let up_to = wire.up_to.as_ref().map(AckOne::try_from).transpose()?;
        if up_to.is_some_and(|one| one.seq == 0) {
            return Err(FrameError::Field("up_to"));
        }
        Ok(Self {
            mailbox_epoch: wire.mailbox_epoch,
            up_to,
            single: wire.single.iter().map(AckOne::try_from).collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<proto::Hold> for Hold {
    type Error = FrameError;

    fn try_from(wire: proto::Hold) -> Result<Self, FrameError> {
        field::at_most(wire.msg_ids.len(), limits::MAX_HELD, "msg_ids")?;
        if wire.msg_ids.is_empty() {
            return Err(FrameError::Field("msg_ids"));
        }
        Ok(Self { msg_ids: wire.msg_ids.iter().map(|id| field::message_id(id)).collect::<Result<_, _>>()? })
    }
}

impl TryFrom<proto::UploadKeys> for UploadKeys {
    type Error = FrameError;

    fn try_from(wire: proto::UploadKeys) -> Result<Self, FrameError> {
        field::at_most(wire.one_time.len(), limits::MAX_ONE_TIME_PER_UPLOAD, "one_time")?;
        field::at_most(wire.kem_one_time.len(), limits::MAX_KEM_PER_UPLOAD, "kem_one_time")?;
        Ok(Self {
            request_id: field::request(wire.request_id)?,
            signed_prekey: wire.signed_prekey.map(TryInto::try_into).transpose()?,
            kem_last_resort: wire.kem_last_resort.map(TryInto::try_into).transpose()?,
            one_time: wire.one_time.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            kem_one_time: wire.kem_one_time.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            replace_one_time: wire.replace_one_time,
        })
    }
}

impl TryFrom<proto::FetchBundle> for FetchBundle {
    type Error = FrameError;

    fn try_from(wire: proto::FetchBundle) -> Result<Self, FrameError> {
        field::at_most(wire.devices.len(), stvor_base::devices::MAX_DEVICES, "devices")?;
        if wire.wait_ms > limits::MAX_WAIT_MS {
            return Err(FrameError::Field("wait_ms"));
        }
        Ok(Self {
            request_id: field::request(wire.request_id)?,
            user: field::user(&wire.user)?,
            wait: Duration::from_millis(wire.wait_ms.into()),
            devices_only: wire.devices_only,
            without_one_time: wire.without_one_time,
            devices: wire.devices.iter().map(|id| field::device(*id)).collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<Body> for ClientMessage {
    type Error = FrameError;

    fn try_from(body: Body) -> Result<Self, FrameError> {
        Ok(match body {
            Body::Hello(wire) => Self::Hello(wire.try_into()?),
            Body::Auth(wire) => Self::Auth(wire.try_into()?),
            Body::Send(wire) => Self::Send(wire.try_into()?),
            Body::SendMany(wire) => Self::SendMany(wire.try_into()?),
            Body::Ack(wire) => Self::Ack(wire.try_into()?),
            Body::Credit(wire) => Self::Credit(Credit {
                window_messages: wire.window_messages,
                window_bytes: wire.window_bytes,
            }),
            Body::Hold(wire) => Self::Hold(wire.try_into()?),
            Body::Ping(wire) => Self::Ping { nonce: wire.nonce },
            Body::Pong(wire) => Self::Pong { nonce: wire.nonce },
            Body::UploadKeys(wire) => Self::UploadKeys(wire.try_into()?),
            Body::FetchBundle(wire) => Self::FetchBundle(wire.try_into()?),
            Body::UserStatus(wire) => Self::UserStatus {
                request_id: field::request(wire.request_id)?,
                user: field::user(&wire.user)?,
            },
            Body::DeleteAccount(wire) => Self::DeleteAccount { request_id: field::request(wire.request_id)? },
        })
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn id(msg_id: MessageId) -> Bytes {
    Bytes::copy_from_slice(msg_id.as_bytes())
}

impl From<&Hello> for proto::Hello {
    fn from(hello: &Hello) -> Self {
        Self {
            protocol_version: hello.protocol_version,
            credential: Some(match &hello.credential {
                Credential::AppToken(token) => hello::Credential::AppToken(token.clone()),
                Credential::ClientToken(token) => hello::Credential::ClientToken(token.clone()),
            }),
            address: Some(field::to_proto(&hello.address)),
            capabilities: hello.capabilities.clone(),
        }
    }
}

impl From<&Auth> for proto::Auth {
    fn from(auth: &Auth) -> Self {
        Self {
            device_list: auth.device_list.clone(),
            device_list_signature: Bytes::copy_from_slice(&auth.device_list_signature),
            origin: auth.origin.clone(),
            time: auth.time.as_millis(),
            signature: Bytes::copy_from_slice(&auth.signature),
            mode: auth.mode.into(),
            resume_cursor: auth.resume_cursor.clone(),
            register: auth.register,
            replace_identity: auth.replace_identity,
            store_mark: auth.store_mark.as_ref().map_or_else(Bytes::new, |mark| Bytes::copy_from_slice(mark)),
            rotations: auth.rotations.clone(),
        }
    }
}

impl From<&Send> for proto::Send {
    fn from(send: &Send) -> Self {
        let lane = send.recipient.lane;
        Self {
            to: Some(field::to_proto(&send.recipient.to)),
            msg_id: id(send.recipient.msg_id),
            blob: send.blob.clone(),
            lane_epoch: lane.map_or(0, |lane| lane.epoch),
            lane: lane.map_or(0, |lane| lane.number.get()),
            counter: send.counter,
            counter_mac: field::of_counter_mac(send.counter_mac.as_ref()),
            ephemeral: lane.is_none(),
            ttl_ms: millis(send.ttl),
        }
    }
}

impl From<&SendMany> for proto::SendMany {
    fn from(send: &SendMany) -> Self {
        let recipient = |to: &Recipient| proto::Recipient {
            to: Some(field::to_proto(&to.to)),
            msg_id: id(to.msg_id),
            lane_epoch: to.lane.map_or(0, |lane| lane.epoch),
            lane: to.lane.map_or(0, |lane| lane.number.get()),
        };
        Self {
            blob: send.blob.clone(),
            recipients: send.recipients.iter().map(recipient).collect(),
            counter: send.counter,
            counter_mac: field::of_counter_mac(send.counter_mac.as_ref()),
            ephemeral: send.recipients.iter().all(|to| to.lane.is_none()),
            ttl_ms: millis(send.ttl),
        }
    }
}

impl From<&Ack> for proto::Ack {
    fn from(ack: &Ack) -> Self {
        let one = |one: &AckOne| proto::AckOne { seq: one.seq, msg_id: id(one.msg_id) };
        Self {
            mailbox_epoch: ack.mailbox_epoch,
            up_to: ack.up_to.as_ref().map(one),
            single: ack.single.iter().map(one).collect(),
        }
    }
}

impl From<&UploadKeys> for proto::UploadKeys {
    fn from(upload: &UploadKeys) -> Self {
        Self {
            request_id: upload.request_id.get(),
            signed_prekey: upload.signed_prekey.as_ref().map(Into::into),
            kem_last_resort: upload.kem_last_resort.as_ref().map(Into::into),
            one_time: upload.one_time.iter().map(Into::into).collect(),
            kem_one_time: upload.kem_one_time.iter().map(Into::into).collect(),
            replace_one_time: upload.replace_one_time,
        }
    }
}

impl From<&FetchBundle> for proto::FetchBundle {
    fn from(fetch: &FetchBundle) -> Self {
        Self {
            request_id: fetch.request_id.get(),
            user: fetch.user.as_str().to_owned(),
            wait_ms: u32::try_from(fetch.wait.as_millis()).unwrap_or(u32::MAX),
            devices_only: fetch.devices_only,
            without_one_time: fetch.without_one_time,
            devices: fetch.devices.iter().map(|id| id.get()).collect(),
        }
    }
}

impl From<&ClientMessage> for Body {
    fn from(message: &ClientMessage) -> Self {
        match message {
            ClientMessage::Hello(hello) => Self::Hello(hello.into()),
            ClientMessage::Auth(auth) => Self::Auth(auth.into()),
            ClientMessage::Send(send) => Self::Send(send.into()),
            ClientMessage::SendMany(send) => Self::SendMany(send.into()),
            ClientMessage::Ack(ack) => Self::Ack(ack.into()),
            ClientMessage::Credit(credit) => Self::Credit(proto::Credit {
                window_messages: credit.window_messages,
                window_bytes: credit.window_bytes,
            }),
            ClientMessage::Hold(hold) => {
                Self::Hold(proto::Hold { msg_ids: hold.msg_ids.iter().map(|one| id(*one)).collect() })
            }
            ClientMessage::Ping { nonce } => {
                Self::Ping(proto::Ping { nonce: *nonce, resume_cursor: Bytes::new() })
            }
            ClientMessage::Pong { nonce } => Self::Pong(proto::Pong { nonce: *nonce }),
            ClientMessage::UploadKeys(upload) => Self::UploadKeys(upload.into()),
            ClientMessage::FetchBundle(fetch) => Self::FetchBundle(fetch.into()),
            ClientMessage::UserStatus { request_id, user } => Self::UserStatus(proto::UserStatus {
                request_id: request_id.get(),
                user: user.as_str().to_owned(),
            }),
            ClientMessage::DeleteAccount { request_id } => {
                Self::DeleteAccount(proto::DeleteAccount { request_id: request_id.get() })
            }
        }
    }
}
