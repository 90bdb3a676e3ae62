//! Taking over memories that other programs kept.

pub mod python_vault;

use core::time::Duration;

use serde::Deserialize;

use crate::daemon::Content;
use crate::level::Level;
use crate::memory::{Header, NewMemory, Trust};
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
    if file.len() > MAX_FILE {
        return Err(VaultError::invalid("a file of more than 64 MiB is not read"));
    }
    let text = core::str::from_utf8(file).map_err(|_| VaultError::invalid("the file is not UTF-8"))?;
    let mut memories = Vec::new();
    let mut seen = std::collections::HashSet::new();
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
            memories.push(memory);
        }
    }
    Ok(memories)
}

/// What a file gave.
#[derive(Debug, Default)]
pub struct Taken {
    /// Memories that are to be stored.
    pub memories: Vec<NewMemory>,
    /// Lines of an export that hold no content: of memories that ended, were damaged or were not given out, or whose time is over.
    pub passed_over: u64,
}

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
/// [`mcp_memory`], whose memories get `level` and `namespace`. Those of an export keep what is known of them, but not their names,
/// the memories that they corrected, and their profiles: these are of the other vault.
///
/// # Errors
/// [`VaultError::Invalid`], as [`mcp_memory`]: all of it is understood, or nothing is taken over.
pub fn take_over(file: &[u8], (level, namespace): (Level, &str), now: u64) -> Result<Taken, VaultError> {
    let first =
        file.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    if serde_json::from_slice::<ExportLine>(first).is_err() {
        return Ok(Taken { memories: mcp_memory(file, level, namespace)?, passed_over: 0 });
    }
    let mut taken = Taken::default();
    let lines =
        (1..).zip(file.split(|byte| *byte == b'\n')).filter(|(_, line)| !line.trim_ascii().is_empty());
    for (number, line) in lines {
        let in_line = |reason: String| VaultError::invalid(format!("line {number}: {reason}"));
        let line: ExportLine = serde_json::from_slice(line).map_err(|error| in_line(error.to_string()))?;
        let ExportLine::Memory { memory, content: Some(content) } = line else {
            taken.passed_over += 1;
            continue;
        };
        let ttl = memory.expires.map(|end| end.saturating_sub(now));
        if ttl == Some(0) {
            taken.passed_over += 1;
            continue;
        }
        let new = NewMemory {
            content: content.bytes().map_err(|error| in_line(error.to_string()))?,
            metadata: memory.metadata,
            searchable: memory.searchable,
            intents: memory.intents,
            source: memory.source,
            trust: memory.trust,
            ttl: ttl.map(Duration::from_millis),
            cooldown: (memory.cooldown > 0).then(|| Duration::from_millis(memory.cooldown)),
            ..NewMemory::new(&[], memory.level, &memory.namespace)
        };
        new.check().map_err(|error| in_line(error.to_string()))?;
        taken.memories.push(new);
    }
    Ok(taken)
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
        assert!(memories.iter().all(|memory| memory.level == Level::Private && memory.trust == Trust::Agent));
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
