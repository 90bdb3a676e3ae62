//! The dead-man switch: memories for heirs, sealed to their age keys, that somebody else's watcher gives out when the owner has
//! not checked in for long enough.
//!
//! The watcher's directory holds a sealed package for each heir and the newest check-in, signed with a key that the watcher
//! was told. The watcher can open nothing; **an heir who can read that directory can open the own package at any time**.

use core::time::Duration;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stvor_crypto::SecretBytes;
use stvor_crypto::kdf::sha256;
use stvor_keys::recipients::{Recipient, Sealing};
use stvor_tlog::Note;

use super::escrow::check_name;
pub use super::owed::Untold;
use super::owed::known_check_in;
use crate::audit::hex;
use crate::daemon::Content;
use crate::engine::agents::Caller;
use crate::memory::MemoryId;
use crate::storage::{make_directory, write_private};
use crate::{Vault, VaultError, limits};

/// The file of the newest check-in, in the watcher's directory.
pub const CHECK_IN: &str = "check-in";
const TITLE: &str = "STVOR check-in v2";

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
    /// The heirs and their packages.
    pub heirs: Vec<HeirRecord>,
}

/// An heir, as the vault remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeirRecord {
    /// The heir's name.
    pub name: String,
    /// The memories in the package.
    pub memories: Vec<MemoryId>,
    /// SHA-256 of the package, in hexadecimal digits.
    pub package: String,
}

/// A check-in that was made.
#[derive(Debug)]
pub struct CheckedIn {
    /// The check-in as a note, for watchers on other machines.
    pub note: Note,
    /// The watcher, when it does not know of it yet, or has no package of an heir.
    pub untold: Vec<Untold>,
}

/// What the owner signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckIn {
    /// Each has a higher number than the one before.
    pub number: u64,
    /// When, in milliseconds since the Unix epoch.
    pub at: u64,
    /// Milliseconds for which the owner may be silent from here on; 0 says that the switch is disarmed.
    pub every: u64,
    /// The packages that are given out: the heir's name, and SHA-256 of the package in hexadecimal digits.
    pub packages: Vec<(String, String)>,
}

impl CheckIn {
    /// What a setting of the switch says to the watcher.
    pub(crate) fn of(record: &SwitchRecord) -> Self {
        let packages = record.heirs.iter().map(|heir| (heir.name.clone(), heir.package.clone())).collect();
        Self { number: record.number, at: record.checked_in, every: record.every, packages }
    }

    /// The signed text.
    pub(crate) fn to_text(&self, key: &str) -> String {
        let mut text =
            format!("{TITLE}\nkey {key}\nnumber {}\nat {}\nevery {}\n", self.number, self.at, self.every);
        for (heir, hash) in &self.packages {
            text.push_str("package ");
            text.push_str(heir);
            text.push(' ');
            text.push_str(hash);
            text.push('\n');
        }
        text
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
        let (number, at, every) = (number("number ")?, number("at ")?, number("every ")?);
        let package = |line: &str| {
            let (heir, hash) = line.strip_prefix("package ")?.split_once(' ')?;
            let plain = hash.len() == 64 && hash.bytes().all(|digit| digit.is_ascii_hexdigit());
            (plain && check_name(heir).is_ok()).then(|| (heir.to_owned(), hash.to_owned()))
        };
        let packages = lines.map(package).collect::<Option<Vec<_>>>().ok_or_else(bad)?;
        if packages.len() > limits::MAX_HEIRS {
            return Err(bad());
        }
        let check_in = Self { number, at, every, packages };
        if check_in.to_text(key) == text { Ok(check_in) } else { Err(bad()) }
    }
}

/// The name that a file has until it is whole.
fn draft_of(path: &Path) -> PathBuf {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    PathBuf::from(draft)
}

/// Replaces a file in one step.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), VaultError> {
    let draft = draft_of(path);
    let _ = fs::remove_file(&draft);
    write_private(&draft, bytes)?;
    fs::rename(&draft, path).map_err(|error| VaultError::io("naming", path, &error))?;
    // Some file systems know no syncing of a directory; what they can do they did.
    let directory = path.parent().map(fs::File::open);
    let _ = directory.and_then(Result::ok).map(|directory| directory.sync_all());
    Ok(())
}

/// The file of an heir's package. Its hash is part of the name: a new package takes nothing from under the check-in before.
pub(crate) fn package(directory: &Path, (heir, hash): (&str, &str)) -> PathBuf {
    directory.join(format!("heir-{heir}-{}.age", hash.get(..16).unwrap_or(hash)))
}

/// The package of an heir, if it is there as it was signed.
pub(crate) fn read_package(directory: &Path, (heir, hash): (&str, &str)) -> Option<Vec<u8>> {
    let bytes = fs::read(package(directory, (heir, hash))).ok()?;
    (hex(&sha256(&[&bytes])) == hash).then_some(bytes)
}

