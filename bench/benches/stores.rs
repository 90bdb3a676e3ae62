//! Stores beside the bare database that does the same rows, and clients that start on stores with many conversations:
//! `./x bench store`, or only what is named behind it. Servers are private ones on loopback, with settings that keep what
//! they acknowledge; files are under `TMPDIR`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a benchmark ends with what went wrong"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use stvor::store::{
    ChangeSet, Key, MemoryStore, Op, OpenKey, PostgresStores, RedisStores, RowValue, RowVersion, Scan,
    Sealed, SqliteStores, Store, StorePlace, StoreProvider, Table, open_at,
};
use stvor::{App, DeviceId, UserId};
use stvor_base::Address;
use stvor_bench::load::crowd;
use stvor_bench::load::server::{Plan, TOKEN, binary};
use stvor_bench::{Outcome, ours, process};
use stvor_protocol::Conversation;
use stvor_testkit::{Postgres, Redis};
use tokio::sync::Mutex;

/// What one message writes: table and bytes of the value. Together about what a received message changes.
const ROWS: [(Table, usize); 4] =
    [(Table::Session, 1_500), (Table::History, 300), (Table::ContentId, 40), (Table::Outbox, 600)];

/// What is compared takes turns of this length, so that a machine that grows slower meanwhile is as slow for each.
const TURN: Duration = Duration::from_millis(300);

/// So many turns each.
const TURNS: u32 = 10;

const SESSIONS: u64 = 10_000;

/// How long the relay may take to answer a client.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long 10,000 users may take to write to one.
const CROWD: Duration = Duration::from_secs(600);

/// Starts of a client on one store; the middle one counts.
const STARTS: usize = 5;

fn sort(table: Table, number: u64) -> Vec<u8> {
    // A session is written over, the others are added.
    if table == Table::Session { Vec::new() } else { number.to_be_bytes().to_vec() }
}

fn message(conversation: u64, number: u64) -> ChangeSet {
    let put = |(table, bytes): (Table, usize)| {
        Op::put(Key::new(table, conversation.to_be_bytes(), sort(table, number)), vec![7; bytes])
    };
    ROWS.map(put).into_iter().collect()
}

/// What was measured in all turns.
#[derive(Default)]
struct Rate {
    took: Vec<Duration>,
    elapsed: Duration,
    /// Messages of each conversation so far.
    done: u64,
}

impl Rate {
    /// Runs `one(conversation, number)` for a turn, one at a time in each conversation.
    async fn turn<F: Future<Output = ()>>(&mut self, conversations: u64, one: impl Fn(u64, u64) -> F) {
        let (started, one, done) = (Instant::now(), &one, self.done);
        let lanes = (0..conversations).map(|conversation| async move {
            let mut took = Vec::new();
            while started.elapsed() < TURN {
                let begun = Instant::now();
                one(conversation, done + took.len() as u64).await;
                took.push(begun.elapsed());
            }
            took
        });
        let lanes = join_all(lanes).await;
        self.elapsed += started.elapsed();
        self.done += lanes.iter().map(Vec::len).max().unwrap_or_default() as u64;
        self.took.extend(lanes.into_iter().flatten());
    }

    fn commits(&self) -> f64 {
        self.took.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// What so many of a thousand took at most.
    fn of_a_thousand(&self, part: usize) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        took[took.len() * part / 1000]
    }
}

fn line(name: &str, conversations: u64, what: &str, rate: &Rate) {
    println!(
        "{name:<9} {conversations:>3} conversations  {what:<20} {:>8.0} commits/s  p50 {:>9.2?}  p99 {:>9.2?}",
        rate.commits(),
        rate.of_a_thousand(500),
        rate.of_a_thousand(990)
    );
}

async fn sealed(stores: &dyn StoreProvider, directory: &Path) -> Arc<Sealed> {
    let place = StorePlace::new("ws://relay", "app", "bench").in_directory(directory);
    Arc::new(open_at(stores, &place, OpenKey::Default).await.unwrap().store)
}

