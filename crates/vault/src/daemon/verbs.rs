//! What can be asked of the daemon.

use core::time::Duration;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stvor_crypto::SecretBytes;
use stvor_tlog::Note;

use super::{Hidden, RecoveryVerb, answer};
use crate::audit::Operation;
use crate::engine::agents::{Agent, Caller};
use crate::engine::log::LogQuery;
use crate::engine::sessions::SessionId;
use crate::level::Level;
use crate::memory::{Forgotten, MemoryId, NewMemory, Purged, Tombstoned, Trust};
use crate::{Vault, VaultError, limits};

/// How often progress is told.
pub(super) const PROGRESS: Duration = Duration::from_millis(200);

/// A content: text, or bytes in base64. `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Text.
    Text(String),
    /// Bytes, in base64.
    Base64(String),
}

impl core::fmt::Debug for Content {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Content {
    /// Text where it is text.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        match core::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Base64(STANDARD.encode(bytes)),
        }
    }

    pub(crate) fn bytes(self) -> Result<SecretBytes, VaultError> {
        match self {
            Self::Text(text) => Ok(text.into_bytes().into()),
            Self::Base64(text) => {
                let bytes = STANDARD.decode(text);
                bytes.map(SecretBytes::from).map_err(|_| VaultError::invalid("the content is not base64"))
            }
        }
    }
}

/// What is to be stored. `Debug` shows where and at which level, and no more.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreVerb {
    /// The content.
    pub content: Content,
    /// The level. Of a correction nothing stands for the level of what it corrects.
    #[serde(default)]
    pub level: Option<Level>,
    /// The namespace. Of a correction nothing stands for the namespace of what it corrects.
    #[serde(default)]
    pub namespace: Option<String>,
    /// What is known about it.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Keys of the metadata by which the owner may search above level 2.
    #[serde(default)]
    pub searchable: Vec<String>,
    /// What it serves.
    #[serde(default)]
    pub intents: Vec<String>,
    /// Where it is from.
    #[serde(default)]
    pub source: String,
    /// How far to believe it.
    #[serde(default)]
    pub trust: Trust,
    /// Seconds that it lives. Of a correction nothing stands for what is left of the time of what it corrects.
    #[serde(default)]
    pub ttl: Option<u64>,
    /// That a correction has no end of its own.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub no_ttl: bool,
    /// Seconds between two recalls. Of a correction nothing stands for the pause of what it corrects.
    #[serde(default)]
    pub cooldown: Option<u64>,
    /// The memory that it corrects.
    #[serde(default)]
    pub supersedes: Option<MemoryId>,
    /// The profile whose key it takes, too. Of a correction nothing stands for the profile of what it corrects.
    #[serde(default)]
    pub profile: Option<String>,
    /// That a correction takes the key of no profile; for the owner.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub no_profile: bool,
    /// Why it is closed for good as it is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tombstone: Option<String>,
}

