//! The key hierarchy.
//!
//! The owner's holder (passphrase, keyfile) wraps the *root key*, with a check value, so that a wrong passphrase is told from
//! a damaged vault and can never store anything. From the root key follow, by HKDF, the key of the database's rows, of the
//! log's rows, of keyed hashes, of levels 0 and 1, and the keys that seal the private keys of levels 2 and 3. The private
//! key of level 4 is sealed under a key that a second holder wraps; that of level 5 under that key and a token's secret
//! together. Changing the owner's passphrase wraps 32 bytes anew and touches no memory.

use std::collections::BTreeMap;

use stvor_crypto::kdf::{hkdf_sha256, hmac_sha256};
use stvor_crypto::p256::{AgreementKey, PublicKey};
use stvor_crypto::{CryptoError, Random, Secret};
use stvor_keys::{KeyHolder, WrappedKey};
use stvor_tlog::{Checkpoint, Note, Signer, TlogError, Verifier};

use crate::VaultError;
use crate::audit::Event;
use crate::clock::Moment;
use crate::error::Refusal;
use crate::level::Level;
use crate::sealing::{RowKey, Scratch, Unwrap, Wrap};
use crate::storage::EventRow;

/// What the records of keys are bound to.
const ROOT: &[u8] = b"STVOR vault root key v1";
/// What keys follow under, from the root key and from the two halves of the key of level 5.
const LABEL: &[u8] = b"STVOR vault v1";
const VERBS: &[u8] = b"STVOR vault owner verbs v1";
const VAULTED: &[u8] = b"STVOR vault level 4 key v1";

/// The owner's root key. The daemon holds it while it does what takes it (opening, ending a lockdown, changing or splitting keys), and
/// wipes it then.
pub type RootKey = Secret<32>;

/// The key that answers the daemon's challenges on owner verbs. Only who has the owner's secret can unwrap it.
pub type VerbKey = Secret<32>;

/// Records of keys, by name, as the database keeps them.
pub(crate) type Slots = BTreeMap<String, Vec<u8>>;

pub(crate) const SLOT_ROOT: &str = "owner/root";
pub(crate) const SLOT_VERBS: &str = "owner/verbs";
pub(crate) const SLOT_VERBS_HELD: &str = "verbs";
pub(crate) const SLOT_VAULTED: &str = "vaulted";
pub(crate) const SLOT_SIGNER: &str = "signer";
pub(crate) const SLOT_RETIRED: &str = "signer/retired";
pub(crate) const SLOT_LOCKDOWN: &str = "lockdown";
/// The key of keyed hashes, since the root key was changed; before that it follows from the root key.
const SLOT_HASHES: &str = "hashes";

fn public_slot(level: Level) -> String {
    format!("level-{}/public", level.number())
}

fn private_slot(level: Level) -> String {
    format!("level-{}/private", level.number())
}

/// The record of the private key of level 5, wrapped for one token, or for an escrow.
pub(crate) fn black_slot(token: &str) -> String {
    format!("{}/{token}", private_slot(Level::Black))
}

/// A keyed hash under a key that follows from the root key, for who has that one and no records.
pub(crate) fn keyed_hash(root: &RootKey, purpose: &str, bytes: &[u8]) -> Secret<32> {
    hash_with(&derive(root, "hashes"), purpose, bytes)
}

/// A keyed hash: HMAC-SHA256 over the purpose, a zero byte, and the bytes.
pub(crate) fn hash_with(key: &Secret<32>, purpose: &str, bytes: &[u8]) -> Secret<32> {
    hmac_sha256(key.expose(), &[purpose.as_bytes(), &[0], bytes])
}

fn derive(root: &RootKey, purpose: &str) -> Secret<32> {
    hkdf_sha256::<32>(LABEL, root.expose(), purpose.as_bytes())
}

/// What init needs.
#[derive(Debug)]
pub struct NewKeys<'a> {
    /// The owner's passphrase or keyfile.
    pub owner: &'a dyn KeyHolder,
    /// The second secret, for levels 4 and 5. Without it they can not be used until one is set.
    pub vaulted: Option<&'a dyn KeyHolder>,
    /// The name of the log, which its checkpoints carry.
    pub origin: &'a str,
}

