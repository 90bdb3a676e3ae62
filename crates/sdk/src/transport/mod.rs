//! The way to the relay: one connection at a time, kept up for as long as the client lives.

pub(crate) mod backoff;
pub(crate) mod dial;
mod gather;
pub(crate) mod login;
pub(crate) mod minimal;
pub(crate) mod refusal;
pub(crate) mod session;
pub(crate) mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use stvor_wire::client::Mode;
use stvor_wire::server::Ready;
use stvor_wire::url::RelayUrl;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::backoff::Backoff;
use self::dial::Speaks;
use self::login::Login;
use self::refusal::Refusal;
use self::session::{Carry, Session, Upcalls};
use crate::error::Error;
use crate::limits;

/// Where the connection stands.
#[derive(Clone)]
pub(crate) enum LinkState {
    /// Dialling or logging in, and how the last attempt ended.
    Connecting(Option<Error>),
    /// Logged in.
    Up(Arc<Session>),
    /// Waiting for the next attempt.
    Waiting(Error),
    /// Given up: the relay refused for good.
    Failed(Error),
    /// Closed by the application.
    Closed,
}

impl LinkState {
    pub(crate) fn session(&self) -> Option<&Arc<Session>> {
        match self {
            Self::Up(session) => Some(session),
            _ => None,
        }
    }
}

/// What the connection needs to know and whom it tells.
pub(crate) struct Link {
    pub(crate) url: RelayUrl,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    pub(crate) login: Login,
    /// Whether a minimal relay may be spoken to.
    pub(crate) minimal: bool,
    pub(crate) timeout: Duration,
    pub(crate) state: watch::Sender<LinkState>,
    pub(crate) stop: CancellationToken,
    /// Starts the connection afresh.
    pub(crate) kick: Arc<Notify>,
    /// Ends a pause before the next attempt.
    pub(crate) hurry: Arc<Notify>,
    /// Counts connections of the client, over all runs.
    pub(crate) generations: Arc<AtomicU64>,
}

/// What happens to the connection, beside [`Upcalls`].
pub(crate) trait Watcher: Upcalls {
    /// An attempt begins.
    fn dialling(&self);
    /// What the next connection is for.
    fn mode(&self) -> Mode;
    /// Logged in. Called before anybody can send on the session.
    fn ready<'a>(&'a self, ready: &'a Ready) -> BoxFuture<'a, ()>;
    /// The same at a minimal relay, which knows of no log-in.
    fn ready_minimal(&self, ready: &Ready);
    /// Frames can be sent.
    fn up(&self);
    /// The connection is gone or could not be made; the next attempt starts after a wait.
    fn lost(&self, error: &Error, attempt: u32, after: Duration);
    /// Whether a connection that was refused for good is tried again all the same.
    fn goes_on(&self, error: &Error) -> bool;
    /// Given up.
    fn failed(&self, error: &Error);
    /// A number that differs between clients, uniform over all values.
    fn jitter(&self) -> u32;
}

/// A connection that was up for this long counts as one that worked.
const STEADY: Duration = Duration::from_secs(5);

