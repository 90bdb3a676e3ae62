//! The judge of fault tests: what was sent, what was accepted, what arrived.
//!
//! Processes die at random moments, so a test can not know which sends got through. It records what it did and saw,
//! and the [`Checker`] decides:
//!
//! - a message whose send was *accepted* arrives exactly once;
//! - a message that was sent and never accepted arrives once or not at all;
//! - what arrives was sent, unaltered, and within its conversation in the order of sending.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A way in which a history is wrong. Messages are named by the id that the test gave them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Violation {
    /// Accepted, and never received.
    Lost {
        /// The conversation it was sent in.
        conversation: String,
        /// The message.
        id: String,
    },
    /// Received more than once.
    Doubled {
        /// The conversation it arrived in.
        conversation: String,
        /// The message.
        id: String,
        /// How often it arrived.
        times: usize,
    },
    /// Received, and never sent in this conversation.
    Invented {
        /// The conversation it arrived in.
        conversation: String,
        /// The message.
        id: String,
    },
    /// Received with other content than was sent.
    Altered {
        /// The conversation it arrived in.
        conversation: String,
        /// The message.
        id: String,
    },
    /// Received after a message that was sent later.
    OutOfOrder {
        /// The conversation it arrived in.
        conversation: String,
        /// The message that came late.
        id: String,
        /// The later message that came before it.
        after: String,
    },
    /// Accepted, though the test never sent it: a mistake in the test.
    AcceptedUnsent {
        /// The conversation.
        conversation: String,
        /// The message.
        id: String,
    },
    /// One id sent twice in a conversation: a mistake in the test.
    SentTwice {
        /// The conversation.
        conversation: String,
        /// The message.
        id: String,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { conversation, id } => {
                write!(f, "{conversation}: {id} was accepted and never arrived")
            }
            Self::Doubled { conversation, id, times } => {
                write!(f, "{conversation}: {id} arrived {times} times")
            }
            Self::Invented { conversation, id } => {
                write!(f, "{conversation}: {id} arrived and was never sent")
            }
            Self::Altered { conversation, id } => {
                write!(f, "{conversation}: {id} arrived with other content")
            }
            Self::OutOfOrder { conversation, id, after } => {
                write!(f, "{conversation}: {id} arrived after {after}, which was sent later")
            }
            Self::AcceptedUnsent { conversation, id } => {
                write!(f, "{conversation}: {id} was recorded as accepted but not as sent")
            }
            Self::SentTwice { conversation, id } => {
                write!(f, "{conversation}: {id} was recorded as sent twice")
            }
        }
    }
}

#[derive(Default)]
struct Conversation {
    sent: Vec<(String, Vec<u8>)>,
    accepted: HashSet<String>,
    received: Vec<(String, Vec<u8>)>,
}

/// Counts of a history, for the closing line of a fault test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages sent.
    pub sent: usize,
    /// Messages accepted.
    pub accepted: usize,
    /// Arrivals, repeats included.
    pub received: usize,
}

/// Records a history and judges it. Shared between threads by reference.
///
/// ```
/// use stvor_testkit::{Checker, Violation};
/// let checker = Checker::default();
/// checker.sent("alice>bob", "1", b"hello");
/// checker.accepted("alice>bob", "1");
/// assert_eq!(checker.verdict(), vec![Violation::Lost { conversation: "alice>bob".into(), id: "1".into() }]);
/// checker.received("alice>bob", "1", b"hello");
/// assert!(checker.verdict().is_empty());
/// ```
#[derive(Default)]
pub struct Checker(Mutex<BTreeMap<String, Conversation>>);

impl Checker {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Conversation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message was handed to the sender. Call it before the send, in the order of sending.
    pub fn sent(&self, conversation: &str, id: &str, content: &[u8]) {
        self.lock().entry(conversation.to_owned()).or_default().sent.push((id.to_owned(), content.to_vec()));
    }

    /// The sender was told that the message is accepted.
    pub fn accepted(&self, conversation: &str, id: &str) {
        self.lock().entry(conversation.to_owned()).or_default().accepted.insert(id.to_owned());
    }

    /// The application at the other end got the message. Call it in the order of arrival.
    pub fn received(&self, conversation: &str, id: &str, content: &[u8]) {
        self.lock()
            .entry(conversation.to_owned())
            .or_default()
            .received
            .push((id.to_owned(), content.to_vec()));
    }

    /// What was recorded so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().values().fold(Counts::default(), |sum, c| Counts {
            sent: sum.sent + c.sent.len(),
            accepted: sum.accepted + c.accepted.len(),
            received: sum.received + c.received.len(),
        })
    }

    /// Accepted messages that have not arrived: what a test waits for before it asks for the verdict.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.lock()
            .values()
            .map(|c| {
                let received: HashSet<&str> = c.received.iter().map(|(id, _)| id.as_str()).collect();
                c.accepted.iter().filter(|id| !received.contains(id.as_str())).count()
            })
            .sum()
    }

    /// Everything that is wrong, sorted; empty for a good history.
    #[must_use]
    pub fn verdict(&self) -> Vec<Violation> {
        let mut violations: Vec<Violation> =
            self.lock().iter().flat_map(|(name, c)| judge(name, c)).collect();
        violations.sort();
        violations
    }
}

