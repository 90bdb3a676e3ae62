//! What was decided and done that its owner may want to look up later: who, when, what. Kept sealed in the store.

use std::time::Duration;

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Timestamp, UserId};
use stvor_crypto::SystemRandom;
use stvor_store::{ChangeSet, Key, Op, Scan, Table};

use crate::client::Client;
use crate::core::{Core, random};
use crate::error::{Error, Result};
use crate::events::Event;

const VERSION: u8 = 1;

/// All entries in one partition, so that they can be read in order.
pub(crate) const PARTITION: &[u8] = b"journal";

/// How long an entry is kept: two years. Peers can cause entries, so none stays for ever.
const KEEP: Duration = Duration::from_secs(2 * 365 * 86_400);

/// Bytes of a text in an entry; a longer one is cut.
const MAX_TEXT: usize = 256;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Deed {
    /// Another identity took the place of a pinned one.
    IdentityAccepted,
    /// A pinned identity was marked as verified.
    IdentityVerified,
    /// The mark was taken back.
    IdentityUnverified,
    /// A backup was written.
    BackupMade,
    /// This store was restored from a backup.
    Restored,
    /// The store opens with another key from now on.
    KeyChanged,
    /// The data key was replaced, and every row was sealed anew.
    KeyRotated,
    /// An identity, our own or a peer's, handed over to one that it signed.
    IdentityRotated,
    /// An old key of a peer was found to have handed over to two identities.
    IdentityForked,
}

impl Deed {
    const ALL: [Self; 9] = [
        Self::IdentityAccepted,
        Self::IdentityVerified,
        Self::IdentityUnverified,
        Self::BackupMade,
        Self::Restored,
        Self::KeyChanged,
        Self::KeyRotated,
        Self::IdentityRotated,
        Self::IdentityForked,
    ];

    /// Its name in snake case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::IdentityAccepted => "identity_accepted",
            Self::IdentityVerified => "identity_verified",
            Self::IdentityUnverified => "identity_unverified",
            Self::BackupMade => "backup_made",
            Self::Restored => "restored",
            Self::KeyChanged => "key_changed",
            Self::KeyRotated => "key_rotated",
            Self::IdentityRotated => "identity_rotated",
            Self::IdentityForked => "identity_forked",
        }
    }

    /// The number on disk, which never changes.
    const fn id(self) -> u8 {
        match self {
            Self::IdentityAccepted => 1,
            Self::IdentityVerified => 2,
            Self::IdentityUnverified => 3,
            Self::BackupMade => 4,
            Self::Restored => 5,
            Self::KeyChanged => 6,
            Self::KeyRotated => 7,
            Self::IdentityRotated => 8,
            Self::IdentityForked => 9,
        }
    }
}

/// One entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct JournalEntry {
    /// When, by this device's clock.
    pub at: Timestamp,
    /// Who: the name that the app gave itself ([`crate::AppBuilder::actor`]), or `trust policy`, `trust callback`.
    pub who: String,
    /// What.
    pub deed: Deed,
    /// To what: a user, a file.
    pub subject: String,
    /// More about it, for example the fingerprints before and after.
    pub detail: String,
}

fn cut(text: &str) -> &[u8] {
    text.as_bytes().get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or_default()
}

impl JournalEntry {
    pub(crate) fn new(at: Timestamp, who: &str, deed: Deed) -> Self {
        Self { at, who: who.to_owned(), deed, subject: String::new(), detail: String::new() }
    }

    /// The change of a pinned identity.
    pub(crate) fn accepted(
        (at, who): (Timestamp, &str),
        peer: &UserId,
        (old, new): (&[u8], Option<&[u8]>),
    ) -> Self {
        let print = |key: &[u8]| fingerprint(key);
        let detail = format!("{} -> {}", print(old), new.map_or_else(|| "unknown".to_owned(), print));
        Self { subject: peer.to_string(), detail, ..Self::new(at, who, Deed::IdentityAccepted) }
    }

    pub(crate) fn about(mut self, subject: impl Into<String>, detail: impl Into<String>) -> Self {
        (self.subject, self.detail) = (subject.into(), detail.into());
        self
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(256);
        out.u8(VERSION).u8(self.deed.id()).u64(self.at.as_millis());
        out.bytes(cut(&self.who)).bytes(cut(&self.subject)).bytes(cut(&self.detail));
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        match input.u8()? {
            VERSION => {}
            other => return Err(CodecError::Version(other)),
        }
        let deed = input.u8()?;
        let deed = Deed::ALL.into_iter().find(|one| one.id() == deed).ok_or(CodecError::Value)?;
        let at = Timestamp::from_millis(input.u64()?);
        let mut text = || {
            let bytes = input.bytes(MAX_TEXT)?;
            core::str::from_utf8(bytes).map(str::to_owned).map_err(|_| CodecError::Value)
        };
        let entry = Self { at, who: text()?, deed, subject: text()?, detail: text()? };
        input.finish()?;
        Ok(entry)
    }

