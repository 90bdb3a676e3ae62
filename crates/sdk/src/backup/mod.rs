//! One encrypted file with what a user can not get again: identity, pins, settings, history, group membership.
//!
//! Sessions and prekeys are never in it: they would be used a second time. A restored store makes fresh ones.

mod error;
mod format;
mod restore;

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stvor_base::{GroupId, UserId};
use stvor_crypto::{Random as _, SystemRandom};
use stvor_keys::recipients::Sealing;
use stvor_protocol::{Identity, RecordKey};
use stvor_store::{Record, RowVersion, Scan, Table};
use tokio::sync::mpsc;

pub use self::error::BackupError;
pub use self::restore::Restored;
pub(crate) use self::restore::{mark, refuse_unfinished};

use self::format::{Encoder, Entry, Head};
use crate::client::Client;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::events::DeliveryState;
use crate::journal::{self, Deed, JournalEntry};
use crate::keys;
use crate::records;
use crate::rows::{Direction, LaneRow, MessageRow, Place};

/// What the name of a backup made in a directory ends with.
const SUFFIX: &str = ".stvor.age";

/// Entries on their way between the store and the file.
const QUEUE: usize = 64;

/// Rows of one read.
const PAGE: usize = 200;

/// How far long work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Done so far, in conversations (backup), bytes (restore) or rows (rotation of the data key).
    pub done: u64,
    /// Of how many.
    pub total: u64,
}

impl Progress {
    pub(crate) fn new(done: u64, total: u64) -> Self {
        Self { done, total }
    }
}

/// Who is told of progress.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// How [`Client::backup`] works.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct BackupOptions {
    /// In a directory: how many backups of this user stay, this one counted; older ones are removed when this one is
    /// whole. `None`: all.
    pub keep: Option<usize>,
    /// Told after each conversation.
    pub progress: Option<OnProgress>,
}

impl BackupOptions {
    /// How many backups stay in the directory.
    #[must_use]
    pub fn keep(mut self, count: usize) -> Self {
        self.keep = Some(count.max(1));
        self
    }

    /// Who is told of progress.
    #[must_use]
    pub fn on_progress(mut self, told: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(told));
        self
    }
}

impl core::fmt::Debug for BackupOptions {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("BackupOptions").field("keep", &self.keep).finish_non_exhaustive()
    }
}

/// A backup that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backup {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Messages in it.
    pub messages: u64,
    /// Conversations in it.
    pub conversations: u64,
    /// Older backups of this user that were removed from the directory.
    pub removed: Vec<PathBuf>,
}

/// What is counted while entries are sent.
struct Counts {
    messages: u64,
    conversations: u64,
    /// Of the identity that was sent.
    identity: RowVersion,
}

type Feed = mpsc::Sender<Entry>;

