//! `stvor peer`: whom a user talks with, and what this device does about them.

use serde_json::json;
use stvor::{Client, PeerInfo};
use stvor_base::Timestamp;

use crate::args::{Me, Pair, PeerArgs, PeerCommand};
use crate::ask::sure;
use crate::failure::Result;
use crate::policy::Keep;
use crate::render::{GOOD, LOUD, Out, clock, paint, rfc3339, rows, safe, table};
use crate::session::Context;

/// Lists or changes peers.
pub(crate) async fn run(context: Context<'_>, args: &PeerArgs) -> Result {
    if let PeerCommand::Delete { pair, sure: answer } = &args.command {
        sure(answer.yes, &format!("Delete the conversation with {} from this device?", safe(&pair.peer)))?;
    }
    let client = context.known(me_of(&args.command)).await?;
    let done = carry_out(&client, &args.command, context.out).await;
    client.close().await;
    done
}

fn me_of(command: &PeerCommand) -> &Me {
    match command {
        PeerCommand::List(me) => me,
        PeerCommand::Block(Pair { me, .. })
        | PeerCommand::Unblock(Pair { me, .. })
        | PeerCommand::Reset(Pair { me, .. })
        | PeerCommand::Keep { pair: Pair { me, .. }, .. }
        | PeerCommand::Delete { pair: Pair { me, .. }, .. } => me,
    }
}

async fn carry_out(client: &Client, command: &PeerCommand, out: Out) -> Result {
    match command {
        PeerCommand::List(_) => return list(&client.peers().await?, out),
        PeerCommand::Block(pair) => client.block(&pair.peer).await?,
        PeerCommand::Unblock(pair) => client.unblock(&pair.peer).await?,
        PeerCommand::Keep { pair, keep } => client.set_retention(&pair.peer, keep.0).await?,
        PeerCommand::Reset(pair) => client.reset_session(&pair.peer).await?,
        PeerCommand::Delete { pair, .. } => client.delete_conversation(&pair.peer).await?,
    }
    let (peer, key, value, said) = match command {
        PeerCommand::List(_) => return Ok(()),
        PeerCommand::Block(pair) => (&pair.peer, "blocked", true.into(), "is blocked".to_owned()),
        PeerCommand::Unblock(pair) => {
            (&pair.peer, "blocked", false.into(), "is not blocked any more".to_owned())
        }
        PeerCommand::Keep { pair, keep } => {
            (&pair.peer, "retention", keep.to_string().into(), format!("- new messages are kept: {keep}"))
        }
        PeerCommand::Reset(pair) => (&pair.peer, "reset", true.into(), "gets a fresh session".to_owned()),
        PeerCommand::Delete { pair, .. } => {
            (&pair.peer, "deleted", true.into(), "- the conversation is deleted here".to_owned())
        }
    };
    let mut object = json!({ "peer": peer });
    let value: serde_json::Value = value;
    object[key] = value;
    out.either(&object, |_| format!("{} {said}", safe(peer)))
}

fn list(peers: &[PeerInfo], out: Out) -> Result {
    if out.json {
        let list: Vec<_> = peers
            .iter()
            .map(|peer| {
                json!({
                    "peer": peer.user.to_string(),
                    "verified": peer.verified,
                    "blocked": peer.blocked,
                    "last_message_at": peer.last_message_at.map(rfc3339),
                    "retention": Keep(peer.retention).to_string(),
                })
            })
            .collect();
        return out.object(&list);
    }
    if peers.is_empty() {
        out.say("You have not talked with anybody yet");
        return Ok(());
    }
    let mut lines = table(["peer", "identity", "last message", "kept"]);
    let now = Timestamp::system();
    for peer in peers {
        let identity = match (peer.blocked, peer.verified) {
            (true, _) => paint(LOUD, "blocked"),
            (false, Some(true)) => paint(GOOD, "verified"),
            (false, Some(false)) => "not verified".to_owned(),
            (false, None) => "not met".to_owned(),
        };
        lines.add_row([
            safe(peer.user.as_str()),
            identity,
            peer.last_message_at.map_or_else(|| "-".to_owned(), |time| clock(time, now)),
            Keep(peer.retention).to_string(),
        ]);
    }
    out.line(rows(&lines))
}
