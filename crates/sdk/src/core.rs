//! What the rooms of one client share: identity, store, connection, lanes.

use std::collections::{BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt as _;
use stvor_base::{Address, DeviceId, GroupId, MessageId, Suite, Timestamp, UserId};
use stvor_crypto::{Random as _, SystemRandom};
use stvor_protocol::{CounterKey, Identity};
use stvor_store::{ChangeSet, Expect, Op, Scan, Sealed, StoreError, Table};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::events::{ConnectionState, Event, Hub};
use crate::executor::Pressure;
use crate::failures::Failures;
use crate::groups::{Desk, GroupRoom};
use crate::guards::Guards;
use crate::inbox::Inbox;
use crate::instances::Instances;
use crate::keys;
use crate::lane::{self, LaneHandle, Mail, Work};
use crate::left::Left;
use crate::limits;
use crate::opening::{load_identity, open_store, read_lanes, read_peers};
use crate::parked::Parked;
use crate::prekeys::PrekeyKeeper;
use crate::receipt::Watchers;
use crate::revival::{Kicks, Revival};
use crate::rollback::Rollback;
use crate::rows::{LaneRow, PeerRow};
use crate::transport::session::Session;
use crate::transport::{Link, LinkState};

/// One client: everything but the handle that the application holds.
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) address: Address,
    pub(crate) identity: Identity,
    pub(crate) store: Arc<Sealed>,
    /// The application's own stores, where it has some.
    pub(crate) guards: Option<Arc<Guards>>,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) hub: Hub,
    pub(crate) inbox: Arc<Inbox>,
    /// Who else has the store open, and which of them receives.
    pub(crate) instances: Arc<Instances>,
    pub(crate) watchers: Watchers,
    pub(crate) link: watch::Sender<LinkState>,
    pub(crate) state: watch::Sender<ConnectionState>,
    pub(crate) prekeys: PrekeyKeeper,
    pub(crate) failures: Failures,
    /// Whose mail is left at the relay until a later connection brings it.
    pub(crate) left: Left,
    /// Mail that waits for answers to questions of trust.
    pub(crate) parked: Arc<Parked>,
    /// The way to the task that keeps groups.
    pub(crate) groups: Desk,
    /// The relay was logged in to at least once with this identity.
    pub(crate) registered: AtomicBool,
    /// The application was told that the relay keeps nothing.
    pub(crate) warned_of_minimal: AtomicBool,
    /// Messages and receipts that the relay has not accepted, over all lanes: not those that another instance has sealed and sends.
    pub(crate) unaccepted: AtomicUsize,
    /// What the application asked to be sent and that is neither refused nor stored.
    pub(crate) under_way: AtomicUsize,
    pub(crate) settled: Notify,
    pub(crate) closing: AtomicBool,
    /// The code of what ended the client, if nobody here did.
    pub(crate) ended_by: OnceLock<&'static str>,
    /// The relay was asked to delete the account: nobody registers it anew before it is known whether it did.
    pub(crate) deleting: AtomicBool,
    /// An earlier run of the program did that.
    pub(crate) was_deleting: AtomicBool,
    pub(crate) kick: Arc<Notify>,
    /// Ends a pause of the connection before its next attempt.
    pub(crate) hurry: Arc<Notify>,
    /// A kick is on its way.
    pub(crate) kicking: Arc<AtomicBool>,
    pub(crate) stop: CancellationToken,
    /// Ends after `stop`, when no lane can bring anything any more.
    pub(crate) stop_acks: CancellationToken,
    pub(crate) tasks: TaskTracker,
    pub(crate) ack_tasks: TaskTracker,
    pub(crate) closed: watch::Sender<bool>,
    lanes: Mutex<HashMap<Address, LaneHandle>>,
    /// Those that have something to do and could not be woken, for too many are awake.
    to_wake: Mutex<BTreeSet<Address>>,
    /// What waits in all lanes.
    pub(crate) pressure: Arc<Pressure>,
    /// Lanes that ended by a fault.
    pub(crate) revival: Revival,
    kicks: Arc<Kicks>,
    /// Looks for prekeys of strangers.
    pub(crate) stranger_fetches: Arc<tokio::sync::Semaphore>,
    routes: Mutex<HashMap<MessageId, Address>>,
    peers: Mutex<HashMap<UserId, PeerRow>>,
    counter: AtomicU64,
    order: AtomicU64,
    /// The keys of the safety numbers that were shown last.
    shown: Mutex<HashMap<UserId, Vec<u8>>>,
    /// Users of other suites that were told of.
    told_suites: Mutex<HashMap<UserId, Suite>>,
    rollback: Mutex<Option<Rollback>>,
    /// Held by whoever is getting out of an old copy of the store.
    pub(crate) recovering: tokio::sync::Mutex<()>,
    /// How often somebody asked for that to be done beside them since nothing is left to do: 0 if nobody is at it.
    pub(crate) recovery_asked: AtomicUsize,
    /// Held by whoever replaces the data key of the store.
    pub(crate) rotating: tokio::sync::Mutex<()>,
    /// Has the settings of the store's server looked at.
    pub(crate) look_at_settings: Notify,
    /// Proves that send counters are ours.
    pub(crate) counter_key: CounterKey,
    me: Weak<Core>,
}

