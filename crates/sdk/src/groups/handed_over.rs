//! Keys of members that handed over to others: what comes from them is taken as far as somebody answers for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use stvor_base::{Timestamp, UserId};
use stvor_protocol::group::{ChangeHash, Group as State, Member, SignedChangeIn};
use stvor_protocol::{Pin, ProtocolError, RecordKey};

use super::actor::Actor;
use super::incoming::Trouble;
use super::rows::MailRow;
use crate::error::{Error, Result};

impl Actor {
    /// When a user's key handed over to another one, as far as we know: whoever has it may be somebody else since.
    async fn handed_over(&mut self, of: &Member) -> Result<Option<Timestamp>> {
        let core = Arc::clone(&self.core);
        let own = &core.identity;
        if of.user == *own.user() {
            let earlier = of.key != *own.user_key()
                && own.rotations().is_some_and(|chain| chain.keys().any(|key| *key == of.key));
            return Ok(earlier.then(Timestamp::default));
        }
        let key = crate::records::key(&RecordKey::pin(&of.user))?;
        let Some(row) = self.core.store.one(&key).await.map_err(Error::passed)? else { return Ok(None) };
        Ok(Pin::from_record(&row.value).map_err(Error::passed)?.left(&of.key))
    }

    /// Nothing that comes after we learned of a rotation is taken from the key that handed over, whatever the group knows.
    pub(super) async fn refuse_superseded(
        &mut self,
        mail: &MailRow,
        of: &Member,
    ) -> core::result::Result<(), Trouble> {
        Ok(refuse_late(mail, of, self.handed_over(of).await?)?)
    }

    /// The changes that are news and signed with a key that handed over, and for which nobody answers: neither came they from
    /// the user with the present key, nor does a member with a present key build on them.
    pub(super) async fn unvouched(
        &mut self,
        group: &State,
        (mail, changes): (&MailRow, &[SignedChangeIn]),
    ) -> Result<BTreeMap<ChangeHash, UserId>> {
        let core = Arc::clone(&self.core);
        let app = core.identity.app();
        let mut refused = BTreeMap::new();
        let mut sound: Vec<(&SignedChangeIn, Vec<ChangeHash>)> = Vec::new();
        let mut below: BTreeMap<ChangeHash, Vec<ChangeHash>> = BTreeMap::new();
        for change in changes {
            // What can not be read is refused later on.
            let (Ok((hash, parents)), Ok(author)) = (change.outline(app), change.claimed_author(app)) else {
                continue;
            };
            if group.knows(&hash) {
                continue;
            }
            match self.handed_over(&author).await? {
                // From the user with the present key.
                Some(left) if mail.arrived_at > left && mail.from.user == author.user => {}
                Some(left) if mail.arrived_at > left => drop(refused.insert(hash, author.user)),
                _ if group.admits(&author.user, &author.key) => sound.push((change, parents.clone())),
                _ => {}
            }
            below.insert(hash, parents);
        }
        for (change, mut parents) in sound {
            if refused.is_empty() {
                break;
            }
            let mut found = Vec::new();
            while let Some(parent) = parents.pop() {
                if let Some(more) = below.get(&parent) {
                    found.push(parent);
                    parents.extend(more.iter().filter(|hash| !found.contains(hash)));
                }
            }
            let vouches = found.iter().any(|hash| refused.contains_key(hash));
            if vouches && change.clone().validate(app).is_ok() {
                found.iter().for_each(|hash| drop(refused.remove(hash)));
            }
        }
        Ok(refused)
    }
}

/// Refuses what came from a key after it was known that it handed over to another one.
pub(super) fn refuse_late(
    mail: &MailRow,
    of: &Member,
    left: Option<Timestamp>,
) -> core::result::Result<(), ProtocolError> {
    match left {
        Some(left) if mail.arrived_at > left => Err(ProtocolError::IdentitySuperseded(of.user.clone())),
        _ => Ok(()),
    }
}
