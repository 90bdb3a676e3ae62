//! Storing, recalling, correcting, closing and destroying memories.

use std::collections::hash_map::Entry;

use stvor_base::{ErrorCode as _, Timestamp};
use stvor_crypto::Random;
use stvor_crypto::kdf::constant_time_eq;

use super::agents::Caller;
use super::correction::Terms;
use super::sessions::SessionId;
use super::{Engine, hour};
use crate::audit::{Event, Operation};
use crate::error::Refusal;
use crate::gates::boundary::Verdict;
use crate::gates::{Situation, decide};
use crate::level::Level;
use crate::memory::{Header, INTENT, INTENTS, MemoryId, NewMemory, Recalled, State, Trust, is_name};
use crate::sealing::{Sender, Wrap, open_content, seal_content};
use crate::storage::MemoryRow;
use crate::{Inspection, VaultError, detect, limits};

/// A recall as it was asked for.
#[derive(Debug)]
pub(crate) struct Recall<'a> {
    pub(crate) caller: &'a Caller,
    pub(crate) id: MemoryId,
    pub(crate) justification: &'a str,
    pub(crate) boundary: Option<Verdict>,
}

pub(super) fn millis(duration: core::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Refuses what looks like a secret where agents read freely.
fn no_secrets<'a>(level: Level, texts: impl IntoIterator<Item = &'a [u8]>) -> Result<(), Refusal> {
    if level.needs_approval() {
        return Ok(());
    }
    match texts.into_iter().find_map(detect::secret) {
        Some(kind) => Err(Refusal::SecretDetected { kind }),
        None => Ok(()),
    }
}

impl Engine {
    /// The keyed hashes that an intent of a memory is found by: among those of its namespace, and among all.
    pub(super) fn links(&self, namespace: &str, intent: &str) -> Result<[Vec<u8>; 2], VaultError> {
        // A namespace has no control characters.
        let within = self.blind("intent of", &format!("{namespace}\0{intent}"))?;
        Ok([within, self.blind("intent", intent)?])
    }

    /// Stores a memory.
    pub(crate) fn store(
        &mut self,
        (caller, session): (&Caller, SessionId),
        memory: &NewMemory,
    ) -> Result<MemoryId, VaultError> {
        let mut event = Event::new(self.clock.now(), caller.name(), Operation::Store);
        event.level = memory.level;
        self.audited_for(caller, event, |engine, event| {
            engine.no_lockdown()?;
            memory.check()?;
            caller.must_write()?;
            let older = match memory.supersedes {
                Some(older) => Some(engine.correctable(caller, (older, memory))?),
                None => None,
            };
            let older_header = older.as_ref().map(|(_, header)| header);
            // Its time is counted from what is believed, or it would be over before it began.
            let terms = Self::terms(caller, (memory, engine.latest(&event.at)), older_header)?;
            event.level = Some(terms.level);
            if !caller.may_have(terms.level) {
                return Err(Refusal::NotAllowed { what: "store at this level" }.into());
            }
            caller.must_reach(&terms.namespace)?;
            if memory.trust == Trust::Owner && !caller.is_owner() {
                return Err(Refusal::NotAllowed { what: "store something as said by the owner" }.into());
            }
            if terms.expires.is_some() && engine.held()?.pace.is_behind(&event.at) {
                // By such a clock nobody knows when its time is over.
                return Err(Refusal::ClockBackwards.into());
            }
            let header = engine.new_header(caller, (memory, terms), event.at.wall)?;
            let texts = core::iter::once(memory.content.expose()).chain(header.texts().map(str::as_bytes));
            no_secrets(header.level, texts)?;
            if !caller.is_owner() {
                engine.inspect((caller, &header), memory.content.expose(), true)?;
            }
            if let Some(older) = older {
                engine.supersede(caller, older, header.id)?;
            }
            let row = engine.seal(&header, memory.content.expose())?;
            engine.charge(caller, &row)?;
            engine.database.insert_memory(&row)?;
            if header.state == State::Tombstoned {
                engine.note(event, &header.state_reason)?;
                engine.list_as_ended(&header)?;
            }
            engine.count_in_profile(&header)?;
            for intent in &header.intents {
                for blind in engine.links(&header.namespace, intent)? {
                    engine.database.link(&blind, &header.id)?;
                }
            }
            event.memory = Some(header.id);
            (event.content, event.row) = (Some(header.content_hash.clone()), Some(row.digest()));
            let id = header.id;
            engine.ends_with(session, (id, header.level));
            if header.state == State::Live {
                engine.index_later(header, memory.content.expose());
            }
            Ok(id)
        })
    }

