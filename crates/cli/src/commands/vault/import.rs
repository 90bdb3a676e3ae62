//! `stvor vault import` and `import-python`: memories that other programs, or another vault, kept.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use stvor_base::{ErrorCode as _, Timestamp};
use stvor_crypto::Secret;
use stvor_vault::NewMemory;
use stvor_vault::daemon::{Content, StoreVerb};
use stvor_vault::import::python_vault::{Key, OldMemory, read_backup, read_database};
use stvor_vault::import::{TakeOver, Taken, take_over};

use super::Call;
use super::backup::{coded, secret};
use super::prove::read;
use super::taking::{Incoming, Taking};
use crate::args::{ImportFile, ImportPython};
use crate::failure::{Failure, Result};
use crate::render::safe;

/// Memories of one profile that its key may fail to open before it is given up: each try can take seconds and a gigabyte.
const TRIES: u32 = 3;

/// Takes over the lines of a file: an export, or what an MCP memory server kept.
pub(super) fn lines(call: Call<'_>, args: &ImportFile) -> Result {
    let bytes = stvor_crypto::SecretBytes::from(read(&args.file)?);
    let wanted = TakeOver {
        level: args.level,
        namespace: &args.space.namespace,
        minimum: args.minimum_level,
        keep_trust: args.keep_trust,
        now: Timestamp::system().as_millis(),
    };
    let Taken { memories, passed_over, stale } = take_over(bytes.expose(), &wanted)?;
    let spaces: BTreeSet<String> = memories.iter().filter_map(|one| one.memory.namespace.clone()).collect();
    let mut taking = Taking::begin(call, &spaces, memories.len() as u64)?;
    for one in memories {
        let place = format!("line {}", one.line);
        let name = one.name.map(|name| name.to_string());
        let corrects = one.corrects.map(|name| name.to_string());
        taking.take(Incoming { place, name, corrects, memory: to_verb(one.memory) })?;
    }
    if stale > 0 {
        call.out().warn(format_args!(
            "{stale} memories had been corrected by ones that are not in the file: their metadata says imported.state=superseded"
        ));
    }
    taking.end(&[("without_content", passed_over, "had no content")])
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
        no_ttl: memory.no_ttl,
        cooldown: memory.cooldown.map(|pause| pause.as_secs()),
        supersedes: memory.supersedes,
        profile: memory.profile,
        no_profile: memory.no_profile,
        tombstone: memory.tombstone,
    }
}

/// The keys of the old program, and how they fared.
struct OldKeys {
    files: BTreeMap<String, Key>,
    phrase: Option<Key>,
    /// For each profile whether its key opened any memory, and how many it did not.
    tried: BTreeMap<String, (bool, u32)>,
}

impl OldKeys {
    fn of(args: &ImportPython) -> Result<Self> {
        let mut files = BTreeMap::new();
        for text in &args.keyfiles {
            let (profile, file) =
                text.split_once('=').ok_or_else(|| Failure::Usage(format!("{text} is not PROFILE=FILE")))?;
            let bytes = stvor_crypto::SecretBytes::from(read(Path::new(file))?);
            files
                .insert(profile.to_owned(), Key::Keyfile(Secret::from_slice(bytes.expose()).map_err(coded)?));
        }
        let phrase =
            args.old_passphrase_file.as_deref().map(|file| secret(file, "the old passphrase")).transpose()?;
        Ok(Self { files, phrase: phrase.map(Key::Passphrase), tried: BTreeMap::new() })
    }

    fn open(&mut self, memory: &OldMemory, namespace: &str) -> Result<NewMemory> {
        let key = self.files.get(&memory.profile).or(self.phrase.as_ref());
        let key = key.ok_or_else(|| {
            Failure::Usage(format!(
                "no key for the profile {}: --old-keyfile or --old-passphrase-file",
                memory.profile
            ))
        })?;
        let (opened, wrong) = self.tried.entry(memory.profile.clone()).or_default();
        if !*opened && *wrong >= TRIES {
            return Err(Failure::Coded {
                code: "WRONG_KEY",
                message: format!(
                    "the key of the profile {} opened none of the first {TRIES}",
                    memory.profile
                ),
                retryable: false,
            });
        }
        let read = memory.open(key, namespace);
        match &read {
            Ok(_) => *opened = true,
            Err(error) if error.code() == "WRONG_KEY" => *wrong += 1,
            Err(_) => {}
        }
        Ok(read?)
    }
}

/// Takes over memories of the Python program.
pub(super) fn python(call: Call<'_>, args: &ImportPython) -> Result {
    let mut keys = OldKeys::of(args)?;
    let old = match &args.backup_passphrase_file {
        Some(file) => read_backup(&read(&args.file)?, &secret(file, "the backup's passphrase")?)?,
        None => read_database(&args.file)?,
    };
    let namespace = &args.space.namespace;
    let mut taking = Taking::begin(call, &BTreeSet::from([namespace.clone()]), old.len() as u64)?;
    for memory in &old {
        // Before it is opened: that is what takes long.
        if taking.has(&memory.id) {
            taking.pass_over();
            continue;
        }
        let place = format!("the memory {}", safe(&memory.id));
        match keys.open(memory, namespace) {
            Ok(mut new) => {
                for name in memory.cut() {
                    let name = safe(&name);
                    call.out().warn(format_args!(
                        "{place}: its {name} was longer than 4096 bytes, and is cut there"
                    ));
                }
                // In one step: at no time can it be recalled here.
                new.tombstone = memory.tombstoned.then(|| "it was tombstoned in memory-vault".to_owned());
                new.level = new.level.max(Some(args.minimum_level));
                let name = Some(memory.id.clone());
                taking.take(Incoming { place, name, corrects: None, memory: to_verb(new) })?;
            }
            Err(failure) => taking.leave_out(&place, failure),
        }
    }
    taking.end(&[])
}
