//! Our own prekeys: made, rotated, refilled, destroyed.

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{KeyBytes, Suite, Timestamp};
use stvor_crypto::kem::DecapsulationKey;
use stvor_crypto::random::Random;
use stvor_crypto::suite::{AgreementKey, SigningKey};
use stvor_crypto::{Secret, SecretBytes};

use super::{KemKind, Signed, kem_row, mark_partition};
use crate::effects::{Effects, RecordKey, RecordKind, Records};
use crate::error::ProtocolError;
use crate::identity::Identity;
use crate::limits;
use crate::profile::{self, KEM_PUBLIC, SIGNATURE};

const VERSION: u8 = 1;

/// A signed prekey to be uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedPrekeyPublic {
    /// Its id.
    pub id: u32,
    /// When it was made, milliseconds since the Unix epoch.
    pub created: u64,
    /// Its key.
    pub public: KeyBytes,
    /// The device's signature.
    pub signature: [u8; SIGNATURE],
}

/// A one-time prekey to be uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneTimePublic {
    /// Its id.
    pub id: u32,
    /// Its key.
    pub public: KeyBytes,
}

/// A KEM prekey to be uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KemPublicPrekey {
    /// Its id.
    pub id: u32,
    /// When it was made, milliseconds since the Unix epoch.
    pub created: u64,
    /// Its key: 1184 bytes.
    pub public: Vec<u8>,
    /// The device's signature.
    pub signature: [u8; SIGNATURE],
}

/// What the relay should get.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PrekeyUpload {
    /// The signed prekey, in place of the one that the relay has.
    pub signed: Option<SignedPrekeyPublic>,
    /// The last-resort KEM prekey, in place of the one that the relay has. Comes and goes with `signed`.
    pub kem_last: Option<KemPublicPrekey>,
    /// One-time prekeys, in addition.
    pub one_time: Vec<OneTimePublic>,
    /// One-time KEM prekeys, in addition; at most 50.
    pub kem_one_time: Vec<KemPublicPrekey>,
}

/// What the relay says it has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServerCounts {
    /// One-time prekeys.
    pub one_time: u32,
    /// One-time KEM prekeys.
    pub kem_one_time: u32,
}

/// What maintenance asks for: commit the effects, then upload, then tell [`Prekeys::uploaded`].
#[derive(Debug)]
#[must_use]
pub struct Maintenance {
    /// What to upload, if anything.
    pub upload: Option<PrekeyUpload>,
    /// What to commit before that.
    pub effects: Effects,
    /// Partitions whose rows can be deleted after the commit: marks of handshakes that can not come again. Best
    /// effort, they only take room.
    pub clear: Vec<(RecordKind, Vec<u8>)>,
}

/// One signed prekey and one last-resort KEM prekey.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Generation {
    id: u32,
    created: Timestamp,
    /// When its replacement was uploaded.
    retired: Option<Timestamp>,
}

/// The public halves of the newest generation, until the relay has them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unsent {
    signed: SignedPrekeyPublic,
    kem: KemPublicPrekey,
}

/// What was made so far. One row, [`Prekeys::key`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prekeys {
    /// Oldest first; the last one is the current one.
    generations: Vec<Generation>,
    unsent: Option<Unsent>,
    next_generation: u32,
    /// Ids in use: from, to (exclusive).
    one_time: (u32, u32),
    kem_one_time: (u32, u32),
}

impl Prekeys {
    /// The row.
    #[must_use]
    pub fn key() -> RecordKey {
        RecordKey::single(RecordKind::PrekeyState)
    }

    /// The state of a device that takes the place of a lost one: nothing is made yet, and ids begin at `first`, above those
    /// that the lost one gave out.
    #[must_use]
    pub fn starting_at(first: u32) -> Self {
        Self {
            next_generation: first,
            one_time: (first, first),
            kem_one_time: (first, first),
            ..Self::default()
        }
    }

    /// An id above all that were given out so far.
    #[must_use]
    pub fn next_id(&self) -> u32 {
        self.next_generation.max(self.one_time.1).max(self.kem_one_time.1)
    }

