//! CTAP 2.1 messages: CBOR maps with small numbers as names, in canonical order.

use ciborium::Value;
use stvor_crypto::kdf::sha256;
use stvor_crypto::{Random, Secret, SecretBytes, SystemRandom};

use super::pin::{Protocol, Shared, authenticate, from_cose};
use super::{Ask, Assertion, Credential, Fido2Token, Presence, RELYING_PARTY};
use crate::{KeyError, limits};

const MAKE_CREDENTIAL: u8 = 0x01;
const GET_ASSERTION: u8 = 0x02;
const GET_INFO: u8 = 0x04;
const CLIENT_PIN: u8 = 0x06;
const CREDENTIAL_MANAGEMENT: u8 = 0x0a;
/// What a PIN token may be used for.
const MAY_MAKE: u8 = 1;
const MAY_ASK: u8 = 2;
const MAY_MANAGE: u8 = 4;

/// Carries one message to a token and its answer back.
pub trait Ctap2Transport: core::fmt::Debug {
    /// Sends a command byte and CBOR; gives a status byte and CBOR.
    ///
    /// # Errors
    /// [`KeyError::Token`] when the token is not there.
    fn exchange(&mut self, request: &[u8]) -> Result<Vec<u8>, KeyError>;
}

impl<T: Ctap2Transport + ?Sized> Ctap2Transport for &mut T {
    fn exchange(&mut self, request: &[u8]) -> Result<Vec<u8>, KeyError> {
        (**self).exchange(request)
    }
}

/// A token behind a transport.
#[derive(Debug)]
pub struct Ctap2<T>(T);

pub(super) fn int(number: i64) -> Value {
    Value::Integer(number.into())
}

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

fn token(reason: &str) -> KeyError {
    KeyError::Token(reason.into())
}

fn strange() -> KeyError {
    token("its answer is not understood")
}

/// The entry of a map with this number as its name.
pub(super) fn entry(map: &Value, name: i64) -> Result<&Value, KeyError> {
    optional(map, name).ok_or_else(strange)
}

fn optional(map: &Value, name: i64) -> Option<&Value> {
    map.as_map()?.iter().find(|(key, _)| *key == int(name)).map(|(_, value)| value)
}

fn named<'a>(map: &'a Value, name: &str) -> Option<&'a Value> {
    map.as_map()?.iter().find(|(key, _)| key.as_text() == Some(name)).map(|(_, value)| value)
}

pub(super) fn bytes(value: &Value) -> Result<&[u8], KeyError> {
    value.as_bytes().map(Vec::as_slice).ok_or_else(strange)
}

fn encode(value: &Value) -> Result<Vec<u8>, KeyError> {
    let mut out = Vec::new();
    ciborium::into_writer(value, &mut out).map_err(|_| token("a message could not be written"))?;
    Ok(out)
}

/// Reads one value and gives what follows it.
fn decode(mut bytes: &[u8]) -> Result<(Value, &[u8]), KeyError> {
    let value = ciborium::de::from_reader_with_recursion_limit(&mut bytes, 16).map_err(|_| strange())?;
    Ok((value, bytes))
}

pub(super) fn refused(status: u8) -> KeyError {
    match status {
        0x31 => KeyError::Pin("it is another one; after a few wrong ones the token locks itself"),
        0x32 => {
            KeyError::Pin("it was wrong too often, and the token is locked; reset it with its maker's tool")
        }
        0x33 | 0x34 => KeyError::Pin("it was wrong too often just now; plug the token out and in"),
        0x35 => KeyError::Pin("it has none; set one with its maker's tool"),
        0x36 => KeyError::Pin("it has one; give it"),
        0x2e => token("it does not hold this credential"),
        0x27 => token("the touch was refused"),
        0x2f | 0x3a => token("it was not touched in time"),
        0x28 => token("it has no room for another credential"),
        0x01 | 0x3e => token("it does not know this command"),
        other => KeyError::Token(format!("it answers with the status {other:#04x}")),
    }
}

