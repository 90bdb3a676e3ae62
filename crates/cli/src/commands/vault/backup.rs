//! `stvor vault backup`, `restore`, `export`, `salvage`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use stvor_base::Timestamp;
use stvor_crypto::SecretBytes;
use stvor_keys::recipients::{Identity, Opening};
use stvor_vault::backup::retention::{Retention, superfluous, to_come};
use stvor_vault::backup::{BackupKind, BackupName, BackupRecord, Restore, restore as bring_back};
use stvor_vault::daemon::{Client, Hidden, OwnerVerb, RecoveryVerb};
use stvor_vault::salvage::{SalvageKeys, salvage as read_what_is_left};
use tempfile::NamedTempFile;

use super::draft::{draft, keep};
use super::landing::Landing;
use super::talk::ask_owner;
use super::{Call, show};
use crate::args::{BackupCommand, BackupKey, SecondSecret, VaultRestore};
use crate::failure::{Failure, Result};
use crate::progress::Bar;
use crate::render::{GOOD, LOUD, paint, rfc3339, rows, safe, table};
use crate::secrets;

/// Asks as the owner about what this half of the commands is about.
pub(super) fn ask(client: &mut Client, verb: RecoveryVerb) -> Result<Value> {
    ask_owner(client, &OwnerVerb::Recovery { act: Box::new(verb) })
}

/// The same, and a bar shows how far it is.
pub(super) fn ask_showing(client: &mut Client, verb: RecoveryVerb, bar: Bar) -> Result<Value> {
    let verb = OwnerVerb::Recovery { act: Box::new(verb) };
    let answer = client.call_owner_with(&verb, |done, total| bar.to(done, total));
    bar.end();
    Ok(answer??)
}

/// The path as the daemon sees it, wherever it was started.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|source| Failure::File {
        what: "can not name",
        path: path.into(),
        source,
    })
}

/// The first line of a file with a secret.
pub(super) fn secret(file: &Path, what: &'static str) -> Result<SecretBytes> {
    Ok(SecretBytes::from_slice(secrets::private_line(file, what)?.expose().as_bytes()))
}

pub(super) fn coded(error: impl stvor_base::ErrorCode) -> Failure {
    Failure::coded(&error)
}

/// Makes, lists or rotates backups.
pub(super) fn run(call: Call<'_>, command: &BackupCommand) -> Result {
    let out = call.out();
    match command {
        BackupCommand::Make { dir, to, backup_passphrase_file, incremental, description } => {
            let passphrase = backup_passphrase_file.as_deref();
            let passphrase = passphrase.map(|file| secrets::private_line(file, "the backup's passphrase"));
            let passphrase = passphrase.transpose()?.map(|text| Hidden::new(text.expose().to_owned()));
            let mut client = call.as_owner()?;
            let landing = Landing::at(call.out(), &client, dir)?;
            let verb = RecoveryVerb::Backup {
                directory: landing.directory(),
                kind: if *incremental { BackupKind::Incremental } else { BackupKind::Full },
                recipients: to.clone(),
                passphrase,
                description: description.clone(),
            };
            let bar = Bar::new(out, "rows copied and verified");
            let mut made: BackupRecord = show::parsed(ask_showing(&mut client, verb, bar)?)?;
            made.path = landing.take(&mut client, &made.path)?;
            landing.take_list(&mut client)?;
            out.either(&made, |made| {
                format!(
                    "{}  {} events, {} memories",
                    made.path.display(),
                    made.manifest.size,
                    made.manifest.memories
                )
            })?;
            if made.problems > 0 {
                out.warn(format_args!(
                    "{} things in the vault are damaged, and so they are in this backup: keep the older ones, and see `stvor vault verify`",
                    made.problems
                ));
            }
            out.say("To be read it needs its key and the owner's secret of today: keep both apart from it.");
            Ok(())
        }
        BackupCommand::List => list(call),
        BackupCommand::Rotate { dir, last, daily, weekly, monthly, dry_run } => {
            let keep = Retention { last: *last, daily: *daily, weekly: *weekly, monthly: *monthly };
            rotate(call, dir, (keep, *dry_run))
        }
    }
}

