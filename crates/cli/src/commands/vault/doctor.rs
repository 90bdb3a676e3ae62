//! `stvor vault doctor`: what is wrong with a vault, and how to fix it. It needs no secret.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use stvor_base::Timestamp;
use stvor_keys::{HolderKind, WrappedKey};
use stvor_vault::backup::BackupName;
use stvor_vault::daemon::{Client, OwnerVerb};
use stvor_vault::{Memory, Mode, Status, VaultError};

use super::landing::is_foreign;
use super::talk::ask_owner;
use super::{Call, session, show};
use crate::commands::doctor::{Check, Report};
use crate::failure::Result;
use crate::render::{grouped, rfc3339, safe};

/// Less room than this is a problem: what can not be logged is not answered.
const ROOM: u64 = 64 << 20;
/// A backup that is older than this is worth a word.
const BACKUP_AGE: Duration = Duration::from_secs(7 * 86_400);
/// Clocks of file systems are as coarse as two seconds; less than this behind a file is nothing.
const FILE_SLACK: u64 = 5_000;
const BACKUP: &str = "backup";
/// A checkpoint outside that is older than the newest event by more than this is worth a word.
const CHECKPOINT_AGE: Duration = Duration::from_secs(300);

/// Makes every check.
pub(super) fn run(call: Call<'_>, backups: &[PathBuf]) -> Result {
    let mut report = Report::new(call.out());
    let (path, sockets) = (call.path()?, call.sockets()?);
    let client = call.stranger();
    // What another user's daemon keeps is not where this user's own would be.
    let keeper = client.as_ref().ok().filter(|client| is_foreign(client)).and_then(Client::served_by);
    if (keeper.is_some() || sockets != path) && std::fs::metadata(&path).is_err() {
        let whose = keeper.map_or_else(|| "the daemon's user".to_owned(), |user| format!("user {user}"));
        let found =
            format!("{whose} keeps them; `stvor vault doctor --vault DIR` as that user looks at them");
        report.add(Check::ok("files", found))?;
    } else {
        for check in files(&path).into_iter().chain(format(&path)).chain(copies(&path)) {
            report.add(check)?;
        }
    }
    let status = match client {
        Ok(mut client) => {
            let status = status(&mut client);
            for check in daemon(&client, &status) {
                report.add(check)?;
            }
            status.ok()
        }
        Err(failure) => {
            let fix = format!("start it: stvor vault serve --vault {}", path.display());
            report.add(Check::failure("daemon", &failure, fix))?;
            None
        }
    };
    let memory = status.as_ref().and_then(|status| status.memory);
    let status = status.filter(|status| status.mode != Mode::Cold);
    let kept = match &status {
        Some(status) => kept(&path, status),
        None => {
            let lists = call.context.settings.vault.forgotten.iter();
            let beside = lists.filter_map(|list| list.parent().map(Path::to_owned)).collect::<Vec<_>>();
            kept_by_files(&path, if backups.is_empty() { &beside } else { backups })
        }
    };
    for check in kept.into_iter().chain(machine(&path, &sockets, memory)) {
        report.add(check)?;
    }
    report.add(call.tpm_check())?;
    report.end()
}

fn status(client: &mut Client) -> Result<Status> {
    show::parsed(ask_owner(client, &OwnerVerb::Status {})?)
}

