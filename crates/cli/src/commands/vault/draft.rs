//! Files with open words: written whole, or not there at all.

use std::fs::File;
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
    let Err(refused) = draft.persist_noclobber(path) else { return Ok(()) };
    let named = match refused.error.kind() {
        ErrorKind::AlreadyExists => Err(refused.error),
        // Some file systems, most of them of FUSE, can neither link a file nor rename it only where nothing is.
        _ => claim(refused.file, path),
    };
    named.map_err(failed(path))
}

/// Takes a name that nothing has with an empty file, which the whole one then replaces.
fn claim(draft: NamedTempFile, path: &Path) -> std::io::Result<()> {
    File::create_new(path)?;
    draft.persist(path).map(drop).map_err(|lost| {
        // Of an empty file nobody knows that it is not all there was. One with something in it is not ours, or the rename was done and
        // only its answer was lost.
        if path.symlink_metadata().is_ok_and(|there| there.is_file() && there.len() == 0) {
            let _ = std::fs::remove_file(path);
        }
        lost.error
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_replaces_no_file_and_leaves_none_that_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("all.jsonl");
        let whole = |text: &str| {
            let draft = NamedTempFile::new_in(&directory).unwrap();
            std::fs::write(draft.path(), text).unwrap();
            draft
        };
        let lost = whole("lost");
        std::fs::remove_file(lost.path()).unwrap();
        assert_eq!(claim(lost, &path).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(!path.exists());
        claim(whole("first"), &path).unwrap();
        assert_eq!(claim(whole("second"), &path).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "first");
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1, "no draft is left");
    }
}