impl Client {
    /// Writes everything that this user can not get again to one encrypted file: identity, pinned identities, settings,
    /// history, journal, group membership. An ordinary age file, sealed to a passphrase or to recipients. `path` is a new
    /// file, or a directory, in which the file gets a name with the time.
    ///
    /// The file is there whole or not at all, readable by its owner only, and synced. What waits in the outbox is in it
    /// as failed, for it may have gone out since; what the application has not consumed is in the history only.
    ///
    /// # Errors
    /// `BACKUP_FILE_EXISTS` when something is at `path`, `BACKUP_IO`, or what the store met. Where only an older backup could not be
    /// removed, which a `BACKUP_IO` says, the new one is there.
    pub async fn backup(
        &self,
        path: impl Into<PathBuf>,
        sealing: Sealing,
        options: BackupOptions,
    ) -> Result<Backup> {
        let (core, mut path) = (self.core(), path.into());
        let directory = path.is_dir().then(|| path.clone());
        if let Some(directory) = &directory {
            path = directory.join(format!("{}{:013}{SUFFIX}", stem(self.user()), core.now().as_millis()));
        }
        if path.exists() {
            return Err(Error::passed(BackupError::FileExists { path }));
        }
        let (feed, entries) = mpsc::channel(QUEUE);
        let (head, file) = (head(core).await?, path.clone());
        let writing = tokio::task::spawn_blocking(move || write(&file, (&sealing, &head), entries));
        let sent = send_all(core, &feed, &options).await;
        drop(feed);
        let draft = writing.await.map_err(|_| Error::not_ready("the writing did not finish"))?;
        // A draft that is not published removes itself.
        let (draft, counts) = match (draft, sent) {
            (Ok(draft), Ok(Some(counts))) => (draft, counts),
            (Err(error), _) | (_, Err(error)) => return Err(error),
            (Ok(_), Ok(None)) => return Err(Error::not_ready("the writing did not finish")),
        };
        // Of a store that was emptied meanwhile the rest was read as nothing: it must take the place of no backup.
        core.store.check_there().await.map_err(Error::passed)?;
        // Of an identity that was replaced meanwhile the file would hold the one that no relay takes any more.
        if identity(core).await?.version != counts.identity {
            return Err(Error::not_ready(
                "its identity was replaced while it was backed up; make the backup again",
            ));
        }
        let bytes = draft.publish(&path)?;
        let entry = JournalEntry::new(core.now(), &core.config.actor, Deed::BackupMade);
        let what = format!("{} messages, {} conversations", counts.messages, counts.conversations);
        core.note(entry.about(path.display().to_string(), what)).await;
        let removed = match (directory, options.keep) {
            (Some(directory), Some(keep)) => retain(&directory, &stem(self.user()), (&path, keep))?,
            _ => Vec::new(),
        };
        let Counts { messages, conversations, .. } = counts;
        Ok(Backup { path, bytes, messages, conversations, removed })
    }
}

async fn head(core: &Core) -> Result<Head> {
    let rows = core.store.scan_all(Scan::of(Table::Lane, keys::LANES), usize::MAX).await;
    let mut order = 0;
    for row in rows.map_err(Error::passed)? {
        let (_, lane) = LaneRow::decode(row.value.expose()).map_err(Error::passed)?;
        order = order.max(lane.order);
    }
    Ok(Head {
        app: core.config.app.clone(),
        user: core.address.user.clone(),
        device: core.address.device,
        made: core.now(),
        store: core.store.id(),
        relay: core.config.place.relay.origin(),
        order,
        counter: core.counter(),
        next_prekey: core.prekeys.next_id().await,
    })
}

async fn identity(core: &Core) -> Result<Record> {
    let key = records::key(&Identity::key())?;
    let found = core.store.one(&key).await.map_err(Error::passed)?;
    found.ok_or_else(|| Error::not_ready("its identity is gone"))
}

/// Whether the writer still takes entries: when it does not, its own error says why.
async fn put(feed: &Feed, entry: Entry) -> bool {
    feed.send(entry).await.is_ok()
}

