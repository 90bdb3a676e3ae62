//! What came from members: changes, sender keys, requests, messages.

use std::collections::BTreeMap;
use std::sync::Arc;

use stvor_base::{ContentId, Timestamp};
use stvor_crypto::SecretBytes;
use stvor_protocol::group::{
    Again, ChainId, Group as State, GroupContent, GroupIncoming, Introduction, Member, PeerChain,
    SenderKeyIn, SignedChangeIn, bodies_of, limits as bounds,
};
use stvor_protocol::{ContentKind, Pin, ProtocolError, RecordKey};
use stvor_store::{Op, Scan, Table};
use tokio::time::Instant;

use super::actor::{Actor, Asked, Lacks, Parked};
use super::rows::{self, GroupRow, MailRow};
use super::turn::{Failure, Turn};
use crate::content::Content;
use crate::error::{Error, Result};
use crate::events::{DeliveryState, Event};
use crate::inbox::Arrival;
use crate::keys;
use crate::limits;
use crate::rows::{Direction, MessageRow, Place, PointerRow};

/// What becomes of mail.
enum Verdict {
    Done,
    Waits(Lacks),
    /// The inbox is full: it and all behind it stay where they are.
    Later,
}

type Judged = core::result::Result<Verdict, Trouble>;

/// Why mail could not be judged.
enum Trouble {
    /// The fault is here: it stays where it is.
    Here(Error),
    /// It is refused.
    Refused(ProtocolError),
}

impl From<ProtocolError> for Trouble {
    fn from(error: ProtocolError) -> Self {
        match error {
            ProtocolError::BadRecord(_) | ProtocolError::MissingRow(_) | ProtocolError::Crypto(_) => {
                Self::Here(Error::passed(error))
            }
            other => Self::Refused(other),
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Here(error)
    }
}

impl Actor {
    /// Judges all mail that came, in the order of its arrival.
    pub(super) async fn take_mail(&mut self) {
        // Each round judges something that was not judged before, or ends.
        self.stalled = false;
        loop {
            if self.stalled || self.load().await.is_err() {
                return;
            }
            let scan = Scan::of(Table::Group, rows::MAIL).limit(stvor_store::limits::MAX_SCAN);
            let page = match self.core.store.scan(scan).await {
                Ok(page) => page.rows,
                Err(error) => {
                    self.core.hub.emit(Event::StoreFailing { code: stvor_base::ErrorCode::code(&error) });
                    return;
                }
            };
            let seq_of =
                |row: &stvor_store::Record| row.key.sort.as_slice().try_into().map(u64::from_be_bytes);
            let fresh: Vec<(u64, SecretBytes)> = page
                .into_iter()
                .filter_map(|row| Some((seq_of(&row).ok()?, row.value)))
                .filter(|(seq, _)| self.parked.get(seq).is_none_or(|parked| parked.again))
                .take(limits::GROUP_BATCH)
                .collect();
            if fresh.is_empty() {
                return;
            }
            match self.judge_all(&fresh).await {
                Ok(()) => {}
                Err(Failure::Conflict) => {
                    for one in fresh {
                        if !self.judge_alone(one).await {
                            return;
                        }
                    }
                }
                Err(Failure::Other(_)) => return,
            }
        }
    }

    async fn judge_all(&mut self, mail: &[(u64, SecretBytes)]) -> core::result::Result<(), Failure> {
        let mut turn = Turn::default();
        for (seq, row) in mail {
            if self.stalled || turn.changes.len() + turn.effects.as_slice().len() >= limits::TURN_OPS {
                break;
            }
            if let Err(error) = self.judge(*seq, row, &mut turn).await {
                // Memory may have moved on: nothing of this turn is written.
                self.loaded = false;
                self.core.inbox.give_back(turn.arrivals.iter().map(|arrival| arrival.seq));
                self.core.hub.emit(Event::StoreFailing { code: error.code() });
                return Err(Failure::Other(error));
            }
        }
        self.commit(turn).await
    }

    /// One by itself: what conflicts alone was taken by another process.
    async fn judge_alone(&mut self, (seq, row): (u64, SecretBytes)) -> bool {
        if self.load().await.is_err() {
            return false;
        }
        match self.judge_all(&[(seq, row)]).await {
            Ok(()) => true,
            Err(Failure::Conflict) => {
                let mut turn = Turn::default();
                turn.judged(seq);
                self.commit(turn).await.is_ok()
            }
            Err(Failure::Other(_)) => false,
        }
    }

