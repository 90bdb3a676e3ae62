//! `stvor chat`: a conversation at the terminal, line by line, which works over any connection that carries text.

mod group;
mod order;
mod screen;

use std::time::Duration;

use serde_json::json;
use stvor::{
    Client, ConnectOptions, ContentId, DeliveryState, Direction, Event, HistoryMessage, Message, SendOptions,
    SendWait,
};
use stvor_base::{ErrorCode as _, Timestamp};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::args::{ChatArgs, Life};
use crate::failure::{Failure, Result};
use crate::life::{End, Ending};
use crate::render::{FAINT, LOUD, STRONG, clock, paint, safe};
use crate::session::{Context, message_object, object, readable, sentence};
use order::Order;
use screen::{Screen, Typed};

/// Messages of before that are shown at the start.
const LOOK_BACK: usize = 10;

/// Messages that wait to be committed, at most.
const OUTGOING: usize = 64;

/// How long ticks are gathered before they are shown, so that one line tells of several.
const GATHER: Duration = Duration::from_millis(300);

/// A conversation.
pub(crate) struct Talk<'a> {
    pub(crate) client: &'a Client,
    pub(crate) peer: &'a str,
    pub(crate) screen: Screen,
    json: bool,
    last_sent: Option<ContentId>,
    shown_state: DeliveryState,
    next_state: Option<(DeliveryState, Instant)>,
}

/// Something that the sending task has to tell.
enum Sent {
    Committed(ContentId),
    Refused(Failure),
}

/// Talks until the person has enough.
pub(crate) async fn run(context: Context<'_>, args: &ChatArgs) -> Result {
    if let Some(name) = &args.group {
        return group::run(context, args, name).await;
    }
    let peer = args.peer.as_deref().unwrap_or_default();
    context.not_oneself(&args.me, peer)?;
    let mut ending = Ending::watch(Life::default())?;
    let client = context.connect(&args.me, ConnectOptions::default()).await?;
    let done = talk(context, args, &client, &mut ending).await;
    client.close().await;
    done
}

async fn talk(context: Context<'_>, args: &ChatArgs, client: &Client, ending: &mut Ending) -> Result {
    let peer = args.peer.as_deref().unwrap_or_default();
    let (screen, mut typed) = Screen::open(format!("{}> ", safe(client.user().as_str())), context.out)?;
    let mut talk = Talk {
        client,
        peer,
        screen,
        json: context.out.json,
        last_sent: None,
        shown_state: DeliveryState::Queued,
        next_state: None,
    };
    if talk.screen.is_terminal() {
        talk.welcome().await?;
    }
    let (outgoing, waiting) = mpsc::channel(OUTGOING);
    let (sent_in, mut sent) = mpsc::channel(OUTGOING);
    let sender = tokio::spawn(send_all(client.clone(), peer.to_owned(), waiting, sent_in));
    let mut outgoing = Some(outgoing);
    let mut inbox = client.messages().manual_ack();
    let mut events = client.events();
    let mut typing = true;
    // Lines that are on their way to the store. A command waits for them: what was typed before it comes before it, and
    // who leaves leaves nothing behind.
    let mut committing = 0_usize;
    let mut held = None;
    let done = loop {
        if committing == 0 {
            match held.take() {
                Some(Order::Quit) => break Ok(()),
                Some(order) => talk.obey(order).await?,
                None => {}
            }
        }
        let tick = talk.next_state.map(|(_, at)| at);
        tokio::select! {
            input = typed.recv(), if typing && held.is_none() && has_room(outgoing.as_ref()) => match input {
                Some(Typed::Line(line)) => match Order::parse(&line) {
                    Some(Ok(order)) if talk.screen.is_terminal() => held = Some(order),
                    Some(Err(unknown)) if talk.screen.is_terminal() => talk.screen.note(&unknown),
                    _ if line.is_empty() => {}
                    _ => if let Some(outgoing) = &outgoing {
                        let line = if talk.screen.is_terminal() { Talk::unescaped(line) } else { line };
                        // There is room: only this loop fills it.
                        committing += usize::from(outgoing.try_send(line).is_ok());
                    },
                },
                Some(Typed::Interrupted) => break End::Interrupted.result(),
                // A person who ends the input is done; a script may still have something to send.
                Some(Typed::End) | None if talk.screen.is_terminal() => held = Some(Order::Quit),
                Some(Typed::End) | None => {
                    typing = false;
                    outgoing = None;
                }
            },
            told = sent.recv() => {
                committing = committing.saturating_sub(1);
                match told {
                    Some(told) => talk.note_sent(told)?,
                    None => break Ok(()),
                }
            },
            message = inbox.next() => match message {
                Some(message) => talk.receive(&message).await?,
                None => break Err(Failure::Coded {
                    code: "CLIENT_NOT_READY",
                    message: format!("the client is {}: nothing more arrives", client.state().name()),
                    retryable: true,
                }),
            },
            event = events.next() => if let Some(event) = event { talk.hear(&event)? },
            () = until(tick) => talk.tick()?,
            end = ending.wait() => break end.result(),
        }
    };
    sender.abort();
    done
}