/// Makes all keys of a vault and returns their records.
pub(crate) fn create(new: &NewKeys<'_>, rng: &mut dyn Random) -> Result<Slots, VaultError> {
    let mut slots = Slots::new();
    let root = RootKey::random(rng)?;
    slots.insert(SLOT_ROOT.into(), new.owner.wrap(&root, ROOT, rng)?.encode());
    let verbs = VerbKey::random(rng)?;
    slots.insert(SLOT_VERBS.into(), new.owner.wrap(&verbs, VERBS, rng)?.encode());
    let rows = RowKey::spread(&derive(&root, "rows"));
    let put = |slots: &mut Slots, name: String, plain: &[u8], rng: &mut dyn Random| {
        let sealed = rows.seal(rng, name.as_bytes(), plain)?;
        slots.insert(name, sealed);
        Ok::<(), CryptoError>(())
    };
    put(&mut slots, SLOT_VERBS_HELD.into(), verbs.expose(), rng)?;
    let signer = Signer::generate(new.origin, rng)?;
    put(&mut slots, SLOT_SIGNER.into(), signer.seed().expose(), rng)?;
    put(&mut slots, "origin".into(), new.origin.as_bytes(), rng)?;
    put(&mut slots, SLOT_RETIRED.into(), b"[]", rng)?;
    put(&mut slots, SLOT_LOCKDOWN.into(), b"null", rng)?;
    for level in [Level::Private, Level::Sealed] {
        let key = AgreementKey::generate(rng)?;
        put(&mut slots, public_slot(level), key.public().as_bytes(), rng)?;
        let seal = RowKey::new(&derive(&root, level.name()));
        let name = private_slot(level);
        let sealed = seal.seal(rng, name.as_bytes(), key.to_bytes().expose())?;
        slots.insert(name, sealed);
    }
    if let Some(holder) = new.vaulted {
        let vaulted = Secret::<32>::random(rng)?;
        slots.insert(SLOT_VAULTED.into(), holder.wrap(&vaulted, VAULTED, rng)?.encode());
        slots.extend(level_4((&rows, &vaulted), rng)?.0);
    }
    Ok(slots)
}

/// Whether there is a key pair of level 4.
pub(crate) fn has_level_4(slots: &Slots) -> bool {
    slots.contains_key(&public_slot(Level::Vaulted)) || slots.contains_key(&private_slot(Level::Vaulted))
}

/// A key pair of level 4: its records, the private half sealed under the key that the second secret wraps, and the public one.
pub(crate) fn level_4(
    (rows, vaulted): (&RowKey, &Secret<32>),
    rng: &mut dyn Random,
) -> Result<(Slots, PublicKey), VaultError> {
    let key = AgreementKey::generate(rng)?;
    let (public, private) = (public_slot(Level::Vaulted), private_slot(Level::Vaulted));
    let shown = rows.seal(rng, public.as_bytes(), key.public().as_bytes())?;
    let hidden = RowKey::new(vaulted).seal(rng, private.as_bytes(), key.to_bytes().expose())?;
    Ok((Slots::from([(public, shown), (private, hidden)]), key.public().clone()))
}

fn slot<'a>(slots: &'a Slots, name: &str) -> Result<&'a [u8], VaultError> {
    let missing = || VaultError::tampered(format!("the key record {name}"), "it is missing");
    slots.get(name).map(Vec::as_slice).ok_or_else(missing)
}

/// Finds the root key with the owner's secret. Slow on purpose where that is a passphrase; needs no open vault.
///
/// # Errors
/// [`stvor_keys::KeyError::Wrong`] and its kin.
pub fn unwrap_root(record: &[u8], owner: &dyn KeyHolder) -> Result<RootKey, VaultError> {
    Ok(owner.unwrap(&WrappedKey::decode(record)?, ROOT)?)
}

/// Finds the key of owner verbs with the owner's secret.
///
/// # Errors
/// [`stvor_keys::KeyError::Wrong`] and its kin.
pub fn unwrap_verbs(record: &[u8], owner: &dyn KeyHolder) -> Result<VerbKey, VaultError> {
    Ok(owner.unwrap(&WrappedKey::decode(record)?, VERBS)?)
}

/// Finds the key of levels 4 and 5 with the second secret.
///
/// # Errors
/// [`stvor_keys::KeyError::Wrong`] and its kin.
pub fn unwrap_vaulted(record: &[u8], holder: &dyn KeyHolder) -> Result<Secret<32>, VaultError> {
    Ok(holder.unwrap(&WrappedKey::decode(record)?, VAULTED)?)
}

