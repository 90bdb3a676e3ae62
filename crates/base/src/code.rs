//! Stable error codes.

/// An error that names itself with a code which Rust, Node, HTTP, the command line and logs share.
///
/// A code is upper-case ASCII with underscores and never changes its meaning. A rendered error is
/// `message [CODE]`; use [`ErrorCode::render`] for that.
pub trait ErrorCode: core::fmt::Display {
    /// The stable code, for example `RECIPIENT_NOT_FOUND`.
    fn code(&self) -> &'static str;

    /// Whether the same call may succeed later without a change by the caller.
    fn retryable(&self) -> bool {
        false
    }

    /// `message [CODE]`.
    fn render(&self) -> String {
        format!("{self} [{}]", self.code())
    }
}
