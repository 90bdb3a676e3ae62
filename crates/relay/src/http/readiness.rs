//! Whether the store can be written, asked at most once a second: each look is a commit, and anybody may probe.

use std::time::Instant;

use tokio::sync::Mutex;

use crate::limits::READINESS_LIFE;
use crate::storage::{SharedStore, StoreError};

/// The latest answer.
#[derive(Default)]
pub(crate) struct Readiness(Mutex<Option<(Instant, Result<(), StoreError>)>>);

impl Readiness {
    /// The answer of a moment ago, or a new one. Whoever asks meanwhile waits for the same.
    pub(crate) async fn ask(&self, store: &SharedStore) -> Result<(), StoreError> {
        let mut latest = self.0.lock().await;
        if let Some((at, answer)) = &*latest
            && at.elapsed() < READINESS_LIFE
        {
            return answer.clone();
        }
        let answer = store.check().await;
        *latest = Some((Instant::now(), answer.clone()));
        answer
    }
}
