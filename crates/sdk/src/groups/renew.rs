//! After a store was found to be an old copy: our sender keys may have been used further than it knows.

use std::collections::BTreeMap;

use stvor_base::codec::CodecError;
use stvor_crypto::SecretBytes;
use stvor_protocol::group::{GroupContent, GroupIncoming, Member};
use stvor_protocol::{Plaintext, ProtocolError};
use stvor_store::{Op, Scan, Table};

use super::actor::Actor;
use super::rows::{self, PostKind, PostRow};
use super::turn::Turn;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::keys;
use crate::lane::{context, kind_of};
use crate::limits;
use crate::rows::{MessageRow, Place};

/// Members for whom one message to all still waits, and the numbers of their posts.
type Waiting = (Vec<u64>, Vec<Member>);

impl Actor {
    /// Gives up our chain of every group, and writes anew on fresh ones what no lane has taken yet.
    pub(super) async fn renew(&mut self) -> Result<()> {
        let waiting = self.waiting_blobs().await?;
        // On a shared store other instances number posts, too.
        let theirs = waiting.values().flat_map(|(posts, _)| posts).max().copied();
        let last = self.core.groups.last_post().max(theirs.unwrap_or(0));
        self.core.groups.raise_posts(last);
        let mut turn = Turn::default();
        for (id, group) in &mut self.groups {
            turn.touched.insert(*id);
            turn.effects.append(group.renew());
        }
        self.finish(turn).await?;
        for (body, posts) in waiting {
            self.write_anew(body, posts).await?;
        }
        self.core.groups.void(last);
        Ok(())
    }

    /// Gives up our chain of every group that knows a user by a key that handed over: the next message begins another one, of
    /// which whoever has the old key learns nothing.
    pub(super) async fn renew_without(&mut self, user: &stvor_base::UserId) -> Result<()> {
        let mut turn = Turn::default();
        turn.changes.delete(rows::moved(&self.core.store, user));
        for (id, group) in &mut self.groups {
            if group.key_of(user).is_some() {
                turn.touched.insert(*id);
                turn.effects.append(group.renew());
            }
        }
        self.finish(turn).await
    }

    /// Does that for whom it is owed since before: the process ended when their pin had moved.
    pub(super) async fn renew_owed(&mut self) -> Result<()> {
        let scan = Scan::of(Table::Settings, rows::MOVED);
        let owed = self.core.store.scan_all(scan, limits::MAX_LANES).await.map_err(Error::passed)?;
        for row in owed {
            let name =
                core::str::from_utf8(row.value.expose()).map_err(|_| Error::passed(CodecError::Value))?;
            let user = stvor_base::UserId::new(name).map_err(Error::passed)?;
            self.load().await?;
            self.renew_without(&user).await?;
            if row.key != rows::moved(&self.core.store, &user) {
                // Of a program that named its rows otherwise.
                let mut turn = Turn::default();
                turn.changes.delete(row.key);
                self.finish(turn).await?;
            }
        }
        Ok(())
    }

    /// A store that was restored knows groups as they were when its backup was made: members are asked for what changed
    /// since. Who was put out meanwhile learns of it by that, too.
    pub(super) async fn catch_up(&mut self) {
        let mut turn = Turn::default();
        let us = self.core.identity.user().clone();
        let asks: Vec<(SecretBytes, Vec<Member>)> = self
            .groups
            .values()
            .filter(|group| group.is_member())
            .map(|group| {
                let others = group.members().filter(|member| member.user != us).take(limits::MAX_GROUP_ASKED);
                (GroupContent::WantChanges(group.id(), group.heads()).encode(), others.collect())
            })
            .collect();
        for (body, members) in asks {
            let mut present = Vec::with_capacity(members.len());
            for member in members {
                match self.as_they_are(member).await {
                    Ok(member) => present.push(member),
                    Err(error) => self.core.hub.emit(Event::StoreFailing { code: error.code() }),
                }
            }
            if self.may_post(present.len()) {
                self.post((body, PostKind::Content), present, &mut turn);
            }
        }
        if let Err(error) = self.finish(turn).await {
            tracing::warn!(code = error.code(), "members could not be asked what changed since the backup");
        }
    }

