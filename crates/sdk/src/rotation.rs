//! Rotating the own identity: the old key hands over to a fresh one.
//!
//! One commit puts the new identity in the place of the old one, with a row that says that sessions, sender keys and prekeys
//! of the old one are to be given up: the same row that a recovery from an old copy of the store leaves, so a process that
//! ends at any moment goes on with it at its next start. Nothing leaves the device before that commit. The log-in after it
//! brings the statement of the old key along, by which the relay lets the new key have the name and the mail.

use std::sync::Arc;
use std::time::Duration;

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::suite::MAX_KEY_BYTES;
use stvor_base::{KeyBytes, Suite, Timestamp};
use stvor_crypto::SystemRandom;
use stvor_protocol::Identity;
use stvor_protocol::limits::MAX_EARLIER_KEYS;
use stvor_store::{ChangeSet, Expect, Op, Sealed};

use crate::app::App;
use crate::client::Client;
use crate::core::Core;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::{Deed, JournalEntry, fingerprint};
use crate::keys;
use crate::records;
use crate::rollback;

/// What whoever rotates knows better than the store does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RotateOptions {
    /// The identity does not follow from a recovery phrase or passphrase. Needed where the store can not tell: for one that
    /// an older version made, or that came from the backup of one. It counts for nothing where the store knows that it does.
    pub not_derived: bool,
    /// Rotate though the store may lose a commit that it acknowledged. If it loses this one, the name is lost: nobody has the
    /// new identity then, and neither relay nor contacts take the old one back.
    pub accept_lossy_store: bool,
}

/// How long the bounds of a flush are looked at while earlier work ends.
const LOOK: Duration = Duration::from_millis(10);

/// An identity that handed over to another one.
#[derive(Debug)]
#[non_exhaustive]
pub struct RotatedIdentity {
    /// The client with the new identity, connected.
    pub client: Client,
    /// SHA-256 of the old user key in hexadecimal.
    pub old: String,
    /// SHA-256 of the new one.
    pub new: String,
}

impl App {
    /// Replaces the identity of a user by a fresh one that the old one signs: when a key may have been seen by others, or is
    /// to be replaced as a matter of course. Contacts who know the old one follow by themselves, are told
    /// ([`crate::Event::IdentityRotated`]) and have to compare safety numbers again: they are others. Conversations go on in
    /// fresh sessions; messages that are on their way in either direction are read for ten minutes and not shown as
    /// verified, what comes later is asked for again. Marks that a person compared safety numbers are taken back on this side,
    /// too. Groups know the user by the old identity: a member has to add them anew. A group in which the user is senior should
    /// be made anew if the old key was stolen ([`crate::Group`]).
    ///
    /// The client of the user is closed first, also where the application holds it; the new one is in the answer. Once
    /// this began, it is carried on at the next [`connect`](Self::connect) if the process ends. Older backups hold the old
    /// identity, which no relay takes any more: make a new one.
    ///
    /// # Errors
    /// Before anything changed: `IDENTITY_NOT_FOUND` for a user who has no identity in this store; as
    /// [`connect`](Self::connect) with a relay that has to be there; `ROTATION_UNSUPPORTED`
    /// when the relay is too old for it, or the application keeps the identity itself; `IDENTITY_DERIVED` for an identity that
    /// follows from a recovery phrase or passphrase, and `IDENTITY_ORIGIN_UNKNOWN` where that is not known;
    /// `ROTATION_UNSAFE` for a store that may lose a commit; `STORE_IN_USE` while another process has the store open. Whether
    /// anything changed after another error says [`Client::identity`] of the next client.
    pub async fn rotate_identity(&self, user: impl AsRef<str>) -> Result<RotatedIdentity> {
        self.rotate_identity_with(user, RotateOptions::default()).await
    }

