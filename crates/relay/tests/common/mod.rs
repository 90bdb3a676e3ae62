//! A small raw client: frames in, frames out, nothing hidden.

#![allow(dead_code, reason = "each test file uses a part of it")]

use core::num::NonZeroU64;
use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use stvor_base::devices::{DEVICE_LIST_LABEL, DeviceEntry, DeviceList};
use stvor_base::{Address, AppId, DeviceId, MessageId, Timestamp, UserId};
use stvor_crypto::SystemRandom;
use stvor_crypto::p256::{AgreementKey, SigningKey};
use stvor_relay::{Config, Handle, Relay};
use stvor_wire::client::{
    Ack, AckOne, Auth, Credential, FetchBundle, Hello, Lane, Mode, Recipient, Send, UploadKeys,
};
use stvor_wire::keys::{KemPrekey, OneTimePrekey, SignedPrekey};
use stvor_wire::login::{LOGIN_LABEL, Transcript};
use stvor_wire::server::{Acceptance, Bundles, Challenge, Deliver, End, Nack, Ready};
use stvor_wire::url::RelayUrl;
use stvor_wire::{ClientMessage, Code, Phase, ServerMessage, frame};
use tokio::net::TcpStream;
use tokio_tungstenite::MaybeTlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

pub const TOKEN: &str = "stvor_dev_test123";

/// Long enough for a loaded machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub async fn mock() -> Handle {
    Relay::start(Config::mock(0)).await.unwrap()
}

/// A durable relay in development mode, in a folder that lives as long as the test.
pub async fn durable(folder: &tempfile::TempDir) -> Handle {
    Relay::start(durable_config(folder)).await.unwrap()
}

pub fn durable_config(folder: &tempfile::TempDir) -> Config {
    Config { development: true, ..Config::durable(folder.path().join("relay.sqlite"), 0) }
}

/// A user with one device, and every key that it takes.
pub struct Person {
    pub app: AppId,
    pub address: Address,
    pub user_key: SigningKey,
    pub device_key: SigningKey,
    pub list: DeviceList,
    pub counter: AtomicU64,
}

impl Person {
    pub fn new(name: &str) -> Self {
        Self::of_token(name, TOKEN)
    }

    pub fn of_token(name: &str, token: &str) -> Self {
        Self::of_app(name, stvor_wire::token::app_of(token).unwrap())
    }

    pub fn of_app(name: &str, app: AppId) -> Self {
        let mut rng = SystemRandom::new();
        let user_key = SigningKey::generate(&mut rng).unwrap();
        let device_key = SigningKey::generate(&mut rng).unwrap();
        let agreement = AgreementKey::generate(&mut rng).unwrap();
        let address = Address::new(UserId::new(name).unwrap(), DeviceId::FIRST);
        let list = DeviceList {
            app: app.clone(),
            user: address.user.clone(),
            user_key: *user_key.public().as_bytes(),
            version: 1,
            previous: [0; 32],
            devices: vec![DeviceEntry {
                id: DeviceId::FIRST,
                signing_key: *device_key.public().as_bytes(),
                agreement_key: *agreement.public().as_bytes(),
            }],
        };
        Self { app, address, user_key, device_key, list, counter: AtomicU64::new(0) }
    }

    pub fn signed_list(&self) -> (Bytes, [u8; 64]) {
        let bytes = self.list.encode();
        let signature = self.user_key.sign(DEVICE_LIST_LABEL, &bytes).unwrap();
        (bytes.into(), *signature.as_bytes())
    }

    pub fn auth(&self, challenge: &Challenge, origin: &str) -> Auth {
        let (device_list, device_list_signature) = self.signed_list();
        let transcript = Transcript {
            app: &self.app,
            origin,
            nonce: &challenge.nonce,
            address: &self.address,
            time: challenge.server_time,
            server_version: &challenge.server_version,
        };
        let signature = self.device_key.sign(LOGIN_LABEL, &transcript.encode()).unwrap();
        Auth {
            device_list,
            device_list_signature,
            origin: origin.to_owned(),
            time: challenge.server_time,
            signature: *signature.as_bytes(),
            mode: Mode::Receive,
            resume_cursor: Bytes::new(),
            register: true,
            replace_identity: false,
        }
    }

    pub fn hello(&self, token: &str) -> ClientMessage {
        ClientMessage::Hello(Hello {
            protocol_version: 1,
            credential: Credential::AppToken(token.to_owned()),
            address: self.address.clone(),
            capabilities: Vec::new(),
        })
    }

