//! The course of a run.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha12Rng;
use stvor_protocol::Incoming;
use stvor_testkit::Checker;

use super::{Plan, Role, Verdict};
use crate::Outcome;
use crate::actor::{Actor, Event, News, Program};
use crate::recorder::Recorder;

/// Lines of a sender without a receipt yet, at most: few enough for a pipe to hold them.
const UNDER_WAY: usize = 64;

/// A relay that is not killed again for this long lets clients come back, whatever their back-off.
const MOST_BETWEEN_KILLS: Duration = Duration::from_millis(1_500);

/// After so long without any news the run is stuck, and says so.
const STUCK: Duration = Duration::from_secs(120);

/// Exit code of a command that could not reach the relay in time: expected here, it is started again.
const UNREACHABLE: i32 = 5;

const TOKEN: &str = "stvor_dev_fault";
const RELAY: usize = 0;
const RECEIVER: usize = 1;
const FIRST_SENDER: usize = 2;

/// What is known of a sender.
#[derive(Default)]
struct Sending {
    conversation: String,
    /// Next message's number.
    next: usize,
    /// Written to the present process, without a receipt yet.
    under_way: VecDeque<String>,
}

struct Run {
    plan: Plan,
    rng: ChaCha12Rng,
    actors: Vec<Actor>,
    senders: Vec<Sending>,
    checker: Checker,
    accepted: HashSet<String>,
    /// Id of each message that arrived, and which of the receiver's processes printed it last.
    arrived: HashMap<String, (String, usize)>,
    /// The receiver's process that printed the last new line of a sender.
    printed_by: HashMap<String, usize>,
    start: Instant,
    finishing: bool,
    verdict: Verdict,
}

/// Runs it to its end.
///
/// # Errors
/// When it can not be set up or gets stuck; what is wrong with the history is in the verdict.
pub fn run(plan: Plan) -> Outcome<Verdict> {
    let start = Instant::now();
    let directory = stvor_testkit::temp_dir()?;
    let server = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let recorder = Recorder::start(server)?;
    let (sender, news) = mpsc::channel();
    let places = Places { directory: directory.path(), server, proxy: recorder.address };
    std::fs::write(directory.path().join("settings.toml"), "")?;
    let program = |arguments| Program { binary: plan.binary.clone(), arguments, environment: Vec::new() };
    let mut actors = vec![
        Actor::new(RELAY, program(places.relay()), sender.clone()),
        Actor::new(RECEIVER, program(places.receiver()), sender.clone()),
    ];
    for number in 0..plan.senders {
        actors.push(Actor::new(FIRST_SENDER + number, program(places.sender(number)), sender.clone()));
    }
    let senders = (0..plan.senders)
        .map(|number| Sending { conversation: format!("sender{number}>receiver"), ..Sending::default() })
        .collect();
    let mut run = Run {
        rng: ChaCha12Rng::seed_from_u64(plan.seed),
        plan,
        actors,
        senders,
        checker: Checker::default(),
        accepted: HashSet::new(),
        arrived: HashMap::new(),
        printed_by: HashMap::new(),
        start,
        finishing: false,
        verdict: Verdict::default(),
    };
    for actor in &mut run.actors {
        actor.start()?;
    }
    run.play(&news)?;
    run.judge(&recorder)?;
    run.verdict.seconds = start.elapsed().as_secs_f64();
    Ok(run.verdict)
}

struct Places<'a> {
    directory: &'a Path,
    server: std::net::SocketAddr,
    proxy: std::net::SocketAddr,
}

impl Places<'_> {
    fn arguments(&self, who: &str, command: &[&str]) -> Vec<String> {
        let settings = self.directory.join("settings.toml").display().to_string();
        let data = self.directory.join(who).display().to_string();
        let shared = ["--json", "--config", &settings, "--data", &data];
        command.iter().chain(&shared).map(|text| (*text).to_owned()).collect()
    }

    fn relay(&self) -> Vec<String> {
        let listen = self.server.to_string();
        self.arguments("relay", &["relay", "--dev", "--listen", &listen, "--exit-with-stdin"])
    }

    fn receiver(&self) -> Vec<String> {
        let url = format!("ws://{}", self.proxy);
        let shared = ["--relay", &url, "--token", TOKEN, "--exit-with-stdin"];
        self.arguments("receiver", &[&["listen", "--as", "receiver"], &shared[..]].concat())
    }

    fn sender(&self, number: usize) -> Vec<String> {
        let url = format!("ws://{}", self.proxy);
        let name = format!("sender{number}");
        let command =
            ["send", "--as", &name, "--to", "receiver", "--lines", "--relay", &url, "--token", TOKEN];
        self.arguments(&name, &command)
    }
}

impl Run {
    fn killed(&self) -> usize {
        self.verdict.kills.iter().sum()
    }

