//! What the application asks for: groups, changes, messages.

use std::collections::BTreeMap;

use stvor_base::{ContentId, GroupId, Timestamp, UserId};
use stvor_crypto::SecretBytes;
use stvor_protocol::Plaintext;
use stvor_protocol::group::{
    Action, Applied, Group as State, Made, Member, bodies_of, forget_sender, limits as bounds, sender_rows,
};
use stvor_store::Op;

use super::actor::Actor;
use super::desk::{Ask, Order};
use super::device_of;
use super::rows::{self, GroupRow};
use super::turn::{Failure, Turn};
use crate::content::Content;
use crate::error::{Error, ErrorKind, Result};
use crate::events::{DeliveryState, Event};
use crate::lane::{context, kind_of, of_protocol};
use crate::limits;
use crate::rows::{Direction, MessageRow, Place};

impl Actor {
    pub(super) async fn take_order(&mut self, order: Order) {
        let loaded = self.load().await;
        match order {
            Order::Create(name, members, reply) => {
                let result = match loaded {
                    Ok(()) => self.create(&name, members).await,
                    Err(error) => Err(error),
                };
                let _ = reply.send(result);
            }
            Order::Change(id, ask, reply) => {
                let result = match loaded {
                    Ok(()) => self.change(id, ask).await,
                    Err(error) => Err(error),
                };
                let _ = reply.send(result);
            }
            Order::Send(id, message, reply) => {
                let result = match loaded {
                    Ok(()) => self.send(id, message).await,
                    Err(error) => Err(error),
                };
                let _ = reply.send(result);
            }
            Order::Renew(reply) => {
                let result = match loaded {
                    Ok(()) => self.renew().await,
                    Err(error) => Err(error),
                };
                let _ = reply.send(result);
            }
            Order::Info(id, reply) => drop(reply.send(loaded.and_then(|()| self.info(id)))),
            Order::List(reply) => {
                let list = |()| {
                    let mut all: Vec<_> = self.groups.keys().filter_map(|id| self.info(*id).ok()).collect();
                    all.sort_by(|a, b| a.name.cmp(&b.name).then(a.id.cmp(&b.id)));
                    all
                };
                let _ = reply.send(loaded.map(list));
            }
            Order::Sent(body) => {
                let mut turn = Turn::default();
                turn.changes.delete(rows::body(body));
                // Should it fail the row expires by itself.
                let _ = self.commit(turn).await;
            }
        }
    }

    pub(super) async fn finish(&mut self, turn: Turn) -> Result<()> {
        self.commit(turn).await.map_err(|failure| match failure {
            Failure::Conflict => {
                Error::not_ready("another process changed the store at the same time: try again")
            }
            Failure::Other(error) => error,
        })
    }

    async fn create(&mut self, name: &str, members: Vec<Member>) -> Result<GroupId> {
        self.core.refuse_undecided()?;
        if self.groups.len() >= limits::MAX_GROUPS {
            return Err(ErrorKind::QuotaExceeded { what: format!("{} groups", limits::MAX_GROUPS) }.into());
        }
        if !self.may_post(members.len()) {
            return Err(too_much());
        }
        let core = std::sync::Arc::clone(&self.core);
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
        turn.changes.put(rows::group(id), GroupRow { joined_at: now }.encode());
        self.finish(turn).await?;
        self.groups.insert(id, group);
        Ok(id)
    }

    /// Tells members who are new everything of a group.
    fn introduce(&self, group: &State, members: Vec<Member>, turn: &mut Turn) {
        for body in bodies_of(group.id(), group.beyond(&[])) {
            self.post((body, false), members.iter().cloned(), turn);
        }
    }

    async fn change(&mut self, id: GroupId, ask: Ask) -> Result<()> {
        self.core.refuse_undecided()?;
        let core = std::sync::Arc::clone(&self.core);
        let now = core.now();
        let mut group = self.groups.remove(&id).ok_or_else(|| self.not_found(id))?;
        let mut turn = Turn::default();
        let actions = match ask {
            Ask::Add(members) => {
                let news: Vec<Member> =
                    members.into_iter().filter(|member| !group.admits(&member.user, &member.key)).collect();
                news.chunks(bounds::MAX_CHANGE_MEMBERS).map(|batch| Action::Add(batch.to_vec())).collect()
            }
            Ask::Remove(user) => vec![Action::Remove(user)],
            Ask::Leave => vec![Action::Remove(core.identity.user().clone())],
            Ask::Rename(name) => vec![Action::Rename(name)],
        };
        if !self.may_post(group.size()) {
            self.groups.insert(id, group);
            return Err(too_much());
        }
        for action in actions {
            if let Err(error) = self.apply_own(&mut group, (action, now), &mut turn).await {
                // What was made before in this turn is made by nobody.
                self.loaded = false;
                return Err(error);
            }
        }
        self.finish(turn).await?;
        self.groups.insert(id, group);
        Ok(())
    }

    async fn apply_own(
        &mut self,
        group: &mut State,
        change: (Action, Timestamp),
        turn: &mut Turn,
    ) -> Result<()> {
        let core = std::sync::Arc::clone(&self.core);
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
            self.post((body, false), told.values().cloned(), turn);
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
        let Applied { new, joined, gone, effects } = applied;
        turn.effects.append(effects);
        if !new {
            return Ok(());
        }
        turn.progress = true;
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

    async fn send(&mut self, id: GroupId, (content, message): (ContentId, Content)) -> Result<()> {
        self.core.refuse_undecided()?;
        let core = std::sync::Arc::clone(&self.core);
        let now = core.now();
        let size = self.groups.get(&id).ok_or_else(|| self.not_found(id))?.size();
        if !self.may_post(2 * size) {
            return Err(too_much());
        }
        let plaintext =
            Plaintext { content, kind: kind_of(&message), body: SecretBytes::from_slice(message.as_bytes()) };
        let Some(group) = self.groups.get_mut(&id) else { return Err(self.not_found(id)) };
        let sealed = group.encrypt(&context(&core), &plaintext, &mut self.rng).map_err(of_protocol)?;
        let members: Vec<Member> = group.members().collect();
        let mut turn = Turn { effects: sealed.effects, ..Turn::default() };
        if let Some((body, to)) = sealed.introduction {
            self.post((body, false), to, &mut turn);
        }
        self.post((sealed.blob.into(), true), members, &mut turn);
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
        };
        let (chain, counter) = sealed.place;
        turn.changes
            .push(Op::put(crate::keys::group_message(id, place), row.encode()).expiring(row.expires()));
        turn.changes.push(
            Op::put(rows::sent(id, (&chain, counter)), place.to_bytes()).expiring(now + limits::KEEP_SENT),
        );
        self.finish(turn).await
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
