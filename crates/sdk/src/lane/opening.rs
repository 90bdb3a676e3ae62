//! Finding the peer: bundles, first contact, questions of trust.

use std::sync::Arc;

use stvor_base::{ContentId, Suite};
use stvor_crypto::SecretBytes;
use stvor_protocol::{
    ContentKind, KemKind, KemPrekeyIn, OneTimeIn, PrekeyBundle, PrekeyBundleIn, ProtocolError, RepairRoute,
    SafetyParty, SignedDeviceListIn, SignedPrekeyIn, TrustDecision, judge,
};
use stvor_wire::server::Bundles;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::step::Step;
use super::{FoundBundle, Held, Lane, Work, context};
use crate::core::{Core, random};
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::limits;
use crate::trust::{SafetyNumber, TrustQuestion, TrustReason};

/// How long the relay is asked to wait for the peer of a message that is in the outbox already.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// Who let an identity pass that no person accepted by name.
pub(super) fn decider(decision: Option<&TrustDecision>) -> &'static str {
    if decision.is_some() { "trust callback" } else { "trust policy" }
}

impl Lane {
    /// Whether a bundle is needed.
    pub(super) fn wants_session(&self) -> bool {
        if self.core.rollback().is_some() || self.asking || self.looking {
            return false;
        }
        (self.has_own_reasons() && !self.is_ready()) || (!self.requests.is_empty() && self.wants_fresh())
    }

    /// Whether we never wrote to the peer and never read anything of it.
    pub(super) fn is_stranger(&self) -> bool {
        !self.core.knows(&self.peer.user)
    }

    /// Whether a session is wanted for more than asking for mail again.
    fn has_own_reasons(&self) -> bool {
        self.has_something_to_say() || self.announces()
    }

    /// Whether a session is wanted for more than that, and than telling of our present identity.
    fn has_something_to_say(&self) -> bool {
        !self.held.is_empty()
            || !self.waiting.is_empty()
            || !self.posts.is_empty()
            || self.owes()
            || self.rehandshake
    }

    /// Whether the peer is to be told of our present identity, and nothing waits to be said to them.
    fn only_tells(&self) -> bool {
        self.announces() && !self.has_something_to_say()
    }

    /// When a bundle is asked for, if one is wanted.
    pub(super) fn fetch_due(&self) -> Instant {
        if self.only_tells() { self.fetch_after.max(self.tell_after) } else { self.fetch_after }
    }

    /// A bundle could not be used: no other is asked for before a pause, each time a longer one, and it is only looked at whether
    /// there is one that can, for each question for a whole one costs the peer one-time prekeys.
    fn put_off(&mut self, least: std::time::Duration) {
        let pause = limits::BUNDLE_AGAIN.saturating_mul(2_u32.saturating_pow(self.unusable));
        self.unusable = self.unusable.saturating_add(1);
        self.fetch_after = Instant::now() + pause.min(limits::BUNDLE_AGAIN_LONGEST).max(least);
    }

    /// The peer could not be told of our present identity: it is tried again later, each time after a longer while, and after
    /// some tries no more. Then they learn of it with our next message, or in answer to theirs.
    fn told_in_vain(&mut self, step: &mut Step) {
        self.devices_known = false;
        if !self.only_tells() {
            return;
        }
        let Some(tries) = step.row.announce else { return };
        let wait = limits::TELL_AGAIN.saturating_mul(2_u32.saturating_pow(tries.into()));
        self.tell_after = Instant::now() + wait.min(limits::TELL_AGAIN_LONGEST);
        let tries = tries.saturating_add(1);
        step.row.announce = (tries < limits::TELL_TRIES).then_some(tries);
    }

    /// A stranger has no prekeys that can be got: after some looks their mail is given up.
    fn give_up_stranger(&mut self, step: &mut Step) {
        if !self.is_stranger() || self.has_own_reasons() {
            return;
        }
        self.stranger_tries += 1;
        if self.stranger_tries < limits::STRANGER_TRIES {
            return;
        }
        self.stranger_tries = 0;
        for request in self.requests.drain(..) {
            self.core.failures.forget(&self.peer, request.message, &mut step.changes);
        }
    }

