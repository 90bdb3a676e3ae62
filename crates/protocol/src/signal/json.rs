//! The JSON of libsignal-node's session records, for projects that come from there and for those that go back.
//!
//! ```text
//! { _sessions: { <base key>: { registrationId, currentRatchet: { ephemeralKeyPair: { pubKey, privKey },
//!       lastRemoteEphemeralKey, previousCounter, rootKey },
//!     indexInfo: { baseKey, baseKeyType 1 ours | 2 theirs, closed -1 | ms, used ms, created ms, remoteIdentityKey },
//!     _chains: { <ratchet key>: { chainKey: { counter, key? }, chainType 1 sending | 2 receiving, messageKeys: { <number>: seed } } },
//!     pendingPreKey?: { signedKeyId, baseKey, preKeyId? } } },
//!   version: "v1", _used: [marks of ours] }
//! ```
//!
//! Keys are base64, 33 bytes where public. A counter is that of the last key derived, so -1 before the first; a chain without a
//! key is closed. Order in an object is order in time.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use stvor_base::Timestamp;
use stvor_crypto::{Secret, SecretBytes};

use super::SignalError;
use super::keys::{KeyPair, PublicKey};
use super::ratchet::{Pending, Receiving, Session};
use crate::limits::{MAX_RECEIVING_CHAINS, MAX_SIGNAL_MARKS, MAX_SIGNAL_RECORD, MAX_STORED_KEYS};
use crate::ratchet::{ChainKey, MessageSeed};

const SENDING: u8 = 1;
const RECEIVING: u8 = 2;
const OURS: u8 = 1;
const THEIRS: u8 = 2;

/// An object whose order counts.
struct Ordered<V>(Vec<(String, V)>);

impl<V> Default for Ordered<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Ordered<V> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Entries<V>(core::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Ordered<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered<V>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        input.deserialize_map(Entries(core::marker::PhantomData))
    }
}

impl<V: Serialize> Serialize for Ordered<V> {
    fn serialize<S: serde::Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        output.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

/// Base64 of a secret, wiped when dropped.
struct Text(SecretBytes);

impl Text {
    fn of(bytes: &[u8]) -> Self {
        Self(STANDARD.encode(bytes).into_bytes().into())
    }

    fn bytes(&self) -> Result<SecretBytes, SignalError> {
        base64(self.0.expose())
    }

    fn secret(&self) -> Result<Secret<32>, SignalError> {
        Secret::from_slice(self.bytes()?.expose())
            .map_err(|_| SignalError::BadRecord("a secret has not 32 bytes"))
    }

    fn public(&self) -> Result<PublicKey, SignalError> {
        public(self.bytes()?.expose())
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        String::deserialize(input).map(|text| Self(text.into_bytes().into()))
    }
}

impl Serialize for Text {
    fn serialize<S: serde::Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        output.serialize_str(core::str::from_utf8(self.0.expose()).unwrap_or_default())
    }
}

fn base64(text: &[u8]) -> Result<SecretBytes, SignalError> {
    let decoded = STANDARD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text));
    decoded.map(SecretBytes::from).map_err(|_| SignalError::BadRecord("a key is not base64"))
}

fn public(bytes: &[u8]) -> Result<PublicKey, SignalError> {
    PublicKey::from_bytes(bytes).map_err(|_| SignalError::BadRecord("a public key is malformed"))
}

