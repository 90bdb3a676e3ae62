//! A client that speaks the wire and encrypts nothing.

use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use stvor_base::{Address, AppId, DeviceId, MessageId, Timestamp, UserId};
use stvor_crypto::SystemRandom;
use stvor_protocol::Identity;
use stvor_wire::client::{
    Ack, AckOne, Auth, ClientMessage, Credential, FetchBundle, Hello, Lane, Mode, Recipient, Send,
};
use stvor_wire::frame::{self, Phase};
use stvor_wire::login::Transcript;
use stvor_wire::server::{Bundles, Deliver, ServerMessage};
use stvor_wire::url::RelayUrl;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::Outcome;
use crate::load::server::TOKEN;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Buffers of a socket: thousands are open at once.
const BUFFER: usize = 4 * 1024;

/// A device that can log in.
pub struct Account {
    pub(super) identity: Identity,
    pub(super) app: AppId,
}

impl Account {
    /// A new device of a new user.
    ///
    /// # Errors
    /// When the name is not one.
    pub fn new(name: &str) -> Outcome<Self> {
        let app = stvor_wire::token::app_of(TOKEN)?;
        let address = Address::new(UserId::new(name)?, DeviceId::FIRST);
        let (identity, effects) =
            Identity::create(&app, &address, Timestamp::system(), &mut SystemRandom::new())?;
        // It lives as long as this process: there is nothing to store.
        drop(effects);
        Ok(Self { identity, app })
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> &Address {
        self.identity.address()
    }

    /// Connects and logs in, registering if need be.
    ///
    /// # Errors
    /// When the relay refuses or can not be reached.
    pub async fn connect(&self, url: &str, mode: Mode) -> Outcome<Connection> {
        let url: RelayUrl = url.parse()?;
        let mut request = url.socket_url().into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", stvor_wire::SUBPROTOCOL.parse()?);
        let config = WebSocketConfig::default().read_buffer_size(BUFFER).write_buffer_size(BUFFER);
        let (mut socket, _) =
            tokio_tungstenite::connect_async_with_config(request, Some(config), true).await?;
        let hello = Hello {
            protocol_version: stvor_wire::PROTOCOL_VERSION,
            credential: Credential::AppToken(TOKEN.to_owned()),
            address: self.address().clone(),
            capabilities: Vec::new(),
        };
        socket.send(Message::Binary(frame::encode_client(&ClientMessage::Hello(hello)))).await?;
        let ServerMessage::Challenge(challenge) = hear(&mut socket, Phase::LoggingIn).await? else {
            return Err("no CHALLENGE came".into());
        };
        let origin = url.origin();
        let transcript = Transcript {
            app: &self.app,
            origin: &origin,
            nonce: &challenge.nonce,
            address: self.address(),
            time: challenge.server_time,
            server_version: &challenge.server_version,
        };
        let list = self.identity.signed_list();
        let auth = Auth {
            device_list: list.bytes.clone().into(),
            device_list_signature: list.signature.as_slice().try_into()?,
            origin: origin.clone(),
            time: challenge.server_time,
            signature: self.identity.sign_login(&transcript.encode())?,
            mode,
            resume_cursor: Bytes::new(),
            register: true,
            replace_identity: false,
            store_mark: None,
            rotations: Bytes::new(),
        };
        socket.send(Message::Binary(frame::encode_client(&ClientMessage::Auth(auth)))).await?;
        let ServerMessage::Ready(ready) = hear(&mut socket, Phase::LoggedIn).await? else {
            return Err("no READY came".into());
        };
        let (sink, stream) = socket.split();
        let epoch = rand::random();
        let sender = Sender { sink, epoch, sent: ready.highest_counter, lane: 0 };
        Ok(Connection { sender, receiver: Receiver { stream } })
    }
}

async fn hear(socket: &mut Socket, phase: Phase) -> Outcome<ServerMessage> {
    loop {
        match socket.next().await.ok_or("the relay closed the connection during the log-in")?? {
            Message::Binary(bytes) => match frame::decode_server(bytes, phase)? {
                ServerMessage::End(end) => return Err(format!("END {:?}: {}", end.code, end.detail).into()),
                other => return Ok(other),
            },
            Message::Close(frame) => return Err(format!("closed during the log-in: {frame:?}").into()),
            _ => {}
        }
    }
}

/// A logged-in connection.
pub struct Connection {
    /// What goes to the relay.
    pub sender: Sender,
    /// What comes from it.
    pub receiver: Receiver,
}

impl Connection {
    /// The prekeys of a user, without those that serve once: what comes is good for any number of first messages.
    ///
    /// # Errors
    /// When the relay refuses, or the connection is gone.
    pub async fn bundles(&mut self, user: &UserId) -> Outcome<Bundles> {
        let fetch = FetchBundle {
            request_id: NonZeroU64::MIN,
            user: user.clone(),
            wait: Duration::ZERO,
            devices_only: false,
            without_one_time: true,
            devices: Vec::new(),
        };
        let frame = frame::encode_client(&ClientMessage::FetchBundle(fetch));
        self.sender.sink.send(Message::Binary(frame)).await?;
        loop {
            let answers = self.receiver.batch(1).await?;
            if answers.is_empty() {
                return Err("the connection ended before the prekeys came".into());
            }
            for answer in answers {
                if let ServerMessage::Bundles(bundles) = answer {
                    return Ok(bundles);
                }
            }
        }
    }
}

/// The sending half.
pub struct Sender {
    sink: SplitSink<Socket, Message>,
    epoch: u64,
    sent: u64,
    lane: u64,
}

impl Sender {
    /// Puts a message to the only mailbox that this sender writes to into the socket's buffer.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn feed(&mut self, to: &Address, blob: Bytes, ephemeral: bool) -> Outcome<()> {
        self.sent += 1;
        self.lane += 1;
        let lane = NonZeroU64::new(self.lane).map(|number| Lane { epoch: self.epoch, number });
        let send = Send {
            recipient: Recipient {
                to: to.clone(),
                msg_id: MessageId::from_bytes(rand::random()),
                lane: lane.filter(|_| !ephemeral),
            },
            blob,
            counter: if ephemeral { 0 } else { self.sent },
            counter_mac: None,
            ttl: Duration::ZERO,
        };
        Ok(self.sink.feed(Message::Binary(frame::encode_client(&ClientMessage::Send(send)))).await?)
    }

