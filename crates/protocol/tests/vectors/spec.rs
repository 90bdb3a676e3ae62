//! A second implementation of what `docs/specification.md` says, from the primitives up. It calls nothing of the crate
//! under test: where both agree byte for byte, the specification says enough.

use std::collections::HashMap;

use stvor_base::Suite;
use stvor_crypto::aead::Aes256Gcm;
use stvor_crypto::kdf::{hkdf_sha256, hmac_sha256, sha256, sha512};
use stvor_crypto::xchacha::XChaCha20Poly1305;
use stvor_crypto::{Secret, ed25519, p256, x25519};

use super::{label, suite};

// "Suites"

/// The number of the suite, and the bytes of its keys and nonces.
pub fn sizes() -> (u8, usize, usize) {
    match suite() {
        Suite::X25519 => (2, 32, 24),
        _ => (1, 65, 12),
    }
}

/// The first byte of what has another layout in each suite.
pub fn layout() -> u8 {
    match suite() {
        Suite::X25519 => 0x21,
        _ => 1,
    }
}

/// The public key of a private key for signatures.
pub fn signer_of(secret: &[u8; 32]) -> Vec<u8> {
    let secret = Secret::new(*secret);
    match suite() {
        Suite::X25519 => ed25519::SigningKey::from_seed(&secret).unwrap().public().as_bytes().to_vec(),
        _ => p256::SigningKey::from_bytes(&secret).unwrap().public().as_bytes().to_vec(),
    }
}

pub fn sign(secret: &[u8; 32], label: &[u8], message: &[u8]) -> Vec<u8> {
    let secret = Secret::new(*secret);
    match suite() {
        Suite::X25519 => {
            let key = ed25519::SigningKey::from_seed(&secret).unwrap();
            key.sign(&[label, message].concat()).unwrap().to_vec()
        }
        _ => {
            let key = p256::SigningKey::from_bytes(&secret).unwrap();
            key.sign_deterministic(label, message).unwrap().as_bytes().to_vec()
        }
    }
}

pub fn verifies(key: &[u8], label: &[u8], message: &[u8], signature: &[u8]) -> bool {
    match suite() {
        Suite::X25519 => {
            let key = ed25519::PublicKey::from_bytes(key).unwrap();
            key.verify(&[label, message].concat(), signature).is_ok()
        }
        _ => {
            let signature = p256::Signature::from_bytes(signature).unwrap();
            p256::PublicKey::from_bytes(key).unwrap().verify(label, message, &signature).is_ok()
        }
    }
}

pub fn seal(key: [u8; 32], nonce: &[u8], aad: &[u8], bytes: &mut Vec<u8>) {
    let key = Secret::new(key);
    let tag = match suite() {
        Suite::X25519 => {
            XChaCha20Poly1305::new(&key).seal_in_place_separate_tag(nonce.try_into().unwrap(), aad, bytes)
        }
        _ => Aes256Gcm::new(&key).seal_in_place_separate_tag(nonce.try_into().unwrap(), aad, bytes),
    };
    bytes.extend(tag.unwrap());
}

pub fn open(key: [u8; 32], nonce: &[u8], aad: &[u8], bytes: &mut [u8]) -> Vec<u8> {
    let key = Secret::new(key);
    let opened = match suite() {
        Suite::X25519 => XChaCha20Poly1305::new(&key).open(nonce.try_into().unwrap(), aad, bytes),
        _ => Aes256Gcm::new(&key).open(nonce.try_into().unwrap(), aad, bytes),
    };
    opened.unwrap().to_vec()
}

// "Notation"

pub fn lp(value: &[u8]) -> Vec<u8> {
    [&u32::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
}

pub fn address(user: &str, device: u32) -> Vec<u8> {
    [lp(user.as_bytes()), device.to_be_bytes().to_vec()].concat()
}

// "Identities and device lists"

pub struct Device {
    pub id: u32,
    pub signing: Vec<u8>,
    pub agreement: Vec<u8>,
}

pub struct List<'a> {
    pub app: &'a str,
    pub user: &'a str,
    pub user_key: &'a [u8],
    pub version: u64,
    pub previous: [u8; 32],
    pub devices: &'a [Device],
}

