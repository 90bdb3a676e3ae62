//! Our own keys: a user key that signs the device list, a device key that signs prekeys and log-ins, and a device key
//! for key agreement. Created once, stored sealed, shielded in memory, never replaced silently.

use core::fmt;

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::devices::{DeviceEntry, DeviceList, device_list_label, login_label};
use stvor_base::rotations::{MAX_ROTATIONS_BYTES, Rotations};
use stvor_base::{Address, AppId, DeviceId, KeyBytes, Suite, Timestamp, UserId};
use stvor_crypto::random::Random;
use stvor_crypto::suite::{AgreementKey, SigningKey};
use stvor_crypto::{CryptoError, Secret, SecretBytes, Shielded};

use crate::devices::{PeerKeys, SignedDeviceListIn};
use crate::effects::{Effects, RecordKey, RecordKind};
use crate::error::ProtocolError;
use crate::profile::SIGNATURE;

const VERSION: u8 = 1;

/// The version of an identity that was rotated: as version 1, then the rotations, then the keys of before.
const ROTATED: u8 = 2;

/// The public keys of an identity that handed over to ours: sessions with it are read for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EarlierSelf {
    pub(crate) keys: PeerKeys,
    /// When it handed over.
    pub(crate) left: Timestamp,
}

/// How a user key came to be that is not the user's first.
struct Past {
    rotations: Rotations,
    /// Newest first, as many as there are rotations.
    earlier: Vec<EarlierSelf>,
}

/// The identity of this device.
pub struct Identity {
    app: AppId,
    address: Address,
    created: Timestamp,
    keys: PeerKeys,
    list: SignedDeviceListIn,
    /// How the user key came to be, if it is not the user's first.
    past: Option<Past>,
    /// User, signing and agreement scalar, 32 bytes each.
    secrets: Shielded,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("app", &self.app)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// The row of the identity.
    #[must_use]
    pub fn key() -> RecordKey {
        RecordKey::single(RecordKind::Identity)
    }

    /// Makes an identity of the P256 suite: [`Identity::create_in`].
    ///
    /// # Errors
    /// [`ProtocolError::Crypto`] when the random source is unhealthy.
    pub fn create(
        app: &AppId,
        address: &Address,
        now: Timestamp,
        rng: &mut dyn Random,
    ) -> Result<(Self, Effects), ProtocolError> {
        Self::create_in(Suite::P256, (app, address), now, rng)
    }

    /// Makes an identity. The effects insert it: if one exists already, the commit fails, and the caller loads that.
    ///
    /// # Errors
    /// [`ProtocolError::Crypto`] when the random source is unhealthy.
    pub fn create_in(
        suite: Suite,
        of: (&AppId, &Address),
        now: Timestamp,
        rng: &mut dyn Random,
    ) -> Result<(Self, Effects), ProtocolError> {
        let keys = [
            SigningKey::generate(suite, rng)?.to_bytes(),
            SigningKey::generate(suite, rng)?.to_bytes(),
            AgreementKey::generate(suite, rng)?.to_bytes(),
        ];
        Self::created_of(suite, of, &keys, (now, rng))
    }

    /// The identity that a recovery secret stands for: the same keys and the same device list each time, so that whoever
    /// types the phrase on a new device is the same person to everybody. Effects as for [`Identity::create`].
    ///
    /// # Errors
    /// [`ProtocolError::Crypto`] when the random source is unhealthy.
    pub fn recover(
        app: &AppId,
        address: &Address,
        (root, now): (&crate::recovery::RecoveryRoot, Timestamp),
        rng: &mut dyn Random,
    ) -> Result<(Self, Effects), ProtocolError> {
        Self::created_of(root.suite(), (app, address), &root.scalars(address.device)?, (now, rng))
    }

    /// Makes an identity of the P256 suite whose user key the application keeps: a scalar of 32 bytes.
    ///
    /// # Errors
    /// As [`Identity::create`], also when the scalar is out of range.
    pub fn create_for(
        user: &Secret<32>,
        of: (&AppId, &Address),
        now: Timestamp,
        rng: &mut dyn Random,
    ) -> Result<(Self, Effects), ProtocolError> {
        let suite = Suite::P256;
        let keys = [
            SigningKey::from_bytes(suite, user)?.to_bytes(),
            SigningKey::generate(suite, rng)?.to_bytes(),
            AgreementKey::generate(suite, rng)?.to_bytes(),
        ];
        Self::created_of(suite, of, &keys, (now, rng))
    }

    /// The identity that follows this one.
    pub(crate) fn handed_over(
        &self,
        user: &SigningKey,
        rotations: Rotations,
        (now, rng): (Timestamp, &mut dyn Random),
    ) -> Result<(Self, Effects), ProtocolError> {
        let suite = self.suite();
        let keys = [
            user.to_bytes(),
            SigningKey::generate(suite, rng)?.to_bytes(),
            AgreementKey::generate(suite, rng)?.to_bytes(),
        ];
        let mut next = Self::assemble(suite, (&self.app, &self.address), &keys, (now, rng))?;
        let before = EarlierSelf { keys: self.keys.clone(), left: now };
        let earlier = core::iter::once(&before).chain(self.earlier());
        let earlier = earlier.take(rotations.steps().len()).cloned().collect();
        next.past = Some(Past { rotations, earlier });
        let mut effects = Effects::new();
        effects.put(Self::key(), next.to_record()?);
        Ok((next, effects))
    }

