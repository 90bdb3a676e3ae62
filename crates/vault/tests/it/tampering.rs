//! Somebody who can write the database, but has no key.

use rusqlite::Connection;
use stvor_base::ErrorCode;
use stvor_vault::{Caller, Level, MemoryId, NewMemory, Report, Vault};

use crate::world::{World, agent, owner, passphrase};

const OWNER: &Caller = &Caller::Owner;

/// A vault with some history, closed.
fn filled() -> (World, Vec<MemoryId>) {
    let world = World::new();
    let vault = world.open();
    let levels = [Level::Working, Level::Private, Level::Working, Level::Private, Level::Sealed];
    let store = |(n, level): (usize, Level)| {
        vault.store(OWNER, NewMemory::new(format!("content {n}").as_bytes(), level, "home")).unwrap()
    };
    let ids: Vec<_> = levels.into_iter().enumerate().map(store).collect();
    for id in &ids[..4] {
        vault.recall(OWNER, *id, "").unwrap();
    }
    vault.tombstone(OWNER, ids[2], "").unwrap();
    assert_eq!(vault.verify().unwrap().problems, []);
    drop(vault);
    (world, ids)
}

fn sql(world: &World, statement: &str) {
    let database = Connection::open(world.path().join("vault.db")).unwrap();
    assert!(database.execute(statement, []).unwrap() > 0, "{statement} changes something");
}

/// What verify says, or the refusal to open, as text.
pub(crate) fn found(world: &World) -> String {
    let vault = world.cold();
    match vault.unlock_with(&owner()) {
        Err(error) => {
            assert!(
                [
                    "VAULT_TAMPERED",
                    "LOG_TAMPERED",
                    "LOG_MISSING",
                    "LOG_FORGED",
                    "LOG_MALFORMED",
                    "LOG_UNTRUSTED"
                ]
                .contains(&error.code()),
                "{error}"
            );
            error.to_string()
        }
        Ok(()) => {
            let Report { problems, .. } = vault.verify().unwrap();
            problems.iter().map(|problem| format!("{}: {}\n", problem.place, problem.reason)).collect()
        }
    }
}

#[test]
fn every_change_of_the_log_is_found_and_its_place_named() {
    let unsigned =
        "the log was changed by somebody else than this vault: it holds events that no checkpoint signs";
    for (statement, place) in [
        ("UPDATE event SET sealed = (SELECT sealed FROM event WHERE seq = 4) WHERE seq = 3", "the event 3"),
        ("UPDATE event SET sealed = zeroblob(100) WHERE seq = 2", "the event 2"),
        ("DELETE FROM event WHERE seq = 5", "the event 5"),
        ("DELETE FROM event WHERE seq = 0", "the event 0"),
        ("DELETE FROM event", "the event 0: its row is gone"),
        ("UPDATE node SET hash = zeroblob(32) WHERE level = 0 AND at = 1", "the hash 1 of level 0"),
        ("UPDATE node SET hash = zeroblob(32) WHERE level = 2 AND at = 0", "the hash 0 of level 2"),
        ("DELETE FROM node WHERE level = 0 AND at = 0", "the hash 0 of level 0"),
        (
            "UPDATE checkpoint SET note = replace(note, 'example.com/vault', 'example.com/other')",
            "the note carries no signature",
        ),
        ("DELETE FROM checkpoint", unsigned),
        ("UPDATE event SET seq = seq + 1000 WHERE seq = 6", unsigned),
        ("UPDATE event SET seq = 9223372036854775807 WHERE seq = 6", unsigned),
    ] {
        let (world, _) = filled();
        sql(&world, statement);
        let said = found(&world);
        assert!(said.contains(place), "{statement}: {said:?}");
    }
}

#[test]
fn a_log_that_is_cut_back_to_an_older_state_is_found_by_the_checkpoints_outside() {
    let world = World::new();
    let database = world.path().join("vault.db");
    let early = {
        let vault = world.open();
        vault.store(OWNER, NewMemory::new(b"early", Level::Working, "home")).unwrap();
        drop(vault);
        std::fs::read(&database).unwrap()
    };
    let vault = world.open();
    vault.store(OWNER, NewMemory::new(b"late", Level::Working, "home")).unwrap();
    drop(vault);
    std::fs::write(&database, early).unwrap();
    let said = found(&world);
    assert!(said.contains("it was cut"), "{said}");
}

