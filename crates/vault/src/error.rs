//! What can go wrong, and why a request is refused.

use core::time::Duration;
use std::path::{Path, PathBuf};

use stvor_base::ErrorCode;
use stvor_crypto::CryptoError;
use stvor_keys::KeyError;
use stvor_tlog::TlogError;

use crate::level::Level;
use crate::memory::Trust;

/// Why a gate said no. Every refusal is logged before its answer leaves.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No keys are held.
    #[error("the vault is cold: no key is held; its owner opens it with `stvor vault unlock`")]
    Cold,
    /// The keys of this level are wiped.
    #[error("the vault is locked for level {level}; its owner opens it with `stvor vault unlock`")]
    Locked {
        /// The level asked for.
        level: Level,
    },
    /// The owner stopped everything.
    #[error("the vault is in lockdown; only its owner ends that, with `stvor vault lockdown leave`")]
    Lockdown,
    /// There is no such memory, or the caller may not know of it.
    #[error("there is no memory {0} that you may know of")]
    NotFound(String),
    /// The memory was there and is not any more.
    #[error("the memory is gone: {0}")]
    Gone(&'static str),
    /// The agent's credential does not reach that far.
    #[error("this agent may not {what}; its owner can enrol one that may")]
    NotAllowed {
        /// What it tried.
        what: &'static str,
    },
    /// What would be replaced is trusted more.
    #[error(
        "the memory is trusted as `{old}`, and what would replace it as `{new}`: only the owner replaces what is trusted more; \
         store it as `{old}` if it is that, or as a memory of its own"
    )]
    LessTrusted {
        /// How far the older memory is believed.
        old: Trust,
        /// And the new one.
        new: Trust,
    },
    /// The correction would be kept less well than what it corrects.
    #[error(
        "the memory is of level {old}, and what would correct it of level {new}: only the owner gives a correction a lower level; \
         leave the level out, or let the owner do it"
    )]
    LowerLevel {
        /// The level of the older memory.
        old: Level,
        /// The level of the new one.
        new: Level,
    },
    /// The correction would be read without the key of the profile of what it corrects.
    #[error(
        "the memory takes the key of the profile {0}, too: only the owner stores a correction without it; leave the profile out, \
         or let the owner do it"
    )]
    LeavesProfile(String),
    /// No justification was given.
    #[error("a memory of level {level} is recalled with a justification; say what it is for")]
    NoJustification {
        /// The memory's level.
        level: Level,
    },
    /// The owner did not approve this recall.
    #[error("the owner has not approved this recall; request it, and try again when it is granted")]
    NoApproval,
    /// What was asked for is not what would be granted.
    #[error("the request can not be granted any more: {0}; deny it, and let the agent ask again")]
    RequestOutdated(&'static str),
    /// The last recall was too short a while ago.
    #[error("the memory was recalled a short while ago; it can be recalled again in {} s", left.as_secs().max(1))]
    Cooldown {
        /// How long to wait.
        left: Duration,
    },
    /// The clock shows a time before that of the last event.
    #[error(
        "the clock was set back; until it shows the right time, levels 3 to 5 and memories with a pause stay closed, and nothing is stored whose time runs out"
    )]
    ClockBackwards,
    /// The boundary daemon said no, or nothing that counts.
    #[error("the boundary daemon does not allow it: {0}")]
    Boundary(String),
    /// The separate secret of level 4 is not open.
    #[error(
        "levels 4 and 5 open with a secret of their own; the owner gives it with `stvor vault unlock --second`"
    )]
    NoVaultedKey,
    /// The key of the memory's profile is not open.
    #[error("the profile {0} is closed; the owner opens it with `stvor vault profile open {0}`")]
    ProfileClosed(String),
    /// The memory's profile does not let it out.
    #[error("memories of the profile {0} are not exported")]
    NotExportable(String),
    /// No physical token answered.
    #[error("level 5 opens with a physical token that is present now")]
    NoToken,
    /// A one-time code is needed, or this one is not right.
    #[error("the one-time code is {0}; give the one that the app shows now")]
    OneTimeCode(&'static str),
    /// Too many wrong one-time codes.
    #[error("too many wrong one-time codes; try again in {} s", left.as_secs().max(1))]
    CodesBlocked {
        /// How long.
        left: Duration,
    },
    /// What was to be written holds a secret.
    #[error("the content looks like {kind}; store it at level 3 or above, or leave it out")]
    SecretDetected {
        /// What it looks like.
        kind: &'static str,
    },
    /// An auditor that looked at the plaintext said no.
    #[error("an auditor refused the memory: {0}")]
    Auditor(String),
    /// The agent's memories would take more than they may.
    #[error(
        "the memory takes {needed} bytes, and this agent's take {used} of {most} that they may; forget some, or its owner enrols it \
         anew with more (`stvor vault agents add --quota`)"
    )]
    Quota {
        /// Bytes that they take.
        used: u64,
        /// Bytes that this one needs.
        needed: u64,
        /// Bytes that they may take.
        most: u64,
    },
    /// The agent's requests wrote as much of the log as they may.
    #[error(
        "this agent's requests have written as much of the log as they may in a day ({most} bytes); try again in {} s, or its owner \
         enrols it anew with more (`stvor vault agents add --log-quota`)", left.as_secs().max(1)
    )]
    LogQuota {
        /// Bytes that they may write in a day.
        most: u64,
        /// How long until there is room for one more.
        left: Duration,
    },
    /// The agent had as much read as it may.
    #[error(
        "this agent's requests have read as much of the vault as they may in an hour; try again in {} min, and search fewer \
         or smaller namespaces", left.as_secs().div_ceil(60).max(1)
    )]
    ReadQuota {
        /// How long until it may have more read, in whole minutes.
        left: Duration,
    },
    /// The agent was refused too often.
    #[error("too many refused requests; wait a minute")]
    TooManyRefusals,
}