/// Sends everything to the writer; `None` when the writer gave up.
async fn send_all(core: &Core, feed: &Feed, options: &BackupOptions) -> Result<Option<Counts>> {
    let identity = identity(core).await?;
    let mut counts = Counts { messages: 0, conversations: 0, identity: identity.version };
    if !put(feed, Entry::Identity(identity.value)).await {
        return Ok(None);
    }
    if let Some(derived) = crate::rotation::is_derived(core).await?
        && !put(feed, Entry::Derived(derived)).await
    {
        return Ok(None);
    }
    if core.instances.is_shared() {
        // Other instances may have met some.
        core.remember_peers(crate::opening::read_peers(&core.store).await?);
    }
    let peers = core.peers();
    let total = peers.len() as u64;
    for row in &peers {
        if !(put(feed, Entry::Peer(row.encode().into())).await && pin(core, feed, &row.user).await?) {
            return Ok(None);
        }
        match history(core, feed, &row.user).await? {
            Some(messages) => counts.messages += messages,
            None => return Ok(None),
        }
        counts.conversations += 1;
        if let Some(told) = &options.progress {
            told(Progress::new(counts.conversations, total));
        }
    }
    // Whose conversation was deleted is held to the identity that was pinned all the same.
    for row in partition(core, (Table::Pin, keys::PINNED)).await? {
        let user = core::str::from_utf8(row.value.expose()).ok().and_then(|name| UserId::new(name).ok());
        let Some(user) = user.filter(|user| !core.knows(user)) else { continue };
        if !pin(core, feed, &user).await? {
            return Ok(None);
        }
    }
    for row in partition(core, (Table::Log, journal::PARTITION)).await? {
        if !put(feed, Entry::Journal { sort: row.key.sort, record: row.value }).await {
            return Ok(None);
        }
    }
    for row in partition(core, (Table::Settings, keys::GROUPS)).await? {
        let id = row.key.sort.clone();
        let listed = Entry::Group { partition: keys::GROUPS.to_vec(), sort: row.key.sort, record: row.value };
        if !put(feed, listed).await {
            return Ok(None);
        }
        // Its membership: the signed changes. Sender keys stay here, for a chain that goes on twice reuses its keys.
        for change in partition(core, (Table::Group, &id)).await? {
            if change.key.sort.first() != Some(&0) {
                continue;
            }
            let entry = Entry::Group { partition: id.clone(), sort: change.key.sort, record: change.value };
            if !put(feed, entry).await {
                return Ok(None);
            }
        }
        let group = GroupId::try_from(id.as_slice()).map_err(Error::passed)?;
        match group_history(core, feed, group).await? {
            Some(messages) => counts.messages += messages,
            None => return Ok(None),
        }
    }
    Ok(Some(counts))
}

async fn partition(core: &Core, (table, name): (Table, &[u8])) -> Result<Vec<Record>> {
    core.store.scan_all(Scan::of(table, name), usize::MAX).await.map_err(Error::passed)
}

async fn pin(core: &Core, feed: &Feed, user: &UserId) -> Result<bool> {
    let key = records::key(&RecordKey::pin(user))?;
    match core.store.one(&key).await.map_err(Error::passed)? {
        Some(row) => Ok(put(feed, Entry::Pin { user: user.clone(), record: row.value }).await),
        None => Ok(true),
    }
}

/// Sends what was said in a group, oldest first; the number of messages, `None` when the writer gave up.
async fn group_history(core: &Core, feed: &Feed, group: GroupId) -> Result<Option<u64>> {
    let mut scan = Scan::of(Table::History, keys::group_history(group)).limit(PAGE);
    let mut sent = 0;
    loop {
        let page = core.store.scan(scan.clone()).await.map_err(Error::passed)?;
        let next = page.rows.last().filter(|_| page.more).map(|last| last.key.sort.clone());
        for row in page.rows {
            let place = Place::from_bytes(&row.key.sort).map_err(Error::passed)?;
            let entry = Entry::GroupMessage { group, place, expires: row.expires, record: row.value };
            if !put(feed, entry).await {
                return Ok(None);
            }
            sent += 1;
        }
        match next {
            Some(last) => scan = scan.after(last),
            None => return Ok(Some(sent)),
        }
    }
}

