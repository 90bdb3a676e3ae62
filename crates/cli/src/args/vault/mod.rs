//! `stvor vault`: an owner's memories, and the agents that may use them.

mod archive;
mod keys;
mod memories;
mod owner;
mod recovery;
mod tokens;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::servers::Life;

pub(crate) use archive::*;
pub(crate) use keys::*;
pub(crate) use memories::*;
pub(crate) use owner::*;
pub(crate) use recovery::*;
pub(crate) use tokens::*;

/// `stvor vault`
#[derive(Debug, Args)]
#[command(after_help = "\
A first vault:
  stvor vault init                                 make it; asks for a passphrase
  stvor vault serve                                hold its keys and answer, in a terminal of its own
  stvor vault unlock                               begin your session
  stvor vault agents add assistant --namespace home --credential-out assistant.cred
  echo \"Tea at five\" | stvor vault store --namespace home --credential-file assistant.cred
  stvor vault search tea --namespace home --credential-file assistant.cred
  stvor vault verify                               read the whole log, and hold every memory against it

What the owner does takes the owner's secret: --passphrase-file, --passphrase-fd, --keyfile, --os-keyring, or a prompt.
With --credential-file (or STVOR_VAULT_CREDENTIAL) a command acts as that agent.")]
pub(crate) struct VaultArgs {
    #[command(flatten)]
    pub(crate) place: VaultPlace,
    #[command(subcommand)]
    pub(crate) command: VaultCommand,
}

/// Which vault, and who asks.
#[derive(Debug, Clone, Args)]
pub(crate) struct VaultPlace {
    /// Directory of the vault (or STVOR_VAULT) [default: vault in the data directory]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Vault")]
    pub(crate) vault: Option<PathBuf>,
    /// Directory of the daemon's sockets [default: the vault's]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Vault")]
    pub(crate) sockets: Option<PathBuf>,
    /// File that holds an agent's credential, to act as that agent (or STVOR_VAULT_CREDENTIAL)
    #[arg(long, global = true, value_name = "FILE", help_heading = "Vault")]
    pub(crate) credential_file: Option<PathBuf>,
    /// The owner's key is sealed by this machine's TPM; the passphrase that is given is its PIN (known by itself where a vault
    /// answers)
    #[arg(long, global = true, help_heading = "Vault", hide_short_help = true)]
    pub(crate) tpm: bool,
    /// The passphrase that is given is the recovery passphrase of a key in a TPM, which is not asked
    #[arg(long, global = true, help_heading = "Vault", hide_short_help = true)]
    pub(crate) tpm_recovery: bool,
    /// How the TPM is reached: device:PATH, tabrmd, swtpm:host=HOST,port=PORT [default: device:/dev/tpmrm0]
    #[arg(long, global = true, value_name = "PLACE", help_heading = "Vault", hide_short_help = true)]
    #[cfg_attr(not(feature = "tpm"), allow(dead_code, reason = "a build with the feature reads it"))]
    pub(crate) tpm_place: Option<String>,
    /// A physical token gives the owner's key: fido2, yubikey (yubikey=1 for slot 1), or software=FILE, which is no token:
    /// whoever copies that file has it
    #[arg(long, global = true, value_name = "TOKEN", help_heading = "Vault", hide_short_help = true)]
    pub(crate) owner_token: Option<TokenHow>,
    /// File that holds the PIN of the FIDO2 token that gives a key (its first line) [default: it is asked for]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Vault", hide_short_help = true)]
    pub(crate) token_pin_file: Option<PathBuf>,
    /// The passphrase that is given is the recovery passphrase of a key that a token gives, which is not asked
    #[arg(long, global = true, help_heading = "Vault", hide_short_help = true)]
    pub(crate) token_recovery: bool,
    /// A FIDO2 token that another program carries, at this socket: each CTAP message with its length before it, 4 bytes, big-endian
    #[arg(long, global = true, value_name = "SOCKET", hide = true)]
    pub(crate) fido2_socket: Option<PathBuf>,
}

/// How a new key in the TPM is bound, or one that a token gives.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TpmBinding {
    /// Registers (PCRs) of the TPM that have to stay as they are now, for example 0,2,7; needs --recovery-passphrase-file
    #[arg(long, value_name = "N,N", value_delimiter = ',', requires = "recovery_passphrase_file")]
    #[cfg_attr(not(feature = "tpm"), allow(dead_code, reason = "a build with the feature reads it"))]
    pub(crate) tpm_pcrs: Vec<u8>,
    /// File that holds a recovery passphrase (its first line), which opens the key without TPM or token
    #[arg(long, value_name = "FILE")]
    pub(crate) recovery_passphrase_file: Option<PathBuf>,
}

