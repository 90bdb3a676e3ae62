//! Every bound of this crate and its reason.

use std::time::Duration;

/// Contacts who are told of a rotation of our own identity at once, in a session each, those who were written with last: half
/// the conversations that are active at once. The others learn of it with our next message, or in answer to theirs.
pub const ROTATION_TOLD: usize = MAX_LANES / 2;

/// The first wait before a contact who could not be told of a rotation is tried again; it doubles with each try, up to
/// [`TELL_AGAIN_LONGEST`].
pub const TELL_AGAIN: Duration = Duration::from_secs(60);
/// See [`TELL_AGAIN`].
pub const TELL_AGAIN_LONGEST: Duration = Duration::from_secs(6 * 3_600);

/// How often a contact is tried to be told of a rotation: with the waits above, for about four days. Then they learn of it with
/// our next message, or in answer to theirs.
pub const TELL_TRIES: u8 = 24;

/// How long the relay is not asked again after it said that a peer's key did not hand over to another: a peer that changes keys
/// all the time has it asked no more often. Mail that comes meanwhile waits.
pub const ROTATIONS_AGAIN: Duration = Duration::from_secs(2);

/// How often the relay is asked for a peer's rotations without an answer, before mail of another key is judged without one.
pub const ROTATIONS_TRIES: u32 = 3;

/// How long an operation waits when the application does not say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest wait that a caller can ask for: 30 years, so that "for ever" (`Duration::MAX`) can be added to the clock.
pub const LONGEST_WAIT: Duration = Duration::from_secs(30 * 365 * 86_400);

/// Commands that wait for one lane. More than the relay's credit window (128), so that the reader of the socket never
/// has to wait for a lane.
pub const LANE_QUEUE: usize = 512;

/// Messages that one lane takes into one commit: enough to share an fsync, few enough to keep latency even.
pub const LANE_BATCH: usize = 64;

/// Operations of a turn past which what comes next goes into another commit: a quarter of what the store takes, for one
/// message can add half of it (the keys of 2,000 that were skipped, and as many that those push out).
pub const TURN_OPS: usize = stvor_store::limits::MAX_OPS / 4;

/// Bytes of a turn past which what comes next goes into another commit: a quarter of what the store takes, for one receipt
/// can add half of it (128 messages of 64 KiB).
pub const TURN_BYTES: usize = stvor_store::limits::MAX_CHANGE_BYTES / 4;

/// Messages of one lane that are sent and not yet accepted.
pub const LANE_WINDOW: usize = 64;

/// Outgoing messages of one conversation that are not yet accepted by the relay, if the application sets no other number. Past it
/// `send` is QUOTA_EXCEEDED.
pub const MAX_PENDING: usize = 10_000;

/// Orders of the application (sends and all else) that no conversation has taken yet, and messages that one holds for want of an
/// answer about their recipient, over all of a client, if the application sets no other number. Past it they are refused with
/// BACKPRESSURE or wait.
pub const MAX_QUEUED: usize = 65_536;

/// Bytes of contents in such orders of one client, if the application sets no other number.
pub const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;

/// Orders of one conversation that have room beyond these numbers, so that messages that wait for an answer do not shut out those
/// that judge the peer or end the conversation: a few questions at once. Past it they have the room of any other order.
pub const RESERVED_OF_ONE: usize = 16;

/// Such orders of one client: as many as 64 conversations have.
pub const RESERVED: usize = 64 * RESERVED_OF_ONE;

/// The largest that an application can set these numbers to.
pub const MOST_QUEUED: usize = 1_000_000;

/// The most bytes of contents that an application can let wait: as many permits as there can be, and as can be taken at once.
pub const MOST_QUEUED_BYTES: usize = {
    let (most, once) = (tokio::sync::Semaphore::MAX_PERMITS, u32::MAX as usize);
    if most < once { most } else { once }
};

/// The first wait before a conversation, or another task of a client, that ended by a fault in the program is begun afresh; it
/// doubles with each fault in a row, up to [`BACKOFF_LONGEST`].
pub const REVIVE_FIRST: Duration = Duration::from_secs(1);

/// A task that ran for this long without a fault begins its waits at the first again.
pub const REVIVED_FOR: Duration = Duration::from_secs(600);

/// In how many faults a message may have been judged before it is judged by itself, so that others are not suspected with it.
pub const FAULTS_TOGETHER: u32 = 2;

/// After so many faults a message is given up like one that can not be read: it is acknowledged and asked for again.
pub const FAULTS_AT_MOST: u32 = 3;

