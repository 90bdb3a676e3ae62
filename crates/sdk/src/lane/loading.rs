//! What a lane left in the store, read back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use stvor_protocol::Conversation;
use stvor_store::{RowVersion, Scan, Table};
use tokio::time::Instant;

use super::guarded::Confirm;
use super::{Lane, Sealed, Waiting};
use crate::error::{Error, Result};
use crate::keys;
use crate::limits;
use crate::records;
use crate::rows::{LaneRow, PeerRow, PendingBody, PendingRow, SealedSend};

impl Lane {
    /// Reads what the lane left in the store, in the place of what memory holds: at the start, and after a commit failed.
    /// On an error nothing changes but that the conversation is not loaded.
    pub(super) async fn reload(&mut self) -> Result<()> {
        self.load(Confirm::Now).await
    }

    /// [`reload`](Self::reload), with or without asking the application's own store about the pinned identity.
    pub(super) async fn load(&mut self, confirm: Confirm) -> Result<()> {
        self.conversation = None;
        let core = Arc::clone(&self.core);
        let store = &core.store;
        let epoch = core.instances.epoch();
        let mut incarnation = store.incarnation();
        let adopt = self.seen_epoch != epoch || core.instances.is_alone();
        // First the row whose version every commit expects: what changes while the others are read is noticed then.
        let (row, version) = self.stored_row().await?;
        // As much as an application may ever have let wait, and as many controls: what is left out would be overtaken.
        let rows = store
            .scan_all(Scan::of(Table::Outbox, keys::pending_of(&self.peer)), 2 * limits::MOST_QUEUED)
            .await
            .map_err(Error::passed)?;
        let (mut sealed, mut waiting) = (Vec::new(), VecDeque::new());
        for pending in rows {
            let queued = pending.key.sort.as_slice().try_into().map(u64::from_be_bytes);
            let queued = queued.map_err(|_| Error::passed(stvor_base::codec::CodecError::Length))?;
            if self.accepted.contains(&queued) {
                // The relay has it; its row goes with the next commit.
                continue;
            }
            let pending = PendingRow::decode(pending.value.expose()).map_err(Error::passed)?;
            let PendingRow { body, sealed: send, created_at } = pending;
            match (send, body) {
                (Some(send), body) => {
                    let (sent_in, own) = self.sent_in(&send);
                    let foreign = !(own || adopt);
                    sealed.push(Sealed { queued, body, send, created_at, sent_in, foreign });
                }
                (None, PendingBody::Message(place)) => {
                    waiting.push_back(Waiting { queued, place, created_at });
                }
                (None, PendingBody::Control) => {}
            }
        }
        // Lane numbers are the order of sealing, whatever the order of queueing was.
        sealed.sort_by_key(|one| (one.send.lane_epoch != row.epoch, one.send.lane));
        // Only the instance that receives asks for what it could not read.
        let (requests, refused) = match core.instances.receives() {
            true => Self::stored_requests(&core, &self.peer).await?,
            false => (Vec::new(), Vec::new()),
        };
        let conversation = self.stored_conversation().await?;
        if confirm == Confirm::Now {
            self.confirm(&conversation).await?;
        }
        if core.instances.is_shared() && self.version.is_some() && row.counter < self.row.counter {
            // Others only ever raise it: the store itself was put back under us.
            crate::rollback::put_back(&core, (self.row.counter, row.counter)).await?;
            // What was read is what it was put back to.
            incarnation = store.incarnation();
        }
        self.drop_sent_posts().await?;
        let before = self.count_pending();
        (self.row, self.sealed, self.waiting) = (row, sealed.into(), waiting);
        (self.requests, self.refused) = (requests.into(), refused);
        let after = self.count_pending();
        // Added first: nobody is to see nothing pending in between.
        self.depth.fetch_add(after.0, Ordering::Relaxed);
        self.depth.fetch_sub(before.0, Ordering::Relaxed);
        self.core.unaccepted.fetch_add(after.1, Ordering::Relaxed);
        self.core.settle(before.1);
        self.due_since = self.owes().then(Instant::now);
        self.count_owing();
        core.raise_order(self.row.order);
        // Another instance's clock may have been ahead: numbers never go back behind what one of them used.
        core.raise_counter(self.row.counter);
        (self.version, self.seen_epoch, self.incarnation) = (version, epoch, incarnation);
        self.conversation = Some(conversation);
        if core::mem::take(&mut self.in_doubt) {
            // What was received by it is in nobody's hands, and comes again from the relay as a duplicate.
            core.inbox.look_again();
            core.groups.look_again();
        }
        Ok(())
    }

    /// The lane's row and its version; of a shared store also what other instances may have changed of its peer.
    async fn stored_row(&mut self) -> Result<(LaneRow, Option<RowVersion>)> {
        let store = &self.core.store;
        let mut keys = vec![keys::lane(store, &self.peer)];
        if self.core.instances.is_shared() {
            keys.push(keys::peer(store, &self.peer.user));
        }
        let mut rows = store.get(&keys).await.map_err(Error::passed)?.into_iter();
        let lane = rows.next().flatten();
        if let Some(row) = rows.next().flatten() {
            self.core.remember_peer(PeerRow::decode(row.value.expose()).map_err(Error::passed)?);
        }
        match lane {
            Some(row) => {
                Ok((LaneRow::decode(row.value.expose()).map_err(Error::passed)?.1, Some(row.version)))
            }
            None => Ok((LaneRow::default(), None)),
        }
    }

    /// Whether this instance owes the peer receipts.
    pub(super) fn owes(&self) -> bool {
        !self.row.due.is_empty() && self.core.instances.receives()
    }

    /// Whether the peer is to be told of our present identity by this instance.
    pub(super) fn announces(&self) -> bool {
        let told = self.conversation.as_ref().is_some_and(|conversation| conversation.session_id().is_some());
        self.row.announce.is_some() && !told && self.core.instances.receives()
    }

    /// Messages of the application that are not accepted, and everything that is not and that this instance sends.
    pub(super) fn count_pending(&self) -> (usize, usize) {
        let messages = self.sealed.iter().filter(|one| one.body != PendingBody::Control).count();
        (messages + self.waiting.len(), self.own_sealed() + self.waiting.len())
    }

    /// The connection that exactly this was last sent on, 0 for none; and whether it is this instance that sends it.
    fn sent_in(&self, send: &SealedSend) -> (u64, bool) {
        let Some(one) = self.sealed.iter().find(|one| one.send.msg_id == send.msg_id) else {
            return (0, false);
        };
        let same = (one.send.lane_epoch, one.send.lane) == (send.lane_epoch, send.lane);
        (if same { one.sent_in } else { 0 }, !one.foreign)
    }

    /// Receipts that are owed, and a fresh identity of ours that the peer is not told of, count as one thing that waits to be
    /// sent, so that closing waits for them: not for a peer who has no keys just now.
    pub(super) fn count_owing(&mut self) {
        let owing = self.owes() || (self.announces() && !self.unreached);
        match (self.owing, owing) {
            (false, true) => {
                self.core.unaccepted.fetch_add(1, Ordering::Relaxed);
            }
            (true, false) => self.core.settle(1),
            _ => {}
        }
        self.owing = owing;
    }

    async fn stored_conversation(&mut self) -> Result<Conversation> {
        let wanted = Conversation::keys(&self.peer);
        let rows = records::load(&self.core.store, &wanted, &stvor_protocol::Effects::new()).await?;
        Conversation::load(&self.core.identity, &self.peer, &rows).map_err(Error::passed)
    }
}
