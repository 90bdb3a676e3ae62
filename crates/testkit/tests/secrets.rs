//! The secret scan: no tracked file holds what looks like a key or a token.

#![cfg(test)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;
use stvor_wire::token::AppToken;

/// Larger files are data, and are not read.
const MAX_FILE_BYTES: u64 = 4 << 20;

const TOKEN: &str = "STVOR app token";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn kept_list(name: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(root().join(".ci").join(name)).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

fn patterns() -> Vec<(String, Regex)> {
    kept_list("secret-patterns.txt")
        .into_iter()
        .map(|row| (row[0].clone(), Regex::new(&row[1]).unwrap()))
        .collect()
}

/// Tracked files, and new ones that are not ignored.
fn files() -> Vec<PathBuf> {
    let list = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(list.status.success(), "the scan asks git for the files: run it in a clone");
    let names = String::from_utf8(list.stdout).unwrap();
    names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect()
}

/// Names of the patterns that occur in a text. A token of ours counts only if its checksum is right, so that the
/// shape can stand in documentation.
fn findings(patterns: &[(String, Regex)], text: &str) -> BTreeSet<String> {
    let real = |name: &str, found: &str| {
        name != TOKEN || AppToken::parse(found).is_ok_and(|token| token.issued_app().is_some())
    };
    let occurs =
        |(name, pattern): &&(String, Regex)| pattern.find_iter(text).any(|hit| real(name, hit.as_str()));
    patterns.iter().filter(occurs).map(|(name, _)| name.clone()).collect()
}

#[test]
fn no_tracked_file_holds_a_secret() {
    let (patterns, exceptions) = (patterns(), kept_list("secret-exceptions.txt"));
    let (mut leaks, mut read) = (Vec::new(), 0);
    let mut used = BTreeSet::new();
    for path in files() {
        let full = root().join(&path);
        let Ok(meta) = full.symlink_metadata() else { continue };
        if !meta.is_file() || meta.len() > MAX_FILE_BYTES {
            continue;
        }
        read += 1;
        let text = String::from_utf8_lossy(&std::fs::read(&full).unwrap()).into_owned();
        for name in findings(&patterns, &text) {
            let excused = exceptions.iter().position(|row| Path::new(&row[0]) == path && row[1] == name);
            match excused {
                Some(row) => drop(used.insert(row)),
                None => leaks.push(format!("{}: {name}", path.display())),
            }
        }
    }
    assert!(read > 50, "the scan reads the files");
    assert!(
        leaks.is_empty(),
        "remove and revoke these, or list them in .ci/secret-exceptions.txt: {leaks:#?}"
    );
    let unused: Vec<_> =
        (0..exceptions.len()).filter(|row| !used.contains(row)).map(|row| &exceptions[row]).collect();
    assert!(unused.is_empty(), "exceptions that excuse nothing: {unused:?}");
}

#[test]
fn exceptions_say_why() {
    for row in kept_list("secret-exceptions.txt") {
        assert!(row.len() == 3 && row[2].len() > 10, "path, pattern and reason: {row:?}");
    }
}

#[test]
fn scan_finds_each_kind_of_secret() {
    let patterns = patterns();
    let mut rng = stvor_crypto::random::SystemRandom::new();
    let app = "acme".parse().unwrap();
    let token = AppToken::issue(stvor_wire::token::TokenKind::Live, &app, &mut rng).unwrap();
    // Assembled here, so that this file does not hold what it looks for.
    let dashes = "-".repeat(5);
    let samples = [
        ("private key", format!("{dashes}BEGIN EC PRIVATE KEY{dashes}")),
        (TOKEN, token.expose().to_owned()),
        ("AWS access key", format!("AKIA{}", "A".repeat(16))),
        ("forge token", format!("ghp_{}", "a".repeat(36))),
        ("password in a URL", format!("postgres://user:{}@db.internal/x", "secret")),
    ];
    for (name, sample) in samples {
        assert!(findings(&patterns, &format!("x = \"{sample}\"")).contains(name), "{name}");
    }
}

#[test]
fn token_shape_with_a_wrong_checksum_is_no_finding() {
    let shape = format!("sk_live_acme_{}", "0".repeat(72));
    assert!(!findings(&patterns(), &shape).contains(TOKEN));
}