    pub async fn log_in(&self, url: &str) -> Client {
        self.try_log_in(url, TOKEN, |_| {}).await.unwrap_or_else(|end| panic!("not logged in: {end:?}"))
    }

    /// Logs in with a changed AUTH.
    pub async fn try_log_in(&self, url: &str, token: &str, change: impl FnOnce(&mut Auth)) -> Result<Client, End> {
        let mut raw = Raw::connect(url).await;
        raw.say(&self.hello(token)).await;
        let challenge = match raw.hear(Phase::LoggingIn).await {
            ServerMessage::Challenge(challenge) => challenge,
            ServerMessage::End(end) => return Err(end),
            other => panic!("not a challenge: {other:?}"),
        };
        let mut auth = self.auth(&challenge, &url.parse::<RelayUrl>().unwrap().origin());
        change(&mut auth);
        raw.say(&ClientMessage::Auth(auth)).await;
        match raw.hear(Phase::LoggingIn).await {
            ServerMessage::Ready(ready) => Ok(Client::new(raw, ready, self.address.clone())),
            ServerMessage::End(end) => Err(end),
            other => panic!("neither READY nor END: {other:?}"),
        }
    }
}

/// A socket that says and hears frames.
pub struct Raw {
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Raw {
    pub async fn connect(url: &str) -> Self {
        let mut request = url.parse::<RelayUrl>().unwrap().socket_url().into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "stvor.v1".parse().unwrap());
        let connected = tokio::time::timeout(PATIENCE, tokio_tungstenite::connect_async(request)).await.unwrap();
        Self { socket: connected.unwrap().0 }
    }

    pub async fn say(&mut self, message: &ClientMessage) {
        self.send(frame::encode_client(message)).await;
    }

    pub async fn send(&mut self, bytes: impl Into<Bytes>) {
        // A relay that has closed already shows when it is heard.
        let _ = self.socket.send(Message::Binary(bytes.into())).await;
    }

    /// The next frame.
    pub async fn hear(&mut self, phase: Phase) -> ServerMessage {
        self.try_hear(phase).await.expect("the relay closed the socket without END")
    }

    /// The next frame; `None` when the socket is gone.
    pub async fn try_hear(&mut self, phase: Phase) -> Option<ServerMessage> {
        loop {
            match tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("the relay says nothing")? {
                Ok(Message::Binary(bytes)) => return Some(frame::decode_server(bytes, phase).unwrap()),
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The code of the END that comes next, and that of the close frame after it.
    pub async fn hear_end(&mut self) -> Code {
        let code = loop {
            if let ServerMessage::End(end) = self.hear(Phase::LoggedIn).await {
                break end.code;
            }
        };
        let closed = tokio::time::timeout(PATIENCE, async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Close(Some(close)))) => return Some(u16::from(close.code)),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return None,
                }
            }
        });
        if let Some(close) = closed.await.expect("no close frame") {
            assert_eq!(Code::from_close_code(close), Some(code));
        }
        code
    }
}

/// A client that is logged in.
pub struct Client {
    pub raw: Raw,
    pub ready: Ready,
    pub address: Address,
    next_request: u64,
}

impl Client {
    fn new(raw: Raw, ready: Ready, address: Address) -> Self {
        Self { raw, ready, address, next_request: 0 }
    }

    pub fn request(&mut self) -> NonZeroU64 {
        self.next_request += 1;
        NonZeroU64::new(self.next_request).unwrap()
    }

    pub async fn say(&mut self, message: &ClientMessage) {
        self.raw.say(message).await;
    }

    /// The next frame that is neither PING nor KEYS_LOW.
    pub async fn hear(&mut self) -> ServerMessage {
        loop {
            match self.raw.hear(Phase::LoggedIn).await {
                ServerMessage::Ping { nonce, .. } => self.say(&ClientMessage::Pong { nonce }).await,
                other => return other,
            }
        }
    }

    /// Shows that nothing was said: the answer to a ping comes first.
    pub async fn hears_nothing(&mut self) {
        let nonce = 0xdead_beef;
        self.say(&ClientMessage::Ping { nonce }).await;
        assert_eq!(self.hear().await, ServerMessage::Pong { nonce });
    }

    pub async fn send(&mut self, message: Send) {
        self.say(&ClientMessage::Send(message)).await;
    }

    pub async fn accepted(&mut self) -> (MessageId, Acceptance) {
        match self.hear().await {
            ServerMessage::Accepted { msg_id, acceptance } => (msg_id, acceptance),
            other => panic!("not ACCEPTED: {other:?}"),
        }
    }

    pub async fn refused(&mut self) -> Nack {
        match self.hear().await {
            ServerMessage::Nack(nack) => nack,
            other => panic!("not NACK: {other:?}"),
        }
    }

