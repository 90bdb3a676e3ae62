//! The outer bytes of a message, taken apart and put together: `version, suite, kind, session id, time` (27 bytes), the
//! handshake with its length if the kind says so, the header of 85 bytes, the ciphertext.

use crate::failure::failure;

const FIXED: usize = 27;
const KIND: usize = 2;
const WITH_HANDSHAKE: u8 = 2;
pub(super) const HEADER: usize = stvor_protocol::profile::p256::HEADER;

/// What a handshake begins with; the session id and the prekey part follow.
const HANDSHAKE: &[u8] = b"STVOR-H\x01";

/// Bytes that are not what they should be.
pub(super) fn malformed(what: &str) -> napi::Error {
    failure("MALFORMED_MESSAGE", &format!("{what} is malformed or was cut short"), false)
}

/// Where the header of a message begins.
pub(super) fn header_at(blob: &[u8]) -> Option<usize> {
    let at = match *blob.get(KIND)? {
        WITH_HANDSHAKE => {
            let length: [u8; 4] = blob.get(FIXED..FIXED + 4)?.try_into().ok()?;
            (FIXED + 4).checked_add(usize::try_from(u32::from_be_bytes(length)).ok()?)?
        }
        _ => FIXED,
    };
    (blob.len() >= at.checked_add(HEADER)?).then_some(at)
}

/// A handshake of its session id and prekey part.
pub(super) fn handshake(session: &[u8; 16], part: &[u8]) -> Vec<u8> {
    [HANDSHAKE, session, part].concat()
}

/// Session id and prekey part of a handshake.
pub(super) fn read_handshake(bytes: &[u8]) -> Option<([u8; 16], &[u8])> {
    let rest = bytes.strip_prefix(HANDSHAKE)?;
    let (id, part) = rest.split_at_checked(16)?;
    Some((id.try_into().ok()?, part))
}

/// Puts a message together; with `part`, as one that carries its handshake.
pub(super) fn assemble(
    session: &[u8; 16],
    part: Option<&[u8]>,
    (header, ciphertext): (&[u8], &[u8]),
) -> Vec<u8> {
    let mut blob =
        Vec::with_capacity(FIXED + 4 + part.map_or(0, <[u8]>::len) + header.len() + ciphertext.len());
    blob.extend_from_slice(&[1, 1, if part.is_some() { WITH_HANDSHAKE } else { 1 }]);
    blob.extend_from_slice(session);
    blob.extend_from_slice(&[0; 8]);
    if let Some(part) = part {
        blob.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        blob.extend_from_slice(part);
    }
    blob.extend_from_slice(header);
    blob.extend_from_slice(ciphertext);
    blob
}
