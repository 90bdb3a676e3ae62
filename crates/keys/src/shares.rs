//! A secret in n shares of which any k give it back, and fewer give nothing (Shamir, over the field of 256 elements of AES).
//!
//! A share is text that a person can read, with a version, the name of its set, and a checksum: a share that was changed, is
//! of another set, or comes twice is named, never combined into a wrong secret.
//!
//! ```
//! use stvor_crypto::{SecretBytes, SystemRandom};
//! use stvor_keys::shares::{Plan, Share, combine, split};
//!
//! let plan = Plan { label: "home vault".into(), needed: 2, total: 3 };
//! let secret = SecretBytes::from_slice(b"the real key");
//! let shares = split(&secret, &plan, &mut SystemRandom::new())?;
//! let two: Vec<Share> = shares.into_iter().skip(1).collect();
//! let text = two[0].to_text();
//! assert_eq!(Share::parse(text.expose())?.number(), 2);
//! assert!(combine(&two)? == secret);
//! # Ok::<(), stvor_keys::KeyError>(())
//! ```

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use stvor_crypto::kdf::{constant_time_eq, hkdf_sha256, sha256};
use stvor_crypto::{Random, Secret, SecretBytes};
use vsss_rs::Gf256;

use crate::{KeyError, limits};

const TITLE: &str = "STVOR share v1";
const HOLDER: &str = "share";
/// Bytes of the check value that is shared with the secret.
const CHECK: usize = 16;

fn malformed(reason: &'static str) -> KeyError {
    KeyError::Malformed { holder: HOLDER, reason }
}

/// How a secret is split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What the shares are of, for people: 1 to [`limits::MAX_LABEL`] bytes in one line.
    pub label: String,
    /// How many are needed, 2 to `total`.
    pub needed: u8,
    /// How many there are, up to [`limits::MAX_SHARES`].
    pub total: u8,
}

/// One share. It is secret.
#[derive(Debug)]
pub struct Share {
    plan: Plan,
    set: [u8; 8],
    number: u8,
    data: SecretBytes,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<SecretBytes, KeyError> {
    let bad = || malformed("its bytes are not hexadecimal digits");
    let pairs = text.as_bytes().chunks(2).map(|pair| {
        let pair = core::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2);
        let plain = |pair: &&str| pair.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        pair.filter(plain).and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or_else(bad)
    });
    pairs.collect::<Result<Vec<u8>, _>>().map(SecretBytes::from)
}

/// Splits `secret` (1 to [`limits::MAX_SHARED_SECRET`] bytes).
///
/// # Errors
/// [`KeyError::Malformed`] for a plan or secret out of range, [`KeyError::Crypto`].
pub fn split(secret: &SecretBytes, plan: &Plan, rng: &mut dyn Random) -> Result<Vec<Share>, KeyError> {
    check_plan(plan)?;
    if secret.is_empty() || secret.len() > limits::MAX_SHARED_SECRET {
        return Err(malformed("a shared secret has 1 to 1024 bytes"));
    }
    let mut set = [0; 8];
    rng.fill(&mut set)?;
    let mut whole = Vec::with_capacity(CHECK + secret.len());
    whole.extend_from_slice(check(secret.expose(), &set).expose());
    whole.extend_from_slice(secret.expose());
    let whole = SecretBytes::from(whole);
    // The library draws from a generator that can not fail; its seed is ours.
    let seed = Secret::<32>::random(rng)?;
    let mut drawing = ChaCha20Rng::from_seed(*seed.expose());
    let split = Gf256::split_bytes(plan.needed.into(), plan.total.into(), whole.expose(), &mut drawing);
    let split = split.map_err(|_| malformed("it could not be made"))?;
    let shares = split.into_iter().map(|bytes| {
        let bytes = SecretBytes::from(bytes);
        let Some((number, data)) = bytes.expose().split_first() else {
            return Err(malformed("it could not be made"));
        };
        Ok(Share { plan: plan.clone(), set, number: *number, data: SecretBytes::from_slice(data) })
    });
    shares.collect()
}