fn list(call: Call<'_>) -> Result {
    let all: Vec<BackupRecord> = show::parsed(ask(&mut call.as_owner()?, RecoveryVerb::Backups {})?)?;
    let out = call.out();
    if out.json {
        return all.iter().try_for_each(|record| out.object(record));
    }
    let mut lines = table(["made", "kind", "events", "there", "file"]);
    for record in &all {
        let kind = match record.manifest.kind {
            BackupKind::Full => "full",
            BackupKind::Incremental => "incremental",
        };
        let there = match (record.path.is_file(), record.problems) {
            (false, _) => paint(LOUD, "no"),
            (true, 0) => paint(GOOD, "yes"),
            (true, _) => paint(LOUD, "damaged"),
        };
        let made = rfc3339(Timestamp::from_millis(record.manifest.made));
        let events = record.manifest.size.to_string();
        lines.add_row([made, kind.into(), events, there, safe(&record.path.display().to_string())]);
    }
    out.line(rows(&lines))
}

fn rotate(call: Call<'_>, dir: &Path, (keep, dry): (Retention, bool)) -> Result {
    let failed = |what, source| Failure::File { what, path: dir.into(), source };
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|source| failed("can not read", source))? {
        let name = entry.map_err(|source| failed("can not read", source))?.file_name();
        all.extend(name.to_str().and_then(|name| name.parse::<BackupName>().ok()));
    }
    let now = Timestamp::system().as_millis();
    let gone = superfluous(&all, keep, now);
    let future = all.iter().filter(|name| to_come(name, now)).count();
    if future > 0 {
        call.out().warn(format_args!(
            "{future} backups have a time that is a day or more to come: they are kept and not counted"
        ));
    }
    for name in &gone {
        let path = dir.join(name.to_string());
        if !dry {
            std::fs::remove_file(&path).map_err(|source| Failure::File {
                what: "can not remove",
                path: path.clone(),
                source,
            })?;
        }
        let object = json!({ "removed": !dry, "file": path.display().to_string() });
        call.out().either(&object, |_| {
            format!("{} {}", if dry { "would remove" } else { "removed" }, path.display())
        })?;
    }
    call.out().say(format_args!("{} of {} stay", all.len() - gone.len(), all.len()));
    Ok(())
}

fn opening(key: &BackupKey) -> Result<Opening> {
    if let Some(file) = &key.identity {
        let bytes = std::fs::read(file);
        let bytes =
            bytes.map_err(|source| Failure::File { what: "can not read", path: file.clone(), source })?;
        return Ok(Opening::with(Identity::parse_file(&SecretBytes::from(bytes)).map_err(coded)?));
    }
    let Some(file) = &key.backup_passphrase_file else {
        return Err(Failure::Usage("give --identity or --backup-passphrase-file".into()));
    };
    Opening::passphrase(&secret(file, "the backup's passphrase")?).map_err(coded)
}

