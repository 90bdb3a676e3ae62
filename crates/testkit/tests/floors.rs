//! The floors of ARCHITECTURE.md, held against what cargo says.

#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// What each crate may name in its normal and build dependencies. Anything else is an arrow that points up or
/// sideways.
const FLOORS: &[(&str, &[&str])] = &[
    ("stvor-base", &[]),
    ("stvor-crypto", &["stvor-base"]),
    ("stvor-protocol", &["stvor-base", "stvor-crypto"]),
    ("stvor-keys", &["stvor-base", "stvor-crypto"]),
    ("stvor-tlog", &["stvor-base", "stvor-crypto"]),
    ("stvor-vault", &["stvor-base", "stvor-crypto", "stvor-keys", "stvor-tlog"]),
    ("stvor-store", &["stvor-base", "stvor-crypto", "stvor-keys"]),
    ("stvor-wire", &["stvor-base", "stvor-crypto"]),
    ("stvor-relay", &["stvor-base", "stvor-crypto", "stvor-wire"]),
    ("stvor", &["stvor-base", "stvor-crypto", "stvor-keys", "stvor-protocol", "stvor-store", "stvor-wire"]),
    (
        "stvor-cli",
        &[
            "stvor-base",
            "stvor-crypto",
            "stvor-keys",
            "stvor-tlog",
            "stvor-wire",
            "stvor",
            "stvor-relay",
            "stvor-vault",
        ],
    ),
    (
        "stvor-node",
        &[
            "stvor-base",
            "stvor-crypto",
            "stvor-keys",
            "stvor-protocol",
            "stvor-store",
            "stvor",
            "stvor-relay",
        ],
    ),
    ("stvor-libsignal", &["stvor-base", "stvor-crypto", "stvor-protocol"]),
    ("stvor-testkit", &["stvor-base", "stvor-crypto", "stvor-keys"]),
    (
        "stvor-bench",
        &[
            "stvor-base",
            "stvor-crypto",
            "stvor-keys",
            "stvor-protocol",
            "stvor-store",
            "stvor-wire",
            "stvor",
            "stvor-relay",
            "stvor-vault",
            "stvor-testkit",
        ],
    ),
];

/// What tests may name beyond that: the testkit serves all, the SDK is tested against the real relay, and the tests of
/// the testkit judge the whole repository (secret scan, code of the book).
const TEST_ARROWS: &[(&str, &str)] = &[
    // Itself, with every feature.
    ("stvor-store", "stvor-store"),
    ("stvor", "stvor-relay"),
    ("stvor-testkit", "stvor"),
    ("stvor-testkit", "stvor-relay"),
    ("stvor-testkit", "stvor-wire"),
];

/// Libraries of primitives. Only `crypto` names them; `rustls` brings its own use of aws-lc, and `bench` names peers
/// to be compared with.
const PRIMITIVES: &[&str] = &[
    "aes",
    "aes-gcm",
    "argon2",
    "aws-lc-rs",
    "aws-lc-sys",
    "blake2",
    "blake3",
    "bulletproofs",
    "cbc",
    "chacha20poly1305",
    "crypto_secretbox",
    "curve25519-dalek",
    "digest",
    "ecdsa",
    "ed25519-dalek",
    "elliptic-curve",
    "getrandom",
    "hkdf",
    "hmac",
    "merlin",
    "ml-kem",
    "openssl",
    "p256",
    "pbkdf2",
    "ring",
    "scrypt",
    "sha1",
    "sha2",
    "sha3",
    "signature",
    "vodozemac",
    "x25519-dalek",
];

/// Dependencies that would make a crate able to draw in a runtime.
const RUNTIMES: &[&str] = &["tokio", "async-std", "smol", "futures"];

fn metadata() -> Metadata {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
    MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap()
}

fn packages(metadata: &Metadata) -> BTreeMap<String, &Package> {
    metadata.workspace_packages().into_iter().map(|package| (package.name.to_string(), package)).collect()
}

fn names<'a>(package: &'a Package, kinds: &'a [DependencyKind]) -> impl Iterator<Item = &'a str> {
    package.dependencies.iter().filter(|dependency| kinds.contains(&dependency.kind)).map(|d| d.name.as_str())
}

const SHIPPED: &[DependencyKind] = &[DependencyKind::Normal, DependencyKind::Build];

