//! Keys of members that handed over to others: what comes from them is taken as far as somebody answers for it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use stvor_base::{GroupId, KeyBytes, Timestamp, UserId};
use stvor_crypto::SecretBytes;
use stvor_protocol::group::{ChangeHash, Group as State, GroupContent, Member, SignedChangeIn};
use stvor_protocol::{Effects, Pin, ProtocolError, RecordKey};

use super::actor::Actor;
use super::incoming::Trouble;
use super::rows::{self, MailRow, PostKind};
use super::turn::Turn;
use super::vouching::{Outline, Voice, Web, Witness};
use super::waiting::{Asked, Came};
use crate::error::{Error, Result};

/// Of a member's key that handed over to another: whoever has it may be somebody else since.
#[derive(Clone, Copy)]
pub(super) struct HandedOver {
    /// When we learned of it.
    left: Timestamp,
    /// The user's key as it is now.
    present: KeyBytes,
}

/// Which keys of users handed over.
type AllHandedOver = HashMap<(UserId, KeyBytes), HandedOver>;

/// Of changes in one mail, those for which nobody answers, and by whom they are.
pub(super) type Unvouched = BTreeMap<ChangeHash, UserId>;

impl Actor {
    /// Which of these keys handed over to others, as far as we know: one question to the store.
    async fn handed_over(&mut self, of: impl IntoIterator<Item = &Member>) -> Result<AllHandedOver> {
        let core = Arc::clone(&self.core);
        let own = &core.identity;
        let asked: HashSet<(UserId, KeyBytes)> =
            of.into_iter().map(|member| (member.user.clone(), member.key)).collect();
        let others: HashSet<&UserId> =
            asked.iter().map(|(user, _)| user).filter(|user| *user != own.user()).collect();
        let wanted: Vec<RecordKey> = others.iter().map(|user| RecordKey::pin(user)).collect();
        let pins = crate::records::load(&core.store, &wanted, &Effects::new()).await?;
        let mut found = AllHandedOver::new();
        for (user, key) in asked {
            let handed_over = if user == *own.user() {
                let earlier = key != *own.user_key() && self.own_earlier().await?.contains(&key);
                earlier.then(|| HandedOver { left: Timestamp::default(), present: *own.user_key() })
            } else {
                let pin = pins.get(&RecordKey::pin(&user)).map(Pin::from_record).transpose();
                let pin = pin.map_err(Error::passed)?;
                let left = |pin: Pin| Some(HandedOver { left: pin.left(&key)?, present: pin.user_key });
                pin.and_then(left)
            };
            found.extend(handed_over.map(|handed_over| ((user, key), handed_over)));
        }
        Ok(found)
    }

    /// Our own keys of before.
    async fn own_earlier(&mut self) -> Result<&HashSet<KeyBytes>> {
        if self.own_earlier.is_none() {
            let core = Arc::clone(&self.core);
            let keys = crate::rotation::earlier_keys(&core.store, &core.identity).await?;
            self.own_earlier = Some(keys.into_iter().collect());
        }
        Ok(self.own_earlier.get_or_insert_default())
    }

    /// Nothing that comes after we learned of a rotation is taken from the key that handed over, whatever the group knows.
    pub(super) async fn refuse_superseded(
        &mut self,
        mail: &MailRow,
        of: &Member,
    ) -> core::result::Result<(), Trouble> {
        let left = self.handed_over([of]).await?.into_values().next().map(|found| found.left);
        Ok(refuse_late((mail, self.core.now()), of, left)?)
    }

    /// A member as they are to be asked for something: by the key that theirs handed over to, if it did.
    pub(super) async fn as_they_are(&mut self, member: Member) -> Result<Member> {
        let present = self.handed_over([&member]).await?.into_values().next().map(|found| found.present);
        Ok(Member { key: present.unwrap_or(member.key), ..member })
    }

    /// What of changes is news to a group, and what their authors' words are worth.
    async fn outlines(
        &mut self,
        group: &State,
        (mail, changes): (&MailRow, &[SignedChangeIn]),
    ) -> Result<Vec<Outline>> {
        let (core, now) = (Arc::clone(&self.core), self.core.now());
        let app = core.identity.app();
        let read = |change: &SignedChangeIn| {
            // What can not be read is refused later on.
            let (hash, parents) = change.outline(app).ok().filter(|(hash, _)| !group.knows(hash))?;
            Some((change.claimed_author(app).ok()?, hash, parents))
        };
        let news: Vec<(Member, ChangeHash, Vec<ChangeHash>)> = changes.iter().filter_map(read).collect();
        let all = self.handed_over(news.iter().map(|(author, ..)| author)).await?;
        let outlines = news.into_iter().map(|(author, hash, parents)| {
            let found = all.get(&(author.user.clone(), author.key));
            let voice = match found.filter(|found| is_late(mail, found.left, now)) {
                // From the user with the present key.
                Some(_) if mail.from.user == author.user => Voice::None,
                Some(found) => Voice::Superseded(Member { user: author.user, key: found.present }),
                None if group.admits(&author.user, &author.key) => Voice::Claims,
                None => Voice::None,
            };
            Outline { hash, parents, voice }
        });
        Ok(outlines.collect())
    }

