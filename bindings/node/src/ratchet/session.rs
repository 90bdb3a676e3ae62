//! A session with one peer: a handle that moves forward.

use std::sync::Arc;

use napi::bindgen_prelude::{BufferSlice, Uint8Array};
use napi_derive::napi;
use stvor_base::codec::Reader;
use stvor_base::devices::DeviceList;
use stvor_base::{Address, ContentId, DeviceId, KeyBytes};
use stvor_crypto::{Random as _, SecretBytes, SystemRandom};
use stvor_protocol::limits::{MAX_BLOB, MAX_PLAINTEXT};
use stvor_protocol::session::Delivery;
use stvor_protocol::{
    ContentKind, Context, Conversation, FirstContact, Incoming, OnMismatch, Plaintext, ProtocolError,
    RecordKind, Records, TrustDecision, TrustPolicy,
};

use super::pair::{NOW, NativeKeyPair, Owner, Rows, app, apply, is_bundle, read_bundle};
use super::saved;
use super::shape::{HEADER, assemble, handshake, header_at, malformed, read_handshake};
use crate::failure::{argument, coded, failure, fits, panicked};
use crate::limits::{MAX_HANDSHAKE, MAX_SAVED};

/// What is sent has the length that it has; who wants to hide lengths pads.
fn unpadded(size: usize) -> usize {
    size
}

/// A session.
#[napi]
pub struct NativeSession {
    pub(super) owner: Arc<Owner>,
    pub(super) peer: Address,
    pub(super) peer_key: Vec<u8>,
    pub(super) conversation: Conversation,
    pub(super) rows: Rows,
    pub(super) handshake: Vec<u8>,
    /// An answer that renews keys, until it is taken.
    reply: Option<Vec<u8>>,
    /// What a call gave and the caller had no room for, until it is fetched.
    given: Option<SecretBytes>,
    rng: SystemRandom,
}

/// What a decrypted message is, in the first byte of its answer.
const NOTHING: u8 = 0;
const TEXT: u8 = 1;
const BYTES: u8 = 2;

impl NativeSession {
    pub(super) fn restored(
        owner: Owner,
        (peer, peer_key): (Address, Vec<u8>),
        rows: Rows,
        handshake: Vec<u8>,
    ) -> napi::Result<Self> {
        let records: Records = rows.iter().map(|(key, value)| (key.clone(), value.duplicate())).collect();
        let conversation = Conversation::load(&owner.identity, &peer, &records).map_err(coded)?;
        Ok(Self {
            owner: Arc::new(owner),
            peer,
            peer_key,
            conversation,
            rows,
            handshake,
            reply: None,
            given: None,
            rng: SystemRandom::new(),
        })
    }

    fn fresh(owner: &Arc<Owner>, (peer, peer_key): (Address, Vec<u8>)) -> napi::Result<Self> {
        let conversation = Conversation::load(&owner.identity, &peer, &Records::new()).map_err(coded)?;
        Ok(Self {
            owner: Arc::clone(owner),
            peer,
            peer_key,
            conversation,
            rows: Rows::new(),
            handshake: Vec::new(),
            reply: None,
            given: None,
            rng: SystemRandom::new(),
        })
    }

    /// The one identity that this session is with: the one of its bundle or handshake, which the application can compare.
    fn named(&self) -> napi::Result<TrustDecision> {
        let user_key = KeyBytes::try_from(self.peer_key.as_slice()).map_err(|_| panicked())?;
        Ok(TrustDecision { user_key, accept: true, verified: false })
    }

    fn seal(&mut self, plaintext: &Plaintext) -> napi::Result<Vec<u8>> {
        let context = context(&self.owner);
        let sealed = self.conversation.encrypt(&context, plaintext, &mut self.rng).map_err(coded)?;
        apply(&mut self.rows, sealed.effects);
        Ok(sealed.blob)
    }