/// What a token says about itself.
struct Info {
    protocol: Protocol,
    hmac_secret: bool,
    has_pin: bool,
    permissions: bool,
    manages: bool,
}

/// A token's word that the PIN was right.
struct PinToken {
    protocol: Protocol,
    key: SecretBytes,
}

impl PinToken {
    fn authenticate(&self, message: &[u8]) -> Value {
        Value::Bytes(authenticate(self.protocol, self.key.expose(), message))
    }
}

impl<T: Ctap2Transport> Ctap2<T> {
    /// A token behind this transport.
    pub fn new(transport: T) -> Self {
        Self(transport)
    }

    fn call(&mut self, command: u8, parameters: Option<Vec<(Value, Value)>>) -> Result<Value, KeyError> {
        let mut request = vec![command];
        if let Some(parameters) = parameters {
            request.extend(encode(&Value::Map(parameters))?);
        }
        let answer = self.0.exchange(&request)?;
        if answer.len() > limits::MAX_CTAP_MESSAGE {
            return Err(strange());
        }
        match answer.split_first() {
            Some((0, [])) => Ok(Value::Null),
            Some((0, body)) => match decode(body)? {
                (value, []) => Ok(value),
                _ => Err(strange()),
            },
            Some((status, _)) => Err(refused(*status)),
            None => Err(strange()),
        }
    }

    fn info(&mut self) -> Result<Info, KeyError> {
        let info = self.call(GET_INFO, None)?;
        let listed = |name: i64| optional(&info, name).and_then(Value::as_array).cloned().unwrap_or_default();
        let option = |name: &str| {
            optional(&info, 4).and_then(|all| named(all, name)).and_then(Value::as_bool).unwrap_or(false)
        };
        Ok(Info {
            protocol: if listed(6).contains(&int(2)) { Protocol::Two } else { Protocol::One },
            hmac_secret: listed(2).contains(&text("hmac-secret")),
            has_pin: option("clientPin"),
            permissions: option("pinUvAuthToken"),
            manages: option("credMgmt"),
        })
    }

    fn agree(&mut self, protocol: Protocol) -> Result<Shared, KeyError> {
        let answer = self.call(CLIENT_PIN, Some(vec![(int(1), int(protocol as i64)), (int(2), int(2))]))?;
        Shared::agree(protocol, entry(&answer, 1)?)
    }

    /// Trades the PIN for a PIN token.
    fn pin_token(&mut self, info: &Info, pin: &SecretBytes, may: u8) -> Result<PinToken, KeyError> {
        let shared = self.agree(info.protocol)?;
        let hash = Secret::new(sha256(&[pin.expose()]));
        let half = hash.expose().get(..16).unwrap_or_default();
        let sealed = Value::Bytes(shared.encrypt(half)?);
        let mut parameters = vec![
            (int(1), int(info.protocol as i64)),
            (int(2), int(if info.permissions { 9 } else { 5 })),
            (int(3), shared.public.clone()),
            (int(6), sealed),
        ];
        if info.permissions {
            parameters.push((int(9), int(may.into())));
            parameters.push((int(10), text(RELYING_PARTY)));
        }
        let answer = self.call(CLIENT_PIN, Some(parameters))?;
        let key = shared.decrypt(bytes(entry(&answer, 2)?)?)?;
        Ok(PinToken { protocol: info.protocol, key })
    }

    /// A PIN token. A token keeps two secrets of a credential, one for who gave the PIN and one for who did not: what was
    /// enrolled without one would not open any more once somebody sets it, so there has to be one from the beginning.
    fn unlocked(&mut self, pin: Option<&SecretBytes>, may: u8) -> Result<(Info, PinToken), KeyError> {
        let info = self.info()?;
        if !info.hmac_secret {
            return Err(token("it does not know hmac-secret, so it can not keep a key"));
        }
        let unlocked = match (info.has_pin, pin) {
            (false, _) => return Err(KeyError::Pin("it has none; set one with its maker's tool")),
            (true, None) => return Err(KeyError::Pin("it has one; give it")),
            (true, Some(pin)) => self.pin_token(&info, pin, may)?,
        };
        Ok((info, unlocked))
    }

