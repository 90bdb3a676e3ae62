//! Who may come in: app tokens, client tokens, device lists, log-in signatures. No I/O but the token look-up.

use std::sync::Arc;

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use stvor_base::devices::{DeviceList, device_list_label};
use stvor_base::rotations::Rotations;
use stvor_base::{Address, AppId, ErrorCode, KeyBytes, Timestamp};
use stvor_crypto::suite::VerifyingKey;
use stvor_wire::Code;
use stvor_wire::client::{Auth, Credential};
use stvor_wire::login::{Transcript, login_label};
use stvor_wire::server::Challenge;
use stvor_wire::token::{AppToken, ClientClaims, SCOPE_REPLACE_IDENTITY, TokenKind};
use stvor_wire::url::RelayUrl;

use crate::config::{ClientKeyConfig, Config, TokenConfig};
use crate::connection::{Peer, TokenRef};
use crate::relay::Relay;
use crate::storage::{Consent, Permission, Refusal, SharedStore, StoreError};

/// What a credential allows.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    pub(crate) app: Arc<AppId>,
    pub(crate) token: TokenRef,
    /// The user that a client token names.
    pub(crate) user: Option<stvor_base::UserId>,
    pub(crate) may_register: bool,
    pub(crate) may_replace: bool,
}

struct ClientKey {
    id: String,
    app: AppId,
    key: DecodingKey,
}

impl ClientKey {
    /// What a token says that this key signed for its app.
    fn claims(&self, jwt: &str) -> Option<ClientClaims> {
        let mut validation = Validation::new(Algorithm::EdDSA);
        // The relay's one clock judges times, once the token is known to be genuine.
        validation.validate_exp = false;
        validation.set_audience(&[self.app.as_str()]);
        jsonwebtoken::decode::<ClientClaims>(jwt, &self.key, &validation).ok().map(|data| data.claims)
    }
}

/// Tokens that the configuration names, by their hash, and keys that verify client tokens.
pub(crate) struct Doorkeeper {
    literals: Vec<([u8; 32], Arc<AppId>)>,
    client_keys: Vec<ClientKey>,
    development: bool,
    open: bool,
}

/// A configuration that can not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A token literal.
    #[error("relay.tokens[{0}] can not be used: {1}")]
    Token(usize, String),
    /// A client key.
    #[error("relay.client_keys: the key `{0}` can not be used: {1}")]
    ClientKey(String, String),
    /// An origin.
    #[error("relay.origins: `{0}` is no origin: {1}")]
    Origin(String, String),
}

impl ErrorCode for ConfigError {
    fn code(&self) -> &'static str {
        "INVALID_CONFIG"
    }
}

const INVALID: Refusal = Refusal::new(
    Code::InvalidAppToken,
    "the app token is malformed, has the wrong prefix or is not known here: check it, or ask the relay's operator",
);
const EXPIRED: Refusal =
    Refusal::new(Code::AuthFailed, "the token was revoked or has expired: get a new one");
const BAD_CLIENT_TOKEN: Refusal = Refusal::new(
    Code::AuthFailed,
    "the client token does not verify, has expired or does not name this user",
);

