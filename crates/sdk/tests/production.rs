//! Production mode in use: what it lets start carries messages, and goes on from what it stored. Without it the same list warns.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::tls::{Issued, issue, relay_for, url};
use common::{PATIENCE, code, event, soon};
use stvor::store::{PostgresStores, RedisStores, ServerOptions, StoreProvider};
use stvor::{App, AppBuilder, Client, Direction, Event, Events, OwnIdentity};
use stvor_relay::{Config, Handle, TokenConfig};
use stvor_testkit::{Postgres, Redis, RedisSettings};

const TOKEN: &str = "sk_live_production";
const PASSPHRASE: &str = "of nobody else";
const WORDS: [&str; 2] = ["a question in plain words", "an answer in plain words"];

/// A relay that is no development one: with TLS, on a database, for one token. The root of its certificate as PEM.
async fn relay(directory: &Path) -> (Handle, String) {
    let token = TokenConfig { token: TOKEN.to_owned(), app: None };
    let config = Config {
        tokens: vec![token],
        open_registration: true,
        ..Config::durable(directory.join("relay.db"), 0)
    };
    relay_for("localhost", directory, config).await
}

fn production(url: &str, root: &str) -> AppBuilder {
    App::builder()
        .app_token(TOKEN)
        .relay_url(url)
        .root_certificate(root)
        .timeout(PATIENCE)
        .passphrase(PASSPHRASE)
        .production(true)
}

async fn both(app: &App) -> (Client, Client) {
    (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap())
}

fn identities(alice: &Client, bob: &Client) -> [OwnIdentity; 2] {
    [alice.identity(), bob.identity()]
}

/// One asks and the other answers.
async fn exchange(alice: &Client, bob: &Client) {
    for ((from, to), words) in [(alice, bob), (bob, alice)].into_iter().zip(WORDS) {
        let receipt = soon(from.send(to.user().as_str(), words)).await.unwrap();
        let mut inbox = to.messages().manual_ack();
        let message = soon(inbox.next()).await.unwrap();
        assert_eq!((&message.from, message.text()), (from.user(), Some(words)));
        message.ack().await.unwrap();
        soon(receipt.delivered()).await.unwrap();
    }
}

/// Both have the conversation, which they had so many times.
async fn remember(alice: &Client, bob: &Client, times: usize) {
    let (out, into) = (Direction::Out, Direction::In);
    for (client, peer, [asked, answered]) in [(alice, "bob", [out, into]), (bob, "alice", [into, out])] {
        let page = client.history(peer).load().await.unwrap();
        let found: Vec<_> = page
            .messages
            .iter()
            .rev()
            .map(|message| (message.direction, message.content.as_text().unwrap()))
            .collect();
        assert_eq!(found, [(asked, WORDS[0]), (answered, WORDS[1])].repeat(times));
    }
}

/// Two users talk, close, and are the same users with the same conversation when they are opened again.
async fn talk_close_and_go_on(builder: impl Fn() -> AppBuilder) {
    let app = builder().open().await.unwrap();
    assert!(app.findings().is_empty(), "{:?}", app.findings());
    let (alice, bob) = both(&app).await;
    exchange(&alice, &bob).await;
    let before = identities(&alice, &bob);
    app.close().await.unwrap();
    drop((app, alice, bob));

    let app = builder().open().await.unwrap();
    let (alice, bob) = both(&app).await;
    assert_eq!(identities(&alice, &bob), before);
    remember(&alice, &bob, 1).await;
    exchange(&alice, &bob).await;
    remember(&alice, &bob, 2).await;
    app.close().await.unwrap();
}