/// The records of root and verb keys for another secret of the owner, which was seen to open them.
pub(crate) fn rewrap(
    keys: (&RootKey, &VerbKey),
    owner: &dyn KeyHolder,
) -> Result<(Vec<u8>, Vec<u8>), VaultError> {
    let mut slots = rewrap_owner(keys, owner, &mut stvor_crypto::SystemRandom::new())?;
    let mut take = |name| slots.remove(name).unwrap_or_default();
    let (root, verbs) = (take(SLOT_ROOT), take(SLOT_VERBS));
    if unwrap_root(&root, owner)? != *keys.0 || unwrap_verbs(&verbs, owner)? != *keys.1 {
        return Err(VaultError::invalid("the new secret does not open what it wrapped"));
    }
    Ok((root, verbs))
}

/// The records of the owner's secret, by name.
pub(crate) fn owner_slots(root: Vec<u8>, verbs: Vec<u8>) -> Slots {
    Slots::from([(SLOT_ROOT.into(), root), (SLOT_VERBS.into(), verbs)])
}

/// Wraps root and verb keys anew for another secret of the owner.
pub(crate) fn rewrap_owner(
    (root, verbs): (&RootKey, &VerbKey),
    owner: &dyn KeyHolder,
    rng: &mut dyn Random,
) -> Result<Slots, VaultError> {
    let mut slots = Slots::new();
    slots.insert(SLOT_ROOT.into(), owner.wrap(root, ROOT, rng)?.encode());
    slots.insert(SLOT_VERBS.into(), owner.wrap(verbs, VERBS, rng)?.encode());
    Ok(slots)
}

/// Wraps the key of level 4 anew for another second secret.
pub(crate) fn rewrap_vaulted(
    vaulted: &Secret<32>,
    holder: &dyn KeyHolder,
    rng: &mut dyn Random,
) -> Result<Vec<u8>, VaultError> {
    Ok(holder.wrap(vaulted, VAULTED, rng)?.encode())
}

/// A new record of the second secret: the key of level 4 that `old` unwraps from `record`, or a fresh one where the vault has
/// none, wrapped for `new`, which was seen to open it. Returns the key, too.
///
/// # Errors
/// [`VaultError::Invalid`] without the old secret, or with one for a vault that has none; [`stvor_keys::KeyError::Wrong`].
pub(crate) fn change_second(
    record: Option<&[u8]>,
    old: Option<&dyn KeyHolder>,
    new: &dyn KeyHolder,
) -> Result<(Secret<32>, Vec<u8>), VaultError> {
    let mut rng = stvor_crypto::SystemRandom::new();
    let vaulted = match (record, old) {
        (Some(record), Some(old)) => unwrap_vaulted(record, old)?,
        (None, None) => Secret::random(&mut rng)?,
        (Some(_), None) => {
            return Err(VaultError::invalid(
                "this vault has a second secret: give the old one too (--second-passphrase-file, --second-keyfile), or have k keepers \
                 recover the vault",
            ));
        }
        (None, Some(_)) => return Err(VaultError::invalid("this vault has no second secret")),
    };
    let record = rewrap_vaulted(&vaulted, new, &mut rng)?;
    if unwrap_vaulted(&record, new)? != vaulted {
        return Err(VaultError::invalid("the new secret does not open what it wrapped"));
    }
    Ok((vaulted, record))
}

/// The keys that a locked vault holds: enough to log, to answer, to read levels 0 and 1 and to write every level.
#[derive(Debug)]
pub(crate) struct BaseKeys {
    pub(crate) rows: RowKey,
    pub(crate) events: RowKey,
    pub(crate) working: RowKey,
    pub(crate) signer: Signer,
    /// The keys that signed before, newest first.
    pub(crate) retired: Vec<Retired>,
    pub(crate) verbs: VerbKey,
    /// What the sums over the bound tables are keyed with.
    pub(crate) bound: Secret<32>,
    hashes: Secret<32>,
    /// What backups are sealed with. It follows from the root key itself: a restore has no other key when it looks.
    backups: Secret<32>,
    publics: BTreeMap<Level, PublicKey>,
}

/// A key that signed the log before.
#[derive(Debug, Clone)]
pub(crate) struct Retired {
    pub(crate) verifier: Verifier,
    /// How many events the log had when another key took its place. Vaults of before did not keep that.
    pub(crate) until: Option<u64>,
}

