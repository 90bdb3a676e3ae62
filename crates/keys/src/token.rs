//! A key that a physical token gives: a FIDO2 token with hmac-secret, or one that answers challenges with an HMAC.
//!
//! What the token answers to the challenge in the record is the key-encryption key. Nothing else opens the record but a recovery
//! passphrase, where one was given when it was made ([`TokenRecovery`]): a token that is lost without one takes an escrow.
//!
//! ```
//! use stvor_crypto::{Secret, SystemRandom};
//! use stvor_keys::challenge::SoftwareToken;
//! use stvor_keys::{KeyHolder, TokenKey};
//! let directory = tempfile::tempdir()?;
//! let mut rng = SystemRandom::new();
//! let token = SoftwareToken::create(&directory.path().join("token"), &mut rng)?;
//! let token = TokenKey::challenge(Box::new(token));
//! let data_key = Secret::random(&mut rng)?;
//! let wrapped = token.wrap(&data_key, b"vault id", &mut rng)?;
//! assert!(token.unwrap(&wrapped, b"vault id")? == data_key);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use core::fmt;
use std::sync::{Mutex, PoisonError};

use stvor_base::codec::{Reader, Writer};
use stvor_crypto::{Random, Secret};

use crate::challenge::{Challenge, ChallengeToken};
#[cfg(feature = "fido2")]
use crate::fido2::{Ask, Fido2Token};
use crate::{DataKey, HolderKind, KeyError, KeyHolder, Passphrase, WrappedKey, limits};

const VERSION: u8 = 1;
/// What the recovery's wrap of a key-encryption key is bound to.
const RECOVERY: &[u8] = b"STVOR token recovery v1";

/// What a token is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Question {
    Challenge([u8; 32]),
    /// The secret of a credential for a salt.
    Fido2 {
        salt: [u8; 32],
        credential: Vec<u8>,
    },
}

/// The parameters of a wrapped key: version, kind of token (1 challenge, 2 FIDO2), challenge or salt, the credential (empty for a
/// challenge), the recovery's wrap of the key (may be empty).
#[derive(Debug, PartialEq, Eq)]
struct Parameters {
    question: Question,
    recovery: Vec<u8>,
}

impl Parameters {
    fn encode(&self) -> Vec<u8> {
        let (kind, bytes, credential) = match &self.question {
            Question::Challenge(challenge) => (1, challenge, &[][..]),
            Question::Fido2 { salt, credential } => (2, salt, &credential[..]),
        };
        let mut out = Writer::with_capacity(limits::MAX_PARAMETERS);
        out.u8(VERSION).u8(kind).raw(bytes).bytes(credential).bytes(&self.recovery);
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, KeyError> {
        let mut input = Reader::new(bytes);
        let version = input.u8().map_err(KeyError::codec)?;
        if version != VERSION {
            return Err(KeyError::TooNew { found: version, known: VERSION });
        }
        let kind = input.u8().map_err(KeyError::codec)?;
        let asked = *input.array::<32>().map_err(KeyError::codec)?;
        let credential = input.bytes(limits::MAX_CREDENTIAL_ID).map_err(KeyError::codec)?.to_vec();
        let recovery = input.bytes(limits::MAX_PARAMETERS).map_err(KeyError::codec)?.to_vec();
        input.finish().map_err(KeyError::codec)?;
        let question = match kind {
            1 if credential.is_empty() => Question::Challenge(asked),
            2 if !credential.is_empty() => Question::Fido2 { salt: asked, credential },
            _ => return Err(KeyError::Corrupt("its kind of token is not known")),
        };
        Ok(Self { question, recovery })
    }
}

/// A token in the hand.
enum Hand {
    Challenge(Box<dyn ChallengeToken + Send>),
    #[cfg(feature = "fido2")]
    Fido2 {
        token: Box<dyn Fido2Token + Send>,
        pin: stvor_crypto::SecretBytes,
    },
}

impl Hand {
    /// Something that this token was never asked. On a FIDO2 token a credential is made.
    fn new_question(&mut self, rng: &mut dyn Random) -> Result<Question, KeyError> {
        match self {
            Self::Challenge(_) => Ok(Question::Challenge(*Challenge::random(rng)?.as_bytes())),
            #[cfg(feature = "fido2")]
            Self::Fido2 { token, pin } => {
                let credential = token.register("vault owner", Some(pin))?.id;
                let mut salt = [0; 32];
                rng.fill(&mut salt)?;
                Ok(Question::Fido2 { salt, credential })
            }
        }
    }

