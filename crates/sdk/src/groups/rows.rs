//! The rows of groups that are this crate's own: mail that is to be judged, posts to members, and which groups there are.

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::suite::MAX_KEY_BYTES;
use stvor_base::{Address, ContentId, GroupId, KeyBytes, MessageId, Suite, Timestamp, UserId};
use stvor_crypto::SecretBytes;
use stvor_store::{Key, Sealed, Table};

use crate::events::DeliveryState;
use crate::instances::InstanceId;

const VERSION: u8 = 1;
/// Far above the longest blob: bounds what a damaged row can make a reader allocate.
const MAX_BODY: usize = 1 << 18;

/// Which groups there are.
pub(super) const GROUPS: &[u8] = b"groups";
/// What came from members, in the order of arrival.
pub(super) const MAIL: &[u8] = b"mail";
/// What goes to members, one row for each of them.
pub(super) const POSTS: &[u8] = b"posts";
/// What those rows send.
pub(super) const BODIES: &[u8] = b"post bodies";

pub(super) fn group(id: GroupId) -> Key {
    Key::new(Table::Settings, GROUPS, id.as_bytes().as_slice())
}

/// Users whose key handed over to another, and for whom no fresh sender keys were made yet: by whom the pin is moved, in the
/// same commit.
pub(crate) const MOVED: &[u8] = b"moved";

pub(crate) fn moved(store: &Sealed, user: &UserId) -> Key {
    Key::new(Table::Settings, MOVED, store.tag(Table::Settings, user.as_str().as_bytes()))
}

pub(super) fn mail(seq: u64) -> Key {
    Key::new(Table::Group, MAIL, seq.to_be_bytes())
}

pub(crate) fn post(seq: u64) -> Key {
    Key::new(Table::Outbox, POSTS, seq.to_be_bytes())
}

pub(super) fn body(seq: u64) -> Key {
    Key::new(Table::Outbox, BODIES, seq.to_be_bytes())
}

/// Where a message of ours is, by its place in a chain.
pub(super) fn sent(group: GroupId, (chain, counter): (&[u8; 16], u32)) -> Key {
    let mut partition = Writer::new();
    partition.raw(b"group sent ").raw(group.as_bytes());
    let mut sort = Writer::new();
    sort.raw(chain).u32(counter);
    Key::new(Table::Outbox, partition.finish(), sort.finish())
}

/// How far a message of ours came to one member: a row for each of them.
pub(crate) fn receipts_of(content: ContentId) -> Vec<u8> {
    let mut partition = Writer::new();
    partition.raw(b"group receipts ").raw(content.as_bytes());
    partition.finish()
}

/// Rows of one member are not to be told by their sort keys either: each is of one content.
pub(crate) fn receipt(store: &Sealed, content: ContentId, member: &UserId) -> Key {
    let name = [content.as_bytes().as_slice(), member.as_str().as_bytes()].concat();
    Key::new(Table::Outbox, receipts_of(content), store.tag(Table::Outbox, &name))
}

fn version(input: &mut Reader<'_>) -> Result<(), CodecError> {
    match input.u8()? {
        VERSION => Ok(()),
        other => Err(CodecError::Version(other)),
    }
}

/// Something that came from a member's device and is to be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MailRow {
    pub(crate) from: Address,
    /// The user key of the session that it came over; `None` for a message to all, which came over none.
    pub(crate) key: Option<KeyBytes>,
    pub(crate) id: MessageId,
    pub(crate) arrived_at: Timestamp,
    pub(crate) body: Vec<u8>,
}

impl MailRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(512 + self.body.len());
        out.u8(VERSION);
        self.from.encode(&mut out);
        out.bytes(self.key.as_ref().map_or(&[][..], |key| key))
            .raw(self.id.as_bytes())
            .u64(self.arrived_at.as_millis())
            .bytes(&self.body);
        out.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        version(&mut input)?;
        let from = Address::decode(&mut input)?;
        let key = read_key(&mut input)?;
        let row = Self {
            from,
            key,
            id: MessageId::from_bytes(*input.array()?),
            arrived_at: Timestamp::from_millis(input.u64()?),
            body: input.bytes(MAX_BODY)?.to_vec(),
        };
        input.finish()?;
        Ok(row)
    }
}

