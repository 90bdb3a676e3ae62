//! A key in a key management server that speaks KMIP 1.2 over TLS: the operations Encrypt and Decrypt, and no more.
//!
//! The messages are KMIP's TTLV: tag (3 bytes), type (1), length (4, big-endian), value padded with zeros to 8 bytes. A
//! structure's value is a sequence of such items. Reading is strict: what the answer should not hold is an error.

use crate::{KeyError, KeyService};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::fmt;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;
use stvor_crypto::{Random as _, Secret, SecretBytes, SystemRandom};

/// Bytes of an answer.
pub const MAX_ANSWER: usize = 64 * 1024;

/// How long the server may take for each step.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of an initialisation vector of AES in CBC mode.
const IV: usize = 16;

/// Where the server is and how both sides prove who they are.
#[derive(Clone)]
pub struct KmipServer {
    /// `host:port`; KMIP's port is 5696.
    pub address: String,
    /// The name in the server's certificate.
    pub name: String,
    /// PEM of the authorities that sign servers.
    pub roots: Vec<u8>,
    /// PEM of our certificate and those that signed it.
    pub certificate: Vec<u8>,
    /// PEM of its private key.
    pub private_key: Arc<SecretBytes>,
}

impl fmt::Debug for KmipServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KmipServer").field("address", &self.address).finish_non_exhaustive()
    }
}

/// An AES key in a KMIP server, named by its unique identifier. The key has to be active and usable for Encrypt and
/// Decrypt; it stays in the server.
pub struct KmipKey {
    address: String,
    name: ServerName<'static>,
    config: Arc<rustls::ClientConfig>,
    id: String,
}

impl fmt::Debug for KmipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KmipKey")
            .field("address", &self.address)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

fn malformed(reason: &'static str) -> KeyError {
    KeyError::Malformed { holder: HOLDER, reason }
}

const HOLDER: &str = "key management server";

fn unavailable(reason: impl ToString) -> KeyError {
    KeyError::Unavailable { holder: HOLDER, reason: reason.to_string() }
}

impl KmipKey {
    /// A key of a server. Nothing is dialled.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] when a certificate, key or name can not be used, or the identifier is empty or longer than
    /// 128 bytes.
    pub fn new(server: &KmipServer, id: impl Into<String>) -> Result<Self, KeyError> {
        let id = id.into();
        if id.is_empty() || id.len() > 128 {
            return Err(malformed("the identifier of its key has 1 to 128 bytes"));
        }
        let certificates = |pem: &[u8], reason| {
            let read = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
            read.ok().filter(|found| !found.is_empty()).ok_or_else(|| malformed(reason))
        };
        let mut roots = rustls::RootCertStore::empty();
        for root in certificates(&server.roots, "its root certificates are no PEM")? {
            roots.add(root).map_err(|_| malformed("a root certificate can not be used"))?;
        }
        let own = certificates(&server.certificate, "our certificate is no PEM")?;
        let key = PrivateKeyDer::from_pem_slice(server.private_key.expose())
            .map_err(|_| malformed("the private key of our certificate is no PEM"))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_| malformed("no version of TLS is available"))?
            .with_root_certificates(roots)
            .with_client_auth_cert(own, key)
            .map_err(|_| malformed("certificate and private key do not belong together"))?;
        let name = ServerName::try_from(server.name.clone())
            .map_err(|_| malformed("the name in its certificate can be none"))?;
        Ok(Self { address: server.address.clone(), name, config: Arc::new(config), id })
    }

    /// One question, one answer, one connection: keys are wrapped rarely.
    fn ask(&self, request: &[u8]) -> Result<SecretBytes, KeyError> {
        let addresses = self.address.to_socket_addrs().map_err(unavailable)?;
        let mut last = None;
        let tcp = addresses
            .into_iter()
            .find_map(|address| match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(tcp) => Some(tcp),
                Err(error) => {
                    last = Some(error);
                    None
                }
            })
            .ok_or_else(|| {
                unavailable(last.map_or_else(|| "its name has no address".into(), |e| e.to_string()))
            })?;
        tcp.set_read_timeout(Some(PATIENCE)).map_err(unavailable)?;
        tcp.set_write_timeout(Some(PATIENCE)).map_err(unavailable)?;
        let session = rustls::ClientConnection::new(Arc::clone(&self.config), self.name.clone());
        let mut tls = rustls::StreamOwned::new(session.map_err(unavailable)?, tcp);
        tls.write_all(request).and_then(|()| tls.flush()).map_err(unavailable)?;
        let mut head = [0; 8];
        tls.read_exact(&mut head).map_err(unavailable)?;
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_ANSWER {
            return Err(unavailable("its answer is longer than 64 KiB"));
        }
        let mut answer = SecretBytes::from(vec![0; 8 + length]);
        let (first, rest) = answer.expose_mut().split_at_mut(8);
        first.copy_from_slice(&head);
        tls.read_exact(rest).map_err(unavailable)?;
        tls.conn.send_close_notify();
        let _ = tls.flush();
        Ok(answer)
    }

    fn operate(&self, operation: u32, data: &[u8], iv: &[u8; IV]) -> Result<SecretBytes, KeyError> {
        let request = request(operation, (&self.id, data), iv);
        let answer = self.ask(request.expose())?;
        read_answer(operation, &self.id, answer.expose())
    }
}

