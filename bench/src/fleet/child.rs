//! What every process of the test does: it sends what its standard input says, and tells on its standard output what it
//! did and what its application was handed. It ends in good order with its standard input.

use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use stvor::store::{PostgresStores, RedisStores, ServerOptions, StoreProvider};
use stvor::{App, Client, Event, Message, SendOptions, SendWait};
use tokio::sync::mpsc;

use super::Backend;
use crate::Outcome;

/// The variable that holds the [`Place`] of a process.
pub(super) const PLACE: &str = "STVOR_FLEET_PLACE";

/// What a line of ours begins with; others are of whoever runs us.
pub(super) const MARK: &str = "@@";

/// A process that does not end by then after its standard input is closed is stuck.
const ORDERLY: Duration = Duration::from_secs(60);

/// Until then the relay may be away, and a store may be held by the process before.
const COMING: Duration = Duration::from_secs(60);

/// How long an instance may be silent.
const LEASE: Duration = Duration::from_millis(1_500);

const TOKEN: &str = "stvor_dev_fleet";
const PAUSE: Duration = Duration::from_millis(20);
const COMMITTED: SendOptions = SendOptions { timeout: None, wait: SendWait::Committed };

/// Who a process is and where it finds what.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) relay: String,
    /// The server of the shared store; `None`: SQLite in the directory.
    pub(super) store: Option<(Backend, String)>,
    pub(super) directory: PathBuf,
    pub(super) user: String,
    pub(super) peer: String,
}

/// The process itself. It returns at once where the environment does not ask for it.
///
/// # Errors
/// When it can not do what it has to; the history is then wrong.
pub async fn child() -> Outcome<()> {
    let Ok(place) = std::env::var(PLACE) else { return Ok(()) };
    let place: Place = serde_json::from_str(&place)?;
    let mut orders = orders();
    let (app, client) = connect(&place).await?;
    say(format_args!("identity {}", client.identity().fingerprint));
    tokio::spawn(watch(client.clone()));
    let receiving = tokio::spawn(receive(client.clone()));
    let (to_send, ids) = mpsc::unbounded_channel();
    tokio::spawn(send(client.clone(), place.peer.clone(), ids));
    while let Some(order) = orders.recv().await {
        match order.split(' ').collect::<Vec<_>>()[..] {
            ["send", id] => to_send.send(id.to_owned())?,
            ["seal", file] => seal(&client, &place.peer, file).await?,
            ["open", copies, file] => open(&client, copies.parse()?, file).await?,
            _ => return Err(format!("an order that nobody knows: {order}").into()),
        }
    }
    drop(client);
    app.close().await?;
    receiving.await?;
    Ok(())
}

fn say(what: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    // The test may be over.
    let _over = writeln!(out, "{MARK}{what}").and_then(|()| out.flush());
}

/// The lines of the standard input. A thread of its own: a read can not be cancelled.
fn orders() -> mpsc::UnboundedReceiver<String> {
    let (sender, orders) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
        drop(sender);
        std::thread::sleep(ORDERLY);
        std::process::exit(3);
    });
    orders
}

