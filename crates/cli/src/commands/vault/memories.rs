//! `stvor vault store`, `recall`, `search` and the rest, as the owner or as an agent.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use stvor_base::{ErrorCode as _, Timestamp};
use stvor_vault::daemon::{AgentVerb, Content, OwnerVerb, StoreVerb};
use stvor_vault::{Found, Header, Level, MemoryId, Trust, limits};

use super::talk::{Asker, ask_owner};
use super::{Call, show};
use crate::args::{AnyNamespace, MemoryCommand, MemoryEnd, MemoryStore, TrustTier};
use crate::ask;
use crate::failure::{Failure, Result};
use crate::render::{rfc3339, rows, safe, table};

/// Does what was asked with memories.
pub(super) fn run(call: Call<'_>, command: &MemoryCommand) -> Result {
    match command {
        MemoryCommand::Store(args) => {
            let level = args.level.or(Some(Level::Working));
            let namespace = args.namespace.clone().or_else(|| Some("default".to_owned()));
            store(call, args, |memory| StoreVerb { level, namespace, ..memory })
        }
        MemoryCommand::Supersede { id, store: args, no_ttl, no_profile } => {
            let (supersedes, no_ttl, no_profile) = (Some(*id), *no_ttl, *no_profile);
            store(call, args, |memory| StoreVerb { supersedes, no_ttl, no_profile, ..memory })
        }
        MemoryCommand::Recall { id, justification } => recall(call, *id, justification),
        MemoryCommand::Search { words, space } => {
            let mut asker = call.asker()?;
            let spaces = Spaces::of(&mut asker, space)?;
            let (mut found, mut more) = (Vec::new(), false);
            for namespace in &spaces.names {
                let verb = AgentVerb::Search { namespace: namespace.clone(), query: words.join(" ") };
                let part: Found = show::parsed(asker.ask(verb)?)?;
                more |= part.more;
                found.extend(part.memories);
            }
            print(call, (&found, &spaces))?;
            not_all(call, more, "say more words");
            Ok(())
        }
        MemoryCommand::Namespaces => {
            let found = ask_owner(&mut call.as_owner()?, &OwnerVerb::Namespaces {})?;
            let found: BTreeMap<String, u64> = show::parsed(found)?;
            call.out().either(&found, |found| {
                let mut lines = table(["namespace", "memories"]);
                for (name, count) in found {
                    lines.add_row([safe(name), count.to_string()]);
                }
                rows(&lines)
            })
        }
        MemoryCommand::List { space, before, all } => list(call, space, (*before, *all)),
        MemoryCommand::Forget { end, with_earlier } => forget(call, end, *with_earlier),
        MemoryCommand::Tombstone(end) => {
            ask::sure(end.sure.yes, &format!("Close {} for good?", end.id))?;
            let verb = AgentVerb::Tombstone { id: end.id, reason: end.reason.clone() };
            done(call, verb, "tombstoned")
        }
        MemoryCommand::Purge => {
            let purged = ask_owner(&mut call.as_owner()?, &OwnerVerb::Purge {})?;
            call.out().either(&purged, |purged| format!("purged {}", purged["purged"]))
        }
        MemoryCommand::Link { id, intent } => {
            done(call, AgentVerb::Link { id: *id, intent: intent.clone() }, "linked")
        }
        MemoryCommand::Unlink { id, intent } => {
            done(call, AgentVerb::Unlink { id: *id, intent: intent.clone() }, "unlinked")
        }
        MemoryCommand::EndPause { id } => {
            ask_owner(&mut call.as_owner()?, &OwnerVerb::EndPause { id: *id })?;
            call.out().either(&json!({ "done": true }), |_| "it can be recalled again".to_owned())
        }
        MemoryCommand::ByIntent { intent } => found(call, AgentVerb::ByIntent { intent: intent.clone() }),
    }
}

fn done(call: Call<'_>, verb: AgentVerb, word: &str) -> Result {
    call.asker()?.ask(verb)?;
    call.out().either(&json!({ "done": true }), |_| word.to_owned())
}

/// The content, from where it was given; never more than a memory may have.
fn content(args: &MemoryStore) -> Result<Content> {
    let mut bytes = Vec::new();
    let most = limits::MAX_CONTENT as u64 + 1;
    match &args.file {
        Some(path) => {
            let failed = |source| Failure::File { what: "can not read", path: path.clone(), source };
            std::fs::File::open(path).map_err(failed)?.take(most).read_to_end(&mut bytes).map_err(failed)?;
        }
        None => {
            let read = std::io::stdin().lock().take(most).read_to_end(&mut bytes);
            read.map_err(|error| Failure::io("can not read standard input", error))?;
            // The line end of `echo` is no part of what is remembered.
            if bytes.last() == Some(&b'\n') {
                bytes.pop();
            }
        }
    }
    if bytes.len() > limits::MAX_CONTENT {
        return Err(Failure::Usage(format!("a memory has at most {} bytes", limits::MAX_CONTENT)));
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => Content::Text(text),
        Err(error) => Content::Base64(STANDARD.encode(error.into_bytes())),
    })
}

