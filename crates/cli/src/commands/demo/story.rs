//! The story itself: who does what, and what has to be true afterwards.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::evidence::{blobs, corrupt, search, words};
use super::process::{Launcher, Process};
use super::stage::Found;
use super::tally::{Balance, Tally};
use crate::failure::{Failure, Result};
use crate::render::{Hex, grouped};

/// The longest that anything in the story may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What they talk about. No word of five letters or more is a name or part of a database's layout.
const TOPICS: [&str; 5] = [
    "the treasure lies beneath the crooked lighthouse",
    "grandmother hid her diamonds in the piano stool",
    "twelve oranges and a wooden flute at midnight",
    "my wardrobe password is strawberry harvest",
    "burn this parchment by the frozen waterfall",
];

/// How many messages each step sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) talk: usize,
    pub(crate) away: usize,
    pub(crate) kill: usize,
    pub(crate) burst: usize,
}

impl Size {
    /// The usual story, or a short one.
    pub(crate) fn of(fast: bool) -> Self {
        if fast {
            Self { talk: 5, away: 5, kill: 20, burst: 100 }
        } else {
            Self { talk: 20, away: 10, kill: 60, burst: 1_000 }
        }
    }
}

/// Everybody on stage. Dropping it ends them all.
pub(crate) struct Story {
    launcher: Launcher,
    home: PathBuf,
    size: Size,
    relay: Option<Process>,
    url: String,
    address: String,
    alice: Option<Process>,
    bob: Option<Process>,
    spoken: usize,
    /// What was sent and heard since the last reckoning.
    tally: Tally,
    /// Everything before.
    pub(crate) totals: Totals,
}

/// Sums over the whole story.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) accepted: usize,
    pub(crate) arrived: usize,
    pub(crate) repeated: usize,
    pub(crate) doubled: usize,
    pub(crate) lost: usize,
    pub(crate) kills: usize,
    pub(crate) rejected: usize,
    pub(crate) repaired: usize,
    pub(crate) relay_bytes: u64,
    pub(crate) words: usize,
    pub(crate) hits: usize,
    pub(crate) rate: f64,
    pub(crate) p50: Duration,
    pub(crate) p95: Duration,
}

fn broken(message: impl Into<String>) -> Failure {
    Failure::Coded { code: "DEMO_FAILED", message: message.into(), retryable: false }
}

/// A process that is on stage.
fn on_stage(process: &mut Option<Process>) -> Result<&mut Process> {
    process.as_mut().ok_or_else(|| broken("somebody left the stage too early"))
}

impl Story {
    /// Sets the stage in `home`, a directory that the caller removes.
    pub(crate) fn new(home: &Path, size: Size) -> Result<Self> {
        Ok(Self {
            launcher: Launcher::new(home)?,
            home: home.to_owned(),
            size,
            relay: None,
            url: String::new(),
            address: "127.0.0.1:0".to_owned(),
            alice: None,
            bob: None,
            spoken: 0,
            tally: Tally::default(),
            totals: Totals::default(),
        })
    }

    fn path(&self, name: &str) -> String {
        self.home.join(name).to_string_lossy().into_owned()
    }

    fn database(&self) -> PathBuf {
        self.relay_dir().join(crate::commands::relay::DATABASE)
    }

    fn relay_dir(&self) -> PathBuf {
        crate::config::relay_dir(&self.home.join("relay"))
    }

    // The relay.

    /// The operator makes a token and starts the relay.
    pub(crate) async fn relay_starts(&mut self) -> Result<Found> {
        let data = self.path("relay");
        let made = self
            .launcher
            .ask("stvor relay token create", &["relay", "token", "create", "--app", "demo", "--data", &data])
            .await?;
        let token = made["token"].as_str().ok_or_else(|| broken("no token was made"))?;
        self.launcher.set_token(token.to_owned());
        self.start_relay().await?;
        let id = on_stage(&mut self.relay)?.id();
        Ok(Found::new(
            [format!("process {id}, {}, messages in SQLite on disk", self.url)],
            json!({ "pid": id, "relay": self.url }),
        ))
    }

    async fn start_relay(&mut self) -> Result {
        let data = self.path("relay");
        let args =
            ["relay", "--open-registration", "--listen", &self.address, "--data", &data, "--exit-with-stdin"];
        let mut relay = self.launcher.start("stvor relay", &args)?;
        let banner = relay.line(PATIENCE).await?.value;
        let text = |name: &str| {
            banner[name].as_str().map(ToOwned::to_owned).ok_or_else(|| broken("the relay said no address"))
        };
        // The next relay is to be found where this one was.
        (self.address, self.url) = (text("address")?, text("relay")?);
        self.relay = Some(relay);
        Ok(())
    }

