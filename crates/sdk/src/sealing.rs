//! Sealing without our transport: for applications that bring their own.
//!
//! A bundle goes from Bob to Alice by any way, then sealed blobs go both ways by any way. Sessions, trust and once-only
//! delivery are those of every other message.

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Address, UserId};
use stvor_protocol::{KemKind, KemPrekeyIn, OneTimeIn, PrekeyBundleIn, SignedPrekeyIn};

use crate::app::user;
use crate::client::{Client, address_of, list_in};
use crate::content::Content;
use crate::error::{Error, ErrorKind, Result};
use crate::lane::{Command, Unsealed, of_protocol};

const MAGIC: &[u8; 4] = b"STVB";
const SEALED: u8 = 1;
const BUNDLE: u8 = 2;
const VERSION: u8 = 1;

fn head(kind: u8) -> Writer {
    let mut out = Writer::new();
    out.raw(MAGIC).u8(VERSION).u8(kind);
    out
}

fn open_head(bytes: &[u8], kind: u8) -> core::result::Result<Reader<'_>, CodecError> {
    let mut input = Reader::new(bytes);
    if input.array::<4>()? != MAGIC {
        return Err(CodecError::Value);
    }
    match input.u8()? {
        VERSION => {}
        other => return Err(CodecError::Version(other)),
    }
    if input.u8()? != kind {
        return Err(CodecError::Value);
    }
    Ok(input)
}

impl Client {
    /// Encrypts a content for a peer without sending it. Each blob is opened once, in any order.
    ///
    /// A session is needed: [`import_bundle`](Self::import_bundle) starts one; when online, the peer's bundle comes from
    /// the relay.
    ///
    /// # Errors
    /// `NO_SESSION` when there is neither; otherwise as [`send`](Self::send).
    pub async fn seal(&self, peer: impl AsRef<str>, content: impl Into<Content>) -> Result<Vec<u8>> {
        let (core, peer, content) = (self.core(), user(peer)?, content.into());
        let (size, limit) = (content.as_bytes().len(), stvor_protocol::limits::MAX_PLAINTEXT);
        if size > limit {
            return Err(ErrorKind::MessageTooLarge { size, limit }.into());
        }
        if core.is_blocked(&peer) {
            return Err(ErrorKind::PeerBlocked { user: peer }.into());
        }
        let sealed = self.ask(&peer, |reply| Command::Seal(content.clone(), reply)).await;
        let blob = match sealed {
            Err(error) if error.code() == "NO_SESSION" && core.session().is_some() => {
                let bundles = self.fetch(&peer).await?;
                self.ask(&peer, |reply| Command::Start(Box::new(bundles), reply)).await?;
                self.ask(&peer, |reply| Command::Seal(content, reply)).await?
            }
            other => other?,
        };
        let mut out = head(SEALED);
        core.address.encode(&mut out);
        address_of(&peer).encode(&mut out);
        out.raw(&blob);
        Ok(out.finish())
    }

    /// Decrypts what [`seal`](Self::seal) made for this user.
    ///
    /// # Errors
    /// `FORMAT_INVALID` for other bytes, `DUPLICATE` for a blob that was opened before, `UNDECRYPTABLE` for one that was
    /// altered or is for somebody else, `PEER_BLOCKED`, and what the trust policy says.
    pub async fn open(&self, blob: &[u8]) -> Result<Unsealed> {
        let read = || {
            let mut input = open_head(blob, SEALED)?;
            Ok((Address::decode(&mut input)?, Address::decode(&mut input)?, input.rest().to_vec()))
        };
        let (from, to, sealed) = read().map_err(Error::passed::<CodecError>)?;
        if to != self.core().address {
            return Err(of_protocol(stvor_protocol::ProtocolError::Undecryptable));
        }
        if self.core().is_blocked(&from.user) {
            return Err(ErrorKind::PeerBlocked { user: from.user }.into());
        }
        if from != address_of(&from.user) {
            return Err(of_protocol(stvor_protocol::ProtocolError::UnknownSession));
        }
        self.ask(&from.user, |reply| Command::Open(sealed, reply)).await
    }

    /// A bundle with which one peer can start a session with this user without the relay. Give each peer one of their
    /// own: it holds one-time prekeys.
    ///
    /// # Errors
    /// `CLIENT_NOT_READY` after it was closed, or what the store met.
    pub async fn export_bundle(&self) -> Result<Vec<u8>> {
        let core = self.core();
        if core.stop.is_cancelled() {
            // After a rotation of the identity the store is open still, and another's.
            return Err(core.closed_error());
        }
        let me = std::sync::Arc::clone(core);
        // Whoever does not ask any further must not hold up the upkeep of prekeys.
        let exporting = core.tasks.spawn(async move { me.prekeys.for_export(&me).await });
        let export = exporting.await.map_err(|_| Error::not_ready("its bundle was not finished"))??;
        let list = core.identity.signed_list();
        let mut out = head(BUNDLE);
        core.address.encode(&mut out);
        out.bytes(&list.bytes).bytes(&list.signature);
        out.u32(export.signed.id)
            .u64(export.signed.created_at.as_millis())
            .bytes(&export.signed.key)
            .bytes(&export.signed.signature);
        out.u8(u8::from(export.one_time.is_some()));
        if let Some(key) = &export.one_time {
            out.u32(key.id).bytes(&key.key);
        }
        out.u32(export.kem.id)
            .u64(export.kem.created_at.as_millis())
            .bytes(&export.kem.key)
            .bytes(&export.kem.signature);
        Ok(out.finish())
    }

    /// Starts a session with the user whose bundle this is, and says who that is. The trust policy judges the identity.
    ///
    /// # Errors
    /// `FORMAT_INVALID` for other bytes, `BAD_BUNDLE`, `STALE_BUNDLE`, `IDENTITY_CHANGED` and the like.
    pub async fn import_bundle(&self, bytes: &[u8]) -> Result<UserId> {
        let core = self.core();
        let (address, bundle) = read_bundle(bytes).map_err(Error::passed)?;
        if address != address_of(&address.user) || address.user == core.address.user {
            return Err(of_protocol(stvor_protocol::ProtocolError::BadBundle("it is of another device")));
        }
        let bundle = bundle.validate(&core.config.app, &address, core.now()).map_err(of_protocol)?;
        self.ask(&address.user, |reply| Command::Import(Box::new(bundle), reply)).await?;
        Ok(address.user)
    }
}

fn read_bundle(bytes: &[u8]) -> core::result::Result<(Address, PrekeyBundleIn), CodecError> {
    const LONGEST: usize = 4_096;
    let mut input = open_head(bytes, BUNDLE)?;
    let address = Address::decode(&mut input)?;
    let list = list_in(input.bytes(LONGEST)?.to_vec(), input.bytes(LONGEST)?.to_vec());
    let signed = SignedPrekeyIn {
        id: input.u32()?,
        created: input.u64()?,
        public: input.bytes(LONGEST)?.to_vec(),
        signature: input.bytes(LONGEST)?.to_vec(),
    };
    let one_time = if input.bool()? {
        Some(OneTimeIn { id: input.u32()?, public: input.bytes(LONGEST)?.to_vec() })
    } else {
        None
    };
    let kem = KemPrekeyIn {
        kind: KemKind::OneTime,
        id: input.u32()?,
        created: input.u64()?,
        public: input.bytes(LONGEST)?.to_vec(),
        signature: input.bytes(LONGEST)?.to_vec(),
    };
    input.finish()?;
    Ok((address.clone(), PrekeyBundleIn { list, device: address.device.get(), signed, one_time, kem }))
}
