//! Groups: every member sends, one encryption for all.
//!
//! One task keeps all groups of a client ([`actor`]), so whatever changes a group happens one after the other. Lanes hand it
//! what came from members as rows of their own commits ([`desk`]); it judges them in their order, each batch in one
//! commit. What goes to members is a row for each of them, which the lane of that member takes into its own commit. So a
//! crash at any point loses nothing and sends nothing twice.

mod actor;
mod desk;
mod handed_over;
mod incoming;
mod outgoing;
mod renew;
mod rows;
#[cfg(test)]
mod tests;
mod turn;
mod untold;
mod vouching;
mod waiting;

use stvor_base::{Address, ContentId, GroupId, Timestamp, UserId};
use stvor_crypto::SystemRandom;
use stvor_protocol::group::Member;

pub(crate) use self::actor::run;
use self::desk::{Ask, Order};
pub(crate) use self::desk::{Desk, GroupRoom, Post};
pub(crate) use self::rows::{
    MOVED, MailRow, PostKind, ReceiptRow, moved as moved_key, post as post_key, receipt as receipt_key,
    receipts_of,
};
#[cfg(test)]
pub(crate) use self::tests::stored_post;
use crate::app::user;
use crate::client::Client;
use crate::content::Content;
use crate::core::random;
use crate::error::{Error, ErrorKind, Result};
use crate::events::DeliveryState;
use crate::history::HistoryQuery;
use crate::lane::Command;

/// What is known of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupInfo {
    /// Its id.
    pub id: GroupId,
    /// What it is called.
    pub name: String,
    /// Who is in it, in the order of their names.
    pub members: Vec<UserId>,
    /// Whether we are in it.
    pub is_member: bool,
    /// Counts the changes of its membership and name, along the longest way from its creation.
    pub epoch: u64,
    /// The hash of its state: members who show the same agree on everything. The first 8 bytes in hexadecimal.
    pub state: String,
}

/// How far a message of ours came to one member of its group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberReceipt {
    /// Who.
    pub user: UserId,
    /// [`DeliveryState::Delivered`] or [`DeliveryState::Read`].
    pub state: DeliveryState,
    /// When that was heard of here.
    pub at: Timestamp,
}

/// A group of a client. Cheap to clone.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let relay = stvor_relay::Relay::start(stvor_relay::Config::mock(0)).await?;
/// # let url = relay.url();
/// let app = stvor::App::builder().app_token("stvor_dev_test123").relay_url(url).in_memory().open().await?;
/// let alice = app.connect("alice@example.com").await?;
/// let bob = app.connect("bob@example.com").await?;
///
/// let group = alice.create_group("friends", ["bob@example.com"]).await?;
/// group.send("Hello, all!").await?;
///
/// let mut inbox = bob.messages();
/// let message = inbox.next().await.ok_or("closed")?;
/// assert_eq!((message.group, message.text()), (Some(group.id()), Some("Hello, all!")));
/// bob.group(group.id()).await?.send("Hello, Alice!").await?;
/// assert_eq!(alice.messages().next().await.ok_or("closed")?.text(), Some("Hello, Alice!"));
/// # app.close().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Group {
    client: Client,
    id: GroupId,
}

