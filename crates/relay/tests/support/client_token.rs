//! A customer's backend that signs client tokens.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use stvor_base::Timestamp;
use stvor_relay::ClientKeyConfig;
use stvor_wire::client::Credential;
use stvor_wire::token::ClientClaims;

/// The Ed25519 key of RFC 8037, appendix A, as PKCS #8.
const PRIVATE_KEY: [u8; 48] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20, 0x9d,
    0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49,
    0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
];

/// Its public half, from the same appendix.
const PUBLIC_KEY: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

/// Signs for one app.
pub(crate) struct Issuer {
    pub(crate) app: String,
    pub(crate) kid: String,
}

/// Good claims for a user of an app: from now on for ten minutes.
pub(crate) fn claims(app: &str, user: &str) -> ClientClaims {
    let now = Timestamp::system().as_millis() / 1000;
    ClientClaims { aud: app.to_owned(), sub: user.to_owned(), iat: now, exp: now + 600, scope: String::new() }
}

impl Issuer {
    /// A backend of an app.
    pub(crate) fn of(app: &str) -> Self {
        // Chosen by whoever comes first in this process; all providers sign the same.
        let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
        Self { app: app.to_owned(), kid: "backend-1".to_owned() }
    }

    /// What the relay's operator configures.
    pub(crate) fn config(&self) -> ClientKeyConfig {
        ClientKeyConfig { id: self.kid.clone(), app: self.app.clone(), public_key: PUBLIC_KEY.to_owned() }
    }

    /// A token with these claims.
    pub(crate) fn sign(&self, claims: &ClientClaims) -> Credential {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.kid.clone());
        let token = jsonwebtoken::encode(&header, claims, &EncodingKey::from_ed_der(&PRIVATE_KEY)).unwrap();
        Credential::ClientToken(token)
    }

    /// A good token for a user.
    pub(crate) fn token(&self, user: &str) -> Credential {
        self.sign(&claims(&self.app, user))
    }

    /// A token of the same claims under the key id, but "signed" by nobody who holds the key: a shared-secret MAC over
    /// the public key, as in the classic algorithm confusion.
    pub(crate) fn confused(&self, user: &str) -> Credential {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(self.kid.clone());
        let key = EncodingKey::from_secret(PUBLIC_KEY.as_bytes());
        Credential::ClientToken(jsonwebtoken::encode(&header, &claims(&self.app, user), &key).unwrap())
    }
}
