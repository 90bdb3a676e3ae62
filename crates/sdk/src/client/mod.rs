//! One user of an app: sends, receives, knows whom it talks with.

mod trust;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use stvor_base::{Address, AppId, ContentId, DeviceId, Timestamp, UserId};
use stvor_crypto::SystemRandom;
use stvor_protocol::SignedDeviceListIn;
use stvor_store::{Scan, Table};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::app::user;
use crate::config::Retention;
use crate::content::Content;
use crate::core::{Core, random};
use crate::error::{Error, ErrorKind, Result};
use crate::events::{ConnectionState, DeliveryState, Events};
use crate::history::HistoryQuery;
use crate::inbox::Messages;
use crate::keys;
use crate::lane::{Answer, Command, SendRequest, Work};
use crate::limits;
use crate::receipt::Receipt;
use crate::rows::{MessageRow, Place, PointerRow};

/// The part of a client that the application holds: when its last copy goes, the client ends.
pub(crate) struct Handle(Arc<Core>);

impl Handle {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self(core)
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let core = Arc::clone(&self.0);
        if core.closing.load(Ordering::SeqCst) {
            return;
        }
        core.stop.cancel();
        // Without a runtime there is nobody left who could finish anything; the store's lock goes with the process.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { core.end().await });
        }
    }
}

/// What to wait for in [`Client::send_with`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SendWait {
    /// Until the relay answers for the message, or the time is over.
    #[default]
    Accepted,
    /// Until the message is in the outbox.
    Committed,
}

/// How [`Client::send_with`] sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SendOptions {
    /// How long to wait; the timeout of the app if not set. One that is set ends also the waiting for the answer to a question
    /// of trust (`AWAITING_TRUST`), for which a person may need longer; without one that is waited for as long as it may take,
    /// a minute. Where the relay has to be asked for the recipient, its answer is waited for besides.
    pub timeout: Option<Duration>,
    /// What to wait for.
    pub wait: SendWait,
}

/// Our own identity.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnIdentity {
    /// Our user.
    pub user: UserId,
    /// This device.
    pub device: DeviceId,
    /// SHA-256 of the user's public key in hexadecimal: tells identities apart, e.g. in a log.
    pub fingerprint: String,
    /// When the identity was made.
    pub created_at: Timestamp,
}

/// Somebody this client talks with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerInfo {
    /// Who.
    pub user: UserId,
    /// Whether their identity is verified; `None` while none is pinned.
    pub verified: Option<bool>,
    /// Whether they are blocked.
    pub blocked: bool,
    /// When the newest message of the conversation came or went.
    pub last_message_at: Option<Timestamp>,
    /// How long the conversation keeps its messages.
    pub retention: Retention,
}

/// One user of an app. Cheap to clone: all clones are one client.
#[derive(Clone)]
pub struct Client(Arc<Handle>);

impl Client {
    pub(crate) fn of(handle: Arc<Handle>) -> Self {
        Self(handle)
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0.0
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.core().closing.load(Ordering::SeqCst)
    }

    /// Our user.
    #[must_use]
    pub fn user(&self) -> &UserId {
        &self.core().address.user
    }

    /// This device.
    #[must_use]
    pub fn device(&self) -> DeviceId {
        self.core().address.device
    }

    /// The app.
    #[must_use]
    pub fn app_id(&self) -> &AppId {
        &self.core().config.app
    }

    /// Where this user's things are kept; `None` in memory.
    #[must_use]
    pub fn data_path(&self) -> Option<&Path> {
        self.core().directory.as_deref()
    }

    /// Our own identity.
    #[must_use]
    pub fn identity(&self) -> OwnIdentity {
        let identity = &self.core().identity;
        let hash = stvor_crypto::kdf::sha256(&[identity.user_key()]);
        OwnIdentity {
            user: self.user().clone(),
            device: self.device(),
            fingerprint: hash.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")),
            created_at: identity.created(),
        }
    }

