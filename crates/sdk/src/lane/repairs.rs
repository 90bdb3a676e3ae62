//! Messages that failed and are asked for again, on both sides.

use std::sync::atomic::Ordering;
use std::time::Duration;

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Address, ContentId};
use stvor_crypto::kdf::sha256;
use stvor_protocol::{ContentKind, Plaintext, RepairRoute, Resend, ResendFacts, RetryRequest, may_resend};
use stvor_store::{Op, Scan, Table};
use stvor_wire::server::Deliver;
use tokio::time::Instant;

use super::incoming::{RESENT, RESENT_HEAD};
use super::outgoing::kind_of;
use super::step::Step;
use super::{Lane, context};
use crate::core::{Core, random};
use crate::error::{Error, Result};
use crate::events::DeliveryState;
use crate::keys;
use crate::limits;
use crate::rows::{MessageRow, PointerRow};

/// How long a request that can not go out waits.
const REQUEST_RETRY: Duration = Duration::from_secs(60);

impl Lane {
    /// The peer could not read a message of ours and asks for it again.
    pub(super) async fn resend(&mut self, request: &RetryRequest, step: &mut Step) -> Result<()> {
        let pending = self.sealed.iter().find(|one| one.send.msg_id == request.message);
        if pending.is_some_and(|one| sha256(&[&one.send.blob]) != request.blob_hash) {
            // Something else came under its id: what is on its way is that very message.
            return Ok(());
        }
        let store = &self.core.store;
        let Some(row) = store.one(&keys::sent(&self.peer, request.message)).await.map_err(Error::passed)?
        else {
            return Ok(());
        };
        let pointer = PointerRow::decode(row.value.expose()).map_err(Error::passed)?;
        let row = self.messages(&[pointer.place], step).await?.pop().flatten();
        let Some(mut row) = row else { return Ok(()) };
        let Some(pinned_then) = row.identity else { return Ok(()) };
        // A receipt takes the row that led here with it, unless it came on a session that was left: that says nothing.
        let receipted = matches!(row.state, DeliveryState::Delivered | DeliveryState::Read)
            && row.msg_id != Some(request.message);
        let facts = ResendFacts {
            receipted,
            sent_to: &pointer.peer,
            asked_by: &self.peer,
            pinned_then: &pinned_then,
            resends: u32::from(row.repairs),
        };
        let pin = self.conversation.as_ref().and_then(|conversation| conversation.pin());
        let verdict = may_resend(&facts, pin);
        // The policy was asked when the new identity was accepted; "replace" without a person's answer does not cover what
        // was written for another key.
        let allowed = match verdict {
            Resend::Yes => true,
            Resend::AskPolicy => pin.is_some_and(stvor_protocol::Pin::was_compared),
            _ => false,
        };
        if !allowed {
            tracing::debug!(?verdict, "a request to send again was not answered");
            return Ok(());
        }
        if row.msg_id.is_some_and(|id| id != request.message) && self.is_pending(row.msg_id) {
            // It is on its way again already.
            return Ok(());
        }
        row.repairs += 1;
        let (kind, body) = resent(&row, request);
        let send = self.seal((kind, body.into(), pointer.place.id), step)?;
        let created_at = self.core.now();
        step.row.queued += 1;
        row.queued = step.row.queued;
        self.depth.fetch_add(1, Ordering::Relaxed);
        step.counted += 1;
        step.resent += 1;
        self.store_sealed((row.queued, pointer.place, created_at), (row, send), step);
        Ok(())
    }

    fn is_pending(&self, id: Option<stvor_base::MessageId>) -> bool {
        self.sealed.iter().any(|one| Some(one.send.msg_id) == id)
    }

    /// Whether it failed before and is to be asked for again: there is nothing new to tell.
    pub(super) fn is_asked_for(&self, deliver: &Deliver) -> bool {
        let mut requests = self.requests.iter().chain(&self.refused);
        let known = requests.find(|request| request.message == deliver.msg_id);
        known.is_some_and(|request| sha256(&[&deliver.blob]) == request.blob_hash)
    }

    pub(super) fn remember_request(&mut self, request: RetryRequest, code: &str, step: &mut Step) {
        if self.requests.len() + self.refused.len() >= limits::MAX_FAILURES_OF_ONE {
            let oldest = if self.requests.is_empty() {
                Some(self.refused.remove(0))
            } else {
                self.requests.pop_front()
            };
            if let Some(oldest) = oldest {
                self.core.failures.forget(&self.peer, oldest.message, &mut step.changes);
            }
        }
        let failure = (&self.peer, request.message);
        let knows = |peer: &Address| self.core.knows(&peer.user);
        if let Err(error) = self.core.failures.remember(failure, knows, &mut step.changes) {
            step.broken = Some(error);
            return;
        }
        let mut out = Writer::new();
        out.u8(1).raw(&request.blob_hash).bytes(code.as_bytes());
        let key = keys::request(&self.peer, request.message);
        step.changes.push(Op::put(key, out.finish()).expiring(self.core.now() + limits::KEEP_SENT));
        if refused(code) {
            self.refused.push(request);
        } else {
            self.requests.push_back(request);
            self.requests_after = Instant::now();
        }
    }

