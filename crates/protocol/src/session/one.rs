//! One session with one device of a peer.

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Address, ContentId, KeyBytes, Timestamp};
use stvor_crypto::kdf::Sha256Prefix;
use stvor_crypto::random::Random;
use stvor_crypto::{SecretBytes, ShieldKey};

use crate::devices::PeerKeys;
use crate::envelope::{self, Incoming, SessionId};
use crate::error::ProtocolError;
use crate::limits::FORCED_RATCHET;
use crate::plaintext::{Padding, Plaintext};
use crate::profile::{self, Profile, Suite, TAG};
use crate::ratchet::{MessageSeed, Ratchet, RootKeys, Skipped, Step};

const VERSION: u8 = 1;

/// What stays the same for the life of a session.
pub(crate) struct Terms {
    pub(crate) id: SessionId,
    pub(crate) profile: &'static Profile,
    /// Whether we started it.
    pub(crate) initiator: bool,
    pub(crate) created: Timestamp,
    /// The initiator's ephemeral key.
    pub(crate) base_key: KeyBytes,
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

/// The beginnings of the associated data, which are the same for all messages of a session, hashed.
#[derive(Clone)]
struct Prefixes {
    outgoing: Sha256Prefix,
    incoming: Sha256Prefix,
}

/// The rows of an active session.
pub(crate) struct SessionRecords {
    pub(crate) root: SecretBytes,
    pub(crate) chains: SecretBytes,
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

/// A message that was sealed.
pub(crate) struct Sealed {
    pub(crate) blob: Vec<u8>,
    /// The root part of the record, if it changed.
    pub(crate) root: Option<SecretBytes>,
}

/// What applying an opened message gives.
pub(crate) struct Applied {
    /// The keys that were passed over.
    pub(crate) skipped: Vec<Skipped>,
    /// The answer that renews keys, if it is due.
    pub(crate) reply: Option<Vec<u8>>,
    /// The root part of the record, if it changed.
    pub(crate) root: Option<SecretBytes>,
}

/// What sealing needs besides the plaintext.
#[derive(Clone, Copy)]
pub(crate) struct Sealing<'a> {
    pub(crate) padding: Padding,
    pub(crate) now: Timestamp,
    pub(crate) shield: &'a ShieldKey,
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

    /// Encrypts. On an error nothing changed.
    pub(crate) fn seal(
        &mut self,
        plaintext: &Plaintext,
        prekey_part: Option<&[u8]>,
        with: Sealing<'_>,
        rng: &mut dyn Random,
    ) -> Result<Sealed, ProtocolError> {
        plaintext.check_size()?;
        let sending = self.ratchet.prepare_sending(with.shield, rng)?;
        let header = &sending.header;
        let profile = self.terms.profile;
        let size = plaintext.padded_size(with.padding, (envelope::clear_size(profile, prekey_part), TAG));
        let mut blob =
            envelope::clear_bytes((profile.suite, &self.terms.id), with.now, (prekey_part, size), header);
        let clear = blob.len();
        let aad = associated_data(&self.prefixes.outgoing, &blob);
        plaintext.encode_to(&mut blob, size - TAG)?;
        let key = sending.seed.key(profile);
        let tag = key.seal_in_place_separate_tag(header.nonce(), &aad, &mut blob[clear..])?;
        blob.extend_from_slice(&tag);
        let root = sending.keys.as_ref().map(|keys| self.root_record_of(keys, with.shield)).transpose()?;
        self.ratchet.sent(sending);
        self.received = 0;
        Ok(Sealed { blob, root })
    }

