//! What a client does beside messages: prekeys, and sweeping out what expired.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::events::Event;
use crate::limits;
use crate::production::Finding;

const DAY: Duration = Duration::from_secs(86_400);
const RETRY: Duration = Duration::from_secs(30);
const SWEEP_ROWS: usize = 500;

/// Runs until `stop`.
pub(crate) async fn run(client: Weak<Core>, stop: CancellationToken) {
    let Some(client) = client.upgrade() else { return };
    tokio::select! {
        () = stop.cancelled() => {}
        () = keep_prekeys(&client) => {}
        () = keep_tidy(&client) => {}
        () = make_room(&client) => {}
        () = tell_skipped(&client) => {}
        () = client.inbox.count_given_back() => {}
        () = watch_settings(&client) => {}
        () = crate::instances::run(&client) => {}
        () = crate::instances::follow_receipts(&client) => {}
    }
}

async fn keep_prekeys(client: &Arc<Core>) {
    let mut wait = DAY;
    loop {
        tokio::select! {
            () = client.prekeys.due() => {}
            () = tokio::time::sleep(wait) => {}
        }
        // On a shared store the instance that receives sees to them.
        if !client.instances.receives() {
            wait = DAY;
            continue;
        }
        // The log-in tells what the relay holds a moment before frames can be sent.
        if client.online(RETRY).await.is_err() {
            continue;
        }
        wait = match client.prekeys.maintain(client).await {
            // What the relay asked for too soon is looked at again when its time comes.
            Ok(()) => {
                client.prekeys.next_refill().map_or(DAY, |at| at.saturating_duration_since(Instant::now()))
            }
            Err(error) => {
                tracing::warn!(code = error.code(), "prekeys could not be refilled");
                RETRY
            }
        };
    }
}

async fn keep_tidy(client: &Arc<Core>) {
    let mut sweep = tokio::time::interval(limits::SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        sweep.tick().await;
        sweep_out(client).await;
    }
}

/// Mail that found no room stays at the relay; a fresh connection brings it again.
async fn make_room(client: &Arc<Core>) {
    loop {
        client.inbox.room_again.notified().await;
        client.kick.notify_one();
    }
}

async fn tell_skipped(client: &Arc<Core>) {
    loop {
        let code = client.inbox.skipped().await;
        client.hub.emit(Event::StoreFailing { code });
    }
}

/// Looks daily, and after each log-in, at how the server of the store is set: what was fit for production when the app was set up
/// may not be any more.
async fn watch_settings(client: &Arc<Core>) {
    let config = &client.config;
    let facts = config.stores.facts();
    if config.adapters.is_some() || !facts.durable || facts.local {
        return core::future::pending().await;
    }
    let mut known: BTreeSet<&'static str> = config.findings.iter().map(|finding| finding.code).collect();
    loop {
        tokio::select! {
            () = client.look_at_settings.notified() => {}
            () = tokio::time::sleep(DAY) => {}
        }
        let found = match config.settings.ask(config.stores.as_ref()).await {
            Ok(found) => found,
            Err(error) => {
                let code = stvor_base::ErrorCode::code(&error);
                tracing::debug!(code, "the server of the store could not be asked how it is set");
                continue;
            }
        };
        let codes = found.iter().map(|finding| finding.code).collect();
        let fresh: Vec<Finding> = found.into_iter().filter(|one| !known.contains(one.code)).collect();
        known = codes;
        if !fresh.is_empty() {
            tracing::warn!("the server of the store was set otherwise:{}", crate::production::list(&fresh));
            client.hub.emit_to_first(Event::StoreWeakened { findings: fresh });
        }
    }
}

async fn sweep_out(client: &Core) {
    loop {
        match client.store.sweep(client.now(), SWEEP_ROWS).await {
            Ok(SWEEP_ROWS) => {}
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(
                    code = stvor_base::ErrorCode::code(&error),
                    "expired rows could not be removed"
                );
                return;
            }
        }
    }
}
