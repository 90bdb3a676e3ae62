//! Taking over memories that other programs kept.

pub mod python_vault;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use stvor_crypto::SecretBytes;

use crate::daemon::Content;
use crate::level::Level;
use crate::memory::{Header, MemoryId, NewMemory, State, Trust};
use crate::{VaultError, limits};

/// Bytes of a file that is read.
pub const MAX_FILE: usize = 64 << 20;

/// One line of the file of the official MCP memory server. Fields that later versions add are passed over.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line {
    Entity {
        name: String,
        #[serde(rename = "entityType")]
        kind: String,
        #[serde(default)]
        observations: Vec<String>,
    },
    Relation {
        from: String,
        to: String,
        #[serde(rename = "relationType")]
        kind: String,
    },
}

/// Memories of the JSONL file of the official MCP memory server: one for each observation, one for each entity that has
/// none, one for each relation. They are [`Trust::Agent`] and keep the entity's name and type as metadata. Lines may be
/// repeated in such files; each memory comes once.
///
/// ```
/// use stvor_vault::{Level, import::mcp_memory};
/// let file = br#"{"type":"entity","name":"Ann","entityType":"person","observations":["likes tea"]}
/// {"type":"relation","from":"Ann","to":"Bob","relationType":"knows"}
/// "#;
/// let memories = mcp_memory(file, Level::Working, "home")?;
/// assert_eq!(memories.len(), 2);
/// assert_eq!(memories[0].content.expose(), b"Ann (person): likes tea");
/// assert_eq!(memories[1].content.expose(), b"Ann knows Bob");
/// # Ok::<(), stvor_vault::VaultError>(())
/// ```
///
/// # Errors
/// [`VaultError::Invalid`] with the first line that is not understood or past a limit, and for a file of more than
/// [`MAX_FILE`] bytes: either all of it is taken over, or nothing.
pub fn mcp_memory(file: &[u8], level: Level, namespace: &str) -> Result<Vec<NewMemory>, VaultError> {
    Ok(mcp_lines(file, level, namespace)?.into_iter().map(|(_, memory)| memory).collect())
}

/// The same, with their lines.
fn mcp_lines(file: &[u8], level: Level, namespace: &str) -> Result<Vec<(usize, NewMemory)>, VaultError> {
    if file.len() > MAX_FILE {
        return Err(VaultError::invalid("a file of more than 64 MiB is not read"));
    }
    let text = core::str::from_utf8(file).map_err(|_| VaultError::invalid("the file is not UTF-8"))?;
    let mut memories = Vec::new();
    let mut seen = BTreeSet::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let in_line = |reason: String| VaultError::invalid(format!("line {number}: {reason}"));
        let line: Line = serde_json::from_str(line).map_err(|error| in_line(error.to_string()))?;
        for (content, metadata) in contents(line) {
            if !seen.insert(content.clone()) {
                continue;
            }
            let mut memory = NewMemory::new(content.as_bytes(), level, namespace);
            memory.metadata = metadata.into_iter().collect();
            memory.source = "mcp-server-memory".into();
            memory.trust = Trust::Agent;
            if memory.content.len() > limits::MAX_CONTENT {
                return Err(in_line("an observation is too long".into()));
            }
            memory.check().map_err(|error| in_line(error.to_string()))?;
            memories.push((number, memory));
        }
    }
    Ok(memories)
}

/// Under what it is taken over.
#[derive(Debug, Clone, Copy)]
pub struct TakeOver<'a> {
    /// The level of what an MCP memory server kept.
    pub level: Level,
    /// The namespace of what an MCP memory server kept.
    pub namespace: &'a str,
    /// The lowest level that a memory gets, whatever the file says: nothing vouches for the file.
    pub minimum: Level,
    /// Whether to believe each memory as far as the file says. Without it, no more than what an agent says.
    pub keep_trust: bool,
    /// The time, in milliseconds since the Unix epoch.
    pub now: u64,
}

