//! Answers that are written into memory of the caller: making buffers and objects from here costs several times what the
//! cryptography of a message does.
//!
//! An answer has two parts, a record and a text. Memory for records begins with a slip, and both are written where that says:
//!
//! ```text
//! slip = f64 time | u32 where the record goes | u32 where the text goes | u32 their lengths | two u32 of the call's own
//! ```
//!
//! The caller writes the first three, and reads the others as typed arrays, so all are as the machine orders bytes.

use napi::bindgen_prelude::BufferSlice;

/// Bytes of a slip.
const SLIP: usize = 32;

/// Where an answer goes. The caller sees to it that no argument is in the memory of either part.
pub(crate) struct Out<'a> {
    slip: &'a mut [u8; SLIP],
    /// Behind the slip.
    records: &'a mut [u8],
    texts: &'a mut [u8],
}

impl<'a> Out<'a> {
    pub(crate) fn new(
        records: &'a mut BufferSlice<'_>,
        texts: &'a mut BufferSlice<'_>,
    ) -> napi::Result<Self> {
        let records: &mut [u8] = records;
        let (slip, records) = records
            .split_first_chunk_mut()
            .ok_or_else(|| napi::Error::from_reason("memory for records has no room for a slip"))?;
        Ok(Self { slip, records, texts })
    }

    /// The time that the caller has.
    pub(crate) fn now(&self) -> f64 {
        let [a, b, c, d, e, f, g, h, ..] = *self.slip;
        f64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }

    /// Writes an answer whose text is made of two. If there is no room for both parts, only their lengths are written, and
    /// the caller comes again with more: whether there was room.
    pub(crate) fn give(&mut self, record: &[u8], text: [&[u8]; 2], more: [u32; 2]) -> bool {
        // Longer than any record or message that is taken in.
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let [front, back] = text;
        let whole = front.len() + back.len();
        let [.., a, b, c, d, e, f, g, h] = *self.slip.first_chunk::<16>().unwrap_or(&[0; 16]);
        let place = |bytes: [u8; 4]| usize::try_from(u32::from_ne_bytes(bytes)).ok();
        let numbers = [length(record.len()), length(whole), more[0], more[1]];
        for (word, number) in self.slip[16..].chunks_exact_mut(4).zip(numbers) {
            word.copy_from_slice(&number.to_ne_bytes());
        }
        let from = place([a, b, c, d]).and_then(|at| at.checked_sub(SLIP));
        let record_place = from.and_then(|at| self.records.get_mut(at..)?.get_mut(..record.len()));
        let text_place = place([e, f, g, h]).and_then(|at| self.texts.get_mut(at..)?.get_mut(..whole));
        let (Some(record_place), Some(text_place)) = (record_place, text_place) else { return false };
        record_place.copy_from_slice(record);
        let (before, after) = text_place.split_at_mut(front.len());
        before.copy_from_slice(front);
        after.copy_from_slice(back);
        true
    }
}
