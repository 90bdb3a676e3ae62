//! What the connection tells, handed on: mail to lanes, states to the application.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use stvor_base::{Address, MessageId};
use stvor_crypto::SystemRandom;
use stvor_store::{ChangeSet, Sealed, Table};
use stvor_wire::client::Mode;
use stvor_wire::keys::KeyCounts;
use stvor_wire::limits::STORE_MARK_BYTES;
use stvor_wire::server::{Deliver, Nack, Ready, Subject};

use crate::core::{Core, random};
use crate::error::{Error, Result};
use crate::events::{ConnectionState, Event};
use crate::keys;
use crate::lane::Mail;
use crate::metrics;
use crate::transport::Watcher;
use crate::transport::login::{Login, LoginKeys};
use crate::transport::session::Upcalls;

/// How this client logs in.
pub(crate) fn login_of(core: &Arc<Core>) -> Login {
    Login {
        address: core.address.clone(),
        app: core.config.app.clone(),
        origin: core.config.place.relay.origin(),
        credential: core.config.credential.clone(),
        replace_identity: core.config.replace_identity,
        store_mark: mark_of(&core.store),
        keys: Box::new(Keys(Arc::downgrade(core))),
    }
}

/// What the relay may know of a store: the first half of a keyed hash that only who can open the store can make.
fn mark_of(store: &Sealed) -> [u8; STORE_MARK_BYTES] {
    let mut mark = [0; STORE_MARK_BYTES];
    let tag = store.tag(Table::Header, b"the relay's mark of this store");
    mark.iter_mut().zip(tag).for_each(|(to, from)| *to = from);
    mark
}

struct Keys(Weak<Core>);

impl LoginKeys for Keys {
    fn device_list(&self) -> (Vec<u8>, [u8; 64]) {
        let Some(core) = self.0.upgrade() else { return (Vec::new(), [0; 64]) };
        let list = core.identity.signed_list();
        // An identity that was loaded or made has a signature of 64 bytes.
        (list.bytes.clone(), list.signature.as_slice().try_into().unwrap_or([0; 64]))
    }

    fn rotations(&self) -> Vec<u8> {
        let core = self.0.upgrade();
        core.and_then(|core| core.identity.rotations().map(|chain| chain.encode())).unwrap_or_default()
    }

    fn sign_login(&self, transcript: &[u8]) -> Result<[u8; 64]> {
        let core = self.0.upgrade().ok_or_else(|| Error::not_ready("it is closed"))?;
        core.identity.sign_login(transcript).map_err(Error::passed)
    }

    fn registers(&self) -> bool {
        self.0.upgrade().is_some_and(|core| !core.deleting.load(Ordering::SeqCst))
    }

    fn has_logged_in(&self) -> bool {
        self.0.upgrade().is_some_and(|core| core.registered.load(Ordering::Relaxed))
    }
}

/// Observes the connection of one client without keeping the client alive.
pub(crate) struct Observer(Weak<Core>);

impl Observer {
    pub(crate) fn new(core: Weak<Core>) -> Self {
        Self(core)
    }

    fn with(&self, act: impl FnOnce(&Core)) {
        if let Some(core) = self.0.upgrade() {
            act(&core);
        }
    }
}

impl Upcalls for Observer {
    fn deliver(&self, deliver: Deliver) {
        self.with(|core| {
            if let Some(session) = core.session() {
                let from = deliver.from.clone();
                core.mail(&from, Mail::Deliver(Box::new(deliver), session));
            }
        });
    }

    fn accepted(&self, id: MessageId) {
        self.with(|core| {
            if let Some(peer) = core.routed(id) {
                core.mail(&peer, Mail::Accepted(id));
            }
        });
    }

    fn came(&self, who: &Address) {
        self.with(|core| core.came(who));
    }

    fn refused(&self, nack: Nack) {
        self.with(|core| {
            let Subject::Message(id) = nack.subject else { return };
            // An id that is not on its way is that of an ACK: nothing follows from it.
            if let Some(peer) = core.routed(id) {
                core.mail(&peer, Mail::Refused(Box::new(nack)));
            }
        });
    }

    fn keys_low(&self, counts: KeyCounts) {
        self.with(|core| {
            core.hub.emit(Event::PrekeysLow { remaining: counts.one_time.min(counts.kem_one_time) });
            core.prekeys.hurry(counts);
        });
    }

    fn clone_seen(&self) {
        self.with(|core| {
            tracing::warn!(
                "somebody logged in as this device with its keys in another store, and was refused"
            );
            core.hub.emit_to_first(Event::CloneDetected);
        });
    }

    fn draining(&self) {
        self.with(|core| core.hub.emit(Event::RelayDraining));
    }

