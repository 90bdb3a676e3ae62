//! The layout of a backup, inside the age file that seals it.
//!
//! ```text
//! backup  = "STVORBAK" | u16 format = 2 | lp(head) | entries | zeros up to a multiple of 65,536 bytes
//! head    = lp(app id) | lp(user id) | u32 device id | u64 time | store id [16] | lp(relay origin)
//!         | u64 last order | u64 send counter | u32 next prekey id
//! entry   = u8 kind | u32 length | body
//! kinds   = 1 identity record | 2 lp(user id) | pin record | 3 settings of a conversation
//!         | 4 lp(user id) | place [24] | u8 expires? | u64 expiry | message record
//!         | 5 lp(sort) | journal record | 6 lp(partition) | lp(sort) | group record
//!         | 7 group id [16] | place [24] | u8 expires? | u64 expiry | message record
//!         | 8 u8 whether the identity follows from a recovery phrase or passphrase (since format 2)
//!         | 0 end: u64 number of entries before it
//! ```
//!
//! The padding hides sizes below 64 KiB, and it tells a file that was cut from one that was altered: age seals pieces of
//! 65,536 bytes, so a whole backup is a whole number of sealed pieces.

use std::io::{Read, Write};
use std::path::Path;

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{AppId, DeviceId, GroupId, Timestamp, UserId};
use stvor_crypto::SecretBytes;

use super::error::BackupError;
use crate::error::{Error, Result};
use crate::rows::Place;

const MAGIC: &[u8; 8] = b"STVORBAK";

/// The format that this build writes, and the newest that it reads. Format 1 has no entries of kind 8.
pub(crate) const FORMAT: u16 = 2;

/// Bytes of a piece that age seals by itself.
pub(super) const PIECE: u64 = 65_536;

/// Bytes of a sealed piece.
pub(super) const SEALED_PIECE: u64 = PIECE + 16;

/// Bytes of a head.
const MAX_HEAD: usize = 4_096;

/// Bytes of an entry's body: the longest value of a store and the names around it.
const MAX_BODY: usize = stvor_store::limits::MAX_VALUE + 4 * stvor_store::limits::MAX_KEY_PART;

/// What the backup is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) app: AppId,
    pub(super) user: UserId,
    pub(super) device: DeviceId,
    pub(super) made: Timestamp,
    pub(super) store: [u8; 16],
    pub(super) relay: String,
    pub(super) order: u64,
    pub(super) counter: u64,
    pub(super) next_prekey: u32,
}

/// One thing in a backup.
#[derive(Debug)]
pub(super) enum Entry {
    Identity(SecretBytes),
    Pin {
        user: UserId,
        record: SecretBytes,
    },
    Peer(SecretBytes),
    Message {
        peer: UserId,
        place: Place,
        expires: Option<Timestamp>,
        record: SecretBytes,
    },
    Journal {
        sort: Vec<u8>,
        record: SecretBytes,
    },
    Group {
        partition: Vec<u8>,
        sort: Vec<u8>,
        record: SecretBytes,
    },
    GroupMessage {
        group: GroupId,
        place: Place,
        expires: Option<Timestamp>,
        record: SecretBytes,
    },
    /// Whether the identity follows from a recovery secret; absent where that is not known.
    Derived(bool),
}

const END: u8 = 0;

fn name(input: &mut Reader<'_>) -> Result<UserId, CodecError> {
    core::str::from_utf8(input.bytes(stvor_base::address::MAX_USER_ID_BYTES)?)
        .ok()
        .and_then(|name| UserId::from_canonical(name).ok())
        .ok_or(CodecError::Value)
}