/// Of all files below a directory, those that hold a text.
fn holding(directory: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut holding(&path, text));
        } else if std::fs::read(&path).unwrap().windows(text.len()).any(|part| part == text.as_bytes()) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn two_users_talk_in_production_and_go_on_from_their_disk() {
    let (at_relay, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (relay, root) = relay(at_relay.path()).await;
    let url = url(&relay);
    let open = || production(&url, &root).data_dir(here.path());
    talk_close_and_go_on(open).await;
    let another = open().passphrase("of somebody else").open().await.unwrap();
    assert_eq!(code(another.connect("alice").await), "WRONG_KEY");
    relay.shutdown().await;
    for words in WORDS {
        for directory in [at_relay.path(), here.path()] {
            assert_eq!(holding(directory, words), [""; 0]);
        }
    }
}

/// Servers of stores with TLS that keep what they acknowledge, as far as they are installed here.
struct Servers {
    postgres: Option<Postgres>,
    redis: Option<Redis>,
}

fn servers(issued: &Issued, directory: &Path) -> Servers {
    let settings = ["ssl=on", "ssl_cert_file='server.crt'", "ssl_key_file='server.key'"];
    let files = [("server.crt", issued.certificate.as_str()), ("server.key", issued.key.as_str())];
    let postgres = Postgres::start_with_files(&settings, &files).unwrap();
    let written = [
        ("--tls-cert-file", "redis.crt", &issued.certificate),
        ("--tls-key-file", "redis.key", &issued.key),
        ("--tls-ca-cert-file", "root.pem", &issued.root),
    ];
    let mut arguments = vec!["--tls-auth-clients".to_owned(), "no".to_owned()];
    for (flag, name, content) in written {
        let path = directory.join(name);
        std::fs::write(&path, content).unwrap();
        arguments.extend([flag.to_owned(), path.display().to_string()]);
    }
    let redis = Redis::start_with(RedisSettings { arguments, tls_only: true }).unwrap();
    Servers { postgres, redis }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_users_talk_in_production_and_go_on_from_servers_with_tls() {
    let (at_relay, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let issued = issue("127.0.0.1");
    let servers = servers(&issued, here.path());
    let options = || ServerOptions::new().root_certificate(here.path().join("root.pem"));
    let mut stores: Vec<Arc<dyn StoreProvider>> = Vec::new();
    if let Some(server) = &servers.postgres {
        let url = server.database().unwrap().url.replace("sslmode=disable", "sslmode=require");
        stores.push(Arc::new(PostgresStores::with_options(&url, options()).unwrap()));
    }
    if let Some(server) = &servers.redis {
        let url = format!("rediss://127.0.0.1:{}", server.port());
        stores.push(Arc::new(RedisStores::with_options(&[&url], options()).unwrap()));
    }
    for (number, store) in stores.into_iter().enumerate() {
        // Each at a relay of its own, where the names are free.
        let directory = at_relay.path().join(number.to_string());
        std::fs::create_dir(&directory).unwrap();
        let (relay, root) = relay(&directory).await;
        talk_close_and_go_on(|| production(&url(&relay), &root).store(Arc::clone(&store))).await;
        relay.shutdown().await;
    }
}

/// All events of a client that was closed.
async fn to_the_end(mut events: Events) -> Vec<Event> {
    let mut all = Vec::new();
    while let Some(event) = soon(events.next()).await {
        all.push(event);
    }
    all
}

fn warned(events: &[Event]) -> bool {
    events.iter().any(|event| matches!(event, Event::DevelopmentMode { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn development_mode_warns_once_with_the_list_that_production_refuses() {
    let relay = common::relay().await;
    let builder = || common::builder(&relay.url()).in_memory();
    let refused = builder().production(true).open().await.unwrap_err();
    let stvor::ErrorKind::NotForProduction { findings: listed } = refused.kind() else { panic!("{refused}") };
    let codes: Vec<_> = listed.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["store_not_durable", "relay_without_tls", "development_token"]);

    let app = builder().open().await.unwrap();
    let (alice, bob) = both(&app).await;
    let told = event(&mut alice.events(), |event| match event {
        Event::DevelopmentMode { findings } => Some(findings),
        _ => None,
    })
    .await;
    assert_eq!((&told[..], &told[..]), (&listed[..], app.findings()));
    let events = bob.events();
    app.close().await.unwrap();
    assert!(!warned(&to_the_end(events).await), "once for each app");
}

#[tokio::test(flavor = "multi_thread")]
async fn production_has_nothing_to_warn_of() {
    let (at_relay, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (relay, root) = relay(at_relay.path()).await;
    let app = production(&url(&relay), &root).data_dir(here.path()).open().await.unwrap();
    let alice = app.connect("alice").await.unwrap();
    let events = alice.events();
    app.close().await.unwrap();
    assert!(!warned(&to_the_end(events).await));
}
