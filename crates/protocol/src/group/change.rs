//! A change of a group's membership: who made it, what it builds on, what it does.
//!
//! ```text
//! change    = u8 version, 2 (1: by the rule of hashes) | u8 suite | lp(app id) | group id [16] | u64 epoch
//!           | u8 number of parents | parents [32] each, ascending
//!           | u64 created | lp(author's device list) | its signature [64] | u32 author's device | u8 kind | body
//! create  1   nonce [16] | lp(name) | members       the group id is zeros; no parents; epoch 0
//! add     2   members
//! remove  3   lp(user)
//! rename  4   lp(name)
//! members   = u16 count | for each, in ascending order: lp(user) | user key
//!
//! hash      = SHA-256(label "group change" | change)
//! signature = sign(author's device signing key, label "group change", change)
//! ```

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::devices::{MAX_DEVICES, SIGNATURE_BYTES};
use stvor_base::{Address, AppId, DeviceId, GroupId, KeyBytes, Suite, Timestamp, UserId};
use stvor_crypto::SecretBytes;
use stvor_crypto::kdf::sha256;
use stvor_crypto::random::Random;
use stvor_crypto::suite::VerifyingKey;

use super::limits::{MAX_CHANGE, MAX_CHANGE_MEMBERS, MAX_NAME, MAX_PARENTS};
use crate::devices::SignedDeviceListIn;
use crate::error::ProtocolError;
use crate::identity::Identity;
use crate::profile::{self, SIGNATURE};

/// Of changes of groups that are made now. Those of groups that were made with version 1 keep it.
const VERSION: u8 = 2;
/// Of records.
const RECORD: u8 = 1;

/// The name of a change: a hash of its bytes.
pub type ChangeHash = [u8; 32];

/// A member: a user, as the one who added them knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub user: UserId,
    /// The user key that was pinned by whoever added them.
    pub key: KeyBytes,
}

/// What a change does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Makes the group.
    Create {
        /// What it is called.
        name: String,
        /// Who is in it, the creator included.
        members: Vec<Member>,
        /// Makes the group's id its own.
        nonce: [u8; 16],
    },
    /// Lets users in, or gives members new keys.
    Add(Vec<Member>),
    /// Puts a user out; one's own name: leaves.
    Remove(UserId),
    /// Gives the group another name.
    Rename(String),
}

/// A change as it came, not checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedChangeIn {
    /// The change.
    pub bytes: Vec<u8>,
    /// The author's signature over it: 64 bytes.
    pub signature: Vec<u8>,
}

/// A change whose form and signatures were checked. Whether its author was a member is for the group to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// All changes of a group have that of its creation.
    pub(crate) version: u8,
    pub(crate) hash: ChangeHash,
    pub(crate) group: GroupId,
    pub(crate) epoch: u64,
    pub(crate) parents: Vec<ChangeHash>,
    pub(crate) created: Timestamp,
    pub(crate) author: Address,
    pub(crate) author_key: KeyBytes,
    pub(crate) action: Action,
    pub(crate) signed: SignedChangeIn,
}

/// What a new change builds on.
pub(crate) struct Base {
    pub(crate) group: GroupId,
    pub(crate) epoch: u64,
    pub(crate) parents: Vec<ChangeHash>,
    /// `None` for a creation.
    pub(crate) version: Option<u8>,
}

/// Whether a group may be called that: 1 to 256 bytes without control characters.
#[must_use]
pub fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && !name.chars().any(char::is_control)
}

