//! The fixed codec of everything that is signed, authenticated or stored: big-endian integers and length-prefixed
//! bytes, one encoding for each value. A reader refuses short input, trailing bytes and lengths past a bound that the
//! caller names, and never allocates.

/// Bytes that are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The input ends before the value does.
    #[error("the bytes end too early")]
    Short,
    /// Bytes follow the value.
    #[error("bytes follow the value")]
    Trailing,
    /// A length is not the expected one, or exceeds its bound.
    #[error("a length is out of range")]
    Length,
    /// A value is not allowed or not in its one canonical form.
    #[error("a value is not allowed here")]
    Value,
    /// The version is not one that this build reads.
    #[error("version {0} is not known to this build")]
    Version(u8),
}

impl crate::ErrorCode for CodecError {
    fn code(&self) -> &'static str {
        match self {
            Self::Version(_) => "FORMAT_TOO_NEW",
            _ => "FORMAT_INVALID",
        }
    }
}

/// What a [`Writer`] writes to: a vector, which grows, or [`Room`], which does not.
pub trait Sink {
    /// Takes bytes behind those that it has.
    fn put(&mut self, bytes: &[u8]);
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Memory of somebody else that is to be filled. What does not fit is left out.
#[derive(Debug)]
pub struct Room<'a> {
    left: &'a mut [u8],
    fits: bool,
}

impl Sink for Room<'_> {
    fn put(&mut self, bytes: &[u8]) {
        match core::mem::take(&mut self.left).split_at_mut_checked(bytes.len()) {
            Some((place, left)) => {
                place.copy_from_slice(bytes);
                self.left = left;
            }
            None => self.fits = false,
        }
    }
}

/// Writes values one after another.
///
/// ```
/// use stvor_base::codec::{Reader, Writer};
/// let mut out = Writer::new();
/// out.u8(1).u32(7).bytes(b"abc");
/// let bytes = out.finish();
/// let mut input = Reader::new(&bytes);
/// assert_eq!((input.u8()?, input.u32()?, input.bytes(16)?), (1, 7, &b"abc"[..]));
/// input.finish()?;
/// # Ok::<(), stvor_base::codec::CodecError>(())
/// ```
#[derive(Debug, Default)]
pub struct Writer<S = Vec<u8>>(S);

impl Writer {
    /// An empty writer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty writer with room for `capacity` bytes, so that secrets are not left behind by growth.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// What was written.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    /// What was written so far.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl<'a> Writer<Room<'a>> {
    /// A writer into `room`, so that what is written, secrets for one, is nowhere else.
    ///
    /// ```
    /// use stvor_base::codec::Writer;
    /// let mut room = [0; 6];
    /// let mut out = Writer::into_room(&mut room);
    /// out.u16(7).u32(8);
    /// assert!(out.is_full());
    /// assert_eq!(room, [0, 7, 0, 0, 0, 8]);
    /// ```
    pub fn into_room(room: &'a mut [u8]) -> Self {
        Self(Room { left: room, fits: true })
    }

    /// Whether all that was written fitted, and nothing is left of the room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.fits && self.0.left.is_empty()
    }
}

impl<S: Sink> Writer<S> {
    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    /// Two bytes, big-endian.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Four bytes, big-endian.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Eight bytes, big-endian.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Bytes of a length that both sides know.
    pub fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.0.put(value);
        self
    }

    /// A u32 BE length, then the bytes. Values of 4 GiB and more do not occur: every writer's input is bounded far
    /// below, and the length saturates so that such bytes could not be read back as something else.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX)).raw(value)
    }
}

/// Reads values one after another.
#[derive(Debug, Clone)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// A reader over `input`.
    #[must_use]
    pub fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// `length` bytes.
    ///
    /// # Errors
    /// [`CodecError::Short`].
    pub fn raw(&mut self, length: usize) -> Result<&'a [u8], CodecError> {
        let (value, rest) = self.0.split_at_checked(length).ok_or(CodecError::Short)?;
        self.0 = rest;
        Ok(value)
    }

    /// `N` bytes.
    ///
    /// # Errors
    /// [`CodecError::Short`].
    pub fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], CodecError> {
        let (value, rest) = self.0.split_first_chunk::<N>().ok_or(CodecError::Short)?;
        self.0 = rest;
        Ok(value)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`CodecError::Short`].
    pub fn u8(&mut self) -> Result<u8, CodecError> {
        self.array::<1>().map(|[byte]| *byte)
    }

    /// Two bytes, big-endian.
    ///
    /// # Errors
    /// [`CodecError::Short`].
    pub fn u16(&mut self) -> Result<u16, CodecError> {
        self.array().map(|bytes| u16::from_be_bytes(*bytes))
    }

    /// Four bytes, big-endian.
    ///
    /// # Errors
    /// [`CodecError::Short`].
    pub fn u32(&mut self) -> Result<u32, CodecError> {
        self.array().map(|bytes| u32::from_be_bytes(*bytes))
    }

    /// Eight bytes, big-endian.
    ///
    /// # Errors
    /// [`CodecError::Short`].
    pub fn u64(&mut self) -> Result<u64, CodecError> {
        self.array().map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// A byte that is 0 or 1.
    ///
    /// # Errors
    /// [`CodecError::Short`], or [`CodecError::Value`] for any other byte.
    pub fn bool(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CodecError::Value),
        }
    }

    /// Length-prefixed bytes, at most `limit` of them.
    ///
    /// # Errors
    /// [`CodecError::Length`] past the limit, [`CodecError::Short`].
    pub fn bytes(&mut self, limit: usize) -> Result<&'a [u8], CodecError> {
        let length = usize::try_from(self.u32()?).map_err(|_| CodecError::Length)?;
        if length > limit {
            return Err(CodecError::Length);
        }
        self.raw(length)
    }

    /// Bytes not read yet.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.0.len()
    }

    /// The rest.
    pub fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.0)
    }

    /// Ends reading.
    ///
    /// # Errors
    /// [`CodecError::Trailing`] when bytes are left.
    pub fn finish(self) -> Result<(), CodecError> {
        if self.0.is_empty() { Ok(()) } else { Err(CodecError::Trailing) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_refuses_short_long_and_oversized_input() {
        let mut out = Writer::new();
        out.bytes(b"four");
        let bytes = out.finish();
        assert_eq!(Reader::new(&bytes).bytes(3), Err(CodecError::Length));
        assert_eq!(Reader::new(&bytes).bytes(4), Ok(&b"four"[..]));
        assert_eq!(Reader::new(&bytes[..7]).bytes(4), Err(CodecError::Short));
        assert_eq!(Reader::new(&bytes).finish(), Err(CodecError::Trailing));
        assert_eq!(Reader::new(&[2]).bool(), Err(CodecError::Value));
    }

    #[test]
    fn room_is_full_only_when_all_fitted_and_nothing_is_left() {
        for (size, full) in [(6, false), (7, true), (8, false)] {
            let mut room = vec![0xff; size];
            let mut out = Writer::into_room(&mut room);
            out.u8(1).u16(2).u32(3);
            assert_eq!(out.is_full(), full, "{size}");
        }
        let mut room = [0xff; 3];
        let mut out = Writer::into_room(&mut room);
        // What comes after something that does not fit would stand in its place.
        out.u8(1).u32(2).u16(3);
        assert!(!out.is_full());
        assert_eq!(room, [1, 0xff, 0xff]);
    }
}
