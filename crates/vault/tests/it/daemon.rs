//! The two sockets, from outside.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use stvor_vault::audit::Operation;
use stvor_vault::daemon::{
    AGENTS_SOCKET, AgentVerb, Client, Content, Daemon, Hidden, OWNER_SOCKET, OwnerVerb, RecoveryVerb,
    StoreVerb,
};
use stvor_vault::{Agent, Level, LogEntry, LogQuery, MemoryId, Trust, Vault, limits};

use crate::world::{World, owner, passphrase};

struct Served {
    world: World,
    vault: Arc<Vault>,
    _daemon: Daemon,
}

impl Served {
    /// A daemon over a cold vault.
    fn new() -> Self {
        let world = World::new();
        let vault = Arc::new(world.cold());
        let daemon = Daemon::serve(&vault, &world.path()).unwrap();
        Self { world, vault, _daemon: daemon }
    }

    fn agents(&self) -> PathBuf {
        self.world.path().join(AGENTS_SOCKET)
    }

    /// The owner, with the session open.
    fn owner(&self) -> Client {
        let mut client = Client::owner(&self.world.path().join(OWNER_SOCKET)).unwrap();
        client.prove(&owner()).unwrap();
        client.unlock(&owner(), None).unwrap().unwrap();
        client
    }

    fn agent(&self, owner: &mut Client, name: &str) -> Client {
        let agent = Agent::new(name, &["home"], Level::Sealed);
        let answer = owner.call_owner(&OwnerVerb::Enrol { agent }).unwrap().unwrap();
        Client::agent(&self.agents(), answer["credential"].as_str().unwrap()).unwrap().unwrap()
    }
}

fn store(content: &str, level: Level) -> AgentVerb {
    let memory = StoreVerb {
        content: Content::Text(content.into()),
        level: Some(level),
        namespace: Some("home".into()),
        metadata: BTreeMap::new(),
        searchable: vec![],
        intents: vec![],
        source: String::new(),
        trust: Trust::Agent,
        ttl: None,
        no_ttl: false,
        cooldown: None,
        supersedes: None,
        profile: None,
        no_profile: false,
        tombstone: None,
    };
    AgentVerb::Store { memory: Box::new(memory) }
}

fn store_many(contents: impl Iterator<Item = String>) -> AgentVerb {
    let of = |content: String| match store(&content, Level::Working) {
        AgentVerb::Store { memory } => *memory,
        other => panic!("{other:?}"),
    };
    AgentVerb::StoreMany { memories: contents.map(of).collect() }
}

#[test]
fn one_request_stores_so_many_memories_and_one_that_is_refused_keeps_out_no_other() {
    let served = Served::new();
    let mut owner = served.owner();
    let mut agent = served.agent(&mut owner, "assistant");
    let contents = |count: usize| (0..count).map(|number| format!("tea number {number}"));
    let stored = agent.call(&store_many(contents(limits::MAX_STORES))).unwrap().unwrap();
    assert_eq!(stored.as_array().unwrap().len(), limits::MAX_STORES);
    let last = id(&stored[limits::MAX_STORES - 1]["ok"]["id"]);
    let recall = AgentVerb::Recall { id: last, justification: String::new() };
    let recalled = agent.call(&recall).unwrap().unwrap();
    assert_eq!(
        recalled["content"]["text"],
        format!("tea number {}", limits::MAX_STORES - 1),
        "in this order"
    );
    let refused = agent.call(&store_many(contents(limits::MAX_STORES + 1))).unwrap().unwrap_err();
    assert_eq!(refused.code, "VAULT_BAD_REQUEST");

    let mixed = ["coffee", "", "password: hunter22x", "cocoa"].map(str::to_owned);
    let stored = agent.call(&store_many(mixed.into_iter())).unwrap().unwrap();
    let codes: Vec<_> = stored.as_array().unwrap().iter().map(|one| one["error"]["code"].as_str()).collect();
    assert_eq!(codes, [None, Some("VAULT_BAD_REQUEST"), Some("SECRET_DETECTED"), None]);
    let list = AgentVerb::Search { namespace: "home".into(), query: "cocoa".into() };
    assert_eq!(agent.call(&list).unwrap().unwrap()["memories"].as_array().unwrap().len(), 1);
}

