//! A lane's place among those who wait for room on a connection.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::transport::session::{SendRoom, Session};

/// Kept while other things come: a lane that claimed anew after each of them would stand behind all others each time, and with
/// enough of them never send.
#[derive(Default)]
pub(super) struct Claim(Option<(Arc<Session>, BoxFuture<'static, Option<SendRoom>>)>);

impl Claim {
    /// Room is wanted on this connection; one that is wanted already keeps its place.
    pub(super) fn want(&mut self, wanted: Option<&Arc<Session>>) {
        let Some(session) = wanted else {
            self.0 = None;
            return;
        };
        if self.0.as_ref().is_none_or(|(of, _)| !Arc::ptr_eq(of, session)) {
            let of = Arc::clone(session);
            let room = async move { of.room().await.ok() }.boxed();
            self.0 = Some((Arc::clone(session), room));
        }
    }

    /// Waits for the room; for ever if none is wanted. `None` when the connection ended.
    pub(super) async fn room(&mut self) -> Option<(Arc<Session>, SendRoom)> {
        let Some((session, room)) = &mut self.0 else { return core::future::pending().await };
        let found = room.await;
        let session = Arc::clone(session);
        self.0 = None;
        found.map(|room| (session, room))
    }
}
