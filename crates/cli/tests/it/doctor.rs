//! The doctor says what is wrong and how to mend it.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;

use stvor_base::{AppId, Timestamp};
use stvor_testkit::{Process, Signal, Spawn};
use stvor_wire::frame::encode_server;
use stvor_wire::server::{Challenge, ServerMessage};

use crate::common::{Home, SOON, find, finished, listening, mock_relay, objects};

/// What the doctor says of one thing: verdict, code, findings, remedy.
struct Finding {
    verdict: String,
    code: String,
    found: String,
    fix: String,
}

/// Asks the doctor; returns the exit code and what he says of `name`.
fn ask(home: &Home, options: &str, name: &str) -> (Option<i32>, Finding) {
    told(home.stvor(["doctor", "--json"].into_iter().chain(options.split_whitespace())), name)
}

fn told(doctor: Spawn, name: &str) -> (Option<i32>, Finding) {
    let ended = doctor.run(SOON).unwrap();
    let checks = objects(&ended.out.lines().map(ToOwned::to_owned).collect::<Vec<_>>());
    let check = checks.into_iter().find(|check| check["name"] == name);
    let check = check.unwrap_or_else(|| panic!("nothing about {name}: {}\n{}", ended.out, ended.err));
    let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let finding =
        Finding { verdict: text("verdict"), code: text("code"), found: text("found"), fix: text("fix") };
    (ended.status.code(), finding)
}

/// A server that answers every request with `answer`, and its port.
fn server(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer);
        }
    });
    port
}

#[test]
fn the_doctor_finds_a_healthy_house_healthy_and_warns_of_a_development_relay() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    assert_eq!(home.run("identity show --as bob").status.code(), Some(0));
    let checked = home.run("doctor --json");
    assert_eq!(checked.status.code(), Some(0), "{}", checked.out);
    let lines: Vec<String> = checked.out.lines().map(ToOwned::to_owned).collect();
    let checks = objects(&lines);
    let verdict = |name: &str| {
        checks
            .iter()
            .find(|check| check["name"] == name)
            .map(|check| check["verdict"].as_str().unwrap().to_owned())
    };
    for name in ["relay", "token", "clock", "user", "data", "key files"] {
        assert_eq!(verdict(name).as_deref(), Some("ok"), "{name}: {}", checked.out);
    }
    assert_eq!(verdict("mode").as_deref(), Some("warning"));
}

#[cfg(unix)]
#[test]
fn the_doctor_finds_a_key_file_that_others_can_read() {
    use std::os::unix::fs::PermissionsExt as _;

    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let shown = home.run("identity show --as bob --json");
    let store = objects(&[shown.out]).remove(0)["store"].as_str().unwrap().to_owned();
    let directory = Path::new(&store);
    let directory = if directory.is_dir() { directory } else { directory.parent().unwrap() };
    let key = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|kind| kind == "key"))
        .unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let checked = home.run("doctor");
    assert_ne!(checked.status.code(), Some(0));
    assert!(checked.out.contains("chmod 600"), "{}", checked.out);
}

#[test]
fn without_a_relay_he_says_how_to_start_one() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let home = Home::at(&format!("ws://127.0.0.1:{port}"));
    let (exit, relay) = ask(&home, "", "relay");
    assert_eq!((exit, relay.code.as_str()), (Some(5), "RELAY_UNAVAILABLE"));
    assert!(relay.found.contains(&format!("127.0.0.1:{port}")), "{}", relay.found);
    assert!(relay.fix.contains("stvor up") && relay.fix.contains("stvor mock-relay"), "{}", relay.fix);
}

#[test]
fn a_name_that_does_not_exist_is_told_from_a_relay_that_does_not_run() {
    let (exit, relay) = ask(&Home::at("ws://no-such-host.invalid"), "--timeout 5", "relay");
    assert_eq!((exit, relay.code.as_str()), (Some(5), "RELAY_UNAVAILABLE"));
    assert!(relay.found.contains("no-such-host.invalid"), "{}", relay.found);
    assert!(relay.fix.contains("name"), "{}", relay.fix);
}

#[test]
fn a_web_server_is_no_relay() {
    let port = server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    let (exit, relay) = ask(&Home::at(&format!("ws://127.0.0.1:{port}")), "", "relay");
    assert_eq!((exit, relay.code.as_str()), (Some(5), "RELAY_PROTOCOL"));
    assert!(relay.found.contains("is not a STVOR relay") && relay.found.contains("200"), "{}", relay.found);
    assert!(relay.fix.contains("--relay") && relay.fix.contains("/v1/socket"), "{}", relay.fix);
}

#[test]
fn a_server_that_says_nothing_is_told_so_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let (exit, relay) = ask(&Home::at(&url), "--timeout 1", "relay");
    assert_eq!(exit, Some(5));
    assert!(relay.found.contains("says nothing"), "{}", relay.found);
}

