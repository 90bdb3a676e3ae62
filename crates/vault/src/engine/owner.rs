//! What the owner does: opening and closing, lockdown, changing secrets.

use stvor_crypto::Secret;
use stvor_keys::WrappedKey;
use stvor_tlog::{Checkpoint, Frontier, Note, Signer, TlogError};

use super::agents::{OWNER, UNPROVED};
use super::sessions::SessionId;
use super::status::{Lockdown, Mode, Status};
use super::{Engine, Held};

use crate::audit::{Event, Operation};
use crate::backup::{BackupRecord, FORMAT};
use crate::clock::Pace;
use crate::error::Refusal;
use crate::keys::{
    BaseKeys, Retired, RootKey, SLOT_LOCKDOWN as LOCKDOWN, SLOT_RETIRED, SLOT_ROOT, SLOT_SIGNER,
    SLOT_VAULTED, SLOT_VERBS, SessionKeys, Slots, has_level_4, level_4,
};
use crate::{VaultError, limits};

impl Engine {
    /// Opens the vault with the root key, and levels 4 with its own. Before anything else the log is held against its
    /// checkpoints: a log that was cut is not continued.
    pub(crate) fn unlock(&mut self, root: &RootKey, vaulted: Option<&Secret<32>>) -> Result<(), VaultError> {
        let slots = self.database.slots()?;
        let opened = BaseKeys::open(root, &slots).and_then(|base| {
            let (mut session, damaged) = SessionKeys::open(root, &slots);
            if let Some(vaulted) = vaulted {
                session.open_vaulted(vaulted, &slots)?;
            }
            Ok((base, session, damaged))
        });
        let (base, session, damaged) = match opened {
            Ok(opened) => opened,
            Err(error) if self.held.is_some() => {
                let event = Event::new(self.clock.now(), UNPROVED, Operation::Unlock);
                return self.audited(event, |_, _| Err(error));
            }
            Err(error) => {
                self.refused_cold = self.refused_cold.saturating_add(1);
                return Err(error);
            }
        };
        for error in damaged {
            self.sound::<()>(Err(error))?;
        }
        let first = self.held.is_none();
        if first {
            let tree = self.checked_tree(&base)?;
            self.held = Some(Held {
                base,
                session: None,
                tree,
                last_event: None,
                pace: Pace::default(),
                retiring: None,
            });
            if let Err(error) = self.bind() {
                self.held = None;
                return Err(error);
            }
        }
        self.new_keys = true;
        if let Some(held) = self.held.as_mut() {
            held.session = Some(session);
        }
        self.open_owned_profiles();
        self.drop_index();
        // A process before this one may have ended between its commit and the telling.
        self.watchers.due = true;
        let mut event = Event::new(self.clock.now(), OWNER, Operation::Unlock);
        event.count = Some(self.refused_cold).filter(|count| *count > 0);
        // Who can change the settings can name another key: the log shows by which one levels 3 to 5 opened since when.
        event.content.clone_from(&self.boundary_key);
        self.audited(event, |engine, event| {
            if let Err(error) = engine.no_doubt() {
                engine.note(event, &error.to_string())?;
            }
            match first {
                true => engine.remember_outside(engine.held()?.tree.size()),
                false => Ok(()),
            }
        })?;
        self.refused_cold = 0;
        if first { self.end_lost_sessions() } else { Ok(()) }
    }

    /// Holds the keys of a vault whose log does not open, to read memories and nothing else. Returns what is wrong with the log.
    pub(crate) fn open_to_read(
        &mut self,
        root: &RootKey,
        vaulted: Option<&Secret<32>>,
    ) -> Result<VaultError, VaultError> {
        let slots = self.database.slots()?;
        let base = BaseKeys::open(root, &slots)?;
        let (mut session, _) = SessionKeys::open(root, &slots);
        if let Some(vaulted) = vaulted {
            session.open_vaulted(vaulted, &slots)?;
        }
        let Err(wrong) = self.checked_tree(&base) else {
            return Err(VaultError::invalid("the vault opens; export it (`stvor vault export`)"));
        };
        let (tree, pace) = (Frontier::new(), Pace::default());
        self.held = Some(Held { base, session: Some(session), tree, last_event: None, pace, retiring: None });
        // What is left of the log tells what ran out, also where the clock was set back since.
        let newest = self.database.log_size().and_then(|size| self.newest_time(size)).unwrap_or_default();
        if let Some(held) = self.held.as_mut() {
            held.pace = Pace::from(newest);
        }
        self.open_owned_profiles();
        Ok(wrong)
    }

