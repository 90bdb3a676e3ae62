//! Parties over in-memory rows, and a relay that hands out bundles: what the tests of this crate share.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

pub mod machine;

use std::collections::HashMap;
use std::time::Duration;

use stvor_base::{Address, AppId, ContentId, DeviceId, MessageId, Suite, Timestamp, UserId};
use stvor_crypto::random::{DeterministicRandom, Random};
use stvor_protocol::*;

/// The sizes that relays allow up to 4 KiB, then multiples of 4 KiB: enough of a padding policy for tests.
pub fn padding(size: usize) -> usize {
    [512, 1_024, 2_048, 4_096]
        .into_iter()
        .find(|bucket| *bucket >= size)
        .unwrap_or(size.next_multiple_of(4_096))
}

/// The suite of this test program: the same files make one for each (see `x25519.rs`).
pub fn suite() -> Suite {
    if module_path!().starts_with("x25519") { Suite::X25519 } else { Suite::P256 }
}

pub fn app() -> AppId {
    AppId::new("test").unwrap()
}

pub fn address(name: &str) -> Address {
    Address::new(UserId::new(name).unwrap(), DeviceId::FIRST)
}

/// Rows with the rules of a transaction.
#[derive(Default, Clone, PartialEq, Eq, Debug)]
pub struct Rows(pub HashMap<RecordKey, Vec<u8>>);

impl Rows {
    pub fn load(&self, keys: &[RecordKey]) -> Records {
        let row = |key: &RecordKey| self.0.get(key).map(|value| (key.clone(), value.clone().into()));
        keys.iter().filter_map(row).collect()
    }

    /// All or nothing; false when an inserted row exists.
    pub fn commit(&mut self, effects: Effects) -> bool {
        let conflict =
            |effect: &Effect| matches!(effect, Effect::Insert { key, .. } if self.0.contains_key(key));
        if effects.as_slice().iter().any(conflict) {
            return false;
        }
        for effect in effects.into_vec() {
            match effect {
                Effect::Put { key, value, .. } | Effect::Insert { key, value, .. } => {
                    self.0.insert(key, value.into_exposed());
                }
                Effect::Delete { key } => {
                    self.0.remove(&key);
                }
            }
        }
        true
    }

    pub fn count(&self, kind: RecordKind) -> usize {
        self.0.keys().filter(|key| key.kind == kind).count()
    }

    pub fn of(&self, kind: RecordKind) -> Vec<&Vec<u8>> {
        self.0.iter().filter(|(key, _)| key.kind == kind).map(|(_, value)| value).collect()
    }
}

/// What a relay has of one device.
#[derive(Default, Clone)]
pub struct Directory {
    pub signed: Option<SignedPrekeyPublic>,
    pub kem_last: Option<KemPublicPrekey>,
    pub one_time: Vec<OneTimePublic>,
    pub kem_one_time: Vec<KemPublicPrekey>,
}

pub struct Party {
    pub identity: Identity,
    pub rows: Rows,
    pub prekeys: Prekeys,
    pub directory: Directory,
    pub now: Timestamp,
    pub policy: TrustPolicy,
    pub rng: DeterministicRandom,
    contents: u128,
}

impl Party {
    pub fn new(name: &str) -> Self {
        Self::seeded(name, name)
    }

    pub fn seeded(name: &str, seed: &str) -> Self {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let mut rng = DeterministicRandom::from_label(seed);
        let (identity, effects) =
            Identity::create_in(suite(), (&app(), &address(name)), now, &mut rng).unwrap();
        let mut rows = Rows::default();
        assert!(rows.commit(effects));
        let prekeys = Prekeys::default();
        let policy = TrustPolicy::default();
        let directory = Directory::default();
        let mut party = Self { identity, rows, prekeys, directory, now, policy, rng, contents: 0 };
        let _ = party.maintain();
        party
    }

    pub fn address(&self) -> Address {
        self.identity.address().clone()
    }

    pub fn maintain(&mut self) -> Maintenance {
        let counts = ServerCounts {
            one_time: u32::try_from(self.directory.one_time.len()).unwrap(),
            kem_one_time: u32::try_from(self.directory.kem_one_time.len()).unwrap(),
        };
        let mut done = self.prekeys.maintain(&self.identity, counts, self.now, &mut self.rng).unwrap();
        assert!(self.rows.commit(std::mem::take(&mut done.effects)));
        if let Some(upload) = done.upload.clone() {
            self.directory.signed = upload.signed.or(self.directory.signed.take());
            self.directory.kem_last = upload.kem_last.or(self.directory.kem_last.take());
            self.directory.one_time.extend(upload.one_time);
            self.directory.kem_one_time.extend(upload.kem_one_time);
            let effects = self.prekeys.uploaded(self.now);
            assert!(self.rows.commit(effects));
        }
        done
    }

