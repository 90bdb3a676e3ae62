//! The minimal relay of the earlier documentation: forty lines that hand JSON from one socket to another. It keeps nothing, so what
//! our own relay promises is made up for, end to end: the receiver's device acknowledges by a message of the session, and the
//! conversation sends what was not acknowledged again when the receiver announces itself, or after a while. Nothing that stands in
//! JSON acknowledges anything: whoever is connected could write it.
//!
//! To everything above, this is a [`Session`] like any other: frames are answered here in the relay's place.
//!
//! ```text
//! {"type":"announce","user":...,"pub":...}                              our name, and the prekey bundle without one-time keys
//! {"type":"message","to":...,"from":...,"stvor":1,"device":1,"id":...,"blob":...}
//! ```

mod announced;
mod heard;

use core::num::NonZeroU64;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::json;
use stvor_base::{Address, DeviceId, MessageId, Timestamp, UserId};
use stvor_wire::Code;
use stvor_wire::client::{ClientMessage, FetchBundle, Send, UploadKeys};
use stvor_wire::keys::KeyCounts;
use stvor_wire::server::{
    Bundles, Deliver, Limits, Nack, Ready, Registration, Resumed, ServerMessage, Subject, UserState,
};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use self::announced::Announced;
use self::heard::Heard;
use super::dial::Socket;
use super::login::LoginKeys;
use super::refusal::Refusal;
use super::session::{Ends, Session, Upcalls};
use crate::error::Error;
use crate::limits;

/// What a client offers first where this relay may be spoken to: a `ws` server takes the first offer, ours takes `stvor.v1`.
pub(crate) const SUBPROTOCOL: &str = "stvor.minimal";

/// How long the relay has for the echo of our announce, by which it is known.
const ECHO: Duration = Duration::from_secs(1);

/// Quiet for this long means that what the relay tells a newcomer is in.
const QUIET: Duration = Duration::from_millis(120);

/// What was heard before the echo of our announce: names of others.
#[derive(Default)]
pub(crate) struct Greeting(Vec<Heard>);

fn unlike() -> Refusal {
    Refusal::retry(Error::unavailable(
        "the server opens a WebSocket but is no relay: it neither speaks stvor.v1 nor repeats announcements",
    ))
}

fn broken(error: impl core::fmt::Display) -> Refusal {
    Refusal::retry(Error::unavailable(format!("the connection to the relay broke: {error}")))
}

/// Announces `user` and waits for the echo.
pub(crate) async fn greet(socket: &mut Socket, user: &UserId, nonce: u64) -> Result<Greeting, Refusal> {
    let hello = format!("stvor:hello:{nonce:016x}");
    let announce = json!({ "type": "announce", "user": user.as_str(), "pub": hello });
    socket.send(Message::Text(announce.to_string().into())).await.map_err(broken)?;
    let echo = async {
        let mut greeting = Greeting::default();
        loop {
            let Some(message) = socket.next().await else {
                return Err(broken("it was closed during the first announcement"));
            };
            let Message::Text(text) = message.map_err(broken)? else { continue };
            let Some(heard) = Heard::read(&text) else { continue };
            if heard.announces(user, &hello) {
                return Ok(greeting);
            }
            if greeting.0.len() < limits::MAX_ANNOUNCED {
                greeting.0.push(heard);
            }
        }
    };
    tokio::time::timeout(ECHO, echo).await.unwrap_or_else(|_| Err(unlike()))
}

/// What our own relay would say at the end of a log-in: it has all one-time prekeys that anybody could want, and none of
/// the others, so that these are uploaded, that is announced.
pub(crate) fn ready() -> Ready {
    let bytes = u32::try_from(stvor_wire::limits::MAX_FRAME_AFTER_AUTH).unwrap_or(u32::MAX);
    Ready {
        mailbox_epoch: 1,
        resumed: Resumed::Full,
        registration: Registration::Known,
        highest_counter: 0,
        counter_mac: None,
        lost_seq: 0,
        keys: counts(None),
        limits: Limits {
            max_frame_bytes: bytes,
            max_blob_bytes: bytes,
            window_messages: 0,
            window_bytes: 0,
            retention: Duration::ZERO,
            dedup: Duration::ZERO,
            max_recipients: 0,
        },
        resume_cursor: bytes::Bytes::new(),
        heartbeat: limits::HEARTBEAT,
    }
}

