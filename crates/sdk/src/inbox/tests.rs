use std::sync::atomic::{AtomicBool, Ordering};

use stvor_base::{Address, ContentId, DeviceId};
use stvor_store::{ChangeSet, Key, MemoryStore, Page, Row, RowValue, Stats, Store, StoreError};

use super::*;
use crate::content::Content;
use crate::events::DeliveryState;
use crate::rows::{Direction, Place};

fn only() -> Arc<Instances> {
    Arc::new(Instances::only())
}

fn row(number: u64) -> MessageRow {
    MessageRow {
        direction: Direction::In,
        content: Content::from(number.to_string()),
        sent_order: number,
        sent_at: Timestamp::from_millis(number),
        stamped_at: Timestamp::from_millis(number),
        state: DeliveryState::Delivered,
        read: false,
        keep: FOREVER,
        verified: false,
        msg_id: None,
        repairs: 0,
        queued: 0,
        identity: None,
        from: None,
    }
}

/// What a lane does with messages that came together.
async fn commit(inbox: &Arc<Inbox>, peer: &Address, numbers: core::ops::Range<u64>) {
    let arrivals = store(inbox, peer, numbers).await;
    inbox.arrived(arrivals);
}

/// Stores messages, and reports nothing.
async fn store(inbox: &Arc<Inbox>, peer: &Address, numbers: core::ops::Range<u64>) -> Vec<Arrival> {
    let mut changes = ChangeSet::new();
    let mut arrivals = Vec::new();
    for number in numbers {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_be_bytes());
        let place = Place { order: number, id: ContentId::from_bytes(id) };
        let pointer = PointerRow { peer: peer.clone(), place, group: None };
        let reserved = inbox.reserve(&peer.user);
        changes.insert(keys::message(&peer.user, place), row(number).encode());
        changes.insert(keys::inbox(reserved.seq()), pointer.encode());
        arrivals.push(Arrival { reserved, pointer, row: row(number) });
    }
    inbox.store.commit(changes).await.unwrap();
    arrivals
}

