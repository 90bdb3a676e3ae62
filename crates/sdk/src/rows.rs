//! The layouts of this crate's own rows. The store seals the values; the protocol's rows have layouts of their own.
//!
//! A message of a conversation has the key (order, content id): `order` is milliseconds of its first clock reading,
//! pushed forward where needed so that it rises in the order of arrival even when a clock is set back. Receipts name
//! contents and repairs name relay ids: two small indices lead from those to the key.

use std::time::Duration;

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::suite::MAX_KEY_BYTES;
use stvor_base::{Address, ContentId, GroupId, KeyBytes, MessageId, Timestamp, UserId};

use crate::content::Content;
use crate::events::DeliveryState;
use crate::instances::InstanceId;

const VERSION: u8 = 1;
/// Far above the longest body: bounds what a damaged row can make a reader allocate.
const MAX_BODY: usize = 1 << 20;

fn version(input: &mut Reader<'_>) -> Result<(), CodecError> {
    match input.u8()? {
        VERSION => Ok(()),
        other => Err(CodecError::Version(other)),
    }
}

fn read_user(input: &mut Reader<'_>) -> Result<UserId, CodecError> {
    core::str::from_utf8(input.bytes(stvor_base::address::MAX_USER_ID_BYTES)?)
        .ok()
        .and_then(|name| UserId::from_canonical(name).ok())
        .ok_or(CodecError::Value)
}

/// Names one message within a conversation, the same at both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) order: u64,
    pub(crate) id: ContentId,
}

impl Place {
    pub(crate) const BYTES: usize = 24;

    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut out = Writer::with_capacity(Self::BYTES);
        out.u64(self.order).raw(self.id.as_bytes());
        out.finish()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        let place = Self::read(&mut input)?;
        input.finish()?;
        Ok(place)
    }

    pub(crate) fn read(input: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Self { order: input.u64()?, id: ContentId::from_bytes(*input.array()?) })
    }

    pub(crate) fn write(self, out: &mut Writer) {
        out.u64(self.order).raw(self.id.as_bytes());
    }
}

/// Whether a message came or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the peer.
    In,
    /// To the peer.
    Out,
}

impl Direction {
    /// `in` or `out`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MessageRow {
    pub(crate) direction: Direction,
    pub(crate) content: Content,
    /// The sender's `order` of this message; equals our own for outgoing ones.
    pub(crate) sent_order: u64,
    /// When the sender wrote it, by its clock.
    pub(crate) sent_at: Timestamp,
    /// When it arrived (incoming), or when its state last changed (outgoing).
    pub(crate) stamped_at: Timestamp,
    pub(crate) state: DeliveryState,
    /// Incoming: the application said that it was read.
    pub(crate) read: bool,
    /// How many milliseconds it is kept once nothing needs it any more: [`FOREVER`], or 0 for not at all.
    pub(crate) keep: u64,
    /// Incoming: the sender's identity was verified when it arrived.
    pub(crate) verified: bool,
    /// Outgoing: what the relay calls it now.
    pub(crate) msg_id: Option<MessageId>,
    /// Outgoing: repairs that the peer got.
    pub(crate) repairs: u8,
    /// Outgoing: its place in the queue; while that row exists, the relay has not accepted it.
    pub(crate) queued: u64,
    /// Outgoing: the user key that it was encrypted to; only that one can have it repaired.
    pub(crate) identity: Option<KeyBytes>,
    /// Incoming, in a group: who sent it.
    pub(crate) from: Option<UserId>,
}

/// Of message rows that name a sender.
const MESSAGE_FROM: u8 = 2;

fn state_byte(state: DeliveryState) -> u8 {
    match state {
        DeliveryState::Queued => 0,
        DeliveryState::Accepted => 1,
        DeliveryState::Delivered => 2,
        DeliveryState::Read => 3,
        DeliveryState::Failed => 4,
    }
}

fn state_of(byte: u8) -> Result<DeliveryState, CodecError> {
    Ok(match byte {
        0 => DeliveryState::Queued,
        1 => DeliveryState::Accepted,
        2 => DeliveryState::Delivered,
        3 => DeliveryState::Read,
        4 => DeliveryState::Failed,
        _ => return Err(CodecError::Value),
    })
}

