//! A conversation at a terminal, as the person at it sees it.

use stvor_testkit::Stream;

use crate::common::{Home, SOON, finished, listening, mock_relay, objects};
use crate::terminal::{CTRL_C, CTRL_D, Kind, Terminal, USUAL};

const CHAT: &str = "chat --as alice --with bob";

/// Bob, who registered once.
fn bob_exists(home: &Home) {
    assert_eq!(home.run("identity show --as bob").status.code(), Some(0));
}

#[test]
fn what_is_typed_is_sent_and_what_comes_is_shown_above_the_line_that_is_being_typed() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let bob = home.start("chat --as bob --with alice");
    bob.wait_for("bob at", SOON).unwrap();
    let mut alice = Terminal::open(&home, CHAT, USUAL);
    alice.wait_for("Talking with bob");
    alice.press("hello from a terminal\r");
    bob.wait_line(SOON, |from, line| from == Stream::Out && line.ends_with("alice: hello from a terminal"))
        .unwrap();
    alice.wait_for("read");
    alice.press("half a li");
    alice.wait_for("half a li");
    bob.write_line("sorry to interrupt").unwrap();
    let seen = alice.wait("the message, with the prompt and the half line below it", |seen| {
        let lines: Vec<&str> = seen.lines().collect();
        let came = lines.iter().position(|line| line.ends_with("bob: sorry to interrupt"));
        came.is_some_and(|at| lines[at + 1..].iter().any(|line| line.trim_end() == "alice> half a li"))
    });
    assert_eq!(seen.matches("sorry to interrupt").count(), 1, "{seen}");
    alice.press("ne\r");
    bob.wait_line(SOON, |from, line| from == Stream::Out && line.ends_with("alice: half a line")).unwrap();
    alice.press(CTRL_D);
    assert_eq!(alice.ended(), 0);
}

#[test]
fn a_conversation_goes_on_where_it_ended_and_tells_how_far_messages_came() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let bob = listening(&home, "listen --as bob --count 2");
    assert_eq!(home.feed("send --as alice --to bob --lines", "first\nsecond\n").code, Some(0));
    assert_eq!(finished(&bob), Some(0));
    let mut alice = Terminal::open(&home, CHAT, USUAL);
    let seen =
        alice.wait("the earlier messages", |seen| seen.contains("alice: second") && seen.contains("alice> "));
    assert!(seen.contains("alice: first"), "{seen}");
    alice.press("/history 1\r");
    alice.wait("the last message again", |seen| seen.matches("alice: second").count() == 2);
    alice.press("/history 0\r");
    alice.wait_for("/history takes a number from 1 to 500");
    alice.press("/quit\r");
    assert_eq!(alice.ended(), 0);
}

