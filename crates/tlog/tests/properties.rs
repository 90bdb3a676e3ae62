//! Trees of every size to a few hundred: every proof verifies, and nothing that was changed does.

#![allow(clippy::unwrap_used, reason = "a helper of a test that fails ends the test")]

use proptest::prelude::*;
use stvor_crypto::Secret;
use stvor_tlog::{
    Checkpoint, ConsistencyProof, Frontier, Hash, InclusionProof, MemoryNodes, Note, ProofFile, Signer,
    TlogError, limits,
};

const MOST: u64 = 260;

fn leaf(index: u64) -> Hash {
    Hash::leaf(&index.to_be_bytes())
}

/// The nodes of a tree of [`MOST`] leaves, and the roots of all its beginnings, the empty one first.
fn tree() -> (MemoryNodes, Vec<Hash>) {
    let (mut tree, mut nodes, mut roots) = (Frontier::new(), MemoryNodes::new(), vec![Hash::empty()]);
    for index in 0..MOST {
        let mut complete = Vec::new();
        tree.append(leaf(index), &mut complete).unwrap();
        nodes.put(&complete).unwrap();
        roots.push(tree.root());
        assert_eq!(Frontier::load(&nodes, index + 1).unwrap(), tree, "the edge of {} leaves", index + 1);
    }
    (nodes, roots)
}

/// Every proof that differs from `hashes` by one changed, one missing or one further hash.
fn changed(hashes: &[Hash]) -> Vec<Vec<Hash>> {
    let mut all = Vec::new();
    for at in 0..hashes.len() {
        let mut other = hashes.to_vec();
        other[at].0[at % 32] ^= 1;
        all.push(other);
        let mut shorter = hashes.to_vec();
        shorter.remove(at);
        all.push(shorter);
    }
    for at in [0, hashes.len()] {
        let mut longer = hashes.to_vec();
        longer.insert(at, Hash::empty());
        all.push(longer);
    }
    all
}

/// The root by the definition of RFC 6962, section 2.1.
fn defined_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Hash::empty(),
        [only] => *only,
        more => {
            let (left, right) = more.split_at(more.len().next_power_of_two() / 2);
            Hash::node(defined_root(left), defined_root(right))
        }
    }
}

#[test]
fn roots_of_all_sizes_are_those_of_the_definition() {
    let leaves: Vec<Hash> = (0..MOST).map(leaf).collect();
    for (size, root) in tree().1.into_iter().enumerate() {
        assert_eq!(root, defined_root(&leaves[..size]), "{size}");
    }
}

#[test]
fn every_inclusion_proof_verifies_and_no_changed_one() {
    let (nodes, roots) = tree();
    for size in 1..=MOST {
        let whole = (size, roots[size as usize]);
        for index in 0..size {
            let proof = InclusionProof::make(&nodes, index, size).unwrap();
            assert!(proof.0.len() <= 9, "logarithmic");
            proof.verify((index, leaf(index)), whole).unwrap();
            assert!(proof.verify((index, leaf(index + 1)), whole).is_err(), "another leaf");
            assert!(proof.verify((size, leaf(index)), whole).is_err(), "past the end");
            let other = (index + 1 + size / 2) % size;
            assert!(
                other == index || proof.verify((other, leaf(index)), whole).is_err(),
                "{index} at {other}"
            );
            let earlier = (size, roots[size as usize - 1]);
            assert!(proof.verify((index, leaf(index)), earlier).is_err(), "another root");
            for hashes in changed(&proof.0) {
                let verdict = InclusionProof(hashes).verify((index, leaf(index)), whole);
                assert_eq!(verdict, Err(TlogError::BadProof { what: "inclusion" }), "{index} of {size}");
            }
        }
    }
}

#[test]
fn every_consistency_proof_verifies_and_no_changed_one() {
    let (nodes, roots) = tree();
    for size in 0..=MOST {
        let whole = (size, roots[size as usize]);
        for old in 0..=size {
            let proof = ConsistencyProof::make(&nodes, old, size).unwrap();
            let begin = (old, roots[old as usize]);
            proof.verify(begin, whole).unwrap();
            assert!(proof.verify((old, leaf(1_000)), whole).is_err(), "another beginning");
            // Every tree continues the empty one.
            assert!(
                old == 0 && size > 0 || proof.verify(begin, (size, leaf(1_000))).is_err(),
                "another tree"
            );
            assert!(old == size || proof.verify(whole, begin).is_err(), "backwards");
            for hashes in changed(&proof.0) {
                let verdict = ConsistencyProof(hashes).verify(begin, whole);
                assert_eq!(verdict, Err(TlogError::BadProof { what: "consistency" }), "{old} to {size}");
            }
        }
    }
}

