//! Storing many memories that are from elsewhere: in few requests, going on where an earlier run was stopped, and with a word
//! for each that was left out.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Map, Value};
use stvor_base::ErrorCode as _;
use stvor_vault::daemon::{AgentVerb, Content, Failure as Refused, StoreVerb};
use stvor_vault::import::IMPORTED_ID;
use stvor_vault::import::python_vault::MEMORY_VAULT_ID;
use stvor_vault::{Header, Level, MemoryId, State, limits};

use super::talk::Asker;
use super::{Call, show};
use crate::failure::{Failure, Result};
use crate::progress::Bar;

/// Bytes of JSON that one request has at most, unless one memory alone has more. Small enough to be escaped twice in a line of the
/// daemon's.
const REQUEST: usize = 256 << 10;

/// A memory that is to be stored.
pub(super) struct Incoming {
    /// Where it is from, for people.
    pub(super) place: String,
    /// What it is called there. One that has no name gets one from what it is.
    pub(super) name: Option<String>,
    /// What the one that it corrects is called there.
    pub(super) corrects: Option<String>,
    pub(super) memory: StoreVerb,
}

/// What is there already of a memory from elsewhere.
#[derive(Clone, Copy)]
struct Known {
    id: MemoryId,
    level: Level,
    live: bool,
}

struct Waiting {
    place: String,
    name: String,
    level: Level,
    memory: StoreVerb,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ok(StoredAs),
    Error(Refused),
}

#[derive(Deserialize)]
struct StoredAs {
    id: MemoryId,
}

/// The work, while it is done.
pub(super) struct Taking<'a> {
    call: Call<'a>,
    asker: Asker,
    known: BTreeMap<String, Known>,
    waiting: Vec<Waiting>,
    bytes: usize,
    bar: Bar,
    total: u64,
    done: u64,
    taken: u64,
    there: u64,
    left_out: u64,
    /// The first failure of a memory that was left out.
    first: Option<Failure>,
}

/// Whether a failure is about the memory, so that the next one may fare better.
fn is_of_the_memory(code: &str) -> bool {
    matches!(
        code,
        "VAULT_BAD_REQUEST"
            | "SECRET_DETECTED"
            | "AUDITOR_REFUSED"
            | "AGENT_NOT_ALLOWED"
            | "MEMORY_LESS_TRUSTED"
            | "MEMORY_LEAVES_PROFILE"
            | "VAULTED_KEY_REQUIRED"
            | "TOKEN_REQUIRED"
            | "VAULT_NOT_FOUND"
            | "MEMORY_NOT_FOUND"
            | "MEMORY_GONE"
    )
}

impl<'a> Taking<'a> {
    /// Looks what is there in these namespaces already.
    pub(super) fn begin(call: Call<'a>, spaces: &BTreeSet<String>, total: u64) -> Result<Self> {
        let mut asker = call.asker()?;
        let mut known = BTreeMap::new();
        for space in spaces {
            let mut before = None;
            loop {
                let mut page = asker.ask(AgentVerb::List { namespace: space.clone(), before })?;
                let headers: Vec<Header> = show::parsed(page["memories"].take())?;
                for header in headers {
                    let live = header.state == State::Live;
                    let one = Known { id: header.id, level: header.level, live };
                    for name in [IMPORTED_ID, MEMORY_VAULT_ID] {
                        if let Some(name) = header.metadata.get(name) {
                            known.insert(name.clone(), one);
                        }
                    }
                    // An export of this very vault.
                    if matches!(header.state, State::Live | State::Superseded) {
                        known.insert(header.id.to_string(), one);
                    }
                }
                before = page["next"].as_str().map(str::to_owned);
                if before.is_none() {
                    break;
                }
            }
        }
        let (waiting, bar) = (Vec::new(), Bar::new(call.out(), "memories"));
        let (done, taken, there, left_out, first) = (0, 0, 0, 0, None);
        Ok(Self { call, asker, known, waiting, bytes: 0, bar, total, done, taken, there, left_out, first })
    }

    /// Whether a memory of this name is there already.
    pub(super) fn has(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }

    /// Counts one that is there already.
    pub(super) fn pass_over(&mut self) {
        self.there += 1;
        self.step();
    }

    fn step(&mut self) {
        self.done += 1;
        self.bar.to(self.done, self.total);
    }

    /// Counts one that can not be taken over, and says why.
    pub(super) fn leave_out(&mut self, place: &str, failure: Failure) {
        self.left_out += 1;
        self.step();
        self.call.out().warn(format_args!("{place} was left out: {failure}"));
        self.first.get_or_insert(failure);
    }

