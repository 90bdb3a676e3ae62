//! A disk without room under a client. The test binary is its own child process: under a file-size limit, which stays with the
//! process that has it, or with a small file system of its own.
#![cfg(unix)]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{app, app_in, builder, durable, relay, soon};
use stvor::{Client, Event};
use stvor_testkit::mount::in_a_mount;
use stvor_testkit::{Process, Spawn, Stream, until};
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// The child process, not a test of its own: sends until it may not, and says what was taken.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is the child of the other test"]
async fn child() {
    let Ok(url) = std::env::var("STVOR_FULL_RELAY") else { return };
    let directory = std::env::var("STVOR_FULL_DIRECTORY").unwrap();
    let app = app_in(&url, directory.as_ref()).await;
    let alice = soon(app.connect("alice")).await.unwrap();
    let mut taken = 0;
    let error = loop {
        match soon(alice.send("bob", format!("{taken} {}", "x".repeat(20_000)))).await {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    println!("@@{} {taken}", error.code());
    assert!(error.retryable(), "{error}");
    // Reading goes on.
    assert_eq!(alice.history("bob").limit(500).load().await.unwrap().messages.len(), taken);
    soon(app.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_messages_by_code_loses_none_and_takes_them_again_with_room() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let theirs = builder(&relay.url()).in_memory().open().await.unwrap();
    let bob = theirs.connect("bob").await.unwrap();
    let mut inbox = bob.messages();
    let mut limited = Command::new("sh");
    // 512-byte blocks: 2 MiB a file.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 4096; exec \"$@\"", "sh"]);
    limited.arg(std::env::current_exe().unwrap()).args(["--exact", "child", "--nocapture", "--ignored"]);
    limited.env("STVOR_FULL_RELAY", relay.url()).env("STVOR_FULL_DIRECTORY", directory.path());
    let output = tokio::task::spawn_blocking(move || limited.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let said = text.lines().find_map(|line| line.split_once("@@")).expect("the child says how it went").1;
    let (code, taken) = said.split_once(' ').unwrap();
    assert_eq!(code, "STORE_FULL");
    let taken: usize = taken.trim().parse().unwrap();
    assert!(taken > 3, "{taken}");

    let app = app_in(&relay.url(), directory.path()).await;
    let alice = soon(app.connect("alice")).await.unwrap();
    soon(alice.send("bob", format!("{taken} with room"))).await.unwrap();
    for number in 0..=taken {
        let message = soon(inbox.next()).await.unwrap();
        let first = message.text().unwrap().split(' ').next().unwrap().to_owned();
        assert_eq!(
            first,
            number.to_string(),
            "everything that was taken arrives, once and in order, nothing else"
        );
    }
}

/// A file whose end is the room that comes back.
const BALLAST: &str = "ballast";

/// Bytes of a message.
const MESSAGE: usize = 60_000;

/// The disk, and the ballast while it fills by messages alone. The room that this leaves is more than a whole journal of the store
/// (16 MiB) and less than what is in one twice: what finds no room at first is the merging of the journal. Without the ballast
/// there is room for everything.
const DISK: &str = "64m";
const LARGE_BALLAST: usize = 40 << 20;

/// Bytes of a journal that is to be merged, at least.
const JOURNAL: u64 = 16_000_000;

/// Messages that are on their way at once while the disk fills.
const AHEAD: usize = 8;

/// Messages that come while the disk is full: far more than fits into what a killed process leaves.
const LATE: usize = 12;

/// Takes so much of the disk, or all that is left.
fn lay_ballast(disk: &Path, bytes: Option<usize>) {
    let mut file = fs::File::create(disk.join(BALLAST)).unwrap();
    match bytes {
        Some(bytes) => file.write_all(&vec![0; bytes]).unwrap(),
        None => while file.write_all(&[0; 4_096]).is_ok() {},
    }
}

/// How many messages for Bob the relay keeps.
fn in_the_mailbox(relay: &Path) -> usize {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let database = rusqlite::Connection::open_with_flags(relay.join("relay.db"), flags).unwrap();
    let count = "SELECT count(*) FROM messages JOIN devices ON devices.id = messages.device
                 JOIN users ON users.id = devices.user WHERE users.name = 'bob'";
    let count: i64 = database.query_row(count, [], |row| row.get(0)).unwrap();
    usize::try_from(count).unwrap()
}

fn number_of(text: &str) -> usize {
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Bob, in a process of his own.
struct Bob(Process);

impl Bob {
    fn start(url: &str, directory: &Path) -> Self {
        let binary = std::env::current_exe().unwrap();
        let spawn = Spawn::new(binary).args(["--exact", "receiver", "--nocapture", "--ignored"]).name("bob");
        let spawn = spawn.env("STVOR_FULL_RECEIVER", url).env("STVOR_FULL_DIRECTORY", directory);
        Self(spawn.with_input().start().unwrap())
    }

    /// What follows a word in all that he said so far.
    fn said(&self, word: &str) -> Vec<String> {
        let rest = |line: &String| Some(line.split_once("@@")?.1.strip_prefix(word)?.trim().to_owned());
        self.0.lines(Stream::Out).iter().filter_map(rest).collect()
    }

    /// Waits until so many messages were shown, or he was told so often that his store fails.
    fn wait_for(&self, shown: usize, told: usize) {
        let (mut of_shown, mut of_told) = (0, 0);
        let enough = |_: Stream, line: &str| {
            of_shown += usize::from(line.contains("@@shown "));
            of_told += usize::from(line.contains("@@told "));
            of_shown >= shown || of_told >= told
        };
        self.0.wait_line(common::PATIENCE, enough).unwrap();
    }

    /// Numbers and ids of what was shown.
    fn shown(&self) -> Vec<(usize, String)> {
        let parts = |said: String| {
            let (number, id) = said.split_once(' ').unwrap();
            (number.parse().unwrap(), id.to_owned())
        };
        self.said("shown").into_iter().map(parts).collect()
    }

    /// How many messages are in his store, all of them in order, and how long its journal is.
    fn stored(&self) -> (usize, u64) {
        let before = self.said("stored").len();
        self.0.write_line("stored").unwrap();
        let mut answers = 0;
        let answer = self.0.wait_line(common::PATIENCE, |_, line| {
            answers += usize::from(line.contains("@@stored "));
            answers > before
        });
        let answer = answer.unwrap();
        let (count, journal) = answer.split_once("@@stored ").unwrap().1.split_once(' ').unwrap();
        (count.parse().unwrap(), journal.trim().parse().unwrap())
    }
}

/// Bob's process, not a test of its own: says what he is shown and told, until its input ends.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is the child of another test"]
async fn receiver() {
    let Ok(url) = std::env::var("STVOR_FULL_RECEIVER") else { return };
    let directory = PathBuf::from(std::env::var("STVOR_FULL_DIRECTORY").unwrap());
    let app = builder(&url).data_dir(&directory).open().await.unwrap();
    let bob = match soon(app.connect("bob")).await {
        Ok(bob) => bob,
        Err(error) => return println!("@@refused {}", error.code()),
    };
    let journal = bob.data_path().unwrap().join("store.db-wal");
    let (mut inbox, mut events) = (bob.messages(), bob.events());
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            if let Event::StoreFailing { code } = event {
                println!("@@told {code}");
            }
        }
    });
    println!("@@ready");
    let mut questions = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            message = inbox.next() => {
                let message = message.unwrap();
                println!("@@shown {} {}", number_of(message.text().unwrap()), message.id);
            }
            question = questions.next_line() => {
                if question.unwrap().is_none() {
                    break;
                }
                let numbers = history(&bob).await;
                assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>(), "once, in order, without a gap");
                println!("@@stored {} {}", numbers.len(), fs::metadata(&journal).unwrap().len());
            }
        }
    }
    soon(app.close()).await.unwrap();
}