#[test]
fn safety_numbers_are_shown_and_verified_inside_a_conversation() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    bob_exists(&home);
    let mut alice = Terminal::open(&home, CHAT, USUAL);
    alice.wait_for("not verified: /safety");
    alice.press("/safety\r");
    let seen = alice.wait("the safety number", |seen| {
        let digits = |line: &str| line.chars().filter(char::is_ascii_digit).count();
        seen.lines().filter(|line| digits(line) == 20 && line.starts_with("    ")).count() == 3
    });
    let theirs = home.run("identity show --as bob --with alice");
    let groups = |text: &str| {
        text.split_whitespace()
            .filter(|word| word.len() == 5 && word.bytes().all(|byte| byte.is_ascii_digit()))
            .map(ToOwned::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(groups(&seen), groups(&theirs.out), "both see one number");
    alice.press("/verify\r");
    alice.wait_for("bob is verified");
    alice.press("/block\r");
    alice.wait_for("bob is blocked");
    alice.press("not to be sent\r");
    alice.wait_for("[PEER_BLOCKED]");
    alice.press("/unblock\r");
    alice.wait_for("no longer blocked");
    alice.press("/nonsense\r");
    alice.wait_for("/nonsense is not known; /help lists the commands");
    alice.press("/help\r");
    alice.wait_for("/reset");
}

#[test]
fn a_group_is_changed_and_left_inside_its_conversation() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    bob_exists(&home);
    let carol = listening(&home, "listen --as carol --count 1 --json");
    assert_eq!(home.run("group create --as alice friends bob").status.code(), Some(0));
    let wide = Kind { rows: 40, columns: 200, ..USUAL };
    let mut alice = Terminal::open(&home, "chat --as alice --group friends", wide);
    let mut bob = Terminal::open(&home, "chat --as bob --group friends", wide);
    let members = |terminal: &mut Terminal, wanted: &str| {
        terminal.press("/members\r");
        terminal.wait(wanted, |seen| seen.lines().any(|line| line.trim_end() == wanted));
    };
    for terminal in [&mut alice, &mut bob] {
        terminal.wait_for("Talking in friends (2 members)");
        members(terminal, "friends: alice, bob");
    }
    alice.press("/help\r");
    for command in ["/members", "/add USER", "/remove USER", "/rename NAME", "/leave", "/status", "/quit"] {
        alice.wait_for(command);
    }
    alice.press("/nonsense\r");
    alice.wait_for("/nonsense is not known; /help lists the commands");

    alice.press("/rename team\r");
    for terminal in [&alice, &bob] {
        terminal.wait_for("* team: alice changed it");
    }
    alice.press("/add carol\r");
    for terminal in [&mut alice, &mut bob] {
        terminal.wait_for("* team: alice added carol");
        members(terminal, "team: alice, bob, carol");
    }
    alice.press("welcome\r");
    bob.wait_for("alice: welcome");
    assert_eq!(finished(&carol), Some(0));
    let read = objects(&carol.lines(Stream::Out));
    assert!(read.iter().any(|object| object["text"] == "welcome" && object["from"] == "alice"), "{read:?}");

    alice.press("/remove carol\r");
    for terminal in [&mut alice, &mut bob] {
        terminal.wait_for("* team: alice removed carol");
        members(terminal, "team: alice, bob");
    }
    alice.press("/remove carol\r");
    alice.wait_for("[NOT_A_MEMBER]");
    alice.press("/leave\r");
    alice.wait_for("* You are not in group");
    bob.wait_for("* team: alice left");
    members(&mut bob, "team: bob");
    alice.press("still here?\r");
    alice.wait("the refusal", |seen| {
        seen.lines().any(|line| line.starts_with("not sent:") && line.contains("[NOT_A_MEMBER]"))
    });
    for terminal in [&mut alice, &mut bob] {
        terminal.press("/quit\r");
        assert_eq!(terminal.ended(), 0);
    }
}

#[test]
fn ctrl_c_ends_with_130_and_the_terminal_is_as_it_was() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    bob_exists(&home);
    let script = "before=$(stty -g); \"$STVOR\" chat --as alice --with bob; echo \"code $?\"; \
        [ \"$(stty -g)\" = \"$before\" ] && echo restored || echo changed";
    let mut alice = Terminal::script(&home, script, USUAL);
    alice.wait_for("alice> ");
    alice.press("half a line");
    alice.wait_for("half a line");
    alice.press(CTRL_C);
    let seen = alice.wait("the end", |seen| seen.contains("restored") || seen.contains("changed"));
    assert!(seen.contains("code 130") && seen.contains("restored"), "{seen}");
    assert_eq!(alice.ended(), 0);
}

#[test]
fn ctrl_d_ends_with_0_and_the_terminal_is_as_it_was() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    bob_exists(&home);
    let script = "before=$(stty -g); \"$STVOR\" chat --as alice --with bob; echo \"code $?\"; \
        [ \"$(stty -g)\" = \"$before\" ] && echo restored || echo changed";
    let alice = &mut Terminal::script(&home, script, USUAL);
    alice.wait_for("alice> ");
    alice.press(CTRL_D);
    let seen = alice.wait("the end", |seen| seen.contains("restored") || seen.contains("changed"));
    assert!(seen.contains("code 0") && seen.contains("restored"), "{seen}");
}

#[test]
fn a_window_that_closes_ends_the_conversation_and_loses_nothing() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    bob_exists(&home);
    let mut alice = Terminal::open(&home, CHAT, USUAL);
    alice.wait_for("alice> ");
    alice.press("before the window closed\r");
    alice.wait_for("accepted");
    alice.hang_up();
    alice.ended();
    let heard = home.run("listen --as bob --count 1");
    assert!(heard.out.ends_with("alice: before the window closed"), "{}", heard.out);
}

#[test]
fn who_leaves_right_after_a_line_leaves_it_sent() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    bob_exists(&home);
    let mut alice = Terminal::open(&home, CHAT, USUAL);
    alice.wait_for("alice> ");
    alice.press("the last word\r/quit\r");
    assert_eq!(alice.ended(), 0);
    let heard = home.run("listen --as bob --count 1");
    assert!(heard.out.ends_with("alice: the last word"), "{}", heard.out);
}

