//! A session as sealed bytes: `magic 8 | nonce 12 | AES-256-GCM of what is below, under the caller's key, with the magic as
//! associated data`.
//!
//! ```text
//! identity record, peer address, peer key, handshake, each with a u32 length
//! u32 rows, each: u8 kind, partition, sort, value, the last three with a u32 length
//! ```

use std::sync::Arc;

use stvor_base::Address;
use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_crypto::aead::Aes256Gcm;
use stvor_crypto::{Random as _, Secret, SecretBytes, SystemRandom};
use stvor_protocol::{RecordKey, RecordKind};

use super::pair::{NativeKeyPair, Owner, Rows, Shared};
use super::session::NativeSession;
use super::shape::malformed;
use crate::failure::{coded, failure};

const MAGIC: &[u8; 8] = b"STVOR-S\x01";

/// What a saved key pair begins with. After it: nonce and ciphertext as above, of identity record, bundle and rows.
const PAIR_MAGIC: &[u8; 8] = b"STVOR-K\x01";

/// What a key pair's rows are, by their number in saved bytes.
const PAIR_KINDS: [RecordKind; 4] =
    [RecordKind::PrekeyState, RecordKind::SignedPrekey, RecordKind::KemPrekey, RecordKind::HandshakeMark];

/// Longest part of a saved session: rows are smaller by far.
const LONGEST: usize = 1024 * 1024;

/// Most rows: stored message keys are bounded by the protocol, far below.
const MOST_ROWS: u32 = 100_000;

/// What a session's rows are, by their number in saved bytes.
const KINDS: [RecordKind; 9] = [
    RecordKind::Conversation,
    RecordKind::Session,
    RecordKind::SessionRoot,
    RecordKind::PendingHandshake,
    RecordKind::ArchivedSession,
    RecordKind::SkippedIndex,
    RecordKind::SkippedKeys,
    RecordKind::Pin,
    RecordKind::Repair,
];

fn cipher(key: &[u8]) -> napi::Result<Aes256Gcm> {
    let key = Secret::from_slice(key)
        .map_err(|_| failure("BAD_PARAMETER", "the key of a saved session has 32 bytes", false))?;
    Ok(Aes256Gcm::new(&key))
}

pub(super) fn seal(session: &NativeSession, key: &[u8]) -> napi::Result<Vec<u8>> {
    let cipher = cipher(key)?;
    let mut out = Writer::with_capacity(4_096);
    let mut address = Writer::new();
    session.peer.encode(&mut address);
    out.bytes(session.owner.record.expose())
        .bytes(address.as_slice())
        .bytes(&session.peer_key)
        .bytes(&session.handshake);
    put_rows(&mut out, &session.rows, &KINDS);
    close(&cipher, MAGIC, out)
}

/// A key pair as sealed bytes.
pub(super) fn seal_pair(pair: &NativeKeyPair, key: &[u8]) -> napi::Result<Vec<u8>> {
    let cipher = cipher(key)?;
    let mut out = Writer::with_capacity(8_192);
    let shared = pair.0.shared();
    out.bytes(pair.0.record.expose()).bytes(shared.bundle());
    put_rows(&mut out, shared.rows(), &PAIR_KINDS);
    drop(shared);
    close(&cipher, PAIR_MAGIC, out)
}

/// The key pair of sealed bytes.
pub(super) fn open_pair(sealed: &[u8], key: &[u8]) -> napi::Result<NativeKeyPair> {
    let damaged = || malformed("the saved key pair");
    let bytes = unseal(sealed, key, (PAIR_MAGIC, "the saved key pair"))?;
    let read = |bytes: &[u8]| -> Result<(SecretBytes, Vec<u8>, Rows), CodecError> {
        let mut input = Reader::new(bytes);
        let record = SecretBytes::from_slice(input.bytes(LONGEST)?);
        let bundle = input.bytes(LONGEST)?.to_vec();
        let rows = take_rows(&mut input, &PAIR_KINDS)?;
        input.finish()?;
        Ok((record, bundle, rows))
    };
    let (record, bundle, rows) = read(bytes.expose()).map_err(|_| damaged())?;
    Ok(NativeKeyPair(Arc::new(Owner::from_record(record, Shared::new(rows, bundle))?)))
}

