//! Answers that are written into memory of the caller: making buffers and objects from here costs several times what the
//! cryptography of a message does.
//!
//! An answer has two parts, a record and a text. Memory for records begins with a slip, and both are written where that says:
//!
//! ```text
//! slip = f64 time | u32 where the record goes | u32 where the text goes | u32 their lengths | two u32 of the call's own
//!        | who we are: our public key 33, our registration id u32 BE | 3 unused
//! ```
//!
//! The caller writes the first three and who we are, and reads the others as typed arrays, so numbers are as the machine orders
//! bytes where nothing else is said.

use napi::bindgen_prelude::BufferSlice;
use stvor_protocol::signal::keys::PUBLIC_KEY;
use stvor_protocol::signal::{PublicContext, SenderKeyRecord, SessionRecord};

use crate::curve::public;
use crate::record::time;

/// Bytes of a slip, and of what stands in it before who we are.
const SLIP: usize = 72;
const NUMBERS: usize = 32;

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

    /// Who we are, and the time that the caller has.
    pub(crate) fn context(&self) -> napi::Result<PublicContext> {
        let [a, b, c, d, e, f, g, h, ..] = *self.slip;
        let now = time(f64::from_ne_bytes([a, b, c, d, e, f, g, h]));
        let (identity, rest) = self.slip[NUMBERS..].split_at(PUBLIC_KEY);
        let [a, b, c, d, ..] = *rest.first_chunk::<4>().unwrap_or(&[0; 4]);
        Ok(PublicContext {
            identity: public(identity)?,
            registration_id: u32::from_be_bytes([a, b, c, d]),
            now,
        })
    }

    /// Writes an answer whose text is made of two. If there is no room for both parts, only their lengths are written, and
    /// the caller comes again with more: whether there was room.
    pub(crate) fn give(&mut self, record: &impl Encode, text: [&[u8]; 2], more: [u32; 2]) -> bool {
        // Longer than any record or message that is taken in.
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let [front, back] = text;
        let (size, whole) = (record.size(), front.len() + back.len());
        let [.., a, b, c, d, e, f, g, h] = *self.slip.first_chunk::<16>().unwrap_or(&[0; 16]);
        let place = |bytes: [u8; 4]| usize::try_from(u32::from_ne_bytes(bytes)).ok();
        let numbers = [length(size), length(whole), more[0], more[1]];
        for (word, number) in self.slip[16..NUMBERS].chunks_exact_mut(4).zip(numbers) {
            word.copy_from_slice(&number.to_ne_bytes());
        }
        let from = place([a, b, c, d]).and_then(|at| at.checked_sub(SLIP));
        let record_place = from.and_then(|at| self.records.get_mut(at..)?.get_mut(..size));
        let text_place = place([e, f, g, h]).and_then(|at| self.texts.get_mut(at..)?.get_mut(..whole));
        let (Some(record_place), Some(text_place)) = (record_place, text_place) else { return false };
        if !record.encode_into(record_place) {
            record_place.fill(0);
            return false;
        }
        let (before, after) = text_place.split_at_mut(front.len());
        before.copy_from_slice(front);
        after.copy_from_slice(back);
        true
    }
}

/// A record that is written where it stays.
pub(crate) trait Encode {
    fn size(&self) -> usize;
    fn encode_into(&self, room: &mut [u8]) -> bool;
}

impl Encode for SessionRecord {
    fn size(&self) -> usize {
        Self::size(self)
    }

    fn encode_into(&self, room: &mut [u8]) -> bool {
        Self::encode_into(self, room)
    }
}

impl Encode for SenderKeyRecord {
    fn size(&self) -> usize {
        Self::size(self)
    }

    fn encode_into(&self, room: &mut [u8]) -> bool {
        Self::encode_into(self, room)
    }
}
