//! `stvor key`: what opens the store, and what its rows are sealed under.

use serde_json::json;
use stvor::store::OpenKey;
use stvor::{Client, SecretBytes};

use crate::args::{KeyArgs, KeyCommand, NewKey, NewKeyDetails};
use crate::config;
use crate::failure::Result;
use crate::progress::Bar;
use crate::render::Out;
use crate::secrets;
use crate::session::Context;

/// Shows, changes or rotates.
pub(crate) async fn run(context: Context<'_>, args: &KeyArgs) -> Result {
    let (KeyCommand::Show(me) | KeyCommand::Change { me, .. } | KeyCommand::Rotate(me)) = &args.command;
    let new = match &args.command {
        KeyCommand::Change { new, details, .. } => Some(wanted(new, details)?),
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

/// The key that a store is to open with.
enum Wanted {
    Key(OpenKey),
    Keyring,
}

fn wanted(new: &NewKey, details: &NewKeyDetails) -> Result<Wanted> {
    if new.new_os_keyring {
        return Ok(Wanted::Keyring);
    }
    if let Some(holder) = crate::holder::configured(&as_settings(new, details))? {
        return Ok(Wanted::Key(OpenKey::Holder(holder)));
    }
    in_file_or_head(new).map(Wanted::Key)
}

/// What the settings would say of the new key.
fn as_settings(new: &NewKey, details: &NewKeyDetails) -> config::Client {
    config::Client {
        token_module: new.new_token_module.clone(),
        token_label: details.new_token_label.clone(),
        token_key: details.new_token_key.clone(),
        token_pin_file: details.new_token_pin_file.clone(),
        kmip_server: new.new_kmip_server.clone(),
        kmip_name: details.new_kmip_name.clone(),
        kmip_key: details.new_kmip_key.clone(),
        kmip_roots: details.new_kmip_roots.clone(),
        kmip_certificate: details.new_kmip_certificate.clone(),
        kmip_private_key: details.new_kmip_private_key.clone(),
        ..config::Client::default()
    }
}

fn in_file_or_head(new: &NewKey) -> Result<OpenKey> {
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

async fn change(client: &Client, new: Wanted, out: Out) -> Result {
    match new {
        Wanted::Key(key) => client.change_key(key).await?,
        Wanted::Keyring => into_keyring(client).await?,
    }
    let holder = client.store_info().await?.holder.name();
    out.either(&json!({ "opens_with": holder }), |_| {
        format!("The store opens with the new {holder} from now on")
    })?;
    out.say("Older copies of the store still open with the old key");
    Ok(())
}

#[cfg(feature = "os-keyring")]
async fn into_keyring(client: &Client) -> Result {
    Ok(client.change_key_to_keyring(std::sync::Arc::new(stvor_keys::SystemKeyring)).await?)
}

#[cfg(not(feature = "os-keyring"))]
#[allow(clippy::unused_async, reason = "its other form waits")]
async fn into_keyring(_: &Client) -> Result {
    Err(crate::session::no_keyring())
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
