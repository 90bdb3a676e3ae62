//! Requests that expect an answer: keys, bundles, status, deletion. Each runs in a task of its own, bounded in number.

use core::future::Future;
use core::num::NonZeroU64;
use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use stvor_base::UserId;
use stvor_wire::client::{FetchBundle, UploadKeys};
use stvor_wire::server::{Bundles, Nack, Subject, UserState};
use stvor_wire::{Code, ServerMessage};

use super::Conn;
use crate::limits::{REQUESTS_PER_CONNECTION, WAITS_PER_CONNECTION};
use crate::relay::Relay;
use crate::storage::{StoreError, Take, UserKey};

/// What a request comes to.
type Answer = Result<ServerMessage, Nack>;

fn refuse(request_id: NonZeroU64, code: Code, detail: &str) -> Nack {
    Nack {
        subject: Subject::Request(request_id),
        code,
        detail: detail.to_owned(),
        retry_after: Duration::ZERO,
        expected_lane: 0,
    }
}

fn store_error(request_id: NonZeroU64, error: &StoreError) -> Nack {
    match error {
        StoreError::Refused(refusal) => refuse(request_id, refusal.code, refusal.detail),
        other => {
            tracing::warn!(error = %other, "a request failed in the store");
            let refused =
                refuse(request_id, Code::StoreUnavailable, "the relay's store can not work now: retry");
            Nack { retry_after: Duration::from_secs(1), ..refused }
        }
    }
}

fn limited(relay: &Relay, request_id: NonZeroU64, wait: Duration) -> Nack {
    relay.metrics.rate_limited("request");
    let refused = refuse(request_id, Code::RateLimited, "too many requests: retry after the given time");
    Nack { retry_after: wait, ..refused }
}

/// One of a bounded number; given back when dropped.
struct Permit(Arc<Conn>, fn(&Conn) -> &AtomicUsize);

