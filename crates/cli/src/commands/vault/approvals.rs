//! `stvor vault approvals`: what agents ask the owner to allow, decided from any terminal.

use serde_json::json;
use stvor_base::Timestamp;
use stvor_vault::MemoryId;
use stvor_vault::daemon::{AgentVerb, Client, OwnerVerb};
use stvor_vault::gates::approval::{About, Request, Stand};

use super::talk::ask_owner;
use super::{Call, show};
use crate::args::ApprovalsCommand;
use crate::failure::{Failure, Result};
use crate::render::{FAINT, GOOD, LOUD, paint, rfc3339, rows, safe, table};

/// Lists, grants, denies, asks.
pub(super) fn run(call: Call<'_>, command: &ApprovalsCommand) -> Result {
    match command {
        ApprovalsCommand::List => list(call),
        ApprovalsCommand::Approve { request, seconds } => {
            let verb = OwnerVerb::Approve { id: *request, seconds: *seconds };
            let mut client = call.as_owner()?;
            show_request(call, &mut client, *request)?;
            ask_owner(&mut client, &verb)?;
            call.out().either(&json!({ "stand": "granted" }), |_| "granted, for one recall".to_owned())
        }
        ApprovalsCommand::Deny { request } => {
            ask_owner(&mut call.as_owner()?, &OwnerVerb::Deny { id: *request })?;
            call.out().either(&json!({ "stand": "denied" }), |_| "denied".to_owned())
        }
        ApprovalsCommand::Request { memory, purpose } => {
            let Some(credential) = call.credential()? else {
                return Err(Failure::Usage("an agent asks for approvals: give --credential-file".into()));
            };
            let verb = AgentVerb::RequestApproval { id: *memory, purpose: purpose.clone() };
            let asked = call.as_agent(&credential)?.call(&verb)??;
            call.out().either(&asked, |asked| asked["request"].as_str().unwrap_or_default().to_owned())
        }
    }
}

fn stand(stand: Stand) -> String {
    match stand {
        Stand::Pending => paint(LOUD, "waits for you"),
        Stand::Granted => paint(GOOD, "granted"),
        Stand::Denied => "denied".to_owned(),
        Stand::Used => paint(FAINT, "used"),
    }
}

fn all(client: &mut Client) -> Result<Vec<Request>> {
    show::parsed(ask_owner(client, &OwnerVerb::Approvals {})?)
}

/// Shows what is to be allowed where it is allowed.
pub(super) fn show_request(call: Call<'_>, client: &mut Client, id: MemoryId) -> Result {
    if let Some(request) = all(client)?.into_iter().find(|known| known.id == id) {
        call.out().say(shown(&request));
    }
    Ok(())
}

/// Words of somebody else in one line: shown, never obeyed.
fn words(text: &str) -> String {
    safe(text).replace('\n', " ")
}

/// A request, and what it is for: a line for each thing that the owner judges by.
fn shown(request: &Request) -> String {
    let at = |millis: u64| rfc3339(Timestamp::from_millis(millis));
    let (stands, outdated) = match &request.outdated {
        Some(why) => (paint(FAINT, "outdated"), format!(" ({why})")),
        None => (stand(request.stand), String::new()),
    };
    let mut lines = table(["", ""]);
    lines.add_row(["request".to_owned(), format!("{}  {stands}{outdated}", request.id)]);
    lines
        .add_row(["agent".to_owned(), format!("{}, asked {}", safe(&request.agent), at(request.asked.wall))]);
    lines.add_row(["memory".to_owned(), request.memory.to_string()]);
    match &request.about {
        Some(About { level, namespace, creator, source, created }) => {
            lines.add_row(["kept".to_owned(), format!("level {level}, namespace {}", words(namespace))]);
            let source = if source.is_empty() { "(not said)".to_owned() } else { words(source) };
            lines.add_row([
                "stored".to_owned(),
                format!("{} by {}, from: {source}", at(*created), safe(creator)),
            ]);
        }
        None => {
            lines.add_row(["stored", "unknown: its row is gone or was changed; run stvor vault verify"]);
        }
    }
    lines.add_row(["for".to_owned(), words(&request.purpose)]);
    rows(&lines)
}

fn list(call: Call<'_>) -> Result {
    let mut requests = all(&mut call.as_owner()?)?;
    requests.sort_by_key(|request| request.asked.wall);
    if call.out().json {
        return call.out().object(&requests);
    }
    if requests.is_empty() {
        call.out().say("Nobody asked for anything");
        return Ok(());
    }
    let all: Vec<String> = requests.iter().map(shown).collect();
    call.out().line(all.join("\n\n"))
}