    /// Reads the state; without a row nothing was made yet.
    ///
    /// # Errors
    /// [`ProtocolError::BadRecord`], [`ProtocolError::TooNew`].
    pub fn load(records: &Records) -> Result<Self, ProtocolError> {
        match records.get(&Self::key()) {
            None => Ok(Self::default()),
            Some(record) => Self::decode(record.expose()).map_err(ProtocolError::record("prekey state")),
        }
    }

    /// Does what is due: rotates weekly, refills one-time prekeys, destroys what was replaced 60 days ago. Call it at
    /// each log-in, once a day, and when the relay says that prekeys run low. Repeats an upload that was not confirmed.
    ///
    /// # Errors
    /// [`ProtocolError::Crypto`] when the random source is unhealthy.
    pub fn maintain(
        &mut self,
        identity: &Identity,
        counts: ServerCounts,
        now: Timestamp,
        rng: &mut dyn Random,
    ) -> Result<Maintenance, ProtocolError> {
        let mut next = self.clone();
        let mut effects = Effects::new();
        let mut upload = PrekeyUpload::default();
        let maker = Maker { identity, signing: identity.signing()?, now };

        let due = |current: &Generation| now.since(current.created) >= limits::PREKEY_ROTATION;
        if next.generations.last().is_none_or(due) {
            next.rotate(&maker, &mut effects, rng)?;
        }
        if let Some(unsent) = &next.unsent {
            upload.signed = Some(unsent.signed.clone());
            upload.kem_last = Some(unsent.kem.clone());
        }
        if counts.one_time < limits::ONE_TIME_LOW {
            for _ in 0..limits::ONE_TIME_BATCH {
                let id = take(&mut next.one_time.1);
                upload.one_time.push(maker.new_one_time(id, &mut effects, rng)?);
            }
        }
        if counts.kem_one_time < limits::ONE_TIME_LOW {
            for _ in 0..limits::KEM_ONE_TIME_BATCH {
                let id = take(&mut next.kem_one_time.1);
                upload.kem_one_time.push(maker.new_kem(KemKind::OneTime, id, (&mut effects, rng))?);
            }
        }
        let clear = next.destroy(now, &mut effects);
        if next != *self {
            effects.put(Self::key(), next.encode());
        }
        *self = next;
        let upload = Some(upload).filter(|upload| *upload != PrekeyUpload::default());
        Ok(Maintenance { upload, effects, clear })
    }

    /// One one-time prekey of each kind, for a bundle that travels another way than by the relay. Commit the effects before it
    /// leaves. Their ids are of the same row as those at the relay: 2,000 are kept, the oldest go first.
    ///
    /// # Errors
    /// [`ProtocolError::Crypto`] when the random source is unhealthy.
    pub fn one_more(
        &mut self,
        identity: &Identity,
        now: Timestamp,
        rng: &mut dyn Random,
    ) -> Result<(OneTimePublic, KemPublicPrekey, Effects), ProtocolError> {
        let mut next = self.clone();
        let mut effects = Effects::new();
        let maker = Maker { identity, signing: identity.signing()?, now };
        let one_time = maker.new_one_time(take(&mut next.one_time.1), &mut effects, rng)?;
        let id = take(&mut next.kem_one_time.1);
        let kem = maker.new_kem(KemKind::OneTime, id, (&mut effects, rng))?;
        effects.put(Self::key(), next.encode());
        *self = next;
        Ok((one_time, kem, effects))
    }

    /// The rows that [`Prekeys::repeat`] reads.
    #[must_use]
    pub fn newest(&self) -> Vec<RecordKey> {
        let Some(Generation { id, .. }) = self.generations.last() else { return Vec::new() };
        vec![RecordKey::numbered(RecordKind::SignedPrekey, *id), kem_row(KemKind::LastResort, *id)]
    }

