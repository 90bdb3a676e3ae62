//! Mail that waits for something that has not come, and who was asked for it. Both are driven by what others send: each
//! sender has a share of the room, and past it the oldest of theirs goes.

use std::collections::{BTreeMap, HashMap};

use stvor_base::{Address, GroupId, Timestamp, UserId};
use stvor_protocol::group::ChainId;
use tokio::time::Instant;

use crate::limits;

/// What mail waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lacks {
    /// The sender key of a message.
    Key(ChainId, u32),
    /// Changes that others of a group build on.
    Changes(GroupId),
    /// A group that we do not have.
    Group(GroupId),
    /// Somebody who answers for changes by a key that handed over to another.
    Voucher(GroupId),
}

/// What came, so that what lacked it can be judged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Came {
    Chain(Address, ChainId),
    /// We have the group, and know more of it than before.
    Group(GroupId),
    /// We know more of a group that we do not have.
    Part(GroupId),
    /// Somebody answers for changes of a group.
    Voucher(GroupId),
}

/// Mail that waits.
#[derive(Debug, Clone)]
pub(super) struct Parked {
    pub(super) since: Instant,
    /// When it came from the relay.
    pub(super) arrived_at: Timestamp,
    pub(super) from: Address,
    pub(super) lacks: Lacks,
    /// Something came: it is judged again.
    pub(super) again: bool,
    /// The application was told that it waits.
    pub(super) told: bool,
}

impl Parked {
    fn is_for(&self, came: &Came) -> bool {
        match (&self.lacks, came) {
            (Lacks::Key(chain, _), Came::Chain(from, came)) => chain == came && self.from == *from,
            (Lacks::Changes(id) | Lacks::Group(id) | Lacks::Voucher(id), Came::Group(came)) => id == came,
            (Lacks::Voucher(id), Came::Voucher(came)) => id == came,
            (Lacks::Changes(id), Came::Part(came)) => id == came,
            _ => false,
        }
    }
}

/// All of it, by its number.
#[derive(Debug, Default)]
pub(super) struct Waiting(BTreeMap<u64, Parked>);

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, seq: u64) -> Option<&Parked> {
        self.0.get(&seq)
    }

    pub(super) fn remove(&mut self, seq: u64) {
        self.0.remove(&seq);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Parked)> {
        self.0.iter().map(|(seq, parked)| (*seq, parked))
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Parked> {
        self.0.values_mut()
    }

    /// Whether mail is to be judged: it does not wait, or something came for it.
    pub(super) fn is_due(&self, seq: u64) -> bool {
        self.0.get(&seq).is_none_or(|parked| parked.again)
    }

    /// Whether something waits for a group, or for changes of it.
    pub(super) fn wants(&self, group: GroupId) -> bool {
        let of = |lacks: &Lacks| matches!(lacks, Lacks::Group(id) | Lacks::Changes(id) if *id == group);
        self.0.values().any(|parked| of(&parked.lacks))
    }

    /// Everything is judged again.
    pub(super) fn all_again(&mut self) {
        self.0.values_mut().for_each(|parked| parked.again = true);
    }

    /// Whether something waits for what came.
    pub(super) fn wakes(&self, what: &Came) -> bool {
        self.0.values().any(|parked| parked.is_for(what))
    }

    /// Something came.
    pub(super) fn came(&mut self, what: &Came) {
        for parked in self.0.values_mut() {
            parked.again |= parked.is_for(what);
        }
    }

    /// Mail waits (still). The number and the sender of what has to go for it: of changes of one group for which nobody answers
    /// the oldest past [`limits::MAX_UNVOUCHED_MAIL`], of one sender the oldest past a quarter of all, else the oldest of whoever
    /// has most.
    pub(super) fn put(&mut self, seq: u64, parked: Parked) -> Option<(u64, UserId)> {
        let (from, lacks) = (parked.from.user.clone(), parked.lacks.clone());
        self.0.insert(seq, parked);
        if matches!(lacks, Lacks::Voucher(_)) {
            let mut alike = self.0.iter().filter(|(_, one)| one.lacks == lacks);
            let oldest = alike.next().map(|(seq, one)| (*seq, one.from.user.clone()));
            if alike.count() >= limits::MAX_UNVOUCHED_MAIL {
                return oldest;
            }
        }
        let of = |user: &UserId| -> Vec<u64> {
            self.0.iter().filter(|(_, one)| one.from.user == *user).map(|(seq, _)| *seq).collect()
        };
        let crowded = if of(&from).len() > limits::MAX_GROUP_WAITING_OF_ONE {
            Some(from)
        } else if self.0.len() > limits::MAX_GROUP_WAITING {
            let mut counts: BTreeMap<&UserId, usize> = BTreeMap::new();
            self.0.values().for_each(|one| *counts.entry(&one.from.user).or_default() += 1);
            counts.into_iter().max_by_key(|(_, count)| *count).map(|(user, _)| user.clone())
        } else {
            None
        };
        let user = crowded?;
        let oldest = of(&user).into_iter().min()?;
        Some((oldest, user))
    }
}

