//! Deleting an account: at the relay first, and then here.
//!
//! A row is written before the relay is asked. While it stands nothing registers the name, so a log-in tells whether the
//! relay still knows it: a lost answer, or a process that ended, leaves no account behind that is half there.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use stvor_crypto::SecretBytes;
use stvor_store::{ChangeSet, Op, Sealed};
use tokio::time::Instant;

use crate::core::Core;
use crate::error::{Error, ErrorKind, Result};
use crate::keys;
use crate::limits;

/// The row that says that the relay was asked to delete the account.
const DELETING: &str = "deleting";

const VERSION: u8 = 1;

/// Whether an earlier run of the program asked for it and did not end it.
pub(crate) async fn is_under_way(store: &Sealed) -> Result<bool> {
    let row = store.one(&keys::meta(DELETING)).await.map_err(Error::passed)?;
    Ok(row.is_some())
}

/// The row that says so.
pub(crate) fn under_way() -> Op<SecretBytes> {
    Op::put(keys::meta(DELETING), vec![VERSION])
}

/// Notes that the relay is asked, or that it did not do it.
async fn note(core: &Core, under_way: bool) -> Result<()> {
    let mut changes = ChangeSet::new();
    if core.instances.is_shared() {
        changes.push(core.instances.fence());
    }
    match under_way {
        true => changes.put(keys::meta(DELETING), vec![VERSION]),
        false => changes.delete(keys::meta(DELETING)),
    };
    core.store.commit(changes).await.map_err(Error::passed)?;
    core.deleting.store(under_way, Ordering::SeqCst);
    Ok(())
}

/// The relay says that it does not know the user, to a log-in that registers nobody.
pub(crate) fn is_gone(core: &Core, error: &Error) -> bool {
    core.deleting.load(Ordering::SeqCst) && matches!(error.kind(), ErrorKind::RecipientNotFound { .. })
}

/// Deletes the account, whether anybody waits for that or not.
pub(crate) async fn delete(core: &Arc<Core>) -> Result<()> {
    let core = Arc::clone(core);
    let done = tokio::spawn(async move { delete_all(&core).await });
    done.await.map_err(|_| Error::not_ready("its deletion did not finish"))?
}

async fn delete_all(core: &Arc<Core>) -> Result<()> {
    note(core, true).await?;
    match ask(core).await {
        Ok(()) => finish(core).await,
        Err(error) if is_gone(core, &error) => finish(core).await,
        Err(error) => {
            // Nothing was confirmed: the account goes on.
            note(core, false).await?;
            Err(error)
        }
    }
}

async fn ask(core: &Core) -> Result<()> {
    let timeout = core.config.timeout.max(Duration::from_secs(1));
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let asked = match core.online(left).await {
            Ok(session) => session.delete_account(left).await,
            Err(error) => Err(error),
        };
        match asked {
            Ok(()) => return Ok(()),
            // The answer may be lost while the account is gone: the next log-in tells.
            Err(error) if error.retryable() && Instant::now() < deadline => {
                tokio::time::sleep_until((Instant::now() + limits::RECIPIENT_POLL).min(deadline)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The relay did it: everything here goes.
async fn finish(core: &Arc<Core>) -> Result<()> {
    let others = match core.instances.is_shared() {
        true => core.instances.delete_all(&core.store, core.now()).await?,
        false => core.store.wipe().await.map(|_| false).map_err(Error::passed)?,
    };
    core.closing.store(true, Ordering::SeqCst);
    core.end().await;
    if others {
        // They learn of it within a third of a lease. A row that one of them wrote after the header is gone would leave a
        // store that nobody can open.
        tokio::time::sleep(core.instances.lease()).await;
    }
    let (config, user) = (&core.config, &core.address.user);
    let place = config.place.of_store(&config.app, user, core.directory.as_ref());
    stvor_store::destroy_at(config.stores.as_ref(), &place).await.map_err(Error::passed)?;
    if let Some(directory) = &core.directory {
        crate::place::remove(directory)?;
    }
    Ok(())
}

/// What a log-in told of a deletion that an earlier run of the program did not end: the relay still knows the user, so the
/// account goes on; or it does not, and what is left here is removed.
pub(crate) async fn resolve(core: &Arc<Core>, told: Result<()>) -> Result<()> {
    match told {
        Ok(()) => note(core, false).await,
        Err(error) if is_gone(core, &error) => {
            finish(core).await?;
            Err(ErrorKind::AccountDeleted { user: core.address.user.clone() }.into())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
