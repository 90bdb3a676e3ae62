//! A real relay in this process, and apps at it.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "every test uses a part of it; tests fail by panicking"
)]

pub mod shared;
pub mod tls;

use std::path::Path;
use std::time::Duration;

use stvor::{App, AppBuilder, Client, Event, Events};
use stvor_relay::{Config, Handle, Relay};

pub const TOKEN: &str = "stvor_dev_test123";
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A relay that forgets everything with the test.
pub async fn relay() -> Handle {
    Relay::start(Config::mock(0)).await.expect("a relay on a free port")
}

/// A relay on a database, on the port given (0: any).
pub async fn durable(directory: &Path, port: u16) -> Handle {
    let config = Config { database: Some(directory.join("relay.db")), ..Config::mock(port) };
    Relay::start(config).await.expect("a relay on a free port")
}

pub fn builder(url: &str) -> AppBuilder {
    App::builder().app_token(TOKEN).relay_url(url).timeout(Duration::from_secs(10))
}

/// An app in memory.
pub async fn app(url: &str) -> App {
    builder(url).in_memory().open().await.unwrap()
}

/// An app on disk.
pub async fn app_in(url: &str, directory: &Path) -> App {
    builder(url).data_dir(directory).open().await.unwrap()
}

/// Alice and Bob in memory.
pub async fn pair(url: &str) -> (Client, Client) {
    let app = app(url).await;
    let pair = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    // The clients hold what they need; without the app nothing else keeps them.
    drop(app);
    pair
}

/// Ends a wait that would otherwise hang the test.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it happens in time")
}

/// The first event that is wanted.
pub async fn event<T>(events: &mut Events, wanted: impl Fn(Event) -> Option<T>) -> T {
    soon(async {
        loop {
            let event = events.next().await.expect("the client is open");
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    })
    .await
}

pub fn code<T: std::fmt::Debug>(result: stvor::Result<T>) -> &'static str {
    result.expect_err("an error").code()
}
