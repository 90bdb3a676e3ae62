//! What a conversation said, page by page.

use std::collections::HashMap;
use std::time::Duration;

use stvor_base::{ContentId, GroupId, Timestamp, UserId};
use stvor_store::{Scan, Table};

use crate::client::Client;
use crate::content::Content;
use crate::error::{Error, Result};
use crate::events::DeliveryState;
use crate::keys;
use crate::limits;
use crate::rows::{Direction, FOREVER, MessageRow, Place, PointerRow};

/// One message of a conversation.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct HistoryMessage {
    /// Its id.
    pub id: ContentId,
    /// With whom the conversation is; in a group, who wrote it.
    pub peer: UserId,
    /// The group that it was said in.
    pub group: Option<GroupId>,
    /// Whether it came or went.
    pub direction: Direction,
    /// What it says.
    pub content: Content,
    /// When it was sent, by the sender's clock.
    pub sent_at: Timestamp,
    /// When it arrived here; `None` for our own.
    pub received_at: Option<Timestamp>,
    /// How far it came. What arrived here is delivered. Of ours in a group this stays queued: [`crate::Group::receipts`]
    /// says to whom it came.
    pub status: DeliveryState,
    /// Of an incoming message: whether [`Client::mark_read`] named it.
    pub read: bool,
    cursor: Cursor,
}

impl core::fmt::Debug for HistoryMessage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("HistoryMessage")
            .field("id", &self.id)
            .field("direction", &self.direction)
            .field("content", &self.content)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// Where a page ends. Stays valid when messages come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor(Place);

/// Some messages of a conversation, newest first.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Page {
    /// Newest first.
    pub messages: Vec<HistoryMessage>,
    /// Give this to [`HistoryQuery::before`] for the page of older messages; `None` when there are none.
    pub before: Option<Cursor>,
}

/// Whose messages.
#[derive(Debug, Clone)]
enum Whose {
    Peer(UserId),
    Group(GroupId),
}

/// Asks for a page of a conversation. Made by [`Client::history`] and [`crate::Group::history`].
#[derive(Debug)]
#[must_use = "a query does nothing until it is loaded"]
pub struct HistoryQuery<'a> {
    client: &'a Client,
    whose: Result<Whose>,
    before: Option<Cursor>,
    limit: usize,
    containing: Option<String>,
}

impl<'a> HistoryQuery<'a> {
    pub(crate) fn new(client: &'a Client, peer: Result<UserId>) -> Self {
        Self { client, whose: peer.map(Whose::Peer), before: None, limit: 50, containing: None }
    }

    pub(crate) fn of_group(client: &'a Client, group: GroupId) -> Self {
        Self { client, whose: Ok(Whose::Group(group)), before: None, limit: 50, containing: None }
    }

    /// Only messages older than the page that ended here.
    pub fn before(mut self, cursor: impl Into<Option<Cursor>>) -> Self {
        self.before = cursor.into();
        self
    }

