//! One user of an app.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use futures::future::join_all;
use napi::Env;
use napi::bindgen_prelude::{Function, PromiseRaw};
use napi_derive::napi;
use stvor::{Client, Content, ContentId, Cursor, Group, GroupId, Receipt, SendOptions, SendWait};

use crate::app::{retention_of, wait};
use crate::content::{ContentValue, HistoryValue, millis};
use crate::events::described;
use crate::failure::{argument, failed};
use crate::limits::{EVENT_BATCH, MAX_BATCH};
use crate::stream::NativeStream;
use crate::task::{Cancel, Kept, begun, promise, told};

/// A message to be sent.
#[napi(object)]
pub struct SendRequest {
    /// To whom.
    pub to: String,
    /// What it says.
    pub content: ContentValue,
    /// Milliseconds to wait; the app's timeout if absent.
    pub timeout: Option<f64>,
    /// Waits for the outbox only, not for the relay.
    pub committed: Option<bool>,
}

impl SendRequest {
    pub(crate) fn read(self) -> napi::Result<(String, Content, SendOptions)> {
        let wait_for = if self.committed == Some(true) { SendWait::Committed } else { SendWait::Accepted };
        let options = SendOptions { timeout: self.timeout.map(wait).transpose()?, wait: wait_for };
        Ok((self.to, self.content.read()?, options))
    }
}

/// What became of one message of several.
#[napi(object, object_from_js = false)]
pub struct SendOutcome {
    /// Its receipt.
    pub receipt: Option<NativeReceipt>,
    /// Why there is none: what an error would have said.
    pub failure: Option<String>,
}

/// Which page of a conversation.
#[napi(object)]
pub struct HistoryRequest {
    /// With whom; of a group its id.
    pub of: String,
    /// Whether it is of a group.
    pub group: bool,
    /// Messages at most.
    pub limit: Option<u32>,
    /// Only messages whose text holds these words.
    pub search: Option<String>,
}

/// A page of a conversation.
#[napi]
pub struct NativePage {
    messages: Vec<HistoryValue>,
    before: Option<Cursor>,
}

#[napi]
impl NativePage {
    /// The messages, newest first; the second call gives none.
    #[napi(catch_unwind)]
    pub fn take(&mut self) -> Vec<HistoryValue> {
        core::mem::take(&mut self.messages)
    }

    /// Whether there are older ones.
    #[napi(getter, catch_unwind)]
    #[must_use]
    pub fn more(&self) -> bool {
        self.before.is_some()
    }
}

/// Somebody the client talks with.
#[napi(object)]
pub struct PeerValue {
    /// Who.
    pub user: String,
    /// Whether their identity is verified; absent while none is pinned.
    pub verified: Option<bool>,
    /// Whether they are blocked.
    pub blocked: bool,
    /// When the newest message came or went.
    pub last_message_at: Option<f64>,
}

/// A safety number.
#[napi(object)]
pub struct SafetyValue {
    /// Twelve groups of five digits.
    pub text: String,
    /// Sixty digits.
    pub digits: String,
    /// What a QR code holds.
    pub qr: napi::bindgen_prelude::Uint8Array,
    /// Whether it was marked as compared.
    pub verified: bool,
}

/// Our own identity.
#[napi(object)]
pub struct IdentityValue {
    /// Our user.
    pub user: String,
    /// This device.
    pub device: u32,
    /// SHA-256 of the user's public key, hexadecimal.
    pub fingerprint: String,
    /// Milliseconds since the Unix epoch.
    pub created_at: f64,
}

/// What became of a message of ours.
#[napi]
pub struct NativeReceipt(Receipt);

impl NativeReceipt {
    pub(crate) fn of(receipt: Receipt) -> Self {
        Self(receipt)
    }
}

#[napi]
impl NativeReceipt {
    /// The message's id.
    #[napi(getter, catch_unwind)]
    #[must_use]
    pub fn id(&self) -> String {
        self.0.id().to_string()
    }

