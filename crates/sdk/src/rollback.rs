//! Getting out of an old copy of the data directory.
//!
//! A copy knows session keys that were used since it was made. The relay tells so at log-in: it saw a higher send counter
//! than the copy holds. Nothing is sent on those sessions; recovery gives them up.

use stvor_store::{ChangeSet, Scan, Table};
use stvor_wire::server::{Ready, Registration};

use crate::core::Core;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::keys;
use crate::lane::{Command, Work};
use crate::opening::{read_floor, read_lanes};
use crate::rows::LaneRow;

/// Compares the highest send counter that the relay saw with the store's, before anything is sent.
pub(crate) async fn look_for(core: &Core, ready: &Ready) {
    let relay = ready.highest_counter;
    if core.prekeys.starts_anew() {
        // A store that was restored has no session of the old one, so nothing can be used twice.
        core.raise_counter(relay);
        return;
    }
    if ready.registration != Registration::Known || relay <= core.counter() {
        return;
    }
    // Other instances may have sent. What the relay saw from them was in the store before, so a look at it now decides.
    if core.instances.is_shared() {
        match stored_counter(core).await {
            Ok(stored) => core.raise_counter(stored),
            // Undecided, so nothing is sent.
            Err(error) => {
                tracing::warn!(code = error.code(), "the send counters in the store could not be read");
            }
        }
    }
    let own = core.counter();
    if relay > own {
        core.set_rollback(Some((relay, own)));
        core.hub.emit(Event::RollbackDetected { relay, own });
    }
}

/// The highest send counter in the store.
async fn stored_counter(core: &Core) -> Result<u64> {
    let lanes = read_lanes(&core.store).await?;
    let highest = lanes.iter().map(|(_, row)| row.counter).max().unwrap_or(0);
    Ok(highest.max(read_floor(&core.store).await?))
}

/// Another instance may have got out of the old copy for all.
pub(crate) async fn look_again(core: &Core) -> Result<()> {
    let Some((relay, _)) = core.rollback() else { return Ok(()) };
    let stored = stored_counter(core).await?;
    if stored >= relay {
        core.raise_counter(stored);
        core.set_rollback(None);
        core.instances.next_epoch();
        core.wake_lanes();
    }
    Ok(())
}

pub(crate) async fn recover(core: &Core) -> Result<()> {
    let Some((relay, _)) = core.rollback() else { return Ok(()) };
    let mut changes = ChangeSet::new();
    changes.put(keys::meta("counter"), relay.to_be_bytes().to_vec());
    core.store.commit(changes).await.map_err(Error::passed)?;
    core.raise_counter(relay);
    let lanes =
        core.store.scan_all(Scan::of(Table::Lane, keys::LANES), usize::MAX).await.map_err(Error::passed)?;
    for row in lanes {
        let (peer, _) = LaneRow::decode(row.value.expose()).map_err(Error::passed)?;
        let (reply, done) = tokio::sync::oneshot::channel();
        core.work(&peer, Work::Command(Command::Recover(reply.into())))?;
        done.await.map_err(|_| Error::not_ready("it was closed"))??;
    }
    core.prekeys.renew(core).await?;
    core.set_rollback(None);
    core.wake_lanes();
    Ok(())
}