impl Link {
    /// Keeps the connection up until it is stopped or refused for good.
    pub(crate) async fn run(self, watcher: Arc<dyn Watcher>) {
        let mut backoff = Backoff::default();
        let mut carry = Carry::default();
        let mut last = None;
        loop {
            watcher.dialling();
            self.state.send_replace(LinkState::Connecting(last.take()));
            let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
            let attempt = self.attempt(generation, &*watcher, (&mut backoff, &mut carry));
            let refusal = tokio::select! {
                refusal = attempt => refusal,
                () = self.stop.cancelled() => break,
            };
            if refusal.fatal && !watcher.goes_on(&refusal.error) {
                self.state.send_replace(LinkState::Failed(refusal.error.clone()));
                watcher.failed(&refusal.error);
                return;
            }
            let least = backoff.next(watcher.jitter(), refusal.retry_after);
            let wait = match carry.drain.take() {
                Some((after, spread)) => {
                    let spread = spread.mul_f64(f64::from(watcher.jitter()) / f64::from(u32::MAX));
                    // Neither can a relay make clients dial without a pause, nor hold them off for ever.
                    after.saturating_add(spread).min(backoff::LONGEST_FLOOR).max(least)
                }
                None => least,
            };
            last = Some(refusal.error.clone());
            self.state.send_replace(LinkState::Waiting(refusal.error.clone()));
            watcher.lost(&refusal.error, backoff.attempts(), wait);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.hurry.notified() => {}
                () = self.stop.cancelled() => break,
            }
        }
        self.state.send_replace(LinkState::Closed);
    }

    async fn attempt(
        &self,
        generation: u64,
        watcher: &dyn Watcher,
        (backoff, carry): (&mut Backoff, &mut Carry),
    ) -> Refusal {
        let deadline = Instant::now() + self.timeout.clamp(Duration::from_secs(1), limits::DEFAULT_TIMEOUT);
        let dialled = dial::dial(&self.url, &self.tls, (deadline, self.minimal)).await;
        let mut socket = match dialled {
            Ok((socket, Speaks::Stvor)) => socket,
            Ok((socket, Speaks::Minimal)) => {
                return self.attempt_minimal(socket, generation, (watcher, backoff)).await;
            }
            Err(refusal) => return refusal,
        };
        let mode = watcher.mode();
        let resume = (mode, carry.cursor.clone());
        let login::LoggedIn { ready, knows } =
            match login::log_in(&mut socket, &self.login, resume, deadline).await {
                Ok(logged_in) => logged_in,
                Err(refusal) => return refusal,
            };
        carry.cursor = ready.resume_cursor.clone();
        watcher.ready(&ready).await;
        let (session, ends) = Session::new(generation, ready, (self.login.address.user.clone(), knows));
        let running = session::run(socket, &session, ends, (watcher, carry));
        self.keep_up(&session, running, (watcher, backoff, mode)).await
    }

    /// The server took the minimal relay's offer: whether it is one shows when it repeats our announcement.
    async fn attempt_minimal(
        &self,
        mut socket: dial::Socket,
        generation: u64,
        (watcher, backoff): (&dyn Watcher, &mut Backoff),
    ) -> Refusal {
        if self.login.keys.has_logged_in() {
            // Nobody can force a client back to a relay that promises less.
            return Refusal::retry(Error::relay_protocol(
                "it speaks only the minimal JSON protocol, and this store has spoken stvor.v1 at this address before, which it never \
                 goes back from: where both are yours, run this one on another port, or give the user another data directory",
            ));
        }
        let mode = watcher.mode();
        let me = &self.login.address;
        let nonce = u64::from(watcher.jitter()) << 32 | u64::from(watcher.jitter());
        let greeting = match minimal::greet(&mut socket, &me.user, nonce).await {
            Ok(greeting) => greeting,
            Err(refusal) => return refusal,
        };
        let ready = minimal::ready();
        watcher.ready_minimal(&ready);
        let (session, ends) = Session::minimal(generation, ready, me.user.clone());
        let parts = (watcher as &dyn Upcalls, &*self.login.keys, me.clone());
        let running = minimal::run((socket, greeting), &session, ends, parts);
        self.keep_up(&session, running, (watcher, backoff, mode)).await
    }

    /// Lets a connection run until it ends, or is to be started afresh.
    async fn keep_up(
        &self,
        session: &Arc<Session>,
        running: impl Future<Output = Refusal>,
        (watcher, backoff, mode): (&dyn Watcher, &mut Backoff, Mode),
    ) -> Refusal {
        let up_since = Instant::now();
        // A kick from before was meant for the connection before.
        let _ = self.kick.notified().now_or_never();
        if watcher.mode() != mode {
            return Refusal::retry(Error::unavailable("the connection was started for another use"));
        }
        self.state.send_replace(LinkState::Up(Arc::clone(session)));
        watcher.up();
        let refusal = tokio::select! {
            refusal = running => refusal,
            () = self.kick.notified() => Refusal::retry(Error::unavailable("the connection was started afresh")),
        };
        // A relay that lets clients in and drops them at once must not be dialled ever faster.
        if up_since.elapsed() >= STEADY {
            backoff.reset();
        }
        refusal
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use stvor_base::{Address, AppId, DeviceId, MessageId, UserId};
    use stvor_wire::client::Credential;
    use stvor_wire::keys::KeyCounts;
    use stvor_wire::server::{Deliver, Nack};

    use super::*;
    use crate::error::Result;

    struct NoKeys;

    impl login::LoginKeys for NoKeys {
        fn device_list(&self) -> (Vec<u8>, [u8; 64]) {
            (Vec::new(), [0; 64])
        }

        fn rotations(&self) -> Vec<u8> {
            Vec::new()
        }

        fn sign_login(&self, _: &[u8]) -> Result<[u8; 64]> {
            Ok([0; 64])
        }

        fn registers(&self) -> bool {
            true
        }

        fn has_logged_in(&self) -> bool {
            false
        }
    }

    /// Notes how attempts ended, and lets one be waited for.
    #[derive(Default)]
    struct Ends(Mutex<Vec<String>>, Notify);

    impl Upcalls for Ends {
        fn deliver(&self, _: Deliver) {}
        fn accepted(&self, _: MessageId) {}
        fn came(&self, _: &Address) {}
        fn refused(&self, _: Nack) {}
        fn keys_low(&self, _: KeyCounts) {}
        fn draining(&self) {}
        fn clone_seen(&self) {}
        fn caught_up(&self) {}
    }

    impl Watcher for Ends {
        fn dialling(&self) {}
        fn mode(&self) -> Mode {
            Mode::Receive
        }
        fn ready<'a>(&'a self, _: &'a Ready) -> BoxFuture<'a, ()> {
            Box::pin(core::future::ready(()))
        }
        fn ready_minimal(&self, _: &Ready) {}
        fn up(&self) {}
        fn lost(&self, error: &Error, _: u32, _: Duration) {
            self.0.lock().unwrap().push(error.to_string());
            self.1.notify_one();
        }
        fn goes_on(&self, _: &Error) -> bool {
            false
        }
        fn failed(&self, _: &Error) {}
        fn jitter(&self) -> u32 {
            0
        }
    }

    #[tokio::test]
    async fn a_kick_while_there_is_no_connection_ends_no_attempt() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: RelayUrl = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (kick, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let link = Link {
            login: Login {
                address: Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST),
                app: AppId::new("app").unwrap(),
                origin: url.origin(),
                credential: Credential::AppToken("stvor_dev_test123".into()),
                replace_identity: false,
                store_mark: [0; stvor_wire::limits::STORE_MARK_BYTES],
                keys: Box::new(NoKeys),
            },
            url,
            tls: tls::client_config(&[]).unwrap(),
            minimal: false,
            timeout: limits::DEFAULT_TIMEOUT,
            state: watch::Sender::new(LinkState::Connecting(None)),
            stop: stop.clone(),
            kick: Arc::clone(&kick),
            hurry: Arc::default(),
            generations: Arc::default(),
        };
        let ends = Arc::new(Ends::default());
        kick.notify_one();
        let running = tokio::spawn(link.run(Arc::clone(&ends) as Arc<dyn Watcher>));
        for _ in 0..8 {
            // A server that hangs up at once: only an attempt that reaches it ends like that.
            drop(listener.accept().await.unwrap());
            kick.notify_one();
            ends.1.notified().await;
            if ends.0.lock().unwrap().len() >= 2 {
                break;
            }
        }
        stop.cancel();
        running.await.unwrap();
        let ends = ends.0.lock().unwrap();
        assert!(ends.iter().all(|end| !end.contains("afresh")), "{ends:?}");
    }
}
