//! Removing what the application is done with.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard};

use stvor_store::{ChangeSet, Expect, Op, StoreError};
use tokio::sync::mpsc;

use super::again::Again;
use super::{Consumed, Inbox, State};
use crate::error::{Error, ErrorKind, Result};
use crate::keys;
use crate::limits;
use crate::rows::FOREVER;

/// How often rows of messages are read again that changed meanwhile.
pub(super) const TRIES: usize = 4;

/// What is consumed: what is to come, and what the run that a fault ended had taken of it.
pub(crate) struct Acks(tokio::sync::Mutex<Taken>);

struct Taken {
    coming: mpsc::Receiver<Consumed>,
    batch: Vec<Consumed>,
    again: Again,
}

impl From<mpsc::Receiver<Consumed>> for Acks {
    fn from(coming: mpsc::Receiver<Consumed>) -> Self {
        Self(tokio::sync::Mutex::new(Taken { coming, batch: Vec::new(), again: Again::new() }))
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
        let Taken { coming, batch, again } = &mut *acks;
        loop {
            let mut retried = false;
            let over = tokio::select! {
                biased;
                () = core::future::ready(()), if !batch.is_empty() => false,
                () = tokio::time::sleep_until(again.at()), if !again.is_empty() => {
                    retried = true;
                    false
                }
                count = coming.recv_many(batch, limits::INBOX_PAGE) => count == 0,
                () = self.fell_behind.notified() => false,
                () = stop.cancelled() => {
                    coming.close();
                    coming.recv_many(batch, limits::INBOX_PAGE).await == 0
                }
            };
            if !retried {
                let mut state = self.lock();
                let some = state.behind.len().min(limits::INBOX_PAGE);
                batch.extend(state.behind.drain(..some));
                if !state.behind.is_empty() {
                    self.fell_behind.notify_one();
                }
            }
            // At the end what failed before is tried once more.
            retried |= over && batch.is_empty();
            if retried {
                batch.extend(again.some());
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
            let count = batch.len();
            let failed = answer(batch.drain(..).zip(results));
            if retried && !failed.is_empty() && (over || stop.is_cancelled()) {
                // It waits in the store, for the next start.
                *again = Again::new();
            } else if retried {
                again.tried(count, failed);
            } else if !failed.is_empty() {
                again.add(failed);
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

/// Tells those who wait what came of it. Gives back what could not be removed and nobody waits for, except what is another instance's.
fn answer(answered: impl Iterator<Item = (Consumed, Result<()>)>) -> Vec<Consumed> {
    let (mut failed, mut why) = (Vec::new(), None);
    for (mut one, result) in answered {
        match (one.done.take(), result) {
            (Some(done), result) => {
                let _ = done.send(result);
            }
            (None, Err(error)) if !matches!(error.kind(), ErrorKind::ClaimLost) => {
                failed.push(one);
                why = Some(error);
            }
            (None, _) => {}
        }
    }
    if let Some(error) = why {
        tracing::warn!(
            code = error.code(),
            count = failed.len(),
            "consumed messages could not be removed yet"
        );
    }
    failed
}
