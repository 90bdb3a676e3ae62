//! Commands for backups, recovery, tokens and proofs.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use stvor_vault::{Level, MemoryId};

use super::super::Life;
use super::{
    ArchiveMake, CodesCommand, Namespace, NewTokens, PassphraseChange, SecondSecret, VaultPrune,
    VaultTokenCommand,
};

/// Commands that bring things back, and what they need beforehand.
#[derive(Debug, Subcommand)]
pub(crate) enum RecoveryCommand {
    /// Make, list and rotate backups
    Backup {
        #[command(subcommand)]
        command: BackupCommand,
    },
    /// Bring the vault back from backups, all of it or nothing; the daemon must not run
    Restore(VaultRestore),
    /// Write everything that the owner can read, one JSON object a line
    #[command(after_help = "\
Each memory is recalled, through every gate. What a gate keeps comes without content, with the code of why. Of
level 5 that is all but one: a touch of a token opens one recall.")]
    Export {
        /// The file, which must not be there; standard output if it is left out
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Write what can still be read of a vault that does not open; the daemon must not run
    #[command(after_help = "\
For a vault whose log is damaged or was cut, and of which there is no backup. Memories of level 3 and
above come without content: each of their recalls has to be logged. With --unlogged those of level 3 are
read all the same, and with the second secret those of level 4; level 5 takes a vault that opens.
`stvor vault import` takes the file over into a new vault.")]
    Salvage {
        /// Read memories of level 3 too, although nothing logs that; and of level 4, with the second secret
        #[arg(long)]
        unlogged: bool,
        #[command(flatten)]
        second: SecondSecret,
        /// The file, which must not be there
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Write the log to a file, from which each event can be proved when the vault is gone
    Archive(ArchiveMake),
    /// Remove events from the database that an archive holds
    #[command(after_help = "\
The archive is read whole first. The log's hashes stay, so every proof goes on verifying, and so do
events that something still depends on: the newest of each memory, of each pause, of the lockdown, and
the commitments of proofs. All of the others are removed, or none, and their room goes back to the file
system.")]
    Prune(VaultPrune),
    /// Split the vault's keys among people
    Escrow {
        #[command(subcommand)]
        command: EscrowCommand,
    },
    /// Open the vault with shares and give it a new secret; the daemon must not run
    Recover(VaultRecover),
    /// Leave memories to heirs when you have been silent for too long
    Switch {
        #[command(subcommand)]
        command: SwitchCommand,
    },
    /// Watch somebody's dead-man switch: give its packages out when the owner is silent
    Watch(VaultWatch),
    /// Enrol and use physical tokens, for level 5
    Token {
        #[command(subcommand)]
        command: VaultTokenCommand,
    },
    /// Enrol an app for one-time codes, which approvals then take
    Codes {
        #[command(subcommand)]
        command: CodesCommand,
    },
    /// Prove a property of a memory without showing it, or check such a proof
    Property {
        #[command(subcommand)]
        command: PropertyCommand,
    },
    /// Have the log signed by a witness, hold it against one, or be one
    Witness {
        #[command(subcommand)]
        command: WitnessCommand,
    },
    /// Take over what `stvor vault export` wrote, or the file of the official MCP memory server
    Import(ImportFile),
    /// Take over the memories of the Python program memory-vault
    ImportPython(ImportPython),
}

/// How a backup is opened.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct BackupKey {
    /// File with age identities (AGE-SECRET-KEY-1...)
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// File that holds the backup's passphrase (its first line)
    #[arg(long, value_name = "FILE")]
    pub(crate) backup_passphrase_file: Option<PathBuf>,
}

/// `stvor vault backup ...`
#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Make one
    #[command(group(ArgGroup::new("seal").args(["to", "backup_passphrase_file"]).required(true)))]
    Make {
        /// Directory for the file
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Age key (age1...) that can open it; can be repeated
        #[arg(long, value_name = "RECIPIENT")]
        to: Vec<String>,
        /// File that holds a passphrase for it (its first line)
        #[arg(long, value_name = "FILE")]
        backup_passphrase_file: Option<PathBuf>,
        /// Only what changed since the newest one
        #[arg(long)]
        incremental: bool,
        /// A note for people
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
    },
    /// List those that the vault remembers
    List,
    /// Remove files that no rule keeps; the newest and what is built on always stay
    Rotate {
        /// Directory of the files
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Keep the newest so many
        #[arg(long, value_name = "N", default_value_t = 7)]
        last: usize,
        /// Keep the newest of so many days
        #[arg(long, value_name = "N", default_value_t = 0)]
        daily: usize,
        /// Keep the newest of so many weeks
        #[arg(long, value_name = "N", default_value_t = 0)]
        weekly: usize,
        /// Keep the newest of so many months
        #[arg(long, value_name = "N", default_value_t = 0)]
        monthly: usize,
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
}

/// `stvor vault restore`
#[derive(Debug, Args)]
pub(crate) struct VaultRestore {
    /// The backups: a full one, then those that build on it, in order
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) key: BackupKey,
    /// Lose the events that were logged after the backup
    #[arg(long)]
    pub(crate) accept_loss: bool,
    /// Bring back what is sound where something in the backup is damaged
    #[arg(long)]
    pub(crate) accept_damage: bool,
    /// A further list of forgotten memories; can be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) forgotten: Vec<PathBuf>,
    /// A further file of checkpoints to hold the log against; can be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoints: Vec<PathBuf>,
}

