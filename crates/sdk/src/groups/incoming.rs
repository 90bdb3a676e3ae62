//! What came from members: changes, sender keys, requests, messages.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use stvor_base::{Address, ContentId, GroupId, Timestamp, UserId};
use stvor_crypto::SecretBytes;
use stvor_protocol::group::{
    Again, Applied, ChainId, Group as State, GroupContent, GroupIncoming, Introduction, Member, PeerChain,
    SenderKeyIn, SignedChangeIn, bodies_of, limits as bounds,
};
use stvor_protocol::{ContentKind, Effects, Pin, ProtocolError, RecordKey};
use stvor_store::{Op, Scan, Table};
use tokio::time::Instant;

use super::actor::{Actor, Joining};
use super::handed_over::{Unvouched, refuse_late};
use super::rows::{self, GroupRow, MailRow, PostKind};
use super::turn::{Failure, Turn};
use super::vouching::Outline;
use super::waiting::{Asked, Came, Lacks, Parked};
use crate::content::Content;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::events::{DeliveryState, Event};
use crate::inbox::Arrival;
use crate::keys;
use crate::limits;
use crate::rows::{Direction, MessageRow, Place, PointerRow};

/// What became of several changes.
struct AllApplied {
    applied: Vec<(Applied, UserId)>,
    bytes: usize,
    /// What one waits for, if one does; or why one was refused, and with it those behind it.
    ended: core::result::Result<Option<Missing>, ProtocolError>,
}

/// What changes wait for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// What they build on.
    Parents,
    /// Somebody who answers for them.
    Voucher,
}

impl Missing {
    fn of(self, group: GroupId) -> Lacks {
        match self {
            Self::Parents => Lacks::Changes(group),
            Self::Voucher => Lacks::Voucher(group),
        }
    }
}

/// What becomes of mail.
enum Verdict {
    Done,
    Waits(Lacks),
    /// There is no room in the inbox: it and all behind it of the same sender stay where they are.
    Later,
}

type Judged = core::result::Result<Verdict, Trouble>;

/// Why mail could not be judged.
pub(super) enum Trouble {
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

/// Takes in changes until one is refused. A signature is checked only of what is news and can be taken in.
async fn apply_all(
    core: &Core,
    group: &mut State,
    (changes, unvouched): (&[SignedChangeIn], &Unvouched),
) -> AllApplied {
    let app = core.identity.app();
    let mut all = AllApplied { applied: Vec::new(), bytes: 0, ended: Ok(None) };
    let mut missing = None;
    for change in changes {
        let one = match change.outline(app) {
            Ok((hash, _)) if group.knows(&hash) => continue,
            Ok((_, parents)) if !parents.iter().all(|parent| group.knows(parent)) => {
                missing = missing.or(Some(Missing::Parents));
                continue;
            }
            Ok((hash, _)) if unvouched.contains_key(&hash) => {
                missing = Some(Missing::Voucher);
                continue;
            }
            Ok(_) => change.clone().validate(app),
            Err(error) => Err(error),
        };
        let taken = one.and_then(|one| {
            let by = one.author().user.clone();
            group.apply(one).map(|applied| (applied, by))
        });
        match taken {
            Ok(applied) => {
                all.bytes += change.bytes.len();
                all.applied.push(applied);
                // What one costs rises with how many there are, and a message has many: others have their turn.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                all.ended = Err(error);
                return all;
            }
        }
    }
    all.ended = Ok(missing);
    all
}

/// A chain of a sender, as it is with what is not committed yet.
async fn known_chain(
    core: &Core,
    (from, chain): (&Address, &ChainId),
    uncommitted: &Effects,
) -> Result<Option<PeerChain>> {
    let records = crate::records::load(&core.store, &PeerChain::keys(from, chain), uncommitted).await?;
    PeerChain::load(from, chain, &records).map_err(Error::passed)
}

impl Actor {
    /// Judges all mail that came.
    #[cfg(test)]
    pub(super) async fn take_mail(&mut self) {
        while self.take_some_mail().await {}
    }

