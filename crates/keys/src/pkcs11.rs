//! A key in a PKCS #11 token: a hardware security module, a smart card, `SoftHSM`.

use crate::own_thread::on_own_thread;
use crate::{KeyError, KeyService};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use stvor_crypto::{Random as _, Secret, SecretBytes, SystemRandom};

const HOLDER: &str = "token";
const NONCE: usize = 12;

/// Which token, and which of its keys.
#[derive(Debug, Clone)]
pub struct TokenKey {
    /// The module of the token's maker, for example `/usr/lib/softhsm/libsofthsm2.so`.
    pub module: PathBuf,
    /// The token's label.
    pub token: String,
    /// The key's label. An AES key of 256 bits that can encrypt and decrypt.
    pub key: String,
}

/// A key in a token. Each operation opens a session of its own and logs in.
pub struct Token {
    library: Pkcs11,
    which: TokenKey,
    pin: Arc<SecretBytes>,
}

/// Which key of which token; not the addresses of the module's functions.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("which", &self.which).finish_non_exhaustive()
    }
}

fn unavailable(error: &Error) -> KeyError {
    match error {
        Error::Pkcs11(RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange, _) => {
            KeyError::Wrong { holder: "PIN of the token" }
        }
        Error::Pkcs11(RvError::PinLocked, _) => {
            KeyError::Unavailable { holder: HOLDER, reason: "its PIN is locked after wrong tries".into() }
        }
        other => KeyError::Unavailable { holder: HOLDER, reason: other.to_string() },
    }
}

/// Modules that this process has loaded: a module is initialised once.
fn library(path: &Path) -> Result<Pkcs11, KeyError> {
    static LOADED: OnceLock<Mutex<HashMap<PathBuf, Pkcs11>>> = OnceLock::new();
    let loaded = LOADED.get_or_init(Mutex::default);
    let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = loaded.get(path) {
        return Ok(library.clone());
    }
    let library = Pkcs11::new(path).map_err(|error| unavailable(&error))?;
    match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error) => return Err(unavailable(&error)),
    }
    loaded.insert(path.to_owned(), library.clone());
    Ok(library)
}

impl Token {
    /// A key in a token; whether it is there is seen when it is used. The PIN is tried once for each operation, and never
    /// again after the token refused it: tokens lock after a few wrong ones.
    ///
    /// # Errors
    /// [`KeyError::Unavailable`] when the module can not be loaded.
    pub fn new(which: TokenKey, pin: SecretBytes) -> Result<Self, KeyError> {
        let library = on_own_thread(HOLDER, || library(&which.module))?;
        Ok(Self { library, which, pin: Arc::new(pin) })
    }

    /// Makes the key in the token: it never leaves it, and can not be read.
    ///
    /// # Errors
    /// [`KeyError::Exists`] when a key of this label is there; [`KeyError::Wrong`] for another PIN;
    /// [`KeyError::Unavailable`].
    pub fn create(&self) -> Result<(), KeyError> {
        on_own_thread(HOLDER, || self.generate())
    }

    fn generate(&self) -> Result<(), KeyError> {
        let failed = |error| unavailable(&error);
        let session = self.session(true)?;
        if find(&session, &self.which.key)?.is_some() {
            return Err(KeyError::Exists { holder: "key of the token", name: self.which.key.clone() });
        }
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::ValueLen(32.into()),
            Attribute::Label(self.which.key.as_bytes().to_vec()),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
        ];
        session.generate_key(&Mechanism::AesKeyGen, &template).map(|_| ()).map_err(failed)
    }

    fn session(&self, write: bool) -> Result<Session, KeyError> {
        let failed = |error| unavailable(&error);
        let slots = self.library.get_slots_with_initialized_token().map_err(failed)?;
        let slot = slots
            .into_iter()
            .find(|slot| {
                self.library.get_token_info(*slot).is_ok_and(|info| info.label().trim() == self.which.token)
            })
            .ok_or_else(|| KeyError::Missing { holder: HOLDER, name: self.which.token.clone() })?;
        let session =
            if write { self.library.open_rw_session(slot) } else { self.library.open_ro_session(slot) };
        let session = session.map_err(failed)?;
        let pin = core::str::from_utf8(self.pin.expose())
            .map_err(|_| KeyError::Malformed { holder: "PIN of the token", reason: "it is not text" })?;
        match session.login(UserType::User, Some(&AuthPin::new(pin.to_owned().into()))) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
            Err(error) => Err(unavailable(&error)),
        }
    }

    fn key(&self, session: &Session) -> Result<ObjectHandle, KeyError> {
        find(session, &self.which.key)?
            .ok_or_else(|| KeyError::Missing { holder: "key of the token", name: self.which.key.clone() })
    }

    fn encrypt(&self, key: &Secret<32>) -> Result<Vec<u8>, KeyError> {
        let mut nonce = [0; NONCE];
        SystemRandom::new().fill(&mut nonce)?;
        let session = self.session(false)?;
        let handle = self.key(&session)?;
        let mut used = nonce;
        let parameters = GcmParams::new(&mut used, &[], 128.into()).map_err(|error| unavailable(&error))?;
        let sealed = session.encrypt(&Mechanism::AesGcm(parameters), handle, key.expose());
        Ok([&nonce[..], &sealed.map_err(|error| unavailable(&error))?].concat())
    }

    fn decrypt(&self, wrapped: &[u8]) -> Result<Secret<32>, KeyError> {
        let (nonce, sealed) = wrapped
            .split_first_chunk::<NONCE>()
            .ok_or(KeyError::Corrupt("what the token wrapped ends too early"))?;
        let session = self.session(false)?;
        let handle = self.key(&session)?;
        let mut nonce = *nonce;
        let parameters = GcmParams::new(&mut nonce, &[], 128.into()).map_err(|error| unavailable(&error))?;
        match session.decrypt(&Mechanism::AesGcm(parameters), handle, sealed) {
            Ok(key) => {
                let key = SecretBytes::from(key);
                Secret::from_slice(key.expose()).map_err(|_| KeyError::Wrong { holder: HOLDER })
            }
            // What modules say of a tag that does not fit; it is not the session or the login, which worked.
            Err(Error::Pkcs11(
                RvError::EncryptedDataInvalid
                | RvError::EncryptedDataLenRange
                | RvError::FunctionFailed
                | RvError::GeneralError,
                _,
            )) => Err(KeyError::Wrong { holder: HOLDER }),
            Err(error) => Err(unavailable(&error)),
        }
    }
}

fn find(session: &Session, label: &str) -> Result<Option<ObjectHandle>, KeyError> {
    let wanted = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Label(label.as_bytes().to_vec())];
    let found = session.find_objects(&wanted).map_err(|error| unavailable(&error))?;
    match &found[..] {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        _ => Err(KeyError::Unavailable {
            holder: HOLDER,
            reason: format!("it has more than one key with the label {label}"),
        }),
    }
}

impl KeyService for Token {
    fn wrap(&self, key: &Secret<32>) -> Result<Vec<u8>, KeyError> {
        on_own_thread(HOLDER, || self.encrypt(key))
    }

    fn unwrap(&self, wrapped: &[u8]) -> Result<Secret<32>, KeyError> {
        on_own_thread(HOLDER, || self.decrypt(wrapped))
    }
}