/// `stvor vault escrow ...`
#[derive(Debug, Subcommand)]
pub(crate) enum EscrowCommand {
    /// Split the keys, one sealed share for each keeper
    Make {
        /// Keeper and age key; can be repeated
        #[arg(long = "keeper", value_name = "NAME=RECIPIENT", required = true)]
        keepers: Vec<String>,
        /// How many shares open the vault
        #[arg(long, value_name = "K")]
        needed: u8,
        /// What the shares are of, for people
        #[arg(long, value_name = "TEXT", default_value = "STVOR vault")]
        label: String,
        /// Directory for the sealed shares
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        #[command(flatten)]
        second: SecondSecret,
    },
    /// List the sets that were made
    List,
}

/// `stvor vault recover`
#[derive(Debug, Args)]
#[command(after_help = "\
A keeper opens the own share with: age -d -i key.txt share-....age > share.txt
The new secret is asked for, or comes with --new-passphrase-file.")]
pub(crate) struct VaultRecover {
    /// A share that its keeper opened; can be repeated
    #[arg(long = "share", value_name = "FILE", required = true)]
    pub(crate) shares: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) new: PassphraseChange,
    #[command(flatten)]
    pub(crate) second: SecondSecret,
    #[command(flatten)]
    pub(crate) tokens: NewTokens,
}

/// `stvor vault switch ...`
#[derive(Debug, Subcommand)]
pub(crate) enum SwitchCommand {
    /// Arm it, or make its packages anew
    Arm {
        /// Days for which you may be silent
        #[arg(long, value_name = "DAYS")]
        days: u64,
        /// Heir and age key; can be repeated
        #[arg(long = "heir", value_name = "NAME=RECIPIENT", required = true)]
        heirs: Vec<String>,
        /// Memory for all of them; can be repeated
        #[arg(long = "memory", value_name = "ID", required = true)]
        memories: Vec<MemoryId>,
        /// Directory that the watcher watches
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Say that you are there
    CheckIn,
    /// Disarm it, and remove the packages
    Disarm,
    /// Show what it is set to, and which watchers do not know it yet
    Status,
    /// Give up to tell a watcher whose directory is gone for good
    GiveUp {
        /// The directory, as `switch status` shows it
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
}

/// `stvor vault watch`
#[derive(Debug, Args)]
#[command(after_help = "\
It goes on after a release: an owner who checks in again is waited for again. A clock
that is ahead after a restart is believed when the machine was up with it for an hour, or
for a day (over restarts, taken together) if it is ahead by a month or more. With --once
a state that can not be written is an error: the next run would count from the start.")]
pub(crate) struct VaultWatch {
    /// Directory with the packages and the check-ins
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Directory that the packages are given out in
    #[arg(long, value_name = "DIR")]
    pub(crate) release: PathBuf,
    /// File for what the watcher knows
    #[arg(long, value_name = "FILE")]
    pub(crate) state: PathBuf,
    /// The key of the check-ins, as `stvor vault switch arm` showed it
    #[arg(long, value_name = "KEY")]
    pub(crate) verifier: String,
    /// Look once and end
    #[arg(long)]
    pub(crate) once: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 60, conflicts_with = "once", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) every: u64,
    #[command(flatten)]
    pub(crate) life: Life,
}

/// A time, in milliseconds since the Unix epoch.
fn millis(text: &str) -> Result<u64, String> {
    if let Ok(millis) = text.parse() {
        return Ok(millis);
    }
    let time: Option<jiff::Timestamp> = text.parse().ok();
    let millis = time.and_then(|time| u64::try_from(time.as_millisecond()).ok());
    millis.ok_or_else(|| "a time is RFC 3339 (2027-01-15T08:00:00Z), or milliseconds since 1970".to_owned())
}

/// What is claimed of a memory.
#[derive(Debug, Clone, Copy, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ClaimArgs {
    /// It is there
    #[arg(long)]
    pub(crate) exists: bool,
    /// Its level is at most this
    #[arg(long, value_name = "LEVEL")]
    pub(crate) level_at_most: Option<Level>,
    /// It was stored at this time or before (RFC 3339, or milliseconds since 1970)
    #[arg(long, value_name = "TIME", value_parser = millis)]
    pub(crate) stored_by: Option<u64>,
    /// It was stored at this time or after (RFC 3339, or milliseconds since 1970)
    #[arg(long, value_name = "TIME", value_parser = millis)]
    pub(crate) stored_since: Option<u64>,
}

