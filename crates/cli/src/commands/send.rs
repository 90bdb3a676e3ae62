//! `stvor send`: standard input or a file becomes messages; a receipt for each.

use std::path::Path;
use std::task::Poll;

use futures::stream::FuturesOrdered;
use futures::{FutureExt as _, StreamExt as _, future};
use serde_json::json;
use stvor::{Client, ConnectOptions, Content, DeliveryState, Receipt, SendOptions, SendWait};
use stvor_base::ErrorCode as _;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::mpsc;

use crate::args::{Life, SendArgs};
use crate::exit;
use crate::failure::{Failure, Result};
use crate::life::Ending;
use crate::render::{BAD, GOOD, Out, paint};
use crate::session::Context;

/// Messages that are committed here and not accepted yet, at most: the rest of the input waits.
const IN_FLIGHT: usize = 256;

/// Messages that are on their way to the store here, at most.
const COMMITTING: usize = 64;

/// Most bytes read for one message; the client says what really fits.
const MAX_INPUT_BYTES: u64 = 1024 * 1024;

type Input = Box<dyn AsyncBufRead + Send + Unpin>;

/// Sends and waits until everything is accepted.
pub(crate) async fn run(context: Context<'_>, args: &SendArgs) -> Result {
    if let Some(to) = &args.to {
        context.not_oneself(&args.me, to)?;
    }
    let mut ending = Ending::watch(Life::default())?;
    let input = open(args.file.as_deref()).await?;
    let client = context
        .connect(&args.me, ConnectOptions { require_relay: true, ..ConnectOptions::default() })
        .await?;
    let events = context.tell_events(&client);
    if args.file.is_none() && std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        let each = if args.lines { "Each line is a message" } else { "Type the message" };
        context.out.say(format_args!("{each}; Ctrl-D ends"));
    }
    let (sent, receipts) = mpsc::channel(IN_FLIGHT);
    let work = async {
        if let Some(group) = &args.group {
            let group = super::group::find(context, &client, group).await?;
            send_to_group((&client, &group), args, input, context).await?;
            return Ok(exit::OK);
        }
        tokio::try_join!(send_all(&client, args, input, sent), print_all(receipts, context.out))
            .map(|(_, worst)| worst)
    };
    let done = tokio::select! {
        worst = work => worst.and_then(|worst| if worst == exit::OK { Ok(()) } else { Err(Failure::Told(worst)) }),
        end = ending.wait() => {
            tell_pending(&client, context.out);
            end.result()
        }
    };
    client.close().await;
    events.abort();
    done
}

fn tell_pending(client: &Client, out: Out) {
    let pending = client.pending();
    if pending > 0 {
        out.say(format_args!("{pending} not accepted yet: they stay in the outbox and go out next time"));
    }
}

async fn open(file: Option<&Path>) -> Result<Input> {
    let Some(path) = file else { return Ok(Box::new(BufReader::new(tokio::io::stdin()))) };
    let failed = |source| Failure::File { what: "can not read", path: path.to_owned(), source };
    let opened = tokio::fs::File::open(path).await.map_err(failed)?;
    // A directory opens, and can not be read.
    if opened.metadata().await.map_err(failed)?.is_dir() {
        return Err(failed(std::io::ErrorKind::IsADirectory.into()));
    }
    Ok(Box::new(BufReader::new(opened)))
}

/// Commits each message, in order, and hands its receipt on. Several are on their way to the store at once, since they
/// can share a commit.
async fn send_all(client: &Client, args: &SendArgs, input: Input, sent: mpsc::Sender<Receipt>) -> Result {
    let to = args.to.as_deref().unwrap_or_default();
    let mut contents = read(input, Form::of(args));
    let mut committing = FuturesOrdered::new();
    let mut empty = true;
    let mut reading = true;
    while reading || !committing.is_empty() {
        tokio::select! {
            biased;
            Some(receipt) = committing.next() => {
                let receipt: Result<Receipt, stvor::Error> = receipt;
                if sent.send(receipt?).await.is_err() {
                    return Ok(());
                }
            }
            content = contents.recv(), if reading && committing.len() < COMMITTING => match content.transpose()? {
                Some(content) => {
                    empty = false;
                    let options = SendOptions { wait: SendWait::Committed, ..SendOptions::default() };
                    let mut send = Box::pin(client.send_with(to, content, options));
                    // The first poll takes the place in the conversation, so the order is that of the input.
                    match futures::poll!(&mut send) {
                        Poll::Ready(receipt) => committing.push_back(future::ready(receipt).left_future()),
                        Poll::Pending => committing.push_back(send.right_future()),
                    }
                }
                None => reading = false,
            },
        }
    }
    if empty && !args.lines {
        return Err(Failure::Usage("the input is empty: nothing was sent".to_owned()));
    }
    Ok(())
}