fn read_key(input: &mut Reader<'_>) -> Result<Option<KeyBytes>, CodecError> {
    match input.bytes(MAX_KEY_BYTES)? {
        [] => Ok(None),
        key => key.try_into().map(Some).map_err(|_| CodecError::Length),
    }
}

/// What goes to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PostKind {
    /// A content of the session with them.
    Content,
    /// A message to all, which goes as it is.
    ToAll,
    /// Says that contents of theirs are stored here.
    Delivered,
    /// Says that they were read.
    Read,
}

/// Something that is to go to one member's device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PostRow {
    pub(super) to: Address,
    /// Only to this identity.
    pub(super) key: KeyBytes,
    pub(super) kind: PostKind,
    pub(super) body: u64,
    pub(super) created_at: Timestamp,
    /// The instance that sees to it, where several share the store.
    pub(super) owner: Option<InstanceId>,
}

/// Of posts: 1 had neither receipts nor owners.
const POST_VERSION: u8 = 2;

impl PostRow {
    pub(super) fn encode(&self) -> Vec<u8> {
        let kind = match self.kind {
            PostKind::Content => 0,
            PostKind::ToAll => 1,
            PostKind::Delivered => 2,
            PostKind::Read => 3,
        };
        let mut out = Writer::with_capacity(512);
        out.u8(self.key.suite().layout(POST_VERSION));
        self.to.encode(&mut out);
        out.raw(&self.key).u8(kind).u64(self.body).u64(self.created_at.as_millis());
        out.bytes(self.owner.as_ref().map_or(&[][..], |owner| &owner.0));
        out.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        let byte = input.u8()?;
        let (version, suite) = (1..=POST_VERSION)
            .find_map(|version| Some((version, Suite::of_layout(byte, version).ok()?)))
            .ok_or(CodecError::Version(byte))?;
        let row = Self {
            to: Address::decode(&mut input)?,
            key: KeyBytes::read(&mut input, suite)?,
            kind: match input.u8()? {
                0 => PostKind::Content,
                1 => PostKind::ToAll,
                2 if version > 1 => PostKind::Delivered,
                3 if version > 1 => PostKind::Read,
                _ => return Err(CodecError::Value),
            },
            body: input.u64()?,
            created_at: Timestamp::from_millis(input.u64()?),
            owner: match version {
                1 => None,
                _ => match input.bytes(16)? {
                    [] => None,
                    id => Some(InstanceId(id.try_into().map_err(|_| CodecError::Length)?)),
                },
            },
        };
        input.finish()?;
        Ok(row)
    }
}

/// How far a message of ours came to a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReceiptRow {
    pub(crate) user: UserId,
    pub(crate) state: DeliveryState,
    pub(crate) at: Timestamp,
}

impl ReceiptRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(VERSION).bytes(self.user.as_str().as_bytes());
        out.u8(u8::from(self.state == DeliveryState::Read)).u64(self.at.as_millis());
        out.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        version(&mut input)?;
        let name = core::str::from_utf8(input.bytes(stvor_base::address::MAX_USER_ID_BYTES)?)
            .map_err(|_| CodecError::Value)?;
        let row = Self {
            user: UserId::from_canonical(name).map_err(|_| CodecError::Value)?,
            state: if input.bool()? { DeliveryState::Read } else { DeliveryState::Delivered },
            at: Timestamp::from_millis(input.u64()?),
        };
        input.finish()?;
        Ok(row)
    }
}

/// A group that we are, or were, in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GroupRow {
    pub(super) joined_at: Timestamp,
}

