//! Session records: bytes in, bytes out.

use napi::Env;
use napi::bindgen_prelude::BufferSlice;
use napi_derive::napi;
use stvor_base::Timestamp;
use stvor_protocol::signal::{SessionRecord, SessionView};

use crate::curve::public;
use crate::failure::failed;

pub(crate) fn read(record: &[u8]) -> napi::Result<SessionRecord> {
    if record.is_empty() { Ok(SessionRecord::new()) } else { SessionRecord::decode(record).map_err(failed) }
}

pub(crate) fn write<'env>(env: &'env Env, record: &SessionRecord) -> napi::Result<BufferSlice<'env>> {
    BufferSlice::copy_from(env, record.encode().expose())
}

/// Milliseconds of JavaScript.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates, as it should")]
pub(crate) fn time(millis: f64) -> Timestamp {
    Timestamp::from_millis(millis as u64)
}

#[allow(clippy::cast_precision_loss, reason = "milliseconds are far below 2^53")]
fn millis(time: Timestamp) -> f64 {
    time.as_millis() as f64
}

/// What can be told of a session without a secret.
#[napi(object)]
pub struct View<'env> {
    /// As the peer said.
    pub registration_id: u32,
    /// 33 bytes.
    pub identity: BufferSlice<'env>,
    /// 33 bytes.
    pub base_key: BufferSlice<'env>,
    /// Whether we started it.
    pub initiator: bool,
    /// Whether nobody answered.
    pub unanswered: bool,
    /// Milliseconds.
    pub created: f64,
    /// Milliseconds.
    pub used: f64,
    /// Milliseconds; -1 for the open one.
    pub closed: f64,
}

/// The JSON of libsignal-node, read.
///
/// # Errors
/// `BAD_RECORD`, `FORMAT_TOO_NEW`.
#[napi(catch_unwind)]
pub fn record_from_json<'env>(env: &'env Env, text: &[u8]) -> napi::Result<BufferSlice<'env>> {
    write(env, &SessionRecord::from_json(text).map_err(failed)?)
}

/// The JSON of libsignal-node.
///
/// # Errors
/// `BAD_RECORD`.
#[napi(catch_unwind)]
pub fn record_to_json(record: &[u8]) -> napi::Result<String> {
    let text = read(record)?.to_json().map_err(failed)?;
    Ok(String::from_utf8_lossy(text.expose()).into_owned())
}

/// Whether bytes are a record.
///
/// # Errors
/// `BAD_RECORD`, `FORMAT_TOO_NEW`.
#[napi(catch_unwind)]
pub fn record_check(record: &[u8]) -> napi::Result<bool> {
    Ok(read(record)?.has_current())
}

/// The sessions, the open one first.
///
/// # Errors
/// `BAD_RECORD`.
#[napi(catch_unwind)]
pub fn record_sessions<'env>(env: &'env Env, record: &[u8]) -> napi::Result<Vec<View<'env>>> {
    let of = |view: SessionView| {
        Ok(View {
            registration_id: view.registration_id,
            identity: BufferSlice::copy_from(env, view.identity.to_bytes())?,
            base_key: BufferSlice::copy_from(env, view.base_key.to_bytes())?,
            initiator: view.initiator,
            unanswered: view.unanswered,
            created: millis(view.created),
            used: millis(view.used),
            closed: view.closed.map_or(-1.0, millis),
        })
    };
    read(record)?.sessions().map_err(failed)?.into_iter().map(of).collect()
}

/// The record with its open session archived.
///
/// # Errors
/// `BAD_RECORD`.
#[napi(catch_unwind)]
pub fn record_close<'env>(env: &'env Env, record: &[u8], now: f64) -> napi::Result<BufferSlice<'env>> {
    let mut record = read(record)?;
    record.close_current(time(now));
    write(env, &record)
}

/// The record without sessions, which still knows the handshakes that were used.
///
/// # Errors
/// `BAD_RECORD`.
#[napi(catch_unwind)]
pub fn record_clear<'env>(env: &'env Env, record: &[u8]) -> napi::Result<BufferSlice<'env>> {
    let mut record = read(record)?;
    record.clear();
    write(env, &record)
}

/// The record, which knows besides which handshakes another one knows as used.
///
/// # Errors
/// `BAD_RECORD`.
#[napi(catch_unwind)]
pub fn record_remember<'env>(env: &'env Env, record: &[u8], other: &[u8]) -> napi::Result<BufferSlice<'env>> {
    let mut record = read(record)?;
    record.remember(&read(other)?);
    write(env, &record)
}

/// Whether the session of a base key is in the record.
///
/// # Errors
/// `BAD_RECORD`, `BAD_KEY`.
#[napi(catch_unwind)]
pub fn record_knows(record: &[u8], base_key: &[u8]) -> napi::Result<bool> {
    Ok(read(record)?.knows(&public(base_key)?))
}
