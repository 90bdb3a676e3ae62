//! Sealed states under their ids. Two saves of one id never overlap, not even when the first one outlived its deadline: a state
//! that lands late must not replace a newer one.

use super::SessionStore;
use crate::{StoreError, Table};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use stvor_crypto::aead::{Aes256Gcm, NONCE_BYTES};
use stvor_crypto::kdf::hkdf_sha256;
use stvor_crypto::{Random as _, Secret, SystemRandom};
use tokio::time::Instant;

const KEY_LABEL: &[u8] = b"STVOR narrow state key v1";
const STATE_LABEL: &[u8] = b"STVOR narrow state v1";
const VERSION: u8 = 1;

type Gate = Arc<tokio::sync::Mutex<()>>;

/// The states of one store. A sealed state is: version (1), nonce (12), ciphertext, tag (16); its associated data is a label and
/// the id that it is saved under. Nonces are random; one key seals at most 2^32 states, which are more commits than one
/// user makes in a lifetime.
pub(super) struct Blobs {
    sessions: Arc<dyn SessionStore>,
    deadline: Duration,
    cipher: Aes256Gcm,
    /// One for each id that was saved: journal slots and pages are numbered anew, so there is a bound.
    gates: Mutex<HashMap<String, Gate>>,
}

fn associated(id: &str) -> Vec<u8> {
    [STATE_LABEL, id.as_bytes()].concat()
}

impl Blobs {
    pub(super) fn new((sessions, deadline): (Arc<dyn SessionStore>, Duration), private: &Secret<32>) -> Self {
        let cipher = Aes256Gcm::new(&hkdf_sha256::<32>(b"", private.expose(), KEY_LABEL));
        Self { sessions, deadline, cipher, gates: Mutex::default() }
    }

    fn late(&self, call: &'static str) -> StoreError {
        StoreError::Timeout { call, after: self.deadline }
    }

    /// Seals and saves. After [`StoreError::Timeout`] the state may still land, but before any later one of this id.
    pub(super) async fn save(&self, id: String, mut bytes: Vec<u8>) -> Result<(), StoreError> {
        let mut nonce = [0; NONCE_BYTES];
        SystemRandom::new().fill(&mut nonce)?;
        self.cipher.seal(&nonce, &associated(&id), &mut bytes)?;
        let state = [&[VERSION], nonce.as_slice(), &bytes].concat();
        let gate = {
            let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(gates.entry(id.clone()).or_default())
        };
        let until = Instant::now() + self.deadline;
        let late = || self.late("sessions.save");
        let passed = tokio::time::timeout_at(until, gate.lock_owned()).await.map_err(|_| late())?;
        let sessions = Arc::clone(&self.sessions);
        // In a task of its own, which holds the gate until the call came back, however long that takes.
        let saving = tokio::spawn(async move {
            let saved = sessions.save(&id, &state).await;
            drop(passed);
            saved
        });
        match tokio::time::timeout_at(until, saving).await {
            Ok(Ok(saved)) => saved,
            Ok(Err(_)) => Err(StoreError::Adapter("sessions.save did not finish".into())),
            Err(_) => Err(late()),
        }
    }

    /// Loads and opens.
    pub(super) async fn load(&self, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let loading = tokio::time::timeout(self.deadline, self.sessions.load(id));
        let Some(state) = loading.await.map_err(|_| self.late("sessions.load"))?? else { return Ok(None) };
        let altered = || StoreError::Tampered { table: Table::Header };
        let (version, rest) = state.split_first().ok_or_else(altered)?;
        if *version != VERSION {
            return Err(StoreError::TooNew { found: (*version).into(), known: VERSION.into() });
        }
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>().ok_or_else(altered)?;
        let mut bytes = sealed.to_vec();
        let length = self.cipher.open(nonce, &associated(id), &mut bytes).map_err(|_| altered())?.len();
        bytes.truncate(length);
        Ok(Some(bytes))
    }
}
