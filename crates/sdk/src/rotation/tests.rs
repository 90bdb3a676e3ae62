//! Processes that end in the middle, and what stores say of identities.

use stvor_relay::{Config, Relay};

use super::*;

/// A process that ends after the commit and before anybody heard of the new key goes on at its next start.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_nobody_heard_of_goes_on_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let config = |port| Config { database: Some(folder.path().join("relay.db")), ..Config::mock(port) };
    let relay = Relay::start(config(0)).await.unwrap();
    let (url, port) = (relay.url(), relay.local_addr().port());
    let open = async || {
        let app = App::builder().app_token("stvor_dev_test123").relay_url(&url);
        app.data_dir(folder.path().join("data")).open().await.unwrap()
    };
    let app = open().await;
    let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    alice.send("bob", "hello").await.unwrap().delivered().await.unwrap();
    let old = alice.identity().fingerprint;
    bob.close().await;
    relay.shutdown().await;
    let core = Arc::clone(alice.core());
    alice.send("bob", "queued").await.unwrap();
    let next = core.hand_over(Duration::from_millis(10)).await;
    let ((was, new), next) = next.unwrap();
    assert_eq!((was, next.identity.rotations().map(|chain| chain.steps().len())), (old.clone(), Some(1)));
    // As a process that is killed: nothing is flushed or told.
    next.end().await;
    drop((next, core, alice, bob, app));

    let relay = Relay::start(config(port)).await.unwrap();
    let app = open().await;
    let alice = app.connect("alice").await.unwrap();
    assert_eq!(alice.identity().fingerprint, new);
    let bob = app.connect("bob").await.unwrap();
    let mut inbox = bob.messages();
    alice.send("bob", "after").await.unwrap();
    let mut got = Vec::new();
    while got.len() < 3 {
        let next = tokio::time::timeout(Duration::from_secs(30), inbox.next()).await.unwrap().unwrap();
        got.push(next.text().unwrap().to_owned());
    }
    got.sort();
    assert_eq!(got, ["after", "hello", "queued"]);
    app.close().await.unwrap();
    relay.shutdown().await;
}

/// A process that ends after the sessions were put away tells the contacts at its next start, though nobody says a word.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_not_told_before_the_process_ended_is_told_at_its_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let config = |port| Config { database: Some(folder.path().join("relay.db")), ..Config::mock(port) };
    let relay = Relay::start(config(0)).await.unwrap();
    let (url, port) = (relay.url(), relay.local_addr().port());
    let open = async |user: &'static str| {
        let app = App::builder().app_token("stvor_dev_test123").relay_url(&url);
        let app = app.data_dir(folder.path().join(user)).open().await.unwrap();
        (app.connect(user).await.unwrap(), app)
    };
    let ((alice, home), (bob, at_bob)) = (open("alice").await, open("bob").await);
    alice.send("bob", "hello").await.unwrap().delivered().await.unwrap();
    relay.shutdown().await;
    let core = Arc::clone(alice.core());
    let (_, next) = core.hand_over(Duration::from_millis(10)).await.unwrap();
    // Without a relay: sessions are put away and nobody is told.
    settle(&next).await.unwrap();
    next.end().await;
    drop((next, core, alice, home));
    let mut events = bob.events();
    let relay = Relay::start(config(port)).await.unwrap();
    let (alice, home) = open("alice").await;
    tokio::time::timeout(Duration::from_secs(30), async {
        while !matches!(events.next().await, Some(crate::Event::IdentityRotated { .. })) {}
    })
    .await
    .unwrap();
    alice.close().await;
    home.close().await.unwrap();
    drop(bob);
    at_bob.close().await.unwrap();
    relay.shutdown().await;
}