    /// Whether a request to send again needs a fresh session.
    fn wants_fresh(&self) -> bool {
        let route = self.conversation.as_ref().map(|conversation| conversation.repair_route(self.core.now()));
        route == Some(RepairRoute::Fresh) && self.requests_after <= Instant::now()
    }

    pub(super) fn fetch_if_needed(&mut self) {
        if self.fetching || self.fetch_due() > Instant::now() || !self.wants_session() {
            return;
        }
        let Some(session) = self.core.session() else { return };
        let now = Instant::now();
        (self.devices_only, self.looks) = (false, false);
        let looks = self.unusable > 0 && !self.changed && !session.minimal;
        if self.is_stranger() && !self.has_own_reasons() {
            // Whoever can make mail that nobody can read may take no share of what others need.
            let Ok(permit) = Arc::clone(&self.core.stranger_fetches).try_acquire_owned() else {
                self.fetch_after = now + limits::RECIPIENT_RETRY;
                return;
            };
            (self.fetching, self.looks, self.changed) = (true, looks, false);
            let (user, timeout) =
                (self.peer.user.clone(), self.core.config.timeout.max(limits::BACKOFF_FIRST));
            let fetch = async move {
                let _permit = permit;
                let found = if looks {
                    session.look_at_bundle(&user, timeout).await
                } else {
                    session.fetch_bundle(&user, std::time::Duration::ZERO, timeout).await
                };
                Work::Bundle(found.map(Box::new))
            };
            self.post_later(fetch, no_bundle());
            return;
        }
        if self.only_tells() && !self.devices_known && !session.minimal {
            self.devices_only = true;
            // Who can not be written to is to lose no prekeys by being asked for again and again.
            self.fetching = true;
            let (user, timeout) = (self.peer.user.clone(), self.core.config.timeout);
            let fetch = async move {
                let timeout = timeout.max(limits::BACKOFF_FIRST);
                Work::Bundle(session.fetch_rotations(&user, timeout).await.map(Box::new))
            };
            self.post_later(fetch, no_bundle());
            return;
        }
        if looks {
            (self.fetching, self.looks) = (true, true);
            let (user, timeout) =
                (self.peer.user.clone(), self.core.config.timeout.max(limits::BACKOFF_FIRST));
            let fetch =
                async move { Work::Bundle(session.look_at_bundle(&user, timeout).await.map(Box::new)) };
            self.post_later(fetch, no_bundle());
            return;
        }
        let wait = match self.held.iter().map(|held| held.deadline).max() {
            Some(deadline) => deadline.saturating_duration_since(now),
            None => PATIENCE,
        };
        (self.fetching, self.changed) = (true, false);
        let (user, timeout) = (self.peer.user.clone(), self.core.config.timeout.max(limits::BACKOFF_FIRST));
        let fetch = async move {
            Work::Bundle(session.fetch_bundle(&user, wait, wait + timeout).await.map(Box::new))
        };
        self.post_later(fetch, no_bundle());
    }

    /// The messages that wait for the relay's word and for which somebody still waits. A `send` that was dropped before
    /// its message was in the outbox sends nothing.
    fn take_held(&mut self) -> Vec<Held> {
        let mut held = core::mem::take(&mut self.held);
        let before = held.len();
        held.retain(|held| {
            let gone = held.request.reply.is_closed();
            if gone {
                held.request.reply.send(Err(Error::not_ready("nobody waits for it any more")));
            }
            !gone
        });
        self.release(before - held.len());
        held
    }

    /// What waited for the relay's word goes to the outbox, as much as fits into this commit.
    fn enqueue_held(&mut self, step: &mut Step) {
        // A client that ends has no relay either: what nobody was found for is not sent, and whoever waits hears that.
        if self.core.stop.is_cancelled() {
            return;
        }
        let mut held = self.take_held().into_iter();
        while !step.is_full() {
            let Some(held) = held.next() else { return };
            self.enqueue(held.request, step);
        }
        self.held.extend(held);
        self.more |= !self.held.is_empty();
    }

