//! Groups at the command line.

use crate::common::{Home, all, finished, listening, mock_relay, objects};

#[test]
fn a_group_is_made_written_to_changed_and_left() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let carol = listening(&home, "listen --as carol --count 2 --json");
    let bob = listening(&home, "listen --as bob --count 2 --json");

    let made = home.run("group create --as alice --json friends bob carol");
    assert_eq!(made.status.code(), Some(0), "{}", made.err);
    let group: serde_json::Value = serde_json::from_str(&made.out).unwrap();
    assert_eq!(group["members"], serde_json::json!(["alice", "bob", "carol"]));

    let sent = home.feed("send --as alice --group friends --lines --json", "one\ntwo\n");
    assert_eq!(sent.code, Some(0), "{}", sent.err);
    assert_eq!(all(&objects(&sent.out), "status"), ["accepted", "accepted"]);
    for listener in [&bob, &carol] {
        assert_eq!(finished(listener), Some(0));
        let got: Vec<serde_json::Value> = objects(&listener.lines(stvor_testkit::Stream::Out))
            .into_iter()
            .filter(|object| object.get("text").is_some())
            .collect();
        assert_eq!(all(&got, "text"), ["one", "two"]);
        assert!(got.iter().all(|message| message["group"] == group["id"] && message["from"] == "alice"));
    }

    // Bob, a member like any other, renames the group and puts carol out.
    let renamed = home.run("group rename --as bob friends team");
    assert_eq!(renamed.status.code(), Some(0), "{}", renamed.err);
    let removed = home.run("group remove --as bob --json team carol");
    assert_eq!(removed.status.code(), Some(0), "{}", removed.err);
    let listed = home.run("group list --as bob");
    assert!(listed.out.contains("team") && listed.out.contains("member"), "{}", listed.out);

    let short = group["id"].as_str().unwrap()[..8].to_owned();
    let left = home.run(&format!("group leave --as bob {short}"));
    assert_eq!(left.status.code(), Some(0), "{}", left.err);
    let refused = home.feed(&format!("send --as bob --group {short}"), "still here?\n");
    assert_ne!(refused.code, Some(0));
    assert!(refused.err.contains("[NOT_A_MEMBER]"), "{}", refused.err);
}

#[test]
fn a_script_talks_in_a_group() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let bob = listening(&home, "listen --as bob --count 2");
    assert_eq!(home.run("group create --as alice friends bob").status.code(), Some(0));
    let chat = home.feed("chat --as alice --group friends", "hello\nthere\n");
    assert_eq!(chat.code, Some(0), "{}", chat.err);
    assert_eq!(finished(&bob), Some(0));
    let out = bob.lines(stvor_testkit::Stream::Out).join("\n");
    assert!(out.contains("alice") && out.contains(": hello") && out.contains(": there"), "{out}");
    // It can be read again, at both ends and without the relay.
    for (who, direction) in [("alice", "out"), ("bob", "in")] {
        let said = home.run(&format!("history --as {who} --group friends --json"));
        assert_eq!(said.status.code(), Some(0), "{}", said.err);
        let said = objects(&said.out.lines().map(ToOwned::to_owned).collect::<Vec<_>>());
        assert_eq!(all(&said, "text"), ["hello", "there"]);
        assert_eq!(all(&said, "direction"), [direction, direction]);
        assert_eq!(all(&said, "peer"), ["alice", "alice"]);
    }
    let found = home.run("history --as bob --group friends --search THERE --json");
    assert_eq!(
        all(&objects(&found.out.lines().map(ToOwned::to_owned).collect::<Vec<_>>()), "text"),
        ["there"]
    );
}

#[test]
fn who_was_just_added_finds_the_group_at_once() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    // They exist, and nothing of them runs while they are added.
    for name in ["bob", "carol", "dave", "erin"] {
        assert_eq!(home.run(&format!("group create --as {name} own")).status.code(), Some(0));
    }
    let made = home.run("group create --as alice --json friends bob carol dave erin");
    assert_eq!(made.status.code(), Some(0), "{}", made.err);
    let listed = home.run("group list --as bob");
    assert!(listed.out.contains("friends"), "{} {}", listed.out, listed.err);
    let shown = home.run("group show --as carol --json friends");
    assert_eq!(shown.status.code(), Some(0), "{}", shown.err);
    let chat = home.feed("chat --as dave --group friends", "hello\n");
    assert_eq!(chat.code, Some(0), "{}", chat.err);
    let sent = home.feed("send --as erin --group friends --json", "hello, too");
    assert_eq!(sent.code, Some(0), "{}", sent.err);
    // The others were told, too.
    let listener = listening(&home, "listen --as bob --group friends --count 2 --json");
    assert_eq!(finished(&listener), Some(0));
    let mut said = all(&objects(&listener.lines(stvor_testkit::Stream::Out)), "text");
    said.sort_unstable();
    assert_eq!(said, ["hello", "hello, too"]);
}

