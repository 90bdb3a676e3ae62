//! Safety numbers: what two people compare to know that nobody sits between them.
//!
//! ```text
//! half(user) = H_5200, with
//!   H_1 = SHA-512(label "safety number" | u32 length, user id | user key)
//!   H_i = SHA-512(H_i-1 | user key)
//! digits     = for each of the first six groups of 5 bytes of a half: big-endian integer mod 100000, 5 digits
//! number     = the digits of both halves, the smaller ones first: 60 digits
//! QR payload = "STVORSN" | u8 1 | half of the shower, first 32 bytes | half of the reader, first 32 bytes
//! ```

use core::fmt;

use stvor_base::codec::Writer;
use stvor_base::{KeyBytes, UserId};
use stvor_crypto::kdf::{constant_time_eq, sha512};

use crate::limits::SAFETY_ITERATIONS;
use crate::profile;

const QR_MAGIC: &[u8; 8] = b"STVORSN\x01";
const QR_BYTES: usize = 8 + 32 + 32;

/// One of the two.
#[derive(Debug, Clone, Copy)]
pub struct SafetyParty<'a> {
    /// Their name.
    pub user: &'a UserId,
    /// Their user key.
    pub user_key: &'a KeyBytes,
}

/// The safety number of two users, the same for both.
///
/// ```
/// use stvor_base::{KeyBytes, UserId};
/// use stvor_protocol::{QrOutcome, SafetyNumber, SafetyParty};
/// let (alice, bob): (UserId, UserId) = ("alice".parse()?, "bob".parse()?);
/// let (a, b) = (SafetyParty { user: &alice, user_key: &[4; 65].into() }, SafetyParty { user: &bob, user_key: &[5; 65].into() });
/// let (at_alice, at_bob) = (SafetyNumber::of(&a, &b), SafetyNumber::of(&b, &a));
/// assert_eq!(at_alice.to_string(), at_bob.to_string());
/// assert_eq!(at_alice.compare_qr(&at_bob.qr()), QrOutcome::Match);
/// # Ok::<(), stvor_base::InvalidName>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct SafetyNumber {
    own: [u8; 64],
    peer: [u8; 64],
}

/// What a scanned code says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QrOutcome {
    /// Both see the same identities.
    Match,
    /// At least one of the two sees another identity: somebody may sit between them.
    Mismatch,
    /// The scanned bytes are no safety number of a version known here.
    NotASafetyCode,
}

impl SafetyNumber {
    /// The number of us and a peer.
    #[must_use]
    pub fn of(own: &SafetyParty<'_>, peer: &SafetyParty<'_>) -> Self {
        Self { own: half(own), peer: half(peer) }
    }

    /// The 60 digits.
    #[must_use]
    pub fn digits(&self) -> String {
        let mut halves = [digits(&self.own), digits(&self.peer)];
        halves.sort();
        halves.concat()
    }

    /// What to show as a QR code: 72 bytes.
    #[must_use]
    pub fn qr(&self) -> Vec<u8> {
        [&QR_MAGIC[..], &self.own[..32], &self.peer[..32]].concat()
    }

    /// Compares what was scanned from the peer's screen.
    #[must_use]
    pub fn compare_qr(&self, scanned: &[u8]) -> QrOutcome {
        if scanned.len() != QR_BYTES || !scanned.starts_with(QR_MAGIC) {
            return QrOutcome::NotASafetyCode;
        }
        let expected = [&QR_MAGIC[..], &self.peer[..32], &self.own[..32]].concat();
        if constant_time_eq(&expected, scanned) { QrOutcome::Match } else { QrOutcome::Mismatch }
    }
}

/// Twelve groups of five digits.
impl fmt::Display for SafetyNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, digit) in self.digits().chars().enumerate() {
            if position > 0 && position % 5 == 0 {
                f.write_str(" ")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for SafetyNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SafetyNumber({self})")
    }
}

fn half(party: &SafetyParty<'_>) -> [u8; 64] {
    let mut name = Writer::new();
    name.bytes(party.user.as_str().as_bytes());
    let mut hash =
        sha512(&[profile::of(party.user_key.suite()).label.safety, name.as_slice(), party.user_key]);
    for _ in 1..SAFETY_ITERATIONS {
        hash = sha512(&[&hash, party.user_key]);
    }
    hash
}

/// The 30 digits of a half.
pub(crate) fn digits(half: &[u8; 64]) -> String {
    let group =
        |bytes: &[u8]| bytes.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte)) % 100_000;
    half[..30].chunks_exact(5).map(|bytes| format!("{:05}", group(bytes))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> (UserId, UserId) {
        (UserId::new("alice").unwrap(), UserId::new("bob").unwrap())
    }

    #[test]
    fn both_users_compute_the_same_sixty_digits() {
        let (alice, bob) = users();
        let (a, b) = (
            SafetyParty { user: &alice, user_key: &[4; 65].into() },
            SafetyParty { user: &bob, user_key: &[5; 65].into() },
        );
        let number = SafetyNumber::of(&a, &b);
        assert_eq!(number.digits(), SafetyNumber::of(&b, &a).digits());
        assert_eq!(number.digits().len(), 60);
        assert_eq!(number.to_string().split(' ').map(str::len).collect::<Vec<_>>(), vec![5; 12]);
    }

    #[test]
    fn another_key_or_name_gives_another_number_and_a_mismatch() {
        let (alice, bob) = users();
        let (a, b) = (
            SafetyParty { user: &alice, user_key: &[4; 65].into() },
            SafetyParty { user: &bob, user_key: &[5; 65].into() },
        );
        let number = SafetyNumber::of(&a, &b);
        let middle = SafetyParty { user: &alice, user_key: &[6; 65].into() };
        let at_bob = SafetyNumber::of(&b, &middle);
        assert_ne!(number.digits(), at_bob.digits());
        assert_eq!(number.compare_qr(&at_bob.qr()), QrOutcome::Mismatch);
        assert_eq!(number.compare_qr(&SafetyNumber::of(&b, &a).qr()), QrOutcome::Match);
        let renamed = SafetyParty { user: &bob, user_key: &[4; 65].into() };
        assert_ne!(number.digits(), SafetyNumber::of(&renamed, &b).digits());
        assert_eq!(number.compare_qr(b"https://example.com"), QrOutcome::NotASafetyCode);
        let mut later = at_bob.qr();
        later[7] = 2;
        assert_eq!(number.compare_qr(&later), QrOutcome::NotASafetyCode);
    }
}
