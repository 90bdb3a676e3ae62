//! Every bound of the protocol, each with its reason. A peer or a relay can drive none of them further.

use core::time::Duration;

/// Message keys that one message may be ahead of the last one of its chain. More than a relay mailbox usually holds
/// of one sender, and few enough that deriving them costs well under 2 ms.
pub const MAX_SKIP: u32 = 2_000;

/// Message keys kept for messages that have not come yet, over all sessions with one peer; the oldest goes first.
pub const MAX_STORED_KEYS: usize = 2_000;

/// How long the key of a message that has not come is kept: as long as a relay keeps mail.
pub const STORED_KEY_LIFETIME: Duration = days(30);

/// Runs of message numbers, each of one chain, whose keys were destroyed unused and that are remembered for one peer, so
/// that a message that comes too late is told from one that was read; the oldest goes first. 16 KiB when full.
pub const MAX_LOST_RANGES: usize = 256;

/// Receiving chains that a session remembers, the current one included, so that late duplicates are known as such.
pub const MAX_RECEIVING_CHAINS: usize = 5;

/// Replaced sessions that can still decrypt late messages.
pub const MAX_ARCHIVED_SESSIONS: usize = 40;

/// Application bytes in one message: one relay frame holds it with room for the envelope.
pub const MAX_PLAINTEXT: usize = 64 * 1024;

/// Bytes of a whole encrypted message that are looked at: the frame cap of the relay.
pub const MAX_BLOB: usize = 96 * 1024;

/// Application messages received on one session without sending on it, after which an answer renews the keys.
pub const FORCED_RATCHET: u32 = 50;

/// A session that we started and that nobody answered for this long is started afresh: the peer may never have seen
/// it, or lost it.
pub const UNANSWERED_RESTART: Duration = days(14);

/// How often the signed prekey and the last-resort KEM prekey are replaced.
pub const PREKEY_ROTATION: Duration = days(7);

/// How long a replaced prekey's private half lives after its replacement was uploaded: a fetched bundle may be used
/// for 30 days, and what was sent with it may wait 30 days in a mailbox.
pub const PREKEY_RETENTION: Duration = days(60);

/// A signed prekey older than this means that the device is long gone or a relay serves an old bundle.
pub const BUNDLE_MAX_AGE: Duration = days(30);

/// One-time prekeys made at once.
pub const ONE_TIME_BATCH: u32 = 100;

/// One-time prekeys left at the relay under which a new batch is made.
pub const ONE_TIME_LOW: u32 = 20;

/// One-time KEM prekeys made at once: 50 of 1184 bytes with their signatures fill most of a 96 KiB frame.
pub const KEM_ONE_TIME_BATCH: u32 = 50;

/// Private halves of one-time prekeys kept at most; the oldest were handed out long ago and never used.
pub const MAX_ONE_TIME_KEPT: u32 = 2_000;

/// Replaced generations of the signed prekey kept at most: 60 days of weekly rotation are 9.
pub const MAX_RETIRED_PREKEYS: usize = 16;

/// Requests to send one message again that are answered.
pub const MAX_RETRIES: u32 = 3;

/// How often a fresh session may be started towards one peer to repair messages, whoever provokes it.
pub const FRESH_SESSION_INTERVAL: Duration = Duration::from_secs(3_600);

/// Failures on the current session without a success in between, after which it no longer counts as working.
pub const BROKEN_SESSION_FAILURES: u32 = 3;

/// How long the (peer, nonce) lock against a concurrent copy in another process lives.
pub const REPLAY_MARK_LIFETIME: Duration = Duration::from_secs(300);

/// How long an application must remember a content id: longer than any mail waits.
pub const CONTENT_ID_LIFETIME: Duration = days(60);

/// Keys that a pin remembers to have moved away from, so that it never goes back to them. Past this the oldest is forgotten:
/// nobody rotates so often, and a pin stays below 5 KiB.
pub const MAX_EARLIER_KEYS: usize = 64;

/// How long sessions with an identity that handed over to another one, of theirs or of ours, are read after we learned of it:
/// what was under way comes with the same connection or is sent again in a fresh session. Whoever has the old keys can write
/// on these sessions as well, so the time is short.
pub const LEFT_BEHIND_READING: Duration = Duration::from_secs(600);

/// Hash iterations of a safety number.
pub const SAFETY_ITERATIONS: u32 = 5_200;

/// Accepted handshakes of the Signal profile whose sessions are gone and that are still known as used, for one peer; the
/// oldest is forgotten first. 16 bytes each.
pub const MAX_SIGNAL_MARKS: usize = 256;

/// Bytes of a whole message of the Signal profile: nothing that is sent today comes near, and an allocation of this size
/// hurts nobody.
pub const MAX_SIGNAL_MESSAGE: usize = 512 * 1024;

/// Bytes of a stored session record of the Signal profile, and of its JSON, that are read: 2,000 message keys and 41
/// sessions take less than half a MiB; records of other libraries grow for ever and are read up to here.
pub const MAX_SIGNAL_RECORD: usize = 8 * 1024 * 1024;

/// Chain steps of the Signal profile that an agreement counts for after the first one of a message, of the [`MAX_SKIP`] that a
/// message may take over all sessions. It costs about 145 of them (51 us beside 0.34 us, measured on a release build); at 100 the
/// dearest message that nobody sent takes 21 agreements, which at these costs are 1.1 ms. So a message on a ratchet key that no session knows is
/// tried on the current session and on 20 archived ones at most, and on fewer the higher its number is.
pub const SIGNAL_AGREEMENT_STEPS: u32 = 100;

/// Bytes of a message whose MAC counts as a chain step, likewise: one of 512 KiB is tried on two sessions that do not know it.
pub const SIGNAL_BYTES_PER_STEP: usize = 512;

/// Bytes of a scanned safety number of the Signal profile that are looked at: it has 74.
pub const MAX_SCANNED_CODE: usize = 256;

/// Messages that the peer may send on the session it started while we wait for an answer on ours, before we give way.
/// A peer that answers on ours does so before it has sent so many; one that keeps to its own never would.
pub const SIMULTANEOUS_PATIENCE: u32 = 5;

/// Chains of one sender in one group that are kept, the newest first.
pub const MAX_SENDER_KEY_STATES: usize = 5;

/// Keys kept of a chain's numbers that were passed over one by one, every other number; the oldest goes first. Some
/// clients never use these numbers, and 2,000 keys of nothing make every message of theirs three times as dear. Whoever
/// holds every other message of somebody back could as well drop them.
pub const MAX_ALTERNATE_KEYS: usize = 100;

const fn days(count: u64) -> Duration {
    Duration::from_secs(count * 24 * 3_600)
}
