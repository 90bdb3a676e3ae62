//! The fault test, scaled down: minutes become seconds.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use stvor_bench::fault::{Plan, Role, run};

#[test]
fn nothing_is_lost_doubled_or_reused_while_processes_are_killed() {
    let binary =
        std::env::var_os("STVOR_BIN").map_or_else(|| stvor_testkit::binary("stvor").unwrap(), Into::into);
    let plan = Plan { binary, messages: 400, kills: 12, senders: 2, victims: Role::ALL.to_vec(), seed: 1 };
    let verdict = run(plan).unwrap();
    println!("{verdict}");
    assert!(verdict.violations.is_empty(), "{verdict}");
    assert!(verdict.counts.accepted > 0 && verdict.counts.received >= verdict.counts.accepted);
}
