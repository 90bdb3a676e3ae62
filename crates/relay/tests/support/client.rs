//! A raw client: every frame is the test's own.

use core::num::NonZeroU64;
use core::time::Duration;
use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use stvor_base::{Address, DeviceId, MessageId, UserId};
use stvor_wire::client::{
    Ack, AckOne, Auth, ClientMessage, Credential, FetchBundle, Hello, Lane, Mode, Recipient, Send, UploadKeys,
};
use stvor_wire::login::{Transcript, login_label};
use stvor_wire::server::{Acceptance, Bundles, Challenge, Deliver, End, Nack, Ready, Subject, UserState};
use stvor_wire::{Code, PROTOCOL_VERSION, ServerMessage};
use tokio_tungstenite::tungstenite::Message;

use super::raw::{Heard, Raw};
use super::server::Place;
use super::user::User;
use super::{SOON, TOKEN, kem_one_time, kem_prekey, new_id, one_time, random, signed_prekey, soon};

/// A HELLO.
pub(crate) fn hello(credential: Credential, address: Address) -> ClientMessage {
    ClientMessage::Hello(Hello {
        protocol_version: PROTOCOL_VERSION,
        credential,
        address,
        capabilities: vec![],
    })
}

/// A log-in in the making: correct unless a test changes it.
#[derive(Clone)]
pub(crate) struct Login<'a> {
    pub(crate) place: Place,
    pub(crate) user: &'a User,
    pub(crate) device: DeviceId,
    pub(crate) credential: Credential,
    pub(crate) origin: String,
    pub(crate) mode: Mode,
    pub(crate) cursor: Bytes,
    pub(crate) register: bool,
    pub(crate) replace: bool,
    pub(crate) rotations: Bytes,
    pub(crate) capabilities: Vec<String>,
    pub(crate) store: Option<[u8; stvor_wire::limits::STORE_MARK_BYTES]>,
}

impl<'a> Login<'a> {
    pub(crate) fn new(place: &Place, user: &'a User) -> Self {
        Self {
            place: place.clone(),
            user,
            device: DeviceId::FIRST,
            credential: Credential::AppToken(TOKEN.to_owned()),
            origin: place.url.origin(),
            mode: Mode::Receive,
            cursor: Bytes::new(),
            register: true,
            replace: false,
            rotations: user.rotations.as_ref().map(|chain| chain.encode().into()).unwrap_or_default(),
            capabilities: Vec::new(),
            store: None,
        }
    }

    /// With another app token.
    pub(crate) fn token(self, token: &str) -> Self {
        Self { credential: Credential::AppToken(token.to_owned()), ..self }
    }

    /// With another credential.
    pub(crate) fn credential(self, credential: Credential) -> Self {
        Self { credential, ..self }
    }

    /// As another device of the user.
    pub(crate) fn device(self, id: u32) -> Self {
        Self { device: DeviceId::new(id).unwrap(), ..self }
    }

    /// To send only.
    pub(crate) fn send_only(self) -> Self {
        Self { mode: Mode::SendOnly, ..self }
    }

    /// With a resume cursor.
    pub(crate) fn cursor(self, cursor: Bytes) -> Self {
        Self { cursor, ..self }
    }

    /// Without registering.
    pub(crate) fn known(self) -> Self {
        Self { register: false, ..self }
    }

    /// Taking the name over.
    pub(crate) fn replacing(self) -> Self {
        Self { replace: true, ..self }
    }

    /// With keys that are in a certain store.
    pub(crate) fn store(self, mark: u8) -> Self {
        Self { store: Some([mark; stvor_wire::limits::STORE_MARK_BYTES]), ..self }
    }

    /// Signing another origin.
    pub(crate) fn origin(self, origin: &str) -> Self {
        Self { origin: origin.to_owned(), ..self }
    }

    /// Who logs in.
    pub(crate) fn address(&self) -> Address {
        Address::new(self.user.list.user.clone(), self.device)
    }

    /// The right answer to a challenge.
    pub(crate) fn answer(&self, challenge: &Challenge) -> Auth {
        let transcript = Transcript {
            app: &challenge.app,
            origin: &self.origin,
            nonce: &challenge.nonce,
            address: &self.address(),
            time: challenge.server_time,
            server_version: &challenge.server_version,
        };
        let key = self.user.device_key(self.device);
        Auth {
            device_list: self.user.list_bytes.clone(),
            device_list_signature: self.user.list_signature,
            origin: self.origin.clone(),
            time: challenge.server_time,
            signature: key.sign(login_label(self.user.list.suite()), &transcript.encode()).unwrap(),
            mode: self.mode,
            resume_cursor: self.cursor.clone(),
            register: self.register,
            replace_identity: self.replace,
            store_mark: self.store,
            rotations: self.rotations.clone(),
        }
    }

