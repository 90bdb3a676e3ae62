//! Promises: what runs on the runtime of this library, and how JavaScript gives up waiting.

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Waker};
use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use futures::future::maybe_done;
use napi::Env;
use napi::bindgen_prelude::{Function, PromiseRaw, ToNapiValue};
use napi::threadsafe_function::ThreadsafeFunctionCallMode;
use napi_derive::napi;
use tokio_util::sync::CancellationToken;

use crate::failure::{failure, panicked, watch_panics};

/// Ends the waiting for one operation.
#[napi]
#[derive(Default)]
pub struct Cancel(CancellationToken);

#[napi]
impl Cancel {
    /// One that was not used.
    #[napi(constructor, catch_unwind)]
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the waiting.
    #[napi(catch_unwind)]
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

/// A promise for what `work` gives. A panic in it is an error like any other.
pub(crate) fn promise<'env, T, F>(
    env: &'env Env,
    cancel: Option<&Cancel>,
    work: F,
) -> napi::Result<PromiseRaw<'env, T>>
where
    T: ToNapiValue + Send + 'static,
    F: Future<Output = napi::Result<T>> + Send + 'static,
{
    env.spawn_future(guarded(cancel, work))
}

/// Does `work` and tells `done` nothing, or what it failed with. Unlike a promise it does not keep the process alive: what waits for another user
/// may wait for ever.
pub(crate) fn told<F>(
    done: &Function<'_, Option<String>, ()>,
    cancel: Option<&Cancel>,
    work: F,
) -> napi::Result<()>
where
    F: Future<Output = napi::Result<()>> + Send + 'static,
{
    let done = done
        .build_threadsafe_function::<Option<String>>()
        .weak::<true>()
        .callee_handled::<false>()
        .build()?;
    let work = guarded(cancel, work);
    napi::bindgen_prelude::spawn(async move {
        let failed = work.await.err().map(|error| error.reason.clone());
        done.call(failed, ThreadsafeFunctionCallMode::NonBlocking);
    });
    Ok(())
}

/// `work`, as long as nobody cancels it. A panic in it is an error like any other.
pub(crate) fn guarded<T, F>(
    cancel: Option<&Cancel>,
    work: F,
) -> impl Future<Output = napi::Result<T>> + Send + use<T, F>
where
    T: Send + 'static,
    F: Future<Output = napi::Result<T>> + Send + 'static,
{
    watch_panics();
    let token = cancel.map(|cancel| cancel.0.clone());
    async move {
        let cancelled = async {
            match &token {
                Some(token) => token.cancelled().await,
                None => core::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = cancelled => Err(failure("ABORTED", "the operation was aborted by its signal", false)),
            ended = AssertUnwindSafe(work).catch_unwind() => ended.unwrap_or_else(|_| Err(panicked())),
        }
    }
}

/// Begins work at once, up to where it has to wait, and gives what is left of it. So calls take their places in the order in which
/// JavaScript makes them, whatever the threads of the runtime do.
pub(crate) fn begun<T: Send + 'static>(
    runtime: &tokio::runtime::Handle,
    work: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = T> + Send + 'static {
    let mut work = maybe_done(Box::pin(work));
    let _inside = runtime.enter();
    // Whoever waits for the rest polls it again and leaves a waker then.
    let _ = Pin::new(&mut work).poll(&mut Context::from_waker(Waker::noop()));
    async move {
        (&mut work).await;
        match Pin::new(&mut work).take_output() {
            Some(done) => done,
            // It was not taken before.
            None => core::future::pending().await,
        }
    }
}

/// Something whose end needs the runtime. The garbage collector runs outside it, and at the end of the process perhaps after it.
pub(crate) struct Kept<T> {
    value: Option<T>,
    runtime: tokio::runtime::Handle,
}

impl<T> Kept<T> {
    /// Call it on the runtime.
    pub(crate) fn new(value: T) -> Self {
        Self { value: Some(value), runtime: tokio::runtime::Handle::current() }
    }

    /// The runtime that it was made on.
    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    pub(crate) fn get(&self) -> napi::Result<&T> {
        self.value.as_ref().ok_or_else(panicked)
    }

    pub(crate) fn take(&mut self) -> Option<T> {
        self.value.take()
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        let value = self.value.take();
        // Nothing may unwind into the garbage collector.
        let _ = std::panic::catch_unwind(AssertUnwindSafe(|| drop(value)));
    }
}
