//! Errors on their way to JavaScript: as JSON in the reason, because asynchronous functions of the C interface carry
//! nothing else. The TypeScript face makes a `StvorError` of it.

use std::cell::RefCell;
use std::sync::Once;

use stvor_base::ErrorCode;

/// What JavaScript is told.
pub(crate) fn failure(code: &str, message: &str, retryable: bool) -> napi::Error {
    let reason = serde_json::json!({ "stvor": { "code": code, "message": message, "retryable": retryable } });
    napi::Error::from_reason(reason.to_string())
}

/// An error of the SDK.
#[allow(clippy::needless_pass_by_value, reason = "it is the argument of map_err")]
pub(crate) fn failed(error: stvor::Error) -> napi::Error {
    if let stvor::ErrorKind::NotForProduction { findings } = error.kind() {
        let findings: Vec<_> = findings.iter().map(finding).collect();
        let (code, message) = (error.code(), error.message());
        let reason = serde_json::json!({ "stvor": {
            "code": code, "message": message, "retryable": false, "findings": findings,
        } });
        return napi::Error::from_reason(reason.to_string());
    }
    failure(error.code(), &error.message(), error.retryable())
}

/// A finding of production mode, as JSON.
pub(crate) fn finding(finding: &stvor::Finding) -> serde_json::Value {
    let stvor::Finding { code, what, fix, refused, .. } = finding;
    serde_json::json!({ "code": code, "what": what, "fix": fix, "refused": refused })
}

/// A setting that can not be used.
pub(crate) fn misconfigured(message: &str) -> napi::Error {
    failure("INVALID_CONFIG", &format!("a setting can not be used: {message}"), false)
}

/// An error of a floor below.
#[allow(clippy::needless_pass_by_value, reason = "it is the argument of map_err")]
pub(crate) fn coded(error: impl ErrorCode) -> napi::Error {
    failure(error.code(), &error.to_string(), error.retryable())
}

/// An argument that the TypeScript face should not have let through.
pub(crate) fn argument(message: &str) -> napi::Error {
    failure("INVALID_ARGUMENT", message, false)
}

/// Refuses bytes that are too many, before they are copied: an allocation that fails would end the process.
pub(crate) fn fits(bytes: &[u8], limit: usize) -> napi::Result<&[u8]> {
    if bytes.len() > limit {
        let message = format!("{} bytes are too large: {limit} bytes at most", bytes.len());
        return Err(failure("MESSAGE_TOO_LARGE", &message, false));
    }
    Ok(bytes)
}

thread_local! {
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps where a panic was, and prints nothing. Never the panic's own words: they may hold what the application sent.
pub(crate) fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let place = info.location().map(|at| format!("{}:{}", at.file(), at.line()));
            PLACE.with(|slot| slot.replace(place));
        }));
    });
}

/// A panic, as an error.
pub(crate) fn panicked() -> napi::Error {
    let place = PLACE.with(RefCell::take).unwrap_or_else(|| "an unknown place".to_owned());
    failure("INTERNAL", &format!("the SDK met a defect of its own at {place}; please report it"), false)
}
