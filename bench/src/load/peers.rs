//! Other servers under the same load, where they can be had: a Node `ws` relay, and NATS.
//!
//! They authenticate nobody, store nothing and pad nothing; the numbers say what a bare switchboard costs here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{SinkExt as _, StreamExt as _};
use hdrhistogram::Histogram;
use stvor_testkit::{Process, Spawn};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::Outcome;
use crate::load::relay::Ran;
use crate::load::{Load, float, histogram, microseconds};
use crate::process::cpu_time;
use crate::report::Row;

/// Bytes of a message: what ours would be before padding.
const BODY: usize = 200;

/// As in the load of our relay.
const WINDOW: usize = 64;
const PACE: u64 = 10_000;

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(20);

/// What a peer reached: as fast as it goes, and at a pace.
pub struct Measured {
    hard: Ran,
    paced: Ran,
}

impl Measured {
    /// Adds this peer to the row of ours that it answers, if it answers it.
    #[must_use]
    pub fn add_to(&self, row: Row, peer: &str) -> Row {
        let quantile = |quantile| float(self.paced.latency.value_at_quantile(quantile)) / 1_000.0;
        let value = match row.name.rsplit(": ").next() {
            Some("CPU a message, as fast as it goes") => self.hard.cpu_each(),
            Some("CPU a message at 10,000 a second") => self.paced.cpu_each(),
            Some("messages a second") => self.hard.rate(),
            Some("p50 at 10,000 a second") => quantile(0.5),
            Some("p99 at 10,000 a second") => quantile(0.99),
            _ => return row,
        };
        row.peer(peer, value)
    }
}

/// The relay of the benchmark: names in, messages passed on, JSON around base64 as the first STVOR relay had it.
const NODE_RELAY: &str = "\
import { WebSocketServer } from 'ws';
const users = new Map();
const server = new WebSocketServer({ port: 0, host: '127.0.0.1' }, () => {
  console.log(`listening on 127.0.0.1:${server.address().port}`);
});
server.on('connection', (socket) => {
  socket.on('message', (data) => {
    const message = JSON.parse(data);
    if (message.type === 'announce') {
      users.set(message.user, socket);
      socket.send(JSON.stringify({ type: 'ack' }));
    } else if (message.type === 'message') {
      const to = users.get(message.to);
      if (to) to.send(JSON.stringify({ type: 'message', from: message.from, data: message.data }));
    }
  });
});
";

fn peers_directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    target.join("bench/peers")
}

/// A Node relay over the npm package `ws`, which is installed under the target directory the first time.
///
/// # Errors
/// Why it can not be measured here.
pub async fn node(load: Load) -> Outcome<Measured> {
    let directory = peers_directory();
    std::fs::create_dir_all(&directory)?;
    if !directory.join("node_modules/ws").is_dir() {
        let install = ["install", "--silent", "--no-audit", "--no-fund", "--prefix"];
        let status = Command::new("npm").args(install).arg(&directory).arg("ws@8").status();
        if !status.map_err(|error| format!("npm can not be started ({error})"))?.success() {
            return Err("npm could not install the package ws".into());
        }
    }
    let script = directory.join("relay.mjs");
    std::fs::write(&script, NODE_RELAY)?;
    let process = pinned("node").arg(&script).name("node").start()?;
    let address = process.wait_address("listening", START)?;
    let url = format!("ws://{address}");
    let mut runs = Vec::new();
    for pace in [None, Some(PACE)] {
        let clock = Clock::new(load, pace);
        let mut tasks = JoinSet::new();
        let before = cpu_time(process.pid())?;
        for number in 0..load.pairs {
            let (url, clock) = (url.clone(), clock.clone());
            tasks.spawn(async move { node_pair(&url, &format!("r{number}"), clock).await });
        }
        runs.push(clock.finish(tasks, &process, before).await?);
    }
    measured(runs)
}

/// The NATS server, if it is installed: core messaging, nothing stored.
///
/// # Errors
/// Why it can not be measured here.
pub async fn nats(load: Load) -> Outcome<Measured> {
    let address = crate::load::server::free_address()?;
    let arguments = ["-a", "127.0.0.1", "-p", &address.port().to_string()];
    let process = pinned("nats-server").args(arguments).name("nats-server").start()?;
    process
        .wait_for("Server is ready", START)
        .map_err(|_| "no nats-server on PATH (Debian: apt-get install nats-server)")?;
    let mut runs = Vec::new();
    for pace in [None, Some(PACE)] {
        let clock = Clock::new(load, pace);
        let mut tasks = JoinSet::new();
        let before = cpu_time(process.pid())?;
        for number in 0..load.pairs {
            let clock = clock.clone();
            tasks.spawn(async move { nats_pair(address, number, clock).await });
        }
        runs.push(clock.finish(tasks, &process, before).await?);
    }
    measured(runs)
}

fn measured(mut runs: Vec<Ran>) -> Outcome<Measured> {
    let (Some(paced), Some(hard)) = (runs.pop(), runs.pop()) else {
        return Err("two runs make a result".into());
    };
    Ok(Measured { hard, paced })
}

/// On the CPU that our relay gets, too.
fn pinned(program: &str) -> Spawn {
    let taskset = "/usr/bin/taskset";
    if Path::new(taskset).exists() {
        Spawn::new(taskset).args(["-c", "0", program])
    } else {
        Spawn::new("/usr/bin/env").arg(program)
    }
}

/// What the pairs of one run share.
#[derive(Clone)]
struct Clock {
    start: Instant,
    end: Instant,
    gap: Option<Duration>,
    received: Arc<AtomicU64>,
}

impl Clock {
    fn new(load: Load, pace: Option<u64>) -> Self {
        let start = Instant::now();
        let gap = pace.map(|pace| Duration::from_secs_f64(float(load.pairs as u64) / float(pace)));
        Self { start, end: start + load.lasts, gap, received: Arc::default() }
    }

