//! The six classification levels.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// How well a memory is kept. It is chosen when the memory is written, is part of what is authenticated, and never changes.
///
/// ```
/// use stvor_vault::Level;
/// assert_eq!("sealed".parse::<Level>(), Ok(Level::Sealed));
/// assert_eq!("3".parse::<Level>(), Ok(Level::Sealed));
/// assert!(Level::Vaulted > Level::Sealed);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
#[repr(u8)]
pub enum Level {
    /// Gone by itself after a day, or sooner.
    Ephemeral = 0,
    /// Ordinary memories of agents.
    Working = 1,
    /// Readable while the owner's session is open.
    Private = 2,
    /// Readable with the owner's approval, a justification, and after a pause.
    Sealed = 3,
    /// As [`Level::Sealed`], off the network, and with a secret of its own.
    Vaulted = 4,
    /// As [`Level::Vaulted`], with a physical token that is present at the moment.
    Black = 5,
}

/// A number or name that is no level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a level is 0 to 5, or ephemeral, working, private, sealed, vaulted, black")]
pub struct NoLevel;

impl Level {
    /// All of them, lowest first.
    pub const ALL: [Self; 6] =
        [Self::Ephemeral, Self::Working, Self::Private, Self::Sealed, Self::Vaulted, Self::Black];

    /// The number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The name, in lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ephemeral => "ephemeral",
            Self::Working => "working",
            Self::Private => "private",
            Self::Sealed => "sealed",
            Self::Vaulted => "vaulted",
            Self::Black => "black",
        }
    }

    /// Whether each recall needs the owner's approval.
    #[must_use]
    pub const fn needs_approval(self) -> bool {
        self as u8 >= Self::Sealed as u8
    }

    /// Whether the key that opens it is wiped when the owner locks the vault.
    #[must_use]
    pub const fn needs_session(self) -> bool {
        self as u8 >= Self::Private as u8
    }
}

impl TryFrom<u8> for Level {
    type Error = NoLevel;

    fn try_from(number: u8) -> Result<Self, NoLevel> {
        Self::ALL.get(usize::from(number)).copied().ok_or(NoLevel)
    }
}

impl From<Level> for u8 {
    fn from(level: Level) -> Self {
        level.number()
    }
}

impl FromStr for Level {
    type Err = NoLevel;

    fn from_str(text: &str) -> Result<Self, NoLevel> {
        let known = |level: &&Self| level.name() == text || level.number().to_string() == text;
        Self::ALL.iter().find(known).copied().ok_or(NoLevel)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.number(), self.name())
    }
}