    /// The newest signed and last-resort prekeys once more, for a relay that lost what it was given: the same keys, ids
    /// and times, signed anew. `records` are the rows that [`Prekeys::newest`] names. Nothing when none were made yet.
    ///
    /// # Errors
    /// [`ProtocolError::MissingRow`] without the rows, [`ProtocolError::BadRecord`] when they are damaged, and
    /// [`ProtocolError::Crypto`] when the random source is unhealthy.
    pub fn repeat(
        &self,
        identity: &Identity,
        records: &Records,
        rng: &mut dyn Random,
    ) -> Result<Option<PrekeyUpload>, ProtocolError> {
        let Some(Generation { id, created, .. }) = self.generations.last() else { return Ok(None) };
        if self.newest().iter().any(|row| records.get(row).is_none()) {
            return Err(ProtocolError::MissingRow("newest prekey"));
        }
        let signed = signed_key(identity.suite(), records, *id)?;
        let kem = kem_key(records, KemKind::LastResort, *id)?;
        let maker = Maker { identity, signing: identity.signing()?, now: *created };
        Ok(Some(PrekeyUpload {
            signed: Some(maker.signed(*id, &signed, rng)?),
            kem_last: Some(maker.kem(KemKind::LastResort, *id, (&kem, rng))?),
            ..PrekeyUpload::default()
        }))
    }

    /// The relay confirmed an upload: what the newest generation replaced is retired from now on.
    pub fn uploaded(&mut self, now: Timestamp) -> Effects {
        let mut effects = Effects::new();
        if self.unsent.take().is_none() {
            return effects;
        }
        if let Some((_, replaced)) = self.generations.split_last_mut() {
            for generation in replaced {
                generation.retired.get_or_insert(now);
            }
        }
        effects.put(Self::key(), self.encode());
        effects
    }

    /// Gives up what an older copy of the store may be wrong about: destroys all one-time prekeys, which others may have
    /// used since the copy was made, and makes a new signed and last-resort prekey with an id above `known`, the one that
    /// the relay holds. The next [`Prekeys::maintain`] makes new one-time prekeys and names all for the upload, which has
    /// to replace those at the relay.
    ///
    /// # Errors
    /// [`ProtocolError::Crypto`] when the random source is unhealthy.
    pub fn renew(
        &mut self,
        identity: &Identity,
        known: Option<u32>,
        now: Timestamp,
        rng: &mut dyn Random,
    ) -> Result<Effects, ProtocolError> {
        let mut next = self.clone();
        let mut effects = Effects::new();
        next.next_generation = next.next_generation.max(known.map_or(0, |id| id.saturating_add(1)));
        next.rotate(&Maker { identity, signing: identity.signing()?, now }, &mut effects, rng)?;
        for id in next.one_time.0..next.one_time.1 {
            effects.delete(RecordKey::numbered(RecordKind::OneTimePrekey, id));
        }
        for id in next.kem_one_time.0..next.kem_one_time.1 {
            effects.delete(kem_row(KemKind::OneTime, id));
        }
        (next.one_time.0, next.kem_one_time.0) = (next.one_time.1, next.kem_one_time.1);
        effects.put(Self::key(), next.encode());
        *self = next;
        Ok(effects)
    }

    fn rotate(
        &mut self,
        maker: &Maker<'_>,
        effects: &mut Effects,
        rng: &mut dyn Random,
    ) -> Result<(), ProtocolError> {
        let id = take(&mut self.next_generation);
        let signed = maker.new_signed(id, effects, rng)?;
        let kem = maker.new_kem(KemKind::LastResort, id, (effects, rng))?;
        self.generations.push(Generation { id, created: maker.now, retired: None });
        self.unsent = Some(Unsent { signed, kem });
        Ok(())
    }

