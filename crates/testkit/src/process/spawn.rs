//! Starting a process, so that it ends with the test.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::Process;
use super::log::{Log, Stream};

/// What to start. Standard input is empty unless [`Spawn::with_input`] is called.
#[derive(Clone, Debug)]
pub struct Spawn {
    program: PathBuf,
    name: String,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, Option<OsString>)>,
    directory: Option<PathBuf>,
    user: Option<(u32, u32)>,
    input: bool,
}

impl Spawn {
    /// The program at `path`.
    #[must_use]
    pub fn new(path: impl AsRef<Path>) -> Self {
        let program = path.as_ref().to_owned();
        let name = program.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Self {
            program,
            name,
            arguments: vec![],
            variables: vec![],
            directory: None,
            user: None,
            input: false,
        }
    }

    /// The name used in messages and log tails.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Removes an environment variable.
    #[must_use]
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.as_ref().to_owned(), None));
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn dir(mut self, directory: impl AsRef<Path>) -> Self {
        self.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// Runs it as the user and group of these numbers: for servers that refuse root. Needs root, and Linux.
    #[must_use]
    pub fn user(mut self, user: u32, group: u32) -> Self {
        self.user = Some((user, group));
        self
    }

    /// Gives it a standard input that the test writes to ([`Process::write_line`]).
    #[must_use]
    pub fn with_input(mut self) -> Self {
        self.input = true;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the program can not be started.
    pub fn start(self) -> io::Result<Process> {
        let mut child = spawn_for_ever(self.command())?;
        let log = Arc::new(Log::default());
        if let Some(output) = child.stdout.take() {
            log.follow(Stream::Out, output);
        }
        if let Some(errors) = child.stderr.take() {
            log.follow(Stream::Err, errors);
        }
        let input = child.stdin.take();
        Ok(Process {
            name: self.name,
            pid: child.id(),
            child: Mutex::new(child),
            input: Mutex::new(input),
            log,
        })
    }

    /// Starts it and waits for its end: for commands that answer and exit.
    ///
    /// # Errors
    /// When it can not be started, or does not end within `timeout` (it is killed then).
    pub fn run(self, timeout: Duration) -> io::Result<Finished> {
        let process = self.start()?;
        let status = process.wait_exit(timeout)?;
        process.wait_log_end(timeout)?;
        Ok(Finished {
            status,
            out: process.lines(Stream::Out).join("\n"),
            err: process.lines(Stream::Err).join("\n"),
        })
    }

    fn command(&self) -> Command {
        // Between fork and exec only unsafe code could ask for the death signal, so a helper of util-linux does; it
        // replaces itself by the program, which so keeps the pid.
        let helper = Path::new("/usr/bin/setpriv");
        let mut command = if cfg!(target_os = "linux") && helper.exists() {
            let mut command = Command::new(helper);
            if let Some((user, group)) = self.user {
                let (user, group) = (user.to_string(), group.to_string());
                command.args(["--reuid", &user, "--regid", &group, "--clear-groups"]);
            }
            command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program);
            command
        } else {
            Command::new(&self.program)
        };
        command.args(&self.arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if self.input { Stdio::piped() } else { Stdio::null() });
        for (name, value) in &self.variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }
}

/// What a finished command left.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, without the last newline.
    pub out: String,
    /// Its standard error, without the last newline.
    pub err: String,
}

type Request = (Command, SyncSender<io::Result<Child>>);

/// The death signal is sent when the *thread* that spawned the child ends, so all children are spawned by one thread
/// that lives as long as the test process.
fn spawn_for_ever(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<SyncSender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, inbox) = mpsc::sync_channel::<Request>(0);
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                // The asker waits for the answer; should it be gone, the child is dropped with it.
                let _gone = answer.send(command.spawn());
            }
        });
        requests
    });
    let (answer, result) = mpsc::sync_channel(1);
    spawner.send((command, answer)).map_err(|_| io::Error::other("the spawning thread is gone"))?;
    result.recv().map_err(|_| io::Error::other("the spawning thread is gone"))?
}
