//! Parties over in-memory rows whose randomness is reproducible and written down.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Value, json};
use stvor_base::{Address, AppId, ContentId, DeviceId, Timestamp, UserId};
use stvor_crypto::CryptoError;
use stvor_crypto::random::{DeterministicRandom, Random};
use stvor_protocol::*;

use super::spec;

pub const NOW: u64 = 1_800_000_000_000;
pub const APP: &str = "vectors";

/// A reproducible generator that remembers what it gave, and gives what it was fed first.
pub struct Recorder {
    inner: DeterministicRandom,
    fed: VecDeque<u8>,
    given: Vec<u8>,
}

impl Recorder {
    pub fn new(label: &str) -> Self {
        Self { inner: DeterministicRandom::from_label(label), fed: VecDeque::new(), given: Vec::new() }
    }

    /// The next bytes to give.
    pub fn feed(&mut self, bytes: &[u8]) {
        assert!(self.fed.is_empty(), "randomness is left over");
        self.fed.extend(bytes);
    }

    /// What was drawn since this was last asked.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.given)
    }
}

impl Random for Recorder {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        if self.fed.is_empty() {
            self.inner.fill(out)?;
        } else {
            assert!(out.len() <= self.fed.len(), "more is drawn than was fed");
            let fed: Vec<u8> = self.fed.drain(..out.len()).collect();
            out.copy_from_slice(&fed);
        }
        self.given.extend_from_slice(out);
        Ok(())
    }

    fn deterministic(&self) -> bool {
        true
    }
}

pub type Rows = BTreeMap<RecordKey, Vec<u8>>;

pub fn commit(rows: &mut Rows, effects: Effects) {
    for effect in effects.into_vec() {
        match effect {
            Effect::Put { key, value, .. } => {
                rows.insert(key, value.into_exposed());
            }
            Effect::Insert { key, value, .. } => {
                let before = rows.insert(key, value.into_exposed());
                assert!(before.is_none(), "an inserted row existed");
            }
            Effect::Delete { key } => {
                rows.remove(&key);
            }
        }
    }
}

pub fn load(rows: &Rows, keys: &[RecordKey]) -> Records {
    let row = |key: &RecordKey| rows.get(key).map(|value| (key.clone(), value.clone().into()));
    keys.iter().filter_map(row).collect()
}

pub fn app() -> AppId {
    AppId::new(APP).unwrap()
}

fn padding(size: usize) -> usize {
    spec::bucket(size).unwrap_or(size)
}

pub struct Party {
    pub identity: Identity,
    pub rows: Rows,
    pub prekeys: Prekeys,
    pub upload: PrekeyUpload,
    pub rng: Recorder,
    pub now: Timestamp,
}

impl Party {
    /// Generates everything: identity, one generation of prekeys, one-time prekeys.
    pub fn new(user: &str, device: u32) -> Self {
        let mut rng = Recorder::new(&format!("STVOR vectors {user}"));
        let now = Timestamp::from_millis(NOW);
        let address = Address::new(UserId::new(user).unwrap(), DeviceId::new(device).unwrap());
        let (identity, effects) =
            Identity::create_in(super::suite(), (&app(), &address), now, &mut rng).unwrap();
        let mut rows = Rows::new();
        commit(&mut rows, effects);
        let mut prekeys = Prekeys::default();
        let made = prekeys.maintain(&identity, ServerCounts::default(), now, &mut rng).unwrap();
        commit(&mut rows, made.effects);
        commit(&mut rows, prekeys.uploaded(now));
        rng.take();
        Self { identity, rows, prekeys, upload: made.upload.unwrap(), rng, now }
    }

    /// A party as it was stored.
    pub fn stored(rows: Rows, label: &str) -> Self {
        let identity = Identity::from_record(&rows[&Identity::key()].clone().into()).unwrap();
        let prekeys = Prekeys::load(&load(&rows, &[Prekeys::key()])).unwrap();
        let (upload, rng) = (PrekeyUpload::default(), Recorder::new(label));
        Self { identity, rows, prekeys, upload, rng, now: Timestamp::from_millis(NOW) }
    }

    pub fn address(&self) -> Address {
        self.identity.address().clone()
    }

    pub fn conversation(&self, peer: &Address) -> Conversation {
        Conversation::load(&self.identity, peer, &load(&self.rows, &Conversation::keys(peer))).unwrap()
    }

