//! Profiles: keys of their own for some memories, beside the key of their level.
//!
//! A memory that is stored with a profile has its own key wrapped twice: for its level, and around that for the profile's public
//! key. So storing needs no secret, and reading takes the level's gates and the profile's key. A profile opens with the owner's
//! session, or with a secret of its own (passphrase, keyfile, TPM). It says whether its memories may be exported, and when
//! its key is due to be changed; while it is open, a key that is due is changed by itself, some memories at a time.

use serde::{Deserialize, Serialize};
use stvor_crypto::{Secret, SystemRandom};
use stvor_keys::{KeyHolder, WrappedKey};

use crate::memory::MemoryId;
use crate::recovery::escrow::check_name;
use crate::verify::Progress;
use crate::{Vault, VaultError, limits};

/// What the record of a profile's key is bound to, before its name.
const CONTEXT: &[u8] = b"STVOR vault profile v1 ";

/// When a profile's key is due to be changed. With neither only when somebody asks for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// After so many days, 1 to [`limits::MAX_ROTATION_DAYS`].
    #[serde(default)]
    pub days: Option<u32>,
    /// After so many memories were stored with it.
    #[serde(default)]
    pub memories: Option<u64>,
}

impl Rotation {
    fn check(self) -> Result<(), VaultError> {
        let days = self.days.is_none_or(|days| (1..=limits::MAX_ROTATION_DAYS).contains(&days));
        if days && self.memories != Some(0) {
            return Ok(());
        }
        Err(VaultError::invalid("a profile's key is changed after 1 to 3660 days, or after 1 memory or more"))
    }
}

/// A profile, as everybody at the owner's socket may know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// What opens it: `owner` for the owner's session, or the kind of its own secret.
    pub opens_with: String,
    /// Whether its memories may be exported and given to heirs.
    pub exportable: bool,
    /// When its key is due to be changed.
    pub rotation: Rotation,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created: u64,
    /// When its key was last changed, or made.
    pub rotated: u64,
    /// How often its key was changed, and 1.
    pub generation: u32,
    /// Memories that were stored under the present key.
    pub stored: u64,
    /// How far a change of its key is that is under way: how many memories were looked at.
    #[serde(default)]
    pub rotating: Option<i64>,
    /// The last one of them. They come by their ids: who can write to the database can change a row's number, and the row would be
    /// passed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) looked_at: Option<MemoryId>,
    /// The public key that memories are wrapped for, in hexadecimal digits.
    pub(crate) public: String,
}

impl Profile {
    /// Whether the owner's session opens it.
    #[must_use]
    pub fn opens_with_owner(&self) -> bool {
        self.opens_with == OWNED
    }

    /// Whether its key is due to be changed, or a change was begun.
    #[must_use]
    pub fn is_due(&self, now: u64) -> bool {
        let day = 24 * 60 * 60 * 1_000;
        let old = |days: u32| now.saturating_sub(self.rotated) >= u64::from(days) * day;
        self.rotating.is_some()
            || self.rotation.days.is_some_and(old)
            || self.rotation.memories.is_some_and(|most| self.stored >= most)
    }
}

/// What `opens_with` is for profiles that the owner's session opens.
pub(crate) const OWNED: &str = "owner";

/// A profile with its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileState {
    /// What it is.
    pub profile: Profile,
    /// Whether its key is held.
    pub open: bool,
    /// Whether its key is due to be changed.
    pub due: bool,
}

/// A profile that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewProfile {
    /// 1 to 64 letters, digits, `-` and `_`.
    pub name: String,
    /// Whether its memories may be exported.
    #[serde(default)]
    pub exportable: bool,
    /// When its key is due to be changed.
    #[serde(default)]
    pub rotation: Rotation,
}

impl NewProfile {
    pub(crate) fn check(&self) -> Result<(), VaultError> {
        check_name(&self.name)?;
        self.rotation.check()
    }
}

/// The key that seals a profile's private keys, and its record for the profile's own secret.
#[derive(Debug)]
pub struct ProfileKey {
    pub(crate) key: Secret<32>,
    pub(crate) record: Vec<u8>,
    pub(crate) kind: String,
}

fn context(name: &str) -> Vec<u8> {
    [CONTEXT, name.as_bytes()].concat()
}

impl ProfileKey {
    /// What kind of secret opens it.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// A fresh key for a secret of the profile's own.
    ///
    /// # Errors
    /// [`VaultError::Key`].
    pub fn generate(name: &str, holder: &dyn KeyHolder) -> Result<Self, VaultError> {
        let key = Secret::random(&mut SystemRandom::new())?;
        Self::wrap(name, key, holder)
    }

    /// The same key for another secret.
    ///
    /// # Errors
    /// [`VaultError::Key`].
    pub fn wrap(name: &str, key: Secret<32>, holder: &dyn KeyHolder) -> Result<Self, VaultError> {
        let wrapped = holder.wrap(&key, &context(name), &mut SystemRandom::new())?;
        let kind = holder.kind().name().to_owned();
        Ok(Self { key, record: wrapped.encode(), kind })
    }
}

