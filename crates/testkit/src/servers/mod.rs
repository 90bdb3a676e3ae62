//! Real database servers of a test's own: on free ports of loopback and on sockets in short directories, ended with the
//! test, never a service of the system.

mod full_disk;
mod kmip;
mod postgres;
mod redis;
mod secret_service;
mod softhsm;
mod swtpm;

pub use kmip::{Kmip, kmip_certificates};
pub use postgres::{Database, Postgres};
pub use redis::{Promotion, Redis, RedisCluster, RedisPair, RedisSettings};
pub use secret_service::SecretService;
pub use softhsm::SoftHsm;
pub use swtpm::Swtpm;

use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a server may take to start or to end.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// How often a server is started on another port when somebody else was faster at taking one.
const TRIES: usize = 5;

/// What is to be done about a server that is not installed: nothing but a note, except in CI, where it is a failure.
///
/// # Panics
/// When `CI` is `true`: there `./x` has installed every server.
#[allow(clippy::panic, reason = "a test that could not run must not pass in CI")]
pub fn missing(what: &str, package: &str) {
    let line = format!(
        "{what} is not installed: apt-get install {package}, or run `./x setup-servers` and `./x setup-keys`"
    );
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{line}");
    eprintln!("skipped: {line}");
}

/// A port that nobody listens on. Somebody may take it before it is used, so callers try again.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The first of these programs that is there: in the folder that `variable` names, on the path, or in `folders`.
fn find(program: &str, variable: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let places = named.into_iter().chain(on_path).chain(folders.iter().cloned());
    places.map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// The numbers of a user and group to run a server as that refuses root; `None` when we are not root.
fn other_user() -> io::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd")?;
    let found = ["postgres", "nobody"].iter().find_map(|name| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    found.map(Some).ok_or_else(|| io::Error::other("neither `postgres` nor `nobody` is a user here"))
}

/// Gives a directory to the user that the server runs as.
fn give(path: &Path, user: Option<(u32, u32)>) -> io::Result<()> {
    match user {
        Some((uid, gid)) => std::os::unix::fs::chown(path, Some(uid), Some(gid)),
        None => Ok(()),
    }
}
