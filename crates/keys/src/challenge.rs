//! Tokens that answer a challenge with an HMAC under a key that never leaves them: the answer is key material.
//!
//! A YubiKey's slot is one (`YubiKeySlot`, feature `yubikey`). [`SoftwareToken`] is a file that does the same arithmetic; whoever copies the
//! file has the token, so it is for tests and for people who know that.
//!
//! ```
//! use stvor_crypto::{SystemRandom, Secret};
//! use stvor_keys::challenge::{Challenge, ChallengeToken, SoftwareToken};
//! let directory = tempfile::tempdir()?;
//! let mut rng = SystemRandom::new();
//! let mut token = SoftwareToken::create(&directory.path().join("token"), &mut rng)?;
//! let challenge = Challenge::random(&mut rng)?;
//! assert!(token.respond(&challenge)? == token.respond(&challenge)?);
//! assert!(token.respond(&challenge)? != token.respond(&Challenge::random(&mut rng)?)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::path::Path;

use stvor_crypto::kdf::{hkdf_sha256, hmac_sha256};
use stvor_crypto::{CryptoError, Random, Secret};

use crate::{KeyError, Keyfile};

/// What a token is asked: 32 random bytes. It is not secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Challenge([u8; 32]);

impl Challenge {
    /// A fresh one.
    ///
    /// # Errors
    /// What `rng` says.
    pub fn random(rng: &mut dyn Random) -> Result<Self, CryptoError> {
        let mut bytes = [0; 32];
        rng.fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// One that was stored.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Something that answers challenges.
pub trait ChallengeToken: core::fmt::Debug {
    /// The answer to a challenge: 32 bytes that only this token gives. May wait for a touch.
    ///
    /// # Errors
    /// [`KeyError::Token`] when the token is not there, or its owner does not touch it.
    fn respond(&mut self, challenge: &Challenge) -> Result<Secret<32>, KeyError>;

    /// The serial number of the device that it is a part of: parts of one device are lost together. Nothing where it is the whole
    /// device, or the device does not tell.
    fn serial(&mut self) -> Option<u32> {
        None
    }
}

/// Makes 32 bytes of an answer of any length. HMAC-SHA1 gives 20 bytes.
fn stretch(answer: &[u8]) -> Secret<32> {
    hkdf_sha256::<32>(b"", answer, b"STVOR challenge token v1")
}

/// A keyfile that plays a token.
#[derive(Debug)]
pub struct SoftwareToken(Secret<32>);

impl SoftwareToken {
    /// Makes the file, mode 0600.
    ///
    /// # Errors
    /// As [`Keyfile::create`].
    pub fn create(path: &Path, rng: &mut dyn Random) -> Result<Self, KeyError> {
        Keyfile::create(path, rng).map(|file| Self(file.into_key()))
    }

    /// Reads the file.
    ///
    /// # Errors
    /// As [`Keyfile::read`].
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        Keyfile::read(path).map(|file| Self(file.into_key()))
    }
}

impl ChallengeToken for SoftwareToken {
    fn respond(&mut self, challenge: &Challenge) -> Result<Secret<32>, KeyError> {
        Ok(stretch(hmac_sha256(self.0.expose(), &[challenge.as_bytes()]).expose()))
    }
}

/// A slot of a YubiKey that is set to HMAC-SHA1 challenge-response.
#[cfg(feature = "yubikey")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum YubiKeySlot {
    /// The first slot.
    One,
    /// The second slot.
    Two,
}

#[cfg(feature = "yubikey")]
impl ChallengeToken for YubiKeySlot {
    fn respond(&mut self, challenge: &Challenge) -> Result<Secret<32>, KeyError> {
        use challenge_response::ChallengeResponse;
        use challenge_response::config::{Config, Mode, Slot};
        let failed =
            |error: challenge_response::error::ChallengeResponseError| KeyError::Token(error.to_string());
        let mut bus = ChallengeResponse::new().map_err(failed)?;
        let device = bus.find_device().map_err(failed)?;
        let slot = match self {
            Self::One => Slot::Slot1,
            Self::Two => Slot::Slot2,
        };
        let config = Config::new_from(device).set_variable_size(true).set_mode(Mode::Sha1).set_slot(slot);
        let answer = bus.challenge_response_hmac(challenge.as_bytes(), config).map_err(failed)?;
        // The library wipes the answer when it is dropped.
        Ok(stretch(&answer))
    }

    fn serial(&mut self) -> Option<u32> {
        // A device may be set to keep its number to itself.
        challenge_response::ChallengeResponse::new().ok()?.find_device().ok()?.serial
    }
}