#[test]
fn a_memory_whose_row_was_changed_is_not_given_out_and_verify_names_it() {
    for statement in [
        "UPDATE memory SET header = (SELECT header FROM memory WHERE seq = 4) WHERE seq = 2".to_owned(),
        "UPDATE memory SET content = (SELECT content FROM memory WHERE seq = 4) WHERE seq = 2".to_owned(),
        "UPDATE memory SET wrapped = (SELECT wrapped FROM memory WHERE seq = 4) WHERE seq = 2".to_owned(),
        "UPDATE memory SET content = NULL WHERE seq = 2".to_owned(),
        "UPDATE memory SET due = 12 WHERE seq = 2".to_owned(),
        "UPDATE memory SET space = zeroblob(16) WHERE seq = 2".to_owned(),
        "UPDATE memory SET header = zeroblob(300) WHERE seq = 2".to_owned(),
    ] {
        let (world, ids) = filled();
        sql(&world, &statement);
        let vault = world.open();
        assert_eq!(vault.recall(OWNER, ids[1], "").unwrap_err().code(), "VAULT_TAMPERED", "{statement}");
        vault.recall(OWNER, ids[0], "").unwrap();
        drop(vault);
        assert!(found(&world).contains(&ids[1].to_string()), "{statement}");
    }
    // Whole rows in each other's place: each is found under the other's name no more than under its own.
    let (world, ids) = filled();
    let database = Connection::open(world.path().join("vault.db")).unwrap();
    let pair: Vec<Vec<u8>> = [0, 3].map(|n| ids[n].as_bytes().to_vec()).into();
    for (to, from) in [(&[9_u8; 16][..], &pair[0][..]), (&pair[0], &pair[1]), (&pair[1], &[9; 16])] {
        database.execute("UPDATE memory SET id = ?1 WHERE id = ?2", [to, from]).unwrap();
    }
    drop(database);
    let vault = world.open();
    for n in [0, 3] {
        assert_eq!(vault.recall(OWNER, ids[n], "").unwrap_err().code(), "VAULT_TAMPERED");
    }
}

#[test]
fn a_memory_that_was_given_another_number_is_found_by_verify() {
    for (statements, place) in [
        (&["UPDATE memory SET seq = 1000000 WHERE seq = 5"][..], "the numbers of the memories"),
        (&["UPDATE memory SET seq = -3 WHERE seq = 1"], "the numbers of the memories"),
        (&["UPDATE memory SET seq = 1000000 WHERE seq = 2"], "stands in the place of another"),
        (
            &[
                "UPDATE memory SET seq = 9 WHERE seq = 2",
                "UPDATE memory SET seq = 2 WHERE seq = 4",
                "UPDATE memory SET seq = 4 WHERE seq = 9",
            ],
            "stands in the place of another",
        ),
    ] {
        let (world, _) = filled();
        statements.iter().for_each(|statement| sql(&world, statement));
        let said = found(&world);
        assert!(said.contains(place), "{statements:?}: {said}");
        assert!(!said.contains("its row is gone"), "{statements:?}: {said}");
    }
}

#[test]
fn a_row_that_was_removed_or_set_back_is_found_by_verify() {
    let (world, ids) = filled();
    sql(&world, "DELETE FROM memory WHERE seq = 1");
    assert!(found(&world).contains(&format!("the memory {}: its row is gone", ids[0])));

    // The tombstone of a memory is undone by an older copy of its row.
    let world = World::new();
    let vault = world.open();
    let id = vault.store(OWNER, NewMemory::new(b"closed", Level::Working, "home")).unwrap();
    drop(vault);
    let old: Vec<u8> = Connection::open(world.path().join("vault.db"))
        .unwrap()
        .query_row("SELECT header FROM memory", [], |row| row.get(0))
        .unwrap();
    let vault = world.open();
    vault.tombstone(OWNER, id, "").unwrap();
    drop(vault);
    Connection::open(world.path().join("vault.db"))
        .unwrap()
        .execute("UPDATE memory SET header = ?1", [old])
        .unwrap();
    assert!(found(&world).contains("set back"));
    let vault = world.open();
    assert_eq!(vault.recall(OWNER, id, "").unwrap_err().code(), "VAULT_TAMPERED", "nor is it given out");
    assert!(vault.list(OWNER, "home", None).map_or(true, |(found, _)| found.is_empty()), "nor shown");
}

