//! The resume cursor: opaque bytes that a relay hands out and gets back. Only relays know what is inside.

use prost::bytes::Bytes;

use crate::limits::MAX_CURSOR_BYTES;

/// A cursor as a client keeps it. It is no credential.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResumeCursor(Bytes);

impl ResumeCursor {
    /// A cursor from its bytes, or `None` when they exceed [`MAX_CURSOR_BYTES`].
    #[must_use]
    pub fn new(bytes: Bytes) -> Option<Self> {
        (bytes.len() <= MAX_CURSOR_BYTES).then_some(Self(bytes))
    }

    /// Its bytes; empty when there is none.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_holds_at_most_256_bytes() {
        assert!(ResumeCursor::new(vec![0; MAX_CURSOR_BYTES].into()).is_some());
        assert!(ResumeCursor::new(vec![0; MAX_CURSOR_BYTES + 1].into()).is_none());
    }
}
