//! Directories that go away.

use std::io;

pub use tempfile::TempDir;

/// A fresh directory, readable by its owner only, removed when the value is dropped.
///
/// The path is short enough to hold a unix socket (108 bytes at most).
///
/// # Errors
/// When the directory can not be made.
pub fn temp_dir() -> io::Result<TempDir> {
    tempfile::Builder::new().prefix("stvor-").rand_bytes(8).tempdir()
}
