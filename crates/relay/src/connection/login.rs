//! HELLO, CHALLENGE, AUTH, READY.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::ws::Message;
use bytes::Bytes;
use futures::SinkExt as _;
use stvor_base::Timestamp;
use stvor_crypto::{Random as _, SystemRandom};
use stvor_wire::client::{Auth, ClientMessage, HOLD, Hello, Mode};
use stvor_wire::limits as wire;
use stvor_wire::server::{Challenge, End, Limits, Ready, Resumed};
use stvor_wire::{Code, FrameError, PROTOCOL_VERSION, Phase, ServerMessage, frame};

use super::delivery::Delivery;
use super::{Conn, Peer, Sink, Stream, Who, cursor_of, end, pump, receive};
use crate::auth::{Admission, accepted_origin, prove, rotations_of};
use crate::ratelimit::network_of;
use crate::relay::Relay;
use crate::storage::{Attach, Attached, Consent, Holder, NOT_REGISTERED, Refusal, StoreError, UserKey};

/// Why a device that its user's list left out is logged out.
pub(crate) const NO_LONGER_LISTED: &str = "the device, or its key, is no longer in its user's device list";

/// Why there is no connection: what to tell the client, or nothing when it is gone.
type NoLogin = Option<End>;

fn refused(refusal: &Refusal) -> NoLogin {
    Some(end(refusal.code, refusal.detail))
}

fn store_error(error: StoreError) -> NoLogin {
    match error {
        StoreError::Refused(refusal) => refused(&refusal),
        other => {
            tracing::warn!(error = %other, "a log-in failed in the store");
            Some(end(Code::StoreUnavailable, "the relay can not log anybody in just now: retry"))
        }
    }
}

fn frame_error(error: Option<FrameError>) -> NoLogin {
    error.map(|error| end(error.wire_code(), &error.to_string()))
}

/// Logs a client in.
pub(super) async fn login(
    relay: &Arc<Relay>,
    sink: &mut Sink,
    stream: &mut Stream,
    peer: &Peer,
) -> Result<Arc<Conn>, NoLogin> {
    let hello = match receive(stream, Phase::LoggingIn).await.map_err(frame_error)? {
        ClientMessage::Hello(hello) => hello,
        _ => return Err(Some(end(Code::UnexpectedFrame, "the first frame is HELLO"))),
    };
    let (admission, challenge) = admit(relay, &hello).await?;
    let question = frame::encode_server(&ServerMessage::Challenge(challenge.clone()));
    sink.send(Message::Binary(question)).await.map_err(|_| None)?;
    let auth = match receive(stream, Phase::LoggingIn).await.map_err(frame_error)? {
        ClientMessage::Auth(auth) => auth,
        _ => return Err(Some(end(Code::UnexpectedFrame, "after CHALLENGE comes AUTH"))),
    };
    let origin = accepted_origin(relay, peer, &auth.origin).map_err(|refusal| refused(&refusal))?;
    let list = prove(&challenge, &hello.address, &auth, &origin).map_err(|refusal| refused(&refusal))?;
    let knows_rotations = hello.capabilities.iter().any(|name| name == wire::CAPABILITY_ROTATION);
    let attach = Attach {
        app: (*admission.app).clone(),
        address: hello.address.clone(),
        rotations: rotations_of(&list, &auth).map_err(|refusal| refused(&refusal))?,
        list,
        list_bytes: Bytes::copy_from_slice(&auth.device_list),
        list_signature: auth.device_list_signature,
        permission: admission.permission(&auth),
        receive: auth.mode == Mode::Receive,
        fresh_epoch: fresh_epoch()?,
    };
    take_registration(relay, peer, &attach).await?;
    let attached = match relay.store.attach(attach).await {
        // Who does not know rotations knows no code of theirs either.
        Err(StoreError::Refused(refusal)) if refusal.code == Code::IdentityHandedOver && !knows_rotations => {
            return Err(refused(&Refusal { code: Code::UserIdTaken, ..refusal }));
        }
        other => other.map_err(store_error)?,
    };
    open(relay, admission, hello, &auth, attached).await
}

