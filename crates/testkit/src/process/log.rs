//! What a process says, kept line by line.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Lines kept of each process; older ones are dropped.
pub const MAX_LOG_LINES: usize = 200_000;

/// Lines printed when a test panics while it holds a process.
const TAIL_LINES: usize = 40;

/// Which of a process's two outputs a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output: data.
    Out,
    /// Standard error: talk.
    Err,
}

#[derive(Default)]
pub(super) struct Lines {
    pub(super) kept: VecDeque<(Stream, String)>,
    pub(super) dropped: usize,
    pub(super) open: usize,
}

#[derive(Default)]
pub(super) struct Log {
    lines: Mutex<Lines>,
    pub(super) changed: Condvar,
}

impl Log {
    pub(super) fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn follow(self: &Arc<Self>, stream: Stream, source: impl Read + Send + 'static) {
        self.lock().open += 1;
        let log = Arc::clone(self);
        std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while matches!(source.read_until(b'\n', &mut line), Ok(length) if length > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
                line.clear();
                let mut lines = log.lock();
                if lines.kept.len() == MAX_LOG_LINES {
                    lines.kept.pop_front();
                    lines.dropped += 1;
                }
                lines.kept.push_back((stream, text));
                drop(lines);
                log.changed.notify_all();
            }
            log.lock().open -= 1;
            log.changed.notify_all();
        });
    }

    pub(super) fn tail(&self) -> String {
        let lines = self.lock();
        let from = lines.kept.len().saturating_sub(TAIL_LINES);
        lines.kept.range(from..).map(|(_, line)| format!("    {line}\n")).collect()
    }
}
