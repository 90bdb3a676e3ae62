//! The Merkle tree of RFC 6962, section 2.1: hashes, and appending in a number of steps that grows with the logarithm.

use core::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use stvor_crypto::kdf::sha256;

use crate::{TlogError, limits};

/// Bytes of a hash.
pub const HASH_BYTES: usize = 32;

/// A SHA-256 hash of a leaf, of a subtree or of a whole tree.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; HASH_BYTES]);

impl Hash {
    /// The root of a tree without leaves: the hash of nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self(sha256(&[]))
    }

    /// The hash of a leaf: SHA-256 of a zero byte and the entry.
    ///
    /// ```
    /// use stvor_tlog::Hash;
    /// let hash = Hash::leaf(b"");
    /// assert!(hash.to_string().starts_with("6e340b9cffb37a98"));
    /// ```
    #[must_use]
    pub fn leaf(entry: &[u8]) -> Self {
        Self(sha256(&[&[0], entry]))
    }

    /// The hash over two subtrees: SHA-256 of a one byte and both.
    #[must_use]
    pub fn node(left: Self, right: Self) -> Self {
        Self(sha256(&[&[1], &left.0, &right.0]))
    }

    /// In base64, as notes and proofs write it.
    #[must_use]
    pub fn to_base64(self) -> String {
        STANDARD.encode(self.0)
    }

    /// From base64 in its one canonical form.
    ///
    /// # Errors
    /// [`TlogError::Malformed`].
    pub fn from_base64(text: &str) -> Result<Self, TlogError> {
        let malformed = || TlogError::malformed("hash", "it is not 32 bytes in base64");
        let bytes = STANDARD.decode(text).map_err(|_| malformed())?;
        bytes.try_into().map(Self).map_err(|_| malformed())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "Hash({a:02x}{b:02x}{c:02x}{d:02x}..)")
    }
}

/// A subtree that is complete for good: the hash over the 2^`level` leaves from `index * 2^level` on. Leaves have level 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// The height.
    pub level: u8,
    /// How many subtrees of this height are to the left.
    pub index: u64,
    /// Its hash.
    pub hash: Hash,
}

/// The right edge of a tree: the roots of its complete subtrees, largest first. It is all that appending needs.
///
/// ```
/// use stvor_tlog::{Frontier, Hash};
/// let mut tree = Frontier::new();
/// let mut complete = Vec::new();
/// for entry in [b"one", b"two", b"six"] {
///     tree.append(Hash::leaf(entry), &mut complete)?;
/// }
/// let [one, two, six] = [b"one", b"two", b"six"].map(|entry| Hash::leaf(entry));
/// assert_eq!(tree.root(), Hash::node(Hash::node(one, two), six));
/// assert_eq!(complete.len(), 4);
/// # Ok::<(), stvor_tlog::TlogError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    roots: Vec<Hash>,
}

impl Frontier {
    /// The tree without leaves.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The edge of the tree of `size` leaves that `nodes` holds.
    ///
    /// # Errors
    /// What `nodes` says; [`TlogError::Full`] for a size past [`limits::MAX_SIZE`].
    pub fn load(nodes: &impl Nodes, size: u64) -> Result<Self, TlogError> {
        if size > limits::MAX_SIZE {
            return Err(TlogError::Full);
        }
        let roots = subtrees(0, size).map(|(level, index)| nodes.node(level, index));
        Ok(Self { size, roots: roots.collect::<Result<_, _>>()? })
    }

    /// The edge of a tree of `size` leaves from its roots, largest first, as [`Frontier::roots`] gives them. Whether they are
    /// those of the tree shows when a root is held against a checkpoint.
    ///
    /// ```
    /// use stvor_tlog::{Frontier, Hash};
    /// let mut tree = Frontier::new();
    /// for entry in 0..5_u8 {
    ///     tree.append(Hash::leaf(&[entry]), &mut Vec::new())?;
    /// }
    /// assert_eq!(Frontier::resume(5, tree.roots().to_vec())?, tree);
    /// assert!(Frontier::resume(6, vec![Hash::empty()]).is_err(), "a tree of 6 has two complete subtrees");
    /// # Ok::<(), stvor_tlog::TlogError>(())
    /// ```
    ///
    /// # Errors
    /// [`TlogError::Malformed`] for another number of roots than a tree of this size has; [`TlogError::Full`].
    pub fn resume(size: u64, roots: Vec<Hash>) -> Result<Self, TlogError> {
        if size > limits::MAX_SIZE {
            return Err(TlogError::Full);
        }
        match roots.len() == size.count_ones() as usize {
            true => Ok(Self { size, roots }),
            false => Err(TlogError::malformed("edge of a tree", "its roots are not as many as its size has")),
        }
    }

    /// The roots of the complete subtrees, largest first: as many as the size has ones in binary.
    #[must_use]
    pub fn roots(&self) -> &[Hash] {
        &self.roots
    }

