//! Stores whose keys are in a keyring.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use common::{builder, code, relay};
use stvor::{KeyError, KeyringItem, SecretBytes, SecretService};

#[derive(Debug, Default)]
struct Ring(Mutex<HashMap<KeyringItem, Vec<u8>>>);

impl SecretService for Ring {
    fn load(&self, item: &KeyringItem) -> Result<Option<SecretBytes>, KeyError> {
        Ok(self.0.lock().unwrap().get(item).map(|secret| SecretBytes::from_slice(secret)))
    }

    fn save(&self, item: &KeyringItem, secret: &SecretBytes) -> Result<(), KeyError> {
        self.0.lock().unwrap().insert(item.clone(), secret.expose().to_vec());
        Ok(())
    }

    fn remove(&self, item: &KeyringItem) -> Result<(), KeyError> {
        self.0.lock().unwrap().remove(item);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keyring_opens_what_it_sealed_and_nothing_else_does() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let ring = Arc::new(Ring::default());
    let open = |ring: Arc<Ring>| builder(&relay.url()).data_dir(directory.path()).keyring(ring).open();

    let app = open(ring.clone()).await.unwrap();
    let alice = app.connect("alice").await.unwrap();
    let fingerprint = alice.identity().fingerprint.clone();
    let store = alice.data_path().unwrap().to_owned();
    app.close().await.unwrap();
    assert_eq!(ring.0.lock().unwrap().len(), 1);
    let beside: Vec<_> =
        std::fs::read_dir(store.parent().unwrap()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(!beside.iter().any(|name| name.to_string_lossy().ends_with(".key")), "{beside:?}");

    let app = open(ring).await.unwrap();
    let alice = app.connect("alice").await.unwrap();
    assert_eq!(alice.identity().fingerprint, fingerprint);
    app.close().await.unwrap();

    let app = open(Arc::new(Ring::default())).await.unwrap();
    assert_eq!(code(app.connect("alice").await), "KEY_MISSING");
}
