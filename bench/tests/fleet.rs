//! Four processes with one identity, killed at random. The test binary is its own child process.
//!
//! `STVOR_FLEET_MESSAGES` (each way) and `STVOR_FLEET_KILLS` make it long, with the servers and the relay killed, too
//! (`./x chaos`); `STVOR_CHAOS_SEED` repeats the choice of who is killed; `STVOR_FLEET_LOG` keeps what everybody said.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use stvor_bench::fleet::{self, Backend, Plan, Role};

/// The child process, not a test of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is the child of the other tests"]
async fn child() {
    fleet::child().await.unwrap();
}

fn number(name: &str) -> Option<usize> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn plan(backend: Backend) -> Plan {
    let binary =
        std::env::var_os("STVOR_BIN").map_or_else(|| stvor_testkit::binary("stvor").unwrap(), Into::into);
    let arguments = ["--exact", "child", "--nocapture", "--ignored"].map(str::to_owned).to_vec();
    let long = number("STVOR_FLEET_MESSAGES");
    let fails_over = matches!(backend, Backend::RedisPair | Backend::RedisCluster);
    Plan {
        binary,
        child: (std::env::current_exe().unwrap(), arguments),
        backend,
        instances: 4,
        messages: long.unwrap_or(300),
        kills: number("STVOR_FLEET_KILLS").unwrap_or(6),
        victims: match long {
            Some(_) => [&[Role::Instance; 5][..], &Role::ALL].concat(),
            None if fails_over => vec![Role::Instance, Role::Server],
            None => vec![Role::Instance],
        },
        seed: number("STVOR_CHAOS_SEED").unwrap_or(1) as u64,
    }
}

fn nothing_is_lost_doubled_or_reused(backend: Backend) {
    let plan = plan(backend);
    let (messages, fails_over) = (plan.messages, plan.victims.contains(&Role::Server));
    let Some(verdict) = fleet::run(plan).unwrap() else { return };
    println!("{backend:?}: {verdict}");
    assert!(verdict.violations.is_empty(), "{verdict}");
    assert!(verdict.taken.iter().all(|taken| *taken >= messages));
    assert!(verdict.blobs >= 2 * messages);
    assert!(!fails_over || verdict.kills[Role::Server as usize] > 0);
}

#[test]
fn four_processes_on_postgres_lose_double_and_reuse_nothing_while_they_are_killed() {
    nothing_is_lost_doubled_or_reused(Backend::Postgres);
}

#[test]
fn four_processes_on_redis_lose_double_and_reuse_nothing_while_they_are_killed() {
    nothing_is_lost_doubled_or_reused(Backend::Redis);
}

#[test]
fn four_processes_lose_double_and_reuse_nothing_while_the_replica_of_a_redis_takes_its_place() {
    nothing_is_lost_doubled_or_reused(Backend::RedisPair);
}

#[test]
fn four_processes_lose_double_and_reuse_nothing_while_masters_of_a_redis_cluster_are_replaced() {
    nothing_is_lost_doubled_or_reused(Backend::RedisCluster);
}

#[test]
fn of_a_thousand_copies_over_four_processes_exactly_one_passes() {
    for backend in [Backend::Postgres, Backend::Redis] {
        let Some(passed) = fleet::copies(plan(backend)).unwrap() else { continue };
        assert_eq!(passed, 1, "{backend:?}");
    }
}
