//! A file with 32 random bytes, readable by its owner only.

use crate::{DataKey, HolderKind, KeyError, KeyHolder, WrappedKey, limits};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use stvor_crypto::{Random, Secret};

/// What stands between the name of a keyfile and 16 random digits in the name of its draft. A crash while a keyfile is
/// made can leave a draft, which is of no use to anybody but may hold the key.
pub const KEYFILE_DRAFT: &str = ".new-";

/// A keyfile that was read.
#[derive(Debug)]
pub struct Keyfile {
    path: PathBuf,
    key: Secret<32>,
}

impl Keyfile {
    /// Makes a keyfile of 32 fresh random bytes with mode 0600. When this returns, the file survives a power cut; at no
    /// time is there a file at `path` with other contents.
    ///
    /// # Errors
    /// [`KeyError::Exists`] when something is at `path`, which stays as it is; [`KeyError::Io`], [`KeyError::Full`],
    /// [`KeyError::Crypto`].
    pub fn create(path: &Path, rng: &mut dyn Random) -> Result<Self, KeyError> {
        let key = Secret::random(rng)?;
        let mut suffix = [0; 8];
        rng.fill(&mut suffix)?;
        let mut name = path.as_os_str().to_owned();
        name.push(format!("{KEYFILE_DRAFT}{:016x}", u64::from_be_bytes(suffix)));
        let draft = PathBuf::from(name);
        let done = write_draft(&draft, &key)
            // A hard link, unlike a rename, never replaces what is there.
            .and_then(|()| fs::hard_link(&draft, path).map_err(|error| KeyError::io("naming", path, &error)))
            .and_then(|()| sync_directory(path));
        let _ = fs::remove_file(&draft);
        done.map(|()| Self { path: path.to_owned(), key })
    }

    /// Reads a keyfile.
    ///
    /// # Errors
    /// [`KeyError::Missing`]; [`KeyError::Permissions`] when group or others have any access to it;
    /// [`KeyError::Malformed`] when it is not a file of exactly 32 bytes; [`KeyError::Io`].
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let malformed = |reason| KeyError::Malformed { holder: "keyfile", reason };
        let kind = fs::metadata(path).map_err(|error| KeyError::io("reading", path, &error))?;
        // Before opening: opening a pipe would wait for its writer.
        if !kind.is_file() {
            return Err(malformed("it is not a regular file"));
        }
        let mut file = File::open(path).map_err(|error| KeyError::io("opening", path, &error))?;
        refuse_shared(&file, path)?;
        let mut key = Secret::<32>::zeroed();
        match file.read_exact(key.expose_mut()) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(malformed("it is shorter than 32 bytes"));
            }
            Err(error) => return Err(KeyError::io("reading", path, &error)),
        }
        let more = file.read(&mut [0; 1]).map_err(|error| KeyError::io("reading", path, &error))?;
        if more != 0 {
            return Err(malformed("it is longer than 32 bytes"));
        }
        Ok(Self { path: path.to_owned(), key })
    }

    /// The key, for who makes something else of it.
    pub(crate) fn into_key(self) -> Secret<32> {
        self.key
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn write_draft(draft: &Path, key: &Secret<{ limits::KEY_BYTES }>) -> Result<(), KeyError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut file = options.open(draft).map_err(|error| KeyError::io("creating", draft, &error))?;
    file.write_all(key.expose()).map_err(|error| KeyError::io("writing", draft, &error))?;
    file.sync_all().map_err(|error| KeyError::io("syncing", draft, &error))
}

/// The name itself must survive a power cut.
fn sync_directory(path: &Path) -> Result<(), KeyError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if cfg!(unix) {
        let synced = File::open(parent).and_then(|directory| directory.sync_all());
        synced.map_err(|error| KeyError::io("syncing the directory of", path, &error))?;
    }
    Ok(())
}

#[cfg(unix)]
fn refuse_shared(file: &File, path: &Path) -> Result<(), KeyError> {
    use std::os::unix::fs::PermissionsExt;
    let about = file.metadata().map_err(|error| KeyError::io("reading", path, &error))?;
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Permissions { path: path.to_owned(), mode });
    }
    Ok(())
}

#[cfg(not(unix))]
fn refuse_shared(_: &File, _: &Path) -> Result<(), KeyError> {
    Ok(())
}

impl KeyHolder for Keyfile {
    fn kind(&self) -> HolderKind {
        HolderKind::Keyfile
    }

    fn wrap(&self, data_key: &DataKey, context: &[u8], rng: &mut dyn Random) -> Result<WrappedKey, KeyError> {
        WrappedKey::seal((self.kind(), &[]), &self.key, (data_key, context), rng)
    }

    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<DataKey, KeyError> {
        if !wrapped.parameters_for(self.kind())?.is_empty() {
            return Err(KeyError::Corrupt("a keyfile has no parameters"));
        }
        wrapped.open(&self.key, context)
    }
}
