//! Alerts of the daemon: a line of JSON each, in a file, and on standard error all but refusals. The daemon runs no program and
//! opens no internet socket, so it is another program that reads them and wakes somebody.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use stvor_vault::{Alert, AlertHook};

use crate::failure::{Failure, Result};
use crate::render::Out;

/// Alerts that wait to be taken up; more are dropped, for the log has them all.
const WAITING: usize = 1_024;
/// Lines that could not be written and are tried again. More are counted, and their number is written when there is room.
const KEPT: usize = 1_024;
/// How long until what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// A hook that appends to a file, where one is named, and tells on standard error whatever is no refusal: the disk that is full
/// is often the one with the file.
pub(super) fn hook(path: Option<&Path>, out: Out) -> Result<Arc<AlertHook>> {
    let file = path.map(open).transpose()?;
    let (alerts, queue) = sync_channel::<Alert>(WAITING);
    std::thread::Builder::new()
        .name("stvor-vault-alert".into())
        .spawn(move || write(&queue, file.map(Lines::to), |alert, line| tell(out, (alert, line))))
        .map_err(|error| Failure::io("can not start a thread", error))?;
    Ok(Arc::new(move |alert: &Alert| {
        let _ = alerts.try_send(alert.clone());
    }))
}

fn open(path: &Path) -> Result<File> {
    let opened = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    opened.map_err(|source| Failure::File { what: "can not open", path: path.into(), source })
}

/// Writes until the vault is closed: to the file first, for standard error may be a pipe that nobody reads.
fn write<W: Write>(queue: &Receiver<Alert>, mut file: Option<Lines<W>>, mut tell: impl FnMut(&Alert, &str)) {
    loop {
        // Nothing wakes up for nothing.
        let waits = file.as_ref().is_some_and(|file| !file.left.is_empty());
        let next = if waits {
            queue.recv_timeout(AGAIN)
        } else {
            queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        match next {
            Ok(alert) => {
                let Ok(line) = serde_json::to_string(&alert) else { continue };
                if let Some(file) = &mut file {
                    file.add(line.clone());
                }
                if !matches!(alert, Alert::Denied { .. }) {
                    tell(&alert, &line);
                }
            }
            Err(error) => {
                if let Some(file) = &mut file {
                    file.flush();
                }
                if error == RecvTimeoutError::Disconnected {
                    return;
                }
            }
        }
    }
}

fn tell(out: Out, (alert, line): (&Alert, &str)) {
    match serde_json::to_value(alert) {
        Ok(object) if out.json => out.event(&object, ""),
        _ => out.warn(format_args!("ALERT {line}")),
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
        self.flush();
    }

    /// Writes what is left, as far as it goes. A line of which a part was written goes on there.
    fn flush(&mut self) {
        loop {
            if self.left.is_empty() && self.lost > 0 {
                let lost = serde_json::json!({ "alert": "lost", "count": self.lost });
                self.left.push_back(format!("{lost}\n").into_bytes());
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

    /// A file that the test looks into while it is written.
    #[derive(Clone, Default)]
    struct Shared(std::rc::Rc<core::cell::RefCell<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_alert_is_in_the_file_before_standard_error_may_keep_it_waiting() {
        let (alerts, queue) = sync_channel(1);
        let at = stvor_vault::Moment { wall: 1, uptime: 1, boot: String::new() };
        alerts.send(Alert::WatcherNotTold { at, code: "VAULT_IO" }).unwrap();
        drop(alerts);
        let file = Shared::default();
        let mut told = 0;
        write(&queue, Some(Lines::to(file.clone())), |_, line| {
            told += 1;
            assert_eq!(file.0.borrow().as_slice(), format!("{line}\n").as_bytes());
        });
        assert_eq!(told, 1);
    }

    fn text(lines: &Lines<Disk>) -> &str {
        core::str::from_utf8(&lines.to.text).unwrap()
    }

    #[test]
    fn what_a_full_disk_did_not_take_is_written_in_order_when_there_is_room() {
        let mut lines = Lines::to(Disk { room: 6, ..Disk::default() });
        for line in ["one", "two", "three"] {
            lines.add(line.into());
        }
        assert_eq!(text(&lines), "one\ntw", "cut in the middle of a line");
        lines.to.room = 1_000;
        lines.flush();
        assert_eq!(text(&lines), "one\ntwo\nthree\n");
        lines.flush();
        lines.add("four".into());
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
        let written: Vec<_> = text(&lines).lines().collect();
        assert_eq!(written.len(), KEPT + 2);
        assert_eq!(written[KEPT..], [r#"{"alert":"lost","count":2}"#, "after"]);
    }
}
