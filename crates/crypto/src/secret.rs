//! Secrets: wiped when dropped, never printed, never copied by accident, compared in constant time.

mod bytes;
mod locked;
mod shielded;

pub use bytes::{Secret, SecretBytes};
pub use shielded::{ShieldKey, Shielded, is_locked};
