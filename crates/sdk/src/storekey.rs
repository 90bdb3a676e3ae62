//! The key of a client's own store: what opens it, and what its rows are sealed under.

use stvor_base::UserId;
use stvor_store::{OpenKey, Sealed, StoreInfo};

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
    /// # Errors
    /// `KEY_MALFORMED` and the like for a key that can be none, or what the store met.
    pub async fn change_key(&self, new: OpenKey) -> Result<()> {
        let core = self.core();
        let before = self.store_info().await?;
        let beside = core.config.stores.default_keyfile(&core.store_place());
        let holder = stvor_store::key_holder(new, beside, true).await.map_err(Error::passed)?;
        let kind = holder.kind();
        core.store.rewrap(holder).await.map_err(Error::passed)?;
        let entry = JournalEntry::new(core.now(), &core.config.actor, Deed::KeyChanged);
        core.note(entry.about("store", format!("{} -> {}", before.holder.name(), kind.name()))).await;
        Ok(())
    }

    /// [`change_key`](Self::change_key) to a key in a keyring, made there under the name that [`crate::AppBuilder::keyring`] looks for.
    ///
    /// # Errors
    /// `KEYRING_UNAVAILABLE` and the like, before anything is written; as [`change_key`](Self::change_key).
    pub async fn change_key_to_keyring(
        &self,
        service: std::sync::Arc<dyn stvor_keys::SecretService>,
    ) -> Result<()> {
        let item = crate::opening::keyring_item(&self.core().store_place());
        self.change_key(OpenKey::OsKeyring { service, item }).await
    }

    /// Replaces the data key of the store: a fresh one seals everything from now on, and every row is sealed anew, batch by
    /// batch, while the client goes on working. One that was interrupted (by a kill, too) goes on when this is called again.
    /// See [`stvor_store::Sealed::rotate`] for what it does and does not do.
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
        let told = |at: stvor_store::Rotation| told(Progress::new(at.done, at.total));
        let rotated = match core.instances.is_shared() {
            true => {
                let alone = core.instances.alone(&core.store);
                core.store.rotate_alone(holder, alone, told).await
            }
            false => core.store.rotate(holder, told).await,
        };
        rotated.map_err(Error::passed)?;
        let entry = JournalEntry::new(core.now(), &core.config.actor, Deed::KeyRotated);
        core.note(entry.about("store", "")).await;
        Ok(())
    }
}
