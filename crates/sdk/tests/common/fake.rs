//! A relay in a hundred lines that does as it is told: for what an honest one never does.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "every test uses a part of it; tests fail by panicking"
)]

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use stvor_base::{Address, AppId, Timestamp, UserId};
use stvor_protocol::Incoming;
use stvor_protocol::group::GroupIncoming;
use stvor_wire::client::{Auth, ClientMessage, Credential, UploadKeys};
use stvor_wire::frame::{self, Phase};
use stvor_wire::keys::{DeviceBundle, KeyCounts};
use stvor_wire::server::{
    Acceptance, Bundles, Challenge, Deliver, End, Limits, Nack, Ready, Registration, Resumed, ServerMessage,
    Subject, UserState,
};
use stvor_wire::{Code, token};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

type Out = mpsc::UnboundedSender<ServerMessage>;

/// What the relay does with a send: `None` is what an honest one does.
pub type OnSend = Box<dyn FnMut(&mut stvor_wire::client::Send) -> Option<ServerMessage> + Send>;

#[derive(Default)]
struct State {
    lists: HashMap<UserId, Auth>,
    keys: HashMap<UserId, UploadKeys>,
    online: HashMap<UserId, Out>,
    mail: HashMap<UserId, VecDeque<Deliver>>,
    seen: HashMap<stvor_base::MessageId, u64>,
    next_seq: u64,
    highest_counter: HashMap<UserId, (u64, Option<[u8; 32]>)>,
    /// What READY says of a user's counter, in the place of what is true.
    claims: HashMap<UserId, (u64, Option<[u8; 32]>)>,
    /// Up to where mail of users expired.
    lost: HashMap<UserId, u64>,
    /// As a relay of before counters had proofs.
    forgets_proofs: bool,
    end_with: Option<Code>,
    on_send: Option<OnSend>,
    /// Answers to account deletions that are lost with their connections.
    lost_answers: usize,
    /// Does not say what it knows of rotations.
    keeps_rotations: bool,
    /// Takes no prekeys of this user.
    refuses_keys_of: Option<UserId>,
    log: Vec<stvor_wire::client::Send>,
}

#[derive(Clone)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    port: u16,
}