    // The people.

    fn start_sender(&self, who: &str, to: &str) -> Result<Process> {
        let (data, name) =
            (self.path(who), if who == "alice" { "Alice's stvor send" } else { "Bob's stvor send" });
        self.launcher
            .start(name, &["send", "--lines", "--as", who, "--to", to, "--data", &data, "--relay", &self.url])
    }

    async fn start_listener(&self, who: &str) -> Result<Process> {
        let (data, name) =
            (self.path(who), if who == "alice" { "Alice's stvor listen" } else { "Bob's stvor listen" });
        let args = ["listen", "--as", who, "--data", &data, "--relay", &self.url, "--exit-with-stdin"];
        let mut listener = self.launcher.start(name, &args)?;
        listener.event("listening", PATIENCE).await?;
        Ok(listener)
    }

    /// Alice and Bob make their identities and meet.
    pub(crate) async fn people_meet(&mut self) -> Result<Found> {
        self.bob = Some(self.start_listener("bob").await?);
        self.alice = Some(self.start_sender("alice", "bob")?);
        self.say(1)?;
        self.receipts(1).await?;
        self.hear().await?;
        self.reckon("the first message")?;
        let (alice, bob) = (on_stage(&mut self.alice)?.id(), on_stage(&mut self.bob)?.id());
        Ok(Found::new(
            [format!("Alice is process {alice}, Bob {bob}; keys made, first message read")],
            json!({ "alice": alice, "bob": bob }),
        ))
    }

    // What they do.

    /// The speaker is given `count` lines.
    fn say(&mut self, count: usize) -> Result {
        for _ in 0..count {
            self.spoken += 1;
            let text = format!("{:05} {}", self.spoken, TOPICS[self.spoken % TOPICS.len()]);
            self.tally.wrote(&text);
            on_stage(&mut self.alice)?.write(&text)?;
        }
        Ok(())
    }

    /// Waits for `count` receipts of acceptance.
    async fn receipts(&mut self, count: usize) -> Result {
        for _ in 0..count {
            let receipt = on_stage(&mut self.alice)?.line(PATIENCE).await?.value;
            if !self.tally.receipt(&receipt) {
                return Err(broken(format!("a message was not accepted: {receipt}")));
            }
        }
        Ok(())
    }

    /// Waits until everything that was accepted is heard.
    async fn hear(&mut self) -> Result {
        while self.tally.distinct() < self.tally.accepted() {
            let line = on_stage(&mut self.bob)?.line(PATIENCE).await?;
            self.tally.arrival(&line.value, line.at);
        }
        Ok(())
    }

    /// Compares what was sent with what was heard, and starts a new page.
    fn reckon(&mut self, when: &str) -> Result<Balance> {
        let balance = self.tally.balance();
        if !balance.holds() {
            return Err(broken(format!("{when}: {balance:?}")));
        }
        self.turn_page(&balance);
        Ok(balance)
    }

    fn turn_page(&mut self, balance: &Balance) {
        self.totals.accepted += self.tally.accepted();
        self.totals.arrived += self.tally.distinct();
        self.totals.repeated += balance.repeated;
        self.totals.doubled += balance.doubled;
        self.totals.lost += balance.lost;
        self.tally = Tally::default();
    }

    async fn leave(process: &mut Option<Process>) -> Result {
        match process.take() {
            Some(mut process) => process.ended(PATIENCE).await,
            None => Ok(()),
        }
    }

