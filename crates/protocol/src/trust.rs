//! Whom we believe to be who they say they are.
//!
//! The first identity of a user is pinned in the transaction of the first message that was encrypted to it or that
//! verified under it. Every later one must be the same, or goes to the policy.

use core::fmt;

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Timestamp, UserId};
use stvor_crypto::SecretBytes;

use crate::devices::SignedDeviceList;
use crate::error::ProtocolError;
use crate::profile::active::PUBLIC_KEY;

const VERSION: u8 = 1;

/// What we hold a user to.
#[derive(Clone, PartialEq, Eq)]
pub struct Pin {
    /// The user's signing key.
    pub user_key: [u8; PUBLIC_KEY],
    /// The highest version of the device list that was seen.
    pub version: u64,
    /// SHA-256 of that list.
    pub list_hash: [u8; 32],
    /// Whether a person compared safety numbers.
    pub verified: bool,
    /// When this identity was pinned.
    pub first_seen: Timestamp,
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin")
            .field("version", &self.version)
            .field("verified", &self.verified)
            .field("first_seen", &self.first_seen)
            .finish_non_exhaustive()
    }
}

impl Pin {
    /// A first pin.
    #[must_use]
    pub fn new(list: &SignedDeviceList, verified: bool, now: Timestamp) -> Self {
        Self {
            user_key: list.list().user_key,
            version: list.list().version,
            list_hash: *list.hash(),
            verified,
            first_seen: now,
        }
    }

    /// The stored form.
    #[must_use]
    pub fn to_record(&self) -> SecretBytes {
        let mut out = Writer::with_capacity(128);
        out.u8(VERSION)
            .raw(&self.user_key)
            .u64(self.version)
            .raw(&self.list_hash)
            .u8(u8::from(self.verified))
            .u64(self.first_seen.as_millis());
        SecretBytes::from(out.finish())
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`ProtocolError::BadRecord`], [`ProtocolError::TooNew`].
    pub fn from_record(record: &SecretBytes) -> Result<Self, ProtocolError> {
        let decode = || {
            let mut input = Reader::new(record.expose());
            match input.u8()? {
                VERSION => {}
                other => return Err(CodecError::Version(other)),
            }
            let pin = Self {
                user_key: *input.array()?,
                version: input.u64()?,
                list_hash: *input.array()?,
                verified: input.bool()?,
                first_seen: Timestamp::from_millis(input.u64()?),
            };
            input.finish()?;
            Ok(pin)
        };
        decode().map_err(ProtocolError::record("pin"))
    }
}

/// What to do with an identity that was never seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FirstContact {
    /// Believe it, and hold the user to it from then on.
    #[default]
    FirstUse,
    /// Ask before the first message.
    Ask,
    /// Exchange nothing before a person compared safety numbers.
    VerifiedOnly,
}

/// What to do with an identity that is not the pinned one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnMismatch {
    /// Refuse.
    #[default]
    Reject,
    /// Ask.
    Ask,
    /// Take the new one, unverified, and tell.
    Replace,
}

/// How identities are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TrustPolicy {
    /// Identities never seen.
    pub first: FirstContact,
    /// Identities that changed.
    pub mismatch: OnMismatch,
}

/// What a policy of asking asks.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustQuestion {
    /// Of whom.
    pub user: UserId,
    /// The key that is presented.
    pub presented: [u8; PUBLIC_KEY],
    /// The key that is pinned, if one is: then the identity changed.
    pub pinned: Option<[u8; PUBLIC_KEY]>,
}

impl fmt::Debug for TrustQuestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustQuestion")
            .field("user", &self.user)
            .field("changed", &self.pinned.is_some())
            .finish_non_exhaustive()
    }
}

impl TrustQuestion {
    /// The answer to this question.
    #[must_use]
    pub fn answer(&self, accept: bool) -> TrustDecision {
        TrustDecision { user_key: self.presented, accept, verified: false }
    }
}