#[test]
fn an_address_that_can_be_none_is_told_with_a_right_one() {
    let (exit, relay) = ask(&Home::at("localhost:3002"), "", "relay");
    assert_eq!((exit, relay.code.as_str()), (Some(3), "INVALID_RELAY_URL"));
    assert!(relay.fix.contains("ws://127.0.0.1:3002"), "{}", relay.fix);
}

#[test]
fn a_wrong_token_and_a_missing_one_are_told_apart() {
    let (_relay, url) = mock_relay();
    let home = Home::new();
    let (exit, token) = ask(&home, &format!("--relay {url} --token wrong_token_123"), "token");
    assert_eq!((exit, token.code.as_str()), (Some(4), "INVALID_APP_TOKEN"));
    assert!(token.fix.contains("stvor relay token create"), "{}", token.fix);
    let (exit, token) = ask(&home, &format!("--relay {url}"), "token");
    assert_eq!((exit, token.code.as_str()), (Some(3), "NO_APP_TOKEN"));
    assert!(token.fix.contains("--token-file"), "{}", token.fix);
}

/// A relay behind a certificate for `name` that is valid until `year`; its URL and the certificate's file.
fn relay_with_certificate(home: &Home, name: &str, year: i32) -> (Process, String, String) {
    let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = parameters.self_signed(&key).unwrap();
    let file = |name: &str, text: String| {
        std::fs::write(home.path(name), text).unwrap();
        home.path(name).display().to_string()
    };
    let (pem, key) = (file("chain.pem", certificate.pem()), file("key.pem", key.serialize_pem()));
    let tls = format!("[relay.tls]\ncertificate = \"{pem}\"\nkey = \"{key}\"\n");
    let settings =
        file("relay.toml", format!("[relay]\nlisten = \"127.0.0.1:0\"\ndevelopment = true\n{tls}"));
    let relay = home.start(&format!("relay --config {settings}"));
    let url = relay.wait_output(1, SOON).unwrap()[0].trim_start_matches("listening on ").to_owned();
    (relay, url, pem)
}

#[test]
fn a_certificate_that_nobody_knows_is_told_and_trusted_once_it_is_given() {
    let house = Home::new();
    let (_relay, url, pem) = relay_with_certificate(&house, "127.0.0.1", 2090);
    let home = Home::at(&url);
    let (exit, tls) = ask(&home, "", "TLS");
    assert_eq!((exit, tls.verdict.as_str()), (Some(5), "problem"));
    assert!(tls.found.contains("self-signed"), "{}", tls.found);
    assert!(tls.fix.contains("--root-certificate"), "{}", tls.fix);
    let (exit, tls) = ask(&home, &format!("--root-certificate {pem}"), "TLS");
    assert_eq!((exit, tls.verdict.as_str()), (Some(0), "ok"), "{}", tls.found);
}

#[test]
fn an_expired_certificate_is_told_with_its_remedy() {
    let house = Home::new();
    let (_relay, url, pem) = relay_with_certificate(&house, "127.0.0.1", 2021);
    let (exit, tls) = ask(&Home::at(&url), &format!("--root-certificate {pem}"), "TLS");
    assert_eq!((exit, tls.verdict.as_str()), (Some(5), "problem"));
    assert!(tls.found.contains("expired"), "{}", tls.found);
    assert!(tls.fix.contains("renew") && tls.fix.contains("clock"), "{}", tls.fix);
}

#[test]
fn a_certificate_for_another_name_is_told_with_that_name() {
    let house = Home::new();
    let (_relay, url, pem) = relay_with_certificate(&house, "relay.example.com", 2090);
    let (exit, tls) = ask(&Home::at(&url), &format!("--root-certificate {pem}"), "TLS");
    assert_eq!((exit, tls.verdict.as_str()), (Some(5), "problem"));
    assert!(tls.found.contains("another name") && tls.found.contains("relay.example.com"), "{}", tls.found);
}

#[test]
fn tls_where_none_is_spoken_is_told() {
    let (_relay, url) = mock_relay();
    let (exit, tls) = ask(&Home::at(&url.replace("ws://", "wss://")), "", "TLS");
    assert_eq!((exit, tls.verdict.as_str()), (Some(5), "problem"));
    assert!(tls.fix.contains("ws://"), "{}", tls.fix);
}

/// A relay whose clock is off by so many milliseconds: it greets, and nothing more.
fn relay_of_another_time(ahead_ms: i64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(move || {
        runtime.block_on(async move {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            greet(stream, ahead_ms).await;
        });
    });
    url
}

