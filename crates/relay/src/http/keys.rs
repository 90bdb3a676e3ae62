//! Users, bundles and key upload over HTTP, for what does not hold a socket open. Uploads carry the same proof as a
//! log-in; bundles come without one-time prekeys, since whoever fetches them is not known by a device.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, header};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use stvor_base::{Address, DeviceId, Timestamp, UserId};
use stvor_crypto::{Random as _, SystemRandom};
use stvor_wire::client::{Auth, Credential, Mode, UploadKeys};
use stvor_wire::limits::{MAX_KEM_PER_UPLOAD, MAX_ONE_TIME_PER_UPLOAD, NONCE_BYTES};
use stvor_wire::server::Challenge;
use stvor_wire::{Code, PROTOCOL_VERSION, proto};
use utoipa::ToSchema;

use super::challenges::Open;
use super::problem::{ProblemBody, Refused};
use crate::auth::{Admission, accepted_origin, prove};
use crate::connection::Peer;
use crate::relay::Relay;
use crate::storage::{Attach, Refusal, StoreError, Take, UserKey};

type Shared = State<Arc<Relay>>;

/// Largest body: a full upload in base64.
const MAX_BODY: usize = 192 * 1024;

pub(super) fn router() -> Router<Arc<Relay>> {
    Router::new()
        .route("/v1/challenge", post(challenge))
        .route("/v1/keys", post(upload))
        .route("/v1/users/{user}", get(user))
        .route("/v1/users/{user}/bundle", get(bundle))
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(refusal) => Self::new(refusal.code, refusal.detail),
            other => Self::new(Code::StoreUnavailable, other.to_string()),
        }
    }
}

fn bad(detail: impl Into<String>) -> Refused {
    Refused::new(Code::BadRequest, detail)
}

fn body<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, Refused> {
    match body {
        Ok(Json(value)) => Ok(value),
        Err(error) if error.status().as_u16() == 413 => {
            Err(Refused::new(Code::FrameTooLarge, "the body is too large"))
        }
        Err(error) => Err(bad(error.body_text())),
    }
}

fn name(user: &str) -> Result<UserId, Refused> {
    UserId::new(user).map_err(|error| bad(error.to_string()))
}

fn decode(text: &str, field: &str) -> Result<Bytes, Refused> {
    STANDARD.decode(text).map(Into::into).map_err(|_| bad(format!("`{field}` is not base64")))
}

async fn admit(relay: &Relay, headers: &HeaderMap) -> Result<Admission, Refused> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .ok_or_else(|| {
            Refused::new(
                Code::InvalidAppToken,
                "send the app token or client token as `Authorization: Bearer ...`",
            )
        })?;
    // A JWT is three dotted parts that start with `{"` in base64.
    let is_jwt = bearer.starts_with("eyJ") && bearer.split('.').count() == 3;
    let credential = if is_jwt {
        Credential::ClientToken(bearer.to_owned())
    } else {
        Credential::AppToken(bearer.to_owned())
    };
    Ok(relay.doorkeeper.admit(&relay.store, &credential, relay.now()).await?)
}

/// Who asks for a challenge.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ChallengeRequest {
    /// The user id.
    user: String,
    /// The device's number.
    device: u32,
}

/// What the device has to sign, within a minute.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ChallengeAnswer {
    /// 32 bytes, base64.
    nonce: String,
    /// The app of the token.
    app: String,
    /// Milliseconds since the epoch.
    server_time: u64,
    /// The relay's version.
    server_version: String,
}

/// Asks for a challenge, to upload keys with.
#[utoipa::path(post, path = "/v1/challenge", request_body = ChallengeRequest, responses(
    (status = 200, body = ChallengeAnswer),
    (status = 401, body = ProblemBody, content_type = "application/problem+json"),
))]
pub(super) async fn challenge(
    State(relay): Shared,
    axum::Extension(from): axum::Extension<super::Origin>,
    headers: HeaderMap,
    request: Result<Json<ChallengeRequest>, JsonRejection>,
) -> Result<Json<ChallengeAnswer>, Refused> {
    let admission = admit(&relay, &headers).await?;
    let request = body(request)?;
    let device = DeviceId::new(request.device).map_err(|error| bad(error.to_string()))?;
    let address = Address::new(name(&request.user)?, device);
    admission.names(&address).map_err(|refusal| Refused::new(refusal.code, refusal.detail))?;
    let mut nonce = [0; NONCE_BYTES];
    let random = SystemRandom::new().fill(&mut nonce);
    random.map_err(|_| Refused::new(Code::Internal, "the relay has no randomness"))?;
    let now = relay.now();
    let challenge = Challenge {
        nonce,
        app: (*admission.app).clone(),
        server_time: now,
        server_version: crate::VERSION.to_owned(),
        protocol_version: PROTOCOL_VERSION,
        development: relay.config.development,
        capabilities: Vec::new(),
    };
    let answer = ChallengeAnswer {
        nonce: STANDARD.encode(nonce),
        app: challenge.app.as_str().to_owned(),
        server_time: now.as_millis(),
        server_version: challenge.server_version.clone(),
    };
    relay.challenges.put((Open { challenge, address, admission }, from.remote), now);
    Ok(Json(answer))
}

