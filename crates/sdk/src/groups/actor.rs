//! The task that keeps all groups of a client.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt as _;
use stvor_base::codec::CodecError;
use stvor_base::{Address, GroupId, KeyBytes, UserId};
use stvor_crypto::SystemRandom;
use stvor_protocol::RecordKind;
use stvor_protocol::group::Group as State;
use stvor_store::{RowVersion, Scan, Table};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::GroupInfo;
use super::desk::{Desk, Order, Post};
use super::rows::{self, GroupRow, PostRow};
use super::vouching::Unjudged;
use super::waiting::{Asks, Came, Waiting};
use crate::core::Core;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::limits;

/// A group's row and its version.
pub(super) struct Listed {
    pub(super) row: GroupRow,
    pub(super) version: RowVersion,
}

/// A group of which changes came and that does not have us in it so far.
pub(super) struct Joining {
    pub(super) group: State,
    /// Who told us of it first.
    pub(super) by: UserId,
    /// Bytes of its changes.
    pub(super) bytes: usize,
}

pub(super) struct Actor {
    pub(super) core: Arc<Core>,
    pub(super) groups: HashMap<GroupId, State>,
    /// Of each group in memory, its row as it was read or written last.
    pub(super) listed: HashMap<GroupId, Listed>,
    /// In memory only.
    pub(super) joining: HashMap<GroupId, Joining>,
    pub(super) waiting: Waiting,
    /// The changes in that.
    pub(super) unjudged: Unjudged,
    /// Our own keys of before, once they were read.
    pub(super) own_earlier: Option<HashSet<KeyBytes>>,
    pub(super) asks: Asks,
    /// Members who wrote in a state of their group that we do not know, and since when: of each the last one.
    pub(super) ahead: HashMap<(GroupId, Address), ([u8; 32], Instant)>,
    pub(super) backlog: std::collections::VecDeque<Arc<Post>>,
    pub(super) rng: SystemRandom,
    /// What memory holds is what the store holds.
    pub(super) loaded: bool,
    /// Of the store, when it was last compared.
    pub(super) incarnation: u64,
    /// A commit was given up, and may have been applied.
    pub(super) in_doubt: bool,
    /// Mail was left for the next look.
    pub(super) stalled: bool,
    /// What is owed to members, and what was left on its way to them, could not be seen to: that is tried again.
    pub(super) owes: bool,
    left: bool,
    /// Messages that wait for room in the inbox, and whose they are.
    pub(super) roomless: BTreeMap<u64, UserId>,
    /// Rows that are judged in the commit that is being made.
    pub(super) judging: Vec<u64>,
    /// Attempts at the same rows, which another instance came before.
    pub(super) tries: u32,
}

/// After a fault: what it had of posts comes back by itself.
impl Drop for Actor {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.core.groups.suspect(&self.judging);
        }
    }
}

/// Between looks at what waits, and after the store failed.
const TICK: Duration = Duration::from_secs(1);

/// Runs until `stop`.
pub(crate) async fn run(
    core: Weak<Core>,
    orders: Arc<tokio::sync::Mutex<mpsc::Receiver<Order>>>,
    stop: CancellationToken,
) {
    // One run at a time: the next one begins when this one met a fault.
    let mut orders = orders.lock().await;
    let Some(core) = core.upgrade() else { return };
    let mut actor = Actor::new(core);
    actor.pay_owed().await;
    // Orders come before mail, whatever mail does to this task.
    let (mut starts, mut mail) = (true, false);
    // Not put off by orders that come in between.
    let mut look = Instant::now() + TICK;
    loop {
        let core = Arc::clone(&actor.core);
        let busy = !actor.waiting.is_empty()
            || !actor.roomless.is_empty()
            || !actor.ahead.is_empty()
            || !actor.backlog.is_empty()
            || !actor.loaded
            || actor.stalled
            || actor.owes
            || actor.left;
        if !busy {
            look = Instant::now() + TICK;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            order = orders.recv() => {
                let Some(order) = order else { break };
                actor.take_order(order).await;
                // But many of them leave mail its turn.
                if !starts && core.groups.came().now_or_never().is_some() {
                    actor.come().await;
                    mail = true;
                }
                if mail {
                    mail = actor.take_some_mail().await;
                }
            }
            () = core::future::ready(()), if starts => {
                starts = false;
                mail = true;
                actor.start().await;
            }
            () = core.groups.came() => {
                actor.come().await;
                mail = true;
            }
            () = core::future::ready(()), if mail => mail = actor.take_some_mail().await,
            () = tokio::time::sleep_until(look), if busy => {
                if actor.owes {
                    actor.pay_owed().await;
                }
                if actor.left {
                    actor.take_up_left().await;
                }
                if !actor.loaded {
                    // Also where another instance takes the mail: posts of a commit whose answer was lost are this one's. Why it is not
                    // loaded was told; should it fail, it is tried again.
                    let _ = actor.load().await;
                }
                actor.work_off();
                actor.ask_for_missing().await;
                mail = true;
                look = Instant::now() + TICK;
            }
        }
    }
    actor.core.settle(actor.backlog.len());
}

