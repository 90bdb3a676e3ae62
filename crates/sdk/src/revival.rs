//! What happens after a fault in the program (a panic): the task that met it is begun afresh, from what is stored, after a
//! wait that doubles with each fault in a row. Other tasks go on meanwhile.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt;
use stvor_base::{Address, MessageId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::events::Event;
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
    /// Messages that were being judged in faults, and in how many.
    suspects: VecDeque<(MessageId, u32)>,
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
            suspects: VecDeque::new(),
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

    /// A fault came while these messages were judged together: one of them may be the cause.
    pub(crate) fn suspect(&self, peer: &Address, messages: &[MessageId]) {
        if messages.is_empty() {
            return;
        }
        let mut crashes = self.lock();
        let suspects = &mut Self::entry(&mut crashes, peer).suspects;
        for message in messages {
            match suspects.iter_mut().find(|(known, _)| known == message) {
                Some((_, faults)) => *faults = faults.saturating_add(1),
                None => suspects.push_back((*message, 1)),
            }
        }
        while suspects.len() > limits::MAX_SUSPECTS {
            suspects.pop_front();
        }
    }

    /// In how many faults which messages of a peer were being judged.
    pub(crate) fn suspects(&self, peer: &Address) -> HashMap<MessageId, u32> {
        self.lock().get(peer).map(|crash| crash.suspects.iter().copied().collect()).unwrap_or_default()
    }

    /// Messages were judged without a fault.
    pub(crate) fn clear(&self, peer: &Address, judged: &[MessageId]) {
        if let Some(crash) = self.lock().get_mut(peer) {
            crash.suspects.retain(|(message, _)| !judged.contains(message));
        }
    }

    /// Whether a conversation rests after a fault.
    pub(crate) fn is_waiting(&self, peer: &Address) -> bool {
        self.lock().get(peer).is_some_and(|crash| crash.waiting)
    }

    /// It is begun afresh.
    pub(crate) fn begins(&self, peer: &Address) {
        if let Some(crash) = self.lock().get_mut(peer) {
            crash.waiting = false;
        }
    }
}

/// How often the connection was started afresh after faults lately: it is everybody's.
#[derive(Default)]
pub(crate) struct Kicks(Mutex<KickState>);

#[derive(Default)]
struct KickState {
    at: VecDeque<Instant>,
    /// One waits for its time.
    waits: bool,
}

impl Kicks {
    /// When to start it afresh once more; `None` if that is going to be done already.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        if state.waits {
            return None;
        }
        while state.at.front().is_some_and(|at| now.saturating_duration_since(*at) >= limits::FAULT_KICKS_IN)
        {
            state.at.pop_front();
        }
        let at = match state.at.front() {
            Some(first) if state.at.len() >= limits::FAULT_KICKS => *first + limits::FAULT_KICKS_IN,
            _ => now,
        };
        state.waits = at > now;
        state.at.push_back(at);
        while state.at.len() > limits::FAULT_KICKS {
            state.at.pop_front();
        }
        Some(at)
    }

    /// The one that waited is done.
    pub(crate) fn done(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).waits = false;
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

    #[test]
    fn suspects_are_counted_and_the_oldest_go_past_the_bound() {
        let revival = Revival::default();
        let peer = Address::new(stvor_base::UserId::new("eve").unwrap(), stvor_base::DeviceId::FIRST);
        let id = |number: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            MessageId::from_bytes(bytes)
        };
        revival.suspect(&peer, &[id(0), id(1)]);
        revival.suspect(&peer, &[id(1)]);
        assert_eq!(revival.suspects(&peer), HashMap::from([(id(0), 1), (id(1), 2)]));
        revival.clear(&peer, &[id(0)]);
        assert_eq!(revival.suspects(&peer), HashMap::from([(id(1), 2)]));
        let many: Vec<_> = (2..=limits::MAX_SUSPECTS).map(id).collect();
        revival.suspect(&peer, &many);
        assert!(revival.suspects(&peer).contains_key(&id(1)), "as many as there may be");
        revival.suspect(&peer, &[id(limits::MAX_SUSPECTS + 1)]);
        let suspects = revival.suspects(&peer);
        assert!(suspects.len() == limits::MAX_SUSPECTS && !suspects.contains_key(&id(1)));
    }

    #[test]
    fn the_connection_is_started_afresh_after_faults_a_few_times_a_minute() {
        let kicks = Kicks::default();
        let now = Instant::now();
        for _ in 0..limits::FAULT_KICKS {
            assert_eq!(kicks.next(now), Some(now));
        }
        let later = now + limits::FAULT_KICKS_IN;
        assert_eq!(kicks.next(now), Some(later));
        assert_eq!(kicks.next(now), None, "one waits, and does for all");
        kicks.done();
        assert_eq!(kicks.next(later), Some(later));
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
