//! What became of a message of ours.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use stvor_base::{ContentId, UserId};
use tokio::sync::{oneshot, watch};

use crate::error::{Error, ErrorKind, Result};
use crate::events::DeliveryState;

/// Follows one message of ours. Cheap to keep, and nothing is lost by dropping it: [`crate::Client::receipt`] gives
/// another one, also after a restart.
#[derive(Clone)]
pub struct Receipt {
    id: ContentId,
    to: UserId,
    state: watch::Receiver<DeliveryState>,
}

impl Receipt {
    pub(crate) fn new(id: ContentId, to: UserId, state: watch::Receiver<DeliveryState>) -> Self {
        Self { id, to, state }
    }

    /// The message's id, the same that the recipient sees.
    #[must_use]
    pub fn id(&self) -> ContentId {
        self.id
    }

    /// The recipient.
    #[must_use]
    pub fn to(&self) -> &UserId {
        &self.to
    }

    /// How far the message has come.
    #[must_use]
    pub fn status(&self) -> DeliveryState {
        *self.state.borrow()
    }

    /// Waits until the relay answers for the message.
    ///
    /// # Errors
    /// `DELIVERY_FAILED` when the message was given up; `CLIENT_NOT_READY` when the client closed first (the message
    /// is still in the outbox).
    pub async fn accepted(&self) -> Result<()> {
        self.reached(DeliveryState::Accepted).await
    }

    /// Waits until the recipient's device has stored the message. There is no bound: the recipient may be away for
    /// weeks.
    ///
    /// # Errors
    /// As [`accepted`](Self::accepted).
    pub async fn delivered(&self) -> Result<()> {
        self.reached(DeliveryState::Delivered).await
    }

    /// Waits until the recipient's application says that it was read. Not every application does.
    ///
    /// # Errors
    /// As [`accepted`](Self::accepted).
    pub async fn read(&self) -> Result<()> {
        self.reached(DeliveryState::Read).await
    }

    async fn reached(&self, wanted: DeliveryState) -> Result<()> {
        let mut state = self.state.clone();
        let reached = state.wait_for(|state| *state >= wanted).await;
        match reached.map(|state| *state) {
            Ok(DeliveryState::Failed) => Err(ErrorKind::DeliveryFailed {
                id: self.id,
                user: self.to.clone(),
                reason: "it was given up".to_owned(),
            }
            .into()),
            Ok(_) => Ok(()),
            Err(_) => Err(Error::not_ready("it was closed while a receipt was awaited")),
        }
    }
}

impl core::fmt::Debug for Receipt {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Receipt").field("id", &self.id).field("state", &self.status()).finish_non_exhaustive()
    }
}

/// See [`Watchers::when_written`].
pub(crate) struct Written<'a> {
    watchers: &'a Watchers,
    id: ContentId,
    told: oneshot::Receiver<()>,
}

impl Written<'_> {
    pub(crate) async fn told(&mut self) {
        if (&mut self.told).await.is_err() {
            core::future::pending::<()>().await;
        }
    }
}

impl Drop for Written<'_> {
    fn drop(&mut self) {
        self.watchers.0.lock().unwrap_or_else(PoisonError::into_inner).written.remove(&self.id);
    }
}

/// The receipts that somebody holds.
#[derive(Default)]
pub(crate) struct Watchers(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    by_id: HashMap<ContentId, watch::Sender<DeliveryState>>,
    /// Who waits for a message to be written, where no relay answers for it.
    written: HashMap<ContentId, oneshot::Sender<()>>,
    /// Entries after which those that nobody holds are thrown out.
    prune_at: usize,
}

impl Watchers {
    /// A receiver for a message that is in `state` as far as the store knows.
    pub(crate) fn watch(&self, id: ContentId, state: DeliveryState) -> watch::Receiver<DeliveryState> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.by_id.len() >= inner.prune_at {
            inner.by_id.retain(|_, sender| sender.receiver_count() > 0);
            inner.prune_at = (2 * inner.by_id.len()).max(64);
        }
        inner.by_id.entry(id).or_insert_with(|| watch::Sender::new(state)).subscribe()
    }

    /// Ends when a message is written to a relay that answers for none. At others it does not.
    pub(crate) fn when_written(&self, id: ContentId) -> Written<'_> {
        let (sender, told) = oneshot::channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).written.insert(id, sender);
        Written { watchers: self, id, told }
    }

    /// A message was written to a relay that answers for none.
    pub(crate) fn written(&self, id: ContentId) {
        if let Some(waiting) = self.0.lock().unwrap_or_else(PoisonError::into_inner).written.remove(&id) {
            let _ = waiting.send(());
        }
    }

    /// A message came further. Never takes it back.
    pub(crate) fn advance(&self, id: ContentId, state: DeliveryState) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = inner.by_id.get(&id) else { return };
        if sender.receiver_count() == 0 {
            inner.by_id.remove(&id);
            return;
        }
        sender.send_if_modified(|current| {
            let further = *current < state;
            if further {
                *current = state;
            }
            further
        });
    }

    /// At most `limit` messages that somebody watches and of which more can be told, going on after `after`.
    pub(crate) fn unfinished(&self, after: &mut Option<ContentId>, limit: usize) -> Vec<ContentId> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = |sender: &watch::Sender<DeliveryState>| {
            sender.receiver_count() > 0 && *sender.borrow() < DeliveryState::Read
        };
        let mut ids: Vec<ContentId> =
            inner.by_id.iter().filter(|(_, sender)| open(sender)).map(|(id, _)| *id).collect();
        drop(inner);
        ids.sort_unstable();
        let from = after.map_or(0, |after| ids.partition_point(|id| *id <= after));
        ids.drain(..from);
        ids.truncate(limit);
        *after = ids.last().copied();
        ids
    }

    /// Ends all waiting.
    pub(crate) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).by_id.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> ContentId {
        ContentId::from_bytes([byte; 16])
    }

    fn receipt(watchers: &Watchers, byte: u8) -> Receipt {
        let state = watchers.watch(id(byte), DeliveryState::Queued);
        Receipt::new(id(byte), UserId::new("bob").unwrap(), state)
    }

    #[tokio::test]
    async fn a_receipt_goes_forward_only() {
        let watchers = Watchers::default();
        let receipt = receipt(&watchers, 1);
        watchers.advance(id(1), DeliveryState::Delivered);
        watchers.advance(id(1), DeliveryState::Accepted);
        assert_eq!(receipt.status(), DeliveryState::Delivered);
        receipt.accepted().await.unwrap();
        receipt.delivered().await.unwrap();
    }

    #[tokio::test]
    async fn waiting_ends_with_the_message_or_the_client() {
        let watchers = Watchers::default();
        let (given_up, closed) = (receipt(&watchers, 1), receipt(&watchers, 2));
        watchers.advance(id(1), DeliveryState::Failed);
        watchers.close();
        assert_eq!(given_up.accepted().await.unwrap_err().code(), "DELIVERY_FAILED");
        assert_eq!(closed.accepted().await.unwrap_err().code(), "CLIENT_NOT_READY");
    }

    #[test]
    fn receipts_that_nobody_holds_take_no_memory() {
        let watchers = Watchers::default();
        for round in 0..1_000_u32 {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&round.to_be_bytes());
            drop(watchers.watch(ContentId::from_bytes(bytes), DeliveryState::Queued));
        }
        assert!(watchers.0.lock().unwrap().by_id.len() <= 64);
    }
}