impl core::fmt::Debug for StoreVerb {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mut shown = f.debug_struct("StoreVerb");
        shown.field("level", &self.level).field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// What agents may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are those of the functions of `Vault` of the same names")]
pub enum AgentVerb {
    /// Store a memory.
    Store { memory: Box<StoreVerb> },
    /// Store at most [`limits::MAX_STORES`] memories, in this order and in few commits. The answer has for each what [`Self::Store`]
    /// would answer, `{"ok": {"id"}}` or `{"error"}`: one that is refused keeps none of the others out.
    StoreMany { memories: Vec<StoreVerb> },
    /// Recall one.
    Recall {
        id: MemoryId,
        #[serde(default)]
        justification: String,
    },
    /// Search a namespace. The answer says whether there are more: `{"memories", "more"}`, and so does that of [`Self::ByIntent`].
    Search { namespace: String, query: String },
    /// List a namespace: `{"memories", "next"}`, with `next` as the `before` of the next page.
    List {
        namespace: String,
        #[serde(default)]
        before: Option<String>,
    },
    /// Find by intent.
    ByIntent { intent: String },
    /// Link an intent.
    Link { id: MemoryId, intent: String },
    /// Unlink one.
    Unlink { id: MemoryId, intent: String },
    /// Destroy a memory; with the versions that it corrected, where that is said.
    Forget {
        id: MemoryId,
        reason: String,
        #[serde(default)]
        with_earlier: bool,
    },
    /// What [`Self::Forget`] would destroy, and what it would leave; nothing is changed.
    WouldForget {
        id: MemoryId,
        #[serde(default)]
        with_earlier: bool,
    },
    /// Close a memory for good.
    Tombstone { id: MemoryId, reason: String },
    /// Ask the owner to approve one recall.
    RequestApproval { id: MemoryId, purpose: String },
    /// What became of such a request.
    Approval { request: MemoryId },
    /// Stop everything.
    EnterLockdown { reason: String },
    /// The state of the vault.
    Status {},
    /// Whether the whole log and every row are sound. A result serves all who ask for a minute.
    Verify {},
}

/// What the owner may ask. Some hold keys, so `Debug` shows nothing of them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are those of the functions of `Vault` of the same names")]
pub enum OwnerVerb {
    /// The state. Needs no proof.
    Status {},
    /// Begin the session, with the keys that the owner's secrets unwrapped, in base64. They are the proof.
    Unlock { root: Hidden, vaulted: Option<Hidden> },
    /// End the session.
    Lock {},
    /// What an agent may ask, as the owner.
    Act { act: AgentVerb },
    /// Requests for approval.
    Approvals {},
    /// Grant one, for some seconds.
    Approve { id: MemoryId, seconds: Option<u64> },
    /// Deny one.
    Deny { id: MemoryId },
    /// End the lockdown; takes the root key, in base64.
    LeaveLockdown { root: Hidden },
    /// End the pause of a memory.
    EndPause { id: MemoryId },
    /// Enrol an agent; answers with its credential.
    Enrol { agent: Agent },
    /// Remove an agent.
    RemoveAgent { name: String },
    /// All agents.
    Agents {},
    /// The namespaces that there are, with how many memories are live or superseded in each.
    Namespaces {},
    /// Read the whole log and every row; with `content` also open every content whose key is held. With `progress` lines
    /// that tell how far it is come before the answer. The log is held against the checkpoints of these archives, too.
    Verify {
        #[serde(default)]
        archives: Vec<String>,
        #[serde(default)]
        content: bool,
        #[serde(default)]
        progress: bool,
    },
    /// Prove an event.
    Prove { event: u64 },
    /// Destroy what has run out.
    Purge {},
    /// Events of the log that fit.
    Log { query: LogQuery },
    /// The owner's keys, wrapped for another secret; takes the root key. All in base64.
    ChangeSecret { root: Hidden, owner_root: String, owner_verbs: String },
    /// Stop everything. Needs no proof.
    EnterLockdown { reason: String },
    /// What the vault counts, in the text format of Prometheus. Needs no proof.
    Metrics {},
    /// What is asked about backups, recovery, tokens and proofs.
    Recovery { act: Box<RecoveryVerb> },
    /// What is asked about profiles, and changing keys.
    Keys { act: Box<super::KeysVerb> },
}

impl core::fmt::Debug for OwnerVerb {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("OwnerVerb([redacted])")
    }
}

