//! Faults on purpose, for tests of what JavaScript is told of them. In builds with debug assertions only: not in what is released.

use napi_derive::napi;

use crate::failure::with_random;
use crate::out::Out;

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

/// The same where messages are encrypted and decrypted, if there is a text.
pub(crate) fn panic_in_call(_: &mut Out<'_>, _: &[u8], text: &[u8]) -> napi::Result<bool> {
    with_random(|_| {
        assert!(text.is_empty(), "{}", String::from_utf8_lossy(text));
        Ok(true)
    })
}
