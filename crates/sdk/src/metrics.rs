//! Counters for the application's own recorder (the `metrics` facade): fixed names, no identifiers, no labels that a
//! peer can choose.

use std::time::Duration;

pub(crate) fn sent(count: usize) {
    count_up("stvor_messages_encrypted_total", count);
}

pub(crate) fn accepted(count: usize) {
    count_up("stvor_messages_accepted_total", count);
}

pub(crate) fn received(count: usize) {
    count_up("stvor_messages_decrypted_total", count);
}

pub(crate) fn rejected() {
    count_up("stvor_messages_rejected_total", 1);
}

pub(crate) fn duplicate() {
    count_up("stvor_messages_duplicate_total", 1);
}

pub(crate) fn repaired() {
    count_up("stvor_messages_repaired_total", 1);
}

/// A turn met what another instance had changed meanwhile.
pub(crate) fn moved() {
    count_up("stvor_turns_repeated_total", 1);
}

pub(crate) fn connected() {
    count_up("stvor_relay_connections_total", 1);
}

pub(crate) fn commit(took: Duration, messages: usize) {
    metrics::histogram!("stvor_commit_seconds").record(took.as_secs_f64());
    metrics::histogram!("stvor_commit_messages").record(u32::try_from(messages).unwrap_or(u32::MAX));
}

fn count_up(name: &'static str, count: usize) {
    metrics::counter!(name).increment(u64::try_from(count).unwrap_or(u64::MAX));
}
