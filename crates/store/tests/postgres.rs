//! Settings of a PostgreSQL server that are not the store's to choose.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
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

/// As a pooler that gives each transaction another session: what is set in one is forgotten after each. Gives its port.
fn forgetful_pooler(server: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let behind = TcpStream::connect(("127.0.0.1", server)).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), behind.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            std::thread::spawn(move || forget_after_each(client, behind));
        }
    });
    port
}

/// Hands the server's answers on, each one as a whole: before the client is told that a transaction is over the session is reset, and
/// before it has any of the answer, for it does not wait for the end of each.
fn forget_after_each(mut client: TcpStream, mut server: TcpStream) -> std::io::Result<()> {
    let query = b"RESET synchronous_commit\0";
    let length = u32::try_from(4 + query.len()).unwrap();
    let reset = [b"Q".as_slice(), &length.to_be_bytes(), query].concat();
    loop {
        let (answer, idle) = answer_of(&mut server)?;
        if idle {
            server.write_all(&reset)?;
            answer_of(&mut server)?;
        }
        client.write_all(&answer)?;
    }
}

/// What the server says until it is ready for more, and whether no transaction is under way then.
fn answer_of(server: &mut TcpStream) -> std::io::Result<(Vec<u8>, bool)> {
    let mut answer = Vec::new();
    loop {
        let mut message = vec![0; 5];
        server.read_exact(&mut message)?;
        let length = u32::from_be_bytes(message[1..].try_into().unwrap());
        message.resize(1 + usize::try_from(length).unwrap(), 0);
        server.read_exact(&mut message[5..])?;
        answer.extend_from_slice(&message);
        if message[0] == b'Z' {
            return Ok((answer, message[5] == b'I'));
        }
    }
}

#[tokio::test]
async fn a_default_that_commits_without_the_disk_is_raised_and_found_where_a_pooler_forgets_that() {
    let Some(server) = Postgres::start().unwrap() else { return };
    let database = server.database().unwrap();
    let pooled = server.url_at(forgetful_pooler(server.port()), &database.name);
    let codes = async |url: &str| -> Vec<&'static str> {
        let found = PostgresStores::new(url).unwrap().findings().await.unwrap();
        found.iter().map(|finding| finding.code).collect()
    };
    assert!(codes(&pooled).await.is_empty());
    for (of, weak) in [(format!("DATABASE {}", database.name), "off"), ("ROLE stvor".to_owned(), "local")] {
        let asked = format!("{}&options=-csynchronous_commit%3D{weak}", database.url);
        assert!(codes(&asked).await.is_empty());
        server.sql("postgres", &format!("ALTER {of} SET synchronous_commit = {weak}")).unwrap();
        assert!(codes(&database.url).await.is_empty());
        assert_eq!(codes(&pooled).await, ["postgres_synchronous_commit"]);
    }
    server.sql("postgres", "ALTER ROLE stvor SET synchronous_commit = on").unwrap();
    assert!(codes(&pooled).await.is_empty());
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
