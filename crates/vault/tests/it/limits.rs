//! Every bound, at its end and one past it.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use rusqlite::Connection;
use stvor_base::ErrorCode as _;
use stvor_crypto::SystemRandom;
use stvor_keys::challenge::SoftwareToken;
use stvor_keys::recipients::{Identity, Opening};
use stvor_tlog::witness::Cosigner;
use stvor_vault::backup::{Restore, restore};
use stvor_vault::recovery::switch::{CHECK_IN, Heir, NewSwitch};
use stvor_vault::recovery::watch::Watcher;
use stvor_vault::tokens::Enrolment;
use stvor_vault::witness::WitnessService;
use stvor_vault::{
    Agent, Caller, Clock as _, Level, LogQuery, MemoryId, NewMemory, Options, Vault, limits, unwrap_root,
    unwrap_vaulted,
};

use crate::world::{World, agent, owner, second};

const OWNER: &Caller = &Caller::Owner;

/// Where each bound is tried; or why it is not.
const TRIED: &[(&str, &str)] = &[
    ("MAX_CONTENT", "tests/it/memories.rs::what_is_too_long_or_too_many_is_refused_and_the_most_is_taken"),
    ("MAX_NAME", "tests/it/limits.rs::texts_and_names_fit_to_their_last_byte"),
    ("MAX_TEXT", "tests/it/limits.rs::texts_and_names_fit_to_their_last_byte"),
    ("MAX_METADATA", "tests/it/memories.rs::what_is_too_long_or_too_many_is_refused_and_the_most_is_taken"),
    ("MAX_INTENTS", "tests/it/memories.rs::what_is_too_long_or_too_many_is_refused_and_the_most_is_taken"),
    ("MAX_PAGE", "tests/it/limits.rs::a_page_and_a_look_through_the_log_end_where_they_should"),
    ("MAX_PAGE_BYTES", "tests/it/limits.rs::a_page_ends_with_the_bytes_that_it_may_have"),
    (
        "MAX_EARLIER",
        "tests/it/memories.rs::one_request_destroys_so_many_earlier_versions_and_says_where_to_go_on",
    ),
    (
        "MAX_STORES",
        "tests/it/daemon.rs::one_request_stores_so_many_memories_and_one_that_is_refused_keeps_out_no_other",
    ),
    ("MAX_FETCH", "tests/it/daemon.rs::the_owner_takes_what_is_in_the_outbox_and_nothing_else"),
    ("MAX_SCAN", "tests/it/limits.rs::a_page_and_a_look_through_the_log_end_where_they_should"),
    (
        "VERIFY_AGAIN",
        "time: tests/it/daemon.rs shows that a result serves again, none waits until it does not",
    ),
    ("VERIFY_SHARE", "time, and of a log that takes long to read"),
    ("MAX_RANKED", "src/storage/index.rs::of_very_many_matches_the_newest_are_ranked"),
    (
        "MAX_INDEX",
        "src/engine/tests.rs::a_namespace_of_too_many_words_is_refused_before_anything_makes_room_for_it",
    ),
    (
        "MAX_PREFIX_STEPS",
        "src/engine/tests.rs::searches_for_beginnings_of_very_many_words_are_refused_and_counted",
    ),
    (
        "MAX_SEARCH_STEPS",
        "src/engine/tests.rs::searches_that_go_through_long_lists_often_are_refused_and_counted",
    ),
    ("MAX_WORDS", "src/storage/index.rs::nothing_in_a_search_is_syntax"),
    ("EPHEMERAL_TTL", "tests/it/memories.rs::memories_end_with_their_time"),
    ("MAX_APPROVAL", "tests/it/limits.rs::a_grant_is_good_for_a_day_at_most"),
    ("APPROVAL", "a default, below MAX_APPROVAL"),
    (
        "MAX_REQUEST_AGE",
        "tests/it/gates.rs::the_owner_sees_what_is_to_be_approved_and_grants_nothing_that_is_outdated",
    ),
    ("MAX_PENDING", "tests/it/limits.rs::a_hundred_requests_wait_and_not_one_more"),
    (
        "MAX_PENDING_OF_ONE",
        "tests/it/gates.rs::one_agent_does_not_use_up_the_requests_of_all_and_leaves_no_grant_behind",
    ),
    ("COOLDOWN", "tests/it/gates.rs::an_approval_that_another_gate_kept_from_use_is_not_used_up"),
    ("MAX_COOLDOWN", "tests/it/memories.rs::what_is_too_long_or_too_many_is_refused_and_the_most_is_taken"),
    (
        "MAX_COOLDOWN_OF_AGENT",
        "tests/it/control.rs::an_agent_chooses_a_pause_of_a_minute_to_an_hour_from_level_3_on",
    ),
    ("REFUSALS_PER_MINUTE", "tests/it/gates.rs::an_agent_that_is_refused_all_the_time_does_not_fill_the_log"),
    ("REFUSALS_MINUTE", "tests/it/gates.rs::an_agent_that_is_refused_all_the_time_does_not_fill_the_log"),
    ("MAX_CONNECTIONS", "src/daemon/seats.rs::all_that_are_known_together_have_so_many_seats"),
    (
        "MAX_CONNECTIONS_OF_ONE",
        "src/daemon/seats.rs::one_peer_leaves_room_for_others_and_what_is_dropped_is_free_again",
    ),
    (
        "MAX_UNKNOWN_CONNECTIONS",
        "src/daemon/seats.rs::one_peer_leaves_room_for_others_and_what_is_dropped_is_free_again",
    ),
    (
        "MAX_UNKNOWN_CONNECTIONS_OF_USER",
        "src/daemon/seats.rs::one_process_and_one_user_that_say_nothing_leave_room_for_others",
    ),
    (
        "MAX_UNKNOWN_CONNECTIONS_OF_PROCESS",
        "src/daemon/seats.rs::one_process_and_one_user_that_say_nothing_leave_room_for_others",
    ),
    ("MAX_ENTRY", "tests/it/daemon.rs::who_is_nobody_yet_may_send_a_short_line_only"),
    ("ENTRY_DEADLINE", "time"),
    ("UNPROVED_DEADLINE", "time"),
    ("OWNER_DEADLINE", "time"),
    ("MAX_GROUP", "tests/it/limits.rs::so_many_operations_share_a_commit_and_not_one_more"),
    ("MAX_BOUNDARY_ANSWER", "tests/it/gates.rs::what_is_not_a_valid_answer_of_the_boundary_is_a_no"),
    (
        "BOUNDARY_DEADLINE",
        "tests/it/gates.rs::a_boundary_daemon_that_hangs_with_a_full_queue_holds_nobody_up_for_ever",
    ),
    ("BOUNDARY_AGE", "tests/it/gates.rs::what_is_not_a_valid_answer_of_the_boundary_is_a_no"),
    ("MAX_DAMAGED", "tests/it/limits.rs::so_many_damaged_events_are_looked_past_for_the_time_of_a_sound_one"),
    (
        "MAX_CHECKPOINTS_FILE",
        "tests/it/limits.rs::a_file_of_checkpoints_is_begun_anew_and_one_that_is_too_long_is_not_read",
    ),
    (
        "MAX_CHECKPOINTS_READ",
        "tests/it/limits.rs::a_file_of_checkpoints_is_begun_anew_and_one_that_is_too_long_is_not_read",
    ),
    ("MAX_ARCHIVE_LINE", "tests/it/archive.rs::a_line_of_an_archive_has_so_many_bytes"),
    ("AGENT_BYTES", "a default: tests/it/quota.rs tries the bound that an owner sets"),
    (
        "AGENT_LOG_BYTES",
        "a default: tests/it/control.rs tries a smaller one, and src/engine/budget.rs the last byte",
    ),
    ("AGENT_READS", "src/engine/tests.rs::an_agent_has_the_vault_read_only_so_much"),
    ("MAX_PASSED", "src/engine/tests.rs::one_list_passes_over_only_so_much_and_the_next_goes_on_from_there"),
    ("MAX_AGENTS", "tests/it/limits.rs::a_thousand_agents_are_enrolled_and_not_one_more"),
    (
        "MAX_MANIFEST",
        "no manifest that a vault writes has a hundredth of it; a longer one does not parse, being cut",
    ),
    ("MAX_CHAIN", "tests/it/limits.rs::a_chain_of_backups_has_so_many_files"),
    ("MAX_BACKUPS", "src/engine/tests.rs::of_backups_the_oldest_is_dropped_first"),
    ("MIN_SILENCE", "tests/it/limits.rs::a_switch_is_armed_for_a_day_to_ten_years_and_a_hundred_heirs"),
    ("MAX_SILENCE", "tests/it/limits.rs::a_switch_is_armed_for_a_day_to_ten_years_and_a_hundred_heirs"),
    ("MAX_HEIRS", "tests/it/limits.rs::a_switch_is_armed_for_a_day_to_ten_years_and_a_hundred_heirs"),
    ("MAX_OWED", "tests/it/limits.rs::so_many_watchers_can_be_waited_for"),
    ("MAX_CHECK_IN", "tests/it/limits.rs::a_check_in_that_is_too_long_is_not_read"),
    ("TOKEN_PRESENCE", "tests/it/tokens.rs::a_token_is_there_for_a_minute"),
    ("MAX_TOKENS", "tests/it/limits.rs::a_vault_has_so_many_tokens"),
    ("MAX_WRONG_CODES", "tests/it/tokens.rs::a_one_time_code_is_taken_once_and_guesses_are_slowed_down"),
    ("CODES_PAUSE", "tests/it/tokens.rs::a_one_time_code_is_taken_once_and_guesses_are_slowed_down"),
    ("WITNESS_DEADLINE", "time"),
    (
        "MAX_WITNESS_REQUEST",
        "tests/it/limits.rs::a_witness_reads_a_request_to_its_last_byte_and_no_longer_one",
    ),
    ("MAX_PROFILES", "tests/it/keys.rs::a_vault_has_at_most_64_profiles"),
    ("MAX_ROTATION_DAYS", "src/profiles.rs::a_policy_has_1_to_3660_days_and_1_memory_or_more"),
    ("ROTATION_STEP", "tests/it/keys.rs::a_profiles_key_is_changed_for_every_memory_and_the_old_one_is_gone"),
];

