//! Messages on their way to JavaScript: a window of them at a time, each settled when the application is done with it.

use std::collections::VecDeque;

use futures::FutureExt as _;
use napi::Env;
use napi::bindgen_prelude::{Function, PromiseRaw, spawn};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use stvor::{Client, Message, Messages};
use tokio::sync::{mpsc, oneshot};

use crate::content::MessageValue;
use crate::limits::STREAM_WINDOW;
use crate::task::promise;

type Deliver = ThreadsafeFunction<Vec<MessageValue>, (), Vec<MessageValue>, napi::Status, false, true, 0>;

enum Word {
    /// The oldest messages that are out are done with: acknowledge them, or leave them for the next start.
    Settled { count: u32, consumed: bool },
    /// Nothing more is wanted, and what is out beyond the oldest `keep` is not begun; answers when that went back.
    Stop { keep: u32, done: oneshot::Sender<()> },
    /// It is over; answers when everything that was acknowledged is stored.
    End(oneshot::Sender<()>),
}

/// One stream of messages.
#[napi]
pub struct NativeStream(mpsc::UnboundedSender<Word>);

impl NativeStream {
    pub(crate) fn start(
        client: &Client,
        deliver: &Function<'_, Vec<MessageValue>, ()>,
    ) -> napi::Result<Self> {
        let deliver: Deliver = deliver
            .build_threadsafe_function::<Vec<MessageValue>>()
            .weak::<true>()
            .callee_handled::<false>()
            .build()?;
        let (words, said) = mpsc::unbounded_channel();
        spawn(pump(client.messages().manual_ack(), said, deliver));
        Ok(Self(words))
    }
}

#[napi]
impl NativeStream {
    /// The application is done with the oldest `count` messages that it was given; `consumed`: they never come again.
    ///
    /// # Errors
    /// None after the end: there is nobody to tell.
    #[napi(catch_unwind)]
    pub fn settled(&self, count: u32, consumed: bool) {
        let _ = self.0.send(Word::Settled { count, consumed });
    }

    /// Takes nothing more, and gives back what was given beyond the oldest `keep` messages, which are still to be settled.
    ///
    /// # Errors
    /// `INTERNAL` if the stream met a defect.
    #[napi(catch_unwind)]
    pub fn stop<'env>(&self, env: &'env Env, keep: u32) -> napi::Result<PromiseRaw<'env, ()>> {
        self.asked(env, |done| Word::Stop { keep, done })
    }

    /// Ends the stream. What was given and is not settled goes back, to the next stream that asks.
    ///
    /// # Errors
    /// `INTERNAL` if the stream met a defect.
    #[napi(catch_unwind)]
    pub fn end<'env>(&self, env: &'env Env) -> napi::Result<PromiseRaw<'env, ()>> {
        self.asked(env, Word::End)
    }

    fn asked<'env>(
        &self,
        env: &'env Env,
        word: impl FnOnce(oneshot::Sender<()>) -> Word,
    ) -> napi::Result<PromiseRaw<'env, ()>> {
        let (done, answered) = oneshot::channel();
        let told = self.0.send(word(done)).is_ok();
        promise(env, None, async move {
            // A stream that ended by itself drops the question; its acknowledgements are stored by then, too.
            if told {
                let _ = answered.await;
            }
            Ok(())
        })
    }
}

async fn pump(mut messages: Messages, mut said: mpsc::UnboundedReceiver<Word>, deliver: Deliver) {
    let mut out: VecDeque<Message> = VecDeque::new();
    let mut acks = tokio::task::JoinSet::new();
    let mut over = false;
    // One at first, then more the more are consumed: who asks for one message and goes away keeps one from others.
    let mut window = 1;
    loop {
        tokio::select! {
            biased;
            word = said.recv() => match word {
                Some(Word::Settled { count, consumed }) => {
                    let count = usize::try_from(count).unwrap_or(usize::MAX).min(out.len());
                    let settled: Vec<Message> = out.drain(..count).collect();
                    if consumed {
                        window = STREAM_WINDOW.min(window + 2 * count);
                        acks.spawn(acknowledge(settled));
                    }
                }
                Some(Word::Stop { keep, done }) => {
                    over = true;
                    let keep = usize::try_from(keep).unwrap_or(usize::MAX).min(out.len());
                    messages.give_back(out.split_off(keep));
                    let _ = done.send(());
                }
                Some(Word::End(done)) => {
                    while acks.join_next().await.is_some() {}
                    messages.give_back(out);
                    let _ = done.send(());
                    return;
                }
                None => return messages.give_back(out),
            },
            Some(_) = acks.join_next() => {}
            message = messages.next(), if !over && out.len() < window => {
                let mut batch = Vec::new();
                let Some(message) = message else {
                    over = true;
                    deliver.call(batch, ThreadsafeFunctionCallMode::NonBlocking);
                    continue;
                };
                let mut next = Some(message);
                while let Some(message) = next {
                    batch.push(MessageValue::of(&message));
                    out.push_back(message);
                    let room = out.len() < window;
                    next = if room { messages.next().now_or_never().flatten() } else { None };
                }
                if deliver.call(batch, ThreadsafeFunctionCallMode::NonBlocking) == napi::Status::Closing {
                    return messages.give_back(out);
                }
            }
        }
    }
}

async fn acknowledge(messages: Vec<Message>) {
    // One that can not be stored comes again; the client's events tell that the store fails.
    futures::future::join_all(messages.iter().map(Message::ack)).await;
}