async fn connect(place: &Place) -> Outcome<(App, Client)> {
    let stores: Option<Arc<dyn StoreProvider>> = match &place.store {
        None => None,
        Some((Backend::Postgres, url)) => Some(Arc::new(PostgresStores::new(url)?)),
        Some((Backend::Redis, url)) => Some(Arc::new(RedisStores::new(url)?)),
        Some((Backend::RedisPair | Backend::RedisCluster, url)) => {
            Some(Arc::new(RedisStores::with_options(&[url], ServerOptions::new().replicas(1))?))
        }
    };
    let until = tokio::time::Instant::now() + COMING;
    loop {
        let failed = match try_to_connect(place, stores.clone()).await {
            Ok(both) => return Ok(both),
            Err(error) => error,
        };
        if !failed.retryable() || tokio::time::Instant::now() > until {
            return Err(failed.into());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn try_to_connect(
    place: &Place,
    stores: Option<Arc<dyn StoreProvider>>,
) -> stvor::Result<(App, Client)> {
    let builder = App::builder().app_token(TOKEN).relay_url(&place.relay).instance_lease(LEASE);
    let builder = match stores {
        None => builder.data_dir(&place.directory),
        Some(stores) => builder.store(stores).keyfile(place.directory.join("key")),
    };
    let app = builder.open().await?;
    let client = app.connect(&place.user).await?;
    Ok((app, client))
}

/// What must not happen.
async fn watch(client: Client) {
    let mut events = client.events();
    drop(client);
    while let Some(event) = events.next().await {
        match event {
            Event::MessageUndecryptable { peer, code, .. } => {
                say(format_args!("bad undecryptable from {peer}: {code}"));
            }
            Event::RollbackDetected { .. }
            | Event::CloneDetected
            | Event::IdentityChanged { .. }
            | Event::DeliveryFailed { .. } => say(format_args!("bad {event:?}")),
            Event::Receiving { here } => say(format_args!("receives {here}")),
            _ => {}
        }
    }
}

async fn send(client: Client, peer: String, mut ids: mpsc::UnboundedReceiver<String>) {
    while let Some(id) = ids.recv().await {
        loop {
            match client.send_with(&peer, id.as_str(), COMMITTED).await {
                Ok(_) => break say(format_args!("taken {id}")),
                // It may be in the outbox or not: a second try could send it twice.
                Err(error) if error.code() == "STORE_UNCERTAIN" => break say(format_args!("perhaps {id}")),
                Err(error) if error.retryable() => tokio::time::sleep(PAUSE).await,
                Err(error) => break say(format_args!("bad {id} was not sent: {error}")),
            }
        }
    }
}

/// The application: it is done with most messages at once and with some after a while.
async fn receive(client: Client) {
    let mut messages = client.messages().manual_ack();
    drop(client);
    while let Some(message) = messages.next().await {
        say(format_args!("shown {}", message.text().unwrap_or_default()));
        let wait = rand::rng().random_range(0..120_u64);
        if wait < 40 {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(wait)).await;
                consume(message).await;
            });
        } else {
            consume(message).await;
        }
    }
}

async fn consume(message: Message) {
    let id = message.text().unwrap_or_default();
    say(format_args!("begun {id}"));
    loop {
        match message.ack().await {
            Ok(()) => break say(format_args!("consumed {id}")),
            Err(error) if error.code() == "CLAIM_LOST" => break say(format_args!("lost {id}")),
            // It closes; what it has not consumed is offered again.
            Err(error) if error.code() == "CLIENT_NOT_READY" => break say(format_args!("unsure {id}")),
            Err(error) if error.code() == "STORE_UNCERTAIN" => break say(format_args!("unsure {id}")),
            Err(error) if error.retryable() => tokio::time::sleep(PAUSE).await,
            Err(error) => break say(format_args!("bad {id} was not consumed: {error}")),
        }
    }
}

/// Seals a message into a file.
async fn seal(client: &Client, peer: &str, file: &str) -> Outcome<()> {
    let sealed = loop {
        match client.seal(peer, "only once").await {
            Ok(sealed) => break sealed,
            Err(error) if error.retryable() || error.code() == "NO_SESSION" => {
                tokio::time::sleep(PAUSE).await
            }
            Err(error) => return Err(error.into()),
        }
    };
    std::fs::write(file, sealed)?;
    say(format_args!("sealed"));
    Ok(())
}

/// Opens copies of a sealed message, all at once.
async fn open(client: &Client, copies: usize, file: &str) -> Outcome<()> {
    let sealed = std::fs::read(file)?;
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..copies {
        let (client, sealed) = (client.clone(), sealed.clone());
        opening.spawn(async move {
            loop {
                match client.open(&sealed).await {
                    Ok(_) => return true,
                    Err(error) if matches!(error.code(), "DUPLICATE" | "REPLAY") => return false,
                    Err(error) if error.retryable() => tokio::time::sleep(PAUSE).await,
                    Err(error) => {
                        say(format_args!("bad a copy was not opened: {error}"));
                        return false;
                    }
                }
            }
        });
    }
    let passed = opening.join_all().await.into_iter().filter(|passed| *passed).count();
    say(format_args!("opened {passed} of {copies}"));
    Ok(())
}
