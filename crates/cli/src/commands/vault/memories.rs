//! `stvor vault store`, `recall`, `search` and the rest, as the owner or as an agent.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use stvor_vault::daemon::{AgentVerb, Content, OwnerVerb, StoreVerb};
use stvor_vault::{Found, Header, Level, MemoryId, Trust, limits};

use super::talk::{Asker, ask_owner};
use super::{Call, forgetting, show};
use crate::args::{AnyNamespace, MemoryCommand, MemoryStore, TrustTier};
use crate::failure::{Failure, Result};
use crate::render::{rows, safe, table};

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
        MemoryCommand::List { space, before, all } => list(call, space, (before.as_deref(), *all)),
        MemoryCommand::Forget { end, with_earlier, dry_run: true } => {
            forgetting::show_reach(call, end.id, *with_earlier)
        }
        MemoryCommand::Forget { end, with_earlier, .. } => forgetting::forget(call, end, *with_earlier),
        MemoryCommand::Tombstone(end) => forgetting::tombstone(call, end),
        MemoryCommand::Purge => {
            let purged = ask_owner(&mut call.as_owner()?, &OwnerVerb::Purge {})?;
            if purged["left"] != 0 {
                call.out().warn(format_args!(
                    "{} whose time ran out are left: their rows are damaged (`stvor vault verify` names them), or the clock is far ahead of \
                     what the vault saw of it",
                    purged["left"]
                ));
            }
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

fn list(call: Call<'_>, space: &AnyNamespace, (before, all): (Option<&str>, bool)) -> Result {
    let mut asker = call.asker()?;
    let spaces = Spaces::of(&mut asker, space)?;
    let (mut found, mut more, mut printed) = (Vec::new(), Vec::new(), false);
    for namespace in &spaces.names {
        let mut before = before.map(str::to_owned);
        loop {
            let mut page = asker.ask(AgentVerb::List { namespace: namespace.clone(), before })?;
            found.extend(show::parsed::<Vec<Header>>(page["memories"].take())?);
            before = page["next"].as_str().map(str::to_owned);
            match &before {
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
