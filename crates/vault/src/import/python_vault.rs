//! The Python program `memory-vault` (0.2): its SQLite database and its backups.
//!
//! There each content is a libsodium secretbox (XSalsa20-Poly1305) under a keyfile's 32 bytes, or under Argon2id of a passphrase
//! with a salt of its own for each memory, 4 passes over 1 GiB: some seconds and a gigabyte for each memory.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use stvor_crypto::kdf::{Argon2Params, argon2id, sha256};
use stvor_crypto::{Secret, SecretBytes, secretbox};
use stvor_keys::KeyError;

use super::MAX_FILE;
use crate::audit::hex;
use crate::level::Level;
use crate::memory::{NewMemory, Trust};
use crate::storage::foreign;
use crate::{VaultError, limits};

/// The metadata that holds a memory's id in the old program, cut to [`limits::MAX_TEXT`] bytes.
pub const MEMORY_VAULT_ID: &str = "memory-vault.id";

/// What opens the contents of one profile.
#[derive(Debug)]
pub enum Key {
    /// A passphrase.
    Passphrase(SecretBytes),
    /// The 32 bytes of `keys/<profile>.key`, as they are.
    Keyfile(Secret<32>),
}

/// The cost that the program always takes. Nothing in its files says so.
const COST: Argon2Params = Argon2Params { memory_kib: 1 << 20, iterations: 4, parallelism: 1 };

impl Key {
    fn derive(&self, salt: Option<&[u8]>) -> Result<Secret<32>, VaultError> {
        match (self, salt) {
            (Self::Keyfile(key), _) => Ok(key.duplicate()),
            (Self::Passphrase(phrase), Some(salt)) => Ok(argon2id(phrase.expose(), salt, COST)?),
            (Self::Passphrase(_), None) => {
                Err(VaultError::invalid("a memory has no salt: its profile has a keyfile, not a passphrase"))
            }
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Passphrase(_) => "passphrase",
            Self::Keyfile(_) => "keyfile",
        }
    }

    fn open(&self, (salt, nonce): (Option<&[u8]>, &[u8]), sealed: &[u8]) -> Result<SecretBytes, VaultError> {
        let nonce = nonce.try_into().map_err(|_| VaultError::invalid("a nonce is not 24 bytes long"))?;
        let wrong = |_| VaultError::Key(KeyError::Wrong { holder: self.name() });
        secretbox::open(&self.derive(salt)?, nonce, sealed).map_err(wrong)
    }
}

/// A memory of the program, still sealed. Its format authenticates the content and nothing else: whoever could write the file could
/// change a level, a policy, who made it, and whether it was tombstoned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OldMemory {
    /// Its id there.
    pub id: String,
    /// When it was made, as written there.
    pub created_at: String,
    /// `agent`, `human` or `system`.
    pub created_by: String,
    /// 0 to 5.
    pub classification: i64,
    /// Whose key opens it.
    pub profile: String,
    /// SHA-256 of the content, in hexadecimal digits.
    pub content_hash: String,
    /// The secretbox, without its nonce; nothing where a backup left it out.
    pub ciphertext: Option<Vec<u8>>,
    /// The nonce.
    pub nonce: Option<Vec<u8>>,
    /// The salt, for passphrases.
    pub salt: Option<Vec<u8>>,
    /// One intent, or several as a JSON list.
    pub intent_ref: Option<String>,
    /// A JSON object.
    pub metadata: Option<String>,
    /// A JSON object; `cooldown_seconds` counts.
    pub policy: Option<String>,
    /// Whether it was tombstoned.
    pub tombstoned: bool,
}

/// Every memory of the database at `path`, which is only read.
///
/// # Errors
/// [`VaultError::Invalid`] when it is not a database of that program; [`VaultError::Io`].
pub fn read_database(path: &Path) -> Result<Vec<OldMemory>, VaultError> {
    foreign::read_python_vault(path)
}

#[derive(Deserialize)]
struct Container {
    version: String,
    salt: String,
    nonce: String,
    ciphertext: String,
}

#[derive(Deserialize)]
struct Payload {
    memories: Vec<BTreeMap<String, Value>>,
}

fn base64(text: &str) -> Result<Vec<u8>, VaultError> {
    STANDARD.decode(text).map_err(|_| VaultError::invalid("the backup holds what is not base64"))
}

