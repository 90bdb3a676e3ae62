//! Decoders of `stvor-tlog`: what they accept is canonical, so writing it again gives the same bytes.

use stvor_crypto::Secret;
use stvor_tlog::tile::{self, Tile};
use stvor_tlog::{
    Checkpoint, ConsistencyProof, Hash, InclusionProof, Note, ProofFile, Signer, TlogError, Verifier,
};

/// The targets of this floor.
pub const TARGETS: &[crate::Target] = &[
    ("tlog-note", note),
    ("tlog-checkpoint", checkpoint),
    ("tlog-keys", keys),
    ("tlog-proof-file", proof_file),
    ("tlog-proofs", proofs),
    ("tlog-tiles", tiles),
];

/// The key of the seeds.
pub fn signer() -> Signer {
    Signer::from_seed("example.com/log", &Secret::new([5; 32])).expect("a signer")
}

/// Only what the key signed opens: the seed's text.
fn note(data: &[u8]) {
    let Ok(note) = Note::parse(data) else { return };
    assert_eq!(note.to_string().as_bytes(), data);
    match note.open(&[signer().verifier().clone()]) {
        Ok(text) => assert_eq!(text, super::seeds::CHECKPOINT),
        Err(error) => assert!(matches!(error, TlogError::Untrusted | TlogError::BadSignature { .. })),
    }
}

fn checkpoint(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(checkpoint) = Checkpoint::parse(text) {
        assert_eq!(checkpoint.to_string(), text);
    }
}

fn keys(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(verifier) = Verifier::parse(text) {
        assert_eq!(verifier.to_string(), text);
    }
    if let Ok(signer) = Signer::parse(text) {
        assert_eq!(signer.to_text().expose(), data);
    }
}

fn proof_file(data: &[u8]) {
    if let Ok(file) = ProofFile::parse(data) {
        assert_eq!(file.to_string().as_bytes(), data);
        assert!(file.verify(b"not in the log", "example.com/log", &[signer().verifier().clone()]).is_err());
    }
}

/// Any index, sizes and hashes: nothing overflows, and nothing leads to a root that no hash of it was made for.
fn proofs(data: &[u8]) {
    let Some((numbers, rest)) = data.split_first_chunk::<16>() else { return };
    let (first, second) = numbers.split_at(8);
    let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("eight bytes"));
    let (first, second) = (number(first), number(second));
    let hashes: Vec<Hash> = rest.as_chunks().0.iter().map(|hash| Hash(*hash)).collect();
    let (leaf, root) = (Hash::leaf(b"fuzz"), Hash::leaf(b"another"));
    assert!(InclusionProof(hashes.clone()).verify((first, leaf), (second, root)).is_err());
    assert!(first == 0 || ConsistencyProof(hashes).verify((first, leaf), (second, root)).is_err());
}

fn tiles(data: &[u8]) {
    if let Ok(path) = std::str::from_utf8(data)
        && let Ok(tile) = Tile::parse(path)
    {
        assert_eq!(tile.to_string(), path);
    }
    let Some((width, bundle)) = data.split_first() else { return };
    if let Ok(entries) = tile::decode_entries(bundle, usize::from(*width)) {
        let mut again = Vec::new();
        for entry in &entries {
            tile::encode_entry(&mut again, entry).expect("an entry that was read");
        }
        assert_eq!(again, bundle);
    }
    if let Ok(hashes) = tile::decode_hashes(bundle, usize::from(*width)) {
        assert_eq!(hashes.len(), usize::from(*width));
    }
}