/// Brings the vault back.
pub(super) fn restore(call: Call<'_>, args: &VaultRestore) -> Result {
    let (target, opening) = (call.path()?, opening(&args.key)?);
    let owner = call.owner(None)?;
    let mut wanted = Restore::new(&target, &args.files, (&opening, &*owner));
    (wanted.accept_loss, wanted.accept_damage) = (args.accept_loss, args.accept_damage);
    // What the daemon is told to write elsewhere is known here, too: after a disaster nothing else may be left. Of that some may be
    // gone with the machine; what is named with the command has to be there.
    let settings = &call.context.settings.vault;
    let unheeded = |path: &Path, why: &str| {
        let path = path.display();
        call.out().warn(format_args!("{path} of the settings is {why}: what it says is not heeded"));
    };
    let there = |path: &&PathBuf| {
        let gone = matches!(path.try_exists(), Ok(false));
        if gone {
            unheeded(path, "not there");
        }
        !gone
    };
    // A daemon whose vault logged nothing yet made it so.
    let begun = |path: &&PathBuf| {
        let empty = std::fs::metadata(path).is_ok_and(|about| about.is_file() && about.len() == 0);
        if empty {
            unheeded(path, "empty");
        }
        !empty
    };
    let both = |given: &[PathBuf], set: &[PathBuf]| -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> = given.to_vec();
        all.extend(set.iter().filter(there).filter(|path| !given.contains(path)).cloned());
        all
    };
    let forgotten = both(&args.forgotten, &settings.forgotten);
    let set: Vec<PathBuf> = settings.checkpoints.iter().filter(begun).cloned().collect();
    let checkpoints = both(&args.checkpoints, &set);
    wanted.forgotten = &forgotten;
    wanted.checkpoints = &checkpoints;
    let bar = Bar::working(call.out(), "putting it together and verifying it");
    let done = bring_back(&wanted);
    bar.end();
    let done = done?;
    let before = done.before.as_ref().map(|path| path.display().to_string());
    let object = json!({
        "vault": target.display().to_string(), "memories": done.memories, "events": done.manifest.size,
        "ended_again": done.ended, "lost_events": done.lost_events, "damage": done.damage, "before": before,
        "agents": done.agents, "switch_armed": done.armed,
        "set_aside": done.set_aside.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
    });
    let out = call.out();
    out.either(&object, |_| {
        let found = if done.damage.is_empty() { "verified" } else { "and damage" };
        format!("{}  {} memories, {} events, {found}", target.display(), done.memories, done.manifest.size)
    })?;
    if done.ended > 0 {
        out.say(format_args!("{} memories had ended since the backup, and were ended again", done.ended));
    }
    if done.lost_events > 0 {
        out.warn(format_args!(
            "{} events after the backup are not in the log any more; checkpoints elsewhere will say so",
            done.lost_events
        ));
    }
    for problem in &done.damage {
        out.warn(format_args!("{} is damaged: {}", safe(&problem.place), safe(&problem.reason)));
    }
    for path in &done.set_aside {
        out.say(format_args!("Checkpoints of the history that is lost are kept in {}", path.display()));
    }
    if !done.agents.is_empty() {
        out.warn(format_args!(
            "these agents' credentials are valid again; revoke those that should not be: {}",
            done.agents.join(", ")
        ));
    }
    if done.armed {
        out.warn(
            "the dead-man switch is armed as it was at the time of the backup: arm it anew, or heirs may get nothing (stvor vault switch arm)",
        );
    }
    if let Some(before) = before {
        out.say(format_args!("The vault that was there before is kept as {before}"));
    }
    Ok(())
}

/// A file that was not there, for its owner only.
pub(super) fn new_private(path: &Path) -> Result<std::fs::File> {
    let failed = |source| Failure::File { what: "can not make", path: path.into(), source };
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)
}

/// Writes what can still be read of a vault that does not open.
pub(super) fn salvage(call: Call<'_>, out: &Path, (unlogged, second): (bool, &SecondSecret)) -> Result {
    let owner = call.owner(None)?;
    let second = call.second(second)?;
    if second.is_some() && !unlogged {
        return Err(Failure::Usage(
            "the second secret goes with --unlogged: nothing logs what is read".into(),
        ));
    }
    let keys = SalvageKeys { owner: &*owner, second: second.as_deref(), unlogged };
    let mut file = std::io::BufWriter::new(draft(out)?);
    let mut written = Ok(());
    let bar = Bar::working(call.out(), "reading what is left");
    let found = read_what_is_left(&call.path()?, &keys, |memory| {
        if written.is_ok() {
            written = writeln!(file, "{}", memory.to_json());
        }
    });
    bar.end();
    // Half of it would pass for all of it: nothing is kept before all is there.
    let found = found?;
    let failed = |error| Failure::io("can not write", error);
    written.map_err(failed)?;
    keep(file.into_inner().map_err(|error| failed(error.into_error()))?, out)?;
    let object = json!({
        "memories": found.memories, "with_content": found.with_content, "wrong": found.wrong.to_string(),
    });
    call.out().either(&object, |_| {
        format!("{} of {} memories with their content", found.with_content, found.memories)
    })?;
    call.out().warn(format_args!("the vault does not open: {}", safe(&found.wrong.to_string())));
    call.out().say("What was written is not sealed. Take it over: stvor vault init, serve, import FILE");
    Ok(())
}