/// Every memory of a backup, opened with the passphrase of the backup.
///
/// # Errors
/// [`VaultError::Key`] for another passphrase; [`VaultError::Invalid`] when it is not a backup of that program.
pub fn read_backup(file: &[u8], passphrase: &SecretBytes) -> Result<Vec<OldMemory>, VaultError> {
    let other = || VaultError::invalid("the file is not a backup of memory-vault, version 1");
    if file.len() > 4 * MAX_FILE {
        return Err(VaultError::invalid("a backup of more than 256 MiB is not read"));
    }
    let container: Container = serde_json::from_slice(file).map_err(|_| other())?;
    if container.version != "1.0" {
        return Err(other());
    }
    let (salt, nonce) = (base64(&container.salt)?, base64(&container.nonce)?);
    let key = Key::Passphrase(passphrase.duplicate());
    let plain = key.open((Some(&salt), &nonce), &base64(&container.ciphertext)?)?;
    let payload: Payload = serde_json::from_slice(plain.expose()).map_err(|_| other())?;
    payload.memories.iter().map(from_json).collect()
}

fn from_json(fields: &BTreeMap<String, Value>) -> Result<OldMemory, VaultError> {
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(other) => Some(other.to_string()),
    };
    let bytes = |name: &str| text(name).map(|text| base64(&text)).transpose();
    let number = |name: &str| fields.get(name).and_then(Value::as_i64);
    let flag = fields.get("tombstoned").and_then(Value::as_bool);
    Ok(OldMemory {
        id: text("memory_id").unwrap_or_default(),
        created_at: text("created_at").unwrap_or_default(),
        created_by: text("created_by").unwrap_or_default(),
        classification: number("classification").unwrap_or(-1),
        profile: text("encryption_profile").unwrap_or_default(),
        content_hash: text("content_hash").unwrap_or_default(),
        ciphertext: bytes("ciphertext")?,
        nonce: bytes("nonce")?,
        salt: bytes("salt")?,
        intent_ref: text("intent_ref"),
        metadata: text("value_metadata"),
        policy: text("access_policy"),
        tombstoned: flag.unwrap_or(number("tombstoned").unwrap_or(0) != 0),
    })
}

impl OldMemory {
    /// What was known of it, by name.
    fn known(&self) -> Vec<(String, String)> {
        let mut known = Vec::new();
        if let Some(Value::Object(fields)) = parse(self.metadata.as_deref()) {
            let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            known.extend(fields.into_iter().map(|(name, value)| (name, text(value))));
        }
        // Last, so that no field of the memory's own can take their place.
        for (name, value) in [
            (MEMORY_VAULT_ID, &self.id),
            ("memory-vault.created-at", &self.created_at),
            ("memory-vault.created-by", &self.created_by),
        ] {
            known.push((name.to_owned(), value.clone()));
        }
        known
    }

    /// The names of what is known of it that is longer than a metadata value may be: [`OldMemory::open`] cuts it to
    /// [`limits::MAX_TEXT`] bytes.
    #[must_use]
    pub fn cut(&self) -> Vec<String> {
        let long = |(name, value): (String, String)| (value.len() > limits::MAX_TEXT).then_some(name);
        self.known().into_iter().filter_map(long).collect()
    }

    /// Opens it and makes a memory of it, of the same level, with what was known there as metadata. Its content is checked
    /// against the hash that was kept.
    ///
    /// # Errors
    /// [`VaultError::Key`] for another key; [`VaultError::Tampered`] when the content is not the one that was hashed;
    /// [`VaultError::Invalid`] when it holds no content, or something is past a limit.
    pub fn open(&self, key: &Key, namespace: &str) -> Result<NewMemory, VaultError> {
        let about = |reason: &str| VaultError::invalid(format!("the memory {}: {reason}", self.id));
        let (Some(sealed), Some(nonce)) = (&self.ciphertext, &self.nonce) else {
            return Err(about("the backup was made without its content"));
        };
        let content = key.open((self.salt.as_deref(), nonce), sealed)?;
        if hex(&sha256(&[content.expose()])) != self.content_hash {
            return Err(VaultError::tampered(
                format!("the memory {}", self.id),
                "its content is another one",
            ));
        }
        let level = u8::try_from(self.classification).ok().and_then(|level| Level::try_from(level).ok());
        let mut memory =
            NewMemory::new(content.expose(), level.ok_or_else(|| about("its level is none"))?, namespace);
        for (name, mut value) in self.known() {
            value.truncate(value.floor_char_boundary(limits::MAX_TEXT));
            memory.metadata.insert(name, value);
        }
        memory.intents = match parse(self.intent_ref.as_deref()) {
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => self.intent_ref.iter().filter(|intent| !intent.is_empty()).cloned().collect(),
        };
        let cooldown = parse(self.policy.as_deref()).and_then(|policy| policy["cooldown_seconds"].as_u64());
        memory.cooldown = cooldown.filter(|seconds| *seconds > 0).map(core::time::Duration::from_secs);
        memory.source = "memory-vault".into();
        // Who made it is a column that anybody could write who could write the file: nothing there is the owner's word here.
        memory.trust = Trust::Agent;
        memory.check().map_err(|error| about(&error.to_string()))?;
        Ok(memory)
    }
}

fn parse(text: Option<&str>) -> Option<Value> {
    text.and_then(|text| serde_json::from_str(text).ok())
}
