//! `stvor group`: groups, and who is in them.

use serde_json::json;
use stvor::{Client, ConnectOptions, Group, GroupId, GroupInfo};

use crate::args::{GroupArgs, GroupCommand, InGroup, Me};
use crate::failure::{Failure, Result};
use crate::render::{GOOD, LOUD, Out, paint, rows, safe, table};
use crate::session::Context;

/// Lists or changes groups.
pub(crate) async fn run(context: Context<'_>, args: &GroupArgs) -> Result {
    let reads = matches!(args.command, GroupCommand::List(_) | GroupCommand::Show(_));
    let options = ConnectOptions { require_relay: !reads, existing: reads, ..ConnectOptions::default() };
    let client = context.connect(me_of(&args.command), options).await?;
    let events = context.tell_events(&client);
    let done = carry_out(&client, &args.command, context).await;
    client.close().await;
    events.abort();
    done
}

fn me_of(command: &GroupCommand) -> &Me {
    match command {
        GroupCommand::Create { me, .. } | GroupCommand::List(me) => me,
        GroupCommand::Show(InGroup { me, .. })
        | GroupCommand::Leave(InGroup { me, .. })
        | GroupCommand::Add { group: InGroup { me, .. }, .. }
        | GroupCommand::Remove { group: InGroup { me, .. }, .. }
        | GroupCommand::Rename { group: InGroup { me, .. }, .. } => me,
    }
}

/// The first digits of an id: enough to tell groups of a person apart.
pub(crate) fn short(group: GroupId) -> String {
    group.to_string().chars().take(8).collect()
}

/// The group that a person means: by its name, its id, or the first digits of that. Whoever was just added has the
/// invitation at the relay: a group that is not here may be in what waits there.
pub(crate) async fn find(context: Context<'_>, client: &Client, wanted: &str) -> Result<Group> {
    match look_for(client, wanted).await {
        Err(Failure::Coded { code: "GROUP_NOT_FOUND", .. }) => {
            let _ = client.wait_caught_up(context.settings.timeout()).await;
            look_for(client, wanted).await
        }
        found => found,
    }
}

async fn look_for(client: &Client, wanted: &str) -> Result<Group> {
    let groups = client.groups().await?;
    let named: Vec<&GroupInfo> = groups.iter().filter(|group| group.name == wanted).collect();
    let begun = |group: &&GroupInfo| wanted.len() >= 4 && group.id.to_string().starts_with(wanted);
    let found = if named.is_empty() { groups.iter().filter(begun).collect() } else { named };
    match found.as_slice() {
        [one] => Ok(client.group(one.id).await?),
        [] => Err(Failure::Coded {
            code: "GROUP_NOT_FOUND",
            message: format!("there is no group \"{}\" here: `stvor group list` shows yours", safe(wanted)),
            retryable: false,
        }),
        several => {
            let ids: Vec<String> = several.iter().map(|group| short(group.id)).collect();
            Err(Failure::Usage(format!(
                "several groups are called \"{}\": say which by the first digits of its id ({})",
                safe(wanted),
                ids.join(", ")
            )))
        }
    }
}

async fn carry_out(client: &Client, command: &GroupCommand, context: Context<'_>) -> Result {
    let out = context.out;
    let group = match command {
        GroupCommand::List(_) | GroupCommand::Show(_) => {
            // What is shown is what the relay knows, too; without it what is here.
            let _ = client.wait_caught_up(context.settings.timeout()).await;
            return match command {
                GroupCommand::Show(group) => show(&look_for(client, &group.group).await?.info().await?, out),
                _ => list(&client.groups().await?, out),
            };
        }
        GroupCommand::Create { name, members, .. } => client.create_group(name, members).await?,
        GroupCommand::Add { group, members } => {
            let group = find(context, client, &group.group).await?;
            group.add(members).await?;
            group
        }
        GroupCommand::Remove { group, member } => {
            let group = find(context, client, &group.group).await?;
            group.remove(member).await?;
            group
        }
        GroupCommand::Leave(group) => {
            let group = find(context, client, &group.group).await?;
            group.leave().await?;
            group
        }
        GroupCommand::Rename { group, name } => {
            let group = find(context, client, &group.group).await?;
            group.rename(name).await?;
            group
        }
    };
    let left = client.flush(context.settings.timeout()).await?;
    if left > 0 {
        out.say(format_args!("{left} not accepted yet: they stay in the outbox and go out next time"));
    }
    show(&group.info().await?, out)
}

fn object(group: &GroupInfo) -> serde_json::Value {
    json!({
        "id": group.id.to_string(),
        "name": group.name,
        "members": group.members.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "is_member": group.is_member,
        "epoch": group.epoch,
        "state": group.state,
    })
}

fn show(group: &GroupInfo, out: Out) -> Result {
    out.either(&object(group), |_| {
        let members: Vec<String> = group.members.iter().map(|user| safe(user.as_str())).collect();
        let us = if group.is_member { paint(GOOD, "member") } else { paint(LOUD, "not a member") };
        format!(
            "{} ({us})\n  id       {}\n  members  {} ({})\n  state    {} (epoch {})",
            safe(&group.name),
            group.id,
            members.join(", "),
            members.len(),
            group.state,
            group.epoch
        )
    })
}

fn list(groups: &[GroupInfo], out: Out) -> Result {
    if out.json {
        return out.object(&groups.iter().map(object).collect::<Vec<_>>());
    }
    if groups.is_empty() {
        out.say("You are in no group");
        return Ok(());
    }
    let mut lines = table(["group", "id", "members", "you"]);
    for group in groups {
        lines.add_row([
            safe(&group.name),
            short(group.id),
            group.members.len().to_string(),
            if group.is_member { paint(GOOD, "member") } else { paint(LOUD, "not a member") },
        ]);
    }
    out.line(rows(&lines))
}