/// Sends each message to a group, and waits until the relay has accepted it for every member.
async fn send_to_group(
    (client, group): (&Client, &stvor::Group),
    args: &SendArgs,
    input: Input,
    context: Context<'_>,
) -> Result {
    let mut contents = read(input, Form::of(args));
    let mut empty = true;
    while let Some(content) = contents.recv().await.transpose()? {
        empty = false;
        let id = group.send(content).await?;
        let left = client.flush(context.settings.timeout()).await?;
        let status = if left == 0 { "accepted" } else { "queued" };
        let object = json!({ "id": id.to_string(), "group": group.id().to_string(), "status": status, "pending": left });
        context.out.either(&object, |_| format!("{} {id} to {}", paint(GOOD, status), group.id()))?;
    }
    if empty && !args.lines {
        return Err(Failure::Usage("the input is empty: nothing was sent".to_owned()));
    }
    Ok(())
}

/// How the input is cut into messages.
#[derive(Clone, Copy)]
struct Form {
    /// Each line is one.
    lines: bool,
    /// The line feed at the end is not part of it.
    trim: bool,
}

impl Form {
    fn of(args: &SendArgs) -> Self {
        Self { lines: args.lines, trim: args.lines || args.file.is_none() }
    }
}

/// Reads the input in a task of its own: a read that has begun can not be taken back.
fn read(mut input: Input, form: Form) -> mpsc::Receiver<Result<Content>> {
    let (contents_in, contents) = mpsc::channel(COMMITTING);
    tokio::spawn(async move {
        while let Some(content) = next(&mut input, form).await.transpose() {
            let last = content.is_err() || !form.lines;
            if contents_in.send(content).await.is_err() || last {
                break;
            }
        }
    });
    contents
}

/// The next message of the input.
async fn next(input: &mut Input, form: Form) -> Result<Option<Content>> {
    let failed = |error| Failure::io("can not read the input", error);
    let mut bytes = Vec::new();
    let mut bounded = input.take(MAX_INPUT_BYTES + 1);
    if form.lines {
        bounded.read_until(b'\n', &mut bytes).await.map_err(failed)?;
    } else {
        bounded.read_to_end(&mut bytes).await.map_err(failed)?;
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.len() as u64 > MAX_INPUT_BYTES {
        return Err(Failure::Coded {
            code: "MESSAGE_TOO_LARGE",
            message: format!("a message of more than {MAX_INPUT_BYTES} bytes is too large"),
            retryable: false,
        });
    }
    if form.trim && bytes.last() == Some(&b'\n') {
        bytes.pop();
        if form.lines && bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    Ok(Some(match String::from_utf8(bytes) {
        Ok(text) => Content::Text(text),
        Err(error) => Content::Bytes(error.into_bytes()),
    }))
}

/// Prints receipts in the order of sending, each when its message is accepted. Returns the worst exit code.
async fn print_all(mut receipts: mpsc::Receiver<Receipt>, out: Out) -> Result<u8> {
    let mut worst = exit::OK;
    while let Some(receipt) = receipts.recv().await {
        let accepted = receipt.accepted().await;
        let mut object = json!({ "id": receipt.id().to_string(), "to": receipt.to().to_string() });
        match accepted {
            Ok(()) => {
                // A receipt of the peer may overtake the print: say what is true now.
                let status = receipt.status().max(DeliveryState::Accepted).name();
                object["status"] = status.into();
                out.either(&object, |_| {
                    format!("{} {} to {}", paint(GOOD, status), receipt.id(), receipt.to())
                })?;
            }
            Err(error) => {
                let failure = Failure::from(error);
                worst = worst.max(failure.exit());
                object["status"] = "failed".into();
                object["code"] = failure.code().into();
                object["message"] = failure.to_string().into();
                out.either(&object, |_| {
                    format!("{} {} {}", paint(BAD, "failed"), receipt.id(), failure.render())
                })?;
            }
        }
    }
    Ok(worst)
}
