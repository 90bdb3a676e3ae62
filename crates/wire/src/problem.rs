//! Stable codes, and problems over HTTP (RFC 9457).

use serde::{Deserialize, Serialize};

use crate::frame::FrameError;
use crate::proto;

/// Media type of [`Problem`].
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Where the `type` of a problem points; the lower-case code with hyphens follows.
pub const PROBLEM_TYPE_BASE: &str = "https://stvor.dev/problems/";

/// WebSocket close codes are this plus the code's number.
pub const CLOSE_CODE_BASE: u16 = 4000;

macro_rules! codes {
    ($($variant:ident = $text:literal, $status:literal, $retryable:literal;)*) => {
        /// Why a relay refuses something. The same words on the wire, over HTTP and in the SDK.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Code {
            $(#[doc = concat!("`", $text, "`.")] $variant,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The stable word.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The HTTP status that goes with it.
            #[must_use]
            pub const fn http_status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// Whether the same request may succeed later, or on a new connection, without a change by the caller.
            #[must_use]
            pub const fn retryable(self) -> bool {
                match self { $(Self::$variant => $retryable,)* }
            }

            const fn proto(self) -> proto::Code {
                match self { $(Self::$variant => proto::Code::$variant,)* }
            }

            const fn from_proto(code: proto::Code) -> Option<Self> {
                match code {
                    proto::Code::Unspecified => None,
                    $(proto::Code::$variant => Some(Self::$variant),)*
                }
            }
        }
    };
}

codes! {
    InvalidAppToken = "INVALID_APP_TOKEN", 401, false;
    AuthFailed = "AUTH_FAILED", 401, false;
    UserIdTaken = "USER_ID_TAKEN", 409, false;
    RateLimited = "RATE_LIMITED", 429, true;
    QuotaExceeded = "QUOTA_EXCEEDED", 429, false;
    MailboxFull = "MAILBOX_FULL", 507, true;
    IdConflict = "ID_CONFLICT", 409, false;
    LaneGap = "LANE_GAP", 409, false;
    BadPadding = "BAD_PADDING", 400, false;
    FrameTooLarge = "FRAME_TOO_LARGE", 413, false;
    RecipientNotFound = "RECIPIENT_NOT_FOUND", 404, false;
    Draining = "DRAINING", 503, true;
    Superseded = "SUPERSEDED", 409, false;
    SlowConsumer = "SLOW_CONSUMER", 503, true;
    MalformedFrame = "MALFORMED_FRAME", 400, false;
    UnexpectedFrame = "UNEXPECTED_FRAME", 400, false;
    UnsupportedVersion = "UNSUPPORTED_VERSION", 400, false;
    OriginMismatch = "ORIGIN_MISMATCH", 403, false;
    HandshakeTimeout = "HANDSHAKE_TIMEOUT", 408, true;
    HeartbeatTimeout = "HEARTBEAT_TIMEOUT", 408, true;
    AckMismatch = "ACK_MISMATCH", 409, false;
    InvalidDeviceList = "INVALID_DEVICE_LIST", 400, false;
    UnknownDevice = "UNKNOWN_DEVICE", 403, false;
    RegistrationClosed = "REGISTRATION_CLOSED", 403, false;
    StoreUnavailable = "STORE_UNAVAILABLE", 503, true;
    TooMany = "TOO_MANY", 429, true;
    LoggedOut = "LOGGED_OUT", 401, false;
    AccountDeleted = "ACCOUNT_DELETED", 410, false;
    NotFound = "NOT_FOUND", 404, false;
    BadRequest = "BAD_REQUEST", 400, false;
    Internal = "INTERNAL", 500, true;
    WebsocketRequired = "WEBSOCKET_REQUIRED", 426, false;
    MethodNotAllowed = "METHOD_NOT_ALLOWED", 405, false;
    CounterRepeated = "COUNTER_REPEATED", 409, false;
    CloneDetected = "CLONE_DETECTED", 409, true;
    IdentityHandedOver = "IDENTITY_HANDED_OVER", 409, false;
}

impl Code {
    /// The number on the wire.
    #[must_use]
    pub const fn to_wire(self) -> i32 {
        self.proto() as i32
    }

    /// Reads a number off the wire.
    ///
    /// # Errors
    /// [`FrameError::Field`] for 0. A number that this build does not know is [`Code::Internal`]: relays may be newer
    /// than clients, and an unknown refusal is still a refusal.
    pub fn from_wire(number: i32) -> Result<Self, FrameError> {
        match proto::Code::try_from(number) {
            Ok(code) => Self::from_proto(code).ok_or(FrameError::Field("code")),
            Err(_) => Ok(Self::Internal),
        }
    }

    /// The WebSocket close code.
    #[must_use]
    pub fn close_code(self) -> u16 {
        CLOSE_CODE_BASE.saturating_add(u16::try_from(self.to_wire()).unwrap_or(u16::MAX))
    }

    /// The code of a WebSocket close code.
    #[must_use]
    pub fn from_close_code(close: u16) -> Option<Self> {
        let number = i32::from(close.checked_sub(CLOSE_CODE_BASE)?);
        proto::Code::try_from(number).ok().and_then(Self::from_proto)
    }

    /// Reads the stable word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == word)
    }
}

impl core::fmt::Display for Code {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(self.as_str())
    }
}

/// A refusal over HTTP, as `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable URI for the kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened here, and what to do.
    pub detail: String,
    /// The stable code.
    pub code: String,
}

impl Problem {
    /// A problem.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let slug = code.as_str().to_ascii_lowercase();
        let mut title = slug.replace('_', " ");
        if let Some(first) = title.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        Self {
            kind: format!("{PROBLEM_TYPE_BASE}{}", slug.replace('_', "-")),
            title,
            status: code.http_status(),
            detail: detail.into(),
            code: code.as_str().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_wire_word_and_close_code() {
        for code in Code::ALL {
            assert_eq!(Code::from_wire(code.to_wire()), Ok(*code));
            assert_eq!(Code::parse(code.as_str()), Some(*code));
            assert_eq!(Code::from_close_code(code.close_code()), Some(*code));
            assert!((400..600).contains(&code.http_status()));
        }
    }

    #[test]
    fn the_proto_file_has_no_code_that_this_list_lacks() {
        let known = (1..1000).filter(|number| proto::Code::try_from(*number).is_ok()).count();
        assert_eq!(known, Code::ALL.len());
    }

    #[test]
    fn no_code_is_refused_and_a_newer_one_is_still_a_refusal() {
        assert_eq!(Code::from_wire(0), Err(FrameError::Field("code")));
        assert_eq!(Code::from_wire(9999), Ok(Code::Internal));
        assert_eq!(Code::from_close_code(1000), None);
    }

    #[test]
    fn a_problem_names_its_type_title_and_status() {
        let problem = Problem::new(Code::RateLimited, "wait a second");
        assert_eq!(problem.kind, "https://stvor.dev/problems/rate-limited");
        assert_eq!((problem.title.as_str(), problem.status), ("Rate limited", 429));
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(json["type"], "https://stvor.dev/problems/rate-limited");
        assert_eq!(json["code"], "RATE_LIMITED");
    }
}