impl Fake {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self { state: Arc::default(), port: listener.local_addr().unwrap().port() };
        let serving = fake.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(socket));
            }
        });
        fake
    }

    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    /// Ends every log-in with this code from now on.
    pub fn end_with(&self, code: Option<Code>) {
        self.state.lock().unwrap().end_with = code;
    }

    /// Deletes accounts as asked, but the next `count` answers are lost with their connections.
    pub fn lose_deletion_answers(&self, count: usize) {
        self.state.lock().unwrap().lost_answers = count;
    }

    /// Whether a user is registered.
    pub fn knows(&self, user: &str) -> bool {
        self.state.lock().unwrap().lists.contains_key(&user.parse::<UserId>().unwrap())
    }

    pub fn on_send(
        &self,
        act: impl FnMut(&mut stvor_wire::client::Send) -> Option<ServerMessage> + Send + 'static,
    ) {
        self.state.lock().unwrap().on_send = Some(Box::new(act));
    }

    /// Says of a user's counter what the test wants; `None`: the truth.
    pub fn claim(&self, user: &str, counter: Option<(u64, Option<[u8; 32]>)>) {
        let user: UserId = user.parse().unwrap();
        let mut state = self.state.lock().unwrap();
        match counter {
            Some(counter) => state.claims.insert(user, counter),
            None => state.claims.remove(&user),
        };
    }

    /// Takes no prekeys of a user from now on.
    pub fn refuse_keys_of(&self, user: &str) {
        self.state.lock().unwrap().refuses_keys_of = Some(user.parse().unwrap());
    }

    /// Lets what waits for a user expire.
    pub fn expire(&self, user: &str) {
        let user: UserId = user.parse().unwrap();
        let mut state = self.state.lock().unwrap();
        let last = state.mail.remove(&user).unwrap_or_default().iter().map(|deliver| deliver.seq).max();
        if let Some(last) = last {
            state.lost.insert(user, last);
        }
    }

    /// The highest counter of a user, and its proof.
    pub fn counter(&self, user: &str) -> (u64, Option<[u8; 32]>) {
        self.state.lock().unwrap().highest_counter[&user.parse::<UserId>().unwrap()]
    }

    /// Keeps no proofs from now on, as relays of before did.
    pub fn forget_proofs(&self) {
        let mut state = self.state.lock().unwrap();
        state.forgets_proofs = true;
        state.highest_counter.values_mut().for_each(|(_, mac)| *mac = None);
    }

    /// Of what the relay saw, no key of a session, or of a sender key, sealed two different things.
    pub fn saw_no_key_twice(&self) {
        let mut used: HashMap<Vec<u8>, stvor_wire::client::Send> = HashMap::new();
        for send in self.log() {
            let key = if GroupIncoming::is_one(&send.blob) {
                let incoming = GroupIncoming::parse(&send.blob).unwrap();
                [b"group".as_slice(), incoming.chain(), &incoming.counter().to_be_bytes()].concat()
            } else {
                let (ratchet_key, number) = Incoming::parse(&send.blob).unwrap().position();
                [&ratchet_key[..], &number.to_be_bytes()].concat()
            };
            if let Some(earlier) = used.insert(key, send.clone()) {
                assert_eq!(earlier.blob, send.blob, "two different messages under one key");
            }
        }
    }

    /// Everything that was sent, as it came.
    pub fn log(&self) -> Vec<stvor_wire::client::Send> {
        self.state.lock().unwrap().log.clone()
    }

    /// Puts what was sent as the `index`th message into its receiver's mailbox once more, under another id if that is wanted.
    pub fn deliver_again(&self, from: &str, index: usize, id: Option<stvor_base::MessageId>) {
        let mut state = self.state.lock().unwrap();
        let send = state.log[index].clone();
        state.next_seq += 1;
        let deliver = Deliver {
            from: Address::new(from.parse().unwrap(), stvor_base::DeviceId::FIRST),
            mailbox_epoch: 1,
            seq: state.next_seq,
            msg_id: id.unwrap_or(send.recipient.msg_id),
            blob: send.blob,
            received_at: Timestamp::system(),
            ephemeral: false,
        };
        let to = send.recipient.to.user;
        state.mail.entry(to.clone()).or_default().push_back(deliver.clone());
        if let Some(theirs) = state.online.get(&to) {
            let _ = theirs.send(ServerMessage::Deliver(deliver));
        }
    }

    /// How many messages wait for a user to acknowledge them.
    pub fn waiting(&self, user: &str) -> usize {
        self.state.lock().unwrap().mail.get(&user.parse::<UserId>().unwrap()).map_or(0, VecDeque::len)
    }

    /// Ends the connection of a user.
    pub fn drop_user(&self, user: &str) {
        self.state.lock().unwrap().online.remove(&user.parse().unwrap());
    }

    /// Says something to a user.
    pub fn say(&self, user: &str, message: ServerMessage) {
        let _ = self.state.lock().unwrap().online[&user.parse::<UserId>().unwrap()].send(message);
    }

    /// Answers no question for rotations from here on.
    pub fn keep_rotations(&self) {
        self.state.lock().unwrap().keeps_rotations = true;
    }

    /// Puts one user's registration in the place of another's, as a relay that cheats would.
    pub fn swap(&self, victim: &str, other: &str) {
        let (victim, other): (UserId, UserId) = (victim.parse().unwrap(), other.parse().unwrap());
        let mut state = self.state.lock().unwrap();
        let (list, keys) = (state.lists[&other].clone(), state.keys[&other].clone());
        state.lists.insert(victim.clone(), list);
        state.keys.insert(victim, keys);
    }

    /// Whether a user's prekeys are here.
    pub fn has_keys(&self, user: &str) -> bool {
        let keys = &self.state.lock().unwrap().keys;
        keys.get(&user.parse::<UserId>().unwrap()).is_some_and(|keys| keys.signed_prekey.is_some())
    }

    /// Shows another relay's registration of a user in the place of the true one: a well-formed identity of somebody else.
    pub fn impersonate(&self, user: &str, other: &Self) {
        let user: UserId = user.parse().unwrap();
        let (list, keys) = {
            let state = other.state.lock().unwrap();
            (state.lists[&user].clone(), state.keys[&user].clone())
        };
        let mut state = self.state.lock().unwrap();
        state.lists.insert(user.clone(), list);
        state.keys.insert(user, keys);
    }

    async fn serve(self, socket: TcpStream) {
        #[allow(clippy::result_large_err)]
        let accept = |_: &Request, mut response: Response| {
            response.headers_mut().insert("sec-websocket-protocol", "stvor.v1".parse().unwrap());
            Ok(response)
        };
        let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(socket, accept).await else { return };
        let hear = async |socket: &mut tokio_tungstenite::WebSocketStream<TcpStream>, phase| match socket
            .next()
            .await
        {
            Some(Ok(Message::Binary(bytes))) => frame::decode_client(bytes, phase).ok(),
            _ => None,
        };
        let binary = |message: &ServerMessage| Message::Binary(frame::encode_server(message));
        let Some(ClientMessage::Hello(hello)) = hear(&mut socket, Phase::LoggingIn).await else { return };
        let end = self.state.lock().unwrap().end_with;
        if let Some(code) = end {
            let end = End { code, detail: "as the test wants".into(), retry_after: Duration::ZERO };
            let _ = socket.send(binary(&ServerMessage::End(end))).await;
            return;
        }
        let Credential::AppToken(text) = hello.credential else { return };
        let app: AppId = token::app_of(&text).unwrap();
        let challenge = Challenge {
            nonce: [7; 32],
            app,
            server_time: Timestamp::system(),
            server_version: "fake".into(),
            protocol_version: 1,
            development: true,
            capabilities: Vec::new(),
        };
        let _ = socket.send(binary(&ServerMessage::Challenge(challenge))).await;
        let Some(ClientMessage::Auth(auth)) = hear(&mut socket, Phase::LoggingIn).await else { return };
        let who: Address = hello.address;
        let (out, mut outgoing) = mpsc::unbounded_channel();
        let ready = {
            let mut state = self.state.lock().unwrap();
            let list = auth.device_list.clone();
            let before = state.lists.insert(who.user.clone(), auth);
            let new = before.is_none();
            if before.is_some_and(|before| before.device_list != list) {
                // Another identity counts afresh.
                state.highest_counter.remove(&who.user);
            }
            state.online.insert(who.user.clone(), out.clone());
            let counts = counts_of(state.keys.get(&who.user));
            for deliver in state.mail.get(&who.user).into_iter().flatten() {
                let _ = out.send(ServerMessage::Deliver(deliver.clone()));
            }
            let known = state.claims.get(&who.user).or_else(|| state.highest_counter.get(&who.user));
            let counter = known.copied().unwrap_or_default();
            Ready {
                mailbox_epoch: 1,
                resumed: Resumed::Full,
                registration: if new { Registration::New } else { Registration::Known },
                highest_counter: counter.0,
                counter_mac: counter.1,
                lost_seq: state.lost.get(&who.user).copied().unwrap_or(0),
                keys: counts,
                limits: Limits {
                    max_frame_bytes: 98_304,
                    max_blob_bytes: 73_728,
                    window_messages: 128,
                    window_bytes: 1 << 20,
                    retention: Duration::from_secs(3_600),
                    dedup: Duration::from_secs(3_600),
                    max_recipients: 64,
                },
                resume_cursor: Vec::new().into(),
                heartbeat: Duration::from_secs(27),
            }
        };
        drop(out);
        let _ = socket.send(binary(&ServerMessage::Ready(ready))).await;
        loop {
            tokio::select! {
                message = outgoing.recv() => match message {
                    Some(message) => if socket.send(binary(&message)).await.is_err() { return },
                    None => return,
                },
                message = hear(&mut socket, Phase::LoggedIn) => match message {
                    Some(message) => self.take(&who, message),
                    None => return,
                },
            }
        }
    }

    fn take(&self, who: &Address, message: ClientMessage) {
        let mut state = self.state.lock().unwrap();
        let Some(out) = state.online.get(&who.user).cloned() else { return };
        match message {
            ClientMessage::Ping { nonce } => drop(out.send(ServerMessage::Pong { nonce })),
            ClientMessage::UploadKeys(upload) if state.refuses_keys_of.as_ref() == Some(&who.user) => {
                let _ = out.send(ServerMessage::Nack(Nack {
                    subject: Subject::Request(upload.request_id),
                    code: Code::StoreUnavailable,
                    detail: String::new(),
                    retry_after: Duration::ZERO,
                    expected_lane: 0,
                }));
            }
            ClientMessage::UploadKeys(upload) => {
                let request_id = upload.request_id;
                let counts = counts_of(Some(&upload));
                let held = state.keys.entry(who.user.clone()).or_insert_with(|| upload.clone());
                if upload.replace_one_time {
                    (held.one_time, held.kem_one_time) =
                        (upload.one_time.clone(), upload.kem_one_time.clone());
                }
                held.signed_prekey = upload.signed_prekey.or(held.signed_prekey.take());
                held.kem_last_resort = upload.kem_last_resort.or(held.kem_last_resort.take());
                let _ = out.send(ServerMessage::KeysUploaded { request_id, keys: counts });
            }
            ClientMessage::FetchBundle(fetch) => {
                let silent = fetch.devices_only && state.keeps_rotations;
                let found = bundle_of(&mut state, &fetch.user).filter(|_| !silent);
                let answer = match found {
                    Some((auth, bundle)) => ServerMessage::Bundles(Bundles {
                        request_id: fetch.request_id,
                        user: fetch.user,
                        device_list: auth.device_list,
                        device_list_signature: auth.device_list_signature,
                        bundles: vec![bundle],
                        rotations: auth.rotations,
                    }),
                    None => ServerMessage::Nack(Nack {
                        subject: Subject::Request(fetch.request_id),
                        code: if silent { Code::StoreUnavailable } else { Code::RecipientNotFound },
                        detail: String::new(),
                        retry_after: Duration::ZERO,
                        expected_lane: 0,
                    }),
                };
                let _ = out.send(answer);
            }
            ClientMessage::UserStatus { request_id, user } => {
                let state = UserState {
                    registered: state.lists.contains_key(&user),
                    online: state.online.contains_key(&user),
                    has_keys: state.keys.contains_key(&user),
                    request_id,
                    user,
                };
                let _ = out.send(ServerMessage::UserState(state));
            }
            ClientMessage::DeleteAccount { request_id } => {
                state.lists.remove(&who.user);
                state.keys.remove(&who.user);
                state.mail.remove(&who.user);
                if state.lost_answers > 0 {
                    state.lost_answers -= 1;
                    // The connection ends with its last sender.
                    state.online.remove(&who.user);
                } else {
                    let _ = out.send(ServerMessage::Done { request_id });
                }
            }
            ClientMessage::Ack(ack) => {
                let ids: Vec<_> = ack.single.iter().map(|one| one.msg_id).collect();
                if let Some(mail) = state.mail.get_mut(&who.user) {
                    mail.retain(|deliver| !ids.contains(&deliver.msg_id));
                }
            }
            ClientMessage::Send(mut send) => {
                state.log.push(send.clone());
                let msg_id = send.recipient.msg_id;
                if state.seen.contains_key(&msg_id) {
                    let _ = out.send(ServerMessage::Accepted { msg_id, acceptance: Acceptance::Duplicate });
                    return;
                }
                let mut act = state.on_send.take();
                let answer = act.as_mut().and_then(|act| act(&mut send));
                state.on_send = act;
                if let Some(answer) = answer {
                    let _ = out.send(answer);
                    return;
                }
                let mac = send.counter_mac.filter(|_| !state.forgets_proofs);
                let highest = state.highest_counter.entry(who.user.clone()).or_default();
                *highest = (*highest).max((send.counter, mac));
                state.next_seq += 1;
                let seq = state.next_seq;
                state.seen.insert(msg_id, seq);
                let deliver = Deliver {
                    from: who.clone(),
                    mailbox_epoch: 1,
                    seq,
                    msg_id,
                    blob: send.blob,
                    received_at: Timestamp::system(),
                    ephemeral: false,
                };
                let to = send.recipient.to.user;
                state.mail.entry(to.clone()).or_default().push_back(deliver.clone());
                if let Some(theirs) = state.online.get(&to) {
                    let _ = theirs.send(ServerMessage::Deliver(deliver));
                }
                let _ = out.send(ServerMessage::Accepted { msg_id, acceptance: Acceptance::Durable });
            }
            _ => {}
        }
    }
}

fn counts_of(keys: Option<&UploadKeys>) -> KeyCounts {
    keys.map_or_else(KeyCounts::default, |keys| KeyCounts {
        one_time: u32::try_from(keys.one_time.len()).unwrap(),
        kem_one_time: u32::try_from(keys.kem_one_time.len()).unwrap(),
        signed_prekey_id: keys.signed_prekey.as_ref().map(|key| key.id),
        kem_last_resort_id: keys.kem_last_resort.as_ref().map(|key| key.id),
    })
}

fn bundle_of(state: &mut State, user: &UserId) -> Option<(Auth, DeviceBundle)> {
    let auth = state.lists.get(user)?.clone();
    let keys = state.keys.get_mut(user)?;
    let one_time = keys.one_time.pop();
    let kem = keys.kem_one_time.pop();
    let bundle = DeviceBundle {
        device: stvor_base::DeviceId::FIRST,
        signed_prekey: keys.signed_prekey.clone()?,
        one_time,
        kem_is_last_resort: kem.is_none(),
        kem: kem.or_else(|| keys.kem_last_resort.clone())?,
    };
    Some((auth, bundle))
}