/// The numbers of what Bob has of Alice, oldest first.
async fn history(bob: &Client) -> Vec<usize> {
    let (mut numbers, mut before) = (Vec::new(), None);
    loop {
        let page = bob.history("alice").limit(500).before(before).load().await.unwrap();
        numbers.extend(page.messages.iter().map(|message| number_of(message.content.as_text().unwrap())));
        before = page.before;
        if before.is_none() {
            numbers.reverse();
            return numbers;
        }
    }
}

async fn send(alice: &Client, sent: &mut usize) {
    soon(alice.send("bob", format!("{sent} {}", "x".repeat(MESSAGE)))).await.unwrap();
    *sent += 1;
}

/// Fills Bob's disk with messages until he is told, once more, that there is no room; others come after that. What his store
/// does not have is at the relay.
async fn fill(alice: &Client, (bob, relay): (&Bob, &Path), sent: &mut usize) {
    let told = bob.said("told").len();
    while bob.said("told").len() == told {
        assert!(*sent < 2_000, "the disk is never full");
        send(alice, sent).await;
        bob.wait_for((*sent).saturating_sub(AHEAD), told + 1);
    }
    for _ in 0..LATE {
        send(alice, sent).await;
    }
    // In this order: what is stored between the two looks is in both.
    let kept = in_the_mailbox(relay);
    let (stored, journal) = bob.stored();
    assert!(stored < *sent, "all {stored} found room");
    assert!(kept >= *sent - stored, "of {sent} messages {stored} are stored, and only {kept} at the relay");
    assert!(journal > JOURNAL, "{journal}");
    assert!(bob.said("told").iter().all(|code| code == "STORE_FULL"), "{:?}", bob.said("told"));
}

