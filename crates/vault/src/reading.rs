//! Reading many rows at once: what verification does with each row alone, on as many threads as the machine has.

use core::num::NonZero;

use serde::Deserialize;
use stvor_tlog::Hash;

use crate::audit::{Event, Operation};
use crate::engine::hour;
use crate::keys::BaseKeys;
use crate::memory::MemoryId;
use crate::storage::{EventRow, MemoryRow};

/// Threads at most.
const MAX_THREADS: usize = 8;

/// What verification needs of an event.
#[derive(Debug)]
pub(crate) struct ReadEvent {
    /// The hash of the log's leaf.
    pub(crate) leaf: Hash,
    pub(crate) operation: Operation,
    pub(crate) refused: bool,
    /// The memory that it is about.
    pub(crate) memory: Option<MemoryId>,
    /// The memory whose row it changed, and the row's digest after it.
    pub(crate) row: Option<(MemoryId, [u8; 32])>,
    /// Whether what was said to it is what its hash says.
    pub(crate) said: bool,
}

/// What is bound in a memory's row.
#[derive(Deserialize)]
struct Bound {
    id: MemoryId,
    namespace: String,
    expires: Option<u64>,
}

/// Does `work` for each of `rows`, in order, on several threads.
pub(crate) fn each<R: Sync, T: Send>(rows: &[R], work: impl Fn(&R) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
    let share = rows.len().div_ceil(threads).max(1);
    if threads == 1 || rows.len() < 64 {
        return rows.iter().map(work).collect();
    }
    std::thread::scope(|scope| {
        let work = &work;
        let parts: Vec<_> = rows
            .chunks(share)
            .map(|part| scope.spawn(move || part.iter().map(work).collect::<Vec<T>>()))
            .collect();
        let mut done = Vec::with_capacity(rows.len());
        for part in parts {
            match part.join() {
                Ok(part) => done.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    })
}

/// An event's row, or nothing when it is not what was written there.
pub(crate) fn event(base: &BaseKeys, row: &EventRow) -> Option<ReadEvent> {
    let (event, entry): (Event, Vec<u8>) = base.open_event(row)?;
    let said = event.said.as_ref().is_none_or(|said| {
        let hash = crate::audit::hex(base.hash("text", said.as_bytes()).expose());
        event.text.as_ref() == Some(&hash)
    });
    let row = match (event.memory, &event.row, &event.refused) {
        (Some(memory), Some(digest), None) => Some((memory, bytes(digest)?)),
        _ => None,
    };
    let refused = event.refused.is_some();
    Some(ReadEvent {
        leaf: Hash::leaf(&entry),
        operation: event.operation,
        refused,
        memory: event.memory,
        row,
        said,
    })
}

/// What is wrong with a memory's header, if anything is.
pub(crate) fn header(base: &BaseKeys, row: &MemoryRow) -> Option<&'static str> {
    let Ok(plain) = base.rows.open(row.id.as_bytes(), &row.header) else {
        return Some("its header does not open");
    };
    let Ok(header) = serde_json::from_slice::<Bound>(plain.expose()) else {
        return Some("its header is not understood");
    };
    let due = header.expires.filter(|_| row.wrapped.is_some() || row.due.is_some()).map(hour);
    let space = base.hash("namespace", header.namespace.as_bytes());
    let same = header.id == row.id && space.expose().get(..16) == Some(&row.space[..]) && row.due == due;
    (!same).then_some("its header is of another row")
}

/// 32 bytes from their hexadecimal digits.
fn bytes(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_on_many_threads_keeps_its_order() {
        for count in [0, 1, 63, 64, 1_000] {
            let rows: Vec<usize> = (0..count).collect();
            assert_eq!(each(&rows, |row| row * 2), rows.iter().map(|row| row * 2).collect::<Vec<_>>());
        }
    }

    #[test]
    fn digests_are_64_digits() {
        assert_eq!(bytes(&"0a".repeat(32)), Some([10; 32]));
        for text in [&"0a".repeat(31), &"0a".repeat(33), &"0x".repeat(32), &"\u{e9}".repeat(32)] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
