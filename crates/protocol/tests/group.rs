//! Groups: who agrees on what, who can read what, and what is refused.
#![cfg(test)]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "group/hostile.rs"]
mod hostile;
#[path = "group/model.rs"]
mod model;
#[path = "group/rules.rs"]
mod rules;
