//! Options that every command takes.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// Options that every command takes.
#[derive(Debug, Default, Args)]
pub(crate) struct Shared {
    /// Relay to talk to: ws://, wss://, http:// or https:// [default: ws://127.0.0.1:3002]
    #[arg(long, global = true, value_name = "URL", help_heading = "Connection")]
    pub(crate) relay: Option<String>,
    /// App token; prefer --token-file or STVOR_TOKEN for secret ones, since other users of this machine can see arguments
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        help_heading = "Connection",
        conflicts_with = "token_file"
    )]
    pub(crate) token: Option<String>,
    /// File that holds the app token
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    pub(crate) token_file: Option<PathBuf>,
    /// Client token of one user, signed by your backend, in place of the app token (as with --token, others can see it)
    #[arg(
        long,
        global = true,
        value_name = "JWT",
        help_heading = "Connection",
        hide_short_help = true,
        conflicts_with = "client_token_file"
    )]
    pub(crate) client_token: Option<String>,
    /// File that holds the client token
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection", hide_short_help = true)]
    pub(crate) client_token_file: Option<PathBuf>,
    /// App id, when the relay binds a literal token to a named app
    #[arg(long, global = true, value_name = "ID", help_heading = "Connection", hide_short_help = true)]
    pub(crate) app_id: Option<String>,
    /// Seconds that anything which can wait waits at most [default: 10]
    #[arg(long, global = true, value_name = "SECONDS", help_heading = "Connection", hide_short_help = true)]
    pub(crate) timeout: Option<u64>,
    /// PEM file with a further root certificate to trust
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection", hide_short_help = true)]
    pub(crate) root_certificate: Option<PathBuf>,
    /// Directory that holds identities, sessions and history [default: the platform's data directory]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Storage")]
    pub(crate) data: Option<PathBuf>,
    /// File that holds the passphrase of the store or vault (its first line)
    #[arg(long, global = true, value_name = "FILE", help_heading = "Storage", hide_short_help = true)]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// File descriptor to read the passphrase of the store or vault from
    #[arg(long, global = true, value_name = "FD", help_heading = "Storage", hide_short_help = true, conflicts_with_all = ["passphrase_file", "ask_passphrase"])]
    pub(crate) passphrase_fd: Option<u32>,
    /// Ask for the passphrase of the store or vault at the terminal
    #[arg(
        long,
        global = true,
        help_heading = "Storage",
        hide_short_help = true,
        conflicts_with = "passphrase_file"
    )]
    pub(crate) ask_passphrase: bool,
    /// Key file of the store or vault [default for the store: one beside it, made when needed, readable by you alone]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Storage", hide_short_help = true, conflicts_with_all = ["passphrase_file", "passphrase_fd", "ask_passphrase"])]
    pub(crate) keyfile: Option<PathBuf>,
    /// Keep the key of the store or vault in the keyring of the operating system
    #[arg(long, global = true, help_heading = "Storage", hide_short_help = true, conflicts_with_all = ["passphrase_file", "passphrase_fd", "ask_passphrase", "keyfile"])]
    pub(crate) os_keyring: bool,
    /// Refuse to start where something is missing or weak for production; one error lists all of it
    #[arg(long, global = true, help_heading = "Storage", hide_short_help = true)]
    pub(crate) production: bool,
    /// Read settings from this TOML file [default: stvor/stvor.toml in the platform's configuration directory]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help_heading = "Output and settings",
        hide_short_help = true
    )]
    pub(crate) config: Option<PathBuf>,
    /// Print objects, one a line
    #[arg(long, global = true, help_heading = "Output and settings")]
    pub(crate) json: bool,
    /// Say less
    #[arg(
        short,
        long,
        global = true,
        help_heading = "Output and settings",
        hide_short_help = true,
        conflicts_with = "verbose"
    )]
    pub(crate) quiet: bool,
    /// Say more; twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Output and settings", hide_short_help = true)]
    pub(crate) verbose: u8,
    /// Use colour
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        help_heading = "Output and settings",
        hide_short_help = true
    )]
    pub(crate) color: Option<Color>,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}
