//! The `stvor` command.
fn main() {}
