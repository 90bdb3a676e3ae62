//! What an owner keeps: backups, the key of the store, the journal of what was decided.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use napi::Env;
use napi::bindgen_prelude::{Function, PromiseRaw, spawn};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use stvor::recipients::{Identity, Opening, Recipient, Sealing};
use stvor::{BackupOptions, Client, Progress, SecretBytes};
use tokio::sync::oneshot;

use crate::app::NativeApp;
use crate::client::NativeClient;
use crate::content::millis;
use crate::failure::{argument, coded, failed, panicked};
use crate::kms::NativeKms;
use crate::limits::{MAX_AGE_KEYS, MAX_JOURNAL, MAX_RECIPIENTS};
use crate::storage::{KeySettings, NewKey, new_key};
use crate::task::{Cancel, promise};

/// How far something came.
#[napi(object)]
pub struct ProgressValue {
    /// Done so far.
    pub done: f64,
    /// Of how many.
    pub total: f64,
}

/// Where a backup goes, and who opens it.
#[napi(object)]
pub struct BackupRequest {
    /// A new file, or a directory.
    pub path: String,
    /// Opens it.
    pub passphrase: Option<String>,
    /// Open it: age recipients.
    pub recipients: Option<Vec<String>>,
    /// Backups that stay in the directory.
    pub keep: Option<u32>,
}

/// A backup that was made.
#[napi(object)]
pub struct BackupValue {
    /// The file.
    pub path: String,
    /// Its size.
    pub bytes: f64,
    /// Messages in it.
    pub messages: f64,
    /// Conversations in it.
    pub conversations: f64,
    /// Older ones that were removed.
    pub removed: Vec<String>,
}

/// Which backup, and what opens it.
#[napi(object)]
pub struct RestoreRequest {
    /// The file.
    pub path: String,
    /// Its passphrase.
    pub passphrase: Option<String>,
    /// The text of an age key file.
    pub identity: Option<String>,
}

/// What was restored.
#[napi(object)]
pub struct RestoredValue {
    /// Who.
    pub user: String,
    /// When the backup was made: milliseconds since the Unix epoch.
    pub made_at: f64,
    /// Messages.
    pub messages: f64,
    /// Conversations.
    pub conversations: f64,
}

/// One entry of the journal.
#[napi(object)]
pub struct JournalValue {
    /// When: milliseconds since the Unix epoch.
    pub at: f64,
    /// Who.
    pub who: String,
    /// What, in snake case.
    pub deed: String,
    /// To what.
    pub subject: String,
    /// More about it.
    pub detail: String,
}

#[allow(clippy::cast_precision_loss, reason = "bytes and messages are far below 2^53")]
fn number(count: u64) -> f64 {
    count as f64
}

type Tell = ThreadsafeFunction<ProgressValue, (), ProgressValue, napi::Status, false, true, 0>;

/// Calls back with how far it came. Whoever listens does not hold the work up.
fn teller(
    told: Option<Function<'_, ProgressValue, ()>>,
) -> napi::Result<impl Fn(Progress) + Send + Sync + 'static> {
    let tell: Option<Tell> = told
        .map(|told| {
            told.build_threadsafe_function::<ProgressValue>().weak::<true>().callee_handled::<false>().build()
        })
        .transpose()?;
    Ok(move |progress: Progress| {
        if let Some(tell) = &tell {
            let value = ProgressValue { done: number(progress.done), total: number(progress.total) };
            tell.call(value, ThreadsafeFunctionCallMode::NonBlocking);
        }
    })
}

async fn change(client: Client, key: NewKey) -> napi::Result<()> {
    match key {
        NewKey::Key(key) => client.change_key(key).await.map_err(failed),
        #[cfg(feature = "os-keyring")]
        NewKey::Keyring(service) => client.change_key_to_keyring(service).await.map_err(failed),
    }
}

fn sealing(passphrase: Option<String>, recipients: Option<Vec<String>>) -> napi::Result<Sealing> {
    match (passphrase, recipients) {
        (Some(text), None) => Sealing::passphrase(&SecretBytes::from(text.into_bytes())).map_err(coded),
        (None, Some(recipients)) if (1..=MAX_RECIPIENTS).contains(&recipients.len()) => {
            let all = recipients.iter().map(|text| text.parse::<Recipient>().map_err(coded));
            Ok(Sealing::to(all.collect::<napi::Result<_>>()?))
        }
        _ => Err(argument("a backup is sealed to a passphrase or to 1 to 64 recipients")),
    }
}

