//! A PKCS #11 token in software: SoftHSM2.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::temp::{TempDir, temp_dir};

const MODULES: [&str; 5] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

/// A token with the label [`SoftHsm::TOKEN`] in a directory of its own. The module finds it by a variable that it reads when it is
/// loaded, so whoever uses the token is a process of its own with [`SoftHsm::variable`].
#[derive(Debug)]
pub struct SoftHsm {
    directory: TempDir,
    module: PathBuf,
}

impl SoftHsm {
    /// The token's label.
    pub const TOKEN: &str = "stvor";
    /// The PIN of its user.
    pub const PIN: &str = "1234";

    /// Makes a token; `None` where SoftHSM2 is not installed.
    ///
    /// # Errors
    /// When the directory or the token can not be made.
    ///
    /// # Panics
    /// In CI, when it is not installed.
    pub fn new() -> io::Result<Option<Self>> {
        let Some(module) = MODULES.iter().map(PathBuf::from).find(|path| path.exists()) else {
            super::missing("SoftHSM2", "softhsm2");
            return Ok(None);
        };
        let directory = temp_dir()?;
        let tokens = directory.path().join("tokens");
        std::fs::create_dir(&tokens)?;
        let config = format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display());
        std::fs::write(directory.path().join("softhsm2.conf"), config)?;
        let token = Self { directory, module };
        token.tool(&[
            "--init-token",
            "--free",
            "--label",
            Self::TOKEN,
            "--pin",
            Self::PIN,
            "--so-pin",
            "5678",
        ])?;
        Ok(Some(token))
    }

    /// The module to load.
    #[must_use]
    pub fn module(&self) -> &Path {
        &self.module
    }

    /// What the environment of a process that uses the token has to hold.
    #[must_use]
    pub fn variable(&self) -> (&'static str, PathBuf) {
        ("SOFTHSM2_CONF", self.directory.path().join("softhsm2.conf"))
    }

    /// Puts an AES key of 256 bits into the token.
    ///
    /// # Errors
    /// When the tool refuses.
    pub fn add_key(&self, label: &str) -> io::Result<()> {
        let file = self.directory.path().join("key");
        let seed = format!("{label} {:?}", std::time::SystemTime::now());
        // The tool ends a key early at some bytes (zero is one), so it is text.
        let text: String =
            stvor_crypto::kdf::sha256(&[seed.as_bytes()])[..16].iter().map(|b| format!("{b:02x}")).collect();
        std::fs::write(&file, text)?;
        let id = format!("{:02x}", label.len());
        let file = file.to_string_lossy();
        self.tool(&[
            "--import",
            &file,
            "--aes",
            "--token",
            Self::TOKEN,
            "--label",
            label,
            "--id",
            &id,
            "--pin",
            Self::PIN,
        ])
    }

    fn tool(&self, arguments: &[&str]) -> io::Result<()> {
        let (name, value) = self.variable();
        let ended = Command::new("softhsm2-util").env(name, value).args(arguments).output()?;
        if ended.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("softhsm2-util: {}", String::from_utf8_lossy(&ended.stderr))))
    }
}
