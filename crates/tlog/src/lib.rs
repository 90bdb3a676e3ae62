//! An append-only log that can be checked: nothing that it once held can be changed, removed or reordered without those who
//! hold a checkpoint noticing.
//!
//! - [`tree`]: the Merkle tree of RFC 6962. [`Frontier`] appends; what it completes is the caller's to store, in memory
//!   ([`MemoryNodes`]), in a database, or in tiles.
//! - [`proof`]: that an entry is in a tree ([`InclusionProof`]), that a tree continues an earlier one
//!   ([`ConsistencyProof`]).
//! - [`note`]: text with Ed25519 signatures beneath (C2SP signed-note, as Go's checksum database uses it). A log changes
//!   its key by signing with the old and the new one while its readers add the new [`Verifier`].
//! - [`checkpoint`]: what a log signs (C2SP tlog-checkpoint), and proofs that stand alone (C2SP tlog-proof).
//! - [`witness`]: somebody else who signs checkpoints (C2SP tlog-cosignature, tlog-witness).
//! - [`tile`] and [`store`]: a whole log in a directory (C2SP tlog-tiles), ready to be served as static files.
//!
//! Hashing and proving do no I/O and need no runtime.
//!
//! ```
//! use stvor_crypto::SystemRandom;
//! use stvor_tlog::{Checkpoint, ConsistencyProof, Frontier, Hash, InclusionProof, MemoryNodes, Signer};
//!
//! let signer = Signer::generate("example.com/log", &mut SystemRandom::new())?;
//! let (mut tree, mut nodes) = (Frontier::new(), MemoryNodes::new());
//! let mut roots = vec![tree.root()];
//! for entry in ["alpha", "beta", "gamma", "delta", "epsilon"] {
//!     let mut complete = Vec::new();
//!     tree.append(Hash::leaf(entry.as_bytes()), &mut complete)?;
//!     nodes.put(&complete)?;
//!     roots.push(tree.root());
//! }
//!
//! // The log signs what it is; somebody keeps the note.
//! let kept = Checkpoint::new("example.com/log", tree.size(), tree.root())?.sign(&[&signer])?;
//!
//! // "beta" is in it,
//! let checkpoint = Checkpoint::open(&kept, "example.com/log", &[signer.verifier().clone()])?;
//! let proof = InclusionProof::make(&nodes, 1, checkpoint.size())?;
//! proof.verify((1, Hash::leaf(b"beta")), (checkpoint.size(), checkpoint.root()))?;
//! // and it continues the log of three entries that somebody saw earlier.
//! let proof = ConsistencyProof::make(&nodes, 3, 5)?;
//! proof.verify((3, roots[3]), (checkpoint.size(), checkpoint.root()))?;
//! # Ok::<(), stvor_tlog::TlogError>(())
//! ```

pub mod checkpoint;
mod error;
pub mod limits;
pub mod note;
pub mod proof;
pub mod store;
pub mod tile;
pub mod tree;
pub mod witness;

pub use checkpoint::{Checkpoint, ProofFile};
pub use error::TlogError;
pub use note::{Note, Signer, Verifier};
pub use proof::{ConsistencyProof, InclusionProof};
pub use store::TileLog;
pub use tree::{Frontier, Hash, MemoryNodes, Node, Nodes};