/// Even an impatient application gives the relay this long to answer a log-in.
const MIN_CONNECT: Duration = Duration::from_millis(100);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    /// Opens store and identity of a user and starts the tasks. Nothing waits for the relay.
    pub(crate) async fn open(config: Config, user: UserId) -> Result<Arc<Self>> {
        let directory = config.place.make(&user)?;
        let hub = Hub::new();
        let place = config.place.of_store(&config.app, &user, directory.as_ref());
        if !config.findings.is_empty() && !config.told.swap(true, Ordering::Relaxed) {
            hub.emit_early(Event::DevelopmentMode { findings: config.findings.to_vec() });
        }
        let (store, guards) = open_store(&config, &place, &hub).await?;
        let (store, guards) = (Arc::new(store), guards.map(Arc::new));
        let opened = Self::open_on((Arc::clone(&store), guards), (config, user), (directory, hub)).await;
        if opened.is_err() {
            // The lock is free again when the caller hears of it.
            store.close().await.map_err(Error::passed)?;
        }
        opened
    }

    async fn open_on(
        (store, guards): (Arc<Sealed>, Option<Arc<Guards>>),
        (config, user): (Config, UserId),
        (directory, hub): (Option<PathBuf>, Hub),
    ) -> Result<Arc<Self>> {
        crate::backup::refuse_unfinished(&store, &user).await?;
        let address = Address::new(user, DeviceId::FIRST);
        let now = config.clock.now();
        let pair = guards.as_ref().map(|guards| guards.identity());
        let identity = load_identity((&store, pair), (&config, &address), now).await?;
        // Before anything is read that only the instance that receives may rely on.
        let instances = Arc::new(match config.is_shared() {
            true => Instances::join(&store, config.lease, now).await?,
            false => Instances::only(),
        });
        let lanes = read_lanes(&store).await?;
        let peers = read_peers(&store).await?;
        let facts = store
            .get(&[keys::meta("registered"), keys::meta("counter"), keys::meta("order")])
            .await
            .map_err(Error::passed)?;
        let deleting = crate::deletion::is_under_way(&store).await?;
        let registered = facts.first().is_some_and(Option::is_some);
        let fact = |at: usize| {
            let row = facts.get(at).and_then(Option::as_ref);
            row.and_then(|row| row.value.expose().try_into().ok()).map_or(0, u64::from_be_bytes)
        };
        let floor = fact(1);
        let counter_key = identity.counter_key().map_err(Error::passed)?;
        let counter = lanes.iter().map(|(_, row)| row.counter).max().unwrap_or(0).max(floor);
        let order = lanes.iter().map(|(_, row)| row.order).max().unwrap_or(0).max(fact(2));
        let (inbox, consumed) = Inbox::open(Arc::clone(&store), Arc::clone(&instances)).await?;
        let prekeys = PrekeyKeeper::load(&store).await?;
        let failures = Failures::load(&store).await?;
        let parked = Arc::new(Parked::load(&store).await?);
        let (groups, orders) = Desk::open(&store, instances.is_shared()).await?;
        let pressure = Arc::new(Pressure::new(config.executor));
        let core = Arc::new_cyclic(|me| Self {
            config,
            address,
            identity,
            store,
            guards,
            directory,
            hub,
            inbox,
            instances,
            watchers: Watchers::default(),
            link: watch::Sender::new(LinkState::Connecting(None)),
            state: watch::Sender::new(ConnectionState::Connecting),
            prekeys,
            failures,
            left: Left::default(),
            parked,
            groups,
            registered: AtomicBool::new(registered),
            warned_of_minimal: AtomicBool::new(false),
            unaccepted: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            settled: Notify::new(),
            closing: AtomicBool::new(false),
            ended_by: OnceLock::new(),
            deleting: AtomicBool::new(deleting),
            was_deleting: AtomicBool::new(deleting),
            kick: Arc::new(Notify::new()),
            hurry: Arc::default(),
            kicking: Arc::default(),
            stop: CancellationToken::new(),
            stop_acks: CancellationToken::new(),
            tasks: TaskTracker::new(),
            ack_tasks: TaskTracker::new(),
            closed: watch::Sender::new(false),
            lanes: Mutex::default(),
            to_wake: Mutex::default(),
            pressure,
            revival: Revival::default(),
            kicks: Arc::default(),
            stranger_fetches: Arc::new(tokio::sync::Semaphore::new(limits::STRANGER_FETCHES)),
            routes: Mutex::default(),
            peers: Mutex::new(peers),
            counter: AtomicU64::new(counter),
            order: AtomicU64::new(order),
            shown: Mutex::default(),
            told_suites: Mutex::default(),
            rollback: Mutex::default(),
            recovering: tokio::sync::Mutex::default(),
            recovery_asked: AtomicUsize::new(0),
            rotating: tokio::sync::Mutex::default(),
            look_at_settings: Notify::new(),
            counter_key,
            me: me.clone(),
        });
        let (inbox, consumed) = (Arc::clone(&core.inbox), Arc::new(consumed.into()));
        let stop = core.stop_acks.clone();
        let acks = move || Arc::clone(&inbox).run_acks(Arc::clone(&consumed), stop.clone());
        let client = (core.me.clone(), core.stop_acks.clone());
        core.ack_tasks.spawn(crate::revival::keep("inbox", acks, client));
        crate::rollback::resume(&core).await?;
        core.start_link()?;
        let me = core.me.clone();
        let stop = core.stop.clone();
        let upkeep = move || crate::upkeep::run(me.clone(), stop.clone());
        core.tasks.spawn(crate::revival::keep("upkeep", upkeep, (core.me.clone(), core.stop.clone())));
        // What other instances left pending they send themselves, unless they come to an end.
        if core.instances.receives() {
            core.wake_lanes_with_work(lanes);
        }
        let (me, stop) = (core.me.clone(), core.stop.clone());
        let orders = Arc::new(tokio::sync::Mutex::new(orders));
        let groups = move || crate::groups::run(me.clone(), Arc::clone(&orders), stop.clone());
        core.tasks.spawn(crate::revival::keep("groups", groups, (core.me.clone(), core.stop.clone())));
        core.watch_store();
        core.watch_put_back();
        Ok(core)
    }

    /// A store that lacks what it acknowledged to this client takes nothing more before somebody knows what follows from that.
    fn watch_put_back(&self) {
        let (me, store, stop) = (self.me.clone(), Arc::clone(&self.store), self.stop.clone());
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = store.put_back() => {}
                    () = stop.cancelled() => return,
                }
                let Some(core) = me.upgrade() else { return };
                let Err(error) = crate::rollback::found_put_back(&core).await else { continue };
                drop(core);
                tracing::warn!(
                    code = error.code(),
                    "what follows from a store that was put back has to wait"
                );
                tokio::select! {
                    () = tokio::time::sleep(limits::BACKOFF_FIRST) => {}
                    () = stop.cancelled() => return,
                }
            }
        });
    }

    /// A store that is emptied under this client takes nothing more and knows nothing any more: the client says so and ends.
    fn watch_store(&self) {
        let (me, store, stop) = (self.me.clone(), Arc::clone(&self.store), self.stop.clone());
        // Not one of the tasks that the end waits for.
        tokio::spawn(async move {
            tokio::select! {
                () = store.emptied() => {}
                () = stop.cancelled() => return,
            }
            let Some(core) = me.upgrade() else { return };
            let error = Error::passed(StoreError::Emptied);
            tracing::error!(code = error.code(), "{error}");
            let _ = core.ended_by.set(error.code());
            core.hub.emit_to_first(Event::StoreFailing { code: error.code() });
            core.state.send_replace(ConnectionState::Failed(error.code()));
            core.instances.abandon();
            if !core.closing.swap(true, Ordering::SeqCst) {
                core.end().await;
            }
        });
    }

    /// Why a client that is closed does nothing.
    pub(crate) fn closed_error(&self) -> Error {
        if self.store.is_emptied() {
            Error::passed(StoreError::Emptied)
        } else {
            Error::not_ready("it is closed")
        }
    }

    fn start_link(&self) -> Result<()> {
        let tls = crate::transport::tls::client_config(&self.config.roots)?;
        let (me, generations) = (self.me.clone(), Arc::default());
        let run = move || keep_connected(me.clone(), Arc::clone(&tls), Arc::clone(&generations));
        self.tasks.spawn(crate::revival::keep("connection", run, (self.me.clone(), self.stop.clone())));
        Ok(())
    }

    /// Messages that were pending when the store was closed go on by themselves.
    pub(crate) fn wake_lanes_with_work(&self, lanes: Vec<(Address, LaneRow)>) {
        let (me, stop) = (self.me.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            for peer in me.upgrade().map(|core| core.parked.peers()).unwrap_or_default() {
                let Some(core) = me.upgrade() else { return };
                core.wake(&peer);
            }
            for (peer, row) in lanes {
                loop {
                    let Some(core) = me.upgrade() else { return };
                    let found = match row.due.is_empty() && row.announce.is_none() {
                        true => core.has_pending(&peer).await,
                        false => Ok(true),
                    };
                    match found {
                        Err(error) if error.retryable() => {
                            tracing::debug!(code = error.code(), "what is pending can not be read just now");
                        }
                        Ok(false) => break,
                        // What can not be read its lane tells of.
                        Ok(true) | Err(_) => {
                            core.wake(&peer);
                            break;
                        }
                    }
                    drop(core);
                    tokio::select! {
                        () = tokio::time::sleep(limits::BACKOFF_FIRST) => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        });
    }

    /// Whether something for a peer is in the outbox.
    async fn has_pending(&self, peer: &Address) -> Result<bool> {
        let scan = Scan::of(Table::Outbox, keys::pending_of(peer)).limit(1);
        self.store.scan(scan).await.map(|page| !page.rows.is_empty()).map_err(Error::passed)
    }

    /// Wakes the lane of a peer: where too many are awake, as soon as there are fewer.
    fn wake(&self, peer: &Address) {
        // One that rests after a fault is woken when that is over.
        if self.work(peer, Work::Wake).is_ok() || self.revival.is_waiting(peer) {
            return;
        }
        let first = {
            let mut late = lock(&self.to_wake);
            let first = late.is_empty();
            late.insert(peer.clone());
            first
        };
        if !first {
            return;
        }
        let (me, stop) = (self.me.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(limits::BACKOFF_FIRST) => {}
                    () = stop.cancelled() => return,
                }
                let Some(core) = me.upgrade() else { return };
                if core.wake_late() {
                    return;
                }
            }
        });
    }

    /// Wakes as many as may be awake of those that could not be woken; whether none is left.
    fn wake_late(&self) -> bool {
        let mut late = lock(&self.to_wake);
        let mut full = false;
        late.retain(|peer| {
            full = full || self.work(peer, Work::Wake).is_err() && !self.revival.is_waiting(peer);
            full
        });
        late.is_empty()
    }

    pub(crate) fn me(&self) -> Weak<Core> {
        self.me.clone()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.config.clock.now()
    }

    /// The next `order`: the time, pushed forward so that it rises even when the clock is set back.
    pub(crate) fn next_order(&self, now: Timestamp) -> u64 {
        let next = |last: u64| Some(now.as_millis().max(last.saturating_add(1)));
        let last = self.order.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_default();
        now.as_millis().max(last.saturating_add(1))
    }

    /// The order of messages goes on from here.
    pub(crate) fn raise_order(&self, floor: u64) {
        self.order.fetch_max(floor, Ordering::Relaxed);
    }

    /// The next number of a send, above `floor`. Instances that share a store take the time (in microseconds) for it: so a
    /// copy of the store that lacks the latest sends has a lower one than the relay saw, whichever instance sent them,
    /// as far as their clocks agree.
    pub(crate) fn next_counter(&self, floor: u64) -> u64 {
        let least = match self.instances.is_shared() {
            true => floor.max(self.now().as_millis().saturating_mul(1_000)),
            false => floor,
        };
        let next = |last: u64| Some(last.max(least).saturating_add(1));
        let last = self.counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_default();
        last.max(least).saturating_add(1)
    }

    pub(crate) fn counter(&self) -> u64 {
        self.counter.load(Ordering::Relaxed)
    }

    pub(crate) fn raise_counter(&self, floor: u64) {
        self.counter.fetch_max(floor, Ordering::Relaxed);
    }

    /// The connection, if there is one.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.link.borrow().session().cloned()
    }

    /// The connection; waits for one up to `timeout`.
    pub(crate) async fn online(&self, timeout: Duration) -> Result<Arc<Session>> {
        let mut link = self.link.subscribe();
        let up = link
            .wait_for(|state| matches!(state, LinkState::Up(_) | LinkState::Failed(_) | LinkState::Closed));
        let state = match tokio::time::timeout(timeout, up).await {
            Ok(Ok(state)) => state.clone(),
            Ok(Err(_)) => return Err(Error::not_ready("it was closed")),
            Err(_) => self.link.borrow().clone(),
        };
        match state {
            LinkState::Up(session) => Ok(session),
            LinkState::Failed(error) | LinkState::Waiting(error) | LinkState::Connecting(Some(error)) => {
                Err(error)
            }
            LinkState::Connecting(None) => Err(Error::unavailable(crate::transport::dial::SILENT)),
            LinkState::Closed => Err(Error::not_ready("it was closed")),
        }
    }

    /// How the first attempt to reach the relay ends, within `timeout`.
    pub(crate) async fn first_outcome(&self, timeout: Duration) -> Result<()> {
        let mut link = self.link.subscribe();
        let ended = link.wait_for(|state| !matches!(state, LinkState::Connecting(None)));
        let state = tokio::time::timeout(timeout.max(MIN_CONNECT), ended).await;
        match state.map(|state| state.map(|state| state.clone())) {
            Ok(Ok(LinkState::Up(_))) => Ok(()),
            Ok(Ok(
                LinkState::Waiting(error) | LinkState::Failed(error) | LinkState::Connecting(Some(error)),
            )) => Err(error),
            Ok(Ok(LinkState::Connecting(None))) | Err(_) => {
                Err(Error::unavailable(crate::transport::dial::SILENT))
            }
            Ok(Ok(LinkState::Closed) | Err(_)) => Err(Error::not_ready("it was closed")),
        }
    }

    /// What waited at the relay at this log-in is here and judged, of groups too.
    pub(crate) async fn caught_up(&self, timeout: Duration) -> Result<()> {
        let late = || Error::unavailable("not everything that waits there came in within the time");
        let deadline = Instant::now() + timeout;
        self.first_outcome(timeout).await?;
        let mut state = self.state.subscribe();
        let here = state
            .wait_for(|state| !matches!(state, ConnectionState::Connecting | ConnectionState::CatchingUp));
        let here = tokio::time::timeout_at(deadline, here).await.map_err(|_| late())?;
        if !here.is_ok_and(|state| *state == ConnectionState::Online) {
            return self.online(Duration::ZERO).await.map(|_| ());
        }
        // By now the lanes have all of it, and what they have they hand on.
        let mut left: Vec<_> =
            lock(&self.lanes).iter().map(|(peer, lane)| (peer.clone(), lane.handed())).collect();
        loop {
            {
                let lanes = lock(&self.lanes);
                left.retain(|(peer, (depth, handed))| {
                    lanes.get(peer).is_some_and(|lane| lane.is_of(depth) && !lane.has_taken(*handed))
                });
            }
            if left.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                return Err(late());
            }
            tokio::time::sleep(limits::CATCH_UP_POLL).await;
        }
        tokio::time::timeout_at(deadline, self.groups.settled()).await.map_err(|_| late())?
    }

    // ---- Peers ----

    pub(crate) fn peer(&self, user: &UserId) -> Option<PeerRow> {
        lock(&self.peers).get(user).cloned()
    }

    pub(crate) fn is_blocked(&self, user: &UserId) -> bool {
        lock(&self.peers).get(user).is_some_and(|row| row.blocked)
    }

    pub(crate) fn peers(&self) -> Vec<PeerRow> {
        let mut peers: Vec<_> = lock(&self.peers).values().cloned().collect();
        peers.sort_by(|a, b| a.user.cmp(&b.user));
        peers
    }

    pub(crate) fn knows(&self, user: &UserId) -> bool {
        lock(&self.peers).contains_key(user)
    }

    /// What a conversation keeps, in milliseconds.
    pub(crate) fn keep_of(&self, user: &UserId) -> u64 {
        let own = lock(&self.peers).get(user).and_then(|row| row.retention);
        own.unwrap_or_else(|| self.config.retention.to_millis())
    }

    /// Notes a peer that is written about in `changes`; call [`Self::remember_peer`] once they are committed.
    pub(crate) fn note_peer(&self, user: &UserId, changes: &mut ChangeSet) -> Option<PeerRow> {
        if lock(&self.peers).contains_key(user) {
            return None;
        }
        let row = PeerRow::new(user.clone());
        let op = Op::put(keys::peer(&self.store, user), row.encode());
        // Another instance may know the peer, and more about it.
        changes.push(match self.instances.is_shared() {
            true => op.expecting(Expect::Absent),
            false => op,
        });
        Some(row)
    }

    pub(crate) fn remember_peer(&self, row: PeerRow) {
        lock(&self.peers).insert(row.user.clone(), row);
    }

    pub(crate) fn remember_peers(&self, peers: HashMap<UserId, PeerRow>) {
        *lock(&self.peers) = peers;
    }

    /// Remembers these, and of the others those that are to be kept.
    pub(crate) fn follow_peers(&self, peers: HashMap<UserId, PeerRow>, keep: impl Fn(&UserId) -> bool) {
        let mut known = lock(&self.peers);
        known.retain(|user, _| keep(user));
        known.extend(peers);
    }

    pub(crate) fn forget_peer(&self, user: &UserId) {
        lock(&self.peers).remove(user);
    }

    /// Tells that a user has another suite than we have: once, not with each message to them.
    pub(crate) fn tell_suites(&self, peer: &UserId, (ours, theirs): (Suite, Suite)) {
        let mut told = lock(&self.told_suites);
        if told.len() >= limits::MAX_TOLD_SUITES && !told.contains_key(peer) {
            told.clear();
        }
        if told.insert(peer.clone(), theirs) != Some(theirs) {
            self.hub.emit(Event::SuiteMismatch { peer: peer.clone(), ours, theirs });
        }
    }

    /// They have ours now.
    pub(crate) fn suits(&self, peer: &UserId) {
        lock(&self.told_suites).remove(peer);
    }

    /// Changes the settings of a conversation.
    pub(crate) async fn change_peer(&self, user: &UserId, change: impl Fn(&mut PeerRow)) -> Result<()> {
        if self.instances.is_shared() {
            return self.change_shared_peer(user, change).await;
        }
        let mut row = self.peer(user).unwrap_or_else(|| PeerRow::new(user.clone()));
        change(&mut row);
        let mut changes = ChangeSet::new();
        changes.put(keys::peer(&self.store, user), row.encode());
        self.store.commit(changes).await.map_err(Error::passed)?;
        self.remember_peer(row);
        Ok(())
    }

    // ---- Lanes ----

    /// Hands work to the lane of a peer, waking it if need be.
    pub(crate) fn work(&self, peer: &Address, work: Work) -> Result<()> {
        self.with_lane(peer, |handle| handle.work(work))
    }

    /// Hands over what must not wait until fewer conversations are awake: until a recovery is over those stay awake that have
    /// something to send, of which there are as many as the application sent to.
    pub(crate) fn work_of_recovery(&self, peer: &Address, work: Work) -> Result<()> {
        self.with_lane_among(usize::MAX, peer, |handle| handle.work(work))
    }

    /// Hands an order of the application to the lane of a peer. Where there is no room it waits for some until `deadline`, if
    /// the executor says so; else it is refused.
    pub(crate) async fn order(&self, peer: &Address, work: Work, deadline: Instant) -> Result<()> {
        if self.store.is_emptied() {
            return Err(self.closed_error());
        }
        let Some(waits) = self.with_lane(peer, |handle| handle.offer(work))? else {
            self.pressure.watch(&self.hub);
            return Ok(());
        };
        let why = waits.why.clone();
        let queue = |work, room| self.with_lane(peer, |handle| handle.hand_over(work, Some(room)));
        self.wait_for_room((waits.for_room(queue), why), deadline, &peer.user).await
    }

    /// Room for a message to a group, as an order for a peer has it.
    pub(crate) async fn room_in_group(&self, id: GroupId, bytes: usize) -> Result<GroupRoom> {
        let share = self.groups.share(id, &self.pressure);
        let why = match share.try_room(bytes) {
            Ok(room) => {
                self.pressure.watch(&self.hub);
                return Ok((room, share));
            }
            Err(why) => why,
        };
        let mut room = None;
        let wait = share.wait(bytes, |found| {
            room = Some(found);
            Ok(())
        });
        let name = UserId::new(&id.to_string())?;
        self.wait_for_room((wait, why.clone()), Instant::now() + self.config.timeout, &name).await?;
        Ok((room.ok_or(why)?, share))
    }

    /// Where there was no room: waits for some until `deadline`, if the executor says so.
    async fn wait_for_room(
        &self,
        (wait, why): (impl Future<Output = Result<()>>, Error),
        deadline: Instant,
        peer: &UserId,
    ) -> Result<()> {
        let result = if self.pressure.waits() {
            tokio::select! {
                result = wait => result,
                () = tokio::time::sleep_until(deadline) => Err(why),
                () = self.stop.cancelled() => Err(self.closed_error()),
            }
        } else {
            Err(why)
        };
        match &result {
            Ok(()) => self.pressure.watch(&self.hub),
            Err(error) if error.code() == "BACKPRESSURE" => self.pressure.refused(peer, &self.hub),
            Err(_) => {}
        }
        result
    }

    /// Hands mail to a lane. Never waits; mail that finds no room stays at the relay, and is asked for again in a while,
    /// for until then it takes a share of what the relay sends without an answer.
    pub(crate) fn mail(&self, peer: &Address, mail: Mail) {
        let brought_by = match &mail {
            Mail::Deliver(_, session) => Some(session.generation),
            _ => None,
        };
        if let Mail::Deliver(deliver, session) = &mail {
            let generation = session.generation;
            if self.revival.is_waiting(peer) {
                // A fresh connection brings it when the conversation is begun afresh.
                self.left.leave(peer, generation);
            }
            if self.left.has(peer, generation) {
                // What comes in vain must take no room from others.
                if !deliver.ephemeral {
                    self.left.hold(peer, generation, || session.hold(deliver.msg_id));
                }
                return;
            }
        }
        if let Err(error) = self.with_lane(peer, |handle| handle.mail(mail)) {
            tracing::warn!(code = error.code(), "mail was left at the relay");
            if let Some(generation) = brought_by {
                self.leave(peer, generation);
            }
        }
    }

    /// Leaves mail of a peer at the relay, and what follows it on the same connection, until a fresh one brings it again.
    pub(crate) fn leave(&self, peer: &Address, generation: u64) {
        self.left.leave(peer, generation);
        self.kick_soon();
    }

    fn with_lane<T>(&self, peer: &Address, act: impl FnOnce(&LaneHandle) -> Result<T>) -> Result<T> {
        self.with_lane_among(limits::MAX_LANES, peer, act)
    }

    /// As `with_lane`, where `most` may be awake.
    fn with_lane_among<T>(
        &self,
        most: usize,
        peer: &Address,
        act: impl FnOnce(&LaneHandle) -> Result<T>,
    ) -> Result<T> {
        let mut lanes = lock(&self.lanes);
        if self.stop.is_cancelled() {
            return Err(self.closed_error());
        }
        if let Some(handle) = lanes.get(peer) {
            return act(handle);
        }
        if self.revival.is_waiting(peer) {
            return Err(Error::not_ready(
                "this conversation met a fault in the program and is begun afresh in a moment",
            ));
        }
        if lanes.len() >= limits::MAX_LANES {
            // Nothing is handed over under this lock, so what is idle stays so; it ends when its handle is gone.
            let mut evicted = 0;
            lanes.retain(|_, handle| {
                let goes = evicted < limits::EVICTED_LANES && handle.is_idle();
                evicted += usize::from(goes);
                !goes
            });
        }
        if lanes.len() >= most {
            return Err(Error::not_ready("too many conversations are active at once"));
        }
        let (handle, task) = lane::new(self.me.clone(), peer.clone(), Arc::clone(&self.pressure));
        let result = act(&handle);
        lanes.insert(peer.clone(), handle);
        self.tasks.spawn(task);
        result
    }

    #[cfg(test)]
    pub(crate) fn is_to_be_woken(&self, peer: &Address) -> bool {
        lock(&self.to_wake).contains(peer)
    }

    #[cfg(test)]
    pub(crate) fn has_lane(&self, peer: &Address) -> bool {
        lock(&self.lanes).contains_key(peer)
    }

    /// A fault ended the lane with this depth. After a wait it is begun afresh, from the store; its mail stays at the relay
    /// until then.
    pub(crate) fn lane_crashed(&self, peer: &Address, depth: &Arc<AtomicUsize>) {
        let session = self.session();
        let (wait, delivered) = {
            let mut lanes = lock(&self.lanes);
            let own = lanes.get(peer).is_some_and(|handle| handle.is_of(depth));
            let handle = own.then(|| lanes.remove(peer)).flatten();
            let delivered = handle.zip(session.as_ref());
            let delivered = delivered.and_then(|(handle, session)| handle.delivered(session.generation));
            (self.revival.crashed(peer), delivered)
        };
        tracing::error!(attempt = wait.attempt, "a conversation met a fault in the program");
        if let Some(session) = session {
            self.left.leave(peer, session.generation);
            if let Some(delivered) = delivered {
                // If it was acknowledged already, the next one that comes in vain says it once more.
                let _ = session.hold(delivered);
            }
        }
        self.hub.emit(Event::ConversationFailed {
            peer: peer.user.clone(),
            attempt: wait.attempt,
            retry_after: wait.after,
        });
        let (me, peer, stop) = (self.me.clone(), peer.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(wait.after) => {}
                () = stop.cancelled() => return,
            }
            let Some(core) = me.upgrade() else { return };
            core.revival.begins(&peer);
            tracing::info!("a conversation is begun afresh after a fault");
            while let Err(error) = core.work(&peer, Work::Wake) {
                // Too many are awake; what waits for this one must not wait for somebody to write.
                tracing::debug!(code = error.code(), "a conversation can not be begun afresh yet");
                tokio::select! {
                    () = tokio::time::sleep(limits::REVIVE_FIRST) => {}
                    () = stop.cancelled() => return,
                }
            }
            core.hub.emit(Event::ConversationRevived { peer: peer.user.clone() });
            core.groups.look_again();
            core.kick_after_fault();
        });
    }

    /// Has the mail brought again that a fault left at the relay; some times a minute at most, over all conversations.
    fn kick_after_fault(&self) {
        let now = Instant::now();
        let Some(at) = self.kicks.next(now) else { return };
        if at <= now {
            self.kick_soon();
            return;
        }
        let (me, kicks, stop) = (self.me.clone(), Arc::clone(&self.kicks), self.stop.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep_until(at) => {}
                () = stop.cancelled() => return,
            }
            kicks.done();
            if let Some(core) = me.upgrade() {
                core.kick_soon();
            }
        });
    }

    /// A lane asks to go to sleep: allowed if nothing was handed to it meanwhile. Everything is handed over under the
    /// same lock.
    pub(crate) fn retire_lane(&self, peer: &Address, idle: impl FnOnce() -> bool) -> bool {
        let mut lanes = lock(&self.lanes);
        let retires = idle();
        if retires {
            lanes.remove(peer);
        }
        retires
    }

    /// Tells all lanes that something changed.
    pub(crate) fn wake_lanes(&self) {
        for handle in lock(&self.lanes).values() {
            let _ = handle.work(Work::Wake);
        }
    }

    /// A peer announced itself at a relay that keeps nothing.
    pub(crate) fn came(&self, peer: &Address) {
        if let Some(handle) = lock(&self.lanes).get(peer) {
            handle.came();
        }
    }

    /// A message of a peer's to a group was opened.
    pub(crate) fn heard(&self, peer: &Address) {
        if let Some(handle) = lock(&self.lanes).get(peer) {
            handle.heard();
        }
    }

    pub(crate) fn route(&self, id: MessageId, peer: &Address) {
        lock(&self.routes).insert(id, peer.clone());
    }

    pub(crate) fn routed(&self, id: MessageId) -> Option<Address> {
        lock(&self.routes).remove(&id)
    }

    pub(crate) fn clear_routes(&self) {
        lock(&self.routes).clear();
    }

    pub(crate) fn settle(&self, count: usize) {
        let less = |before: usize| Some(before.saturating_sub(count));
        let before = self.unaccepted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        if before.is_ok_and(|before| before <= count) {
            self.settled.notify_waiters();
        }
    }

    // ---- Safety numbers ----

    /// A safety number with a peer was shown, of this key of theirs.
    pub(crate) fn show_number(&self, peer: &UserId, key: &[u8]) {
        let mut shown = lock(&self.shown);
        if shown.len() >= limits::MAX_SHOWN_NUMBERS && !shown.contains_key(peer) {
            shown.clear();
        }
        shown.insert(peer.clone(), key.to_vec());
    }

    /// The key of the safety number that was shown last.
    pub(crate) fn shown_number(&self, peer: &UserId) -> Option<Vec<u8>> {
        lock(&self.shown).get(peer).cloned()
    }

    // ---- Rollback ----

    /// Whether the store is an old copy: then nothing is encrypted or sent.
    pub(crate) fn rollback(&self) -> Option<Rollback> {
        *lock(&self.rollback)
    }

    pub(crate) fn set_rollback(&self, found: Option<Rollback>) {
        *lock(&self.rollback) = found;
    }

    pub(crate) fn refuse_rolled_back(&self) -> Result<()> {
        self.rollback().map_or(Ok(()), |found| Err(found.error()))
    }

    /// As [`Self::refuse_rolled_back`], for what can wait until a recovery is done.
    pub(crate) fn refuse_undecided(&self) -> Result<()> {
        self.rollback().filter(|found| !found.decided).map_or(Ok(()), |found| Err(found.error()))
    }

    // ---- Ending ----

    /// Lets pending sends finish within `bound`, then ends everything and unlocks the store: to the end, also if nobody waits for
    /// this any more, for whoever closes next waits for the one who began.
    pub(crate) async fn close(self: &Arc<Self>, bound: Duration) {
        let deadline = Instant::now() + bound;
        if self.closing.swap(true, Ordering::SeqCst) {
            let mut closed = self.closed.subscribe();
            let _ = tokio::time::timeout_at(deadline, closed.wait_for(|closed| *closed)).await;
            return;
        }
        let me = Arc::clone(self);
        // In a task of its own: what is left of it when the time is over goes on.
        let closing = tokio::spawn(async move {
            // The rest of the time is for the store.
            me.flush(bound / 4 * 3).await;
            me.end().await;
        });
        match tokio::time::timeout_at(deadline, closing).await {
            Ok(Err(fault)) if fault.is_panic() => std::panic::resume_unwind(fault.into_panic()),
            Ok(_) => {}
            Err(_) => tracing::warn!("the client lets go of its store only after its close was waited for"),
        }
    }

    /// Puts a fresh identity in the place of ours, in the store that then nobody works on, and opens the client anew on it. This
    /// one is closed, whatever comes of it. Also gives the fingerprints of both.
    pub(crate) async fn hand_over(&self, bound: Duration) -> Result<((String, String), Arc<Self>)> {
        if self.closing.swap(true, Ordering::SeqCst) {
            return Err(Error::not_ready("it was closed"));
        }
        self.flush(bound).await;
        self.end_work().await;
        let rotated = crate::rotation::rotate(self).await;
        self.leave_instances().await;
        let opened = match rotated {
            Ok(keys) => self.open_again().await.map(|next| (keys, next)),
            Err(error) => Err(error),
        };
        if opened.is_err() {
            self.close_store().await;
        }
        self.over();
        opened
    }

    async fn open_again(&self) -> Result<Arc<Self>> {
        let config = Config { new_identity: false, ..self.config.clone() };
        let (store, guards) = (Arc::clone(&self.store), self.guards.clone());
        let user = self.address.user.clone();
        Self::open_on((store, guards), (config, user), (self.directory.clone(), Hub::new())).await
    }

    /// Ends everything at once.
    pub(crate) async fn end(&self) {
        self.end_work().await;
        self.leave_instances().await;
        self.close_store().await;
        self.over();
    }

    /// Ends all that works on the store.
    async fn end_work(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        lock(&self.lanes).clear();
        self.inbox.close().await;
        self.stop_acks.cancel();
        self.ack_tasks.close();
        self.ack_tasks.wait().await;
    }

    async fn leave_instances(&self) {
        if self.instances.is_shared()
            && let Err(error) = self.instances.leave(&self.store, self.now()).await
        {
            tracing::warn!(code = error.code(), "other instances will notice only later that this one ended");
        }
    }

    async fn close_store(&self) {
        if let Err(error) = self.store.close().await {
            tracing::warn!(code = stvor_base::ErrorCode::code(&error), "the store did not close cleanly");
        }
    }

    fn over(&self) {
        self.watchers.close();
        self.link.send_replace(LinkState::Closed);
        self.state.send_replace(ConnectionState::Closed);
        self.hub.close();
        self.closed.send_replace(true);
    }
}