#[test]
fn every_bound_is_tried_or_it_is_said_why_not() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let limits = std::fs::read_to_string(root.join("src/limits.rs")).unwrap();
    let named = limits.lines().filter_map(|line| line.strip_prefix("pub const ")?.split(':').next());
    let named: Vec<&str> = named.collect();
    let tried: Vec<&str> = TRIED.iter().map(|(name, _)| *name).collect();
    assert_eq!(named, tried, "in the order of limits.rs");
    for (name, test) in TRIED.iter().filter(|(_, test)| test.contains("::")) {
        let (file, test) = test.split_once("::").unwrap();
        let text = std::fs::read_to_string(root.join(file)).unwrap_or_default();
        assert!(text.contains(&format!("fn {test}(")), "{name}: {file} has no {test}");
    }
}

fn new(text: &str) -> NewMemory {
    NewMemory::new(text.as_bytes(), Level::Working, "home")
}

fn store(vault: &Vault) -> MemoryId {
    vault.store(OWNER, new("x")).unwrap()
}

/// Stores many at once.
fn fill(vault: &Vault, count: usize) {
    let mut left = count;
    while left > 0 {
        let some = left.min(2_000);
        let pending: Vec<_> = (0..some).map(|_| vault.begin_store(OWNER, new("x"))).collect();
        pending.into_iter().for_each(|one| {
            one.wait().unwrap();
        });
        left -= some;
    }
}

