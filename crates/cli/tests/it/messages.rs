//! Messages between real processes, through a real relay.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use crate::common::{Home, SOON, TOKEN, all, find, finished, listening, mock_relay, objects};
use stvor_testkit::{Signal, Stream, until};

/// Lines that a listener may have printed and not acknowledged.
const UNACKNOWLEDGED: usize = 16;

#[test]
fn each_line_arrives_once_in_order_under_the_id_of_its_receipt() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let bob = listening(&home, "listen --as bob --count 3 --json");
    let sent = home.feed("send --as alice --to bob --lines --json", "one\ntwo\nthree ü 🙂\n");
    assert_eq!(sent.code, Some(0), "{}", sent.err);
    assert_eq!(finished(&bob), Some(0));
    let (receipts, messages) = (objects(&sent.out), objects(&bob.lines(Stream::Out)));
    assert_eq!(all(&messages, "text"), ["one", "two", "three ü 🙂"]);
    assert_eq!(all(&messages, "id"), all(&receipts, "id"));
    assert_eq!(all(&messages, "from"), ["alice", "alice", "alice"]);
    assert!(
        messages.iter().all(|message| message["sent_at"].as_str().is_some_and(|time| time.ends_with('Z')))
    );
    assert!(receipts.iter().all(|receipt| receipt["to"] == "bob"));
    assert!(
        all(&receipts, "status")
            .iter()
            .all(|status| ["accepted", "delivered", "read"].contains(&status.as_str()))
    );
}

#[test]
fn standard_input_is_one_message_without_lines_and_a_file_is_sent_as_it_is() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let bob = listening(&home, "listen --as bob --count 3 --json");
    assert_eq!(home.feed("send --as alice --to bob", "two\nlines").code, Some(0));
    let (text, bytes) = (home.path("text"), home.path("bytes"));
    std::fs::write(&text, "from a file\n").unwrap();
    std::fs::write(&bytes, [0xff, 0x00, 0x01]).unwrap();
    for file in [&text, &bytes] {
        let sent = home.run(&format!("send --as alice --to bob --file {}", file.display()));
        assert_eq!(sent.status.code(), Some(0), "{}", sent.err);
    }
    assert_eq!(finished(&bob), Some(0));
    let messages = objects(&bob.lines(Stream::Out));
    assert_eq!(all(&messages, "text"), ["two\nlines", "from a file\n", ""]);
    assert_eq!(messages[2]["base64"], "/wAB");
}

#[test]
fn nothing_to_send_and_a_missing_file_are_told_before_anything_is_sent() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    assert_eq!(home.feed("send --as alice --to bob", "").code, Some(2));
    let missing = home.run("send --as alice --to bob --file /nowhere/file");
    assert_eq!(missing.status.code(), Some(1));
    assert!(missing.err.contains("/nowhere/file") && missing.err.contains("[FILE_ERROR]"), "{}", missing.err);
    let directory = home.run("send --as alice --to bob --file /tmp");
    assert!(directory.err.contains("/tmp") && directory.err.contains("[FILE_ERROR]"), "{}", directory.err);
    let oneself = home.feed("send --as alice --to alice", "hello");
    assert_eq!(oneself.code, Some(2), "{}", oneself.err);
    assert_eq!(home.run("chat --as alice --with alice").status.code(), Some(2));
}

#[test]
fn messages_wait_at_the_relay_for_somebody_who_is_away() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let bob = listening(&home, "listen --as bob --json");
    bob.signal(Signal::Term).unwrap();
    assert_eq!(finished(&bob), Some(0), "SIGTERM is an orderly end");
    assert_eq!(home.feed("send --as alice --to bob --lines", "one\ntwo\n").code, Some(0));
    let back = home.run("listen --as bob --count 2 --json");
    let lines: Vec<String> = back.out.lines().map(ToOwned::to_owned).collect();
    assert_eq!(all(&objects(&lines), "text"), ["one", "two"]);
}

