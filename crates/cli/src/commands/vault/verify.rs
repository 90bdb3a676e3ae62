//! `stvor vault verify`: the whole log, and every memory against it.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use stvor_vault::Report;
use stvor_vault::daemon::{OwnerVerb, RecoveryVerb};

use super::{Call, archive, backup, show};
use crate::args::VaultVerify;
use crate::exit;
use crate::failure::{Failure, Result};
use crate::render::{BAD, GOOD, grouped, paint, safe};

/// Verifies, and tells what is wrong.
pub(super) fn run(call: Call<'_>, args: &VaultVerify) -> Result {
    let archives = archive::checked(call, &args.archives)?;
    let mut client = call.as_owner()?;
    if args.accept_missing {
        backup::ask(&mut client, RecoveryVerb::AcceptCheckpoints {})?;
    }
    let start = Instant::now();
    let bar = bar(call);
    let notes = archives.iter().map(|(_, note)| note.to_string()).collect();
    let verb = OwnerVerb::Verify { archives: notes, content: args.content, progress: true };
    let answer = client.call_owner_with(&verb, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let report: Report = show::parsed(answer??)?;
    let out = call.out();
    let ranges = archives.iter().map(|(head, _)| (head.from, head.size)).collect();
    let missing = archive::missing(ranges, report.removed_before);
    let sound = report.problems.is_empty();
    if out.json {
        let mut object = serde_json::to_value(&report).unwrap_or_default();
        object["ok"] = json!(sound);
        if !archives.is_empty() {
            object["in_no_archive"] = json!(missing);
        }
        out.object(&object)?;
    } else {
        let took = start.elapsed().as_secs_f64();
        let (events, memories) = (grouped(report.events), grouped(report.memories));
        let mut said = format!("{events} events and {memories} memories in {took:.1} s");
        if let Some(opened) = report.opened {
            said += &format!(", {} contents opened", grouped(opened));
        }
        if report.removed > 0 {
            said += &format!(
                "; of {} more, which were archived and removed, the hashes",
                grouped(report.removed)
            );
        }
        match report.outside {
            Some(size) => said += &format!("; the newest checkpoint outside signs {} events", grouped(size)),
            None => said += "; no checkpoint outside the database",
        }
        let word = if sound { paint(GOOD, "ok") } else { paint(BAD, "NOT OK") };
        out.line(format_args!("{word}  {said}"))?;
        for problem in &report.problems {
            out.line(format_args!("  {}: {}", safe(&problem.place), safe(&problem.reason)))?;
        }
        for (head, _) in &archives {
            out.line(format_args!(
                "  the archive of the events {} to {} was read, and fits",
                head.from,
                head.size.saturating_sub(1)
            ))?;
        }
        for (from, to) in missing.iter().filter(|_| !archives.is_empty()) {
            out.warn(format_args!(
                "removed events among {from} to {} are in no archive that was given",
                to - 1
            ));
        }
        if report.more_problems > 0 {
            out.line(format_args!("  and {} more", grouped(report.more_problems)))?;
        }
    }
    if sound { Ok(()) } else { Err(Failure::Told(exit::INTEGRITY)) }
}

fn bar(call: Call<'_>) -> ProgressBar {
    if call.out().json || call.out().quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("verifying {bar:40} {percent:>3} %  {human_pos} of {human_len}");
    let bar = ProgressBar::new(0);
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}
