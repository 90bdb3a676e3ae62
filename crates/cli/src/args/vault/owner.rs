//! Commands of the owner.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use stvor_vault::MemoryId;

use super::super::Life;
use super::{ArchiveKey, Cost, SecondSecret, TokenHow, TpmBinding};

/// `stvor vault approvals ...`
#[derive(Debug, Subcommand)]
pub(crate) enum ApprovalsCommand {
    /// List what waits, and what was decided
    List,
    /// Allow one recall, once
    Approve {
        /// The request
        request: MemoryId,
        /// Seconds that it may be used [default: 600]
        #[arg(long = "for", value_name = "SECONDS")]
        seconds: Option<u64>,
    },
    /// Do not allow it
    Deny {
        /// The request
        request: MemoryId,
    },
    /// Ask for one, as an agent (needs --credential-file)
    Request {
        /// The memory
        memory: MemoryId,
        /// What for; the recall gives the same words as --justification
        #[arg(long, value_name = "TEXT")]
        purpose: String,
    },
}

/// `stvor vault lockdown ...`
#[derive(Debug, Subcommand)]
pub(crate) enum LockdownCommand {
    /// Refuse every request from now on; needs no secret
    Enter {
        /// Why
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Let everything go on; takes the owner's secret itself
    Leave,
}

/// `stvor vault log`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stvor vault log --refused                        what was refused lately
  stvor vault log --said \"monthly report\"          recalls with these words in their justification
  stvor vault log --actor assistant --all --json   everything that one agent ever asked")]
pub(crate) struct VaultLog {
    /// Of this agent, or owner, vault, stranger
    #[arg(long, value_name = "NAME")]
    pub(crate) actor: Option<String>,
    /// Of this operation, for example recall, forget, enter-lockdown
    #[arg(long, value_name = "NAME")]
    pub(crate) operation: Option<String>,
    /// On this memory
    #[arg(long, value_name = "ID")]
    pub(crate) memory: Option<MemoryId>,
    /// Refused ones only
    #[arg(long)]
    pub(crate) refused: bool,
    /// Whose justification, purpose or reason holds all these words
    #[arg(long, value_name = "WORDS")]
    pub(crate) said: Option<String>,
    /// From before this event
    #[arg(long, value_name = "NUMBER")]
    pub(crate) before: Option<u64>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50, conflicts_with = "all")]
    pub(crate) limit: usize,
    /// All that fit
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) archives: ArchiveKey,
}

