//! The task that keeps all groups of a client.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use stvor_base::codec::CodecError;
use stvor_base::{Address, GroupId, UserId};
use stvor_crypto::SystemRandom;
use stvor_protocol::RecordKind;
use stvor_protocol::group::{ChainId, Group as State};
use stvor_store::{Scan, Table};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::GroupInfo;
use super::desk::{Desk, Order, Post};
use super::rows::{self, GroupRow, PostRow};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::limits;

/// Mail that waits for something that has not come.
pub(super) struct Parked {
    pub(super) since: Instant,
    pub(super) from: Address,
    pub(super) lacks: Lacks,
    /// Something came: it is judged again.
    pub(super) again: bool,
}

/// What mail waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lacks {
    /// The sender key of a message.
    Key(ChainId, u32),
    /// Changes of a group.
    Changes(GroupId),
    /// That we learn of the group.
    Nothing,
}

/// What was asked of, or answered to, whom.
#[derive(PartialEq, Eq, Hash, Clone)]
pub(super) struct Asked(pub(super) UserId, pub(super) Vec<u8>);

pub(super) struct Actor {
    pub(super) core: Arc<Core>,
    pub(super) groups: HashMap<GroupId, State>,
    /// Groups of which changes came and that do not have us in them so far: in memory only.
    pub(super) joining: HashMap<GroupId, State>,
    pub(super) parked: HashMap<u64, Parked>,
    pub(super) asked: HashMap<Asked, (u32, Instant)>,
    pub(super) backlog: std::collections::VecDeque<Arc<Post>>,
    pub(super) rng: SystemRandom,
    /// What memory holds is what the store holds.
    pub(super) loaded: bool,
    /// Mail waits for room in the inbox.
    pub(super) stalled: bool,
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
    let mut actor = Actor {
        core,
        groups: HashMap::new(),
        joining: HashMap::new(),
        parked: HashMap::new(),
        asked: HashMap::new(),
        backlog: std::collections::VecDeque::new(),
        rng: SystemRandom::new(),
        loaded: false,
        stalled: false,
    };
    if let Err(error) = actor.load().await {
        actor.core.hub.emit(Event::StoreFailing { code: error.code() });
    }
    if let Err(error) = actor.load_posts().await {
        actor.core.hub.emit(Event::StoreFailing { code: error.code() });
    }
    if actor.core.prekeys.starts_anew() {
        actor.catch_up().await;
    }
    actor.take_mail().await;
    loop {
        let core = Arc::clone(&actor.core);
        let busy = !actor.parked.is_empty() || !actor.backlog.is_empty() || !actor.loaded || actor.stalled;
        tokio::select! {
            () = stop.cancelled() => break,
            order = orders.recv() => match order {
                Some(order) => actor.take_order(order).await,
                None => break,
            },
            () = core.groups.came.notified() => actor.take_mail().await,
            () = tokio::time::sleep(TICK), if busy => {
                actor.work_off();
                actor.ask_for_missing().await;
                actor.take_mail().await;
            }
        }
    }
    actor.core.settle(actor.backlog.len());
}

impl Actor {
    /// Reads all groups, in the place of what memory holds.
    pub(super) async fn load(&mut self) -> Result<()> {
        if self.loaded {
            return Ok(());
        }
        let core = Arc::clone(&self.core);
        let store = &core.store;
        let listed = store
            .scan_all(Scan::of(Table::Settings, rows::GROUPS), 2 * limits::MAX_GROUPS)
            .await
            .map_err(Error::passed)?;
        let mut groups = HashMap::new();
        for row in listed {
            let id = GroupId::try_from(row.key.sort.as_slice()).map_err(Error::passed)?;
            GroupRow::decode(row.value.expose()).map_err(Error::passed)?;
            // The list of whose chains are kept stands in the same partition.
            let most = stvor_protocol::group::limits::MAX_CHANGES
                + 16 * stvor_protocol::group::limits::MAX_MEMBERS
                + 2;
            let rows = store
                .scan_all(Scan::of(Table::Group, id.as_bytes().as_slice()), most)
                .await
                .map_err(Error::passed)?;
            let rows = rows.into_iter().filter_map(|row| {
                let kind = match row.key.sort.first()? {
                    0 => RecordKind::GroupChange,
                    1 => RecordKind::OwnChain,
                    2 => RecordKind::ChainRecipients,
                    _ => return None,
                };
                Some((kind, row.value))
            });
            groups.insert(id, State::load(&core.identity, id, rows).map_err(Error::passed)?);
        }
        self.groups = groups;
        self.joining.clear();
        self.parked.values_mut().for_each(|parked| parked.again = true);
        self.loaded = true;
        Ok(())
    }

    /// Posts that no lane had committed when the store was closed go on by themselves.
    async fn load_posts(&mut self) -> Result<()> {
        let core = Arc::clone(&self.core);
        let store = &core.store;
        let rows = store
            .scan_all(Scan::of(Table::Outbox, rows::POSTS), 2 * limits::MAX_POSTS)
            .await
            .map_err(Error::passed)?;
        let (mut bodies, mut posts) = (HashMap::new(), Vec::with_capacity(rows.len()));
        for row in rows {
            let seq = row.key.sort.as_slice().try_into().map(u64::from_be_bytes);
            let seq = seq.map_err(|_| Error::passed(CodecError::Length))?;
            let post = PostRow::decode(row.value.expose()).map_err(Error::passed)?;
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
            posts.push(Desk::stored_post(seq, post, &body));
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

    /// Whether something may be asked of, or answered to, a member once more.
    pub(super) fn may(&mut self, what: Asked) -> bool {
        let now = Instant::now();
        if self.asked.len() >= limits::MAX_GROUP_MAIL {
            self.asked.retain(|_, (_, at)| at.elapsed() < 60 * limits::GROUP_ASK_AGAIN);
            if self.asked.len() >= limits::MAX_GROUP_MAIL {
                return false;
            }
        }
        let (count, at) = self.asked.entry(what).or_insert((0, now));
        if *count > 0 && at.elapsed() >= 60 * limits::GROUP_ASK_AGAIN {
            *count = 0;
        }
        if *count > 0 && (at.elapsed() < limits::GROUP_ASK_AGAIN || *count >= limits::MAX_GROUP_ASKS) {
            return false;
        }
        *count += 1;
        *at = now;
        true
    }
}
