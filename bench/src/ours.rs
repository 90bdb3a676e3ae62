//! Two parties of our own protocol over rows in memory, driven as the SDK drives them.

use std::collections::HashMap;

use stvor_base::{Address, AppId, ContentId, DeviceId, Timestamp, UserId};
use stvor_crypto::{SecretBytes, SystemRandom};
use stvor_protocol::{
    ContentKind, Context, Conversation, Delivery, Effect, Effects, Identity, Incoming, KemKind, KemPrekeyIn,
    OneTimeIn, Plaintext, PrekeyBundle, PrekeyBundleIn, PrekeyUpload, Prekeys, ProtocolError, Received,
    RecordKey, RecordKind, Records, ServerCounts, SignedPrekeyIn, TrustPolicy,
};

use crate::Outcome;

/// When the measurements take place.
pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// Relays refuse blobs of other sizes; what fits no bucket is refused by them too.
pub(crate) fn padding(length: usize) -> usize {
    stvor_wire::padding::bucket_for(length).unwrap_or(length)
}

pub(crate) fn app() -> Outcome<AppId> {
    Ok(AppId::new("bench")?)
}

/// A device: its keys, and its rows as a store would hold them.
pub struct Device {
    /// Its own keys.
    pub identity: Identity,
    /// Its prekeys.
    pub prekeys: Prekeys,
    rows: HashMap<RecordKey, SecretBytes>,
    upload: PrekeyUpload,
    handed_out: usize,
    rng: SystemRandom,
}

/// What an encryption or decryption runs under.
pub(crate) fn context(identity: &Identity) -> Context<'_> {
    Context { identity, policy: TrustPolicy::default(), padding, now: NOW }
}

/// A text message with a content id of its own.
#[must_use]
pub fn text(body: &[u8]) -> Plaintext {
    let content = ContentId::from_bytes([5; 16]);
    Plaintext { content, kind: ContentKind::Text, body: SecretBytes::from_slice(body) }
}

