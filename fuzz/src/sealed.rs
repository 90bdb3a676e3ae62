//! What `stvor-keys` and `stvor-store` read back from disk.

use std::sync::{Arc, OnceLock};

use futures_executor::block_on;
use stvor_crypto::kdf::sha256;
use stvor_keys::WrappedKey;
use stvor_store::{ChangeSet, Expect, Key, MemoryStore, Op, Row, RowValue, RowVersion, Sealed, Store, Table};

/// The targets of this floor.
pub const TARGETS: &[crate::Target] =
    &[("keys-wrapped", wrapped), ("store-header", header), ("store-sealed-row", sealed_row)];

const CHECKSUM: usize = 16;

/// The input, and the input with the right checksum after it, so that what lies behind the checksum is reached.
fn with_checksum(data: &[u8]) -> [Vec<u8>; 2] {
    [data.to_vec(), [data, &sha256(&[data])[..CHECKSUM]].concat()]
}

fn wrapped(data: &[u8]) {
    for bytes in with_checksum(data) {
        if let Ok(key) = WrappedKey::decode(&bytes) {
            assert_eq!(key.encode(), bytes);
        }
    }
}

fn header(data: &[u8]) {
    for bytes in with_checksum(data) {
        let store = MemoryStore::new();
        let mut changes = ChangeSet::new();
        let key = Key::new(Table::Header, *b"store", *b"header");
        changes.put(key, RowValue { bytes, version: RowVersion(0) });
        block_on(store.commit(changes)).expect("a small row is stored");
        let _ = block_on(Sealed::info(&store));
    }
}

struct Bench {
    sealed: Sealed,
    adapter: Arc<dyn Store>,
    key: Key,
    row: Row,
}

const TEXT: &[u8] = b"what only the owner reads";

fn bench() -> Bench {
    let sealed = Sealed::in_memory().expect("a store in memory");
    let key = Key::new(Table::Meta, *b"partition", *b"sort");
    let mut changes = ChangeSet::new();
    changes.put(key.clone(), TEXT.to_vec());
    block_on(sealed.commit(changes)).expect("a commit");
    let adapter = sealed.adapter().clone();
    let row = block_on(adapter.get(&[sealed.key_on_disk(&key)])).expect("a row").remove(0).expect("a row");
    Bench { sealed, adapter, key, row }
}

/// The input is laid over a sealed row (first byte: how much of it is cut off; the rest: XOR, and more bytes behind).
/// Only the row as it was opens.
fn sealed_row(data: &[u8]) {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    let bench = BENCH.get_or_init(bench);
    let Some((cut, rest)) = data.split_first() else { return };
    let mut bytes = bench.row.value.bytes.clone();
    bytes.truncate(bytes.len().saturating_sub(usize::from(*cut)));
    for (index, byte) in rest.iter().enumerate() {
        match bytes.get_mut(index) {
            Some(place) => *place ^= byte,
            None => bytes.push(*byte),
        }
    }
    let unchanged = bytes == bench.row.value.bytes;
    let value = RowValue { bytes, version: bench.row.value.version };
    let mut changes = ChangeSet::new();
    changes.push(Op::Put {
        key: bench.row.key.clone(),
        value,
        expires: bench.row.expires,
        expect: Expect::Present,
    });
    block_on(bench.adapter.commit(changes)).expect("a small row is stored");
    let read = block_on(bench.sealed.get(std::slice::from_ref(&bench.key)));
    match read {
        Ok(rows) => {
            let text = rows.into_iter().next().flatten().map(|record| record.value.expose().to_vec());
            assert!(unchanged && text.as_deref() == Some(TEXT), "a changed row opened");
        }
        Err(_) => assert!(!unchanged, "an unchanged row was refused"),
    }
}
