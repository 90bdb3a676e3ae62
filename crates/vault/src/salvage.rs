//! Reading what is left of a vault whose log does not open any more, for who has no backup of it.

use std::path::Path;

use stvor_base::ErrorCode as _;
use stvor_keys::KeyHolder;

use crate::engine::Engine;
use crate::export::Exported;
use crate::level::Level;
use crate::storage::{CheckpointFile, Database, Lock, MemoryRow};
use crate::vault::{CHECKPOINTS, DATABASE};
use crate::{Options, Refusal, VaultError, keys};

/// Memories that are read at a time.
const PAGE: usize = 32;

/// What a salvage found.
#[derive(Debug)]
pub struct Salvaged {
    /// Memories, ended and damaged ones too.
    pub memories: u64,
    /// Those that came with their content.
    pub with_content: u64,
    /// Why the vault does not open.
    pub wrong: VaultError,
}

/// What a salvage is given.
#[derive(Debug, Clone, Copy)]
pub struct SalvageKeys<'a> {
    /// The owner's secret.
    pub owner: &'a dyn KeyHolder,
    /// The second secret, of level 4.
    pub second: Option<&'a dyn KeyHolder>,
    /// Whether memories of level 3, and of level 4 with the second secret, are read although nothing logs it.
    pub unlogged: bool,
}

impl<'a> SalvageKeys<'a> {
    /// The owner's secret alone: levels 0 to 2.
    #[must_use]
    pub fn new(owner: &'a dyn KeyHolder) -> Self {
        Self { owner, second: None, unlogged: false }
    }
}

/// Gives every memory of a vault that does not open to `with`, as [`crate::Vault::export`] would. It takes the owner's secret and the
/// files; nobody may have the vault open, and nothing is written. Memories of level 3 and 4 come without content unless
/// [`SalvageKeys::unlogged`] says that the owner wants them although nothing logs it; those of level 5 always do, since its token
/// answers to an open vault. So do those whose rows are not the newest, as far as that can be told. A vault that opens is
/// refused: its recalls can be logged.
///
/// # Errors
/// [`VaultError::Invalid`] for a vault that opens; [`stvor_keys::KeyError::Wrong`] for another secret; [`VaultError::Busy`];
/// [`VaultError::Tampered`] when the key records or the file of the database are damaged: that takes a backup.
pub fn salvage(
    path: &Path,
    given: &SalvageKeys<'_>,
    mut with: impl FnMut(&Exported),
) -> Result<Salvaged, VaultError> {
    if !path.join(DATABASE).is_file() {
        return Err(VaultError::Missing(path.to_owned()));
    }
    let lock = Lock::take(path)?;
    let database = Database::open(&path.join(DATABASE))?;
    let missing = || VaultError::tampered("the owner's key record", "it is missing");
    let record = database.slot(keys::SLOT_ROOT)?.ok_or_else(missing)?;
    let root = keys::unwrap_root(&record, given.owner)?;
    let vaulted = match given.second {
        Some(second) => {
            let record = database.slot(keys::SLOT_VAULTED)?.ok_or(Refusal::NoVaultedKey)?;
            Some(keys::unwrap_vaulted(&record, second)?)
        }
        None => None,
    };
    let outside = vec![CheckpointFile::open(&path.join(CHECKPOINTS))?];
    let mut engine = Engine::new((database, lock), (outside, Vec::new()), Options::default());
    let wrong = engine.open_to_read(&root, vaulted.as_ref())?;
    let mut found = Salvaged { memories: 0, with_content: 0, wrong };
    let mut after = 0;
    loop {
        let rows = engine.database.memories_after(after, PAGE)?;
        let Some((last, _)) = rows.last() else { return Ok(found) };
        after = *last;
        for (_, row) in rows {
            let memory = engine.salvaged(&row, given.unlogged);
            found.memories += 1;
            found.with_content += u64::from(memory.content.is_ok());
            with(&memory);
        }
    }
}

impl Engine {
    fn salvaged(&self, row: &MemoryRow, unlogged: bool) -> Exported {
        let header = match self.header(row) {
            Ok(header) => header,
            Err(error) => return Exported { id: row.id, header: None, content: Err(error.code()) },
        };
        let content = if header.gone(self.latest(&self.clock.now())).is_some() {
            Err("MEMORY_GONE")
        } else if header.level == Level::Black || (header.level > Level::Private && !unlogged) {
            Err("VAULT_LOG_UNAVAILABLE")
        } else {
            let opened = self.exportable(&header).and_then(|()| self.open(row, &header));
            opened.map_err(|error| error.code())
        };
        Exported { id: row.id, header: Some(header), content }
    }
}