    /// What the relay hands to somebody who fetches this device's bundle.
    pub fn bundle(&mut self) -> PrekeyBundleIn {
        let signed = self.directory.signed.clone().unwrap();
        let one_time = (!self.directory.one_time.is_empty()).then(|| self.directory.one_time.remove(0));
        let (kind, kem) = if self.directory.kem_one_time.is_empty() {
            (KemKind::LastResort, self.directory.kem_last.clone().unwrap())
        } else {
            (KemKind::OneTime, self.directory.kem_one_time.remove(0))
        };
        PrekeyBundleIn {
            list: self.identity.signed_list().clone(),
            device: 1,
            signed: SignedPrekeyIn {
                id: signed.id,
                created: signed.created,
                public: signed.public.to_vec(),
                signature: signed.signature.to_vec(),
            },
            one_time: one_time.map(|key| OneTimeIn { id: key.id, public: key.public.to_vec() }),
            kem: KemPrekeyIn {
                kind,
                id: kem.id,
                created: kem.created,
                public: kem.public,
                signature: kem.signature.to_vec(),
            },
        }
    }

    pub fn context(&self) -> Context<'_> {
        Context { identity: &self.identity, policy: self.policy, padding, now: self.now }
    }

    /// The conversation as it is stored: each call is a restart.
    pub fn conversation(&self, peer: &Address) -> Conversation {
        Conversation::load(&self.identity, peer, &self.rows.load(&Conversation::keys(peer))).unwrap()
    }

    pub fn text(&mut self, words: &str) -> Plaintext {
        self.contents += 1;
        let content = ContentId::from_bytes(self.contents.to_be_bytes());
        Plaintext {
            content,
            kind: ContentKind::Text,
            body: stvor_crypto::SecretBytes::from_slice(words.as_bytes()),
        }
    }

    /// Starts a session with a peer's bundle and encrypts a first message, in one transaction.
    pub fn start(&mut self, peer: &mut Party, words: &str) -> Result<Vec<u8>, ProtocolError> {
        let bundle = peer.bundle().validate(&app(), &peer.address(), self.now)?;
        self.start_with(&bundle, words)
    }

    pub fn start_with(&mut self, bundle: &PrekeyBundle, words: &str) -> Result<Vec<u8>, ProtocolError> {
        let text = self.text(words);
        let mut conversation = self.conversation(bundle.address());
        let context = Context { identity: &self.identity, policy: self.policy, padding, now: self.now };
        let mut effects = conversation.start(&context, bundle, None, &mut self.rng)?.effects;
        let encrypted = conversation.encrypt(&context, &text, &mut self.rng)?;
        effects.append(encrypted.effects);
        assert!(self.rows.commit(effects));
        Ok(encrypted.blob)
    }

    pub fn send(&mut self, peer: &Address, words: &str) -> Result<Vec<u8>, ProtocolError> {
        let text = self.text(words);
        self.send_content(peer, &text)
    }

    pub fn send_content(&mut self, peer: &Address, content: &Plaintext) -> Result<Vec<u8>, ProtocolError> {
        let mut conversation = self.conversation(peer);
        let context = Context { identity: &self.identity, policy: self.policy, padding, now: self.now };
        let encrypted = conversation.encrypt(&context, content, &mut self.rng)?;
        assert!(self.rows.commit(encrypted.effects));
        Ok(encrypted.blob)
    }

    /// Decrypts without committing.
    pub fn open(&mut self, from: &Address, blob: &[u8]) -> Result<Received, ProtocolError> {
        self.open_with(from, blob, None)
    }

    pub fn open_with(
        &mut self,
        from: &Address,
        blob: &[u8],
        decision: Option<&TrustDecision>,
    ) -> Result<Received, ProtocolError> {
        let incoming = Incoming::parse(blob)?;
        let mut conversation = self.conversation(from);
        let records = self.rows.load(&conversation.needs(&incoming));
        let context = Context { identity: &self.identity, policy: self.policy, padding, now: self.now };
        let delivery = Delivery { incoming: &incoming, records: &records, decision };
        conversation.decrypt(&context, delivery, &mut self.rng)
    }

    /// Decrypts and commits; gives the words and the control reply, if one is due.
    pub fn receive_full(&mut self, from: &Address, blob: &[u8]) -> Result<Message, ProtocolError> {
        let received = self.open(from, blob)?;
        if !self.rows.commit(received.effects) {
            return Err(ProtocolError::Duplicate);
        }
        let words = String::from_utf8(received.plaintext.body.expose().to_vec()).unwrap_or_default();
        Ok(Message {
            words,
            plaintext: received.plaintext,
            reply: received.reply,
            started: received.started,
            identity: received.identity,
            standing: received.standing,
        })
    }

    pub fn receive(&mut self, from: &Address, blob: &[u8]) -> Result<String, ProtocolError> {
        self.receive_full(from, blob).map(|message| message.words)
    }

    /// The failure path for a blob that did not decrypt.
    pub fn fail(&mut self, from: &Address, blob: &[u8], error: &ProtocolError) -> Failure {
        let mut conversation = self.conversation(from);
        let context = Context { identity: &self.identity, policy: self.policy, padding, now: self.now };
        let failed = Failed { message: MessageId::from_bytes([9; 16]), blob, error };
        let mut failure = conversation.failed(&context, &failed, &mut self.rng).unwrap();
        assert!(self.rows.commit(std::mem::take(&mut failure.effects)));
        failure
    }

    pub fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }
}

