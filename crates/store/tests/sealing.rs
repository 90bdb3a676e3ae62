//! What an attacker who holds the files sees, and what happens when they change them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use futures::FutureExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use stvor_base::{ErrorCode, Timestamp};
use stvor_crypto::{Random, Secret, SecretBytes, SystemRandom};
use stvor_keys::{
    DataKey, HolderKind, IdentityKey, KeyError, KeyHolder, KeyService, Keyfile, Managed, Passphrase,
    PassphraseCost, WrappedKey,
};
use stvor_store::{
    ChangeSet, Expect, Key, MemoryStore, Notice, Op, OpenKey, Page, Row, RowValue, Scan, Sealed, Stats,
    Store, StoreError, Table, default_keyfile, open,
};

fn key(partition: &str, sort: u64) -> Key {
    Key::new(Table::Session, partition, sort.to_be_bytes())
}

fn one(op: Op<SecretBytes>) -> ChangeSet {
    [op].into_iter().collect()
}

fn files_of(directory: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        all.extend(entry.file_name().as_encoded_bytes());
        all.extend(std::fs::read(entry.path()).unwrap());
    }
    all
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test]
async fn neither_values_nor_names_are_in_the_files_in_clear() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("alice.db");
    let opened = open(&path, OpenKey::Default).await.unwrap();
    let mut changes = ChangeSet::new();
    for sort in 0..200 {
        changes.put(key("canary-name@example.com", sort), b"canary plaintext, canary plaintext".to_vec());
    }
    changes.push(Op::put(Key::new(Table::Meta, *b"x", *b"sort-stays-clear"), b"v".to_vec()));
    opened.store.commit(changes).await.unwrap();
    // Both while the journal is there and after it was merged.
    for closed in [false, true] {
        if closed {
            opened.store.close().await.unwrap();
        }
        let bytes = files_of(directory.path());
        assert!(holds(&bytes, b"sort-stays-clear"), "the scan sees what is in the files");
        assert!(!holds(&bytes, b"canary plaintext"));
        assert!(!holds(&bytes, b"canary-name"));
    }
}

#[tokio::test]
async fn a_fresh_store_makes_a_private_keyfile_says_so_and_opens_again_with_it() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/er/alice.db");
    let opened = open(&path, OpenKey::Default).await.unwrap();
    assert_eq!(opened.notice, Some(Notice::KeyfileCreated { path: default_keyfile(&path) }));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    for suffix in ["", ".key", ".lock", "-wal"] {
        let file = std::path::PathBuf::from(format!("{}{suffix}", path.display()));
        assert_eq!(mode(&file), 0o600, "{suffix}");
    }
    opened.store.commit(one(Op::put(key("a", 1), b"kept".to_vec()))).await.unwrap();
    opened.store.close().await.unwrap();
    let opened = open(&path, OpenKey::Default).await.unwrap();
    assert_eq!(opened.notice, None);
    assert_eq!(opened.store.one(&key("a", 1)).await.unwrap().unwrap().value.expose(), b"kept");
}

#[tokio::test]
async fn wrong_malformed_missing_and_shared_keys_are_different_codes() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("alice.db");
    open(&path, OpenKey::Default).await.unwrap().store.close().await.unwrap();
    let keyfile = default_keyfile(&path);
    let good = std::fs::read(&keyfile).unwrap();
    let code = async |key| open(&path, key).await.unwrap_err().code();
    std::fs::write(&keyfile, [9; 32]).unwrap();
    assert_eq!(code(OpenKey::Default).await, "WRONG_KEY");
    std::fs::write(&keyfile, [9; 31]).unwrap();
    assert_eq!(code(OpenKey::Default).await, "KEY_MALFORMED");
    std::fs::write(&keyfile, [9; 33]).unwrap();
    assert_eq!(code(OpenKey::Default).await, "KEY_MALFORMED");
    std::fs::remove_file(&keyfile).unwrap();
    assert_eq!(code(OpenKey::Default).await, "KEY_MISSING");
    assert_eq!(code(OpenKey::Passphrase(b"x".to_vec().into())).await, "KEY_REQUIRED");
    std::fs::write(&keyfile, &good).unwrap();
    std::fs::set_permissions(&keyfile, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(code(OpenKey::Default).await, "KEY_PERMISSIONS");
    std::fs::set_permissions(&keyfile, std::fs::Permissions::from_mode(0o600)).unwrap();
    open(&path, OpenKey::Default).await.unwrap();
}

