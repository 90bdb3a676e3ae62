//! The whole path: two users with durable stores, a durable relay between them, receipts on, on one machine.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use stvor::{App, Client, Messages};
use tokio::task::JoinSet;

use crate::Outcome;
use crate::load::server::{Plan, Relay, TOKEN};
use crate::load::{Load, float, histogram, microseconds};
use crate::process::cpu_time;
use crate::report::{Row, Summary};

/// Bytes of text of a message.
const BODY: usize = 200;

/// Messages of one conversation whose sends have not resolved, when it goes as fast as it can.
const WINDOW: usize = 64;

/// Conversations of the second measurement.
const CONVERSATIONS: usize = 32;

/// How long to connect, and for a message that is under way at the end.
const PATIENCE: Duration = Duration::from_secs(30);

struct Pair {
    number: usize,
    alice: Client,
    bob: Client,
    inbox: Messages,
}

/// What the pairs reached.
struct Reached {
    messages: u64,
    wall: Duration,
    latency: Histogram<u64>,
}

impl Reached {
    fn rate(&self) -> f64 {
        float(self.messages) / self.wall.as_secs_f64()
    }

    fn milliseconds(&self, quantile: f64) -> f64 {
        float(self.latency.value_at_quantile(quantile)) / 1_000.0
    }
}

/// Measures with 1 and with 32 conversations, each between two users of its own.
///
/// # Errors
/// When something on the path refuses what it should accept.
pub async fn run(binary: &Path, load: Load, summary: &mut Summary) -> Outcome<()> {
    let directory = stvor_testkit::temp_dir()?;
    let relay = Plan::new(binary, &directory.path().join("relay")).start()?;
    let app = App::builder()
        .app_token(TOKEN)
        .relay_url(relay.url())
        .data_dir(directory.path().join("users"))
        .timeout(PATIENCE)
        .open()
        .await?;
    for conversations in [1, CONVERSATIONS] {
        let mut pairs = Vec::new();
        for number in 0..conversations {
            pairs.push(Pair::connect(&app, conversations * 1_000 + number).await?);
        }
        let what = if conversations == 1 {
            "1 conversation".to_owned()
        } else {
            format!("{conversations} conversations")
        };
        let (stepwise, pairs) = exchange(pairs, load, 1).await?;
        for (quantile, label) in [(0.5, "p50"), (0.99, "p99")] {
            let name = format!("whole path, {what}: {label} of send to receive, one at a time");
            summary.push(Row::new(&name, "ms", stepwise.milliseconds(quantile)));
        }
        let name = format!("whole path, {what}: messages a second, one at a time");
        summary.push(Row::new(&name, "1/s", stepwise.rate()));
        let (own, theirs) = (cpu_time(std::process::id())?, cpu_time(relay.process.pid())?);
        let (piped, pairs) = exchange(pairs, load, WINDOW).await?;
        let name = format!("whole path, {what}: messages a second, {WINDOW} under way each");
        summary.push(Row::new(&name, "1/s", piped.rate()));
        for (quantile, label) in [(0.5, "p50"), (0.99, "p99")] {
            let name = format!("whole path, {what}: {label} of send to receive, {WINDOW} under way each");
            summary.push(Row::new(&name, "ms", piped.milliseconds(quantile)));
        }
        let each = |pid, before: Duration| -> Outcome<f64> {
            Ok(cpu_time(pid)?.saturating_sub(before).as_secs_f64() * 1e6 / float(piped.messages.max(1)))
        };
        let name = format!("whole path, {what}: CPU of both clients a message");
        summary.push(Row::new(&name, "us", each(std::process::id(), own)?));
        let name = format!("whole path, {what}: CPU of the relay a message");
        summary.push(Row::new(&name, "us", each(relay.process.pid(), theirs)?));
        for pair in pairs {
            pair.alice.close().await;
            pair.bob.close().await;
        }
    }
    drop::<Relay>(relay);
    summary.note(
        "whole path: SQLite with fsync at both users and the relay, receipts on (a receipt is a message too), everything on \
         one machine; each conversation has a store of its own at either end",
    );
    Ok(())
}

impl Pair {
    async fn connect(app: &App, number: usize) -> Outcome<Self> {
        let (alice, bob) = (format!("alice{number}"), format!("bob{number}"));
        let pair = Self {
            number,
            alice: app.connect(&alice).await?,
            bob: app.connect(&bob).await?,
            inbox: app.connect(&bob).await?.messages(),
        };
        let mut pair = pair;
        // The handshake is measured elsewhere.
        pair.alice.send(&bob, "hello").await?;
        tokio::time::timeout(PATIENCE, pair.inbox.next()).await?.ok_or("the inbox ended")?;
        Ok(pair)
    }
}

/// Lets every pair send for a while, `window` messages at a time each.
async fn exchange(pairs: Vec<Pair>, load: Load, window: usize) -> Outcome<(Reached, Vec<Pair>)> {
    let start = Instant::now();
    let end = start + load.lasts;
    let sent_in_time = Arc::new(AtomicU64::new(0));
    let mut tasks: JoinSet<Outcome<(Pair, Histogram<u64>)>> = JoinSet::new();
    for mut pair in pairs {
        let in_time = Arc::clone(&sent_in_time);
        tasks.spawn(async move {
            let to = format!("bob{}", pair.number);
            let alice = pair.alice.clone();
            let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
            let send = async {
                let mut under_way = FuturesUnordered::new();
                let mut sent = 0_u64;
                while Instant::now() < end {
                    while under_way.len() < window {
                        let now = microseconds(start.elapsed());
                        let text = format!("{now:016x}{:x<width$}", "", width = BODY - 16);
                        let (alice, to) = (&alice, to.as_str());
                        under_way.push(async move { alice.send(to, text).await });
                        sent += 1;
                    }
                    under_way.next().await.transpose()?;
                    if window == 1 {
                        // One at a time: the next leaves when this one has arrived, too.
                        tokio::time::timeout(PATIENCE, arrivals.recv()).await?.ok_or("the receiver ended")?;
                    }
                }
                while let Some(receipt) = under_way.next().await {
                    receipt?;
                }
                Outcome::Ok(sent)
            };
            let inbox = &mut pair.inbox;
            let mut latency = histogram()?;
            let receive = async {
                let mut received = 0_u64;
                let mut expected = None;
                tokio::pin!(send);
                while expected != Some(received) {
                    tokio::select! {
                        sent = &mut send, if expected.is_none() => expected = Some(sent?),
                        message = tokio::time::timeout(PATIENCE, inbox.next()) => {
                            let message = message?.ok_or("the inbox ended")?;
                            let now = Instant::now();
                            let sent_at = message.text().and_then(|text| u64::from_str_radix(text.get(..16)?, 16).ok());
                            let sent_at = sent_at.ok_or("a message that nobody sent")?;
                            latency.saturating_record(microseconds(now - start).saturating_sub(sent_at).max(1));
                            received += 1;
                            if now < end {
                                in_time.fetch_add(1, Ordering::SeqCst);
                            }
                            // The sender may have finished.
                            let _finished = arrived.send(());
                        }
                    }
                }
                Outcome::Ok(())
            };
            receive.await?;
            Ok((pair, latency))
        });
    }
    let (mut pairs, mut latency) = (Vec::new(), histogram()?);
    while let Some(done) = tasks.join_next().await {
        let (pair, times) = done??;
        latency.add(times)?;
        pairs.push(pair);
    }
    let messages = sent_in_time.load(Ordering::SeqCst);
    Ok((Reached { messages, wall: load.lasts, latency }, pairs))
}
