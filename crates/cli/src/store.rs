//! Stores on servers, as the settings name them.

use std::sync::Arc;

use stvor::store::{PostgresStores, RedisStores, ServerOptions, StoreError, StoreProvider};

use crate::config::Client;
use crate::failure::{Failure, Result};

/// The stores that `store` names; `None`: SQLite in the data directory.
pub(crate) fn configured(client: &Client) -> Result<Option<Arc<dyn StoreProvider>>> {
    let Some(url) = &client.store else { return Ok(None) };
    let mut options = ServerOptions::new().replicas(client.store_replicas);
    if let Some(file) = &client.store_password_file {
        options = options.password_file(file);
    }
    if let Some(file) = &client.store_root_certificate {
        options = options.root_certificate(file);
    }
    if let Some(settings) = &client.store_assured_settings {
        options = options.assured_settings(assured(settings)?);
    }
    let coded = |error: StoreError| Failure::coded(&error);
    match url.split_once("://").map(|(scheme, _)| scheme) {
        Some("postgres" | "postgresql") => {
            Ok(Some(Arc::new(PostgresStores::with_options(url, options).map_err(coded)?)))
        }
        Some("redis" | "rediss") => {
            Ok(Some(Arc::new(RedisStores::with_options(&[url], options).map_err(coded)?)))
        }
        // Never the URL itself: it may hold a password.
        _ => Err(Failure::Config(
            "`store` is not a URL of a store: it begins with postgres:// or redis:// (rediss:// with TLS); without it SQLite \
             in the data directory is used"
                .to_owned(),
        )),
    }
}

/// Settings that are vouched for, as they stand in `redis.conf` and with commas between them: `appendonly yes, appendfsync always`.
fn assured(text: &str) -> Result<Vec<(&str, &str)>> {
    text.split(',').map(pair).collect()
}

fn pair(setting: &str) -> Result<(&str, &str)> {
    let mut words = setting.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(name), Some(value), None) => Ok((name, value)),
        _ => Err(Failure::Config(format!(
            "`store_assured_settings` holds `{}`, which is no name and value: write for example `appendonly yes, appendfsync always`",
            setting.trim()
        ))),
    }
}
