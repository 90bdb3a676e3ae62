//! From the mailbox to the socket, and ACKs back.

use std::sync::Arc;

use bytes::Bytes;
use stvor_base::Address;
use stvor_wire::client::Ack;
use stvor_wire::server::{Deliver, Nack, Subject};
use stvor_wire::{Code, ServerMessage, frame};

use super::Conn;
use crate::relay::Relay;
use crate::storage::{Put, Row};

/// A message's DELIVER frame.
pub(super) fn deliver_frame(put: &Put, epoch: u64, seq: u64, ephemeral: bool) -> Bytes {
    frame::encode_server(&ServerMessage::Deliver(Deliver {
        from: Address::clone(&put.from),
        mailbox_epoch: epoch,
        seq,
        msg_id: put.msg_id,
        blob: put.blob.clone(),
        received_at: put.received_at,
        ephemeral,
    }))
}

fn row_frame(row: Row, epoch: u64) -> Bytes {
    frame::encode_server(&ServerMessage::Deliver(Deliver {
        from: row.from,
        mailbox_epoch: epoch,
        seq: row.seq,
        msg_id: row.msg_id,
        blob: row.blob,
        received_at: row.received_at,
        ephemeral: false,
    }))
}

/// Reads the mailbox in a task of its own, as long as something waits and the window has room.
pub(super) fn pump(relay: &Arc<Relay>, conn: &Arc<Conn>) {
    let Some(Some(first)) = conn.deliver(|delivery, _| delivery.start_page()) else { return };
    let (relay, conn) = (relay.clone(), conn.clone());
    let runtime = relay.runtime.clone();
    runtime.spawn(async move {
        let mut page = Some(first);
        while let Some((after, limit, tail)) = page {
            while !conn.is_drained() {
                tokio::select! {
                    () = conn.drained.notified() => {}
                    () = conn.gone.cancelled() => return,
                }
            }
            let held = conn.deliver(|delivery, _| delivery.held()).unwrap_or_default();
            let page_read = match relay.store.read(conn.who.device, after, (limit, &held)).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(error = %error, "a mailbox could not be read");
                    conn.deliver(|delivery, _| delivery.abandon_page());
                    conn.end(
                        Code::StoreUnavailable,
                        "the relay can not read the mailbox just now: reconnect",
                    );
                    return;
                }
            };
            let next = conn.deliver(|delivery, queue| {
                let sent = delivery.end_page(page_read, tail);
                relay.metrics.delivered(sent.len());
                for row in sent {
                    queue.frames.push(row_frame(row, delivery.epoch));
                }
                delivery.start_page()
            });
            page = next.flatten();
        }
    });
}

/// Deletes what the device has stored.
pub(super) fn acknowledge(relay: &Arc<Relay>, conn: &Arc<Conn>, ack: &Ack) {
    let Some(acked) = conn.deliver(|delivery, _| delivery.acknowledge(ack)) else { return };
    let mut rows = acked.known;
    let strays = u32::try_from(acked.strays.len()).unwrap_or(u32::MAX);
    if strays > 0 && relay.limiter.stray_acks.take(&conn.who.device, strays).is_ok() {
        rows.extend(acked.strays);
    }
    if !rows.is_empty() {
        let answer = conn.clone();
        relay.store.ack(
            conn.who.device,
            rows,
            Box::new(move |result| {
                // A failed delete is no harm: the message is offered again.
                for msg_id in result.unwrap_or_default() {
                    answer.say(&ServerMessage::Nack(Nack {
                        subject: Subject::Message(msg_id),
                        code: Code::AckMismatch,
                        detail: "another message has this place in the mailbox: nothing was deleted"
                            .to_owned(),
                        retry_after: core::time::Duration::ZERO,
                        expected_lane: 0,
                    }));
                }
            }),
        );
    }
    pump(relay, conn);
}
