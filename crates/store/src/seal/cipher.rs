//! How one row is sealed.

use super::header::FORMAT;
use crate::adapter::RowValue;
use crate::change::{Key, RowVersion};
use crate::{SecretBytes, StoreError, Table, limits};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use stvor_base::{Timestamp, codec::Writer};
use stvor_crypto::aead::{Aes256Gcm, NONCE_BYTES};
use stvor_crypto::kdf::{hkdf_sha256, hmac_sha256};
use stvor_crypto::{Random, Secret};
use stvor_keys::DataKey;

const ROW_LABEL: &[u8] = b"STVOR store row v1";
const EPOCH_LABEL: &[u8] = b"STVOR store epoch key v1";
const NAMES_LABEL: &[u8] = b"STVOR store names v1";

/// The keys of one store, all derived from its data key and its id.
pub(super) struct Keys {
    store: [u8; 16],
    data_key: DataKey,
    names: Secret<32>,
    epochs: Mutex<HashMap<u32, Arc<Aes256Gcm>>>,
}

/// Where and when a row was written: what its associated data says.
pub(super) struct Place<'a> {
    pub(super) table: Table,
    pub(super) partition: &'a [u8],
    pub(super) sort: &'a [u8],
    pub(super) version: RowVersion,
    pub(super) expires: Option<Timestamp>,
}

impl Keys {
    pub(super) fn new(store: [u8; 16], data_key: DataKey) -> Self {
        let names = hkdf_sha256(&store, data_key.expose(), NAMES_LABEL);
        Self { store, data_key, names, epochs: Mutex::default() }
    }

    pub(super) fn store(&self) -> [u8; 16] {
        self.store
    }

    pub(super) fn data_key(&self) -> &DataKey {
        &self.data_key
    }

    /// A name as it stands on disk: the same name gives another tag in another table and in another store.
    pub(super) fn tag(&self, purpose: u8, table: Table, name: &[u8]) -> [u8; 32] {
        *hmac_sha256(self.names.expose(), &[&[purpose, table.id()], name]).expose()
    }

    pub(super) fn key(&self, key: &Key) -> Key {
        Key::new(key.table, self.tag(0, key.table, &key.partition), key.sort.as_slice())
    }

    fn epoch(&self, version: RowVersion) -> Arc<Aes256Gcm> {
        let epoch = u32::try_from(version.0 >> 32).unwrap_or(u32::MAX);
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cipher) = epochs.get(&epoch) {
            return Arc::clone(cipher);
        }
        // A hostile file can name any epoch: what is kept stays small.
        if epochs.len() >= limits::MAX_EPOCH_KEYS {
            epochs.clear();
        }
        let info = [EPOCH_LABEL, &epoch.to_be_bytes()].concat();
        let key = hkdf_sha256::<32>(&self.store, self.data_key.expose(), &info);
        let cipher = Arc::new(Aes256Gcm::new(&key));
        epochs.insert(epoch, Arc::clone(&cipher));
        cipher
    }

    fn associated_data(&self, place: &Place<'_>) -> Vec<u8> {
        let mut ad = Writer::with_capacity(128);
        ad.raw(ROW_LABEL).u16(FORMAT).raw(&self.store).u8(place.table.id());
        ad.bytes(place.partition).bytes(place.sort).u64(place.version.0);
        ad.u8(place.expires.is_some().into()).u64(place.expires.unwrap_or_default().as_millis());
        ad.finish()
    }

    /// Sealed bytes are ciphertext, tag (16), nonce (12): the value is encrypted where it stands, so that its
    /// plaintext is not left behind in freed memory.
    pub(super) fn seal(
        &self,
        place: &Place<'_>,
        value: SecretBytes,
        rng: &mut dyn Random,
    ) -> Result<RowValue, StoreError> {
        let mut nonce = [0; NONCE_BYTES];
        rng.fill(&mut nonce)?;
        let mut bytes = value.into_exposed();
        self.epoch(place.version).seal(&nonce, &self.associated_data(place), &mut bytes)?;
        bytes.extend_from_slice(&nonce);
        Ok(RowValue { bytes, version: place.version })
    }

    pub(super) fn open(&self, place: &Place<'_>, mut sealed: Vec<u8>) -> Result<SecretBytes, StoreError> {
        let tampered = || StoreError::Tampered { table: place.table };
        let (_, nonce) = sealed.split_last_chunk::<NONCE_BYTES>().ok_or_else(tampered)?;
        let nonce = *nonce;
        sealed.truncate(sealed.len() - NONCE_BYTES);
        let cipher = self.epoch(place.version);
        let opened = cipher.open(&nonce, &self.associated_data(place), &mut sealed);
        let length = opened.map_err(|_| tampered())?.len();
        sealed.truncate(length);
        Ok(sealed.into())
    }
}
