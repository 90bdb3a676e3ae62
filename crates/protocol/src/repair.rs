//! What happens when a message can not be read.
//!
//! The message is acknowledged, so that it does not come back, and the sender is asked to send its content again. Session
//! records are not touched. The request goes on a working session if there is one, otherwise on a fresh one, at most one
//! an hour; the sender answers at most three times for a message.

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Address, ContentId, KeyBytes, MessageId, Timestamp};
use stvor_crypto::SecretBytes;
use stvor_crypto::kdf::sha256;
use stvor_crypto::random::Random;

use crate::effects::{Effects, RecordKey, RecordKind, Records};
use crate::envelope::Incoming;
use crate::error::ProtocolError;
use crate::limits::{BROKEN_SESSION_FAILURES, FRESH_SESSION_INTERVAL, MAX_RETRIES, UNANSWERED_RESTART};
use crate::plaintext::{Plaintext, RetryRequest};
use crate::session::{Active, Context, Conversation, slot_of};
use crate::trust::Pin;

const VERSION: u8 = 1;

/// Repairs of one conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct RepairState {
    /// When we last started a session to repair.
    pub(crate) fresh_at: Option<Timestamp>,
    /// Failures since something last decrypted on the current session, or since a fresh one was started.
    failing: u32,
    changed: bool,
}

impl RepairState {
    pub(crate) fn load(peer: &Address, records: &Records) -> Result<Self, ProtocolError> {
        let Some(record) = records.get(&Self::key(peer)) else { return Ok(Self::default()) };
        let decode = || {
            let mut input = Reader::new(record.expose());
            match input.u8()? {
                VERSION => {}
                other => return Err(CodecError::Version(other)),
            }
            let (present, at) = (input.bool()?, Timestamp::from_millis(input.u64()?));
            let failing = input.u32()?;
            input.finish()?;
            Ok(Self { fresh_at: present.then_some(at), failing, changed: false })
        };
        decode().map_err(ProtocolError::record("repair"))
    }

    fn key(peer: &Address) -> RecordKey {
        RecordKey::of_peer(RecordKind::Repair, peer, &[])
    }

    pub(crate) fn save(&mut self, peer: &Address, effects: &mut Effects) {
        let mut out = Writer::with_capacity(16);
        out.u8(VERSION)
            .u8(u8::from(self.fresh_at.is_some()))
            .u64(self.fresh_at.unwrap_or_default().as_millis())
            .u32(self.failing);
        effects.put(Self::key(peer), SecretBytes::from(out.finish()));
        self.changed = false;
    }

    /// A fresh session was started to repair; it gets its own chance.
    pub(crate) fn fresh(&mut self, now: Timestamp) {
        self.fresh_at = Some(now);
        self.failing = 0;
    }

    /// Something decrypted. Says whether that is news.
    pub(crate) fn works(&mut self) -> bool {
        core::mem::take(&mut self.failing) > 0
    }

    fn broken(&self) -> bool {
        self.failing >= BROKEN_SESSION_FAILURES
    }
}

/// A message that failed.
#[derive(Debug, Clone, Copy)]
pub struct Failed<'a> {
    /// The relay's id of it.
    pub message: MessageId,
    /// The blob as it arrived.
    pub blob: &'a [u8],
    /// How it failed.
    pub error: &'a ProtocolError,
}

/// How the request to send again can go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairRoute {
    /// [`Conversation::encrypt_repair`] at once.
    Working,
    /// [`Conversation::start_repair`] with a bundle first.
    Fresh,
    /// Not now: the hour's fresh session is spent. Ask again later, or when a message of the peer decrypts.
    Wait,
}

/// What follows from a failed message. Commit the effects with the message's id, the blob's hash, the event and the queued
/// request; then acknowledge the message.
#[derive(Debug)]
#[must_use]
pub struct Failure {
    /// What to commit.
    pub effects: Effects,
    /// SHA-256 of the blob.
    pub blob_hash: [u8; 32],
    /// What to queue for the peer, if the failure lost something.
    pub request: Option<Plaintext>,
    /// How it can go out.
    pub route: RepairRoute,
}