    fn created_of(
        suite: Suite,
        of: (&AppId, &Address),
        scalars: &[Secret<32>; 3],
        (now, rng): (Timestamp, &mut dyn Random),
    ) -> Result<(Self, Effects), ProtocolError> {
        let identity = Self::assemble(suite, of, scalars, (now, rng))?;
        let mut effects = Effects::new();
        effects.insert(Self::key(), identity.to_record()?, None);
        Ok((identity, effects))
    }

    /// The identity of three scalars: of the user key, the signing key and the agreement key.
    fn assemble(
        suite: Suite,
        (app, address): (&AppId, &Address),
        scalars: &[Secret<32>; 3],
        (now, rng): (Timestamp, &mut dyn Random),
    ) -> Result<Self, ProtocolError> {
        let (user, keys) = derive(suite, scalars)?;
        let list = DeviceList {
            app: app.clone(),
            user: address.user.clone(),
            user_key: keys.user,
            version: 1,
            previous: [0; 32],
            devices: vec![DeviceEntry {
                id: address.device,
                signing_key: keys.signing,
                agreement_key: keys.agreement,
            }],
        };
        let bytes = list.encode();
        let signature = user.sign_with(rng, device_list_label(suite), &bytes)?.to_vec();
        let mut packed = SecretBytes::from(vec![0; 96]);
        for (slot, secret) in packed.expose_mut().chunks_exact_mut(32).zip(scalars) {
            slot.copy_from_slice(secret.expose());
        }
        Ok(Self {
            app: app.clone(),
            address: address.clone(),
            created: now,
            keys,
            list: SignedDeviceListIn { bytes, signature },
            past: None,
            secrets: Shielded::new(packed.expose())?,
        })
    }

    pub(crate) fn to_record(&self) -> Result<SecretBytes, ProtocolError> {
        let mut out = Writer::with_capacity(512 + self.list.bytes.len() + 2 * MAX_ROTATIONS_BYTES);
        let version = if self.past.is_some() { ROTATED } else { VERSION };
        out.u8(version).u64(self.created.as_millis()).u32(self.address.device.get());
        self.secrets.open(|secrets| {
            out.raw(secrets);
        })?;
        out.bytes(&self.list.bytes).bytes(&self.list.signature);
        if let Some(past) = &self.past {
            out.bytes(&past.rotations.encode()).u8(u8::try_from(past.earlier.len()).unwrap_or(u8::MAX));
            for earlier in &past.earlier {
                earlier.keys.encode(&mut out);
                out.u64(earlier.left.as_millis());
            }
        }
        Ok(SecretBytes::from(out.finish()))
    }

    /// Reads the stored identity and checks that keys and list belong together.
    ///
    /// # Errors
    /// [`ProtocolError::BadRecord`], or [`ProtocolError::TooNew`] for the record of a later version.
    pub fn from_record(record: &SecretBytes) -> Result<Self, ProtocolError> {
        let what = "identity";
        let (created, device, secrets, (list, past)) =
            Self::decode(record.expose()).map_err(ProtocolError::record(what))?;
        let damaged = |_| ProtocolError::BadRecord(what);
        let parsed = DeviceList::decode(&list.bytes).map_err(ProtocolError::record(what))?;
        list.validate(&parsed.app, &parsed.user).map_err(|_| ProtocolError::BadRecord(what))?;
        let scalars = split(secrets.expose()).map_err(damaged)?;
        let (_, keys) = derive(parsed.suite(), &scalars).map_err(damaged)?;
        let entry = parsed.device(device).ok_or(ProtocolError::BadRecord(what))?;
        let same = (parsed.user_key, entry.signing_key, entry.agreement_key)
            == (keys.user, keys.signing, keys.agreement);
        if !same || past.as_ref().is_some_and(|past| *past.rotations.newest() != keys.user) {
            return Err(ProtocolError::BadRecord(what));
        }
        let secrets = Shielded::new(secrets.expose())?;
        let address = Address::new(parsed.user, device);
        Ok(Self { app: parsed.app, address, created, keys, list, past, secrets })
    }

    #[allow(clippy::type_complexity)]
    fn decode(
        bytes: &[u8],
    ) -> Result<(Timestamp, DeviceId, SecretBytes, (SignedDeviceListIn, Option<Past>)), CodecError> {
        let mut input = Reader::new(bytes);
        let rotated = match input.u8()? {
            VERSION => false,
            ROTATED => true,
            other => return Err(CodecError::Version(other)),
        };
        let created = Timestamp::from_millis(input.u64()?);
        let device = DeviceId::new(input.u32()?).map_err(|_| CodecError::Value)?;
        let secrets = SecretBytes::from_slice(input.raw(96)?);
        let list = input.bytes(4_096)?.to_vec();
        let signature = input.bytes(SIGNATURE)?.to_vec();
        let past = if rotated { Some(Past::read(&mut input)?) } else { None };
        input.finish()?;
        Ok((created, device, secrets, (SignedDeviceListIn { bytes: list, signature }, past)))
    }

