//! What a client that closes waits for.

use core::time::Duration;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use crate::core::Core;
use crate::events::ConnectionState;
use crate::limits;

/// How long a client that closes waits for the devices of others to acknowledge, where no relay does; and, where no connection is to be had, for
/// what only needs the store.
const SHORT_LINGER: Duration = Duration::from_secs(1);

/// Something that the application asked to be sent, until it is refused or stored: a client that closes lets it in first.
pub(crate) struct UnderWay<'core>(&'core Core);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
        self.0.settled.notify_waiters();
    }
}

impl Core {
    /// From now on one more send is under way.
    pub(crate) fn under_way(&self) -> UnderWay<'_> {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        UnderWay(self)
    }

    /// Lets what was asked to be sent go out within `bound`. Without a connection that is one attempt to have one: a relay that is away would
    /// hold every closing for all of the bound.
    pub(crate) async fn flush(&self, bound: Duration) {
        self.wake_lanes();
        let since = Instant::now();
        let mut state = self.state.subscribe();
        let (mut hurried, mut dialled) = (false, false);
        let _ = tokio::time::timeout(bound, async {
            loop {
                let settled = self.settled.notified();
                let under_way = self.under_way.load(Ordering::SeqCst) > 0;
                if !under_way && self.unaccepted.load(Ordering::Relaxed) == 0 {
                    return;
                }
                let lingered = since.elapsed() >= SHORT_LINGER;
                match *state.borrow_and_update() {
                    ConnectionState::CatchingUp | ConnectionState::Online => {}
                    ConnectionState::Connecting => dialled = true,
                    ConnectionState::Offline if !dialled => {
                        if !core::mem::replace(&mut hurried, true) {
                            self.hurry.notify_one();
                        }
                    }
                    ConnectionState::Offline | ConnectionState::Failed(_) if under_way && !lingered => {}
                    ConnectionState::Offline | ConnectionState::Failed(_) | ConnectionState::Closed => return,
                }
                // A minimal relay answers for nothing: those who are away acknowledge nothing either.
                if self.session().is_some_and(|session| session.minimal) && lingered {
                    return;
                }
                tokio::select! {
                    () = settled => {}
                    // An attempt may begin and fail before anybody looks.
                    _ = state.changed() => dialled |= hurried,
                    // What another instance saw to is noticed by looking.
                    () = tokio::time::sleep(limits::CLAIM_POLL), if self.instances.is_shared() => {
                        self.wake_lanes();
                    }
                    () = tokio::time::sleep(SHORT_LINGER) => {}
                }
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use stvor_relay::{Config, Relay};

    use super::*;
    use crate::App;

    #[tokio::test]
    async fn a_close_waits_no_longer_than_its_time_and_what_is_left_of_it_ends_later() {
        let relay = Relay::start(Config::mock(0)).await.unwrap();
        let app = App::builder().app_token("stvor_dev_test123").relay_url(relay.url()).in_memory();
        let app = app.open().await.unwrap();
        let alice = app.connect("alice").await.unwrap();
        let core = std::sync::Arc::clone(alice.core());
        // A send that nobody answers, and work that does not let go of the store: neither ends by itself.
        let sending = core.under_way();
        let (let_go, holds) = tokio::sync::oneshot::channel::<()>();
        core.tasks.spawn(async { drop(holds.await) });
        let soon = Duration::from_secs(60);
        let time = Duration::from_millis(200);
        // Whoever closes it too waits as little.
        for _ in 0..2 {
            tokio::time::timeout(soon, alice.close_within(time)).await.unwrap();
            assert!(!*core.closed.borrow(), "it is still under way");
        }
        tokio::time::timeout(soon, core.stop.cancelled()).await.unwrap();
        let_go.send(()).unwrap();
        let mut closed = core.closed.subscribe();
        tokio::time::timeout(soon, closed.wait_for(|closed| *closed)).await.unwrap().unwrap();
        drop(sending);
    }

    #[tokio::test]
    async fn all_who_connect_while_a_client_does_not_let_go_of_its_store_wait_no_longer_than_one() {
        let relay = Relay::start(Config::mock(0)).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let app = App::builder().app_token("stvor_dev_test123").relay_url(relay.url());
        let app = app.data_dir(directory.path()).timeout(Duration::from_secs(1)).open().await.unwrap();
        let alice = app.connect("alice").await.unwrap();
        let core = std::sync::Arc::clone(alice.core());
        let (let_go, holds) = tokio::sync::oneshot::channel::<()>();
        core.tasks.spawn(async { drop(holds.await) });
        alice.close_within(Duration::from_millis(100)).await;
        // One after the other they would wait for more than twice as long as this does.
        let all = futures::future::join_all((0..64).map(|_| app.connect("alice")));
        for connected in tokio::time::timeout(Duration::from_secs(30), all).await.unwrap() {
            assert_eq!(connected.unwrap_err().code(), "CLIENT_NOT_READY");
        }
        let_go.send(()).unwrap();
        let mut closed = core.closed.subscribe();
        tokio::time::timeout(Duration::from_secs(30), closed.wait_for(|closed| *closed))
            .await
            .unwrap()
            .unwrap();
        app.connect("alice").await.unwrap();
    }
}
