//! `stvor vault unlock`, `lock`, `status`.

use serde_json::{Value, json};
use stvor_vault::daemon::OwnerVerb;
use stvor_vault::{Mode, Status};

use super::talk::ask_owner;
use super::{Call, show};
use crate::args::{SecondSecret, VaultPassphrase, VaultUnlock};
use crate::failure::{Failure, Result};
use crate::render::{BAD, GOOD, LOUD, grouped, paint, rfc3339, rows, safe, table};

/// Begins the owner's session.
pub(super) fn unlock(call: Call<'_>, args: &VaultUnlock) -> Result {
    let mut client = call.stranger()?;
    let holder = call.owner_of(&client)?;
    let second = call.second(&args.second)?;
    client.unlock(&*holder, second.as_deref())??;
    let out = call.out();
    out.either(&json!({ "mode": "open", "second_secret": second.is_some() }), |_| match second {
        Some(_) => "open, level 4 too".to_owned(),
        None => "open".to_owned(),
    })
}

/// Ends it.
pub(super) fn lock(call: Call<'_>) -> Result {
    let mut client = call.as_owner()?;
    ask_owner(&mut client, &OwnerVerb::Lock {})?;
    call.out().either(&json!({ "mode": "locked" }), |_| "locked".to_owned())
}

/// Changes the owner's secret, or the second one, or both.
pub(super) fn change_secret(call: Call<'_>, args: &VaultPassphrase) -> Result {
    let wanted = SecondSecret::from(&args.new_second);
    if args.second.is_named() && !wanted.is_named() {
        return Err(Failure::Usage(
            "the second secret is the old one here: name the new one too (--new-second-passphrase-file, --new-second-keyfile)"
                .into(),
        ));
    }
    let mut client = call.stranger()?;
    let old = call.owner_of(&client)?;
    // Before the new one is asked for: who does not know the old one need not think of another.
    client.prove(&*old)?;
    let had = client.records().is_some_and(|records| records.vaulted.is_some());
    let from = call.second(&args.second)?;
    // Both are read before one is changed.
    let second = call.new_second(&wanted, args.owner.cost)?;
    let new = match second.is_none() || args.owner.is_named() {
        true => Some(call.changed_owner(&args.owner)?),
        false => None,
    };
    if let Some(second) = &second {
        client.change_second(&*old, from.as_deref(), &**second)??;
    }
    let out = call.out();
    if let Some(new) = &new {
        let changed = client.change_secret(&*old, &**new).map_err(Failure::from);
        let changed = changed.and_then(|changed| changed.map_err(Failure::from));
        if changed.is_err() && second.is_some() {
            out.warn("the second secret was changed; the owner's was not");
        }
        changed?;
    }
    let [new, second] = [&new, &second].map(|one| one.as_ref().map(|holder| holder.kind().name()));
    out.either(
        &json!({ "opens_with": new, "second_secret": second, "first": second.is_some() && !had }),
        |_| {
            let opens = new.map(|kind| format!("the vault opens with the new {kind}"));
            let level_4 = second.map(|kind| format!("level 4 opens with the new {kind}"));
            opens.into_iter().chain(level_4).collect::<Vec<_>>().join("\n")
        },
    )?;
    match second {
        Some(_) if !had => out.say(
            "Level 4 can be written now, and read after an unlock with --second. Shares made before do not open it: make an escrow anew.",
        ),
        _ => out.say("Backups that were made before open with the old one still."),
    }
    Ok(())
}

/// Prints what the daemon counts.
pub(super) fn metrics(call: Call<'_>) -> Result {
    let answer = ask_owner(&mut call.stranger()?, &OwnerVerb::Metrics {})?;
    if call.out().json {
        return call.out().object(&json!({ "prometheus": answer }));
    }
    call.out().line(answer.as_str().unwrap_or_default().trim_end())
}

