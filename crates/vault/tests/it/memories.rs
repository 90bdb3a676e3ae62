use std::time::Duration;

use stvor_base::ErrorCode;
use stvor_vault::audit::Operation;
use stvor_vault::{
    Agent, Caller, Ends, Header, Level, LogQuery, MemoryId, NewMemory, Options, Purged, Refusal, SessionId,
    State, Vault, VaultError, limits,
};

use crate::world::{World, agent, owner, passphrase, refusal};

const OWNER: &Caller = &Caller::Owner;

fn memory(content: &str, level: Level) -> NewMemory {
    NewMemory::new(content.as_bytes(), level, "home")
}

fn ids(found: Vec<Header>) -> Vec<MemoryId> {
    found.into_iter().map(|header| header.id).collect()
}

#[test]
fn memories_of_levels_1_and_2_come_back_after_restarts() {
    let world = World::new();
    let stored: Vec<_> = {
        let vault = world.open();
        let store = |level| vault.store(OWNER, memory(&format!("content of {level}"), level)).unwrap();
        [Level::Working, Level::Private].map(|level| (level, store(level))).into()
    };
    let vault = world.open();
    for (level, id) in stored {
        let recalled = vault.recall(OWNER, id, "").unwrap();
        assert_eq!(recalled.content.expose(), format!("content of {level}").as_bytes());
        assert_eq!((recalled.header.level, recalled.header.creator.as_str()), (level, "owner"));
    }
}

#[test]
fn a_cold_vault_refuses_everything_and_counts_it() {
    let world = World::new();
    let vault = world.cold();
    assert_eq!(refusal(vault.store(OWNER, memory("x", Level::Working))), Refusal::Cold);
    assert_eq!(refusal(vault.recall(OWNER, MemoryId::from_bytes([1; 16]), "")), Refusal::Cold);
    assert_eq!(vault.status().unwrap().refused_cold, 2);
    vault.unlock_with(&owner()).unwrap();
    assert_eq!(vault.status().unwrap().refused_cold, 0);
    let (event, _) = vault.prove(0).unwrap();
    assert!(String::from_utf8(event).unwrap().contains("\"count\":2"), "the count is in the log");
}

#[test]
fn a_locked_vault_reads_levels_0_and_1_and_writes_all() {
    let world = World::new();
    let vault = world.open();
    let working = vault.store(OWNER, memory("tea", Level::Working)).unwrap();
    let private = vault.store(OWNER, memory("diary", Level::Private)).unwrap();
    vault.lock().unwrap();
    assert_eq!(vault.recall(OWNER, working, "").unwrap().content.expose(), b"tea");
    assert_eq!(refusal(vault.recall(OWNER, private, "")), Refusal::Locked { level: Level::Private });
    assert_eq!(vault.search(OWNER, "home", "diary").unwrap(), [], "nothing is left in the index");
    let later = vault.store(OWNER, memory("diary, second page", Level::Private)).unwrap();
    vault.unlock_with(&owner()).unwrap();
    assert_eq!(vault.recall(OWNER, later, "").unwrap().content.expose(), b"diary, second page");
    assert_eq!(vault.search(OWNER, "home", "diary").unwrap().len(), 2);
}

#[test]
fn a_wrong_passphrase_opens_and_stores_nothing() {
    let world = World::new();
    let vault = world.cold();
    let wrong = vault.unlock_with(&passphrase("wrong horse")).unwrap_err();
    assert_eq!(wrong.code(), "WRONG_KEY");
    assert_eq!(refusal(vault.store(OWNER, memory("x", Level::Working))), Refusal::Cold);
}

#[test]
fn changing_the_secret_keeps_every_memory_and_ends_the_old_one() {
    let world = World::new();
    let vault = world.open();
    let id = vault.store(OWNER, memory("kept", Level::Private)).unwrap();
    assert_eq!(
        vault.change_secret(&passphrase("wrong"), &passphrase("new")).unwrap_err().code(),
        "WRONG_KEY"
    );
    vault.change_secret(&owner(), &passphrase("new secret")).unwrap();
    drop(vault);
    let vault = world.cold();
    assert_eq!(vault.unlock_with(&owner()).unwrap_err().code(), "WRONG_KEY");
    vault.unlock_with(&passphrase("new secret")).unwrap();
    assert_eq!(vault.recall(OWNER, id, "").unwrap().content.expose(), b"kept");
}

