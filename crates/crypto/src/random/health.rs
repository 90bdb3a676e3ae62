//! Health tests of a raw source, after SP 800-90B section 4.4.
//!
//! A sample is one byte. The source is the operating system's generator, whose output is conditioned, so the tests assume
//! a min-entropy of [`ASSUMED_ENTROPY_BITS`] = 8 bits a byte: the strictest claim, which makes the cut-offs low and the
//! tests sensitive. They cannot tell a good generator from a keyed one with a known seed; they find a source that is
//! stuck, constant, or grossly biased.
//!
//! With a false alarm probability of at most 2^-[`FALSE_ALARM_BITS`] for each position at which a test can fail:
//!
//! - repetition count (4.4.1): C = 1 + ceil(64 / 8) = [`REPETITION_CUTOFF`] = 9 equal bytes in a row. The chance that
//!   the 8 bytes after a given one all equal it is 2^-64.
//! - adaptive proportion (4.4.2): in a window of W = [`PROPORTION_WINDOW`] = 512 bytes the first one occurs C =
//!   [`PROPORTION_CUTOFF`] = 27 times, itself included. 26 is the smallest c with P\[Binomial(511, 2^-8) >= c\] below
//!   2^-64 (it is 2^-66.0); a test computes it anew.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Min-entropy of a raw byte that the tests assume, in bits.
pub const ASSUMED_ENTROPY_BITS: u32 = 8;
/// A test fails on a good source with a probability of at most two to the minus this, at each position.
pub const FALSE_ALARM_BITS: u32 = 64;
/// So many equal bytes in a row fail.
pub const REPETITION_CUTOFF: u32 = 1 + FALSE_ALARM_BITS.div_ceil(ASSUMED_ENTROPY_BITS);
/// Bytes of one window of the adaptive proportion test.
pub const PROPORTION_WINDOW: usize = 512;
/// So many occurrences of a window's first byte in that window fail.
pub const PROPORTION_CUTOFF: u32 = 27;
/// Bytes that the start-up test draws, examines and discards. SP 800-90B asks for at least 1,024.
pub const STARTUP_SAMPLES: usize = 4096;

/// What the tests of one source have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Health {
    /// Whether a test has failed. Nothing is drawn any more then.
    pub failed: bool,
    /// Bytes that passed the tests.
    pub samples: u64,
    /// Failures of the repetition count test.
    pub repetition_failures: u64,
    /// Failures of the adaptive proportion test.
    pub proportion_failures: u64,
}

/// The state that all generators over one source share.
#[derive(Debug, Default)]
pub struct HealthState {
    started: OnceLock<()>,
    failed: AtomicBool,
    samples: AtomicU64,
    repetition_failures: AtomicU64,
    proportion_failures: AtomicU64,
}

impl HealthState {
    /// Nothing tested yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            started: OnceLock::new(),
            failed: AtomicBool::new(false),
            samples: AtomicU64::new(0),
            repetition_failures: AtomicU64::new(0),
            proportion_failures: AtomicU64::new(0),
        }
    }

    /// What the tests have seen so far.
    #[must_use]
    pub fn health(&self) -> Health {
        Health {
            failed: self.failed(),
            samples: self.samples.load(Ordering::Relaxed),
            repetition_failures: self.repetition_failures.load(Ordering::Relaxed),
            proportion_failures: self.proportion_failures.load(Ordering::Relaxed),
        }
    }

    pub(super) fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(super) fn started(&self) -> bool {
        self.started.get().is_some()
    }

    pub(super) fn start(&self) {
        // Two threads may both have run the start-up test; both passed.
        let _ = self.started.set(());
    }

    /// Counts a verdict; an alarm stays for good.
    pub(super) fn record(&self, samples: usize, verdict: Result<(), Alarm>) -> Result<(), Alarm> {
        match verdict {
            Ok(()) => {
                self.samples.fetch_add(samples as u64, Ordering::Relaxed);
            }
            Err(alarm) => {
                let counter = match alarm {
                    Alarm::Repetition => &self.repetition_failures,
                    Alarm::Proportion => &self.proportion_failures,
                };
                counter.fetch_add(1, Ordering::Relaxed);
                self.failed.store(true, Ordering::Release);
            }
        }
        verdict
    }
}

/// Which test failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alarm {
    Repetition,
    Proportion,
}

/// Both tests over a stream that arrives in windows.
#[derive(Debug, Default)]
pub(super) struct Tests {
    /// The last byte and how often it came in a row. The window before may end in a run.
    run: Option<(u8, u32)>,
}

impl Tests {
    /// Examines one window, and the run that reaches into it.
    pub(super) fn window(&mut self, window: &[u8; PROPORTION_WINDOW]) -> Result<(), Alarm> {
        let mut occurrences = 0;
        for &byte in window {
            let length = match self.run {
                Some((last, length)) if last == byte => length + 1,
                _ => 1,
            };
            self.run = Some((byte, length));
            if length >= REPETITION_CUTOFF {
                return Err(Alarm::Repetition);
            }
            occurrences += u32::from(byte == window[0]);
            if occurrences >= PROPORTION_CUTOFF {
                return Err(Alarm::Proportion);
            }
        }
        Ok(())
    }
}

impl Drop for Tests {
    fn drop(&mut self) {
        self.run = None;
    }
}