    /// [`rotate_identity`](Self::rotate_identity), with what the caller knows better than the store.
    ///
    /// # Errors
    /// As [`rotate_identity`](Self::rotate_identity).
    pub async fn rotate_identity_with(
        &self,
        user: impl AsRef<str>,
        options: RotateOptions,
    ) -> Result<RotatedIdentity> {
        let user = crate::app::user(user)?;
        let config = self.config();
        if config.adapters.is_some() {
            return Err(unsupported("the application's own store keeps this identity: rotate it there"));
        }
        if !self.has_identity(&user).await? {
            return Err(ErrorKind::IdentityNotFound { user }.into());
        }
        let online = crate::ConnectOptions { require_relay: true, ..crate::ConnectOptions::default() };
        let client = self.connect_with(user.as_str(), online).await?;
        let core = Arc::clone(client.core());
        let session = core.online(core.config.timeout).await?;
        if session.minimal || !session.rotates {
            return Err(unsupported(
                "the relay does not know how a name is handed over: it has to be updated",
            ));
        }
        match is_derived(&core).await? {
            Some(true) => return Err(ErrorKind::IdentityDerived { user }.into()),
            None if !options.not_derived => return Err(ErrorKind::IdentityOriginUnknown { user }.into()),
            _ => {}
        }
        let found = core.config.stores.findings().await.map_err(Error::passed)?;
        if let Some(finding) = crate::production::loses_commits(core.config.stores.facts(), found)
            .filter(|_| !options.accept_lossy_store)
        {
            return Err(ErrorKind::RotationUnsafe { finding: finding.code, fix: finding.fix }.into());
        }
        if core.instances.is_shared() {
            core.instances.alone(&core.store).await.map_err(Error::passed)?;
        }
        settle(&core).await?;
        drop((client, session));
        let ((old, new), client) = self.hand_over(core).await?;
        Ok(RotatedIdentity { client, old, new })
    }
}

fn unsupported(reason: &'static str) -> Error {
    ErrorKind::RotationUnsupported { reason }.into()
}

/// Whether the identity follows from a secret that somebody wrote down, if that is known.
pub(crate) async fn is_derived(core: &Core) -> Result<Option<bool>> {
    if core.config.identity.is_some() {
        return Ok(Some(true));
    }
    let noted = core.store.one(&keys::meta(DERIVED)).await.map_err(Error::passed)?;
    Ok(noted.map(|row| row.value.expose() != NOT_DERIVED))
}

/// The row that says whether the identity follows from a recovery secret. Stores of before have none.
const DERIVED: &str = "derived";

/// What stands in it of an identity that does not.
const NOT_DERIVED: &[u8] = &[0];

/// Notes whether the identity follows from a recovery secret.
pub(crate) fn note_derived(derived: bool, changes: &mut ChangeSet) {
    changes.put(keys::meta(DERIVED), vec![u8::from(derived)]);
}

/// Notes that a stored identity follows from the recovery secret that it was opened with.
pub(crate) async fn found_derived(store: &Sealed) -> Result<()> {
    let noted = store.one(&keys::meta(DERIVED)).await.map_err(Error::passed)?;
    if noted.is_some_and(|row| row.value.expose() != NOT_DERIVED) {
        return Ok(());
    }
    let mut changes = ChangeSet::new();
    note_derived(true, &mut changes);
    store.commit(changes).await.map(|_| ()).map_err(Error::passed)
}

/// The row of our own keys of before.
const EARLIER: &str = "earlier keys";

const EARLIER_VERSION: u8 = 1;

/// Our own keys that handed over to others, oldest first: what stands in the store, and in the chain of the identity. A store
/// of before, or of a backup, has only the latter.
pub(crate) async fn earlier_keys(store: &Sealed, identity: &Identity) -> Result<Vec<KeyBytes>> {
    let row = store.one(&keys::meta(EARLIER)).await.map_err(Error::passed)?;
    let mut all = match row {
        Some(row) => decode_keys(row.value.expose()).map_err(Error::passed)?,
        None => Vec::new(),
    };
    for key in identity.rotations().into_iter().flat_map(|chain| chain.keys()) {
        if key != identity.user_key() && !all.contains(key) {
            all.push(*key);
        }
    }
    all.drain(..all.len().saturating_sub(MAX_EARLIER_KEYS));
    Ok(all)
}

