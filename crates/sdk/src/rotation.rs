//! Rotating the own identity: the old key hands over to a fresh one.
//!
//! One commit puts the new identity in the place of the old one, with a row that says that sessions, sender keys and prekeys
//! of the old one are to be given up: the same row that a recovery from an old copy of the store leaves, so a process that
//! ends at any moment goes on with it at its next start. Nothing leaves the device before that commit. The log-in after it
//! brings the statement of the old key along, by which the relay lets the new key have the name and the mail.

use std::sync::Arc;
use std::time::Duration;

use stvor_base::Timestamp;
use stvor_crypto::SystemRandom;
use stvor_protocol::Identity;
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
    /// Before anything changed: as [`connect`](Self::connect) with a relay that has to be there; `ROTATION_UNSUPPORTED`
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
        if let Some(finding) = crate::production::loses_commits(found).filter(|_| !options.accept_lossy_store)
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
    records::write(changes, effects)?;
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
mod tests {
    use stvor_relay::{Config, Relay};

    use super::*;

    /// A process that ends after the commit and before anybody heard of the new key goes on at its next start.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_rotation_that_nobody_heard_of_goes_on_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let config = |port| Config { database: Some(folder.path().join("relay.db")), ..Config::mock(port) };
        let relay = Relay::start(config(0)).await.unwrap();
        let (url, port) = (relay.url(), relay.local_addr().port());
        let open = async || {
            let app = App::builder().app_token("stvor_dev_test123").relay_url(&url);
            app.data_dir(folder.path().join("data")).open().await.unwrap()
        };
        let app = open().await;
        let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
        alice.send("bob", "hello").await.unwrap().delivered().await.unwrap();
        let old = alice.identity().fingerprint;
        bob.close().await;
        relay.shutdown().await;
        let core = Arc::clone(alice.core());
        alice.send("bob", "queued").await.unwrap();
        let next = core.hand_over(Duration::from_millis(10)).await;
        let ((was, new), next) = next.unwrap();
        assert_eq!((was, next.identity.rotations().map(|chain| chain.steps().len())), (old.clone(), Some(1)));
        // As a process that is killed: nothing is flushed or told.
        next.end().await;
        drop((next, core, alice, bob, app));

        let relay = Relay::start(config(port)).await.unwrap();
        let app = open().await;
        let alice = app.connect("alice").await.unwrap();
        assert_eq!(alice.identity().fingerprint, new);
        let bob = app.connect("bob").await.unwrap();
        let mut inbox = bob.messages();
        alice.send("bob", "after").await.unwrap();
        let mut got = Vec::new();
        while got.len() < 3 {
            let next = tokio::time::timeout(Duration::from_secs(30), inbox.next()).await.unwrap().unwrap();
            got.push(next.text().unwrap().to_owned());
        }
        got.sort();
        assert_eq!(got, ["after", "hello", "queued"]);
        app.close().await.unwrap();
        relay.shutdown().await;
    }

    /// A process that ends after the sessions were put away tells the contacts at its next start, though nobody says a word.
    #[tokio::test(flavor = "multi_thread")]
    async fn who_was_not_told_before_the_process_ended_is_told_at_its_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let config = |port| Config { database: Some(folder.path().join("relay.db")), ..Config::mock(port) };
        let relay = Relay::start(config(0)).await.unwrap();
        let (url, port) = (relay.url(), relay.local_addr().port());
        let open = async |user: &'static str| {
            let app = App::builder().app_token("stvor_dev_test123").relay_url(&url);
            let app = app.data_dir(folder.path().join(user)).open().await.unwrap();
            (app.connect(user).await.unwrap(), app)
        };
        let ((alice, home), (bob, at_bob)) = (open("alice").await, open("bob").await);
        alice.send("bob", "hello").await.unwrap().delivered().await.unwrap();
        relay.shutdown().await;
        let core = Arc::clone(alice.core());
        let (_, next) = core.hand_over(Duration::from_millis(10)).await.unwrap();
        // Without a relay: sessions are put away and nobody is told.
        settle(&next).await.unwrap();
        next.end().await;
        drop((next, core, alice, home));
        let mut events = bob.events();
        let relay = Relay::start(config(port)).await.unwrap();
        let (alice, home) = open("alice").await;
        tokio::time::timeout(Duration::from_secs(30), async {
            while !matches!(events.next().await, Some(crate::Event::IdentityRotated { .. })) {}
        })
        .await
        .unwrap();
        alice.close().await;
        home.close().await.unwrap();
        drop(bob);
        at_bob.close().await.unwrap();
        relay.shutdown().await;
    }

    /// A store of before does not say whether its identity follows from words: somebody has to.
    #[tokio::test(flavor = "multi_thread")]
    async fn an_identity_of_unknown_origin_is_rotated_only_if_somebody_knows_it() {
        let relay = Relay::start(Config::mock(0)).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let words = crate::RecoveryPhrase::fresh().unwrap().words();
        let words = core::str::from_utf8(words.expose()).unwrap().to_owned();
        let of = |name: &str| {
            let app = App::builder().app_token("stvor_dev_test123").relay_url(relay.url());
            app.data_dir(folder.path().join(name))
        };
        for (user, derived) in [("alice", true), ("bob", false)] {
            let made = if derived { of(user).identity_phrase(&words) } else { of(user) };
            let app = made.open().await.unwrap();
            let client = app.connect(user).await.unwrap();
            let mut changes = ChangeSet::new();
            changes.delete(keys::meta(DERIVED));
            client.core().store.commit(changes).await.unwrap();
            client.close().await;
            app.close().await.unwrap();
            let app = of(user).open().await.unwrap();
            let refused = app.rotate_identity(user).await.map(|_| ()).unwrap_err();
            assert_eq!(refused.code(), "IDENTITY_ORIGIN_UNKNOWN");
            app.close().await.unwrap();
            let knows = RotateOptions { not_derived: true, ..RotateOptions::default() };
            if derived {
                // Once it was opened with the words it is known for good.
                let app = of(user).identity_phrase(&words).open().await.unwrap();
                app.connect(user).await.unwrap().close().await;
                app.close().await.unwrap();
            }
            let app = of(user).open().await.unwrap();
            let rotated = app.rotate_identity_with(user, knows).await.map(|_| ());
            match derived {
                true => assert_eq!(rotated.unwrap_err().code(), "IDENTITY_DERIVED"),
                false => rotated.unwrap(),
            }
            app.close().await.unwrap();
        }
        relay.shutdown().await;
    }
}