impl MessageRow {
    /// When a message of ours goes: it is kept for repairs until its receipt or for 30 days, for its owner by the
    /// retention.
    pub(crate) fn expires(&self) -> Option<Timestamp> {
        let keep = Duration::from_millis(self.keep);
        match (self.keep, self.state) {
            (FOREVER, _) => None,
            (_, DeliveryState::Delivered | DeliveryState::Read) => Some(self.sent_at + keep),
            _ => Some(self.sent_at + crate::limits::KEEP_SENT.max(keep)),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(128 + self.content.as_bytes().len());
        out.u8(if self.from.is_some() { MESSAGE_FROM } else { VERSION })
            .u8(u8::from(self.direction == Direction::Out))
            .u8(self.content.tag())
            .bytes(self.content.as_bytes())
            .u64(self.sent_order)
            .u64(self.sent_at.as_millis())
            .u64(self.stamped_at.as_millis())
            .u8(state_byte(self.state))
            .u8(u8::from(self.read))
            .u64(self.keep)
            .u8(u8::from(self.verified))
            .u8(self.repairs)
            .u64(self.queued)
            .bytes(self.msg_id.as_ref().map_or(&[][..], |id| id.as_bytes()))
            .bytes(self.identity.as_ref().map_or(&[][..], |key| key));
        if let Some(from) = &self.from {
            out.bytes(from.as_str().as_bytes());
        }
        out.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        let named = match input.u8()? {
            VERSION => false,
            MESSAGE_FROM => true,
            other => return Err(CodecError::Version(other)),
        };
        let direction = if input.bool()? { Direction::Out } else { Direction::In };
        let tag = input.u8()?;
        let content = Content::decode(tag, input.bytes(MAX_BODY)?)?;
        let sent_order = input.u64()?;
        let sent_at = Timestamp::from_millis(input.u64()?);
        let stamped_at = Timestamp::from_millis(input.u64()?);
        let state = state_of(input.u8()?)?;
        let read = input.bool()?;
        let keep = input.u64()?;
        let verified = input.bool()?;
        let repairs = input.u8()?;
        let queued = input.u64()?;
        let msg_id = match input.bytes(16)? {
            [] => None,
            id => Some(MessageId::try_from(id)?),
        };
        let identity = match input.bytes(MAX_KEY_BYTES)? {
            [] => None,
            key => Some(key.try_into().map_err(|_| CodecError::Length)?),
        };
        let from = if named { Some(read_user(&mut input)?) } else { None };
        input.finish()?;
        Ok(Self {
            direction,
            content,
            sent_order,
            sent_at,
            stamped_at,
            state,
            read,
            keep,
            verified,
            msg_id,
            repairs,
            queued,
            identity,
            from,
        })
    }
}

/// A message that waits for its ACCEPTED.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingRow {
    pub(crate) body: PendingBody,
    /// What goes on the wire, once it is encrypted.
    pub(crate) sealed: Option<SealedSend>,
    pub(crate) created_at: Timestamp,
}

/// What a pending row carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PendingBody {
    /// A message of the application: its plaintext is in its message row.
    Message(Place),
    /// A receipt, retry request or empty answer: only the ciphertext matters.
    Control,
}

/// A ciphertext and its number: every retry sends exactly these bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SealedSend {
    pub(crate) msg_id: MessageId,
    pub(crate) lane_epoch: u64,
    pub(crate) lane: u64,
    pub(crate) counter: u64,
    pub(crate) device: u32,
    pub(crate) blob: Vec<u8>,
}

impl PendingRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let room = self.sealed.as_ref().map_or(0, |sealed| sealed.blob.len());
        let mut out = Writer::with_capacity(128 + room);
        out.u8(VERSION).u64(self.created_at.as_millis());
        match &self.body {
            PendingBody::Message(place) => {
                out.u8(1);
                place.write(&mut out);
            }
            PendingBody::Control => {
                out.u8(0);
            }
        }
        match &self.sealed {
            None => {
                out.u8(0);
            }
            Some(sealed) => {
                out.u8(1)
                    .raw(sealed.msg_id.as_bytes())
                    .u64(sealed.lane_epoch)
                    .u64(sealed.lane)
                    .u64(sealed.counter)
                    .u32(sealed.device)
                    .bytes(&sealed.blob);
            }
        }
        out.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        version(&mut input)?;
        let created_at = Timestamp::from_millis(input.u64()?);
        let body =
            if input.bool()? { PendingBody::Message(Place::read(&mut input)?) } else { PendingBody::Control };
        let sealed = if input.bool()? {
            Some(SealedSend {
                msg_id: MessageId::from_bytes(*input.array()?),
                lane_epoch: input.u64()?,
                lane: input.u64()?,
                counter: input.u64()?,
                device: input.u32()?,
                blob: input.bytes(MAX_BODY)?.to_vec(),
            })
        } else {
            None
        };
        input.finish()?;
        Ok(Self { body, sealed, created_at })
    }
}

/// Where the messages of one conversation go and what is kept of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerRow {
    pub(crate) user: UserId,
    pub(crate) blocked: bool,
    /// Milliseconds; `None`: the setting of the app, 0: keep nothing.
    pub(crate) retention: Option<u64>,
}

/// "For ever" as a number of milliseconds.
pub(crate) const FOREVER: u64 = u64::MAX;

