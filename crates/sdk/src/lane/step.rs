//! What one turn of a lane writes, and what happens once it is durable.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use stvor_base::{ContentId, KeyBytes};
use stvor_crypto::kdf::sha256;
use stvor_protocol::{Acknowledged, Effect, Effects};
use stvor_store::{ChangeSet, Op, StoreError};
use stvor_wire::client::{AckOne, ClientMessage};
use stvor_wire::server::Deliver;
use tokio::time::Instant;

use super::guarded::Decided;
use super::incoming::{Shown, Source};
use super::{Answer, Lane, Sealed, Waiting};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::events::{DeliveryState, Event};
use crate::guards::{self, Nonce};
use crate::inbox::Arrival;
use crate::journal::JournalEntry;
use crate::keys;
use crate::limits;
use crate::metrics;
use crate::parked::Reserved;
use crate::records;
use crate::rows::{LaneRow, MessageRow, PeerRow, Place};
use crate::transport::session::Session;

/// Something to be told to whoever waits, once it is durable.
pub(super) type Reply = Box<dyn FnOnce(Result<()>) + Send + Sync>;

/// One commit in the making. Dropped without it, nothing happened (but the lane in memory has moved on and has to be
/// loaded again).
pub(super) struct Step {
    pub(super) effects: Effects,
    pub(super) changes: ChangeSet,
    pub(super) row: LaneRow,
    /// Messages of ours as this step leaves them, each written once; `None` for one that goes.
    pub(super) messages: HashMap<Place, Option<MessageRow>>,
    pub(super) arrivals: Vec<Arrival>,
    /// Contents that were decrypted and are not judged yet: [`Lane::show_all`] does that.
    pub(super) shown: Vec<Shown>,
    pub(super) marks: HashSet<ContentId>,
    pub(super) acks: Vec<(Arc<Session>, AckOne)>,
    /// What arrived by a relay that answers for nothing: the peer is told so by [`Lane::confirm_arrivals`].
    pub(super) arrived: Vec<Acknowledged>,
    /// Of that, what nothing authenticated.
    pub(super) unopened: Vec<Acknowledged>,
    /// That, sealed.
    pub(super) confirmations: Vec<ClientMessage>,
    /// Mail that this step parks, and the numbers of what it takes from there.
    pub(super) parked: Vec<Reserved>,
    pub(super) unparked: Vec<u64>,
    /// Deliveries that this step takes: if another process took one of them first, each is judged by itself.
    pub(super) taken: Vec<(Box<Deliver>, Arc<Session>)>,
    pub(super) replies: Vec<Reply>,
    pub(super) events: Vec<Event>,
    pub(super) advances: Vec<(ContentId, DeliveryState)>,
    pub(super) sealed: Vec<Sealed>,
    pub(super) waiting: Vec<Waiting>,
    /// Messages that count as pending already: not any more if the commit fails.
    pub(super) counted: usize,
    /// Those of them that the peer asked for again.
    pub(super) resent: usize,
    /// Nothing but one delivery is in this step.
    pub(super) alone: bool,
    pub(super) peer: Option<PeerRow>,
    /// Waiting messages at the front of the queue that this step seals.
    pub(super) promoted: usize,
    /// Those of them that are not sealed, for there is nothing left to seal.
    pub(super) released: usize,
    pub(super) forget_peer: bool,
    /// Posts at the front of the queue that this step sends or gives up.
    pub(super) posted: usize,
    /// What this step hands to whoever keeps groups.
    pub(super) mailed: usize,
    /// The conversation moved on but what came of it could not be worked out: nothing of the step may be written.
    pub(super) broken: Option<Error>,
    /// Nonces that storage adapters marked for this step, and the identity that they vouched for.
    pub(super) nonces: Vec<Nonce>,
    pub(super) vouched: Option<KeyBytes>,
    /// The identity that it pins was decided on.
    pub(super) decided: Option<Decided>,
    /// Nobody else writes rows of messages that came, while this is held.
    pub(super) rows: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl Step {
    pub(super) fn new(row: LaneRow) -> Self {
        Self {
            effects: Effects::new(),
            changes: ChangeSet::new(),
            row,
            messages: HashMap::new(),
            arrivals: Vec::new(),
            shown: Vec::new(),
            marks: HashSet::new(),
            acks: Vec::new(),
            arrived: Vec::new(),
            unopened: Vec::new(),
            confirmations: Vec::new(),
            parked: Vec::new(),
            unparked: Vec::new(),
            taken: Vec::new(),
            replies: Vec::new(),
            events: Vec::new(),
            advances: Vec::new(),
            sealed: Vec::new(),
            waiting: Vec::new(),
            counted: 0,
            resent: 0,
            alone: false,
            peer: None,
            promoted: 0,
            released: 0,
            forget_peer: false,
            posted: 0,
            mailed: 0,
            broken: None,
            nonces: Vec::new(),
            vouched: None,
            decided: None,
            rows: None,
        }
    }

    /// The identity that is pinned now was decided on; `old` is the one that was.
    pub(super) fn decide(&mut self, old: Option<KeyBytes>) {
        let first = self.decided.and_then(|decided| decided.old);
        self.decided = Some(Decided { old: first.or(old) });
    }

    /// Adds an entry of the journal: it is there if and only if the step is.
    pub(super) fn journal(&mut self, entry: JournalEntry) {
        if let Err(error) = entry.write(&mut self.changes) {
            self.broken.get_or_insert(error);
        }
    }

    /// Whether it holds enough for one commit: what comes next goes into another.
    pub(super) fn is_full(&self) -> bool {
        // A name and the frame of a row, roughly and not too low: a name is an address of a few hundred bytes at most.
        const FRAME: usize = 512;
        let of_op = |op: &Op<_>| match op {
            Op::Put { value, .. } => FRAME + stvor_crypto::SecretBytes::len(value),
            _ => FRAME,
        };
        let of_effect = |effect: &Effect| match effect {
            Effect::Put { value, .. } | Effect::Insert { value, .. } => FRAME + value.len(),
            Effect::Delete { .. } => FRAME,
        };
        let of_message =
            |row: &Option<MessageRow>| FRAME + row.as_ref().map_or(0, |row| row.content.as_bytes().len());
        // A content that is shown is a row, a mark and a place in the inbox.
        let bytes = self.changes.ops.iter().map(of_op).sum::<usize>()
            + self.effects.as_slice().iter().map(of_effect).sum::<usize>()
            + self.messages.values().map(of_message).sum::<usize>()
            + self.shown.iter().map(|shown| 3 * FRAME + shown.size()).sum::<usize>();
        let ops =
            self.changes.len() + self.effects.as_slice().len() + self.messages.len() + 3 * self.shown.len();
        ops >= limits::TURN_OPS || bytes >= limits::TURN_BYTES
    }

    /// What came is done with once this step is durable.
    pub(super) fn ack(&mut self, deliver: &Deliver, source: &Source) {
        match source {
            Source::Relay(session) => {
                let one = AckOne { seq: deliver.seq, msg_id: deliver.msg_id };
                self.acks.push((Arc::clone(session), one));
            }
            Source::Parked(number) => {
                self.changes.delete(keys::parked(*number));
                self.unparked.push(*number);
            }
        }
    }

    /// The peer may know that this came, once this step is durable. Not of what could not be read (the request to send it
    /// again says that) nor of another such word that was opened: two who answered those would never stop.
    pub(super) fn confirm(&mut self, deliver: &Deliver, source: &Source) {
        self.arrived.extend(arrival(deliver, source));
    }

    /// The same of what nothing authenticated, as far as [`Unopened`](super::Unopened) lets it.
    pub(super) fn confirm_unopened(&mut self, deliver: &Deliver, source: &Source) {
        self.unopened.extend(arrival(deliver, source));
    }

    /// A delivery that this step takes.
    pub(super) fn take(&mut self, deliver: Box<Deliver>, source: Source) {
        self.ack(&deliver, &source);
        if let Source::Relay(session) = source {
            self.taken.push((deliver, session));
        }
    }

    /// Tells `reply` what became of the commit.
    pub(super) fn reply(&mut self, reply: Answer<Result<()>>) {
        self.replies.push(Box::new(move |result| reply.send(result)));
    }
}

/// What is acknowledged of a delivery, where no relay answers for it.
fn arrival(deliver: &Deliver, source: &Source) -> Option<Acknowledged> {
    let Source::Relay(session) = source else { return None };
    session.minimal.then(|| Acknowledged { message: deliver.msg_id, blob_hash: sha256(&[&deliver.blob]) })
}

impl Lane {
    /// Writes a step, whole or not at all, and then lets everybody know. True if another instance changed the
    /// conversation meanwhile: then nobody was told anything but what the relay accepted, and what the step was made of is to be
    /// taken again.
    pub(super) async fn commit(&mut self, mut step: Step) -> bool {
        self.confirm_arrivals(&mut step);
        let fence = self.fence(&step);
        let Step {
            effects,
            changes: own,
            row,
            messages,
            arrivals,
            acks,
            arrived: _,
            unopened: _,
            confirmations,
            parked,
            unparked,
            taken,
            replies,
            events,
            advances,
            sealed,
            waiting,
            counted,
            resent,
            alone,
            peer,
            promoted,
            released,
            forget_peer,
            posted,
            mailed,
            broken,
            nonces,
            vouched,
            decided,
            rows,
            marks: _,
            shown: _,
        } = step;
        let writes_row = fence.as_ref().map_or(row != self.row, |fence| fence.writes_row);
        let row_is_written = fence.is_some();
        let mut changes = fence.map(|fence| fence.changes).unwrap_or_default();
        changes.append(own);
        let removed = core::mem::take(&mut self.accepted);
        for queued in &removed {
            changes.delete(keys::pending(&self.peer, *queued));
        }
        for (place, row) in messages {
            let key = keys::message(&self.peer.user, place);
            changes.push(match row {
                Some(row) => Op::put(key, row.encode()).expiring(row.expires()),
                None => Op::delete(key),
            });
        }
        if guards::pinned(&effects).is_some() {
            // All pins are listed in one place, whatever pinned them: a backup finds them there.
            let name = self.peer.user.as_str().as_bytes().to_vec();
            changes.put(keys::pinned(&self.core.store, &self.peer.user), name);
        }
        let mut result = match broken {
            Some(error) => Err(error),
            None => match self.vouch(guards::pinned(&effects), (vouched, decided)).await {
                Ok(()) => records::write(&self.core.store, &mut changes, effects),
                Err(error) => Err(error),
            },
        };
        if writes_row && !row_is_written {
            changes.put(keys::lane(&self.core.store, &self.peer), row.encode(&self.peer));
        }
        let (mut redone, mut moved) = (false, false);
        let mut took = None;
        let (sent, received) = (sealed.len(), arrivals.len());
        if result.is_ok() && !changes.is_empty() {
            let tables = self.tables_of(&changes);
            let started = Instant::now();
            let committed = self.core.store.commit_in(self.incarnation, changes).await;
            took = Some(started.elapsed());
            match &committed {
                Ok(version) if writes_row => self.version = Some(*version),
                Err(StoreError::Conflict { op }) => {
                    (redone, moved) = self.met(*op, tables.as_deref()).await;
                }
                // What is too much at once is not too much one by one.
                Err(StoreError::Limit { .. }) => redone = !alone,
                _ => {}
            }
            result = committed.map(|_| ()).map_err(Error::passed);
        }
        drop(rows);
        if let Err(error) = result {
            // Two messages that can not be stored together fail nothing but themselves.
            let apart = redone && !moved && !alone && self.again.is_some();
            self.accepted = removed;
            drop(parked);
            if apart {
                self.depth.fetch_sub(resent, Ordering::Relaxed);
                drop(arrivals);
                self.conversation = None;
            } else if moved {
                self.depth.fetch_sub(resent, Ordering::Relaxed);
                drop(arrivals);
                self.has_moved();
            } else {
                self.depth.fetch_sub(counted, Ordering::Relaxed);
                // Whether it was stored after all is not known: what is found is taken over.
                self.seen_epoch = 0;
                self.failed_commit(&error, arrivals, replies);
            }
            // The relay answers for these, whatever the store says; their rows go with the next commit.
            let accepted = advances.iter().filter(|(_, state)| *state == DeliveryState::Accepted);
            let accepted: Vec<_> = accepted.map(|(id, _)| *id).collect();
            self.emit_states(&accepted, DeliveryState::Accepted);
            if moved {
                return true;
            }
            // What was to be acknowledged without being taken (a failure, a duplicate) comes again, too.
            if acks.len() > taken.len() {
                self.core.kick_soon();
            }
            if redone {
                let again = self.again.take();
                self.redo(taken, alone).await;
                self.again = again;
            } else {
                for (_, session) in &taken {
                    self.core.leave(&self.peer, session.generation);
                }
            }
            self.apart = apart;
            return apart;
        }
        self.row = row;
        // First of all: what is committed must not come back by a fault in what follows.
        for post in self.posts.drain(..posted.min(self.posts.len())) {
            self.core.groups.posted(&post);
        }
        if let Some(guards) = &self.core.guards {
            guards.finish(&nonces);
        }
        self.core.parked.settle(&self.peer, parked, &unparked);
        if self.row.due.is_empty() {
            self.due_since = None;
        } else {
            self.due_since.get_or_insert_with(Instant::now);
        }
        if let Some(peer) = peer {
            self.core.remember_peer(peer);
        }
        if forget_peer {
            self.core.forget_peer(&self.peer.user);
        }
        self.waiting.drain(..promoted.min(self.waiting.len()));
        let sealed_now = promoted - released.min(promoted);
        let grown = sealed.len() - sealed_now.min(sealed.len()) + waiting.len();
        self.release(released);
        self.core.unaccepted.fetch_add(grown, Ordering::Relaxed);
        // After what was sealed counts: nobody is to see nothing pending in between.
        self.count_owing();
        self.core.settle(released);
        self.core.settle(posted);
        self.core.groups.mailed(&self.peer.user, mailed);
        self.sealed.extend(sealed);
        self.waiting.extend(waiting);
        self.core.inbox.arrived(arrivals);
        for (session, one) in acks {
            session.ack(one);
        }
        let session = self.core.session().filter(|session| session.minimal);
        for message in confirmations {
            // What is lost for want of room is said when the message comes again.
            if let Some(room) = session.as_ref().and_then(|session| session.try_room()) {
                room.send(message);
            }
        }
        for reply in replies {
            reply(Ok(()));
        }
        for (id, state) in &advances {
            self.core.watchers.advance(*id, *state);
        }
        for state in
            [DeliveryState::Accepted, DeliveryState::Delivered, DeliveryState::Read, DeliveryState::Failed]
        {
            let ids: Vec<_> = advances.iter().filter(|(_, s)| *s == state).map(|(id, _)| *id).collect();
            self.emit_states(&ids, state);
        }
        for event in events {
            self.core.hub.emit(event);
        }
        // Last: the recorder is the application's, and what it does must find nothing half done.
        if let Some(took) = took {
            metrics::commit(took, sent + received);
        }
        metrics::sent(sent);
        metrics::received(received);
        false
    }

