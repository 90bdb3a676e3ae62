//! `stvor listen`: each message is printed, flushed, and only then acknowledged.

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde_json::json;
use stvor::{Client, ConnectOptions, ConnectionState, Message};
use stvor_base::Timestamp;

use super::group::short;
use crate::args::ListenArgs;
use crate::failure::{Failure, Result};
use crate::life::Ending;
use crate::render::{FAINT, Out, STRONG, clock, paint, safe};
use crate::session::{Context, message_object, readable};

/// Messages that are printed and on their way to being acknowledged, at most: so many lines may repeat after a SIGKILL.
pub(crate) const ACKNOWLEDGING: usize = 16;

/// Prints messages until enough have come or the command has to end.
pub(crate) async fn run(context: Context<'_>, args: &ListenArgs) -> Result {
    let mut ending = Ending::watch(args.life)?;
    let client = tokio::select! {
        client = context.connect(&args.me, ConnectOptions::default()) => client?,
        end = ending.wait() => return end.result(),
    };
    let events = context.tell_events(&client);
    context
        .out
        .event(&json!({ "event": "listening", "user": client.user().to_string() }), "Listening; Ctrl-C ends");
    let done = print_all(&client, args, &mut ending, context).await;
    client.close().await;
    events.abort();
    done
}

async fn print_all(client: &Client, args: &ListenArgs, ending: &mut Ending, context: Context<'_>) -> Result {
    let out = context.out;
    let only = match &args.group {
        Some(group) => Some(super::group::find(context, client, group).await?.id()),
        None => None,
    };
    let mut inbox = client.messages().manual_ack();
    let mut acknowledging = FuturesUnordered::new();
    let mut printed = 0;
    let done = loop {
        if args.count.is_some_and(|count| printed == count) {
            break Ok(());
        }
        // Ending is looked at between messages only: what is printed is acknowledged.
        tokio::select! {
            message = inbox.next(), if acknowledging.len() < ACKNOWLEDGING => {
                let Some(message) = message else { break Err(closed(client)) };
                if only.is_some() && message.group != only {
                    continue;
                }
                if let Err(failure) = print(&message, out) {
                    break Err(failure);
                }
                printed += 1;
                acknowledging.push(async move { message.ack().await });
            }
            Some(acknowledged) = acknowledging.next() => {
                let acknowledged: Result<(), stvor::Error> = acknowledged;
                if let Err(error) = acknowledged {
                    break Err(error.into());
                }
            }
            end = ending.wait() => break end.result(),
        }
    };
    while let Some(acknowledged) = acknowledging.next().await {
        acknowledged?;
    }
    done
}

fn print(message: &Message, out: Out) -> Result {
    if out.json {
        return out.object(&message_object(message));
    }
    let time = clock(message.sent_at, Timestamp::system());
    let from = safe(message.from.as_str());
    let group =
        message.group.map(|group| paint(FAINT, format_args!(" [{}]", short(group)))).unwrap_or_default();
    out.line(format_args!(
        "{} {}{group}: {}",
        paint(FAINT, time),
        paint(STRONG, from),
        readable(&message.content)
    ))
}

/// Why the stream of messages ended.
fn closed(client: &Client) -> Failure {
    match client.state() {
        ConnectionState::Failed(code) => Failure::Coded {
            code,
            message: "the relay refused this client for good: nothing more arrives".to_owned(),
            retryable: false,
        },
        _ => Failure::Coded {
            code: "CLIENT_NOT_READY",
            message: "the client closed: nothing more arrives".to_owned(),
            retryable: true,
        },
    }
}