pub fn device_list(list: &List<'_>) -> Vec<u8> {
    let mut out = vec![layout()];
    out.extend(lp(list.app.as_bytes()));
    out.extend(lp(list.user.as_bytes()));
    out.extend(list.user_key);
    out.extend(list.version.to_be_bytes());
    out.extend(list.previous);
    out.push(u8::try_from(list.devices.len()).unwrap());
    for device in list.devices {
        out.extend(device.id.to_be_bytes());
        out.extend(&device.signing);
        out.extend(&device.agreement);
    }
    out
}

// "Log-in at a relay"

pub struct Login<'a> {
    pub app: &'a str,
    pub origin: &'a str,
    pub nonce: [u8; 32],
    pub user: &'a str,
    pub device: u32,
    pub time: u64,
    pub server_version: &'a str,
}

pub fn login_transcript(login: &Login<'_>) -> Vec<u8> {
    [
        vec![1],
        lp(login.app.as_bytes()),
        lp(login.origin.as_bytes()),
        login.nonce.to_vec(),
        address(login.user, login.device),
        login.time.to_be_bytes().to_vec(),
        lp(login.server_version.as_bytes()),
    ]
    .concat()
}

pub struct Rotation<'a> {
    pub app: &'a str,
    pub user: &'a str,
    pub number: u64,
    pub old_key: &'a [u8],
    pub new_key: &'a [u8],
    pub time: u64,
}

/// "Rotation".
pub fn rotation_statement(rotation: &Rotation<'_>) -> Vec<u8> {
    [
        &[layout()][..],
        &lp(rotation.app.as_bytes()),
        &lp(rotation.user.as_bytes()),
        &rotation.number.to_be_bytes(),
        rotation.old_key,
        rotation.new_key,
        &rotation.time.to_be_bytes(),
    ]
    .concat()
}

// "Prekeys"

pub struct SignedObject<'a> {
    pub app: &'a str,
    pub user: &'a str,
    pub device: u32,
    pub kem_kind: Option<u8>,
    pub id: u32,
    pub created: u64,
    pub key: &'a [u8],
}

pub fn signed_object(object: &SignedObject<'_>) -> Vec<u8> {
    [
        lp(object.app.as_bytes()),
        address(object.user, object.device),
        object.kem_kind.into_iter().collect(),
        object.id.to_be_bytes().to_vec(),
        object.created.to_be_bytes().to_vec(),
        lp(object.key),
    ]
    .concat()
}

// "Handshake"

#[derive(Clone)]
pub struct End {
    pub user: String,
    pub device: u32,
    pub user_key: Vec<u8>,
    pub signing: Vec<u8>,
    pub agreement: Vec<u8>,
}

impl End {
    fn address(&self) -> Vec<u8> {
        address(&self.user, self.device)
    }

    fn keys(&self) -> Vec<u8> {
        [&self.user_key[..], &self.signing, &self.agreement].concat()
    }
}

#[derive(Clone)]
pub struct Publics {
    pub app: String,
    pub initiator: End,
    pub responder: End,
    pub base_key: Vec<u8>,
    pub signed: (u32, Vec<u8>),
    pub one_time: Option<(u32, Vec<u8>)>,
    pub kem: (u8, u32, Vec<u8>),
    pub kem_ciphertext: Vec<u8>,
}

pub fn transcript(publics: &Publics) -> Vec<u8> {
    let mut out = label("handshake transcript");
    out.push(sizes().0);
    out.extend(lp(publics.app.as_bytes()));
    for end in [&publics.initiator, &publics.responder] {
        out.extend(end.address());
        out.extend(end.keys());
    }
    out.extend(&publics.base_key);
    out.extend(publics.signed.0.to_be_bytes());
    out.extend(&publics.signed.1);
    match &publics.one_time {
        None => out.push(0),
        Some((id, key)) => {
            out.push(1);
            out.extend(id.to_be_bytes());
            out.extend(key);
        }
    }
    let (kind, id, key) = &publics.kem;
    out.push(*kind);
    out.extend(id.to_be_bytes());
    out.extend(key);
    out.extend(&publics.kem_ciphertext);
    out
}

