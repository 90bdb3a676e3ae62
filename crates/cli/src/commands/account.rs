//! `stvor account`: what concerns a user as a whole.

use serde_json::json;
use stvor::{Client, ConnectOptions};

use crate::args::{AccountArgs, AccountCommand, Me};
use crate::ask::sure;
use crate::failure::Result;
use crate::render::Out;
use crate::session::Context;

/// Recovers or deletes.
pub(crate) async fn run(context: Context<'_>, args: &AccountArgs) -> Result {
    match &args.command {
        AccountCommand::Recover { me, sure: answer } => {
            let user = context.user(me)?;
            let question = format!(
                "Go on from this copy of {user}'s data? If a newer copy exists, use that instead: messages received since this one was made are not in it."
            );
            sure(answer.yes, &question)?;
            let client = connect(context, me).await?;
            let done = recover(&client, context.out).await;
            client.close().await;
            done
        }
        AccountCommand::Delete { me, sure: answer } => {
            let user = context.user(me)?;
            let question = format!(
                "Delete {user} for good? Name, keys and mail at the relay, and everything on this device, go."
            );
            sure(answer.yes, &question)?;
            let client = connect(context, me).await?;
            client.delete_account().await?;
            context.out.either(&json!({ "user": user, "deleted": true }), |_| {
                format!("{user} is deleted, there and here")
            })
        }
    }
}

/// The relay has a say in both.
async fn connect(context: Context<'_>, me: &Me) -> Result<Client> {
    context.connect(me, ConnectOptions { require_relay: true, ..ConnectOptions::default() }).await
}

async fn recover(client: &Client, out: Out) -> Result {
    client.recover_from_rollback().await?;
    let user = client.user().to_string();
    out.either(&json!({ "user": user, "recovered": true }), |_| {
        format!("{user} goes on: each conversation starts a fresh session with its next message")
    })
}
