//! Where an app's stores are and what seals them, as JavaScript names it.
//!
//! Settings are checked by the TypeScript face; here they become providers and key holders. Certificates are read and modules of
//! tokens loaded off the threads that serve everybody.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use napi_derive::napi;
use stvor::store::{OpenKey, PostgresStores, RedisStores, ServerOptions, StoreProvider};
use stvor::{AppBuilder, KeyHolder, Managed, SecretBytes};
use stvor_keys::kmip::{KmipKey, KmipServer};
use stvor_keys::pkcs11::{Token, TokenKey};

use crate::failure::{argument, coded, failure, misconfigured, panicked};
use crate::limits::{MAX_CERTIFICATE, MAX_STORE_URLS};

/// A server that keeps the stores.
#[napi(object)]
pub struct ServerSettings {
    /// `postgres` or `redis`.
    pub kind: String,
    /// Where it is; several servers of one Redis cluster.
    pub urls: Vec<String>,
    /// A file with its password, in place of the one in the URL.
    pub password_file: Option<String>,
    /// Certificates (PEM) to trust in place of the public roots.
    pub root_certificate_file: Option<String>,
    /// Our own certificate chain (PEM).
    pub client_certificate_file: Option<String>,
    /// Its key (PEM).
    pub client_key_file: Option<String>,
    /// Redis: replicas that must have a commit.
    pub replicas: Option<u32>,
    /// Redis: settings that are vouched for where the server does not tell them.
    pub assured_settings: Option<HashMap<String, String>>,
}

/// A key in a PKCS #11 token.
#[napi(object)]
pub struct TokenSettings {
    /// The module of the token's maker.
    pub module: String,
    /// The token's label.
    pub token: String,
    /// The key's label.
    pub key: String,
    /// The PIN.
    pub pin: Option<String>,
    /// A file with the PIN.
    pub pin_file: Option<String>,
}

/// A key in a KMIP server.
#[napi(object)]
pub struct KmipSettings {
    /// `host` or `host:port`.
    pub server: String,
    /// The name in its certificate, where it is not the host.
    pub server_name: Option<String>,
    /// PEM of the authorities that sign servers.
    pub root_certificate_file: String,
    /// PEM of our certificate.
    pub client_certificate_file: String,
    /// PEM of its key.
    pub client_key_file: String,
    /// The key's unique identifier.
    pub key: String,
}

/// What seals the stores, and what identities follow from. At most one of each.
#[napi(object)]
#[derive(Default)]
pub struct KeySettings {
    /// Seals by a passphrase.
    pub passphrase: Option<String>,
    /// Seals by a keyfile.
    pub keyfile: Option<String>,
    /// Seals by keys in the system's keyring.
    pub os_keyring: Option<bool>,
    /// Seals by a key in a token.
    pub token: Option<TokenSettings>,
    /// Seals by a key in a key management server.
    pub kmip: Option<KmipSettings>,
    /// Identities follow from 24 words.
    pub identity_phrase: Option<String>,
    /// Identities follow from a passphrase.
    pub identity_passphrase: Option<String>,
}

/// The provider of a server's stores. Nothing is dialled. Call it on the runtime.
pub(crate) fn stores(server: ServerSettings) -> napi::Result<Arc<dyn StoreProvider>> {
    if server.urls.is_empty() || server.urls.len() > MAX_STORE_URLS {
        return Err(argument("a server has one URL, a cluster 1 to 64"));
    }
    let mut options = ServerOptions::new();
    if let Some(path) = server.password_file {
        options = options.password_file(path);
    }
    if let Some(path) = server.root_certificate_file {
        options = options.root_certificate(path);
    }
    match (server.client_certificate_file, server.client_key_file) {
        (Some(chain), Some(key)) => options = options.client_certificate(chain, key),
        (None, None) => {}
        _ => return Err(misconfigured("clientCertificateFile and clientKeyFile belong together")),
    }
    if let Some(count) = server.replicas {
        options = options.replicas(usize::try_from(count).unwrap_or(usize::MAX));
    }
    if let Some(settings) = server.assured_settings {
        options = options.assured_settings(settings);
    }
    let urls: Vec<&str> = server.urls.iter().map(String::as_str).collect();
    // Errors of both name an option of the URL, never a value: it may hold a password.
    match (server.kind.as_str(), urls.as_slice()) {
        ("postgres", [url]) => PostgresStores::with_options(url, options)
            .map(|stores| Arc::new(stores) as Arc<dyn StoreProvider>)
            .map_err(|error| misconfigured(&format!("storage.postgres: {error}"))),
        ("redis", urls) => RedisStores::with_options(urls, options)
            .map(|stores| Arc::new(stores) as Arc<dyn StoreProvider>)
            .map_err(|error| misconfigured(&format!("storage.redis: {error}"))),
        _ => Err(argument("a server is PostgreSQL with one URL, or Redis")),
    }
}

/// A file that a setting names, without more than it can hold.
fn read(setting: &str, path: &str, most: usize) -> napi::Result<SecretBytes> {
    let unreadable = |error: std::io::Error| {
        failure("KEY_IO", &format!("{setting}: the file {path} can not be read: {error}"), false)
    };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > u64::try_from(most).unwrap_or(u64::MAX) {
        return Err(misconfigured(&format!("{setting}: the file {path} has more than {most} bytes")));
    }
    std::fs::read(path).map(SecretBytes::from).map_err(unreadable)
}