fn connection(world: &World) -> Connection {
    Connection::open(world.path().join("vault.db")).unwrap()
}

/// Everything is refused after an unlock, verification names `what`, and neither work nor a restart ends that.
fn doubted(world: &World, what: &str) -> Vault {
    for _ in 0..2 {
        let vault = world.open();
        assert!(vault.status().unwrap().doubted.contains(&what.to_owned()), "{what}");
        let stored = vault.store(OWNER, NewMemory::new(b"x", Level::Working, "home"));
        assert_eq!(stored.unwrap_err().code(), "VAULT_TAMPERED");
        let problems = vault.verify().unwrap().problems;
        let place = format!("what the vault keeps of {what}");
        assert!(problems.iter().any(|problem| problem.place == place), "{problems:?}");
    }
    world.open()
}

#[test]
fn a_pause_is_not_ended_by_removing_or_turning_its_record() {
    let pause = || NewMemory {
        cooldown: Some(core::time::Duration::from_secs(3_600)),
        ..NewMemory::new(b"slow", Level::Working, "home")
    };
    for statement in ["DELETE FROM recall", "UPDATE recall SET event = 0", "UPDATE recall SET event = -1"] {
        let world = World::new();
        let vault = world.open();
        let id = vault.store(OWNER, pause()).unwrap();
        vault.recall(OWNER, id, "").unwrap();
        drop(vault);
        sql(&world, statement);
        let vault = doubted(&world, "recalls");
        assert_eq!(vault.recall(OWNER, id, "").unwrap_err().code(), "VAULT_TAMPERED", "{statement}");
        // The owner ends the doubt; the pause follows from the log again.
        vault.leave_lockdown(&owner()).unwrap();
        assert_eq!(vault.recall(OWNER, id, "").unwrap_err().code(), "COOLDOWN", "{statement}");
        assert_eq!(vault.verify().unwrap().problems, []);
        drop(vault);
        assert_eq!(found(&world), "");
    }
}

#[test]
fn an_approval_a_removed_agent_and_a_setting_do_not_come_back_by_an_older_row() {
    use crate::world::agent;
    let world = World::new();
    let vault = world.open();
    let caller = agent(&vault, "agent", Level::Sealed);
    let id = vault.store(OWNER, NewMemory::new(b"sealed", Level::Sealed, "home")).unwrap();
    let request = vault.request_approval(&caller, id, "report").unwrap();
    let gone = stvor_vault::Agent::new("gone", &["home"], Level::Working);
    let credential = vault.enrol(gone).unwrap();
    vault.new_codes().unwrap();
    drop(vault);
    let rows = |table: &str| -> Vec<(Vec<u8>, Vec<u8>)> {
        let connection = connection(&world);
        let mut statement = connection.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    };
    let (approvals, agents) = (rows("approval"), rows("agent"));
    let vault = world.open();
    vault.decide_approval(request, None).unwrap();
    vault.remove_agent("gone").unwrap();
    drop(vault);
    assert_eq!(found(&world), "");
    let put = |table: &str, rows: &[(Vec<u8>, Vec<u8>)]| {
        for (key, record) in rows {
            let sql = format!("INSERT OR REPLACE INTO {table} VALUES (?1, ?2)");
            connection(&world).execute(&sql, [key, record]).unwrap();
        }
    };
    put("approval", &approvals);
    put("agent", &agents);
    sql(&world, "DELETE FROM slot WHERE name = 'codes'");
    let vault = doubted(&world, "approvals");
    assert_eq!(vault.status().unwrap().doubted, ["keys and settings", "agents", "approvals"]);
    let granted = vault.decide_approval(request, Some(core::time::Duration::from_secs(60)));
    assert_eq!(granted.unwrap_err().code(), "VAULT_TAMPERED");
    vault.leave_lockdown(&owner()).unwrap();
    assert_eq!((vault.approvals().unwrap(), vault.agents().unwrap()), (vec![], vec![]), "none is left");
    assert_eq!(vault.authenticate(credential.expose()).unwrap_err().code(), "AGENT_NOT_ALLOWED");
    vault.store(OWNER, NewMemory::new(b"x", Level::Working, "home")).unwrap();
    drop(vault);
    assert_eq!(found(&world), "");
}