#[test]
fn texts_and_names_fit_to_their_last_byte() {
    let world = World::new();
    let vault = world.open();
    let caller = agent(&vault, "helper", Level::Sealed);
    let id = store(&vault);
    for (length, fits) in [(limits::MAX_TEXT, true), (limits::MAX_TEXT + 1, false)] {
        let said = "t".repeat(length);
        let mut memory = new("x");
        memory.metadata.insert("key".into(), said.clone());
        assert_eq!(vault.store(OWNER, memory).is_ok(), fits, "a metadata value");
        let closed = NewMemory { tombstone: Some(said.clone()), ..new("x") };
        assert_eq!(vault.store(OWNER, closed).is_ok(), fits, "a reason");
        assert_eq!(vault.recall(OWNER, id, &said).is_ok(), fits, "a justification");
        assert_eq!(vault.request_approval(&caller, id, &said).is_ok(), fits, "a purpose");
        assert_eq!(vault.forget(OWNER, store(&vault), &said).is_ok(), fits, "a reason");
        assert_eq!(vault.tombstone(OWNER, store(&vault), &said).is_ok(), fits, "a reason");
        assert_eq!(vault.search(OWNER, "home", &said).is_ok(), fits, "words");
        let words = LogQuery { words: Some(said.clone()), ..LogQuery::default() };
        assert_eq!(vault.read_log(words).is_ok(), fits, "words in the log");
        assert_eq!(vault.enter_lockdown(OWNER, &said).is_ok(), fits, "a reason");
        assert_eq!(vault.leave_lockdown(&owner()).is_ok(), fits);
    }
    for (length, fits) in [(limits::MAX_NAME, true), (limits::MAX_NAME + 1, false)] {
        let name = "n".repeat(length);
        assert_eq!(vault.set_intent(OWNER, id, (&name, true)).is_ok(), fits, "an intent");
        assert_eq!(
            vault.store(OWNER, NewMemory { source: name.clone(), ..new("x") }).is_ok(),
            fits,
            "a source"
        );
        assert_eq!(vault.store(OWNER, NewMemory { namespace: Some(name.clone()), ..new("x") }).is_ok(), fits);
        assert_eq!(vault.search(OWNER, &name, "x").is_ok(), fits, "a namespace that is searched");
        assert_eq!(vault.list(OWNER, &name, None).is_ok(), fits, "and one that is listed");
        let mut memory = new("x");
        memory.metadata.insert(name.clone(), String::new());
        assert_eq!(vault.store(OWNER, memory).is_ok(), fits, "a metadata key");
        let new = Agent::new(&name, &[], Level::Working);
        assert_eq!(vault.enrol(new).is_ok(), fits, "an agent");
    }
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn a_page_and_a_look_through_the_log_end_where_they_should() {
    let world = World::new();
    let vault = world.open();
    let list = |before: Option<&str>| vault.list(OWNER, "home", before).unwrap();
    fill(&vault, limits::MAX_PAGE);
    let (page, next) = list(None);
    assert_eq!((page.len(), next), (limits::MAX_PAGE, None), "all of them are a page");
    let found = vault.find(OWNER, "home", "x").unwrap();
    assert_eq!((found.memories.len(), found.more), (limits::MAX_PAGE, false));
    fill(&vault, 1);
    let (page, next) = list(None);
    assert_eq!(page.len(), limits::MAX_PAGE);
    let (rest, end) = list(next.as_deref());
    assert_eq!((rest.len(), end), (1, None));
    let found = vault.find(OWNER, "home", "x").unwrap();
    assert_eq!((found.memories.len(), found.more), (limits::MAX_PAGE, true));

    let scan = usize::try_from(limits::MAX_SCAN).unwrap();
    fill(&vault, scan);
    let nobody = |before| {
        let query = LogQuery { actor: Some("nobody".into()), before: Some(before), ..LogQuery::default() };
        let page = vault.read_log(query).unwrap();
        assert!(page.entries.is_empty());
        page.next
    };
    assert_eq!(nobody(limits::MAX_SCAN), None, "it was looked at to the end");
    assert_eq!(nobody(limits::MAX_SCAN + 1), Some(1));
    let page = vault.read_log(LogQuery::default()).unwrap();
    assert_eq!(page.entries.len(), limits::MAX_PAGE);
    assert_eq!(page.next, page.entries.last().map(|entry| entry.seq));
}

#[test]
fn a_page_ends_with_the_bytes_that_it_may_have() {
    let world = World::new();
    let vault = world.open();
    let value = "v".repeat(limits::MAX_TEXT);
    let long = || {
        let metadata = (0..limits::MAX_METADATA).map(|number| (number.to_string(), value.clone())).collect();
        NewMemory { metadata, intents: vec!["travel".into()], ..new("x") }
    };
    let most = limits::MAX_PAGE_BYTES / (limits::MAX_METADATA * limits::MAX_TEXT);
    for _ in 0..most {
        vault.store(OWNER, long()).unwrap();
    }
    let seen = || {
        let (listed, next) = vault.list(OWNER, "home", None).unwrap();
        let found = vault.find(OWNER, "home", "x").unwrap();
        let linked = vault.find_by_intent(OWNER, "travel").unwrap();
        let all = [(listed.len(), next.is_some()), (found.memories.len(), found.more)];
        [all[0], all[1], (linked.memories.len(), linked.more)]
    };
    assert_eq!(seen(), [(most, false); 3]);
    vault.store(OWNER, long()).unwrap();
    assert_eq!(seen(), [(most, true); 3]);
}

#[test]
fn what_serves_an_intent_is_a_page_newest_first_and_says_when_there_is_more() {
    let world = World::new();
    let vault = world.open();
    let store = |number: usize| {
        let text = number.to_string();
        let new = NewMemory::new(text.as_bytes(), Level::Working, "home");
        vault.store(OWNER, NewMemory { intents: vec!["travel".into()], ..new }).unwrap();
        world.clock.pass(Duration::from_millis(1));
    };
    (0..limits::MAX_PAGE).for_each(store);
    let found = vault.find_by_intent(OWNER, "travel").unwrap();
    assert_eq!((found.memories.len(), found.more), (limits::MAX_PAGE, false));
    assert!(found.memories.is_sorted_by_key(|header| core::cmp::Reverse(header.created)));
    store(limits::MAX_PAGE);
    let found = vault.find_by_intent(OWNER, "travel").unwrap();
    assert_eq!((found.memories.len(), found.more), (limits::MAX_PAGE, true));
}

#[test]
fn so_many_operations_share_a_commit_and_not_one_more() {
    let world = World::new();
    let (begun, began) = mpsc::channel();
    let (release, wait) = mpsc::channel::<()>();
    let (begun, wait) = (Mutex::new(begun), Mutex::new(wait));
    // The first recall holds the vault's thread until the others wait.
    let hold = move |_: &stvor_vault::Inspection<'_>| {
        begun.lock().unwrap().send(()).unwrap();
        wait.lock().unwrap().recv().map_err(|error| error.to_string())
    };
    let options = Options { auditors: vec![Arc::new(hold)], ..world.options() };
    let vault = Vault::open(&world.path(), options).unwrap();
    vault.unlock_with(&owner()).unwrap();
    let id = store(&vault);
    std::thread::scope(|scope| {
        let recall = scope.spawn(|| vault.recall(OWNER, id, "").unwrap());
        began.recv().unwrap();
        let pending: Vec<_> =
            (0..2 * limits::MAX_GROUP).map(|_| vault.begin_store(OWNER, new("x"))).collect();
        release.send(()).unwrap();
        pending.into_iter().for_each(|one| {
            one.wait().unwrap();
        });
        recall.join().unwrap();
    });
    let notes = std::fs::read_to_string(world.path().join("checkpoints")).unwrap();
    let lines: Vec<&str> = notes.lines().collect();
    let sizes: Vec<u64> = lines
        .windows(2)
        .filter(|pair| pair[0] == "example.com/vault")
        .map(|pair| pair[1].parse().unwrap())
        .collect();
    let groups: Vec<u64> = sizes.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(groups.iter().max(), Some(&(limits::MAX_GROUP as u64)), "{groups:?}");
}

