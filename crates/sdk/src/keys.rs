//! Which row stands where. Partitions are hashed by the store; sort keys are stored in clear and hold numbers, random
//! ids and tags only.

use stvor_base::codec::Writer;
use stvor_base::{Address, ContentId, GroupId, MessageId, UserId};
use stvor_store::{Key, Sealed, Table};

use crate::instances::InstanceId;
use crate::rows::{Place, PointerRow};

/// The messages of a conversation.
pub(crate) fn history(peer: &UserId) -> Vec<u8> {
    peer.as_str().as_bytes().to_vec()
}

pub(crate) fn message(peer: &UserId, place: Place) -> Key {
    Key::new(Table::History, history(peer), place.to_bytes())
}

/// The messages of a group.
pub(crate) fn group_history(group: GroupId) -> Vec<u8> {
    // No user id begins with a zero byte.
    let mut out = Writer::new();
    out.u8(0).raw(group.as_bytes());
    out.finish()
}

pub(crate) fn group_message(group: GroupId, place: Place) -> Key {
    Key::new(Table::History, group_history(group), place.to_bytes())
}

/// The message that a pointer leads to.
pub(crate) fn pointed(pointer: &PointerRow) -> Key {
    match pointer.group {
        Some(group) => group_message(group, pointer.place),
        None => message(&pointer.peer.user, pointer.place),
    }
}

/// The inbox: one partition, in the order of arrival.
pub(crate) const INBOX: &[u8] = b"inbox";

pub(crate) fn inbox(seq: u64) -> Key {
    Key::new(Table::Inbox, INBOX, seq.to_be_bytes())
}

fn of(label: u8, peer: &Address) -> Vec<u8> {
    let mut out = Writer::new();
    out.u8(label);
    peer.encode(&mut out);
    out.finish()
}

/// What waits for its ACCEPTED, in the order of sending.
pub(crate) fn pending_of(peer: &Address) -> Vec<u8> {
    of(b'p', peer)
}

pub(crate) fn pending(peer: &Address, queued: u64) -> Key {
    Key::new(Table::Outbox, pending_of(peer), queued.to_be_bytes())
}

/// What may be asked for again, by the name that the relay and the peer know.
pub(crate) fn sent_of(peer: &Address) -> Vec<u8> {
    of(b's', peer)
}

pub(crate) fn sent(peer: &Address, id: MessageId) -> Key {
    Key::new(Table::Outbox, sent_of(peer), id.as_bytes().as_slice())
}

/// Our own contents: where their rows are.
pub(crate) const OWN_CONTENTS: &[u8] = b"own";

pub(crate) fn own_content(id: ContentId) -> Key {
    Key::new(Table::ContentId, OWN_CONTENTS, id.as_bytes().as_slice())
}

/// Contents received, scoped by their authenticated sender.
pub(crate) fn content_of(peer: &Address) -> Vec<u8> {
    of(b'c', peer)
}

pub(crate) fn content(peer: &Address, id: ContentId) -> Key {
    Key::new(Table::ContentId, content_of(peer), id.as_bytes().as_slice())
}

/// All lanes in one partition, so that the start can read them all.
pub(crate) const LANES: &[u8] = b"lanes";

pub(crate) fn lane(store: &Sealed, peer: &Address) -> Key {
    let mut name = Writer::new();
    peer.encode(&mut name);
    Key::new(Table::Lane, LANES, store.tag(Table::Lane, name.as_slice()).as_slice())
}

/// The names of users whose identity is pinned, in one partition: pins themselves are found by name only.
pub(crate) const PINNED: &[u8] = b"pinned";

/// What is known of groups, in one partition.
pub(crate) const GROUPS: &[u8] = b"groups";

pub(crate) fn pinned(store: &Sealed, user: &UserId) -> Key {
    let name = user.as_str().as_bytes();
    Key::new(Table::Pin, PINNED, store.tag(Table::Pin, name).as_slice())
}

/// Settings of conversations, in one partition.
pub(crate) const PEERS: &[u8] = b"peers";

pub(crate) fn peer(store: &Sealed, user: &UserId) -> Key {
    Key::new(Table::Settings, PEERS, store.tag(Table::Settings, user.as_str().as_bytes()).as_slice())
}

/// A fact about the store.
pub(crate) fn meta(name: &str) -> Key {
    Key::new(Table::Meta, b"sdk".as_slice(), name.as_bytes())
}

/// The instances that share the store.
pub(crate) const INSTANCES: &[u8] = b"instances";

pub(crate) fn instance(id: InstanceId) -> Key {
    Key::new(Table::Meta, INSTANCES, id.0.as_slice())
}

/// The sign that an instance was declared gone.
pub(crate) fn stone(id: InstanceId) -> Key {
    Key::new(Table::Meta, b"stones".as_slice(), id.0.as_slice())
}

/// Failures of all senders, by age.
pub(crate) const FAILURES: &[u8] = b"failures";

pub(crate) fn failure(age: u64) -> Key {
    Key::new(Table::Repair, FAILURES, age.to_be_bytes())
}

/// Mail of all senders that waits for answers to questions of trust, in the order of arrival.
pub(crate) const PARKED: &[u8] = b"parked";

pub(crate) fn parked(number: u64) -> Key {
    Key::new(Table::Repair, PARKED, number.to_be_bytes())
}

/// Messages that failed and are to be asked for again.
pub(crate) fn requests_of(peer: &Address) -> Vec<u8> {
    of(b'r', peer)
}

pub(crate) fn request(peer: &Address, id: MessageId) -> Key {
    Key::new(Table::Repair, requests_of(peer), id.as_bytes().as_slice())
}
