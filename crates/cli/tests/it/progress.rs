//! Long work shows how far it is: to somebody at a terminal, and to nobody else.

use stvor_keys::recipients::Identity;

use crate::common::{Home, finished, listening, mock_relay, objects};
use crate::terminal::{Kind, Terminal, USUAL};
use crate::vault::Served;

/// The command line of long work, and what a terminal shows of it.
type Work = (String, &'static str);

/// What bars are made of, and what moves and clears them.
const DRAWN: [char; 3] = ['█', '░', '\u{1b}'];

const CHECKS: [fn(&Work, &Home); 3] = [shows_a_person, is_objects_only, draws_nothing_elsewhere];

/// What a terminal shows of a command whose standard output is a file, and what is in that file.
fn at_a_terminal(home: &Home, line: &str) -> (String, String) {
    let out = home.path("out");
    let script = format!("\"$STVOR\" {line} >{}; echo \"ended $?\"", out.display());
    let terminal = Terminal::script(home, &script, Kind { columns: 160, ..USUAL });
    // It is the last that is written.
    terminal.wait_for("ended 0");
    (terminal.raw(), std::fs::read_to_string(out).unwrap())
}

/// Somebody at a terminal sees how far it is, and what is redirected is the result alone.
fn shows_a_person((work, bar): &Work, home: &Home) {
    let (shown, out) = at_a_terminal(home, work);
    assert!(shown.contains(bar) && shown.contains(DRAWN), "{work}: {shown:?}");
    assert!(!out.is_empty() && !out.contains(bar) && !out.contains(DRAWN), "{work}: {out:?}");
}

/// A program that reads objects gets objects, also where a terminal is there to draw on.
fn is_objects_only((work, bar): &Work, home: &Home) {
    let (shown, out) = at_a_terminal(home, &format!("{work} --json"));
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(objects(&lines(&out)).len(), 1, "{work}: {out:?}");
    // Warnings would be objects, too.
    let talk = lines(&shown);
    objects(&talk[..talk.len() - 1]);
    assert!(!shown.contains(bar) && !shown.contains(DRAWN), "{work}: {shown:?}");
}

/// A log file is no terminal.
fn draws_nothing_elsewhere((work, bar): &Work, home: &Home) {
    let ended = home.run(work);
    assert!(ended.status.success(), "{work}: {}", ended.err);
    for said in [&ended.out, &ended.err] {
        assert!(!said.contains(bar) && !said.contains(DRAWN), "{work}: {said:?}");
    }
}

/// Work of a vault's owner.
fn of_a_vault(served: &Served, work: &str) -> String {
    Served::line(&served.home, &format!("vault {work}"))
}

#[test]
fn long_work_of_a_vault_shows_how_far_it_is_on_a_terminal_and_nowhere_else() {
    let served = Served::new();
    served.owner("unlock");
    served.owner("profile create work --exportable");
    let store = Served::line(&served.home, "vault store --namespace home --profile work --json");
    let stored = served.home.feed(&store, "Tea at five");
    assert_eq!(stored.code, Some(0), "{}", stored.err);
    let identity = Identity::generate();
    let line = identity.to_secret_line();
    let key = served.home.secret("age.key", core::str::from_utf8(line.expose()).unwrap());
    let (key, to) = (key.display(), identity.recipient());
    for (number, check) in CHECKS.into_iter().enumerate() {
        let at = |name: &str| served.home.path(&format!("{name}-{number}")).display().to_string();
        let check = |work: String, bar| check(&(of_a_vault(&served, &work), bar), &served.home);
        check("verify".into(), "verifying ");
        check("verify --content".into(), "verifying ");
        check(format!("backup make --dir {} --to {to}", at("backups")), "rows copied and verified");
        let made = served.owner("backup list");
        let backup = made.last().unwrap()["path"].as_str().unwrap();
        let restore = format!("restore {backup} --identity {key} --vault {}", at("elsewhere"));
        check(restore, "putting it together and verifying it");
        check(format!("export --out {}", at("export")), "1 of 1 memories");
        check(format!("import {}", at("export")), "1 of 1 memories");
        check(format!("archive --out {} --to {to} --words", at("archive")), "events written");
        check(format!("prune {} --identity {key}", at("archive")), "events read");
        check("profile rotate work".into(), "1 of 1 memories");
        check("rotate root-key".into(), " rows, ");
    }
}

#[test]
fn a_salvage_shows_on_a_terminal_that_it_goes_on_and_nowhere_else() {
    let mut served = Served::new();
    let stop = |served: &Served| {
        served.daemon.close_input();
        assert_eq!(finished(&served.daemon), Some(0));
    };
    served.owner("unlock");
    served.owner_stores("Tea at five");
    stop(&served);
    let database = served.home.path("stvor/vault/vault.db");
    let before = std::fs::read(&database).unwrap();
    served.daemon = Served::serve(&served.home, "");
    served.owner("unlock");
    served.owner_stores("Coffee at ten");
    stop(&served);
    // The checkpoints outside say that something was cut: the vault does not open.
    std::fs::write(&database, before).unwrap();
    for (number, check) in CHECKS.into_iter().enumerate() {
        let out = served.home.path(&format!("rest-{number}"));
        let work = of_a_vault(&served, &format!("salvage --out {}", out.display()));
        check(&(work, "reading what is left"), &served.home);
    }
}

#[test]
fn backups_restores_and_new_data_keys_show_how_far_they_are_on_a_terminal_and_nowhere_else() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let bob = listening(&home, "listen --as bob --count 1");
    assert_eq!(home.feed("send --as alice --to bob --lines", "Tea at five").code, Some(0));
    assert_eq!(finished(&bob), Some(0));
    let identity = Identity::generate();
    let line = identity.to_secret_line();
    let key = home.secret("age.key", core::str::from_utf8(line.expose()).unwrap());
    let (key, to) = (key.display(), identity.recipient());
    for (number, check) in CHECKS.into_iter().enumerate() {
        let backup = home.path(&format!("alice-{number}.age")).display().to_string();
        let work = format!("backup --as alice {backup} --recipient {to}");
        check(&(work, "1 of 1 conversations"), &home);
        check(&(format!("restore {backup} --identity-file {key}"), " bytes, "), &Home::at(&url));
        check(&("key rotate --as alice".to_owned(), " rows, "), &home);
    }
}
