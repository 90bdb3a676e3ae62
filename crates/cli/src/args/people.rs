//! Commands of a user.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::servers::Life;

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