    /// Destroys generations that were retired long ago, and one-time prekeys past the number that is kept.
    fn destroy(&mut self, now: Timestamp, effects: &mut Effects) -> Vec<(RecordKind, Vec<u8>)> {
        let mut clear = Vec::new();
        let surplus = self.generations.len().saturating_sub(limits::MAX_RETIRED_PREKEYS + 1);
        let mut position = 0;
        self.generations.retain(|generation| {
            let expired = generation.retired.is_some_and(|at| now.since(at) >= limits::PREKEY_RETENTION);
            let goes = expired || position < surplus;
            position += 1;
            if goes {
                effects.delete(RecordKey::numbered(RecordKind::SignedPrekey, generation.id));
                effects.delete(kem_row(KemKind::LastResort, generation.id));
                clear.push((RecordKind::HandshakeMark, mark_partition(generation.id)));
            }
            !goes
        });
        while self.one_time.1 - self.one_time.0 > limits::MAX_ONE_TIME_KEPT {
            effects.delete(RecordKey::numbered(RecordKind::OneTimePrekey, take(&mut self.one_time.0)));
        }
        while self.kem_one_time.1 - self.kem_one_time.0 > limits::MAX_ONE_TIME_KEPT {
            effects.delete(kem_row(KemKind::OneTime, take(&mut self.kem_one_time.0)));
        }
        clear
    }

    fn encode(&self) -> SecretBytes {
        // Only the key of an unsent prekey has a suite.
        let suite = self.unsent.as_ref().map_or(Suite::P256, |unsent| unsent.signed.public.suite());
        let mut out = Writer::with_capacity(2_048);
        out.u8(suite.layout(VERSION)).u32(self.next_generation);
        for (from, to) in [self.one_time, self.kem_one_time] {
            out.u32(from).u32(to);
        }
        out.u8(u8::try_from(self.generations.len()).unwrap_or(u8::MAX));
        for generation in &self.generations {
            out.u32(generation.id)
                .u64(generation.created.as_millis())
                .u8(u8::from(generation.retired.is_some()))
                .u64(generation.retired.unwrap_or_default().as_millis());
        }
        out.u8(u8::from(self.unsent.is_some()));
        if let Some(Unsent { signed, kem }) = &self.unsent {
            out.u32(signed.id).u64(signed.created).raw(&signed.public).raw(&signed.signature);
            out.u32(kem.id).u64(kem.created).bytes(&kem.public).raw(&kem.signature);
        }
        SecretBytes::from(out.finish())
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        let suite = Suite::of_layout(input.u8()?, VERSION)?;
        let next_generation = input.u32()?;
        let mut range = || -> Result<(u32, u32), CodecError> {
            let range = (input.u32()?, input.u32()?);
            if range.0 <= range.1 { Ok(range) } else { Err(CodecError::Value) }
        };
        let (one_time, kem_one_time) = (range()?, range()?);
        let mut generations = Vec::new();
        for _ in 0..input.u8()? {
            let (id, created) = (input.u32()?, Timestamp::from_millis(input.u64()?));
            let (retired, at) = (input.bool()?, Timestamp::from_millis(input.u64()?));
            generations.push(Generation { id, created, retired: retired.then_some(at) });
        }
        let unsent = if input.bool()? {
            let signed = SignedPrekeyPublic {
                id: input.u32()?,
                created: input.u64()?,
                public: KeyBytes::read(&mut input, suite)?,
                signature: *input.array()?,
            };
            let kem = KemPublicPrekey {
                id: input.u32()?,
                created: input.u64()?,
                public: input.bytes(KEM_PUBLIC)?.to_vec(),
                signature: *input.array()?,
            };
            Some(Unsent { signed, kem })
        } else {
            None
        };
        input.finish()?;
        Ok(Self { generations, unsent, next_generation, one_time, kem_one_time })
    }
}

/// Takes the next id of a counter.
fn take(counter: &mut u32) -> u32 {
    let id = *counter;
    *counter = counter.saturating_add(1);
    id
}

/// Makes and signs prekeys.
struct Maker<'a> {
    identity: &'a Identity,
    signing: SigningKey,
    now: Timestamp,
}

