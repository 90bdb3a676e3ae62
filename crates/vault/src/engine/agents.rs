//! Who asks: the owner, or an agent with a credential that the owner minted.

use core::fmt;

use serde::{Deserialize, Serialize};
use stvor_crypto::{Secret, SecretBytes};

use super::Engine;
use crate::audit::{Event, Operation, hex};
use crate::error::Refusal;
use crate::level::Level;
use crate::storage::Table;
use crate::{VaultError, limits};

/// What the owner is called in the log.
pub(crate) const OWNER: &str = "owner";
/// What those are called in the log who are nobody that the vault knows.
const STRANGER: &str = "stranger";
/// Somebody at the owner's socket who proved nothing.
pub(crate) const UNPROVED: &str = "owner-socket";
/// How a credential begins.
const PREFIX: &str = "stvor_agent_";

/// Which memories an agent may correct, link and end, below level 3.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ends {
    /// Those that it stored.
    #[default]
    Own,
    /// All in its namespaces.
    Any,
}

impl Ends {
    fn is_own(&self) -> bool {
        *self == Self::Own
    }
}

/// An agent that the owner enrolled, and how far it reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Its name in the log.
    pub name: String,
    /// Namespaces that it may use: each a name, or the beginning of names with a star behind.
    pub namespaces: Vec<String>,
    /// The highest level that it may store and ask for.
    pub highest: Level,
    /// Whether it may store, and correct, link and end what [`Agent::ends`] says.
    pub writes: bool,
    /// Bytes that its memories may take, with what is known of each; [`limits::AGENT_BYTES`] when it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<u64>,
    /// Which memories it may correct, link and end.
    #[serde(default, skip_serializing_if = "Ends::is_own")]
    pub ends: Ends,
    /// Bytes that its requests may add to the log in a day; [`limits::AGENT_LOG_BYTES`] when it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_quota: Option<u64>,
}

impl Agent {
    /// An agent that may write, with every other setting as when it is not said.
    #[must_use]
    pub fn new(name: &str, namespaces: &[&str], highest: Level) -> Self {
        let namespaces = namespaces.iter().map(|&namespace| namespace.to_owned()).collect();
        let (quota, ends, log_quota) = (None, Ends::default(), None);
        Self { name: name.to_owned(), namespaces, highest, writes: true, quota, ends, log_quota }
    }

    /// Bytes that its requests may add to the log in a day.
    #[must_use]
    pub fn log_quota(&self) -> u64 {
        self.log_quota.unwrap_or(limits::AGENT_LOG_BYTES)
    }

    /// Bytes that its memories may take.
    #[must_use]
    pub fn quota(&self) -> u64 {
        self.quota.unwrap_or(limits::AGENT_BYTES)
    }
}

/// Who asks. Getting an agent's takes its credential ([`crate::Vault::authenticate`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// The owner. The daemon lets nobody be this who did not answer its challenge.
    Owner,
    /// An agent.
    Agent(Agent),
}

impl Caller {
    /// The name in the log.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Owner => OWNER,
            Self::Agent(agent) => &agent.name,
        }
    }

    pub(crate) fn is_owner(&self) -> bool {
        matches!(self, Self::Owner)
    }

    /// Refuses who asks about a namespace that is none of its own. How far an agent reaches is no secret from it.
    pub(crate) fn must_reach(&self, namespace: &str) -> Result<(), Refusal> {
        match self.reaches(namespace) {
            true => Ok(()),
            false => Err(Refusal::NotAllowed { what: "use this namespace" }),
        }
    }

    /// Whether the caller may know of what is in a namespace.
    pub(crate) fn reaches(&self, namespace: &str) -> bool {
        match self {
            Self::Owner => true,
            Self::Agent(agent) => agent.namespaces.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(beginning) => namespace.starts_with(beginning),
                None => pattern == namespace,
            }),
        }
    }

    /// Whether the caller may have to do with a level.
    pub(crate) fn may_have(&self, level: Level) -> bool {
        match self {
            Self::Owner => true,
            Self::Agent(agent) => level <= agent.highest,
        }
    }

    pub(crate) fn must_write(&self) -> Result<(), Refusal> {
        match self {
            Self::Agent(agent) if !agent.writes => Err(Refusal::NotAllowed { what: "change memories" }),
            _ => Ok(()),
        }
    }
}

/// A credential, shown once. The vault keeps a keyed hash of it.
pub struct Credential(SecretBytes);

