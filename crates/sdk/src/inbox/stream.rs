//! What the application takes messages from.

use core::pin::Pin;
use core::task::{Context, Poll};
use std::sync::Arc;

use futures::Stream;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::context::TokioContext;
use tokio_util::sync::ReusableBoxFuture;

use super::{Inbox, Message};
use crate::error::Result;

impl Inbox {
    pub(crate) fn stream(self: &Arc<Self>) -> Messages {
        let id = {
            let mut state = self.lock();
            state.next_stream += 1;
            state.next_stream
        };
        Messages {
            id,
            pending: ReusableBoxFuture::new(self.taking()),
            inbox: Arc::clone(self),
            manual: false,
            done: false,
        }
    }

    /// The next message, taken in the client's runtime: a stream may be asked outside of any.
    fn taking(
        self: &Arc<Self>,
    ) -> TokioContext<impl Future<Output = Result<Option<Message>>> + Send + use<>> {
        TokioContext::new(Arc::clone(self).take(), self.runtime.clone())
    }
}

/// Messages in the order of arrival, per conversation in the order of sending.
///
/// All streams of a client take from one inbox: each message goes to one of them, like work to workers. Ends when the
/// client closes.
pub struct Messages {
    id: u64,
    inbox: Arc<Inbox>,
    pending: ReusableBoxFuture<'static, Result<Option<Message>>>,
    manual: bool,
    done: bool,
}

impl Messages {
    /// The next message; `None` after the client closed. Consumes the one before (but see [`manual_ack`](Self::manual_ack)).
    /// Dropping the returned future loses nothing.
    pub async fn next(&mut self) -> Option<Message> {
        futures::StreamExt::next(self).await
    }

    /// Messages of this stream are consumed by [`Message::ack`] and by nothing else. What was not consumed when the
    /// client closes is offered again at the next start.
    #[must_use]
    pub fn manual_ack(mut self) -> Self {
        self.manual = true;
        self
    }

    /// Offers messages of this stream again, in their order, that were not acknowledged and will not be: the next stream
    /// that asks gets them, in this run of the client.
    pub fn give_back(&self, messages: impl IntoIterator<Item = Message, IntoIter: DoubleEndedIterator>) {
        for message in messages.into_iter().rev() {
            self.inbox.put_back(message);
        }
    }

    fn settle(&mut self) {
        let Some(message) = self.inbox.lock().handed.remove(&self.id) else { return };
        if std::thread::panicking() {
            self.inbox.put_back(message);
        } else if let Err(TrySendError::Full(consumed)) = self.inbox.acker.try_send(message.consumed(None)) {
            // The store is behind. There are never more of these than messages were handed out.
            self.inbox.lock().behind.push(consumed);
            self.inbox.fell_behind.notify_one();
        }
    }
}

impl Stream for Messages {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        if self.done {
            return Poll::Ready(None);
        }
        self.settle();
        match self.pending.poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(Some(message))) => {
                let next = self.inbox.taking();
                self.pending.set(next);
                if !self.manual {
                    let id = self.id;
                    self.inbox.lock().handed.insert(id, message.clone());
                }
                Poll::Ready(Some(message))
            }
            Poll::Ready(Ok(None)) => {
                self.done = true;
                Poll::Ready(None)
            }
            Poll::Ready(Err(error)) => {
                tracing::error!(code = error.code(), "the inbox can not be read");
                self.done = true;
                Poll::Ready(None)
            }
        }
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.settle();
    }
}

impl core::fmt::Debug for Messages {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Messages").field("manual_ack", &self.manual).finish_non_exhaustive()
    }
}
