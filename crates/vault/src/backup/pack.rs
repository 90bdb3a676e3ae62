//! The file of a backup: a tar archive in an age file.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use stvor_keys::recipients::{Opening, Sealing};

use super::seal::{self, Seal};
use super::{FORMAT, Manifest};
use crate::keys::RootKey;
use crate::storage::named_when_whole;
use crate::{VaultError, limits};

const MANIFEST: &str = "manifest.json";
const SEAL: &str = "seal.json";
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
    /// The manifest as it was sealed.
    pub(crate) bytes: &'a [u8],
    pub(crate) seal: &'a Seal,
    /// The file of the copied database.
    pub(crate) database: &'a Path,
}

/// Writes a backup to `path`, which must not be there. A crash leaves nothing under that name, or all of it.
pub(crate) fn pack(contents: &Contents<'_>, sealing: &Sealing, path: &Path) -> Result<(), VaultError> {
    named_when_whole(path, |draft| write(contents, sealing, draft))
}

fn write(contents: &Contents<'_>, sealing: &Sealing, draft: &Path) -> Result<(), VaultError> {
    let failed = |error: io::Error| VaultError::io("writing", draft, &error);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft);
    let file = file.map_err(|error| VaultError::io("creating", draft, &error))?;
    let mut archive = tar::Builder::new(sealing.writer(BufWriter::new(file))?);
    let made = contents.manifest.made;
    let seal = serde_json::to_vec_pretty(contents.seal);
    let seal = seal.map_err(|error| VaultError::Database(error.to_string()))?;
    // What is needed to check the database stands before it.
    for (name, bytes) in [(MANIFEST, contents.bytes), (SEAL, &seal), ("README.txt", README.as_bytes())] {
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

/// What stands before the database in a backup.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) manifest: Manifest,
    bytes: Vec<u8>,
    pub(crate) seal: Seal,
}

/// Reads what stands before the database. Nobody vouches for it.
pub(crate) fn read_head(path: &Path, opening: &Opening) -> Result<Head, VaultError> {
    read(path, opening, None)
}

/// Reads a backup that the vault with this root key made; its database goes to `to`, which must not be there.
pub(crate) fn unpack(
    path: &Path,
    opening: &Opening,
    (to, root): (&Path, &RootKey),
) -> Result<Manifest, VaultError> {
    read(path, opening, Some((to, root))).map(|head| head.manifest)
}

fn read(path: &Path, opening: &Opening, wanted: Option<(&Path, &RootKey)>) -> Result<Head, VaultError> {
    let bad = |reason: &str| VaultError::tampered(format!("the backup {}", path.display()), reason);
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => bad("it is cut short or was changed"),
        _ => VaultError::io("reading", path, &error),
    };
    let file = File::open(path).map_err(|error| VaultError::io("opening", path, &error))?;
    let mut archive = tar::Archive::new(opening.reader(BufReader::new(file))?);
    let (mut manifest, mut seal, mut found) = (None, None, None);
    for entry in archive.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let name = entry.path().map_err(failed)?.to_string_lossy().into_owned();
        let mut small = || {
            let mut bytes = Vec::new();
            entry.by_ref().take(limits::MAX_MANIFEST).read_to_end(&mut bytes).map_err(failed)?;
            Ok::<_, VaultError>(bytes)
        };
        match name.as_str() {
            MANIFEST if manifest.is_none() => {
                let bytes = small()?;
                manifest = Some((
                    parse_manifest(&bytes).map_err(|error| {
                        error.unwrap_or_else(|| {
                            bad("its manifest is not understood; a newer program may have made it")
                        })
                    })?,
                    bytes,
                ));
            }
            SEAL if seal.is_none() => {
                let read: Result<Seal, _> = serde_json::from_slice(&small()?);
                seal = Some(read.map_err(|_| bad("its seal is not understood"))?);
            }
            DATABASE if found.is_none() => {
                let (Some((manifest, bytes)), Some(seal)) = (manifest.take(), seal.take()) else { break };
                let head = found.insert(Head { manifest, bytes, seal });
                let Some((to, root)) = wanted else { break };
                if !head.seal.is_of(root, &head.bytes) {
                    return Err(bad("it was not made by this vault"));
                }
                if !head.seal.holds(&write_database((&mut entry, to), &failed)?) {
                    return Err(bad("its database is not the one that was sealed"));
                }
            }
            "README.txt" => {}
            _ => return Err(bad("it holds something that no backup holds")),
        }
    }
    if wanted.is_some() {
        // To the end of the file, where age says whether it is whole.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(failed)?;
    }
    found.ok_or_else(|| bad("it holds no manifest, no seal or no database"))
}

/// Reads a manifest; no error is one that is not understood.
fn parse_manifest(bytes: &[u8]) -> Result<Manifest, Option<VaultError>> {
    /// What every version has.
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
    }
    let found = serde_json::from_slice::<Version>(bytes).map_err(|_| None)?.format;
    match found.cmp(&FORMAT) {
        core::cmp::Ordering::Less => Err(Some(VaultError::TooOld { found, known: FORMAT })),
        core::cmp::Ordering::Greater => Err(Some(VaultError::TooNew { found, known: FORMAT })),
        core::cmp::Ordering::Equal => serde_json::from_slice(bytes).map_err(|_| None),
    }
}

/// Writes the database. Returns its digest.
fn write_database(
    (entry, to): (&mut impl Read, &Path),
    failed: &impl Fn(io::Error) -> VaultError,
) -> Result<String, VaultError> {
    let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let mut out = out.map_err(|error| VaultError::io("creating", to, &error))?;
    let digest = seal::copy(entry, &mut out).map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => VaultError::io("writing", to, &error),
        _ => failed(error),
    })?;
    out.sync_all().map_err(|error| VaultError::io("syncing", to, &error))?;
    Ok(digest)
}
