//! A Node process with npm peers, driven by one JSON command a line.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use stvor_protocol::signal::{Encrypted, MessageKind, OneTimeIn, PreKeyBundleIn};

pub(crate) struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// None where the packages are not installed; in CI that is a failure.
    pub(crate) fn start() -> Option<Self> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let folder = target.join("tools/peers");
        if !folder.join("node_modules/libsignal").exists() {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "the npm peers are missing: ./x setup-peers"
            );
            eprintln!("skipped: the npm peers are not installed; install them with: ./x setup-peers");
            return None;
        }
        let script =
            std::fs::read_to_string(root.join("crates/protocol/tests/signal_interop/peer.mjs")).unwrap();
        // Packages are looked for from the working directory.
        let mut child = Command::new("node")
            .args(["--input-type=module", "-e", &script])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        Some(Self { child, input, output })
    }

    /// What the command gives, or the error that it ended in.
    pub(crate) fn try_call(&mut self, command: Value) -> Result<Value, String> {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{command}").unwrap();
        input.flush().unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).expect("the peer answers");
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer),
        }
    }

    pub(crate) fn call(&mut self, command: Value) -> Value {
        let text = command.to_string();
        self.try_call(command).unwrap_or_else(|error| panic!("{error} at {}", &text[..text.len().min(200)]))
    }

    pub(crate) fn bundle(&mut self, id: &str, prekey: Option<u32>) -> PreKeyBundleIn {
        let bundle = self.call(json!({ "op": "bundle", "id": id, "prekey": prekey }));
        let number = |name: &str| u32::try_from(bundle[name].as_u64().unwrap()).unwrap();
        PreKeyBundleIn {
            registration_id: number("registrationId"),
            identity: bytes(&bundle["identity"]),
            signed_id: number("signedId"),
            signed: bytes(&bundle["signed"]),
            signature: bytes(&bundle["signature"]),
            one_time: prekey.map(|id| OneTimeIn { id, public: bytes(&bundle["prekey"]) }),
        }
    }

    pub(crate) fn start_session(&mut self, id: &str, bundle: &PreKeyBundleIn) {
        let mut with = json!({
            "registrationId": bundle.registration_id,
            "identity": hex::encode(&bundle.identity),
            "signedId": bundle.signed_id,
            "signed": hex::encode(&bundle.signed),
            "signature": hex::encode(&bundle.signature),
        });
        if let Some(prekey) = &bundle.one_time {
            with["prekeyId"] = json!(prekey.id);
            with["prekey"] = json!(hex::encode(&prekey.public));
        }
        self.call(json!({ "op": "start", "id": id, "bundle": with }));
    }

    pub(crate) fn send(&mut self, id: &str, text: &[u8]) -> Encrypted {
        let sent = self.call(json!({ "op": "encrypt", "id": id, "text": hex::encode(text) }));
        let kind = if sent["type"] == 3 { MessageKind::PreKey } else { MessageKind::Whisper };
        Encrypted { kind, body: bytes(&sent["body"]), registration_id: 0 }
    }

    pub(crate) fn read(&mut self, id: &str, message: &Encrypted) -> Result<Vec<u8>, String> {
        let kind = if message.kind == MessageKind::PreKey { 3 } else { 1 };
        let command = json!({ "op": "decrypt", "id": id, "type": kind, "body": hex::encode(&message.body) });
        self.try_call(command).map(|answer| bytes(&answer["text"]))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Its input ends, and so does it.
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().expect("hex")).unwrap()
}
