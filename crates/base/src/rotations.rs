//! The byte layout of the statements by which a user's key hands over to the next.
//!
//! A rotation names the old key and the new one and is signed by both: the old key says who follows it, the new one
//! that whoever holds it wants to (specification, "Rotation"). The last [`MAX_ROTATIONS`] of a user travel together, so that a
//! contact who pinned any of the keys can walk to the present one. Whoever reads them checks the signatures with
//! [`Rotations::verify`]: relay and clients do it alike.

use crate::address::{AppId, UserId};
use crate::codec::{CodecError, Reader, Writer};
use crate::devices::SIGNATURE_BYTES;
use crate::suite::{KeyBytes, MAX_KEY_BYTES, Suite};
use crate::time::Timestamp;

/// What both signatures of a rotation cover first, so that they can pass for nothing else.
#[must_use]
pub const fn rotation_label(suite: Suite) -> &'static [u8] {
    match suite {
        Suite::P256 => b"STVOR 1 P256 identity rotation",
        Suite::X25519 => b"STVOR 1 X25519 identity rotation",
    }
}

/// Rotations of one user that are carried: a contact who was away for more of them has to compare safety numbers again.
pub const MAX_ROTATIONS: usize = 8;

/// Longest encoding of [`Rotations`]: it fits into a log-in beside the device list.
pub const MAX_ROTATIONS_BYTES: usize =
    1 + 8 + MAX_KEY_BYTES + 1 + MAX_ROTATIONS * (8 + MAX_KEY_BYTES + 2 * SIGNATURE_BYTES);

/// Layout version of statement and chain.
const VERSION: u8 = 1;

/// One step of a chain: what is not in the step before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// When the user rotated, by their clock.
    pub time: Timestamp,
    /// The key that follows.
    pub new_key: KeyBytes,
    /// The signature of the key before over the statement.
    pub by_old: [u8; SIGNATURE_BYTES],
    /// The signature of the new key over the same bytes.
    pub by_new: [u8; SIGNATURE_BYTES],
}

/// What a rotation says: the bytes that both keys sign.
#[derive(Debug, Clone, Copy)]
pub struct Statement<'a> {
    /// The app that the user belongs to.
    pub app: &'a AppId,
    /// The user.
    pub user: &'a UserId,
    /// Counts the user's rotations, from 1.
    pub number: u64,
    /// The key that signs.
    pub old_key: &'a KeyBytes,
    /// The key that follows.
    pub new_key: &'a KeyBytes,
    /// When the user rotated.
    pub time: Timestamp,
}

impl Statement<'_> {
    /// The bytes that are signed, after [`rotation_label`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(self.old_key.suite().layout(VERSION))
            .bytes(self.app.as_str().as_bytes())
            .bytes(self.user.as_str().as_bytes())
            .u64(self.number)
            .raw(self.old_key)
            .raw(self.new_key)
            .u64(self.time.as_millis());
        out.finish()
    }
}

/// The newest rotations of a user, each from the key of the one before. The signatures are not checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotations {
    first: u64,
    oldest: KeyBytes,
    steps: Vec<Rotation>,
}

impl Rotations {
    /// A chain of one rotation, the user's first, from `oldest`.
    #[must_use]
    pub fn start(oldest: KeyBytes, step: Rotation) -> Self {
        Self { first: 1, oldest, steps: vec![step] }
    }

    /// Adds a rotation. Of more than [`MAX_ROTATIONS`] the oldest is dropped.
    pub fn push(&mut self, step: Rotation) {
        self.steps.push(step);
        while self.steps.len() > MAX_ROTATIONS {
            self.oldest = self.steps.remove(0).new_key;
            self.first = self.first.saturating_add(1);
        }
    }

