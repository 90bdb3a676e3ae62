//! Who may open a sealed store.
//!
//! A sealed store has one random 32-byte *data key*. A [`KeyHolder`] wraps that key (AES-256-GCM under a key that only
//! the holder can produce) and unwraps it again. Changing the passphrase, or moving from a keyfile to the operating
//! system's keyring, wraps the same data key anew and touches no row.
//!
//! ```
//! use stvor_crypto::{Secret, SecretBytes, SystemRandom};
//! use stvor_keys::{KeyError, KeyHolder, Passphrase, PassphraseCost, WrappedKey};
//!
//! let mut rng = SystemRandom::new();
//! let data_key = Secret::random(&mut rng)?;
//! let cheap = PassphraseCost { memory_kib: 64, iterations: 1, parallelism: 1 };
//! let holder = Passphrase::new(SecretBytes::from_slice(b"correct horse"))?.with_cost(cheap)?;
//! let wrapped = holder.wrap(&data_key, b"store id", &mut rng)?;
//!
//! let read = WrappedKey::decode(&wrapped.encode())?;
//! assert!(holder.unwrap(&read, b"store id")? == data_key);
//! let other = Passphrase::new(SecretBytes::from_slice(b"wrong horse"))?;
//! assert!(matches!(other.unwrap(&read, b"store id"), Err(KeyError::Wrong { .. })));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod challenge;
mod error;
#[cfg(feature = "fido2")]
pub mod fido2;
mod holder;
mod identity;
mod keyfile;
#[cfg(feature = "kmip")]
pub mod kmip;
pub mod limits;
mod managed;
mod os;
#[cfg(any(feature = "pkcs11", feature = "tpm"))]
mod own_thread;
mod passphrase;
mod phrase;
#[cfg(feature = "pkcs11")]
pub mod pkcs11;
#[cfg(feature = "recipients")]
pub mod recipients;
#[cfg(feature = "shares")]
pub mod shares;
mod token;
pub mod tpm;
mod wrapped;

pub use error::KeyError;
pub use holder::{DataKey, HolderKind, KeyHolder, given_back};
pub use identity::IdentityKey;
pub use keyfile::{KEYFILE_DRAFT, Keyfile};
pub use managed::{KeyService, Managed};
#[cfg(feature = "os-keyring")]
pub use os::SystemKeyring;
pub use os::{KeyringItem, NamedKeyring, OsKeyring, SecretService};
pub use passphrase::{Passphrase, PassphraseCost};
pub use phrase::{RecoveryPhrase, WORDS as PHRASE_WORDS};
pub use token::{TokenKey, TokenRecovery, token_credential};
pub use wrapped::WrappedKey;
