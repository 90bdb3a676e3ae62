//! A FIDO2 token in memory: CTAP 2.1 as the specification has it, written apart from the client that it tests. It keeps its
//! credentials like a token with room for a few, counts wrong PINs, and can be told that nobody touches it.

use ciborium::Value;
use stvor_crypto::cbc::{aes256_cbc_decrypt, aes256_cbc_encrypt};
use stvor_crypto::kdf::{hkdf_sha256, hmac_sha256, sha256};
use stvor_crypto::p256::{AgreementKey, PublicKey, SigningKey};
use stvor_crypto::{Random, Secret, SystemRandom};
use stvor_keys::KeyError;
use stvor_keys::fido2::Ctap2Transport;

/// Wrong PINs until the token locks itself.
const RETRIES: u8 = 8;

#[derive(Debug)]
struct Stored {
    id: Vec<u8>,
    party: [u8; 32],
    key: SigningKey,
    /// What hmac-secret is computed with.
    seed: Secret<32>,
    count: u32,
}

/// The token.
#[derive(Debug)]
pub struct SoftAuthenticator {
    pin: Option<[u8; 16]>,
    retries: u8,
    two: bool,
    agreement: AgreementKey,
    token: Secret<32>,
    credentials: Vec<Stored>,
    listing: Vec<Vec<u8>>,
    /// Whether somebody touches it.
    pub touched: bool,
    /// Whether it is plugged in.
    pub present: bool,
}

type Answer = Result<Option<Value>, u8>;

fn int(number: i64) -> Value {
    Value::Integer(number.into())
}

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

fn get(map: &Value, key: &Value) -> Result<Value, u8> {
    let map = map.as_map().ok_or(0x11)?;
    map.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone()).ok_or(0x14)
}

fn entry(map: &Value, name: i64) -> Result<Value, u8> {
    get(map, &int(name))
}

fn bytes(value: &Value) -> Result<&[u8], u8> {
    value.as_bytes().map(Vec::as_slice).ok_or(0x11)
}

fn encode(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    // Writing to memory does not fail.
    let _ = ciborium::into_writer(value, &mut out);
    out
}

impl SoftAuthenticator {
    /// A fresh token that speaks PIN protocol two (or only one), with a PIN or without.
    ///
    /// # Errors
    /// [`KeyError::Crypto`].
    pub fn new(pin: Option<&str>, two: bool) -> Result<Self, KeyError> {
        let rng = &mut SystemRandom::new();
        Ok(Self {
            pin: pin.map(|pin| first_half(&sha256(&[pin.as_bytes()]))),
            retries: RETRIES,
            two,
            agreement: AgreementKey::generate(rng)?,
            token: Secret::random(rng)?,
            credentials: Vec::new(),
            listing: Vec::new(),
            touched: true,
            present: true,
        })
    }

    /// Somebody sets a PIN, or another one: from then on the token gives the secrets of who gave it.
    pub fn set_pin(&mut self, pin: &str) {
        self.pin = Some(first_half(&sha256(&[pin.as_bytes()])));
    }

    /// How many wrong PINs it takes until it locks itself.
    #[must_use]
    pub const fn retries(&self) -> u8 {
        self.retries
    }

    fn info(&self) -> Answer {
        let protocols = if self.two { vec![int(2), int(1)] } else { vec![int(1)] };
        Ok(Some(Value::Map(vec![
            (int(1), Value::Array(vec![text("FIDO_2_1")])),
            (int(2), Value::Array(vec![text("hmac-secret")])),
            (int(3), Value::Bytes(vec![0; 16])),
            (
                int(4),
                Value::Map(vec![
                    (text("rk"), Value::Bool(true)),
                    (text("clientPin"), Value::Bool(self.pin.is_some())),
                    (text("credMgmt"), Value::Bool(true)),
                    (text("pinUvAuthToken"), Value::Bool(self.two)),
                ]),
            ),
            (int(6), Value::Array(protocols)),
        ])))
    }

    fn shared(&self, protocol: i64, key: &Value) -> Result<(Secret<32>, Secret<32>), u8> {
        let mut point = vec![4];
        point.extend_from_slice(bytes(&entry(key, -2)?)?);
        point.extend_from_slice(bytes(&entry(key, -3)?)?);
        let x = self.agreement.agree(&PublicKey::from_bytes(&point).map_err(|_| 0x02)?).map_err(|_| 0x02)?;
        if protocol == 1 {
            return Ok((Secret::new(sha256(&[x.expose()])), Secret::new(sha256(&[x.expose()]))));
        }
        let derive = |info: &[u8]| hkdf_sha256::<32>(&[0; 32], x.expose(), info);
        Ok((derive(b"CTAP2 HMAC key"), derive(b"CTAP2 AES key")))
    }