/// Messages of one peer that are remembered as judged in faults. Past it the oldest are forgotten.
pub const MAX_SUSPECTS: usize = 4 * LANE_BATCH;

/// How often the connection, which is everybody's, is started afresh within [`FAULT_KICKS_IN`] for conversations that met faults.
pub const FAULT_KICKS: usize = 4;
/// See [`FAULT_KICKS`].
pub const FAULT_KICKS_IN: Duration = Duration::from_secs(60);

/// Looks at once for the prekeys of strangers whose mail could not be read, over all of a client.
pub const STRANGER_FETCHES: usize = 16;

/// Looks for the prekeys of such a stranger. Then their mail is given up.
pub const STRANGER_TRIES: u32 = 3;

/// Lanes that are awake at the same time. Strangers can wake lanes; past this, idle ones are put to sleep first and
/// mail for others stays at the relay.
pub const MAX_LANES: usize = 4_096;

/// Idle lanes that are put to sleep at once when there are too many: looking for them has a price.
pub const EVICTED_LANES: usize = 64;

/// A lane with nothing to do goes to sleep after this.
pub const LANE_IDLE: Duration = Duration::from_secs(120);

/// Messages that wait for the application. Past it incoming mail stays at the relay.
pub const MAX_INBOX: usize = 100_000;

/// A sender may have one such part of the inbox, so that one who floods leaves room for others. Past it the mail of that sender
/// stays at the relay.
pub const INBOX_SHARES: usize = 4;

/// Inbox messages held in memory; the rest is read from the store when its turn comes.
pub const INBOX_PAGE: usize = 256;

/// Numbers of messages whose commits reported a failure, kept until the store can be asked for them: those that were stored all the same
/// count then. Past it the oldest are forgotten, and are not counted should they be stored. 4,096 are 16 full pages.
pub const MAX_GIVEN_BACK: usize = 16 * INBOX_PAGE;

/// The highest send counter of a device. What a relay tells beyond it is no counter that any device sent.
pub const MAX_COUNTER: u64 = i64::MAX as u64;

/// Members of a group that a restored store asks for what changed since its backup: one who is there is enough.
pub const MAX_GROUP_ASKED: usize = 16;

/// Peers whose safety numbers are remembered as shown; past it all are forgotten, and are to be shown again.
pub const MAX_SHOWN_NUMBERS: usize = 1_024;

/// How far beyond our own counter one may be that comes without a proof: nine years of microseconds.
pub const COUNTER_LEAP: u64 = 1 << 48;

/// Conversations that give up their sessions at once, after the store was found to be an old copy: enough to share an fsync.
pub const RECOVERY_BATCH: usize = 64;

/// Events that one slow listener can be behind before it is told that it missed some.
pub const EVENT_BUFFER: usize = 1_024;

/// What was said of identities before anybody listened, kept for the first who does. Past it the oldest go.
pub const MAX_EARLY_IDENTITIES: usize = 256;

/// Frames that wait for the socket's writer.
pub const LINK_QUEUE: usize = 256;

/// Sends of one connection that the relay has not answered; it stops reading past 256.
pub const MAX_UNANSWERED: usize = 224;

/// A message without an answer on a connection that is up is sent again after this; the relay knows it by its id.
pub const RESEND_AFTER: Duration = Duration::from_secs(30);

/// The first wait after the relay refused a message for a while; it doubles with each refusal in a row. What is refused during a wait
/// was on its way before it and counts with the first.
pub const REFUSED_FIRST: Duration = Duration::from_millis(500);

/// Refusals of messages that were on their way before a gap was answered come in within this time.
pub const GAP_ECHO: Duration = Duration::from_millis(500);

/// Refusals in a row, nothing being accepted in between, that are answered by sending again at once (a gap, an id that is taken):
/// more than instances cause that send to one peer at the same time. After them a conversation rests as after any other refusal.
pub const ANSWERED_AT_ONCE: u32 = 32;

/// Requests to the relay (bundle fetches and the like) that wait for their answer.
pub const MAX_REQUESTS: usize = 256;

/// Shortest pause before a request is repeated that the relay refused because it is asked too often, whatever it says.
pub const SLOWED_LEAST: Duration = Duration::from_millis(10);

/// Contents that one receipt names.
pub const RECEIPT_BATCH: usize = 64;

/// How long a receipt waits for company.
pub const RECEIPT_DELAY: Duration = Duration::from_millis(30);

/// How long a sent plaintext is kept for repairs, and how long an unsent message is tried.
pub const KEEP_SENT: Duration = Duration::from_secs(30 * 86_400);