fn judge(name: &str, history: &Conversation) -> Vec<Violation> {
    let conversation = || name.to_owned();
    let mut violations = Vec::new();
    let mut places: HashMap<&str, (usize, &[u8])> = HashMap::new();
    for (place, (id, content)) in history.sent.iter().enumerate() {
        if places.insert(id, (place, content)).is_some() {
            violations.push(Violation::SentTwice { conversation: conversation(), id: id.clone() });
        }
    }
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    let mut furthest: Option<(usize, &str)> = None;
    for (id, content) in &history.received {
        let count = times.entry(id).or_default();
        *count += 1;
        let Some((place, sent)) = places.get(id.as_str()) else {
            violations.push(Violation::Invented { conversation: conversation(), id: id.clone() });
            continue;
        };
        if content != sent {
            violations.push(Violation::Altered { conversation: conversation(), id: id.clone() });
        }
        match furthest {
            // A repeat is reported as such below, not as disorder too.
            Some((reached, after)) if *place < reached && *count == 1 => {
                violations.push(Violation::OutOfOrder {
                    conversation: conversation(),
                    id: id.clone(),
                    after: after.to_owned(),
                });
            }
            Some((reached, _)) if *place <= reached => {}
            _ => furthest = Some((*place, id)),
        }
    }
    for (id, times) in times.iter().filter(|(_, times)| **times > 1) {
        violations.push(Violation::Doubled {
            conversation: conversation(),
            id: (*id).to_owned(),
            times: *times,
        });
    }
    for id in &history.accepted {
        if !places.contains_key(id.as_str()) {
            violations.push(Violation::AcceptedUnsent { conversation: conversation(), id: id.clone() });
        } else if !times.contains_key(id.as_str()) {
            violations.push(Violation::Lost { conversation: conversation(), id: id.clone() });
        }
    }
    violations
}

/// Finds two different values under one key: two ciphertexts under one message key, two rows under one number.
///
/// ```
/// use stvor_testkit::history::Unique;
/// let mut keys = Unique::default();
/// assert!(keys.record(b"ratchet key, 7", b"blob"));
/// assert!(keys.record(b"ratchet key, 7", b"blob"), "a retry sends the same bytes");
/// assert!(!keys.record(b"ratchet key, 7", b"another blob"));
/// ```
#[derive(Default)]
pub struct Unique(HashMap<Vec<u8>, Vec<u8>>);

impl Unique {
    /// Notes that `key` carries `value`; false if it carried another one before.
    pub fn record(&mut self, key: &[u8], value: &[u8]) -> bool {
        match self.0.get(key) {
            Some(before) => before == value,
            None => {
                self.0.insert(key.to_vec(), value.to_vec());
                true
            }
        }
    }

    /// Number of keys seen.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no key was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TALK: &str = "alice>bob";

    fn talk(sent: &[&str], accepted: &[&str], received: &[&str]) -> Vec<Violation> {
        let checker = Checker::default();
        for id in sent {
            checker.sent(TALK, id, id.as_bytes());
        }
        for id in accepted {
            checker.accepted(TALK, id);
        }
        for id in received {
            checker.received(TALK, id, id.as_bytes());
        }
        checker.verdict()
    }

    fn named(id: &str) -> (String, String) {
        (TALK.to_owned(), id.to_owned())
    }

    #[test]
    fn good_history_has_no_violation() {
        assert_eq!(talk(&["1", "2", "3"], &["1", "2", "3"], &["1", "2", "3"]), vec![]);
    }

    #[test]
    fn unaccepted_message_may_arrive_or_not() {
        assert_eq!(talk(&["1", "2"], &["1"], &["1"]), vec![]);
        assert_eq!(talk(&["1", "2"], &["1"], &["1", "2"]), vec![]);
    }

    #[test]
    fn accepted_message_that_never_arrives_is_lost() {
        let (conversation, id) = named("2");
        assert_eq!(talk(&["1", "2"], &["1", "2"], &["1"]), vec![Violation::Lost { conversation, id }]);
    }

    #[test]
    fn repeat_is_doubled_and_not_disorder() {
        let (conversation, id) = named("1");
        assert_eq!(
            talk(&["1", "2"], &[], &["1", "2", "1"]),
            vec![Violation::Doubled { conversation, id, times: 2 }]
        );
    }

    #[test]
    fn overtaken_message_is_out_of_order() {
        let (conversation, id) = named("1");
        let after = "2".to_owned();
        assert_eq!(
            talk(&["1", "2"], &[], &["2", "1"]),
            vec![Violation::OutOfOrder { conversation, id, after }]
        );
    }

    #[test]
    fn message_that_nobody_sent_is_invented() {
        let (conversation, id) = named("9");
        assert_eq!(talk(&["1"], &[], &["9"]), vec![Violation::Invented { conversation, id }]);
    }

    #[test]
    fn changed_content_is_altered() {
        let checker = Checker::default();
        checker.sent(TALK, "1", b"yes");
        checker.received(TALK, "1", b"no");
        let (conversation, id) = named("1");
        assert_eq!(checker.verdict(), vec![Violation::Altered { conversation, id }]);
    }

    #[test]
    fn missing_counts_accepted_messages_on_their_way() {
        let checker = Checker::default();
        checker.sent(TALK, "1", b"");
        checker.sent(TALK, "2", b"");
        checker.accepted(TALK, "1");
        assert_eq!(checker.missing(), 1);
        checker.received(TALK, "1", b"");
        assert_eq!(checker.missing(), 0);
        assert_eq!(checker.counts(), Counts { sent: 2, accepted: 1, received: 1 });
    }
}