/// `stvor vault property ...`
#[derive(Debug, Subcommand)]
pub(crate) enum PropertyCommand {
    /// Prove a claim
    Prove {
        /// The memory
        memory: MemoryId,
        #[command(flatten)]
        claim: ClaimArgs,
        /// The verifier's word
        #[arg(long, value_name = "TEXT")]
        audience: String,
        /// The file for the proof
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Check a proof or an attestation; needs no vault
    Check {
        /// The file
        proof: PathBuf,
        /// The word that you asked for (a proof is for one, an attestation for everybody)
        #[arg(long, value_name = "TEXT")]
        audience: Option<String>,
        /// The log's verifier key; can be repeated
        #[arg(long, value_name = "KEY", required = true)]
        verifier: Vec<String>,
        /// Check too that the content in this file is that of the memory (with --opening)
        #[arg(long, value_name = "FILE", requires = "opening")]
        content: Option<PathBuf>,
        /// What `property open` wrote
        #[arg(long, value_name = "FILE", requires = "content")]
        opening: Option<PathBuf>,
    },
    /// Write what shows, beside a proof, that a content is that of the memory
    Open {
        /// The memory
        memory: MemoryId,
        /// The file for it, which only its owner may read
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Sign a statement with the log's key
    Attest {
        /// One line
        statement: String,
    },
}

/// `stvor vault witness ...`
#[derive(Debug, Subcommand)]
pub(crate) enum WitnessCommand {
    /// Have the newest checkpoint signed
    Ask {
        /// The witness's socket
        #[arg(long, value_name = "SOCKET")]
        socket: PathBuf,
        /// The witness's key
        #[arg(long, value_name = "KEY")]
        key: String,
    },
    /// Hold the log against what the witness signed last
    Verify {
        /// The witness's socket
        #[arg(long, value_name = "SOCKET")]
        socket: PathBuf,
        /// The witness's key
        #[arg(long, value_name = "KEY")]
        key: String,
    },
    /// Be a witness
    Serve {
        /// Directory for its key and memory
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Its name, in its key
        #[arg(long, value_name = "NAME", default_value = "stvor.local/witness")]
        name: String,
        /// Its socket
        #[arg(long, value_name = "SOCKET")]
        socket: PathBuf,
        /// Let programs of all users ask (mode 0666); without it, those of this user only (0600)
        #[arg(long)]
        shared: bool,
        /// A log's verifier key to trust; can be repeated
        #[arg(long = "log", value_name = "KEY")]
        logs: Vec<String>,
        #[command(flatten)]
        life: Life,
    },
}

/// `stvor vault import`
#[derive(Debug, Args)]
#[command(after_help = "\
Lines of an export keep their namespaces, levels, metadata and what is left of their time; they get
new names. Those without content are passed over. Nothing is stored of a file that is not understood.
When it stops half-way, the same command goes on: what is there already is passed over.
The exit code tells when a memory was left out.")]
pub(crate) struct ImportFile {
    /// The file: one JSON object a line
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) space: Namespace,
    /// The level of what an MCP memory server kept
    #[arg(long, value_name = "LEVEL", default_value = "private")]
    pub(crate) level: Level,
    /// The lowest level that a memory gets, whatever the file says
    #[arg(long, value_name = "LEVEL", default_value = "ephemeral")]
    pub(crate) minimum_level: Level,
    /// Believe each memory as far as the file says, `owner` too: for an export that nobody else could write to
    #[arg(long)]
    pub(crate) keep_trust: bool,
}

/// `stvor vault import-python`
#[derive(Debug, Args)]
pub(crate) struct ImportPython {
    /// The old program's vault.db, or one of its backups
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) space: Namespace,
    /// The lowest level that a memory gets: the old program does not authenticate levels
    #[arg(long, value_name = "LEVEL", default_value = "ephemeral")]
    pub(crate) minimum_level: Level,
    /// Key file of one profile (keys/PROFILE.key); can be repeated
    #[arg(long = "old-keyfile", value_name = "PROFILE=FILE")]
    pub(crate) keyfiles: Vec<String>,
    /// File that holds the old passphrase (its first line)
    #[arg(long, value_name = "FILE")]
    pub(crate) old_passphrase_file: Option<PathBuf>,
    /// File that holds the passphrase of the backup (its first line); says that FILE is a backup
    #[arg(long, value_name = "FILE")]
    pub(crate) backup_passphrase_file: Option<PathBuf>,
}
