//! What the application asks for: groups, changes, messages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stvor_base::{ContentId, GroupId, Timestamp, UserId};
use stvor_crypto::SecretBytes;
use stvor_protocol::Plaintext;
use stvor_protocol::group::{
    Action, Applied, Group as State, Made, Member, bodies_of, forget_sender, limits as bounds, sender_rows,
};
use stvor_store::{Expect, Op, Scan, Table};

use super::actor::Actor;
use super::desk::{Ask, Order};
use super::rows::{self, GroupRow, PostKind, ReceiptRow};
use super::turn::{Failure, Turn};
use super::waiting::Came;
use super::{MemberReceipt, device_of};
use crate::content::Content;
use crate::error::{Error, ErrorKind, Result};
use crate::events::{DeliveryState, Event};
use crate::lane::{context, kind_of, of_protocol};
use crate::limits;
use crate::rows::{Direction, MessageRow, Place, PointerRow};

impl Actor {
    pub(super) async fn take_order(&mut self, order: Order) {
        let mut tries = 0;
        match order {
            Order::Create(name, members, reply) => {
                let result = loop {
                    match self.create(&name, members.clone()).await {
                        Err(Failure::Moved) if self.once_more(&mut tries).await => {}
                        done => break done,
                    }
                };
                let _ = reply.send(result.map_err(Error::from));
            }
            Order::Change(id, ask, reply) => {
                let result = loop {
                    match self.change(id, &ask).await {
                        Err(Failure::Moved) if self.once_more(&mut tries).await => {}
                        done => break done,
                    }
                };
                let _ = reply.send(result.map_err(Error::from));
            }
            Order::Send(id, (content, message), _room, reply) => {
                let result = loop {
                    match self.send(id, (content, message.clone())).await {
                        Err(Failure::Moved) if self.once_more(&mut tries).await => {}
                        done => break done,
                    }
                };
                let _ = reply.send(result.map_err(Error::from));
            }
            Order::Info(id, reply) => {
                let loaded = self.load().await;
                let _ = reply.send(loaded.and_then(|()| self.info(id)));
            }
            Order::Settled(reply) => {
                // Others may go on writing: what comes meanwhile is not waited for without end.
                let until = tokio::time::Instant::now() + self.core.config.timeout;
                while self.take_some_mail().await && tokio::time::Instant::now() < until {}
                let _ = reply.send(self.load().await);
            }
            Order::Renew(reply) => {
                let result = match self.load().await {
                    Ok(()) => self.renew().await,
                    Err(error) => Err(error),
                };
                let _ = reply.send(result);
            }
            Order::List(reply) => {
                let loaded = self.load().await;
                let list = |()| {
                    let mut all: Vec<_> = self.groups.keys().filter_map(|id| self.info(*id).ok()).collect();
                    all.sort_by(|a, b| a.name.cmp(&b.name).then(a.id.cmp(&b.id)));
                    all
                };
                let _ = reply.send(loaded.map(list));
            }
            Order::Moved(user) => {
                let result = match self.load().await {
                    Ok(()) => self.renew_without(&user).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = result {
                    tracing::warn!(code = error.code(), "sender keys could not be renewed after a rotation");
                    self.owes = true;
                }
            }
            Order::Sent(body) => {
                let mut turn = Turn::default();
                turn.changes.delete(rows::body(body));
                // Should it fail the row expires by itself.
                let _ = self.commit(turn).await;
            }
            Order::MarkRead(id, of, reply) => {
                let result = loop {
                    match self.mark_read(id, &of).await {
                        Err(Failure::Moved) if self.once_more(&mut tries).await => {}
                        done => break done,
                    }
                };
                let _ = reply.send(result.map_err(Error::from));
            }
            Order::Receipts(id, content, reply) => drop(reply.send(self.receipts(id, content).await)),
            Order::Delete(id, reply) => {
                let result = loop {
                    match self.delete(id).await {
                        Err(Failure::Moved) if self.once_more(&mut tries).await => {}
                        done => break done,
                    }
                };
                let _ = reply.send(result.map_err(Error::from));
            }
        }
    }

    pub(super) async fn finish(&mut self, turn: Turn) -> Result<()> {
        self.commit(turn).await.map_err(Error::from)
    }

    pub(super) async fn create(
        &mut self,
        name: &str,
        members: Vec<Member>,
    ) -> core::result::Result<GroupId, Failure> {
        self.load().await?;
        self.core.refuse_undecided()?;
        if self.groups.len() >= limits::MAX_GROUPS {
            let what = format!("{} groups", limits::MAX_GROUPS);
            return Err(Error::from(ErrorKind::QuotaExceeded { what }).into());
        }
        if !self.may_post(members.len()) {
            return Err(too_much().into());
        }
        let core = Arc::clone(&self.core);
        let now = core.now();
        let (mut group, made) =
            State::create(&core.identity, name, now, &mut self.rng).map_err(of_protocol)?;
        let mut turn = Turn::default();
        turn.effects.append(made.effects);
        for batch in members.chunks(bounds::MAX_CHANGE_MEMBERS) {
            let action = Action::Add(batch.to_vec());
            let (made, _) =
                group.change(&core.identity, (action, now), &mut self.rng).map_err(of_protocol)?;
            turn.effects.append(made.effects);
        }
        self.introduce(&group, members, &mut turn);
        let id = group.id();
        turn.new.insert(id, GroupRow { joined_at: now });
        self.commit(turn).await?;
        self.groups.insert(id, group);
        Ok(id)
    }

    /// Tells members who are new everything of a group.
    pub(super) fn introduce(&self, group: &State, members: Vec<Member>, turn: &mut Turn) {
        for body in bodies_of(group.id(), group.beyond(&[])) {
            self.post((body, PostKind::Content), members.iter().cloned(), turn);
        }
    }

    pub(super) async fn change(&mut self, id: GroupId, ask: &Ask) -> core::result::Result<(), Failure> {
        self.load().await?;
        self.core.refuse_undecided()?;
        let core = Arc::clone(&self.core);
        let now = core.now();
        let size = self.groups.get(&id).ok_or_else(|| self.not_found(id))?.size();
        if !self.may_post(size) {
            return Err(too_much().into());
        }
        let mut group = self.groups.remove(&id).ok_or_else(|| self.not_found(id))?;
        let mut turn = Turn::default();
        turn.touched.insert(id);
        let actions = match ask {
            Ask::Add(members) => {
                let news: Vec<Member> = members
                    .iter()
                    .filter(|member| !group.admits(&member.user, &member.key))
                    .cloned()
                    .collect();
                news.chunks(bounds::MAX_CHANGE_MEMBERS).map(|batch| Action::Add(batch.to_vec())).collect()
            }
            Ask::Remove(user) => vec![Action::Remove(user.clone())],
            Ask::Leave => vec![Action::Remove(core.identity.user().clone())],
            Ask::Rename(name) => vec![Action::Rename(name.clone())],
        };
        for action in actions {
            if let Err(error) = self.apply_own(&mut group, (action, now), &mut turn).await {
                // What was made before in this turn is made by nobody.
                self.forget(&turn.groups());
                return Err(error.into());
            }
        }
        self.commit(turn).await?;
        self.groups.insert(id, group);
        Ok(())
    }

    async fn apply_own(
        &mut self,
        group: &mut State,
        change: (Action, Timestamp),
        turn: &mut Turn,
    ) -> Result<()> {
        let core = Arc::clone(&self.core);
        let before = by_name(group);
        let (Made { change, effects }, applied) =
            group.change(&core.identity, change, &mut self.rng).map_err(of_protocol)?;
        turn.effects.append(effects);
        let joined: Vec<Member> =
            group.members().filter(|member| applied.joined.contains(&member.user)).collect();
        self.introduce(group, joined.clone(), turn);
        // Those who were in it and are in it, or have to learn that they are not.
        let mut told = before;
        for member in &joined {
            told.remove(&member.user);
        }
        for body in bodies_of(group.id(), [change]) {
            self.post((body, PostKind::Content), told.values().cloned(), turn);
        }
        let by = core.identity.user().clone();
        self.settle(group, (applied, &by), turn).await
    }

    /// What follows from a change, whoever made it.
    pub(super) async fn settle(
        &mut self,
        group: &State,
        (applied, by): (Applied, &UserId),
        turn: &mut Turn,
    ) -> Result<()> {
        let untold = group.ours_to_tell(&applied);
        let Applied { new, joined, gone, effects, .. } = applied;
        turn.effects.append(effects);
        if !new {
            return Ok(());
        }
        self.tell_untold(group, (&untold, by), turn);
        turn.came.insert(Came::Group(group.id()));
        let us = self.core.identity.user().clone();
        for user in gone.iter().filter(|user| **user != us) {
            let device = device_of(user);
            let wanted = sender_rows(group.id(), &device);
            let records = crate::records::load(&self.core.store, &wanted, &turn.effects).await?;
            turn.effects.append(forget_sender(group.id(), &device, &records).map_err(of_protocol)?);
        }
        let (id, by) = (group.id(), by.clone());
        turn.events.push(if gone.contains(&us) && !group.is_member() {
            Event::GroupLeft { group: id, by }
        } else if joined.contains(&us) {
            Event::GroupJoined { group: id, by }
        } else {
            Event::GroupChanged { group: id, by, joined, gone, name: group.name().to_owned() }
        });
        Ok(())
    }

    pub(super) async fn send(
        &mut self,
        id: GroupId,
        (content, message): (ContentId, Content),
    ) -> core::result::Result<(), Failure> {
        self.load().await?;
        self.core.refuse_undecided()?;
        let core = Arc::clone(&self.core);
        let now = core.now();
        let size = self.groups.get(&id).ok_or_else(|| self.not_found(id))?.size();
        if !self.may_post(2 * size) {
            return Err(too_much().into());
        }
        let plaintext =
            Plaintext { content, kind: kind_of(&message), body: SecretBytes::from_slice(message.as_bytes()) };
        let Some(group) = self.groups.get_mut(&id) else { return Err(self.not_found(id).into()) };
        let sealed = group.encrypt(&context(&core), &plaintext, &mut self.rng).map_err(of_protocol)?;
        let members: Vec<Member> = group.members().collect();
        let mut turn = Turn { effects: sealed.effects, ..Turn::default() };
        turn.touched.insert(id);
        if let Some((body, to)) = sealed.introduction {
            self.post((body, PostKind::Content), to, &mut turn);
        }
        self.post((sealed.blob.into(), PostKind::ToAll), members, &mut turn);
        let place = Place { order: core.next_order(now), id: content };
        let row = MessageRow {
            direction: Direction::Out,
            content: message,
            sent_order: place.order,
            sent_at: Timestamp::from_millis(place.order),
            stamped_at: now,
            state: DeliveryState::Queued,
            read: false,
            keep: core.config.retention.to_millis(),
            verified: false,
            msg_id: None,
            repairs: 0,
            queued: 0,
            identity: None,
            from: None,
        };
        let (chain, counter) = sealed.place;
        let pointer = PointerRow { peer: core.address.clone(), place, group: Some(id) };
        turn.changes
            .push(Op::put(crate::keys::group_message(id, place), row.encode()).expiring(row.expires()))
            .push(
                Op::put(rows::sent(id, (&chain, counter)), place.to_bytes())
                    .expiring(now + limits::KEEP_SENT),
            )
            .push(
                Op::insert(crate::keys::own_content(content), pointer.encode())
                    .expiring(now + limits::KEEP_SENT),
            );
        self.commit(turn).await
    }

    /// Notes that contents of a member were read, and tells them.
    async fn mark_read(
        &mut self,
        id: GroupId,
        (user, ids): &(UserId, Vec<ContentId>),
    ) -> core::result::Result<(), Failure> {
        self.load().await?;
        let group = self.groups.get(&id).ok_or_else(|| self.not_found(id))?;
        let member = group.key_of(user).map(|key| Member { user: user.clone(), key: *key });
        let receipts = group.size() <= limits::MAX_RECEIPTED_GROUP && self.core.config.receipts.read;
        let mut turn = Turn::default();
        let from = device_of(user);
        let marks: Vec<_> = ids.iter().map(|id| crate::keys::content(&from, *id)).collect();
        let marks = self.core.store.get(&marks).await.map_err(Error::passed)?;
        for (content, mark) in ids.iter().zip(marks) {
            // Only what came from this member can be read.
            let Some(mark) = mark else { continue };
            let place = Place::from_bytes(mark.value.expose()).map_err(Error::passed)?;
            let key = crate::keys::group_message(id, place);
            let Some(row) = self.core.store.one(&key).await.map_err(Error::passed)? else { continue };
            let expires = row.expires;
            let mut row = MessageRow::decode(row.value.expose()).map_err(Error::passed)?;
            if row.read {
                continue;
            }
            row.read = true;
            turn.changes.push(Op::put(key, row.encode()).expiring(expires));
            if let Some(member) = member.clone().filter(|_| receipts) {
                turn.received.push((member, *content));
            }
        }
        self.tell_received(true, &mut turn);
        self.commit(turn).await
    }

    /// What members said of a message of ours.
    async fn receipts(&mut self, id: GroupId, content: ContentId) -> Result<Vec<MemberReceipt>> {
        let store = &self.core.store;
        let index = store.one(&crate::keys::own_content(content)).await.map_err(Error::passed)?;
        let pointer = index.map(|row| PointerRow::decode(row.value.expose())).transpose();
        if pointer.map_err(Error::passed)?.is_none_or(|pointer| pointer.group != Some(id)) {
            return Ok(Vec::new());
        }
        let scan = Scan::of(Table::Outbox, rows::receipts_of(content));
        let found = store.scan_all(scan, 16 * bounds::MAX_MEMBERS).await.map_err(Error::passed)?;
        let mut receipts = Vec::with_capacity(found.len());
        for row in found {
            let ReceiptRow { user, state, at } =
                ReceiptRow::decode(row.value.expose()).map_err(Error::passed)?;
            receipts.push(MemberReceipt { user, state, at });
        }
        receipts.sort_by(|a, b| a.user.cmp(&b.user));
        Ok(receipts)
    }

    /// Removes a group that we are not in any more, and its messages.
    async fn delete(&mut self, id: GroupId) -> core::result::Result<(), Failure> {
        self.load().await?;
        let group = self.groups.get(&id).ok_or_else(|| self.not_found(id))?;
        if group.is_member() {
            return Err(Error::config("leave the group before you delete it").into());
        }
        let mut turn = Turn::default();
        // What others sent on is listed in the group's rows, which go with it.
        let devices: BTreeSet<UserId> =
            group.changes().flat_map(|change| named(change.action())).cloned().collect();
        for user in devices.iter().filter(|user| **user != self.core.address.user) {
            let device = device_of(user);
            let wanted = sender_rows(id, &device);
            let records = crate::records::load(&self.core.store, &wanted, &turn.effects).await?;
            turn.effects.append(forget_sender(id, &device, &records).map_err(of_protocol)?);
        }
        turn.changes
            .delete_partition(Table::Group, id.as_bytes().as_slice())
            .delete_partition(Table::History, crate::keys::group_history(id))
            .push(match self.listed.get(&id) {
                Some(listed) => Op::delete(rows::group(id)).expecting(Expect::Version(listed.version)),
                None => Op::delete(rows::group(id)),
            });
        self.commit(turn).await?;
        self.forget(&[id]);
        Ok(())
    }
}

/// Whom an action names.
fn named(action: &Action) -> Box<dyn Iterator<Item = &UserId> + '_> {
    match action {
        Action::Create { members, .. } | Action::Add(members) => {
            Box::new(members.iter().map(|member| &member.user))
        }
        Action::Remove(user) => Box::new(core::iter::once(user)),
        Action::Rename(_) => Box::new(core::iter::empty()),
    }
}

fn by_name(group: &State) -> BTreeMap<UserId, Member> {
    group.members().map(|member| (member.user.clone(), member)).collect()
}

fn too_much() -> Error {
    ErrorKind::QuotaExceeded {
        what: format!("{} messages to members of groups wait to be sent", limits::MAX_POSTS),
    }
    .into()
}
