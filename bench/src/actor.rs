//! One role of the test, and the processes that play it one after another.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;

use crate::Outcome;

/// What a process did.
pub(crate) enum Event {
    /// A line on its standard output.
    Out(String),
    /// A line on its standard error.
    Err(String),
    /// Its outputs are closed: it has ended, or soon will have.
    End,
}

/// An event, of which role and which of its processes.
pub(crate) struct News {
    pub(crate) actor: usize,
    pub(crate) life: usize,
    pub(crate) event: Event,
}

/// What the processes of a role run.
pub(crate) struct Program {
    pub(crate) binary: std::path::PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
}

/// A role.
pub(crate) struct Actor {
    number: usize,
    program: Program,
    child: Option<Child>,
    /// How many processes have played it.
    pub(crate) life: usize,
    news: Sender<News>,
}

impl Actor {
    pub(crate) fn new(number: usize, program: Program, news: Sender<News>) -> Self {
        Self { number, program, child: None, life: 0, news }
    }

    /// Starts the next process. All of them end when their standard input does, so none outlives this one.
    pub(crate) fn start(&mut self) -> Outcome<()> {
        let mut command = Command::new(&self.program.binary);
        command.args(&self.program.arguments).envs(self.program.environment.clone());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for variable in ["STVOR_TOKEN", "STVOR_RELAY", "STVOR_DATA", "STVOR_CONFIG"] {
            command.env_remove(variable);
        }
        let mut child = command.spawn()?;
        self.life += 1;
        let out = child.stdout.take().ok_or("no standard output")?;
        let err = child.stderr.take().ok_or("no standard error")?;
        self.follow(out, Event::Out, true);
        self.follow(err, Event::Err, false);
        self.child = Some(child);
        Ok(())
    }

    fn follow(&self, source: impl Read + Send + 'static, event: fn(String) -> Event, last: bool) {
        let (actor, life, news) = (self.number, self.life, self.news.clone());
        std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while matches!(source.read_until(b'\n', &mut line), Ok(length) if length > 0) {
                // What a killed process had not finished to print was not printed.
                if line.pop() == Some(b'\n') {
                    let text = String::from_utf8_lossy(&line).into_owned();
                    // The test may be over.
                    let _over = news.send(News { actor, life, event: event(text) });
                }
                line.clear();
            }
            if last {
                let _over = news.send(News { actor, life, event: Event::End });
            }
        });
    }

    /// Writes a line to the process's standard input. False when it has ended.
    pub(crate) fn write(&mut self, line: &str) -> bool {
        let input = self.child.as_mut().and_then(|child| child.stdin.as_mut());
        input.is_some_and(|input| writeln!(input, "{line}").is_ok())
    }

    /// Closes the standard input: an orderly end.
    pub(crate) fn finish(&mut self) {
        if let Some(child) = &mut self.child {
            child.stdin.take();
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) -> Outcome<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// The exit code of a process that ended by itself, and room for the next one. None if it was killed before.
    pub(crate) fn reap(&mut self) -> Outcome<Option<i32>> {
        let Some(mut child) = self.child.take() else { return Ok(None) };
        Ok(Some(child.wait()?.code().unwrap_or(-1)))
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // Fails only for a process that has ended.
        let _ended = self.kill();
    }
}