fn opening(passphrase: Option<String>, identity: Option<String>) -> napi::Result<Opening> {
    match (passphrase, identity) {
        (Some(text), None) => Opening::passphrase(&SecretBytes::from(text.into_bytes())).map_err(coded),
        (None, Some(text)) if text.len() <= MAX_AGE_KEYS => {
            let text = SecretBytes::from(text.into_bytes());
            Ok(Opening::with(Identity::parse_file(&text).map_err(coded)?))
        }
        _ => Err(argument("a backup opens with either its passphrase or an age identity")),
    }
}

#[napi]
impl NativeClient {
    /// Writes a backup.
    ///
    /// # Errors
    /// As `Client::backup`, and for what can be no passphrase or recipient.
    #[napi(catch_unwind)]
    pub fn backup<'env>(
        &self,
        env: &'env Env,
        request: BackupRequest,
        told: Option<Function<'_, ProgressValue, ()>>,
        cancel: Option<&Cancel>,
    ) -> napi::Result<PromiseRaw<'env, BackupValue>> {
        let client = self.client()?;
        let sealing = sealing(request.passphrase, request.recipients)?;
        let mut options = BackupOptions::default().on_progress(teller(told)?);
        if let Some(keep) = request.keep {
            options = options.keep(usize::try_from(keep).unwrap_or(usize::MAX));
        }
        promise(env, cancel, async move {
            let made = client.backup(request.path, sealing, options).await.map_err(failed)?;
            Ok(BackupValue {
                path: made.path.display().to_string(),
                bytes: number(made.bytes),
                messages: number(made.messages),
                conversations: number(made.conversations),
                removed: made.removed.iter().map(|path| path.display().to_string()).collect(),
            })
        })
    }

    /// What was decided and done, newest first.
    ///
    /// # Errors
    /// As `Client::journal`.
    #[napi(catch_unwind)]
    pub fn journal<'env>(
        &self,
        env: &'env Env,
        limit: u32,
    ) -> napi::Result<PromiseRaw<'env, Vec<JournalValue>>> {
        let client = self.client()?;
        let limit = usize::try_from(limit).unwrap_or(MAX_JOURNAL).min(MAX_JOURNAL);
        promise(env, None, async move {
            let entries = client.journal(limit).await.map_err(failed)?;
            let value = |entry: stvor::JournalEntry| JournalValue {
                at: millis(entry.at),
                who: entry.who,
                deed: entry.deed.name().to_owned(),
                subject: entry.subject,
                detail: entry.detail,
            };
            Ok(entries.into_iter().map(value).collect())
        })
    }

    /// Changes what opens the store. `cancel` gives up what finds the key, and from there on the waiting only: what is written is written whole.
    ///
    /// # Errors
    /// As `Client::change_key`, and what the key meets.
    #[napi(catch_unwind)]
    pub fn change_key<'env>(
        &self,
        env: &'env Env,
        keys: KeySettings,
        cancel: Option<&Cancel>,
        kms: Option<&NativeKms>,
    ) -> napi::Result<PromiseRaw<'env, ()>> {
        let client = self.client()?;
        let kms = kms.map(NativeKms::holder);
        promise(env, cancel, async move {
            let key = new_key(keys, kms).await?;
            let (done, changed) = oneshot::channel();
            spawn(async move {
                let _ = done.send(AssertUnwindSafe(change(client, key)).catch_unwind().await);
            });
            changed.await.ok().and_then(Result::ok).unwrap_or_else(|| Err(panicked()))
        })
    }

    /// Replaces the data key of the store.
    ///
    /// # Errors
    /// As `Client::rotate_key`.
    #[napi(catch_unwind)]
    pub fn rotate_key<'env>(
        &self,
        env: &'env Env,
        told: Option<Function<'_, ProgressValue, ()>>,
        cancel: Option<&Cancel>,
    ) -> napi::Result<PromiseRaw<'env, ()>> {
        let client = self.client()?;
        let told = teller(told)?;
        promise(env, cancel, async move { client.rotate_key(told).await.map_err(failed) })
    }
}

#[napi]
impl NativeApp {
    /// Restores a user from a backup.
    ///
    /// # Errors
    /// As `App::restore`, and for what can be no passphrase or identity.
    #[napi(catch_unwind)]
    pub fn restore<'env>(
        &self,
        env: &'env Env,
        request: RestoreRequest,
        told: Option<Function<'_, ProgressValue, ()>>,
        cancel: Option<&Cancel>,
    ) -> napi::Result<PromiseRaw<'env, RestoredValue>> {
        let app = self.app()?;
        let opening = opening(request.passphrase, request.identity)?;
        let told: stvor::OnProgress = std::sync::Arc::new(teller(told)?);
        promise(env, cancel, async move {
            let restored = app.restore(request.path, opening, Some(told)).await.map_err(failed)?;
            Ok(RestoredValue {
                user: restored.user.to_string(),
                made_at: millis(restored.made_at),
                messages: number(restored.messages),
                conversations: number(restored.conversations),
            })
        })
    }
}
