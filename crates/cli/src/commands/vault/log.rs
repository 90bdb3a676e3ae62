//! `stvor vault log` and `stvor vault proof`: what happened, and proofs of it.

use std::path::Path;

use serde_json::{Value, json};
use stvor_base::Timestamp;
use stvor_tlog::witness::AddCheckpoint;
use stvor_tlog::{Checkpoint, Note, ProofFile, TlogError, Verifier};
use stvor_vault::audit::Operation;
use stvor_vault::daemon::{OwnerVerb, RecoveryVerb};
use stvor_vault::{LogEntry, LogPage, LogQuery};

use super::backup::{ask, coded};
use super::prove::{keys, read};
use super::talk::ask_owner;
use super::{Call, archive, show};
use crate::args::{ArchiveKey, ProofCommand, VaultLog};
use crate::failure::{Failure, Result};
use crate::render::{BAD, GOOD, paint, rfc3339, rows, safe, table};

/// Reads the log.
pub(super) fn run(call: Call<'_>, args: &VaultLog) -> Result {
    let operation = args.operation.as_ref().map(|name| {
        serde_json::from_value::<Operation>(Value::from(name.as_str()))
            .map_err(|error| Failure::Usage(format!("no such operation: {error}")))
    });
    let mut query = LogQuery {
        before: args.before,
        actor: args.actor.clone(),
        operation: operation.transpose()?,
        memory: args.memory,
        refused: args.refused,
        words: args.said.clone(),
    };
    let most = if args.all { usize::MAX } else { args.limit };
    if !args.archives.archive.is_empty() {
        let entries = archive::entries(call, &args.archives, &query, most)?;
        if entries.is_empty() {
            call.out().say("Nothing in the archives fits");
        }
        return print(call, &entries);
    }
    let mut client = call.as_owner()?;
    let (mut found, mut removed) = (0, None);
    while found < most {
        let answer = ask_owner(&mut client, &OwnerVerb::Log { query: query.clone() })?;
        let LogPage { mut entries, next, removed_before } = show::parsed(answer)?;
        removed = removed_before;
        entries.truncate(most - found);
        found += entries.len();
        print(call, &entries)?;
        let Some(next) = next else { break };
        query.before = Some(next);
    }
    if found == 0 {
        call.out().say("Nothing in the log fits");
    }
    if let Some(before) = removed.filter(|_| found < most) {
        call.out().say(format_args!(
            "Most events before {before} were archived and removed: read those with --archive FILE --identity FILE"
        ));
    }
    Ok(())
}