fn token(settings: TokenSettings) -> napi::Result<Arc<dyn KeyHolder>> {
    const LONGEST_PIN: usize = 1_024;
    let pin = match (settings.pin, settings.pin_file) {
        (Some(pin), None) => SecretBytes::from(pin.into_bytes()),
        (None, Some(path)) => {
            let text = read("pkcs11.pinFile", &path, LONGEST_PIN)?;
            SecretBytes::from_slice(text.expose().trim_ascii_end())
        }
        _ => return Err(misconfigured("pkcs11 needs either pin or pinFile")),
    };
    let which = TokenKey { module: PathBuf::from(settings.module), token: settings.token, key: settings.key };
    Ok(Arc::new(Managed::token(Token::new(which, pin).map_err(coded)?)))
}

fn kmip(settings: KmipSettings) -> napi::Result<Arc<dyn KeyHolder>> {
    let server = settings.server;
    let pem = |setting: &str, path: &str| read(setting, path, MAX_CERTIFICATE);
    let host = server.rsplit_once(':').map_or(server.as_str(), |(host, _)| host);
    let server = KmipServer {
        name: settings.server_name.unwrap_or_else(|| host.trim_matches(['[', ']']).to_owned()),
        address: if server.contains(':') { server.clone() } else { format!("{server}:5696") },
        roots: pem("kmip.rootCertificateFile", &settings.root_certificate_file)?.into_exposed(),
        certificate: pem("kmip.clientCertificateFile", &settings.client_certificate_file)?.into_exposed(),
        private_key: Arc::new(pem("kmip.clientKeyFile", &settings.client_key_file)?),
    };
    Ok(Arc::new(Managed::service(KmipKey::new(&server, settings.key).map_err(coded)?)))
}

#[cfg(feature = "os-keyring")]
#[allow(clippy::unnecessary_wraps, reason = "its other form fails")]
fn os_keyring(builder: AppBuilder) -> napi::Result<AppBuilder> {
    Ok(builder.os_keyring())
}

#[cfg(not(feature = "os-keyring"))]
fn os_keyring(_: AppBuilder) -> napi::Result<AppBuilder> {
    Err(no_keyring())
}

#[cfg(not(feature = "os-keyring"))]
fn no_keyring() -> napi::Error {
    let message = "this build of the SDK has no access to the system's keyring (released packages have it)";
    failure("KEYRING_UNAVAILABLE", message, false)
}

/// What a store is to open with.
pub(crate) enum NewKey {
    /// This.
    Key(OpenKey),
    /// A key in this keyring, under the store's name.
    #[cfg(feature = "os-keyring")]
    Keyring(Arc<dyn stvor::SecretService>),
}

#[cfg(feature = "os-keyring")]
#[allow(clippy::unnecessary_wraps, reason = "its other form fails")]
fn into_keyring() -> napi::Result<NewKey> {
    Ok(NewKey::Keyring(Arc::new(stvor_keys::SystemKeyring)))
}

#[cfg(not(feature = "os-keyring"))]
fn into_keyring() -> napi::Result<NewKey> {
    Err(no_keyring())
}

/// The one key that settings name. Modules are loaded and files read on a thread that may wait.
pub(crate) async fn new_key(keys: KeySettings, kms: Option<Arc<dyn KeyHolder>>) -> napi::Result<NewKey> {
    if let Some(kms) = kms {
        return Ok(NewKey::Key(OpenKey::Holder(kms)));
    }
    let work = move || match keys {
        KeySettings { passphrase: Some(passphrase), .. } => {
            Ok(NewKey::Key(OpenKey::Passphrase(SecretBytes::from(passphrase.into_bytes()))))
        }
        KeySettings { keyfile: Some(path), .. } => Ok(NewKey::Key(OpenKey::Keyfile(PathBuf::from(path)))),
        KeySettings { token: Some(settings), .. } => {
            token(settings).map(|key| NewKey::Key(OpenKey::Holder(key)))
        }
        KeySettings { kmip: Some(settings), .. } => {
            kmip(settings).map(|key| NewKey::Key(OpenKey::Holder(key)))
        }
        KeySettings { os_keyring: Some(true), .. } => into_keyring(),
        _ => Err(argument("a new key is one of passphrase, keyfile, osKeyring, pkcs11, kmip, kms")),
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| panicked())?
}

/// Sets the keys. Modules are loaded and files read on a thread that may wait.
pub(crate) async fn with_keys(
    builder: AppBuilder,
    keys: KeySettings,
    kms: Option<Arc<dyn KeyHolder>>,
) -> napi::Result<AppBuilder> {
    let work = move || -> napi::Result<AppBuilder> {
        let mut builder = builder;
        if let Some(passphrase) = keys.passphrase {
            builder = builder.passphrase(passphrase);
        }
        if let Some(path) = keys.keyfile {
            builder = builder.keyfile(path);
        }
        if keys.os_keyring == Some(true) {
            builder = os_keyring(builder)?;
        }
        if let Some(settings) = keys.token {
            builder = builder.key_holder(token(settings)?);
        }
        if let Some(settings) = keys.kmip {
            builder = builder.key_holder(kmip(settings)?);
        }
        if let Some(kms) = kms {
            builder = builder.key_holder(kms);
        }
        if let Some(words) = keys.identity_phrase {
            builder = builder.identity_phrase(words);
        }
        if let Some(passphrase) = keys.identity_passphrase {
            builder = builder.identity_passphrase(passphrase);
        }
        Ok(builder)
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| panicked())?
}

/// A recovery phrase: 24 words.
///
/// # Errors
/// `RNG_UNHEALTHY` when the random source is.
#[napi(catch_unwind)]
pub fn generate_phrase() -> napi::Result<String> {
    let words = stvor::RecoveryPhrase::fresh().map_err(coded)?.words();
    String::from_utf8(words.into_exposed()).map_err(|_| panicked())
}
