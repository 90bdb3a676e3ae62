//! What shows that a backup is of this vault. Age seals to a public key, and who may write into the directory of the backups
//! may know that too; this is a keyed hash that takes the vault's root key. It is checked before a byte of the database is
//! written, and nothing reads the database before all of it was found to be the one that was sealed.

use std::io::{Read, Write};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use stvor_base::codec::Writer;
use stvor_crypto::Secret;
use stvor_crypto::kdf::{constant_time_eq, sha256};

use crate::VaultError;
use crate::audit::hex;
use crate::keys::{RootKey, keyed_hash};

/// What the keyed hash is for.
pub(crate) const PURPOSE: &str = "backup";
/// Bytes of a database that are hashed as one.
const PART: usize = 1 << 20;

/// The file `seal.json` of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Seal {
    /// The digest of `vault.db`: SHA-256 over the SHA-256 of each of its parts of 1 MiB, in hexadecimal digits.
    database: String,
    /// The record of the root key, as the owner's secret wraps it, in base64.
    owner: String,
    /// Keyed hash over `manifest.json` and the digest, in hexadecimal digits.
    mac: String,
}

/// What the keyed hash is over.
pub(crate) fn bytes(manifest: &[u8], database: &str) -> Vec<u8> {
    let mut out = Writer::with_capacity(manifest.len() + 96);
    out.bytes(manifest).bytes(database.as_bytes());
    out.finish()
}

impl Seal {
    pub(crate) fn new((database, owner): (String, &[u8]), mac: Secret<32>) -> Self {
        Self { database, owner: STANDARD.encode(owner), mac: hex(mac.expose()) }
    }

    /// The record of the root key. Nothing vouches for it but that the owner's secret opens it.
    pub(crate) fn owner(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.owner).ok()
    }

    /// Whether the vault with this root key sealed this manifest.
    pub(crate) fn is_of(&self, root: &RootKey, manifest: &[u8]) -> bool {
        let mac = hex(keyed_hash(root, PURPOSE, &bytes(manifest, &self.database)).expose());
        constant_time_eq(mac.as_bytes(), self.mac.as_bytes())
    }

    /// Whether this is the database that was sealed.
    pub(crate) fn holds(&self, digest: &str) -> bool {
        constant_time_eq(self.database.as_bytes(), digest.as_bytes())
    }
}

/// Reads everything, hands it on, and gives the digest of it.
pub(crate) fn copy(mut from: impl Read, mut to: impl Write) -> std::io::Result<String> {
    let (mut part, mut parts) = (Vec::with_capacity(PART), Vec::new());
    loop {
        part.clear();
        if from.by_ref().take(PART as u64).read_to_end(&mut part)? == 0 {
            return Ok(hex(&sha256(&[&parts])));
        }
        to.write_all(&part)?;
        parts.extend(sha256(&[&part]));
    }
}

/// The digest of a database.
pub(crate) fn digest(path: &Path) -> Result<String, VaultError> {
    let read = std::fs::File::open(path).and_then(|file| copy(file, std::io::sink()));
    read.map_err(|error| VaultError::io("reading", path, &error))
}
