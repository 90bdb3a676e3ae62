//! `stvor vault forget` and `tombstone`: the end of memories, what it would reach, and what it did not.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use stvor_base::{ErrorCode as _, Timestamp};
use stvor_vault::daemon::AgentVerb;
use stvor_vault::{Header, MemoryId, WouldForget};

use super::talk::Asker;
use super::{Call, show};
use crate::args::MemoryEnd;
use crate::ask;
use crate::failure::{Failure, Result};
use crate::render::{rfc3339, rows, safe, table};

/// Forgets; with all earlier versions in as many requests as they take. Where a later request fails, what the ones before it
/// destroyed is told all the same.
fn forgotten(
    mut ask: impl FnMut(MemoryId) -> Result<Value>,
    id: MemoryId,
    with_earlier: bool,
) -> Result<(Value, Option<Failure>)> {
    let mut told = ask(id)?;
    while let (true, Some(next)) =
        (with_earlier, told["next"].as_str().and_then(|id| id.parse::<MemoryId>().ok()))
    {
        let mut more = match ask(next) {
            // Nothing of it, or before it, was left.
            Err(failure) if failure.code() == "MEMORY_GONE" => json!({ "before": true }),
            Err(failure) => return Ok((told, Some(failure))),
            Ok(Value::Null) => json!({}),
            Ok(more) => more,
        };
        if more["before"].is_null() {
            let after = more["ended"].as_array().cloned().unwrap_or_default();
            more["ended"] = core::iter::once(json!(next)).chain(after).collect();
        }
        told["next"] = more["next"].clone();
        for name in ["ended", "earlier", "heirs"] {
            let before = told[name].as_array().cloned().unwrap_or_default();
            let all = before.into_iter().chain(more[name].as_array().cloned().unwrap_or_default());
            told[name] = all.collect();
        }
        // What holds a later version holds the earlier ones, too.
        for name in ["backups", "files"] {
            if !more[name].is_null() {
                told[name] = more[name].clone();
            }
        }
    }
    Ok((if told.is_null() { json!({ "done": true }) } else { told }, None))
}

/// What forgetting a memory would destroy and leave.
fn would(asker: &mut Asker, (id, with_earlier): (MemoryId, bool)) -> Result<WouldForget> {
    show::parsed(asker.ask(AgentVerb::WouldForget { id, with_earlier })?)
}

/// The same with all earlier versions, in as many requests as they take. Where a later one is refused, what is known until there.
fn reached(
    mut ask: impl FnMut(MemoryId) -> Result<WouldForget>,
    id: MemoryId,
    with_earlier: bool,
) -> Result<(WouldForget, Option<Failure>)> {
    let mut reach = ask(id)?;
    while let (true, Some(next)) = (with_earlier, reach.next) {
        let more = match ask(next) {
            // Nothing of it, or before it, is left.
            Err(failure) if failure.code() == "MEMORY_GONE" => WouldForget::default(),
            Err(failure) => return Ok((reach, Some(failure))),
            Ok(more) => more,
        };
        reach.forgets.extend(more.forgets);
        reach.keeps.extend(more.keeps);
        reach.next = more.next;
    }
    Ok((reach, None))
}

/// What a person is asked about, after the memory's name.
fn counted(reach: &WouldForget, id: MemoryId) -> String {
    let versions = |count: usize| {
        if count == 1 { "1 earlier version".into() } else { format!("{count} earlier versions") }
    };
    let goes: Vec<&Header> = reach.forgets.iter().filter(|header| header.id != id).collect();
    let levels: BTreeSet<u8> = goes.iter().map(|header| header.level.number()).collect();
    let levels = levels.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    let more = if reach.next.is_some() { " or more" } else { "" };
    let mut text = match goes.len() {
        0 => String::new(),
        count => format!(" and {}{more} (level {levels})", versions(count)),
    };
    if !reach.keeps.is_empty() {
        text.push_str(&format!(", but not {} that this agent may not forget,", versions(reach.keeps.len())));
    }
    text
}