#[test]
fn every_crate_stands_on_a_floor() {
    let metadata = metadata();
    let known: BTreeSet<&str> = FLOORS.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<String> = packages(&metadata).into_keys().collect();
    let unknown: Vec<&String> = found.iter().filter(|name| !known.contains(name.as_str())).collect();
    assert!(unknown.is_empty(), "not in ARCHITECTURE.md: {unknown:?}");
    let gone: Vec<&&str> = known.iter().filter(|name| !found.contains(**name)).collect();
    assert!(gone.is_empty(), "in the list of floors, but not in the workspace: {gone:?}");
}

#[test]
fn arrows_point_down() {
    let metadata = metadata();
    let packages = packages(&metadata);
    let mut wrong = Vec::new();
    for (name, allowed) in FLOORS {
        for arrow in names(packages[*name], SHIPPED) {
            if packages.contains_key(arrow) && !allowed.contains(&arrow) {
                wrong.push(format!("{name} -> {arrow}"));
            }
        }
        for arrow in names(packages[*name], &[DependencyKind::Development]) {
            let down =
                allowed.contains(&arrow) || arrow == "stvor-testkit" || TEST_ARROWS.contains(&(name, arrow));
            if packages.contains_key(arrow) && !down {
                wrong.push(format!("{name} -> {arrow} (development)"));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that ARCHITECTURE.md does not allow: {wrong:?}");
}

#[test]
fn relay_can_not_reach_what_could_decrypt() {
    let metadata = metadata();
    let packages = packages(&metadata);
    let mut reached = BTreeSet::new();
    let mut open = vec!["stvor-relay"];
    while let Some(name) = open.pop() {
        if reached.insert(name) {
            open.extend(names(packages[name], SHIPPED).filter(|arrow| packages.contains_key(*arrow)));
        }
    }
    for forbidden in ["stvor-protocol", "stvor-store", "stvor-keys", "stvor"] {
        assert!(!reached.contains(forbidden), "stvor-relay reaches {forbidden}: {reached:?}");
    }
    assert!(reached.contains("stvor-wire"), "the walk works");
}

#[test]
fn only_crypto_names_a_primitive_library() {
    let metadata = metadata();
    let packages = packages(&metadata);
    let wrong: Vec<String> = packages
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "stvor-crypto" | "stvor-bench"))
        .flat_map(|(name, package)| {
            names(package, SHIPPED).map(move |library| format!("{name} -> {library}"))
        })
        .filter(|arrow| PRIMITIVES.iter().any(|primitive| arrow.ends_with(&format!(" -> {primitive}"))))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(names(packages["stvor-crypto"], SHIPPED).any(|name| name == "aws-lc-rs"), "the walk works");
}

#[test]
fn core_is_synchronous_and_runtime_free() {
    let metadata = metadata();
    let packages = packages(&metadata);
    for name in ["stvor-base", "stvor-crypto", "stvor-protocol", "stvor-tlog"] {
        let runtimes: Vec<&str> =
            names(packages[name], SHIPPED).filter(|name| RUNTIMES.contains(name)).collect();
        assert!(runtimes.is_empty(), "{name} names {runtimes:?}");
    }
}

#[test]
fn all_packages_share_version_3_6_0() {
    let metadata = metadata();
    for (name, package) in packages(&metadata) {
        assert_eq!(package.version.to_string(), "3.6.0", "{name}");
    }
}

#[test]
fn lint_wall_stands_in_every_crate() {
    let metadata = metadata();
    let root = std::fs::read_to_string(metadata.workspace_root.join("Cargo.toml")).unwrap();
    assert!(root.contains("unsafe_code = \"forbid\""), "the workspace forbids unsafe code");
    for (name, package) in packages(&metadata) {
        let manifest = std::fs::read_to_string(&package.manifest_path).unwrap();
        // `crypto` has two allowed corners (memory locking, and one function of aws-lc), and the macros of the Node bindings
        // write calls into Node's C interface: they may carry a table of their own that denies.
        let own_table = matches!(name.as_str(), "stvor-crypto" | "stvor-node" | "stvor-libsignal")
            && manifest.contains("unsafe_code = \"deny\"");
        assert!(manifest.contains("[lints]\nworkspace = true") || own_table, "{name} leaves the lint wall");
    }
}

#[test]
fn one_version_of_the_database_library_and_of_aws_lc() {
    let lock = std::fs::read_to_string(metadata().workspace_root.join("Cargo.lock")).unwrap();
    let versions = |name: &str| lock.lines().filter(|line| *line == format!("name = \"{name}\"")).count();
    assert_eq!(versions("rusqlite"), 1, "features of one version unify");
    assert_eq!(versions("aws-lc-sys"), 1, "what aws-lc-rs calls is what `crypto` calls");
}
