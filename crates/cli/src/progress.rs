//! A bar for long work: on a terminal only, never with `--json` or `--quiet`.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use stvor::Progress;

use crate::render::Out;

/// How far long work is.
#[derive(Clone)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// A bar that counts `unit`.
    pub(crate) fn new(out: Out, unit: &'static str) -> Self {
        let shown = !out.json && !out.quiet && std::io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let template = format!("{{bar:40}} {{human_pos}} of {{human_len}} {unit}, {{eta}} left");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// A sign that `what` goes on, where nobody knows how long.
    pub(crate) fn working(out: Out, what: &'static str) -> Self {
        let Self(bar) = Self::new(out, "");
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}, {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }

    /// Moves it.
    pub(crate) fn at(&self, progress: Progress) {
        self.to(progress.done, progress.total);
    }

    /// Moves it to `done` of `total`.
    pub(crate) fn to(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    /// Removes it.
    pub(crate) fn end(&self) {
        self.0.finish_and_clear();
    }
}
