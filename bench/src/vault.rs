//! The vault: storing, recalling, searching, verifying, unlocking, and what each gate costs.
//!
//! Every recall and search waits for a commit, because it is logged before its answer leaves. So a bare commit of SQLite on the
//! same disk is measured in turns with it, and is its floor. What the Python vault reached that had these ideas first was
//! measured elsewhere and at another time: it is cited, not measured here.

use std::collections::VecDeque;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use stvor_base::Timestamp;
use stvor_crypto::ed25519::SigningKey;
use stvor_crypto::{Secret, SecretBytes, SystemRandom};
use stvor_keys::challenge::SoftwareToken;
use stvor_keys::{Passphrase, PassphraseCost};
use stvor_vault::gates::boundary::{Boundary, Mode, Verdict, serve};
use stvor_vault::tokens::{Enrolment, Presented};
use stvor_vault::{
    Agent, Caller, Level, MemoryId, NewKeys, NewMemory, Options, Vault, unwrap_root, unwrap_vaulted,
};

use crate::Outcome;
use crate::process::cpu_time;
use crate::report::{Row, Summary, Target};

/// How much is stored, and how often something is done.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Memories in the vault at which storing, recalling and searching is measured.
    pub memories: [usize; 3],
    /// Events in the log at which verifying, unlocking and a recall are measured.
    pub events: usize,
    /// How often each thing is done.
    pub rounds: usize,
    /// What a passphrase costs, in words and as it is.
    pub passphrases: [(&'static str, PassphraseCost); 2],
}

/// The least and the most of what `stvor vault init --cost` offers.
const PASSPHRASES: [(&str, PassphraseCost); 2] = [
    ("64 MiB and 3 passes", PassphraseCost { memory_kib: 64 * 1024, iterations: 3, parallelism: 1 }),
    (
        "1 GiB and 4 passes: the default of `stvor vault init`",
        PassphraseCost { memory_kib: 1024 * 1024, iterations: 4, parallelism: 1 },
    ),
];

impl Size {
    /// The sizes of the design's numbers.
    pub const FULL: Self =
        Self { memories: [1_000, 10_000, 100_000], events: 1_000_000, rounds: 300, passphrases: PASSPHRASES };
    /// A rough idea in a small part of the time.
    pub const QUICK: Self =
        Self { memories: [200, 1_000, 5_000], events: 20_000, rounds: 40, passphrases: PASSPHRASES };
}

const OWNER: &Caller = &Caller::Owner;
/// In whose name the figures of others stand: they are not of this run.
const CITED: &str = "Python vault (cited)";
/// Stores that are under way at one time.
const IN_FLIGHT: usize = 256;
const SPACE: &str = "bench";
/// For what is not about the cost of a passphrase.
const CHEAP: PassphraseCost = PassphraseCost { memory_kib: 64, iterations: 1, parallelism: 1 };
/// The shortest pause there is.
const PAUSE: Duration = Duration::from_millis(1);
/// Recalls with and without a gate are so many times as many as other things: what they differ by is small.
const OFTENER: usize = 3;

/// Figures of the Python vault, in the unit of the row, at the number of memories, events or KiB that stands beside them.
mod cited {
    pub(super) const STORES: [(usize, f64); 2] = [(1_000, 318.0), (10_000, 703.0)];
    pub(super) const RECALL_MS: [(usize, f64); 2] = [(1_000, 1.4), (10_000, 6.0)];
    pub(super) const RARE_MS: [(usize, f64); 2] = [(1_000, 0.02), (10_000, 0.04)];
    pub(super) const COMMON_MS: [(usize, f64); 2] = [(1_000, 0.43), (10_000, 5.0)];
    /// A recall at a log of 10,000 events; it grows with the log.
    pub(super) const RECALL_LOG_MS: f64 = 51.0;
    /// Rows of memories not included.
    pub(super) const VERIFIES: f64 = 19_000.0;
    /// One derivation of its passphrase, of 1 GiB and 4 passes, which every store and recall of such a profile pays.
    pub(super) const DERIVATION_MS: [(usize, f64); 1] = [(1024 * 1024, 4_400.0)];
}

/// Measures everything.
///
/// # Errors
/// When the vault refuses what it should do.
pub fn run(size: Size, summary: &mut Summary) -> Outcome<()> {
    for memories in size.memories {
        let place = Place::new()?;
        at_memories(&place.open()?, (&place, memories), (size, summary))?;
    }
    at_events(size, summary)?;
    passphrases(size, summary)?;
    gates(size, summary)?;
    summary.note(format!(
        "{CITED}: its own figures, on a like machine, of another day; it logs no search, verifies no rows, and asks one passphrase for each memory"
    ));
    Ok(())
}

/// A vault in a directory that goes away, on the disk that this runs on: in memory a commit costs nothing.
struct Place {
    directory: tempfile::TempDir,
}

fn secret(text: &str, cost: PassphraseCost) -> Outcome<Passphrase> {
    Ok(Passphrase::new(SecretBytes::from_slice(text.as_bytes()))?.with_cost(cost)?)
}

fn owner() -> Outcome<Passphrase> {
    secret("bench", CHEAP)
}

fn second() -> Outcome<Passphrase> {
    secret("bench, second", CHEAP)
}

impl Place {
    fn new() -> Outcome<Self> {
        let place = Self { directory: tempfile::tempdir_in(".")? };
        let (owner, second) = (owner()?, second()?);
        let keys = NewKeys { owner: &owner, vaulted: Some(&second), origin: "bench" };
        Vault::create(&place.path(), &keys)?;
        Ok(place)
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("vault")
    }

    fn open(&self) -> Outcome<Vault> {
        self.open_with(Options::default())
    }

    fn open_with(&self, options: Options) -> Outcome<Vault> {
        let vault = Vault::open(&self.path(), options)?;
        let (records, second) = (vault.records()?, second()?);
        let vaulted = records.vaulted.as_ref().map(|record| unwrap_vaulted(record, &second)).transpose()?;
        vault.unlock(unwrap_root(&records.root, &owner()?)?, vaulted)?;
        Ok(vault)
    }
}

/// What a commit costs on this disk by itself.
struct Bare(rusqlite::Connection);

impl Bare {
    fn new(directory: &Path) -> Outcome<Self> {
        let database = rusqlite::Connection::open(directory.join("bare.db"))?;
        database.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (a INTEGER, b BLOB);",
        )?;
        Ok(Self(database))
    }

    fn commit(&self) -> Outcome<()> {
        self.0.execute("INSERT INTO t VALUES (1, zeroblob(300))", [])?;
        Ok(())
    }
}

