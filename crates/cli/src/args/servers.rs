//! Commands that run a relay or manage one.

use std::net::SocketAddr;

use clap::{Args, Subcommand, ValueEnum};

/// `stvor up`
#[derive(Debug, Args)]
#[command(after_help = "\
The relay keeps its database under the data directory, so messages survive
restarts. The app token is made on the first start and kept beside the
database in a file that only you can read.

Example:
  stvor up --listen 127.0.0.1:3002")]
pub(crate) struct UpArgs {
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:3002]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) life: Life,
}

/// How a server ends.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Life {
    /// End, gracefully, when standard input ends: for parents that may be killed
    #[arg(long, hide = true)]
    pub(crate) exit_with_stdin: bool,
}

/// `stvor relay`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Examples:
  stvor relay token create --app acme              make an app token
  stvor relay --listen 0.0.0.0:3002                serve it
  stvor relay --dev                                let stvor_ tokens in (loudly): not for production

Settings stand in the section [relay] of the TOML file; there a literal token can be bound to an app:
  [[relay.tokens]]
  token = \"sk_live_xxx\"
  app = \"acme\"")]
pub(crate) struct RelayArgs {
    #[command(subcommand)]
    pub(crate) command: Option<RelayCommand>,
    #[command(flatten)]
    pub(crate) run: RelayRun,
}

/// `stvor relay`, to run it.
#[derive(Debug, Default, Args)]
pub(crate) struct RelayRun {
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:3002]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Development: let any stvor_ token in, and let a lost device register again
    #[arg(long)]
    pub(crate) dev: bool,
    /// Let whoever has an app token register names that are free; else a client token of your backend is needed
    #[arg(long)]
    pub(crate) open_registration: bool,
    #[command(flatten)]
    pub(crate) life: Life,
}

/// `stvor relay ...`
#[derive(Debug, Subcommand)]
pub(crate) enum RelayCommand {
    /// Manage app tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Manage users
    #[command(subcommand)]
    User(UserCommand),
}

/// `stvor relay token ...`
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make an app token and print it: the only time that it is shown
    Create {
        /// App that it belongs to
        #[arg(long, value_name = "APP")]
        app: String,
        /// Kind of token
        #[arg(long, value_name = "KIND", default_value = "live")]
        kind: TokenKind,
        /// What to call it in lists
        #[arg(long, value_name = "TEXT", default_value = "")]
        label: String,
        /// Days until it expires [default: never]
        #[arg(long, value_name = "DAYS")]
        days: Option<u32>,
    },
    /// List app tokens (never their secrets)
    List,
    /// Revoke an app token by its id (see list)
    Revoke {
        /// Id of the token
        id: String,
    },
}

/// Kinds of app tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TokenKind {
    /// sk_live_...: for production
    Live,
    /// sk_test_...: for tests
    Test,
    /// stvor_...: for development
    Dev,
}

/// `stvor relay user ...`
#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Let somebody who lost their device register the name anew (mail for the old identity is dropped, peers are warned)
    Reset(UserRef),
    /// Delete a user: name, keys and mail
    Delete(UserRef),
}

/// A user at the relay.
#[derive(Debug, Args)]
pub(crate) struct UserRef {
    /// The user
    pub(crate) user: String,
    /// The app that the user belongs to [default: the app of --token]
    #[arg(long, value_name = "APP")]
    pub(crate) app: Option<String>,
}

/// `stvor mock-relay`
#[derive(Debug, Args)]
#[command(after_help = "\
STVOR_MOCK_PORT sets the port and STVOR_MOCK_VERBOSE=1 tells of each
connection. GET /health and GET /status/{user} answer as JSON. Everything is
forgotten at the end.

Example:
  stvor mock-relay --listen 127.0.0.1:0            a free port, printed on the first line")]
pub(crate) struct MockArgs {
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:4444]
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "port")]
    pub(crate) listen: Option<SocketAddr>,
    /// Port to listen on
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    #[command(flatten)]
    pub(crate) life: Life,
}