/// Root key and session id from the transcript's hash and the secrets in order: the DHs, then the KEM secret.
pub fn agree(hash: &[u8; 32], secrets: &[[u8; 32]]) -> ([u8; 32], [u8; 16]) {
    let root = hkdf_sha256::<32>(hash, &secrets.concat(), &label("X3DH ML-KEM-768"));
    let id = sha256(&[&label("session id"), hash]);
    (*root.expose(), id[..16].try_into().unwrap())
}

pub fn prekey_part(publics: &Publics, list: &[u8], signature: &[u8]) -> Vec<u8> {
    let one_time = publics.one_time.as_ref().map(|(id, _)| *id);
    [
        publics.signed.0.to_be_bytes().to_vec(),
        vec![u8::from(one_time.is_some())],
        one_time.unwrap_or(0).to_be_bytes().to_vec(),
        vec![publics.kem.0],
        publics.kem.1.to_be_bytes().to_vec(),
        publics.base_key.clone(),
        publics.kem_ciphertext.clone(),
        publics.initiator.device.to_be_bytes().to_vec(),
        lp(list),
        signature.to_vec(),
    ]
    .concat()
}

pub fn handshake_mark(base_key: &[u8]) -> [u8; 32] {
    sha256(&[&label("handshake mark"), base_key])
}

// "Ratchet"

pub fn dh(own: &[u8; 32], remote: &[u8]) -> [u8; 32] {
    let own = Secret::new(*own);
    let secret = match suite() {
        Suite::X25519 => {
            let own = x25519::AgreementKey::from_bytes(&own).unwrap();
            own.agree(&x25519::PublicKey::from_slice(remote).unwrap())
        }
        _ => {
            let own = p256::AgreementKey::from_bytes(&own).unwrap();
            own.agree(&p256::PublicKey::from_bytes(remote).unwrap())
        }
    };
    *secret.unwrap().expose()
}

pub fn public_of(scalar: &[u8; 32]) -> Vec<u8> {
    let secret = Secret::new(*scalar);
    match suite() {
        Suite::X25519 => x25519::AgreementKey::from_bytes(&secret).unwrap().public().as_bytes().to_vec(),
        _ => p256::AgreementKey::from_bytes(&secret).unwrap().public().as_bytes().to_vec(),
    }
}

pub fn root_step(root: &[u8; 32], secret: &[u8; 32]) -> ([u8; 32], [u8; 32]) {
    let both = hkdf_sha256::<64>(root, secret, &label("root chain"));
    let (root, chain) = both.expose().split_at(32);
    (root.try_into().unwrap(), chain.try_into().unwrap())
}

pub fn chain_step(chain: &[u8; 32]) -> ([u8; 32], [u8; 32]) {
    (*hmac_sha256(chain, &[&[1]]).expose(), *hmac_sha256(chain, &[&[2]]).expose())
}

pub fn message_key(seed: &[u8; 32]) -> [u8; 32] {
    *hkdf_sha256::<32>(&[], seed, &label("message key")).expose()
}

// "Associated data"

pub fn associated_data(sender: &End, recipient: &End, clear: &[u8]) -> [u8; 32] {
    let mut out = label("associated data");
    out.push(sizes().0);
    for end in [sender, recipient] {
        out.extend(lp(&end.address()));
        out.extend(lp(&end.keys()));
    }
    out.extend(lp(clear));
    sha256(&[&out])
}

// "Plaintext" and "Padding"

pub fn bucket(length: usize) -> Option<usize> {
    if let Some(size) = [512, 1024, 2048, 4096, 16_384].into_iter().find(|size| length <= *size) {
        return Some(size);
    }
    let mut exponent = 0;
    while length >> (exponent + 1) > 0 {
        exponent += 1;
    }
    let mut bits = 0;
    while exponent >> bits > 0 {
        bits += 1;
    }
    let unit = 1 << (exponent - bits);
    Some(length.div_ceil(unit) * unit).filter(|size| *size <= 72 * 1024)
}

pub fn strict_bucket(length: usize) -> Option<usize> {
    let size = length.max(1).div_ceil(16_384) * 16_384;
    (bucket(size) == Some(size)).then_some(size)
}