    /// The changes that are news and signed with a key that handed over, and for which nobody answers: neither came they from
    /// the user with the present key, nor does a member with a present key build on them, in this mail or in other that waits.
    /// Other mail for which this one answers is judged again.
    pub(super) async fn unvouched(
        &mut self,
        group: &State,
        (seq, mail, changes): (u64, &MailRow, &[SignedChangeIn]),
        turn: &mut Turn,
    ) -> Result<Unvouched> {
        let id = group.id();
        let mut outlines = self.outlines(group, (mail, changes)).await?;
        let here = outlines.iter().map(|outline| (seq, outline));
        let mut web = Web::new(here.chain(self.unjudged.others(seq, id)));
        while let Some(witness) = web.next() {
            let answers = witness.heard || self.hear(witness, (seq, changes)).await?;
            let voice = if answers { Voice::Answers } else { Voice::None };
            if answers {
                web.answers(&witness.hash);
            }
            if witness.seq == seq {
                let same = |outline: &&mut Outline| outline.hash == witness.hash;
                outlines.iter_mut().filter(same).for_each(|outline| outline.voice = voice.clone());
            } else {
                self.unjudged.heard((witness.seq, witness.hash), &voice);
            }
        }
        let news = self.waiting.get(seq).is_none();
        let answered =
            |(_, other): (u64, &Outline)| other.superseded().is_some() && !web.refuses(&other.hash);
        if news && self.unjudged.others(seq, id).any(answered) {
            turn.came.insert(Came::Voucher(id));
        }
        let refused = |outline: &Outline| {
            let present = outline.superseded().filter(|_| web.refuses(&outline.hash))?;
            Some((outline.hash, present.user.clone()))
        };
        let unvouched = outlines.iter().filter_map(refused).collect();
        self.unjudged.put(seq, (id, outlines));
        Ok(unvouched)
    }

    /// Whether the change of a witness is signed as it says.
    async fn hear(&mut self, witness: Witness, (seq, changes): (u64, &[SignedChangeIn])) -> Result<bool> {
        let app = self.core.identity.app();
        let signed = |change: &SignedChangeIn| {
            let same = change.outline(app).is_ok_and(|(hash, _)| hash == witness.hash);
            same && change.clone().validate(app).is_ok()
        };
        if witness.seq == seq {
            return Ok(changes.iter().any(signed));
        }
        let row = self.core.store.one(&rows::mail(witness.seq)).await.map_err(Error::passed)?;
        let content = row.and_then(|row| {
            let body = SecretBytes::from_slice(&MailRow::decode(row.value.expose()).ok()?.body);
            GroupContent::decode(self.core.identity.suite(), &body).ok()
        });
        Ok(matches!(content, Some(GroupContent::Changes(_, changes)) if changes.iter().any(signed)))
    }

    /// Users by whose keys of before changes are for which nobody answers, as they are: they know what they did.
    pub(super) fn authors_to_ask(&mut self, waiting: &[(u64, GroupId)]) -> Vec<(Member, GroupId)> {
        let mut asked = Vec::new();
        for (seq, group) in waiting {
            for present in self.unjudged.of(*seq).filter_map(Outline::superseded) {
                if !asked.iter().any(|(member, id)| member == present && id == group) {
                    asked.push((present.clone(), *group));
                }
            }
        }
        let now = tokio::time::Instant::now();
        asked.retain(|(member, group)| {
            let what = [b"answer ".as_slice(), group.as_bytes()].concat();
            self.asks.may(Asked(member.user.clone(), what), now)
        });
        asked
    }

    /// Asks a member for what we do not know of a group.
    pub(super) fn ask_for_changes(&self, member: Member, group: GroupId, turn: &mut Turn) {
        if let Some(state) = self.groups.get(&group) {
            let body = GroupContent::WantChanges(group, state.heads()).encode();
            self.post((body, PostKind::Content), [member], turn);
        }
    }
}

/// Whether mail came after we learned that a key handed over. A clock that was put back behind that says nothing of when:
/// then all of it did.
fn is_late(mail: &MailRow, left: Timestamp, now: Timestamp) -> bool {
    mail.arrived_at > left || now < left
}

/// Refuses what came from a key after it was known that it handed over to another one.
pub(super) fn refuse_late(
    (mail, now): (&MailRow, Timestamp),
    of: &Member,
    left: Option<Timestamp>,
) -> core::result::Result<(), ProtocolError> {
    match left {
        Some(left) if is_late(mail, left, now) => Err(ProtocolError::IdentitySuperseded(of.user.clone())),
        _ => Ok(()),
    }
}
