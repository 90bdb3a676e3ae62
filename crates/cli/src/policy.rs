//! Settings that say how a user's client judges identities, what it tells senders, and how long it keeps messages.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::{Span, SpanRelativeTo};
use serde::{Deserialize, Serialize};
use stvor::{MismatchPolicy, ReceiptPolicy, Retention, TrustPolicy};

/// Whom to believe at first contact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Trust {
    /// Whoever comes first under a name, and nobody else after that.
    #[default]
    FirstUse,
    /// Nobody, before safety numbers were compared.
    VerifiedOnly,
}

impl From<Trust> for TrustPolicy {
    fn from(trust: Trust) -> Self {
        match trust {
            Trust::FirstUse => Self::FirstUse,
            Trust::VerifiedOnly => Self::VerifiedOnly,
        }
    }
}

/// What to do when somebody shows another identity than before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum IdentityChange {
    /// Exchange nothing until it is accepted.
    #[default]
    Reject,
    /// Take the new one, unverified, and say so.
    Replace,
}

impl From<IdentityChange> for MismatchPolicy {
    fn from(change: IdentityChange) -> Self {
        match change {
            IdentityChange::Reject => Self::Reject,
            IdentityChange::Replace => Self::Replace,
        }
    }
}

/// Which receipts senders get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Receipts {
    /// That a message was stored, and that it was read.
    #[default]
    All,
    /// That a message was stored.
    Delivered,
    /// None.
    None,
}

impl From<Receipts> for ReceiptPolicy {
    fn from(receipts: Receipts) -> Self {
        Self { delivered: receipts != Receipts::None, read: receipts == Receipts::All }
    }
}

/// How long a conversation keeps its messages: `forever`, `none`, or a span such as `30d` or `12h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Keep(pub(crate) Retention);

impl Default for Keep {
    fn default() -> Self {
        Self(Retention::Forever)
    }
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is none of: forever, none, or a span such as 30d, 12h or 90min");
        match text {
            "forever" => Ok(Self(Retention::Forever)),
            "none" => Ok(Self(Retention::None)),
            span => {
                let span: Span = span.parse().map_err(|_| wrong())?;
                let span = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
                let span = Duration::try_from(span).map_err(|_| wrong())?;
                if span.is_zero() { Err(wrong()) } else { Ok(Self(Retention::For(span))) }
            }
        }
    }
}

impl TryFrom<String> for Keep {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Keep> for String {
    fn from(keep: Keep) -> Self {
        keep.to_string()
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DAY: u64 = 24 * 60 * 60;
        match self.0 {
            Retention::None => f.write_str("none"),
            Retention::For(span) => match span.as_secs() {
                days if days % DAY == 0 && days > 0 => write!(f, "{}d", days / DAY),
                hours if hours % 3600 == 0 && hours > 0 => write!(f, "{}h", hours / 3600),
                seconds => write!(f, "{seconds}s"),
            },
            _ => f.write_str("forever"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_people_write_them() {
        let read = |text: &str| text.parse::<Keep>().map(|keep| keep.0);
        assert_eq!(read("forever"), Ok(Retention::Forever));
        assert_eq!(read("none"), Ok(Retention::None));
        assert_eq!(read("30d"), Ok(Retention::For(Duration::from_secs(30 * 86_400))));
        assert_eq!(read("12h"), Ok(Retention::For(Duration::from_secs(12 * 3_600))));
        for wrong in ["", "0s", "-1d", "soon", "30"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn spans_are_shown_as_they_are_read() {
        for text in ["forever", "none", "30d", "12h", "90s"] {
            assert_eq!(text.parse::<Keep>().unwrap().to_string(), text);
        }
    }
}
