//! Escrow, recovery and the dead-man switch, as far as the vault's keys and log have a part in them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use stvor_base::ErrorCode as _;
use stvor_crypto::Secret;
use stvor_keys::KeyHolder;
use stvor_tlog::{Note, Signer};

use super::Engine;
use super::agents::OWNER;
use crate::audit::{Event, Operation};
use crate::keys::{BaseKeys, RootKey, SLOT_VAULTED, SessionKeys, black_slot, rewrap_owner, rewrap_vaulted};
use crate::memory::MemoryId;
use crate::metrics::Alert;
use crate::recovery::escrow::{EscrowRecord, NewSecrets, NewShares};
use crate::recovery::owed::{Owed, number};
use crate::recovery::switch::{CheckIn, SwitchRecord, Untold};
use crate::{VaultError, limits};

const ESCROWS: &str = "escrows";
const SWITCH: &str = "switch";
const SWITCH_KEY: &str = "switch/key";
const OWED: &str = "switch/owed";

/// How far the watchers are told.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    /// Something new is owed.
    pub(super) due: bool,
    /// What was told, and is still in the database as owed.
    pub(super) told: Vec<(PathBuf, u64)>,
    /// Directories that could not be written when that was last tried, and why.
    failed: HashMap<PathBuf, VaultError>,
    /// Packages that are being written, which no check-in names yet.
    arming: Vec<PathBuf>,
}

/// The name that a set of shares has in place of a token's.
pub(super) fn escrow_name(set: &str) -> String {
    format!("escrow-{set}")
}

impl Engine {
    /// Whether this is the root key.
    pub(crate) fn opens_with(&self, root: &RootKey) -> Result<bool, VaultError> {
        Ok(BaseKeys::open(root, &self.database.slots()?).is_ok())
    }

    /// Whether this is the key of level 4.
    pub(crate) fn opens_level_4(&self, vaulted: &Secret<32>) -> Result<bool, VaultError> {
        Ok(SessionKeys::default().open_vaulted(vaulted, &self.database.slots()?).is_ok())
    }