/// The sealed store, the bare database and the sealed store with commits that never share a transaction, in turns.
async fn compare<F: Future<Output = ()>>(
    name: &str,
    conversations: u64,
    store: &Arc<Sealed>,
    bare: impl Fn(u64, u64) -> F,
) {
    // Rows of one run are not those of another.
    let place = |run: u64, conversation: u64| (conversations << 32) + (run << 24) + conversation;
    let [mut grouped, mut alone, mut without] = [Rate::default(), Rate::default(), Rate::default()];
    for _ in 0..TURNS {
        let turn = grouped.turn(conversations, |conversation, number| async move {
            store.commit(message(place(0, conversation), number)).await.unwrap();
        });
        turn.await;
        without.turn(conversations, |conversation, number| bare(place(1, conversation), number)).await;
        if conversations > 1 {
            let gate = &Mutex::new(());
            let turn = alone.turn(conversations, |conversation, number| async move {
                let _gate = gate.lock().await;
                store.commit(message(place(2, conversation), number)).await.unwrap();
            });
            turn.await;
        }
    }
    line(name, conversations, "sealed", &grouped);
    line(name, conversations, "bare", &without);
    if conversations > 1 {
        line(name, conversations, "sealed, not grouped", &alone);
    }
    let ratio = grouped.commits() / without.commits();
    println!("{name:<9} {conversations:>3} conversations  {:<20} {ratio:>8.2}", "sealed / bare");
}

/// Opening a store that holds 10,000 conversations, and reading what a client reads when it starts.
async fn start_up(name: &str, stores: &dyn StoreProvider, directory: &Path) {
    let store = sealed(stores, directory).await;
    for chunk in 0..SESSIONS / 200 {
        let put = |number: u64| {
            let number = chunk * 200 + number;
            let lane = Op::put(Key::new(Table::Lane, *b"lanes", number.to_be_bytes()), vec![7; 120]);
            [lane, Op::put(Key::new(Table::Session, number.to_be_bytes(), *b""), vec![7; 1_500])]
        };
        store.commit((0..200).flat_map(put).collect()).await.unwrap();
    }
    store.close().await.unwrap();
    let begun = Instant::now();
    let store = sealed(stores, directory).await;
    let opened = begun.elapsed();
    let rows = store.scan_all(Scan::of(Table::Lane, *b"lanes"), usize::MAX).await.unwrap();
    let read = begun.elapsed() - opened;
    println!(
        "{name:<9} start-up: opened in {opened:.2?}, the lanes of {} conversations read in {read:.2?}",
        rows.len()
    );
    store.close().await.unwrap();
}

/// An app at a relay, with its stores in a directory or, where `name` is that of a server, there.
async fn app_at((name, server): (&str, &str), relay: &str, directory: &Path) -> App {
    let builder = App::builder().app_token(TOKEN).relay_url(relay).data_dir(directory).timeout(PATIENCE);
    let builder = match name {
        "postgres" => builder.store(Arc::new(PostgresStores::new(server).unwrap())),
        "redis" => builder.store(Arc::new(RedisStores::new(server).unwrap())),
        _ => builder,
    };
    builder.open().await.unwrap()
}

/// What a client takes to be ready on a store with 10,000 conversations, which 10,000 users began by a message to it.
async fn connect(at: (&str, &str), relay: &str) {
    let (name, directory) = (at.0, tempfile::tempdir().unwrap());
    let user = format!("{name}-user");
    let begun = Instant::now();
    let app = app_at(at, relay, directory.path()).await;
    let client = app.connect(&user).await.unwrap();
    let to = Address::new(UserId::new(&user).unwrap(), DeviceId::FIRST);
    let mut messages = client.messages();
    let arrive = async {
        for _ in 0..SESSIONS {
            messages.next().await.ok_or("the inbox ended")?;
        }
        Outcome::Ok(())
    };
    let all = async { tokio::try_join!(crowd::write_to(relay, &to, SESSIONS), arrive) };
    tokio::time::timeout(CROWD, all).await.unwrap().unwrap();
    assert_eq!(client.flush(PATIENCE).await.unwrap(), 0, "all receipts are sent");
    drop(messages);
    drop(client);
    app.close().await.unwrap();
    println!("{name:<9} {SESSIONS} users wrote to one within {:.2?}", begun.elapsed());

    let mut starts: Vec<[u64; 3]> =
        (0..STARTS).map(|_| start_of_client(at, (relay, &user), directory.path())).collect();
    starts.sort_unstable();
    let took = |start: &[u64; 3]| Duration::from_micros(start[0]);
    let ([_, before, after], first, last) = (starts[STARTS / 2], starts[0], starts[STARTS - 1]);
    println!(
        "{name:<9} a client with {SESSIONS} conversations: ready in {:.2?} (of {STARTS} starts {:.2?} to {:.2?}), \
         {after} KiB resident then, {} KiB more than before",
        took(&starts[STARTS / 2]),
        took(&first),
        took(&last),
        after.saturating_sub(before)
    );
}

