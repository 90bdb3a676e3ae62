//! The record of a sealed data key.

use crate::{DataKey, HolderKind, KeyError, limits};
use stvor_base::codec::{Reader, Writer};
use stvor_crypto::aead::Aes256Gcm;
use stvor_crypto::kdf::{constant_time_eq, hkdf_sha256, sha256};
use stvor_crypto::{Random, Secret};

const VERSION: u8 = 1;
const LABEL: &[u8] = b"STVOR wrapped key v1";
const CHECKSUM: usize = 16;

/// A data key, sealed for one holder.
///
/// The encoding is: version (1), holder kind, u32 BE length and holder parameters, check value (16), nonce (12), sealed
/// key (48), and the first 16 bytes of SHA-256 over all before. The checksum is not secret: it tells a damaged file from
/// a wrong key. The check value, derived from the holder's key, tells a wrong key before anything is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedKey {
    kind: HolderKind,
    parameters: Vec<u8>,
    check: [u8; 16],
    nonce: [u8; 12],
    sealed: [u8; 48],
}

/// The two keys that come of a holder's key.
struct Derived {
    wrap: Aes256Gcm,
    check: [u8; 16],
    ad: Vec<u8>,
}

fn derive(
    kek: &Secret<32>,
    kind: HolderKind,
    parameters: &[u8],
    context: &[u8],
) -> Result<Derived, KeyError> {
    let mut ad = Writer::with_capacity(64);
    ad.raw(LABEL).u8(VERSION).u8(kind.id()).bytes(parameters).bytes(context);
    let ad = ad.finish();
    let keys = hkdf_sha256::<48>(b"", kek.expose(), &ad);
    let (wrap, check) = keys.expose().split_at(32);
    let check = check.try_into().map_err(|_| KeyError::Corrupt("a derived key has another length"))?;
    Ok(Derived { wrap: Aes256Gcm::new(&Secret::from_slice(wrap)?), check, ad })
}

impl WrappedKey {
    /// Seals `data_key` under a holder's 32-byte key. `parameters` is what the holder needs to find that key again; it
    /// is stored in clear.
    ///
    /// # Errors
    /// [`KeyError::Crypto`].
    pub(crate) fn seal(
        holder: (HolderKind, &[u8]),
        kek: &Secret<32>,
        (data_key, context): (&DataKey, &[u8]),
        rng: &mut dyn Random,
    ) -> Result<Self, KeyError> {
        let (kind, parameters) = holder;
        let derived = derive(kek, kind, parameters, context)?;
        let mut nonce = [0; 12];
        rng.fill(&mut nonce)?;
        // Room for the tag, so that the key in clear is encrypted where it stands and never left behind by growth.
        let mut sealed = Vec::with_capacity(48);
        sealed.extend_from_slice(data_key.expose());
        derived.wrap.seal(&nonce, &derived.ad, &mut sealed)?;
        let sealed = sealed.try_into().map_err(|_| KeyError::Corrupt("the sealed key has another length"))?;
        Ok(Self { kind, parameters: parameters.to_vec(), check: derived.check, nonce, sealed })
    }

    /// Opens with a holder's 32-byte key.
    ///
    /// # Errors
    /// [`KeyError::Wrong`], [`KeyError::Corrupt`].
    pub(crate) fn open(&self, kek: &Secret<32>, context: &[u8]) -> Result<DataKey, KeyError> {
        let derived = derive(kek, self.kind, &self.parameters, context)?;
        if !constant_time_eq(&derived.check, &self.check) {
            return Err(KeyError::Wrong { holder: self.kind.name() });
        }
        // The key comes to lie in clear where it was sealed, and is wiped there.
        let mut sealed = Secret::new(self.sealed);
        let key = derived
            .wrap
            .open(&self.nonce, &derived.ad, sealed.expose_mut())
            .map_err(|_| KeyError::Corrupt("the key is right but the sealed key does not open"))?;
        Ok(Secret::from_slice(key)?)
    }

    /// What kind of key opens this.
    #[must_use]
    pub fn kind(&self) -> HolderKind {
        self.kind
    }

    pub(crate) fn parameters_for(&self, kind: HolderKind) -> Result<&[u8], KeyError> {
        if self.kind != kind {
            return Err(KeyError::OtherHolder { needs: self.kind.name(), given: kind.name() });
        }
        Ok(&self.parameters)
    }

    /// The stored form, at most [`limits::MAX_WRAPPED`] bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(128 + self.parameters.len());
        out.u8(VERSION).u8(self.kind.id()).bytes(&self.parameters);
        out.raw(&self.check).raw(&self.nonce).raw(&self.sealed);
        let sum = sha256(&[out.as_slice()]);
        out.raw(sum.get(..CHECKSUM).unwrap_or_default());
        out.finish()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`KeyError::Corrupt`] for anything that [`WrappedKey::encode`] did not write, [`KeyError::TooNew`].
    pub fn decode(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.len() > limits::MAX_WRAPPED {
            return Err(KeyError::Corrupt("it is too long"));
        }
        let body = bytes.len().checked_sub(CHECKSUM).and_then(|length| bytes.split_at_checked(length));
        let (body, sum) = body.ok_or(KeyError::Corrupt("it ends too early"))?;
        if !sha256(&[body]).starts_with(sum) {
            return Err(KeyError::Corrupt("its checksum does not match"));
        }
        let mut input = Reader::new(body);
        let version = input.u8().map_err(KeyError::codec)?;
        if version != VERSION {
            return Err(KeyError::TooNew { found: version, known: VERSION });
        }
        let kind = HolderKind::from_id(input.u8().map_err(KeyError::codec)?)
            .ok_or(KeyError::Corrupt("its kind of key is not known"))?;
        let parameters = input.bytes(limits::MAX_PARAMETERS).map_err(KeyError::codec)?.to_vec();
        let check = *input.array().map_err(KeyError::codec)?;
        let nonce = *input.array().map_err(KeyError::codec)?;
        let sealed = *input.array().map_err(KeyError::codec)?;
        input.finish().map_err(KeyError::codec)?;
        Ok(Self { kind, parameters, check, nonce, sealed })
    }
}
