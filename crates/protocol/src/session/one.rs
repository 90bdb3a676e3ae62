//! One session with one device of a peer.

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Address, Timestamp};
use stvor_crypto::SecretBytes;
use stvor_crypto::kdf::sha256;
use stvor_crypto::random::Random;

use crate::devices::PeerKeys;
use crate::envelope::{self, Incoming, SessionId};
use crate::error::ProtocolError;
use crate::plaintext::{Padding, Plaintext};
use crate::profile::active::{PUBLIC_KEY, SUITE, TAG, label};
use crate::ratchet::{MessageSeed, Ratchet, Skipped, Step};

const VERSION: u8 = 1;

/// What stays the same for the life of a session.
pub(crate) struct Terms {
    pub(crate) id: SessionId,
    /// Whether we started it.
    pub(crate) initiator: bool,
    pub(crate) created: Timestamp,
    /// The initiator's ephemeral key.
    pub(crate) base_key: [u8; PUBLIC_KEY],
    /// The peer's identity at the handshake. The session is with it and no other.
    pub(crate) peer: PeerKeys,
}

/// A session: its terms, its ratchet, and two counters.
pub(crate) struct Session {
    pub(crate) terms: Terms,
    pub(crate) ratchet: Ratchet,
    /// Whether anything was received on it.
    pub(crate) answered: bool,
    /// Application messages received since we last sent on it.
    pub(crate) received: u32,
    prefixes: Prefixes,
}

/// The beginnings of the associated data, which are the same for all messages of a session.
struct Prefixes {
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
}

/// Our side and theirs, for the associated data.
pub(crate) struct Ends<'a> {
    pub(crate) own: (&'a Address, &'a PeerKeys),
    pub(crate) peer: &'a Address,
}

/// A message that was opened, and the change that is to be applied.
pub(crate) struct Opened {
    pub(crate) plaintext: Plaintext,
    pub(crate) step: Step,
}

impl Session {
    pub(crate) fn new(terms: Terms, ratchet: Ratchet, ends: &Ends<'_>) -> Self {
        let prefixes = Prefixes::new(ends, &terms.peer);
        Self { terms, ratchet, answered: false, received: 0, prefixes }
    }

    /// Whether we started it and nobody answered.
    pub(crate) fn unanswered(&self) -> bool {
        self.terms.initiator && !self.answered
    }

    /// Encrypts. Says whether the root part of the record changed.
    pub(crate) fn seal(
        &mut self,
        plaintext: &Plaintext,
        (prekey_part, padding): (Option<&[u8]>, Padding),
        now: Timestamp,
        rng: &mut dyn Random,
    ) -> Result<(Vec<u8>, bool), ProtocolError> {
        plaintext.check_size()?;
        let (header, seed, turned) = self.ratchet.next_sending(rng)?;
        let mut blob = envelope::clear_bytes(&self.terms.id, now, prekey_part, &header);
        let clear = blob.len();
        let aad = associated_data(&self.prefixes.outgoing, &blob);
        plaintext.encode_padded(&mut blob, padding, (clear, TAG))?;
        let tag = seed.key().seal_in_place_separate_tag(&header.nonce, &aad, &mut blob[clear..])?;
        blob.extend_from_slice(&tag);
        self.received = 0;
        Ok((blob, turned))
    }

    /// Decrypts, and changes nothing.
    pub(crate) fn open(
        &self,
        incoming: &Incoming<'_>,
        stored: Option<MessageSeed>,
    ) -> Result<Opened, ProtocolError> {
        let (seed, step) = self.ratchet.prepare(&incoming.header, stored)?;
        let aad = associated_data(&self.prefixes.incoming, incoming.clear);
        let mut bytes = SecretBytes::from_slice(incoming.sealed);
        let opened = seed.key().open(&incoming.header.nonce, &aad, bytes.expose_mut());
        let plaintext = opened.map_err(|_| ProtocolError::Undecryptable)?;
        let plaintext = Plaintext::decode(plaintext).map_err(|_| ProtocolError::Undecryptable)?;
        Ok(Opened { plaintext, step })
    }

    /// Carries out what opening a message changes. Gives back the keys that were passed over and whether the root part
    /// of the record changed.
    pub(crate) fn apply(&mut self, step: Step, is_application: bool) -> (Vec<Skipped>, bool) {
        let root_changed = step.turns();
        let skipped = self.ratchet.apply(step);
        self.answered = true;
        if is_application {
            self.received = self.received.saturating_add(1);
        }
        (skipped, root_changed)
    }