impl Actor {
    pub(super) fn new(core: Arc<Core>) -> Self {
        let incarnation = core.store.incarnation();
        Self {
            core,
            groups: HashMap::new(),
            listed: HashMap::new(),
            joining: HashMap::new(),
            waiting: Waiting::default(),
            unjudged: Unjudged::default(),
            own_earlier: None,
            asks: Asks::default(),
            ahead: HashMap::new(),
            backlog: std::collections::VecDeque::new(),
            rng: SystemRandom::new(),
            loaded: false,
            incarnation,
            in_doubt: false,
            stalled: false,
            owes: false,
            left: false,
            roomless: BTreeMap::new(),
            judging: Vec::new(),
            tries: 0,
        }
    }

    /// Takes up what earlier runs left.
    async fn start(&mut self) {
        if let Err(error) = self.load().await {
            self.core.hub.emit(Event::StoreFailing { code: error.code() });
        }
        self.take_up_left().await;
        if self.core.prekeys.starts_anew() {
            self.catch_up().await;
        }
    }

    /// Gives up the chains that an earlier run had yet to give up.
    async fn pay_owed(&mut self) {
        let paid = self.renew_owed().await;
        self.owes = self.has_failed(paid);
    }

    /// Takes up the posts that nobody has on their way.
    async fn take_up_left(&mut self) {
        let taken = self.load_posts().await;
        self.left = self.has_failed(taken);
    }

    /// Whether something is to be tried again: the store did not let it be done, which is told, or another process came first.
    fn has_failed(&self, result: Result<()>) -> bool {
        let Err(error) = result else { return false };
        if !matches!(error.kind(), ErrorKind::ClientNotReady { .. }) {
            self.core.hub.emit(Event::StoreFailing { code: error.code() });
        }
        error.passes()
    }

    /// Something came beside orders.
    async fn come(&mut self) {
        self.take_over().await;
        self.work_off();
    }

    /// Reads what the store has and memory has not. On a shared store that is looked for each time: other instances change
    /// groups too.
    pub(super) async fn load(&mut self) -> Result<()> {
        if self.in_doubt {
            // What was given up may have been stored all the same, and its posts are on nobody's way then.
            self.load_posts().await?;
            self.in_doubt = false;
        }
        if self.loaded && !self.core.instances.is_shared() {
            return Ok(());
        }
        let core = Arc::clone(&self.core);
        let store = &core.store;
        let incarnation = store.incarnation();
        let listed = store
            .scan_all(Scan::of(Table::Settings, rows::GROUPS), 2 * limits::MAX_GROUPS)
            .await
            .map_err(Error::passed)?;
        let mut there = HashSet::with_capacity(listed.len());
        for found in listed {
            let id = GroupId::try_from(found.key.sort.as_slice()).map_err(Error::passed)?;
            there.insert(id);
            let known = self.listed.get(&id).is_some_and(|listed| listed.version == found.version);
            if known && self.groups.contains_key(&id) {
                continue;
            }
            let row = GroupRow::decode(found.value.expose()).map_err(Error::passed)?;
            let group = self.read(id).await?;
            // What waited for the group may be judged by what another instance learnt.
            self.waiting.came(&Came::Group(id));
            self.groups.insert(id, group);
            self.listed.insert(id, Listed { row, version: found.version });
        }
        self.groups.retain(|id, _| there.contains(id));
        self.listed.retain(|id, _| there.contains(id));
        self.joining.retain(|id, _| !there.contains(id));
        (self.loaded, self.incarnation) = (true, incarnation);
        Ok(())
    }

