//! What comes into the full-text index, and when.

use super::agents::Caller;
use super::reads::{Passed, passed};
use super::{Engine, Later};
use crate::memory::{Header, State};
use crate::storage::MemoryRow;
use crate::storage::index::{Index, Space};
use crate::{VaultError, limits};

/// Rows that are read at a time.
const BATCH: usize = 64;
/// Bytes of words after which a group of changes of the index ends.
const GROUP: usize = 4 << 20;
/// Bytes that the index may take.
#[cfg(not(test))]
pub(super) const MOST: usize = limits::MAX_INDEX;
#[cfg(test)]
pub(super) const MOST: usize = limits::MAX_INDEX >> 7;

/// The metadata by which a memory is found: all of it beside a content that is open to search, else what its writer marked.
fn marked(header: &Header, open: bool) -> impl Iterator<Item = &String> {
    let all = header.metadata.iter().filter(move |(key, _)| open || header.searchable.contains(key));
    all.map(|(_, value)| value)
}

/// The words by which a memory is found.
fn text_of(header: &Header, content: Option<&[u8]>) -> String {
    let mut text = content.map(|content| String::from_utf8_lossy(content).into_owned()).unwrap_or_default();
    for value in marked(header, content.is_some()) {
        text.push('\n');
        text.push_str(value);
    }
    text
}

impl Engine {
    /// Takes a new memory into the index when its commit is through.
    pub(super) fn index_later(&mut self, header: Header, content: &[u8]) {
        if self.index.holds(&header.namespace) && self.profile_open(&header) {
            let open = !header.level.needs_approval();
            let text = text_of(&header, open.then_some(content));
            self.later.push(Later::Add(header.id, (header.namespace, header.level), text));
        }
    }

    /// Drops the index: with the keys of level 2 gone, nothing may be left of what they opened, nor come into an index that is made
    /// before the commit.
    pub(super) fn drop_index(&mut self) {
        self.index = Index::default();
        self.later.retain(|change| matches!(change, Later::Remove(_)));
    }

    /// Takes what can be read of a namespace into the index, if it is not there yet. Where there is no room for it beside others,
    /// those make room that were searched longest ago. A namespace without memories takes none.
    pub(super) fn index_namespace(&mut self, caller: &Caller, namespace: &str) -> Result<(), VaultError> {
        if self.index.holds_for_search(namespace) {
            return Ok(());
        }
        self.may_read(caller)?;
        let space = self.blind("namespace", namespace)?;
        let (rows, bytes) = self.database.space_size(&space)?;
        if rows == 0 {
            return Ok(());
        }
        let (mut read, mut headers) = (Passed::default(), Passed::default());
        // The index has the words themselves, too: what is too long is known before anything makes room for it.
        let words = match bytes > MOST as u64 {
            true => self.words_in((caller, &space), (&mut read, &mut headers)),
            false => Ok(0),
        };
        let filled = words.and_then(|words| match words > MOST as u64 {
            true => Ok(None),
            false => {
                // The contents are not read yet, and the headers once more.
                read = headers;
                let mut index = core::mem::take(&mut self.index);
                let filled = self.fill((caller, &space), &mut index, &mut read);
                self.index = index;
                filled
            }
        });
        self.count_indexed(caller, &read);
        let full = || VaultError::invalid("this namespace holds more words than can be searched");
        self.index.hold(namespace, filled?.ok_or_else(full)?);
        Ok(())
    }

    /// Whether a memory can be found by its words now.
    fn found_by_words(&self, header: &Header, now: u64) -> Result<bool, VaultError> {
        let session = self.held()?.session.is_some();
        let readable = (!header.level.needs_session() || session) && self.profile_open(header);
        Ok(readable && header.state == State::Live && header.gone(now).is_none())
    }

    /// Bytes of words by which memories of a namespace can be found now. Adds up what it would take to read them all, and the
    /// headers, which it reads.
    fn words_in(
        &self,
        (caller, space): (&Caller, &[u8]),
        (all, headers): (&mut Passed, &mut Passed),
    ) -> Result<u64, VaultError> {
        let (now, mut after, mut bytes) = (self.latest(&self.clock.now()), 0, 0_u64);
        loop {
            let rows = self.database.space_headers_after(space, after, BATCH)?;
            let Some((last, _)) = rows.last() else { return Ok(bytes) };
            after = *last;
            for (_, row) in rows {
                let Some(header) = self.sound(self.listed(&row))? else { continue };
                headers.take(caller, &header, passed(&row));
                all.take(caller, &header, passed(&row).saturating_add(header.length));
                if self.found_by_words(&header, now)? {
                    let open = !header.level.needs_approval();
                    let words = marked(&header, open).map(|value| value.len() as u64).sum::<u64>();
                    bytes += words + if open { header.length } else { 0 };
                }
            }
        }
    }

    /// The words of a namespace; nothing where they do not fit into the index even alone. Adds up what it reads.
    fn fill(
        &self,
        (caller, space): (&Caller, &[u8]),
        index: &mut Index,
        read: &mut Passed,
    ) -> Result<Option<Space>, VaultError> {
        let mut filled = Space::new(MOST)?;
        let (now, mut after, mut waiting) = (self.latest(&self.clock.now()), 0, 0);
        filled.begin()?;
        loop {
            let rows = self.database.space_after(space, after, BATCH)?;
            let Some((last, _)) = rows.last() else { break };
            after = *last;
            for (_, row) in rows {
                let Some(header) = self.sound(self.header(&row))? else { continue };
                read.take(caller, &header, passed(&row));
                let Some(text) = self.words_of(&row, &header, now)? else { continue };
                if filled.add(header.id, header.level, &text).is_err() {
                    return Ok(None);
                }
                waiting += text.len();
            }
            if waiting >= GROUP {
                waiting = 0;
                if filled.end().is_err() {
                    return Ok(None);
                }
                if filled.size()? > MOST {
                    return Ok(None);
                }
                index.make_room(filled.size()?, MOST)?;
                filled.begin()?;
            }
        }
        if filled.end().is_err() {
            return Ok(None);
        }
        // Where there is no room for that, it is searched as it is.
        let _ = filled.gather();
        // Taken in, it would be dropped again with the next memory.
        if filled.size()? > MOST {
            return Ok(None);
        }
        index.make_room(filled.size()?, MOST)?;
        Ok(Some(filled))
    }

    fn words_of(&self, row: &MemoryRow, header: &Header, now: u64) -> Result<Option<String>, VaultError> {
        if !self.found_by_words(header, now)? {
            return Ok(None);
        }
        if header.level.needs_approval() {
            return Ok(Some(text_of(header, None)));
        }
        let content = self.sound(self.open(row, header))?;
        Ok(content.map(|content| text_of(header, Some(content.expose()))))
    }
}
