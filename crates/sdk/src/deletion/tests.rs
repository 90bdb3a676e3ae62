//! Processes that end in the middle of deleting an account, and callers that do not wait.

use stvor_relay::{Config, Handle, Relay};

use super::*;
use crate::App;

struct Scene {
    folder: tempfile::TempDir,
    relay: Handle,
}

impl Scene {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { database: Some(folder.path().join("relay.db")), ..Config::mock(0) };
        Self { relay: Relay::start(config).await.unwrap(), folder }
    }

    async fn app(&self) -> App {
        let app = App::builder().app_token("stvor_dev_test123").relay_url(self.relay.url());
        app.data_dir(self.folder.path().join("data")).open().await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_ends_after_the_relay_deleted_the_account_leaves_nothing_for_good() {
    let scene = Scene::new().await;
    let app = scene.app().await;
    let alice = app.connect("alice").await.unwrap();
    let (core, old) = (Arc::clone(alice.core()), alice.identity().fingerprint);
    note(&core, true).await.unwrap();
    ask(&core).await.unwrap();
    // As a process that is killed.
    core.end().await;
    drop((core, alice, app));
    let app = scene.app().await;
    assert_eq!(app.users().len(), 1);
    let told = app.connect("alice").await.map(|_| ()).unwrap_err();
    assert_eq!(told.code(), "ACCOUNT_DELETED");
    assert_eq!(app.users().len(), 0, "what was left is gone");
    let anew = app.connect("alice").await.unwrap();
    assert_ne!(anew.identity().fingerprint, old);
    app.close().await.unwrap();
    scene.relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_ends_before_the_relay_did_anything_has_its_account() {
    let scene = Scene::new().await;
    let app = scene.app().await;
    let alice = app.connect("alice").await.unwrap();
    let (core, old) = (Arc::clone(alice.core()), alice.identity().fingerprint);
    note(&core, true).await.unwrap();
    core.end().await;
    drop((core, alice, app));
    // Whether there is an account only the relay knows.
    let url = scene.relay.url();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_ne!(url, format!("ws://{nobody}"));
    let app = scene.app().await;
    let alice = app.connect("alice").await.unwrap();
    assert_eq!(alice.identity().fingerprint, old);
    assert!(!is_under_way(&alice.core().store).await.unwrap());
    alice.close().await;
    assert_eq!(app.connect("alice").await.unwrap().identity().fingerprint, old);
    app.close().await.unwrap();
    scene.relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_relay_nobody_knows_whether_the_account_is_there() {
    let scene = Scene::new().await;
    let app = scene.app().await;
    let alice = app.connect("alice").await.unwrap();
    let core = Arc::clone(alice.core());
    note(&core, true).await.unwrap();
    core.end().await;
    drop((core, alice, app));
    let app = scene.app().await;
    scene.relay.shutdown().await;
    let told = app.connect("alice").await.map(|_| ()).unwrap_err();
    assert_eq!(told.code(), "RELAY_UNAVAILABLE");
    assert_eq!(app.users().len(), 1, "and nothing is removed on that account");
    app.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_wait_for_a_deletion_finds_it_done_or_the_account_as_it_was() {
    let scene = Scene::new().await;
    for moment in 0..12_u32 {
        let app = scene.app().await;
        let user = format!("user{moment}");
        let client = app.connect(&user).await.unwrap();
        let core = Arc::clone(client.core());
        let deleting = tokio::spawn(async move { client.delete_account().await });
        for _ in 0..moment * 20 {
            tokio::task::yield_now().await;
        }
        deleting.abort();
        let _ = deleting.await;
        // It goes on by itself once it began.
        if core.deleting.load(Ordering::SeqCst) {
            let mut closed = core.closed.subscribe();
            let _ = tokio::time::timeout(Duration::from_secs(30), closed.wait_for(|closed| *closed))
                .await
                .unwrap();
        }
        drop(core);
        tokio::time::timeout(Duration::from_secs(30), async {
            while !app.users().is_empty() {
                if let Ok(client) = app.connect(&user).await {
                    let _ = client.delete_account().await;
                }
            }
        })
        .await
        .unwrap();
        app.close().await.unwrap();
    }
    scene.relay.shutdown().await;
}
