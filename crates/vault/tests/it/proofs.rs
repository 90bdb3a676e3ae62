//! Proofs of properties: what they show, and what a cheat can not make of them.

use stvor_base::ErrorCode;
use stvor_tlog::Verifier;
use stvor_vault::audit::Operation;
use stvor_vault::proofs::{Attestation, Claim, Commitments, PropertyProof};
use stvor_vault::{Caller, Level, LogQuery, MemoryId, NewMemory, Refusal, Vault};

use crate::world::{World, owner, refusal};

const OWNER: &Caller = &Caller::Owner;
const ORIGIN: &str = "example.com/vault";

fn keys(vault: &Vault) -> Vec<Verifier> {
    vec![Verifier::parse(&vault.status().unwrap().verifier).unwrap()]
}

fn store(vault: &Vault, text: &str, level: Level) -> MemoryId {
    vault.store(OWNER, NewMemory::new(text.as_bytes(), level, "home")).unwrap()
}

#[test]
fn a_claim_is_proved_to_one_audience_and_shows_nothing_else() {
    let world = World::new();
    let vault = world.open();
    let id = store(&vault, "the unmistakable words", Level::Private);
    let stored = world.clock.wall();
    let keys = keys(&vault);
    for claim in [
        Claim::Exists,
        Claim::LevelAtMost(Level::Private),
        Claim::LevelAtMost(Level::Black),
        Claim::StoredAtOrBefore(stored),
        Claim::StoredAtOrAfter(stored - 1),
    ] {
        let proof = vault.prove_property(id, claim, "auditor 7").unwrap();
        let file = serde_json::to_string(&proof).unwrap();
        let proof: PropertyProof = serde_json::from_str(&file).unwrap();
        proof.verify((ORIGIN, &keys), "auditor 7").unwrap();
        for words in ["unmistakable", "home", &id.to_string(), &stored.to_string()] {
            let claimed = matches!(claim, Claim::StoredAtOrBefore(_)) && *words == stored.to_string();
            assert!(claimed || !file.contains(words), "{claim:?} shows {words}");
        }
        assert!(proof.verify((ORIGIN, &keys), "somebody else").is_err());
        assert!(proof.verify(("example.com/other", &keys), "auditor 7").is_err());
    }
    for untrue in [
        Claim::LevelAtMost(Level::Working),
        Claim::StoredAtOrBefore(stored - 1),
        Claim::StoredAtOrAfter(stored + 1),
    ] {
        assert_eq!(vault.prove_property(id, untrue, "a").unwrap_err().code(), "VAULT_UNPROVEN");
    }
    vault.content_opening(id).unwrap();
    let query = LogQuery { operation: Some(Operation::Prove), ..LogQuery::default() };
    let logged = vault.read_log(query).unwrap().entries.len();
    assert_eq!(logged, 1 + 5 + 3 + 1, "the commitment, each proof, each refusal, the opening");
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn what_is_refused_of_a_proof_in_a_lockdown_is_logged() {
    let world = World::new();
    let vault = world.open();
    let [known, other] = ["one", "two"].map(|text| store(&vault, text, Level::Working));
    vault.commit_memory(known).unwrap();
    vault.enter_lockdown(OWNER, "odd").unwrap();
    for id in [known, other] {
        assert_eq!(refusal(vault.commit_memory(id)), Refusal::Lockdown);
        assert_eq!(refusal(vault.prove_property(id, Claim::Exists, "a")), Refusal::Lockdown);
    }
    vault.leave_lockdown(&owner()).unwrap();
    let query = LogQuery { operation: Some(Operation::Prove), ..LogQuery::default() };
    let logged = vault.read_log(query).unwrap().entries;
    let refused = |id| {
        let of =
            |entry: &&stvor_vault::LogEntry| entry.event.memory == Some(id) && entry.event.refused.is_some();
        logged.iter().filter(of).count()
    };
    assert_eq!((refused(known), refused(other)), (2, 2));
}

#[test]
fn a_proof_does_not_serve_another_claim_leaf_or_audience() {
    let world = World::new();
    let vault = world.open();
    let (low, high) = (store(&vault, "low", Level::Working), store(&vault, "high", Level::Sealed));
    let keys = keys(&vault);
    let of = |id, claim| vault.prove_property(id, claim, "a").unwrap();
    let low_proof = of(low, Claim::LevelAtMost(Level::Working));
    let high_proof = of(high, Claim::LevelAtMost(Level::Sealed));
    let exists = of(high, Claim::Exists);
    let changes: [&dyn Fn(&mut PropertyProof); 9] = [
        &|proof| proof.claim = Claim::LevelAtMost(Level::Ephemeral),
        &|proof| proof.claim = Claim::LevelAtMost(Level::Private),
        &|proof| proof.claim = Claim::StoredAtOrBefore(1),
        &|proof| proof.audience = "b".into(),
        &|proof| proof.leaf = high_proof.leaf.clone(),
        &|proof| (proof.leaf, proof.inclusion) = (high_proof.leaf.clone(), high_proof.inclusion.clone()),
        &|proof| proof.range = high_proof.range.clone(),
        &|proof| proof.range = exists.range.clone(),
        &|proof| proof.leaf = proof.leaf.replacen("level\":\"", "level\":\"0", 1),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut changed = low_proof.clone();
        change(&mut changed);
        assert!(changed.verify((ORIGIN, &keys), "a").is_err(), "change {number}");
        assert!(changed.verify((ORIGIN, &keys), "b").is_err(), "change {number}");
    }
    // Another event of the log is no commitment, whoever proves its inclusion.
    let (entry, inclusion) = vault.prove(1).unwrap();
    let mut changed = low_proof.clone();
    (changed.leaf, changed.inclusion) = (String::from_utf8(entry).unwrap(), inclusion.to_string());
    assert_eq!(changed.verify((ORIGIN, &keys), "a").unwrap_err().code(), "VAULT_UNPROVEN");
    // A cheat with a log of its own has not the keys.
    let other = World::new();
    let forger = other.open();
    let forged = forger.prove_property(store(&forger, "x", Level::Working), Claim::Exists, "a").unwrap();
    assert!(forged.verify((ORIGIN, &keys), "a").is_err());
}

#[test]
fn a_memory_is_committed_to_once_and_not_when_it_is_gone() {
    let world = World::new();
    let vault = world.open();
    let id = store(&vault, "tea", Level::Working);
    let at = vault.commit_memory(id).unwrap();
    assert_eq!(vault.commit_memory(id).unwrap(), at);
    let gone = store(&vault, "gone", Level::Working);
    vault.forget(OWNER, gone, "").unwrap();
    assert_eq!(refusal(vault.commit_memory(gone)), Refusal::Gone("it was forgotten"));

    let (leaf, _) = vault.prove(at).unwrap();
    let leaf: serde_json::Value = serde_json::from_slice(&leaf).unwrap();
    let commitments: Commitments = serde_json::from_value(leaf["commitment"].clone()).unwrap();
    let opening = vault.content_opening(id).unwrap();
    assert!(opening.matches(&commitments, b"tea"));
    assert!(!opening.matches(&commitments, b"tee"));
    let proof = vault.prove_property(id, Claim::Exists, "a").unwrap();
    proof.verify_content(&opening, b"tea").unwrap();
    assert_eq!(proof.verify_content(&opening, b"tee").unwrap_err().code(), "VAULT_UNPROVEN");
    let other = store(&vault, "tea", Level::Working);
    assert!(vault.content_opening(other).unwrap_err().to_string().contains("prove something of it first"));
    vault.commit_memory(other).unwrap();
    let opened = vault.content_opening(other).unwrap();
    vault.forget(OWNER, other, "").unwrap();
    assert_eq!(refusal(vault.content_opening(other)), Refusal::Gone("it was forgotten"));
    let other = opened;
    assert_eq!(proof.verify_content(&other, b"tea").unwrap_err().code(), "VAULT_UNPROVEN");
    // The clock's memory is not confused by a leaf without a time.
    drop(vault);
    let vault = world.open();
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn an_attestation_is_signed_by_the_log_and_is_no_checkpoint() {
    let world = World::new();
    let vault = world.open();
    let note = vault.attest("the vault was reviewed").unwrap();
    let keys = keys(&vault);
    let read = Attestation::open(&note, (ORIGIN, &keys)).unwrap();
    assert_eq!((read.statement.as_str(), read.at), ("the vault was reviewed", world.clock.wall()));
    assert!(stvor_tlog::Checkpoint::open(&note, ORIGIN, &keys).is_err());
    let (_, proof) = vault.prove(0).unwrap();
    assert!(Attestation::open(&proof.checkpoint, (ORIGIN, &keys)).is_err());
    let changed = note.to_string().replace("reviewed", "approved");
    let changed = stvor_tlog::Note::parse(changed.as_bytes()).unwrap();
    assert!(Attestation::open(&changed, (ORIGIN, &keys)).is_err());
    assert_eq!(vault.attest("two\nlines").unwrap_err().code(), "VAULT_BAD_REQUEST");
}

#[test]
fn work_that_logs_and_is_then_refused_leaves_the_log_whole() {
    let world = World::new();
    let vault = world.open();
    let old = store(&vault, "old", Level::Working);
    // Level 5 can not be written, which is found after the older memory was marked.
    let mut newer = NewMemory::new(b"new", Level::Black, "home");
    newer.supersedes = Some(old);
    assert_eq!(refusal(vault.store(OWNER, newer)), Refusal::NoToken);
    assert_eq!(vault.recall(OWNER, old, "").unwrap().content.expose(), b"old");
    assert_eq!(vault.verify().unwrap().problems, []);
}