    fn caught_up(&self) {
        self.with(|core| {
            core.state.send_replace(ConnectionState::Online);
            core.hub.emit(Event::CaughtUp);
        });
    }
}

impl Watcher for Observer {
    fn dialling(&self) {
        self.with(|core| {
            core.state.send_replace(ConnectionState::Connecting);
        });
    }

    fn mode(&self) -> Mode {
        match self.0.upgrade() {
            Some(core) if !core.instances.receives() => Mode::SendOnly,
            _ => Mode::Receive,
        }
    }

    fn ready<'a>(&'a self, ready: &'a Ready) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(core) = self.0.upgrade() {
                crate::rollback::look_for(&core, ready).await;
                look_for_loss(&core, ready).await;
                logged_in(&core, ready);
            }
        })
    }

    fn ready_minimal(&self, ready: &Ready) {
        self.with(|core| {
            metrics::connected();
            core.clear_routes();
            if !core.warned_of_minimal.swap(true, Ordering::Relaxed) {
                core.hub.emit_to_first(Event::RelayNotDurable);
            }
            connected(core, ready);
        });
    }

    fn up(&self) {
        self.with(Core::wake_lanes);
    }

    fn lost(&self, error: &Error, attempt: u32, after: Duration) {
        self.with(|core| {
            core.state.send_replace(ConnectionState::Offline);
            if error.code() == "CLONE_DETECTED" {
                core.hub.emit(Event::CloneDetected);
            }
            if attempt <= 1 {
                core.hub.emit(Event::Offline { code: error.code() });
            }
            core.hub.emit(Event::Reconnecting { attempt, after });
            core.wake_lanes();
        });
    }

    fn goes_on(&self, error: &Error) -> bool {
        let Some(core) = self.0.upgrade() else { return false };
        // Another instance receives now: this one goes on sending.
        let handed_over = core.instances.is_shared() && error.code() == "SUPERSEDED";
        if handed_over {
            core.instances.hurry();
        }
        handed_over
    }

    fn failed(&self, error: &Error) {
        self.with(|core| {
            core.state.send_replace(ConnectionState::Failed(error.code()));
            let superseded = error.code() == "SUPERSEDED";
            core.hub.emit(if superseded { Event::Superseded } else { Event::Offline { code: error.code() } });
            core.wake_lanes();
        });
    }

    fn jitter(&self) -> u32 {
        random(&mut SystemRandom::new()).map_or(u32::MAX / 2, u32::from_be_bytes)
    }
}

/// What follows from a log-in.
fn logged_in(core: &Core, ready: &Ready) {
    metrics::connected();
    core.clear_routes();
    if !core.registered.swap(true, Ordering::Relaxed) {
        remember_registration(core);
    }
    connected(core, ready);
}

fn connected(core: &Core, ready: &Ready) {
    core.prekeys.hurry(ready.keys);
    core.look_at_settings.notify_one();
    core.state.send_replace(ConnectionState::CatchingUp);
    core.hub.emit(Event::Connected);
    core.hub.emit(Event::CatchingUp);
}

/// Whether mail was lost at the relay since this store was last told so.
async fn look_for_loss(core: &Core, ready: &Ready) {
    if ready.lost_seq == 0 || !core.instances.receives() {
        return;
    }
    let key = keys::meta("mail_lost");
    let mut now = ready.mailbox_epoch.to_be_bytes().to_vec();
    now.extend(ready.lost_seq.to_be_bytes());
    let known = match core.store.one(&key).await {
        Ok(row) => row,
        Err(error) => {
            tracing::warn!(
                code = stvor_base::ErrorCode::code(&error),
                "what is known of lost mail could not be read"
            );
            return;
        }
    };
    // Of another epoch nothing is known.
    let told = known.is_some_and(|row| {
        let row = row.value.expose();
        row.get(..8) == now.get(..8) && row >= now.as_slice()
    });
    if told {
        return;
    }
    core.hub.emit_to_first(Event::MailLost);
    let mut changes = ChangeSet::new();
    changes.put(key, now);
    if let Err(error) = core.store.commit(changes).await {
        tracing::warn!(code = stvor_base::ErrorCode::code(&error), "that mail was lost will be told again");
    }
}

/// From now on the client starts without its relay.
fn remember_registration(core: &Core) {
    let me = core.me();
    core.tasks.spawn(async move {
        let Some(core) = me.upgrade() else { return };
        let mut changes = ChangeSet::new();
        changes.put(keys::meta("registered"), vec![1]);
        if let Err(error) = core.store.commit(changes).await {
            tracing::warn!(code = stvor_base::ErrorCode::code(&error), "the registration could not be noted");
        }
    });
}
