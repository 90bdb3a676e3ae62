//! Whoever has the database alone learns nobody's name, no word that was said and no key, not by guessing either.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use common::{app, builder, event, relay, soon};
use stvor::store::{PostgresStores, RedisStores, StoreProvider};
use stvor::{App, Client, DeliveryState, Event, RecoveryPhrase, Suite, Timestamp};
use stvor_base::codec::Writer;
use stvor_base::{Address, DeviceId, UserId};
use stvor_crypto::kdf::sha256;
use stvor_crypto::suite::SigningKey;
use stvor_crypto::{Secret, SystemRandom};
use stvor_protocol::{Effect, Identity, RecoveryRoot, RecoverySecret};
use stvor_testkit::{Postgres, Redis};

const PEERS: [&str; 2] = ["canary-bob", "canary-carol"];

/// Whom a store in a server is of.
const OWN: &str = "canary-alice";

/// What the keys of that user follow from.
const PHRASE: &str = "legal winner thank year wave sausage worth useful legal winner thank year wave sausage worth useful \
                      legal winner thank year wave sausage worth title";

/// Bytes of an identity's record before its three private keys.
const BEFORE_KEYS: usize = 13;

/// A conversation with each peer and a group of all, and everything that follows from a message that came and was read.
async fn talk(alice: &Client, peers: &[Client; 2]) {
    let mut events = alice.events();
    let names = PEERS.map(str::to_owned);
    let group = alice.create_group("canary-group", names).await.unwrap();
    let mut at_alice = alice.messages();
    for peer in peers {
        let mut at_peer = peer.messages();
        soon(alice.send(peer.user().as_str(), "canary-text").await.unwrap().delivered()).await.unwrap();
        soon(peer.send(OWN, "canary-text").await.unwrap().delivered()).await.unwrap();
        soon(at_peer.next()).await.unwrap();
        soon(at_alice.next()).await.unwrap();
        // So that they are in it before anything is said there.
        let theirs = soon(async {
            loop {
                match peer.group(group.id()).await {
                    Ok(theirs) => return theirs,
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                }
            }
        })
        .await;
        theirs.send("canary-text").await.unwrap();
        let message = soon(at_alice.next()).await.unwrap();
        assert_eq!(message.text(), Some("canary-text"));
    }
    let said = group.send("canary-text").await.unwrap();
    let mut left = PEERS.to_vec();
    while !left.is_empty() {
        let told = event(&mut events, |event| match event {
            Event::GroupReceipt { peer, state: DeliveryState::Delivered, .. } => Some(peer),
            _ => None,
        });
        let told = told.await;
        left.retain(|peer| *peer != told.as_str());
    }
    assert_eq!(group.receipts(said).await.unwrap().len(), 2);
    // Searching leaves nothing behind that tells what was searched.
    for peer in PEERS {
        let page = alice.history(peer).containing("canary").load().await.unwrap();
        assert_eq!(page.messages.len(), 2);
    }
}

fn holds(dump: &[u8], needle: &[u8]) -> bool {
    dump.windows(needle.len()).any(|part| part == needle)
}

fn hex(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect()
}

/// What of a name everybody can compute who guesses it.
fn traces(name: &str) -> Vec<Vec<u8>> {
    let user = UserId::new(name).unwrap();
    let mut address = Writer::new();
    Address::new(user, DeviceId::FIRST).encode(&mut address);
    let hashes = [name.as_bytes(), address.as_slice()].map(|name| sha256(&[name])[..8].to_vec());
    [vec![name.as_bytes().to_vec()], hashes.to_vec()].concat()
}

fn assert_nobody_is_in(dump: &[u8], kind: &str) {
    assert!(dump.len() > 10_000, "the dump of {kind} holds something");
    for name in [OWN, "canary-group", "canary-text", "canary"].into_iter().chain(PEERS) {
        for trace in traces(name) {
            assert!(!holds(dump, &trace) && !holds(dump, &hex(&trace)), "{kind} tells of {name}");
        }
    }
}

