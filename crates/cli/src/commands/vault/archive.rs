//! `stvor vault archive`, `prune`, and what reads archives: `log`, `proof make` and `verify` with `--archive`.

use std::path::Path;

use serde_json::json;
use stvor_crypto::SecretBytes;
use stvor_keys::recipients::{Identity, Opening};
use stvor_tlog::{Note, ProofFile, Verifier};
use stvor_vault::archive::{Archive, ArchiveHead, Pruned, check, each};
use stvor_vault::daemon::{OwnerVerb, RecoveryVerb};
use stvor_vault::{LogEntry, LogQuery, Status};

use super::backup::{absolute, ask_showing, coded};
use super::landing::Landing;
use super::talk::ask_owner;
use super::{Call, show};
use crate::args::{ArchiveKey, ArchiveMake, VaultPrune};
use crate::failure::{Failure, Result};
use crate::progress::Bar;
use crate::render::grouped;

/// The log that archives have to be of.
struct Trusted {
    origin: String,
    keys: Vec<Verifier>,
}

/// The keys that were given, or else those of the vault that answers.
fn trusted(call: Call<'_>, given: &[String]) -> Result<Trusted> {
    let texts = match given {
        [] => {
            let status = ask_owner(&mut call.stranger()?, &OwnerVerb::Status {})?;
            let status: Status = show::parsed(status)?;
            core::iter::once(status.verifier).chain(status.retired).filter(|key| !key.is_empty()).collect()
        }
        given => given.to_vec(),
    };
    let keys = texts.iter().map(|text| Verifier::parse(text).map_err(coded)).collect::<Result<Vec<_>>>()?;
    match keys.first() {
        Some(first) => Ok(Trusted { origin: first.name().to_owned(), keys }),
        None => {
            Err(Failure::Usage("the vault is cold and tells no key: unlock it, or give --verifier".into()))
        }
    }
}

fn opening(identity: Option<&Path>) -> Result<Opening> {
    let Some(file) = identity else {
        return Err(Failure::Usage("give --identity, the file with the key that opens the archive".into()));
    };
    let bytes = std::fs::read(file);
    let bytes = bytes.map_err(|source| Failure::File { what: "can not read", path: file.into(), source })?;
    Ok(Opening::with(Identity::parse_file(&SecretBytes::from(bytes)).map_err(coded)?))
}

/// Writes the log to a file.
pub(super) fn make(call: Call<'_>, args: &ArchiveMake) -> Result {
    let mut client = call.as_owner()?;
    let whole = absolute(&args.out)?;
    let landing = Landing::at(call.out(), &client, whole.parent().unwrap_or(&whole))?;
    let file = landing.file(Path::new(whole.file_name().unwrap_or_default()));
    let verb = RecoveryVerb::Archive { path: file.clone(), recipients: args.to.clone(), words: args.words };
    let answer = ask_showing(&mut client, verb, Bar::new(call.out(), "events written"))?;
    landing.take(&mut client, &file)?;
    call.out().either(&answer, |answer| format!("{}  {} events", args.out.display(), answer["events"]))
}

/// Reads an archive whole, and has the events that are in it removed from the database.
pub(super) fn prune(call: Call<'_>, args: &VaultPrune) -> Result {
    let (opening, trusted) = (opening(Some(&args.identity))?, trusted(call, &[])?);
    let (head, _) = check(&args.archive, &opening, (&trusted.origin, &trusted.keys))?;
    let size = head.size;
    let verb = RecoveryVerb::Prune { archive: head, lose_words: args.lose_words };
    let bar = Bar::new(call.out(), "events read");
    let done: Pruned = show::parsed(ask_showing(&mut call.as_owner()?, verb, bar)?)?;
    let object = json!({ "removed": done.removed, "kept": done.kept, "before": size });
    call.out().either(&object, |_| {
        let (removed, kept) = (grouped(done.removed), grouped(done.kept));
        format!("removed {removed} of the events before {size}; {kept} are still needed and stay")
    })?;
    call.out().say("What the removed ones say is in the archive alone now: keep copies of it, and of the key that opens it.");
    Ok(())
}

/// Events of archives that fit, newest first.
pub(super) fn entries(
    call: Call<'_>,
    key: &ArchiveKey,
    query: &LogQuery,
    most: usize,
) -> Result<Vec<LogEntry>> {
    let (opening, trusted) = (opening(key.identity.as_deref())?, trusted(call, &key.verifier)?);
    let mut found = std::collections::BTreeMap::new();
    for file in &key.archive {
        each(file, &opening, (&trusted.origin, &trusted.keys), |archived| {
            let event = archived.event()?;
            if query.before.is_none_or(|before| archived.seq < before) && query.matches(&event) {
                let said = event.said.clone();
                found.insert(archived.seq, LogEntry { seq: archived.seq, event, said });
                if found.len() > most {
                    found.pop_first();
                }
            }
            Ok(())
        })?;
    }
    Ok(found.into_values().rev().collect())
}

/// An event and its proof, from the archive that holds it.
pub(super) fn proved(call: Call<'_>, key: &ArchiveKey, event: u64) -> Result<(Vec<u8>, ProofFile)> {
    let (opening, trusted) = (opening(key.identity.as_deref())?, trusted(call, &key.verifier)?);
    let mut last = None;
    for file in &key.archive {
        let archive = Archive::open(file, &opening, (&trusted.origin, &trusted.keys))?;
        match archive.prove(event) {
            Ok((entry, proof)) => return Ok((entry.to_vec(), proof)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| Failure::Usage("give --archive".into()), Failure::from))
}

/// Archives that were read whole: what they hold, and what signs them.
pub(super) fn checked(call: Call<'_>, key: &ArchiveKey) -> Result<Vec<(ArchiveHead, Note)>> {
    if key.archive.is_empty() {
        return Ok(Vec::new());
    }
    let (opening, trusted) = (opening(key.identity.as_deref())?, trusted(call, &key.verifier)?);
    let trust = (trusted.origin.as_str(), trusted.keys.as_slice());
    key.archive.iter().map(|file| Ok(check(file, &opening, trust)?)).collect()
}

/// Ranges of events before `upto` that are in none of those that archives hold. Each range is its first event, and the one after
/// its last.
pub(super) fn missing(mut ranges: Vec<(u64, u64)>, upto: u64) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let (mut next, mut gaps) = (0, Vec::new());
    for (from, to) in ranges.into_iter().chain([(upto, upto)]) {
        if next < from.min(upto) {
            gaps.push((next, from.min(upto)));
        }
        next = next.max(to);
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_archive_holds_is_named() {
        assert_eq!(missing(vec![], 0), []);
        assert_eq!(missing(vec![], 5), [(0, 5)]);
        assert_eq!(missing(vec![(0, 5)], 5), []);
        assert_eq!(missing(vec![(7, 9), (0, 3), (2, 4)], 12), [(4, 7), (9, 12)]);
        assert_eq!(missing(vec![(8, 20)], 5), [(0, 5)]);
    }
}
