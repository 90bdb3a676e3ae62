//! What the owner's keys leave in memory when the vault is locked. A process of its own: no other test may hold what is looked for.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs::File;
use std::io::BufRead as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use stvor_crypto::SecretBytes;
use stvor_keys::{Passphrase, PassphraseCost};
use stvor_vault::daemon::{AgentVerb, Client, Daemon, OWNER_SOCKET, OwnerVerb};
use stvor_vault::{NewKeys, Options, Vault, unwrap_root};

/// Bytes of memory that are looked at together.
const PART: usize = 1 << 20;

/// What is looked for is kept under this mask, so that the looking is not what is found.
const MASK: u8 = 0xa5;

fn masked(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|byte| byte ^ MASK).collect()
}

/// Whether these bytes hold it.
fn hold(bytes: &[u8], sought: &[u8]) -> bool {
    let (first, others) = sought.split_first().unwrap();
    let are_they = |bytes: &[u8]| bytes.iter().zip(others).all(|(byte, masked)| byte ^ MASK == *masked);
    let mut rest = bytes;
    // The system's search for a byte is fast however this is compiled.
    while rest.skip_until(first ^ MASK).unwrap() > 0 {
        if rest.get(..others.len()).is_some_and(are_they) {
            return true;
        }
    }
    false
}

/// The mappings that hold it: all that this process can write to, but for stacks. One lies on its guard, which is small.
fn holding(sought: &[u8], part: &mut [u8]) -> Vec<String> {
    const GUARD: u64 = 64 << 10;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memory = File::open("/proc/self/mem").unwrap();
    let (mut found, mut guarded) = (Vec::new(), 0);
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let (from, end) = range.split_once('-').unwrap();
        let [mut from, end] = [from, end].map(|at| u64::from_str_radix(at, 16).unwrap());
        let is_stack = from == guarded || line.ends_with("[stack]");
        if rest.starts_with("---p") && end - from <= GUARD {
            guarded = end;
        }
        if !rest.starts_with("rw") || is_stack {
            continue;
        }
        while from < end {
            let length = usize::try_from(end - from).unwrap().min(PART);
            let part = &mut part[..length];
            // What was unmapped meanwhile is nobody's, and what begins with a guard that is no mapping of its own is a stack.
            let read = memory.read_at(part, from).unwrap_or_default();
            if hold(&part[..read], sought) {
                found.push(line.to_owned());
            }
            // Or the next look would find this one's copy.
            part.fill(0);
            if length < PART || read < length {
                break;
            }
            from += (PART - sought.len()) as u64;
        }
    }
    found
}

fn owner() -> Passphrase {
    let cost = PassphraseCost { memory_kib: 64, iterations: 1, parallelism: 1 };
    Passphrase::new(SecretBytes::from_slice(b"correct horse")).unwrap().with_cost(cost).unwrap()
}

#[test]
fn the_root_key_is_in_no_allocated_memory_once_the_vault_is_locked() {
    let mut part = vec![0; PART];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vault");
    Vault::create(&path, &NewKeys { owner: &owner(), vaulted: None, origin: "example.com/vault" }).unwrap();
    let vault = Arc::new(Vault::open(&path, Options::default()).unwrap());
    let _daemon = Daemon::serve(&vault, &path).unwrap();

    let root = unwrap_root(&vault.records().unwrap().root, &owner()).unwrap();
    let text = SecretBytes::from(STANDARD.encode(root.expose()).into_bytes());
    // Not their beginnings, which the allocator writes over in what is freed.
    let sought = [("the key", masked(&root.expose()[16..])), ("its text", masked(&text.expose()[20..40]))];
    for (what, sought) in &sought {
        assert!(!holding(sought, &mut part).is_empty(), "{what}: what is there is found");
    }
    drop((root, text));
    for (what, sought) in &sought {
        assert_eq!(holding(sought, &mut part), [""; 0], "{what}: this test leaves none itself");
    }

    // Its connection stays open to the end, as does what holds the lines of it.
    let mut client = Client::owner(&path.join(OWNER_SOCKET)).unwrap();
    client.unlock(&owner(), None).unwrap().unwrap();
    client.prove(&owner()).unwrap();
    let mut ask = |verb: serde_json::Value| {
        let act: AgentVerb = serde_json::from_value(verb).unwrap();
        client.call_owner(&OwnerVerb::Act { act }).unwrap().unwrap()
    };
    let memory = json!({ "content": { "text": "tea at five" }, "level": 2, "namespace": "home" });
    let stored = ask(json!({ "verb": "store", "memory": memory }));
    let recalled = ask(json!({ "verb": "recall", "id": stored["id"] }));
    assert_eq!(recalled["content"]["text"], "tea at five");
    // This takes the key, too, and proves it over a text that holds it.
    client.call_owner(&OwnerVerb::EnterLockdown { reason: String::new() }).unwrap().unwrap();
    client.leave_lockdown(&owner()).unwrap().unwrap();
    client.call_owner(&OwnerVerb::Lock {}).unwrap().unwrap();

    for (what, sought) in &sought {
        assert_eq!(holding(sought, &mut part), [""; 0], "{what}");
    }
}