    /// Judges a batch of the mail that came, in the order of its arrival; whether there may be more. Of the instances that
    /// share a store one does.
    pub(super) async fn take_some_mail(&mut self) -> bool {
        self.stalled = false;
        if !self.core.instances.receives() {
            self.waiting.clear();
            self.unjudged.clear();
            self.roomless.clear();
            self.joining.clear();
            return false;
        }
        if let Err(error) = self.load().await {
            // What memory holds may be whole, and nothing else comes that would make it look again.
            self.stalled = error.passes();
            return false;
        }
        self.look_for_room();
        // Each batch judges something that was not judged before, or ends.
        let fresh = match self.fresh_mail().await {
            Ok(fresh) if fresh.is_empty() => return false,
            Ok(fresh) => fresh,
            Err(error) => {
                self.core.hub.emit(Event::StoreFailing { code: error.code() });
                self.stalled = error.passes();
                return false;
            }
        };
        let mut tries = core::mem::take(&mut self.tries);
        match self.judge_all(&fresh).await {
            Ok(()) => true,
            Err(Failure::Taken) => {
                for one in fresh {
                    if !self.judge_alone(one).await {
                        return false;
                    }
                }
                true
            }
            Err(Failure::Moved) if self.core.instances.receives() && self.once_more(&mut tries).await => {
                self.tries = tries;
                true
            }
            Err(Failure::Moved) => {
                // Whoever receives now judges it; if that is still this one, in a moment.
                self.stalled = true;
                false
            }
            Err(Failure::Other(_)) => false,
        }
    }

    /// The first mail that waits for nothing, as much as fits one commit. What was judged in faults stands alone.
    async fn fresh_mail(&mut self) -> Result<Vec<(u64, SecretBytes)>> {
        let mut fresh = Vec::new();
        let mut scan = Scan::of(Table::Group, rows::MAIL).limit(stvor_store::limits::MAX_SCAN);
        loop {
            let page = self.core.store.scan(scan.clone()).await.map_err(Error::passed)?;
            let last = page.rows.last().map(|row| row.key.sort.clone());
            for row in page.rows {
                let Ok(seq) = row.key.sort.as_slice().try_into().map(u64::from_be_bytes) else { continue };
                if !self.waiting.is_due(seq) || self.roomless.contains_key(&seq) {
                    continue;
                }
                let alone = self.core.groups.faults(seq) >= limits::FAULTS_TOGETHER;
                if !alone || fresh.is_empty() {
                    fresh.push((seq, row.value));
                }
                if alone || fresh.len() >= limits::GROUP_BATCH {
                    return Ok(fresh);
                }
            }
            let Some(last) = last.filter(|_| page.more && fresh.is_empty()) else { return Ok(fresh) };
            scan = scan.after(last.as_slice());
        }
    }

    /// Messages of senders who have room again are judged again.
    fn look_for_room(&mut self) {
        let users: HashSet<UserId> = self.roomless.values().cloned().collect();
        for user in users.iter().filter(|user| self.core.inbox.has_room(user, 0)) {
            self.roomless.retain(|_, of| of != user);
        }
    }

    /// Whether the inbox has room for a message, and none of the same sender waits for that.
    fn has_room(&self, from: &UserId) -> bool {
        // What a turn puts into the inbox is counted there already.
        !self.roomless.values().any(|of| of == from) && self.core.inbox.has_room(from, 0)
    }

    async fn judge_all(&mut self, mail: &[(u64, SecretBytes)]) -> core::result::Result<(), Failure> {
        let mut turn = Turn::default();
        self.judging.clear();
        for (seq, row) in mail {
            // It waited, and what came before it in this turn says the same.
            if turn.is_judged(*seq) {
                continue;
            }
            self.judging.push(*seq);
            if turn.changes.len() + turn.effects.as_slice().len() >= limits::TURN_OPS {
                break;
            }
            if let Err(error) = self.judge(*seq, row, &mut turn).await {
                // Memory may have moved on: nothing of this turn is written.
                self.forget(&turn.groups());
                turn.arrivals.clear();
                self.core.hub.emit(Event::StoreFailing { code: error.code() });
                return Err(Failure::Other(error));
            }
            // What waited for what just came is older than what follows: it is judged first.
            if turn.came.iter().any(|what| self.waiting.wakes(what)) {
                break;
            }
        }
        if self.core.config.receipts.delivered {
            self.tell_received(false, &mut turn);
        }
        let result = self.commit(turn).await;
        self.judging.clear();
        result
    }