fn store(call: Call<'_>, args: &MemoryStore, with: impl FnOnce(StoreVerb) -> StoreVerb) -> Result {
    let content = content(args)?;
    let mut asker = call.asker()?;
    let trust = match args.trust {
        Some(TrustTier::Untrusted) => Trust::Untrusted,
        Some(TrustTier::Agent) => Trust::Agent,
        Some(TrustTier::Owner) => Trust::Owner,
        None if asker.is_owner() => Trust::Owner,
        None => Trust::Agent,
    };
    let memory = StoreVerb {
        content,
        level: args.level,
        namespace: args.namespace.clone(),
        metadata: args.metadata.iter().cloned().collect(),
        searchable: args.searchable.clone(),
        intents: args.intents.clone(),
        source: args.source.clone(),
        trust,
        ttl: args.ttl,
        no_ttl: false,
        cooldown: args.cooldown,
        supersedes: None,
        profile: args.profile.clone(),
        no_profile: false,
        tombstone: None,
    };
    let stored = asker.ask(AgentVerb::Store { memory: Box::new(with(memory)) })?;
    call.out().either(&stored, |stored| stored["id"].as_str().unwrap_or_default().to_owned())
}

fn recall(call: Call<'_>, id: MemoryId, justification: &str) -> Result {
    let verb = AgentVerb::Recall { id, justification: justification.to_owned() };
    let recalled = call.asker()?.ask(verb)?;
    if call.out().json {
        return call.out().object(&recalled);
    }
    let content: Content = show::parsed(recalled["content"].clone())?;
    let (bytes, text) = match content {
        Content::Text(text) => (text.into_bytes(), true),
        Content::Base64(text) => (STANDARD.decode(text).unwrap_or_default(), false),
    };
    let failed = |error| Failure::io("can not write the output", error);
    if crate::render::is_terminal() {
        if !text {
            return Err(Failure::Usage("the content is not text: send it to a file or use --json".into()));
        }
        return call.out().line(safe(&String::from_utf8_lossy(&bytes)));
    }
    let mut out = std::io::stdout().lock();
    out.write_all(&bytes).map_err(failed)?;
    if text {
        out.write_all(b"\n").map_err(failed)?;
    }
    out.flush().map_err(failed)
}

/// Where is looked.
struct Spaces {
    names: Vec<String>,
    /// Whether these are all that there are.
    all: bool,
}

impl Spaces {
    /// The one that is named; all of them for the owner who names none.
    fn of(asker: &mut Asker, space: &AnyNamespace) -> Result<Self> {
        match (&space.namespace, asker) {
            (Some(name), _) => Ok(Self { names: vec![name.clone()], all: false }),
            (None, Asker::Agent(client)) => {
                let status = client.call(&AgentVerb::Status {})??;
                let own: Vec<String> = show::parsed(status["agent"]["namespaces"].clone())?;
                let names: Vec<String> = own.iter().filter(|name| !name.ends_with('*')).cloned().collect();
                match names.is_empty() {
                    true => Err(Failure::Usage(format!(
                        "say in which namespace (--namespace): this agent may use {}",
                        own.join(", ")
                    ))),
                    false => Ok(Self { all: names.len() > 1, names }),
                }
            }
            (None, Asker::Owner(client)) => {
                let found = ask_owner(client, &OwnerVerb::Namespaces {})?;
                let found: BTreeMap<String, u64> = show::parsed(found)?;
                Ok(Self { names: found.into_keys().collect(), all: true })
            }
        }
    }
}

fn print(call: Call<'_>, (headers, spaces): (&[Header], &Spaces)) -> Result {
    if call.out().json {
        return headers.iter().try_for_each(|header| call.out().object(header));
    }
    if headers.is_empty() {
        let place = match &spaces.names[..] {
            [name] if !spaces.all => format!(" in the namespace {}", safe(name)),
            _ => String::new(),
        };
        call.out().say(format_args!("Nothing found{place}"));
        return Ok(());
    }
    call.out().line(show::headers(headers, spaces.all))
}

fn found(call: Call<'_>, verb: AgentVerb) -> Result {
    let Found { memories, more } = show::parsed(call.asker()?.ask(verb)?)?;
    // Wherever they are.
    print(call, (&memories, &Spaces { names: Vec::new(), all: true }))?;
    not_all(call, more, "use intents that fewer memories serve");
    Ok(())
}

/// Nobody takes a full page for all that there is.
fn not_all(call: Call<'_>, more: bool, fix: &str) {
    if more {
        call.out().warn(format_args!("there are more than these: {fix}"));
    }
}

fn list(call: Call<'_>, space: &AnyNamespace, (before, all): (Option<i64>, bool)) -> Result {
    let mut asker = call.asker()?;
    let spaces = Spaces::of(&mut asker, space)?;
    let (mut found, mut more, mut printed) = (Vec::new(), Vec::new(), false);
    for namespace in &spaces.names {
        let mut before = before;
        loop {
            let mut page = asker.ask(AgentVerb::List { namespace: namespace.clone(), before })?;
            found.extend(show::parsed::<Vec<Header>>(page["memories"].take())?);
            before = page["next"].as_i64();
            match before {
                Some(_) if all => {
                    // Very many are printed as they come.
                    print(call, (&found, &spaces))?;
                    printed = true;
                    found.clear();
                }
                Some(next) => {
                    more.push(format!("--namespace {} --before {next}", safe(namespace)));
                    break;
                }
                None => break,
            }
        }
    }
    if !printed || !found.is_empty() {
        print(call, (&found, &spaces))?;
    }
    for more in more {
        call.out().say(format_args!("There are more: {more}, or --all"));
    }
    Ok(())
}

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

fn forget(call: Call<'_>, end: &MemoryEnd, with_earlier: bool) -> Result {
    let what = if with_earlier { " and every version before it" } else { "" };
    ask::sure(end.sure.yes, &format!("Destroy {}{what} for good?", end.id))?;
    let mut asker = call.asker()?;
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
}