#[expect(clippy::result_large_err, reason = "the type of the answer is the library's")]
async fn greet(stream: tokio::net::TcpStream, ahead_ms: i64) {
    use futures::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

    let choose = |_: &Request, mut response: Response| {
        response.headers_mut().insert("Sec-WebSocket-Protocol", "stvor.v1".parse().unwrap());
        Ok(response)
    };
    let mut socket = tokio_tungstenite::accept_hdr_async(stream, choose).await.unwrap();
    socket.next().await.unwrap().unwrap();
    let now = i64::try_from(Timestamp::system().as_millis()).unwrap();
    let challenge = Challenge {
        nonce: [7; 32],
        app: AppId::new("acme").unwrap(),
        server_time: Timestamp::from_millis(u64::try_from(now + ahead_ms).unwrap()),
        server_version: "3.6.0".to_owned(),
        protocol_version: 1,
        development: false,
        capabilities: Vec::new(),
    };
    socket.send(Message::Binary(encode_server(&ServerMessage::Challenge(challenge)))).await.unwrap();
    // The visitor leaves first.
    while let Some(Ok(_)) = socket.next().await {}
}

#[test]
fn a_clock_that_is_off_is_told_with_its_distance() {
    for (ahead_ms, said) in [(3_600_000, "behind"), (-3_600_000, "ahead of")] {
        let (exit, clock) = ask(&Home::at(&relay_of_another_time(ahead_ms)), "", "clock");
        assert_eq!((exit, clock.verdict.as_str()), (Some(0), "warning"));
        assert!(clock.found.contains(said), "{}", clock.found);
        assert!(clock.found.contains("3600 s") || clock.found.contains("3599 s"), "{}", clock.found);
        assert!(clock.fix.contains("timedatectl"), "{}", clock.fix);
    }
    let (_, clock) = ask(&Home::at(&relay_of_another_time(0)), "", "clock");
    assert_eq!(clock.verdict, "ok");
}

#[cfg(target_os = "linux")]
#[test]
fn a_data_directory_that_can_not_be_written_is_told() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let data = home.path("stvor");
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o555)).unwrap();
    let mut doctor = home.stvor(["doctor", "--json"]);
    if std::fs::metadata(&data).unwrap().uid() == 0 {
        // Who is root may write anywhere, unless the capability to do so is laid down.
        doctor = Spawn::new("/usr/bin/setpriv").args([
            "--bounding-set=-all",
            "--inh-caps=-all",
            env!("CARGO_BIN_EXE_stvor"),
        ]);
        for (name, value) in home.variables() {
            doctor = doctor.env(name, value);
        }
        doctor = doctor.args(["doctor", "--json"]);
    }
    let (exit, found) = told(doctor, "data");
    assert_eq!((exit, found.code.as_str()), (Some(1), "FILE_ERROR"));
    assert!(found.found.contains("can not be written"), "{}", found.found);
    assert!(found.fix.contains("chown") && found.fix.contains("--data"), "{}", found.fix);
}

#[test]
fn a_data_directory_that_is_a_file_is_told() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    std::fs::write(home.path("stvor"), "").unwrap();
    let (exit, data) = ask(&home, "", "data");
    assert_eq!((exit, data.code.as_str()), (Some(3), "INVALID_CONFIG"));
    assert!(data.found.contains("is not a directory"), "{}", data.found);
}

#[test]
fn a_store_that_another_process_holds_is_a_warning() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let bob = listening(&home, "listen --as bob");
    let (exit, user) = ask(&home, "--as bob", "user");
    assert_eq!((exit, user.verdict.as_str()), (Some(0), "warning"), "{}", user.found);
    assert!(user.fix.contains("stvor listen"), "{}", user.fix);
    bob.signal(Signal::Term).unwrap();
    assert_eq!(finished(&bob), Some(0));
    assert_eq!(ask(&home, "--as bob", "user").1.verdict, "ok");
}

fn set_version(store: &Path, change: i64) {
    let database = rusqlite::Connection::open(store).unwrap();
    let version: i64 = database.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    database.pragma_update(None, "user_version", version + change).unwrap();
}

#[test]
fn a_store_of_a_newer_version_asks_for_an_update_and_is_unharmed() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    assert_eq!(home.run("identity show --as bob").status.code(), Some(0));
    let store = find(&home.path("stvor"), "store.db");
    set_version(&store, 1);
    let (exit, user) = ask(&home, "--as bob", "user");
    assert_eq!((exit, user.code.as_str()), (Some(1), "STORE_TOO_NEW"));
    assert!(user.fix.contains("update"), "{}", user.fix);
    set_version(&store, -1);
    assert_eq!(ask(&home, "--as bob", "user").1.verdict, "ok");
}

#[test]
fn a_name_that_belongs_to_another_device_is_told_with_both_ways_out() {
    let (_relay, url) = mock_relay();
    let (first, second) = (Home::at(&url), Home::at(&url));
    assert_eq!(second.run("identity show --as bob").status.code(), Some(0));
    assert_eq!(first.run("identity replace --as bob --yes").status.code(), Some(0));
    let (exit, user) = ask(&second, "--as bob", "user");
    assert_eq!((exit, user.code.as_str()), (Some(4), "USER_ID_TAKEN"), "{}", user.found);
    assert!(user.fix.contains("identity replace") && user.fix.contains("user reset"), "{}", user.fix);
}
