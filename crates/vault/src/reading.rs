//! Reading many rows at once: what verification does with each row alone, on other threads than that of the database.

use core::num::NonZero;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::mpsc;

use serde::Deserialize;
use serde::de::IgnoredAny;
use stvor_tlog::Hash;

use crate::audit::{Event, Operation};
use crate::engine::hour;
use crate::keys::BaseKeys;
use crate::memory::MemoryId;
use crate::sealing::Scratch;
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
    #[serde(borrow)]
    id: &'a str,
    #[serde(borrow)]
    namespace: Cow<'a, str>,
    expires: Option<u64>,
}

/// Reads part after part on this thread while other threads `work` on those before, and takes what comes of them, in order.
/// At most as many parts as there are threads and one more are held at a time; `read` gets those that are done with to fill them
/// again, so that memory which is there is used.
pub(crate) fn piped<R: Send + Default, T: Send, E>(
    mut read: impl FnMut(R) -> Result<Option<R>, E>,
    work: impl Fn(&R) -> T + Sync,
    mut take: impl FnMut(T) -> Result<(), E>,
) -> Result<(), E> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
    let Some(first) = read(R::default())? else { return Ok(()) };
    if threads == 1 {
        let mut part = first;
        loop {
            take(work(&part))?;
            let Some(next) = read(part)? else { return Ok(()) };
            part = next;
        }
    }
    // For one part nobody is worth starting.
    let Some(second) = read(R::default())? else { return take(work(&first)) };
    let work = &work;
    std::thread::scope(|scope| {
        let start = |_| {
            let (parts, given) = mpsc::sync_channel::<R>(1);
            let (done, results) = mpsc::sync_channel(1);
            let run = move || {
                // Ends when no more parts come, or nobody wants what comes of them.
                for part in given {
                    let result = work(&part);
                    if done.send((result, part)).is_err() {
                        break;
                    }
                }
            };
            (parts, results, scope.spawn(run))
        };
        let mut idle: VecDeque<_> = (0..threads).map(start).collect();
        let mut workers = idle.split_off(threads);
        let mut spare = Vec::new();
        let mut ready = VecDeque::from([first, second]);
        loop {
            let part = match ready.pop_front() {
                Some(part) => part,
                None => match read(spare.pop().unwrap_or_default())? {
                    Some(part) => part,
                    None => break,
                },
            };
            // Who was given the first of those under way is done first, or is waited for: so the order stays.
            let (worker, result) = match idle.pop_front() {
                Some(worker) => (worker, None),
                None => {
                    let Some((parts, results, thread)) = workers.pop_front() else { break };
                    let Ok((result, part)) = results.recv() else { return joined(thread) };
                    spare.push(part);
                    ((parts, results, thread), Some(result))
                }
            };
            let (parts, results, thread) = worker;
            // It goes on before this thread looks at what came of the part before.
            if parts.send(part).is_err() {
                return joined(thread);
            }
            workers.push_back((parts, results, thread));
            if let Some(result) = result {
                take(result)?;
            }
        }
        drop(idle);
        for (parts, results, thread) in workers {
            drop(parts);
            let Ok((result, _)) = results.recv() else { return joined(thread) };
            take(result)?;
        }
        Ok(())
    })
}

