//! Disks that are full, read-only, or fail to sync. The test binary is its own child process: `STVOR_DISK_CHILD` says what
//! it does.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use stvor_base::ErrorCode;
use stvor_store::{Key, Op, OpenKey, Scan, Sealed, StoreError, Table, open};
use stvor_testkit::mount::in_a_mount;

/// The user that files belong to when they belong to nobody: not the one who runs this.
const NOBODY: u32 = 65_534;

fn key(sort: u64) -> Key {
    Key::new(Table::Custom, *b"a", sort.to_be_bytes())
}

async fn put(store: &Sealed, sort: u64, value: &[u8]) -> Result<(), StoreError> {
    store.commit([Op::put(key(sort), value.to_vec())].into_iter().collect()).await.map(|_| ())
}

async fn stored(store: &Sealed) -> Vec<u64> {
    let records = store.scan_all(Scan::of(Table::Custom, *b"a"), usize::MAX).await.unwrap();
    records.iter().map(|record| u64::from_be_bytes(record.key.sort.clone().try_into().unwrap())).collect()
}

async fn filled(path: &Path, rows: u64) {
    let store = open(path, OpenKey::Default).await.unwrap().store;
    for sort in 0..rows {
        put(&store, sort, &[7; 1_000]).await.unwrap();
    }
    store.close().await.unwrap();
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// This binary again, as the child that does `role`, with `wrapper` before it.
fn child_under(wrapper: &[&str], binary: &Path, role: &str, path: &Path) -> Command {
    let mut words: Vec<&std::ffi::OsStr> = wrapper.iter().map(std::ffi::OsStr::new).collect();
    words.push(binary.as_os_str());
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(["--exact", "child", "--nocapture", "--ignored"]);
    command.env("STVOR_DISK_CHILD", role).env("STVOR_DISK_PATH", path);
    command.stdin(Stdio::null());
    command
}

fn child_of(role: &str, path: &Path) -> Command {
    child_under(&[], &std::env::current_exe().unwrap(), role, path)
}

/// What the child said, in order.
fn said(mut command: Command) -> Vec<String> {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said: Vec<String> =
        text.lines().filter_map(|line| line.split_once("@@").map(|(_, said)| said.to_owned())).collect();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn say(what: impl std::fmt::Display) {
    println!("@@{what}");
}

/// The child process, not a test of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is the child of the other tests"]
async fn child() {
    let Ok(role) = std::env::var("STVOR_DISK_CHILD") else { return };
    let path = PathBuf::from(std::env::var("STVOR_DISK_PATH").unwrap());
    match role.as_str() {
        "open" => match open(&path, OpenKey::Default).await {
            Ok(_) => say("opened"),
            Err(error) => say(error.render()),
        },
        "fill" => {
            let store = open(&path, OpenKey::Default).await.unwrap().store;
            let mut acknowledged = 0;
            let error = loop {
                match put(&store, acknowledged, &[7; 20_000]).await {
                    Ok(()) => acknowledged += 1,
                    Err(error) => break error,
                }
            };
            say(error.code());
            assert!(acknowledged > 5, "{acknowledged}");
            assert_eq!(stored(&store).await, (0..acknowledged).collect::<Vec<_>>(), "reading goes on");
            // A full disk does not keep the store from closing, opening later, and going on where there is room again.
            let closed = store.close().await;
            assert!(matches!(closed, Ok(()) | Err(StoreError::Full)), "{closed:?}");
            drop(store);
            if let Err(error) = open(&path, OpenKey::Default).await {
                assert_eq!(error.code(), "STORE_FULL");
            }
            std::fs::remove_file(path.with_file_name("ballast")).unwrap();
            let store = open(&path, OpenKey::Default).await.unwrap().store;
            assert_eq!(stored(&store).await, (0..acknowledged).collect::<Vec<_>>());
            put(&store, acknowledged, b"more").await.unwrap();
            say("went on");
        }
        "write" => {
            let failing = PathBuf::from(std::env::var("STVOR_WRITE_FAILS_WHILE").unwrap());
            let store = open(&path, OpenKey::Default).await.unwrap().store;
            put(&store, 0, b"before").await.unwrap();
            std::fs::write(&failing, b"").unwrap();
            say(put(&store, 1, b"during").await.unwrap_err().code());
            assert_eq!(stored(&store).await, [0]);
            std::fs::remove_file(&failing).unwrap();
            put(&store, 2, b"after").await.unwrap();
            assert_eq!(stored(&store).await, [0, 2]);
            say("went on");
        }
        "sync" => {
            let failing = PathBuf::from(std::env::var("STVOR_SYNC_FAILS_WHILE").unwrap());
            let store = open(&path, OpenKey::Default).await.unwrap().store;
            put(&store, 0, b"before").await.unwrap();
            std::fs::write(&failing, b"").unwrap();
            say(put(&store, 1, b"during").await.unwrap_err().code());
            // The disk says that it is well again. The kernel may have dropped what it could not write.
            std::fs::remove_file(&failing).unwrap();
            say(put(&store, 2, b"after").await.unwrap_err().code());
            assert_eq!(
                store.sweep(stvor_base::Timestamp::default(), 1).await.unwrap_err().code(),
                "STORE_IO"
            );
            assert_eq!(stored(&store).await, [0]);
            store.close().await.unwrap();
            let store = open(&path, OpenKey::Default).await.unwrap().store;
            let rows = stored(&store).await;
            assert!(rows == [0] || rows == [0, 1], "{rows:?}");
            put(&store, 3, b"reopened").await.unwrap();
            say("reopened");
        }
        role => panic!("no role {role}"),
    }
}

/// A directory that another user can reach, with this binary in it.
fn open_to_nobody() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    set_mode(directory.path(), 0o755);
    let binary = directory.path().join("test-binary");
    std::fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    (directory, binary)
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

fn give_to_nobody(path: &Path) {
    std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
}

/// The child, as a user whom permissions stop: root is not.
fn unprivileged(binary: &Path, path: &Path) -> Vec<String> {
    let mut command = child_under(&[], binary, "open", path);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.current_dir("/");
    said(command)
}

#[tokio::test]
async fn a_read_only_directory_or_database_is_named_and_changes_nothing() {
    let (directory, binary) = open_to_nobody();
    let home = directory.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let path = home.join("s.db");
    filled(&path, 3).await;
    if is_root() {
        for name in ["", "s.db", "s.db.key", "s.db.lock"] {
            give_to_nobody(&home.join(name));
        }
    }
    assert_eq!(unprivileged(&binary, &path), ["opened"], "it opens while it may be written");
    let good = std::fs::read(&path).unwrap();

    let refused = |name: &str| {
        let said = unprivileged(&binary, &path);
        assert!(said[0].ends_with("[STORE_READ_ONLY]") && said[0].contains("s.db"), "{name}: {said:?}");
        assert!(std::fs::read(&path).unwrap() == good, "{name}");
    };
    set_mode(&path, 0o400);
    refused("the database");
    set_mode(&path, 0o600);
    set_mode(&home.join("s.db.lock"), 0o400);
    refused("the lock");
    set_mode(&home.join("s.db.lock"), 0o600);
    set_mode(&home, 0o500);
    refused("the directory, with the lock file in it");
    set_mode(&home, 0o700);
    std::fs::remove_file(home.join("s.db.lock")).unwrap();
    set_mode(&home, 0o500);
    refused("the directory, without the lock file");
    set_mode(&home, 0o700);
    assert_eq!(unprivileged(&binary, &path), ["opened"]);

    let fresh = directory.path().join("fresh/s.db");
    assert!(unprivileged(&binary, &fresh)[0].ends_with("[STORE_READ_ONLY]"), "no directory can be made");
}

#[tokio::test]
async fn a_read_only_mount_is_named_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let path = home.join("s.db");
    filled(&path, 3).await;
    let good = std::fs::read(&path).unwrap();
    let script = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    let Some(wrapper) = in_a_mount(script, home.to_str().unwrap()) else { return };
    let binary = std::env::current_exe().unwrap();
    for name in ["s.db", "fresh.db", "below/fresh.db"] {
        let said = said(child_under(&wrapper, &binary, "open", &home.join(name)));
        assert!(said[0].ends_with("[STORE_READ_ONLY]") && said[0].contains("home"), "{name}: {said:?}");
    }
    assert!(std::fs::read(&path).unwrap() == good);
    assert_eq!(said(child_of("open", &path)), ["opened"], "where it may be written it opens");
}

#[test]
fn a_full_disk_loses_nothing_and_the_store_goes_on_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let mount = directory.path().join("small");
    std::fs::create_dir(&mount).unwrap();
    let script =
        "mount -t tmpfs -o size=1m none \"$0\" && head -c 300000 /dev/zero > \"$0/ballast\" && exec \"$@\"";
    let Some(wrapper) = in_a_mount(script, mount.to_str().unwrap()) else { return };
    let binary = std::env::current_exe().unwrap();
    let said = said(child_under(&wrapper, &binary, "fill", &mount.join("s.db")));
    assert_eq!(said, ["STORE_FULL", "went on"]);
}