#[test]
fn a_dumb_terminal_gets_plain_lines() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let bob = home.start("chat --as bob --with alice");
    bob.wait_for("bob at", SOON).unwrap();
    let mut alice = Terminal::open(&home, CHAT, Kind { term: "dumb", ..USUAL });
    alice.wait_for("Talking with bob");
    alice.press("from a dumb terminal\r");
    bob.wait_line(SOON, |from, line| from == Stream::Out && line.ends_with("alice: from a dumb terminal"))
        .unwrap();
    bob.write_line("understood").unwrap();
    alice.wait_for("bob: understood");
    assert!(!alice.raw().contains('\u{1b}'), "{:?}", alice.raw());
    alice.press(CTRL_D);
    assert_eq!(alice.ended(), 0);
}

#[test]
fn a_dumb_terminal_is_left_with_ctrl_c() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    bob_exists(&home);
    let mut alice = Terminal::open(&home, CHAT, Kind { term: "dumb", ..USUAL });
    alice.wait_for("Talking with bob");
    alice.press(CTRL_C);
    assert_eq!(alice.ended(), 130);
}

#[test]
fn long_lines_wrap_in_a_narrow_window_and_after_its_size_changed() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    // The note about her new key file would fill the window, and scroll the message away, whenever it came.
    assert_eq!(home.run("identity show --as alice").status.code(), Some(0));
    let bob = home.start("chat --as bob --with alice");
    bob.wait_for("bob at", SOON).unwrap();
    let mut alice = Terminal::open(&home, CHAT, Kind { rows: 12, columns: 24, ..USUAL });
    alice.wait_for("alice> ");
    let joined = |seen: &str| seen.lines().collect::<String>();
    let long = "a sentence that is longer than the window is wide";
    bob.write_line(long).unwrap();
    alice.wait("the long message", |seen| joined(seen).contains(long));
    alice.press("typed so far, and it is long");
    alice.wait("the typed line", |seen| joined(seen).contains("alice> typed so far, and it is long"));
    alice.resize(24, 100);
    bob.write_line("after the change").unwrap();
    alice.wait("the new message and the typed line, once and whole", |seen| {
        seen.contains("bob: after the change") && seen.contains("alice> typed so far, and it is long")
    });
    alice.press("\r");
    bob.wait_line(SOON, |from, line| {
        from == Stream::Out && line.ends_with("alice: typed so far, and it is long")
    })
    .unwrap();
}

#[test]
fn without_the_relay_lines_wait_and_go_out_when_it_is_back() {
    let house = Home::new();
    let serve = |listen: &str| house.start(&format!("relay --dev --listen {listen}"));
    let relay = serve("127.0.0.1:0");
    let url = relay.wait_output(1, SOON).unwrap()[0].trim_start_matches("listening on ").to_owned();
    let home = Home::at(&url);
    bob_exists(&home);
    let mut alice = Terminal::open(&home, CHAT, USUAL);
    alice.wait_for("alice> ");
    alice.press("before\r");
    alice.wait_for("accepted");
    relay.kill().unwrap();
    alice.wait_for("The relay is away; trying on");
    alice.press("while it is away\r/status\r");
    alice.wait_for("1 messages not at the relay yet");
    let _relay = serve(url.trim_start_matches("ws://"));
    alice.wait("the second tick", |seen| seen.matches("accepted").count() == 2);
    let heard = home.run("listen --as bob --count 2");
    let texts: Vec<&str> = heard.out.lines().filter_map(|line| line.split("alice: ").nth(1)).collect();
    assert_eq!(texts, ["before", "while it is away"]);
}

#[test]
fn nothing_that_a_peer_says_commands_the_terminal() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    bob_exists(&home);
    let mut alice = Terminal::open(&home, CHAT, USUAL);
    alice.wait_for("alice> ");
    assert_eq!(home.feed("send --as bob --to alice", "\u{1b}]0;owned\u{7}\u{1b}[2Jgone").code, Some(0));
    alice.wait_for("gone");
    assert!(
        !alice.raw().contains("\u{1b}]0;owned") && !alice.raw().contains("\u{1b}[2J"),
        "{:?}",
        alice.raw()
    );
    alice.press(CTRL_D);
    assert_eq!(alice.ended(), 0);
}

#[test]
fn questions_are_asked_at_a_terminal_and_no_means_nothing_is_done() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    bob_exists(&home);
    let mut asked = Terminal::open(&home, "account delete --as bob", USUAL);
    asked.wait_for("Delete bob for good?");
    asked.press("n");
    assert_eq!(asked.ended(), 2);
    asked = Terminal::open(&home, "account delete --as bob", USUAL);
    asked.wait_for("Delete bob for good?");
    asked.press("y");
    asked.wait_for("bob is deleted, there and here");
    assert_eq!(asked.ended(), 0);
}