fn put_rows(out: &mut Writer, rows: &Rows, kinds: &[RecordKind]) {
    let rows: Vec<_> = rows
        .iter()
        .filter_map(|(key, value)| {
            let kind = kinds.iter().position(|kind| *kind == key.kind)?;
            Some((u8::try_from(kind).ok()?, key, value))
        })
        .collect();
    out.u32(u32::try_from(rows.len()).unwrap_or(u32::MAX));
    for (kind, key, value) in rows {
        out.u8(kind).bytes(&key.partition).bytes(&key.sort).bytes(value.expose());
    }
}

fn take_rows(input: &mut Reader<'_>, kinds: &[RecordKind]) -> Result<Rows, CodecError> {
    let count = input.u32()?;
    if count > MOST_ROWS {
        return Err(CodecError::Length);
    }
    let mut rows = Rows::new();
    for _ in 0..count {
        let kind = *kinds.get(usize::from(input.u8()?)).ok_or(CodecError::Value)?;
        let key = RecordKey {
            kind,
            partition: input.bytes(LONGEST)?.to_vec(),
            sort: input.bytes(LONGEST)?.to_vec(),
        };
        rows.insert(key, SecretBytes::from_slice(input.bytes(LONGEST)?));
    }
    Ok(rows)
}

fn close(cipher: &Aes256Gcm, magic: &[u8; 8], out: Writer) -> napi::Result<Vec<u8>> {
    // Sealed in place: the clear bytes do not stay behind.
    let mut bytes = out.finish();
    let mut nonce = [0; 12];
    SystemRandom::new().fill(&mut nonce).map_err(coded)?;
    cipher.seal(&nonce, magic, &mut bytes).map_err(coded)?;
    Ok([magic.as_slice(), &nonce, &bytes].concat())
}

fn unseal(sealed: &[u8], key: &[u8], (magic, what): (&[u8; 8], &str)) -> napi::Result<SecretBytes> {
    let cipher = cipher(key)?;
    let rest = sealed.strip_prefix(magic.as_slice()).ok_or_else(|| malformed(what))?;
    let (nonce, bytes) = rest.split_first_chunk::<12>().ok_or_else(|| malformed(what))?;
    let mut bytes = SecretBytes::from_slice(bytes);
    let opened = cipher.open(nonce, magic, bytes.expose_mut()).map(|opened| opened.len()).map_err(|_| {
        failure("WRONG_KEY", &format!("{what} does not open: another key, or it was altered"), false)
    })?;
    bytes.truncate(opened);
    Ok(bytes)
}

pub(super) fn open(sealed: &[u8], key: &[u8]) -> napi::Result<NativeSession> {
    let bytes = unseal(sealed, key, (MAGIC, "the saved session"))?;
    let (owner, who, handshake, rows) = decode(bytes.expose()).map_err(|_| malformed("the saved session"))?;
    NativeSession::restored(Owner::from_record(owner, Shared::default())?, who, rows, handshake)
}

type Saved = (SecretBytes, (Address, Vec<u8>), Vec<u8>, Rows);

fn decode(bytes: &[u8]) -> Result<Saved, CodecError> {
    let mut input = Reader::new(bytes);
    let owner = SecretBytes::from_slice(input.bytes(LONGEST)?);
    let mut address = Reader::new(input.bytes(LONGEST)?);
    let peer = Address::decode(&mut address)?;
    address.finish()?;
    let peer_key = input.bytes(LONGEST)?.to_vec();
    let handshake = input.bytes(LONGEST)?.to_vec();
    let rows = take_rows(&mut input, &KINDS)?;
    input.finish()?;
    Ok((owner, (peer, peer_key), handshake, rows))
}