/// How long the id of a received content is remembered.
pub const KEEP_CONTENT_IDS: Duration = Duration::from_secs(60 * 86_400);

/// First and longest waits between attempts to reach the relay.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// See [`BACKOFF_FIRST`].
pub const BACKOFF_LONGEST: Duration = Duration::from_secs(60);

/// Between beats of an idle connection, before jitter of a tenth.
pub const HEARTBEAT: Duration = Duration::from_secs(27);

/// Between looks for a recipient that the relay does not know yet.
pub const RECIPIENT_POLL: Duration = Duration::from_millis(250);

/// Between looks for the recipient of a message that is already queued.
pub const RECIPIENT_RETRY: Duration = Duration::from_secs(15);

/// The first pause after a bundle that could not be used (too old, of another suite, refused by the policy) before another one is
/// looked for; it doubles with each in a row, up to [`BUNDLE_AGAIN_LONGEST`].
pub const BUNDLE_AGAIN: Duration = Duration::from_secs(1);
/// See [`BUNDLE_AGAIN`].
pub const BUNDLE_AGAIN_LONGEST: Duration = Duration::from_secs(300);

/// Users of other suites of whom it is remembered that they were told of; past it all are forgotten, and told of again.
pub const MAX_TOLD_SUITES: usize = 1_024;

/// Messages of one page of history at most.
pub const HISTORY_PAGE: usize = 500;

/// Messages that one page of a search reads and decrypts at most.
pub const SEARCHED: usize = 20_000;

/// Failed messages that are remembered to be asked for again, of all senders. Past it the oldest go.
pub const MAX_FAILURES: usize = 4_096;

/// Failed messages of one sender that are remembered. Past it the oldest go.
pub const MAX_FAILURES_OF_ONE: usize = 128;

/// Between two refills of one-time prekeys, whatever the relay says that it has.
pub const PREKEY_REFILL: Duration = Duration::from_secs(60);

/// Longest question to a trust callback.
pub const TRUST_ANSWER: Duration = Duration::from_secs(60);

/// Mail that waits in the store for answers to questions of trust, of all peers. More of it is refused, and asked for
/// again after a yes.
pub const MAX_PARKED: usize = 2_048;

/// Bytes of that mail: what a start reads to learn of it.
pub const MAX_PARKED_BYTES: usize = 32 * 1024 * 1024;

/// Mail of one peer that waits for the answer: a quarter, so that one who floods leaves room for others.
pub const MAX_PARKED_OF_ONE: usize = MAX_PARKED / 4;

/// Bytes of that mail of one peer.
pub const MAX_PARKED_BYTES_OF_ONE: usize = MAX_PARKED_BYTES / 4;

/// Acknowledgements at a minimal relay of nothing but what was not opened (copies, groups' mail, a later version) until something
/// is: a window of a conversation that comes again one by one, and far fewer than the peer may miss of a chain.
pub const MAX_UNOPENED_CONFIRMED: u32 = 64;

/// Past these the pause before the next one; it doubles each time, up to [`UNOPENED_LONGEST`].
pub const UNOPENED_AGAIN: Duration = Duration::from_secs(60);
/// See [`UNOPENED_AGAIN`]. So slowly it takes months until the peer misses too many.
pub const UNOPENED_LONGEST: Duration = Duration::from_secs(3_600);

/// Between two times that everything is sent again to somebody who announces themselves at a minimal relay.
pub const RESEND_TO_COMER: Duration = Duration::from_secs(1);

/// Names that are remembered of what a minimal relay announces: it tells every newcomer all of them.
pub const MAX_ANNOUNCED: usize = 4_096;

/// Nonces that storage adapters marked for messages that are not stored yet. Past it the oldest are forgotten; their messages are
/// asked for again should they come again.
pub const MAX_UNFINISHED_NONCES: usize = 4_096;

/// Between two questions to the server of a store how it is set, however many clients of an app log in.
pub const SETTINGS_PACE: Duration = Duration::from_secs(2);

/// Between sweeps of expired rows.
pub const SWEEP: Duration = Duration::from_secs(600);

/// Requests to the task that keeps groups that wait for it.
pub const GROUP_ORDERS: usize = 256;

/// Mail of groups that waits to be judged. More of it stays at the relay.
pub const MAX_GROUP_MAIL: usize = 4_096;

/// Mail of groups of one sender past which nothing more of theirs is taken until half of it is judged: so one who floods leaves
/// room for others.
pub const MAX_GROUP_MAIL_OF_ONE: usize = MAX_GROUP_MAIL / 8;

