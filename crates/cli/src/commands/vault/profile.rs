//! `stvor vault profile` and `rotate`: keys of their own for some memories, and changing keys.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use stvor_keys::WrappedKey;
use stvor_vault::daemon::{Client, Hidden, KeysVerb, OwnerVerb};
use stvor_vault::profiles::{NewProfile, Profile, ProfileKey, ProfileState, Rotation, unwrap_profile};

use super::talk::ask_owner;
use super::{Call, show};
use crate::args::{Cost, ProfileCommand, ProfileSecret, RotatedKey};
use crate::failure::{Failure, Result};
use crate::progress::Bar;
use crate::render::{GOOD, LOUD, paint, rows, table};

fn ask(client: &mut Client, act: KeysVerb) -> Result<Value> {
    ask_owner(client, &OwnerVerb::Keys { act: Box::new(act) })
}

/// Does what was asked with profiles.
pub(super) fn run(call: Call<'_>, command: &ProfileCommand) -> Result {
    match command {
        ProfileCommand::Create { name, exportable, rotate_days, rotate_memories, cost, secret } => {
            let rotation = Rotation { days: *rotate_days, memories: *rotate_memories };
            let new = NewProfile { name: name.clone(), exportable: *exportable, rotation };
            create(call, new, (secret, *cost))
        }
        ProfileCommand::List => list(call),
        ProfileCommand::Open { name, secret } => open(call, name, secret),
        ProfileCommand::Passphrase { name, secret, new, cost } => {
            change_secret(call, name, (secret, &new.into(), *cost))
        }
        ProfileCommand::Close { name } => {
            ask(&mut call.as_owner()?, KeysVerb::CloseProfile { name: name.clone() })?;
            call.out().either(&json!({ "closed": name }), |_| format!("closed {name}"))
        }
        ProfileCommand::Rotate { name } => {
            let mut client = call.as_owner()?;
            let bar = Bar::new(call.out(), "memories");
            let act = Box::new(KeysVerb::RotateProfile { name: name.clone() });
            let answer = client.call_owner_with(&OwnerVerb::Keys { act }, |done, total| {
                bar.to(done, total);
            });
            bar.end();
            call.out().either(&answer??, |answer| {
                format!(
                    "the key of {name} is another one; {} memories were wrapped anew",
                    answer["rewrapped"]
                )
            })
        }
    }
}

fn create(call: Call<'_>, new: NewProfile, (secret, cost): (&ProfileSecret, Cost)) -> Result {
    let mut client = call.as_owner()?;
    let key = match call.profile_secret(secret, (None, Some(cost)))? {
        Some(holder) => Some(ProfileKey::generate(&new.name, &*holder)?),
        None => None,
    };
    let name = new.name.clone();
    ask(&mut client, KeysVerb::MakeProfile { profile: new, key: key.as_ref().map(Into::into) })?;
    let opens = if key.is_some() { "a secret of its own" } else { "your session" };
    let object = json!({ "profile": name, "own_secret": key.is_some() });
    call.out().either(&object, |_| format!("made {name}; it opens with {opens}"))?;
    if let Some(key) = &key {
        opens_alone(call, key.kind());
    }
    Ok(())
}

/// The vault's root key, which shares hold, is no way to a profile's own secret.
fn opens_alone(call: Call<'_>, kind: &str) {
    call.out().warn(format_args!(
        "nothing but this {kind} opens the profile, no shares and no recovery passphrase: if it is lost, so are the profile's memories"
    ));
}

/// What a profile's own secret unwraps.
fn record(client: &mut Client, name: &str) -> Result<Vec<u8>> {
    let answer = ask(client, KeysVerb::ProfileRecord { name: name.to_owned() })?;
    let malformed = |_| Failure::Usage("the daemon's answer is not understood".into());
    STANDARD.decode(answer["record"].as_str().unwrap_or_default()).map_err(malformed)
}

/// The same of each profile that has such a secret.
pub(super) fn records(client: &mut Client) -> Result<Vec<(String, Vec<u8>)>> {
    let all: Vec<ProfileState> = show::parsed(ask(client, KeysVerb::Profiles {})?)?;
    let own = all.into_iter().map(|state| state.profile).filter(|profile| !profile.opens_with_owner());
    own.map(|profile| Ok((profile.name.clone(), record(client, &profile.name)?))).collect()
}

