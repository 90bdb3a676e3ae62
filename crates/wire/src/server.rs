//! What a relay says, checked. A client trusts none of it beyond its shape.

use core::num::NonZeroU64;
use core::time::Duration;

use prost::bytes::Bytes;
use stvor_base::{Address, AppId, MessageId, Timestamp, UserId};

use crate::client::CounterMac;
use crate::frame::{FrameError, field};
use crate::keys::{DeviceBundle, KeyCounts};
use crate::limits;
use crate::problem::Code;
use crate::proto::{self, server_frame::Body};

pub use crate::proto::{Acceptance, Registration, Resumed};

/// One frame of a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "made and taken apart at once, never kept in numbers")]
pub enum ServerMessage {
    /// What the device has to sign.
    Challenge(Challenge),
    /// Logged in.
    Ready(Ready),
    /// The relay is answerable for a message.
    Accepted {
        /// Which.
        msg_id: MessageId,
        /// Why; never unspecified.
        acceptance: Acceptance,
    },
    /// A refused message or request.
    Nack(Nack),
    /// A message for this device.
    Deliver(Deliver),
    /// Asks for a pong.
    Ping {
        /// Comes back in the pong.
        nonce: u64,
        /// A fresh cursor, or empty.
        resume_cursor: Bytes,
    },
    /// Answers a ping.
    Pong {
        /// As in the ping.
        nonce: u64,
    },
    /// Answers UPLOAD_KEYS.
    KeysUploaded {
        /// As in the request.
        request_id: NonZeroU64,
        /// What the relay holds now.
        keys: KeyCounts,
    },
    /// Answers FETCH_BUNDLE.
    Bundles(Bundles),
    /// Answers USER_STATUS.
    UserState(UserState),
    /// The request was carried out.
    Done {
        /// As in the request.
        request_id: NonZeroU64,
    },
    /// One-time prekeys run out.
    KeysLow {
        /// What the relay still holds.
        keys: KeyCounts,
    },
    /// Somebody logged in as this device with its keys in another store, and was refused.
    CloneSeen,
    /// The relay will stop.
    Drain(Drain),
    /// Last frame.
    End(End),
}

/// CHALLENGE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// New for each connection.
    pub nonce: [u8; limits::NONCE_BYTES],
    /// The app that the credential belongs to.
    pub app: AppId,
    /// The relay's clock.
    pub server_time: Timestamp,
    /// The relay's software.
    pub server_version: String,
    /// The version that the relay chose.
    pub protocol_version: u32,
    /// Anybody may register any free name here.
    pub development: bool,
    /// Abilities that both sides have.
    pub capabilities: Vec<String>,
}

/// The relay's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest frame.
    pub max_frame_bytes: u32,
    /// Largest blob.
    pub max_blob_bytes: u32,
    /// Most messages un-ACKed at once.
    pub window_messages: u32,
    /// Most blob bytes un-ACKed at once.
    pub window_bytes: u32,
    /// How long a mailbox keeps a message.
    pub retention: Duration,
    /// How long a message id is recognised.
    pub dedup: Duration,
    /// Most mailboxes of one SEND_MANY.
    pub max_recipients: u32,
}

/// READY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Which numbering the mailbox uses.
    pub mailbox_epoch: u64,
    /// How the mailbox is offered; never unspecified.
    pub resumed: Resumed,
    /// What happened to the registration; never unspecified.
    pub registration: Registration,
    /// Highest counter seen from the device, 0 for none.
    pub highest_counter: u64,
    /// The MAC that came with it.
    pub counter_mac: Option<CounterMac>,
    /// Highest sequence number that expired or was dropped unread, 0 for none.
    pub lost_seq: u64,
    /// The device's prekeys at the relay.
    pub keys: KeyCounts,
    /// The relay's bounds.
    pub limits: Limits,
    /// Opaque.
    pub resume_cursor: Bytes,
    /// Mean time between pings.
    pub heartbeat: Duration,
}

/// What a NACK is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A message that was sent or acknowledged.
    Message(MessageId),
    /// A request.
    Request(NonZeroU64),
}

/// NACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// What was refused.
    pub subject: Subject,
    /// Why.
    pub code: Code,
    /// For people and logs.
    pub detail: String,
    /// When a retry may succeed; zero when unknown.
    pub retry_after: Duration,
    /// The lane number expected next, for `LANE_GAP`; else 0.
    pub expected_lane: u64,
}