impl PeerRow {
    pub(crate) fn new(user: UserId) -> Self {
        Self { user, blocked: false, retention: None }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(VERSION).bytes(self.user.as_str().as_bytes()).u8(u8::from(self.blocked));
        match self.retention {
            None => out.u8(0),
            Some(millis) => out.u8(1).u64(millis),
        };
        out.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        version(&mut input)?;
        let user = read_user(&mut input)?;
        let blocked = input.bool()?;
        let retention = if input.bool()? { Some(input.u64()?) } else { None };
        input.finish()?;
        Ok(Self { user, blocked, retention })
    }
}

/// What one lane remembers beside its sessions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct LaneRow {
    /// Chosen at random with the first send; 0 means that none was chosen yet.
    pub(crate) epoch: u64,
    /// The last lane number given.
    pub(crate) lane: u64,
    /// The last place in the queue of pending rows.
    pub(crate) queued: u64,
    /// The device's send counter when this lane last sent: the greatest of all lanes is the device's.
    pub(crate) counter: u64,
    /// The last `order` that this lane gave.
    pub(crate) order: u64,
    /// Contents whose delivery the peer is not told of yet.
    pub(crate) due: Vec<ContentId>,
    /// The peer is to be told of our present identity by a fresh session; how often that was tried in vain.
    pub(crate) announce: Option<u8>,
}

/// The version of a lane's row whose peer is to be told of our present identity; else it is as of version 1.
const VERSION_ANNOUNCE: u8 = 2;

impl LaneRow {
    pub(crate) const MAX_DUE: usize = 4 * crate::limits::RECEIPT_BATCH;

    pub(crate) fn encode(&self, peer: &Address) -> Vec<u8> {
        let mut out = Writer::with_capacity(128 + 16 * self.due.len());
        out.u8(if self.announce.is_some() { VERSION_ANNOUNCE } else { VERSION });
        peer.encode(&mut out);
        if let Some(tries) = self.announce {
            out.u8(tries);
        }
        out.u64(self.epoch).u64(self.lane).u64(self.queued).u64(self.counter).u64(self.order);
        out.u32(u32::try_from(self.due.len()).unwrap_or(u32::MAX));
        self.due.iter().for_each(|id| {
            out.raw(id.as_bytes());
        });
        out.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<(Address, Self), CodecError> {
        let mut input = Reader::new(bytes);
        let announces = match input.u8()? {
            VERSION => false,
            VERSION_ANNOUNCE => true,
            other => return Err(CodecError::Version(other)),
        };
        let peer = Address::decode(&mut input)?;
        let announce = if announces { Some(input.u8()?) } else { None };
        let mut row = Self {
            announce,
            epoch: input.u64()?,
            lane: input.u64()?,
            queued: input.u64()?,
            counter: input.u64()?,
            order: input.u64()?,
            due: Vec::new(),
        };
        let count = usize::try_from(input.u32()?).map_err(|_| CodecError::Length)?;
        if count > Self::MAX_DUE {
            return Err(CodecError::Length);
        }
        row.due = (0..count)
            .map(|_| Ok(ContentId::from_bytes(*input.array()?)))
            .collect::<Result<_, CodecError>>()?;
        input.finish()?;
        Ok((peer, row))
    }
}

/// Where the row of a message is: what an index entry and an inbox entry say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PointerRow {
    pub(crate) peer: Address,
    pub(crate) place: Place,
    /// The group that the message is of.
    pub(crate) group: Option<GroupId>,
}

/// The version of a pointer to a message of a group.
const VERSION_GROUP: u8 = 2;

impl PointerRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(if self.group.is_some() { VERSION_GROUP } else { VERSION });
        self.peer.encode(&mut out);
        self.place.write(&mut out);
        if let Some(group) = &self.group {
            out.raw(group.as_bytes());
        }
        out.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        let of_group = match input.u8()? {
            VERSION => false,
            VERSION_GROUP => true,
            other => return Err(CodecError::Version(other)),
        };
        let (peer, place) = (Address::decode(&mut input)?, Place::read(&mut input)?);
        let group = if of_group { Some(GroupId::from_bytes(*input.array()?)) } else { None };
        let row = Self { peer, place, group };
        input.finish()?;
        Ok(row)
    }
}

/// A row of the inbox: where the message is, and, on a store that several instances share, which of them took it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InboxRow {
    pub(crate) pointer: PointerRow,
    pub(crate) taken_by: Option<InstanceId>,
}

/// Of a row that was taken; one that was not is a [`PointerRow`].
const TAKEN: u8 = 3;