    /// Messages that are accepted, or may still be by a process that lives.
    fn under_way(&self) -> usize {
        self.accepted.len() + self.senders.iter().map(|sender| sender.under_way.len()).sum::<usize>()
    }

    fn done(&self) -> bool {
        self.killed() >= self.plan.kills
            && self.accepted.len() >= self.plan.messages
            && self.senders.iter().all(|sender| sender.under_way.is_empty())
            && self.accepted.iter().all(|id| self.arrived.contains_key(id))
    }

    fn play(&mut self, news: &Receiver<News>) -> Outcome<()> {
        // Receipts and arrivals between kills, so that kills and messages last equally long.
        let between = (2 * self.plan.messages / self.plan.kills.max(1)).max(2);
        let mut last_news = Instant::now();
        let mut seen = 0;
        let mut kill_at = (usize::MAX, None::<Instant>);
        while !self.done() {
            self.feed();
            let wait =
                kill_at.1.map_or(MOST_BETWEEN_KILLS, |at| at.saturating_duration_since(Instant::now()));
            match news.recv_timeout(wait) {
                Ok(told) => {
                    last_news = Instant::now();
                    seen += usize::from(self.hear(told)?);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err("nobody is left to tell anything".into()),
            }
            if last_news.elapsed() > STUCK {
                let missing = self.accepted.iter().filter(|id| !self.arrived.contains_key(*id)).count();
                let waiting: usize = self.senders.iter().map(|sender| sender.under_way.len()).sum();
                let text = format!(
                    "nothing happened for {STUCK:?}: {missing} accepted messages missing, {waiting} sends unanswered"
                );
                self.verdict.violations.push(text);
                return Ok(());
            }
            // The first arrival shows that everybody has registered.
            if kill_at.1.is_none() && !self.arrived.is_empty() {
                kill_at = self.next_kill(seen, between);
            }
            let due = kill_at.1.is_some_and(|at| seen >= kill_at.0 || Instant::now() >= at);
            if due && self.killed() < self.plan.kills {
                self.kill()?;
                kill_at = self.next_kill(seen, between);
            }
        }
        self.finish(news)
    }

    /// After how many more receipts and arrivals, and by when at the latest, the next kill comes.
    fn next_kill(&mut self, seen: usize, between: usize) -> (usize, Option<Instant>) {
        let after = self.rng.random_range(1..=2 * between);
        let latest = MOST_BETWEEN_KILLS.mul_f64(self.rng.random_range(0.02..1.0));
        (seen + after, Some(Instant::now() + latest))
    }

    fn kill(&mut self) -> Outcome<()> {
        let role = self.plan.victims[self.rng.random_range(0..self.plan.victims.len())];
        let victim = match role {
            Role::Relay => RELAY,
            Role::Receiver => RECEIVER,
            Role::Sender => FIRST_SENDER + self.rng.random_range(0..self.plan.senders),
        };
        self.actors[victim].kill()?;
        self.tell(&format!("killed role {victim}"));
        self.verdict.kills[role as usize] += 1;
        self.restart(victim)
    }

    fn tell(&mut self, text: &str) {
        let at = self.start.elapsed().as_millis();
        self.verdict.log.push(format!("{at} {text}"));
    }

    fn restart(&mut self, actor: usize) -> Outcome<()> {
        if let Some(sender) = actor.checked_sub(FIRST_SENDER) {
            // What the dead process had not reported stays unreported: it may arrive or not.
            self.senders[sender].under_way.clear();
        }
        self.actors[actor].start()
    }

    /// Gives every sender as much as it may have under way.
    fn feed(&mut self) {
        let at = self.start.elapsed().as_millis();
        let mut left = self.plan.messages.saturating_sub(self.under_way());
        for (number, sender) in self.senders.iter_mut().enumerate() {
            while sender.under_way.len() < UNDER_WAY && left > 0 {
                let text = format!("{number}-{}", sender.next);
                self.checker.sent(&sender.conversation, &text, text.as_bytes());
                sender.next += 1;
                left -= 1;
                if !self.actors[FIRST_SENDER + number].write(&text) {
                    break;
                }
                self.verdict.log.push(format!("{at} wrote {text}"));
                sender.under_way.push_back(text);
            }
        }
    }

    /// Takes note of something; true if it was a receipt or an arrival.
    fn hear(&mut self, news: News) -> Outcome<bool> {
        let News { actor, life, event } = news;
        let present = self.actors[actor].life == life;
        match &event {
            Event::Out(line) | Event::Err(line) => self.tell(&format!("role {actor} life {life}: {line}")),
            Event::End => self.tell(&format!("role {actor} life {life} has ended")),
        }
        match (event, actor) {
            (Event::Out(line), RECEIVER) => self.arrival(&line, life),
            (Event::Out(line), FIRST_SENDER..) if present => self.receipt(actor - FIRST_SENDER, &line),
            (Event::Err(line), _) => {
                if ["undecryptable", "ROLLBACK", "IDENTITY_CHANGED", "panicked"]
                    .iter()
                    .any(|bad| line.contains(bad))
                {
                    self.verdict.violations.push(format!("role {actor} says: {line}"));
                }
                Ok(false)
            }
            (Event::End, _) if present && !self.finishing => {
                match self.actors[actor].reap()? {
                    None => return Ok(false),
                    Some(UNREACHABLE) => {}
                    Some(code) => {
                        self.verdict.violations.push(format!("role {actor} ended by itself with code {code}"))
                    }
                }
                self.restart(actor)?;
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    fn receipt(&mut self, number: usize, line: &str) -> Outcome<bool> {
        let sender = &mut self.senders[number];
        let receipt: serde_json::Value = serde_json::from_str(line)?;
        let text = sender.under_way.pop_front().ok_or("a receipt for a message that was not sent")?;
        match receipt["status"].as_str() {
            Some("accepted" | "delivered" | "read") => {
                self.checker.accepted(&sender.conversation, &text);
                self.accepted.insert(text);
            }
            other => self.verdict.violations.push(format!("{text} has the status {other:?}: {line}")),
        }
        Ok(true)
    }

    fn arrival(&mut self, line: &str, life: usize) -> Outcome<bool> {
        let message: serde_json::Value = serde_json::from_str(line)?;
        let (Some(text), Some(from)) = (message["text"].as_str(), message["from"].as_str()) else {
            return Err(format!("the receiver printed something else than a message: {line}").into());
        };
        let id = message["id"].as_str().ok_or("a message without an id")?.to_owned();
        let before = self.arrived.insert(text.to_owned(), (id.clone(), life));
        // What was printed and not acknowledged by a killed process comes again, before anything new of that sender.
        let fresh = self.printed_by.get(from) != Some(&life);
        let allowed = |(first, by): &(String, usize)| *first == id && *by != life && fresh;
        if before.as_ref().is_some_and(allowed) {
            self.verdict.repeats += 1;
            return Ok(true);
        }
        self.printed_by.insert(from.to_owned(), life);
        self.checker.received(&format!("{from}>receiver"), text, text.as_bytes());
        Ok(true)
    }

    /// An orderly end for everybody: late repeats would show here.
    fn finish(&mut self, news: &Receiver<News>) -> Outcome<()> {
        self.finishing = true;
        let mut over: HashSet<(usize, usize)> = HashSet::new();
        let roles = (FIRST_SENDER..self.actors.len()).chain([RECEIVER, RELAY]);
        for role in roles.collect::<Vec<_>>() {
            self.actors[role].finish();
            while !over.contains(&(role, self.actors[role].life)) {
                let told = news.recv_timeout(STUCK).map_err(|_| format!("role {role} does not end"))?;
                if matches!(told.event, Event::End) {
                    over.insert((told.actor, told.life));
                }
                self.hear(told)?;
            }
            if let Some(code @ 1..) = self.actors[role].reap()? {
                self.verdict.violations.push(format!("role {role} ended with code {code}"));
            }
        }
        Ok(())
    }

    fn judge(&mut self, recorder: &Recorder) -> Outcome<()> {
        self.verdict.counts = self.checker.counts();
        let wrong = self.checker.verdict();
        self.verdict.violations.extend(wrong.iter().map(ToString::to_string));
        let (different, reused) = recorder.keys_used_twice()?;
        self.verdict.violations.extend(reused);
        self.verdict.blobs = different;
        self.judge_deliveries(recorder)?;
        if self.verdict.blobs < self.accepted.len() {
            self.verdict.violations.push("fewer blobs were recorded than messages accepted".to_owned());
        }
        Ok(())
    }

    /// On one connection the relay delivers the messages of a chain in the order of their numbers.
    fn judge_deliveries(&mut self, recorder: &Recorder) -> Outcome<()> {
        let deliveries = recorder.deliveries()?;
        if deliveries.iter().map(Vec::len).sum::<usize>() < self.arrived.len() {
            self.verdict.violations.push("fewer deliveries were recorded than messages arrived".to_owned());
        }
        for (connection, delivered) in deliveries.into_iter().enumerate() {
            let mut reached = HashMap::new();
            for (from, blob) in delivered {
                let (ratchet_key, number) = Incoming::parse(&blob)?.position();
                let last = reached.entry(ratchet_key.to_vec()).or_insert(number);
                if number < *last {
                    let text = format!(
                        "connection {connection}: the relay delivered number {number} of {} after {last}",
                        from.user
                    );
                    self.verdict.violations.push(text);
                }
                *last = number.max(*last);
            }
        }
        Ok(())
    }
}