impl Head {
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.bytes(self.app.as_str().as_bytes()).bytes(self.user.as_str().as_bytes());
        out.u32(self.device.get()).u64(self.made.as_millis()).raw(&self.store).bytes(self.relay.as_bytes());
        out.u64(self.order).u64(self.counter).u32(self.next_prekey);
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        let app = core::str::from_utf8(input.bytes(MAX_HEAD)?).map_err(|_| CodecError::Value)?;
        let head = Self {
            app: AppId::new(app).map_err(|_| CodecError::Value)?,
            user: name(&mut input)?,
            device: DeviceId::new(input.u32()?).map_err(|_| CodecError::Value)?,
            made: Timestamp::from_millis(input.u64()?),
            store: *input.array()?,
            relay: core::str::from_utf8(input.bytes(MAX_HEAD)?).map_err(|_| CodecError::Value)?.to_owned(),
            order: input.u64()?,
            counter: input.u64()?,
            next_prekey: input.u32()?,
        };
        input.finish()?;
        Ok(head)
    }
}

impl Entry {
    fn encode(&self) -> (u8, SecretBytes) {
        let mut out = Writer::new();
        let kind = match self {
            Self::Identity(record) => {
                out.raw(record.expose());
                1
            }
            Self::Pin { user, record } => {
                out.bytes(user.as_str().as_bytes()).raw(record.expose());
                2
            }
            Self::Peer(record) => {
                out.raw(record.expose());
                3
            }
            Self::Message { peer, place, expires, record } => {
                out.bytes(peer.as_str().as_bytes());
                place.write(&mut out);
                out.u8(u8::from(expires.is_some())).u64(expires.unwrap_or_default().as_millis());
                out.raw(record.expose());
                4
            }
            Self::Journal { sort, record } => {
                out.bytes(sort).raw(record.expose());
                5
            }
            Self::Group { partition, sort, record } => {
                out.bytes(partition).bytes(sort).raw(record.expose());
                6
            }
            Self::GroupMessage { group, place, expires, record } => {
                out.raw(group.as_bytes());
                place.write(&mut out);
                out.u8(u8::from(expires.is_some())).u64(expires.unwrap_or_default().as_millis());
                out.raw(record.expose());
                7
            }
            Self::Derived(derived) => {
                out.u8(u8::from(*derived));
                8
            }
        };
        (kind, out.finish().into())
    }

    fn decode(kind: u8, body: &SecretBytes) -> Result<Self, CodecError> {
        const PART: usize = stvor_store::limits::MAX_KEY_PART;
        let mut input = Reader::new(body.expose());
        Ok(match kind {
            1 => Self::Identity(SecretBytes::from_slice(input.rest())),
            2 => Self::Pin { user: name(&mut input)?, record: SecretBytes::from_slice(input.rest()) },
            3 => Self::Peer(SecretBytes::from_slice(input.rest())),
            4 => Self::Message {
                peer: name(&mut input)?,
                place: Place::read(&mut input)?,
                expires: {
                    let (has, at) = (input.bool()?, input.u64()?);
                    has.then_some(Timestamp::from_millis(at))
                },
                record: SecretBytes::from_slice(input.rest()),
            },
            5 => Self::Journal {
                sort: input.bytes(PART)?.to_vec(),
                record: SecretBytes::from_slice(input.rest()),
            },
            6 => Self::Group {
                partition: input.bytes(PART)?.to_vec(),
                sort: input.bytes(PART)?.to_vec(),
                record: SecretBytes::from_slice(input.rest()),
            },
            7 => Self::GroupMessage {
                group: GroupId::from_bytes(*input.array()?),
                place: Place::read(&mut input)?,
                expires: {
                    let (has, at) = (input.bool()?, input.u64()?);
                    has.then_some(Timestamp::from_millis(at))
                },
                record: SecretBytes::from_slice(input.rest()),
            },
            8 => {
                let derived = input.bool()?;
                input.finish()?;
                Self::Derived(derived)
            }
            _ => return Err(CodecError::Value),
        })
    }
}

/// Writes a backup.
pub(super) struct Encoder<W> {
    output: W,
    written: u64,
    entries: u64,
}

impl<W: Write> Encoder<W> {
    pub(super) fn start(output: W, head: &Head) -> std::io::Result<Self> {
        Self::start_as(output, head, FORMAT)
    }