    /// At most so many messages, 1 to 500; 50 if not set.
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit.clamp(1, limits::HISTORY_PAGE);
        self
    }

    /// Only messages whose text (or JSON text) holds `words`, in any case. Messages are decrypted as they are read, and
    /// no index of words is kept: a search reads the conversation, up to 20,000 messages a page. A page can thus hold fewer
    /// messages than its limit, even none, and still have a [`Page::before`] to go on from.
    pub fn containing(mut self, words: impl Into<String>) -> Self {
        self.containing = Some(words.into().to_lowercase()).filter(|words| !words.is_empty());
        self
    }

    /// Reads the page.
    ///
    /// # Errors
    /// `INVALID_NAME` for a name that can be none, or what the store met.
    pub async fn load(mut self) -> Result<Page> {
        let whose = self.whose.clone()?;
        let Some(words) = self.containing.take() else { return self.page(&whose, self.limit).await };
        let mut found = Page { messages: Vec::new(), before: self.before };
        let mut left = limits::SEARCHED;
        while left > 0 {
            let step = limits::HISTORY_PAGE.min(left);
            left -= step;
            let page = self.page(&whose, step).await?;
            found.before = page.before;
            for message in page.messages {
                if !holds(&message.content, &words) {
                    continue;
                }
                let cursor = message.cursor;
                found.messages.push(message);
                if found.messages.len() == self.limit {
                    found.before = Some(cursor);
                    return Ok(found);
                }
            }
            if page.before.is_none() {
                return Ok(found);
            }
            self.before = page.before;
        }
        Ok(found)
    }

    async fn page(&self, whose: &Whose, limit: usize) -> Result<Page> {
        let core = self.client.core();
        let partition = match whose {
            Whose::Peer(peer) => keys::history(peer),
            Whose::Group(group) => keys::group_history(*group),
        };
        let mut scan = Scan::of(Table::History, partition).newest_first().limit(limit);
        if let Some(Cursor(place)) = self.before {
            scan = scan.before(place.to_bytes());
        }
        let page = core.store.scan(scan).await.map_err(Error::passed)?;
        let mut rows = Vec::with_capacity(page.rows.len());
        for row in &page.rows {
            let place = Place::from_bytes(&row.key.sort).map_err(Error::passed)?;
            rows.push((place, MessageRow::decode(row.value.expose()).map_err(Error::passed)?));
        }
        let before = rows.last().map(|(place, _)| Cursor(*place)).filter(|_| page.more);
        let accepted = match whose {
            Whose::Peer(peer) => accepted(core, peer, &rows).await?,
            Whose::Group(_) => HashMap::new(),
        };
        let now = core.now();
        let over = |row: &MessageRow| {
            row.keep != FOREVER
                && now.since(row.stamped_at.min(row.sent_at)) >= Duration::from_millis(row.keep)
        };
        let messages = rows
            .into_iter()
            // Rows may outlive their retention for as long as delivery needs them; nobody is shown them.
            .filter(|(_, row)| !over(row))
            .map(|(place, row)| {
                let status = if row.state == DeliveryState::Queued && accepted.contains_key(&place) {
                    DeliveryState::Accepted
                } else {
                    row.state
                };
                let (peer, group) = match whose {
                    Whose::Peer(peer) => (peer.clone(), None),
                    // Ours name nobody, and so do what members sent before senders were noted.
                    Whose::Group(group) => {
                        (row.from.unwrap_or_else(|| core.address.user.clone()), Some(*group))
                    }
                };
                HistoryMessage {
                    id: place.id,
                    peer,
                    group,
                    direction: row.direction,
                    content: row.content,
                    sent_at: row.sent_at,
                    received_at: (row.direction == Direction::In)
                        .then(|| Timestamp::from_millis(place.order)),
                    status,
                    read: row.read,
                    cursor: Cursor(place),
                }
            })
            .collect();
        Ok(Page { messages, before })
    }
}

/// Whether a content holds words that are in lower case.
fn holds(content: &Content, words: &str) -> bool {
    match content {
        Content::Text(text) => text.to_lowercase().contains(words),
        Content::Json(json) => json.text().to_lowercase().contains(words),
        _ => false,
    }
}

/// Which of our messages the relay answers for: those that have left the queue.
pub(crate) async fn accepted(
    core: &crate::core::Core,
    peer: &UserId,
    rows: &[(Place, MessageRow)],
) -> Result<HashMap<Place, ()>> {
    let queued: Vec<(Place, u64)> = rows
        .iter()
        .filter(|(_, row)| row.direction == Direction::Out && row.state == DeliveryState::Queued)
        .map(|(place, row)| (*place, row.queued))
        .collect();
    let address = crate::client::address_of(peer);
    let pending: Vec<_> = queued.iter().map(|(_, queued)| keys::pending(&address, *queued)).collect();
    let found = core.store.get(&pending).await.map_err(Error::passed)?;
    Ok(queued
        .into_iter()
        .zip(found)
        .filter(|(_, row)| row.is_none())
        .map(|((place, _), _)| (place, ()))
        .collect())
}

/// How far messages of ours came, as the store has it. Those that it does not know are left out.
pub(crate) async fn states(
    core: &crate::core::Core,
    ids: &[ContentId],
) -> Result<Vec<(ContentId, DeliveryState)>> {
    let index: Vec<_> = ids.iter().map(|id| keys::own_content(*id)).collect();
    let mut pointers = Vec::new();
    for row in core.store.get(&index).await.map_err(Error::passed)?.into_iter().flatten() {
        pointers.push(PointerRow::decode(row.value.expose()).map_err(Error::passed)?);
    }
    let places: Vec<_> =
        pointers.iter().map(|pointer| keys::message(&pointer.peer.user, pointer.place)).collect();
    let rows = core.store.get(&places).await.map_err(Error::passed)?;
    let (mut states, mut queued) = (Vec::new(), Vec::new());
    for (pointer, row) in pointers.into_iter().zip(rows) {
        let Some(row) = row else { continue };
        let row = MessageRow::decode(row.value.expose()).map_err(Error::passed)?;
        if row.state == DeliveryState::Queued {
            queued.push((pointer.place.id, keys::pending(&pointer.peer, row.queued)));
        } else {
            states.push((pointer.place.id, row.state));
        }
    }
    let pending: Vec<_> = queued.iter().map(|(_, key)| key.clone()).collect();
    let pending = core.store.get(&pending).await.map_err(Error::passed)?;
    let accepted = queued.into_iter().zip(pending).filter(|(_, row)| row.is_none());
    states.extend(accepted.map(|((id, _), _)| (id, DeliveryState::Accepted)));
    Ok(states)
}
