//! Bounds, so that a hostile file cannot make its reader work without end.

/// Bytes of a passphrase.
pub const MAX_PASSPHRASE: usize = 4_096;

/// KiB of memory that a stored header may ask of Argon2id: 1 GiB.
pub const MAX_MEMORY_KIB: u32 = 1024 * 1024;

/// Passes that a stored header may ask of Argon2id.
pub const MAX_ITERATIONS: u32 = 16;

/// Lanes that a stored header may ask of Argon2id.
pub const MAX_PARALLELISM: u32 = 8;

/// Bytes of a holder's parameters in a wrapped key.
pub const MAX_PARAMETERS: usize = 1_536;

/// Bytes of an encoded wrapped key.
pub const MAX_WRAPPED: usize = 2_048;

/// Bytes of a keyfile and of a key in the keyring.
pub const KEY_BYTES: usize = 32;

/// Bytes of what a TPM sealed, each of its two halves.
pub const MAX_TPM_BLOB: usize = 220;

/// Registers (PCRs) of a TPM; the highest has the number 23.
pub const MAX_PCRS: u8 = 24;

/// Shares of one secret.
pub const MAX_SHARES: u8 = 64;

/// Bytes of a secret that is shared.
pub const MAX_SHARED_SECRET: usize = 1_024;

/// Bytes of the label of a set of shares.
pub const MAX_LABEL: usize = 256;

/// Bytes of a share's text.
pub const MAX_SHARE_TEXT: usize = 4_096;

/// Bytes of a credential's name on a FIDO2 token.
pub const MAX_CREDENTIAL_ID: usize = 1_023;

/// Bytes of a message of a FIDO2 token.
pub const MAX_CTAP_MESSAGE: usize = 7_609;

/// Credentials that are listed of one FIDO2 token.
pub const MAX_CREDENTIALS: usize = 1_000;
