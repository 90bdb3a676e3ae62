//! What a message, a connection and a reconnect cost the relay.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{StreamExt as _, TryStreamExt as _};
use hdrhistogram::Histogram;
use stvor_wire::client::Mode;
use stvor_wire::server::{Deliver, ServerMessage};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::load::raw::{Account, Connection};
use crate::load::server::{Plan, Relay};
use crate::load::{Load, float, histogram, microseconds};
use crate::process::{cpu_time, open_files_limit, resident_kib};
use crate::report::{Row, Summary, Target};
use crate::{Outcome, load::peers};

/// 200 bytes of text in the smallest bucket.
const BLOB: usize = 512;

/// Messages under way of one pair, when the relay is driven as hard as it goes.
const WINDOW: usize = 64;

/// Messages a second of all pairs, when latency is looked at.
const PACE: u64 = 10_000;

/// Connections of the memory measurement: enough for the allocator's steps to average out.
const IDLE: usize = 1_000;

/// Log-ins under way at once while connections are set up; the storm has no such bound.
const SETUP: usize = 64;

/// Whether messages are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Stored, accepted, acknowledged.
    Durable,
    /// Passed on or dropped.
    Ephemeral,
}

/// How a load ran.
pub struct Ran {
    /// Messages that reached their receiver.
    pub messages: u64,
    /// From the first to the last.
    pub wall: Duration,
    /// CPU time of the server meanwhile.
    pub cpu: Duration,
    /// From just before the send to the receipt, in microseconds.
    pub latency: Histogram<u64>,
    /// Messages that came after a later one of the same sender, or came twice.
    pub disorder: u64,
}

impl Ran {
    /// CPU microseconds a message.
    #[must_use]
    pub fn cpu_each(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / float(self.messages.max(1))
    }

    /// Messages a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        float(self.messages) / self.wall.as_secs_f64()
    }
}

/// All measurements of the relay.
///
/// # Errors
/// When the relay can not be started or refuses what it should accept.
pub async fn run(binary: &Path, load: Load, summary: &mut Summary) -> Outcome<()> {
    let directory = stvor_testkit::temp_dir()?;
    let mut plan = Plan::new(binary, directory.path());
    plan.pinned = Some(0);
    let relay = plan.start()?;
    let node = peers::node(load).await;
    let nats = peers::nats(load).await;
    let mut cpu_rows = Vec::new();
    for (kind, most) in [(Kind::Durable, 30.0), (Kind::Ephemeral, 12.0)] {
        let name = format!("{kind:?}").to_lowercase();
        let hard = drive(&relay, load, kind, None).await?;
        let paced = drive(&relay, load, kind, Some(PACE)).await?;
        let cpu = format!("relay, {name}: CPU a message, as fast as it goes");
        cpu_rows.push(Row::new(&cpu, "us", hard.cpu_each()).target(Target::AtMost(most)));
        let cpu = format!("relay, {name}: CPU a message at 10,000 a second");
        cpu_rows.push(Row::new(&cpu, "us", paced.cpu_each()));
        cpu_rows.push(Row::new(&format!("relay, {name}: messages a second"), "1/s", hard.rate()));
        for (quantile, label) in [(0.5, "p50"), (0.99, "p99")] {
            let value = float(paced.latency.value_at_quantile(quantile)) / 1_000.0;
            let row = Row::new(&format!("relay, {name}: {label} at 10,000 a second"), "ms", value);
            let held = kind == Kind::Ephemeral && quantile > 0.9;
            cpu_rows.push(if held { row.target(Target::AtMost(0.5)) } else { row });
        }
        let disorder = hard.disorder + paced.disorder;
        let row = Row::new(&format!("relay, {name}: messages out of order or twice"), "", float(disorder));
        cpu_rows.push(row.target(Target::AtMost(0.0)));
        if paced.rate() < float(PACE) * 0.9 {
            summary.note(format!("the paced {name} load reached only {:.0} messages a second", paced.rate()));
        }
    }
    for mut row in cpu_rows {
        for (peer, result) in [("Node ws", &node), ("NATS core", &nats)] {
            if let Ok(measured) = result {
                row = measured.add_to(row, peer);
            }
        }
        summary.push(row);
    }
    for (peer, result) in [("Node ws", &node), ("NATS core", &nats)] {
        if let Err(reason) = result {
            summary.note(format!("{peer} skipped: {reason}"));
        }
    }
    drop(relay);
    connections(&plan, load, summary).await
}