    /// The time of the newest event whose row is sound. One that somebody changed is for `verify` to name: it keeps nobody out.
    pub(super) fn newest_time(&self, size: u64) -> Result<Option<crate::Moment>, VaultError> {
        for seq in (size.saturating_sub(limits::MAX_DAMAGED)..size).rev() {
            if let Some(Some(time)) = self.sound(self.event_time(seq))? {
                return Ok(Some(time));
            }
        }
        if size == 0 {
            Ok(None)
        } else {
            Err(VaultError::tampered("the log", "none of its last events is sound"))
        }
    }

    /// The tree that the stored checkpoint signs, after holding it against the hashes and the checkpoints outside.
    fn checked_tree(&mut self, base: &BaseKeys) -> Result<Frontier, VaultError> {
        let trust = base.trust();
        let stored = match self.database.checkpoint()? {
            Some(text) => Some(trust.open(&Note::parse(text.as_bytes())?)?),
            None => None,
        };
        let size = stored.as_ref().map_or(0, Checkpoint::size);
        let tree = Frontier::load(&self.database, size)?;
        if stored.is_some_and(|checkpoint| checkpoint.root() != tree.root()) {
            return Err(TlogError::Corrupt("the log's right edge".into()).into());
        }
        if !self.database.events_from(size, 1)?.is_empty() {
            return Err(VaultError::tampered("the log", "it holds events that no checkpoint signs"));
        }
        for file in &mut self.outside {
            let found = file.newest(|note| trust.open(note).is_ok())?;
            // Where none holds, the one that claims most says why.
            let note = found.note.or(found.claimed);
            file.saw(note.is_some());
            let Some(note) = note else { continue };
            let outside = trust.open(&note)?;
            if outside.size() > size {
                let (signed, by) = (outside.size(), file.path().display());
                let cut = format!("it was cut: {size} events are left of {signed}, which {by} signs");
                return Err(VaultError::tampered("the log", cut));
            }
            if Frontier::load(&self.database, outside.size())?.root() != outside.root() {
                let by = file.path().display();
                let anew = format!("it was written anew: the newest checkpoint in {by} signs another one");
                return Err(VaultError::tampered("the log", anew));
            }
        }
        Ok(tree)
    }

    /// Ends the owner's session: the keys of levels 2 and up are wiped, and everything that came of them.
    pub(crate) fn lock(&mut self) -> Result<(), VaultError> {
        if let Some(held) = self.held.as_mut() {
            held.session = None;
        }
        self.drop_index();
        let event = Event::new(self.clock.now(), OWNER, Operation::Lock);
        self.audited(event, |engine, event| engine.log_suppressed(&event.at, |_, _| true))?;
        self.end_session(SessionId::OWNER, usize::MAX).map(|_| ())
    }

    /// The last entry before all keys are wiped.
    pub(crate) fn close(&mut self) -> Result<(), VaultError> {
        self.drop_index();
        if self.held.is_none() {
            return Ok(());
        }
        let ended = self.end_sessions();
        self.budgets.save_next();
        let event = Event::new(self.clock.now(), "vault", Operation::Close);
        self.audited(event, |engine, event| engine.log_suppressed(&event.at, |_, _| true)).and(ended)
    }

    /// Whether everything is stopped. There is always a sealed record, so that removing it shows.
    pub(crate) fn lockdown(&self) -> Result<Option<Lockdown>, VaultError> {
        let missing = || VaultError::tampered("the record of the lockdown", "it is missing");
        let record = self.database.slot(LOCKDOWN)?.ok_or_else(missing)?;
        let tampered = || VaultError::tampered("the record of the lockdown", "it does not open");
        let plain = self.held()?.base.rows.open(LOCKDOWN.as_bytes(), &record).map_err(|_| tampered())?;
        serde_json::from_slice(plain.expose()).map_err(|_| tampered())
    }

    /// The lockdown for who looks at the state. Without a sound record everything is stopped, and that is what is shown.
    fn shown_lockdown(&self) -> Result<Option<Lockdown>, VaultError> {
        match self.lockdown() {
            Err(VaultError::Tampered { reason, .. }) => Ok(Some(Lockdown {
                since: 0,
                by: "vault".into(),
                reason: format!(
                    "{reason}: somebody changed the database; leave the lockdown with the owner's secret, and verify"
                ),
            })),
            other => other,
        }
    }

    /// Refuses while everything is stopped, or the records are not what they should be.
    pub(crate) fn no_lockdown(&self) -> Result<(), VaultError> {
        self.no_doubt()?;
        match self.lockdown()? {
            Some(_) => Err(Refusal::Lockdown.into()),
            None => Ok(()),
        }
    }

