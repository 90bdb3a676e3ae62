//! Rows of results, the targets they are held to, the table and the JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::Outcome;

/// One result. Less is better unless its target says otherwise.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// The unit of all its numbers.
    pub unit: String,
    /// Ours; absent when it could not be measured here.
    pub ours: Option<f64>,
    /// What the primitives alone cost, where that is defined.
    pub floor: Option<f64>,
    /// The same of others, measured in the same run.
    pub peers: BTreeMap<String, f64>,
    #[serde(skip)]
    targets: Vec<Target>,
}

/// What a number should reach. A target that is missed is said, and fails nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Ours is at most this many times the floor.
    TimesFloor(f64),
    /// Ours is at most this.
    AtMost(f64),
    /// Ours is at least this.
    AtLeast(f64),
    /// The named peer takes at least this many times ours.
    FasterThan(&'static str, f64),
}

impl Row {
    /// A result of ours.
    #[must_use]
    pub fn new(name: &str, unit: &str, ours: f64) -> Self {
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            ours: Some(ours),
            floor: None,
            peers: BTreeMap::new(),
            targets: Vec::new(),
        }
    }

    /// Adds the floor.
    #[must_use]
    pub fn floor(mut self, value: f64) -> Self {
        self.floor = Some(value);
        self
    }

    /// Adds a peer.
    #[must_use]
    pub fn peer(mut self, name: &str, value: f64) -> Self {
        self.peers.insert(name.to_owned(), value);
        self
    }

    /// Adds a target.
    #[must_use]
    pub fn target(mut self, target: Target) -> Self {
        self.targets.push(target);
        self
    }

    /// Each target in words, with whether it is met. One that could not be measured is not met.
    #[must_use]
    pub fn verdicts(&self) -> Vec<(String, bool)> {
        self.targets.iter().map(|target| self.verdict(target)).collect()
    }

    fn verdict(&self, target: &Target) -> (String, bool) {
        let holds = |test: &dyn Fn(f64) -> Option<bool>| self.ours.and_then(test).unwrap_or(false);
        match target {
            Target::TimesFloor(most) => {
                (format!("<= {most} x floor"), holds(&|ours| self.floor.map(|floor| ours <= most * floor)))
            }
            Target::AtMost(most) => (format!("<= {most} {}", self.unit), holds(&|ours| Some(ours <= *most))),
            Target::AtLeast(least) => {
                (format!(">= {least} {}", self.unit), holds(&|ours| Some(ours >= *least)))
            }
            Target::FasterThan(peer, times) => (
                format!("{peer} takes >= {times} x ours"),
                holds(&|ours| self.peers.get(*peer).map(|peer| *peer >= times * ours)),
            ),
        }
    }
}

/// All rows of a run, and what was skipped and why.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Summary {
    /// Adds a row.
    pub fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Adds a line for people: what was skipped and why, or what a number rests on.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// The rows so far.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Number of targets, and how many of them are missed.
    #[must_use]
    pub fn targets(&self) -> (usize, usize) {
        let verdicts: Vec<_> = self.rows.iter().flat_map(Row::verdicts).collect();
        (verdicts.len(), verdicts.iter().filter(|(_, met)| !met).count())
    }

    /// The rows as JSON: a list of `{name, unit, ours, floor, peers: {name: value}}`.
    ///
    /// # Errors
    /// When a number is not finite.
    pub fn json(&self) -> Outcome<String> {
        Ok(serde_json::to_string_pretty(&self.rows)?)
    }

    /// Writes the JSON to `path`, making its directory.
    ///
    /// # Errors
    /// When it can not be written.
    pub fn write(&self, path: &Path) -> Outcome<()> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let mut text = self.json()?;
        text.push('\n');
        Ok(std::fs::write(path, text)?)
    }

    /// An aligned table with ratios, then the notes, then how many targets were missed.
    #[must_use]
    pub fn table(&self) -> String {
        let header = ["measured", "ours", "unit", "floor", "x floor", "peers (x ours)", "target"];
        let mut lines = vec![header.map(str::to_owned)];
        lines.extend(self.rows.iter().map(cells));
        let widths: Vec<usize> = (0..header.len())
            .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
            .collect();
        let mut out = String::new();
        for line in &lines {
            let mut text = String::new();
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                // Numbers to the right, words to the left.
                let _infallible = match column {
                    1 | 3 | 4 => write!(text, "{cell:>width$}  "),
                    _ => write!(text, "{cell:<width$}  "),
                };
            }
            out.push_str(text.trim_end());
            out.push('\n');
        }
        for note in &self.notes {
            let _infallible = writeln!(out, "note: {note}");
        }
        let (all, missed) = self.targets();
        let _infallible = writeln!(out, "{} of {all} targets met, {missed} MISSED", all - missed);
        out
    }
}

