//! Backups, restores, and identities that follow from a phrase.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;
#[path = "common/tape.rs"]
mod tape;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::{app_in, builder, code, event, relay, soon};
use stvor::recipients::{Identity, Opening, Sealing};
use stvor::{
    App, BackupOptions, Client, ConnectOptions, Deed, Direction, Event, Page, RecoveryPhrase, SecretBytes,
    Suite,
};
use tape::Tape;

fn secret(text: &str) -> SecretBytes {
    SecretBytes::from_slice(text.as_bytes())
}

fn sealing() -> Sealing {
    Sealing::passphrase_with_work(&secret("correct horse"), 4).unwrap()
}

fn opening() -> Opening {
    Opening::passphrase(&secret("correct horse")).unwrap()
}

async fn talk(from: &Client, to: &Client, words: &str) {
    let mut inbox = to.messages();
    let receipt = soon(from.send(to.user().as_str(), words)).await.unwrap();
    loop {
        let message = soon(inbox.next()).await.unwrap();
        if message.text() == Some(words) {
            break;
        }
    }
    soon(receipt.delivered()).await.unwrap();
}

async fn said(client: &Client, peer: &str) -> Vec<(Direction, String)> {
    let page: Page = client.history(peer).limit(500).load().await.unwrap();
    page.messages
        .iter()
        .map(|one| (one.direction, one.content.as_text().unwrap_or_default().to_owned()))
        .collect()
}

/// Alice and Bob on disk, with a conversation.
async fn two(url: &str, root: &Path) -> (Client, Client) {
    let alice = app_in(url, &root.join("alice")).await.connect("alice").await.unwrap();
    let bob = app_in(url, &root.join("bob")).await.connect("bob").await.unwrap();
    talk(&alice, &bob, "one").await;
    talk(&bob, &alice, "two").await;
    (alice, bob)
}

