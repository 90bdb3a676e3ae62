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
            (_, Question::Challenge(_)) => {
                Err(KeyError::OtherHolder { needs: "token that answers challenges", given: "FIDO2 token" })
            }
            (_, Question::Fido2 { .. }) => {
                Err(KeyError::OtherHolder { needs: "FIDO2 token", given: "token that answers challenges" })
            }
        }
    }
}

/// What was asked last, and the answer: records that are made together ask once.
#[derive(Default)]
struct Asked(Option<(Question, Secret<32>)>);

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
        let (question, kek) = match asked.take() {
            Some(both) => both,
            None => {
                let question = hand.new_question(rng)?;
                let answer = hand.answer(&question)?;
                (question, answer)
            }
        };
        let recovery = match &self.recovery {
            Some(recovery) => recovery.wrap(&kek, RECOVERY, rng)?.encode(),
            None => Vec::new(),
        };
        let parameters = Parameters { question, recovery };
        // Context and parameters are part of each wrapping key, so one answer serves several records.
        let wrapped =
            WrappedKey::seal((HolderKind::Token, &parameters.encode()), &kek, (data_key, context), rng);
        *asked = Some((parameters.question, kek));
        wrapped
    }

    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<DataKey, KeyError> {
        let question = Parameters::decode(wrapped.parameters_for(HolderKind::Token)?)?.question;
        let mut held = self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        let (hand, Asked(asked)) = &mut *held;
        let kek = match asked.take().filter(|(known, _)| *known == question) {
            Some((_, kek)) => kek,
            None => hand.answer(&question)?,
        };
        let opened = wrapped.open(&kek, context);
        *asked = Some((question, kek));
        opened
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
}
