//! `stvor vault approvals`: what agents ask the owner to allow, decided from any terminal.

use serde_json::json;
use stvor_base::Timestamp;
use stvor_vault::daemon::{AgentVerb, OwnerVerb};
use stvor_vault::gates::approval::{Approval, Stand};

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
            ask_owner(&mut call.as_owner()?, &verb)?;
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

fn list(call: Call<'_>) -> Result {
    let mut approvals: Vec<Approval> =
        show::parsed(ask_owner(&mut call.as_owner()?, &OwnerVerb::Approvals {})?)?;
    approvals.sort_by_key(|approval| approval.asked.wall);
    if call.out().json {
        return call.out().object(&approvals);
    }
    if approvals.is_empty() {
        call.out().say("Nobody asked for anything");
        return Ok(());
    }
    let mut lines = table(["request", "agent", "memory", "asked", "stands", "for"]);
    for approval in &approvals {
        lines.add_row([
            approval.id.to_string(),
            safe(&approval.agent),
            approval.memory.to_string(),
            rfc3339(Timestamp::from_millis(approval.asked.wall)),
            stand(approval.stand),
            // The words of an agent: shown, never obeyed.
            safe(&approval.purpose).replace('\n', " "),
        ]);
    }
    call.out().line(rows(&lines))
}
