//! A log in a directory: what comes back after restarts, and what shows when somebody was at its files.

#![allow(clippy::unwrap_used, reason = "a helper of a test that fails ends the test")]

use std::fs;
use std::path::{Path, PathBuf};

use stvor_crypto::Secret;
use stvor_tlog::{Signer, TileLog, TlogError, Verifier, limits};

const ORIGIN: &str = "example.com/log";

fn signer() -> Signer {
    Signer::from_seed(ORIGIN, &Secret::new([1; 32])).unwrap()
}

fn trusted() -> [Verifier; 1] {
    [signer().verifier().clone()]
}

fn open(directory: &Path) -> Result<TileLog, TlogError> {
    TileLog::open(directory, ORIGIN, &trusted())
}

fn filled(directory: &Path, size: u64) -> TileLog {
    let mut log = TileLog::create(directory, &signer()).unwrap();
    for number in 0..size {
        log.append(format!("entry {number}").as_bytes()).unwrap();
    }
    log.publish(&[&signer()]).unwrap();
    log
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() { found.extend(files(&entry.path())) } else { found.push(entry.path()) }
    }
    found.sort();
    found
}

#[test]
fn a_log_goes_on_after_restarts_at_any_size() {
    let directory = tempfile::tempdir().unwrap();
    TileLog::create(directory.path(), &signer()).unwrap();
    let mut roots = Vec::new();
    for step in [1_u64, 0, 5, 249, 1, 1, 300, 211] {
        let mut log = open(directory.path()).unwrap();
        roots.push((log.size(), log.checkpoint().root()));
        for number in log.size()..log.size() + step {
            assert_eq!(log.append(format!("entry {number}").as_bytes()).unwrap(), number);
        }
        log.publish(&[&signer()]).unwrap();
        log.audit().unwrap();
    }
    let log = open(directory.path()).unwrap();
    assert_eq!(log.checkpoint().size(), 768);
    for index in [0, 255, 256, 511, 512, 767] {
        let entry = format!("entry {index}");
        assert_eq!(log.entry(index).unwrap(), entry.as_bytes());
        log.prove(index).unwrap().verify(entry.as_bytes(), ORIGIN, &trusted()).unwrap();
    }
    assert!(matches!(log.entry(768), Err(TlogError::OutOfRange { asked: 768, .. })));
    for (size, root) in roots {
        let proof = log.prove_consistency(size).unwrap();
        proof.verify((size, root), (768, log.checkpoint().root())).unwrap();
    }
    assert!(directory.path().join("tile/entries/002").exists(), "laid out as tlog-tiles");
    assert!(directory.path().join("tile/1/000.p/3").exists(), "laid out as tlog-tiles");
}

#[test]
fn entries_that_were_not_published_are_gone_after_a_crash_and_their_place_is_used_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = filled(directory.path(), 300);
    log.append(b"lost").unwrap();
    drop(log);
    // What a crash between the tiles and the checkpoint leaves: a tile that nobody signed.
    fs::write(directory.path().join("tile/0/001.p/45"), [7; 45 * 32]).unwrap();
    let mut log = open(directory.path()).unwrap();
    assert_eq!(log.size(), 300);
    assert_eq!(log.append(b"kept").unwrap(), 300);
    log.publish(&[&signer()]).unwrap();
    let log = open(directory.path()).unwrap();
    log.audit().unwrap();
    assert_eq!(log.entry(300).unwrap(), b"kept");
}

#[test]
fn a_changed_cut_or_missing_file_is_found() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path(), 1_000).audit().unwrap();
    let all = files(directory.path());
    // Four bundles, four tiles of leaves, one above, the checkpoint.
    assert_eq!(all.len(), 10);
    let found = || open(directory.path()).and_then(|log| log.audit());
    found().unwrap();
    for path in all {
        let bytes = fs::read(&path).unwrap();
        let place = path.strip_prefix(directory.path()).unwrap().display().to_string();
        let mut changed = bytes.clone();
        changed[bytes.len() / 2] ^= 1;
        for (damage, what) in
            [(&changed[..], "changed"), (&bytes[..bytes.len() - 1], "cut"), (&[], "emptied")]
        {
            fs::write(&path, damage).unwrap();
            let error = found().expect_err(&format!("{place} {what}"));
            let named = error.to_string();
            let right_edge = named.contains("right edge");
            // Of an entry and the hash of its leaf, either may be the one that was changed.
            let bundle = named.contains("entry ") && place.contains("tile/entries");
            assert!(
                named.contains(&place) || right_edge || bundle || place == "checkpoint",
                "{place}: {named}"
            );
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(found(), Err(TlogError::Missing(_))), "{place} removed");
        fs::write(&path, &bytes).unwrap();
    }
    found().unwrap();
}

#[test]
fn two_entries_that_changed_places_are_found() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path(), 20);
    let path = directory.path().join("tile/entries/000.p/20");
    let text = String::from_utf8(fs::read(&path).unwrap()).unwrap();
    fs::write(
        &path,
        text.replace("entry 3", "entry X").replace("entry 7", "entry 3").replace("entry X", "entry 7"),
    )
    .unwrap();
    let log = open(directory.path()).unwrap();
    assert!(log.audit().unwrap_err().to_string().contains("entry 3"));
    assert_eq!(log.entry(7), Err(TlogError::Corrupt("entry 7".into())));
    assert_eq!(log.entry(8).unwrap(), b"entry 8");
}

#[test]
fn a_log_that_was_written_anew_does_not_continue_the_old_one() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let seen = filled(old.path(), 100).checkpoint().clone();
    let mut log = TileLog::create(new.path(), &signer()).unwrap();
    for number in 0..200 {
        let entry = if number == 50 { "forged".into() } else { format!("entry {number}") };
        log.append(entry.as_bytes()).unwrap();
    }
    log.publish(&[&signer()]).unwrap();
    log.audit().unwrap();
    let proof = log.prove_consistency(100).unwrap();
    let verdict = proof.verify((seen.size(), seen.root()), (200, log.checkpoint().root()));
    assert_eq!(verdict, Err(TlogError::BadProof { what: "consistency" }));
}

#[test]
fn the_longest_entry_fits_and_one_byte_more_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = TileLog::create(directory.path(), &signer()).unwrap();
    let refused = log.append(&vec![1; limits::MAX_ENTRY + 1]);
    assert_eq!(refused, Err(TlogError::EntryTooLong(limits::MAX_ENTRY + 1)));
    log.append(&vec![1; limits::MAX_ENTRY]).unwrap();
    log.append(b"").unwrap();
    log.publish(&[&signer()]).unwrap();
    let log = open(directory.path()).unwrap();
    assert_eq!(log.entry(0).unwrap().len(), limits::MAX_ENTRY);
    assert_eq!(log.entry(1).unwrap(), b"");
}

#[test]
fn a_log_is_not_begun_over_another_and_not_opened_under_another_name() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path(), 3);
    assert!(matches!(TileLog::create(directory.path(), &signer()), Err(TlogError::Io { .. })));
    let other = TileLog::open(directory.path(), "example.com/other", &trusted()).unwrap_err();
    assert_eq!(other, TlogError::OtherLog { found: ORIGIN.into(), expected: "example.com/other".into() });
    let stranger = Signer::from_seed(ORIGIN, &Secret::new([2; 32])).unwrap();
    let untrusted = TileLog::open(directory.path(), ORIGIN, &[stranger.verifier().clone()]).unwrap_err();
    assert_eq!(untrusted, TlogError::Untrusted);
}
