//! The rows of groups that are this crate's own: mail that is to be judged, posts to members, and which groups there are.

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::suite::MAX_KEY_BYTES;
use stvor_base::{Address, GroupId, KeyBytes, MessageId, Suite, Timestamp};
use stvor_crypto::SecretBytes;
use stvor_store::{Key, Table};

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

/// Something that is to go to one member's device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PostRow {
    pub(super) to: Address,
    /// Only to this identity.
    pub(super) key: KeyBytes,
    /// Whether the body is a message to all, which goes as it is, or a content of the session with them.
    pub(super) blob: bool,
    pub(super) body: u64,
    pub(super) created_at: Timestamp,
}

impl PostRow {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(512);
        out.u8(self.key.suite().layout(VERSION));
        self.to.encode(&mut out);
        out.raw(&self.key).u8(u8::from(self.blob)).u64(self.body).u64(self.created_at.as_millis());
        out.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        let suite = Suite::of_layout(input.u8()?, VERSION)?;
        let row = Self {
            to: Address::decode(&mut input)?,
            key: KeyBytes::read(&mut input, suite)?,
            blob: input.bool()?,
            body: input.u64()?,
            created_at: Timestamp::from_millis(input.u64()?),
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
    use stvor_base::{DeviceId, UserId};

    use super::*;

    #[test]
    fn rows_read_back_and_every_cut_is_refused() {
        let from = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
        let at = Timestamp::from_millis(7);
        let id = MessageId::from_bytes([1; 16]);
        let mail =
            MailRow { from: from.clone(), key: Some([9; 65].into()), id, arrived_at: at, body: vec![1, 2] };
        let post = PostRow { to: from, key: [9; 65].into(), blob: true, body: 3, created_at: at };
        assert_eq!(MailRow::decode(&mail.encode()), Ok(mail.clone()));
        assert_eq!(PostRow::decode(&post.encode()), Ok(post.clone()));
        let group = GroupRow { joined_at: at };
        assert_eq!(GroupRow::decode(group.encode().expose()), Ok(group));
        for length in 0..mail.encode().len() {
            assert!(MailRow::decode(&mail.encode()[..length]).is_err());
        }
        for length in 0..post.encode().len() {
            assert!(PostRow::decode(&post.encode()[..length]).is_err());
        }
    }
}
