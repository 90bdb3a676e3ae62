//! One side of conversations in the Signal profile, with what an application keeps.

use std::collections::HashMap;

use stvor_base::Timestamp;
use stvor_crypto::random::{DeterministicRandom, Random};
use stvor_protocol::signal::{
    Context, Decrypted, Encrypted, KeyPair, MessageKind, OneTimeIn, PreKeyBundleIn, PreKeyMessage, Prekeys,
    SessionRecord, SignalError, WhisperMessage, cipher, session,
};

pub(crate) struct Party {
    pub(crate) identity: KeyPair,
    pub(crate) registration_id: u32,
    pub(crate) signed: HashMap<u32, KeyPair>,
    pub(crate) one_time: HashMap<u32, KeyPair>,
    pub(crate) record: SessionRecord,
    pub(crate) rng: DeterministicRandom,
    pub(crate) now: u64,
}

impl Party {
    pub(crate) fn new(name: &str) -> Self {
        let mut rng = DeterministicRandom::from_label(name);
        let identity = KeyPair::generate(&mut rng).unwrap();
        let signed = HashMap::from([(1, KeyPair::generate(&mut rng).unwrap())]);
        Self {
            identity,
            registration_id: 77,
            signed,
            one_time: HashMap::new(),
            record: SessionRecord::new(),
            rng,
            now: 1_700_000_000_000,
        }
    }

    pub(crate) fn bundle(&mut self, one_time: Option<u32>) -> PreKeyBundleIn {
        let signed = &self.signed[&1];
        let public = signed.public().to_bytes();
        let signature = self.identity.sign(&public, &mut self.rng).unwrap();
        let one_time = one_time.map(|id| {
            let pair = KeyPair::generate(&mut self.rng).unwrap();
            let public = pair.public().to_bytes().to_vec();
            self.one_time.insert(id, pair);
            OneTimeIn { id, public }
        });
        PreKeyBundleIn {
            registration_id: self.registration_id,
            identity: self.identity.public().to_bytes().to_vec(),
            signed_id: 1,
            signed: public.to_vec(),
            signature: signature.to_vec(),
            one_time,
        }
    }

    pub(crate) fn start(&mut self, bundle: &PreKeyBundleIn) {
        self.now += 1;
        let context = Context {
            identity: &self.identity,
            registration_id: self.registration_id,
            now: Timestamp::from_millis(self.now),
        };
        let bundle = bundle.validate().unwrap();
        let _ = session::start(&mut self.record, &context, &bundle, &mut self.rng).unwrap();
    }

    pub(crate) fn send(&mut self, text: &[u8]) -> Encrypted {
        self.now += 1;
        let context = Context {
            identity: &self.identity,
            registration_id: self.registration_id,
            now: Timestamp::from_millis(self.now),
        };
        cipher::encrypt(&mut self.record, &context, text).unwrap()
    }

    pub(crate) fn read(&mut self, message: &Encrypted) -> Result<Decrypted, SignalError> {
        self.read_bytes(message.kind, &message.body)
    }

    pub(crate) fn read_bytes(&mut self, kind: MessageKind, body: &[u8]) -> Result<Decrypted, SignalError> {
        self.now += 1;
        let context = Context {
            identity: &self.identity,
            registration_id: self.registration_id,
            now: Timestamp::from_millis(self.now),
        };
        let received = match kind {
            MessageKind::Whisper => {
                cipher::decrypt(&mut self.record, &context, &WhisperMessage::parse(body)?, &mut self.rng)
            }
            MessageKind::PreKey => {
                let message = PreKeyMessage::parse(body)?;
                let prekeys = Prekeys {
                    signed: self.signed.get(&message.signed_prekey()),
                    one_time: self.one_time.get(&message.prekey().unwrap_or(0)),
                };
                cipher::decrypt_prekey(&mut self.record, &context, (&message, prekeys), &mut self.rng)
            }
        }?;
        if let Some(id) = received.remove_prekey {
            assert!(self.one_time.remove(&id).is_some(), "a prekey is removed once");
        }
        Ok(received)
    }

    pub(crate) fn text(&mut self, message: &Encrypted) -> Vec<u8> {
        self.read(message).unwrap().plaintext.expose().to_vec()
    }

    /// Through storage and back.
    pub(crate) fn restart(&mut self) {
        let stored = self.record.encode();
        let mut room = vec![0xff; self.record.size()];
        assert!(self.record.encode_into(&mut room));
        assert_eq!(room, stored.expose(), "written in place, and as bytes");
        self.record = SessionRecord::decode(stored.expose()).unwrap();
    }

    /// Through the JSON of libsignal-node and back.
    pub(crate) fn restart_as_json(&mut self) {
        self.record = SessionRecord::from_json(self.record.to_json().unwrap().expose()).unwrap();
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.rng.fill(&mut byte).unwrap();
        byte[0]
    }
}

/// Alice started a session with Bob, and both have sent.
pub(crate) fn talking(one_time: Option<u32>) -> (Party, Party) {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    alice.start(&bob.bundle(one_time));
    let hello = alice.send(b"hello");
    assert_eq!(bob.text(&hello), b"hello");
    let answer = bob.send(b"answer");
    assert_eq!(alice.text(&answer), b"answer");
    (alice, bob)
}