#[test]
fn a_grant_is_good_for_a_day_at_most() {
    let world = World::new();
    let vault = world.open();
    let caller = agent(&vault, "helper", Level::Sealed);
    let id = vault.store(OWNER, NewMemory::new(b"sealed", Level::Sealed, "home")).unwrap();
    let request = vault.request_approval(&caller, id, "report").unwrap();
    vault.decide_approval(request, Some(limits::MAX_APPROVAL + Duration::from_secs(1))).unwrap();
    let granted = vault.approval(&caller, request).unwrap().unwrap();
    assert_eq!(u128::from(granted.valid), limits::MAX_APPROVAL.as_millis());
}

#[test]
fn a_hundred_requests_wait_and_not_one_more() {
    let world = World::new();
    let vault = world.open();
    let id = vault.store(OWNER, NewMemory::new(b"sealed", Level::Sealed, "home")).unwrap();
    let ask =
        |caller: &Caller, number: usize| vault.request_approval(caller, id, &format!("purpose {number}"));
    let agents = limits::MAX_PENDING / limits::MAX_PENDING_OF_ONE;
    for number in 0..agents {
        let caller = agent(&vault, &format!("agent-{number}"), Level::Sealed);
        for request in 0..limits::MAX_PENDING_OF_ONE {
            ask(&caller, request).unwrap();
        }
    }
    let one_more = agent(&vault, "one-more", Level::Sealed);
    let refused = ask(&one_more, 0).unwrap_err();
    assert!(refused.to_string().contains("100 approvals"), "{refused}");
    let waiting = vault.approvals().unwrap();
    assert_eq!(waiting.len(), limits::MAX_PENDING);
    vault.decide_approval(waiting[0].id, None).unwrap();
    ask(&one_more, 0).unwrap();
}