#[derive(Serialize, Deserialize)]
struct Record {
    /// Always written. What has none is no record: taken for an empty one, the next message would be stored over what is there.
    #[serde(rename = "_sessions")]
    sessions: Ordered<Entry>,
    #[serde(default)]
    version: Option<String>,
    #[serde(rename = "registrationId", default, skip_serializing)]
    registration_id: Option<u32>,
    #[serde(rename = "_used", default, skip_serializing_if = "Vec::is_empty")]
    used: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    registration_id: Option<u32>,
    current_ratchet: CurrentRatchet,
    index_info: IndexInfo,
    #[serde(rename = "_chains", default)]
    chains: Ordered<Chain>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pending_pre_key: Option<PendingPreKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CurrentRatchet {
    ephemeral_key_pair: Pair,
    last_remote_ephemeral_key: Text,
    previous_counter: i64,
    root_key: Text,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pair {
    pub_key: Text,
    priv_key: Text,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IndexInfo {
    base_key: Text,
    base_key_type: u8,
    closed: i64,
    #[serde(default)]
    used: i64,
    #[serde(default)]
    created: i64,
    remote_identity_key: Text,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PendingPreKey {
    signed_key_id: u32,
    base_key: Text,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pre_key_id: Option<u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Chain {
    chain_key: Key,
    chain_type: u8,
    #[serde(default)]
    message_keys: Ordered<Text>,
}

#[derive(Serialize, Deserialize)]
struct Key {
    counter: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Text>,
}

/// What a record holds, unordered.
pub(super) struct Read {
    pub(super) sessions: Vec<Session>,
    pub(super) marks: Vec<[u8; 16]>,
}

pub(super) fn read(text: &[u8]) -> Result<Read, SignalError> {
    if text.len() > MAX_SIGNAL_RECORD {
        return Err(SignalError::BadRecord("it is larger than 8 MiB"));
    }
    // An array would do for a derived structure.
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(SignalError::BadRecord("it is not the JSON of a session record"));
    }
    // What serde says may quote the text, and the text holds keys.
    let record: Record = serde_json::from_slice(text).map_err(|_| misshapen(text))?;
    // Records of before there were versions have none.
    match record.version.as_deref() {
        None | Some("v1") => {}
        Some(other) => return Err(unknown(other)),
    }
    let of = |(_, entry): &(String, Entry)| entry.session(record.registration_id);
    let sessions = record.sessions.0.iter().map(of).collect::<Result<Vec<_>, _>>()?;
    let bases: std::collections::HashSet<_> = sessions.iter().map(|session| session.base_key).collect();
    if bases.len() != sessions.len() {
        return Err(SignalError::BadRecord("a session occurs twice"));
    }
    let mark = |text: &String| {
        let bytes = base64(text.as_bytes())?;
        bytes.expose().try_into().map_err(|_| SignalError::BadRecord("a mark has not 16 bytes"))
    };
    let marks = record.used.iter().take(MAX_SIGNAL_MARKS).map(mark).collect::<Result<_, _>>()?;
    Ok(Read { sessions, marks })
}

/// Of a text that has not the shape of our version: a later version may have any, and be a number.
fn misshapen(text: &[u8]) -> SignalError {
    #[derive(Deserialize)]
    struct Named {
        version: String,
    }
    #[derive(Deserialize)]
    struct Numbered {
        version: u8,
    }
    let named = serde_json::from_slice(text).ok().and_then(|Named { version }| number(&version));
    let found = named.or_else(|| serde_json::from_slice(text).ok().map(|Numbered { version }| version));
    later(found).unwrap_or(SignalError::BadRecord("it is not the JSON of a session record"))
}

/// Of a version that is not ours: a later one is known by its number.
fn unknown(version: &str) -> SignalError {
    later(number(version)).unwrap_or(SignalError::BadRecord("its JSON is of a version that there is not"))
}

fn number(version: &str) -> Option<u8> {
    version.strip_prefix('v')?.parse().ok()
}

fn later(number: Option<u8>) -> Option<SignalError> {
    number.filter(|number| *number > 1).map(SignalError::TooNew)
}

pub(super) fn write<'a>(
    sessions: impl Iterator<Item = &'a Session>,
    marks: impl Iterator<Item = &'a [u8; 16]>,
) -> Result<SecretBytes, SignalError> {
    let record = Record {
        sessions: Ordered(
            sessions.map(|one| (STANDARD.encode(one.base_key.to_bytes()), Entry::of(one))).collect(),
        ),
        version: Some("v1".to_owned()),
        registration_id: None,
        used: marks.map(|mark| STANDARD.encode(mark)).collect(),
    };
    let text =
        serde_json::to_vec(&record).map_err(|_| SignalError::BadRecord("it can not be written as JSON"))?;
    Ok(text.into())
}

fn millis(time: Timestamp) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn time(millis: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// A counter as it is stored, from the number of the next key.
fn counter(next: u32) -> i64 {
    i64::from(next) - 1
}

fn next(counter: i64) -> Result<u32, SignalError> {
    let next = counter.checked_add(1).and_then(|next| u32::try_from(next).ok());
    next.ok_or(SignalError::BadRecord("a counter is out of range"))
}

impl Entry {
    fn of(session: &Session) -> Self {
        let key = |key: &PublicKey| Text::of(&key.to_bytes());
        let mut chains = Vec::with_capacity(session.receiving.len() + 1);
        for chain in session.receiving.iter().rev() {
            let keys = chain.stored.iter();
            let keys = keys.map(|(number, seed)| (number.to_string(), Text::of(seed.expose()))).collect();
            chains.push((
                STANDARD.encode(chain.ratchet.to_bytes()),
                Chain {
                    chain_key: Key {
                        counter: counter(chain.next),
                        key: chain.key.as_ref().map(|key| Text::of(key.expose())),
                    },
                    chain_type: RECEIVING,
                    message_keys: Ordered(keys),
                },
            ));
        }
        if let Some((chain, number)) = &session.sending {
            let chain_key = Key { counter: counter(*number), key: Some(Text::of(chain.expose())) };
            chains.push((
                STANDARD.encode(session.own.public().to_bytes()),
                Chain { chain_key, chain_type: SENDING, message_keys: Ordered::default() },
            ));
        }
        Self {
            registration_id: Some(session.registration_id),
            current_ratchet: CurrentRatchet {
                ephemeral_key_pair: Pair {
                    pub_key: key(&session.own.public()),
                    priv_key: Text::of(session.own.private().expose()),
                },
                last_remote_ephemeral_key: key(&session.remote),
                previous_counter: i64::from(session.previous),
                root_key: Text::of(session.root.expose()),
            },
            index_info: IndexInfo {
                base_key: key(&session.base_key),
                base_key_type: if session.initiator { OURS } else { THEIRS },
                closed: session.closed.map_or(-1, millis),
                used: millis(session.used),
                created: millis(session.created),
                remote_identity_key: key(&session.remote_identity),
            },
            chains: Ordered(chains),
            pending_pre_key: session.pending.map(|pending| PendingPreKey {
                signed_key_id: pending.signed,
                base_key: key(&session.base_key),
                pre_key_id: pending.prekey,
            }),
        }
    }

    fn session(&self, registration_id: Option<u32>) -> Result<Session, SignalError> {
        let (ratchet, info) = (&self.current_ratchet, &self.index_info);
        let own = &ratchet.ephemeral_key_pair;
        let own = KeyPair::from_parts(own.priv_key.secret()?, own.pub_key.public()?);
        // Not of archived ones: nothing is sent on them, and it is as dear as an agreement each, for every message where storages keep
        // JSON.
        if info.closed < 0 && KeyPair::from_private(own.private())?.public() != own.public() {
            return Err(SignalError::BadRecord("a ratchet key's halves do not belong together"));
        }
        let initiator = match info.base_key_type {
            OURS => true,
            THEIRS => false,
            _ => return Err(SignalError::BadRecord("a base key is neither ours nor theirs")),
        };
        let pending = self.pending_pre_key.as_ref().filter(|_| initiator);
        let remote = ratchet.last_remote_ephemeral_key.public()?;
        let (mut sending, mut receiving) = (None, Vec::new());
        for (name, chain) in self.chains.0.iter().rev() {
            let name = public(base64(name.as_bytes())?.expose())?;
            match chain.chain_type {
                SENDING if name == own.public() => {
                    let key = chain.chain_key.key.as_ref().map(Text::secret).transpose()?;
                    sending = key.map(ChainKey::new).zip(Some(next(chain.chain_key.counter)?));
                }
                // Of a chain that is not used any more.
                SENDING => {}
                RECEIVING => receiving.push(chain.receiving(name)?),
                _ => return Err(SignalError::BadRecord("a chain is neither sending nor receiving")),
            }
        }
        // The newest chain is that of the newest key, wherever the object has it.
        if let Some(at) = receiving.iter().position(|chain| chain.ratchet == remote) {
            let newest = receiving.remove(at);
            receiving.insert(0, newest);
        }
        receiving.truncate(MAX_RECEIVING_CHAINS);
        let mut session = Session {
            registration_id: self.registration_id.or(registration_id).unwrap_or(0),
            remote_identity: info.remote_identity_key.public()?,
            base_key: info.base_key.public()?,
            initiator,
            created: time(info.created),
            used: time(info.used),
            closed: (info.closed >= 0).then(|| time(info.closed.max(1))),
            pending: pending.map(|with| Pending { prekey: with.pre_key_id, signed: with.signed_key_id }),
            root: ratchet.root_key.secret()?,
            own,
            remote,
            // Written as -1 where nothing was sent.
            previous: u32::try_from(ratchet.previous_counter.max(0))
                .map_err(|_| SignalError::BadRecord("a counter is out of range"))?,
            sending,
            receiving,
        };
        session.evict(MAX_STORED_KEYS);
        Ok(session)
    }
}

impl Chain {
    fn receiving(&self, ratchet: PublicKey) -> Result<Receiving, SignalError> {
        let next = next(self.chain_key.counter)?;
        let mut stored = Vec::with_capacity(self.message_keys.0.len());
        for (number, seed) in &self.message_keys.0 {
            let number = number.parse().map_err(|_| SignalError::BadRecord("a message has no number"))?;
            stored.push((number, MessageSeed::new(seed.secret()?)));
        }
        stored.sort_by_key(|(number, _)| *number);
        if stored.windows(2).any(|pair| matches!(pair, [(a, _), (b, _)] if a == b))
            || stored.last().is_some_and(|(number, _)| *number >= next)
        {
            return Err(SignalError::BadRecord("a message key is out of place"));
        }
        let key = self.chain_key.key.as_ref().map(Text::secret).transpose()?.map(ChainKey::new);
        Ok(Receiving { ratchet, key, next, stored })
    }
}