    /// A command of credential management.
    fn manage(
        &mut self,
        pin: &PinToken,
        command: u8,
        parameters: Option<Vec<(Value, Value)>>,
    ) -> Result<Value, KeyError> {
        let mut message = vec![command];
        let mut request = vec![(int(1), int(command.into()))];
        if let Some(parameters) = parameters {
            let parameters = Value::Map(parameters);
            message.extend(encode(&parameters)?);
            request.push((int(2), parameters));
        }
        request.push((int(3), int(pin.protocol as i64)));
        request.push((int(4), pin.authenticate(&message)));
        self.call(CREDENTIAL_MANAGEMENT, Some(request))
    }

    fn manager(&mut self, pin: &SecretBytes) -> Result<PinToken, KeyError> {
        match self.unlocked(Some(pin), MAY_MANAGE)? {
            (Info { manages: false, .. }, _) => Err(token("it can not list or remove credentials")),
            (_, pin) => Ok(pin),
        }
    }
}

fn descriptor(credential: &[u8]) -> Value {
    Value::Map(vec![(text("id"), Value::Bytes(credential.to_vec())), (text("type"), text("public-key"))])
}

/// Reads the credential out of authenticator data (WebAuthn, section 6.1).
pub(super) fn credential(data: &[u8]) -> Result<Credential, KeyError> {
    let (head, rest) = data.split_at_checked(37).ok_or_else(strange)?;
    let (party, flags) = head.split_at_checked(32).ok_or_else(strange)?;
    // Attested credential data is there, and the user was verified.
    let attested = flags.first().is_some_and(|flags| flags & 0x44 == 0x44);
    if party != sha256(&[RELYING_PARTY.as_bytes()]) || !attested {
        return Err(strange());
    }
    let (_aaguid, rest) = rest.split_at_checked(16).ok_or_else(strange)?;
    let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(strange)?;
    let length = usize::from(u16::from_be_bytes(*length));
    let (id, rest) = rest.split_at_checked(length).ok_or_else(strange)?;
    if id.is_empty() || id.len() > limits::MAX_CREDENTIAL_ID {
        return Err(strange());
    }
    let (key, extensions) = decode(rest)?;
    let (made, _) = decode(extensions)?;
    if named(&made, "hmac-secret") != Some(&Value::Bool(true)) {
        return Err(token("it made a credential without hmac-secret"));
    }
    Ok(Credential { id: id.to_vec(), public: from_cose(&key)? })
}

impl<T: Ctap2Transport> Fido2Token for Ctap2<T> {
    fn register(&mut self, user: &str, pin: Option<&SecretBytes>) -> Result<Credential, KeyError> {
        let (_, pin) = self.unlocked(pin, MAY_MAKE)?;
        let rng = &mut SystemRandom::new();
        let (mut hash, mut id) = ([0; 32], [0; 16]);
        rng.fill(&mut hash)?;
        rng.fill(&mut id)?;
        let mut request = vec![
            (int(1), Value::Bytes(hash.to_vec())),
            (
                int(2),
                Value::Map(vec![(text("id"), text(RELYING_PARTY)), (text("name"), text("STVOR vault"))]),
            ),
            (
                int(3),
                Value::Map(vec![
                    (text("id"), Value::Bytes(id.to_vec())),
                    (text("name"), text(user)),
                    (text("displayName"), text(user)),
                ]),
            ),
            (
                int(4),
                Value::Array(vec![Value::Map(vec![
                    (text("alg"), int(-7)),
                    (text("type"), text("public-key")),
                ])]),
            ),
            (int(6), Value::Map(vec![(text("hmac-secret"), Value::Bool(true))])),
            // On the token itself, so that its list is complete and it can be removed there.
            (int(7), Value::Map(vec![(text("rk"), Value::Bool(true))])),
        ];
        request.push((int(8), pin.authenticate(&hash)));
        request.push((int(9), int(pin.protocol as i64)));
        let answer = self.call(MAKE_CREDENTIAL, Some(request))?;
        credential(bytes(entry(&answer, 2)?)?)
    }