#[test]
fn search_finds_words_within_what_the_caller_may_recall() {
    let world = World::new();
    let vault = world.open();
    let (low, high) = (agent(&vault, "low", Level::Working), agent(&vault, "high", Level::Sealed));
    let one = vault.store(OWNER, memory("The bank-pin is nowhere", Level::Working)).unwrap();
    let two = vault.store(OWNER, memory("My bank account", Level::Private)).unwrap();
    let mut sealed = memory("bank vault combination", Level::Sealed);
    sealed.metadata.insert("topic".into(), "bank".into());
    sealed.searchable.push("topic".into());
    let three = vault.store(OWNER, sealed).unwrap();
    vault.store(OWNER, NewMemory::new(b"bank of the river", Level::Working, "elsewhere")).unwrap();

    assert_eq!(ids(vault.search(&low, "home", "bank").unwrap()), [one]);
    let mut found = ids(vault.search(&high, "home", "BANK").unwrap());
    found.sort();
    let mut expected = [one, two];
    expected.sort();
    assert_eq!(found, expected, "nothing above level 2 for an agent");
    assert_eq!(vault.search(OWNER, "home", "bank").unwrap().len(), 3);
    assert_eq!(ids(vault.search(OWNER, "home", "combination").unwrap()), [], "sealed content is not indexed");
    let elsewhere = Refusal::NotAllowed { what: "use this namespace" };
    assert_eq!(refusal(vault.search(&low, "elsewhere", "bank")), elsewhere);
    assert_eq!(vault.search(OWNER, "home", "bank-pin").unwrap().len(), 1, "no syntax in a search");
    assert!(vault.search(OWNER, "home", "  ").is_err());
    vault.forget(OWNER, one, "").unwrap();
    vault.tombstone(OWNER, three, "").unwrap();
    assert_eq!(ids(vault.search(OWNER, "home", "bank").unwrap()), [two]);
}

#[test]
fn listing_shows_namespaces_newest_first_and_hides_what_is_too_high() {
    let world = World::new();
    let vault = world.open();
    let low = agent(&vault, "low", Level::Working);
    let high = agent(&vault, "high", Level::Vaulted);
    let stored: Vec<_> =
        (0..3).map(|n| vault.store(OWNER, memory(&n.to_string(), Level::Working)).unwrap()).collect();
    let mut sealed = memory("sealed", Level::Sealed);
    sealed.metadata.insert("who".into(), "me".into());
    let sealed = vault.store(OWNER, sealed).unwrap();
    let (found, next) = vault.list(&low, "home", None).unwrap();
    assert_eq!(ids(found), [stored[2], stored[1], stored[0]]);
    assert_eq!(next, None);
    let (found, _) = vault.list(&high, "home", None).unwrap();
    assert_eq!(found[3].id, sealed);
    assert!(found[3].metadata.is_empty(), "an agent learns that it is there, not what about");
    assert_eq!(vault.list(OWNER, "home", None).unwrap().0[0].metadata["who"], "me");
    assert_eq!(
        refusal(vault.list(&low, "elsewhere", None)),
        Refusal::NotAllowed { what: "use this namespace" }
    );
}

#[test]
fn a_namespace_with_a_star_covers_what_begins_like_it() {
    let world = World::new();
    let vault = world.open();
    let agent = Agent { writes: false, ..Agent::new("reader", &["project/*"], Level::Working) };
    let credential = vault.enrol(agent).unwrap();
    let reader = vault.authenticate(credential.expose()).unwrap();
    let inside = vault.store(OWNER, NewMemory::new(b"in", Level::Working, "project/stvor")).unwrap();
    let outside = vault.store(OWNER, NewMemory::new(b"out", Level::Working, "projects")).unwrap();
    assert_eq!(vault.recall(&reader, inside, "").unwrap().content.expose(), b"in");
    assert_eq!(refusal(vault.recall(&reader, outside, "")), Refusal::NotFound(outside.to_string()));
    let write = vault.store(&reader, NewMemory::new(b"x", Level::Working, "project/stvor"));
    assert_eq!(refusal(write), Refusal::NotAllowed { what: "change memories" });
    assert_eq!(refusal(vault.forget(&reader, inside, "")), Refusal::NotAllowed { what: "change memories" });
    vault.remove_agent("reader").unwrap();
    assert!(matches!(refusal(vault.authenticate(credential.expose())), Refusal::NotAllowed { .. }));
}

