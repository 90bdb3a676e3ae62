//! Alerts of the daemon: a line of JSON each, in a file, and on standard error all but refusals. The daemon runs no program and
//! opens no internet socket, so it is another program that reads them and wakes somebody.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use serde::Serialize;
use stvor_vault::{Alert, AlertHook};

use crate::failure::{Failure, Result};
use crate::render::Out;

/// Alerts that wait to be taken up, for the file and for standard error each. More are counted.
const WAITING: usize = 1_024;
/// Lines that could not be written and are tried again. More are counted, and their number is written when there is room.
const KEPT: usize = 1_024;
/// How long until what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// A hook that appends to a file, where one is named, and tells on standard error whatever is no refusal: the disk that is full
/// is often the one with the file.
pub(super) fn hook(path: Option<&Path>, out: Out) -> Result<Arc<AlertHook>> {
    start(path.map(open).transpose()?, move |told| tell(out, told))
}

/// Each has a thread of its own: a pipe that nobody reads keeps nothing from the file, nor a file that hangs anything from the pipe.
fn start(
    file: Option<impl Write + Send + 'static>,
    mut tell: impl FnMut(&Told) + Send + 'static,
) -> Result<Arc<AlertHook>> {
    let failed = |error| Failure::io("can not start a thread", error);
    let thread = || std::thread::Builder::new().name("stvor-vault-alert".into());
    let (shown, queue) = queue();
    thread().spawn(move || queue.each(&mut tell)).map_err(failed)?;
    let filed = match file {
        Some(file) => {
            let (filed, queue) = self::queue();
            thread().spawn(move || write(&queue, Lines::to(file))).map_err(failed)?;
            Some(filed)
        }
        None => None,
    };
    Ok(Arc::new(move |alert: &Alert| {
        if let Some(filed) = &filed {
            filed.put(alert);
        }
        if !matches!(alert, Alert::Denied { .. }) {
            shown.put(alert);
        }
    }))
}

fn open(path: &Path) -> Result<File> {
    let opened = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    opened.map_err(|source| Failure::File { what: "can not open", path: path.into(), source })
}

/// What is told.
#[derive(Serialize)]
#[serde(untagged)]
enum Told {
    Alert(Alert),
    Lost(Lost),
}

/// So many alerts found no room.
#[derive(Serialize)]
#[serde(tag = "alert", rename = "lost")]
struct Lost {
    count: u64,
}

/// Where alerts are put in: nobody waits there.
struct Putting {
    alerts: SyncSender<Alert>,
    lost: Arc<AtomicU64>,
}

/// Where they are taken out.
struct Taking {
    alerts: Receiver<Alert>,
    lost: Arc<AtomicU64>,
}

fn queue() -> (Putting, Taking) {
    let (put, take) = sync_channel(WAITING);
    let lost = Arc::new(AtomicU64::new(0));
    (Putting { alerts: put, lost: lost.clone() }, Taking { alerts: take, lost })
}

impl Putting {
    fn put(&self, alert: &Alert) {
        if let Err(TrySendError::Full(_)) = self.alerts.try_send(alert.clone()) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Taking {
    /// How many were lost since this was last asked. Whatever is lost finds others waiting, so asking at each of them misses none.
    fn lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }

    /// Tells each, until the vault is closed.
    fn each(&self, tell: &mut impl FnMut(&Told)) {
        while let Ok(alert) = self.alerts.recv() {
            tell(&Told::Alert(alert));
            match self.lost() {
                0 => {}
                count => tell(&Told::Lost(Lost { count })),
            }
        }
    }
}

/// Writes to a file until the vault is closed.
fn write<W: Write>(queue: &Taking, mut file: Lines<W>) {
    loop {
        // Nothing wakes up for nothing.
        let next = match file.left.is_empty() {
            true => queue.alerts.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => queue.alerts.recv_timeout(AGAIN),
        };
        match next {
            Ok(alert) => {
                if let Ok(line) = serde_json::to_string(&alert) {
                    file.add(line);
                }
                file.lost += queue.lost();
                file.flush();
            }
            Err(RecvTimeoutError::Timeout) => file.flush(),
            Err(RecvTimeoutError::Disconnected) => return file.flush(),
        }
    }
}

fn tell(out: Out, told: &Told) {
    match (serde_json::to_value(told), serde_json::to_string(told)) {
        (Ok(object), _) if out.json => out.event(&object, ""),
        (_, Ok(line)) => out.warn(format_args!("ALERT {line}")),
        // An alert is made of texts and numbers, which all have a form.
        _ => {}
    }
}

/// Lines on their way to a file, in order. What can not be written stays, up to [`KEPT`].
struct Lines<W> {
    to: W,
    left: VecDeque<Vec<u8>>,
    /// Lines that there was no room for, after those that are left.
    lost: u64,
}

impl<W: Write> Lines<W> {
    fn to(to: W) -> Self {
        Self { to, left: VecDeque::new(), lost: 0 }
    }

