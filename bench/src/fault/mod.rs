//! The fault test: real senders, a receiver and a relay are killed with SIGKILL at random moments while messages flow,
//! and a history decides.
//!
//! Each sender is a `stvor send --lines --json`, the receiver a `stvor listen --json`, the relay a durable
//! `stvor relay`; whoever is killed is started again on the same files. Between clients and relay stands a recorder, which
//! sees every blob. What must hold:
//!
//! - a message whose receipt says accepted is printed by the receiver exactly once, and messages of one sender in the
//!   order of sending. Lines may repeat, with the same id, only as the first ones of their sender after the
//!   receiver was killed, because they are acknowledged after they are printed;
//! - no two different blobs share ratchet key and number: no key is ever used twice;
//! - nobody ends by itself with a failure other than an unreachable relay.

mod run;

use std::fmt;
use std::path::PathBuf;

use stvor_testkit::history::Counts;

pub use run::run;

/// Who can be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The relay.
    Relay,
    /// The receiver.
    Receiver,
    /// One of the senders.
    Sender,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Relay, Self::Receiver, Self::Sender];
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The `stvor` binary.
    pub binary: PathBuf,
    /// Messages of all senders that are to be accepted; those that die with a sender come on top.
    pub messages: usize,
    /// How often something is killed.
    pub kills: usize,
    /// Senders, each in a conversation of its own with the receiver.
    pub senders: usize,
    /// Who is killed, each as often as it is named.
    pub victims: Vec<Role>,
    /// Decides who is killed and when. What processes do between is theirs, so a run does not repeat exactly.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Messages.
    pub counts: Counts,
    /// Kills of the relay, the receiver and senders.
    pub kills: [usize; 3],
    /// Lines that the receiver repeated after it was killed, as it may.
    pub repeats: usize,
    /// Different blobs that went to the relay.
    pub blobs: usize,
    /// How long it took.
    pub seconds: f64,
    /// Everything that is wrong; empty when all held.
    pub violations: Vec<String>,
    /// What happened, a line each, with the milliseconds since the start.
    pub log: Vec<String>,
}

/// Violations that are printed; the rest is counted.
const PRINTED: usize = 20;

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { sent, accepted, received } = self.counts;
        let [relay, receiver, senders] = self.kills;
        writeln!(
            f,
            "{} kills (relay {relay}, receiver {receiver}, senders {senders}) in {:.0} s: {sent} sent, {accepted} \
             accepted, {received} received, {} repeated after a kill, {} different blobs",
            relay + receiver + senders,
            self.seconds,
            self.repeats,
            self.blobs,
        )?;
        for violation in self.violations.iter().take(PRINTED) {
            writeln!(f, "  WRONG: {violation}")?;
        }
        if let Some(more @ 1..) = self.violations.len().checked_sub(PRINTED) {
            writeln!(f, "  and {more} more")?;
        }
        let verdict =
            if self.violations.is_empty() { "nothing lost, doubled, reordered or reused" } else { "FAILED" };
        f.write_str(verdict)
    }
}
