//! `stvor key`: what opens the store, and what its rows are sealed under.

use serde_json::json;
use stvor::store::OpenKey;
use stvor::{Client, SecretBytes};

use crate::args::{KeyArgs, KeyCommand, NewKey};
use crate::failure::Result;
use crate::progress::Bar;
use crate::render::Out;
use crate::secrets;
use crate::session::Context;

/// Shows, changes or rotates.
pub(crate) async fn run(context: Context<'_>, args: &KeyArgs) -> Result {
    let (KeyCommand::Show(me) | KeyCommand::Change { me, .. } | KeyCommand::Rotate(me)) = &args.command;
    let new = match &args.command {
        KeyCommand::Change { new, .. } => Some(wanted(new)?),
        KeyCommand::Show(_) | KeyCommand::Rotate(_) => None,
    };
    let client = context.known(me).await?;
    let done = match (&args.command, new) {
        (KeyCommand::Change { .. }, Some(new)) => change(&client, new, context.out).await,
        (KeyCommand::Rotate(_), _) => rotate(&client, context.out).await,
        _ => show(&client, context.out).await,
    };
    client.close().await;
    done
}

fn wanted(new: &NewKey) -> Result<OpenKey> {
    if let Some(path) = &new.new_keyfile {
        return Ok(OpenKey::Keyfile(path.clone()));
    }
    let (file, fd) = (new.new_passphrase_file.as_deref(), new.new_passphrase_fd);
    let text = match secrets::from_file_or_fd(file, fd, "the new passphrase")? {
        Some(text) => text,
        None => secrets::ask_new(
            "New passphrase of the store",
            "--new-passphrase-file, --new-passphrase-fd or --new-keyfile",
        )?,
    };
    Ok(OpenKey::Passphrase(SecretBytes::from_slice(text.expose().as_bytes())))
}

async fn show(client: &Client, out: Out) -> Result {
    let info = client.store_info().await?;
    let object = json!({
        "opens_with": info.holder.name(),
        "rotations": info.rotations,
        "rotating": info.rotating,
    });
    out.either(&object, |_| {
        let rotation = if info.rotating { ", a rotation is under way: run `stvor key rotate`" } else { "" };
        format!("opens with   {}\nrotations    {}{rotation}", info.holder.name(), info.rotations)
    })
}

async fn change(client: &Client, new: OpenKey, out: Out) -> Result {
    client.change_key(new).await?;
    let holder = client.store_info().await?.holder.name();
    out.either(&json!({ "opens_with": holder }), |_| {
        format!("The store opens with the new {holder} from now on")
    })?;
    out.say("Older copies of the store still open with the old key");
    Ok(())
}

async fn rotate(client: &Client, out: Out) -> Result {
    let bar = Bar::new(out, "rows");
    let rotated = client.rotate_key(|progress| bar.at(progress)).await;
    bar.end();
    rotated?;
    let rotations = client.store_info().await?.rotations;
    out.either(&json!({ "rotations": rotations }), |_| {
        "Every row is sealed under a fresh data key".to_owned()
    })
}
