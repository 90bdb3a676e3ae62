//! Between the protocol, which names rows generically, and the store, which keeps them: one table for each kind, where
//! two kinds share a table a first byte of the sort key tells them apart.

use std::collections::HashMap;

use stvor_protocol::{Effect, Effects, RecordKey, RecordKind, Records};
use stvor_store::{ChangeSet, Key, Op, Sealed, Table};

use crate::error::{Error, Result};

fn place(kind: RecordKind) -> Result<(Table, u8)> {
    Ok(match kind {
        RecordKind::Identity => (Table::Identity, 0),
        RecordKind::PrekeyState => (Table::PrekeyState, 0),
        RecordKind::SignedPrekey => (Table::SignedPrekey, 0),
        RecordKind::OneTimePrekey => (Table::OneTimePrekey, 0),
        RecordKind::KemPrekey => (Table::KemPrekey, 0),
        RecordKind::Conversation => (Table::Peer, 0),
        RecordKind::Session => (Table::Session, 0),
        RecordKind::PendingHandshake => (Table::Session, 1),
        RecordKind::SessionRoot => (Table::Session, 2),
        RecordKind::ArchivedSession => (Table::ArchivedSession, 0),
        RecordKind::SkippedIndex => (Table::SkippedKeys, 0),
        RecordKind::SkippedKeys => (Table::SkippedKeys, 1),
        RecordKind::Pin => (Table::Pin, 0),
        RecordKind::HandshakeMark => (Table::HandshakeMark, 0),
        RecordKind::ReplayMark => (Table::ReplayMark, 0),
        RecordKind::Repair => (Table::Repair, 0),
        RecordKind::GroupChange => (Table::Group, 0),
        RecordKind::OwnChain => (Table::Group, 1),
        RecordKind::ChainRecipients => (Table::Group, 2),
        RecordKind::SenderIndex => (Table::Group, 3),
        RecordKind::SenderChain => (Table::SenderKey, 0),
        RecordKind::SenderSkippedIndex => (Table::SenderKey, 1),
        RecordKind::SenderSkippedKeys => (Table::SenderKey, 2),
        // A later protocol crate with a kind that this one does not place: refuse instead of mixing rows up.
        _ => return Err(Error::not_ready("this build does not know where a protocol row belongs")),
    })
}

/// Which table rows of a kind are in.
pub(crate) fn table(kind: RecordKind) -> Result<Table> {
    place(kind).map(|(table, _)| table)
}

/// Whether the sort key of a kind is a hash of a name, which everybody can compute.
fn names(kind: RecordKind) -> bool {
    kind == RecordKind::SenderIndex
}

fn key_of(record: &RecordKey, sort: &[u8]) -> Result<Key> {
    let (table, prefix) = place(record.kind)?;
    Ok(Key::new(table, record.partition.as_slice(), [&[prefix], sort].concat()))
}

/// Where a protocol row stands whose sort key names nobody.
pub(crate) fn key(record: &RecordKey) -> Result<Key> {
    if names(record.kind) {
        return Err(Error::not_ready("a row that is named after somebody has its place in one store only"));
    }
    key_of(record, &record.sort)
}

/// Where any protocol row stands. Sort keys are stored in clear: one that is made of a name is a tag of it there.
pub(crate) fn key_in(store: &Sealed, record: &RecordKey) -> Result<Key> {
    if !names(record.kind) {
        return key(record);
    }
    let (table, _) = place(record.kind)?;
    let name = [record.partition.as_slice(), &record.sort].concat();
    key_of(record, &store.tag(table, &name))
}

/// Of rows that are named after somebody, where they stood when the name was not a tag of the store: their sort keys in a
/// partition, from one up to another, and how long they are.
pub(crate) fn named_before() -> Result<(RecordKind, [u8; 1], [u8; 1], usize)> {
    let kind = RecordKind::SenderIndex;
    let (_, prefix) = place(kind)?;
    Ok((kind, [prefix], [prefix + 1], 1 + 16))
}

/// Loads rows, seeing writes that are not committed yet as if they were.
pub(crate) async fn load(store: &Sealed, wanted: &[RecordKey], uncommitted: &Effects) -> Result<Records> {
    let mut found = HashMap::new();
    let mut missing = Vec::new();
    for record in wanted {
        let later = uncommitted.as_slice().iter().rev().find(|effect| effect.key() == record);
        match later {
            Some(Effect::Put { value, .. } | Effect::Insert { value, .. }) => {
                found.insert(record.clone(), value.duplicate());
            }
            Some(Effect::Delete { .. }) => {}
            None => missing.push(record),
        }
    }
    for chunk in missing.chunks(stvor_store::limits::MAX_GET) {
        let keys = chunk.iter().map(|record| key_in(store, record)).collect::<Result<Vec<_>>>()?;
        let rows = store.get(&keys).await.map_err(Error::passed)?;
        for (record, row) in chunk.iter().zip(rows) {
            if let Some(row) = row {
                found.insert((*record).clone(), row.value);
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// The protocol's writes as operations of a change set.
pub(crate) fn write(store: &Sealed, changes: &mut ChangeSet, effects: Effects) -> Result<()> {
    for effect in effects.into_vec() {
        let op = match effect {
            Effect::Put { key: record, value, expires } => {
                Op::put(key_in(store, &record)?, value).expiring(expires)
            }
            Effect::Insert { key: record, value, expires } => {
                Op::insert(key_in(store, &record)?, value).expiring(expires)
            }
            Effect::Delete { key: record } => Op::delete(key_in(store, &record)?),
        };
        changes.push(op);
    }
    Ok(())
}
