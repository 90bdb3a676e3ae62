//! Bounds, so that hostile input cannot make its reader work without end.

/// Entries that a log can hold: 2^62, so that no arithmetic on sizes overflows.
pub const MAX_SIZE: u64 = 1 << 62;

/// Hashes in a proof: two for each level of the largest tree are more than any proof has.
pub const MAX_PROOF: usize = 128;

/// Bytes of a signed note that is read.
pub const MAX_NOTE: usize = 1 << 16;

/// Signatures on a note that is read.
pub const MAX_SIGNATURES: usize = 64;

/// Bytes of a key's name.
pub const MAX_NAME: usize = 255;

/// Bytes of a proof file that is read.
pub const MAX_PROOF_FILE: usize = 1 << 17;

/// Bytes of one entry: its length is stored in two bytes.
pub const MAX_ENTRY: usize = 65_535;

/// Logs that a witness knows.
pub const MAX_LOGS: usize = 10_000;
