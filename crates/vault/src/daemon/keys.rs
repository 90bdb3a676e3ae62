//! What the owner can ask about keys: profiles, and changing keys.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Hidden;
use super::verbs::{PROGRESS, value};
use crate::keys::NewRoot;
use crate::profiles::{NewProfile, ProfileKey};
use crate::{Vault, VaultError};

/// A profile's key with its record for the profile's own secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileKeyVerb {
    key: Hidden,
    record: String,
    kind: String,
}

impl From<&ProfileKey> for ProfileKeyVerb {
    fn from(key: &ProfileKey) -> Self {
        Self { key: Hidden::of_key(&key.key), record: STANDARD.encode(&key.record), kind: key.kind.clone() }
    }
}

fn bytes(text: &str) -> Result<Vec<u8>, VaultError> {
    STANDARD.decode(text).map_err(|_| VaultError::invalid("a record is in base64"))
}

impl ProfileKeyVerb {
    fn read(self) -> Result<ProfileKey, VaultError> {
        Ok(ProfileKey { key: self.key.key()?, record: bytes(&self.record)?, kind: self.kind })
    }
}

/// A new root key with the owner's records of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewRootVerb {
    root: Hidden,
    verbs: Hidden,
    owner_root: String,
    owner_verbs: String,
}

impl From<&NewRoot> for NewRootVerb {
    fn from(new: &NewRoot) -> Self {
        Self {
            root: Hidden::of_key(&new.root),
            verbs: Hidden::of_key(&new.verbs),
            owner_root: STANDARD.encode(&new.records.0),
            owner_verbs: STANDARD.encode(&new.records.1),
        }
    }
}

impl NewRootVerb {
    fn read(self) -> Result<NewRoot, VaultError> {
        let records = (bytes(&self.owner_root)?, bytes(&self.owner_verbs)?);
        Ok(NewRoot { root: self.root.key()?, verbs: self.verbs.key()?, records })
    }
}

/// What the owner may ask about keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are those of the functions of `Vault` of the same names")]
pub enum KeysVerb {
    /// Make a profile, with a secret of its own or without.
    MakeProfile { profile: NewProfile, key: Option<ProfileKeyVerb> },
    /// All profiles.
    Profiles {},
    /// The record that a profile's own secret unwraps.
    ProfileRecord { name: String },
    /// Open a profile; takes its key.
    OpenProfile { name: String, key: Hidden },
    /// Wipe its keys.
    CloseProfile { name: String },
    /// Change the secret that opens it.
    ChangeProfileSecret { name: String, key: ProfileKeyVerb },
    /// Change its key. Lines that tell how far it is come before the answer.
    RotateProfile { name: String },
    /// Change the key that signs the log.
    RotateSigningKey {},
    /// Change the second secret, or give the vault its first one; takes the root key, the key of level 4, and its new record.
    ChangeSecond { root: Hidden, vaulted: Hidden, record: String },
    /// Change the root key; takes the old one. Lines that tell how far it is come before the answer.
    RotateRootKey { root: Hidden, new: NewRootVerb },
}

impl KeysVerb {
    pub(super) fn run(self, vault: &Vault, tell: impl FnMut(u64, u64)) -> Result<Value, VaultError> {
        let done = |()| Value::Null;
        match self {
            Self::MakeProfile { profile, key } => {
                vault.make_profile(profile, key.map(ProfileKeyVerb::read).transpose()?).map(done)
            }
            Self::Profiles {} => value(vault.profiles()?),
            Self::ProfileRecord { name } => {
                Ok(json!({ "record": STANDARD.encode(vault.profile_record(&name)?) }))
            }
            Self::OpenProfile { name, key } => vault.open_profile(&name, key.key()?).map(done),
            Self::CloseProfile { name } => vault.close_profile(&name).map(done),
            Self::ChangeProfileSecret { name, key } => {
                vault.change_profile_secret(&name, key.read()?).map(done)
            }
            Self::RotateProfile { name } => Ok(json!({ "rewrapped": vault.rotate_profile(&name, tell)? })),
            Self::RotateSigningKey {} => {
                vault.rotate_signing_key()?;
                Ok(json!({ "verifier": vault.status()?.verifier }))
            }
            Self::ChangeSecond { root, vaulted, record } => {
                vault.put_second_record(root.key()?, vaulted.key()?, bytes(&record)?).map(done)
            }
            Self::RotateRootKey { root, new } => {
                let (pending, state) = vault.begin_rotate_root(root.key()?, new.read()?);
                Ok(json!({ "resealed": pending.wait_telling(PROGRESS, &state, tell)? }))
            }
        }
    }
}
