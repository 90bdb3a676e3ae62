//! A disk without room under a client. The test binary is its own child process, under a file-size limit: a limit stays with
//! the process that has it.
#![cfg(unix)]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use std::process::Command;

use common::{app_in, builder, relay, soon};

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