/// A person's or application's answer. It counts for the key that it names and no other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustDecision {
    /// Which key was judged.
    pub user_key: [u8; PUBLIC_KEY],
    /// Whether to go on with it.
    pub accept: bool,
    /// Whether safety numbers were compared as well.
    pub verified: bool,
}

/// What became of the peer's identity in an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdentityEvent {
    /// It is the pinned one.
    Known,
    /// It was pinned now.
    New,
    /// It took the place of another, as the policy or a decision said. All older sessions are gone.
    Replaced {
        /// The user key that was pinned before.
        old: [u8; PUBLIC_KEY],
    },
}

/// A judgement that lets an identity pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What happened.
    pub event: IdentityEvent,
    /// The pin from now on.
    pub pin: Pin,
    /// Whether the pin must be written.
    pub changed: bool,
}

/// Judges the identity that a device list presents.
///
/// # Errors
/// [`ProtocolError::IdentityChanged`], [`ProtocolError::NotVerified`] and [`ProtocolError::AwaitingTrust`] as the policy
/// says; [`ProtocolError::BadDeviceList`] for a list older than the pinned one or a fork of it, whatever the policy.
pub fn judge(
    pin: Option<&Pin>,
    presented: &SignedDeviceList,
    (policy, decision): (TrustPolicy, Option<&TrustDecision>),
    now: Timestamp,
) -> Result<Verdict, ProtocolError> {
    let list = presented.list();
    let user = || list.user.clone();
    let decision = decision.filter(|decision| decision.user_key == list.user_key);
    let question = |pinned| {
        Box::new(TrustQuestion { user: user(), presented: list.user_key, pinned })
    };
    let verified = decision.is_some_and(|decision| decision.accept && decision.verified);
    let Some(pin) = pin else {
        return match (decision.map(|decision| decision.accept), policy.first) {
            (Some(false), _) => Err(ProtocolError::NotVerified(user())),
            (_, FirstContact::VerifiedOnly) if !verified => Err(ProtocolError::NotVerified(user())),
            (None, FirstContact::Ask) => Err(ProtocolError::AwaitingTrust(question(None))),
            _ => Ok(Verdict { event: IdentityEvent::New, pin: Pin::new(presented, verified, now), changed: true }),
        };
    };
    if pin.user_key != list.user_key {
        let accepted = match (decision.map(|decision| decision.accept), policy.mismatch) {
            (Some(accept), OnMismatch::Ask | OnMismatch::Reject) => accept,
            (Some(accept), OnMismatch::Replace) => accept,
            (None, OnMismatch::Replace) => true,
            (None, OnMismatch::Reject) => false,
            (None, OnMismatch::Ask) => return Err(ProtocolError::AwaitingTrust(question(Some(pin.user_key)))),
        };
        if !accepted {
            return Err(ProtocolError::IdentityChanged(user()));
        }
        if policy.first == FirstContact::VerifiedOnly && !verified {
            return Err(ProtocolError::NotVerified(user()));
        }
        let event = IdentityEvent::Replaced { old: pin.user_key };
        return Ok(Verdict { event, pin: Pin::new(presented, verified, now), changed: true });
    }
    if list.version < pin.version {
        return Err(ProtocolError::BadDeviceList("it is older than one seen before"));
    }
    if list.version == pin.version && presented.hash() != &pin.list_hash {
        return Err(ProtocolError::BadDeviceList("it is a fork of the one seen before"));
    }
    if list.version == pin.version.saturating_add(1) && list.previous != pin.list_hash {
        return Err(ProtocolError::BadDeviceList("it does not follow the one seen before"));
    }
    if policy.first == FirstContact::VerifiedOnly && !pin.verified && !verified {
        return Err(ProtocolError::NotVerified(user()));
    }
    let updated = Pin {
        version: list.version,
        list_hash: *presented.hash(),
        verified: pin.verified || verified,
        ..pin.clone()
    };
    let changed = updated != *pin;
    Ok(Verdict { event: IdentityEvent::Known, pin: updated, changed })
}