#[test]
fn ctrl_c_ends_a_listener_with_130_and_loses_nothing() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let bob = listening(&home, "listen --as bob --json");
    assert_eq!(home.feed("send --as alice --to bob --lines", "one\ntwo\n").code, Some(0));
    let before = bob.wait_output(2, SOON).unwrap();
    bob.signal(Signal::Interrupt).unwrap();
    assert_eq!(finished(&bob), Some(130));
    assert_eq!(home.feed("send --as alice --to bob --lines", "three\n").code, Some(0));
    let after = home.run("listen --as bob --count 1 --json");
    assert_eq!(all(&objects(&before), "text"), ["one", "two"]);
    assert_eq!(all(&objects(&[after.out]), "text"), ["three"]);
}

#[test]
fn a_listener_that_is_killed_loses_nothing_and_repeats_only_its_last_lines_under_their_ids() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let alice = home.start("send --as alice --to bob --lines --json");
    let mut lines: Vec<String> = Vec::new();
    let mut said = 0;
    for round in 1..=3 {
        let bob = listening(&home, "listen --as bob --json");
        for _ in 0..10 {
            said += 1;
            alice.write_line(&format!("message {said}")).unwrap();
        }
        bob.wait_output(round, SOON).unwrap();
        bob.kill().unwrap();
        // What it printed before it died counts.
        finished(&bob);
        lines.extend(bob.lines(Stream::Out));
    }
    alice.close_input();
    let status = alice.wait_exit(SOON).unwrap();
    assert!(status.success(), "{status}");
    let expected: Vec<String> = (1..=said).map(|number| format!("message {number}")).collect();
    let bob = listening(&home, "listen --as bob --json");
    let printed = until(SOON, || {
        let printed = [lines.clone(), bob.lines(Stream::Out)].concat();
        let distinct: BTreeSet<String> = all(&objects(&printed), "id").into_iter().collect();
        (distinct.len() == expected.len()).then_some(printed)
    });
    bob.signal(Signal::Term).unwrap();
    assert_eq!(finished(&bob), Some(0));
    let lines = printed.unwrap_or_else(|_| [lines, bob.lines(Stream::Out)].concat());
    let messages = objects(&lines);
    let (ids, texts) = (all(&messages, "id"), all(&messages, "text"));
    let first = |place: &usize| !ids[..*place].contains(&ids[*place]);
    let firsts: Vec<usize> = (0..ids.len()).filter(first).collect();
    let repeats = ids.len() - firsts.len();
    assert!(repeats <= 3 * UNACKNOWLEDGED, "{repeats} lines repeated after three kills");
    let once: Vec<String> = firsts.iter().map(|place| texts[*place].clone()).collect();
    assert_eq!(once, expected, "by id, each message came once and in order");
    let ids_once: Vec<String> = firsts.iter().map(|place| ids[*place].clone()).collect();
    assert_eq!(ids_once, all(&objects(&alice.lines(Stream::Out)), "id"));
}

#[test]
fn a_reader_that_goes_away_ends_the_listener_silently_and_the_message_comes_again() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let bob = listening(&home, "listen --as bob");
    bob.signal(Signal::Term).unwrap();
    assert_eq!(finished(&bob), Some(0));
    assert_eq!(home.feed("send --as alice --to bob --lines", "one\n").code, Some(0));
    let mut child = Command::new(env!("CARGO_BIN_EXE_stvor"))
        .args(["listen", "--as", "bob", "--json", "--relay", &url, "--token", TOKEN, "--data"])
        .arg(home.path("stvor"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("error"));
    let again = home.run("listen --as bob --count 1 --json");
    assert_eq!(
        all(&objects(&[again.out]), "text"),
        ["one"],
        "it was never printed, so it was not acknowledged"
    );
}