impl Change {
    /// Makes and signs a change.
    pub(crate) fn sign(
        identity: &Identity,
        base: &Base,
        (action, now): (Action, Timestamp),
        rng: &mut dyn Random,
    ) -> Result<Self, ProtocolError> {
        let list = identity.signed_list();
        let mut out = Writer::with_capacity(512 + list.bytes.len());
        out.u8(base.version.unwrap_or(VERSION))
            .u8(identity.suite().number())
            .bytes(identity.app().as_str().as_bytes())
            .raw(base.group.as_bytes())
            .u64(base.epoch)
            .u8(u8::try_from(base.parents.len()).unwrap_or(u8::MAX));
        for parent in &base.parents {
            out.raw(parent);
        }
        out.u64(now.as_millis()).bytes(&list.bytes).raw(&list.signature).u32(identity.address().device.get());
        action.encode(&mut out);
        let bytes = out.finish();
        let label = profile::of(identity.suite()).label.group_change;
        let signature = identity.signing()?.sign_with(rng, label, &bytes)?;
        SignedChangeIn { bytes, signature: signature.to_vec() }.validate(identity.app())
    }

    /// Its hash.
    #[must_use]
    pub fn hash(&self) -> &ChangeHash {
        &self.hash
    }

    /// Its group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// What it builds on.
    #[must_use]
    pub fn parents(&self) -> &[ChangeHash] {
        &self.parents
    }

    /// Whose it is.
    #[must_use]
    pub fn author(&self) -> &Address {
        &self.author
    }

    /// What it does.
    #[must_use]
    pub fn action(&self) -> &Action {
        &self.action
    }

    /// When it was made, by its author's clock.
    #[must_use]
    pub fn created(&self) -> Timestamp {
        self.created
    }

    /// The form that travels.
    #[must_use]
    pub fn signed(&self) -> &SignedChangeIn {
        &self.signed
    }
}

impl Action {
    /// Whom it lets in.
    pub(crate) fn lets_in(&self) -> &[Member] {
        match self {
            Self::Create { members, .. } | Self::Add(members) => members,
            Self::Remove(_) | Self::Rename(_) => &[],
        }
    }

    fn encode(&self, out: &mut Writer) {
        match self {
            Self::Create { name, members, nonce } => {
                out.u8(1).raw(nonce).bytes(name.as_bytes());
                write_members(members, out);
            }
            Self::Add(members) => {
                out.u8(2);
                write_members(members, out);
            }
            Self::Remove(user) => {
                out.u8(3).bytes(user.as_str().as_bytes());
            }
            Self::Rename(name) => {
                out.u8(4).bytes(name.as_bytes());
            }
        }
    }

    fn decode(input: &mut Reader<'_>, suite: Suite) -> Result<Self, CodecError> {
        Ok(match input.u8()? {
            1 => {
                let nonce = *input.array()?;
                Self::Create { name: read_name(input)?, members: read_members(input, suite)?, nonce }
            }
            2 => Self::Add(read_members(input, suite)?),
            3 => Self::Remove(read_user(input)?),
            4 => Self::Rename(read_name(input)?),
            _ => return Err(CodecError::Value),
        })
    }
}

fn write_members(members: &[Member], out: &mut Writer) {
    out.u16(u16::try_from(members.len()).unwrap_or(u16::MAX));
    for member in members {
        out.bytes(member.user.as_str().as_bytes()).raw(&member.key);
    }
}

fn read_members(input: &mut Reader<'_>, suite: Suite) -> Result<Vec<Member>, CodecError> {
    let count = usize::from(input.u16()?);
    if count == 0 || count > MAX_CHANGE_MEMBERS {
        return Err(CodecError::Length);
    }
    let mut members: Vec<Member> = Vec::with_capacity(count);
    for _ in 0..count {
        let member = Member { user: read_user(input)?, key: KeyBytes::read(input, suite)? };
        if members.last().is_some_and(|last| last.user >= member.user) {
            return Err(CodecError::Value);
        }
        members.push(member);
    }
    Ok(members)
}

fn read_user(input: &mut Reader<'_>) -> Result<UserId, CodecError> {
    let name = core::str::from_utf8(input.bytes(stvor_base::address::MAX_USER_ID_BYTES)?)
        .map_err(|_| CodecError::Value)?;
    UserId::from_canonical(name).map_err(|_| CodecError::Value)
}