    /// Decrypts, and changes nothing.
    pub(crate) fn open(
        &self,
        incoming: &Incoming<'_>,
        stored: Option<MessageSeed>,
        shield: &ShieldKey,
    ) -> Result<Opened, ProtocolError> {
        let (seed, step) = self.ratchet.prepare(&incoming.header, stored, shield)?;
        let aad = associated_data(&self.prefixes.incoming, incoming.clear);
        let mut bytes = SecretBytes::from_slice(incoming.sealed);
        let opened = seed.key(self.terms.profile).open(incoming.header.nonce, &aad, bytes.expose_mut());
        let length = opened.map_err(|_| ProtocolError::Undecryptable)?.len();
        bytes.truncate(length);
        let plaintext = Plaintext::decode(bytes).map_err(|_| ProtocolError::Undecryptable)?;
        Ok(Opened { plaintext, step })
    }

    /// Carries out what opening a message changes, and seals the control message that renews keys if that is due. On an
    /// error nothing changed.
    pub(crate) fn apply(
        &mut self,
        Opened { plaintext, step }: Opened,
        with: Sealing<'_>,
        rng: &mut dyn Random,
    ) -> Result<(Plaintext, Applied), ProtocolError> {
        let root = step.keys().map(|keys| self.root_record_of(keys, with.shield)).transpose()?;
        let received = self.received.saturating_add(u32::from(plaintext.kind.is_application()));
        if received < FORCED_RATCHET {
            let skipped = self.carry_out(step, received);
            return Ok((plaintext, Applied { skipped, reply: None, root }));
        }
        let mut content = [0; 16];
        rng.fill(&mut content)?;
        let control = Plaintext::control(ContentId::from_bytes(content));
        if step.keys().is_none() {
            // What is sent does not depend on where a receiving chain stands. Sealing changes nothing when it fails, and
            // the step can not fail.
            let sealed = self.seal(&control, None, with, rng)?;
            let skipped = self.carry_out(step, 0);
            return Ok((plaintext, Applied { skipped, reply: Some(sealed.blob), root: sealed.root }));
        }
        // The answer goes out on the keys that this step brings and may still fail, so both happen to a copy.
        let mut copy = self.duplicate(with.shield)?;
        let skipped = copy.carry_out(step, received);
        let sealed = copy.seal(&control, None, with, rng)?;
        *self = copy;
        Ok((plaintext, Applied { skipped, reply: Some(sealed.blob), root: sealed.root.or(root) }))
    }

    fn carry_out(&mut self, step: Step, received: u32) -> Vec<Skipped> {
        self.answered = true;
        self.received = received;
        self.ratchet.apply(step)
    }

    fn duplicate(&self, shield: &ShieldKey) -> Result<Self, ProtocolError> {
        let SessionRecords { root, chains } = self.records(shield)?;
        Self::decode((root.expose(), chains.expose()), |_| self.prefixes.clone(), shield)
            .map_err(ProtocolError::record("session"))
    }

    /// The part of the record that changes with each message. Constant size.
    pub(crate) fn chains_record(&self) -> SecretBytes {
        let mut out = Writer::with_capacity(32 + crate::ratchet::CHAINS_BYTES);
        out.u8(VERSION).raw(&self.terms.id).u8(u8::from(self.answered)).u32(self.received);
        self.ratchet.write_chains(&mut out);
        SecretBytes::from(out.finish())
    }

    /// The part of the record that changes with each turn. Constant size.
    pub(crate) fn root_record(&self, shield: &ShieldKey) -> Result<SecretBytes, ProtocolError> {
        self.root_record_of(&self.ratchet.keys, shield)
    }

    /// The same, as it will be with other root keys.
    fn root_record_of(&self, keys: &RootKeys, shield: &ShieldKey) -> Result<SecretBytes, ProtocolError> {
        let mut out = Writer::with_capacity(512);
        let terms = &self.terms;
        out.u8(terms.profile.suite.layout(VERSION))
            .raw(&terms.id)
            .u8(u8::from(terms.initiator))
            .u64(terms.created.as_millis())
            .raw(&terms.base_key);
        terms.peer.encode(&mut out);
        keys.write(&mut out, (terms.profile, shield))?;
        Ok(SecretBytes::from(out.finish()))
    }