#[test]
fn what_a_log_does_not_have_can_not_be_proved() {
    let (nodes, _) = tree();
    let out_of_range = |what, asked, size| Some(TlogError::OutOfRange { what, asked, size });
    assert_eq!(InclusionProof::make(&nodes, 7, 7).err(), out_of_range("entry", 7, 7));
    assert_eq!(ConsistencyProof::make(&nodes, 8, 7).err(), out_of_range("size", 8, 7));
    assert!(matches!(InclusionProof::make(&nodes, 0, MOST + 1), Err(TlogError::Missing(_))));
}

#[test]
fn sizes_past_the_limit_are_refused() {
    let root = Hash::empty();
    assert!(Checkpoint::new("log", limits::MAX_SIZE, root).is_ok());
    assert_eq!(Checkpoint::new("log", limits::MAX_SIZE + 1, root).err(), Some(TlogError::Full));
    let proof = InclusionProof(vec![root; 64]);
    assert!(proof.verify((u64::MAX - 1, root), (u64::MAX, root)).is_err());
    assert!(ConsistencyProof(vec![root; 64]).verify((u64::MAX - 1, root), (u64::MAX, root)).is_err());
}

fn signer(name: &str, seed: u8) -> Signer {
    Signer::from_seed(name, &Secret::new([seed; 32])).unwrap()
}

#[test]
fn a_key_is_changed_by_trusting_its_successor_too() {
    let (old, new) = (signer("log", 1), signer("log", 2));
    let both = [old.verifier().clone(), new.verifier().clone()];
    let checkpoint = Checkpoint::new("log", 0, Hash::empty()).unwrap();
    let change = checkpoint.sign(&[&old, &new]).unwrap();
    assert!(Checkpoint::open(&change, "log", &both[..1]).is_ok(), "who knows only the old key");
    assert!(Checkpoint::open(&change, "log", &both[1..]).is_ok(), "who knows only the new key");
    let after = checkpoint.sign(&[&new]).unwrap();
    assert!(Checkpoint::open(&after, "log", &both).is_ok());
    assert_eq!(Checkpoint::open(&after, "log", &both[..1]).err(), Some(TlogError::Untrusted));
}

#[test]
fn a_forged_signature_beside_a_good_one_is_refused() {
    let (one, two) = (signer("one", 1), signer("two", 2));
    let trusted = [one.verifier().clone(), two.verifier().clone()];
    let good = Note::sign("text\n", &[&one, &two]).unwrap().to_string();
    let stranger = Note::sign("other\n", &[&two]).unwrap().to_string();
    let forged = good.lines().take(3).chain(stranger.lines().skip(2)).collect::<Vec<_>>().join("\n") + "\n";
    let forged = Note::parse(forged.as_bytes()).unwrap();
    assert_eq!(forged.open(&trusted), Err(TlogError::BadSignature { name: "two".into() }));
    assert_eq!(forged.open(&trusted[..1]), Ok("text\n"), "signatures of strangers are passed over");
}

#[test]
fn signatures_of_witnesses_join_those_of_the_log() {
    let (log, witness) = (signer("log", 1), signer("witness", 2));
    let mut note = Note::sign("text\n", &[&log]).unwrap();
    let seen = Note::sign("text\n", &[&witness]).unwrap();
    note.merge(&seen).unwrap();
    note.merge(&seen).unwrap();
    assert_eq!(note.to_string().lines().count(), 4);
    assert_eq!(
        Note::parse(note.to_string().as_bytes()).unwrap().open(&[witness.verifier().clone()]),
        Ok("text\n")
    );
    assert!(note.merge(&Note::sign("else\n", &[&witness]).unwrap()).is_err());
}

