//! A witness, from the log's side and from an attacker's.
#![allow(clippy::unwrap_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use stvor_crypto::random::DeterministicRandom;
use stvor_tlog::witness::{AddCheckpoint, CosignatureVerifier, Cosigner, Witness};
use stvor_tlog::{Checkpoint, ConsistencyProof, Frontier, Hash, MemoryNodes, Note, Signer, TlogError};

const ORIGIN: &str = "example.com/log";

struct Log {
    signer: Signer,
    nodes: MemoryNodes,
    tree: Frontier,
}

impl Log {
    fn new() -> Self {
        let signer = Signer::generate(ORIGIN, &mut DeterministicRandom::from_label("log")).unwrap();
        Self { signer, nodes: MemoryNodes::new(), tree: Frontier::new() }
    }

    fn grow(&mut self, entries: &[&str]) {
        for entry in entries {
            let mut complete = Vec::new();
            self.tree.append(Hash::leaf(entry.as_bytes()), &mut complete).unwrap();
            self.nodes.put(&complete).unwrap();
        }
    }

    fn note(&self) -> Note {
        let checkpoint = Checkpoint::new(ORIGIN, self.tree.size(), self.tree.root()).unwrap();
        checkpoint.sign(&[&self.signer]).unwrap()
    }

    fn ask(&self, old_size: u64) -> AddCheckpoint {
        let proof = ConsistencyProof::make(&self.nodes, old_size, self.tree.size()).unwrap();
        AddCheckpoint { old_size, proof, note: self.note() }
    }
}

fn cosigner() -> Cosigner {
    Cosigner::generate("witness.example/1", &mut DeterministicRandom::from_label("witness")).unwrap()
}

fn witness(log: &Log) -> Witness {
    let mut witness = Witness::new();
    witness.trust(ORIGIN, log.signer.verifier().clone()).unwrap();
    witness
}

#[test]
fn a_log_that_grows_is_signed_and_its_notes_carry_both_signatures() {
    let (mut log, cosigner) = (Log::new(), cosigner());
    let mut witness = witness(&log);
    for (old, entries) in [(0, &["a"][..]), (1, &["b", "c", "d"]), (4, &["e", "f", "g"]), (7, &[])] {
        log.grow(entries);
        let body = log.ask(old).to_string();
        let asked = AddCheckpoint::parse(body.as_bytes()).unwrap();
        assert_eq!(asked.to_string(), body);
        let signed = witness.add(&asked, (&cosigner, 1_000 + old)).unwrap();
        let mut note = log.note();
        note.merge(&signed).unwrap();
        let note = Note::parse(note.to_string().as_bytes()).unwrap();
        let verifier = CosignatureVerifier::parse(&cosigner.verifier().to_string()).unwrap();
        assert_eq!(verifier.open(&note).unwrap(), 1_000 + old);
        Checkpoint::open(&note, ORIGIN, &[log.signer.verifier().clone()]).unwrap();
        // What a witness knows survives its restart.
        witness = Witness::parse(&witness.to_text()).unwrap();
        assert_eq!(witness.newest(ORIGIN), Some((log.tree.size(), log.tree.root())));
    }
}

#[test]
fn a_checkpoint_is_shown_to_go_on_from_an_earlier_one_and_from_no_other() {
    let mut log = Log::new();
    log.grow(&["a", "b", "c"]);
    let old = log.note();
    log.grow(&["d", "e", "f", "g"]);
    let proof = AddCheckpoint::parse(log.ask(3).to_string().as_bytes()).unwrap();
    let trusted = [log.signer.verifier().clone()];
    let (from, to) = proof.verify(&old, ORIGIN, &trusted).unwrap();
    assert_eq!((from.size(), to.size(), to.root()), (3, 7, log.tree.root()));

    let bad = Err(TlogError::BadProof { what: "consistency" });
    // Signed by the log's own key, over another log of the same size, or of another size.
    for entries in [&["a", "x", "c"][..], &["a", "b"], &["a", "b", "c", "d"]] {
        let mut other = Log::new();
        other.grow(entries);
        assert_eq!(proof.verify(&other.note(), ORIGIN, &trusted), bad, "{entries:?}");
    }
    for at in 0..proof.proof.0.len() {
        let mut changed = proof.clone();
        changed.proof.0[at].0[0] ^= 1;
        assert_eq!(changed.verify(&old, ORIGIN, &trusted), bad);
    }
    let shorter = AddCheckpoint { note: old.clone(), ..proof.clone() };
    assert_eq!(shorter.verify(&old, ORIGIN, &trusted), bad, "of another checkpoint");
    assert!(matches!(proof.verify(&old, "other.example", &trusted), Err(TlogError::OtherLog { .. })));
    let stranger = Signer::generate(ORIGIN, &mut DeterministicRandom::from_label("stranger")).unwrap();
    let strange = proof.verify(&old, ORIGIN, &[stranger.verifier().clone()]);
    assert_eq!(strange, Err(TlogError::Untrusted));
    // A key that was retired is good for what it signed, and not for what comes after.
    let retired = [stranger.verifier().clone(), log.signer.verifier().clone()];
    assert_eq!(proof.verify(&old, ORIGIN, &retired), Err(TlogError::Untrusted));
    let before = Note::sign(old.unverified_text(), &[&stranger]).unwrap();
    let present = [log.signer.verifier().clone(), stranger.verifier().clone()];
    proof.verify(&before, ORIGIN, &present).unwrap();
}

