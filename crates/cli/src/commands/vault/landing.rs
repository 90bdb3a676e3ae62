//! Where files go that the daemon makes. A daemon of the same user writes them itself. One that has a user of its own can not
//! write where its owner reads: there this process fetches them, and they are sealed on their way.

use std::fs::{DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use stvor_vault::daemon::{Client, RecoveryVerb};

use super::backup::{absolute, ask, new_private};
use super::show;
use crate::failure::{Failure, Result};
use crate::progress::Bar;
use crate::render::Out;

/// A directory for such files.
pub(super) struct Landing {
    directory: PathBuf,
    fetched: bool,
    out: Out,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let path = path.to_owned();
    move |source| Failure::File { what, path, source }
}

/// Whether the daemon is another user's.
pub(super) fn is_foreign(client: &Client) -> bool {
    client.served_by().is_some_and(|uid| uid != rustix::process::getuid().as_raw())
}

impl Landing {
    /// Where it does not have to be fetched, the daemon makes the directory.
    pub(super) fn at(out: Out, client: &Client, directory: &Path) -> Result<Self> {
        let landing = Self { directory: absolute(directory)?, fetched: is_foreign(client), out };
        if landing.fetched {
            // Before the daemon works for nothing.
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&landing.directory);
            made.map_err(failed("can not make", &landing.directory))?;
        }
        Ok(landing)
    }

    /// The directory that the daemon is told of.
    pub(super) fn directory(&self) -> PathBuf {
        if self.fetched { PathBuf::new() } else { self.directory.clone() }
    }

    /// The file of this name that the daemon is told of.
    pub(super) fn file(&self, name: &Path) -> PathBuf {
        if self.fetched { name.to_owned() } else { self.directory.join(name) }
    }

    /// Takes a file that the daemon made, and returns where it is now.
    pub(super) fn take(&self, client: &mut Client, made: &Path) -> Result<PathBuf> {
        if !self.fetched {
            return Ok(made.to_owned());
        }
        let name = Path::new(made.file_name().unwrap_or_default());
        let (path, mut draft) = (self.directory.join(name), self.directory.join(name).into_os_string());
        draft.push(".new");
        let draft = PathBuf::from(draft);
        if path.exists() {
            return Err(Failure::Usage(format!(
                "{} is there already; it is not overwritten",
                path.display()
            )));
        }
        let _ = std::fs::remove_file(&draft);
        let done = self.fetch(client, (name, &draft)).and_then(|()| {
            std::fs::rename(&draft, &path).map_err(failed("can not name", &path))?;
            let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
            synced.map_err(failed("can not sync", &self.directory))
        });
        if let Err(error) = done {
            let _ = std::fs::remove_file(&draft);
            return Err(error);
        }
        ask(client, RecoveryVerb::Taken { name: name.to_owned(), kept: path.clone() })?;
        Ok(path)
    }

    fn fetch(&self, client: &mut Client, (name, to): (&Path, &Path)) -> Result {
        let mut file = new_private(to)?;
        let mut offset = 0;
        let bar = Bar::new(self.out, "bytes");
        loop {
            let (size, bytes) = part(client, name, offset)?.ok_or_else(|| Failure::Coded {
                code: "VAULT_IO",
                message: format!("the daemon has not the file {} any more", name.display()),
                retryable: true,
            })?;
            file.write_all(&bytes).map_err(failed("can not write", to))?;
            offset += bytes.len() as u64;
            bar.to(offset, size);
            if offset >= size {
                bar.end();
                return file.sync_all().map_err(failed("can not write", to));
            }
            if bytes.is_empty() {
                return Err(show::not_understood());
            }
        }
    }

    /// Adds the lines of the daemon's list of ended memories to the one here.
    pub(super) fn take_list(&self, client: &mut Client) -> Result {
        let name = Path::new(stvor_vault::backup::FORGOTTEN);
        if !self.fetched {
            return Ok(());
        }
        let mut list = Vec::new();
        while let Some((size, bytes)) = part(client, name, list.len() as u64)? {
            list.extend_from_slice(&bytes);
            if list.len() as u64 >= size || bytes.is_empty() {
                break;
            }
        }
        // Each line stands for itself: bytes that are no text void no other line.
        let list = String::from_utf8_lossy(&list);
        Ok(stvor_vault::backup::add_to_list(&list, &self.directory.join(name))?)
    }
}

/// The size of a file of the daemon's, and some of its bytes.
fn part(client: &mut Client, name: &Path, offset: u64) -> Result<Option<(u64, Vec<u8>)>> {
    let answer = ask(client, RecoveryVerb::Fetch { name: name.to_owned(), offset })?;
    if answer.is_null() {
        return Ok(None);
    }
    let bytes = answer["bytes"].as_str().and_then(|text| STANDARD.decode(text).ok());
    match (answer["size"].as_u64(), bytes) {
        (Some(size), Some(bytes)) => Ok(Some((size, bytes))),
        _ => Err(show::not_understood()),
    }
}