    fn over(&self) -> tokio::time::Instant {
        (self.end + Duration::from_millis(300)).into()
    }

    fn now(&self) -> u64 {
        microseconds(self.start.elapsed())
    }

    async fn finish(
        self,
        mut tasks: JoinSet<Outcome<Histogram<u64>>>,
        process: &Process,
        before: Duration,
    ) -> Outcome<Ran> {
        let mut latency = histogram()?;
        while let Some(done) = tasks.join_next().await {
            latency.add(done??)?;
        }
        let messages = self.received.load(Ordering::SeqCst);
        let cpu = cpu_time(process.pid())?.saturating_sub(before);
        Ok(Ran { messages, wall: self.end - self.start, cpu, latency, disorder: 0 })
    }

    /// How many may go now, at a pace or by the window.
    async fn allowed(
        &self,
        ticks: &mut Option<tokio::time::Interval>,
        permits: &Semaphore,
    ) -> Outcome<usize> {
        if let Some(ticks) = ticks {
            ticks.tick().await;
            return Ok(1);
        }
        permits.acquire().await?.forget();
        let more = permits.available_permits();
        permits.try_acquire_many(u32::try_from(more)?)?.forget();
        Ok(more + 1)
    }

    fn ticks(&self) -> Option<tokio::time::Interval> {
        self.gap.map(|gap| {
            let offset = gap.mul_f64(rand::random::<f64>());
            tokio::time::interval_at((Instant::now() + offset).into(), gap)
        })
    }
}

/// 200 bytes as text: sixteen hexadecimal digits of the time, then filling.
fn body(now: u64) -> String {
    format!("{now:016x}{:x<width$}", "", width = BODY - 16)
}

fn sent_at(body: &str) -> u64 {
    body.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0)
}

async fn node_pair(url: &str, name: &str, clock: Clock) -> Outcome<Histogram<u64>> {
    let (mut receiving, _) = tokio_tungstenite::connect_async(url).await?;
    let announce = serde_json::json!({"type": "announce", "user": name}).to_string();
    receiving.send(Message::text(announce)).await?;
    receiving.next().await.ok_or("the peer closed the connection")??;
    let (mut sending, _) = tokio_tungstenite::connect_async(url).await?;
    let permits = Semaphore::new(WINDOW);
    let mut latency = histogram()?;
    let send = async {
        let mut ticks = clock.ticks();
        loop {
            for _ in 0..clock.allowed(&mut ticks, &permits).await? {
                let message = serde_json::json!({
                    "type": "message", "to": name, "from": "sender", "data": body(clock.now())
                });
                sending.feed(Message::text(message.to_string())).await?;
            }
            sending.flush().await?;
        }
    };
    let receive = async {
        while let Ok(Some(message)) = tokio::time::timeout_at(clock.over(), receiving.next()).await {
            let Message::Text(text) = message? else { continue };
            let message: serde_json::Value = serde_json::from_str(&text)?;
            let Some(data) = message.get("data").and_then(|data| data.as_str()) else { continue };
            latency.saturating_record(clock.now().saturating_sub(sent_at(data)).max(1));
            clock.received.fetch_add(1, Ordering::SeqCst);
            permits.add_permits(1);
        }
        Outcome::Ok(())
    };
    both(&clock, send, receive).await?;
    Ok(latency)
}

async fn nats_pair(address: std::net::SocketAddr, number: usize, clock: Clock) -> Outcome<Histogram<u64>> {
    let connect = "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n";
    let mut receiving = BufReader::new(TcpStream::connect(address).await?);
    let subscribe = format!("{connect}SUB p{number} 1\r\nPING\r\n");
    receiving.write_all(subscribe.as_bytes()).await?;
    let mut line = String::new();
    while !line.starts_with("PONG") {
        line.clear();
        if receiving.read_line(&mut line).await? == 0 {
            return Err("the peer closed the connection".into());
        }
    }
    let mut sending = TcpStream::connect(address).await?;
    sending.set_nodelay(true)?;
    sending.write_all(connect.as_bytes()).await?;
    let permits = Semaphore::new(WINDOW);
    let mut latency = histogram()?;
    let send = async {
        let mut ticks = clock.ticks();
        loop {
            let allowed = clock.allowed(&mut ticks, &permits).await?;
            let message = |_| format!("PUB p{number} {BODY}\r\n{}\r\n", body(clock.now()));
            sending.write_all((0..allowed).map(message).collect::<String>().as_bytes()).await?;
        }
    };
    let receive = async {
        let mut text = [0; BODY + 2];
        loop {
            line.clear();
            match tokio::time::timeout_at(clock.over(), receiving.read_line(&mut line)).await {
                Err(_) | Ok(Ok(0)) => return Outcome::Ok(()),
                Ok(read) => read?,
            };
            if line.starts_with("MSG ") {
                receiving.read_exact(&mut text).await?;
                let data = std::str::from_utf8(&text)?;
                latency.saturating_record(clock.now().saturating_sub(sent_at(data)).max(1));
                clock.received.fetch_add(1, Ordering::SeqCst);
                permits.add_permits(1);
            }
        }
    };
    both(&clock, send, receive).await?;
    Ok(latency)
}

/// Sends until the end, receives until it is over.
async fn both(
    clock: &Clock,
    send: impl Future<Output = Outcome<()>>,
    receive: impl Future<Output = Outcome<()>>,
) -> Outcome<()> {
    let bounded = async {
        tokio::select! {
            result = send => result,
            () = tokio::time::sleep_until(clock.end.into()) => Ok(()),
        }
    };
    let (sent, received) = tokio::join!(bounded, receive);
    sent.and(received)
}