#[test]
fn a_log_that_was_written_anew_or_cut_is_not_signed_again() {
    let (mut log, cosigner) = (Log::new(), cosigner());
    let mut witness = witness(&log);
    log.grow(&["a", "b", "c", "d", "e"]);
    witness.add(&log.ask(0), (&cosigner, 1)).unwrap();
    let before = witness.clone();

    let mut other = Log::new();
    other.grow(&["a", "b", "X", "d", "e", "f"]);
    assert_eq!(witness.add(&other.ask(0), (&cosigner, 2)), Err(TlogError::Conflict { size: 5 }));
    assert_eq!(witness.add(&other.ask(5), (&cosigner, 2)), Err(TlogError::BadProof { what: "consistency" }));
    let mut cut = Log::new();
    cut.grow(&["a", "b"]);
    assert_eq!(witness.add(&cut.ask(2), (&cosigner, 2)), Err(TlogError::Conflict { size: 5 }));
    let mut same_size = Log::new();
    same_size.grow(&["a", "b", "c", "d", "X"]);
    assert!(witness.add(&same_size.ask(5), (&cosigner, 2)).is_err());
    let stranger = Signer::generate(ORIGIN, &mut DeterministicRandom::from_label("stranger")).unwrap();
    log.grow(&["f"]);
    let forged = AddCheckpoint {
        note: Checkpoint::new(ORIGIN, 6, log.tree.root()).unwrap().sign(&[&stranger]).unwrap(),
        ..log.ask(5)
    };
    assert_eq!(witness.add(&forged, (&cosigner, 2)), Err(TlogError::Untrusted));
    assert_eq!(witness, before, "a refusal changes nothing");
    witness.add(&log.ask(5), (&cosigner, 2)).unwrap();
}

#[test]
fn a_cosignature_is_of_one_key_one_text_and_one_time() {
    let (mut log, cosigner) = (Log::new(), cosigner());
    log.grow(&["a"]);
    let signed = witness(&log).add(&log.ask(0), (&cosigner, 7)).unwrap();
    let text = signed.to_string();
    let other =
        Cosigner::generate("witness.example/1", &mut DeterministicRandom::from_label("other")).unwrap();
    assert_eq!(other.verifier().open(&signed), Err(TlogError::Untrusted));
    log.grow(&["b"]);
    let moved = text.replace(&signed.unverified_text().to_owned(), log.note().unverified_text());
    let moved = Note::parse(moved.as_bytes()).unwrap();
    assert!(matches!(cosigner.verifier().open(&moved), Err(TlogError::BadSignature { .. })));
    // A log's key is not a witness's, though both are Ed25519.
    assert!(CosignatureVerifier::parse(&log.signer.verifier().to_string()).is_err());
}

/// The id of a cosignature key is SHA-256(name, line feed, 4, key), as C2SP signed-note and tlog-cosignature have it.
#[test]
fn key_ids_are_those_of_the_specification() {
    let verifier = cosigner().verifier().to_string();
    let (name, rest) = verifier.split_once('+').unwrap();
    let (id, key) = rest.split_once('+').unwrap();
    use base64::Engine as _;
    let key = base64::engine::general_purpose::STANDARD.decode(key).unwrap();
    assert_eq!((key[0], key.len()), (4, 33));
    let sum = stvor_crypto::kdf::sha256(&[name.as_bytes(), b"\n", &key]);
    assert_eq!(id, format!("{:02x}{:02x}{:02x}{:02x}", sum[0], sum[1], sum[2], sum[3]));
}

#[test]
fn requests_that_are_not_understood_are_refused() {
    let mut log = Log::new();
    log.grow(&["a"]);
    let good = log.ask(0).to_string();
    for bad in [
        String::new(),
        "old 0".into(),
        good.replace("old 0", "old 00"),
        good.replace("old 0", "old -1"),
        good.replace("old 0", "new 0"),
        good.replace("old 0\n", "old 0\nnothing\n"),
        good.replace(
            "old 0\n",
            &format!("old 0\n{}", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n".repeat(129)),
        ),
    ] {
        assert!(AddCheckpoint::parse(bad.as_bytes()).is_err(), "{bad}");
    }
    for bad in ["", "STVOR witness v2\n", "STVOR witness v1\nkey x\n", "STVOR witness v1\nat 1 x\n"] {
        assert!(Witness::parse(bad).is_err(), "{bad}");
    }
}
