//! Events, as JavaScript is told of them.

use serde_json::json;
use stvor::{Event, Suite, UserId};

use crate::failure::finding;

/// An event's name and fields as JSON.
pub(crate) fn described(event: &Event) -> String {
    let fields = match event {
        Event::Reconnecting { attempt, after } => json!({"attempt": attempt, "after": after.as_millis()}),
        Event::Offline { code } | Event::StoreFailing { code } => json!({"code": code}),
        Event::ConversationFailed { peer, attempt, retry_after } => {
            json!({"peer": peer.as_str(), "attempt": attempt, "retryAfter": retry_after.as_millis()})
        }
        Event::TaskFailed { task, attempt, retry_after } => {
            json!({"task": task, "attempt": attempt, "retryAfter": retry_after.as_millis()})
        }
        Event::QueuePressure { queued, waiting, limit } => {
            json!({"queued": queued, "waiting": waiting, "limit": limit})
        }
        Event::CallsRejected { peer, calls } => json!({"peer": peer.as_str(), "calls": calls}),
        Event::IdentityChanged { peer, accepted } => json!({"peer": peer.as_str(), "accepted": accepted}),
        Event::IdentityRotated { peer, old, new, was_verified } => {
            json!({"peer": peer.as_str(), "old": old, "new": new, "wasVerified": was_verified})
        }
        Event::IdentitySuperseded { peer } => json!({"peer": peer.as_str()}),
        Event::IdentityForked { peer, pinned, shown } => {
            json!({"peer": peer.as_str(), "pinned": pinned, "shown": shown})
        }
        Event::SuiteMismatch { peer, ours, theirs } => {
            let name = |suite: &Suite| suite.name().to_ascii_lowercase();
            json!({"peer": peer.as_str(), "ours": name(ours), "theirs": name(theirs)})
        }
        Event::MessageUndecryptable { peer, code, repair_requested } => {
            json!({"peer": peer.as_str(), "code": code, "repairRequested": repair_requested})
        }
        Event::Repaired { peer, id } => json!({"peer": peer.as_str(), "id": id.to_string()}),
        Event::Receipt { peer, ids, state } => json!({
            "peer": peer.as_str(),
            "ids": ids.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "state": state.name(),
        }),
        Event::SessionStarted { peer } | Event::ConversationRevived { peer } => {
            json!({"peer": peer.as_str()})
        }
        Event::PrekeysLow { remaining } => json!({"remaining": remaining}),
        Event::PrekeysUploaded { count } => json!({"count": count}),
        Event::RollbackDetected { relay, own } => json!({"relay": relay, "own": own}),
        Event::CounterForged { relay } => json!({"relay": relay}),
        Event::SendDelayed { peer, code, retry_after } => {
            json!({"peer": peer.as_str(), "code": code, "retryAfter": retry_after.as_millis()})
        }
        Event::DeliveryFailed { peer, id, code } => {
            json!({"peer": peer.as_str(), "id": id.to_string(), "code": code})
        }
        Event::KeyfileCreated { path } => json!({"path": path.display().to_string()}),
        Event::DevelopmentMode { findings } | Event::StoreWeakened { findings } => {
            json!({"findings": findings.iter().map(finding).collect::<Vec<_>>()})
        }
        Event::Receiving { here } => json!({"here": here}),
        Event::GroupJoined { group, by } | Event::GroupLeft { group, by } => {
            json!({"group": group.to_string(), "by": by.as_str()})
        }
        Event::GroupChanged { group, by, joined, gone, name } => json!({
            "group": group.to_string(),
            "by": by.as_str(),
            "joined": joined.iter().map(UserId::as_str).collect::<Vec<_>>(),
            "gone": gone.iter().map(UserId::as_str).collect::<Vec<_>>(),
            "name": name,
        }),
        Event::GroupMemberUnknown { peer } => json!({"peer": peer.as_str()}),
        Event::SenderKeyMissing { peer, messages } => json!({"peer": peer.as_str(), "messages": messages}),
        Event::GroupReceipt { group, peer, ids, state } => json!({
            "group": group.to_string(),
            "peer": peer.as_str(),
            "ids": ids.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "state": state.name(),
        }),
        Event::Lagged { missed } => json!({"missed": missed}),
        _ => json!({}),
    };
    json!({"name": event.name(), "fields": fields}).to_string()
}
