//! What the task that keeps groups has for this peer, and what it gets from them.

use std::sync::Arc;

use stvor_base::ContentId;
use stvor_crypto::SecretBytes;
use stvor_protocol::ContentKind;
use stvor_wire::server::Deliver;
use tokio::time::Instant;

use super::incoming::Source;
use super::step::Step;
use super::{Lane, Post};
use crate::core::random;
use crate::error::Result;
use crate::events::Event;
use crate::groups::{MailRow, post_key};
use crate::limits;

impl Lane {
    /// A message to all members of a group: it is judged by whoever keeps groups.
    pub(super) fn receive_group(&mut self, deliver: Box<Deliver>, source: Source, step: &mut Step) {
        if self.core.instances.is_shared() {
            tracing::debug!(
                "mail of a group came to a user whose store is shared: such a user is in no group"
            );
            step.ack(&deliver, &source);
            return;
        }
        if !self.core.groups.has_room() {
            self.leave(&source);
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
        step.take(deliver, source);
    }

    /// What a member tells us of a group.
    pub(super) fn receive_content(&mut self, body: &SecretBytes, step: &mut Step) {
        if self.core.instances.is_shared() {
            return;
        }
        let pin = self.conversation.as_ref().and_then(|conversation| conversation.pin());
        let row = MailRow {
            from: self.peer.clone(),
            key: pin.map(|pin| pin.user_key),
            id: crate::groups::Desk::no_id(),
            arrived_at: self.core.now(),
            body: body.expose().to_vec(),
        };
        if row.key.is_none() || !self.core.groups.has_room() {
            // Members are asked for what was lost.
            tracing::debug!("a word about a group found no room");
            return;
        }
        self.core.groups.put_mail(&row, &mut step.changes);
        step.mailed += 1;
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
            step.changes.delete(post_key(post.seq));
            step.posted += 1;
        }
    }

    fn seal_post(&mut self, post: &Post, step: &mut Step) -> Result<()> {
        if post.blob {
            return self.push_control(post.body.bytes.expose().to_vec(), step);
        }
        let id = ContentId::from_bytes(random(&mut self.rng)?);
        let send = self.seal((ContentKind::Group, post.body.bytes.duplicate(), id), step)?;
        self.push_sealed_control(send, step);
        Ok(())
    }
}