/// The directory and its files: there, and nobody else's.
fn files(path: &Path) -> Vec<Check> {
    const NAME: &str = "files";
    let about = match std::fs::metadata(path) {
        Ok(about) => about,
        // The daemon of another user keeps it to itself, and that is as it should be.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return vec![Check::ok(NAME, format!("{} is another user's", path.display()))];
        }
        Err(_) => {
            let found = format!("there is no vault at {}", path.display());
            return vec![Check::problem(NAME, "VAULT_MISSING", found, "make one: stvor vault init")];
        }
    };
    let mut open = Vec::new();
    let mut judge = |path: &Path, mode: u32, wanted: u32| {
        if mode & 0o077 != 0 {
            open.push(format!("chmod {wanted:o} {}", quoted(path)));
        }
    };
    judge(path, about.permissions().mode() & 0o777, 0o700);
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if let Ok(about) = entry.metadata()
            && about.is_file()
        {
            judge(&entry.path(), about.permissions().mode() & 0o777, 0o600);
        }
    }
    if !open.is_empty() {
        let found = format!("{} of the vault's files can be read by others", open.len());
        // FAT, for one.
        let fix = format!(
            "{}; where that changes nothing the file system keeps no permissions: move the vault",
            open.join("; ")
        );
        return vec![Check::problem(NAME, "FILE_ERROR", found, fix)];
    }
    if about.uid() != rustix::process::getuid().as_raw() {
        return vec![Check::ok(NAME, format!("{} is another user's, and private", path.display()))];
    }
    vec![Check::ok(NAME, format!("{} is private", path.display()))]
}

/// A path as a shell takes it for one word.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |one: char| one.is_ascii_alphanumeric() || "/._-".contains(one);
    if text.starts_with('/') && text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Vaults of before, which a restore keeps beside this one, and restores that were killed or are under way. They hold what was
/// forgotten since, and one that was newer than the backup holds what nothing else does.
fn copies(path: &Path) -> Option<Check> {
    let path = std::path::absolute(path).ok()?;
    let name = path.file_name()?.to_str()?;
    let entries = std::fs::read_dir(path.parent()?).ok()?.flatten();
    let copy = |name_of: &str| {
        name_of.strip_prefix(name).is_some_and(|rest| rest.starts_with(".before-"))
            || name_of
                .strip_prefix('.')
                .and_then(|of| of.strip_prefix(name))
                .is_some_and(|rest| rest.starts_with(".restoring-"))
    };
    let found =
        entries.filter(|entry| entry.file_name().to_str().is_some_and(copy)).map(|entry| entry.path());
    let mut found: Vec<String> = found.filter(|path| path.is_dir()).map(|path| quoted(&path)).collect();
    if found.is_empty() {
        return None;
    }
    found.sort_unstable();
    let said = format!(
        "{} vaults that a restore replaced or did not finish are beside it: they hold what was forgotten since, and what was stored \
         after the backup",
        found.len()
    );
    let fix = format!("when nothing of them is missed and no restore runs, remove: {}", found.join(" "));
    Some(Check::warning("copies", said, fix))
}

fn daemon(client: &Client, status: &Result<Status>) -> Vec<Check> {
    let status = match status {
        Ok(status) => status,
        Err(failure) => {
            return vec![Check::failure(
                "daemon",
                failure,
                "restart it; if that does not help: stvor vault verify",
            )];
        }
    };
    let mut checks = vec![match status.mode {
        Mode::Cold => Check::warning("state", "cold: every request is refused", "stvor vault unlock"),
        mode => Check::ok("state", show::mode(mode)),
    }];
    if let Some(lockdown) = &status.lockdown {
        let found = format!("LOCKDOWN by {}: {}", safe(&lockdown.by), safe(&lockdown.reason));
        let fix = "find out why, then: stvor vault lockdown leave";
        checks.push(Check::problem("lockdown", "VAULT_LOCKDOWN", found, fix));
    }
    checks.push(if session::isolated(client.served_by()) {
        Check::ok("contains", "the daemon runs as another user")
    } else {
        let fix = "against agents with a shell, give the daemon a user of its own (docs/vault/isolated.md)";
        Check::warning("contains", "the daemon runs as this user", fix)
    });
    if let Some(record) = client.records().and_then(|records| WrappedKey::decode(&records.root).ok()) {
        checks.push(match record.kind() {
            HolderKind::Keyfile => {
                let fix = "keep it on a medium that agents can not read, or use a passphrase (stvor vault passphrase)";
                Check::warning("secret", "a keyfile opens the vault: who can read it is the owner", fix)
            }
            kind => Check::ok("secret", format!("a {} opens the vault", kind.name())),
        });
    }
    checks
}