#[test]
fn the_owner_takes_what_is_in_the_outbox_and_nothing_else() {
    let served = Served::new();
    let mut owner = served.owner();
    let mut ask = |act: RecoveryVerb| owner.call_owner(&OwnerVerb::Recovery { act: Box::new(act) }).unwrap();
    let outbox = served.world.path().join("outbox");
    std::fs::create_dir(&outbox).unwrap();
    let size = limits::MAX_FETCH + 1;
    std::fs::write(outbox.join("file"), vec![7; usize::try_from(size).unwrap()]).unwrap();
    for (offset, bytes) in [(0, limits::MAX_FETCH), (limits::MAX_FETCH, 1), (size, 0)] {
        let part = ask(RecoveryVerb::Fetch { name: "file".into(), offset }).unwrap();
        assert_eq!(part["size"], size);
        // Of base64.
        assert_eq!(part["bytes"].as_str().unwrap().len() as u64, bytes.div_ceil(3) * 4);
    }
    assert!(ask(RecoveryVerb::Fetch { name: "other".into(), offset: 0 }).unwrap().is_null());
    for name in ["../vault.db", "..", ".", "", "/etc/passwd", "a/b"] {
        let refused = ask(RecoveryVerb::Fetch { name: name.into(), offset: 0 }).unwrap_err();
        assert_eq!(refused.code, "VAULT_BAD_REQUEST", "{name}");
        let refused = ask(RecoveryVerb::Taken { name: name.into(), kept: "/tmp/x".into() }).unwrap_err();
        assert_eq!(refused.code, "VAULT_BAD_REQUEST", "{name}");
    }
    ask(RecoveryVerb::Taken { name: "file".into(), kept: "/tmp/x".into() }).unwrap();
    assert!(!outbox.join("file").exists());
}

fn id(value: &Value) -> MemoryId {
    value.as_str().unwrap().parse().unwrap()
}

#[test]
fn an_agent_stores_searches_and_recalls() {
    let served = Served::new();
    let mut owner = served.owner();
    let mut agent = served.agent(&mut owner, "agent");
    let stored = agent.call(&store("tea at five", Level::Working)).unwrap().unwrap();
    let search = AgentVerb::Search { namespace: "home".into(), query: "tea".into() };
    let found = agent.call(&search).unwrap().unwrap();
    assert_eq!((&found["memories"][0]["id"], &found["more"]), (&stored["id"], &false.into()));
    let recall = AgentVerb::Recall { id: id(&stored["id"]), justification: String::new() };
    let recalled = agent.call(&recall).unwrap().unwrap();
    assert_eq!(recalled["content"]["text"], "tea at five");
    assert_eq!(recalled["header"]["creator"], "agent");
    let act = OwnerVerb::Act { act: recall };
    assert_eq!(owner.call_owner(&act).unwrap().unwrap()["content"]["text"], "tea at five");
}