    /// Puts the entry into a change set, so that it is there if and only if the deed is.
    pub(crate) fn write(&self, changes: &mut ChangeSet) -> Result<()> {
        let tail: [u8; 8] = random(&mut SystemRandom::new())?;
        let sort = [&self.at.as_millis().to_be_bytes()[..], &tail].concat();
        let key = Key::new(Table::Log, PARTITION, sort);
        changes.push(Op::insert(key, self.encode()).expiring(self.at + KEEP));
        Ok(())
    }
}

/// When an entry goes, by its sort key, which begins with its time.
pub(crate) fn expiry(sort: &[u8]) -> Timestamp {
    let at = sort.first_chunk::<8>().map_or(0, |at| u64::from_be_bytes(*at));
    Timestamp::from_millis(at) + KEEP
}

/// SHA-256 of a public key in hexadecimal.
pub(crate) fn fingerprint(key: &[u8]) -> String {
    let hash = stvor_crypto::kdf::sha256(&[key]);
    hash.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// A moment, as RFC 3339 has it.
pub(crate) fn clock(at: Timestamp) -> String {
    let at =
        i64::try_from(at.as_millis()).ok().and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
    at.map_or_else(|| "a time that no calendar has".to_owned(), |at| format!("{at:.3}"))
}

impl Core {
    /// Writes an entry by itself, for what is done. Where that fails the deed stands all the same: whoever heard of a failure would
    /// throw away the only key that opens the store, or make one backup after the other.
    pub(crate) async fn note(&self, entry: JournalEntry) {
        let what = entry.deed.name();
        let noted = async {
            let mut changes = ChangeSet::new();
            entry.write(&mut changes)?;
            self.store.commit(changes).await.map_err(Error::passed)
        };
        if let Err(error) = noted.await {
            tracing::error!(code = error.code(), what, "what was done could not be entered in the journal");
            self.hub.emit(Event::StoreFailing { code: error.code() });
        }
    }
}

impl Client {
    /// What was decided and done, newest first, at most `limit` entries (1 to 1,000): identities accepted and verified,
    /// backups made, keys changed. Entries are kept for two years.
    ///
    /// # Errors
    /// What the store met.
    pub async fn journal(&self, limit: usize) -> Result<Vec<JournalEntry>> {
        let scan = Scan::of(Table::Log, PARTITION).newest_first();
        let limit = limit.clamp(1, stvor_store::limits::MAX_SCAN);
        let rows = self.core().store.scan_all(scan, limit).await.map_err(Error::passed)?;
        rows.iter().map(|row| JournalEntry::decode(row.value.expose()).map_err(Error::passed)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> JournalEntry {
        JournalEntry::new(Timestamp::from_millis(5), "alice", Deed::BackupMade).about("file", "7 rows")
    }

    #[test]
    fn entries_read_back_and_every_cut_is_refused() {
        let bytes = entry().encode();
        assert_eq!(JournalEntry::decode(&bytes), Ok(entry()));
        for length in 0..bytes.len() {
            assert!(JournalEntry::decode(&bytes[..length]).is_err(), "{length}");
        }
        let newer = [&[VERSION + 1], &bytes[1..]].concat();
        assert_eq!(JournalEntry::decode(&newer), Err(CodecError::Version(VERSION + 1)));
    }

    #[test]
    fn an_entry_reads_and_is_written_as_it_was_released() {
        let written = [
            &[1, 4][..],
            &5_u64.to_be_bytes(),
            &[&[0, 0, 0, 5][..], b"alice"].concat(),
            &[&[0, 0, 0, 4][..], b"file"].concat(),
            &[&[0, 0, 0, 6][..], b"7 rows"].concat(),
        ]
        .concat();
        assert_eq!(entry().encode(), written);
        assert_eq!(JournalEntry::decode(&written), Ok(entry()));
    }

    #[test]
    fn a_moment_reads_as_a_date() {
        assert_eq!(clock(Timestamp::from_millis(1_700_000_000_123)), "2023-11-14T22:13:20.123Z");
        assert_eq!(clock(Timestamp::from_millis(u64::MAX)), "a time that no calendar has");
    }

    #[test]
    fn numbers_of_deeds_stay_as_they_were_released() {
        let ids: Vec<u8> = Deed::ALL.iter().map(|deed| deed.id()).collect();
        assert_eq!(ids, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_text_of_256_bytes_is_kept_whole_and_a_longer_one_is_cut_between_letters() {
        for (text, kept) in
            [("é".repeat(128), 256), ("é".repeat(129), 256), ("x".to_owned() + &"é".repeat(128), 255)]
        {
            let long = JournalEntry { who: text, ..entry() };
            assert_eq!(JournalEntry::decode(&long.encode()).unwrap().who.len(), kept);
        }
    }
}
