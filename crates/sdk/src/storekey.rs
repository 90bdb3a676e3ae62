//! The key of a client's own store: what opens it, and what its rows are sealed under.

use std::sync::Arc;

use stvor_base::UserId;
use stvor_keys::{HolderKind, KeyHolder};
use stvor_store::{OpenKey, Rotation, Sealed, StoreInfo};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::backup::Progress;
use crate::client::Client;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::journal::{Deed, JournalEntry};
use crate::opening::open_key;

impl Core {
    fn store_place(&self) -> stvor_store::StorePlace {
        let user = &self.address.user;
        self.config.place.of_store(&self.config.app, user, self.directory.as_ref())
    }
}

impl App {
    /// What the header of a user's store says, as it stands: what opens it, and its id. The store is not opened with any key
    /// and nothing is made; `None` where nothing was stored yet.
    ///
    /// # Errors
    /// What the store met: `STORE_UNREACHABLE`, `STORE_LOCKED`, `STORE_TOO_NEW` and the like.
    pub async fn store_info(&self, user: impl AsRef<str>) -> Result<Option<StoreInfo>> {
        let (config, user) = (self.config(), UserId::new(user.as_ref())?);
        let directory = config.place.of_user(&user);
        let place = config.place.of_store(&config.app, &user, directory.as_ref());
        if config.stores.facts().local && place.file().is_none_or(|file| !file.exists()) {
            return Ok(None);
        }
        let store = config.stores.open(&place).await.map_err(Error::passed)?;
        let info = Sealed::info(store.as_ref()).await;
        store.close().await.map_err(Error::passed)?;
        info.map_err(Error::passed)
    }
}

impl Client {
    /// What opens this user's store, and whether a rotation of its data key is under way.
    ///
    /// # Errors
    /// What the store met.
    pub async fn store_info(&self) -> Result<StoreInfo> {
        let info = Sealed::info(self.core().store.adapter().as_ref()).await.map_err(Error::passed)?;
        info.ok_or_else(|| Error::config("a store in memory has no key that anybody could give"))
    }

    /// Changes what opens the store: another passphrase, a passphrase in place of the keyfile, a token. The data key is
    /// wrapped anew and no row is touched. The new key is tried before anything is written. The old one opens only older
    /// copies of the store; a keyfile that is of no use any more stays where it is. Give the new key when the app is set up
    /// the next time.
    ///
    /// Once the new key was tried it is done to its end, also if nobody waits for this any more.
    ///
    /// # Errors
    /// `KEY_MALFORMED` and the like for a key that can be none, or what the store met.
    pub async fn change_key(&self, new: OpenKey) -> Result<()> {
        let core = self.core();
        let before = self.store_info().await?;
        let beside = core.config.stores.default_keyfile(&core.store_place());
        let holder = stvor_store::key_holder(new, beside, true).await.map_err(Error::passed)?;
        if core.stop.is_cancelled() {
            return Err(core.closed_error());
        }
        let changing = core.tasks.spawn(change(Arc::clone(core), before.holder, holder));
        changing.await.map_err(|_| Error::not_ready("the change of its key did not finish"))?
    }

    /// [`change_key`](Self::change_key) to a key in a keyring, made there under the name that [`crate::AppBuilder::keyring`] looks for.
    ///
    /// # Errors
    /// `KEYRING_UNAVAILABLE` and the like, before anything is written; as [`change_key`](Self::change_key).
    pub async fn change_key_to_keyring(&self, service: Arc<dyn stvor_keys::SecretService>) -> Result<()> {
        let item = crate::opening::keyring_item(&self.core().store_place());
        self.change_key(OpenKey::OsKeyring { service, item }).await
    }

    /// Replaces the data key of the store: a fresh one seals everything from now on, and every row is sealed anew, batch by
    /// batch, while the client goes on working. One that was interrupted (by a kill, too) goes on when this is called again.
    /// See [`stvor_store::Sealed::rotate`] for what it does and does not do.
    ///
    /// Dropping the future interrupts it, and so does closing the client; not while the fresh key takes its place, which comes to
    /// its end first. Two calls take turns. `told` hears how far it is, not of each batch when they follow each other fast.
    ///
    /// # Errors
    /// `WRONG_KEY` before anything is written, when the key was changed since the app was set up;
    /// `STORE_UNSUPPORTED` for a kind of store that can not do it; `STORE_IN_USE` while other processes have it open, also where
    /// one that was interrupted is to go on (those that open it once the rotation runs do not disturb it); what the store met.
    pub async fn rotate_key(&self, mut told: impl FnMut(Progress) + Send) -> Result<()> {
        let core = self.core();
        self.store_info().await?;
        let place = core.store_place();
        let beside = core.config.stores.default_keyfile(&place);
        let holder = stvor_store::key_holder(open_key(&core.config, &place), beside, false);
        let holder = holder.await.map_err(Error::passed)?;
        let wanted = CancellationToken::new();
        let _dropped = wanted.clone().drop_guard();
        let (tell, mut at) = watch::channel(None);
        let rotating = core.tasks.spawn(rotate(Arc::clone(core), holder, (tell, wanted)));
        while at.changed().await.is_ok() {
            let latest = *at.borrow_and_update();
            if let Some(Rotation { done, total }) = latest {
                told(Progress::new(done, total));
            }
        }
        rotating.await.map_err(|_| Error::not_ready("the rotation of its data key did not finish"))?
    }
}

/// Changes what opens the store, and says so in the journal.
async fn change(core: Arc<Core>, before: HolderKind, holder: Arc<dyn KeyHolder>) -> Result<()> {
    let kind = holder.kind();
    core.store.rewrap(holder).await.map_err(Error::passed)?;
    let entry = JournalEntry::new(core.now(), &core.config.actor, Deed::KeyChanged);
    core.note(entry.about("store", format!("{} -> {}", before.name(), kind.name()))).await;
    Ok(())
}

/// Replaces the data key of the store, until nobody wants it any more or the client closes. Its beginning is not given up: the
/// store would have another key than this client by then.
async fn rotate(
    core: Arc<Core>,
    holder: Arc<dyn KeyHolder>,
    (tell, dropped): (watch::Sender<Option<Rotation>>, CancellationToken),
) -> Result<()> {
    let nobody_waits = || Error::not_ready("nobody waits for the rotation of its data key any more");
    let _one_at_a_time = core.rotating.lock().await;
    if dropped.is_cancelled() {
        return Err(nobody_waits());
    }
    if core.stop.is_cancelled() {
        return Err(core.closed_error());
    }
    let begun = CancellationToken::new();
    let told = |at: Rotation| {
        begun.cancel();
        tell.send_replace(Some(at));
    };
    let rotation = async {
        match core.instances.is_shared() {
            true => {
                let alone = core.instances.alone(&core.store);
                core.store.rotate_alone(holder, alone, told).await
            }
            false => core.store.rotate(holder, told).await,
        }
    };
    let interrupted = async {
        begun.cancelled().await;
        tokio::select! {
            () = dropped.cancelled() => nobody_waits(),
            () = core.stop.cancelled() => core.closed_error(),
        }
    };
    tokio::select! {
        biased;
        rotated = rotation => rotated.map_err(Error::passed)?,
        error = interrupted => return Err(error),
    }
    let entry = JournalEntry::new(core.now(), &core.config.actor, Deed::KeyRotated);
    core.note(entry.about("store", "")).await;
    Ok(())
}