impl Party {
    /// The same party again, as it was stored.
    pub fn fork(&self) -> Self {
        let identity = Identity::from_record(&self.rows.0[&Identity::key()].clone().into()).unwrap();
        let (rows, prekeys, directory) = (self.rows.clone(), self.prekeys.clone(), self.directory.clone());
        let (now, policy, contents) = (self.now, self.policy, self.contents);
        let rng = DeterministicRandom::from_label(&format!("fork of {}", identity.user()));
        Self { identity, rows, prekeys, directory, now, policy, rng, contents }
    }

    /// Decrypts on a conversation in memory, with this randomness, without committing.
    pub fn open_on(
        &self,
        conversation: &mut Conversation,
        blob: &[u8],
        rng: &mut dyn Random,
    ) -> Result<Received, ProtocolError> {
        let incoming = Incoming::parse(blob)?;
        let records = self.rows.load(&conversation.needs(&incoming));
        let delivery = Delivery { incoming: &incoming, records: &records, decision: None };
        conversation.decrypt(&self.context(), delivery, rng)
    }
}

/// Randomness that runs dry: `left` calls are answered, all later ones fail. Asking for no bytes counts as a call.
pub struct Dry {
    pub inner: DeterministicRandom,
    pub left: usize,
}

impl Dry {
    pub fn new(label: &str, left: usize) -> Self {
        Self { inner: DeterministicRandom::from_label(label), left }
    }
}

impl Random for Dry {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), stvor_crypto::CryptoError> {
        self.left = self.left.checked_sub(1).ok_or(stvor_crypto::CryptoError::RandomnessUnavailable)?;
        self.inner.fill(out)
    }

    fn deterministic(&self) -> bool {
        true
    }
}

/// Writes as comparable values.
pub fn writes(effects: Effects) -> Vec<(&'static str, RecordKey, Vec<u8>, Option<Timestamp>)> {
    let write = |effect| match effect {
        Effect::Put { key, value, expires } => ("put", key, value.into_exposed(), expires),
        Effect::Insert { key, value, expires } => ("insert", key, value.into_exposed(), expires),
        Effect::Delete { key } => ("delete", key, Vec::new(), None),
    };
    effects.into_vec().into_iter().map(write).collect()
}

pub struct Message {
    pub words: String,
    pub plaintext: Plaintext,
    pub reply: Option<Vec<u8>>,
    pub started: bool,
    pub identity: IdentityEvent,
    pub standing: Standing,
}

/// Alice and Bob with an established session: Alice started, Bob answered.
pub fn pair() -> (Party, Party) {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    let first = alice.start(&mut bob, "hello").unwrap();
    assert_eq!(bob.receive(&alice.address(), &first).unwrap(), "hello");
    let reply = bob.send(&alice.address(), "hi").unwrap();
    assert_eq!(alice.receive(&bob.address(), &reply).unwrap(), "hi");
    (alice, bob)
}

pub fn code<T>(result: Result<T, ProtocolError>) -> &'static str {
    match result {
        Ok(_) => "OK",
        Err(error) => stvor_base::ErrorCode::code(&error),
    }
}

pub fn random_bytes(rng: &mut dyn Random, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    rng.fill(&mut bytes).unwrap();
    bytes
}
