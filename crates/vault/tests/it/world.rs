//! What the tests share: a vault in a directory that goes away, cheap keys, a clock that tests set.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stvor_crypto::SecretBytes;
use stvor_keys::{KeyHolder, Passphrase, PassphraseCost};
use stvor_vault::{Agent, Caller, Clock, Level, Moment, NewKeys, Options, Refusal, Vault, VaultError};

/// A clock that only moves when a test says so.
#[derive(Debug)]
pub(crate) struct TestClock(Mutex<Moment>);

impl TestClock {
    pub(crate) fn pass(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap();
        let mut now = self.0.lock().unwrap();
        now.wall += millis;
        now.uptime += millis;
    }

    /// Somebody sets the clock on the wall.
    pub(crate) fn set_wall(&self, wall: u64) {
        self.0.lock().unwrap().wall = wall;
    }

    /// The machine starts anew.
    pub(crate) fn reboot(&self) {
        let mut now = self.0.lock().unwrap();
        now.boot.push('+');
        now.uptime = 1_000;
    }

    pub(crate) fn wall(&self) -> u64 {
        self.0.lock().unwrap().wall
    }
}

impl Clock for TestClock {
    fn now(&self) -> Moment {
        self.0.lock().unwrap().clone()
    }
}

pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) clock: Arc<TestClock>,
}

pub(crate) fn passphrase(text: &str) -> Passphrase {
    let cost = PassphraseCost { memory_kib: 64, iterations: 1, parallelism: 1 };
    Passphrase::new(SecretBytes::from_slice(text.as_bytes())).unwrap().with_cost(cost).unwrap()
}

pub(crate) fn owner() -> Passphrase {
    passphrase("correct horse")
}

pub(crate) fn second() -> Passphrase {
    passphrase("battery staple")
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(&owner(), Some(&second()))
    }

    /// A vault with these secrets.
    pub(crate) fn with(owner: &dyn KeyHolder, vaulted: Option<&dyn KeyHolder>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let start = Moment { wall: 1_800_000_000_000, uptime: 1_000_000, boot: "first".into() };
        let world = Self { directory, clock: Arc::new(TestClock(Mutex::new(start))) };
        let keys = NewKeys { owner, vaulted, origin: "example.com/vault" };
        Vault::create(&world.path(), &keys).unwrap();
        world
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("vault")
    }

    pub(crate) fn options(&self) -> Options {
        let clock: Arc<dyn Clock> = self.clock.clone();
        Options { clock, ..Options::default() }
    }

    pub(crate) fn cold(&self) -> Vault {
        Vault::open(&self.path(), self.options()).unwrap()
    }

    pub(crate) fn open(&self) -> Vault {
        let vault = self.cold();
        vault.unlock_with(&owner()).unwrap();
        vault
    }
}

/// Enrols an agent for the namespace `home`.
pub(crate) fn agent(vault: &Vault, name: &str, highest: Level) -> Caller {
    enrol(vault, Agent::new(name, &["home"], highest))
}

/// Enrols any agent.
pub(crate) fn enrol(vault: &Vault, agent: Agent) -> Caller {
    let credential = vault.enrol(agent).unwrap();
    vault.authenticate(credential.expose()).unwrap()
}

pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T, VaultError>) -> Refusal {
    match result {
        Err(VaultError::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}
