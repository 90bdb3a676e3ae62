//! Listing and searching: what the caller may not recall takes no part in either.

use super::agents::Caller;
use super::{Engine, Later};
use crate::audit::{Event, Operation};
use crate::level::Level;
use crate::memory::{Found, Header, MemoryId, State};
use crate::storage::index::{Index, words};
use crate::{VaultError, limits};

/// Rows that are read at a time.
const BATCH: usize = 64;

impl Engine {
    /// Levels whose words are in the index now.
    fn searched(&self, caller: &Caller) -> Result<Vec<Level>, VaultError> {
        let session = self.held()?.session.as_ref();
        let open = |level: &Level| match level {
            Level::Ephemeral | Level::Working => true,
            Level::Private => session.is_some_and(|keys| keys.opens(*level)),
            // Only what its writer marked as searchable, and for the owner only.
            _ => caller.is_owner() && session.is_some(),
        };
        Ok(Level::ALL.into_iter().filter(|level| open(level) && caller.may_have(*level)).collect())
    }

    /// The words by which a memory is found.
    fn text_of(header: &Header, content: Option<&[u8]>) -> String {
        let mut text = String::new();
        if let Some(content) = content {
            text.push_str(&String::from_utf8_lossy(content));
            for value in header.metadata.values() {
                text.push('\n');
                text.push_str(value);
            }
        } else {
            for value in header.searchable.iter().filter_map(|key| header.metadata.get(key)) {
                text.push('\n');
                text.push_str(value);
            }
        }
        text
    }

    /// Takes a new memory into the index when its commit is through.
    pub(super) fn index_later(&mut self, header: Header, content: &[u8]) {
        if self.index.as_ref().is_some_and(|index| index.holds(&header.namespace))
            && self.profile_open(&header)
        {
            let open = !header.level.needs_approval();
            let text = Self::text_of(&header, open.then_some(content));
            self.later.push(Later::Add(header.id, (header.namespace, header.level), text));
        }
    }

    /// Drops the index: with the keys of level 2 gone, nothing may be left of what they opened.
    pub(super) fn drop_index(&mut self) {
        self.index = None;
    }

    /// Takes what can be read of a namespace into the index, if it is not there yet. Where there is no room for it beside
    /// others, those make room: no namespace costs a search of another one anything.
    fn index_namespace(&mut self, namespace: &str) -> Result<(), VaultError> {
        if let Some(mut index) = self.index.take()
            && (index.holds(namespace) || self.fill_index(&mut index, namespace).is_ok())
        {
            self.index = Some(index);
            return Ok(());
        }
        let mut index = Index::new()?;
        self.fill_index(&mut index, namespace)?;
        self.index = Some(index);
        Ok(())
    }

    fn fill_index(&self, index: &mut Index, namespace: &str) -> Result<(), VaultError> {
        let full = |_| VaultError::invalid("this namespace holds more words than can be searched");
        index.begin()?;
        let session = self.held()?.session.is_some();
        let (now, space) = (self.clock.now().wall, self.blind("namespace", namespace)?);
        let mut after = 0;
        loop {
            let rows = self.database.space_after(&space, after, BATCH)?;
            let Some((last, _)) = rows.last() else { break };
            after = *last;
            for (_, row) in rows {
                let Some(header) = self.sound(self.header(&row))? else { continue };
                let wanted = !header.level.needs_session() || session;
                if !wanted
                    || !self.profile_open(&header)
                    || header.state != State::Live
                    || header.gone(now).is_some()
                {
                    continue;
                }
                let content = if header.level.needs_approval() {
                    None
                } else {
                    let Some(content) = self.sound(self.open(&row, &header))? else { continue };
                    Some(content)
                };
                let text = Self::text_of(&header, content.as_ref().map(|content| content.expose()));
                index.add(header.id, (&header.namespace, header.level), &text).map_err(full)?;
            }
        }
        index.end()?;
        index.hold(namespace);
        Ok(())
    }

    /// Searches a namespace for memories that hold all words of `query`, best first.
    pub(crate) fn search(
        &mut self,
        caller: &Caller,
        namespace: &str,
        query: &str,
    ) -> Result<Found, VaultError> {
        let event = Event::new(self.clock.now(), caller.name(), Operation::Search);
        self.audited_for(caller, event, |engine, event| {
            engine.no_lockdown()?;
            let words = words(query)?;
            event.text = Some(engine.keyed("text", query.as_bytes())?);
            caller.must_reach(namespace)?;
            engine.index_namespace(namespace)?;
            let levels = engine.searched(caller)?;
            let mut hits = match &engine.index {
                Some(index) => index.find((namespace, &levels), &words, limits::MAX_PAGE + 1)?,
                None => Vec::new(),
            };
            let more = hits.len() > limits::MAX_PAGE;
            hits.truncate(limits::MAX_PAGE);
            let mut found = Vec::new();
            for hit in hits {
                let Some(row) = engine.database.memory_header(&hit.id)? else { continue };
                let Some(header) = engine.sound(engine.listed(&row))? else { continue };
                let known = caller.reaches(&header.namespace) && caller.may_have(header.level);
                if known
                    && header.namespace == namespace
                    && header.state == State::Live
                    && header.gone(event.at.wall).is_none()
                    && !engine.closed_to(caller, &header)?
                {
                    found.push(engine.seen_by(caller, header)?);
                }
            }
            event.count = Some(found.len() as u64);
            Ok(Found { memories: found, more })
        })
    }

