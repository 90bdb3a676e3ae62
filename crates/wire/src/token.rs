//! App tokens and client tokens.
//!
//! An app token names an app. One that a relay issued reads `<prefix>_<app>_<secret><checksum>`: prefix `sk_live`,
//! `sk_test` or `stvor`, the app id, 64 hexadecimal digits of secret, and 8 of a checksum by which secret scanners tell a
//! leaked token from noise. An operator may also configure any literal as a token; its app then follows from its hash
//! ([`app_of`]) unless the operator names one. A relay stores only [`AppToken::hash`].

use core::fmt;

use serde::{Deserialize, Serialize};
use stvor_base::AppId;
use stvor_crypto::kdf::sha256;
use stvor_crypto::{CryptoError, Random, Secret};

use crate::limits::{MAX_CLIENT_TOKEN_LIFE_SECONDS, MAX_TOKEN_BYTES};

/// The scope of a client token that may take a name over from another identity.
pub const SCOPE_REPLACE_IDENTITY: &str = "identity:replace";

const APP_LABEL: &[u8] = b"STVOR app of token";
const CHECKSUM_LABEL: &[u8] = b"STVOR token checksum";
const HASH_LABEL: &[u8] = b"STVOR app token";

const SECRET_DIGITS: usize = 64;
const CHECKSUM_DIGITS: usize = 8;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// `sk_live_`: production, server side, secret.
    Live,
    /// `sk_test_`: tests, server side, secret.
    Test,
    /// `stvor_`: development.
    Development,
}

impl TokenKind {
    /// What its tokens start with.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Live => "sk_live_",
            Self::Test => "sk_test_",
            Self::Development => "stvor_",
        }
    }

    /// The kind that a token's prefix names.
    #[must_use]
    pub fn of(token: &str) -> Option<Self> {
        [Self::Live, Self::Test, Self::Development].into_iter().find(|kind| token.starts_with(kind.prefix()))
    }
}

/// A text that is no app token: empty, longer than [`MAX_TOKEN_BYTES`], or with other than visible ASCII characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an app token has 1 to 256 visible ASCII characters and usually starts with sk_live_, sk_test_ or stvor_"
)]
pub struct InvalidToken;

impl stvor_base::ErrorCode for InvalidToken {
    fn code(&self) -> &'static str {
        "INVALID_APP_TOKEN"
    }
}

/// An app token. Prints as `[redacted]`, is wiped on drop, and compares by its hash.
#[derive(Clone)]
pub struct AppToken(zeroize::Zeroizing<String>);

impl AppToken {
    /// Reads a token.
    ///
    /// # Errors
    /// [`InvalidToken`].
    pub fn parse(text: &str) -> Result<Self, InvalidToken> {
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.is_empty() || text.len() > MAX_TOKEN_BYTES || !visible {
            return Err(InvalidToken);
        }
        Ok(Self(text.to_owned().into()))
    }

    /// A new token of an app.
    ///
    /// # Errors
    /// [`CryptoError`] when there is no randomness.
    pub fn issue(kind: TokenKind, app: &AppId, rng: &mut dyn Random) -> Result<Self, CryptoError> {
        let secret = Secret::<32>::random(rng)?;
        let mut text = zeroize::Zeroizing::new(String::with_capacity(MAX_TOKEN_BYTES));
        text.push_str(kind.prefix());
        text.push_str(app.as_str());
        text.push('_');
        push_hex(&mut text, secret.expose());
        let checksum = checksum(&text);
        push_hex(&mut text, &checksum);
        Ok(Self(text))
    }

    /// The token itself, to be sent or shown once.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What its prefix says, if it has one.
    #[must_use]
    pub fn kind(&self) -> Option<TokenKind> {
        TokenKind::of(&self.0)
    }

    /// The app that an issued token names; `None` for any other literal.
    #[must_use]
    pub fn issued_app(&self) -> Option<AppId> {
        let body = self.0.strip_prefix(self.kind()?.prefix())?;
        let (app, tail) = body.rsplit_once('_')?;
        let digits = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if tail.len() != SECRET_DIGITS + CHECKSUM_DIGITS || !digits(tail) {
            return None;
        }
        let (covered, given) = self.0.split_at_checked(self.0.len().checked_sub(CHECKSUM_DIGITS)?)?;
        let mut expected = String::with_capacity(CHECKSUM_DIGITS);
        push_hex(&mut expected, &checksum(covered));
        if expected != given {
            return None;
        }
        AppId::new(app).ok()
    }

    /// The app that the token belongs to, unless an operator bound the token to another.
    #[must_use]
    pub fn app(&self) -> AppId {
        self.issued_app().unwrap_or_else(|| literal_app(&self.0))
    }

    /// What a relay stores. Tokens hold 256 bits of chance, or are the operator's to choose, so a plain hash serves.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        sha256(&[HASH_LABEL, self.0.as_bytes()])
    }
}

impl fmt::Debug for AppToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AppToken([redacted])")
    }
}

impl PartialEq for AppToken {
    fn eq(&self, other: &Self) -> bool {
        stvor_crypto::kdf::constant_time_eq(&self.hash(), &other.hash())
    }
}

impl Eq for AppToken {}