/// Keeps the connection up, and says that there is none when a fault ends that.
async fn keep_connected(client: Weak<Core>, tls: Arc<rustls::ClientConfig>, generations: Arc<AtomicU64>) {
    let Some(core) = client.upgrade() else { return };
    let link = Link {
        url: core.config.place.relay.clone(),
        tls,
        login: crate::watch::login_of(&core),
        minimal: core.config.minimal_relay,
        timeout: core.config.timeout,
        state: core.link.clone(),
        stop: core.stop.clone(),
        kick: Arc::clone(&core.kick),
        hurry: Arc::clone(&core.hurry),
        generations,
    };
    drop(core);
    let run = link.run(Arc::new(crate::watch::Observer::new(client.clone())));
    if let Err(fault) = AssertUnwindSafe(run).catch_unwind().await {
        if let Some(core) = client.upgrade() {
            let error = Error::unavailable(
                "what keeps the connection met a fault in the program and is begun afresh",
            );
            core.link.send_replace(LinkState::Waiting(error));
            core.state.send_replace(ConnectionState::Offline);
            core.wake_lanes();
        }
        std::panic::resume_unwind(fault);
    }
}

/// Random bytes for ids.
pub(crate) fn random<const N: usize>(rng: &mut SystemRandom) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    rng.fill(&mut bytes).map_err(Error::passed)?;
    Ok(bytes)
}
