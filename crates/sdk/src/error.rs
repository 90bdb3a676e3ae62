//! What can go wrong, each with a stable code.

use core::fmt;
use std::sync::Arc;
use std::time::Duration;

use stvor_base::{ErrorCode, UserId};

/// An error of a floor below, with the code that it brings.
trait Coded: ErrorCode + std::error::Error + Send + Sync {}

impl<E: ErrorCode + std::error::Error + Send + Sync> Coded for E {}

/// What happened, to what, and what to do, as `message [CODE]`.
///
/// ```
/// use stvor::{Error, ErrorKind};
/// let error = Error::from(ErrorKind::ClientNotReady { reason: "it was closed" });
/// assert_eq!(error.code(), "CLIENT_NOT_READY");
/// assert!(error.to_string().ends_with("[CLIENT_NOT_READY]"));
/// ```
#[derive(Clone)]
pub struct Error(Arc<ErrorKind>);

/// A result of this crate.
pub type Result<T, E = Error> = core::result::Result<T, E>;

impl Error {
    /// The stable code, for example `RECIPIENT_NOT_FOUND`. Codes of the store, of key holders and of the protocol pass
    /// through unchanged.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match &*self.0 {
            ErrorKind::RelayUnavailable { .. } => "RELAY_UNAVAILABLE",
            ErrorKind::AuthFailed { .. } => "AUTH_FAILED",
            ErrorKind::RegistrationClosed { .. } => "REGISTRATION_CLOSED",
            ErrorKind::InvalidAppToken { .. } => "INVALID_APP_TOKEN",
            ErrorKind::RecipientNotFound { .. } => "RECIPIENT_NOT_FOUND",
            ErrorKind::RecipientTimeout { .. } => "RECIPIENT_TIMEOUT",
            ErrorKind::ClientNotReady { .. } => "CLIENT_NOT_READY",
            ErrorKind::DeliveryFailed { .. } => "DELIVERY_FAILED",
            ErrorKind::QuotaExceeded { .. } => "QUOTA_EXCEEDED",
            ErrorKind::Backpressure { .. } => "BACKPRESSURE",
            ErrorKind::RateLimited { .. } => "RATE_LIMITED",
            ErrorKind::IdentityChanged { .. } => "IDENTITY_CHANGED",
            ErrorKind::FingerprintFixed { .. } => "FINGERPRINT_FIXED",
            ErrorKind::IdentityNotVerified { .. } => "IDENTITY_NOT_VERIFIED",
            ErrorKind::SafetyNumberNotShown { .. } => "SAFETY_NUMBER_NOT_SHOWN",
            ErrorKind::SafetyNumberMismatch { .. } => "SAFETY_NUMBER_MISMATCH",
            ErrorKind::UserIdTaken { .. } => "USER_ID_TAKEN",
            ErrorKind::IdentityNotFound { .. } => "IDENTITY_NOT_FOUND",
            ErrorKind::AccountDeleted { .. } => "ACCOUNT_DELETED",
            ErrorKind::IdentityHandedOver { .. } => "IDENTITY_HANDED_OVER",
            ErrorKind::IdentityExists { .. } => "IDENTITY_EXISTS",
            ErrorKind::IdentityDerived { .. } => "IDENTITY_DERIVED",
            ErrorKind::IdentityOriginUnknown { .. } => "IDENTITY_ORIGIN_UNKNOWN",
            ErrorKind::RotationUnsupported { .. } => "ROTATION_UNSUPPORTED",
            ErrorKind::RotationUnsafe { .. } => "ROTATION_UNSAFE",
            ErrorKind::SuiteFixed { .. } => "SUITE_FIXED",
            ErrorKind::MessageTooLarge { .. } => "MESSAGE_TOO_LARGE",
            ErrorKind::RollbackDetected { .. } => "ROLLBACK_DETECTED",
            ErrorKind::RelayProtocol { .. } => "RELAY_PROTOCOL",
            ErrorKind::Superseded => "SUPERSEDED",
            ErrorKind::GroupNotFound { .. } => "GROUP_NOT_FOUND",
            ErrorKind::ClaimLost => "CLAIM_LOST",
            ErrorKind::CloneDetected { .. } => "CLONE_DETECTED",
            ErrorKind::PeerBlocked { .. } => "PEER_BLOCKED",
            ErrorKind::InvalidConfig { .. } => "INVALID_CONFIG",
            ErrorKind::InvalidArgument { .. } => "INVALID_ARGUMENT",
            ErrorKind::NotForProduction { .. } => "NOT_FOR_PRODUCTION",
            ErrorKind::Passed(PassedOn(error)) => error.code(),
        }
    }

    /// The message without its code.
    #[must_use]
    pub fn message(&self) -> String {
        self.0.to_string()
    }

    /// Whether the same call may succeed later without a change by the caller.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match &*self.0 {
            ErrorKind::RelayUnavailable { .. }
            | ErrorKind::RecipientTimeout { .. }
            | ErrorKind::RateLimited { .. } => true,
            ErrorKind::Passed(PassedOn(error)) => error.retryable(),
            _ => false,
        }
    }

    /// Whether what a store met may be over when it is asked again, or another process came first.
    pub(crate) fn passes(&self) -> bool {
        // Of a store of the application's own nobody knows what its failures mean.
        self.retryable() || ["CLIENT_NOT_READY", "STORE_UNCERTAIN", "STORE_FAILED"].contains(&self.code())
    }

    /// What kind of error it is.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.0
    }

    /// Wraps an error of a floor below, keeping its code. A store is closed by its client: to the caller it is that one that is
    /// not there any more.
    pub(crate) fn passed<E: ErrorCode + std::error::Error + Send + Sync + 'static>(error: E) -> Self {
        let below: &(dyn core::any::Any + 'static) = &error;
        if let Some(stvor_store::StoreError::Closed) = below.downcast_ref() {
            return Self::not_ready("it was closed");
        }
        Self(Arc::new(ErrorKind::Passed(PassedOn(Arc::new(error)))))
    }

    pub(crate) fn not_ready(reason: &'static str) -> Self {
        ErrorKind::ClientNotReady { reason }.into()
    }

    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        ErrorKind::RelayUnavailable { reason: reason.into() }.into()
    }

    pub(crate) fn relay_protocol(what: impl Into<String>) -> Self {
        ErrorKind::RelayProtocol { what: what.into() }.into()
    }

    pub(crate) fn argument(what: &'static str) -> Self {
        ErrorKind::InvalidArgument { what }.into()
    }

    pub(crate) fn config(what: impl Into<String>) -> Self {
        ErrorKind::InvalidConfig { what: what.into() }.into()
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self(Arc::new(kind))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.0, self.code())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.0 {
            ErrorKind::Passed(PassedOn(error)) => error.source(),
            _ => None,
        }
    }
}