/// The middle of some times, in milliseconds.
fn middle(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// The middle time of `work` and of a bare commit, in turns, in milliseconds.
fn beside(
    (bare, rounds): (&Bare, usize),
    mut work: impl FnMut(usize) -> Outcome<Duration>,
) -> Outcome<(f64, f64)> {
    let (mut ours, mut floor) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
    for round in 0..rounds {
        ours.push(work(round)?);
        let start = Instant::now();
        bare.commit()?;
        floor.push(start.elapsed());
    }
    Ok((middle(ours), middle(floor)))
}

/// How much longer the middle time of `with` is than that of `without`, in turns, in milliseconds.
fn difference(
    rounds: usize,
    mut with: impl FnMut() -> Outcome<Duration>,
    mut without: impl FnMut() -> Outcome<Duration>,
) -> Outcome<f64> {
    let (mut long, mut short) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
    for _ in 0..rounds {
        long.push(with()?);
        short.push(without()?);
    }
    Ok(middle(long) - middle(short))
}

fn timed<T>(work: impl FnOnce() -> Result<T, stvor_vault::VaultError>) -> Outcome<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

/// A memory of about 200 bytes: a word that all have, one that 0.1 % have, one that 1 % have.
fn memory(number: usize, level: Level) -> NewMemory {
    let (rare, subject) = (number % 1_000, number % 100);
    let content = format!("memory {number} about topic{rare} and subject{subject} {}", "word ".repeat(30));
    NewMemory::new(content.as_bytes(), level, SPACE)
}

/// Stores so many with [`IN_FLIGHT`] under way. Returns their names, and how many a second that were.
fn fill(vault: &Vault, (count, level): (usize, Level)) -> Outcome<(Vec<MemoryId>, f64)> {
    let start = Instant::now();
    let (mut ids, mut flying) = (Vec::with_capacity(count), VecDeque::new());
    for number in 0..count {
        flying.push_back(vault.begin_store(OWNER, memory(number, level)));
        if flying.len() >= IN_FLIGHT
            && let Some(oldest) = flying.pop_front()
        {
            ids.push(oldest.wait()?);
        }
    }
    for pending in flying {
        ids.push(pending.wait()?);
    }
    Ok((ids, number(count) / start.elapsed().as_secs_f64()))
}

/// Counts here are far below 2^52.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn number(count: usize) -> f64 {
    count as f64
}