    async fn judge(&mut self, seq: u64, row: &SecretBytes, turn: &mut Turn) -> Result<()> {
        let Ok(mail) = MailRow::decode(row.expose()) else {
            turn.judged(seq);
            return Ok(());
        };
        let old = self.core.now().since(mail.arrived_at) >= limits::KEEP_SENT;
        let verdict = match (&mail.key, old) {
            (_, true) => Ok(Verdict::Done),
            (Some(key), _) => {
                let member = Member { user: mail.from.user.clone(), key: *key };
                self.judge_content(&mail, &member, turn).await
            }
            (None, _) => self.judge_message(&mail, turn).await,
        };
        match verdict {
            Ok(Verdict::Done) => turn.judged(seq),
            Ok(Verdict::Waits(lacks)) => self.park(seq, &mail, lacks, turn),
            Ok(Verdict::Later) => self.stalled = true,
            Err(Trouble::Here(error)) => return Err(error),
            Err(Trouble::Refused(error)) => {
                crate::metrics::rejected();
                if !matches!(error, ProtocolError::Duplicate) {
                    turn.events.push(Event::MessageUndecryptable {
                        peer: mail.from.user.clone(),
                        code: stvor_base::ErrorCode::code(&error),
                        repair_requested: false,
                    });
                }
                turn.judged(seq);
            }
        }
        Ok(())
    }

    /// Mail waits. Past the bounds the oldest goes.
    fn park(&mut self, seq: u64, mail: &MailRow, lacks: Lacks, turn: &mut Turn) {
        let since = self.parked.get(&seq).map_or_else(Instant::now, |parked| parked.since);
        let from = mail.from.clone();
        self.parked.insert(seq, Parked { since, from: from.clone(), lacks, again: false });
        let of_them: Vec<u64> =
            self.parked.iter().filter(|(_, parked)| parked.from == from).map(|(seq, _)| *seq).collect();
        let over = if of_them.len() > limits::MAX_GROUP_WAITING_OF_ONE {
            of_them.iter().min().copied()
        } else if self.parked.len() > limits::MAX_GROUP_WAITING {
            self.parked.keys().min().copied()
        } else {
            None
        };
        if let Some(oldest) = over
            && !turn.done.contains(&oldest)
        {
            turn.judged(oldest);
            turn.events.push(Event::MessageUndecryptable {
                peer: from.user,
                code: stvor_base::ErrorCode::code(&ProtocolError::UnknownSenderKey),
                repair_requested: false,
            });
        }
    }

    // ---- What members tell us ----

    async fn judge_content(&mut self, mail: &MailRow, member: &Member, turn: &mut Turn) -> Judged {
        match GroupContent::decode(&SecretBytes::from_slice(&mail.body))? {
            GroupContent::Changes(id, changes) => self.take_changes(mail, (id, changes), turn).await,
            GroupContent::SenderKey(key) => self.take_key((mail, member), &key, turn).await,
            GroupContent::WantChanges(id, known) => {
                let Some(group) = self.groups.get(&id) else { return Ok(Verdict::Done) };
                // Who was put out may learn of it, and nobody else who is no member.
                let named = group.admits(&member.user, &member.key)
                    || group.changes().any(|change| match change.action() {
                        stvor_protocol::group::Action::Remove(user) => *user == member.user,
                        _ => false,
                    });
                let changes = group.beyond(&known);
                let asked = [b"changes ".as_slice(), id.as_bytes()].concat();
                if named && !changes.is_empty() && self.may(Asked(member.user.clone(), asked)) {
                    for body in bodies_of(id, changes) {
                        self.post((body, false), [member.clone()], turn);
                    }
                }
                Ok(Verdict::Done)
            }
            GroupContent::WantKey(chain, counters) => self.send_again(member, (chain, counters), turn).await,
            GroupContent::Again(again) => self.take_again((mail, member), again, turn).await,
        }
    }