    /// They talk, each in turn; then a burst shows the pace.
    pub(crate) async fn they_talk(&mut self) -> Result<Found> {
        for _ in 0..self.size.talk {
            self.say(1)?;
            self.receipts(1).await?;
            self.hear().await?;
        }
        let (p50, p95) =
            (self.tally.latency(0.5).unwrap_or_default(), self.tally.latency(0.95).unwrap_or_default());
        self.reckon("Alice to Bob")?;
        // Now Bob speaks and Alice listens: in the same two data directories, in new processes.
        Self::leave(&mut self.alice).await?;
        Self::leave(&mut self.bob).await?;
        self.bob = Some(self.start_listener("alice").await?);
        self.alice = Some(self.start_sender("bob", "alice")?);
        self.say(self.size.talk)?;
        self.receipts(self.size.talk).await?;
        self.hear().await?;
        self.reckon("Bob to Alice")?;
        Self::leave(&mut self.alice).await?;
        Self::leave(&mut self.bob).await?;
        self.bob = Some(self.start_listener("bob").await?);
        self.alice = Some(self.start_sender("alice", "bob")?);
        let rate = self.burst().await?;
        (self.totals.p50, self.totals.p95, self.totals.rate) = (p50, p95, rate);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        Ok(Found::new(
            [format!(
                "{} messages each way, then {} at {rate:.0} a second",
                self.size.talk,
                grouped(self.size.burst as u64)
            )],
            json!({ "each_way": self.size.talk, "burst": self.size.burst, "per_second": rate, "p50_ms": ms(p50), "p95_ms": ms(p95) }),
        ))
    }

    async fn burst(&mut self) -> Result<f64> {
        // The first message may have to open a session.
        self.say(1)?;
        self.receipts(1).await?;
        self.hear().await?;
        let start = Instant::now();
        self.say(self.size.burst)?;
        self.receipts(self.size.burst).await?;
        self.hear().await?;
        let rate = self.size.burst as f64 / start.elapsed().as_secs_f64();
        self.reckon("the burst")?;
        Ok(rate)
    }

    /// Bob is away; the relay's files are searched for what it holds for him.
    pub(crate) async fn relay_sees(&mut self) -> Result<Found> {
        Self::leave(&mut self.bob).await?;
        self.say(self.size.away)?;
        self.receipts(self.size.away).await?;
        let held = self.wait_for_blobs(self.size.away).await?;
        let secret = words(TOPICS.into_iter());
        let seen = search(&self.relay_dir(), &secret)?;
        let names = search(&self.relay_dir(), &["alice".to_owned(), "bob".to_owned()])?;
        if let Some(word) = seen.found.first() {
            return Err(broken(format!("the relay's files hold the word \"{word}\" in the clear")));
        }
        if names.found.len() != 2 {
            return Err(broken(
                "the search did not even find the names that the relay must know: it proves nothing",
            ));
        }
        let blob = held.first().map(Vec::as_slice).unwrap_or_default();
        let start = blob.get(blob.len() / 2..).unwrap_or_default();
        let glimpse = start.get(..16).unwrap_or(start);
        (self.totals.relay_bytes, self.totals.words, self.totals.hits) =
            (seen.bytes, secret.len(), seen.found.len());
        self.bob = Some(self.start_listener("bob").await?);
        self.hear().await?;
        self.reckon("messages that waited")?;
        Ok(Found::new(
            [
                format!(
                    "{} bytes in {} files: {} of {} words that they wrote",
                    grouped(seen.bytes),
                    seen.files,
                    seen.found.len(),
                    secret.len()
                ),
                format!("e.g. {}", Hex(glimpse)),
                "it knows who talks to whom, when, and padded sizes".to_owned(),
            ],
            json!({
                "files": seen.files, "bytes": seen.bytes, "messages": held.len(),
                "words": secret.len(), "hits": seen.found.len(), "glimpse": Hex(glimpse).to_string(),
            }),
        ))
    }