    fn start_as(output: W, head: &Head, format: u16) -> std::io::Result<Self> {
        let mut encoder = Self { output, written: 0, entries: 0 };
        let mut out = Writer::new();
        out.raw(MAGIC).u16(format).bytes(&head.encode());
        encoder.put(out.as_slice())?;
        Ok(encoder)
    }

    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.written += bytes.len() as u64;
        self.output.write_all(bytes)
    }

    fn frame(&mut self, kind: u8, body: &[u8]) -> std::io::Result<()> {
        let length = u32::try_from(body.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
        self.put(&[kind])?;
        self.put(&length.to_be_bytes())?;
        self.put(body)
    }

    pub(super) fn write(&mut self, entry: &Entry) -> std::io::Result<()> {
        let (kind, body) = entry.encode();
        self.entries += 1;
        self.frame(kind, body.expose())
    }

    /// Writes end and padding; gives the output and the number of entries back.
    pub(super) fn finish(mut self) -> std::io::Result<(W, u64)> {
        self.frame(END, &self.entries.to_be_bytes())?;
        let over = self.written % PIECE;
        if over > 0 {
            let zeros = vec![0; usize::try_from(PIECE - over).unwrap_or_default()];
            self.put(&zeros)?;
        }
        Ok((self.output, self.entries))
    }
}

/// Reads a backup.
pub(super) struct Decoder<'a, R> {
    input: R,
    path: &'a Path,
    entries: u64,
}