    /// To whom the message was.
    #[napi(getter, catch_unwind)]
    #[must_use]
    pub fn to(&self) -> String {
        self.0.to().to_string()
    }

    /// How far it came.
    #[napi(getter, catch_unwind)]
    #[must_use]
    pub fn status(&self) -> String {
        self.0.status().name().to_owned()
    }

    /// Waits until it is `accepted`, `delivered` or `read`, and tells `done` nothing, or what the methods of `Receipt` fail with.
    ///
    /// # Errors
    /// When the callback can not be kept.
    #[napi(catch_unwind)]
    pub fn reached(
        &self,
        state: String,
        cancel: Option<&Cancel>,
        done: Function<'_, Option<String>, ()>,
    ) -> napi::Result<()> {
        let receipt = self.0.clone();
        told(&done, cancel, async move {
            match state.as_str() {
                "accepted" => receipt.accepted().await,
                "delivered" => receipt.delivered().await,
                "read" => receipt.read().await,
                _ => return Err(argument("a receipt reaches accepted, delivered or read")),
            }
            .map_err(failed)
        })
    }
}

/// A client, and the groups of it that were looked for.
struct Opened {
    client: Client,
    groups: Arc<Mutex<HashMap<GroupId, Group>>>,
}

/// One user of an app.
#[napi]
pub struct NativeClient(Kept<Opened>);

impl NativeClient {
    /// Call it on the runtime.
    pub(crate) fn new(client: Client) -> Self {
        Self(Kept::new(Opened { client, groups: Arc::default() }))
    }

    pub(crate) fn client(&self) -> napi::Result<Client> {
        self.0.get().map(|opened| opened.client.clone())
    }

    /// The groups that were looked for: no more than the client has.
    pub(crate) fn groups_at_hand(&self) -> napi::Result<Arc<Mutex<HashMap<GroupId, Group>>>> {
        self.0.get().map(|opened| Arc::clone(&opened.groups))
    }

    /// Begins work of the client at once.
    pub(crate) fn begun<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> impl Future<Output = T> + Send + 'static {
        begun(self.0.runtime(), work)
    }
}

#[napi]
impl NativeClient {
    /// Our user.
    #[napi(getter, catch_unwind)]
    pub fn user(&self) -> napi::Result<String> {
        Ok(self.client()?.user().as_str().to_owned())
    }

    /// Whether the client talks with its relay.
    #[napi(getter, catch_unwind)]
    pub fn state(&self) -> napi::Result<String> {
        Ok(self.client()?.state().name().to_owned())
    }

