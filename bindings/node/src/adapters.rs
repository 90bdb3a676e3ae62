//! Stores that are written in JavaScript: each question is one call of one function there, each answer one call back.
//!
//! Promises, throws and hangs are JavaScript's business: the TypeScript face turns them into answers, and whoever asks here has a
//! deadline.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use napi::bindgen_prelude::{Function, Uint8Array};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use stvor::narrow::{
    Adapters, FingerprintStore, IdentityPair, IdentityStore, ReplaceFingerprint, ReplayCache, SessionStore,
    StoreError,
};
use stvor_crypto::p256::SigningKey;
use stvor_crypto::{SecretBytes, SystemRandom};
use tokio::sync::oneshot;

use crate::failure::{argument, coded, fits};
use crate::limits::{MAX_PRIVATE_KEY, MAX_STATE};

/// A question.
#[napi(object)]
pub struct AdapterRequest {
    /// Comes back with the answer.
    pub id: f64,
    /// Which function of which adapter: `replay.checkAndMark` and so on.
    pub call: String,
    /// The peer, or the id of a state.
    pub peer: String,
    /// A nonce or a state.
    pub bytes: Option<Uint8Array>,
    /// A fingerprint.
    pub text: Option<String>,
    /// The fingerprint that it takes the place of.
    pub old: Option<String>,
}

/// An answer.
#[napi(object)]
pub struct AdapterAnswer {
    /// The adapter failed: its own words.
    pub failed: Option<String>,
    /// The adapter answered something else than its interface says.
    pub wrong: Option<String>,
    /// Yes or no.
    pub flag: Option<bool>,
    /// A state, or a public key.
    pub bytes: Option<Uint8Array>,
    /// A private key.
    pub secret: Option<Uint8Array>,
}

/// The same, where it is read.
#[derive(Default)]
struct Answer {
    failed: Option<String>,
    wrong: Option<String>,
    flag: Option<bool>,
    bytes: Option<Vec<u8>>,
    secret: Option<SecretBytes>,
}

type Ask = ThreadsafeFunction<AdapterRequest, (), AdapterRequest, napi::Status, false, true, 0>;

struct Bridge {
    ask: Ask,
    /// Whether `tofu.replaceFingerprint` is there.
    replaces: bool,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
}

impl core::fmt::Debug for Bridge {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Bridge")
    }
}

/// Forgets a question whose asker went away.
struct Forget<'a>(&'a Bridge, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.waiting().remove(&self.1);
    }
}

/// What is asked.
#[derive(Default)]
struct Question<'a> {
    call: &'static str,
    peer: &'a str,
    bytes: Option<&'a [u8]>,
    text: Option<&'a str>,
    old: Option<&'a str>,
}

impl Bridge {
    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Answer>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn put(&self, question: Question<'_>) -> Result<Answer, StoreError> {
        let call = question.call;
        let gone = || StoreError::Adapter(format!("{call} can not be asked any more: its thread ends"));
        // Below 2^53: a number of JavaScript.
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.waiting().insert(id, answer);
        let _forget = Forget(self, id);
        #[allow(clippy::cast_precision_loss, reason = "ids count up from 0 and stay below 2^53")]
        let request = AdapterRequest {
            id: id as f64,
            call: call.to_owned(),
            peer: question.peer.to_owned(),
            bytes: question.bytes.map(|bytes| bytes.to_vec().into()),
            text: question.text.map(str::to_owned),
            old: question.old.map(str::to_owned),
        };
        if self.ask.call(request, ThreadsafeFunctionCallMode::NonBlocking) != napi::Status::Ok {
            return Err(gone());
        }
        let answer = answered.await.map_err(|_| gone())?;
        match (answer.failed, answer.wrong) {
            (Some(why), _) => Err(StoreError::Adapter(format!("{call} failed: {why}"))),
            (None, Some(what)) => Err(StoreError::Answer { call, what }),
            (None, None) => Ok(Answer { failed: None, wrong: None, ..answer }),
        }
    }

    async fn yes_or_no(&self, question: Question<'_>) -> Result<bool, StoreError> {
        let call = question.call;
        let what = || "it is not true or false".to_owned();
        self.put(question).await?.flag.ok_or_else(|| StoreError::Answer { call, what: what() })
    }
}

#[stvor::narrow::async_trait]
impl ReplayCache for Bridge {
    async fn check_and_mark(&self, peer: &str, nonce: &[u8]) -> Result<bool, StoreError> {
        self.yes_or_no(Question {
            call: "replay.checkAndMark",
            peer,
            bytes: Some(nonce),
            ..Question::default()
        })
        .await
    }
}

#[stvor::narrow::async_trait]
impl FingerprintStore for Bridge {
    async fn store_fingerprint(&self, peer: &str, fingerprint: &str) -> Result<(), StoreError> {
        let call = "tofu.storeFingerprint";
        let question = Question { call, peer, text: Some(fingerprint), ..Question::default() };
        self.put(question).await.map(|_| ())
    }

