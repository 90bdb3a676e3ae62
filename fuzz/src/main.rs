//! One libFuzzer program that holds every target. `STVOR_FUZZ_TARGET` names the one to run; `list` prints all names,
//! `write-seeds` writes the seeds anew.
//! A target takes any bytes and must return: a panic, an overflow or a failed assertion is a finding.

#![no_main]

mod base;
mod crypto;
mod protocol;
mod sealed;
mod seeds;
mod signal;
mod tlog;
mod wire;
mod world;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

/// A target's name, and what it does with one input.
type Target = (&'static str, fn(&[u8]));

static CHOSEN: OnceLock<fn(&[u8])> = OnceLock::new();

fn all() -> Vec<Target> {
    let floors = [base::TARGETS, crypto::TARGETS, protocol::TARGETS, signal::TARGETS, wire::TARGETS];
    [floors.concat(), sealed::TARGETS.to_vec(), tlog::TARGETS.to_vec()].concat()
}

fn choose() {
    let name = std::env::var("STVOR_FUZZ_TARGET").unwrap_or_else(|_| "list".into());
    if name == "write-seeds" {
        seeds::write_all();
        std::process::exit(0);
    }
    match all().into_iter().find(|(known, _)| *known == name) {
        Some((_, run)) => {
            let _ = CHOSEN.set(run);
        }
        None => {
            for (known, _) in all() {
                println!("{known}");
            }
            std::process::exit(if name == "list" { 0 } else { 2 });
        }
    }
}

fuzz_target!(init: choose(), |data: &[u8]| {
    if let Some(run) = CHOSEN.get() {
        run(data);
    }
});