fn cells(row: &Row) -> [String; 7] {
    let ratio = |of: f64, to: f64| format!("{:.2}", of / to);
    let peers = row.peers.iter().map(|(name, value)| match row.ours {
        Some(ours) if ours > 0.0 => format!("{name} {} ({} x)", number(*value), ratio(*value, ours)),
        _ => format!("{name} {}", number(*value)),
    });
    let targets = row
        .verdicts()
        .into_iter()
        .map(|(text, met)| if met { format!("{text}: met") } else { format!("{text}: MISSED") });
    [
        row.name.clone(),
        row.ours.map_or_else(|| "-".to_owned(), number),
        row.unit.clone(),
        row.floor.map_or_else(|| "-".to_owned(), number),
        match (row.ours, row.floor) {
            (Some(ours), Some(floor)) => ratio(ours, floor),
            _ => "-".to_owned(),
        },
        peers.collect::<Vec<_>>().join(", "),
        targets.collect::<Vec<_>>().join("; "),
    ]
}

/// Three or more significant digits, thousands grouped.
fn number(value: f64) -> String {
    let places = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.places$}");
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(w, f)| (w, Some(f)));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut out = sign.to_owned();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_is_met_at_its_bound_and_missed_past_it() {
        let row = |ours: f64| {
            Row::new("r", "us", ours)
                .floor(2.0)
                .peer("olm", 9.0)
                .target(Target::TimesFloor(1.5))
                .target(Target::FasterThan("olm", 3.0))
                .target(Target::AtMost(3.0))
                .target(Target::AtLeast(3.0))
        };
        let met = |ours| row(ours).verdicts().into_iter().map(|(_, met)| met).collect::<Vec<_>>();
        assert_eq!(met(3.0), [true, true, true, true]);
        assert_eq!(met(3.1), [false, false, false, true]);
        assert_eq!(met(2.9), [true, true, true, false]);
    }

    #[test]
    fn target_against_what_was_not_measured_is_missed() {
        let row =
            Row::new("r", "us", 1.0).target(Target::TimesFloor(1.5)).target(Target::FasterThan("x", 2.0));
        let mut summary = Summary::default();
        summary.push(row);
        assert_eq!(summary.targets(), (2, 2));
        assert_eq!(summary.table().matches(": MISSED").count(), 2);
    }

    #[test]
    fn json_has_exactly_the_documented_fields() {
        let mut summary = Summary::default();
        summary.push(Row::new("encrypt", "us", 1.5).peer("olm", 15.0).target(Target::AtMost(2.0)));
        let json: serde_json::Value = serde_json::from_str(&summary.json().unwrap()).unwrap();
        let expected = serde_json::json!([
            {"name": "encrypt", "unit": "us", "ours": 1.5, "floor": null, "peers": {"olm": 15.0}}
        ]);
        assert_eq!(json, expected);
    }

    #[test]
    fn columns_align_and_numbers_are_grouped() {
        let mut summary = Summary::default();
        summary.push(Row::new("a", "us", 1_234_567.0).floor(2.0));
        summary.push(Row::new("longer name", "KiB", 1.234));
        let table = summary.table();
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[1].contains("1,234,567  us"));
        assert_eq!(lines[1].find("us"), lines[2].find("KiB"));
        assert!(lines[2].contains("     1.23"));
    }
}