/// What may be asked of, or answered to, a member.
#[derive(Debug, PartialEq, Eq, Hash, Clone)]
pub(super) struct Asked(pub(super) UserId, pub(super) Vec<u8>);

/// How often it was.
#[derive(Debug, Default)]
pub(super) struct Asks(HashMap<UserId, HashMap<Vec<u8>, (u32, Instant)>>);

impl Asks {
    /// Whether something may be asked of, or answered to, a member once more: three times, a minute apart, and after an hour
    /// of silence anew.
    pub(super) fn may(&mut self, what: Asked, now: Instant) -> bool {
        if !self.has_room(&what, now) {
            return false;
        }
        let known = self.0.get(&what.0).and_then(|asked| asked.get(&what.1));
        let refused = known.is_some_and(|(count, at)| {
            let early = now.duration_since(*at) < limits::GROUP_ASK_AGAIN;
            !forgotten(*at, now) && *count > 0 && (early || *count >= limits::MAX_GROUP_ASKS)
        });
        if !refused {
            self.count(what, now);
        }
        !refused
    }

    /// Whether something may be said once an hour.
    pub(super) fn may_once(&mut self, what: &Asked, now: Instant) -> bool {
        let known = self.0.get(&what.0).and_then(|asked| asked.get(&what.1));
        known.is_none_or(|(_, at)| forgotten(*at, now)) && self.has_room(what, now)
    }

    /// It was.
    pub(super) fn count(&mut self, Asked(user, what): Asked, now: Instant) {
        let (count, at) = self.0.entry(user).or_default().entry(what).or_insert((0, now));
        if forgotten(*at, now) {
            *count = 0;
        }
        *count += 1;
        *at = now;
    }

    /// Whether it can be remembered. What is old is forgotten.
    fn has_room(&mut self, Asked(user, what): &Asked, now: Instant) -> bool {
        if !self.0.contains_key(user) && self.0.len() >= limits::MAX_ASKED_USERS {
            self.0.retain(|_, asked| asked.values().any(|(_, at)| !forgotten(*at, now)));
            if self.0.len() >= limits::MAX_ASKED_USERS {
                return false;
            }
        }
        let Some(asked) = self.0.get_mut(user) else { return true };
        if !asked.contains_key(what) && asked.len() >= limits::MAX_ASKED_OF_ONE {
            asked.retain(|_, (_, at)| !forgotten(*at, now));
        }
        asked.contains_key(what) || asked.len() < limits::MAX_ASKED_OF_ONE
    }
}

