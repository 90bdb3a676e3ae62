//! What a client finds in its store when it starts.

use std::collections::HashMap;
use std::sync::Arc;

use stvor_base::{Address, Suite, Timestamp, UserId};
use stvor_crypto::SystemRandom;
use stvor_protocol::{Identity, RecoveryRoot, RecoverySecret};
use stvor_store::narrow::IdentityPair;
use stvor_store::{ChangeSet, Expect, Key, Op, OpenKey, Record, Scan, Sealed, StoreError, StorePlace, Table};

use crate::config::{Config, IdentitySource, KeySource};
use crate::error::{Error, ErrorKind, Result};
use crate::events::{Event, Hub};
use crate::guards::{self, Guards};
use crate::keys;
use crate::records;
use crate::rows::{LaneRow, PeerRow};

/// Opens the store of a user: by the provider and the key that the app was set up with, or on the application's own adapters.
pub(crate) async fn open_store(
    config: &Config,
    place: &StorePlace,
    hub: &Hub,
) -> Result<(Sealed, Option<Guards>)> {
    if let Some(adapters) = &config.adapters {
        let (sealed, guards) = guards::open(adapters).await.map_err(Error::passed)?;
        return Ok((sealed, Some(guards)));
    }
    let key = open_key(config, place);
    let opened = stvor_store::open_at(config.stores.as_ref(), place, key).await.map_err(Error::passed)?;
    if let Some(stvor_store::Notice::KeyfileCreated { path }) = opened.notice {
        hub.emit_early(Event::KeyfileCreated { path });
    }
    Ok((opened.store, None))
}

/// The key that opens the store of a place, as the app was set up.
pub(crate) fn open_key(config: &Config, place: &StorePlace) -> OpenKey {
    match &config.keys {
        KeySource::Beside => OpenKey::Default,
        KeySource::Passphrase(passphrase) => {
            OpenKey::Passphrase(stvor_crypto::SecretBytes::from_slice(passphrase.as_bytes()))
        }
        KeySource::Holder(holder) => OpenKey::Holder(Arc::clone(holder)),
        KeySource::Keyfile(path) => OpenKey::Keyfile(path.clone()),
        KeySource::Keyring(service) => {
            OpenKey::OsKeyring { service: service.clone(), item: keyring_item(place) }
        }
    }
}

/// Where a store's key is in a keyring.
pub(crate) fn keyring_item(place: &StorePlace) -> stvor_keys::KeyringItem {
    stvor_keys::KeyringItem { service: "stvor".to_owned(), account: account(place) }
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
    (store, pair): (&Sealed, Option<&IdentityPair>),
    (config, address): (&Config, &Address),
    now: Timestamp,
) -> Result<Identity> {
    let key = records::key(&Identity::key())?;
    let stored = stored_identity(store, &key).await?;
    if stored.is_some() && config.new_identity {
        return Err(ErrorKind::IdentityExists { user: address.user.clone() }.into());
    }
    if let (Some(_), Some(stored)) = (pair, &stored)
        && stored.suite() != Suite::P256
    {
        return Err(Error::config("storage adapters work with identities of the suite P256 only"));
    }
    // Slow, and needed with an identity that is stored, too: it may be another one.
    let suite = config.suite.or(stored.as_ref().map(Identity::suite)).unwrap_or_default();
    let derived = derive(config, (address, suite), now).await?;
    if let Some(stored) = stored {
        crate::names::tag_all(store).await?;
        let given = derived.is_some();
        let same = derived.is_none_or(|(derived, _)| derived.user_key() == stored.user_key());
        let stored = check_identity(stored, config, address)?;
        if same && given {
            crate::rotation::found_derived(store).await?;
        }
        return if same {
            Ok(stored)
        } else {
            Err(ErrorKind::IdentityExists { user: address.user.clone() }.into())
        };
    }
    let mut changes = ChangeSet::new();
    if derived.is_some() {
        // It may have been in use before, in a store that is lost.
        crate::prekeys::start_anew(&mut changes, 0, now);
    }
    crate::rotation::note_derived(derived.is_some(), &mut changes);
    let (identity, effects) = match derived {
        Some(derived) => derived,
        None => {
            let (mut rng, suite) = (SystemRandom::new(), config.suite.unwrap_or_default());
            let made = match pair {
                Some(pair) => Identity::create_for(&pair.private(), (&config.app, address), now, &mut rng),
                None => Identity::create_in(suite, (&config.app, address), now, &mut rng),
            };
            made.map_err(Error::passed)?
        }
    };
    records::write(store, &mut changes, effects)?;
    crate::names::are_tagged(&mut changes);
    // A restore that began meanwhile has this place.
    changes.push(Op::check(crate::backup::mark(), Expect::Absent));
    match store.commit(changes).await {
        Ok(_) => Ok(identity),
        Err(StoreError::Conflict { .. }) => match stored_identity(store, &key).await? {
            Some(other) if config.new_identity || config.identity.is_some() => {
                let same = !config.new_identity && other.user_key() == identity.user_key();
                let exists = || ErrorKind::IdentityExists { user: address.user.clone() }.into();
                if same { check_identity(other, config, address) } else { Err(exists()) }
            }
            Some(identity) => check_identity(identity, config, address),
            None => {
                crate::backup::refuse_unfinished(store, &address.user).await?;
                Err(Error::not_ready("its identity could not be stored"))
            }
        },
        Err(error) => Err(Error::passed(error)),
    }
}