impl Device {
    /// A new device with its first prekeys.
    ///
    /// # Errors
    /// When the protocol refuses.
    pub fn new(name: &str) -> Outcome<Self> {
        let mut rng = SystemRandom::new();
        let address = Address::new(UserId::new(name)?, DeviceId::FIRST);
        let (identity, effects) = Identity::create(&app()?, &address, NOW, &mut rng)?;
        let mut prekeys = Prekeys::default();
        let made = prekeys.maintain(&identity, ServerCounts::default(), NOW, &mut rng)?;
        let upload = made.upload.ok_or("a new device has prekeys to upload")?;
        let mut device = Self { identity, prekeys, rows: HashMap::new(), upload, handed_out: 0, rng };
        device.commit(effects);
        device.commit(made.effects);
        let uploaded = device.prekeys.uploaded(NOW);
        device.commit(uploaded);
        Ok(device)
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> &Address {
        self.identity.address()
    }

    /// Stores what an operation gave back.
    pub fn commit(&mut self, effects: Effects) {
        for effect in effects.into_vec() {
            match effect {
                Effect::Put { key, value, .. } | Effect::Insert { key, value, .. } => {
                    self.rows.insert(key, value);
                }
                Effect::Delete { key } => {
                    self.rows.remove(&key);
                }
            }
        }
    }

    /// The rows of these names, as far as they exist.
    #[must_use]
    pub fn load(&self, keys: &[RecordKey]) -> Records {
        let row = |key: &RecordKey| self.rows.get(key).map(|value| (key.clone(), value.duplicate()));
        keys.iter().filter_map(row).collect()
    }

    /// Bytes in the rows that change or are read with each message of a conversation, by kind.
    #[must_use]
    pub fn conversation_bytes(&self, peer: &Address) -> Vec<(RecordKind, usize)> {
        let keys = Conversation::keys(peer);
        keys.iter().filter_map(|key| Some((key.kind, self.rows.get(key)?.len()))).collect()
    }

    /// The next bundle as a relay hands it out, one-time keys included.
    ///
    /// # Errors
    /// When the one-time keys are used up.
    pub fn bundle(&mut self) -> Outcome<PrekeyBundleIn> {
        let signed = self.upload.signed.clone().ok_or("no signed prekey")?;
        let one_time = self.upload.one_time.get(self.handed_out).ok_or("no one-time prekey left")?;
        let kem_keys = &self.upload.kem_one_time;
        let kem = kem_keys.get(self.handed_out % kem_keys.len()).ok_or("no KEM prekey")?;
        self.handed_out += 1;
        Ok(PrekeyBundleIn {
            list: self.identity.signed_list().clone(),
            device: self.address().device.get(),
            signed: SignedPrekeyIn {
                id: signed.id,
                created: signed.created,
                public: signed.public.to_vec(),
                signature: signed.signature.to_vec(),
            },
            one_time: Some(OneTimeIn { id: one_time.id, public: one_time.public.to_vec() }),
            kem: KemPrekeyIn {
                kind: KemKind::OneTime,
                id: kem.id,
                created: kem.created,
                public: kem.public.clone(),
                signature: kem.signature.to_vec(),
            },
        })
    }

    /// The bundle that a relay hands out where no one-time keys are left: whoever has it can start a conversation.
    ///
    /// # Errors
    /// As [`Device::bundle`].
    pub fn last_bundle(&mut self) -> Outcome<PrekeyBundleIn> {
        let kem = self.upload.kem_last.clone().ok_or("no last-resort KEM prekey")?;
        let kem = KemPrekeyIn {
            kind: KemKind::LastResort,
            id: kem.id,
            created: kem.created,
            public: kem.public,
            signature: kem.signature.to_vec(),
        };
        Ok(PrekeyBundleIn { one_time: None, kem, ..self.bundle()? })
    }

    /// Checks a bundle and starts a conversation with its owner.
    ///
    /// # Errors
    /// When the protocol refuses.
    pub fn initiate(&mut self, bundle: &PrekeyBundleIn, peer: &Address) -> Outcome<(Conversation, Effects)> {
        let bundle: PrekeyBundle = bundle.validate(&app()?, peer, NOW)?;
        let mut conversation = Conversation::load(&self.identity, peer, &Records::new())?;
        let started = conversation.start(&context(&self.identity), &bundle, None, &mut self.rng)?;
        Ok((conversation, started.effects))
    }

    /// Encrypts the first message of a conversation that was just started.
    ///
    /// # Errors
    /// When the protocol refuses.
    pub fn first_message(&mut self, mut conversation: Conversation, message: &Plaintext) -> Outcome<Vec<u8>> {
        Ok(conversation.encrypt(&context(&self.identity), message, &mut self.rng)?.blob)
    }
}

/// One end of a conversation, kept decoded between messages, with the device that it belongs to.
pub struct End {
    /// The device.
    pub device: Device,
    /// Its conversation with the other end.
    pub conversation: Conversation,
}

impl End {
    /// Encrypts; what is to be stored is handed back, not applied.
    ///
    /// # Errors
    /// When the protocol refuses.
    pub fn encrypt(&mut self, message: &Plaintext) -> Outcome<(Vec<u8>, Effects)> {
        let context = context(&self.device.identity);
        let sent = self.conversation.encrypt(&context, message, &mut self.device.rng)?;
        Ok((sent.blob, sent.effects))
    }

    /// Decrypts, with the rows that the message needs; what is to be stored is handed back, not applied.
    ///
    /// # Errors
    /// When the message is refused; then nothing has changed.
    pub fn decrypt(&mut self, blob: &[u8]) -> Result<Received, ProtocolError> {
        let incoming = Incoming::parse(blob)?;
        let needs = self.conversation.needs(&incoming);
        let records = if needs.is_empty() { Records::new() } else { self.device.load(&needs) };
        let delivery = Delivery { incoming: &incoming, records: &records, decision: None };
        let context = context(&self.device.identity);
        self.conversation.decrypt(&context, delivery, &mut self.device.rng)
    }