    /// Logs in on an open socket; `Err` with the relay's END.
    pub(crate) async fn on(&self, mut raw: Raw) -> Result<Client, End> {
        let mut hello = hello(self.credential.clone(), self.address());
        if let ClientMessage::Hello(hello) = &mut hello {
            hello.capabilities.clone_from(&self.capabilities);
        }
        raw.say(&hello).await;
        let challenge = match raw.message().await {
            ServerMessage::Challenge(challenge) => challenge,
            ServerMessage::End(end) => return Err(end),
            other => panic!("no challenge: {other:?}"),
        };
        let auth = self.answer(&challenge);
        self.finish(raw, auth).await
    }

    /// Says an AUTH on a challenged socket.
    pub(crate) async fn finish(&self, mut raw: Raw, auth: Auth) -> Result<Client, End> {
        raw.say(&ClientMessage::Auth(auth)).await;
        match raw.message().await {
            ServerMessage::Ready(ready) => Ok(Client::new(raw, self.address(), ready)),
            ServerMessage::End(end) => {
                match raw.hear().await {
                    Heard::Closed(code) => assert_eq!(code, Some(end.code.close_code())),
                    Heard::Message(message) => panic!("after END: {message:?}"),
                }
                Err(end)
            }
            other => panic!("no READY: {other:?}"),
        }
    }

    /// Logs in; `Err` with the relay's END.
    pub(crate) async fn attempt(&self) -> Result<Client, End> {
        self.on(Raw::open(&self.place).await).await
    }

    /// Logs in.
    pub(crate) async fn open(&self) -> Client {
        match self.attempt().await {
            Ok(client) => client,
            Err(end) => panic!("{} was not let in: {end:?}", self.user.name()),
        }
    }

    /// Tries to log in, and is refused.
    pub(crate) async fn refused(&self) -> End {
        match self.attempt().await {
            Ok(_) => panic!("{} was let in", self.user.name()),
            Err(end) => end,
        }
    }
}

/// A connection that is logged in.
pub(crate) struct Client {
    pub(crate) raw: Raw,
    pub(crate) address: Address,
    pub(crate) ready: Ready,
    /// Whether [`Client::next`] answers the relay's pings.
    pub(crate) polite: bool,
    /// Frames that came while others were awaited.
    early: VecDeque<ServerMessage>,
    lanes: HashMap<Address, (u64, u64)>,
    counter: u64,
    request: u64,
}

impl Client {
    fn new(raw: Raw, address: Address, ready: Ready) -> Self {
        let counter = ready.highest_counter;
        let (early, lanes) = (VecDeque::new(), HashMap::new());
        Self { raw, address, ready, polite: true, early, lanes, counter, request: 0 }
    }

    /// Says a frame.
    pub(crate) async fn say(&mut self, message: &ClientMessage) -> bool {
        self.raw.say(message).await
    }

    async fn next(&mut self) -> ServerMessage {
        loop {
            match self.raw.message().await {
                ServerMessage::Ping { nonce, .. } if self.polite => {
                    self.say(&ClientMessage::Pong { nonce }).await;
                }
                other => return other,
            }
        }
    }

    /// The first frame that `wanted` recognises; others are kept for later. END is an error unless it is wanted.
    pub(crate) async fn expect<T>(&mut self, what: &str, wanted: impl Fn(&ServerMessage) -> Option<T>) -> T {
        soon(what, async {
            if let Some((index, found)) =
                self.early.iter().enumerate().find_map(|(index, message)| Some((index, wanted(message)?)))
            {
                self.early.remove(index);
                return found;
            }
            loop {
                let message = self.next().await;
                if let Some(found) = wanted(&message) {
                    return found;
                }
                assert!(!matches!(message, ServerMessage::End(_)), "{what}: {message:?}");
                self.early.push_back(message);
            }
        })
        .await
    }

    /// The next message for this device.
    pub(crate) async fn deliver(&mut self) -> Deliver {
        self.expect("DELIVER", |message| match message {
            ServerMessage::Deliver(deliver) => Some(deliver.clone()),
            _ => None,
        })
        .await
    }