    async fn take_changes(
        &mut self,
        mail: &MailRow,
        (id, changes): (stvor_base::GroupId, Vec<SignedChangeIn>),
        turn: &mut Turn,
    ) -> Judged {
        let core = Arc::clone(&self.core);
        let known = self.groups.contains_key(&id);
        if !known && (self.groups.len() >= limits::MAX_GROUPS || self.joining.len() >= limits::MAX_GROUPS) {
            return Err(Trouble::Refused(ProtocolError::GroupFull {
                what: "groups",
                limit: limits::MAX_GROUPS,
            }));
        }
        let stored = if known { self.groups.remove(&id) } else { self.joining.remove(&id) };
        let mut group = stored.unwrap_or_else(|| State::join(&core.identity, id));
        let mut early = false;
        for change in changes {
            let change = change.validate(core.identity.app())?;
            let by = change.author().user.clone();
            match group.apply(change) {
                Ok(applied) if known => self.settle(&group, (applied, &by), turn).await?,
                Ok(_) => {}
                Err(ProtocolError::ChangeEarly) => early = true,
                Err(error) => {
                    // What was taken in before it stays: each change stands for itself.
                    if known {
                        self.groups.insert(id, group);
                    } else {
                        self.joining.insert(id, group);
                    }
                    return Err(error.into());
                }
            }
        }
        let verdict = if early { Verdict::Waits(Lacks::Changes(id)) } else { Verdict::Done };
        if known {
            self.groups.insert(id, group);
            return Ok(verdict);
        }
        if !group.admits(core.identity.user(), core.identity.user_key()) {
            // Not ours so far: the rest may be under way. It is in memory only, and its mail stays.
            self.joining.insert(id, group);
            return Ok(Verdict::Waits(Lacks::Nothing));
        }
        turn.effects.append(group.save());
        turn.changes.put(rows::group(id), GroupRow { joined_at: core.now() }.encode());
        turn.events.push(Event::GroupJoined { group: id, by: mail.from.user.clone() });
        turn.progress = true;
        self.groups.insert(id, group);
        Ok(verdict)
    }

    async fn take_key(
        &mut self,
        (mail, member): (&MailRow, &Member),
        key: &SenderKeyIn,
        turn: &mut Turn,
    ) -> Judged {
        let Some(group) = self.groups.get(&key.group) else { return Ok(Verdict::Waits(Lacks::Nothing)) };
        let behind = key.heads.iter().any(|head| !group.knows(head));
        if !group.admits(&member.user, &member.key) {
            return if behind {
                Ok(Verdict::Waits(Lacks::Changes(key.group)))
            } else {
                Err(Trouble::Refused(ProtocolError::NotMember(member.user.clone())))
            };
        }
        let introduction = Introduction { sender: &mail.from, user_key: &member.key };
        let wanted = introduction.needs(key);
        let records = crate::records::load(&self.core.store, &wanted, &turn.effects).await?;
        let effects = introduction.accept(key, &records)?;
        turn.progress |= !effects.is_empty();
        turn.effects.append(effects);
        if behind {
            // The sender knows more than we do; the changes are on their way, or are asked for.
            let heads = group.heads();
            let asked = [b"behind ".as_slice(), key.group.as_bytes()].concat();
            if self.may(Asked(member.user.clone(), asked)) {
                let body = GroupContent::WantChanges(key.group, heads).encode();
                self.post((body, false), [member.clone()], turn);
            }
        }
        Ok(Verdict::Done)
    }

    /// A member lacks a sender key of ours, and messages that were sent with it.
    async fn send_again(
        &mut self,
        member: &Member,
        (chain, counters): (ChainId, Vec<u32>),
        turn: &mut Turn,
    ) -> Judged {
        let Some(group) = self.groups.values().find(|group| group.sent_on(&chain)) else {
            return Ok(Verdict::Done);
        };
        let id = group.id();
        let again = group.introduce_again(member, &chain);
        let entitled: Vec<u32> =
            counters.into_iter().filter(|counter| group.entitled(member, (&chain, *counter))).collect();
        if !self.may(Asked(member.user.clone(), [b"key ".as_slice(), &chain].concat())) {
            return Ok(Verdict::Done);
        }
        if let Some(body) = again {
            self.post((body, false), [member.clone()], turn);
        }
        for counter in entitled {
            let store = &self.core.store;
            let row = store.one(&rows::sent(id, (&chain, counter))).await.map_err(Error::passed)?;
            let Some(row) = row else { continue };
            let place = Place::from_bytes(row.value.expose()).map_err(Error::passed)?;
            let row = store.one(&keys::group_message(id, place)).await.map_err(Error::passed)?;
            let Some(row) = row else { continue };
            let row = MessageRow::decode(row.value.expose()).map_err(Error::passed)?;
            let body = GroupContent::Again(Again {
                group: id,
                content: place.id,
                sent_at: row.sent_at,
                kind: row.content.tag(),
                body: row.content.as_bytes().to_vec(),
            });
            self.post((body.encode(), false), [member.clone()], turn);
        }
        Ok(Verdict::Done)
    }