/// Adds a cited figure, if there is one for just this size.
fn citing(row: Row, figures: &[(usize, f64)], size: usize) -> Row {
    match figures.iter().find(|(at, _)| *at == size) {
        Some((_, figure)) => row.peer(CITED, *figure),
        None => row,
    }
}

/// Storing, recalling and searching in a vault of so many memories.
fn at_memories(
    vault: &Vault,
    (place, memories): (&Place, usize),
    (size, summary): (Size, &mut Summary),
) -> Outcome<()> {
    let bare = Bare::new(place.directory.path())?;
    let turns = (&bare, size.rounds);
    let (ids, rate) = fill(vault, (memories, Level::Working))?;
    let name = format!("vault: store, level 1, {IN_FLIGHT} in flight, until {memories} memories");
    let row = Row::new(&name, "/s", rate);
    // Of fewer memories than are under way at one time there is one commit, and no rate.
    let row = if memories > IN_FLIGHT { row.target(Target::AtLeast(10_000.0)) } else { row };
    summary.push(citing(row, &cited::STORES, memories));
    let one = |level| move |round: usize| timed(|| vault.store(OWNER, memory(round, level)));
    for level in [Level::Working, Level::Private] {
        let (ours, floor) = beside(turns, one(level))?;
        let name = format!("vault: store, level {level}, one at a time, {memories} memories");
        summary.push(Row::new(&name, "ms", ours).floor(floor));
    }
    let pick = |round: usize| ids.get(round * 7 % ids.len()).copied().ok_or("there are no memories");
    let (ours, floor) = beside(turns, |round| {
        let id = pick(round)?;
        timed(|| vault.recall(OWNER, id, ""))
    })?;
    let row = Row::new(&format!("vault: recall, level 1, {memories} memories"), "ms", ours);
    summary.push(citing(row.floor(floor).target(Target::AtMost(floor + 0.3)), &cited::RECALL_MS, memories));
    let first = timed(|| vault.search(OWNER, SPACE, "topic7"))?.as_secs_f64() * 1e3;
    summary.push(Row::new(
        &format!("vault: first search, which makes the index, {memories} memories"),
        "ms",
        first,
    ));
    let (ours, floor) =
        beside(turns, |round| timed(|| vault.search(OWNER, SPACE, &format!("topic{}", round % 1_000))))?;
    let row = Row::new(&format!("vault: search, 0.1 % of {memories} match"), "ms", ours);
    summary.push(citing(row.floor(floor).target(Target::AtMost(5.0)), &cited::RARE_MS, memories));
    let (ours, floor) =
        beside(turns, |round| timed(|| vault.search(OWNER, SPACE, &format!("subject{}", round % 100))))?;
    let row = Row::new(&format!("vault: search, 1 % of {memories} match"), "ms", ours);
    summary.push(row.floor(floor).target(Target::AtMost(5.0)));
    let (ours, floor) = beside(turns, |_| timed(|| vault.search(OWNER, SPACE, "word")))?;
    let row = Row::new(&format!("vault: search, all of {memories} match"), "ms", ours);
    summary.push(citing(row.floor(floor).target(Target::AtMost(100.0)), &cited::COMMON_MS, memories));
    Ok(())
}

/// What depends on how long the log is.
fn at_events(size: Size, summary: &mut Summary) -> Outcome<()> {
    let place = Place::new()?;
    let bare = Bare::new(place.directory.path())?;
    let vault = place.open()?;
    let (ids, _) = fill(&vault, (size.events, Level::Working))?;
    let events = vault.status()?.events;
    let (ours, floor) = beside((&bare, size.rounds), |round| {
        let id = ids.get(round * 7 % ids.len()).copied().ok_or("there are no memories")?;
        timed(|| vault.recall(OWNER, id, ""))
    })?;
    let row = Row::new(&format!("vault: recall, level 1, {events} events"), "ms", ours);
    summary.push(row.floor(floor).target(Target::AtMost(floor + 0.3)).peer(CITED, cited::RECALL_LOG_MS));
    let (start, before) = (Instant::now(), cpu_time(std::process::id())?);
    let report = vault.verify()?;
    let took = start.elapsed().as_secs_f64();
    let used = cpu_time(std::process::id())?.saturating_sub(before);
    if !report.problems.is_empty() {
        return Err(format!("the vault does not verify: {:?}", report.problems).into());
    }
    let rate = number(usize::try_from(report.events)?) / took;
    let row =
        Row::new(&format!("vault: verify, {} events, and as many rows", report.events), "events/s", rate);
    summary.push(row.target(Target::AtLeast(200_000.0)).peer(CITED, cited::VERIFIES));
    // What it takes of the processors depends less on who else uses the machine than the rate does.
    let each = used.as_secs_f64() * 1e6 / number(usize::try_from(report.events)?);
    let name = format!("vault: verify, processor time of an event and a row, {} events", report.events);
    summary.push(Row::new(&name, "us", each));
    drop(vault);

    let vault = Vault::open(&place.path(), Options::default())?;
    let (record, owner) = (vault.records()?.root, owner()?);
    let root = unwrap_root(&record, &owner)?;
    let took = timed(|| vault.unlock(root, None))?.as_secs_f64() * 1e3;
    summary.push(Row::new(&format!("vault: unlock, key at hand, {events} events"), "ms", took));
    Ok(())
}

