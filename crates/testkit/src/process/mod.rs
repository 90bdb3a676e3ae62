//! Real processes: captured logs, waiting without sleeping, signals by pid, nothing left behind.

mod log;
mod spawn;

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::Log;
pub use log::{MAX_LOG_LINES, Stream};
pub use spawn::{Finished, Spawn};

/// How often a condition that nothing announces (a file, an exit) is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A signal that tests send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: asks for a graceful end.
    Term,
    /// SIGINT: what Ctrl-C sends.
    Interrupt,
    /// SIGHUP: asks for a reload.
    HangUp,
    /// SIGKILL: ends it between two instructions.
    Kill,
    /// SIGSTOP: freezes it, as a suspended laptop or a starved machine would.
    Stop,
    /// SIGCONT: lets it go on.
    Continue,
}

impl Signal {
    fn number(self) -> rustix::process::Signal {
        match self {
            Self::Term => rustix::process::Signal::TERM,
            Self::Interrupt => rustix::process::Signal::INT,
            Self::HangUp => rustix::process::Signal::HUP,
            Self::Kill => rustix::process::Signal::KILL,
            Self::Stop => rustix::process::Signal::STOP,
            Self::Continue => rustix::process::Signal::CONT,
        }
    }
}

/// A running process. Dropped, it is killed and reaped; dropped by a panic, it prints the end of its log.
pub struct Process {
    name: String,
    pid: u32,
    child: Mutex<Child>,
    input: Mutex<Option<ChildStdin>>,
    log: Arc<Log>,
}

impl Process {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn timed_out(&self, what: &str, timeout: Duration) -> io::Error {
        let text = format!(
            "{} ({}): {what} within {timeout:?}; its log ends:\n{}",
            self.name,
            self.pid,
            self.log.tail()
        );
        io::Error::new(io::ErrorKind::TimedOut, text)
    }