    fn open(&mut self, blob: &[u8]) -> napi::Result<Plaintext> {
        let incoming = Incoming::parse(blob).map_err(coded)?;
        // Handshakes change what all sessions of a pair share: one at a time.
        let mut shared = self.owner.shared();
        let needed = self.conversation.needs(&incoming);
        shared.has_room(&needed)?;
        let mut records = Records::new();
        for key in needed {
            if let Some(value) = self.rows.get(&key).or_else(|| shared.rows().get(&key)) {
                records.insert(key, value.duplicate());
            }
        }
        let decision = self.named()?;
        let delivery = Delivery { incoming: &incoming, records: &records, decision: Some(&decision) };
        let context = context(&self.owner);
        let received =
            self.conversation.decrypt(&context, delivery, &mut self.rng).map_err(|error| match error {
                ProtocolError::AwaitingTrust(question) => {
                    coded(ProtocolError::IdentityChanged(question.user))
                }
                error => coded(error),
            })?;
        let (mut ours, mut theirs) = (stvor_protocol::Effects::new(), stvor_protocol::Effects::new());
        for effect in received.effects.into_vec() {
            let of_pair = matches!(
                effect.key().kind,
                RecordKind::HandshakeMark
                    | RecordKind::SignedPrekey
                    | RecordKind::OneTimePrekey
                    | RecordKind::KemPrekey
            );
            let into = if of_pair { &mut theirs } else { &mut ours };
            match effect {
                stvor_protocol::Effect::Put { key, value, .. }
                | stvor_protocol::Effect::Insert { key, value, .. } => {
                    into.put(key, value);
                }
                stvor_protocol::Effect::Delete { key } => {
                    into.delete(key);
                }
            }
        }
        shared.apply(theirs);
        drop(shared);
        apply(&mut self.rows, ours);
        if received.reply.is_some() {
            self.reply = received.reply;
        }
        Ok(received.plaintext)
    }

    pub(crate) fn text(&mut self, text: String, out: &mut [u8]) -> napi::Result<u32> {
        self.encrypt(ContentKind::Text, text.into_bytes().into(), out)
    }

    pub(crate) fn read(&mut self, message: &[u8], out: &mut [u8]) -> napi::Result<u32> {
        let plaintext = self.open(fits(message, MAX_BLOB)?)?;
        self.decrypted(&plaintext, out)
    }

    fn encrypt(&mut self, kind: ContentKind, body: SecretBytes, out: &mut [u8]) -> napi::Result<u32> {
        let mut id = [0; 16];
        self.rng.fill(&mut id).map_err(coded)?;
        let blob = self.seal(&Plaintext { content: ContentId::from_bytes(id), kind, body })?;
        let at = header_at(&blob).ok_or_else(|| malformed("the message"))?;
        let at = u32::try_from(at).unwrap_or(u32::MAX);
        Ok(self.answer([&at.to_le_bytes(), &blob], out))
    }

    fn decrypted(&mut self, plaintext: &Plaintext, out: &mut [u8]) -> napi::Result<u32> {
        let body = plaintext.body.expose();
        let (kind, body): (_, &[u8]) = match plaintext.kind {
            ContentKind::Text if std::str::from_utf8(body).is_err() => {
                return Err(malformed("the text of the message"));
            }
            ContentKind::Text => (TEXT, body),
            ContentKind::Bytes => (BYTES, body),
            _ => (NOTHING, &[]),
        };
        Ok(self.answer([&[kind], body], out))
    }

    fn open_parts(&mut self, header: &[u8], ciphertext: &[u8]) -> napi::Result<Plaintext> {
        if header.len() != HEADER {
            return Err(failure(
                "MALFORMED_MESSAGE",
                &format!("a header has {HEADER} bytes, not {}", header.len()),
                false,
            ));
        }
        let parts = (header, fits(ciphertext, MAX_BLOB)?);
        let carried = read_handshake(&self.handshake);
        let session = match (self.conversation.session_id(), carried) {
            (Some(id), _) => *id,
            (None, Some((id, _))) => id,
            (None, None) => return Err(coded(ProtocolError::UnknownSession)),
        };
        let plain = assemble(&session, None, parts);
        // A peer that has not heard from us yet repeats its handshake in each message, and what is authenticated says so.
        let repeated = carried.map(|(_, part)| assemble(&session, Some(part), parts));
        if self.conversation.session_id().is_none() {
            return self.open(&repeated.unwrap_or(plain));
        }
        match (self.open(&plain), repeated) {
            (Err(error), Some(blob)) => self.open(&blob).map_err(|_| error),
            (opened, _) => opened,
        }
    }

