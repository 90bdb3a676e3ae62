//! Reading many rows at once: what verification does with each row alone, on other threads than that of the database.

use core::num::NonZero;
use std::borrow::Cow;
use std::collections::VecDeque;

use serde::Deserialize;
use serde::de::IgnoredAny;
use stvor_tlog::Hash;

use crate::audit::{Event, Operation};
use crate::engine::hour;
use crate::keys::BaseKeys;
use crate::memory::MemoryId;
use crate::storage::{EventPart, EventRow, MemoryPart, MemoryView};

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
    /// Whether something was said to it.
    pub(crate) spoke: bool,
    /// The digest of what was removed, of an event that tells of that.
    pub(crate) removed: Option<[u8; 32]>,
}

/// What verification needs of a memory's row.
#[derive(Debug)]
pub(crate) struct ReadMemory {
    pub(crate) id: MemoryId,
    /// What the log should have of it.
    pub(crate) digest: [u8; 32],
    /// What is wrong with its header.
    pub(crate) problem: Option<&'static str>,
}

/// Of an event what [`ReadEvent`] needs, where it stands.
#[derive(Deserialize)]
struct Seen<'a> {
    operation: Operation,
    #[serde(borrow, default)]
    memory: Option<&'a str>,
    #[serde(default)]
    refused: Option<IgnoredAny>,
    #[serde(borrow, default)]
    content: Option<&'a str>,
    #[serde(borrow, default)]
    text: Option<&'a str>,
    #[serde(borrow, default)]
    row: Option<&'a str>,
}

/// What is bound in a memory's row.
#[derive(Deserialize)]
struct Bound<'a> {
    id: MemoryId,
    #[serde(borrow)]
    namespace: Cow<'a, str>,
    expires: Option<u64>,
}

/// Reads part after part on this thread while other threads `work` on those before, and takes what comes of them, in order.
/// At most as many parts as there are threads are held at a time.
pub(crate) fn piped<R: Send, T: Send, E>(
    mut read: impl FnMut() -> Result<Option<R>, E>,
    work: impl Fn(R) -> T + Sync,
    mut take: impl FnMut(T) -> Result<(), E>,
) -> Result<(), E> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
    let Some(mut part) = read()? else { return Ok(()) };
    if threads == 1 {
        loop {
            take(work(part))?;
            let Some(next) = read()? else { return Ok(()) };
            part = next;
        }
    }
    let Some(second) = read()? else { return take(work(part)) };
    let (work, mut second) = (&work, Some(second));
    std::thread::scope(|scope| {
        let mut under_way = VecDeque::new();
        loop {
            under_way.push_back(scope.spawn(move || work(part)));
            if under_way.len() >= threads
                && let Some(first) = under_way.pop_front()
            {
                take(joined(first))?;
            }
            let next = match second.take() {
                None => read()?,
                second => second,
            };
            let Some(next) = next else { break };
            part = next;
        }
        under_way.into_iter().map(joined).try_for_each(&mut take)
    })
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    match thread.join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// An event's row, or nothing when it is not what was written there.
pub(crate) fn event(base: &BaseKeys, row: &EventRow) -> Option<ReadEvent> {
    read_event(base, (row.seq, &mut row.sealed.clone()))
}

/// Rows of events with their numbers.
pub(crate) fn events(base: &BaseKeys, part: EventPart) -> Vec<(u64, Option<ReadEvent>)> {
    part.each(|seq, sealed| (seq, read_event(base, (seq, sealed))))
}

