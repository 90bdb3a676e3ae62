//! Having a witness sign the log, while the daemon serves.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use stvor_base::ErrorCode as _;
use stvor_tlog::witness::CosignatureVerifier;
use stvor_vault::{Alert, AlertHook, Clock as _, SystemClock, Vault};

use super::backup::{absolute, coded};
use crate::args::VaultServe;
use crate::failure::Result;
use crate::render::Out;

/// A witness that is asked from time to time.
pub(super) struct Witnessing {
    socket: PathBuf,
    key: CosignatureVerifier,
    every: Duration,
    alerts: Vec<Arc<AlertHook>>,
    out: Out,
}

impl Witnessing {
    /// What the arguments say; nothing when they name none.
    pub(super) fn of(args: &VaultServe, alerts: &[Arc<AlertHook>], out: Out) -> Result<Option<Self>> {
        let (Some(socket), Some(key)) = (&args.witness, &args.witness_key) else { return Ok(None) };
        let key = CosignatureVerifier::parse(key).map_err(coded)?;
        let every = Duration::from_secs(args.witness_every);
        Ok(Some(Self { socket: absolute(socket)?, key, every, alerts: alerts.to_vec(), out }))
    }

    /// Asks as long as the vault is there, when its log has grown. A failure is told when it begins, and again when it is another one.
    pub(super) async fn go_on(self, vault: Weak<Vault>) {
        let this = Arc::new(self);
        let (mut signed, mut failing) = (None, None);
        let mut ticks = tokio::time::interval(this.every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (asked, at) = (Arc::clone(&this), vault.clone());
            // While the witness thinks, the runtime does not wait.
            let done = tokio::task::spawn_blocking(move || {
                let vault = at.upgrade()?;
                asked.ask(&vault, signed)
            });
            let done = done.await;
            match done {
                Ok(Some(Ok(size))) => (signed, failing) = (Some(size), None),
                Ok(Some(Err((code, message)))) if failing != Some(code) => {
                    failing = Some(code);
                    let alert = Alert::WitnessFailed { at: SystemClock::new().now(), code };
                    this.alerts.iter().for_each(|hook| hook(&alert));
                    this.out.warn(format_args!("the witness did not sign the log: {message}"));
                }
                Ok(Some(Err(_))) => {}
                // The vault is closed.
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Asks once, unless there is nothing new. Returns how many events are signed.
    fn ask(
        &self,
        vault: &Vault,
        signed: Option<u64>,
    ) -> Option<core::result::Result<u64, (&'static str, String)>> {
        let events = vault.status().ok()?.events;
        if events == 0 || signed == Some(events) {
            return Some(Ok(events));
        }
        match vault.ask_witness(&self.socket, &self.key) {
            // A cold vault has no key to sign with, and its log does not grow.
            Err(error) if error.code() == "VAULT_COLD" => Some(Ok(signed.unwrap_or_default())),
            Err(error) => Some(Err((error.code(), error.to_string()))),
            Ok((size, _)) => Some(Ok(size)),
        }
    }
}
