//! A full disk, a damaged database, one of a newer build: a code for each, and nothing that was accepted is lost.

#![cfg(test)]

mod support;

use core::time::Duration;
use std::path::Path;

use stvor_base::ErrorCode as _;
use stvor_relay::{Config, Relay};
use stvor_testkit::temp_dir;
use stvor_wire::Code;
use stvor_wire::client::Send;
use support::{Client, Login, Place, Server, User, address, blob, blob_of, eventually, process, text_of};

#[tokio::test]
async fn relay_process_says_where_it_listens_and_serves() {
    process::serve_or_check("relay_process_says_where_it_listens_and_serves").await;
}

/// Bytes of a file on the cramped disk.
const ROOM: u64 = 2 * 1024 * 1024;

/// Sends large messages to Bob until one is refused; returns how many were accepted, and the refused one.
async fn until_full(alice: &mut Client) -> (usize, Send) {
    for number in 0..1_000 {
        let send = alice.compose(&address("bob"), blob_of(&number.to_string(), 16 * 1024));
        match alice.transmit(&send).await {
            Ok(_) => {}
            Err(nack) => {
                assert_eq!(nack.code, Code::StoreUnavailable);
                assert!(nack.retry_after > Duration::ZERO, "the sender is told when to retry");
                return (number, send);
            }
        }
    }
    panic!("a thousand messages, and the disk is not full");
}