    fn new_header(
        &mut self,
        caller: &Caller,
        (memory, terms): (&NewMemory, Terms),
        now: u64,
    ) -> Result<Header, VaultError> {
        let mut id = [0; 16];
        self.rng.fill(&mut id)?;
        Ok(Header {
            id: MemoryId::from_bytes(id),
            level: terms.level,
            namespace: terms.namespace,
            creator: caller.name().to_owned(),
            created: now,
            expires: terms.expires,
            cooldown: terms.cooldown,
            metadata: memory.metadata.clone(),
            searchable: memory.searchable.clone(),
            intents: memory.intents.clone(),
            source: memory.source.clone(),
            trust: memory.trust,
            supersedes: memory.supersedes,
            profile: terms.profile,
            superseded_by: None,
            length: memory.content.len() as u64,
            content_hash: self.keyed("content", memory.content.expose())?,
            state: if memory.tombstone.is_some() { State::Tombstoned } else { State::Live },
            state_since: memory.tombstone.as_ref().map(|_| now),
            state_reason: memory.tombstone.clone().unwrap_or_default(),
            destroyed_at: None,
            closed: false,
        })
    }

    fn seal(&mut self, header: &Header, content: &[u8]) -> Result<MemoryRow, VaultError> {
        let sealed = {
            let held = self.held.as_ref().ok_or(VaultError::Refused(Refusal::Cold))?;
            let wrap = held.base.wrap(header.level).ok_or(match header.level {
                Level::Black => Refusal::NoToken,
                _ => Refusal::NoVaultedKey,
            })?;
            let wrap = match wrap {
                Wrap::Public(public) => Wrap::Sender(match self.senders.entry(header.level) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(place) => place.insert(Sender::new(public, &mut self.rng)?),
                }),
                other => other,
            };
            seal_content(&wrap, &header.bound(), content, &mut self.rng)?
        };
        Ok(MemoryRow {
            id: header.id,
            space: self.blind("namespace", &header.namespace)?,
            due: header.expires.map(hour),
            header: self.seal_header(header)?,
            wrapped: Some(self.wrap_for_profile(header, sealed.wrapped)?),
            content: Some(sealed.content),
        })
    }

    pub(super) fn set_state(&self, header: &mut Header, state: State, reason: &str) {
        header.state = state;
        header.state_since = Some(self.clock.now().wall);
        reason.clone_into(&mut header.state_reason);
    }

    /// The row and header of a memory that the caller may know of.
    pub(crate) fn find(&self, caller: &Caller, id: MemoryId) -> Result<(MemoryRow, Header), VaultError> {
        let unknown = || VaultError::Refused(Refusal::NotFound(id.to_string()));
        let row = self.database.memory(&id)?.ok_or_else(unknown)?;
        let header = self.header(&row)?;
        if caller.reaches(&header.namespace) && caller.may_have(header.level) {
            Ok((row, header))
        } else {
            Err(unknown())
        }
    }

    /// Recalls a memory, if every gate lets it pass.
    pub(crate) fn recall(&mut self, recall: &Recall<'_>) -> Result<Recalled, VaultError> {
        let mut event = Event::new(self.clock.now(), recall.caller.name(), Operation::Recall);
        event.memory = Some(recall.id);
        self.audited_for(recall.caller, event, |engine, event| {
            engine.no_lockdown()?;
            if recall.justification.len() > limits::MAX_TEXT {
                return Err(VaultError::invalid("a justification has at most 4096 bytes"));
            }
            if !recall.justification.is_empty() {
                engine.note(event, recall.justification)?;
            }
            let (row, header) = engine.find(recall.caller, recall.id)?;
            event.level = Some(header.level);
            let approval = engine.approval_for(recall, &row, event)?;
            let last_recall =
                match engine.database.last_recall(&recall.id)? {
                    // Without its time nobody knows whether the pause is over.
                    Some(seq) => Some(engine.event_time(seq)?.ok_or_else(|| {
                        VaultError::tampered(format!("the event {seq}"), "its row is gone")
                    })?),
                    None => None,
                };
            engine.drop_stale_token();
            let held = engine.held()?;
            decide(&Situation {
                header: &header,
                now: &event.at,
                last_event: held.pace.steady(),
                since_recall: last_recall.map(|last| engine.certainly_since(&event.at, &last)),
                key_held: !header.level.needs_session()
                    || held.session.as_ref().is_some_and(|keys| keys.opens(header.level)),
                justification: recall.justification,
                owner: recall.caller.is_owner(),
                // The owner's own recall is the approval.
                approved: recall.caller.is_owner() || approval.is_some(),
                boundary: recall.boundary.as_ref(),
                token_present: engine.token_present(&event.at),
            })?;
            let content = engine.open(&row, &header)?;
            event.content = Some(header.content_hash.clone());
            engine.inspect((recall.caller, &header), content.expose(), false)?;
            if header.cooldown > 0 {
                let seq = engine.held()?.tree.size();
                engine.database.put_recall(&recall.id, seq)?;
            }
            if let Some(approval) = approval {
                engine.use_approval(approval)?;
            }
            if header.level == Level::Black {
                engine.drop_token();
            }
            Ok(Recalled { header, content })
        })
    }

    /// Decrypts a content and checks it against its keyed hash.
    pub(crate) fn open(
        &self,
        row: &MemoryRow,
        header: &Header,
    ) -> Result<stvor_crypto::SecretBytes, VaultError> {
        let tampered = |reason: &str| VaultError::tampered(format!("the memory {}", row.id), reason);
        let (Some(wrapped), Some(content)) = (&row.wrapped, &row.content) else {
            return Err(tampered("its content is gone, and nobody forgot it"));
        };
        let held = self.held()?;
        let nothing = crate::keys::SessionKeys::default();
        let session = held.session.as_ref().unwrap_or(&nothing);
        let locked = Refusal::Locked { level: header.level };
        let unwrap = session.unwrap(&held.base, header.level).ok_or(locked)?;
        let wrapped = Self::unwrap_profile(held, header, wrapped)?;
        let opened = open_content(&unwrap, &header.bound(), (wrapped.bytes(), content));
        let opened = opened.map_err(|_| tampered("its content does not open"))?;
        let hash = self.keyed("content", opened.expose())?;
        if !constant_time_eq(hash.as_bytes(), header.content_hash.as_bytes()) {
            return Err(tampered("its content is another one"));
        }
        Ok(opened)
    }

    /// Has every auditor look at a content, and at what is known of its memory.
    fn inspect(
        &self,
        (caller, header): (&Caller, &Header),
        content: &[u8],
        stores: bool,
    ) -> Result<(), VaultError> {
        let texts = core::iter::once(content).chain(header.texts().map(str::as_bytes));
        for plaintext in texts {
            self.look(&Inspection { caller, header, plaintext, stores })?;
        }
        Ok(())
    }

    fn look(&self, look: &Inspection<'_>) -> Result<(), Refusal> {
        self.auditors.iter().try_for_each(|auditor| auditor(look).map_err(Refusal::Auditor))
    }

    /// Keeps from an agent what is known of a memory and an auditor does not let pass. The memory stays in its list.
    pub(super) fn withhold(&self, caller: &Caller, header: &mut Header) {
        let refused = header.texts().find_map(|text| {
            let look = Inspection { caller, header, plaintext: text.as_bytes(), stores: false };
            self.look(&look).err()
        });
        if let Some(refusal) = refused.filter(|_| !caller.is_owner()) {
            header.metadata.clear();
            header.searchable.clear();
            header.intents.clear();
            header.state_reason.clear();
            header.source = format!("({}: {refusal})", refusal.code());
        }
    }

    /// The level and the namespace of a memory, which are known of one that is closed, too.
    pub(crate) fn place_of(&self, caller: &Caller, id: MemoryId) -> Option<(Level, String)> {
        self.find(caller, id).ok().map(|(_, header)| (header.level, header.namespace))
    }

    /// Links or unlinks an intent.
    pub(crate) fn set_intent(
        &mut self,
        caller: &Caller,
        (id, link): (MemoryId, bool),
        intent: &str,
    ) -> Result<(), VaultError> {
        let operation = if link { Operation::Link } else { Operation::Unlink };
        let mut event = Event::new(self.clock.now(), caller.name(), operation);
        event.memory = Some(id);
        self.audited_for(caller, event, |engine, event| {
            engine.no_lockdown()?;
            caller.must_write()?;
            event.text = Some(engine.keyed("text", intent.as_bytes())?);
            let (mut row, mut header) = engine.find(caller, id)?;
            event.level = Some(header.level);
            engine.may_change(caller, &header)?;
            if let Some(why) = header.gone(engine.latest(&event.at)) {
                return Err(Refusal::Gone(why).into());
            }
            // What is there can be taken away, whatever it is.
            if link && !is_name(intent) {
                return Err(VaultError::invalid(INTENT));
            }
            if link && header.intents.len() >= limits::MAX_INTENTS {
                return Err(VaultError::invalid(INTENTS));
            }
            if link {
                no_secrets(header.level, [intent.as_bytes()])?;
                if !caller.is_owner() {
                    // Whoever said the memory, this an agent says.
                    let said = Header { trust: header.trust.min(Trust::Agent), ..header.clone() };
                    let plaintext = intent.as_bytes();
                    engine.look(&Inspection { caller, header: &said, plaintext, stores: true })?;
                }
            }
            engine.must_be_whole(&row)?;
            let before = row.size();
            header.intents.retain(|known| known != intent);
            for blind in engine.links(&header.namespace, intent)? {
                match link {
                    true => engine.database.link(&blind, &id)?,
                    false => engine.database.unlink(&blind, &id)?,
                }
            }
            if link {
                header.intents.push(intent.to_owned());
            }
            row.header = engine.seal_header(&header)?;
            if link {
                engine.may_grow(caller, &header.creator, (before, row.size()))?;
            }
            engine.rewrite(before, &row, &header.creator)?;
            event.row = Some(row.digest());
            Ok(())
        })
    }

    /// What the wall clock of the engine says.
    pub(crate) fn wall(&self) -> Timestamp {
        Timestamp::from_millis(self.clock.now().wall)
    }
}
