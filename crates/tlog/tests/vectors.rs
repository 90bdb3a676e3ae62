//! Figures that other implementations published: the Merkle tree of Certificate Transparency, the notes of Go's checksum
//! database and its note package, the paths of tlog-tiles.

#![allow(clippy::unwrap_used, reason = "a helper of a test that fails ends the test")]

use stvor_tlog::tile::{Row, Tile};
use stvor_tlog::{
    Checkpoint, ConsistencyProof, Frontier, Hash, InclusionProof, MemoryNodes, Note, Signer, TlogError,
    Verifier,
};

/// The entries of Certificate Transparency's tests of its Merkle tree.
const ENTRIES: [&str; 8] =
    ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];

/// The roots over the first one, two and so on.
const ROOTS: [&str; 8] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

const A: &str = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7";
const B: &str = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e";
const C: &str = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4";
const D: &str = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b";
const E: &str = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0";
const F: &str = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a";
const G: &str = "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f";

/// Index, size, proof.
const INCLUSION: [(u64, u64, &[&str]); 5] = [
    (0, 1, &[]),
    (0, 8, &[A, B, C]),
    (5, 8, &[D, E, ROOTS[3]]),
    (2, 3, &[ROOTS[1]]),
    (1, 5, &[ROOTS[0], B, D]),
];

/// Old size, size, proof.
const CONSISTENCY: [(u64, u64, &[&str]); 5] =
    [(1, 1, &[]), (1, 8, &[A, B, C]), (6, 8, &[F, E, ROOTS[3]]), (2, 5, &[B, D]), (6, 7, &[F, G, ROOTS[3]])];

fn hash(text: &str) -> Hash {
    Hash(hex::decode(text).unwrap().try_into().unwrap())
}

fn tree() -> (MemoryNodes, Vec<Hash>) {
    let (mut tree, mut nodes, mut roots) = (Frontier::new(), MemoryNodes::new(), Vec::new());
    for entry in ENTRIES {
        let mut complete = Vec::new();
        tree.append(Hash::leaf(&hex::decode(entry).unwrap()), &mut complete).unwrap();
        nodes.put(&complete).unwrap();
        roots.push(tree.root());
    }
    (nodes, roots)
}

#[test]
fn roots_are_those_of_certificate_transparency() {
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(Frontier::new().root().to_string(), empty);
    assert_eq!(tree().1, ROOTS.map(hash));
}

#[test]
fn inclusion_proofs_are_those_of_certificate_transparency() {
    let (nodes, roots) = tree();
    for (index, size, expected) in INCLUSION {
        let proof = InclusionProof::make(&nodes, index, size).unwrap();
        assert_eq!(proof.0, expected.iter().map(|text| hash(text)).collect::<Vec<_>>(), "{index} of {size}");
        let leaf = Hash::leaf(&hex::decode(ENTRIES[index as usize]).unwrap());
        proof.verify((index, leaf), (size, roots[size as usize - 1])).unwrap();
    }
}

#[test]
fn consistency_proofs_are_those_of_certificate_transparency() {
    let (nodes, roots) = tree();
    for (old, size, expected) in CONSISTENCY {
        let proof = ConsistencyProof::make(&nodes, old, size).unwrap();
        assert_eq!(proof.0, expected.iter().map(|text| hash(text)).collect::<Vec<_>>(), "{old} to {size}");
        proof.verify((old, roots[old as usize - 1]), (size, roots[size as usize - 1])).unwrap();
    }
}

const VERIFIER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const SIGNER: &str = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
const TEXT: &str =
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
const SIGNATURE: &str = "\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

#[test]
fn notes_are_signed_as_by_the_note_package_of_go() {
    let signer = Signer::parse(SIGNER).unwrap();
    assert_eq!(signer.verifier().to_string(), VERIFIER);
    assert_eq!(signer.to_text().expose(), SIGNER.as_bytes());
    let note = Note::sign(TEXT, &[&signer]).unwrap();
    assert_eq!(note.to_string(), format!("{TEXT}\n{SIGNATURE}"));
}

#[test]
fn no_part_of_a_verifier_key_is_one_and_none_with_a_changed_byte() {
    Verifier::parse(VERIFIER).unwrap();
    for from in 0..VERIFIER.len() {
        for to in from..=VERIFIER.len() {
            if (from, to) != (0, VERIFIER.len()) {
                assert!(Verifier::parse(&VERIFIER[from..to]).is_err(), "{from}..{to}");
            }
        }
    }
    for at in 0..VERIFIER.len() {
        let mut changed = VERIFIER.as_bytes().to_vec();
        changed[at] += 1;
        assert!(Verifier::parse(std::str::from_utf8(&changed).unwrap()).is_err(), "{at}");
    }
}

#[test]
fn checkpoints_of_the_go_checksum_database_verify() {
    let key = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8";
    let trusted = [Verifier::parse(key).unwrap()];
    for (size, root, signature) in [
        (
            6_476_701,
            "mb8QLQIs0Z0yP5Cstq6guj87oXWeC9gEM8oVikmm9Wk=",
            "Az3grsLX85Gz+s1SiTbgkuqxgItqFq7gsMUEyVnrsa9LM7Us9S+1xbFIGu95949rj4nPRYfvimWEPWL+o3GeoWwOoAw=",
        ),
        (
            52_544_510,
            "+TGlZfnTizQCJgyZR56QixD8+X4dd8Wefy8U1w6k0Ig=",
            "Az3grn6d1PSjcypDf9bfcFVU5fvJB7VkLc0MAbz8jqeQVnSbAj9pKcsB5dJt5VdswPDUtiFar5LPRBu+uEQAT1CDfAc=",
        ),
    ] {
        let text = format!("go.sum database tree\n{size}\n{root}\n\n\u{2014} sum.golang.org {signature}\n");
        let note = Note::parse(text.as_bytes()).unwrap();
        assert_eq!(note.to_string(), text);
        let read = Checkpoint::open(&note, "go.sum database tree", &trusted).unwrap();
        assert_eq!((read.size(), read.root().to_base64()), (size, root.to_owned()));
        let changed = text.replace(&size.to_string(), &(size + 1).to_string());
        let changed = Note::parse(changed.as_bytes()).unwrap();
        let refused = Checkpoint::open(&changed, "go.sum database tree", &trusted).unwrap_err();
        assert_eq!(refused, TlogError::BadSignature { name: "sum.golang.org".into() });
    }
}

#[test]
fn tile_paths_are_those_of_the_specification() {
    for (row, index, width, path) in [
        (Row::Level(0), 0, 256, "tile/0/000"),
        (Row::Level(0), 1_234_067, 256, "tile/0/x001/x234/067"),
        (Row::Level(3), 4, 17, "tile/3/004.p/17"),
        (Row::Entries, 999, 1, "tile/entries/999.p/1"),
        (Row::Entries, 1_000, 256, "tile/entries/x001/000"),
    ] {
        let tile = Tile { row, index, width };
        assert_eq!(tile.to_string(), path);
        assert_eq!(Tile::parse(path).unwrap(), tile);
    }
    for wrong in [
        "tile/8/000",
        "tile/00/000",
        "tile/0/x000/001",
        "tile/0/1",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/07",
        "tile/data/000",
        "tile/0/x001/x234/067/",
        "tile/0/../000",
        "/tile/0/000",
    ] {
        assert!(Tile::parse(wrong).is_err(), "{wrong}");
    }
}