impl ErrorCode for Error {
    fn code(&self) -> &'static str {
        Error::code(self)
    }

    fn retryable(&self) -> bool {
        Error::retryable(self)
    }

    fn render(&self) -> String {
        self.to_string()
    }
}

impl From<stvor_base::InvalidName> for Error {
    fn from(error: stvor_base::InvalidName) -> Self {
        Self::passed(error)
    }
}

/// An error of the store, of a key holder or of the protocol.
#[derive(Clone)]
pub struct PassedOn(Arc<dyn Coded>);

impl fmt::Debug for PassedOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.0, self.0.code())
    }
}

impl fmt::Display for PassedOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The kinds of errors. The doc comment of a variant is what its message says.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The relay does not answer.
    #[error("{reason}: check that the relay runs and that its URL is right")]
    RelayUnavailable {
        /// What was tried and what came back.
        reason: String,
    },
    /// The relay refused this app token, client token or device.
    #[error("the relay refused the log-in: {reason}")]
    AuthFailed {
        /// The relay's words.
        reason: String,
    },
    /// The name is new to the relay, and the credential may not register it.
    #[error(
        "the relay does not register `{user}` for an app token: connect with a client token of your backend for this user, \
         or ask the relay's operator for `open_registration = true`"
    )]
    RegistrationClosed {
        /// Who is not registered.
        user: UserId,
    },
    /// The app token is malformed, of a kind that this relay does not take, or unknown to it.
    #[error("the app token is not valid: {reason}")]
    InvalidAppToken {
        /// Why.
        reason: String,
    },
    /// The relay does not know this user.
    #[error("the relay knows no user \"{user}\": they must connect once before they can get messages")]
    RecipientNotFound {
        /// Who.
        user: UserId,
    },
    /// The user did not appear in time.
    #[error("user \"{user}\" did not appear at the relay within {waited:?}: nothing was queued")]
    RecipientTimeout {
        /// Who.
        user: UserId,
        /// How long was waited.
        waited: Duration,
    },
    /// The client can not do this now.
    #[error("the client is not ready: {reason}")]
    ClientNotReady {
        /// Why.
        reason: &'static str,
    },
    /// A message could not be brought to its recipient.
    #[error("message {id} to \"{user}\" was not delivered: {reason}")]
    DeliveryFailed {
        /// The message.
        id: stvor_base::ContentId,
        /// To whom.
        user: UserId,
        /// Why.
        reason: String,
    },
    /// A quota of the app, of the recipient's mailbox or of this client is used up.
    #[error("a quota is used up: {what}")]
    QuotaExceeded {
        /// Which one.
        what: String,
    },
    /// More was handed in than is done: the call was not begun.
    #[error(
        "the call was not begun: more than {limit} {what}; wait for calls that are under way, then try again"
    )]
    Backpressure {
        /// What of.
        what: &'static str,
        /// How many at most.
        limit: usize,
    },
    /// The relay asks for a slower pace.
    #[error("the relay asks to slow down: try again in {retry_after:?}")]
    RateLimited {
        /// When to try again.
        retry_after: Duration,
    },
    /// The user's identity is not the one that was pinned.
    #[error(
        "the identity of \"{user}\" changed: compare safety numbers, then accept the new identity or block the user"
    )]
    IdentityChanged {
        /// Who.
        user: UserId,
    },
    /// The application's own fingerprint store holds another fingerprint of a user than the accepted one, and keeps it.
    #[error(
        "your fingerprint store holds another fingerprint of \"{user}\" and does not replace it: compare safety numbers, delete \
         the fingerprint of \"{user}\" from that store yourself, then accept the identity again"
    )]
    FingerprintFixed {
        /// Who.
        user: UserId,
    },
    /// The trust policy does not allow this identity (yet).
    #[error(
        "the identity of \"{user}\" is not verified, and the trust policy asks for it: compare safety numbers and verify"
    )]
    IdentityNotVerified {
        /// Who.
        user: UserId,
    },
    /// A safety number is to be marked as compared that this client did not show.
    #[error(
        "look at the safety number with \"{user}\" first and compare it: what is marked is what was shown"
    )]
    SafetyNumberNotShown {
        /// Who.
        user: UserId,
    },
    /// The digits that were compared are not those of the safety number with the peer.
    #[error(
        "the safety number with \"{user}\" is not this one: a digit was misread, or somebody sits between; compare again by a \
         way that nobody else can write to"
    )]
    SafetyNumberMismatch {
        /// With whom.
        user: UserId,
    },
    /// Another identity registered this user id first.
    #[error(
        "user id \"{user}\" belongs to another identity at this relay: restore its data directory, or have the operator reset the user"
    )]
    UserIdTaken {
        /// Which one.
        user: UserId,
    },
    /// The user has no identity in this store.
    #[error(
        "\"{user}\" has no identity here: is the name right, and the data directory or server? connect makes one"
    )]
    IdentityNotFound {
        /// Who.
        user: UserId,
    },
    /// The account was deleted at the relay before an earlier run of the program ended.
    #[error(
        "the account of \"{user}\" was deleted, and an earlier run of the program ended before everything of it was removed here: that is done now; connect again for a new account"
    )]
    AccountDeleted {
        /// Whose.
        user: UserId,
    },
    /// The relay knows the user by an identity that this one, or one that it comes from, handed over to.
    #[error(
        "the relay has a rotation by which this identity of \"{user}\" handed over to another one: if you made it, use the store that has the new \
         identity, for this is an older copy; if not, somebody has your key: warn your contacts by another way, and have the operator reset the user"
    )]
    IdentityHandedOver {
        /// Whose.
        user: UserId,
    },
    /// The user has an identity in this store, and it is another one than was asked for.
    #[error(
        "\"{user}\" has an identity here already, and an identity is made once: use it as it is, or another data directory"
    )]
    IdentityExists {
        /// Who.
        user: UserId,
    },
    /// The identity follows from a recovery phrase or passphrase, which would be worth nothing after a rotation.
    #[error(
        "the identity of {user} follows from a recovery phrase or passphrase, which would be of no use after a rotation; if others may know it, take the name over with a new identity"
    )]
    IdentityDerived {
        /// Whose.
        user: UserId,
    },
    /// Whether the identity follows from a recovery phrase or passphrase is not known: it was made by an older version.
    #[error(
        "whether the identity of {user} follows from a recovery phrase or passphrase is not known: if it does, open it once with that, and do not rotate it; if it does not, say so and rotate again"
    )]
    IdentityOriginUnknown {
        /// Whose.
        user: UserId,
    },
    /// The store may lose a commit that it acknowledged, and with it the only copy of the new identity.
    #[error(
        "the store may lose what it acknowledged, and with that the new identity for good ({finding}): {fix}; or say that you take the risk"
    )]
    RotationUnsafe {
        /// The finding about the store.
        finding: &'static str,
        /// The way to fix it.
        fix: String,
    },
    /// The identity can not be rotated here.
    #[error("the identity can not be rotated: {reason}")]
    RotationUnsupported {
        /// Why.
        reason: &'static str,
    },
    /// The identity in the store has another suite than the app was set up with.
    #[error(
        "the identity of \"{user}\" here is of the suite {stored}, and the app asks for {wanted}: an identity keeps its suite, so \
         ask for {stored}, or use another data directory and user"
    )]
    SuiteFixed {
        /// Whose.
        user: UserId,
        /// What the store has.
        stored: stvor_base::Suite,
        /// What the app asks for.
        wanted: stvor_base::Suite,
    },
    /// The content does not fit a message.
    #[error("a message of {size} bytes is too large: {limit} bytes at most")]
    MessageTooLarge {
        /// Its size in bytes.
        size: usize,
        /// The most that fits, in bytes.
        limit: usize,
    },
    /// The relay saw later sends of this device than the store holds: an old copy of the data directory is in use.
    #[error(
        "the relay saw send {relay} of this device, the store knows {own}: the data directory is an old copy, its sessions would reuse keys; use the newest copy, or recover from the rollback, which starts fresh sessions"
    )]
    RollbackDetected {
        /// The highest send counter that the relay saw.
        relay: u64,
        /// The highest send counter in the store.
        own: u64,
    },
    /// The server speaks, but not as a relay of this protocol version does.
    #[error("the server does not behave like a STVOR relay: {what}")]
    RelayProtocol {
        /// What was seen.
        what: String,
    },
    /// Another process took over this device's connection.
    #[error(
        "another connection of this device took over: this client stopped receiving; one process per data directory"
    )]
    Superseded,
    /// There is no such group here.
    #[error("there is no group {group} here: a member has to add you first")]
    GroupNotFound {
        /// Which one.
        group: stvor_base::GroupId,
    },
    /// Another instance took over a message that this one was given, because this one was silent for too long.
    #[error(
        "this instance was silent for so long that another one took the message over: it may be processed twice, its id is the same"
    )]
    ClaimLost,
    /// Another store with the identity of this device is connected to the relay.
    #[error(
        "the device of \"{user}\" is connected with its keys in another store: one of the two is a copy; close the other one, the client keeps trying"
    )]
    CloneDetected {
        /// Whose device.
        user: UserId,
    },
    /// The user is blocked.
    #[error("\"{user}\" is blocked: unblock them first")]
    PeerBlocked {
        /// Who.
        user: UserId,
    },
    /// A setting can not be used.
    #[error("a setting can not be used: {what}")]
    InvalidConfig {
        /// Which, why, and what to write instead.
        what: String,
    },
    /// A call was given something that it can not take.
    #[error("an argument can not be used: {what}")]
    InvalidArgument {
        /// Which, and why.
        what: &'static str,
    },
    /// Production mode was asked for, and something is missing or weak.
    #[error("this set-up is not for production:{}", crate::production::list(findings))]
    NotForProduction {
        /// All of it.
        findings: Vec<crate::Finding>,
    },
    /// An error of the store, of a key holder or of the protocol.
    #[error("{0}")]
    Passed(PassedOn),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_render_their_message_then_their_code_once() {
        let error = Error::unavailable("Relay handshake timeout");
        assert!(error.to_string().starts_with("Relay handshake timeout"), "{error}");
        assert!(error.to_string().ends_with(" [RELAY_UNAVAILABLE]"), "{error}");
        assert_eq!(error.render(), error.to_string());
        assert_eq!(format!("{error:?}"), error.to_string());
        assert!(error.retryable());
    }

    #[test]
    fn codes_from_below_pass_through() {
        let error = Error::from(UserId::new("").unwrap_err());
        assert_eq!(error.code(), "INVALID_NAME");
        assert!(error.to_string().ends_with(" [INVALID_NAME]"));
        assert!(!error.retryable());
    }
}