fn read_name(input: &mut Reader<'_>) -> Result<String, CodecError> {
    let name = core::str::from_utf8(input.bytes(MAX_NAME)?).map_err(|_| CodecError::Value)?;
    if is_name(name) { Ok(name.to_owned()) } else { Err(CodecError::Value) }
}

/// The fields of a change, read and not judged.
struct Fields {
    version: u8,
    suite: Suite,
    group: GroupId,
    epoch: u64,
    parents: Vec<ChangeHash>,
    created: Timestamp,
    list: SignedDeviceListIn,
    device: DeviceId,
    action: Action,
}

/// A list of 16 devices with the longest names.
const MAX_LIST: usize = 1_024 + MAX_DEVICES * (4 + 2 * stvor_base::suite::MAX_KEY_BYTES);

fn decode(bytes: &[u8], app: &AppId) -> Result<Fields, CodecError> {
    let mut input = Reader::new(bytes);
    let version = match input.u8()? {
        known @ 1..=VERSION => known,
        other => return Err(CodecError::Version(other)),
    };
    let suite = Suite::from_number(input.u8()?).ok_or(CodecError::Value)?;
    if input.bytes(stvor_base::address::MAX_APP_ID_BYTES)? != app.as_str().as_bytes() {
        return Err(CodecError::Value);
    }
    let group = GroupId::from_bytes(*input.array()?);
    let epoch = input.u64()?;
    let count = usize::from(input.u8()?);
    if count > MAX_PARENTS {
        return Err(CodecError::Length);
    }
    let parents = (0..count).map(|_| input.array().copied()).collect::<Result<Vec<ChangeHash>, _>>()?;
    if !parents.is_sorted_by(|a, b| a < b) {
        return Err(CodecError::Value);
    }
    let created = Timestamp::from_millis(input.u64()?);
    let list = SignedDeviceListIn {
        bytes: input.bytes(MAX_LIST)?.to_vec(),
        signature: input.array::<SIGNATURE>()?.to_vec(),
    };
    let device = DeviceId::new(input.u32()?).map_err(|_| CodecError::Value)?;
    let action = Action::decode(&mut input, suite)?;
    input.finish()?;
    let creates = matches!(action, Action::Create { .. });
    let first = parents.is_empty() && epoch == 0 && group == GroupId::from_bytes([0; 16]);
    if creates != first || !creates && (parents.is_empty() || epoch == 0) {
        return Err(CodecError::Value);
    }
    Ok(Fields { version, suite, group, epoch, parents, created, list, device, action })
}

fn of_form(error: CodecError) -> ProtocolError {
    match error {
        CodecError::Version(version) => ProtocolError::TooNew { what: "group change", version },
        _ => ProtocolError::BadChange("it is malformed"),
    }
}

impl SignedChangeIn {
    /// Checks form and signatures.
    ///
    /// # Errors
    /// [`ProtocolError::BadChange`] when it is malformed, of another app, or a signature does not verify;
    /// [`ProtocolError::TooNew`] for one of a later version.
    pub fn validate(self, app: &AppId) -> Result<Change, ProtocolError> {
        let refused = ProtocolError::BadChange;
        if self.bytes.len() > MAX_CHANGE {
            return Err(refused("it is too large"));
        }
        let fields = decode(&self.bytes, app).map_err(of_form)?;
        let user = stvor_base::devices::DeviceList::decode(&fields.list.bytes)
            .map_err(|_| refused("its device list is malformed"))?
            .user;
        let list = fields.list.validate(app, &user)?;
        let author = Address::new(user, fields.device);
        let keys = list.keys_of(&author)?;
        if keys.suite() != fields.suite {
            return Err(refused("its author has another suite"));
        }
        let label = profile::of(fields.suite).label.group_change;
        let key =
            VerifyingKey::from_bytes(&keys.signing).map_err(|_| refused("its signing key is malformed"))?;
        key.verify(label, &self.bytes, &self.signature)
            .map_err(|_| refused("its signature does not verify"))?;
        if let Action::Create { members, .. } = &fields.action
            && !members.iter().any(|member| member.user == author.user && member.key == keys.user)
        {
            return Err(refused("its creator is not in the group"));
        }
        let hash = sha256(&[label, &self.bytes]);
        let group = match fields.action {
            Action::Create { .. } => id_of(&hash),
            _ => fields.group,
        };
        Ok(Change {
            version: fields.version,
            hash,
            group,
            epoch: fields.epoch,
            parents: fields.parents,
            created: fields.created,
            author,
            author_key: keys.user,
            action: fields.action,
            signed: self,
        })
    }