impl Retired {
    /// As it is kept: the events, where they are known, before the verifier key, which has no space in it.
    pub(crate) fn to_text(&self) -> String {
        match self.until {
            Some(until) => format!("{until} {}", self.verifier),
            None => self.verifier.to_string(),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (until, verifier) = match text.split_once(' ') {
            Some((until, verifier)) => (Some(until.parse().ok()?), verifier),
            None => (None, text),
        };
        Some(Self { verifier: Verifier::parse(verifier).ok()?, until })
    }
}

/// Which checkpoints are this log's.
#[derive(Debug)]
pub(crate) struct Trust {
    present: Verifier,
    retired: Vec<Retired>,
}

impl Trust {
    /// Reads a checkpoint that the present key signed, or one of before as long as it was the one that signs: who got hold of an
    /// old key can not say that the log went on.
    pub(crate) fn open(&self, note: &Note) -> Result<Checkpoint, TlogError> {
        let open = |size: u64| {
            let then = self.retired.iter().filter(|old| old.until.is_none_or(|until| size <= until));
            let trusted: Vec<_> =
                core::iter::once(&self.present).chain(then.map(|old| &old.verifier)).cloned().collect();
            Checkpoint::open(note, self.present.name(), &trusted)
        };
        // Of all of these keys; then of those that signed when the log was as long as it says.
        let size = open(0)?.size();
        open(size)
    }
}

/// The record of the public key of level 5.
pub(crate) fn black_public_slot() -> String {
    public_slot(Level::Black)
}

impl BaseKeys {
    /// A level can be written from here on.
    pub(crate) fn add_public(&mut self, level: Level, public: PublicKey) {
        self.publics.insert(level, public);
    }

    /// Derives and opens them.
    pub(crate) fn open(root: &RootKey, slots: &Slots) -> Result<Self, VaultError> {
        let rows = RowKey::spread(&derive(root, "rows"));
        let open = |name: &str| {
            let changed = |_| VaultError::tampered(format!("the key record {name}"), "it does not open");
            rows.open(name.as_bytes(), slot(slots, name)?).map_err(changed)
        };
        let origin = open("origin")?;
        let origin = String::from_utf8_lossy(origin.expose()).into_owned();
        let signer = Signer::from_seed(&origin, &Secret::from_slice(open(SLOT_SIGNER)?.expose())?)?;
        let changed =
            || VaultError::tampered(format!("the key record {SLOT_RETIRED}"), "it is not understood");
        let retired: Vec<String> =
            serde_json::from_slice(open(SLOT_RETIRED)?.expose()).map_err(|_| changed())?;
        let retired = retired.iter().map(|text| Retired::parse(text)).collect::<Option<_>>();
        let retired = retired.ok_or_else(changed)?;
        let verbs = Secret::from_slice(open(SLOT_VERBS_HELD)?.expose())?;
        let mut publics = BTreeMap::new();
        for level in Level::ALL {
            let name = public_slot(level);
            if slots.contains_key(&name) {
                publics.insert(level, PublicKey::from_bytes(open(&name)?.expose())?);
            }
        }
        let hashes = match slots.contains_key(SLOT_HASHES) {
            true => Secret::from_slice(open(SLOT_HASHES)?.expose())?,
            false => derive(root, "hashes"),
        };
        let events = RowKey::spread(&derive(root, "events"));
        let working = RowKey::spread(&derive(root, "levels 0 and 1"));
        let (bound, backups) = (derive(root, "bound tables"), derive(root, "hashes"));
        Ok(Self { events, working, signer, retired, verbs, bound, hashes, backups, publics, rows })
    }

    /// Which checkpoints are this log's.
    pub(crate) fn trust(&self) -> Trust {
        Trust { present: self.signer.verifier().clone(), retired: self.retired.clone() }
    }

    /// A keyed hash: it confirms nothing to who has not the key.
    pub(crate) fn hash(&self, purpose: &str, bytes: &[u8]) -> Secret<32> {
        hash_with(&self.hashes, purpose, bytes)
    }

    /// The key of [`keyed_hash`].
    pub(crate) fn backup_key(&self) -> Secret<32> {
        self.backups.duplicate()
    }

    /// An event, and the bytes that the log hashes; nothing when the row is not what was written there.
    pub(crate) fn open_event(&self, row: &EventRow) -> Option<(Event, Vec<u8>)> {
        let mut scratch = Scratch::default();
        let (entry, said) = self.open_event_into(row.seq, &row.sealed, &mut scratch)?;
        let mut event: Event = serde_json::from_slice(entry).ok()?;
        event.said = said.map(|said| String::from_utf8_lossy(said).into_owned());
        Some((event, entry.to_vec()))
    }