    /// The number of the rotation that would follow.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.first.saturating_add(self.steps.len() as u64)
    }

    /// The steps, oldest first: 1 to [`MAX_ROTATIONS`].
    #[must_use]
    pub fn steps(&self) -> &[Rotation] {
        &self.steps
    }

    /// All keys in their order: the one that the chain begins with, then the key of each step.
    pub fn keys(&self) -> impl Iterator<Item = &KeyBytes> {
        core::iter::once(&self.oldest).chain(self.steps.iter().map(|step| &step.new_key))
    }

    /// The key that the chain leads to.
    #[must_use]
    pub fn newest(&self) -> &KeyBytes {
        self.steps.last().map_or(&self.oldest, |step| &step.new_key)
    }

    /// The keys from `key` up to the one before the newest, if the chain leads from it to another.
    #[must_use]
    pub fn from(&self, key: &KeyBytes) -> Option<Vec<KeyBytes>> {
        let before = self.steps.len();
        let earlier: Vec<KeyBytes> =
            self.keys().take(before).skip_while(|known| *known != key).copied().collect();
        Some(earlier).filter(|earlier| !earlier.is_empty())
    }

    /// The bytes that are sent and stored. App and user are not in them: whoever reads them knows whose they are to be.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(MAX_ROTATIONS_BYTES);
        out.u8(self.oldest.suite().layout(VERSION))
            .u64(self.first)
            .raw(&self.oldest)
            .u8(u8::try_from(self.steps.len()).unwrap_or(u8::MAX));
        for step in &self.steps {
            out.u64(step.time.as_millis()).raw(&step.new_key).raw(&step.by_old).raw(&step.by_new);
        }
        out.finish()
    }

    /// Reads a chain. The signatures are not looked at.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are not exactly one chain: no step or more than [`MAX_ROTATIONS`], number 0 or
    /// numbers past 64 bits, a key that comes twice, bytes after the end.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        let suite = Suite::of_layout(input.u8()?, VERSION)?;
        let first = input.u64()?;
        let oldest = KeyBytes::read(&mut input, suite)?;
        let count = input.u8()?;
        let counts = first > 0 && first.checked_add(u64::from(count)).is_some();
        if !counts || count == 0 || usize::from(count) > MAX_ROTATIONS {
            return Err(CodecError::Value);
        }
        let mut chain = Self { first, oldest, steps: Vec::with_capacity(usize::from(count)) };
        for _ in 0..count {
            let step = Rotation {
                time: Timestamp::from_millis(input.u64()?),
                new_key: KeyBytes::read(&mut input, suite)?,
                by_old: *input.array()?,
                by_new: *input.array()?,
            };
            if chain.keys().any(|key| *key == step.new_key) {
                return Err(CodecError::Value);
            }
            chain.steps.push(step);
        }
        input.finish()?;
        Ok(chain)
    }

    /// Whether every step is signed by the key before it and by its own, for this user of this app. `check` is given a key,
    /// the label, the statement and a signature over both.
    pub fn verify(
        &self,
        (app, user): (&AppId, &UserId),
        check: impl Fn(&KeyBytes, &[u8], &[u8], &[u8]) -> bool,
    ) -> bool {
        let label = rotation_label(self.oldest.suite());
        let numbers = self.first..self.next_number();
        numbers.zip(self.keys().zip(&self.steps)).all(|(number, (old_key, step))| {
            let (new_key, time) = (&step.new_key, step.time);
            let statement = Statement { app, user, number, old_key, new_key, time }.encode();
            check(old_key, label, &statement, &step.by_old) && check(new_key, label, &statement, &step.by_new)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(suite: Suite, byte: usize) -> KeyBytes {
        KeyBytes::try_from(&vec![u8::try_from(byte).unwrap(); suite.key_bytes()][..]).unwrap()
    }

    fn step(suite: Suite, byte: usize) -> Rotation {
        Rotation {
            time: Timestamp::from_millis(7),
            new_key: key(suite, byte),
            by_old: [1; 64],
            by_new: [2; 64],
        }
    }

    fn chain(suite: Suite, steps: usize) -> Rotations {
        let mut chain = Rotations::start(key(suite, 1), step(suite, 2));
        (3..=steps + 1).for_each(|byte| chain.push(step(suite, byte)));
        chain
    }

    #[test]
    fn a_chain_reads_back_and_every_cut_is_refused() {
        for suite in Suite::ALL {
            let bytes = chain(suite, 2).encode();
            assert_eq!(Rotations::decode(&bytes), Ok(chain(suite, 2)));
            for length in 0..bytes.len() {
                assert!(Rotations::decode(&bytes[..length]).is_err(), "{length}");
            }
            assert_eq!(Rotations::decode(&[&bytes[..], &[0]].concat()), Err(CodecError::Trailing));
        }
    }

    #[test]
    fn a_chain_holds_eight_rotations_and_drops_the_oldest_of_nine() {
        for suite in Suite::ALL {
            let eight = chain(suite, MAX_ROTATIONS);
            assert!(eight.encode().len() <= MAX_ROTATIONS_BYTES);
            assert_eq!(Rotations::decode(&eight.encode()).unwrap().from(&key(suite, 1)).unwrap().len(), 8);
            let nine = chain(suite, MAX_ROTATIONS + 1);
            assert_eq!((nine.steps().len(), nine.next_number()), (MAX_ROTATIONS, 10));
            assert_eq!((nine.from(&key(suite, 1)), nine.newest()), (None, &key(suite, 10)));
            let mut long = eight.clone();
            long.steps.push(step(suite, 10));
            assert_eq!(Rotations::decode(&long.encode()), Err(CodecError::Value));
        }
        assert_eq!(chain(Suite::P256, MAX_ROTATIONS).encode().len(), MAX_ROTATIONS_BYTES);
    }

    #[test]
    fn no_step_number_zero_circles_and_numbers_without_end_are_refused() {
        let refused = |change: fn(&mut Rotations)| {
            let mut chain = chain(Suite::P256, 2);
            change(&mut chain);
            Rotations::decode(&chain.encode()) == Err(CodecError::Value)
        };
        assert!(refused(|chain| chain.steps.clear()));
        assert!(refused(|chain| chain.first = 0));
        assert!(refused(|chain| chain.first = u64::MAX - 1));
        assert!(refused(|chain| chain.steps[1].new_key = chain.oldest));
        assert!(refused(|chain| chain.steps[1].new_key = chain.steps[0].new_key));
        assert!(!refused(|_| ()));
    }

    #[test]
    fn a_chain_leads_from_each_of_its_keys_but_the_newest() {
        let (suite, chain) = (Suite::X25519, chain(Suite::X25519, 3));
        assert_eq!(chain.from(&key(suite, 1)), Some(vec![key(suite, 1), key(suite, 2), key(suite, 3)]));
        assert_eq!(chain.from(&key(suite, 3)), Some(vec![key(suite, 3)]));
        assert_eq!((chain.from(&key(suite, 4)), chain.from(&key(suite, 9))), (None, None));
    }
}
