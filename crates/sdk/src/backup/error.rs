//! What can go wrong with a backup file. None of it changes anything in a store.

use std::path::{Path, PathBuf};

use stvor_base::ErrorCode;
use stvor_keys::KeyError;

/// Why a backup could not be written, or not be restored.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// Another passphrase or key opens the file.
    #[error("the {holder} does not open the backup {}; give one that it was sealed to", path.display())]
    WrongKey {
        /// The file.
        path: PathBuf,
        /// What was given.
        holder: &'static str,
    },
    /// The file was altered, or is no backup.
    #[error("the backup {} is damaged or is none: {what}; use another copy of it", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: &'static str,
    },
    /// The file is shorter or longer than a whole one.
    #[error("the backup {} is cut short; copy it again from where it was made", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
    },
    /// A newer program wrote the file.
    #[error(
        "the backup {} was written by a newer version (format {found}, this one reads {known}); update the program",
        path.display()
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u16,
        /// The newest format that this build reads.
        known: u16,
    },
    /// The backup is of another app.
    #[error(
        "the backup is of app \"{found}\", this is app \"{wanted}\"; use the token or app id of that app"
    )]
    OtherApp {
        /// Whose it is.
        found: String,
        /// Whose it would have to be.
        wanted: String,
    },
    /// The user has a store here already.
    #[error(
        "{user} has a store here already, and a restore never writes over one; use another data directory, or \
             move the old one away"
    )]
    StoreExists {
        /// Who.
        user: String,
    },
    /// A restore into this store was interrupted.
    #[error("a restore of {user} was interrupted before it was whole; run it again, it begins anew")]
    Incomplete {
        /// Who.
        user: String,
    },
    /// Something stands where the file would go.
    #[error("{} exists already and is not overwritten; choose another name", path.display())]
    FileExists {
        /// The file.
        path: PathBuf,
    },
    /// The system refused an operation on the file.
    #[error("{what} the backup {} failed: {reason}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

impl ErrorCode for BackupError {
    fn code(&self) -> &'static str {
        match self {
            Self::WrongKey { .. } => "BACKUP_WRONG_KEY",
            Self::Corrupt { .. } => "BACKUP_CORRUPT",
            Self::Truncated { .. } => "BACKUP_TRUNCATED",
            Self::TooNew { .. } => "BACKUP_TOO_NEW",
            Self::OtherApp { .. } => "BACKUP_OTHER_APP",
            Self::StoreExists { .. } => "RESTORE_STORE_EXISTS",
            Self::Incomplete { .. } => "RESTORE_INCOMPLETE",
            Self::FileExists { .. } => "BACKUP_FILE_EXISTS",
            Self::Io { .. } => "BACKUP_IO",
        }
    }
}

impl BackupError {
    pub(crate) fn io(what: &'static str, path: &Path, error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::AlreadyExists => Self::FileExists { path: path.to_owned() },
            _ => Self::Io { what, path: path.to_owned(), reason: error.to_string() },
        }
    }

    /// An error of opening the age file; `ended`: all of it was read by then.
    pub(crate) fn opening(path: &Path, error: KeyError, ended: bool) -> crate::Error {
        let path = path.to_owned();
        match error {
            KeyError::Wrong { holder } => crate::Error::passed(Self::WrongKey { path, holder }),
            KeyError::Malformed { holder: "age file", .. } if ended => {
                crate::Error::passed(Self::Truncated { path })
            }
            KeyError::Malformed { holder: "age file", reason } => {
                crate::Error::passed(Self::Corrupt { path, what: reason })
            }
            KeyError::Sealed(reason) => crate::Error::passed(Self::Io { what: "reading", path, reason }),
            other => crate::Error::passed(other),
        }
    }
}