async fn admit(relay: &Relay, hello: &Hello) -> Result<(Admission, Challenge), NoLogin> {
    if relay.is_draining() {
        return Err(Some(end(Code::Draining, "the relay is stopping: reconnect in a moment")));
    }
    if hello.protocol_version != PROTOCOL_VERSION {
        return Err(Some(end(Code::UnsupportedVersion, "this relay speaks protocol version 1")));
    }
    let now = relay.now();
    let admission =
        relay.doorkeeper.admit(&relay.store, &hello.credential, now).await.map_err(store_error)?;
    admission.names(&hello.address).map_err(|refusal| refused(&refusal))?;
    if let Err(wait) = relay.limiter.logins.take(&admission.app, 1) {
        relay.metrics.rate_limited("login");
        let end = end(Code::RateLimited, "the app logs in too often: retry later");
        return Err(Some(End { retry_after: wait, ..end }));
    }
    let mut nonce = [0; wire::NONCE_BYTES];
    SystemRandom::new().fill(&mut nonce).map_err(|_| no_randomness())?;
    let challenge = Challenge {
        nonce,
        app: (*admission.app).clone(),
        server_time: now,
        server_version: crate::VERSION.to_owned(),
        protocol_version: PROTOCOL_VERSION,
        development: relay.config.development,
        capabilities: [HOLD, wire::CAPABILITY_ROTATION, wire::CAPABILITY_CLONES]
            .into_iter()
            .filter(|known| hello.capabilities.iter().any(|name| name == known))
            .map(str::to_owned)
            .collect(),
    };
    Ok((admission, challenge))
}

/// Takes one registration from the buckets of the app and the address, if the log-in would register a new name.
async fn take_registration(relay: &Relay, peer: &Peer, attach: &Attach) -> Result<(), NoLogin> {
    if attach.permission.register != Consent::Allowed {
        return Ok(());
    }
    let known = relay.store.user_state(&attach.app, &attach.address.user).await.map_err(store_error)?;
    if known.registered {
        return Ok(());
    }
    let of_address = || match peer.remote.is_loopback() {
        true => Ok(()),
        false => relay.limiter.address_registrations.take(&network_of(peer.remote), 1),
    };
    of_address().and_then(|()| relay.limiter.registrations.take(&attach.app, 1)).map_err(|wait| {
        relay.metrics.rate_limited("registration");
        let end = end(Code::RateLimited, "too many new users are registered at once: retry later");
        Some(End { retry_after: wait, ..end })
    })
}

fn no_randomness() -> NoLogin {
    Some(end(Code::Internal, "the relay has no randomness"))
}

fn fresh_epoch() -> Result<u64, NoLogin> {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).map_err(|_| no_randomness())?;
    Ok(u64::from_be_bytes(bytes).max(1))
}

async fn open(
    relay: &Arc<Relay>,
    admission: Admission,
    hello: Hello,
    auth: &Auth,
    attached: Attached,
) -> Result<Arc<Conn>, NoLogin> {
    let receives = auth.mode == Mode::Receive;
    let who = Who {
        app: admission.app,
        address: Arc::new(hello.address),
        device: attached.device,
        generation: attached.generation,
        token: admission.token,
        fence: if receives { attached.fence } else { 0 },
        store_mark: auth.store_mark,
        hears_of_clones: hello.capabilities.iter().any(|name| name == wire::CAPABILITY_CLONES),
    };
    announce(relay, &who, &attached);
    let delivery = receives.then(|| Delivery::new(attached.epoch));
    let conn = Arc::new(Conn::new(relay.hub.next_id(), who, delivery));
    relay.hub.join(&conn).map_err(Some)?;
    let joined = Joined(relay, Some(conn));
    let last_seq = last_seq(relay, (attached.holder(), receives)).await.map_err(store_error)?;
    let Some(conn) = joined.stay() else { return Err(None) };
    let ready = Ready {
        mailbox_epoch: attached.epoch,
        resumed: resumed(relay, &auth.resume_cursor, &attached, relay.now()),
        registration: attached.registration,
        highest_counter: attached.highest_counter,
        counter_mac: attached.counter_mac,
        lost_seq: attached.lost_seq,
        keys: attached.keys,
        limits: Limits {
            max_frame_bytes: narrow(wire::MAX_FRAME_AFTER_AUTH),
            max_blob_bytes: narrow(wire::MAX_BLOB_BYTES),
            window_messages: wire::WINDOW_MESSAGES,
            window_bytes: wire::WINDOW_BYTES,
            retention: relay.config.limits.retention(),
            dedup: crate::limits::DEDUP,
            max_recipients: narrow(wire::MAX_RECIPIENTS),
        },
        resume_cursor: cursor_of(relay, &conn),
        heartbeat: core::time::Duration::from_millis(relay.config.limits.heartbeat_ms),
    };
    conn.say(&ServerMessage::Ready(ready));
    conn.greeted.store(true, Ordering::Release);
    if receives {
        conn.deliver(|delivery, _| delivery.open(last_seq));
        pump::pump(relay, &conn);
    }
    Ok(conn)
}