#[test]
fn a_wrong_token_is_exit_4() {
    let (_relay, url) = mock_relay();
    let home = Home { relay: None, ..Home::new() };
    let refused = home.run(&format!("listen --as bob --relay {url} --token wrong_token_123"));
    assert_eq!(refused.status.code(), Some(4), "{}", refused.err);
    assert!(refused.err.contains("[INVALID_APP_TOKEN]"), "{}", refused.err);
    let doctor = home.run(&format!("doctor --relay {url} --token wrong_token_123"));
    assert_eq!(doctor.status.code(), Some(4));
}

#[test]
fn an_unknown_recipient_is_exit_6_and_nothing_is_queued() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let refused = home.feed("send --as alice --to nobody --timeout 1", "hello");
    assert_eq!(refused.code, Some(6), "{}", refused.err);
    assert!(refused.err.contains("[RECIPIENT_TIMEOUT]"), "{}", refused.err);
    let nobody = listening(&home, "listen --as nobody --json");
    assert_eq!(home.feed("send --as alice --to nobody --lines", "second\n").code, Some(0));
    let printed = nobody.wait_output(1, SOON).unwrap();
    assert_eq!(all(&objects(&printed), "text"), ["second"]);
}

#[test]
fn somebody_elses_name_is_exit_4() {
    let (_relay, url) = mock_relay();
    let (first, second) = (Home::at(&url), Home::at(&url));
    let _bob = listening(&first, "listen --as bob");
    let refused = second.run("listen --as bob");
    assert_eq!(refused.status.code(), Some(4), "{}", refused.err);
    assert!(refused.err.contains("[USER_ID_TAKEN]"), "{}", refused.err);
}

#[test]
fn a_second_process_on_one_directory_is_told_so() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let _bob = listening(&home, "listen --as bob");
    let refused = home.run("listen --as bob");
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.err.contains("[STORE_LOCKED]"), "{}", refused.err);
}

#[test]
fn safety_numbers_match_and_a_wrong_one_is_exit_7() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let bob = listening(&home, "listen --as bob --count 1");
    assert_eq!(home.feed("send --as alice --to bob", "hello").code, Some(0));
    assert_eq!(finished(&bob), Some(0));
    let show = |who: &str, peer: &str| {
        let shown = home.run(&format!("identity show --as {who} --with {peer} --json"));
        objects(&[shown.out]).remove(0)
    };
    let (alice, bob) = (show("alice", "bob"), show("bob", "alice"));
    assert_eq!(alice["safety_number"], bob["safety_number"]);
    assert_eq!(alice["verified"], false);
    let digits = alice["digits"].as_str().unwrap();
    assert_eq!(digits.len(), 60);
    let wrong: String = digits.chars().map(|digit| if digit == '9' { '8' } else { '9' }).collect();
    let refused = home.run(&format!("identity verify --as alice --with bob --number {wrong}"));
    assert_eq!(refused.status.code(), Some(7), "{}", refused.err);
    assert!(refused.err.contains("[SAFETY_NUMBER_MISMATCH]"));
    assert_eq!(show("alice", "bob")["verified"], false);
    let theirs = bob["digits"].as_str().unwrap();
    assert_eq!(
        home.run(&format!("identity verify --as alice --with bob --number {theirs}")).status.code(),
        Some(0)
    );
    assert_eq!(show("alice", "bob")["verified"], true);
    let code = bob["qr_hex"].as_str().unwrap();
    assert_eq!(
        home.run(&format!("identity verify --as alice --with bob --qr-hex {code}")).status.code(),
        Some(0)
    );
    let drawn = home.run("identity show --as alice --with bob --qr");
    assert!(drawn.out.contains('█') || drawn.out.contains('▀'), "{}", drawn.out);
    assert_eq!(home.run("identity unverify --as alice --with bob").status.code(), Some(0));
    assert_eq!(show("alice", "bob")["verified"], false);
}