    fn failed_commit(&mut self, error: &Error, arrivals: Vec<Arrival>, replies: Vec<Reply>) {
        // Memory is ahead of the store: load again before anything else.
        self.conversation = None;
        self.in_doubt |= ["STORE_TIMEOUT", "STORE_UNCERTAIN"].contains(&error.code());
        drop(arrivals);
        self.core.hub.emit(Event::StoreFailing { code: error.code() });
        for reply in replies {
            reply(Err(error.clone()));
        }
    }

    /// Deliveries of a commit that met a conflict or was too large: each is judged by itself, and one that conflicts alone
    /// was taken by another process: a duplicate.
    async fn redo(&mut self, taken: Vec<(Box<Deliver>, Arc<Session>)>, alone: bool) {
        if let ([(deliver, session)], true) = (taken.as_slice(), alone) {
            metrics::duplicate();
            session.ack(AckOne { seq: deliver.seq, msg_id: deliver.msg_id });
            return;
        }
        for (deliver, session) in taken {
            let mut tries = 0;
            loop {
                if self.reload().await.is_err() {
                    self.core.leave(&self.peer, session.generation);
                    break;
                }
                let mut step = Step::new(self.row.clone());
                step.alone = true;
                self.last_try = tries >= limits::TURN_TRIES;
                self.receive(deliver.clone(), Source::Relay(Arc::clone(&session)), &mut step).await;
                self.show_all(&mut step).await;
                if !Box::pin(self.commit(step)).await {
                    break;
                }
                tries += 1;
                self.step_aside(tries).await;
            }
        }
    }
}

impl Core {
    /// Starts the connection afresh in a while, so that the relay offers again what could not be stored. However often it
    /// is asked for meanwhile, it is started afresh once.
    pub(crate) fn kick_soon(&self) {
        if self.kicking.swap(true, Ordering::SeqCst) {
            return;
        }
        let kicking = Arc::clone(&self.kicking);
        let (kick, stop) = (Arc::clone(&self.kick), self.stop.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(std::time::Duration::from_secs(2)) => {
                    kicking.store(false, Ordering::SeqCst);
                    kick.notify_one();
                }
                () = stop.cancelled() => {}
            }
        });
    }
}
