//! What appending, proving and verifying cost in a log of a million entries.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use stvor_crypto::SystemRandom;
use stvor_tlog::{Checkpoint, ConsistencyProof, Frontier, Hash, InclusionProof, MemoryNodes, Signer};

const SIZE: u64 = 1_000_000;

#[expect(clippy::unwrap_used, reason = "a benchmark that fails should stop")]
fn log(criterion: &mut Criterion) {
    let (mut tree, mut nodes) = (Frontier::new(), MemoryNodes::new());
    let mut complete = Vec::new();
    for index in 0..SIZE {
        complete.clear();
        tree.append(Hash::leaf(&index.to_be_bytes()), &mut complete).unwrap();
        nodes.put(&complete).unwrap();
    }
    let leaf = |index: u64| Hash::leaf(&index.to_be_bytes());
    let whole = (SIZE, tree.root());
    let mut growing = tree.clone();
    criterion.bench_function("append a 150-byte entry", |bencher| {
        bencher.iter(|| {
            complete.clear();
            growing.append(Hash::leaf(black_box(&[7; 150])), &mut complete).unwrap();
        });
    });
    criterion.bench_function("root", |bencher| bencher.iter(|| black_box(&tree).root()));
    criterion.bench_function("make an inclusion proof", |bencher| {
        bencher.iter(|| InclusionProof::make(&nodes, black_box(345_678), SIZE).unwrap());
    });
    let proof = InclusionProof::make(&nodes, 345_678, SIZE).unwrap();
    criterion.bench_function("verify an inclusion proof", |bencher| {
        bencher.iter(|| proof.verify((345_678, leaf(345_678)), black_box(whole)).unwrap());
    });
    let old = Frontier::load(&nodes, 700_001).unwrap();
    let proof = ConsistencyProof::make(&nodes, 700_001, SIZE).unwrap();
    criterion.bench_function("verify a consistency proof", |bencher| {
        bencher.iter(|| proof.verify((700_001, old.root()), black_box(whole)).unwrap());
    });
    let signer = Signer::generate("example.com/log", &mut SystemRandom::new()).unwrap();
    let checkpoint = Checkpoint::new("example.com/log", SIZE, tree.root()).unwrap();
    criterion.bench_function("sign a checkpoint", |bencher| {
        bencher.iter(|| black_box(&checkpoint).sign(&[&signer]).unwrap());
    });
}

criterion_group!(benches, log);
criterion_main!(benches);