/// Finds a profile's key with its own secret.
///
/// # Errors
/// [`stvor_keys::KeyError::Wrong`] and its kin.
pub fn unwrap_profile(record: &[u8], name: &str, holder: &dyn KeyHolder) -> Result<Secret<32>, VaultError> {
    Ok(holder.unwrap(&WrappedKey::decode(record)?, &context(name))?)
}

impl Vault {
    /// Makes a profile; with `key` it opens with a secret of its own, without by the owner's session, which has to be open.
    /// It is open when this returns.
    ///
    /// # Errors
    /// [`VaultError::Invalid`] for a name that is taken or not allowed, [`crate::Refusal::Locked`].
    pub fn make_profile(&self, new: NewProfile, key: Option<ProfileKey>) -> Result<(), VaultError> {
        self.ask(move |engine| engine.make_profile(&new, key.as_ref())).wait()
    }

    /// All profiles.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn profiles(&self) -> Result<Vec<ProfileState>, VaultError> {
        self.ask(|engine| engine.profile_states()).wait()
    }

    /// The record that a profile's own secret unwraps, for [`unwrap_profile`].
    ///
    /// # Errors
    /// [`VaultError::Invalid`] when there is none.
    pub fn profile_record(&self, name: &str) -> Result<Vec<u8>, VaultError> {
        let name = name.to_owned();
        self.ask(move |engine| engine.profile_record(&name)).wait()
    }

    /// Opens a profile with its key, until the vault is locked.
    ///
    /// # Errors
    /// [`VaultError::Tampered`] when it is not its key, [`crate::Refusal::Locked`].
    pub fn open_profile(&self, name: &str, key: Secret<32>) -> Result<(), VaultError> {
        let name = name.to_owned();
        self.ask(move |engine| engine.open_profile(&name, &key)).wait()
    }

    /// Wipes a profile's keys.
    ///
    /// # Errors
    /// [`VaultError::Invalid`] when there is none of this name.
    pub fn close_profile(&self, name: &str) -> Result<(), VaultError> {
        let name = name.to_owned();
        self.ask(move |engine| engine.close_profile(&name)).wait()
    }

    /// Changes the secret that opens a profile. No memory is touched. `key` has to be the profile's key.
    ///
    /// # Errors
    /// [`VaultError::Tampered`] when it is not.
    pub fn change_profile_secret(&self, name: &str, key: ProfileKey) -> Result<(), VaultError> {
        let name = name.to_owned();
        self.ask(move |engine| engine.change_profile_secret(&name, &key)).wait()
    }

    /// Changes the key of a profile that is open: every memory's own key is wrapped for the new one, some at a time, and the old
    /// key is destroyed. A change that was broken off goes on. `progress` hears how many memories were looked at, and of how
    /// many. Returns how many were wrapped anew.
    ///
    /// # Errors
    /// [`crate::Refusal::ProfileClosed`], [`VaultError::LogUnavailable`].
    pub fn rotate_profile(&self, name: &str, mut progress: impl FnMut(u64, u64)) -> Result<u64, VaultError> {
        let (mut looked, mut wrapped, mut towards) = (0, 0, None);
        loop {
            let asked = name.to_owned();
            let step = self.ask(move |engine| engine.rotate_asked(&asked, towards)).wait()?;
            looked += step.looked;
            wrapped += step.wrapped;
            towards = Some(step.generation);
            progress(looked, step.total.max(looked));
            if step.done {
                return Ok(wrapped);
            }
        }
    }

    /// Changes the root key, and every key that follows from it: those of rows, of the log's rows, of levels 0 to 3. Everything that
    /// they seal is sealed anew, all of it or nothing. Keys of level 4 and 5 follow from other secrets and stay. All profiles have to be
    /// open.
    ///
    /// # Errors
    /// [`stvor_keys::KeyError::Wrong`], [`crate::Refusal::Locked`], [`crate::Refusal::ProfileClosed`],
    /// [`VaultError::LogUnavailable`]; after the last one the vault is cold.
    pub fn rotate_root(&self, owner: &dyn KeyHolder) -> Result<u64, VaultError> {
        let root = crate::unwrap_root(&self.records()?.root, owner)?;
        self.begin_rotate_root(root, crate::NewRoot::generate(owner)?).0.wait()
    }

    /// As [`Vault::rotate_root`], without waiting, with keys that were unwrapped and made elsewhere.
    #[must_use]
    pub fn begin_rotate_root(
        &self,
        root: crate::RootKey,
        new: crate::NewRoot,
    ) -> (crate::Pending<u64>, std::sync::Arc<Progress>) {
        let progress = std::sync::Arc::new(Progress::default());
        let told = std::sync::Arc::clone(&progress);
        (self.ask(move |engine| engine.rotate_root(&root, &new, &told)), progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_has_1_to_3660_days_and_1_memory_or_more() {
        let days = |days| Rotation { days: Some(days), memories: None }.check();
        assert!(days(0).is_err() && days(limits::MAX_ROTATION_DAYS + 1).is_err());
        assert!(days(1).is_ok() && days(limits::MAX_ROTATION_DAYS).is_ok());
        assert!(Rotation { days: None, memories: Some(0) }.check().is_err());
        assert!(Rotation { days: None, memories: Some(1) }.check().is_ok());
        assert!(Rotation::default().check().is_ok());
    }
}