impl core::fmt::Debug for Group {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Group").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Where mail for a member goes: until users can have several devices, to their first.
fn device_of(user: &UserId) -> Address {
    crate::client::address_of(user)
}

impl Client {
    /// Makes a group with us and `members` in it.
    ///
    /// Members are added with the identity that is pinned for them here; for whom none is pinned yet the relay is asked, and
    /// the trust policy judges what it shows.
    ///
    /// # Errors
    /// `BAD_GROUP_CHANGE` for a name that is empty, longer than 256 bytes or has control characters; `RECIPIENT_NOT_FOUND`,
    /// `RELAY_UNAVAILABLE`, `IDENTITY_NOT_VERIFIED` and the like for a member; `GROUP_FULL` past 1,000 members;
    /// `QUOTA_EXCEEDED`; `INVALID_NAME`; what the store met.
    pub async fn create_group(
        &self,
        name: impl Into<String>,
        members: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Group> {
        let members = self.members(members).await?;
        let name = name.into();
        let id = self.core().groups.ask(|reply| Order::Create(name, members, reply)).await?;
        Ok(Group { client: self.clone(), id })
    }

    /// A group that we are, or were, in.
    ///
    /// # Errors
    /// `GROUP_NOT_FOUND`.
    pub async fn group(&self, id: GroupId) -> Result<Group> {
        let group = Group { client: self.clone(), id };
        group.info().await?;
        Ok(group)
    }

    /// All groups that we are, or were, in, by their names.
    ///
    /// # Errors
    /// `CLIENT_NOT_READY` after the client was closed.
    pub async fn groups(&self) -> Result<Vec<GroupInfo>> {
        self.core().groups.ask(Order::List).await
    }

    /// Users with the keys that are pinned for them, in the order of their names, without us.
    async fn members(&self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Vec<Member>> {
        let mut members = Vec::new();
        for name in names {
            let name = user(name)?;
            if name != *self.user() {
                members.push(self.member(name).await?);
            }
        }
        members.sort_by(|a, b| a.user.cmp(&b.user));
        members.dedup();
        Ok(members)
    }

    async fn member(&self, user: UserId) -> Result<Member> {
        if self.core().is_blocked(&user) {
            return Err(ErrorKind::PeerBlocked { user }.into());
        }
        let key = stvor_protocol::RecordKey::pin(&user);
        if self.core().store.one(&crate::records::key(&key)?).await.map_err(Error::passed)?.is_none() {
            let bundles = self.fetch(&user).await?;
            self.ask(&user, |reply| Command::Start(Box::new(bundles), reply)).await?;
        }
        match self.ask(&user, Command::Pin).await? {
            Some(pin) => Ok(Member { user, key: pin.user_key }),
            None => Err(ErrorKind::IdentityNotVerified { user }.into()),
        }
    }
}

impl Group {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// What is known of it.
    ///
    /// # Errors
    /// `GROUP_NOT_FOUND`, `CLIENT_NOT_READY`.
    pub async fn info(&self) -> Result<GroupInfo> {
        self.client.core().groups.ask(|reply| Order::Info(self.id, reply)).await
    }

    /// What it is called.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn name(&self) -> Result<String> {
        self.info().await.map(|info| info.name)
    }

    /// Who is in it, in the order of their names.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn members(&self) -> Result<Vec<UserId>> {
        self.info().await.map(|info| info.members)
    }

