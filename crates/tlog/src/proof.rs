//! Inclusion and consistency proofs: RFC 6962, sections 2.1.1 and 2.1.2; verification as RFC 9162, sections 2.1.3.2 and
//! 2.1.4.2, spells it out.

use crate::tree::{Hash, Nodes, range_root};
use crate::{TlogError, limits};

/// What leads from one leaf to the root of a tree, lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InclusionProof(pub Vec<Hash>);

/// What leads from the root of a tree to the root of a later one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsistencyProof(pub Vec<Hash>);

/// The largest power of two below `size`, which is more than 1.
fn split(size: u64) -> u64 {
    1 << (size - 1).ilog2()
}

impl InclusionProof {
    /// Proves that the leaf at `index` is in the tree of `size` leaves.
    ///
    /// ```
    /// use stvor_tlog::{Frontier, Hash, InclusionProof, MemoryNodes};
    /// let (mut tree, mut nodes) = (Frontier::new(), MemoryNodes::new());
    /// for entry in 0..100_u8 {
    ///     let mut complete = Vec::new();
    ///     tree.append(Hash::leaf(&[entry]), &mut complete)?;
    ///     nodes.put(&complete)?;
    /// }
    /// let proof = InclusionProof::make(&nodes, 42, 100)?;
    /// proof.verify((42, Hash::leaf(&[42])), (100, tree.root()))?;
    /// assert!(proof.verify((42, Hash::leaf(&[43])), (100, tree.root())).is_err());
    /// # Ok::<(), stvor_tlog::TlogError>(())
    /// ```
    ///
    /// # Errors
    /// [`TlogError::OutOfRange`] when the tree has no such leaf; what `nodes` says.
    pub fn make(nodes: &impl Nodes, index: u64, size: u64) -> Result<Self, TlogError> {
        if index >= size || size > limits::MAX_SIZE {
            return Err(TlogError::OutOfRange { what: "entry", asked: index, size });
        }
        let (mut from, mut to, mut hashes) = (0, size, Vec::new());
        while to - from > 1 {
            let middle = from + split(to - from);
            if index < middle {
                hashes.push(range_root(nodes, middle, to)?);
                to = middle;
            } else {
                hashes.push(range_root(nodes, from, middle)?);
                from = middle;
            }
        }
        hashes.reverse();
        Ok(Self(hashes))
    }

    /// Verifies that `(index, leaf)` is in the tree `(size, root)`.
    ///
    /// # Errors
    /// [`TlogError::BadProof`].
    pub fn verify(&self, (index, leaf): (u64, Hash), (size, root): (u64, Hash)) -> Result<(), TlogError> {
        let bad = TlogError::BadProof { what: "inclusion" };
        if index >= size || size > limits::MAX_SIZE {
            return Err(bad);
        }
        let (mut at, mut last, mut hash) = (index, size - 1, leaf);
        for sibling in &self.0 {
            if last == 0 {
                return Err(bad);
            }
            if at & 1 == 1 || at == last {
                hash = Hash::node(*sibling, hash);
                while at & 1 == 0 && at != 0 {
                    (at, last) = (at >> 1, last >> 1);
                }
            } else {
                hash = Hash::node(hash, *sibling);
            }
            (at, last) = (at >> 1, last >> 1);
        }
        if last == 0 && hash == root { Ok(()) } else { Err(bad) }
    }
}

impl ConsistencyProof {
    /// Proves that the tree of `size` leaves begins with the tree of `old` leaves.
    ///
    /// # Errors
    /// [`TlogError::OutOfRange`] when `old` is the larger one; what `nodes` says.
    pub fn make(nodes: &impl Nodes, old: u64, size: u64) -> Result<Self, TlogError> {
        if old > size || size > limits::MAX_SIZE {
            return Err(TlogError::OutOfRange { what: "size", asked: old, size });
        }
        if old == 0 || old == size {
            return Ok(Self(Vec::new()));
        }
        let (mut from, mut to, mut hashes) = (0, size, Vec::new());
        // Down to the subtree that ends where the old tree ends.
        while to != old {
            let middle = from + split(to - from);
            if old <= middle {
                hashes.push(range_root(nodes, middle, to)?);
                to = middle;
            } else {
                hashes.push(range_root(nodes, from, middle)?);
                from = middle;
            }
        }
        if from != 0 {
            hashes.push(range_root(nodes, from, to)?);
        }
        hashes.reverse();
        Ok(Self(hashes))
    }

    /// Verifies that the tree `(size, root)` begins with the tree `(old_size, old_root)`. Every tree begins with the
    /// empty one.
    ///
    /// # Errors
    /// [`TlogError::BadProof`].
    pub fn verify(
        &self,
        (old_size, old_root): (u64, Hash),
        (size, root): (u64, Hash),
    ) -> Result<(), TlogError> {
        let bad = TlogError::BadProof { what: "consistency" };
        if old_size > size || size > limits::MAX_SIZE {
            return Err(bad);
        }
        let same = old_size == size && old_root == root;
        let begins_empty = old_size == 0 && old_root == Hash::empty() && (size != 0 || root == Hash::empty());
        if old_size == 0 || old_size == size {
            return if self.0.is_empty() && (same || begins_empty) { Ok(()) } else { Err(bad) };
        }
        let (mut at, mut last) = (old_size - 1, size - 1);
        while at & 1 == 1 {
            (at, last) = (at >> 1, last >> 1);
        }
        let mut hashes = self.0.iter();
        // A power of two is a subtree of its own, whose root the verifier has.
        let first = if old_size.is_power_of_two() { Some(&old_root) } else { hashes.next() };
        let Some(first) = first else { return Err(bad) };
        let (mut old_hash, mut hash) = (*first, *first);
        for sibling in hashes {
            if last == 0 {
                return Err(bad);
            }
            if at & 1 == 1 || at == last {
                old_hash = Hash::node(*sibling, old_hash);
                hash = Hash::node(*sibling, hash);
                while at & 1 == 0 && at != 0 {
                    (at, last) = (at >> 1, last >> 1);
                }
            } else {
                hash = Hash::node(hash, *sibling);
            }
            (at, last) = (at >> 1, last >> 1);
        }
        if last == 0 && old_hash == old_root && hash == root { Ok(()) } else { Err(bad) }
    }
}
