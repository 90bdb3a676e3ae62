//! A store over states that can only be replaced: crashes, failures, hangs, and what is kept where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use async_trait::async_trait;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stvor_base::ErrorCode;
use stvor_crypto::Secret;
use stvor_crypto::p256::SigningKey;
use stvor_store::narrow::{
    Adapters, FingerprintStore, IdentityPair, IdentityStore, Narrow, RESERVED, ReplayCache, SessionStore,
};
use stvor_store::{
    ChangeSet, Key, LAYOUTS, Op, RowValue, RowVersion, Store, StoreError, Table, conformance, limits,
};
use tokio::sync::Notify;

/// What becomes of a save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Lands,
    /// Nothing is saved, and it says so.
    Fails,
    /// It is saved, and the answer is lost.
    LandsSilently,
}

/// States in memory, that fail as a test wants it.
#[derive(Debug, Default)]
struct States {
    states: Mutex<HashMap<String, Vec<u8>>>,
    fates: Mutex<Vec<Fate>>,
    /// A copy of everything after each save that landed.
    past: Mutex<Vec<HashMap<String, Vec<u8>>>>,
    saves: AtomicUsize,
    /// Saves of this id wait.
    stuck: Mutex<Option<String>>,
    /// Saves of this id fail.
    refused: Mutex<Option<String>>,
    freed: Notify,
    private: u8,
}

impl States {
    fn of(states: HashMap<String, Vec<u8>>) -> Arc<Self> {
        Arc::new(Self { states: Mutex::new(states), ..Self::default() })
    }

    fn copy(&self) -> HashMap<String, Vec<u8>> {
        self.states.lock().unwrap().clone()
    }
}

#[async_trait]
impl SessionStore for States {
    async fn save(&self, id: &str, state: &[u8]) -> Result<(), StoreError> {
        self.saves.fetch_add(1, Ordering::SeqCst);
        let waits = || self.stuck.lock().unwrap().as_deref() == Some(id);
        while waits() {
            self.freed.notified().await;
        }
        if self.refused.lock().unwrap().as_deref() == Some(id) {
            return Err(StoreError::Adapter("the test refuses this id".into()));
        }
        let fate = self.fates.lock().unwrap().pop().unwrap_or(Fate::Lands);
        if fate != Fate::Fails {
            let mut states = self.states.lock().unwrap();
            states.insert(id.to_owned(), state.to_vec());
            self.past.lock().unwrap().push(states.clone());
        }
        match fate {
            Fate::Lands => Ok(()),
            _ => Err(StoreError::Adapter("the test says no".into())),
        }
    }

    async fn load(&self, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.states.lock().unwrap().get(id).cloned())
    }
}

#[async_trait]
impl ReplayCache for States {
    async fn check_and_mark(&self, _: &str, _: &[u8]) -> Result<bool, StoreError> {
        Ok(false)
    }
}

#[async_trait]
impl FingerprintStore for States {
    async fn store_fingerprint(&self, _: &str, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn verify_fingerprint(&self, _: &str, _: &str) -> Result<bool, StoreError> {
        Ok(true)
    }
}

#[async_trait]
impl IdentityStore for States {
    async fn identity_key_pair(&self) -> Result<IdentityPair, StoreError> {
        let mut private = [self.private; 32];
        private[31] = 1;
        let key = SigningKey::from_bytes(&Secret::new(private)).unwrap();
        IdentityPair::new(key.public().as_bytes(), key.to_bytes().expose())
    }
}

fn adapters(states: &Arc<States>) -> Adapters {
    let (a, b, c, d) = (states.clone(), states.clone(), states.clone(), states.clone());
    Adapters::new(a, b, c, d).deadline(Duration::from_secs(30))
}

fn journal(seq: u64) -> String {
    format!("{RESERVED}journal/{}", seq % limits::JOURNAL_SLOTS)
}

fn key(partition: &str, sort: u64) -> Key {
    Key::new(Table::Custom, partition, sort.to_be_bytes())
}

fn put(partition: &str, sort: u64, value: u64) -> Op<RowValue> {
    let bytes = value.to_be_bytes().to_vec();
    Op::put(key(partition, sort), RowValue { bytes, version: RowVersion(value) })
}

fn set<const N: usize>(ops: [Op<RowValue>; N]) -> ChangeSet<RowValue> {
    ops.into_iter().collect()
}

async fn read(store: &Narrow, partition: &str, sort: u64) -> Option<u64> {
    let row = store.get(&[key(partition, sort)]).await.unwrap().remove(0)?;
    Some(u64::from_be_bytes(row.value.bytes.as_slice().try_into().unwrap()))
}

struct Subject(Mutex<HashMap<String, Arc<States>>>);

#[async_trait]
impl conformance::Subject for Subject {
    async fn open(&self, name: &str) -> Result<Arc<dyn Store>, StoreError> {
        let states = Arc::clone(self.0.lock().unwrap().entry(name.to_owned()).or_default());
        Ok(Arc::new(Narrow::open(&adapters(&states)).await?))
    }

