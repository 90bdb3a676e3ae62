//! What can be said without a relay: help, settings, exit codes, output that nobody reads.

use std::io::Read as _;
use std::process::{Command, Stdio};

use crate::common::{Home, TOKEN};

#[test]
fn help_names_every_command_and_every_exit_code() {
    let help = Home::new().run("--help");
    assert_eq!(help.status.code(), Some(0));
    for command in [
        "demo",
        "up",
        "relay",
        "mock-relay",
        "chat",
        "send",
        "listen",
        "history",
        "identity",
        "peer",
        "account",
        "doctor",
        "completions",
        "config",
    ] {
        assert!(help.out.lines().any(|line| line.trim_start().starts_with(command)), "{command} is missing");
        let own = Home::new().run(&format!("{command} --help"));
        assert_eq!(own.status.code(), Some(0), "{command}");
        assert!(own.out.contains("Usage: stvor"), "{command}");
    }
    for code in ["2 usage", "3 configuration", "4 denied", "5 unreachable", "6", "7", "130 interrupted"] {
        assert!(help.out.contains(code), "{code} is missing");
    }
}

#[test]
fn help_fits_eighty_columns_where_we_break_the_lines() {
    for command in [
        "",
        "demo ",
        "up ",
        "relay ",
        "mock-relay ",
        "chat ",
        "send ",
        "listen ",
        "history ",
        "identity ",
        "peer ",
        "account ",
        "doctor ",
    ] {
        let help = Home::new().run(&format!("{command}-h"));
        let long: Vec<&str> = help.out.lines().filter(|line| line.chars().count() > 100).collect();
        assert!(long.is_empty(), "{command}: {long:?}");
    }
}

#[test]
fn the_version_is_that_of_the_product() {
    let version = Home::new().run("--version");
    assert_eq!(version.out, format!("stvor {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_is_exit_2_with_a_suggestion() {
    let wrong = Home::new().run("lisen --as bob");
    assert_eq!(wrong.status.code(), Some(2));
    assert!(wrong.err.contains("listen"), "{}", wrong.err);
    assert!(wrong.out.is_empty());
}

#[test]
fn a_user_must_be_named_by_flag_or_variable() {
    let nobody = Home::at("ws://127.0.0.1:9").run("identity show");
    assert_eq!(nobody.status.code(), Some(2));
    assert!(nobody.err.contains("--as") && nobody.err.contains("STVOR_AS"), "{}", nobody.err);
}

#[test]
fn a_missing_token_is_exit_3_and_says_where_one_comes_from() {
    let missing = Home::new().run("listen --as bob");
    assert_eq!(missing.status.code(), Some(3));
    assert!(
        missing.err.contains("[NO_APP_TOKEN]") && missing.err.contains("--token-file"),
        "{}",
        missing.err
    );
}

#[test]
fn errors_are_objects_on_standard_error_with_json() {
    let missing = Home::new().run("listen --as bob --json");
    let error: serde_json::Value = serde_json::from_str(&missing.err).unwrap();
    assert_eq!(error["error"]["code"], "NO_APP_TOKEN");
    assert_eq!(error["error"]["exit"], 3);
    assert!(missing.out.is_empty());
}

#[test]
fn an_unknown_setting_is_refused_with_a_suggestion() {
    let home = Home::new();
    let file = home.path("stvor.toml");
    std::fs::write(&file, "[client]\nreley = \"ws://x\"\n").unwrap();
    let refused = home.run(&format!("config show --config {}", file.display()));
    assert_eq!(refused.status.code(), Some(3));
    assert!(
        refused.err.contains("client.reley") && refused.err.contains("did you mean relay?"),
        "{}",
        refused.err
    );
    std::fs::write(&file, "[relay]\ndevelopmnt = true\n").unwrap();
    let refused = home.run(&format!("relay token list --config {}", file.display()));
    assert_eq!(refused.status.code(), Some(3));
    assert!(refused.err.contains("did you mean development?"), "{}", refused.err);
}

#[test]
fn settings_show_their_sources_and_hide_secrets() {
    let home = Home::new();
    let file = home.path("stvor.toml");
    std::fs::write(&file, "[client]\ntimeout = 3\n[relay]\n[[relay.tokens]]\ntoken = \"sk_live_secret\"\n")
        .unwrap();
    let line = format!("config show --sources --relay ws://flag --config {}", file.display());
    let shown = home.stvor(line.split(' ')).env("STVOR_TOKEN", TOKEN).run(crate::common::SOON).unwrap();
    assert_eq!(shown.status.code(), Some(0), "{}", shown.err);
    let row = |key: &str| shown.out.lines().find(|line| line.contains(key)).unwrap_or_default().to_owned();
    assert!(row("client.relay").contains("ws://flag") && row("client.relay").contains("flag --relay"));
    assert!(row("client.timeout").contains("stvor.toml"));
    assert!(
        row("client.token ").contains("(hidden)") && row("client.token ").contains("variable STVOR_TOKEN")
    );
    assert!(row("relay.listen").contains("127.0.0.1:3002") && row("relay.listen").contains("default"));
    assert!(!shown.out.contains("sk_live_secret") && !shown.out.contains(TOKEN));
}

#[test]
fn a_settings_file_that_was_named_must_exist() {
    let missing = Home::new().run("config show --config /nowhere/stvor.toml");
    assert_eq!(missing.status.code(), Some(3));
    assert!(missing.err.contains("/nowhere/stvor.toml"), "{}", missing.err);
}

#[test]
fn completions_exist_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = Home::new().run(&format!("completions {shell}"));
        assert_eq!(script.status.code(), Some(0), "{shell}");
        assert!(script.out.contains("mock-relay"), "{shell}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_stvor"))
        .args(["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let status = child.wait().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(said, "");
}

#[test]
fn nothing_that_listens_is_exit_5() {
    // Bound and closed again: nobody listens there now.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let home = Home::at(&format!("ws://127.0.0.1:{port}"));
    let ended = home.feed("send --as alice --to bob", "hello");
    assert_eq!(ended.code, Some(5), "{}", ended.err);
    assert!(ended.err.contains("[RELAY_UNAVAILABLE]"), "{}", ended.err);
    assert_eq!(home.run("doctor").status.code(), Some(5));
}

#[test]
fn a_server_that_is_no_relay_is_exit_5_and_named_so() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
        }
    });
    let home = Home::at(&format!("ws://127.0.0.1:{port}"));
    let ended = home.feed("send --as alice --to bob", "hello");
    assert_eq!(ended.code, Some(5), "{}", ended.err);
    assert!(ended.err.contains("[RELAY_PROTOCOL]"), "{}", ended.err);
    let doctor = home.run("doctor");
    assert_eq!(doctor.status.code(), Some(5));
    assert!(doctor.out.contains("not a STVOR relay"), "{}", doctor.out);
}

#[test]
fn secrets_come_from_files_and_never_from_arguments() {
    let home = Home::at("ws://127.0.0.1:9");
    assert_eq!(home.run("listen --as bob --passphrase secret").status.code(), Some(2));
    let missing = home.run("listen --as bob --passphrase-file /nowhere/passphrase");
    assert_eq!(missing.status.code(), Some(3));
    assert!(missing.err.contains("[SECRET_UNREADABLE]"), "{}", missing.err);
}