fn read_event(base: &BaseKeys, (seq, sealed): (u64, &mut [u8])) -> Option<ReadEvent> {
    let (entry, said) = base.open_event_in_place(seq, sealed)?;
    let leaf = Hash::leaf(entry);
    let whole: Event;
    let seen = match serde_json::from_slice::<Seen<'_>>(entry) {
        Ok(seen) => seen,
        // A text with a character that JSON writes otherwise is not there as it stands.
        Err(_) => {
            whole = serde_json::from_slice(entry).ok()?;
            let row = whole.row.as_deref().filter(|_| whole.refused.is_none());
            let row = whole.memory.zip(row.and_then(bytes));
            let spoke = said.is_some();
            let said = said.is_none_or(|said| is_hash_of(base, said, whole.text.as_deref()));
            let refused = whole.refused.is_some();
            return Some(ReadEvent {
                leaf,
                operation: whole.operation,
                refused,
                memory: whole.memory,
                row,
                said,
                spoke,
                removed: removed(whole.operation, refused, whole.content.as_deref()),
            });
        }
    };
    let spoke = said.is_some();
    let said = said.is_none_or(|said| is_hash_of(base, said, seen.text));
    let memory = seen.memory.map(str::parse::<MemoryId>).transpose().ok()?;
    let row = match (memory, seen.row, &seen.refused) {
        (Some(memory), Some(digest), None) => Some((memory, bytes(digest)?)),
        _ => None,
    };
    let refused = seen.refused.is_some();
    let removed = removed(seen.operation, refused, seen.content);
    Some(ReadEvent { leaf, operation: seen.operation, refused, memory, row, said, spoke, removed })
}

fn removed(operation: Operation, refused: bool, content: Option<&str>) -> Option<[u8; 32]> {
    content.filter(|_| operation == Operation::Prune && !refused).and_then(bytes)
}

fn is_hash_of(base: &BaseKeys, said: &[u8], text: Option<&str>) -> bool {
    text.and_then(bytes).is_some_and(|hash| hash == *base.hash("text", said).expose())
}

/// Rows of memories: what the log should have of each, and what is wrong with its header.
pub(crate) fn memories(base: &BaseKeys, part: &MemoryPart) -> Vec<ReadMemory> {
    // Rows that follow each other are mostly of one namespace.
    let mut known: Option<(String, [u8; 16])> = None;
    part.each(|row| ReadMemory {
        id: *row.id,
        digest: row.digest(),
        problem: header(base, &row, &mut known).err(),
    })
}

fn header(
    base: &BaseKeys,
    row: &MemoryView<'_>,
    known: &mut Option<(String, [u8; 16])>,
) -> Result<(), &'static str> {
    let plain = base.rows.open(row.id.as_bytes(), row.header).map_err(|_| "its header does not open")?;
    let header: Bound<'_> =
        serde_json::from_slice(plain.expose()).map_err(|_| "its header is not understood")?;
    let due = header.expires.filter(|_| row.wrapped.is_some() || row.due.is_some()).map(hour);
    let space = match known {
        Some((namespace, space)) if *namespace == header.namespace => *space,
        _ => {
            let hash = base.hash("namespace", header.namespace.as_bytes());
            let space = hash.expose().first_chunk::<16>().copied().unwrap_or_default();
            *known = Some((header.namespace.into_owned(), space));
            space
        }
    };
    let same = header.id == *row.id && space == *row.space && row.due == due;
    if same { Ok(()) } else { Err("its header is of another row") }
}

/// 32 bytes from their hexadecimal digits.
fn bytes(text: &str) -> Option<[u8; 32]> {
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut out = [0; 32];
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    for (byte, [high, low]) in out.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_taken_in_their_order_and_the_first_failure_ends_it() {
        for count in [0, 1, 2, 3, 50] {
            let mut numbers = 0..count;
            let mut taken = Vec::new();
            let work = |number: usize| {
                // The first ones take longest.
                (0..20 * (count - number)).for_each(|_| std::thread::yield_now());
                number * 2
            };
            let take = |number| {
                taken.push(number);
                Ok::<_, ()>(())
            };
            piped(|| Ok(numbers.next()), work, take).unwrap();
            assert_eq!(taken, (0..count).map(|number| number * 2).collect::<Vec<_>>());
        }
        let mut numbers = 0..50;
        let mut taken = 0;
        let take = |number| {
            taken = number;
            if number == 10 { Err("ten") } else { Ok(()) }
        };
        assert_eq!(piped(|| Ok(numbers.next()), |number| number, take), Err("ten"));
        assert_eq!(taken, 10);
        let mut reads = 0;
        let read = || {
            reads += 1;
            if reads < 5 { Ok(Some(reads)) } else { Err("the fifth") }
        };
        assert_eq!(piped(read, |number| number, |_| Ok(())), Err("the fifth"));
    }

    #[test]
    fn digests_are_64_digits() {
        assert_eq!(bytes(&"0a".repeat(32)), Some([10; 32]));
        for text in [&"0a".repeat(31), &"0a".repeat(33), &"0x".repeat(32), &"\u{e9}".repeat(32)] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