    async fn take_again(
        &mut self,
        (mail, member): (&MailRow, &Member),
        again: Again,
        turn: &mut Turn,
    ) -> Judged {
        let Some(group) = self.groups.get(&again.group) else { return Ok(Verdict::Waits(Lacks::Nothing)) };
        if !group.admits(&member.user, &member.key) {
            return Err(Trouble::Refused(ProtocolError::NotMember(member.user.clone())));
        }
        if !self.core.inbox.has_room(&mail.from.user, turn.arrivals_of(&mail.from.user)) {
            return Ok(Verdict::Later);
        }
        let content = Content::decode(again.kind, &again.body).map_err(ProtocolError::Malformed)?;
        let shown = (again.content, content, again.sent_at);
        self.show((mail, again.group), shown, turn).await?;
        turn.events.push(Event::Repaired { peer: mail.from.user.clone(), id: again.content });
        Ok(Verdict::Done)
    }

    // ---- Messages ----

    async fn judge_message(&mut self, mail: &MailRow, turn: &mut Turn) -> Judged {
        let incoming = GroupIncoming::parse(&mail.body)?;
        let core = Arc::clone(&self.core);
        let wanted = PeerChain::keys(&mail.from, incoming.chain());
        let records = crate::records::load(&core.store, &wanted, &turn.effects).await?;
        let Some(chain) = PeerChain::load(&mail.from, incoming.chain(), &records)? else {
            // From whom no member of any group of ours has its name, nothing is waited for.
            let member = self.groups.values().any(|group| group.key_of(&mail.from.user).is_some());
            return if member || !self.parked.is_empty() || !self.joining.is_empty() {
                Ok(Verdict::Waits(Lacks::Key(*incoming.chain(), incoming.counter())))
            } else {
                Err(Trouble::Refused(ProtocolError::UnknownSenderKey))
            };
        };
        let Some(group) = self.groups.get(&chain.group()) else { return Ok(Verdict::Waits(Lacks::Nothing)) };
        if !group.is_member() {
            return Ok(Verdict::Done);
        }
        if !group.admits(&mail.from.user, chain.user_key()) {
            return Err(Trouble::Refused(ProtocolError::NotMember(mail.from.user.clone())));
        }
        if !core.inbox.has_room(&mail.from.user, turn.arrivals_of(&mail.from.user)) {
            return Ok(Verdict::Later);
        }
        let id = chain.group();
        let wanted: Vec<RecordKey> = chain.needs(&incoming).into_iter().collect();
        let records = crate::records::load(&core.store, &wanted, &turn.effects).await?;
        let received = match chain.open(core.identity.app(), &incoming, (&records, core.now())) {
            Ok(received) => received,
            Err(error) => {
                if error.wants_repair() {
                    self.ask_for_key(&mail.from, (*incoming.chain(), vec![incoming.counter()]), turn).await?;
                }
                return Err(error.into());
            }
        };
        turn.effects.append(received.effects);
        let plaintext = received.plaintext;
        let content = match plaintext.kind {
            ContentKind::Text => Content::decode(1, plaintext.body.expose()),
            ContentKind::Bytes => Content::decode(2, plaintext.body.expose()),
            ContentKind::Json => Content::decode(3, plaintext.body.expose()),
            // A kind of a later version: taken, not shown.
            _ => return Ok(Verdict::Done),
        };
        let content = match content {
            Ok(content) => content,
            // Its key is used up all the same.
            Err(error) => {
                turn.events.push(Event::MessageUndecryptable {
                    peer: mail.from.user.clone(),
                    code: stvor_base::ErrorCode::code(&ProtocolError::Malformed(error)),
                    repair_requested: false,
                });
                return Ok(Verdict::Done);
            }
        };
        self.show((mail, id), (plaintext.content, content, received.sent_at), turn).await?;
        Ok(Verdict::Done)
    }

