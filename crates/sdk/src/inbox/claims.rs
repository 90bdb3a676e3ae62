//! The inbox of a store that several instances share. The instance that receives writes the rows; each instance takes some of
//! them for its application by writing its name into them. Such a claim is good as long as its instance is not gone.
//! Consuming a message removes the row as the claim wrote it, so it is consumed once, by whoever holds the claim.

use std::collections::HashSet;
use std::sync::Arc;

use stvor_crypto::SystemRandom;
use stvor_store::{ChangeSet, Expect, Op, RowVersion, Scan, StoreError, Table};

use super::acks::TRIES;
use super::{Consumed, Inbox, Message};
use crate::core::random;
use crate::error::{Error, ErrorKind, Result};
use crate::instances::{InstanceId, Instances};
use crate::keys;
use crate::limits;
use crate::rows::{FOREVER, InboxRow, MessageRow};

/// Why messages could not be removed.
enum Removal {
    /// A claim does not hold any more.
    Lost,
    Failed(Error),
}

/// A message that can be taken, as its row was read.
struct Free {
    seq: u64,
    row: InboxRow,
    version: RowVersion,
}

impl Inbox {
    /// As `take`, of a shared store.
    pub(super) async fn take_claimed(self: Arc<Self>) -> Option<Message> {
        let mut idle = limits::CLAIM_POLL / 16;
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.lock();
                if let Some(message) = state.ready.pop_front() {
                    return Some(message);
                }
                if state.closed {
                    return None;
                }
            }
            // In a task of its own: a stream that is dropped while it waits must not leave rows that are taken and nowhere.
            let claiming = tokio::spawn({
                let inbox = Arc::clone(&self);
                async move { inbox.claim().await }
            });
            match claiming.await {
                Ok(Ok(true)) => continue,
                Ok(Ok(false)) => {}
                // The store may be away for a moment; the rows are not.
                Ok(Err(error)) => tracing::warn!(code = error.code(), "the inbox could not be read"),
                // The runtime of the client ended, and the client with it.
                Err(error) if error.is_cancelled() => return None,
                Err(error) => tracing::error!(%error, "a claim ended early"),
            }
            tokio::select! {
                () = changed => idle = limits::CLAIM_POLL / 16,
                () = self.rest(idle) => idle = (idle * 2).min(limits::CLAIM_POLL),
            }
        }
    }

    /// Takes messages for this instance; whether there are some now.
    async fn claim(&self) -> Result<bool> {
        let _one_at_a_time = self.loading.lock().await;
        for _ in 0..TRIES {
            if !self.lock().ready.is_empty() {
                return Ok(true);
            }
            let free = self.free().await?;
            if free.is_empty() {
                return Ok(false);
            }
            match self.claim_these(free).await {
                Err(StoreError::Conflict { op }) => {
                    if op == 0 {
                        // Declared gone: under this id nothing is taken any more.
                        self.instances.hurry();
                        return Ok(false);
                    }
                }
                claimed => return claimed.map_err(Error::passed),
            }
        }
        Ok(false)
    }

    /// Some messages that nobody has taken, or whose takers are gone: a share of them, so that others find some too.
    async fn free(&self) -> Result<Vec<Free>> {
        let mut scan = Scan::of(Table::Inbox, keys::INBOX).limit(limits::INBOX_PAGE);
        loop {
            let page = self.store.scan(scan.clone()).await.map_err(Error::passed)?;
            let Some(last) = page.rows.last().map(|row| row.key.sort.clone()) else { return Ok(Vec::new()) };
            let mut rows = Vec::with_capacity(page.rows.len());
            for row in &page.rows {
                let Ok(seq) = row.key.sort.as_slice().try_into().map(u64::from_be_bytes) else { continue };
                match InboxRow::decode(row.value.expose()) {
                    Ok(found) => rows.push(Free { seq, row: found, version: row.version }),
                    Err(error) => self.skip(&Error::passed(error)),
                }
            }
            let mut free = self.not_taken(rows).await?;
            if !free.is_empty() {
                let share = free.len() / (self.instances.others() + 1);
                let from = random(&mut SystemRandom::new()).map_or(0, u32::from_be_bytes);
                let from = usize::try_from(from).unwrap_or(0) % free.len();
                // The oldest ones first when nobody else is there to meet.
                if self.instances.others() > 0 {
                    free.rotate_left(from);
                }
                free.truncate(share.clamp(1, limits::CLAIM_BATCH));
                free.sort_by_key(|one| one.seq);
                return Ok(free);
            }
            if !page.more {
                return Ok(Vec::new());
            }
            scan = scan.after(last.as_slice());
        }
    }

    async fn not_taken(&self, rows: Vec<Free>) -> Result<Vec<Free>> {
        let me = self.instances.id();
        let (mut free, mut taken) = (Vec::new(), Vec::new());
        {
            let state = self.lock();
            for one in rows {
                match one.row.taken_by {
                    None => free.push(one),
                    // Taken by a claim that was applied and whose end was not seen.
                    Some(by) if by == me && !state.claims.contains_key(&one.seq) => free.push(one),
                    Some(by) if by == me || self.instances.knows(by) => {}
                    Some(by) => taken.push((by, one)),
                }
            }
        }
        if !taken.is_empty() {
            // Whom this instance does not know may have come just now.
            let ids: HashSet<InstanceId> = taken.iter().map(|(by, _)| *by).collect();
            let ids: Vec<InstanceId> = ids.into_iter().collect();
            let present = Instances::present(&self.store, &ids).await?;
            free.extend(taken.into_iter().filter(|(by, _)| !present.contains(by)).map(|(_, one)| one));
        }
        Ok(free)
    }

    async fn claim_these(&self, free: Vec<Free>) -> core::result::Result<bool, StoreError> {
        let losses = self.lock().losses;
        let taken_by = Some(self.instances.id());
        let mut changes = ChangeSet::new();
        changes.push(self.instances.fence());
        for one in &free {
            let row = InboxRow { taken_by, ..one.row.clone() };
            let expect = Expect::Version(one.version);
            changes.push(Op::put(keys::inbox(one.seq), row.encode()).expecting(expect));
        }
        let version = self.store.commit(changes).await?;
        let messages: Vec<_> = free.iter().map(|one| keys::pointed(&one.row.pointer)).collect();
        let rows = self.store.get(&messages).await?;
        let mut gone = Vec::new();
        {
            let mut state = self.lock();
            if losses != state.losses {
                // Declared gone meanwhile: all of it is for others.
                return Ok(false);
            }
            state.newest = state.newest.max(Some(version));
            for (one, row) in free.into_iter().zip(rows) {
                state.claims.insert(one.seq, version);
                match row.map(|row| MessageRow::decode(row.value.expose())) {
                    Some(Ok(row)) => {
                        let message = self.message((one.seq, Some(version)), one.row.pointer, row);
                        state.ready.push_back(message);
                    }
                    // It stays where it is, taken: others could not read it either.
                    Some(Err(error)) => {
                        let error = Error::passed(error);
                        state.unreadable = Some(error.code());
                        self.skipped.notify_one();
                    }
                    None => gone.push(one),
                }
            }
        }
        for Free { seq, row: InboxRow { pointer, .. }, .. } in gone {
            // The conversation was deleted before the application took the message.
            let received_at = stvor_base::Timestamp::default();
            let claim = Some(version);
            let _ = self
                .acker
                .send(Consumed { seq, claim, pointer, keep: FOREVER, received_at, done: None })
                .await;
        }
        Ok(true)
    }

    fn skip(&self, error: &Error) {
        tracing::error!(code = error.code(), "a message of the inbox can not be read");
        self.lock().unreadable = Some(error.code());
        self.skipped.notify_one();
    }

    /// Removes consumed messages; what became of each.
    pub(super) async fn remove_claimed(&self, batch: &[Consumed]) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> = Vec::with_capacity(batch.len());
        let mut seen = HashSet::new();
        let mut news = Vec::new();
        {
            let state = self.lock();
            for (index, one) in batch.iter().enumerate() {
                results.push(Ok(()));
                let Some(claim) = one.claim.filter(|_| seen.insert((one.seq, one.claim))) else { continue };
                if state.claims.get(&one.seq) == Some(&claim) {
                    news.push((index, one, claim));
                } else if Some(claim) <= state.lost_to {
                    results[index] = Err(ErrorKind::ClaimLost.into());
                }
            }
        }
        if news.is_empty() {
            return results;
        }
        match self.remove_these(&news).await {
            Err(Removal::Lost) => {
                for one in news {
                    let index = one.0;
                    results[index] = match self.remove_these(&[one]).await {
                        Ok(()) => Ok(()),
                        Err(Removal::Lost) => self.was_it_removed(one).await,
                        Err(Removal::Failed(error)) => Err(error),
                    };
                }
            }
            Err(Removal::Failed(error)) => {
                news.iter().for_each(|(index, ..)| results[*index] = Err(error.clone()));
            }
            Ok(()) => {}
        }
        results
    }

    /// A row that is not as its claim wrote it: an earlier removal was applied and its answer lost, the row was sealed anew under
    /// another data key, or the claim does not hold any more.
    async fn was_it_removed(&self, (index, one, _): (usize, &Consumed, RowVersion)) -> Result<()> {
        let me = self.instances.id();
        // A rotation of the data key changes a row once.
        for _ in 0..TRIES {
            let row = self.store.one(&keys::inbox(one.seq)).await.map_err(Error::passed)?;
            // Nobody else may remove or take what an instance has that is there: after the row was read, so at that time, too.
            let there = Instances::present(&self.store, &[me]).await?.contains(&me);
            let version = match row {
                None if there && self.holds(one) => {
                    self.are_removed([one]);
                    return Ok(());
                }
                Some(row) if there && self.is_as_claimed(one, row.value.expose()) => row.version,
                _ => break,
            };
            match self.remove_these(&[(index, one, version)]).await {
                Ok(()) => return Ok(()),
                Err(Removal::Lost) => {}
                Err(Removal::Failed(error)) => return Err(error),
            }
        }
        {
            let mut state = self.lock();
            state.claims.remove(&one.seq);
            state.lost_to = state.lost_to.max(one.claim);
        }
        self.instances.hurry();
        Err(ErrorKind::ClaimLost.into())
    }

    /// Whether a row says what the claim of a message made it say, and the claim was not lost.
    fn is_as_claimed(&self, one: &Consumed, row: &[u8]) -> bool {
        let claimed = InboxRow { pointer: one.pointer.clone(), taken_by: Some(self.instances.id()) };
        InboxRow::decode(row).is_ok_and(|row| row == claimed) && self.holds(one)
    }

    /// Whether a claim was not lost: an instance that was declared gone lets go of all of them before it has another id.
    fn holds(&self, one: &Consumed) -> bool {
        self.lock().claims.get(&one.seq).copied() == one.claim
    }

    async fn remove_these(
        &self,
        news: &[(usize, &Consumed, RowVersion)],
    ) -> core::result::Result<(), Removal> {
        let mut tries = TRIES;
        loop {
            let mut changes = ChangeSet::new();
            changes.push(self.instances.fence());
            for (_, one, version) in news {
                changes.push(Op::delete(keys::inbox(one.seq)).expecting(Expect::Version(*version)));
            }
            let claims = changes.len();
            for (_, one, _) in news {
                self.keep_or_not(one, &mut changes).await.map_err(Removal::Failed)?;
            }
            tries -= 1;
            match self.store.commit(changes).await {
                Ok(_) => break,
                Err(StoreError::Conflict { op }) if op < claims => return Err(Removal::Lost),
                // The row of a message changed: it was marked as read.
                Err(StoreError::Conflict { .. }) if tries > 0 => {}
                Err(error) => return Err(Removal::Failed(Error::passed(error))),
            }
        }
        self.are_removed(news.iter().map(|(_, one, _)| *one));
        Ok(())
    }

    fn are_removed<'a>(&self, removed: impl IntoIterator<Item = &'a Consumed>) {
        let mut state = self.lock();
        for one in removed {
            state.claims.remove(&one.seq);
            state.leaves(&one.pointer.peer.user);
        }
        self.tell_of_room(state);
    }

    /// Reads how much waits and which number was the last: for the instance that receives.
    pub(crate) async fn count(&self) -> Result<()> {
        let rows = self.store.scan_all(Scan::of(Table::Inbox, keys::INBOX), 2 * limits::MAX_INBOX);
        let rows = rows.await.map_err(Error::passed)?;
        let last = rows.last().and_then(|row| row.key.sort.as_slice().try_into().ok());
        let mut state = self.lock();
        state.last = state.last.max(last.map_or(0, u64::from_be_bytes));
        state.waiting = rows.len() + state.in_flight.len();
        let stored = rows.iter().filter_map(|row| InboxRow::decode(row.value.expose()).ok());
        let senders: Vec<_> =
            stored.map(|row| row.pointer.peer.user).chain(state.in_flight.values().cloned()).collect();
        state.shares.clear();
        for from in senders {
            *state.shares.entry(from).or_default() += 1;
        }
        self.tell_of_room(state);
        Ok(())
    }

    /// Whether so much waits that it should be counted what other instances took.
    pub(crate) fn is_filling(&self) -> bool {
        let state = self.lock();
        state.refused || !state.crowded.is_empty() || state.waiting > self.limit() / 2
    }

    /// This instance was declared gone: what it had taken is for others.
    pub(crate) fn lose_claims(&self) {
        let mut state = self.lock();
        state.claims.clear();
        state.ready.clear();
        state.lost_to = state.newest;
        state.losses += 1;
    }

    /// Looks at once whether there is something to take.
    pub(crate) fn look_again(&self) {
        self.changed.notify_waiters();
    }
}
