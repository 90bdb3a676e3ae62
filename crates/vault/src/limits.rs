//! Bounds, so that nobody who writes to the vault can make it grow or work without end.

use core::time::Duration;

/// Bytes of a memory's content.
pub const MAX_CONTENT: usize = 1 << 20;
/// Bytes of a namespace, an agent's name, an intent, a metadata key or a provenance note.
pub const MAX_NAME: usize = 256;
/// Bytes of a metadata value, a justification or a reason.
pub const MAX_TEXT: usize = 4_096;
/// Metadata entries of a memory.
pub const MAX_METADATA: usize = 64;
/// Intents of a memory.
pub const MAX_INTENTS: usize = 32;
/// Memories in one answer to list or search.
pub const MAX_PAGE: usize = 200;
/// Bytes of what is known of the memories in one such answer before it ends.
pub const MAX_PAGE_BYTES: usize = 4 << 20;
/// Earlier versions of a memory that one request to forget it looks at.
pub const MAX_EARLIER: usize = 256;
/// Memories that one request stores at most.
pub const MAX_STORES: usize = 256;
/// Bytes of a file of the daemon's that one answer holds.
pub const MAX_FETCH: u64 = 1 << 20;
/// Rows of the log that one reading of it looks at.
pub const MAX_SCAN: u64 = 20_000;
/// How long the result of a verification serves agents that ask for one, at least.
pub const VERIFY_AGAIN: Duration = Duration::from_secs(60);
/// And at least so many times as long as it took: a long log must not be read again and again.
pub const VERIFY_SHARE: u32 = 50;
/// Matches of a search, per level, that are ranked; of more, the newest are.
pub const MAX_RANKED: usize = 1_000;
/// Bytes of memory that the full-text index may take. A namespace that does not fit into it alone is not searched.
pub const MAX_INDEX: usize = 512 << 20;
/// Steps of SQLite (about four for each 4 KiB of the index) that an agent's search may take, per level, to learn where words are that
/// begin as one with a star says.
pub const MAX_PREFIX_STEPS: u64 = 8 << 10;
/// Steps that each part of an agent's search may take, per level, beside what each match takes: to find where words are that stand in
/// very many places, and to go through them and rank them.
pub const MAX_SEARCH_STEPS: u64 = 16 << 10;
/// Words of a search.
pub const MAX_WORDS: usize = 16;
/// How long a memory of level 0 lives at most.
pub const EPHEMERAL_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// How long an approval may be valid.
pub const MAX_APPROVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// How long an approval is valid when the owner does not say.
pub const APPROVAL: Duration = Duration::from_secs(10 * 60);
/// How old a request for approval may be when it is granted.
pub const MAX_REQUEST_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// Requests for approval that wait at one time, over all agents.
pub const MAX_PENDING: usize = 100;
/// And of one agent.
pub const MAX_PENDING_OF_ONE: usize = 10;
/// The pause between two recalls of a memory of level 3 and above when its writer does not say.
pub const COOLDOWN: Duration = Duration::from_secs(60);
/// The longest pause that a writer may ask for.
pub const MAX_COOLDOWN: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// The longest pause that an agent may ask for.
pub const MAX_COOLDOWN_OF_AGENT: Duration = Duration::from_secs(60 * 60);
/// Refused requests of one agent that are logged in a minute; more are answered at once, counted, and logged as a number.
pub const REFUSALS_PER_MINUTE: u32 = 60;
/// That minute, in milliseconds.
pub const REFUSALS_MINUTE: u64 = 60_000;
/// Connections of peers that are known, on one socket at a time.
pub const MAX_CONNECTIONS: usize = 64;
/// Of those, connections of one agent.
pub const MAX_CONNECTIONS_OF_ONE: usize = 16;
/// Connections of peers that did not say yet who they are, on one socket.
pub const MAX_UNKNOWN_CONNECTIONS: usize = 64;
/// Of those, connections of one user's processes.
pub const MAX_UNKNOWN_CONNECTIONS_OF_USER: usize = 32;
/// And of one process.
pub const MAX_UNKNOWN_CONNECTIONS_OF_PROCESS: usize = 16;
/// Bytes of the line in which an agent says who it is.
pub const MAX_ENTRY: usize = 4_096;
/// How long that may take, from the connection to the end of the line.
pub const ENTRY_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection on the owner's socket may go without a proof.
pub const UNPROVED_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// How long one that gave a proof may be idle.
pub const OWNER_DEADLINE: Duration = Duration::from_secs(60 * 60);
/// Operations that share one commit.
pub const MAX_GROUP: usize = 512;
/// Bytes of the answer of a boundary daemon.
pub const MAX_BOUNDARY_ANSWER: usize = 4_096;
/// How long a boundary daemon may take, from the first byte to the last.
pub const BOUNDARY_DEADLINE: Duration = Duration::from_secs(2);
/// How old a boundary daemon's answer may be.
pub const BOUNDARY_AGE: Duration = Duration::from_secs(30);
/// Places with damage that are told of one by one, and last events of a log that are looked at until one is sound.
pub const MAX_DAMAGED: u64 = 1_000;
/// Bytes of the file of checkpoints outside the database before it is begun anew.
pub const MAX_CHECKPOINTS_FILE: u64 = 4 << 20;
/// Bytes of such a file that are read at most: one that is longer was written by somebody else.
pub const MAX_CHECKPOINTS_READ: u64 = 4 * MAX_CHECKPOINTS_FILE;
/// Bytes of a line of an archive: an event, or what was said to it.
pub const MAX_ARCHIVE_LINE: u64 = 64 << 10;
/// Bytes that the memories of an agent may take when its owner does not say.
pub const AGENT_BYTES: u64 = 1 << 30;
/// Bytes that the requests of an agent may add to the log in a day when its owner does not say.
pub const AGENT_LOG_BYTES: u64 = 256 << 20;
/// Bytes that an agent may have read in an hour beside what it is shown: by searches that bring a namespace into the index, of
/// memories that lists and searches pass over, and of the versions that a memory corrects.
pub const AGENT_READS: u64 = 2 << 30;
/// Bytes of memories that one list, or one look at what serves an intent or at the versions of a memory, passes over before it ends.
pub const MAX_PASSED: u64 = 32 << 20;
/// Agents that may be enrolled.
pub const MAX_AGENTS: usize = 1_000;
/// Bytes of a backup's manifest.
pub const MAX_MANIFEST: u64 = 64 << 10;
/// Files of one chain of backups.
pub const MAX_CHAIN: usize = 1_000;
/// Backups that a vault remembers; the oldest is dropped first.
pub const MAX_BACKUPS: usize = 1_000;
/// How long an owner may at least be silent before a dead-man switch lets go.
pub const MIN_SILENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// And at most.
pub const MAX_SILENCE: Duration = Duration::from_secs(3_660 * 24 * 60 * 60);
/// Heirs of a dead-man switch.
pub const MAX_HEIRS: usize = 100;
/// Directories of watchers that are not told yet, that of the newest setting included.
pub const MAX_OWED: usize = 16;
/// Bytes of a check-in.
pub const MAX_CHECK_IN: u64 = 32 << 10;
/// How long after a physical token answered a memory of level 5 may be recalled, once.
pub const TOKEN_PRESENCE: Duration = Duration::from_secs(60);
/// Physical tokens of a vault.
pub const MAX_TOKENS: usize = 16;
/// Wrong one-time codes in a row before they are not looked at for [`CODES_PAUSE`].
pub const MAX_WRONG_CODES: u32 = 5;
/// That pause.
pub const CODES_PAUSE: Duration = Duration::from_secs(15 * 60);
/// How long a witness waits for a request, from the first byte to the last.
pub const WITNESS_DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of a request to a witness, and of its answer.
pub const MAX_WITNESS_REQUEST: u64 = 128 << 10;
/// Profiles of a vault.
pub const MAX_PROFILES: usize = 64;
/// Days after which a profile's key may be due at most.
pub const MAX_ROTATION_DAYS: u32 = 3_660;
/// Memories of one step of a change of a profile's key.
pub const ROTATION_STEP: usize = 256;
