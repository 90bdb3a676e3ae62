//! What can go wrong with a store.

use crate::Table;
use std::path::PathBuf;
use stvor_base::ErrorCode;
use stvor_crypto::CryptoError;
use stvor_keys::KeyError;

/// Why a store refused or failed. After any of these what was stored before is still stored.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// An expectation did not hold; nothing of the change set was applied.
    #[error("operation {op} of the change set found another row than it expected; read again and retry")]
    Conflict {
        /// The index of the operation.
        op: usize,
    },
    /// Something is larger than its limit; nothing was done.
    #[error("{what} exceeds the limit of {limit}")]
    Limit {
        /// What is too large.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// Another process, or another handle in this one, has the store open.
    #[error("the store {} is in use by {}; close that program first or use another data directory", path.display(),
        match pid {
            Some(pid) if *pid == std::process::id() => format!("another client of this process ({pid})"),
            Some(pid) => format!("process {pid}"),
            None => "another process".to_owned(),
        })]
    Locked {
        /// The database.
        path: PathBuf,
        /// Who holds it, when known.
        pid: Option<u32>,
    },
    /// A newer version of the software wrote this store.
    #[error(
        "the store was written by a newer version (format {found}, this one reads up to {known}); update the program"
    )]
    TooNew {
        /// The format found.
        found: u32,
        /// The newest format that this build reads.
        known: u32,
    },
    /// The store's files are damaged.
    #[error("the store is damaged: {what}; restore it from a backup")]
    Corrupt {
        /// What was found.
        what: String,
    },
    /// The store that was opened is not there any more, or rows are there and no header that says whose they are. Nothing was
    /// written.
    #[error(
        "the store was emptied, or lost its header: its server restarted without what it held, evicted it, or somebody removed its rows; restore the server's own backup, or clear the place (see STORE_EMPTIED in the documentation) and restore a backup there or begin anew"
    )]
    Emptied,
    /// The store lacks what it acknowledged to this opening: its server failed over to a replica that lagged behind, or was put
    /// back to an older copy. Nothing was written, and nothing will be before [`Sealed::accept_put_back`](crate::Sealed::accept_put_back).
    #[error(
        "the store was put back to an older state: its server lacks what it had acknowledged; wait for a synchronous replica with each commit (see the settings of the server), fresh sessions are begun by themselves"
    )]
    PutBack,
    /// A row does not belong where it stands: altered, moved, put back under another version, or taken from another store.
    #[error(
        "a row of table {table:?} was altered outside this program and is refused; restore the store from a backup"
    )]
    Tampered {
        /// The table of the row.
        table: Table,
    },
    /// The disk, the quota or a file-size limit is full; the change set was not applied.
    #[error("the store could not be written: the disk or a quota is full; free some space and retry")]
    Full,
    /// The store may not be written.
    #[error("{} may not be written; check its owner and permissions, and whether its file system is mounted read-only", path.display())]
    ReadOnly {
        /// The file or directory.
        path: PathBuf,
    },
    /// The system refused an operation on a file.
    #[error("{what} failed: {reason}; check the disk")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        reason: String,
    },
    /// The server of the store can not be reached or does not let us in; nothing was done.
    #[error(
        "the store server {server} can not be used: {reason}; check that it runs and what its address and password are"
    )]
    Unreachable {
        /// Which server; never with a password.
        server: String,
        /// What was met.
        reason: String,
    },
    /// The server of the store shows a certificate that is not trusted; nothing was sent to it.
    #[error(
        "the certificate of the store server {server} is not trusted: {reason}; give the certificate of the authority that issued it (root_certificate; rootCertificateFile in JavaScript), and use the host name in the URL that the certificate is for"
    )]
    Untrusted {
        /// Which server; never with a password.
        server: String,
        /// What is wrong with the certificate.
        reason: String,
    },
    /// The connection broke while a change set was on its way, and it could not be found out whether it was applied.
    #[error(
        "the connection to {server} broke during a commit, and whether it was applied could not be found out; open the store again"
    )]
    Uncertain {
        /// Which server.
        server: String,
    },
    /// Other processes have the store open, and what was asked for can be done by one alone.
    #[error(
        "{others} other processes have the store open; stop them and try again (one that was killed counts for another 10 seconds)"
    )]
    InUse {
        /// How many.
        others: usize,
    },
    /// The data key of the store was replaced after it was opened here.
    #[error("the data key of the store was replaced since this process opened it; open the store again")]
    KeysReplaced,
    /// The adapter can not do this.
    #[error("this kind of store does not support {what}; use SQLite, or copy the rows into a new store")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The store opens with another kind of key than was given.
    #[error("this store opens with a {holder}; give that key")]
    KeyRequired {
        /// What the store opens with.
        holder: &'static str,
    },
    /// The key that opens the store.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A primitive or the random generator failed; nothing was written.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// A storage adapter of the application did not answer in time. What it was asked to save may land later.
    #[error("the storage adapter did not answer {call} within {} ms; check what it waits for", after.as_millis())]
    Timeout {
        /// What it was asked for.
        call: &'static str,
        /// How long it was given.
        after: std::time::Duration,
    },
    /// A storage adapter of the application answered something that can not be used.
    #[error("the storage adapter's answer to {call} can not be used: {what}")]
    Answer {
        /// What it was asked for.
        call: &'static str,
        /// What is wrong with the answer.
        what: String,
    },
    /// An adapter's own failure.
    #[error("the store failed: {0}")]
    Adapter(String),
}