    /// The app.
    #[must_use]
    pub fn app(&self) -> &AppId {
        &self.app
    }

    /// Our address.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Our user.
    #[must_use]
    pub fn user(&self) -> &UserId {
        &self.address.user
    }

    /// When the identity was made.
    #[must_use]
    pub fn created(&self) -> Timestamp {
        self.created
    }

    /// Which primitives the identity uses, for as long as it lives.
    #[must_use]
    pub const fn suite(&self) -> Suite {
        self.keys.suite()
    }

    /// That a peer uses the same primitives.
    pub(crate) fn speaks(&self, theirs: Suite) -> Result<(), ProtocolError> {
        let ours = self.suite();
        if ours == theirs { Ok(()) } else { Err(ProtocolError::SuiteMismatch { ours, theirs }) }
    }

    /// Our user's public signing key: what contacts pin.
    #[must_use]
    pub fn user_key(&self) -> &KeyBytes {
        &self.keys.user
    }

    /// This device's public signing key: what a relay checks log-ins with.
    #[must_use]
    pub fn device_key(&self) -> &KeyBytes {
        &self.keys.signing
    }

    /// Our signed device list, to be registered at the relay.
    #[must_use]
    pub fn signed_list(&self) -> &SignedDeviceListIn {
        &self.list
    }

    /// The rotations that led to the user key; `None` for a key that is the user's first.
    #[must_use]
    pub fn rotations(&self) -> Option<&Rotations> {
        self.past.as_ref().map(|past| &past.rotations)
    }

    /// The identities that handed over to this one, newest first.
    pub(crate) fn earlier(&self) -> &[EarlierSelf] {
        self.past.as_ref().map_or(&[], |past| &past.earlier)
    }

    /// Signs a log-in transcript with the device key.
    ///
    /// # Errors
    /// [`ProtocolError::Crypto`] when the random source is unhealthy.
    pub fn sign_login(&self, transcript: &[u8]) -> Result<[u8; SIGNATURE], ProtocolError> {
        Ok(self.signing()?.sign(login_label(self.suite()), transcript)?)
    }

    pub(crate) fn keys(&self) -> &PeerKeys {
        &self.keys
    }

    pub(crate) fn user_signing(&self) -> Result<SigningKey, ProtocolError> {
        Ok(self
            .secrets
            .open(|bytes| SigningKey::from_bytes(self.suite(), &Secret::from_slice(&bytes[..32])?))??)
    }

    pub(crate) fn signing(&self) -> Result<SigningKey, ProtocolError> {
        Ok(self
            .secrets
            .open(|bytes| SigningKey::from_bytes(self.suite(), &Secret::from_slice(&bytes[32..64])?))??)
    }

    /// Opens the scalars of signing and agreement key for a look.
    pub(crate) fn device_scalars<T>(&self, look: impl FnOnce(&[u8]) -> T) -> Result<T, CryptoError> {
        self.secrets.open(|bytes| look(bytes.get(32..96).unwrap_or_default()))
    }

    pub(crate) fn agreement(&self) -> Result<AgreementKey, ProtocolError> {
        Ok(self
            .secrets
            .open(|bytes| AgreementKey::from_bytes(self.suite(), &Secret::from_slice(&bytes[64..96])?))??)
    }
}

impl Past {
    fn read(input: &mut Reader<'_>) -> Result<Self, CodecError> {
        let rotations = Rotations::decode(input.bytes(MAX_ROTATIONS_BYTES)?)?;
        let (count, suite) = (usize::from(input.u8()?), rotations.newest().suite());
        if count == 0 || count > rotations.steps().len() {
            return Err(CodecError::Length);
        }
        let mut one = || {
            let keys = PeerKeys::read(input, suite)?;
            Ok(EarlierSelf { keys, left: Timestamp::from_millis(input.u64()?) })
        };
        let earlier = (0..count).map(|_| one()).collect::<Result<_, CodecError>>()?;
        Ok(Self { rotations, earlier })
    }
}

/// The user's key, and the public halves of all three.
fn derive(suite: Suite, scalars: &[Secret<32>; 3]) -> Result<(SigningKey, PeerKeys), CryptoError> {
    let [user, signing, agreement] = scalars;
    let user = SigningKey::from_bytes(suite, user)?;
    let keys = PeerKeys {
        user: user.public(),
        signing: SigningKey::from_bytes(suite, signing)?.public(),
        agreement: AgreementKey::from_bytes(suite, agreement)?.public(),
    };
    Ok((user, keys))
}

fn split(bytes: &[u8]) -> Result<[Secret<32>; 3], CryptoError> {
    let part = |from: usize| Secret::from_slice(bytes.get(from..from + 32).unwrap_or_default());
    Ok([part(0)?, part(32)?, part(64)?])
}
