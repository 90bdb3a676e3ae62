//! What the owner does: opening and closing, approvals, lockdown, secrets, agents.

use core::time::Duration;
use std::collections::BTreeMap;

use stvor_crypto::{Secret, SystemRandom};
use stvor_keys::KeyHolder;

use super::{OwnerRecords, Pending, Vault};
use crate::VaultError;
use crate::audit::Operation;
use crate::engine::Engine;
use crate::engine::agents::{Agent, Caller, Credential};
use crate::engine::status::Status;
use crate::gates::approval::{Approval, Request};
use crate::keys::{self, RootKey, VerbKey};
use crate::memory::MemoryId;

impl Vault {
    /// The records that the owner's secret unwraps.
    ///
    /// # Errors
    /// [`VaultError::Tampered`] when they are gone.
    pub fn records(&self) -> Result<OwnerRecords, VaultError> {
        let read = |engine: &mut Engine| {
            let mut slots = engine.database.slots()?;
            let missing = || VaultError::tampered("the owner's key record", "it is missing");
            Ok(OwnerRecords {
                root: slots.remove(keys::SLOT_ROOT).ok_or_else(missing)?,
                verbs: slots.remove(keys::SLOT_VERBS).ok_or_else(missing)?,
                vaulted: slots.remove(keys::SLOT_VAULTED),
            })
        };
        self.ask(read).wait()
    }

    /// Begins the owner's session, with the owner's secret in this process.
    ///
    /// # Errors
    /// [`stvor_keys::KeyError::Wrong`] for another secret; as [`Vault::unlock`].
    pub fn unlock_with(&self, owner: &dyn KeyHolder) -> Result<(), VaultError> {
        let root = keys::unwrap_root(&self.records()?.root, owner)?;
        self.unlock(root, None)
    }

    /// Begins the owner's session, with keys that were unwrapped elsewhere.
    ///
    /// # Errors
    /// [`VaultError::Tampered`] and [`VaultError::Log`] when log and checkpoints do not fit; [`VaultError::LogUnavailable`].
    pub fn unlock(&self, root: RootKey, vaulted: Option<Secret<32>>) -> Result<(), VaultError> {
        self.ask(move |engine| engine.unlock(&root, vaulted.as_ref())).wait()
    }

    /// Ends the owner's session.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::LogUnavailable`].
    pub fn lock(&self) -> Result<(), VaultError> {
        self.ask(Engine::lock).wait()
    }

    /// The state.
    ///
    /// # Errors
    /// [`VaultError::Closed`], [`VaultError::Tampered`].
    pub fn status(&self) -> Result<Status, VaultError> {
        self.ask(|engine| engine.status()).wait()
    }

    /// The state as an agent gets it, and the bytes that its memories take, if they are known.
    pub(crate) fn status_for(&self, caller: &Caller) -> Result<(Status, Option<u64>), VaultError> {
        let name = caller.name().to_owned();
        self.ask(move |engine| {
            let status = engine.state()?;
            let usage = if engine.held.is_some() { engine.usage().ok() } else { None };
            Ok((status, usage.and_then(|usage| usage.get(&name).copied())))
        })
        .wait()
    }

    /// The owner knows why there was no checkpoint in some file outside the database when the vault was opened: `verify` does not name
    /// that any more. Returns how many files that is.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::LogUnavailable`].
    pub fn accept_checkpoints(&self) -> Result<usize, VaultError> {
        self.ask(Engine::accept_checkpoints).wait()
    }

    /// The key that proves owner verbs, for who serves the owner.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`].
    pub fn verb_key(&self) -> Result<VerbKey, VaultError> {
        self.ask(|engine| {
            engine.must_be_warm()?;
            Ok(engine.held()?.base.verbs.duplicate())
        })
        .wait()
    }

