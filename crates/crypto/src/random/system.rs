//! The operating system's generator, pooled and tested.

use core::fmt;
use std::sync::Arc;

use zeroize::Zeroize;

use super::health::{Health, HealthState, PROPORTION_WINDOW, STARTUP_SAMPLES, Tests};
use crate::random::Random;
use crate::{CryptoError, Secret};

/// Where raw bytes come from. Implemented by the operating system's generator; tests put stuck and biased ones in.
pub trait RawSource: Send {
    /// Fills `out`.
    ///
    /// # Errors
    /// [`CryptoError::RandomnessUnavailable`].
    fn read(&mut self, out: &mut [u8]) -> Result<(), CryptoError>;
}

struct OperatingSystem;

impl RawSource for OperatingSystem {
    fn read(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        getrandom::fill(out).map_err(|_| CryptoError::RandomnessUnavailable)
    }
}

static PROCESS: HealthState = HealthState::new();

/// The health of the operating system's generator, over the whole process. A source for a metric.
#[must_use]
pub fn health() -> Health {
    PROCESS.health()
}

/// Refuses after a failed health test. For operations whose library draws its own randomness.
pub(crate) fn require_health() -> Result<(), CryptoError> {
    if PROCESS.failed() { Err(CryptoError::RandomnessUnhealthy) } else { Ok(()) }
}

enum State {
    Process,
    Own(Arc<HealthState>),
}

/// Random bytes of the operating system.
///
/// Bytes are drawn 512 at a time, so that a nonce does not cost a system call; each is wiped from the pool when it is
/// handed out, and a pool is never used in another process than the one that filled it. What is drawn passes the
/// health tests (see [`HealthState`]); the first draw in a process examines 4,096 bytes more. After a failure every
/// generator of the process refuses for good.
///
/// ```
/// use stvor_crypto::{Random, SystemRandom};
/// let mut key = [0; 32];
/// SystemRandom::new().fill(&mut key)?;
/// assert!(!stvor_crypto::random::health().failed);
/// # Ok::<(), stvor_crypto::CryptoError>(())
/// ```
pub struct SystemRandom {
    source: Box<dyn RawSource>,
    state: State,
    tests: Tests,
    pool: Secret<PROPORTION_WINDOW>,
    /// Bytes of the pool that were handed out.
    used: usize,
    /// The process that filled the pool.
    process: u32,
}

impl SystemRandom {
    /// A generator with an empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self::over(Box::new(OperatingSystem), State::Process)
    }

    /// A generator over another source, with a health of its own. For tests.
    #[must_use]
    pub fn with_source(source: Box<dyn RawSource>, state: Arc<HealthState>) -> Self {
        Self::over(source, State::Own(state))
    }

    fn over(source: Box<dyn RawSource>, state: State) -> Self {
        let pool = Secret::zeroed();
        Self { source, state, tests: Tests::default(), pool, used: PROPORTION_WINDOW, process: 0 }
    }

    fn state(&self) -> &HealthState {
        match &self.state {
            State::Process => &PROCESS,
            State::Own(state) => state,
        }
    }

    /// Draws and examines one window.
    fn refill(&mut self) -> Result<(), CryptoError> {
        self.used = PROPORTION_WINDOW;
        let drawn = self.source.read(self.pool.expose_mut());
        let verdict = drawn.and_then(|()| {
            let verdict = self.tests.window(self.pool.expose());
            self.state().record(PROPORTION_WINDOW, verdict).map_err(|_| CryptoError::RandomnessUnhealthy)
        });
        if verdict.is_err() {
            self.pool.expose_mut().zeroize();
        }
        verdict
    }

    fn start(&mut self) -> Result<(), CryptoError> {
        for _ in 0..STARTUP_SAMPLES.div_ceil(PROPORTION_WINDOW) {
            self.refill()?;
        }
        self.state().start();
        Ok(())
    }
}

impl Random for SystemRandom {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        if self.state().failed() {
            return Err(CryptoError::RandomnessUnhealthy);
        }
        if !self.state().started() {
            self.start()?;
        }
        let process = std::process::id();
        if process != self.process {
            self.pool.expose_mut().zeroize();
            self.used = PROPORTION_WINDOW;
            self.process = process;
        }
        let mut rest = out;
        while !rest.is_empty() {
            if self.used == PROPORTION_WINDOW {
                self.refill()?;
                self.used = 0;
            }
            let count = rest.len().min(PROPORTION_WINDOW - self.used);
            let (now, later) = rest.split_at_mut(count);
            let taken = &mut self.pool.expose_mut()[self.used..self.used + count];
            now.copy_from_slice(taken);
            taken.zeroize();
            self.used += count;
            rest = later;
        }
        Ok(())
    }
}

impl Default for SystemRandom {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SystemRandom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemRandom").field("health", &self.state().health()).finish_non_exhaustive()
    }
}
