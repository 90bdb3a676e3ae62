//! The dead-man switch: memories for heirs, sealed to their age keys, that somebody else's watcher gives out when the owner has
//! not checked in for long enough.
//!
//! The watcher's directory holds a sealed package for each heir and the newest check-in, signed with a key that the watcher
//! was told. The watcher can open nothing; **an heir who can read that directory can open the own package at any time**.

use core::time::Duration;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stvor_keys::recipients::{Recipient, Sealing};
use stvor_tlog::Note;

use super::escrow::check_name;
use crate::daemon::Content;
use crate::engine::agents::Caller;
use crate::memory::MemoryId;
use crate::storage::{make_directory, write_private};
use crate::{Vault, VaultError, limits};

/// The file of the newest check-in, in the watcher's directory.
pub const CHECK_IN: &str = "check-in";
const TITLE: &str = "STVOR check-in v1";

/// Somebody who gets memories when the owner is gone.
#[derive(Debug, Clone)]
pub struct Heir {
    /// A name for people and for the package's file: letters, digits, `-` and `_`.
    pub name: String,
    /// The heir's age key.
    pub recipient: Recipient,
    /// Which memories.
    pub memories: Vec<MemoryId>,
}

/// A switch that is to be armed.
#[derive(Debug)]
pub struct NewSwitch<'a> {
    /// For how long the owner may be silent: a day to ten years.
    pub every: Duration,
    /// Who gets what.
    pub heirs: &'a [Heir],
    /// The directory that a watcher watches.
    pub directory: &'a Path,
}

/// The switch, as the vault remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchRecord {
    /// Milliseconds for which the owner may be silent; 0 when it is disarmed.
    pub every: u64,
    /// The number of the newest check-in.
    pub number: u64,
    /// When that was, in milliseconds since the Unix epoch.
    pub checked_in: u64,
    /// The watcher's directory.
    pub directory: PathBuf,
    /// Names of the heirs, each with the memories in the package.
    pub heirs: Vec<(String, Vec<MemoryId>)>,
}

/// What the owner signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckIn {
    /// Each has a higher number than the one before.
    pub number: u64,
    /// When, in milliseconds since the Unix epoch.
    pub at: u64,
    /// Milliseconds for which the owner may be silent from here on; 0 says that the switch is disarmed.
    pub every: u64,
}

impl CheckIn {
    /// The signed text.
    pub(crate) fn to_text(self, key: &str) -> String {
        format!("{TITLE}\nkey {key}\nnumber {}\nat {}\nevery {}\n", self.number, self.at, self.every)
    }

    /// Reads that text.
    pub(crate) fn parse(text: &str, key: &str) -> Result<Self, VaultError> {
        let bad = || VaultError::invalid("the check-in is not understood");
        let mut lines = text.lines();
        if lines.next() != Some(TITLE) || lines.next() != Some(format!("key {key}").as_str()) {
            return Err(bad());
        }
        let mut number = |name: &str| {
            let text = lines.next().and_then(|line| line.strip_prefix(name));
            text.and_then(|text| text.parse().ok()).ok_or_else(bad)
        };
        let check_in = Self { number: number("number ")?, at: number("at ")?, every: number("every ")? };
        if check_in.to_text(key) == text { Ok(check_in) } else { Err(bad()) }
    }
}

/// Replaces a file in one step.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), VaultError> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    let _ = fs::remove_file(&draft);
    write_private(&draft, bytes)?;
    fs::rename(&draft, path).map_err(|error| VaultError::io("naming", path, &error))
}

/// The file of an heir's package.
pub(crate) fn package(directory: &Path, heir: &str) -> PathBuf {
    directory.join(format!("heir-{heir}.age"))
}