#[test]
fn a_corrected_memory_points_to_its_correction_and_leaves_the_index() {
    let world = World::new();
    let vault = world.open();
    let old = vault.store(OWNER, memory("tea at four", Level::Working)).unwrap();
    let new = vault
        .store(OWNER, NewMemory { supersedes: Some(old), ..memory("tea at five", Level::Working) })
        .unwrap();
    assert_eq!(ids(vault.search(OWNER, "home", "tea").unwrap()), [new]);
    let header = vault.recall(OWNER, old, "").unwrap().header;
    assert_eq!((header.state, header.superseded_by), (State::Superseded, Some(new)));
    let again = NewMemory { supersedes: Some(old), ..memory("tea at six", Level::Working) };
    assert!(matches!(vault.store(OWNER, again), Err(VaultError::Invalid(_))));
    assert_eq!(vault.list(OWNER, "home", None).unwrap().0.len(), 2, "the refused store left nothing");
}

#[test]
fn forgetting_a_corrected_memory_names_what_is_left_and_ends_it_when_asked() {
    let world = World::new();
    let vault = world.open();
    let correct = |older, text: &[u8]| vault.store(OWNER, NewMemory::correcting(older, text)).unwrap();
    let first = vault.store(OWNER, memory("Ann lives in Bern", Level::Private)).unwrap();
    let second = correct(first, b"Ann lives in Basel");
    let third = correct(second, b"Ann lives in Chur");
    vault.set_intent(OWNER, first, ("moving", true)).unwrap();
    let reach = |with_earlier| {
        let reach = vault.would_forget(OWNER, third, with_earlier).unwrap();
        let ids = |headers: &[Header]| headers.iter().map(|header| header.id).collect::<Vec<_>>();
        (ids(&reach.forgets), ids(&reach.keeps), reach.next)
    };
    assert_eq!(reach(false), (vec![third], vec![second, first], None));
    assert_eq!(reach(true), (vec![third, second, first], vec![], None));
    let oldest = vault.would_forget(OWNER, third, true).unwrap().forgets.pop().unwrap();
    assert_eq!((oldest.level, oldest.state), (Level::Private, State::Superseded));
    assert_eq!(oldest.intents, ["moving"]);
    assert_eq!(
        vault.recall(OWNER, third, "").unwrap().content.expose(),
        b"Ann lives in Chur",
        "none is gone"
    );
    let left = vault.forget(OWNER, third, "").unwrap();
    assert_eq!((left.earlier, left.ended, left.next), (vec![second, first], vec![], None));
    assert_eq!(refusal(vault.would_forget(OWNER, third, false)), Refusal::Gone("it was ended before"));
    assert_eq!(reach(true), (vec![second, first], vec![], None));
    assert_eq!(vault.recall(OWNER, first, "").unwrap().content.expose(), b"Ann lives in Bern");

    let events = vault.status().unwrap().events;
    let left = vault.forget_with_earlier(OWNER, third, "she asked for it").unwrap();
    assert_eq!((left.earlier, left.ended, left.next), (vec![], vec![second, first], None));
    assert_eq!(vault.status().unwrap().events, events + 2, "an event for each, and none for what was gone");
    for id in [first, second, third] {
        assert_eq!(refusal(vault.recall(OWNER, id, "")), Refusal::Gone("it was forgotten"));
    }
    let again = vault.forget_with_earlier(OWNER, third, "");
    assert_eq!(refusal(again), Refusal::Gone("it was ended before"));
    assert_eq!(refusal(vault.would_forget(OWNER, third, true)), Refusal::Gone("it was ended before"));
    // In one step, over one that was closed for good and one that is gone.
    let versions: Vec<_> = (0..4).fold(Vec::new(), |mut all: Vec<MemoryId>, number| {
        let text = format!("Ann has {number} cats");
        all.push(match all.last() {
            Some(older) => correct(*older, text.as_bytes()),
            None => vault.store(OWNER, memory(&text, Level::Working)).unwrap(),
        });
        all
    });
    vault.tombstone(OWNER, versions[0], "").unwrap();
    vault.forget(OWNER, versions[1], "").unwrap();
    let left = vault.forget_with_earlier(OWNER, versions[3], "").unwrap();
    assert_eq!(left.ended, [versions[2], versions[0]]);
    let (listed, _) = vault.list(OWNER, "home", None).unwrap();
    assert!(listed.iter().all(|header| header.state == State::Forgotten), "{listed:?}");
    assert!(vault.verify().unwrap().problems.is_empty());
}

