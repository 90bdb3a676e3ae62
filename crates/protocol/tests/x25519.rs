//! Everything that is asked of the P256 profile, asked of X25519 with the same code: models, invariants, limits, groups and
//! the frozen vectors (`tests/vectors/x25519`). The files look at the name of the test program to know their suite.
//! Beside that: what happens where the two meet.
#![cfg(test)]
#![allow(missing_docs, unreachable_pub, clippy::needless_update, clippy::duplicate_mod)]

#[path = "conversation.rs"]
mod conversation;
#[path = "group.rs"]
mod group;
#[path = "invariant_1.rs"]
mod invariant_1;
#[path = "invariant_2.rs"]
mod invariant_2;
#[path = "invariant_3.rs"]
mod invariant_3;
#[path = "invariant_4.rs"]
mod invariant_4;
#[path = "invariant_5.rs"]
mod invariant_5;
#[path = "invariant_6.rs"]
mod invariant_6;
#[path = "limits.rs"]
mod limits;
#[path = "x25519/meeting.rs"]
mod meeting;
#[path = "prekeys.rs"]
mod prekeys;
#[path = "rotation.rs"]
mod rotation;
#[path = "state_machine.rs"]
mod state_machine;
#[path = "vectors.rs"]
mod vectors;
