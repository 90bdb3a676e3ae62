//! Relays to test: in this process, or in one of their own that can be killed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use stvor_relay::{Config, Handle, Relay};
use stvor_testkit::temp::TempDir;
use stvor_testkit::{Process, Spawn, temp_dir};
use stvor_wire::url::RelayUrl;

use super::client::{Client, Login};
use super::http::{self, Answer};
use super::raw::Raw;
use super::user::User;
use super::{SOON, soon};

/// Where a relay is.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) address: SocketAddr,
    pub(crate) url: RelayUrl,
}

impl Place {
    pub(crate) fn of(address: SocketAddr) -> Self {
        Self { address, url: format!("ws://{address}").parse().unwrap() }
    }
}

/// A relay in this process, on a port of its own.
pub(crate) struct Server {
    pub(crate) place: Place,
    pub(crate) config: Config,
    pub(crate) handle: Handle,
    pub(crate) directory: Option<TempDir>,
}

impl Server {
    /// A development relay in memory.
    pub(crate) async fn memory() -> Self {
        Self::memory_with(|_| {}).await
    }

    /// A development relay in memory, configured otherwise.
    pub(crate) async fn memory_with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::mock(0);
        change(&mut config);
        Self::start(config, None).await
    }

    /// A durable relay that also lets the tests' development token in.
    pub(crate) async fn durable() -> Self {
        Self::durable_with(|_| {}).await
    }

    /// A durable relay, configured otherwise.
    pub(crate) async fn durable_with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = temp_dir().unwrap();
        let mut config = durable(directory.path());
        change(&mut config);
        Self::start(config, Some(directory)).await
    }

    async fn start(config: Config, directory: Option<TempDir>) -> Self {
        let handle = soon("start", Relay::start(config.clone())).await.unwrap();
        Self { place: Place::of(handle.local_addr()), config, handle, directory }
    }

    /// Stops it in good order and starts it again on the same database, on another port.
    pub(crate) async fn restart(self) -> Self {
        self.restart_with(|_| {}).await
    }

    /// As [`Server::restart`], configured otherwise.
    pub(crate) async fn restart_with(self, change: impl FnOnce(&mut Config)) -> Self {
        let Self { mut config, handle, directory, .. } = self;
        soon("shutdown", handle.shutdown()).await;
        change(&mut config);
        Self::start(config, directory).await
    }

    /// The database file.
    pub(crate) fn database(&self) -> PathBuf {
        self.config.database.clone().unwrap()
    }

    /// A log-in of a user's first device.
    pub(crate) fn login<'a>(&self, user: &'a User) -> Login<'a> {
        Login::new(&self.place, user)
    }

    /// A new user of the tests' app, logged in.
    pub(crate) async fn user(&self, name: &str) -> (User, Client) {
        let user = User::new(name);
        let client = self.login(&user).open().await;
        (user, client)
    }

    /// An open socket.
    pub(crate) async fn raw(&self) -> Raw {
        Raw::open(&self.place).await
    }

    /// GET on the clients' port.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        http::get(self.place.address, path).await
    }
}

fn durable(directory: &Path) -> Config {
    Config { development: true, ..Config::durable(directory.join("relay.db"), 0) }
}

/// A relay in a process of its own: the running test binary, started again with one test that serves.
pub(crate) mod process {
    use super::*;

    const DATABASE: &str = "STVOR_RELAY_UNDER_TEST";

    /// The test that every file with kills has: a relay for its child processes.
    ///
    /// Called by a test named `name`. In a child it serves until it is killed; otherwise it starts such a child and
    /// sees that it serves.
    pub(crate) async fn serve_or_check(name: &str) {
        if let Some(directory) = std::env::var_os(DATABASE) {
            let handle = Relay::start(durable(Path::new(&directory))).await.unwrap();
            println!("listening on {}", handle.local_addr());
            core::future::pending::<()>().await;
        }
        let directory = temp_dir().unwrap();
        let child = Child::start(name, directory.path());
        let answer = http::get(child.place.address, "/livez").await;
        assert_eq!(answer.status, 200);
        child.kill();
    }

    /// A running child.
    pub(crate) struct Child {
        pub(crate) place: Place,
        process: Process,
    }

    impl Child {
        /// Starts a relay on the database in a directory.
        pub(crate) fn start(name: &str, directory: &Path) -> Self {
            let process = Spawn::new(std::env::current_exe().unwrap())
                .name("relay")
                .args(["--exact", name, "--nocapture"])
                .env(DATABASE, directory)
                .start()
                .unwrap();
            let address = process.wait_address("listening on", SOON).unwrap();
            Self { place: Place::of(address), process }
        }

        /// As [`Child::start`], on a file system that has room for files of this many bytes only.
        pub(crate) fn start_cramped(name: &str, directory: &Path, bytes: u64) -> Self {
            // The shell counts in blocks of 512 bytes. Without the trap the kernel would end the process.
            let limit = format!("trap '' XFSZ; ulimit -S -f {}; exec \"$0\" \"$@\"", bytes / 512);
            let process = Spawn::new("/bin/sh")
                .name("relay")
                .args(["-c", &limit])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture"])
                .env(DATABASE, directory)
                .start()
                .unwrap();
            let address = process.wait_address("listening on", SOON).unwrap();
            Self { place: Place::of(address), process }
        }

        /// There is room again.
        pub(crate) fn make_room(&self) {
            self.allow(None);
        }

        /// From here on a file may have this many bytes; without a number, any.
        pub(crate) fn allow(&self, bytes: Option<u64>) {
            let pid = i32::try_from(self.process.pid()).ok().and_then(rustix::process::Pid::from_raw);
            let limit = rustix::process::Rlimit { current: bytes, maximum: None };
            rustix::process::prlimit(pid, rustix::process::Resource::Fsize, limit).unwrap();
        }

        /// Kills it between two instructions.
        pub(crate) fn kill(self) {
            self.process.kill().unwrap();
        }
    }
}
