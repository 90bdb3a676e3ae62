//! Vaults of earlier versions open, and are kept as this one keeps them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use stvor_vault::{Caller, Level, MemoryId, NewMemory, Options, Vault, database_version};

use crate::world::owner;

const OWNER: &Caller = &Caller::Owner;

/// A vault that version 2 left: two memories, one that was forgotten, an agent.
fn left_by_version_2(directory: &Path) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vault-2");
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)).unwrap();
    for name in ["vault.db", "checkpoints"] {
        let file = directory.join(name);
        std::fs::copy(fixture.join(name), &file).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

fn says(vault: &Vault, id: MemoryId) -> String {
    String::from_utf8(vault.recall(OWNER, id, "").unwrap().content.expose().to_vec()).unwrap()
}

#[test]
fn a_vault_of_version_2_opens_and_is_written_as_this_version_does() {
    let directory = tempfile::tempdir().unwrap();
    left_by_version_2(directory.path());
    assert_eq!(database_version(directory.path()).unwrap(), 2);
    let open = || {
        let vault = Vault::open(directory.path(), Options::default()).unwrap();
        vault.unlock_with(&owner()).unwrap();
        vault
    };
    let ids = ["249be504a13eb94d4b3c2b9485134182", "a5db31c3d7cffbe77304ebd37808e716"]
        .map(|id| id.parse().unwrap());
    let vault = open();
    assert_eq!(vault.verify().unwrap().problems, []);
    assert_eq!(ids.map(|id| says(&vault, id)), ["said in the year 2", "private words"]);
    assert_eq!(vault.agents().unwrap()[0].name, "helper");
    assert_eq!(vault.search(OWNER, "home", "words").unwrap().len(), 1);
    vault.set_intent(OWNER, ids[0], ("travel", true)).unwrap();
    let new = vault.store(OWNER, NewMemory::new(b"new words", Level::Private, "home")).unwrap();
    drop(vault);
    assert_eq!(
        database_version(directory.path()).unwrap(),
        3,
        "an older program does not take it for damaged"
    );
    let vault = open();
    assert_eq!(says(&vault, new), "new words");
    assert_eq!(ids.map(|id| says(&vault, id)), ["said in the year 2", "private words"]);
    assert_eq!(vault.list(OWNER, "home", None).unwrap().0.len(), 4);
    assert_eq!(vault.verify().unwrap().problems, []);
}
