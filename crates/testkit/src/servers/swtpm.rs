//! TPMs in software.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

use super::{SOON, TRIES, find, free_port, missing};
use crate::process::{Process, Spawn, until};
use crate::temp::{TempDir, temp_dir};

/// A TPM 2.0 in software (swtpm) on two free ports of 127.0.0.1, which follow each other. Ends with the value, and with the
/// test process however that ends.
pub struct Swtpm {
    state: TempDir,
    program: PathBuf,
    port: u16,
    process: Option<Process>,
}

impl Swtpm {
    /// Starts one; `None`, with a note, where swtpm is not installed.
    ///
    /// # Errors
    /// When it does not start.
    ///
    /// # Panics
    /// In CI, when it is not installed.
    pub fn start() -> io::Result<Option<Self>> {
        let Some(program) = find("swtpm", "STVOR_SWTPM_BIN", &[]) else {
            missing("swtpm", "swtpm");
            return Ok(None);
        };
        let mut tpm = Self { state: temp_dir()?, program, port: 0, process: None };
        let mut last = io::Error::other("no two free ports");
        for _ in 0..TRIES {
            tpm.port = free_port()?;
            match tpm.restart() {
                Ok(()) => return Ok(Some(tpm)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Starts it again, as a machine that is started: registers begin anew, keys stay.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> io::Result<()> {
        drop(self.process.take());
        let control = self.port.checked_add(1).ok_or_else(|| io::Error::other("no port after this one"))?;
        TcpListener::bind(("127.0.0.1", control))?;
        let process = Spawn::new(&self.program)
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={}", self.state.path().display())])
            .args(["--server", &format!("type=tcp,bindaddr=127.0.0.1,port={}", self.port)])
            .args(["--ctrl", &format!("type=tcp,bindaddr=127.0.0.1,port={control}")])
            .start()?;
        until(SOON, || TcpStream::connect(("127.0.0.1", control)).ok())?;
        self.process = Some(process);
        Ok(())
    }

    /// Clears it: what it sealed opens no more.
    ///
    /// # Errors
    /// When it does not start again.
    pub fn clear(&mut self) -> io::Result<()> {
        drop(self.process.take());
        for entry in std::fs::read_dir(self.state.path())? {
            std::fs::remove_file(entry?.path())?;
        }
        self.restart()
    }

    /// How it is reached, as tpm2-tss writes it.
    #[must_use]
    pub fn place(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }
}
