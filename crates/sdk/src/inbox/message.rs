//! A message that arrived, and the word that the application is done with it.

use stvor_base::{ContentId, DeviceId, GroupId, Timestamp, UserId};
use stvor_store::RowVersion;
use tokio::sync::{mpsc, oneshot};

use crate::content::Content;
use crate::error::{Error, Result};
use crate::rows::PointerRow;

/// A message that arrived.
///
/// It is *consumed* when the stream that handed it out is asked for the next one or is dropped, or when
/// [`ack`](Self::ack) is called; with [`Messages::manual_ack`](crate::Messages::manual_ack) only by `ack`. Until then it is offered again, with the
/// same id, after a restart.
#[derive(Clone)]
#[non_exhaustive]
pub struct Message {
    /// The same at sender and receiver, and whenever the message is offered again.
    pub id: ContentId,
    /// The group that it is of; `None` for a message to us alone.
    pub group: Option<GroupId>,
    /// Who sent it: proven by the session (or by the sender key that came over it), not by the relay.
    pub from: UserId,
    /// Which of the sender's devices.
    pub device: DeviceId,
    /// What it says.
    pub content: Content,
    /// When it was sent, by the sender's clock.
    pub sent_at: Timestamp,
    /// When it was stored here, by our clock.
    pub received_at: Timestamp,
    /// Whether the sender's identity was verified when it arrived.
    pub verified: bool,
    pub(super) seq: u64,
    /// The write that took it, of a shared inbox: this copy is good as long as the claim is.
    pub(super) claim: Option<RowVersion>,
    pub(super) keep: u64,
    pub(super) acker: mpsc::Sender<Consumed>,
}

impl Message {
    /// The text, if it is text.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        self.content.as_text()
    }

    /// Says that the application is done with the message; when this returns, it will not be offered again. Saying it
    /// twice is no error.
    ///
    /// # Errors
    /// `CLIENT_NOT_READY` after the client closed, or what the store met: the message is then offered again.
    pub async fn ack(&self) -> Result<()> {
        let (done, stored) = oneshot::channel();
        let closed =
            || Error::not_ready("it is closed, so the message was not acknowledged and will come again");
        self.acker.send(self.consumed(Some(done))).await.map_err(|_| closed())?;
        stored.await.map_err(|_| closed())?
    }

    pub(super) fn consumed(&self, done: Option<oneshot::Sender<Result<()>>>) -> Consumed {
        Consumed {
            seq: self.seq,
            claim: self.claim,
            pointer: self.pointer(),
            keep: self.keep,
            received_at: self.received_at,
            done,
        }
    }

    fn pointer(&self) -> PointerRow {
        PointerRow {
            peer: stvor_base::Address::new(self.from.clone(), self.device),
            place: crate::rows::Place { order: self.received_at.as_millis(), id: self.id },
            group: self.group,
        }
    }
}

impl core::fmt::Debug for Message {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.id)
            .field("content", &self.content)
            .finish_non_exhaustive()
    }
}

/// A message that the application is done with.
pub(crate) struct Consumed {
    pub(super) seq: u64,
    pub(super) claim: Option<RowVersion>,
    pub(super) pointer: PointerRow,
    pub(super) keep: u64,
    pub(super) received_at: Timestamp,
    pub(super) done: Option<oneshot::Sender<Result<()>>>,
}