/// The start of a client in a process of its own: microseconds until it is ready, and the KiB that are resident before and after.
fn start_of_client((name, server): (&str, &str), (relay, user): (&str, &str), directory: &Path) -> [u64; 3] {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--bench", "client", name, server, relay, user]).arg(directory);
    let output = command.output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{errors}");
    let figures: Vec<u64> = text.split_whitespace().map(|figure| figure.parse().unwrap()).collect();
    figures.try_into().unwrap()
}

/// That process.
async fn client(arguments: &[String]) {
    let [name, server, relay, user, directory] = arguments else { panic!("no client: {arguments:?}") };
    let resident = || process::resident_kib(std::process::id()).unwrap();
    let before = resident();
    let begun = Instant::now();
    let app = app_at((name, server), relay, Path::new(directory)).await;
    let client = app.connect(user).await.unwrap();
    // Without the relay it would be given out, too.
    client.wait_online(PATIENCE).await.unwrap();
    let took = begun.elapsed();
    let after = resident();
    let peers = client.peers().await.unwrap().len();
    assert_eq!(u64::try_from(peers).unwrap(), SESSIONS);
    println!("{} {before} {after}", took.as_micros());
    app.close().await.unwrap();
}

/// Clients at a relay in a process of its own.
async fn connects() {
    let built: PathBuf = std::env::var_os("STVOR_BIN").map_or_else(|| binary().unwrap(), Into::into);
    let directory = tempfile::tempdir().unwrap();
    let relay = Plan::new(&built, directory.path()).start().unwrap();
    let relay_url = relay.url();
    connect(("sqlite", ""), &relay_url).await;
    if let Some(server) = Postgres::start().unwrap() {
        let database = server.database().unwrap();
        connect(("postgres", &database.url), &relay_url).await;
    }
    if let Some(server) = Redis::start().unwrap() {
        connect(("redis", &server.url()), &relay_url).await;
    }
}

async fn sqlite() {
    let directory = tempfile::tempdir().unwrap();
    let store = sealed(&SqliteStores, directory.path()).await;
    let connection = rusqlite::Connection::open(directory.path().join("bare.db")).unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             CREATE TABLE rows (tbl INTEGER, part BLOB, sort BLOB, version INTEGER, expires INTEGER, value BLOB,
                                UNIQUE (tbl, part, sort)) STRICT;",
        )
        .unwrap();
    let connection = Mutex::new(connection);
    for conversations in [1, 64] {
        let bare = |conversation: u64, number: u64| {
            let connection = &connection;
            async move {
                let connection = connection.lock().await;
                let transaction = connection.unchecked_transaction().unwrap();
                for (table, bytes) in ROWS {
                    let mut put = transaction
                        .prepare_cached("INSERT OR REPLACE INTO rows VALUES (?1, ?2, ?3, ?4, NULL, ?5)")
                        .unwrap();
                    let (part, version) = (conversation.to_be_bytes(), number.cast_signed());
                    let values =
                        rusqlite::params![table.id(), part, sort(table, number), version, vec![7_u8; bytes]];
                    put.execute(values).unwrap();
                }
                transaction.commit().unwrap();
                drop(connection);
                tokio::task::yield_now().await;
            }
        };
        compare("sqlite", conversations, &store, bare).await;
    }
    store.close().await.unwrap();
    start_up("sqlite", &SqliteStores, directory.path()).await;
}

async fn postgres() {
    const PUT: &str = "INSERT INTO bare VALUES ($1, $2, $3, $4, NULL, $5) ON CONFLICT (tbl, part, sort)
         DO UPDATE SET version = excluded.version, value = excluded.value";
    const TABLE: &str =
        "CREATE TABLE bare (tbl SMALLINT, part BYTEA, sort BYTEA, version BIGINT, expires BIGINT,
         value BYTEA, PRIMARY KEY (tbl, part, sort))";
    let Some(server) = Postgres::start().unwrap() else { return };
    let (directory, database) = (tempfile::tempdir().unwrap(), server.database().unwrap());
    let stores = PostgresStores::new(&database.url).unwrap();
    let store = sealed(&stores, directory.path()).await;
    server.sql(&database.name, TABLE).unwrap();
    for conversations in [1, 64] {
        let mut clients = Vec::new();
        for _ in 0..conversations {
            let (client, connection) =
                tokio_postgres::connect(&database.url, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            let put = client.prepare(PUT).await.unwrap();
            clients.push((client, put));
        }
        let bare = |conversation: u64, number: u64| {
            let (client, put) = &clients[usize::try_from(conversation & 0xff_ffff).unwrap()];
            async move {
                let (part, version) = (conversation.to_be_bytes(), number.cast_signed());
                let values = ROWS
                    .map(|(table, bytes)| (i16::from(table.id()), sort(table, number), vec![7_u8; bytes]));
                client.batch_execute("BEGIN").await.unwrap();
                // All at once, as a client that pipelines does.
                let puts = values.iter().map(|(table, sort, value)| {
                    let part = part.to_vec();
                    async move { client.execute(put, &[table, &part, sort, &version, value]).await.unwrap() }
                });
                join_all(puts).await;
                client.batch_execute("COMMIT").await.unwrap();
            }
        };
        compare("postgres", conversations, &store, bare).await;
    }
    store.close().await.unwrap();
    start_up("postgres", &stores, directory.path()).await;
}