impl Permit {
    fn take(conn: &Arc<Conn>, of: fn(&Conn) -> &AtomicUsize, limit: usize) -> Option<Self> {
        let permit = Self(conn.clone(), of);
        (of(conn).fetch_add(1, Ordering::AcqRel) < limit).then_some(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        (self.1)(&self.0).fetch_sub(1, Ordering::AcqRel);
    }
}

fn run(
    relay: &Arc<Relay>,
    conn: &Arc<Conn>,
    request_id: NonZeroU64,
    work: impl Future<Output = Answer> + Send + 'static,
) {
    let Some(permit) = Permit::take(conn, |conn| &conn.requests, REQUESTS_PER_CONNECTION) else {
        let busy = refuse(request_id, Code::TooMany, "too many requests at once: wait for answers");
        conn.say(&ServerMessage::Nack(busy));
        return;
    };
    if let Err(wait) = relay.limiter.requests.take(&conn.who.device, 1) {
        conn.say(&ServerMessage::Nack(limited(relay, request_id, wait)));
        return;
    }
    let conn = conn.clone();
    relay.runtime.spawn(async move {
        tokio::select! {
            answer = work => conn.say(&answer.unwrap_or_else(ServerMessage::Nack)),
            () = conn.gone.cancelled() => {}
        }
        drop(permit);
    });
}

fn own_key(conn: &Conn) -> UserKey {
    UserKey { app: (*conn.who.app).clone(), user: conn.who.address.user.clone() }
}

pub(super) fn upload(relay: &Arc<Relay>, conn: &Arc<Conn>, upload: UploadKeys) {
    let request_id = upload.request_id;
    let (relay_, conn_) = (relay.clone(), conn.clone());
    run(relay, conn, request_id, async move {
        relay_
            .limiter
            .uploads
            .take(&conn_.who.device, 1)
            .map_err(|wait| limited(&relay_, request_id, wait))?;
        let keys = relay_.store.upload_keys(conn_.who.holder(), upload).await;
        let keys = keys.map_err(|error| store_error(request_id, &error))?;
        relay_.hub.appeared(&own_key(&conn_));
        Ok(ServerMessage::KeysUploaded { request_id, keys })
    });
}

pub(super) fn status(relay: &Arc<Relay>, conn: &Arc<Conn>, request_id: NonZeroU64, user: UserId) {
    let (relay_, app) = (relay.clone(), conn.who.app.clone());
    run(relay, conn, request_id, async move {
        let known = relay_.store.user_state(&app, &user).await;
        let known = known.map_err(|error| store_error(request_id, &error))?;
        let online = relay_.hub.is_online(&UserKey { app: (*app).clone(), user: user.clone() });
        let (registered, has_keys) = (known.registered, known.has_keys);
        Ok(ServerMessage::UserState(UserState { request_id, user, registered, online, has_keys }))
    });
}

pub(super) fn delete(relay: &Arc<Relay>, conn: &Arc<Conn>, request_id: NonZeroU64) {
    let (relay_, conn_) = (relay.clone(), conn.clone());
    run(relay, conn, request_id, async move {
        // Only the identity that this connection proved: the name may have changed hands a moment ago.
        let deleted = relay_.store.delete_account(conn_.who.holder()).await;
        let deleted = deleted.map_err(|error| store_error(request_id, &error))?;
        conn_.say(&ServerMessage::Done { request_id });
        let why = "the account was deleted by one of its devices";
        relay_.hub.devices_gone(&deleted, None, (Code::AccountDeleted, why));
        Ok(ServerMessage::Done { request_id })
    });
}

pub(super) fn fetch(relay: &Arc<Relay>, conn: &Arc<Conn>, fetch: FetchBundle) {
    let request_id = fetch.request_id;
    let permit = if fetch.wait.is_zero() {
        None
    } else {
        let permit = Permit::take(conn, |conn| &conn.waits, WAITS_PER_CONNECTION);
        if permit.is_none() {
            let busy = refuse(request_id, Code::TooMany, "too many fetches wait on this connection");
            conn.say(&ServerMessage::Nack(busy));
            return;
        }
        permit
    };
    let (relay_, conn_) = (relay.clone(), conn.clone());
    run(relay, conn, request_id, async move {
        let _permit = permit;
        let wait = fetch.wait;
        let work = bundles(&relay_, &conn_, &fetch);
        let not_found = || {
            refuse(
                request_id,
                Code::RecipientNotFound,
                "the relay knows no such user, or the user has no keys yet",
            )
        };
        if wait.is_zero() {
            return work.await.map_err(|error| store_error(request_id, &error))?.ok_or_else(not_found);
        }
        let key = UserKey { app: (*conn_.who.app).clone(), user: fetch.user.clone() };
        let waiting = relay_.hub.wait_for(key).ok_or_else(|| {
            refuse(request_id, Code::TooMany, "too many clients wait at this relay: poll instead")
        })?;
        let found = async {
            loop {
                // Listen first, then look, so that nothing slips between.
                let appeared = waiting.notify.notified();
                tokio::pin!(appeared);
                appeared.as_mut().enable();
                match bundles(&relay_, &conn_, &fetch).await {
                    Ok(Some(found)) => return Ok(found),
                    Ok(None) => appeared.await,
                    Err(error) => return Err(store_error(request_id, &error)),
                }
            }
        };
        drop(work);
        tokio::time::timeout(wait, found).await.unwrap_or_else(|_| Err(not_found()))
    });
}

/// The answer, if there is one already.
async fn bundles(
    relay: &Relay,
    conn: &Conn,
    fetch: &FetchBundle,
) -> Result<Option<ServerMessage>, StoreError> {
    let known = relay.store.user_state(&conn.who.app, &fetch.user).await?;
    if !known.registered || !(known.has_keys || fetch.devices_only) {
        return Ok(None);
    }
    let key = UserKey { app: (*conn.who.app).clone(), user: fetch.user.clone() };
    let device = conn.who.device;
    let one_time = !(fetch.devices_only || fetch.without_one_time)
        && relay.limiter.pair.take(&(device, key.clone()), 1).is_ok()
        && relay.limiter.fetcher.take(&device, 1).is_ok()
        && relay.limiter.target.take(&key, 1).is_ok();
    let take = Take { devices: fetch.devices.clone(), devices_only: fetch.devices_only, one_time };
    let Some(found) = relay.store.bundles(&conn.who.app, &fetch.user, take).await? else { return Ok(None) };
    for (device, keys) in found.low {
        if let Some(owner) = relay.hub.receiver(device) {
            owner.say(&ServerMessage::KeysLow { keys });
        }
    }
    if found.bundles.is_empty() && !fetch.devices_only {
        return Ok(None);
    }
    Ok(Some(ServerMessage::Bundles(Bundles {
        request_id: fetch.request_id,
        user: fetch.user.clone(),
        device_list: found.list,
        device_list_signature: found.signature,
        bundles: found.bundles,
        rotations: found.rotations,
    })))
}
