//! Locks, damage, full disks and killed processes. The test binary is its own child process: `STVOR_STORE_CHILD` says
//! what it does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use stvor_base::ErrorCode;
use stvor_store::{ChangeSet, Key, Op, OpenKey, Scan, Sealed, StoreError, Table, open};

fn key(partition: &str, sort: u64) -> Key {
    Key::new(Table::Custom, partition, sort.to_be_bytes())
}

async fn put(store: &Sealed, key: Key, value: &[u8]) -> Result<(), StoreError> {
    store.commit([Op::put(key, value.to_vec())].into_iter().collect()).await.map(|_| ())
}

async fn stored(store: &Sealed, partition: &str) -> Vec<u64> {
    let records = store.scan_all(Scan::of(Table::Custom, partition), usize::MAX).await.unwrap();
    records.iter().map(|record| u64::from_be_bytes(record.key.sort.clone().try_into().unwrap())).collect()
}

fn command(role: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture", "--ignored"]);
    command.env("STVOR_STORE_CHILD", role).env("STVOR_STORE_PATH", path).stdout(Stdio::piped());
    command
}

struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a child printed after its marker, line by line.
fn lines(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    lines.filter_map(|line| line.split_once("@@").map(|(_, said)| said.to_owned()))
}

fn say(what: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@@{what}").unwrap();
    out.flush().unwrap();
}