    /// The next `count` messages.
    pub(crate) async fn deliver_many(&mut self, count: usize) -> Vec<Deliver> {
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            all.push(self.deliver().await);
        }
        all
    }

    /// The answer to a message.
    pub(crate) async fn answer(&mut self, id: MessageId) -> Result<Acceptance, Nack> {
        self.expect("ACCEPTED or NACK", |message| match message {
            ServerMessage::Accepted { msg_id, acceptance } if *msg_id == id => Some(Ok(*acceptance)),
            ServerMessage::Nack(nack) if nack.subject == Subject::Message(id) => Some(Err(nack.clone())),
            _ => None,
        })
        .await
    }

    /// The relay's END, with frames before it skipped, and the close code checked.
    pub(crate) async fn end(&mut self) -> End {
        let early = self.early.iter().find_map(|message| match message {
            ServerMessage::End(end) => Some(end.clone()),
            _ => None,
        });
        match early {
            Some(end) => end,
            None => self.raw.end().await,
        }
    }

    /// Everything that came before the answer to a ping.
    pub(crate) async fn until_pong(&mut self) -> Vec<ServerMessage> {
        let asked = u64::from_be_bytes(random());
        self.say(&ClientMessage::Ping { nonce: asked }).await;
        self.expect("PONG", |message| match message {
            ServerMessage::Pong { nonce } if *nonce == asked => Some(()),
            _ => None,
        })
        .await;
        self.early.drain(..).collect()
    }

    /// Everything that is in this device's mailbox: what comes before a mark that `sender` sends now. All of it counts
    /// as delivered; only the mark is acknowledged.
    pub(crate) async fn mail(&mut self, sender: &mut Self) -> Vec<Deliver> {
        let mark = sender.send(&self.address.clone(), super::blob("the mark")).await;
        let mut before = Vec::new();
        loop {
            let message = self.deliver().await;
            if message.msg_id == mark {
                self.ack(&[message]).await;
                self.until_pong().await;
                return before;
            }
            before.push(message);
        }
    }

    /// The next number of the lane to a mailbox.
    pub(crate) fn lane(&mut self, to: &Address) -> Lane {
        let lane = self.lanes.entry(to.clone()).or_insert_with(|| (u64::from_be_bytes(random()), 0));
        lane.1 += 1;
        Lane { epoch: lane.0, number: NonZeroU64::new(lane.1).unwrap() }
    }

    /// Starts the lane to a mailbox anew.
    pub(crate) fn new_lane_epoch(&mut self, to: &Address) {
        self.lanes.remove(to);
    }

    /// The next counter.
    pub(crate) fn counter(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// A message with the next lane number and counter.
    pub(crate) fn compose(&mut self, to: &Address, blob: Vec<u8>) -> Send {
        let lane = Some(self.lane(to));
        let recipient = Recipient { to: to.clone(), msg_id: new_id(), lane };
        Send { recipient, blob: blob.into(), counter: self.counter(), counter_mac: None, ttl: Duration::ZERO }
    }

    /// Sends without awaiting the answer.
    pub(crate) async fn post(&mut self, send: &Send) -> bool {
        self.say(&ClientMessage::Send(send.clone())).await
    }

    /// Sends and awaits the answer.
    pub(crate) async fn transmit(&mut self, send: &Send) -> Result<Acceptance, Nack> {
        self.post(send).await;
        self.answer(send.recipient.msg_id).await
    }

    /// Sends a blob in its lane, and it is accepted.
    pub(crate) async fn send(&mut self, to: &Address, blob: Vec<u8>) -> MessageId {
        let send = self.compose(to, blob);
        match self.transmit(&send).await {
            Ok(_) => send.recipient.msg_id,
            Err(nack) => panic!("not accepted: {nack:?}"),
        }
    }

    /// An ephemeral message.
    pub(crate) fn signal(to: &Address, blob: Vec<u8>) -> Send {
        let recipient = Recipient { to: to.clone(), msg_id: new_id(), lane: None };
        Send { recipient, blob: blob.into(), counter: 0, counter_mac: None, ttl: Duration::ZERO }
    }

    /// Acknowledges single messages as they were delivered.
    pub(crate) async fn ack(&mut self, messages: &[Deliver]) {
        let single = messages.iter().map(|one| AckOne { seq: one.seq, msg_id: one.msg_id }).collect();
        let mailbox_epoch = self.ready.mailbox_epoch;
        self.say(&ClientMessage::Ack(Ack { mailbox_epoch, up_to: None, single })).await;
    }

    /// Acknowledges everything up to a message.
    pub(crate) async fn ack_up_to(&mut self, last: &Deliver) {
        let up_to = Some(AckOne { seq: last.seq, msg_id: last.msg_id });
        let mailbox_epoch = self.ready.mailbox_epoch;
        self.say(&ClientMessage::Ack(Ack { mailbox_epoch, up_to, single: vec![] })).await;
    }

    /// A number for a request.
    pub(crate) fn request(&mut self) -> NonZeroU64 {
        self.request += 1;
        NonZeroU64::new(self.request).unwrap()
    }

    /// Uploads keys and returns what the relay holds then.
    pub(crate) async fn upload(&mut self, upload: UploadKeys) -> stvor_wire::keys::KeyCounts {
        let upload = UploadKeys { request_id: self.request(), ..upload };
        let id = upload.request_id;
        self.say(&ClientMessage::UploadKeys(upload)).await;
        self.expect("KEYS_UPLOADED", |message| match message {
            ServerMessage::KeysUploaded { request_id, keys } if *request_id == id => Some(*keys),
            ServerMessage::Nack(nack) if nack.subject == Subject::Request(id) => panic!("{nack:?}"),
            _ => None,
        })
        .await
    }

    /// Uploads a signed prekey, a last resort, and this many one-time prekeys of each kind (numbered from 1).
    pub(crate) async fn upload_set(&mut self, ec: u32, kem: u32) -> stvor_wire::keys::KeyCounts {
        self.upload(key_set(ec, kem)).await
    }

    /// A request for bundles.
    pub(crate) fn fetch_of(&mut self, user: &str, wait: Duration) -> FetchBundle {
        let user = UserId::new(user).unwrap();
        let (request_id, devices) = (self.request(), vec![]);
        FetchBundle { request_id, user, wait, devices_only: false, without_one_time: false, devices }
    }

    /// The answer to a request for bundles.
    pub(crate) async fn bundles(&mut self, id: NonZeroU64) -> Result<Bundles, Nack> {
        self.expect("BUNDLES or NACK", |message| match message {
            ServerMessage::Bundles(bundles) if bundles.request_id == id => Some(Ok(bundles.clone())),
            ServerMessage::Nack(nack) if nack.subject == Subject::Request(id) => Some(Err(nack.clone())),
            _ => None,
        })
        .await
    }

    /// Fetches a user's bundles.
    pub(crate) async fn fetch(&mut self, user: &str) -> Result<Bundles, Nack> {
        let fetch = self.fetch_of(user, Duration::ZERO);
        let id = fetch.request_id;
        self.say(&ClientMessage::FetchBundle(fetch)).await;
        self.bundles(id).await
    }

    /// Asks about a user.
    pub(crate) async fn status(&mut self, user: &str) -> UserState {
        let (request, user) = (self.request(), UserId::new(user).unwrap());
        self.say(&ClientMessage::UserStatus { request_id: request, user }).await;
        self.expect("USER_STATE", |message| match message {
            ServerMessage::UserState(state) if state.request_id == request => Some(state.clone()),
            _ => None,
        })
        .await
    }

    /// Deletes the account.
    pub(crate) async fn delete_account(&mut self) {
        let request = self.request();
        self.say(&ClientMessage::DeleteAccount { request_id: request }).await;
        self.expect("DONE", |message| match message {
            ServerMessage::Done { request_id } if *request_id == request => Some(()),
            _ => None,
        })
        .await;
    }

    /// The relay's next KEYS_LOW.
    pub(crate) async fn keys_low(&mut self) -> stvor_wire::keys::KeyCounts {
        self.expect("KEYS_LOW", |message| match message {
            ServerMessage::KeysLow { keys } => Some(*keys),
            _ => None,
        })
        .await
    }

    /// Closes in good order, and waits until the relay has done so too.
    pub(crate) async fn close(mut self) {
        self.raw.send(Message::Close(None)).await;
        soon("the close", async { while let Heard::Message(_) = self.raw.hear().await {} }).await;
    }
}

/// A signed prekey, a last resort, and this many one-time prekeys of each kind (numbered from 1).
pub(crate) fn key_set(ec: u32, kem: u32) -> UploadKeys {
    UploadKeys {
        request_id: NonZeroU64::MIN,
        signed_prekey: Some(signed_prekey(1)),
        kem_last_resort: Some(kem_prekey(1)),
        one_time: one_time(1..=ec),
        kem_one_time: kem_one_time(1..=kem),
        replace_one_time: false,
    }
}

/// Asserts that a message was accepted, and says how.
#[track_caller]
pub(crate) fn accepted(answer: Result<Acceptance, Nack>) -> Acceptance {
    answer.unwrap_or_else(|nack| panic!("not accepted: {nack:?}"))
}

/// Asserts that something was refused with this code.
#[track_caller]
pub(crate) fn refused<T: core::fmt::Debug>(answer: Result<T, Nack>, code: Code) -> Nack {
    match answer {
        Ok(answer) => panic!("not refused: {answer:?}"),
        Err(nack) => {
            assert_eq!(nack.code, code, "{nack:?}");
            nack
        }
    }
}
