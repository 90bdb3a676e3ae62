//! Listing and searching: what the caller may not recall takes no part in either.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::Engine;
use super::agents::Caller;
use super::bound::set_back;
use super::reads::{Passed, bounds, passed};
use crate::audit::{Event, Operation};
use crate::error::Refusal;
use crate::level::Level;
use crate::memory::{Found, Header, MemoryId, NAMESPACE, State, is_name};
use crate::storage::index::{Hit, words};
use crate::{VaultError, limits};

/// Refuses a name that no namespace has.
fn must_name(namespace: &str) -> Result<(), VaultError> {
    match is_name(namespace) {
        true => Ok(()),
        false => Err(VaultError::invalid(NAMESPACE)),
    }
}

/// What a page holds, until it is full.
#[derive(Default)]
struct Page {
    headers: Vec<Header>,
    bytes: usize,
}

impl Page {
    fn is_full(&self) -> bool {
        self.headers.len() >= limits::MAX_PAGE || self.bytes >= limits::MAX_PAGE_BYTES
    }

    /// Takes a memory as its caller sees it. How long one is that is closed to them is nothing that the end of a page may tell.
    fn take(&mut self, header: Header, bytes: usize) {
        self.bytes += if header.closed { 0 } else { bytes };
        self.headers.push(header);
    }
}

/// What the end of a page is bound to.
fn place_of_page(caller: &Caller, namespace: &str) -> Vec<u8> {
    // Neither has control characters.
    format!("end of a page\0{}\0{namespace}", caller.name()).into_bytes()
}

