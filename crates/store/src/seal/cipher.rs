//! How one row is sealed.

use super::header::{Header, ROW_FORMAT};
use crate::adapter::RowValue;
use crate::change::{Key, RowVersion};
use crate::{SecretBytes, StoreError, Table, limits};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use stvor_base::{Timestamp, codec::Writer};
use stvor_crypto::aead::{Aes256Gcm, NONCE_BYTES};
use stvor_crypto::kdf::{hkdf_sha256, hmac_sha256};
use stvor_crypto::{Random, Secret};
use stvor_keys::DataKey;

const ROW_LABEL: &[u8] = b"STVOR store row v1";
const EPOCH_LABEL: &[u8] = b"STVOR store epoch key v1";
const NAMES_LABEL: &[u8] = b"STVOR store names v1";
const KEPT_NAMES_LABEL: &[u8] = b"STVOR store kept names v1";

/// Bytes of the names key, sealed: ciphertext, tag (16), nonce (12).
pub(super) const KEPT_NAMES: usize = 32 + 16 + NONCE_BYTES;

/// The keys that are in use: one data key, two while one takes the place of the other.
pub(super) struct Ring {
    /// Seals every epoch from `since` on.
    pub(super) current: DataKey,
    pub(super) since: u32,
    /// Seals the epochs before, until no row of those is left.
    pub(super) previous: Option<DataKey>,
    /// Hashes names. It follows from the first data key and outlives it: adapters can not move rows to other names.
    names: Secret<32>,
}

impl Ring {
    /// The keys of a store whose data key was never replaced.
    pub(super) fn first(store: &[u8; 16], data_key: DataKey) -> Self {
        let names = hkdf_sha256(store, data_key.expose(), NAMES_LABEL);
        Self { current: data_key, since: 0, previous: None, names }
    }

    /// The same names under another data key.
    pub(super) fn with(&self, current: DataKey, since: u32, previous: Option<DataKey>) -> Self {
        Self { current, since, previous, names: self.names.duplicate() }
    }

    /// The keys that a header and its opened data keys give.
    pub(super) fn of(
        header: &Header,
        current: DataKey,
        previous: Option<DataKey>,
    ) -> Result<Self, StoreError> {
        let Some(rotated) = &header.rotated else { return Ok(Self::first(&header.store, current)) };
        let (cipher, ad) = kept_names(&header.store, &current);
        let (sealed, nonce) = rotated.names.split_at(KEPT_NAMES - NONCE_BYTES);
        let nonce = nonce.try_into().map_err(|_| StoreError::corrupt("its header: the names key"))?;
        let mut sealed = sealed.to_vec();
        let opened = cipher.open(&nonce, &ad, &mut sealed);
        let names =
            Secret::from_slice(opened.map_err(|_| StoreError::corrupt("its header: the names key"))?)?;
        Ok(Self { current, since: rotated.since, previous, names })
    }

    /// The names key, sealed under the current data key, as a header keeps it.
    pub(super) fn kept_names(
        &self,
        store: &[u8; 16],
        rng: &mut dyn Random,
    ) -> Result<[u8; KEPT_NAMES], StoreError> {
        let (cipher, ad) = kept_names(store, &self.current);
        let mut nonce = [0; NONCE_BYTES];
        rng.fill(&mut nonce)?;
        let mut sealed = Vec::with_capacity(KEPT_NAMES);
        sealed.extend_from_slice(self.names.expose());
        cipher.seal(&nonce, &ad, &mut sealed)?;
        sealed.extend_from_slice(&nonce);
        sealed.try_into().map_err(|_| StoreError::corrupt("the sealed names key has another length"))
    }
}

fn kept_names(store: &[u8; 16], data_key: &DataKey) -> (Aes256Gcm, Vec<u8>) {
    let key = hkdf_sha256::<32>(store, data_key.expose(), KEPT_NAMES_LABEL);
    (Aes256Gcm::new(&key), [KEPT_NAMES_LABEL, &store[..]].concat())
}

/// The keys of one store, all derived from its data key and its id.
pub(super) struct Keys {
    store: [u8; 16],
    ring: RwLock<Arc<Ring>>,
    epochs: Mutex<HashMap<u32, Arc<Aes256Gcm>>>,
    /// Commits read it, a change of the ring writes it: what was sealed under one ring is committed before the next.
    pub(super) gate: tokio::sync::RwLock<()>,
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
        Self::with_ring(store, Ring::first(&store, data_key))
    }

    pub(super) fn with_ring(store: [u8; 16], ring: Ring) -> Self {
        let ring = RwLock::new(Arc::new(ring));
        Self { store, ring, epochs: Mutex::default(), gate: tokio::sync::RwLock::new(()) }
    }

    pub(super) fn store(&self) -> [u8; 16] {
        self.store
    }

    pub(super) fn ring(&self) -> Arc<Ring> {
        Arc::clone(&self.ring.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_ring(&self, ring: Ring) {
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ring);
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// A name as it stands on disk: the same name gives another tag in another table and in another store.
    pub(super) fn tag(&self, purpose: u8, table: Table, name: &[u8]) -> [u8; 32] {
        *hmac_sha256(self.ring().names.expose(), &[&[purpose, table.id()], name]).expose()
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
        let ring = self.ring();
        // Without a previous key no row of an earlier epoch is left; what claims to be one does not open.
        let data_key = match &ring.previous {
            Some(previous) if epoch < ring.since => previous,
            _ => &ring.current,
        };
        let key = hkdf_sha256::<32>(&self.store, data_key.expose(), &info);
        let cipher = Arc::new(Aes256Gcm::new(&key));
        epochs.insert(epoch, Arc::clone(&cipher));
        cipher
    }

    fn associated_data(&self, place: &Place<'_>) -> Vec<u8> {
        let mut ad = Writer::with_capacity(128);
        ad.raw(ROW_LABEL).u16(ROW_FORMAT).raw(&self.store).u8(place.table.id());
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

    /// `None` if it is not as it was sealed for that place.
    pub(super) fn open(&self, place: &Place<'_>, mut sealed: Vec<u8>) -> Option<SecretBytes> {
        let (_, nonce) = sealed.split_last_chunk::<NONCE_BYTES>()?;
        let nonce = *nonce;
        sealed.truncate(sealed.len() - NONCE_BYTES);
        let cipher = self.epoch(place.version);
        let length = cipher.open(&nonce, &self.associated_data(place), &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed.into())
    }
}
