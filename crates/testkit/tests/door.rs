//! What `./x` says before it begins, with programs in the place of those that would build.

#![cfg(test)]
#![cfg(unix)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use stvor_testkit::process::Finished;
use stvor_testkit::{Spawn, temp_dir};

const GIGABYTE: u64 = 1_000_000_000;

fn program(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// `./x demo` on a disk with so much room, with programs that build nothing in `folder`.
fn demo(folder: &Path, free: u64) -> Finished {
    let target = folder.join("target");
    let described = format!(r#"{{"packages":[],"target_directory":"{}","version":1}}"#, target.display());
    let cargo = format!("case $1 in metadata) echo '{described}' ;; *) echo \"cargo $*\" ;; esac");
    let blocks = free / 1024;
    let df = format!(
        "printf 'Filesystem Blocks Used Available Capacity Mounted\\n/dev/a disk 9 9 {blocks} 9%% /a\\n'"
    );
    for (name, script) in [("cargo", &*cargo), ("df", &*df), ("rustc", "echo 'rustc 9.99.0'"), ("cc", "")] {
        program(folder, name, script);
    }
    let door = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../x");
    let ours = format!("{}:/usr/bin:/bin", folder.display());
    let run = Spawn::new(door)
        .arg("demo")
        .env("PATH", ours)
        .env("HOME", folder)
        .env("LC_ALL", "C")
        .env_remove("CARGO_HOME");
    run.run(Duration::from_secs(60)).unwrap()
}

#[test]
fn a_build_from_nothing_says_what_room_it_takes_and_does_not_begin_without() {
    let folder = temp_dir().unwrap();
    let full = demo(folder.path(), GIGABYTE / 2);
    assert_eq!((full.status.code(), &*full.out), (Some(1), ""), "{}", full.err);
    assert!(
        full.err.contains("x: about 2 GB are needed in") && full.err.contains("make room"),
        "{}",
        full.err
    );
    let roomy = demo(folder.path(), 50 * GIGABYTE + 2_048);
    assert_eq!(roomy.out, "cargo run --release --locked -- demo", "{}", roomy.err);
    assert!(roomy.err.contains("takes about 2 GB") && roomy.err.contains("50 GB are free"), "{}", roomy.err);
    // What was built takes none.
    std::fs::create_dir_all(folder.path().join("target/release/deps")).unwrap();
    let warm = demo(folder.path(), 0);
    assert_eq!((warm.status.code(), &*warm.err), (Some(0), ""));
}
