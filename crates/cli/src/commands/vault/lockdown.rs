//! `stvor vault lockdown`: everything stops without ceremony, and goes on with the owner's secret.

use serde_json::json;
use stvor_vault::daemon::{AgentVerb, OwnerVerb};

use super::Call;
use super::talk::ask_owner;
use crate::args::LockdownCommand;
use crate::failure::Result;

/// Enters or leaves.
pub(super) fn run(call: Call<'_>, command: &LockdownCommand) -> Result {
    let out = call.out();
    match command {
        LockdownCommand::Enter { reason } => {
            match call.credential()? {
                Some(credential) => {
                    let verb = AgentVerb::EnterLockdown { reason: reason.clone() };
                    call.as_agent(&credential)?.call(&verb)??;
                }
                None => {
                    let verb = OwnerVerb::EnterLockdown { reason: reason.clone() };
                    ask_owner(&mut call.stranger()?, &verb)?;
                }
            }
            out.either(&json!({ "lockdown": true }), |_| "LOCKDOWN: every request is refused".to_owned())?;
            out.say("To let it go on: stvor vault lockdown leave");
            Ok(())
        }
        LockdownCommand::Leave => {
            let mut client = call.stranger()?;
            let holder = call.owner_of(&client)?;
            client.leave_lockdown(&*holder)??;
            out.either(&json!({ "lockdown": false }), |_| "the lockdown is over".to_owned())
        }
    }
}