fn forgotten(at: Instant, now: Instant) -> bool {
    now.duration_since(at) >= limits::GROUP_ASK_FORGET
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stvor_base::DeviceId;

    use super::*;

    fn from(name: &str) -> Address {
        Address::new(UserId::new(name).unwrap(), DeviceId::FIRST)
    }

    fn parked(name: &str, lacks: Lacks) -> Parked {
        let (since, arrived_at) = (Instant::now(), Timestamp::from_millis(1));
        Parked { since, arrived_at, from: from(name), lacks, again: false, told: false }
    }

    #[test]
    fn of_one_sender_128_wait_and_of_all_512() {
        let mut waiting = Waiting::default();
        let key = |seq: u64| Lacks::Key([0; 16], u32::try_from(seq).unwrap());
        for seq in 0..128 {
            assert_eq!(waiting.put(seq, parked("mallory", key(seq))), None);
        }
        let over = waiting.put(128, parked("mallory", key(128)));
        assert_eq!(over, Some((0, from("mallory").user)));
        waiting.remove(0);
        for seq in 129..129 + 384 {
            let who = format!("user{}", seq % 7);
            assert_eq!(waiting.put(seq, parked(&who, key(seq))), None, "{seq}");
        }
        // All room is taken: the oldest of whoever has most makes some, and not that of the newcomer.
        let over = waiting.put(1_000, parked("carol", key(1)));
        assert_eq!(over, Some((1, from("mallory").user)));
        // What waits on is not counted twice.
        waiting.remove(1);
        assert_eq!(waiting.put(1_000, parked("carol", key(1))), None);
    }

    #[test]
    fn of_one_group_16_mails_wait_for_somebody_who_answers_for_them() {
        let mut waiting = Waiting::default();
        let lacks = |number: u8| Lacks::Voucher(GroupId::from_bytes([number; 16]));
        for seq in 0..16 {
            assert_eq!(waiting.put(seq, parked("carol", lacks(1))), None);
        }
        assert_eq!(waiting.put(16, parked("dave", lacks(2))), None, "of another group");
        assert_eq!(waiting.put(17, parked("dave", lacks(1))), Some((0, from("carol").user)));
        let due = |waiting: &Waiting| (0..18).filter(|seq| waiting.is_due(*seq)).count();
        waiting.came(&Came::Voucher(GroupId::from_bytes([2; 16])));
        assert_eq!(due(&waiting), 1);
        waiting.came(&Came::Group(GroupId::from_bytes([1; 16])));
        assert_eq!(due(&waiting), 18);
    }

    #[test]
    fn what_came_wakes_what_lacked_it_and_nothing_else() {
        let mut waiting = Waiting::default();
        let (one, two) = (GroupId::from_bytes([1; 16]), GroupId::from_bytes([2; 16]));
        for (seq, lacks) in
            [Lacks::Key([1; 16], 5), Lacks::Key([2; 16], 5), Lacks::Changes(one), Lacks::Group(two)]
                .into_iter()
                .enumerate()
        {
            assert_eq!(waiting.put(seq as u64, parked("bob", lacks)), None);
        }
        let due = |waiting: &Waiting| (0..4).filter(|seq| waiting.is_due(*seq)).collect::<Vec<_>>();
        assert!(due(&waiting).is_empty() && waiting.is_due(9), "what does not wait is judged");
        waiting.came(&Came::Chain(from("carol"), [1; 16]));
        assert!(due(&waiting).is_empty(), "of another sender");
        waiting.came(&Came::Chain(from("bob"), [1; 16]));
        assert_eq!(due(&waiting), [0]);
        waiting.came(&Came::Part(two));
        assert_eq!(due(&waiting), [0], "it is not ours yet");
        waiting.came(&Came::Group(two));
        assert_eq!(due(&waiting), [0, 3]);
        waiting.came(&Came::Group(one));
        assert_eq!(due(&waiting), [0, 2, 3]);
        assert!(waiting.wants(two) && waiting.wants(one) && !waiting.wants(GroupId::from_bytes([3; 16])));
    }

    #[test]
    fn a_member_is_asked_three_times_a_minute_apart_and_anew_after_an_hour() {
        let mut asks = Asks::default();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let what = || Asked(from("bob").user, vec![1]);
        assert!(asks.may(what(), at(0)));
        assert!(!asks.may(what(), at(59)));
        assert!(asks.may(what(), at(60)) && asks.may(what(), at(120)));
        assert!(!asks.may(what(), at(180)), "three times");
        assert!(!asks.may(what(), at(120 + 3_599)));
        assert!(asks.may(what(), at(120 + 3_600)));
    }

    #[test]
    fn what_is_said_once_is_said_anew_after_an_hour_and_only_what_was_said_counts() {
        let mut asks = Asks::default();
        let start = Instant::now();
        let what = Asked(from("bob").user, vec![1]);
        assert!(asks.may_once(&what, start) && asks.may_once(&what, start), "it was not said");
        asks.count(what.clone(), start);
        let hour = Duration::from_secs(3_600);
        assert!(!asks.may_once(&what, start + hour - Duration::from_millis(1)));
        assert!(asks.may_once(&what, start + hour));
    }

    #[test]
    fn who_makes_us_ask_for_much_leaves_room_for_others() {
        let mut asks = Asks::default();
        let now = Instant::now();
        let of = |name: &str, number: usize| Asked(from(name).user, number.to_be_bytes().to_vec());
        for number in 0..limits::MAX_ASKED_OF_ONE {
            assert!(asks.may(of("mallory", number), now));
        }
        assert!(!asks.may(of("mallory", limits::MAX_ASKED_OF_ONE), now));
        assert!(asks.may(of("bob", 0), now));
        for number in 2..limits::MAX_ASKED_USERS {
            assert!(asks.may(of(&format!("u{number}"), 0), now));
        }
        assert!(!asks.may(of("one too many", 0), now));
        assert!(asks.may(of("one too many", 0), now + limits::GROUP_ASK_FORGET), "what is old is forgotten");
    }
}
