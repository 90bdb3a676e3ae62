//! Approvals: what the owner allows, once, to one agent, for one memory and one purpose, for a while.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Moment;
use crate::level::Level;
use crate::limits;
use crate::memory::{Header, MemoryId};

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stand {
    /// The owner has not decided.
    Pending,
    /// The owner allowed it; it was not used yet.
    Granted,
    /// The owner did not allow it.
    Denied,
    /// It was used.
    Used,
}

/// A request for approval, and what the owner said to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// Its name.
    pub id: MemoryId,
    /// Which agent asked.
    pub agent: String,
    /// For which memory.
    pub memory: MemoryId,
    /// What for, in the agent's words. The recall gives the same words.
    pub purpose: String,
    /// Digest of the memory's row at that time: an approval does not outlive a change of what it was given for.
    pub row: String,
    /// When it was asked.
    pub asked: Moment,
    /// When it was decided.
    pub decided: Option<Moment>,
    /// How long it is valid after it was granted, in milliseconds.
    pub valid: u64,
    /// What became of it.
    pub stand: Stand,
}

impl Approval {
    /// Whether it allows this recall now. On both clocks: one that was set back does not lengthen it.
    #[must_use]
    pub fn allows(&self, recall: &Wanted<'_>, now: &Moment) -> bool {
        let Some(decided) = &self.decided else { return false };
        self.stand == Stand::Granted
            && now.wall >= decided.wall
            && at_most_since(decided, now) < Duration::from_millis(self.valid)
            && self.agent == recall.agent
            && self.memory == recall.memory
            && self.purpose == recall.purpose
            && self.row == recall.row
    }
}

impl Approval {
    /// Whether the request is too old to be granted. On both clocks; one that was ahead by as much when it was asked counts, too.
    pub(crate) fn is_old(&self, now: &Moment) -> bool {
        let ahead = Duration::from_millis(self.asked.wall.saturating_sub(now.wall));
        at_most_since(&self.asked, now).max(ahead) > limits::MAX_REQUEST_AGE
    }
}

/// How much time has passed at most, on the two clocks.
fn at_most_since(then: &Moment, now: &Moment) -> Duration {
    let same_boot = !now.boot.is_empty() && now.boot == then.boot;
    let ran = if same_boot { now.uptime.saturating_sub(then.uptime) } else { 0 };
    Duration::from_millis(now.wall.saturating_sub(then.wall).max(ran))
}

/// A request as the owner sees it: with what is known of the memory that it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Its name.
    pub id: MemoryId,
    /// Which agent asked.
    pub agent: String,
    /// For which memory.
    pub memory: MemoryId,
    /// What for, in the agent's words.
    pub purpose: String,
    /// When it was asked.
    pub asked: Moment,
    /// When it was decided.
    pub decided: Option<Moment>,
    /// How long it is valid after it was granted, in milliseconds.
    pub valid: u64,
    /// What became of it.
    pub stand: Stand,
    /// What is known of the memory; nothing where its row is gone or was changed by somebody else.
    pub about: Option<About>,
    /// Why a request that waits can not be granted any more.
    pub outdated: Option<String>,
}

/// What is known of a memory that an agent wants to recall.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// How well it is kept.
    pub level: Level,
    /// Whose, or which project's.
    pub namespace: String,
    /// Who stored it.
    pub creator: String,
    /// Where it is from, in the words of who stored it.
    pub source: String,
    /// When it was stored, in milliseconds since the Unix epoch.
    pub created: u64,
}

impl Request {
    pub(crate) fn new(approval: Approval, about: Option<Header>, outdated: Option<&str>) -> Self {
        let Approval { id, agent, memory, purpose, row: _, asked, decided, valid, stand } = approval;
        let about = about.map(|header| {
            let Header { level, namespace, creator, source, created, .. } = header;
            About { level, namespace, creator, source, created }
        });
        let outdated = outdated.map(str::to_owned);
        Self { id, agent, memory, purpose, asked, decided, valid, stand, about, outdated }
    }
}

/// The recall that an approval is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Which agent asks.
    pub agent: &'a str,
    /// For which memory.
    pub memory: MemoryId,
    /// What for.
    pub purpose: &'a str,
    /// Digest of the memory's row.
    pub row: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall: u64, uptime: u64) -> Moment {
        Moment { wall, uptime, boot: "b".into() }
    }

    #[test]
    fn a_request_is_old_a_day_after_it_was_asked_on_either_clock() {
        let day = u64::try_from(limits::MAX_REQUEST_AGE.as_millis()).unwrap();
        let id = MemoryId::from_bytes([1; 16]);
        let asked = Approval {
            id,
            agent: "a".into(),
            memory: id,
            purpose: "report".into(),
            row: "r".into(),
            asked: at(2 * day, 1_000),
            decided: None,
            valid: 0,
            stand: Stand::Pending,
        };
        assert!(!asked.is_old(&at(3 * day, 1_000 + day)));
        assert!(asked.is_old(&at(3 * day + 1, 1_000)));
        assert!(asked.is_old(&at(2 * day, 1_001 + day)), "the clock was set back");
        assert!(!asked.is_old(&at(2 * day - 1_000, 1_000)), "a little");
        assert!(asked.is_old(&at(day - 1, 1_000)), "by more than a day");
    }

    #[test]
    fn an_approval_is_for_one_agent_memory_purpose_and_time() {
        let id = MemoryId::from_bytes([1; 16]);
        let granted = Approval {
            id,
            agent: "a".into(),
            memory: id,
            purpose: "report".into(),
            row: "r".into(),
            asked: at(0, 0),
            decided: Some(at(1_000, 1_000)),
            valid: 500,
            stand: Stand::Granted,
        };
        let wanted = Wanted { agent: "a", memory: id, purpose: "report", row: "r" };
        assert!(granted.allows(&wanted, &at(1_499, 1_499)));
        assert!(!granted.allows(&wanted, &at(1_500, 1_500)), "expired");
        assert!(!granted.allows(&wanted, &at(1_100, 1_600)), "expired, the clock was set back");
        assert!(!granted.allows(&wanted, &at(999, 1_001)), "the clock was set back");
        assert!(!granted.allows(&Wanted { agent: "b", ..wanted }, &at(1_001, 1_001)));
        assert!(
            !granted.allows(&Wanted { memory: MemoryId::from_bytes([2; 16]), ..wanted }, &at(1_001, 1_001))
        );
        assert!(!granted.allows(&Wanted { purpose: "else", ..wanted }, &at(1_001, 1_001)));
        assert!(!granted.allows(&Wanted { row: "s", ..wanted }, &at(1_001, 1_001)));
        for stand in [Stand::Pending, Stand::Denied, Stand::Used] {
            assert!(!Approval { stand, ..granted.clone() }.allows(&wanted, &at(1_001, 1_001)));
        }
    }
}
