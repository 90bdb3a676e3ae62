//! Every bound of the relay that is not the wire's ([`stvor_wire::limits`]).

use core::time::Duration;

/// From the TCP connection to READY.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes that a peer may send on a WebSocket before it is logged in: HELLO and AUTH at their largest, with what frames
/// them. One read more than that may pass.
pub const BYTES_BEFORE_LOGIN: usize = 2 * stvor_wire::limits::MAX_FRAME_BEFORE_AUTH + 1024;

/// Between two notices to a device that its keys were used in another store, which whoever has them can provoke.
pub const CLONE_TOLD: Duration = Duration::from_secs(60);

/// Connections of one device at once: one that receives, and others that send.
pub const CONNECTIONS_PER_DEVICE: usize = 16;

/// Acknowledgements of a device a second for messages that were not delivered on the connection (ten times that at once):
/// each is a look-up for the one writer. What is past it is not looked at, and those messages are offered again.
pub const STRAY_ACKS_PER_SECOND: u32 = 1_000;

/// Uploads of keys of a device a minute, and at once. Each may rewrite all of its prekeys.
pub const UPLOADS_PER_MINUTE: u32 = 60;

/// How long an answer of `/readyz` stands: a probe costs a commit.
pub const READINESS_LIFE: Duration = Duration::from_secs(1);

/// Bytes that may wait for one socket; past it the connection ends with SLOW_CONSUMER.
pub const OUTBOUND_BYTES: usize = 256 * 1024;

/// Frames that may wait for one socket, so that tiny ones are bounded too.
pub const OUTBOUND_FRAMES: usize = 4096;

/// Sends of one connection that wait for their answer; past it the relay stops reading the socket.
pub const UNANSWERED_SENDS: usize = 256;

/// Buffers of a WebSocket, in each direction: 128 KiB each would cost sixteen times the memory and win nothing.
pub const SOCKET_BUFFER: usize = 4 * 1024;

/// Rows that the delivery pump reads at once.
pub const PUMP_ROWS: usize = 64;

/// Blob bytes that the delivery pump reads at once.
pub const PUMP_BYTES: usize = 64 * 1024;

/// FETCH_BUNDLE waits of one connection.
pub const WAITS_PER_CONNECTION: usize = 64;

/// FETCH_BUNDLE waits of the whole relay.
pub const WAITS_IN_ALL: usize = 100_000;

/// Answers of requests (uploads, fetches, status, waits included) that one connection may wait for.
pub const REQUESTS_PER_CONNECTION: usize = 128;

/// Recipients and lanes that a connection remembers to save look-ups.
pub const ROUTES_PER_CONNECTION: usize = 256;

/// Mean time between pings; each is drawn from 25 to 30 s and then jittered by ten percent.
pub const HEARTBEAT: Duration = Duration::from_millis(27_500);

/// Missed heartbeats after which a connection is dead.
pub const MISSED_HEARTBEATS: u32 = 2;

/// Challenges over HTTP that wait for their answer; past it the address with the most gives up its oldest.
pub const CHALLENGES: usize = 10_000;

/// Challenges over HTTP of one address (or, from this machine, of one user); past it its oldest goes.
pub const CHALLENGES_PER_ADDRESS: usize = 64;

/// How long a resume cursor is good.
pub const CURSOR_LIFE: Duration = Duration::from_secs(15 * 60);

/// How long a mailbox keeps a message.
pub const RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a message id is recognised.
pub const DEDUP: Duration = Duration::from_secs(48 * 3600);

/// Messages in one mailbox. A full mailbox opens again at half of it.
pub const MAILBOX_MESSAGES: u64 = 10_000;

/// Blob bytes in one mailbox. A full mailbox opens again at half of it.
pub const MAILBOX_BYTES: u64 = 64 * 1024 * 1024;

/// Messages of one sender in one mailbox: half of it, so that nobody fills it alone.
pub const SENDER_MESSAGES: u64 = MAILBOX_MESSAGES / 2;

/// Blob bytes of one sender in one mailbox.
pub const SENDER_BYTES: u64 = MAILBOX_BYTES / 2;

/// One-time prekeys of a kind that the relay keeps for a device.
pub const ONE_TIME_KEYS: u32 = 200;

/// Fewer one-time prekeys than this, and the device is asked for new ones.
pub const KEYS_LOW: u32 = 20;

/// One-time prekeys of one user that one device may take a minute: starting a session takes one, and a repair another.
pub const ONE_TIME_PER_PAIR: u32 = 5;

/// Lane epochs kept for a sender's device and a mailbox.
pub const LANE_EPOCHS: usize = 2;

/// Operations in one group commit.
pub const BATCH_OPERATIONS: usize = 256;

/// From how many operations on the writer waits for more: below, a lone message costs one fsync and no wait.
pub const BATCH_WAIT_FROM: usize = 8;

/// How long the writer waits at most for a fuller batch.
pub const BATCH_WAIT: Duration = Duration::from_millis(2);

/// Operations that may wait for the writer; past it senders are told STORE_UNAVAILABLE.
pub const WRITER_QUEUE: usize = 32_768;

/// Blob bytes that may wait for the writer, for the same answer: the memory that senders can make the relay take.
pub const WRITER_QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// Rows that one sweep deletes.
pub const SWEEP_ROWS: usize = 1_000;

/// Time between sweeps of expired rows.
pub const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// How often the relay looks whether another process (the command line) changed tokens or users.
pub const ADMIN_POLL: Duration = Duration::from_millis(400);

/// Keys that a rate limiter of one kind remembers; past it the idle ones are dropped.
pub const LIMITER_KEYS: usize = 100_000;

/// Tokens looked up and kept in memory.
pub const TOKEN_CACHE: usize = 10_000;

/// While more than this waits for a socket, nothing new is offered on it: a page of the pump still fits the cap.
pub const LIVE_OUTBOUND_BYTES: usize = OUTBOUND_BYTES / 2;

/// While more than this waits for a socket, ephemeral messages are dropped: nobody holds mail up with them.
pub const EPHEMERAL_OUTBOUND_BYTES: usize = LIVE_OUTBOUND_BYTES / 2;

/// Users that a relay without a database takes in.
pub const MEMORY_USERS: usize = 100_000;
