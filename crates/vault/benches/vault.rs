//! What operations on a vault cost on this disk, beside what a bare commit costs in the same run.
//!
//! `cargo bench -p stvor-vault --bench vault -- [EVENTS]` fills the log to EVENTS (100,000 if not said) first.

#![allow(clippy::unwrap_used, reason = "a measurement that fails should stop")]

use std::time::{Duration, Instant};

use stvor_crypto::SecretBytes;
use stvor_keys::{Passphrase, PassphraseCost};
use stvor_vault::{Caller, Level, MemoryId, NewKeys, NewMemory, Options, Vault};

const OWNER: &Caller = &Caller::Owner;
const ROUNDS: usize = 300;

fn memory(number: usize, level: Level) -> NewMemory {
    let rare = number / 100;
    let content =
        format!("memory {number} about topic{} and subject{rare} {}", number % 1000, "word ".repeat(30));
    NewMemory::new(content.as_bytes(), level, "bench")
}

/// Stores `count` memories with 256 in flight.
fn fill(vault: &Vault, count: usize, level: Level) -> (Vec<MemoryId>, Duration) {
    let start = Instant::now();
    let mut ids = Vec::with_capacity(count);
    let mut flying = std::collections::VecDeque::new();
    for number in 0..count {
        flying.push_back(vault.begin_store(OWNER, memory(number, level)));
        if flying.len() >= 256 {
            ids.extend(flying.pop_front().map(|pending| pending.wait().unwrap()));
        }
    }
    ids.extend(flying.into_iter().map(|pending| pending.wait().unwrap()));
    (ids, start.elapsed())
}

/// The middle and the 99th of a hundred.
fn percentiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

fn timed(mut work: impl FnMut(usize)) -> (Duration, Duration) {
    let once = |round| {
        let start = Instant::now();
        work(round);
        start.elapsed()
    };
    percentiles((0..ROUNDS).map(once).collect())
}

fn main() {
    let asked = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let events: usize = asked.unwrap_or(100_000);
    let directory = tempfile::tempdir_in(".").unwrap();
    let path = directory.path().join("vault");
    let cost = PassphraseCost { memory_kib: 64, iterations: 1, parallelism: 1 };
    let owner = Passphrase::new(SecretBytes::from_slice(b"bench")).unwrap().with_cost(cost).unwrap();
    Vault::create(&path, &NewKeys { owner: &owner, vaulted: None, origin: "bench" }).unwrap();
    let vault = Vault::open(&path, Options::default()).unwrap();
    vault.unlock_with(&owner).unwrap();

    for level in [Level::Working, Level::Private] {
        let (_, took) = fill(&vault, 5_000, level);
        println!("store, level {level}, 256 in flight: {:.0} a second", 5_000.0 / took.as_secs_f64());
    }
    let (ids, _) = fill(&vault, events.saturating_sub(10_000), Level::Working);
    println!("log: {} events", vault.status().unwrap().events);

    let database = rusqlite::Connection::open(directory.path().join("bare.db")).unwrap();
    database
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (a INTEGER, b BLOB);",
        )
        .unwrap();
    let show = |what: &str, (half, most): (Duration, Duration)| {
        println!("{what}: p50 {:.3} ms, p99 {:.3} ms", half.as_secs_f64() * 1e3, most.as_secs_f64() * 1e3);
    };
    let bare = |round: usize| {
        database.execute("INSERT INTO t VALUES (?1, zeroblob(300))", [round as i64]).unwrap();
    };
    show("a bare commit of 300 bytes", timed(bare));
    let recall = |round: usize| drop(vault.recall(OWNER, ids[round * 7 % ids.len()], "").unwrap());
    show("recall, level 1", timed(recall));
    show("a bare commit again", timed(bare));
    let start = Instant::now();
    vault.search(OWNER, "bench", "topic7").unwrap();
    println!("first search, which makes the index: {:.2} s", start.elapsed().as_secs_f64());
    show(
        "search, 0.1 % match",
        timed(|round| drop(vault.search(OWNER, "bench", &format!("topic{round}")).unwrap())),
    );
    show("search, all match", timed(|_| drop(vault.search(OWNER, "bench", "word").unwrap())));
    let start = Instant::now();
    let report = vault.verify().unwrap();
    assert!(report.problems.is_empty());
    println!("verify: {:.0} events a second", report.events as f64 / start.elapsed().as_secs_f64());
}
