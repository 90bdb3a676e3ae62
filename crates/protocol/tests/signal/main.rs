//! The Signal profile, as a user or an attacker meets it.

#![cfg(test)]

mod group;
mod limits;
#[allow(dead_code, reason = "shared with tests that use all of it")]
mod party;
mod sessions;
mod states;
mod vectors;
