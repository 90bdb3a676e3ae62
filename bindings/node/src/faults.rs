//! Faults on purpose, for tests of what JavaScript is told of them. In builds with debug assertions only: not in what is released.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};

use metrics::{Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use napi::Env;
use napi::bindgen_prelude::PromiseRaw;
use napi_derive::napi;

use crate::task::promise;

/// The counter of the engine that rises when messages were encrypted and stored, and have not been sent.
const ENCRYPTED: &str = "stvor_messages_encrypted_total";

static ARMED: AtomicBool = AtomicBool::new(false);

/// The next conversation of this process that has encrypted and stored a message, and has not sent it, meets a panic.
#[napi(catch_unwind)]
pub fn fail_after_encrypting() {
    static ONCE: Once = Once::new();
    // Without it, as where another recorder is there already, nothing fails, and the test that waits for it says so.
    ONCE.call_once(|| drop(metrics::set_global_recorder(Faulty)));
    ARMED.store(true, Ordering::Relaxed);
}

/// Meets a panic that says these words, if there are any.
#[napi(catch_unwind)]
pub fn panic_at_once(words: String) {
    assert!(words.is_empty(), "{words}");
}

/// The same in what a promise is for.
///
/// # Errors
/// When there is no promise.
#[napi(catch_unwind)]
pub fn panic_later(env: &Env, words: String) -> napi::Result<PromiseRaw<'_, ()>> {
    promise(env, None, async move {
        tokio::task::yield_now().await;
        panic_at_once(words);
        Ok(())
    })
}

struct Faulty;

struct Trap;

impl CounterFn for Trap {
    fn increment(&self, count: u64) {
        assert!(count == 0 || !ARMED.swap(false, Ordering::Relaxed), "a fault on purpose");
    }

    fn absolute(&self, _: u64) {}
}

impl Recorder for Faulty {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        if key.name() == ENCRYPTED { Counter::from_arc(Arc::new(Trap)) } else { Counter::noop() }
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