impl Maker<'_> {
    fn sign(
        &self,
        rng: &mut dyn Random,
        label: &[u8],
        (kind, id, key): (Option<KemKind>, u32, &[u8]),
    ) -> Result<[u8; SIGNATURE], ProtocolError> {
        let (app, owner) = (self.identity.app(), self.identity.address());
        let signed = Signed { app, owner, kind, id, created: self.now, key };
        Ok(self.signing.sign_with(rng, label, &signed.message())?)
    }

    fn new_signed(
        &self,
        id: u32,
        effects: &mut Effects,
        rng: &mut dyn Random,
    ) -> Result<SignedPrekeyPublic, ProtocolError> {
        let key = AgreementKey::generate(self.identity.suite(), rng)?;
        let public = self.signed(id, &key, rng)?;
        effects.put(RecordKey::numbered(RecordKind::SignedPrekey, id), private_row(key.to_bytes().expose()));
        Ok(public)
    }

    fn signed(
        &self,
        id: u32,
        key: &AgreementKey,
        rng: &mut dyn Random,
    ) -> Result<SignedPrekeyPublic, ProtocolError> {
        let public = key.public();
        let label = profile::of(self.identity.suite()).label.signed_prekey;
        let signature = self.sign(rng, label, (None, id, &public))?;
        Ok(SignedPrekeyPublic { id, created: self.now.as_millis(), public, signature })
    }

    fn new_kem(
        &self,
        kind: KemKind,
        id: u32,
        (effects, rng): (&mut Effects, &mut dyn Random),
    ) -> Result<KemPublicPrekey, ProtocolError> {
        let key = DecapsulationKey::generate(rng)?;
        let public = self.kem(kind, id, (&key, rng))?;
        effects.put(kem_row(kind, id), private_row(key.to_bytes().expose()));
        Ok(public)
    }

    fn kem(
        &self,
        kind: KemKind,
        id: u32,
        (key, rng): (&DecapsulationKey, &mut dyn Random),
    ) -> Result<KemPublicPrekey, ProtocolError> {
        let public = key.public().as_bytes().to_vec();
        let label = profile::of(self.identity.suite()).label.kem_prekey;
        let signature = self.sign(rng, label, (Some(kind), id, &public))?;
        Ok(KemPublicPrekey { id, created: self.now.as_millis(), public, signature })
    }

    fn new_one_time(
        &self,
        id: u32,
        effects: &mut Effects,
        rng: &mut dyn Random,
    ) -> Result<OneTimePublic, ProtocolError> {
        let key = AgreementKey::generate(self.identity.suite(), rng)?;
        effects.put(RecordKey::numbered(RecordKind::OneTimePrekey, id), private_row(key.to_bytes().expose()));
        Ok(OneTimePublic { id, public: key.public() })
    }
}

fn private_row(secret: &[u8]) -> SecretBytes {
    let mut out = Writer::with_capacity(1 + secret.len());
    out.u8(VERSION).raw(secret);
    SecretBytes::from(out.finish())
}

fn private<const N: usize>(record: &SecretBytes) -> Result<Secret<N>, ProtocolError> {
    match record.expose().split_first() {
        Some((&VERSION, secret)) => {
            Secret::from_slice(secret).map_err(|_| ProtocolError::BadRecord("prekey"))
        }
        Some((&version, _)) => Err(ProtocolError::TooNew { what: "prekey", version }),
        None => Err(ProtocolError::BadRecord("prekey")),
    }
}

/// The private half of a signed prekey.
pub(crate) fn signed_key(suite: Suite, records: &Records, id: u32) -> Result<AgreementKey, ProtocolError> {
    let row = records.get(&RecordKey::numbered(RecordKind::SignedPrekey, id));
    Ok(AgreementKey::from_bytes(suite, &private(row.ok_or(ProtocolError::UnknownPrekey)?)?)?)
}

/// The private half of a one-time prekey.
pub(crate) fn one_time_key(suite: Suite, records: &Records, id: u32) -> Result<AgreementKey, ProtocolError> {
    let row = records.get(&RecordKey::numbered(RecordKind::OneTimePrekey, id));
    Ok(AgreementKey::from_bytes(suite, &private(row.ok_or(ProtocolError::UnknownPrekey)?)?)?)
}

/// The private half of a KEM prekey.
pub(crate) fn kem_key(records: &Records, kind: KemKind, id: u32) -> Result<DecapsulationKey, ProtocolError> {
    let row = records.get(&kem_row(kind, id));
    Ok(DecapsulationKey::from_bytes(&private(row.ok_or(ProtocolError::UnknownPrekey)?)?)?)
}
