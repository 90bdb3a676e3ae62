//! Profile `X25519`: X25519, Ed25519, ML-KEM-768, HKDF and HMAC over SHA-256, XChaCha20-Poly1305.

use super::{Profile, Suite};

/// The profile.
pub static PROFILE: Profile = super::profile!(Suite::X25519, "X25519", "X3DH ML-KEM-768");

/// Length of the header: ratchet key 32, previous chain length 4, message number 4, nonce 24.
pub const HEADER: usize = 64;
