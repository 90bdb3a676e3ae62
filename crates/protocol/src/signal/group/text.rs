//! The parts of sender keys that Baileys stores as JSON: read and written as values, for a shell to put into its form.

use stvor_crypto::xeddsa::SigningKey;
use stvor_crypto::{CryptoError, Secret};

use super::{Own, SenderKeyRecord, State};
use crate::limits::{MAX_SENDER_KEY_STATES, MAX_STORED_KEYS};
use crate::ratchet::{ChainKey, MessageSeed};
use crate::signal::{PublicKey, SignalError};

/// One chain of a sender, taken apart.
#[derive(Debug)]
pub struct SenderKeyText {
    /// Which chain.
    pub id: u32,
    /// The number of the next message.
    pub iteration: u32,
    /// The chain key at that number.
    pub chain_key: Secret<32>,
    /// What messages are signed with: 33 bytes.
    pub signing_public: PublicKey,
    /// Its private half, for a chain of our own.
    pub signing_private: Option<Secret<32>>,
    /// Keys of messages that have not come: number and seed, oldest first.
    pub message_keys: Vec<(u32, Secret<32>)>,
}

impl SenderKeyRecord {
    /// The record, taken apart, newest chain first.
    ///
    /// # Errors
    /// None today.
    pub fn take_apart(&self) -> Result<Vec<SenderKeyText>, SignalError> {
        let copy = |bytes: &[u8; 32]| Secret::from_slice(bytes);
        let of = |state: &State| {
            Ok::<_, CryptoError>(SenderKeyText {
                id: state.id,
                iteration: state.next,
                chain_key: copy(state.chain.expose())?,
                signing_public: state.signing,
                signing_private: state.own.as_ref().map(|own| own.private.duplicate()),
                message_keys: state
                    .stored
                    .iter()
                    .map(|(number, seed)| Ok((*number, copy(seed.expose())?)))
                    .collect::<Result<_, CryptoError>>()?,
            })
        };
        Ok(self.states.iter().map(of).collect::<Result<_, _>>()?)
    }

    /// A record of parts, newest chain first. What is beyond our limits is dropped, the oldest first.
    ///
    /// # Errors
    /// [`SignalError::BadRecord`] when a chain occurs twice or a message key is out of place.
    pub fn put_together(parts: Vec<SenderKeyText>) -> Result<Self, SignalError> {
        let mut record = Self::new();
        for part in parts.into_iter().take(MAX_SENDER_KEY_STATES) {
            if record.states.iter().any(|state| state.id == part.id) {
                return Err(SignalError::BadRecord("a chain occurs twice"));
            }
            let mut stored: Vec<_> = part
                .message_keys
                .into_iter()
                .map(|(number, seed)| (number, MessageSeed::new(seed)))
                .collect();
            stored.sort_by_key(|(number, _)| *number);
            let ordered = stored.windows(2).all(|pair| matches!(pair, [(a, _), (b, _)] if a < b));
            if !ordered || stored.last().is_some_and(|(number, _)| *number >= part.iteration) {
                return Err(SignalError::BadRecord("a message key is out of place"));
            }
            stored.drain(..stored.len().saturating_sub(MAX_STORED_KEYS));
            let own = part.signing_private.map(|private| {
                let point = SigningKey::new(&private).point();
                Own { private, point }
            });
            let chain = ChainKey::new(part.chain_key);
            let (id, next, signing) = (part.id, part.iteration, part.signing_public);
            record.states.push(State { id, next, chain, signing, own, stored });
        }
        Ok(record)
    }
}
