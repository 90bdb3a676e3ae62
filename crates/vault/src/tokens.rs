//! Physical tokens. A token whose answer is key material (FIDO2 with hmac-secret, HMAC challenge-response) opens level 5,
//! together with the key of level 4. A one-time-code app yields no key: it is a factor when the owner approves, and never
//! opens anything.

use serde::{Deserialize, Serialize};
use stvor_crypto::p256::PublicKey;
use stvor_crypto::{Random, Secret, SecretBytes, SystemRandom};
use stvor_keys::challenge::{Challenge, ChallengeToken};
use stvor_keys::fido2::{Ask, Fido2Token, Presence};

use crate::memory::MemoryId;
use crate::recovery::escrow::{EscrowRecord, NewEscrow};
use crate::{RootKey, Vault, VaultError};
use std::path::PathBuf;

/// How a token answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum TokenKind {
    /// With an HMAC over a challenge. Each use sets the next challenge, so that an answer that was overheard is of no use.
    Challenge {
        /// The next challenge.
        challenge: [u8; 32],
    },
    /// With the secret of a FIDO2 credential, and a signature over a fresh challenge.
    Fido2 {
        /// The credential's name on the token.
        credential: Vec<u8>,
        /// Its public key.
        public: Vec<u8>,
        /// The salt of its secret.
        salt: [u8; 32],
    },
}

/// A token, as the vault remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// Its name in the vault.
    pub id: MemoryId,
    /// Its name for people.
    pub name: String,
    /// How it answers.
    pub kind: TokenKind,
    /// When it was enrolled, in milliseconds since the Unix epoch.
    pub added: u64,
    /// When it last opened level 5.
    pub used: Option<u64>,
    /// The serial number of the device that it is a part of, where that tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<u32>,
}

/// A token that is to be enrolled: what it is, and the secret that it gave.
#[derive(Debug)]
pub struct Enrolment {
    pub(crate) name: String,
    pub(crate) kind: TokenKind,
    pub(crate) secret: Secret<32>,
    /// What it answers to the challenges of tokens that are enrolled: one that opens anything is that token.
    pub(crate) answers: Vec<(MemoryId, Secret<32>)>,
    /// The serial number of the device that it is a part of, where that tells.
    pub(crate) serial: Option<u32>,
}

impl Enrolment {
    /// What it is to be called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What kind of token it is, with what the vault will remember of it.
    #[must_use]
    pub fn kind(&self) -> &TokenKind {
        &self.kind
    }

    /// Asks a challenge-response token.
    ///
    /// # Errors
    /// What the token says.
    pub fn challenge(name: &str, token: &mut dyn ChallengeToken) -> Result<Self, VaultError> {
        let challenge = Challenge::random(&mut SystemRandom::new())?;
        let secret = token.respond(&challenge)?;
        let kind = TokenKind::Challenge { challenge: *challenge.as_bytes() };
        Ok(Self { name: name.to_owned(), kind, secret, answers: Vec::new(), serial: token.serial() })
    }

    /// Whether it is of this challenge-response token, or of another part of the same device: one device under two names would be
    /// one loss from none.
    ///
    /// # Errors
    /// What the token says.
    pub fn is_of(&self, token: &mut dyn ChallengeToken) -> Result<bool, VaultError> {
        if self.serial.is_some() && self.serial == token.serial() {
            return Ok(true);
        }
        let TokenKind::Challenge { challenge } = self.kind else { return Ok(false) };
        Ok(token.respond(&Challenge::from_bytes(challenge))? == self.secret)
    }

    /// Asks the challenge-response token what those that are enrolled are asked, so that the vault sees whether it is one of them.
    ///
    /// # Errors
    /// What the token says.
    pub fn beside(
        mut self,
        known: &[TokenRecord],
        token: &mut dyn ChallengeToken,
    ) -> Result<Self, VaultError> {
        for record in known {
            if let TokenKind::Challenge { challenge } = record.kind {
                self.answers.push((record.id, token.respond(&Challenge::from_bytes(challenge))?));
            }
        }
        Ok(self)
    }