impl ErrorCode for Refusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Cold => "VAULT_COLD",
            Self::Locked { .. } => "VAULT_LOCKED",
            Self::Lockdown => "VAULT_LOCKDOWN",
            Self::NotFound(_) => "MEMORY_NOT_FOUND",
            Self::Gone(_) => "MEMORY_GONE",
            Self::NotAllowed { .. } => "AGENT_NOT_ALLOWED",
            Self::LessTrusted { .. } => "MEMORY_LESS_TRUSTED",
            Self::LowerLevel { .. } => "MEMORY_LOWER_LEVEL",
            Self::LeavesProfile(_) => "MEMORY_LEAVES_PROFILE",
            Self::NoJustification { .. } => "JUSTIFICATION_REQUIRED",
            Self::NoApproval => "APPROVAL_REQUIRED",
            Self::RequestOutdated(_) => "APPROVAL_OUTDATED",
            Self::Cooldown { .. } => "COOLDOWN",
            Self::ClockBackwards => "CLOCK_BACKWARDS",
            Self::Boundary(_) => "BOUNDARY_DENIED",
            Self::NoVaultedKey => "VAULTED_KEY_REQUIRED",
            Self::ProfileClosed(_) => "PROFILE_CLOSED",
            Self::NotExportable(_) => "PROFILE_NOT_EXPORTABLE",
            Self::NoToken => "TOKEN_REQUIRED",
            Self::OneTimeCode(_) => "ONE_TIME_CODE",
            Self::CodesBlocked { .. } => "ONE_TIME_CODES_BLOCKED",
            Self::SecretDetected { .. } => "SECRET_DETECTED",
            Self::Auditor(_) => "AUDITOR_REFUSED",
            Self::Quota { .. } => "AGENT_QUOTA",
            Self::LogQuota { .. } => "AGENT_LOG_QUOTA",
            Self::ReadQuota { .. } => "AGENT_READ_QUOTA",
            Self::TooManyRefusals => "TOO_MANY_REFUSALS",
        }
    }

    fn retryable(&self) -> bool {
        matches!(
            self,
            Self::Cold
                | Self::Locked { .. }
                | Self::ProfileClosed(_)
                | Self::NoApproval
                | Self::Cooldown { .. }
                | Self::OneTimeCode(_)
                | Self::CodesBlocked { .. }
                | Self::LogQuota { .. }
                | Self::ReadQuota { .. }
                | Self::TooManyRefusals
        )
    }
}

