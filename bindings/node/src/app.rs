//! An app at a relay.

use std::time::Duration;

use napi::Env;
use napi::bindgen_prelude::{PromiseRaw, Uint8Array};
use napi_derive::napi;
use stvor::{App, AppBuilder, MismatchPolicy, ReceiptPolicy, Retention, TrustPolicy};

use crate::adapters::NativeAdapters;
use crate::client::NativeClient;
use crate::failure::{argument, failed, failure, fits};
use crate::limits::{LONGEST_WAIT, MAX_CERTIFICATE};
use crate::task::{Cancel, Kept, promise};

/// How an app is set up; what is absent keeps the default of the SDK.
#[napi(object)]
pub struct AppSettings {
    /// Names the app at the relay.
    pub app_token: Option<String>,
    /// Names one user, signed by the customer's backend.
    pub client_token: Option<String>,
    /// Where the relay is.
    pub relay_url: Option<String>,
    /// The app's id, where the operator bound the token to a name.
    pub app_id: Option<String>,
    /// Where stores are.
    pub data_dir: Option<String>,
    /// Keeps nothing on disk.
    pub in_memory: Option<bool>,
    /// Seals the stores.
    pub passphrase: Option<String>,
    /// Seals the stores.
    pub keyfile: Option<String>,
    /// Milliseconds that an operation may wait.
    pub timeout: Option<f64>,
    /// `first_use`, `ask` or `verified_only`.
    pub trust_policy: Option<String>,
    /// `reject`, `ask` or `replace`.
    pub on_identity_change: Option<String>,
    /// Milliseconds that conversations keep messages; 0: only as long as delivery needs them.
    pub retention: Option<f64>,
    /// Whether stored messages are confirmed to their senders.
    pub delivered_receipts: Option<bool>,
    /// Whether read messages are confirmed to their senders.
    pub read_receipts: Option<bool>,
    /// Another root to trust, PEM.
    pub root_certificate: Option<Uint8Array>,
    /// Takes names over from lost devices.
    pub replace_identity: Option<bool>,
    /// Refuses relays that are reached over a network without TLS.
    pub protected: Option<bool>,
    /// Whether a minimal relay will do.
    pub minimal_relay: Option<bool>,
    /// Refuses stores without transactions.
    pub require_atomic: Option<bool>,
}

/// A wait that JavaScript gave in milliseconds.
pub(crate) fn wait(millis: f64) -> napi::Result<Duration> {
    if !(0.0..=LONGEST_WAIT).contains(&millis) {
        return Err(argument("a wait is 0 to 2147483647 milliseconds"));
    }
    Duration::try_from_secs_f64(millis / 1_000.0).map_err(|_| argument("a wait is a number of milliseconds"))
}

/// How long messages are kept: milliseconds, 0 for no longer than delivery needs them, negative for ever.
pub(crate) fn retention_of(millis: f64) -> napi::Result<Retention> {
    if millis < 0.0 {
        return Ok(Retention::Forever);
    }
    if millis == 0.0 {
        return Ok(Retention::None);
    }
    Duration::try_from_secs_f64(millis / 1_000.0)
        .map(Retention::For)
        .map_err(|_| argument("a retention is a number of milliseconds"))
}

/// Whether an origin is reached over TLS, or not at all over a network.
fn is_protected(origin: &str) -> bool {
    let Some(rest) = origin.strip_prefix("ws://") else { return true };
    let host = rest.rsplit_once(':').map_or(rest, |(host, _)| host).trim_matches(['[', ']']);
    let is_loopback_address = || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    host == "localhost" || host.ends_with(".localhost") || is_loopback_address()
}

fn with<T>(
    builder: AppBuilder,
    value: Option<T>,
    set: impl FnOnce(AppBuilder, T) -> AppBuilder,
) -> AppBuilder {
    match value {
        Some(value) => set(builder, value),
        None => builder,
    }
}

