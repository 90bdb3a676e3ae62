//! The course of a run.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha12Rng;
use stvor_testkit::{Postgres, Promotion, Redis, RedisCluster, RedisPair};

use super::child::{MARK, PLACE, Place};
use super::judge::Judge;
use super::{Backend, Plan, Role, Verdict};
use crate::Outcome;
use crate::actor::{Actor, Event, News, Program};
use crate::recorder::Recorder;

/// Messages that a process was told to send and did not say were taken, at most.
const UNDER_WAY: usize = 32;

/// Messages of one direction that were taken and have not arrived, at most.
const ON_THE_WAY: usize = 1_000;

/// So long after a kill the next one comes at the latest.
const MOST_BETWEEN_KILLS: Duration = Duration::from_secs(5);

/// After so long without any news the run is stuck, and says so.
const STUCK: Duration = Duration::from_secs(120);

const RELAY: usize = 0;
const PEER: usize = 1;
const FIRST_INSTANCE: usize = 2;

/// The server of the shared store.
enum Server {
    Postgres(Postgres, String),
    Redis(Redis),
    RedisPair(Box<RedisPair>),
    RedisCluster(RedisCluster),
}

impl Server {
    fn start(backend: Backend) -> Outcome<Option<Self>> {
        Ok(match backend {
            Backend::Postgres => match Postgres::start()? {
                Some(server) => {
                    let url = server.database()?.url;
                    Some(Self::Postgres(server, url))
                }
                None => None,
            },
            Backend::Redis => Redis::start()?.map(Self::Redis),
            Backend::RedisPair => RedisPair::start()?.map(Box::new).map(Self::RedisPair),
            Backend::RedisCluster => RedisCluster::start_with_replicas()?.map(Self::RedisCluster),
        })
    }

    fn url(&self) -> String {
        match self {
            Self::Postgres(_, url) => url.clone(),
            Self::Redis(server) => server.url(),
            Self::RedisPair(pair) => pair.url(),
            Self::RedisCluster(cluster) => cluster.urls().swap_remove(0),
        }
    }

    /// SIGKILL, and the same server again, or its replica in its place.
    fn kill(&self) -> Outcome<()> {
        match self {
            Self::Postgres(server, _) => server.kill().and_then(|()| server.restart())?,
            Self::Redis(server) => server.kill().and_then(|()| server.restart())?,
            Self::RedisPair(pair) => pair.fail_over()?,
            Self::RedisCluster(cluster) => cluster.fail_over(Promotion::Ordered)?,
        }
        Ok(())
    }
}

/// What is known of a process that sends.
#[derive(Default)]
struct Sending {
    /// It said that it is there.
    ready: bool,
    next: usize,
    under_way: HashSet<String>,
}

struct Run {
    plan: Plan,
    rng: ChaCha12Rng,
    server: Server,
    actors: Vec<Actor>,
    sending: Vec<Sending>,
    /// Messages of the instances, and those of the peer.
    judges: [Judge; 2],
    identities: HashMap<bool, String>,
    /// What processes said about messages that are not under way.
    opened: Vec<String>,
    sealed: bool,
    finishing: bool,
    start: Instant,
    log: Vec<String>,
    verdict: Verdict,
}

/// The files of a run.
struct Ground {
    directory: stvor_testkit::temp::TempDir,
    recorder: Recorder,
    news: Receiver<News>,
}

/// Runs it to its end; `None`, with a note, where the server is not installed.
///
/// # Errors
/// When it can not be set up or gets stuck; what is wrong with the history is in the verdict.
pub fn run(plan: Plan) -> Outcome<Option<Verdict>> {
    let Some((mut run, ground)) = set_up(plan)? else { return Ok(None) };
    let played = run.play(&ground.news).and_then(|()| run.finish(&ground.news));
    run.keep_log()?;
    played?;
    run.judge(&ground.recorder).map(Some)
}

