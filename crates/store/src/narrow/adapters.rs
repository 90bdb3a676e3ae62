//! The four interfaces, and how they are called: each call has a deadline.

use crate::{Finding, StoreError, limits};
use async_trait::async_trait;
use core::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use stvor_crypto::Secret;
use stvor_crypto::kdf::sha256;
use stvor_crypto::p256::SigningKey;

/// Remembers nonces, so that no message is taken twice, not even after the other stores were put back.
#[async_trait]
pub trait ReplayCache: fmt::Debug + Send + Sync + 'static {
    /// Whether this nonce (12 bytes) of this peer was seen before; marks it, in the same step, if not. Marks may be
    /// forgotten after five minutes or more.
    ///
    /// # Errors
    /// Whatever kept it from answering; the message then stays at the relay and comes again.
    async fn check_and_mark(&self, peer: &str, nonce: &[u8]) -> Result<bool, StoreError>;
}

/// Pins identities: a fingerprint that was stored for a peer stays.
#[async_trait]
pub trait FingerprintStore: fmt::Debug + Send + Sync + 'static {
    /// Stores the fingerprint of a peer (64 hexadecimal digits), unless another one is stored.
    ///
    /// # Errors
    /// Whatever kept it from storing.
    async fn store_fingerprint(&self, peer: &str, fingerprint: &str) -> Result<(), StoreError>;

    /// Whether this fingerprint is the one that is stored for this peer.
    ///
    /// # Errors
    /// Whatever kept it from answering.
    async fn verify_fingerprint(&self, peer: &str, fingerprint: &str) -> Result<bool, StoreError>;

    /// How another fingerprint takes the place of a stored one; `None`, as it is where this is not written, if it never does.
    /// A peer who sets up anew is then taken only after whoever keeps the store deleted the fingerprint of that peer, and
    /// rotations of identities are not followed.
    fn replacing(&self) -> Option<&dyn ReplaceFingerprint> {
        None
    }
}

/// Replaces pinned fingerprints: asked for only when somebody accepts another identity, or a peer's key signed the one that it
/// handed over to.
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::Mutex;
/// use stvor_store::StoreError;
/// use stvor_store::narrow::{FingerprintStore, ReplaceFingerprint, async_trait};
///
/// #[derive(Debug, Default)]
/// struct Pins(Mutex<HashMap<String, String>>);
///
/// #[async_trait]
/// impl FingerprintStore for Pins {
///     async fn store_fingerprint(&self, peer: &str, fingerprint: &str) -> Result<(), StoreError> {
///         self.0.lock().unwrap().entry(peer.to_owned()).or_insert_with(|| fingerprint.to_owned());
///         Ok(())
///     }
///     async fn verify_fingerprint(&self, peer: &str, fingerprint: &str) -> Result<bool, StoreError> {
///         Ok(self.0.lock().unwrap().get(peer).is_some_and(|stored| stored == fingerprint))
///     }
///     fn replacing(&self) -> Option<&dyn ReplaceFingerprint> {
///         Some(self)
///     }
/// }
///
/// #[async_trait]
/// impl ReplaceFingerprint for Pins {
///     async fn replace_fingerprint(&self, peer: &str, old: &str, new: &str) -> Result<(), StoreError> {
///         if let Some(stored) = self.0.lock().unwrap().get_mut(peer).filter(|stored| *stored == old) {
///             new.clone_into(stored);
///         }
///         Ok(())
///     }
/// }
/// assert!(Pins::default().replacing().is_some());
/// ```
#[async_trait]
pub trait ReplaceFingerprint: Send + Sync {
    /// Puts `new` in the place of `old`, in one step, durably. If another one than `old` is stored for this peer, or none, that
    /// is no error, and it stays. Which one is stored is asked afterwards.
    ///
    /// # Errors
    /// Whatever kept it from storing; nothing changes then.
    async fn replace_fingerprint(&self, peer: &str, old: &str, new: &str) -> Result<(), StoreError>;
}

/// Keeps sealed states.
#[async_trait]
pub trait SessionStore: fmt::Debug + Send + Sync + 'static {
    /// Replaces the state of an id, whole or not at all, durably. Ids have at most 300 bytes, states at most
    /// [`limits::MAX_STATE`].
    ///
    /// # Errors
    /// Whatever kept it from saving.
    async fn save(&self, id: &str, state: &[u8]) -> Result<(), StoreError>;

    /// The latest state of an id, `None` if there is none.
    ///
    /// # Errors
    /// Whatever kept it from answering.
    async fn load(&self, id: &str) -> Result<Option<Vec<u8>>, StoreError>;
}

