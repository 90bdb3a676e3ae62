//! Profile `P256`: ECDH and ECDSA over P-256, ML-KEM-768, HKDF and HMAC over SHA-256, AES-256-GCM.

use super::{Profile, Suite};

/// The profile.
pub static PROFILE: Profile = super::profile!(Suite::P256, "P256", "X3DH ML-KEM-768");

/// Length of the header: ratchet key 65, previous chain length 4, message number 4, nonce 12.
pub const HEADER: usize = 85;