/// Members who can take nothing just now that are passed over in one look at what is on its way to members.
pub const MAX_PASSED_OVER: usize = 256;

/// Mail of groups that waits for something that has not come (a sender key, a change). Past it the oldest go.
pub const MAX_GROUP_WAITING: usize = 512;

/// Mail of one group that waits so for somebody who answers for changes by a key that handed over to another: a megabyte of
/// changes.
pub const MAX_UNVOUCHED_MAIL: usize = 16;

/// Changes in all mail that waits of which it is noted what they build on: four full groups of them, and about 10 MB.
pub const MAX_UNJUDGED_CHANGES: usize = 16_384;

/// Mail of one sender that waits so: a quarter, so that one who floods leaves room for others.
pub const MAX_GROUP_WAITING_OF_ONE: usize = MAX_GROUP_WAITING / 4;

/// Mail of groups that is judged in one commit.
pub const GROUP_BATCH: usize = 64;

/// Between looks at whether conversations have taken what came at a log-in.
pub const CATCH_UP_POLL: Duration = Duration::from_millis(5);

/// Groups of one client. More are not joined.
pub const MAX_GROUPS: usize = 1_024;

/// What is on its way to members and in no lane's commit yet. Past it a message to a group is QUOTA_EXCEEDED.
pub const MAX_POSTS: usize = 50_000;

/// How long something that is missing is waited for before its sender is asked, and between looks for such.
pub const GROUP_PATIENCE: Duration = Duration::from_secs(3);

/// Between two requests for the same thing, and between two answers to one member.
pub const GROUP_ASK_AGAIN: Duration = Duration::from_secs(60);

/// Requests for the same thing within [`GROUP_ASK_FORGET`].
pub const MAX_GROUP_ASKS: u32 = 3;

/// After so long without a request for something it may be asked for anew.
pub const GROUP_ASK_FORGET: Duration = Duration::from_secs(3_600);

/// Users whom something was asked of, or answered to.
pub const MAX_ASKED_USERS: usize = 4_096;

/// Things that one user was asked for, or answered: as many as mail of theirs can wait.
pub const MAX_ASKED_OF_ONE: usize = MAX_GROUP_WAITING_OF_ONE;

/// How long a message waits for its key. Then it is given up, which the application is told.
pub const KEEP_GROUP_WAITING: Duration = Duration::from_secs(7 * 86_400);

/// Bytes of changes in memory of groups that do not have us in them so far.
pub const MAX_JOINING_BYTES: usize = 4 * MAX_JOINING_BYTES_OF_ONE;

/// Those of them that one user sent: a group's changes at most.
pub const MAX_JOINING_BYTES_OF_ONE: usize = stvor_protocol::group::limits::MAX_CHANGES_BYTES;

/// Groups that do not have us in them so far, of one user.
pub const MAX_JOINING_OF_ONE: usize = 64;

/// Receipts are sent in groups of up to so many members: each costs a message for every message.
pub const MAX_RECEIPTED_GROUP: usize = 128;

/// How long an instance of a shared store may be silent before others take over what it did.
pub const INSTANCE_LEASE: Duration = Duration::from_secs(10);

/// The shortest such time: three renewals and the hiccups of a store have to fit into it.
pub const MIN_INSTANCE_LEASE: Duration = Duration::from_millis(500);

/// Instances that one store is looked through for.
pub const MAX_INSTANCES: usize = 1_024;

/// How long the end of an instance is remembered: longer than any process sleeps and goes on.
pub const KEEP_STONES: Duration = Duration::from_secs(30 * 86_400);

/// How often a turn whose conversation another instance changed meanwhile is taken again.
pub const TURN_TRIES: u32 = 40;

/// The longest random pause between two such attempts.
pub const TURN_PAUSE: Duration = Duration::from_millis(64);

/// A conversation that another instance changed within this time is looked at before each turn: that is cheaper than
/// a turn in vain.
pub const CONTENDED: Duration = Duration::from_secs(5);

/// Messages that an instance takes from a shared inbox at once.
pub const CLAIM_BATCH: usize = 32;

/// The longest that an instance does not look whether the receiving one put something into the inbox.
pub const CLAIM_POLL: Duration = Duration::from_millis(250);

/// How often an instance looks what receipts the receiving one got for messages that somebody watches.
pub const RECEIPT_POLL: Duration = Duration::from_millis(500);

/// Watched messages that are looked up at once.
pub const RECEIPT_POLL_BATCH: usize = 256;
