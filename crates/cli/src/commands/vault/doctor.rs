//! `stvor vault doctor`: what is wrong with a vault, and how to fix it. It needs no secret.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use stvor_base::Timestamp;
use stvor_keys::{HolderKind, WrappedKey};
use stvor_vault::daemon::{Client, OwnerVerb};
use stvor_vault::{Mode, Status, VaultError};

use super::landing::is_foreign;
use super::talk::ask_owner;
use super::{Call, session, show};
use crate::commands::doctor::{Check, Report};
use crate::failure::Result;
use crate::render::{grouped, safe};

/// Less room than this is a problem: what can not be logged is not answered.
const ROOM: u64 = 64 << 20;
/// A backup that is older than this is worth a word.
const BACKUP_AGE: Duration = Duration::from_secs(7 * 86_400);
/// A checkpoint outside that is older than the newest event by more than this is worth a word.
const CHECKPOINT_AGE: Duration = Duration::from_secs(300);

/// Makes every check.
pub(super) fn run(call: Call<'_>) -> Result {
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
        for check in files(&path).into_iter().chain(format(&path)) {
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
    for check in machine(&path, &sockets, status.as_ref()) {
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
            open.push(format!("chmod {wanted:o} {}", path.display()));
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
        return vec![Check::problem(NAME, "FILE_ERROR", found, open.join("; "))];
    }
    if about.uid() != rustix::process::getuid().as_raw() {
        return vec![Check::ok(NAME, format!("{} is another user's, and private", path.display()))];
    }
    vec![Check::ok(NAME, format!("{} is private", path.display()))]
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

fn machine(path: &Path, sockets: &Path, status: Option<&Status>) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some(status) = status.filter(|status| status.mode != Mode::Cold) {
        checks.push(clock(status));
        checks.push(Check::ok("log", format!("{} events", grouped(status.events))));
        checks.extend(checkpoint(path, status));
        checks.push(backup(status));
        checks.extend(watchers(status));
    }
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
    if let Some(check) = swap() {
        checks.push(check);
    }
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
        Some(last) if now < last => {
            let found = format!("this clock is {} s behind the newest event of the log", (last - now) / 1000);
            let fix = "set the clock (timedatectl set-ntp true); levels 3 to 5 stay closed until it is right";
            Check::problem("clock", "CLOCK_BACKWARDS", found, fix)
        }
        _ => Check::ok("clock", "not behind the log"),
    }
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

/// A backup that is old, or none, is worth a word.
fn backup(status: &Status) -> Check {
    const NAME: &str = "backup";
    let fix = "stvor vault backup make --dir DIR --to AGE-KEY (docs/vault/backups.md)";
    if status.backups_of_other_formats > 0 {
        let other = status.backups_of_other_formats;
        let found = format!("{other} that were made have a form that this program does not restore");
        return Check::warning(
            NAME,
            found,
            "make a new full one; restore those with the program that made them",
        );
    }
    let Some(made) = status.newest_backup else {
        return Check::warning(NAME, "none was made", fix);
    };
    let age = Duration::from_millis(Timestamp::system().as_millis().saturating_sub(made));
    let found = format!("the newest is {} days old", age.as_secs() / 86_400);
    if age > BACKUP_AGE { Check::warning(NAME, found, fix) } else { Check::ok(NAME, found) }
}

/// A watcher that was to stop and does not know it gives memories of a living owner away.
fn watchers(status: &Status) -> Option<Check> {
    let fix = "put its directory back: stvor vault switch status (docs/vault/recovery.md)";
    let found =
        format!("{} watchers of the dead-man switch do not know what was decided", status.watchers_untold);
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

/// Swap that is not in memory may keep what was in memory.
fn swap() -> Option<Check> {
    let swaps = std::fs::read_to_string("/proc/swaps").ok()?;
    let names: Vec<&str> = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    let plain = names.iter().any(|name| !name.contains("zram") && !name.contains("/dm-"));
    Some(if plain {
        let fix = "encrypt the swap, turn it off (swapoff -a), or start the daemon with ulimit -l unlimited";
        Check::warning("swap", "memory of the daemon may be written to an unencrypted swap", fix)
    } else {
        Check::ok("swap", "none, or encrypted or in memory")
    })
}
