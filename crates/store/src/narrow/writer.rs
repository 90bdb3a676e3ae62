//! The one task that saves: journal entries for commits, and from time to time pages, so that the journal begins anew.

use super::RESERVED;
use super::adapters::Lease;
use super::blobs::Blobs;
use super::format::{Changed, Entry, Head, NameRef, PageRef, Rows};
use crate::adapter::RowValue;
use crate::change::{ChangeSet, Key};
use crate::memory::{Kept, MemoryStore};
use crate::{StoreError, Table, limits};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use stvor_base::Timestamp;
use tokio::sync::{mpsc, oneshot};

pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked for.
pub(super) enum Job {
    Commit(ChangeSet<RowValue>, Answer<()>),
    Sweep((Timestamp, usize), Answer<usize>),
    Close(Answer<()>),
}

/// Of a head that was never saved.
pub(super) const NOBODY: [u8; 16] = [0; 16];

pub(super) fn head_id() -> String {
    format!("{RESERVED}head")
}

pub(super) fn journal_id(seq: u64) -> String {
    format!("{RESERVED}journal/{}", seq % limits::JOURNAL_SLOTS)
}

pub(super) fn page_id(number: u32) -> String {
    format!("{RESERVED}page/{number}")
}

/// Which partitions are kept under which id.
pub(super) struct Names {
    of: HashMap<(Table, Vec<u8>), String>,
    /// Those that came since the last pages were written: rows of theirs may be in pages.
    fresh: Vec<(Table, Vec<u8>)>,
    ids: BTreeSet<String>,
}

impl Names {
    pub(super) fn new(of: HashMap<(Table, Vec<u8>), String>) -> Self {
        let ids = of.values().cloned().collect();
        Self { of, fresh: Vec::new(), ids }
    }

    pub(super) fn add(&mut self, id: &str, partitions: impl IntoIterator<Item = (Table, Vec<u8>)>) {
        if self.ids.len() >= limits::MAX_NAMES && !self.ids.contains(id) {
            return;
        }
        self.ids.insert(id.to_owned());
        for partition in partitions {
            if !self.of.contains_key(&partition) {
                self.of.insert(partition.clone(), id.to_owned());
                self.fresh.push(partition);
            }
        }
    }

    fn of(&self, key: &Key) -> Option<&String> {
        self.of.get(&(key.table, key.partition.clone()))
    }
}

/// Before every other key: what the first page begins with.
fn lowest() -> Key {
    Key::new(Table::Header, Vec::new(), Vec::new())
}

/// The keys of a partition: from the first one to the first one after it.
fn partition_range((table, partition): &(Table, Vec<u8>)) -> (Key, Key) {
    let mut after = partition.clone();
    after.push(0);
    (Key::new(*table, partition.as_slice(), Vec::new()), Key::new(*table, after, Vec::new()))
}

pub(super) struct Writer {
    blobs: Arc<Blobs>,
    rows: Arc<MemoryStore>,
    names: Arc<Mutex<Names>>,
    /// As it was saved last.
    head: Head,
    pages: BTreeMap<Key, PageRef>,
    /// The greatest number that was given out, and that of the last entry that counts.
    seq: u64,
    last: u64,
    /// Bytes of the journal since the pages were written.
    bytes: usize,
    /// Pages by their first key, and ids, whose rows changed since they were saved.
    stale_pages: BTreeSet<Key>,
    stale_names: BTreeSet<String>,
    /// Pages that a head names whose save failed: it may have landed.
    suspects: BTreeSet<u32>,
    /// The head that was saved is not there any more: the application's store was emptied, or is another one.
    emptied: bool,
}