/// Bob's messages, in order.
async fn fetch(place: &Place, bob: &User, count: usize) -> Vec<String> {
    let mut client = Login::new(place, bob).open().await;
    let mut texts = Vec::new();
    while texts.len() < count {
        let message = client.deliver().await;
        texts.push(text_of(&message.blob));
        client.ack(&[message]).await;
    }
    texts
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn full_disk_refuses_loses_nothing_and_recovers_when_there_is_room() {
    let directory = temp_dir().unwrap();
    let name = "relay_process_says_where_it_listens_and_serves";
    let relay = process::Child::start_cramped(name, directory.path(), ROOM);
    let (bob, alice) = (User::new("bob"), User::new("alice"));
    Login::new(&relay.place, &bob).open().await.close().await;
    let mut sender = Login::new(&relay.place, &alice).open().await;
    let (accepted, refused) = until_full(&mut sender).await;
    assert!(accepted > 10, "{accepted}");
    relay.make_room();
    support::accepted(sender.transmit(&refused).await);
    assert_eq!(fetch(&relay.place, &bob, accepted + 1).await, numbers(accepted + 1));
    relay.kill();
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn with_a_full_disk_a_known_device_logs_in_fetches_and_acknowledges() {
    let directory = temp_dir().unwrap();
    let name = "relay_process_says_where_it_listens_and_serves";
    let relay = process::Child::start_cramped(name, directory.path(), ROOM);
    let (bob, alice) = (User::new("bob"), User::new("alice"));
    Login::new(&relay.place, &bob).open().await.close().await;
    let mut sender = Login::new(&relay.place, &alice).open().await;
    let (accepted, _) = until_full(&mut sender).await;
    // Not one byte can be written: a log-in and what is fetched need none.
    relay.allow(Some(0));
    let mut client = Login::new(&relay.place, &bob).open().await;
    let first = client.deliver_many(10).await;
    // As full as when the message was refused: what makes room is taken.
    relay.allow(Some(ROOM));
    client.ack(&first).await;
    let mut texts: Vec<String> = first.iter().map(|message| text_of(&message.blob)).collect();
    while texts.len() < accepted {
        let message = client.deliver().await;
        texts.push(text_of(&message.blob));
        client.ack(&[message]).await;
    }
    assert_eq!(texts, numbers(accepted));
    client.until_pong().await;
    client.close().await;
    let mut again = Login::new(&relay.place, &bob).open().await;
    assert!(again.until_pong().await.is_empty(), "what was acknowledged is not offered again");
    relay.kill();
}

#[tokio::test]
async fn what_was_accepted_before_the_disk_was_full_survives_a_kill() {
    let directory = temp_dir().unwrap();
    let name = "relay_process_says_where_it_listens_and_serves";
    let relay = process::Child::start_cramped(name, directory.path(), ROOM);
    let (bob, alice) = (User::new("bob"), User::new("alice"));
    Login::new(&relay.place, &bob).open().await.close().await;
    let mut sender = Login::new(&relay.place, &alice).open().await;
    let (accepted, _) = until_full(&mut sender).await;
    relay.kill();
    let relay = process::Child::start(name, directory.path());
    assert_eq!(fetch(&relay.place, &bob, accepted).await, numbers(accepted));
    relay.kill();
}

#[tokio::test]
async fn database_is_bounded_and_takes_messages_again_when_some_were_fetched() {
    let server = Server::durable_with(|config| config.limits.database_bytes = Some(1024 * 1024)).await;
    let (bob, client) = server.user("bob").await;
    client.close().await;
    let (_, mut alice) = server.user("alice").await;
    let (accepted, refused) = until_full(&mut alice).await;
    assert!(accepted > 10, "{accepted}");
    assert_eq!(fetch(&server.place, &bob, accepted).await, numbers(accepted));
    let alice = tokio::sync::Mutex::new(alice);
    eventually("room in the database", || async { alice.lock().await.transmit(&refused).await.ok() }).await;
}

async fn start_error(database: &Path) -> (&'static str, String) {
    let error = Relay::start(Config::durable(database, 0)).await.unwrap_err();
    (error.code(), error.to_string())
}

/// A database with a message in it.
async fn with_mail() -> (stvor_testkit::temp::TempDir, std::path::PathBuf) {
    let server = Server::durable().await;
    let (_, client) = server.user("bob").await;
    client.close().await;
    let (_, mut alice) = server.user("alice").await;
    for number in 0..50 {
        alice.send(&address("bob"), blob(&number.to_string())).await;
    }
    let database = server.database();
    let Server { handle, directory, .. } = server;
    handle.shutdown().await;
    (directory.unwrap(), database)
}

#[tokio::test]
async fn truncated_database_is_refused_and_left_as_it_is() {
    let (_directory, database) = with_mail().await;
    let whole = std::fs::read(&database).unwrap();
    for length in [whole.len() / 2, 4096, 100] {
        std::fs::write(&database, &whole[..length]).unwrap();
        let (code, text) = start_error(&database).await;
        assert_eq!(code, "STORE_CORRUPT", "{length}: {text}");
        assert!(text.contains(&*database.to_string_lossy()), "{text}");
        assert_eq!(std::fs::read(&database).unwrap(), whole[..length], "{length}: the file was changed");
    }
    std::fs::write(&database, &whole).unwrap();
    Relay::start(Config::durable(&database, 0)).await.unwrap().shutdown().await;
}

#[tokio::test]
async fn file_that_is_no_database_is_refused_and_left_as_it_is() {
    let directory = temp_dir().unwrap();
    let database = directory.path().join("relay.db");
    let text = "a letter to my aunt, ".repeat(500);
    std::fs::write(&database, &text).unwrap();
    assert_eq!(start_error(&database).await.0, "STORE_CORRUPT");
    assert_eq!(std::fs::read(&database).unwrap(), text.as_bytes());
}

#[tokio::test]
async fn database_of_a_newer_build_is_refused() {
    let (_directory, database) = with_mail().await;
    let sql = rusqlite::Connection::open(&database).unwrap();
    sql.execute(
        "INSERT INTO refinery_schema_history (version, name, applied_on, checksum) SELECT 99, name, applied_on, checksum \
         FROM refinery_schema_history LIMIT 1",
        [],
    )
    .unwrap();
    drop(sql);
    assert_eq!(start_error(&database).await.0, "FORMAT_TOO_NEW");
}