#[test]
fn what_is_sealed_with_a_checkpoint_serves_no_other_one() {
    let world = World::new();
    let vault = world.open();
    let id = vault.store(OWNER, NewMemory::new(b"tea", Level::Working, "home")).unwrap();
    drop(vault);
    let bound = || -> Vec<u8> {
        connection(&world).query_row("SELECT bound FROM checkpoint", [], |row| row.get(0)).unwrap()
    };
    let old = bound();
    drop(world.open());
    let new = bound();
    for other in [&old[..], b""] {
        connection(&world).execute("UPDATE checkpoint SET bound = ?1", [other]).unwrap();
        doubted(&world, "approvals").leave_lockdown(&owner()).unwrap();
        assert_eq!(world.open().recall(OWNER, id, "").unwrap().content.expose(), b"tea");
        assert_eq!(found(&world), "");
    }
    connection(&world).execute("UPDATE checkpoint SET bound = ?1", [new]).unwrap();
    doubted(&world, "approvals");
}

#[test]
fn a_vault_of_the_form_before_is_refused_with_a_code() {
    let world = World::new();
    connection(&world).execute_batch("PRAGMA user_version = 1").unwrap();
    assert_eq!(Vault::open(&world.path(), world.options()).unwrap_err().code(), "VAULT_TOO_OLD");
}

#[test]
fn a_lockdown_is_not_ended_by_removing_or_setting_back_its_record() {
    let world = World::new();
    let database = world.path().join("vault.db");
    let record = || -> Vec<u8> {
        let connection = Connection::open(&database).unwrap();
        connection.query_row("SELECT record FROM slot WHERE name = 'lockdown'", [], |row| row.get(0)).unwrap()
    };
    let before = record();
    let vault = world.open();
    vault.enter_lockdown(OWNER, "stop").unwrap();
    drop(vault);
    let during = record();
    sql(&world, "DELETE FROM slot WHERE name = 'lockdown'");
    let vault = world.open();
    let refused = vault.store(OWNER, NewMemory::new(b"x", Level::Working, "home")).unwrap_err();
    assert_eq!(refused.code(), "VAULT_TAMPERED");
    drop(vault);
    let put = |record: &[u8]| {
        let connection = Connection::open(&database).unwrap();
        connection.execute("INSERT OR REPLACE INTO slot VALUES ('lockdown', ?1)", [record]).unwrap();
    };
    put(&before);
    assert!(found(&world).contains("the record of the lockdown"), "set back");
    put(&during);
    assert_eq!(found(&world), "");
}

#[test]
fn every_event_is_proved_to_somebody_who_has_only_the_verifier_key() {
    let (world, _) = filled();
    let vault = world.open();
    let status = vault.status().unwrap();
    let trusted = [stvor_tlog::Verifier::parse(&status.verifier).unwrap()];
    assert!(status.events > 10);
    for index in 0..status.events {
        let (event, proof) = vault.prove(index).unwrap();
        let proof = stvor_tlog::ProofFile::parse(proof.to_string().as_bytes()).unwrap();
        proof.verify(&event, "example.com/vault", &trusted).unwrap();
        let mut changed = event.clone();
        changed[10] ^= 1;
        assert!(proof.verify(&changed, "example.com/vault", &trusted).is_err());
    }
    assert!(vault.prove(status.events).is_err());
}

#[test]
fn a_changed_key_record_opens_nothing() {
    for name in ["signer", "verbs", "level-2/public", "origin", "signer/retired"] {
        let (world, _) = filled();
        sql(&world, &format!("UPDATE slot SET record = zeroblob(60) WHERE name = '{name}'"));
        let vault: Vault = world.cold();
        assert_eq!(vault.unlock_with(&owner()).unwrap_err().code(), "VAULT_TAMPERED", "{name}");
    }
}

