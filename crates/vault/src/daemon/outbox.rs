//! Files that the owner's process takes from the daemon. A daemon with a user of its own can not write where the owner reads, nor
//! the owner read what it writes: so it makes sealed files in a directory of the vault's, and the owner's process copies them.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::storage::make_directory;
use crate::{Vault, VaultError, limits};

/// The directory of such files, in the vault's.
const OUTBOX: &str = "outbox";

/// The name of a file in the outbox.
fn named(vault: &Vault, name: &Path) -> Result<PathBuf, VaultError> {
    let mut parts = name.components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) => Ok(vault.path().join(OUTBOX).join(name)),
        _ => Err(VaultError::invalid(
            "a path is absolute, or the name of a file that the owner's process takes",
        )),
    }
}

/// Where files go that the owner asked for: into a directory of this machine, or, where none is named, into the outbox.
pub(super) fn directory(vault: &Vault, asked: PathBuf) -> Result<PathBuf, VaultError> {
    match asked.as_os_str().is_empty() {
        true => Ok(vault.path().join(OUTBOX)),
        false if asked.is_absolute() => Ok(asked),
        false => Err(VaultError::invalid("a directory is named by its whole path")),
    }
}

/// The same for one file. One of that name that nobody took is replaced.
pub(super) fn file(vault: &Vault, asked: PathBuf) -> Result<PathBuf, VaultError> {
    if asked.is_absolute() {
        return Ok(asked);
    }
    let path = named(vault, &asked)?;
    make_directory(&vault.path().join(OUTBOX))?;
    let _ = fs::remove_file(&path);
    Ok(path)
}

/// Bytes of a file from `offset` on, at most [`limits::MAX_FETCH`], and its size; nothing when there is no such file.
pub(super) fn fetch(vault: &Vault, name: &Path, offset: u64) -> Result<Value, VaultError> {
    let path = named(vault, name)?;
    let failed = |error: std::io::Error| VaultError::io("reading", &path, &error);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(error) => return Err(failed(error)),
    };
    let size = file.metadata().map_err(failed)?.len();
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    file.take(limits::MAX_FETCH).read_to_end(&mut bytes).map_err(failed)?;
    Ok(json!({ "size": size, "bytes": STANDARD.encode(bytes) }))
}

/// Removes a file that the owner's process keeps at `kept`. A backup is remembered there from now on.
pub(super) fn taken(vault: &Vault, name: &Path, kept: PathBuf) -> Result<(), VaultError> {
    let path = named(vault, name)?;
    let from = path.clone();
    vault.ask(move |engine| engine.backup_moved(&from, &kept)).wait()?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(VaultError::io("removing", &path, &error))
        }
        _ => Ok(()),
    }
}