/// A profile's key, unwrapped with the secret of its own.
fn key_of(
    call: Call<'_>,
    client: &mut Client,
    (name, secret): (&str, &ProfileSecret),
) -> Result<stvor_crypto::Secret<32>> {
    let record = record(client, name)?;
    let malformed = || Failure::Usage("the profile's own secret is missing".into());
    let kind = WrappedKey::decode(&record).map_err(|error| Failure::coded(&error))?.kind();
    let holder = call.profile_secret(secret, (Some(kind), None))?.ok_or_else(malformed)?;
    Ok(unwrap_profile(&record, name, &*holder)?)
}

fn change_secret(
    call: Call<'_>,
    name: &str,
    (old, new, cost): (&ProfileSecret, &ProfileSecret, Cost),
) -> Result {
    let mut client = call.as_owner()?;
    let key = key_of(call, &mut client, (name, old))?;
    let Some(holder) = call.profile_secret(new, (None, Some(cost)))? else {
        return Err(Failure::Usage("the profile's new secret is missing".into()));
    };
    let key = ProfileKey::wrap(name, key, &*holder)?;
    ask(&mut client, KeysVerb::ChangeProfileSecret { name: name.to_owned(), key: (&key).into() })?;
    let kind = holder.kind().name();
    let object = json!({ "profile": name, "opens_with": kind });
    call.out().either(&object, |_| format!("{name} opens with the new {kind}"))?;
    opens_alone(call, kind);
    Ok(())
}

fn open(call: Call<'_>, name: &str, secret: &ProfileSecret) -> Result {
    let mut client = call.as_owner()?;
    let key = Hidden::of_key(&key_of(call, &mut client, (name, secret))?);
    ask(&mut client, KeysVerb::OpenProfile { name: name.to_owned(), key })?;
    call.out().either(&json!({ "opened": name }), |_| format!("open: {name}"))
}

/// When its key is changed, in words.
fn policy(profile: &Profile) -> String {
    match (profile.rotation.days, profile.rotation.memories) {
        (None, None) => "when asked".into(),
        (Some(days), None) => format!("after {days} days"),
        (None, Some(memories)) => format!("after {memories} memories"),
        (Some(days), Some(memories)) => format!("after {days} days or {memories} memories"),
    }
}

fn list(call: Call<'_>) -> Result {
    let answer = ask(&mut call.as_owner()?, KeysVerb::Profiles {})?;
    let all: Vec<ProfileState> = show::parsed(answer.clone())?;
    if call.out().json {
        for one in answer.as_array().into_iter().flatten() {
            call.out().object(one)?;
        }
        return Ok(());
    }
    let mut lines = table(["profile", "opens with", "state", "exported", "key changed"]);
    for ProfileState { profile, open, due } in &all {
        let state = match (open, due) {
            (true, false) => paint(GOOD, "open"),
            (false, false) => "closed".into(),
            (true, true) => paint(LOUD, "open, key is due"),
            (false, true) => paint(LOUD, "closed, key is due"),
        };
        let exported = if profile.exportable { "yes" } else { "no" };
        lines.add_row([
            profile.name.clone(),
            profile.opens_with.clone(),
            state,
            exported.to_owned(),
            policy(profile),
        ]);
    }
    call.out().line(rows(&lines))
}

/// Changes the root key, or the one that signs the log.
pub(super) fn rotate(call: Call<'_>, key: RotatedKey) -> Result {
    match key {
        RotatedKey::SigningKey => {
            let answer = ask(&mut call.as_owner()?, KeysVerb::RotateSigningKey {})?;
            call.out().either(&answer, |answer| {
                format!("the log is signed by {}", answer["verifier"].as_str().unwrap_or_default())
            })
        }
        RotatedKey::RootKey => {
            let mut client = call.stranger()?;
            let holder = call.owner_of(&client)?;
            let bar = Bar::new(call.out(), "rows");
            let answer = client.rotate_root(&*holder, |done, total| bar.to(done, total));
            bar.end();
            call.out().either(&answer??, |answer| {
                format!("the root key is another one; {} memories were sealed anew", answer["resealed"])
            })?;
            call.out().say(
                "Make a full backup now, and shares of an escrow anew: those from before are of the old key.",
            );
            Ok(())
        }
    }
}