/// Opens a thousand copies of one message in all instances at once, and some more in one that is started again; how many
/// passed. `None` where the server is not installed.
///
/// # Errors
/// As [`run`].
pub fn copies(plan: Plan) -> Outcome<Option<usize>> {
    const COPIES: usize = 1_000;
    let Some((mut run, ground)) = set_up(plan)? else { return Ok(None) };
    let file = ground.directory.path().join("sealed").display().to_string();
    let instances = FIRST_INSTANCE..run.actors.len();
    run.wait_until(&ground.news, |run| run.sending.iter().all(|one| one.ready))?;
    run.actors[PEER].write(&format!("seal {file}"));
    run.wait_until(&ground.news, |run| run.sealed)?;
    let share = COPIES / instances.len();
    instances.clone().for_each(|one| {
        run.actors[one].write(&format!("open {share} {file}"));
    });
    let all = instances.len();
    run.wait_until(&ground.news, |run| run.opened.len() == all)?;
    run.kill(FIRST_INSTANCE)?;
    run.wait_until(&ground.news, |run| run.sending.iter().all(|one| one.ready))?;
    run.actors[FIRST_INSTANCE].write(&format!("open {share} {file}"));
    run.wait_until(&ground.news, |run| run.opened.len() == all + 1)?;
    run.finish(&ground.news)?;
    if let [first, ..] = &run.verdict.violations[..] {
        return Err(first.clone().into());
    }
    let passed = |told: &String| told.split(' ').next()?.parse::<usize>().ok();
    Ok(Some(run.opened.iter().filter_map(passed).sum()))
}

fn set_up(plan: Plan) -> Outcome<Option<(Run, Ground)>> {
    let Some(server) = Server::start(plan.backend)? else { return Ok(None) };
    let directory = stvor_testkit::temp_dir()?;
    let relay = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let recorder = Recorder::start(relay)?;
    let (sender, news) = mpsc::channel();
    let place = |user: &str, store| Place {
        relay: format!("ws://{}", recorder.address),
        store,
        directory: directory.path().join(user),
        user: user.to_owned(),
        peer: if user == "alice" { "bob" } else { "alice" }.to_owned(),
    };
    for user in ["alice", "bob"] {
        std::fs::create_dir(directory.path().join(user))?;
    }
    let alice = place("alice", Some((plan.backend, server.url())));
    let mut programs =
        vec![relay_program(&plan, directory.path(), relay)?, child_program(&plan, &place("bob", None))?];
    for _ in 0..plan.instances {
        programs.push(child_program(&plan, &alice)?);
    }
    let actors: Vec<Actor> = programs
        .into_iter()
        .enumerate()
        .map(|(number, program)| Actor::new(number, program, sender.clone()))
        .collect();
    let mut run = Run {
        rng: ChaCha12Rng::seed_from_u64(plan.seed),
        server,
        sending: actors.iter().map(|_| Sending::default()).collect(),
        actors,
        judges: [Judge::ordered(), Judge::default()],
        identities: HashMap::new(),
        opened: Vec::new(),
        sealed: false,
        finishing: false,
        start: Instant::now(),
        log: Vec::new(),
        verdict: Verdict::default(),
        plan,
    };
    run.sending[RELAY].ready = true;
    for actor in 0..run.actors.len() {
        run.actors[actor].start()?;
    }
    Ok(Some((run, Ground { directory, recorder, news })))
}

fn relay_program(plan: &Plan, directory: &Path, listen: std::net::SocketAddr) -> Outcome<Program> {
    let (settings, data) = (directory.join("settings.toml"), directory.join("relay"));
    std::fs::write(&settings, "")?;
    let mut arguments: Vec<String> =
        ["relay", "--dev", "--json", "--exit-with-stdin", "--listen"].map(str::to_owned).to_vec();
    arguments.extend([listen.to_string(), "--config".to_owned(), settings.display().to_string()]);
    arguments.extend(["--data".to_owned(), data.display().to_string()]);
    Ok(Program { binary: plan.binary.clone(), arguments, environment: Vec::new() })
}

fn child_program(plan: &Plan, place: &Place) -> Outcome<Program> {
    let (binary, arguments) = plan.child.clone();
    let environment = vec![(PLACE.to_owned(), serde_json::to_string(place)?)];
    Ok(Program { binary, arguments, environment })
}

/// Whose messages an actor sends.
fn direction(actor: usize) -> usize {
    usize::from(actor == PEER)
}

impl Run {
    fn killed(&self) -> usize {
        self.verdict.kills.iter().sum()
    }

    fn tell(&mut self, text: &str) {
        let at = self.start.elapsed().as_millis();
        self.log.push(format!("{at} {text}"));
    }