/// What each command of the owner pays for the passphrase. Agents pay none of it: their keys are those of the owner's session.
fn passphrases(size: Size, summary: &mut Summary) -> Outcome<()> {
    let mut rng = SystemRandom::new();
    let key = Secret::<32>::random(&mut rng)?;
    for (what, cost) in size.passphrases {
        let owner = secret("bench", cost)?;
        let start = Instant::now();
        stvor_keys::KeyHolder::wrap(&owner, &key, b"bench", &mut rng)?;
        let took = start.elapsed().as_secs_f64() * 1e3;
        let row = Row::new(&format!("vault: passphrase, {what}"), "ms", took);
        summary.push(citing(row, &cited::DERIVATION_MS, usize::try_from(cost.memory_kib)?));
    }
    Ok(())
}

/// What a recall of each level costs: the gates in front of it are what they differ by.
fn gates(size: Size, summary: &mut Summary) -> Outcome<()> {
    let place = Place::new()?;
    let bare = Bare::new(place.directory.path())?;
    let socket = place.directory.path().join("boundary.sock");
    let listener = UnixListener::bind(&socket)?;
    let signer = SigningKey::from_seed(&Secret::new([9; 32]))?;
    let key = *signer.public();
    // It ends with this process.
    std::thread::spawn(move || serve(&listener, &signer, || Mode::ColdRoom));
    let boundary = Boundary { socket, key };
    let vault = place.open_with(Options { boundary: Some(boundary.clone()), ..Options::default() })?;
    let mut tokens = Vec::new();
    for name in ["first", "spare"] {
        let path = place.directory.path().join(name);
        tokens.push((name, SoftwareToken::create(&path, &mut SystemRandom::new())?));
    }
    let enrolled = tokens.iter_mut().map(|(name, token)| Enrolment::challenge(name, token));
    vault.enable_black(enrolled.collect::<Result<Vec<_>, _>>()?, None)?;
    let (_, token) = tokens.first_mut().ok_or("there is no token")?;

    let (mut first, mut presenting) = (None, Vec::new());
    for level in Level::ALL {
        let new = NewMemory { cooldown: Some(Duration::ZERO), ..memory(1, level) };
        let id = vault.store(OWNER, new)?;
        let (ours, floor) = beside((&bare, size.rounds), |_| {
            let start = Instant::now();
            if level == Level::Black {
                present(&vault, token)?;
                presenting.push(start.elapsed());
            }
            vault.recall(OWNER, id, "measuring")?;
            Ok(start.elapsed())
        })?;
        let with = if level == Level::Black { ", its token's answer included" } else { "" };
        let name = format!("vault: gates, recall of level {level} by the owner{with}");
        summary.push(Row::new(&name, "ms", ours).floor(floor));
        let base = *first.get_or_insert(ours);
        summary.note(format!("vault: the gates of level {level} add {:.3} ms to level 0", ours - base));
    }
    alone((&vault, &boundary), size, summary)?;
    summary.push(by_itself("token, its answer asked for, taken and logged", middle(presenting)));
    approved((&vault, &bare), size, summary)
}

/// Presents the first token: it answers, and the vault takes that and logs it.
fn present(vault: &Vault, token: &mut SoftwareToken) -> Outcome<()> {
    let record = vault.tokens()?.into_iter().find(|record| record.name == "first");
    let record = record.ok_or("the token is not enrolled")?;
    vault.present_token(Presented::challenge(&record, token)?)?;
    Ok(())
}

