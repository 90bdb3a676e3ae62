//! Which messages failed, over all senders. Whoever can put mail into our mailbox, a relay under any name, makes us
//! remember failures: their number has a bound, and those of strangers go first, then the oldest.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Address, MessageId};
use stvor_protocol::{RecordKey, RecordKind};
use stvor_store::{ChangeSet, Scan, Sealed, Table};

use crate::error::{Error, Result};
use crate::keys;
use crate::limits;
use crate::records;

const VERSION: u8 = 1;

#[derive(Default)]
struct State {
    by_age: BTreeMap<u64, (Address, MessageId)>,
    ages: HashMap<(Address, MessageId), u64>,
    last: u64,
}

impl State {
    fn insert(&mut self, age: u64, failure: (Address, MessageId)) {
        self.last = self.last.max(age);
        self.ages.insert(failure.clone(), age);
        self.by_age.insert(age, failure);
    }

    fn remove(&mut self, failure: &(Address, MessageId)) -> Option<u64> {
        let age = self.ages.remove(failure)?;
        self.by_age.remove(&age);
        Some(age)
    }
}

/// The failures that are remembered, of all conversations, by age. After a commit that failed it may name some that the
/// store does not have: these are written when they come again, or age out like others.
pub(crate) struct Failures {
    state: Mutex<State>,
    limit: usize,
}

impl Failures {
    fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), limit }
    }

    /// Reads what earlier runs remembered.
    pub(crate) async fn load(store: &Sealed) -> Result<Self> {
        let failures = Self::new(limits::MAX_FAILURES);
        failures.read(store).await?;
        Ok(failures)
    }

    /// Reads what earlier runs and other instances remembered, in the place of what memory holds.
    pub(crate) async fn read(&self, store: &Sealed) -> Result<()> {
        let scan = Scan::of(Table::Repair, keys::FAILURES);
        let rows = store.scan_all(scan, 2 * limits::MAX_FAILURES).await.map_err(Error::passed)?;
        let mut state = State::default();
        for row in rows {
            let age = row.key.sort.as_slice().try_into().map(u64::from_be_bytes);
            let age = age.map_err(|_| Error::passed(CodecError::Length))?;
            state.insert(age, decode(row.value.expose()).map_err(Error::passed)?);
        }
        *self.lock() = state;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a failure. Past the bound it forgets the oldest one of a stranger, if there is none the oldest, with all
    /// that is stored of it. `knows` tells whether a peer is one that we talk with: of others nothing stays.
    pub(crate) fn remember(
        &self,
        (peer, id): (&Address, MessageId),
        knows: impl Fn(&Address) -> bool,
        changes: &mut ChangeSet,
    ) -> Result<()> {
        let mut state = self.lock();
        let failure = (peer.clone(), id);
        if let Some(age) = state.ages.get(&failure) {
            // The commit that was to write it may have failed.
            changes.put(keys::failure(*age), encode(peer, id));
            return Ok(());
        }
        let age = state.last + 1;
        changes.put(keys::failure(age), encode(peer, id));
        state.insert(age, failure);
        while state.by_age.len() > self.limit {
            let stranger = state.by_age.iter().find(|(_, (peer, _))| !knows(peer));
            let Some((_, goes)) = stranger.or_else(|| state.by_age.first_key_value()) else { break };
            let goes = goes.clone();
            let Some(age) = state.remove(&goes) else { break };
            let (peer, id) = goes;
            changes.delete(keys::failure(age)).delete(keys::request(&peer, id));
            let more = state.by_age.values().any(|(other, _)| *other == peer);
            if !more && !knows(&peer) {
                changes.delete(records::key(&RecordKey::of_peer(RecordKind::Repair, &peer, &[]))?);
            }
        }
        Ok(())
    }

    /// When a failure came, as an order; `None` for one that is not remembered.
    pub(crate) fn age(&self, peer: &Address, id: MessageId) -> Option<u64> {
        self.lock().ages.get(&(peer.clone(), id)).copied()
    }

    /// Forgets one that was asked for again, or that made room for a later one of its sender.
    pub(crate) fn forget(&self, peer: &Address, id: MessageId, changes: &mut ChangeSet) {
        changes.delete(keys::request(peer, id));
        if let Some(age) = self.lock().remove(&(peer.clone(), id)) {
            changes.delete(keys::failure(age));
        }
    }

    /// Forgets those of one sender.
    pub(crate) fn forget_all(&self, peer: &Address, changes: &mut ChangeSet) {
        changes.delete_partition(Table::Repair, keys::requests_of(peer));
        let mut state = self.lock();
        let ages: Vec<u64> =
            state.by_age.iter().filter(|(_, (of, _))| of == peer).map(|(age, _)| *age).collect();
        for age in ages {
            if let Some(failure) = state.by_age.get(&age).cloned() {
                state.remove(&failure);
            }
            changes.delete(keys::failure(age));
        }
    }
}