/// DELIVER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deliver {
    /// The sender as the relay authenticated it.
    pub from: Address,
    /// Which numbering `seq` belongs to.
    pub mailbox_epoch: u64,
    /// Place in the mailbox; 0 for copies before the commit and ephemeral messages.
    pub seq: u64,
    /// The message's id.
    pub msg_id: MessageId,
    /// The envelope.
    pub blob: Bytes,
    /// When the relay received it.
    pub received_at: Timestamp,
    /// Needs no ACK.
    pub ephemeral: bool,
}

/// BUNDLES.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundles {
    /// As in the request.
    pub request_id: NonZeroU64,
    /// Whose.
    pub user: UserId,
    /// Signed bytes of the device list.
    pub device_list: Bytes,
    /// The user key's signature over them.
    pub device_list_signature: [u8; limits::SIGNATURE_BYTES],
    /// One for each device with keys, at most sixteen.
    pub bundles: Vec<DeviceBundle>,
    /// The user's rotations ([`stvor_base::rotations`]), or empty.
    pub rotations: Bytes,
}

/// USER_STATE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserState {
    /// As in the request.
    pub request_id: NonZeroU64,
    /// Whose.
    pub user: UserId,
    /// The relay knows the name.
    pub registered: bool,
    /// A device is receiving.
    pub online: bool,
    /// A device has uploaded keys.
    pub has_keys: bool,
}

/// DRAIN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// Wait at least this long before reconnecting,
    pub reconnect_after: Duration,
    /// and a random part of this.
    pub spread: Duration,
    /// A fresh cursor, or empty.
    pub resume_cursor: Bytes,
}

/// END.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub code: Code,
    /// For people and logs.
    pub detail: String,
    /// When a new connection may succeed; zero when unknown.
    pub retry_after: Duration,
}