impl InboxRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Some(InstanceId(by)) = self.taken_by else { return self.pointer.encode() };
        let mut out = Writer::new();
        out.u8(TAKEN).raw(&by).raw(&self.pointer.encode());
        out.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        if input.u8()? != TAKEN {
            return Ok(Self { pointer: PointerRow::decode(bytes)?, taken_by: None });
        }
        let taken_by = Some(InstanceId(*input.array()?));
        Ok(Self { pointer: PointerRow::decode(input.rest())?, taken_by })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place { order: 7, id: ContentId::from_bytes([3; 16]) }
    }

    fn message() -> MessageRow {
        MessageRow {
            direction: Direction::Out,
            content: Content::from("text"),
            sent_order: 7,
            sent_at: Timestamp::from_millis(7),
            stamped_at: Timestamp::from_millis(8),
            state: DeliveryState::Delivered,
            read: true,
            keep: 5,
            verified: true,
            msg_id: Some(MessageId::from_bytes([1; 16])),
            repairs: 2,
            queued: 4,
            identity: Some([9; 65].into()),
            from: None,
        }
    }

    fn pending() -> PendingRow {
        PendingRow {
            body: PendingBody::Message(place()),
            sealed: Some(SealedSend {
                msg_id: MessageId::from_bytes([1; 16]),
                lane_epoch: 2,
                lane: 3,
                counter: 4,
                device: 1,
                blob: vec![5; 512],
            }),
            created_at: Timestamp::from_millis(6),
        }
    }

    #[test]
    fn rows_read_back_and_every_cut_is_refused() {
        fn check<T: PartialEq + core::fmt::Debug>(
            row: T,
            bytes: Vec<u8>,
            decode: impl Fn(&[u8]) -> Result<T, CodecError>,
        ) {
            assert_eq!(decode(&bytes), Ok(row));
            for length in 0..bytes.len() {
                assert!(decode(&bytes[..length]).is_err(), "{length}");
            }
            let mut newer = bytes.clone();
            newer[0] = u8::MAX;
            assert_eq!(decode(&newer), Err(CodecError::Version(u8::MAX)));
            assert_eq!(decode(&[bytes, vec![0]].concat()), Err(CodecError::Trailing));
        }
        check(message(), message().encode(), MessageRow::decode);
        check(pending(), pending().encode(), PendingRow::decode);
        let peer = PeerRow { blocked: true, retention: Some(5), ..PeerRow::new(UserId::new("bob").unwrap()) };
        check(peer.clone(), peer.encode(), PeerRow::decode);
        let due = vec![place().id, place().id];
        let lane = LaneRow { epoch: 1, lane: 2, queued: 3, counter: 4, order: 5, due, announce: None };
        let peer = Address::new(UserId::new("bob").unwrap(), stvor_base::DeviceId::FIRST);
        let telling = LaneRow { announce: Some(3), ..lane.clone() };
        for lane in [lane, telling] {
            check((peer.clone(), lane.clone()), lane.encode(&peer), LaneRow::decode);
        }
        let pointer = PointerRow { peer: peer.clone(), place: place(), group: None };
        assert_eq!(PointerRow::decode(&pointer.encode()), Ok(pointer.clone()));
        let of_one = pointer;
        let pointer = PointerRow { peer, place: place(), group: Some(GroupId::from_bytes([6; 16])) };
        assert_eq!(PointerRow::decode(&pointer.encode()), Ok(pointer.clone()));
        for length in 0..pointer.encode().len() {
            assert!(PointerRow::decode(&pointer.encode()[..length]).is_err(), "{length}");
        }
        for pointer in [of_one, pointer] {
            let free = InboxRow { pointer, taken_by: None };
            assert_eq!(InboxRow::decode(&free.encode()), Ok(free.clone()));
            let taken = InboxRow { taken_by: Some(InstanceId([7; 16])), ..free };
            assert_eq!(InboxRow::decode(&taken.encode()), Ok(taken.clone()));
            for length in 0..taken.encode().len() {
                assert!(InboxRow::decode(&taken.encode()[..length]).is_err(), "{length}");
            }
            assert_eq!(InboxRow::decode(&[taken.encode(), vec![0]].concat()), Err(CodecError::Trailing));
        }
    }

    #[test]
    fn a_lane_owes_at_most_256_receipts() {
        let peer = Address::new(UserId::new("bob").unwrap(), stvor_base::DeviceId::FIRST);
        let with = |count| LaneRow { due: vec![place().id; count], ..LaneRow::default() }.encode(&peer);
        assert!(LaneRow::decode(&with(LaneRow::MAX_DUE)).is_ok());
        assert_eq!(LaneRow::decode(&with(LaneRow::MAX_DUE + 1)), Err(CodecError::Length));
    }

    #[test]
    fn places_sort_by_time() {
        let earlier = Place { order: 1, id: ContentId::from_bytes([255; 16]) };
        let later = Place { order: 256, id: ContentId::from_bytes([0; 16]) };
        assert!(earlier.to_bytes() < later.to_bytes());
        assert_eq!(Place::from_bytes(&later.to_bytes()), Ok(later));
    }
}