/// Keeps the user's key pair.
#[async_trait]
pub trait IdentityStore: fmt::Debug + Send + Sync + 'static {
    /// The user's signing key: made once, always the same.
    ///
    /// # Errors
    /// Whatever kept it from answering.
    async fn identity_key_pair(&self) -> Result<IdentityPair, StoreError>;
}

/// A P-256 key pair: the user's signing key, which contacts pin. Everything that is stored is sealed under a key derived from
/// it.
pub struct IdentityPair {
    key: SigningKey,
}

impl fmt::Debug for IdentityPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityPair").field("key", &"[redacted]").finish()
    }
}

impl IdentityPair {
    /// Reads a pair: the public key as 65 bytes (uncompressed), the private one as 32 (big-endian).
    ///
    /// # Errors
    /// [`StoreError::Answer`] when these are no key pair.
    pub fn new(public: &[u8], private: &[u8]) -> Result<Self, StoreError> {
        let wrong = |what: &str| StoreError::Answer {
            call: "identity.getIdentityKeyPair",
            what: format!("{what}; a pair is a P-256 public key of 65 bytes and its private key of 32"),
        };
        let secret = Secret::from_slice(private)
            .map_err(|_| wrong(&format!("its private key has {} bytes", private.len())))?;
        let key = SigningKey::from_bytes(&secret).map_err(|_| wrong("its private key is out of range"))?;
        if key.public().as_bytes() != public {
            return Err(wrong("its public key does not belong to its private key"));
        }
        Ok(Self { key })
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> &[u8; 65] {
        self.key.public().as_bytes()
    }

    /// The private key.
    #[must_use]
    pub fn private(&self) -> Secret<32> {
        self.key.to_bytes()
    }
}

/// The fingerprint of a user's public key: SHA-256, hexadecimal.
fn fingerprint(user_key: &[u8]) -> String {
    sha256(&[user_key]).iter().fold(String::with_capacity(64), |text, byte| text + &format!("{byte:02x}"))
}

/// One of the four.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Interface {
    /// [`ReplayCache`].
    Replay,
    /// [`FingerprintStore`].
    Fingerprints,
    /// [`SessionStore`].
    Sessions,
    /// [`IdentityStore`].
    Identity,
}

impl Interface {
    /// Its name in JavaScript, and the code of the finding that it is missing.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Replay => ("replay", "adapter_missing_replay"),
            Self::Fingerprints => ("tofu", "adapter_missing_tofu"),
            Self::Sessions => ("sessions", "adapter_missing_sessions"),
            Self::Identity => ("identity", "adapter_missing_identity"),
        }
    }

    /// The one of this name in JavaScript: `replay`, `tofu`, `sessions` or `identity`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::Replay, Self::Fingerprints, Self::Sessions, Self::Identity];
        all.into_iter().find(|one| one.names().0 == name)
    }
}

/// The four stores of an application, and how long each call of them may take.
#[derive(Debug, Clone)]
pub struct Adapters {
    replay: Arc<dyn ReplayCache>,
    fingerprints: Arc<dyn FingerprintStore>,
    sessions: Arc<dyn SessionStore>,
    identity: Arc<dyn IdentityStore>,
    deadline: Duration,
    stand_ins: Vec<Interface>,
    /// Whether they are open, for all copies of this.
    open: Arc<AtomicBool>,
}

