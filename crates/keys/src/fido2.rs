//! FIDO2 tokens: a credential on the token gives 32 secret bytes for a salt (the extension hmac-secret), and a signature that
//! shows that the token was there and touched.
//!
//! [`Ctap2`] speaks the protocol (CTAP 2.1) over any [`Ctap2Transport`]; `HidToken` (feature `fido2-hid`) reaches tokens on
//! USB. A token's attestation is not looked at: what is enrolled is whatever the owner holds.

mod ctap;
#[cfg(feature = "fido2-hid")]
mod hid;
mod pin;

use stvor_crypto::kdf::sha256;
use stvor_crypto::p256::{PublicKey, Signature};
use stvor_crypto::{Secret, SecretBytes};

use crate::KeyError;

pub use ctap::{Ctap2, Ctap2Transport};
#[cfg(feature = "fido2-hid")]
pub use hid::HidToken;

/// Who asks: the name that a credential is bound to.
pub const RELYING_PARTY: &str = "stvor.vault";

/// A credential, as it is remembered outside the token. It is not secret.
#[derive(Debug, Clone)]
pub struct Credential {
    /// Its name on the token, at most [`crate::limits::MAX_CREDENTIAL_ID`] bytes.
    pub id: Vec<u8>,
    /// What verifies its signatures: 65 bytes of a P-256 key.
    pub public: PublicKey,
}

/// What is asked of a token.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Which credential.
    pub credential: &'a [u8],
    /// What the secret is for: the same salt gives the same secret.
    pub salt: &'a [u8; 32],
    /// Fresh bytes whose SHA-256 the signature is over.
    pub challenge: &'a [u8; 32],
    /// The token's PIN. One that has none is refused.
    pub pin: Option<&'a SecretBytes>,
}

/// A token's answer.
#[derive(Debug)]
pub struct Assertion {
    /// The secret of credential and salt.
    pub secret: Secret<32>,
    /// What the token says about itself and the moment.
    pub presence: Presence,
}

/// The proof that a token was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// The authenticator data of the assertion.
    pub authenticator_data: Vec<u8>,
    /// The signature over it and the challenge, in DER.
    pub signature: Vec<u8>,
}

impl Presence {
    /// Whether the token of this credential was there, was touched and got its PIN, for this challenge.
    ///
    /// # Errors
    /// [`KeyError::Token`] when it was another one, was not touched or got no PIN, or answered another challenge.
    pub fn verify(&self, credential: &PublicKey, challenge: &[u8; 32]) -> Result<(), KeyError> {
        let wrong = || KeyError::Token("it did not sign this challenge with the enrolled credential".into());
        let (party, rest) = self.authenticator_data.split_at_checked(32).ok_or_else(wrong)?;
        // User present, user verified.
        let verified = rest.first().is_some_and(|flags| flags & 5 == 5);
        if party != sha256(&[RELYING_PARTY.as_bytes()]) || !verified {
            return Err(wrong());
        }
        let signature = Signature::from_der(&self.signature).map_err(|_| wrong())?;
        let hash = sha256(&[challenge]);
        credential.verify(&self.authenticator_data, &hash, &signature).map_err(|_| wrong())
    }
}

/// The life of credentials on a token.
pub trait Fido2Token: core::fmt::Debug {
    /// Makes a credential on the token. `user` is what the token's own tools show for it.
    ///
    /// # Errors
    /// [`KeyError::Token`], also when it knows no hmac-secret; [`KeyError::Pin`], also when it has none: the secret that a
    /// token gives without a PIN is not the one that it gives when somebody has set one.
    fn register(&mut self, user: &str, pin: Option<&SecretBytes>) -> Result<Credential, KeyError>;

    /// Asks for the secret of a credential. Waits for a touch.
    ///
    /// # Errors
    /// [`KeyError::Token`], [`KeyError::Pin`].
    fn ask(&mut self, ask: &Ask<'_>) -> Result<Assertion, KeyError>;

    /// Names of the credentials on the token that were made here.
    ///
    /// # Errors
    /// [`KeyError::Token`], also when the token keeps no list; [`KeyError::Pin`].
    fn list(&mut self, pin: &SecretBytes) -> Result<Vec<Vec<u8>>, KeyError>;

    /// Removes a credential from the token.
    ///
    /// # Errors
    /// [`KeyError::Token`], [`KeyError::Pin`].
    fn remove(&mut self, credential: &[u8], pin: &SecretBytes) -> Result<(), KeyError>;
}
