//! Safety numbers as Signal shows them: 60 digits to read out, and a form to scan.
//!
//! ```text
//! H_1     = SHA-512(00 00 | key 33 | stable id | key 33),  H_i = SHA-512(H_i-1 | key 33),  i up to 5,200
//! digits  = for each of the first six groups of 5 bytes: big-endian integer mod 100000, 5 digits; the smaller half first
//! scanned = { 1 version 2, 2 { 1 own half, first 32 bytes }, 3 { 1 peer's half, first 32 bytes } }
//! ```
//!
//! What was scanned is as hostile as a message: its size and its fields are checked before it is decoded.

use core::fmt;

use prost::Message as _;
use stvor_crypto::kdf::{constant_time_eq, sha512};

use super::SignalError;
use super::keys::PublicKey;
use super::wire::{Field, decode, scan};
use crate::limits::{MAX_SCANNED_CODE, SAFETY_ITERATIONS};
use crate::safety::digits;

/// The version of the scannable form.
const SCANNABLE: u32 = 2;

mod pb {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Half {
        #[prost(bytes = "vec", optional, tag = "1")]
        pub content: Option<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Combined {
        #[prost(uint32, optional, tag = "1")]
        pub version: Option<u32>,
        /// A [`Half`], as its bytes.
        #[prost(bytes = "vec", optional, tag = "2")]
        pub own: Option<Vec<u8>>,
        /// Likewise.
        #[prost(bytes = "vec", optional, tag = "3")]
        pub peer: Option<Vec<u8>>,
    }
}

const HALF: &[Field] = &[Field::Bytes];
const COMBINED: &[Field] = &[Field::Integer, Field::Bytes, Field::Bytes];

/// The safety number of two people, the same for both.
///
/// ```
/// use stvor_crypto::SystemRandom;
/// use stvor_protocol::signal::{Fingerprint, KeyPair, ScanOutcome};
/// let rng = &mut SystemRandom::new();
/// let (alice, bob) = (KeyPair::generate(rng)?.public(), KeyPair::generate(rng)?.public());
/// let hers = Fingerprint::new((b"+14155550100", &alice), (b"+14155550101", &bob));
/// let his = Fingerprint::new((b"+14155550101", &bob), (b"+14155550100", &alice));
/// assert_eq!(hers.to_string(), his.to_string());
/// assert_eq!(hers.compare(&his.scannable()), ScanOutcome::Match);
/// # Ok::<(), stvor_protocol::signal::SignalError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Fingerprint {
    own: [u8; 64],
    peer: [u8; 64],
}

/// What a scanned code says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanOutcome {
    /// Both see the same identities.
    Match,
    /// At least one of the two sees another identity.
    Mismatch,
    /// The scanned bytes are no safety number of this version.
    NotASafetyCode,
}

impl Fingerprint {
    /// The number of us and a peer, each a stable id (a phone number or service id, as bytes) and an identity key.
    /// Slow on purpose: 10,400 hashes.
    #[must_use]
    pub fn new(own: (&[u8], &PublicKey), peer: (&[u8], &PublicKey)) -> Self {
        Self { own: half(own), peer: half(peer) }
    }

    /// The 60 digits, without spaces.
    #[must_use]
    pub fn digits(&self) -> String {
        let mut halves = [digits(&self.own), digits(&self.peer)];
        halves.sort();
        halves.concat()
    }

    /// What to show as a QR code.
    #[must_use]
    pub fn scannable(&self) -> Vec<u8> {
        let half = |half: &[u8; 64]| Some(pb::Half { content: Some(half[..32].to_vec()) }.encode_to_vec());
        pb::Combined { version: Some(SCANNABLE), own: half(&self.own), peer: half(&self.peer) }
            .encode_to_vec()
    }

    /// Compares what was scanned from the peer's screen.
    #[must_use]
    pub fn compare(&self, scanned: &[u8]) -> ScanOutcome {
        match read(scanned) {
            Ok((Some(SCANNABLE), theirs, ours)) => {
                let same = [&theirs[..], &ours].concat();
                let expected = [&self.peer[..32], &self.own[..32]].concat();
                let lengths = theirs.len() == 32 && ours.len() == 32;
                let equal = lengths && constant_time_eq(&same, &expected);
                if equal { ScanOutcome::Match } else { ScanOutcome::Mismatch }
            }
            _ => ScanOutcome::NotASafetyCode,
        }
    }
}