/// A signed prekey or KEM prekey.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SignedKey {
    /// Its number.
    id: u32,
    /// Base64.
    key: String,
    /// Milliseconds since the epoch.
    created_at: u64,
    /// 64 bytes, base64.
    signature: String,
}

/// A one-time prekey.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct OneTimeKey {
    /// Its number.
    id: u32,
    /// Base64.
    key: String,
}

/// Keys of a device, and the proof that it is the device.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct KeysRequest {
    /// The challenge's nonce, base64.
    nonce: String,
    /// The origin that the client dialled, as `ws` or `wss`.
    origin: String,
    /// Signed bytes of the device list, base64.
    device_list: String,
    /// The user key's signature over them, base64.
    device_list_signature: String,
    /// The device key's signature over the log-in transcript, base64.
    signature: String,
    /// Replaces the signed prekey.
    signed_prekey: Option<SignedKey>,
    /// Replaces the last-resort KEM prekey.
    kem_last_resort: Option<SignedKey>,
    /// At most 100.
    #[serde(default)]
    one_time: Vec<OneTimeKey>,
    /// At most 50.
    #[serde(default)]
    kem_one_time: Vec<SignedKey>,
    /// Forget the old one-time prekeys first.
    #[serde(default)]
    replace_one_time: bool,
}

/// What the relay holds for the device.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct KeysAnswer {
    /// One-time prekeys left.
    one_time: u32,
    /// One-time KEM prekeys left.
    kem_one_time: u32,
}

fn upload_of(request: &KeysRequest) -> Result<UploadKeys, Refused> {
    if request.one_time.len() > MAX_ONE_TIME_PER_UPLOAD || request.kem_one_time.len() > MAX_KEM_PER_UPLOAD {
        return Err(bad("at most 100 one-time prekeys and 50 one-time KEM prekeys in one upload"));
    }
    let signed = |key: &SignedKey| {
        Ok::<_, Refused>(proto::SignedPrekey {
            id: key.id,
            key: decode(&key.key, "key")?,
            created_at: key.created_at,
            signature: decode(&key.signature, "signature")?,
        })
    };
    let kem = |key: &SignedKey| {
        let key = signed(key)?;
        let proto::SignedPrekey { id, key, created_at, signature } = key;
        proto::KemPrekey { id, key, created_at, signature }.try_into().map_err(frame_error)
    };
    let one_time = |key: &OneTimeKey| {
        proto::OneTimePrekey { id: key.id, key: decode(&key.key, "key")? }.try_into().map_err(frame_error)
    };
    let signed_prekey = match &request.signed_prekey {
        Some(key) => Some(signed(key)?.try_into().map_err(frame_error)?),
        None => None,
    };
    Ok(UploadKeys {
        request_id: core::num::NonZeroU64::MIN,
        signed_prekey,
        kem_last_resort: request.kem_last_resort.as_ref().map(kem).transpose()?,
        one_time: request.one_time.iter().map(one_time).collect::<Result<_, Refused>>()?,
        kem_one_time: request.kem_one_time.iter().map(kem).collect::<Result<_, Refused>>()?,
        replace_one_time: request.replace_one_time,
    })
}

fn frame_error(error: stvor_wire::FrameError) -> Refused {
    bad(error.to_string())
}

fn signature(text: &str, field: &'static str) -> Result<[u8; 64], Refused> {
    decode(text, field)?.as_ref().try_into().map_err(|_| bad(format!("`{field}` is not 64 bytes")))
}

