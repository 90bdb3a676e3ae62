//! Commands on keys.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{Cost, TokenHow};

/// A profile's own secret.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ProfileSecret {
    /// File that holds the profile's own passphrase (its first line)
    #[arg(long, value_name = "FILE", conflicts_with = "profile_keyfile")]
    pub(crate) profile_passphrase_file: Option<PathBuf>,
    /// Key file of the profile's own; it is made if it is not there
    #[arg(long, value_name = "FILE")]
    pub(crate) profile_keyfile: Option<PathBuf>,
    /// The profile's own key is sealed by this machine's TPM; its passphrase is the PIN
    #[arg(long, requires = "profile_passphrase_file")]
    pub(crate) profile_tpm: bool,
    /// A physical token gives the profile's own key: fido2, yubikey, yubikey=1 or software=FILE
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["profile_passphrase_file", "profile_keyfile", "profile_tpm"])]
    pub(crate) profile_token: Option<TokenHow>,
    /// Ask for the profile's own passphrase
    #[arg(long, conflicts_with_all = ["profile_passphrase_file", "profile_keyfile", "profile_tpm", "profile_token"])]
    pub(crate) profile_passphrase: bool,
}

/// A profile's new secret; it is asked for where none is named.
#[derive(Debug, Clone, Args)]
pub(crate) struct NewProfileSecret {
    /// File that holds the profile's new passphrase (its first line)
    #[arg(long, value_name = "FILE", conflicts_with = "new_profile_keyfile")]
    pub(crate) new_profile_passphrase_file: Option<PathBuf>,
    /// The profile's new key file; it is made if it is not there
    #[arg(long, value_name = "FILE")]
    pub(crate) new_profile_keyfile: Option<PathBuf>,
    /// The profile's new key is sealed by this machine's TPM; its new passphrase is the PIN
    #[arg(long, requires = "new_profile_passphrase_file")]
    pub(crate) new_profile_tpm: bool,
    /// A physical token gives the profile's new key: fido2, yubikey, yubikey=1 or software=FILE
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["new_profile_passphrase_file", "new_profile_keyfile", "new_profile_tpm"])]
    pub(crate) new_profile_token: Option<TokenHow>,
}

impl From<&NewProfileSecret> for ProfileSecret {
    fn from(new: &NewProfileSecret) -> Self {
        let named = new.new_profile_passphrase_file.is_some()
            || new.new_profile_keyfile.is_some()
            || new.new_profile_token.is_some();
        Self {
            profile_passphrase_file: new.new_profile_passphrase_file.clone(),
            profile_keyfile: new.new_profile_keyfile.clone(),
            profile_tpm: new.new_profile_tpm,
            profile_token: new.new_profile_token.clone(),
            profile_passphrase: !named,
        }
    }
}

/// `stvor vault profile ...`
#[derive(Debug, Subcommand)]
#[command(after_help = "\
A memory that is stored with --profile NAME takes the profile's key, too, to be
read. A profile opens with your session, or with a secret of its own, which is
given to `profile create` and then to `profile open`.")]
pub(crate) enum ProfileCommand {
    /// Make a profile, and open it
    Create {
        /// 1 to 64 letters, digits, - and _
        name: String,
        /// Its memories may be exported
        #[arg(long)]
        exportable: bool,
        /// Change its key after so many days
        #[arg(long, value_name = "DAYS")]
        rotate_days: Option<u32>,
        /// Change its key after so many memories
        #[arg(long, value_name = "N")]
        rotate_memories: Option<u64>,
        /// What one guess of its passphrase costs
        #[arg(long, value_name = "COST", default_value = "sensitive")]
        cost: Cost,
        #[command(flatten)]
        secret: ProfileSecret,
    },
    /// List them: what opens each, whether it is open, and when its key is due
    List,
    /// Open a profile that has a secret of its own, until the vault is locked
    Open {
        /// Its name
        name: String,
        #[command(flatten)]
        secret: ProfileSecret,
    },
    /// Wipe a profile's keys
    Close {
        /// Its name
        name: String,
    },
    /// Change the secret of its own that opens a profile; takes the old one
    Passphrase {
        /// Its name
        name: String,
        #[command(flatten)]
        secret: ProfileSecret,
        #[command(flatten)]
        new: NewProfileSecret,
        /// What one guess of the new passphrase costs
        #[arg(long, value_name = "COST", default_value = "sensitive")]
        cost: Cost,
    },
    /// Change the key of a profile that is open, and wrap its memories' keys anew; it goes on where it was broken off
    Rotate {
        /// Its name
        name: String,
    },
}

/// `stvor vault rotate`
#[derive(Debug, Args)]
#[command(after_help = "\
root-key     the root key, and all keys that follow from it: of the database, of
             the log's rows, of levels 0 to 3. Everything is sealed anew, all of
             it or nothing. Nobody else is served meanwhile. Old backups open
             with what opened the vault then; the next backup is a full one, and
             shares of an escrow have to be made anew.
signing-key  the key that signs the log; checkpoints that it signed stay valid

The secret itself is changed by `stvor vault passphrase`, a profile's key by
`stvor vault profile rotate`.")]
pub(crate) struct VaultRotate {
    /// Which key
    pub(crate) key: RotatedKey,
}

/// A key that can be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RotatedKey {
    /// The root key, and everything that follows from it
    RootKey,
    /// The key that signs the log
    SigningKey,
}
