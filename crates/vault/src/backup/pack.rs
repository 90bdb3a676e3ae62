//! The file of a backup: a tar archive in an age file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use stvor_keys::recipients::{Opening, Sealing};

use super::Manifest;
use crate::{VaultError, limits};

const MANIFEST: &str = "manifest.json";
const DATABASE: &str = "vault.db";
const README: &str = include_str!("README.txt");

fn header(name: &str, bytes: u64, made: u64) -> Result<tar::Header, io::Error> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_size(bytes);
    header.set_mode(0o600);
    header.set_mtime(made / 1_000);
    header.set_cksum();
    Ok(header)
}

/// What goes into the archive.
#[derive(Debug)]
pub(crate) struct Contents<'a> {
    pub(crate) manifest: &'a Manifest,
    /// The file of the copied database.
    pub(crate) database: &'a Path,
}

/// Writes a backup to `path`, which must not be there. A crash leaves nothing under that name, or all of it.
pub(crate) fn pack(contents: &Contents<'_>, sealing: &Sealing, path: &Path) -> Result<(), VaultError> {
    if path.exists() {
        return Err(VaultError::Exists(path.to_owned()));
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    let _ = fs::remove_file(&draft);
    let done = write(contents, sealing, &draft).and_then(|()| {
        fs::rename(&draft, path).map_err(|error| VaultError::io("naming", path, &error))?;
        let directory = path.parent().unwrap_or(Path::new("."));
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(|error| VaultError::io("syncing", directory, &error))
    });
    if done.is_err() {
        let _ = fs::remove_file(&draft);
    }
    done
}

fn write(contents: &Contents<'_>, sealing: &Sealing, draft: &Path) -> Result<(), VaultError> {
    let failed = |error: io::Error| VaultError::io("writing", draft, &error);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft);
    let file = file.map_err(|error| VaultError::io("creating", draft, &error))?;
    let mut archive = tar::Builder::new(sealing.writer(BufWriter::new(file))?);
    let made = contents.manifest.made;
    let manifest = serde_json::to_vec_pretty(contents.manifest);
    let manifest = manifest.map_err(|error| VaultError::Database(error.to_string()))?;
    for (name, bytes) in [(MANIFEST, &manifest[..]), ("README.txt", README.as_bytes())] {
        let header = header(name, bytes.len() as u64, made).map_err(failed)?;
        archive.append(&header, bytes).map_err(failed)?;
    }
    let read = |error: io::Error| VaultError::io("reading", contents.database, &error);
    let database = File::open(contents.database).map_err(read)?;
    let length = database.metadata().map_err(read)?.len();
    let header = header(DATABASE, length, made).map_err(failed)?;
    archive.append(&header, BufReader::new(database)).map_err(failed)?;
    let sealed = archive.into_inner().map_err(failed)?;
    let mut buffer = sealed.finish().map_err(failed)?;
    buffer.flush().map_err(failed)?;
    buffer.get_ref().sync_all().map_err(failed)
}

/// Reads a backup; its database goes to `database`, which must not be there, if that is wanted.
pub(crate) fn unpack(
    path: &Path,
    opening: &Opening,
    database: Option<&Path>,
) -> Result<Manifest, VaultError> {
    let bad = |reason: &str| VaultError::tampered(format!("the backup {}", path.display()), reason);
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => bad("it is cut short or was changed"),
        _ => VaultError::io("reading", path, &error),
    };
    let file = File::open(path).map_err(|error| VaultError::io("opening", path, &error))?;
    let mut archive = tar::Archive::new(opening.reader(BufReader::new(file))?);
    let (mut manifest, mut found) = (None, false);
    for entry in archive.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let name = entry.path().map_err(failed)?.to_string_lossy().into_owned();
        match name.as_str() {
            MANIFEST => {
                let mut bytes = Vec::new();
                entry.by_ref().take(limits::MAX_MANIFEST).read_to_end(&mut bytes).map_err(failed)?;
                let read: Manifest = serde_json::from_slice(&bytes)
                    .map_err(|_| bad("its manifest is not understood; a newer program may have made it"))?;
                if read.format != super::FORMAT {
                    return Err(VaultError::TooNew { found: read.format, known: super::FORMAT });
                }
                manifest = Some(read);
            }
            DATABASE => {
                found = true;
                let Some(to) = database else { break };
                let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
                let mut out = out.map_err(|error| VaultError::io("creating", to, &error))?;
                io::copy(&mut entry, &mut out).map_err(|error| match error.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                        VaultError::io("writing", to, &error)
                    }
                    _ => failed(error),
                })?;
                out.sync_all().map_err(|error| VaultError::io("syncing", to, &error))?;
            }
            _ => {}
        }
    }
    if database.is_some() {
        // To the end of the file, where age says whether it is whole.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(failed)?;
    }
    manifest.filter(|_| found).ok_or_else(|| bad("it holds no manifest or no database"))
}
