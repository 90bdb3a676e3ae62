//! Whom we believe to be who they say they are.
//!
//! The first identity of a user is pinned in the transaction of the first message that was encrypted to it or that
//! verified under it. Every later one must be the same, or goes to the policy.

use core::fmt;

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{KeyBytes, Suite, Timestamp, UserId};
use stvor_crypto::SecretBytes;

use crate::devices::SignedDeviceList;
use crate::error::ProtocolError;
use crate::limits::{LEFT_BEHIND_READING, MAX_EARLIER_KEYS};

const VERSION: u8 = 1;

/// The version of a pin of which a rotation changed something: as version 1, marks, and the earlier keys.
const MOVED: u8 = 2;

/// The marks of such a pin: it forked, and a person compared it with an earlier key of ours.
const FORKED: u8 = 1;
const COMPARED_BEFORE: u8 = 2;

/// What we hold a user to.
#[derive(Clone, PartialEq, Eq)]
pub struct Pin {
    /// The user's signing key.
    pub user_key: KeyBytes,
    /// The highest version of the device list that was seen.
    pub version: u64,
    /// SHA-256 of that list.
    pub list_hash: [u8; 32],
    /// Whether a person compared safety numbers: of this key and ours as it is now.
    pub verified: bool,
    /// Whether a person compared safety numbers of this key and one of ours that handed over since. The peer's key is the one
    /// that was compared, so a policy that asks for that goes on; but the number is another one, and nothing shows the peer as
    /// verified by it.
    pub compared_before: bool,
    /// When this identity was pinned.
    pub first_seen: Timestamp,
    /// The keys that handed over to this one by rotations, also those that did before it was pinned if that was shown, or that it
    /// took the place of after a rotation, oldest first: at most [`MAX_EARLIER_KEYS`].
    pub earlier: Vec<EarlierKey>,
    /// One of the earlier keys handed over to another one, too: somebody else has it. No policy takes another key of this
    /// user; only a person who names it.
    pub forked: bool,
}

