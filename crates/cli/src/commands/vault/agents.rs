//! `stvor vault agents`: who may ask, and how far they reach.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde_json::{Value, json};
use stvor_vault::daemon::OwnerVerb;
use stvor_vault::{Agent, Ends};

use super::talk::ask_owner;
use super::{Call, show};
use crate::args::{AgentEnds, AgentsCommand};
use crate::failure::{Failure, Result};
use crate::render::{grouped, rows, safe, table};

/// Enrols, lists, removes.
pub(super) fn run(call: Call<'_>, command: &AgentsCommand) -> Result {
    match command {
        AgentsCommand::Add {
            name,
            namespaces,
            highest,
            read_only,
            quota,
            ends,
            log_quota,
            credential_out,
        } => {
            let agent = Agent {
                name: name.clone(),
                namespaces: namespaces.clone(),
                highest: *highest,
                writes: !read_only,
                quota: *quota,
                ends: match ends {
                    AgentEnds::Own => Ends::Own,
                    AgentEnds::Any => Ends::Any,
                },
                log_quota: *log_quota,
            };
            add(call, agent, credential_out.as_deref())
        }
        AgentsCommand::List => list(call),
        AgentsCommand::Revoke { name } => {
            ask_owner(&mut call.as_owner()?, &OwnerVerb::RemoveAgent { name: name.clone() })?;
            call.out().either(&json!({ "done": true }), |_| format!("{} is revoked", safe(name)))
        }
    }
}

fn add(call: Call<'_>, agent: Agent, file: Option<&Path>) -> Result {
    let mut client = call.as_owner()?;
    // Made before the credential, which is shown once and must not be lost for want of a place; after the owner's secret, so that who
    // breaks off there leaves nothing in the way of the next try.
    let file = file.map(|path| private_file(path).map(|file| (path, file))).transpose()?;
    let name = agent.name.clone();
    let answer = match (ask_owner(&mut client, &OwnerVerb::Enrol { agent }), &file) {
        (Ok(answer), _) => answer,
        (Err(failure), file) => {
            if let Some((path, _)) = file {
                let _ = std::fs::remove_file(path);
            }
            return Err(failure);
        }
    };
    let credential = answer["credential"].as_str().unwrap_or_default();
    let out = call.out();
    match file {
        Some((path, mut file)) => {
            let written = writeln!(file, "{credential}").and_then(|()| file.sync_all());
            written.map_err(|source| Failure::File { what: "can not write", path: path.into(), source })?;
            let object = json!({ "agent": name, "credential_file": path.display().to_string() });
            out.either(&object, |_| {
                format!("{} is enrolled; its credential is in {}", safe(&name), path.display())
            })
        }
        None => {
            out.say(format_args!("Credential of {}. It is not shown again:", safe(&name)));
            out.either(&json!({ "agent": name, "credential": credential }), |_| credential.to_owned())
        }
    }
}

fn private_file(path: &Path) -> Result<std::fs::File> {
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    opened.map_err(|source| Failure::File { what: "can not make", path: path.into(), source })
}

fn list(call: Call<'_>) -> Result {
    let mut agents: Value = ask_owner(&mut call.as_owner()?, &OwnerVerb::Agents {})?;
    if call.out().json {
        return call.out().object(&agents);
    }
    let mut used = Vec::new();
    for agent in agents.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        used.push(agent.remove("used").and_then(|used| used.as_u64()).unwrap_or_default());
    }
    let agents: Vec<Agent> = show::parsed(agents)?;
    let mut lines = table(["agent", "namespaces", "highest level", "writes", "ends", "stored", "of KiB"]);
    for (agent, used) in agents.iter().zip(used) {
        let spaces: Vec<String> = agent.namespaces.iter().map(|name| safe(name)).collect();
        let writes = if agent.writes { "yes" } else { "no" };
        let ends = match agent.ends {
            Ends::Own => "own",
            Ends::Any => "any",
        };
        let kib = |bytes: u64| grouped(bytes.div_ceil(1_024));
        lines.add_row([
            safe(&agent.name),
            spaces.join(" "),
            agent.highest.to_string(),
            writes.to_owned(),
            ends.to_owned(),
            kib(used),
            kib(agent.quota()),
        ]);
    }
    if agents.is_empty() {
        call.out().say("No agent is enrolled: stvor vault agents add NAME --namespace NAMESPACE");
        return Ok(());
    }
    call.out().line(rows(&lines))
}
