//! Faults on purpose, for tests of what JavaScript is told of them. In builds with debug assertions only: not in what is released.

use napi_derive::napi;

use crate::failure::with_random;

/// Meets a panic that says these words, if there are any, where most calls would: with the thread's generator in hand.
///
/// # Errors
/// None.
#[napi(catch_unwind)]
pub fn panic_at_once(words: String) -> napi::Result<()> {
    with_random(|_| {
        assert!(words.is_empty(), "{words}");
        Ok(())
    })
}
