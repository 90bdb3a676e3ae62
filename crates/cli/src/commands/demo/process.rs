//! The demo's processes: this same program, started again as a user would start it.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::mpsc;

use crate::failure::{Failure, Result};

/// Lines of standard error that are kept for the report of a failure.
const TAIL_LINES: usize = 5;

/// One line of a process, as an object.
#[derive(Debug)]
pub(crate) struct Line {
    /// The object.
    pub(crate) value: Value,
    /// When it was read.
    pub(crate) at: Instant,
}

/// A running process. Dropping it kills it and waits until it is gone, so that nothing is left behind.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    input: Option<ChildStdin>,
    /// Objects on standard output.
    pub(crate) data: mpsc::UnboundedReceiver<Line>,
    /// Objects on standard error.
    pub(crate) events: mpsc::UnboundedReceiver<Line>,
    tail: Arc<Mutex<VecDeque<String>>>,
}

/// How every process of the demo is started.
pub(crate) struct Launcher {
    program: std::path::PathBuf,
    config: std::path::PathBuf,
    token: Option<String>,
}

impl Launcher {
    /// Starts this same program, apart from the settings of whoever runs the demo. `home` gets an empty settings file.
    pub(crate) fn new(home: &Path) -> Result<Self> {
        let program =
            std::env::current_exe().map_err(|error| Failure::io("can not find this program", error))?;
        let config = home.join("stvor.toml");
        std::fs::write(&config, "").map_err(|source| Failure::File {
            what: "can not write",
            path: config.clone(),
            source,
        })?;
        Ok(Self { program, config, token: None })
    }

    /// The app token of everything that is started from now on.
    pub(crate) fn set_token(&mut self, token: String) {
        self.token = Some(token);
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("STVOR_") {
                command.env_remove(name);
            }
        }
        if let Some(token) = &self.token {
            // Not an argument: other users of the machine can see those.
            command.env("STVOR_TOKEN", token);
        }
        command.arg("--json").arg("--config").arg(&self.config).args(args);
        // The lifeline: a process that reads its standard input ends when the demo does, however that ends.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts a process.
    pub(crate) fn start(&self, name: &'static str, args: &[&str]) -> Result<Process> {
        let mut child = self
            .command(args)
            .spawn()
            .map_err(|error| Failure::io("can not start a process of the demo", error))?;
        let (data_in, data) = mpsc::unbounded_channel();
        let (events_in, events) = mpsc::unbounded_channel();
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(out) = child.stdout.take() {
            read(out, data_in, None);
        }
        if let Some(err) = child.stderr.take() {
            read(err, events_in, Some(Arc::clone(&tail)));
        }
        Ok(Process { name, input: child.stdin.take(), child, data, events, tail })
    }

    /// Runs a process to its end and returns the first object that it prints.
    pub(crate) async fn ask(&self, name: &'static str, args: &[&str]) -> Result<Value> {
        let mut process = self.start(name, args)?;
        process.close();
        let line = process.line(Duration::from_secs(30)).await?;
        process.ended(Duration::from_secs(30)).await?;
        Ok(line.value)
    }
}

/// A thread reads a stream to its end, line by line.
fn read(
    stream: impl Read + Send + 'static,
    lines: mpsc::UnboundedSender<Line>,
    tail: Option<Arc<Mutex<VecDeque<String>>>>,
) {
    std::thread::spawn(move || {
        for text in BufReader::new(stream).lines().map_while(core::result::Result::ok) {
            let at = Instant::now();
            if let Some(tail) = &tail {
                let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
                if tail.len() == TAIL_LINES {
                    tail.pop_front();
                }
                tail.push_back(text.clone());
            }
            if let Ok(value) = serde_json::from_str(&text) {
                let _ = lines.send(Line { value, at });
            }
        }
    });
}

impl Process {
    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to its standard input.
    pub(crate) fn write(&mut self, line: &str) -> Result {
        let failed = |error| Failure::io("can not write to a process of the demo", error);
        let Some(input) = &mut self.input else {
            return Err(failed(std::io::ErrorKind::BrokenPipe.into()));
        };
        // A closed pipe here is a process that died, not a reader of ours that went away.
        writeln!(input, "{line}")
            .and_then(|()| input.flush())
            .map_err(|error| self.failed(&error.to_string()))
    }

    /// Ends its standard input, which asks it to end.
    pub(crate) fn close(&mut self) {
        self.input = None;
    }

    /// The next object on standard output.
    pub(crate) async fn line(&mut self, within: Duration) -> Result<Line> {
        match tokio::time::timeout(within, self.data.recv()).await {
            Ok(Some(line)) => Ok(line),
            Ok(None) => Err(self.failed("ended too early")),
            Err(_) => Err(self.failed(&format!("said nothing for {} seconds", within.as_secs()))),
        }
    }

    /// The next object on standard error whose member `event` is `name`.
    pub(crate) async fn event(&mut self, name: &str, within: Duration) -> Result<Value> {
        let search = async {
            while let Some(line) = self.events.recv().await {
                if line.value["event"] == name {
                    return Some(line.value);
                }
            }
            None
        };
        match tokio::time::timeout(within, search).await {
            Ok(Some(value)) => Ok(value),
            Ok(None) => Err(self.failed("ended too early")),
            Err(_) => {
                Err(self.failed(&format!("did not tell of `{name}` within {} seconds", within.as_secs())))
            }
        }
    }

    /// Waits for its orderly end.
    pub(crate) async fn ended(&mut self, within: Duration) -> Result {
        self.close();
        let start = Instant::now();
        while start.elapsed() < within {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(self.failed(&format!("ended with {status}"))),
                Ok(None) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => return Err(Failure::io("can not wait for a process of the demo", error)),
            }
        }
        Err(self.failed("did not end when it was asked to"))
    }

    /// Kills it with SIGKILL: it can do nothing about it. Returns when it is gone.
    pub(crate) fn kill(&mut self) -> Result {
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .map(drop)
            .map_err(|error| Failure::io("can not kill a process of the demo", error))
    }

    /// A failure of this process, with the end of what it said.
    fn failed(&self, what: &str) -> Failure {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let said = tail.iter().map(String::as_str).collect::<Vec<_>>().join("\n    ");
        let said = if said.is_empty() { String::new() } else { format!("; it said:\n    {said}") };
        Failure::Coded {
            code: "DEMO_FAILED",
            message: format!("{} {what}{said}", self.name),
            retryable: false,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
