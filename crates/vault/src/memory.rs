//! What a memory is.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stvor_base::ContentId;
use stvor_crypto::SecretBytes;

use crate::backup::BackupRecord;
use crate::level::Level;
use crate::{VaultError, limits};

/// The name of a memory: 16 random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemoryId(ContentId);

impl MemoryId {
    /// From its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(ContentId::from_bytes(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for MemoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that is no name of a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id is 32 hexadecimal digits, as `stvor vault list` shows them")]
pub struct NoMemoryId;

impl FromStr for MemoryId {
    type Err = NoMemoryId;

    fn from_str(text: &str) -> Result<Self, NoMemoryId> {
        text.parse().map(Self).map_err(|_| NoMemoryId)
    }
}

impl TryFrom<String> for MemoryId {
    type Error = NoMemoryId;

    fn try_from(text: String) -> Result<Self, NoMemoryId> {
        text.parse()
    }
}

impl From<MemoryId> for String {
    fn from(id: MemoryId) -> Self {
        id.to_string()
    }
}

/// How far to believe what a memory says: in this order, more and more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// It came from outside: a page, a file, a message of somebody.
    #[default]
    Untrusted,
    /// An agent concluded it.
    Agent,
    /// The owner said it.
    Owner,
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untrusted => "untrusted",
            Self::Agent => "agent",
            Self::Owner => "owner",
        })
    }
}

/// What holds for the name of a namespace.
pub(crate) const NAMESPACE: &str =
    "a namespace has 1 to 256 bytes, no control characters, and does not begin with $serde_json::";

/// What intents have to be.
pub(crate) const INTENT: &str =
    "an intent has 1 to 256 bytes, no control characters, and does not begin with $serde_json::";

/// How many intents a memory may have.
pub(crate) const INTENTS: &str = "a memory has at most 32 intents";

/// What the keys of metadata have to be.
const KEY: &str =
    "a metadata key has 1 to 256 bytes, no control characters, and does not begin with $serde_json::";

/// Whether a text can be the name of a namespace, an intent or a metadata entry.
///
/// A map that begins with a key of the parser's own is no map to whoever reads an answer: one such name would make lists unreadable.
pub(crate) fn is_name(text: &str) -> bool {
    let fits = !text.is_empty() && text.len() <= limits::MAX_NAME;
    fits && !text.contains(char::is_control) && !text.starts_with("$serde_json::")
}

/// A memory that is to be stored.
///
/// One that corrects another one ([`NewMemory::supersedes`]) is kept as that one is where it does not say otherwise: at its level,
/// in its namespace, with its profile and pause, and as long as it would have lived.
#[derive(Debug)]
pub struct NewMemory {
    /// What is remembered, at most [`limits::MAX_CONTENT`] bytes.
    pub content: SecretBytes,
    /// How well it is kept. Of a correction nothing stands for the level of what it corrects; only the owner gives it a lower one.
    pub level: Option<Level>,
    /// Whose, or which project's, for example `project/stvor`. Of a correction nothing stands for the namespace of what it
    /// corrects.
    pub namespace: Option<String>,
    /// What is known about it. Sealed on disk, as the content is.
    pub metadata: BTreeMap<String, String>,
    /// Keys of `metadata` by whose values the owner may search also above level 2.
    pub searchable: Vec<String>,
    /// What it serves.
    pub intents: Vec<String>,
    /// Where it is from.
    pub source: String,
    /// How far to believe it.
    pub trust: Trust,
    /// How long it lives. Level 0 lives [`limits::EPHEMERAL_TTL`] at most. Of a correction nothing stands for what is left of the
    /// time of what it corrects; the end that comes with level 0 is not passed on to a higher level.
    pub ttl: Option<Duration>,
    /// That a correction has no end of its own, also when what it corrects has one.
    pub no_ttl: bool,
    /// The pause between two recalls; [`limits::COOLDOWN`] from level 3 on when it is not said. An agent may ask for
    /// [`limits::MAX_COOLDOWN_OF_AGENT`] at most, and for no less than that from level 3 on; below level 3 its pauses bind
    /// agents only. Of a correction nothing stands for the pause of what it corrects.
    pub cooldown: Option<Duration>,
    /// The memory that this one corrects.
    pub supersedes: Option<MemoryId>,
    /// The profile whose key it takes, too, to read it. Of a correction nothing stands for the profile of what it corrects; only
    /// the owner gives it another one.
    pub profile: Option<String>,
    /// That a correction takes the key of no profile, also when what it corrects takes one. Only the owner says that.
    pub no_profile: bool,
    /// Why it is closed for good as it is stored: for what is taken over from elsewhere and was closed there. It can never be
    /// recalled.
    pub tombstone: Option<String>,
}

