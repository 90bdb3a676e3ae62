//! Removing what the application is done with.

use std::collections::HashSet;
use std::sync::Arc;

use stvor_store::{ChangeSet, Op};
use tokio::sync::mpsc;

use super::{Consumed, Inbox};
use crate::error::{Error, Result};
use crate::keys;
use crate::limits;
use crate::rows::FOREVER;

impl Inbox {
    /// Removes consumed messages, many in one commit, until every sender is gone or `stop` ends.
    pub(crate) async fn run_acks(
        self: Arc<Self>,
        mut consumed: mpsc::Receiver<Consumed>,
        stop: tokio_util::sync::CancellationToken,
    ) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                count = consumed.recv_many(&mut batch, limits::INBOX_PAGE) => if count == 0 { break },
                () = stop.cancelled() => {
                    consumed.close();
                    if consumed.recv_many(&mut batch, limits::INBOX_PAGE).await == 0 {
                        break;
                    }
                }
            }
            let result = self.remove(&batch).await;
            for one in batch.drain(..) {
                if let Some(done) = one.done {
                    let _ = done.send(result.clone());
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
        let mut changes = ChangeSet::new();
        for one in news {
            changes.delete(keys::inbox(one.seq));
            let key = keys::pointed(&one.pointer);
            match one.keep {
                FOREVER => {}
                0 => {
                    changes.delete(key);
                }
                millis => {
                    // From here on nothing but the retention keeps it.
                    let Some(row) = self.store.one(&key).await.map_err(Error::passed)? else { continue };
                    let expires = one.received_at + std::time::Duration::from_millis(millis);
                    changes.push(Op::put(key, row.value).expiring(expires));
                }
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.store.commit(changes).await.map_err(Error::passed)?;
        let mut state = self.lock();
        state.waiting = state.waiting.saturating_sub(seen.len());
        for seq in &seen {
            state.present.remove(seq);
        }
        let room = state.refused && state.waiting <= self.limit / 4 * 3;
        if room {
            state.refused = false;
        }
        drop(state);
        if room {
            self.room_again.notify_one();
        }
        Ok(())
    }
}