#[test]
fn a_changed_signing_key_continues_the_log_and_the_old_checkpoints_stay_valid() {
    let (world, _) = filled();
    let vault = world.open();
    let old = stvor_tlog::Verifier::parse(&vault.status().unwrap().verifier).unwrap();
    vault.rotate_signing_key().unwrap();
    let handover = vault.prove(0).unwrap().1;
    vault.store(OWNER, NewMemory::new(b"after", Level::Working, "home")).unwrap();
    let status = vault.status().unwrap();
    let new = stvor_tlog::Verifier::parse(&status.verifier).unwrap();
    assert!(new != old && status.retired == [old.to_string()]);
    let (event, after) = vault.prove(0).unwrap();
    for trusted in [&old, &new] {
        handover.verify(&event, "example.com/vault", std::slice::from_ref(trusted)).unwrap();
    }
    assert!(
        after.verify(&event, "example.com/vault", std::slice::from_ref(&old)).is_err(),
        "the old key signs no more"
    );
    after.verify(&event, "example.com/vault", &[new]).unwrap();
    drop(vault);
    assert_eq!(found(&world), "");
    world.open().rotate_signing_key().unwrap();
    assert_eq!(found(&world), "");
}

#[test]
fn verifying_contents_opens_those_whose_keys_are_held() {
    let (world, ids) = filled();
    let vault = world.open();
    let report = vault.verify_content().unwrap();
    assert_eq!((report.memories, report.problems), (5, vec![]), "levels 1 to 3, the tombstone too");
    vault.lock().unwrap();
    assert_eq!(vault.verify_content().unwrap().memories, 2);
    drop(vault);
    sql(&world, "UPDATE memory SET content = zeroblob(length(content)) WHERE seq = 4");
    let vault = world.open();
    let problems = vault.verify_content().unwrap().problems;
    assert_eq!(problems.len(), 1);
    assert!(problems[0].place.contains(&ids[3].to_string()));
}

#[test]
fn a_change_of_what_is_known_of_a_memory_makes_no_damaged_content_sound() {
    for damage in [
        "UPDATE memory SET content = zeroblob(length(content)) WHERE seq = 2",
        "UPDATE memory SET wrapped = zeroblob(length(wrapped)) WHERE seq = 2",
        "UPDATE memory SET content = (SELECT content FROM memory WHERE seq = 4) WHERE seq = 2",
        "UPDATE memory SET content = NULL WHERE seq = 2",
    ] {
        let (world, ids) = filled();
        sql(&world, damage);
        let vault = world.open();
        let corrected =
            NewMemory { supersedes: Some(ids[1]), ..NewMemory::new(b"corrected", Level::Private, "home") };
        for refused in [
            vault.set_intent(OWNER, ids[1], ("travel", true)),
            vault.tombstone(OWNER, ids[1], "").map(drop),
            vault.store(OWNER, corrected).map(|_| ()),
        ] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.code(), "VAULT_TAMPERED", "{damage}");
            assert!(refused.to_string().contains("forget it, or restore"), "{refused}");
        }
        let problems = vault.verify().unwrap().problems;
        assert_eq!(problems.len(), 1, "{damage}: {problems:?}");
        assert!(problems[0].place.contains(&ids[1].to_string()), "{damage}");
        // Others are changed as ever, and the damaged one can be ended: then nothing of it is left to be wrong.
        vault.set_intent(OWNER, ids[0], ("travel", true)).unwrap();
        vault.forget(OWNER, ids[1], "").unwrap();
        assert_eq!(vault.verify().unwrap().problems, [], "{damage}");
    }
}

#[test]
fn a_schema_that_is_not_the_vaults_is_refused() {
    for statement in [
        "CREATE TABLE extra (x)",
        "CREATE VIEW extra AS SELECT 1",
        "CREATE TRIGGER extra AFTER INSERT ON event BEGIN DELETE FROM memory; END",
        "CREATE INDEX extra ON event (sealed)",
        "CREATE VIRTUAL TABLE extra USING fts5(x)",
        "ALTER TABLE memory ADD COLUMN extra BLOB AS (zeroblob(1000000000))",
        "DROP INDEX memory_due",
    ] {
        let (world, _) = filled();
        Connection::open(world.path().join("vault.db")).unwrap().execute_batch(statement).unwrap();
        let refused = Vault::open(&world.path(), world.options()).unwrap_err();
        assert_eq!(refused.code(), "VAULT_TAMPERED", "{statement}");
        assert!(refused.to_string().contains("schema"), "{statement}: {refused}");
    }
    let (world, _) = filled();
    for (version, code) in [(0, "VAULT_TOO_OLD"), (1_000, "VAULT_TOO_NEW")] {
        let database = Connection::open(world.path().join("vault.db")).unwrap();
        database.pragma_update(None, "user_version", version).unwrap();
        drop(database);
        assert_eq!(Vault::open(&world.path(), world.options()).unwrap_err().code(), code);
    }
}