/// A sealed store over memory, to play the attacker in.
async fn sealed() -> (Arc<MemoryStore>, Sealed, Arc<Keyfile>) {
    let directory = tempfile::tempdir().unwrap();
    let holder = Arc::new(Keyfile::create(&directory.path().join("k"), &mut SystemRandom::new()).unwrap());
    let below = Arc::new(MemoryStore::new());
    let sealed = Sealed::open(below.clone(), holder.clone()).await.unwrap();
    (below, sealed, holder)
}

async fn only_row(below: &MemoryStore, sealed: &Sealed, key: &Key) -> Row {
    // The hashed partition is what the adapter was given: found by scanning for the sort key in a fresh commit.
    let hashed = hashed(sealed, key);
    below.get(&[hashed]).await.unwrap().remove(0).unwrap()
}

fn hashed(sealed: &Sealed, key: &Key) -> Key {
    sealed.key_on_disk(key)
}

async fn plant(below: &MemoryStore, key: Key, value: RowValue) {
    below.commit([Op::put(key, value)].into_iter().collect()).await.unwrap();
}

#[tokio::test]
async fn every_flipped_bit_of_a_sealed_row_is_refused() {
    let (below, sealed, _) = sealed().await;
    sealed.commit(one(Op::put(key("a", 1), b"value".to_vec()))).await.unwrap();
    let row = only_row(&below, &sealed, &key("a", 1)).await;
    for bit in 0..row.value.bytes.len() * 8 {
        let mut value = row.value.clone();
        value.bytes[bit / 8] ^= 1 << (bit % 8);
        plant(&below, row.key.clone(), value).await;
        assert_eq!(sealed.one(&key("a", 1)).await.unwrap_err().code(), "ROW_TAMPERED");
    }
    for length in 0..row.value.bytes.len() {
        let mut value = row.value.clone();
        value.bytes.truncate(length);
        plant(&below, row.key.clone(), value).await;
        assert_eq!(sealed.one(&key("a", 1)).await.unwrap_err().code(), "ROW_TAMPERED");
    }
    plant(&below, row.key, row.value).await;
    assert_eq!(sealed.one(&key("a", 1)).await.unwrap().unwrap().value.expose(), b"value");
}

#[tokio::test]
async fn a_row_moved_to_another_place_version_or_store_is_refused() {
    let (below, sealed, holder) = sealed().await;
    let home = key("a", 1);
    sealed.commit(one(Op::put(home.clone(), b"old".to_vec()))).await.unwrap();
    let old = only_row(&below, &sealed, &home).await;
    for place in [key("b", 1), key("a", 2), Key::new(Table::Pin, *b"a", 1_u64.to_be_bytes())] {
        plant(&below, hashed(&sealed, &place), old.value.clone()).await;
        assert_eq!(sealed.one(&place).await.unwrap_err().code(), "ROW_TAMPERED", "{place:?}");
    }
    let scanned = sealed.scan(Scan::of(Table::Session, *b"a")).await.unwrap_err();
    assert_eq!(scanned.code(), "ROW_TAMPERED");

    sealed.commit(one(Op::put(home.clone(), b"new".to_vec()))).await.unwrap();
    let new = only_row(&below, &sealed, &home).await;
    assert!(new.value.version > old.value.version);
    let rolled_back = RowValue { version: new.value.version, ..old.value.clone() };
    plant(&below, old.key.clone(), rolled_back).await;
    assert_eq!(sealed.one(&home).await.unwrap_err().code(), "ROW_TAMPERED");

    let expiring = Op::put(old.key.clone(), new.value.clone()).expiring(Timestamp::from_millis(1));
    below.commit([expiring].into_iter().collect()).await.unwrap();
    assert_eq!(sealed.one(&home).await.unwrap_err().code(), "ROW_TAMPERED");

    // Another store under the same keyfile.
    let elsewhere = Arc::new(MemoryStore::new());
    let other = Sealed::open(elsewhere.clone(), holder).await.unwrap();
    plant(&elsewhere, hashed(&other, &home), new.value).await;
    assert_eq!(other.one(&home).await.unwrap_err().code(), "ROW_TAMPERED");
}

