//! Changes that were not taken in so far, and who answers for those by keys that handed over to others: a change by somebody
//! whose key is sound that builds on them. What builds on what is kept in memory over all mail that waits; signatures are
//! looked at only of those by whom something would count.

use std::collections::{BTreeMap, HashMap, HashSet};

use stvor_base::GroupId;
use stvor_protocol::group::{ChangeHash, Member};

use crate::limits;

/// What the author of a change says for what it builds on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Voice {
    /// Their key handed over to another, which stands here: somebody has to answer for the change.
    Superseded(Member),
    /// They say that they are a member with a sound key.
    Claims,
    /// They are: the signatures were looked at.
    Answers,
    /// Nothing.
    None,
}

/// A change that was not taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outline {
    pub(super) hash: ChangeHash,
    pub(super) parents: Vec<ChangeHash>,
    pub(super) voice: Voice,
}

impl Outline {
    pub(super) fn superseded(&self) -> Option<&Member> {
        match &self.voice {
            Voice::Superseded(present) => Some(present),
            _ => None,
        }
    }
}

/// The changes of mail that waits, by its number.
#[derive(Debug, Default)]
pub(super) struct Unjudged(BTreeMap<u64, (GroupId, Vec<Outline>)>);

impl Unjudged {
    /// Mail waits (still). Past the bound nothing is noted of it: then only its author's present identity answers for it.
    pub(super) fn put(&mut self, seq: u64, (group, outlines): (GroupId, Vec<Outline>)) {
        self.0.remove(&seq);
        let held: usize = self.0.values().map(|(_, outlines)| outlines.len()).sum();
        if held + outlines.len() <= limits::MAX_UNJUDGED_CHANGES {
            self.0.insert(seq, (group, outlines));
        }
    }

    pub(super) fn remove(&mut self, seq: u64) {
        self.0.remove(&seq);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The changes of one mail.
    pub(super) fn of(&self, seq: u64) -> impl Iterator<Item = &Outline> {
        self.0.get(&seq).into_iter().flat_map(|(_, outlines)| outlines)
    }

    /// The changes of a group in all other mail, each with the number of its mail.
    pub(super) fn others(&self, seq: u64, group: GroupId) -> impl Iterator<Item = (u64, &Outline)> {
        let of_group =
            move |(other, (id, _)): &(&u64, &(GroupId, Vec<Outline>))| **other != seq && *id == group;
        let all = self.0.iter().filter(of_group);
        all.flat_map(|(seq, (_, outlines))| outlines.iter().map(move |outline| (*seq, outline)))
    }

    /// The signatures of a change were looked at.
    pub(super) fn heard(&mut self, (seq, hash): (u64, ChangeHash), voice: &Voice) {
        if let Some((_, outlines)) = self.0.get_mut(&seq) {
            let same = |outline: &&mut Outline| outline.hash == hash;
            outlines.iter_mut().filter(same).for_each(|outline| outline.voice = voice.clone());
        }
    }
}

/// Somebody who may answer for changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Witness {
    /// The mail that their change is in.
    pub(super) seq: u64,
    pub(super) hash: ChangeHash,
    /// Its signatures were looked at.
    pub(super) heard: bool,
}

/// What builds on what, and for which changes nobody answered so far.
#[derive(Debug, Default)]
pub(super) struct Web {
    below: HashMap<ChangeHash, Vec<ChangeHash>>,
    refused: HashSet<ChangeHash>,
    witnesses: Vec<Witness>,
    walked: HashSet<ChangeHash>,
}

impl Web {
    pub(super) fn new<'a>(outlines: impl Iterator<Item = (u64, &'a Outline)>) -> Self {
        let mut web = Self::default();
        let mut above: HashMap<ChangeHash, Vec<ChangeHash>> = HashMap::new();
        let mut claims = Vec::new();
        for (seq, outline) in outlines {
            let hash = outline.hash;
            match &outline.voice {
                Voice::Superseded(_) => drop(web.refused.insert(hash)),
                Voice::Claims => claims.push(Witness { seq, hash, heard: false }),
                Voice::Answers => claims.push(Witness { seq, hash, heard: true }),
                Voice::None => {}
            }
            // Of one that came twice once.
            web.below.entry(hash).or_insert_with(|| {
                for parent in &outline.parents {
                    above.entry(*parent).or_default().push(hash);
                }
                outline.parents.clone()
            });
        }
        // Only who builds on something that is refused has anything to say.
        let mut concerned = HashSet::new();
        let mut next: Vec<ChangeHash> = web.refused.iter().copied().collect();
        while let Some(hash) = next.pop() {
            let more = above.get(&hash).into_iter().flatten().filter(|hash| concerned.insert(**hash));
            next.extend(more.copied().collect::<Vec<_>>());
        }
        web.witnesses = claims.into_iter().filter(|witness| concerned.contains(&witness.hash)).collect();
        web
    }

    /// Who is to be heard next, while there is something to answer for.
    pub(super) fn next(&mut self) -> Option<Witness> {
        if self.refused.is_empty() { None } else { self.witnesses.pop() }
    }

    /// A witness answers for all that their change builds on.
    pub(super) fn answers(&mut self, hash: &ChangeHash) {
        let mut next = self.below.get(hash).cloned().unwrap_or_default();
        while let Some(hash) = next.pop() {
            if self.walked.insert(hash) {
                self.refused.remove(&hash);
                next.extend(self.below.get(&hash).into_iter().flatten().copied());
            }
        }
    }

    /// Whether nobody answers for a change.
    pub(super) fn refuses(&self, hash: &ChangeHash) -> bool {
        self.refused.contains(hash)
    }
}