/// The child process, not a test of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is the child of the other tests"]
async fn child() {
    let Ok(role) = std::env::var("STVOR_STORE_CHILD") else { return };
    let path = PathBuf::from(std::env::var("STVOR_STORE_PATH").unwrap());
    let store = std::sync::Arc::new(open(&path, OpenKey::Default).await.unwrap().store);
    match role.as_str() {
        "hold" => {
            say("open");
            std::future::pending::<()>().await;
        }
        "commit" => {
            for task in 0..8_u64 {
                let store = store.clone();
                tokio::spawn(async move {
                    for number in 0.. {
                        let mut changes = ChangeSet::new();
                        for half in ["left", "right"] {
                            changes.insert(key(&format!("{half}{task}"), number), vec![7; 2_000]);
                        }
                        store.commit(changes).await.unwrap();
                        say(format!("{task} {number}"));
                    }
                });
            }
            std::future::pending::<()>().await;
        }
        "fill" => {
            for number in 0..10_000 {
                match put(&store, key("a", number), &[7; 20_000]).await {
                    Ok(()) => say(number),
                    Err(error) => {
                        say(error.code());
                        // What was there before reads back, and the store goes on reading.
                        say(stored(&store, "a").await.len());
                        return;
                    }
                }
            }
        }
        role => panic!("no role {role}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_refused_by_pid_until_the_holder_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    let mut holder = Reaped(command("hold", &path).spawn().unwrap());
    assert_eq!(lines(&mut holder.0).next().as_deref(), Some("open"));
    match open(&path, OpenKey::Default).await {
        Err(StoreError::Locked { pid, .. }) => assert_eq!(pid, Some(holder.0.id())),
        other => panic!("{other:?}"),
    }
    let destroyed = stvor_store::destroy(&path).await.unwrap_err();
    assert_eq!(destroyed.code(), "STORE_LOCKED");
    holder.0.kill().unwrap();
    holder.0.wait().unwrap();
    open(&path, OpenKey::Default).await.unwrap();
}

#[tokio::test]
async fn a_second_opening_in_this_process_is_refused_until_the_first_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    let first = open(&path, OpenKey::Default).await.unwrap();
    let error = open(&path, OpenKey::Default).await.unwrap_err();
    assert_eq!(error.code(), "STORE_LOCKED");
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    drop(first);
    open(&path, OpenKey::Default).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_leaves_every_acknowledged_commit_and_no_half_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    for (round, acknowledged) in [1, 10, 100, 300].into_iter().enumerate() {
        let path = path.with_extension(round.to_string());
        let mut committer = Reaped(command("commit", &path).spawn().unwrap());
        let mut said = lines(&mut committer.0);
        let mut seen: Vec<String> = said.by_ref().take(acknowledged).collect();
        committer.0.kill().unwrap();
        // What it said before it died counts as well; a last line may be cut.
        seen.extend(said);
        committer.0.wait().unwrap();
        let store = open(&path, OpenKey::Default).await.unwrap().store;
        let mut rows = std::collections::BTreeMap::new();
        for task in 0..8 {
            let left = stored(&store, &format!("left{task}")).await;
            assert_eq!(left, stored(&store, &format!("right{task}")).await, "no half of a change set");
            assert_eq!(left, (0..left.len() as u64).collect::<Vec<_>>(), "no gap");
            rows.insert(task, left);
        }
        assert!(seen.len() >= acknowledged);
        for line in seen {
            let Some((task, number)) = line.split_once(' ') else { continue };
            let (Ok(task), Ok(number)) = (task.parse::<i32>(), number.parse::<u64>()) else { continue };
            assert!(rows[&task].contains(&number), "acknowledged {line} is there");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_size_limit_is_a_full_store_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    let inner = command("fill", &path);
    let mut limited = Command::new("sh");
    limited.arg("-c").arg("trap '' XFSZ; ulimit -f 2048; exec \"$@\"").arg("sh").arg(inner.get_program());
    limited.args(inner.get_args()).stdout(Stdio::piped());
    limited.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut process = Reaped(limited.spawn().unwrap());
    let mut said: Vec<String> = lines(&mut process.0).collect();
    let read_back: usize = said.pop().unwrap().parse().unwrap();
    assert_eq!(said.pop().as_deref(), Some("STORE_FULL"));
    assert!(!said.is_empty());
    assert_eq!(read_back, said.len());
    process.0.wait().unwrap();
    // With room again everything acknowledged is there, nothing else, and writing goes on.
    let store = open(&path, OpenKey::Default).await.unwrap().store;
    assert_eq!(stored(&store, "a").await, (0..said.len() as u64).collect::<Vec<_>>());
    put(&store, key("a", 99_999), b"more").await.unwrap();
}

/// A crash in the middle of a write to the journal: whatever is there of its last page, or whatever stands in its place,
/// everything that was acknowledged before is there, and writing goes on.
#[tokio::test]
async fn a_torn_last_page_of_the_journal_takes_nothing_with_it_that_was_acknowledged_before() {
    // Of SQLite's journal: a head, and before each page a head of its own.
    const HEAD: usize = 32;
    const FRAME: usize = 24 + 4096;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    let store = open(&path, OpenKey::Default).await.unwrap().store;
    for number in 0..40 {
        put(&store, key("a", number), &[7; 1_000]).await.unwrap();
    }
    let file = |of: &Path, end: &str| of.with_file_name(format!("s.db{end}"));
    let [database, journal] = ["", "-wal"].map(|end| std::fs::read(file(&path, end)).unwrap());
    assert!((journal.len() - HEAD).is_multiple_of(FRAME), "{}", journal.len());
    assert!((journal.len() - HEAD) / FRAME >= 40, "all of it is in the journal");
    let last = journal.len() - FRAME;
    let mut torn: Vec<(Vec<u8>, usize)> = vec![(journal.clone(), 40)];
    for kept in [0, 1, 23, 24, 25, 512, 2_048, FRAME - 512, FRAME - 1] {
        torn.push((journal[..last + kept].to_vec(), 39));
        // The file has its length, and the sectors after that never came.
        let mut zeros = journal.clone();
        zeros[last + kept..].fill(0);
        torn.push((zeros, 39));
        let mut others = journal.clone();
        others[last + kept..].fill(0xa5);
        torn.push((others, 39));
    }
    for (number, (bytes, wanted)) in torn.into_iter().enumerate() {
        let crashed = directory.path().join(format!("crash{number}"));
        std::fs::create_dir(&crashed).unwrap();
        let (keyfile, path) = (file(&path, ".key"), crashed.join("s.db"));
        std::fs::write(&path, &database).unwrap();
        std::fs::copy(keyfile, file(&path, ".key")).unwrap();
        std::fs::write(file(&path, "-wal"), bytes).unwrap();
        let store = open(&path, OpenKey::Default).await.unwrap().store;
        assert_eq!(stored(&store, "a").await, (0..wanted as u64).collect::<Vec<_>>(), "{number}");
        put(&store, key("a", 99), b"more").await.unwrap();
        store.close().await.unwrap();
        let store = open(&path, OpenKey::Default).await.unwrap().store;
        assert_eq!(stored(&store, "a").await.len(), wanted + 1, "{number}");
    }
}

async fn filled(path: &Path) -> Vec<u8> {
    let store = open(path, OpenKey::Default).await.unwrap().store;
    for number in 0..40 {
        put(&store, key("a", number), &[7; 1_000]).await.unwrap();
    }
    store.close().await.unwrap();
    std::fs::read(path).unwrap()
}

#[tokio::test]
async fn cut_and_overwritten_databases_are_damaged_stores_and_stay_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    let good = filled(&path).await;
    let mut damaged: Vec<Vec<u8>> =
        [0, 1, 50, 100, 4096, good.len() / 2, good.len() - 1].map(|length| good[..length].to_vec()).into();
    damaged.push(b"not a database at all, but long enough to look at".repeat(100));
    let mut overwritten = good.clone();
    overwritten[..4096].fill(0xa5);
    damaged.push(overwritten);
    for bytes in damaged {
        std::fs::write(&path, &bytes).unwrap();
        let opened = open(&path, OpenKey::Default).await;
        let error = opened.map(|_| bytes.len()).expect_err("damage");
        assert_eq!(error.code(), "STORE_CORRUPT", "{} bytes: {error}", bytes.len());
        assert!(std::fs::read(&path).unwrap() == bytes, "the evidence is not touched");
    }
    std::fs::write(&path, &good).unwrap();
    let store = open(&path, OpenKey::Default).await.unwrap().store;
    assert_eq!(stored(&store, "a").await.len(), 40);
}

#[tokio::test]
async fn whichever_page_is_overwritten_no_altered_row_is_ever_returned() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    let good = filled(&path).await;
    let mut noticed = 0;
    let pages = good.len() / 4096;
    for page in 0..pages {
        let mut overwritten = good.clone();
        overwritten[page * 4096 + 100..(page + 1) * 4096].fill(0xa5);
        std::fs::write(&path, &overwritten).unwrap();
        let read = async {
            let store = open(&path, OpenKey::Default).await?.store;
            let records = store.scan_all(Scan::of(Table::Custom, *b"a"), usize::MAX).await?;
            Ok::<_, StoreError>(records)
        };
        match read.await {
            Err(error) => {
                assert!(["STORE_CORRUPT", "ROW_TAMPERED"].contains(&error.code()), "page {page}: {error}");
                noticed += 1;
            }
            // A page that holds no row (a pointer map, free pages).
            Ok(records) => {
                assert_eq!(records.len(), 40, "page {page}");
                assert!(records.iter().all(|record| record.value.expose() == [7; 1_000]), "page {page}");
            }
        }
    }
    assert!(noticed >= 10, "{noticed} of {pages} pages hold rows, indexes or the schema");
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused_and_untouched() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    filled(&path).await;
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 2).unwrap();
    let newer = std::fs::read(&path).unwrap();
    let error = open(&path, OpenKey::Default).await.unwrap_err();
    assert_eq!(error.code(), "STORE_TOO_NEW");
    assert!(std::fs::read(&path).unwrap() == newer);
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 1).unwrap();
    let store = open(&path, OpenKey::Default).await.unwrap().store;
    assert_eq!(stored(&store, "a").await.len(), 40);
}

#[tokio::test]
async fn a_path_that_is_a_directory_or_lies_under_a_file_is_refused_with_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let error = open(directory.path().join("file/x/s.db"), OpenKey::Default).await;
    error.unwrap();
    std::fs::write(directory.path().join("plain"), b"").unwrap();
    let error = open(directory.path().join("plain/s.db"), OpenKey::Default).await.unwrap_err();
    assert_eq!(error.code(), "STORE_IO");
    assert!(error.to_string().contains("plain"), "{error}");
}
