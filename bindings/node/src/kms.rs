//! A key management service that is asked in JavaScript: each question is one call of one function there, each answer one call back.
//!
//! Promises and throws are JavaScript's business: the TypeScript face turns them into answers. Whoever asks is on a thread that may wait,
//! and does so for a bounded time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use napi::bindgen_prelude::{Function, Uint8Array};
use napi::threadsafe_function::{ThreadsafeCallContext, ThreadsafeFunction, ThreadsafeFunctionCallMode};
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
    /// What is to be wrapped or unwrapped; nothing where nobody waits for the answer any more.
    pub bytes: Option<Uint8Array>,
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

/// Only the id of a question is on its way to JavaScript: what a queue of Node holds when its thread ends is never dropped.
type Ask = ThreadsafeFunction<u64, (), KmsRequest, napi::Status, false, true, 0>;

struct Question {
    call: &'static str,
    /// A key, perhaps, until JavaScript takes it. What it never takes is wiped with the question.
    bytes: Option<SecretBytes>,
    answer: SyncSender<Answer>,
}

/// The questions that somebody waits for.
#[derive(Default)]
struct Questions(Mutex<HashMap<u64, Question>>);

impl Questions {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Question>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A question as JavaScript gets it.
    fn take(&self, id: u64) -> KmsRequest {
        let taken =
            self.lock().get_mut(&id).and_then(|question| Some((question.call, question.bytes.take()?)));
        let (call, bytes) = taken.unzip();
        #[allow(clippy::cast_precision_loss, reason = "ids count up from 0 and stay below 2^53")]
        let id = id as f64;
        let bytes = bytes.map(|bytes| bytes.into_exposed().into());
        KmsRequest { id, call: call.unwrap_or_default().to_owned(), bytes }
    }
}

struct Bridge {
    ask: Ask,
    next: AtomicU64,
    questions: Arc<Questions>,
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
        self.0.questions.lock().remove(&self.1);
    }
}

fn unavailable(reason: String) -> KeyError {
    KeyError::Unavailable { holder: HolderKind::Kms.name(), reason }
}

impl Bridge {
    fn put(&self, call: &'static str, bytes: &[u8]) -> Result<SecretBytes, KeyError> {
        // Below 2^53: a number of JavaScript.
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = sync_channel(1);
        let bytes = Some(SecretBytes::from_slice(bytes));
        self.questions.lock().insert(id, Question { call, bytes, answer });
        let _forget = Forget(self, id);
        if self.ask.call(id, ThreadsafeFunctionCallMode::NonBlocking) != napi::Status::Ok {
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
        let questions = Arc::new(Questions::default());
        let asked = Arc::clone(&questions);
        let ask = ask
            .build_threadsafe_function::<u64>()
            .weak::<true>()
            .callee_handled::<false>()
            .build_callback(move |context: ThreadsafeCallContext<u64>| Ok(asked.take(context.value)))?;
        Ok(Self(Arc::new(Bridge { ask, next: AtomicU64::new(0), questions })))
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
        if let Some(question) = self.0.questions.lock().remove(&id) {
            let _ = question.answer.send(answer);
        }
        Ok(())
    }
}
