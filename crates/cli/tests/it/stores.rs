//! Stores on servers, from the command line.

use stvor_testkit::process::Finished;
use stvor_testkit::{Postgres, Redis, RedisSettings, Stream};

use crate::common::{Home, SOON, finished, mock_relay, objects};

/// A password that must be nowhere.
const CANARY: &str = "canary";

fn checks(doctor: &Finished, name: &str) -> Vec<serde_json::Value> {
    let lines: Vec<String> = doctor.out.lines().map(ToOwned::to_owned).collect();
    objects(&lines).into_iter().filter(|check| check["name"] == name).collect()
}

fn found(checks: &[serde_json::Value]) -> String {
    checks.iter().map(|check| check["found"].as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

/// An identity is made in a store on a server, and the doctor says what he finds there before and after.
fn is_used_and_examined(url: &str, settings: &[&str]) {
    let (_relay, relay) = mock_relay();
    let home = Home::at(&relay);
    let run = |line: &str| home.stvor(line.split(' ')).env("STVOR_STORE", url).run(SOON).unwrap();
    let before = run("doctor --json --as bob");
    assert_eq!(before.status.code(), Some(0), "{}", before.out);
    assert!(found(&checks(&before, "user")).contains("no store there yet"), "{}", before.out);
    let made = run("identity show --as bob");
    assert_eq!(made.status.code(), Some(0), "{}", made.err);
    let after = run("doctor --json --as bob");
    assert_eq!(after.status.code(), Some(0), "{}", after.out);
    let store = found(&checks(&after, "store"));
    for setting in settings {
        let stands = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(setting);
        assert!(store.lines().any(stands), "{setting} in {store}");
    }
    let user = found(&checks(&after, "user"));
    assert!(user.contains("opens with a keyfile, 0 rotations") && user.contains("the store opens"), "{user}");
    let other = home
        .stvor(["doctor", "--json", "--as", "bob"])
        .env("STVOR_STORE", url)
        .env("STVOR_DATA", home.path("elsewhere"))
        .run(SOON)
        .unwrap();
    assert_ne!(other.status.code(), Some(0), "another key does not open it: {}", other.out);
}

#[test]
fn a_store_in_postgres_is_used_and_examined() {
    let Some(server) = Postgres::start().unwrap() else { return };
    let url = server.database().unwrap().url;
    is_used_and_examined(
        &url,
        &["kind postgres", "server_version", "fsync on", "synchronous_commit on", "schema 1"],
    );
}

#[test]
fn a_store_in_redis_is_used_and_examined() {
    let Some(server) = Redis::start().unwrap() else { return };
    is_used_and_examined(&server.url(), &["kind redis", "server_version", "appendfsync always", "masters 1"]);
}

/// Processes that make a store at the same time, with these settings. What those say who are not refused, and what one says
/// who looks later.
fn racing(settings: &[(&'static str, String)]) -> (Vec<String>, String) {
    let (_relay, relay) = mock_relay();
    let home = Home::at(&relay);
    let start = || {
        let mut spawn = home.stvor("identity show --as bob --json".split(' '));
        for (name, value) in settings {
            spawn = spawn.env(name, value);
        }
        spawn.start().unwrap()
    };
    let shown = |lines: &[String]| objects(lines)[0]["fingerprint"].as_str().unwrap().to_owned();
    let processes: Vec<_> = (0..4).map(|_| start()).collect();
    let mut seen = Vec::new();
    for process in &processes {
        if finished(process) == Some(0) {
            seen.push(shown(&process.lines(Stream::Out)));
        } else {
            let said = process.lines(Stream::Err).join("\n");
            assert!(said.contains("STORE_LOCKED"), "{said}");
        }
    }
    let later = start();
    assert_eq!(finished(&later), Some(0), "{:?}", later.lines(Stream::Err));
    (seen, shown(&later.lines(Stream::Out)))
}

#[test]
fn processes_that_start_for_the_first_time_at_once_end_with_one_identity() {
    let (seen, later) = racing(&[]);
    assert!(!seen.is_empty() && seen.iter().all(|one| *one == later), "SQLite: {seen:?}, {later}");
    let (postgres, redis) = (Postgres::start().unwrap(), Redis::start().unwrap());
    let database = postgres.as_ref().map(|server| server.database().unwrap().url);
    for url in [database, redis.as_ref().map(Redis::url)].into_iter().flatten() {
        let directory = stvor_testkit::temp_dir().unwrap();
        // The keyfile is made by one of them, too.
        let keyfile = directory.path().join("key").display().to_string();
        let (seen, later) = racing(&[("STVOR_STORE", url.clone()), ("STVOR_KEYFILE", keyfile)]);
        assert_eq!(seen, vec![later; 4], "{url}: all of them are one device");
    }
}

#[test]
fn settings_that_a_redis_does_not_tell_are_vouched_for_by_name() {
    let forbids = ["--rename-command", "CONFIG", "hidden"].map(str::to_owned).to_vec();
    let Some(server) = Redis::start_with(RedisSettings { arguments: forbids, tls_only: false }).unwrap()
    else {
        return;
    };
    let home = Home::at("ws://127.0.0.1:1");
    let doctor = |assured: &str| {
        let doctor = home
            .stvor(["doctor", "--json"])
            .env("STVOR_STORE", server.url())
            .env("STVOR_STORE_ASSURED_SETTINGS", assured)
            .run(SOON)
            .unwrap();
        doctor.out
    };
    let sound =
        "appendonly yes, appendfsync always, no-appendfsync-on-rewrite no, maxmemory-policy noeviction";
    let listed = doctor(sound);
    assert!(
        listed.contains("nothing but your word stands for them") && listed.contains("appendfsync always"),
        "{listed}"
    );
    assert!(!listed.contains("settings of Redis can not be read"), "{listed}");
    assert!(doctor("appendonly yes").contains("appendfsync unknown"));
    assert!(doctor("appendonly").contains("`store_assured_settings` holds `appendonly`"));
    assert!(doctor("appendonly=yes, x").contains("INVALID_CONFIG"));
}

#[test]
fn production_lists_what_a_server_would_lose_with_all_the_rest_in_one_error() {
    let forgets = ["--appendonly", "no"].map(str::to_owned).to_vec();
    let Some(server) = Redis::start_with(RedisSettings { arguments: forgets, tls_only: false }).unwrap()
    else {
        return;
    };
    let home = Home::at("ws://127.0.0.1:1");
    let refused = |url: &str, of_server: &str| {
        let line = "--production identity show --as bob";
        let refused = home.stvor(line.split(' ')).env("STVOR_STORE", url).run(SOON).unwrap();
        assert_eq!(refused.status.code(), Some(3), "{}", refused.err);
        assert!(refused.err.contains("[NOT_FOR_PRODUCTION]"), "{}", refused.err);
        for code in [of_server, "keyfile_on_this_machine", "relay_without_tls", "development_token"] {
            assert!(refused.err.contains(&format!("({code})")), "{code}: {}", refused.err);
        }
    };
    refused(&server.url(), "redis_appendonly");
    // One that does not answer keeps nobody from hearing the rest.
    refused("redis://127.0.0.1:1", "store_not_asked");
    assert_eq!(server.cli(&["dbsize"]).unwrap().trim(), "0", "nothing was made");
}

#[test]
fn a_server_that_is_not_there_and_a_url_that_is_none_are_named_without_their_password() {
    let home = Home::at("ws://127.0.0.1:1");
    let doctor = |url: &str| {
        let doctor = home.stvor(["doctor", "--json"]).env("STVOR_STORE", url).run(SOON).unwrap();
        assert!(!format!("{}{}", doctor.out, doctor.err).contains(CANARY), "{}", doctor.out);
        checks(&doctor, "store")[0]["code"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(doctor(&format!("postgres://bob:{CANARY}@127.0.0.1:1/db")), "STORE_UNREACHABLE");
    assert_eq!(doctor(&format!("redis://:{CANARY}@127.0.0.1:1")), "STORE_UNREACHABLE");
    assert_eq!(doctor(&format!("mysql://bob:{CANARY}@127.0.0.1/db")), "INVALID_CONFIG");
    let shown = home
        .stvor(["config", "show"])
        .env("STVOR_STORE", format!("redis://:{CANARY}@127.0.0.1:1"))
        .run(SOON)
        .unwrap();
    assert!(!shown.out.contains(CANARY), "{}", shown.out);
    let replicas = home.stvor(["config", "show"]).env("STVOR_STORE_REPLICAS", "1").run(SOON).unwrap();
    assert_eq!(replicas.status.code(), Some(0), "{}", replicas.err);
}
