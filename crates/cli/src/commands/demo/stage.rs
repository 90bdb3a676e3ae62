//! How the demo tells its story: one step after the other, and a table at the end.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use stvor_base::ErrorCode as _;

use crate::failure::Result;
use crate::render::{BAD, FAINT, GOOD, Out, STRONG, paint, table};

/// Columns of the names of steps.
const NAME_WIDTH: usize = 13;

/// What a step found out: a sentence or two for people, figures for machines.
#[derive(Debug)]
pub(crate) struct Found {
    /// At most 60 columns a line.
    pub(crate) lines: Vec<String>,
    /// The figures.
    pub(crate) figures: Value,
}

impl Found {
    /// A finding.
    pub(crate) fn new<const N: usize>(lines: [String; N], figures: Value) -> Self {
        Self { lines: lines.into(), figures }
    }
}

/// Where the story is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stage {
    out: Out,
    began: Instant,
}

impl Stage {
    /// Opens the stage.
    pub(crate) fn open(out: Out) -> Result<Self> {
        let stage = Self { out, began: Instant::now() };
        if !out.json {
            out.line(format_args!(
                "\n{}\n{}\n",
                paint(
                    STRONG,
                    "Two people, a relay that they need not trust, and everything that can go wrong"
                ),
                paint(FAINT, "Real processes, real kills, a real database; each step is checked.")
            ))?;
        }
        Ok(stage)
    }

    /// Since the stage was opened.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Plays a step and tells how it went.
    pub(crate) async fn step(
        &self,
        name: &'static str,
        doing: &'static str,
        play: impl Future<Output = Result<Found>>,
    ) -> Result<Value> {
        let start = Instant::now();
        let bar = self.spinner(name, doing);
        let played = play.await;
        bar.finish_and_clear();
        let took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        match played {
            Ok(found) if self.out.json => {
                self.out
                    .object(&json!({ "step": name, "ok": true, "ms": took_ms, "figures": found.figures }))?;
                Ok(found.figures)
            }
            Ok(found) => {
                for (place, line) in found.lines.iter().enumerate() {
                    if place == 0 {
                        let name = paint(STRONG, format_args!("{name:<NAME_WIDTH$}"));
                        self.out.line(format_args!(" {} {name} {line}", paint(GOOD, "✔")))?;
                    } else {
                        self.out.line(format_args!("   {:NAME_WIDTH$} {}", "", paint(FAINT, line)))?;
                    }
                }
                Ok(found.figures)
            }
            Err(failure) => {
                if self.out.json {
                    self.out.object(&json!({
                        "step": name, "ok": false, "ms": took_ms,
                        "code": failure.code(), "message": failure.to_string(),
                    }))?;
                } else if !failure.is_silent() {
                    self.out.line(format_args!(" {} {}", paint(BAD, "✘"), paint(STRONG, name)))?;
                }
                Err(failure)
            }
        }
    }

    /// A spinner while a step plays; nothing unless standard error is a terminal.
    fn spinner(&self, name: &'static str, doing: &'static str) -> ProgressBar {
        if self.out.json || self.out.quiet {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template(" {spinner} {prefix:13} {msg:.dim}") {
            bar.set_style(style);
        }
        bar.set_prefix(name);
        bar.set_message(doing);
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    /// Tells the closing figures: (name, value), two pairs a row.
    pub(crate) fn close(&self, figures: &[(&str, String)], object: &Value) -> Result {
        if self.out.json {
            return self.out.object(object);
        }
        let mut rows = table(["", "", "", ""]);
        for pair in figures.chunks(2) {
            let cell = |at: usize| pair.get(at).map(|(name, value)| ((*name).to_owned(), value.clone()));
            let (left, right) = (cell(0).unwrap_or_default(), cell(1).unwrap_or_default());
            rows.add_row([left.0, left.1, right.0, right.1]);
        }
        for column in [1, 3] {
            if let Some(column) = rows.column_mut(column) {
                column.set_cell_alignment(comfy_table::CellAlignment::Right);
            }
        }
        self.out.line(format_args!("\n{rows}"))?;
        let seconds = self.elapsed().as_secs_f32();
        self.out.line(format_args!(
            "\n{}",
            paint(GOOD, format_args!("Every step held, in {seconds:.1} seconds."))
        ))
    }
}