    /// The part of the record that changes with each message. Constant size.
    pub(crate) fn chains_record(&self) -> SecretBytes {
        let mut out = Writer::with_capacity(32 + crate::ratchet::CHAINS_BYTES);
        out.u8(VERSION).raw(&self.terms.id).u8(u8::from(self.answered)).u32(self.received);
        self.ratchet.write_chains(&mut out);
        SecretBytes::from(out.finish())
    }

    /// The part of the record that changes with each turn. Constant size.
    pub(crate) fn root_record(&self) -> Result<SecretBytes, ProtocolError> {
        let mut out = Writer::with_capacity(512);
        let terms = &self.terms;
        out.u8(VERSION)
            .raw(&terms.id)
            .u8(u8::from(terms.initiator))
            .u64(terms.created.as_millis())
            .raw(&terms.base_key);
        terms.peer.encode(&mut out);
        self.ratchet.write_root(&mut out)?;
        Ok(SecretBytes::from(out.finish()))
    }

    /// Both parts in one record, for the archive.
    pub(crate) fn archive_record(&self) -> Result<SecretBytes, ProtocolError> {
        let (root, chains) = (self.root_record()?, self.chains_record());
        let mut out = Writer::with_capacity(16 + root.len() + chains.len());
        out.u8(VERSION).bytes(root.expose()).bytes(chains.expose());
        Ok(SecretBytes::from(out.finish()))
    }

    pub(crate) fn from_records(root: &[u8], chains: &[u8], ends: &Ends<'_>) -> Result<Self, ProtocolError> {
        Self::decode(root, chains, ends).map_err(ProtocolError::record("session"))
    }

    pub(crate) fn from_archive(record: &SecretBytes, ends: &Ends<'_>) -> Result<Self, ProtocolError> {
        let parse = || {
            let mut input = Reader::new(record.expose());
            version(&mut input)?;
            let (root, chains) = (input.bytes(4_096)?, input.bytes(4_096)?);
            input.finish()?;
            Self::decode(root, chains, ends)
        };
        parse().map_err(ProtocolError::record("archived session"))
    }

    fn decode(root: &[u8], chains: &[u8], ends: &Ends<'_>) -> Result<Self, CodecError> {
        let (mut root, mut chains) = (Reader::new(root), Reader::new(chains));
        version(&mut root)?;
        version(&mut chains)?;
        let id: SessionId = *root.array()?;
        if id != *chains.array::<16>()? {
            return Err(CodecError::Value);
        }
        let initiator = root.bool()?;
        let created = Timestamp::from_millis(root.u64()?);
        let base_key = *root.array()?;
        let peer =
            PeerKeys { user: *root.array()?, signing: *root.array()?, agreement: *root.array()? };
        let (answered, received) = (chains.bool()?, chains.u32()?);
        let ratchet = Ratchet::read(&mut root, &mut chains)?;
        root.finish()?;
        chains.finish()?;
        let terms = Terms { id, initiator, created, base_key, peer };
        let prefixes = Prefixes::new(ends, &terms.peer);
        Ok(Self { terms, ratchet, answered, received, prefixes })
    }
}

fn version(input: &mut Reader<'_>) -> Result<(), CodecError> {
    match input.u8()? {
        VERSION => Ok(()),
        other => Err(CodecError::Version(other)),
    }
}

impl Prefixes {
    fn new(ends: &Ends<'_>, peer: &PeerKeys) -> Self {
        let (own, theirs) = (ends.own, (ends.peer, peer));
        Self { outgoing: prefix(own, theirs), incoming: prefix(theirs, own) }
    }
}

/// `label | u8 suite`, then each with a u32 length: sender address, sender keys, recipient address, recipient keys.
fn prefix(sender: (&Address, &PeerKeys), recipient: (&Address, &PeerKeys)) -> Vec<u8> {
    let mut out = Writer::with_capacity(1_024);
    out.raw(label::ASSOCIATED_DATA).u8(SUITE);
    for (address, keys) in [sender, recipient] {
        let (mut name, mut identity) = (Writer::new(), Writer::new());
        address.encode(&mut name);
        keys.encode(&mut identity);
        out.bytes(name.as_slice()).bytes(identity.as_slice());
    }
    out.finish()
}

/// SHA-256 of the prefix and, with a u32 length, the bytes of envelope, prekey part and header as they travel.
fn associated_data(prefix: &[u8], clear: &[u8]) -> [u8; 32] {
    let length = u32::try_from(clear.len()).unwrap_or(u32::MAX).to_be_bytes();
    sha256(&[prefix, &length, clear])
}