impl Credential {
    /// The text that the agent presents.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.0.expose()
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Engine {
    fn credential_key(&self, credential: &[u8]) -> Result<Vec<u8>, VaultError> {
        Ok(self.held()?.base.hash("credential", credential).expose().to_vec())
    }

    /// Enrols an agent and mints its credential.
    pub(crate) fn enrol(&mut self, agent: &Agent) -> Result<Credential, VaultError> {
        let mut event = Event::new(self.clock.now(), OWNER, Operation::EnrolAgent);
        event.level = Some(agent.highest);
        self.audited(event, |engine, event| {
            engine.no_lockdown()?;
            event.text = Some(engine.keyed("agent", agent.name.as_bytes())?);
            let named = !agent.name.is_empty()
                && agent.name.len() <= limits::MAX_NAME
                && ![OWNER, STRANGER, UNPROVED, "vault"].contains(&agent.name.as_str())
                && agent.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@/".contains(c));
            if !named {
                return Err(VaultError::invalid(
                    "an agent's name has letters, digits and -_.@/, and is not `owner`, `owner-socket`, `vault` or `stranger`",
                ));
            }
            let agents = engine.agents()?;
            if agents.len() >= limits::MAX_AGENTS || agents.iter().any(|known| known.name == agent.name) {
                return Err(VaultError::invalid(
                    "an agent of this name is enrolled, or there are 1000 already",
                ));
            }
            let secret = Secret::<32>::random(&mut engine.rng)?;
            let credential = SecretBytes::from(format!("{PREFIX}{}", hex(secret.expose())).into_bytes());
            let key = engine.credential_key(credential.expose())?;
            let plain = serde_json::to_vec(agent).map_err(|error| VaultError::Database(error.to_string()))?;
            let held = engine.held.as_ref().ok_or(VaultError::Refused(Refusal::Cold))?;
            let sealed = held.base.rows.seal(&mut engine.rng, &key, &plain)?;
            engine.database.put_record(Table::Agent, &key, &sealed)?;
            Ok(Credential(credential))
        })
    }

    /// Removes an agent; its credential is worth nothing from here on.
    pub(crate) fn remove_agent(&mut self, name: &str) -> Result<(), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::RemoveAgent);
        self.audited(event, |engine, event| {
            engine.log_suppressed(&event.at, |(actor, _), _| actor == name)?;
            event.text = Some(engine.keyed("agent", name.as_bytes())?);
            let known = engine.agent_records()?.into_iter().find(|(_, agent)| agent.name == name);
            let unknown = || VaultError::unknown(format!("agent {name}"));
            let (key, _) = known.ok_or_else(unknown)?;
            engine.database.remove_record(Table::Agent, &key)?;
            engine.drop_budget(name)?;
            engine.drop_reads(name);
            engine.database.add_ended(&engine.revoked(&key)?)?;
            // Another agent of this name inherits no grant, and nobody is kept from asking by who is gone.
            for approval in engine.approvals()?.into_iter().filter(|approval| approval.agent == name) {
                engine.database.remove_record(Table::Approval, approval.id.as_bytes())?;
            }
            Ok(())
        })
    }

    pub(super) fn agent_records(&self) -> Result<Vec<(Vec<u8>, Agent)>, VaultError> {
        let rows = &self.held()?.base.rows;
        let open = |(key, record): (Vec<u8>, Vec<u8>)| {
            let tampered = || VaultError::tampered("the record of an agent", "it does not open");
            let plain = rows.open(&key, &record).map_err(|_| tampered())?;
            let agent = serde_json::from_slice(plain.expose()).map_err(|_| tampered())?;
            Ok((key, agent))
        };
        let mut sound = Vec::new();
        for record in self.database.records(Table::Agent)? {
            // One that somebody changed lets nobody in, and keeps no other from being removed.
            sound.extend(self.sound(open(record))?);
        }
        Ok(sound)
    }

    /// All agents.
    pub(crate) fn agents(&self) -> Result<Vec<Agent>, VaultError> {
        Ok(self.agent_records()?.into_iter().map(|(_, agent)| agent).collect())
    }

    /// The agent that a credential is of. Who comes with an unknown one is logged.
    pub(crate) fn authenticate(&mut self, credential: &[u8]) -> Result<Caller, VaultError> {
        self.must_be_warm()?;
        let key = self.credential_key(credential)?;
        let Some(record) = self.database.record(Table::Agent, &key)? else {
            return self.refuse_stranger(Operation::Enter, "enter: its credential is not known");
        };
        let plain = self.held()?.base.rows.open(&key, &record);
        let tampered = || VaultError::tampered("the record of an agent", "it does not open");
        let plain = plain.map_err(|_| tampered())?;
        serde_json::from_slice(plain.expose()).map(Caller::Agent).map_err(|_| tampered())
    }

    /// Refuses somebody who is nobody that the vault knows, and logs it.
    pub(crate) fn refuse_stranger<T>(
        &mut self,
        operation: Operation,
        what: &'static str,
    ) -> Result<T, VaultError> {
        // Who knocks at one socket uses up nothing of what is logged of the other.
        let actor = if operation == Operation::ActAsOwner { UNPROVED } else { STRANGER };
        let event = Event::new(self.clock.now(), actor, operation);
        self.audited(event, |_, _| Err(Refusal::NotAllowed { what }.into()))
    }
}