    /// Messages that wait for the relay's word: to the outbox when the relay is gone, refused when their time is over.
    pub(super) fn release_held(&mut self, step: &mut Step) {
        if self.held.is_empty() {
            return;
        }
        if self.core.session().is_none() || self.is_ready() {
            return self.enqueue_held(step);
        }
        let now = Instant::now();
        for held in self.take_held() {
            let over = held.deadline <= now && !self.fetching;
            if over
                && self.asking
                && held.request.own_timeout
                && let Some(question) = &self.question
            {
                let error = ProtocolError::AwaitingTrust(Box::new(question.clone()));
                self.refuse_send(held.request, of_protocol(error));
            } else if over && !(self.asking || self.devices_known) {
                let error = self.not_found(held.request.timeout);
                self.refuse_send(held.request, error);
            } else {
                self.held.push(held);
            }
        }
    }

    fn not_found(&self, waited: std::time::Duration) -> Error {
        let user = self.peer.user.clone();
        if waited.is_zero() {
            ErrorKind::RecipientNotFound { user }.into()
        } else {
            ErrorKind::RecipientTimeout { user, waited }.into()
        }
    }

    pub(super) async fn take_bundle(&mut self, result: Result<Box<Bundles>>, step: &mut Step) {
        self.fetching = false;
        let (devices_only, looks) = (self.devices_only, self.looks);
        let answered = result.is_ok();
        let bundle = result.and_then(|bundles| {
            let chain = self.follow(&bundles, step)?.chain;
            if devices_only {
                self.may_write_to(&bundles)?;
                return Ok(None);
            }
            let bundle = read_bundle(&self.core, &self.peer, &bundles)?;
            if looks {
                self.speaks(bundle.suite())?;
                self.may_write_to(&bundles)?;
                return Ok(None);
            }
            Ok(Some(FoundBundle { bundle, chain }))
        });
        match bundle {
            Ok(None) if looks => {
                // There is one that can be used: with one-time prekeys it is better.
                self.changed = true;
                self.fetch_after = Instant::now();
            }
            Ok(None) => self.devices_known = true,
            Ok(Some(bundle)) => {
                self.unreached = false;
                self.bundle = Some(bundle);
                self.start(step);
            }
            Err(error) if error.code() == "RECIPIENT_NOT_FOUND" => {
                self.give_up_stranger(step);
                self.told_in_vain(step);
                self.unreached = true;
                self.unusable = 0;
                self.fetch_after = Instant::now() + limits::RECIPIENT_RETRY;
                let now = Instant::now();
                for held in self.take_held() {
                    // One that came while the relay was asked on behalf of an earlier one has time left.
                    if held.deadline > now {
                        // A relay that does not wait as it was asked to is not asked without a pause.
                        self.fetch_after = now + limits::RECIPIENT_POLL;
                        self.held.push(held);
                    } else {
                        let error = self.not_found(held.request.timeout);
                        self.refuse_send(held.request, error);
                    }
                }
            }
            Err(error)
                if error.retryable()
                    && (self.only_tells() || self.is_stranger() && !self.has_own_reasons()) =>
            {
                self.fetch_after = Instant::now() + limits::RECIPIENT_RETRY;
                if answered {
                    self.put_off(limits::RECIPIENT_RETRY);
                }
            }
            Err(error) if error.retryable() => {
                // The relay could not be asked, or the peer has to come back first: what is held goes to the outbox and waits
                // there.
                self.fetch_after = Instant::now() + limits::BACKOFF_FIRST;
                if answered {
                    self.put_off(limits::BACKOFF_FIRST);
                }
                self.enqueue_held(step);
            }
            Err(error) => {
                self.give_up_stranger(step);
                self.refuse_all(&error, step);
            }
        }
    }