/// The row of one gate's cost, from milliseconds: most are far below one.
fn by_itself(gate: &str, took: f64) -> Row {
    Row::new(&format!("vault: gate by itself, {gate}"), "us", took * 1e3)
}

/// What gates cost by themselves: what a recall takes longer with the one thing than without it, or the gate's own call.
fn alone((vault, boundary): (&Vault, &Boundary), size: Size, summary: &mut Summary) -> Outcome<()> {
    let rounds = size.rounds * OFTENER;
    let recall = |vault: &Vault, id: MemoryId, why: &str| timed(|| vault.recall(OWNER, id, why));
    let free = vault.store(OWNER, memory(1, Level::Working))?;
    let took = difference(rounds, || recall(vault, free, "measuring"), || recall(vault, free, ""))?;
    summary.push(by_itself("justification, logged", took));

    let new = NewMemory { cooldown: Some(PAUSE), ..memory(1, Level::Working) };
    let paused = vault.store(OWNER, new)?;
    // The pause is over whenever the memory is recalled, and the other one waits as long.
    let later = |id| {
        std::thread::sleep(PAUSE * 3);
        recall(vault, id, "")
    };
    let took = difference(rounds, || later(paused), || later(free))?;
    summary.push(by_itself("pause, looked at and begun again", took));

    let place = Place::new()?;
    let other = place.open()?;
    let there = other.store(OWNER, memory(1, Level::Working))?;
    let took = difference(rounds, || recall(vault, free, ""), || recall(&other, there, ""))?;
    summary.push(by_itself("boundary daemon, looking whether it is to be asked", took));
    let (mut rng, mut times) = (SystemRandom::new(), Vec::with_capacity(rounds));
    for _ in 0..rounds {
        let start = Instant::now();
        let verdict = boundary.ask(Level::Sealed, Timestamp::system(), &mut rng);
        times.push(start.elapsed());
        if !matches!(verdict, Verdict::Answered { permitted: true, .. }) {
            return Err(format!("the boundary daemon does not let a recall pass: {verdict:?}").into());
        }
    }
    summary.push(by_itself("boundary daemon, asked over its socket", middle(times)));
    Ok(())
}

/// An agent's whole way to a memory of level 3: it asks, the owner agrees, it recalls.
fn approved((vault, bare): (&Vault, &Bare), size: Size, summary: &mut Summary) -> Outcome<()> {
    let credential = vault.enrol(Agent::new("bench", &[SPACE], Level::Sealed))?;
    let caller = vault.authenticate(credential.expose())?;
    let new = NewMemory { cooldown: Some(Duration::ZERO), ..memory(1, Level::Sealed) };
    let id = vault.store(OWNER, new)?;
    let mut agreeing = Vec::with_capacity(size.rounds);
    let (ours, floor) = beside((bare, size.rounds), |_| {
        let start = Instant::now();
        let request = vault.request_approval(&caller, id, "measuring")?;
        vault.decide_approval(request, Some(Duration::from_secs(60)))?;
        agreeing.push(start.elapsed());
        vault.recall(&caller, id, "measuring")?;
        Ok(start.elapsed())
    })?;
    summary.push(by_itself("approval, asked for and given, each logged", middle(agreeing)));
    let name = "vault: gates, an agent asks for level 3, the owner agrees, it recalls";
    summary.push(Row::new(name, "ms", ours).floor(floor));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_measured_and_every_figure_says_whose_it_is() {
        let passphrases = [("cheap", CHEAP), ("cheap too", CHEAP)];
        let size = Size { memories: [20, 30, 40], events: 60, rounds: 2, passphrases };
        let mut summary = Summary::default();
        run(size, &mut summary).unwrap();
        let rows = summary.rows();
        assert!(rows.iter().all(|row| row.ours.is_some_and(f64::is_finite)));
        let named = |part: &str| rows.iter().filter(|row| row.name.contains(part)).count();
        assert_eq!(named("gates, recall of level"), 6);
        for gate in ["justification", "pause", "boundary", "token", "approval"] {
            assert!(named(&format!("gate by itself, {gate}")) > 0, "{gate}");
        }
        assert_eq!([named("search, 1 % of"), named("passphrase")], [3, 2]);
        assert!(rows.iter().flat_map(|row| row.peers.keys()).all(|peer| peer == CITED));
        for part in ["store", "recall", "search", "verify", "unlock", "passphrase"] {
            assert!(rows.iter().any(|row| row.name.contains(part)), "{part}");
        }
    }
}