#[test]
fn who_has_the_owners_socket_but_not_the_secret_can_only_see_the_status() {
    let served = Served::new();
    let mut owner = served.owner();
    let mut agent = served.agent(&mut owner, "agent");
    let stored = agent.call(&store("sealed", Level::Sealed)).unwrap().unwrap();
    let request = AgentVerb::RequestApproval { id: id(&stored["id"]), purpose: "report".into() };
    let request = id(&agent.call(&request).unwrap().unwrap()["request"]);
    let mut intruder = Client::owner(&served.world.path().join(OWNER_SOCKET)).unwrap();
    assert!(intruder.prove(&passphrase("a guess")).is_err());
    assert_eq!(intruder.call_owner(&OwnerVerb::Status {}).unwrap().unwrap()["mode"], "open");
    let root = Hidden::new("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned());
    for verb in [
        OwnerVerb::Approve { id: request, seconds: None },
        OwnerVerb::Lock {},
        OwnerVerb::Act { act: AgentVerb::Status {} },
        OwnerVerb::LeaveLockdown { root: root.clone() },
        OwnerVerb::Agents {},
        OwnerVerb::Verify { archives: Vec::new(), content: false, progress: false },
        OwnerVerb::Purge {},
        OwnerVerb::EndPause { id: request },
    ] {
        assert_eq!(intruder.call_owner(&verb).unwrap().unwrap_err().code, "AGENT_NOT_ALLOWED", "{verb:?}");
    }
    let unlock = OwnerVerb::Unlock { root, vaulted: None };
    assert_eq!(intruder.call_owner(&unlock).unwrap().unwrap_err().code, "VAULT_TAMPERED");
    owner.call_owner(&OwnerVerb::Approve { id: request, seconds: None }).unwrap().unwrap();
    let events = served.vault.status().unwrap().events;
    let tried = (0..events).filter(|event| {
        let (event, _) = served.vault.prove(*event).unwrap();
        String::from_utf8(event).unwrap().contains("act-as-owner")
    });
    assert_eq!(tried.count(), 8, "each attempt is logged");
}

#[test]
fn the_agents_socket_knows_no_verb_of_the_owner() {
    let served = Served::new();
    let mut owner = served.owner();
    let credential = {
        let agent = Agent::new("agent", &[], Level::Black);
        let answer = owner.call_owner(&OwnerVerb::Enrol { agent }).unwrap().unwrap();
        answer["credential"].as_str().unwrap().to_owned()
    };
    let mut stream = UnixStream::connect(served.agents()).unwrap();
    let mut lines = format!("{{\"credential\":\"{credential}\"}}\n");
    let verbs = [
        "end-pause",
        "approve",
        "approvals",
        "unlock",
        "lock",
        "enrol",
        "agents",
        "leave-lockdown",
        "log",
        "act",
    ];
    for verb in verbs {
        lines += &format!("{{\"verb\":\"{verb}\",\"root\":\"quince\"}}\n");
    }
    lines += "{\"verb\":\"status\",\"quince\":1}\nquince\n";
    stream.write_all(lines.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    let answers: Vec<&str> = answers.lines().collect();
    assert_eq!(answers.len(), 13);
    assert!(answers[0].contains("\"ok\""));
    for answer in &answers[1..] {
        assert!(answer.contains("VAULT_BAD_REQUEST"), "{answer}");
    }
    // The owner reads who tried what, and nothing of the words that came with it.
    let tried: Vec<_> = refused(&served.vault, "agent")
        .into_iter()
        .map(|LogEntry { event, said, .. }| (event.operation, said, event.refused))
        .collect();
    let wanted = verbs.map(|verb| (Operation::ActAsOwner, Some(verb.to_owned())));
    let wanted =
        wanted.into_iter().chain([(Operation::NotUnderstood, None), (Operation::NotUnderstood, None)]);
    let code = || Some("VAULT_BAD_REQUEST".to_owned());
    assert_eq!(tried, wanted.map(|(operation, said)| (operation, said, code())).collect::<Vec<_>>());
}

/// What an agent was refused, by the log, in the order in which it asked.
fn refused(vault: &Vault, actor: &str) -> Vec<LogEntry> {
    let query = LogQuery { actor: Some(actor.to_owned()), refused: true, ..LogQuery::default() };
    let mut entries = vault.read_log(query).unwrap().entries;
    entries.reverse();
    entries
}

#[test]
fn what_is_no_request_is_logged_and_bounded_like_any_other_refusal() {
    let served = Served::new();
    let mut owner = served.owner();
    let credential = {
        let agent = Agent::new("agent", &["home"], Level::Working);
        let answer = owner.call_owner(&OwnerVerb::Enrol { agent }).unwrap().unwrap();
        answer["credential"].as_str().unwrap().to_owned()
    };
    let mut agent = Client::agent(&served.agents(), &credential).unwrap().unwrap();
    let mut code = |verb: &AgentVerb| agent.call(verb).unwrap().unwrap_err().code;
    let undecodable = || match store("", Level::Working) {
        AgentVerb::Store { mut memory } => {
            memory.content = Content::Base64("?".into());
            memory
        }
        other => panic!("{other:?}"),
    };
    let many = store_many((0..=limits::MAX_STORES).map(|number| number.to_string()));
    assert_eq!(code(&AgentVerb::Store { memory: undecodable() }), "VAULT_BAD_REQUEST");
    assert_eq!(code(&many), "VAULT_BAD_REQUEST");
    let one_of_many = AgentVerb::StoreMany { memories: vec![*undecodable()] };
    let answers = agent.call(&one_of_many).unwrap().unwrap();
    assert_eq!(answers[0]["error"]["code"], "VAULT_BAD_REQUEST");
    let logged = refused(&served.vault, "agent");
    assert_eq!(logged.len(), 3);
    for LogEntry { event, .. } in &logged {
        let code = event.refused.as_deref();
        assert_eq!((event.operation, code), (Operation::Store, Some("VAULT_BAD_REQUEST")));
    }

    // On a connection of its own, for the rest of the minute's refusals and some more.
    let most = usize::try_from(limits::REFUSALS_PER_MINUTE).unwrap();
    let talk = |count: usize| {
        let mut stream = UnixStream::connect(served.agents()).unwrap();
        let lines =
            format!("{{\"credential\":\"{credential}\"}}\n{}", "{\"verb\":\"approve\"}\n".repeat(count));
        stream.write_all(lines.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).unwrap();
        ["VAULT_BAD_REQUEST", "TOO_MANY_REFUSALS"].map(|code| answers.matches(code).count())
    };
    assert_eq!(talk(most - 3 + 5), [most - 3, 5]);
    let nothing = AgentVerb::Recall { id: MemoryId::from_bytes([7; 16]), justification: String::new() };
    assert_eq!(agent.call(&nothing).unwrap().unwrap_err().code, "TOO_MANY_REFUSALS", "they are one number");
    assert_eq!(refused(&served.vault, "agent").len(), most);
    served.world.clock.pass(Duration::from_millis(limits::REFUSALS_MINUTE));
    agent.call(&store("tea", Level::Working)).unwrap().unwrap();
    let query = LogQuery { operation: Some(Operation::Suppressed), ..LogQuery::default() };
    let counts: Vec<_> =
        served.vault.read_log(query).unwrap().entries.iter().map(|entry| entry.event.count).collect();
    assert_eq!(counts, [Some(6)]);
}

#[test]
fn a_proof_is_good_for_one_action_once() {
    let served = Served::new();
    let _owner = served.owner();
    let talk = |lines: &[String]| {
        let mut stream = UnixStream::connect(served.world.path().join(OWNER_SOCKET)).unwrap();
        let mut text = lines.join("\n");
        text.push('\n');
        stream.write_all(text.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).unwrap();
        answers
    };
    // What a listener on another connection may have seen is worth nothing on this one.
    let replayed =
        r#"{"action":"{\"verb\":\"lock\"}","proof":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}"#;
    let answers = talk(&[replayed.to_owned(), replayed.to_owned()]);
    assert_eq!(answers.matches("AGENT_NOT_ALLOWED").count(), 2, "{answers}");
    let challenges: Vec<&str> =
        answers.split("\"challenge\":\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert_eq!(challenges.len(), 3);
    assert!(challenges[0] != challenges[1] && challenges[1] != challenges[2], "each is fresh");
}

#[test]
fn what_is_asked_of_a_cold_vault_at_the_sockets_is_counted_and_the_count_logged() {
    let served = Served::new();
    let refused = || served.vault.status().unwrap().refused_cold;
    for tried in 1..=2 {
        Client::agent(&served.agents(), "stvor_agent_00").unwrap().unwrap_err();
        assert_eq!(refused(), tried, "at the agents' socket");
    }
    let mut client = Client::owner(&served.world.path().join(OWNER_SOCKET)).unwrap();
    client.prove(&owner()).unwrap();
    assert_eq!(client.call_owner(&OwnerVerb::Agents {}).unwrap().unwrap_err().code, "VAULT_COLD");
    assert_eq!(refused(), 3, "at the owner's");
    client.call_owner(&OwnerVerb::Status {}).unwrap().unwrap();
    client.unlock(&owner(), None).unwrap().unwrap();
    assert_eq!(refused(), 0);
    let (event, _) = served.vault.prove(0).unwrap();
    assert!(String::from_utf8(event).unwrap().contains("\"count\":3"), "the count is in the log");
}

#[test]
fn an_agent_that_is_removed_is_out_at_once_and_a_stranger_never_in() {
    let served = Served::new();
    let stranger = Client::agent(&served.agents(), "stvor_agent_00").unwrap().unwrap_err();
    assert_eq!(stranger.code, "VAULT_COLD");
    let mut owner = served.owner();
    let stranger = Client::agent(&served.agents(), "stvor_agent_00").unwrap().unwrap_err();
    assert_eq!(stranger.code, "AGENT_NOT_ALLOWED");
    let mut agent = served.agent(&mut owner, "agent");
    agent.call(&AgentVerb::Status {}).unwrap().unwrap();
    owner.call_owner(&OwnerVerb::RemoveAgent { name: "agent".into() }).unwrap().unwrap();
    assert_eq!(agent.call(&AgentVerb::Status {}).unwrap().unwrap_err().code, "AGENT_NOT_ALLOWED");
}

#[test]
fn lockdown_is_entered_by_agents_and_left_by_the_owner() {
    let served = Served::new();
    let mut owner_client = served.owner();
    let mut agent = served.agent(&mut owner_client, "agent");
    let mut other = served.agent(&mut owner_client, "other");
    agent.call(&AgentVerb::EnterLockdown { reason: "odd".into() }).unwrap().unwrap();
    assert_eq!(agent.call(&store("x", Level::Working)).unwrap().unwrap_err().code, "VAULT_LOCKDOWN");
    for (client, reason) in [(&mut agent, "odd"), (&mut other, "")] {
        let status = client.call(&AgentVerb::Status {}).unwrap().unwrap();
        assert_eq!(status["lockdown"]["reason"], reason, "why is for who said it, and the owner");
    }
    assert!(owner_client.leave_lockdown(&passphrase("wrong")).is_err());
    owner_client.leave_lockdown(&owner()).unwrap().unwrap();
    agent.call(&store("x", Level::Working)).unwrap().unwrap();
}

#[test]
fn eight_clients_at_once_lose_and_double_nothing() {
    let served = Served::new();
    let mut owner = served.owner();
    let clients: Vec<Client> = (0..8).map(|n| served.agent(&mut owner, &format!("agent-{n}"))).collect();
    std::thread::scope(|scope| {
        for (number, mut client) in clients.into_iter().enumerate() {
            scope.spawn(move || {
                for each in 0..25 {
                    client.call(&store(&format!("{number} {each}"), Level::Working)).unwrap().unwrap();
                }
            });
        }
    });
    let report = owner
        .call_owner(&OwnerVerb::Verify { archives: Vec::new(), content: false, progress: false })
        .unwrap()
        .unwrap();
    assert_eq!(report["memories"], 200);
    assert_eq!(report["problems"].as_array().unwrap().len(), 0);
    assert_eq!(served.vault.status().unwrap().lockdown, None);
}

#[test]
fn an_agent_learns_whether_the_vault_is_sound_in_numbers_and_not_anew_each_time() {
    let served = Served::new();
    let mut owner = served.owner();
    let mut agent = served.agent(&mut owner, "agent");
    agent.call(&store("tea at five", Level::Working)).unwrap().unwrap();
    let first = agent.call(&AgentVerb::Verify {}).unwrap().unwrap();
    assert_eq!((&first["sound"], &first["memories"]), (&true.into(), &1.into()));
    assert_eq!(first.as_object().unwrap().len(), 4, "no names and no places");
    agent.call(&store("tea at six", Level::Working)).unwrap().unwrap();
    let again = agent.call(&AgentVerb::Verify {}).unwrap().unwrap();
    assert_eq!(again["memories"], 1, "the result of a moment ago serves");
}

#[test]
fn one_agent_with_many_connections_leaves_room_for_others() {
    let served = Served::new();
    let mut owner = served.owner();
    let mut enrol = |name: &str| {
        let agent = Agent::new(name, &["home"], Level::Working);
        let answer = owner.call_owner(&OwnerVerb::Enrol { agent }).unwrap().unwrap();
        answer["credential"].as_str().unwrap().to_owned()
    };
    let (greedy, other) = (enrol("greedy"), enrol("other"));
    let held: Vec<_> = (0..limits::MAX_CONNECTIONS_OF_ONE)
        .map(|_| Client::agent(&served.agents(), &greedy).unwrap().unwrap())
        .collect();
    let refused = Client::agent(&served.agents(), &greedy).unwrap().unwrap_err();
    assert_eq!(refused.code, "VAULT_BAD_REQUEST");
    Client::agent(&served.agents(), &other).unwrap().unwrap();
    drop(held);
}

#[test]
fn a_process_that_connects_and_says_nothing_is_told_that_it_has_too_many() {
    let served = Served::new();
    let connect = |socket: &str| UnixStream::connect(served.world.path().join(socket)).unwrap();
    for socket in [OWNER_SOCKET, AGENTS_SOCKET] {
        let idle: Vec<_> = (0..limits::MAX_UNKNOWN_CONNECTIONS_OF_PROCESS).map(|_| connect(socket)).collect();
        let mut answer = String::new();
        connect(socket).read_to_string(&mut answer).unwrap();
        assert!(answer.contains("VAULT_CROWDED") && answer.ends_with('\n'), "{answer}");
        let code = match socket {
            OWNER_SOCKET => {
                let refused = Client::owner(&served.world.path().join(socket)).unwrap_err();
                stvor_base::ErrorCode::code(&refused).to_owned()
            }
            _ => Client::agent(&served.agents(), "stvor_agent_00").unwrap().unwrap_err().code,
        };
        assert_eq!(code, "VAULT_CROWDED");
        drop(idle);
    }
}

#[test]
fn who_is_nobody_yet_may_send_a_short_line_only() {
    let served = Served::new();
    let mut stream = UnixStream::connect(served.agents()).unwrap();
    // The end may come while it is still writing.
    let _ = stream.write_all(&vec![b'x'; limits::MAX_ENTRY + 1]);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty(), "it is not even answered");
}

#[test]
fn an_agent_does_not_speak_for_the_owner_over_its_socket() {
    let served = Served::new();
    let mut owner = served.owner();
    let mut agent = served.agent(&mut owner, "agent");
    let mut verb = store("obey", Level::Working);
    if let AgentVerb::Store { memory } = &mut verb {
        memory.trust = Trust::Owner;
    }
    assert_eq!(agent.call(&verb).unwrap().unwrap_err().code, "AGENT_NOT_ALLOWED");
    owner.call_owner(&OwnerVerb::Act { act: verb }).unwrap().unwrap();
}
