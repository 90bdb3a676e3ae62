//! The command line: nouns, then verbs.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::exit;

const ABOUT: &str = "End-to-end encrypted messages through a relay that nobody needs to trust";

const EXAMPLES: &str = "\
Examples:
  stvor demo                                       see the whole story, checked, in under a minute
  stvor up                                         a relay that is ready for use, and what to paste
  stvor mock-relay                                 a relay for development on port 4444
  stvor chat --as alice --with bob                 talk
  echo hello | stvor send --as alice --to bob      send one message
  stvor listen --as bob --count 1 --json           print one message as JSON
  stvor doctor                                     what is wrong, and how to fix it

Settings come from flags, then STVOR_* variables, then the TOML file, then defaults:
`stvor config show --sources` prints each with its origin.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "stvor", version, about = ABOUT, after_help = format!("{EXAMPLES}\n\n{}", exit::HELP), max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) shared: Shared,
    #[command(subcommand)]
    pub(crate) command: Command,
}

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
    /// File that holds the passphrase of the store (its first line)
    #[arg(long, global = true, value_name = "FILE", help_heading = "Storage", hide_short_help = true)]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// File descriptor to read the passphrase of the store from
    #[arg(long, global = true, value_name = "FD", help_heading = "Storage", hide_short_help = true, conflicts_with_all = ["passphrase_file", "ask_passphrase"])]
    pub(crate) passphrase_fd: Option<u32>,
    /// Ask for the passphrase of the store at the terminal
    #[arg(
        long,
        global = true,
        help_heading = "Storage",
        hide_short_help = true,
        conflicts_with = "passphrase_file"
    )]
    pub(crate) ask_passphrase: bool,
    /// Key file of the store [default: one beside it, made when needed, readable by you alone]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Storage", hide_short_help = true)]
    pub(crate) keyfile: Option<PathBuf>,
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

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Tell the story in under a minute, and check it
    Demo(DemoArgs),
    /// Start a relay that is ready for use, and print what to paste
    Up(UpArgs),
    /// Run a relay, or manage its tokens and users
    Relay(RelayArgs),
    /// Run a relay for development: in memory, any stvor_ token, port 4444
    MockRelay(MockArgs),
    /// Talk with somebody at the terminal
    Chat(ChatArgs),
    /// Send standard input or a file as a message
    Send(SendArgs),
    /// Print each message once as it arrives
    Listen(ListenArgs),
    /// Show and verify who you are and who they are
    Identity(IdentityArgs),
    /// Find out what is wrong and how to fix it
    Doctor(DoctorArgs),
    /// Print the completion script of a shell
    Completions(CompletionArgs),
    /// Show the settings in effect
    Config(ConfigArgs),
}

/// `stvor demo`
#[derive(Debug, Args)]
#[command(after_help = "\
The demo runs real commands as processes of their own: `stvor relay`, `stvor
send --lines` and `stvor listen --json`. It kills some of them, looks into the
relay's database and damages it, and counts what arrives. It leaves nothing
behind. The exit code is 0 only if every step held.")]
pub(crate) struct DemoArgs {
    /// Fewer messages
    #[arg(long)]
    pub(crate) fast: bool,
}

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

/// Who is speaking.
#[derive(Clone, Debug, Args)]
pub(crate) struct Me {
    /// Your user id at the relay (or STVOR_AS)
    #[arg(long = "as", value_name = "USER")]
    pub(crate) user: Option<String>,
}

/// `stvor chat`
#[derive(Debug, Args)]
#[command(after_help = "\
Type a line to send it; /help lists the commands. Without a terminal, each
line of standard input is a message and each message that arrives is a line of
standard output, so that scripts can hold a conversation.

Example:
  stvor chat --as alice --with bob")]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) me: Me,
    /// Who to talk with
    #[arg(long = "with", visible_alias = "to", value_name = "USER")]
    pub(crate) peer: String,
}

/// `stvor send`
#[derive(Debug, Args)]
#[command(after_help = "\
Prints a receipt for each message and ends when the relay has accepted all of
them: each is then on its disk, or at the recipient. What is not accepted yet
stays in the encrypted outbox; the next command as the same user sends it.