/// Uploads keys of a registered device, with the proof that a log-in takes.
#[utoipa::path(post, path = "/v1/keys", request_body = KeysRequest, responses(
    (status = 200, body = KeysAnswer),
    (status = 401, description = "the proof failed", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(super) async fn upload(
    State(relay): Shared,
    axum::Extension(from): axum::Extension<super::Origin>,
    headers: HeaderMap,
    request: Result<Json<KeysRequest>, JsonRejection>,
) -> Result<Json<KeysAnswer>, Refused> {
    let request = body(request)?;
    let keys = upload_of(&request)?;
    let nonce: [u8; NONCE_BYTES] =
        decode(&request.nonce, "nonce")?.as_ref().try_into().map_err(|_| bad("`nonce` is not 32 bytes"))?;
    let open = relay.challenges.take(&nonce, relay.now()).ok_or_else(|| {
        Refused::new(Code::AuthFailed, "the challenge is unknown, used or too old: get a new one")
    })?;
    let auth = Auth {
        device_list: decode(&request.device_list, "deviceList")?,
        device_list_signature: signature(&request.device_list_signature, "deviceListSignature")?,
        origin: request.origin.clone(),
        time: open.challenge.server_time,
        signature: signature(&request.signature, "signature")?,
        mode: Mode::SendOnly,
        resume_cursor: Bytes::new(),
        register: false,
        replace_identity: false,
        store_mark: None,
        rotations: Bytes::new(),
    };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    let peer = Peer { remote: from.remote, local: from.local, host };
    let told = |refusal: Refusal| Refused::new(refusal.code, refusal.detail);
    let origin = accepted_origin(&relay, &peer, &auth.origin).map_err(told)?;
    let list = prove(&open.challenge, &open.address, &auth, &origin)
        .map_err(|refusal| Refused::new(refusal.code, refusal.detail))?;
    let attached = relay
        .store
        .attach(Attach {
            app: open.challenge.app.clone(),
            address: open.address.clone(),
            rotations: None,
            list,
            list_bytes: auth.device_list.clone(),
            list_signature: auth.device_list_signature,
            permission: open.admission.permission(&auth),
            receive: false,
            fresh_epoch: 1,
        })
        .await?;
    let why = (Code::LoggedOut, crate::connection::NO_LONGER_LISTED);
    relay.hub.devices_gone(&attached.removed, Some(attached.holder()), why);
    if let Err(wait) = relay.limiter.uploads.take(&attached.device, 1) {
        relay.metrics.rate_limited("request");
        return Err(Refused::limited(wait, ("device", relay.limiter.uploads.burst(), 60)));
    }
    let counts = relay.store.upload_keys(attached.holder(), keys).await?;
    relay.hub.appeared(&UserKey { app: open.challenge.app, user: open.address.user });
    Ok(Json(KeysAnswer { one_time: counts.one_time, kem_one_time: counts.kem_one_time }))
}

/// A user.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct UserAnswer {
    /// The user id.
    user_id: String,
    /// A device receives.
    online: bool,
    /// A device has uploaded keys.
    has_keys: bool,
}

/// A user of the token's app.
#[utoipa::path(get, path = "/v1/users/{user}", params(("user" = String, Path, description = "a user id")), responses(
    (status = 200, body = UserAnswer),
    (status = 404, body = ProblemBody, content_type = "application/problem+json"),
))]
pub(super) async fn user(
    State(relay): Shared,
    headers: HeaderMap,
    Path(user): Path<String>,
) -> Result<Json<UserAnswer>, Refused> {
    let admission = admit(&relay, &headers).await?;
    let user = name(&user)?;
    let known = relay.store.user_state(&admission.app, &user).await?;
    if !known.registered {
        return Err(Refused::new(Code::RecipientNotFound, "the relay knows no such user"));
    }
    let key = UserKey { app: (*admission.app).clone(), user };
    let online = relay.hub.is_online(&key);
    Ok(Json(UserAnswer { user_id: key.user.as_str().to_owned(), online, has_keys: known.has_keys }))
}

/// A user's prekeys, without one-time ones.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct BundleAnswer {
    /// Signed bytes of the device list, base64.
    device_list: String,
    /// The user key's signature over them, base64.
    device_list_signature: String,
    /// One for each device with keys.
    bundles: Vec<DeviceBundleAnswer>,
    /// The user's rotations that lead to the list's user key, base64; absent for a key that is the user's first.
    #[serde(skip_serializing_if = "Option::is_none")]
    rotations: Option<String>,
}

/// One device's prekeys.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeviceBundleAnswer {
    /// The device's number.
    device: u32,
    /// Its signed prekey.
    signed_prekey: SignedKey,
    /// Its last-resort KEM prekey.
    kem_last_resort: SignedKey,
}

/// A user's device list and prekeys, without one-time prekeys: those are handed out over the socket only.
#[utoipa::path(get, path = "/v1/users/{user}/bundle", params(("user" = String, Path, description = "a user id")),
    responses(
        (status = 200, body = BundleAnswer),
        (status = 404, body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub(super) async fn bundle(
    State(relay): Shared,
    headers: HeaderMap,
    Path(user): Path<String>,
) -> Result<Json<BundleAnswer>, Refused> {
    let admission = admit(&relay, &headers).await?;
    let take = Take { devices: Vec::new(), devices_only: false, one_time: false };
    let found = relay.store.bundles(&admission.app, &name(&user)?, take).await?;
    let found = found.ok_or_else(|| Refused::new(Code::RecipientNotFound, "the relay knows no such user"))?;
    let signed = |id, key: &[u8], created_at: Timestamp, signature: &[u8]| SignedKey {
        id,
        key: STANDARD.encode(key),
        created_at: created_at.as_millis(),
        signature: STANDARD.encode(signature),
    };
    let bundles = found.bundles.iter().map(|bundle| {
        let (prekey, kem) = (&bundle.signed_prekey, &bundle.kem);
        DeviceBundleAnswer {
            device: bundle.device.get(),
            signed_prekey: signed(prekey.id, &prekey.key, prekey.created_at, &prekey.signature),
            kem_last_resort: signed(kem.id, &kem.key, kem.created_at, &kem.signature),
        }
    });
    Ok(Json(BundleAnswer {
        device_list: STANDARD.encode(&found.list),
        device_list_signature: STANDARD.encode(found.signature),
        bundles: bundles.collect(),
        rotations: (!found.rotations.is_empty()).then(|| STANDARD.encode(&found.rotations)),
    }))
}
