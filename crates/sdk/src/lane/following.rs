//! A peer whose key handed over to another one: the relay has the statements, and the pin follows them.

use std::sync::Arc;

use stvor_protocol::{ProtocolError, RotationChain, SignedDeviceListIn};
use stvor_wire::server::Bundles;
use tokio::time::Instant;

use super::step::Step;
use super::{Lane, Source, Work, context};
use crate::error::{Error, Result};
use crate::events::Event;
use crate::journal::{Deed, JournalEntry, fingerprint};
use crate::limits;
use crate::parked::Reserved;

/// Who moved the pin, as the journal names it.
const WHO: &str = "rotation";

/// What rotations beside a device list did.
#[derive(Default)]
pub(super) struct Shown {
    /// The pin moved along them.
    pub(super) moved: bool,
    /// The rotations.
    pub(super) chain: Option<RotationChain>,
}

impl Lane {
    /// Whether an identity that is not the pinned one may be what the pinned one handed over to: the relay is asked before
    /// anybody judges it. An answer counts for mail that was here when the question was put, for what comes later may be of a
    /// key that is newer than the answer.
    pub(super) fn may_have_rotated(&self, error: &ProtocolError, source: &Source) -> bool {
        let other = match error {
            // Of what forked there may be a rightful rotation, too: the chain tells which.
            ProtocolError::IdentityChanged(_) | ProtocolError::IdentityForked(_) => true,
            ProtocolError::AwaitingTrust(question) => question.pinned.is_some(),
            _ => false,
        };
        other && self.asks_for_rotations(source)
    }

    /// Whether the relay would be asked.
    pub(super) fn asks_for_rotations(&self, source: &Source) -> bool {
        let minimal = self.core.session().is_some_and(|session| session.minimal);
        let answered = matches!(source, Source::Parked(number) if *number <= self.rotations_told);
        !minimal && !answered && self.follows()
    }

    /// Asks the relay for the peer's rotations, for all mail that waits. Soon after an answer it is not asked again: mail goes
    /// on waiting.
    pub(super) fn look_for_rotations(&mut self, step: &Step) {
        if self.looking || self.rotations_after > Instant::now() {
            return;
        }
        let Some(session) = self.core.session() else { return };
        let waiting = self.core.parked.of(&self.peer);
        let coming = step.parked.iter().map(Reserved::entry);
        let newest = waiting.iter().chain(coming).map(|entry| entry.number).max();
        self.rotations_asked = newest.unwrap_or(self.rotations_told);
        self.looking = true;
        let (user, timeout) = (self.peer.user.clone(), self.core.config.timeout.max(limits::BACKOFF_FIRST));
        let fetch =
            async move { Work::Rotations(session.fetch_rotations(&user, timeout).await.map(Box::new)) };
        let nothing = Error::unavailable("its answer met a fault in the program");
        self.post_later(fetch, Work::Rotations(Err(nothing)));
    }

    /// The relay's answer. Without one the question is put again, a few times: then mail is judged as it is, so that a relay
    /// keeps no alarm back by its silence.
    pub(super) fn take_rotations(&mut self, result: Result<Box<Bundles>>, step: &mut Step) {
        self.looking = false;
        let told = result.and_then(|bundles| self.follow(&bundles, step));
        let now = Instant::now();
        match told {
            Err(error) if error.retryable() && self.rotations_tries < limits::ROTATIONS_TRIES => {
                self.rotations_tries += 1;
                self.parked_after = now + limits::BACKOFF_FIRST;
                return;
            }
            Ok(Shown { moved: true, .. }) => {}
            Ok(_) => self.rotations_after = now + limits::ROTATIONS_AGAIN,
            Err(error) => {
                tracing::debug!(code = error.code(), "no rotation could be followed");
                self.rotations_after = now + limits::ROTATIONS_AGAIN;
            }
        }
        self.rotations_tries = 0;
        self.rotations_told = self.rotations_asked;
        self.parked_after = now;
    }

    /// The rotations that came with a device list, if they lead to its key.
    fn shown_chain(&self, bundles: &Bundles) -> Result<Option<RotationChain>> {
        if bundles.rotations.is_empty() || !self.follows() {
            return Ok(None);
        }
        let (app, user) = (&self.core.config.app, &self.peer.user);
        let list = SignedDeviceListIn {
            bytes: bundles.device_list.to_vec(),
            signature: bundles.device_list_signature.to_vec(),
        };
        let list = list.validate(app, user).map_err(Error::passed)?;
        let chain = RotationChain::validate(&bundles.rotations, app, user).map_err(Error::passed)?;
        if *chain.newest() != list.list().user_key {
            let error = ProtocolError::BadRotation("they do not lead to the key of the device list");
            return Err(Error::passed(error));
        }
        Ok(Some(chain))
    }

