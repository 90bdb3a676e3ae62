//! Commands on memories, for the owner and for agents.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use stvor_vault::{Level, MemoryId};

/// `stvor vault store`, `recall`, ...
#[derive(Debug, Subcommand)]
pub(crate) enum MemoryCommand {
    /// Store standard input or a file as a memory
    Store(MemoryStore),
    /// Store a memory that corrects another one
    #[command(visible_alias = "update")]
    Supersede {
        /// The memory that is corrected
        id: MemoryId,
        #[command(flatten)]
        store: MemoryStore,
        /// That it has no end, also when what it corrects has one
        #[arg(long, conflicts_with = "ttl")]
        no_ttl: bool,
        /// That it takes the key of no profile, also when what it corrects takes one; for the owner
        #[arg(long, conflicts_with = "profile")]
        no_profile: bool,
    },
    /// Print the content of a memory
    Recall {
        /// The memory
        id: MemoryId,
        /// What for; needed from level 3 on
        #[arg(long, value_name = "TEXT", default_value = "")]
        justification: String,
    },
    /// Find memories that hold all words; a star at the end of a word for its beginnings
    Search {
        /// The words
        #[arg(required = true)]
        words: Vec<String>,
        #[command(flatten)]
        space: AnyNamespace,
    },
    /// List memories, newest first
    List {
        #[command(flatten)]
        space: AnyNamespace,
        /// Go on from where the page before ended
        #[arg(long, value_name = "PLACE", requires = "namespace")]
        before: Option<String>,
        /// Every page
        #[arg(long, conflicts_with = "before")]
        all: bool,
    },
    /// List the namespaces that there are, as the owner
    Namespaces,
    /// Destroy the key and the content of a memory, for good
    Forget {
        #[command(flatten)]
        end: MemoryEnd,
        /// Destroy the earlier versions that it corrected, too; also those of one that was forgotten before
        #[arg(long)]
        with_earlier: bool,
        /// Show what would be destroyed and what would be left, and destroy nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Close a memory for good, and keep it for the record
    Tombstone(MemoryEnd),
    /// Destroy memories whose time ran out (it also happens by itself)
    Purge,
    /// Say what a memory serves
    Link {
        /// The memory
        id: MemoryId,
        /// What it serves
        intent: String,
    },
    /// Take that back
    Unlink {
        /// The memory
        id: MemoryId,
        /// What it served
        intent: String,
    },
    /// End the pause of a memory that was recalled; takes the owner's secret
    EndPause {
        /// The memory
        id: MemoryId,
    },
    /// Find memories by what they serve
    ByIntent {
        /// What they serve
        intent: String,
    },
}

/// Which namespace.
#[derive(Debug, Clone, Args)]
pub(crate) struct Namespace {
    /// Whose memories, or which project's
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    pub(crate) namespace: String,
}

/// Which namespace, or all that there are.
#[derive(Debug, Clone, Args)]
pub(crate) struct AnyNamespace {
    /// Whose memories, or which project's [default: all for the owner, an agent's own for the agent]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
}

/// A memory that is to be stored.
#[derive(Debug, Args)]
#[command(after_help = "\
The content never stands on the command line, where other users of this
machine can see it.

Examples:
  echo \"Ann likes tea\" | stvor vault store --namespace home
  stvor vault store --file contract.pdf --level sealed --meta party=Acme --searchable party")]
pub(crate) struct MemoryStore {
    /// Whose memories, or which project's [default: default; of a correction that of what it corrects]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// How well it is kept: 0 ephemeral, 1 working, 2 private, 3 sealed, 4 vaulted, 5 black [default: working; of a correction
    /// that of what it corrects, and only the owner gives it a lower one]
    #[arg(short, long, value_name = "LEVEL")]
    pub(crate) level: Option<Level>,
    /// Read this file instead of standard input
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    /// What is known about it, as KEY=VALUE; can be repeated
    #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) metadata: Vec<(String, String)>,
    /// Key of --meta by whose value the owner may search above level 2; can be repeated
    #[arg(long, value_name = "KEY")]
    pub(crate) searchable: Vec<String>,
    /// What it serves; can be repeated
    #[arg(long = "intent", value_name = "TEXT")]
    pub(crate) intents: Vec<String>,
    /// Where it is from
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) source: String,
    /// How far to believe it [default: owner for the owner, agent for an agent]
    #[arg(long, value_name = "TRUST")]
    pub(crate) trust: Option<TrustTier>,
    /// Seconds that it lives [default of a correction: what is left of the time of what it corrects]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) ttl: Option<u64>,
    /// Seconds between two recalls [default: 60 from level 3 on; of a correction as of what it corrects]; an hour at most for an
    /// agent, and for other agents only below level 3
    #[arg(long, value_name = "SECONDS")]
    pub(crate) cooldown: Option<u64>,
    /// Profile whose key it takes, too, to be read [default of a correction: that of what it corrects, and only the owner gives
    /// it another one]
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
}

/// How far to believe a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TrustTier {
    /// It came from outside: a page, a file, a message
    Untrusted,
    /// An agent concluded it
    Agent,
    /// The owner said it
    Owner,
}

/// The end of a memory.
#[derive(Debug, Args)]
pub(crate) struct MemoryEnd {
    /// The memory
    pub(crate) id: MemoryId,
    /// Why
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) reason: String,
    #[command(flatten)]
    pub(crate) sure: super::super::Sure,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("metadata is KEY=VALUE".to_owned()),
    }
}