#[test]
fn groups_are_shown_without_a_relay() {
    let home = {
        let (_relay, url) = mock_relay();
        let home = Home::at(&url);
        assert_eq!(home.run("group create --as alice friends").status.code(), Some(0));
        home
    };
    let listed = home.run("group list --as alice");
    assert!(listed.out.contains("friends"), "{} {}", listed.out, listed.err);
    assert_eq!(listed.status.code(), Some(0), "{}", listed.err);
}

#[test]
fn a_group_that_is_not_there_is_exit_6() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    assert_eq!(home.run("group create --as alice a").status.code(), Some(0));
    let missing = home.run("group show --as alice nothing");
    assert_eq!(missing.status.code(), Some(6), "{}", missing.err);
    assert!(missing.err.contains("[GROUP_NOT_FOUND]"), "{}", missing.err);
    // Two of one name: the first digits of an id say which.
    assert_eq!(home.run("group create --as alice a").status.code(), Some(0));
    let several = home.run("group show --as alice a");
    assert_eq!(several.status.code(), Some(2), "{}", several.err);
    assert_eq!(home.run("chat --as alice --group a --with bob").status.code(), Some(2));
    assert_eq!(home.run("send --as alice").status.code(), Some(2));
}

#[test]
fn an_identity_is_rotated_contacts_follow_it_and_a_group_adds_it_anew() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let told = |line: &str| -> serde_json::Value {
        let ended = home.run(line);
        assert_eq!(ended.status.code(), Some(0), "{line}: {}", ended.err);
        serde_json::from_str(ended.out.lines().next().unwrap_or("null")).unwrap()
    };
    let heard = |who: &str, words: &str, line: &str| {
        let listener = listening(&home, &format!("listen --as {who} --count 1 --json"));
        let sent = home.feed(line, words);
        assert_eq!(sent.code, Some(0), "{line}: {}", sent.err);
        assert_eq!(finished(&listener), Some(0));
        let got = objects(&listener.lines(stvor_testkit::Stream::Out));
        assert!(got.iter().any(|object| object["text"] == words), "{got:?}");
        got
    };
    let before = told("identity show --as alice --json");
    heard("bob", "hello", "send --as alice --to bob");
    told("group create --as bob --json friends alice");
    heard("alice", "welcome", "send --as bob --group friends");

    let unsure = home.run("identity rotate --as alice");
    assert_eq!(unsure.status.code(), Some(2), "nobody is asked without a terminal");
    let rotated = told("identity rotate --as alice --yes --json");
    assert_eq!(rotated["old_fingerprint"], before["fingerprint"]);
    let after = told("identity show --as alice --json");
    assert_eq!(rotated["fingerprint"], after["fingerprint"]);
    assert_ne!(after["fingerprint"], before["fingerprint"]);

    // Bob follows, and both go on.
    heard("bob", "from the new key", "send --as alice --to bob");
    heard("alice", "to the new key", "send --as bob --to alice");
    let noted = home.run("journal --as bob");
    assert!(noted.out.contains("identity_rotated") || noted.out.contains("rotated"), "{}", noted.out);
    let old = before["fingerprint"].as_str().unwrap();
    let back = home.run(&format!("identity accept --as bob --with alice --fingerprint {old}"));
    assert_eq!(back.status.code(), Some(7), "the relay does not show that one: {}", back.err);

    // The group knows the old key.
    let refused = home.feed("send --as alice --group friends", "still here?");
    assert!(refused.err.contains("[NOT_A_MEMBER]"), "{}", refused.err);
    told("group add --as bob --json friends alice");
    heard("alice", "welcome back", "send --as bob --group friends");
    heard("bob", "thanks", "send --as alice --group friends");
}
