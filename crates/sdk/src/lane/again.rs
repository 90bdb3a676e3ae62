//! Taking a turn again. On a shared store another instance may change a conversation between two turns of this one; the
//! commit then meets another version of the lane's row than it read. Nothing was stored and nothing is on the wire, so
//! the lane is read again and takes what it was given once more.

use std::time::Duration;

use stvor_protocol::{RecordKind, TrustDecision};
use stvor_store::{ChangeSet, Expect, Op, Table};
use tokio::time::Instant;

use super::step::Step;
use super::{FoundBundle, Held, Lane, Mail, Work};
use crate::core::random;
use crate::error::{Error, Result};
use crate::keys;
use crate::limits;
use crate::rows::LaneRow;

/// What a commit of a shared store begins with.
pub(super) struct Fence {
    pub(super) changes: ChangeSet,
    /// Whether the lane's row is written, and not only expected.
    pub(super) writes_row: bool,
}

/// What a turn was given and what it uses up.
pub(super) struct Again {
    letters: Vec<Mail>,
    orders: Vec<Work>,
    held: Vec<Held>,
    bundle: Option<FoundBundle>,
    decision: Option<TrustDecision>,
    rehandshake: bool,
    last_gap: Option<(u64, Instant)>,
}

impl Lane {
    /// Notes what is to be done from here on, should this have to be done again: on a shared store, and where mail that can
    /// not be stored together would fail orders that have nothing to do with it.
    pub(super) fn note<'a>(
        &mut self,
        letters: impl IntoIterator<Item = &'a Mail>,
        orders: impl IntoIterator<Item = &'a Work>,
    ) {
        let shared = self.core.instances.is_shared();
        let mut letters = letters.into_iter().peekable();
        if !shared && letters.peek().is_none() {
            self.again = None;
            return;
        }
        self.again = Some(Again {
            letters: if shared { letters.cloned().collect() } else { Vec::new() },
            orders: orders.into_iter().cloned().collect(),
            held: self.held.clone(),
            bundle: self.bundle.clone(),
            decision: self.decision.clone(),
            rehandshake: self.rehandshake,
            last_gap: self.last_gap,
        });
    }

    /// Brings back what was noted, but for what was answered meanwhile.
    pub(super) fn bring_back(&mut self, letters: &mut Vec<Mail>, orders: &mut Vec<Work>) {
        let Some(again) = self.again.take() else { return };
        *letters = again.letters;
        *orders = again.orders;
        orders.retain(|order| !order.is_answered());
        self.held = again.held;
        self.held.retain(|held| !held.request.reply.is_answered());
        (self.bundle, self.decision, self.rehandshake) = (again.bundle, again.decision, again.rehandshake);
        // New numbers that answered a gap are in no store.
        self.last_gap = again.last_gap;
    }

    /// A random pause, so that instances that met do not meet again.
    pub(super) async fn step_aside(&mut self, tries: u32) {
        let bound = Duration::from_millis(1 << tries.min(16)).min(limits::TURN_PAUSE);
        let part = random(&mut self.rng).map_or(u32::MAX / 2, u32::from_be_bytes);
        tokio::time::sleep(bound.mul_f64(f64::from(part) / f64::from(u32::MAX))).await;
    }

    /// Reads the lane if memory has nothing, or something else than the store as far as that can be told cheaply.
    pub(super) async fn be_current(&mut self, orders: &[Work]) -> Result<()> {
        if self.conversation.is_none() || self.is_behind(orders).await? {
            self.reload().await?;
        }
        Ok(())
    }

    /// Whether another instance changed the conversation. Without a reason to think so nobody looks: the commit will
    /// tell.
    async fn is_behind(&mut self, orders: &[Work]) -> Result<bool> {
        let instances = &self.core.instances;
        if !instances.is_shared() {
            return Ok(false);
        }
        if self.seen_epoch != instances.epoch() || self.incarnation != self.core.store.incarnation() {
            return Ok(true);
        }
        let suspicious = self.moved_at.is_some_and(|at| at.elapsed() < limits::CONTENDED)
            || self.core.closing.load(core::sync::atomic::Ordering::Relaxed)
            || orders.iter().any(|order| matches!(order, Work::Command(_)));
        if !suspicious {
            return Ok(false);
        }
        let row =
            self.core.store.one(&keys::lane(&self.core.store, &self.peer)).await.map_err(Error::passed)?;
        Ok(row.map(|row| row.version) != self.version)
    }

    /// What the commit of a step expects on a shared store: that this instance was not declared gone, and that the lane's
    /// row is as it was read. The row stands for all of a conversation: whoever changes any of that writes it too.
    pub(super) fn fence(&self, step: &Step) -> Option<Fence> {
        let instances = &self.core.instances;
        let nothing = step.effects.is_empty()
            && step.changes.is_empty()
            && step.messages.is_empty()
            && step.acks.is_empty()
            && step.row == self.row;
        // That the relay accepted something is true whoever else writes.
        if !instances.is_shared() || nothing {
            return None;
        }
        let mut changes = ChangeSet::new();
        changes.push(instances.fence());
        let key = keys::lane(&self.core.store, &self.peer);
        // Strangers whose mail can not be read get no row, or forged names would fill the store.
        let repairs = |effect: &stvor_protocol::Effect| effect.key().kind == RecordKind::Repair;
        let writes_row = self.version.is_some()
            || step.row != LaneRow::default()
            || !step.effects.as_slice().iter().all(repairs);
        changes.push(match (writes_row, self.version) {
            (false, _) => Op::delete(key).expecting(Expect::Absent),
            (true, None) => Op::insert(key, step.row.encode(&self.peer)),
            (true, Some(version)) => {
                Op::put(key, step.row.encode(&self.peer)).expecting(Expect::Version(version))
            }
        });
        Some(Fence { changes, writes_row })
    }

    /// Where the operations of a commit go, if that may be asked for.
    pub(super) fn tables_of(&self, changes: &ChangeSet) -> Option<Vec<Table>> {
        self.core.instances.is_shared().then(|| changes.ops.iter().map(Op::table).collect())
    }

    /// A commit met a row that it did not expect: whether its deliveries are to be judged one by one, and whether the
    /// whole turn is to be taken again.
    pub(super) async fn met(&mut self, op: usize, tables: Option<&[Table]>) -> (bool, bool) {
        let Some(tables) = tables else { return (true, false) };
        match tables.get(op) {
            // Declared gone.
            Some(Table::Meta) => {
                self.core.stop_receiving();
                self.core.instances.hurry();
            }
            Some(Table::Inbox) => {
                if let Err(error) = self.core.inbox.count().await {
                    tracing::warn!(code = error.code(), "the inbox could not be counted");
                }
            }
            _ => {}
        }
        let mark =
            |table: &Table| matches!(table, Table::ReplayMark | Table::HandshakeMark | Table::ContentId);
        (tables.get(op).is_some_and(mark), !self.last_try)
    }

    /// The conversation was changed by another instance.
    pub(super) fn has_moved(&mut self) {
        self.conversation = None;
        self.moved_at = Some(Instant::now());
        crate::metrics::moved();
    }
}