    pub async fn delivered(&mut self) -> Deliver {
        match self.hear().await {
            ServerMessage::Deliver(deliver) => deliver,
            other => panic!("not DELIVER: {other:?}"),
        }
    }

    pub async fn ack(&mut self, delivered: &[Deliver]) {
        let single = delivered.iter().map(|one| AckOne { seq: one.seq, msg_id: one.msg_id }).collect();
        let ack = Ack { mailbox_epoch: self.ready.mailbox_epoch, up_to: None, single };
        self.say(&ClientMessage::Ack(ack)).await;
    }

    /// Uploads a signed prekey, a last resort, and so many one-time prekeys of each kind.
    pub async fn upload(&mut self, one_time: u32, kem: u32) -> stvor_wire::keys::KeyCounts {
        let request_id = self.request();
        self.say(&ClientMessage::UploadKeys(keys(request_id, one_time, kem))).await;
        match self.hear().await {
            ServerMessage::KeysUploaded { request_id: id, keys } if id == request_id => keys,
            other => panic!("not KEYS_UPLOADED: {other:?}"),
        }
    }

    pub async fn fetch(&mut self, user: &str, wait: Duration) -> Result<Bundles, Nack> {
        let request_id = self.request();
        self.say(&ClientMessage::FetchBundle(FetchBundle {
            request_id,
            user: UserId::new(user).unwrap(),
            wait,
            devices_only: false,
            devices: Vec::new(),
        }))
        .await;
        match self.hear().await {
            ServerMessage::Bundles(bundles) => Ok(bundles),
            ServerMessage::Nack(nack) => Err(nack),
            other => panic!("neither BUNDLES nor NACK: {other:?}"),
        }
    }
}

pub fn keys(request_id: NonZeroU64, one_time: u32, kem: u32) -> UploadKeys {
    let created_at = Timestamp::from_millis(1);
    let kem_key = |id: u32| KemPrekey { id, key: vec![7; 1184].into(), created_at, signature: [8; 64] };
    let one_time_key = |id: u32| OneTimePrekey { id, key: [u8::try_from(id % 256).unwrap(); 65] };
    UploadKeys {
        request_id,
        signed_prekey: Some(SignedPrekey { id: 0, key: [4; 65], created_at, signature: [5; 64] }),
        kem_last_resort: Some(kem_key(1000)),
        one_time: (0..one_time).map(one_time_key).collect(),
        kem_one_time: (0..kem).map(kem_key).collect(),
        replace_one_time: false,
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A message id that no other test uses.
pub fn fresh_id() -> MessageId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&NEXT_ID.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    MessageId::from_bytes(bytes)
}

/// A lane from one person to another, and what goes on it.
pub struct Flow {
    pub to: Address,
    pub epoch: u64,
    pub number: u64,
    counter: Arc<AtomicU64>,
}

impl Flow {
    pub fn new(to: &Person) -> Self {
        let epoch = NEXT_ID.fetch_add(1, Ordering::Relaxed) << 20;
        Self { to: to.address.clone(), epoch, number: 0, counter: Arc::new(AtomicU64::new(0)) }
    }

    /// The next message.
    pub fn next(&mut self, blob: &[u8]) -> Send {
        self.number += 1;
        self.at(self.number, blob)
    }

    /// A message with a given lane number.
    pub fn at(&self, number: u64, blob: &[u8]) -> Send {
        Send {
            recipient: Recipient {
                to: self.to.clone(),
                msg_id: fresh_id(),
                lane: Some(Lane { epoch: self.epoch, number: NonZeroU64::new(number).unwrap() }),
            },
            blob: Bytes::copy_from_slice(blob),
            counter: self.counter.fetch_add(1, Ordering::Relaxed) + 1,
            ttl: Duration::ZERO,
        }
    }
}

/// A blob of one bucket that begins with `text`.
pub fn blob(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(512, 0);
    bytes
}

pub fn text_of(deliver: &Deliver) -> String {
    let end = deliver.blob.iter().position(|byte| *byte == 0).unwrap_or(deliver.blob.len());
    String::from_utf8(deliver.blob[..end].to_vec()).unwrap()
}

/// A plain HTTP request; returns the head and the body.
pub async fn http(address: std::net::SocketAddr, head: &str, body: &str) -> (String, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    let request = format!("{head}\r\nhost: {address}\r\nconnection: close\r\n{length}\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

pub async fn get(address: std::net::SocketAddr, path: &str) -> (String, String) {
    http(address, &format!("GET {path} HTTP/1.1"), "").await
}