    /// Our bundle: with the one-time prekey of that id or none, and with a KEM prekey of that kind and id.
    pub fn bundle(&self, one_time: Option<u32>, kem: (KemKind, u32)) -> PrekeyBundleIn {
        let signed = self.upload.signed.clone().unwrap();
        let kem_one_time = || self.upload.kem_one_time.iter().find(|key| key.id == kem.1).unwrap();
        let key = match kem.0 {
            KemKind::OneTime => kem_one_time(),
            KemKind::LastResort => self.upload.kem_last.as_ref().unwrap(),
        };
        let of_id = |id| self.upload.one_time.iter().find(|key| key.id == id).unwrap();
        let one_time = one_time.map(of_id).map(|key| OneTimeIn { id: key.id, public: key.public.to_vec() });
        PrekeyBundleIn {
            list: self.identity.signed_list().clone(),
            device: self.identity.address().device.get(),
            signed: SignedPrekeyIn {
                id: signed.id,
                created: signed.created,
                public: signed.public.to_vec(),
                signature: signed.signature.to_vec(),
            },
            one_time,
            kem: KemPrekeyIn {
                kind: kem.0,
                id: key.id,
                created: key.created,
                public: key.public.clone(),
                signature: key.signature.to_vec(),
            },
        }
    }

    /// Runs an operation on the stored conversation with `peer`; the operation says what to commit.
    pub fn with<T>(
        &mut self,
        peer: &Address,
        work: impl FnOnce(&mut Conversation, &Context<'_>, &mut Recorder) -> (T, Effects),
    ) -> T {
        let mut conversation = self.conversation(peer);
        let policy = TrustPolicy::default();
        let context = Context { identity: &self.identity, policy, padding, now: self.now };
        let (result, effects) = work(&mut conversation, &context, &mut self.rng);
        commit(&mut self.rows, effects);
        result
    }

    /// Starts a session; gives what was drawn.
    pub fn start(&mut self, bundle: &PrekeyBundleIn, peer: &Address) -> Vec<u8> {
        let bundle = bundle.validate(&app(), peer, self.now).unwrap();
        self.rng.take();
        self.with(peer, |conversation, context, rng| {
            ((), conversation.start(context, &bundle, None, rng).unwrap().effects)
        });
        self.rng.take()
    }

    /// Encrypts; gives the blob and what was drawn.
    pub fn send(&mut self, peer: &Address, content: &Plaintext) -> (Vec<u8>, Vec<u8>) {
        self.rng.take();
        let blob = self.with(peer, |conversation, context, rng| {
            let encrypted = conversation.encrypt(context, content, rng).unwrap();
            (encrypted.blob, encrypted.effects)
        });
        (blob, self.rng.take())
    }

    pub fn receive(&mut self, peer: &Address, blob: &[u8]) -> Result<Plaintext, ProtocolError> {
        let incoming = Incoming::parse(blob)?;
        let mut conversation = self.conversation(peer);
        let records = load(&self.rows, &conversation.needs(&incoming));
        let policy = TrustPolicy::default();
        let context = Context { identity: &self.identity, policy, padding, now: self.now };
        let delivery = Delivery { incoming: &incoming, records: &records, decision: None };
        let received = conversation.decrypt(&context, delivery, &mut self.rng)?;
        commit(&mut self.rows, received.effects);
        Ok(received.plaintext)
    }

    pub fn private(&self, kind: RecordKind, sort: &[u8]) -> Vec<u8> {
        let key = RecordKey { kind, partition: Vec::new(), sort: sort.to_vec() };
        let row = &self.rows[&key];
        assert_eq!(row[0], 1);
        row[1..].to_vec()
    }

    /// User, signing and agreement scalar.
    pub fn scalars(&self) -> [[u8; 32]; 3] {
        let row = &self.rows[&Identity::key()];
        [13, 45, 77].map(|at| row[at..at + 32].try_into().unwrap())
    }

    pub fn end(&self) -> spec::End {
        let scalars = self.scalars();
        let [user_key, signing] = [0, 1].map(|index| spec::signer_of(&scalars[index]));
        let agreement = spec::public_of(&scalars[2]);
        let (user, device) = (self.identity.user().as_str().to_owned(), self.identity.address().device.get());
        spec::End { user, device, user_key, signing, agreement }
    }

    pub fn to_json(&self) -> Value {
        let (end, scalars) = (self.end(), self.scalars());
        let list = self.identity.signed_list();
        json!({
            "user": end.user,
            "device": end.device,
            "user_private": hex::encode(scalars[0]),
            "signing_private": hex::encode(scalars[1]),
            "agreement_private": hex::encode(scalars[2]),
            "user_public": hex::encode(&end.user_key),
            "signing_public": hex::encode(&end.signing),
            "agreement_public": hex::encode(&end.agreement),
            "device_list": hex::encode(&list.bytes),
            "device_list_signature": hex::encode(&list.signature),
            "device_list_hash": hex::encode(stvor_crypto::kdf::sha256(&[&list.bytes])),
        })
    }
}

pub fn content(number: u8, kind: ContentKind, body: &[u8]) -> Plaintext {
    Plaintext {
        content: ContentId::from_bytes([number; 16]),
        kind,
        body: stvor_crypto::SecretBytes::from_slice(body),
    }
}

pub fn alice() -> Party {
    Party::new("alice", 1)
}

/// A name outside ASCII and a device other than the first, so that neither is taken for granted.
pub fn zoe() -> Party {
    Party::new("zo\u{eb}", 7)
}
