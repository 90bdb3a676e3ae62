//! Answers that are written into memory of the caller: making buffers and objects from here costs several times what the
//! cryptography of a message does.

/// Where an answer goes. What does not fit is counted: the caller then comes again with more room.
pub(crate) struct Out<'a> {
    into: &'a mut [u8],
    at: usize,
}

impl<'a> Out<'a> {
    pub(crate) fn new(into: &'a mut [u8]) -> Self {
        Self { into, at: 0 }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let end = self.at.saturating_add(bytes.len());
        if let Some(place) = self.into.get_mut(self.at..end) {
            place.copy_from_slice(bytes);
        }
        self.at = end;
        self
    }

    /// Little-endian, as JavaScript's typed arrays are read.
    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A length of what follows.
    pub(crate) fn length(&mut self, of: &[u8]) -> &mut Self {
        // Longer than any record or message that is taken in.
        self.u32(u32::try_from(of.len()).unwrap_or(u32::MAX))
    }

    /// How many bytes the whole answer has; if that is more than there was room for, nothing in it means anything.
    pub(crate) fn finish(&self) -> u32 {
        u32::try_from(self.at).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_does_not_fit_tells_how_long_it_is() {
        let mut room = [0xaa; 9];
        let mut out = Out::new(&mut room);
        assert_eq!(out.length(b"abc").u32(7).bytes(b"d").finish(), 9);
        assert_eq!(room, [3, 0, 0, 0, 7, 0, 0, 0, b'd']);
        let mut short = [0xaa; 8];
        let mut out = Out::new(&mut short);
        assert_eq!(out.length(b"abc").u32(7).bytes(b"de").finish(), 10);
        assert_eq!(short, [3, 0, 0, 0, 7, 0, 0, 0], "nothing beyond the room");
    }
}
