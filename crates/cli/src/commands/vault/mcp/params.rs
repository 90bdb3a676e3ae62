//! What the tools take.

use std::collections::BTreeMap;

use rmcp::ErrorData;
use rmcp::handler::server::common::FromContextPart;
use rmcp::handler::server::tool::ToolCallContext;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stvor_vault::daemon::{Content, StoreVerb};
use stvor_vault::{Level, MemoryId, Trust};

/// Contents that come with a search when the client does not say how many.
pub(super) const CONTENTS: u8 = 3;
/// Contents that come with a search at most.
pub(super) const MAX_CONTENTS: u8 = 10;

/// A tool's arguments, or what is wrong with them. It is told as the tool's result: a model reads that, and tries again, while
/// an error of the protocol ends with its client.
pub(super) struct Given<T>(pub(super) Result<T, String>);

impl<S, T: DeserializeOwned> FromContextPart<ToolCallContext<'_, S>> for Given<T> {
    fn from_context_part(context: &mut ToolCallContext<'_, S>) -> Result<Self, ErrorData> {
        let arguments = Value::Object(context.arguments.take().unwrap_or_default());
        let read = serde_json::from_value(arguments);
        Ok(Self(read.map_err(|error| format!("the arguments are not what the tool takes: {error}"))))
    }
}

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
#[serde(deny_unknown_fields)]
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
    pub(super) fn into_memory(self, supersedes: Option<MemoryId>) -> Result<StoreVerb, String> {
        // A correction is kept as what it corrects where it does not say.
        let level = self.level.or(supersedes.is_none().then_some(1));
        let level = level.map(Level::try_from).transpose().map_err(|error| error.to_string())?;
        Ok(StoreVerb {
            content: Content::Text(self.content),
            level,
            namespace: self.namespace,
            metadata: self.metadata.unwrap_or_default(),
            searchable: Vec::new(),
            intents: self.intents.unwrap_or_default(),
            source: self.source.unwrap_or_default(),
            trust: match self.trust {
                Some(Tier::Agent) => Trust::Agent,
                Some(Tier::Untrusted) | None => Trust::Untrusted,
            },
            ttl: self.ttl_seconds,
            no_ttl: false,
            cooldown: None,
            supersedes,
            profile: None,
            no_profile: false,
            tombstone: None,
        })
    }
}

/// A memory to recall.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Recall {
    /// The memory's id.
    pub(super) id: String,
    /// What for. Needed from level 3 on: the words of the approved purpose.
    pub(super) justification: Option<String>,
}

/// Words to find.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
pub(super) struct List {
    /// Where. The configured namespace if not given.
    pub(super) namespace: Option<String>,
    /// Where the page before ended (`next`).
    pub(super) before: Option<String>,
}

/// A correction.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Update {
    /// The memory that is corrected.
    pub(super) id: String,
    /// What to remember in its place, in full sentences that make sense on their own.
    content: String,
    /// How well it is kept: that of the corrected memory if not given, and never lower.
    #[schemars(range(min = 0, max = 5))]
    level: Option<u8>,
    /// Whose memories, or which project's. That of the corrected memory if not given.
    namespace: Option<String>,
    /// What is known about it, for example {"person": "Ann"}.
    metadata: Option<BTreeMap<String, String>>,
    /// Goals that it serves, to find it by.
    intents: Option<Vec<String>>,
    /// Where it is from, for example a URL or "user".
    source: Option<String>,
    /// How far to believe it. `untrusted` (default) for anything that came from outside.
    trust: Option<Tier>,
    /// Seconds that it lives. What is left of the corrected memory's time if not given.
    ttl_seconds: Option<u64>,
}

impl Update {
    /// What is stored. Two types with the same fields: a flattened one could not refuse a field that it does not know.
    pub(super) fn into_remember(self) -> Remember {
        let Self { id: _, content, level, namespace, metadata, intents, source, trust, ttl_seconds } = self;
        Remember { content, level, namespace, metadata, intents, source, trust, ttl_seconds }
    }
}

/// Nothing: the tool takes no arguments.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// A memory to destroy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Forget {
    /// The memory's id.
    pub(super) id: String,
    /// Why.
    pub(super) reason: Option<String>,
    /// Whether the earlier versions that it corrected are destroyed, too (default false: they stay, and can be recalled). Say true
    /// when the user asked to delete what it says.
    pub(super) with_earlier: Option<bool>,
}

/// A memory that may be destroyed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WouldForget {
    /// The memory's id.
    pub(super) id: String,
    /// Whether the earlier versions that it corrected are to be destroyed, too (default false).
    pub(super) with_earlier: Option<bool>,
}

/// An approval to ask for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
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
