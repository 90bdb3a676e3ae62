//! Any interleaving of what parties do and what a network does to them. See `model/machine.rs` for what is checked.

mod model;

use model::machine::{ACTION, Machine};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn actions() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<[u8; ACTION]>(), 0..120).prop_map(|actions| actions.concat())
}

/// The same cases in each run, so that a failure means a change. A campaign sets `PROPTEST_CASES` and `PROPTEST_RNG_SEED`.
fn config() -> ProptestConfig {
    let given = |name| std::env::var(name).ok().and_then(|value: String| value.parse::<u64>().ok());
    let cases = given("PROPTEST_CASES").and_then(|cases| u32::try_from(cases).ok()).unwrap_or(40);
    let seed = given("PROPTEST_RNG_SEED").unwrap_or(36);
    ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn two_parties_lose_nothing_silently_and_talk_again(actions in actions()) {
        Machine::new(2).run(&actions);
    }

    #[test]
    fn three_parties_lose_nothing_silently_and_talk_again(actions in actions()) {
        Machine::new(3).run(&actions);
    }
}

/// The machine reaches what it is there to reach: otherwise its checks would say little.
#[test]
fn the_machine_meets_duplicates_damage_resets_and_forced_answers() {
    let mut seen = std::collections::HashMap::new();
    for seed in 0..16_u8 {
        let mut rng = stvor_crypto::random::DeterministicRandom::new([seed; 32]);
        let mut machine = Machine::new(2);
        machine.run(&model::random_bytes(&mut rng, 100 * ACTION));
        for (code, count) in machine.codes {
            *seen.entry(code).or_insert(0) += count;
        }
    }
    let wanted = ["OK", "DUPLICATE", "REPLY", "UNDECRYPTABLE", "UNKNOWN_SESSION", "REPLAY"];
    assert!(wanted.iter().all(|code| seen.contains_key(code)), "{seen:?}");
}

/// Sides that each ask on a session that the other one lost come to an end: after three failures in a row only a fresh
/// session is asked on, at most once an hour.
#[test]
fn two_that_ask_each_other_on_lost_sessions_come_to_an_end() {
    let actions = [
        0, 42, 74, 0, 48, 63, 106, 180, 209, 89, 158, 108, 17, 75, 37, 202, 13, 208, 153, 247, 162, 206, 214,
        51, 96, 175, 50, 118, 194, 241, 204, 12, 144, 170, 125, 154, 115, 70, 251, 93, 61, 198, 183, 127,
        242, 164, 171, 127, 224, 82, 209, 35, 50, 81, 119, 152, 34, 163, 5, 9, 36, 220, 239, 18, 14, 42, 201,
        8, 46, 200, 38, 84,
    ];
    Machine::new(3).run(&actions);
}