fn counts(announced: Option<&Announced>) -> KeyCounts {
    KeyCounts {
        one_time: u32::MAX,
        kem_one_time: u32::MAX,
        signed_prekey_id: announced.map(|announced| announced.signed.id),
        kem_last_resort_id: announced.map(|announced| announced.kem.id),
    }
}

/// A question for somebody's bundle that has no answer yet.
struct Asked {
    id: NonZeroU64,
    user: UserId,
    until: Instant,
}

/// The relay's part of a connection.
struct Minimal<'a> {
    session: &'a Arc<Session>,
    upcalls: &'a dyn Upcalls,
    keys: &'a dyn LoginKeys,
    me: Address,
    socket: Socket,
    ours: Option<Announced>,
    known: HashMap<UserId, Announced>,
    asked: Vec<Asked>,
    /// Counts deliveries.
    seq: u64,
    last_heard: Instant,
}

/// Runs a connection until it ends; says why it ended.
pub(crate) async fn run(
    (socket, greeting): (Socket, Greeting),
    session: &Arc<Session>,
    mut ends: Ends,
    (upcalls, keys, me): (&dyn Upcalls, &dyn LoginKeys, Address),
) -> Refusal {
    let mut relay = Minimal {
        session,
        upcalls,
        keys,
        me,
        socket,
        ours: None,
        known: HashMap::new(),
        asked: Vec::new(),
        seq: 0,
        last_heard: Instant::now(),
    };
    for heard in greeting.0 {
        relay.hear(heard);
    }
    let mut beat = tokio::time::interval(limits::HEARTBEAT);
    beat.reset();
    let mut quiet = Some(Instant::now() + QUIET);
    loop {
        let timer = relay.asked.iter().map(|asked| asked.until).chain(quiet).min();
        let done = tokio::select! {
            frame = ends.outgoing.recv() => match frame {
                Some(frame) => relay.answer(frame).await,
                None => return Refusal::retry(Error::not_ready("it was closed")),
            },
            // A relay that keeps nothing has nothing to forget.
            Some(_) = ends.acks.recv() => Ok(()),
            message = relay.socket.next() => match message {
                Some(Ok(message)) => relay.take(message),
                Some(Err(error)) => return broken(error),
                None => return broken("it was closed"),
            },
            () = tokio::time::sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {
                relay.give_up();
                if quiet.is_some_and(|at| at <= Instant::now()) {
                    quiet = None;
                    relay.upcalls.caught_up();
                }
                Ok(())
            }
            _ = beat.tick() => relay.beat().await,
        };
        if let Err(refusal) = done {
            return refusal;
        }
    }
}