    /// Both parts of the record.
    pub(crate) fn records(&self, shield: &ShieldKey) -> Result<SessionRecords, ProtocolError> {
        Ok(SessionRecords { root: self.root_record(shield)?, chains: self.chains_record() })
    }

    pub(crate) fn from_records(
        (root, chains): (&[u8], &[u8]),
        ends: &Ends<'_>,
        shield: &ShieldKey,
    ) -> Result<Self, ProtocolError> {
        Self::decode((root, chains), |peer| Prefixes::new(ends, peer), shield)
            .map_err(ProtocolError::record("session"))
    }

    pub(crate) fn from_archive(
        record: &SecretBytes,
        ends: &Ends<'_>,
        shield: &ShieldKey,
    ) -> Result<Self, ProtocolError> {
        let parse = || {
            let mut input = Reader::new(record.expose());
            version(&mut input)?;
            let (root, chains) = (input.bytes(4_096)?, input.bytes(4_096)?);
            input.finish()?;
            Self::decode((root, chains), |peer| Prefixes::new(ends, peer), shield)
        };
        parse().map_err(ProtocolError::record("archived session"))
    }

    fn decode(
        (root, chains): (&[u8], &[u8]),
        prefixes: impl FnOnce(&PeerKeys) -> Prefixes,
        shield: &ShieldKey,
    ) -> Result<Self, CodecError> {
        let (mut root, mut chains) = (Reader::new(root), Reader::new(chains));
        let suite = Suite::of_layout(root.u8()?, VERSION)?;
        version(&mut chains)?;
        let id: SessionId = *root.array()?;
        if id != *chains.array::<16>()? {
            return Err(CodecError::Value);
        }
        let initiator = root.bool()?;
        let created = Timestamp::from_millis(root.u64()?);
        let base_key = KeyBytes::read(&mut root, suite)?;
        let peer = PeerKeys::read(&mut root, suite)?;
        let (answered, received) = (chains.bool()?, chains.u32()?);
        let profile = profile::of(suite);
        let ratchet = Ratchet::read(&mut root, &mut chains, (profile, shield))?;
        root.finish()?;
        chains.finish()?;
        let prefixes = prefixes(&peer);
        let terms = Terms { id, profile, initiator, created, base_key, peer };
        Ok(Self { terms, ratchet, answered, received, prefixes })
    }
}

impl SessionRecords {
    /// Both parts in one record, for the archive.
    pub(crate) fn archived(&self) -> SecretBytes {
        let mut out = Writer::with_capacity(16 + self.root.len() + self.chains.len());
        out.u8(VERSION).bytes(self.root.expose()).bytes(self.chains.expose());
        SecretBytes::from(out.finish())
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
        let prefix = |from, to| Sha256Prefix::new(&prefix(from, to));
        Self { outgoing: prefix(own, theirs), incoming: prefix(theirs, own) }
    }
}

/// `label | u8 suite`, then each with a u32 length: sender address, sender keys, recipient address, recipient keys.
fn prefix(sender: (&Address, &PeerKeys), recipient: (&Address, &PeerKeys)) -> Vec<u8> {
    let mut out = Writer::with_capacity(1_024);
    let profile = profile::of(sender.1.suite());
    out.raw(profile.label.associated_data).u8(profile.suite.number());
    for (address, keys) in [sender, recipient] {
        let (mut name, mut identity) = (Writer::new(), Writer::new());
        address.encode(&mut name);
        keys.encode(&mut identity);
        out.bytes(name.as_slice()).bytes(identity.as_slice());
    }
    out.finish()
}

/// SHA-256 of the prefix and, with a u32 length, the bytes of envelope, prekey part and header as they travel.
fn associated_data(prefix: &Sha256Prefix, clear: &[u8]) -> [u8; 32] {
    let length = u32::try_from(clear.len()).unwrap_or(u32::MAX).to_be_bytes();
    prefix.finish(&[&length, clear])
}
