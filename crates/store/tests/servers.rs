//! Adapters of servers when things break: killed servers and clients, cut connections, failover, wrong settings; and what
//! a dump of each shows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use stvor_base::{ErrorCode, Timestamp};
use stvor_crypto::kdf::{Argon2Params, argon2id};
use stvor_store::{
    ChangeSet, Key, Op, OpenKey, PostgresStores, RedisStores, RowValue, RowVersion, Scan, Sealed,
    SecretBytes, ServerOptions, Store, StoreError, StorePlace, StoreProvider, Table, open_at,
};
use stvor_testkit::mount::in_a_mount;
use stvor_testkit::{
    ChaosProxy, Direction, Postgres, Promotion, Redis, RedisCluster, RedisPair, RedisSettings,
};

fn place(user: &str) -> StorePlace {
    StorePlace::new("wss://relay.example:443", "app", user)
}

fn key(partition: &str, sort: u64) -> Key {
    Key::new(Table::Custom, partition, sort.to_be_bytes())
}

async fn codes(stores: &dyn StoreProvider) -> Vec<&'static str> {
    stores.findings().await.unwrap().iter().map(|finding| finding.code).collect()
}

/// Two rows that one change set writes: whole or not at all.
fn pair(number: u64) -> ChangeSet<RowValue> {
    pair_of_size(number, 500)
}

fn pair_of_size(number: u64, bytes: usize) -> ChangeSet<RowValue> {
    let value = || RowValue { bytes: vec![7; bytes], version: RowVersion(number) };
    ["left", "right"].map(|half| Op::insert(key(half, number), value())).into_iter().collect()
}

async fn numbers(store: &dyn Store, partition: &str) -> Vec<u64> {
    let mut scan = Scan::of(Table::Custom, partition);
    let mut found = Vec::new();
    loop {
        let page = store.scan(scan.clone()).await.unwrap();
        found
            .extend(page.rows.iter().map(|row| u64::from_be_bytes(row.key.sort.clone().try_into().unwrap())));
        let Some(last) = found.last().filter(|_| page.more) else { return found };
        scan = scan.after(last.to_be_bytes());
    }
}

/// Commits pairs from eight tasks while `disturb` runs. Every answer is the truth: what was acknowledged is there once, and
/// what was refused as a conflict can only be a pair that a broken connection hid, of which there are none.
async fn commits_survive<T: Send + 'static>(
    store: Arc<dyn Store>,
    disturb: impl FnOnce() -> T + Send + 'static,
) {
    let disturbing = tokio::task::spawn_blocking(disturb);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8_u64 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for number in (task * 1_000_000).. {
                store.commit(pair(number)).await.unwrap_or_else(|error| panic!("{number}: {error}"));
                // The last pairs are written after the last disturbance.
                if number % 1_000_000 >= 60 && store.get(&[key("stop", 0)]).await.unwrap()[0].is_some() {
                    return number - task * 1_000_000 + 1;
                }
            }
            0
        });
    }
    // Servers and proxies live on until the commits are counted.
    let _kept = disturbing.await.unwrap();
    let stop = Op::put(key("stop", 0), RowValue { bytes: vec![], version: RowVersion(0) });
    store.commit([stop].into_iter().collect()).await.unwrap();
    let counts = tasks.join_all().await;
    let left = numbers(&*store, "left").await;
    assert_eq!(left, numbers(&*store, "right").await, "no half of a change set");
    assert_eq!(
        left.len() as u64,
        counts.iter().sum::<u64>(),
        "what was acknowledged is there, and nothing else"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_commits_survive_cut_connections_and_are_applied_once() {
    let Some(server) = Postgres::start().unwrap() else { return };
    let database = server.database().unwrap();
    let proxy = ChaosProxy::start(([127, 0, 0, 1], server.port()).into()).unwrap();
    let stores = PostgresStores::new(&server.url_at(proxy.address().port(), &database.name)).unwrap();
    let store = stores.open(&place("bob")).await.unwrap();
    commits_survive(store, move || cut_at_random(proxy)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_commits_survive_cut_connections_and_are_applied_once() {
    let Some(server) = Redis::start().unwrap() else { return };
    let proxy = ChaosProxy::start(([127, 0, 0, 1], server.port()).into()).unwrap();
    let stores = RedisStores::new(&format!("redis://{}", proxy.address())).unwrap();
    let store = stores.open(&place("bob")).await.unwrap();
    commits_survive(store, move || cut_at_random(proxy)).await;
}

/// What a call was answered is known to the server until the writer has heard of it, also when groups of calls overlap.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_eight_wins_each_row_of_redis_though_answers_are_lost() {
    let Some(server) = Redis::start().unwrap() else { return };
    let proxy = ChaosProxy::start(([127, 0, 0, 1], server.port()).into()).unwrap();
    let stores = RedisStores::new(&format!("redis://{}", proxy.address())).unwrap();
    let store = stores.open(&place("bob")).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
        tasks.spawn(async move {
            let mut won = Vec::new();
            for number in 0_u64.. {
                match store.commit(pair(number)).await {
                    Ok(()) => won.push(number),
                    Err(error) => assert_eq!(error.code(), "STORE_CONFLICT", "{number}"),
                }
                if stop.load(Ordering::SeqCst) {
                    break;
                }
            }
            won
        });
    }
    let _kept = tokio::task::spawn_blocking(move || cut_at_random(proxy)).await.unwrap();
    stop.store(true, Ordering::SeqCst);
    let mut won = tasks.join_all().await.concat();
    won.sort_unstable();
    assert_eq!(won, numbers(&*store, "left").await, "each row has one task that was told it made it");
    assert_eq!(won, (0..won.len() as u64).collect::<Vec<_>>());
}

/// One call has several change sets, and its answer is lost. Before it is sent again another opening removes their rows, so that each
/// set, one in conflict too, could be applied once more.
#[tokio::test]
async fn sets_of_a_redis_call_that_is_sent_again_are_answered_as_before_and_change_nothing() {
    let Some(server) = Redis::start().unwrap() else { return };
    let proxy = Arc::new(ChaosProxy::start(at(&server)).unwrap());
    let stores = RedisStores::new(&format!("redis://{}", proxy.address())).unwrap();
    let store = stores.open(&place("bob")).await.unwrap();
    let other = RedisStores::new(&server.url()).unwrap().open(&place("bob")).await.unwrap();
    // Its connection for writes is there.
    store.commit(pair(0)).await.unwrap();
    let calls = || {
        let about = server.cli(&["info", "commandstats"]).unwrap();
        let line = about.lines().find_map(|line| line.strip_prefix("cmdstat_fcall:calls=")).unwrap();
        line.split(',').next().unwrap().parse::<u64>().unwrap()
    };
    for in_conflict in 1..=3 {
        let value = RowValue { bytes: vec![7], version: RowVersion(9) };
        other.commit([Op::insert(key("right", in_conflict), value)].into_iter().collect()).await.unwrap();
        let (calls_before, dials_before) = (calls(), proxy.connections());
        proxy.refuse(true);
        proxy.cut_after(Direction::Down, 1);
        // The writer's task has its turn only when all of them are handed in.
        let commits = futures::future::join_all((1..=3).map(|number| store.commit(pair(number))));
        let meanwhile = async {
            let dialled = Arc::clone(&proxy);
            tokio::task::spawn_blocking(move || {
                let again = || (dialled.connections() > dials_before).then_some(());
                stvor_testkit::until(Duration::from_secs(60), again).unwrap();
            })
            .await
            .unwrap();
            // It found out that the answer is lost, and is refused, so nothing is sent again yet.
            assert_eq!(calls(), calls_before + 1, "all of them went in one call");
            let applied: Vec<u64> = (0..=3).filter(|number| *number != in_conflict).collect();
            assert_eq!(numbers(&*other, "left").await, applied);
            assert_eq!(numbers(&*other, "right").await, [0, 1, 2, 3]);
            let rows = (1..=3).flat_map(|number| ["left", "right"].map(|half| Op::delete(key(half, number))));
            other.commit(rows.collect()).await.unwrap();
            proxy.refuse(false);
        };
        let (answers, ()) = tokio::join!(commits, meanwhile);
        for (number, answer) in (1..=3).zip(answers) {
            match answer {
                Err(StoreError::Conflict { op: 1 }) => assert_eq!(number, in_conflict),
                answer => assert!(answer.is_ok() && number != in_conflict, "{number}: {answer:?}"),
            }
        }
        for half in ["left", "right"] {
            assert_eq!(numbers(&*other, half).await, [0], "what the other one removed does not come back");
        }
    }
}

/// Stores of one provider share a connection: what one of them hears of it while another one connects anew holds up neither.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_falls_silent_for_a_while_leaves_no_commit_without_an_answer() {
    let Some(server) = Redis::start().unwrap() else { return };
    let stores = RedisStores::new(&server.url()).unwrap();
    let (alice, bob) =
        (stores.open(&place("alice")).await.unwrap(), stores.open(&place("bob")).await.unwrap());
    for store in [&alice, &bob] {
        store.commit(pair(0)).await.unwrap();
    }
    server.pause(true).unwrap();
    let commit = |store: &Arc<dyn Store>, after: u64, number| {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(after)).await;
            store.commit(pair(number)).await
        })
    };
    // The second one's first commit fails when the first one's failure made its next one connect anew.
    let commits = [commit(&alice, 0, 1), commit(&bob, 3, 1), commit(&bob, 11, 2)];
    tokio::time::sleep(Duration::from_secs(16)).await;
    server.pause(false).unwrap();
    for commit in commits {
        let answer = tokio::time::timeout(Duration::from_secs(60), commit).await;
        answer.expect("an answer").unwrap().unwrap();
    }
    for store in [alice, bob] {
        tokio::time::timeout(Duration::from_secs(60), store.close()).await.expect("it closes").unwrap();
    }
}

