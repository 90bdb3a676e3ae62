//! The frozen vectors of the P256 profile (`tests/vectors/*.json`) and, as part of the test `x25519`, of the X25519 profile
//! (`tests/vectors/x25519/*.json`), checked in three ways: this build still makes the same bytes, it still reads them, and a second implementation written from `docs/specification.md` does both.
//!
//! A file is frozen once. Where a format gets a new version, its vectors get a new file and the old one stays, as what
//! must still be read. `cargo test -p stvor-protocol --test vectors -- --ignored` writes files that do not exist yet.
#![cfg(test)]
#![allow(missing_docs, unreachable_pub, clippy::needless_update)]

#[path = "vectors/build.rs"]
mod build;
#[path = "vectors/consume.rs"]
mod consume;
#[path = "vectors/groups.rs"]
mod groups;
#[path = "vectors/labels.rs"]
mod labels;
#[path = "vectors/party.rs"]
mod party;
#[path = "vectors/recovery.rs"]
mod recovery;
#[path = "vectors/rotations.rs"]
mod rotations;
#[path = "vectors/rows.rs"]
mod rows;
#[path = "vectors/spec.rs"]
mod spec;

use std::path::PathBuf;

use serde_json::Value;
use stvor_base::Suite;

/// The suite of this test program: the same files make one for each.
pub fn suite() -> Suite {
    if module_path!().starts_with("x25519") { Suite::X25519 } else { Suite::P256 }
}

/// A label of the suite, as the specification writes it.
pub fn label(name: &str) -> Vec<u8> {
    format!("STVOR 1 {} {name}", suite().name()).into_bytes()
}

pub fn path(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    // Padding is the same for all.
    let own = suite() == Suite::X25519 && name != "padding.json";
    if own { folder.join("x25519").join(name) } else { folder.join(name) }
}

/// A frozen file. That it is missing or empty is a failure.
pub fn frozen(name: &str) -> Value {
    let path = path(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(value["format"], 1, "{name}");
    value
}

fn render(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap();
    text.push('\n');
    text
}

/// Where two values first differ.
fn difference(at: &str, frozen: &Value, made: &Value) -> Option<String> {
    match (frozen, made) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            a.iter().find_map(|(key, value)| difference(&format!("{at}.{key}"), value, &b[key]))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            (0..a.len()).find_map(|i| difference(&format!("{at}[{i}]"), &a[i], &b[i]))
        }
        (a, b) if a == b => None,
        (a, b) => Some(format!("{at}:\n  frozen {a:.200}\n  made   {b:.200}")),
    }
}

fn recompute(name: &str, made: &Value) {
    if let Some(difference) = difference(name, &frozen(name), made) {
        panic!("this build makes other bytes than the ones that were frozen, at {difference}");
    }
}

#[test]
fn identities_device_lists_and_log_ins_have_the_frozen_bytes() {
    recompute("identities.json", &build::identities());
}

#[test]
fn prekeys_and_what_signs_them_have_the_frozen_bytes() {
    recompute("prekeys.json", &build::prekeys());
}

#[test]
fn handshakes_have_the_frozen_bytes() {
    recompute("handshakes.json", &build::handshakes());
}

#[test]
fn messages_have_the_frozen_bytes() {
    recompute("conversation.json", &build::conversation());
}

#[test]
fn padding_has_the_frozen_sizes() {
    recompute("padding.json", &build::padding());
}

#[test]
fn safety_numbers_have_the_frozen_digits() {
    recompute("safety.json", &build::safety());
}

#[test]
fn a_build_that_writes_other_records_must_call_them_a_new_version() {
    recompute("records.json", &build::records());
}

#[test]
fn every_vector_file_is_one_that_a_test_reads() {
    let folder = path("");
    let mut found: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".json"))
        .collect();
    found.sort();
    let mut known: Vec<_> = build::all().into_iter().map(|(name, _)| name).collect();
    known.retain(|name| suite() == Suite::P256 || *name != "padding.json");
    known.sort_unstable();
    assert_eq!(found, known);
}

#[test]
#[ignore = "freezes vectors of a new format; never writes over a file"]
fn freeze() {
    for (name, value) in build::all() {
        if !path(name).exists() {
            std::fs::write(path(name), render(&value)).unwrap();
        }
    }
}