impl KeyService for KmipKey {
    fn wrap(&self, key: &Secret<32>) -> Result<Vec<u8>, KeyError> {
        let mut iv = [0; IV];
        SystemRandom::new().fill(&mut iv)?;
        let sealed = self.operate(ENCRYPT, key.expose(), &iv)?;
        Ok([&iv[..], sealed.expose()].concat())
    }

    fn unwrap(&self, wrapped: &[u8]) -> Result<Secret<32>, KeyError> {
        let (iv, sealed) = wrapped
            .split_first_chunk::<IV>()
            .ok_or(KeyError::Corrupt("what the key management server wrapped ends too early"))?;
        let opened = self.operate(DECRYPT, sealed, iv)?;
        // Another key gives bytes of another length, or none: padding does not fit.
        Secret::from_slice(opened.expose()).map_err(|_| KeyError::Wrong { holder: HOLDER })
    }
}

const ENCRYPT: u32 = 0x1f;
const DECRYPT: u32 = 0x20;

const STRUCTURE: u8 = 1;
const INTEGER: u8 = 2;
const ENUMERATION: u8 = 5;
const TEXT: u8 = 7;
const BYTES: u8 = 8;

/// The tags in use, without the first byte, which is 0x42.
mod tag {
    pub(super) const BATCH_COUNT: u16 = 0x000d;
    pub(super) const BATCH_ITEM: u16 = 0x000f;
    pub(super) const BLOCK_CIPHER_MODE: u16 = 0x0011;
    pub(super) const ALGORITHM: u16 = 0x0028;
    pub(super) const PARAMETERS: u16 = 0x002b;
    pub(super) const IV: u16 = 0x003d;
    pub(super) const OPERATION: u16 = 0x005c;
    pub(super) const PADDING: u16 = 0x005f;
    pub(super) const VERSION: u16 = 0x0069;
    pub(super) const MAJOR: u16 = 0x006a;
    pub(super) const MINOR: u16 = 0x006b;
    pub(super) const REQUEST_HEADER: u16 = 0x0077;
    pub(super) const REQUEST: u16 = 0x0078;
    pub(super) const REQUEST_PAYLOAD: u16 = 0x0079;
    pub(super) const ANSWER_HEADER: u16 = 0x007a;
    pub(super) const ANSWER: u16 = 0x007b;
    pub(super) const ANSWER_PAYLOAD: u16 = 0x007c;
    pub(super) const RESULT_MESSAGE: u16 = 0x007d;
    pub(super) const RESULT_REASON: u16 = 0x007e;
    pub(super) const RESULT_STATUS: u16 = 0x007f;
    pub(super) const TIME: u16 = 0x0092;
    pub(super) const ID: u16 = 0x0094;
    pub(super) const DATA: u16 = 0x00c2;
}