#[test]
fn an_agent_forgets_earlier_versions_as_far_as_they_are_its_own_and_learns_of_the_others() {
    let world = World::new();
    let vault = world.open();
    let enrol = |ends| {
        let agent = Agent { ends, ..Agent::new("gardener", &["home", "shed"], Level::Private) };
        let credential = vault.enrol(agent).unwrap();
        vault.authenticate(credential.expose()).unwrap()
    };
    let gardener = enrol(Ends::Any);
    let correct = |by: &Caller, older| vault.store(by, NewMemory::correcting(older, b"newer")).unwrap();
    let hidden = vault.store(OWNER, NewMemory::new(b"older", Level::Working, "attic")).unwrap();
    let moved = NewMemory { namespace: Some("home".into()), ..NewMemory::correcting(hidden, b"older") };
    let owners = vault.store(OWNER, moved).unwrap();
    let own = correct(&gardener, owners);
    let newest = correct(&gardener, own);
    vault.remove_agent("gardener").unwrap();
    let gardener = enrol(Ends::Own);
    let reach = vault.would_forget(&gardener, newest, true).unwrap();
    let ids = |headers: Vec<Header>| headers.into_iter().map(|header| header.id).collect::<Vec<_>>();
    assert_eq!((ids(reach.forgets), ids(reach.keeps)), (vec![newest, own], vec![owners]));
    assert!(matches!(refusal(vault.would_forget(&gardener, owners, true)), Refusal::NotAllowed { .. }));
    assert!(matches!(refusal(vault.would_forget(&gardener, hidden, true)), Refusal::NotFound(_)));
    let left = vault.forget_with_earlier(&gardener, newest, "").unwrap();
    assert_eq!((left.ended, left.earlier), (vec![own], vec![owners]), "of the hidden one no word");
    assert_eq!(vault.recall(OWNER, owners, "").unwrap().content.expose(), b"older");
    let again = vault.forget_with_earlier(&gardener, newest, "");
    assert_eq!(refusal(again), Refusal::Gone("it was ended before"));
}

#[test]
fn one_request_destroys_so_many_earlier_versions_and_says_where_to_go_on() {
    let world = World::new();
    let vault = world.open();
    for more in [0, 1] {
        let mut versions = vec![vault.store(OWNER, memory("version", Level::Working)).unwrap()];
        for _ in 0..limits::MAX_EARLIER + more {
            let older = *versions.last().unwrap();
            versions.push(vault.store(OWNER, NewMemory::correcting(older, b"version")).unwrap());
        }
        let reach = vault.would_forget(OWNER, *versions.last().unwrap(), true).unwrap();
        assert_eq!(reach.forgets.len(), limits::MAX_EARLIER + 1);
        assert_eq!(reach.next, (more == 1).then_some(versions[0]));
        let left = vault.forget_with_earlier(OWNER, *versions.last().unwrap(), "").unwrap();
        assert_eq!(left.ended.len(), limits::MAX_EARLIER);
        assert_eq!(left.next, (more == 1).then_some(versions[0]));
        if let Some(next) = left.next {
            let last = vault.forget_with_earlier(OWNER, next, "").unwrap();
            assert_eq!((last.next, last.before), (None, false));
        }
    }
    let (listed, _) = vault.list(OWNER, "home", None).unwrap();
    assert!(listed.iter().all(|header| header.state == State::Forgotten));
}