    fn client_pin(&mut self, request: &Value) -> Answer {
        let protocol = integer(&entry(request, 1)?)?;
        if protocol != 1 && !(self.two && protocol == 2) {
            return Err(0x02);
        }
        match integer(&entry(request, 2)?)? {
            2 => {
                let point = self.agreement.public().as_bytes();
                let cose = Value::Map(vec![
                    (int(1), int(2)),
                    (int(3), int(-25)),
                    (int(-1), int(1)),
                    (int(-2), Value::Bytes(point[1..33].to_vec())),
                    (int(-3), Value::Bytes(point[33..].to_vec())),
                ]);
                Ok(Some(Value::Map(vec![(int(1), cose)])))
            }
            5 | 9 => {
                let pin = self.pin.ok_or(0x35)?;
                if self.retries == 0 {
                    return Err(0x32);
                }
                let (_, aes) = self.shared(protocol, &entry(request, 3)?)?;
                let given = decrypt(protocol, &aes, bytes(&entry(request, 6)?)?)?;
                if given != pin {
                    self.retries -= 1;
                    return Err(if self.retries == 0 { 0x32 } else { 0x31 });
                }
                self.retries = RETRIES;
                let sealed = encrypt(protocol, &aes, self.token.expose())?;
                Ok(Some(Value::Map(vec![(int(2), Value::Bytes(sealed))])))
            }
            _ => Err(0x3e),
        }
    }

    /// The PIN token's word over a message, where there is a PIN.
    fn check_pin(
        &self,
        proof: Result<Value, u8>,
        protocol: Result<Value, u8>,
        message: &[u8],
    ) -> Result<(), u8> {
        if self.pin.is_none() {
            return Ok(());
        }
        let (proof, protocol) = (proof.map_err(|_| 0x36)?, integer(&protocol?)?);
        let mac = hmac_sha256(self.token.expose(), &[message]);
        let expected = if protocol == 1 { &mac.expose()[..16] } else { &mac.expose()[..] };
        if bytes(&proof)? == expected { Ok(()) } else { Err(0x33) }
    }

    fn make(&mut self, request: &Value) -> Answer {
        let hash = entry(request, 1)?;
        self.check_pin(entry(request, 8), entry(request, 9), bytes(&hash)?)?;
        if !self.touched {
            return Err(0x2f);
        }
        let party = get(&entry(request, 2)?, &text("id"))?;
        let party = sha256(&[party.as_text().ok_or(0x11)?.as_bytes()]);
        let wanted = entry(request, 6).and_then(|all| get(&all, &text("hmac-secret")));
        let rng = &mut SystemRandom::new();
        let mut id = vec![0; 48];
        rng.fill(&mut id).map_err(|_| 0x7f)?;
        let key = SigningKey::generate(rng).map_err(|_| 0x7f)?;
        let seed = Secret::random(rng).map_err(|_| 0x7f)?;
        let point = key.public().as_bytes();
        let mut data = party.to_vec();
        // User present, user verified, attested credential data, extensions.
        data.extend([0x01 | 0x40 | 0x80 | if self.pin.is_some() { 4 } else { 0 }, 0, 0, 0, 0]);
        data.extend([0; 16]);
        data.extend([0, 48]);
        data.extend_from_slice(&id);
        data.extend(encode(&Value::Map(vec![
            (int(1), int(2)),
            (int(3), int(-7)),
            (int(-1), int(1)),
            (int(-2), Value::Bytes(point[1..33].to_vec())),
            (int(-3), Value::Bytes(point[33..].to_vec())),
        ])));
        data.extend(encode(&Value::Map(vec![(text("hmac-secret"), Value::Bool(wanted.is_ok()))])));
        self.credentials.push(Stored { id, party, key, seed, count: 0 });
        Ok(Some(Value::Map(vec![
            (int(1), text("none")),
            (int(2), Value::Bytes(data)),
            (int(3), Value::Map(Vec::new())),
        ])))
    }

    fn assert(&mut self, request: &Value) -> Answer {
        let hash = entry(request, 2)?;
        self.check_pin(entry(request, 6), entry(request, 7), bytes(&hash)?)?;
        let party = entry(request, 1)?;
        let party = sha256(&[party.as_text().ok_or(0x11)?.as_bytes()]);
        let allowed = entry(request, 3)?;
        let names = allowed.as_array().ok_or(0x11)?.iter();
        let names: Vec<Value> = names.filter_map(|one| get(one, &text("id")).ok()).collect();
        let known = |stored: &Stored| {
            stored.party == party && names.iter().any(|name| bytes(name).is_ok_and(|id| id == stored.id))
        };
        let at = self.credentials.iter().position(known).ok_or(0x2e_u8)?;
        if !self.touched {
            return Err(0x2f);
        }
        let wanted = get(&entry(request, 4)?, &text("hmac-secret"))?;
        let protocol = entry(&wanted, 4).and_then(|value| integer(&value)).unwrap_or(1);
        let (hmac, aes) = self.shared(protocol, &entry(&wanted, 1)?)?;
        let salts = entry(&wanted, 2)?;
        let mac = hmac_sha256(hmac.expose(), &[bytes(&salts)?]);
        let expected = if protocol == 1 { &mac.expose()[..16] } else { &mac.expose()[..] };
        if bytes(&entry(&wanted, 3)?)? != expected {
            return Err(0x33);
        }
        let salt = decrypt(protocol, &aes, bytes(&salts)?)?;
        let verified = self.pin.is_some();
        let stored = self.credentials.get_mut(at).ok_or(0x2e_u8)?;
        stored.count += 1;
        let output = hmac_sha256(stored.seed.expose(), &[&[u8::from(verified)], &salt]);
        let sealed = encrypt(protocol, &aes, output.expose())?;
        let mut data = party.to_vec();
        data.push(0x01 | 0x80 | if verified { 4 } else { 0 });
        data.extend(stored.count.to_be_bytes());
        data.extend(encode(&Value::Map(vec![(text("hmac-secret"), Value::Bytes(sealed))])));
        let signature =
            stored.key.sign(&data, bytes(&hash)?).and_then(|s| s.to_der()).map_err(|_| 0x7f_u8)?;
        Ok(Some(Value::Map(vec![(int(2), Value::Bytes(data)), (int(3), Value::Bytes(signature))])))
    }