impl Minimal<'_> {
    async fn say(&mut self, text: String) -> Result<(), Refusal> {
        self.socket.send(Message::Text(text.into())).await.map_err(broken)
    }

    async fn beat(&mut self) -> Result<(), Refusal> {
        if self.last_heard.elapsed() > limits::HEARTBEAT.mul_f64(2.3) {
            return Err(broken("nothing was heard for two heartbeats"));
        }
        self.socket.send(Message::Ping(bytes::Bytes::new())).await.map_err(broken)
    }

    /// Does what the relay would do with a frame of ours.
    async fn answer(&mut self, frame: ClientMessage) -> Result<(), Refusal> {
        match frame {
            ClientMessage::Send(send) => self.send(send).await,
            ClientMessage::UploadKeys(keys) => self.announce(keys).await,
            ClientMessage::FetchBundle(fetch) => {
                self.fetch(fetch);
                Ok(())
            }
            ClientMessage::UserStatus { request_id, user } => {
                let known = self.known.contains_key(&user);
                let state = UserState { request_id, user, registered: known, online: known, has_keys: known };
                self.session.answer(request_id, Ok(ServerMessage::UserState(state)));
                Ok(())
            }
            ClientMessage::DeleteAccount { request_id } => {
                // It forgets a name when it restarts; until then nobody can start a session with it.
                let announce = json!({ "type": "announce", "user": self.me.user.as_str(), "pub": "" });
                self.say(announce.to_string()).await?;
                self.session.answer(request_id, Ok(ServerMessage::Done { request_id }));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn announce(&mut self, keys: UploadKeys) -> Result<(), Refusal> {
        let request_id = keys.request_id;
        let before = self.ours.take();
        let signed = keys.signed_prekey.or_else(|| before.as_ref().map(|one| one.signed.clone()));
        let kem = keys.kem_last_resort.or_else(|| before.map(|one| one.kem));
        if let (Some(signed), Some(kem)) = (signed, kem) {
            let (list, list_signature) = self.keys.device_list();
            let ours = Announced { address: self.me.clone(), list, list_signature, signed, kem };
            let announce = json!({ "type": "announce", "user": self.me.user.as_str(), "pub": ours.encode() });
            self.ours = Some(ours);
            self.say(announce.to_string()).await?;
        }
        let keys = counts(self.ours.as_ref());
        self.session.answer(request_id, Ok(ServerMessage::KeysUploaded { request_id, keys }));
        Ok(())
    }

    async fn send(&mut self, send: Send) -> Result<(), Refusal> {
        let (id, to) = (send.recipient.msg_id, send.recipient.to.user);
        let message = json!({
            "type": "message", "to": to.as_str(), "from": self.me.user.as_str(), "stvor": 1,
            "device": self.me.device.get(), "id": id.to_string(), "blob": announced::text_of(&send.blob),
        });
        // Nobody answers here: what is written makes room for more.
        self.session.unanswered.add_permits(1);
        self.say(message.to_string()).await
    }

    fn fetch(&mut self, fetch: FetchBundle) {
        let asked = Asked { id: fetch.request_id, user: fetch.user, until: Instant::now() + fetch.wait };
        if !self.tell(&asked) {
            self.asked.push(asked);
        }
    }

    /// Answers a question if its answer is known.
    fn tell(&self, asked: &Asked) -> bool {
        let Some(known) = self.known.get(&asked.user) else { return false };
        let bundles = Bundles {
            request_id: asked.id,
            user: asked.user.clone(),
            device_list: known.list.clone().into(),
            device_list_signature: known.list_signature,
            bundles: vec![known.bundle()],
            rotations: bytes::Bytes::new(),
        };
        self.session.answer(asked.id, Ok(ServerMessage::Bundles(bundles)));
        true
    }

    /// Questions whose time is over.
    fn give_up(&mut self) {
        let now = Instant::now();
        for asked in self.asked.extract_if(.., |asked| asked.until <= now) {
            let nack = Nack {
                subject: Subject::Request(asked.id),
                code: Code::RecipientNotFound,
                detail: String::new(),
                retry_after: Duration::ZERO,
                expected_lane: 0,
            };
            self.session.answer(asked.id, Err(nack));
        }
    }

    fn take(&mut self, message: Message) -> Result<(), Refusal> {
        self.last_heard = Instant::now();
        match message {
            Message::Text(text) => {
                if let Some(heard) = Heard::read(&text) {
                    self.hear(heard);
                }
                Ok(())
            }
            Message::Close(_) => Err(broken("the relay closed it")),
            _ => Ok(()),
        }
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Announce { user, public } => self.met(user, &public),
            Heard::Message { from, id, blob } => self.deliver(from, id, blob),
        }
    }

    /// Somebody is there: who waits for them learns of it, and what they have not acknowledged goes again.
    fn met(&mut self, user: UserId, public: &str) {
        if user == self.me.user {
            return;
        }
        let Some(announced) = Announced::decode(public).filter(|announced| announced.address.user == user)
        else {
            return;
        };
        let wanted = self.asked.iter().any(|asked| asked.user == user);
        if self.known.len() >= limits::MAX_ANNOUNCED && !self.known.contains_key(&user) {
            if !wanted {
                return;
            }
            // Whom somebody here waits for comes before whom nobody asked about.
            let gone = self.known.keys().next().cloned();
            gone.and_then(|gone| self.known.remove(&gone));
        }
        let address = announced.address.clone();
        self.known.insert(user.clone(), announced);
        let waiting: Vec<Asked> = self.asked.extract_if(.., |asked| asked.user == user).collect();
        for asked in &waiting {
            self.tell(asked);
        }
        self.upcalls.came(&address);
    }

    fn deliver(&mut self, from: Address, msg_id: MessageId, blob: Vec<u8>) {
        self.seq += 1;
        self.upcalls.deliver(Deliver {
            from,
            mailbox_epoch: self.session.ready.mailbox_epoch,
            seq: self.seq,
            msg_id,
            blob: blob.into(),
            received_at: Timestamp::from_millis(0),
            ephemeral: false,
        });
    }
}

/// The only device that a user can have at this relay.
fn device(number: u32) -> Option<DeviceId> {
    DeviceId::new(number).ok()
}