fn check(secret: &[u8], set: &[u8; 8]) -> Secret<CHECK> {
    hkdf_sha256::<CHECK>(set, secret, b"STVOR share check v1")
}

fn check_plan(plan: &Plan) -> Result<(), KeyError> {
    let label = plan.label.as_str();
    if label.is_empty() || label.len() > limits::MAX_LABEL || label.contains(char::is_control) {
        return Err(malformed("its label has 1 to 256 bytes in one line"));
    }
    let fits = plan.needed >= 2 && plan.needed <= plan.total && plan.total <= limits::MAX_SHARES;
    if fits { Ok(()) } else { Err(malformed("2 or more are needed, of at most 64")) }
}

/// Gives the secret back.
///
/// # Errors
/// [`KeyError::TooFewShares`]; [`KeyError::Malformed`] when one comes twice or they are of two sets; [`KeyError::Wrong`]
/// when a share was made to look right and is not.
pub fn combine(shares: &[Share]) -> Result<SecretBytes, KeyError> {
    let Some(first) = shares.first() else {
        return Err(KeyError::TooFewShares { needed: 2, given: 0 });
    };
    for (at, share) in shares.iter().enumerate() {
        if share.set != first.set || share.plan != first.plan || share.data.len() != first.data.len() {
            return Err(malformed("it is of another set than the first"));
        }
        if shares.iter().take(at).any(|earlier| earlier.number == share.number) {
            return Err(malformed("one was given twice"));
        }
    }
    let needed = usize::from(first.plan.needed);
    if shares.len() < needed {
        return Err(KeyError::TooFewShares { needed: first.plan.needed, given: shares.len() });
    }
    let points: Vec<Vec<u8>> = shares
        .iter()
        .take(needed)
        .map(|share| core::iter::once(share.number).chain(share.data.expose().iter().copied()).collect())
        .collect();
    let whole = Gf256::combine_bytes(&points).map_err(|_| malformed("they do not fit together"))?;
    points.into_iter().for_each(|point| drop(SecretBytes::from(point)));
    let whole = SecretBytes::from(whole);
    let (sum, secret) = whole.expose().split_at_checked(CHECK).ok_or(malformed("it is too short"))?;
    if !constant_time_eq(sum, check(secret, &first.set).expose()) {
        return Err(KeyError::Wrong { holder: HOLDER });
    }
    Ok(SecretBytes::from_slice(secret))
}

impl Share {
    /// Which one it is, from 1 on.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// How its set was split.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The name of its set: 16 hexadecimal digits.
    #[must_use]
    pub fn set(&self) -> String {
        hex(&self.set)
    }

    /// The text that its keeper keeps.
    #[must_use]
    pub fn to_text(&self) -> SecretBytes {
        let Plan { label, needed, total } = &self.plan;
        let body = format!(
            "{TITLE}\nof: {label}\nset: {}\nshare: {} of {total}, {needed} needed\ndata: {}\n",
            hex(&self.set),
            self.number,
            hex(self.data.expose())
        );
        let sum = sha256(&[body.as_bytes()]);
        let sum = hex(sum.get(..8).unwrap_or_default());
        SecretBytes::from(format!("{body}check: {sum}\n").into_bytes())
    }