impl Conversation {
    /// Records a message that could not be read. No session changes. One whose key is gone is a duplicate from here on.
    ///
    /// # Errors
    /// [`ProtocolError::Crypto`] when the random source is unhealthy.
    pub fn failed(
        &mut self,
        context: &Context<'_>,
        failed: &Failed<'_>,
        rng: &mut dyn Random,
    ) -> Result<Failure, ProtocolError> {
        let mut effects = Effects::new();
        let blob_hash = sha256(&[failed.blob]);
        if !failed.error.wants_repair() {
            let route = self.repair_route(context.now);
            return Ok(Failure { effects, blob_hash, request: None, route });
        }
        let mut content = [0; 16];
        rng.fill(&mut content)?;
        // Whatever session it names: a peer that writes on one that we do not have may have lost ours as well, and two
        // that only ask each other on such sessions would never stop.
        match Incoming::parse(failed.blob) {
            // It only came too late; the session is as good as before.
            Ok(incoming) if matches!(failed.error, ProtocolError::KeyGone) => {
                self.stored.told(&self.peer, &slot_of(&incoming), &mut effects);
                self.stored.save(&self.peer, &mut effects);
            }
            Ok(_) => {
                self.repair.failing = self.repair.failing.saturating_add(1);
                self.repair.save(&self.peer, &mut effects);
            }
            Err(_) => {}
        }
        let request = RetryRequest { message: failed.message, blob_hash };
        let request = Some(Plaintext::retry_request(ContentId::from_bytes(content), &request));
        Ok(Failure { effects, blob_hash, request, route: self.repair_route(context.now) })
    }

    /// How a retry request can go out now.
    #[must_use]
    pub fn repair_route(&self, now: Timestamp) -> RepairRoute {
        let within = |at| now.since(at) < FRESH_SESSION_INTERVAL;
        let answering = |active: &Active| now.since(active.session.terms.created) < UNANSWERED_RESTART;
        let answerable = self.candidate.as_ref().is_some_and(answering) || self.is_ready(now);
        if answerable && !self.repair.broken() {
            RepairRoute::Working
        } else if self.repair.fresh_at.is_some_and(within) {
            RepairRoute::Wait
        } else {
            RepairRoute::Fresh
        }
    }
}

/// What the sender knows of a message that it is asked to send again.
#[derive(Debug, Clone, Copy)]
pub struct ResendFacts<'a> {
    /// Whether a receipt for its content came.
    pub receipted: bool,
    /// To whom it was sent.
    pub sent_to: &'a Address,
    /// Who asks: the authenticated sender of the request.
    pub asked_by: &'a Address,
    /// The peer's user key when it was sent.
    pub pinned_then: &'a KeyBytes,
    /// How often it was sent again already.
    pub resends: u32,
}

/// Whether a request to send again is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resend {
    /// Yes: encrypt the same content again, with a new message id.
    Yes,
    /// No: its content was received.
    Received,
    /// No: it was not sent to who asks.
    NotTheirs,
    /// No: it was sent again three times already.
    TooOften,
    /// The peer's identity changed since it was sent: ask the policy before the old content goes to the new identity.
    AskPolicy,
}

/// Judges a request to send again. A row that does not exist is not answered either.
#[must_use]
pub fn may_resend(facts: &ResendFacts<'_>, pin: Option<&Pin>) -> Resend {
    if facts.sent_to != facts.asked_by {
        Resend::NotTheirs
    } else if facts.receipted {
        Resend::Received
    } else if facts.resends >= MAX_RETRIES {
        Resend::TooOften
    } else if pin.is_none_or(|pin| pin.user_key != *facts.pinned_then && !pin.had(facts.pinned_then)) {
        Resend::AskPolicy
    } else {
        Resend::Yes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stvor_base::{DeviceId, UserId};

    #[test]
    fn a_resend_needs_the_same_address_identity_and_an_open_row() {
        let address = |name| Address::new(UserId::new(name).unwrap(), DeviceId::FIRST);
        let (bob, eve) = (address("bob"), address("eve"));
        let pin = Pin {
            user_key: [4; 65].into(),
            version: 1,
            list_hash: [0; 32],
            verified: false,
            compared_before: false,
            first_seen: Timestamp::default(),
            earlier: Vec::new(),
            forked: false,
        };
        let facts = ResendFacts {
            receipted: false,
            sent_to: &bob,
            asked_by: &bob,
            pinned_then: &[4; 65].into(),
            resends: MAX_RETRIES - 1,
        };
        assert_eq!(may_resend(&facts, Some(&pin)), Resend::Yes);
        assert_eq!(may_resend(&ResendFacts { resends: MAX_RETRIES, ..facts }, Some(&pin)), Resend::TooOften);
        assert_eq!(may_resend(&ResendFacts { receipted: true, ..facts }, Some(&pin)), Resend::Received);
        assert_eq!(may_resend(&ResendFacts { asked_by: &eve, ..facts }, Some(&pin)), Resend::NotTheirs);
        assert_eq!(
            may_resend(&ResendFacts { pinned_then: &[5; 65].into(), ..facts }, Some(&pin)),
            Resend::AskPolicy
        );
        let rotated = pin.moved(&[pin.user_key], &[5; 65].into(), Timestamp::default());
        assert_eq!(may_resend(&facts, Some(&rotated)), Resend::Yes, "who held the old key holds the new one");
        assert_eq!(may_resend(&facts, None), Resend::AskPolicy);
    }
}