    fn answer(&mut self, question: &Question) -> Result<Secret<32>, KeyError> {
        match (self, question) {
            (Self::Challenge(token), Question::Challenge(challenge)) => {
                token.respond(&Challenge::from_bytes(*challenge))
            }
            #[cfg(feature = "fido2")]
            (Self::Fido2 { token, pin }, Question::Fido2 { salt, credential }) => {
                // The answer itself shows that the token was there: nobody else knows the secret.
                let challenge = &[0; 32];
                Ok(token.ask(&Ask { credential, salt, challenge, pin: Some(pin) })?.secret)
            }
            #[cfg(feature = "fido2")]
            (Self::Fido2 { .. }, Question::Challenge(_)) => {
                Err(KeyError::OtherHolder { needs: "token that answers challenges", given: "FIDO2 token" })
            }
            (_, Question::Fido2 { .. }) => {
                Err(KeyError::OtherHolder { needs: "FIDO2 token", given: "token that answers challenges" })
            }
        }
    }
}

/// What was asked last, and the answer: records that are made together ask once, and what is sealed in the place of a record that
/// was opened has its recovery, too.
#[derive(Default)]
struct Asked(Option<(Parameters, Secret<32>)>);

/// A key that a physical token gives.
pub struct TokenKey {
    hand: Mutex<(Hand, Asked)>,
    recovery: Option<Passphrase>,
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey")
    }
}

impl TokenKey {
    fn new(hand: Hand) -> Self {
        Self { hand: Mutex::new((hand, Asked::default())), recovery: None }
    }

    /// Of a token that answers challenges. It is asked once for what is wrapped with this value.
    #[must_use]
    pub fn challenge(token: Box<dyn ChallengeToken + Send>) -> Self {
        Self::new(Hand::Challenge(token))
    }

    /// Of a FIDO2 token with hmac-secret, which has a PIN. Wrapping makes a credential on it.
    #[cfg(feature = "fido2")]
    #[must_use]
    pub fn fido2(token: Box<dyn Fido2Token + Send>, pin: stvor_crypto::SecretBytes) -> Self {
        Self::new(Hand::Fido2 { token, pin })
    }

    /// What is wrapped from now on opens with this passphrase too, without the token.
    #[must_use]
    pub fn with_recovery(mut self, recovery: Passphrase) -> Self {
        self.recovery = Some(recovery);
        self
    }
}

impl KeyHolder for TokenKey {
    fn kind(&self) -> HolderKind {
        HolderKind::Token
    }

    fn wrap(&self, data_key: &DataKey, context: &[u8], rng: &mut dyn Random) -> Result<WrappedKey, KeyError> {
        let mut held = self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        let (hand, Asked(asked)) = &mut *held;
        let (mut parameters, kek) = match asked.take() {
            Some(both) => both,
            None => {
                let question = hand.new_question(rng)?;
                let answer = hand.answer(&question)?;
                // Whatever is sealed with an answer that does not come again is lost.
                if hand.answer(&question)? != answer {
                    let reason = "the token answered the same question in two ways".into();
                    return Err(KeyError::Unavailable { holder: "token", reason });
                }
                (Parameters { question, recovery: Vec::new() }, answer)
            }
        };
        if let Some(recovery) = &self.recovery {
            parameters.recovery = recovery.wrap(&kek, RECOVERY, rng)?.encode();
        }
        // Context and parameters are part of each wrapping key, so one answer serves several records.
        let wrapped =
            WrappedKey::seal((HolderKind::Token, &parameters.encode()), &kek, (data_key, context), rng);
        *asked = Some((parameters, kek));
        wrapped
    }

    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<DataKey, KeyError> {
        let parameters = Parameters::decode(wrapped.parameters_for(HolderKind::Token)?)?;
        let mut held = self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        let (hand, Asked(asked)) = &mut *held;
        let kek = match asked.take().filter(|(known, _)| known.question == parameters.question) {
            Some((_, kek)) => kek,
            None => hand.answer(&parameters.question)?,
        };
        let opened = wrapped.open(&kek, context);
        *asked = Some((parameters, kek));
        opened
    }
}

/// The credential on a FIDO2 token without which this does not open: who removes it has to know. `None` for every other kind.
#[must_use]
pub fn token_credential(wrapped: &WrappedKey) -> Option<Vec<u8>> {
    match Parameters::decode(wrapped.parameters_for(HolderKind::Token).ok()?).ok()?.question {
        Question::Fido2 { credential, .. } => Some(credential),
        Question::Challenge(_) => None,
    }
}

/// Opens what a [`TokenKey`] with a recovery passphrase wrapped, without that token. Wraps nothing.
#[derive(Debug)]
pub struct TokenRecovery(Passphrase);

