//! What a client finds in its store when it starts.

use std::collections::HashMap;
use std::path::PathBuf;

use stvor_base::{Address, Timestamp, UserId};
use stvor_crypto::SystemRandom;
use stvor_protocol::Identity;
use stvor_store::{ChangeSet, Key, Scan, Sealed, StoreError, Table};

use crate::config::{Config, KeySource};
use crate::error::{Error, Result};
use crate::events::{Event, Hub};
use crate::keys;
use crate::place;
use crate::records;
use crate::rows::{LaneRow, PeerRow};

/// Opens the store of a user's directory, or one in memory.
pub(crate) async fn open_store(config: &Config, directory: Option<&PathBuf>, hub: &Hub) -> Result<Sealed> {
    let Some(directory) = directory else { return Sealed::in_memory().map_err(Error::passed) };
    let key = match &config.keys {
        KeySource::Beside => stvor_store::OpenKey::Default,
        KeySource::Passphrase(passphrase) => {
            stvor_store::OpenKey::Passphrase(stvor_crypto::SecretBytes::from_slice(passphrase.as_bytes()))
        }
        KeySource::Keyfile(path) => stvor_store::OpenKey::Keyfile(path.clone()),
        KeySource::Keyring(service) => stvor_store::OpenKey::OsKeyring {
            service: service.clone(),
            item: stvor_keys::KeyringItem {
                service: "stvor".to_owned(),
                account: directory.to_string_lossy().into_owned(),
            },
        },
    };
    let opened = stvor_store::open(&directory.join(place::STORE_FILE), key).await.map_err(Error::passed)?;
    if let Some(stvor_store::Notice::KeyfileCreated { path }) = opened.notice {
        hub.emit_early(Event::KeyfileCreated { path });
    }
    Ok(opened.store)
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
            "the data directory holds the identity of another user or app; was it copied or renamed?",
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