impl OwnerVerb {
    /// Whether it is served without a proof.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Status {} | Self::Unlock { .. } | Self::EnterLockdown { .. } | Self::Metrics {})
    }

    /// Does it. What takes long calls `tell` with what is done and how much there is.
    pub(super) fn run(self, vault: &Vault, mut tell: impl FnMut(u64, u64)) -> Result<Value, VaultError> {
        match self {
            Self::Status {} => value(vault.status()?),
            Self::Unlock { root, vaulted } => {
                vault.unlock(root.key()?, vaulted.as_ref().map(Hidden::key).transpose()?)?;
                Ok(Value::Null)
            }
            Self::Lock {} => vault.lock().map(|()| Value::Null),
            Self::Act { act } => act.run(vault, (&Caller::Owner, SessionId::OWNER)),
            Self::Approvals {} => value(vault.requests()?),
            Self::Approve { id, seconds } => {
                let valid = seconds.map_or(limits::APPROVAL, Duration::from_secs);
                vault.decide_approval(id, Some(valid)).map(|()| Value::Null)
            }
            Self::Deny { id } => vault.decide_approval(id, None).map(|()| Value::Null),
            Self::LeaveLockdown { root } => vault.leave_lockdown_with(root.key()?).map(|()| Value::Null),
            Self::EndPause { id } => vault.end_pause(id).map(|()| Value::Null),
            Self::Enrol { agent } => {
                let credential = vault.enrol(agent)?;
                Ok(json!({ "credential": String::from_utf8_lossy(credential.expose()) }))
            }
            Self::RemoveAgent { name } => vault.remove_agent(&name).map(|()| Value::Null),
            Self::Agents {} => {
                let (mut agents, usage) = (value(vault.agents()?)?, vault.usage()?);
                for agent in agents.as_array_mut().into_iter().flatten() {
                    let used = agent["name"].as_str().and_then(|name| usage.get(name)).copied();
                    agent["used"] = json!(used.unwrap_or_default());
                }
                Ok(agents)
            }
            Self::Namespaces {} => value(vault.namespaces()?),
            Self::Verify { archives, content, progress } => {
                let notes = archives.iter().map(|note| Note::parse(note.as_bytes()));
                let notes = notes.collect::<Result<Vec<_>, _>>()?;
                let (pending, state) = vault.begin_verify_against(content, notes);
                let report = pending.wait_telling(PROGRESS, &state, |done, total| {
                    if progress {
                        tell(done, total);
                    }
                });
                value(report?)
            }
            Self::Prove { event } => {
                let (entry, proof) = vault.prove(event)?;
                Ok(json!({ "event": String::from_utf8_lossy(&entry), "proof": proof.to_string() }))
            }
            Self::Recovery { act } => act.run(vault, tell),
            Self::Keys { act } => act.run(vault, tell),
            Self::Purge {} => {
                let Purged { ended, left } = vault.purge()?;
                Ok(json!({ "purged": ended, "left": left }))
            }
            Self::Log { query } => value(vault.read_log(query)?),
            Self::ChangeSecret { root, owner_root, owner_verbs } => {
                let bytes = |text: &str| {
                    STANDARD.decode(text).map_err(|_| VaultError::invalid("a record is in base64"))
                };
                let records = (bytes(&owner_root)?, bytes(&owner_verbs)?);
                vault.put_owner_records(root.key()?, records).map(|()| Value::Null)
            }
            Self::EnterLockdown { reason } => vault.enter_lockdown_unproved(&reason).map(|()| Value::Null),
            Self::Metrics {} => value(vault.metrics()?),
        }
    }
}