fn encode(peer: &Address, id: MessageId) -> Vec<u8> {
    let mut out = Writer::new();
    out.u8(VERSION);
    peer.encode(&mut out);
    out.raw(id.as_bytes());
    out.finish()
}

fn decode(bytes: &[u8]) -> core::result::Result<(Address, MessageId), CodecError> {
    let mut input = Reader::new(bytes);
    match input.u8()? {
        VERSION => {}
        other => return Err(CodecError::Version(other)),
    }
    let failure = (Address::decode(&mut input)?, MessageId::from_bytes(*input.array()?));
    input.finish()?;
    Ok(failure)
}

#[cfg(test)]
mod tests {
    use stvor_base::{DeviceId, UserId};

    use super::*;

    fn peer(name: &str) -> Address {
        Address::new(UserId::new(name).unwrap(), DeviceId::FIRST)
    }

    fn id(number: u16) -> MessageId {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        MessageId::from_bytes(bytes)
    }

    fn repair(peer: &Address) -> stvor_store::Key {
        records::key(&RecordKey::of_peer(RecordKind::Repair, peer, &[])).unwrap()
    }

    async fn fail(failures: &Failures, store: &Sealed, (name, number): (&str, u16)) {
        let mut changes = ChangeSet::new();
        let from = peer(name);
        changes.put(keys::request(&from, id(number)), vec![1]).put(repair(&from), vec![1]);
        failures.remember((&from, id(number)), |peer| peer.user.as_str() == "friend", &mut changes).unwrap();
        store.commit(changes).await.unwrap();
    }

    #[test]
    fn a_row_reads_and_is_written_as_it_was_released() {
        let written = [&[1][..], &[0, 0, 0, 3], b"bob", &[0, 0, 0, 1], id(7).as_bytes()].concat();
        assert_eq!(encode(&peer("bob"), id(7)), written);
        assert_eq!(decode(&written), Ok((peer("bob"), id(7))));
        let newer = [&[VERSION + 1], &written[1..]].concat();
        assert_eq!(decode(&newer), Err(CodecError::Version(VERSION + 1)));
    }

    #[tokio::test]
    async fn past_the_bound_the_oldest_failure_goes_with_all_that_is_stored_of_its_stranger() {
        let store = Sealed::in_memory().unwrap();
        let failures = Failures::new(3);
        for (number, name) in (0..).zip(["stranger", "friend", "stranger2"]) {
            fail(&failures, &store, (name, number)).await;
        }
        let there = async |name: &str, number| {
            let from = peer(name);
            let rows = store.get(&[keys::request(&from, id(number)), repair(&from)]).await.unwrap();
            (rows[0].is_some(), rows[1].is_some())
        };
        let before = store.stats().await.unwrap().rows;
        assert_eq!(there("stranger", 0).await, (true, true), "three fit");
        fail(&failures, &store, ("stranger3", 3)).await;
        assert_eq!(there("stranger", 0).await, (false, false));
        for number in 4..100 {
            fail(&failures, &store, (&format!("forged{number}"), number)).await;
        }
        assert_eq!(there("friend", 1).await, (true, true), "strangers do not push out whom we talk with");
        assert_eq!(store.stats().await.unwrap().rows, before, "nothing grows");
        for number in 100..103 {
            fail(&failures, &store, ("friend", number)).await;
        }
        assert_eq!(there("friend", 1).await, (false, true), "its own do, and it keeps its state");
        assert_eq!(there("friend", 100).await, (true, true));
        let loaded = Failures::load(&store).await.unwrap();
        assert_eq!(loaded.lock().by_age, failures.lock().by_age);
    }

    #[tokio::test]
    async fn a_failure_whose_commit_failed_is_written_when_it_comes_again() {
        let store = Sealed::in_memory().unwrap();
        let failures = Failures::new(10);
        let mut lost = ChangeSet::new();
        failures.remember((&peer("friend"), id(1)), |_| true, &mut lost).unwrap();
        fail(&failures, &store, ("friend", 1)).await;
        let loaded = Failures::load(&store).await.unwrap();
        assert_eq!(loaded.lock().by_age, failures.lock().by_age);
        assert_eq!(loaded.lock().by_age.len(), 1);
    }

    #[tokio::test]
    async fn what_was_forgotten_leaves_no_row() {
        let store = Sealed::in_memory().unwrap();
        let failures = Failures::new(10);
        let empty = store.stats().await.unwrap().rows;
        for number in 0..5 {
            fail(&failures, &store, ("friend", number)).await;
        }
        let mut changes = ChangeSet::new();
        failures.forget(&peer("friend"), id(0), &mut changes);
        failures.forget_all(&peer("friend"), &mut changes);
        changes.delete(repair(&peer("friend")));
        store.commit(changes).await.unwrap();
        assert_eq!(store.stats().await.unwrap().rows, empty);
    }
}