    /// The bytes that the log hashes, and what was said to the event.
    pub(crate) fn open_event_into<'a>(
        &self,
        seq: u64,
        sealed: &[u8],
        scratch: &'a mut Scratch,
    ) -> Option<(&'a [u8], Option<&'a [u8]>)> {
        let plain = self.events.open_into(&seq.to_be_bytes(), sealed, scratch).ok()?;
        // JSON has no line end inside, so what follows one is what was said to it.
        Some(match plain.iter().position(|byte| *byte == b'\n') {
            Some(end) => (plain.get(..end)?, plain.get(end + 1..)),
            None => (plain, None),
        })
    }

    /// What a content of this level is written with.
    pub(crate) fn wrap(&self, level: Level) -> Option<Wrap<'_>> {
        if level.needs_session() {
            self.publics.get(&level).map(Wrap::Public)
        } else {
            Some(Wrap::Shared(&self.working))
        }
    }
}

/// The keys that the owner's session adds, wiped when it ends.
#[derive(Debug, Default)]
pub(crate) struct SessionKeys {
    privates: BTreeMap<Level, AgreementKey>,
    /// What level 4 gives to the keys of level 5.
    black: Option<Secret<32>>,
    /// When a token opened level 5.
    pub(crate) presented: Option<Moment>,
    /// Keys of profiles that are open, by name and generation, and what seals them.
    pub(crate) profiles: BTreeMap<(String, u32), AgreementKey>,
    pub(crate) profile_keys: BTreeMap<String, Secret<32>>,
    /// A change of a profile's key that began by itself failed; it is not tried again before the next session.
    pub(crate) rotation_failed: bool,
    /// Profiles whose key somebody is just changing step by step: no step of that is done by itself.
    pub(crate) rotating: std::collections::BTreeSet<String>,
}

impl SessionKeys {
    /// Opens the private keys of levels 2 and 3. A record that is damaged closes its own level: what is wrong comes with it.
    pub(crate) fn open(root: &RootKey, slots: &Slots) -> (Self, Vec<VaultError>) {
        let (mut session, mut damaged) = (Self::default(), Vec::new());
        for level in [Level::Private, Level::Sealed] {
            damaged.extend(session.add(level, &derive(root, level.name()), slots).err());
        }
        (session, damaged)
    }

    /// Opens the private key of level 4.
    pub(crate) fn open_vaulted(&mut self, vaulted: &Secret<32>, slots: &Slots) -> Result<(), VaultError> {
        self.add(Level::Vaulted, vaulted, slots)?;
        self.black = Some(derive(vaulted, "level 5"));
        Ok(())
    }

    /// The key that a token's secret and level 4 make together; nothing while level 4 is closed.
    pub(crate) fn black_wrap(&self, token: &str, secret: &Secret<32>) -> Option<RowKey> {
        let mut both = stvor_crypto::SecretBytes::from(self.black.as_ref()?);
        both = [both.expose(), secret.expose()].concat().into();
        let info = format!("level 5 token {token}");
        Some(RowKey::new(&hkdf_sha256::<32>(LABEL, both.expose(), info.as_bytes())))
    }

    /// Opens the private key of level 5 with a token's secret.
    pub(crate) fn open_black(
        &mut self,
        (token, secret): (&str, &Secret<32>),
        slots: &Slots,
        now: Moment,
    ) -> Result<(), VaultError> {
        let wrap = self.black_wrap(token, secret).ok_or(Refusal::NoVaultedKey)?;
        let name = black_slot(token);
        let wrong = |_| VaultError::from(Refusal::NoToken);
        let plain = wrap.open(name.as_bytes(), slot(slots, &name)?).map_err(wrong)?;
        let private = AgreementKey::from_bytes(&Secret::from_slice(plain.expose())?)?;
        self.privates.insert(Level::Black, private);
        self.presented = Some(now);
        Ok(())
    }

    /// The private key of level 5 while a token is present.
    pub(crate) fn black_private(&self) -> Option<Secret<32>> {
        self.privates.get(&Level::Black).map(AgreementKey::to_bytes)
    }

    /// Wipes the private key of level 5.
    pub(crate) fn close_black(&mut self) {
        self.privates.remove(&Level::Black);
        self.presented = None;
    }

    fn add(&mut self, level: Level, key: &Secret<32>, slots: &Slots) -> Result<(), VaultError> {
        let name = private_slot(level);
        let changed = |_| VaultError::tampered(format!("the key record {name}"), "it does not open");
        let plain = RowKey::new(key).open(name.as_bytes(), slot(slots, &name)?).map_err(changed)?;
        let private = AgreementKey::from_bytes(&Secret::from_slice(plain.expose())?)?;
        self.privates.insert(level, private);
        Ok(())
    }