/// Alice, the relay, and Bob's disk; not a test of its own: runs where the disk is.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is the child of another test"]
async fn on_a_small_disk() {
    let Ok(disk) = std::env::var("STVOR_FULL_DISK").map(PathBuf::from) else { return };
    let home = tempfile::tempdir().unwrap();
    let relay = durable(home.path(), 0).await;
    let alice = app(&relay.url()).await.connect("alice").await.unwrap();
    lay_ballast(&disk, Some(LARGE_BALLAST));
    let directory = disk.join("bob");
    let bob = Bob::start(&relay.url(), &directory);
    bob.0.wait_for("@@ready", common::PATIENCE).unwrap();
    let mut sent = 0;

    fill(&alice, (&bob, home.path()), &mut sent).await;
    fs::remove_file(disk.join(BALLAST)).unwrap();
    bob.wait_for(sent, usize::MAX);
    let numbers = |shown: &[(usize, String)]| shown.iter().map(|(number, _)| *number).collect::<Vec<_>>();
    assert_eq!(numbers(&bob.shown()), (0..sent).collect::<Vec<_>>(), "each once and in order");
    let empty = || (in_the_mailbox(home.path()) == 0).then_some(());
    until(common::PATIENCE, empty).expect("what is stored is acknowledged");

    lay_ballast(&disk, None);
    fill(&alice, (&bob, home.path()), &mut sent).await;
    bob.0.kill().unwrap();
    bob.0.wait_log_end(common::PATIENCE).unwrap();
    let before = bob.shown();
    assert_eq!(numbers(&before), (0..before.len()).collect::<Vec<_>>());
    // While there is still no room he starts and is told so, or does not start.
    let mut bob = Bob::start(&relay.url(), &directory);
    let begun = |_: Stream, line: &str| line.contains("@@ready") || line.contains("@@refused ");
    bob.0.wait_line(common::PATIENCE, begun).unwrap();
    let refused = bob.said("refused");
    if refused.is_empty() {
        bob.wait_for(usize::MAX, 1);
        assert!(bob.said("told").iter().all(|code| code == "STORE_FULL"), "{:?}", bob.said("told"));
        fs::remove_file(disk.join(BALLAST)).unwrap();
    } else {
        assert_eq!(refused, ["STORE_FULL"]);
        fs::remove_file(disk.join(BALLAST)).unwrap();
        bob = Bob::start(&relay.url(), &directory);
    }
    bob.0.wait_for(&format!("@@shown {} ", sent - 1), common::PATIENCE).unwrap();
    let after = bob.shown();
    // What was shown last may have been shown in vain, and is shown again, as what it was.
    let (again, fresh): (Vec<_>, Vec<_>) = after.into_iter().partition(|(number, _)| *number < before.len());
    let rising = again.is_sorted_by(|one, next| one.0 < next.0);
    assert!(rising && again.iter().all(|one| before.contains(one)), "{again:?}");
    assert_eq!(numbers(&fresh), (before.len()..sent).collect::<Vec<_>>(), "each once and in order");
    assert_eq!(bob.stored().0, sent);
    until(common::PATIENCE, empty).expect("what is stored is acknowledged");
    bob.0.close_input();
    assert!(bob.0.wait_exit(common::PATIENCE).unwrap().success());
    println!("@@done");
}

#[test]
fn what_comes_to_a_full_disk_stays_at_the_relay_and_arrives_once_and_in_order_with_room() {
    let disk = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o size={DISK} none \"$0\" && exec \"$@\"");
    let Some([program, words @ ..]) = in_a_mount(&script, disk.path().to_str().unwrap()) else { return };
    let mut child = Command::new(program);
    child.args(words).arg(std::env::current_exe().unwrap());
    child
        .args(["--exact", "on_a_small_disk", "--nocapture", "--ignored"])
        .env("STVOR_FULL_DISK", disk.path());
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && text.contains("@@done"), "{text}\n{errors}");
}
