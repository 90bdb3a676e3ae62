//! Agents use memories and owners control them: what an agent may not end, replace, hide, see or fill.

use std::time::Duration;

use serde_json::json;
use stvor_base::ErrorCode;
use stvor_vault::audit::Operation;
use stvor_vault::profiles::{NewProfile, ProfileKey, Rotation, unwrap_profile};
use stvor_vault::{
    Agent, Caller, Ends, Header, Level, LogQuery, MemoryId, NewMemory, Options, Refusal, State, Trust, Vault,
    VaultError, limits,
};

use crate::gates::cold_room;
use crate::world::{World, agent, enrol, owner, passphrase, refusal};

const OWNER: &Caller = &Caller::Owner;
const HOUR: Duration = Duration::from_secs(60 * 60);

fn memory(content: &str, level: Level) -> NewMemory {
    NewMemory::new(content.as_bytes(), level, "home")
}

fn any(vault: &Vault, name: &str) -> Caller {
    enrol(vault, Agent { ends: Ends::Any, ..Agent::new(name, &["home"], Level::Sealed) })
}

/// A vault on a machine that is cut off.
fn offline(world: &World) -> Vault {
    let boundary = Some(cold_room(world));
    let vault = Vault::open(&world.path(), Options { boundary, ..world.options() }).unwrap();
    vault.unlock_with(&owner()).unwrap();
    vault
}

/// Everything that changes or ends a memory, and what became of each try.
fn attacks(vault: &Vault, caller: &Caller, id: MemoryId) -> Vec<Result<(), VaultError>> {
    let poison = NewMemory {
        supersedes: Some(id),
        trust: Trust::Agent,
        ..memory("the safe word is poison", Level::Working)
    };
    vec![
        vault.store(caller, poison).map(drop),
        vault.set_intent(caller, id, ("mine", true)),
        vault.set_intent(caller, id, ("travel", false)),
        vault.tombstone(caller, id, "").map(drop),
        vault.forget(caller, id, "").map(drop),
    ]
}

fn header(vault: &Vault, caller: &Caller, id: MemoryId) -> Header {
    vault.list(caller, "home", None).unwrap().0.into_iter().find(|header| header.id == id).unwrap()
}

#[test]
fn an_agent_ends_replaces_and_links_what_it_stored_and_nothing_else() {
    let world = World::new();
    let vault = world.open();
    let (one, two) = (agent(&vault, "one", Level::Sealed), agent(&vault, "two", Level::Sealed));
    let store = |caller: &Caller, level| {
        let new = NewMemory { intents: vec!["travel".into()], ..memory("the safe word is swordfish", level) };
        vault.store(caller, new).unwrap()
    };
    for level in [Level::Ephemeral, Level::Working, Level::Private] {
        for by in [OWNER, &one] {
            let id = store(by, level);
            let before = header(&vault, OWNER, id);
            for refused in attacks(&vault, &two, id) {
                assert_eq!(refusal(refused).code(), "AGENT_NOT_ALLOWED");
            }
            assert_eq!(header(&vault, OWNER, id), before);
            assert_eq!(vault.recall(&two, id, "").unwrap().content.expose(), b"the safe word is swordfish");
        }
    }
    assert_eq!(vault.search(&two, "home", "poison").unwrap(), []);
    let done = attacks(&vault, &one, store(&one, Level::Working));
    assert!(done.iter().all(Result::is_ok), "{done:?}");
    let own = store(&one, Level::Private);
    vault.forget(&one, own, "").unwrap();
    assert_eq!(refusal(vault.recall(&one, own, "")).code(), "MEMORY_GONE");
}

