//! Where a client keeps its things: `<directory>/<relay and app>/<user>/`, so that `bob` at one relay and `bob` at
//! another, or in another app, never meet.

use std::path::{Path, PathBuf};

use etcetera::BaseStrategy as _;
use stvor_base::{AppId, UserId};
use stvor_store::{STORE_FILE, StorePlace};
use stvor_wire::url::RelayUrl;

use crate::config::Storage;
use crate::error::{Error, Result};

/// The file in a user's directory that says whose it is.
const USER_FILE: &str = "user";

/// The relay, and the directory of the app at this relay (`None`: in memory).
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) relay: RelayUrl,
    pub(crate) directory: Option<PathBuf>,
}

impl Place {
    pub(crate) fn new(storage: Storage, relay: RelayUrl, app: &AppId) -> Result<Self> {
        let root = match storage {
            Storage::Memory => None,
            Storage::Directory(directory) => Some(directory),
            Storage::Default => Some(default_directory()?),
        };
        let directory = root.map(|root| {
            let origin = relay.origin();
            let host = slug(&format!("{}-{}", relay.host(), relay.port()));
            root.join(format!(
                "{host}-{}-{}",
                slug(app.as_str()),
                short_hash(&[origin.as_str(), app.as_str()])
            ))
        });
        Ok(Self { relay, directory })
    }

    /// Whose rows the store of a user holds, with the directory that [`Place::make`] made.
    pub(crate) fn of_store(&self, app: &AppId, user: &UserId, directory: Option<&PathBuf>) -> StorePlace {
        let place = StorePlace::new(self.relay.origin(), app.as_str(), user.as_str());
        match directory {
            Some(directory) => place.in_directory(directory),
            None => place,
        }
    }

    /// The directory of a user.
    pub(crate) fn of_user(&self, user: &UserId) -> Option<PathBuf> {
        let directory = self.directory.as_ref()?;
        Some(directory.join(name_of(user)))
    }

    /// Makes the directory of a user, readable by its owner only.
    pub(crate) fn make(&self, user: &UserId) -> Result<Option<PathBuf>> {
        let Some(directory) = self.of_user(user) else { return Ok(None) };
        let failed = |error: std::io::Error| {
            Error::config(format!("the data directory {} can not be made: {error}", directory.display()))
        };
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&directory).map_err(failed)?;
        let name = directory.join(USER_FILE);
        if !name.exists() {
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create(true).truncate(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let file = options.open(&name);
            file.and_then(|mut file| std::io::Write::write_all(&mut file, user.as_str().as_bytes()))
                .map_err(failed)?;
        }
        // One name for one directory, whatever links or dots the path holds: the registry of open clients needs it.
        directory.canonicalize().map(Some).map_err(failed)
    }

    /// The users that have a directory here.
    pub(crate) fn users(&self) -> Vec<UserId> {
        let Some(directory) = &self.directory else { return Vec::new() };
        let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
        let mut users: Vec<UserId> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let user = UserId::new(&std::fs::read_to_string(path.join(USER_FILE)).ok()?).ok()?;
                path.join(STORE_FILE).exists().then_some(user)
            })
            .collect();
        users.sort();
        users
    }
}

/// Removes a user's directory after the account is gone.
pub(crate) fn remove(directory: &Path) -> Result<()> {
    std::fs::remove_dir_all(directory)
        .map_err(|error| Error::config(format!("{} can not be removed: {error}", directory.display())))
}

/// A name for files and directories of a user.
pub(crate) fn name_of(user: &UserId) -> String {
    format!("{}-{}", slug(user.as_str()), short_hash(&[user.as_str()]))
}

fn default_directory() -> Result<PathBuf> {
    let strategy = etcetera::choose_base_strategy().map_err(|_| {
        Error::config("there is no home directory: name a directory for the data, or keep it in memory")
    })?;
    Ok(strategy.data_dir().join("stvor"))
}

/// What every file system takes as a name; the hash beside it keeps different names apart.
fn slug(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '_' };
    let slug: String = name.chars().map(plain).take(32).collect();
    let trimmed = slug.trim_matches('.');
    if trimmed.is_empty() { "_".to_owned() } else { trimmed.to_owned() }
}

fn short_hash(parts: &[&str]) -> String {
    let mut input = Vec::new();
    for part in parts {
        input.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        input.extend_from_slice(part.as_bytes());
    }
    let hash = stvor_crypto::kdf::sha256(&[b"STVOR data directory", &input]);
    hash.iter().take(8).fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str, app: &str) -> Place {
        let storage = Storage::Directory("/data".into());
        Place::new(storage, url.parse().unwrap(), &AppId::new(app).unwrap()).unwrap()
    }

    fn of(url: &str, app: &str, user: &str) -> PathBuf {
        place(url, app).of_user(&UserId::new(user).unwrap()).unwrap()
    }

    #[test]
    fn relays_apps_and_users_never_share_a_directory() {
        let base = of("ws://localhost:4444", "app", "bob");
        for other in [
            of("ws://localhost:4445", "app", "bob"),
            of("wss://localhost:4444", "app", "bob"),
            of("ws://localhost:4444", "app2", "bob"),
            of("ws://localhost:4444", "APP", "bob"),
            of("ws://localhost:4444", "app", "Bob"),
            of("ws://localhost:4444", "app", "b_b"),
        ] {
            assert_ne!(base, other);
        }
        assert_eq!(base, of("http://LOCALHOST:4444/", "app", "bob"));
    }

    #[test]
    fn hostile_names_stay_inside() {
        for user in ["..", ".", "../../etc", "a/b", "a\\b", "名前", "con"] {
            let path = of("ws://localhost:4444", "app", user);
            assert!(path.starts_with("/data"), "{}", path.display());
            assert_eq!(path.components().count(), 4, "{}", path.display());
        }
    }

    #[test]
    fn a_made_directory_is_private_and_is_listed_once_it_holds_a_store() {
        let root = tempfile::tempdir().unwrap();
        let storage = Storage::Directory(root.path().join("deep"));
        let place =
            Place::new(storage, "ws://localhost:1".parse().unwrap(), &AppId::new("app").unwrap()).unwrap();
        let user = UserId::new("alice@example.com").unwrap();
        let directory = place.make(&user).unwrap().unwrap();
        assert!(place.users().is_empty());
        std::fs::write(directory.join(STORE_FILE), b"").unwrap();
        assert_eq!(place.users(), vec![user]);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(directory.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        }
    }
}
