//! What an agent asked for that sent no request of its own.

use serde::Deserialize;

use crate::audit::Operation;

/// The owner's verbs that no agent has.
const OWNERS: &[&str] = &[
    "unlock",
    "lock",
    "act",
    "approvals",
    "approve",
    "deny",
    "leave-lockdown",
    "end-pause",
    "enrol",
    "remove-agent",
    "agents",
    "namespaces",
    "prove",
    "purge",
    "log",
    "change-secret",
    "metrics",
    "recovery",
    "keys",
];

#[derive(Deserialize)]
struct Named {
    verb: String,
}

/// What the log says of something that is no request of an agent: nothing of its words but the name of a verb of the owner.
pub(super) fn asked(bytes: &[u8]) -> (Operation, Option<&'static str>) {
    let named = serde_json::from_slice::<Named>(bytes).ok();
    match named.and_then(|Named { verb }| OWNERS.iter().copied().find(|name| *name == verb)) {
        Some(name) => (Operation::ActAsOwner, Some(name)),
        None => (Operation::NotUnderstood, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::{AgentVerb, OwnerVerb};

    /// The names that an unknown one is told of.
    fn verbs<T: serde::de::DeserializeOwned>() -> Vec<String> {
        let Err(error) = serde_json::from_str::<T>(r#"{"verb":"?"}"#) else { panic!("`?` is a verb") };
        error.to_string().split('`').skip(3).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn every_verb_that_only_the_owner_has_is_known_by_its_name() {
        let agents = verbs::<AgentVerb>();
        assert!(agents.iter().any(|name| name == "recall"), "{agents:?}");
        let mut owners = verbs::<OwnerVerb>();
        owners.retain(|name| !agents.contains(name));
        assert_eq!(owners, OWNERS);
    }

    #[test]
    fn of_what_was_sent_nothing_is_said_but_a_verb_of_the_owner() {
        let owners = br#"{"verb":"unlock","root":"words","vaulted":7}"#;
        assert_eq!(asked(owners), (Operation::ActAsOwner, Some("unlock")));
        for sent in [r#"{"verb":"status","more":1}"#, r#"{"verb":"words"}"#, r#""unlock""#, "words", ""] {
            assert_eq!(asked(sent.as_bytes()), (Operation::NotUnderstood, None), "{sent}");
        }
    }
}
