//! Any interleaving of what parties do and what a network does to them. See `model/machine.rs` for what is checked.

mod model;

use model::machine::{ACTION, Machine};
use proptest::collection::vec;
use proptest::prelude::*;

fn actions() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<[u8; ACTION]>(), 0..120).prop_map(|actions| actions.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

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