#[tokio::test]
async fn rows_that_were_altered_are_named_among_the_others_where_asked_for_and_refused_else() {
    const ROWS: u64 = stvor_store::limits::MAX_SCAN as u64 + 2;
    // One in a page, the one that ends it, and the last of all.
    const ALTERED: [u64; 3] = [3, stvor_store::limits::MAX_SCAN as u64 - 1, ROWS - 1];
    let (below, sealed, _) = sealed().await;
    let puts = (0..ROWS).map(|sort| Op::put(key("a", sort), sort.to_be_bytes().to_vec()));
    sealed.commit(puts.collect()).await.unwrap();
    for sort in ALTERED {
        let row = only_row(&below, &sealed, &key("a", sort)).await;
        let mut value = row.value;
        value.bytes[0] ^= 1;
        plant(&below, row.key, value).await;
    }
    let sorts = |rows: Vec<Result<stvor_store::Record, Key>>| -> Vec<Result<u64, Key>> {
        let number = |record: stvor_store::Record| {
            assert_eq!(record.value.expose(), record.key.sort);
            u64::from_be_bytes(record.key.sort.try_into().unwrap())
        };
        rows.into_iter().map(|row| row.map(number)).collect()
    };
    let expected = |sort: u64| match ALTERED.contains(&sort) {
        true => Err(key("a", sort)),
        false => Ok(sort),
    };
    let all = Scan::of(Table::Session, *b"a");
    let found = sorts(sealed.scan_each(all.clone(), usize::MAX).await.unwrap());
    assert_eq!(found, (0..ROWS).map(expected).collect::<Vec<_>>());
    let found = sorts(sealed.scan_each(all.clone().newest_first(), usize::MAX).await.unwrap());
    assert_eq!(found, (0..ROWS).rev().map(expected).collect::<Vec<_>>());
    let found = sorts(sealed.scan_each(all.clone(), 5).await.unwrap());
    assert_eq!(found, (0..5).map(expected).collect::<Vec<_>>());
    for limit in [4, usize::MAX] {
        assert_eq!(sealed.scan_all(all.clone(), limit).await.unwrap_err().code(), "ROW_TAMPERED");
    }
    assert_eq!(sealed.scan_all(all, 3).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_changed_passphrase_opens_the_same_rows_and_the_old_one_does_not() {
    let cheap = PassphraseCost { memory_kib: 64, iterations: 1, parallelism: 1 };
    let phrase = |text: &[u8]| {
        Arc::new(Passphrase::new(SecretBytes::from_slice(text)).unwrap().with_cost(cheap).unwrap())
    };
    let below = Arc::new(MemoryStore::new());
    let sealed = Sealed::open(below.clone(), phrase(b"first")).await.unwrap();
    sealed.commit(one(Op::put(key("a", 1), b"kept".to_vec()))).await.unwrap();
    let before = only_row(&below, &sealed, &key("a", 1)).await;
    sealed.rewrap(phrase(b"second")).await.unwrap();
    assert_eq!(only_row(&below, &sealed, &key("a", 1)).await, before);
    assert_eq!(Sealed::open(below.clone(), phrase(b"first")).await.unwrap_err().code(), "WRONG_KEY");
    let again = Sealed::open(below, phrase(b"second")).await.unwrap();
    assert_eq!(again.one(&key("a", 1)).await.unwrap().unwrap().value.expose(), b"kept");
}

#[tokio::test]
async fn every_flipped_bit_of_the_header_is_a_damaged_store_and_not_a_wrong_key() {
    let (below, _, holder) = sealed().await;
    let name = Key::new(Table::Header, *b"store", *b"header");
    let header = below.get(std::slice::from_ref(&name)).await.unwrap().remove(0).unwrap().value;
    for bit in 0..header.bytes.len() * 8 {
        let mut value = header.clone();
        value.bytes[bit / 8] ^= 1 << (bit % 8);
        plant(&below, name.clone(), value).await;
        let error = Sealed::open(below.clone(), holder.clone()).await.unwrap_err();
        assert_eq!(error.code(), "STORE_CORRUPT");
    }
    below.commit([Op::delete(name)].into_iter().collect()).await.unwrap();
    assert_eq!(Sealed::open(below.clone(), holder).await.unwrap_err().code(), "STORE_EMPTIED");
}

#[tokio::test]
async fn versions_rise_across_openings_and_detect_a_change_in_between() {
    let (below, sealed, holder) = sealed().await;
    let first = sealed.commit(one(Op::put(key("a", 1), b"1".to_vec()))).await.unwrap();
    let again = Sealed::open(below, holder).await.unwrap();
    let second = again
        .commit(one(Op::put(key("a", 1), b"2".to_vec()).expecting(Expect::Version(first))))
        .await
        .unwrap();
    assert!(second > first);
    let late = Op::put(key("a", 1), b"3".to_vec()).expecting(Expect::Version(first));
    assert_eq!(sealed.commit(one(late)).await.unwrap_err().code(), "STORE_CONFLICT");
    assert_eq!(sealed.one(&key("a", 1)).await.unwrap().unwrap().version, second);
}

#[tokio::test]
async fn a_wiped_store_is_empty_and_still_opens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("alice.db");
    let store = open(&path, OpenKey::Default).await.unwrap().store;
    for table in Table::ALL.into_iter().filter(|table| *table != Table::Header) {
        store.commit(one(Op::put(Key::new(table, *b"a", *b"b"), b"c".to_vec()))).await.unwrap();
    }
    store.wipe().await.unwrap();
    assert_eq!(store.stats().await.unwrap().rows, 3, "the header, the epoch and the anchor");
    store.close().await.unwrap();
    open(&path, OpenKey::Default).await.unwrap().store.close().await.unwrap();
    stvor_store::destroy(&path).await.unwrap();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// A store that never answers.
#[derive(Debug)]
struct Hung;

#[async_trait::async_trait]
impl Store for Hung {
    async fn get(&self, _: &[Key]) -> Result<Vec<Option<Row>>, StoreError> {
        core::future::pending().await
    }
    async fn scan(&self, _: Scan) -> Result<Page<Row>, StoreError> {
        core::future::pending().await
    }
    async fn commit(&self, _: ChangeSet<RowValue>) -> Result<(), StoreError> {
        core::future::pending().await
    }
    async fn sweep(&self, _: Timestamp, _: usize) -> Result<usize, StoreError> {
        core::future::pending().await
    }
    async fn stats(&self) -> Result<Stats, StoreError> {
        core::future::pending().await
    }
    async fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[tokio::test]
async fn an_adapter_that_never_answers_is_an_error_in_time() {
    let patience = std::time::Duration::from_millis(5);
    let store = Sealed::ephemeral(Arc::new(Hung)).unwrap().patience(patience);
    let key = Key::new(Table::Custom, *b"a", *b"b");
    let got = store.one(&key).await.unwrap_err();
    let scanned = store.scan(Scan::of(Table::Custom, *b"a")).await.unwrap_err();
    let committed = store.commit([Op::put(key, b"c".to_vec())].into_iter().collect()).await.unwrap_err();
    for error in [got, scanned, committed] {
        assert!(matches!(error, StoreError::Timeout { after, .. } if after == patience), "{error}");
    }
}

/// A store whose commits are put aside for a while: nobody is answered, and they land when they are let.
#[derive(Debug, Default)]
struct Late {
    store: MemoryStore,
    holds: AtomicBool,
    aside: Mutex<Vec<ChangeSet<RowValue>>>,
    /// Commits that come while this is set wait for the other before they do anything.
    slow: AtomicBool,
    quick: tokio::sync::Notify,
}

impl Late {
    fn hold(&self, holds: bool) {
        self.holds.store(holds, Ordering::SeqCst);
    }

    /// Lets those land that were put aside; how many of them the store took.
    async fn land(&self) -> usize {
        let aside = core::mem::take(&mut *self.aside.lock().unwrap());
        let mut landed = 0;
        for changes in aside {
            landed += usize::from(self.store.commit(changes).await.is_ok());
        }
        landed
    }
}

#[async_trait::async_trait]
impl Store for Late {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Row>>, StoreError> {
        self.store.get(keys).await
    }
    async fn scan(&self, scan: Scan) -> Result<Page<Row>, StoreError> {
        self.store.scan(scan).await
    }
    async fn commit(&self, changes: ChangeSet<RowValue>) -> Result<(), StoreError> {
        if self.holds.load(Ordering::SeqCst) {
            self.aside.lock().unwrap().push(changes);
            return core::future::pending().await;
        }
        if self.slow.load(Ordering::SeqCst) {
            self.quick.notified().await;
        }
        self.store.commit(changes).await
    }
    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        self.store.sweep(now, limit).await
    }
    async fn walk(&self, after: Option<&Key>, limit: usize) -> Result<Page<Row>, StoreError> {
        self.store.walk(after, limit).await
    }
    async fn stats(&self) -> Result<Stats, StoreError> {
        self.store.stats().await
    }
    async fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

async fn late() -> (Arc<Late>, Sealed, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let holder = Keyfile::create(&directory.path().join("key"), &mut SystemRandom::new()).unwrap();
    let below = Arc::new(Late::default());
    let store = Sealed::open(below.clone(), Arc::new(holder)).await.unwrap();
    (below, store.patience(std::time::Duration::from_millis(20)), directory)
}

async fn text(store: &Sealed, sort: u64) -> Option<Vec<u8>> {
    store.one(&key("a", sort)).await.unwrap().map(|row| row.value.expose().to_vec())
}

fn puts(sort: u64, value: &[u8]) -> ChangeSet {
    one(Op::put(key("a", sort), value.to_vec()))
}

#[tokio::test]
async fn a_commit_that_was_given_up_is_seen_by_the_next_read_or_never_lands() {
    // Given up by the deadline, and by who waited for it.
    for waits in [true, false] {
        let (below, store, _directory) = late().await;
        let give_up = async |changes| {
            below.hold(true);
            match waits {
                true => assert_eq!(store.commit(changes).await.unwrap_err().code(), "STORE_TIMEOUT"),
                false => assert!(store.commit(changes).now_or_never().is_none()),
            }
            below.hold(false);
        };
        store.commit(puts(1, b"first")).await.unwrap();
        give_up(puts(1, b"landed")).await;
        assert_eq!(below.land().await, 1);
        assert_eq!(text(&store, 1).await.as_deref(), Some(b"landed".as_slice()));
        for look in 0..4 {
            give_up(puts(1, b"late")).await;
            match look {
                0 => drop(text(&store, 1).await.filter(|text| text == b"landed").unwrap()),
                1 => assert_eq!(store.scan(Scan::of(Table::Session, *b"a")).await.unwrap().rows.len(), 1),
                2 => drop(store.commit(puts(2, b"other")).await.unwrap()),
                _ => {
                    // Several of them.
                    give_up(puts(3, b"late, too")).await;
                    assert_eq!(text(&store, 3).await, None);
                }
            }
            assert_eq!(below.land().await, 0, "{waits} {look}: what was read is out of date without a word");
            assert_eq!(text(&store, 1).await.as_deref(), Some(b"landed".as_slice()));
        }
        store.commit(puts(1, b"goes on")).await.unwrap();
        assert_eq!(text(&store, 1).await.as_deref(), Some(b"goes on".as_slice()));
    }
}

#[tokio::test]
async fn while_nobody_knows_what_became_of_a_commit_nothing_is_read_and_nothing_is_lost_by_that() {
    let (below, store, _directory) = late().await;
    store.commit(puts(1, b"first")).await.unwrap();
    below.hold(true);
    for _ in 0..3 {
        assert_eq!(store.commit(puts(1, b"late")).await.unwrap_err().code(), "STORE_TIMEOUT");
        assert_eq!(store.one(&key("a", 1)).await.unwrap_err().code(), "STORE_TIMEOUT");
    }
    below.hold(false);
    // The first one was on its way before anything made it void.
    assert_eq!(below.land().await, 2, "it, and the first of those that would have made it void");
    assert_eq!(text(&store, 1).await.as_deref(), Some(b"late".as_slice()));
    store.commit(puts(1, b"goes on")).await.unwrap();
    let both = tokio::join!(store.commit(puts(2, b"x")), store.commit(puts(3, b"y")));
    assert!(both.0.is_ok() && both.1.is_ok());
}

/// Another commit was given up meanwhile, and what made that one void came first. Nothing is wrong with this one, and nobody is told
/// that it may have been stored and may not.
#[tokio::test]
async fn a_commit_that_is_under_way_while_another_is_given_up_is_applied_all_the_same() {
    let (below, store, _directory) = late().await;
    let store = store.patience(std::time::Duration::from_secs(60));
    store.commit(puts(1, b"first")).await.unwrap();
    for round in [b"one", b"two"] {
        below.slow.store(true, Ordering::SeqCst);
        let mut overtaken = core::pin::pin!(store.commit(puts(2, round)));
        assert!(futures::poll!(overtaken.as_mut()).is_pending());
        below.slow.store(false, Ordering::SeqCst);
        below.hold(true);
        assert!(store.commit(puts(1, b"given up")).now_or_never().is_none());
        below.hold(false);
        store.commit(puts(3, round)).await.unwrap();
        below.quick.notify_waiters();
        overtaken.await.unwrap();
        assert_eq!(text(&store, 2).await.as_deref(), Some(round.as_slice()));
        assert_eq!(below.land().await, 0);
        assert_eq!(text(&store, 1).await.as_deref(), Some(b"first".as_slice()));
    }
}

/// What made it void is the opening's own also after a rotation, and where nobody heard that it landed.
#[tokio::test]
async fn a_commit_that_is_under_way_after_a_rotation_is_overtaken_by_nobody_else() {
    let (below, store, directory) = late().await;
    let holder = Arc::new(Keyfile::read(&directory.path().join("key")).unwrap());
    store.rotate(holder, |_| {}).await.unwrap();
    let store = store.patience(std::time::Duration::from_secs(60));
    below.slow.store(true, Ordering::SeqCst);
    let mut overtaken = core::pin::pin!(store.commit(puts(2, b"second")));
    assert!(futures::poll!(overtaken.as_mut()).is_pending());
    below.slow.store(false, Ordering::SeqCst);
    below.hold(true);
    assert!(store.commit(puts(1, b"late")).now_or_never().is_none());
    assert!(store.one(&key("a", 1)).now_or_never().is_none());
    below.hold(false);
    assert_eq!(below.land().await, 2, "it, and what would have made it void");
    below.quick.notify_waiters();
    overtaken.await.unwrap();
    assert_eq!(text(&store, 2).await.as_deref(), Some(b"second".as_slice()));
}

/// A process that hangs, while another one took over what it had: that one has read what this commit would change.
#[tokio::test]
async fn a_commit_that_another_opening_made_void_is_not_tried_again_and_never_lands() {
    let directory = tempfile::tempdir().unwrap();
    let holder = Keyfile::create(&directory.path().join("key"), &mut SystemRandom::new()).unwrap();
    let holder = Arc::new(holder);
    let below = Arc::new(Late::default());
    // It gives a commit up, and reads: what was on its way is void from then on.
    let settle = async |store: &Sealed| {
        below.hold(true);
        assert!(store.commit(puts(2, b"given up")).now_or_never().is_none());
        below.hold(false);
        assert_eq!(text(store, 1).await.as_deref(), Some(b"first".as_slice()));
    };
    let first = Sealed::open(below.clone(), holder.clone()).await.unwrap();
    first.commit(puts(1, b"first")).await.unwrap();
    for settles_too in [false, true] {
        below.slow.store(true, Ordering::SeqCst);
        let mut late = core::pin::pin!(first.commit(puts(1, b"late")));
        assert!(futures::poll!(late.as_mut()).is_pending());
        below.slow.store(false, Ordering::SeqCst);
        let second = Sealed::open(below.clone(), holder.clone()).await.unwrap();
        settle(&second).await;
        if settles_too {
            // The version that is found is one of its own again.
            settle(&first).await;
        }
        below.quick.notify_waiters();
        assert_eq!(late.await.unwrap_err().code(), "STORE_TIMEOUT");
        assert_eq!(below.land().await, 0);
        assert_eq!(text(&second, 1).await.as_deref(), Some(b"first".as_slice()));
    }
    first.commit(puts(1, b"goes on")).await.unwrap();
}

#[tokio::test]
async fn a_rotation_whose_new_key_was_given_up_and_landed_goes_on_after_a_new_opening_and_loses_no_row() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    let holder = Arc::new(Keyfile::create(&path, &mut SystemRandom::new()).unwrap());
    let below = Arc::new(Late::default());
    let store = Sealed::open(below.clone(), holder.clone()).await.unwrap();
    store.commit(puts(1, b"before")).await.unwrap();
    below.hold(true);
    let given_up = store.rotate(holder.clone(), |_| {});
    assert!(tokio::time::timeout(std::time::Duration::from_secs(1), given_up).await.is_err());
    below.hold(false);
    assert_eq!(below.land().await, 1, "the store has another key now, of which this opening knows nothing");
    for _ in 0..2 {
        assert_eq!(store.rotate(holder.clone(), |_| {}).await.unwrap_err().code(), "STORE_KEYS_REPLACED");
        assert_eq!(store.rewrap(holder.clone()).await.unwrap_err().code(), "STORE_KEYS_REPLACED");
    }
    store.commit(puts(2, b"meanwhile")).await.unwrap();
    let again = Sealed::open(below.clone(), holder.clone()).await.unwrap();
    again.rotate(holder.clone(), |_| {}).await.unwrap();
    let last = Sealed::open(below, holder).await.unwrap();
    assert_eq!(text(&last, 1).await.as_deref(), Some(b"before".as_slice()));
    assert_eq!(text(&last, 2).await.as_deref(), Some(b"meanwhile".as_slice()));
}

type Unwraps = fn(Secret<32>) -> Result<Secret<32>, KeyError>;

/// A key management service of a user's own, whose answers to `unwrap` can be wrong.
#[derive(Debug)]
struct Service(Unwraps);

impl KeyService for Service {
    fn wrap(&self, key: &Secret<32>) -> Result<Vec<u8>, KeyError> {
        Ok(key.expose().map(|byte| byte ^ 0x55).to_vec())
    }
    fn unwrap(&self, wrapped: &[u8]) -> Result<Secret<32>, KeyError> {
        let key: Vec<u8> = wrapped.iter().map(|byte| byte ^ 0x55).collect();
        self.0(Secret::from_slice(&key)?)
    }
}

fn service(unwraps: Unwraps) -> Arc<Managed<Service>> {
    Arc::new(Managed::service(Service(unwraps)))
}

type Opens = fn(&WrappedKey, &[u8]) -> Result<DataKey, KeyError>;

/// A holder of a user's own that wraps well, and opens as it is told.
#[derive(Debug)]
struct Own(Opens);

fn own_key() -> IdentityKey {
    IdentityKey::new(&Secret::new([9; 32]))
}

impl KeyHolder for Own {
    fn kind(&self) -> HolderKind {
        own_key().kind()
    }
    fn wrap(&self, key: &DataKey, context: &[u8], rng: &mut dyn Random) -> Result<WrappedKey, KeyError> {
        own_key().wrap(key, context, rng)
    }
    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<DataKey, KeyError> {
        self.0(wrapped, context)
    }
}

#[tokio::test]
async fn a_key_holder_of_a_users_own_that_does_not_open_what_it_wraps_seals_no_store() {
    let below = Arc::new(MemoryStore::new());
    let wrong: [(Opens, &str); 4] = [
        (|_, _| Ok(Secret::new([7; 32])), "does not give back"),
        (|wrapped, _| own_key().unwrap(wrapped, b"another store"), "does not give back"),
        (|_, _| Err(KeyError::OtherHolder { needs: "keyfile", given: "own" }), "does not give back"),
        (|_, _| Err(KeyError::Unavailable { holder: "own", reason: "it is away".into() }), "it is away"),
    ];
    for (opens, told) in wrong {
        let error = Sealed::open(below.clone(), Arc::new(Own(opens))).await.unwrap_err();
        assert_eq!(error.code(), "KEY_UNAVAILABLE");
        assert!(error.to_string().contains(told), "{error}");
    }
    assert_eq!(below.stats().await.unwrap().rows, 0, "nothing was written");

    let right: Opens = |wrapped, context| own_key().unwrap(wrapped, context);
    let store = Sealed::open(below.clone(), Arc::new(Own(right))).await.unwrap();
    store.commit(puts(1, b"value")).await.unwrap();
    for (opens, _) in wrong {
        assert_eq!(store.rewrap(Arc::new(Own(opens))).await.unwrap_err().code(), "KEY_UNAVAILABLE");
    }
    let again = Sealed::open(below, Arc::new(Own(right))).await.unwrap();
    assert_eq!(text(&again, 1).await.as_deref(), Some(b"value".as_slice()));
}

#[tokio::test]
async fn a_key_service_that_does_not_give_back_what_it_wraps_seals_no_store() {
    let below = Arc::new(MemoryStore::new());
    let wrong: [Unwraps; 4] = [
        |_| Ok(Secret::new([7; 32])),
        |key| Secret::from_slice(&key.expose()[1..]).map_err(KeyError::from),
        |_| Err(KeyError::Wrong { holder: "key of the service" }),
        |_| Err(KeyError::Corrupt("the service says so")),
    ];
    for unwraps in wrong {
        let error = Sealed::open(below.clone(), service(unwraps)).await.unwrap_err();
        assert_eq!(error.code(), "KEY_UNAVAILABLE");
        assert!(error.to_string().contains("does not give back"), "{error}");
    }
    assert_eq!(below.stats().await.unwrap().rows, 0, "nothing was written");

    let store = Sealed::open(below.clone(), service(Ok)).await.unwrap();
    store.commit(puts(1, b"value")).await.unwrap();
    for unwraps in wrong {
        assert_eq!(store.rewrap(service(unwraps)).await.unwrap_err().code(), "KEY_UNAVAILABLE");
    }
    let again = Sealed::open(below, service(Ok)).await.unwrap();
    assert_eq!(text(&again, 1).await.as_deref(), Some(b"value".as_slice()));
}