    /// Sends a message to the other end, storing everything on both.
    ///
    /// # Errors
    /// When the protocol refuses.
    pub fn send_stored(&mut self, to: &mut Self, body: &[u8]) -> Outcome<usize> {
        let (blob, effects) = self.encrypt(&text(body))?;
        self.device.commit(effects);
        let received = to.decrypt(&blob)?;
        if received.plaintext.body.expose() != body {
            return Err("a message changed on its way".into());
        }
        to.device.commit(received.effects);
        Ok(blob.len())
    }
}

/// A responder that has not heard from anybody, with the first message to it.
pub struct Hello {
    /// The initiator.
    pub alice: End,
    /// The responder's device.
    pub bob: Device,
    /// The first message.
    pub first: Vec<u8>,
}

impl Hello {
    /// Two new devices; Alice has written `body`.
    ///
    /// # Errors
    /// When the protocol refuses.
    pub fn new(body: &[u8]) -> Outcome<Self> {
        let (mut alice, mut bob) = (Device::new("alice@example.com")?, Device::new("bob@example.com")?);
        let bundle = bob.bundle()?;
        let (conversation, effects) = alice.initiate(&bundle, bob.address())?;
        alice.commit(effects);
        let mut alice = End { device: alice, conversation };
        let (first, effects) = alice.encrypt(&text(body))?;
        alice.device.commit(effects);
        Ok(Self { alice, bob, first })
    }

    /// Both ends after the first message and an answer: Alice, then Bob.
    ///
    /// # Errors
    /// When the protocol refuses.
    pub fn established(self) -> Outcome<(End, End)> {
        let conversation = blank(&self.bob, self.alice.device.address())?;
        let mut bob = End { device: self.bob, conversation };
        let received = bob.decrypt(&self.first)?;
        bob.device.commit(received.effects);
        let mut alice = self.alice;
        bob.send_stored(&mut alice, b"hello yourself")?;
        Ok((alice, bob))
    }
}

/// A device's empty conversation with a peer.
///
/// # Errors
/// When the protocol refuses.
pub fn blank(device: &Device, peer: &Address) -> Outcome<Conversation> {
    Ok(Conversation::load(&device.identity, peer, &Records::new())?)
}

/// Responds to a first message: the whole work of the responder.
///
/// # Errors
/// When the message is refused.
pub fn respond(bob: &mut Device, mut blank: Conversation, first: &[u8]) -> Result<Received, ProtocolError> {
    let incoming = Incoming::parse(first)?;
    let records = bob.load(&blank.needs(&incoming));
    let delivery = Delivery { incoming: &incoming, records: &records, decision: None };
    blank.decrypt(&context(&bob.identity), delivery, &mut bob.rng)
}

/// Somebody of that name writes to `to` and is answered: their address, and the rows that `to` has of the conversation, which it keeps no
/// more.
///
/// # Errors
/// When the protocol refuses.
pub fn answered(to: &mut Device, bundle: &PrekeyBundleIn, name: &str) -> Outcome<(Address, Records)> {
    let mut rng = SystemRandom::new();
    let peer = Address::new(UserId::new(name)?, DeviceId::FIRST);
    // That end is not used again: there is nothing to store.
    let (identity, _) = Identity::create(&app()?, &peer, NOW, &mut rng)?;
    let bundle = bundle.validate(&app()?, to.address(), NOW)?;
    let mut theirs = Conversation::load(&identity, to.address(), &Records::new())?;
    drop(theirs.start(&context(&identity), &bundle, None, &mut rng)?);
    let first = theirs.encrypt(&context(&identity), &text(b"hello"), &mut rng)?.blob;

    let fresh = blank(to, &peer)?;
    let received = respond(to, fresh, &first)?;
    to.commit(received.effects);
    let keys = Conversation::keys(&peer);
    let mut conversation = Conversation::load(&to.identity, &peer, &to.load(&keys))?;
    let answer = conversation.encrypt(&context(&to.identity), &text(b"hello yourself"), &mut to.rng)?;
    to.commit(answer.effects);
    let rows = to.load(&keys);
    keys.iter().for_each(|key| drop(to.rows.remove(key)));
    Ok((peer, rows))
}

/// Makes the prekeys of a new device: signed, last resort, a batch of each one-time kind.
///
/// # Errors
/// When the protocol refuses.
pub fn prekey_batch(device: &mut Device) -> Outcome<PrekeyUpload> {
    let mut prekeys = Prekeys::default();
    let made = prekeys.maintain(&device.identity, ServerCounts::default(), NOW, &mut device.rng)?;
    Ok(made.upload.ok_or("nothing to upload")?)
}