/// A memory of a file.
#[derive(Debug)]
pub struct Foreign {
    /// The line that it stands in, from 1 on.
    pub line: usize,
    /// What is to be stored.
    pub memory: NewMemory,
    /// Its name where it is from, which it keeps as [`IMPORTED_ID`]; what an MCP memory server kept has none.
    pub name: Option<MemoryId>,
    /// The name there of the memory that it corrects, which stands before it in the file.
    pub corrects: Option<MemoryId>,
}

/// What a file gave.
#[derive(Debug, Default)]
pub struct Taken {
    /// Memories that are to be stored, in this order.
    pub memories: Vec<Foreign>,
    /// Lines of an export that hold no content: of memories that ended, were damaged or were not given out, or whose time is over.
    pub passed_over: u64,
    /// Memories that had been corrected by one that is not in the file. They say so as [`IMPORTED_STATE`].
    pub stale: u64,
}

/// The metadata that holds the name of a memory in the vault that it is from.
pub const IMPORTED_ID: &str = "imported.id";
/// The metadata that holds who stored it there.
pub const IMPORTED_CREATOR: &str = "imported.creator";
/// The metadata that holds when, in milliseconds since the Unix epoch.
pub const IMPORTED_CREATED: &str = "imported.created";
/// The metadata that says `superseded` of a memory whose correction is not in the file.
pub const IMPORTED_STATE: &str = "imported.state";

/// A line of an export.
#[derive(Deserialize)]
#[serde(untagged)]
enum ExportLine {
    Memory {
        memory: Box<Header>,
        content: Option<Content>,
    },
    Damaged {
        #[expect(dead_code, reason = "it says what kind of line it is")]
        damaged: String,
    },
}

/// Memories of a file that holds one JSON object a line: an export of a vault ([`crate::export::Exported::to_json`]), or else
/// [`mcp_memory`], whose memories get `level` and `namespace`.
///
/// Those of an export keep what is known of them, and get new names: their name, who stored them and when become metadata, as far
/// as there is room ([`limits::MAX_METADATA`]). One that corrects an earlier one of the file does so again. Profiles are of the
/// other vault and are dropped. Nothing vouches for such a file, so what it says the owner said is believed as an agent's word
/// unless `keep_trust` says otherwise.
///
/// # Errors
/// [`VaultError::Invalid`], as [`mcp_memory`]: all of it is understood, or nothing is taken over.
pub fn take_over(file: &[u8], wanted: &TakeOver<'_>) -> Result<Taken, VaultError> {
    let first =
        file.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    if serde_json::from_slice::<ExportLine>(first).is_err() {
        let level = wanted.level.max(wanted.minimum);
        let memories = mcp_lines(file, level, wanted.namespace)?;
        let foreign = |(line, memory)| Foreign { line, memory, name: None, corrects: None };
        return Ok(Taken { memories: memories.into_iter().map(foreign).collect(), ..Taken::default() });
    }
    let mut taken = Taken::default();
    let (mut lines, mut seen) = (Vec::new(), BTreeSet::new());
    let all = (1..).zip(file.split(|byte| *byte == b'\n')).filter(|(_, line)| !line.trim_ascii().is_empty());
    for (number, line) in all {
        let in_line = |reason: String| VaultError::invalid(format!("line {number}: {reason}"));
        let line: ExportLine = serde_json::from_slice(line).map_err(|error| in_line(error.to_string()))?;
        match line {
            ExportLine::Memory { memory, content: Some(content) }
                if memory.expires.is_none_or(|end| end > wanted.now) =>
            {
                let content = content.bytes().map_err(|error| in_line(error.to_string()))?;
                // A line that was doubled comes once.
                if seen.insert(memory.id) {
                    lines.push((number, memory, content));
                }
            }
            _ => taken.passed_over += 1,
        }
    }
    let corrections = corrections(&lines);
    let corrected: BTreeSet<MemoryId> = corrections.values().copied().collect();
    for (number, header, content) in lines {
        let stale = header.state == State::Superseded && !corrected.contains(&header.id);
        taken.stale += u64::from(stale);
        let (name, corrects) = (header.id, corrections.get(&header.id).copied());
        let memory = renewed(*header, (content, stale), wanted);
        memory.check().map_err(|error| VaultError::invalid(format!("line {number}: {error}")))?;
        taken.memories.push(Foreign { line: number, memory, name: Some(name), corrects });
    }
    Ok(taken)
}

