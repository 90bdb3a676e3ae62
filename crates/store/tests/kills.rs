//! Clients and servers are killed at random and connections are cut, on every durable adapter; after each round the rows
//! are held against what was acknowledged. `STVOR_CHAOS_MINUTES` or `STVOR_CHAOS_ROUNDS` makes it long (`./x chaos`),
//! `STVOR_CHAOS_SEED` repeats one. The test binary is its own child process: `STVOR_CHAOS_STORE` says which store it writes to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stvor_store::{
    ChangeSet, Key, Op, OpenKey, PostgresStores, RedisStores, Scan, Sealed, ServerOptions, SqliteStores,
    StorePlace, StoreProvider, Table, open_at,
};
use stvor_testkit::{
    ChaosProxy, Direction, Postgres, Process, Promotion, Redis, RedisCluster, Spawn, Stream,
};

const SOON: Duration = Duration::from_secs(90);
const TASKS: u64 = 4;
/// Rounds of the short form, over all adapters.
const ROUNDS: u64 = 12;
/// Commits in a store after which it is emptied.
const MOST_KEPT: u64 = 2_000;

fn provider(url: &str) -> Box<dyn StoreProvider> {
    match url.split(':').next() {
        Some("postgres") => Box::new(PostgresStores::new(url).unwrap()),
        Some("redis") => Box::new(RedisStores::new(url).unwrap()),
        Some("cluster") => {
            let (url, options) = (url.replace("cluster:", "redis:"), ServerOptions::new().replicas(1));
            Box::new(RedisStores::with_options(&[&url], options).unwrap())
        }
        _ => Box::new(SqliteStores),
    }
}

async fn open(url: &str, directory: &Path) -> Sealed {
    let place = StorePlace::new("ws://relay", "app", "bot").in_directory(directory);
    // The server may still be starting, and a killed client's lock is free when the system says so.
    let opened = async || open_at(&*provider(url), &place, OpenKey::Default).await;
    for _ in 0..200 {
        match opened().await {
            Ok(opened) => return opened.store,
            Err(error) if stvor_base::ErrorCode::retryable(&error) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    opened().await.unwrap().store
}

fn partition(half: &str, task: u64) -> Vec<u8> {
    format!("{half} {task}").into_bytes()
}

async fn stored(store: &Sealed, half: &str, task: u64) -> Vec<u64> {
    let rows = store.scan_all(Scan::of(Table::Custom, partition(half, task)), usize::MAX).await.unwrap();
    rows.iter().map(|row| u64::from_be_bytes(row.key.sort.clone().try_into().unwrap())).collect()
}

/// The child process, not a test of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is the child of the other test"]
async fn child() {
    let Ok(url) = std::env::var("STVOR_CHAOS_STORE") else { return };
    let directory = std::env::var("STVOR_CHAOS_DIR").unwrap();
    let store = Arc::new(open(&url, Path::new(&directory)).await);
    for task in 0..TASKS {
        let store = Arc::clone(&store);
        let first = stored(&store, "left", task).await.last().map_or(0, |last| last + 1);
        tokio::spawn(async move {
            for number in first.. {
                let mut changes = ChangeSet::new();
                for half in ["left", "right"] {
                    let key = Key::new(Table::Custom, partition(half, task), number.to_be_bytes());
                    changes.push(Op::insert(key, vec![7; 300]));
                }
                // A conflict would be a commit that was applied twice.
                let result = store.commit(changes).await;
                let mut out = std::io::stdout().lock();
                match result {
                    Ok(_) => writeln!(out, "@@{task} {number}").unwrap(),
                    Err(error) => writeln!(out, "@@error {error}").unwrap(),
                }
                out.flush().unwrap();
            }
        });
    }
    std::future::pending::<()>().await;
}

/// A generator that repeats itself from its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// One adapter with its server.
enum Subject {
    Sqlite,
    Postgres(Postgres, ChaosProxy, String),
    Redis(Redis, ChaosProxy, String),
    /// Masters with a replica each that commits wait for, and that takes the place of its master. Clients find the servers by
    /// themselves, so no wire of theirs can be cut.
    Cluster(RedisCluster, String),
}

impl Subject {
    fn all() -> Vec<Self> {
        let mut all = vec![Self::Sqlite];
        if let Some(server) = Postgres::start().unwrap() {
            let database = server.database().unwrap();
            let proxy = ChaosProxy::start(([127, 0, 0, 1], server.port()).into()).unwrap();
            let url = server.url_at(proxy.address().port(), &database.name);
            all.push(Self::Postgres(server, proxy, url));
        }
        if let Some(server) = Redis::start().unwrap() {
            let proxy = ChaosProxy::start(([127, 0, 0, 1], server.port()).into()).unwrap();
            let url = format!("redis://{}", proxy.address());
            all.push(Self::Redis(server, proxy, url));
        }
        if let Some(cluster) = RedisCluster::start_with_replicas().unwrap() {
            let url = cluster.urls()[0].replace("redis:", "cluster:");
            all.push(Self::Cluster(cluster, url));
        }
        all
    }

    fn url(&self) -> &str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres(.., url) | Self::Redis(.., url) | Self::Cluster(_, url) => url,
        }
    }

    /// Something bad happens to the server or to the wire; true if it is to happen to the client. SQLite has neither server
    /// nor wire.
    fn strike(&self, dice: &mut Dice, struck: &mut Struck) -> bool {
        let choice = dice.below(6);
        match self {
            Self::Postgres(server, ..) if choice < 2 => {
                server.kill().unwrap();
                server.restart().unwrap();
                struck.servers += 1;
            }
            Self::Redis(server, ..) if choice < 2 => {
                server.kill().unwrap();
                server.restart().unwrap();
                struck.servers += 1;
            }
            Self::Cluster(cluster, _) if choice < 3 => {
                cluster.fail_over(Promotion::Ordered).unwrap();
                struck.servers += 1;
            }
            Self::Postgres(_, proxy, _) | Self::Redis(_, proxy, _) if choice < 5 => {
                let direction = if dice.below(2) == 0 { Direction::Up } else { Direction::Down };
                proxy.cut_after(direction, dice.below(5_000));
                struck.cuts += 1;
            }
            _ => return true,
        }
        false
    }
}