    /// Lets users in, or members with a new identity. They read what is sent from now on, and nothing of before.
    ///
    /// # Errors
    /// As [`Client::create_group`]; `NOT_A_MEMBER` when we are not in the group (any more).
    pub async fn add(&self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Result<()> {
        let members = self.client.members(names).await?;
        self.ask(Ask::Add(members)).await
    }

    /// Puts a user out. They read nothing that members send once they know of it; before its next message each member
    /// makes a new key and gives it to all others.
    ///
    /// # Errors
    /// `NOT_A_MEMBER` when the user is not in the group, or we are not; what the store met.
    pub async fn remove(&self, name: impl AsRef<str>) -> Result<()> {
        self.ask(Ask::Remove(user(name)?)).await
    }

    /// Leaves the group.
    ///
    /// # Errors
    /// `NOT_A_MEMBER` when we are not in it; what the store met.
    pub async fn leave(&self) -> Result<()> {
        self.ask(Ask::Leave).await
    }

    /// Gives it another name.
    ///
    /// # Errors
    /// `BAD_GROUP_CHANGE` for a name that is none, `NOT_A_MEMBER`, what the store met.
    pub async fn rename(&self, name: impl Into<String>) -> Result<()> {
        self.ask(Ask::Rename(name.into())).await
    }

    /// Sends a message to all members. It is encrypted once. Resolves when it is in the outbox: from then on it can only
    /// wait. [`Client::pending`] counts what the relay has not accepted of it, and [`Self::receipts`] names the members who
    /// have it.
    ///
    /// # Errors
    /// `NOT_A_MEMBER`, `MESSAGE_TOO_LARGE` above 65,472 bytes, `BACKPRESSURE` when too many messages to the group, or calls in
    /// all, wait ([`Executor`](crate::Executor)), `QUOTA_EXCEEDED` when too much waits for members, `ROLLBACK_DETECTED`,
    /// `GROUP_NOT_FOUND`, what the store met.
    pub async fn send(&self, content: impl Into<Content>) -> Result<ContentId> {
        let id = ContentId::from_bytes(random(&mut SystemRandom::new())?);
        let content = content.into();
        let (size, limit) = (content.as_bytes().len(), stvor_protocol::group::limits::MAX_BODY);
        if size > limit {
            return Err(ErrorKind::MessageTooLarge { size, limit }.into());
        }
        let core = self.client.core();
        let _under_way = core.under_way();
        let room = core.room_in_group(self.id, size).await?;
        core.groups.ask(|reply| Order::Send(self.id, (id, content), room, reply)).await?;
        Ok(id)
    }

    /// Who has a message of ours, in the order of their names: those members whose devices said so. Whoever is missing has it
    /// not, is in a group of more than 128 (where no receipts are sent), or sends none. Known for 30 days; empty for a
    /// message that is not ours.
    ///
    /// # Errors
    /// `CLIENT_NOT_READY`, what the store met.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let relay = stvor_relay::Relay::start(stvor_relay::Config::mock(0)).await?;
    /// # let url = relay.url();
    /// # let app = stvor::App::builder().app_token("stvor_dev_test123").relay_url(url).in_memory().open().await?;
    /// # let alice = app.connect("alice").await?;
    /// # let bob = app.connect("bob").await?;
    /// let group = alice.create_group("friends", ["bob"]).await?;
    /// let id = group.send("Hello!").await?;
    /// while group.receipts(id).await?.is_empty() {
    ///     tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    /// }
    /// assert_eq!(group.receipts(id).await?[0].user.as_str(), "bob");
    /// # app.close().await?;
    /// # Ok(()) }
    /// ```
    pub async fn receipts(&self, id: ContentId) -> Result<Vec<MemberReceipt>> {
        self.client.core().groups.ask(|reply| Order::Receipts(self.id, id, reply)).await
    }

    /// Notes that messages of a member were read, and tells them, if receipts of reading are on. Ids that are not of
    /// messages from this member in this group are passed over.
    ///
    /// # Errors
    /// `GROUP_NOT_FOUND`, `INVALID_NAME`, `CLIENT_NOT_READY`, what the store met.
    pub async fn mark_read(&self, from: impl AsRef<str>, ids: &[ContentId]) -> Result<()> {
        let of = (user(from)?, ids.to_vec());
        self.client.core().groups.ask(|reply| Order::MarkRead(self.id, of, reply)).await
    }

    /// What was said in the group, page by page, newest first. [`HistoryQuery::containing`] searches it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let relay = stvor_relay::Relay::start(stvor_relay::Config::mock(0)).await?;
    /// # let url = relay.url();
    /// # let app = stvor::App::builder().app_token("stvor_dev_test123").relay_url(url).in_memory().open().await?;
    /// # let alice = app.connect("alice").await?;
    /// let group = alice.create_group("notes", [""; 0]).await?;
    /// group.send("buy milk").await?;
    /// group.send("call Bob").await?;
    /// let page = group.history().containing("milk").load().await?;
    /// assert_eq!(page.messages[0].content.as_text(), Some("buy milk"));
    /// # app.close().await?;
    /// # Ok(()) }
    /// ```
    pub fn history(&self) -> HistoryQuery<'_> {
        HistoryQuery::of_group(&self.client, self.id)
    }

    /// Removes a group that we are not in any more, with its messages and what is kept of it.
    ///
    /// # Errors
    /// `GROUP_NOT_FOUND`; `INVALID_CONFIG` while we are in it; what the store met.
    pub async fn delete(&self) -> Result<()> {
        self.client.core().groups.ask(|reply| Order::Delete(self.id, reply)).await
    }

    async fn ask(&self, ask: Ask) -> Result<()> {
        let core = self.client.core();
        let _under_way = core.under_way();
        core.groups.ask(|reply| Order::Change(self.id, ask, reply)).await
    }
}
