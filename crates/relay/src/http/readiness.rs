//! Whether the store can be written, asked at most once a second: each look is a commit, and anybody may probe.

use core::future::Future;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Mutex;

use crate::limits::READINESS_LIFE;
use crate::storage::StoreError;

/// An answer, and when it came.
type Answer = (Instant, Result<(), StoreError>);

/// The latest answer.
#[derive(Default)]
pub(crate) struct Readiness(Arc<Mutex<Option<Answer>>>);

impl Readiness {
    /// The answer of a moment ago, or what `check` says. Whoever asks meanwhile waits for the same, and the answer is
    /// kept also when the one who asked first is gone before it comes.
    pub(crate) async fn ask(
        &self,
        check: impl Future<Output = Result<(), StoreError>> + Send + 'static,
    ) -> Result<(), StoreError> {
        let mut latest = self.0.clone().lock_owned().await;
        if let Some((at, answer)) = &*latest
            && at.elapsed() < READINESS_LIFE
        {
            return answer.clone();
        }
        let checked = tokio::spawn(async move {
            let answer = check.await;
            *latest = Some((Instant::now(), answer.clone()));
            answer
        });
        checked.await.map_err(|error| StoreError::Unavailable(error.to_string()))?
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn the_answer_is_kept_when_the_asker_does_not_wait_for_it() {
        let readiness = Readiness::default();
        let (answer, first) = tokio::sync::oneshot::channel::<Result<(), StoreError>>();
        let asked = readiness.ask(async { first.await.unwrap() }).now_or_never();
        assert_eq!(asked, None, "the asker goes away while the check is under way");
        answer.send(Ok(())).unwrap();
        let again = readiness.ask(async { panic!("the store is looked at a second time") }).await;
        assert_eq!(again, Ok(()));
    }
}