#[tokio::test]
async fn what_a_commit_stored_that_reports_a_failure_is_shown_though_the_window_went_by() {
    let (inbox, _consumed) = Inbox::open(Arc::new(Sealed::in_memory().unwrap()), only()).await.unwrap();
    let peer = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
    commit(&inbox, &peer, 0..1).await;
    let mut messages = inbox.stream().manual_ack();
    assert_eq!(messages.next().await.unwrap().text(), Some("0"));
    let arrivals = store(&inbox, &peer, 1..2).await;
    let seq = arrivals[0].reserved.seq();
    {
        let mut next = Box::pin(messages.next());
        soon(async {
            while inbox.lock().loaded_to < seq {
                assert!(futures::poll!(&mut next).is_pending(), "its commit has not reported");
                tokio::task::yield_now().await;
            }
        })
        .await;
        drop(arrivals);
        assert_eq!(soon(next).await.unwrap().text(), Some("1"));
    }
    // Not twice, and in its order with what comes meanwhile.
    let failed = store(&inbox, &peer, 2..3).await;
    commit(&inbox, &peer, 3..4).await;
    assert_eq!(inbox.lock().loaded_to, failed[0].reserved.seq() + 1);
    assert_eq!(soon(messages.next()).await.unwrap().text(), Some("3"));
    drop(failed);
    assert_eq!(soon(messages.next()).await.unwrap().text(), Some("2"));
    commit(&inbox, &peer, 4..5).await;
    assert_eq!(soon(messages.next()).await.unwrap().text(), Some("4"));
    assert_eq!(inbox.waiting(), 5);
    // Nothing is there of what failed indeed.
    let reserved = inbox.reserve(&peer.user);
    commit(&inbox, &peer, 5..6).await;
    assert_eq!(soon(messages.next()).await.unwrap().text(), Some("5"));
    drop(reserved);
    commit(&inbox, &peer, 6..7).await;
    assert_eq!(soon(messages.next()).await.unwrap().text(), Some("6"));
    assert!(inbox.lock().passed_over.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn messages_that_arrive_while_a_page_is_read_are_offered_once_and_in_order() {
    const COUNT: u64 = 600;
    let directory = tempfile::tempdir().unwrap();
    let opened = stvor_store::open(&directory.path().join("store.db"), stvor_store::OpenKey::Default).await;
    let (inbox, consumed) = Inbox::open(Arc::new(opened.unwrap().store), only()).await.unwrap();
    let acks = tokio::spawn(
        Arc::clone(&inbox).run_acks(Arc::new(consumed.into()), tokio_util::sync::CancellationToken::new()),
    );
    let names = ["alice", "bob", "carol"];
    for name in names {
        let inbox = Arc::clone(&inbox);
        tokio::spawn(async move {
            let peer = Address::new(UserId::new(name).unwrap(), DeviceId::FIRST);
            for number in 0..COUNT {
                commit(&inbox, &peer, number..number + 1).await;
            }
        });
    }
    let mut messages = inbox.stream();
    let mut next = HashMap::new();
    for _ in 0..COUNT * 3 {
        let message =
            tokio::time::timeout(std::time::Duration::from_secs(60), messages.next()).await.unwrap().unwrap();
        let expected = next.entry(message.from.clone()).or_insert(0);
        assert_eq!(message.text(), Some(expected.to_string().as_str()), "from {}", message.from);
        *expected += 1;
    }
    assert_eq!(inbox.lock().ready.len(), 0);
    acks.abort();
}

#[tokio::test]
async fn a_row_that_can_not_be_read_is_told_and_does_not_end_the_stream() {
    let directory = tempfile::tempdir().unwrap();
    let opened = stvor_store::open(&directory.path().join("store.db"), stvor_store::OpenKey::Default).await;
    let store = Arc::new(opened.unwrap().store);
    let peer = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
    let (before, _consumed) = Inbox::open(Arc::clone(&store), only()).await.unwrap();
    commit(&before, &peer, 0..4).await;
    let mut id = [0; 16];
    id[..8].copy_from_slice(&2_u64.to_be_bytes());
    let place = Place { order: 2, id: ContentId::from_bytes(id) };
    let mut changes = ChangeSet::new();
    changes.put(keys::inbox(2), vec![99]).put(keys::message(&peer.user, place), vec![99]);
    store.commit(changes).await.unwrap();
    let (inbox, _consumed) = Inbox::open(store, only()).await.unwrap();
    let mut messages = inbox.stream();
    for expected in ["0", "3"] {
        let message = tokio::time::timeout(std::time::Duration::from_secs(60), messages.next());
        assert_eq!(message.await.unwrap().expect("the stream goes on").text(), Some(expected));
    }
    assert_eq!(inbox.skipped().await, Error::passed(stvor_base::codec::CodecError::Version(99)).code());
}

#[tokio::test]
async fn a_full_inbox_takes_no_more_until_a_quarter_of_it_is_free() {
    const LIMIT: u64 = 8;
    let (inbox, consumed) = Inbox::open(Arc::new(Sealed::in_memory().unwrap()), only()).await.unwrap();
    inbox.set_limit(LIMIT as usize);
    let acks = tokio::spawn(
        Arc::clone(&inbox).run_acks(Arc::new(consumed.into()), tokio_util::sync::CancellationToken::new()),
    );
    let names: Vec<UserId> = (0..LIMIT).map(|n| UserId::new(&format!("user-{n}")).unwrap()).collect();
    let newcomer = UserId::new("newcomer").unwrap();
    for (number, name) in (0..).zip(&names[..LIMIT as usize - 1]) {
        let peer = Address::new(name.clone(), DeviceId::FIRST);
        commit(&inbox, &peer, number..number + 1).await;
    }
    assert!(inbox.has_room(&newcomer, 0), "one fits");
    assert!(!inbox.has_room(&newcomer, 1), "one that is on its way takes the last place");
    let last = Address::new(names[LIMIT as usize - 1].clone(), DeviceId::FIRST);
    commit(&inbox, &last, LIMIT - 1..LIMIT).await;
    assert!(!inbox.has_room(&newcomer, 0));
    let mut messages = inbox.stream().manual_ack();
    for left in (0..LIMIT).rev() {
        let message = messages.next().await.unwrap();
        message.ack().await.unwrap();
        message.ack().await.unwrap();
        assert_eq!(inbox.waiting(), left as usize, "twice consumed is once counted");
        let told = inbox.room_again.notified();
        tokio::pin!(told);
        let told = futures::poll!(told).is_ready();
        assert_eq!(told, left == LIMIT / 4 * 3, "{left} left");
        assert_eq!(inbox.has_room(&newcomer, 0), left <= LIMIT / 4 * 3, "{left} left");
    }
    acks.abort();
}

#[tokio::test]
async fn one_who_floods_gets_a_quarter_of_the_inbox_and_leaves_room_for_others() {
    const LIMIT: u64 = 16;
    let store = Arc::new(Sealed::in_memory().unwrap());
    let (inbox, consumed) = Inbox::open(Arc::clone(&store), only()).await.unwrap();
    inbox.set_limit(LIMIT as usize);
    let acks = tokio::spawn(
        Arc::clone(&inbox).run_acks(Arc::new(consumed.into()), tokio_util::sync::CancellationToken::new()),
    );
    let [eve, bob] = ["eve", "bob"].map(|name| Address::new(UserId::new(name).unwrap(), DeviceId::FIRST));
    commit(&inbox, &eve, 0..3).await;
    assert!(inbox.has_room(&eve.user, 0), "the fourth fits");
    assert!(!inbox.has_room(&eve.user, 1), "the fifth does not");
    assert!(!inbox.has_room(&eve.user, 0), "and what comes after it keeps its order");
    assert!(inbox.has_room(&bob.user, 0));
    commit(&inbox, &bob, 3..6).await;

    // The shares are those of the store, also after a start.
    let (again, _) = Inbox::open(store, only()).await.unwrap();
    again.set_limit(LIMIT as usize);
    assert!(again.has_room(&eve.user, 0) && !again.has_room(&eve.user, 1));

    let mut messages = inbox.stream().manual_ack();
    for left in [2_usize, 1] {
        let message = messages.next().await.unwrap();
        assert_eq!(message.from, eve.user);
        message.ack().await.unwrap();
        let told = inbox.room_again.notified();
        tokio::pin!(told);
        assert_eq!(futures::poll!(told).is_ready(), left == 2, "half a share is free: {left} left");
        assert!(inbox.has_room(&eve.user, 0));
    }
    acks.abort();
}

#[tokio::test]
async fn what_a_stream_gives_back_goes_to_the_next_one_in_order_and_not_past_the_end() {
    let (inbox, _consumed) = Inbox::open(Arc::new(Sealed::in_memory().unwrap()), only()).await.unwrap();
    let peer = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
    commit(&inbox, &peer, 0..3).await;
    let mut first = inbox.stream().manual_ack();
    let mut taken = Vec::new();
    for _ in 0..3 {
        taken.push(first.next().await.unwrap());
    }
    let ids: Vec<_> = taken.iter().map(|message| message.id).collect();
    first.give_back(taken.drain(1..));
    drop(first);
    let mut second = inbox.stream().manual_ack();
    for id in &ids[1..] {
        taken.push(second.next().await.unwrap());
        assert_eq!(taken.last().unwrap().id, *id);
    }
    inbox.close().await;
    second.give_back(taken);
    assert!(second.next().await.is_none());
}

#[tokio::test]
async fn what_was_passed_over_stands_behind_the_earlier_messages_of_its_sender() {
    let (inbox, _consumed) = Inbox::open(Arc::new(Sealed::in_memory().unwrap()), only()).await.unwrap();
    let alice = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
    let bob = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
    let first = store(&inbox, &alice, 1..2).await;
    let second = store(&inbox, &alice, 2..3).await;
    commit(&inbox, &bob, 3..5).await;
    let mut messages = inbox.stream().manual_ack();
    let taken = messages.next().await.unwrap();
    assert_eq!(taken.text(), Some("3"));
    inbox.arrived(first);
    messages.give_back([taken]);
    // It landed, and reported a failure.
    drop(second);
    let mut texts = Vec::new();
    for _ in 0..4 {
        texts.push(messages.next().await.unwrap().text().unwrap().to_owned());
    }
    let of_alice: Vec<_> = texts.iter().filter(|text| ["1", "2"].contains(&text.as_str())).collect();
    assert_eq!(of_alice, ["1", "2"], "{texts:?}");
}

#[tokio::test]
async fn what_a_commit_stored_that_reports_a_failure_counts_when_it_is_read_later() {
    const LIMIT: usize = 20;
    let (inbox, consumed) = Inbox::open(Arc::new(Sealed::in_memory().unwrap()), only()).await.unwrap();
    inbox.set_limit(LIMIT);
    let acks = tokio::spawn(
        Arc::clone(&inbox).run_acks(Arc::new(consumed.into()), tokio_util::sync::CancellationToken::new()),
    );
    let alice = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
    let bob = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
    let mut messages = inbox.stream().manual_ack();
    let stored = store(&inbox, &alice, 0..4).await;
    drop(stored);
    // As if a page had been read just then, and ended before it.
    let stored = store(&inbox, &alice, 4..5).await;
    inbox.lock().loading = true;
    drop(stored);
    inbox.lock().loading = false;
    // One of which nothing is stored.
    drop(inbox.reserve(&alice.user));
    commit(&inbox, &bob, 5..7).await;
    assert_eq!(inbox.waiting(), 2);
    let first = soon(messages.next()).await.unwrap();
    assert_eq!(first.text(), Some("0"));
    assert_eq!(inbox.waiting(), 7);
    assert!(!inbox.has_room(&alice.user, 0), "a quarter of the room is full");
    soon(first.ack()).await.unwrap();
    for number in 1..7_usize {
        let message = soon(messages.next()).await.unwrap();
        assert_eq!(message.text(), Some(number.to_string().as_str()));
        soon(message.ack()).await.unwrap();
        assert_eq!(inbox.waiting(), 6 - number, "no other one's place is given up with it");
    }
    assert!(inbox.lock().given_back.is_empty());
    assert!(inbox.lock().passed_over.is_empty());
    acks.abort();
}

#[tokio::test]
async fn of_the_numbers_that_were_given_back_the_oldest_are_forgotten_past_a_bound() {
    let (inbox, _consumed) = Inbox::open(Arc::new(Sealed::in_memory().unwrap()), only()).await.unwrap();
    let peer = UserId::new("alice").unwrap();
    for _ in 0..limits::MAX_GIVEN_BACK {
        drop(inbox.reserve(&peer));
    }
    assert_eq!(inbox.lock().given_back.first(), Some(&1));
    drop(inbox.reserve(&peer));
    assert_eq!(inbox.lock().given_back.first(), Some(&2));
    assert_eq!(inbox.lock().given_back.len(), limits::MAX_GIVEN_BACK);
}

type StoreResult<T> = core::result::Result<T, StoreError>;

/// A store in memory that fails, answers nothing, or waits, as a test wants it.
#[derive(Debug, Default)]
struct Moody {
    store: MemoryStore,
    /// The next read fails.
    deaf: AtomicBool,
    /// So many reads of rows, and the answer of the last one waits until it is freed.
    reads: AtomicUsize,
    /// Pages wait until they are freed.
    slow: AtomicBool,
    /// The next commit is applied, and its answer is lost.
    unheard: AtomicBool,
    /// Commits wait until they are freed.
    held: AtomicBool,
    /// Commits are refused for want of room.
    full: AtomicBool,
    asked: Notify,
    freed: Notify,
}

impl Moody {
    fn free(&self) {
        self.held.store(false, Ordering::SeqCst);
        self.slow.store(false, Ordering::SeqCst);
        self.freed.notify_waiters();
    }
}

#[async_trait::async_trait]
impl Store for Moody {
    async fn get(&self, keys: &[Key]) -> StoreResult<Vec<Option<Row>>> {
        if self.deaf.swap(false, Ordering::SeqCst) {
            return Err(StoreError::Unreachable { server: "test".into(), reason: "deaf".into() });
        }
        let rows = self.store.get(keys).await;
        let less = |left: usize| left.checked_sub(1);
        if self.reads.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) == Ok(1) {
            let freed = self.freed.notified();
            self.asked.notify_one();
            freed.await;
        }
        rows
    }
    async fn scan(&self, scan: Scan) -> StoreResult<Page<Row>> {
        loop {
            let freed = self.freed.notified();
            if !self.slow.load(Ordering::SeqCst) {
                break self.store.scan(scan).await;
            }
            freed.await;
        }
    }
    async fn commit(&self, changes: ChangeSet<RowValue>) -> StoreResult<()> {
        loop {
            let freed = self.freed.notified();
            if !self.held.load(Ordering::SeqCst) {
                break;
            }
            self.asked.notify_one();
            freed.await;
        }
        if self.full.load(Ordering::SeqCst) {
            self.asked.notify_one();
            return Err(StoreError::Full);
        }
        let done = self.store.commit(changes).await;
        match self.unheard.swap(false, Ordering::SeqCst) {
            true => Err(StoreError::Uncertain { server: "test".into() }),
            false => done,
        }
    }
    async fn sweep(&self, now: Timestamp, limit: usize) -> StoreResult<usize> {
        self.store.sweep(now, limit).await
    }
    async fn stats(&self) -> StoreResult<Stats> {
        self.store.stats().await
    }
    async fn close(&self) -> StoreResult<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_a_commit_stored_that_reports_a_failure_while_it_is_read_counts() {
    let moody = Arc::new(Moody::default());
    let below: Arc<dyn Store> = moody.clone();
    let (inbox, _consumed) = Inbox::open(Arc::new(Sealed::ephemeral(below).unwrap()), only()).await.unwrap();
    let peer = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
    let stored = store(&inbox, &peer, 0..1).await;
    let mut messages = inbox.stream().manual_ack();
    moody.slow.store(true, Ordering::SeqCst);
    let mut next = Box::pin(messages.next());
    soon(async {
        while !inbox.lock().loading {
            assert!(futures::poll!(&mut next).is_pending(), "its commit has not reported");
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(stored);
    moody.free();
    assert_eq!(soon(next).await.unwrap().text(), Some("0"));
    assert_eq!(inbox.waiting(), 1);
}

#[tokio::test]
async fn what_a_commit_stored_that_reports_a_failure_takes_room_before_it_is_read() {
    const LIMIT: usize = 20;
    const SHARE: usize = LIMIT / limits::INBOX_SHARES;
    let moody = Arc::new(Moody::default());
    let below: Arc<dyn Store> = moody.clone();
    let (inbox, consumed) = Inbox::open(Arc::new(Sealed::ephemeral(below).unwrap()), only()).await.unwrap();
    inbox.set_limit(LIMIT);
    let stop = tokio_util::sync::CancellationToken::new();
    let acks = tokio::spawn(Arc::clone(&inbox).run_acks(Arc::new(consumed.into()), stop));
    let counts = Arc::clone(&inbox);
    let counting = tokio::spawn(async move { counts.count_given_back().await });
    let alice = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
    let stored = store(&inbox, &alice, 0..SHARE as u64).await;
    // One of which nothing is stored, and a store that can not be read just then.
    let nothing = inbox.reserve(&alice.user);
    moody.deaf.store(true, Ordering::SeqCst);
    drop((stored, nothing));
    assert_eq!(inbox.waiting(), 0);
    soon(async {
        while !inbox.lock().given_back.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(inbox.waiting(), SHARE);
    assert!(!inbox.has_room(&alice.user, 0), "nobody has read anything");
    let mut messages = inbox.stream().manual_ack();
    for number in 0..SHARE {
        let message = soon(messages.next()).await.unwrap();
        assert_eq!(message.text(), Some(number.to_string().as_str()));
        soon(message.ack()).await.unwrap();
        assert_eq!(inbox.waiting(), SHARE - 1 - number, "each was counted once");
    }
    counting.abort();
    acks.abort();
}

#[tokio::test]
async fn what_a_commit_stored_that_reports_a_failure_comes_to_a_stream_that_waits() {
    let (inbox, _consumed) = Inbox::open(Arc::new(Sealed::in_memory().unwrap()), only()).await.unwrap();
    let counts = Arc::clone(&inbox);
    let counting = tokio::spawn(async move { counts.count_given_back().await });
    let peer = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
    let mut messages = inbox.stream().manual_ack();
    let mut next = Box::pin(messages.next());
    assert!(futures::poll!(&mut next).is_pending(), "nothing is there");
    drop(store(&inbox, &peer, 0..1).await);
    assert_eq!(soon(next).await.unwrap().text(), Some("0"));
    assert_eq!(inbox.waiting(), 1);
    counting.abort();
}

#[tokio::test]
async fn a_stream_that_nobody_asks_while_it_reads_keeps_no_other_from_reading() {
    let moody = Arc::new(Moody::default());
    let below: Arc<dyn Store> = moody.clone();
    let sealed = Arc::new(Sealed::ephemeral(below).unwrap());
    let peer = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
    let (before, _consumed) = Inbox::open(Arc::clone(&sealed), only()).await.unwrap();
    commit(&before, &peer, 0..2).await;
    let (inbox, _consumed) = Inbox::open(sealed, only()).await.unwrap();
    let (mut first, mut second) = (inbox.stream(), inbox.stream());
    moody.slow.store(true, Ordering::SeqCst);
    assert!(futures::poll!(Box::pin(first.next())).is_pending(), "the store has not answered");
    soon(async {
        while !inbox.lock().loading {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // As in a loop that waits for other things as well, one of which comes now and takes long: nobody asks the first.
    moody.free();
    assert_eq!(soon(second.next()).await.unwrap().text(), Some("0"));
    assert_eq!(soon(first.next()).await.unwrap().text(), Some("1"));
}

#[tokio::test]
async fn a_stream_that_is_asked_outside_of_a_runtime_reads_all_the_same() {
    let store = Arc::new(Moody::default());
    let below: Arc<dyn Store> = store.clone();
    let sealed = Arc::new(Sealed::ephemeral(below).unwrap());
    let peer = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
    let (before, _consumed) = Inbox::open(Arc::clone(&sealed), only()).await.unwrap();
    commit(&before, &peer, 0..1).await;
    let (alone, _consumed) = Inbox::open(sealed, only()).await.unwrap();
    let common = Arc::new(Moody::default());
    for (store, inbox) in [(store, alone), (Arc::clone(&common), shared(&common, 1).await)] {
        // It waits for the store, too.
        store.deaf.store(true, Ordering::SeqCst);
        let mut messages = inbox.stream();
        let (tell, told) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let message = futures::executor::block_on(messages.next()).unwrap();
            tell.send(message.text().map(str::to_owned)).unwrap();
        });
        assert_eq!(soon(told).await.unwrap().as_deref(), Some("0"));
        assert!(!store.deaf.load(Ordering::SeqCst));
    }
}

#[test]
fn a_stream_of_a_shared_inbox_whose_runtime_is_gone_ends() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut asked, mut waiting) = runtime.block_on(async {
        let inbox = shared(&Arc::new(Moody::default()), 0).await;
        (inbox.stream(), inbox.stream())
    });
    let mut next = Box::pin(waiting.next());
    runtime.block_on(async {
        for _ in 0..100 {
            assert!(futures::poll!(&mut next).is_pending(), "nothing is there");
            tokio::task::yield_now().await;
        }
    });
    drop(runtime);
    assert!(futures::executor::block_on(next).is_none());
    assert!(futures::executor::block_on(asked.next()).is_none());
}

/// What an instance has of a shared inbox with `count` messages.
async fn shared(store: &Arc<Moody>, count: u64) -> Arc<Inbox> {
    let directory = tempfile::tempdir().unwrap();
    let key =
        stvor_keys::Keyfile::create(&directory.path().join("key"), &mut stvor_crypto::SystemRandom::new());
    let below: Arc<dyn Store> = store.clone();
    let sealed = Arc::new(Sealed::open(below, Arc::new(key.unwrap())).await.unwrap());
    let lease = std::time::Duration::from_secs(60);
    let instances = Instances::join(&sealed, lease, Timestamp::default()).await.unwrap();
    let (inbox, consumed) = Inbox::open(sealed, Arc::new(instances)).await.unwrap();
    tokio::spawn(
        Arc::clone(&inbox).run_acks(Arc::new(consumed.into()), tokio_util::sync::CancellationToken::new()),
    );
    let peer = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
    commit(&inbox, &peer, 0..count).await;
    inbox
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(std::time::Duration::from_secs(60), what).await.expect("it happens in time")
}

/// Everything that waits comes out of a fresh stream, once and in order, and is gone when it is consumed.
async fn all_come(inbox: &Arc<Inbox>, numbers: core::ops::Range<u64>) {
    let mut messages = inbox.stream().manual_ack();
    for number in numbers {
        let message = soon(messages.next()).await.unwrap();
        assert_eq!(message.text(), Some(number.to_string().as_str()));
        soon(message.ack()).await.unwrap();
    }
    let left = inbox.store.scan(Scan::of(Table::Inbox, keys::INBOX)).await.unwrap();
    assert!(left.rows.is_empty() && inbox.waiting() == 0);
}

#[tokio::test]
async fn what_a_dropped_stream_was_about_to_take_comes_to_the_next_one() {
    let store = Arc::new(Moody::default());
    let inbox = shared(&store, 5).await;
    store.held.store(true, Ordering::SeqCst);
    let mut messages = inbox.stream();
    tokio::select! {
        _ = messages.next() => panic!("its claim waits"),
        () = store.asked.notified() => {}
    }
    drop(messages);
    store.free();
    all_come(&inbox, 0..5).await;
}

#[tokio::test]
async fn a_claim_whose_end_is_not_seen_is_made_again() {
    let store = Arc::new(Moody::default());
    let inbox = shared(&store, 5).await;
    store.deaf.store(true, Ordering::SeqCst);
    all_come(&inbox, 0..5).await;
    let store = Arc::new(Moody::default());
    let inbox = shared(&store, 5).await;
    store.unheard.store(true, Ordering::SeqCst);
    all_come(&inbox, 0..5).await;
}

#[tokio::test]
async fn a_removal_whose_answer_is_lost_is_found_out_when_it_is_asked_for_again() {
    let store = Arc::new(Moody::default());
    let inbox = shared(&store, 1).await;
    let message = soon(inbox.stream().manual_ack().next()).await.unwrap();
    store.unheard.store(true, Ordering::SeqCst);
    assert_eq!(soon(message.ack()).await.unwrap_err().code(), "STORE_UNCERTAIN");
    soon(message.ack()).await.unwrap();
    soon(message.ack()).await.unwrap();
    assert_eq!(inbox.waiting(), 0);
}

#[tokio::test]
async fn what_somebody_else_removed_after_this_instance_was_declared_gone_was_not_removed_by_it() {
    let mut taken = 0;
    for reads in 1..=4 {
        let store = Arc::new(Moody::default());
        let inbox = shared(&store, 1).await;
        let message = soon(inbox.stream().manual_ack().next()).await.unwrap();
        let key = || keys::inbox(message.seq);
        // The same under another version, as a row that was sealed anew.
        let row = inbox.store.one(&key()).await.unwrap().unwrap();
        let mut changes = ChangeSet::new();
        changes.put(key(), row.value.expose().to_vec());
        inbox.store.commit(changes).await.unwrap();
        store.reads.store(reads, Ordering::SeqCst);
        let mut acking = Box::pin(message.ack());
        let (acked, theirs) = tokio::select! {
            acked = &mut acking => (acked, false),
            () = store.asked.notified() => {
                let theirs = inbox.store.one(&key()).await.unwrap().is_some();
                let mut changes = ChangeSet::new();
                changes.delete(keys::instance(inbox.instances.id())).delete(key());
                inbox.store.commit(changes).await.unwrap();
                store.free();
                (soon(acking).await, theirs)
            }
        };
        taken += usize::from(theirs);
        let code = acked.map_or_else(|error| error.code(), |()| "OK");
        assert_eq!(code, if theirs { "CLAIM_LOST" } else { "OK" }, "after read {reads}");
    }
    assert!(taken >= 2, "a look is two reads");
}

#[tokio::test]
async fn what_somebody_else_removed_was_not_removed_by_an_instance_that_joined_again_meanwhile() {
    let store = Arc::new(Moody::default());
    let inbox = shared(&store, 1).await;
    let app = stvor_base::AppId::new("test").unwrap();
    let us = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
    let mut rng = stvor_crypto::SystemRandom::new();
    let (identity, effects) =
        stvor_protocol::Identity::create(&app, &us, Timestamp::from_millis(1), &mut rng).unwrap();
    let mut changes = ChangeSet::new();
    crate::records::write(&inbox.store, &mut changes, effects).unwrap();
    inbox.store.commit(changes).await.unwrap();
    let message = soon(inbox.stream().manual_ack().next()).await.unwrap();
    store.held.store(true, Ordering::SeqCst);
    let mut acking = Box::pin(message.ack());
    tokio::select! {
        _ = &mut acking => panic!("its commit waits"),
        () = store.asked.notified() => {}
    }
    // That commit alone goes on waiting.
    store.held.store(false, Ordering::SeqCst);
    let before = inbox.instances.id();
    let mut changes = ChangeSet::new();
    changes.delete(keys::instance(before)).delete(keys::inbox(message.seq));
    inbox.store.commit(changes).await.unwrap();
    inbox.lose_claims();
    inbox.instances.rejoin(&inbox.store, identity.user_key()).await.unwrap();
    assert_ne!(inbox.instances.id(), before);
    store.free();
    assert_eq!(soon(acking).await.unwrap_err().code(), "CLAIM_LOST");
}

#[tokio::test]
async fn of_a_claim_that_was_lost_and_made_again_only_the_new_copy_counts() {
    let store = Arc::new(Moody::default());
    let inbox = shared(&store, 4).await;
    let mut messages = inbox.stream().manual_ack();
    let old = soon(messages.next()).await.unwrap();
    inbox.lose_claims();
    drop(messages);
    let mut messages = inbox.stream().manual_ack();
    let new = soon(messages.next()).await.unwrap();
    assert_eq!(new.id, old.id);
    assert_eq!(soon(old.ack()).await.unwrap_err().code(), "CLAIM_LOST");
    messages.give_back([old]);
    soon(new.ack()).await.unwrap();
    drop(messages);
    all_come(&inbox, 1..4).await;
}

#[tokio::test]
async fn what_is_consumed_faster_than_the_store_notes_it_is_noted_before_the_end() {
    const COUNT: u64 = 2_000;
    let store = Arc::new(Moody::default());
    let below: Arc<dyn Store> = store.clone();
    let sealed = Arc::new(Sealed::ephemeral(below).unwrap());
    let (inbox, consumed) = Inbox::open(Arc::clone(&sealed), only()).await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let acks = tokio::spawn(Arc::clone(&inbox).run_acks(Arc::new(consumed.into()), stop.clone()));
    let peer = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
    for start in (0..COUNT).step_by(100) {
        commit(&inbox, &peer, start..start + 100).await;
    }
    store.held.store(true, Ordering::SeqCst);
    let mut messages = inbox.stream();
    for _ in 0..COUNT {
        soon(messages.next()).await.unwrap();
    }
    drop(messages);
    stop.cancel();
    store.free();
    soon(acks).await.unwrap();
    let (again, _consumed) = Inbox::open(sealed, only()).await.unwrap();
    assert_eq!(again.waiting(), 0);
}

/// Takes three messages, and is done with them while the store has no room.
async fn consume_at_a_full_store(store: &Moody, inbox: &Arc<Inbox>) {
    let mut messages = inbox.stream();
    assert_eq!(soon(messages.next()).await.unwrap().text(), Some("0"));
    store.full.store(true, Ordering::SeqCst);
    for number in ["1", "2"] {
        assert_eq!(soon(messages.next()).await.unwrap().text(), Some(number));
    }
    drop(messages);
    soon(store.asked.notified()).await;
}

#[tokio::test]
async fn what_was_consumed_while_the_store_was_full_is_removed_once_there_is_room() {
    let store = Arc::new(Moody::default());
    let below: Arc<dyn Store> = store.clone();
    let sealed = Arc::new(Sealed::ephemeral(below).unwrap());
    let (alone, consumed) = Inbox::open(sealed, only()).await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let acks = tokio::spawn(Arc::clone(&alone).run_acks(Arc::new(consumed.into()), stop));
    let peer = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
    commit(&alone, &peer, 0..3).await;
    let common = Arc::new(Moody::default());
    for (store, inbox) in [(store, alone), (Arc::clone(&common), shared(&common, 3).await)] {
        consume_at_a_full_store(&store, &inbox).await;
        assert_eq!(inbox.waiting(), 3, "they use up room as long as their rows are there");
        store.full.store(false, Ordering::SeqCst);
        soon(async {
            while inbox.waiting() > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
        let left = inbox.store.scan(Scan::of(Table::Inbox, keys::INBOX)).await.unwrap();
        assert!(left.rows.is_empty());
    }
    acks.abort();
}

#[tokio::test]
async fn what_could_not_be_removed_is_tried_once_more_at_the_end() {
    for full in [false, true] {
        let store = Arc::new(Moody::default());
        let below: Arc<dyn Store> = store.clone();
        let sealed = Arc::new(Sealed::ephemeral(below).unwrap());
        let (inbox, consumed) = Inbox::open(Arc::clone(&sealed), only()).await.unwrap();
        let stop = tokio_util::sync::CancellationToken::new();
        let acks = tokio::spawn(Arc::clone(&inbox).run_acks(Arc::new(consumed.into()), stop.clone()));
        let peer = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
        commit(&inbox, &peer, 0..3).await;
        consume_at_a_full_store(&store, &inbox).await;
        store.full.store(full, Ordering::SeqCst);
        stop.cancel();
        soon(acks).await.unwrap();
        let (again, _consumed) = Inbox::open(sealed, only()).await.unwrap();
        assert_eq!(again.waiting(), if full { 3 } else { 0 });
    }
}
