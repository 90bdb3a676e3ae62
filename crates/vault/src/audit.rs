//! Events: what each operation leaves in the log.

use serde::{Deserialize, Serialize};

use crate::clock::Moment;
use crate::level::Level;
use crate::memory::MemoryId;
use crate::proofs::Commitments;

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Operation {
    /// The vault was made.
    Init,
    /// The owner's session began.
    Unlock,
    /// The owner's session ended.
    Lock,
    /// The vault was closed.
    Close,
    /// A memory was stored.
    Store,
    /// A memory was recalled.
    Recall,
    /// Memories were searched.
    Search,
    /// Memories were listed.
    List,
    /// Another memory corrects this one.
    Supersede,
    /// A memory's key was destroyed.
    Forget,
    /// A memory was closed for good.
    Tombstone,
    /// A memory whose time ran out was destroyed.
    Purge,
    /// An intent was linked.
    Link,
    /// An intent was unlinked.
    Unlink,
    /// The owner ended a pause between two recalls.
    EndPause,
    /// An approval was asked for.
    RequestApproval,
    /// The owner approved.
    Approve,
    /// The owner denied.
    Deny,
    /// Everything was stopped.
    EnterLockdown,
    /// And let go again.
    LeaveLockdown,
    /// An agent was enrolled.
    EnrolAgent,
    /// An agent was removed.
    RemoveAgent,
    /// The owner's secret was changed.
    ChangeSecret,
    /// The key that signs the log was changed.
    RotateSigningKey,
    /// The root key was changed, and every key that follows from it.
    RotateRootKey,
    /// A profile was made.
    MakeProfile,
    /// A profile's key was opened.
    OpenProfile,
    /// It was closed.
    CloseProfile,
    /// The secret that opens a profile was changed.
    ChangeProfileSecret,
    /// A profile's key was changed, for some of its memories or all that are left.
    RotateProfileKey,
    /// A memory's own key was wrapped anew; its content is the same.
    Rewrap,
    /// Somebody tried to enter with a credential that is not known.
    Enter,
    /// Somebody tried to act as the owner without the owner's secret.
    ActAsOwner,
    /// An agent sent something that is no request.
    NotUnderstood,
    /// A backup was made.
    Backup,
    /// The vault was brought back from backups.
    Restore,
    /// The owner's keys were split into shares.
    Escrow,
    /// The owner's keys came back from shares.
    Recover,
    /// The dead-man switch was armed, made anew or disarmed.
    ArmSwitch,
    /// The owner said to be there.
    CheckIn,
    /// A physical token or a one-time-code app was enrolled.
    EnrolToken,
    /// It was removed.
    RemoveToken,
    /// A physical token answered.
    PresentToken,
    /// A commitment to a memory, for proofs; it says nothing of which.
    Commit,
    /// A memory was committed to, or something was proved of it.
    Prove,
    /// A statement was signed.
    Attest,
    /// Refused requests that were not logged one by one.
    Suppressed,
    /// The log was written to a file.
    Archive,
    /// An agent asked whether everything is sound.
    Verify,
    /// The owner accepted that no checkpoint was left outside.
    AcceptCheckpoints,
    /// Events that an archive holds were removed from the database.
    Prune,
    /// A record was written that no other event tells of.
    Record,
}

/// One leaf of the log. It is stored and hashed as this JSON; free text appears as a keyed hash only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// When.
    pub at: Moment,
    /// An agent's name, or `owner`, or `vault`.
    pub actor: String,
    /// What.
    pub operation: Operation,
    /// On which memory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory: Option<MemoryId>,
    /// Of which level.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub level: Option<Level>,
    /// The code of the refusal; nothing if it was allowed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
    /// Keyed hash of the content; where events were removed, the digest of which ones; where the session began, the fingerprint of
    /// the boundary daemon's key.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub content: Option<String>,
    /// Keyed hash of what was said to it: justification, reason, search words; of an agent that tried to act as the owner, the verb.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub text: Option<String>,
    /// Digest of the memory's row after the operation, where it changed the row.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub row: Option<String>,
    /// Commitments, in a leaf that holds nothing else.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub commitment: Option<Commitments>,
    /// How many memories were found, requests refused, or events removed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub count: Option<u64>,
    /// A justification, purpose or reason in its words. It is sealed beside the event and no part of what is hashed: the
    /// event can be proved to others without it.
    #[serde(skip)]
    pub said: Option<String>,
}

impl Event {
    /// An event with nothing but who and what.
    #[must_use]
    pub fn new(at: Moment, actor: &str, operation: Operation) -> Self {
        Self {
            at,
            actor: actor.to_owned(),
            operation,
            memory: None,
            level: None,
            refused: None,
            content: None,
            text: None,
            row: None,
            commitment: None,
            count: None,
            said: None,
        }
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0'));
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
