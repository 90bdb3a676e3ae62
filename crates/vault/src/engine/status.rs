//! What state a vault is in.

use serde::{Deserialize, Serialize};

/// Which keys are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// None: every request is refused, and counted.
    Cold,
    /// Those of the database, the log, and levels 0 and 1.
    Locked,
    /// Also those of levels 2 and 3, and of 4 when its secret was given.
    Open,
}

/// Whether what the daemon holds in memory may come into the swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// No: all of it is locked.
    Locked,
    /// No: its control group is allowed no swap.
    Unswapped,
    /// Yes, where the machine has a swap.
    Exposed,
}

/// Who stopped everything, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lockdown {
    /// Since when, in milliseconds since the Unix epoch.
    pub since: u64,
    /// Who.
    pub by: String,
    /// Why, in their words.
    pub reason: String,
}

/// The state of a vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Which keys are held.
    pub mode: Mode,
    /// Whether the secret of level 4 was given.
    pub vaulted: bool,
    /// Whether everything is stopped.
    pub lockdown: Option<Lockdown>,
    /// Entries in the log.
    pub events: u64,
    /// The root over them, in base64.
    pub root: String,
    /// Requests that were refused while the vault was cold.
    pub refused_cold: u64,
    /// The verifier key of the log.
    pub verifier: String,
    /// Verifier keys of the log that signed before, newest first.
    pub retired: Vec<String>,
    /// When the newest event was logged, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub last_event: Option<u64>,
    /// Files outside the database that checkpoints are appended to.
    #[serde(default)]
    pub checkpoint_files: usize,
    /// How many of them could not be written after the newest event: until they are, they show less.
    #[serde(default)]
    pub checkpoint_files_behind: usize,
    /// When the newest backup was made that the vault knows of, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub newest_backup: Option<u64>,
    /// Backups that are remembered and have another form than those that this version restores.
    #[serde(default)]
    pub backups_of_other_formats: u64,
    /// Watchers of the dead-man switch that do not know what was decided last: their directories could not be written; or that have
    /// no package to give out.
    #[serde(default)]
    pub watchers_untold: usize,
    /// What somebody else than this vault changed, removed or set back: until the owner ends that with the owner's secret, as a
    /// lockdown, everything is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubted: Vec<String>,
    /// Files of checkpoints that had none when the vault was opened: nobody can tell whether the log was set back before that. Until
    /// the owner accepts it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_checkpoints: Vec<String>,
    /// The fingerprint of the key that the boundary daemon's answers are believed by: SHA-256 of its 32 bytes, in hexadecimal digits.
    /// Nothing where no boundary daemon is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boundary_key: Option<String>,
    /// Whether the daemon's memory may come into the swap; nothing where no daemon said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
}