#[test]
fn versions_that_an_agent_may_not_know_of_take_no_place_among_those_of_one_request() {
    let world = World::new();
    let vault = world.open();
    let agent = Agent { ends: Ends::Any, ..Agent::new("gardener", &["home"], Level::Working) };
    let credential = vault.enrol(agent).unwrap();
    let gardener = vault.authenticate(credential.expose()).unwrap();
    let put = |supersedes, namespace: &str| {
        let version = NewMemory { supersedes, ..NewMemory::new(b"version", Level::Working, namespace) };
        vault.store(OWNER, version).unwrap()
    };
    for below in [false, true] {
        let oldest = below.then(|| put(None, "home"));
        let hidden = (0..3).fold(oldest, |older, _| Some(put(older, "attic")));
        let newest = (0..=limits::MAX_EARLIER).fold(hidden, |older, _| Some(put(older, "home"))).unwrap();
        let reach = vault.would_forget(&gardener, newest, false).unwrap();
        assert_eq!((reach.keeps.len(), reach.next), (limits::MAX_EARLIER, oldest));
        let left = vault.forget_with_earlier(&gardener, newest, "").unwrap();
        assert_eq!((left.ended.len(), left.next), (limits::MAX_EARLIER, oldest));
        // What was gone before is looked at, and the look is refused or logged like any other.
        let events = vault.status().unwrap().events;
        let again = vault.forget_with_earlier(&gardener, newest, "");
        match oldest {
            Some(oldest) => assert_eq!(again.unwrap().ended, [oldest]),
            None => assert_eq!(refusal(again), Refusal::Gone("it was ended before")),
        }
        assert_eq!(vault.status().unwrap().events, events + 1);
    }
}

#[test]
fn in_a_lockdown_nobody_learns_what_is_left_of_a_memory_that_was_forgotten() {
    let world = World::new();
    let vault = world.open();
    let gardener = agent(&vault, "gardener", Level::Working);
    let mut newest = None;
    for _ in 0..limits::MAX_EARLIER + 2 {
        let version = NewMemory { supersedes: newest, ..memory("version", Level::Working) };
        newest = Some(vault.store(OWNER, version).unwrap());
    }
    let newest = newest.unwrap();
    vault.forget(OWNER, newest, "").unwrap();
    let events = vault.status().unwrap().events;
    let left = vault.forget_with_earlier(&gardener, newest, "").unwrap();
    assert_eq!((left.ended.len(), left.earlier.len()), (0, limits::MAX_EARLIER), "they are the owner's");
    assert_eq!(vault.status().unwrap().events, events + 1, "the look is logged");
    vault.enter_lockdown(OWNER, "").unwrap();
    assert_eq!(refusal(vault.forget_with_earlier(&gardener, newest, "")), Refusal::Lockdown);
}

#[test]
fn what_forgetting_would_reach_comes_in_answers_of_some_mebibytes() {
    let world = World::new();
    let vault = world.open();
    let about = |number: usize| (format!("key {number}"), "x".repeat(4_000));
    let large = |older: Option<MemoryId>| NewMemory {
        metadata: (0..limits::MAX_METADATA).map(about).collect(),
        supersedes: older,
        ..memory("version", Level::Working)
    };
    let mut versions = vec![vault.store(OWNER, large(None)).unwrap()];
    while versions.len() * limits::MAX_METADATA * 4_000 < 2 * limits::MAX_PAGE_BYTES {
        versions.push(vault.store(OWNER, large(versions.last().copied())).unwrap());
    }
    let reach = vault.would_forget(OWNER, *versions.last().unwrap(), false).unwrap();
    assert_eq!((reach.forgets.len(), reach.keeps.len()), (1, versions.len() - 1), "those that stay, too");
    assert!(serde_json::to_vec(&reach).unwrap().len() < limits::MAX_PAGE_BYTES * 5 / 4);
    assert_eq!(reach.keeps[0].metadata.len(), limits::MAX_METADATA);
    let last = reach.keeps.last().unwrap();
    assert_eq!((last.id, last.level, last.metadata.len()), (versions[0], Level::Working, 0));
    let (mut asked, mut answers, mut seen) = (versions.last().copied(), 0, Vec::new());
    while let Some(id) = asked {
        let reach = vault.would_forget(OWNER, id, true).unwrap();
        seen.extend(reach.forgets.iter().map(|header| header.id));
        (asked, answers) = (reach.next, answers + 1);
    }
    versions.reverse();
    assert_eq!((seen, answers), (versions, 2));
}

#[test]
fn who_closes_a_corrected_memory_is_told_which_versions_can_still_be_recalled() {
    let world = World::new();
    let vault = world.open();
    let correct = |older| vault.store(OWNER, NewMemory::correcting(older, b"version")).unwrap();
    let first = vault.store(OWNER, memory("version", Level::Working)).unwrap();
    let second = correct(first);
    let third = correct(second);
    let fourth = correct(third);
    vault.tombstone(OWNER, second, "").unwrap();
    let closed = vault.tombstone(OWNER, fourth, "wrong").unwrap();
    assert_eq!((closed.earlier, closed.next), (vec![third, first], None));
    assert_eq!(vault.tombstone(OWNER, third, "").unwrap().earlier, [first]);
    assert_eq!(vault.tombstone(OWNER, first, "").unwrap().earlier, []);
    for id in [first, second, third, fourth] {
        assert_eq!(refusal(vault.recall(OWNER, id, "")), Refusal::Gone("it was tombstoned"));
    }
}