/// Shows what forgetting would destroy and leave.
pub(super) fn show_reach(call: Call<'_>, id: MemoryId, with_earlier: bool) -> Result {
    let mut asker = call.asker()?;
    let (reach, failed) = reached(|id| would(&mut asker, (id, with_earlier)), id, with_earlier)?;
    call.out().either(&reach, |reach| {
        let mut lines = table(["would be", "id", "level", "state", "stored", "by", "links", "namespace"]);
        let all = reach.forgets.iter().map(|header| ("forgotten", header));
        for (fate, header) in all.chain(reach.keeps.iter().map(|header| ("left", header))) {
            lines.add_row([
                fate.to_owned(),
                header.id.to_string(),
                header.level.to_string(),
                show::state(header.state).to_owned(),
                rfc3339(Timestamp::from_millis(header.created)),
                safe(&header.creator),
                header.intents.iter().map(|intent| safe(intent)).collect::<Vec<_>>().join(", "),
                safe(&header.namespace),
            ]);
        }
        rows(&lines)
    })?;
    if let Some(next) = reach.next {
        call.out().warn(match with_earlier {
            true => format!("what is before {next}, and that one, was not come to"),
            false => format!("there are more earlier versions, from {next} on"),
        });
    }
    call.out().say("Nothing was done");
    failed.map_or(Ok(()), Err)
}

