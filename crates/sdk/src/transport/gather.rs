//! One frame for many mailboxes.

use stvor_wire::client::{ClientMessage, SendMany};
use tokio::sync::mpsc;

/// Sends of one blob that stand one behind the other in the queue become one frame for all their mailboxes: so a message
/// to a group crosses the wire once for 64 members. Gives what stands behind them, if it was taken out to look at it.
pub(super) fn gather(
    first: ClientMessage,
    queue: &mut mpsc::Receiver<ClientMessage>,
) -> (ClientMessage, Option<ClientMessage>) {
    let ClientMessage::Send(first) = first else { return (first, None) };
    let mut recipients = vec![first.recipient.clone()];
    let mut counter = first.counter;
    let mut following = None;
    while recipients.len() < stvor_wire::limits::MAX_RECIPIENTS {
        match queue.try_recv() {
            Ok(ClientMessage::Send(next))
                if next.blob == first.blob
                    && next.ttl == first.ttl
                    && next.recipient.lane.is_some() == first.recipient.lane.is_some() =>
            {
                counter = counter.max(next.counter);
                recipients.push(next.recipient);
            }
            Ok(other) => {
                following = Some(other);
                break;
            }
            Err(_) => break,
        }
    }
    if recipients.len() == 1 {
        return (ClientMessage::Send(first), following);
    }
    let stvor_wire::client::Send { blob, ttl, .. } = first;
    (ClientMessage::SendMany(SendMany { recipients, blob, counter, ttl }), following)
}

#[cfg(test)]
mod tests {
    use stvor_wire::server::{Limits, Registration, Resumed};

    use super::*;

    fn connected() -> (Arc<Session>, Ends) {
        let bounds = Limits {
            max_frame_bytes: 0,
            max_blob_bytes: 0,
            window_messages: 0,
            window_bytes: 0,
            retention: Duration::ZERO,
            dedup: Duration::ZERO,
            max_recipients: 0,
        };
        let ready = Ready {
            mailbox_epoch: 1,
            resumed: Resumed::Full,
            registration: Registration::Known,
            highest_counter: 0,
            keys: KeyCounts::default(),
            limits: bounds,
            resume_cursor: bytes::Bytes::new(),
            heartbeat: Duration::from_secs(1),
        };
        Session::new(1, ready, UserId::new("alice").unwrap())
    }

    #[tokio::test]
    async fn whoever_waits_for_the_relay_learns_that_the_connection_was_dropped() {
        let user = UserId::new("alice").unwrap();
        let (session, ends) = connected();
        session.unanswered.acquire_many(limits::MAX_UNANSWERED.try_into().unwrap()).await.unwrap().forget();
        let sending = {
            let session = Arc::clone(&session);
            tokio::spawn(async move { session.room().await.map(|_| ()) })
        };
        let asking = tokio::spawn(async move { session.user_state(&user, Duration::from_secs(3_600)).await });
        tokio::task::yield_now().await;
        drop(ends);
        let patience = Duration::from_secs(30);
        let sent = tokio::time::timeout(patience, sending).await.expect("a sender is told").unwrap();
        assert_eq!(sent.unwrap_err().code(), "RELAY_UNAVAILABLE");
        let answer = tokio::time::timeout(patience, asking).await.expect("an asker is told").unwrap();
        assert_eq!(answer.unwrap_err().code(), "RELAY_UNAVAILABLE");
    }

    #[tokio::test]
    async fn one_request_more_than_may_wait_is_refused_until_one_is_given_up() {
        let (session, _ends) = connected();
        let user = UserId::new("bob").unwrap();
        let ask = || Box::pin(session.user_state(&user, Duration::from_secs(3_600)));
        let mut waiting: Vec<_> = (0..limits::MAX_REQUESTS).map(|_| ask()).collect();
        for request in &mut waiting {
            assert!(futures::poll!(request.as_mut()).is_pending());
        }
        assert_eq!(ask().await.unwrap_err().code(), "CLIENT_NOT_READY");
        waiting.pop();
        assert!(futures::poll!(ask().as_mut()).is_pending(), "a request that is dropped makes room");
    }
}

#[cfg(test)]
mod tests {
    use core::num::NonZeroU64;
    use std::time::Duration;

    use stvor_base::{Address, DeviceId, MessageId, UserId};
    use stvor_wire::client::{Lane, Recipient, Send};

    use super::*;

    fn message(to: &str, number: u64, blob: &'static [u8]) -> ClientMessage {
        let to = Address::new(UserId::new(to).unwrap(), DeviceId::FIRST);
        let lane = NonZeroU64::new(number).map(|number| Lane { epoch: 1, number });
        let recipient = Recipient { to, msg_id: MessageId::from_bytes([7; 16]), lane };
        ClientMessage::Send(Send { recipient, blob: blob.into(), counter: number, ttl: Duration::ZERO })
    }

    #[test]
    fn sends_of_one_blob_share_a_frame_and_keep_their_order() {
        let (queue, mut taken) = mpsc::channel(256);
        for number in 0..100 {
            queue.try_send(message(&format!("u{number}"), 1 + number, b"same")).unwrap();
        }
        queue.try_send(message("u0", 101, b"other")).unwrap();
        queue
            .try_send(ClientMessage::UserStatus {
                request_id: NonZeroU64::MIN,
                user: UserId::new("x").unwrap(),
            })
            .unwrap();
        let mut next = taken.try_recv().ok();
        let mut frames = Vec::new();
        while let Some(message) = next.take() {
            let (frame, following) = gather(message, &mut taken);
            frames.push(frame);
            next = following.or_else(|| taken.try_recv().ok());
        }
        let [ClientMessage::SendMany(first), ClientMessage::SendMany(second), last, status] =
            frames.as_slice()
        else {
            panic!("{frames:?}")
        };
        assert_eq!((first.recipients.len(), second.recipients.len()), (64, 36));
        assert_eq!((first.counter, second.counter), (64, 100), "the highest of them counts");
        let order: Vec<u64> = first
            .recipients
            .iter()
            .chain(&second.recipients)
            .map(|to| to.lane.unwrap().number.get())
            .collect();
        assert_eq!(order, (1..=100).collect::<Vec<_>>());
        assert_eq!(*last, message("u0", 101, b"other"));
        assert!(matches!(status, ClientMessage::UserStatus { .. }));
    }
}