impl Writer {
    pub(super) fn new(
        (blobs, rows, names): (Arc<Blobs>, Arc<MemoryStore>, Arc<Mutex<Names>>),
        head: Head,
    ) -> Self {
        let pages = head.pages.iter().map(|page| (page.first.clone(), page.clone())).collect();
        let seq = head.seq;
        Self {
            blobs,
            rows,
            names,
            head,
            pages,
            seq,
            last: seq,
            bytes: 0,
            stale_pages: BTreeSet::new(),
            stale_names: BTreeSet::new(),
            suspects: BTreeSet::new(),
            emptied: false,
        }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies the journal that was found.
    pub(super) fn take(&mut self, entries: Vec<Entry>, seq: u64) -> Result<(), StoreError> {
        for entry in entries {
            self.last = entry.seq;
            self.settle(entry.changes)?;
        }
        self.seq = seq;
        Ok(())
    }

    /// Writes pages and a head of our own: what others write from here on does not count.
    pub(super) async fn own(&mut self, owner: [u8; 16]) -> Result<(), StoreError> {
        self.write_pages(owner).await
    }

    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>, lease: Lease) {
        // After a failure the pages wait for the next commit.
        let mut tired = false;
        loop {
            let idle = self.stale_pages.is_empty() && self.stale_names.is_empty() || tired;
            let job = if idle {
                jobs.recv().await
            } else {
                match tokio::time::timeout(limits::JOURNAL_REST, jobs.recv()).await {
                    Ok(job) => job,
                    Err(_) => {
                        tired = !self.checkpoint().await;
                        continue;
                    }
                }
            };
            match job {
                Some(Job::Commit(changes, answer)) => {
                    let mut group = vec![(changes, answer)];
                    let other = gather(&mut jobs, &mut group);
                    self.commit(group).await;
                    tired = false;
                    if self.journal_is_long() {
                        tired = !self.checkpoint().await;
                    }
                    if let Some(job) = other
                        && let Some(answer) = self.odd_job(job).await
                    {
                        return end(lease, answer);
                    }
                }
                Some(job) => {
                    if let Some(answer) = self.odd_job(job).await {
                        return end(lease, answer);
                    }
                }
                None => return,
            }
        }
    }

    /// Does what is no commit; at the end, whom to tell of it.
    async fn odd_job(&mut self, job: Job) -> Option<Answer<()>> {
        match job {
            Job::Commit(changes, answer) => {
                self.commit(vec![(changes, answer)]).await;
                None
            }
            Job::Sweep((now, limit), answer) => {
                // Not in the journal: what comes back after a crash is swept again.
                let swept = self.rows.doomed(now, limit).and_then(|doomed| {
                    let count = doomed.len();
                    self.settle(doomed.into_iter().map(|key| Changed { key, row: None }).collect())?;
                    Ok(count)
                });
                let _ = answer.send(swept);
                None
            }
            Job::Close(answer) => {
                let written = self.write_pages(self.head.owner).await;
                self.rows.shut();
                // The journal holds everything, so a failure here loses nothing.
                if let Err(error) = &written {
                    tracing::warn!(%error, "the last pages of a store were not written; its journal will be read again");
                }
                Some(answer)
            }
        }
    }

    fn journal_is_long(&self) -> bool {
        self.seq - self.head.seq >= limits::JOURNAL_LENGTH || self.bytes >= limits::JOURNAL_BYTES
    }