    /// Whether the client talks with its relay.
    #[must_use]
    pub fn state(&self) -> ConnectionState {
        *self.core().state.borrow()
    }

    /// Waits until the client is connected.
    ///
    /// # Errors
    /// `RELAY_UNAVAILABLE` after the time, the relay's refusal, or `CLIENT_NOT_READY` after it was closed.
    pub async fn wait_online(&self, timeout: Duration) -> Result<()> {
        self.core().online(timeout).await.map(|_| ())
    }

    /// Waits until what waited at the relay when the client logged in is here: messages are in the inbox, and
    /// [`groups`](Self::groups) shows the groups that we were added to meanwhile. Without a relay that is the end of the
    /// first attempt to reach it. Where several instances share a store another one may be who takes the mail.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let relay = stvor_relay::Relay::start(stvor_relay::Config::mock(0)).await?;
    /// # let url = relay.url();
    /// # let app = stvor::App::builder().app_token("stvor_dev_test123").relay_url(url).in_memory().open().await?;
    /// let alice = app.connect("alice").await?;
    /// alice.wait_caught_up(std::time::Duration::from_secs(10)).await?;
    /// assert!(alice.groups().await?.is_empty());
    /// # app.close().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `RELAY_UNAVAILABLE` without a relay, or when it is not here after the time; the relay's refusal; `CLIENT_NOT_READY` after
    /// it was closed; what the store met.
    pub async fn wait_caught_up(&self, timeout: Duration) -> Result<()> {
        self.core().caught_up(timeout).await
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        self.core().hub.subscribe()
    }

    /// Sends a message: text (`&str`, `String`), bytes (`Vec<u8>`, `&[u8]`) or JSON (`serde_json::Value`).
    ///
    /// Resolves when the relay answers for it; when offline, or when the relay does not answer within the timeout, with
    /// the state `Queued`: the message is then in the outbox and goes out by itself. Once it is in the outbox it does not
    /// fail, it waits. To a user whom the relay does not know it waits for them to appear first, and nothing is queued
    /// if they do not.
    ///
    /// Dropping the future stops the waiting. A message that is in the outbox by then, or on its way there, goes out all the
    /// same; one that still waits for its recipient to appear does not.
    ///
    /// # Errors
    /// `RECIPIENT_TIMEOUT` (`RECIPIENT_NOT_FOUND` with a timeout of zero), `MESSAGE_TOO_LARGE` above 64 KiB,
    /// `PEER_BLOCKED`, `IDENTITY_CHANGED`, `IDENTITY_NOT_VERIFIED`, `AWAITING_TRUST` when a timeout of the call is over while a
    /// question of trust is open, `BACKPRESSURE` when too many calls wait ([`Executor`](crate::Executor)), `QUOTA_EXCEEDED`
    /// when 10,000 messages of the conversation wait, `ROLLBACK_DETECTED`, `INVALID_NAME`, or what the store met.
    pub async fn send(&self, to: impl AsRef<str>, content: impl Into<Content>) -> Result<Receipt> {
        self.send_with(to, content, SendOptions::default()).await
    }