/// Pairs of raw clients that send through the relay, as fast as their windows allow or at a pace.
///
/// # Errors
/// When a client is refused or cut off.
pub async fn drive(relay: &Relay, load: Load, kind: Kind, pace: Option<u64>) -> Outcome<Ran> {
    let mut pairs = Vec::new();
    for number in 0..load.pairs {
        let tag: u64 = rand::random();
        let from = Account::new(&format!("s{number}-{tag:x}"))?;
        let to = Account::new(&format!("r{number}-{tag:x}"))?;
        let receiving = to.connect(&relay.url(), Mode::Receive).await?;
        let sending = from.connect(&relay.url(), Mode::SendOnly).await?;
        pairs.push((sending, receiving, to));
    }
    let start = Instant::now();
    let end = start + load.lasts;
    let pid = relay.process.pid();
    let before = cpu_time(pid)?;
    let (received, disorder) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks: JoinSet<Outcome<Option<Histogram<u64>>>> = JoinSet::new();
    let gap = pace.map(|pace| Duration::from_secs_f64(float(load.pairs as u64) / float(pace)));
    for (sending, receiving, to) in pairs {
        let permits = Arc::new(Semaphore::new(WINDOW));
        let pair = Pair {
            start,
            end,
            kind,
            gap,
            permits,
            received: Arc::clone(&received),
            disorder: Arc::clone(&disorder),
        };
        let (answers, pongs) = mpsc::unbounded_channel();
        let Connection { sender, receiver } = sending;
        let reading = pair.clone();
        tasks.spawn(async move { reading.answers(receiver, answers).await.map(|()| None) });
        let writing = pair.clone();
        tasks.spawn(async move { writing.send(sender, &to, pongs).await.map(|()| None) });
        tasks.spawn(async move { pair.receive(receiving).await.map(Some) });
    }
    let mut latency = histogram()?;
    while let Some(done) = tasks.join_next().await {
        if let Some(times) = done?? {
            latency.add(times)?;
        }
    }
    let messages = received.load(Ordering::SeqCst);
    Ok(Ran {
        messages,
        wall: load.lasts,
        cpu: cpu_time(pid)?.saturating_sub(before),
        latency,
        disorder: disorder.load(Ordering::SeqCst),
    })
}

#[derive(Clone)]
struct Pair {
    start: Instant,
    end: Instant,
    kind: Kind,
    gap: Option<Duration>,
    permits: Arc<Semaphore>,
    received: Arc<AtomicU64>,
    disorder: Arc<AtomicU64>,
}

impl Pair {
    /// When everything is over: what is still under way at the end has a moment to arrive.
    fn over(&self) -> tokio::time::Instant {
        (self.end + Duration::from_millis(300)).into()
    }