/// What happened so far.
#[derive(Default)]
struct Struck {
    clients: u64,
    servers: u64,
    cuts: u64,
}

/// Commits that a child said were done.
fn said(child: &Process) -> Vec<(u64, u64)> {
    let lines = child.lines(Stream::Out);
    let said = lines.iter().filter_map(|line| line.split_once("@@").map(|(_, said)| said));
    let read = |said: &str| {
        let (task, number) = said.split_once(' ')?;
        assert!(task != "error", "{said}");
        // The last line of a killed child may be cut.
        Some((task.parse().ok()?, number.parse().ok()?))
    };
    said.filter_map(read).collect()
}

type Acknowledged = BTreeMap<u64, BTreeSet<u64>>;

/// A process that writes until it is killed.
fn writer(subject: &Subject, directory: &Path) -> Process {
    let child = Spawn::new(std::env::current_exe().unwrap());
    let child = child.args(["--exact", "child", "--nocapture", "--ignored"]);
    child.env("STVOR_CHAOS_STORE", subject.url()).env("STVOR_CHAOS_DIR", directory).start().unwrap()
}

/// `kill -9`, and what it had said by then.
fn kill(child: &Process, acknowledged: &mut Acknowledged) {
    child.kill().unwrap();
    child.wait_log_end(SOON).unwrap();
    for (task, number) in said(child) {
        assert!(acknowledged.entry(task).or_default().insert(number), "{task} {number} was done twice");
    }
}

async fn round(subject: &Subject, directory: &Path, (dice, struck): (&mut Dice, &mut Struck)) -> u64 {
    let mut acknowledged = Acknowledged::new();
    let mut child = writer(subject, directory);
    let mut wanted = 0;
    for _ in 0..=dice.below(3) {
        wanted += 1 + dice.below(60);
        let mut seen = 0;
        let enough = child.wait_line(SOON, |_, line| {
            seen += u64::from(line.contains("@@"));
            seen >= wanted
        });
        enough.unwrap();
        if subject.strike(dice, struck) {
            kill(&child, &mut acknowledged);
            struck.clients += 1;
            (child, wanted) = (writer(subject, directory), 0);
        }
    }
    kill(&child, &mut acknowledged);
    struck.clients += 1;
    let store = open(subject.url(), directory).await;
    let mut commits = 0;
    for task in 0..TASKS {
        let left = stored(&store, "left", task).await;
        assert_eq!(left, stored(&store, "right", task).await, "no half of a change set");
        assert_eq!(left, (0..left.len() as u64).collect::<Vec<_>>(), "no gap");
        let last = acknowledged.get(&task).and_then(BTreeSet::last).copied();
        assert!(last.is_none_or(|last| left.contains(&last)), "acknowledged {task} {last:?} is there");
        commits += left.len() as u64;
    }
    // Rounds stay quick in a long run.
    if commits > MOST_KEPT {
        let partitions = (0..TASKS).flat_map(|task| ["left", "right"].map(|half| partition(half, task)));
        let gone = partitions.map(|partition| Op::DeletePartition { table: Table::Custom, partition });
        store.commit(gone.collect()).await.unwrap();
    }
    store.close().await.unwrap();
    commits
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_and_nothing_is_done_twice() {
    let variable = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let (minutes, rounds) = (variable("STVOR_CHAOS_MINUTES"), variable("STVOR_CHAOS_ROUNDS"));
    let seed = variable("STVOR_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
    println!("STVOR_CHAOS_SEED={seed}");
    let (mut dice, mut struck, started) = (Dice(seed), Struck::default(), Instant::now());
    let subjects = Subject::all();
    let directories: Vec<_> = subjects.iter().map(|_| tempfile::tempdir().unwrap()).collect();
    for number in 0.. {
        let go_on = match (rounds, minutes) {
            (None, Some(minutes)) => started.elapsed() < Duration::from_secs(60 * minutes),
            (rounds, _) => number < rounds.unwrap_or(ROUNDS),
        };
        if !go_on {
            let Struck { clients, servers, cuts } = struck;
            println!(
                "{number} rounds over {} adapters in {} s: {clients} clients and {servers} servers killed, {cuts} \
                 connections cut",
                subjects.len(),
                started.elapsed().as_secs()
            );
            return;
        }
        let which = usize::try_from(number).unwrap() % subjects.len();
        let commits = round(&subjects[which], directories[which].path(), (&mut dice, &mut struck)).await;
        println!("round {number}, {}: {commits} commits are there", subjects[which].url());
    }
}
