//! When the owner's secret is lost, or the owner: shares of the key with people, and packages for heirs.

pub mod escrow;
pub(crate) mod owed;
pub mod switch;
#[cfg(test)]
mod tests;
pub mod watch;
