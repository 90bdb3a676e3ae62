//! Profiles: their records and keys, and changing the latter.

use stvor_crypto::p256::{AgreementKey, PublicKey};
use stvor_crypto::{Secret, SecretBytes};
use stvor_keys::WrappedKey;

use super::agents::{Caller, OWNER};
use super::{Engine, Held};
use crate::audit::{Event, Operation, hex};
use crate::error::Refusal;
use crate::keys::SessionKeys;
use crate::level::Level;
use crate::memory::{Header, MemoryId};
use crate::profiles::{NewProfile, OWNED, Profile, ProfileKey, ProfileState};
use crate::sealing::{RowKey, Sender, open_wrapped};
use crate::{VaultError, limits};

/// The records of profiles, sealed as a whole. Not below `profile/`, whose records the root key does not seal.
const PROFILES: &str = "profiles";

fn key_slot(name: &str) -> String {
    format!("profile/{name}/key")
}

fn private_slot(name: &str, generation: u32) -> String {
    format!("profile/{name}/private/{generation}")
}

/// What a memory's key, wrapped for its level, is bound to when it is wrapped for a profile.
fn bound(name: &str, generation: u32, header: &Header) -> Vec<u8> {
    let mut out = stvor_base::codec::Writer::with_capacity(160);
    out.raw(b"STVOR vault profile memory v1").bytes(name.as_bytes()).u32(generation).raw(&header.bound());
    out.finish()
}

fn public(profile: &Profile) -> Result<PublicKey, VaultError> {
    let tampered = || VaultError::tampered(format!("the profile {}", profile.name), "its key is not a key");
    let digits = profile.public.as_bytes().chunks_exact(2);
    let bytes =
        digits.map(|two| core::str::from_utf8(two).ok().and_then(|two| u8::from_str_radix(two, 16).ok()));
    let bytes = bytes.collect::<Option<Vec<u8>>>().ok_or_else(tampered)?;
    PublicKey::from_bytes(&bytes).map_err(|_| tampered())
}

/// One step of a change of a profile's key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// Memories that were looked at, of all profiles.
    pub(crate) looked: u64,
    /// Of how many.
    pub(crate) total: u64,
    /// Memories whose key was wrapped anew.
    pub(crate) wrapped: u64,
    /// Whether it was the last one.
    pub(crate) done: bool,
    /// The generation of the key that memories are wrapped for.
    pub(crate) generation: u32,
}

impl Engine {
    pub(super) fn profile_list(&self) -> Result<Vec<Profile>, VaultError> {
        self.sealed_slot(PROFILES).map(Option::unwrap_or_default)
    }

    fn profile(&self, name: &str) -> Result<(Vec<Profile>, usize), VaultError> {
        let all = self.profile_list()?;
        let at = all.iter().position(|known| known.name == name);
        let at = at.ok_or_else(|| VaultError::unknown(format!("profile {name}")))?;
        Ok((all, at))
    }

    fn put_profile(&mut self, changed: Profile) -> Result<(), VaultError> {
        let mut all = self.profile_list()?;
        match all.iter_mut().find(|known| known.name == changed.name) {
            Some(known) => *known = changed,
            None => all.push(changed),
        }
        self.put_sealed_slot(PROFILES, &all)
    }

    fn session(&mut self) -> Result<&mut SessionKeys, VaultError> {
        let locked = Refusal::Locked { level: Level::Private };
        let held = self.held.as_mut().ok_or(VaultError::Refused(Refusal::Cold))?;
        held.session.as_mut().ok_or(locked.into())
    }

    /// Whether the key of a memory's profile is held, if it has one.
    pub(crate) fn profile_open(&self, header: &Header) -> bool {
        let Some(name) = &header.profile else { return true };
        let session = self.held.as_ref().and_then(|held| held.session.as_ref());
        session.is_some_and(|session| session.profile_keys.contains_key(name))
    }

    pub(crate) fn profile_states(&self) -> Result<Vec<ProfileState>, VaultError> {
        let now = self.clock.now().wall;
        let session = self.held()?.session.as_ref();
        let state = |profile: Profile| {
            let open = session.is_some_and(|session| session.profile_keys.contains_key(&profile.name));
            ProfileState { due: profile.is_due(now), open, profile }
        };
        Ok(self.profile_list()?.into_iter().map(state).collect())
    }