/// Sends a conversation, oldest first; the number of messages, `None` when the writer gave up.
async fn history(core: &Core, feed: &Feed, peer: &UserId) -> Result<Option<u64>> {
    let mut scan = Scan::of(Table::History, keys::history(peer)).limit(PAGE);
    let mut sent = 0;
    loop {
        let page = core.store.scan(scan.clone()).await.map_err(Error::passed)?;
        let mut rows = Vec::with_capacity(page.rows.len());
        for row in &page.rows {
            let place = Place::from_bytes(&row.key.sort).map_err(Error::passed)?;
            rows.push((place, MessageRow::decode(row.value.expose()).map_err(Error::passed)?));
        }
        let accepted = crate::history::accepted(core, peer, &rows).await?;
        for ((place, mut message), row) in rows.into_iter().zip(&page.rows) {
            if message.direction == Direction::Out && message.state == DeliveryState::Queued {
                message.state = match accepted.contains_key(&place) {
                    true => DeliveryState::Accepted,
                    false => DeliveryState::Failed,
                };
            }
            // What names a place in the queue or at the relay means nothing in another store.
            (message.queued, message.msg_id) = (0, None);
            let entry = Entry::Message {
                peer: peer.clone(),
                place,
                expires: row.expires,
                record: message.encode().into(),
            };
            if !put(feed, entry).await {
                return Ok(None);
            }
            sent += 1;
        }
        match page.rows.last().filter(|_| page.more) {
            Some(last) => scan = scan.after(last.key.sort.clone()),
            None => return Ok(Some(sent)),
        }
    }
}

/// A file that is not whole yet; removed when it is dropped before it has its name.
#[derive(Debug)]
struct Draft {
    path: PathBuf,
    file: Option<File>,
}

