//! The resume cursor: how far a device had been offered its mailbox. Sealed, so that a client can not make one up; no
//! credential, since it is looked at only after the device proved itself, and a replayed one only causes re-delivery.

use stvor_base::Timestamp;
use stvor_base::codec::{Reader, Writer};
use stvor_crypto::aead::{Aes256Gcm, NONCE_BYTES};
use stvor_crypto::{Random as _, Secret, SystemRandom};

use crate::limits::CURSOR_LIFE;
use crate::storage::MailboxId;

const LABEL: &[u8] = b"STVOR 1 relay resume cursor";

/// What a cursor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) device: MailboxId,
    pub(crate) epoch: u64,
    /// Highest seq offered.
    pub(crate) seq: u64,
    pub(crate) made_at: Timestamp,
}

/// The key of this relay's cursors. It is kept in the store, so that cursors outlive a restart.
pub(crate) struct CursorKey(Aes256Gcm);

impl CursorKey {
    pub(crate) fn new(key: &Secret<32>) -> Self {
        Self(Aes256Gcm::new(key))
    }

    pub(crate) fn seal(&self, cursor: Cursor) -> Vec<u8> {
        let mut plain = Writer::with_capacity(64);
        plain
            .u64(cursor.device.0.cast_unsigned())
            .u64(cursor.epoch)
            .u64(cursor.seq)
            .u64(cursor.made_at.as_millis());
        let mut nonce = [0; NONCE_BYTES];
        let mut bytes = plain.finish();
        // Without randomness or with a failing cipher there is no cursor, which is allowed at any time.
        if SystemRandom::new().fill(&mut nonce).is_err() || self.0.seal(&nonce, LABEL, &mut bytes).is_err() {
            return Vec::new();
        }
        [&nonce[..], &bytes].concat()
    }

    /// Opens a cursor that this relay sealed at most [`CURSOR_LIFE`] ago.
    pub(crate) fn open(&self, sealed: &[u8], now: Timestamp) -> Option<Cursor> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        let mut bytes = rest.to_vec();
        let plain = self.0.open(nonce, LABEL, &mut bytes).ok()?;
        let mut input = Reader::new(plain);
        let cursor = Cursor {
            device: MailboxId(input.u64().ok()?.cast_signed()),
            epoch: input.u64().ok()?,
            seq: input.u64().ok()?,
            made_at: Timestamp::from_millis(input.u64().ok()?),
        };
        input.finish().ok()?;
        (now.since(cursor.made_at) <= CURSOR_LIFE).then_some(cursor)
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    fn key() -> CursorKey {
        CursorKey::new(&Secret::random(&mut SystemRandom::new()).unwrap())
    }

    #[test]
    fn a_cursor_opens_for_fifteen_minutes_and_under_its_own_key_only() {
        let made_at = Timestamp::from_millis(1_000_000);
        let cursor = Cursor { device: MailboxId(7), epoch: 8, seq: 9, made_at };
        let key_one = key();
        let sealed = key_one.seal(cursor);
        assert!(sealed.len() <= stvor_wire::limits::MAX_CURSOR_BYTES);
        assert_eq!(key_one.open(&sealed, made_at + CURSOR_LIFE), Some(cursor));
        assert_eq!(key_one.open(&sealed, made_at + CURSOR_LIFE + Duration::from_millis(1)), None);
        assert_eq!(key().open(&sealed, made_at), None);
    }

    #[test]
    fn a_changed_cursor_is_none() {
        let made_at = Timestamp::from_millis(0);
        let key = key();
        let sealed = key.seal(Cursor { device: MailboxId(7), epoch: 8, seq: 9, made_at });
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(key.open(&changed, made_at), None, "{at}");
        }
        assert_eq!(key.open(&[], made_at), None);
    }
}
