//! Names of backup files. They say what a file is without opening it, so that old ones can be removed by who can not.

use core::fmt;
use core::str::FromStr;

use jiff::tz::TimeZone;
use jiff::{Timestamp, civil::DateTime};

use super::Manifest;
use crate::VaultError;

const FORM: &str = "%Y%m%dT%H%M%SZ";

/// The name of a backup file: `vault-20270115T080000Z-0011223344556677-full.age`, or with `-after-8899aabbccddeeff` at its
/// end for one that builds on another.
///
/// ```
/// use stvor_vault::backup::BackupName;
/// let name: BackupName = "vault-20270115T080000Z-0011223344556677-full.age".parse()?;
/// assert_eq!((name.made, name.parent.is_none()), (1_800_000_000_000, true));
/// # Ok::<(), stvor_vault::VaultError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackupName {
    /// When it was made, in milliseconds since the Unix epoch; whole seconds.
    pub made: u64,
    /// The first half of its name, in hexadecimal digits.
    pub id: String,
    /// That of the backup that it builds on.
    pub parent: Option<String>,
}

fn half(id: &str) -> String {
    id.chars().take(16).collect()
}

impl BackupName {
    /// The name of the file of a backup.
    #[must_use]
    pub fn of(manifest: &Manifest) -> Self {
        Self {
            made: manifest.made / 1_000 * 1_000,
            id: half(&manifest.id.to_string()),
            parent: manifest.parent.as_ref().map(|parent| half(&parent.id.to_string())),
        }
    }
}

impl fmt::Display for BackupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let made = i64::try_from(self.made).ok().and_then(|millis| Timestamp::from_millisecond(millis).ok());
        let made = made.unwrap_or(Timestamp::MAX).strftime(FORM);
        match &self.parent {
            None => write!(f, "vault-{made}-{}-full.age", self.id),
            Some(parent) => write!(f, "vault-{made}-{}-after-{parent}.age", self.id),
        }
    }
}

impl FromStr for BackupName {
    type Err = VaultError;

    /// # Errors
    /// [`VaultError::Invalid`] for another form.
    fn from_str(name: &str) -> Result<Self, VaultError> {
        let other = || VaultError::invalid(format!("{name} is not the name of a backup file"));
        let digits =
            |text: &str| text.len() == 16 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        let middle =
            name.strip_prefix("vault-").and_then(|rest| rest.strip_suffix(".age")).ok_or_else(other)?;
        let mut parts = middle.splitn(3, '-');
        let (Some(made), Some(id), Some(kind)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(other());
        };
        let made = DateTime::strptime(FORM, made).ok().and_then(|at| at.to_zoned(TimeZone::UTC).ok());
        let made =
            made.and_then(|at| u64::try_from(at.timestamp().as_millisecond()).ok()).ok_or_else(other)?;
        let parent = match kind {
            "full" => None,
            _ => Some(kind.strip_prefix("after-").filter(|id| digits(id)).ok_or_else(other)?.to_owned()),
        };
        if digits(id) { Ok(Self { made, id: id.to_owned(), parent }) } else { Err(other()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        for parent in [None, Some("8899aabbccddeeff".to_owned())] {
            let name = BackupName { made: 1_800_000_000_000, id: "0011223344556677".into(), parent };
            assert_eq!(name.to_string().parse::<BackupName>().unwrap(), name);
        }
        for bad in [
            "vault.db",
            "vault-20270115T080000Z-0011223344556677-half.age",
            "vault-20271315T080000Z-0011223344556677-full.age",
            "vault-20270115T080000Z-001122334455667-full.age",
            "vault-20270115T080000Z-0011223344556677-after-.age",
            "vault-20270115T080000Z-0011223344556677-full.age.new",
        ] {
            assert!(bad.parse::<BackupName>().is_err(), "{bad}");
        }
    }
}