    /// Lists the memories of a namespace, newest first, from before the number `before`. With the number to go on from.
    pub(crate) fn list(
        &mut self,
        caller: &Caller,
        namespace: &str,
        before: Option<i64>,
    ) -> Result<(Vec<Header>, Option<i64>), VaultError> {
        let event = Event::new(self.clock.now(), caller.name(), Operation::List);
        self.audited_for(caller, event, |engine, event| {
            engine.no_lockdown()?;
            event.text = Some(engine.keyed("text", namespace.as_bytes())?);
            caller.must_reach(namespace)?;
            let space = engine.blind("namespace", namespace)?;
            let mut rows = engine.database.page(&space, before.unwrap_or(i64::MAX), limits::MAX_PAGE + 1)?;
            let mut next = None;
            if rows.len() > limits::MAX_PAGE {
                rows.truncate(limits::MAX_PAGE);
                next = rows.last().map(|(number, _)| *number);
            }
            let mut found = Vec::new();
            for (_, row) in rows {
                let Some(header) = engine.sound(engine.listed(&row))? else { continue };
                let live = matches!(header.state, State::Live | State::Superseded);
                if caller.may_have(header.level) && (live || caller.is_owner()) {
                    found.push(header);
                }
            }
            event.count = Some(found.len() as u64);
            Ok((engine.seen_in_order(caller, found)?, next))
        })
    }

    /// The header of a row that was read without its content.
    pub(super) fn listed(&self, row: &crate::storage::MemoryRow) -> Result<Header, VaultError> {
        self.must_be_fresh(row)?;
        let plain = self.held()?.base.rows.open(row.id.as_bytes(), &row.header);
        let tampered = |reason: &str| VaultError::tampered(format!("the memory {}", row.id), reason);
        let plain = plain.map_err(|_| tampered("its header does not open"))?;
        serde_json::from_slice(plain.expose()).map_err(|_| tampered("its header is not understood"))
    }

    /// Memories that serve an intent, as far as the caller may know of them.
    pub(crate) fn by_intent(&mut self, caller: &Caller, intent: &str) -> Result<Found, VaultError> {
        let event = Event::new(self.clock.now(), caller.name(), Operation::Search);
        self.audited_for(caller, event, |engine, event| {
            engine.no_lockdown()?;
            event.text = Some(engine.keyed("text", intent.as_bytes())?);
            let found = engine.linked(caller, intent, event.at.wall)?;
            event.count = Some(found.memories.len() as u64);
            Ok(found)
        })
    }

    /// Goes through the memories of an intent until there is a page of what the caller may know of: others' take no place. Newest
    /// first.
    fn linked(&self, caller: &Caller, intent: &str, now: u64) -> Result<Found, VaultError> {
        let exact = match caller {
            Caller::Agent(agent) if agent.namespaces.iter().all(|pattern| !pattern.ends_with('*')) => {
                &agent.namespaces[..]
            }
            _ => &[],
        };
        let mut blinds = Vec::new();
        for namespace in exact {
            let [within, _] = self.links(namespace, intent)?;
            blinds.push(within);
        }
        if exact.is_empty() {
            blinds.push(self.blind("intent", intent)?);
        }
        let (mut found, mut more) = (Vec::new(), false);
        'all: for blind in blinds {
            let mut after = Vec::new();
            loop {
                let ids: Vec<MemoryId> = self.database.linked(&blind, &after, limits::MAX_PAGE)?;
                let Some(last) = ids.last() else { break };
                after = last.as_bytes().to_vec();
                for id in &ids {
                    let Some(row) = self.database.memory_header(id)? else { continue };
                    let Ok(header) = self.listed(&row) else { continue };
                    let known = caller.reaches(&header.namespace)
                        && caller.may_have(header.level)
                        && !self.closed_to(caller, &header)?;
                    if known && header.intents.iter().any(|one| one == intent) && header.gone(now).is_none() {
                        if found.len() == limits::MAX_PAGE {
                            more = true;
                            break 'all;
                        }
                        found.push(self.seen_by(caller, header)?);
                    }
                }
            }
        }
        found.sort_by_key(|header| core::cmp::Reverse(header.created));
        Ok(Found { memories: found, more })
    }
}