/// Keys that a store must not show: the one that opens it, those of the user, and what they follow from.
fn keys_of(alice: &Client, keyfile: &Path) -> Vec<(&'static str, Vec<u8>)> {
    let phrase = RecoveryPhrase::parse(PHRASE).unwrap();
    let secret = RecoverySecret::Phrase(phrase.entropy());
    let root = RecoveryRoot::stretch(Suite::P256, secret, alice.app_id(), alice.user()).unwrap();
    let address = Address::new(alice.user().clone(), alice.device());
    let now = Timestamp::system();
    let (identity, effects) =
        Identity::recover(alice.app_id(), &address, (&root, now), &mut SystemRandom::new()).unwrap();
    let record = effects.as_slice().iter().find_map(|effect| match effect {
        Effect::Insert { key, value, .. } if *key == Identity::key() => Some(value.expose()),
        _ => None,
    });
    let private: Vec<&[u8]> = record.unwrap()[BEFORE_KEYS..].chunks(32).take(3).collect();
    // They are hers.
    let user = SigningKey::from_bytes(Suite::P256, &Secret::from_slice(private[0]).unwrap()).unwrap();
    assert_eq!(user.public(), *identity.user_key());
    assert_eq!(hex(&sha256(&[&identity.user_key()[..]])), alice.identity().fingerprint.as_bytes());
    let mut keys = vec![
        ("the key that opens the store", std::fs::read(keyfile).unwrap()),
        ("the entropy of the phrase", phrase.entropy().expose().to_vec()),
        ("the phrase", PHRASE.as_bytes().to_vec()),
    ];
    let names = ["the user's key", "the device's signing key", "the device's agreement key"];
    keys.extend(names.into_iter().zip(private.into_iter().map(<[u8]>::to_vec)));
    keys
}

fn assert_no_key_is_in(dump: &[u8], kind: &str, keys: &[(&str, Vec<u8>)]) {
    for (name, key) in keys {
        assert!(key.len() >= 32, "{name}");
        let base64 = STANDARD_NO_PAD.encode(key).into_bytes();
        for shown in [key, &hex(key), &base64] {
            assert!(!holds(dump, shown), "{kind} shows {name}");
        }
    }
}

/// What the store itself is. The directory around it is named after the user whose it is, and says so.
fn store_in(directory: &Path) -> Vec<u8> {
    let (mut bytes, mut folders) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            match path.is_dir() {
                true => folders.push(path),
                false if entry.file_name().to_string_lossy().starts_with("store.db") => {
                    bytes.extend(std::fs::read(path).unwrap());
                }
                false => {}
            }
        }
    }
    bytes
}

async fn on(stores: Arc<dyn StoreProvider>, url: &str, keyfile: &Path) -> App {
    builder(url).store(stores).keyfile(keyfile).identity_phrase(PHRASE).open().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_name_no_hash_of_one_and_no_key_is_in_a_store() {
    let directory = tempfile::tempdir().unwrap();
    let keyfile = directory.path().join("key");
    let (postgres, redis) = (Postgres::start().unwrap(), Redis::start().unwrap());
    let database = postgres.as_ref().map(|server| server.database().unwrap());
    // Each at a relay of its own, where the names are free.
    for kind in ["SQLite", "PostgreSQL", "Redis"] {
        let relay = relay().await;
        let url = relay.url();
        let files = directory.path().join(kind);
        let alices = match (kind, &database, &redis) {
            ("SQLite", ..) => {
                let builder = builder(&url).data_dir(&files).keyfile(&keyfile);
                builder.identity_phrase(PHRASE).open().await.unwrap()
            }
            ("PostgreSQL", Some(database), _) => {
                on(Arc::new(PostgresStores::new(&database.url).unwrap()), &url, &keyfile).await
            }
            ("Redis", _, Some(server)) => {
                on(Arc::new(RedisStores::new(&server.url()).unwrap()), &url, &keyfile).await
            }
            _ => continue,
        };
        let others = app(&url).await;
        let alice = alices.connect(OWN).await.unwrap();
        let peers = [others.connect(PEERS[0]).await.unwrap(), others.connect(PEERS[1]).await.unwrap()];
        talk(&alice, &peers).await;
        let keys = keys_of(&alice, &keyfile);
        // Both while the journal is there and after it was merged.
        for closed in [false, true] {
            if closed {
                alices.close().await.unwrap();
            }
            let dump = match (kind, &postgres, &database, &redis) {
                ("PostgreSQL", Some(server), Some(database), _) => {
                    server.dump(&database.name).unwrap().into_bytes()
                }
                ("Redis", .., Some(server)) => server.files().unwrap(),
                _ => store_in(&files),
            };
            assert_nobody_is_in(&dump, kind);
            assert_no_key_is_in(&dump, kind, &keys);
        }
        others.close().await.unwrap();
        relay.shutdown().await;
    }
}
