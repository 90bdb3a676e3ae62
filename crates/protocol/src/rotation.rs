//! Rotation: a user's key hands over to the next.
//!
//! The old key signs the new one, and the new one the same bytes, so the chain from any key that a contact pinned to the
//! present one proves itself: a relay can hold it back, but neither make, splice nor shorten one. The layout stands in
//! [`stvor_base::rotations`].

use stvor_base::rotations::{Rotation, Rotations, Statement, rotation_label};
use stvor_base::{AppId, KeyBytes, Timestamp, UserId};
use stvor_crypto::ShieldKey;
use stvor_crypto::random::Random;
use stvor_crypto::suite::{SigningKey, VerifyingKey};

use crate::effects::Effects;
use crate::error::ProtocolError;
use crate::identity::Identity;
use crate::session::{Context, Conversation};
use crate::trust::Pin;

/// Rotations of one user, each signed by the key before it and by its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotationChain(Rotations);

impl RotationChain {
    /// Checks form and all signatures of the chain of a user of an app, as it came: at most
    /// [`stvor_base::rotations::MAX_ROTATIONS_BYTES`].
    ///
    /// # Errors
    /// [`ProtocolError::BadRotation`] when it is malformed, of another user or app, or not signed by all its keys.
    pub fn validate(bytes: &[u8], app: &AppId, user: &UserId) -> Result<Self, ProtocolError> {
        let chain = Rotations::decode(bytes)
            .map_err(|_| ProtocolError::BadRotation("it is malformed or too long"))?;
        let signed = |key: &KeyBytes, label: &[u8], statement: &[u8], signature: &[u8]| {
            VerifyingKey::from_bytes(key).is_ok_and(|key| key.verify(label, statement, signature).is_ok())
        };
        if chain.verify((app, user), signed) {
            Ok(Self(chain))
        } else {
            Err(ProtocolError::BadRotation("a signature does not verify for this user"))
        }
    }

    /// The key that the chain leads to.
    #[must_use]
    pub fn newest(&self) -> &KeyBytes {
        self.0.newest()
    }

    /// The keys before the newest, oldest first.
    fn before(&self) -> Vec<KeyBytes> {
        self.0.keys().take(self.0.steps().len()).copied().collect()
    }

    /// The keys from `key` up to the one before the newest, if the chain leads from it to another.
    #[must_use]
    pub fn from(&self, key: &KeyBytes) -> Option<Vec<KeyBytes>> {
        self.0.from(key)
    }
}

/// A pin that moved along a chain.
#[derive(Debug)]
#[must_use]
pub struct Followed {
    /// What to commit.
    pub effects: Effects,
    /// The key that was pinned.
    pub old: KeyBytes,
    /// The key that is pinned now.
    pub new: KeyBytes,
}

impl Identity {
    /// Hands over to fresh keys: the user key signs the new one. The effects write the new identity over the old one, whose
    /// private keys are gone with the commit; sessions and prekeys of the old one are of no use any more.
    ///
    /// # Errors
    /// [`ProtocolError::Crypto`] when the random source is unhealthy.
    pub fn rotate(&self, now: Timestamp, rng: &mut dyn Random) -> Result<(Self, Effects), ProtocolError> {
        let suite = self.suite();
        let new = SigningKey::generate(suite, rng)?;
        let new_key = new.public();
        let number = self.rotations().map_or(1, Rotations::next_number);
        let statement = Statement {
            app: self.app(),
            user: self.user(),
            number,
            old_key: self.user_key(),
            new_key: &new_key,
            time: now,
        }
        .encode();
        let label = rotation_label(suite);
        let step = Rotation {
            time: now,
            new_key,
            by_old: self.user_signing()?.sign_with(rng, label, &statement)?,
            by_new: new.sign_with(rng, label, &statement)?,
        };
        let chain = match self.rotations() {
            None => Rotations::start(*self.user_key(), step),
            Some(chain) => {
                let mut chain = chain.clone();
                chain.push(step);
                chain
            }
        };
        self.handed_over(&new, chain, (now, rng))
    }
}

impl Conversation {
    /// Moves the pin to where a chain leads from it, and keeps what it was. Sessions with the old identity are archived: of
    /// what was under way on them the chains that have begun are read for [`crate::limits::LEFT_BEHIND_READING`], no new one is
    /// accepted, and nothing is sent on them. The mark that a person compared safety numbers goes, for the number is another
    /// one. `None` when the chain does not lead from the pinned key to another.
    ///
    /// # Errors
    /// [`ProtocolError::IdentitySuperseded`] for a chain that leads back to a key that the pin had before;
    /// [`ProtocolError::IdentityForked`] for one by which a key that the pin had hands over to others than those that were
    /// followed (then call [`Conversation::note_fork`]); [`ProtocolError::Crypto`] when a session can not be put away.
    pub fn follow(
        &mut self,
        chain: &RotationChain,
        context: &Context<'_>,
    ) -> Result<Option<Followed>, ProtocolError> {
        let Some(pin) = &self.pin else { return Ok(None) };
        let (old, new) = (pin.user_key, *chain.newest());
        if pin.had(&new) {
            return Err(ProtocolError::IdentitySuperseded(self.peer.user.clone()));
        }
        if forks(pin, chain) {
            return Err(ProtocolError::IdentityForked(self.peer.user.clone()));
        }
        let Some(earlier) = chain.from(&old) else { return Ok(None) };
        let moved = pin.moved(&earlier, &new, context.now);
        let moved = moved.knowing(&chain.before(), context.now).unwrap_or(moved);
        let mut effects = Effects::new();
        self.put_away(&ShieldKey::new(), &mut effects)?;
        self.write_pin(&moved, &mut effects);
        self.pin = Some(moved);
        Ok(Some(Followed { effects, old, new }))
    }

    /// Notes with the pin the keys by which a chain leads to it: whoever meets a user after a rotation takes none of them for
    /// the user's, either. `None` when they are known, or the chain does not lead to the pinned key.
    pub fn note_earlier(&mut self, chain: &RotationChain, now: Timestamp) -> Option<Effects> {
        let pin = self.pin.as_ref().filter(|pin| pin.user_key == *chain.newest())?;
        let noted = pin.knowing(&chain.before(), now)?;
        let mut effects = Effects::new();
        self.write_pin(&noted, &mut effects);
        self.pin = Some(noted);
        Some(effects)
    }

    /// Notes on the pin that an earlier key of the peer handed over to two different ones, as [`Conversation::follow`] found:
    /// from then on no policy takes another key of this user. `None` when that is known, or not so.
    pub fn note_fork(&mut self, chain: &RotationChain) -> Option<Effects> {
        let pin = self.pin.as_ref().filter(|pin| !pin.forked && forks(pin, chain))?;
        let noted = Pin { forked: true, ..pin.clone() };
        let mut effects = Effects::new();
        self.write_pin(&noted, &mut effects);
        self.pin = Some(noted);
        Some(effects)
    }
}

/// Whether a chain leads from a key that the pin moved away from past the pin to elsewhere.
fn forks(pin: &Pin, chain: &RotationChain) -> bool {
    let goes_on = pin.user_key == *chain.newest() || pin.had(chain.newest());
    !goes_on && chain.from(&pin.user_key).is_none() && chain.0.keys().any(|key| pin.had(key))
}
