//! The commands inside a conversation: `/help` and its like.

use stvor_base::ErrorCode as _;

use super::Talk;
use crate::commands::identity::grid;
use crate::failure::{Failure, Result};
use crate::render::{FAINT, GOOD, paint, safe};

const HELP: &str = "\
/safety      show the safety number to compare
/verify      mark it as compared and equal
/accept      accept a changed identity (compare first)
/history [N] show the last N messages
/status      connection, identity, what waits
/block, /unblock
/reset       start a fresh session (when nothing decrypts)
/quit        end (Ctrl-D)
A line that begins with // is sent with one /.";

/// Most messages that `/history` shows.
const MAX_HISTORY: usize = 500;

/// A command of the person at the keyboard.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Help,
    Safety,
    Verify,
    Accept,
    History(usize),
    Status,
    Block,
    Unblock,
    Reset,
    Quit,
}

impl Order {
    /// Reads a line. `None`: it is a message. An error says what is wrong with the command.
    pub(crate) fn parse(line: &str) -> Option<Result<Self, String>> {
        let body = line.strip_prefix('/').filter(|body| !body.starts_with('/'))?;
        let (name, argument) = body.split_once(' ').unwrap_or((body, ""));
        Some(Ok(match name {
            "help" | "?" => Self::Help,
            "safety" => Self::Safety,
            "verify" => Self::Verify,
            "accept" => Self::Accept,
            "history" => match argument.trim() {
                "" => Self::History(20),
                count => match count.parse::<usize>() {
                    Ok(count @ 1..=MAX_HISTORY) => Self::History(count),
                    _ => return Some(Err(format!("/history takes a number from 1 to {MAX_HISTORY}"))),
                },
            },
            "status" => Self::Status,
            "block" => Self::Block,
            "unblock" => Self::Unblock,
            "reset" => Self::Reset,
            "quit" | "exit" => Self::Quit,
            other => return Some(Err(format!("/{other} is not known; /help lists the commands"))),
        }))
    }
}

impl Talk<'_> {
    /// Carries a command out. What fails is told, and the conversation goes on.
    pub(crate) async fn obey(&mut self, order: Order) -> Result {
        if let Err(failure) = self.try_to(order).await {
            if matches!(failure, Failure::Pipe) {
                return Err(failure);
            }
            self.screen.note(&failure.render());
        }
        Ok(())
    }

    /// A line that begins with two slashes is a message with one.
    pub(crate) fn unescaped(line: String) -> String {
        match line.strip_prefix("//") {
            Some(rest) => format!("/{rest}"),
            None => line,
        }
    }

    async fn try_to(&self, order: Order) -> Result {
        let (client, peer, shown) = (self.client, self.peer, safe(self.peer));
        match order {
            Order::Help => self.screen.show(HELP),
            Order::Quit => Ok(()),
            Order::Safety => {
                let number = client.safety_number(peer).await?;
                let mark = if number.verified() { "verified" } else { "not verified; /verify once compared" };
                self.screen.show(&format!("Safety number with {shown} ({mark}):\n{}", grid(&number)))
            }
            Order::Verify => {
                client.verify(peer).await?;
                self.screen.show(&paint(GOOD, format_args!("{shown} is verified")))
            }
            Order::Accept => {
                client.accept_identity(peer).await?;
                self.screen.show(&format!("The new identity of {shown} is accepted"))
            }
            Order::History(count) => self.show_history(count).await,
            Order::Status => {
                let pending = client.pending();
                self.screen.show(&paint(
                    FAINT,
                    format_args!(
                        "{}, {pending} messages not at the relay yet, you are {}",
                        client.state().name(),
                        client.identity().fingerprint
                    ),
                ))
            }
            Order::Block => {
                client.block(peer).await?;
                self.screen.show(&format!("{shown} is blocked"))
            }
            Order::Unblock => {
                client.unblock(peer).await?;
                self.screen.show(&format!("{shown} is no longer blocked"))
            }
            Order::Reset => {
                client.reset_session(peer).await?;
                self.screen.show(&format!("A fresh session with {shown} starts with the next message"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_single_slash_starts_a_command() {
        assert_eq!(Order::parse("/safety"), Some(Ok(Order::Safety)));
        assert_eq!(Order::parse("/history 5"), Some(Ok(Order::History(5))));
        assert_eq!(Order::parse("hello /quit"), None);
        assert_eq!(Order::parse("//etc"), None);
    }

    #[test]
    fn a_wrong_command_is_told_and_not_sent() {
        assert!(matches!(Order::parse("/quti"), Some(Err(text)) if text.contains("/quti")));
        assert!(matches!(Order::parse("/history 0"), Some(Err(_))));
        assert!(matches!(Order::parse("/history 501"), Some(Err(_))));
    }
}