/// Log and backups, as the daemon knows them.
fn kept(path: &Path, status: &Status) -> Vec<Check> {
    let newest = status.last_event.map(|last| {
        let age = Timestamp::system().as_millis().saturating_sub(last) / 1_000;
        format!(", the newest of {} ({} h ago)", rfc3339(Timestamp::from_millis(last)), age / 3_600)
    });
    let log = format!("{} events{}", grouped(status.events), newest.unwrap_or_default());
    let mut checks = vec![clock(status), Check::ok("log", log)];
    checks.extend(checkpoint(path, status));
    checks.extend(backups(status));
    checks.extend(watchers(status));
    checks
}

/// The same, as far as files tell of a vault that is cold or not served: no key is held to read more.
fn kept_by_files(path: &Path, directories: &[PathBuf]) -> Vec<Check> {
    let written = |name: &str| std::fs::metadata(path.join(name)).and_then(|about| about.modified()).ok();
    let millis = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    };
    let shown = |time: SystemTime| rfc3339(Timestamp::from_millis(millis(time)));
    // Without it there is no vault, or another user's; that was said.
    let Some(last) = ["vault.db", "vault.db-wal"].into_iter().filter_map(written).max() else {
        return Vec::new();
    };
    let behind = millis(last).saturating_sub(Timestamp::system().as_millis());
    let mut checks = vec![
        if behind > FILE_SLACK {
            behind_the_log(behind, "the newest write of the database")
        } else {
            Check::ok("clock", "not behind the vault's files")
        },
        Check::ok("log", format!("last written {}", shown(last))),
    ];
    checks.push(match written("checkpoints") {
        Some(at) => Check::ok("checkpoint", format!("the newest outside was written {}", shown(at))),
        None => Check::warning(
            "checkpoint",
            "there is none outside the database",
            "unlock the vault: it says what is missing (stvor vault verify)",
        ),
    });
    let files = directories.iter().filter_map(|directory| std::fs::read_dir(directory).ok()).flatten();
    let names = files.flatten().filter_map(|file| file.file_name().to_str()?.parse::<BackupName>().ok());
    checks.push(match (names.map(|name| name.made).max(), directories) {
        (None, []) => Check::warning(
            "backup",
            "a cold vault does not say which were made",
            "say where they are (stvor vault doctor --backups DIR), or unlock it",
        ),
        (made, _) => backup_age(made),
    });
    checks
}

fn machine(path: &Path, sockets: &Path, memory: Option<Memory>) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Ok(room) = rustix::fs::statvfs(path) {
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        checks.push(if free < ROOM {
            let found = format!("{} MiB are free", free >> 20);
            Check::problem(
                "room",
                "VAULT_LOG_UNAVAILABLE",
                found,
                "make room: what can not be logged is refused",
            )
        } else {
            Check::ok("room", format!("{} MiB are free", grouped(free >> 20)))
        });
    }
    checks.extend(swap(memory));
    if sockets != path
        && let Ok(about) = std::fs::metadata(sockets)
        && about.permissions().mode() & 0o002 != 0
    {
        let fix = format!("chmod o-w {}", sockets.display());
        checks.push(Check::problem("sockets", "FILE_ERROR", "anybody can replace the sockets", fix));
    }
    checks
}

/// A clock behind the newest event keeps levels 3 to 5 closed.
fn clock(status: &Status) -> Check {
    let now = Timestamp::system().as_millis();
    match status.last_event {
        Some(last) if now < last => behind_the_log(last - now, "the newest event of the log"),
        _ => Check::ok("clock", "not behind the log"),
    }
}

fn behind_the_log(millis: u64, what: &str) -> Check {
    let found = format!("this clock is {} s behind {what}", millis / 1_000);
    let fix = "set the clock (timedatectl set-ntp true); levels 3 to 5 and memories with a pause stay closed until it is right";
    Check::problem("clock", "CLOCK_BACKWARDS", found, fix)
}

