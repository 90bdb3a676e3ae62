//! Why a command did not do what it was asked to do.

use std::io;
use std::path::PathBuf;

use stvor_base::ErrorCode;

use crate::exit;

/// A result of a command.
pub(crate) type Result<T = (), E = Failure> = core::result::Result<T, E>;

/// An error that ends the command. The doc comment of a variant is what its message says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Failure {
    /// The command line asks for something impossible.
    #[error("{0}")]
    Usage(String),
    /// A setting is not understood.
    #[error("{0}")]
    Config(String),
    /// A setting does not exist.
    #[error("{0}")]
    UnknownSetting(String),
    /// No app token was given.
    #[error(
        "no app token: give --token, --token-file or STVOR_TOKEN; `stvor up` prints one for its relay, and a mock relay takes any that begins with stvor_"
    )]
    NoToken,
    /// A secret could not be read from where it should be.
    #[error("can not read {what} from {from}: {source}")]
    Secret {
        /// Which secret.
        what: &'static str,
        /// The file or descriptor.
        from: String,
        /// Why.
        source: io::Error,
    },
    /// A file could not be read or written.
    #[error("{what} {path}: {source}", path = path.display())]
    File {
        /// What was tried, for example `can not read`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Input or output failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The reader of the output went away: nothing to say, and nobody to say it to.
    #[error("the reader of the output went away")]
    Pipe,
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// A failure with a code of its own.
    #[error("{message}")]
    Coded {
        /// The stable code.
        code: &'static str,
        /// What happened, to what, and what to do.
        message: String,
        /// Whether trying again may help.
        retryable: bool,
    },
    /// The command has told everything; only the exit code is left to say.
    #[error("the command failed")]
    Told(u8),
}

impl Failure {
    /// Takes over an error of another crate with its code.
    pub(crate) fn coded(error: &dyn ErrorCode) -> Self {
        Self::Coded { code: error.code(), message: error.to_string(), retryable: error.retryable() }
    }

    /// An error of reading or writing `what`; a closed pipe is its own, silent case.
    pub(crate) fn io(what: &'static str, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::BrokenPipe { Self::Pipe } else { Self::Io { what, source } }
    }

    /// The exit code of the process.
    pub(crate) fn exit(&self) -> u8 {
        match self {
            Self::Pipe => exit::OK,
            Self::Told(code) => *code,
            other => exit::of(other.code()),
        }
    }

    /// Whether there is nothing to print.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self, Self::Pipe | Self::Told(_) | Self::Interrupted)
    }
}

impl ErrorCode for Failure {
    fn code(&self) -> &'static str {
        match self {
            Self::Usage(_) => "USAGE",
            Self::Config(_) => "INVALID_CONFIG",
            Self::UnknownSetting(_) => "UNKNOWN_SETTING",
            Self::NoToken => "NO_APP_TOKEN",
            Self::Secret { .. } => "SECRET_UNREADABLE",
            Self::File { .. } => "FILE_ERROR",
            Self::Io { .. } => "IO_ERROR",
            Self::Pipe => "BROKEN_PIPE",
            Self::Interrupted => "INTERRUPTED",
            Self::Coded { code, .. } => code,
            Self::Told(_) => "FAILED",
        }
    }

    fn retryable(&self) -> bool {
        matches!(self, Self::Coded { retryable: true, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_silent_success() {
        let failure = Failure::io("can not write", io::ErrorKind::BrokenPipe.into());
        assert!(failure.is_silent());
        assert_eq!(failure.exit(), 0);
    }

    #[test]
    fn a_missing_token_is_a_matter_of_configuration() {
        assert_eq!(Failure::NoToken.exit(), 3);
        assert!(Failure::NoToken.render().ends_with("[NO_APP_TOKEN]"));
    }
}