Examples:
  echo hello | stvor send --as alice --to bob
  stvor send --as alice --to bob --file notes.txt
  tail -f log | stvor send --as alice --to bob --lines --json")]
pub(crate) struct SendArgs {
    #[command(flatten)]
    pub(crate) me: Me,
    /// Who gets the message
    #[arg(long, value_name = "USER")]
    pub(crate) to: String,
    /// One message for each line
    #[arg(long)]
    pub(crate) lines: bool,
    /// Read this file instead of standard input
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
}

/// `stvor listen`
#[derive(Debug, Args)]
#[command(after_help = "\
A message is acknowledged after it is printed, so none is lost: a line can
repeat, with the same id, only after a SIGKILL. With --json each line is an
object with id, from, sent_at and text (bytes instead of text, in base64, for
messages that are not text).

Example:
  stvor listen --as bob --json | jq -r .text")]
pub(crate) struct ListenArgs {
    #[command(flatten)]
    pub(crate) me: Me,
    /// End after so many messages
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    #[command(flatten)]
    pub(crate) life: Life,
}

/// `stvor identity`
#[derive(Debug, Args)]
#[command(after_help = "\
Two people who see the same safety number, or scan each other's code, know
that nobody sits between them.

Examples:
  stvor identity show --as alice
  stvor identity show --as alice --with bob --qr
  stvor identity verify --as alice --with bob --number \"12345 67890 ...\"")]
pub(crate) struct IdentityArgs {
    #[command(subcommand)]
    pub(crate) command: IdentityCommand,
}

/// `stvor identity ...`
#[derive(Debug, Subcommand)]
pub(crate) enum IdentityCommand {
    /// Show your identity, or with --with the safety number that you share with somebody
    Show {
        #[command(flatten)]
        me: Me,
        /// Whose safety number
        #[arg(long = "with", value_name = "USER")]
        peer: Option<String>,
        /// Draw a code to scan
        #[arg(long)]
        qr: bool,
    },
    /// Mark somebody as verified, after comparing safety numbers
    Verify {
        #[command(flatten)]
        me: Me,
        /// Who
        #[arg(long = "with", value_name = "USER")]
        peer: String,
        /// The number that they see, to compare; without it you are asked
        #[arg(long, value_name = "DIGITS", conflicts_with = "qr_hex")]
        number: Option<String>,
        /// What their code says, in hexadecimal digits
        #[arg(long, value_name = "HEX")]
        qr_hex: Option<String>,
    },
    /// Take the verified mark back
    Unverify {
        #[command(flatten)]
        me: Me,
        /// Who
        #[arg(long = "with", value_name = "USER")]
        peer: String,
    },
    /// Accept that somebody's identity changed (compare the new safety number first)
    Accept {
        #[command(flatten)]
        me: Me,
        /// Who
        #[arg(long = "with", value_name = "USER")]
        peer: String,
    },
}

/// `stvor doctor`
#[derive(Debug, Args)]
#[command(after_help = "\
Each line is a check: ok, warning or problem, and what to do about it. The
exit code is that of the first problem.")]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) me: Me,
}

/// `stvor completions`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stvor completions bash > ~/.local/share/bash-completion/completions/stvor
  stvor completions zsh > ~/.zfunc/_stvor
  stvor completions fish > ~/.config/fish/completions/stvor.fish")]
pub(crate) struct CompletionArgs {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// `stvor config`
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

/// `stvor config ...`
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show every setting (secrets are hidden)
    Show {
        /// Say where each comes from
        #[arg(long)]
        sources: bool,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn shared_options_stand_before_or_after_the_verb() {
        for line in [["stvor", "--data", "/d", "doctor"], ["stvor", "doctor", "--data", "/d"]] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.shared.data, Some(PathBuf::from("/d")));
        }
    }

    #[test]
    fn a_passphrase_can_not_stand_on_the_command_line() {
        assert!(Cli::try_parse_from(["stvor", "doctor", "--passphrase", "x"]).is_err());
    }
}
