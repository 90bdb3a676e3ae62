//! Commands of a user.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::keeping::IdentityFrom;
use super::servers::Life;
use crate::policy::Keep;

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

Examples:
  stvor chat --as alice --with bob
  stvor chat --as alice --group friends")]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) me: Me,
    /// Who to talk with
    #[arg(long = "with", visible_alias = "to", value_name = "USER", required_unless_present = "group")]
    pub(crate) peer: Option<String>,
    /// A group to talk in, by its name or id
    #[arg(long, value_name = "GROUP", conflicts_with = "peer")]
    pub(crate) group: Option<String>,
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
  echo hello | stvor send --as alice --group friends
  tail -f log | stvor send --as alice --to bob --lines --json")]
pub(crate) struct SendArgs {
    #[command(flatten)]
    pub(crate) me: Me,
    /// Who gets the message
    #[arg(long, value_name = "USER", required_unless_present = "group")]
    pub(crate) to: Option<String>,
    /// A group that gets the message, by its name or id
    #[arg(long, value_name = "GROUP", conflicts_with = "to")]
    pub(crate) group: Option<String>,
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
repeat, with the same id, only after a SIGKILL (the last 16 at most). With
--json each line is an object with id, from, sent_at and text (or json, or
base64 for bytes), and group for a message of a group.

Example:
  stvor listen --as bob --json | jq -r .text")]
pub(crate) struct ListenArgs {
    #[command(flatten)]
    pub(crate) me: Me,
    /// Only messages of this group, by its name or id; others wait for another command
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,
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
  stvor identity create --as alice --phrase
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
    /// Make your identity, once: with random keys, or from a recovery phrase
    Create {
        #[command(flatten)]
        me: Me,
        #[command(flatten)]
        from: IdentityFrom,
    },
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
    /// Take your name over from a lost device, with a new identity (where the relay allows it)
    Replace {
        #[command(flatten)]
        me: Me,
        #[command(flatten)]
        sure: Sure,
    },
    /// Replace your identity with a fresh one that the old one signs: contacts follow it by themselves
    Rotate {
        #[command(flatten)]
        me: Me,
        #[command(flatten)]
        sure: Sure,
        /// Your identity does not follow from a recovery phrase or passphrase, though the store can not tell
        #[arg(long)]
        not_derived: bool,
        /// Rotate though the store may lose a commit that it acknowledged, and with it your name
        #[arg(long)]
        accept_lossy_store: bool,
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
        /// Only the identity with this fingerprint, which they told you by another way, whatever rotations say
        #[arg(long, value_name = "HEX")]
        fingerprint: Option<String>,
    },
}

/// The answer to a question that would be asked.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Sure {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// Which conversation.
#[derive(Clone, Debug, Args)]
pub(crate) struct Pair {
    #[command(flatten)]
    pub(crate) me: Me,
    /// The other one
    #[arg(long = "with", value_name = "USER")]
    pub(crate) peer: String,
}

/// `stvor history`
#[derive(Debug, Args)]
#[command(after_help = "\
Prints the last messages of a conversation, oldest first; no relay is needed.
The last line on standard error says how to see what came before them.

Examples:
  stvor history --as alice --with bob
  stvor history --as alice --with bob --search invoice
  stvor history --as alice --group friends
  stvor history --as alice --with bob --limit 500 --json | jq -r .text")]
pub(crate) struct HistoryArgs {
    #[command(flatten)]
    pub(crate) me: Me,
    /// The other one
    #[arg(long = "with", value_name = "USER", required_unless_present = "group")]
    pub(crate) peer: Option<String>,
    /// A group, by its name or id
    #[arg(long, value_name = "GROUP", conflicts_with = "peer")]
    pub(crate) group: Option<String>,
    /// How many messages at most
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) limit: u32,
    /// Only messages older than the one with this id
    #[arg(long, value_name = "ID")]
    pub(crate) before: Option<String>,
    /// Only messages that hold these words, in any case
    #[arg(long, value_name = "WORDS")]
    pub(crate) search: Option<String>,
}

/// `stvor peer`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stvor peer list --as alice
  stvor peer block --as alice --with mallory
  stvor peer keep --as alice --with bob 30d")]
pub(crate) struct PeerArgs {
    #[command(subcommand)]
    pub(crate) command: PeerCommand,
}

/// `stvor peer ...`
#[derive(Debug, Subcommand)]
pub(crate) enum PeerCommand {
    /// List whom you talk with
    List(Me),
    /// Refuse mail from somebody, and mail to them
    Block(Pair),
    /// Take a block back
    Unblock(Pair),
    /// Set how long this device keeps the conversation, from the next message on
    Keep {
        #[command(flatten)]
        pair: Pair,
        /// forever, none, or a span such as 30d or 12h
        #[arg(value_name = "HOW LONG")]
        keep: Keep,
    },
    /// Start a fresh session with somebody, when nothing decrypts any more
    Reset(Pair),
    /// Delete the conversation from this device (the identity of the other one stays known)
    Delete {
        #[command(flatten)]
        pair: Pair,
        #[command(flatten)]
        sure: Sure,
    },
}

/// Which group.
#[derive(Clone, Debug, Args)]
pub(crate) struct InGroup {
    #[command(flatten)]
    pub(crate) me: Me,
    /// The group, by its name, its id, or the first digits of that
    #[arg(value_name = "GROUP")]
    pub(crate) group: String,
}

/// `stvor group`
#[derive(Debug, Args)]
#[command(after_help = "\
Every member sends, and may add, remove and rename. Who joins reads nothing of
before, who leaves nothing of after.

Examples:
  stvor group create --as alice friends bob carol
  stvor group add --as alice friends dave
  echo hello | stvor send --as alice --group friends
  stvor chat --as bob --group friends")]
pub(crate) struct GroupArgs {
    #[command(subcommand)]
    pub(crate) command: GroupCommand,
}

/// `stvor group ...`
#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Make a group
    Create {
        #[command(flatten)]
        me: Me,
        /// What it is called
        #[arg(value_name = "NAME")]
        name: String,
        /// Who is in it beside you
        #[arg(value_name = "USER")]
        members: Vec<String>,
    },
    /// List the groups that you are in
    List(Me),
    /// Show who is in a group
    Show(InGroup),
    /// Let users in (again, for somebody with a new identity)
    Add {
        #[command(flatten)]
        group: InGroup,
        /// Who
        #[arg(value_name = "USER", required = true)]
        members: Vec<String>,
    },
    /// Put a user out
    Remove {
        #[command(flatten)]
        group: InGroup,
        /// Who
        #[arg(value_name = "USER")]
        member: String,
    },
    /// Leave a group
    Leave(InGroup),
    /// Give a group another name
    Rename {
        #[command(flatten)]
        group: InGroup,
        /// What it is called from now on
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// `stvor account`
#[derive(Debug, Args)]
pub(crate) struct AccountArgs {
    #[command(subcommand)]
    pub(crate) command: AccountCommand,
}

/// `stvor account ...`
#[derive(Debug, Subcommand)]
pub(crate) enum AccountCommand {
    /// Go on from an old copy of the data directory with fresh sessions (after ROLLBACK_DETECTED)
    Recover {
        #[command(flatten)]
        me: Me,
        #[command(flatten)]
        sure: Sure,
    },
    /// Delete your account: name, keys and mail at the relay, and everything on this device
    Delete {
        #[command(flatten)]
        me: Me,
        #[command(flatten)]
        sure: Sure,
    },
}
