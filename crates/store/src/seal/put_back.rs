//! What follows from a store that was put back to an older state under a client that has it open.
//!
//! Its server failed over to a replica that lagged, or restored an older copy of its own. An adapter that can tell answers
//! [`StoreError::PutBack`] to every commit until it hears that the caller knows. What was read before that may be used for
//! nothing more: readers note which [incarnation](Sealed::incarnation) of the store they read, and commit in that one only.

use super::Sealed;
use crate::StoreError;
use crate::change::{ChangeSet, RowVersion};
use core::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{RwLock, watch};

/// How often a store was put back since it was opened here, and whether somebody has to do something about it.
#[derive(Debug)]
pub(super) struct Incarnation {
    number: AtomicU64,
    found: watch::Sender<bool>,
    /// Commits of an incarnation read it, the end of that one writes it.
    gate: RwLock<()>,
}

impl Incarnation {
    pub(super) fn first() -> Self {
        Self { number: AtomicU64::new(1), found: watch::Sender::new(false), gate: RwLock::new(()) }
    }
}

impl Sealed {
    /// Which incarnation of the store is open: note it before rows are read that something depends on which must not happen
    /// twice, and commit what follows from them by [`Sealed::commit_in`].
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation.number.load(Ordering::SeqCst)
    }

    /// [`Sealed::commit`], if the store was not found to be put back since that incarnation.
    ///
    /// # Errors
    /// [`StoreError::PutBack`] if it was: read again; as [`Sealed::commit`].
    pub async fn commit_in(&self, incarnation: u64, changes: ChangeSet) -> Result<RowVersion, StoreError> {
        let _gate = self.incarnation.gate.read().await;
        if self.incarnation() != incarnation {
            return Err(StoreError::PutBack);
        }
        self.commit(changes).await
    }

    /// Waits until the store is found to be put back: for ever, mostly. Until [`Sealed::accept_put_back`] it accepts nothing.
    pub async fn put_back(&self) {
        let mut found = self.incarnation.found.subscribe();
        // The sender lives as long as this store.
        let _ = found.wait_for(|found| *found).await;
    }

    /// Goes on with the store as it is now, as another incarnation: what was read before is not committed any more. For a
    /// caller who knows that the store was put back, and has seen to it that nothing that was lost is done again.
    pub async fn accept_put_back(&self) {
        let _gate = self.incarnation.gate.write().await;
        self.incarnation.number.fetch_add(1, Ordering::SeqCst);
        self.incarnation.found.send_replace(false);
        self.store.accept_put_back();
    }

    /// The adapter says that the server lacks what it acknowledged. What is not there at all was emptied.
    pub(super) async fn found_put_back(&self) -> StoreError {
        if let Some(anchor) = &self.anchor
            && let Ok(false) = anchor.is_there(self.store.as_ref()).await
        {
            return self.found_emptied().await;
        }
        if !self.incarnation.found.send_replace(true) {
            tracing::error!("the store was put back to an older state under this client: commits are gone");
        }
        StoreError::PutBack
    }
}
