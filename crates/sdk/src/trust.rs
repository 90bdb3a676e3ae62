//! Whom this client believes to be who they say they are.

use core::fmt;
use core::pin::Pin;
use std::sync::Arc;

use stvor_base::UserId;
pub use stvor_protocol::trust::{FirstContact as TrustPolicy, OnMismatch as MismatchPolicy};

/// Answers a [`TrustQuestion`].
pub(crate) type TrustCallback =
    Arc<dyn Fn(TrustQuestion) -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// Why trust is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TrustReason {
    /// The user was never seen.
    FirstContact,
    /// The user shows another identity than the pinned one.
    IdentityChanged,
}

/// Whether to trust an identity: what a callback is asked where a policy says "ask".
#[derive(Clone)]
#[non_exhaustive]
pub struct TrustQuestion {
    /// Whose identity it is said to be.
    pub peer: UserId,
    /// Why it is asked.
    pub reason: TrustReason,
    /// The safety number with the identity in question.
    pub safety_number: SafetyNumber,
}

impl fmt::Debug for TrustQuestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustQuestion").field("reason", &self.reason).finish_non_exhaustive()
    }
}

/// Sixty digits that two people compare, aloud or by QR code: equal digits mean that nobody sits between them.
///
/// Prints as twelve groups of five digits.
#[derive(Clone, PartialEq, Eq)]
pub struct SafetyNumber {
    number: stvor_protocol::SafetyNumber,
    verified: bool,
    /// The peer's user key that it covers: what is verified is what was compared.
    key: Vec<u8>,
}

impl SafetyNumber {
    pub(crate) fn new(number: stvor_protocol::SafetyNumber, verified: bool, key: &[u8]) -> Self {
        Self { number, verified, key: key.to_vec() }
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }

    /// The sixty digits without spaces.
    #[must_use]
    pub fn digits(&self) -> String {
        self.number.digits().to_string()
    }

    /// What a QR code of it holds.
    #[must_use]
    pub fn qr(&self) -> Vec<u8> {
        self.number.qr()
    }

    /// Whether [`crate::Client::verify`] was called for the identity that it covers.
    #[must_use]
    pub fn verified(&self) -> bool {
        self.verified
    }

    /// Whether a scanned code is the other side's code of the same two identities; `None` when it is no such code at all.
    #[must_use]
    pub fn matches_qr(&self, scanned: &[u8]) -> Option<bool> {
        match self.number.compare_qr(scanned) {
            stvor_protocol::QrOutcome::Match => Some(true),
            stvor_protocol::QrOutcome::Mismatch => Some(false),
            stvor_protocol::QrOutcome::NotASafetyCode => None,
        }
    }
}

impl fmt::Display for SafetyNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.number, f)
    }
}

impl fmt::Debug for SafetyNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SafetyNumber").field("verified", &self.verified).finish_non_exhaustive()
    }
}
