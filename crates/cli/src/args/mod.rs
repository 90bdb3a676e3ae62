//! The command line: nouns, then verbs.

mod keeping;
mod people;
mod servers;
mod shared;
#[cfg(unix)]
mod vault;

use clap::{Args, Parser, Subcommand};

use crate::exit;

pub(crate) use keeping::*;
pub(crate) use people::*;
pub(crate) use servers::*;
pub(crate) use shared::*;
#[cfg(unix)]
pub(crate) use vault::*;

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
    /// Show what was said
    History(HistoryArgs),
    /// Show and verify who you are and who they are
    Identity(IdentityArgs),
    /// List, block and forget whom you talk with
    Peer(PeerArgs),
    /// Make groups, and change who is in them
    Group(GroupArgs),
    /// Recover or delete your account
    Account(AccountArgs),
    /// Keep memories for agents, encrypted, behind gates that their owner holds
    #[cfg(unix)]
    Vault(Box<VaultArgs>),
    /// Serve the vault to an agent over the Model Context Protocol, on standard input and output
    #[cfg(unix)]
    Mcp(McpArgs),
    /// Write an encrypted backup of identity, history and settings
    Backup(BackupArgs),
    /// Restore a user from a backup
    Restore(RestoreArgs),
    /// Show, change or rotate the key of the store
    Key(KeyArgs),
    /// Show who accepted, verified, backed up and changed what
    Journal(JournalArgs),
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
    use std::path::PathBuf;

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