fn name(operation: Operation) -> String {
    serde_json::to_value(operation).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

fn print(call: Call<'_>, entries: &[LogEntry]) -> Result {
    if call.out().json {
        return entries.iter().try_for_each(|entry| call.out().object(entry));
    }
    if entries.is_empty() {
        return Ok(());
    }
    let mut lines = table(["event", "when", "who", "what", "memory", "answer", "said"]);
    for LogEntry { seq, event, said } in entries {
        let answer = match &event.refused {
            Some(code) => paint(BAD, code),
            None => paint(GOOD, "ok"),
        };
        let said = match (said, &event.content) {
            (None, Some(key)) if event.operation == Operation::Unlock => {
                format!("boundary key {}", safe(key))
            }
            _ => safe(said.as_deref().unwrap_or_default()),
        };
        lines.add_row([
            seq.to_string(),
            rfc3339(Timestamp::from_millis(event.at.wall)),
            safe(&event.actor),
            name(event.operation),
            event.memory.map(|id| id.to_string()).unwrap_or_default(),
            answer,
            said.replace('\n', " "),
        ]);
    }
    call.out().line(rows(&lines))
}

/// Makes or checks a proof.
pub(super) fn proof(call: Call<'_>, command: &ProofCommand) -> Result {
    match command {
        ProofCommand::Make { event, out, archives } => make(call, *event, (out, archives)),
        ProofCommand::Check { event, proof, verifier } => check(call, (event, proof), verifier),
        ProofCommand::Consistency { old, new, out } => consistency(call, (old, new.as_deref()), out),
        ProofCommand::CheckConsistency { old, proof, new, verifier } => {
            check_consistency(call, (old, proof, new.as_deref()), verifier)
        }
    }
}

fn write(path: &Path, text: &[u8]) -> Result {
    let failed = |source| Failure::File { what: "can not write", path: path.into(), source };
    std::fs::write(path, text).map_err(failed)
}

fn make(call: Call<'_>, event: u64, (out, archives): (&Path, &ArchiveKey)) -> Result {
    let (text, proved) = if archives.archive.is_empty() {
        let answer = ask_owner(&mut call.as_owner()?, &OwnerVerb::Prove { event })?;
        let text = |name: &str| answer[name].as_str().unwrap_or_default().as_bytes().to_vec();
        (text("event"), text("proof"))
    } else {
        let (text, proof) = archive::proved(call, archives, event)?;
        (text, proof.to_string().into_bytes())
    };
    let (entry, proof) = (out.join(format!("event-{event}.json")), out.join(format!("event-{event}.proof")));
    let failed = |source| Failure::File { what: "can not make", path: out.into(), source };
    std::fs::create_dir_all(out).map_err(failed)?;
    // Without a line end: these are the bytes that the log hashes.
    write(&entry, &text)?;
    write(&proof, &proved)?;
    let object = json!({ "event": entry.display().to_string(), "proof": proof.display().to_string() });
    call.out().either(&object, |_| format!("{}\n{}", entry.display(), proof.display()))
}

/// The name of the log and its keys.
fn log_of(verifiers: &[String]) -> Result<(String, Vec<Verifier>)> {
    let trusted = keys(verifiers)?;
    let origin = trusted.first().map(|key| key.name().to_owned()).unwrap_or_default();
    Ok((origin, trusted))
}

fn check(call: Call<'_>, (event, proof): (&Path, &Path), verifiers: &[String]) -> Result {
    let (entry, proof) = (read(event)?, read(proof)?);
    let (origin, trusted) = log_of(verifiers)?;
    let proof = ProofFile::parse(&proof).map_err(coded)?;
    let checkpoint = proof.verify(&entry, &origin, &trusted).map_err(coded)?;
    let object = json!({ "ok": true, "event": proof.index, "log": origin, "size": checkpoint.size() });
    call.out().either(&object, |_| {
        let ok = paint(GOOD, "ok");
        format!("{ok}  event {} of {}, signed at {} events", proof.index, safe(&origin), checkpoint.size())
    })
}

/// The checkpoint in a file: a signed note, or what carries one.
fn checkpoint(path: &Path) -> Result<Note> {
    let bytes = read(path)?;
    if let Ok(proof) = ProofFile::parse(&bytes) {
        return Ok(proof.checkpoint);
    }
    match AddCheckpoint::parse(&bytes) {
        Ok(proof) => Ok(proof.note),
        Err(_) => Note::parse(&bytes).map_err(coded),
    }
}

fn consistency(call: Call<'_>, (old, new): (&Path, Option<&Path>), out: &Path) -> Result {
    let new = new.map(checkpoint).transpose()?.map(|note| note.to_string());
    let verb = RecoveryVerb::ProveConsistency { old: checkpoint(old)?.to_string(), new };
    let proved = ask(&mut call.as_owner()?, verb)?;
    write(out, proved["proof"].as_str().unwrap_or_default().as_bytes())?;
    let object = json!({ "proof": out.display().to_string(), "old": proved["old"] });
    call.out().either(&object, |_| out.display().to_string())
}

fn check_consistency(
    call: Call<'_>,
    (old, proof, new): (&Path, &Path, Option<&Path>),
    verifiers: &[String],
) -> Result {
    let (origin, trusted) = log_of(verifiers)?;
    let proof = AddCheckpoint::parse(&read(proof)?).map_err(coded)?;
    let (from, to) = proof.verify(&checkpoint(old)?, &origin, &trusted).map_err(coded)?;
    if let Some(new) = new {
        let new = Checkpoint::open(&checkpoint(new)?, &origin, &trusted).map_err(coded)?;
        if (new.size(), new.root()) != (to.size(), to.root()) {
            return Err(coded(TlogError::BadProof { what: "consistency" }));
        }
    }
    let object = json!({ "ok": true, "log": origin, "old": from.size(), "size": to.size() });
    call.out().either(&object, |_| {
        let (ok, name) = (paint(GOOD, "ok"), safe(&origin));
        format!("{ok}  {name}, signed at {} events, goes on from {}", to.size(), from.size())
    })
}