/// `stvor vault ...`
#[derive(Debug, Subcommand)]
pub(crate) enum VaultCommand {
    /// Make a vault
    Init(VaultInit),
    /// Hold the keys of a vault and answer its owner and agents, until it is ended
    Serve(VaultServe),
    /// Begin the owner's session
    Unlock(VaultUnlock),
    /// End the owner's session: the keys of levels 2 and up are wiped
    Lock,
    /// Show the state, and what is not contained
    Status,
    #[command(flatten)]
    Memories(MemoryCommand),
    #[command(flatten)]
    Recovery(RecoveryCommand),
    /// Enrol and remove agents
    Agents {
        #[command(subcommand)]
        command: AgentsCommand,
    },
    /// List, grant and deny what agents ask you to approve
    Approvals {
        #[command(subcommand)]
        command: ApprovalsCommand,
    },
    /// Stop everything, or let it go on
    Lockdown {
        #[command(subcommand)]
        command: LockdownCommand,
    },
    /// Read the log, newest first: what was asked, by whom, with which justification
    Log(VaultLog),
    /// Read the whole log, and hold every memory against it
    Verify(VaultVerify),
    /// Prove an event of the log to somebody who has only its verifier key
    Proof {
        #[command(subcommand)]
        command: ProofCommand,
    },
    /// Change the owner's passphrase or keyfile, or the second secret
    Passphrase(VaultPassphrase),
    /// Make, open and rotate profiles: keys of their own for some memories
    Profile {
        #[command(subcommand)]
        command: ProfileCommand,
    },
    /// Change the root key, or the key that signs the log
    Rotate(VaultRotate),
    /// Run the reference boundary daemon, which levels 3 to 5 ask
    Boundary {
        #[command(subcommand)]
        command: BoundaryCommand,
    },
    /// Print what the daemon counts, in the text format of Prometheus
    Metrics,
    /// Find out what is wrong with the vault and how to fix it
    Doctor {
        /// Where backups are, to say how old the newest is while the vault is cold; can be repeated [default: where the further lists
        /// of forgotten memories are]
        #[arg(long, value_name = "DIR")]
        backups: Vec<PathBuf>,
    },
}

/// The second secret, of level 4.
#[derive(Debug, Clone, Args)]
pub(crate) struct SecondSecret {
    /// Ask for the second secret, of level 4
    #[arg(long, conflicts_with_all = ["second_passphrase_file", "second_passphrase_fd", "second_keyfile"])]
    pub(crate) second: bool,
    /// File that holds the second passphrase (its first line)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["second_passphrase_fd", "second_keyfile"])]
    pub(crate) second_passphrase_file: Option<PathBuf>,
    /// File descriptor to read the second passphrase from
    #[arg(long, value_name = "FD", conflicts_with = "second_keyfile")]
    pub(crate) second_passphrase_fd: Option<u32>,
    /// Key file in place of a second passphrase
    #[arg(long, value_name = "FILE")]
    pub(crate) second_keyfile: Option<PathBuf>,
}

impl SecondSecret {
    /// Whether one is offered.
    pub(crate) fn is_named(&self) -> bool {
        self.second
            || self.second_passphrase_file.is_some()
            || self.second_passphrase_fd.is_some()
            || self.second_keyfile.is_some()
    }
}

/// `stvor vault init`
#[derive(Debug, Args)]
pub(crate) struct VaultInit {
    /// Name of the log, which its checkpoints carry [default: stvor.local/vault/ and 8 random digits]
    #[arg(long, value_name = "NAME")]
    pub(crate) origin: Option<String>,
    /// What one guess of a passphrase costs
    #[arg(long, value_name = "COST", default_value = "sensitive")]
    pub(crate) cost: Cost,
    #[command(flatten)]
    pub(crate) second: SecondSecret,
    #[command(flatten)]
    pub(crate) binding: TpmBinding,
}

/// What one guess of a passphrase costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cost {
    /// 1 GiB of memory, 4 passes: seconds
    Sensitive,
    /// 256 MiB, 3 passes
    Moderate,
    /// 64 MiB, 3 passes: for small machines
    Interactive,
}

