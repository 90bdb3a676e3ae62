//! Messages as they cross the boundary.

use napi::bindgen_prelude::Uint8Array;
use napi_derive::napi;
use stvor::{Content, HistoryMessage, Message};
use stvor_protocol::limits::MAX_PLAINTEXT;

use crate::failure::{argument, fits};

/// A content: text and JSON as text, bytes as bytes.
#[napi(object)]
pub struct ContentValue {
    /// `text`, `bytes` or `json`.
    pub kind: String,
    /// Text, or the text of a JSON value.
    pub text: Option<String>,
    /// Bytes.
    pub bytes: Option<Uint8Array>,
}

impl ContentValue {
    /// Copies it out of JavaScript's memory.
    pub(crate) fn read(self) -> napi::Result<Content> {
        match (self.kind.as_str(), self.text, self.bytes) {
            ("text", Some(text), None) => Ok(Content::from(text)),
            ("bytes", None, Some(bytes)) => Ok(Content::from(fits(&bytes, MAX_PLAINTEXT)?)),
            // As JavaScript wrote it: numbers and the order of keys included.
            ("json", Some(text), None) => Content::json(text)
                .map_err(|error| argument(&format!("the content can not travel as JSON: {error}"))),
            _ => Err(argument("a content is text, bytes or JSON")),
        }
    }

    pub(crate) fn of(content: &Content) -> Self {
        match content {
            Content::Bytes(bytes) => {
                Self { kind: "bytes".to_owned(), text: None, bytes: Some(Uint8Array::new(bytes.clone())) }
            }
            Content::Json(json) => {
                Self { kind: "json".to_owned(), text: Some(json.text().to_owned()), bytes: None }
            }
            other => Self {
                kind: "text".to_owned(),
                text: Some(other.as_text().unwrap_or_default().to_owned()),
                bytes: None,
            },
        }
    }
}

/// A message that arrived.
#[napi(object)]
pub struct MessageValue {
    /// The same at sender and receiver.
    pub id: String,
    /// The group that it is of; absent for a message to us alone.
    pub group: Option<String>,
    /// Who sent it.
    pub sender: String,
    /// Which of the sender's devices.
    pub device: u32,
    /// What it says.
    pub content: ContentValue,
    /// Milliseconds since the Unix epoch, by the sender's clock.
    pub sent_at: f64,
    /// Milliseconds since the Unix epoch, by ours.
    pub received_at: f64,
    /// Whether the sender's identity was verified when it arrived.
    pub verified: bool,
}

/// The last moment that JavaScript can name, in milliseconds: a peer chooses when a message was sent, and must not choose a date that throws.
const LAST_DATE: u64 = 8_640_000_000_000_000;

/// Milliseconds as JavaScript counts them.
#[allow(clippy::cast_precision_loss, reason = "up to the last date all are exact")]
pub(crate) fn millis(time: stvor::Timestamp) -> f64 {
    time.as_millis().min(LAST_DATE) as f64
}

impl MessageValue {
    pub(crate) fn of(message: &Message) -> Self {
        Self {
            id: message.id.to_string(),
            group: message.group.map(|group| group.to_string()),
            sender: message.from.as_str().to_owned(),
            device: message.device.get(),
            content: ContentValue::of(&message.content),
            sent_at: millis(message.sent_at),
            received_at: millis(message.received_at),
            verified: message.verified,
        }
    }
}

/// A message of a conversation.
#[napi(object)]
pub struct HistoryValue {
    /// Its id.
    pub id: String,
    /// Whether it came.
    pub incoming: bool,
    /// With whom the conversation is; in a group, who wrote it.
    pub peer: String,
    /// What it says.
    pub content: ContentValue,
    /// Milliseconds since the Unix epoch, by the sender's clock.
    pub sent_at: f64,
    /// Milliseconds since the Unix epoch, by ours; of our own there is none.
    pub received_at: Option<f64>,
    /// How far it came.
    pub status: String,
    /// Whether it was read.
    pub read: bool,
}

impl HistoryValue {
    pub(crate) fn of(message: &HistoryMessage) -> Self {
        Self {
            id: message.id.to_string(),
            incoming: message.direction == stvor::Direction::In,
            peer: message.peer.as_str().to_owned(),
            content: ContentValue::of(&message.content),
            sent_at: millis(message.sent_at),
            received_at: message.received_at.map(millis),
            status: message.status.name().to_owned(),
            read: message.read,
        }
    }
}