/// What a daemon of the same user does not contain.
const NOT_CONTAINED: &str = "the daemon runs as this user: a program of the same user that replaces the `stvor` that you start, \
reads what you type or the file of your passphrase, takes the daemon's place at its socket and waits for `stvor vault unlock`, \
writes the database while the daemon is stopped, or becomes root is not contained";

/// Shows the state.
pub(super) fn status(call: Call<'_>) -> Result {
    let (value, contained) = match call.credential()? {
        Some(credential) => {
            let mut client = call.as_agent(&credential)?;
            let value = client.call(&stvor_vault::daemon::AgentVerb::Status {})??;
            (value, isolated(client.served_by()))
        }
        None => {
            let mut client = call.stranger()?;
            (ask_owner(&mut client, &OwnerVerb::Status {})?, isolated(client.served_by()))
        }
    };
    let status: Status = show::parsed(value.clone())?;
    if call.out().json {
        let mut object = value;
        if let Value::Object(fields) = &mut object {
            fields.insert("sockets".into(), json!(call.sockets()?.display().to_string()));
            fields.insert("isolated".into(), contained.into());
            fields.insert("not_contained".into(), json!((!contained).then_some(NOT_CONTAINED)));
        }
        return call.out().object(&object);
    }
    let mut lines = table(["", ""]);
    let state = match status.mode {
        Mode::Cold => paint(LOUD, show::mode(status.mode)),
        Mode::Locked => show::mode(status.mode).to_owned(),
        Mode::Open if status.vaulted => paint(GOOD, "open, level 4 too"),
        Mode::Open => paint(GOOD, show::mode(status.mode)),
    };
    lines.add_row(["state".to_owned(), state]);
    if let Some(lockdown) = &status.lockdown {
        let since = rfc3339(stvor_base::Timestamp::from_millis(lockdown.since));
        let said = format!("LOCKDOWN since {since} by {}: {}", safe(&lockdown.by), safe(&lockdown.reason));
        lines.add_row(["lockdown".to_owned(), paint(BAD, said)]);
    }
    if !status.doubted.is_empty() {
        let said = format!(
            "SHUT: somebody else changed what the vault keeps of {}; `stvor vault verify` says more, `stvor vault lockdown leave` ends it",
            status.doubted.join(", ")
        );
        lines.add_row(["doubted".to_owned(), paint(BAD, said)]);
    }
    for file in &status.missing_checkpoints {
        let said = format!("there were none in {}; see `stvor vault verify`", safe(file));
        lines.add_row(["checkpoints".to_owned(), paint(BAD, said)]);
    }
    if status.mode == Mode::Cold {
        lines.add_row(["refused".to_owned(), format!("{} requests while cold", status.refused_cold)]);
    } else {
        lines.add_row(["log".to_owned(), format!("{} events, root {}", grouped(status.events), status.root)]);
        lines.add_row(["signed by".to_owned(), status.verifier.clone()]);
    }
    if let Some(key) = &status.boundary_key {
        lines.add_row(["boundary".to_owned(), format!("asked; believed by the key {}", safe(key))]);
    }
    if let Some(memory) = status.memory {
        lines.add_row(["memory".to_owned(), show::memory(memory).to_owned()]);
    }
    if status.watchers_untold > 0 {
        let said = "NOT TOLD: a watcher of the dead-man switch goes on as before; `stvor vault switch status` says which";
        lines.add_row(["switch".to_owned(), paint(BAD, said)]);
    }
    let mode = if contained {
        "isolated: the daemon runs as another user".to_owned()
    } else {
        format!("{}: {NOT_CONTAINED}", paint(LOUD, "same user"))
    };
    lines.add_row(["contains".to_owned(), mode]);
    lines.add_row(["sockets".to_owned(), call.sockets()?.display().to_string()]);
    call.out().line(rows(&lines))
}

/// Whether the daemon is out of this user's reach.
pub(super) fn isolated(served_by: Option<u32>) -> bool {
    let own = rustix::process::getuid().as_raw();
    served_by.is_some_and(|uid| uid != own && own != 0)
}
