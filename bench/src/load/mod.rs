//! The whole path: real relay processes, clients that load them.
//!
//! - [`server`]: the relay as a process of its own.
//! - [`raw`]: a client that speaks the wire and encrypts nothing, so that it costs little beside the relay.
//! - [`crowd`]: users who all write to one user.
//! - [`relay`]: what a message, a connection and a reconnect cost the relay.
//! - [`whole`]: two users with durable stores and everything between them.
//! - [`peers`]: other servers under the same load.

pub mod crowd;
pub mod peers;
pub mod raw;
pub mod relay;
pub mod server;
pub mod whole;

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::Outcome;

/// How much load, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Pairs of a sender and a receiver.
    pub pairs: usize,
    /// How long one measurement lasts.
    pub lasts: Duration,
    /// Connections of the idle and the reconnect measurement.
    pub connections: usize,
}

impl Load {
    /// The load of the design's numbers.
    pub const FULL: Self = Self { pairs: 50, lasts: Duration::from_secs(5), connections: 5_000 };
    /// A rough idea in a tenth of the time.
    pub const QUICK: Self = Self { pairs: 10, lasts: Duration::from_secs(1), connections: 500 };
}

/// Times of messages in microseconds, from 1 us to 1 minute with three digits.
///
/// # Errors
/// Never, with these bounds.
pub fn histogram() -> Outcome<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

/// Counts and microseconds here are far below 2^52.
#[expect(clippy::cast_precision_loss, reason = "see above")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

/// Microseconds of a span.
pub(crate) fn microseconds(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