/// `stvor vault serve`
#[derive(Debug, Args)]
#[command(after_help = "\
The first line of standard output tells that both sockets are there. Ctrl-C,
SIGTERM and SIGHUP end the daemon: its keys are wiped, and the log says so.")]
pub(crate) struct VaultServe {
    /// Begin the owner's session at once
    #[arg(long)]
    pub(crate) unlock: bool,
    #[command(flatten)]
    pub(crate) second: SecondSecret,
    /// A further file for the log's checkpoints, best on another disk; can be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoints: Vec<PathBuf>,
    /// A further list of the memories that no restore may bring back, best beside the backups; can be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) forgotten: Vec<PathBuf>,
    /// Socket of the boundary daemon, which levels 3 to 5 ask
    #[arg(long, value_name = "SOCKET", requires = "boundary_key")]
    pub(crate) boundary: Option<PathBuf>,
    /// File that holds the boundary daemon's public key
    #[arg(long, value_name = "FILE", requires = "boundary")]
    pub(crate) boundary_key: Option<PathBuf>,
    /// Socket of a witness, which is asked to sign the log while it grows
    #[arg(long, value_name = "SOCKET", requires = "witness_key")]
    pub(crate) witness: Option<PathBuf>,
    /// The witness's key, as it prints it
    #[arg(long, value_name = "KEY", requires = "witness")]
    pub(crate) witness_key: Option<String>,
    /// Seconds between two times that the witness is asked
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) witness_every: u64,
    /// Append an object for each refusal, and for a log that can not be written, to this file; all but refusals are told on standard
    /// error, too, with or without it
    #[arg(long, value_name = "FILE")]
    pub(crate) alerts: Option<PathBuf>,
    /// Give memories out that look like orders to an agent (they are refused otherwise)
    #[arg(long)]
    pub(crate) allow_injections: bool,
    /// Serve only where what the process holds in memory can not come into the swap
    #[arg(long)]
    pub(crate) require_locked_memory: bool,
    /// Isolated mode: user who may use the owner's socket, when the daemon has a user of its own; can be repeated
    #[arg(long = "owner", value_name = "USER", help_heading = "Isolated mode")]
    pub(crate) owners: Vec<String>,
    /// Isolated mode: further user who may use the agents' socket; can be repeated
    #[arg(long = "agent-user", value_name = "USER", help_heading = "Isolated mode")]
    pub(crate) agent_users: Vec<String>,
    /// Do not restrict what the process may ask the system for (Linux: no internet socket, no other program)
    #[arg(long, hide = true)]
    pub(crate) no_sandbox: bool,
    #[command(flatten)]
    pub(crate) life: Life,
}

/// `stvor vault unlock`
#[derive(Debug, Args)]
pub(crate) struct VaultUnlock {
    #[command(flatten)]
    pub(crate) second: SecondSecret,
}

/// `stvor vault agents ...`
#[derive(Debug, Subcommand)]
pub(crate) enum AgentsCommand {
    /// Enrol an agent, and mint its credential
    Add {
        /// What it is called in the log
        name: String,
        /// Namespace that it may use; a star at the end for all that begin so; can be repeated
        #[arg(long = "namespace", value_name = "NAMESPACE", required = true)]
        namespaces: Vec<String>,
        /// The highest level that it may store and ask for
        #[arg(long, value_name = "LEVEL", default_value = "working")]
        highest: stvor_vault::Level,
        /// It may not store, correct or forget
        #[arg(long)]
        read_only: bool,
        /// Bytes that its memories may take, with what is known of each [default: 1073741824]
        #[arg(long, value_name = "BYTES")]
        quota: Option<u64>,
        /// Which memories below level 3 it may correct, link and end: those that it stored, or any in its namespaces
        #[arg(long, value_name = "WHICH", default_value = "own")]
        ends: AgentEnds,
        /// Bytes that its requests may add to the log in a day [default: 268435456]
        #[arg(long, value_name = "BYTES")]
        log_quota: Option<u64>,
        /// Write the credential to this file, which only you can read, in place of showing it
        #[arg(long, value_name = "FILE")]
        credential_out: Option<PathBuf>,
    },
    /// List the agents
    List,
    /// Remove an agent; its credential is worth nothing from then on
    Revoke {
        /// Its name
        name: String,
    },
}

/// Which memories an agent may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum AgentEnds {
    /// Those that it stored
    Own,
    /// Any in its namespaces
    Any,
}

/// `stvor vault verify`
#[derive(Debug, Args)]
pub(crate) struct VaultVerify {
    /// Open every content whose key is held, too, and check it against its keyed hash
    #[arg(long)]
    pub(crate) content: bool,
    /// Accept that a file of checkpoints had none when the vault was opened, where you know why
    #[arg(long)]
    pub(crate) accept_missing: bool,
    #[command(flatten)]
    pub(crate) archives: ArchiveKey,
}
