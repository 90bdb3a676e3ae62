//! Tokens of level 5, and one-time codes.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use stvor_vault::MemoryId;

use super::SecondSecret;

/// A token that gives a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TokenHow {
    /// The FIDO2 token on USB.
    Fido2,
    /// A slot of a YubiKey.
    YubiKey(u8),
    /// A file that plays a token.
    Software(PathBuf),
}

impl core::str::FromStr for TokenHow {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.split_once('=')) {
            ("fido2", _) => Ok(Self::Fido2),
            ("yubikey", _) | (_, Some(("yubikey", "2"))) => Ok(Self::YubiKey(2)),
            (_, Some(("yubikey", "1"))) => Ok(Self::YubiKey(1)),
            (_, Some(("software", file))) if !file.is_empty() => Ok(Self::Software(file.into())),
            _ => Err("a token is fido2, yubikey, yubikey=1 or software=FILE"),
        }
    }
}

/// New tokens of level 5. Several on USB are asked for one after the other.
#[derive(Debug, Args)]
pub(crate) struct NewTokens {
    /// Name for a FIDO2 token on USB (in builds with the feature fido2-hid); can be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) fido2: Vec<String>,
    /// Name for slot 2 of a YubiKey (in builds with the feature yubikey), or NAME=1 for slot 1; can be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) yubikey: Vec<String>,
    /// Name and file that plays a token: whoever copies it has the token; made if it is not there; can be repeated
    #[arg(long = "software-token", value_name = "NAME=FILE")]
    pub(crate) software: Vec<String>,
    /// File that holds the FIDO2 token's PIN (its first line)
    #[arg(long, value_name = "FILE")]
    pub(crate) pin_file: Option<PathBuf>,
}

/// A token in the hand.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct TokenHand {
    /// A file that plays a token: whoever copies it has the token
    #[arg(long, value_name = "FILE")]
    pub(crate) software_token: Option<PathBuf>,
    /// The FIDO2 token on USB (in builds with the feature fido2-hid)
    #[arg(long)]
    pub(crate) fido2: bool,
    /// A slot of a YubiKey, 1 or 2 (in builds with the feature yubikey)
    #[arg(long, value_name = "SLOT", value_parser = clap::value_parser!(u8).range(1..=2))]
    pub(crate) yubikey: Option<u8>,
}

/// `stvor vault token ...`
#[derive(Debug, Subcommand)]
pub(crate) enum VaultTokenCommand {
    /// Open level 5 with two tokens, or with one and shares for keepers
    #[command(after_help = "\
Two FIDO2 tokens, plugged in one after the other:
  stvor vault token open --fido2 a --fido2 b
One, and shares that stand for the second:
  stvor vault token open --fido2 a --keeper ada=age1... --keeper bob=age1... --needed 2 --dir shares --second")]
    Open(TokenOpen),
    /// Present a token: for a minute, one memory of level 5 can be recalled
    Present {
        /// Its name
        name: String,
        #[command(flatten)]
        hand: TokenHand,
        /// File that holds the token's PIN (its first line)
        #[arg(long, value_name = "FILE")]
        pin_file: Option<PathBuf>,
    },
    /// Enrol a further token, after another one was presented
    Add {
        /// Its name
        name: String,
        #[command(flatten)]
        hand: TokenHand,
        /// File that holds the token's PIN (its first line)
        #[arg(long, value_name = "FILE")]
        pin_file: Option<PathBuf>,
    },
    /// List the tokens
    List,
    /// Remove one; two stay, or one and an escrow. A FIDO2 credential stays on the token: see credentials
    Remove {
        /// Its name
        name: String,
    },
    /// List or remove what this program made on the FIDO2 token on USB
    Credentials {
        #[command(subcommand)]
        command: CredentialsCommand,
        /// File that holds the token's PIN (its first line) [default: it is asked for]
        #[arg(long, global = true, value_name = "FILE")]
        pin_file: Option<PathBuf>,
    },
}

/// `stvor vault token open`
#[derive(Debug, Args)]
pub(crate) struct TokenOpen {
    #[command(flatten)]
    pub(crate) tokens: NewTokens,
    /// Keeper of a share and age key, in place of a second token; can be repeated
    #[arg(long = "keeper", value_name = "NAME=RECIPIENT", requires_all = ["needed", "dir"])]
    pub(crate) keepers: Vec<String>,
    /// How many shares open the vault
    #[arg(long, value_name = "K", requires = "keepers")]
    pub(crate) needed: Option<u8>,
    /// What the shares are of, for people
    #[arg(long, value_name = "TEXT", default_value = "STVOR vault")]
    pub(crate) label: String,
    /// Directory for the sealed shares
    #[arg(long, value_name = "DIR", requires = "keepers")]
    pub(crate) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) second: SecondSecret,
}

/// `stvor vault token credentials ...`
#[derive(Debug, Subcommand)]
pub(crate) enum CredentialsCommand {
    /// List them, with the names that the vault knows them by
    List,
    /// Remove one from the token, after the vault's token of its name was removed
    Remove {
        /// Its id, as list shows it
        credential: String,
    },
}

/// The code that the app shows. It is asked for, and never stands on the command line.
#[derive(Debug, Args)]
pub(crate) struct ShownCode {
    /// File descriptor to read the code from
    #[arg(long, value_name = "FD")]
    pub(crate) code_fd: Option<u32>,
}

/// `stvor vault codes ...`
#[derive(Debug, Subcommand)]
pub(crate) enum CodesCommand {
    /// Make the secret for the app
    New,
    /// Enrol the app with the code that it shows
    Confirm {
        #[command(flatten)]
        code: ShownCode,
    },
    /// Remove it; takes the owner's secret itself
    Remove,
    /// Grant an approval with the code that the app shows
    Approve {
        /// The request
        request: MemoryId,
        #[command(flatten)]
        code: ShownCode,
        /// Seconds that it may be used
        #[arg(long = "for", value_name = "SECONDS", default_value_t = 600)]
        seconds: u64,
    },
}
