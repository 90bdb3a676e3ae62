//! X3DH with an ephemeral key and an ML-KEM-768 secret.
//!
//! With initiator A (identity agreement key IKa, ephemeral base key EKa) and responder B (identity IKb, signed prekey SPKb,
//! one-time prekey OPKb if one was given, KEM prekey):
//!
//! ```text
//! transcript = SHA-256(label "handshake transcript" | u8 suite | u32 length, app
//!              | A's address | A's user, signing, agreement key
//!              | B's address | B's user, signing, agreement key
//!              | EKa | u32 id, SPKb | u8 0 or 1, u32 id, OPKb if 1 | u8 kind, u32 id, KEM key | KEM ciphertext)
//! root       = HKDF-SHA256(salt = transcript,
//!              ikm = DH(IKa, SPKb) | DH(EKa, IKb) | DH(EKa, SPKb) | DH(EKa, OPKb) if 1 | KEM secret,
//!              info = label "X3DH ML-KEM-768", 32 bytes)
//! session id = first 16 bytes of SHA-256(label "session id" | transcript)
//! ```
//!
//! An address is u32 length, user, u32 device. B's first ratchet key is SPKb.

use stvor_base::codec::Writer;
use stvor_base::{Address, AppId, KeyBytes};
use stvor_crypto::kdf::{hkdf_sha256, sha256};
use stvor_crypto::random::Random;
use stvor_crypto::suite::{AgreementKey, PublicKey};
use stvor_crypto::{Secret, SecretBytes, kem};

use crate::devices::{PeerKeys, SignedDeviceList};
use crate::effects::{Effects, RecordKey, RecordKind, Records};
use crate::envelope::{PrekeyPartIn, SessionId};
use crate::error::ProtocolError;
use crate::identity::Identity;
use crate::prekey::{self, KemKind, PrekeyBundle};
use crate::profile::{self, KEM_CIPHERTEXT, Profile};

/// Who takes part.
struct Parties<'a> {
    app: &'a AppId,
    initiator: (&'a Address, &'a PeerKeys),
    responder: (&'a Address, &'a PeerKeys),
}

/// Every public value of a handshake.
struct Publics<'a> {
    base_key: KeyBytes,
    signed: (u32, KeyBytes),
    one_time: Option<(u32, KeyBytes)>,
    kem: (KemKind, u32, &'a [u8]),
    kem_ciphertext: &'a [u8; KEM_CIPHERTEXT],
}

fn transcript(profile: &Profile, parties: &Parties<'_>, publics: &Publics<'_>) -> [u8; 32] {
    let mut out = Writer::with_capacity(3_600);
    out.raw(profile.label.transcript).u8(profile.suite.number()).bytes(parties.app.as_str().as_bytes());
    for (address, keys) in [parties.initiator, parties.responder] {
        address.encode(&mut out);
        keys.encode(&mut out);
    }
    out.raw(&publics.base_key).u32(publics.signed.0).raw(&publics.signed.1);
    match publics.one_time {
        Some((id, key)) => out.u8(1).u32(id).raw(&key),
        None => out.u8(0),
    };
    let (kind, id, key) = publics.kem;
    out.u8(kind.to_byte()).u32(id).raw(key).raw(publics.kem_ciphertext);
    sha256(&[out.as_slice()])
}

/// What both sides have after a handshake.
pub(crate) struct Agreed {
    pub(crate) session: SessionId,
    pub(crate) root: Secret<32>,
}

fn agreed(profile: &Profile, transcript: &[u8; 32], secrets: &[Secret<32>]) -> Agreed {
    let mut ikm = SecretBytes::from(vec![0; 32 * secrets.len()]);
    for (slot, secret) in ikm.expose_mut().chunks_exact_mut(32).zip(secrets) {
        slot.copy_from_slice(secret.expose());
    }
    let root = hkdf_sha256(transcript, ikm.expose(), profile.label.handshake);
    let mut session = [0; 16];
    session.copy_from_slice(&sha256(&[profile.label.session_id, transcript])[..16]);
    Agreed { session, root }
}

/// The initiator's result.
pub(crate) struct Initiated {
    pub(crate) agreed: Agreed,
    pub(crate) base_key: KeyBytes,
    pub(crate) part: PrekeyPartIn,
}