impl TokenRecovery {
    /// With this passphrase.
    #[must_use]
    pub fn new(passphrase: Passphrase) -> Self {
        Self(passphrase)
    }
}

impl KeyHolder for TokenRecovery {
    fn kind(&self) -> HolderKind {
        HolderKind::Token
    }

    fn wrap(&self, _: &DataKey, _: &[u8], _: &mut dyn Random) -> Result<WrappedKey, KeyError> {
        let reason = "a recovery passphrase seals nothing of its own; give the token";
        Err(KeyError::Malformed { holder: "recovery passphrase", reason })
    }

    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<DataKey, KeyError> {
        let parameters = Parameters::decode(wrapped.parameters_for(HolderKind::Token)?)?;
        if parameters.recovery.is_empty() {
            let name = "of this key (none was set when it was sealed)".into();
            return Err(KeyError::Missing { holder: "recovery passphrase", name });
        }
        let kek = self.0.unwrap(&WrappedKey::decode(&parameters.recovery)?, RECOVERY)?;
        wrapped.open(&kek, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_as_they_were_written_and_nothing_else_is() {
        let recovery = vec![7; 130];
        let credential = vec![9; limits::MAX_CREDENTIAL_ID];
        let both =
            [Question::Challenge([1; 32]), Question::Fido2 { salt: [2; 32], credential: credential.clone() }];
        for question in both {
            let parameters = Parameters { question, recovery: recovery.clone() };
            let bytes = parameters.encode();
            assert!(bytes.len() <= limits::MAX_PARAMETERS);
            assert_eq!(Parameters::decode(&bytes).unwrap(), parameters);
            for end in 0..bytes.len() {
                assert!(Parameters::decode(&bytes[..end]).is_err(), "{end}");
            }
            let mut newer = bytes.clone();
            newer[0] = 2;
            assert!(matches!(Parameters::decode(&newer), Err(KeyError::TooNew { found: 2, known: 1 })));
            for kind in [0, 3, 3 - bytes[1]] {
                let mut other = bytes.clone();
                other[1] = kind;
                assert!(Parameters::decode(&other).is_err(), "{kind}");
            }
        }
        let question = Question::Fido2 { salt: [2; 32], credential: [&credential[..], &[9]].concat() };
        assert!(Parameters::decode(&Parameters { question, recovery }.encode()).is_err());
    }

    /// Answers each time something else.
    #[derive(Debug)]
    struct Fickle(u8);

    impl ChallengeToken for Fickle {
        fn respond(&mut self, _: &Challenge) -> Result<Secret<32>, KeyError> {
            self.0 += 1;
            Ok(Secret::new([self.0; 32]))
        }
    }

    #[test]
    fn what_is_sealed_in_the_place_of_what_was_opened_has_its_recovery() {
        let directory = tempfile::tempdir().unwrap();
        let mut rng = stvor_crypto::SystemRandom::new();
        let path = directory.path().join("token");
        let token = || crate::challenge::SoftwareToken::read(&path).unwrap();
        crate::challenge::SoftwareToken::create(&path, &mut rng).unwrap();
        let recovery = || {
            let cost = crate::PassphraseCost { memory_kib: 64, iterations: 1, parallelism: 1 };
            Passphrase::new(stvor_crypto::SecretBytes::from_slice(b"recovery"))
                .unwrap()
                .with_cost(cost)
                .unwrap()
        };
        let [first, second] = [0, 1].map(|_| Secret::random(&mut rng).unwrap());
        let made = TokenKey::challenge(Box::new(token())).with_recovery(recovery());
        let before = made.wrap(&first, b"vault", &mut rng).unwrap();
        // The token as it is asked for every day, without the passphrase.
        let daily = TokenKey::challenge(Box::new(token()));
        assert!(daily.unwrap(&before, b"vault").unwrap() == first);
        let after = daily.wrap(&second, b"vault", &mut rng).unwrap();
        assert!(TokenRecovery::new(recovery()).unwrap(&after, b"vault").unwrap() == second);
        assert!(TokenKey::challenge(Box::new(token())).unwrap(&after, b"vault").unwrap() == second);
    }

    #[test]
    fn a_token_that_does_not_answer_the_same_again_seals_nothing() {
        let mut rng = stvor_crypto::SystemRandom::new();
        let data_key = Secret::random(&mut rng).unwrap();
        let sealed = TokenKey::challenge(Box::new(Fickle(0))).wrap(&data_key, b"vault", &mut rng);
        assert!(matches!(sealed, Err(KeyError::Unavailable { .. })));
    }
}
