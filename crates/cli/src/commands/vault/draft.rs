//! Files with open words: written whole, or not there at all.

use std::io::ErrorKind;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::args::Life;
use crate::exit;
use crate::failure::{Failure, Result};
use crate::life::{End, Ending, hangup_is_ignored};

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let path = path.to_owned();
    move |source| Failure::File { what: "can not make", path, source }
}

/// A file for its owner only that is to be at `path`, where nothing may be yet. Until it is [kept](keep) it has another name and is
/// removed when the command fails, and by Ctrl-C, SIGTERM and SIGHUP, which end the process from now on; SIGHUP does not where it was
/// ignored. Needs a runtime.
pub(super) fn draft(path: &Path) -> Result<NamedTempFile> {
    if path.symlink_metadata().is_ok() {
        return Err(failed(path)(ErrorKind::AlreadyExists.into()));
    }
    let stays = hangup_is_ignored();
    // Caught before there is something to remove.
    let mut ending = Ending::watch(Life { exit_with_stdin: false })?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let made = tempfile::Builder::new()
        .prefix(".stvor-")
        .suffix(".part")
        .tempfile_in(directory.unwrap_or(Path::new(".")))
        .map_err(failed(path))?;
    let half = made.path().to_owned();
    tokio::spawn(async move {
        let end = loop {
            match ending.wait().await {
                End::HungUp if stays => {}
                end => break end,
            }
        };
        // Nothing is there of this name when it was kept.
        let _ = std::fs::remove_file(half);
        let code = if end == End::Interrupted { exit::INTERRUPTED } else { exit::FAILURE };
        std::process::exit(code.into());
    });
    Ok(made)
}

/// Gives a whole file its name, if nothing has it by now, and syncs it before.
pub(super) fn keep(draft: NamedTempFile, path: &Path) -> Result {
    draft.as_file().sync_all().map_err(failed(path))?;
    draft.persist_noclobber(path).map(drop).map_err(|error| failed(path)(error.error))
}
