//! What kinds of rows there are.

/// A table: a kind of row. The number is on disk and in the associated data of every row, so it never changes; new
/// kinds take new numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum Table {
    /// The store's own header and epoch: not sealed, and only the sealing layer writes it.
    Header = 0,
    /// Facts about the store that its user keeps (counters, cursors, times).
    Meta = 1,
    /// Our own user and device keys.
    Identity = 2,
    /// Ids and times of prekeys.
    PrekeyState = 3,
    /// Signed prekeys with their private halves.
    SignedPrekey = 4,
    /// One-time prekeys with their private halves.
    OneTimePrekey = 5,
    /// KEM prekeys with their private halves.
    KemPrekey = 6,
    /// Current sessions.
    Session = 7,
    /// Sessions that a newer one replaced.
    ArchivedSession = 8,
    /// Stored message keys of messages that have not arrived.
    SkippedKeys = 9,
    /// Pinned identities of peers.
    Pin = 10,
    /// Base keys of accepted handshakes.
    HandshakeMark = 11,
    /// The short replay cache.
    ReplayMark = 12,
    /// Ids of contents received, so that each is delivered once.
    ContentId = 13,
    /// Settings and state of a conversation with a peer.
    Peer = 14,
    /// Messages to be sent.
    Outbox = 15,
    /// Messages that the app has not consumed.
    Inbox = 16,
    /// The conversation history.
    History = 17,
    /// Events that the app has not seen.
    Event = 18,
    /// Settings of the app.
    Settings = 19,
    /// Message requests and retries under way.
    Repair = 20,
    /// Device lists of users.
    DeviceList = 21,
    /// Outgoing lanes: numbers and epochs.
    Lane = 22,
    /// Group states.
    Group = 23,
    /// Sender keys of groups.
    SenderKey = 24,
    /// What was decided and done that its owner may want to look up: identities accepted, backups made.
    Log = 25,
    /// For the application's or an extension's own use.
    Custom = 64,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 27] = [
        Self::Header,
        Self::Meta,
        Self::Identity,
        Self::PrekeyState,
        Self::SignedPrekey,
        Self::OneTimePrekey,
        Self::KemPrekey,
        Self::Session,
        Self::ArchivedSession,
        Self::SkippedKeys,
        Self::Pin,
        Self::HandshakeMark,
        Self::ReplayMark,
        Self::ContentId,
        Self::Peer,
        Self::Outbox,
        Self::Inbox,
        Self::History,
        Self::Event,
        Self::Settings,
        Self::Repair,
        Self::DeviceList,
        Self::Lane,
        Self::Group,
        Self::SenderKey,
        Self::Log,
        Self::Custom,
    ];

    /// The stable number.
    #[must_use]
    pub const fn id(self) -> u8 {
        self as u8
    }

    /// The table with this number.
    #[must_use]
    pub fn from_id(id: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.id() == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_numbers_are_unique_and_stay_as_they_were_released() {
        for table in Table::ALL {
            assert_eq!(Table::from_id(table.id()), Some(table));
        }
        let ids: Vec<u8> = Table::ALL.iter().map(|table| table.id()).collect();
        let mut released: Vec<u8> = (0..=25).collect();
        released.push(64);
        assert_eq!(ids, released);
        assert_eq!(Table::Session.id(), 7);
        assert_eq!(Table::Settings.id(), 19);
        assert_eq!(Table::from_id(63), None);
    }
}
