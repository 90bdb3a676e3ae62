//! Sends under way. Their outcomes are handed over together, whatever is there at a time: a promise of this library for each costs JavaScript more
//! than the rest of a send.

use napi::bindgen_prelude::{Function, spawn};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use tokio::sync::mpsc;

use crate::client::{NativeClient, NativeReceipt, SendRequest};
use crate::failure::failed;
use crate::limits::SEND_BATCH;
use crate::task::{Cancel, guarded};

/// What became of one send.
#[napi(object, object_from_js = false)]
pub struct SentValue {
    /// Which.
    pub number: u32,
    /// Its receipt.
    pub receipt: Option<NativeReceipt>,
    /// Why there is none: what an error would have said.
    pub failure: Option<String>,
}

type Deliver = ThreadsafeFunction<Vec<SentValue>, (), Vec<SentValue>, napi::Status, false, true, 0>;

/// The sends of one client. Their outcomes wait here until JavaScript has a moment: no more than it began.
#[napi]
pub struct NativeSends(mpsc::UnboundedSender<SentValue>);

#[napi]
impl NativeSends {
    /// `settled` is told what became of sends. It does not keep the process alive, and must not know this object: neither would ever be collected.
    ///
    /// # Errors
    /// When the callback can not be kept.
    #[napi(constructor, catch_unwind)]
    pub fn new(settled: Function<'_, Vec<SentValue>, ()>) -> napi::Result<Self> {
        let deliver: Deliver = settled
            .build_threadsafe_function::<Vec<SentValue>>()
            .weak::<true>()
            .callee_handled::<false>()
            .build()?;
        let (outcomes, told) = mpsc::unbounded_channel();
        spawn(pump(told, deliver));
        Ok(Self(outcomes))
    }

    /// Sends a message of `client`. Sends take their places in the order of their calls.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when it is none. Everything else is told with `number`.
    #[napi(catch_unwind)]
    pub fn send(
        &self,
        client: &NativeClient,
        number: u32,
        request: SendRequest,
        cancel: Option<&Cancel>,
    ) -> napi::Result<()> {
        let sdk = client.client()?;
        let (to, content, options) = request.read()?;
        let sending = client.begun(async move { sdk.send_with(to, content, options).await });
        let sent = guarded(cancel, async move { sending.await.map(NativeReceipt::of).map_err(failed) });
        let outcomes = self.0.clone();
        spawn(async move {
            let (receipt, failure) = match sent.await {
                Ok(receipt) => (Some(receipt), None),
                Err(error) => (None, Some(error.reason.to_string())),
            };
            // Nobody is left to be told when the environment of JavaScript is gone.
            let _ = outcomes.send(SentValue { number, receipt, failure });
        });
        Ok(())
    }
}

async fn pump(mut told: mpsc::UnboundedReceiver<SentValue>, deliver: Deliver) {
    loop {
        let mut batch = Vec::new();
        if told.recv_many(&mut batch, SEND_BATCH).await == 0
            || deliver.call(batch, ThreadsafeFunctionCallMode::NonBlocking) == napi::Status::Closing
        {
            return;
        }
    }
}