    /// The log of the run, in the file that `STVOR_FLEET_LOG` names.
    fn keep_log(&self) -> Outcome<()> {
        match std::env::var_os("STVOR_FLEET_LOG") {
            Some(path) => Ok(std::fs::write(path, self.log.join("\n"))?),
            None => Ok(()),
        }
    }

    fn done(&self) -> bool {
        self.killed() >= self.plan.kills
            && self.judges.iter().all(|judge| judge.taken >= self.plan.messages)
            && self.sending.iter().all(|one| one.under_way.is_empty())
            && self.judges.iter().all(|judge| judge.unsettled().next().is_none())
    }

    /// Sends, listens and kills until everything is done.
    fn play(&mut self, news: &Receiver<News>) -> Outcome<()> {
        self.wait_until(news, |run| run.sending.iter().all(|one| one.ready))?;
        // Arrivals and consumptions between kills, so that kills and messages last equally long.
        let between = (4 * self.plan.messages / (self.plan.kills + 1)).max(2);
        let (mut heard, mut last) = (0_usize, Instant::now());
        let mut next = (self.rng.random_range(1..=2 * between), Instant::now() + MOST_BETWEEN_KILLS);
        loop {
            self.feed();
            let told = match news.recv_timeout(Duration::from_millis(200)) {
                Ok(told) => Some(told),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Err("everybody is gone".into()),
            };
            let idle = told.is_none();
            if let Some(told) = told {
                last = Instant::now();
                heard += usize::from(self.hear(told)?);
            }
            if self.killed() < self.plan.kills && (heard >= next.0 || Instant::now() >= next.1) {
                self.strike()?;
                last = Instant::now();
                let most = MOST_BETWEEN_KILLS.mul_f64(self.rng.random_range(0.2..1.0));
                next = (heard + self.rng.random_range(1..=2 * between), Instant::now() + most);
            }
            if idle && self.done() {
                return Ok(());
            }
            if last.elapsed() > STUCK {
                return Err(self.stuck().into());
            }
        }
    }

    fn stuck(&self) -> String {
        let open = self.judges.each_ref().map(|judge| judge.unsettled().take(5).collect::<Vec<_>>());
        let ready: Vec<bool> = self.sending.iter().map(|one| one.ready).collect();
        let taken = self.judges.each_ref().map(|judge| judge.taken);
        let tail = self.log.iter().rev().take(30).rev().cloned().collect::<Vec<_>>().join("\n  ");
        format!("nothing happens any more: taken {taken:?}, ready {ready:?}, still open {open:?}\n  {tail}")
    }

    fn wait_until(&mut self, news: &Receiver<News>, reached: impl Fn(&Self) -> bool) -> Outcome<()> {
        while !reached(self) {
            let told = news.recv_timeout(STUCK).map_err(|_| self.stuck())?;
            self.hear(told)?;
        }
        Ok(())
    }

    /// Kills somebody.
    fn strike(&mut self) -> Outcome<()> {
        let role = self.plan.victims[self.rng.random_range(0..self.plan.victims.len())];
        match role {
            Role::Instance => {
                let victim = FIRST_INSTANCE + self.rng.random_range(0..self.plan.instances);
                self.kill(victim)?;
            }
            Role::Peer => self.kill(PEER)?,
            Role::Relay => self.kill(RELAY)?,
            Role::Server => {
                self.tell("kill the server of the store");
                self.server.kill()?;
            }
        }
        self.verdict.kills[role as usize] += 1;
        Ok(())
    }

    fn kill(&mut self, victim: usize) -> Outcome<()> {
        self.actors[victim].kill()?;
        self.tell(&format!("killed role {victim}"));
        self.restart(victim)
    }

    fn restart(&mut self, actor: usize) -> Outcome<()> {
        let before = (actor, self.actors[actor].life);
        self.actors[actor].start()?;
        if actor != RELAY {
            self.sending[actor] = Sending::default();
            self.judges.iter_mut().for_each(|judge| judge.died(before));
            self.judges.iter_mut().for_each(|judge| judge.started((actor, before.1 + 1)));
        }
        Ok(())
    }