    /// Reads that text. White space around it is passed over.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] for what is not exactly such a text.
    pub fn parse(text: &[u8]) -> Result<Self, KeyError> {
        if text.len() > limits::MAX_SHARE_TEXT {
            return Err(malformed("it is too long"));
        }
        let text = core::str::from_utf8(text).map_err(|_| malformed("it is not text"))?.trim();
        let (body, sum) = text.rsplit_once("check: ").ok_or(malformed("it has no line `check:`"))?;
        let expected = sha256(&[body.as_bytes()]);
        if sum != hex(expected.get(..8).unwrap_or_default()) {
            return Err(malformed("its checksum does not match: it was changed or copied wrongly"));
        }
        let mut lines = body.lines();
        if lines.next() != Some(TITLE) {
            return Err(malformed("it is not a share of version 1"));
        }
        let mut field = |name: &'static str| {
            let line = lines.next().and_then(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.strip_prefix(": ")).ok_or(malformed("a line is missing"))
        };
        let (label, set, place, data) = (field("of")?, field("set")?, field("share")?, field("data")?);
        let bad = || malformed("its line `share:` is not understood");
        let number = |text: &str| text.parse::<u8>().ok().filter(|number| *number > 0).ok_or_else(bad);
        let (which, rest) = place.split_once(" of ").ok_or_else(bad)?;
        let (total, rest) = rest.split_once(", ").ok_or_else(bad)?;
        let needed = rest.strip_suffix(" needed").ok_or_else(bad)?;
        let plan = Plan { label: label.to_owned(), needed: number(needed)?, total: number(total)? };
        check_plan(&plan)?;
        let set = unhex(set)?.expose().try_into().map_err(|_| malformed("its set is not 8 bytes"))?;
        let share = Self { plan, set, number: number(which)?, data: unhex(data)? };
        if share.number > share.plan.total || share.data.len() <= CHECK || lines.next().is_some() {
            return Err(malformed("its lines do not fit together"));
        }
        Ok(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stvor_crypto::SystemRandom;

    fn set(needed: u8, total: u8) -> (SecretBytes, Vec<Share>) {
        let secret = SecretBytes::from_slice(&[0x5a; 64]);
        let plan = Plan { label: "vault".into(), needed, total };
        let shares = split(&secret, &plan, &mut SystemRandom::new()).unwrap();
        (secret, shares)
    }

    fn copy(share: &Share) -> Share {
        Share::parse(share.to_text().expose()).unwrap()
    }

    #[test]
    fn any_k_of_n_give_the_secret_and_fewer_are_refused() {
        let (secret, shares) = set(3, 5);
        assert_eq!(shares.iter().map(Share::number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        for mask in 0_u32..32 {
            let some: Vec<Share> = shares
                .iter()
                .enumerate()
                .filter(|(at, _)| mask >> at & 1 == 1)
                .map(|(_, s)| copy(s))
                .collect();
            match combine(&some) {
                Ok(found) => assert!(some.len() >= 3 && found == secret),
                Err(KeyError::TooFewShares { .. }) => assert!(some.len() < 3),
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn a_changed_share_is_named_and_never_gives_another_secret() {
        let (_, shares) = set(2, 3);
        let text = shares[0].to_text();
        for at in 0..text.len() - 1 {
            let mut changed = text.expose().to_vec();
            changed[at] ^= 1;
            assert!(Share::parse(&changed).is_err(), "{at}");
        }
        let mut forged = copy(&shares[0]);
        forged.data.expose_mut()[20] ^= 1;
        let forged = Share::parse(forged.to_text().expose()).unwrap();
        assert!(matches!(combine(&[forged, copy(&shares[1])]), Err(KeyError::Wrong { .. })));
        let (_, others) = set(2, 3);
        assert!(matches!(combine(&[copy(&shares[0]), copy(&others[1])]), Err(KeyError::Malformed { .. })));
        assert!(matches!(combine(&[copy(&shares[0]), copy(&shares[0])]), Err(KeyError::Malformed { .. })));
    }

    #[test]
    fn plans_out_of_range_are_refused() {
        let secret = SecretBytes::from_slice(b"s");
        let rng = &mut SystemRandom::new();
        for (needed, total, fits) in
            [(1, 3, false), (2, 1, false), (2, 2, true), (64, 64, true), (2, 65, false)]
        {
            let plan = Plan { label: "v".into(), needed, total };
            assert_eq!(split(&secret, &plan, rng).is_ok(), fits, "{needed} of {total}");
        }
        let plan = Plan { label: "v".into(), needed: 2, total: 2 };
        for (length, fits) in [(0, false), (1, true), (1_024, true), (1_025, false)] {
            assert_eq!(split(&SecretBytes::from(vec![1; length]), &plan, rng).is_ok(), fits, "{length}");
        }
        for (length, fits) in [(0, false), (256, true), (257, false)] {
            let plan = Plan { label: "x".repeat(length), ..plan.clone() };
            assert_eq!(split(&secret, &plan, rng).is_ok(), fits, "{length}");
        }
    }
}