impl Vault {
    /// Arms the switch, or makes its packages anew: each memory is recalled as the owner, through every gate, and sealed to its
    /// heir as one line of JSON. Returns the text of the key that the watcher has to be told.
    ///
    /// # Errors
    /// What a gate says of one of the memories: then nothing is armed. [`VaultError::Invalid`] for names and times.
    pub fn arm_switch(&self, new: &NewSwitch<'_>) -> Result<String, VaultError> {
        if new.every < limits::MIN_SILENCE || new.every > limits::MAX_SILENCE {
            return Err(VaultError::invalid("the owner may be silent for a day to ten years"));
        }
        if new.heirs.is_empty() || new.heirs.len() > limits::MAX_HEIRS {
            return Err(VaultError::invalid("a switch has 1 to 100 heirs"));
        }
        make_directory(new.directory)?;
        let mut packages = Vec::new();
        for (at, heir) in new.heirs.iter().enumerate() {
            check_name(&heir.name)?;
            if new.heirs.iter().take(at).any(|other| other.name == heir.name) {
                return Err(VaultError::invalid(format!("two heirs are called {}", heir.name)));
            }
            packages.push((package(new.directory, &heir.name), self.seal_package(heir)?));
        }
        for (path, sealed) in &packages {
            replace_file(path, sealed)?;
        }
        let heirs = new.heirs.iter().map(|heir| (heir.name.clone(), heir.memories.clone())).collect();
        let every = u64::try_from(new.every.as_millis()).unwrap_or(u64::MAX);
        self.set_switch(SwitchRecord {
            every,
            number: 0,
            checked_in: 0,
            directory: new.directory.into(),
            heirs,
        })
    }

    fn seal_package(&self, heir: &Heir) -> Result<Vec<u8>, VaultError> {
        let sealing = Sealing::to(vec![heir.recipient.clone()]);
        let mut writer = sealing.writer(Vec::new())?;
        let failed = |error| VaultError::io("sealing the package of", Path::new(&heir.name), &error);
        for id in &heir.memories {
            let recalled = self.recall(&Caller::Owner, *id, "for the heirs of the owner")?;
            let content = Content::of(recalled.content.expose());
            let line = serde_json::json!({ "memory": recalled.header, "content": content });
            writeln!(writer, "{line}").map_err(failed)?;
        }
        writer.finish().map_err(failed)
    }

    fn set_switch(&self, record: SwitchRecord) -> Result<String, VaultError> {
        let directory = record.directory.clone();
        let (note, verifier) = self.ask(move |engine| engine.set_switch(record)).wait()?;
        replace_file(&directory.join(CHECK_IN), note.to_string().as_bytes())?;
        Ok(verifier)
    }

    /// Tells the watcher that the owner is there. Returns the check-in as a note, for watchers on other machines.
    ///
    /// # Errors
    /// [`VaultError::Invalid`] when the switch is not armed, [`VaultError::Io`].
    pub fn check_in(&self) -> Result<Note, VaultError> {
        let (note, record) = self.ask(|engine| engine.check_in()).wait()?;
        replace_file(&record.directory.join(CHECK_IN), note.to_string().as_bytes())?;
        Ok(note)
    }

    /// Disarms the switch and removes the packages. A watcher that the last check-in does not reach goes on counting.
    ///
    /// # Errors
    /// [`VaultError::Invalid`] when it is not armed, [`VaultError::Io`].
    pub fn disarm_switch(&self) -> Result<(), VaultError> {
        let armed = self.switch()?.filter(|record| record.every > 0);
        let mut record = armed.ok_or_else(|| VaultError::invalid("the dead-man switch is not armed"))?;
        let packages: Vec<_> =
            record.heirs.drain(..).map(|(heir, _)| package(&record.directory, &heir)).collect();
        record.every = 0;
        self.set_switch(record)?;
        for path in packages.iter().filter(|path| path.exists()) {
            fs::remove_file(path).map_err(|error| VaultError::io("removing", path, &error))?;
        }
        Ok(())
    }

    /// What the switch is set to, if it was ever armed.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn switch(&self) -> Result<Option<SwitchRecord>, VaultError> {
        self.ask(|engine| engine.switch()).wait()
    }
}
