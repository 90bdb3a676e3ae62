//! Group commit, measured. Run with `cargo test -p stvor-store --test throughput -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::sync::Arc;
use std::time::{Duration, Instant};
use stvor_store::{Key, Op, OpenKey, Sealed, Table, open};

async fn commits(store: &Arc<Sealed>, committers: u64) -> (f64, Duration) {
    let (started, time) = (Instant::now(), Duration::from_secs(3));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..committers {
        let store = Arc::clone(store);
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            while started.elapsed() < time {
                let sort = (latencies.len() as u64).to_be_bytes();
                let session = Op::put(Key::new(Table::Session, task.to_be_bytes(), *b""), vec![7; 1_500]);
                let history =
                    Op::insert(Key::new(Table::History, [task as u8, committers as u8], sort), vec![7; 300]);
                let begun = Instant::now();
                store.commit([session, history].into_iter().collect()).await.unwrap();
                latencies.push(begun.elapsed());
            }
            latencies
        });
    }
    let mut latencies: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
    latencies.sort();
    (latencies.len() as f64 / started.elapsed().as_secs_f64(), latencies[latencies.len() / 2])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn commits_a_second() {
    let directory =
        tempfile::tempdir_in(std::env::var("STVOR_BENCH_DIR").unwrap_or_else(|_| "/var/tmp".into()));
    let directory = directory.unwrap();
    let store = Arc::new(open(directory.path().join("s.db"), OpenKey::Default).await.unwrap().store);
    let mut file = std::fs::File::create(directory.path().join("probe")).unwrap();
    let begun = Instant::now();
    for _ in 0..200 {
        std::io::Write::write_all(&mut file, &[7; 4096]).unwrap();
        file.sync_data().unwrap();
    }
    println!("fsync alone: {:?}", begun.elapsed() / 200);
    for committers in [1, 2, 8, 32, 128] {
        let (rate, median) = commits(&store, committers).await;
        println!("{committers:>3} committers: {rate:>8.0} commits/s, median {median:?}");
    }
}