/// The checkpoints outside the database show a log that was cut; they have to keep up with it.
fn checkpoint(path: &Path, status: &Status) -> Option<Check> {
    let file = path.join("checkpoints");
    let written = std::fs::metadata(&file).and_then(|about| about.modified()).ok()?;
    let last = SystemTime::UNIX_EPOCH + Duration::from_millis(status.last_event.unwrap_or_default());
    let behind = last.duration_since(written).unwrap_or_default();
    Some(if behind > CHECKPOINT_AGE {
        let found = format!("the newest checkpoint outside is {} s older than the log", behind.as_secs());
        Check::warning("checkpoint", found, format!("can {} be written?", file.display()))
    } else {
        let fix = "put a copy on another disk or machine: stvor vault serve --checkpoints FILE";
        match status.checkpoint_files {
            0 | 1 => {
                Check::warning("checkpoint", "the only checkpoints outside are beside the database", fix)
            }
            more => Check::ok("checkpoint", format!("{more} files of checkpoints, up to date")),
        }
    })
}

/// Backups: how old the newest is that this program restores, and whether there are some that it does not restore.
fn backups(status: &Status) -> Vec<Check> {
    let other = status.backups_of_other_formats;
    let others = (other > 0).then(|| {
        let found = format!("{other} that were made have a form that this program does not restore");
        let fix = "make a new full one; restore those with the program that made them";
        Check::warning(BACKUP, found, fix)
    });
    core::iter::once(backup_age(status.newest_backup)).chain(others).collect()
}

/// A backup that is old, or none, is worth a word.
fn backup_age(made: Option<u64>) -> Check {
    let fix = "stvor vault backup make --dir DIR --to AGE-KEY (docs/vault/backups.md)";
    let Some(made) = made else {
        return Check::warning(BACKUP, "none was made", fix);
    };
    let age = Duration::from_millis(Timestamp::system().as_millis().saturating_sub(made));
    let found = format!("the newest is {} days old", age.as_secs() / 86_400);
    if age > BACKUP_AGE { Check::warning(BACKUP, found, fix) } else { Check::ok(BACKUP, found) }
}

/// A watcher that was to stop and does not know it gives memories of a living owner away.
fn watchers(status: &Status) -> Option<Check> {
    let fix = "stvor vault switch status says which and why (docs/vault/recovery.md)";
    let found = format!(
        "{} watchers of the dead-man switch do not know what was decided, or lack a package",
        status.watchers_untold
    );
    (status.watchers_untold > 0).then(|| Check::warning("switch", found, fix))
}

/// The form of the database: one of an older or a newer program does not open.
fn format(path: &Path) -> Option<Check> {
    const NAME: &str = "format";
    match stvor_vault::database_version(path) {
        Ok(version) => Some(Check::ok(NAME, format!("version {version} of the database"))),
        // Another user's, or none: that was said.
        Err(VaultError::Io { .. } | VaultError::Missing(_)) => None,
        Err(error) => {
            let fix = match error {
                VaultError::TooNew { .. } => "update this program",
                VaultError::TooOld { .. } => {
                    "export with the program that made it (stvor vault export), and take that over in a new vault (stvor vault import)"
                }
                _ => "restore a backup: stvor vault restore",
            };
            Some(Check::failure(NAME, &error.into(), fix))
        }
    }
}

/// What the daemon holds in memory, and where it may come to: a swap that is not itself in memory keeps it.
fn swap(memory: Option<Memory>) -> Option<Check> {
    let swaps = std::fs::read_to_string("/proc/swaps").ok();
    let names: Option<Vec<&str>> = swaps
        .as_deref()
        .map(|swaps| swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect());
    memory_and_swap(memory, names.as_deref())
}

