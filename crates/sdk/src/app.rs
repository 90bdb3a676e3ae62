//! The application at one relay.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use stvor_base::{AppId, UserId};
use tokio::sync::MutexGuard;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, Handle};
use crate::config::{AppBuilder, Config};
use crate::core::Core;
use crate::error::{Error, ErrorKind, Result};

/// How [`App::connect_with`] treats a relay that can not be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectOptions {
    /// Fail when the relay can not be reached, also for a user that registered there before.
    pub require_relay: bool,
    /// Go on without the relay, also for a user that never registered there. Nobody can write to such a user before the
    /// relay was reached once.
    pub allow_unregistered: bool,
    /// Fail with `IDENTITY_EXISTS` when the user has an identity here already: the identity is made now, or not at all.
    pub new_identity: bool,
    /// Fail with `IDENTITY_NOT_FOUND` when the user has none here: nothing is made or registered for a name that was mistyped.
    pub existing: bool,
}

/// An app at a relay: where [`Client`]s come from. Cheap to clone; the clients that it made stay connected until they are
/// closed or the last handle of the app is dropped.
#[derive(Clone)]
pub struct App {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    /// Clients in memory, which nothing but this app knows.
    private: Mutex<HashMap<UserId, Arc<Slot>>>,
    /// Keeps the clients alive.
    clients: Mutex<HashMap<UserId, Client>>,
}

/// The one place where a user of a directory can be opened.
#[derive(Default)]
struct Slot(tokio::sync::Mutex<Open>);

#[derive(Default)]
struct Open {
    handle: Weak<Handle>,
    core: Weak<Core>,
}

impl Open {
    /// The client in it, if there is one that is not closing.
    fn used(&self) -> Option<Arc<Handle>> {
        self.handle.upgrade().filter(|handle| !handle.core().closing.load(Ordering::SeqCst))
    }
}

/// Every directory that is open in this process: two apps on one directory share its clients.
fn registry() -> &'static Mutex<HashMap<PathBuf, Arc<Slot>>> {
    static REGISTRY: OnceLock<Mutex<HashMap<PathBuf, Arc<Slot>>>> = OnceLock::new();
    REGISTRY.get_or_init(Mutex::default)
}

impl App {
    /// Sets up an app.
    #[must_use]
    pub fn builder() -> AppBuilder {
        AppBuilder::default()
    }