/// The identity that a recovery secret stands for, if one was given.
async fn derive(
    config: &Config,
    (address, suite): (&Address, Suite),
    now: Timestamp,
) -> Result<Option<(Identity, stvor_protocol::Effects)>> {
    let Some(source) = config.identity.clone() else { return Ok(None) };
    let (app, address) = (config.app.clone(), address.clone());
    let derived = tokio::task::spawn_blocking(move || {
        let secret = match &source {
            IdentitySource::Phrase(phrase) => RecoverySecret::Phrase(phrase.entropy()),
            IdentitySource::Passphrase(text) => RecoverySecret::Passphrase(text),
        };
        let root = RecoveryRoot::stretch(suite, secret, &app, &address.user)?;
        Identity::recover(&app, &address, (&root, now), &mut SystemRandom::new())
    });
    let derived = derived.await.map_err(|_| Error::not_ready("its identity was not derived"))?;
    derived.map(Some).map_err(Error::passed)
}

async fn stored_identity(store: &Sealed, key: &Key) -> Result<Option<Identity>> {
    let row = store.one(key).await.map_err(Error::passed)?;
    row.map(|row| Identity::from_record(&row.value).map_err(Error::passed)).transpose()
}

fn check_identity(identity: Identity, config: &Config, address: &Address) -> Result<Identity> {
    let stored = identity.suite();
    if let Some(wanted) = config.suite.filter(|suite| *suite != stored) {
        return Err(ErrorKind::SuiteFixed { user: address.user.clone(), stored, wanted }.into());
    }
    if *identity.address() == *address && *identity.app() == config.app {
        Ok(identity)
    } else {
        Err(Error::config(
            "the store holds the identity of another user or app; was its data directory copied or renamed?",
        ))
    }
}

pub(crate) async fn read_lanes(store: &Sealed) -> Result<Vec<(Address, LaneRow)>> {
    each_lane(store).await?.into_iter().collect()
}

/// [`read_lanes`], where one that was altered or does not decode holds none of the others back.
pub(crate) async fn each_lane(store: &Sealed) -> Result<Vec<Result<(Address, LaneRow)>>> {
    let rows =
        store.scan_each(Scan::of(Table::Lane, keys::LANES), usize::MAX).await.map_err(Error::passed)?;
    let read = |row: core::result::Result<Record, Key>| {
        let row = row.map_err(|key| altered(&key))?;
        LaneRow::decode(row.value.expose()).map_err(Error::passed)
    };
    Ok(rows.into_iter().map(read).collect())
}

fn altered(key: &Key) -> Error {
    Error::passed(StoreError::Tampered { table: key.table })
}

/// The send counter below which nothing is sent, whatever lanes say.
pub(crate) async fn read_floor(store: &Sealed) -> Result<u64> {
    let row = store.one(&keys::meta("counter")).await.map_err(Error::passed)?;
    Ok(row.and_then(|row| row.value.expose().try_into().ok()).map_or(0, u64::from_be_bytes))
}

pub(crate) async fn read_peers(store: &Sealed) -> Result<HashMap<UserId, PeerRow>> {
    let rows = each_peer(store).await?.into_iter();
    rows.map(|(_, row)| row.map(|row| (row.user.clone(), row))).collect()
}

/// [`read_peers`] in the same way, each with the key of its row.
pub(crate) async fn each_peer(store: &Sealed) -> Result<Vec<(Key, Result<PeerRow>)>> {
    let rows =
        store.scan_each(Scan::of(Table::Settings, keys::PEERS), usize::MAX).await.map_err(Error::passed)?;
    let read = |row: core::result::Result<Record, Key>| match row {
        Ok(row) => (row.key, PeerRow::decode(row.value.expose()).map_err(Error::passed)),
        Err(key) => {
            let error = altered(&key);
            (key, Err(error))
        }
    };
    Ok(rows.into_iter().map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use stvor_base::DeviceId;

    /// Their identity would be registered at the relay, and gone with what the restore removes.
    #[tokio::test]
    async fn a_first_start_makes_no_identity_where_a_restore_began_after_it_looked() {
        let app = crate::App::builder().app_token("stvor_dev_test123").relay_url("ws://127.0.0.1:1");
        let app = app.in_memory().open().await.unwrap();
        let alice = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
        let store = Sealed::in_memory().unwrap();
        let mark = |op: Op<stvor_store::SecretBytes>| store.commit([op].into_iter().collect());
        mark(Op::insert(crate::backup::mark(), vec![1])).await.unwrap();
        let load = || load_identity((&store, None), (app.config(), &alice), Timestamp::from_millis(1));
        assert_eq!(load().await.unwrap_err().code(), "RESTORE_INCOMPLETE");
        let key = records::key(&Identity::key()).unwrap();
        assert!(store.one(&key).await.unwrap().is_none());
        mark(Op::delete(crate::backup::mark())).await.unwrap();
        load().await.unwrap();
        assert!(store.one(&key).await.unwrap().is_some());
    }
}