pub fn plaintext(content: &[u8], kind: u8, body: &[u8]) -> Vec<u8> {
    [content, &[kind], &lp(body)].concat()
}

pub fn parse_plaintext(padded: &[u8]) -> (Vec<u8>, u8, Vec<u8>) {
    let length = u32::from_be_bytes(padded[17..21].try_into().unwrap()) as usize;
    let body = padded[21..21 + length].to_vec();
    assert!(padded[21 + length..].iter().all(|byte| *byte == 0));
    (padded[..16].to_vec(), padded[16], body)
}

// "Envelope" and "Sessions"

/// One side of one session.
pub struct Session {
    pub id: [u8; 16],
    pub own: End,
    pub peer: End,
    pub root: [u8; 32],
    /// Our newest ratchet scalar.
    pub scalar: Option<[u8; 32]>,
    /// The peer's newest ratchet key.
    pub remote: Option<Vec<u8>>,
    pub sending: Option<([u8; 32], u32)>,
    pub previous: u32,
    /// By ratchet key: the chain key and the next number.
    pub chains: HashMap<Vec<u8>, ([u8; 32], u32)>,
    pub newest: Option<Vec<u8>>,
    pub passed_over: HashMap<(Vec<u8>, u32), [u8; 32]>,
    /// Goes with each message until an answer comes.
    pub prekey_part: Option<Vec<u8>>,
}

/// What a message was sealed with.
pub struct Trace {
    pub root_step: Option<RootStep>,
    pub chain_key: Option<[u8; 32]>,
    pub seed: [u8; 32],
    pub key: [u8; 32],
    pub associated_data: [u8; 32],
    pub clear: Vec<u8>,
    pub padded: Vec<u8>,
}

pub struct RootStep {
    pub scalar: [u8; 32],
    pub secret: [u8; 32],
    pub root: [u8; 32],
}

/// What a sender chooses: a nonce, and a scalar where a root step is due.
pub struct Chosen<'a> {
    pub sent_at: u64,
    pub random: &'a [u8],
}

impl Session {
    pub fn new(id: [u8; 16], root: [u8; 32], (own, peer): (End, End)) -> Self {
        let (scalar, remote, sending, newest, prekey_part) = (None, None, None, None, None);
        let (chains, passed_over) = (HashMap::new(), HashMap::new());
        let previous = 0;
        Self {
            id,
            own,
            peer,
            root,
            scalar,
            remote,
            sending,
            previous,
            chains,
            newest,
            passed_over,
            prekey_part,
        }
    }

    pub fn seal(&mut self, words: &[u8], chosen: &Chosen<'_>) -> (Vec<u8>, Trace) {
        let (nonce, mut rest) = chosen.random.split_at(sizes().2);
        let mut step = None;
        if self.sending.is_none() {
            let (scalar, after) = rest.split_at(32);
            rest = after;
            let mut scalar: [u8; 32] = scalar.try_into().unwrap();
            if suite() == Suite::X25519 {
                // RFC 7748, section 5.
                (scalar[0], scalar[31]) = (scalar[0] & 248, scalar[31] & 127 | 64);
            }
            let secret = dh(&scalar, self.remote.as_ref().unwrap());
            let (root, chain) = root_step(&self.root, &secret);
            (self.root, self.scalar, self.sending) = (root, Some(scalar), Some((chain, 0)));
            step = Some(RootStep { scalar, secret, root });
        }
        assert!(rest.is_empty(), "randomness is left over");
        let (chain, number) = self.sending.unwrap();
        let (seed, next) = chain_step(&chain);
        self.sending = Some((next, number + 1));

        let mut clear = vec![1, sizes().0, if self.prekey_part.is_some() { 2 } else { 1 }];
        clear.extend(self.id);
        clear.extend(chosen.sent_at.to_be_bytes());
        if let Some(part) = &self.prekey_part {
            clear.extend(lp(part));
        }
        clear.extend(public_of(&self.scalar.unwrap()));
        clear.extend(self.previous.to_be_bytes());
        clear.extend(number.to_be_bytes());
        clear.extend(nonce);
        let mut padded = words.to_vec();
        padded.resize(bucket(clear.len() + words.len() + 16).unwrap() - clear.len() - 16, 0);
        let aad = associated_data(&self.own, &self.peer, &clear);
        let key = message_key(&seed);
        let mut sealed = padded.clone();
        seal(key, nonce, &aad, &mut sealed);
        let blob = [&clear[..], &sealed].concat();
        let chain_key = Some(chain);
        (blob, Trace { root_step: step, chain_key, seed, key, associated_data: aad, clear, padded })
    }

