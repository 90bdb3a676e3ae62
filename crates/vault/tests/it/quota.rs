//! How much an agent may store.

use stvor_base::ErrorCode;
use stvor_vault::{Agent, Caller, Level, MemoryId, NewMemory, Refusal, Vault, VaultError};

use crate::world::{World, owner, refusal};

fn enrol(vault: &Vault, name: &str, quota: Option<u64>) -> Caller {
    let agent = Agent { quota, ..Agent::new(name, &["home"], Level::Sealed) };
    vault.authenticate(vault.enrol(agent).unwrap().expose()).unwrap()
}

fn store(vault: &Vault, caller: &Caller) -> Result<MemoryId, VaultError> {
    vault.store(caller, NewMemory::new(&[b'x'; 500], Level::Working, "home"))
}

fn used(vault: &Vault, name: &str) -> u64 {
    vault.usage().unwrap().get(name).copied().unwrap_or_default()
}

#[test]
fn an_agent_stores_to_the_last_byte_of_what_it_may_and_not_one_more() {
    let world = World::new();
    let vault = world.open();
    let first = enrol(&vault, "one", None);
    store(&vault, &first).unwrap();
    // Names and contents are of one length, and so are the rows.
    let each = used(&vault, "one");
    assert!(each > 500);
    let (exact, short) = (enrol(&vault, "two", Some(2 * each)), enrol(&vault, "six", Some(2 * each - 1)));
    store(&vault, &exact).unwrap();
    store(&vault, &exact).unwrap();
    assert_eq!(used(&vault, "two"), 2 * each);
    store(&vault, &short).unwrap();
    let refused = refusal(store(&vault, &short));
    assert_eq!(refused, Refusal::Quota { used: each, needed: each, most: 2 * each - 1 });
    assert_eq!(
        (refused.code(), used(&vault, "six")),
        ("AGENT_QUOTA", each),
        "what was refused is not counted"
    );
    // The owner has no such bound, and is not counted.
    store(&vault, &Caller::Owner).unwrap();
    assert_eq!(vault.usage().unwrap().len(), 3);
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn what_an_agent_links_to_its_memories_counts_among_what_it_may_store() {
    let world = World::new();
    let vault = world.open();
    let first = enrol(&vault, "one", None);
    store(&vault, &first).unwrap();
    let each = used(&vault, "one");
    let full = enrol(&vault, "two", Some(each));
    let id = store(&vault, &full).unwrap();
    let refused = refusal(vault.set_intent(&full, id, ("travel", true)));
    assert_eq!((refused.code(), used(&vault, "two")), ("AGENT_QUOTA", each));
    assert_eq!(vault.by_intent(&full, "travel").unwrap(), [], "nothing is left of it");
    // The owner may, and to unlink takes no room.
    vault.set_intent(&Caller::Owner, id, ("travel", true)).unwrap();
    assert!(used(&vault, "two") > each);
    vault.set_intent(&full, id, ("travel", false)).unwrap();
    assert_eq!(used(&vault, "two"), each);
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn what_is_forgotten_makes_room_and_what_is_used_outlives_restarts_and_the_agent() {
    let world = World::new();
    let vault = world.open();
    let each = {
        let first = enrol(&vault, "one", None);
        store(&vault, &first).unwrap();
        used(&vault, "one")
    };
    let caller = enrol(&vault, "two", Some(2 * each));
    let id = store(&vault, &caller).unwrap();
    store(&vault, &caller).unwrap();
    drop(vault);
    let vault = world.open();
    assert_eq!(refusal(store(&vault, &caller)).code(), "AGENT_QUOTA");
    vault.forget(&caller, id, "").unwrap();
    let left = used(&vault, "two");
    assert!(left > each && left < 2 * each - 500, "the header is kept for the record: {left}");
    // A smaller one has room now.
    vault.store(&caller, NewMemory::new(b"x", Level::Working, "home")).unwrap();
    vault.remove_agent("two").unwrap();
    let again = enrol(&vault, "two", Some(2 * each));
    assert_eq!(refusal(store(&vault, &again)).code(), "AGENT_QUOTA", "a new agent of the name inherits it");
}

#[test]
fn a_vault_that_did_not_count_counts_what_is_there() {
    let world = World::new();
    let vault = world.open();
    let caller = enrol(&vault, "one", None);
    store(&vault, &caller).unwrap();
    let id = store(&vault, &caller).unwrap();
    vault.set_intent(&caller, id, ("travel", true)).unwrap();
    let before = vault.usage().unwrap();
    drop(vault);
    rusqlite::Connection::open(world.path().join("vault.db"))
        .unwrap()
        .execute("DELETE FROM slot WHERE name = 'usage'", [])
        .unwrap();
    let vault = world.open();
    vault.leave_lockdown(&owner()).unwrap();
    assert_eq!(vault.usage().unwrap(), before);
}
