//! What a client finds in its store when it starts.

use std::collections::HashMap;

use stvor_base::{Address, Timestamp, UserId};
use stvor_crypto::SystemRandom;
use stvor_protocol::Identity;
use stvor_store::{ChangeSet, Key, OpenKey, Scan, Sealed, StoreError, StorePlace, Table};

use crate::config::{Config, KeySource};
use crate::error::{Error, Result};
use crate::events::{Event, Hub};
use crate::keys;
use crate::records;
use crate::rows::{LaneRow, PeerRow};

/// Opens the store of a user: by the provider and the key that the app was set up with.
pub(crate) async fn open_store(config: &Config, place: &StorePlace, hub: &Hub) -> Result<Sealed> {
    let key = match &config.keys {
        KeySource::Beside => OpenKey::Default,
        KeySource::Passphrase(passphrase) => {
            OpenKey::Passphrase(stvor_crypto::SecretBytes::from_slice(passphrase.as_bytes()))
        }
        KeySource::Keyfile(path) => OpenKey::Keyfile(path.clone()),
        KeySource::Keyring(service) => OpenKey::OsKeyring {
            service: service.clone(),
            item: stvor_keys::KeyringItem { service: "stvor".to_owned(), account: account(place) },
        },
    };
    let opened = stvor_store::open_at(config.stores.as_ref(), place, key).await.map_err(Error::passed)?;
    if let Some(stvor_store::Notice::KeyfileCreated { path }) = opened.notice {
        hub.emit_early(Event::KeyfileCreated { path });
    }
    Ok(opened.store)
}

/// The name of a store's item in a keyring.
fn account(place: &StorePlace) -> String {
    match &place.directory {
        Some(directory) => directory.to_string_lossy().into_owned(),
        None => format!("{} {} {}", place.relay, place.app, place.user),
    }
}

/// Loads the identity, or makes it. Of two that are made at once the first one counts.
pub(crate) async fn load_identity(
    store: &Sealed,
    (config, address): (&Config, &Address),
    now: Timestamp,
) -> Result<Identity> {
    let key = records::key(&Identity::key())?;
    if let Some(identity) = stored_identity(store, &key).await? {
        return check_identity(identity, config, address);
    }
    let (identity, effects) =
        Identity::create(&config.app, address, now, &mut SystemRandom::new()).map_err(Error::passed)?;
    let mut changes = ChangeSet::new();
    records::write(&mut changes, effects)?;
    match store.commit(changes).await {
        Ok(_) => Ok(identity),
        Err(StoreError::Conflict { .. }) => match stored_identity(store, &key).await? {
            Some(identity) => check_identity(identity, config, address),
            None => Err(Error::not_ready("its identity could not be stored")),
        },
        Err(error) => Err(Error::passed(error)),
    }
}

async fn stored_identity(store: &Sealed, key: &Key) -> Result<Option<Identity>> {
    let row = store.one(key).await.map_err(Error::passed)?;
    row.map(|row| Identity::from_record(&row.value).map_err(Error::passed)).transpose()
}

fn check_identity(identity: Identity, config: &Config, address: &Address) -> Result<Identity> {
    if *identity.address() == *address && *identity.app() == config.app {
        Ok(identity)
    } else {
        Err(Error::config(
            "the store holds the identity of another user or app; was its data directory copied or renamed?",
        ))
    }
}

pub(crate) async fn read_lanes(store: &Sealed) -> Result<Vec<(Address, LaneRow)>> {
    let rows = store.scan_all(Scan::of(Table::Lane, keys::LANES), usize::MAX).await.map_err(Error::passed)?;
    rows.iter().map(|row| LaneRow::decode(row.value.expose()).map_err(Error::passed)).collect()
}

pub(crate) async fn read_peers(store: &Sealed) -> Result<HashMap<UserId, PeerRow>> {
    let rows =
        store.scan_all(Scan::of(Table::Settings, keys::PEERS), usize::MAX).await.map_err(Error::passed)?;
    rows.iter()
        .map(|row| {
            let row = PeerRow::decode(row.value.expose()).map_err(Error::passed)?;
            Ok((row.user.clone(), row))
        })
        .collect()
}
