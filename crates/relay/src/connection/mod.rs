//! One WebSocket connection: one task that logs in, reads, writes and keeps time.

mod delivery;
mod login;
mod outbox;
mod pump;
mod requests;
mod send;

use core::time::Duration;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use stvor_crypto::{Random as _, SystemRandom};
use stvor_wire::client::ClientMessage;
use stvor_wire::limits::MAX_DETAIL_BYTES;
use stvor_wire::server::End;
use stvor_wire::{Code, FrameError, Phase, ServerMessage, frame};
use tokio::time::Instant;

pub(crate) use login::NO_LONGER_LISTED;
pub(crate) use outbox::{Conn, TokenRef, Who};

use crate::cursor::Cursor;
use crate::gate::Gate;
use crate::limits::{MISSED_HEARTBEATS, UNANSWERED_SENDS};
use crate::relay::Relay;

type Sink = SplitSink<WebSocket, Message>;
type Stream = SplitStream<WebSocket>;

/// Bytes that are handed to the socket before it is flushed.
const WRITE_CHUNK: usize = 32 * 1024;

/// How long a connection that ends may take to read its last frame.
const GOODBYE: Duration = Duration::from_secs(3);

/// Where a connection comes from.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) remote: IpAddr,
    pub(crate) local: SocketAddr,
    pub(crate) host: Option<String>,
}

/// A new connection.
pub(crate) struct Arrival {
    pub(crate) peer: Peer,
    /// When it has to be logged in.
    pub(crate) deadline: Instant,
    /// Bounds what it sends until then.
    pub(crate) gate: Arc<Gate>,
}

/// An END of a code, with its sentence cut to what the wire allows.
pub(crate) fn end(code: Code, detail: &str) -> End {
    let mut length = detail.len().min(MAX_DETAIL_BYTES);
    while !detail.is_char_boundary(length) {
        length -= 1;
    }
    End { code, detail: detail[..length].to_owned(), retry_after: Duration::ZERO }
}

/// Runs a connection from the upgrade to its end.
pub(crate) async fn run(relay: Arc<Relay>, socket: WebSocket, arrival: Arrival) {
    let Arrival { peer, deadline, gate } = arrival;
    let (mut sink, mut stream) = socket.split();
    let login = login::login(&relay, &mut sink, &mut stream, &peer);
    let login = tokio::time::timeout_at(deadline, login).await;
    let outcome = match login {
        Ok(outcome) => outcome,
        Err(_) => Err(Some(end(Code::HandshakeTimeout, "the log-in took too long"))),
    };
    match outcome {
        Ok(conn) => {
            gate.open();
            relay.metrics.logged_in();
            serve(&relay, &conn, sink, stream).await;
            conn.close();
            relay.hub.leave(&conn);
            relay.metrics.logged_out();
        }
        Err(Some(end)) => {
            relay.metrics.refused_login(end.code);
            let _ = tokio::time::timeout(GOODBYE, goodbye(&mut sink, &mut stream, end)).await;
        }
        Err(None) => {}
    }
}

/// Sends END and a close frame, and waits for the other side's, so that neither is lost in a reset.
async fn goodbye(sink: &mut Sink, stream: &mut Stream, end: End) {
    let close = CloseFrame { code: end.code.close_code(), reason: end.code.as_str().into() };
    let last = frame::encode_server(&ServerMessage::End(end));
    if sink.send(Message::Binary(last)).await.is_ok() && sink.send(Message::Close(Some(close))).await.is_ok()
    {
        while let Some(Ok(_)) = stream.next().await {}
    }
}

/// One binary message; `Err(None)` when the socket is gone.
async fn receive(stream: &mut Stream, phase: Phase) -> Result<ClientMessage, Option<FrameError>> {
    loop {
        match stream.next().await {
            Some(Ok(Message::Binary(bytes))) => return frame::decode_client(bytes, phase).map_err(Some),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Text(_))) => return Err(Some(FrameError::Protobuf)),
            Some(Err(error)) if is_too_large(&error) => {
                let limit = phase.max_frame();
                return Err(Some(FrameError::TooLarge { length: limit + 1, limit }));
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(None),
        }
    }
}

fn is_too_large(error: &axum::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.to_string().contains("too long") || error.to_string().contains("too big") {
            return true;
        }
        source = error.source();
    }
    false
}

/// Serves a connection that is logged in.
async fn serve(relay: &Arc<Relay>, conn: &Arc<Conn>, mut sink: Sink, mut stream: Stream) {
    let heard = AtomicBool::new(false);
    let ended = {
        let write = write(conn, &mut sink);
        let read = read(relay, conn, &mut stream, &heard);
        let beat = heartbeat(relay, conn, &heard);
        tokio::pin!(write, read, beat);
        loop {
            tokio::select! {
                biased;
                written = &mut write => break written,
                reason = &mut read => {
                    let Some(error) = reason else { break Err(()) };
                    conn.end_after_queue(error.wire_code(), &error.to_string());
                    // The writer says goodbye, within its time.
                    break tokio::time::timeout(GOODBYE, &mut write).await.unwrap_or(Err(()));
                }
                () = &mut beat => {}
                () = conn.ended.notified() => {
                    break tokio::time::timeout(GOODBYE, &mut write).await.unwrap_or(Err(()));
                }
            }
        }
    };
    if let Ok(end) = ended {
        relay.metrics.ended(end.code);
        let _ = tokio::time::timeout(GOODBYE, goodbye(&mut sink, &mut stream, end)).await;
    }
}