fn span(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn millis32(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

fn detail(text: String) -> Result<String, FrameError> {
    field::at_most(text.len(), limits::MAX_DETAIL_BYTES, "detail")?;
    Ok(text)
}

fn cursor(bytes: Bytes) -> Result<Bytes, FrameError> {
    field::at_most(bytes.len(), limits::MAX_CURSOR_BYTES, "resume_cursor")?;
    Ok(bytes)
}

impl TryFrom<proto::Challenge> for Challenge {
    type Error = FrameError;

    fn try_from(wire: proto::Challenge) -> Result<Self, FrameError> {
        field::at_most(wire.server_version.len(), limits::MAX_VERSION_BYTES, "server_version")?;
        field::capabilities(&wire.capabilities)?;
        Ok(Self {
            nonce: field::array(&wire.nonce, "nonce")?,
            app: AppId::new(&wire.app).map_err(|_| FrameError::Field("app"))?,
            server_time: Timestamp::from_millis(wire.server_time),
            server_version: wire.server_version,
            protocol_version: wire.protocol_version,
            development: wire.development,
            capabilities: wire.capabilities,
        })
    }
}

impl TryFrom<proto::Ready> for Ready {
    type Error = FrameError;

    fn try_from(wire: proto::Ready) -> Result<Self, FrameError> {
        let (resumed, registration) = (wire.resumed(), wire.registration());
        if resumed == Resumed::Unspecified {
            return Err(FrameError::Field("resumed"));
        }
        if registration == Registration::Unspecified {
            return Err(FrameError::Field("registration"));
        }
        let limits = wire.limits.ok_or(FrameError::Field("limits"))?;
        Ok(Self {
            mailbox_epoch: wire.mailbox_epoch,
            resumed,
            registration,
            highest_counter: wire.highest_counter,
            counter_mac: field::counter_mac(&wire.counter_mac)?,
            lost_seq: wire.lost_seq,
            keys: wire.keys.into(),
            limits: Limits {
                max_frame_bytes: limits.max_frame_bytes,
                max_blob_bytes: limits.max_blob_bytes,
                window_messages: limits.window_messages,
                window_bytes: limits.window_bytes,
                retention: span(limits.retention_ms),
                dedup: span(limits.dedup_ms),
                max_recipients: limits.max_recipients,
            },
            resume_cursor: cursor(wire.resume_cursor)?,
            heartbeat: span(wire.heartbeat_ms.into()),
        })
    }
}

impl TryFrom<proto::Nack> for Nack {
    type Error = FrameError;

    fn try_from(wire: proto::Nack) -> Result<Self, FrameError> {
        let subject = match (NonZeroU64::new(wire.request_id), wire.msg_id.is_empty()) {
            (Some(request), true) => Subject::Request(request),
            (None, false) => Subject::Message(field::message_id(&wire.msg_id)?),
            _ => return Err(FrameError::Field("request_id")),
        };
        Ok(Self {
            subject,
            code: Code::from_wire(wire.code)?,
            detail: detail(wire.detail)?,
            retry_after: span(wire.retry_after_ms),
            expected_lane: wire.expected_lane,
        })
    }
}

impl TryFrom<proto::Deliver> for Deliver {
    type Error = FrameError;

    fn try_from(wire: proto::Deliver) -> Result<Self, FrameError> {
        field::at_most(wire.blob.len(), limits::MAX_BLOB_BYTES, "blob")?;
        if wire.ephemeral && wire.seq != 0 {
            return Err(FrameError::Field("seq"));
        }
        Ok(Self {
            from: field::address(wire.from.as_ref())?,
            mailbox_epoch: wire.mailbox_epoch,
            seq: wire.seq,
            msg_id: field::message_id(&wire.msg_id)?,
            blob: wire.blob,
            received_at: Timestamp::from_millis(wire.received_at),
            ephemeral: wire.ephemeral,
        })
    }
}

impl TryFrom<proto::Bundles> for Bundles {
    type Error = FrameError;

    fn try_from(wire: proto::Bundles) -> Result<Self, FrameError> {
        field::at_most(wire.device_list.len(), limits::MAX_DEVICE_LIST_BYTES, "device_list")?;
        field::at_most(wire.bundles.len(), stvor_base::devices::MAX_DEVICES, "bundles")?;
        field::at_most(wire.rotations.len(), limits::MAX_ROTATIONS_BYTES, "rotations")?;
        Ok(Self {
            request_id: field::request(wire.request_id)?,
            user: field::user(&wire.user)?,
            device_list: wire.device_list,
            device_list_signature: field::array(&wire.device_list_signature, "device_list_signature")?,
            bundles: wire.bundles.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            rotations: wire.rotations,
        })
    }
}

impl TryFrom<Body> for ServerMessage {
    type Error = FrameError;

    fn try_from(body: Body) -> Result<Self, FrameError> {
        Ok(match body {
            Body::Challenge(wire) => Self::Challenge(wire.try_into()?),
            Body::Ready(wire) => Self::Ready(wire.try_into()?),
            Body::Accepted(wire) => match wire.acceptance() {
                Acceptance::Unspecified => return Err(FrameError::Field("acceptance")),
                acceptance => Self::Accepted { msg_id: field::message_id(&wire.msg_id)?, acceptance },
            },
            Body::Nack(wire) => Self::Nack(wire.try_into()?),
            Body::Deliver(wire) => Self::Deliver(wire.try_into()?),
            Body::Ping(wire) => Self::Ping { nonce: wire.nonce, resume_cursor: cursor(wire.resume_cursor)? },
            Body::Pong(wire) => Self::Pong { nonce: wire.nonce },
            Body::KeysUploaded(wire) => {
                Self::KeysUploaded { request_id: field::request(wire.request_id)?, keys: wire.keys.into() }
            }
            Body::Bundles(wire) => Self::Bundles(wire.try_into()?),
            Body::UserState(wire) => Self::UserState(UserState {
                request_id: field::request(wire.request_id)?,
                user: field::user(&wire.user)?,
                registered: wire.registered,
                online: wire.online,
                has_keys: wire.has_keys,
            }),
            Body::Done(wire) => Self::Done { request_id: field::request(wire.request_id)? },
            Body::KeysLow(wire) => Self::KeysLow { keys: wire.keys.into() },
            Body::CloneSeen(proto::CloneSeen {}) => Self::CloneSeen,
            Body::Drain(wire) => Self::Drain(Drain {
                reconnect_after: span(wire.reconnect_after_ms.into()),
                spread: span(wire.spread_ms.into()),
                resume_cursor: cursor(wire.resume_cursor)?,
            }),
            Body::End(wire) => Self::End(End {
                code: Code::from_wire(wire.code)?,
                detail: detail(wire.detail)?,
                retry_after: span(wire.retry_after_ms),
            }),
        })
    }
}

fn id(msg_id: MessageId) -> Bytes {
    Bytes::copy_from_slice(msg_id.as_bytes())
}

impl From<&Challenge> for proto::Challenge {
    fn from(challenge: &Challenge) -> Self {
        Self {
            nonce: Bytes::copy_from_slice(&challenge.nonce),
            app: challenge.app.as_str().to_owned(),
            server_time: challenge.server_time.as_millis(),
            server_version: challenge.server_version.clone(),
            protocol_version: challenge.protocol_version,
            development: challenge.development,
            capabilities: challenge.capabilities.clone(),
        }
    }
}

impl From<&Ready> for proto::Ready {
    fn from(ready: &Ready) -> Self {
        let limits = &ready.limits;
        Self {
            mailbox_epoch: ready.mailbox_epoch,
            resumed: ready.resumed.into(),
            registration: ready.registration.into(),
            highest_counter: ready.highest_counter,
            counter_mac: field::of_counter_mac(ready.counter_mac.as_ref()),
            lost_seq: ready.lost_seq,
            keys: Some(ready.keys.into()),
            limits: Some(proto::Limits {
                max_frame_bytes: limits.max_frame_bytes,
                max_blob_bytes: limits.max_blob_bytes,
                window_messages: limits.window_messages,
                window_bytes: limits.window_bytes,
                retention_ms: millis(limits.retention),
                dedup_ms: millis(limits.dedup),
                max_recipients: limits.max_recipients,
            }),
            resume_cursor: ready.resume_cursor.clone(),
            heartbeat_ms: millis32(ready.heartbeat),
        }
    }
}

impl From<&Nack> for proto::Nack {
    fn from(nack: &Nack) -> Self {
        let (msg_id, request_id) = match nack.subject {
            Subject::Message(msg_id) => (id(msg_id), 0),
            Subject::Request(request) => (Bytes::new(), request.get()),
        };
        Self {
            msg_id,
            request_id,
            code: nack.code.to_wire(),
            detail: nack.detail.clone(),
            retry_after_ms: millis(nack.retry_after),
            expected_lane: nack.expected_lane,
        }
    }
}

impl From<&Deliver> for proto::Deliver {
    fn from(deliver: &Deliver) -> Self {
        Self {
            from: Some(field::to_proto(&deliver.from)),
            mailbox_epoch: deliver.mailbox_epoch,
            seq: deliver.seq,
            msg_id: id(deliver.msg_id),
            blob: deliver.blob.clone(),
            received_at: deliver.received_at.as_millis(),
            ephemeral: deliver.ephemeral,
        }
    }
}

impl From<&Bundles> for proto::Bundles {
    fn from(bundles: &Bundles) -> Self {
        Self {
            request_id: bundles.request_id.get(),
            user: bundles.user.as_str().to_owned(),
            device_list: bundles.device_list.clone(),
            device_list_signature: Bytes::copy_from_slice(&bundles.device_list_signature),
            bundles: bundles.bundles.iter().map(Into::into).collect(),
            rotations: bundles.rotations.clone(),
        }
    }
}

impl From<&ServerMessage> for Body {
    fn from(message: &ServerMessage) -> Self {
        match message {
            ServerMessage::Challenge(challenge) => Self::Challenge(challenge.into()),
            ServerMessage::Ready(ready) => Self::Ready(ready.into()),
            ServerMessage::Accepted { msg_id, acceptance } => {
                Self::Accepted(proto::Accepted { msg_id: id(*msg_id), acceptance: (*acceptance).into() })
            }
            ServerMessage::Nack(nack) => Self::Nack(nack.into()),
            ServerMessage::Deliver(deliver) => Self::Deliver(deliver.into()),
            ServerMessage::Ping { nonce, resume_cursor } => {
                Self::Ping(proto::Ping { nonce: *nonce, resume_cursor: resume_cursor.clone() })
            }
            ServerMessage::Pong { nonce } => Self::Pong(proto::Pong { nonce: *nonce }),
            ServerMessage::KeysUploaded { request_id, keys } => Self::KeysUploaded(proto::KeysUploaded {
                request_id: request_id.get(),
                keys: Some((*keys).into()),
            }),
            ServerMessage::Bundles(bundles) => Self::Bundles(bundles.into()),
            ServerMessage::UserState(state) => Self::UserState(proto::UserState {
                request_id: state.request_id.get(),
                user: state.user.as_str().to_owned(),
                registered: state.registered,
                online: state.online,
                has_keys: state.has_keys,
            }),
            ServerMessage::Done { request_id } => Self::Done(proto::Done { request_id: request_id.get() }),
            ServerMessage::KeysLow { keys } => Self::KeysLow(proto::KeysLow { keys: Some((*keys).into()) }),
            ServerMessage::CloneSeen => Self::CloneSeen(proto::CloneSeen {}),
            ServerMessage::Drain(drain) => Self::Drain(proto::Drain {
                reconnect_after_ms: millis32(drain.reconnect_after),
                spread_ms: millis32(drain.spread),
                resume_cursor: drain.resume_cursor.clone(),
            }),
            ServerMessage::End(end) => Self::End(proto::End {
                code: end.code.to_wire(),
                detail: end.detail.clone(),
                retry_after_ms: millis(end.retry_after),
            }),
        }
    }
}