    /// Logs and remembers a set of shares, once the keys in it are found to be those of this vault. With level 5 in it, its
    /// wrapped key comes in the same transaction, and those of older sets go.
    pub(crate) fn escrow(&mut self, shares: NewShares) -> Result<EscrowRecord, VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::Escrow);
        self.audited(event, |engine, event| {
            engine.drop_stale_token();
            let private = shares.black.is_some().then(|| engine.black_private()).transpose()?;
            engine.put_escrow(shares, private.as_ref(), event)
        })
    }

    /// The same, as a part of another operation. `private` is the key of level 5.
    pub(super) fn put_escrow(
        &mut self,
        shares: NewShares,
        private: Option<&Secret<32>>,
        event: &mut Event,
    ) -> Result<EscrowRecord, VaultError> {
        let slots = self.database.slots()?;
        BaseKeys::open(&shares.root, &slots)?;
        if let Some(vaulted) = &shares.vaulted {
            SessionKeys::default().open_vaulted(vaulted, &slots)?;
        }
        let mut record = shares.record;
        record.made = event.at.wall;
        event.text = Some(record.set.clone());
        event.count = Some(record.keepers.len() as u64);
        let mut all = self.escrows()?;
        if let Some((black, private)) = shares.black.as_ref().zip(private) {
            for old in all.iter_mut().filter(|old| old.black) {
                self.database.remove_slot(&black_slot(&escrow_name(&old.set)))?;
                old.black = false;
            }
            self.wrap_black((&escrow_name(&record.set), black), private)?;
        }
        all.push(record.clone());
        self.put_sealed_slot(ESCROWS, &all)?;
        Ok(record)
    }

    /// Whether the private key of level 5 is wrapped for shares too.
    pub(super) fn black_escrowed(&self) -> Result<bool, VaultError> {
        for record in self.escrows()?.iter().filter(|record| record.black) {
            if self.database.slot(&black_slot(&escrow_name(&record.set)))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Refuses to end all sets of shares while level 5 counts on one.
    pub(super) fn shares_may_end(&self) -> Result<(), VaultError> {
        if self.black_escrowed()? && self.tokens()?.len() < 2 {
            return Err(VaultError::invalid(
                "the shares of an escrow end with the old root key, and level 5 would be left with one token; enrol another one first",
            ));
        }
        Ok(())
    }

    /// Forgets the sets of shares, whose root key is not that of the vault any more: they open nothing, and must not count as a
    /// way into level 5.
    pub(super) fn drop_escrows(&mut self) -> Result<(), VaultError> {
        let all = self.escrows()?;
        for old in all.iter().filter(|old| old.black) {
            self.database.remove_slot(&black_slot(&escrow_name(&old.set)))?;
        }
        if all.is_empty() { Ok(()) } else { self.put_sealed_slot(ESCROWS, &Vec::<EscrowRecord>::new()) }
    }

    pub(crate) fn escrows(&self) -> Result<Vec<EscrowRecord>, VaultError> {
        self.sealed_slot(ESCROWS).map(Option::unwrap_or_default)
    }

    /// Wraps the owner's keys for new secrets.
    pub(crate) fn recover<H: KeyHolder>(
        &mut self,
        (root, vaulted): (&RootKey, Option<&Secret<32>>),
        secrets: &NewSecrets<H>,
    ) -> Result<(), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::Recover);
        self.audited(event, |engine, _| {
            let verbs = engine.held()?.base.verbs.duplicate();
            for (name, record) in rewrap_owner((root, &verbs), &secrets.owner, &mut engine.rng)? {
                engine.database.put_slot(&name, &record)?;
            }
            if let (Some(vaulted), Some(holder)) = (vaulted, &secrets.vaulted) {
                let record = rewrap_vaulted(vaulted, holder, &mut engine.rng)?;
                engine.database.put_slot(SLOT_VAULTED, &record)?;
            }
            engine.wipe = true;
            Ok(())
        })
    }

    /// What the dead-man switch is set to, if it was ever armed.
    pub(crate) fn switch(&self) -> Result<Option<SwitchRecord>, VaultError> {
        self.sealed_slot(SWITCH)
    }

    /// The key that signs check-ins: one of its own, so that a new log key does not end the watcher's trust.
    fn switch_signer(&mut self) -> Result<Signer, VaultError> {
        let name = format!("{}/check-in", self.held()?.base.signer.verifier().name());
        if let Some(seed) = self.sealed_slot::<Vec<u8>>(SWITCH_KEY)? {
            return Ok(Signer::from_seed(&name, &Secret::from_slice(&seed)?)?);
        }
        let signer = Signer::generate(&name, &mut self.rng)?;
        self.put_sealed_slot(SWITCH_KEY, &signer.seed().expose().as_slice())?;
        Ok(signer)
    }

    /// The number of the next check-in: above every one that the vault remembers or that one of `seen`, check-ins of this
    /// vault, has; and no lower than the time, so that a vault that was brought back from a backup does not count where it was
    /// then.
    fn next_number(&mut self, seen: &[Vec<u8>], now: u64) -> Result<u64, VaultError> {
        let signer = self.switch_signer()?;
        let seen = seen.iter().filter_map(|note| number(note, signer.verifier())).max();
        let owed = self.owed()?.iter().map(|owed| owed.check_in.number).max();
        let known = self.switch()?.map(|old| old.number).max(owed).max(seen).unwrap_or_default();
        Ok(known.saturating_add(1).max(now))
    }

    /// Writes a new setting of the switch and signs the check-in that tells the watcher, and one that tells a watcher of another
    /// directory to stop. They are in the vault from this commit on, and in the directories as soon as they can be. Returns the
    /// text of the key that verifies them.
    pub(crate) fn set_switch(
        &mut self,
        mut record: SwitchRecord,
        seen: &[Vec<u8>],
    ) -> Result<String, VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::ArmSwitch);
        self.audited(event, |engine, event| {
            let before = engine.switch()?;
            (record.number, record.checked_in) = (engine.next_number(seen, event.at.wall)?, event.at.wall);
            if let Some(old) = before.clone().filter(|old| old.directory != record.directory && old.every > 0)
            {
                let stop =
                    CheckIn { number: record.number, at: record.checked_in, every: 0, packages: Vec::new() };
                engine.owe((&old.directory, stop), before.clone())?;
                // A watcher that is moved from there to here takes this one for newer.
                record.number = record.number.saturating_add(1);
            }
            event.count = Some(record.number);
            engine.put_sealed_slot(SWITCH, &record)?;
            engine.owe((&record.directory, CheckIn::of(&record)), before)?;
            Ok(engine.switch_signer()?.verifier().to_string())
        })
    }

    /// The owner is there.
    pub(crate) fn check_in(&mut self, seen: &[Vec<u8>]) -> Result<Note, VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::CheckIn);
        self.audited(event, |engine, event| {
            let record = engine.switch()?.filter(|record| record.every > 0);
            let mut record = record.ok_or_else(|| VaultError::unknown("dead-man switch that is armed"))?;
            (record.number, record.checked_in) = (engine.next_number(seen, event.at.wall)?, event.at.wall);
            event.count = Some(record.number);
            engine.put_sealed_slot(SWITCH, &record)?;
            engine.owe((&record.directory, CheckIn::of(&record)), None)
        })
    }

    /// What watchers have to be told, without what they were told since the last commit.
    fn owed(&self) -> Result<Vec<Owed>, VaultError> {
        let mut owed: Vec<Owed> = self.sealed_slot(OWED)?.unwrap_or_default();
        owed.retain(|owed| !self.watchers.told.contains(&(owed.directory.clone(), owed.check_in.number)));
        Ok(owed)
    }

    fn put_owed(&mut self, owed: &[Owed]) -> Result<(), VaultError> {
        self.put_sealed_slot(OWED, &owed)
    }

    /// Signs a check-in and keeps it until it is in its directory. It takes the place of one that did not come there.
    fn owe(
        &mut self,
        (directory, check_in): (&Path, CheckIn),
        before: Option<SwitchRecord>,
    ) -> Result<Note, VaultError> {
        let signer = self.switch_signer()?;
        let note = Note::sign(&check_in.to_text(signer.verifier().name()), &[&signer])?;
        let (directory, text) = (directory.to_owned(), note.to_string());
        let mut new = Owed { directory, check_in, note: text, heirs: Vec::new() };
        let mut all = self.owed()?;
        if let Some(at) = all.iter().position(|owed| owed.directory == new.directory) {
            new.keep(all.remove(at).heirs);
        }
        new.keep(
            before
                .filter(|record| record.directory == new.directory)
                .map(|old| old.heirs)
                .unwrap_or_default(),
        );
        if all.len() >= limits::MAX_OWED {
            return Err(VaultError::invalid(
                "the watchers of 16 directories are not told yet; put one back, or give it up with \
                 `stvor vault switch give-up`",
            ));
        }
        all.push(new);
        self.put_owed(&all)?;
        self.watchers.due = true;
        Ok(note)
    }

    /// From now on check-ins leave these files alone, which the next one is to name.
    pub(crate) fn begin_packages(&mut self, paths: [PathBuf; 2]) {
        self.watchers.arming.extend(paths);
    }

    /// It names them, or they were given up.
    pub(crate) fn end_packages(&mut self, paths: &[PathBuf]) {
        self.watchers.arming.retain(|path| !paths.contains(path));
    }

    /// Writes what is owed into the directories, as far as that can be done. Only what is committed may be told, so this is done
    /// between two groups.
    pub(super) fn tell_watchers(&mut self) {
        self.watchers.due = false;
        if self.held.is_none() || self.no_doubt().is_err() {
            return;
        }
        let Ok(owed) = self.owed() else { return };
        if owed.is_empty() {
            self.watchers.failed.clear();
            return;
        }
        let Ok(key) = self.switch_signer().map(|signer| signer.verifier().clone()) else { return };
        let mut failed = HashMap::new();
        for owed in owed {
            match owed.deliver(&key, &self.watchers.arming) {
                Ok(()) => self.watchers.told.push((owed.directory, owed.check_in.number)),
                Err(error) => {
                    if !self.watchers.failed.contains_key(&owed.directory) {
                        self.alert(&Alert::WatcherNotTold { at: self.clock.now(), code: error.code() });
                    }
                    failed.insert(owed.directory, error);
                }
            }
        }
        self.watchers.failed = failed;
    }

    /// Removes from what is owed what was told. Called at the beginning of a group.
    pub(super) fn drop_told(&mut self) -> Result<(), VaultError> {
        if self.watchers.told.is_empty() || self.held.is_none() {
            return Ok(());
        }
        let left = self.owed()?;
        self.put_owed(&left)
    }

    /// Whether something was decided in this group: watchers are told when it is committed.
    pub(crate) const fn is_telling(&self) -> bool {
        self.watchers.due
    }

    /// Watchers that are not told yet.
    pub(crate) fn untold(&self) -> Result<Vec<Untold>, VaultError> {
        let untold = |owed: Owed| {
            let failed = self.watchers.failed.get(&owed.directory);
            Untold {
                disarmed: owed.check_in.every == 0,
                reason: failed.map(ToString::to_string).unwrap_or_default(),
                without: match failed {
                    Some(VaultError::PackageMissing { heir, .. }) => Some(heir.clone()),
                    _ => None,
                },
                directory: owed.directory,
            }
        };
        Ok(self.owed()?.into_iter().map(untold).collect())
    }

    /// Owes nothing more to a directory.
    pub(crate) fn give_up_watcher(&mut self, directory: &Path) -> Result<(), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::ArmSwitch);
        self.audited(event, |engine, event| {
            engine.note(event, &format!("the watcher of {} is given up", directory.display()))?;
            let mut owed = engine.owed()?;
            let before = owed.len();
            owed.retain(|owed| owed.directory != directory);
            if owed.len() == before {
                return Err(VaultError::invalid("nothing is owed to the watcher of this directory"));
            }
            engine.put_owed(&owed)
        })
    }

    /// Heirs whose packages hold a memory.
    pub(crate) fn heirs_with(&self, id: MemoryId) -> Result<Vec<String>, VaultError> {
        let armed = self.switch()?.map(|record| record.heirs).unwrap_or_default();
        let armed = armed.into_iter().filter(|heir| heir.memories.contains(&id)).map(|heir| heir.name);
        let owed = self.owed()?;
        let mut heirs: Vec<String> = armed.chain(owed.iter().flat_map(|owed| owed.heirs_with(id))).collect();
        heirs.sort_unstable();
        heirs.dedup();
        Ok(heirs)
    }
}
