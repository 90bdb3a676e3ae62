//! A process that holds the keys of a vault can read it: where agents must be kept out, let the daemon hold them and talk to
//! its socket.
//!
//! An encrypted memory for AI agents that an owner, not the agent, controls. Each memory has one of six [`Level`]s, which
//! decides what a recall needs; every operation, refusals included, is an entry of an append-only log before its answer
//! leaves. See `docs/vault.md` for what it contains, and what it does not.
//!
//! ```
//! use stvor_crypto::{SecretBytes, SystemRandom};
//! use stvor_keys::{Passphrase, PassphraseCost};
//! use stvor_vault::{Caller, Level, NewKeys, NewMemory, Options, Vault};
//!
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("vault");
//! let cheap = PassphraseCost { memory_kib: 64, iterations: 1, parallelism: 1 };
//! let owner = Passphrase::new(SecretBytes::from_slice(b"correct horse"))?.with_cost(cheap)?;
//! Vault::create(&path, &NewKeys { owner: &owner, vaulted: None, origin: "example.com/vault" })?;
//!
//! let vault = Vault::open(&path, Options::default())?;
//! vault.unlock_with(&owner)?;
//! let id = vault.store(&Caller::Owner, NewMemory::new(b"Tea at five.", Level::Working, "home"))?;
//! assert_eq!(vault.recall(&Caller::Owner, id, "")?.content.expose(), b"Tea at five.");
//! assert_eq!(vault.search(&Caller::Owner, "home", "tea")?.len(), 1);
//! vault.forget(&Caller::Owner, id, "no longer true")?;
//! assert!(vault.recall(&Caller::Owner, id, "").is_err());
//! assert!(vault.verify()?.problems.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod archive;
pub mod audit;
pub mod backup;
mod clock;
pub mod daemon;
pub mod detect;
mod engine;
mod error;
pub mod export;
pub mod gates;
pub mod import;
mod keys;
mod level;
pub mod limits;
mod memory;
mod metrics;
pub mod profiles;
pub mod proofs;
mod reading;
pub mod recovery;
pub mod salvage;
mod sealing;
mod storage;
pub mod tokens;
mod vault;
mod verify;
pub mod witness;

pub use clock::{Clock, Moment, SystemClock};
pub use engine::agents::{Agent, Caller, Credential, Ends};
pub use engine::log::{LogEntry, LogPage, LogQuery};
pub use engine::sessions::SessionId;
pub use engine::status::{Lockdown, Memory, Mode, Status};
pub use error::{Refusal, VaultError};
pub use keys::{NewKeys, NewRoot, RootKey, VerbKey, unwrap_root, unwrap_vaulted, unwrap_verbs};
pub use level::{Level, NoLevel};
pub use memory::{
    Forgotten, Found, Header, MemoryId, NewMemory, NoMemoryId, Purged, Recalled, State, Tombstoned, Trust,
    WouldForget,
};
pub use metrics::{Alert, AlertHook};
pub use storage::database_version;
pub use vault::{Auditor, Inspection, Options, OwnerRecords, Pending, Vault};
pub use verify::{Problem, Progress, Report, Summary};
