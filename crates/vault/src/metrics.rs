//! Counters with fixed label sets, and alerts. No label ever holds an identifier.

use std::collections::HashMap;

use metrics::{Counter, Gauge, Key, KeyName, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use serde::Serialize;

use crate::audit::Operation;
use crate::clock::Moment;
use crate::memory::MemoryId;

const METADATA: Metadata<'static> = Metadata::new("stvor_vault", Level::INFO, None);

/// Something that the owner may want to know at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "alert", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Alert {
    /// A gate said no. The log has it.
    Denied {
        /// When.
        at: Moment,
        /// Who asked: an agent's name, `owner`, or `stranger`.
        actor: String,
        /// What was asked.
        operation: Operation,
        /// On which memory.
        memory: Option<MemoryId>,
        /// The code of the refusal.
        code: String,
    },
    /// The log could not be written, so nothing was done.
    LogFailed {
        /// When.
        at: Moment,
        /// The code.
        code: &'static str,
    },
    /// A checkpoint could not be written outside the database.
    CheckpointFailed {
        /// When.
        at: Moment,
        /// The code.
        code: &'static str,
    },
    /// The witness did not sign the log: it is away, or it saw another log.
    WitnessFailed {
        /// When.
        at: Moment,
        /// The code.
        code: &'static str,
    },
    /// Something was destroyed in the database, and could not be overwritten on the disk. The vault goes on trying.
    WipeFailed {
        /// When.
        at: Moment,
        /// The code.
        code: &'static str,
    },
    /// The name of an ended memory could not be appended to a list for restores. The vault goes on trying.
    ListFailed {
        /// When.
        at: Moment,
        /// The code.
        code: &'static str,
    },
    /// A check-in of the dead-man switch could not be written into its watcher's directory, or a package that it names is not there.
    /// The vault goes on trying.
    WatcherNotTold {
        /// When.
        at: Moment,
        /// The code.
        code: &'static str,
    },
    /// Something stored is not what was stored. It is passed over where many are read; `verify` names everything.
    Damaged {
        /// When.
        at: Moment,
        /// Where.
        place: String,
    },
}

/// Something that hears of alerts, on the vault's thread: it must not wait.
pub type AlertHook = dyn Fn(&Alert) + Send + Sync;

/// What a vault counts.
pub(crate) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    operations: HashMap<(Operation, bool), Counter>,
    refusals: HashMap<String, Counter>,
    pub(crate) commits: Counter,
    pub(crate) log_failures: Counter,
    pub(crate) checkpoint_failures: Counter,
    pub(crate) suppressed: Counter,
    pub(crate) events: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let counter = |name: &'static str, text: &'static str| {
            recorder.describe_counter(KeyName::from_const_str(name), None, text.into());
            recorder.register_counter(&Key::from_static_name(name), &METADATA)
        };
        for (name, text) in [
            ("stvor_vault_operations_total", "Operations, by what was asked and whether it was allowed."),
            ("stvor_vault_refusals_total", "Refusals, by code."),
        ] {
            recorder.describe_counter(KeyName::from_const_str(name), None, text.into());
        }
        let events = "stvor_vault_log_events";
        recorder.describe_gauge(KeyName::from_const_str(events), None, "Events in the log.".into());
        Self {
            commits: counter("stvor_vault_commits_total", "Groups of operations that were committed."),
            log_failures: counter(
                "stvor_vault_log_failures_total",
                "Groups that were undone because they could not be logged.",
            ),
            checkpoint_failures: counter(
                "stvor_vault_checkpoint_failures_total",
                "Checkpoints that could not be written outside the database.",
            ),
            suppressed: counter(
                "stvor_vault_suppressed_total",
                "Requests of agents that were refused too often, which are not logged one by one.",
            ),
            events: recorder.register_gauge(&Key::from_static_name(events), &METADATA),
            operations: HashMap::new(),
            refusals: HashMap::new(),
            handle,
            recorder,
        }
    }

    /// Counts an operation. `refused` is the code, if it was.
    pub(crate) fn count(&mut self, operation: Operation, refused: Option<&str>) {
        let recorder = &self.recorder;
        let counter = self.operations.entry((operation, refused.is_none())).or_insert_with(|| {
            let name = serde_json::to_value(operation).ok();
            let name = name.as_ref().and_then(|name| name.as_str()).unwrap_or("unknown").to_owned();
            let outcome = if refused.is_none() { "allowed" } else { "refused" };
            let labels = vec![Label::new("operation", name), Label::new("outcome", outcome)];
            recorder.register_counter(&Key::from_parts("stvor_vault_operations_total", labels), &METADATA)
        });
        counter.increment(1);
        if let Some(code) = refused {
            let counter = self.refusals.entry(code.to_owned()).or_insert_with(|| {
                let labels = vec![Label::new("code", code.to_owned())];
                recorder.register_counter(&Key::from_parts("stvor_vault_refusals_total", labels), &METADATA)
            });
            counter.increment(1);
        }
    }

    /// All of it, in the text format of Prometheus.
    pub(crate) fn render(&self) -> String {
        self.handle.render()
    }
}