/// Cuts in the middle of requests and in the middle of answers: the latter hide whether a commit was applied.
fn cut_at_random(proxy: ChaosProxy) -> ChaosProxy {
    for round in 0..12_u64 {
        let direction = if round % 2 == 0 { Direction::Down } else { Direction::Up };
        let before = proxy.connections();
        proxy.cut_after(direction, 40 + 997 * round % 20_000);
        // The client has connected again: the cut was made.
        stvor_testkit::until(Duration::from_secs(60), || (proxy.connections() > before).then_some(()))
            .unwrap();
    }
    proxy
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_commits_survive_a_killed_server() {
    let Some(server) = Postgres::start().unwrap() else { return };
    let stores = PostgresStores::new(&server.database().unwrap().url).unwrap();
    let store = stores.open(&place("bob")).await.unwrap();
    commits_survive(store, move || {
        for _ in 0..3 {
            server.kill().unwrap();
            server.restart().unwrap();
            server.sql("postgres", "SELECT 1").unwrap();
        }
        server
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_commits_survive_a_killed_server() {
    let Some(server) = Redis::start().unwrap() else { return };
    let stores = RedisStores::new(&server.url()).unwrap();
    let store = stores.open(&place("bob")).await.unwrap();
    commits_survive(store, move || {
        for _ in 0..3 {
            server.kill().unwrap();
            server.restart().unwrap();
            server.cli(&["ping"]).unwrap();
        }
        server
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_commits_survive_a_failover_to_a_synchronous_replica() {
    let settings = ["wal_level=replica", "max_wal_senders=4", "hot_standby=on"];
    let Some(primary) = Postgres::start_with(&settings).unwrap() else { return };
    let database = primary.database().unwrap();
    let replica = primary.start_replica("second").unwrap();
    // The server knows of a replica once that has connected.
    stvor_testkit::until(Duration::from_secs(60), || {
        let count = primary.sql("postgres", "SELECT count(*) FROM pg_stat_replication").ok()?;
        (count.trim() == "1").then_some(())
    })
    .unwrap();
    let alone = PostgresStores::new(&database.url).unwrap();
    assert_eq!(codes(&alone).await, ["postgres_no_synchronous_standby"]);
    primary.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'second'").unwrap();
    primary.sql("postgres", "SELECT pg_reload_conf()").unwrap();
    stvor_testkit::until(Duration::from_secs(60), || {
        let state = primary.sql("postgres", "SELECT sync_state FROM pg_stat_replication").ok()?;
        (state.trim() == "sync").then_some(())
    })
    .unwrap();
    assert!(codes(&alone).await.is_empty());
    let url = format!(
        "postgres://stvor@127.0.0.1:{},127.0.0.1:{}/{}?sslmode=disable&target_session_attrs=read-write",
        primary.port(),
        replica.port(),
        database.name
    );
    let store = PostgresStores::new(&url).unwrap().open(&place("bob")).await.unwrap();
    commits_survive(store, move || {
        primary.kill().unwrap();
        replica.promote().unwrap();
        (primary, replica)
    })
    .await;
}

fn waiting_for_a_replica(urls: &[&str]) -> RedisStores {
    RedisStores::with_options(urls, ServerOptions::new().replicas(1)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_commits_survive_failovers_to_the_replica_that_they_wait_for() {
    let Some(pair) = RedisPair::start().unwrap() else { return };
    let stores = waiting_for_a_replica(&[&pair.url()]);
    assert!(codes(&stores).await.is_empty());
    let store = stores.open(&place("bob")).await.unwrap();
    commits_survive(store, move || {
        for _ in 0..3 {
            pair.fail_over().unwrap();
        }
        pair
    })
    .await;
}

/// An address that takes connections and never says anything.
fn silent() -> (std::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    (listener, url)
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_commits_survive_failovers_in_a_cluster_whose_named_server_is_gone() {
    let Some(cluster) = RedisCluster::start_with_replicas().unwrap() else { return };
    let careless = RedisStores::new(&cluster.urls()[0]).unwrap();
    assert_eq!(codes(&careless).await, ["redis_no_synchronous_replica"]);
    careless.open(&place("bob")).await.unwrap().commit(pair(999_999_999)).await.unwrap();
    let holder = cluster.url_of_holder().unwrap();
    let (one, other) = (silent(), silent());
    let stores = waiting_for_a_replica(&[&one.1, &other.1, &holder]);
    assert!(codes(&stores).await.is_empty());
    let store = stores.open(&place("carol")).await.unwrap();
    commits_survive(store, move || {
        for by in [Promotion::Ordered, Promotion::Voted, Promotion::Ordered] {
            cluster.fail_over(by).unwrap();
        }
        (cluster, one, other)
    })
    .await;
}

/// The address of a server, for proxies that lead there.
fn at(server: &Redis) -> std::net::SocketAddr {
    ([127, 0, 0, 1], server.port()).into()
}

/// Whether masters take writes. One that takes none is dialled anew, by whoever has something to write.
fn take_writes(cluster: &RedisCluster, take: bool) {
    let replicas = if take { "0" } else { "1" };
    for node in &cluster.nodes {
        node.cli(&["config", "set", "min-replicas-to-write", replicas]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_named_server_leads_is_gone_on_though_servers_that_are_remembered_answer_sooner() {
    let (Some(before), Some(after)) = (RedisCluster::start().unwrap(), RedisCluster::start().unwrap()) else {
        return;
    };
    let elsewhere = RedisStores::new(&after.urls()[0]).unwrap().open(&place("bob")).await.unwrap();
    elsewhere.commit(pair(2)).await.unwrap();
    let named = ChaosProxy::start(at(&before.nodes[0])).unwrap();
    let stores = RedisStores::new(&format!("redis://{}", named.address())).unwrap();
    let store = stores.open(&place("bob")).await.unwrap();
    store.commit(pair(1)).await.unwrap();
    named.lead_to(at(&after.nodes[0]));
    named.delay(Duration::from_millis(100));
    take_writes(&before, false);
    assert_eq!(store.commit(pair(3)).await.unwrap_err().code(), "STORE_PUT_BACK");
    assert_eq!(numbers(&*store, "left").await, [2]);
}

/// Where addresses are given out anew, another server soon has the one of a server that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_remembered_address_that_another_server_has_by_now_is_not_taken_for_the_cluster() {
    let (Some(cluster), Some(single)) = (RedisCluster::start().unwrap(), Redis::start().unwrap()) else {
        return;
    };
    let foreign = RedisCluster::start().unwrap().unwrap();
    let addresses: Vec<ChaosProxy> =
        cluster.nodes.iter().map(|node| ChaosProxy::start(at(node)).unwrap()).collect();
    for (node, address) in cluster.nodes.iter().zip(&addresses) {
        let port = address.address().port().to_string();
        node.cli(&["config", "set", "cluster-announce-port", &port]).unwrap();
    }
    stvor_testkit::until(Duration::from_secs(60), || {
        let slots = cluster.nodes[0].cli(&["cluster", "slots"]).ok()?;
        let known = |one: &ChaosProxy| slots.contains(&one.address().port().to_string());
        addresses.iter().all(known).then_some(())
    })
    .unwrap();
    let named = ChaosProxy::start(at(&cluster.nodes[0])).unwrap();
    let stores = RedisStores::new(&format!("redis://{}", named.address())).unwrap();
    let store = stores.open(&place("bob")).await.unwrap();
    store.commit(pair(1)).await.unwrap();
    named.refuse(true);
    addresses.iter().for_each(|address| address.lead_to(at(&single)));
    take_writes(&cluster, false);
    let waiting = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.commit(pair(2)).await }
    });
    let dialled = || {
        let before = addresses[0].connections();
        stvor_testkit::until(Duration::from_secs(60), || {
            (addresses[0].connections() > before + 2 || waiting.is_finished()).then_some(())
        })
        .unwrap();
        assert!(!waiting.is_finished(), "it waits for its own cluster");
    };
    dialled();
    addresses.iter().for_each(|address| address.lead_to(at(&foreign.nodes[0])));
    dialled();
    // Servers of the cluster that were not named are good enough.
    take_writes(&cluster, true);
    for (node, address) in cluster.nodes.iter().zip(&addresses) {
        address.lead_to(at(node));
    }
    waiting.await.unwrap().unwrap();
    assert_eq!(numbers(&*store, "left").await, [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_a_restarted_primary_shows_is_acknowledged_when_the_standby_has_it() {
    let settings = ["wal_level=replica", "max_wal_senders=4"];
    let Some(primary) = Postgres::start_with(&settings).unwrap() else { return };
    let database = primary.database().unwrap();
    let store = PostgresStores::new(&database.url).unwrap().open(&place("bob")).await.unwrap();
    store.commit(pair(1)).await.unwrap();
    let replica = primary.start_replica("second").unwrap();
    replica.stop().unwrap();
    primary.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'second'").unwrap();
    primary.sql("postgres", "SELECT pg_reload_conf()").unwrap();
    let waits = || {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        (primary.sql("postgres", waits).ok()?.trim() == "1").then_some(())
    };
    // The processes of the server take the new settings up one by one: until all have, a commit waits for nobody.
    let mut pairs = 1;
    let commit = loop {
        pairs += 1;
        let commit = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.commit(pair(pairs)).await }
        });
        let begun = || waits().or_else(|| commit.is_finished().then_some(()));
        stvor_testkit::until(Duration::from_secs(60), begun).unwrap();
        if !commit.is_finished() {
            break commit;
        }
        commit.await.unwrap().unwrap();
        assert!(pairs < 1_000, "the new settings never hold");
    };
    // What waited is there after this, for everybody to see, and only here.
    primary.kill().unwrap();
    primary.restart().unwrap();
    stvor_testkit::until(Duration::from_secs(60), || waits().or_else(|| commit.is_finished().then_some(())))
        .unwrap();
    assert!(!commit.is_finished(), "it is nowhere else yet");
    replica.restart().unwrap();
    commit.await.unwrap().unwrap();
    primary.kill().unwrap();
    replica.promote().unwrap();
    let (left, _) = (replica.sql(&database.name, "SELECT count(*) FROM stvor_rows").unwrap(), primary);
    assert_eq!(left.trim(), (2 * pairs).to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_commit_is_applied_whole_or_not_at_all() {
    let Some(server) = Postgres::start().unwrap() else { return };
    let stores = PostgresStores::new(&server.database().unwrap().url).unwrap();
    let store = stores.open(&place("bob")).await.unwrap();
    for number in 0..40 {
        let commit = store.commit(pair(number));
        // Polled a few times, then dropped.
        let _ = tokio::time::timeout(Duration::from_micros(number * 100), commit).await;
    }
    store.commit(pair(99)).await.unwrap();
    let left = numbers(&*store, "left").await;
    assert_eq!(left, numbers(&*store, "right").await);
    assert!(left.contains(&99));
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    if let Some(server) = Postgres::start().unwrap() {
        let database = server.database().unwrap();
        let stores = PostgresStores::new(&database.url).unwrap();
        let store = stores.open(&place("bob")).await.unwrap();
        store.commit(pair(1)).await.unwrap();
        store.close().await.unwrap();
        let newer =
            "INSERT INTO stvor_migrations (version, name, applied_on, checksum) VALUES (99, 'x', 'x', '1')";
        server.sql(&database.name, newer).unwrap();
        // Each dump has a key of its own in two lines.
        let dump = || {
            let dump = server.dump(&database.name).unwrap();
            dump.lines().filter(|line| !line.contains("restrict ")).collect::<Vec<_>>().join("\n")
        };
        let before = dump();
        assert_eq!(stores.open(&place("bob")).await.unwrap_err().code(), "STORE_TOO_NEW");
        assert_eq!(dump(), before);
    }
    let digests = ["--enable-debug-command", "yes"].map(str::to_owned).to_vec();
    let settings = RedisSettings { arguments: digests, tls_only: false };
    if let Some(server) = Redis::start_with(settings).unwrap() {
        let stores = RedisStores::new(&server.url()).unwrap();
        let store = stores.open(&place("bob")).await.unwrap();
        store.commit(pair(1)).await.unwrap();
        store.close().await.unwrap();
        let meta = server.cli(&["keys", "*:meta"]).unwrap();
        server.cli(&["hset", meta.trim(), "schema", "99"]).unwrap();
        // Of all keys and their values. A dump has the fields of a hash in an order that reading can change.
        let digest = || server.cli(&["debug", "digest"]).unwrap();
        let before = digest();
        assert_eq!(stores.open(&place("bob")).await.unwrap_err().code(), "STORE_TOO_NEW");
        assert_eq!(digest(), before);
    }
}

#[tokio::test]
async fn what_a_server_would_lose_is_found() {
    if let Some(server) = Postgres::start_with(&["fsync=off", "full_page_writes=off"]).unwrap() {
        let stores = PostgresStores::new(&server.database().unwrap().url).unwrap();
        assert_eq!(codes(&stores).await, ["postgres_fsync_off", "postgres_full_page_writes_off"]);
    }
    if let Some(server) = Postgres::start_with(&["synchronous_commit=off"]).unwrap() {
        // This client asks for synchronous commits itself.
        let stores = PostgresStores::new(&server.database().unwrap().url).unwrap();
        assert!(codes(&stores).await.is_empty());
    }
    let weak = ["--appendonly", "no", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let settings = RedisSettings { arguments: weak.map(str::to_owned).to_vec(), tls_only: false };
    if let Some(server) = Redis::start_with(settings).unwrap() {
        let stores = RedisStores::new(&server.url()).unwrap();
        assert_eq!(codes(&stores).await, ["redis_appendonly", "redis_maxmemory_policy"]);
        server.cli(&["config", "set", "appendonly", "yes", "appendfsync", "everysec"]).unwrap();
        server.cli(&["config", "set", "maxmemory-policy", "noeviction"]).unwrap();
        assert_eq!(codes(&stores).await, ["redis_appendfsync"]);
        server.cli(&["config", "set", "appendonly", "no", "no-appendfsync-on-rewrite", "yes"]).unwrap();
        assert_eq!(
            codes(&stores).await,
            ["redis_appendfsync", "redis_appendonly", "redis_no_appendfsync_on_rewrite"],
            "all at once, not one after the other was mended"
        );
    }
    if let Some(cluster) = RedisCluster::start().unwrap() {
        let stores = RedisStores::new(&cluster.urls()[0]).unwrap();
        assert!(codes(&stores).await.is_empty());
        cluster.nodes[2].cli(&["config", "set", "appendfsync", "no"]).unwrap();
        assert_eq!(codes(&stores).await, ["redis_appendfsync"], "of any master");
    }
}

/// A name that leads to this machine, as the resolver has it, and by which one can not tell that it does.
const SOMEWHERE: &str = "127.1";

#[tokio::test]
async fn a_connection_without_tls_that_may_leave_the_machine_is_found() {
    if let Some(server) = Redis::start().unwrap() {
        let stores = RedisStores::new(&server.url().replace("127.0.0.1", SOMEWHERE)).unwrap();
        assert_eq!(codes(&stores).await, ["redis_no_tls"]);
    }
    if let Some(server) = Postgres::start().unwrap() {
        let url = server.database().unwrap().url.replace("127.0.0.1", SOMEWHERE);
        for mode in ["disable", "prefer"] {
            let stores =
                PostgresStores::new(&url.replace("sslmode=disable", &format!("sslmode={mode}"))).unwrap();
            assert_eq!(codes(&stores).await, ["postgres_no_tls"], "{mode}");
        }
    }
}

/// As services that run Redis for others do, and as an access list for one user does.
#[tokio::test]
async fn settings_that_a_server_does_not_tell_are_vouched_for_and_listed_or_found_hidden() {
    let forbids = ["--rename-command", "CONFIG", "hidden"].map(str::to_owned).to_vec();
    let Some(forbidden) = Redis::start_with(RedisSettings { arguments: forbids, tls_only: false }).unwrap()
    else {
        return;
    };
    let denied = Redis::start().unwrap().unwrap();
    denied.cli(&["acl", "setuser", "default", "-config"]).unwrap();
    let sound = [
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("no-appendfsync-on-rewrite", "no"),
        ("maxmemory-policy", "noeviction"),
    ];
    for server in [&forbidden, &denied] {
        let with = |settings: &[(&str, &str)]| {
            let options = ServerOptions::new().assured_settings(settings.iter().copied());
            RedisStores::with_options(&[&server.url()], options).unwrap()
        };
        assert_eq!(codes(&with(&[])).await, ["redis_settings_hidden"]);
        assert_eq!(codes(&with(&sound)).await, ["redis_settings_assured"]);
        let listed = with(&sound).findings().await.unwrap().remove(0).what;
        for (name, value) in sound {
            assert!(listed.contains(&format!("{name} {value}")), "{listed}");
        }
        assert_eq!(
            codes(&with(&sound[..1])).await,
            [
                "redis_appendfsync",
                "redis_maxmemory_policy",
                "redis_no_appendfsync_on_rewrite",
                "redis_settings_assured"
            ],
            "nobody vouched for those"
        );
        let status = with(&sound).status().await.unwrap();
        assert!(status.contains(&("appendfsync", "always (vouched for)".to_owned())), "{status:?}");
        // A store works there as anywhere.
        with(&[]).open(&place("bob")).await.unwrap().commit(pair(1)).await.unwrap();
    }
    // Of a cluster each master is judged by what it tells, or by what is vouched for.
    let cluster = RedisCluster::start().unwrap().unwrap();
    cluster.nodes[2].cli(&["config", "set", "appendfsync", "no"]).unwrap();
    let with = |settings: &[(&str, &str)]| {
        let options = ServerOptions::new().assured_settings(settings.iter().copied());
        RedisStores::with_options(&[&cluster.urls()[0]], options).unwrap()
    };
    for node in &cluster.nodes[..2] {
        node.cli(&["acl", "setuser", "default", "-config"]).unwrap();
    }
    assert_eq!(codes(&with(&[])).await, ["redis_appendfsync", "redis_settings_hidden"]);
    assert_eq!(codes(&with(&sound)).await, ["redis_appendfsync", "redis_settings_assured"]);
    cluster.nodes[2].cli(&["acl", "setuser", "default", "-config"]).unwrap();
    assert_eq!(codes(&with(&[])).await, ["redis_settings_hidden"]);
    assert_eq!(codes(&with(&sound)).await, ["redis_settings_assured"]);
    let status = with(&sound).status().await.unwrap();
    assert!(status.contains(&("appendfsync", "always (vouched for)".to_owned())), "{status:?}");
    // A server that tells is believed, whatever is vouched for.
    let server = Redis::start().unwrap().unwrap();
    server.cli(&["config", "set", "appendfsync", "everysec"]).unwrap();
    let options = ServerOptions::new().assured_settings(sound);
    let stores = RedisStores::with_options(&[&server.url()], options).unwrap();
    assert_eq!(codes(&stores).await, ["redis_appendfsync"]);
    // And nobody vouches for what does not count, or misspells what does.
    let misspelt = ServerOptions::new().assured_settings([("appendfsink", "always")]);
    let error = RedisStores::with_options(&["redis://127.0.0.1:1"], misspelt).unwrap_err().to_string();
    assert!(error.contains("appendfsink") && error.contains("appendfsync"), "{error}");
    let options = ServerOptions::new().assured_settings(sound);
    assert!(PostgresStores::with_options("postgres://stvor@127.0.0.1:1/db", options).is_err());
}

/// A process that is killed leaves its marks, and one that crashes at every start leaves many.
#[tokio::test]
async fn marks_of_openings_that_died_go_after_a_month_and_those_of_others_stay() {
    let Some(server) = Redis::start().unwrap() else { return };
    let stores = RedisStores::new(&server.url()).unwrap();
    let live = stores.open(&place("bob")).await.unwrap();
    live.commit(pair(1)).await.unwrap();
    let meta = server.cli(&["keys", "*:meta"]).unwrap().trim().to_owned();
    server.cli(&["hset", &meta, "w:dead", "7", "c:dead", ";7:0;"]).unwrap();
    let marks = || -> Vec<String> {
        let fields = server.cli(&["hkeys", &meta]).unwrap();
        fields.lines().filter(|field| field.contains(':')).map(str::to_owned).collect()
    };
    let opened = async |number: u64| {
        let store = stores.open(&place("bob")).await.unwrap();
        store.commit(pair(number)).await.unwrap();
        store.close().await.unwrap();
    };
    let a_month_passes = || {
        for field in marks().iter().filter(|field| field.starts_with("s:")) {
            let seen = server.cli(&["hget", &meta, field]).unwrap();
            let (_, number) = seen.trim().split_once(':').unwrap();
            server.cli(&["hset", &meta, field, &format!("1:{number}")]).unwrap();
        }
    };
    opened(2).await;
    opened(3).await;
    let before = marks();
    assert!(before.contains(&"w:dead".to_owned()) && before.contains(&"s:dead".to_owned()), "{before:?}");
    assert_eq!(before.len(), 3 + 2, "of the one that is dead and of the one at work: {before:?}");
    a_month_passes();
    live.commit(pair(4)).await.unwrap();
    opened(5).await;
    let after = marks();
    assert!(!after.iter().any(|field| field.ends_with(":dead")), "{after:?}");
    assert_eq!(after.len(), 2, "{after:?}");
    // The server still knows what it acknowledged to this one.
    live.commit(pair(6)).await.unwrap();
    live.close().await.unwrap();
    assert_eq!(marks(), [""; 0]);
}

#[tokio::test]
async fn a_server_says_what_it_is_and_how_it_is_set() {
    let value = async |stores: &dyn StoreProvider, name: &str| {
        let status = stores.status().await.unwrap();
        status.into_iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    };
    let major =
        |version: &str| version.split('.').next().and_then(|major| major.parse::<u32>().ok()).unwrap();
    if let Some(server) = Postgres::start_with(&["synchronous_standby_names=''"]).unwrap() {
        let stores = PostgresStores::new(&server.database().unwrap().url).unwrap();
        assert!(major(&value(&stores, "server_version").await.unwrap()) >= 14);
        assert_eq!(value(&stores, "fsync").await.as_deref(), Some("on"));
        assert!(value(&stores, "schema").await.unwrap().starts_with("0 "), "nothing was opened yet");
        let store = stores.open(&place("bob")).await.unwrap();
        assert!(value(&stores, "schema").await.unwrap().starts_with("0 "), "nothing was written yet");
        store.commit(pair(1)).await.unwrap();
        store.close().await.unwrap();
        assert!(value(&stores, "schema").await.unwrap().starts_with("1 "));
    }
    if let Some(server) = Redis::start().unwrap() {
        let stores = RedisStores::new(&server.url()).unwrap();
        assert!(major(&value(&stores, "server_version").await.unwrap()) >= 7);
        assert_eq!(value(&stores, "appendfsync").await.as_deref(), Some("always"));
        assert_eq!(value(&stores, "masters").await.as_deref(), Some("1"));
    }
}

#[tokio::test]
async fn a_server_out_of_memory_is_a_full_store_and_goes_on_when_there_is_room() {
    let Some(server) = Redis::start().unwrap() else { return };
    let store = RedisStores::new(&server.url()).unwrap().open(&place("bob")).await.unwrap();
    store.commit(pair(1)).await.unwrap();
    server.cli(&["config", "set", "maxmemory", "1"]).unwrap();
    assert_eq!(store.commit(pair(2)).await.unwrap_err().code(), "STORE_FULL");
    assert_eq!(numbers(&*store, "left").await, [1]);
    assert_eq!(store.sweep(Timestamp::from_millis(5), 10).await.unwrap(), 0);
    // Whoever has no room can make some, also one who comes anew.
    let again = RedisStores::new(&server.url()).unwrap().open(&place("bob")).await.unwrap();
    for store in [&store, &again] {
        assert_eq!(numbers(&**store, "left").await, [1]);
        let removed = ["left", "right"].map(|half| Op::delete(key(half, 1)));
        store.commit(removed.into_iter().collect()).await.unwrap();
        assert!(numbers(&**store, "left").await.is_empty());
        server.cli(&["config", "set", "maxmemory", "0"]).unwrap();
        store.commit(pair(1)).await.unwrap();
        server.cli(&["config", "set", "maxmemory", "1"]).unwrap();
    }
    server.cli(&["config", "set", "maxmemory", "0"]).unwrap();
    store.commit(pair(2)).await.unwrap();
    assert_eq!(numbers(&*store, "right").await, [1, 2]);
}

#[tokio::test]
async fn a_server_on_a_full_disk_is_a_full_store_and_goes_on_when_there_is_room() {
    let Some(server) = Postgres::start_on_a_disk_that_fills().unwrap() else { return };
    let url = server.database().unwrap().url;
    let store = PostgresStores::new(&url).unwrap().open(&place("bob")).await.unwrap();
    store.commit(pair(0)).await.unwrap();
    server.fill_disk(true).unwrap();
    // What fits into the pages that are there is still taken.
    let mut written = vec![0];
    let error = loop {
        let number = written.len() as u64;
        match store.commit(pair(number)).await {
            Ok(_) => written.push(number),
            Err(error) => break error,
        }
        assert!(number < 10_000, "the disk is never full");
    };
    assert_eq!(error.code(), "STORE_FULL");
    assert_eq!(store.commit(pair(written.len() as u64)).await.unwrap_err().code(), "STORE_FULL");
    for half in ["left", "right"] {
        assert_eq!(numbers(&*store, half).await, written, "reading goes on, and nothing is there by half");
    }
    server.fill_disk(false).unwrap();
    let next = written.len() as u64;
    store.commit(pair(next)).await.unwrap();
    written.push(next);
    server.kill().unwrap();
    server.restart().unwrap();
    let store = PostgresStores::new(&url).unwrap().open(&place("bob")).await.unwrap();
    for half in ["left", "right"] {
        assert_eq!(numbers(&*store, half).await, written);
    }
}

/// A server with its log on a disk of 4 MiB, half of it ballast. Not a test of its own: the directory of temporary files is on that disk.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is the child of the other test"]
async fn redis_on_a_small_disk() {
    let Ok(disk) = std::env::var("STVOR_SMALL_DISK") else { return };
    let ballast = Path::new(&disk).join("ballast");
    let Some(server) = Redis::start().unwrap() else { return println!("@@skipped") };
    let open = async || RedisStores::new(&server.url()).unwrap().open(&place("bob")).await.unwrap();
    let large = |number| pair_of_size(number, 20_000);
    let ends_over_its_log = || {
        let said = server.wait_end().unwrap();
        assert!(said.iter().any(|line| line.contains("Can't recover from AOF write error")), "{said:?}");
    };
    let store = open().await;
    let gone = Arc::new(AtomicBool::new(false));
    let filling = tokio::spawn({
        let (store, gone) = (Arc::clone(&store), Arc::clone(&gone));
        async move {
            for number in 0.. {
                store.commit(large(number)).await.unwrap();
                if gone.load(Ordering::SeqCst) {
                    return number + 1;
                }
            }
            0
        }
    });
    ends_over_its_log();
    // One commit is open. It is answered when the server is started again, with room, while it is waited for.
    gone.store(true, Ordering::SeqCst);
    std::fs::remove_file(&ballast).unwrap();
    server.restart().unwrap();
    let acknowledged = filling.await.unwrap();
    for half in ["left", "right"] {
        assert_eq!(numbers(&*store, half).await, (0..acknowledged).collect::<Vec<_>>());
    }

    let mut file = std::fs::File::create(&ballast).unwrap();
    while file.write_all(&[0; 4_096]).is_ok() {}
    // A file that is open gives no room back when it is removed.
    drop(file);
    let last = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.commit(large(acknowledged)).await }
    });
    ends_over_its_log();
    // Nobody starts it in time.
    let asked = [key("left", 0)];
    let (last, read) = tokio::join!(last, store.get(&asked));
    assert_eq!(last.unwrap().unwrap_err().code(), "STORE_UNCERTAIN");
    assert_eq!(read.map(|_| ()).unwrap_err().code(), "STORE_UNREACHABLE");
    std::fs::remove_file(&ballast).unwrap();
    server.restart().unwrap();
    store.close().await.unwrap();
    let store = open().await;
    let left = numbers(&*store, "left").await;
    assert_eq!(left, numbers(&*store, "right").await, "no half of a change set");
    let count = left.len() as u64;
    assert!([acknowledged, acknowledged + 1].contains(&count), "{acknowledged} were acknowledged: {left:?}");
    assert_eq!(left, (0..count).collect::<Vec<_>>());
    store.commit(large(count)).await.unwrap();
    println!("@@done");
}

#[test]
fn a_redis_whose_disk_is_full_ends_and_has_what_it_acknowledged_once_it_is_started_with_room() {
    let disk = tempfile::tempdir().unwrap();
    let script =
        "mount -t tmpfs -o size=4m none \"$0\" && head -c 2000000 /dev/zero > \"$0/ballast\" && exec \"$@\"";
    let Some([program, words @ ..]) = in_a_mount(script, disk.path().to_str().unwrap()) else { return };
    let mut child = Command::new(program);
    child.args(words).arg(std::env::current_exe().unwrap());
    child.args(["--exact", "redis_on_a_small_disk", "--nocapture", "--ignored"]);
    let output = child.env("STVOR_SMALL_DISK", disk.path()).env("TMPDIR", disk.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let ended = output.status.success() && (text.contains("@@done") || text.contains("@@skipped"));
    assert!(ended, "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// The connections stay, and no answer comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_falls_silent_holds_up_neither_sweeps_nor_openings_nor_closes_for_ever() {
    let Some(server) = Postgres::start().unwrap() else { return };
    let database = server.database().unwrap();
    let proxy = ChaosProxy::start(([127, 0, 0, 1], server.port()).into()).unwrap();
    let stores = PostgresStores::new(&server.url_at(proxy.address().port(), &database.name)).unwrap();
    let store = stores.open(&place("bob")).await.unwrap();
    store.commit(pair(1)).await.unwrap();
    let long = Duration::from_secs(60);
    proxy.freeze();
    let opened = async { stores.open(&place("carol")).await.map(|_| ()) };
    let swept = store.sweep(Timestamp::from_millis(5), 10);
    let (opened, swept) = tokio::time::timeout(long, async { tokio::join!(opened, swept) }).await.unwrap();
    assert_eq!(opened.unwrap_err().code(), "STORE_UNREACHABLE");
    assert_eq!(swept.unwrap_err().code(), "STORE_UNREACHABLE");
    proxy.thaw();
    store.commit(pair(2)).await.unwrap();
    assert_eq!(numbers(&*store, "left").await, [1, 2]);
    proxy.freeze();
    tokio::time::timeout(long, store.close()).await.unwrap().unwrap();
    proxy.thaw();
}

#[tokio::test]
async fn a_password_file_is_read_again_when_the_password_changes() {
    let Some(server) = Redis::start().unwrap() else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "first\n").unwrap();
    server.cli(&["config", "set", "requirepass", "first"]).unwrap();
    let options = ServerOptions::new().password_file(&file);
    let store =
        RedisStores::with_options(&[&server.url()], options).unwrap().open(&place("bob")).await.unwrap();
    store.commit(pair(1)).await.unwrap();
    std::fs::write(&file, "second\n").unwrap();
    server.cli(&["-a", "first", "config", "set", "requirepass", "second"]).unwrap();
    server.cli(&["-a", "second", "client", "kill", "type", "normal"]).unwrap();
    store.commit(pair(2)).await.unwrap();
    std::fs::write(&file, "wrong\n").unwrap();
    let options = ServerOptions::new().password_file(&file);
    let stores = RedisStores::with_options(&[&server.url()], options).unwrap();
    let error = stores.open(&place("bob")).await.unwrap_err();
    assert_eq!(error.code(), "STORE_UNREACHABLE");
    assert!(!error.to_string().contains("wrong") && !format!("{stores:?}").contains("wrong"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_waits_for_replicas_and_a_replica_that_none_waits_for_is_found() {
    let guarded = ["--min-replicas-to-write", "1"].map(str::to_owned).to_vec();
    let Some(primary) = Redis::start().unwrap() else { return };
    let port = primary.port().to_string();
    let arguments = ["--replicaof", "127.0.0.1", &port].map(str::to_owned).to_vec();
    let replica = Redis::start_with(RedisSettings { arguments, tls_only: false }).unwrap().unwrap();
    stvor_testkit::until(Duration::from_secs(60), || {
        replica.cli(&["info", "replication"]).ok()?.contains("master_link_status:up").then_some(())
    })
    .unwrap();
    let careless = RedisStores::new(&primary.url()).unwrap();
    assert_eq!(codes(&careless).await, ["redis_no_synchronous_replica"]);
    primary.cli(&["config", "set", guarded[0].trim_start_matches("--"), &guarded[1]]).unwrap();
    assert_eq!(codes(&careless).await, ["redis_no_synchronous_replica"], "it was heard from, no more");
    primary.cli(&["config", "set", "min-replicas-to-write", "0"]).unwrap();

    let stores = RedisStores::with_options(&[&primary.url()], ServerOptions::new().replicas(1)).unwrap();
    assert!(codes(&stores).await.is_empty());
    let store = stores.open(&place("bob")).await.unwrap();
    store.commit(pair(1)).await.unwrap();
    let rows = replica.cli(&["keys", "*:rows"]).unwrap();
    assert_eq!(replica.cli(&["hlen", rows.trim()]).unwrap().trim(), "2", "the replica has it already");
    // A commit that no replica has is not acknowledged, and is there once when one has it.
    replica.pause(true).unwrap();
    let waiting = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.commit(pair(2)).await }
    });
    stvor_testkit::until(Duration::from_secs(60), || {
        (primary.cli(&["hlen", rows.trim()]).ok()?.trim() == "4").then_some(())
    })
    .unwrap();
    assert!(!waiting.is_finished());
    replica.pause(false).unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(numbers(&*store, "left").await, [1, 2]);
    // Nor is one refused that is there already, though the primary is full when it is sent again.
    replica.pause(true).unwrap();
    let waiting = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.commit(pair(3)).await }
    });
    stvor_testkit::until(Duration::from_secs(60), || {
        (primary.cli(&["hlen", rows.trim()]).ok()?.trim() == "6").then_some(())
    })
    .unwrap();
    primary.cli(&["config", "set", "maxmemory", "1"]).unwrap();
    stvor_testkit::until(Duration::from_secs(60), || {
        // The functions that the next connection brings, the call, and the call once more: each waits for the replica again.
        let stats = primary.cli(&["info", "errorstats"]).ok()?;
        let refused = stats.lines().find_map(|line| line.strip_prefix("errorstat_OOM:count="))?;
        (refused.trim().parse::<u64>().ok()? > 2 || waiting.is_finished()).then_some(())
    })
    .unwrap();
    assert!(!waiting.is_finished());
    primary.cli(&["config", "set", "maxmemory", "0"]).unwrap();
    replica.pause(false).unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(numbers(&*store, "left").await, [1, 2, 3]);
}

/// On one thread, so that both wait when the writer takes what waits.
#[tokio::test]
async fn a_commit_that_was_sent_with_one_that_fails_waits_for_replicas_as_any_other() {
    let Some(servers) = RedisPair::start().unwrap() else { return };
    let (primary, replica) = servers.roles();
    primary.cli(&["config", "set", "min-replicas-to-write", "0"]).unwrap();
    let store = waiting_for_a_replica(&[&servers.url()]).open(&place("bob")).await.unwrap();
    store.commit(pair(1)).await.unwrap();
    let rows = primary.cli(&["keys", "*:rows"]).unwrap();
    let count = |server: &Redis| server.cli(&["hlen", rows.trim()]).unwrap().trim().to_owned();
    replica.pause(true).unwrap();
    primary.cli(&["config", "set", "maxmemory", "1"]).unwrap();
    let both = tokio::spawn({
        let store = Arc::clone(&store);
        let removed = ["left", "right"].map(|half| Op::delete(key(half, 1)));
        async move { tokio::join!(store.commit(removed.into_iter().collect()), store.commit(pair(2))) }
    });
    let refused = || {
        let stats = primary.cli(&["info", "errorstats"]).unwrap();
        let count = stats.lines().find_map(|line| line.strip_prefix("errorstat_OOM:count="));
        count.map_or(0, |count| count.trim().parse::<u64>().unwrap())
    };
    // The second one, the functions that the next connection brings, and the second one again.
    while refused() < 3 && !both.is_finished() {
        tokio::task::yield_now().await;
    }
    assert!(!both.is_finished(), "no replica has it");
    assert_eq!(count(primary), "0");
    replica.pause(false).unwrap();
    let (removed, put) = both.await.unwrap();
    removed.unwrap();
    assert_eq!(count(replica), "0", "the replica has it, too");
    assert_eq!(put.unwrap_err().code(), "STORE_FULL");
}

/// Servers with replicas that can be left behind.
enum Replicated {
    Pair(Box<RedisPair>),
    Cluster(RedisCluster),
}

impl Replicated {
    fn all() -> Vec<Self> {
        let pair = RedisPair::start().unwrap().map(Box::new).map(Self::Pair);
        let cluster = RedisCluster::start_with_replicas().unwrap().map(Self::Cluster);
        pair.into_iter().chain(cluster).collect()
    }

    fn url(&self) -> String {
        match self {
            Self::Pair(pair) => pair.url(),
            Self::Cluster(cluster) => cluster.urls()[0].clone(),
        }
    }

    fn leave_replica_behind(&self) {
        match self {
            Self::Pair(pair) => pair.leave_replica_behind().unwrap(),
            Self::Cluster(cluster) => cluster.leave_replica_behind().unwrap(),
        }
    }

    fn fail_over(&self) {
        match self {
            Self::Pair(pair) => pair.fail_over().unwrap(),
            Self::Cluster(cluster) => cluster.fail_over(Promotion::Ordered).unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_promoted_replica_lacks_is_told_or_was_never_acknowledged() {
    for servers in Replicated::all() {
        let store = RedisStores::new(&servers.url()).unwrap().open(&place("bob")).await.unwrap();
        store.commit(pair(1)).await.unwrap();
        let waits = waiting_for_a_replica(&[&servers.url()]).open(&place("bob")).await.unwrap();
        waits.commit(pair(2)).await.unwrap();
        servers.leave_replica_behind();
        store.commit(pair(3)).await.unwrap();
        let waiting = tokio::spawn({
            let waits = Arc::clone(&waits);
            async move { waits.commit(pair(4)).await }
        });
        // It is at the primary.
        while store.get(&[key("left", 4)]).await.unwrap()[0].is_none() {
            tokio::task::yield_now().await;
        }
        assert!(!waiting.is_finished());
        servers.fail_over();
        assert_eq!(store.commit(pair(5)).await.unwrap_err().code(), "STORE_PUT_BACK");
        waiting.await.unwrap().unwrap();
        assert_eq!(numbers(&*waits, "left").await, [1, 2, 4]);
        assert_eq!(numbers(&*waits, "right").await, [1, 2, 4]);
        store.accept_put_back();
        store.commit(pair(5)).await.unwrap();
    }
}

#[tokio::test]
async fn a_primary_that_was_made_a_replica_is_read_no_more() {
    let (Some(old), Some(new)) = (Redis::start().unwrap(), Redis::start().unwrap()) else { return };
    let to = |server: &Redis| std::net::SocketAddr::from(([127, 0, 0, 1], server.port()));
    let proxy = ChaosProxy::start(to(&old)).unwrap();
    let store = RedisStores::new(&format!("redis://{}", proxy.address())).unwrap();
    let store = store.open(&place("bob")).await.unwrap();
    store.commit(pair(1)).await.unwrap();
    new.cli(&["replicaof", "127.0.0.1", &old.port().to_string()]).unwrap();
    stvor_testkit::until(Duration::from_secs(60), || {
        new.cli(&["info", "replication"]).ok()?.contains("master_link_status:up").then_some(())
    })
    .unwrap();
    new.cli(&["replicaof", "no", "one"]).unwrap();
    proxy.lead_to(to(&new));
    // It keeps its connections, answers what it has, and never hears of anything new.
    old.cli(&["replicaof", "127.0.0.1", "1"]).unwrap();
    assert_eq!(numbers(&*store, "left").await, [1]);
    store.commit(pair(2)).await.unwrap();
    assert_eq!(numbers(&*store, "left").await, [1, 2], "what was committed is seen");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_was_cut_off_is_left_when_its_address_leads_to_the_promoted_one() {
    let (Some(servers), Some(third)) = (RedisPair::start().unwrap(), Redis::start().unwrap()) else { return };
    let store = waiting_for_a_replica(&[&servers.url()]).open(&place("bob")).await.unwrap();
    store.commit(pair(1)).await.unwrap();
    // The old one lives on, takes what it is given, and keeps its connections.
    let (old, new) = servers.roles();
    old.cli(&["config", "set", "min-replicas-to-write", "0"]).unwrap();
    new.cli(&["replicaof", "no", "one"]).unwrap();
    third.cli(&["replicaof", "127.0.0.1", &new.port().to_string()]).unwrap();
    stvor_testkit::until(Duration::from_secs(60), || {
        third.cli(&["info", "replication"]).ok()?.contains("master_link_status:up").then_some(())
    })
    .unwrap();
    servers.proxy.lead_to(([127, 0, 0, 1], new.port()).into());
    store.commit(pair(2)).await.unwrap();
    assert_eq!(numbers(&*store, "left").await, [1, 2]);
    let rows = third.cli(&["keys", "*:rows"]).unwrap();
    assert_eq!(third.cli(&["hlen", rows.trim()]).unwrap().trim(), "4", "where it is not lost");
}

#[tokio::test]
async fn of_several_addresses_the_primary_is_taken_also_while_it_takes_no_writes() {
    let Some(servers) = RedisPair::start().unwrap() else { return };
    let (primary, replica) = servers.roles();
    let stores = RedisStores::with_options(&[&replica.url(), &primary.url()], ServerOptions::new()).unwrap();
    stores.open(&place("bob")).await.unwrap().commit(pair(1)).await.unwrap();
    primary.cli(&["config", "set", "min-replicas-to-write", "2"]).unwrap();
    let stores = RedisStores::with_options(&[&replica.url(), &primary.url()], ServerOptions::new()).unwrap();
    let store = stores.open(&place("bob")).await.unwrap();
    assert_eq!(numbers(&*store, "left").await, [1]);
    primary.cli(&["config", "set", "min-replicas-to-write", "1"]).unwrap();
    store.commit(pair(2)).await.unwrap();
    let alone = RedisStores::new(&replica.url()).unwrap();
    assert_eq!(alone.open(&place("bob")).await.unwrap_err().code(), "STORE_UNREACHABLE");
}

/// What WAIT waits for is what its own connection wrote. The answer that was lost came by another one.
#[tokio::test]
async fn a_call_that_is_repeated_is_something_for_replicas_to_have() {
    let Some(pair_of) = RedisPair::start().unwrap() else { return };
    let url = pair_of.url();
    let store = waiting_for_a_replica(&[&url]).open(&place("bob")).await.unwrap();
    store.commit(pair(1)).await.unwrap();
    let cli = |arguments: &[&str]| pair_of.roles().0.cli(arguments).unwrap();
    let meta = cli(&["keys", "*:meta"]).trim().to_owned();
    let keys = ["rows", "order", "expiry", "meta"].map(|name| meta.replace(":meta", &format!(":{name}")));
    let call = || {
        let mut call = vec!["fcall", "stvor_v5_commit", "4"];
        call.extend(keys.iter().map(String::as_str));
        call.extend(["writer", "0", "1", "S", "1", "P", "field", "*", "value-of-16-bytes", ""]);
        let offset = || {
            let about = cli(&["info", "replication"]);
            let line = about.lines().find_map(|line| line.strip_prefix("master_repl_offset:")).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        let before = offset();
        assert_eq!(cli(&call).trim(), "-1");
        offset() - before
    };
    assert!(call() > 0);
    assert!(call() > 0, "it did nothing again, and is written to replicas all the same");
}

/// A password that must not be seen.
const CANARY: &str = "canary";

#[tokio::test]
async fn urls_never_show_their_password() {
    let postgres = PostgresStores::new(&format!("postgres://user:{CANARY}@127.0.0.1:1/db")).unwrap();
    let redis = RedisStores::new(&format!("redis://:{CANARY}@127.0.0.1:1")).unwrap();
    let stores: [&dyn StoreProvider; 2] = [&postgres, &redis];
    for stores in stores {
        let error = stores.open(&place("bob")).await.unwrap_err();
        assert_eq!(error.code(), "STORE_UNREACHABLE");
        let all = format!("{stores:?} {error} {error:?}");
        assert!(!all.contains(CANARY), "{all}");
    }
    let error = PostgresStores::new(&format!("postgres://user:{CANARY}@host:port/db"));
    let error = error.unwrap_err().to_string();
    assert!(!error.contains(CANARY), "{error}");
}

const PASSPHRASE: &[u8] = b"a passphrase for tests";

fn passphrase() -> OpenKey {
    OpenKey::Passphrase(SecretBytes::from_slice(PASSPHRASE))
}

fn place_of(needle: &[u8], dump: &[u8]) -> Option<usize> {
    dump.windows(needle.len()).position(|part| part == needle)
}

/// The key that follows from the passphrase by the salt that a dump holds, raw or in hexadecimal, behind the cost.
fn key_encryption_key(dump: &[u8]) -> Vec<u8> {
    let cost = Argon2Params { memory_kib: 65_536, iterations: 3, parallelism: 1 };
    let before = [cost.memory_kib, cost.iterations, cost.parallelism].map(u32::to_be_bytes).concat();
    let salt = match place_of(&before, dump) {
        Some(at) => dump[at + 12..at + 28].to_vec(),
        None => {
            let at = place_of(hex::encode(&before).as_bytes(), dump).expect("the cost stands in the header");
            hex::decode(&dump[at + 24..at + 56]).unwrap()
        }
    };
    argon2id(PASSPHRASE, &salt, cost).unwrap().expose().to_vec()
}

/// What an attacker would look for: our own name, a peer's, a message, and keys of every kind of table.
async fn write_canaries(stores: &dyn StoreProvider) -> Sealed {
    let store = open_at(stores, &place("canary-own-name"), passphrase()).await.unwrap().store;
    let mut changes = ChangeSet::new();
    for table in Table::ALL.into_iter().filter(|table| *table != Table::Header) {
        let sort = store.tag(table, b"canary-peer-name");
        changes.put(Key::new(table, *b"canary-peer-name", sort), b"canary-content".to_vec());
    }
    store.commit(changes).await.unwrap();
    store
}

fn assert_no_canary(dump: &[u8], of: &str) {
    assert!(dump.len() > 1_000, "the dump of {of} holds something");
    let key = key_encryption_key(dump);
    for canary in [&b"canary"[..], b"a passphrase", &key] {
        for shown in [canary, hex::encode(canary).as_bytes()] {
            assert!(place_of(shown, dump).is_none(), "{} stands in {of}", String::from_utf8_lossy(canary));
        }
    }
}

#[tokio::test]
async fn a_dump_of_a_server_holds_no_name_no_key_and_no_content() {
    if let Some(server) = Postgres::start().unwrap() {
        let database = server.database().unwrap();
        let stores = PostgresStores::new(&database.url).unwrap();
        let store = write_canaries(&stores).await;
        assert_no_canary(server.dump(&database.name).unwrap().as_bytes(), "PostgreSQL");
        let other = OpenKey::Passphrase(SecretBytes::from_slice(b"another passphrase"));
        let refused = open_at(&stores, &place("canary-own-name"), other).await.unwrap_err();
        assert_eq!(refused.code(), "WRONG_KEY");
        store.close().await.unwrap();
    }
    if let Some(server) = Redis::start().unwrap() {
        let store = write_canaries(&RedisStores::new(&server.url()).unwrap()).await;
        assert_no_canary(&server.files().unwrap(), "Redis");
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_copies_over_four_openings_exactly_one_is_marked() {
    let server = Postgres::start().unwrap();
    let redis = Redis::start().unwrap();
    let cluster = RedisCluster::start().unwrap();
    let mut all: Vec<Box<dyn StoreProvider>> = Vec::new();
    if let Some(server) = &server {
        all.push(Box::new(PostgresStores::new(&server.database().unwrap().url).unwrap()));
    }
    if let Some(redis) = &redis {
        all.push(Box::new(RedisStores::new(&redis.url()).unwrap()));
    }
    if let Some(cluster) = &cluster {
        all.push(Box::new(RedisStores::new(&cluster.urls()[0]).unwrap()));
    }
    for stores in all {
        let mut openings = Vec::new();
        for _ in 0..4 {
            let opened = open_at(&*stores, &place("bob"), passphrase()).await.unwrap();
            openings.push(Arc::new(opened.store));
        }
        let (now, until) = (Timestamp::from_millis(1_000), Timestamp::from_millis(301_000));
        let marks = openings.iter().cycle().take(1_000).map(|opening| {
            let opening = Arc::clone(opening);
            tokio::spawn(async move {
                opening.check_and_mark((Table::ReplayMark, b"one message"), now, until).await.unwrap()
            })
        });
        let passed = futures::future::join_all(marks).await;
        assert_eq!(passed.into_iter().filter(|passed| *passed.as_ref().unwrap()).count(), 1);
        for opening in &openings {
            opening.close().await.unwrap();
        }
        let again = open_at(&*stores, &place("bob"), passphrase()).await.unwrap().store;
        assert!(!again.check_and_mark((Table::ReplayMark, b"one message"), now, until).await.unwrap());
    }
}

#[tokio::test]
async fn a_user_can_be_removed_and_others_stay() {
    let Some(server) = Postgres::start().unwrap() else { return };
    let stores = PostgresStores::new(&server.database().unwrap().url).unwrap();
    for user in ["alice", "bob"] {
        let store = stores.open(&place(user)).await.unwrap();
        store.commit(pair(1)).await.unwrap();
        store.close().await.unwrap();
    }
    stores.destroy(&place("alice")).await.unwrap();
    let left = stores.open(&place("alice")).await.unwrap().stats().await.unwrap();
    assert_eq!(left.rows, 1, "the note that nothing else is here on purpose");
    assert_eq!(stores.open(&place("bob")).await.unwrap().stats().await.unwrap().rows, 2);
}