impl AgentVerb {
    pub(super) fn run(
        self,
        vault: &Vault,
        (caller, session): (&Caller, SessionId),
    ) -> Result<Value, VaultError> {
        let done = |()| Value::Null;
        // What is refused before there is anything to store is logged like the rest.
        let begin = |memory: StoreVerb| match memory.into_memory() {
            Ok(memory) => vault.begin_store_in(session, caller, memory),
            Err(error) => vault.refuse_request(caller, (Operation::Store, None), error),
        };
        match self {
            Self::Store { memory } => Ok(json!({ "id": begin(*memory).wait()? })),
            Self::StoreMany { memories } => {
                if memories.len() > limits::MAX_STORES {
                    let error = VaultError::invalid("one request stores at most 256 memories");
                    return vault.refuse_request(caller, (Operation::Store, None), error).wait();
                }
                // All are begun before the first is waited for, so that they share commits.
                let begun: Vec<_> = memories.into_iter().map(begin).collect();
                let ended = begun.into_iter().map(|one| one.wait());
                value(ended.map(|one| answer(one.map(|id| json!({ "id": id })))).collect::<Vec<_>>())
            }
            Self::Recall { id, justification } => {
                let recalled = vault.recall(caller, id, &justification)?;
                Ok(json!({ "header": recalled.header, "content": Content::of(recalled.content.expose()) }))
            }
            Self::Search { namespace, query } => value(vault.find(caller, &namespace, &query)?),
            Self::List { namespace, before } => {
                let (memories, next) = vault.list(caller, &namespace, before.as_deref())?;
                Ok(json!({ "memories": memories, "next": next }))
            }
            Self::ByIntent { intent } => value(vault.find_by_intent(caller, &intent)?),
            Self::Link { id, intent } => vault.set_intent(caller, id, (&intent, true)).map(done),
            Self::Unlink { id, intent } => vault.set_intent(caller, id, (&intent, false)).map(done),
            Self::Forget { id, reason, with_earlier } => {
                let forgotten = match with_earlier {
                    true => vault.forget_with_earlier(caller, id, &reason)?,
                    false => vault.forget(caller, id, &reason)?,
                };
                let Forgotten { ended, earlier, next, before, backups } = forgotten;
                let mut left = serde_json::Map::new();
                for (name, versions) in [("ended", &ended), ("earlier", &earlier)] {
                    if !versions.is_empty() {
                        left.insert(name.into(), json!(versions));
                    }
                }
                if let Some(next) = next {
                    left.insert("next".into(), json!(next));
                }
                if before {
                    left.insert("before".into(), json!(true));
                }
                if let Some(newest) = backups.iter().map(|backup| backup.manifest.made).max() {
                    left.insert("backups".into(), json!({ "count": backups.len(), "newest": newest }));
                }
                // Who inherits, and where backups are, is nothing that an agent is told.
                let mut heirs = Vec::new();
                for id in ended.into_iter().chain([id]).filter(|_| caller.is_owner()) {
                    heirs.extend(vault.heirs_with(id)?);
                }
                heirs.sort_unstable();
                heirs.dedup();
                if !heirs.is_empty() {
                    left.insert("heirs".into(), json!(heirs));
                }
                if caller.is_owner() && !backups.is_empty() {
                    let files = backups.iter().map(|backup| backup.path.display().to_string());
                    left.insert("files".into(), files.collect());
                }
                Ok(if left.is_empty() { Value::Null } else { Value::Object(left) })
            }
            Self::WouldForget { id, with_earlier } => value(vault.would_forget(caller, id, with_earlier)?),
            Self::Tombstone { id, reason } => {
                let Tombstoned { earlier, next } = vault.tombstone(caller, id, &reason)?;
                Ok(match earlier.is_empty() && next.is_none() {
                    true => Value::Null,
                    false => json!({ "earlier": earlier, "next": next }),
                })
            }
            Self::RequestApproval { id, purpose } => {
                let request = vault.request_approval(caller, id, &purpose)?;
                // No more than an agent is told of any closed memory.
                Ok(match vault.place_of(caller, id)? {
                    Some((level, namespace)) => {
                        json!({ "request": request, "level": level, "namespace": namespace })
                    }
                    None => json!({ "request": request }),
                })
            }
            Self::Approval { request } => match vault.approval(caller, request)? {
                Some(approval) => Ok(json!({ "stand": approval.stand, "valid": approval.valid })),
                None => Ok(json!({ "stand": null })),
            },
            Self::EnterLockdown { reason } => vault.enter_lockdown(caller, &reason).map(done),
            Self::Status {} => {
                let (mut status, used) = vault.status_for(caller)?;
                (status.boundary_key, status.memory) = (None, None);
                // Why the owner, or another agent, stopped everything is not every agent's to know.
                if let Some(lockdown) =
                    status.lockdown.as_mut().filter(|lockdown| lockdown.by != caller.name())
                {
                    lockdown.reason.clear();
                }
                let mut status = value(status)?;
                if let Caller::Agent(agent) = caller {
                    // How far it reaches is no secret from the agent itself.
                    status["agent"] = json!({
                        "name": agent.name, "namespaces": agent.namespaces, "highest": agent.highest,
                        "writes": agent.writes, "quota": agent.quota(), "used": used,
                    });
                }
                Ok(status)
            }
            Self::Verify {} => value(vault.verify_for(caller)?),
        }
    }
}

impl StoreVerb {
    fn into_memory(self) -> Result<NewMemory, VaultError> {
        Ok(NewMemory {
            content: self.content.bytes()?,
            level: self.level,
            namespace: self.namespace,
            metadata: self.metadata,
            searchable: self.searchable,
            intents: self.intents,
            source: self.source,
            trust: self.trust,
            ttl: self.ttl.map(Duration::from_secs),
            no_ttl: self.no_ttl,
            cooldown: self.cooldown.map(Duration::from_secs),
            supersedes: self.supersedes,
            profile: self.profile,
            no_profile: self.no_profile,
            tombstone: self.tombstone,
        })
    }
}

pub(super) fn value(of: impl Serialize) -> Result<Value, VaultError> {
    serde_json::to_value(of).map_err(|error| VaultError::Database(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_content_and_no_code() {
        let memory = json!({
            "content": { "text": "words" }, "level": 2, "namespace": "home", "metadata": { "person": "words" }, "source": "words",
        });
        let verb: AgentVerb = serde_json::from_value(json!({ "verb": "store", "memory": memory })).unwrap();
        let code: RecoveryVerb =
            serde_json::from_value(json!({ "verb": "confirm-codes", "code": "words" })).unwrap();
        let shown = format!("{verb:?} {code:?}");
        assert!(!shown.contains("words") && shown.contains("home"), "{shown}");
    }
}
