//! What the relay keeps, behind traits: [`Mailbox`], [`Directory`], [`Tokens`].
//!
//! Two implementations pass one conformance suite: [`memory`] (development) and [`sqlite`] (durable). Users and devices
//! get numbers that are never used twice; [`MailboxId`] is the number of a device, and everything that happens after
//! log-in goes by it, so that a name that changed hands never reaches its new owner's mailbox with an old number. What is
//! done in a device's name goes by its [`Holder`], so that keys which handed over to others do nothing more.

#[cfg(test)]
mod conformance;
pub mod memory;
mod rules;
pub mod sqlite;
mod types;

use std::sync::Arc;

use async_trait::async_trait;
use stvor_base::{Address, AppId, DeviceId, Timestamp, UserId};
use stvor_wire::client::UploadKeys;
use stvor_wire::keys::KeyCounts;

pub(crate) use rules::NOT_REGISTERED;
pub use types::*;

/// Called once with the result of an operation, on whatever thread finished it. Must not block.
pub type Done<T> = Box<dyn FnOnce(Result<T, StoreError>) + Send>;

/// The mailboxes. Operations on one store take effect in the order in which they were submitted.
#[async_trait]
pub trait Mailbox: Send + Sync {
    /// Stores a message; calls back after it is durable, or refused: with LOGGED_OUT when the sending device is gone,
    /// or has other keys by now.
    fn put(&self, put: Arc<Put>, done: Done<Stored>);

    /// Deletes acknowledged messages; calls back with the ids whose row holds another message (nothing of those is
    /// deleted). What is gone already is no error.
    fn ack(&self, mailbox: MailboxId, rows: Vec<AckRow>, done: Done<Vec<stvor_base::MessageId>>);

    /// The highest seq given out in a mailbox, as of after all operations that were submitted before. Refuses a device
    /// that is gone, or has other keys by now, with LOGGED_OUT.
    async fn last_seq(&self, holder: Holder) -> Result<u64, StoreError>;

    /// Messages in order of their seq, after `after`: at most `limit.rows`, and as many as fit `limit.bytes` but at
    /// least one.
    async fn read(
        &self,
        mailbox: MailboxId,
        after: u64,
        (limit, without): (PageLimit, &[MailboxId]),
    ) -> Result<Page, StoreError>;

    /// Deletes what expired, at most `limit` rows of a kind; returns how much.
    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<Swept, StoreError>;

    /// Whether something can be written: for readiness.
    async fn check(&self) -> Result<(), StoreError>;
}

/// Users, devices and prekeys.
#[async_trait]
pub trait Directory: Send + Sync {
    /// Logs a device in: registers, replaces or recognises its user, and opens its mailbox. Takes effect after all
    /// operations that were submitted before.
    async fn attach(&self, attach: Attach) -> Result<Attached, StoreError>;

    /// The mailbox of a device, if there is one.
    async fn resolve(&self, app: &AppId, address: &Address) -> Result<Option<MailboxId>, StoreError>;

    /// Adds prekeys. Refuses a device that is gone, or has other keys by now, with LOGGED_OUT.
    async fn upload_keys(&self, holder: Holder, upload: UploadKeys) -> Result<KeyCounts, StoreError>;

    /// A user's bundles; pops one-time prekeys if `take` says so.
    async fn bundles(
        &self,
        app: &AppId,
        user: &UserId,
        take: Take,
    ) -> Result<Option<UserBundles>, StoreError>;

    /// Whether a name is registered and has keys.
    async fn user_state(&self, app: &AppId, user: &UserId) -> Result<Registered, StoreError>;

    /// Whether a name has keys in any app: for development relays.
    async fn has_keys_anywhere(&self, user: &UserId) -> Result<bool, StoreError>;

    /// Deletes the user that this device belongs to, with all devices, keys and mail; returns the devices that are gone.
    /// By device, not by name: the name may have a new owner.
    ///
    /// # Errors
    /// LOGGED_OUT when the device is gone itself, or has other keys by now: nothing is deleted.
    async fn delete_account(&self, holder: Holder) -> Result<Vec<MailboxId>, StoreError>;

    /// Whether a device is still what it was at log-in.
    async fn is_current(&self, holder: Holder) -> Result<bool, StoreError>;
}

/// App tokens, and keys that verify client tokens.
#[async_trait]
pub trait Tokens: Send + Sync {
    /// Adds a token, or replaces what is known of its hash.
    async fn put_token(&self, token: TokenRecord) -> Result<(), StoreError>;

    /// The token with this hash.
    async fn token(&self, hash: &[u8; 32]) -> Result<Option<TokenRecord>, StoreError>;

    /// All tokens, newest first.
    async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError>;

    /// Revokes the token with this id. `false` when there is none.
    async fn revoke_token(&self, id: &str, now: Timestamp) -> Result<bool, StoreError>;

    /// A secret of this relay: the first call of a name makes it `fresh`, later ones and other processes get that.
    async fn secret(&self, name: &'static str, fresh: [u8; 32]) -> Result<[u8; 32], StoreError>;

    /// A number that changes when another process changed the store.
    async fn outside_changes(&self) -> Result<u64, StoreError>;
}

/// Everything in one.
pub trait Store: Mailbox + Directory + Tokens {}

impl<T: Mailbox + Directory + Tokens> Store for T {}

/// A store, shared.
pub type SharedStore = Arc<dyn Store>;

/// The bundle of a device that is listed in `devices`, or of all when it is empty.
pub(crate) fn is_wanted(devices: &[DeviceId], device: DeviceId) -> bool {
    devices.is_empty() || devices.contains(&device)
}