    fn add(&mut self, mut line: String) {
        line.push('\n');
        if self.left.len() < KEPT && self.lost == 0 {
            self.left.push_back(line.into_bytes());
        } else {
            self.lost += 1;
        }
    }

    /// Writes what is left, as far as it goes. A line of which a part was written goes on there.
    fn flush(&mut self) {
        loop {
            if self.left.is_empty() && self.lost > 0 {
                if let Ok(lost) = serde_json::to_string(&Lost { count: self.lost }) {
                    self.left.push_back(format!("{lost}\n").into_bytes());
                }
                self.lost = 0;
            }
            let Some(line) = self.left.front_mut() else { return };
            match self.to.write(line) {
                Ok(0) => return,
                Ok(written) => {
                    line.drain(..written.min(line.len()));
                    if line.is_empty() {
                        self.left.pop_front();
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A file that can not be written keeps nothing from its answer.
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A disk with room for so many bytes.
    #[derive(Default)]
    struct Disk {
        room: usize,
        text: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let fits = bytes.len().min(self.room);
            if fits == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.room -= fits;
            self.text.extend_from_slice(&bytes[..fits]);
            Ok(fits)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// A file that the test looks into while it is written, and that hangs as long as the test holds it.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        fn lines(&self) -> Vec<String> {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
        }
    }

    const SOON: Duration = Duration::from_secs(60);

    fn alert(wall: u64) -> Alert {
        Alert::WatcherNotTold {
            at: stvor_vault::Moment { wall, uptime: 1, boot: String::new() },
            code: "VAULT_IO",
        }
    }

    #[test]
    fn a_standard_error_that_nobody_reads_keeps_nothing_from_the_file() {
        let (file, stuck) = (Shared::default(), Arc::new(Mutex::new(())));
        let held = stuck.lock().unwrap();
        let hook = start(Some(file.clone()), {
            let stuck = stuck.clone();
            move |_| drop(stuck.lock())
        })
        .unwrap();
        for wall in 0..10 {
            hook(&alert(wall));
        }
        assert!(stvor_testkit::until(SOON, || (file.lines().len() == 10).then_some(())).is_ok());
        drop(held);
    }

    #[test]
    fn alerts_that_find_no_room_are_counted() {
        let (file, shown) = (Shared::default(), Shared::default());
        let (file_hangs, pipe_hangs) = (file.0.lock().unwrap(), shown.0.lock().unwrap());
        let hook = start(Some(file.clone()), {
            let mut shown = shown.clone();
            move |told| writeln!(shown, "{}", serde_json::to_string(told).unwrap()).unwrap()
        })
        .unwrap();
        let all = 2 * WAITING + 10;
        for wall in 0..all {
            hook(&alert(wall as u64));
        }
        drop((file_hangs, pipe_hangs));
        for lines in [&file, &shown] {
            let counted = || {
                let lines = lines.lines();
                let lost =
                    |line: &String| serde_json::from_str::<serde_json::Value>(line).ok()?["count"].as_u64();
                let lost = lines.iter().filter_map(lost).map(|count| count as usize).collect::<Vec<_>>();
                let written = lines.len() - lost.len() + lost.iter().sum::<usize>();
                (written == all).then_some(lost)
            };
            let lost = stvor_testkit::until(SOON, counted).unwrap();
            assert!(lost.iter().sum::<usize>() >= WAITING, "{lost:?}");
        }
    }

    fn text(lines: &Lines<Disk>) -> &str {
        core::str::from_utf8(&lines.to.text).unwrap()
    }

    #[test]
    fn what_a_full_disk_did_not_take_is_written_in_order_when_there_is_room() {
        let mut lines = Lines::to(Disk { room: 6, ..Disk::default() });
        for line in ["one", "two", "three"] {
            lines.add(line.into());
            lines.flush();
        }
        assert_eq!(text(&lines), "one\ntw", "cut in the middle of a line");
        lines.to.room = 1_000;
        lines.flush();
        assert_eq!(text(&lines), "one\ntwo\nthree\n");
        lines.flush();
        lines.add("four".into());
        lines.flush();
        assert_eq!(text(&lines), "one\ntwo\nthree\nfour\n");
    }

    #[test]
    fn so_many_lines_are_kept_and_of_more_the_number() {
        let mut lines = Lines::to(Disk::default());
        for _ in 0..KEPT {
            lines.add("kept".into());
        }
        assert_eq!((lines.left.len(), lines.lost), (KEPT, 0));
        lines.add("one too many".into());
        assert_eq!((lines.left.len(), lines.lost), (KEPT, 1));
        lines.add("and another".into());
        lines.to.room = usize::MAX;
        lines.flush();
        lines.add("after".into());
        lines.flush();
        let written: Vec<_> = text(&lines).lines().collect();
        assert_eq!(written.len(), KEPT + 2);
        assert_eq!(written[KEPT..], [r#"{"alert":"lost","count":2}"#, "after"]);
    }
}
