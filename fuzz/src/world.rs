//! Two people who wrote to each other, as values: what the protocol targets start from. Always the same.

use std::collections::HashMap;

use stvor_base::{Address, AppId, ContentId, DeviceId, Timestamp, UserId};
use stvor_crypto::SecretBytes;
use stvor_crypto::random::DeterministicRandom;
use stvor_protocol::{
    ContentKind, Context, Conversation, Delivery, Effect, Effects, Identity, Incoming, KemKind, KemPrekeyIn,
    OneTimeIn, Plaintext, PrekeyBundleIn, Prekeys, ProtocolError, Received, RecordKey, Records, ServerCounts,
    SignedPrekeyIn, TrustPolicy,
};

/// When everything happens.
pub const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// One person's device: identity and rows.
pub struct Person {
    /// Their keys.
    pub identity: Identity,
    /// Their store.
    pub rows: HashMap<RecordKey, Vec<u8>>,
}

impl Person {
    fn new(name: &str, rng: &mut DeterministicRandom) -> Self {
        let address = Address::new(UserId::new(name).expect("a user"), DeviceId::FIRST);
        let (identity, effects) = Identity::create(&app(), &address, NOW, rng).expect("an identity");
        let mut person = Self { identity, rows: HashMap::new() };
        person.commit(effects);
        person
    }

    /// Applies writes.
    pub fn commit(&mut self, effects: Effects) {
        for effect in effects.into_vec() {
            match effect {
                Effect::Put { key, value, .. } | Effect::Insert { key, value, .. } => {
                    self.rows.insert(key, value.into_exposed());
                }
                Effect::Delete { key } => {
                    self.rows.remove(&key);
                }
            }
        }
    }

    /// The rows under these names.
    pub fn records(&self, keys: Vec<RecordKey>) -> Records {
        let row = |key: RecordKey| self.rows.get(&key).map(|row| (key.clone(), SecretBytes::from_slice(row)));
        keys.into_iter().filter_map(row).collect()
    }

    /// The conversation with `peer`, from its rows.
    pub fn conversation(&self, peer: &Address) -> Conversation {
        let records = self.records(Conversation::keys(peer));
        Conversation::load(&self.identity, peer, &records).expect("stored rows load")
    }

    /// What operations are given.
    pub fn context(&self) -> Context<'_> {
        Context { identity: &self.identity, policy: TrustPolicy::default(), padding: |size| size, now: NOW }
    }

    /// Tries to read a blob; nothing is stored.
    pub fn decrypt(&self, conversation: &mut Conversation, blob: &[u8]) -> Result<Received, ProtocolError> {
        let incoming = Incoming::parse(blob)?;
        let records = self.records(conversation.needs(&incoming));
        let delivery = Delivery { incoming: &incoming, records: &records, decision: None };
        conversation.decrypt(&self.context(), delivery, &mut DeterministicRandom::from_label("decrypt"))
    }
}

/// Alice started; Bob answered; Alice wrote twice more.
pub struct World {
    /// The initiator.
    pub alice: Person,
    /// Before he received anything.
    pub bob_before: Person,
    /// After the first message and his answer.
    pub bob: Person,
    /// Bob's bundle as a relay would hand it out.
    pub bundle: PrekeyBundleIn,
    /// First message (with handshake), for `bob_before`.
    pub first: Vec<u8>,
    /// Later messages, for `bob`, in order.
    pub later: Vec<Vec<u8>>,
}

fn app() -> AppId {
    AppId::new("fuzz").expect("an app")
}

fn text(number: u8) -> Plaintext {
    Plaintext {
        content: ContentId::from_bytes([number; 16]),
        kind: ContentKind::Text,
        body: stvor_crypto::SecretBytes::from_slice(b"hello"),
    }
}

fn send(
    from: &mut Person,
    conversation: &mut Conversation,
    number: u8,
    rng: &mut DeterministicRandom,
) -> Vec<u8> {
    let sent = conversation.encrypt(&from.context(), &text(number), rng).expect("a message");
    from.commit(sent.effects);
    sent.blob
}

impl World {
    /// Builds it.
    pub fn new() -> Self {
        let rng = &mut DeterministicRandom::from_label("world");
        let mut alice = Person::new("alice", rng);
        let mut bob = Person::new("bob", rng);
        let to_bob = bob.identity.address().clone();
        let to_alice = alice.identity.address().clone();

        let mut prekeys = Prekeys::default();
        let counts = ServerCounts { one_time: 0, kem_one_time: 20 };
        let due = prekeys.maintain(&bob.identity, counts, NOW, rng).expect("prekeys");
        bob.commit(due.effects);
        let upload = due.upload.expect("an upload");
        let (signed, kem) = (upload.signed.expect("a signed prekey"), upload.kem_last.expect("a KEM prekey"));
        let one_time =
            upload.one_time.first().map(|key| OneTimeIn { id: key.id, public: key.public.to_vec() });
        let bundle = PrekeyBundleIn {
            list: bob.identity.signed_list().clone(),
            device: DeviceId::FIRST.get(),
            signed: SignedPrekeyIn {
                id: signed.id,
                created: signed.created,
                public: signed.public.to_vec(),
                signature: signed.signature.to_vec(),
            },
            one_time,
            kem: KemPrekeyIn {
                kind: KemKind::LastResort,
                id: kem.id,
                created: kem.created,
                public: kem.public,
                signature: kem.signature.to_vec(),
            },
        };

        let mut hers = alice.conversation(&to_bob);
        let checked = bundle.validate(&app(), &to_bob, NOW).expect("a good bundle");
        let started = hers.start(&alice.context(), &checked, None, rng).expect("a session");
        alice.commit(started.effects);
        let first = send(&mut alice, &mut hers, 1, rng);
        let bob_before = Person {
            identity: Identity::from_record(&SecretBytes::from_slice(&bob.rows[&Identity::key()]))
                .expect("Bob"),
            rows: bob.rows.clone(),
        };
        let mut his = bob.conversation(&to_alice);
        let received = bob.decrypt(&mut his, &first).expect("the first message");
        bob.commit(received.effects);
        let answer = send(&mut bob, &mut his, 2, rng);
        let received = alice.decrypt(&mut hers, &answer).expect("the answer");
        alice.commit(received.effects);
        let later = (3..6).map(|number| send(&mut alice, &mut hers, number, rng)).collect();
        Self { alice, bob_before, bob, bundle, first, later }
    }

    /// The messages of [`World`], the first one first.
    pub fn blobs(&self) -> Vec<&[u8]> {
        std::iter::once(&self.first).chain(&self.later).map(Vec::as_slice).collect()
    }
}