impl GroupRow {
    pub(super) fn encode(self) -> SecretBytes {
        let mut out = Writer::new();
        out.u8(VERSION).u64(self.joined_at.as_millis());
        out.finish().into()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        version(&mut input)?;
        let row = Self { joined_at: Timestamp::from_millis(input.u64()?) };
        input.finish()?;
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use stvor_base::DeviceId;

    use super::*;

    #[test]
    fn rows_read_back_and_every_cut_is_refused() {
        let from = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
        let at = Timestamp::from_millis(7);
        let id = MessageId::from_bytes([1; 16]);
        let mail =
            MailRow { from: from.clone(), key: Some([9; 65].into()), id, arrived_at: at, body: vec![1, 2] };
        assert_eq!(MailRow::decode(&mail.encode()), Ok(mail.clone()));
        for kind in [PostKind::Content, PostKind::ToAll, PostKind::Delivered, PostKind::Read] {
            let owner = Some(InstanceId([3; 16])).filter(|_| kind != PostKind::ToAll);
            let post =
                PostRow { to: from.clone(), key: [9; 65].into(), kind, body: 3, created_at: at, owner };
            assert_eq!(PostRow::decode(&post.encode()), Ok(post.clone()));
            for length in 0..post.encode().len() {
                assert!(PostRow::decode(&post.encode()[..length]).is_err());
            }
        }
        let group = GroupRow { joined_at: at };
        assert_eq!(GroupRow::decode(group.encode().expose()), Ok(group));
        let receipt = ReceiptRow { user: from.user, state: DeliveryState::Read, at };
        assert_eq!(ReceiptRow::decode(&receipt.encode()), Ok(receipt));
        for length in 0..mail.encode().len() {
            assert!(MailRow::decode(&mail.encode()[..length]).is_err());
        }
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn rows_read_and_are_written_as_they_were_released() {
        let from = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
        let at = Timestamp::from_millis(7);
        let id = MessageId::from_bytes([1; 16]);
        let (over_a_session, to_all) = (
            "0100000003626f6200000001000000410909090909090909090909090909090909090909090909090909090909090909\
        090909090909090909090909090909090909090909090909090909090909090909010101010101010101010101010101\
        010000000000000007000000020102",
            "0100000003626f620000000100000000010101010101010101010101010101010000000000000007000000020102",
        );
        for (written, key) in [(over_a_session, Some([9; 65].into())), (to_all, None)] {
            let row = MailRow { from: from.clone(), key, id, arrived_at: at, body: vec![1, 2] };
            assert_eq!(row.encode(), bytes(written));
            assert_eq!(MailRow::decode(&bytes(written)), Ok(row));
        }
        let post = "0200000003626f6200000001090909090909090909090909090909090909090909090909090909090909090909090909\
        090909090909090909090909090909090909090909090909090909090903000000000000000300000000000000070000\
        001005050505050505050505050505050505";
        let row = PostRow {
            to: from.clone(),
            key: [9; 65].into(),
            kind: PostKind::Read,
            body: 3,
            created_at: at,
            owner: Some(InstanceId([5; 16])),
        };
        assert_eq!(row.encode(), bytes(post));
        assert_eq!(PostRow::decode(&bytes(post)), Ok(row));
        let receipt = "0100000003626f62010000000000000007";
        let row = ReceiptRow { user: from.user, state: DeliveryState::Read, at };
        assert_eq!(row.encode(), bytes(receipt));
        assert_eq!(ReceiptRow::decode(&bytes(receipt)), Ok(row));
        let group = "010000000000000007";
        let row = GroupRow { joined_at: at };
        assert_eq!(row.encode().expose(), bytes(group));
        assert_eq!(GroupRow::decode(&bytes(group)), Ok(row));
    }

    #[test]
    fn rows_of_a_newer_version_are_told_apart_by_their_first_byte() {
        for version in [3_u8, 99] {
            let newer = [&[version][..], &[0; 64]].concat();
            let refused = Err(CodecError::Version(version));
            assert_eq!(MailRow::decode(&newer).map(|_| ()), refused);
            assert_eq!(PostRow::decode(&newer).map(|_| ()), refused);
            assert_eq!(ReceiptRow::decode(&newer).map(|_| ()), refused);
            assert_eq!(GroupRow::decode(&newer).map(|_| ()), refused);
        }
    }

    #[test]
    fn a_post_of_version_1_is_still_sent() {
        let to = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
        let mut old = Writer::new();
        old.u8(1);
        to.encode(&mut old);
        old.raw(&[9; 65]).u8(1).u64(3).u64(7);
        let created_at = Timestamp::from_millis(7);
        let row =
            PostRow { to, key: [9; 65].into(), kind: PostKind::ToAll, body: 3, created_at, owner: None };
        assert_eq!(PostRow::decode(&old.finish()), Ok(row));
    }
}