    async fn verify_fingerprint(&self, peer: &str, fingerprint: &str) -> Result<bool, StoreError> {
        let call = "tofu.verifyFingerprint";
        self.yes_or_no(Question { call, peer, text: Some(fingerprint), ..Question::default() }).await
    }

    fn replacing(&self) -> Option<&dyn ReplaceFingerprint> {
        self.replaces.then_some(self)
    }
}

#[stvor::narrow::async_trait]
impl ReplaceFingerprint for Bridge {
    async fn replace_fingerprint(&self, peer: &str, old: &str, new: &str) -> Result<(), StoreError> {
        let call = "tofu.replaceFingerprint";
        let question = Question { call, peer, text: Some(new), old: Some(old), ..Question::default() };
        self.put(question).await.map(|_| ())
    }
}

#[stvor::narrow::async_trait]
impl SessionStore for Bridge {
    async fn save(&self, id: &str, state: &[u8]) -> Result<(), StoreError> {
        let question =
            Question { call: "sessions.save", peer: id, bytes: Some(state), ..Question::default() };
        self.put(question).await.map(|_| ())
    }

    async fn load(&self, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let question = Question { call: "sessions.load", peer: id, ..Question::default() };
        Ok(self.put(question).await?.bytes)
    }
}

#[stvor::narrow::async_trait]
impl IdentityStore for Bridge {
    async fn identity_key_pair(&self) -> Result<IdentityPair, StoreError> {
        let call = "identity.getIdentityKeyPair";
        let answer = self.put(Question { call, ..Question::default() }).await?;
        let what = || "there is no key pair in it".to_owned();
        let missing = || StoreError::Answer { call, what: what() };
        let (public, private) = answer.bytes.zip(answer.secret).ok_or_else(missing)?;
        // Libraries leave zeros out at the beginning of a number.
        let mut padded = SecretBytes::from(vec![0; MAX_PRIVATE_KEY.saturating_sub(private.len())]);
        let key = if padded.is_empty() {
            private
        } else {
            let mut bytes = core::mem::take(&mut padded).into_exposed();
            bytes.extend_from_slice(private.expose());
            bytes.into()
        };
        IdentityPair::new(&public, key.expose())
    }
}

/// The four stores of an application.
#[napi]
pub struct NativeAdapters(Arc<Bridge>);

impl NativeAdapters {
    pub(crate) fn adapters(&self) -> Adapters {
        let bridge = || Arc::clone(&self.0);
        Adapters::new(bridge(), bridge(), bridge(), bridge())
    }
}

#[napi]
impl NativeAdapters {
    /// `ask` is called with each question and answers by `answer`; `replaces` says whether there is a
    /// `tofu.replaceFingerprint`.
    ///
    /// # Errors
    /// When the callback can not be kept.
    #[napi(constructor, catch_unwind)]
    pub fn new(ask: Function<'_, AdapterRequest, ()>, replaces: bool) -> napi::Result<Self> {
        let ask = ask
            .build_threadsafe_function::<AdapterRequest>()
            .weak::<true>()
            .callee_handled::<false>()
            .build()?;
        Ok(Self(Arc::new(Bridge { ask, replaces, next: AtomicU64::new(0), waiting: Mutex::default() })))
    }

    /// Answers a question. One that nobody waits for any more is no error.
    ///
    /// # Errors
    /// `MESSAGE_TOO_LARGE` for a state that can not be one.
    #[napi(catch_unwind)]
    pub fn answer(&self, id: f64, answer: AdapterAnswer) -> napi::Result<()> {
        if !(0.0..9_007_199_254_740_992.0).contains(&id) {
            return Err(argument("the id of a question is a whole number"));
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "in range, as was just seen"
        )]
        let id = id as u64;
        let bytes = answer.bytes.as_deref().map(|bytes| fits(bytes, MAX_STATE)).transpose()?;
        let secret = answer.secret.as_deref().map(|bytes| fits(bytes, MAX_PRIVATE_KEY)).transpose()?;
        let answer = Answer {
            failed: answer.failed,
            wrong: answer.wrong,
            flag: answer.flag,
            bytes: bytes.map(<[u8]>::to_vec),
            secret: secret.map(SecretBytes::from_slice),
        };
        if let Some(waiting) = self.0.waiting().remove(&id) {
            let _ = waiting.send(answer);
        }
        Ok(())
    }
}

/// A key pair as `identity.getIdentityKeyPair` has to answer it.
#[napi(object)]
pub struct IdentityKeys {
    /// 65 bytes, uncompressed.
    pub public_key: Uint8Array,
    /// 32 bytes.
    pub private_key: Uint8Array,
}

/// Makes a key pair for an identity store.
///
/// # Errors
/// `RNG_UNHEALTHY` when the random source is.
#[napi(catch_unwind)]
pub fn generate_identity() -> napi::Result<IdentityKeys> {
    let key = SigningKey::generate(&mut SystemRandom::new()).map_err(coded)?;
    Ok(IdentityKeys {
        public_key: key.public().as_bytes().to_vec().into(),
        private_key: key.to_bytes().expose().to_vec().into(),
    })
}