/// Whether another line can be taken. The loop never waits for room itself, since it also has to hear of commits, which
/// make room.
fn has_room(outgoing: Option<&mpsc::Sender<String>>) -> bool {
    outgoing.is_none_or(|outgoing| outgoing.capacity() > 0)
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Commits lines in order. Ends when no more come and all are accepted.
async fn send_all(client: Client, peer: String, mut lines: mpsc::Receiver<String>, told: mpsc::Sender<Sent>) {
    let mut last = None;
    while let Some(line) = lines.recv().await {
        let options = SendOptions { wait: SendWait::Committed, ..SendOptions::default() };
        let sent = match client.send_with(peer.as_str(), line, options).await {
            Ok(receipt) => {
                let id = receipt.id();
                last = Some(receipt);
                Sent::Committed(id)
            }
            Err(error) => Sent::Refused(error.into()),
        };
        if told.send(sent).await.is_err() {
            return;
        }
    }
    if let Some(last) = last
        && let Err(error) = last.accepted().await
    {
        drop(told.send(Sent::Refused(error.into())).await);
    }
}

impl Talk<'_> {
    async fn welcome(&mut self) -> Result {
        let verified = match self.client.safety_number(self.peer).await {
            Ok(number) if number.verified() => "verified",
            Ok(_) => "not verified: /safety shows the number to compare",
            Err(_) => "you have not met yet",
        };
        self.screen.show(&paint(
            FAINT,
            format_args!("Talking with {} ({verified}). /help lists commands, Ctrl-D ends.", safe(self.peer)),
        ))?;
        self.show_history(LOOK_BACK).await
    }

    /// Shows the last messages of the conversation.
    pub(crate) async fn show_history(&self, count: usize) -> Result {
        let page = self.client.history(self.peer).limit(count).load().await?;
        for message in page.messages.iter().rev() {
            self.screen.show(&self.line_of(message))?;
        }
        Ok(())
    }

    fn line_of(&self, message: &HistoryMessage) -> String {
        let time = paint(FAINT, clock(message.sent_at, Timestamp::system()));
        match message.direction {
            Direction::Out => {
                let tick = paint(FAINT, tick_of(message.status));
                format!("{time} {}: {} {tick}", safe(self.client.user().as_str()), readable(&message.content))
            }
            _ => format!("{time} {}: {}", paint(STRONG, safe(self.peer)), readable(&message.content)),
        }
    }

    async fn receive(&mut self, message: &Message) -> Result {
        if self.json {
            self.screen.show(&message_object(message).to_string())?;
        } else {
            let time = paint(FAINT, clock(message.sent_at, Timestamp::system()));
            let from = paint(STRONG, safe(message.from.as_str()));
            let aside = if message.group.is_some() { " (in a group)" } else { "" };
            self.screen.show(&format!("{time} {from}{aside}: {}", readable(&message.content)))?;
        }
        message.ack().await?;
        if message.from.as_str() == self.peer && message.group.is_none() {
            // A receipt that can not be sent now is no reason to end the conversation.
            drop(self.client.mark_read(self.peer, &[message.id]).await);
        }
        Ok(())
    }

    fn note_sent(&mut self, told: Sent) -> Result {
        match told {
            Sent::Committed(id) => {
                self.last_sent = Some(id);
                self.shown_state = DeliveryState::Queued;
                self.next_state = None;
            }
            Sent::Refused(failure) if self.screen.is_terminal() => {
                self.screen.note(&format!("{} {}", paint(LOUD, "not sent:"), failure.render()));
            }
            Sent::Refused(failure) => return Err(failure),
        }
        Ok(())
    }

    fn hear(&mut self, event: &Event) -> Result {
        if let Event::Receipt { peer, ids, state } = event {
            if self.json {
                for id in ids {
                    let receipt =
                        json!({ "id": id.to_string(), "to": peer.to_string(), "status": state.name() });
                    self.screen.show(&receipt.to_string())?;
                }
            } else if self.last_sent.is_some_and(|last| ids.contains(&last)) && *state > self.shown_state {
                let state = self.next_state.map_or(*state, |(waiting, _)| waiting.max(*state));
                self.next_state = Some((state, Instant::now() + GATHER));
            }
            return Ok(());
        }
        if self.json {
            drop(std::io::Write::write_fmt(
                &mut anstream::stderr().lock(),
                format_args!("{}\n", object(event)),
            ));
        } else if let Some(sentence) = sentence(event) {
            self.screen.note(&paint(LOUD, format_args!("* {sentence}")));
        }
        Ok(())
    }

    /// Shows how far the last message came.
    fn tick(&mut self) -> Result {
        let Some((state, _)) = self.next_state.take() else { return Ok(()) };
        self.shown_state = state;
        if !self.screen.is_terminal() {
            return Ok(());
        }
        self.screen.show(&paint(FAINT, format_args!("      {} {}", tick_of(state), state.name())))
    }
}

/// The mark that people know: one for the relay, two for the recipient's device, filled when read.
fn tick_of(state: DeliveryState) -> &'static str {
    match state {
        DeliveryState::Queued => "…",
        DeliveryState::Accepted => "✓",
        DeliveryState::Delivered => "✓✓",
        DeliveryState::Read => "✔✔",
        _ => "✗",
    }
}
