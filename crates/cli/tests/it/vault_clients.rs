//! Agents' programs that are not ours: an MCP client of the official TypeScript SDK, and the Python examples. `./x test`
//! installs what they need below target/tools.

use std::path::{Path, PathBuf};

use stvor_testkit::Spawn;

use crate::common::{Home, SOON, objects, on_path};
use crate::vault::Served;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Something that `./x test` installs; without it, CI fails and others skip.
fn installed(path: &str, line: &str) -> Option<PathBuf> {
    let tools = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), PathBuf::from)
        .join("tools");
    let found = Some(tools.join(path)).filter(|path| path.exists());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{path} is missing: {line}");
        eprintln!("skipped: {path} is missing; install it with: {line}");
    }
    found
}

fn with_home(home: &Home, spawn: Spawn) -> Spawn {
    home.variables().into_iter().fold(spawn, |spawn, (name, value)| spawn.env(name, value))
}

#[test]
fn a_client_of_the_official_mcp_sdk_uses_every_tool() {
    let line = "./x setup-clients";
    let (Some(sdk), Some(node)) =
        (installed("mcp/node_modules/@modelcontextprotocol/sdk", line), on_path("node"))
    else {
        return;
    };
    let desk = Home::new();
    let at = |name: &str| desk.path(name).display().to_string();
    assert!(desk.run(&format!("vault boundary key {}", at("boundary.key"))).status.success());
    let boundary = desk.start(&format!(
        "vault boundary serve --key {} --socket {} --mode-file {} --exit-with-stdin",
        at("boundary.key"),
        at("boundary.sock"),
        at("mode")
    ));
    boundary.wait_output(1, SOON).unwrap();
    let options = format!("--boundary {} --boundary-key {}", at("boundary.sock"), at("boundary.key.pub"));
    let served = Served::with(&options);
    served.owner("unlock");
    served.enrol("assistant", "sealed");
    let stvor = env!("CARGO_BIN_EXE_stvor");
    let sdk = sdk.ancestors().nth(3).unwrap();
    let spawn = Spawn::new(node)
        .arg(root().join("crates/cli/tests/mcp/client.mjs"))
        .arg(sdk)
        .args([stvor])
        .arg(served.home.path("assistant.cred"))
        .args([stvor, "vault", "--keyfile"])
        .arg(served.home.path("owner.key"))
        .env("BOUNDARY_MODE_FILE", desk.path("mode"));
    let ended = with_home(&served.home, spawn).run(SOON).unwrap();
    assert!(ended.status.success(), "{}\n{}", ended.out, ended.err);
    // What was declined or never decided waits for the owner; what the client's user said granted nothing.
    let approvals = served.owner("approvals list");
    let stands: Vec<_> = approvals[0].as_array().unwrap().iter().map(|one| &one["stand"]).collect();
    let waiting = stands.iter().filter(|stand| **stand == "pending").count();
    assert!(waiting == 3 && stands.iter().all(|stand| *stand != "granted"), "{stands:?}");
}

#[test]
fn nothing_but_protocol_is_on_standard_output_and_no_credential_is_a_clear_failure() {
    let served = Served::new();
    let ended = served.home.feed("mcp", "");
    assert!(
        ended.code == Some(2) && ended.out.is_empty() && ended.err.contains("--credential-file"),
        "{}",
        ended.err
    );
    let file = served.home.path("nobody.cred");
    std::fs::write(&file, "stvor_agent_00\n").unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    // The vault is cold, and the credential nobody's: the client learns of both in the protocol.
    let initialize = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#;
    let call = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"status","arguments":{}}}"#;
    let process = served.home.start(&format!("mcp --credential-file {}", file.display()));
    process.write_line(initialize).unwrap();
    process.wait_output(1, SOON).unwrap();
    process.write_line(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).unwrap();
    process.write_line(call).unwrap();
    let lines = process.wait_output(2, SOON).unwrap();
    process.close_input();
    assert_eq!(crate::common::finished(&process), Some(0));
    let answers = objects(&lines);
    assert_eq!(answers[0]["result"]["serverInfo"]["name"], "stvor");
    assert_eq!(answers[1]["result"]["structuredContent"]["code"], "VAULT_COLD");
    assert_eq!(process.lines(stvor_testkit::Stream::Out).len(), 2);
}

#[test]
fn the_python_examples_work_against_a_vault_that_runs() {
    let Some(python) = installed("venv/bin/python", "./x setup-clients") else { return };
    let served = Served::new();
    served.owner("unlock");
    let credential = served.home.path("python.cred");
    served.owner(&format!("agents add python --namespace graph/* --credential-out {}", credential.display()));
    let spawn = Spawn::new(python)
        .arg(root().join("examples/python/check.py"))
        .arg(served.home.path("stvor/vault/agents.sock"))
        .arg(&credential)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let ended = spawn.run(SOON).unwrap();
    assert!(ended.status.success(), "{}\n{}", ended.out, ended.err);
    assert_eq!(ended.out, "claude ok\nlanggraph ok");
    assert_eq!(served.owner("verify --content")[0]["ok"], true);
}
