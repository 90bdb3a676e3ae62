//! Keys that never leave the device or service that keeps them: tokens, and key management services.

use crate::{DataKey, HolderKind, KeyError, KeyHolder, WrappedKey, given_back};
use std::fmt;
use stvor_crypto::{Random, Secret};

/// Something that keeps a key and encrypts with it: a token, a key management service. All that is asked of it is to wrap
/// 32 bytes and to unwrap them again.
///
/// What it wraps is a key-encryption key that is made for each store, never the data key. What it wrapped it has to unwrap at once,
/// before anything is sealed with it. Both operations may take long; they are called off asynchronous executors.
///
/// ```
/// use stvor_crypto::{Secret, SystemRandom};
/// use stvor_keys::{KeyError, KeyHolder, KeyService, Managed};
///
/// /// Not a service to imitate: it keeps its key in the program.
/// #[derive(Debug)]
/// struct Toy(u8);
///
/// impl KeyService for Toy {
///     fn wrap(&self, key: &Secret<32>) -> Result<Vec<u8>, KeyError> {
///         Ok(key.expose().iter().map(|byte| byte ^ self.0).collect())
///     }
///     fn unwrap(&self, wrapped: &[u8]) -> Result<Secret<32>, KeyError> {
///         let key: Vec<u8> = wrapped.iter().map(|byte| byte ^ self.0).collect();
///         Secret::from_slice(&key).map_err(KeyError::from)
///     }
/// }
///
/// let mut rng = SystemRandom::new();
/// let data_key = Secret::random(&mut rng)?;
/// let wrapped = Managed::service(Toy(1)).wrap(&data_key, b"store id", &mut rng)?;
/// assert!(Managed::service(Toy(1)).unwrap(&wrapped, b"store id")? == data_key);
/// assert!(matches!(Managed::service(Toy(2)).unwrap(&wrapped, b"store id"), Err(KeyError::Wrong { .. })));
/// # Ok::<(), KeyError>(())
/// ```
pub trait KeyService: fmt::Debug + Send + Sync {
    /// Encrypts 32 bytes; at most [`limits::MAX_PARAMETERS`](crate::limits::MAX_PARAMETERS) bytes come back.
    ///
    /// # Errors
    /// [`KeyError::Unavailable`] when it can not be reached or refuses.
    fn wrap(&self, key: &Secret<32>) -> Result<Vec<u8>, KeyError>;

    /// Decrypts what [`wrap`](Self::wrap) made.
    ///
    /// # Errors
    /// [`KeyError::Wrong`] when it was made with another key; [`KeyError::Unavailable`].
    fn unwrap(&self, wrapped: &[u8]) -> Result<Secret<32>, KeyError>;
}

/// A [`KeyHolder`] whose key is kept by a [`KeyService`].
#[derive(Debug)]
pub struct Managed<S> {
    service: S,
    kind: HolderKind,
}

impl<S: KeyService> Managed<S> {
    /// A key management service.
    pub fn service(service: S) -> Self {
        Self { service, kind: HolderKind::Kms }
    }

    /// A token.
    pub fn token(service: S) -> Self {
        Self { service, kind: HolderKind::Pkcs11 }
    }

    fn unavailable(&self, reason: &str) -> KeyError {
        KeyError::Unavailable { holder: self.kind.name(), reason: reason.into() }
    }
}

impl<S: KeyService> KeyHolder for Managed<S> {
    fn kind(&self) -> HolderKind {
        self.kind
    }

    fn wrap(&self, data_key: &DataKey, context: &[u8], rng: &mut dyn Random) -> Result<WrappedKey, KeyError> {
        let kek = Secret::random(rng)?;
        let parameters = self.service.wrap(&kek)?;
        if parameters.len() > crate::limits::MAX_PARAMETERS {
            return Err(self.unavailable("it answered with more bytes than a wrapped key has"));
        }
        given_back(self.kind, &kek, self.service.unwrap(&parameters))?;
        WrappedKey::seal((self.kind, &parameters), &kek, (data_key, context), rng)
    }

    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<DataKey, KeyError> {
        let kek = self.service.unwrap(wrapped.parameters_for(self.kind)?)?;
        wrapped.open(&kek, context)
    }
}
