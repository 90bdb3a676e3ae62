//! What commits stored that reported a failure.

use super::Inbox;
use crate::error::{Error, Result};
use crate::keys;
use crate::limits;
use crate::rows::PointerRow;

impl Inbox {
    /// Looks for what was given back as soon as the store answers: what is there takes room before the window comes to it. Does not
    /// end.
    pub(crate) async fn count_given_back(&self) {
        loop {
            if self.lock().given_back.is_empty() {
                self.gave_back.notified().await;
                continue;
            }
            if let Err(error) = self.look_for_given_back().await {
                tracing::debug!(code = error.code(), "what takes room in the inbox can not be read just now");
                // As a stream does: one may wait for what is found.
                tokio::time::sleep(limits::BACKOFF_FIRST).await;
            }
        }
    }

    /// Counts those of a page that are there. What is not there now never will be, as with what was passed over.
    async fn look_for_given_back(&self) -> Result<()> {
        let numbers: Vec<u64> = self.lock().given_back.iter().take(limits::INBOX_PAGE).copied().collect();
        let keys: Vec<_> = numbers.iter().map(|seq| keys::inbox(*seq)).collect();
        let rows = self.store.get(&keys).await.map_err(Error::passed)?;
        let mut found = false;
        {
            let mut state = self.lock();
            for (seq, row) in numbers.into_iter().zip(rows) {
                // The window may have come to it meanwhile, and counted it.
                let here = state.given_back.remove(&seq);
                let pointer = row.and_then(|row| PointerRow::decode(row.value.expose()).ok());
                if let Some(pointer) = pointer.filter(|_| here) {
                    state.comes(&pointer.peer.user);
                    found = true;
                }
            }
        }
        if found {
            // A stream that waits can go on to it.
            self.changed.notify_waiters();
        }
        Ok(())
    }
}
