//! What members tell one another over their sessions: the body of a content of kind [`ContentKind::Group`].
//!
//! ```text
//! body          = u8 1 | u8 type | ..
//! changes     1   group id [16] | u16 count | for each: lp(change) | signature [64]
//! sender key  2   group id [16] | u8 count | head hashes [32] each, ascending | chain id [16] | u32 counter
//!               | chain key [32] | signing key [65 of P256, 32 of X25519]
//! want        3   group id [16] | u8 count | hashes [32] of changes that are here, ascending
//! want key    4   chain id [16] | u8 count | u32 counters, ascending
//! again       5   group id [16] | content id [16] | u64 sent at | u8 kind | bytes
//! again at    6   chain id [16] | u32 counter | then as again
//! ```
//!
//! [`ContentKind::Group`]: crate::ContentKind::Group

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{ContentId, GroupId, KeyBytes, Suite, Timestamp};
use stvor_crypto::{Secret, SecretBytes};

use super::change::{ChangeHash, SignedChangeIn};
use super::limits::{MAX_CHANGES, MAX_PARENTS, MAX_REQUESTED};
use super::message::ChainId;
use crate::error::ProtocolError;
use crate::limits::MAX_PLAINTEXT;

const VERSION: u8 = 1;

/// A sender key on its way to a member: reads the messages of a chain from its counter on.
#[derive(Debug)]
pub struct SenderKeyIn {
    /// The group.
    pub group: GroupId,
    /// The changes that nothing builds on, as far as the sender knows: they name its membership state.
    pub heads: Vec<ChangeHash>,
    pub(crate) chain: ChainId,
    pub(crate) counter: u32,
    pub(crate) key: Secret<32>,
    pub(crate) signing: KeyBytes,
}

impl SenderKeyIn {
    /// The name of the chain.
    #[must_use]
    pub fn chain(&self) -> &ChainId {
        &self.chain
    }
}

/// A message of a group that is sent again to one member who could not read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Again {
    /// The group.
    pub group: GroupId,
    /// Where it stood when it was sent to all: what waits for its key waits no more.
    pub place: Option<(ChainId, u32)>,
    /// The content, as it was sent to all.
    pub content: ContentId,
    /// When that was.
    pub sent_at: Timestamp,
    /// The application's kind of content.
    pub kind: u8,
    /// What it says.
    pub body: Vec<u8>,
}

/// What a member tells another one.
#[derive(Debug)]
pub enum GroupContent {
    /// Changes, parents first.
    Changes(GroupId, Vec<SignedChangeIn>),
    /// A sender key.
    SenderKey(SenderKeyIn),
    /// Please send the changes that do not stand below these.
    WantChanges(GroupId, Vec<ChangeHash>),
    /// Please send the sender key of a chain, and the messages with these counters again.
    WantKey(ChainId, Vec<u32>),
    /// A message again.
    Again(Again),
}

impl GroupContent {
    /// The body. Of what its bounds exclude nothing is written: a caller keeps them.
    #[must_use]
    pub fn encode(&self) -> SecretBytes {
        let count = |length: usize| u8::try_from(length).unwrap_or(u8::MAX);
        let mut out = Writer::with_capacity(1_024);
        out.u8(VERSION);
        match self {
            Self::Changes(group, changes) => {
                let room: usize = changes.iter().map(|change| change.bytes.len() + 68).sum();
                let mut whole = Writer::with_capacity(32 + room);
                whole.u8(VERSION).u8(1).raw(group.as_bytes());
                whole.u16(u16::try_from(changes.len()).unwrap_or(u16::MAX));
                changes.iter().for_each(|change| change.write(&mut whole));
                return whole.finish().into();
            }
            Self::SenderKey(key) => {
                out.u8(2).raw(key.group.as_bytes()).u8(count(key.heads.len()));
                for head in &key.heads {
                    out.raw(head);
                }
                out.raw(&key.chain).u32(key.counter).raw(key.key.expose()).raw(&key.signing);
            }
            Self::WantChanges(group, known) => {
                out.u8(3).raw(group.as_bytes()).u8(count(known.len()));
                for hash in known {
                    out.raw(hash);
                }
            }
            Self::WantKey(chain, counters) => {
                out.u8(4).raw(chain).u8(count(counters.len()));
                for counter in counters {
                    out.u32(*counter);
                }
            }
            Self::Again(again) => {
                let mut whole = Writer::with_capacity(64 + again.body.len());
                whole.u8(VERSION);
                match &again.place {
                    None => whole.u8(5),
                    Some((chain, counter)) => whole.u8(6).raw(chain).u32(*counter),
                };
                whole.raw(again.group.as_bytes()).raw(again.content.as_bytes());
                whole.u64(again.sent_at.as_millis()).u8(again.kind).raw(&again.body);
                return whole.finish().into();
            }
        }
        out.finish().into()
    }