fn encode_keys(suite: Suite, keys: &[KeyBytes]) -> Vec<u8> {
    let mut out = Writer::with_capacity(2 + keys.len() * MAX_KEY_BYTES);
    out.u8(suite.layout(EARLIER_VERSION)).u8(u8::try_from(keys.len()).unwrap_or(u8::MAX));
    for key in keys {
        out.raw(key);
    }
    out.finish()
}

fn decode_keys(bytes: &[u8]) -> core::result::Result<Vec<KeyBytes>, CodecError> {
    let mut input = Reader::new(bytes);
    let suite = Suite::of_layout(input.u8()?, EARLIER_VERSION)?;
    let count = usize::from(input.u8()?);
    if count > MAX_EARLIER_KEYS {
        return Err(CodecError::Length);
    }
    let keys =
        (0..count).map(|_| KeyBytes::read(&mut input, suite)).collect::<core::result::Result<_, _>>()?;
    input.finish()?;
    Ok(keys)
}

/// Whether the identity in memory is not the stored one any more: it handed over to that.
pub(crate) async fn is_replaced(core: &Core) -> Result<bool> {
    let row = core.store.one(&records::key(&Identity::key())?).await.map_err(Error::passed)?;
    let stored = row.map(|row| Identity::from_record(&row.value)).transpose().map_err(Error::passed)?;
    Ok(stored.is_some_and(|stored| stored.user_key() != core.identity.user_key()))
}

/// Refuses to go on with an identity that is not the stored one any more.
pub(crate) async fn refuse_replaced(core: &Core) -> Result<()> {
    match is_replaced(core).await? {
        true => Err(Error::not_ready("its identity was rotated by another process: open it again")),
        false => Ok(()),
    }
}

/// Waits until no recovery is under way.
async fn settle(core: &Core) -> Result<()> {
    let until = tokio::time::Instant::now() + core.config.timeout;
    while let Some(found) = core.rollback() {
        if !found.decided || tokio::time::Instant::now() >= until {
            return Err(found.error());
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Puts a fresh identity in the place of the stored one, in one commit. Nothing of the client is at work any more.
pub(crate) async fn rotate(core: &Core) -> Result<(String, String)> {
    let (store, now) = (&core.store, core.now());
    let mut changes = ChangeSet::new();
    if core.instances.is_shared() {
        changes.push(core.instances.fence());
        core.instances.alone(store).await.map_err(Error::passed)?;
    }
    let (old, new) = hand_over(store, now, &mut changes).await?;
    changes.push(rollback::row_of_rotation(core));
    note_derived(false, &mut changes);
    let entry = JournalEntry::new(now, &core.config.actor, Deed::IdentityRotated);
    entry.about(core.address.user.to_string(), format!("{old} -> {new}")).write(&mut changes)?;
    store.commit(changes).await.map_err(Error::passed)?;
    Ok((old, new))
}

async fn hand_over(store: &Sealed, now: Timestamp, changes: &mut ChangeSet) -> Result<(String, String)> {
    let key = records::key(&Identity::key())?;
    let row = store.one(&key).await.map_err(Error::passed)?;
    let row = row.ok_or_else(|| Error::not_ready("its identity is not in the store"))?;
    let identity = Identity::from_record(&row.value).map_err(Error::passed)?;
    let (next, effects) = identity.rotate(now, &mut SystemRandom::new()).map_err(Error::passed)?;
    let mut earlier = earlier_keys(store, &identity).await?;
    earlier.push(*identity.user_key());
    earlier.drain(..earlier.len().saturating_sub(MAX_EARLIER_KEYS));
    changes.put(keys::meta(EARLIER), encode_keys(identity.suite(), &earlier));
    records::write(store, changes, effects)?;
    for op in &mut changes.ops {
        if let Op::Put { key: written, expect, .. } = op
            && *written == key
        {
            *expect = Expect::Version(row.version);
        }
    }
    Ok((fingerprint(identity.user_key()), fingerprint(next.user_key())))
}

#[cfg(test)]
mod tests;
