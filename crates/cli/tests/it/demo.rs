//! The demo holds, tells its figures, and leaves nothing behind.

use std::time::Duration;

use crate::common::{Home, objects};
use stvor_testkit::Signal;

const DEMO: Duration = Duration::from_secs(180);

fn left_behind(home: &Home) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(home.path("tmp")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn demo(home: &Home) -> stvor_testkit::Spawn {
    std::fs::create_dir(home.path("tmp")).unwrap();
    home.stvor(["demo", "--fast", "--json"]).env("TMPDIR", home.path("tmp"))
}

#[test]
fn every_step_of_the_demo_holds_and_nothing_is_left_behind() {
    let home = Home::new();
    let played = demo(&home).run(DEMO).unwrap();
    assert_eq!(played.status.code(), Some(0), "{}\n{}", played.out, played.err);
    let lines: Vec<String> = played.out.lines().map(ToOwned::to_owned).collect();
    let steps = objects(&lines);
    assert!(steps.iter().all(|step| step["ok"] == true), "{}", played.out);
    let names: Vec<&str> = steps.iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "relay",
            "people",
            "conversation",
            "relay saw",
            "Bob killed",
            "relay killed",
            "bad disk",
            "safety number",
            "summary"
        ]
    );
    let summary = steps.last().unwrap();
    assert_eq!(summary["accepted"], summary["arrived"]);
    for nothing in ["lost", "doubled", "word_hits"] {
        assert_eq!(summary[nothing], 0, "{nothing}");
    }
    assert_eq!(summary["killed"], 2);
    assert_eq!(summary["repaired"], 1);
    assert_eq!(left_behind(&home), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing_behind() {
    let home = Home::new();
    let played = demo(&home).start().unwrap();
    let line = played.wait_output(1, DEMO).unwrap().remove(0);
    let relay = objects(&[line]).remove(0)["figures"]["pid"].as_u64().unwrap();
    played.signal(Signal::Interrupt).unwrap();
    assert_eq!(played.wait_exit(DEMO).unwrap().code(), Some(130));
    assert!(!std::path::Path::new(&format!("/proc/{relay}")).exists(), "the relay is gone");
    assert_eq!(left_behind(&home), Vec::<std::path::PathBuf>::new());
}