impl NewMemory {
    /// A memory with nothing but content, level and namespace.
    #[must_use]
    pub fn new(content: &[u8], level: Level, namespace: &str) -> Self {
        Self {
            content: SecretBytes::from_slice(content),
            level: Some(level),
            namespace: Some(namespace.to_owned()),
            metadata: BTreeMap::new(),
            searchable: Vec::new(),
            intents: Vec::new(),
            source: String::new(),
            trust: Trust::default(),
            ttl: None,
            no_ttl: false,
            cooldown: None,
            supersedes: None,
            profile: None,
            no_profile: false,
            tombstone: None,
        }
    }

    /// A memory with nothing but content that corrects another one, and is kept as that one is.
    #[must_use]
    pub fn correcting(older: MemoryId, content: &[u8]) -> Self {
        let (level, namespace, supersedes) = (None, None, Some(older));
        Self { level, namespace, supersedes, ..Self::new(content, Level::Working, "") }
    }

    /// Whether everything is within its limit.
    pub(crate) fn check(&self) -> Result<(), VaultError> {
        let name = is_name;
        let rules = [
            (!self.content.is_empty(), "a memory has content"),
            (self.content.len() <= limits::MAX_CONTENT, "a content has at most 1048576 bytes"),
            (self.namespace.as_deref().is_none_or(name), NAMESPACE),
            (
                self.supersedes.is_some() || (self.level.is_some() && self.namespace.is_some()),
                "a memory that corrects no other one says its level and its namespace",
            ),
            (self.ttl.is_none() || !self.no_ttl, "a memory has an end or none"),
            (self.profile.is_none() || !self.no_profile, "a memory has a profile or none"),
            (self.source.len() <= limits::MAX_NAME, "a source has at most 256 bytes"),
            (self.metadata.len() <= limits::MAX_METADATA, "a memory has at most 64 metadata entries"),
            (self.intents.len() <= limits::MAX_INTENTS, INTENTS),
            (self.intents.iter().all(|intent| name(intent)), INTENT),
            (self.metadata.keys().all(|key| name(key)), KEY),
            (
                self.metadata.values().all(|value| value.len() <= limits::MAX_TEXT),
                "a metadata value has at most 4096 bytes",
            ),
            (
                self.searchable.iter().all(|key| self.metadata.contains_key(key)),
                "only metadata that is there can be searchable",
            ),
            (
                self.cooldown.is_none_or(|pause| pause <= limits::MAX_COOLDOWN),
                "a cooldown is at most 366 days",
            ),
            (
                self.tombstone.as_ref().is_none_or(|reason| reason.len() <= limits::MAX_TEXT),
                "a reason has at most 4096 bytes",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(VaultError::invalid(*rule)),
            None => Ok(()),
        }
    }
}

/// What became of a memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It can be recalled.
    #[default]
    Live,
    /// Another one corrects it; it can still be recalled.
    Superseded,
    /// It is kept for the record and can never be recalled again.
    Tombstoned,
    /// Its key and content are destroyed.
    Forgotten,
    /// Its time ran out; its key and content are destroyed.
    Expired,
}

/// Everything about a memory but its content. On disk it is sealed as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Its name.
    pub id: MemoryId,
    /// How well it is kept.
    pub level: Level,
    /// Whose, or which project's.
    pub namespace: String,
    /// Who stored it: an agent's name, or `owner`.
    pub creator: String,
    /// When, in milliseconds since the Unix epoch.
    pub created: u64,
    /// When its time runs out.
    pub expires: Option<u64>,
    /// The pause between two recalls, in milliseconds.
    pub cooldown: u64,
    /// What is known about it.
    pub metadata: BTreeMap<String, String>,
    /// Keys of `metadata` that may be searched above level 2.
    pub searchable: Vec<String>,
    /// What it serves.
    pub intents: Vec<String>,
    /// Where it is from.
    pub source: String,
    /// How far to believe it.
    pub trust: Trust,
    /// The memory that this one corrects.
    pub supersedes: Option<MemoryId>,
    /// The memory that corrects this one.
    pub superseded_by: Option<MemoryId>,
    /// The profile whose key it takes, too, to read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Bytes of content.
    pub length: u64,
    /// Keyed hash of the content, in hexadecimal digits.
    pub content_hash: String,
    /// What became of it.
    pub state: State,
    /// When that was decided, for states other than [`State::Live`].
    pub state_since: Option<u64>,
    /// Why, in the words of who decided.
    pub state_reason: String,
    /// How many events the log had when key and content were destroyed. Vaults of before do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destroyed_at: Option<u64>,
    /// Whether all but id, level and namespace is held back from who asked. It is never stored.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub closed: bool,
}

