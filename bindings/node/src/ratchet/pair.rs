//! A key pair: an identity with the prekeys that let others start sessions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use napi::bindgen_prelude::Uint8Array;
use napi_derive::napi;
use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Address, AppId, DeviceId, Timestamp, UserId};
use stvor_crypto::{Random as _, SecretBytes, SystemRandom};
use stvor_protocol::{
    Effect, Effects, Identity, KemKind, KemPrekeyIn, PrekeyBundle, PrekeyBundleIn, PrekeyUpload, Prekeys,
    RecordKey, RecordKind, Records, ServerCounts, SignedDeviceListIn, SignedPrekeyIn,
};

use super::saved;
use super::shape::malformed;
use crate::failure::{coded, failure, fits, panicked};
use crate::limits::{MAX_HANDSHAKES, MAX_SAVED};

/// The app of every low-level identity: it keeps them apart from those of applications at relays.
const APP: &str = "stvor-ratchet";

/// What a bundle begins with.
const BUNDLE: &[u8] = b"STVOR-B\x01";

/// No time passes at this level.
pub(super) const NOW: Timestamp = Timestamp::from_millis(0);

/// Rows in memory.
pub(super) type Rows = HashMap<RecordKey, SecretBytes>;

/// Carries writes out in memory. Marks against concurrent copies of a session are left out: a handle has no copies, and there
/// would be one for each message.
pub(super) fn apply(rows: &mut Rows, effects: Effects) {
    for effect in effects.into_vec() {
        if effect.key().kind == RecordKind::ReplayMark {
            continue;
        }
        match effect {
            Effect::Put { key, value, .. } | Effect::Insert { key, value, .. } => {
                rows.insert(key, value);
            }
            Effect::Delete { key } => {
                rows.remove(&key);
            }
        }
    }
}

pub(super) fn app() -> napi::Result<AppId> {
    AppId::new(APP).map_err(coded)
}

/// What the sessions of a pair share.
#[derive(Default)]
pub(super) struct Shared {
    /// Private halves of prekeys, and marks of accepted handshakes.
    rows: Rows,
    bundle: Vec<u8>,
    /// How many marks there are, by the bundle whose keys they live as long as.
    marks: HashMap<Vec<u8>, usize>,
}

impl Shared {
    pub(super) fn new(rows: Rows, bundle: Vec<u8>) -> Self {
        let mut marks = HashMap::new();
        for key in rows.keys().filter(|key| key.kind == RecordKind::HandshakeMark) {
            *marks.entry(key.partition.clone()).or_default() += 1;
        }
        Self { rows, bundle, marks }
    }

    pub(super) fn rows(&self) -> &Rows {
        &self.rows
    }

    pub(super) fn bundle(&self) -> &[u8] {
        &self.bundle
    }

    /// Refuses a handshake that would leave one mark too many. One that left its mark already is the protocol's to judge.
    pub(super) fn has_room(&self, needed: &[RecordKey]) -> napi::Result<()> {
        let mut marks = needed.iter().filter(|key| key.kind == RecordKind::HandshakeMark);
        let full = marks.any(|key| {
            !self.rows.contains_key(key)
                && self.marks.get(&key.partition).is_some_and(|count| *count >= MAX_HANDSHAKES)
        });
        if full {
            let message = format!(
                "the key pair has accepted {MAX_HANDSHAKES} handshakes for this bundle: renew its bundle, give the \
                 new one to peers, and save the pair"
            );
            return Err(failure("BUNDLE_USED_UP", &message, false));
        }
        Ok(())
    }

    /// Carries out what a message did to the pair.
    pub(super) fn apply(&mut self, effects: Effects) {
        for effect in effects.into_vec() {
            match effect {
                Effect::Put { key, value, .. } | Effect::Insert { key, value, .. } => {
                    let (mark, partition) = (key.kind == RecordKind::HandshakeMark, key.partition.clone());
                    if self.rows.insert(key, value).is_none() && mark {
                        *self.marks.entry(partition).or_default() += 1;
                    }
                }
                Effect::Delete { key } => {
                    self.rows.remove(&key);
                }
            }
        }
    }