#[test]
fn a_tombstone_is_for_good() {
    let world = World::new();
    let id = {
        let vault = world.open();
        let id = vault.store(OWNER, memory("closed", Level::Working)).unwrap();
        vault.tombstone(OWNER, id, "wrong").unwrap();
        id
    };
    let vault = world.open();
    assert_eq!(refusal(vault.recall(OWNER, id, "")), Refusal::Gone("it was tombstoned"));
    assert_eq!(refusal(vault.tombstone(OWNER, id, "")), Refusal::Gone("it was ended before"));
}

#[test]
fn memories_end_with_their_time() {
    let world = World::new();
    let vault = world.open();
    let day = vault.store(OWNER, memory("a day", Level::Ephemeral)).unwrap();
    let week =
        NewMemory { ttl: Some(Duration::from_secs(7 * 86_400)), ..memory("not a week", Level::Ephemeral) };
    let week = vault.store(OWNER, week).unwrap();
    let hour = NewMemory { ttl: Some(Duration::from_secs(3_600)), ..memory("an hour", Level::Working) };
    let hour = vault.store(OWNER, hour).unwrap();
    world.clock.pass(Duration::from_secs(3_599));
    vault.recall(OWNER, hour, "").unwrap();
    world.clock.pass(Duration::from_secs(1));
    assert_eq!(refusal(vault.recall(OWNER, hour, "")), Refusal::Gone("its time ran out"));
    vault.recall(OWNER, day, "").unwrap();
    world.clock.pass(limits::EPHEMERAL_TTL);
    assert_eq!(refusal(vault.recall(OWNER, day, "")), Refusal::Gone("its time ran out"));
    assert_eq!(refusal(vault.recall(OWNER, week, "")), Refusal::Gone("its time ran out"));
    // The vault also purges by itself, so some may be gone already.
    vault.purge().unwrap();
    assert_eq!(vault.purge().unwrap(), Purged::default());
    assert!(vault.verify().unwrap().problems.is_empty());
}

#[test]
fn what_has_run_out_ends_though_much_that_is_damaged_or_not_over_yet_stands_before_it() {
    let world = World::new();
    let minutes = |minutes: u64| Some(Duration::from_secs(60 * minutes));
    let (damaged, over) = {
        let vault = world.open();
        let damaged =
            vault.store(OWNER, NewMemory { ttl: minutes(5), ..memory("x", Level::Working) }).unwrap();
        // All in one hour, and more of them than are looked at at once.
        let later = || NewMemory { ttl: minutes(50), ..memory("x", Level::Working) };
        let pending: Vec<_> = (0..2 * limits::MAX_GROUP).map(|_| vault.begin_store(OWNER, later())).collect();
        for one in pending {
            one.wait().unwrap();
        }
        let over = vault.store(OWNER, NewMemory { ttl: minutes(5), ..memory("x", Level::Working) }).unwrap();
        (damaged, over)
    };
    let database = rusqlite::Connection::open(world.path().join("vault.db")).unwrap();
    database.execute("UPDATE memory SET header = x'00' WHERE id = ?1", [damaged.as_bytes()]).unwrap();
    drop(database);
    let vault = world.open();
    world.clock.pass(Duration::from_secs(60 * 6));
    let purged = vault.purge().unwrap();
    // The vault also purges by itself.
    assert!(purged.ended <= 1 && purged.left == 1, "{purged:?}");
    let query = LogQuery { operation: Some(Operation::Purge), ..LogQuery::default() };
    let logged: Vec<_> =
        vault.read_log(query).unwrap().entries.iter().map(|entry| entry.event.memory).collect();
    assert_eq!(logged, [Some(over)]);
}