    /// Messages to all that wait, by the number of their body.
    async fn waiting_blobs(&mut self) -> Result<BTreeMap<u64, Waiting>> {
        let scan = Scan::of(Table::Outbox, rows::POSTS);
        let posts = self.core.store.scan_all(scan, 2 * limits::MAX_POSTS).await.map_err(Error::passed)?;
        let mut waiting: BTreeMap<u64, Waiting> = BTreeMap::new();
        for post in posts {
            let seq = post.key.sort.as_slice().try_into().map(u64::from_be_bytes);
            let seq = seq.map_err(|_| Error::passed(CodecError::Length))?;
            let post = PostRow::decode(post.value.expose()).map_err(Error::passed)?;
            if post.kind == PostKind::ToAll {
                let (posts, members) = waiting.entry(post.body).or_default();
                posts.push(seq);
                members.push(Member { user: post.to.user, key: post.key });
            }
        }
        Ok(waiting)
    }

    async fn write_anew(&mut self, body: u64, (posts, members): Waiting) -> Result<()> {
        let core = std::sync::Arc::clone(&self.core);
        let mut turn = Turn::default();
        for seq in posts {
            turn.changes.delete(rows::post(seq));
        }
        turn.changes.delete(rows::body(body));
        let stored = core.store.one(&rows::body(body)).await.map_err(Error::passed)?;
        let message = match &stored {
            Some(row) => self.message_of(&row.value).await?,
            None => None,
        };
        // What expired or was deleted meanwhile is not sent any more.
        if let Some((id, place, row)) = message
            && let Some(group) = self.groups.get_mut(&id)
        {
            let body = SecretBytes::from_slice(row.content.as_bytes());
            let plaintext = Plaintext { content: place.id, kind: kind_of(&row.content), body };
            match group.encrypt(&context(&core), &plaintext, &mut self.rng) {
                Ok(sealed) => {
                    turn.touched.insert(id);
                    turn.effects.append(sealed.effects);
                    if let Some((body, to)) = sealed.introduction {
                        self.post((body, PostKind::Content), to, &mut turn);
                    }
                    self.post((sealed.blob.into(), PostKind::ToAll), members, &mut turn);
                    let (chain, counter) = sealed.place;
                    let key = rows::sent(id, (&chain, counter));
                    let expires = core.now() + limits::KEEP_SENT;
                    turn.changes.push(Op::put(key, place.to_bytes()).expiring(expires));
                }
                // We are in it no more.
                Err(ProtocolError::NotMember(_)) => {}
                Err(error) => return Err(crate::lane::of_protocol(error)),
            }
        }
        self.finish(turn).await
    }

    /// The message of ours that a blob is.
    async fn message_of(
        &mut self,
        blob: &SecretBytes,
    ) -> Result<Option<(stvor_base::GroupId, Place, MessageRow)>> {
        let incoming = GroupIncoming::parse(blob.expose()).map_err(Error::passed)?;
        let Some(group) = self.groups.values().find(|group| group.sent_on(incoming.chain())) else {
            return Ok(None);
        };
        let id = group.id();
        let sent = rows::sent(id, (incoming.chain(), incoming.counter()));
        let store = &self.core.store;
        let Some(sent) = store.one(&sent).await.map_err(Error::passed)? else { return Ok(None) };
        let place = Place::from_bytes(sent.value.expose()).map_err(Error::passed)?;
        let row = store.one(&keys::group_message(id, place)).await.map_err(Error::passed)?;
        let row = row.map(|row| MessageRow::decode(row.value.expose())).transpose().map_err(Error::passed)?;
        Ok(row.map(|row| (id, place, row)))
    }
}
