//! Where a conversation is shown and typed: a terminal with a line editor, or plain streams.

use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, PoisonError};

use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, ExternalPrinter};
use tokio::sync::mpsc;

use crate::failure::{Failure, Result};
use crate::render::Out;

/// Typed lines that wait to be sent, at most.
const TYPED: usize = 64;

/// Terminals that the line editor does not serve.
const DUMB: [&str; 3] = ["dumb", "cons25", "emacs"];

/// What the person at the keyboard did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// A line.
    Line(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the end of the input.
    End,
}

/// Shows lines above the one that is being typed.
#[derive(Clone)]
pub(crate) struct Screen {
    printer: Option<Arc<Mutex<Box<dyn ExternalPrinter + Send>>>>,
    person: bool,
    colour: bool,
    out: Out,
}

impl Screen {
    /// Opens the screen and starts to read. The prompt is shown at a terminal only.
    pub(crate) fn open(prompt: String, out: Out) -> Result<(Self, mpsc::Receiver<Typed>)> {
        let (lines, typed) = mpsc::channel(TYPED);
        let person = std::io::stdin().is_terminal() && std::io::stdout().is_terminal() && !out.json;
        let choice = anstream::AutoStream::choice(&std::io::stdout());
        let colour = choice != anstream::ColorChoice::Never;
        if !person || is_dumb() {
            std::thread::spawn(move || read_plain(&lines));
            return Ok((Self { printer: None, person, colour, out }, typed));
        }
        let failed =
            |error: ReadlineError| Failure::io("can not use the terminal", std::io::Error::other(error));
        let mut editor = DefaultEditor::new().map_err(failed)?;
        let printer: Box<dyn ExternalPrinter + Send> =
            Box::new(editor.create_external_printer().map_err(failed)?);
        std::thread::spawn(move || read_edited(&mut editor, &prompt, &lines));
        Ok((Self { printer: Some(Arc::new(Mutex::new(printer))), person, colour, out }, typed))
    }

    /// Whether a person sits at a terminal.
    pub(crate) fn is_terminal(&self) -> bool {
        self.person
    }

    /// Shows a line of the conversation.
    pub(crate) fn show(&self, line: &str) -> Result {
        let Some(printer) = &self.printer else { return self.out.line(line) };
        let text = if self.colour { line.to_owned() } else { anstream::adapter::strip_str(line).to_string() };
        let mut printer = printer.lock().unwrap_or_else(PoisonError::into_inner);
        printer
            .print(format!("{text}\n"))
            .map_err(|error| Failure::io("can not write to the terminal", std::io::Error::other(error)))
    }

    /// Shows talk about the conversation: beside it at a terminal, else on standard error.
    pub(crate) fn note(&self, line: &str) {
        if self.person {
            // Talk may get lost.
            drop(self.show(line));
        } else {
            self.out.say(line);
        }
    }
}

/// Whether the terminal can not move its cursor, so that lines are edited by the terminal itself.
fn is_dumb() -> bool {
    std::env::var("TERM").is_ok_and(|term| DUMB.contains(&term.as_str()))
}

/// What was typed stays in memory only: a history file would hold plaintext.
fn read_edited(editor: &mut DefaultEditor, prompt: &str, lines: &mpsc::Sender<Typed>) {
    loop {
        let typed = match editor.readline(prompt) {
            Ok(line) => {
                drop(editor.add_history_entry(line.as_str()));
                Typed::Line(line)
            }
            Err(ReadlineError::Interrupted) => Typed::Interrupted,
            Err(_) => Typed::End,
        };
        let last = !matches!(typed, Typed::Line(_));
        if lines.blocking_send(typed).is_err() || last {
            return;
        }
    }
}

fn read_plain(lines: &mpsc::Sender<Typed>) {
    for line in std::io::stdin().lines() {
        let Ok(line) = line else { break };
        if lines.blocking_send(Typed::Line(line)).is_err() {
            return;
        }
    }
    let _ = lines.blocking_send(Typed::End);
}