/// `stvor vault proof ...`
#[derive(Debug, Subcommand)]
pub(crate) enum ProofCommand {
    /// Write an event and the proof that the log holds it
    Make {
        /// The number of the event (see log)
        event: u64,
        /// Directory for event-N.json and event-N.proof
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
        #[command(flatten)]
        archives: ArchiveKey,
    },
    /// Check such a proof; needs no vault
    Check {
        /// The event
        event: PathBuf,
        /// The proof
        proof: PathBuf,
        /// The log's verifier key, as `stvor vault status` shows it; can be repeated for keys that signed before
        #[arg(long, value_name = "KEY", required = true)]
        verifier: Vec<String>,
    },
    /// Write the proof that the log of one checkpoint goes on from that of an earlier one
    ///
    /// A checkpoint is a signed note of the file `checkpoints` in a file of its own, or any proof of an event or of two checkpoints,
    /// for each carries one.
    Consistency {
        /// The earlier checkpoint
        old: PathBuf,
        /// The later one; without it the newest of the vault
        new: Option<PathBuf>,
        /// File for the proof, which carries the later checkpoint
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Check such a proof of two checkpoints; needs no vault
    CheckConsistency {
        /// The earlier checkpoint
        old: PathBuf,
        /// The proof
        proof: PathBuf,
        /// The later checkpoint that it has to be about
        new: Option<PathBuf>,
        /// The log's verifier key, as `stvor vault status` shows it; can be repeated for keys that signed
        /// before: the later checkpoint has to be signed with the first
        #[arg(long, value_name = "KEY", required = true)]
        verifier: Vec<String>,
    },
}

/// `stvor vault passphrase`
#[derive(Debug, Args)]
#[command(after_help = "\
The old secret comes as for every other command (--passphrase-file, --keyfile,
or a prompt). No memory is written anew. Backups open with the old one still.

With one of --new-second... it is the second secret, of levels 4 and 5, that is changed, from
the one that --second... gives; or the vault gets its first one. The owner's own secret stays then,
unless a new one is named too.")]
pub(crate) struct VaultPassphrase {
    #[command(flatten)]
    pub(crate) owner: PassphraseChange,
    #[command(flatten)]
    pub(crate) new_second: NewSecond,
    #[command(flatten)]
    pub(crate) second: SecondSecret,
}

/// A new second secret, of levels 4 and 5: a passphrase or a keyfile.
#[derive(Debug, Args)]
pub(crate) struct NewSecond {
    /// Ask for a new second secret, of levels 4 and 5
    #[arg(long, conflicts_with_all = ["new_second_passphrase_file", "new_second_passphrase_fd", "new_second_keyfile"])]
    pub(crate) new_second: bool,
    /// File that holds the new second passphrase (its first line)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["new_second_passphrase_fd", "new_second_keyfile"])]
    pub(crate) new_second_passphrase_file: Option<PathBuf>,
    /// File descriptor to read the new second passphrase from
    #[arg(long, value_name = "FD", conflicts_with = "new_second_keyfile")]
    pub(crate) new_second_passphrase_fd: Option<u32>,
    /// Key file in place of a new second passphrase; it is made if it is not there
    #[arg(long, value_name = "FILE")]
    pub(crate) new_second_keyfile: Option<PathBuf>,
}

impl From<&NewSecond> for SecondSecret {
    fn from(new: &NewSecond) -> Self {
        Self {
            second: new.new_second,
            second_passphrase_file: new.new_second_passphrase_file.clone(),
            second_passphrase_fd: new.new_second_passphrase_fd,
            second_keyfile: new.new_second_keyfile.clone(),
        }
    }
}

/// A new secret of the owner.
#[derive(Debug, Args)]
pub(crate) struct PassphraseChange {
    /// File that holds the new passphrase (its first line)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["new_passphrase_fd", "new_keyfile"])]
    pub(crate) new_passphrase_file: Option<PathBuf>,
    /// File descriptor to read the new passphrase from
    #[arg(long, value_name = "FD", conflicts_with = "new_keyfile")]
    pub(crate) new_passphrase_fd: Option<u32>,
    /// Key file in place of a passphrase; it is made if it is not there
    #[arg(long, value_name = "FILE")]
    pub(crate) new_keyfile: Option<PathBuf>,
    /// Seal the key by this machine's TPM; the new passphrase is its PIN
    #[arg(long, conflicts_with = "new_keyfile")]
    pub(crate) new_tpm: bool,
    /// A physical token gives the new key: fido2, yubikey, yubikey=1 or software=FILE
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["new_passphrase_file", "new_passphrase_fd", "new_keyfile", "new_tpm"])]
    pub(crate) new_token: Option<TokenHow>,
    #[command(flatten)]
    pub(crate) binding: TpmBinding,
    /// What one guess of the new passphrase costs
    #[arg(long, value_name = "COST", default_value = "sensitive")]
    pub(crate) cost: Cost,
}

impl PassphraseChange {
    /// Whether a new secret is named, so that none has to be asked for.
    pub(crate) fn is_named(&self) -> bool {
        self.new_tpm
            || self.new_token.is_some()
            || self.new_passphrase_file.is_some()
            || self.new_passphrase_fd.is_some()
            || self.new_keyfile.is_some()
    }
}

/// `stvor vault boundary ...`
#[derive(Debug, Subcommand)]
pub(crate) enum BoundaryCommand {
    /// Make the key that its answers are signed with
    Key {
        /// The file of the private key; the public one goes beside it, with .pub at the end
        file: PathBuf,
    },
    /// Answer questions with a mode that is declared, not measured
    #[command(after_help = "\
The mode is read anew for each question when it comes from a file, so that
whoever sets the machine up writes one word into that file.")]
    Serve {
        /// The file of the private key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Its socket
        #[arg(long, value_name = "SOCKET")]
        socket: PathBuf,
        /// The mode of the machine
        #[arg(
            long,
            value_name = "MODE",
            conflicts_with = "mode_file",
            required_unless_present = "mode_file"
        )]
        mode: Option<BoundaryMode>,
        /// File that holds the mode; what can not be read or understood is online
        #[arg(long, value_name = "FILE")]
        mode_file: Option<PathBuf>,
        #[command(flatten)]
        life: Life,
    },
}

/// How far the machine is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BoundaryMode {
    /// On the network
    Online,
    /// On the network, with some ways closed
    Restricted,
    /// Off the network
    Offline,
    /// Off the network, nobody else in the room
    ColdRoom,
}

/// `stvor mcp`
#[derive(Debug, Args)]
#[command(after_help = "\
Standard input and output carry the Model Context Protocol and nothing else.
The agent's credential comes from a file that only you can read, or from
STVOR_VAULT_CREDENTIAL. Passphrases are never asked for through it: approve
with `stvor vault approvals` in a terminal.

Example of a client's configuration:
  {\"mcpServers\": {\"memory\": {\"command\": \"stvor\",
    \"args\": [\"mcp\", \"--credential-file\", \"/home/me/assistant.cred\", \"--namespace\", \"home\"]}}}")]
pub(crate) struct McpArgs {
    #[command(flatten)]
    pub(crate) place: super::VaultPlace,
    /// Whose memories, or which project's, where the model does not say [default: the agent's only namespace]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
}
