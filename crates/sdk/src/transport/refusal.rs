//! What a relay's refusal means for this client.

use std::time::Duration;

use stvor_base::UserId;
use stvor_wire::Code;

use crate::error::{Error, ErrorKind};

/// Why a connection ended or could not start.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) error: Error,
    /// Trying again changes nothing.
    pub(crate) fatal: bool,
    /// Not before this.
    pub(crate) retry_after: Duration,
}

impl Refusal {
    pub(crate) fn retry(error: Error) -> Self {
        Self { error, fatal: false, retry_after: Duration::ZERO }
    }

    pub(crate) fn fatal(error: Error) -> Self {
        Self { error, fatal: true, retry_after: Duration::ZERO }
    }
}

/// The relay's END.
pub(crate) fn of_end(code: Code, detail: &str, retry_after: Duration, user: &UserId) -> Refusal {
    let error = error_of(code, detail, retry_after, user);
    let fatal = matches!(
        code,
        Code::InvalidAppToken
            | Code::AuthFailed
            | Code::UserIdTaken
            | Code::RecipientNotFound
            | Code::IdentityHandedOver
            | Code::RegistrationClosed
            | Code::OriginMismatch
            | Code::UnsupportedVersion
            | Code::Superseded
            | Code::LoggedOut
            | Code::AccountDeleted
            | Code::InvalidDeviceList
            | Code::UnknownDevice
    );
    Refusal { error, fatal, retry_after }
}

/// The error for a code of the relay. `user` is whom the refused request was about.
pub(crate) fn error_of(code: Code, detail: &str, retry_after: Duration, user: &UserId) -> Error {
    let reason = || if detail.is_empty() { code.as_str().to_owned() } else { detail.to_owned() };
    match code {
        Code::InvalidAppToken => ErrorKind::InvalidAppToken { reason: reason() },
        Code::RegistrationClosed => ErrorKind::RegistrationClosed { user: user.clone() },
        Code::AuthFailed
        | Code::OriginMismatch
        | Code::LoggedOut
        | Code::AccountDeleted
        | Code::InvalidDeviceList
        | Code::UnknownDevice => ErrorKind::AuthFailed { reason: reason() },
        Code::UserIdTaken => ErrorKind::UserIdTaken { user: user.clone() },
        Code::IdentityHandedOver => ErrorKind::IdentityHandedOver { user: user.clone() },
        Code::RateLimited | Code::TooMany => ErrorKind::RateLimited { retry_after },
        Code::QuotaExceeded | Code::MailboxFull => ErrorKind::QuotaExceeded { what: reason() },
        Code::RecipientNotFound => ErrorKind::RecipientNotFound { user: user.clone() },
        Code::Superseded => ErrorKind::Superseded,
        Code::CloneDetected => ErrorKind::CloneDetected { user: user.clone() },
        Code::Draining
        | Code::StoreUnavailable
        | Code::Internal
        | Code::HandshakeTimeout
        | Code::HeartbeatTimeout
        | Code::SlowConsumer => {
            ErrorKind::RelayUnavailable { reason: format!("the relay says: {}", reason()) }
        }
        _ => ErrorKind::RelayProtocol { what: format!("it answered {}: {}", code.as_str(), reason()) },
    }
    .into()
}