/// The same of a daemon and the swaps of the machine, where they are known.
fn memory_and_swap(memory: Option<Memory>, swaps: Option<&[&str]>) -> Option<Check> {
    const NAME: &str = "memory";
    let of_daemon = memory.map(show::memory);
    if matches!(memory, Some(Memory::Locked | Memory::Unswapped)) {
        return of_daemon.map(|found| Check::ok(NAME, found));
    }
    let swaps = swaps?;
    let plain = swaps.iter().any(|name| !name.contains("zram") && !name.contains("/dm-"));
    let of_daemon = of_daemon.unwrap_or("of a daemon that does not say whether it is locked");
    Some(match (plain, swaps.is_empty()) {
        (true, _) => {
            let fix = "start the daemon with ulimit -l unlimited (LimitMEMLOCK=infinity) or in a control group without swap \
                       (MemorySwapMax=0), encrypt the swap, or turn it off (swapoff -a)";
            Check::warning(NAME, format!("{of_daemon}, and this machine has one that is not encrypted"), fix)
        }
        (false, true) => Check::ok(NAME, format!("{of_daemon}, and this machine has none")),
        (false, false) => Check::ok(NAME, format!("{of_daemon}, which is encrypted or in memory here")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_for_a_shell() {
        let said = |path: &str| quoted(Path::new(path));
        assert_eq!(said("/home/a/vault.before-1"), "/home/a/vault.before-1");
        assert_eq!(said("/home/a/my vault.before-1"), "'/home/a/my vault.before-1'");
        assert_eq!(said("/home/a/it's;ls"), r"'/home/a/it'\''s;ls'");
    }

    #[test]
    fn a_clock_behind_the_newest_event_is_a_problem() {
        let now = Timestamp::system().as_millis();
        let shown = |last: Option<u64>| {
            let status = serde_json::from_value(serde_json::json!({
                "mode": "locked", "vaulted": false, "lockdown": null, "events": 1, "root": "", "refused_cold": 0,
                "verifier": "", "retired": [], "last_event": last,
            }));
            let check = clock(&status.unwrap());
            (check.is_good(), serde_json::to_string(&check).unwrap())
        };
        assert!(shown(Some(now)).0 && shown(None).0);
        let (good, said) = shown(Some(now + 3_600_000));
        assert!(!good && said.contains("CLOCK_BACKWARDS"), "{said}");
        assert!(said.contains(" s behind the newest event of the log"), "{said}");
    }

    #[test]
    fn backups_of_another_form_hide_no_age() {
        let now = Timestamp::system().as_millis();
        let status = |newest: Option<u64>| -> Status {
            serde_json::from_value(serde_json::json!({
                "mode": "locked", "vaulted": false, "lockdown": null, "events": 1, "root": "", "refused_cold": 0,
                "verifier": "", "retired": [], "newest_backup": newest, "backups_of_other_formats": 2,
            }))
            .unwrap()
        };
        let shown = |newest| {
            let checks = backups(&status(newest));
            checks
                .iter()
                .map(|check| (check.is_good(), serde_json::to_string(check).unwrap()))
                .collect::<Vec<_>>()
        };
        let day = 86_400_000;
        for (newest, good, said) in [
            (Some(now - 3 * day), true, "the newest is 3 days old"),
            (Some(now - 30 * day), false, "the newest is 30 days old"),
            (None, false, "none was made"),
        ] {
            let checks = shown(newest);
            assert!(checks[0].0 == good && checks[0].1.contains(said), "{checks:?}");
            assert!(!checks[1].0 && checks[1].1.contains("2 that were made have a form"), "{checks:?}");
        }
    }

    #[test]
    fn memory_that_is_not_locked_is_a_warning_where_there_is_a_plain_swap() {
        let shown = |memory, swaps: &[&str]| {
            let check = memory_and_swap(memory, Some(swaps)).unwrap();
            (check.is_good(), serde_json::to_string(&check).unwrap())
        };
        for safe in [Memory::Locked, Memory::Unswapped] {
            assert!(shown(Some(safe), &["/swapfile"]).0);
            assert!(memory_and_swap(Some(safe), None).is_some_and(|check| check.is_good()));
        }
        for memory in [Some(Memory::Exposed), None] {
            let (good, said) = shown(memory, &["/dev/zram0", "/swapfile"]);
            assert!(
                !good && said.contains("ulimit -l unlimited") && said.contains("MemorySwapMax=0"),
                "{said}"
            );
            assert!(shown(memory, &["/dev/zram0", "/dev/dm-1"]).0);
            let (good, said) = shown(memory, &[]);
            assert!(good && said.contains("this machine has none"), "{said}");
            assert!(memory_and_swap(memory, None).is_none());
        }
        assert!(shown(Some(Memory::Exposed), &[]).1.contains("not locked"));
    }
}