    /// Writes an answer into memory of the caller, or keeps it if it does not fit; gives its length. Making buffers and objects
    /// from here costs several times what the cryptography of a message does.
    fn answer(&mut self, [head, body]: [&[u8]; 2], out: &mut [u8]) -> u32 {
        let length = head.len() + body.len();
        match out.split_at_mut_checked(head.len()) {
            Some((first, rest)) if rest.len() >= body.len() => {
                first.copy_from_slice(head);
                rest[..body.len()].copy_from_slice(body);
            }
            _ => self.given = Some([head, body].concat().into()),
        }
        u32::try_from(length).unwrap_or(u32::MAX)
    }
}

/// Nobody is believed for coming first: a session is with whom it was established with.
fn context(owner: &Owner) -> Context<'_> {
    let policy = TrustPolicy { first: FirstContact::Ask, mismatch: OnMismatch::Reject };
    Context { identity: &owner.identity, policy, padding: unpadded, now: NOW }
}

/// Starts a session: with a peer's bundle as the one who writes first, with a handshake as the one who answers.
///
/// # Errors
/// `BAD_BUNDLE`, `BAD_DEVICE_LIST` for a bundle that does not hold together, `MALFORMED_MESSAGE` for other bytes.
#[napi(catch_unwind)]
pub fn establish_session(own: &NativeKeyPair, peer: Uint8Array) -> napi::Result<NativeSession> {
    fits(&peer, MAX_HANDSHAKE)?;
    if is_bundle(&peer) {
        let (address, bundle) = read_bundle(&peer)?;
        let mut session = NativeSession::fresh(&own.0, (address, bundle.user_key().to_vec()))?;
        let decision = session.named()?;
        let started = session
            .conversation
            .start(&context(&own.0), &bundle, Some(&decision), &mut session.rng)
            .map_err(coded)?;
        apply(&mut session.rows, started.effects);
        let part = session.rows.iter().find(|(key, _)| key.kind == RecordKind::PendingHandshake);
        let (id, part) = session.conversation.session_id().zip(part).ok_or_else(panicked)?;
        session.handshake = handshake(id, part.1.expose());
        return Ok(session);
    }
    let found = read_handshake(&peer)
        .map(|(_, part)| (part, peer.to_vec()))
        .and_then(|(part, bytes)| initiator_of(part).map(|who| (who, bytes)));
    let (who, handshake) = found.ok_or_else(|| malformed("the bundle or handshake"))?;
    let mut session = NativeSession::fresh(&own.0, who)?;
    session.handshake = handshake;
    Ok(session)
}

/// Who a handshake says that it is from. Nothing of it is proven before the first message decrypts.
fn initiator_of(part: &[u8]) -> Option<(Address, Vec<u8>)> {
    // Ids, base key and KEM ciphertext stand before device and list.
    const BEFORE: usize = 4 + 5 + 5 + 65 + 1088;
    let mut input = Reader::new(part.get(BEFORE..)?);
    let device = DeviceId::new(input.u32().ok()?).ok()?;
    let list = DeviceList::decode(input.bytes(4_096).ok()?).ok()?;
    (list.app == app().ok()?).then(|| (Address::new(list.user, device), list.user_key.to_vec()))
}

/// Opens what `save` sealed.
///
/// # Errors
/// `WRONG_KEY` for another key or altered bytes, `BAD_PARAMETER` for a key that is not 32 bytes.
#[napi(catch_unwind)]
pub fn restore_session(sealed: Uint8Array, key: Uint8Array) -> napi::Result<NativeSession> {
    saved::open(fits(&sealed, MAX_SAVED)?, &key)
}

#[napi]
impl NativeSession {
    /// What the peer needs to take part; travels with the first message.
    #[napi(getter, catch_unwind)]
    #[must_use]
    pub fn handshake(&self) -> Uint8Array {
        self.handshake.clone().into()
    }

    /// The peer's public key: 65 bytes. Proven once the session is established.
    #[napi(getter, catch_unwind)]
    #[must_use]
    pub fn peer_public_key(&self) -> Uint8Array {
        self.peer_key.clone().into()
    }