    /// Requests for approval and what became of them.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn approvals(&self) -> Result<Vec<Approval>, VaultError> {
        self.ask(|engine| engine.approvals()).wait()
    }

    /// The same with what is known of their memories, so that the owner sees what is to be approved.
    ///
    /// # Errors
    /// As [`Vault::approvals`].
    pub fn requests(&self) -> Result<Vec<Request>, VaultError> {
        self.ask(|engine| engine.requests()).wait()
    }

    /// Grants a request for `valid` (at most a day), or denies it.
    ///
    /// # Errors
    /// [`VaultError::Unknown`] when no such request waits; [`VaultError::LogUnavailable`]. Of a grant also
    /// [`crate::Refusal::Lockdown`], and [`crate::Refusal::RequestOutdated`] when it was asked more than a day ago or its memory
    /// changed since.
    pub fn decide_approval(&self, id: MemoryId, valid: Option<Duration>) -> Result<(), VaultError> {
        self.ask(move |engine| engine.decide_approval(id, (valid, None))).wait()
    }

    /// Grants a request with the code that the owner's app shows, where one is enrolled.
    ///
    /// # Errors
    /// As [`Vault::decide_approval`]; [`crate::Refusal::OneTimeCode`], [`crate::Refusal::CodesBlocked`].
    pub fn approve_with_code(&self, id: MemoryId, valid: Duration, code: &str) -> Result<(), VaultError> {
        let code = code.to_owned();
        self.ask(move |engine| engine.decide_approval(id, (Some(valid), Some(&code)))).wait()
    }

    /// Stops everything.
    ///
    /// # Errors
    /// [`VaultError::LogUnavailable`]; [`crate::Refusal::Lockdown`] when it is stopped already.
    pub fn enter_lockdown(&self, caller: &Caller, reason: &str) -> Result<(), VaultError> {
        let (by, reason) = (caller.name().to_owned(), reason.to_owned());
        self.ask(move |engine| engine.enter_lockdown(&by, &reason)).wait()
    }

    /// Stops everything on behalf of somebody at the owner's socket who proved nothing: stopping needs no ceremony.
    pub(crate) fn enter_lockdown_unproved(&self, reason: &str) -> Result<(), VaultError> {
        let reason = reason.to_owned();
        self.ask(move |engine| engine.enter_lockdown(crate::engine::agents::UNPROVED, &reason)).wait()
    }

    /// Lets everything go on. Takes the owner's secret itself, not only an open session.
    ///
    /// # Errors
    /// [`stvor_keys::KeyError::Wrong`] for another secret.
    pub fn leave_lockdown(&self, owner: &dyn KeyHolder) -> Result<(), VaultError> {
        self.leave_lockdown_with(keys::unwrap_root(&self.records()?.root, owner)?)
    }

    /// As [`Vault::leave_lockdown`], with a root key that was unwrapped elsewhere.
    ///
    /// # Errors
    /// [`VaultError::Tampered`] when it is not the root key.
    pub fn leave_lockdown_with(&self, root: RootKey) -> Result<(), VaultError> {
        self.ask(move |engine| engine.leave_lockdown(&root)).wait()
    }

    /// Changes the owner's secret. No memory is touched.
    ///
    /// # Errors
    /// [`stvor_keys::KeyError::Wrong`] when `old` is not it.
    pub fn change_secret(&self, old: &dyn KeyHolder, new: &dyn KeyHolder) -> Result<(), VaultError> {
        let records = self.records()?;
        let (root, verbs) =
            (keys::unwrap_root(&records.root, old)?, keys::unwrap_verbs(&records.verbs, old)?);
        let slots = keys::rewrap_owner((&root, &verbs), new, &mut SystemRandom::new())?;
        self.ask(move |engine| engine.change_secret(&root, &slots)).wait()
    }

    /// Changes the second secret, of levels 4 and 5. A vault that was made without one gets its first one with `old` left out; then
    /// level 4 has its keys, and can be written. It is read after an unlock with that secret. No memory is touched. Shares that were
    /// made before there was a second secret do not open level 4.
    ///
    /// # Errors
    /// [`stvor_keys::KeyError::Wrong`] when `owner` or `old` is not it; [`VaultError::Invalid`] when `old` is left out and the vault
    /// has a second secret, or the other way round; [`VaultError::LogUnavailable`].
    pub fn change_second(
        &self,
        owner: &dyn KeyHolder,
        old: Option<&dyn KeyHolder>,
        new: &dyn KeyHolder,
    ) -> Result<(), VaultError> {
        let records = self.records()?;
        let root = keys::unwrap_root(&records.root, owner)?;
        let (vaulted, record) = keys::change_second(records.vaulted.as_deref(), old, new)?;
        self.put_second_record(root, vaulted, record)
    }

    /// As [`Vault::change_second`], with a key and a record of it that were made elsewhere.
    pub(crate) fn put_second_record(
        &self,
        root: RootKey,
        vaulted: Secret<32>,
        record: Vec<u8>,
    ) -> Result<(), VaultError> {
        self.ask(move |engine| engine.change_second(&root, (&vaulted, &record))).wait()
    }

    /// As [`Vault::change_secret`], with records that were made elsewhere, for `root`.
    pub(crate) fn put_owner_records(
        &self,
        root: RootKey,
        records: (Vec<u8>, Vec<u8>),
    ) -> Result<(), VaultError> {
        let (root_record, verbs_record) = records;
        let slots = keys::owner_slots(root_record, verbs_record);
        self.ask(move |engine| engine.change_secret(&root, &slots)).wait()
    }

    /// Changes the key that signs the log. The checkpoint of the change is signed with the old and the new one; checkpoints
    /// that the old one signed stay valid.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::LogUnavailable`]; after that one the vault is cold.
    pub fn rotate_signing_key(&self) -> Result<(), VaultError> {
        self.ask(Engine::rotate_signing_key).wait()
    }

    /// Enrols an agent and mints its credential.
    ///
    /// # Errors
    /// [`VaultError::Invalid`] for a name that is taken or not allowed.
    pub fn enrol(&self, agent: Agent) -> Result<Credential, VaultError> {
        self.ask(move |engine| engine.enrol(&agent)).wait()
    }

    /// Removes an agent.
    ///
    /// # Errors
    /// [`VaultError::Invalid`] when there is none of this name.
    pub fn remove_agent(&self, name: &str) -> Result<(), VaultError> {
        let name = name.to_owned();
        self.ask(move |engine| engine.remove_agent(&name)).wait()
    }

    /// All agents.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn agents(&self) -> Result<Vec<Agent>, VaultError> {
        self.ask(|engine| engine.agents()).wait()
    }

    /// Bytes that the memories of each agent take, with headers, by the agents' names. Agents that stored nothing are not in it;
    /// some that are not enrolled any more may be.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn usage(&self) -> Result<BTreeMap<String, u64>, VaultError> {
        self.ask(|engine| {
            engine.held()?;
            engine.usage().cloned()
        })
        .wait()
    }

    /// The agent that a credential is of.
    ///
    /// # Errors
    /// [`crate::Refusal::NotAllowed`] when it is of none.
    pub fn authenticate(&self, credential: &[u8]) -> Result<Caller, VaultError> {
        let credential = stvor_crypto::SecretBytes::from_slice(credential);
        self.ask(move |engine| engine.authenticate(credential.expose())).wait()
    }

    /// Refuses somebody who tried to act as the owner without the owner's secret, and logs it.
    pub(crate) fn refuse_owner<T: Send + 'static>(&self) -> Result<T, VaultError> {
        let what = "act as the owner without the owner's secret";
        self.ask(move |engine| engine.refuse_stranger(Operation::ActAsOwner, what)).wait()
    }

    /// Refuses what an agent sent for what it is itself, and logs that with the verb of the owner that it asked for.
    pub(crate) fn refuse_request<T: Send + 'static>(
        &self,
        caller: &Caller,
        asked: (Operation, Option<&'static str>),
        error: VaultError,
    ) -> Pending<T> {
        let caller = caller.clone();
        self.ask(move |engine| engine.refuse_request(&caller, asked, error))
    }

    /// What the vault counts, in the text format of Prometheus.
    ///
    /// # Errors
    /// [`VaultError::Closed`].
    pub fn metrics(&self) -> Result<String, VaultError> {
        self.ask(|engine| Ok(engine.metrics.render())).wait()
    }
}