    /// Writes whether everything is stopped.
    fn set_lockdown(&mut self, lockdown: Option<&Lockdown>) -> Result<(), VaultError> {
        let plain = serde_json::to_vec(&lockdown).map_err(|error| VaultError::Database(error.to_string()))?;
        let held = self.held.as_ref().ok_or(VaultError::Refused(Refusal::Cold))?;
        let sealed = held.base.rows.seal(&mut self.rng, LOCKDOWN.as_bytes(), &plain)?;
        self.database.put_slot(LOCKDOWN, &sealed)
    }

    /// Stops everything. Anybody who may ask may do this. What was allowed before and not used is void, and a token has to be
    /// presented anew.
    pub(crate) fn enter_lockdown(&mut self, by: &str, reason: &str) -> Result<(), VaultError> {
        let event = Event::new(self.clock.now(), by, Operation::EnterLockdown);
        self.audited(event, |engine, event| {
            if reason.len() > limits::MAX_TEXT {
                return Err(VaultError::invalid("a reason has at most 4096 bytes"));
            }
            // A record that is gone or does not open is written anew.
            if matches!(engine.lockdown(), Ok(Some(_))) {
                return Err(Refusal::Lockdown.into());
            }
            engine.note(event, reason)?;
            engine.end_what_was_allowed(event)?;
            let lockdown = Lockdown { since: event.at.wall, by: by.to_owned(), reason: reason.to_owned() };
            engine.set_lockdown(Some(&lockdown))
        })
    }

    /// Ends grants, and the presence of a token.
    fn end_what_was_allowed(&mut self, event: &mut Event) -> Result<(), VaultError> {
        self.drop_token();
        // Damage among the approvals keeps nobody from a lockdown: what can not be read allows nothing either.
        let ended = self.sound(self.end_grants())?;
        event.count = ended.filter(|count| *count > 0);
        Ok(())
    }