/// A store of before does not say whether its identity follows from words: somebody has to.
#[tokio::test(flavor = "multi_thread")]
async fn an_identity_of_unknown_origin_is_rotated_only_if_somebody_knows_it() {
    let relay = Relay::start(Config::mock(0)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let words = crate::RecoveryPhrase::fresh().unwrap().words();
    let words = core::str::from_utf8(words.expose()).unwrap().to_owned();
    let of = |name: &str| {
        let app = App::builder().app_token("stvor_dev_test123").relay_url(relay.url());
        app.data_dir(folder.path().join(name))
    };
    for (user, derived) in [("alice", true), ("bob", false)] {
        let made = if derived { of(user).identity_phrase(&words) } else { of(user) };
        let app = made.open().await.unwrap();
        let client = app.connect(user).await.unwrap();
        let mut changes = ChangeSet::new();
        changes.delete(keys::meta(DERIVED));
        client.core().store.commit(changes).await.unwrap();
        client.close().await;
        app.close().await.unwrap();
        let app = of(user).open().await.unwrap();
        let refused = app.rotate_identity(user).await.map(|_| ()).unwrap_err();
        assert_eq!(refused.code(), "IDENTITY_ORIGIN_UNKNOWN");
        app.close().await.unwrap();
        let knows = RotateOptions { not_derived: true, ..RotateOptions::default() };
        if derived {
            // Once it was opened with the words it is known for good.
            let app = of(user).identity_phrase(&words).open().await.unwrap();
            app.connect(user).await.unwrap().close().await;
            app.close().await.unwrap();
        }
        let app = of(user).open().await.unwrap();
        let rotated = app.rotate_identity_with(user, knows).await.map(|_| ());
        match derived {
            true => assert_eq!(rotated.unwrap_err().code(), "IDENTITY_DERIVED"),
            false => rotated.unwrap(),
        }
        app.close().await.unwrap();
    }
    relay.shutdown().await;
}

async fn mock() -> (stvor_relay::Handle, App) {
    let relay = Relay::start(Config::mock(0)).await.unwrap();
    let app = App::builder().app_token("stvor_dev_test123").relay_url(relay.url()).in_memory();
    let app = app.open().await.unwrap();
    (relay, app)
}

/// Who meets a user after their rotation learns of the keys of before: with the bundle, or by asking for them.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_contact_knows_the_keys_of_before_whoever_writes_first() {
    let (relay, app) = mock().await;
    let (first, app) = (app.connect("alice").await.unwrap(), app);
    let old = *first.core().identity.user_key();
    drop(first);
    let alice = app.rotate_identity("alice").await.unwrap().client;
    for (peer, writes) in [("dave", true), ("erin", false)] {
        let client = app.connect(peer).await.unwrap();
        match writes {
            true => client.send("alice", "hello").await.unwrap().delivered().await.unwrap(),
            false => alice.send(peer, "hello").await.unwrap().delivered().await.unwrap(),
        };
        let key = records::key(&stvor_protocol::RecordKey::pin(alice.user())).unwrap();
        let known = async {
            loop {
                if let Some(row) = client.core().store.one(&key).await.unwrap()
                    && stvor_protocol::Pin::from_record(&row.value).unwrap().left(&old).is_some()
                {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), known).await.expect(peer);
    }
    app.close().await.unwrap();
    relay.shutdown().await;
}

/// What a rotation writes, and nothing else.
async fn replace(core: &Core) -> (String, String) {
    let mut changes = ChangeSet::new();
    let replaced = hand_over(&core.store, core.now(), &mut changes).await.unwrap();
    core.store.commit(changes).await.unwrap();
    replaced
}

async fn stored(core: &Core) -> Identity {
    let row = core.store.one(&records::key(&Identity::key()).unwrap()).await.unwrap().unwrap();
    Identity::from_record(&row.value).unwrap()
}

#[tokio::test]
async fn of_our_own_keys_of_before_64_are_known() {
    let (relay, app) = mock().await;
    let client = app.connect("alice").await.unwrap();
    let core = client.core();
    let mut before = Vec::new();
    for _ in 0..=MAX_EARLIER_KEYS {
        before.push(*stored(core).await.user_key());
        replace(core).await;
    }
    let identity = stored(core).await;
    assert_eq!(earlier_keys(&core.store, &identity).await.unwrap(), before[1..]);
    // Without the row, as in a store of before, the chain still names some.
    let mut changes = ChangeSet::new();
    changes.delete(keys::meta(EARLIER));
    core.store.commit(changes).await.unwrap();
    let known = earlier_keys(&core.store, &identity).await.unwrap();
    assert_eq!(known, before[before.len() - known.len()..]);
    assert_eq!(known.len(), stvor_base::rotations::MAX_ROTATIONS);
    app.close().await.unwrap();
    relay.shutdown().await;
}

#[test]
fn the_row_of_keys_of_before_reads_back_and_a_newer_one_is_told_apart() {
    for suite in Suite::ALL {
        let key = |byte: u8| KeyBytes::try_from(&vec![byte; suite.key_bytes()][..]).unwrap();
        let keys = [key(1), key(2)];
        let bytes = encode_keys(suite, &keys);
        // As version 1 writes it, for good.
        let written = [&[suite.layout(1), 2][..], &keys[0], &keys[1]].concat();
        assert_eq!(bytes, written);
        assert_eq!(decode_keys(&bytes).unwrap(), keys);
        for length in 0..bytes.len() {
            assert!(decode_keys(&bytes[..length]).is_err(), "{length}");
        }
        let newer = [&[suite.layout(EARLIER_VERSION + 1)], &bytes[1..]].concat();
        assert!(matches!(decode_keys(&newer), Err(CodecError::Version(_))));
    }
}

/// An instance that came between the last look of whoever rotated and their commit, whose process ended then.
#[tokio::test]
async fn nobody_finishes_a_rotation_with_the_identity_of_before_in_memory() {
    let (relay, app) = mock().await;
    let client = app.connect("alice").await.unwrap();
    let core = client.core();
    replace(core).await;
    let mut changes = ChangeSet::new();
    changes.push(rollback::row_of_rotation(core));
    core.store.commit(changes).await.unwrap();
    assert!(is_replaced(core).await.unwrap());
    assert_eq!(rollback::look_again(core).await.unwrap_err().code(), "CLIENT_NOT_READY");
    assert!(core.rollback().is_none());
    assert!(rollback::resume(core).await.is_ok(), "as a start would find it");
    assert_eq!(rollback::recover(core).await.unwrap_err().code(), "CLIENT_NOT_READY");
    let left = core.store.one(&keys::meta("recovering")).await.unwrap();
    assert!(left.is_some(), "whoever has the new identity finishes it");
    app.close().await.unwrap();
    relay.shutdown().await;
}

/// A name that was mistyped makes nobody.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_identity_here_is_refused_before_anything_is_made() {
    let (relay, app) = mock().await;
    let folder = tempfile::tempdir().unwrap();
    let kept = App::builder().app_token("stvor_dev_test123").relay_url(relay.url());
    let kept = kept.data_dir(folder.path()).open().await.unwrap();
    for (app, user) in [(&app, "alice"), (&kept, "bob")] {
        let refused = app.rotate_identity("typo").await.map(|_| ()).unwrap_err();
        assert_eq!(refused.code(), "IDENTITY_NOT_FOUND");
        app.connect(user).await.unwrap();
        app.rotate_identity(user).await.unwrap();
        let refused = app.rotate_identity("typo").await.map(|_| ()).unwrap_err();
        assert_eq!(refused.code(), "IDENTITY_NOT_FOUND");
        app.close().await.unwrap();
    }
    let names = |user: &str| kept.config().place.of_user(&stvor_base::UserId::new(user).unwrap()).unwrap();
    assert!(names("bob").exists() && !names("typo").exists());
    // Closed, it is found all the same.
    kept.rotate_identity("bob").await.unwrap();
    kept.close().await.unwrap();
    // And the relay never heard of the other.
    let asks = app.connect("asks").await.unwrap();
    let known = asks.wait_for_user("typo", Duration::ZERO).await.unwrap_err();
    assert_eq!(known.code(), "RECIPIENT_NOT_FOUND");
    app.close().await.unwrap();
    relay.shutdown().await;
}