    /// Gives everybody who is there as much as he may have under way.
    fn feed(&mut self) {
        for actor in PEER..self.actors.len() {
            let life = self.actors[actor].life;
            loop {
                let judge = &self.judges[direction(actor)];
                let under_way: usize = (PEER..self.actors.len())
                    .filter(|other| direction(*other) == direction(actor))
                    .map(|other| self.sending[other].under_way.len())
                    .sum();
                let one = &self.sending[actor];
                let goes = one.ready
                    && one.under_way.len() < UNDER_WAY
                    && judge.taken + under_way < self.plan.messages
                    && judge.taken + under_way < judge.arrived + ON_THE_WAY;
                if !goes {
                    break;
                }
                let id = format!("{actor}.{life}-{}", one.next);
                self.judges[direction(actor)].sent(&id);
                self.sending[actor].next += 1;
                if !self.actors[actor].write(&format!("send {id}")) {
                    break;
                }
                self.sending[actor].under_way.insert(id);
            }
        }
    }

    /// Takes note of something; true if it was about a message.
    fn hear(&mut self, news: News) -> Outcome<bool> {
        let News { actor, life, event } = news;
        match event {
            Event::Out(line) => {
                self.tell(&format!("role {actor} life {life}: {line}"));
                match line.split_once(MARK) {
                    Some((_, told)) => Ok(self.said((actor, life), told)),
                    None => Ok(false),
                }
            }
            Event::Err(line) => {
                self.tell(&format!("role {actor} life {life}: {line}"));
                if line.contains("panicked") {
                    self.verdict.violations.push(format!("role {actor} says: {line}"));
                }
                Ok(false)
            }
            Event::End => {
                self.tell(&format!("role {actor} life {life} has ended"));
                if self.actors[actor].life == life && !self.finishing {
                    let Some(code) = self.actors[actor].reap()? else { return Ok(false) };
                    self.verdict.violations.push(format!("role {actor} ended by itself with code {code}"));
                    self.restart(actor)?;
                }
                Ok(false)
            }
        }
    }

    fn said(&mut self, (actor, life): (usize, usize), told: &str) -> bool {
        let (word, rest) = told.split_once(' ').unwrap_or((told, ""));
        match word {
            "identity" => {
                let known = self.identities.entry(actor == PEER).or_insert_with(|| rest.to_owned());
                if known != rest {
                    self.verdict
                        .violations
                        .push(format!("role {actor} has the identity {rest}, not {known}"));
                }
                self.sending[actor].ready |= self.actors[actor].life == life;
            }
            "taken" | "perhaps" => {
                self.sending[actor].under_way.remove(rest);
                if word == "taken" {
                    self.judges[direction(actor)].taken(rest);
                }
                return true;
            }
            "bad" => self.verdict.violations.push(format!("role {actor} life {life}: {rest}")),
            "sealed" => self.sealed = true,
            "opened" => self.opened.push(rest.to_owned()),
            _ => return self.judges[1 - direction(actor)].hear((actor, life), word, rest),
        }
        false
    }

    /// An orderly end for everybody: late repeats would show here.
    fn finish(&mut self, news: &Receiver<News>) -> Outcome<()> {
        self.finishing = true;
        let mut over: HashSet<(usize, usize)> = HashSet::new();
        for actor in (FIRST_INSTANCE..self.actors.len()).chain([PEER, RELAY]) {
            self.actors[actor].finish();
            while !over.contains(&(actor, self.actors[actor].life)) {
                let told = news.recv_timeout(STUCK).map_err(|_| format!("role {actor} does not end"))?;
                if matches!(told.event, Event::End) {
                    over.insert((told.actor, told.life));
                }
                self.hear(told)?;
            }
            if let Some(code @ 1..) = self.actors[actor].reap()? {
                self.verdict.violations.push(format!("role {actor} ended with code {code}"));
            }
        }
        Ok(())
    }

    fn judge(mut self, recorder: &Recorder) -> Outcome<Verdict> {
        let (different, reused) = recorder.keys_used_twice()?;
        self.verdict.violations.extend(reused);
        self.verdict.blobs = different;
        self.verdict.seconds = self.start.elapsed().as_secs_f64();
        self.verdict.taken = self.judges.each_ref().map(|judge| judge.taken);
        self.verdict.consumed = self.judges.each_ref().map(Judge::consumed);
        self.verdict.again = self.judges.iter().map(|judge| judge.again).sum();
        if different < self.verdict.taken.iter().sum() {
            self.verdict.violations.push("fewer blobs were recorded than messages sent".to_owned());
        }
        for judge in self.judges {
            self.verdict.violations.extend(judge.verdict());
        }
        Ok(self.verdict)
    }
}
