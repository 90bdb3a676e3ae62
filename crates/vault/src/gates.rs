//! What stands between a request and a memory: pure decisions over what is known at the moment.

pub mod approval;
pub mod boundary;

use core::time::Duration;

use crate::clock::Moment;
use crate::engine::agents::OWNER;
use crate::error::Refusal;
use crate::level::Level;
use crate::memory::Header;
use boundary::Verdict;

/// Everything that the gates of a recall look at.
#[derive(Debug)]
pub struct Situation<'a> {
    /// The memory's header.
    pub header: &'a Header,
    /// The present.
    pub now: &'a Moment,
    /// The newest time that was believed: that of the newest event, unless the clock jumped ahead.
    pub last_event: Option<&'a Moment>,
    /// How much time has certainly passed since this memory was last recalled.
    pub since_recall: Option<Duration>,
    /// Whether the key of this level is held.
    pub key_held: bool,
    /// Whether the owner asks.
    pub owner: bool,
    /// What the recall is for.
    pub justification: &'a str,
    /// Whether an approval for exactly this recall is there, unused and not expired.
    pub approved: bool,
    /// What the boundary daemon said to this request, if it was asked.
    pub boundary: Option<&'a Verdict>,
    /// Whether a token answered now.
    pub token_present: bool,
}

/// Decides on a recall. The order is fixed: what costs a person something (an approval) is looked at when nothing that could be
/// known before stands in the way, and an approval is used up only by a recall that all gates allowed. The pause comes last: it
/// tells when somebody else recalled the memory, which is nothing to who has no approval.
///
/// # Errors
/// The first gate that says no.
pub fn decide(situation: &Situation<'_>) -> Result<(), Refusal> {
    let Situation { header, now, .. } = situation;
    let level = header.level;
    // What ran out stays so when the clock is set back.
    let latest = situation.last_event.map_or(now.wall, |last| now.wall.max(last.wall));
    if let Some(why) = header.gone(latest) {
        return Err(Refusal::Gone(why));
    }
    if level.needs_approval() {
        clock_is_on(situation)?;
    }
    if !situation.key_held {
        return Err(match level {
            Level::Vaulted => Refusal::NoVaultedKey,
            Level::Black => Refusal::NoToken,
            _ => Refusal::Locked { level },
        });
    }
    if !level.needs_approval() {
        return cooldown(situation);
    }
    if situation.justification.trim().is_empty() {
        return Err(Refusal::NoJustification { level });
    }
    match situation.boundary {
        None => return Err(Refusal::Boundary(NO_BOUNDARY.into())),
        Some(verdict) => verdict.admits(level).map_err(Refusal::Boundary)?,
    }
    if level == Level::Black && !situation.token_present {
        return Err(Refusal::NoToken);
    }
    if !situation.approved {
        return Err(Refusal::NoApproval);
    }
    cooldown(situation)
}

/// Why levels 3 to 5 stay closed where there is nobody to ask.
const NO_BOUNDARY: &str =
    "none is configured; the owner names one with `stvor vault serve --boundary SOCKET --boundary-key FILE`";

fn cooldown(situation: &Situation<'_>) -> Result<(), Refusal> {
    let header = situation.header;
    // Below level 3 an agent keeps other agents waiting, and nobody else.
    if situation.owner && !header.level.needs_approval() && header.creator != OWNER {
        return Ok(());
    }
    let pause = Duration::from_millis(header.cooldown);
    if pause.is_zero() {
        return Ok(());
    }
    let left = situation.since_recall.map_or(Duration::ZERO, |since| pause.saturating_sub(since));
    if !left.is_zero() {
        return Err(Refusal::Cooldown { left });
    }
    // From a recall at a time that is over nobody could tell when the next may be.
    clock_is_on(situation)
}

fn clock_is_on(situation: &Situation<'_>) -> Result<(), Refusal> {
    match situation.last_event {
        Some(last) if situation.now.wall < last.wall => Err(Refusal::ClockBackwards),
        _ => Ok(()),
    }
}
