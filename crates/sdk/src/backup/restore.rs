//! Restoring a backup into a store of its own: all of it, or nothing that opens.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stvor_base::{Suite, Timestamp, UserId};
use stvor_crypto::SecretBytes;
use stvor_keys::recipients::Opening;
use stvor_protocol::{Identity, Pin, RecordKey};
use stvor_store::{ChangeSet, Expect, Key, Op, RowVersion, Sealed, Table};
use tokio::sync::mpsc;

use super::error::BackupError;
use super::format::{Decoder, Entry, Head, SEALED_PIECE};
use super::{OnProgress, Progress, QUEUE};
use crate::app::App;
use crate::client::address_of;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Hub;
use crate::journal::{Deed, JournalEntry};
use crate::keys;
use crate::limits::KEEP_CONTENT_IDS;
use crate::opening::open_store;
use crate::records;
use crate::rows::{Direction, MessageRow, PeerRow, PointerRow};

/// Operations of one commit, and bytes of values past which a commit is made.
const BATCH_OPS: usize = 500;
const BATCH_BYTES: usize = 1024 * 1024;

/// What a restore brought back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restored {
    /// Who.
    pub user: UserId,
    /// When the backup was made.
    pub made_at: Timestamp,
    /// Messages.
    pub messages: u64,
    /// Conversations.
    pub conversations: u64,
}

/// A reader that counts.
struct Counted<R> {
    input: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Reads a backup from its beginning to its end and hands each entry on.
fn read(
    (path, opening): (&Path, &Opening),
    read: &Arc<AtomicU64>,
    mut take: impl FnMut(Entry) -> Result<()>,
) -> Result<Head> {
    let failed = |error: &std::io::Error| Error::passed(BackupError::io("reading", path, error));
    let file = File::open(path).map_err(|error| failed(&error))?;
    let length = file.metadata().map_err(|error| failed(&error))?.len();
    let input = Counted { input: BufReader::new(file), read: Arc::clone(read) };
    let opened = opening
        .reader(input)
        .map_err(|error| BackupError::opening(path, error, read.load(Ordering::Relaxed) >= length))?;
    // Only the header was read so far; sealed pieces of one size follow.
    let body = length.saturating_sub(read.load(Ordering::Relaxed));
    if body == 0 || !body.is_multiple_of(SEALED_PIECE) {
        return Err(Error::passed(BackupError::Truncated { path: path.to_owned() }));
    }
    let (mut decoder, head) = Decoder::start(opened, path)?;
    while let Some(entry) = decoder.next()? {
        take(entry)?;
    }
    Ok(head)
}

/// What a restore is made of.
struct Job {
    path: PathBuf,
    opening: Arc<Opening>,
    progress: Option<OnProgress>,
}

impl App {
    /// Restores the user of a backup into a new store of this app, and says who that is. Connect as that user afterwards.
    ///
    /// The file is read to its end before anything is written: with the wrong key, or when it is damaged, nothing
    /// happened. A restore that is interrupted leaves nothing that opens; run again, it begins anew. Sessions and prekeys
    /// are made fresh, under a new store id; peers notice by themselves and send again what could not be read.
    ///
    /// # Errors
    /// `BACKUP_WRONG_KEY`, `BACKUP_CORRUPT`, `BACKUP_TRUNCATED`, `BACKUP_TOO_NEW`, `BACKUP_OTHER_APP`,
    /// `SUITE_FIXED` when the app asks for another suite than the identity of the backup has, `RESTORE_STORE_EXISTS` when the user has a store here, `BACKUP_IO`, `INVALID_CONFIG` for an app in memory, or what
    /// the store met.
    pub async fn restore(
        &self,
        path: impl Into<PathBuf>,
        opening: Opening,
        progress: Option<OnProgress>,
    ) -> Result<Restored> {
        if !self.config().stores.facts().durable {
            return Err(Error::config(
                "an app in memory can not be restored into: it needs a directory for its data, or a server",
            ));
        }
        let job = Job { path: path.into(), opening: Arc::new(opening), progress };
        let (head, stored) = verify(&job).await?;
        let config = self.config();
        if head.app != config.app {
            let (found, wanted) = (head.app.to_string(), config.app.to_string());
            return Err(Error::passed(BackupError::OtherApp { found, wanted }));
        }
        if let Some(wanted) = config.suite.filter(|suite| *suite != stored) {
            return Err(ErrorKind::SuiteFixed { user: head.user.clone(), stored, wanted }.into());
        }
        self.alone_with(&head.user, restore(config, &head, &job)).await
    }
}

/// Reads everything without using it: what passes this is whole, and as it was written.
async fn verify(job: &Job) -> Result<(Head, Suite)> {
    let (path, opening) = (job.path.clone(), Arc::clone(&job.opening));
    let verified = tokio::task::spawn_blocking(move || {
        let mut suites = Vec::new();
        let head = read((&path, &opening), &Arc::default(), |entry| {
            check(&entry).map_err(|what| Error::passed(BackupError::Corrupt { path: path.clone(), what }))?;
            if let Entry::Identity(record) = &entry {
                suites.push(Identity::from_record(record).map_err(Error::passed)?.suite());
            }
            Ok(())
        })?;
        let [suite] = suites[..] else {
            let what = "it does not hold exactly one identity";
            return Err(Error::passed(BackupError::Corrupt { path, what }));
        };
        Ok((head, suite))
    });
    verified.await.map_err(|_| Error::not_ready("the reading did not finish"))?
}

/// Whether records read as this build reads them.
fn check(entry: &Entry) -> Result<(), &'static str> {
    match entry {
        Entry::Identity(record) => Identity::from_record(record).map(|_| ()).map_err(|_| "its identity"),
        Entry::Pin { record, .. } => Pin::from_record(record).map(|_| ()).map_err(|_| "a pinned identity"),
        Entry::Peer(record) => PeerRow::decode(record.expose()).map(|_| ()).map_err(|_| "a setting"),
        Entry::Message { record, .. } | Entry::GroupMessage { record, .. } => {
            MessageRow::decode(record.expose()).map(|_| ()).map_err(|_| "a message")
        }
        // Chains of sender keys have no place in a backup: they would be used twice.
        Entry::Group { partition, sort, .. } if partition != keys::GROUPS && sort.first() != Some(&0) => {
            Err("a group")
        }
        Entry::Journal { .. } | Entry::Group { .. } | Entry::Derived(_) => Ok(()),
    }
}