    /// Reads a body. `suite` is that of the group: the keys in the body are of it.
    ///
    /// # Errors
    /// [`ProtocolError::TooNew`] for a later version, [`ProtocolError::Malformed`] for what is not exactly one body.
    pub fn decode(suite: Suite, body: &SecretBytes) -> Result<Self, ProtocolError> {
        Self::read(suite, body.expose()).map_err(|error| match error {
            CodecError::Version(version) => ProtocolError::TooNew { what: "group content", version },
            other => ProtocolError::Malformed(other),
        })
    }

    fn read(suite: Suite, bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        match input.u8()? {
            VERSION => {}
            other => return Err(CodecError::Version(other)),
        }
        let group = |input: &mut Reader<'_>| input.array().map(|id| GroupId::from_bytes(*id));
        let read = match input.u8()? {
            1 => {
                let group = group(&mut input)?;
                let count = usize::from(input.u16()?);
                if count > MAX_CHANGES {
                    return Err(CodecError::Length);
                }
                let changes =
                    (0..count).map(|_| SignedChangeIn::read(&mut input)).collect::<Result<_, _>>()?;
                Self::Changes(group, changes)
            }
            2 => Self::SenderKey(SenderKeyIn {
                group: group(&mut input)?,
                heads: hashes(&mut input)?,
                chain: *input.array()?,
                counter: input.u32()?,
                key: Secret::from_slice(input.raw(32)?).map_err(|_| CodecError::Length)?,
                signing: KeyBytes::read(&mut input, suite)?,
            }),
            3 => Self::WantChanges(group(&mut input)?, hashes(&mut input)?),
            4 => {
                let chain = *input.array()?;
                let count = usize::from(input.u8()?);
                if count > MAX_REQUESTED {
                    return Err(CodecError::Length);
                }
                let counters = (0..count).map(|_| input.u32()).collect::<Result<Vec<_>, _>>()?;
                if !counters.is_sorted_by(|a, b| a < b) {
                    return Err(CodecError::Value);
                }
                Self::WantKey(chain, counters)
            }
            kind @ 5..=6 => {
                let place = match kind {
                    5 => None,
                    _ => Some((*input.array()?, input.u32()?)),
                };
                let group = group(&mut input)?;
                let content = ContentId::from_bytes(*input.array()?);
                let sent_at = Timestamp::from_millis(input.u64()?);
                let kind = input.u8()?;
                let body = input.rest();
                if body.len() > MAX_PLAINTEXT {
                    return Err(CodecError::Length);
                }
                Self::Again(Again { group, place, content, sent_at, kind, body: body.to_vec() })
            }
            _ => return Err(CodecError::Value),
        };
        input.finish()?;
        Ok(read)
    }
}

fn hashes(input: &mut Reader<'_>) -> Result<Vec<ChangeHash>, CodecError> {
    let count = usize::from(input.u8()?);
    if count > MAX_PARENTS {
        return Err(CodecError::Length);
    }
    let hashes = (0..count).map(|_| input.array().copied()).collect::<Result<Vec<ChangeHash>, _>>()?;
    if hashes.is_sorted_by(|a, b| a < b) { Ok(hashes) } else { Err(CodecError::Value) }
}

/// Changes in bodies that fit into one message each.
#[must_use]
pub fn bodies_of(group: GroupId, changes: impl IntoIterator<Item = SignedChangeIn>) -> Vec<SecretBytes> {
    const HEAD: usize = 1 + 1 + 16 + 2;
    let (mut bodies, mut batch, mut size) = (Vec::new(), Vec::new(), HEAD);
    for change in changes {
        let more = 4 + change.bytes.len() + change.signature.len();
        if size + more > MAX_PLAINTEXT && !batch.is_empty() {
            bodies.push(GroupContent::Changes(group, core::mem::take(&mut batch)).encode());
            size = HEAD;
        }
        size += more;
        batch.push(change);
    }
    if !batch.is_empty() {
        bodies.push(GroupContent::Changes(group, batch).encode());
    }
    bodies
}
