//! Commands that keep what a user can not get again: backups, keys of the store, the journal.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::people::Me;

/// `stvor backup`
#[derive(Debug, Args)]
#[command(after_help = "\
One encrypted file (age) with identity, pinned identities, settings, history,
journal and group membership. Sessions and prekeys are never in it. PATH is a
new file, or a directory, in which the file gets a name with the time. Without
a recipient or passphrase file you are asked for a passphrase.

Examples:
  stvor backup --as alice /backups --keep 7 --recipient age1...
  stvor backup --as alice alice.age --backup-passphrase-file FILE")]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    pub(crate) me: Me,
    /// Where to: a new file, or a directory
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// Who can open it: an age public key; may be given more than once
    #[arg(long, value_name = "AGE1...")]
    pub(crate) recipient: Vec<String>,
    /// In a directory, keep so many backups of this user, this one counted, and remove older ones
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) keep: Option<u16>,
    #[command(flatten)]
    pub(crate) secret: BackupSecret,
}

/// The passphrase of a backup.
#[derive(Debug, Args)]
pub(crate) struct BackupSecret {
    /// File that holds the passphrase of the backup (its first line)
    #[arg(long, value_name = "FILE", conflicts_with = "backup_passphrase_fd")]
    pub(crate) backup_passphrase_file: Option<PathBuf>,
    /// File descriptor to read the passphrase of the backup from
    #[arg(long, value_name = "FD")]
    pub(crate) backup_passphrase_fd: Option<u32>,
}

/// `stvor restore`
#[derive(Debug, Args)]
#[command(after_help = "\
Restores a user from a backup into a new store, all of it or nothing. A store
that is there is never written over. Peers notice by themselves and send again
what could not be read. Do not go on with the old store beside the restored
one.

Examples:
  stvor restore alice.age
  stvor restore alice.age --identity-file key.txt")]
pub(crate) struct RestoreArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// age key file (of age-keygen) that opens it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["backup_passphrase_file", "backup_passphrase_fd"])]
    pub(crate) identity_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) secret: BackupSecret,
}

/// `stvor journal`
#[derive(Debug, Args)]
#[command(after_help = "\
Who did what, and when: identities accepted and verified, backups made and
restored, keys of the store changed. Newest last; kept for two years.")]
pub(crate) struct JournalArgs {
    #[command(flatten)]
    pub(crate) me: Me,
    /// How many entries at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) limit: u16,
}

/// Where a new identity comes from.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct IdentityFrom {
    /// Make a recovery phrase of 24 words and print it, once: who types it on a new device is the same user
    #[arg(long)]
    pub(crate) phrase: bool,
    /// Recover from the phrase in this file
    #[arg(long, value_name = "FILE")]
    pub(crate) phrase_file: Option<PathBuf>,
    /// Recover from the phrase that this file descriptor gives
    #[arg(long, value_name = "FD")]
    pub(crate) phrase_fd: Option<u32>,
    /// Recover from a phrase that you are asked for
    #[arg(long)]
    pub(crate) ask_phrase: bool,
    /// Derive the identity from the passphrase in this file (16 bytes at least; others can test guesses, a phrase is better)
    #[arg(long, value_name = "FILE")]
    pub(crate) identity_passphrase_file: Option<PathBuf>,
}

/// `stvor key`
#[derive(Debug, Args)]
#[command(after_help = "\
The options before the verb open the store as it is; those after it name the
new key.

Examples:
  stvor key show --as alice
  stvor key change --as alice --new-passphrase-file FILE
  stvor key change --as alice --new-os-keyring
  stvor key change --as alice --new-token-module /usr/lib/softhsm/libsofthsm2.so \\
      --new-token-label app --new-token-key store --new-token-pin-file FILE
  stvor key rotate --as alice")]
pub(crate) struct KeyArgs {
    #[command(subcommand)]
    pub(crate) command: KeyCommand,
}

/// `stvor key ...`
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Show what opens the store, and whether a rotation is under way
    Show(Me),
    /// Change what opens the store; no row is touched
    Change {
        #[command(flatten)]
        me: Me,
        #[command(flatten)]
        new: NewKey,
        #[command(flatten)]
        details: Box<NewKeyDetails>,
    },
    /// Replace the data key: seal every row anew, in the background of other work; can be interrupted and gone on with
    Rotate(Me),
}

/// What opens the store from now on.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct NewKey {
    /// File that holds the new passphrase (its first line)
    #[arg(long, value_name = "FILE")]
    pub(crate) new_passphrase_file: Option<PathBuf>,
    /// File descriptor to read the new passphrase from
    #[arg(long, value_name = "FD")]
    pub(crate) new_passphrase_fd: Option<u32>,
    /// Ask for the new passphrase, twice
    #[arg(long)]
    pub(crate) ask_new_passphrase: bool,
    /// New key file, made if it is not there
    #[arg(long, value_name = "FILE")]
    pub(crate) new_keyfile: Option<PathBuf>,
    /// Make the new key in the keyring of the operating system
    #[arg(long)]
    pub(crate) new_os_keyring: bool,
    /// Seal by a key in a PKCS #11 token: the module of its maker
    #[arg(long, value_name = "FILE", requires_all = ["new_token_label", "new_token_key", "new_token_pin_file"])]
    pub(crate) new_token_module: Option<PathBuf>,
    /// Seal by a key in a key management server that speaks KMIP
    #[arg(long, value_name = "HOST[:PORT]", requires_all = ["new_kmip_key", "new_kmip_roots", "new_kmip_certificate", "new_kmip_private_key"])]
    pub(crate) new_kmip_server: Option<String>,
}

/// What goes with a new key in a token or a key management server: as the settings without `new_`.
#[derive(Debug, Args)]
pub(crate) struct NewKeyDetails {
    /// The token's label
    #[arg(long, value_name = "LABEL", requires = "new_token_module")]
    pub(crate) new_token_label: Option<String>,
    /// The label of an AES key in the token
    #[arg(long, value_name = "LABEL", requires = "new_token_module")]
    pub(crate) new_token_key: Option<String>,
    /// File that holds the PIN (its first line)
    #[arg(long, value_name = "FILE", requires = "new_token_module")]
    pub(crate) new_token_pin_file: Option<PathBuf>,
    /// The name in the server's certificate, where it is not the host
    #[arg(long, value_name = "NAME", requires = "new_kmip_server")]
    pub(crate) new_kmip_name: Option<String>,
    /// The identifier of an active AES key in the server
    #[arg(long, value_name = "ID", requires = "new_kmip_server")]
    pub(crate) new_kmip_key: Option<String>,
    /// PEM file of the authorities that sign the server
    #[arg(long, value_name = "FILE", requires = "new_kmip_server")]
    pub(crate) new_kmip_roots: Option<PathBuf>,
    /// PEM file of our certificate
    #[arg(long, value_name = "FILE", requires = "new_kmip_server")]
    pub(crate) new_kmip_certificate: Option<PathBuf>,
    /// PEM file of its private key
    #[arg(long, value_name = "FILE", requires = "new_kmip_server")]
    pub(crate) new_kmip_private_key: Option<PathBuf>,
}