    /// The private key of a level, while it is held.
    pub(crate) fn private(&self, level: Level) -> Option<&AgreementKey> {
        self.privates.get(&level)
    }

    /// Whether contents of this level can be read.
    pub(crate) fn opens(&self, level: Level) -> bool {
        self.privates.contains_key(&level)
    }

    /// What a content of this level is read with.
    pub(crate) fn unwrap<'a>(&'a self, base: &'a BaseKeys, level: Level) -> Option<Unwrap<'a>> {
        if level.needs_session() {
            self.privates.get(&level).map(Unwrap::Private)
        } else {
            Some(Unwrap::Shared(&base.working))
        }
    }
}

/// A root key in the place of another, and the owner's records of it.
#[derive(Debug)]
pub struct NewRoot {
    pub(crate) root: RootKey,
    pub(crate) verbs: VerbKey,
    pub(crate) records: (Vec<u8>, Vec<u8>),
}

impl NewRoot {
    /// A fresh root key and a fresh key of owner verbs, wrapped for the owner's secret.
    ///
    /// # Errors
    /// [`VaultError::Key`] when the secret can not wrap or does not open what it wrapped.
    pub fn generate(owner: &dyn KeyHolder) -> Result<Self, VaultError> {
        let mut rng = stvor_crypto::SystemRandom::new();
        let (root, verbs) = (RootKey::random(&mut rng)?, VerbKey::random(&mut rng)?);
        let records = rewrap((&root, &verbs), owner)?;
        Ok(Self { root, verbs, records })
    }
}

/// What a change of the root key does to the records of keys.
#[derive(Debug)]
pub(crate) struct Reseal<'a> {
    pub(crate) old: &'a BaseKeys,
    pub(crate) new: &'a NewRoot,
}

/// The records and the private keys of levels that come of it.
#[derive(Debug)]
pub(crate) struct Resealed {
    pub(crate) slots: Slots,
    pub(crate) privates: BTreeMap<Level, AgreementKey>,
}

impl Reseal<'_> {
    /// All records, sealed under the new root key, with fresh keys of levels 2 and 3. Records that the root key does not seal
    /// (of level 4, tokens and profiles) stay as they are.
    pub(crate) fn slots(&self, slots: &Slots, rng: &mut dyn Random) -> Result<Resealed, VaultError> {
        let rows = RowKey::spread(&derive(&self.new.root, "rows"));
        let mut all = Resealed { slots: Slots::new(), privates: BTreeMap::new() };
        let seal = |name: &str, plain: &[u8], rng: &mut dyn Random| rows.seal(rng, name.as_bytes(), plain);
        for (name, record) in slots {
            let foreign = name == SLOT_VAULTED
                || name.starts_with("profile/")
                || (name.starts_with("level-") && name.contains("/private"));
            let record = if foreign {
                record.clone()
            } else if name == SLOT_ROOT {
                self.new.records.0.clone()
            } else if name == SLOT_VERBS {
                self.new.records.1.clone()
            } else if name == SLOT_VERBS_HELD {
                seal(name, self.new.verbs.expose(), rng)?
            } else {
                let changed = |_| VaultError::tampered(format!("the key record {name}"), "it does not open");
                seal(name, self.old.rows.open(name.as_bytes(), record).map_err(changed)?.expose(), rng)?
            };
            all.slots.insert(name.clone(), record);
        }
        let hashes = seal(SLOT_HASHES, self.old.hashes.expose(), rng)?;
        all.slots.insert(SLOT_HASHES.into(), hashes);
        for level in [Level::Private, Level::Sealed] {
            let key = AgreementKey::generate(rng)?;
            let (public, private) = (public_slot(level), private_slot(level));
            let sealed = seal(&public, key.public().as_bytes(), rng)?;
            all.slots.insert(public, sealed);
            let under = RowKey::new(&derive(&self.new.root, level.name()));
            let sealed = under.seal(rng, private.as_bytes(), key.to_bytes().expose())?;
            all.slots.insert(private, sealed);
            all.privates.insert(level, key);
        }
        Ok(all)
    }
}

impl SessionKeys {
    /// Takes the fresh private keys of levels.
    pub(crate) fn renew(&mut self, privates: BTreeMap<Level, AgreementKey>) {
        self.privates.extend(privates);
    }
}