#[test]
fn a_damaged_key_record_closes_its_own_level_only() {
    let (world, ids) = filled();
    sql(&world, "UPDATE slot SET record = zeroblob(60) WHERE name = 'level-2/private'");
    let vault = world.open();
    vault.leave_lockdown(&owner()).unwrap();
    assert_eq!(vault.recall(OWNER, ids[1], "").unwrap_err().code(), "VAULT_LOCKED");
    vault.recall(OWNER, ids[0], "").unwrap();
    assert!(
        vault.recall(OWNER, ids[4], "").is_err_and(|error| error.code() != "VAULT_LOCKED"),
        "level 3 is open"
    );
    drop(vault);
    assert!(found(&world).contains("the key record of level 2"));
}

#[test]
fn one_damaged_row_keeps_nobody_from_the_others() {
    for statement in [
        "UPDATE memory SET header = zeroblob(300) WHERE seq = 2",
        "UPDATE memory SET content = zeroblob(50) WHERE seq = 2",
        "UPDATE memory SET id = zeroblob(3) WHERE seq = 2",
        "UPDATE event SET sealed = zeroblob(100) WHERE seq = (SELECT max(seq) FROM event)",
        "DELETE FROM event WHERE seq = 3",
    ] {
        let (world, ids) = filled();
        sql(&world, statement);
        let vault = world.open();
        let touched = usize::from(statement.contains("memory"));
        let listed = vault.list(OWNER, "home", None).unwrap().0;
        assert!(listed.len() >= 5 - touched, "{statement}");
        let hits = vault.search(OWNER, "home", "content").unwrap();
        assert_eq!(hits.len(), 3 - touched, "{statement}: {hits:?}");
        let (all, next) = vault.export(0).unwrap();
        assert_eq!(next, None);
        let readable: Vec<_> = all.iter().filter(|one| one.content.is_ok()).map(|one| one.id).collect();
        let expected = [ids[0], ids[1], ids[3]];
        let expected = expected.into_iter().filter(|id| touched == 0 || *id != ids[1]);
        assert_eq!(readable, expected.collect::<Vec<_>>(), "{statement}");
        assert!(vault.read_log(Default::default()).unwrap().entries.len() > 5, "{statement}");
        assert!(!vault.verify().unwrap().problems.is_empty(), "{statement}");
        vault.store(OWNER, NewMemory::new(b"life goes on", Level::Working, "home")).unwrap();
    }
}

#[test]
fn damaged_records_of_approvals_and_agents_concern_nobody_else() {
    let world = World::new();
    let vault = world.open();
    let caller = agent(&vault, "helper", Level::Sealed);
    agent(&vault, "other", Level::Working);
    let id = vault.store(OWNER, NewMemory::new(b"sealed", Level::Sealed, "home")).unwrap();
    let open = vault.store(OWNER, NewMemory::new(b"open", Level::Working, "home")).unwrap();
    vault.request_approval(&caller, id, "the first").unwrap();
    drop(vault);
    sql(&world, "UPDATE approval SET record = zeroblob(60)");
    sql(&world, "UPDATE agent SET record = zeroblob(60)");
    let vault = world.open();
    assert_eq!(vault.recall(&caller, open, "").unwrap_err().code(), "VAULT_TAMPERED");
    // The owner goes on: damaged records are gone, and what they were of can be made anew.
    vault.leave_lockdown(&owner()).unwrap();
    vault.recall(OWNER, open, "").unwrap();
    assert!(vault.agents().unwrap().is_empty() && vault.approvals().unwrap().is_empty());
    let caller = agent(&vault, "helper", Level::Sealed);
    let request = vault.request_approval(&caller, id, "the second").unwrap();
    let waiting: Vec<_> = vault.approvals().unwrap().into_iter().map(|approval| approval.id).collect();
    assert_eq!(waiting, [request]);
    vault.decide_approval(request, None).unwrap();
    agent(&vault, "new", Level::Working);
    vault.remove_agent("new").unwrap();
}

