//! Rows whose place said whom they are about, in stores of before.
//!
//! Sort keys are stored in clear. Those of a member's chains, of receipts in groups, and of who handed their key over were once
//! hashes of a name that anybody can compute, so whoever saw the store could try names. Now they are tags, which need the
//! store's key. A store without the mark gets its rows moved when it is opened, before anything reads them.

use stvor_base::codec::CodecError;
use stvor_base::{ContentId, GroupId, UserId};
use stvor_protocol::RecordKey;
use stvor_store::{ChangeSet, Expect, Key, Op, Record, Scan, Sealed, StoreError, Table};

use crate::error::{Error, Result};
use crate::groups::{MOVED, ReceiptRow, moved_key, receipt_key, receipts_of};
use crate::keys;
use crate::records;
use crate::rows::PointerRow;

/// The row that says that names stand in no sort key.
const TAGGED: &str = "names tagged";

const VERSION: u8 = 1;

/// Rows that are moved in one commit.
const BATCH: usize = 200;

/// The sort key of before: so many bytes of a hash.
const HASH: usize = 16;

/// Says so of a store that is made with these changes.
pub(crate) fn are_tagged(changes: &mut ChangeSet) {
    changes.put(keys::meta(TAGGED), vec![VERSION]);
}

/// Moves what a build of before left. One that is interrupted goes on at the next opening.
pub(crate) async fn tag_all(store: &Sealed) -> Result<()> {
    if store.one(&keys::meta(TAGGED)).await.map_err(Error::passed)?.is_some() {
        return Ok(());
    }
    each(store, (Scan::of(Table::Settings, MOVED), HASH), |row| {
        let user = core::str::from_utf8(row.value.expose()).ok().and_then(|name| UserId::new(name).ok());
        Ok(moved_key(store, &user.ok_or(CodecError::Value)?))
    })
    .await?;
    let groups = Scan::of(Table::Settings, keys::GROUPS);
    for group in store.scan_all(groups, usize::MAX).await.map_err(Error::passed)? {
        tag_senders(store, GroupId::try_from(group.key.sort.as_slice()).map_err(Error::passed)?).await?;
    }
    tag_receipts(store).await?;
    let mut changes = ChangeSet::new();
    are_tagged(&mut changes);
    store.commit(changes).await.map(|_| ()).map_err(Error::passed)
}

/// The lists of whose chains are kept.
async fn tag_senders(store: &Sealed, group: GroupId) -> Result<()> {
    let (kind, from, before, length) = records::named_before()?;
    let scan = Scan::of(records::table(kind)?, group.as_bytes().as_slice()).from(from).before(before);
    each(store, (scan, length), |row| {
        let hash = row.key.sort.get(from.len()..).unwrap_or_default();
        records::key_in(store, &RecordKey::of_group(kind, group, hash)).map_err(|_| CodecError::Value)
    })
    .await
}

/// Receipts are found by the contents that they are of.
async fn tag_receipts(store: &Sealed) -> Result<()> {
    let mut scan = Scan::of(Table::ContentId, keys::OWN_CONTENTS);
    loop {
        let page = store.scan(scan.clone()).await.map_err(Error::passed)?;
        for row in &page.rows {
            let pointer = PointerRow::decode(row.value.expose()).map_err(Error::passed)?;
            if pointer.group.is_none() {
                continue;
            }
            let content = row.key.sort.as_slice().try_into().map(ContentId::from_bytes);
            let content = content.map_err(|_| Error::passed(CodecError::Length))?;
            each(store, (Scan::of(Table::Outbox, receipts_of(content)), HASH), |row| {
                Ok(receipt_key(store, content, &ReceiptRow::decode(row.value.expose())?.user))
            })
            .await?;
        }
        match page.rows.last().filter(|_| page.more) {
            Some(last) => scan = scan.after(last.key.sort.clone()),
            None => return Ok(()),
        }
    }
}

/// Moves those rows of a range whose sort key has the length of before.
async fn each(
    store: &Sealed,
    (scan, length): (Scan, usize),
    place: impl Fn(&Record) -> core::result::Result<Key, CodecError>,
) -> Result<()> {
    let rows = store.scan_all(scan, usize::MAX).await.map_err(Error::passed)?;
    let mut moves = Vec::new();
    for row in rows.into_iter().filter(|row| row.key.sort.len() == length) {
        let to = place(&row).map_err(Error::passed)?;
        moves.push((row, to));
    }
    for batch in moves.chunks(BATCH) {
        match move_rows(store, batch).await {
            // Another process does the same: what it moved is done, what it did not yet is moved by itself.
            Err(StoreError::Conflict { .. }) => {
                for one in batch.chunks(1) {
                    match move_rows(store, one).await {
                        Err(StoreError::Conflict { .. }) => {}
                        moved => moved.map_err(Error::passed)?,
                    }
                }
            }
            moved => moved.map_err(Error::passed)?,
        }
    }
    Ok(())
}