    async fn answers(
        &self,
        mut receiver: crate::load::raw::Receiver,
        pings: mpsc::UnboundedSender<u64>,
    ) -> Outcome<()> {
        while let Ok(batch) = tokio::time::timeout_at(self.over(), receiver.batch(256)).await {
            for message in batch? {
                match message {
                    ServerMessage::Accepted { .. } => self.permits.add_permits(1),
                    ServerMessage::Ping { nonce, .. } => pings.send(nonce)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    async fn send(
        &self,
        mut sender: crate::load::raw::Sender,
        to: &Account,
        mut pings: mpsc::UnboundedReceiver<u64>,
    ) -> Outcome<()> {
        let mut blob = vec![0_u8; BLOB];
        let ephemeral = self.kind == Kind::Ephemeral;
        let mut number = 0_u64;
        let mut ticks = self.gap.map(|gap| {
            // Senders that tick together would measure the burst.
            let offset = gap.mul_f64(rand::random::<f64>());
            tokio::time::interval_at((Instant::now() + offset).into(), gap)
        });
        let sending = async {
            loop {
                let allowed = match &mut ticks {
                    Some(ticks) => {
                        ticks.tick().await;
                        1
                    }
                    None => {
                        self.permits.acquire().await?.forget();
                        // Whatever else may go, goes with it.
                        let more = self.permits.available_permits();
                        (0..more).map_while(|_| self.permits.try_acquire().ok()).fold(1, |sum, permit| {
                            permit.forget();
                            sum + 1
                        })
                    }
                };
                while let Ok(nonce) = pings.try_recv() {
                    sender.pong(nonce).await?;
                }
                for _ in 0..allowed {
                    let sent_at = microseconds(self.start.elapsed());
                    number += 1;
                    blob[..8].copy_from_slice(&sent_at.to_be_bytes());
                    blob[8..16].copy_from_slice(&number.to_be_bytes());
                    sender.feed(to.address(), Bytes::copy_from_slice(&blob), ephemeral).await?;
                }
                sender.flush().await?;
            }
        };
        tokio::select! {
            result = sending => result,
            () = tokio::time::sleep_until(self.end.into()) => Ok(()),
        }
    }

    async fn receive(&self, connection: Connection) -> Outcome<Histogram<u64>> {
        let Connection { mut sender, mut receiver } = connection;
        let mut latency = histogram()?;
        let mut reached = 0;
        while let Ok(batch) = tokio::time::timeout_at(self.over(), receiver.batch(128)).await {
            let now = microseconds(self.start.elapsed());
            let mut kept: Vec<Deliver> = Vec::new();
            for message in batch? {
                match message {
                    ServerMessage::Deliver(deliver) => {
                        let field = |at: usize| {
                            let bytes = deliver.blob.get(at..).and_then(|rest| rest.first_chunk());
                            bytes.map_or(0, |bytes| u64::from_be_bytes(*bytes))
                        };
                        let (sent_at, number) = (field(0), field(8));
                        if number <= reached {
                            self.disorder.fetch_add(1, Ordering::SeqCst);
                        }
                        reached = reached.max(number);
                        latency.saturating_record(now.saturating_sub(sent_at).max(1));
                        self.received.fetch_add(1, Ordering::SeqCst);
                        if self.kind == Kind::Ephemeral {
                            self.permits.add_permits(1);
                        } else {
                            kept.push(deliver);
                        }
                    }
                    ServerMessage::Ping { nonce, .. } => sender.pong(nonce).await?,
                    _ => {}
                }
            }
            sender.acknowledge(&kept).await?;
        }
        Ok(latency)
    }
}

/// Memory of idle connections, and how fast all come back at once.
async fn connections(plan: &Plan, load: Load, summary: &mut Summary) -> Outcome<()> {
    // Each connection is a file here and one in the relay; some are needed for other things.
    let most = usize::try_from(open_files_limit().saturating_sub(200))?;
    let wanted = load.connections.min(most);
    if wanted < load.connections {
        summary.note(format!("only {wanted} connections: the limit of open files is {}", open_files_limit()));
    }
    let directory = stvor_testkit::temp_dir()?;
    let mut plan = plan.clone();
    directory.path().clone_into(&mut plan.directory);
    plan.pinned = None;
    let relay = plan.start()?;
    let accounts: Vec<Account> =
        (0..wanted).map(|number| Account::new(&format!("idle{number}"))).collect::<Outcome<_>>()?;
    let url = relay.url();
    let (first, rest) = accounts.split_at(IDLE.min(wanted / 2));
    // What the first connections make a process allocate once belongs to none of them.
    let warm = log_in(first, &url, SETUP).await?;
    let before = resident_kib(relay.process.pid())?;
    let measured = &rest[..rest.len().min(IDLE)];
    let idle = log_in(measured, &url, SETUP).await?;
    let after = resident_kib(relay.process.pid())?;
    let each = float(after.saturating_sub(before)) / float(measured.len() as u64);
    summary.push(Row::new("relay: memory of an idle connection", "KiB", each).target(Target::AtMost(12.0)));
    let others = log_in(&rest[measured.len()..], &url, SETUP).await?;
    let before = cpu_time(relay.process.pid())?;
    drop((warm, idle, others));
    let start = Instant::now();
    let back = log_in(&accounts, &url, usize::MAX).await?;
    let took = start.elapsed().as_secs_f64();
    let cpu = cpu_time(relay.process.pid())?.saturating_sub(before);
    let row = Row::new(&format!("relay: {} reconnects at once, all logged in", back.len()), "s", took);
    // The target is for 5,000; fewer are held to their share.
    summary.push(row.target(Target::AtMost(5.0 * float(back.len() as u64) / 5_000.0)));
    let each = cpu.as_secs_f64() * 1e6 / float(back.len() as u64);
    summary.push(Row::new("relay: CPU of a reconnect", "us", each));
    Ok(())
}

/// Logs all accounts in, so many at a time, and hands their connections back.
async fn log_in(accounts: &[Account], url: &str, at_once: usize) -> Outcome<Vec<Connection>> {
    if at_once >= accounts.len() {
        let all: FuturesUnordered<_> =
            accounts.iter().map(|account| account.connect(url, Mode::Receive)).collect();
        return all.try_collect().await;
    }
    let connecting = accounts.iter().map(|account| account.connect(url, Mode::Receive));
    futures::stream::iter(connecting).buffer_unordered(at_once).try_collect().await
}