    /// Makes prekeys that take the place of the present ones, which are kept, as those of the sixteen bundles before them. What is
    /// older goes, with the marks of its handshakes: they can not be accepted any more.
    fn renew(&mut self, identity: &Identity) -> napi::Result<()> {
        let rng = &mut SystemRandom::new();
        let state = Prekeys::key();
        let records: Records =
            self.rows.get(&state).map(|row| (state, row.duplicate())).into_iter().collect();
        let mut prekeys = Prekeys::load(&records).map_err(coded)?;
        // Nothing of it is kept before all of it was made.
        let renewed = prekeys.renew(identity, None, NOW, rng).map_err(coded)?;
        let made = prekeys.maintain(identity, ENOUGH, NOW, rng).map_err(coded)?;
        let bundle = bundle(identity, made.upload.ok_or_else(panicked)?)?;
        let given = prekeys.uploaded(NOW);
        for effects in [renewed, made.effects, given] {
            self.apply(effects);
        }
        for (kind, partition) in made.clear {
            self.rows.retain(|key, _| key.kind != kind || key.partition != partition);
            self.marks.remove(&partition);
        }
        self.bundle = bundle;
        Ok(())
    }
}

/// A pair has no relay that could hand one-time prekeys out once, so it makes none.
const ENOUGH: ServerCounts = ServerCounts { one_time: u32::MAX, kem_one_time: u32::MAX };

/// The public halves of prekeys, with what proves whose they are.
fn bundle(identity: &Identity, upload: PrekeyUpload) -> napi::Result<Vec<u8>> {
    let (signed, kem) = upload.signed.zip(upload.kem_last).ok_or_else(panicked)?;
    let list = identity.signed_list();
    let mut out = Writer::with_capacity(2_048);
    out.raw(BUNDLE);
    identity.address().encode(&mut out);
    out.bytes(&list.bytes).bytes(&list.signature);
    out.u32(signed.id).raw(&signed.public).raw(&signed.signature);
    out.u32(kem.id).bytes(&kem.public).raw(&kem.signature);
    Ok(out.finish())
}

/// One side of conversations.
pub(super) struct Owner {
    pub(super) identity: Identity,
    pub(super) record: SecretBytes,
    shared: Mutex<Shared>,
}

impl Owner {
    /// With what a pair shares; a session that was stored alone needs nothing of it.
    pub(super) fn from_record(record: SecretBytes, shared: Shared) -> napi::Result<Self> {
        let identity = Identity::from_record(&record).map_err(coded)?;
        Ok(Self { identity, record, shared: Mutex::new(shared) })
    }

    fn generate() -> napi::Result<Self> {
        let rng = &mut SystemRandom::new();
        let mut name = [0; 16];
        rng.fill(&mut name).map_err(coded)?;
        let name = name.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        let address = Address::new(UserId::new(&name).map_err(coded)?, DeviceId::FIRST);
        let (identity, effects) = Identity::create(&app()?, &address, NOW, rng).map_err(coded)?;
        let mut rows = Rows::new();
        apply(&mut rows, effects);
        let record = rows.remove(&Identity::key()).ok_or_else(panicked)?;
        let mut prekeys = Prekeys::default();
        let made = prekeys.maintain(&identity, ENOUGH, NOW, rng).map_err(coded)?;
        apply(&mut rows, made.effects);
        let bundle = bundle(&identity, made.upload.ok_or_else(panicked)?)?;
        apply(&mut rows, prekeys.uploaded(NOW));
        Ok(Self { identity, record, shared: Mutex::new(Shared::new(rows, bundle)) })
    }

