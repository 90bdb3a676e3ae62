//! What the task that keeps groups has for this peer, and what it gets from them.

use std::collections::BTreeMap;
use std::sync::Arc;

use stvor_base::{ContentId, GroupId};
use stvor_crypto::SecretBytes;
use stvor_protocol::ContentKind;
use stvor_store::{Expect, Op};
use stvor_wire::server::Deliver;
use tokio::time::Instant;

use super::incoming::Source;
use super::step::Step;
use super::{Lane, Post};
use crate::core::random;
use crate::error::{Error, Result};
use crate::events::{DeliveryState, Event};
use crate::groups::{MailRow, PostKind, ReceiptRow, post_key, receipt_key};
use crate::limits;

impl Lane {
    /// A message to all members of a group: it is judged by whoever keeps groups.
    pub(super) fn receive_group(&mut self, deliver: Box<Deliver>, source: Source, step: &mut Step) {
        if !self.core.groups.has_room(false) {
            // A fresh connection brings it once there is room. Until then it must take none from others.
            if let Source::Relay(session) = source {
                self.core.left.leave(&self.peer, session.generation);
                self.held_back.push((session, deliver.msg_id));
            }
            return;
        }
        let row = MailRow {
            from: self.peer.clone(),
            key: None,
            id: deliver.msg_id,
            arrived_at: self.core.now(),
            body: deliver.blob.to_vec(),
        };
        self.core.groups.put_mail(&row, &mut step.changes);
        step.mailed += 1;
        step.confirm_unopened(&deliver, &source);
        step.take(deliver, source);
    }

    /// What a member tells us of a group. Without room for it the message that said it is not taken: it comes again.
    pub(super) fn receive_content(&mut self, body: &SecretBytes, step: &mut Step) -> Result<()> {
        let pin = self.conversation.as_ref().and_then(|conversation| conversation.pin());
        let row = MailRow {
            from: self.peer.clone(),
            key: pin.map(|pin| pin.user_key),
            id: crate::groups::Desk::no_id(),
            arrived_at: self.core.now(),
            body: body.expose().to_vec(),
        };
        if !self.core.groups.has_room(true) {
            return Err(Error::not_ready("too much that members said waits to be judged"));
        }
        self.core.groups.put_mail(&row, &mut step.changes);
        step.mailed += 1;
        Ok(())
    }

    /// Encrypts and numbers posts while the window has room and somebody is there to take them.
    pub(super) fn fill_posts(&mut self, step: &mut Step) {
        let blocked = self.core.session().is_none()
            || self.core.rollback().is_some()
            || self.paused_until.is_some_and(|until| until > Instant::now());
        if blocked || !self.is_ready() {
            return;
        }
        while let Some(post) = self.posts.get(step.posted).map(Arc::clone) {
            if self.room(step) == 0 {
                return;
            }
            if step.is_full() {
                self.more = true;
                return;
            }
            let late = self.core.now().since(post.created_at) >= limits::KEEP_SENT;
            let pin = self.conversation.as_ref().and_then(|conversation| conversation.pin());
            if pin.is_none_or(|pin| pin.user_key != post.key) {
                // The group knows them by another identity: until they are added anew they are not this member.
                step.events.push(Event::GroupMemberUnknown { peer: self.peer.user.clone() });
            } else if !late
                && !self.core.groups.is_void(&post)
                && let Err(error) = self.seal_post(&post, step)
            {
                tracing::debug!(code = error.code(), "a post to a member has to wait");
                return;
            }
            // Another instance may have sent it, if it took this one for gone.
            let gone = Op::delete(post_key(post.seq));
            step.changes.push(match self.core.instances.is_shared() {
                true => gone.expecting(Expect::Present),
                false => gone,
            });
            step.posted += 1;
        }
    }

    fn seal_post(&mut self, post: &Post, step: &mut Step) -> Result<()> {
        let kind = match post.kind {
            PostKind::ToAll => return self.push_control(post.body.bytes.expose().to_vec(), step),
            PostKind::Content => ContentKind::Group,
            PostKind::Delivered => ContentKind::Delivered,
            PostKind::Read => ContentKind::Read,
        };
        let id = ContentId::from_bytes(random(&mut self.rng)?);
        let send = self.seal((kind, post.body.bytes.duplicate(), id), step)?;
        self.push_sealed_control(send, step);
        Ok(())
    }

    /// A post, which a turn that is taken again may have been given before.
    pub(super) fn take_post(&mut self, post: Arc<Post>) {
        let known = self.core.instances.is_shared() && self.posts.iter().any(|known| known.seq == post.seq);
        if !known {
            self.posts.push_back(post);
        }
    }

    /// Gives up posts that another instance sent, on a store that is shared, or that a commit of this one took whose answer was lost.
    pub(super) async fn drop_sent_posts(&mut self) -> Result<()> {
        let shared = self.core.instances.is_shared();
        if self.posts.is_empty() || !(shared || self.in_doubt) {
            return Ok(());
        }
        let keys: Vec<_> = self.posts.iter().map(|post| post_key(post.seq)).collect();
        let mut there = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(stvor_store::limits::MAX_GET) {
            let rows = self.core.store.get(chunk).await.map_err(Error::passed)?;
            there.extend(rows.into_iter().map(|row| row.is_some()));
        }
        let posts = core::mem::take(&mut self.posts);
        let before = posts.len();
        for (post, there) in posts.into_iter().zip(there) {
            if there {
                self.posts.push_back(post);
            } else if shared {
                self.core.groups.posted_elsewhere(&post);
            } else {
                self.core.groups.posted(&post);
            }
        }
        self.core.settle(before - self.posts.len());
        Ok(())
    }

    /// A member tells how far messages of ours to a group came: a row for each of them, which only their lane writes.
    pub(super) async fn take_group_receipts(
        &mut self,
        of: Vec<(GroupId, ContentId)>,
        state: DeliveryState,
        step: &mut Step,
    ) -> Result<()> {
        let user = self.peer.user.clone();
        let keys: Vec<_> = of.iter().map(|(_, id)| receipt_key(&self.core.store, *id, &user)).collect();
        let known = self.core.store.get(&keys).await.map_err(Error::passed)?;
        let now = self.core.now();
        let mut news: BTreeMap<GroupId, Vec<ContentId>> = BTreeMap::new();
        for (((group, id), key), known) in of.into_iter().zip(keys).zip(known) {
            let known = known.map(|row| ReceiptRow::decode(row.value.expose())).transpose();
            if known.map_err(Error::passed)?.is_some_and(|row| row.state >= state) {
                continue;
            }
            let row = ReceiptRow { user: user.clone(), state, at: now };
            step.changes.push(Op::put(key, row.encode()).expiring(now + limits::KEEP_SENT));
            news.entry(group).or_default().push(id);
        }
        for (group, ids) in news {
            step.events.push(Event::GroupReceipt { group, peer: user.clone(), ids, state });
        }
        Ok(())
    }
}
