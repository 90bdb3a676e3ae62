//! `stvor history`: what was said, page by page.

use serde_json::{Value, json};
use stvor::{Client, Direction, HistoryMessage};
use stvor_base::Timestamp;

use crate::args::HistoryArgs;
use crate::commands::group::find;
use crate::failure::{Failure, Result};
use crate::render::{FAINT, STRONG, clock, paint, rfc3339, safe};
use crate::session::{Context, put_content, readable};

/// Messages that are read from the store at once.
const PAGE: usize = 500;

/// Prints a part of a conversation, oldest first.
pub(crate) async fn run(context: Context<'_>, args: &HistoryArgs) -> Result {
    let client = context.known(&args.me).await?;
    let found = load(context, &client, args).await;
    client.close().await;
    let (messages, more) = found?;
    let out = context.out;
    for message in messages.iter().rev() {
        out.either(&object(message), |_| sentence(message, client.user().as_str()))?;
    }
    match messages.last() {
        Some(oldest) if more => out.say(format_args!("Older ones: --before {}", oldest.id)),
        Some(_) => {}
        None => out.say("Nothing was said"),
    }
    Ok(())
}

/// The newest messages, or the newest before one; and whether there are older ones.
async fn load(
    context: Context<'_>,
    client: &Client,
    args: &HistoryArgs,
) -> Result<(Vec<HistoryMessage>, bool)> {
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let mut wanted = Vec::new();
    let mut skip = args.before.as_deref();
    let mut cursor = None;
    let group = match &args.group {
        Some(name) => Some(find(context, client, name).await?),
        None => None,
    };
    loop {
        let query = match &group {
            Some(group) => group.history(),
            None => client.history(args.peer.as_deref().unwrap_or_default()),
        };
        let mut query = query.before(cursor).limit(PAGE);
        // Where older ones begin is known by the id of a message that the search may pass over.
        if let (Some(words), None) = (&args.search, skip) {
            query = query.containing(words);
        }
        let page = query.load().await?;
        for message in page.messages {
            if let Some(id) = skip {
                if message.id.to_string() == id {
                    skip = None;
                }
            } else if args.search.as_ref().is_some_and(|words| !matches(&message, words)) {
            } else if wanted.len() == limit {
                return Ok((wanted, true));
            } else {
                wanted.push(message);
            }
        }
        cursor = page.before;
        if cursor.is_none() {
            break;
        }
    }
    match skip {
        None => Ok((wanted, false)),
        Some(id) => Err(Failure::Coded {
            code: "NOT_FOUND",
            message: format!("there is no message {} in this conversation", safe(id)),
            retryable: false,
        }),
    }
}

/// A page that held the place to go on from was not searched.
fn matches(message: &HistoryMessage, words: &str) -> bool {
    let text = match &message.content {
        stvor::Content::Text(text) => text,
        stvor::Content::Json(json) => json.text(),
        _ => return false,
    };
    text.to_lowercase().contains(&words.to_lowercase())
}

fn object(message: &HistoryMessage) -> Value {
    let mut object = json!({
        "id": message.id.to_string(),
        "peer": message.peer.to_string(),
        "direction": if message.direction == Direction::Out { "out" } else { "in" },
        "sent_at": rfc3339(message.sent_at),
    });
    if let Some(group) = message.group {
        object["group"] = group.to_string().into();
    }
    if message.direction == Direction::Out {
        // Of a message to a group each member has a status.
        if message.group.is_none() {
            object["status"] = message.status.name().into();
        }
    } else {
        object["received_at"] = message.received_at.map(rfc3339).into();
        object["read"] = message.read.into();
    }
    put_content(&mut object, &message.content);
    object
}

fn sentence(message: &HistoryMessage, own: &str) -> String {
    let time = paint(FAINT, clock(message.sent_at, Timestamp::system()));
    let text = readable(&message.content);
    if message.direction == Direction::Out && message.group.is_some() {
        format!("{time} {}: {text}", safe(own))
    } else if message.direction == Direction::Out {
        format!("{time} {}: {text} {}", safe(own), paint(FAINT, format_args!("({})", message.status.name())))
    } else {
        format!("{time} {}: {text}", paint(STRONG, safe(message.peer.as_str())))
    }
}
