//! Every bound of this crate and its reason.

/// Messages that one stream hands to JavaScript and that are not settled there yet. More wait in the store.
pub(crate) const STREAM_WINDOW: usize = 64;

/// The longest wait that JavaScript can ask for, in milliseconds: as long as its own timers can.
pub(crate) const LONGEST_WAIT: f64 = 2_147_483_647.0;
