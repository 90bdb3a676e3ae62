//! Where a lane asks the application's own stores.

use std::sync::Arc;

use stvor_base::KeyBytes;
use stvor_protocol::{Conversation, Effects, Incoming, Pin, ProtocolError, Received};

use super::handle::Work;
use super::step::Step;
use super::{Command, Lane};
use crate::error::{Error, ErrorKind, Result};
use crate::guards;
use crate::records;

/// What those stores say of a message that decrypted.
pub(super) enum Objection {
    /// It is not to be taken.
    Refused(ProtocolError),
    /// They could not be asked.
    Unknown(Error),
}

/// Whether the application's own store is asked about the pinned identity of what is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Confirm {
    /// Before it is taken over.
    Now,
    /// Not yet: nothing is sent or read with it.
    Later,
}

/// That somebody took an identity, or rotations led to it: storage adapters may replace their fingerprint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decided {
    /// The pinned key that it takes the place of.
    pub(super) old: Option<KeyBytes>,
}

impl Lane {
    /// Whether a pin may follow the rotations of its peer: a store of the application's own may have no way to.
    pub(super) fn follows(&self) -> bool {
        self.core.guards.as_ref().is_none_or(|guards| guards.replaces())
    }

    /// What the application's own stores have against a message that decrypted. With an objection the conversation is again as
    /// it was before the message.
    pub(super) async fn object(
        &mut self,
        incoming: &Incoming<'_>,
        received: &Received,
        step: &mut Step,
    ) -> Option<Objection> {
        let guards = Arc::clone(self.core.guards.as_ref()?);
        let user = self.peer.user.clone();
        let Ok(nonce) = incoming.nonce().try_into() else {
            // Identities on such stores are of P256, and what decrypted is of our suite. Were it not so, the stores could not
            // be asked.
            let error = Error::config("storage adapters know nonces of the suite P256 only");
            return Some(self.retract(Objection::Unknown(error), step).await);
        };
        let mut objection = match guards.is_replay(&user, nonce).await {
            Ok(false) => None,
            Ok(true) => Some(Objection::Refused(ProtocolError::Replay)),
            Err(error) => Some(Objection::Unknown(error)),
        };
        let pin = guards::pinned(&received.effects).filter(|pin| step.vouched != Some(pin.user_key));
        if let (None, Some(pin)) = (&objection, pin) {
            objection = match guards.pins(&user, &pin.user_key).await {
                Ok(true) => {
                    step.vouched = Some(pin.user_key);
                    None
                }
                Ok(false) => Some(Objection::Refused(ProtocolError::IdentityChanged(user))),
                Err(error) => Some(Objection::Unknown(error)),
            };
        }
        match objection {
            None => {
                step.nonces.push(nonce);
                None
            }
            Some(objection) => Some(self.retract(objection, step).await),
        }
    }

    /// A message that decrypted is not taken.
    async fn retract(&mut self, objection: Objection, step: &mut Step) -> Objection {
        match self.take_back(&step.effects).await {
            Ok(()) => objection,
            Err(error) => {
                step.broken = Some(error.clone());
                Objection::Unknown(error)
            }
        }
    }

    /// The conversation as the store has it, with what this step writes.
    async fn take_back(&mut self, uncommitted: &Effects) -> Result<()> {
        let rows = records::load(&self.core.store, &Conversation::keys(&self.peer), uncommitted).await?;
        let before = Conversation::load(&self.core.identity, &self.peer, &rows).map_err(Error::passed)?;
        self.conversation = Some(before);
        Ok(())
    }

    /// Whether the application's own store takes the identity that a step pins. One that was decided on takes the place of the
    /// stored one there, before it does so here: a crash in between leaves what deciding once more mends.
    pub(super) async fn vouch(
        &mut self,
        pin: Option<Pin>,
        (vouched, decided): (Option<KeyBytes>, Option<Decided>),
    ) -> Result<()> {
        let Some(guards) = &self.core.guards else { return Ok(()) };
        let kept = || self.conversation.as_ref().and_then(|conversation| conversation.pin().cloned());
        let Some(pin) = pin.or_else(|| decided.and_then(|_| kept())) else { return Ok(()) };
        let user = self.peer.user.clone();
        let (new, old) = (pin.user_key, decided.and_then(|decided| decided.old));
        let stored = match old.filter(|old| *old != new) {
            Some(old) => guards.moves(&user, (&old, &new)).await?,
            None => vouched == Some(new) || guards.pins(&user, &new).await?,
        };
        match (stored, decided) {
            (true, _) => Ok(()),
            (false, Some(_)) => Err(ErrorKind::FingerprintFixed { user }.into()),
            (false, None) => Err(ErrorKind::IdentityChanged { user }.into()),
        }
    }

    /// The application's own store says that the pinned identity is not the peer's. Nothing goes on with it but what may mend
    /// that: somebody accepts the identity that the peer shows, or the pinned one handed over to it. Whether there was such.
    pub(super) async fn mend(&mut self, orders: &mut Vec<Work>, error: &Error) -> bool {
        if self.core.guards.is_none() || error.code() != "IDENTITY_CHANGED" {
            return false;
        }
        let mends = |order: &mut Work| {
            matches!(order, Work::Rotations(_) | Work::Command(Command::Adopt(..) | Command::Pin(_)))
        };
        let mending: Vec<Work> = orders.extract_if(.., mends).collect();
        if mending.is_empty() {
            if self.follows() {
                self.look_for_rotations(&Step::new(self.row.clone()));
            }
            return false;
        }
        if self.load(Confirm::Later).await.is_err() {
            orders.extend(mending);
            return false;
        }
        let mut step = Step::new(self.row.clone());
        for order in mending {
            self.take_work(order, &mut step).await;
        }
        if step.decided.is_some() {
            // What was refused before is welcome, which nothing but memory knows.
            self.ask_again(&mut step);
        }
        self.commit(step).await;
        // It is used only once it is confirmed.
        self.conversation = None;
        true
    }

    /// Whether the identity that is pinned here is the one of the application's own store.
    pub(super) async fn confirm(&mut self, conversation: &Conversation) -> Result<()> {
        let Some(guards) = &self.core.guards else { return Ok(()) };
        guards.name(&self.core.store, &self.peer);
        let Some(pin) = conversation.pin() else { return Ok(()) };
        if guards.vouches_for(&self.peer.user, &pin.user_key).await? {
            return Ok(());
        }
        Err(ErrorKind::IdentityChanged { user: self.peer.user.clone() }.into())
    }
}
