//! Commitment leaves, what opens them, and attestations.

use stvor_crypto::commitment::Opening;
use stvor_tlog::Note;

use super::Engine;
use super::agents::OWNER;
use crate::audit::{Event, Operation, hex};
use crate::clock::Moment;
use crate::error::Refusal;
use crate::memory::{Header, MemoryId};
use crate::proofs::{Attestation, Claim, Commitments, ContentOpening, content_commitment};
use crate::storage::MemoryRow;
use crate::{VaultError, limits};

fn slot(id: MemoryId) -> String {
    format!("commitment/{id}")
}

impl Engine {
    fn committed(&self, id: MemoryId) -> Result<(MemoryRow, Header), VaultError> {
        let unknown = || VaultError::Refused(Refusal::NotFound(id.to_string()));
        let row = self.database.memory(&id)?.ok_or_else(unknown)?;
        let header = self.header(&row)?;
        Ok((row, header))
    }

    /// What a commitment to a memory is made of. The blinding follows from the vault's key and the memory's name.
    fn open_number(&self, header: &Header, of_level: bool) -> Result<Opening, VaultError> {
        let base = &self.held()?.base;
        let (purpose, value) = match of_level {
            true => ("commitment level", header.level.number().into()),
            false => ("commitment stored", header.created),
        };
        Ok(Opening { value, blinding: base.hash(purpose, header.id.as_bytes()) })
    }

    /// Logs a commitment leaf. It tells nothing of who, what or when; the event after it does, and stays in the vault.
    /// Where one stands that is there already is looked up, and no more.
    pub(crate) fn commit_memory(&mut self, id: MemoryId) -> Result<u64, VaultError> {
        if self.no_lockdown().is_ok()
            && let Some(seq) = self.sealed_slot(&slot(id))?
        {
            return Ok(seq);
        }
        let mut event = Event::new(self.clock.now(), OWNER, Operation::Prove);
        event.memory = Some(id);
        self.audited(event, |engine, event| {
            engine.no_lockdown()?;
            let (row, header) = engine.committed(id)?;
            event.level = Some(header.level);
            if let Some(why) = header.gone(engine.latest(&event.at)) {
                return Err(Refusal::Gone(why).into());
            }
            let held = engine.held()?;
            let seq = held.tree.size();
            let open = !header.level.needs_session()
                || held.session.as_ref().is_some_and(|keys| keys.opens(header.level));
            let content = match open {
                true => Some(content_commitment(&engine.salt(id)?, engine.open(&row, &header)?.expose())),
                false => None,
            };
            let number = |of_level| {
                Ok::<_, VaultError>(hex(engine.open_number(&header, of_level)?.commit().as_bytes()))
            };
            let commitments = Commitments { level: number(true)?, stored: number(false)?, content };
            let nowhere = Moment { wall: 0, uptime: 0, boot: String::new() };
            let mut leaf = Event::new(nowhere, "vault", Operation::Commit);
            leaf.commitment = Some(commitments);
            engine.log(&leaf)?;
            engine.put_sealed_slot(&slot(id), &seq)?;
            Ok(seq)
        })
    }

    fn salt(&self, id: MemoryId) -> Result<[u8; 32], VaultError> {
        Ok(*self.held()?.base.hash("commitment salt", id.as_bytes()).expose())
    }

    /// What opens the commitment that a claim is about.
    pub(crate) fn opening(&self, id: MemoryId, claim: Claim) -> Result<Opening, VaultError> {
        self.no_lockdown()?;
        let (_, header) = self.committed(id)?;
        self.open_number(&header, claim.of_level())
    }

    pub(crate) fn content_opening(&self, id: MemoryId) -> Result<ContentOpening, VaultError> {
        self.no_lockdown()?;
        let (_, header) = self.committed(id)?;
        if let Some(why) = header.gone(self.latest(&self.clock.now())) {
            return Err(Refusal::Gone(why).into());
        }
        if self.sealed_slot::<u64>(&slot(id))?.is_none() {
            return Err(VaultError::invalid(
                "nothing was proved of this memory: prove something of it first",
            ));
        }
        Ok(ContentOpening { salt: hex(&self.salt(id)?) })
    }

    /// Signs a statement.
    pub(crate) fn attest(&mut self, statement: &str) -> Result<Note, VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::Attest);
        self.audited(event, |engine, event| {
            engine.no_lockdown()?;
            let fits = !statement.is_empty() && statement.len() <= limits::MAX_TEXT;
            if !fits || statement.contains(char::is_control) {
                return Err(VaultError::invalid("a statement is one line of 1 to 4096 bytes"));
            }
            event.text = Some(engine.keyed("text", statement.as_bytes())?);
            let signer = &engine.held()?.base.signer;
            let text = Attestation::text(signer.verifier().name(), event.at.wall, statement);
            Ok(Note::sign(&text, &[signer])?)
        })
    }
}