/// A connection that the hub knows; it leaves again unless it is told to stay, also when the log-in takes too long.
struct Joined<'a>(&'a Relay, Option<Arc<Conn>>);

impl Joined<'_> {
    fn stay(mut self) -> Option<Arc<Conn>> {
        self.1.take()
    }
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        if let Some(conn) = &self.1 {
            self.0.hub.leave(conn);
        }
    }
}

/// The highest seq of a device that receives; refuses one that was removed, or got other keys, since it attached. To
/// be asked once the hub knows the connection: who removes a device looks there after the removal, so that one of the two
/// sees the other.
async fn last_seq(relay: &Relay, (holder, receives): (Holder, bool)) -> Result<u64, StoreError> {
    if receives {
        return relay.store.last_seq(holder).await;
    }
    if relay.store.is_current(holder).await? { Ok(0) } else { Err(StoreError::Refused(NOT_REGISTERED)) }
}

fn narrow(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// Tells those who are concerned that a name appeared or changed hands.
fn announce(relay: &Relay, who: &Who, attached: &Attached) {
    use stvor_wire::server::Registration;
    if attached.registration == Registration::Replaced {
        // Loud: somebody's mail was dropped. The log names nobody.
        tracing::warn!("a name was taken over by another identity; its mail and keys were dropped");
        relay.metrics.identity_replaced();
    }
    if attached.registration == Registration::Rotated {
        tracing::info!("a user's key handed over to another one");
    }
    let why = (Code::LoggedOut, NO_LONGER_LISTED);
    relay.hub.devices_gone(&attached.removed, Some(attached.holder()), why);
    if attached.registration != Registration::Known {
        relay.hub.appeared(&UserKey { app: (*who.app).clone(), user: who.address.user.clone() });
    }
}

fn resumed(relay: &Relay, sealed: &[u8], attached: &Attached, now: Timestamp) -> Resumed {
    let cursor = if sealed.is_empty() { None } else { relay.cursors.open(sealed, now) };
    let usable = |cursor: &crate::cursor::Cursor| {
        cursor.device == attached.device && cursor.epoch == attached.epoch && cursor.seq <= attached.last_seq
    };
    match cursor.filter(usable) {
        None => Resumed::Full,
        Some(cursor) if attached.lost_seq > cursor.seq => Resumed::Gap,
        Some(_) => Resumed::Resumed,
    }
}

#[cfg(test)]
mod tests {
    use stvor_base::devices::{DeviceEntry, DeviceList};
    use stvor_base::rotations::{Rotation, Rotations};
    use stvor_base::{Address, AppId, DeviceId, UserId};
    use stvor_crypto::Secret;
    use stvor_wire::client::Credential;
    use stvor_wire::keys::KeyCounts;
    use stvor_wire::server::Registration;

    use super::*;
    use crate::config::Config;
    use crate::connection::TokenRef;
    use crate::cursor::CursorKey;
    use crate::metrics::Metrics;
    use crate::storage::memory::MemoryStore;
    use crate::storage::{Bounds, MailboxId, SharedStore};

    fn relay() -> Arc<Relay> {
        let store: SharedStore = Arc::new(MemoryStore::new(Bounds::default()));
        let clock = Arc::new(|| Timestamp::from_millis(0));
        let cursors = CursorKey::new(&Secret::new([0; 32]));
        Arc::new(Relay::new(Config::default(), (store, cursors), Metrics::new(), clock).unwrap())
    }

    /// What a log-in gets whose device is removed the moment after.
    fn attached_and_removed() -> Attached {
        Attached {
            device: MailboxId(1),
            generation: 0,
            registration: Registration::Known,
            epoch: 1,
            fence: 1,
            highest_counter: 0,
            counter_mac: None,
            lost_seq: 0,
            last_seq: 0,
            keys: KeyCounts::default(),
            removed: Vec::new(),
        }
    }

    async fn opened(relay: &Arc<Relay>, mode: Mode, attached: Attached) -> Result<Arc<Conn>, NoLogin> {
        let address = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
        let admission = Admission {
            app: Arc::new(AppId::new("acme").unwrap()),
            token: TokenRef::Development,
            user: None,
            may_register: false,
            may_replace: false,
        };
        let credential = Credential::AppToken(String::new());
        let hello = Hello { protocol_version: 1, credential, address, capabilities: Vec::new() };
        let auth = Auth {
            device_list: Bytes::new(),
            device_list_signature: [0; 64],
            origin: String::new(),
            time: Timestamp::from_millis(0),
            signature: [0; 64],
            mode,
            resume_cursor: Bytes::new(),
            register: false,
            replace_identity: false,
            store_mark: None,
            rotations: Bytes::new(),
        };
        open(relay, admission, hello, &auth, attached).await
    }

    #[tokio::test]
    async fn a_device_that_is_removed_while_it_logs_in_is_logged_out() {
        let relay = relay();
        for mode in [Mode::Receive, Mode::SendOnly] {
            let refused = opened(&relay, mode, attached_and_removed()).await.map(|_| ()).unwrap_err();
            assert_eq!(refused.map(|end| end.code), Some(Code::LoggedOut), "{mode:?}");
            assert_eq!(relay.hub.len(), 0, "{mode:?}: nothing stays behind");
        }
    }

    /// The log-in of a key, which `rotations` lead to.
    fn attach_of(key: u8, rotations: Option<Rotations>) -> Attach {
        let list = DeviceList {
            app: AppId::new("acme").unwrap(),
            user: UserId::new("alice").unwrap(),
            user_key: [key; 65].into(),
            version: 1,
            previous: [0; 32],
            devices: vec![DeviceEntry {
                id: DeviceId::FIRST,
                signing_key: [100 + key; 65].into(),
                agreement_key: [200; 65].into(),
            }],
        };
        Attach {
            app: list.app.clone(),
            address: Address::new(list.user.clone(), DeviceId::FIRST),
            list_bytes: list.encode().into(),
            list,
            list_signature: [0; 64],
            rotations: rotations.map(|chain| (chain.clone(), chain.encode().into())),
            permission: crate::storage::Permission { register: Consent::Allowed, replace: false },
            receive: false,
            fresh_epoch: 1,
        }
    }

    /// From the key 1 to the key 2.
    fn rotated() -> Rotations {
        let step = Rotation {
            time: Timestamp::default(),
            new_key: [2; 65].into(),
            by_old: [0; 64],
            by_new: [0; 64],
        };
        Rotations::start([1; 65].into(), step)
    }

    #[tokio::test]
    async fn a_log_in_that_a_rotation_of_its_key_overtakes_gets_no_connection() {
        for mode in [Mode::Receive, Mode::SendOnly] {
            let relay = relay();
            let before = relay.store.attach(attach_of(1, None)).await.unwrap();
            let chain = rotated();
            // The new key is in before the hub knows of the old one, which nobody can put out therefore.
            let after = relay.store.attach(attach_of(2, Some(chain))).await.unwrap();
            assert!(opened(&relay, Mode::SendOnly, after).await.is_ok(), "{mode:?}");
            let refused = opened(&relay, mode, before).await.map(|_| ()).unwrap_err();
            assert_eq!(refused.map(|end| end.code), Some(Code::LoggedOut), "{mode:?}");
            assert_eq!(relay.hub.len(), 1, "{mode:?}: the new key stays");
        }
    }

    #[tokio::test]
    async fn who_rotated_ends_no_connection_of_the_new_key_that_came_between() {
        let relay = relay();
        let before = relay.store.attach(attach_of(1, None)).await.unwrap();
        let old = opened(&relay, Mode::SendOnly, before).await.unwrap();
        let chain = rotated();
        let first = relay.store.attach(attach_of(2, Some(chain.clone()))).await.unwrap();
        // Another of the new key is through before the one that rotated tells the hub.
        let second = relay.store.attach(attach_of(2, Some(chain))).await.unwrap();
        let second = opened(&relay, Mode::SendOnly, second).await.unwrap();
        let first = opened(&relay, Mode::Receive, first).await.unwrap();
        let ending = |conn: &Arc<Conn>| conn.is_ending();
        assert_eq!((ending(&old), ending(&first), ending(&second)), (true, false, false));
    }
}
