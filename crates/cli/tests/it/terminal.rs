//! A terminal with somebody at it: a pseudo terminal, and an emulator that tells what they see.

use std::io::{Read as _, Write};
use std::num::NonZero;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

use crate::common::{Home, SOON};

/// Lines above the visible ones that the emulator keeps.
const SCROLLBACK: usize = 1_000;

/// Ctrl-C.
pub(crate) const CTRL_C: &str = "\x03";
/// Ctrl-D.
pub(crate) const CTRL_D: &str = "\x04";

struct Screen {
    parser: vt100::Parser,
    /// Everything that was written, also what scrolled away.
    raw: Vec<u8>,
    open: bool,
}

/// A terminal. Dropped, its program is killed.
pub(crate) struct Terminal {
    master: Option<Box<dyn MasterPty + Send>>,
    keyboard: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    screen: Arc<(Mutex<Screen>, Condvar)>,
}

/// What kind of terminal to open.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) rows: u16,
    pub(crate) columns: u16,
    /// The variable `TERM`.
    pub(crate) term: &'static str,
}

/// The usual one.
pub(crate) const USUAL: Kind = Kind { rows: 24, columns: 80, term: "xterm-256color" };

impl Terminal {
    /// Runs a command line of `stvor`.
    pub(crate) fn open(home: &Home, line: &str, kind: Kind) -> Self {
        Self::run(home, CommandBuilder::new(env!("CARGO_BIN_EXE_stvor")), line, kind)
    }

    /// Runs a script that finds the program in `$STVOR`.
    pub(crate) fn script(home: &Home, script: &str, kind: Kind) -> Self {
        let mut command = CommandBuilder::new("/bin/sh");
        command.args(["-c", script]);
        command.env("STVOR", env!("CARGO_BIN_EXE_stvor"));
        Self::run(home, command, "", kind)
    }

    fn run(home: &Home, mut command: CommandBuilder, line: &str, kind: Kind) -> Self {
        let size = size(kind.rows, kind.columns);
        let pair = native_pty_system().openpty(size).unwrap();
        for (name, _) in std::env::vars() {
            if name.starts_with("STVOR_") || name == "NO_COLOR" {
                command.env_remove(name);
            }
        }
        for (name, value) in home.variables() {
            command.env(name, value);
        }
        command.env("TERM", kind.term);
        command.cwd(home.dir.path());
        command.args(line.split_whitespace());
        let child = pair.slave.spawn_command(command).unwrap();
        drop(pair.slave);
        let parser = vt100::Parser::new(some(kind.rows), some(kind.columns), SCROLLBACK);
        let screen = Arc::new((Mutex::new(Screen { parser, raw: Vec::new(), open: true }), Condvar::new()));
        let mut shown = pair.master.try_clone_reader().unwrap();
        let watcher = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = shown.read(&mut bytes) {
                let mut screen = watcher.0.lock().unwrap_or_else(PoisonError::into_inner);
                screen.parser.process(&bytes[..length]);
                screen.raw.extend_from_slice(&bytes[..length]);
                watcher.1.notify_all();
            }
            watcher.0.lock().unwrap_or_else(PoisonError::into_inner).open = false;
            watcher.1.notify_all();
        });
        let keyboard = pair.master.take_writer().unwrap();
        Self { master: Some(pair.master), keyboard, child, screen }
    }

    /// Presses keys.
    pub(crate) fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }

    /// Waits until what is visible is as `wanted`; returns it.
    pub(crate) fn wait(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + SOON;
        let (lock, changed) = &*self.screen;
        let mut screen = lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let seen = screen.parser.screen().contents();
            if wanted(&seen) {
                return seen;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !screen.open {
                let raw = String::from_utf8_lossy(&screen.raw).into_owned();
                drop(screen);
                panic!("{what} is not on the screen:\n{seen}\n--- all that was written:\n{raw:?}");
            }
            screen = changed.wait_timeout(screen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until a text is visible; returns everything that is.
    pub(crate) fn wait_for(&self, text: &str) -> String {
        self.wait(text, |seen| seen.contains(text))
    }

    /// Everything that was written, escape sequences and all.
    pub(crate) fn raw(&self) -> String {
        let screen = self.screen.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&screen.raw).into_owned()
    }

    /// Makes the window larger or smaller.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        self.screen.0.lock().unwrap().parser.screen_mut().set_size(some(rows), some(columns));
        self.master.as_ref().unwrap().resize(size(rows, columns)).unwrap();
    }

    /// Closes the window under the program.
    pub(crate) fn hang_up(&mut self) {
        self.keyboard = Box::new(std::io::sink());
        self.master = None;
    }

    /// Waits for the end of the program; returns its exit code.
    pub(crate) fn ended(&mut self) -> u32 {
        let child = &mut self.child;
        stvor_testkit::until(SOON, || child.try_wait().unwrap()).unwrap().exit_code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It fails only for a program that has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn some(number: u16) -> NonZero<u16> {
    NonZero::new(number).unwrap()
}

fn size(rows: u16, cols: u16) -> PtySize {
    PtySize { rows, cols, pixel_width: 0, pixel_height: 0 }
}