/// Writes everything that can be read.
pub(super) fn export(call: Call<'_>, out: Option<&Path>) -> Result {
    let mut client = call.as_owner()?;
    let mut file = out.map(draft).transpose()?;
    let (count, refused) = export_into(call, &mut client, file.as_mut().map(NamedTempFile::as_file_mut))?;
    let without: u64 = refused.values().sum();
    // Half of it would pass for all of it: nothing is kept before all is there.
    if let (Some(file), Some(path)) = (file, out) {
        keep(file, path)?;
        let object = json!({ "memories": count, "without_content": without, "refused": refused });
        call.out().either(&object, |_| format!("{count} memories, {without} of them without content"))?;
    }
    for (code, count) in &refused {
        call.out().say(format_args!("  {count} without content: {} ({code})", why(code)));
    }
    call.out().say("What was exported is not sealed any more.");
    Ok(())
}

/// Returns how many lines there are, and how many of them hold no content, by the code of why.
fn export_into(
    call: Call<'_>,
    client: &mut Client,
    mut file: Option<&mut std::fs::File>,
) -> Result<(u64, BTreeMap<String, u64>)> {
    let failed = |error| Failure::io("can not write", error);
    let (mut after, mut count, mut refused) = (0, 0_u64, BTreeMap::new());
    // Ended ones are lines, too, so there may be more than can be recalled.
    let spaces = ask_owner(client, &OwnerVerb::Namespaces {})?;
    let total: u64 = spaces.as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
    let bar = file.as_ref().map(|_| Bar::new(call.out(), "memories"));
    let show = |count: u64| bar.iter().for_each(|bar| bar.to(count, total.max(count)));
    show(0);
    loop {
        let page = ask(client, RecoveryVerb::Export { after })?;
        for line in page["memories"].as_array().into_iter().flatten() {
            count += 1;
            if let Some(code) = line["refused"].as_str() {
                *refused.entry(code.to_owned()).or_default() += 1;
            }
            match &mut file {
                Some(file) => writeln!(file, "{line}").map_err(failed)?,
                None => call.out().line(line)?,
            }
        }
        show(count);
        match page["next"].as_i64() {
            Some(next) => after = next,
            None => break,
        }
    }
    bar.iter().for_each(Bar::end);
    Ok((count, refused))
}

/// Why a memory comes without content, for people.
fn why(code: &str) -> &'static str {
    match code {
        "MEMORY_GONE" => "they ended",
        "COOLDOWN" => "recalled a short while ago; export again when their pause is over",
        "BOUNDARY_DENIED" => "the boundary daemon does not allow it now",
        "CLOCK_BACKWARDS" => "the clock was set back",
        "VAULT_LOCKED" => "the vault is locked; stvor vault unlock",
        "VAULTED_KEY_REQUIRED" => "they take the second secret; stvor vault unlock --second",
        "TOKEN_REQUIRED" => {
            "level 5 comes one memory for each touch of a token: stvor vault token open, then recall it"
        }
        "PROFILE_CLOSED" => "their profile is closed; stvor vault profile open",
        "PROFILE_NOT_EXPORTABLE" => "their profile does not let them out",
        "AUDITOR_REFUSED" => "an auditor does not let them pass",
        code if code.contains("TAMPERED") => "they were changed by somebody else; stvor vault verify",
        _ => "docs/errors.md says why",
    }
}