#[test]
fn scripts_can_hold_a_conversation() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let alice = home.start("chat --as alice --with bob");
    let bob = home.start("chat --as bob --with alice");
    bob.wait_for("bob at", SOON).unwrap();
    alice.wait_for("alice at", SOON).unwrap();
    alice.write_line("are you there?").unwrap();
    bob.wait_for("are you there?", SOON).unwrap();
    bob.write_line("yes").unwrap();
    alice.wait_line(SOON, |from, line| from == Stream::Out && line.ends_with("bob: yes")).unwrap();
    for process in [&alice, &bob] {
        process.close_input();
        assert_eq!(finished(process), Some(0));
    }
}

#[test]
fn a_conversation_in_objects_tells_when_messages_are_read() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let bob = home.start("chat --as bob --with alice --json");
    let alice = home.start("chat --as alice --with bob --json");
    alice.write_line("hello").unwrap();
    let read = alice.wait_line(SOON, |from, line| from == Stream::Out && line.contains("\"read\"")).unwrap();
    let message = bob.wait_line(SOON, |from, line| from == Stream::Out && line.contains("\"text\"")).unwrap();
    let objects = objects(&[read, message]);
    assert_eq!(objects[0]["id"], objects[1]["id"]);
    assert_eq!(objects[1]["text"], "hello");
}

#[test]
fn control_characters_of_a_peer_never_reach_the_terminal() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let bob = listening(&home, "listen --as bob --count 1");
    assert_eq!(home.feed("send --as alice --to bob", "\u{1b}[2Jgone").code, Some(0));
    assert_eq!(finished(&bob), Some(0));
    let printed = bob.lines(Stream::Out).join("\n");
    assert!(printed.contains("gone") && !printed.contains('\u{1b}'), "{printed:?}");
}

#[test]
fn a_data_directory_of_a_newer_version_is_refused_and_unharmed() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    assert_eq!(home.run("identity show --as bob").status.code(), Some(0));
    let store = find(&home.path("stvor"), "store.db");
    let version = |to: Option<i64>| -> i64 {
        let database = rusqlite::Connection::open(&store).unwrap();
        let found = database.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
        if let Some(to) = to {
            database.pragma_update(None, "user_version", to).unwrap();
        }
        found
    };
    let current = version(None);
    version(Some(current + 1));
    let refused = home.run("listen --as bob");
    assert!(refused.err.contains("[STORE_TOO_NEW]"), "{}", refused.err);
    assert_eq!(refused.status.code(), Some(1));
    version(Some(current));
    assert_eq!(home.run("identity show --as bob").status.code(), Some(0), "nothing was lost");
}

#[test]
fn a_setting_chooses_the_suite_and_two_that_differ_exchange_nothing() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let with =
        |suite: &str, line: &str| home.stvor(line.split(' ')).env("STVOR_SUITE", suite).run(SOON).unwrap();
    assert_eq!(with("x25519", "identity show --as bob").status.code(), Some(0));
    let words = home.path("words");
    std::fs::write(&words, "hello").unwrap();
    let from = |who: &str| format!("send --as {who} --to bob --file {}", words.display());
    let sent = with("x25519", &from("alice"));
    assert_eq!(sent.status.code(), Some(0), "{}", sent.err);
    let got = with("x25519", "listen --as bob --count 1");
    assert!(got.out.contains("alice"), "{}", got.out);

    let other = home.run(&from("carol"));
    assert_eq!(other.status.code(), Some(7), "{}", other.err);
    assert!(other.err.contains("SUITE_MISMATCH"), "{}", other.err);
    let fixed = with("p256", "identity show --as bob");
    assert_eq!(fixed.status.code(), Some(3), "{}", fixed.err);
    assert!(fixed.err.contains("SUITE_FIXED"), "{}", fixed.err);
    let unknown = with("p384", "identity show --as bob");
    assert_eq!(unknown.status.code(), Some(3), "{}", unknown.err);
    assert!(unknown.err.contains("p256 and x25519"), "{}", unknown.err);
}
