//! A keyring of a desktop session: gnome-keyring on a private message bus.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{SOON, find, missing};
use crate::process::{Process, Spawn, until};
use crate::temp::{TempDir, temp_dir};

/// What the keyring is unlocked with.
const LOGIN: &str = "of the tests";

/// Starts no service by itself, unlike the bus of a session: what a test does not start is not there.
const BUS: &str = r#"<busconfig>
  <type>session</type>
  <listen>unix:path=SOCKET</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"#;

/// A Secret Service as a desktop has it, with its own bus and its own keyrings. Whoever uses it is a process of its own with
/// [`SecretService::variables`]. Ends with the value, and with the test process however that ends.
pub struct SecretService {
    // Ends before its bus.
    keyring: Option<Process>,
    _bus: Process,
    folder: TempDir,
    program: PathBuf,
}

impl SecretService {
    /// Starts a bus and no keyring on it; `None`, with a note, where one of them is not installed.
    ///
    /// # Errors
    /// When the bus does not start.
    ///
    /// # Panics
    /// In CI, when one of them is not installed.
    pub fn start() -> io::Result<Option<Self>> {
        let found = |program| find(program, "STVOR_KEYRING_BIN", &[]);
        let (Some(bus), Some(_), Some(program)) =
            (found("dbus-daemon"), found("dbus-send"), found("gnome-keyring-daemon"))
        else {
            missing("a keyring of a desktop session", "dbus gnome-keyring");
            return Ok(None);
        };
        let folder = temp_dir()?;
        let socket = folder.path().join("bus");
        let config = folder.path().join("bus.conf");
        std::fs::write(&config, BUS.replace("SOCKET", &socket.to_string_lossy()))?;
        let bus = Spawn::new(bus)
            .args(["--nofork", "--nopidfile", "--print-address", "--config-file"])
            .arg(&config)
            .start()?;
        bus.wait_for("unix:", SOON)?;
        Ok(Some(Self { keyring: None, _bus: bus, folder, program }))
    }

    /// Starts the keyring, unlocked as after a log-in or locked, on what it kept before.
    ///
    /// # Errors
    /// When it does not start.
    pub fn log_in(&mut self, unlocked: bool) -> io::Result<()> {
        self.log_out()?;
        let mut spawn = Spawn::new(&self.program).args(["--foreground", "--components=secrets"]).with_input();
        for (name, value) in self.variables() {
            spawn = spawn.env(name, value);
        }
        let keyring = if unlocked { spawn.arg("--unlock").start()? } else { spawn.start()? };
        if unlocked {
            keyring.write_line(LOGIN)?;
        }
        keyring.close_input();
        self.keyring = Some(keyring);
        until(SOON, || self.is_there().then_some(()))
    }

    /// Ends the keyring; the bus stays.
    ///
    /// # Errors
    /// When it does not end.
    pub fn log_out(&mut self) -> io::Result<()> {
        if let Some(keyring) = self.keyring.take() {
            keyring.kill()?;
        }
        until(SOON, || (!self.is_there()).then_some(()))
    }

    /// Whether a Secret Service is on the bus.
    fn is_there(&self) -> bool {
        let asked = Command::new("dbus-send")
            .args(["--session", "--print-reply", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus"])
            .args(["org.freedesktop.DBus.GetNameOwner", "string:org.freedesktop.secrets"])
            .envs(self.variables())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        asked.is_ok_and(|status| status.success())
    }

    /// What the environment of a process that uses it has to hold.
    #[must_use]
    pub fn variables(&self) -> [(&'static str, String); 4] {
        let folder = self.folder.path().to_string_lossy();
        [
            ("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={folder}/bus")),
            ("XDG_RUNTIME_DIR", folder.to_string()),
            ("XDG_DATA_HOME", format!("{folder}/data")),
            ("HOME", folder.into_owned()),
        ]
    }
}
