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
/// Parts that a thread works on or has before it: it need not wait until the reading thread gets a processor.
const AHEAD: usize = 2;

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
/// At most [`AHEAD`] parts for each thread are held at a time; `read` gets those that are done with to fill them again, so that memory
/// which is there is used.
pub(crate) fn piped<R: Send + Default, T: Send, E>(
    mut read: impl FnMut(R) -> Result<Option<R>, E>,
    work: impl Fn(&R) -> T + Sync,
    mut take: impl FnMut(T) -> Result<(), E>,
) -> Result<(), E> {
    let threads = threads();
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
    let second = match read(R::default()) {
        Ok(Some(second)) => second,
        end => {
            take(work(&first))?;
            return end.map(drop);
        }
    };
    let work = &work;
    std::thread::scope(|scope| {
        let start = |_| {
            let (parts, given) = mpsc::sync_channel::<R>(AHEAD);
            let (done, results) = mpsc::sync_channel(AHEAD);
            scope.spawn(move || {
                // Ends when no more parts come, or nobody wants what comes of them.
                for part in given {
                    let result = work(&part);
                    if done.send((result, part)).is_err() {
                        break;
                    }
                }
            });
            (parts, results)
        };
        // Each thread in its turn gets a part, and in its turn gives what came of one: so the order stays.
        let (mut givers, mut takers): (VecDeque<_>, VecDeque<_>) = (0..threads).map(start).unzip();
        let (mut ready, mut spare, mut out) = (VecDeque::from([first, second]), Vec::new(), 0);
        loop {
            let next = match ready.pop_front() {
                Some(part) => Ok(Some(part)),
                None => read(spare.pop().unwrap_or_default()),
            };
            let mut end = None;
            match next {
                Ok(Some(part)) => {
                    // A thread that went away panicked, and that is everybody's panic at the end of the scope.
                    let Some(Ok(())) = turn(&mut givers).map(|parts| parts.send(part)) else { return Ok(()) };
                    out += 1;
                }
                other => end = Some(other.map(drop)),
            }
            // Until the end the threads have something to go on with while this one takes and reads.
            while out > 0 && (end.is_some() || out >= threads * AHEAD) {
                let Some(Ok((result, part))) = turn(&mut takers).map(mpsc::Receiver::recv) else {
                    return Ok(());
                };
                out -= 1;
                spare.push(part);
                take(result)?;
            }
            if let Some(end) = end {
                return end;
            }
        }
    })
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS)
}

/// The one whose turn it is; it comes last again then.
fn turn<T>(ring: &mut VecDeque<T>) -> Option<&T> {
    let first = ring.pop_front()?;
    ring.push_back(first);
    ring.back()
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
    use core::cell::Cell;

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
        let (mut numbers, held) = (0..50, Cell::new(0));
        let read = |_| {
            held.set(held.get() + 1);
            assert!(held.get() <= threads() * AHEAD, "what nobody took yet is not without bound");
            Ok::<_, ()>(numbers.next())
        };
        let take = |_| {
            held.set(held.get() - 1);
            Ok(())
        };
        piped(read, |number: &i32| *number, take).unwrap();
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
