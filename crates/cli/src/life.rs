//! How a command ends: by itself, by Ctrl-C, by SIGTERM, or with its parent.

use std::future;

use crate::args::Life;
use crate::failure::{Failure, Result};

/// Why a command that would run on has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Ctrl-C: the exit code says so.
    Interrupted,
    /// SIGTERM or the end of the parent: an orderly end.
    Asked,
    /// SIGHUP: the terminal is gone; a server that has files to read again does that instead of ending.
    HungUp,
}

impl End {
    /// The result of a command that ended for this reason.
    pub(crate) fn result(self) -> Result {
        match self {
            Self::Interrupted => Err(Failure::Interrupted),
            Self::Asked | Self::HungUp => Ok(()),
        }
    }
}

/// Whether SIGHUP was ignored when the process began, as `nohup` has it. To be asked before it is caught; where there is no `/proc`
/// nobody tells.
#[cfg(unix)]
pub(crate) fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // SIGHUP is the first signal.
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// Waits for a reason to end. Signals are caught from the moment this is called.
pub(crate) struct Ending {
    #[cfg(unix)]
    signals: [tokio::signal::unix::Signal; 3],
    parent: Option<tokio::sync::oneshot::Receiver<()>>,
}

impl Ending {
    /// Starts to catch signals, and to watch standard input if `life` says so. Needs a runtime.
    pub(crate) fn watch(life: Life) -> Result<Self> {
        #[cfg(unix)]
        let signals = {
            use tokio::signal::unix::{SignalKind, signal};
            let catch = |kind| signal(kind).map_err(|error| Failure::io("can not catch signals", error));
            [catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?, catch(SignalKind::hangup())?]
        };
        let parent = life.exit_with_stdin.then(|| {
            let (gone, parent) = tokio::sync::oneshot::channel();
            // A thread of its own: a read of standard input can not be cancelled.
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
                let _ = gone.send(());
            });
            parent
        });
        Ok(Self {
            #[cfg(unix)]
            signals,
            parent,
        })
    }

    /// Serves on a thread of its own until the command has to end, or `serve` does: whoever supervises a server that can not serve
    /// any more starts it anew.
    #[cfg(unix)]
    pub(crate) async fn while_serving(
        &mut self,
        serve: impl FnOnce() -> std::io::Result<()> + Send + 'static,
    ) -> Result {
        let (over, served) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || over.send(serve()));
        tokio::select! {
            end = self.wait() => end.result(),
            served = served => {
                // It says nothing when it panicked.
                let error = served.ok().and_then(std::io::Result::err);
                let error = error.unwrap_or_else(|| std::io::ErrorKind::Other.into());
                Err(Failure::io("can not serve any more", error))
            }
        }
    }

    /// Resolves when the command has to end. Safe to drop and to call again.
    pub(crate) async fn wait(&mut self) -> End {
        let parent = async {
            match &mut self.parent {
                Some(gone) => {
                    let _ = gone.await;
                    // It tells of the end once.
                    self.parent = None;
                }
                None => future::pending().await,
            }
        };
        #[cfg(unix)]
        {
            let [interrupt, terminate, hangup] = &mut self.signals;
            tokio::select! {
                _ = interrupt.recv() => End::Interrupted,
                _ = terminate.recv() => End::Asked,
                _ = hangup.recv() => End::HungUp,
                () = parent => End::Asked,
            }
        }
        #[cfg(not(unix))]
        tokio::select! {
            _ = tokio::signal::ctrl_c() => End::Interrupted,
            () = parent => End::Asked,
        }
    }
}