impl StoreError {
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into() }
    }

    pub(crate) fn headless() -> Self {
        Self::corrupt("its header is gone but rows are there")
    }

    /// The error of an operation on a file or directory.
    pub(crate) fn io(what: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Kind;
        match error.kind() {
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => Self::ReadOnly { path: path.to_owned() },
            Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => Self::Full,
            _ => Self::Io { what: format!("{what} {}", path.display()), reason: error.to_string() },
        }
    }
}

impl ErrorCode for StoreError {
    fn code(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "STORE_CONFLICT",
            Self::Limit { .. } => "STORE_LIMIT",
            Self::Locked { .. } => "STORE_LOCKED",
            Self::TooNew { .. } => "STORE_TOO_NEW",
            Self::Corrupt { .. } => "STORE_CORRUPT",
            Self::Emptied => "STORE_EMPTIED",
            Self::PutBack => "STORE_PUT_BACK",
            Self::Tampered { .. } => "ROW_TAMPERED",
            Self::Full => "STORE_FULL",
            Self::ReadOnly { .. } => "STORE_READ_ONLY",
            Self::Io { .. } => "STORE_IO",
            Self::Unreachable { .. } => "STORE_UNREACHABLE",
            Self::Untrusted { .. } => "STORE_SERVER_UNTRUSTED",
            Self::Uncertain { .. } => "STORE_UNCERTAIN",
            Self::InUse { .. } => "STORE_IN_USE",
            Self::KeysReplaced => "STORE_KEYS_REPLACED",
            Self::Unsupported { .. } => "STORE_UNSUPPORTED",
            Self::Closed => "STORE_CLOSED",
            Self::KeyRequired { .. } => "KEY_REQUIRED",
            Self::Key(error) => error.code(),
            Self::Crypto(error) => error.code(),
            Self::Timeout { .. } => "STORE_TIMEOUT",
            Self::Answer { .. } => "STORE_ANSWER",
            Self::Adapter(_) => "STORE_FAILED",
        }
    }

    fn retryable(&self) -> bool {
        match self {
            Self::Conflict { .. }
            | Self::Locked { .. }
            | Self::Full
            | Self::PutBack
            | Self::Unreachable { .. }
            | Self::InUse { .. }
            | Self::KeysReplaced
            | Self::Timeout { .. } => true,
            Self::Key(error) => error.retryable(),
            Self::Crypto(error) => error.retryable(),
            _ => false,
        }
    }
}