    fn durable(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn it_does_what_every_store_does() {
    // As many checks as of every adapter.
    assert_eq!(conformance::run(&Subject(Mutex::default())).await.unwrap(), 19);
}

/// Layouts that no program has yet.
const NEWER: u32 = LAYOUTS + 1;

/// One of a newer program at work, then one of this, on the states alone.
#[tokio::test]
async fn states_of_newer_layouts_are_refused_and_none_is_saved() {
    for beginning in [true, false] {
        let states = States::of(HashMap::new());
        if !beginning {
            let older = Narrow::open(&adapters(&states)).await.unwrap();
            older.commit(set([put("a", 0, 1)])).await.unwrap();
            older.close().await.unwrap();
        }
        let newer = Narrow::open_as(&adapters(&states), NEWER).await.unwrap();
        newer.commit(set([put("a", 1, 1)])).await.unwrap();
        // As a crash leaves them, and as an end does.
        let killed = States::of(states.copy());
        newer.close().await.unwrap();
        for states in [killed, states] {
            let (before, saves) = (states.copy(), states.saves.load(Ordering::SeqCst));
            let refused = Narrow::open(&adapters(&states)).await.unwrap_err();
            assert!(
                matches!(refused, StoreError::TooNew { found: NEWER, known: LAYOUTS }),
                "{beginning}: {refused}"
            );
            assert_eq!(states.saves.load(Ordering::SeqCst), saves);
            assert!(states.copy() == before);
            let newer = Narrow::open_as(&adapters(&states), NEWER).await.unwrap();
            assert_eq!(read(&newer, "a", 1).await, Some(1));
            newer.close().await.unwrap();
        }
    }
}

/// As another process would, while an application is updated host by host.
#[tokio::test]
async fn a_newer_program_that_takes_the_states_over_ends_the_one_that_has_them() {
    let states = States::of(HashMap::new());
    let store = Narrow::open(&adapters(&states)).await.unwrap();
    store.commit(set([put("a", 1, 0)])).await.unwrap();
    let newer = Narrow::open_as(&adapters(&states), NEWER).await.unwrap();
    let mut ended = None;
    for round in 1..=limits::JOURNAL_SLOTS {
        if let Err(error) = store.commit(set([put("a", 1, round)])).await {
            ended = Some(error.code());
            break;
        }
    }
    assert!(matches!(ended, Some("STORE_TOO_NEW" | "STORE_CLOSED")), "{ended:?}");
    let saves = states.saves.load(Ordering::SeqCst);
    assert_eq!(store.commit(set([put("a", 1, 99)])).await.unwrap_err().code(), "STORE_CLOSED");
    assert_eq!(states.saves.load(Ordering::SeqCst), saves);
    newer.commit(set([put("a", 2, 2)])).await.unwrap();
    // As a crash leaves them.
    let again = Narrow::open_as(&adapters(&States::of(states.copy())), NEWER).await.unwrap();
    assert_eq!((read(&again, "a", 1).await, read(&again, "a", 2).await), (Some(0), Some(2)));
}

/// At every save a crash is possible: whatever was acknowledged before is there, and no commit is there by half.
#[tokio::test]
async fn a_crash_after_any_save_loses_nothing_that_was_acknowledged() {
    let states = States::of(HashMap::new());
    let store = Narrow::open(&adapters(&states)).await.unwrap();
    store.name("bob", [(Table::Custom, b"b".to_vec())]);
    let mut acknowledged = vec![(states.past.lock().unwrap().len(), 0)];
    for round in 1..=3 * limits::JOURNAL_SLOTS {
        store
            .commit(set([put("a", round % 7, round), put("b", 0, round), put("c", round, round)]))
            .await
            .unwrap();
        acknowledged.push((states.past.lock().unwrap().len(), round));
    }
    store.close().await.unwrap();
    let past = core::mem::take(&mut *states.past.lock().unwrap());
    for (count, states) in past.iter().enumerate() {
        let least =
            acknowledged.iter().filter(|(saves, _)| *saves <= count + 1).map(|(_, round)| *round).max();
        let store = Narrow::open(&adapters(&States::of(states.clone()))).await.unwrap();
        let found = read(&store, "b", 0).await.unwrap_or(0);
        assert!(
            Some(found) >= least && found <= least.unwrap_or(0) + 1,
            "after save {count}: {found}, {least:?}"
        );
        if found > 0 {
            assert_eq!(read(&store, "a", found % 7).await, Some(found), "after save {count}");
            assert_eq!(read(&store, "c", found).await, Some(found), "after save {count}");
        }
        for round in 1..=3 * limits::JOURNAL_SLOTS {
            assert_eq!(
                read(&store, "c", round).await,
                (round <= found).then_some(round),
                "after save {count}"
            );
        }
    }
}

/// A commit whose entry landed though its save failed is there as a whole or not at all, wherever the pages that follow end.
#[tokio::test]
async fn an_entry_that_landed_unheard_is_never_applied_by_half() {
    let states = States::of(HashMap::new());
    let store = Narrow::open(&adapters(&states)).await.unwrap();
    store.name("bob", [(Table::Custom, b"b".to_vec())]);
    store.commit(set([put("a", 0, 1), put("b", 0, 1)])).await.unwrap();
    states.fates.lock().unwrap().push(Fate::LandsSilently);
    store.commit(set([put("a", 0, 2), put("b", 0, 2)])).await.unwrap_err();
    let before = states.past.lock().unwrap().len();
    store.close().await.unwrap();
    let past = core::mem::take(&mut *states.past.lock().unwrap());
    assert!(past.len() > before + 2, "names, pages and a head were saved");
    for (count, states) in past.into_iter().enumerate().skip(before - 1) {
        let store = Narrow::open(&adapters(&States::of(states))).await.unwrap();
        let (a, b) = (read(&store, "a", 0).await, read(&store, "b", 0).await);
        assert_eq!(a, b, "after save {count}");
        assert!(a >= Some(1), "after save {count}");
    }
}

#[derive(Debug, Clone)]
enum Act {
    Commit { partition: u8, sort: u64, delete: bool, fate: Fate },
    DeletePartition(u8),
    Name(u8),
    Crash,
    Close,
}

fn act() -> impl Strategy<Value = Act> {
    let fate = prop_oneof![6 => Just(Fate::Lands), 1 => Just(Fate::Fails), 1 => Just(Fate::LandsSilently)];
    prop_oneof![
        20 => (0..4_u8, 0..40_u64, any::<bool>(), fate)
            .prop_map(|(partition, sort, delete, fate)| Act::Commit { partition, sort, delete, fate }),
        1 => (0..4_u8).prop_map(Act::DeletePartition),
        1 => (0..4_u8).prop_map(Act::Name),
        1 => Just(Act::Crash),
        1 => Just(Act::Close),
    ]
}

type Model = BTreeMap<(u8, u64), u64>;

async fn contents(store: &Narrow) -> Model {
    let mut found = Model::new();
    for partition in 0..4_u8 {
        for sort in 0..40 {
            if let Some(value) = read(store, &partition.to_string(), sort).await {
                found.insert((partition, sort), value);
            }
        }
    }
    found
}

/// Failing saves, silent ones, crashes: what is found is what was acknowledged, or that with the one commit at its end that
/// was refused without anybody knowing whether it landed.
async fn play(acts: Vec<Act>) {
    let mut states = States::of(HashMap::new());
    let mut store = Narrow::open(&adapters(&states)).await.unwrap();
    let mut model = Model::new();
    let mut doubtful: Option<Model> = None;
    for (round, act) in acts.into_iter().enumerate() {
        let value = round as u64 + 1;
        let mut next = model.clone();
        let (changes, fate) = match act {
            Act::Commit { partition, sort, delete, fate } => {
                let name = partition.to_string();
                // Large enough that there are several pages.
                let bytes = [value.to_be_bytes().as_slice()].concat();
                let row = RowValue { bytes, version: RowVersion(value) };
                let op = if delete { Op::delete(key(&name, sort)) } else { Op::put(key(&name, sort), row) };
                if delete {
                    next.remove(&(partition, sort))
                } else {
                    next.insert((partition, sort), value)
                };
                (set([op]), fate)
            }
            Act::DeletePartition(partition) => {
                next.retain(|(of, _), _| *of != partition);
                let op =
                    Op::DeletePartition { table: Table::Custom, partition: partition.to_string().into() };
                (set([op]), Fate::Lands)
            }
            Act::Name(partition) => {
                store.name(
                    &format!("peer {partition}"),
                    [(Table::Custom, partition.to_string().into_bytes())],
                );
                continue;
            }
            Act::Crash | Act::Close => {
                if matches!(act, Act::Close) {
                    store.close().await.unwrap();
                }
                states = States::of(states.copy());
                store = Narrow::open(&adapters(&states)).await.unwrap();
                let found = contents(&store).await;
                let refused = doubtful.take();
                assert!(
                    found == model || Some(&found) == refused.as_ref(),
                    "{found:?}, {model:?}, {refused:?}"
                );
                model = found;
                continue;
            }
        };
        states.fates.lock().unwrap().push(fate);
        let result = store.commit(changes).await;
        states.fates.lock().unwrap().clear();
        match result {
            Ok(()) => (model, doubtful) = (next, None),
            // What landed silently before is passed over once a later one counts, and the last one may count.
            Err(_) => doubtful = (fate == Fate::LandsSilently).then_some(next).or(doubtful),
        }
        assert_eq!(contents(&store).await, model);
    }
}

#[test]
fn rows_that_end_between_their_naming_and_the_next_page_do_not_come_back() {
    let write = || Act::Commit { partition: 0, sort: 0, delete: false, fate: Fate::Lands };
    let acts = vec![write(), Act::Crash, Act::Name(0), Act::DeletePartition(0), Act::Close];
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(play(acts));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn failing_saves_and_crashes_lose_nothing(acts in proptest::collection::vec(act(), 1..150)) {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(play(acts));
    }
}

#[tokio::test]
async fn a_commit_that_changes_nothing_settles_what_was_in_doubt_before_it() {
    let states = States::of(HashMap::new());
    let store = Narrow::open(&adapters(&states)).await.unwrap();
    states.fates.lock().unwrap().push(Fate::LandsSilently);
    store.commit(set([put("a", 1, 1)])).await.unwrap_err();
    store.commit(set([Op::delete(key("a", 1))])).await.unwrap();
    let again = Narrow::open(&adapters(&States::of(states.copy()))).await.unwrap();
    assert_eq!(read(&again, "a", 1).await, None, "its deletion was acknowledged");
}

#[tokio::test]
async fn rows_of_a_peer_are_kept_under_the_peers_id_and_never_over_our_own_states() {
    let states = States::of(HashMap::new());
    let store = Narrow::open(&adapters(&states)).await.unwrap();
    for (id, partition) in [("bob", "b"), ("_stvor/head", "h"), ("", "e")] {
        store.name(id, [(Table::Custom, partition.as_bytes().to_vec())]);
        store.commit(set([put(partition, 1, 7)])).await.unwrap();
    }
    store.close().await.unwrap();
    let kept = states.copy();
    assert!(kept.contains_key("bob") && !kept.contains_key(""), "{:?}", kept.keys());
    assert!(kept.keys().all(|id| id == "bob" || id.starts_with(RESERVED)));
    let again = Narrow::open(&adapters(&states)).await.unwrap();
    for partition in ["b", "h", "e"] {
        assert_eq!(read(&again, partition, 1).await, Some(7), "{partition}");
    }
}

#[tokio::test]
async fn one_name_more_than_the_bound_stays_with_the_other_rows() {
    let states = States::of(HashMap::new());
    let store = Narrow::open(&adapters(&states)).await.unwrap();
    for number in 0..=limits::MAX_NAMES as u64 {
        let name = number.to_string();
        store.name(&name, [(Table::Custom, name.clone().into_bytes())]);
    }
    let last = limits::MAX_NAMES.to_string();
    store.commit(set([put("0", 1, 1), put(&last, 1, 2)])).await.unwrap();
    store.close().await.unwrap();
    assert!(states.copy().contains_key("0") && !states.copy().contains_key(&last));
    assert_eq!(read(&Narrow::open(&adapters(&states)).await.unwrap(), &last, 1).await, Some(2));
}

#[tokio::test]
async fn a_save_that_hangs_fails_in_time_and_lands_before_no_later_one_of_its_id() {
    let states = States::of(HashMap::new());
    let store = Narrow::open(&adapters(&states).deadline(Duration::from_millis(50))).await.unwrap();
    store.commit(set([put("a", 1, 1)])).await.unwrap();
    let next = journal(2);
    *states.stuck.lock().unwrap() = Some(next.clone());
    let late = store.commit(set([put("a", 1, 2)])).await.unwrap_err();
    assert_eq!(late.code(), "STORE_TIMEOUT");
    assert!(late.retryable() && late.to_string().contains("sessions.save"), "{late}");
    assert_eq!(read(&store, "a", 1).await, Some(1));
    // The next one has another slot; the one that hangs lands after it and does not count.
    store.commit(set([put("a", 1, 3)])).await.unwrap();
    *states.stuck.lock().unwrap() = None;
    states.freed.notify_waiters();
    while !states.copy().contains_key(&next) {
        tokio::task::yield_now().await;
    }
    drop(store);
    let again = Narrow::open(&adapters(&States::of(states.copy()))).await.unwrap();
    assert_eq!(read(&again, "a", 1).await, Some(3));
}

#[tokio::test]
async fn another_identity_pair_opens_nothing() {
    let states = States::of(HashMap::new());
    Narrow::open(&adapters(&states)).await.unwrap().close().await.unwrap();
    let other = Arc::new(States { states: Mutex::new(states.copy()), private: 9, ..States::default() });
    assert_eq!(Narrow::open(&adapters(&other)).await.unwrap_err().code(), "WRONG_KEY");
}

#[tokio::test]
async fn states_that_are_gone_or_old_or_altered_are_refused() {
    let states = States::of(HashMap::new());
    let store = Narrow::open(&adapters(&states)).await.unwrap();
    store.name("bob", [(Table::Custom, b"b".to_vec())]);
    store.commit(set([put("a", 1, 1), put("b", 1, 1)])).await.unwrap();
    store.close().await.unwrap();
    let before = states.copy();
    let store = Narrow::open(&adapters(&states)).await.unwrap();
    // No pages meanwhile, so that the journal is needed.
    *states.refused.lock().unwrap() = Some("_stvor/head".to_owned());
    for round in 2..=5 {
        store.commit(set([put("a", 1, round), put("b", 1, round)])).await.unwrap();
    }
    let journal_needed = states.copy();
    *states.refused.lock().unwrap() = None;
    store.close().await.unwrap();
    let kept = states.copy();
    let open = async |states: HashMap<String, Vec<u8>>| {
        Narrow::open(&adapters(&States::of(states))).await.map(|_| ()).map_err(|error| error.code())
    };
    type Kept = HashMap<String, Vec<u8>>;
    let changed = |change: &dyn Fn(&mut Kept)| {
        let mut states = kept.clone();
        change(&mut states);
        states
    };
    assert_eq!(open(kept.clone()).await, Ok(()));
    assert_eq!(open(changed(&|all| drop(all.remove("_stvor/head")))).await, Err("STORE_CORRUPT"));
    assert_eq!(open(changed(&|all| drop(all.remove("bob")))).await, Err("STORE_CORRUPT"));
    let old = before["bob"].clone();
    assert_eq!(open(changed(&|all| drop(all.insert("bob".into(), old.clone())))).await, Err("STORE_CORRUPT"));
    assert_eq!(open(changed(&|all| all.get_mut("bob").unwrap().truncate(5))).await, Err("ROW_TAMPERED"));
    // Which pages are in use is the head's secret: all of them are changed.
    let pages = |all: &HashMap<String, Vec<u8>>| -> Vec<String> {
        all.keys().filter(|id| id.contains("/page/")).cloned().collect()
    };
    let gone = changed(&|all| all.retain(|id, _| !id.contains("/page/")));
    assert_eq!(open(gone).await, Err("STORE_CORRUPT"));
    let altered = changed(&|all| pages(all).iter().for_each(|id| all.get_mut(id).unwrap()[20] ^= 1));
    assert_eq!(open(altered).await, Err("ROW_TAMPERED"));
    let moved = changed(&|all| {
        let bob = all["bob"].clone();
        pages(all).into_iter().for_each(|id| drop(all.insert(id, bob.clone())));
    });
    assert_eq!(open(moved).await, Err("ROW_TAMPERED"));
    // An entry in the middle of the journal.
    let mut gap = journal_needed;
    assert_eq!(open(gap.clone()).await, Ok(()));
    gap.remove(&journal(3));
    assert_eq!(open(gap).await, Err("STORE_CORRUPT"));
}

#[tokio::test]
async fn states_that_are_removed_under_a_store_end_it_with_the_next_pages_and_are_not_begun_anew() {
    let states = States::of(HashMap::new());
    let store = Narrow::open(&adapters(&states)).await.unwrap();
    store.commit(set([put("a", 0, 0)])).await.unwrap();
    states.states.lock().unwrap().clear();
    let mut taken = 0;
    let refused = loop {
        match store.commit(set([put("a", 1, taken)])).await {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken <= limits::JOURNAL_SLOTS, "they are gone, and it goes on");
    };
    assert_eq!(refused.code(), "STORE_EMPTIED");
    assert_eq!(store.commit(set([put("a", 2, 2)])).await.unwrap_err().code(), "STORE_EMPTIED");
    store.close().await.unwrap();
    let again = Narrow::open(&adapters(&states)).await.unwrap_err();
    assert_eq!(
        again.code(),
        "STORE_CORRUPT",
        "what was written after that belongs to a store that is not there"
    );
    // Without the first entry, too.
    states.states.lock().unwrap().retain(|id, _| *id == journal(40));
    assert_eq!(Narrow::open(&adapters(&states)).await.unwrap_err().code(), "STORE_CORRUPT");
}

#[tokio::test]
async fn adapters_are_open_once_and_a_second_process_ends_the_first() {
    let states = States::of(HashMap::new());
    let mine = adapters(&states);
    let store = Narrow::open(&mine).await.unwrap();
    assert_eq!(Narrow::open(&mine).await.unwrap_err().code(), "STORE_LOCKED");
    // As another process would: it knows nothing of the flag.
    let other = Narrow::open(&adapters(&states)).await.unwrap();
    let mut ended = None;
    for round in 1..=2 * limits::JOURNAL_SLOTS {
        if let Err(error) = store.commit(set([put("a", 1, round)])).await {
            ended = Some(error.code());
            break;
        }
    }
    assert!(matches!(ended, Some("STORE_LOCKED" | "STORE_CLOSED")), "{ended:?}");
    drop(other);
    store.close().await.unwrap();
    let again = Narrow::open(&mine).await.unwrap();
    assert_eq!(
        read(&again, "a", 1).await,
        None,
        "what the first one wrote after the second one came does not count"
    );
}

#[tokio::test]
async fn commits_that_come_together_share_a_save() {
    let states = States::of(HashMap::new());
    let store = Arc::new(Narrow::open(&adapters(&states)).await.unwrap());
    let before = states.saves.load(Ordering::SeqCst);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..30 {
        let store = Arc::clone(&store);
        tasks.spawn(async move { store.commit(set([put("a", number, number)])).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    assert!(states.saves.load(Ordering::SeqCst) - before < 15);
    assert_eq!(read(&store, "a", 29).await, Some(29));
}

#[test]
fn what_is_no_pair_is_refused_with_what_is_wrong() {
    let key = SigningKey::from_bytes(&Secret::new([3; 32])).unwrap();
    let (public, private) = (*key.public().as_bytes(), key.to_bytes());
    assert!(IdentityPair::new(&public, private.expose()).is_ok());
    for (public, private) in [
        (&public[..], &[4; 32][..]),
        (&public[..], &[3; 31][..]),
        (&public[..], &[0; 32][..]),
        (&public[..33], private.expose().as_slice()),
        (&[][..], &[][..]),
    ] {
        let error = IdentityPair::new(public, private).unwrap_err();
        assert_eq!(error.code(), "STORE_ANSWER");
        assert!(error.to_string().contains("identity.getIdentityKeyPair"), "{error}");
    }
}