async fn redis() {
    let Some(server) = Redis::start().unwrap() else { return };
    // Rewriting its file in the background would fall on one line and spare another.
    server.cli(&["config", "set", "auto-aof-rewrite-percentage", "0"]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let stores = RedisStores::new(&server.url()).unwrap();
    let store = sealed(&stores, directory.path()).await;
    let client = ::redis::Client::open(server.url()).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    for conversations in [1, 64] {
        let bare = |conversation: u64, number: u64| {
            let mut connection = connection.clone();
            async move {
                let mut pipeline = ::redis::pipe();
                pipeline.atomic();
                for (table, bytes) in ROWS {
                    let part = conversation.to_be_bytes();
                    let field = [&[table.id()], part.as_slice(), &sort(table, number)].concat();
                    pipeline.hset("bare", &field, vec![7_u8; bytes]).ignore();
                    pipeline.zadd("bare order", &field, 0).ignore();
                }
                pipeline.exec_async(&mut connection).await.unwrap();
            }
        };
        compare("redis", conversations, &store, bare).await;
    }
    store.close().await.unwrap();
    start_up("redis", &stores, directory.path()).await;
}

/// What sealing adds to a record, in memory.
async fn sealing() {
    const MESSAGES: u64 = 5_000;
    let store = Sealed::in_memory().unwrap();
    let begun = Instant::now();
    for number in 0..MESSAGES {
        store.commit(message(1, number)).await.unwrap();
    }
    let with = begun.elapsed();
    let bare = MemoryStore::new();
    let begun = Instant::now();
    for number in 0..MESSAGES {
        let value = |bytes| RowValue { bytes: vec![7; bytes], version: RowVersion(number) };
        let put = |(table, bytes)| Op::put(Key::new(table, [1; 32], sort(table, number)), value(bytes));
        bare.commit(ROWS.map(put).into_iter().collect()).await.unwrap();
    }
    let records = u32::try_from(MESSAGES).unwrap() * u32::try_from(ROWS.len()).unwrap();
    println!("sealing   {:.2?} a record of 610 bytes", with.saturating_sub(begun.elapsed()) / records);
}

/// Memory of conversations with 10,000 users that are open, as a client keeps them. Their rows are in memory before.
fn memory() {
    let mut device = ours::Device::new("alice@example.com").unwrap();
    let bundle = device.last_bundle().unwrap();
    let mut answered =
        |number: u64| ours::answered(&mut device, &bundle, &format!("user{number}@example.com")).unwrap();
    let rows: Vec<_> = (0..SESSIONS).map(&mut answered).collect();
    let before = process::resident_kib(std::process::id()).unwrap();
    let open: Vec<Conversation> = rows
        .iter()
        .map(|(peer, records)| Conversation::load(&device.identity, peer, records).unwrap())
        .collect();
    let taken = process::resident_kib(std::process::id()).unwrap().saturating_sub(before);
    println!("memory    {} open conversations take {taken} KiB", open.len());
}

fn main() {
    // `cargo test --benches` starts it, too, and wants no figures.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let named: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let Some((first, arguments)) = named.split_first()
        && first == "client"
    {
        return runtime.block_on(client(arguments));
    }
    let wanted = |name: &str| named.is_empty() || named.iter().any(|one| one == name);
    if wanted("memory") {
        memory();
    }
    runtime.block_on(async {
        if wanted("sealing") {
            sealing().await;
        }
        if wanted("sqlite") {
            sqlite().await;
        }
        if wanted("postgres") {
            postgres().await;
        }
        if wanted("redis") {
            redis().await;
        }
        if wanted("connect") {
            connects().await;
        }
    });
}
