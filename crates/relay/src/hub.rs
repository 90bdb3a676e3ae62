//! Who is connected: the receiving connection of each device, all connections, and who waits for whom.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stvor_wire::server::End;
use stvor_wire::{Code, ServerMessage};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::connection::Conn;
use crate::limits::{CLONE_TOLD, CONNECTIONS_PER_DEVICE, WAITS_IN_ALL};
use crate::storage::{Holder, MailboxId, UserKey};

const SHARDS: usize = 16;

type Receivers = HashMap<MailboxId, Arc<Conn>>;

/// The connections of this process.
pub(crate) struct Hub {
    receivers: [Mutex<Receivers>; SHARDS],
    all: Mutex<All>,
    online: Mutex<HashMap<UserKey, usize>>,
    waiting: Mutex<HashMap<UserKey, Waiting>>,
    waits: AtomicUsize,
    next: AtomicU64,
    /// Rises whenever a device may have lost its mailbox: what connections remember of routes is then void.
    pub(crate) generation: AtomicU64,
}

#[derive(Default)]
struct All {
    connections: HashMap<u64, Arc<Conn>>,
    /// Of each device.
    of: HashMap<MailboxId, OfDevice>,
}

/// The connections of one device.
#[derive(Default)]
struct OfDevice {
    count: usize,
    /// The store that its keys are in.
    store: Option<[u8; stvor_wire::limits::STORE_MARK_BYTES]>,
    /// When it was last told of another store.
    told: Option<Instant>,
}

/// How long a second store of a device is kept off before it is looked at again.
const CLONE_RETRY: core::time::Duration = core::time::Duration::from_secs(5);

struct Waiting {
    notify: Arc<Notify>,
    waiters: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn user_key(conn: &Conn) -> UserKey {
    UserKey { app: (*conn.who.app).clone(), user: conn.who.address.user.clone() }
}

impl Hub {
    pub(crate) fn new() -> Self {
        Self {
            receivers: std::array::from_fn(|_| Mutex::default()),
            all: Mutex::default(),
            online: Mutex::default(),
            waiting: Mutex::default(),
            waits: AtomicUsize::new(0),
            next: AtomicU64::new(1),
            generation: AtomicU64::new(0),
        }
    }

    fn shard(&self, device: MailboxId) -> MutexGuard<'_, Receivers> {
        let index = usize::try_from(device.0.rem_euclid(SHARDS as i64)).unwrap_or_default();
        lock(&self.receivers[index])
    }

    /// A number for a new connection.
    pub(crate) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The receiving connection of a device.
    pub(crate) fn receiver(&self, device: MailboxId) -> Option<Arc<Conn>> {
        self.shard(device).get(&device).cloned()
    }

    /// Takes a connection in, unless its device has too many, or is connected with its keys in another store. A receiving
    /// one takes over from the device's earlier one, which ends.
    pub(crate) fn join(&self, conn: &Arc<Conn>) -> Result<(), End> {
        {
            let mut all = lock(&self.all);
            let of = all.of.entry(conn.who.device).or_default();
            let mark = conn.who.store_mark;
            if of.store.is_some() && mark.is_some() && of.store != mark {
                let detail =
                    "this device is connected with its keys in another store: one of the two is a copy";
                let refused = crate::connection::end(Code::CloneDetected, detail);
                // The one that is connected hears of it, and that is all that comes of it there. Who waits for READY hears of
                // the next try.
                let hears =
                    |live: &Arc<Conn>| live.who.hears_of_clones && live.greeted.load(Ordering::Acquire);
                let live = self.receiver(conn.who.device).filter(hears);
                if let Some(live) = live
                    && of.told.is_none_or(|at| at.elapsed() >= CLONE_TOLD)
                {
                    of.told = Some(Instant::now());
                    live.say(&ServerMessage::CloneSeen);
                }
                return Err(End { retry_after: CLONE_RETRY, ..refused });
            }
            if of.count >= CONNECTIONS_PER_DEVICE {
                let detail = "this device has too many connections: close some";
                return Err(crate::connection::end(Code::TooMany, detail));
            }
            of.count += 1;
            of.store = of.store.or(mark);
            all.connections.insert(conn.id, conn.clone());
        }
        if conn.who.fence == 0 {
            return Ok(());
        }
        let earlier = {
            let mut shard = self.shard(conn.who.device);
            match shard.get(&conn.who.device) {
                Some(later) if later.who.fence > conn.who.fence => Some(conn.clone()),
                _ => shard.insert(conn.who.device, conn.clone()),
            }
        };
        let key = user_key(conn);
        *lock(&self.online).entry(key).or_default() += 1;
        if let Some(earlier) = earlier {
            earlier.end(Code::Superseded, "another connection of this device took over");
        }
        Ok(())
    }

