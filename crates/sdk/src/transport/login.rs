//! HELLO, CHALLENGE, AUTH, READY: the device proves who it is, over the origin that it dialled itself.

use futures::{SinkExt as _, StreamExt as _};
use stvor_base::{Address, AppId};
use stvor_wire::client::{Auth, ClientMessage, Credential, HOLD, Hello, Mode};
use stvor_wire::frame::{self, Phase};
use stvor_wire::limits::{CAPABILITY_CLONES, CAPABILITY_ROTATION};
use stvor_wire::login::Transcript;
use stvor_wire::server::{Challenge, Ready, ServerMessage};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::dial::{SILENT, Socket};
use super::refusal::{self, Refusal};
use crate::error::{Error, ErrorKind, Result};

/// Who logs in where, and with what.
pub(crate) struct Login {
    pub(crate) address: Address,
    pub(crate) app: AppId,
    pub(crate) origin: String,
    pub(crate) credential: Credential,
    pub(crate) replace_identity: bool,
    /// Which store this device's keys are in: the same for all its processes, and of no meaning to anybody else.
    pub(crate) store_mark: [u8; stvor_wire::limits::STORE_MARK_BYTES],
    pub(crate) keys: Box<dyn LoginKeys>,
}

/// The keys that a log-in needs, without the device's secrets leaving their place.
pub(crate) trait LoginKeys: Send + Sync + 'static {
    /// The signed bytes of the user's device list, and their signature.
    fn device_list(&self) -> (Vec<u8>, [u8; 64]);

    /// The user's rotations that lead to the key of the list, or empty.
    fn rotations(&self) -> Vec<u8>;

    /// The device's signature over a log-in transcript.
    fn sign_login(&self, transcript: &[u8]) -> Result<[u8; 64]>;

    /// Whether a user whom the relay does not know is to be registered.
    fn registers(&self) -> bool;

    /// Whether a log-in with these keys succeeded before, at this relay.
    fn has_logged_in(&self) -> bool;
}

/// What the relay can do that not every relay can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Abilities {
    /// It holds senders back when it is asked to.
    pub(crate) holds: bool,
    /// It lets a user's key hand over to another one.
    pub(crate) rotates: bool,
}

/// What a log-in ends with.
pub(crate) struct LoggedIn {
    pub(crate) ready: Ready,
    pub(crate) knows: Abilities,
}

/// Logs in on an open socket before `deadline`.
pub(crate) async fn log_in(
    socket: &mut Socket,
    login: &Login,
    (mode, cursor): (Mode, bytes::Bytes),
    deadline: Instant,
) -> Result<LoggedIn, Refusal> {
    tokio::time::timeout_at(deadline, dialogue(socket, login, (mode, cursor)))
        .await
        .unwrap_or_else(|_| Err(Refusal::retry(Error::unavailable(SILENT))))
}

async fn dialogue(
    socket: &mut Socket,
    login: &Login,
    resume: (Mode, bytes::Bytes),
) -> Result<LoggedIn, Refusal> {
    let hello = Hello {
        protocol_version: stvor_wire::PROTOCOL_VERSION,
        credential: login.credential.clone(),
        address: login.address.clone(),
        capabilities: [HOLD, CAPABILITY_ROTATION, CAPABILITY_CLONES].map(str::to_owned).to_vec(),
    };
    say(socket, &ClientMessage::Hello(hello)).await?;
    let challenge = match hear(socket, login, Phase::LoggingIn).await? {
        ServerMessage::Challenge(challenge) => challenge,
        other => return Err(unexpected(&other)),
    };
    let has = |ability: &str| challenge.capabilities.iter().any(|name| name == ability);
    let knows = Abilities { holds: has(HOLD), rotates: has(CAPABILITY_ROTATION) };
    let auth = answer(&challenge, login, resume)?;
    let rotated = !auth.rotations.is_empty();
    say(socket, &ClientMessage::Auth(auth)).await?;
    // READY may share its packet with nothing: frames after it are of the session.
    match hear(socket, login, Phase::LoggedIn).await {
        Ok(ServerMessage::Ready(ready)) => Ok(LoggedIn { ready, knows }),
        Ok(other) => Err(unexpected(&other)),
        // A relay of before knows the name by an earlier key, and does not look at what that signed.
        Err(refusal) if rotated && !knows.rotates && refusal.error.code() == "USER_ID_TAKEN" => {
            let reason = "the relay knows this name by an earlier key and does not know how it is handed over: it has to be updated";
            Err(Refusal::fatal(ErrorKind::RotationUnsupported { reason }.into()))
        }
        Err(refusal) => Err(refusal),
    }
}