    /// Its hash and what it builds on, if its form is right. Nothing else of it is checked.
    ///
    /// # Errors
    /// [`ProtocolError::BadChange`], [`ProtocolError::TooNew`].
    pub fn outline(&self, app: &AppId) -> Result<(ChangeHash, Vec<ChangeHash>), ProtocolError> {
        if self.bytes.len() > MAX_CHANGE {
            return Err(ProtocolError::BadChange("it is too large"));
        }
        let fields = decode(&self.bytes, app).map_err(of_form)?;
        Ok((sha256(&[profile::of(fields.suite).label.group_change, &self.bytes]), fields.parents))
    }

    /// Who signed it with which user key, as it says. No signature is checked.
    ///
    /// # Errors
    /// [`ProtocolError::BadChange`], [`ProtocolError::TooNew`].
    pub fn claimed_author(&self, app: &AppId) -> Result<Member, ProtocolError> {
        if self.bytes.len() > MAX_CHANGE {
            return Err(ProtocolError::BadChange("it is too large"));
        }
        let fields = decode(&self.bytes, app).map_err(of_form)?;
        let list = stvor_base::devices::DeviceList::decode(&fields.list.bytes)
            .map_err(|_| ProtocolError::BadChange("its device list is malformed"))?;
        Ok(Member { user: list.user, key: list.user_key })
    }

    /// A change that was checked before it was stored.
    pub(crate) fn trusted(self, app: &AppId) -> Result<Change, CodecError> {
        let fields = decode(&self.bytes, app)?;
        let list = stvor_base::devices::DeviceList::decode(&fields.list.bytes)?;
        let hash = sha256(&[profile::of(fields.suite).label.group_change, &self.bytes]);
        let group = match fields.action {
            Action::Create { .. } => id_of(&hash),
            _ => fields.group,
        };
        Ok(Change {
            version: fields.version,
            hash,
            group,
            epoch: fields.epoch,
            parents: fields.parents,
            created: fields.created,
            author: Address::new(list.user, fields.device),
            author_key: list.user_key,
            action: fields.action,
            signed: self,
        })
    }

    pub(crate) fn write(&self, out: &mut Writer) {
        out.bytes(&self.bytes).raw(&self.signature);
    }

    pub(crate) fn read(input: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Self {
            bytes: input.bytes(MAX_CHANGE)?.to_vec(),
            signature: input.array::<SIGNATURE_BYTES>()?.to_vec(),
        })
    }

    pub(crate) fn to_record(&self) -> SecretBytes {
        let mut out = Writer::with_capacity(1 + 4 + self.bytes.len() + SIGNATURE);
        out.u8(RECORD);
        self.write(&mut out);
        out.finish().into()
    }

    pub(crate) fn from_record(record: &SecretBytes) -> Result<Self, CodecError> {
        let mut input = Reader::new(record.expose());
        match input.u8()? {
            RECORD => {}
            other => return Err(CodecError::Version(other)),
        }
        let change = Self::read(&mut input)?;
        input.finish()?;
        Ok(change)
    }
}

fn id_of(hash: &ChangeHash) -> GroupId {
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    GroupId::from_bytes(id)
}