    /// Waits until the relay holds exactly so many messages, and returns them.
    async fn wait_for_blobs(&self, count: usize) -> Result<Vec<Vec<u8>>> {
        let start = Instant::now();
        loop {
            let held = blobs(&self.database())?;
            if held.len() == count {
                return Ok(held);
            }
            if start.elapsed() > PATIENCE {
                return Err(broken(format!("the relay holds {} messages, not {count}", held.len())));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Bob's process is killed while messages flow, and comes back.
    pub(crate) async fn bob_dies(&mut self) -> Result<Found> {
        let half = self.size.kill / 2;
        self.say(half)?;
        let heard_before = half / 3;
        while self.tally_heard() < heard_before {
            let line = on_stage(&mut self.bob)?.line(PATIENCE).await?;
            self.tally.arrival(&line.value, line.at);
        }
        let mut bob = self.bob.take().ok_or_else(|| broken("Bob left too early"))?;
        bob.kill()?;
        self.totals.kills += 1;
        self.say(half)?;
        self.receipts(2 * half).await?;
        // What he printed before he died counts.
        while let Some(line) = bob.data.recv().await {
            self.tally.arrival(&line.value, line.at);
        }
        let at_death = self.tally.distinct();
        self.bob = Some(self.start_listener("bob").await?);
        self.hear().await?;
        let balance = self.reckon("Bob's death")?;
        if balance.repeated > crate::commands::listen::ACKNOWLEDGING {
            return Err(broken(format!("{} lines repeated after one kill", balance.repeated)));
        }
        Ok(Found::new(
            [format!(
                "SIGKILL after {at_death} of {}; back: {} lost, {} doubled, in order",
                2 * half,
                balance.lost,
                balance.doubled
            )],
            json!({ "sent": 2 * half, "before": at_death, "lost": balance.lost, "doubled": balance.doubled, "lines_repeated": balance.repeated }),
        ))
    }

    fn tally_heard(&self) -> usize {
        self.tally.distinct()
    }

    /// The relay's process is killed while messages flow, and comes back.
    pub(crate) async fn relay_dies(&mut self) -> Result<Found> {
        let half = self.size.kill / 2;
        self.say(half)?;
        self.receipts(half / 3).await?;
        let mut relay = self.relay.take().ok_or_else(|| broken("the relay left too early"))?;
        relay.kill()?;
        self.totals.kills += 1;
        // Alice writes on: her messages wait in her outbox.
        self.say(half)?;
        self.start_relay().await?;
        let back = Instant::now();
        self.receipts(2 * half - half / 3).await?;
        self.hear().await?;
        let caught_up = back.elapsed();
        let balance = self.reckon("the relay's death")?;
        Ok(Found::new(
            [format!(
                "SIGKILL amid {}; back, all there {:.1} s later: {} lost, {} doubled",
                2 * half,
                caught_up.as_secs_f32(),
                balance.lost,
                balance.doubled
            )],
            json!({ "sent": 2 * half, "lost": balance.lost, "doubled": balance.doubled, "caught_up_ms": caught_up.as_millis() as u64 }),
        ))
    }

    /// One stored message is damaged on the relay's disk: Bob rejects it, and it is repaired without anybody's help.
    pub(crate) async fn disk_lies(&mut self) -> Result<Found> {
        Self::leave(&mut self.bob).await?;
        self.say(3)?;
        self.receipts(3).await?;
        self.wait_for_blobs(3).await?;
        Self::leave(&mut self.relay).await?;
        corrupt(&self.database(), 1)?;
        self.start_relay().await?;
        let mut bob = self.start_listener("bob").await?;
        let rejected = bob.event("message_undecryptable", PATIENCE).await?;
        self.bob = Some(bob);
        self.hear().await?;
        let repaired = on_stage(&mut self.bob)?.event("repaired", PATIENCE).await?;
        let mut balance = self.tally.balance();
        // The repaired one comes after the one that was sent after it: that is the price.
        balance.disordered = 0;
        if !balance.holds() {
            return Err(broken(format!("the repair: {balance:?}")));
        }
        self.turn_page(&balance);
        self.totals.rejected += 1;
        self.totals.repaired += 1;
        let code = rejected["code"].as_str().unwrap_or("?").to_owned();
        Ok(Found::new(
            [
                "one bit flipped in a message on the relay's disk".to_owned(),
                format!("Bob rejects it [{code}], asks again by himself, has it"),
            ],
            json!({ "flipped_bits": 1, "rejected": code, "repaired_id": repaired["id"], "lost": balance.lost }),
        ))
    }

    /// Both see the same safety number.
    pub(crate) async fn numbers_match(&mut self) -> Result<Found> {
        Self::leave(&mut self.alice).await?;
        Self::leave(&mut self.bob).await?;
        let mut digits = Vec::new();
        for (who, peer) in [("alice", "bob"), ("bob", "alice")] {
            let data = self.path(who);
            let args =
                ["identity", "show", "--as", who, "--with", peer, "--data", &data, "--relay", &self.url];
            let shown: Value = self.launcher.ask("stvor identity show", &args).await?;
            digits.push(shown["safety_number"].as_str().unwrap_or_default().to_owned());
        }
        if digits[0].is_empty() || digits[0] != digits[1] {
            return Err(broken(format!("Alice sees {}, Bob sees {}", digits[0], digits[1])));
        }
        let start: String = digits[0].split(' ').take(8).collect::<Vec<_>>().join(" ");
        Ok(Found::new(
            [format!("{start} ..."), "the same at both: nobody sits between them".to_owned()],
            json!({ "safety_number": digits[0] }),
        ))
    }

    /// The relay ends in order, and nobody is left.
    pub(crate) async fn curtain(&mut self) -> Result {
        Self::leave(&mut self.relay).await
    }
}