/// That adapters are open; ends when it is dropped.
pub(super) struct Lease(Arc<AtomicBool>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Adapters {
    /// All four: there is no default for any of them.
    pub fn new(
        replay: Arc<dyn ReplayCache>,
        fingerprints: Arc<dyn FingerprintStore>,
        sessions: Arc<dyn SessionStore>,
        identity: Arc<dyn IdentityStore>,
    ) -> Self {
        Self {
            replay,
            fingerprints,
            sessions,
            identity,
            deadline: limits::ADAPTER_DEADLINE,
            stand_ins: Vec::new(),
            open: Arc::default(),
        }
    }

    /// How long one call may take; [`limits::ADAPTER_DEADLINE`] if not set.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Says which of them are missing, with stand-ins in memory in their places: [`findings`](Self::findings) names them.
    ///
    /// ```
    /// # use stvor_store::narrow::{Adapters, Interface};
    /// # fn example(adapters: Adapters) {
    /// let adapters = adapters.standing_in([Interface::Fingerprints]);
    /// assert_eq!(adapters.findings()[0].code, "adapter_missing_tofu");
    /// # }
    /// ```
    #[must_use]
    pub fn standing_in(mut self, missing: impl IntoIterator<Item = Interface>) -> Self {
        self.stand_ins = missing.into_iter().collect();
        self
    }

    /// What production should not have.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let finding = |one: &Interface| {
            let (name, code) = one.names();
            let what = format!(
                "the storage adapter \"{name}\" is missing: what it would keep is gone with this process"
            );
            Finding::new(code, what, "give all four storage adapters: replay, tofu, sessions, identity")
        };
        self.stand_ins.iter().map(finding).collect()
    }

    /// Takes the adapters for one store.
    pub(super) fn lease(&self) -> Result<Lease, StoreError> {
        if self.open.swap(true, Ordering::SeqCst) {
            let path = PathBuf::from("of these storage adapters, which have one user,");
            return Err(StoreError::Locked { path, pid: Some(std::process::id()) });
        }
        Ok(Lease(Arc::clone(&self.open)))
    }

    pub(super) fn sessions(&self) -> (Arc<dyn SessionStore>, Duration) {
        (Arc::clone(&self.sessions), self.deadline)
    }

    /// Asks for the user's key pair.
    ///
    /// # Errors
    /// [`StoreError::Timeout`], or what the store answers.
    pub async fn identity_key_pair(&self) -> Result<IdentityPair, StoreError> {
        within(self.deadline, "identity.getIdentityKeyPair", self.identity.identity_key_pair()).await
    }

    /// Whether a nonce was seen before; marks it if not.
    ///
    /// # Errors
    /// [`StoreError::Timeout`], or what the cache answers.
    pub async fn check_and_mark(&self, peer: &str, nonce: &[u8]) -> Result<bool, StoreError> {
        within(self.deadline, "replay.checkAndMark", self.replay.check_and_mark(peer, nonce)).await
    }

    /// Whether the stored fingerprint of a peer is the one of this public key.
    ///
    /// # Errors
    /// [`StoreError::Timeout`], or what the store answers.
    pub async fn verify(&self, peer: &str, user_key: &[u8]) -> Result<bool, StoreError> {
        let fingerprint = fingerprint(user_key);
        let asked = self.fingerprints.verify_fingerprint(peer, &fingerprint);
        within(self.deadline, "tofu.verifyFingerprint", asked).await
    }

    /// Stores the fingerprint of a peer, and asks whether it is the one that is stored now: `false` when another one was
    /// there.
    ///
    /// # Errors
    /// As [`Adapters::verify`].
    pub async fn pin(&self, peer: &str, user_key: &[u8]) -> Result<bool, StoreError> {
        let fingerprint = fingerprint(user_key);
        let stored = self.fingerprints.store_fingerprint(peer, &fingerprint);
        within(self.deadline, "tofu.storeFingerprint", stored).await?;
        self.verify(peer, user_key).await
    }

    /// Whether pinned fingerprints can be replaced.
    #[must_use]
    pub fn replaces(&self) -> bool {
        self.fingerprints.replacing().is_some()
    }

    /// Puts the fingerprint of a peer's new key in the place of the old one's, if the store can, and asks whether it is the one
    /// that is stored now: `false` when a third one is, or the store keeps what it has.
    ///
    /// # Errors
    /// As [`Adapters::verify`].
    pub async fn replace(&self, peer: &str, (old, new): (&[u8], &[u8])) -> Result<bool, StoreError> {
        if let Some(replacing) = self.fingerprints.replacing() {
            let (before, after) = (fingerprint(old), fingerprint(new));
            let replaced = replacing.replace_fingerprint(peer, &before, &after);
            within(self.deadline, "tofu.replaceFingerprint", replaced).await?;
        }
        self.pin(peer, new).await
    }
}

async fn within<T>(
    deadline: Duration,
    call: &'static str,
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(deadline, answer).await.unwrap_or(Err(StoreError::Timeout { call, after: deadline }))
}
