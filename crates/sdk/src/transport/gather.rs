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
    let mut counter = (first.counter, first.counter_mac);
    let mut following = None;
    while recipients.len() < stvor_wire::limits::MAX_RECIPIENTS {
        match queue.try_recv() {
            Ok(ClientMessage::Send(next))
                if next.blob == first.blob
                    && next.ttl == first.ttl
                    && next.recipient.lane.is_some() == first.recipient.lane.is_some() =>
            {
                // With its own proof.
                counter = counter.max((next.counter, next.counter_mac));
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
    let (counter, counter_mac) = counter;
    (ClientMessage::SendMany(SendMany { recipients, blob, counter, counter_mac, ttl }), following)
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
        let counter_mac = u8::try_from(number).ok().map(|number| [number; 32]);
        let blob = blob.into();
        ClientMessage::Send(Send { recipient, blob, counter: number, counter_mac, ttl: Duration::ZERO })
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
        assert_eq!(
            (first.counter_mac, second.counter_mac),
            (Some([64; 32]), Some([100; 32])),
            "with its proof"
        );
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
