//! The file without a relay: what the command line changes.

use std::path::Path;

use rusqlite::Connection;
use stvor_base::{AppId, Timestamp, UserId};

use super::mailbox::Cache;
use super::writer::{Batch, Failure, unavailable};
use super::{open_connection, tokens};
use crate::storage::{Bounds, StoreError, TokenRecord};

/// A connection for one process's few changes.
pub(crate) struct Offline(Connection);

impl Offline {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        open_connection(path).map(Self)
    }

    pub(crate) fn put_token(&mut self, token: &TokenRecord) -> Result<(), StoreError> {
        tokens::put(&self.0, token).map_err(|error| unavailable(&error))
    }

    pub(crate) fn tokens(&mut self) -> Result<Vec<TokenRecord>, StoreError> {
        tokens::all(&self.0).map_err(|error| unavailable(&error))
    }

    pub(crate) fn revoke_token(&mut self, id: &str, now: Timestamp) -> Result<bool, StoreError> {
        tokens::revoke(&self.0, id, now).map_err(|error| unavailable(&error))
    }

    pub(crate) fn delete_user(&mut self, app: &AppId, user: &UserId) -> Result<bool, StoreError> {
        let sql = |error: rusqlite::Error| unavailable(&error);
        let transaction =
            self.0.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(sql)?;
        let (mut cache, bounds) = (Cache::default(), Bounds::default());
        let mut batch =
            Batch { sql: &transaction, cache: &mut cache, bounds: &bounds, fence: &mut 0, failed: None };
        let deleted = batch.delete_user(app, user).map_err(|failure| match failure {
            Failure::Store(error) => error,
            Failure::Sql(error) => unavailable(&error),
        })?;
        transaction.commit().map_err(sql)?;
        Ok(deleted)
    }
}