    /// A connection is gone.
    pub(crate) fn leave(&self, conn: &Arc<Conn>) {
        {
            let mut all = lock(&self.all);
            if all.connections.remove(&conn.id).is_none() {
                return;
            }
            if let Some(of) = all.of.get_mut(&conn.who.device) {
                of.count -= 1;
                if of.count == 0 {
                    all.of.remove(&conn.who.device);
                }
            }
        }
        if conn.who.fence == 0 {
            return;
        }
        {
            let mut shard = self.shard(conn.who.device);
            if shard.get(&conn.who.device).is_some_and(|current| current.id == conn.id) {
                shard.remove(&conn.who.device);
            }
        }
        let key = user_key(conn);
        let mut online = lock(&self.online);
        if let Some(count) = online.get_mut(&key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                online.remove(&key);
            }
        }
    }

    /// Every connection.
    pub(crate) fn connections(&self) -> Vec<Arc<Conn>> {
        lock(&self.all).connections.values().cloned().collect()
    }

    /// How many connections there are.
    pub(crate) fn len(&self) -> usize {
        lock(&self.all).connections.len()
    }

    /// How many users receive.
    pub(crate) fn users_online(&self) -> usize {
        lock(&self.online).len()
    }

    /// Whether a device of the user receives.
    pub(crate) fn is_online(&self, key: &UserKey) -> bool {
        lock(&self.online).contains_key(key)
    }

    /// Whether a user of this name receives, in any app.
    pub(crate) fn is_online_anywhere(&self, user: &stvor_base::UserId) -> bool {
        lock(&self.online).keys().any(|key| key.user == *user)
    }

    /// Ends all connections of devices that are gone, and voids remembered routes. Of the device that is `present`, with the
    /// generation of its keys, those of these keys or later ones stay.
    pub(crate) fn devices_gone(
        &self,
        devices: &[MailboxId],
        present: Option<Holder>,
        (code, detail): (Code, &str),
    ) {
        if devices.is_empty() {
            return;
        }
        self.generation.fetch_add(1, Ordering::AcqRel);
        for conn in self.connections() {
            let (device, generation) = (conn.who.device, conn.who.generation);
            let stays = present.is_some_and(|now| now.device == device && generation >= now.generation);
            if devices.contains(&device) && !stays {
                conn.end_after_queue(code, detail);
            }
        }
    }

    /// Starts to wait for a user; `None` when too many wait.
    pub(crate) fn wait_for(self: &Arc<Self>, key: UserKey) -> Option<Wait> {
        if self.waits.fetch_add(1, Ordering::AcqRel) >= WAITS_IN_ALL {
            self.waits.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let mut waiting = lock(&self.waiting);
        let entry =
            waiting.entry(key.clone()).or_insert_with(|| Waiting { notify: Arc::default(), waiters: 0 });
        entry.waiters += 1;
        Some(Wait { hub: self.clone(), key, notify: entry.notify.clone() })
    }

    /// A user registered or uploaded keys.
    pub(crate) fn appeared(&self, key: &UserKey) {
        if let Some(waiting) = lock(&self.waiting).get(key) {
            waiting.notify.notify_waiters();
        }
    }
}

/// One wait for a user; ends when dropped.
pub(crate) struct Wait {
    hub: Arc<Hub>,
    key: UserKey,
    pub(crate) notify: Arc<Notify>,
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.hub.waits.fetch_sub(1, Ordering::AcqRel);
        let mut waiting = lock(&self.hub.waiting);
        if let Some(entry) = waiting.get_mut(&self.key) {
            entry.waiters -= 1;
            if entry.waiters == 0 {
                waiting.remove(&self.key);
            }
        }
    }
}
