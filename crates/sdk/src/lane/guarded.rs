//! Where a lane asks the application's own stores.

use std::sync::Arc;

use stvor_base::KeyBytes;
use stvor_protocol::{Conversation, Effects, Incoming, Pin, ProtocolError, Received};

use super::Lane;
use super::step::Step;
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

impl Lane {
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

    /// Whether the application's own store takes the identity that a step pins.
    pub(super) async fn vouch(&mut self, pin: Option<Pin>, vouched: Option<KeyBytes>) -> Result<()> {
        let (Some(guards), Some(pin)) = (&self.core.guards, pin) else { return Ok(()) };
        if vouched == Some(pin.user_key) || guards.pins(&self.peer.user, &pin.user_key).await? {
            return Ok(());
        }
        Err(ErrorKind::IdentityChanged { user: self.peer.user.clone() }.into())
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