    /// Stores a memory, or keeps it until there are enough to be stored.
    ///
    /// # Errors
    /// What stops everything: the daemon that is gone, a vault that is shut, a quota that is used up.
    pub(super) fn take(&mut self, incoming: Incoming) -> Result {
        let Incoming { place, name, corrects, mut memory } = incoming;
        let name = match name {
            Some(name) => name,
            None => self.name(&mut memory)?,
        };
        if self.waiting.iter().any(|one| one.name == name || corrects.as_ref() == Some(&one.name)) {
            self.store()?;
        }
        if self.has(&name) {
            self.pass_over();
            return Ok(());
        }
        let older = corrects.and_then(|name| self.known.get(&name)).filter(|older| older.live);
        memory.supersedes = older.map(|older| older.id);
        // Nothing vouches for what a file says: it lowers no level of what is here.
        let level = memory.level.max(older.map(|older| older.level)).unwrap_or(Level::Working);
        memory.level = Some(level);
        let bytes = serde_json::to_vec(&memory).map_or(0, |json| json.len());
        if self.waiting.len() == limits::MAX_STORES || self.bytes.saturating_add(bytes) > REQUEST {
            self.store()?;
        }
        self.bytes += bytes;
        self.waiting.push(Waiting { place, name, level, memory });
        Ok(())
    }

    /// Names a memory by what it is, so that a second run knows it. The name is kept with it.
    fn name(&self, memory: &mut StoreVerb) -> Result<String> {
        let content = match &memory.content {
            Content::Text(text) | Content::Base64(text) => text.as_bytes(),
        };
        let namespace = memory.namespace.as_deref().unwrap_or_default();
        let name = self.asker.name_for(&[namespace.as_bytes(), content]);
        let name =
            name.ok_or_else(|| Failure::Usage("what is taken over takes a secret to be named".into()))?;
        memory.metadata.insert(IMPORTED_ID.into(), name.clone());
        Ok(name)
    }

    fn store(&mut self) -> Result {
        let waiting = core::mem::take(&mut self.waiting);
        self.bytes = 0;
        let Some(first) = waiting.first() else { return Ok(()) };
        let place = first.place.clone();
        let (about, memories): (Vec<_>, Vec<_>) =
            waiting.into_iter().map(|one| ((one.place, one.name, one.level), one.memory)).unzip();
        let told = self.asker.ask(AgentVerb::StoreMany { memories });
        let told =
            told.and_then(show::parsed::<Vec<Answer>>).map_err(|failure| self.stopped(&place, &failure))?;
        if told.len() != about.len() {
            return Err(self.stopped(&place, &show::not_understood()));
        }
        let mut stop = None;
        for ((place, name, level), answer) in about.into_iter().zip(told) {
            match answer {
                Answer::Ok(StoredAs { id }) => {
                    self.taken += 1;
                    self.known.insert(name, Known { id, level, live: true });
                    self.step();
                }
                Answer::Error(refused) if is_of_the_memory(&refused.code) => {
                    self.leave_out(&place, refused.into());
                }
                Answer::Error(refused) => {
                    stop.get_or_insert((place, Failure::from(refused)));
                }
            }
        }
        match stop {
            Some((place, failure)) => Err(self.stopped(&place, &failure)),
            None => Ok(()),
        }
    }

    fn stopped(&self, place: &str, failure: &Failure) -> Failure {
        self.bar.end();
        Failure::Coded {
            code: failure.code(),
            message: format!(
                "stopped at {place}: {failure}. {} were taken over; the same command goes on from there",
                self.taken
            ),
            retryable: failure.retryable(),
        }
    }

    /// Stores what is left, and tells what became of all; `more` are further counts, with their keys and words.
    ///
    /// # Errors
    /// As [`Taking::take`]; with the exit code of the first failure when a memory was left out.
    pub(super) fn end(mut self, more: &[(&str, u64, &str)]) -> Result {
        self.store()?;
        self.bar.end();
        let counts = [
            ("taken", self.taken, "taken over"),
            ("there", self.there, "there already"),
            ("left_out", self.left_out, "left out"),
        ];
        let counts = || counts.iter().chain(more);
        let object: Map<String, Value> =
            counts().map(|(key, count, _)| ((*key).to_owned(), (*count).into())).collect();
        self.call.out().either(&object, |_| {
            let words: Vec<String> = counts().map(|(_, count, words)| format!("{count} {words}")).collect();
            words.join(", ")
        })?;
        match self.first {
            Some(first) => Err(Failure::Told(first.exit())),
            None => Ok(()),
        }
    }
}