/// Closes a memory for good.
pub(super) fn tombstone(call: Call<'_>, end: &MemoryEnd) -> Result {
    ask::sure(end.sure.yes, &format!("Close {} for good?", end.id))?;
    let told = call.asker()?.ask(AgentVerb::Tombstone { id: end.id, reason: end.reason.clone() })?;
    let told = if told.is_null() { json!({ "done": true }) } else { told };
    call.out().either(&told, |_| "tombstoned".to_owned())?;
    let earlier: Vec<&str> =
        told["earlier"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !earlier.is_empty() || told["next"].is_string() {
        let more = if told["next"].is_null() { "" } else { " and more" };
        call.out().warn(format_args!(
            "earlier versions of it can still be recalled: {}{more}; `stvor vault tombstone` closes each of them, \
             `stvor vault forget {} --with-earlier` destroys all",
            earlier.join(", "),
            end.id
        ));
    }
    Ok(())
}

/// What is destroyed, where nobody counted it.
const EVERY: &str = " and every version before it";

/// Forgets a memory.
pub(super) fn forget(call: Call<'_>, end: &MemoryEnd, with_earlier: bool) -> Result {
    let mut asker = None;
    let what = match (with_earlier, end.sure.yes || !ask::somebody()) {
        (false, _) => String::new(),
        (true, true) => EVERY.to_owned(),
        // Whoever is asked is told how much it is.
        (true, false) => {
            let asker = asker.insert(call.asker()?);
            match reached(|id| would(asker, (id, true)), end.id, true) {
                Ok((reach, _)) => counted(&reach, end.id),
                // To forget is not refused for it.
                Err(failure) if failure.code() == "AGENT_READ_QUOTA" => EVERY.to_owned(),
                Err(failure) => return Err(failure),
            }
        }
    };
    ask::sure(end.sure.yes, &format!("Destroy {}{what} for good?", end.id))?;
    let mut asker = asker.map_or_else(|| call.asker(), Ok)?;
    let ask = |id| asker.ask(AgentVerb::Forget { id, reason: end.reason.clone(), with_earlier });
    let (told, failed) = forgotten(ask, end.id, with_earlier)?;
    let names = |name: &str| {
        let all = told[name].as_array().into_iter().flatten().filter_map(Value::as_str);
        all.map(str::to_owned).collect::<Vec<_>>()
    };
    let (ended, earlier) = (names("ended"), names("earlier"));
    call.out().either(&told, |_| match ended.len() {
        0 => "forgotten".to_owned(),
        1 => "forgotten, with an earlier version".to_owned(),
        many => format!("forgotten, with {many} earlier versions"),
    })?;
    if !earlier.is_empty() {
        let more = if told["next"].is_null() { "" } else { " and more" };
        let fix = match with_earlier {
            true => "this agent may not forget them, or not so many at once; the owner can".to_owned(),
            false => format!("stvor vault forget {} --with-earlier destroys them, too", end.id),
        };
        let all = earlier.join(", ");
        call.out()
            .warn(format_args!("earlier versions of it are left with their contents: {all}{more}; {fix}"));
    }
    if let Some(next) = told["next"].as_str().filter(|_| with_earlier) {
        call.out().warn(format_args!("what is before {next}, and that one, was not come to"));
    }
    let heirs = names("heirs");
    if !heirs.is_empty() {
        call.out().warn(format_args!(
            "the packages of these heirs still hold it, until the switch is armed anew: {}",
            heirs.join(", ")
        ));
    }
    if let Some(count) = told["backups"]["count"].as_u64() {
        let newest = Timestamp::from_millis(told["backups"]["newest"].as_u64().unwrap_or_default());
        call.out().warn(format_args!(
            "{count} backups that were made while it was there still hold it, the newest of {}; no restore brings it back, but \
             who has one and the owner's secret can read it: make a full backup, then remove them",
            rfc3339(newest)
        ));
        for file in told["files"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            call.out().say(format_args!("  {}", safe(file)));
        }
    }
    if matches!(asker, Asker::Owner(_)) {
        call.out().say("Other copies of the vault's files that were made before can still hold it.");
    }
    failed.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_chain_is_told_as_far_as_it_was_destroyed_also_when_a_later_request_fails() {
        let [first, second, third] = [1, 2, 3].map(|byte| MemoryId::from_bytes([byte; 16]));
        let refused = || Failure::Coded { code: "AGENT_NOT_ALLOWED", message: "no".into(), retryable: false };
        let answers = |id: MemoryId| match id {
            id if id == first => Ok(json!({ "ended": ["a", "b"], "next": second })),
            id if id == second => Ok(json!({ "ended": ["c"], "next": third })),
            _ => Err(refused()),
        };
        let (told, failed) = forgotten(answers, first, true).unwrap();
        assert_eq!(told["ended"], json!(["a", "b", second, "c"]));
        assert_eq!(told["next"], json!(third), "where to go on");
        assert_eq!(failed.unwrap().code(), "AGENT_NOT_ALLOWED");
        let whole = |id| if id == third { Ok(Value::Null) } else { answers(id) };
        let (told, failed) = forgotten(whole, first, true).unwrap();
        assert_eq!(told["ended"], json!(["a", "b", second, "c", third]));
        assert!(failed.is_none() && told["next"].is_null());
    }

    #[test]
    fn who_is_asked_is_told_how_many_versions_go_and_which_stay() {
        let header = |byte: u8, level: u8| -> Header {
            let id = MemoryId::from_bytes([byte; 16]);
            serde_json::from_value(json!({
                "id": id, "level": level, "namespace": "home", "creator": "owner", "created": 0, "expires": null,
                "cooldown": 0, "metadata": {}, "searchable": [], "intents": [], "source": "", "trust": "owner",
                "supersedes": null, "superseded_by": null, "length": 1, "content_hash": "", "state": "live", "state_since": null, "state_reason": "",
            }))
            .unwrap()
        };
        let id = header(1, 1).id;
        let one = WouldForget { forgets: vec![header(1, 1)], ..WouldForget::default() };
        assert_eq!(counted(&one, id), "");
        let two = WouldForget { forgets: vec![header(1, 1), header(2, 2)], ..one.clone() };
        assert_eq!(counted(&two, id), " and 1 earlier version (level 2)");
        let forgets = vec![header(2, 1), header(3, 2), header(4, 2)];
        let some = WouldForget { forgets, keeps: vec![header(5, 3)], next: Some(id) };
        assert_eq!(
            counted(&some, id),
            " and 3 earlier versions or more (level 1, 2), but not 1 earlier version that this agent may not forget,"
        );
        let chain = |asked| Ok(if asked == id { two.clone() } else { some.clone() });
        let (all, failed) = reached(chain, header(9, 1).id, true).unwrap();
        assert!(failed.is_none() && all.next.is_none());
        assert_eq!((all.forgets.len(), all.keeps.len()), (5, 1));
    }
}
