//! Counters with fixed label sets. No label ever holds an identifier.

use std::collections::HashMap;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use stvor_wire::Code;

const METADATA: Metadata<'static> = Metadata::new("stvor_relay", Level::INFO, None);

/// What the relay counts.
pub(crate) struct Metrics {
    handle: PrometheusHandle,
    connections: Gauge,
    logins: Counter,
    refused: HashMap<Code, Counter>,
    ended: HashMap<Code, Counter>,
    nacks: HashMap<Code, Counter>,
    limited: HashMap<&'static str, Counter>,
    sends: Counter,
    signals: Counter,
    accepted: Counter,
    delivered: Counter,
    replaced: Counter,
    expired: Counter,
    users_online: Gauge,
    rng_failed: Gauge,
    store: StoreMetrics,
}

/// What the store counts.
#[derive(Clone)]
pub(crate) struct StoreMetrics {
    pub(crate) batch_operations: Histogram,
    pub(crate) commit_seconds: Histogram,
}

impl StoreMetrics {
    /// Counts nothing.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { batch_operations: Histogram::noop(), commit_seconds: Histogram::noop() }
    }
}

struct Register(PrometheusRecorder);

impl Register {
    fn describe(&self, name: &'static str, text: &'static str, unit: Option<Unit>) {
        self.0.describe_counter(KeyName::from_const_str(name), unit, text.into());
    }

    fn counter(&self, name: &'static str, text: &'static str) -> Counter {
        self.describe(name, text, None);
        self.0.register_counter(&Key::from_static_name(name), &METADATA)
    }

    fn labelled(&self, name: &'static str, label: &'static str, value: &'static str) -> Counter {
        let key = Key::from_parts(name, vec![Label::from_static_parts(label, value)]);
        self.0.register_counter(&key, &METADATA)
    }

    fn codes(&self, name: &'static str, text: &'static str) -> HashMap<Code, Counter> {
        self.describe(name, text, None);
        Code::ALL.iter().map(|code| (*code, self.labelled(name, "code", code.as_str()))).collect()
    }

    fn gauge(&self, name: &'static str, text: &'static str) -> Gauge {
        self.0.describe_gauge(KeyName::from_const_str(name), None, text.into());
        self.0.register_gauge(&Key::from_static_name(name), &METADATA)
    }

    fn histogram(&self, name: &'static str, text: &'static str, unit: Option<Unit>) -> Histogram {
        self.0.describe_histogram(KeyName::from_const_str(name), unit, text.into());
        self.0.register_histogram(&Key::from_static_name(name), &METADATA)
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let to = Register(PrometheusBuilder::new().build_recorder());
        let limited = "stvor_relay_rate_limited_total";
        to.describe(limited, "What a rate limit refused.", None);
        Self {
            handle: to.0.handle(),
            connections: to.gauge("stvor_relay_connections", "Connections that are logged in."),
            logins: to.counter("stvor_relay_logins_total", "Log-ins that succeeded."),
            refused: to.codes("stvor_relay_refused_logins_total", "Log-ins that were refused, by code."),
            ended: to.codes("stvor_relay_ended_total", "Connections that the relay ended, by code."),
            nacks: to
                .codes("stvor_relay_refused_messages_total", "Messages that the store refused, by code."),
            limited: ["login", "registration", "send", "request", "address", "http"]
                .into_iter()
                .map(|what| (what, to.labelled(limited, "what", what)))
                .collect(),
            sends: to.counter("stvor_relay_messages_received_total", "Messages that clients sent."),
            signals: to
                .counter("stvor_relay_signals_received_total", "Ephemeral messages that clients sent."),
            accepted: to.counter("stvor_relay_messages_accepted_total", "Messages that were made durable."),
            delivered: to.counter("stvor_relay_messages_delivered_total", "Messages offered to devices."),
            replaced: to.counter("stvor_relay_identities_replaced_total", "Names that changed hands."),
            expired: to.counter("stvor_relay_messages_expired_total", "Messages that expired unread."),
            users_online: to.gauge("stvor_relay_users_online", "Users with a receiving device."),
            rng_failed: to.gauge("stvor_relay_random_source_failed", "1 after a failed health test."),
            store: StoreMetrics {
                batch_operations: to.histogram(
                    "stvor_relay_commit_operations",
                    "Operations in one group commit.",
                    Some(Unit::Count),
                ),
                commit_seconds: to.histogram(
                    "stvor_relay_commit_seconds",
                    "Duration of group commits.",
                    Some(Unit::Seconds),
                ),
            },
        }
    }

    /// The page for Prometheus.
    pub(crate) fn render(&self, users_online: usize) -> String {
        self.users_online.set(u32::try_from(users_online).unwrap_or(u32::MAX));
        self.rng_failed.set(f64::from(u8::from(stvor_crypto::random::health().failed)));
        self.handle.render()
    }

    /// Folds histograms: to be called now and then.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    pub(crate) fn store(&self) -> StoreMetrics {
        self.store.clone()
    }

    pub(crate) fn logged_in(&self) {
        self.logins.increment(1);
        self.connections.increment(1);
    }

    pub(crate) fn logged_out(&self) {
        self.connections.decrement(1);
    }

    pub(crate) fn refused_login(&self, code: Code) {
        count(&self.refused, &code);
    }

    pub(crate) fn ended(&self, code: Code) {
        count(&self.ended, &code);
    }

    pub(crate) fn nack(&self, code: Code) {
        count(&self.nacks, &code);
    }

    pub(crate) fn rate_limited(&self, what: &'static str) {
        count(&self.limited, &what);
    }

    pub(crate) fn send(&self, ephemeral: bool) {
        if ephemeral { self.signals.increment(1) } else { self.sends.increment(1) }
    }

    pub(crate) fn accepted(&self) {
        self.accepted.increment(1);
    }

    pub(crate) fn delivered(&self, messages: usize) {
        self.delivered.increment(messages as u64);
    }

    pub(crate) fn identity_replaced(&self) {
        self.replaced.increment(1);
    }

    pub(crate) fn expired(&self, messages: u64) {
        self.expired.increment(messages);
    }
}

fn count<K: Eq + core::hash::Hash>(counters: &HashMap<K, Counter>, key: &K) {
    if let Some(counter) = counters.get(key) {
        counter.increment(1);
    }
}
