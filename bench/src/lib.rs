//! Benchmarks of STVOR beside its floors and its peers, measured in the same run, and the tests that kill
//! processes.
//!
//! `cargo bench -p stvor-bench` (or `./x bench`) runs the suite, prints a table and writes
//! `target/bench/summary.json`. `docs/benchmarks.md` says what each line means.
//!
//! - [`timing`]: contenders take turns, the least time of many short batches counts.
//! - [`report`]: rows, targets, the table and the JSON.
//! - [`process`]: what `/proc` says about another process.
//! - [`fault`]: kills processes at random moments while messages flow; a history checker decides.
//! - [`fleet`]: the same for processes that share one identity on PostgreSQL or Redis.
//! - `floor`, `olm`, `ours`, `micro`, `groups`, `sizes`: one message in memory. `load`: the whole path. `vault`: the vault.

mod actor;
pub mod fault;
pub mod fleet;
#[cfg(feature = "suite")]
pub mod floor;
#[cfg(feature = "suite")]
pub mod groups;
#[cfg(feature = "suite")]
pub mod load;
#[cfg(feature = "suite")]
pub mod micro;
#[cfg(feature = "suite")]
pub mod olm;
#[cfg(feature = "suite")]
pub mod ours;
#[cfg(feature = "suite")]
pub mod process;
mod recorder;
pub mod report;
#[cfg(feature = "suite")]
mod signal;
#[cfg(feature = "suite")]
pub mod sizes;
pub mod timing;
#[cfg(feature = "suite")]
pub mod vault;

/// The result of a measurement: it either worked or says what went wrong to the person who started it.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