/// A key that handed over to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EarlierKey {
    /// The key.
    pub user_key: KeyBytes,
    /// When we learned that it did, by our clock.
    pub left: Timestamp,
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
            compared_before: false,
            first_seen: now,
            earlier: Vec::new(),
            forked: false,
        }
    }

    /// Whether a person compared safety numbers of this key, with our present one or one of before: what
    /// [`FirstContact::VerifiedOnly`] asks for.
    #[must_use]
    pub fn was_compared(&self) -> bool {
        self.verified || self.compared_before
    }

    /// Whether this key handed over to another by a rotation, as far as it is known.
    #[must_use]
    pub fn had(&self, user_key: &KeyBytes) -> bool {
        self.earlier.iter().any(|earlier| earlier.user_key == *user_key)
    }

    /// When we learned that this key handed over, by our clock; `None` for the pinned one and others.
    #[must_use]
    pub fn left(&self, user_key: &KeyBytes) -> Option<Timestamp> {
        let earlier = self.earlier.iter().rev().find(|earlier| earlier.user_key == *user_key);
        earlier.filter(|_| self.user_key != *user_key).map(|earlier| earlier.left)
    }

    /// Whether mail that this key's sessions carry is still read: that was under way when the pin moved. A clock that was put
    /// back behind that gives no time again.
    #[must_use]
    pub fn still_reads(&self, user_key: &KeyBytes, now: Timestamp) -> bool {
        let recent =
            |earlier: &&EarlierKey| now >= earlier.left && now.since(earlier.left) <= LEFT_BEHIND_READING;
        self.earlier.iter().filter(recent).any(|earlier| earlier.user_key == *user_key)
    }

    /// The pin after it moved past `earlier`, the present key first, to `new`. Nothing is known of its device list.
    pub(crate) fn moved(&self, earlier: &[KeyBytes], new: &KeyBytes, now: Timestamp) -> Self {
        let left = |user_key: &KeyBytes| EarlierKey { user_key: *user_key, left: now };
        let mut all: Vec<EarlierKey> = self.earlier.iter().copied().chain(earlier.iter().map(left)).collect();
        all.drain(..all.len().saturating_sub(MAX_EARLIER_KEYS));
        Self {
            user_key: *new,
            version: 0,
            list_hash: [0; 32],
            verified: false,
            compared_before: false,
            first_seen: now,
            earlier: all,
            forked: self.forked,
        }
    }

    /// The pin with keys of before that it did not know, as the oldest; `None` if it knows them all, or has no room.
    pub(crate) fn knowing(&self, before: &[KeyBytes], now: Timestamp) -> Option<Self> {
        let unknown = |key: &&KeyBytes| **key != self.user_key && !self.had(key);
        let mut earlier: Vec<EarlierKey> = before
            .iter()
            .filter(unknown)
            .map(|user_key| EarlierKey { user_key: *user_key, left: now })
            .collect();
        let room = MAX_EARLIER_KEYS.saturating_sub(self.earlier.len());
        earlier.drain(..earlier.len().saturating_sub(room));
        if earlier.is_empty() {
            return None;
        }
        earlier.extend_from_slice(&self.earlier);
        Some(Self { earlier, ..self.clone() })
    }

    /// The pin of another identity that takes the place of this one. What was learned of rotations stays: nothing goes back
    /// behind them by this.
    fn replaced(&self, list: &SignedDeviceList, verified: bool, now: Timestamp) -> Self {
        let new = Self::new(list, verified, now);
        if self.earlier.is_empty() {
            return new;
        }
        let left = EarlierKey { user_key: self.user_key, left: now };
        let mut earlier: Vec<EarlierKey> = self
            .earlier
            .iter()
            .filter(|known| known.user_key != new.user_key)
            .copied()
            .chain([left])
            .collect();
        earlier.drain(..earlier.len().saturating_sub(MAX_EARLIER_KEYS));
        Self { earlier, ..new }
    }

    /// The stored form.
    #[must_use]
    pub fn to_record(&self) -> SecretBytes {
        let mut out = Writer::with_capacity(128 + self.earlier.len() * 80);
        let version = if self.earlier.is_empty() && !self.compared_before { VERSION } else { MOVED };
        out.u8(self.user_key.suite().layout(version))
            .raw(&self.user_key)
            .u64(self.version)
            .raw(&self.list_hash)
            .u8(u8::from(self.verified))
            .u64(self.first_seen.as_millis());
        if version == MOVED {
            let compared_before = if self.compared_before { COMPARED_BEFORE } else { 0 };
            out.u8((u8::from(self.forked) * FORKED) | compared_before)
                .u8(u8::try_from(self.earlier.len()).unwrap_or(u8::MAX));
            for earlier in &self.earlier {
                out.raw(&earlier.user_key).u64(earlier.left.as_millis());
            }
        }
        SecretBytes::from(out.finish())
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`ProtocolError::BadRecord`], [`ProtocolError::TooNew`].
    pub fn from_record(record: &SecretBytes) -> Result<Self, ProtocolError> {
        let decode = || {
            let mut input = Reader::new(record.expose());
            let layout = input.u8()?;
            let (suite, moved) = match Suite::of_layout(layout, MOVED) {
                Ok(suite) => (suite, true),
                Err(_) => (Suite::of_layout(layout, VERSION)?, false),
            };
            let mut pin = Self {
                user_key: KeyBytes::read(&mut input, suite)?,
                version: input.u64()?,
                list_hash: *input.array()?,
                verified: input.bool()?,
                compared_before: false,
                first_seen: Timestamp::from_millis(input.u64()?),
                earlier: Vec::new(),
                forked: false,
            };
            let marks = if moved { input.u8()? } else { 0 };
            if marks & !(FORKED | COMPARED_BEFORE) != 0 {
                return Err(CodecError::Value);
            }
            (pin.forked, pin.compared_before) = (marks & FORKED != 0, marks & COMPARED_BEFORE != 0);
            let count = if moved { usize::from(input.u8()?) } else { 0 };
            let least = usize::from(!pin.compared_before);
            if moved && !(least..=MAX_EARLIER_KEYS).contains(&count) {
                return Err(CodecError::Length);
            }
            for _ in 0..count {
                let user_key = KeyBytes::read(&mut input, suite)?;
                pin.earlier.push(EarlierKey { user_key, left: Timestamp::from_millis(input.u64()?) });
            }
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
    /// Exchange nothing before a person compared safety numbers. After a rotation of our own that comparison still counts here
    /// ([`Pin::compared_before`]); after one of the peer's it does not.
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
    pub presented: KeyBytes,
    /// The key that is pinned, if one is: then the identity changed.
    pub pinned: Option<KeyBytes>,
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
    pub user_key: KeyBytes,
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
        old: KeyBytes,
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
/// [`ProtocolError::IdentitySuperseded`] for a key that the pin moved away from, and [`ProtocolError::IdentityForked`] for
/// another one after an earlier key handed over twice, whatever the policy, unless a decision names it; [`ProtocolError::IdentityChanged`], [`ProtocolError::NotVerified`] and [`ProtocolError::AwaitingTrust`] as the policy
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
    let question = |pinned| Box::new(TrustQuestion { user: user(), presented: list.user_key, pinned });
    let verified = decision.is_some_and(|decision| decision.accept && decision.verified);
    let Some(pin) = pin else {
        return match (decision.map(|decision| decision.accept), policy.first) {
            (Some(false), _) => Err(ProtocolError::NotVerified(user())),
            (_, FirstContact::VerifiedOnly) if !verified => Err(ProtocolError::NotVerified(user())),
            (None, FirstContact::Ask) => Err(ProtocolError::AwaitingTrust(question(None))),
            _ => Ok(Verdict {
                event: IdentityEvent::New,
                pin: Pin::new(presented, verified, now),
                changed: true,
            }),
        };
    };
    if pin.user_key != list.user_key {
        // No policy goes back behind a rotation, nor to what may be of whoever has an old key: only a person who names the key.
        let named = decision.is_some_and(|decision| decision.accept);
        if pin.had(&list.user_key) && !named {
            return Err(ProtocolError::IdentitySuperseded(user()));
        }
        if pin.forked && !named {
            return Err(ProtocolError::IdentityForked(user()));
        }
        let accepted = match (decision.map(|decision| decision.accept), policy.mismatch) {
            (Some(accept), OnMismatch::Ask | OnMismatch::Reject) => accept,
            (Some(accept), OnMismatch::Replace) => accept,
            (None, OnMismatch::Replace) => true,
            (None, OnMismatch::Reject) => false,
            (None, OnMismatch::Ask) => {
                return Err(ProtocolError::AwaitingTrust(question(Some(pin.user_key))));
            }
        };
        if !accepted {
            return Err(ProtocolError::IdentityChanged(user()));
        }
        if policy.first == FirstContact::VerifiedOnly && !verified {
            return Err(ProtocolError::NotVerified(user()));
        }
        let event = IdentityEvent::Replaced { old: pin.user_key };
        return Ok(Verdict { event, pin: pin.replaced(presented, verified, now), changed: true });
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
    if policy.first == FirstContact::VerifiedOnly && !pin.was_compared() && !verified {
        return Err(ProtocolError::NotVerified(user()));
    }
    let updated = Pin {
        version: list.version,
        list_hash: *presented.hash(),
        verified: pin.verified || verified,
        compared_before: pin.compared_before && !verified,
        ..pin.clone()
    };
    let changed = updated != *pin;
    Ok(Verdict { event: IdentityEvent::Known, pin: updated, changed })
}

#[cfg(test)]
mod tests {
    use stvor_base::devices::{DeviceList, device_list_label};
    use stvor_base::{Address, AppId, DeviceId, ErrorCode};
    use stvor_crypto::random::DeterministicRandom;
    use stvor_crypto::suite::SigningKey;

    use super::*;
    use crate::devices::SignedDeviceListIn;
    use crate::identity::Identity;

    /// A user who can change the list at will.
    struct User {
        key: SigningKey,
        list: DeviceList,
    }

    impl User {
        fn new(seed: &str) -> Self {
            let mut rng = DeterministicRandom::from_label(seed);
            let address = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
            let app = AppId::new("app").unwrap();
            let (identity, _) = Identity::create(&app, &address, Timestamp::default(), &mut rng).unwrap();
            let key = SigningKey::generate(Suite::P256, &mut rng).unwrap();
            let mut list = DeviceList::decode(&identity.signed_list().bytes).unwrap();
            list.user_key = key.public();
            Self { key, list }
        }

        fn signed(&self) -> SignedDeviceListIn {
            let bytes = self.list.encode();
            let signature = self.key.sign(device_list_label(Suite::P256), &bytes).unwrap().to_vec();
            SignedDeviceListIn { bytes, signature }
        }

        fn present(&self) -> SignedDeviceList {
            self.signed().validate(&self.list.app, &self.list.user).unwrap()
        }

        fn version(&mut self, version: u64, previous: [u8; 32]) -> SignedDeviceList {
            (self.list.version, self.list.previous) = (version, previous);
            self.present()
        }
    }

    fn outcome(pin: Option<&Pin>, list: &SignedDeviceList, policy: TrustPolicy) -> &'static str {
        match judge(pin, list, (policy, None), Timestamp::default()) {
            Ok(Verdict { event: IdentityEvent::New, .. }) => "new",
            Ok(Verdict { event: IdentityEvent::Known, changed: false, .. }) => "known",
            Ok(Verdict { event: IdentityEvent::Known, changed: true, .. }) => "updated",
            Ok(Verdict { event: IdentityEvent::Replaced { .. }, .. }) => "replaced",
            Err(error) => error.code(),
        }
    }

    #[test]
    fn each_policy_judges_first_contact_and_change_as_it_says() {
        let (bob, other) = (User::new("bob").present(), User::new("other").present());
        let pin = Pin::new(&bob, false, Timestamp::default());
        let policy = |first, mismatch| TrustPolicy { first, mismatch };
        use {FirstContact as F, OnMismatch as M};
        assert_eq!(outcome(None, &bob, policy(F::FirstUse, M::Reject)), "new");
        assert_eq!(outcome(None, &bob, policy(F::Ask, M::Reject)), "AWAITING_TRUST");
        assert_eq!(outcome(None, &bob, policy(F::VerifiedOnly, M::Reject)), "IDENTITY_NOT_VERIFIED");
        assert_eq!(outcome(Some(&pin), &bob, policy(F::FirstUse, M::Reject)), "known");
        assert_eq!(outcome(Some(&pin), &bob, policy(F::VerifiedOnly, M::Reject)), "IDENTITY_NOT_VERIFIED");
        assert_eq!(outcome(Some(&pin), &other, policy(F::FirstUse, M::Reject)), "IDENTITY_CHANGED");
        assert_eq!(outcome(Some(&pin), &other, policy(F::FirstUse, M::Ask)), "AWAITING_TRUST");
        assert_eq!(outcome(Some(&pin), &other, policy(F::FirstUse, M::Replace)), "replaced");
        assert_eq!(outcome(Some(&pin), &other, policy(F::VerifiedOnly, M::Replace)), "IDENTITY_NOT_VERIFIED");
    }

    #[test]
    fn a_decision_counts_for_the_key_that_it_names_only() {
        let (bob, other) = (User::new("bob").present(), User::new("other").present());
        let pin = Pin::new(&bob, true, Timestamp::default());
        let with = |user_key, accept| {
            let decision = TrustDecision { user_key, accept, verified: false };
            judge(Some(&pin), &other, (TrustPolicy::default(), Some(&decision)), Timestamp::default())
        };
        assert!(with(pin.user_key, true).is_err());
        assert!(with(other.list().user_key, false).is_err());
        let verdict = with(other.list().user_key, true).unwrap();
        assert_eq!(verdict.event, IdentityEvent::Replaced { old: pin.user_key });
        assert!(!verdict.pin.verified);
    }

    #[test]
    fn older_lists_and_forks_are_refused_whatever_the_policy() {
        let mut bob = User::new("bob");
        let first = bob.present();
        let second = bob.version(2, *first.hash());
        let pinned = Pin::new(&second, false, Timestamp::default());
        let policy = TrustPolicy { first: FirstContact::FirstUse, mismatch: OnMismatch::Replace };
        assert_eq!(outcome(Some(&pinned), &first, policy), "BAD_DEVICE_LIST");
        assert_eq!(outcome(Some(&pinned), &second, policy), "known");
        assert_eq!(outcome(Some(&pinned), &bob.version(2, [7; 32]), policy), "BAD_DEVICE_LIST");
        assert_eq!(outcome(Some(&pinned), &bob.version(3, [7; 32]), policy), "BAD_DEVICE_LIST");
        assert_eq!(outcome(Some(&pinned), &bob.version(3, *second.hash()), policy), "updated");
        assert_eq!(outcome(Some(&pinned), &bob.version(9, [7; 32]), policy), "updated");
    }

    #[test]
    fn a_list_of_another_app_user_signer_or_device_count_is_refused() {
        let bob = User::new("bob");
        let list = &bob.list;
        let refused = |signed: &SignedDeviceListIn| {
            matches!(signed.validate(&list.app, &list.user), Err(ProtocolError::BadDeviceList(_)))
        };
        let good = bob.signed();
        assert!(!refused(&good));
        assert!(good.validate(&AppId::new("other").unwrap(), &list.user).is_err());
        assert!(good.validate(&list.app, &UserId::new("eve").unwrap()).is_err());
        for signature in
            [vec![], vec![0; 64], good.signature[..63].to_vec(), User::new("eve").signed().signature]
        {
            assert!(refused(&SignedDeviceListIn { signature, ..good.clone() }));
        }
        for bit in 0..good.bytes.len() * 8 {
            let mut changed = good.clone();
            changed.bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(refused(&changed), "{bit}");
        }
        let mut two = User::new("bob");
        let mut entry = two.list.devices[0].clone();
        entry.id = DeviceId::new(2).unwrap();
        two.list.devices.push(entry);
        assert!(refused(&two.signed()));
    }

    #[test]
    fn a_pin_knows_64_keys_of_before_and_the_newest_of_more() {
        let mut pin = Pin::new(&User::new("bob").present(), true, Timestamp::default());
        let key = |number: u8| KeyBytes::from([number; 65]);
        let keys: Vec<KeyBytes> = (1..=70).map(key).collect();
        let all = pin.knowing(&keys, Timestamp::from_millis(1)).unwrap();
        assert_eq!((all.earlier.len(), all.had(&key(6)), all.had(&key(7))), (64, false, true));
        assert_eq!(Pin::from_record(&all.to_record()).unwrap(), all);
        assert!(all.knowing(&[key(6)], Timestamp::default()).is_none(), "there is no room");
        pin = pin.knowing(&keys[1..63], Timestamp::from_millis(1)).unwrap();
        let more = pin.knowing(&[key(1), pin.user_key, key(2)], Timestamp::from_millis(2)).unwrap();
        assert_eq!((more.earlier.len(), more.earlier[0].user_key), (63, key(1)), "as the oldest");
        assert_eq!(more.left(&key(1)), Some(Timestamp::from_millis(2)));
    }

    #[test]
    fn a_pin_reads_back_and_a_later_version_is_told_apart() {
        let pin = Pin::new(&User::new("bob").present(), true, Timestamp::from_millis(7));
        let record = pin.to_record();
        assert_eq!(Pin::from_record(&record).unwrap(), pin);
        let mut bytes = record.into_exposed();
        assert_eq!(
            Pin::from_record(&SecretBytes::from_slice(&bytes[1..])).unwrap_err().code(),
            "FORMAT_TOO_NEW"
        );
        bytes.push(0);
        assert_eq!(Pin::from_record(&bytes.clone().into()).unwrap_err().code(), "BAD_RECORD");
        bytes[0] = 3;
        assert_eq!(Pin::from_record(&bytes.into()).unwrap_err().code(), "FORMAT_TOO_NEW");
    }
}