impl Doorkeeper {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        // Another user of the library in this process may have chosen the same or another provider first: both serve.
        let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
        let literal = |(index, entry): (usize, &TokenConfig)| {
            let told = |error: &dyn core::fmt::Display| ConfigError::Token(index, error.to_string());
            let token = AppToken::parse(&entry.token).map_err(|error| told(&error))?;
            let app = match &entry.app {
                Some(app) => AppId::new(app).map_err(|error| told(&error))?,
                None => token.app(),
            };
            Ok((token.hash(), Arc::new(app)))
        };
        let client_key = |entry: &ClientKeyConfig| {
            let told =
                |error: &dyn core::fmt::Display| ConfigError::ClientKey(entry.id.clone(), error.to_string());
            Ok(ClientKey {
                id: entry.id.clone(),
                app: AppId::new(&entry.app).map_err(|error| told(&error))?,
                key: DecodingKey::from_ed_components(&entry.public_key).map_err(|error| told(&error))?,
            })
        };
        Ok(Self {
            literals: config.tokens.iter().enumerate().map(literal).collect::<Result<_, _>>()?,
            client_keys: config.client_keys.iter().map(client_key).collect::<Result<_, ConfigError>>()?,
            development: config.development,
            open: config.registration_is_open(),
        })
    }

    /// Looks at a credential.
    pub(crate) async fn admit(
        &self,
        store: &SharedStore,
        credential: &Credential,
        now: Timestamp,
    ) -> Result<Admission, StoreError> {
        match credential {
            Credential::AppToken(text) => self.app_token(store, text, now).await,
            Credential::ClientToken(jwt) => self.client_token(jwt, now).map_err(StoreError::Refused),
        }
    }

    async fn app_token(
        &self,
        store: &SharedStore,
        text: &str,
        now: Timestamp,
    ) -> Result<Admission, StoreError> {
        let token = AppToken::parse(text).map_err(|_| StoreError::Refused(INVALID))?;
        let hash = token.hash();
        let admission = |app: Arc<AppId>, token: TokenRef, development: bool| Admission {
            app,
            token,
            user: None,
            may_register: self.open || development,
            may_replace: development,
        };
        // Every literal is compared, so that the time taken tells nothing.
        let equal = |known: &[u8; 32]| stvor_crypto::kdf::constant_time_eq(known, &hash);
        let named = self
            .literals
            .iter()
            .fold(None, |named, (known, app)| if equal(known) { Some(app.clone()) } else { named });
        if let Some(app) = named {
            return Ok(admission(app, TokenRef::App(hash), self.development));
        }
        if let Some(record) = store.token(&hash).await? {
            return if record.is_valid(now) {
                Ok(admission(Arc::new(record.app), TokenRef::App(hash), self.development))
            } else {
                Err(StoreError::Refused(EXPIRED))
            };
        }
        if self.development && token.kind() == Some(TokenKind::Development) {
            return Ok(admission(Arc::new(token.app()), TokenRef::Development, true));
        }
        Err(StoreError::Refused(INVALID))
    }

    /// Whether the token that let a connection in is still good.
    pub(crate) async fn still_good(
        &self,
        store: &SharedStore,
        token: &TokenRef,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        match token {
            TokenRef::Client | TokenRef::Development => Ok(true),
            TokenRef::App(hash) => {
                if self.literals.iter().any(|(known, _)| known == hash) {
                    return Ok(true);
                }
                Ok(store.token(hash).await?.is_some_and(|record| record.is_valid(now)))
            }
        }
    }

    fn client_token(&self, jwt: &str, now: Timestamp) -> Result<Admission, Refusal> {
        let header = jsonwebtoken::decode_header(jwt).map_err(|_| BAD_CLIENT_TOKEN)?;
        let kid = header.kid.ok_or(BAD_CLIENT_TOKEN)?;
        // Backends choose the names of their keys by themselves: several apps may have chosen the same.
        let mut named = self.client_keys.iter().filter(|key| key.id == kid);
        let verified = named.find_map(|key| Some((key, key.claims(jwt)?)));
        let (known, claims) = verified.ok_or(BAD_CLIENT_TOKEN)?;
        let seconds = now.as_millis() / 1000;
        // A minute for clocks that differ.
        let current = claims.iat <= seconds + 60 && seconds < claims.exp;
        if !claims.is_short_lived() || !current {
            return Err(BAD_CLIENT_TOKEN);
        }
        let user = stvor_base::UserId::new(&claims.sub).map_err(|_| BAD_CLIENT_TOKEN)?;
        Ok(Admission {
            app: Arc::new(known.app.clone()),
            token: TokenRef::Client,
            user: Some(user),
            may_register: true,
            may_replace: claims.allows(SCOPE_REPLACE_IDENTITY),
        })
    }
}

impl Admission {
    /// Whether the credential may speak for this address.
    pub(crate) fn names(&self, address: &Address) -> Result<(), Refusal> {
        if self.user.as_ref().is_none_or(|user| *user == address.user) {
            Ok(())
        } else {
            Err(BAD_CLIENT_TOKEN)
        }
    }

    /// What the log-in may do.
    pub(crate) fn permission(&self, auth: &Auth) -> Permission {
        let register = match (auth.register, self.may_register) {
            (false, _) => Consent::NotAsked,
            (true, true) => Consent::Allowed,
            (true, false) => Consent::Closed,
        };
        Permission { register, replace: self.may_replace && auth.replace_identity }
    }
}

