//! `stvor vault import` and `import-python`: memories that other programs, or another vault, kept.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;
use stvor_base::Timestamp;
use stvor_crypto::Secret;
use stvor_vault::NewMemory;
use stvor_vault::daemon::{AgentVerb, Content, StoreVerb};
use stvor_vault::import::python_vault::{Key, read_backup, read_database};
use stvor_vault::import::{Taken, take_over};

use super::Call;
use super::backup::{coded, secret};
use super::prove::read;
use crate::args::{ImportFile, ImportPython};
use crate::failure::{Failure, Result};
use crate::render::safe;

/// Takes over the lines of a file: an export, or what an MCP memory server kept.
pub(super) fn lines(call: Call<'_>, args: &ImportFile) -> Result {
    let bytes = stvor_crypto::SecretBytes::from(read(&args.file)?);
    let now = Timestamp::system().as_millis();
    let Taken { memories, passed_over } =
        take_over(bytes.expose(), (args.level, &args.space.namespace), now)?;
    let mut asker = call.asker()?;
    let (mut taken, mut left) = (0_u64, 0_u64);
    for memory in memories {
        match asker.ask(AgentVerb::Store { memory: Box::new(to_verb(memory)) }) {
            Ok(_) => taken += 1,
            Err(failure) => {
                left += 1;
                call.out().warn(format_args!("a memory was left out: {failure}"));
            }
        }
    }
    let object = json!({ "taken": taken, "left_out": left, "without_content": passed_over });
    call.out()
        .either(&object, |_| format!("{taken} taken over, {left} left out, {passed_over} had no content"))
}

fn to_verb(memory: NewMemory) -> StoreVerb {
    let content = match core::str::from_utf8(memory.content.expose()) {
        Ok(text) => Content::Text(text.to_owned()),
        Err(_) => {
            use base64::Engine as _;
            let bytes = base64::engine::general_purpose::STANDARD.encode(memory.content.expose());
            Content::Base64(bytes)
        }
    };
    StoreVerb {
        content,
        level: memory.level,
        namespace: memory.namespace,
        metadata: memory.metadata,
        searchable: memory.searchable,
        intents: memory.intents,
        source: memory.source,
        trust: memory.trust,
        ttl: memory.ttl.map(|ttl| ttl.as_secs()),
        cooldown: memory.cooldown.map(|pause| pause.as_secs()),
        supersedes: memory.supersedes,
        profile: memory.profile,
        tombstone: memory.tombstone,
    }
}

/// Takes over memories of the Python program.
pub(super) fn python(call: Call<'_>, args: &ImportPython) -> Result {
    let mut keys = BTreeMap::new();
    for text in &args.keyfiles {
        let (profile, file) =
            text.split_once('=').ok_or_else(|| Failure::Usage(format!("{text} is not PROFILE=FILE")))?;
        let bytes = stvor_crypto::SecretBytes::from(read(Path::new(file))?);
        keys.insert(profile.to_owned(), Key::Keyfile(Secret::from_slice(bytes.expose()).map_err(coded)?));
    }
    let phrase =
        args.old_passphrase_file.as_deref().map(|file| secret(file, "the old passphrase")).transpose()?;
    let phrase = phrase.map(Key::Passphrase);
    let old = match &args.backup_passphrase_file {
        Some(file) => read_backup(&read(&args.file)?, &secret(file, "the backup's passphrase")?)?,
        None => read_database(&args.file)?,
    };
    let mut asker = call.asker()?;
    let (mut taken, mut left) = (0_u64, 0_u64);
    for memory in &old {
        let key = keys.get(&memory.profile).or(phrase.as_ref());
        let opened = match key {
            Some(key) => memory.open(key, &args.space.namespace).map_err(Failure::from),
            None => Err(Failure::Usage(format!("no key for the profile {}", memory.profile))),
        };
        let stored = opened.and_then(|mut new| {
            // In one step: at no time can it be recalled here.
            new.tombstone = memory.tombstoned.then(|| "it was tombstoned in memory-vault".to_owned());
            asker.ask(AgentVerb::Store { memory: Box::new(to_verb(new)) })
        });
        match stored {
            Ok(_) => taken += 1,
            Err(failure) => {
                left += 1;
                call.out().warn(format_args!("{} was left out: {failure}", safe(&memory.id)));
            }
        }
    }
    call.out().either(&json!({ "taken": taken, "left_out": left }), |_| {
        format!("{taken} taken over, {left} left out")
    })
}