    /// The code of what ended the client, if nobody asked for it.
    #[napi(getter, catch_unwind)]
    pub fn ended_by(&self) -> napi::Result<Option<&'static str>> {
        Ok(self.client()?.ended_by())
    }

    /// Messages that were not consumed.
    #[napi(getter, catch_unwind)]
    pub fn unconsumed(&self) -> napi::Result<u32> {
        Ok(u32::try_from(self.client()?.unconsumed()).unwrap_or(u32::MAX))
    }

    /// Messages that the relay has not accepted.
    #[napi(getter, catch_unwind)]
    pub fn pending(&self) -> napi::Result<u32> {
        Ok(u32::try_from(self.client()?.pending()).unwrap_or(u32::MAX))
    }

    /// Where the store is.
    #[napi(getter, catch_unwind)]
    pub fn data_path(&self) -> napi::Result<Option<String>> {
        Ok(self.client()?.data_path().map(|path| path.display().to_string()))
    }

    /// Our own identity.
    #[napi(getter, catch_unwind)]
    pub fn identity(&self) -> napi::Result<IdentityValue> {
        let identity = self.client()?.identity();
        Ok(IdentityValue {
            user: identity.user.as_str().to_owned(),
            device: identity.device.get(),
            fingerprint: identity.fingerprint,
            created_at: millis(identity.created_at),
        })
    }

    /// Sends several messages in their order, and waits for all of them at once.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when one of them is no message; nothing was sent then. What becomes of each is in its outcome.
    #[napi(catch_unwind)]
    pub fn send_many<'env>(
        &self,
        env: &'env Env,
        requests: Vec<SendRequest>,
        cancel: Option<&Cancel>,
    ) -> napi::Result<PromiseRaw<'env, Vec<SendOutcome>>> {
        if requests.len() > MAX_BATCH {
            return Err(argument("too many messages at once: 10,000 at most"));
        }
        let client = self.client()?;
        let requests = requests.into_iter().map(SendRequest::read).collect::<napi::Result<Vec<_>>>()?;
        let send = |(to, content, options)| {
            let client = client.clone();
            self.begun(async move { client.send_with(to, content, options).await })
        };
        let sends: Vec<_> = requests.into_iter().map(send).collect();
        promise(env, cancel, async move {
            let outcome = |sent| match sent {
                Ok(receipt) => SendOutcome { receipt: Some(NativeReceipt(receipt)), failure: None },
                Err(error) => SendOutcome { receipt: None, failure: Some(failed(error).reason.to_string()) },
            };
            Ok(join_all(sends).await.into_iter().map(outcome).collect())
        })
    }

    /// The receipt of an earlier message.
    ///
    /// # Errors
    /// As `Client::receipt`.
    #[napi(catch_unwind)]
    pub fn receipt<'env>(
        &self,
        env: &'env Env,
        id: String,
    ) -> napi::Result<PromiseRaw<'env, Option<NativeReceipt>>> {
        let (client, id) = (self.client()?, content_id(&id)?);
        promise(env, None, async move {
            client.receipt(id).await.map(|receipt| receipt.map(NativeReceipt)).map_err(failed)
        })
    }

    /// A stream of messages; `deliver` gets them in batches, an empty batch is the end.
    ///
    /// # Errors
    /// When the callback can not be kept.
    #[napi(catch_unwind)]
    pub fn stream(
        &self,
        deliver: Function<'_, Vec<crate::content::MessageValue>, ()>,
    ) -> napi::Result<NativeStream> {
        NativeStream::start(&self.client()?, &deliver)
    }

    /// Hands events to `tell`, each as JSON, a batch at a time: who is slow is told what was missed (`lagged`). An empty batch is the end:
    /// the client is closed, whoever did it.
    ///
    /// # Errors
    /// When the callback can not be kept.
    #[napi(catch_unwind)]
    pub fn events(&self, tell: Function<'_, Vec<String>, ()>) -> napi::Result<()> {
        let tell = tell
            .build_threadsafe_function::<Vec<String>>()
            .weak::<true>()
            .callee_handled::<false>()
            .build()?;
        let mut events = self.client()?.events();
        napi::bindgen_prelude::spawn(async move {
            while let Some(event) = events.next().await {
                let mut batch = vec![described(&event)];
                while batch.len() < EVENT_BATCH
                    && let Some(Some(event)) = events.next().now_or_never()
                {
                    batch.push(described(&event));
                }
                // The next batch is not fetched before this one was heard: what waits is bounded where events come from.
                if tell.call_async(batch).await.is_err() {
                    return;
                }
            }
            let _ = tell.call_async(Vec::new()).await;
        });
        Ok(())
    }

    /// Waits until the client is connected.
    ///
    /// # Errors
    /// As `Client::wait_online`.
    #[napi(catch_unwind)]
    pub fn wait_online<'env>(
        &self,
        env: &'env Env,
        timeout: f64,
        cancel: Option<&Cancel>,
    ) -> napi::Result<PromiseRaw<'env, ()>> {
        let (client, timeout) = (self.client()?, wait(timeout)?);
        promise(env, cancel, async move { client.wait_online(timeout).await.map_err(failed) })
    }

    /// Waits until what waited at the relay at the log-in is here.
    ///
    /// # Errors
    /// As `Client::wait_caught_up`.
    #[napi(catch_unwind)]
    pub fn wait_caught_up<'env>(
        &self,
        env: &'env Env,
        timeout: f64,
        cancel: Option<&Cancel>,
    ) -> napi::Result<PromiseRaw<'env, ()>> {
        let (client, timeout) = (self.client()?, wait(timeout)?);
        promise(env, cancel, async move { client.wait_caught_up(timeout).await.map_err(failed) })
    }

    /// Waits until the relay knows a user.
    ///
    /// # Errors
    /// As `Client::wait_for_user`.
    #[napi(catch_unwind)]
    pub fn wait_for_user<'env>(
        &self,
        env: &'env Env,
        (user, timeout): (String, f64),
        cancel: Option<&Cancel>,
    ) -> napi::Result<PromiseRaw<'env, ()>> {
        let (client, timeout) = (self.client()?, wait(timeout)?);
        promise(env, cancel, async move { client.wait_for_user(user, timeout).await.map_err(failed) })
    }

    /// Says that messages were read.
    ///
    /// # Errors
    /// As `Client::mark_read`.
    #[napi(catch_unwind)]
    pub fn mark_read<'env>(
        &self,
        env: &'env Env,
        peer: String,
        ids: Vec<String>,
    ) -> napi::Result<PromiseRaw<'env, ()>> {
        let ids = ids.iter().map(|id| content_id(id)).collect::<napi::Result<Vec<_>>>()?;
        let client = self.client()?;
        promise(env, None, async move { client.mark_read(peer, &ids).await.map_err(failed) })
    }

    /// The safety number with a peer.
    ///
    /// # Errors
    /// As `Client::safety_number`.
    #[napi(catch_unwind)]
    pub fn safety_number<'env>(
        &self,
        env: &'env Env,
        peer: String,
        cancel: Option<&Cancel>,
    ) -> napi::Result<PromiseRaw<'env, SafetyValue>> {
        let client = self.client()?;
        promise(env, cancel, async move {
            let number = client.safety_number(peer).await.map_err(failed)?;
            Ok(SafetyValue {
                text: number.to_string(),
                digits: number.digits(),
                qr: number.qr().into(),
                verified: number.verified(),
            })
        })
    }

    /// What needs a peer and nothing else: `verify`, `unverify`, `acceptIdentity`, `block`, `unblock`, `resetSession`,
    /// `deleteConversation`.
    ///
    /// # Errors
    /// As the method of `Client` of that name.
    #[napi(catch_unwind)]
    pub fn manage<'env>(
        &self,
        env: &'env Env,
        (what, peer): (String, String),
        cancel: Option<&Cancel>,
    ) -> napi::Result<PromiseRaw<'env, ()>> {
        let client = self.client()?;
        promise(env, cancel, async move {
            match what.as_str() {
                "verify" => client.verify(peer).await,
                "unverify" => client.unverify(peer).await,
                "acceptIdentity" => client.accept_identity(peer).await,
                "block" => client.block(peer).await,
                "unblock" => client.unblock(peer).await,
                "resetSession" => client.reset_session(peer).await,
                "deleteConversation" => client.delete_conversation(peer).await,
                _ => return Err(argument("there is no such operation")),
            }
            .map_err(failed)
        })
    }

    /// Accepts the identity with this fingerprint.
    ///
    /// # Errors
    /// As `Client::accept_identity_named`.
    #[napi(catch_unwind)]
    pub fn accept_named<'env>(
        &self,
        env: &'env Env,
        (peer, fingerprint): (String, String),
        cancel: Option<&Cancel>,
    ) -> napi::Result<PromiseRaw<'env, ()>> {
        let client = self.client()?;
        promise(
            env,
            cancel,
            async move { client.accept_identity_named(peer, fingerprint).await.map_err(failed) },
        )
    }

    /// Notes that the safety number with a peer was compared: the one of these sixty digits, and no other.
    ///
    /// # Errors
    /// As `Client::verify_digits`.
    #[napi(catch_unwind)]
    pub fn verify_number<'env>(
        &self,
        env: &'env Env,
        (peer, digits): (String, String),
        cancel: Option<&Cancel>,
    ) -> napi::Result<PromiseRaw<'env, ()>> {
        let client = self.client()?;
        promise(env, cancel, async move { client.verify_digits(peer, &digits).await.map_err(failed) })
    }

    /// How long a conversation keeps messages: milliseconds, 0 for no longer than delivery needs, negative for ever.
    ///
    /// # Errors
    /// As `Client::set_retention`.
    #[napi(catch_unwind)]
    pub fn set_retention<'env>(
        &self,
        env: &'env Env,
        peer: String,
        millis: f64,
    ) -> napi::Result<PromiseRaw<'env, ()>> {
        let retention = retention_of(millis)?;
        let client = self.client()?;
        promise(env, None, async move { client.set_retention(peer, retention).await.map_err(failed) })
    }

    /// Whom the client talks with.
    ///
    /// # Errors
    /// As `Client::peers`.
    #[napi(catch_unwind)]
    pub fn peers<'env>(&self, env: &'env Env) -> napi::Result<PromiseRaw<'env, Vec<PeerValue>>> {
        let client = self.client()?;
        promise(env, None, async move {
            let peers = client.peers().await.map_err(failed)?;
            Ok(peers
                .into_iter()
                .map(|peer| PeerValue {
                    user: peer.user.as_str().to_owned(),
                    verified: peer.verified,
                    blocked: peer.blocked,
                    last_message_at: peer.last_message_at.map(millis),
                })
                .collect())
        })
    }

    /// A page of a conversation, the one after `before` if that is given.
    ///
    /// # Errors
    /// As `HistoryQuery::load`.
    #[napi(catch_unwind)]
    pub fn history<'env>(
        &self,
        env: &'env Env,
        request: HistoryRequest,
        before: Option<&NativePage>,
        cancel: Option<&Cancel>,
    ) -> napi::Result<PromiseRaw<'env, NativePage>> {
        let client = self.client()?;
        let group = if request.group { Some(self.lookup(&request.of)?) } else { None };
        let cursor = before.and_then(|page| page.before);
        let limit = usize::try_from(request.limit.unwrap_or(50)).unwrap_or(usize::MAX);
        promise(env, cancel, async move {
            let group = match group {
                Some(found) => Some(found.await.map_err(failed)?),
                None => None,
            };
            let query = group.as_ref().map_or_else(|| client.history(&request.of), Group::history);
            let mut query = query.limit(limit).before(cursor);
            if let Some(words) = request.search {
                query = query.containing(words);
            }
            let page = query.load().await.map_err(failed)?;
            let messages = page.messages.iter().map(HistoryValue::of).collect();
            Ok(NativePage { messages, before: page.before })
        })
    }

    /// Ends the client, within so many milliseconds.
    ///
    /// # Errors
    /// When that is no time.
    #[napi(catch_unwind)]
    pub fn close<'env>(&self, env: &'env Env, within: f64) -> napi::Result<PromiseRaw<'env, ()>> {
        let (client, time) = (self.client()?, wait(within)?);
        promise(env, None, async move {
            client.close_within(time).await;
            Ok(())
        })
    }

    /// What needs nothing: `recoverFromRollback`, `deleteAccount`.
    ///
    /// # Errors
    /// As the method of `Client` of that name.
    #[napi(catch_unwind)]
    pub fn end<'env>(
        &self,
        env: &'env Env,
        what: String,
        cancel: Option<&Cancel>,
    ) -> napi::Result<PromiseRaw<'env, ()>> {
        let client = self.client()?;
        promise(env, cancel, async move {
            match what.as_str() {
                "recoverFromRollback" => client.recover_from_rollback().await.map_err(failed),
                "deleteAccount" => client.delete_account().await.map_err(failed),
                _ => Err(argument("there is no such operation")),
            }
        })
    }
}

pub(crate) fn content_id(id: &str) -> napi::Result<ContentId> {
    id.parse().map_err(|_| argument("a message id is 32 hexadecimal digits"))
}
