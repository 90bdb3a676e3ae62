//! The queue in front of the writer: bounded in operations and in bytes, and it wakes the writer no more often than a
//! batch needs. A channel would wake it for every operation that it adds to a batch, and a switch of threads costs as
//! much as the operation.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::writer::Operation;
use crate::limits::{BATCH_OPERATIONS, BATCH_WAIT, BATCH_WAIT_FROM, WRITER_QUEUE, WRITER_QUEUE_BYTES};

#[derive(Default)]
struct State {
    operations: std::collections::VecDeque<Operation>,
    /// Of operations that wait, and of those that were taken and whose results are not told yet.
    bytes: usize,
    /// From how many operations on the writer, which sleeps, is to be woken.
    wake_from: Option<usize>,
    closed: bool,
}

/// One end for everybody: the writer takes, others push.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

impl Queue {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an operation; hands it back when the queue is full or closed.
    pub(super) fn push(&self, operation: Operation) -> Result<(), Box<Operation>> {
        let bytes = operation.bytes();
        let mut state = self.lock();
        // A single operation always fits when nothing else is kept.
        let full = state.operations.len() >= WRITER_QUEUE
            || (state.bytes + bytes > WRITER_QUEUE_BYTES && state.bytes > 0);
        if full || state.closed {
            return Err(Box::new(operation));
        }
        state.bytes += bytes;
        state.operations.push_back(operation);
        if state.wake_from.is_some_and(|from| state.operations.len() >= from) {
            state.wake_from = None;
            drop(state);
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Takes no more operations; the writer gets those that wait, and then `None`.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// Sleeps until so many operations wait, the time is over, or the queue is closed.
    fn sleep<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        from: usize,
        limit: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        while state.operations.len() < from && !state.closed {
            state.wake_from = Some(from);
            state = match deadline {
                None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        state.wake_from = None;
        state
    }

    /// Makes room for as many bytes: a batch's results are told, and nothing keeps its messages any longer.
    pub(super) fn release(&self, bytes: usize) {
        let mut state = self.lock();
        state.bytes = state.bytes.saturating_sub(bytes);
    }

    /// The next batch: what waits, and under load a little more. `None` when nobody will push any more. Its bytes count
    /// until they are [released](Self::release).
    pub(super) fn take(&self) -> Option<Vec<Operation>> {
        let mut state = self.sleep(self.lock(), 1, None);
        if state.operations.is_empty() {
            return None;
        }
        if (BATCH_WAIT_FROM..BATCH_OPERATIONS).contains(&state.operations.len()) {
            state = self.sleep(state, BATCH_OPERATIONS, Some(BATCH_WAIT));
        }
        let count = state.operations.len().min(BATCH_OPERATIONS);
        Some(state.operations.drain(..count).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MailboxId;

    fn ack() -> Operation {
        Operation::Ack(MailboxId(1), Vec::new(), Box::new(drop))
    }

    fn blob(length: usize) -> Operation {
        Operation::put_of(length)
    }

    #[test]
    fn the_queue_holds_its_operations_and_not_one_more() {
        let queue = Queue::new();
        assert!((0..WRITER_QUEUE).all(|_| queue.push(ack()).is_ok()));
        assert!(queue.push(ack()).is_err());
        assert_eq!(queue.take().map(|batch| batch.len()), Some(BATCH_OPERATIONS));
        assert!(queue.push(ack()).is_ok(), "a batch made room");
    }

    #[test]
    fn the_queue_holds_its_bytes_and_not_one_more() {
        let queue = Queue::new();
        assert!(queue.push(blob(WRITER_QUEUE_BYTES - 512)).is_ok());
        assert!(queue.push(blob(513)).is_err());
        assert!(queue.push(blob(512)).is_ok());
        assert!(queue.push(ack()).is_ok(), "an operation without bytes needs none");
        let taken: usize = queue.take().iter().flatten().map(Operation::bytes).sum();
        assert_eq!(taken, WRITER_QUEUE_BYTES);
        assert!(queue.push(blob(1)).is_err(), "what was taken is kept until its results are told");
        queue.release(taken);
        assert!(queue.push(blob(WRITER_QUEUE_BYTES)).is_ok(), "a batch made room");
    }

    #[test]
    fn what_waits_when_the_queue_is_closed_is_still_taken() {
        let queue = Queue::new();
        assert!(queue.push(ack()).is_ok());
        queue.close();
        assert!(queue.push(ack()).is_err());
        assert_eq!(queue.take().map(|batch| batch.len()), Some(1));
        assert!(queue.take().is_none());
    }

    #[test]
    fn a_writer_that_sleeps_is_woken_by_the_first_operation_and_by_the_end() {
        let queue = Queue::new();
        let writer = {
            let queue = queue.clone();
            std::thread::spawn(move || {
                std::iter::from_fn(|| queue.take()).map(|batch| batch.len()).sum::<usize>()
            })
        };
        for _ in 0..1000 {
            assert!(queue.push(ack()).is_ok());
        }
        queue.close();
        assert_eq!(writer.join().unwrap(), 1000);
    }
}