    /// One by itself: what conflicts alone was taken by another process.
    async fn judge_alone(&mut self, (seq, row): (u64, SecretBytes)) -> bool {
        let mut tries = 0;
        let one = [(seq, row)];
        loop {
            if let Err(error) = self.load().await {
                self.stalled = error.passes();
                return false;
            }
            match self.judge_all(&one).await {
                Ok(()) => return true,
                Err(Failure::Moved) if self.once_more(&mut tries).await => {}
                Err(Failure::Taken) => {
                    let mut turn = Turn::default();
                    let from = MailRow::decode(one[0].1.expose()).ok().map(|mail| mail.from.user);
                    turn.judged(seq, from.as_ref());
                    return self.commit(turn).await.is_ok();
                }
                Err(_) => return false,
            }
        }
    }

    async fn judge(&mut self, seq: u64, row: &SecretBytes, turn: &mut Turn) -> Result<()> {
        let faults = self.core.groups.faults(seq);
        if faults > limits::FAULTS_AT_MOST {
            turn.judged(seq, None);
            return Ok(());
        }
        let Ok(mail) = MailRow::decode(row.expose()) else {
            turn.judged(seq, None);
            return Ok(());
        };
        if faults == limits::FAULTS_AT_MOST {
            tracing::error!(faults, "mail of a group by which the program meets faults is given up");
            turn.events.push(Event::MessageUndecryptable {
                peer: mail.from.user.clone(),
                code: stvor_base::ErrorCode::code(&ProtocolError::Undecryptable),
                repair_requested: false,
            });
            turn.judged(seq, Some(&mail.from.user));
            return Ok(());
        }
        let old = self.core.now().since(mail.arrived_at) >= limits::KEEP_SENT;
        let verdict = match (&mail.key, old) {
            (_, true) => Ok(Verdict::Done),
            (Some(key), _) => {
                let member = Member { user: mail.from.user.clone(), key: *key };
                self.judge_content((seq, &mail), &member, turn).await
            }
            (None, _) => self.judge_message((seq, &mail), turn).await,
        };
        match verdict {
            Ok(Verdict::Done) => turn.judged(seq, Some(&mail.from.user)),
            Ok(Verdict::Waits(lacks)) => self.park(seq, &mail, lacks, turn),
            Ok(Verdict::Later) => drop(self.roomless.insert(seq, mail.from.user.clone())),
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
                turn.judged(seq, Some(&mail.from.user));
            }
        }
        Ok(())
    }

    /// Mail waits. Past the bounds the oldest goes.
    fn park(&mut self, seq: u64, mail: &MailRow, lacks: Lacks, turn: &mut Turn) {
        let (since, told) =
            self.waiting.get(seq).map_or_else(|| (Instant::now(), false), |known| (known.since, known.told));
        let (from, arrived_at) = (mail.from.clone(), mail.arrived_at);
        let over = self.waiting.put(seq, Parked { since, arrived_at, from, lacks, again: false, told });
        if let Some((oldest, user)) = over {
            self.give_up(oldest, user, turn);
        }
    }

    /// Mail waited in vain.
    fn give_up(&mut self, seq: u64, peer: UserId, turn: &mut Turn) {
        let Some(parked) = self.waiting.get(seq) else { return };
        let lacks = parked.lacks.clone();
        if !turn.is_judged(seq) {
            turn.judged(seq, Some(&peer));
        }
        let told = match lacks {
            Lacks::Key(..) => Some(ProtocolError::UnknownSenderKey),
            Lacks::Voucher(_) => {
                let author = self.unjudged.of(seq).find_map(Outline::superseded);
                Some(ProtocolError::IdentitySuperseded(
                    author.map_or_else(|| peer.clone(), |author| author.user.clone()),
                ))
            }
            Lacks::Changes(_) | Lacks::Group(_) => None,
        };
        if let Some(error) = told {
            turn.events.push(Event::MessageUndecryptable {
                peer,
                code: stvor_base::ErrorCode::code(&error),
                repair_requested: false,
            });
        }
        self.waiting.remove(seq);
        self.unjudged.remove(seq);
        if let Lacks::Group(id) | Lacks::Changes(id) = lacks
            && !self.waiting.wants(id)
        {
            self.joining.remove(&id);
        }
    }

    // ---- What members tell us ----