type ExportedLine = (usize, Box<Header>, SecretBytes);

/// Which memory corrects which other one that stands before it. Each is corrected once.
fn corrections(lines: &[ExportedLine]) -> BTreeMap<MemoryId, MemoryId> {
    let (mut free, mut found) = (BTreeSet::new(), BTreeMap::new());
    for (_, header, _) in lines {
        if let Some(older) = header.supersedes.filter(|older| free.remove(older)) {
            found.insert(header.id, older);
        }
        free.insert(header.id);
    }
    found
}

/// A memory of another vault, as it is stored in this one.
fn renewed(header: Header, (content, stale): (SecretBytes, bool), wanted: &TakeOver<'_>) -> NewMemory {
    let mut metadata = header.metadata;
    let mut keep = |name: &str, value: String| {
        if metadata.len() < limits::MAX_METADATA || metadata.contains_key(name) {
            metadata.insert(name.to_owned(), value);
        }
    };
    keep(IMPORTED_ID, header.id.to_string());
    if stale {
        keep(IMPORTED_STATE, "superseded".into());
    }
    keep(IMPORTED_CREATOR, header.creator);
    keep(IMPORTED_CREATED, header.created.to_string());
    let level = header.level.max(wanted.minimum);
    NewMemory {
        content,
        metadata,
        searchable: header.searchable,
        intents: header.intents,
        source: header.source,
        trust: if wanted.keep_trust { header.trust } else { header.trust.min(Trust::Agent) },
        ttl: header.expires.map(|end| Duration::from_millis(end.saturating_sub(wanted.now))),
        // What a correction had, and not what it corrects.
        no_ttl: header.expires.is_none(),
        cooldown: (header.cooldown > 0 || !level.needs_approval())
            .then(|| Duration::from_millis(header.cooldown)),
        ..NewMemory::new(&[], level, &header.namespace)
    }
}

type Fields = Vec<(String, String)>;

fn contents(line: Line) -> Vec<(String, Fields)> {
    let field = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    match line {
        Line::Entity { name, kind, observations } => {
            let fields = vec![field("entity", &name), field("type", &kind)];
            if observations.is_empty() {
                return vec![(format!("{name} ({kind})"), fields)];
            }
            let of = |observation: &String| (format!("{name} ({kind}): {observation}"), fields.clone());
            observations.iter().map(of).collect()
        }
        Line::Relation { from, to, kind } => {
            let fields = vec![field("from", &from), field("relation", &kind), field("to", &to)];
            vec![(format!("{from} {kind} {to}"), fields)]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_taken_over_once_or_the_line_is_named() {
        let file = concat!(
            r#"{"type":"entity","name":"Ann","entityType":"person","observations":["a","b"],"later":1}"#,
            "\n\n",
            r#"{"type":"entity","name":"Tea","entityType":"drink","observations":[]}"#,
            "\n",
            r#"{"type":"entity","name":"Ann","entityType":"person","observations":["b"]}"#,
            "\n",
            r#"{"type":"relation","from":"Ann","to":"Tea","relationType":"drinks"}"#,
        );
        let memories = mcp_memory(file.as_bytes(), Level::Private, "home").unwrap();
        let contents: Vec<_> = memories.iter().map(|memory| memory.content.expose()).collect();
        let expected: [&[u8]; 4] =
            [b"Ann (person): a", b"Ann (person): b", b"Tea (drink)", b"Ann drinks Tea"];
        assert_eq!(contents, expected);
        assert!(
            memories
                .iter()
                .all(|memory| memory.level == Some(Level::Private) && memory.trust == Trust::Agent)
        );
        for (line, reason) in [
            ("no json", "line 6"),
            (r#"{"type":"other"}"#, "line 6"),
            (r#"{"type":"entity","name":"x"}"#, "entityType"),
        ] {
            let error = mcp_memory(format!("{file}\n{line}").as_bytes(), Level::Working, "home").unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
        assert!(mcp_memory(&[0xff], Level::Working, "home").is_err());
    }
}