    /// Makes a credential on a FIDO2 token, and asks for its secret: two touches.
    ///
    /// # Errors
    /// What the token says.
    pub fn fido2(
        name: &str,
        token: &mut dyn Fido2Token,
        pin: Option<&SecretBytes>,
    ) -> Result<Self, VaultError> {
        let credential = token.register(name, pin)?;
        let rng = &mut SystemRandom::new();
        let (mut salt, mut challenge) = ([0; 32], [0; 32]);
        rng.fill(&mut salt)?;
        rng.fill(&mut challenge)?;
        let ask = Ask { credential: &credential.id, salt: &salt, challenge: &challenge, pin };
        let answer = token.ask(&ask)?;
        answer.presence.verify(&credential.public, &challenge)?;
        let public = credential.public.as_bytes().to_vec();
        let kind = TokenKind::Fido2 { credential: credential.id, public, salt };
        Ok(Self { name: name.to_owned(), kind, secret: answer.secret, answers: Vec::new(), serial: None })
    }
}

/// A token's answer, on its way to the vault.
#[derive(Debug)]
pub struct Presented {
    pub(crate) token: MemoryId,
    pub(crate) secret: Secret<32>,
    /// The next challenge and its answer.
    pub(crate) next: Option<([u8; 32], Secret<32>)>,
    pub(crate) presence: Option<Presence>,
}

fn other_kind(record: &TokenRecord) -> VaultError {
    VaultError::invalid(format!("the token {} answers in another way", record.name))
}

impl Presented {
    /// Asks a challenge-response token: for the answer of now, and that to the next challenge.
    ///
    /// # Errors
    /// What the token says; [`VaultError::Invalid`] for the record of another kind.
    pub fn challenge(record: &TokenRecord, token: &mut dyn ChallengeToken) -> Result<Self, VaultError> {
        let TokenKind::Challenge { challenge } = record.kind else { return Err(other_kind(record)) };
        let secret = token.respond(&Challenge::from_bytes(challenge))?;
        let next = Challenge::random(&mut SystemRandom::new())?;
        let next = Some((*next.as_bytes(), token.respond(&next)?));
        Ok(Self { token: record.id, secret, next, presence: None })
    }

    /// Asks a FIDO2 token. `challenge` is from [`Vault::token_challenge`].
    ///
    /// # Errors
    /// What the token says; [`VaultError::Invalid`] for the record of another kind.
    pub fn fido2(
        record: &TokenRecord,
        token: &mut dyn Fido2Token,
        (challenge, pin): ([u8; 32], Option<&SecretBytes>),
    ) -> Result<Self, VaultError> {
        let TokenKind::Fido2 { credential, salt, .. } = &record.kind else { return Err(other_kind(record)) };
        let answer = token.ask(&Ask { credential, salt, challenge: &challenge, pin })?;
        Ok(Self { token: record.id, secret: answer.secret, next: None, presence: Some(answer.presence) })
    }
}

impl TokenRecord {
    /// The public key of a FIDO2 credential.
    pub(crate) fn public(&self) -> Result<Option<PublicKey>, VaultError> {
        match &self.kind {
            TokenKind::Challenge { .. } => Ok(None),
            TokenKind::Fido2 { public, .. } => Ok(Some(PublicKey::from_bytes(public)?)),
        }
    }
}

/// A one-time-code app, as it is to be set up in the app.
#[derive(Debug)]
pub struct NewCodes {
    /// The address `otpauth://...`, for the app or a picture of it. It is secret.
    pub url: SecretBytes,
}

