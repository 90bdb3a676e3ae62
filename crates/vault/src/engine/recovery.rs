//! Escrow, recovery and the dead-man switch, as far as the vault's keys and log have a part in them.

use stvor_crypto::Secret;
use stvor_keys::KeyHolder;
use stvor_tlog::{Note, Signer};

use super::Engine;
use super::agents::OWNER;
use crate::VaultError;
use crate::audit::{Event, Operation};
use crate::keys::{BaseKeys, RootKey, SLOT_VAULTED, SessionKeys, black_slot, rewrap_owner, rewrap_vaulted};
use crate::recovery::escrow::{EscrowRecord, NewSecrets, NewShares};
use crate::recovery::switch::{CheckIn, SwitchRecord};

const ESCROWS: &str = "escrows";
const SWITCH: &str = "switch";
const SWITCH_KEY: &str = "switch/key";

/// The name that a set of shares has in place of a token's.
pub(super) fn escrow_name(set: &str) -> String {
    format!("escrow-{set}")
}

impl Engine {
    /// Whether this is the root key.
    pub(crate) fn opens_with(&self, root: &RootKey) -> Result<bool, VaultError> {
        Ok(BaseKeys::open(root, &self.database.slots()?).is_ok())
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

    /// The number of the next check-in: above every one that the vault remembers or that `seen`, a check-in of this vault,
    /// has; and no lower than the time, so that a vault that was brought back from a backup does not count where it was then.
    fn next_number(&mut self, seen: &[u8], now: u64) -> Result<u64, VaultError> {
        let signer = self.switch_signer()?;
        let key = signer.verifier();
        let number = |text: &str| CheckIn::parse(text, key.name()).map(|known| known.number).ok();
        let seen = Note::parse(seen).ok();
        let seen = seen.and_then(|note| note.open(core::slice::from_ref(key)).ok().and_then(number));
        let known = self.switch()?.map_or(0, |old| old.number).max(seen.unwrap_or_default());
        Ok(known.saturating_add(1).max(now))
    }

    /// Writes a new setting of the switch and signs the check-in that tells the watcher. Returns the note, the text of the key
    /// that verifies it, and the setting.
    pub(crate) fn set_switch(
        &mut self,
        mut record: SwitchRecord,
        seen: &[u8],
    ) -> Result<(Note, String, SwitchRecord), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::ArmSwitch);
        self.audited(event, |engine, event| {
            record.number = engine.next_number(seen, event.at.wall)?;
            record.checked_in = event.at.wall;
            event.count = Some(record.number);
            engine.put_sealed_slot(SWITCH, &record)?;
            let (note, verifier) = engine.sign_check_in(&record)?;
            Ok((note, verifier, record))
        })
    }

    /// The owner is there.
    pub(crate) fn check_in(&mut self, seen: &[u8]) -> Result<(Note, SwitchRecord), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::CheckIn);
        self.audited(event, |engine, event| {
            let record = engine.switch()?.filter(|record| record.every > 0);
            let mut record = record.ok_or_else(|| VaultError::invalid("the dead-man switch is not armed"))?;
            record.number = engine.next_number(seen, event.at.wall)?;
            record.checked_in = event.at.wall;
            event.count = Some(record.number);
            engine.put_sealed_slot(SWITCH, &record)?;
            Ok((engine.sign_check_in(&record)?.0, record))
        })
    }

    fn sign_check_in(&mut self, record: &SwitchRecord) -> Result<(Note, String), VaultError> {
        let signer = self.switch_signer()?;
        let note = Note::sign(&CheckIn::of(record).to_text(signer.verifier().name()), &[&signer])?;
        Ok((note, signer.verifier().to_string()))
    }
}
