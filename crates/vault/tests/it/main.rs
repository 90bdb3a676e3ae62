//! The vault from outside: what its owner, its agents and its attackers see.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper of a test that fails ends the test")]

mod archive;
mod backups;
mod by_hand;
mod checkpoints;
mod control;
mod daemon;
mod disk;
mod faults;
mod formats;
mod gates;
mod holds;
mod import;
mod keys;
mod limits;
mod memories;
mod proofs;
mod quota;
mod recovery;
mod rotation;
mod switch;
mod tampering;
mod tokens;
mod witness;
mod world;