impl Vault {
    /// Opens level 5: makes its key, and wraps it for each of the tokens. Takes at least two of them, or one and an escrow, so
    /// that a lost token is not a lost level. `vaulted` is the key of level 4.
    ///
    /// # Errors
    /// [`VaultError::Invalid`] for too few tokens, two of a name, or a vault that has level 5 already;
    /// [`crate::Refusal::NoVaultedKey`] when level 4 is not open; as [`Vault::escrow`].
    pub fn enable_black(
        &self,
        tokens: Vec<Enrolment>,
        escrow: Option<((&RootKey, &Secret<32>), &NewEscrow<'_>)>,
    ) -> Result<Option<(EscrowRecord, Vec<PathBuf>)>, VaultError> {
        let Some(((root, vaulted), new)) = escrow else {
            self.ask(move |engine| engine.enable_black(&tokens, None)).wait()?;
            return Ok(None);
        };
        let spare = Secret::<32>::random(&mut SystemRandom::new())?;
        let (shares, drafts) = self.prepare_shares((root, Some(vaulted), Some(&spare)), new)?;
        let done = self.ask(move |engine| engine.enable_black(&tokens, Some(shares))).wait();
        let files = drafts.keep_if(&done)?;
        Ok(done?.map(|record| (record, files)))
    }

    /// Tokens that are enrolled.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn tokens(&self) -> Result<Vec<TokenRecord>, VaultError> {
        self.ask(|engine| engine.tokens()).wait()
    }

    /// What a FIDO2 token signs next to show that it is there. Good for one answer.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Crypto`].
    pub fn token_challenge(&self) -> Result<[u8; 32], VaultError> {
        self.ask(|engine| engine.next_token_challenge()).wait()
    }

    /// Takes a token's answer: for [`crate::limits::TOKEN_PRESENCE`] one memory of level 5 can be recalled, or a token enrolled.
    ///
    /// # Errors
    /// [`crate::Refusal::NoToken`] when the answer is not right, [`crate::Refusal::NoVaultedKey`] when level 4 is not open.
    pub fn present_token(&self, presented: Presented) -> Result<(), VaultError> {
        self.ask(move |engine| engine.present_token(&presented)).wait()
    }

    /// Enrols a further token. Another one was presented just before. Whether a challenge-response token is one of those that are
    /// enrolled is seen after [`Enrolment::beside`].
    ///
    /// # Errors
    /// [`crate::Refusal::NoToken`] when none was; [`VaultError::Invalid`], also for a token that is enrolled.
    pub fn add_token(&self, token: Enrolment) -> Result<(), VaultError> {
        self.ask(move |engine| engine.add_token(&token)).wait()
    }

    /// Removes a token that was lost or is not wanted any more. Two stay, or one and an escrow.
    ///
    /// # Errors
    /// [`VaultError::Invalid`] when there is no such token, or too few would stay.
    pub fn remove_token(&self, name: &str) -> Result<(), VaultError> {
        let name = name.to_owned();
        self.ask(move |engine| engine.remove_token(&name)).wait()
    }

    /// Makes the secret of a one-time-code app. It counts from [`Vault::confirm_codes`] on.
    ///
    /// # Errors
    /// [`VaultError::Invalid`] when one is enrolled already.
    pub fn new_codes(&self) -> Result<NewCodes, VaultError> {
        self.ask(|engine| engine.new_codes()).wait()
    }

    /// Enrols the app, once it shows the right code: from now on each approval takes one.
    ///
    /// # Errors
    /// [`crate::Refusal::OneTimeCode`], [`VaultError::Invalid`] when none was made.
    pub fn confirm_codes(&self, code: &str) -> Result<(), VaultError> {
        let code = code.to_owned();
        self.ask(move |engine| engine.confirm_codes(&code)).wait()
    }

    /// Removes the app. Takes the owner's secret itself: who lost the phone has no code.
    ///
    /// # Errors
    /// [`VaultError::Tampered`] for another root key; [`VaultError::Invalid`] when none is enrolled.
    pub fn remove_codes(&self, root: RootKey) -> Result<(), VaultError> {
        self.ask(move |engine| engine.remove_codes(&root)).wait()
    }
}
