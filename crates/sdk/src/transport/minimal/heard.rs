//! What comes from a minimal relay. Whatever is not for us is nothing.

use serde::Deserialize;
use stvor_base::{Address, MessageId, UserId};

use super::announced::bytes_of;
use super::device;

/// The JSON as it came.
#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    user: Option<String>,
    #[serde(rename = "pub")]
    public: Option<String>,
    from: Option<String>,
    device: Option<u32>,
    id: Option<String>,
    blob: Option<String>,
    stvor: Option<u32>,
}

/// Something that concerns us.
pub(super) enum Heard {
    /// Somebody is there.
    Announce { user: UserId, public: String },
    /// A message. Who it says that it is from only selects the conversation.
    Message { from: Address, id: MessageId, blob: Vec<u8> },
}

impl Heard {
    pub(super) fn read(text: &str) -> Option<Self> {
        let raw: Raw<'_> = serde_json::from_str(text).ok()?;
        match raw.kind {
            "announce" => Some(Self::Announce { user: UserId::new(&raw.user?).ok()?, public: raw.public? }),
            "message" if raw.stvor == Some(1) => {
                let from = UserId::new(&raw.from?).ok()?;
                let blob = bytes_of(&raw.blob?)?;
                let from = Address::new(from, device(raw.device?)?);
                Some(Self::Message { from, id: raw.id?.parse().ok()?, blob })
            }
            _ => None,
        }
    }

    /// Whether this is the echo of an announcement.
    pub(super) fn announces(&self, name: &UserId, what: &str) -> bool {
        matches!(self, Self::Announce { user, public } if user == name && public == what)
    }
}