    /// Acknowledges messages and flushes.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn acknowledge(&mut self, delivered: &[Deliver]) -> Outcome<()> {
        let Some(last) = delivered.last() else { return Ok(()) };
        let one = |deliver: &Deliver| AckOne { seq: deliver.seq, msg_id: deliver.msg_id };
        let single = delivered.iter().map(one).collect();
        let ack = Ack { mailbox_epoch: last.mailbox_epoch, up_to: None, single };
        self.sink.feed(Message::Binary(frame::encode_client(&ClientMessage::Ack(ack)))).await?;
        self.flush().await
    }

    /// Answers a ping.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn pong(&mut self, nonce: u64) -> Outcome<()> {
        Ok(self.sink.send(Message::Binary(frame::encode_client(&ClientMessage::Pong { nonce }))).await?)
    }

    /// Writes out what was fed.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn flush(&mut self) -> Outcome<()> {
        Ok(self.sink.flush().await?)
    }
}

/// The receiving half.
pub struct Receiver {
    stream: SplitStream<Socket>,
}

impl Receiver {
    /// The next frames: waits for one, takes what came with it, at most `most`. Empty: the connection has ended.
    ///
    /// # Errors
    /// When the relay says something that is no frame, or END.
    pub async fn batch(&mut self, most: usize) -> Outcome<Vec<ServerMessage>> {
        let mut batch = Vec::new();
        while batch.is_empty() {
            let Some(mut chunk) = self.stream.by_ref().ready_chunks(most).next().await else { break };
            for message in chunk.drain(..) {
                let Message::Binary(bytes) = message? else { continue };
                match frame::decode_server(bytes, Phase::LoggedIn)? {
                    ServerMessage::End(end) => {
                        return Err(format!("END {:?}: {}", end.code, end.detail).into());
                    }
                    ServerMessage::Nack(nack) => {
                        return Err(format!("NACK {:?}: {}", nack.code, nack.detail).into());
                    }
                    other => batch.push(other),
                }
            }
        }
        Ok(batch)
    }
}
