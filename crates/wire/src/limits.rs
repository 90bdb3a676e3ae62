//! Every bound of the wire.

/// Largest frame before READY: a log-in with sixteen devices and eight rotations fits.
pub const MAX_FRAME_BEFORE_AUTH: usize = 6 * 1024;

/// Largest frame after READY: a blob of [`MAX_BLOB_BYTES`] with the longest addresses fits.
pub const MAX_FRAME_AFTER_AUTH: usize = 96 * 1024;

/// Largest blob: 64 KiB of plaintext, envelope, prekey part, header and tag in one PADME bucket.
pub const MAX_BLOB_BYTES: usize = 72 * 1024;

/// Longest app token.
pub const MAX_TOKEN_BYTES: usize = 256;

/// Longest client token (JWT).
pub const MAX_CLIENT_TOKEN_BYTES: usize = 2048;

/// Most capabilities in HELLO and CHALLENGE.
pub const MAX_CAPABILITIES: usize = 16;

/// Longest capability name.
pub const MAX_CAPABILITY_BYTES: usize = 32;

/// Longest device list: sixteen devices and the longest names need 2 611 bytes.
pub const MAX_DEVICE_LIST_BYTES: usize = 2_688;

pub use stvor_base::rotations::MAX_ROTATIONS_BYTES;

/// The ability of a client to understand CLONE_SEEN.
pub const CAPABILITY_CLONES: &str = "clones";

/// The ability of a relay to take rotations of a user's key, as HELLO asks for it and CHALLENGE grants it.
pub const CAPABILITY_ROTATION: &str = "identity-rotation";

/// Longest resume cursor.
pub const MAX_CURSOR_BYTES: usize = 256;

/// Longest origin.
pub const MAX_ORIGIN_BYTES: usize = 320;

/// Longest server version.
pub const MAX_VERSION_BYTES: usize = 64;

/// Longest human sentence in NACK and END.
pub const MAX_DETAIL_BYTES: usize = 512;

/// Most one-time prekeys in one upload.
pub const MAX_ONE_TIME_PER_UPLOAD: usize = 100;

/// Most one-time KEM prekeys in one upload: fifty fill two thirds of a frame.
pub const MAX_KEM_PER_UPLOAD: usize = 50;

/// Most mailboxes of one SEND_MANY: with the longest addresses and the largest blob they fill one frame.
pub const MAX_RECIPIENTS: usize = 64;

/// Most single entries in one ACK: two full windows.
pub const MAX_SINGLE_ACKS: usize = 256;

/// Most senders that one connection holds back, and most messages of one HOLD.
pub const MAX_HELD: usize = 64;

/// Longest wait of FETCH_BUNDLE in milliseconds.
pub const MAX_WAIT_MS: u32 = 600_000;

/// Messages un-ACKed at once on one connection.
pub const WINDOW_MESSAGES: u32 = 128;

/// Blob bytes un-ACKed at once on one connection.
pub const WINDOW_BYTES: u32 = 1024 * 1024;

/// An ML-KEM-768 encapsulation key.
pub const KEM_KEY_BYTES: usize = 1184;

/// A signature.
pub const SIGNATURE_BYTES: usize = 64;

/// The challenge's nonce.
pub const NONCE_BYTES: usize = 32;

/// The longest life of a client token in seconds.
pub const MAX_CLIENT_TOKEN_LIFE_SECONDS: u64 = 3600;

/// A device's MAC over its send counter: a whole HMAC-SHA256.
pub const COUNTER_MAC_BYTES: usize = 32;

/// Bytes that name the store of a device.
pub const STORE_MARK_BYTES: usize = 16;