/// Why the vault did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// A gate said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The request makes no sense, or is past a limit.
    #[error("the request can not be served: {0}")]
    Invalid(String),
    /// What is named is not there.
    #[error("there is no {0}")]
    Unknown(String),
    /// Something stored is not what was stored.
    #[error("{place} was changed by somebody else than this vault: {reason}; run `stvor vault verify`")]
    Tampered {
        /// Where.
        place: String,
        /// How it shows.
        reason: String,
    },
    /// There is no vault there, or no part of it.
    #[error("there is no vault at {}; make one with `stvor vault init`", .0.display())]
    Missing(PathBuf),
    /// Something of this name is there already.
    #[error("{} is there already; it is not overwritten: choose another name", .0.display())]
    Exists(PathBuf),
    /// Another process has the vault open.
    #[error("the vault at {} is open in another process; talk to that one, or stop it", .0.display())]
    Busy(PathBuf),
    /// The vault was written by a newer program.
    #[error("the vault has version {found}, this program reads up to {known}; update the program")]
    TooNew {
        /// The version found.
        found: u32,
        /// The newest that this build reads.
        known: u32,
    },
    /// The vault or the backup was written by an older program, in a version that is not read any more.
    #[error(
        "it has version {found}, and this program reads from {known} on; export with the program that made it, and import"
    )]
    TooOld {
        /// The version found.
        found: u32,
        /// The oldest that this build reads.
        known: u32,
    },
    /// The log could not be written, so nothing was done.
    #[error(
        "nothing was done, because it could not be logged: {0}; make room or mend the disk, then try again"
    )]
    LogUnavailable(String),
    /// Something was destroyed, but is not overwritten on the disk yet.
    #[error(
        "it is done and logged, but what it destroyed is not overwritten on the disk yet: {0}; the vault goes on trying, \
         make room or mend the disk"
    )]
    WipePending(String),
    /// The daemon has no connection left for who connects.
    #[error(
        "the daemon is busy: too many connections wait that did not say yet who they are; try again in some seconds"
    )]
    Crowded,
    /// A decision on the dead-man switch did not reach its watcher yet.
    #[error(
        "it is decided and logged, but the watcher of {} does not know it yet and goes on as before: {reason}; put the directory \
         back in its place, the vault writes it then by itself (`stvor vault switch status`)",
        directory.display()
    )]
    WatcherNotTold {
        /// The watcher's directory.
        directory: PathBuf,
        /// Why it could not be written.
        reason: String,
    },
    /// What the dead-man switch would give out is not there.
    #[error(
        "the package of {heir} is not in {} as it was signed, so this heir would get nothing; arm the switch anew \
         (`stvor vault switch arm`)",
        directory.display()
    )]
    PackageMissing {
        /// The heir.
        heir: String,
        /// The watcher's directory.
        directory: PathBuf,
    },
    /// The system refused an operation on a file.
    #[error("{what} {}: {reason}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The database failed in a way that has no name of its own.
    #[error("the vault's database failed: {0}")]
    Database(String),
    /// Files of a backup do not follow each other.
    #[error(
        "the backups can not be put together: {0}; give a full one first, then those that build on it, in order"
    )]
    BackupChain(String),
    /// The backup is older than the newest checkpoint that is known.
    #[error(
        "the backup is older than what is known of the log: {lost} events would be lost; \
             restore a newer one, or accept the loss with --accept-loss"
    )]
    BackupOlder {
        /// How many events.
        lost: u64,
    },
    /// A proof does not prove, or what was to be proved is not true.
    #[error("not proven: {0}")]
    Unproven(&'static str),
    /// The vault was closed.
    #[error("the vault was closed while the request waited")]
    Closed,
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The log.
    #[error(transparent)]
    Log(#[from] TlogError),
    /// A primitive.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

impl VaultError {
    pub(crate) fn io(what: &'static str, path: &Path, error: &std::io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), reason: error.to_string() }
    }

    pub(crate) fn tampered(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Tampered { place: place.into(), reason: reason.into() }
    }

    pub(crate) fn unknown(what: impl Into<String>) -> Self {
        Self::Unknown(what.into())
    }

    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid(reason.into())
    }
}

impl ErrorCode for VaultError {
    fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::Invalid(_) => "VAULT_BAD_REQUEST",
            Self::Unknown(_) => "VAULT_NOT_FOUND",
            Self::Tampered { .. } => "VAULT_TAMPERED",
            Self::Missing(_) => "VAULT_MISSING",
            Self::Exists(_) => "VAULT_EXISTS",
            Self::Busy(_) => "VAULT_BUSY",
            Self::TooNew { .. } => "VAULT_TOO_NEW",
            Self::TooOld { .. } => "VAULT_TOO_OLD",
            Self::LogUnavailable(_) => "VAULT_LOG_UNAVAILABLE",
            Self::WipePending(_) => "VAULT_WIPE_PENDING",
            Self::Crowded => "VAULT_CROWDED",
            Self::WatcherNotTold { .. } => "VAULT_WATCHER_NOT_TOLD",
            Self::PackageMissing { .. } => "VAULT_PACKAGE_MISSING",
            Self::Io { .. } => "VAULT_IO",
            Self::Database(_) => "VAULT_DATABASE",
            Self::BackupChain(_) => "BACKUP_CHAIN",
            Self::BackupOlder { .. } => "BACKUP_OLDER",
            Self::Unproven(_) => "VAULT_UNPROVEN",
            Self::Closed => "VAULT_CLOSED",
            Self::Key(error) => error.code(),
            Self::Log(error) => error.code(),
            Self::Crypto(error) => error.code(),
        }
    }

    fn retryable(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.retryable(),
            Self::Busy(_)
            | Self::Crowded
            | Self::LogUnavailable(_)
            | Self::Io { .. }
            | Self::WatcherNotTold { .. } => true,
            Self::Key(error) => error.retryable(),
            Self::Log(error) => error.retryable(),
            Self::Crypto(error) => error.retryable(),
            _ => false,
        }
    }
}