fn item(tag: u16, kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    let mut out = Vec::with_capacity(16 + value.len());
    out.push(0x42);
    out.extend_from_slice(&tag.to_be_bytes());
    out.push(kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

fn number(tag: u16, kind: u8, value: u32) -> Vec<u8> {
    item(tag, kind, &value.to_be_bytes())
}

fn request(operation: u32, (id, data): (&str, &[u8]), iv: &[u8; IV]) -> SecretBytes {
    // AES (3) in CBC mode (1) with the padding of PKCS #5 (3).
    let parameters = [
        number(tag::BLOCK_CIPHER_MODE, ENUMERATION, 1),
        number(tag::PADDING, ENUMERATION, 3),
        number(tag::ALGORITHM, ENUMERATION, 3),
    ];
    let payload = [
        item(tag::ID, TEXT, id.as_bytes()),
        item(tag::PARAMETERS, STRUCTURE, &parameters.concat()),
        item(tag::DATA, BYTES, data),
        item(tag::IV, BYTES, iv),
    ];
    let batch = [
        number(tag::OPERATION, ENUMERATION, operation),
        item(tag::REQUEST_PAYLOAD, STRUCTURE, &payload.concat()),
    ];
    let version = [number(tag::MAJOR, INTEGER, 1), number(tag::MINOR, INTEGER, 2)];
    let header = [item(tag::VERSION, STRUCTURE, &version.concat()), number(tag::BATCH_COUNT, INTEGER, 1)];
    let message = [
        item(tag::REQUEST_HEADER, STRUCTURE, &header.concat()),
        item(tag::BATCH_ITEM, STRUCTURE, &batch.concat()),
    ];
    item(tag::REQUEST, STRUCTURE, &message.concat()).into()
}

/// Items that follow each other.
struct Items<'a>(&'a [u8]);

fn strange(what: &'static str) -> KeyError {
    unavailable(format!("it answered with {what}, which is no answer of KMIP 1.2 to what was asked"))
}

impl<'a> Items<'a> {
    /// The next item, which has this tag and type.
    fn take(&mut self, tag: u16, kind: u8) -> Result<&'a [u8], KeyError> {
        let found = self.maybe(tag, kind)?;
        found.ok_or_else(|| strange("another item than expected"))
    }

    /// The next item if it has this tag; then it has this type, too.
    fn maybe(&mut self, tag: u16, kind: u8) -> Result<Option<&'a [u8]>, KeyError> {
        let Some((head, rest)) = self.0.split_first_chunk::<8>() else {
            return if self.0.is_empty() { Ok(None) } else { Err(strange("half an item")) };
        };
        if head[0] != 0x42 || [head[1], head[2]] != tag.to_be_bytes() {
            return Ok(None);
        }
        if head[3] != kind {
            return Err(strange("an item of another type"));
        }
        let length = usize::try_from(u32::from_be_bytes([head[4], head[5], head[6], head[7]])).ok();
        let length = length.filter(|length| *length <= rest.len()).ok_or_else(|| strange("a cut item"))?;
        let (value, rest) = rest.split_at(length);
        let (padding, rest) = rest
            .split_at_checked(length.next_multiple_of(8) - length)
            .ok_or_else(|| strange("a cut item"))?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(strange("a padding that is not zero"));
        }
        self.0 = rest;
        Ok(Some(value))
    }

    fn number(&mut self, tag: u16, kind: u8) -> Result<u32, KeyError> {
        let value = self.take(tag, kind)?;
        value.try_into().map(u32::from_be_bytes).map_err(|_| strange("a number of another length"))
    }

    fn end(self) -> Result<(), KeyError> {
        if self.0.is_empty() { Ok(()) } else { Err(strange("more than one answer")) }
    }
}

