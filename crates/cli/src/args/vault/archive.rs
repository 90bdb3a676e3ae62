//! Arguments about archives of the log.

use std::path::PathBuf;

use clap::Args;

/// `stvor vault archive`
#[derive(Debug, Args)]
pub(crate) struct ArchiveMake {
    /// The file, which must not be there
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Age key (age1...) that can open it; can be repeated
    #[arg(long, value_name = "RECIPIENT", required = true)]
    pub(crate) to: Vec<String>,
    /// Write what was said to requests, too: justifications, purposes and reasons
    #[arg(long)]
    pub(crate) words: bool,
}

/// `stvor vault prune`
#[derive(Debug, Args)]
pub(crate) struct VaultPrune {
    /// The archive
    pub(crate) archive: PathBuf,
    /// File with the age identities (AGE-SECRET-KEY-1...) that open it
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: PathBuf,
    /// Also when what was said to requests is not in the archive, and is lost by this
    #[arg(long)]
    pub(crate) lose_words: bool,
}

/// Archives that are read, too, or in place of the vault.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Archived events")]
pub(crate) struct ArchiveKey {
    /// An archive of the log (see `stvor vault archive`); can be repeated
    #[arg(long, value_name = "FILE", requires = "identity")]
    pub(crate) archive: Vec<PathBuf>,
    /// File with the age identities (AGE-SECRET-KEY-1...) that open it
    #[arg(long, value_name = "FILE", requires = "archive")]
    pub(crate) identity: Option<PathBuf>,
    /// The log's verifier key, where no daemon answers that knows it; can be repeated for keys that signed before
    #[arg(long, value_name = "KEY", requires = "archive")]
    pub(crate) verifier: Vec<String>,
}
