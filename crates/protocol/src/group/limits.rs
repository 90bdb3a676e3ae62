//! The bounds of groups, each with its reason. No member can drive them further, but for that of members.

/// Members of one group. A rotation costs one message per member device, so more would make removals slow. They are counted by
/// what a change builds on, for all are to judge a change alike: those that are made beside one another pass it together.
pub const MAX_MEMBERS: usize = 1_000;

/// Members that one change names: with the longest names it stays below one message.
pub const MAX_CHANGE_MEMBERS: usize = 128;

/// Bytes of one change: one message holds it with room to spare.
pub const MAX_CHANGE: usize = 48 * 1024;

/// Changes that one change builds on. More concurrent ones than this are joined by several changes.
pub const MAX_PARENTS: usize = 16;

/// Changes of one group: what one costs rises with how many are concurrent to it. Past it a new group has to be made.
pub const MAX_CHANGES: usize = 4_096;

/// Bytes of the changes of one group: they are in memory, and are sent to whoever joins. 4,096 usual ones are 3 MiB.
pub const MAX_CHANGES_BYTES: usize = 16 * 1024 * 1024;

/// Removals of one author past [`MAX_CHANGES`]: who fills a group with changes can be put out, and can not fill this.
pub const MAX_LATE_REMOVALS: usize = 64;

/// States of a group that are remembered, so that who is behind is told from who is ahead.
pub const MAX_PAST_STATES: usize = 64;

/// Bytes of a group's name.
pub const MAX_NAME: usize = 256;

/// Message keys that one group message may be ahead of the last one of its chain, as between two devices.
pub const MAX_SKIP: u32 = crate::limits::MAX_SKIP;

/// Chains remembered of one member device in one group: the current one and those whose messages may still be under way.
pub const MAX_CHAINS: usize = 3;

/// Messages on one chain; then it is replaced, so that a key that was stolen does not read for ever.
pub const MAX_CHAIN_MESSAGES: u32 = 10_000;

/// Messages that one request names.
pub const MAX_REQUESTED: usize = 64;

/// Application bytes in one group message: it must fit into one message between two devices when it is sent again.
pub const MAX_BODY: usize = crate::limits::MAX_PLAINTEXT - 64;

/// Own chains whose recipients are remembered, so that what they could read can be sent to them again.
pub const MAX_OWN_CHAINS: usize = 3;

/// Members who tell somebody of a change that moves them and does not name them: one who is there is enough.
pub const MAX_TELLERS: usize = 3;