    /// Whether messages can be encrypted.
    #[napi(getter, catch_unwind)]
    #[must_use]
    pub fn ready(&self) -> bool {
        self.conversation.is_ready(NOW)
    }

    /// Whether the peer has answered, or has written first.
    #[napi(getter, catch_unwind)]
    #[must_use]
    pub fn established(&self) -> bool {
        self.conversation.is_established()
    }

    /// Encrypts text. Into `out` go where the header begins (u32, little-endian) and the message; the ciphertext follows the header of
    /// 85 bytes. The result is how many bytes that are: if they are more than `out` has, they are in `given`.
    ///
    /// # Errors
    /// `NO_SESSION` for a side that answers and has not got the first message, `MESSAGE_TOO_LARGE` above 64 KiB.
    #[napi(catch_unwind)]
    pub fn encrypt_text(&mut self, text: String, mut out: BufferSlice<'_>) -> napi::Result<u32> {
        self.text(text, &mut out)
    }

    /// Encrypts bytes, as `encrypt_text`.
    ///
    /// # Errors
    /// As `encrypt_text`.
    #[napi(catch_unwind)]
    pub fn encrypt_bytes(&mut self, bytes: &[u8], mut out: BufferSlice<'_>) -> napi::Result<u32> {
        self.encrypt(ContentKind::Bytes, SecretBytes::from_slice(fits(bytes, MAX_PLAINTEXT)?), &mut out)
    }

    /// Decrypts a message that came as a whole. Into `out` go what it is (0 for one that only renews keys, 1 for text, 2 for bytes) and
    /// what it says; the result is as that of `encrypt_text`.
    ///
    /// # Errors
    /// `BUNDLE_USED_UP` for a first message whose handshake is one too many; `DUPLICATE`, `REPLAY`, `UNDECRYPTABLE`, `UNKNOWN_SESSION`, `TOO_FAR_AHEAD`, `MALFORMED_MESSAGE`; nothing changed then.
    #[napi(catch_unwind)]
    pub fn decrypt(&mut self, message: &[u8], mut out: BufferSlice<'_>) -> napi::Result<u32> {
        self.read(message, &mut out)
    }

    /// Decrypts a message that came as header and ciphertext.
    ///
    /// # Errors
    /// As `decrypt`.
    #[napi(catch_unwind)]
    pub fn decrypt_parts(
        &mut self,
        header: &[u8],
        ciphertext: &[u8],
        mut out: BufferSlice<'_>,
    ) -> napi::Result<u32> {
        let plaintext = self.open_parts(header, ciphertext)?;
        self.decrypted(&plaintext, &mut out)
    }

    /// Writes what the last call gave and `out` had no room for; it is kept until it fits.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if there is nothing, or still no room.
    #[napi(catch_unwind)]
    pub fn given(&mut self, mut out: BufferSlice<'_>) -> napi::Result<()> {
        let given = self.given.as_ref().map(SecretBytes::expose);
        let place = given.and_then(|given| out.get_mut(..given.len()).zip(Some(given)));
        let (place, given) = place.ok_or_else(|| argument("there is nothing, or no room for it"))?;
        place.copy_from_slice(given);
        self.given = None;
        Ok(())
    }

    /// An answer that renews keys: due when 50 messages came and none went. The peer decrypts it like a message.
    #[napi(catch_unwind)]
    pub fn take_reply(&mut self) -> Option<Uint8Array> {
        self.reply.take().map(Into::into)
    }

    /// The session, sealed.
    ///
    /// # Errors
    /// `NO_SESSION` for a side that answers and has not got the first message, `BAD_PARAMETER` for a key that is not 32
    /// bytes.
    #[napi(catch_unwind)]
    pub fn save(&mut self, key: Uint8Array) -> napi::Result<Uint8Array> {
        if !self.ready() {
            // What would open the first message is with the key pair: keep that and the handshake.
            return Err(coded(ProtocolError::NoSession(self.peer.clone())));
        }
        let sealed = saved::seal(self, &key)?;
        Ok(sealed.into())
    }
}
