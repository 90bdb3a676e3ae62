//! The servers: banners, durability, tokens, users.

use crate::common::{Home, SOON, TOKEN, all, mock_relay, objects};
use stvor_testkit::{Process, Signal, Stream};

/// Starts a server that lets every holder of an app token register, and returns it with its URL.
fn server(home: &Home, line: &str) -> (Process, String) {
    let open = ("STVOR_RELAY_OPEN_REGISTRATION", "true");
    let process = home.stvor(line.split(' ')).env(open.0, open.1).with_input().start().unwrap();
    let url = process.wait_output(1, SOON).unwrap()[0].trim_start_matches("listening on ").to_owned();
    (process, url)
}

fn created_token(home: &Home, line: &str) -> serde_json::Value {
    let created = home.run(line);
    assert_eq!(created.status.code(), Some(0), "{}", created.err);
    objects(&[created.out]).remove(0)
}

#[test]
fn a_mock_relay_says_where_it_is_and_what_is_insecure() {
    let (relay, url) = mock_relay();
    assert!(url.starts_with("ws://127.0.0.1:"));
    relay.wait_for("INSECURE", SOON).unwrap();
    relay.wait_for("memory", SOON).unwrap();
    relay.signal(Signal::Interrupt).unwrap();
    assert_eq!(relay.wait_exit(SOON).unwrap().code(), Some(130));
}

#[test]
fn the_port_of_a_mock_relay_can_be_set_by_variable() {
    let home = Home::new();
    let relay = home.stvor(["mock-relay"]).env("STVOR_MOCK_PORT", "0").with_input().start().unwrap();
    let line = relay.wait_output(1, SOON).unwrap().remove(0);
    assert!(line.starts_with("listening on ws://127.0.0.1:"), "{line}");
}