#[cfg(test)]
mod tests {
    use stvor_base::UserId;

    use super::*;

    fn hash(number: usize) -> ChangeHash {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_be_bytes());
        hash
    }

    fn outline(number: usize, parents: &[usize], voice: Voice) -> Outline {
        Outline { hash: hash(number), parents: parents.iter().map(|parent| hash(*parent)).collect(), voice }
    }

    fn superseded() -> Voice {
        Voice::Superseded(Member { user: UserId::new("bob").unwrap(), key: [9; 65].into() })
    }

    /// A row of changes, each on the one before, over two mails and more.
    fn row() -> Vec<(u64, Outline)> {
        vec![
            (1, outline(1, &[0], superseded())),
            (1, outline(2, &[1], superseded())),
            (2, outline(3, &[2], Voice::None)),
            (3, outline(4, &[3], Voice::Claims)),
            (4, outline(5, &[4], superseded())),
            (5, outline(9, &[0], Voice::Claims)),
        ]
    }

    #[test]
    fn who_builds_on_changes_answers_for_all_of_them_and_for_nothing_above() {
        let row = row();
        let mut web = Web::new(row.iter().map(|(seq, outline)| (*seq, outline)));
        let witness = web.next().unwrap();
        assert_eq!(witness, Witness { seq: 3, hash: hash(4), heard: false }, "of the other nothing depends");
        assert!(web.refuses(&hash(1)));
        web.answers(&witness.hash);
        let refused = |web: &Web| (1..10).filter(|number| web.refuses(&hash(*number))).collect::<Vec<_>>();
        assert_eq!(refused(&web), [5]);
        assert_eq!(web.next(), None);
    }

    #[test]
    fn nobody_is_heard_where_nothing_is_refused() {
        let row = [(1, outline(1, &[0], Voice::Claims)), (1, outline(2, &[1], Voice::Answers))];
        assert_eq!(Web::new(row.iter().map(|(seq, outline)| (*seq, outline))).next(), None);
    }

    #[test]
    fn circles_that_no_hash_makes_end_all_the_same() {
        let row = [
            (1, outline(1, &[2], superseded())),
            (1, outline(2, &[3], Voice::Claims)),
            (1, outline(3, &[1], Voice::None)),
        ];
        let mut web = Web::new(row.iter().map(|(seq, outline)| (*seq, outline)));
        let witness = web.next().unwrap();
        web.answers(&witness.hash);
        assert!(!web.refuses(&hash(1)));
    }

    #[test]
    fn of_all_mail_that_waits_16384_changes_are_noted() {
        let group = GroupId::from_bytes([1; 16]);
        let mut unjudged = Unjudged::default();
        let many = |count: usize| (0..count).map(|number| outline(number, &[], Voice::None)).collect();
        unjudged.put(1, (group, many(limits::MAX_UNJUDGED_CHANGES - 1)));
        unjudged.put(2, (group, many(2)));
        assert_eq!(unjudged.of(2).count(), 0);
        unjudged.put(2, (group, many(1)));
        assert_eq!(unjudged.others(1, group).count(), 1);
        unjudged.put(2, (group, many(1)));
        assert_eq!(unjudged.of(2).count(), 1, "what waits on is not counted twice");
        unjudged.heard((2, hash(0)), &Voice::Answers);
        assert_eq!(unjudged.of(2).next().unwrap().voice, Voice::Answers);
        assert_eq!(unjudged.others(1, GroupId::from_bytes([2; 16])).count(), 0);
        unjudged.remove(2);
        assert_eq!(unjudged.others(1, group).count(), 0);
    }
}