/// Packages that no check-in names yet. One that is written meanwhile leaves them alone; if it does not come to theirs, they go.
struct NewPackages<'a> {
    vault: &'a Vault,
    /// Each with its draft.
    paths: Vec<PathBuf>,
    named: bool,
}

impl NewPackages<'_> {
    fn write(&mut self, path: &Path, sealed: &[u8]) -> Result<(), VaultError> {
        let both = [path.to_owned(), draft_of(path)];
        self.paths.extend(both.clone());
        let begun = self.vault.ask(move |engine| {
            engine.begin_packages(both);
            Ok(())
        });
        begun.wait()?;
        replace_file(path, sealed)
    }
}

impl Drop for NewPackages<'_> {
    fn drop(&mut self) {
        let paths = core::mem::take(&mut self.paths);
        if !self.named {
            for path in &paths {
                let _ = fs::remove_file(path);
            }
        }
        // Of a vault that was closed meanwhile nothing is left to be told.
        let ended = self.vault.ask(move |engine| {
            engine.end_packages(&paths);
            Ok(())
        });
        let _ = ended.wait();
    }
}

impl Vault {
    /// Arms the switch, or makes its packages anew: each memory is recalled once as the owner, through every gate, and sealed
    /// to its heirs as one line of JSON. Packages of heirs that are not named any more are removed. A watcher of another
    /// directory is told to stop. Returns the text of the key that the watcher has to be told; [`Vault::untold_watchers`] says
    /// which watchers do not know yet.
    ///
    /// # Errors
    /// What a gate says of one of the memories: then nothing is armed; [`crate::Refusal::NotExportable`] for one of a profile
    /// that keeps its memories in the vault. [`VaultError::Invalid`] for names and times.
    pub fn arm_switch(&self, new: &NewSwitch<'_>) -> Result<String, VaultError> {
        if new.every < limits::MIN_SILENCE || new.every > limits::MAX_SILENCE {
            return Err(VaultError::invalid("the owner may be silent for a day to ten years"));
        }
        if new.heirs.is_empty() || new.heirs.len() > limits::MAX_HEIRS {
            return Err(VaultError::invalid("a switch has 1 to 100 heirs"));
        }
        for (at, heir) in new.heirs.iter().enumerate() {
            check_name(&heir.name)?;
            if new.heirs.iter().take(at).any(|other| other.name == heir.name) {
                return Err(VaultError::invalid(format!("two heirs are called {}", heir.name)));
            }
        }
        make_directory(new.directory)?;
        // A recall may begin a pause or use a token up: one of each memory serves all heirs.
        let mut lines = HashMap::new();
        for id in new.heirs.iter().flat_map(|heir| &heir.memories) {
            if let Entry::Vacant(place) = lines.entry(*id) {
                place.insert(self.line_for_heirs(*id)?);
            }
        }
        let mut packages = NewPackages { vault: self, paths: Vec::new(), named: false };
        let mut heirs = Vec::new();
        for heir in new.heirs {
            let sealed = seal_package(heir, &lines)?;
            let hash = hex(&sha256(&[&sealed]));
            packages.write(&package(new.directory, (&heir.name, &hash)), &sealed)?;
            heirs.push(HeirRecord {
                name: heir.name.clone(),
                memories: heir.memories.clone(),
                package: hash,
            });
        }
        let every = u64::try_from(new.every.as_millis()).unwrap_or(u64::MAX);
        let set = self.set_switch(SwitchRecord {
            every,
            number: 0,
            checked_in: 0,
            directory: new.directory.into(),
            heirs,
        });
        // Of a vault that was closed meanwhile nobody knows what it decided.
        packages.named = matches!(set, Ok(_) | Err(VaultError::Closed));
        set
    }

    fn line_for_heirs(&self, id: MemoryId) -> Result<SecretBytes, VaultError> {
        self.ask(move |engine| engine.may_leave(id)).wait()?;
        let recalled = self.recall(&Caller::Owner, id, "for the heirs of the owner")?;
        let content = Content::of(recalled.content.expose());
        let line = serde_json::json!({ "memory": recalled.header, "content": content });
        Ok(SecretBytes::from(format!("{line}\n").into_bytes()))
    }

    fn set_switch(&self, record: SwitchRecord) -> Result<String, VaultError> {
        let before = self.switch()?.map(|before| before.directory);
        let seen: Vec<_> =
            before.iter().chain([&record.directory]).map(|directory| known_check_in(directory)).collect();
        self.ask(move |engine| engine.set_switch(record, &seen)).wait()
    }

    /// Tells the watcher that the owner is there. Returns the check-in as a note, for watchers on other machines.
    ///
    /// # Errors
    /// [`VaultError::Unknown`] when the switch is not armed; [`VaultError::WatcherNotTold`] when the check-in could not be
    /// written: the vault writes it when it can; [`VaultError::PackageMissing`] when it is written, and an heir would get nothing.
    /// [`Vault::make_check_in`] gives the note then, too.
    pub fn check_in(&self) -> Result<Note, VaultError> {
        let CheckedIn { note, untold } = self.make_check_in()?;
        match untold.into_iter().next() {
            Some(untold) => Err(untold.into()),
            None => Ok(note),
        }
    }