#[test]
fn a_thousand_agents_are_enrolled_and_not_one_more() {
    let world = World::new();
    let vault = world.open();
    let enrol = |number: usize| {
        let name = format!("agent-{number}");
        vault.enrol(Agent { writes: false, ..Agent::new(&name, &[], Level::Working) })
    };
    for number in 0..limits::MAX_AGENTS {
        enrol(number).unwrap();
    }
    assert_eq!(enrol(limits::MAX_AGENTS).unwrap_err().code(), "VAULT_BAD_REQUEST");
    vault.remove_agent("agent-7").unwrap();
    enrol(limits::MAX_AGENTS).unwrap();
}

#[test]
fn so_many_damaged_events_are_looked_past_for_the_time_of_a_sound_one() {
    let damaged = usize::try_from(limits::MAX_DAMAGED).unwrap();
    for (damaged, opens) in [(damaged - 1, true), (damaged, false)] {
        let world = World::new();
        let vault = world.open();
        fill(&vault, damaged + 5);
        drop(vault);
        let database = Connection::open(world.path().join("vault.db")).unwrap();
        // Without what is sealed with the checkpoint, the time follows from the log.
        database.execute("UPDATE checkpoint SET bound = x'00'", []).unwrap();
        let sql = "UPDATE event SET sealed = x'00' WHERE seq > (SELECT max(seq) FROM event) - ?1";
        assert_eq!(database.execute(sql, [i64::try_from(damaged).unwrap()]).unwrap(), damaged);
        drop(database);
        assert_eq!(world.cold().unlock_with(&owner()).is_ok(), opens, "{damaged}");
    }
}

