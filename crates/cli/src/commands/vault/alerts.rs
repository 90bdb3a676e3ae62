//! Alerts of the daemon, a line of JSON each, in a file. The daemon runs no program and opens no internet socket, so it is
//! another program that reads the file and wakes somebody.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use stvor_vault::{Alert, AlertHook};

use crate::failure::{Failure, Result};

/// Alerts that wait to be written; more are dropped, for the log has them all.
const WAITING: usize = 1_024;

/// A hook that appends to `path`.
pub(super) fn to_file(path: &Path) -> Result<Arc<AlertHook>> {
    let opened = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    let failed = |source| Failure::File { what: "can not open", path: path.into(), source };
    let mut file = opened.map_err(failed)?;
    let (alerts, queue) = sync_channel::<Alert>(WAITING);
    let write = move || {
        for alert in queue {
            if let Ok(mut line) = serde_json::to_vec(&alert) {
                line.push(b'\n');
                // A file that can not be written keeps nothing from its answer.
                let _ = file.write_all(&line);
            }
        }
    };
    std::thread::Builder::new()
        .name("stvor-vault-alert".into())
        .spawn(write)
        .map_err(|error| Failure::io("can not start a thread", error))?;
    Ok(Arc::new(move |alert: &Alert| {
        let _ = alerts.try_send(alert.clone());
    }))
}