/// Writes what is queued, many frames a flush, until the connection ends: `Ok` with the last frame, `Err` when the
/// socket is gone.
async fn write(conn: &Conn, sink: &mut Sink) -> Result<End, ()> {
    let mut frames: Vec<Bytes> = Vec::new();
    loop {
        conn.wake.notified().await;
        loop {
            let end = conn.take(WRITE_CHUNK, &mut frames);
            if let Some(end) = end {
                return Ok(end);
            }
            if frames.is_empty() {
                break;
            }
            for frame in frames.drain(..) {
                sink.feed(Message::Binary(frame)).await.map_err(|_| ())?;
            }
            sink.flush().await.map_err(|_| ())?;
        }
        // An idle connection keeps no buffer.
        if frames.capacity() > 64 {
            frames = Vec::new();
        }
    }
}

/// Reads until the socket is gone (`None`) or says something that is no frame.
async fn read(
    relay: &Arc<Relay>,
    conn: &Arc<Conn>,
    stream: &mut Stream,
    heard: &AtomicBool,
) -> Option<FrameError> {
    let mut routes = send::Routes::new(relay);
    loop {
        while conn.unanswered.load(Ordering::Acquire) >= UNANSWERED_SENDS {
            conn.answered.notified().await;
        }
        let message = match receive(stream, Phase::LoggedIn).await {
            Ok(message) => message,
            Err(reason) => return reason,
        };
        heard.store(true, Ordering::Relaxed);
        match message {
            ClientMessage::Send(message) => send::send(relay, conn, &mut routes, message).await,
            ClientMessage::SendMany(message) => send::send_many(relay, conn, &mut routes, message).await,
            ClientMessage::Ack(ack) => pump::acknowledge(relay, conn, &ack),
            ClientMessage::Credit(credit) => {
                conn.deliver(|delivery, _| delivery.credit(credit));
                pump::pump(relay, conn);
            }
            ClientMessage::Hold(hold) => {
                conn.deliver(|delivery, _| delivery.hold(&hold));
                pump::pump(relay, conn);
            }
            ClientMessage::Ping { nonce } => conn.say(&ServerMessage::Pong { nonce }),
            ClientMessage::Pong { .. } => {}
            ClientMessage::UploadKeys(upload) => requests::upload(relay, conn, upload),
            ClientMessage::FetchBundle(fetch) => requests::fetch(relay, conn, fetch),
            ClientMessage::UserStatus { request_id, user } => requests::status(relay, conn, request_id, user),
            ClientMessage::DeleteAccount { request_id } => requests::delete(relay, conn, request_id),
            ClientMessage::Hello(_) | ClientMessage::Auth(_) => {
                conn.end_after_queue(Code::UnexpectedFrame, "the connection is logged in already");
            }
        }
    }
}

/// Pings at jittered intervals, for ever; ends the connection after two silent ones.
async fn heartbeat(relay: &Arc<Relay>, conn: &Arc<Conn>, heard: &AtomicBool) {
    let mut missed = 0;
    let mut next = Instant::now();
    loop {
        next += jittered(Duration::from_millis(relay.config.limits.heartbeat_ms));
        tokio::time::sleep_until(next).await;
        if heard.swap(false, Ordering::Relaxed) {
            missed = 0;
        } else {
            missed += 1;
        }
        // The beat before the first ping proves nothing: the client had nothing to answer.
        if missed > MISSED_HEARTBEATS {
            conn.end(Code::HeartbeatTimeout, "nothing was heard for two heartbeats");
            return;
        }
        let resume_cursor = cursor_of(relay, conn);
        conn.say(&ServerMessage::Ping { nonce: conn.id, resume_cursor });
    }
}

/// A fresh cursor, for connections that receive.
pub(crate) fn cursor_of(relay: &Relay, conn: &Conn) -> Bytes {
    let position = conn.deliver(|delivery, _| (delivery.epoch, delivery.offered()));
    let Some((epoch, seq)) = position else { return Bytes::new() };
    let cursor = Cursor { device: conn.who.device, epoch, seq, made_at: relay.now() };
    relay.cursors.seal(cursor).into()
}

/// The time, 10 % shorter to 10 % longer.
fn jittered(mean: Duration) -> Duration {
    let mut byte = [0; 2];
    if SystemRandom::new().fill(&mut byte).is_err() {
        return mean;
    }
    let share = u32::from(u16::from_be_bytes(byte)) % 201;
    mean * (900 + share) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_drawn_anew_within_ten_percent() {
        let mean = Duration::from_secs(10);
        let drawn: std::collections::HashSet<Duration> = (0..200).map(|_| jittered(mean)).collect();
        assert!(drawn.len() > 20);
        assert!(drawn.iter().all(|span| (9_000..=11_000).contains(&span.as_millis())));
    }

    #[test]
    fn a_long_sentence_is_cut_at_a_character() {
        let long = "é".repeat(400);
        assert_eq!(end(Code::Internal, &long).detail.len(), MAX_DETAIL_BYTES);
    }
}