fn answer(
    challenge: &Challenge,
    login: &Login,
    (mode, resume_cursor): (Mode, bytes::Bytes),
) -> Result<Auth, Refusal> {
    if challenge.protocol_version != stvor_wire::PROTOCOL_VERSION {
        return Err(Refusal::fatal(Error::relay_protocol(format!(
            "it chose protocol version {}, this client speaks {}",
            challenge.protocol_version,
            stvor_wire::PROTOCOL_VERSION
        ))));
    }
    if challenge.app != login.app {
        return Err(Refusal::fatal(
            ErrorKind::AuthFailed {
                reason: format!(
                    "it says that the token belongs to app \"{}\", this client is set up for \"{}\": set app_id",
                    challenge.app, login.app
                ),
            }
            .into(),
        ));
    }
    let transcript = Transcript {
        app: &login.app,
        origin: &login.origin,
        nonce: &challenge.nonce,
        address: &login.address,
        time: challenge.server_time,
        server_version: &challenge.server_version,
    };
    let signature = login.keys.sign_login(&transcript.encode()).map_err(Refusal::fatal)?;
    let (device_list, device_list_signature) = login.keys.device_list();
    Ok(Auth {
        device_list: device_list.into(),
        device_list_signature,
        origin: login.origin.clone(),
        time: challenge.server_time,
        signature,
        mode,
        resume_cursor,
        register: login.keys.registers(),
        replace_identity: login.replace_identity,
        store_mark: Some(login.store_mark),
        rotations: login.keys.rotations().into(),
    })
}

async fn say(socket: &mut Socket, message: &ClientMessage) -> Result<(), Refusal> {
    socket.send(Message::Binary(frame::encode_client(message))).await.map_err(|error| {
        Refusal::retry(Error::unavailable(format!("the connection broke during the log-in: {error}")))
    })
}

async fn hear(socket: &mut Socket, login: &Login, phase: Phase) -> Result<ServerMessage, Refusal> {
    loop {
        let message = match socket.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => {
                return Err(Refusal::retry(Error::unavailable(format!(
                    "the connection broke during the log-in: {error}"
                ))));
            }
            None => {
                return Err(Refusal::retry(Error::unavailable(
                    "the relay closed the connection during the log-in",
                )));
            }
        };
        match message {
            Message::Binary(bytes) => {
                let message = frame::decode_server(bytes, phase)
                    .map_err(|error| Refusal::retry(Error::relay_protocol(error.to_string())))?;
                if let ServerMessage::End(end) = message {
                    return Err(refusal::of_end(end.code, &end.detail, end.retry_after, &login.address.user));
                }
                return Ok(message);
            }
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(frame) => {
                let code = frame.and_then(|frame| stvor_wire::Code::from_close_code(frame.code.into()));
                return Err(match code {
                    Some(code) => refusal::of_end(code, "", std::time::Duration::ZERO, &login.address.user),
                    None => Refusal::retry(Error::unavailable(
                        "the relay closed the connection during the log-in",
                    )),
                });
            }
            Message::Text(_) | Message::Frame(_) => {
                return Err(Refusal::retry(Error::relay_protocol("it sent text where frames belong")));
            }
        }
    }
}

fn unexpected(message: &ServerMessage) -> Refusal {
    let name = match message {
        ServerMessage::Challenge(_) => "a second CHALLENGE",
        ServerMessage::Ready(_) => "READY",
        _ => "another frame",
    };
    Refusal::retry(Error::relay_protocol(format!("it sent {name} where the log-in asks for another frame")))
}