/// Checks a device's proof and returns its user's device list.
pub(crate) fn prove(
    challenge: &Challenge,
    address: &Address,
    auth: &Auth,
    origin: &str,
) -> Result<DeviceList, Refusal> {
    let invalid = |detail| Refusal::new(Code::InvalidDeviceList, detail);
    let failed = Refusal::new(Code::AuthFailed, "the device's signature does not fit this log-in");
    let list = DeviceList::decode(&auth.device_list)
        .map_err(|_| invalid("the device list is not in its canonical form"))?;
    if list.app != challenge.app || list.user != address.user {
        return Err(invalid("the device list is of another app or user"));
    }
    let list_key = VerifyingKey::from_bytes(&list.user_key)
        .map_err(|_| invalid("the user key of the device list is no key"))?;
    list_key
        .verify(device_list_label(list.suite()), &auth.device_list, &auth.device_list_signature)
        .map_err(|_| invalid("the device list is not signed by its user key"))?;
    let entry = list
        .device(address.device)
        .ok_or(Refusal::new(Code::UnknownDevice, "the device list does not hold the device that logs in"))?;
    if auth.time != challenge.server_time {
        return Err(failed);
    }
    let transcript = Transcript {
        app: &challenge.app,
        origin,
        nonce: &challenge.nonce,
        address,
        time: challenge.server_time,
        server_version: &challenge.server_version,
    };
    let key = VerifyingKey::from_bytes(&entry.signing_key).map_err(|_| failed.clone())?;
    let label = login_label(list.suite());
    key.verify(label, &transcript.encode(), &auth.signature).map_err(|_| failed)?;
    Ok(list)
}

/// Checks the rotations of a log-in whose device list is `list`: what they are, and their bytes.
pub(crate) fn rotations_of(
    list: &DeviceList,
    auth: &Auth,
) -> Result<Option<(Rotations, bytes::Bytes)>, Refusal> {
    if auth.rotations.is_empty() {
        return Ok(None);
    }
    let invalid = |detail| Refusal::new(Code::InvalidDeviceList, detail);
    let rotations = Rotations::decode(&auth.rotations)
        .map_err(|_| invalid("the rotations of the user's key are not in their canonical form"))?;
    let signed = |key: &KeyBytes, label: &[u8], statement: &[u8], signature: &[u8]| {
        VerifyingKey::from_bytes(key).is_ok_and(|key| key.verify(label, statement, signature).is_ok())
    };
    if *rotations.newest() != list.user_key || !rotations.verify((&list.app, &list.user), signed) {
        return Err(invalid(
            "the rotations are not signed by their keys, or do not lead to the list's user key",
        ));
    }
    Ok(Some((rotations, auth.rotations.clone())))
}

/// The origin that the signature must cover: one that the operator named; one that is this very socket's address; or,
/// where nobody else can be in between (loopback names) or it does not matter (development), what the client asked for
/// in its `Host` header.
pub(crate) fn accepted_origin(relay: &Relay, peer: &Peer, claimed: &str) -> Result<String, Refusal> {
    let mismatch = Refusal::new(
        Code::OriginMismatch,
        "this relay does not answer for the origin that was dialled: the operator names it in relay.origins",
    );
    let Ok(url) = claimed.parse::<RelayUrl>() else { return Err(mismatch) };
    let origin = url.origin();
    if origin != claimed {
        return Err(mismatch);
    }
    let same_as_host = || {
        let host = peer.host.as_deref().unwrap_or_default();
        ["ws", "wss"].iter().any(|scheme| {
            format!("{scheme}://{host}").parse::<RelayUrl>().is_ok_and(|host| host.origin() == origin)
        })
    };
    let is_own_address = url.host().parse() == Ok(peer.local.ip()) && url.port() == peer.local.port();
    let local = peer.remote.is_loopback() && url.is_loopback();
    let accepted = relay.origins.contains(&origin)
        || is_own_address
        || ((relay.config.development || local) && same_as_host());
    if accepted { Ok(origin) } else { Err(mismatch) }
}