    /// Lets everything go on. `root` is the proof that the owner's secret was given.
    pub(crate) fn leave_lockdown(&mut self, root: &RootKey) -> Result<(), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::LeaveLockdown);
        self.audited(event, |engine, event| {
            // Only the right root key opens the records.
            BaseKeys::open(root, &engine.database.slots()?)?;
            if let Err(error) = engine.no_doubt() {
                engine.note(event, &error.to_string())?;
                engine.set_lockdown(None)?;
                // What was allowed goes with the records; a token that answered meanwhile answers anew.
                engine.drop_token();
                return engine.end_doubt();
            }
            match engine.lockdown() {
                Ok(Some(_)) => {}
                Ok(None) => return Err(VaultError::invalid("the vault is not in lockdown")),
                // Nothing else writes a record that somebody removed or changed anew.
                Err(VaultError::Tampered { reason, .. }) => {
                    engine.note(event, &format!("the record of the lockdown was not sound: {reason}"))?;
                }
                Err(error) => return Err(error),
            }
            // Where the record was not sound, nobody entered the lockdown.
            engine.end_what_was_allowed(event)?;
            engine.set_lockdown(None)
        })
    }

    /// Takes the owner's keys as they are wrapped for another secret. The old one opens nothing from here on. `root` is the
    /// proof that the old one was given.
    pub(crate) fn change_secret(&mut self, root: &RootKey, records: &Slots) -> Result<(), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::ChangeSecret);
        self.audited(event, |engine, _| {
            BaseKeys::open(root, &engine.database.slots()?)?;
            for name in [SLOT_ROOT, SLOT_VERBS] {
                let record = records.get(name).ok_or_else(|| VaultError::invalid("a record is missing"))?;
                WrappedKey::decode(record)?;
                engine.database.put_slot(name, record)?;
            }
            engine.wipe = true;
            Ok(())
        })
    }

    /// Takes the record of the second secret, which wraps the key of level 4: another one for the same key, or the first one, and
    /// then the level gets its key pair. `root` and `vaulted` are the proofs that the owner's secret and the old one were given.
    pub(crate) fn change_second(
        &mut self,
        root: &RootKey,
        (vaulted, record): (&Secret<32>, &[u8]),
    ) -> Result<(), VaultError> {
        let mut event = Event::new(self.clock.now(), OWNER, Operation::ChangeSecret);
        event.level = Some(crate::Level::Vaulted);
        self.audited(event, |engine, _| {
            let slots = engine.database.slots()?;
            BaseKeys::open(root, &slots)?;
            WrappedKey::decode(record)?;
            let first = !slots.contains_key(SLOT_VAULTED);
            if first && has_level_4(&slots) {
                // Somebody removed the record; new keys would take the place of those that memories are sealed to.
                return Err(VaultError::tampered("the record of the second secret", "it is missing"));
            }
            if !first {
                SessionKeys::default().open_vaulted(vaulted, &slots)?;
            }
            engine.database.put_slot(SLOT_VAULTED, record)?;
            engine.wipe = true;
            if !first {
                return Ok(());
            }
            let held = engine.held.as_mut().ok_or(VaultError::Refused(Refusal::Cold))?;
            let (records, public) = level_4((&held.base.rows, vaulted), &mut engine.rng)?;
            for (name, record) in records {
                engine.database.put_slot(&name, &record)?;
            }
            engine.new_keys = true;
            held.base.add_public(crate::Level::Vaulted, public);
            Ok(())
        })
    }

    /// Changes the key that signs the log; the checkpoint of this commit is signed with both.
    pub(crate) fn rotate_signing_key(&mut self) -> Result<(), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::RotateSigningKey);
        self.audited(event, |engine, event| {
            engine.new_keys = true;
            let held = engine.held.as_mut().ok_or(VaultError::Refused(Refusal::Cold))?;
            let base = &mut held.base;
            let fresh = Signer::generate(base.signer.verifier().name(), &mut engine.rng)?;
            event.text = Some(fresh.verifier().to_string());
            let old = Retired { verifier: base.signer.verifier().clone(), until: Some(held.tree.size()) };
            base.retired.insert(0, old);
            let retired: Vec<String> = base.retired.iter().map(Retired::to_text).collect();
            let retired =
                serde_json::to_vec(&retired).map_err(|error| VaultError::Database(error.to_string()))?;
            for (name, plain) in [(SLOT_SIGNER, &fresh.seed().expose()[..]), (SLOT_RETIRED, &retired)] {
                let sealed = base.rows.seal(&mut engine.rng, name.as_bytes(), plain)?;
                engine.database.put_slot(name, &sealed)?;
            }
            held.retiring = Some(core::mem::replace(&mut base.signer, fresh));
            Ok(())
        })
    }

    /// The state as the owner sees it.
    pub(crate) fn status(&self) -> Result<Status, VaultError> {
        let mut status = self.state()?;
        if self.held.is_some() {
            let backups = self.sound(self.backups())?.unwrap_or_default();
            let known = |one: &&BackupRecord| one.manifest.format == FORMAT;
            status.newest_backup = backups.iter().filter(known).map(|one| one.manifest.made).max();
            status.backups_of_other_formats = backups.iter().filter(|one| !known(one)).count() as u64;
            status.watchers_untold = self.sound(self.untold())?.map_or(0, |untold| untold.len());
        }
        Ok(status)
    }

    /// The state without what is known of backups and watchers. An agent gets no more of it, and may ask as often as it likes: nothing
    /// here takes longer where the owner keeps much.
    pub(crate) fn state(&self) -> Result<Status, VaultError> {
        let Some(held) = &self.held else {
            return Ok(Status {
                mode: Mode::Cold,
                vaulted: false,
                lockdown: None,
                events: 0,
                root: String::new(),
                refused_cold: self.refused_cold,
                verifier: String::new(),
                retired: Vec::new(),
                last_event: None,
                checkpoint_files: self.outside.len(),
                checkpoint_files_behind: 0,
                newest_backup: None,
                backups_of_other_formats: 0,
                watchers_untold: 0,
                doubted: Vec::new(),
                missing_checkpoints: Vec::new(),
                boundary_key: self.boundary_key.clone(),
                memory: self.memory,
            });
        };
        let session = held.session.as_ref();
        Ok(Status {
            mode: if session.is_some() { Mode::Open } else { Mode::Locked },
            vaulted: session.is_some_and(|keys| keys.opens(crate::Level::Vaulted)),
            lockdown: self.shown_lockdown()?,
            events: held.tree.size(),
            root: held.tree.root().to_base64(),
            refused_cold: self.refused_cold,
            verifier: held.base.signer.verifier().to_string(),
            retired: held.base.retired.iter().map(|old| old.verifier.to_string()).collect(),
            last_event: held.last_event.as_ref().map(|last| last.wall),
            checkpoint_files: self.outside.len(),
            checkpoint_files_behind: self.outside.iter().filter(|file| file.is_behind()).count(),
            newest_backup: None,
            backups_of_other_formats: 0,
            watchers_untold: 0,
            doubted: self.database.doubted()?.into_iter().map(|table| table.what().to_owned()).collect(),
            missing_checkpoints: self
                .sound(self.missing_checkpoints())?
                .unwrap_or_default()
                .into_iter()
                .map(|one| one.file)
                .collect(),
            boundary_key: self.boundary_key.clone(),
            memory: self.memory,
        })
    }
}