impl Header {
    /// What somebody wrote about the memory: its source, intents, metadata, and why it ended.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        let metadata = self.metadata.iter().flat_map(|(key, value)| [key, value]);
        let all = [&self.source, &self.state_reason].into_iter().chain(&self.intents).chain(metadata);
        all.map(String::as_str).filter(|text| !text.is_empty())
    }

    /// What is bound to the content by its authenticated encryption: nothing of it can change later.
    pub(crate) fn bound(&self) -> Vec<u8> {
        let mut out = stvor_base::codec::Writer::with_capacity(64);
        out.raw(b"STVOR memory v1").raw(self.id.as_bytes()).u8(self.level.number());
        out.bytes(self.namespace.as_bytes()).u64(self.expires.unwrap_or(u64::MAX)).u64(self.cooldown);
        out.u64(self.created).bytes(self.creator.as_bytes()).u64(self.length);
        if let Some(profile) = &self.profile {
            out.bytes(profile.as_bytes());
        }
        out.finish()
    }

    /// What is shown of a memory to who may know that it is there, and no more. Each field is named, so that no new one is shown
    /// unthought.
    pub(crate) fn closed(self) -> Self {
        Self {
            id: self.id,
            level: self.level,
            namespace: self.namespace,
            creator: String::new(),
            created: 0,
            expires: None,
            cooldown: 0,
            metadata: BTreeMap::new(),
            searchable: Vec::new(),
            intents: Vec::new(),
            source: String::new(),
            trust: Trust::default(),
            supersedes: None,
            superseded_by: None,
            profile: None,
            length: 0,
            content_hash: String::new(),
            state: State::default(),
            state_since: None,
            state_reason: String::new(),
            destroyed_at: None,
            closed: true,
        }
    }

    /// The same without what somebody wrote about it, where an answer has no room for more.
    pub(crate) fn in_short(self) -> Self {
        Self {
            metadata: BTreeMap::new(),
            searchable: Vec::new(),
            intents: Vec::new(),
            source: String::new(),
            state_reason: String::new(),
            ..self
        }
    }

    /// Whether key and content are gone.
    pub(crate) const fn is_destroyed(&self) -> bool {
        matches!(self.state, State::Forgotten | State::Expired)
    }

    /// Why it can not be recalled, if it can not.
    pub(crate) fn gone(&self, now: u64) -> Option<&'static str> {
        match self.state {
            State::Tombstoned => Some("it was tombstoned"),
            State::Forgotten => Some("it was forgotten"),
            State::Expired => Some("its time ran out"),
            State::Live | State::Superseded if self.expires.is_some_and(|end| end <= now) => {
                Some("its time ran out")
            }
            State::Live | State::Superseded => None,
        }
    }
}

/// A memory that was recalled.
#[derive(Debug)]
pub struct Recalled {
    /// Everything but the content.
    pub header: Header,
    /// What is remembered.
    pub content: SecretBytes,
}

/// Memories that were found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// At most [`limits::MAX_PAGE`].
    pub memories: Vec<Header>,
    /// Whether there are more, or may be: a narrower question finds them.
    pub more: bool,
}

/// What became of memories whose time ran out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purged {
    /// So many were destroyed.
    pub ended: usize,
    /// So many are left: their rows are damaged ([`crate::Vault::verify`] names them), or the clock is far ahead of what was seen of it.
    pub left: usize,
}

/// What the forgetting of a memory reached beside it, and what it did not reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Earlier versions, which it corrected, that were destroyed with it, newest first.
    pub ended: Vec<MemoryId>,
    /// Earlier versions that the caller may know of and that are left: their content is there, and those that were not closed for
    /// good can be recalled. Newest first.
    pub earlier: Vec<MemoryId>,
    /// The next earlier version, where there are more than one request looks at: forgetting that one goes on.
    pub next: Option<MemoryId>,
    /// Whether the memory itself was destroyed before, and not with this request.
    pub before: bool,
    /// Backups that this vault made while the memory, or an earlier version that was destroyed with it, was there, oldest first, also those whose file is not where it was written
    /// to. No restore brings the memory back from them, but who has such a file and the owner's secret of that time can read it.
    pub backups: Vec<BackupRecord>,
}

/// What forgetting a memory would destroy, as the caller sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WouldForget {
    /// What would be destroyed, newest first: the memory itself, if its content is there, and earlier versions.
    pub forgets: Vec<Header>,
    /// Earlier versions that would be left with their contents, newest first. When the answer is full
    /// ([`limits::MAX_PAGE_BYTES`]), those that still come have no metadata, intents, source and reason.
    pub keeps: Vec<Header>,
    /// The next earlier version, where there are more than one request looks at, or one answer holds: asking for that one goes on.
    pub next: Option<MemoryId>,
}

/// What closing a memory for good did not reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tombstoned {
    /// Earlier versions, which it corrected, that the caller may know of and that can still be recalled. Newest first.
    pub earlier: Vec<MemoryId>,
    /// The next earlier version, where there are more than one request looks at.
    pub next: Option<MemoryId>,
}
