//! `stvor demo`: the story in under a minute, told by real processes and checked at every step.

mod evidence;
mod process;
mod stage;
mod story;
mod tally;

use std::time::Duration;

use serde_json::json;

use crate::args::{DemoArgs, Life};
use crate::failure::{Failure, Result};
use crate::life::Ending;
use crate::render::{Out, grouped};
use stage::Stage;
use story::{Size, Story};

/// Plays the story. Whatever happens, its processes end and its directory goes.
pub(crate) async fn run(args: &DemoArgs, out: Out) -> Result {
    let mut ending = Ending::watch(Life::default())?;
    let home = tempfile::Builder::new()
        .prefix("stvor-demo-")
        .tempdir()
        .map_err(|error| Failure::io("can not make a temporary directory", error))?;
    // The story is dropped, and with it every process, before the directory.
    let played = tokio::select! {
        played = play(home.path(), args, out) => played,
        end = ending.wait() => end.result().and(Err(Failure::Interrupted)),
    };
    let removed = home.close().map_err(|error| Failure::io("can not remove the demo's directory", error));
    played.and(removed)
}

async fn play(home: &std::path::Path, args: &DemoArgs, out: Out) -> Result {
    let stage = Stage::open(out)?;
    let mut story = Story::new(home, Size::of(args.fast))?;
    stage.step("relay", "starts, in a process of its own", story.relay_starts()).await?;
    stage.step("people", "Alice and Bob make their keys", story.people_meet()).await?;
    stage.step("conversation", "they talk", story.they_talk()).await?;
    stage.step("relay saw", "Bob is away; the relay's disk is searched", story.relay_sees()).await?;
    stage.step("Bob killed", "SIGKILL in mid-conversation", story.bob_dies()).await?;
    stage.step("relay killed", "SIGKILL in mid-conversation", story.relay_dies()).await?;
    stage.step("bad disk", "a stored message is damaged", story.disk_lies()).await?;
    stage.step("safety number", "both compare", story.numbers_match()).await?;
    story.curtain().await?;
    close(&stage, &story)
}

fn close(stage: &Stage, story: &Story) -> Result {
    let totals = &story.totals;
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    let figures = [
        ("messages accepted", grouped(totals.accepted as u64)),
        ("messages a second, durable", format!("{:.0}", totals.rate)),
        ("messages arrived", grouped(totals.arrived as u64)),
        ("send to print, median", ms(totals.p50)),
        ("lost", totals.lost.to_string()),
        ("send to print, 95 %", ms(totals.p95)),
        ("doubled", totals.doubled.to_string()),
        ("processes killed", totals.kills.to_string()),
        ("lines repeated by a kill", totals.repeated.to_string()),
        (
            "damaged, rejected, repaired",
            format!("{}, {}, {}", totals.rejected, totals.rejected, totals.repaired),
        ),
        ("plaintext words at the relay", format!("{} of {}", totals.hits, totals.words)),
        ("bytes at the relay", grouped(totals.relay_bytes)),
    ];
    let object = json!({
        "step": "summary", "ok": true,
        "accepted": totals.accepted, "arrived": totals.arrived, "lost": totals.lost, "doubled": totals.doubled,
        "lines_repeated": totals.repeated, "killed": totals.kills,
        "rejected": totals.rejected, "repaired": totals.repaired,
        "words_searched": totals.words, "word_hits": totals.hits, "relay_bytes": totals.relay_bytes,
        "per_second": totals.rate, "p50_ms": totals.p50.as_secs_f64() * 1e3, "p95_ms": totals.p95.as_secs_f64() * 1e3,
        "seconds": stage.elapsed().as_secs_f64(),
    });
    stage.close(&figures, &object)
}