/// The 60 digits.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.digits())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// The version, and both halves.
type Scanned = (Option<u32>, Vec<u8>, Vec<u8>);

/// The version and both halves of what was scanned; what is absent is empty.
fn read(scanned: &[u8]) -> Result<Scanned, SignalError> {
    if scanned.len() > MAX_SCANNED_CODE {
        return Err(SignalError::TooLarge { size: scanned.len(), limit: MAX_SCANNED_CODE });
    }
    scan(scanned, COMBINED)?;
    let code: pb::Combined = decode(scanned)?;
    let content = |half: Option<Vec<u8>>| {
        let half = half.unwrap_or_default();
        scan(&half, HALF)?;
        Ok::<_, SignalError>(decode::<pb::Half>(&half)?.content.unwrap_or_default())
    };
    Ok((code.version, content(code.own)?, content(code.peer)?))
}

fn half((id, key): (&[u8], &PublicKey)) -> [u8; 64] {
    let key = key.to_bytes();
    let mut hash = sha512(&[&[0, 0], &key, id, &key]);
    for _ in 1..SAFETY_ITERATIONS {
        hash = sha512(&[&hash, &key]);
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_key_or_id_is_a_mismatch_and_other_bytes_are_no_code() {
        let key = |byte| PublicKey::from_bytes(&[&[5][..], &[byte; 32]].concat()).unwrap();
        let (alice, bob, middle) = (key(1), key(2), key(3));
        let hers = Fingerprint::new((b"alice", &alice), (b"bob", &bob));
        let his = Fingerprint::new((b"bob", &bob), (b"alice", &alice));
        assert_eq!((hers.compare(&his.scannable()), hers.digits().len()), (ScanOutcome::Match, 60));
        for other in [
            Fingerprint::new((b"bob", &middle), (b"alice", &alice)),
            Fingerprint::new((b"bob", &bob), (b"alice", &middle)),
            Fingerprint::new((b"rob", &bob), (b"alice", &alice)),
            hers.clone(),
        ] {
            assert_eq!(hers.compare(&other.scannable()), ScanOutcome::Mismatch);
        }
        let mut later = his.scannable();
        later[1] = 1;
        assert_eq!(hers.compare(&later), ScanOutcome::NotASafetyCode);
        assert_eq!(hers.compare(b"https://example.com"), ScanOutcome::NotASafetyCode);
        assert_eq!(hers.compare(&[]), ScanOutcome::NotASafetyCode);
    }

    #[test]
    fn a_code_with_a_field_twice_or_more_than_a_screen_holds_is_no_code() {
        let key = |byte| PublicKey::from_bytes(&[&[5][..], &[byte; 32]].concat()).unwrap();
        let (alice, bob) = (key(1), key(2));
        let hers = Fingerprint::new((b"alice", &alice), (b"bob", &bob));
        let code = Fingerprint::new((b"bob", &bob), (b"alice", &alice)).scannable();
        let (version, halves) = code.split_at(2);
        let (first, second) = halves.split_at(halves.len() / 2);
        let twice = [first, &first[2..]].concat();
        let inner = [&[first[0], first[1] * 2][..], &twice[2..]].concat();
        for bad in [
            [version, &code].concat(),
            [version, second, first, second].concat(),
            [version, &inner, second].concat(),
            [&[8, 0x82, 0][..], halves].concat(),
            code[..code.len() - 1].to_vec(),
        ] {
            assert_eq!(hers.compare(&bad), ScanOutcome::NotASafetyCode, "{bad:02x?}");
        }
        // Fields that nobody knows are skipped, as in messages, within the bound.
        let unknown = |length: usize| {
            let rest = length - code.len() - 3;
            let high = u8::try_from(rest >> 7).unwrap();
            let low = u8::try_from(rest & 0x7f).unwrap() | 0x80;
            [&code[..], &[0x3a, low, high], &vec![0; rest]].concat()
        };
        assert_eq!(hers.compare(&unknown(MAX_SCANNED_CODE)), ScanOutcome::Match);
        assert_eq!(hers.compare(&unknown(MAX_SCANNED_CODE + 1)), ScanOutcome::NotASafetyCode);
    }
}