#[test]
fn a_file_of_checkpoints_is_begun_anew_and_one_that_is_too_long_is_not_read() {
    let world = World::new();
    drop(world.open());
    let file = world.path().join("checkpoints");
    let length = || std::fs::metadata(&file).unwrap().len();
    let pad = |to: u64| {
        let mut opened = std::fs::OpenOptions::new().append(true).open(&file).unwrap();
        let missing = usize::try_from(to - length()).unwrap();
        opened.write_all(&vec![b'\n'; missing]).unwrap();
        assert_eq!(length(), to);
    };
    pad(limits::MAX_CHECKPOINTS_FILE);
    let vault = world.open();
    let after = length();
    assert!(after > limits::MAX_CHECKPOINTS_FILE, "it goes on in the file");
    store(&vault);
    assert!(length() < 10_000, "and begins anew past the bound: {}", length());
    drop(vault);

    pad(limits::MAX_CHECKPOINTS_READ);
    drop(world.open());
    drop(world.open());
    pad(limits::MAX_CHECKPOINTS_READ + 1);
    assert_eq!(world.cold().unlock_with(&owner()).unwrap_err().code(), "VAULT_TAMPERED");
}

#[test]
fn a_chain_of_backups_has_so_many_files() {
    let world = World::new();
    let (target, secret) = (world.directory.path().join("target"), owner());
    let opening = Opening::with(vec![Identity::generate()]);
    let refused = |count: usize| {
        let files: Vec<PathBuf> = (0..count).map(|number| format!("backup-{number}").into()).collect();
        restore(&Restore::new(&target, &files, (&opening, &secret))).unwrap_err()
    };
    assert_eq!(refused(limits::MAX_CHAIN).code(), "VAULT_IO", "the files are looked for");
    let refused = refused(limits::MAX_CHAIN + 1);
    assert!(refused.code() == "BACKUP_CHAIN" && refused.to_string().contains("1000"), "{refused}");
}

#[test]
fn a_switch_is_armed_for_a_day_to_ten_years_and_a_hundred_heirs() {
    let world = World::new();
    let vault = world.open();
    let id = store(&vault);
    let directory = world.directory.path().join("watched");
    let recipient = Identity::generate().recipient();
    let arms = |every: Duration, heirs: usize| {
        let heir = |number| Heir {
            name: format!("heir-{number}"),
            recipient: recipient.clone(),
            memories: vec![id],
        };
        let heirs: Vec<_> = (0..heirs).map(heir).collect();
        vault.arm_switch(&NewSwitch { every, heirs: &heirs, directory: &directory }).is_ok()
    };
    let second = Duration::from_secs(1);
    assert!(arms(limits::MIN_SILENCE, 1) && !arms(limits::MIN_SILENCE - second, 1));
    assert!(arms(limits::MAX_SILENCE, 1) && !arms(limits::MAX_SILENCE + second, 1));
    assert!(
        arms(limits::MIN_SILENCE, limits::MAX_HEIRS) && !arms(limits::MIN_SILENCE, limits::MAX_HEIRS + 1)
    );
    assert!(!arms(limits::MIN_SILENCE, 0));
}