    async fn read(&mut self, id: GroupId) -> Result<State> {
        // The list of whose chains are kept stands in the same partition.
        let most =
            stvor_protocol::group::limits::MAX_CHANGES + 16 * stvor_protocol::group::limits::MAX_MEMBERS + 2;
        let scan = Scan::of(Table::Group, id.as_bytes().as_slice());
        let rows = self.core.store.scan_all(scan, most).await.map_err(Error::passed)?;
        let rows = rows.into_iter().filter_map(|row| {
            let kind = match row.key.sort.first()? {
                0 => RecordKind::GroupChange,
                1 => RecordKind::OwnChain,
                2 => RecordKind::ChainRecipients,
                _ => return None,
            };
            Some((kind, row.value))
        });
        State::load(&self.core.identity, id, rows).map_err(Error::passed)
    }

    /// Takes over what instances left that ended, once this one receives.
    async fn take_over(&mut self) {
        if !self.core.groups.has_changed() {
            return;
        }
        // The numbers of mail may have been given anew.
        self.waiting.clear();
        self.unjudged.clear();
        self.roomless.clear();
        self.joining.clear();
        self.take_up_left().await;
    }

    /// Posts that no lane had committed when the store was closed go on by themselves. On a shared store those of instances
    /// that are there are theirs.
    async fn load_posts(&mut self) -> Result<()> {
        let core = Arc::clone(&self.core);
        let store = &core.store;
        let shared = core.instances.is_shared();
        if shared && !core.instances.receives() && !self.in_doubt {
            return Ok(());
        }
        let own = core.instances.id();
        // As of before the look: what a lane commits during it is read as if it were still to be sent.
        let open = core.groups.open_numbers();
        let rows = store
            .scan_all(Scan::of(Table::Outbox, rows::POSTS), 2 * limits::MAX_POSTS)
            .await
            .map_err(Error::passed)?;
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            let seq = row.key.sort.as_slice().try_into().map(u64::from_be_bytes);
            let seq = seq.map_err(|_| Error::passed(CodecError::Length))?;
            found.push((seq, PostRow::decode(row.value.expose()).map_err(Error::passed)?));
        }
        let present = match shared {
            true => {
                let owners: HashSet<_> = found.iter().filter_map(|(_, post)| post.owner).collect();
                let owners: Vec<_> = owners.into_iter().collect();
                crate::instances::Instances::present(store, &owners).await?
            }
            false => HashSet::new(),
        };
        found.retain(|(seq, post)| {
            let ours = match post.owner {
                None => true,
                Some(owner) if owner == own => true,
                Some(owner) => core.instances.receives() && !present.contains(&owner),
            };
            ours && !open.contains(seq)
        });
        let (mut bodies, mut posts) = (HashMap::new(), Vec::with_capacity(found.len()));
        for (seq, post) in found {
            let body = match bodies.get(&post.body) {
                Some(body) => Arc::clone(body),
                None => {
                    let stored = store.one(&rows::body(post.body)).await.map_err(Error::passed)?;
                    // What expired is not sent any more.
                    let Some(stored) = stored else { continue };
                    let body = Desk::stored_body(post.body, stored.value);
                    bodies.insert(post.body, Arc::clone(&body));
                    body
                }
            };
            posts.push(core.groups.stored_post(seq, post, &body));
        }
        self.hand_over(posts);
        Ok(())
    }

    pub(super) fn info(&self, id: GroupId) -> Result<GroupInfo> {
        let group = self.groups.get(&id).ok_or_else(|| self.not_found(id))?;
        let state =
            group.state().iter().take(8).fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        Ok(GroupInfo {
            id,
            name: group.name().to_owned(),
            members: group.members().map(|member| member.user).collect(),
            is_member: group.admits(self.core.identity.user(), self.core.identity.user_key()),
            epoch: group.epoch(),
            state,
        })
    }
}
