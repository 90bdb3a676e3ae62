//! The relay as a process of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use stvor_testkit::{Process, Spawn};

use crate::Outcome;

/// The app token that development relays let in.
pub const TOKEN: &str = "stvor_dev_bench";

/// How long a relay may take to listen.
const START: Duration = Duration::from_secs(30);

/// Limits that protect a relay from strangers would here only measure themselves.
const SETTINGS: &str = "\
[relay.limits]
logins_per_app = 1000000
registrations_per_app = 1000000
sends_per_device = 1000000
sends_per_app = 10000000
bytes_per_device = 1073741824
requests_per_device = 100000
one_time_per_fetcher = 100000
one_time_per_target = 100000
";

/// A running relay.
pub struct Relay {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub address: SocketAddr,
}

/// How to start one.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The `stvor` binary.
    pub binary: PathBuf,
    /// Its data directory, with its database.
    pub directory: PathBuf,
    /// Where it is to listen; port 0 for any free one.
    pub listen: SocketAddr,
    /// The only CPU that it may use, where `taskset` exists.
    pub pinned: Option<u32>,
}

impl Plan {
    /// A relay with its database in `directory`, on any free port of the loopback interface.
    #[must_use]
    pub fn new(binary: &Path, directory: &Path) -> Self {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self { binary: binary.to_owned(), directory: directory.to_owned(), listen, pinned: None }
    }

    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// When it can not be started or does not say where it listens.
    pub fn start(&self) -> Outcome<Relay> {
        std::fs::create_dir_all(&self.directory)?;
        let settings = self.directory.join("bench.toml");
        std::fs::write(&settings, SETTINGS)?;
        let pin = self.pinned.filter(|_| Path::new(TASKSET).exists());
        let spawn = match pin {
            Some(cpu) => Spawn::new(TASKSET).args(["-c", &cpu.to_string()]).arg(&self.binary),
            None => Spawn::new(&self.binary),
        };
        let process = spawn
            .name("relay")
            .args(["relay", "--dev", "--listen", &self.listen.to_string()])
            .arg("--data")
            .arg(&self.directory)
            .arg("--config")
            .arg(&settings)
            .env_remove("STVOR_TOKEN")
            .env_remove("STVOR_RELAY")
            .start()?;
        let address = process.wait_address("127.0.0.1:", START)?;
        Ok(Relay { process, address })
    }
}

const TASKSET: &str = "/usr/bin/taskset";

impl Relay {
    /// The URL for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }
}

/// A port that is free now, for a server that is to come back on the same one.
///
/// # Errors
/// When there is none.
pub fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Where cargo builds.
#[must_use]
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")), PathBuf::from)
}

/// The `stvor` binary of the release profile, brought up to date first.
///
/// # Errors
/// When it can not be built.
pub fn binary() -> Outcome<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let arguments = ["build", "--release", "--locked", "-p", "stvor-cli", "--manifest-path", manifest];
    if !Command::new(cargo).args(arguments).status()?.success() {
        return Err("stvor could not be built".into());
    }
    Ok(target_directory().join("release/stvor"))
}