    /// Moves the pin along what came with a device list, if that leads from it, and gives the rotations: what is pinned by the
    /// same list later is told of them by [`note_earlier`](Self::note_earlier).
    pub(super) fn follow(&mut self, bundles: &Bundles, step: &mut Step) -> Result<Shown> {
        let Some(chain) = self.shown_chain(bundles)? else { return Ok(Shown::default()) };
        let moved = self.follow_chain(&chain, step)?;
        if !moved {
            self.note_earlier(Some(&chain), step);
        }
        Ok(Shown { moved, chain: Some(chain) })
    }

    /// Notes the keys that handed over to the pinned one, as rotations show.
    pub(super) fn note_earlier(&mut self, chain: Option<&RotationChain>, step: &mut Step) {
        let now = self.core.now();
        if let (Some(conversation), Some(chain)) = (&mut self.conversation, chain)
            && let Some(effects) = conversation.note_earlier(chain, now)
        {
            step.effects.append(effects);
        }
    }

    /// Of whom the first word came to us nothing was shown but their key: the relay is asked, once and beside everything else,
    /// whether others handed over to it. Without an answer the next question for their prekeys tells.
    pub(super) fn ask_for_earlier(&mut self) {
        let Some(session) = self.core.session() else { return };
        if session.minimal || !session.rotates || !self.follows() {
            return;
        }
        // Whoever writes under many names takes no share of what others need.
        let Ok(permit) = Arc::clone(&self.core.stranger_fetches).try_acquire_owned() else { return };
        let (user, timeout) = (self.peer.user.clone(), self.core.config.timeout.max(limits::BACKOFF_FIRST));
        let fetch = async move {
            let _permit = permit;
            Work::Earlier(session.fetch_rotations(&user, timeout).await.map(Box::new))
        };
        let nothing = Error::unavailable("its answer met a fault in the program");
        self.post_later(fetch, Work::Earlier(Err(nothing)));
    }

    /// The relay's answer to that.
    pub(super) fn take_earlier(&mut self, result: Result<Box<Bundles>>, step: &mut Step) {
        if let Err(error) = result.and_then(|bundles| self.follow(&bundles, step)) {
            tracing::debug!(code = error.code(), "no rotation of a new contact could be looked at");
        }
    }

    fn follow_chain(&mut self, chain: &RotationChain, step: &mut Step) -> Result<bool> {
        let user = self.peer.user.clone();
        let Some(conversation) = &mut self.conversation else { return Ok(false) };
        let verified = conversation.pin().is_some_and(|pin| pin.verified);
        let followed = match conversation.follow(chain, &context(&self.core)) {
            Err(error @ ProtocolError::IdentityForked(_)) => {
                self.note_fork(chain, step);
                return Err(Error::passed(error));
            }
            other => other.map_err(Error::passed)?,
        };
        let Some(followed) = followed else { return Ok(false) };
        step.effects.append(followed.effects);
        step.decide(Some(followed.old));
        step.changes
            .put(crate::groups::moved_key(&self.core.store, &user), user.as_str().as_bytes().to_vec());
        let (old, new) = (fingerprint(&followed.old), fingerprint(&followed.new));
        let entry = JournalEntry::new(self.core.now(), WHO, Deed::IdentityRotated);
        step.journal(entry.about(user.to_string(), format!("{old} -> {new}")));
        step.events.push(Event::IdentityRotated { peer: user.clone(), old, new, was_verified: verified });
        self.welcome_refused();
        let (core, stop) = (self.core.me(), self.core.stop.clone());
        self.core.tasks.spawn(async move {
            let Some(core) = core.upgrade() else { return };
            tokio::select! {
                () = core.groups.moved(user) => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(true)
    }

    /// An old key of the peer handed over twice, which is told once.
    fn note_fork(&mut self, chain: &RotationChain, step: &mut Step) {
        let Some(conversation) = &mut self.conversation else { return };
        let pinned = conversation.pin().map(|pin| fingerprint(&pin.user_key)).unwrap_or_default();
        let Some(effects) = conversation.note_fork(chain) else { return };
        step.effects.append(effects);
        let (user, shown) = (self.peer.user.clone(), fingerprint(chain.newest()));
        let entry = JournalEntry::new(self.core.now(), WHO, Deed::IdentityForked);
        step.journal(entry.about(user.to_string(), format!("{pinned}, and {shown}")));
        step.events.push(Event::IdentityForked { peer: user, pinned, shown });
    }
}
