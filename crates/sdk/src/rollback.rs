//! Getting out of an old copy of the data directory.
//!
//! A copy knows session keys that were used since it was made. The relay tells so at log-in: it saw a higher send counter
//! than the copy holds. Nothing is sent on those sessions; recovery gives them up.

use stvor_store::{ChangeSet, Scan, Table};

use crate::core::Core;
use crate::error::{Error, Result};
use crate::keys;
use crate::lane::{Command, Work};
use crate::rows::LaneRow;

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
        core.work(&peer, Work::Command(Command::Recover(reply)))?;
        done.await.map_err(|_| Error::not_ready("it was closed"))??;
    }
    core.set_rollback(None);
    core.wake_lanes();
    Ok(())
}
