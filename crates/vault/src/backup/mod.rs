//! Backups: age files that hold a copy of the database, whole or what changed since an earlier one, with the log, the
//! tombstones and every key record in it. What is in them is sealed twice: by the vault's own keys, and by age.
//!
//! Inside the age file is a tar archive: `manifest.json`, `seal.json`, `README.txt`, `vault.db`. The seal shows that the vault made
//! it; whoever else writes an age file to the same recipient can not. Beside the backups, and in the vault's own
//! directory, stands the list of memories that no restore may bring back ([`FORGOTTEN`]); it holds names and no words.

mod name;
mod pack;
mod restore;
pub mod retention;
pub(crate) mod seal;
mod service;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use stvor_keys::recipients::Sealing;

use crate::memory::{MemoryId, State};

pub use name::BackupName;
pub use restore::{Restore, Restored, read_manifest, restore};

pub use service::add_to_list;
pub(crate) use service::remove_drafts;

/// The version of what is in the archive.
pub(crate) const FORMAT: u32 = 2;
/// The name of the list of ended memories.
pub const FORGOTTEN: &str = "forgotten";

/// Whether a backup stands alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackupKind {
    /// It stands alone.
    Full,
    /// It holds what changed since its parent, and is restored after it.
    Incremental,
}

/// The backup that another one builds on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// Its name.
    pub id: MemoryId,
    /// The size of the log in it.
    pub size: u64,
    /// The root of the log in it, in base64.
    pub root: String,
}

/// What a backup says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version, 2.
    pub format: u32,
    /// Its name: 16 random bytes.
    pub id: MemoryId,
    /// Whether it stands alone.
    pub kind: BackupKind,
    /// What it builds on.
    pub parent: Option<Parent>,
    /// When it was made, in milliseconds since the Unix epoch.
    pub made: u64,
    /// The name of the log.
    pub origin: String,
    /// The size of the log in it.
    pub size: u64,
    /// The root of the log in it, in base64.
    pub root: String,
    /// Memories in it, ended ones too.
    pub memories: u64,
    /// What its maker wrote about it.
    pub description: String,
}

impl Manifest {
    /// What a backup that builds on this one says of it.
    pub(crate) fn as_parent(&self) -> Parent {
        Parent { id: self.id, size: self.size, root: self.root.clone() }
    }
}

/// A backup that the vault remembers having made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupRecord {
    /// What it says about itself.
    pub manifest: Manifest,
    /// Where it was written to.
    pub path: PathBuf,
    /// What did not verify in the vault when it was made. Such a backup is restored with the damage, or not at all.
    #[serde(default)]
    pub problems: u64,
    /// The number of the newest memory in it: it holds those up to this one. Backups of before do not say; of those the clock is
    /// asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<i64>,
}

/// A backup that is to be made.
#[derive(Debug)]
pub struct NewBackup {
    /// The directory that it is written into. It is made if it is not there.
    pub directory: PathBuf,
    /// Whether it stands alone.
    pub kind: BackupKind,
    /// Who can open it.
    pub sealing: Sealing,
    /// A note for people, at most [`crate::limits::MAX_NAME`] bytes.
    pub description: String,
}

/// A memory that no restore may bring back, as the list of them says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ended {
    pub(crate) memory: MemoryId,
    /// Forgotten or tombstoned.
    pub(crate) state: State,
    pub(crate) at: u64,
    /// Keyed hash over the others, so that nobody else adds to the list.
    pub(crate) mac: String,
}

/// An agent that no restore may let in again, as the same list says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Revoked {
    /// Keyed hash of its credential, in hexadecimal digits.
    pub(crate) agent: String,
    /// Keyed hash over that, so that nobody else adds to the list.
    pub(crate) mac: String,
}

impl Ended {
    /// What the keyed hash is over.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = stvor_base::codec::Writer::with_capacity(32);
        out.raw(self.memory.as_bytes()).u8(u8::from(self.state == State::Tombstoned)).u64(self.at);
        out.finish()
    }
}
