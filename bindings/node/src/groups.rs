//! Groups of a client. They are named by their ids: what is known of them is the engine's.

use std::sync::PoisonError;

use napi::Env;
use napi::bindgen_prelude::PromiseRaw;
use napi_derive::napi;
use stvor::{Group, GroupId, GroupInfo};

use crate::client::{NativeClient, content_id};
use crate::content::{ContentValue, millis};
use crate::failure::{argument, failed};
use crate::task::{Cancel, promise};

/// What is known of a group.
#[napi(object)]
pub struct GroupValue {
    /// Its id.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// Who is in it, in the order of their names.
    pub members: Vec<String>,
    /// Whether we are in it.
    pub is_member: bool,
    /// Counts the changes of its membership and name.
    pub epoch: f64,
    /// The hash of its state, hexadecimal: members who show the same agree on everything.
    pub state: String,
}

impl GroupValue {
    fn of(info: GroupInfo) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "an epoch counts changes: far below 2^53")]
        let epoch = info.epoch as f64;
        Self {
            id: info.id.to_string(),
            name: info.name,
            members: info.members.iter().map(|member| member.as_str().to_owned()).collect(),
            is_member: info.is_member,
            epoch,
            state: info.state,
        }
    }
}

/// A message to a group.
#[napi(object)]
pub struct GroupSendRequest {
    /// Which one.
    pub group: String,
    /// What it says.
    pub content: ContentValue,
}

/// A change of a group.
#[napi(object)]
pub struct GroupChangeRequest {
    /// Which one.
    pub group: String,
    /// `add`, `remove`, `leave`, `rename` or `delete`.
    pub what: String,
    /// Users to be added; the one to be removed; the new name.
    pub names: Vec<String>,
}

/// How far a message came with a member.
#[napi(object)]
pub struct MemberReceiptValue {
    /// Who.
    pub user: String,
    /// How far.
    pub state: String,
    /// When that was heard of here: milliseconds since the Unix epoch.
    pub at: f64,
}

fn group_id(id: &str) -> napi::Result<GroupId> {
    id.parse().map_err(|_| argument("a group id is 32 hexadecimal digits"))
}

impl NativeClient {
    /// A group: at once if it was looked for before, so that calls keep their order.
    pub(crate) fn lookup(
        &self,
        id: &str,
    ) -> napi::Result<impl Future<Output = stvor::Result<Group>> + Send + use<>> {
        let id = group_id(id)?;
        let (client, groups) = (self.client()?, self.groups_at_hand()?);
        Ok(async move {
            let known = groups.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
            if let Some(group) = known {
                return Ok(group);
            }
            let group = client.group(id).await?;
            groups.lock().unwrap_or_else(PoisonError::into_inner).insert(id, group.clone());
            Ok(group)
        })
    }
}

#[napi]
impl NativeClient {
    /// Makes a group and gives its id.
    ///
    /// # Errors
    /// As `Client::create_group`.
    #[napi(catch_unwind)]
    pub fn create_group<'env>(
        &self,
        env: &'env Env,
        (name, members): (String, Vec<String>),
        cancel: Option<&Cancel>,
    ) -> napi::Result<PromiseRaw<'env, String>> {
        let client = self.client()?;
        promise(env, cancel, async move {
            client.create_group(name, members).await.map(|group| group.id().to_string()).map_err(failed)
        })
    }

    /// All groups.
    ///
    /// # Errors
    /// As `Client::groups`.
    #[napi(catch_unwind)]
    pub fn groups<'env>(&self, env: &'env Env) -> napi::Result<PromiseRaw<'env, Vec<GroupValue>>> {
        let client = self.client()?;
        promise(env, None, async move {
            client
                .groups()
                .await
                .map(|groups| groups.into_iter().map(GroupValue::of).collect())
                .map_err(failed)
        })
    }

    /// What is known of a group.
    ///
    /// # Errors
    /// As `Client::group`.
    #[napi(catch_unwind)]
    pub fn group_info<'env>(
        &self,
        env: &'env Env,
        group: String,
    ) -> napi::Result<PromiseRaw<'env, GroupValue>> {
        let group = self.lookup(&group)?;
        promise(env, None, async move {
            let group = group.await.map_err(failed)?;
            group.info().await.map(GroupValue::of).map_err(failed)
        })
    }

    /// Sends a message to a group and gives its id.
    ///
    /// # Errors
    /// As `Group::send`.
    #[napi(catch_unwind)]
    pub fn group_send<'env>(
        &self,
        env: &'env Env,
        request: GroupSendRequest,
        cancel: Option<&Cancel>,
    ) -> napi::Result<PromiseRaw<'env, String>> {
        let content = request.content.read()?;
        let group = self.lookup(&request.group)?;
        let sending = self.begun(async move { group.await?.send(content).await });
        promise(env, cancel, async move { sending.await.map(|id| id.to_string()).map_err(failed) })
    }

    /// Changes a group.
    ///
    /// # Errors
    /// As the method of `Group` of that name.
    #[napi(catch_unwind)]
    pub fn group_change<'env>(
        &self,
        env: &'env Env,
        request: GroupChangeRequest,
        cancel: Option<&Cancel>,
    ) -> napi::Result<PromiseRaw<'env, ()>> {
        let group = self.lookup(&request.group)?;
        let GroupChangeRequest { what, names, .. } = request;
        promise(env, cancel, async move {
            let group = group.await.map_err(failed)?;
            match (what.as_str(), names.as_slice()) {
                ("add", names) => group.add(names).await,
                ("remove", [name]) => group.remove(name).await,
                ("leave", []) => group.leave().await,
                ("rename", [name]) => group.rename(name.as_str()).await,
                ("delete", []) => group.delete().await,
                _ => return Err(argument("there is no such change")),
            }
            .map_err(failed)
        })
    }

    /// How far a message of ours came with each member that said so.
    ///
    /// # Errors
    /// As `Group::receipts`.
    #[napi(catch_unwind)]
    pub fn group_receipts<'env>(
        &self,
        env: &'env Env,
        group: String,
        id: String,
    ) -> napi::Result<PromiseRaw<'env, Vec<MemberReceiptValue>>> {
        let (group, id) = (self.lookup(&group)?, content_id(&id)?);
        promise(env, None, async move {
            let receipts = group.await.map_err(failed)?.receipts(id).await.map_err(failed)?;
            let value = |one: stvor::MemberReceipt| MemberReceiptValue {
                user: one.user.as_str().to_owned(),
                state: one.state.name().to_owned(),
                at: millis(one.at),
            };
            Ok(receipts.into_iter().map(value).collect())
        })
    }

    /// Notes that messages of a member were read.
    ///
    /// # Errors
    /// As `Group::mark_read`.
    #[napi(catch_unwind)]
    pub fn group_mark_read<'env>(
        &self,
        env: &'env Env,
        group: String,
        from: String,
        ids: Vec<String>,
    ) -> napi::Result<PromiseRaw<'env, ()>> {
        let group = self.lookup(&group)?;
        let ids = ids.iter().map(|id| content_id(id)).collect::<napi::Result<Vec<_>>>()?;
        promise(
            env,
            None,
            async move { group.await.map_err(failed)?.mark_read(from, &ids).await.map_err(failed) },
        )
    }
}
