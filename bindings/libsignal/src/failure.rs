//! Errors on their way to JavaScript: as JSON in the reason. The TypeScript face makes typed ones of it.

use std::cell::RefCell;
use std::sync::Once;

use stvor_base::ErrorCode;
use stvor_crypto::CryptoError;
use stvor_protocol::signal::SignalError;

/// What JavaScript is told.
#[allow(clippy::needless_pass_by_value, reason = "it is the argument of map_err")]
pub(crate) fn failed(error: SignalError) -> napi::Error {
    let words = serde_json::json!({
        "stvor": { "code": error.code(), "message": error.to_string(), "retryable": error.retryable() }
    });
    napi::Error::from_reason(words.to_string())
}

/// The same for a primitive.
pub(crate) fn crypto(error: CryptoError) -> napi::Error {
    failed(error.into())
}

/// Keeps panics from printing: their words may hold what the application sent.
pub(crate) fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
}

thread_local! {
    static RANDOM: RefCell<stvor_crypto::SystemRandom> = RefCell::new(stvor_crypto::SystemRandom::new());
}

/// Runs `act` with this thread's generator.
pub(crate) fn with_random<T>(
    act: impl FnOnce(&mut stvor_crypto::SystemRandom) -> Result<T, SignalError>,
) -> napi::Result<T> {
    RANDOM.with_borrow_mut(act).map_err(failed)
}