    /// Commits that came together are one entry.
    async fn commit(&mut self, group: Vec<(ChangeSet<RowValue>, Answer<()>)>) {
        let (sets, answers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let staged = if self.emptied { Err(StoreError::Emptied) } else { self.rows.stage(sets) };
        let (judged, changes) = match staged {
            Ok(staged) => staged,
            Err(error) => {
                for answer in answers {
                    let _ = answer.send(Err(error.clone()));
                }
                return;
            }
        };
        // After an entry of which nobody knows whether it landed, also a commit that changes nothing is written: it says that
        // the one before does not count.
        let settled = self.seq == self.last;
        let saved = if changes.is_empty() && settled { Ok(()) } else { self.save_entry(changes).await };
        for (answer, judged) in answers.into_iter().zip(judged) {
            let _ = answer.send(judged.and_then(|()| saved.clone()));
        }
    }

    async fn save_entry(&mut self, changes: Vec<Changed>) -> Result<(), StoreError> {
        if self.seq - self.head.seq >= limits::JOURNAL_SLOTS {
            // Every slot is needed still.
            self.write_pages(self.head.owner).await?;
        }
        let seq = self.seq + 1;
        let entry =
            Entry { store: self.head.store, owner: self.head.owner, seq, previous: self.last, changes };
        let bytes = entry.encode();
        if bytes.len() > limits::MAX_STATE {
            return Err(StoreError::Limit { what: "the bytes of a commit", limit: limits::MAX_STATE });
        }
        self.bytes += bytes.len();
        // Whatever becomes of it, the number is used: the next entry says whether it counts.
        self.seq = seq;
        self.blobs.save(journal_id(seq), bytes).await?;
        self.last = seq;
        self.settle(entry.changes)
    }

    fn settle(&mut self, changes: Vec<Changed>) -> Result<(), StoreError> {
        for change in &changes {
            let name = self.names().of(&change.key).cloned();
            match name {
                Some(id) => {
                    self.stale_names.insert(id);
                }
                None => {
                    self.stale_pages.insert(self.page_of(&change.key));
                }
            }
        }
        self.rows.settle(changes)
    }

    fn page_of(&self, key: &Key) -> Key {
        self.pages.range(..=key).next_back().map_or_else(lowest, |(first, _)| first.clone())
    }

    async fn checkpoint(&mut self) -> bool {
        match self.write_pages(self.head.owner).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "the pages of a store were not written; its journal goes on");
                false
            }
        }
    }

    /// Rows of partitions that were named since: out of the pages, under their name. Also those that are gone by now: a page
    /// that was not written anew would bring them back.
    fn move_named(&mut self) {
        let fresh = core::mem::take(&mut self.names().fresh);
        for partition in fresh {
            let (from, before) = partition_range(&partition);
            let id = self.names().of.get(&partition).cloned();
            self.stale_pages.insert(self.page_of(&from));
            self.stale_pages.extend(self.pages.range(from..before).map(|(first, _)| first.clone()));
            self.stale_names.extend(id);
        }
    }

    /// Writes what is stale, then a head that names it, and the journal begins anew. Pages are written under numbers that no
    /// head names, states of peers over their older ones: these say which entry of the journal they hold.
    async fn write_pages(&mut self, owner: [u8; 16]) -> Result<(), StoreError> {
        self.move_named();
        let found = self.blobs.load(&head_id()).await?;
        if found.is_none() && self.head.owner != NOBODY {
            self.emptied = true;
            return Err(StoreError::Emptied);
        }
        if let Some(bytes) = found {
            let found = Head::decode(&bytes, self.head.layouts).inspect_err(|error| {
                // A newer program has the states now, and this journal would be written over its own.
                if matches!(error, StoreError::TooNew { .. }) {
                    self.rows.shut();
                }
            })?;
            if found.owner != self.head.owner {
                self.rows.shut();
                return Err(StoreError::Locked {
                    path: PathBuf::from("of these storage adapters"),
                    pid: None,
                });
            }
        }
        let (store, seq) = (self.head.store, self.seq);
        let mut names: BTreeMap<String, NameRef> =
            self.head.names.iter().map(|name| (name.id.clone(), name.clone())).collect();
        // The rows are those of the last entry that counts. A later one that failed may have landed: until the head says
        // otherwise, it counts if this process dies, and then as a whole.
        let held = self.last;
        for id in &self.stale_names {
            let partitions = self.partitions_of(id);
            let mut rows = Vec::new();
            for partition in &partitions {
                let (from, before) = partition_range(partition);
                rows.extend(self.rows.copy(&from, Some(&before))?);
            }
            self.blobs.save(id.clone(), Rows { store, seq: held, rows }.encode()).await?;
            names.insert(id.clone(), NameRef { id: id.clone(), partitions, seq: held });
        }
        let mut pages = self.pages.clone();
        let mut taken: BTreeSet<u32> = self.suspects.clone();
        taken.extend(self.pages.values().map(|page| page.number));
        for first in &self.stale_pages {
            let before =
                self.pages.range(first.clone()..).find(|(next, _)| *next > first).map(|(next, _)| next);
            let mut rows = self.rows.copy(first, before)?;
            {
                let names = self.names();
                rows.retain(|(key, _)| names.of(key).is_none());
            }
            pages.remove(first);
            for (at, rows) in chunks(rows).into_iter().enumerate() {
                let number = (0..=u32::MAX).find(|number| !taken.contains(number)).unwrap_or(u32::MAX);
                taken.insert(number);
                // What the first chunk begins with stays, so that no row falls between two pages.
                let first = match rows.first() {
                    Some((key, _)) if at > 0 => key.clone(),
                    _ => first.clone(),
                };
                self.blobs.save(page_id(number), Rows { store, seq, rows }.encode()).await?;
                pages.insert(first.clone(), PageRef { first, number, seq });
            }
        }
        let head = Head {
            layouts: self.head.layouts,
            store,
            owner,
            seq,
            pages: pages.values().cloned().collect(),
            names: names.into_values().collect(),
        };
        if let Err(error) = self.blobs.save(head_id(), head.encode()).await {
            self.suspects.extend(pages.values().map(|page| page.number));
            return Err(error);
        }
        (self.head, self.pages, self.bytes) = (head, pages, 0);
        self.last = seq;
        self.stale_pages.clear();
        self.stale_names.clear();
        self.suspects.clear();
        Ok(())
    }

    fn partitions_of(&self, id: &str) -> Vec<(Table, Vec<u8>)> {
        let names = self.names();
        let mut partitions: Vec<_> =
            names.of.iter().filter(|(_, name)| *name == id).map(|(partition, _)| partition.clone()).collect();
        partitions.sort();
        partitions
    }
}