    /// A person accepted or verified the identity: what was refused is welcome now.
    pub(super) fn welcome_refused(&mut self) {
        self.requests.extend(self.refused.drain(..));
        self.requests_after = Instant::now();
        (self.fetch_after, self.tell_after) = (Instant::now(), Instant::now());
    }

    /// Requests that were not sent yet, and those that wait for a person.
    pub(super) async fn stored_requests(
        core: &Core,
        peer: &Address,
    ) -> Result<(Vec<RetryRequest>, Vec<RetryRequest>)> {
        let scan = Scan::of(Table::Repair, keys::requests_of(peer));
        let rows = core.store.scan_all(scan, limits::MAX_FAILURES_OF_ONE).await.map_err(Error::passed)?;
        let decode = |row: &stvor_store::Record| -> core::result::Result<(bool, RetryRequest), CodecError> {
            let mut input = Reader::new(row.value.expose());
            let version = input.u8()?;
            if version != 1 {
                return Err(CodecError::Version(version));
            }
            let message = stvor_base::MessageId::try_from(row.key.sort.as_slice())?;
            let blob_hash = *input.array()?;
            let code = core::str::from_utf8(input.bytes(64)?).map_err(|_| CodecError::Value)?;
            Ok((refused(code), RetryRequest { message, blob_hash }))
        };
        let (mut requests, mut waiting) = (Vec::new(), Vec::new());
        for row in &rows {
            let (refused, request) = decode(row).map_err(Error::passed)?;
            if refused { waiting.push(request) } else { requests.push(request) }
        }
        // Their keys are random: which came first the failures know.
        let age = |request: &RetryRequest| core.failures.age(peer, request.message);
        requests.sort_by_key(age);
        waiting.sort_by_key(age);
        Ok((requests, waiting))
    }

    /// When there is something to do for the requests that were not sent yet.
    pub(super) fn requests_due(&self) -> Instant {
        match self.conversation.as_ref().map(|conversation| conversation.repair_route(self.core.now())) {
            Some(RepairRoute::Working) => self.requests_after,
            Some(RepairRoute::Fresh) => self.requests_after.max(self.fetch_due()),
            _ => Instant::now() + REQUEST_RETRY,
        }
    }

    /// Sends the requests that can go out now.
    pub(super) fn ask_again(&mut self, step: &mut Step) {
        if self.requests.is_empty() || self.core.session().is_none() || self.core.rollback().is_some() {
            return;
        }
        let Some(conversation) = &mut self.conversation else { return };
        if conversation.repair_route(self.core.now()) != RepairRoute::Working {
            return;
        }
        while let Some(request) = self.requests.front().copied() {
            let Some(conversation) = &mut self.conversation else { return };
            let Ok(id) = random(&mut self.rng) else { return };
            let plaintext = Plaintext::retry_request(ContentId::from_bytes(id), &request);
            let encrypted = match conversation.encrypt_repair(&context(&self.core), &plaintext, &mut self.rng)
            {
                Ok(encrypted) => encrypted,
                Err(error) => {
                    tracing::debug!(
                        code = stvor_base::ErrorCode::code(&error),
                        "a retry request has to wait"
                    );
                    self.requests_after = Instant::now() + REQUEST_RETRY;
                    return;
                }
            };
            step.effects.append(encrypted.effects);
            if self.push_control(encrypted.blob, step).is_err() {
                return;
            }
            self.core.failures.forget(&self.peer, request.message, &mut step.changes);
            self.requests.pop_front();
        }
    }
}

/// Whether a message with this failure was refused by a trust policy.
pub(super) fn refused(code: &str) -> bool {
    matches!(code, "IDENTITY_CHANGED" | "IDENTITY_NOT_VERIFIED" | "IDENTITY_FORKED")
}

/// A content that is sent again: wrapped with what the receiver can not know otherwise, if that fits.
fn resent(row: &MessageRow, request: &RetryRequest) -> (ContentKind, Vec<u8>) {
    let content = row.content.as_bytes();
    if content.len() + RESENT_HEAD > stvor_protocol::limits::MAX_PLAINTEXT {
        return (kind_of(&row.content), content.to_vec());
    }
    let mut out = Writer::with_capacity(RESENT_HEAD + content.len());
    out.raw(request.message.as_bytes()).u64(row.sent_at.as_millis()).u8(row.content.tag()).raw(content);
    (RESENT, out.finish())
}
