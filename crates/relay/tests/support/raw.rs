//! The raw socket of a test: WebSocket messages and frames, before and after a log-in.

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use stvor_base::Address;
use stvor_wire::client::{ClientMessage, Credential};
use stvor_wire::server::{Challenge, End};
use stvor_wire::{Phase, SUBPROTOCOL, ServerMessage, frame};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::client::hello;
use super::server::Place;
use super::soon;

/// What came from the relay.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A frame.
    Message(ServerMessage),
    /// The end of the socket, with the close code if there was a close frame.
    Closed(Option<u16>),
}

/// An open WebSocket.
pub(crate) struct Raw {
    socket: WebSocketStream<TcpStream>,
    phase: Phase,
}

impl Raw {
    /// Opens the socket at a place.
    pub(crate) async fn open(place: &Place) -> Self {
        let socket = TcpStream::connect(place.address).await.unwrap();
        Self::upgrade(place, socket).await.unwrap()
    }

    /// Opens it with a small receive buffer, so that it is soon full.
    pub(crate) async fn open_narrow(place: &Place) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        Self::upgrade(place, socket.connect(place.address).await.unwrap()).await.unwrap()
    }

    /// Speaks HTTP over a connection until it is a WebSocket.
    pub(crate) async fn upgrade(place: &Place, socket: TcpStream) -> Result<Self, WsError> {
        socket.set_nodelay(true).unwrap();
        let mut request = place.url.socket_url().into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(SUBPROTOCOL));
        let (socket, _) = soon("upgrade", tokio_tungstenite::client_async(request, socket)).await?;
        Ok(Self { socket, phase: Phase::LoggingIn })
    }

    /// Sends a WebSocket message of any kind. `false` when the relay has closed.
    pub(crate) async fn send(&mut self, message: Message) -> bool {
        soon("send", self.socket.send(message)).await.is_ok()
    }

    /// Sends bytes as one binary message.
    pub(crate) async fn bytes(&mut self, bytes: impl Into<Bytes>) -> bool {
        self.send(Message::Binary(bytes.into())).await
    }

    /// Sends a frame.
    pub(crate) async fn say(&mut self, message: &ClientMessage) -> bool {
        self.bytes(frame::encode_client(message)).await
    }

    /// The next frame, or the end.
    pub(crate) async fn hear(&mut self) -> Heard {
        soon("a frame or the end", async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Binary(bytes))) => {
                        let message = frame::decode_server(bytes, self.phase).unwrap();
                        if matches!(message, ServerMessage::Ready(_)) {
                            self.phase = Phase::LoggedIn;
                        }
                        return Heard::Message(message);
                    }
                    Some(Ok(Message::Close(frame))) => {
                        // Reading on answers the close, as a polite client does.
                        while let Some(Ok(_)) = self.socket.next().await {}
                        return Heard::Closed(frame.map(|frame| frame.code.into()));
                    }
                    Some(Ok(Message::Text(text))) => panic!("a text message: {text}"),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Heard::Closed(None),
                }
            }
        })
        .await
    }

    /// The next frame.
    pub(crate) async fn message(&mut self) -> ServerMessage {
        match self.hear().await {
            Heard::Message(message) => message,
            Heard::Closed(code) => panic!("the relay closed ({code:?}) where a frame was awaited"),
        }
    }

    /// The relay's END, and after it the matching close code. Frames before it are skipped.
    pub(crate) async fn end(&mut self) -> End {
        loop {
            if let ServerMessage::End(end) = self.message().await {
                match self.hear().await {
                    Heard::Closed(code) => assert_eq!(code, Some(end.code.close_code()), "{end:?}"),
                    Heard::Message(message) => panic!("after END: {message:?}"),
                }
                return end;
            }
        }
    }

    /// HELLO with an app token.
    pub(crate) async fn hello(&mut self, credential: Credential, address: Address) -> Challenge {
        self.say(&hello(credential, address)).await;
        match self.message().await {
            ServerMessage::Challenge(challenge) => challenge,
            other => panic!("no challenge: {other:?}"),
        }
    }

    /// Drops the connection without a word.
    pub(crate) fn cut(self) {
        drop(self);
    }
}