/// The adapters are free again when the caller hears of it.
fn end(lease: Lease, answer: Answer<()>) {
    drop(lease);
    let _ = answer.send(Ok(()));
}

/// Further commits that wait, as many as make a fair entry; gives back what is no commit.
fn gather(jobs: &mut mpsc::Receiver<Job>, group: &mut Vec<(ChangeSet<RowValue>, Answer<()>)>) -> Option<Job> {
    let size = |changes: &ChangeSet<RowValue>| {
        let of = |op: &crate::Op<RowValue>| match op {
            crate::Op::Put { value, .. } => value.bytes.len(),
            _ => 0,
        };
        changes.ops.iter().map(of).sum::<usize>()
    };
    let mut bytes: usize = group.iter().map(|(changes, _)| size(changes)).sum();
    while group.len() < limits::MAX_GROUP && bytes < limits::GROUP_BYTES {
        match jobs.try_recv() {
            Ok(Job::Commit(changes, answer)) => {
                bytes += size(&changes);
                group.push((changes, answer));
            }
            Ok(other) => return Some(other),
            Err(_) => return None,
        }
    }
    None
}

/// Rows in the order of their keys, so many a page as fit; no page for no rows.
fn chunks(rows: Vec<(Key, Kept)>) -> Vec<Vec<(Key, Kept)>> {
    let mut pages: Vec<Vec<(Key, Kept)>> = Vec::new();
    let mut bytes = 0;
    for (key, row) in rows {
        let size = key.partition.len() + key.sort.len() + row.0.bytes.len() + 32;
        match pages.last_mut() {
            Some(page) if bytes + size <= limits::PAGE_BYTES => {
                bytes += size;
                page.push((key, row));
            }
            _ => {
                bytes = size;
                pages.push(vec![(key, row)]);
            }
        }
    }
    pages
}
