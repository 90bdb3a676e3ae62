//! Settings of a PostgreSQL server that are not the store's to choose.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::sync::Arc;
use stvor_base::ErrorCode as _;
use stvor_store::{
    ChangeSet, Key, Op, PostgresStores, RowValue, RowVersion, ServerOptions, Store, StorePlace,
    StoreProvider as _, Table,
};
use stvor_testkit::Postgres;
use stvor_testkit::servers::Database;

async fn open(database: &Database) -> Arc<dyn Store> {
    let place = StorePlace::new("wss://relay.example:443", "app", "bob");
    PostgresStores::new(&database.url).unwrap().open(&place).await.unwrap()
}

fn row(number: u64) -> ChangeSet<RowValue> {
    let value = RowValue { bytes: vec![7; 50], version: RowVersion(number) };
    [Op::put(Key::new(Table::Custom, *b"rows", number.to_be_bytes()), value)].into_iter().collect()
}

/// Has every commit do this.
fn in_each_commit(server: &Postgres, database: &Database, what: &str) {
    let trigger = format!(
        "CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {what}; RETURN NEW; END $$;
         CREATE TRIGGER seen BEFORE INSERT OR UPDATE ON stvor_rows FOR EACH ROW EXECUTE FUNCTION seen();"
    );
    server.sql(&database.name, &trigger).unwrap();
}

#[tokio::test]
async fn a_role_that_is_given_little_time_for_a_statement_has_as_much_as_it_needs_here() {
    let Some(server) = Postgres::start().unwrap() else { return };
    let database = server.database().unwrap();
    let store = open(&database).await;
    store.commit(row(1)).await.unwrap();
    store.close().await.unwrap();
    server
        .sql(&database.name, &format!("ALTER DATABASE {} SET statement_timeout = 20", database.name))
        .unwrap();
    in_each_commit(&server, &database, "PERFORM pg_sleep(0.2)");
    let store = open(&database).await;
    store.commit(row(2)).await.unwrap();
}

/// As behind a pooler that gives each transaction another session.
#[tokio::test]
async fn a_commit_is_synchronous_where_the_session_forgot_that_it_was_asked_for_it() {
    let Some(server) = Postgres::start_with(&["synchronous_commit=off"]).unwrap() else { return };
    let database = server.database().unwrap();
    let store = open(&database).await;
    store.commit(row(1)).await.unwrap();
    server.sql(&database.name, "CREATE TABLE seen (number serial, setting text)").unwrap();
    in_each_commit(
        &server,
        &database,
        "INSERT INTO seen (setting) VALUES (current_setting('synchronous_commit'));
         PERFORM set_config('synchronous_commit', 'off', false)",
    );
    for number in 2..5 {
        store.commit(row(number)).await.unwrap();
    }
    let seen = server.sql(&database.name, "SELECT setting FROM seen ORDER BY number").unwrap();
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["on"; 3]);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_password_file_is_read_again_when_the_password_of_the_role_changes() {
    // The role needs its password; the test's own needs none.
    let hba = "host all bot 127.0.0.1/32 scram-sha-256\nhost all stvor 127.0.0.1/32 trust\n";
    let Some(server) = Postgres::start_with_files(&[], &[("pg_hba.conf", hba)]).unwrap() else { return };
    let database = server.database().unwrap();
    let role =
        format!("CREATE ROLE bot LOGIN PASSWORD 'first'; ALTER DATABASE {} OWNER TO bot", database.name);
    server.sql("postgres", &role).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "first\n").unwrap();
    let url = database.url.replace("stvor@", "bot@");
    let stores = || PostgresStores::with_options(&url, ServerOptions::new().password_file(&file)).unwrap();
    let place = StorePlace::new("wss://relay.example:443", "app", "bob");
    let store = stores().open(&place).await.unwrap();
    store.commit(row(1)).await.unwrap();

    std::fs::write(&file, "second\n").unwrap();
    server.sql("postgres", "ALTER ROLE bot PASSWORD 'second'").unwrap();
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'bot'";
    assert_ne!(server.sql("postgres", end).unwrap().trim(), "0");
    store.commit(row(2)).await.unwrap();
    assert_eq!(store.stats().await.unwrap().rows, 2);

    std::fs::write(&file, "wrong\n").unwrap();
    let refused = stores().open(&place).await.unwrap_err();
    assert_eq!(refused.code(), "STORE_UNREACHABLE");
    assert!(!refused.to_string().contains("wrong") && !format!("{:?}", stores()).contains("wrong"));
}