#[test]
fn a_memory_of_level_0_ends_with_the_session_that_stored_it() {
    let world = World::new();
    let gone = Refusal::Gone("its time ran out");
    let lost = {
        let vault = world.open();
        let session = vault.begin_session();
        let store =
            |session, level| vault.begin_store_in(session, OWNER, memory("short", level)).wait().unwrap();
        let (mine, kept) = (store(session, Level::Ephemeral), store(session, Level::Working));
        let owners = store(SessionId::OWNER, Level::Ephemeral);
        vault.recall(OWNER, mine, "").unwrap();
        assert_eq!(vault.end_session(session).unwrap(), 1);
        assert_eq!(refusal(vault.recall(OWNER, mine, "")), gone);
        vault.recall(OWNER, kept, "").unwrap();
        vault.recall(OWNER, owners, "").unwrap();
        vault.lock().unwrap();
        assert_eq!(refusal(vault.recall(OWNER, owners, "")), gone, "the lock ends the owner's session");
        vault.unlock_with(&owner()).unwrap();
        store(vault.begin_session(), Level::Ephemeral)
    };
    let vault = world.open();
    assert_eq!(refusal(vault.recall(OWNER, lost, "")), gone, "a session does not outlive its process");
    assert!(vault.verify().unwrap().problems.is_empty());
}

#[test]
fn intents_are_linked_searched_and_unlinked() {
    let world = World::new();
    let vault = world.open();
    let id = vault
        .store(OWNER, NewMemory { intents: vec!["café".into()], ..memory("x", Level::Working) })
        .unwrap();
    let other = vault.store(OWNER, memory("y", Level::Working)).unwrap();
    vault.set_intent(OWNER, other, ("café", true)).unwrap();
    assert_eq!(vault.by_intent(OWNER, "café").unwrap().len(), 2);
    vault.set_intent(OWNER, id, ("café", false)).unwrap();
    assert_eq!(ids(vault.by_intent(OWNER, "café").unwrap()), [other]);
    assert_eq!(vault.by_intent(OWNER, "caf%").unwrap(), []);
    assert!(vault.verify().unwrap().problems.is_empty());
}

#[test]
fn secrets_are_not_stored_where_agents_read_freely() {
    let world = World::new();
    let vault = world.open();
    let content = "the password is hunter22";
    for level in [Level::Ephemeral, Level::Working, Level::Private] {
        let refused = refusal(vault.store(OWNER, memory(content, level)));
        assert_eq!(refused, Refusal::SecretDetected { kind: "a password" });
    }
    let hidden = |hide: &dyn Fn(&mut NewMemory)| {
        let mut memory = memory("see elsewhere", Level::Working);
        hide(&mut memory);
        assert!(matches!(refusal(vault.store(OWNER, memory)), Refusal::SecretDetected { .. }));
    };
    hidden(&|memory| drop(memory.metadata.insert("note".into(), content.into())));
    hidden(&|memory| drop(memory.metadata.insert(content.into(), "note".into())));
    hidden(&|memory| memory.intents.push(content.into()));
    hidden(&|memory| memory.source = content.into());
    hidden(&|memory| memory.tombstone = Some(content.into()));
    let open = vault.store(OWNER, memory("x", Level::Private)).unwrap();
    let linked = refusal(vault.set_intent(OWNER, open, (content, true)));
    assert_eq!(linked, Refusal::SecretDetected { kind: "a password" });
    // What is there already can be taken away, and where nobody reads freely it may be.
    vault.set_intent(OWNER, open, (content, false)).unwrap();
    let sealed = vault.store(OWNER, memory(content, Level::Sealed)).unwrap();
    vault.set_intent(OWNER, sealed, (content, true)).unwrap();
}