    /// Whether the policy lets us write to who has this device list.
    fn may_write_to(&self, bundles: &Bundles) -> Result<()> {
        let list = SignedDeviceListIn {
            bytes: bundles.device_list.to_vec(),
            signature: bundles.device_list_signature.to_vec(),
        };
        let list = list.validate(&self.core.config.app, &self.peer.user).map_err(of_protocol)?;
        let context = context(&self.core);
        let pin = self.conversation.as_ref().and_then(|conversation| conversation.pin());
        match judge(pin, &list, (context.policy, self.decision.as_ref()), context.now) {
            // The question is put once there are prekeys.
            Ok(_) | Err(ProtocolError::AwaitingTrust(_)) => Ok(()),
            Err(error) => {
                self.alarm(&error);
                Err(of_protocol(error))
            }
        }
    }

    /// Whether the peer's primitives are ours.
    fn speaks(&self, theirs: Suite) -> Result<()> {
        let ours = self.core.identity.suite();
        if ours == theirs {
            return Ok(());
        }
        let error = ProtocolError::SuiteMismatch { ours, theirs };
        self.alarm(&error);
        Err(of_protocol(error))
    }

    /// Tells that the peer shows another identity, or one that nothing can be agreed on with.
    pub(super) fn alarm(&self, error: &ProtocolError) {
        let peer = || self.peer.user.clone();
        match error {
            ProtocolError::SuiteMismatch { ours, theirs } => {
                self.core.tell_suites(&self.peer.user, (*ours, *theirs));
            }
            ProtocolError::IdentityChanged(_) => {
                self.core.hub.emit(Event::IdentityChanged { peer: peer(), accepted: false });
            }
            ProtocolError::IdentitySuperseded(_) => {
                self.core.hub.emit(Event::IdentitySuperseded { peer: peer() });
            }
            _ => {}
        }
    }

    fn refuse_all(&mut self, error: &Error, step: &mut Step) {
        tracing::debug!(code = error.code(), "no session could be started");
        self.told_in_vain(step);
        self.unreached = true;
        self.put_off(limits::RECIPIENT_RETRY);
        for held in self.take_held() {
            self.refuse_send(held.request, error.clone());
        }
    }

    /// Starts a session with the bundle at hand and encrypts what was held for it.
    fn start(&mut self, step: &mut Step) {
        let Some(found) = self.bundle.take() else { return };
        let repair = self.is_ready();
        let context = context(&self.core);
        let decision = self.decision.clone();
        let Some(conversation) = &mut self.conversation else { return };
        let started = if repair {
            conversation.start_repair(&context, &found.bundle, decision.as_ref(), &mut self.rng)
        } else {
            conversation.start(&context, &found.bundle, decision.as_ref(), &mut self.rng)
        };
        match started {
            Ok(started) => {
                (self.decision, self.devices_known) = (None, false);
                self.unusable = 0;
                self.core.suits(&self.peer.user);
                step.effects.append(started.effects);
                step.events.push(Event::SessionStarted { peer: self.peer.user.clone() });
                self.note_identity(&started.identity, decider(decision.as_ref()), step);
                self.note_earlier(found.chain.as_ref(), step);
                self.enqueue_held(step);
                let greets = core::mem::take(&mut self.rehandshake) || step.row.announce.is_some();
                if !step.sealed.is_empty() || (greets && self.greet(step)) {
                    // The peer learns of the new session by its first message.
                    step.row.announce = None;
                }
            }
            Err(ProtocolError::AwaitingTrust(question)) => {
                self.bundle = Some(found);
                self.ask(&question);
            }
            Err(error) => {
                self.alarm(&error);
                let error = of_protocol(error);
                self.refuse_all(&error, step);
            }
        }
    }

    /// Seals the first message of a session; whether it did.
    fn greet(&mut self, step: &mut Step) -> bool {
        let greeting = random(&mut self.rng).and_then(|id| {
            self.seal((ContentKind::Control, SecretBytes::default(), ContentId::from_bytes(id)), step)
        });
        match greeting {
            Ok(send) => {
                self.push_sealed_control(send, step);
                true
            }
            Err(error) => {
                tracing::debug!(code = error.code(), "a fresh session could not be announced");
                false
            }
        }
    }