    pub fn open(&mut self, blob: &[u8]) -> Trace {
        let (number, key_bytes, nonce_bytes) = sizes();
        let header_bytes = key_bytes + 8 + nonce_bytes;
        assert_eq!((blob[0], blob[1]), (1, number));
        assert_eq!(blob[3..19], self.id);
        let mut at = 27;
        if blob[2] == 2 {
            at += 4 + u32::from_be_bytes(blob[27..31].try_into().unwrap()) as usize;
        } else {
            assert_eq!(blob[2], 1);
        }
        let header = &blob[at..at + header_bytes];
        let (clear, sealed) = blob.split_at(at + header_bytes);
        let ratchet_key = header[..key_bytes].to_vec();
        let number_at = |from: usize| u32::from_be_bytes(header[from..from + 4].try_into().unwrap());
        let (previous, number) = (number_at(key_bytes), number_at(key_bytes + 4));

        let mut step = None;
        if !self.chains.contains_key(&ratchet_key) {
            let scalar = self.scalar.unwrap();
            let secret = dh(&scalar, &ratchet_key);
            let (root, chain) = root_step(&self.root, &secret);
            if let Some(before) = self.newest.replace(ratchet_key.clone()) {
                self.pass_over(&before, previous);
            }
            if let Some((_, sent)) = self.sending.take() {
                self.previous = sent;
            }
            (self.root, self.scalar, self.remote) = (root, None, Some(ratchet_key.clone()));
            self.chains.insert(ratchet_key.clone(), (chain, 0));
            step = Some(RootStep { scalar, secret, root });
        }
        let stored = self.passed_over.remove(&(ratchet_key.clone(), number));
        let (seed, chain_key) = match stored {
            Some(seed) => (seed, None),
            None => {
                self.pass_over(&ratchet_key, number);
                let (chain, next) = self.chains[&ratchet_key];
                assert_eq!(next, number, "a number comes once");
                let (seed, after) = chain_step(&chain);
                self.chains.insert(ratchet_key, (after, number + 1));
                (seed, Some(chain))
            }
        };
        self.prekey_part = None;
        let aad = associated_data(&self.peer, &self.own, clear);
        let key = message_key(&seed);
        let mut opened = sealed.to_vec();
        let padded = open(key, &header[key_bytes + 8..], &aad, &mut opened);
        Trace { root_step: step, chain_key, seed, key, associated_data: aad, clear: clear.to_vec(), padded }
    }

    fn pass_over(&mut self, chain: &[u8], until: u32) {
        let Some((mut key, mut next)) = self.chains.get(chain).copied() else { return };
        while next < until {
            let (seed, after) = chain_step(&key);
            self.passed_over.insert((chain.to_vec(), next), seed);
            (key, next) = (after, next + 1);
        }
        self.chains.insert(chain.to_vec(), (key, next));
    }
}

// "Safety number"

pub fn safety_half(user: &str, user_key: &[u8]) -> [u8; 64] {
    let mut hash = sha512(&[&label("safety number"), &lp(user.as_bytes()), user_key]);
    for _ in 0..5_199 {
        hash = sha512(&[&hash, user_key]);
    }
    hash
}

pub fn safety_digits(half: &[u8; 64]) -> String {
    let group = |at: usize| half[at..at + 5].iter().fold(0_u64, |sum, byte| sum * 256 + u64::from(*byte));
    (0..6).map(|index| format!("{:05}", group(5 * index) % 100_000)).collect()
}

pub fn qr(shower: &[u8; 64], reader: &[u8; 64]) -> Vec<u8> {
    [b"STVORSN\x01", &shower[..32], &reader[..32]].concat()
}