    /// A content goes into the inbox, unless it is known.
    async fn show(
        &mut self,
        (mail, group): (&MailRow, stvor_base::GroupId),
        (id, content, sent_at): (ContentId, Content, Timestamp),
        turn: &mut Turn,
    ) -> Result<()> {
        let core = &self.core;
        let mark = keys::content(&mail.from, id);
        let pin = crate::records::key(&RecordKey::pin(&mail.from.user))?;
        let found = core.store.get(&[mark.clone(), pin]).await.map_err(Error::passed)?;
        let stored = found.first().is_some_and(Option::is_some);
        if stored || !turn.marks.insert((mail.from.clone(), id)) {
            crate::metrics::duplicate();
            return Ok(());
        }
        let pin = found.get(1).and_then(Option::as_ref);
        let verified = pin.and_then(|row| Pin::from_record(&row.value).ok()).is_some_and(|pin| pin.verified);
        let now = core.now();
        let place = Place { order: core.next_order(now), id };
        let row = MessageRow {
            direction: Direction::In,
            content,
            sent_order: sent_at.as_millis(),
            sent_at,
            stamped_at: now,
            state: DeliveryState::Delivered,
            read: false,
            keep: core.config.retention.to_millis(),
            verified,
            msg_id: None,
            repairs: 0,
            queued: 0,
            identity: None,
        };
        let pointer = PointerRow { peer: mail.from.clone(), place, group: Some(group) };
        let seq = core.inbox.reserve(&mail.from.user);
        turn.changes
            .push(Op::insert(mark, place.to_bytes()).expiring(now + limits::KEEP_CONTENT_IDS))
            .insert(keys::group_message(group, place), row.encode())
            .insert(keys::inbox(seq), pointer.encode());
        turn.arrivals.push(Arrival { seq, pointer, row });
        Ok(())
    }

    // ---- What is missing ----

    async fn ask_for_key(
        &mut self,
        from: &stvor_base::Address,
        (chain, mut counters): (ChainId, Vec<u32>),
        turn: &mut Turn,
    ) -> Result<()> {
        let key = crate::records::key(&RecordKey::pin(&from.user))?;
        let Some(pin) = self.core.store.one(&key).await.map_err(Error::passed)? else { return Ok(()) };
        let pin = Pin::from_record(&pin.value).map_err(Error::passed)?;
        if !self.may(Asked(from.user.clone(), [b"want key ".as_slice(), &chain].concat())) {
            return Ok(());
        }
        counters.sort_unstable();
        counters.dedup();
        counters.truncate(bounds::MAX_REQUESTED);
        let member = Member { user: from.user.clone(), key: pin.user_key };
        self.post((GroupContent::WantKey(chain, counters).encode(), false), [member], turn);
        Ok(())
    }

    /// Asks members for what mail has waited for long enough.
    pub(super) async fn ask_for_missing(&mut self) {
        let waited = |parked: &&Parked| parked.since.elapsed() >= limits::GROUP_PATIENCE;
        let mut chains: BTreeMap<(stvor_base::Address, ChainId), Vec<u32>> = BTreeMap::new();
        let mut changes = Vec::new();
        for parked in self.parked.values().filter(waited) {
            match &parked.lacks {
                Lacks::Key(chain, counter) => {
                    chains.entry((parked.from.clone(), *chain)).or_default().push(*counter);
                }
                Lacks::Changes(group) => changes.push((parked.from.clone(), *group)),
                Lacks::Nothing => {}
            }
        }
        // What waits for nothing in particular is looked at again: for it, room is made elsewhere.
        for parked in self.parked.values_mut().filter(|parked| parked.lacks == Lacks::Nothing) {
            parked.again = true;
        }
        let mut turn = Turn::default();
        for ((from, chain), counters) in chains {
            if let Err(error) = self.ask_for_key(&from, (chain, counters), &mut turn).await {
                self.core.hub.emit(Event::StoreFailing { code: error.code() });
                return;
            }
        }
        changes.sort();
        changes.dedup();
        for (from, id) in changes {
            let (heads, key) = match self.groups.get(&id).or_else(|| self.joining.get(&id)) {
                Some(group) => (group.heads(), group.key_of(&from.user).copied()),
                None => continue,
            };
            let Some(key) = key else { continue };
            let asked = [b"behind ".as_slice(), id.as_bytes()].concat();
            if self.may(Asked(from.user.clone(), asked)) {
                let member = Member { user: from.user, key };
                self.post((GroupContent::WantChanges(id, heads).encode(), false), [member], &mut turn);
            }
        }
        // Should it fail, they are asked again later.
        let _ = self.commit(turn).await;
    }
}
