//! Mail that waits for the answer to a question of trust: sealed rows in the order of arrival, acknowledged to the relay,
//! judged after the answer. Strangers can make us keep it, so its number and its bytes have bounds, of all senders and
//! of one.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Address, MessageId, Timestamp};
use stvor_store::{Key, Scan, Sealed, Table};
use stvor_wire::server::Deliver;

use crate::error::{Error, Result};
use crate::keys;
use crate::limits;

const VERSION: u8 = 1;

/// One row, as memory knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its place in the order of arrival.
    pub(crate) number: u64,
    pub(crate) id: MessageId,
    size: usize,
}

impl Entry {
    pub(crate) fn key(&self) -> Key {
        keys::parked(self.number)
    }
}

/// Room for a row that a commit is to write. It is given back when this is dropped, by a fault in the program too.
pub(crate) struct Reserved {
    /// `None` once the row is there.
    parked: Option<Arc<Parked>>,
    entry: Entry,
}

impl Reserved {
    pub(crate) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The row is there.
    fn taken(mut self) -> Entry {
        self.parked = None;
        self.entry
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(parked) = &self.parked {
            parked.give_back(&self.entry);
        }
    }
}

#[derive(Default)]
struct State {
    peers: HashMap<Address, VecDeque<Entry>>,
    /// What is in `peers` and what is in commits that have not ended.
    count: usize,
    bytes: usize,
    last: u64,
}

/// Which mail waits, of all conversations. A lane adds and takes of its own peer only.
#[derive(Default)]
pub(crate) struct Parked(Mutex<State>);

impl Parked {
    /// Reads what earlier runs left.
    pub(crate) async fn load(store: &Sealed) -> Result<Self> {
        let parked = Self::default();
        parked.read(store).await?;
        Ok(parked)
    }

    /// Reads what waits in the place of what memory holds.
    pub(crate) async fn read(&self, store: &Sealed) -> Result<()> {
        let rows = store.scan_all(Scan::of(Table::Repair, keys::PARKED), 2 * limits::MAX_PARKED);
        let mut state = State::default();
        for row in rows.await.map_err(Error::passed)? {
            let number = row.key.sort.as_slice().try_into().map(u64::from_be_bytes);
            let number = number.map_err(|_| Error::passed(CodecError::Length))?;
            let deliver = decode(row.value.expose()).map_err(Error::passed)?;
            let entry = Entry { number, id: deliver.msg_id, size: deliver.blob.len() };
            state.last = state.last.max(number);
            state.count += 1;
            state.bytes += entry.size;
            state.peers.entry(deliver.from).or_default().push_back(entry);
        }
        *self.lock() = state;
        Ok(())
    }

    /// Another instance judges it from now on.
    pub(crate) fn clear(&self) {
        *self.lock() = State::default();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose mail waits.
    pub(crate) fn peers(&self) -> Vec<Address> {
        self.lock().peers.keys().cloned().collect()
    }

    /// The mail of a peer that waits, in its order.
    pub(crate) fn of(&self, peer: &Address) -> Vec<Entry> {
        self.lock().peers.get(peer).map(|entries| entries.iter().copied().collect()).unwrap_or_default()
    }

    pub(crate) fn has(&self, peer: &Address) -> bool {
        self.lock().peers.contains_key(peer)
    }

    /// Room for one more beside those of the same peer that `coming` commits bring; `None` past a bound.
    pub(crate) fn reserve(self: &Arc<Self>, deliver: &Deliver, coming: &[Reserved]) -> Option<Reserved> {
        let mut state = self.lock();
        let size = deliver.blob.len();
        let coming = coming.iter().map(Reserved::entry);
        let own = state.peers.get(&deliver.from).into_iter().flatten().chain(coming);
        let (count, bytes) = own.fold((0, 0), |(count, bytes), entry| (count + 1, bytes + entry.size));
        let fits = state.count < limits::MAX_PARKED
            && state.bytes + size <= limits::MAX_PARKED_BYTES
            && count < limits::MAX_PARKED_OF_ONE
            && bytes + size <= limits::MAX_PARKED_BYTES_OF_ONE;
        if !fits {
            return None;
        }
        state.last += 1;
        state.count += 1;
        state.bytes += size;
        let entry = Entry { number: state.last, id: deliver.msg_id, size };
        Some(Reserved { parked: Some(Arc::clone(self)), entry })
    }

    /// The commit of a reserved row failed.
    fn give_back(&self, entry: &Entry) {
        let mut state = self.lock();
        state.count = state.count.saturating_sub(1);
        state.bytes = state.bytes.saturating_sub(entry.size);
    }

    /// The commit that wrote some rows and removed others is durable.
    pub(crate) fn settle(&self, peer: &Address, added: Vec<Reserved>, removed: &[u64]) {
        if added.is_empty() && removed.is_empty() {
            return;
        }
        // Before the lock, which whoever gives room back takes, too.
        let added: Vec<Entry> = added.into_iter().map(Reserved::taken).collect();
        let mut state = self.lock();
        let mut entries = state.peers.remove(peer).unwrap_or_default();
        entries.extend(added);
        let removed: HashSet<&u64> = removed.iter().collect();
        let (gone, rest): (VecDeque<Entry>, VecDeque<Entry>) =
            entries.into_iter().partition(|entry| removed.contains(&entry.number));
        state.count = state.count.saturating_sub(gone.len());
        state.bytes = state.bytes.saturating_sub(gone.iter().map(|entry| entry.size).sum());
        if !rest.is_empty() {
            state.peers.insert(peer.clone(), rest);
        }
    }
}

/// A row: who sent it, what the relay calls it, its bytes.
pub(crate) fn encode(deliver: &Deliver) -> Vec<u8> {
    let mut out = Writer::with_capacity(512 + deliver.blob.len());
    out.u8(VERSION);
    deliver.from.encode(&mut out);
    out.raw(deliver.msg_id.as_bytes()).u64(deliver.received_at.as_millis()).raw(&deliver.blob);
    out.finish()
}

/// What [`encode`] wrote, without the place that it had at the relay.
pub(crate) fn decode(bytes: &[u8]) -> core::result::Result<Deliver, CodecError> {
    let mut input = Reader::new(bytes);
    match input.u8()? {
        VERSION => {}
        other => return Err(CodecError::Version(other)),
    }
    Ok(Deliver {
        from: Address::decode(&mut input)?,
        mailbox_epoch: 0,
        seq: 0,
        msg_id: MessageId::from_bytes(*input.array()?),
        received_at: Timestamp::from_millis(input.u64()?),
        blob: input.rest().to_vec().into(),
        ephemeral: false,
    })
}

#[cfg(test)]
mod tests {
    use stvor_base::{DeviceId, UserId};