    pub(crate) fn profile_record(&self, name: &str) -> Result<Vec<u8>, VaultError> {
        let (all, at) = self.profile(name)?;
        if all.get(at).is_some_and(Profile::opens_with_owner) {
            return Err(VaultError::invalid("this profile opens with the owner's session"));
        }
        let missing = || VaultError::tampered(format!("the key of the profile {name}"), "it is missing");
        self.database.slot(&key_slot(name))?.ok_or_else(missing)
    }

    /// Makes a profile, and opens it.
    pub(crate) fn make_profile(
        &mut self,
        new: &NewProfile,
        key: Option<&ProfileKey>,
    ) -> Result<(), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::MakeProfile);
        let done = self.audited(event, |engine, event| {
            engine.note(event, &new.name)?;
            engine.no_doubt()?;
            new.check()?;
            let known = engine.profile_list()?;
            if known.len() >= limits::MAX_PROFILES || known.iter().any(|known| known.name == new.name) {
                return Err(VaultError::invalid("a profile of this name is there, or there are 64 already"));
            }
            engine.session()?;
            let (secret, opens_with) = match key {
                Some(key) => {
                    engine.database.put_slot(&key_slot(&new.name), &key.record)?;
                    (key.key.duplicate(), key.kind.clone())
                }
                None => {
                    let secret = Secret::<32>::random(&mut engine.rng)?;
                    engine.put_owned_key(&new.name, &secret)?;
                    (secret, OWNED.to_owned())
                }
            };
            let pair = AgreementKey::generate(&mut engine.rng)?;
            engine.put_private((&new.name, 1), &secret, &pair)?;
            engine.put_profile(Profile {
                name: new.name.clone(),
                opens_with,
                exportable: new.exportable,
                rotation: new.rotation,
                created: event.at.wall,
                rotated: event.at.wall,
                generation: 1,
                stored: 0,
                rotating: None,
                looked_at: None,
                public: hex(pair.public().as_bytes()),
            })?;
            let session = engine.session()?;
            session.profiles.insert((new.name.clone(), 1), pair);
            session.profile_keys.insert(new.name.clone(), secret);
            Ok(())
        });
        if done.is_err() {
            self.reload_profiles();
        }
        done
    }

    /// Seals the key of a profile that the owner's session opens, for the key of level 2.
    fn put_owned_key(&mut self, name: &str, secret: &Secret<32>) -> Result<(), VaultError> {
        let slot = key_slot(name);
        let private = self.session()?.private(Level::Private);
        let level = private.ok_or(Refusal::Locked { level: Level::Private })?.public().clone();
        let sealed = Sender::new(&level, &mut self.rng)?.wrap(secret.expose(), slot.as_bytes())?;
        self.database.put_slot(&slot, &sealed)
    }

    /// Seals the keys of profiles that the owner's session opens anew, after the key of level 2 was changed.
    pub(super) fn renew_owned_keys(&mut self) -> Result<(), VaultError> {
        for profile in self.profile_list()?.iter().filter(|profile| profile.opens_with_owner()) {
            let secret = self.session()?.profile_keys.get(&profile.name).map(Secret::duplicate);
            let secret = secret.ok_or_else(|| Refusal::ProfileClosed(profile.name.clone()))?;
            self.put_owned_key(&profile.name, &secret)?;
        }
        Ok(())
    }

    fn put_private(
        &mut self,
        (name, generation): (&str, u32),
        secret: &Secret<32>,
        pair: &AgreementKey,
    ) -> Result<(), VaultError> {
        let slot = private_slot(name, generation);
        let sealed = RowKey::new(secret).seal(&mut self.rng, slot.as_bytes(), pair.to_bytes().expose())?;
        self.database.put_slot(&slot, &sealed)
    }

    /// Opens the profiles that the owner's session opens. One that is damaged stays closed, and keeps nothing else closed.
    pub(super) fn open_owned_profiles(&mut self) {
        let Ok(all) = self.profile_list() else { return };
        for profile in all.iter().filter(|profile| profile.opens_with_owner()) {
            let _ = self.owned_key(&profile.name).and_then(|secret| self.load_profile(profile, secret));
        }
    }

    fn owned_key(&mut self, name: &str) -> Result<Secret<32>, VaultError> {
        let slot = key_slot(name);
        let tampered = |reason: &str| VaultError::tampered(format!("the key of the profile {name}"), reason);
        let record = self.database.slot(&slot)?.ok_or_else(|| tampered("it is missing"))?;
        let private =
            self.session()?.private(Level::Private).ok_or(Refusal::Locked { level: Level::Private })?;
        let opened =
            open_wrapped(private, slot.as_bytes(), &record).map_err(|_| tampered("it does not open"))?;
        Ok(Secret::from_slice(opened.expose())?)
    }

    fn load_profile(&mut self, profile: &Profile, secret: Secret<32>) -> Result<(), VaultError> {
        let name = &profile.name;
        let row = RowKey::new(&secret);
        // While a change is under way some memories are still under the key before.
        let first = profile.generation.saturating_sub(u32::from(profile.rotating.is_some()));
        for generation in first..=profile.generation {
            let slot = private_slot(name, generation);
            let tampered = |reason: &str| VaultError::tampered(format!("the key record {slot}"), reason);
            let record = self.database.slot(&slot)?.ok_or_else(|| tampered("it is missing"))?;
            let plain = row.open(slot.as_bytes(), &record).map_err(|_| tampered("it does not open"))?;
            let pair = AgreementKey::from_bytes(&Secret::from_slice(plain.expose())?)?;
            self.session()?.profiles.insert((name.clone(), generation), pair);
        }
        self.session()?.profile_keys.insert(name.clone(), secret);
        Ok(())
    }

    pub(crate) fn open_profile(&mut self, name: &str, secret: &Secret<32>) -> Result<(), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::OpenProfile);
        let done = self.audited(event, |engine, event| {
            engine.note(event, name)?;
            let (all, at) = engine.profile(name)?;
            let profile = all.get(at).ok_or_else(|| VaultError::unknown("such profile"))?;
            engine.session()?;
            engine.load_profile(profile, secret.duplicate())
        });
        if done.is_err() {
            self.forget_profile(name);
        }
        self.drop_index();
        done
    }

    /// Holds what the database has of the profiles that are open, and no key that is not there: after something was undone.
    pub(super) fn reload_profiles(&mut self) {
        let Ok(session) = self.session() else { return };
        session.profiles.clear();
        let mut open = core::mem::take(&mut session.profile_keys);
        let all = if open.is_empty() { Vec::new() } else { self.profile_list().unwrap_or_default() };
        for profile in &all {
            if let Some(secret) = open.remove(&profile.name) {
                let _ = self.load_profile(profile, secret);
            }
        }
    }

    fn forget_profile(&mut self, name: &str) {
        if let Ok(session) = self.session() {
            session.profiles.retain(|(known, _), _| known != name);
            session.profile_keys.remove(name);
        }
    }

    pub(crate) fn close_profile(&mut self, name: &str) -> Result<(), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::CloseProfile);
        // What it opened goes in any case.
        self.forget_profile(name);
        self.drop_index();
        self.audited(event, |engine, event| {
            engine.note(event, name)?;
            engine.profile(name).map(|_| ())
        })
    }

    pub(crate) fn change_profile_secret(&mut self, name: &str, key: &ProfileKey) -> Result<(), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::ChangeProfileSecret);
        self.audited(event, |engine, event| {
            engine.note(event, name)?;
            let (mut all, at) = engine.profile(name)?;
            let mut profile = all.swap_remove(at);
            WrappedKey::decode(&key.record)?;
            let slot = private_slot(name, profile.generation);
            let tampered = || VaultError::tampered(format!("the key record {slot}"), "it does not open");
            let record = engine.database.slot(&slot)?.ok_or_else(tampered)?;
            RowKey::new(&key.key).open(slot.as_bytes(), &record).map_err(|_| tampered())?;
            engine.database.put_slot(&key_slot(name), &key.record)?;
            profile.opens_with.clone_from(&key.kind);
            engine.wipe = true;
            engine.put_profile(profile)
        })
    }

    /// Wraps a memory's key, which is wrapped for its level, for its profile.
    pub(super) fn wrap_for_profile(
        &mut self,
        header: &Header,
        wrapped: Vec<u8>,
    ) -> Result<Vec<u8>, VaultError> {
        let Some(name) = &header.profile else { return Ok(wrapped) };
        let (all, at) = self.profile(name)?;
        let profile = all.get(at).ok_or_else(|| VaultError::unknown("such profile"))?;
        self.wrap_under(profile, header, &wrapped)
    }

    fn wrap_under(
        &mut self,
        profile: &Profile,
        header: &Header,
        wrapped: &[u8],
    ) -> Result<Vec<u8>, VaultError> {
        let sender = Sender::new(&public(profile)?, &mut self.rng)?;
        let mut out = profile.generation.to_be_bytes().to_vec();
        out.extend(sender.wrap(wrapped, &bound(&profile.name, profile.generation, header))?);
        Ok(out)
    }

    /// Counts a memory that was stored with a profile.
    pub(super) fn count_in_profile(&mut self, header: &Header) -> Result<(), VaultError> {
        let Some(name) = &header.profile else { return Ok(()) };
        let (mut all, at) = self.profile(name)?;
        if let Some(profile) = all.get_mut(at) {
            profile.stored = profile.stored.saturating_add(1);
        }
        self.put_sealed_slot(PROFILES, &all)
    }

    /// Takes the wrap of a memory's profile away; what is left is wrapped for its level.
    pub(super) fn unwrap_profile<'a>(
        held: &Held,
        header: &Header,
        wrapped: &'a [u8],
    ) -> Result<Unwrapped<'a>, VaultError> {
        let Some(name) = &header.profile else { return Ok(Unwrapped::Plain(wrapped)) };
        let tampered = || VaultError::tampered(format!("the memory {}", header.id), "its key does not open");
        let (generation, rest) = wrapped.split_first_chunk::<4>().ok_or_else(tampered)?;
        let generation = u32::from_be_bytes(*generation);
        let session = held.session.as_ref();
        let closed = || Refusal::ProfileClosed(name.clone());
        if !session.is_some_and(|session| session.profile_keys.contains_key(name)) {
            return Err(closed().into());
        }
        let key = session.and_then(|session| session.profiles.get(&(name.clone(), generation)));
        let key = key.ok_or_else(tampered)?;
        let opened = open_wrapped(key, &bound(name, generation, header), rest).map_err(|_| tampered())?;
        Ok(Unwrapped::Opened(opened))
    }

    /// A step of a change that somebody waits for. `towards` is the generation that the step before gave: when another one
    /// finished that change meanwhile, nothing is left to do.
    pub(crate) fn rotate_asked(&mut self, name: &str, towards: Option<u32>) -> Result<Step, VaultError> {
        let (all, at) = self.profile(name)?;
        let reached = |profile: &&Profile| {
            let at_least = towards.is_some_and(|generation| profile.generation >= generation);
            at_least && (profile.rotating.is_none() || towards != Some(profile.generation))
        };
        if let Some(profile) = all.get(at).filter(reached) {
            return Ok(Step { generation: profile.generation, done: true, ..Step::default() });
        }
        let step = self.rotate_profile(name, limits::ROTATION_STEP);
        let going_on = step.as_ref().is_ok_and(|step| !step.done);
        if let Ok(session) = self.session() {
            match going_on {
                true => session.rotating.insert(name.to_owned()),
                false => session.rotating.remove(name),
            };
        }
        step
    }

    /// One step of changing a profile's key; the first one makes the new key, the last one destroys the old.
    fn rotate_profile(&mut self, name: &str, count: usize) -> Result<Step, VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::RotateProfileKey);
        let done = self.audited(event, |engine, event| {
            engine.note(event, name)?;
            engine.no_doubt()?;
            let (mut all, at) = engine.profile(name)?;
            let mut profile = all.swap_remove(at);
            let secret = engine.session()?.profile_keys.get(name).map(Secret::duplicate);
            let secret = secret.ok_or_else(|| Refusal::ProfileClosed(name.to_owned()))?;
            if profile.rotating.is_none() {
                let pair = AgreementKey::generate(&mut engine.rng)?;
                profile.generation = profile.generation.saturating_add(1);
                engine.put_private((name, profile.generation), &secret, &pair)?;
                profile.public = hex(pair.public().as_bytes());
                (profile.rotating, profile.looked_at, profile.stored) = (Some(0), None, 0);
                engine.session()?.profiles.insert((name.to_owned(), profile.generation), pair);
            }
            let (total, greatest) = (engine.database.memory_count()?, engine.database.greatest_id()?);
            let rows = engine.database.memories_by_id(profile.looked_at.as_ref(), count)?;
            let (looked, generation) = (rows.len() as u64, profile.generation);
            let last = rows.last().map(|(_, row)| row.id);
            let done = last.is_none() || last == greatest;
            let mut step = Step { looked, total, wrapped: 0, done, generation };
            let before = profile.looked_at.and(profile.rotating).unwrap_or_default();
            profile.rotating = Some(before.saturating_add_unsigned(looked));
            profile.looked_at = last.or(profile.looked_at);
            for (_, mut row) in rows {
                // A damaged row is told of, stays what it is, and keeps no other from the new key.
                let Some(header) = engine.sound(engine.header(&row))? else { continue };
                if header.profile.as_deref() != Some(name) {
                    continue;
                }
                if row.wrapped.is_none() || engine.sound(engine.must_be_whole(&row))?.is_none() {
                    continue;
                }
                let Some(wrapped) = row.wrapped.take() else { continue };
                let plain = Self::unwrap_profile(engine.held()?, &header, &wrapped);
                let Some(plain) = engine.sound(plain)? else { continue };
                row.wrapped = Some(engine.wrap_under(&profile, &header, plain.bytes())?);
                engine.database.update_memory(&row)?;
                let mut leaf = Event::new(event.at.clone(), OWNER, Operation::Rewrap);
                (leaf.memory, leaf.level, leaf.row) =
                    (Some(header.id), Some(header.level), Some(row.digest()));
                engine.log(&leaf)?;
                step.wrapped += 1;
            }
            event.count = Some(step.wrapped);
            if step.done {
                let old = profile.generation.saturating_sub(1);
                engine.database.remove_slot(&private_slot(name, old))?;
                engine.session()?.profiles.remove(&(name.to_owned(), old));
                (profile.rotating, profile.looked_at, profile.rotated) = (None, None, event.at.wall);
            }
            // Neither the old wraps nor the old key may be left in the journal.
            engine.wipe = true;
            engine.put_profile(profile)?;
            Ok(step)
        });
        if done.is_err() {
            self.reload_profiles();
        }
        done
    }

    /// Goes on with the change of one profile's key, if one is due and open.
    pub(crate) fn rotate_due(&mut self) -> Result<(), VaultError> {
        let session = self.held.as_ref().and_then(|held| held.session.as_ref());
        if session.is_none_or(|session| session.rotation_failed || session.profile_keys.is_empty()) {
            return Ok(());
        }
        let asked = session.map(|session| session.rotating.clone()).unwrap_or_default();
        let due = |state: &ProfileState| state.due && state.open && !asked.contains(&state.profile.name);
        let due = self.profile_states()?.into_iter().find(due);
        let Some(state) = due else { return Ok(()) };
        let done = self.rotate_profile(&state.profile.name, limits::ROTATION_STEP);
        if done.is_err() {
            self.session()?.rotation_failed = true;
        }
        done.map(|_| ())
    }

    /// Whether a memory may leave the vault.
    pub(crate) fn may_leave(&self, id: MemoryId) -> Result<(), VaultError> {
        let (_, header) = self.find(&Caller::Owner, id)?;
        self.exportable(&header)
    }

    /// Whether memories of this profile may leave the vault.
    pub(crate) fn exportable(&self, header: &Header) -> Result<(), VaultError> {
        let Some(name) = &header.profile else { return Ok(()) };
        let (all, at) = self.profile(name)?;
        match all.get(at) {
            Some(profile) if profile.exportable => Ok(()),
            _ => Err(Refusal::NotExportable(name.clone()).into()),
        }
    }
}

/// A memory's key, wrapped for its level only.
pub(super) enum Unwrapped<'a> {
    Plain(&'a [u8]),
    Opened(SecretBytes),
}

impl Unwrapped<'_> {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Plain(bytes) => bytes,
            Self::Opened(bytes) => bytes.expose(),
        }
    }
}