impl core::str::FromStr for AppToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        Self::parse(text)
    }
}

/// The app of a token: the one that an issued token names; for any other literal `t-` and the first 16 hexadecimal
/// digits of SHA-256 over `STVOR app of token` and the token. The same on both sides.
///
/// # Errors
/// [`InvalidToken`].
///
/// ```
/// let app = stvor_wire::token::app_of("stvor_dev_test123")?;
/// assert!(app.as_str().starts_with("t-"));
/// # Ok::<(), stvor_wire::token::InvalidToken>(())
/// ```
pub fn app_of(token: &str) -> Result<AppId, InvalidToken> {
    AppToken::parse(token).map(|token| token.app())
}

fn literal_app(token: &str) -> AppId {
    let hash = sha256(&[APP_LABEL, token.as_bytes()]);
    let mut name = String::from("t-");
    push_hex(&mut name, &hash[..8]);
    // 18 letters, digits and a hyphen are an app id.
    AppId::new(&name).unwrap_or_else(|_| unreachable!("{name} is an app id"))
}

fn checksum(covered: &str) -> [u8; CHECKSUM_DIGITS / 2] {
    let [a, b, c, d, ..] = sha256(&[CHECKSUM_LABEL, covered.as_bytes()]);
    [a, b, c, d]
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        for nibble in [byte >> 4, byte & 15] {
            out.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
        }
    }
}

/// What a client token (an EdDSA JWT, made by a customer's own backend) says. Its header names the verifying key in
/// `kid`; that key belongs to one app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientClaims {
    /// The app, as `aud`.
    pub aud: String,
    /// The user that may log in.
    pub sub: String,
    /// When it was made, in seconds since the epoch.
    pub iat: u64,
    /// When it ends, in seconds since the epoch: at most an hour after `iat`.
    pub exp: u64,
    /// What else it allows, for example `identity:replace`; separated by spaces.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scope: String,
}

impl ClientClaims {
    /// Whether a scope is among them.
    #[must_use]
    pub fn allows(&self, scope: &str) -> bool {
        self.scope.split(' ').any(|given| given == scope)
    }

    /// Whether the token lives at most [`MAX_CLIENT_TOKEN_LIFE_SECONDS`].
    #[must_use]
    pub const fn is_short_lived(&self) -> bool {
        match self.exp.checked_sub(self.iat) {
            Some(life) => life <= MAX_CLIENT_TOKEN_LIFE_SECONDS,
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issue(kind: TokenKind, app: &str) -> AppToken {
        let mut rng = stvor_crypto::SystemRandom::new();
        AppToken::issue(kind, &AppId::new(app).unwrap(), &mut rng).unwrap()
    }

    #[test]
    fn an_issued_token_names_its_app() {
        for app in ["acme", "with_underscore_", &"a".repeat(64)] {
            for kind in [TokenKind::Live, TokenKind::Test, TokenKind::Development] {
                let token = issue(kind, app);
                assert_eq!(token.kind(), Some(kind));
                assert_eq!(token.issued_app().unwrap().as_str(), app);
                assert_eq!(app_of(token.expose()).unwrap().as_str(), app);
                assert!(token.expose().len() <= MAX_TOKEN_BYTES);
            }
        }
    }

    #[test]
    fn a_changed_digit_makes_an_issued_token_a_mere_literal() {
        let token = issue(TokenKind::Live, "acme");
        let text = token.expose();
        for at in text.len() - 72..text.len() {
            let mut bytes = text.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            let changed = AppToken::parse(core::str::from_utf8(&bytes).unwrap()).unwrap();
            assert_eq!(changed.issued_app(), None);
            assert_ne!(changed.hash(), token.hash());
        }
    }

    #[test]
    fn literals_map_to_one_app_each() {
        let app = app_of("sk_live_xxx").unwrap();
        assert_eq!(app.as_str().len(), 18);
        assert_eq!(app, app_of("sk_live_xxx").unwrap());
        assert_ne!(app, app_of("sk_live_xxy").unwrap());
    }

    #[test]
    fn tokens_have_one_to_256_visible_characters() {
        assert!(AppToken::parse("").is_err());
        assert!(AppToken::parse("a b").is_err());
        assert!(AppToken::parse("é").is_err());
        assert!(AppToken::parse(&"a".repeat(256)).is_ok());
        assert!(AppToken::parse(&"a".repeat(257)).is_err());
    }

    #[test]
    fn debug_says_nothing() {
        assert_eq!(format!("{:?}", AppToken::parse("sk_live_secret").unwrap()), "AppToken([redacted])");
    }

    #[test]
    fn client_claims_live_an_hour_and_know_their_scopes() {
        let claims = ClientClaims {
            aud: "acme".into(),
            sub: "alice".into(),
            iat: 100,
            exp: 3700,
            scope: "a identity:replace".into(),
        };
        assert!(
            claims.is_short_lived() && claims.allows(SCOPE_REPLACE_IDENTITY) && !claims.allows("identity")
        );
        assert!(!ClientClaims { exp: 3701, ..claims.clone() }.is_short_lived());
        assert!(!ClientClaims { exp: 99, ..claims }.is_short_lived());
    }
}