    /// How many leaves there are.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf. The subtrees that it completes, the leaf itself first, are pushed to `complete`, to be stored:
    /// at most 63 of them, two on average.
    ///
    /// # Errors
    /// [`TlogError::Full`].
    pub fn append(&mut self, leaf: Hash, complete: &mut Vec<Node>) -> Result<(), TlogError> {
        if self.size >= limits::MAX_SIZE {
            return Err(TlogError::Full);
        }
        let (mut hash, mut level, mut index) = (leaf, 0, self.size);
        complete.push(Node { level, index, hash });
        // Each one bit at the end of the size is a subtree that finds its other half.
        while index & 1 == 1 {
            let Some(left) = self.roots.pop() else { break };
            hash = Hash::node(left, hash);
            (level, index) = (level + 1, index >> 1);
            complete.push(Node { level, index, hash });
        }
        self.roots.push(hash);
        self.size += 1;
        Ok(())
    }

    /// The root of the tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut roots = self.roots.iter().rev();
        match roots.next() {
            None => Hash::empty(),
            Some(last) => roots.fold(*last, |right, left| Hash::node(*left, right)),
        }
    }
}

/// Where the hashes of complete subtrees are found.
pub trait Nodes {
    /// The hash over the 2^`level` leaves from `index * 2^level` on.
    ///
    /// # Errors
    /// [`TlogError::Missing`] when it is not stored, [`TlogError::Corrupt`], [`TlogError::Io`].
    fn node(&self, level: u8, index: u64) -> Result<Hash, TlogError>;
}

impl<N: Nodes + ?Sized> Nodes for &N {
    fn node(&self, level: u8, index: u64) -> Result<Hash, TlogError> {
        (**self).node(level, index)
    }
}

/// The complete subtrees that make up the leaves from `from` to before `to`, left to right, as level and index. `from`
/// is where a subtree of that many leaves may begin: zero, or a multiple of a power of two that is not less than their
/// number.
pub(crate) fn subtrees(from: u64, to: u64) -> impl Iterator<Item = (u8, u64)> {
    let mut at = from;
    core::iter::from_fn(move || {
        let level = to.checked_sub(at).filter(|left| *left > 0)?.ilog2();
        let index = at >> level;
        at += 1 << level;
        u8::try_from(level).ok().map(|level| (level, index))
    })
}

/// The root over the leaves from `from` to before `to`, as [`subtrees`].
pub(crate) fn range_root(nodes: &impl Nodes, from: u64, to: u64) -> Result<Hash, TlogError> {
    let roots = subtrees(from, to).map(|(level, index)| nodes.node(level, index));
    let roots: Vec<Hash> = roots.collect::<Result<_, _>>()?;
    let mut roots = roots.into_iter().rev();
    let last = roots.next().unwrap_or_else(Hash::empty);
    Ok(roots.fold(last, |right, left| Hash::node(left, right)))
}

/// Every complete subtree of a tree, or of its end, in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryNodes {
    /// The size of the tree from which on subtrees are held; those of its edge are, too.
    since: u64,
    rows: Vec<Vec<Hash>>,
}

impl MemoryNodes {
    /// No subtrees.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The subtrees at the edge of a tree, to be gone on with. They are enough to prove each leaf after it.
    #[must_use]
    pub fn after(edge: &Frontier) -> Self {
        let mut rows: Vec<Vec<Hash>> = Vec::new();
        for ((level, _), root) in subtrees(0, edge.size).zip(&edge.roots) {
            let level = usize::from(level);
            if rows.len() <= level {
                rows.resize_with(level + 1, Vec::new);
            }
            rows.get_mut(level).into_iter().for_each(|row| row.push(*root));
        }
        Self { since: edge.size, rows }
    }

    /// The index of the first subtree of a level that is held: the one at the edge, where that has one of this level.
    fn first(&self, level: u8) -> u64 {
        self.since.checked_shr(u32::from(level)).unwrap_or(0) & !1
    }

    /// Keeps what [`Frontier::append`] completed.
    ///
    /// # Errors
    /// [`TlogError::Corrupt`] when a subtree is left out or comes twice.
    pub fn put(&mut self, nodes: &[Node]) -> Result<(), TlogError> {
        for node in nodes {
            let (level, first) = (usize::from(node.level), self.first(node.level));
            if self.rows.len() <= level {
                self.rows.resize_with(level + 1, Vec::new);
            }
            match self.rows.get_mut(level) {
                Some(row) if first + row.len() as u64 == node.index => row.push(node.hash),
                _ => return Err(TlogError::Corrupt(format!("subtree {} of level {level}", node.index))),
            }
        }
        Ok(())
    }
}

impl Nodes for MemoryNodes {
    fn node(&self, level: u8, index: u64) -> Result<Hash, TlogError> {
        let row = self.rows.get(usize::from(level));
        let at = index.checked_sub(self.first(level)).and_then(|at| usize::try_from(at).ok());
        let hash = at.and_then(|at| row?.get(at));
        hash.copied().ok_or_else(|| TlogError::Missing(format!("subtree {index} of level {level}")))
    }
}
