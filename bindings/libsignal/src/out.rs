//! Answers that are written into memory of the caller: making buffers and objects from here costs several times what the
//! cryptography of a message does.
//!
//! ```text
//! slip = f64 time | u32 length of the first part | u32 length of the second one | two u32 of the call's own
//! ```
//!
//! The caller writes the time, and reads the others as typed arrays, so all are as the machine orders bytes.

use napi::bindgen_prelude::BufferSlice;

/// Bytes of a slip.
const SLIP: usize = 24;

/// Where an answer of two parts goes. The caller sees to it that no argument is in the same memory.
pub(crate) struct Out<'a> {
    slip: &'a mut [u8; SLIP],
    first: &'a mut [u8],
    second: &'a mut [u8],
}

impl<'a> Out<'a> {
    pub(crate) fn new(
        slip: &'a mut BufferSlice<'_>,
        first: &'a mut BufferSlice<'_>,
        second: &'a mut BufferSlice<'_>,
    ) -> napi::Result<Self> {
        let slip: &mut [u8] = slip;
        let slip = slip.try_into().map_err(|_| napi::Error::from_reason("a slip has another length"))?;
        Ok(Self { slip, first, second })
    }

    /// The time that the caller has.
    pub(crate) fn now(&self) -> f64 {
        let [a, b, c, d, e, f, g, h, ..] = *self.slip;
        f64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }

    /// Writes an answer whose second part is made of two. If there is no room for both parts, only their lengths are written, and
    /// the caller comes again with more: whether there was room.
    pub(crate) fn give(&mut self, first: &[u8], second: [&[u8]; 2], more: [u32; 2]) -> bool {
        // Longer than any record or message that is taken in.
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let [front, back] = second;
        let both = front.len() + back.len();
        let numbers = [length(first.len()), length(both), more[0], more[1]];
        for (word, number) in self.slip[8..].chunks_exact_mut(4).zip(numbers) {
            word.copy_from_slice(&number.to_ne_bytes());
        }
        let place = self.first.get_mut(..first.len());
        let places = self.second.get_mut(..both).map(|place| place.split_at_mut(front.len()));
        let (Some(place), Some((before, after))) = (place, places) else { return false };
        place.copy_from_slice(first);
        before.copy_from_slice(front);
        after.copy_from_slice(back);
        true
    }
}
