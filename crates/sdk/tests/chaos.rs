//! Two clients with durable stores talk through a network that breaks and a relay that restarts.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{PATIENCE, app_in, durable, soon};
use stvor::{App, Client, SendOptions, SendWait};
use stvor_relay::{Config, Handle, Relay, StartError};
use stvor_testkit::{ChaosProxy, Checker, Direction};

/// SplitMix64: a seed names a run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Every message that got into the outbox has to arrive: what `send` promises.
async fn talk(from: Client, to: &'static str, numbers: std::ops::Range<u64>, checker: Arc<Checker>) {
    let options = SendOptions { wait: SendWait::Committed, ..SendOptions::default() };
    let lane = format!("{}>{to}", from.user());
    for number in numbers {
        let text = format!("{lane} {number}");
        checker.sent(&lane, &text, text.as_bytes());
        from.send_with(to, text.as_str(), options).await.expect("an outbox takes what is sent");
        checker.accepted(&lane, &text);
    }
}

async fn listen(to: Client, checker: Arc<Checker>) {
    let mut inbox = to.messages();
    while let Some(message) = inbox.next().await {
        let text = message.text().unwrap();
        checker.received(&format!("{}>{}", message.from, to.user()), text, text.as_bytes());
    }
}

struct Pair {
    app: App,
    clients: [Client; 2],
    listeners: Vec<tokio::task::JoinHandle<()>>,
}

impl Pair {
    async fn open(url: &str, directory: &std::path::Path, checker: &Arc<Checker>) -> Self {
        let app = app_in(url, directory).await;
        let clients = [app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap()];
        let listeners =
            clients.iter().map(|client| tokio::spawn(listen(client.clone(), Arc::clone(checker)))).collect();
        Self { app, clients, listeners }
    }

    async fn close(self) {
        soon(self.app.close()).await.unwrap();
        drop(self.clients);
        for listener in self.listeners {
            soon(listener).await.unwrap();
        }
    }
}

/// Connections of the one before may hold the port a moment longer.
async fn restart(relay: Handle, directory: &std::path::Path) -> Handle {
    let config =
        Config { database: Some(directory.join("relay.db")), ..Config::mock(relay.local_addr().port()) };
    relay.shutdown().await;
    soon(async {
        loop {
            match Relay::start(config.clone()).await {
                Ok(relay) => return relay,
                Err(StartError::Listen(_, error)) if error.kind() == std::io::ErrorKind::AddrInUse => {
                    tokio::time::sleep(Duration::from_millis(5)).await
                }
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_swapped_while_connections_break_and_the_relay_restarts() {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = number("STVOR_CHAOS_SEED", nanos.into());
    let (rounds, burst) = (number("STVOR_CHAOS_ROUNDS", 4), number("STVOR_CHAOS_BURST", 250));
    println!("STVOR_CHAOS_SEED={seed}");
    let mut dice = Dice(seed);
    let (server, devices) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut relay = durable(server.path(), 0).await;
    let proxy = ChaosProxy::start(relay.local_addr()).unwrap();
    let url = format!("ws://{}", proxy.address());
    let checker = Arc::new(Checker::default());
    for round in 0..rounds {
        let pair = Pair::open(&url, devices.path(), &checker).await;
        let numbers = round * burst..(round + 1) * burst;
        let [alice, bob] = pair.clients.clone();
        let mut talking = tokio::task::JoinSet::new();
        talking.spawn(talk(alice.clone(), "bob", numbers.clone(), Arc::clone(&checker)));
        talking.spawn(talk(bob.clone(), "alice", numbers, Arc::clone(&checker)));
        for _ in 0..2 {
            for direction in [Direction::Up, Direction::Down] {
                proxy.cut_after(direction, dice.roll(200_000));
            }
            // Both clients lose this connection somewhere in the conversation, wherever in a frame they are.
            let before = proxy.connections();
            let _broken = tokio::time::timeout(Duration::from_millis(700 + dice.roll(600)), async {
                while proxy.connections() < before + 2 {
                    tokio::task::yield_now().await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
            proxy.cut();
            if dice.roll(2) == 0 {
                relay = restart(relay, server.path()).await;
            }
        }
        while let Some(done) = soon(talking.join_next()).await {
            done.unwrap();
        }
        drop((alice, bob));
        if dice.roll(2) == 0 {
            proxy.cut();
        }
        pair.close().await;
    }
    let pair = Pair::open(&url, devices.path(), &checker).await;
    let arrived = tokio::time::timeout(2 * PATIENCE, async {
        while checker.missing() > 0 || pair.clients.iter().any(|client| client.pending() > 0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let pending = pair.clients.each_ref().map(Client::pending);
    println!("{:?}, {} connections, pending {pending:?}", checker.counts(), proxy.connections());
    assert!(
        arrived.is_ok(),
        "seed {seed}: {} messages did not arrive, pending {pending:?}",
        checker.missing()
    );
    pair.close().await;
    assert_eq!(checker.verdict(), Vec::new(), "seed {seed}");
    relay.shutdown().await;
}