    /// Does what [`Vault::check_in`] does. Returns the check-in also when its watcher does not know of it, or an heir would get
    /// nothing: other watchers do not count the owner's silence because of that.
    ///
    /// # Errors
    /// [`VaultError::Unknown`] when the switch is not armed.
    pub fn make_check_in(&self) -> Result<CheckedIn, VaultError> {
        let directory = self.switch()?.map(|record| record.directory);
        let seen: Vec<_> = directory.iter().map(|directory| known_check_in(directory)).collect();
        let note = self.ask(move |engine| engine.check_in(&seen)).wait()?;
        let mut untold = self.untold_watchers()?;
        untold.retain(|untold| Some(&untold.directory) == directory.as_ref());
        if let (true, Some(directory)) = (untold.is_empty(), directory) {
            let without = self.heirs_without_package()?.into_iter();
            untold.extend(without.map(|heir| Untold::without(heir, directory.clone())));
        }
        Ok(CheckedIn { note, untold })
    }

    /// Heirs whose package is not in the watcher's directory as it was signed: it was removed, or changed, or the vault came back
    /// from a backup of before the switch was armed. Nothing is said of a directory that is away. Reads every package.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn heirs_without_package(&self) -> Result<Vec<String>, VaultError> {
        loop {
            let armed = self.switch()?.filter(|record| record.every > 0);
            let Some(record) = armed.filter(|record| record.directory.join(CHECK_IN).is_file()) else {
                return Ok(Vec::new());
            };
            let without =
                |heir: &&HeirRecord| read_package(&record.directory, (&heir.name, &heir.package)).is_none();
            let without: Vec<_> = record.heirs.iter().filter(without).map(|heir| heir.name.clone()).collect();
            // Who arms it anew meanwhile takes away what was named when this began.
            if without.is_empty() || self.switch()?.is_some_and(|now| now.heirs == record.heirs) {
                return Ok(without);
            }
        }
    }

    /// Disarms the switch and removes the packages. A watcher that the last check-in does not reach goes on counting: until
    /// it is there the vault tries again, and this can be asked for again.
    ///
    /// # Errors
    /// [`VaultError::Invalid`] when it was never armed; [`VaultError::WatcherNotTold`] while a watcher is not told.
    pub fn disarm_switch(&self) -> Result<(), VaultError> {
        let known = self.switch()?;
        let mut record = known.ok_or_else(|| VaultError::invalid("the dead-man switch was never armed"))?;
        record.heirs.clear();
        record.every = 0;
        self.set_switch(record)?;
        self.told(|_| true)
    }

    /// Fails when one of the watchers that `which` picks is not told.
    fn told(&self, which: impl Fn(&Untold) -> bool) -> Result<(), VaultError> {
        match self.untold_watchers()?.into_iter().find(which) {
            Some(untold) => Err(untold.into()),
            None => Ok(()),
        }
    }

    /// Watchers that do not know what was decided last: their directory could not be written. The vault tries again every
    /// second while it holds its keys.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn untold_watchers(&self) -> Result<Vec<Untold>, VaultError> {
        loop {
            // Asked in the group that decides on something, nobody is told yet; the answer comes after it.
            let (untold, telling) = self.ask(|engine| Ok((engine.untold()?, engine.is_telling()))).wait()?;
            if !telling {
                return Ok(untold);
            }
        }
    }

    /// Gives up to tell a watcher whose directory is gone for good. One that still has it goes on as before.
    ///
    /// # Errors
    /// [`VaultError::Invalid`] when nothing is owed to this directory; [`VaultError::LogUnavailable`].
    pub fn give_up_watcher(&self, directory: &Path) -> Result<(), VaultError> {
        let directory = directory.to_owned();
        self.ask(move |engine| engine.give_up_watcher(&directory)).wait()
    }

    /// Heirs whose packages hold a memory, also packages that could not be removed yet. Forgetting it takes it out of none of
    /// them; arming the switch anew does.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn heirs_with(&self, id: MemoryId) -> Result<Vec<String>, VaultError> {
        self.ask(move |engine| engine.heirs_with(id)).wait()
    }

    /// What the switch is set to, if it was ever armed.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn switch(&self) -> Result<Option<SwitchRecord>, VaultError> {
        self.ask(|engine| engine.switch()).wait()
    }
}

fn seal_package(heir: &Heir, lines: &HashMap<MemoryId, SecretBytes>) -> Result<Vec<u8>, VaultError> {
    let sealing = Sealing::to(vec![heir.recipient.clone()]);
    let mut writer = sealing.writer(Vec::new())?;
    let failed = |error| VaultError::io("sealing the package of", Path::new(&heir.name), &error);
    for line in heir.memories.iter().filter_map(|id| lines.get(id)) {
        writer.write_all(line.expose()).map_err(failed)?;
    }
    writer.finish().map_err(failed)
}