#[test]
fn malformed_notes_are_refused() {
    let good = Note::sign("text\n", &[&signer("log", 1)]).unwrap().to_string();
    Note::parse(good.as_bytes()).unwrap();
    for (wrong, name) in [
        (String::new(), "nothing"),
        (good.trim_end().to_owned(), "no line end"),
        (good.clone() + "\n", "an empty line behind"),
        (good.replace('\u{2014}', "-"), "another dash"),
        (good.replace("\n\n", "\n"), "no empty line"),
        (good.replace("log ", "l g "), "a space in the name"),
        (good.replace("text", "te\txt"), "a control character"),
        (good.replace("=\n", "\n"), "base64 without its end"),
        (good[5..].to_owned(), "no text"),
    ] {
        assert!(Note::parse(wrong.as_bytes()).is_err(), "{name}: {wrong:?}");
    }
    let line = good.lines().last().unwrap().to_owned() + "\n";
    let with = |count: usize| format!("text\n\n{}", line.repeat(count));
    assert!(Note::parse(with(limits::MAX_SIGNATURES).as_bytes()).is_ok());
    assert!(Note::parse(with(limits::MAX_SIGNATURES + 1).as_bytes()).is_err());
    let of = |length: usize| format!("{}\n\n{line}", "x".repeat(length - line.len() - 2));
    assert!(Note::parse(of(limits::MAX_NOTE).as_bytes()).is_ok());
    assert!(Note::parse(of(limits::MAX_NOTE + 1).as_bytes()).is_err());
}

#[test]
fn malformed_checkpoints_are_refused() {
    let root = Hash::empty().to_base64();
    assert!(Checkpoint::parse(&format!("log\n12\n{root}\nextension\n")).is_ok());
    for wrong in [
        format!("log\n12\n{root}"),
        format!("log\n012\n{root}\n"),
        format!("log\n+12\n{root}\n"),
        format!("log\n-1\n{root}\n"),
        format!("log\n99999999999999999999\n{root}\n"),
        format!("\n12\n{root}\n"),
        format!("log\n12\n{root}\n\n"),
        format!("log\n12\n{}\n", &root[1..]),
        "log\n12\n".to_owned(),
    ] {
        assert!(Checkpoint::parse(&wrong).is_err(), "{wrong:?}");
    }
}

proptest! {
    #[test]
    fn checkpoints_and_proofs_read_what_they_print(
        size in 1..=MOST, at in 0..MOST, extra in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
    ) {
        let (nodes, roots) = tree();
        let index = at % size;
        let signer = signer("example.com/log", 3);
        let checkpoint = Checkpoint::new("example.com/log", size, roots[size as usize]).unwrap();
        let note = checkpoint.with_extension("time 12").unwrap().sign(&[&signer]).unwrap();
        prop_assert_eq!(&Note::parse(note.to_string().as_bytes()).unwrap(), &note);
        let proof = InclusionProof::make(&nodes, index, size).unwrap();
        let file = ProofFile { index, proof, extra, checkpoint: note };
        let text = file.to_string();
        let read = ProofFile::parse(text.as_bytes()).unwrap();
        prop_assert_eq!(&read, &file);
        let trusted = [signer.verifier().clone()];
        prop_assert!(read.verify(&index.to_be_bytes(), "example.com/log", &trusted).is_ok());
        prop_assert!(read.verify(&(index + 1).to_be_bytes(), "example.com/log", &trusted).is_err());
        prop_assert!(read.verify(&index.to_be_bytes(), "example.com/other", &trusted).is_err());
    }
}

#[test]
fn the_edge_of_a_tree_and_what_follows_prove_each_leaf_that_follows() {
    let (nodes, roots) = tree();
    for size in 0..MOST {
        let edge = Frontier::load(&nodes, size).unwrap();
        let mut tree = Frontier::resume(size, edge.roots().to_vec()).unwrap();
        let mut end = MemoryNodes::after(&tree);
        for index in size..MOST {
            let mut complete = Vec::new();
            tree.append(leaf(index), &mut complete).unwrap();
            end.put(&complete).unwrap();
        }
        assert_eq!(Some(&tree.root()), roots.last());
        for index in size..MOST {
            let proof = InclusionProof::make(&end, index, MOST).unwrap();
            assert_eq!(proof, InclusionProof::make(&nodes, index, MOST).unwrap(), "{index} after {size}");
        }
        for index in 0..size {
            let missing = InclusionProof::make(&end, index, MOST).is_err();
            assert!(missing || (size - index).is_power_of_two(), "{index} before {size}");
        }
    }
}