    /// Asks the application, once at a time. Without an answer in time, or without anybody to ask, the answer is no.
    pub(super) fn ask(&mut self, question: &stvor_protocol::TrustQuestion) {
        if self.asking {
            return;
        }
        self.asking = true;
        let (yes, no) = (question.answer(true), question.answer(false));
        let Some(callback) = self.core.config.trust_callback.clone() else {
            self.post_later(core::future::ready(Work::Decision(no.clone())), Work::Decision(no));
            return;
        };
        self.question = Some(question.clone());
        let own = SafetyParty { user: &self.core.address.user, user_key: self.core.identity.user_key() };
        let theirs = SafetyParty { user: &question.user, user_key: &question.presented };
        let number =
            SafetyNumber::new(stvor_protocol::SafetyNumber::of(&own, &theirs), false, &question.presented);
        let reason =
            if question.pinned.is_some() { TrustReason::IdentityChanged } else { TrustReason::FirstContact };
        let question = TrustQuestion { peer: question.user.clone(), reason, safety_number: number };
        let tasks = self.core.tasks.clone();
        let instead = Work::Decision(no.clone());
        let ask = async move {
            // A task of its own: when it panics, the answer is no.
            let asked = AbortOnDropHandle::new(tasks.spawn(async move { callback(question).await }));
            let answer = tokio::time::timeout(limits::TRUST_ANSWER, asked).await;
            Work::Decision(if matches!(answer, Ok(Ok(true))) { yes } else { no })
        };
        self.post_later(ask, instead);
    }

    pub(super) fn take_decision(&mut self, decision: TrustDecision, step: &mut Step) {
        self.asking = false;
        let accepted = decision.accept;
        self.decision = Some(decision);
        if self.bundle.is_some() {
            self.start(step);
        }
        if accepted {
            self.welcome_refused();
        }
        self.parked_after = Instant::now();
    }
}

/// What becomes of a fetch that met a fault: it is tried again.
fn no_bundle() -> Work {
    Work::Bundle(Err(Error::unavailable("the question for the peer's prekeys met a fault in the program")))
}

/// Errors of the protocol that this crate names itself.
pub(crate) fn of_protocol(error: ProtocolError) -> Error {
    match error {
        ProtocolError::IdentityChanged(user) => ErrorKind::IdentityChanged { user }.into(),
        ProtocolError::NotVerified(user) => ErrorKind::IdentityNotVerified { user }.into(),
        ProtocolError::MessageTooLarge { size, limit } => ErrorKind::MessageTooLarge { size, limit }.into(),
        other => Error::passed(other),
    }
}

/// Reads and checks the peer's bundle out of what the relay answered.
pub(crate) fn read_bundle(
    core: &Core,
    peer: &stvor_base::Address,
    bundles: &Bundles,
) -> Result<PrekeyBundle> {
    let list = SignedDeviceListIn {
        bytes: bundles.device_list.to_vec(),
        signature: bundles.device_list_signature.to_vec(),
    };
    let Some(bundle) = bundles.bundles.iter().find(|bundle| bundle.device == peer.device) else {
        // The list says which devices there are; that none of them is this one is for the protocol to judge.
        list.validate(&core.config.app, &peer.user).map_err(of_protocol)?;
        return Err(ErrorKind::RecipientNotFound { user: peer.user.clone() }.into());
    };
    let kind = if bundle.kem_is_last_resort { KemKind::LastResort } else { KemKind::OneTime };
    let bundle = PrekeyBundleIn {
        list,
        device: bundle.device.get(),
        signed: SignedPrekeyIn {
            id: bundle.signed_prekey.id,
            created: bundle.signed_prekey.created_at.as_millis(),
            public: bundle.signed_prekey.key.to_vec(),
            signature: bundle.signed_prekey.signature.to_vec(),
        },
        one_time: bundle.one_time.as_ref().map(|key| OneTimeIn { id: key.id, public: key.key.to_vec() }),
        kem: KemPrekeyIn {
            kind,
            id: bundle.kem.id,
            created: bundle.kem.created_at.as_millis(),
            public: bundle.kem.key.to_vec(),
            signature: bundle.kem.signature.to_vec(),
        },
    };
    bundle.validate(&core.config.app, peer, core.now()).map_err(of_protocol)
}
