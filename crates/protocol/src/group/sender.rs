//! Our own chain of a group, and whom it was given to.
//!
//! The chain moves as between two devices (`seed`, `chain'` from HMAC-SHA256), and its key pair signs. A member who gets it
//! gets it at the counter where it stands, so what was sent before stays unread.

use std::collections::BTreeMap;

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{KeyBytes, Suite, UserId};
use stvor_crypto::kdf::sha256;
use stvor_crypto::random::Random;
use stvor_crypto::suite::SigningKey;
use stvor_crypto::{Secret, SecretBytes};

use super::limits::{MAX_MEMBERS, MAX_OWN_CHAINS};
use super::message::ChainId;
use crate::error::ProtocolError;
use crate::profile;
use crate::ratchet::ChainKey;

const VERSION: u8 = 1;

/// A chain of ours.
pub(crate) struct OwnChain {
    pub(crate) id: ChainId,
    pub(crate) key: ChainKey,
    pub(crate) counter: u32,
    pub(crate) signing: SigningKey,
}

impl OwnChain {
    pub(crate) fn generate(suite: Suite, rng: &mut dyn Random) -> Result<Self, ProtocolError> {
        let mut id = [0; 16];
        rng.fill(&mut id)?;
        let key = ChainKey::new(Secret::random(rng)?);
        Ok(Self { id, key, counter: 0, signing: SigningKey::generate(suite, rng)? })
    }

    /// The chain one message on.
    pub(crate) fn record(&self, (key, counter): (&ChainKey, u32)) -> SecretBytes {
        let mut out = Writer::with_capacity(1 + 16 + 32 + 4 + 32);
        let suite = self.signing.public().suite();
        out.u8(suite.layout(VERSION))
            .raw(&self.id)
            .raw(key.expose())
            .u32(counter)
            .raw(self.signing.to_bytes().expose());
        out.finish().into()
    }

    pub(crate) fn from_record(record: &SecretBytes) -> Result<Self, CodecError> {
        let mut input = Reader::new(record.expose());
        let suite = Suite::of_layout(input.u8()?, VERSION)?;
        let secret =
            |input: &mut Reader<'_>| Secret::<32>::from_slice(input.raw(32)?).map_err(|_| CodecError::Length);
        let id = *input.array()?;
        let key = ChainKey::new(secret(&mut input)?);
        let counter = input.u32()?;
        let signing = SigningKey::from_bytes(suite, &secret(&mut input)?).map_err(|_| CodecError::Value)?;
        input.finish()?;
        Ok(Self { id, key, counter, signing })
    }
}

/// A short name of a member with a key.
type MemberTag = [u8; 16];

pub(crate) fn tag_of(user: &UserId, key: &KeyBytes) -> MemberTag {
    let hash = sha256(&[profile::of(key.suite()).label.group_recipient, key, user.as_str().as_bytes()]);
    let mut tag = [0; 16];
    tag.copy_from_slice(&hash[..16]);
    tag
}

/// Who has our newest chains, each from which counter on; the newest chain first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Recipients(Vec<(ChainId, BTreeMap<MemberTag, u32>)>);

impl Recipients {
    /// Those who have the chain.
    pub(crate) fn of(&self, chain: &ChainId) -> Option<&BTreeMap<MemberTag, u32>> {
        self.0.iter().find(|(id, _)| id == chain).map(|(_, tags)| tags)
    }

    /// Notes that members got a chain.
    pub(crate) fn give(&mut self, (chain, counter): (&ChainId, u32), tags: impl Iterator<Item = MemberTag>) {
        if self.of(chain).is_none() {
            self.0.insert(0, (*chain, BTreeMap::new()));
            self.0.truncate(MAX_OWN_CHAINS);
        }
        if let Some((_, known)) = self.0.iter_mut().find(|(id, _)| id == chain) {
            for tag in tags {
                known.entry(tag).or_insert(counter);
            }
        }
    }

    pub(crate) fn record(&self) -> SecretBytes {
        let mut out =
            Writer::with_capacity(64 + self.0.iter().map(|(_, tags)| 20 + 20 * tags.len()).sum::<usize>());
        out.u8(VERSION).u8(u8::try_from(self.0.len()).unwrap_or(u8::MAX));
        for (chain, tags) in &self.0 {
            out.raw(chain).u32(u32::try_from(tags.len()).unwrap_or(u32::MAX));
            for (tag, counter) in tags {
                out.raw(tag).u32(*counter);
            }
        }
        out.finish().into()
    }

    pub(crate) fn from_record(record: &SecretBytes) -> Result<Self, CodecError> {
        let mut input = Reader::new(record.expose());
        match input.u8()? {
            VERSION => {}
            other => return Err(CodecError::Version(other)),
        }
        let count = usize::from(input.u8()?);
        if count > MAX_OWN_CHAINS {
            return Err(CodecError::Length);
        }
        let mut chains = Vec::with_capacity(count);
        for _ in 0..count {
            let chain = *input.array()?;
            let members = usize::try_from(input.u32()?).map_err(|_| CodecError::Length)?;
            // Concurrent changes can let a few more in than one change may.
            if members > 16 * MAX_MEMBERS {
                return Err(CodecError::Length);
            }
            let mut tags = BTreeMap::new();
            for _ in 0..members {
                tags.insert(*input.array()?, input.u32()?);
            }
            chains.push((chain, tags));
        }
        input.finish()?;
        Ok(Self(chains))
    }
}