#[test]
fn what_is_too_long_or_too_many_is_refused_and_the_most_is_taken() {
    let world = World::new();
    let vault = world.open();
    let store = |change: &dyn Fn(&mut NewMemory)| {
        let mut new = memory("x", Level::Working);
        change(&mut new);
        vault.store(OWNER, new).is_ok()
    };
    assert!(store(&|new| new.content = vec![b'a'; limits::MAX_CONTENT].into()));
    assert!(!store(&|new| new.content = vec![b'a'; limits::MAX_CONTENT + 1].into()));
    assert!(!store(&|new| new.content = Vec::new().into()));
    assert!(store(&|new| new.namespace = Some("n".repeat(limits::MAX_NAME))));
    assert!(!store(&|new| new.namespace = Some("n".repeat(limits::MAX_NAME + 1))));
    assert!(!store(&|new| new.namespace = Some(String::new())));
    assert!(store(&|new| new.intents = vec!["i".into(); limits::MAX_INTENTS]));
    assert!(!store(&|new| new.intents = vec!["i".into(); limits::MAX_INTENTS + 1]));
    // Who reads a map that begins with one of these takes it for something else.
    for key in ["$serde_json::private::RawValue", "$serde_json::private::Number"] {
        assert!(!store(&|new| new.metadata = [(key.into(), "x".into())].into()));
        assert!(!store(&|new| new.namespace = Some(key.into())));
        assert!(!store(&|new| new.intents = vec![key.into()]));
    }
    let linked = vault.store(OWNER, memory("x", Level::Working)).unwrap();
    for intent in ["", "two\nlines", "$serde_json::x", &"i".repeat(limits::MAX_NAME + 1)] {
        let refused = vault.set_intent(OWNER, linked, (intent, true)).unwrap_err();
        assert!(refused.to_string().contains("an intent has 1 to 256 bytes"), "{intent:?}: {refused}");
        vault.set_intent(OWNER, linked, (intent, false)).unwrap();
    }
    let metadata = |count: usize| (0..count).map(|n| (n.to_string(), String::new())).collect();
    assert!(store(&|new| new.metadata = metadata(limits::MAX_METADATA)));
    assert!(!store(&|new| new.metadata = metadata(limits::MAX_METADATA + 1)));
    assert!(store(&|new| new.cooldown = Some(limits::MAX_COOLDOWN)));
    assert!(!store(&|new| new.cooldown = Some(limits::MAX_COOLDOWN + Duration::from_secs(1))));
    assert!(!store(&|new| new.searchable = vec!["absent".into()]));
    assert!(
        !store(&|new| new.level = None) && !store(&|new| new.namespace = None),
        "it corrects no other one"
    );
}

#[test]
fn eight_callers_at_once_lose_and_double_nothing() {
    let world = World::new();
    let vault = world.open();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let vault = &vault;
            scope.spawn(move || {
                for number in 0..50 {
                    vault.store(OWNER, memory(&format!("{thread} {number}"), Level::Working)).unwrap();
                }
            });
        }
    });
    let (mut all, mut before) = (Vec::new(), None);
    loop {
        let (page, next) = vault.list(OWNER, "home", before.as_deref()).unwrap();
        all.extend(page);
        before = next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(all.len(), 400);
    let report = vault.verify().unwrap();
    assert_eq!((report.memories, report.problems), (400, vec![]));
}

#[test]
fn one_process_has_a_vault_open_and_none_is_made_over_another() {
    let world = World::new();
    let vault = world.cold();
    assert!(matches!(Vault::open(&world.path(), Options::default()), Err(VaultError::Busy(_))));
    drop(vault);
    let owner = owner();
    let keys = stvor_vault::NewKeys { owner: &owner, vaulted: None, origin: "x" };
    assert!(matches!(Vault::create(&world.path(), &keys), Err(VaultError::Exists(_))));
    let nowhere = world.directory.path().join("nowhere");
    assert!(matches!(Vault::open(&nowhere, Options::default()), Err(VaultError::Missing(_))));
}

#[test]
fn a_verification_goes_on_between_what_others_do_and_finds_nothing_wrong_in_it() {
    let world = World::new();
    let vault = world.open();
    let text = |number: usize| NewMemory::new(format!("{number}").as_bytes(), Level::Working, "home");
    // More contents than one step opens.
    let pending: Vec<_> = (0..4_200).map(|number| vault.begin_store(OWNER, text(number))).collect();
    let ids: Vec<_> = pending.into_iter().map(|one| one.wait().unwrap()).collect();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (vault, over) = (&vault, &over);
        scope.spawn(move || {
            for (number, id) in ids.iter().enumerate() {
                if over.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                vault.store(OWNER, text(number)).unwrap();
                vault.set_intent(OWNER, *id, ("tea", true)).unwrap();
                if number % 20 == 0 {
                    vault.forget(OWNER, *id, "").unwrap();
                }
            }
        });
        for _ in 0..2 {
            let before = vault.status().unwrap().events;
            let (pending, progress) = vault.begin_verify(true);
            let report = pending.wait().unwrap();
            assert_eq!((report.problems, report.more_problems), (vec![], 0));
            assert!(report.events >= before && report.memories >= 4_200, "nothing is left out");
            let (done, total) = progress.now();
            assert!(done >= total && total > 0);
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