/// Starts a handshake with a checked bundle.
pub(crate) fn initiate(
    identity: &Identity,
    bundle: &PrekeyBundle,
    rng: &mut dyn Random,
) -> Result<Initiated, ProtocolError> {
    let own = identity.agreement()?;
    let profile = profile::of(identity.suite());
    let ephemeral = AgreementKey::generate(profile.suite, rng)?;
    let (kind, kem_id, kem_key) = &bundle.kem;
    let (ciphertext, kem_secret) = kem_key.encapsulate(rng)?;
    let (signed_id, signed_key) = &bundle.signed;
    // Our keys are sound: it is the bundle's that agree on nothing, a point of low order for example.
    let refused = |_| ProtocolError::BadBundle("a key of it agrees on nothing");
    let mut secrets = vec![
        own.agree(signed_key).map_err(refused)?,
        ephemeral.agree(&bundle.agreement).map_err(refused)?,
        ephemeral.agree(signed_key).map_err(refused)?,
    ];
    if let Some((_, key)) = &bundle.one_time {
        secrets.push(ephemeral.agree(key).map_err(refused)?);
    }
    secrets.push(kem_secret);

    let base_key = ephemeral.public();
    let parties = Parties {
        app: identity.app(),
        initiator: (identity.address(), identity.keys()),
        responder: (&bundle.address, &bundle.keys),
    };
    let publics = Publics {
        base_key,
        signed: (*signed_id, signed_key.to_bytes()),
        one_time: bundle.one_time.as_ref().map(|(id, key)| (*id, key.to_bytes())),
        kem: (*kind, *kem_id, kem_key.as_bytes()),
        kem_ciphertext: ciphertext.as_bytes(),
    };
    let part = PrekeyPartIn {
        signed_prekey: *signed_id,
        one_time: bundle.one_time.as_ref().map(|(id, _)| *id),
        kem_kind: *kind,
        kem: *kem_id,
        base_key,
        kem_ciphertext: Box::new(*ciphertext.as_bytes()),
        device: identity.address().device,
        list: identity.signed_list().clone(),
    };
    let agreed = agreed(profile, &transcript(profile, &parties, &publics), &secrets);
    Ok(Initiated { agreed, base_key, part })
}

/// The rows that accepting a handshake needs.
pub(crate) fn needs(part: &PrekeyPartIn) -> Vec<RecordKey> {
    let mut keys = vec![
        mark_key(part),
        RecordKey::numbered(RecordKind::SignedPrekey, part.signed_prekey),
        prekey::kem_row(part.kem_kind, part.kem),
    ];
    keys.extend(part.one_time.map(|id| RecordKey::numbered(RecordKind::OneTimePrekey, id)));
    keys
}

/// The mark of a handshake lives as long as the last of the lasting prekeys that it used.
fn mark_key(part: &PrekeyPartIn) -> RecordKey {
    let generation = match part.kem_kind {
        KemKind::OneTime => part.signed_prekey,
        KemKind::LastResort => part.signed_prekey.max(part.kem),
    };
    RecordKey {
        kind: RecordKind::HandshakeMark,
        partition: prekey::mark_partition(generation),
        sort: sha256(&[profile::of(part.base_key.suite()).label.handshake_mark, &part.base_key]).to_vec(),
    }
}

/// The responder's result.
pub(crate) struct Accepted {
    pub(crate) agreed: Agreed,
    pub(crate) peer: PeerKeys,
    pub(crate) list: SignedDeviceList,
    /// The signed prekey: our first ratchet key.
    pub(crate) ratchet_key: AgreementKey,
    /// Marks the handshake and destroys the one-time prekeys that it used.
    pub(crate) effects: Effects,
}

/// Answers a handshake of `peer`.
pub(crate) fn accept(
    identity: &Identity,
    peer: &Address,
    part: &PrekeyPartIn,
    records: &Records,
) -> Result<Accepted, ProtocolError> {
    let mark = mark_key(part);
    if records.get(&mark).is_some() {
        return Err(ProtocolError::Replay);
    }
    if part.device != peer.device {
        return Err(ProtocolError::Undecryptable);
    }
    let profile = profile::of(identity.suite());
    let signed = prekey::signed_key(profile.suite, records, part.signed_prekey)?;
    let one_time = part.one_time.map(|id| prekey::one_time_key(profile.suite, records, id)).transpose()?;
    let kem = prekey::kem_key(records, part.kem_kind, part.kem)?;
    let list = part.list.validate(identity.app(), &peer.user)?;
    let keys = list.keys_of(peer)?;
    identity.speaks(keys.suite())?;

    let opaque = |_| ProtocolError::Undecryptable;
    let theirs = PublicKey::from_bytes(&keys.agreement).map_err(opaque)?;
    let base = PublicKey::from_bytes(&part.base_key).map_err(opaque)?;
    let own = identity.agreement()?;
    let mut secrets = vec![
        signed.agree(&theirs).map_err(opaque)?,
        own.agree(&base).map_err(opaque)?,
        signed.agree(&base).map_err(opaque)?,
    ];
    if let Some(key) = &one_time {
        secrets.push(key.agree(&base).map_err(opaque)?);
    }
    let ciphertext = kem::Ciphertext::from_bytes(&part.kem_ciphertext[..]).map_err(opaque)?;
    secrets.push(kem.decapsulate(&ciphertext).map_err(opaque)?);

    let parties = Parties {
        app: identity.app(),
        initiator: (peer, &keys),
        responder: (identity.address(), identity.keys()),
    };
    let publics = Publics {
        base_key: part.base_key,
        signed: (part.signed_prekey, signed.public()),
        one_time: part.one_time.zip(one_time.as_ref().map(AgreementKey::public)),
        kem: (part.kem_kind, part.kem, kem.public().as_bytes()),
        kem_ciphertext: &part.kem_ciphertext,
    };
    let agreed = agreed(profile, &transcript(profile, &parties, &publics), &secrets);

    let mut effects = Effects::new();
    effects.insert(mark, SecretBytes::from(vec![1]), None);
    if let Some(id) = part.one_time {
        effects.delete(RecordKey::numbered(RecordKind::OneTimePrekey, id));
    }
    if part.kem_kind == KemKind::OneTime {
        effects.delete(prekey::kem_row(KemKind::OneTime, part.kem));
    }
    Ok(Accepted { agreed, peer: keys, list, ratchet_key: signed, effects })
}
