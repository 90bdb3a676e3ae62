//! What the tests of the binary share: a private home, and relays on free ports.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stvor_testkit::process::Finished;
use stvor_testkit::temp::TempDir;
use stvor_testkit::{Process, Spawn, Stream, temp_dir};

/// The longest that any single thing may take.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A token that development relays take.
pub(crate) const TOKEN: &str = "stvor_dev_test123";

/// A directory of one's own, without settings of whoever runs the tests.
pub(crate) struct Home {
    pub(crate) dir: TempDir,
    pub(crate) relay: Option<String>,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { dir: temp_dir().unwrap(), relay: None }
    }

    /// A home whose commands use the relay at this URL.
    pub(crate) fn at(relay: &str) -> Self {
        Self { relay: Some(relay.to_owned()), ..Self::new() }
    }

    /// A file with a secret, for its owner only.
    #[cfg(unix)]
    pub(crate) fn secret(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What commands of this home find in their environment.
    pub(crate) fn variables(&self) -> Vec<(&'static str, OsString)> {
        let mut variables = vec![
            ("HOME", self.path("home").into()),
            ("XDG_CONFIG_HOME", self.path("config").into()),
            ("XDG_DATA_HOME", self.path("data").into()),
            ("STVOR_DATA", self.path("stvor").into()),
        ];
        if let Some(relay) = &self.relay {
            variables.extend([("STVOR_RELAY", relay.into()), ("STVOR_TOKEN", TOKEN.into())]);
        }
        variables
    }

    /// The command, with a data directory per `--as` and nothing inherited.
    pub(crate) fn stvor<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Spawn {
        let args: Vec<&str> = args.into_iter().collect();
        self.program(env!("CARGO_BIN_EXE_stvor")).args(args)
    }

    /// Another program, in the same environment.
    pub(crate) fn program(&self, program: &str) -> Spawn {
        let mut spawn = Spawn::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("STVOR_") {
                spawn = spawn.env_remove(name);
            }
        }
        for (name, value) in self.variables() {
            spawn = spawn.env(name, value);
        }
        spawn
    }

    /// Runs a command line to its end.
    pub(crate) fn run(&self, line: &str) -> Finished {
        self.stvor(line.split(' ')).run(SOON).unwrap()
    }

    /// Runs a command line to its end with something on standard input.
    pub(crate) fn feed(&self, line: &str, input: &str) -> Ended {
        let process = self.stvor(line.split(' ')).with_input().start().unwrap();
        for line in input.lines() {
            // A command that fails early closes its input.
            if process.write_line(line).is_err() {
                break;
            }
        }
        process.close_input();
        let code = finished(&process);
        Ended { code, out: process.lines(Stream::Out), err: process.lines(Stream::Err).join("\n") }
    }

    /// Starts a command line.
    pub(crate) fn start(&self, line: &str) -> Process {
        self.stvor(line.split(' ')).with_input().start().unwrap()
    }
}

/// Starts `listen` and waits until it is at the relay.
pub(crate) fn listening(home: &Home, line: &str) -> Process {
    let process = home.start(line);
    process.wait_for("istening", SOON).unwrap();
    process
}

/// Waits for the end of a process and of what it says; returns its exit code.
pub(crate) fn finished(process: &Process) -> Option<i32> {
    let code = process.wait_exit(SOON).unwrap().code();
    // No line is this one: the search ends with the output.
    drop(process.wait_line(SOON, |_, _| false));
    code
}

/// How a fed command ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: Vec<String>,
    pub(crate) err: String,
}

/// A development relay on a free port, and its URL.
pub(crate) fn mock_relay() -> (Process, String) {
    let home = Home::new();
    let process = home.start("mock-relay --listen 127.0.0.1:0");
    let url = process.wait_output(1, SOON).unwrap()[0].trim_start_matches("listening on ").to_owned();
    (process, url)
}

/// Says that a test, or a part of one, was not done, past what captures the output of tests that pass.
#[cfg(unix)]
pub(crate) fn skipped(test: &str, why: &str) {
    use std::io::Write as _;
    drop(writeln!(std::io::stderr(), "skipped: {test}: {why}"));
}

/// A program of this machine.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// strace, which sees and changes what a program asks the system for; nothing where that is not installed.
#[cfg(target_os = "linux")]
pub(crate) fn strace() -> Option<PathBuf> {
    let strace = on_path("strace");
    if strace.is_none() {
        assert!(std::env::var_os("CI").is_none(), "strace is missing: apt-get install strace");
        skipped("strace", "it is missing; install it with: apt-get install strace");
    }
    strace
}

/// The objects in lines.
pub(crate) fn objects(lines: &[String]) -> Vec<serde_json::Value> {
    lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no object: {line}")))
        .collect()
}

/// The member `name` of each object.
pub(crate) fn all(objects: &[serde_json::Value], name: &str) -> Vec<String> {
    objects.iter().map(|object| object[name].as_str().unwrap_or_default().to_owned()).collect()
}

/// The file of this name below a directory.
pub(crate) fn find(directory: &Path, name: &str) -> PathBuf {
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.file_name().is_some_and(|found| found == name) {
                return path;
            }
        }
    }
    panic!("no {name} below {}", directory.display());
}