/// Refuses a store whose restore was interrupted.
pub(crate) async fn refuse_unfinished(store: &Sealed, user: &UserId) -> Result<()> {
    match store.one(&mark()).await.map_err(Error::passed)? {
        Some(_) => Err(Error::passed(BackupError::Incomplete { user: user.to_string() })),
        None => Ok(()),
    }
}

async fn restore(config: &Config, head: &Head, job: &Job) -> Result<Restored> {
    let directory = config.place.make(&head.user)?;
    let place = config.place.of_store(&config.app, &head.user, directory.as_ref());
    let (store, _) = open_store(config, &place, &Hub::new()).await?;
    let mut mine = None;
    let restored = async {
        let mark = claim(&store, head).await?;
        mine = Some(mark);
        fill((&store, mark), config, (head, job)).await
    }
    .await;
    // Only what this restore made is removed again; best effort, for what is left does not open.
    let wiped = match mine.filter(|_| restored.is_err()) {
        Some(mark) => store.commit(wiped(Expect::Version(mark))).await.is_ok(),
        None => false,
    };
    store.close().await.map_err(Error::passed)?;
    if wiped
        && stvor_store::destroy_at(config.stores.as_ref(), &place).await.is_ok()
        && let Some(directory) = &directory
    {
        let _ = crate::place::remove(directory);
    }
    restored
}

/// The mark of a restore that is under way. Each write of it has a version of its own: another restore into the same place, by
/// another process on a shared store, makes another one, and whoever has the first writes nothing more.
pub(crate) fn mark() -> Key {
    keys::meta("restoring")
}

/// Removes everything, if the mark is as expected.
fn wiped(expect: Expect) -> ChangeSet {
    let mut changes = ChangeSet::new();
    changes.push(Op::check(mark(), expect));
    for table in Table::ALL.into_iter().filter(|table| *table != Table::Header) {
        changes.delete_table(table);
    }
    changes
}

/// Marks an empty store, or one whose restore was interrupted, as being restored.
async fn claim(store: &Sealed, head: &Head) -> Result<RowVersion> {
    let identity = records::key(&Identity::key())?;
    let found = store.get(&[mark(), identity.clone()]).await.map_err(Error::passed)?;
    let mut changes = match &found[..] {
        [Some(mark), _] => wiped(Expect::Version(mark.version)),
        [None, None] => [Op::check(identity, Expect::Absent)].into_iter().collect(),
        _ => return Err(Error::passed(BackupError::StoreExists { user: head.user.to_string() })),
    };
    changes.insert(mark(), vec![1]);
    store.commit(changes).await.map_err(Error::passed)
}

/// Writes everything, and takes the mark away in the commit that brings the identity.
async fn fill(
    (store, mark): (&Sealed, RowVersion),
    config: &Config,
    (head, job): (&Head, &Job),
) -> Result<Restored> {
    let total = std::fs::metadata(&job.path).map_or(0, |about| about.len());
    let bytes = Arc::new(AtomicU64::new(0));
    let (feed, mut entries) = mpsc::channel(QUEUE);
    let (path, opening, counter) = (job.path.clone(), Arc::clone(&job.opening), Arc::clone(&bytes));
    let reading = tokio::task::spawn_blocking(move || {
        read((&path, &opening), &counter, |entry| {
            feed.blocking_send(entry).map_err(|_| Error::not_ready("the restore ended"))
        })
    });
    let mut filler = Filler { store, mark, changes: ChangeSet::new(), size: 0, identity: None };
    let mut restored =
        Restored { user: head.user.clone(), made_at: head.made, messages: 0, conversations: 0 };
    while let Some(entry) = entries.recv().await {
        restored.messages += u64::from(matches!(entry, Entry::Message { .. } | Entry::GroupMessage { .. }));
        restored.conversations += u64::from(matches!(entry, Entry::Peer(_)));
        if filler.take(entry).await?
            && let Some(told) = &job.progress
        {
            told(Progress::new(bytes.load(Ordering::Relaxed), total));
        }
    }
    let again = reading.await.map_err(|_| Error::not_ready("the reading did not finish"))??;
    if again != *head {
        let what = "it was exchanged while it was read";
        return Err(Error::passed(BackupError::Corrupt { path: job.path.clone(), what }));
    }
    filler.finish(config, (head, job)).await?;
    if let Some(told) = &job.progress {
        told(Progress::new(total, total));
    }
    Ok(restored)
}