    async fn judge_content(
        &mut self,
        (seq, mail): (u64, &MailRow),
        member: &Member,
        turn: &mut Turn,
    ) -> Judged {
        self.refuse_superseded(mail, member).await?;
        match GroupContent::decode(self.core.identity.suite(), &SecretBytes::from_slice(&mail.body))? {
            GroupContent::Changes(id, changes) => self.take_changes((seq, mail), (id, changes), turn).await,
            GroupContent::SenderKey(key) => self.take_key((mail, member), &key, turn).await,
            GroupContent::WantChanges(id, known) => {
                let Some(group) = self.groups.get(&id) else { return Ok(Verdict::Done) };
                if group.admits(&member.user, &member.key) && known.iter().any(|hash| !group.knows(hash)) {
                    // So they know what we do not.
                    let body = GroupContent::WantChanges(id, group.heads()).encode();
                    let asked = [b"behind ".as_slice(), id.as_bytes()].concat();
                    if self.may(Asked(member.user.clone(), asked)) {
                        self.post((body, PostKind::Content), [member.clone()], turn);
                    }
                }
                let Some(group) = self.groups.get(&id) else { return Ok(Verdict::Done) };
                // Who was put out may learn of that, and nobody else who is no member learns anything.
                let changes = match group.admits(&member.user, &member.key) {
                    true => group.beyond(&known),
                    false => group.puts_out(&[&member.user], &known),
                };
                let asked = [b"changes ".as_slice(), id.as_bytes()].concat();
                if !changes.is_empty() && self.may(Asked(member.user.clone(), asked)) {
                    for body in bodies_of(id, changes) {
                        self.post((body, PostKind::Content), [member.clone()], turn);
                    }
                }
                Ok(Verdict::Done)
            }
            GroupContent::WantKey(chain, counters) => self.send_again(member, (chain, counters), turn).await,
            GroupContent::Again(again) => self.take_again((seq, mail, member), again, turn).await,
        }
    }

    async fn take_changes(
        &mut self,
        (seq, mail): (u64, &MailRow),
        (id, changes): (GroupId, Vec<SignedChangeIn>),
        turn: &mut Turn,
    ) -> Judged {
        let Some(mut group) = self.groups.remove(&id) else {
            return self.take_news(mail, (id, changes), turn).await;
        };
        turn.touched.insert(id);
        let unvouched = match self.unvouched(&group, (seq, mail, &changes), turn).await {
            Ok(unvouched) => unvouched,
            Err(error) => {
                self.groups.insert(id, group);
                return Err(error.into());
            }
        };
        let applied = apply_all(&self.core, &mut group, (&changes, &unvouched)).await;
        let mut settled = Ok(());
        for (one, by) in applied.applied {
            if settled.is_ok() {
                settled = self.settle(&group, (one, &by), turn).await;
            }
        }
        // Whatever one of them was: what was taken in before it stays, each change stands for itself.
        self.groups.insert(id, group);
        settled?;
        match applied.ended {
            Err(error) => Err(error.into()),
            Ok(Some(missing)) => Ok(Verdict::Waits(missing.of(id))),
            Ok(None) => Ok(Verdict::Done),
        }
    }

    /// Changes of a group that we do not have.
    async fn take_news(
        &mut self,
        mail: &MailRow,
        (id, changes): (GroupId, Vec<SignedChangeIn>),
        turn: &mut Turn,
    ) -> Judged {
        let core = Arc::clone(&self.core);
        let by = &mail.from.user;
        let full = |what, limit| Err(Trouble::Refused(ProtocolError::GroupFull { what, limit }));
        if self.groups.len() >= limits::MAX_GROUPS {
            return full("groups", limits::MAX_GROUPS);
        }
        let mut joining = match self.joining.remove(&id) {
            Some(joining) => joining,
            None if self.joining.values().filter(|one| one.by == *by).count()
                >= limits::MAX_JOINING_OF_ONE =>
            {
                return full("groups to be joined", limits::MAX_JOINING_OF_ONE);
            }
            None => Joining { group: State::join(&core.identity, id), by: by.clone(), bytes: 0 },
        };
        let AllApplied { applied, bytes, ended } =
            apply_all(&core, &mut joining.group, (&changes, &Unvouched::new())).await;
        joining.bytes += bytes;
        if joining.group.admits(core.identity.user(), core.identity.user_key()) {
            turn.effects.append(joining.group.save());
            turn.new.insert(id, GroupRow { joined_at: core.now() });
            turn.events.push(Event::GroupJoined { group: id, by: by.clone() });
            turn.came.insert(Came::Group(id));
            self.groups.insert(id, joining.group);
            return match ended {
                Err(error) => Err(error.into()),
                Ok(Some(missing)) => Ok(Verdict::Waits(missing.of(id))),
                Ok(None) => Ok(Verdict::Done),
            };
        }
        let early = ended?.is_some();
        let held = |one: &&Joining| one.by == joining.by;
        let theirs: usize = self.joining.values().filter(held).map(|one| one.bytes).sum();
        let all: usize = self.joining.values().map(|one| one.bytes).sum();
        if theirs + joining.bytes > limits::MAX_JOINING_BYTES_OF_ONE
            || all + joining.bytes > limits::MAX_JOINING_BYTES
        {
            return full("bytes of changes to be joined", limits::MAX_JOINING_BYTES_OF_ONE);
        }
        // Not ours so far: the rest may be under way. It is in memory only, and its mail stays.
        if !applied.is_empty() {
            turn.came.insert(Came::Part(id));
        }
        self.joining.insert(id, joining);
        Ok(Verdict::Waits(if early { Lacks::Changes(id) } else { Lacks::Group(id) }))
    }

