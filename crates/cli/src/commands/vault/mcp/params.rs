//! What the tools take.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stvor_vault::daemon::{Content, StoreVerb};
use stvor_vault::{Level, MemoryId, Trust};

/// Contents that come with a search when the client does not say how many.
pub(super) const CONTENTS: u8 = 3;
/// Contents that come with a search at most.
pub(super) const MAX_CONTENTS: u8 = 10;

/// How far to believe a memory.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Tier {
    /// It came from outside: a page, a file, a message of somebody.
    Untrusted,
    /// You concluded it.
    Agent,
}

/// A memory to store.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Remember {
    /// What to remember, in full sentences that make sense on their own.
    pub(super) content: String,
    /// How well it is kept: 0 gone with this session, 1 ordinary (default), 2 private, 3 sealed, 4 vaulted.
    #[schemars(range(min = 0, max = 5))]
    pub(super) level: Option<u8>,
    /// Whose memories, or which project's. The configured one if not given.
    pub(super) namespace: Option<String>,
    /// What is known about it, for example {"person": "Ann"}.
    pub(super) metadata: Option<BTreeMap<String, String>>,
    /// Goals that it serves, to find it by.
    pub(super) intents: Option<Vec<String>>,
    /// Where it is from, for example a URL or "user".
    pub(super) source: Option<String>,
    /// How far to believe it. `untrusted` (default) for anything that came from outside.
    pub(super) trust: Option<Tier>,
    /// Seconds that it lives.
    pub(super) ttl_seconds: Option<u64>,
}

impl Remember {
    /// As the daemon takes it.
    pub(super) fn into_memory(
        self,
        namespace: String,
        supersedes: Option<MemoryId>,
    ) -> Result<StoreVerb, String> {
        let level = Level::try_from(self.level.unwrap_or(1)).map_err(|error| error.to_string())?;
        Ok(StoreVerb {
            content: Content::Text(self.content),
            level,
            namespace,
            metadata: self.metadata.unwrap_or_default(),
            searchable: Vec::new(),
            intents: self.intents.unwrap_or_default(),
            source: self.source.unwrap_or_default(),
            trust: match self.trust {
                Some(Tier::Agent) => Trust::Agent,
                Some(Tier::Untrusted) | None => Trust::Untrusted,
            },
            ttl: self.ttl_seconds,
            cooldown: None,
            supersedes,
            profile: None,
            tombstone: None,
        })
    }
}

/// A memory to recall.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Recall {
    /// The memory's id.
    pub(super) id: String,
    /// What for. Needed from level 3 on: the words of the approved purpose.
    pub(super) justification: Option<String>,
}

/// Words to find.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Search {
    /// 1 to 16 words; all have to be there.
    pub(super) query: String,
    /// Where. The configured namespace if not given.
    pub(super) namespace: Option<String>,
    /// How many of the best come with their content (default 3, at most 10).
    #[schemars(range(min = 0, max = 10))]
    pub(super) contents: Option<u8>,
}

/// A page of memories.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct List {
    /// Where. The configured namespace if not given.
    pub(super) namespace: Option<String>,
    /// Where the page before ended (`next`).
    pub(super) before: Option<i64>,
}

/// A correction.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Update {
    /// The memory that is corrected.
    pub(super) id: String,
    #[serde(flatten)]
    pub(super) memory: Remember,
}

/// A memory to destroy.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Forget {
    /// The memory's id.
    pub(super) id: String,
    /// Why.
    pub(super) reason: Option<String>,
}

/// An approval to ask for.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct RequestApproval {
    /// The memory's id.
    pub(super) id: String,
    /// What for, in words that the owner can judge.
    pub(super) purpose: String,
}

/// What a client's user answers.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct Decided {
    /// I ran the command, or decided not to.
    pub(super) decided: bool,
}

rmcp::elicit_safe!(Decided);
