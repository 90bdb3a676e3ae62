//! A conversation in a group.

use stvor::{Client, ConnectOptions, Event, Group, Message};
use stvor_base::{ErrorCode as _, Timestamp};
use tokio::sync::mpsc;

use super::screen::{Screen, Typed};
use crate::args::{ChatArgs, Life};
use crate::commands::group::find;
use crate::failure::{Failure, Result};
use crate::life::{End, Ending};
use crate::render::{FAINT, LOUD, STRONG, clock, paint, safe};
use crate::session::{Context, message_object, object, readable, sentence};

const HELP: &str = "\
/members     who is in the group
/add USER    let somebody in
/remove USER put somebody out
/rename NAME give the group another name
/leave       leave the group
/status      connection and what waits
/quit        end (Ctrl-D)
A line that begins with // is sent with one /.";

/// Talks until the person has enough.
pub(super) async fn run(context: Context<'_>, args: &ChatArgs, name: &str) -> Result {
    let mut ending = Ending::watch(Life::default())?;
    let client = context.connect(&args.me, ConnectOptions::default()).await?;
    let done = async {
        let group = find(context, &client, name).await?;
        let prompt = format!("{}> ", safe(client.user().as_str()));
        let (screen, typed) = Screen::open(prompt, context.out)?;
        let room = Room { client: &client, group, screen, json: context.out.json };
        room.talk(typed, &mut ending).await?;
        // A script that ends its input wants what it wrote to arrive.
        client.flush(context.settings.timeout()).await.map(|_| ()).map_err(Failure::from)
    };
    let done = done.await;
    client.close().await;
    done
}

struct Room<'a> {
    client: &'a Client,
    group: Group,
    screen: Screen,
    json: bool,
}

impl Room<'_> {
    async fn talk(&self, mut typed: mpsc::Receiver<Typed>, ending: &mut Ending) -> Result {
        if self.screen.is_terminal() {
            let info = self.group.info().await?;
            self.screen.show(&paint(
                FAINT,
                format_args!(
                    "Talking in {} ({} members). /help lists commands, Ctrl-D ends.",
                    safe(&info.name),
                    info.members.len()
                ),
            ))?;
        }
        let mut inbox = self.client.messages().manual_ack();
        let mut events = self.client.events();
        loop {
            tokio::select! {
                input = typed.recv() => match input {
                    Some(Typed::Line(line)) if line.is_empty() => {}
                    Some(Typed::Line(line)) => {
                        if !self.take_line(line).await? {
                            return Ok(());
                        }
                    }
                    Some(Typed::Interrupted) => return End::Interrupted.result(),
                    Some(Typed::End) | None => return Ok(()),
                },
                message = inbox.next() => match message {
                    Some(message) => self.receive(&message).await?,
                    None => return Err(Failure::Coded {
                        code: "CLIENT_NOT_READY",
                        message: format!("the client is {}: nothing more arrives", self.client.state().name()),
                        retryable: true,
                    }),
                },
                event = events.next() => if let Some(event) = event { self.hear(&event) },
                end = ending.wait() => return end.result(),
            }
        }
    }

    /// Sends a line or carries a command out; false: the person has enough.
    async fn take_line(&self, line: String) -> Result<bool> {
        let order = line.strip_prefix('/').filter(|body| !body.starts_with('/'));
        let Some(order) = order.filter(|_| self.screen.is_terminal()) else {
            let person = self.screen.is_terminal();
            let text = if person { super::Talk::unescaped(line) } else { line };
            return match self.group.send(text).await.map_err(Failure::from) {
                Ok(_) => Ok(true),
                Err(failure) if person => {
                    self.screen.note(&format!("{} {}", paint(LOUD, "not sent:"), failure.render()));
                    Ok(true)
                }
                Err(failure) => Err(failure),
            };
        };
        let (name, argument) = order.split_once(' ').unwrap_or((order, ""));
        let argument = argument.trim();
        let done = match name {
            "quit" | "exit" => return Ok(false),
            "add" => self.group.add([argument]).await,
            "remove" => self.group.remove(argument).await,
            "rename" => self.group.rename(argument).await,
            "leave" => self.group.leave().await,
            "help" | "?" => return self.screen.show(HELP).map(|()| true),
            "members" => match self.group.info().await {
                Ok(info) => {
                    let members: Vec<String> = info.members.iter().map(|user| safe(user.as_str())).collect();
                    return self
                        .screen
                        .show(&format!("{}: {}", safe(&info.name), members.join(", ")))
                        .map(|()| true);
                }
                Err(error) => Err(error),
            },
            "status" => {
                let (state, pending) = (self.client.state().name(), self.client.pending());
                let text = format_args!("{state}, {pending} not at the relay yet");
                return self.screen.show(&paint(FAINT, text)).map(|()| true);
            }
            other => {
                self.screen.note(&format!("/{} is not known; /help lists the commands", safe(other)));
                return Ok(true);
            }
        };
        if let Err(error) = done {
            self.screen.note(&Failure::from(error).render());
        }
        Ok(true)
    }

    async fn receive(&self, message: &Message) -> Result {
        if self.json {
            self.screen.show(&message_object(message).to_string())?;
        } else {
            let time = paint(FAINT, clock(message.sent_at, Timestamp::system()));
            let from = paint(STRONG, safe(message.from.as_str()));
            let aside = match message.group {
                Some(group) if group == self.group.id() => "",
                Some(_) => " (in another group)",
                None => " (to you alone)",
            };
            self.screen.show(&format!("{time} {from}{aside}: {}", readable(&message.content)))?;
        }
        message.ack().await?;
        Ok(())
    }

    fn hear(&self, event: &Event) {
        if self.json {
            drop(std::io::Write::write_fmt(
                &mut anstream::stderr().lock(),
                format_args!("{}\n", object(event)),
            ));
        } else if let Some(sentence) = sentence(event) {
            self.screen.note(&paint(LOUD, format_args!("* {sentence}")));
        }
    }
}