    async fn take_key(
        &mut self,
        (mail, member): (&MailRow, &Member),
        key: &SenderKeyIn,
        turn: &mut Turn,
    ) -> Judged {
        let Some(group) = self.groups.get(&key.group) else {
            return Ok(Verdict::Waits(Lacks::Group(key.group)));
        };
        turn.touched.insert(key.group);
        let behind = key.heads.iter().any(|head| !group.knows(head));
        if !group.admits(&member.user, &member.key) {
            if behind {
                return Ok(Verdict::Waits(Lacks::Changes(key.group)));
            }
            self.answer_who_is_out(member, (key.group, &key.heads), turn);
            return Err(Trouble::Refused(ProtocolError::NotMember(member.user.clone())));
        }
        let introduction = Introduction { sender: &mail.from, user_key: &member.key };
        let wanted = introduction.needs(key);
        let records = crate::records::load(&self.core.store, &wanted, &turn.effects).await?;
        let effects = introduction.accept(key, &records)?;
        let news = !effects.is_empty();
        turn.effects.append(effects);
        if news {
            turn.came.insert(Came::Chain(mail.from.clone(), *key.chain()));
            let waiting = self.lacking((&mail.from, key.chain()), turn);
            if !waiting.is_empty()
                && let Some(chain) = known_chain(&self.core, (&mail.from, key.chain()), &turn.effects).await?
            {
                turn.effects.append(chain.missed(&waiting));
            }
        }
        if behind {
            // The sender knows more than we do; the changes are on their way, or are asked for.
            let heads = group.heads();
            let asked = [b"behind ".as_slice(), key.group.as_bytes()].concat();
            if self.may(Asked(member.user.clone(), asked)) {
                let body = GroupContent::WantChanges(key.group, heads).encode();
                self.post((body, PostKind::Content), [member.clone()], turn);
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
        // What was sent since the last of them comes there before this answer, and the key at its present place does not open it.
        let last = counters.last().copied();
        let since = last.and_then(|last| last.checked_add(1)).map(|first| first..=u32::MAX);
        let entitled: Vec<u32> = counters
            .into_iter()
            .chain(since.into_iter().flatten())
            .take(bounds::MAX_REQUESTED)
            .filter(|counter| group.entitled(member, (&chain, *counter)))
            .collect();
        if !self.may(Asked(member.user.clone(), [b"key ".as_slice(), &chain].concat())) {
            return Ok(Verdict::Done);
        }
        if let Some(body) = again {
            self.post((body, PostKind::Content), [member.clone()], turn);
        }
        for counter in entitled {
            let store = &self.core.store;
            let row = store.one(&rows::sent(id, (&chain, counter))).await.map_err(Error::passed)?;
            let Some(row) = row else {
                if last.is_some_and(|last| counter > last) {
                    break;
                }
                continue;
            };
            let place = Place::from_bytes(row.value.expose()).map_err(Error::passed)?;
            let row = store.one(&keys::group_message(id, place)).await.map_err(Error::passed)?;
            let Some(row) = row else { continue };
            let row = MessageRow::decode(row.value.expose()).map_err(Error::passed)?;
            if !self.may_post(turn.posts.len() + 1) {
                // They ask again.
                break;
            }
            let body = GroupContent::Again(Again {
                group: id,
                place: Some((chain, counter)),
                content: place.id,
                sent_at: row.sent_at,
                kind: row.content.tag(),
                body: row.content.as_bytes().to_vec(),
            });
            self.post((body.encode(), PostKind::Content), [member.clone()], turn);
        }
        Ok(Verdict::Done)
    }

    async fn take_again(
        &mut self,
        (seq, mail, member): (u64, &MailRow, &Member),
        again: Again,
        turn: &mut Turn,
    ) -> Judged {
        let Some(group) = self.groups.get(&again.group) else {
            return Ok(Verdict::Waits(Lacks::Group(again.group)));
        };
        turn.touched.insert(again.group);
        if !group.admits(&member.user, &member.key) {
            return Err(Trouble::Refused(ProtocolError::NotMember(member.user.clone())));
        }
        if !self.has_room(&mail.from.user) {
            return Ok(Verdict::Later);
        }
        let content = Content::decode(again.kind, &again.body).map_err(ProtocolError::Malformed)?;
        if let Some((chain, counter)) = again.place {
            self.waits_no_more((seq, &mail.from), &Lacks::Key(chain, counter), turn);
            if let Some(chain) = known_chain(&self.core, (&mail.from, &chain), &turn.effects).await? {
                turn.effects.append(chain.said_again(counter));
            }
        }
        let shown = (again.content, content, again.sent_at);
        if self.show((mail, member), (again.group, shown), turn).await? {
            turn.events.push(Event::Repaired { peer: mail.from.user.clone(), id: again.content });
        }
        Ok(Verdict::Done)
    }

    // ---- Messages ----

    /// A message was read by mail: other mail that waits for its key waits no more.
    fn waits_no_more(&self, (by, from): (u64, &Address), lacked: &Lacks, turn: &mut Turn) {
        for (seq, parked) in self.waiting.iter() {
            let waits = parked.from == *from && parked.lacks == *lacked;
            if waits && seq != by && !turn.is_judged(seq) {
                turn.judged(seq, Some(&from.user));
            }
        }
    }

    /// The numbers of messages that wait for a sender key.
    fn lacking(&self, (from, chain): (&Address, &ChainId), turn: &Turn) -> BTreeSet<u32> {
        let number = |(seq, parked): (u64, &Parked)| match &parked.lacks {
            Lacks::Key(lacked, counter)
                if lacked == chain && parked.from == *from && !turn.is_judged(seq) =>
            {
                Some(*counter)
            }
            _ => None,
        };
        self.waiting.iter().filter_map(number).collect()
    }

    async fn judge_message(&mut self, (seq, mail): (u64, &MailRow), turn: &mut Turn) -> Judged {
        let incoming = GroupIncoming::parse(&mail.body)?;
        let core = Arc::clone(&self.core);
        let pinned = RecordKey::pin(&mail.from.user);
        let mut wanted: Vec<RecordKey> = PeerChain::keys(&mail.from, incoming.chain()).into_iter().collect();
        wanted.push(pinned.clone());
        let records = crate::records::load(&core.store, &wanted, &turn.effects).await?;
        let pin = records.get(&pinned).map(Pin::from_record).transpose()?;
        let Some(chain) = PeerChain::load(&mail.from, incoming.chain(), &records)? else {
            // From whom no member of any group of ours has its name, nothing is waited for.
            let member = self.groups.values().any(|group| group.key_of(&mail.from.user).is_some());
            if !member && let Some(pin) = pin {
                let ghost = Member { user: mail.from.user.clone(), key: pin.user_key };
                self.answer_everywhere(&ghost, turn);
            }
            return if member || !self.waiting.is_empty() || !self.joining.is_empty() {
                Ok(Verdict::Waits(Lacks::Key(*incoming.chain(), incoming.counter())))
            } else {
                Err(Trouble::Refused(ProtocolError::UnknownSenderKey))
            };
        };
        let Some(group) = self.groups.get(&chain.group()) else {
            return Ok(Verdict::Waits(Lacks::Group(chain.group())));
        };
        turn.touched.insert(chain.group());
        if !group.is_member() {
            // A member who knows more may know that we are one.
            let behind = group.admits(&mail.from.user, chain.user_key()) && !group.has_been(incoming.state());
            return Ok(if behind { Verdict::Waits(Lacks::Changes(chain.group())) } else { Verdict::Done });
        }
        if !group.admits(&mail.from.user, chain.user_key()) {
            let ghost = Member { user: mail.from.user.clone(), key: *chain.user_key() };
            self.answer_who_is_out(&ghost, (chain.group(), &[]), turn);
            return Err(Trouble::Refused(ProtocolError::NotMember(mail.from.user.clone())));
        }
        let id = chain.group();
        let member = Member { user: mail.from.user.clone(), key: *chain.user_key() };
        refuse_late((mail, core.now()), &member, pin.as_ref().and_then(|pin| pin.left(&member.key)))?;
        if !self.has_room(&mail.from.user) {
            return Ok(Verdict::Later);
        }
        let wanted: Vec<RecordKey> = chain.needs(&incoming).into_iter().collect();
        let records = crate::records::load(&core.store, &wanted, &turn.effects).await?;
        let lacked = Lacks::Key(*incoming.chain(), incoming.counter());
        let received = match chain.open(core.identity.app(), &incoming, (&records, core.now())) {
            Ok(received) => received,
            // Nobody has read it: the key came at a place behind it, or is gone. It waits until its sender says it again.
            Err(ProtocolError::KeyGone) => return Ok(Verdict::Waits(lacked)),
            Err(error) => {
                if error.wants_repair() {
                    self.ask_for_key(&mail.from, (*incoming.chain(), vec![incoming.counter()]), turn).await?;
                }
                return Err(error.into());
            }
        };
        turn.effects.append(received.effects);
        turn.opened.insert(mail.from.clone());
        self.waits_no_more((seq, &mail.from), &lacked, turn);
        if !self.groups.get(&id).is_some_and(|group| group.has_been(incoming.state()))
            && self.ahead.len() < limits::MAX_ASKED_USERS
        {
            // They may know of changes that never came, a removal above all: unless those come, they are asked.
            let since = (*incoming.state(), Instant::now());
            self.ahead.entry((id, mail.from.clone())).or_insert(since);
        }
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
        let shown = (plaintext.content, content, received.sent_at);
        self.show((mail, &member), (id, shown), turn).await?;
        Ok(Verdict::Done)
    }

    /// A content goes into the inbox, unless it is known; whether it did.
    async fn show(
        &mut self,
        (mail, member): (&MailRow, &Member),
        (group, (id, content, sent_at)): (GroupId, (ContentId, Content, Timestamp)),
        turn: &mut Turn,
    ) -> Result<bool> {
        let core = &self.core;
        // Also of what is known: what was said of it before may be lost.
        if self.groups.get(&group).is_some_and(|group| group.size() <= limits::MAX_RECEIPTED_GROUP) {
            turn.received.push((member.clone(), id));
        }
        let mark = keys::content(&mail.from, id);
        let pin = crate::records::key(&RecordKey::pin(&mail.from.user))?;
        let found = core.store.get(&[mark.clone(), pin]).await.map_err(Error::passed)?;
        let stored = found.first().is_some_and(Option::is_some);
        if stored || !turn.marks.insert((mail.from.clone(), id)) {
            crate::metrics::duplicate();
            return Ok(false);
        }
        let pin = found.get(1).and_then(Option::as_ref);
        // What was compared is of the pinned key: of another one that the group knows nothing is verified.
        let verified = pin
            .and_then(|row| Pin::from_record(&row.value).ok())
            .is_some_and(|pin| pin.verified && pin.user_key == member.key);
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
            from: Some(mail.from.user.clone()),
        };
        let pointer = PointerRow { peer: mail.from.clone(), place, group: Some(group) };
        let reserved = core.inbox.reserve(&mail.from.user);
        turn.changes
            .push(Op::insert(mark, place.to_bytes()).expiring(now + limits::KEEP_CONTENT_IDS))
            .insert(keys::group_message(group, place), row.encode())
            .insert(keys::inbox(reserved.seq()), pointer.encode());
        turn.arrivals.push(Arrival { reserved, pointer, row });
        Ok(true)
    }

    // ---- What is missing ----

    async fn ask_for_key(
        &mut self,
        from: &Address,
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
        self.post((GroupContent::WantKey(chain, counters).encode(), PostKind::Content), [member], turn);
        Ok(())
    }

    /// Asks members for what mail has waited for long enough, and gives up what has waited for too long.
    pub(super) async fn ask_for_missing(&mut self) {
        if !self.core.instances.receives() {
            return;
        }
        let now = self.core.now();
        let mut turn = Turn::default();
        let late: Vec<(u64, UserId)> = self
            .waiting
            .iter()
            .filter(|(_, parked)| now.since(parked.arrived_at) >= limits::KEEP_GROUP_WAITING)
            .map(|(seq, parked)| (seq, parked.from.user.clone()))
            .collect();
        for (seq, user) in late {
            self.give_up(seq, user, &mut turn);
        }
        let waited = |parked: &Parked| parked.since.elapsed() >= limits::GROUP_PATIENCE;
        let ripe: BTreeSet<(Address, ChainId)> = self
            .waiting
            .iter()
            .filter_map(|(_, parked)| match &parked.lacks {
                Lacks::Key(chain, _) if waited(parked) => Some((parked.from.clone(), *chain)),
                _ => None,
            })
            .collect();
        let mut chains: BTreeMap<(Address, ChainId), Vec<u32>> = BTreeMap::new();
        let mut changes = Vec::new();
        let mut news: BTreeMap<UserId, usize> = BTreeMap::new();
        for parked in self.waiting.values_mut() {
            match &parked.lacks {
                Lacks::Key(chain, counter) => {
                    // All that the same key is missing for, however long it has waited: only what is asked for comes again, and
                    // there is no second request for a while.
                    let chain = (parked.from.clone(), *chain);
                    if !ripe.contains(&chain) {
                        continue;
                    }
                    chains.entry(chain).or_default().push(*counter);
                    if !parked.told {
                        parked.told = true;
                        *news.entry(parked.from.user.clone()).or_default() += 1;
                    }
                }
                Lacks::Changes(group) if waited(parked) => changes.push((parked.from.clone(), *group)),
                Lacks::Changes(_) | Lacks::Voucher(_) | Lacks::Group(_) => {}
            }
        }
        let unvouched: Vec<(u64, GroupId)> = self
            .waiting
            .iter()
            .filter(|(_, parked)| waited(parked))
            .filter_map(|(seq, parked)| match &parked.lacks {
                Lacks::Voucher(group) => Some((seq, *group)),
                _ => None,
            })
            .collect();
        for (author, group) in self.authors_to_ask(&unvouched) {
            self.ask_for_changes(author, group, &mut turn);
        }
        for (peer, messages) in news {
            self.core.hub.emit(Event::SenderKeyMissing { peer, messages });
        }
        for ((from, chain), counters) in chains {
            if let Err(error) = self.ask_for_key(&from, (chain, counters), &mut turn).await {
                self.core.hub.emit(Event::StoreFailing { code: error.code() });
                return;
            }
        }
        let groups = &self.groups;
        self.ahead.retain(|(id, _), (state, _)| groups.get(id).is_some_and(|group| !group.has_been(state)));
        let ripe = |(_, (_, since)): &(_, &([u8; 32], Instant))| since.elapsed() >= limits::GROUP_PATIENCE;
        let ripe: Vec<(GroupId, Address)> =
            self.ahead.iter().filter(ripe).map(|(who, _)| who.clone()).collect();
        for (id, from) in ripe {
            self.ahead.remove(&(id, from.clone()));
            changes.push((from, id));
        }
        changes.sort();
        changes.dedup();
        for (from, id) in changes {
            let key = self.groups.get(&id).and_then(|group| group.key_of(&from.user).copied());
            let Some(key) = key else { continue };
            let asked = [b"behind ".as_slice(), id.as_bytes()].concat();
            if !self.may(Asked(from.user.clone(), asked)) {
                continue;
            }
            match self.as_they_are(Member { user: from.user, key }).await {
                Ok(member) => self.ask_for_changes(member, id, &mut turn),
                Err(error) => self.core.hub.emit(Event::StoreFailing { code: error.code() }),
            }
        }
        // Should it fail, they are asked again later.
        let _ = self.commit(turn).await;
    }

    /// Whether something may be asked of, or answered to, a member once more.
    fn may(&mut self, what: Asked) -> bool {
        self.asks.may(what, Instant::now())
    }
}
