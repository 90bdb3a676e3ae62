//! Several processes, one identity: `kill -9` at random while messages flow both ways through a store that they share,
//! and a history decides.
//!
//! Four instances of `alice` are processes of their own on one PostgreSQL or Redis, `bob` is a process on SQLite, the relay
//! is a durable `stvor relay`; between clients and relay stands a recorder, which sees every blob. Whoever is killed is
//! started again, the server of the store too; where that has a replica, the replica takes its place first. What must hold:
//!
//! - a message that an outbox took is handed to the application of the recipient, and is consumed at most once;
//! - one that was handed out is handed out again only if whoever had it was killed before it had consumed it, or lost its
//!   claim to it;
//! - what one process sent arrives at `bob` in the order of sending;
//! - no two different blobs share ratchet key and number: no key is ever used twice;
//! - all instances have one identity, nothing is undecryptable, and nobody ends by itself.

mod child;
mod judge;
mod run;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use child::child;
pub use run::{copies, run};

/// Where the instances keep what they share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backend {
    /// PostgreSQL.
    Postgres,
    /// Redis.
    Redis,
    /// Redis with a replica that commits wait for, behind one address: its end is a failover.
    RedisPair,
    /// A Redis Cluster whose masters have such replicas: the end of one is a failover.
    RedisCluster,
}

/// Who can be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// One of the instances.
    Instance,
    /// The other side.
    Peer,
    /// The relay.
    Relay,
    /// The server of the store.
    Server,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Instance, Self::Peer, Self::Relay, Self::Server];
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The `stvor` binary, for the relay.
    pub binary: PathBuf,
    /// A program and its arguments that calls [`child`].
    pub child: (PathBuf, Vec<String>),
    /// Where the instances keep what they share.
    pub backend: Backend,
    /// How many instances there are at a time.
    pub instances: usize,
    /// Messages each way that outboxes are to take.
    pub messages: usize,
    /// How often something is killed.
    pub kills: usize,
    /// Who is killed, each as often as it is named.
    pub victims: Vec<Role>,
    /// Decides who is killed and when. What processes do between is theirs, so a run does not repeat exactly.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Messages that outboxes took: of the instances, of the peer.
    pub taken: [usize; 2],
    /// Messages that were consumed: at the peer, at the instances.
    pub consumed: [usize; 2],
    /// How often a message was handed out again.
    pub again: usize,
    /// Kills of instances, the peer, the relay, the server.
    pub kills: [usize; 4],
    /// Different blobs that went to the relay.
    pub blobs: usize,
    /// How long it took.
    pub seconds: f64,
    /// Everything that is wrong; empty when all held.
    pub violations: Vec<String>,
}

/// Violations that are printed; the rest is counted.
const PRINTED: usize = 20;

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([out, back], [at_peer, at_instances]) = (self.taken, self.consumed);
        let [instances, peer, relay, server] = self.kills;
        writeln!(
            f,
            "{} kills (instances {instances}, peer {peer}, relay {relay}, server {server}) in {:.0} s: {out} sent by the \
             instances and {at_peer} consumed, {back} sent to them and {at_instances} consumed, {} handed out again, {} \
             different blobs",
            self.kills.iter().sum::<usize>(),
            self.seconds,
            self.again,
            self.blobs,
        )?;
        for violation in self.violations.iter().take(PRINTED) {
            writeln!(f, "  WRONG: {violation}")?;
        }
        if let Some(more @ 1..) = self.violations.len().checked_sub(PRINTED) {
            writeln!(f, "  and {more} more")?;
        }
        let verdict = if self.violations.is_empty() { "nothing lost, doubled or reused" } else { "FAILED" };
        f.write_str(verdict)
    }
}