fn builder(settings: AppSettings) -> napi::Result<AppBuilder> {
    let timeout = settings.timeout.map(wait).transpose()?;
    let retention = match settings.retention {
        None => None,
        Some(millis) => Some(retention_of(millis)?),
    };
    let trust = match settings.trust_policy.as_deref() {
        None => None,
        Some("first-use") => Some(TrustPolicy::FirstUse),
        Some("verified-only") => Some(TrustPolicy::VerifiedOnly),
        Some(_) => return Err(argument("trustPolicy is \"first-use\" or \"verified-only\"")),
    };
    let mismatch = match settings.on_identity_change.as_deref() {
        None => None,
        Some("reject") => Some(MismatchPolicy::Reject),
        Some("replace") => Some(MismatchPolicy::Replace),
        Some(_) => return Err(argument("onIdentityChange is \"reject\" or \"replace\"")),
    };
    let usual = ReceiptPolicy::default();
    let receipts = ReceiptPolicy {
        delivered: settings.delivered_receipts.unwrap_or(usual.delivered),
        read: settings.read_receipts.unwrap_or(usual.read),
    };
    let root = settings.root_certificate.as_deref().map(|pem| fits(pem, MAX_CERTIFICATE)).transpose()?;
    let root = root.map(<[u8]>::to_vec);
    let mut builder = App::builder().receipts(receipts);
    builder = with(builder, settings.app_token, AppBuilder::app_token);
    builder = with(builder, settings.client_token, AppBuilder::client_token);
    builder = with(builder, settings.relay_url, AppBuilder::relay_url);
    builder = with(builder, settings.app_id, AppBuilder::app_id);
    builder = with(builder, settings.data_dir, AppBuilder::data_dir);
    builder = with(builder, settings.passphrase, AppBuilder::passphrase);
    builder = with(builder, settings.keyfile, AppBuilder::keyfile);
    builder = with(builder, timeout, AppBuilder::timeout);
    builder = with(builder, trust, AppBuilder::trust_policy);
    builder = with(builder, mismatch, AppBuilder::on_identity_change);
    builder = with(builder, retention, AppBuilder::retention);
    builder = with(builder, root, AppBuilder::root_certificate);
    builder = with(builder, settings.replace_identity, AppBuilder::replace_identity);
    builder = with(builder, settings.minimal_relay, AppBuilder::minimal_relay);
    builder = with(builder, settings.require_atomic, AppBuilder::require_atomic_session_and_prekey);
    Ok(if settings.in_memory == Some(true) { builder.in_memory() } else { builder })
}

/// An app at a relay.
#[napi]
pub struct NativeApp(Kept<App>);

/// Checks the settings and makes an app of them. Nothing is dialled.
///
/// # Errors
/// As `AppBuilder::open`.
#[napi(catch_unwind)]
pub fn open_app<'env>(
    env: &'env Env,
    settings: AppSettings,
    adapters: Option<&NativeAdapters>,
) -> napi::Result<PromiseRaw<'env, NativeApp>> {
    let protected = settings.protected == Some(true);
    let deadline = settings.timeout.map(wait).transpose()?.filter(|timeout| !timeout.is_zero());
    let mut builder = builder(settings)?;
    if let Some(adapters) = adapters {
        let adapters = adapters.adapters();
        builder = builder.storage_adapters(match deadline {
            Some(deadline) => adapters.deadline(deadline),
            None => adapters,
        });
    }
    promise(env, None, async move {
        let app = builder.open().await.map_err(failed)?;
        // Judged on the URL that will be dialled, not on the text that was given.
        if protected && !is_protected(&app.relay_url()) {
            let message = "a setting can not be used: production mode speaks to relays over TLS only: \
                           write wss:// or https:// in relayUrl";
            return Err(failure("INVALID_CONFIG", message, false));
        }
        Ok(NativeApp(Kept::new(app)))
    })
}

#[napi]
impl NativeApp {
    /// Opens the client of a user.
    ///
    /// # Errors
    /// As `App::connect`.
    #[napi(catch_unwind)]
    pub fn connect<'env>(
        &self,
        env: &'env Env,
        user: String,
        cancel: Option<&Cancel>,
    ) -> napi::Result<PromiseRaw<'env, NativeClient>> {
        let app = self.0.get()?.clone();
        promise(env, cancel, async move { app.connect(user).await.map(NativeClient::new).map_err(failed) })
    }

    /// The relay's origin.
    #[napi(getter, catch_unwind)]
    pub fn relay_url(&self) -> napi::Result<String> {
        Ok(self.0.get()?.relay_url())
    }

    /// The app's id.
    #[napi(getter, catch_unwind)]
    pub fn app_id(&self) -> napi::Result<String> {
        Ok(self.0.get()?.app_id().as_str().to_owned())
    }

    /// Closes every client.
    ///
    /// # Errors
    /// As `App::close`.
    #[napi(catch_unwind)]
    pub fn close<'env>(&self, env: &'env Env) -> napi::Result<PromiseRaw<'env, ()>> {
        let app = self.0.get()?.clone();
        promise(env, None, async move { app.close().await.map_err(failed) })
    }
}