    pub(crate) fn new(config: Config) -> Self {
        let inner = Inner { config, private: Mutex::default(), clients: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// The app's id.
    #[must_use]
    pub fn app_id(&self) -> &AppId {
        &self.inner.config.app
    }

    /// The relay's origin: scheme, host and port.
    #[must_use]
    pub fn relay_url(&self) -> String {
        self.inner.config.place.relay.origin()
    }

    /// The directory of this app at this relay; `None` if nothing is kept on this machine.
    #[must_use]
    pub fn data_dir(&self) -> Option<&Path> {
        self.inner.config.place.directory.as_deref()
    }

    /// What production would refuse of this set-up, and what its owner should know; empty when all is well.
    #[must_use]
    pub fn findings(&self) -> &[crate::Finding] {
        &self.inner.config.findings
    }

    /// The users that have a store in the data directory. Stores on servers are not listed: a server holds no names of users, only
    /// keyed hashes of them, so that whoever has its database learns none.
    #[must_use]
    pub fn users(&self) -> Vec<UserId> {
        self.inner.config.place.users()
    }

    /// Opens a user's client: identity, sessions and messages of earlier runs are there, a new user gets an identity and
    /// is registered. Calling it again, also at the same time and from another `App` on the same directory, gives the
    /// same client.
    ///
    /// Waits up to the timeout for the relay. A user that registered before is opened without it, too, and connects by
    /// itself later.
    ///
    /// # Errors
    /// `RELAY_UNAVAILABLE` for a new user when the relay does not answer; `INVALID_APP_TOKEN`, `AUTH_FAILED`,
    /// `USER_ID_TAKEN`, `RATE_LIMITED` when it refuses; `RELAY_PROTOCOL` when it is no relay; what the store or its key
    /// met, `STORE_LOCKED` when another process has the directory open; once `ACCOUNT_DELETED` when an earlier run of the program
    /// ended before it had removed everything of a deleted account, which is done then.
    pub async fn connect(&self, user: impl AsRef<str>) -> Result<Client> {
        self.connect_with(user, ConnectOptions::default()).await
    }

    /// [`connect`](Self::connect) with other rules for a relay that can not be reached.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); `IDENTITY_EXISTS` when a new identity was asked for and there is one, or when the
    /// phrase stands for another; `IDENTITY_NOT_FOUND` when one that exists was asked for and there is none.
    pub async fn connect_with(&self, user: impl AsRef<str>, options: ConnectOptions) -> Result<Client> {
        let user = UserId::new(user.as_ref())?;
        if options.existing && !self.has_identity(&user).await? {
            return Err(ErrorKind::IdentityNotFound { user }.into());
        }
        let slot = self.slot(&user)?;
        // In a task of its own: whoever drops the waiting half-way leaves no store behind that is open and belongs to nobody.
        let wanted = CancellationToken::new();
        let _dropped = wanted.clone().drop_guard();
        let app = self.clone();
        let opening = tokio::spawn(async move { app.open_in(&slot, (user, options), &wanted).await });
        opening.await.map_err(|_| Error::not_ready("its opening did not finish"))?
    }

    /// Opens a user's client in its slot. Who waits for the slot meanwhile gets it as it is afterwards.
    async fn open_in(
        &self,
        slot: &Slot,
        (user, options): (UserId, ConnectOptions),
        dropped: &CancellationToken,
    ) -> Result<Client> {
        let (mut open, used) = slot.free().await?;
        if dropped.is_cancelled() {
            return Err(Error::not_ready("nobody waits for it any more"));
        }
        if let Some(handle) = used {
            if options.new_identity {
                return Err(ErrorKind::IdentityExists { user }.into());
            }
            let client = Client::of(handle);
            self.ready(&client, options).await?;
            self.keep(&user, &client);
            return Ok(client);
        }
        let config = Config { new_identity: options.new_identity, ..self.inner.config.clone() };
        let core = Core::open(config, user.clone()).await?;
        let handle = Arc::new(Handle::new(Arc::clone(&core)));
        (open.handle, open.core) = (Arc::downgrade(&handle), Arc::downgrade(&core));
        let client = Client::of(handle);
        // A store that keeps nothing takes the name with it, which is registered by now, perhaps: the next caller gets this client.
        let keeps = self.inner.config.stores.facts().durable;
        let ready = tokio::select! {
            ready = self.ready(&client, options) => ready,
            () = dropped.cancelled(), if keeps => Err(Error::not_ready("nobody waits for it any more")),
        };
        if let Err(error) = ready {
            give_up(core).await;
            return Err(error);
        }
        self.keep(&user, &client);
        Ok(client)
    }

    /// Closes the clients that this app opened, each as [`Client::close`] does.
    ///
    /// # Errors
    /// None so far.
    pub async fn close(&self) -> Result<()> {
        let clients: Vec<Client> = {
            let mut clients = self.inner.clients.lock().unwrap_or_else(PoisonError::into_inner);
            clients.drain().map(|(_, client)| client).collect()
        };
        futures::future::join_all(clients.iter().map(Client::close)).await;
        Ok(())
    }

    fn slot(&self, user: &UserId) -> Result<Arc<Slot>> {
        // A store on a server is opened by as many processes as like to, so also twice by this one.
        let exclusive = !self.inner.config.stores.facts().shared;
        match self.inner.config.place.make(user)? {
            Some(directory) if exclusive => {
                let mut slots = registry().lock().unwrap_or_else(PoisonError::into_inner);
                // Slots that nobody uses any more would pile up in a process that serves many users.
                if slots.len() > 1_024 {
                    slots.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.in_use());
                }
                Ok(Arc::clone(slots.entry(directory).or_default()))
            }
            _ => {
                let mut slots = self.inner.private.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(Arc::clone(slots.entry(user.clone()).or_default()))
            }
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Does work on the directory of a user that no client has open, and lets none open it meanwhile.
    pub(crate) async fn alone_with<T>(
        &self,
        user: &UserId,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let slot = self.slot(user)?;
        let (_open, used) = slot.free().await?;
        if used.is_some() {
            return Err(Error::config(format!("{user} is connected: close that client first")));
        }
        work.await
    }

    /// Hands the identity of an open client over to a fresh one and opens the client anew, in its slot: whoever asks for it
    /// meanwhile gets the new one. Also gives the fingerprints of both.
    pub(crate) async fn hand_over(&self, core: Arc<Core>) -> Result<((String, String), Client)> {
        let user = core.address.user.clone();
        let (app, slot) = (self.clone(), self.slot(&user)?);
        // In a task of its own: whoever drops the waiting half-way leaves no store behind that belongs to nobody.
        let done = tokio::spawn(async move {
            let mut open = slot.0.lock().await;
            let (keys, next) = core.hand_over(app.inner.config.timeout).await?;
            let handle = Arc::new(Handle::new(Arc::clone(&next)));
            (open.handle, open.core) = (Arc::downgrade(&handle), Arc::downgrade(&next));
            let client = Client::of(handle);
            if let Err(error) = app.ready(&client, ConnectOptions::default()).await {
                give_up(next).await;
                return Err(error);
            }
            app.keep(&user, &client);
            Ok((keys, client))
        });
        done.await.map_err(|_| Error::not_ready("its rotation did not finish"))?
    }

    /// Whether a user has an identity here. None is made by asking, and no directory either.
    pub(crate) async fn has_identity(&self, user: &UserId) -> Result<bool> {
        let config = &self.inner.config;
        if config.place.users().contains(user) {
            return Ok(true);
        }
        let open = {
            let slots = self.inner.private.lock().unwrap_or_else(PoisonError::into_inner);
            slots.get(user).map(Arc::clone)
        };
        // What one that closes leaves is there when it let go of the store.
        if let Some(slot) = open
            && slot.free().await?.1.is_some()
        {
            return Ok(true);
        }
        let directory = config.place.of_user(user);
        if config.stores.facts().local && !directory.as_ref().is_some_and(|directory| directory.exists()) {
            return Ok(false);
        }
        let place = config.place.of_store(&config.app, user, directory.as_ref());
        let store = config.stores.open(&place).await.map_err(Error::passed)?;
        let found = stvor_store::Sealed::info_or_empty(store.as_ref()).await;
        store.close().await.map_err(Error::passed)?;
        match found {
            // Its rows are there, or were: whoever opens it hears what is to be done.
            Err(stvor_store::StoreError::Emptied) => Ok(true),
            found => found.map(|info| info.is_some()).map_err(Error::passed),
        }
    }

    fn keep(&self, user: &UserId, client: &Client) {
        let mut clients = self.inner.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|_, client| !client.is_closed());
        clients.insert(user.clone(), client.clone());
    }

    /// Waits for the relay as far as the options ask for it.
    async fn ready(&self, client: &Client, options: ConnectOptions) -> Result<()> {
        let core = client.core();
        let registered = core.registered.load(Ordering::Relaxed);
        let patient = !options.require_relay && (registered || options.allow_unregistered);
        let timeout = self.inner.config.timeout;
        let mut told = core.first_outcome(timeout).await;
        if core.was_deleting.swap(false, Ordering::SeqCst) {
            // Whether there is an account only the relay knows.
            crate::deletion::resolve(core, told).await?;
            told = Ok(());
        }
        match told {
            Ok(()) => {
                // A new user can be written to when this returns, unless the upload takes longer than anybody waits.
                let _ = tokio::time::timeout(timeout, core.prekeys.reachable()).await;
                Ok(())
            }
            Err(error) => {
                let away = matches!(
                    error.kind(),
                    ErrorKind::RelayUnavailable { .. } | ErrorKind::RateLimited { .. }
                );
                if away && patient { Ok(()) } else { Err(error) }
            }
        }
    }
}

impl Slot {
    /// The place, and the client in it. All who want it wait together for one that closes.
    async fn free(&self) -> Result<(MutexGuard<'_, Open>, Option<Arc<Handle>>)> {
        loop {
            let open = self.0.lock().await;
            let used = open.used();
            let closes = open.core.upgrade().filter(|core| used.is_none() && !*core.closed.borrow());
            let Some(core) = closes else { return Ok((open, used)) };
            drop(open);
            let_go(&core).await?;
        }
    }

    fn in_use(&self) -> bool {
        self.0.try_lock().map_or(true, |open| open.core.strong_count() > 0)
    }
}

impl core::fmt::Debug for App {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("App")
            .field("app_id", self.app_id())
            .field("relay_url", &self.relay_url())
            .finish_non_exhaustive()
    }
}

/// Waits until a client that closes has let go of its store; not for ever, for a store may hang.
async fn let_go(core: &Core) -> Result<()> {
    let mut closed = core.closed.subscribe();
    match tokio::time::timeout(core.config.timeout, closed.wait_for(|closed| *closed)).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::not_ready("it is still closing: its store has not let go; try again")),
    }
}

/// Ends a client that is not handed out. Not waited for without end either: whoever comes next waits for it as for one that closes.
async fn give_up(core: Arc<Core>) {
    core.closing.store(true, Ordering::SeqCst);
    let timeout = core.config.timeout;
    let ending = tokio::spawn(async move { core.end().await });
    let _ = tokio::time::timeout(timeout, ending).await;
}

/// Reads a user's name.
pub(crate) fn user(name: impl AsRef<str>) -> Result<UserId> {
    UserId::new(name.as_ref()).map_err(Error::from)
}