    /// [`send`](Self::send) with another timeout, or without waiting for the relay.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_with(
        &self,
        to: impl AsRef<str>,
        content: impl Into<Content>,
        options: SendOptions,
    ) -> Result<Receipt> {
        let (core, to, content) = (self.core(), user(to)?, content.into());
        let (size, limit) = (content.as_bytes().len(), stvor_protocol::limits::MAX_PLAINTEXT);
        if size > limit {
            return Err(ErrorKind::MessageTooLarge { size, limit }.into());
        }
        if to == *self.user() {
            return Err(Error::argument("a client does not send to itself"));
        }
        if core.is_blocked(&to) {
            return Err(ErrorKind::PeerBlocked { user: to }.into());
        }
        let timeout =
            options.timeout.map_or(core.config.timeout, |timeout| timeout.min(limits::LONGEST_WAIT));
        let deadline = Instant::now() + timeout;
        let id = ContentId::from_bytes(random(&mut SystemRandom::new())?);
        let state = core.watchers.watch(id, DeliveryState::Queued);
        let receipt = Receipt::new(id, to.clone(), state);
        let mut written = core.watchers.when_written(id);
        let (reply, committed) = oneshot::channel();
        let own_timeout = options.timeout.is_some();
        let request = SendRequest { id, content, timeout, own_timeout, reply: reply.into(), room: None };
        let under_way = core.under_way();
        core.order(&address_of(&to), Work::Send(request), deadline).await?;
        committed.await.map_err(|_| core.closed_error())??;
        drop(under_way);
        if options.wait == SendWait::Accepted {
            // Offline there is nothing to wait for; a connection that breaks ends the waiting, too.
            let mut link = core.link.subscribe();
            let away = link.wait_for(|state| state.session().is_none());
            tokio::select! {
                _ = tokio::time::timeout_at(deadline, receipt.accepted()) => {}
                () = written.told() => {}
                _ = away => {}
            }
        }
        Ok(receipt)
    }

    /// The receipt of an earlier message of ours, also of an earlier run; `None` when it is not known (any more).
    ///
    /// # Errors
    /// What the store met.
    pub async fn receipt(&self, id: ContentId) -> Result<Option<Receipt>> {
        let core = self.core();
        let Some(row) = core.store.one(&keys::own_content(id)).await.map_err(Error::passed)? else {
            return Ok(None);
        };
        let pointer = PointerRow::decode(row.value.expose()).map_err(Error::passed)?;
        let peer = pointer.peer.user;
        // Watching before reading: what comes in between is seen.
        let state = core.watchers.watch(id, DeliveryState::Queued);
        let key = keys::message(&peer, pointer.place);
        let Some(row) = core.store.one(&key).await.map_err(Error::passed)? else { return Ok(None) };
        let row = MessageRow::decode(row.value.expose()).map_err(Error::passed)?;
        let rows = [(pointer.place, row)];
        let accepted = crate::history::accepted(core, &peer, &rows).await?;
        let [(place, row)] = rows;
        let known = if accepted.contains_key(&place) { DeliveryState::Accepted } else { row.state };
        core.watchers.advance(id, known);
        Ok(Some(Receipt::new(id, peer, state)))
    }

    /// Messages that arrived and were not consumed, then those that arrive. See [`Messages`].
    #[must_use]
    pub fn messages(&self) -> Messages {
        self.core().inbox.stream()
    }

    /// Messages that arrived and were not consumed.
    #[must_use]
    pub fn unconsumed(&self) -> usize {
        self.core().inbox.waiting()
    }

    /// Messages and receipts of ours that the relay has not accepted. Where several instances share a store each counts what it sends
    /// itself, and what waits to be encrypted.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.core().unaccepted.load(Ordering::Relaxed)
    }

    /// Waits until the relay has accepted everything that waits to be sent, or the time is over. Gives what is left.
    ///
    /// # Errors
    /// `RELAY_UNAVAILABLE` and the like when there is no connection in that time.
    pub async fn flush(&self, timeout: Duration) -> Result<usize> {
        let core = self.core();
        let deadline = Instant::now() + timeout.min(limits::LONGEST_WAIT);
        loop {
            let settled = core.settled.notified();
            if self.pending() == 0 {
                return Ok(0);
            }
            core.online(deadline.saturating_duration_since(Instant::now())).await?;
            let mut state = core.state.subscribe();
            tokio::select! {
                () = settled => {}
                _ = state.changed() => {}
                () = tokio::time::sleep_until(deadline) => return Ok(self.pending()),
            }
        }
    }

    /// Says that messages of a peer were read: the peer is told, unless the receipt policy says otherwise.
    ///
    /// # Errors
    /// `INVALID_NAME`, `CLIENT_NOT_READY`, or what the store met.
    pub async fn mark_read(&self, peer: impl AsRef<str>, ids: &[ContentId]) -> Result<()> {
        let (peer, ids) = (user(peer)?, ids.to_vec());
        self.ask(&peer, |reply| Command::MarkRead(ids, reply)).await
    }

    /// Waits until the relay knows a user who can be written to.
    ///
    /// # Errors
    /// `RECIPIENT_TIMEOUT` (`RECIPIENT_NOT_FOUND` with a timeout of zero), `RELAY_UNAVAILABLE` when the relay can not be
    /// asked in that time.
    pub async fn wait_for_user(&self, name: impl AsRef<str>, timeout: Duration) -> Result<()> {
        let (core, name) = (self.core(), user(name)?);
        let deadline = Instant::now() + timeout.min(limits::LONGEST_WAIT);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let session = core.online(left.max(Duration::from_millis(1))).await?;
            let state = session.user_state(&name, core.config.timeout.max(Duration::from_secs(1))).await;
            match state {
                Ok(state) if state.has_keys => return Ok(()),
                Ok(_) => {}
                Err(error) if error.retryable() && Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
            if timeout.is_zero() {
                return Err(ErrorKind::RecipientNotFound { user: name }.into());
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(ErrorKind::RecipientTimeout { user: name, waited: timeout }.into());
            }
            tokio::time::sleep_until((now + limits::RECIPIENT_POLL).min(deadline)).await;
        }
    }

    /// Whom this client talks with.
    ///
    /// # Errors
    /// What the store met.
    pub async fn peers(&self) -> Result<Vec<PeerInfo>> {
        let core = self.core();
        if core.instances.is_shared() {
            // Other instances may have met some.
            core.remember_peers(crate::opening::read_peers(&core.store).await?);
        }
        let mut peers = Vec::new();
        for row in core.peers() {
            let scan = Scan::of(Table::History, keys::history(&row.user)).newest_first().limit(1);
            let newest = core.store.scan(scan).await.map_err(Error::passed)?.rows.pop();
            let last = newest.and_then(|row| Place::from_bytes(&row.key.sort).ok());
            let pin = crate::records::key(&stvor_protocol::RecordKey::pin(&row.user))?;
            let pin = core.store.one(&pin).await.map_err(Error::passed)?;
            let pin = pin
                .map(|pin| stvor_protocol::Pin::from_record(&pin.value).map_err(Error::passed))
                .transpose()?;
            peers.push(PeerInfo {
                verified: pin.map(|pin| pin.verified),
                blocked: row.blocked,
                last_message_at: last.map(|place| Timestamp::from_millis(place.order)),
                retention: Retention::from_millis(core.keep_of(&row.user)),
                user: row.user,
            });
        }
        Ok(peers)
    }

    /// The messages of a conversation, newest first, page by page.
    pub fn history(&self, peer: impl AsRef<str>) -> HistoryQuery<'_> {
        HistoryQuery::new(self, user(peer))
    }

    /// How long a conversation keeps its messages, from the next one on.
    ///
    /// # Errors
    /// `INVALID_NAME`, or what the store met.
    pub async fn set_retention(&self, peer: impl AsRef<str>, retention: Retention) -> Result<()> {
        self.core().change_peer(&user(peer)?, |row| row.retention = Some(retention.to_millis())).await
    }

    /// Removes a conversation from this device: messages, what waits to be sent, sessions, settings. The pinned identity
    /// stays, so that nobody gains a second first contact by it; so does a block.
    ///
    /// # Errors
    /// `INVALID_NAME`, `CLIENT_NOT_READY`, or what the store met.
    pub async fn delete_conversation(&self, peer: impl AsRef<str>) -> Result<()> {
        let peer = user(peer)?;
        self.ask(&peer, Command::Delete).await?;
        self.core().inbox.forget(&peer).await;
        Ok(())
    }

    /// Destroys the sessions with a peer and starts a new one, at once when online, else with the next message.
    ///
    /// # Errors
    /// `INVALID_NAME`, `CLIENT_NOT_READY`, or what the store met.
    pub async fn reset_session(&self, peer: impl AsRef<str>) -> Result<()> {
        let peer = user(peer)?;
        self.ask(&peer, Command::Reset).await
    }

    /// After `ROLLBACK_DETECTED`: gives up the sessions of the old copy, which would use keys a second time, and starts
    /// fresh ones with the next messages. Messages that were received after the copy was made are not in it.
    ///
    /// It is done to its end, also if nobody waits for this any more.
    ///
    /// # Errors
    /// `CLIENT_NOT_READY`, or what the store met: what was begun by then goes on by itself, and
    /// [`Event::RollbackRecovered`](crate::Event::RollbackRecovered) tells when it is done.
    pub async fn recover_from_rollback(&self) -> Result<()> {
        crate::rollback::recover_now(self.core()).await
    }

    /// Deletes the account: name, keys and mail at the relay, then everything on this device. The client is closed. Other
    /// processes on the same store end, too; this then takes the length of a lease longer.
    ///
    /// It is done to its end, also if nobody waits for this any more: dropping the future ends nothing. If the process ends
    /// in the middle, the next [`connect`](crate::App::connect) of the user finds out at the relay whether the account is gone: then it
    /// removes what is left here and says `ACCOUNT_DELETED`, and the one after that makes a new account. If it is not gone, the
    /// account goes on as before.
    ///
    /// # Errors
    /// `RELAY_UNAVAILABLE` when the relay did not confirm it within the timeout: nothing is deleted here then, and the
    /// account is registered as before once the relay is reached again. What the store met.
    pub async fn delete_account(&self) -> Result<()> {
        crate::deletion::delete(self.core()).await
    }

    /// Ends the client: what waits to be sent is given three quarters of the timeout to go out, and stays in the outbox after
    /// that; then the store is closed and unlocked. Streams end. Closing twice is no error.
    ///
    /// It takes no longer than the timeout: a store that does not let go by then is closed after it, while nobody waits.
    pub async fn close(&self) {
        self.close_within(self.core().config.timeout).await;
    }

    /// The same with another time than the timeout of the app.
    pub async fn close_within(&self, time: Duration) {
        self.core().close(time.min(limits::LONGEST_WAIT)).await;
    }

    /// Why the client ended, if neither [`Client::close`] nor what else was asked of it did that: `STORE_EMPTIED`;
    /// `ACCOUNT_DELETED`, `IDENTITY_HANDED_OVER` or `STORE_KEYS_REPLACED` if another instance on the same store deleted the
    /// account, rotated the identity or replaced the data key.
    #[must_use]
    pub fn ended_by(&self) -> Option<&'static str> {
        self.core().ended_by.get().copied()
    }

    /// Asks the lane of a peer and waits for its answer.
    pub(crate) async fn ask<T>(
        &self,
        peer: &UserId,
        command: impl FnOnce(Answer<Result<T>>) -> Command,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let core = self.core();
        let deadline = Instant::now() + core.config.timeout;
        core.order(&address_of(peer), Work::Command(command(reply.into())), deadline).await?;
        answer.await.map_err(|_| core.closed_error())?
    }
}

/// Where mail for a user goes: until users can have several devices, to their first.
pub(crate) fn address_of(user: &UserId) -> Address {
    Address::new(user.clone(), DeviceId::FIRST)
}

/// A device list as it travels.
pub(crate) fn list_in(bytes: Vec<u8>, signature: Vec<u8>) -> SignedDeviceListIn {
    SignedDeviceListIn { bytes, signature }
}

impl core::fmt::Debug for Client {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Client").field("state", &self.state()).finish_non_exhaustive()
    }
}