    fn manage(&mut self, request: &Value) -> Answer {
        let command = integer(&entry(request, 1)?)?;
        if command == 5 {
            let id = self.listing.pop().ok_or(0x30_u8)?;
            return Ok(Some(listed(id, None)));
        }
        let parameters = entry(request, 2)?;
        let mut message = vec![u8::try_from(command).map_err(|_| 0x02_u8)?];
        message.extend(encode(&parameters));
        if self.pin.is_none() {
            return Err(0x36);
        }
        self.check_pin(entry(request, 4), entry(request, 3), &message)?;
        match command {
            4 => {
                let party = entry(&parameters, 1)?;
                let party = bytes(&party)?;
                let mut ids: Vec<Vec<u8>> = self
                    .credentials
                    .iter()
                    .filter(|one| one.party == party)
                    .map(|one| one.id.clone())
                    .collect();
                let total = ids.len();
                let first = ids.pop().ok_or(0x2e_u8)?;
                self.listing = ids;
                Ok(Some(listed(first, Some(total))))
            }
            6 => {
                let id = get(&entry(&parameters, 2)?, &text("id"))?;
                let id = bytes(&id)?;
                let before = self.credentials.len();
                self.credentials.retain(|one| one.id != id);
                if self.credentials.len() < before { Ok(None) } else { Err(0x2e) }
            }
            _ => Err(0x3e),
        }
    }
}

fn listed(id: Vec<u8>, total: Option<usize>) -> Value {
    let name = Value::Map(vec![(text("id"), Value::Bytes(id)), (text("type"), text("public-key"))]);
    let mut map = vec![(int(7), name)];
    if let Some(total) = total {
        map.push((int(9), int(i64::try_from(total).unwrap_or(i64::MAX))));
    }
    Value::Map(map)
}

fn first_half(hash: &[u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    half
}

fn integer(value: &Value) -> Result<i64, u8> {
    value.as_integer().and_then(|number| i64::try_from(number).ok()).ok_or(0x11)
}

fn decrypt(protocol: i64, key: &Secret<32>, sealed: &[u8]) -> Result<Vec<u8>, u8> {
    let (iv, rest) = match protocol {
        1 => ([0; 16], sealed),
        _ => sealed.split_first_chunk::<16>().map(|(iv, rest)| (*iv, rest)).ok_or(0x02_u8)?,
    };
    let mut plain = rest.to_vec();
    aes256_cbc_decrypt(key, &iv, &mut plain).map_err(|_| 0x02)?;
    Ok(plain)
}

fn encrypt(protocol: i64, key: &Secret<32>, plain: &[u8]) -> Result<Vec<u8>, u8> {
    let mut iv = [0; 16];
    if protocol == 2 {
        SystemRandom::new().fill(&mut iv).map_err(|_| 0x7f)?;
    }
    let mut sealed = plain.to_vec();
    aes256_cbc_encrypt(key, &iv, &mut sealed).map_err(|_| 0x7f)?;
    Ok(if protocol == 2 { [&iv[..], &sealed].concat() } else { sealed })
}

impl Ctap2Transport for SoftAuthenticator {
    fn exchange(&mut self, request: &[u8]) -> Result<Vec<u8>, KeyError> {
        if !self.present {
            return Err(KeyError::Token("it is not plugged in".into()));
        }
        let (command, body) = request.split_first().unwrap_or((&0, &[]));
        let body = if body.is_empty() { Ok(Value::Null) } else { ciborium::from_reader(body) };
        let answer = match (command, body) {
            (_, Err(_)) => Err(0x12),
            (0x01, Ok(body)) => self.make(&body),
            (0x02, Ok(body)) => self.assert(&body),
            (0x04, Ok(_)) => self.info(),
            (0x06, Ok(body)) => self.client_pin(&body),
            (0x0a, Ok(body)) => self.manage(&body),
            _ => Err(0x01),
        };
        Ok(match answer {
            Ok(None) => vec![0],
            Ok(Some(value)) => [&[0][..], &encode(&value)].concat(),
            Err(status) => vec![status],
        })
    }
}
