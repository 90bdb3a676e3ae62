//! An app at a relay.

use std::time::Duration;

use napi::Env;
use napi::bindgen_prelude::{PromiseRaw, Uint8Array};
use napi_derive::napi;
use stvor::narrow::Interface;
use stvor::{
    App, AppBuilder, Executor, MismatchPolicy, OnPressure, ReceiptPolicy, Retention, Suite, TrustPolicy,
};

use crate::adapters::NativeAdapters;
use crate::client::NativeClient;
use crate::failure::{argument, failed, fits};
use crate::kms::NativeKms;
use crate::limits::{LONGEST_WAIT, MAX_CERTIFICATE};
use crate::storage::{KeySettings, ServerSettings, stores, with_keys};
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
    /// The server that keeps the stores, in place of this machine.
    pub server: Option<ServerSettings>,
    /// What seals the stores.
    pub keys: KeySettings,
    /// Milliseconds that an instance of a shared store may be silent.
    pub instance_lease: Option<f64>,
    /// Who acts, for the journal.
    pub actor: Option<String>,
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
    /// Refuses what production should not have.
    pub production: Option<bool>,
    /// Whether a minimal relay will do.
    pub minimal_relay: Option<bool>,
    /// Refuses stores without transactions.
    pub require_atomic: Option<bool>,
    /// `p256` or `x25519`.
    pub suite: Option<String>,
    /// The storage adapters that have stand-ins in memory.
    pub missing_adapters: Option<Vec<String>>,
    /// Messages of one conversation that the relay has not accepted.
    pub max_unaccepted: Option<u32>,
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

/// A builder with all that needs neither the runtime nor a file.
fn builder(settings: AppSettings) -> napi::Result<AppBuilder> {
    let lease = settings.instance_lease.map(wait).transpose()?;
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
    let suite = match settings.suite.as_deref() {
        None => None,
        Some("p256") => Some(Suite::P256),
        Some("x25519") => Some(Suite::X25519),
        Some(_) => return Err(argument("suite is \"p256\" or \"x25519\"")),
    };
    let usual = ReceiptPolicy::default();
    let receipts = ReceiptPolicy {
        delivered: settings.delivered_receipts.unwrap_or(usual.delivered),
        read: settings.read_receipts.unwrap_or(usual.read),
    };
    let root = settings.root_certificate.as_deref().map(|pem| fits(pem, MAX_CERTIFICATE)).transpose()?;
    let root = root.map(<[u8]>::to_vec);
    // The gate before it refuses: what it let in waits here.
    let mut executor = Executor { on_pressure: OnPressure::Wait, ..Executor::default() };
    if let Some(most) = settings.max_unaccepted {
        executor.max_pending = usize::try_from(most).unwrap_or(usize::MAX);
    }
    let mut builder = App::builder().receipts(receipts).executor(executor);
    builder = with(builder, settings.app_token, AppBuilder::app_token);
    builder = with(builder, settings.client_token, AppBuilder::client_token);
    builder = with(builder, settings.relay_url, AppBuilder::relay_url);
    builder = with(builder, settings.app_id, AppBuilder::app_id);
    builder = with(builder, settings.data_dir, AppBuilder::data_dir);
    builder = with(builder, timeout, AppBuilder::timeout);
    builder = with(builder, trust, AppBuilder::trust_policy);
    builder = with(builder, mismatch, AppBuilder::on_identity_change);
    builder = with(builder, retention, AppBuilder::retention);
    builder = with(builder, root, AppBuilder::root_certificate);
    builder = with(builder, settings.replace_identity, AppBuilder::replace_identity);
    builder = with(builder, settings.minimal_relay, AppBuilder::minimal_relay);
    builder = with(builder, settings.require_atomic, AppBuilder::require_atomic_session_and_prekey);
    builder = with(builder, lease, AppBuilder::instance_lease);
    builder = with(builder, settings.actor, AppBuilder::actor);
    builder = with(builder, settings.production, AppBuilder::production);
    builder = with(builder, suite, AppBuilder::suite);
    Ok(if settings.in_memory == Some(true) { builder.in_memory() } else { builder })
}

/// Something about the set-up that production should not have.
#[napi(object)]
pub struct FindingValue {
    /// A stable name.
    pub code: String,
    /// What was found.
    pub what: String,
    /// How to mend it.
    pub fix: String,
    /// Whether production mode refuses it.
    pub refused: bool,
}

/// An app at a relay.
#[napi]
pub struct NativeApp(Kept<App>);

/// Checks the settings and makes an app of them. No relay is dialled; a server that keeps the stores is asked how it is set up.
///
/// # Errors
/// As `AppBuilder::open`, and what the keys meet.
#[napi(catch_unwind)]
pub fn open_app<'env>(
    env: &'env Env,
    mut settings: AppSettings,
    adapters: Option<&NativeAdapters>,
    cancel: Option<&Cancel>,
    kms: Option<&NativeKms>,
) -> napi::Result<PromiseRaw<'env, NativeApp>> {
    let deadline = settings.timeout.map(wait).transpose()?.filter(|timeout| !timeout.is_zero());
    let server = settings.server.take();
    let keys = core::mem::take(&mut settings.keys);
    let kms = kms.map(NativeKms::holder);
    let missing = settings.missing_adapters.take().unwrap_or_default();
    let mut builder = builder(settings)?;
    if let Some(adapters) = adapters {
        let missing = missing.iter().filter_map(|name| Interface::named(name));
        let adapters = adapters.adapters().standing_in(missing);
        builder = builder.storage_adapters(match deadline {
            Some(deadline) => adapters.deadline(deadline),
            None => adapters,
        });
    }
    promise(env, cancel, async move {
        let builder = with_keys(builder, keys, kms).await?;
        let builder = match server {
            Some(server) => builder.store(stores(server)?),
            None => builder,
        };
        let app = builder.open().await.map_err(failed)?;
        Ok(NativeApp(Kept::new(app)))
    })
}

impl NativeApp {
    pub(crate) fn app(&self) -> napi::Result<App> {
        self.0.get().cloned()
    }
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

    /// Hands the identity of a user over to a fresh one. Gives the user and the fingerprints of both; `connect` gives the client.
    ///
    /// # Errors
    /// As `App::rotate_identity_with`.
    #[napi(catch_unwind)]
    pub fn rotate_identity<'env>(
        &self,
        env: &'env Env,
        user: String,
        not_derived: bool,
        accept_lossy_store: bool,
    ) -> napi::Result<PromiseRaw<'env, Vec<String>>> {
        let app = self.0.get()?.clone();
        promise(env, None, async move {
            let options = stvor::RotateOptions { not_derived, accept_lossy_store };
            let rotated = app.rotate_identity_with(user, options).await.map_err(failed)?;
            let user = rotated.client.user().as_str().to_owned();
            Ok(vec![user, rotated.old, rotated.new])
        })
    }

    /// The relay's origin.
    #[napi(getter, catch_unwind)]
    pub fn relay_url(&self) -> napi::Result<String> {
        Ok(self.0.get()?.relay_url())
    }

    /// What production mode would refuse, and what the owner should know.
    #[napi(catch_unwind)]
    pub fn findings(&self) -> napi::Result<Vec<FindingValue>> {
        let value = |finding: &stvor::Finding| FindingValue {
            code: finding.code.to_owned(),
            what: finding.what.clone(),
            fix: finding.fix.clone(),
            refused: finding.refused,
        };
        Ok(self.0.get()?.findings().iter().map(value).collect())
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
