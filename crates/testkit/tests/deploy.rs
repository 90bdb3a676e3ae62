//! What `deploy/` and the book say of the relay's metrics is what the relay has.

#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use regex::Regex;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

fn metrics(text: &str) -> BTreeSet<String> {
    let name = Regex::new(r"\bstvor_relay_[a-z_]+\b").unwrap();
    name.find_iter(text).map(|found| found.as_str().to_owned()).collect()
}

/// The names in quotes: the target of the recorder's metadata looks alike, and is none.
fn registered() -> BTreeSet<String> {
    let quoted = Regex::new(r#""(stvor_relay_[a-z_]+)""#).unwrap();
    quoted.captures_iter(&read("crates/relay/src/metrics.rs")).map(|name| name[1].to_owned()).collect()
}

#[test]
fn alerts_and_dashboard_name_metrics_that_exist() {
    let registered = registered();
    for page in ["deploy/prometheus/alerts.yml", "deploy/grafana/relay.json"] {
        let named = metrics(&read(page));
        assert!(!named.is_empty(), "{page} names metrics");
        let unknown: Vec<_> = named.difference(&registered).collect();
        assert!(unknown.is_empty(), "{page} names what the relay does not count: {unknown:?}");
    }
}

#[test]
fn every_metric_stands_in_the_book() {
    assert_eq!(metrics(&read("docs/relay.md")), registered());
}

#[test]
fn every_setting_of_the_relay_stands_in_the_book() {
    let page = read("docs/relay.md");
    let field = Regex::new(r"(?m)^    pub ([a-z_]+):").unwrap();
    let config = read("crates/relay/src/config.rs");
    let keys: BTreeSet<&str> = field.captures_iter(&config).map(|key| key.get(1).unwrap().as_str()).collect();
    assert!(keys.contains("retention_days") && keys.contains("origins"), "the settings are read");
    let mentioned = |key: &&str| {
        [format!("\n{key} = "), format!("| `{key}` |"), format!("[relay.{key}]")]
            .iter()
            .any(|text| page.contains(text))
    };
    let missing: Vec<_> = keys.into_iter().filter(|key| !mentioned(key)).collect();
    assert!(missing.is_empty(), "not in docs/relay.md: {missing:?}");
}

/// Keys of `text` with the text that follows each, as `row` finds them.
fn pairs(row: &str, text: &str) -> BTreeMap<String, String> {
    let row = Regex::new(row).unwrap();
    row.captures_iter(text).map(|found| (found[1].to_owned(), found[2].to_owned())).collect()
}

/// A number as the source writes it: digits, products, the half of one, and names of limits.
fn evaluate(expression: &str, limits: &BTreeMap<String, String>) -> String {
    if expression == "None" {
        return "none".to_owned();
    }
    let factor = |factor: &str| -> u64 {
        let name = factor.trim_start_matches("crate::limits::");
        match limits.get(name) {
            Some(of_it) => evaluate(of_it, limits).parse().unwrap(),
            None => factor.replace('_', "").parse().unwrap(),
        }
    };
    if let Some(whole) = expression.strip_suffix(" / 2") {
        return (factor(whole) / 2).to_string();
    }
    expression.split(" * ").map(factor).product::<u64>().to_string()
}

#[test]
fn defaults_in_the_book_are_those_of_the_relay() {
    let config = read("crates/relay/src/config.rs");
    let defaults = config.split_once("impl Default for LimitsConfig").unwrap().1;
    let defaults = defaults.split_once("\n}\n").unwrap().0;
    let limits = pairs(r"(?m)^pub const ([A-Z_]+): \w+ = (.+);$", &read("crates/relay/src/limits.rs"));
    let relay: BTreeMap<String, String> = pairs(r"(?m)^            ([a-z_]+): (.+),$", defaults)
        .into_iter()
        .map(|(key, expression)| (key, evaluate(&expression, &limits)))
        .collect();
    let page = read("docs/relay.md");
    let table = page.split_once("These may be set under `[relay.limits]`:").unwrap().1;
    let table = table.split_once("\n\nLoopback").unwrap().0;
    assert_eq!(pairs(r"(?m)^\| `([a-z_]+)` \| ([^ ]+) \|", table), relay);
    assert!(relay.len() > 10, "the defaults are read: {relay:?}");
}