impl<'a, R: Read> Decoder<'a, R> {
    /// Reads the beginning.
    pub(super) fn start(input: R, path: &'a Path) -> Result<(Self, Head)> {
        let mut decoder = Self { input, path, entries: 0 };
        let mut beginning = [0; 10];
        decoder.fill(&mut beginning)?;
        let (magic, format) = beginning.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(decoder.corrupt("it was sealed by another program"));
        }
        let format = format.iter().fold(0, |number, byte| number << 8 | u16::from(*byte));
        if !(1..=FORMAT).contains(&format) {
            let path = path.to_owned();
            return Err(Error::passed(BackupError::TooNew { path, found: format, known: FORMAT }));
        }
        let head = decoder.body(MAX_HEAD)?;
        let head = Head::decode(head.expose()).map_err(|_| decoder.corrupt("its head can not be read"))?;
        Ok((decoder, head))
    }

    pub(super) fn corrupt(&self, what: &'static str) -> Error {
        Error::passed(BackupError::Corrupt { path: self.path.to_owned(), what })
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        match error.kind() {
            // The length of the file was checked: it is whole, so what does not open was altered.
            std::io::ErrorKind::InvalidData => self.corrupt("a piece of it was altered"),
            std::io::ErrorKind::UnexpectedEof => self.corrupt("it ends where something should follow"),
            _ => Error::passed(BackupError::io("reading", self.path, error)),
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        let read = self.input.read_exact(buffer);
        read.map_err(|error| self.failed(&error))
    }

    fn body(&mut self, limit: usize) -> Result<SecretBytes> {
        let mut length = [0; 4];
        self.fill(&mut length)?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > limit {
            return Err(self.corrupt("an entry is longer than any can be"));
        }
        let mut body = SecretBytes::from(vec![0; length]);
        self.fill(body.expose_mut())?;
        Ok(body)
    }

    /// The next entry; `None` after the last one, when everything was read and is as it was written.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let mut kind = [0];
        self.fill(&mut kind)?;
        let [kind] = kind;
        let body = self.body(MAX_BODY)?;
        if kind != END {
            self.entries += 1;
            return Entry::decode(kind, &body)
                .map(Some)
                .map_err(|_| self.corrupt("an entry can not be read"));
        }
        if body.expose() != self.entries.to_be_bytes() {
            return Err(self.corrupt("its number of entries is another"));
        }
        let mut rest = Vec::new();
        let read = Read::by_ref(&mut self.input).take(PIECE).read_to_end(&mut rest);
        read.map_err(|error| self.failed(&error))?;
        if rest.len() as u64 >= PIECE || rest.iter().any(|byte| *byte != 0) {
            return Err(self.corrupt("something follows its end"));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            app: AppId::new("app").unwrap(),
            user: UserId::new("alice").unwrap(),
            device: DeviceId::FIRST,
            made: Timestamp::from_millis(7),
            store: [3; 16],
            relay: "wss://relay.example".to_owned(),
            order: 9,
            counter: 10,
            next_prekey: 11,
        }
    }

    fn entries() -> Vec<Entry> {
        let user = || UserId::new("bob").unwrap();
        let record = || SecretBytes::from_slice(b"record");
        let place = Place { order: 5, id: stvor_base::ContentId::from_bytes([1; 16]) };
        vec![
            Entry::Identity(record()),
            Entry::Derived(true),
            Entry::Derived(false),
            Entry::Pin { user: user(), record: record() },
            Entry::Peer(record()),
            Entry::Message { peer: user(), place, expires: None, record: record() },
            Entry::Message {
                peer: user(),
                place,
                expires: Some(Timestamp::from_millis(8)),
                record: SecretBytes::default(),
            },
            Entry::Journal { sort: vec![1, 2], record: record() },
            Entry::Group { partition: vec![1], sort: vec![2], record: record() },
            Entry::GroupMessage {
                group: GroupId::from_bytes([3; 16]),
                place: Place { order: 5, id: stvor_base::ContentId::from_bytes([6; 16]) },
                expires: None,
                record: record(),
            },
        ]
    }

    fn written(format: u16) -> Vec<u8> {
        let mut encoder = Encoder::start_as(Vec::new(), &head(), format).unwrap();
        entries().iter().for_each(|entry| encoder.write(entry).unwrap());
        let (bytes, count) = encoder.finish().unwrap();
        assert_eq!(count, entries().len() as u64);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<String>> {
        let (mut decoder, found) = Decoder::start(bytes, Path::new("file"))?;
        assert_eq!(found, head());
        let mut all = Vec::new();
        while let Some(entry) = decoder.next()? {
            let (kind, body) = entry.encode();
            all.push(format!("{kind} {:?}", body.expose()));
        }
        Ok(all)
    }

    #[test]
    fn a_backup_reads_back_and_is_a_whole_number_of_pieces() {
        let bytes = written(FORMAT);
        assert_eq!(bytes.len() as u64 % PIECE, 0);
        let expected: Vec<_> = entries()
            .iter()
            .map(|entry| {
                let (kind, body) = entry.encode();
                format!("{kind} {:?}", body.expose())
            })
            .collect();
        assert_eq!(read(&bytes).unwrap(), expected);
        assert_eq!(read(&written(1)).unwrap(), expected, "format 1 has fewer kinds");
        assert_eq!(read(&written(0)).unwrap_err().code(), "BACKUP_TOO_NEW");
    }

    #[test]
    fn a_newer_format_another_program_and_bytes_out_of_place_are_told_apart() {
        assert_eq!(read(&written(FORMAT + 1)).unwrap_err().code(), "BACKUP_TOO_NEW");
        let bytes = written(FORMAT);
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        for at in (0..used).step_by(3) {
            assert_eq!(read(&bytes[..at]).unwrap_err().code(), "BACKUP_CORRUPT", "{at}");
        }
        let mut other = bytes.clone();
        other[0] ^= 1;
        assert_eq!(read(&other).unwrap_err().code(), "BACKUP_CORRUPT");
        let mut tail = bytes.clone();
        *tail.last_mut().unwrap() = 1;
        assert_eq!(read(&tail).unwrap_err().code(), "BACKUP_CORRUPT");
        let longer = [bytes, vec![0; PIECE as usize]].concat();
        assert_eq!(read(&longer).unwrap_err().code(), "BACKUP_CORRUPT");
    }

    #[test]
    fn an_entry_longer_than_any_row_is_refused_before_it_is_read() {
        let mut encoder = Encoder::start(Vec::new(), &head()).unwrap();
        encoder.frame(1, &vec![0; MAX_BODY]).unwrap();
        encoder.frame(1, &vec![0; MAX_BODY + 1]).unwrap();
        let bytes = encoder.output;
        let (mut decoder, _) = Decoder::start(&bytes[..], Path::new("file")).unwrap();
        assert!(decoder.next().unwrap().is_some());
        assert_eq!(decoder.next().unwrap_err().code(), "BACKUP_CORRUPT");
    }
}