    fn ask(&mut self, ask: &Ask<'_>) -> Result<Assertion, KeyError> {
        let hash = sha256(&[ask.challenge]);
        let (info, pin) = self.unlocked(ask.pin, MAY_ASK)?;
        let shared = self.agree(info.protocol)?;
        let salt = shared.encrypt(ask.salt)?;
        let mut wanted = vec![
            (int(1), shared.public.clone()),
            (int(2), Value::Bytes(salt.clone())),
            (int(3), Value::Bytes(shared.authenticate(&salt))),
        ];
        if shared.protocol == Protocol::Two {
            wanted.push((int(4), int(2)));
        }
        let mut request = vec![
            (int(1), text(RELYING_PARTY)),
            (int(2), Value::Bytes(hash.to_vec())),
            (int(3), Value::Array(vec![descriptor(ask.credential)])),
            (int(4), Value::Map(vec![(text("hmac-secret"), Value::Map(wanted))])),
        ];
        request.push((int(6), pin.authenticate(&hash)));
        request.push((int(7), int(pin.protocol as i64)));
        let answer = self.call(GET_ASSERTION, Some(request))?;
        let (data, signature) = (bytes(entry(&answer, 2)?)?, bytes(entry(&answer, 3)?)?);
        let extensions = data.get(37..).ok_or_else(strange)?;
        if data.get(32).is_none_or(|flags| flags & 0x80 == 0) {
            return Err(token("it gave no secret"));
        }
        let (extensions, _) = decode(extensions)?;
        let sealed = named(&extensions, "hmac-secret").ok_or_else(|| token("it gave no secret"))?;
        let secret = shared.decrypt(bytes(sealed)?)?;
        Ok(Assertion {
            secret: Secret::from_slice(secret.expose()).map_err(|_| strange())?,
            presence: Presence { authenticator_data: data.to_vec(), signature: signature.to_vec() },
        })
    }

    fn list(&mut self, pin: &SecretBytes) -> Result<Vec<Vec<u8>>, KeyError> {
        let pin = self.manager(pin)?;
        let party = Value::Bytes(sha256(&[RELYING_PARTY.as_bytes()]).to_vec());
        let first = match self.manage(&pin, 4, Some(vec![(int(1), party)])) {
            Err(KeyError::Token(reason)) if reason == "it does not hold this credential" => {
                return Ok(Vec::new());
            }
            first => first?,
        };
        let total = entry(&first, 9)?.as_integer().and_then(|total| usize::try_from(total).ok());
        let total = total.filter(|total| *total <= limits::MAX_CREDENTIALS).ok_or_else(strange)?;
        let id = |answer: &Value| {
            let id = named(entry(answer, 7)?, "id").ok_or_else(strange)?;
            bytes(id).map(<[u8]>::to_vec)
        };
        let mut all = vec![id(&first)?];
        while all.len() < total {
            let next = self.call(CREDENTIAL_MANAGEMENT, Some(vec![(int(1), int(5))]))?;
            all.push(id(&next)?);
        }
        Ok(all)
    }

    fn remove(&mut self, credential: &[u8], pin: &SecretBytes) -> Result<(), KeyError> {
        let pin = self.manager(pin)?;
        self.manage(&pin, 6, Some(vec![(int(2), descriptor(credential))])).map(|_| ())
    }
}