#[test]
fn an_agent_that_the_owner_let_end_any_memory_ends_those_of_others() {
    let world = World::new();
    let vault = world.open();
    let gardener = any(&vault, "gardener");
    let one = agent(&vault, "one", Level::Sealed);
    for by in [OWNER, &one] {
        let id = vault.store(by, memory("old news", Level::Working)).unwrap();
        vault.set_intent(&gardener, id, ("travel", true)).unwrap();
        vault.forget(&gardener, id, "").unwrap();
        assert_eq!(header(&vault, OWNER, id).state, State::Forgotten);
    }
    let sealed = vault.store(OWNER, memory("sealed", Level::Sealed)).unwrap();
    assert_eq!(refusal(vault.forget(&gardener, sealed, "")).code(), "AGENT_NOT_ALLOWED", "below level 3");
    let reader = Agent { ends: Ends::Any, writes: false, ..Agent::new("reader", &["home"], Level::Private) };
    let reader = enrol(&vault, reader);
    let id = vault.store(OWNER, memory("news", Level::Working)).unwrap();
    assert_eq!(refusal(vault.forget(&reader, id, "")).code(), "AGENT_NOT_ALLOWED", "who may not write");
}

#[test]
fn what_is_trusted_more_is_not_replaced_by_what_is_trusted_less() {
    let world = World::new();
    let vault = world.open();
    let gardener = any(&vault, "gardener");
    let trusted = |trust| NewMemory { trust, ..memory("the safe word is swordfish", Level::Private) };
    let replace = |caller: &Caller, id, trust| {
        vault.store(caller, NewMemory { trust, ..NewMemory::correcting(id, b"the safe word is poison") })
    };
    let told = vault.store(OWNER, trusted(Trust::Owner)).unwrap();
    for trust in [Trust::Untrusted, Trust::Agent] {
        let refused = refusal(replace(&gardener, told, trust));
        assert_eq!(refused, Refusal::LessTrusted { old: Trust::Owner, new: trust });
        assert_eq!(refused.code(), "MEMORY_LESS_TRUSTED");
    }
    assert_eq!(vault.search(OWNER, "home", "swordfish").unwrap()[0].id, told, "it is found as before");
    assert_eq!(vault.search(OWNER, "home", "poison").unwrap(), []);
    let own = vault.store(&gardener, trusted(Trust::Agent)).unwrap();
    assert_eq!(refusal(replace(&gardener, own, Trust::Untrusted)).code(), "MEMORY_LESS_TRUSTED");
    replace(&gardener, own, Trust::Agent).unwrap();
    replace(OWNER, told, Trust::Untrusted).unwrap();
}

/// A profile that opens with the session.
fn profile(vault: &Vault, name: &str) {
    let new = NewProfile { name: name.into(), exportable: false, rotation: Rotation::default() };
    vault.make_profile(new, None).unwrap();
}

#[test]
fn a_correction_is_kept_as_what_it_corrects() {
    let world = World::new();
    let vault = world.open();
    profile(&vault, "doctor");
    let one = agent(&vault, "one", Level::Vaulted);
    for level in [Level::Ephemeral, Level::Working, Level::Private, Level::Sealed, Level::Vaulted] {
        for by in [OWNER, &one].into_iter().filter(|by| **by == *OWNER || !level.needs_approval()) {
            let new = NewMemory { profile: Some("doctor".into()), trust: Trust::Agent, ..full(level) };
            let id = vault.store(by, new).unwrap();
            let older = header(&vault, OWNER, id);
            world.clock.pass(HOUR);
            let newer = NewMemory { trust: Trust::Agent, ..NewMemory::correcting(id, b"4712") };
            let newer = header(&vault, OWNER, vault.store(by, newer).unwrap());
            let kept = |header: &Header| {
                let Header { level, namespace, profile, expires, cooldown, .. } = header.clone();
                (level, namespace, profile, expires, cooldown)
            };
            assert_eq!(kept(&newer), kept(&older));
            assert_eq!(newer.supersedes, Some(id));
            vault.forget(OWNER, newer.id, "").unwrap();
        }
    }
    // What nobody who reads level 1 was given by the correction of something sealed.
    let low = agent(&vault, "low", Level::Working);
    let sealed = vault.store(OWNER, memory("4711", Level::Sealed)).unwrap();
    let newer = vault.store(OWNER, NewMemory::correcting(sealed, b"4712")).unwrap();
    assert_eq!(refusal(vault.recall(&low, newer, "look")).code(), "MEMORY_NOT_FOUND");
    assert_eq!(vault.search(&low, "home", "4712").unwrap(), []);
}

