//! Removing what the application is done with.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard};

use stvor_store::{ChangeSet, Expect, Op, StoreError};
use tokio::sync::mpsc;

use super::{Consumed, Inbox, State};
use crate::error::{Error, Result};
use crate::keys;
use crate::limits;
use crate::rows::FOREVER;

/// How often rows of messages are read again that changed meanwhile.
pub(super) const TRIES: usize = 4;

/// What is consumed: what is to come, and what the run that a fault ended had taken of it.
pub(crate) struct Acks(tokio::sync::Mutex<(mpsc::Receiver<Consumed>, Vec<Consumed>)>);

impl From<mpsc::Receiver<Consumed>> for Acks {
    fn from(consumed: mpsc::Receiver<Consumed>) -> Self {
        Self(tokio::sync::Mutex::new((consumed, Vec::new())))
    }
}

impl Inbox {
    /// Removes consumed messages, many in one commit, until every sender is gone or `stop` ends.
    pub(crate) async fn run_acks(
        self: Arc<Self>,
        acks: Arc<Acks>,
        stop: tokio_util::sync::CancellationToken,
    ) {
        let mut acks = acks.0.lock().await;
        let (consumed, batch) = &mut *acks;
        loop {
            let over = tokio::select! {
                biased;
                () = core::future::ready(()), if !batch.is_empty() => false,
                count = consumed.recv_many(batch, limits::INBOX_PAGE) => count == 0,
                () = self.fell_behind.notified() => false,
                () = stop.cancelled() => {
                    consumed.close();
                    consumed.recv_many(batch, limits::INBOX_PAGE).await == 0
                }
            };
            {
                let mut state = self.lock();
                let some = state.behind.len().min(limits::INBOX_PAGE);
                batch.extend(state.behind.drain(..some));
                if !state.behind.is_empty() {
                    self.fell_behind.notify_one();
                }
            }
            if batch.is_empty() {
                if over {
                    break;
                }
                continue;
            }
            let results = match self.instances.is_shared() {
                true => self.remove_claimed(batch).await,
                false => vec![self.remove(batch).await; batch.len()],
            };
            for (one, result) in batch.drain(..).zip(results) {
                if let Some(done) = one.done {
                    let _ = done.send(result);
                }
            }
        }
    }

    async fn remove(&self, batch: &[Consumed]) -> Result<()> {
        // What was consumed before is not counted twice. Nobody but this task removes rows.
        let mut seen = HashSet::new();
        let news: Vec<&Consumed> = {
            let state = self.lock();
            batch.iter().filter(|one| state.present.contains(&one.seq) && seen.insert(one.seq)).collect()
        };
        if news.is_empty() {
            return Ok(());
        }
        let _rows = self.rows.lock().await;
        let mut tries = TRIES;
        loop {
            let mut changes = ChangeSet::new();
            for one in &news {
                changes.delete(keys::inbox(one.seq));
                self.keep_or_not(one, &mut changes).await?;
            }
            tries -= 1;
            match self.store.commit(changes).await {
                // The row of a message changed meanwhile.
                Err(StoreError::Conflict { .. }) if tries > 0 => {}
                done => break done.map(|_| ()).map_err(Error::passed)?,
            }
        }
        let mut state = self.lock();
        for one in batch.iter().filter(|one| seen.remove(&one.seq)) {
            state.present.remove(&one.seq);
            state.leaves(&one.pointer.peer.user);
        }
        self.tell_of_room(state);
        Ok(())
    }

    /// What becomes of the row of a consumed message.
    pub(super) async fn keep_or_not(&self, one: &Consumed, changes: &mut ChangeSet) -> Result<()> {
        let key = keys::pointed(&one.pointer);
        match one.keep {
            FOREVER => {}
            0 => {
                changes.delete(key);
            }
            millis => {
                // From here on nothing but the retention keeps it.
                let Some(row) = self.store.one(&key).await.map_err(Error::passed)? else { return Ok(()) };
                let expires = one.received_at + std::time::Duration::from_millis(millis);
                let put = Op::put(key, row.value).expiring(expires);
                changes.push(put.expecting(Expect::Version(row.version)));
            }
        }
        Ok(())
    }

    /// Mail that was refused for want of room may come again.
    pub(super) fn tell_of_room(&self, mut state: MutexGuard<'_, State>) {
        let mut room = state.refused && state.waiting <= self.limit() / 4 * 3;
        if room {
            state.refused = false;
        }
        let State { crowded, shares, .. } = &mut *state;
        let before = crowded.len();
        crowded.retain(|from| shares.get(from).is_some_and(|share| *share > self.share() / 2));
        room |= crowded.len() < before;
        drop(state);
        if room {
            self.room_again.notify_one();
        }
    }
}