#[test]
fn a_record_of_the_lockdown_that_is_gone_stops_everything_until_the_owner_writes_it_anew() {
    for statement in [
        "DELETE FROM slot WHERE name = 'lockdown'",
        "UPDATE slot SET record = zeroblob(40) WHERE name = 'lockdown'",
    ] {
        let (world, ids) = filled();
        sql(&world, statement);
        let vault = world.open();
        assert_eq!(vault.recall(OWNER, ids[0], "").unwrap_err().code(), "VAULT_TAMPERED");
        let shown = vault.status().unwrap().lockdown.unwrap();
        assert!(shown.reason.contains("somebody changed the database"), "{}", shown.reason);
        assert_eq!(vault.leave_lockdown(&passphrase("wrong")).unwrap_err().code(), "WRONG_KEY");
        vault.leave_lockdown(&owner()).unwrap();
        vault.recall(OWNER, ids[0], "").unwrap();
        assert_eq!(vault.status().unwrap().lockdown, None);
        let newest = vault.read_log(Default::default()).unwrap().entries;
        let said: Vec<_> = newest.iter().filter_map(|entry| entry.said.as_deref()).collect();
        assert!(said.iter().any(|said| said.contains("keys and settings")), "the log says so: {said:?}");
        assert_eq!(vault.verify().unwrap().problems, []);
    }
}

#[test]
fn what_is_left_of_a_vault_that_does_not_open_is_read_with_the_owners_secret() {
    use stvor_vault::salvage::{SalvageKeys, salvage};
    let read = |world: &World, secret: &str, unlogged: bool| {
        let (mut found, owner) = (Vec::new(), passphrase(secret));
        let keys = SalvageKeys { unlogged, ..SalvageKeys::new(&owner) };
        let salvaged = salvage(&world.path(), &keys, |memory| {
            let content = memory.content.as_ref().map(|content| content.expose().to_vec());
            found.push((memory.id, content.map_err(|code| (*code).to_owned())));
        });
        salvaged.map(|salvaged| (salvaged, found))
    };
    let texts = |world: &World, secret: &str| read(world, secret, false);
    let (sound, _) = filled();
    let refused = texts(&sound, "correct horse").unwrap_err();
    assert_eq!(refused.code(), "VAULT_BAD_REQUEST", "a vault that opens logs its recalls");
    for damage in [
        "UPDATE node SET hash = zeroblob(32) WHERE level > 1",
        "DELETE FROM node WHERE level > 1",
        "DELETE FROM checkpoint",
        "UPDATE checkpoint SET note = 'torn'",
    ] {
        let (world, ids) = filled();
        sql(&world, damage);
        sql(&world, "UPDATE memory SET content = zeroblob(30) WHERE seq = 4");
        assert!(world.cold().unlock_with(&owner()).is_err(), "{damage}");
        assert_eq!(texts(&world, "wrong").unwrap_err().code(), "WRONG_KEY");
        let before = std::fs::read(world.path().join("vault.db")).unwrap();
        let (salvaged, found) = texts(&world, "correct horse").unwrap();
        assert_eq!((salvaged.memories, salvaged.with_content), (5, 2), "{damage}: {}", salvaged.wrong);
        let refused = |code: &str| Err(code.to_owned());
        let expected = [
            (ids[0], Ok(b"content 0".to_vec())),
            (ids[1], Ok(b"content 1".to_vec())),
            (ids[2], refused("MEMORY_GONE")),
            (ids[3], refused("VAULT_TAMPERED")),
            (ids[4], refused("VAULT_LOG_UNAVAILABLE")),
        ];
        assert_eq!(found, expected, "{damage}");
        // Who wants what nothing logs says so.
        let (salvaged, found) = read(&world, "correct horse", true).unwrap();
        assert_eq!((salvaged.with_content, &found[4]), (3, &(ids[4], Ok(b"content 4".to_vec()))), "{damage}");
        assert_eq!(std::fs::read(world.path().join("vault.db")).unwrap(), before, "nothing is written");
    }
}