    /// What the sessions of the pair share, one at a time.
    pub(super) fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether bytes are a bundle rather than a handshake.
pub(super) fn is_bundle(bytes: &[u8]) -> bool {
    bytes.starts_with(BUNDLE)
}

/// Reads a bundle and checks every signature in it.
pub(super) fn read_bundle(bytes: &[u8]) -> napi::Result<(Address, PrekeyBundle)> {
    let (address, bundle) = decode(bytes).map_err(|_| malformed("the bundle"))?;
    let bundle = bundle.validate(&app()?, &address, NOW).map_err(coded)?;
    Ok((address, bundle))
}

fn decode(bytes: &[u8]) -> Result<(Address, PrekeyBundleIn), CodecError> {
    const LONGEST: usize = 4_096;
    let mut input = Reader::new(bytes);
    if input.raw(BUNDLE.len())? != BUNDLE {
        return Err(CodecError::Value);
    }
    let address = Address::decode(&mut input)?;
    let list = SignedDeviceListIn {
        bytes: input.bytes(LONGEST)?.to_vec(),
        signature: input.bytes(LONGEST)?.to_vec(),
    };
    let signed = SignedPrekeyIn {
        id: input.u32()?,
        created: NOW.as_millis(),
        public: input.raw(65)?.to_vec(),
        signature: input.raw(64)?.to_vec(),
    };
    let kem = KemPrekeyIn {
        kind: KemKind::LastResort,
        id: input.u32()?,
        created: NOW.as_millis(),
        public: input.bytes(LONGEST)?.to_vec(),
        signature: input.raw(64)?.to_vec(),
    };
    input.finish()?;
    let device = address.device.get();
    Ok((address, PrekeyBundleIn { list, device, signed, one_time: None, kem }))
}

/// A key pair.
#[napi]
pub struct NativeKeyPair(pub(super) Arc<Owner>);

/// Makes a key pair.
///
/// # Errors
/// `RNG_UNHEALTHY` when the random source is.
#[napi(catch_unwind)]
pub fn generate_key_pair() -> napi::Result<NativeKeyPair> {
    Ok(NativeKeyPair(Arc::new(Owner::generate()?)))
}

/// Opens a sealed key pair.
///
/// # Errors
/// `WRONG_KEY` for another key or altered bytes, `MALFORMED_MESSAGE` for other bytes.
#[napi(catch_unwind)]
pub fn restore_key_pair(sealed: Uint8Array, key: Uint8Array) -> napi::Result<NativeKeyPair> {
    saved::open_pair(fits(&sealed, MAX_SAVED)?, &key)
}

#[napi]
impl NativeKeyPair {
    /// The public signing key that peers know this side by: 65 bytes.
    #[napi(getter, catch_unwind)]
    #[must_use]
    pub fn public_key(&self) -> Uint8Array {
        self.0.identity.user_key().to_vec().into()
    }

    /// The pair, sealed: its private halves, and marks of the handshakes that it accepted.
    ///
    /// # Errors
    /// `BAD_PARAMETER` for a key that is not 32 bytes.
    #[napi(catch_unwind)]
    pub fn save(&self, key: Uint8Array) -> napi::Result<Uint8Array> {
        Ok(saved::seal_pair(self, &key)?.into())
    }

    /// What peers need to start a session; public.
    #[napi(getter, catch_unwind)]
    #[must_use]
    pub fn bundle(&self) -> Uint8Array {
        self.0.shared().bundle().to_vec().into()
    }

    /// Makes a new bundle, and gives it. Handshakes for the sixteen before it are still accepted.
    ///
    /// # Errors
    /// `RNG_UNHEALTHY` when the random source is; nothing changed then.
    #[napi(catch_unwind)]
    pub fn renew(&self) -> napi::Result<Uint8Array> {
        let mut shared = self.0.shared();
        shared.renew(&self.0.identity)?;
        Ok(shared.bundle().to_vec().into())
    }
}