impl Draft {
    fn make(target: &Path) -> Result<Self> {
        let mut digits = [0; 8];
        SystemRandom::new().fill(&mut digits).map_err(Error::passed)?;
        let mut name = target.as_os_str().to_owned();
        name.push(format!(".new-{:016x}", u64::from_be_bytes(digits)));
        let path = PathBuf::from(name);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&path).map_err(|error| failed("creating", target, &error))?;
        Ok(Self { path, file: Some(file) })
    }

    /// Gives the file its name, which nothing may have; its size in bytes.
    fn publish(mut self, target: &Path) -> Result<u64> {
        let file = self.file.take().ok_or_else(|| Error::not_ready("the backup was not written"))?;
        file.sync_all().map_err(|error| failed("syncing", target, &error))?;
        let bytes = file.metadata().map_err(|error| failed("reading", target, &error))?.len();
        drop(file);
        // A hard link, unlike a rename, never replaces what is there.
        fs::hard_link(&self.path, target).map_err(|error| failed("naming", target, &error))?;
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        if cfg!(unix) {
            let synced = File::open(parent.unwrap_or(Path::new("."))).and_then(|parent| parent.sync_all());
            synced.map_err(|error| failed("syncing the directory of", target, &error))?;
        }
        Ok(bytes)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn failed(what: &'static str, path: &Path, error: &std::io::Error) -> Error {
    Error::passed(BackupError::io(what, path, error))
}

/// Seals entries into a draft until the last sender is gone.
fn write(
    target: &Path,
    (sealing, head): (&Sealing, &Head),
    mut entries: mpsc::Receiver<Entry>,
) -> Result<Draft> {
    let mut draft = Draft::make(target)?;
    let Some(file) = draft.file.take() else { return Ok(draft) };
    let sealed = sealing.writer(BufWriter::new(file)).map_err(Error::passed)?;
    let written = (|| {
        let mut encoder = Encoder::start(sealed, head)?;
        while let Some(entry) = entries.blocking_recv() {
            encoder.write(&entry)?;
        }
        let (sealed, _) = encoder.finish()?;
        let mut buffer = sealed.finish()?;
        buffer.flush()?;
        buffer.into_inner().map_err(std::io::IntoInnerError::into_error)
    })();
    draft.file = Some(written.map_err(|error| failed("writing", target, &error))?);
    Ok(draft)
}

/// What names of this user's backups start with.
fn stem(user: &UserId) -> String {
    format!("stvor-{}-", crate::place::name_of(user))
}

/// Removes the oldest backups of a user, and what killed ones left, until `keep` are there. The one that was just `made` stays, whatever its
/// time: the clock may have been ahead when the others got theirs.
fn retain(directory: &Path, stem: &str, (made, keep): (&Path, usize)) -> Result<Vec<PathBuf>> {
    let listed =
        fs::read_dir(directory).map_err(|error| failed("listing the directory of", directory, &error))?;
    let mut whole = Vec::new();
    for path in listed.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(stem) else { continue };
        let (time, rest) = rest.split_at(rest.find('.').unwrap_or(rest.len()));
        if time.len() != 13 || !time.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        match rest.strip_prefix(SUFFIX) {
            Some("") if path == made => {}
            Some("") => whole.push(path),
            Some(rest) if rest.starts_with(".new-") => drop(fs::remove_file(&path)),
            _ => {}
        }
    }
    whole.sort();
    let surplus = whole.len().saturating_sub(keep.saturating_sub(1));
    whole.truncate(surplus);
    for path in &whole {
        fs::remove_file(path).map_err(|error| failed("removing", path, &error))?;
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stvor_store::Op;

    #[test]
    fn retention_keeps_the_newest_of_this_user_and_touches_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let stem = stem(&UserId::new("alice").unwrap());
        let other = super::stem(&UserId::new("bob").unwrap());
        let at = |name: String| directory.path().join(name);
        let names = |millis: u64| format!("{stem}{millis:013}{SUFFIX}");
        for millis in [1, 2, 3, 4] {
            fs::write(at(names(millis)), b"").unwrap();
        }
        // Made by a clock that is right again: it has the oldest time.
        let made = at(names(0));
        fs::write(&made, b"").unwrap();
        let stays = [
            format!("{other}{:013}{SUFFIX}", 1),
            format!("{stem}notes{SUFFIX}"),
            format!("{stem}{:013}.txt", 1),
            "letter".to_owned(),
        ];
        stays.iter().for_each(|name| fs::write(at(name.clone()), b"").unwrap());
        fs::write(at(format!("{}.new-0123", names(9))), b"").unwrap();
        let removed = retain(directory.path(), &stem, (&made, 3)).unwrap();
        assert_eq!(removed, [at(names(1)), at(names(2))]);
        let mut left: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        left.sort();
        let mut expected: Vec<_> = stays.into_iter().chain([names(0), names(3), names(4)]).map(at).collect();
        expected.sort();
        assert_eq!(left, expected);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_backup_during_which_the_identity_is_replaced_is_refused_and_leaves_no_file() {
        let app = crate::App::builder().app_token("stvor_dev_test123").relay_url("ws://127.0.0.1:1");
        let app = app.in_memory().open().await.unwrap();
        let options = crate::ConnectOptions { allow_unregistered: true, ..Default::default() };
        let alice = app.connect_with("alice", options).await.unwrap();
        alice.block("bob").await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let core = Arc::clone(alice.core());
        // Between the reading of the identity, which comes first, and the end.
        let replace = move |_: Progress| {
            futures::executor::block_on(async {
                let found = identity(&core).await.unwrap();
                let put = Op::put(records::key(&Identity::key()).unwrap(), found.value);
                core.store.commit([put].into_iter().collect()).await.unwrap();
            });
        };
        let secret = crate::SecretBytes::from_slice(b"correct horse");
        let sealing = || Sealing::passphrase_with_work(&secret, 4).unwrap();
        let options = BackupOptions::default().on_progress(replace);
        let refused = alice.backup(directory.path(), sealing(), options).await.unwrap_err();
        assert_eq!(refused.code(), "CLIENT_NOT_READY");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let made = alice.backup(directory.path(), sealing(), BackupOptions::default()).await.unwrap();
        assert_eq!(made.conversations, 1);
    }

    #[test]
    fn a_draft_that_is_not_published_is_removed_and_none_replaces_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("backup");
        drop(Draft::make(&target).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        fs::write(&target, b"mine").unwrap();
        let error = Draft::make(&target).unwrap().publish(&target).unwrap_err();
        assert_eq!(error.code(), "BACKUP_FILE_EXISTS");
        assert_eq!(fs::read(&target).unwrap(), b"mine");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
