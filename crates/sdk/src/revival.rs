//! What happens after a fault in the program (a panic): the task that met it is begun afresh, from what is stored, after a
//! wait that doubles with each fault in a row. Other tasks go on meanwhile.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt;
use stvor_base::Address;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::events::Event;
use crate::groups::Post;
use crate::limits;

/// How long is waited, and after how many faults in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wait {
    pub(crate) attempt: u32,
    pub(crate) after: Duration,
}

impl Wait {
    fn of(attempt: u32) -> Self {
        let doubled = 2_u32.saturating_pow(attempt.saturating_sub(1));
        let after = limits::REVIVE_FIRST.saturating_mul(doubled).min(limits::BACKOFF_LONGEST);
        Self { attempt, after }
    }
}

struct Crash {
    attempt: u32,
    at: Instant,
    waiting: bool,
    posts: VecDeque<Arc<Post>>,
}

/// Conversations that met faults.
#[derive(Default)]
pub(crate) struct Revival(Mutex<HashMap<Address, Crash>>);

impl Revival {
    fn lock(&self) -> MutexGuard<'_, HashMap<Address, Crash>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry<'a>(crashes: &'a mut HashMap<Address, Crash>, peer: &Address) -> &'a mut Crash {
        // Those that went well for long are forgotten, so the table holds what crashed lately.
        crashes.retain(|_, crash| crash.waiting || crash.at.elapsed() < limits::REVIVED_FOR);
        crashes.entry(peer.clone()).or_insert_with(|| Crash {
            attempt: 0,
            at: Instant::now(),
            waiting: false,
            posts: VecDeque::new(),
        })
    }

    /// A conversation met a fault: how long it rests.
    pub(crate) fn crashed(&self, peer: &Address) -> Wait {
        let mut crashes = self.lock();
        let crash = Self::entry(&mut crashes, peer);
        crash.attempt = crash.attempt.saturating_add(1);
        (crash.at, crash.waiting) = (Instant::now(), true);
        Wait::of(crash.attempt)
    }

    /// What a conversation had for its peer as a member of groups.
    pub(crate) fn rescue(&self, peer: &Address, posts: VecDeque<Arc<Post>>) {
        if !posts.is_empty() {
            Self::entry(&mut self.lock(), peer).posts.extend(posts);
        }
    }

    /// Whether a conversation rests after a fault.
    pub(crate) fn is_waiting(&self, peer: &Address) -> bool {
        self.lock().get(peer).is_some_and(|crash| crash.waiting)
    }

    /// It is begun afresh, with these posts.
    pub(crate) fn begins(&self, peer: &Address) -> VecDeque<Arc<Post>> {
        let mut crashes = self.lock();
        let Some(crash) = crashes.get_mut(peer) else { return VecDeque::new() };
        crash.waiting = false;
        core::mem::take(&mut crash.posts)
    }
}

/// Runs a task of a client that is to go on for as long as the client; after a fault again.
pub(crate) async fn keep<F: Future<Output = ()>>(
    task: &'static str,
    mut run: impl FnMut() -> F,
    (client, stop): (Weak<Core>, CancellationToken),
) {
    let mut attempt = 0;
    loop {
        let began = Instant::now();
        if AssertUnwindSafe(run()).catch_unwind().await.is_ok() {
            return;
        }
        attempt = if began.elapsed() < limits::REVIVED_FOR { attempt + 1 } else { 1 };
        let wait = Wait::of(attempt);
        tracing::error!(task, attempt, "a task met a fault in the program");
        if let Some(client) = client.upgrade() {
            client.hub.emit(Event::TaskFailed { task, attempt, retry_after: wait.after });
        }
        tokio::select! {
            () = tokio::time::sleep(wait.after) => {}
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute() {
        let seconds: Vec<_> = (1..=9).map(|attempt| Wait::of(attempt).after.as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(Wait::of(u32::MAX).after, limits::BACKOFF_LONGEST);
    }

    #[tokio::test]
    async fn a_task_that_panics_is_run_again_until_it_ends_by_itself_or_the_client_does() {
        let mut runs = 0;
        let task = || {
            runs += 1;
            let fails = runs < 2;
            async move { assert!(!fails, "a fault on purpose") }
        };
        keep("test", task, (Weak::new(), CancellationToken::new())).await;
        assert_eq!(runs, 2);
        let stop = CancellationToken::new();
        stop.cancel();
        keep("test", || async { panic!("a fault on purpose") }, (Weak::new(), stop)).await;
    }
}