async fn move_rows(store: &Sealed, rows: &[(Record, Key)]) -> core::result::Result<(), StoreError> {
    let mut changes = ChangeSet::new();
    for (row, to) in rows {
        changes.push(Op::delete(row.key.clone()).expecting(Expect::Version(row.version)));
        changes.push(Op::put(to.clone(), row.value.duplicate()).expiring(row.expires));
    }
    store.commit(changes).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use stvor_base::{Address, DeviceId, Timestamp};
    use stvor_crypto::kdf::sha256;
    use stvor_protocol::RecordKind;

    use super::*;
    use crate::events::DeliveryState;
    use crate::rows::Place;

    const GROUP: GroupId = GroupId::from_bytes([7; 16]);

    fn hash(name: &[u8]) -> Vec<u8> {
        sha256(&[name])[..HASH].to_vec()
    }

    /// A store as a build of before left it, with rows of all three kinds of some members; where they were.
    async fn of_before(store: &Sealed, members: usize) -> Vec<Key> {
        let (mut changes, mut places) = (ChangeSet::new(), Vec::new());
        changes.put(Key::new(Table::Settings, keys::GROUPS, GROUP.as_bytes().as_slice()), b"group".to_vec());
        let content = ContentId::from_bytes([9; 16]);
        let peer = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
        let place = Place { order: 1, id: content };
        let pointer = PointerRow { peer, place, group: Some(GROUP) };
        changes.put(keys::own_content(content), pointer.encode());
        for number in 0..members {
            let user = UserId::new(&format!("member{number}")).unwrap();
            let name = user.as_str().as_bytes();
            let receipt =
                ReceiptRow { user: user.clone(), state: DeliveryState::Read, at: Timestamp::from_millis(3) };
            let sender = [&[3][..], &hash(&[name, b" its device"].concat())].concat();
            for (key, value) in [
                (Key::new(Table::Settings, MOVED, hash(name)), name.to_vec()),
                (Key::new(Table::Group, GROUP.as_bytes().as_slice(), sender), b"chains".to_vec()),
                (Key::new(Table::Outbox, receipts_of(content), hash(name)), receipt.encode()),
            ] {
                changes.put(key.clone(), value);
                places.push(key);
            }
        }
        // Of the same length and table, and named after nobody.
        changes.put(Key::new(Table::Group, GROUP.as_bytes().as_slice(), [0; 17]), b"a change".to_vec());
        store.commit(changes).await.unwrap();
        places
    }

    async fn there(store: &Sealed, keys: &[Key]) -> usize {
        let mut there = 0;
        for keys in keys.chunks(stvor_store::limits::MAX_GET) {
            there += store.get(keys).await.unwrap().iter().flatten().count();
        }
        there
    }

    fn places_now(store: &Sealed, members: usize) -> Vec<Key> {
        let content = ContentId::from_bytes([9; 16]);
        let mut places = Vec::new();
        for number in 0..members {
            let user = UserId::new(&format!("member{number}")).unwrap();
            let sender = hash(&[user.as_str().as_bytes(), b" its device"].concat());
            places.push(moved_key(store, &user));
            places.push(receipt_key(store, content, &user));
            let sender = RecordKey::of_group(RecordKind::SenderIndex, GROUP, &sender);
            places.push(records::key_in(store, &sender).unwrap());
        }
        places
    }

    #[tokio::test]
    async fn rows_of_a_store_of_before_are_moved_once_and_all_of_them() {
        let store = Sealed::in_memory().unwrap();
        let members = BATCH + 3;
        let old = of_before(&store, members).await;
        let rows = store.stats().await.unwrap().rows;
        tag_all(&store).await.unwrap();
        assert_eq!(
            (there(&store, &old).await, there(&store, &places_now(&store, members)).await),
            (0, old.len())
        );
        assert_eq!(store.stats().await.unwrap().rows, rows + 1, "and the mark");
        let change = Key::new(Table::Group, GROUP.as_bytes().as_slice(), [0; 17]);
        assert_eq!(there(&store, &[change]).await, 1);
        // What looks like one of before is none any more.
        let old = of_before(&store, 1).await;
        tag_all(&store).await.unwrap();
        assert_eq!(there(&store, &old).await, old.len());
    }

    #[tokio::test]
    async fn two_processes_move_them_at_once() {
        let store = Sealed::in_memory().unwrap();
        let old = of_before(&store, 9).await;
        let (one, other) = tokio::join!(tag_all(&store), tag_all(&store));
        one.unwrap();
        other.unwrap();
        assert_eq!((there(&store, &old).await, there(&store, &places_now(&store, 9)).await), (0, old.len()));
    }

    #[tokio::test]
    async fn a_row_that_is_named_after_somebody_has_no_place_without_a_store() {
        let named = RecordKey::of_group(RecordKind::SenderIndex, GROUP, &[1; 16]);
        assert!(records::key(&named).is_err());
        let (here, there) = (Sealed::in_memory().unwrap(), Sealed::in_memory().unwrap());
        let key = records::key_in(&here, &named).unwrap();
        assert_ne!(key, records::key_in(&there, &named).unwrap());
        assert!(!key.sort.windows(16).any(|part| part == [1; 16]));
    }
}