    use super::*;

    fn deliver(name: &str, size: usize) -> Deliver {
        Deliver {
            from: Address::new(UserId::new(name).unwrap(), DeviceId::FIRST),
            mailbox_epoch: 0,
            seq: 0,
            msg_id: MessageId::from_bytes([3; 16]),
            blob: vec![7; size].into(),
            received_at: Timestamp::from_millis(5),
            ephemeral: false,
        }
    }

    /// How many fit, settled one by one.
    fn fill(parked: &Arc<Parked>, deliver: &Deliver) -> usize {
        let fits = || parked.reserve(deliver, &[]);
        core::iter::from_fn(fits).map(|entry| parked.settle(&deliver.from, vec![entry], &[])).count()
    }

    #[test]
    fn what_waits_has_a_bound_of_one_and_of_all_in_number_and_bytes() {
        let parked = Arc::new(Parked::default());
        assert_eq!(fill(&parked, &deliver("alice", 512)), limits::MAX_PARKED_OF_ONE);
        assert_eq!(fill(&parked, &deliver("bob", 65_536)), limits::MAX_PARKED_BYTES_OF_ONE / 65_536);
        let others =
            limits::MAX_PARKED - limits::MAX_PARKED_OF_ONE - limits::MAX_PARKED_BYTES_OF_ONE / 65_536;
        let small = (0..8).map(|number| fill(&parked, &deliver(&format!("small{number}"), 1))).sum::<usize>();
        assert_eq!(small, others);
        let alice = deliver("alice", 512).from;
        let first = parked.of(&alice)[0];
        parked.settle(&alice, Vec::new(), &[first.number]);
        assert_eq!(fill(&parked, &deliver("late", 1)), 1, "what went makes room");
        let parked = Arc::new(Parked::default());
        let coming: Vec<Reserved> =
            core::iter::from_fn(|| parked.reserve(&deliver("bob", 65_536), &[])).collect();
        let other = Arc::new(Parked::default());
        assert!(other.reserve(&deliver("bob", 65_536), &coming).is_none(), "what is coming counts");
    }

    #[test]
    fn room_that_was_reserved_and_not_used_is_free_again() {
        let parked = Arc::new(Parked::default());
        let reserved = parked.reserve(&deliver("first", 65_536), &[]).unwrap();
        let large = (0..9).map(|number| fill(&parked, &deliver(&format!("large{number}"), 65_536)));
        assert_eq!(1 + large.sum::<usize>(), limits::MAX_PARKED_BYTES / 65_536);
        drop(reserved);
        assert_eq!(fill(&parked, &deliver("late", 65_536)), 1);
        assert_eq!(fill(&parked, &deliver("later", 1)), 0);
    }

    #[test]
    fn rows_read_back() {
        let one = deliver("alice", 2);
        // As version 1 writes it, for good.
        let from = [&[0, 0, 0, 5][..], b"alice", &[0, 0, 0, 1]].concat();
        let written = [&[1][..], &from, &[3; 16], &5_u64.to_be_bytes(), &[7, 7]].concat();
        assert_eq!(encode(&one), written);
        assert_eq!(decode(&written), Ok(one));
        assert_eq!(decode(&[9]), Err(CodecError::Version(9)));
    }
}