#[test]
fn a_taken_port_is_told_with_its_address() {
    let (_relay, url) = mock_relay();
    let address = url.trim_start_matches("ws://");
    let refused = Home::new().run(&format!("mock-relay --listen {address}"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.err.contains(address) && refused.err.contains("[LISTEN_FAILED]"), "{}", refused.err);
}

#[test]
fn a_relay_keeps_messages_over_a_kill_and_lets_only_its_tokens_in() {
    let home = Home::new();
    let token = created_token(&home, "relay token create --app acme --json");
    let secret = token["token"].as_str().unwrap().to_owned();
    assert!(secret.starts_with("sk_live_acme_"));
    let (relay, url) = server(&home, "relay --listen 127.0.0.1:0");
    let people = Home::new();
    let as_user =
        |line: &str| people.stvor(line.split(' ')).env("STVOR_RELAY", &url).env("STVOR_TOKEN", &secret);
    assert_eq!(as_user("identity show --as bob").run(SOON).unwrap().status.code(), Some(0));
    let alice = as_user("send --as alice --to bob --lines").with_input().start().unwrap();
    alice.write_line("kept").unwrap();
    alice.wait_for("accepted", SOON).unwrap();
    relay.kill().unwrap();
    let (_relay, _) = server(&home, &format!("relay --listen {}", url.trim_start_matches("ws://")));
    let heard = as_user("listen --as bob --count 1 --json").run(SOON).unwrap();
    assert_eq!(all(&objects(&[heard.out]), "text"), ["kept"]);
    let refused = people.run(&format!("listen --as bob --relay {url} --token {TOKEN}"));
    assert_eq!(refused.status.code(), Some(4), "a development token: {}", refused.err);
    assert!(refused.err.contains("[INVALID_APP_TOKEN]"), "{}", refused.err);
}

#[test]
fn a_relay_lets_no_app_token_register_anybody_and_says_what_to_do() {
    let home = Home::new();
    let token = created_token(&home, "relay token create --app acme --json");
    let relay = home.start("relay --listen 127.0.0.1:0");
    let url = relay.wait_output(1, SOON).unwrap()[0].trim_start_matches("listening on ").to_owned();
    relay.wait_for("open_registration", SOON).unwrap();
    let line = format!("identity show --as bob --relay {url} --token {}", token["token"].as_str().unwrap());
    let refused = Home::new().run(&line);
    assert_eq!(refused.status.code(), Some(4), "{}", refused.err);
    assert!(refused.err.contains("open_registration"), "it says what to do: {}", refused.err);
}

#[test]
fn tokens_are_listed_without_secrets_and_revoked_for_good() {
    let home = Home::new();
    let token = created_token(&home, "relay token create --app acme --kind test --days 7 --json");
    let (id, secret) = (token["id"].as_str().unwrap(), token["token"].as_str().unwrap());
    assert!(secret.starts_with("sk_test_acme_"));
    let (_relay, url) = server(&home, "relay --listen 127.0.0.1:0");
    let people = Home::new();
    let listen = format!("identity show --as bob --relay {url} --token {secret}");
    assert_eq!(people.run(&listen).status.code(), Some(0));
    let list = home.run("relay token list --json");
    assert!(list.out.contains(id) && !list.out.contains(secret));
    assert_eq!(home.run(&format!("relay token revoke {id}")).status.code(), Some(0));
    let refused = people.run(&format!("listen --as carol --relay {url} --token {secret}"));
    assert_eq!(refused.status.code(), Some(4), "{}", refused.err);
    assert_eq!(home.run("relay token revoke nothing").status.code(), Some(6));
}

#[test]
fn an_operator_can_free_the_name_of_a_lost_device() {
    let home = Home::new();
    let token = created_token(&home, "relay token create --app acme --json");
    let (_relay, url) = server(&home, "relay --listen 127.0.0.1:0");
    let line = format!("identity show --as bob --relay {url} --token {}", token["token"].as_str().unwrap());
    let (old, new) = (Home::new(), Home::new());
    assert_eq!(old.run(&line).status.code(), Some(0));
    assert_eq!(new.run(&line).status.code(), Some(4), "the name is taken");
    assert_eq!(home.run("relay user reset bob --app acme").status.code(), Some(0));
    assert_eq!(new.run(&line).status.code(), Some(0));
    assert_eq!(home.run("relay user delete nobody --app acme").status.code(), Some(6));
}

#[test]
fn a_literal_token_of_the_settings_is_let_in() {
    let home = Home::new();
    let file = home.path("stvor.toml");
    std::fs::write(&file, "[relay]\nlisten = \"127.0.0.1:0\"\n[[relay.tokens]]\ntoken = \"sk_live_xxx\"\n")
        .unwrap();
    let (_relay, url) = server(&home, &format!("relay --config {}", file.display()));
    let shown = Home::new().run(&format!("identity show --as bob --relay {url} --token sk_live_xxx"));
    assert_eq!(shown.status.code(), Some(0), "{}", shown.err);
}

#[test]
fn up_prints_what_to_paste_and_it_works_again_the_next_time() {
    let home = Home::new();
    let start = || {
        let relay = home.start("up --listen 127.0.0.1:0");
        let line = relay.wait_line(SOON, |_, line| line.contains("export STVOR_RELAY=")).unwrap();
        let value = |name: &str| {
            let from = line.find(name).unwrap() + name.len();
            line[from..].split(' ').next().unwrap().to_owned()
        };
        (relay, value("STVOR_RELAY="), value("STVOR_TOKEN="))
    };
    let (relay, url, token) = start();
    let shown = Home::new().run(&format!("identity show --as bob --relay {url} --token {token}"));
    assert_eq!(shown.status.code(), Some(0), "{}", shown.err);
    relay.signal(Signal::Term).unwrap();
    assert_eq!(relay.wait_exit(SOON).unwrap().code(), Some(0));
    let (_relay, _, again) = start();
    assert_eq!(token, again);
}

#[test]
fn only_one_relay_uses_a_database() {
    let home = Home::new();
    let (_relay, _) = server(&home, "relay --listen 127.0.0.1:0");
    let refused = home.run("relay --listen 127.0.0.1:0");
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.err.contains("[STORE_IN_USE]"), "{}", refused.err);
}

#[test]
fn a_server_ends_when_its_parent_does() {
    let home = Home::new();
    let (relay, _) = server(&home, "relay --listen 127.0.0.1:0 --exit-with-stdin");
    relay.close_input();
    assert_eq!(relay.wait_exit(SOON).unwrap().code(), Some(0));
}

#[test]
fn standard_output_holds_data_only() {
    let (relay, _) = mock_relay();
    relay.wait_for("export STVOR_RELAY=", SOON).unwrap();
    assert_eq!(relay.lines(Stream::Out).len(), 1);
}