async fn restore(app: &App, file: &Path, opening: Opening) -> stvor::Result<stvor::Restored> {
    app.restore(file, opening, None).await
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { waiting.push(path) } else { found.push(path) }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_user_is_the_same_person_with_the_same_history_and_fresh_sessions() {
    let (relay, root) = (relay().await, tempfile::tempdir().unwrap());
    let (alice, bob) = two(&relay.url(), root.path()).await;
    alice.safety_number("bob").await.unwrap();
    alice.verify("bob").await.unwrap();
    let (own, number) = (alice.identity(), alice.safety_number("bob").await.unwrap());
    let file = root.path().join("alice.age");
    let steps = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&steps);
    let options = BackupOptions::default().on_progress(move |progress| told.lock().unwrap().push(progress));
    let made = alice.backup(&file, sealing(), options).await.unwrap();
    assert_eq!((made.messages, made.conversations), (2, 1));
    assert_eq!(steps.lock().unwrap().last().map(|at| (at.done, at.total)), Some((1, 1)));
    assert_eq!(alice.journal(1).await.unwrap()[0].deed, Deed::BackupMade);
    // What the backup does not have.
    talk(&bob, &alice, "three").await;
    let history = said(&alice, "bob").await;
    soon(alice.close()).await;

    let app = app_in(&relay.url(), &root.path().join("restored")).await;
    let restored = restore(&app, &file, opening()).await.unwrap();
    assert_eq!((restored.user.as_str(), restored.messages), ("alice", 2));
    assert_eq!(code(restore(&app, &file, opening()).await), "RESTORE_STORE_EXISTS");
    let again = app.connect("alice").await.unwrap();
    assert_eq!(again.identity(), own);
    let same = again.safety_number("bob").await.unwrap();
    assert_eq!((same.to_string(), same.verified()), (number.to_string(), true));
    assert_eq!(said(&again, "bob").await, history[1..], "all but what came after the backup");
    let deeds: Vec<Deed> = again.journal(9).await.unwrap().iter().map(|entry| entry.deed).collect();
    assert_eq!(deeds, [Deed::Restored, Deed::IdentityVerified]);

    // Bob writes on the session that is gone: it is repaired. Then both ways, and for a stranger.
    talk(&bob, &again, "four").await;
    talk(&again, &bob, "five").await;
    let carol = app_in(&relay.url(), &root.path().join("carol")).await.connect("carol").await.unwrap();
    talk(&carol, &again, "hello").await;
    assert_eq!(bob.safety_number("alice").await.unwrap().to_string(), number.to_string());
    soon(again.close()).await;
    // The second start knows the counter that the relay told the first one.
    let third = app.connect("alice").await.unwrap();
    talk(&third, &bob, "six").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_does_not_open_changes_nothing_and_says_why() {
    let (relay, root) = (relay().await, tempfile::tempdir().unwrap());
    let (alice, _bob) = two(&relay.url(), root.path()).await;
    let file = root.path().join("alice.age");
    alice.backup(&file, sealing(), BackupOptions::default()).await.unwrap();
    assert_eq!(code(alice.backup(&file, sealing(), BackupOptions::default()).await), "BACKUP_FILE_EXISTS");
    let whole = std::fs::read(&file).unwrap();
    let target = root.path().join("restored");
    let app = app_in(&relay.url(), &target).await;
    let bad = root.path().join("bad.age");
    let mut tried = 0;
    let mut refused = async |bytes: &[u8]| {
        std::fs::write(&bad, bytes).unwrap();
        tried += 1;
        code(restore(&app, &bad, opening()).await)
    };
    let wrong = Opening::passphrase(&secret("wrong")).unwrap();
    assert_eq!(code(restore(&app, &file, wrong).await), "BACKUP_WRONG_KEY");
    let key = Opening::with(vec![Identity::generate()]);
    assert_eq!(code(restore(&app, &file, key).await), "KEY_REQUIRED");
    for length in [0, 20, 100, whole.len() / 2, whole.len() - 1] {
        assert_eq!(refused(&whole[..length]).await, "BACKUP_TRUNCATED", "{length}");
    }
    assert_eq!(refused(&[&whole[..], &[0; 3]].concat()).await, "BACKUP_TRUNCATED");
    for at in [whole.len() - 1, whole.len() / 2, whole.len() - 60_000] {
        let mut altered = whole.clone();
        altered[at] ^= 1;
        assert_eq!(refused(&altered).await, "BACKUP_CORRUPT", "{at}");
    }
    assert_eq!(refused(&[b'x'; 70_000]).await, "BACKUP_CORRUPT");
    assert_eq!(code(restore(&app, &root.path().join("none"), opening()).await), "BACKUP_IO");
    let other = builder(&relay.url()).app_id("other").data_dir(&target).open().await.unwrap();
    assert_eq!(code(restore(&other, &file, opening()).await), "BACKUP_OTHER_APP");
    assert_eq!(files(&target), Vec::<PathBuf>::new());
    assert!(tried > 8);
    restore(&app, &file, opening()).await.unwrap();
}

/// Whoever heard that it failed would make another one, and another.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_the_journal_has_no_room_for_is_made_all_the_same() {
    let tape = Tape::new(false);
    // Nobody listens there: nothing but what this test does is committed.
    let builder = builder("ws://127.0.0.1:1").store(Arc::new(tape.clone())).passphrase("a secret");
    let app = builder.open().await.unwrap();
    let options = ConnectOptions { allow_unregistered: true, ..Default::default() };
    let alice = app.connect_with("alice", options).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut events = alice.events();
    tape.end_after(0);
    let made = alice.backup(directory.path(), sealing(), BackupOptions::default().keep(3)).await.unwrap();
    assert_eq!(files(directory.path()), [made.path]);
    event(&mut events, |event| matches!(event, Event::StoreFailing { .. }).then_some(())).await;
    assert!(alice.journal(9).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_to_recipients_opens_for_each_of_them_and_holds_no_plaintext() {
    let (relay, root) = (relay().await, tempfile::tempdir().unwrap());
    let (alice, bob) = two(&relay.url(), root.path()).await;
    let canary = "CANARY-in-a-message";
    talk(&alice, &bob, canary).await;
    let (one, two) = (Identity::generate(), Identity::generate());
    let sealing = || Sealing::to(vec![one.recipient(), two.recipient()]);
    let kept = root.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    let mut made = Vec::new();
    for _ in 0..4 {
        let options = BackupOptions::default().keep(2);
        made.push(alice.backup(&kept, sealing(), options).await.unwrap());
        // Names hold milliseconds.
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    assert_eq!(made[3].removed, [made[1].path.clone()]);
    let mut left = files(&kept);
    left.sort();
    assert_eq!(left, [made[2].path.clone(), made[3].path.clone()]);
    let bytes = std::fs::read(&made[3].path).unwrap();
    for word in [canary, "alice", "STVORBAK"] {
        assert!(!bytes.windows(word.len()).any(|window| window == word.as_bytes()), "{word}");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(made[3].path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    soon(alice.close()).await;
    for (number, key) in [one, two].into_iter().enumerate() {
        let app = app_in(&relay.url(), &root.path().join(format!("restored {number}"))).await;
        restore(&app, &made[3].path, Opening::with(vec![key])).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phrase_makes_the_same_person_again_on_another_device() {
    let (relay, root) = (relay().await, tempfile::tempdir().unwrap());
    let phrase = RecoveryPhrase::fresh().unwrap();
    let words = String::from_utf8(phrase.words().expose().to_vec()).unwrap();
    let at = |name: &str| builder(&relay.url()).data_dir(root.path().join(name)).identity_phrase(&words);
    let fresh = ConnectOptions { new_identity: true, ..ConnectOptions::default() };
    let first = at("first").open().await.unwrap().connect_with("alice", fresh).await.unwrap();
    let bob = app_in(&relay.url(), &root.path().join("bob")).await.connect("bob").await.unwrap();
    talk(&first, &bob, "one").await;
    talk(&bob, &first, "two").await;
    let own = first.identity();
    assert_eq!(code(at("first").open().await.unwrap().connect_with("alice", fresh).await), "IDENTITY_EXISTS");
    soon(first.close()).await;

    let mut events = bob.events();
    let again = at("second").open().await.unwrap().connect("alice").await.unwrap();
    assert_eq!(again.identity().fingerprint, own.fingerprint);
    talk(&bob, &again, "three").await;
    talk(&again, &bob, "four").await;
    let carol = app_in(&relay.url(), &root.path().join("carol")).await.connect("carol").await.unwrap();
    talk(&carol, &again, "hello").await;
    bob.block("mallory").await.unwrap();
    talk(&again, &bob, "five").await;
    let changed = async {
        event(&mut events, |event| matches!(event, Event::IdentityChanged { .. }).then_some(())).await;
    };
    assert!(tokio::time::timeout(std::time::Duration::ZERO, changed).await.is_err(), "nobody was warned");
    // Another user of the same phrase is another person.
    let dave = at("second").open().await.unwrap().connect("dave").await.unwrap();
    assert_ne!(dave.identity().fingerprint, own.fingerprint);
    soon(again.close()).await;
    let other = RecoveryPhrase::fresh().unwrap();
    let other = String::from_utf8(other.words().expose().to_vec()).unwrap();
    let app = builder(&relay.url()).data_dir(root.path().join("second")).identity_phrase(&other);
    assert_eq!(code(app.open().await.unwrap().connect("alice").await), "IDENTITY_EXISTS");
    assert_eq!(
        code(builder(&relay.url()).in_memory().identity_phrase("one two").open().await),
        "KEY_MALFORMED"
    );
    assert_eq!(
        code(builder(&relay.url()).in_memory().identity_passphrase("too short").open().await),
        "KEY_MALFORMED"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_creators_that_race_one_makes_the_identity() {
    let (relay, root) = (relay().await, tempfile::tempdir().unwrap());
    let fresh = ConnectOptions { new_identity: true, ..ConnectOptions::default() };
    let mut racing = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let app = app_in(&relay.url(), root.path()).await;
        racing.spawn(async move { app.connect_with("alice", fresh).await });
    }
    let results = soon(racing.join_all()).await;
    let made: Vec<_> = results.iter().filter_map(|one| one.as_ref().ok()).collect();
    assert_eq!(made.len(), 1);
    for lost in results.iter().filter_map(|one| one.as_ref().err()) {
        assert_eq!(lost.code(), "IDENTITY_EXISTS");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_takes_the_place_of_another_is_noted_with_who_and_when() {
    let (relay, root) = (relay().await, tempfile::tempdir().unwrap());
    let alice = builder(&relay.url()).in_memory().actor("operator 7").open().await.unwrap();
    let alice = alice.connect("alice").await.unwrap();
    let bob = app_in(&relay.url(), &root.path().join("bob")).await.connect("bob").await.unwrap();
    talk(&alice, &bob, "one").await;
    let old = bob.identity().fingerprint;
    soon(bob.close()).await;
    let lost = builder(&relay.url()).data_dir(root.path().join("new")).replace_identity(true);
    let bob = lost.open().await.unwrap().connect("bob").await.unwrap();
    alice.accept_identity("bob").await.unwrap();
    let entry = alice.journal(1).await.unwrap().remove(0);
    assert_eq!(
        (entry.deed, entry.who.as_str(), entry.subject.as_str()),
        (Deed::IdentityAccepted, "operator 7", "bob")
    );
    assert_eq!(entry.detail, format!("{old} -> {}", bob.identity().fingerprint));
    assert!(entry.at.as_millis() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_a_store_change_and_rotate_under_a_client_that_works() {
    let (relay, root) = (relay().await, tempfile::tempdir().unwrap());
    let (alice, bob) = two(&relay.url(), root.path()).await;
    let mut rows = 0;
    alice.rotate_key(|at| rows = at.total).await.unwrap();
    assert!(rows > 10);
    // What memory knows of its rows is of before.
    alice.export_bundle().await.unwrap();
    talk(&bob, &alice, "three").await;
    talk(&alice, &bob, "four").await;
    let new = root.path().join("elsewhere.key");
    alice.change_key(stvor::store::OpenKey::Keyfile(new.clone())).await.unwrap();
    assert_eq!(code(alice.rotate_key(|_| {}).await), "WRONG_KEY", "the app was set up with the old key");
    let deeds: Vec<Deed> = alice.journal(2).await.unwrap().iter().map(|entry| entry.deed).collect();
    assert_eq!(deeds, [Deed::KeyChanged, Deed::KeyRotated]);
    soon(alice.close()).await;
    let data = root.path().join("alice");
    assert_eq!(code(app_in(&relay.url(), &data).await.connect("alice").await), "WRONG_KEY");
    let app = builder(&relay.url()).data_dir(&data).keyfile(&new).open().await.unwrap();
    let alice = app.connect("alice").await.unwrap();
    assert_eq!(said(&alice, "bob").await.len(), 4);
    assert_eq!(alice.store_info().await.unwrap().rotations, 1);
    talk(&alice, &bob, "five").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_finds_words_in_any_case_page_by_page() {
    let relay = relay().await;
    let (alice, bob) = common::pair(&relay.url()).await;
    for number in 0..30 {
        let words = if number % 3 == 0 { format!("Invoice {number}") } else { format!("note {number}") };
        talk(&alice, &bob, &words).await;
    }
    let mut found = Vec::new();
    let mut cursor = None;
    loop {
        let page = bob.history("alice").containing("iNVOICE").limit(4).before(cursor).load().await.unwrap();
        assert!(page.messages.len() <= 4);
        found.extend(page.messages.iter().map(|one| one.content.as_text().unwrap_or_default().to_owned()));
        cursor = page.before;
        if cursor.is_none() {
            break;
        }
    }
    let expected: Vec<String> = (0..10).rev().map(|number| format!("Invoice {}", number * 3)).collect();
    assert_eq!(found, expected);
    assert!(bob.history("alice").containing("nowhere").load().await.unwrap().messages.is_empty());
}

fn fixture(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/backup-v{version}.age"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_each_version_restores() {
    for version in [1, 2] {
        let (relay, root) = (relay().await, tempfile::tempdir().unwrap());
        let app = app_in(&relay.url(), root.path()).await;
        let restored = restore(&app, &fixture(version), opening()).await.unwrap();
        assert_eq!((restored.user.as_str(), restored.messages, restored.conversations), ("alice", 2, 1));
        let alice = app.connect("alice").await.unwrap();
        let words = [(Direction::In, "two".to_owned()), (Direction::Out, "one".to_owned())];
        assert_eq!(said(&alice, "bob").await, words);
        assert_eq!(alice.peers().await.unwrap()[0].verified, Some(true));
    }
}

/// Made the fixture of each version when that was the one that is written.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes a fixture"]
async fn write_the_fixture() {
    let (relay, root) = (relay().await, tempfile::tempdir().unwrap());
    let (alice, _bob) = two(&relay.url(), root.path()).await;
    alice.safety_number("bob").await.unwrap();
    alice.verify("bob").await.unwrap();
    std::fs::create_dir_all(fixture(2).parent().unwrap()).unwrap();
    alice.backup(fixture(2), sealing(), BackupOptions::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_another_suite_than_the_app_asks_for_is_refused_before_anything_is_written() {
    let relay = relay().await;
    let root = tempfile::tempdir().unwrap();
    let app = |name: &str, suite| builder(&relay.url()).data_dir(root.path().join(name)).suite(suite).open();
    let alice = app("first", Suite::X25519).await.unwrap().connect("alice").await.unwrap();
    let own = alice.identity().fingerprint;
    let file = root.path().join("alice.age");
    alice.backup(&file, sealing(), BackupOptions::default()).await.unwrap();
    alice.close().await;
    let wrong = app("second", Suite::P256).await.unwrap();
    assert_eq!(code(restore(&wrong, &file, opening()).await), "SUITE_FIXED");
    drop(wrong);
    let right = app("second", Suite::X25519).await.unwrap();
    restore(&right, &file, opening()).await.unwrap();
    assert_eq!(right.connect("alice").await.unwrap().identity().fingerprint, own);
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restoring_on_a_second_machine_while_the_first_lives_is_told_on_both() {
    let (relay, root) = (relay().await, tempfile::tempdir().unwrap());
    let (alice, bob) = two(&relay.url(), root.path()).await;
    let mut events = alice.events();
    let file = root.path().join("alice.age");
    alice.backup(&file, sealing(), BackupOptions::default()).await.unwrap();
    let second = app_in(&relay.url(), &root.path().join("second")).await;
    restore(&second, &file, opening()).await.unwrap();
    assert_eq!(code(second.connect("alice").await), "CLONE_DETECTED");
    event(&mut events, |event| matches!(event, Event::CloneDetected).then_some(())).await;
    talk(&alice, &bob, "goes on").await;
    alice.close().await;
    let restored = second.connect("alice").await.unwrap();
    talk(&bob, &restored, "to the second").await;
}

/// Two machines are told to restore one user into one place of a server.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_restores_into_one_place_the_later_one_is_whole_and_the_other_says_so() {
    let (relay, root) = (relay().await, tempfile::tempdir().unwrap());
    let (alice, bob) = two(&relay.url(), root.path()).await;
    // More than goes into one commit.
    let long = "x".repeat(50_000);
    for _ in 0..30 {
        soon(alice.send("bob", long.as_str())).await.unwrap();
    }
    let file = root.path().join("alice.age");
    let made = alice.backup(&file, sealing(), BackupOptions::default()).await.unwrap();
    alice.close().await;
    drop(bob);
    let tape = Tape::new(true);
    let machine = |name: &str| {
        let builder = builder(&relay.url()).store(Arc::new(tape.clone())).data_dir(root.path().join(name));
        builder.keyfile(root.path().join("key")).open()
    };
    let (first, second) = (machine("first").await.unwrap(), machine("second").await.unwrap());
    let (halfway, is_halfway) = tokio::sync::oneshot::channel();
    let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
    let stops = Mutex::new(Some((halfway, goes_on)));
    let told: stvor::OnProgress = Arc::new(move |_| {
        if let Some((halfway, goes_on)) = stops.lock().unwrap().take() {
            let _ = halfway.send(());
            let _ = goes_on.recv();
        }
    });
    let slow = tokio::spawn({
        let (first, file) = (first.clone(), file.clone());
        async move { first.restore(&file, opening(), Some(told)).await }
    });
    soon(is_halfway).await.unwrap();
    let whole = soon(restore(&second, &file, opening())).await.unwrap();
    assert_eq!(whole.messages, made.messages);
    go_on.send(()).unwrap();
    assert_eq!(code(soon(slow).await.unwrap()), "STORE_CONFLICT");
    let alice = second.connect("alice").await.unwrap();
    assert_eq!(said(&alice, "bob").await.len() as u64, made.messages);
    assert_eq!(code(restore(&first, &file, opening()).await), "RESTORE_STORE_EXISTS");
}
