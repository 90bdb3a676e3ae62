//! A key management service that is asked in JavaScript: each question is one call of one function there, each answer one call back.
//!
//! Promises and throws are JavaScript's business: the TypeScript face turns them into answers. Whoever asks is on a thread that may wait,
//! and does so for a bounded time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use napi::bindgen_prelude::{Function, Uint8Array};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use stvor::{KeyHolder, KeyService, Managed};
use stvor_crypto::{Secret, SecretBytes};
use stvor_keys::{HolderKind, KeyError};

use crate::failure::{argument, fits};
use crate::limits::{KMS_PATIENCE, MAX_WRAPPED};

/// A question.
#[napi(object)]
pub struct KmsRequest {
    /// Comes back with the answer.
    pub id: f64,
    /// `wrap` or `unwrap`.
    pub call: String,
    /// What is to be wrapped or unwrapped.
    pub bytes: Uint8Array,
}

/// An answer: one of the two.
#[napi(object)]
pub struct KmsAnswer {
    /// The service failed: in what way.
    pub failed: Option<String>,
    /// What was wrapped or unwrapped.
    pub bytes: Option<Uint8Array>,
}

/// The same, where it is read.
type Answer = Result<SecretBytes, String>;

type Ask = ThreadsafeFunction<KmsRequest, (), KmsRequest, napi::Status, false, true, 0>;

struct Bridge {
    ask: Ask,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, SyncSender<Answer>>>,
}

impl core::fmt::Debug for Bridge {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Bridge")
    }
}

/// Forgets a question that nobody waits for any more.
struct Forget<'a>(&'a Bridge, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.waiting().remove(&self.1);
    }
}

fn unavailable(reason: String) -> KeyError {
    KeyError::Unavailable { holder: HolderKind::Kms.name(), reason }
}

impl Bridge {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, SyncSender<Answer>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, call: &str, bytes: &[u8]) -> Result<SecretBytes, KeyError> {
        // Below 2^53: a number of JavaScript.
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = sync_channel(1);
        self.waiting().insert(id, answer);
        let _forget = Forget(self, id);
        #[allow(clippy::cast_precision_loss, reason = "ids count up from 0 and stay below 2^53")]
        let request = KmsRequest { id: id as f64, call: call.to_owned(), bytes: bytes.to_vec().into() };
        if self.ask.call(request, ThreadsafeFunctionCallMode::NonBlocking) != napi::Status::Ok {
            return Err(unavailable(format!("kms.{call} can not be asked any more: its thread ends")));
        }
        match answered.recv_timeout(KMS_PATIENCE) {
            Ok(Ok(bytes)) if bytes.is_empty() => Err(unavailable(format!("kms.{call} answered no bytes"))),
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(why)) => Err(unavailable(format!("kms.{call} failed: {why}"))),
            Err(_) => {
                let seconds = KMS_PATIENCE.as_secs();
                Err(unavailable(format!("kms.{call} did not answer within {seconds} s")))
            }
        }
    }
}

/// What is asked to wrap and unwrap, as the engine knows it.
#[derive(Debug)]
struct Service(Arc<Bridge>);

impl KeyService for Service {
    fn wrap(&self, key: &Secret<32>) -> Result<Vec<u8>, KeyError> {
        self.0.put("wrap", key.expose()).map(SecretBytes::into_exposed)
    }

    fn unwrap(&self, wrapped: &[u8]) -> Result<Secret<32>, KeyError> {
        let key = self.0.put("unwrap", wrapped)?;
        let other = |_| unavailable(format!("kms.unwrap answered {} bytes; 32 were wrapped", key.len()));
        Secret::from_slice(key.expose()).map_err(other)
    }
}

/// The service of an application.
#[napi]
pub struct NativeKms(Arc<Bridge>);

impl NativeKms {
    pub(crate) fn holder(&self) -> Arc<dyn KeyHolder> {
        Arc::new(Managed::service(Service(Arc::clone(&self.0))))
    }
}

#[napi]
impl NativeKms {
    /// `ask` is called with each question and answers by `answer`.
    ///
    /// # Errors
    /// When the callback can not be kept.
    #[napi(constructor, catch_unwind)]
    pub fn new(ask: Function<'_, KmsRequest, ()>) -> napi::Result<Self> {
        let ask =
            ask.build_threadsafe_function::<KmsRequest>().weak::<true>().callee_handled::<false>().build()?;
        Ok(Self(Arc::new(Bridge { ask, next: AtomicU64::new(0), waiting: Mutex::default() })))
    }

    /// Answers a question. One that nobody waits for any more is no error.
    ///
    /// # Errors
    /// `MESSAGE_TOO_LARGE` for what can be no wrapped key.
    #[napi(catch_unwind)]
    pub fn answer(&self, id: f64, answer: KmsAnswer) -> napi::Result<()> {
        if !(0.0..9_007_199_254_740_992.0).contains(&id) {
            return Err(argument("the id of a question is a whole number"));
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "in range, as was just seen"
        )]
        let id = id as u64;
        let bytes = fits(answer.bytes.as_deref().unwrap_or_default(), MAX_WRAPPED)?;
        let answer = match answer.failed {
            Some(why) => Err(why),
            None => Ok(SecretBytes::from_slice(bytes)),
        };
        if let Some(waiting) = self.0.waiting().remove(&id) {
            let _ = waiting.send(answer);
        }
        Ok(())
    }
}