#[test]
fn only_the_owner_and_only_by_saying_so_lowers_a_level_or_leaves_a_profile() {
    let world = World::new();
    let vault = world.open();
    profile(&vault, "doctor");
    profile(&vault, "lawyer");
    let gardener = any(&vault, "gardener");
    let private = |by: &Caller| {
        let new = NewMemory { profile: Some("doctor".into()), ..memory("4711", Level::Private) };
        vault.store(by, new).unwrap()
    };
    let (own, owners) = (private(&gardener), private(OWNER));
    for id in [own, owners] {
        let newer = || NewMemory::correcting(id, b"4712");
        for level in [Level::Ephemeral, Level::Working] {
            let lower = NewMemory { level: Some(level), ..newer() };
            let refused = refusal(vault.store(&gardener, lower));
            assert_eq!(refused, Refusal::LowerLevel { old: Level::Private, new: level });
            assert_eq!(refused.code(), "MEMORY_LOWER_LEVEL");
        }
        for leaves in [
            NewMemory { no_profile: true, ..newer() },
            NewMemory { profile: Some("lawyer".into()), ..newer() },
        ] {
            let refused = refusal(vault.store(&gardener, leaves));
            assert_eq!(refused, Refusal::LeavesProfile("doctor".into()));
            assert_eq!(refused.code(), "MEMORY_LEAVES_PROFILE");
        }
        assert_eq!(header(&vault, OWNER, id).state, State::Live, "nothing took its place");
    }
    let contradicts =
        NewMemory { no_profile: true, profile: Some("doctor".into()), ..memory("x", Level::Working) };
    assert_eq!(vault.store(OWNER, contradicts).unwrap_err().code(), "VAULT_BAD_REQUEST");
    // Upwards it may.
    let raised = NewMemory { level: Some(Level::Sealed), ..NewMemory::correcting(own, b"4712") };
    let raised = header(&vault, OWNER, vault.store(&gardener, raised).unwrap());
    assert_eq!((raised.level, raised.cooldown), (Level::Sealed, 60_000), "with the pause of that level");
    let moved = NewMemory { profile: Some("lawyer".into()), ..NewMemory::correcting(owners, b"4712") };
    let moved = vault.store(OWNER, moved).unwrap();
    assert_eq!(header(&vault, OWNER, moved).profile.as_deref(), Some("lawyer"));
    let free = NewMemory {
        level: Some(Level::Working),
        no_profile: true,
        ..NewMemory::correcting(moved, b"everybody knows by now")
    };
    let free = header(&vault, OWNER, vault.store(OWNER, free).unwrap());
    assert_eq!((free.level, free.profile), (Level::Working, None));
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn a_correction_has_the_end_that_it_says_or_else_that_of_what_it_corrects() {
    let world = World::new();
    let vault = world.open();
    let one = agent(&vault, "one", Level::Private);
    let end = |new: NewMemory| {
        let id = vault.store(&one, new).unwrap();
        (id, header(&vault, OWNER, id).expires)
    };
    let at = |hours: u64| Some(world.clock.wall() + hours * 3_600_000);
    let (id, first) = end(NewMemory { ttl: Some(9 * HOUR), ..memory("tea", Level::Working) });
    assert_eq!(first, at(9));
    world.clock.pass(HOUR);
    let (id, second) = end(NewMemory::correcting(id, b"green tea"));
    assert_eq!(second, at(8), "what is left");
    let (id, third) = end(NewMemory { ttl: Some(2 * HOUR), ..NewMemory::correcting(id, b"black tea") });
    assert_eq!(third, at(2));
    let (_, none) = end(NewMemory { no_ttl: true, ..NewMemory::correcting(id, b"coffee") });
    assert_eq!(none, None);
    let (id, day) = end(memory("short", Level::Ephemeral));
    assert_eq!(day, at(24));
    let no_end = NewMemory { no_ttl: true, ..NewMemory::correcting(id, b"as short") };
    let (id, still) = end(no_end);
    assert_eq!(still, at(24), "level 0 has an end whatever is said");
    let (_, kept) =
        end(NewMemory { level: Some(Level::Working), ..NewMemory::correcting(id, b"to be kept") });
    assert_eq!(kept, None, "the end of level 0 comes with the level");
}

/// What is told of a memory that is closed to who asks.
fn no_more(id: MemoryId, level: Level) -> serde_json::Value {
    json!({
        "id": id, "level": level, "namespace": "home", "creator": "", "created": 0, "expires": null, "cooldown": 0,
        "metadata": {}, "searchable": [], "intents": [], "source": "", "trust": "untrusted", "supersedes": null,
        "superseded_by": null, "length": 0, "content_hash": "", "state": "live", "state_since": null,
        "state_reason": "", "closed": true,
    })
}

/// A memory with something in every field.
fn full(level: Level) -> NewMemory {
    NewMemory {
        metadata: [("person".to_owned(), "Ann".to_owned())].into(),
        searchable: vec!["person".into()],
        intents: vec!["travel".into()],
        source: "the bank".into(),
        trust: Trust::Owner,
        ttl: Some(9 * HOUR),
        cooldown: Some(HOUR),
        ..memory("1234", level)
    }
}

#[test]
fn a_closed_profile_keeps_agents_from_changing_ending_and_seeing_its_memories() {
    let world = World::new();
    let vault = world.open();
    let own = passphrase("the profile's own");
    let new = NewProfile { name: "doctor".into(), exportable: false, rotation: Rotation::default() };
    vault.make_profile(new, Some(ProfileKey::generate("doctor", &own).unwrap())).unwrap();
    let gardener = any(&vault, "gardener");
    let of = |level| NewMemory { profile: Some("doctor".into()), trust: Trust::Untrusted, ..full(level) };
    let ids = [Level::Working, Level::Private].map(|level| vault.store(OWNER, of(level)).unwrap());
    let mine = vault.store(&gardener, of(Level::Working)).unwrap();
    vault.search(&gardener, "home", "1234").unwrap();
    vault.close_profile("doctor").unwrap();
    for id in ids.into_iter().chain([mine]) {
        for refused in attacks(&vault, &gardener, id) {
            assert_eq!(refusal(refused), Refusal::ProfileClosed("doctor".into()));
        }
        let seen = header(&vault, &gardener, id);
        assert_eq!(serde_json::to_value(&seen).unwrap(), no_more(id, seen.level));
        assert_eq!(header(&vault, OWNER, id).metadata["person"], "Ann", "the owner sees it");
    }
    assert_eq!(vault.search(&gardener, "home", "1234").unwrap(), []);
    assert_eq!(vault.by_intent(&gardener, "travel").unwrap(), []);
    let record = vault.profile_record("doctor").unwrap();
    vault.open_profile("doctor", unwrap_profile(&record, "doctor", &own).unwrap()).unwrap();
    assert_eq!(vault.by_intent(&gardener, "travel").unwrap().len(), 3);
    vault.forget(&gardener, mine, "").unwrap();
    vault.close_profile("doctor").unwrap();
    vault.forget(OWNER, ids[0], "the owner may").unwrap();
}

#[test]
fn of_a_memory_of_level_3_an_agent_is_told_nothing_but_that_it_is_there() {
    let world = World::new();
    let vault = world.open();
    let curious = any(&vault, "curious");
    let open = vault.store(OWNER, memory("open", Level::Working)).unwrap();
    let pins = ["1234", "123456789"].map(|pin| {
        let new = full(Level::Sealed);
        vault.store(OWNER, NewMemory { content: pin.as_bytes().to_vec().into(), ..new }).unwrap()
    });
    let new = NewMemory { supersedes: Some(pins[0]), ..full(Level::Sealed) };
    let newer = vault.store(OWNER, new).unwrap();
    let late = vault.store(OWNER, memory("open too", Level::Working)).unwrap();
    let mut closed = [pins[0], pins[1], newer];
    closed.sort_unstable();
    let (listed, _) = vault.list(&curious, "home", None).unwrap();
    let ids: Vec<_> = listed.iter().map(|header| header.id).collect();
    assert_eq!(ids, [late, open, closed[0], closed[1], closed[2]], "their places tell no times");
    for header in &listed[2..] {
        assert_eq!(serde_json::to_value(header).unwrap(), no_more(header.id, Level::Sealed));
    }
    let shown = serde_json::to_value(header(&vault, OWNER, pins[1])).unwrap();
    for (field, hidden) in no_more(pins[1], Level::Sealed).as_object().unwrap() {
        let same = ["id", "level", "namespace", "content_hash", "supersedes", "superseded_by", "state"];
        let other = same.contains(&field.as_str()) || field.starts_with("state_");
        assert!(other || shown.get(field) != Some(hidden), "{field} is there to be hidden");
    }
}

#[test]
fn who_has_no_approval_does_not_learn_when_a_sealed_memory_was_recalled() {
    let world = World::new();
    let vault = offline(&world);
    let curious = agent(&vault, "curious", Level::Sealed);
    let id = vault.store(OWNER, memory("sealed", Level::Sealed)).unwrap();
    let asked = |justification: &str| vault.recall(&curious, id, justification).unwrap_err().to_string();
    let before = [asked(""), asked("look")];
    vault.recall(OWNER, id, "look").unwrap();
    world.clock.pass(Duration::from_millis(7));
    assert_eq!([asked(""), asked("look")], before);
    vault.lock().unwrap();
    let locked = asked("look");
    vault.unlock_with(&owner()).unwrap();
    world.clock.pass(HOUR);
    vault.lock().unwrap();
    assert_eq!(asked("look"), locked, "nor while it is locked");
    vault.unlock_with(&owner()).unwrap();
    vault.recall(OWNER, id, "look").unwrap();
    let request = vault.request_approval(&curious, id, "look").unwrap();
    vault.decide_approval(request, Some(HOUR)).unwrap();
    assert!(matches!(refusal(vault.recall(&curious, id, "look")), Refusal::Cooldown { .. }));
    world.clock.pass(limits::COOLDOWN);
    vault.recall(&curious, id, "look").unwrap();
}

#[test]
fn an_agent_keeps_the_owner_out_of_nothing_below_level_3() {
    let world = World::new();
    let vault = world.open();
    let (one, two) = (agent(&vault, "one", Level::Sealed), agent(&vault, "two", Level::Sealed));
    for level in [Level::Working, Level::Private] {
        let id = vault.store(&one, NewMemory { cooldown: Some(HOUR), ..memory("slow", level) }).unwrap();
        vault.recall(&one, id, "").unwrap();
        assert!(matches!(refusal(vault.recall(&two, id, "")), Refusal::Cooldown { .. }));
        for _ in 0..2 {
            vault.recall(OWNER, id, "").unwrap();
        }
        let (exported, _) = vault.export(0).unwrap();
        let found =
            exported.iter().find(|one| one.header.as_ref().is_some_and(|header| header.id == id)).unwrap();
        assert!(found.content.is_ok(), "nor is it left out of an export");
    }
    // What the owner chose holds for the owner.
    let id =
        vault.store(OWNER, NewMemory { cooldown: Some(HOUR), ..memory("slow", Level::Working) }).unwrap();
    vault.recall(&one, id, "").unwrap();
    assert!(matches!(refusal(vault.recall(OWNER, id, "")), Refusal::Cooldown { .. }));
}

#[test]
fn an_agent_chooses_a_pause_of_a_minute_to_an_hour_from_level_3_on() {
    let world = World::new();
    let vault = world.open();
    let one = agent(&vault, "one", Level::Sealed);
    let second = Duration::from_secs(1);
    let store = |caller: &Caller, level, pause| {
        let new = NewMemory { cooldown: Some(pause), ..memory("slow", level) };
        vault.store(caller, new).map_err(|error| error.code())
    };
    let most = limits::MAX_COOLDOWN_OF_AGENT;
    for (level, pause, taken) in [
        (Level::Working, Duration::ZERO, true),
        (Level::Working, most, true),
        (Level::Working, most + second, false),
        (Level::Sealed, Duration::ZERO, false),
        (Level::Sealed, limits::COOLDOWN - second, false),
        (Level::Sealed, limits::COOLDOWN, true),
        (Level::Sealed, most, true),
        (Level::Sealed, most + second, false),
        (Level::Sealed, limits::MAX_COOLDOWN, false),
    ] {
        let expected = if taken { None } else { Some("VAULT_BAD_REQUEST") };
        assert_eq!(store(&one, level, pause).err(), expected, "{level} {pause:?}");
        assert!(store(OWNER, level, pause).is_ok(), "the owner may");
    }
    let id = vault.store(&one, memory("sealed", Level::Sealed)).unwrap();
    assert_eq!(header(&vault, OWNER, id).cooldown, 60_000, "when it does not say");
}

#[test]
fn the_owner_ends_a_pause_and_the_log_says_so_also_when_pauses_follow_from_it_again() {
    let world = World::new();
    let vault = offline(&world);
    let one = agent(&vault, "one", Level::Sealed);
    let slow = |level| NewMemory { cooldown: Some(24 * HOUR), ..memory("slow", level) };
    let (ended, other) =
        (vault.store(OWNER, slow(Level::Sealed)).unwrap(), vault.store(OWNER, slow(Level::Working)).unwrap());
    assert_eq!(vault.end_pause(ended).unwrap_err().code(), "VAULT_BAD_REQUEST", "none is under way");
    vault.recall(OWNER, ended, "look").unwrap();
    vault.recall(&one, other, "").unwrap();
    assert!(matches!(refusal(vault.recall(OWNER, ended, "look")), Refusal::Cooldown { .. }));
    vault.end_pause(ended).unwrap();
    let query = LogQuery { operation: Some(Operation::EndPause), memory: Some(ended), ..LogQuery::default() };
    let entries = vault.read_log(query).unwrap().entries;
    assert_eq!(entries.iter().filter(|entry| entry.event.refused.is_none()).count(), 1);
    assert_eq!(vault.verify().unwrap().problems, []);
    drop(vault);
    // Somebody removes a record: everything is shut, and then follows from the log.
    let database = rusqlite::Connection::open(world.path().join("vault.db")).unwrap();
    assert_eq!(database.execute("DELETE FROM recall", []).unwrap(), 1);
    drop(database);
    let vault = offline(&world);
    assert_eq!(vault.end_pause(other).unwrap_err().code(), "VAULT_TAMPERED");
    vault.leave_lockdown(&owner()).unwrap();
    assert!(matches!(refusal(vault.recall(OWNER, other, "")), Refusal::Cooldown { .. }));
    vault.recall(OWNER, ended, "look").unwrap();
}

#[test]
fn an_agent_that_is_refused_nothing_does_not_fill_the_logs_disk() {
    let world = World::new();
    let vault = world.open();
    const MOST: u64 = 20_000;
    let limited = |name: &str| {
        enrol(&vault, Agent { log_quota: Some(MOST), ..Agent::new(name, &["home"], Level::Working) })
    };
    let (greedy, wordy) = (limited("greedy"), limited("wordy"));
    let events = || vault.status().unwrap().events;
    let hammer = |work: &dyn Fn() -> Result<(), VaultError>| {
        let before = events();
        let refused = (0..10_000).find_map(|_| work().err()).unwrap();
        assert_eq!(refused.code(), "AGENT_LOG_QUOTA");
        events() - before
    };
    let list = || vault.list(&greedy, "home", None).map(drop);
    let many = hammer(&list);
    assert!((20..=MOST / 100).contains(&many), "{many}");
    let full = events();
    for _ in 0..500 {
        assert!(matches!(refusal(list()), Refusal::LogQuota { most: MOST, .. }));
    }
    assert_eq!(events(), full, "nothing more is logged");
    let id = vault.store(OWNER, memory("x", Level::Working)).unwrap();
    let reason = "x".repeat(limits::MAX_TEXT);
    let few = hammer(&|| vault.recall(&wordy, id, &reason).map(drop));
    assert!(few < many / 4, "what is said counts: {few} of {many}");
    // Others go on; and it can still stop everything.
    vault.recall(OWNER, id, "").unwrap();
    // A day later it may write as much again, and one leaf counts what was refused.
    world.clock.pass(24 * HOUR);
    list().unwrap();
    let query = LogQuery { operation: Some(Operation::Suppressed), ..LogQuery::default() };
    let counted: Vec<_> = vault
        .read_log(query)
        .unwrap()
        .entries
        .into_iter()
        .map(|entry| (entry.event.actor, entry.event.count))
        .collect();
    assert!(counted.contains(&("greedy".to_owned(), Some(501))), "{counted:?}");
    hammer(&list);
    vault.enter_lockdown(&greedy, "stop").unwrap();
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn a_daemon_that_starts_anew_gives_no_agent_its_log_back() {
    const MOST: u64 = 20_000;
    let world = World::new();
    let vault = world.open();
    let caller =
        enrol(&vault, Agent { log_quota: Some(MOST), ..Agent::new("greedy", &["home"], Level::Working) });
    let list = |vault: &Vault| vault.list(&caller, "home", None).map(drop);
    let spend = |vault: &Vault| (0..1_000).take_while(|_| list(vault).is_ok()).count();
    let many = spend(&vault);
    drop(vault);
    let vault = world.open();
    assert_eq!(spend(&vault), 0, "it was closed in order");
    // What is not written yet when the machine dies is no more than a small part.
    world.clock.pass(24 * HOUR);
    assert!(spend(&vault) > many / 2, "a day later it may write again");
    let killed = tempfile::tempdir().unwrap();
    for entry in
        std::fs::read_dir(world.path()).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file())
    {
        std::fs::copy(entry.path(), killed.path().join(entry.file_name())).unwrap();
    }
    let copy = Vault::open(killed.path(), world.options()).unwrap();
    copy.unlock_with(&owner()).unwrap();
    assert!(spend(&copy) <= many / 32, "of {many}");
    assert_eq!(copy.verify().unwrap().problems, []);
    // Who is enrolled anew begins anew.
    vault.remove_agent("greedy").unwrap();
    let again =
        enrol(&vault, Agent { log_quota: Some(MOST), ..Agent::new("greedy", &["home"], Level::Working) });
    vault.list(&again, "home", None).unwrap();
}

#[test]
fn a_list_tells_an_agent_nothing_of_memories_that_it_may_not_know_of() {
    let world = World::new();
    let vault = world.open();
    let low = agent(&vault, "low", Level::Working);
    let other = agent(&vault, "other", Level::Working);
    let fill = |level, count: usize| {
        let pending: Vec<_> = (0..count).map(|_| vault.begin_store(OWNER, memory("x", level))).collect();
        pending.into_iter().map(|one| one.wait().unwrap()).collect::<Vec<_>>()
    };
    let list = |before: Option<&str>| {
        let (page, next) = vault.list(&low, "home", before).unwrap();
        (page.into_iter().map(|header| header.id).collect::<Vec<_>>(), next)
    };
    let oldest = fill(Level::Working, 1);
    // More than a page of what is above it, and of what is gone.
    fill(Level::Private, limits::MAX_PAGE + 1);
    for id in fill(Level::Working, limits::MAX_PAGE + 1) {
        vault.tombstone(OWNER, id, "").unwrap();
    }
    assert_eq!(list(None), (oldest.clone(), None));
    // A full page says that there is more only when there is more for it.
    let mut newer = fill(Level::Working, limits::MAX_PAGE - 1);
    newer.reverse();
    let (page, next) = list(None);
    assert_eq!((&page[..page.len() - 1], page.last(), next), (&newer[..], oldest.first(), None));
    fill(Level::Private, 3);
    let newest = fill(Level::Working, 1);
    let (page, next) = list(None);
    assert_eq!((page.len(), page[0]), (limits::MAX_PAGE, newest[0]));
    let next = next.unwrap();
    assert_eq!(list(Some(&next)), (oldest, None));
    // Where it goes on is good for who got it, for this list, and for nothing that somebody made up.
    vault.store(OWNER, NewMemory { namespace: Some("work".into()), ..memory("x", Level::Working) }).unwrap();
    let everywhere = enrol(&vault, Agent::new("everywhere", &["home", "work"], Level::Working));
    assert_eq!(vault.list(&other, "home", Some(&next)).unwrap_err().code(), "VAULT_BAD_REQUEST");
    assert_eq!(vault.list(&everywhere, "work", Some(&next)).unwrap_err().code(), "VAULT_BAD_REQUEST");
    for made_up in ["", "3", "AAAA"] {
        assert_eq!(vault.list(&low, "home", Some(made_up)).unwrap_err().code(), "VAULT_BAD_REQUEST");
    }
}