struct Filler<'a> {
    store: &'a Sealed,
    /// Of the mark, which is to be there as this restore made it.
    mark: RowVersion,
    changes: ChangeSet,
    size: usize,
    identity: Option<SecretBytes>,
}

impl Filler<'_> {
    /// Takes an entry; whether a commit was made.
    async fn take(&mut self, entry: Entry) -> Result<bool> {
        match entry {
            Entry::Identity(record) => self.identity = Some(record),
            Entry::Derived(derived) => crate::rotation::note_derived(derived, &mut self.changes),
            Entry::Pin { user, record } => {
                self.put(Op::insert(records::key(&RecordKey::pin(&user))?, record));
                self.put(Op::put(keys::pinned(self.store, &user), user.as_str().as_bytes().to_vec()));
            }
            Entry::Peer(record) => {
                let row = PeerRow::decode(record.expose()).map_err(Error::passed)?;
                self.put(Op::insert(keys::peer(self.store, &row.user), record));
            }
            Entry::Message { peer, place, expires, record } => {
                let row = MessageRow::decode(record.expose()).map_err(Error::passed)?;
                let address = address_of(&peer);
                // What was received is known by its id, so that a repair does not bring it twice.
                let index = match row.direction {
                    Direction::In => Op::put(keys::content(&address, place.id), place.to_bytes())
                        .expiring(Timestamp::from_millis(place.order) + KEEP_CONTENT_IDS),
                    Direction::Out => {
                        let pointer = PointerRow { peer: address, place, group: None };
                        Op::put(keys::own_content(place.id), pointer.encode())
                            .expiring(Timestamp::from_millis(place.order) + KEEP_CONTENT_IDS)
                    }
                };
                self.put(index);
                self.put(Op::insert(keys::message(&peer, place), record).expiring(expires));
            }
            Entry::Journal { sort, record } => {
                let expires = crate::journal::expiry(&sort);
                let key = Key::new(Table::Log, crate::journal::PARTITION, sort);
                self.put(Op::insert(key, record).expiring(expires));
            }
            Entry::Group { partition, sort, record } => {
                let table = if partition == keys::GROUPS { Table::Settings } else { Table::Group };
                self.put(Op::insert(Key::new(table, partition, sort), record));
            }
            Entry::GroupMessage { group, place, expires, record } => {
                let row = MessageRow::decode(record.expose()).map_err(Error::passed)?;
                if let Some(from) = &row.from {
                    let mark = Op::put(keys::content(&address_of(from), place.id), place.to_bytes());
                    self.put(mark.expiring(Timestamp::from_millis(place.order) + KEEP_CONTENT_IDS));
                }
                self.put(Op::insert(keys::group_message(group, place), record).expiring(expires));
            }
        }
        let full = self.changes.len() >= BATCH_OPS || self.size >= BATCH_BYTES;
        if full {
            self.commit().await?;
        }
        Ok(full)
    }

    fn put(&mut self, op: Op<SecretBytes>) {
        if let Op::Put { value, .. } = &op {
            self.size += value.len();
        }
        self.changes.push(op);
    }

    async fn commit(&mut self) -> Result<()> {
        self.size = 0;
        let mut changes: ChangeSet = [Op::check(mark(), Expect::Version(self.mark))].into_iter().collect();
        changes.append(core::mem::take(&mut self.changes));
        self.store.commit(changes).await.map(|_| ()).map_err(Error::passed)
    }

    async fn finish(mut self, config: &Config, (head, job): (&Head, &Job)) -> Result<()> {
        let identity = self.identity.take().ok_or_else(|| Error::not_ready("the backup has no identity"))?;
        let now = config.clock.now();
        let changes = &mut self.changes;
        changes.insert(records::key(&Identity::key())?, identity);
        crate::names::are_tagged(changes);
        changes.put(keys::meta("registered"), vec![1]);
        changes.put(keys::meta("counter"), head.counter.to_be_bytes().to_vec());
        changes.put(keys::meta("order"), head.order.to_be_bytes().to_vec());
        crate::prekeys::start_anew(changes, head.next_prekey, now);
        let subject = job.path.display().to_string();
        JournalEntry::new(now, &config.actor, Deed::Restored)
            .about(subject, format!("backup of {}", crate::journal::clock(head.made)))
            .write(changes)?;
        changes.delete(mark());
        self.commit().await
    }
}