#[test]
fn so_many_watchers_can_be_waited_for() {
    let armed = crate::recovery::Armed::new();
    // The one that is armed takes a place, too, until it is told.
    let most = limits::MAX_OWED - 1;
    let name = |number: usize| if number == 0 { "watched".to_owned() } else { format!("watched-{number}") };
    for number in 0..most {
        std::fs::remove_dir_all(armed.path(&name(number))).unwrap();
        armed.arm_in(&name(number + 1)).unwrap();
    }
    assert_eq!(armed.vault.untold_watchers().unwrap().len(), most);
    std::fs::remove_dir_all(armed.path(&name(most))).unwrap();
    assert_eq!(armed.arm_in("one-more").unwrap_err().code(), "VAULT_BAD_REQUEST");
    let armed_in = armed.vault.switch().unwrap().unwrap().directory;
    assert_eq!(armed_in, armed.path(&name(most)), "nothing is changed");
    armed.vault.give_up_watcher(&armed.path("watched-7")).unwrap();
    armed.arm_in("one-more").unwrap();
}

#[test]
fn a_check_in_that_is_too_long_is_not_read() {
    let world = World::new();
    let vault = world.open();
    let (watched, released) =
        (world.directory.path().join("watched"), world.directory.path().join("released"));
    let heirs = [Heir {
        name: "ada".into(),
        recipient: Identity::generate().recipient(),
        memories: vec![store(&vault)],
    }];
    let verifier = vault
        .arm_switch(&NewSwitch { every: limits::MIN_SILENCE, heirs: &heirs, directory: &watched })
        .unwrap();
    let mut watcher =
        Watcher::open((&watched, &released), &world.directory.path().join("state"), &verifier).unwrap();
    let most = usize::try_from(limits::MAX_CHECK_IN).unwrap();
    let mut unbelieved = |length: usize| {
        std::fs::write(watched.join(CHECK_IN), vec![b'x'; length]).unwrap();
        watcher.look(&world.clock.now()).unwrap().1.is_some()
    };
    assert!(unbelieved(most), "it is read, and not believed");
    assert!(!unbelieved(most + 1), "it is no check-in");
}

#[test]
fn a_vault_has_so_many_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let tokens = |count: usize| -> Vec<Enrolment> {
        let token = |number: usize| {
            let path = directory.path().join(format!("{count}-{number}"));
            let mut token = SoftwareToken::create(&path, &mut SystemRandom::new()).unwrap();
            Enrolment::challenge(&format!("token-{number}"), &mut token).unwrap()
        };
        (0..count).map(token).collect()
    };
    for (count, fits) in [(limits::MAX_TOKENS + 1, false), (limits::MAX_TOKENS, true)] {
        let world = World::new();
        let vault = world.cold();
        let records = vault.records().unwrap();
        let root = unwrap_root(&records.root, &owner()).unwrap();
        vault.unlock(root, Some(unwrap_vaulted(&records.vaulted.unwrap(), &second()).unwrap())).unwrap();
        assert_eq!(vault.enable_black(tokens(count), None).is_ok(), fits, "{count}");
        assert_eq!(vault.tokens().unwrap().len(), if fits { count } else { 0 });
    }
}

#[test]
fn a_witness_reads_a_request_to_its_last_byte_and_no_longer_one() {
    let world = World::new();
    let cosigner = Cosigner::generate("witness.example/1", &mut SystemRandom::new()).unwrap();
    let mut service = WitnessService::open(&world.directory.path().join("witness"), cosigner).unwrap();
    let socket = world.directory.path().join("witness.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let clock = world.clock.clone();
    std::thread::spawn(move || service.serve(&listener, &*clock));
    let answer = |length: u64| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // A witness that reads no further may be gone before everything is sent.
        let _ = stream.write_all(&vec![b'x'; usize::try_from(length).unwrap()]);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    assert!(answer(limits::MAX_WITNESS_REQUEST).starts_with("no "), "it was read, and refused");
    assert_eq!(answer(limits::MAX_WITNESS_REQUEST + 1), "", "it was not read to its end");
}