/// Makes `fsync` and `fdatasync`, or writes at a place, fail while a file exists.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/types.h>
#include <sys/syscall.h>
#include <unistd.h>
static int fails(void) { const char *name = getenv("STVOR_SYNC_FAILS_WHILE"); return name && access(name, F_OK) == 0; }
int fsync(int file) { if (fails()) { errno = EIO; return -1; } return syscall(SYS_fsync, file); }
static int no_write(void) { const char *name = getenv("STVOR_WRITE_FAILS_WHILE"); return name && access(name, F_OK) == 0; }
ssize_t pwrite64(int file, const void *bytes, size_t count, off_t at) {
  if (no_write()) { errno = EIO; return -1; }
  return syscall(SYS_pwrite64, file, bytes, count, at);
}
ssize_t pwrite(int file, const void *bytes, size_t count, off_t at) { return pwrite64(file, bytes, count, at); }
int fdatasync(int file) { if (fails()) { errno = EIO; return -1; } return syscall(SYS_fdatasync, file); }
"#;

/// The library of [`SHIM`] in `directory`; `None` where nothing compiles it.
fn shim_in(directory: &Path) -> Option<PathBuf> {
    let (source, shim) = (directory.join("shim.c"), directory.join("shim.so"));
    std::fs::write(&source, SHIM).unwrap();
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&shim).arg(&source).output();
    if !compiled.is_ok_and(|compiled| compiled.status.success()) {
        println!(
            "skipped: no C compiler makes the library that fails to sync (apt-get install gcc libc6-dev)"
        );
        return None;
    }
    Some(shim)
}

#[test]
fn a_disk_that_refuses_a_write_is_not_called_full_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let Some(shim) = shim_in(directory.path()) else { return };
    let mut command = child_of("write", &directory.path().join("s.db"));
    command.env("LD_PRELOAD", &shim).env("STVOR_WRITE_FAILS_WHILE", directory.path().join("failing"));
    assert_eq!(said(command), ["STORE_IO", "went on"]);
    assert!(!directory.path().join("s.db.probe").exists());
}

#[test]
fn after_a_failed_sync_nothing_more_is_promised_until_the_store_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let Some(shim) = shim_in(directory.path()) else { return };
    let mut command = child_of("sync", &directory.path().join("s.db"));
    command.env("LD_PRELOAD", &shim).env("STVOR_SYNC_FAILS_WHILE", directory.path().join("failing"));
    assert_eq!(said(command), ["STORE_IO", "STORE_IO", "reopened"]);
}
