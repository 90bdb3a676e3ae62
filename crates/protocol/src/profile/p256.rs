//! Profile `P256`: ECDH and ECDSA over P-256, ML-KEM-768, HKDF and HMAC over SHA-256, AES-256-GCM.

use stvor_crypto::{aead, kem, p256};

/// Number of this profile in envelopes, transcripts and associated data.
pub const SUITE: u8 = 1;

/// Length of a public key: an uncompressed point.
pub const PUBLIC_KEY: usize = 65;

/// Length of a signature: r, then s, big-endian, low s.
pub const SIGNATURE: usize = 64;

/// Length of a nonce.
pub const NONCE: usize = 12;

/// Length of an authentication tag.
pub const TAG: usize = 16;

/// Length of a KEM public key.
pub const KEM_PUBLIC: usize = 1184;

/// Length of a KEM ciphertext.
pub const KEM_CIPHERTEXT: usize = 1088;

/// Length of the header: ratchet key, previous chain length, message number, nonce.
pub const HEADER: usize = PUBLIC_KEY + 4 + 4 + NONCE;

/// Labels. Each is used for one purpose only, and none is a prefix of another.
pub mod label {
    /// A device's signature over a signed prekey.
    pub const SIGNED_PREKEY: &[u8] = b"STVOR 1 P256 signed prekey";
    /// A device's signature over a KEM prekey of either kind.
    pub const KEM_PREKEY: &[u8] = b"STVOR 1 P256 KEM prekey";
    /// The hash of the handshake's transcript.
    pub const TRANSCRIPT: &[u8] = b"STVOR 1 P256 handshake transcript";
    /// The first root key.
    pub const HANDSHAKE: &[u8] = b"STVOR 1 P256 X3DH ML-KEM-768";
    /// The session id.
    pub const SESSION_ID: &[u8] = b"STVOR 1 P256 session id";
    /// A step of the root chain.
    pub const ROOT: &[u8] = b"STVOR 1 P256 root chain";
    /// A message's key.
    pub const MESSAGE: &[u8] = b"STVOR 1 P256 message key";
    /// The associated data of a message.
    pub const ASSOCIATED_DATA: &[u8] = b"STVOR 1 P256 associated data";
    /// The mark of an accepted handshake.
    pub const HANDSHAKE_MARK: &[u8] = b"STVOR 1 P256 handshake mark";
    /// A member's signature over a change of a group, and the hash of one.
    pub const GROUP_CHANGE: &[u8] = b"STVOR 1 P256 group change";
    /// The state of a group.
    pub const GROUP_STATE: &[u8] = b"STVOR 1 P256 group state";
    /// The associated data of a group message.
    pub const GROUP_DATA: &[u8] = b"STVOR 1 P256 group associated data";
    /// The key of a group message.
    pub const GROUP_MESSAGE: &[u8] = b"STVOR 1 P256 group message key";
    /// The signature of a sender key over a group message.
    pub const GROUP_SIGNATURE: &[u8] = b"STVOR 1 P256 group sender signature";
    /// What a chain remembers of whom it was given to.
    pub const GROUP_RECIPIENT: &[u8] = b"STVOR 1 P256 group recipient";
    /// A safety number.
    pub const SAFETY: &[u8] = b"STVOR 1 P256 safety number";
    /// The salt of a recovery secret.
    pub const RECOVERY_SALT: &[u8] = b"STVOR 1 P256 recovery salt";
    /// A key that follows from a recovery secret.
    pub const RECOVERED_KEY: &[u8] = b"STVOR 1 P256 recovered key";
}

pub(crate) type PublicKey = p256::PublicKey;
pub(crate) type AgreementKey = p256::AgreementKey;
pub(crate) type SigningKey = p256::SigningKey;
pub(crate) type KemSecret = kem::DecapsulationKey;
pub(crate) type KemPublic = kem::EncapsulationKey;
pub(crate) type Aead = aead::Aes256Gcm;
