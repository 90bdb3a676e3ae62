//! What a message carries.

use serde_json::Value;
use stvor_base::codec::CodecError;

/// Text, bytes or JSON.
///
/// ```
/// use stvor::Content;
/// assert_eq!(Content::from("hi").as_text(), Some("hi"));
/// assert_eq!(Content::from(vec![1, 2]).as_bytes(), &[1, 2]);
/// assert_eq!(Content::from(serde_json::json!({"n": 1})).kind(), "json");
/// ```
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub enum Content {
    /// UTF-8 text.
    Text(String),
    /// Bytes that mean something to the application.
    Bytes(Vec<u8>),
    /// A JSON value.
    Json(Json),
}

/// A JSON value and its serialised form, which is what travels: the receiver sees the bytes that the sender wrote.
#[derive(Clone)]
pub struct Json {
    value: Value,
    text: String,
}

impl core::fmt::Debug for Json {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Json({} bytes)", self.text.len())
    }
}

impl Json {
    /// The value.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The text that travels.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

const TEXT: u8 = 1;
const BYTES: u8 = 2;
const JSON: u8 = 3;

impl Content {
    /// JSON that is written already: it travels as it is, with the order of its keys and every digit of its numbers.
    ///
    /// ```
    /// let content = stvor::Content::json(r#"{ "b": 1.0, "a": 2 }"#)?;
    /// assert_eq!(content.as_bytes(), br#"{ "b": 1.0, "a": 2 }"#);
    /// assert_eq!(content.as_json().and_then(|value| value["a"].as_u64()), Some(2));
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the text is no JSON, is nested deeper than 127 levels, or holds half of a surrogate pair.
    pub fn json(text: impl Into<String>) -> serde_json::Result<Self> {
        let text = text.into();
        let value = serde_json::from_str(&text)?;
        Ok(Self::Json(Json { value, text }))
    }

    /// The text of [`Content::Text`].
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The JSON value of [`Content::Json`].
    #[must_use]
    pub fn as_json(&self) -> Option<&Value> {
        match self {
            Self::Json(json) => Some(&json.value),
            _ => None,
        }
    }

    /// The bytes that travel: UTF-8 of text and of JSON, or the bytes themselves.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
            Self::Json(json) => json.text.as_bytes(),
        }
    }

    /// `text`, `bytes` or `json`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::Json(_) => "json",
        }
    }

    pub(crate) fn tag(&self) -> u8 {
        match self {
            Self::Text(_) => TEXT,
            Self::Bytes(_) => BYTES,
            Self::Json(_) => JSON,
        }
    }

    /// Reads what a peer sent: text and JSON must be what they claim.
    pub(crate) fn decode(tag: u8, bytes: &[u8]) -> Result<Self, CodecError> {
        let text = || core::str::from_utf8(bytes).map_err(|_| CodecError::Value);
        match tag {
            TEXT => Ok(Self::Text(text()?.to_owned())),
            BYTES => Ok(Self::Bytes(bytes.to_vec())),
            JSON => {
                let text = text()?;
                let value = serde_json::from_str(text).map_err(|_| CodecError::Value)?;
                Ok(Self::Json(Json { value, text: text.to_owned() }))
            }
            other => Err(CodecError::Version(other)),
        }
    }
}

/// Shows kind and length, never the content: debug output ends in logs.
impl core::fmt::Debug for Content {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Content({}, {} bytes)", self.kind(), self.as_bytes().len())
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&String> for Content {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<&[u8]> for Content {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

impl From<Value> for Content {
    fn from(value: Value) -> Self {
        let text = value.to_string();
        Self::Json(Json { value, text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_kind_reads_back_as_itself() {
        for content in
            [Content::from("žluťoučký"), Content::from(vec![0, 255]), Content::from(json!([1, {"a": null}]))]
        {
            assert_eq!(Content::decode(content.tag(), content.as_bytes()), Ok(content.clone()));
        }
    }

    #[test]
    fn what_is_not_what_it_claims_is_refused() {
        assert_eq!(Content::decode(TEXT, &[0xff]), Err(CodecError::Value));
        assert_eq!(Content::decode(JSON, b"{"), Err(CodecError::Value));
        assert_eq!(Content::decode(JSON, b"{} {}"), Err(CodecError::Value));
        assert_eq!(Content::decode(9, b""), Err(CodecError::Version(9)));
    }

    #[test]
    fn deep_json_from_a_peer_is_an_error_not_a_crash() {
        let deep = "[".repeat(60_000);
        assert_eq!(Content::decode(JSON, deep.as_bytes()), Err(CodecError::Value));
    }

    #[test]
    fn debug_output_shows_no_content() {
        assert_eq!(format!("{:?}", Content::from("secret")), "Content(text, 6 bytes)");
    }

    #[test]
    fn what_a_json_message_says_is_in_no_debug_output() {
        let content = Content::from(serde_json::json!({"pin": "whisper"}));
        let Content::Json(json) = &content else { panic!("it is JSON") };
        assert_eq!(format!("{json:?}"), "Json(17 bytes)");
        assert!(!format!("{content:?}").contains("whisper"));
    }
}
