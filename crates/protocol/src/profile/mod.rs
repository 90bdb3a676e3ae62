//! What one flavour of the protocol fixes: primitives, labels, suite number, sizes.
//!
//! The state machine names its primitives, labels and sizes only through the profile module that this crate is built
//! with, so that a second profile is a second module of the same shape.

pub mod p256;

pub(crate) use p256 as active;