fn read_answer(operation: u32, id: &str, bytes: &[u8]) -> Result<SecretBytes, KeyError> {
    let mut all = Items(bytes);
    let mut message = Items(all.take(tag::ANSWER, STRUCTURE)?);
    all.end()?;
    let mut header = Items(message.take(tag::ANSWER_HEADER, STRUCTURE)?);
    let mut version = Items(header.take(tag::VERSION, STRUCTURE)?);
    if version.number(tag::MAJOR, INTEGER)? != 1 {
        return Err(strange("another version"));
    }
    version.number(tag::MINOR, INTEGER)?;
    version.end()?;
    header.take(tag::TIME, 9)?;
    if header.number(tag::BATCH_COUNT, INTEGER)? != 1 {
        return Err(strange("more than one answer"));
    }
    header.end()?;
    let mut batch = Items(message.take(tag::BATCH_ITEM, STRUCTURE)?);
    message.end()?;
    if let Some(answered) = batch.maybe(tag::OPERATION, ENUMERATION)?
        && answered != operation.to_be_bytes()
    {
        return Err(strange("the answer to another operation"));
    }
    if batch.number(tag::RESULT_STATUS, ENUMERATION)? != 0 {
        let reason = batch.number(tag::RESULT_REASON, ENUMERATION)?;
        let words = batch.maybe(tag::RESULT_MESSAGE, TEXT)?.unwrap_or_default();
        // Cryptographic failure, or what servers say instead: general failure.
        if operation == DECRYPT && matches!(reason, 0x0a | 0x100) {
            return Err(KeyError::Wrong { holder: HOLDER });
        }
        let words: String =
            String::from_utf8_lossy(words).chars().filter(|c| !c.is_control()).take(200).collect();
        return Err(unavailable(format!("it refused (reason {reason}): {words}")));
    }
    let mut payload = Items(batch.take(tag::ANSWER_PAYLOAD, STRUCTURE)?);
    batch.end()?;
    if payload.take(tag::ID, TEXT)? != id.as_bytes() {
        return Err(strange("the answer for another key"));
    }
    let data = payload.take(tag::DATA, BYTES)?;
    payload.maybe(tag::IV, BYTES)?;
    payload.end()?;
    Ok(SecretBytes::from_slice(data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use stvor_base::ErrorCode as _;

    fn answer(data: &[u8]) -> Vec<u8> {
        let version = [number(tag::MAJOR, INTEGER, 1), number(tag::MINOR, INTEGER, 2)].concat();
        let header = [
            item(tag::VERSION, STRUCTURE, &version),
            item(tag::TIME, 9, &7_u64.to_be_bytes()),
            number(tag::BATCH_COUNT, INTEGER, 1),
        ]
        .concat();
        let payload = [item(tag::ID, TEXT, b"key"), item(tag::DATA, BYTES, data)].concat();
        let batch = [
            number(tag::OPERATION, ENUMERATION, ENCRYPT),
            number(tag::RESULT_STATUS, ENUMERATION, 0),
            item(tag::ANSWER_PAYLOAD, STRUCTURE, &payload),
        ]
        .concat();
        let message =
            [item(tag::ANSWER_HEADER, STRUCTURE, &header), item(tag::BATCH_ITEM, STRUCTURE, &batch)].concat();
        item(tag::ANSWER, STRUCTURE, &message)
    }

    #[test]
    fn a_whole_answer_is_read_and_every_cut_or_changed_frame_is_refused() {
        let whole = answer(b"sealed");
        assert_eq!(read_answer(ENCRYPT, "key", &whole).unwrap().expose(), b"sealed");
        assert!(read_answer(DECRYPT, "key", &whole).is_err());
        assert!(read_answer(ENCRYPT, "other", &whole).is_err());
        for length in 0..whole.len() {
            assert_eq!(read_answer(ENCRYPT, "key", &whole[..length]).unwrap_err().code(), "KEY_UNAVAILABLE");
        }
        assert!(read_answer(ENCRYPT, "key", &[whole, vec![0; 8]].concat()).is_err());
    }

    #[test]
    fn random_changes_of_an_answer_never_panic() {
        let whole = answer(&[7; 48]);
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut changed = whole.clone();
                changed[at] ^= 1 << bit;
                let _ = read_answer(ENCRYPT, "key", &changed);
            }
        }
    }

    #[test]
    fn a_request_has_the_bytes_of_the_specification() {
        let bytes = request(ENCRYPT, ("1", &[0xaa; 3]), &[0xbb; 16]);
        let expected = "42007801000000d04200770100000038420069010000002042006a0200000004000000010000000042006b0200000004\
            000000020000000042000d0200000004000000010000000042000f010000008842005c05000000040000001f00000000\
            42007901000000704200940700000001310000000000000042002b010000003042001105000000040000000100000000\
            42005f05000000040000000300000000420028050000000400000003000000004200c20800000003aaaaaa0000000000\
            42003d0800000010bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
        let made: String = bytes.expose().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(made, expected);
    }
}