    /// Sends a signal. A process that has ended is left alone, so that a reused pid is never hit.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let mut child = self.child();
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("a process id out of range"))?;
        rustix::process::kill_process(pid, signal.number()).map_err(io::Error::from)
    }

    /// Kills it with SIGKILL and reaps it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&self) -> io::Result<ExitStatus> {
        self.signal(Signal::Kill)?;
        self.child().wait()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the system can not tell.
    pub fn is_running(&self) -> io::Result<bool> {
        Ok(self.child().try_wait()?.is_none())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// `TimedOut`, with the end of its log, when it still runs after `timeout`.
    pub fn wait_exit(&self, timeout: Duration) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child().try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(self.timed_out("no end", timeout));
            }
            // A closing output usually announces the end; the bound covers a child that closed them long before.
            let lines = self.log.lock();
            drop(self.log.changed.wait_timeout(lines, LOOK_EVERY));
        }
    }

    /// Waits until everything that an ended process wrote is in its log.
    ///
    /// # Errors
    /// `TimedOut` when an output stays open.
    pub fn wait_log_end(&self, timeout: Duration) -> io::Result<()> {
        let (lines, result) = self
            .log
            .changed
            .wait_timeout_while(self.log.lock(), timeout, |lines| lines.open > 0)
            .unwrap_or_else(PoisonError::into_inner);
        drop(lines);
        if result.timed_out() { Err(self.timed_out("no end of output", timeout)) } else { Ok(()) }
    }

    /// Waits for the first line, of either output and from the start of the log, that `wanted` accepts; returns it.
    ///
    /// # Errors
    /// `TimedOut` after `timeout`, `UnexpectedEof` when both outputs end without it; both with the end of the log.
    pub fn wait_line(
        &self,
        timeout: Duration,
        mut wanted: impl FnMut(Stream, &str) -> bool,
    ) -> io::Result<String> {
        let deadline = Instant::now() + timeout;
        let mut seen = 0;
        let mut lines = self.log.lock();
        loop {
            let fresh = lines.kept.range(seen - lines.dropped.min(seen)..);
            if let Some((_, line)) = fresh.into_iter().find(|(stream, line)| wanted(*stream, line)) {
                return Ok(line.clone());
            }
            seen = lines.dropped + lines.kept.len();
            if lines.open == 0 {
                drop(lines);
                let text = format!(
                    "{}: ended without the awaited line; its log ends:\n{}",
                    self.name,
                    self.log.tail()
                );
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(lines);
                return Err(self.timed_out("no such line", timeout));
            }
            lines = self.log.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for a line that contains `text`.
    ///
    /// # Errors
    /// As [`Process::wait_line`].
    pub fn wait_for(&self, text: &str, timeout: Duration) -> io::Result<String> {
        self.wait_line(timeout, |_, line| line.contains(text))
    }

    /// Waits until `count` lines stand on its standard output and returns them all.
    ///
    /// # Errors
    /// As [`Process::wait_line`].
    pub fn wait_output(&self, count: usize, timeout: Duration) -> io::Result<Vec<String>> {
        let mut seen = 0;
        self.wait_line(timeout, |stream, _| {
            seen += usize::from(stream == Stream::Out);
            seen >= count
        })?;
        Ok(self.lines(Stream::Out))
    }

    /// Waits for the address that a server printed: servers listen on port 0 and say where that is.
    ///
    /// Finds the first `127.0.0.1:port` or `[::1]:port` (bare or in a URL) in a line that contains `marker`.
    ///
    /// # Errors
    /// As [`Process::wait_line`].
    pub fn wait_address(&self, marker: &str, timeout: Duration) -> io::Result<SocketAddr> {
        let mut found = None;
        self.wait_line(timeout, |_, line| {
            found = line.contains(marker).then(|| loopback_address(line)).flatten();
            found.is_some()
        })?;
        found.ok_or_else(|| io::Error::other("no address in the line"))
    }

    /// The lines of one output so far.
    #[must_use]
    pub fn lines(&self, stream: Stream) -> Vec<String> {
        self.log
            .lock()
            .kept
            .iter()
            .filter(|(from, _)| *from == stream)
            .map(|(_, line)| line.clone())
            .collect()
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    /// When it was started without [`Spawn::with_input`], or closed its input.
    pub fn write_line(&self, line: &str) -> io::Result<()> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let input = input.as_mut().ok_or_else(|| io::Error::other("this process has no open input"))?;
        input.write_all(line.as_bytes())?;
        input.write_all(b"\n")?;
        input.flush()
    }

    /// Closes its standard input.
    pub fn close_input(&self) {
        self.input.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Either fails only for a process that has ended.
        let (_ended, _reaped) = (child.kill(), child.wait());
        if std::thread::panicking() {
            eprintln!("--- {} ({}), the last lines:\n{}", self.name, self.pid, self.log.tail());
        }
    }
}

fn loopback_address(line: &str) -> Option<SocketAddr> {
    ["127.0.0.1:", "[::1]:", "0.0.0.0:"].iter().find_map(|host| {
        let start = line.find(host)?;
        let port = line[start + host.len()..].split(|c: char| !c.is_ascii_digit()).next()?;
        format!("{host}{port}").replace("0.0.0.0:", "127.0.0.1:").parse().ok()
    })
}

/// Asks again and again until there is an answer.
///
/// For conditions that nothing announces (a file, a row, an HTTP answer). Where a line or an event says it, wait for
/// that.
///
/// # Errors
/// `TimedOut` when there is none within `timeout`.
pub fn until<T>(timeout: Duration, mut answer: impl FnMut() -> Option<T>) -> io::Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(answer) = answer() {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {timeout:?}")));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The path of a binary of this workspace, found beside the running test.
///
/// Only the package that owns a binary is sure to have it built by `cargo test -p`; others need the whole workspace
/// built, or `cargo build -p stvor-cli` first.
///
/// # Errors
/// `NotFound`, naming the command that builds it.
pub fn binary(name: &str) -> io::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let file = format!("{name}{}", std::env::consts::EXE_SUFFIX);
    let found = test.ancestors().skip(1).take(3).map(|folder| folder.join(&file)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let text = format!("no {name} beside {}: run `cargo build -p stvor-cli` first", test.display());
        io::Error::new(io::ErrorKind::NotFound, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Spawn {
        Spawn::new("/bin/sh").arg("-c").arg(script)
    }

    #[test]
    fn line_is_waited_for_and_both_outputs_are_kept() {
        let process = shell("echo one; echo two >&2; echo ready; cat").with_input().start().unwrap();
        assert_eq!(process.wait_for("ready", SOON).unwrap(), "ready");
        process.write_line("echoed").unwrap();
        assert_eq!(process.wait_output(3, SOON).unwrap(), ["one", "ready", "echoed"]);
        process.wait_for("two", SOON).unwrap();
        process.close_input();
        assert!(process.wait_exit(SOON).unwrap().success());
    }

    #[test]
    fn end_without_the_line_is_an_error_that_shows_the_log() {
        let process = shell("echo something else").start().unwrap();
        let error = process.wait_for("ready", SOON).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(error.to_string().contains("something else"));
    }

    #[test]
    fn silent_process_times_out() {
        let process = shell("cat").with_input().start().unwrap();
        let error = process.wait_for("ready", Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(process.wait_exit(Duration::from_millis(20)).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn killed_process_ends_by_the_signal() {
        use std::os::unix::process::ExitStatusExt as _;
        let process = shell("cat").with_input().start().unwrap();
        assert!(process.is_running().unwrap());
        assert_eq!(process.kill().unwrap().signal(), Some(9));
        assert!(!process.is_running().unwrap());
        process.signal(Signal::Term).unwrap();
    }

    #[test]
    fn term_signal_can_be_caught() {
        let script = "trap 'echo drained; exit 0' TERM; echo ready; while read line; do :; done";
        let process = shell(script).with_input().start().unwrap();
        process.wait_for("ready", SOON).unwrap();
        process.signal(Signal::Term).unwrap();
        // The shell runs its trap when `read` returns.
        process.close_input();
        process.wait_for("drained", SOON).unwrap();
        assert!(process.wait_exit(SOON).unwrap().success());
    }

    #[test]
    fn stopped_process_goes_on_after_continue() {
        let process = shell("echo ready; read line; echo got $line").with_input().start().unwrap();
        process.wait_for("ready", SOON).unwrap();
        process.signal(Signal::Stop).unwrap();
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).ok();
        until(SOON, || state().filter(|text| text.contains(") T "))).unwrap();
        process.write_line("it").unwrap();
        process.signal(Signal::Continue).unwrap();
        process.wait_for("got it", SOON).unwrap();
    }

    #[test]
    fn command_that_finishes_leaves_status_and_outputs() {
        let finished = shell("echo data; echo talk >&2; exit 3").run(SOON).unwrap();
        assert_eq!(
            (finished.status.code(), finished.out.as_str(), finished.err.as_str()),
            (Some(3), "data", "talk")
        );
    }

    #[test]
    fn dropped_process_is_gone() {
        let process = shell("cat").with_input().start().unwrap();
        let path = PathBuf::from(format!("/proc/{}", process.pid()));
        assert!(path.exists());
        drop(process);
        assert!(!path.exists());
    }

    #[test]
    fn address_is_read_from_a_url() {
        let line = "listening on ws://127.0.0.1:45123/v1 (development)";
        assert_eq!(loopback_address(line), Some("127.0.0.1:45123".parse().unwrap()));
        assert_eq!(loopback_address("[::1]:80"), Some("[::1]:80".parse().unwrap()));
        assert_eq!(loopback_address("nothing here"), None);
    }
}