/// Memories as a caller sees them, those that are closed to it last: among the others their places would tell when each was stored.
fn closed_last(seen: Vec<Header>) -> Vec<Header> {
    let (mut closed, mut seen): (Vec<_>, Vec<_>) = seen.into_iter().partition(|header| header.closed);
    closed.sort_unstable_by_key(|header| header.id);
    seen.append(&mut closed);
    seen
}

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
            must_name(namespace)?;
            caller.must_reach(namespace)?;
            engine.index_namespace(caller, namespace)?;
            let levels = engine.searched(caller)?;
            // What is in the index may be searched, however much was read, but not what takes going through much of it.
            let spent = engine.may_read(caller).err();
            let (bounds, mut taken) = (bounds(caller, spent.is_some()), Vec::new());
            let hits = engine.index.find((namespace, &levels), &words, bounds, &mut taken);
            if spent.is_none() {
                engine.count_steps(caller, &taken, matches!(hits, Ok(None)));
            }
            let Some(mut hits) = hits? else {
                let many = || match words.iter().any(|word| word.ends_with('*')) {
                    true => {
                        VaultError::invalid("very many words begin so; write more of each before its star")
                    }
                    false => VaultError::invalid(
                        "these words stand in very many places; search for fewer of them, or for rarer ones",
                    ),
                };
                return Err(spent.map_or_else(many, VaultError::from));
            };
            let mut more = hits.len() > limits::MAX_PAGE;
            hits.truncate(limits::MAX_PAGE);
            let mut over = Passed::default();
            let now = engine.latest(&event.at);
            let page = engine.page_of_hits((caller, namespace), &hits, now, (&mut over, spent.is_some()));
            engine.count_passed(caller, &over);
            let (found, cut) = page?;
            more |= cut;
            event.count = Some(found.headers.len() as u64);
            Ok(Found { memories: found.headers, more })
        })
    }

    /// A page of what was found by its words, and whether it ended before the last of it. Adds up what it passes over.
    fn page_of_hits(
        &self,
        (caller, namespace): (&Caller, &str),
        hits: &[Hit],
        now: u64,
        (over, spent): (&mut Passed, bool),
    ) -> Result<(Page, bool), VaultError> {
        let (mut found, mut headers) = (Page::default(), self.database.headers()?);
        for hit in hits {
            let Some((row, fresh)) = headers.of(&hit.id)? else { continue };
            let listed = if fresh { self.opened(&row) } else { Err(set_back(&row)) };
            let Some(header) = self.sound(listed)? else { continue };
            let known = caller.reaches(&header.namespace) && caller.may_have(header.level);
            if known
                && header.namespace == namespace
                && header.state == State::Live
                && header.gone(now).is_none()
                && !self.closed_to(caller, &header)?
            {
                if found.is_full() {
                    return Ok((found, true));
                }
                found.take(self.seen_by(caller, header)?, row.header.len());
            } else {
                // Its time ran out, and it is not destroyed yet.
                over.take(caller, &header, passed(&row));
                if over.ends(spent) {
                    return Ok((found, true));
                }
            }
        }
        Ok((found, false))
    }

    /// Lists the memories of a namespace, newest first, from where the page before ended. With where to go on, if the caller may know
    /// of more, or so much was passed over that nobody looked further.
    pub(crate) fn list(
        &mut self,
        caller: &Caller,
        namespace: &str,
        before: Option<&str>,
    ) -> Result<(Vec<Header>, Option<String>), VaultError> {
        let event = Event::new(self.clock.now(), caller.name(), Operation::List);
        self.audited_for(caller, event, |engine, event| {
            engine.no_lockdown()?;
            must_name(namespace)?;
            event.text = Some(engine.keyed("text", namespace.as_bytes())?);
            caller.must_reach(namespace)?;
            engine.may_read(caller)?;
            let space = engine.blind("namespace", namespace)?;
            let place = place_of_page(caller, namespace);
            let before = match before {
                Some(before) => engine.open_end(&place, before)?,
                None => i64::MAX,
            };
            let (mut over, mut closed) = (Passed::default(), Passed::default());
            let page = engine.page((caller, &space), before, (&mut over, &mut closed));
            // Also of a list that failed.
            engine.count_passed(caller, &over);
            engine.count_passed(caller, &closed);
            let (found, next) = page?;
            let next = next.map(|number| engine.seal_end(&place, number)).transpose()?;
            event.count = Some(found.headers.len() as u64);
            Ok((closed_last(found.headers), next))
        })
    }

    /// A page of a namespace from before the number `before`, and the number of the memory that it ended at, if there may be more. Adds up
    /// what it passes over, and what it reads of closed memories.
    fn page(
        &self,
        (caller, space): (&Caller, &[u8]),
        mut before: i64,
        (over, closed): (&mut Passed, &mut Passed),
    ) -> Result<(Page, Option<i64>), VaultError> {
        let (mut found, mut last) = (Page::default(), 0);
        loop {
            let rows = self.database.page(space, before, limits::MAX_PAGE + 1)?;
            let Some((number, _)) = rows.last() else { return Ok((found, None)) };
            before = *number;
            for (number, row) in rows {
                let Some(header) = self.sound(self.listed(&row))? else { continue };
                let live = matches!(header.state, State::Live | State::Superseded);
                if !caller.may_have(header.level) || !(live || caller.is_owner()) {
                    // It takes no place, or the pages would tell that it is there.
                    over.take(caller, &header, passed(&row));
                    if over.is_much() {
                        return Ok((found, Some(number)));
                    }
                    continue;
                }
                if found.is_full() {
                    return Ok((found, Some(last)));
                }
                last = number;
                if self.closed_to(caller, &header)? {
                    closed.take(caller, &header, passed(&row));
                }
                found.take(self.seen_by(caller, header)?, row.header.len());
                if closed.is_much() {
                    return Ok((found, Some(number)));
                }
            }
        }
    }

    /// Where a page ended, for who got it: numbers of rows would tell how much others store.
    fn seal_end(&mut self, place: &[u8], number: i64) -> Result<String, VaultError> {
        let held = self.held.as_ref().ok_or(VaultError::Refused(Refusal::Cold))?;
        let sealed = held.base.rows.seal(&mut self.rng, place, &number.to_be_bytes())?;
        Ok(STANDARD_NO_PAD.encode(sealed))
    }

    fn open_end(&self, place: &[u8], end: &str) -> Result<i64, VaultError> {
        let base = &self.held()?.base;
        let opened = STANDARD_NO_PAD.decode(end).ok().and_then(|end| base.rows.open(place, &end).ok());
        let number = opened.and_then(|number| number.expose().try_into().ok()).map(i64::from_be_bytes);
        number.ok_or_else(|| {
            VaultError::invalid("no page of this list ended there; list it from the beginning")
        })
    }

    /// The header of a row that was read without its content.
    pub(super) fn listed(&self, row: &crate::storage::MemoryRow) -> Result<Header, VaultError> {
        self.must_be_fresh(row)?;
        self.opened(row)
    }

    /// The same of a row that is known to be the newest.
    fn opened(&self, row: &crate::storage::MemoryRow) -> Result<Header, VaultError> {
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
            let found = engine.linked(caller, intent, engine.latest(&event.at))?;
            event.count = Some(found.memories.len() as u64);
            Ok(found)
        })
    }

    /// Goes through the memories of an intent until there is a page of what the caller may know of, or very much was passed over:
    /// others' take no place. Newest first.
    fn linked(&mut self, caller: &Caller, intent: &str, now: u64) -> Result<Found, VaultError> {
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
        self.may_read(caller)?;
        let mut over = Passed::default();
        let found = self.page_of_links((caller, &blinds), (intent, now), &mut over);
        // Also of a look that failed.
        self.count_passed(caller, &over);
        let (mut found, more) = found?;
        found.headers.sort_by_key(|header| core::cmp::Reverse(header.created));
        Ok(Found { memories: found.headers, more })
    }

    /// A page of what has one of these links, and whether there may be more. Adds up what it passes over.
    fn page_of_links(
        &self,
        (caller, blinds): (&Caller, &[Vec<u8>]),
        (intent, now): (&str, u64),
        over: &mut Passed,
    ) -> Result<(Page, bool), VaultError> {
        let mut found = Page::default();
        for blind in blinds {
            let mut after = Vec::new();
            loop {
                let ids: Vec<MemoryId> = self.database.linked(blind, &after, limits::MAX_PAGE)?;
                let Some(last) = ids.last() else { break };
                after = last.as_bytes().to_vec();
                for id in &ids {
                    let Some(row) = self.database.memory_header(id)? else { continue };
                    let Some(header) = self.sound(self.listed(&row))? else { continue };
                    let known = caller.reaches(&header.namespace)
                        && caller.may_have(header.level)
                        && !self.closed_to(caller, &header)?;
                    if known && header.intents.iter().any(|one| one == intent) && header.gone(now).is_none() {
                        if found.is_full() {
                            return Ok((found, true));
                        }
                        found.take(self.seen_by(caller, header)?, row.header.len());
                    } else {
                        over.take(caller, &header, passed(&row));
                        if over.is_much() {
                            return Ok((found, true));
                        }
                    }
                }
            }
        }
        Ok((found, false))
    }
}