/// A thread that went away before it was told to: its panic is everybody's.
fn joined<E>(thread: std::thread::ScopedJoinHandle<'_, ()>) -> Result<(), E> {
    match thread.join() {
        Ok(()) => Ok(()),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// An event's row, or nothing when it is not what was written there.
pub(crate) fn event(base: &BaseKeys, row: &EventRow) -> Option<ReadEvent> {
    read_event(base, (row.seq, &row.sealed), &mut Scratch::default())
}

/// Rows of events with their numbers.
pub(crate) fn events(base: &BaseKeys, part: &EventPart) -> Vec<(u64, Option<ReadEvent>)> {
    let mut scratch = Scratch::default();
    part.each(|seq, sealed| (seq, read_event(base, (seq, sealed), &mut scratch)))
}

fn read_event(base: &BaseKeys, (seq, sealed): (u64, &[u8]), scratch: &mut Scratch) -> Option<ReadEvent> {
    let (entry, said) = base.open_event_into(seq, sealed, scratch)?;
    let leaf = Hash::leaf(entry);
    // Looked at as text once, and not string by string.
    let entry = core::str::from_utf8(entry).ok()?;
    let whole: Event;
    let seen = match serde_json::from_str::<Seen<'_>>(entry) {
        Ok(seen) => seen,
        // A text with a character that JSON writes otherwise is not there as it stands.
        Err(_) => {
            whole = serde_json::from_str(entry).ok()?;
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
    let (mut known, mut scratch) = (None, Scratch::default());
    part.each(|row| ReadMemory {
        id: *row.id,
        digest: row.digest(),
        problem: header(base, &row, (&mut known, &mut scratch)).err(),
    })
}

fn header(
    base: &BaseKeys,
    row: &MemoryView<'_>,
    (known, scratch): (&mut Option<(String, [u8; 16])>, &mut Scratch),
) -> Result<(), &'static str> {
    let plain = base.rows.open_into(row.id.as_bytes(), row.header, scratch);
    let plain = plain.map_err(|_| "its header does not open")?;
    let plain = core::str::from_utf8(plain).map_err(|_| "its header is not understood")?;
    let header: Bound<'_> = serde_json::from_str(plain).map_err(|_| "its header is not understood")?;
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
    let same = header.id.parse() == Ok(*row.id) && space == *row.space && row.due == due;
    if same { Ok(()) } else { Err("its header is of another row") }
}

/// 32 bytes from their hexadecimal digits, without a branch for each: what random digits are, no processor foresees.
fn bytes(text: &str) -> Option<[u8; 32]> {
    let mut wrong = 0;
    let mut digit = |digit: u8| {
        let (number, letter) = (digit.wrapping_sub(b'0'), (digit | 0x20).wrapping_sub(b'a'));
        wrong |= u8::from(number >= 10 && letter >= 6);
        if number < 10 { number } else { letter.wrapping_add(10) }
    };
    let mut out = [0; 32];
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    for (byte, [high, low]) in out.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = digit(*high) << 4 | digit(*low) & 15;
    }
    (wrong == 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_taken_in_their_order_and_the_first_failure_ends_it() {
        for count in [0, 1, 2, 3, 50] {
            let mut numbers = 0..count;
            let mut taken = Vec::new();
            let work = |&number: &usize| {
                // The first ones take longest.
                (0..20 * (count - number)).for_each(|_| std::thread::yield_now());
                number * 2
            };
            let take = |number| {
                taken.push(number);
                Ok::<_, ()>(())
            };
            piped(|_| Ok(numbers.next()), work, take).unwrap();
            assert_eq!(taken, (0..count).map(|number| number * 2).collect::<Vec<_>>());
        }
        let mut numbers = 0..50;
        let mut taken = 0;
        let take = |number| {
            taken = number;
            if number == 10 { Err("ten") } else { Ok(()) }
        };
        assert_eq!(piped(|_| Ok(numbers.next()), |number| *number, take), Err("ten"));
        assert_eq!(taken, 10);
        let mut reads = 0;
        let read = |_| {
            reads += 1;
            if reads < 5 { Ok(Some(reads)) } else { Err("the fifth") }
        };
        assert_eq!(piped(read, |number| *number, |_| Ok(())), Err("the fifth"));
        let mut numbers = 0..50;
        let work = |&number: &i32| assert_ne!(number, 20, "a worker's panic is everybody's");
        let run = || piped(|_| Ok::<_, ()>(numbers.next()), work, |()| Ok(()));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
    }

    #[test]
    fn digests_are_64_digits() {
        assert_eq!(bytes(&"0a".repeat(32)), Some([10; 32]));
        for text in [&"0a".repeat(31), &"0a".repeat(33), &"0x".repeat(32), &"\u{e9}".repeat(32)] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
