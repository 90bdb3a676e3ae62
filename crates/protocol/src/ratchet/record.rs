//! The stored form of a ratchet: two parts of constant size. The *chains* change with each message, the *root* only with
//! each turn, so a message writes few bytes and does not open the root key.

use stvor_base::KeyBytes;
use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_crypto::suite::{AgreementKey, PublicKey};
use stvor_crypto::{Secret, ShieldKey, Shielded};

use super::{ChainKey, Ratchet, ReceivingChain, RootKeys};
use crate::error::ProtocolError;
use crate::limits::MAX_RECEIVING_CHAINS;
use crate::profile::Profile;

/// Bytes of the chains part.
pub(crate) const CHAINS_BYTES: usize = 1 + 32 + 4 + 4 + MAX_RECEIVING_CHAINS * SLOT;
const SLOT: usize = 1 + 32 + 1 + 32 + 4 + 1 + 4;

/// What the chains part holds.
type ChainsPart = (Option<(ChainKey, u32)>, u32, Vec<ReceivingChain>);

impl Ratchet {
    pub(crate) fn write_chains(&self, out: &mut Writer) {
        let (key, number) = match &self.sending {
            Some((key, number)) => (Some(key), *number),
            None => (None, 0),
        };
        optional(out, key.map(ChainKey::expose));
        out.u32(number).u32(self.previous);
        for slot in 0..MAX_RECEIVING_CHAINS {
            match self.chains.get(slot) {
                None => {
                    out.raw(&[0; SLOT]);
                }
                Some(chain) => {
                    out.u8(1).raw(&chain.id);
                    optional(out, chain.key.as_ref().map(ChainKey::expose));
                    out.u32(chain.next).u8(u8::from(chain.end.is_some())).u32(chain.end.unwrap_or(0));
                }
            }
        }
    }

    pub(crate) fn read(
        root: &mut Reader<'_>,
        chains: &mut Reader<'_>,
        (profile, shield): (&'static Profile, &ShieldKey),
    ) -> Result<Self, CodecError> {
        let keys = read_root(root, profile, shield)?;
        let (sending, previous, chains) = read_chains(chains)?;
        if sending.is_some() && keys.own.is_none() {
            return Err(CodecError::Value);
        }
        Ok(Self { profile, keys, sending, previous, chains })
    }
}

impl RootKeys {
    pub(crate) fn write(
        &self,
        out: &mut Writer,
        (profile, shield): (&Profile, &ShieldKey),
    ) -> Result<(), ProtocolError> {
        self.root.open_with(shield, |root| {
            out.raw(root);
        })?;
        let own = self.own.as_ref().map(AgreementKey::to_bytes);
        optional(out, own.as_ref().map(Secret::expose));
        match &self.remote {
            Some(key) => out.u8(1).raw(&key.to_bytes()),
            None => out.u8(0).raw(&vec![0; profile.suite.key_bytes()]),
        };
        Ok(())
    }
}

fn read_root(input: &mut Reader<'_>, profile: &Profile, shield: &ShieldKey) -> Result<RootKeys, CodecError> {
    let root = Shielded::new_with(input.raw(32)?, shield).map_err(|_| CodecError::Value)?;
    let own = read_secret(input)?
        .map(|scalar| AgreementKey::from_bytes(profile.suite, &scalar))
        .transpose()
        .map_err(|_| CodecError::Value)?;
    let present = input.bool()?;
    let remote = input.raw(profile.suite.key_bytes())?;
    let remote = present.then(|| KeyBytes::try_from(remote)).transpose()?;
    let remote =
        remote.map(|remote| PublicKey::from_bytes(&remote)).transpose().map_err(|_| CodecError::Value)?;
    Ok(RootKeys { root, own, remote })
}

fn read_chains(input: &mut Reader<'_>) -> Result<ChainsPart, CodecError> {
    let key = read_secret(input)?;
    let number = input.u32()?;
    let sending = key.map(|key| (ChainKey::new(key), number));
    let previous = input.u32()?;
    let mut chains = Vec::with_capacity(MAX_RECEIVING_CHAINS);
    for _ in 0..MAX_RECEIVING_CHAINS {
        let present = input.bool()?;
        let id = *input.array()?;
        let key = read_secret(input)?.map(ChainKey::new);
        let next = input.u32()?;
        let (ends, end) = (input.bool()?, input.u32()?);
        if present {
            chains.push(ReceivingChain { id, key, next, end: ends.then_some(end) });
        }
    }
    Ok((sending, previous, chains))
}

fn optional(out: &mut Writer, secret: Option<&[u8; 32]>) {
    match secret {
        Some(secret) => out.u8(1).raw(secret),
        None => out.u8(0).raw(&[0; 32]),
    };
}

fn read_secret(input: &mut Reader<'_>) -> Result<Option<Secret<32>>, CodecError> {
    let (present, bytes) = (input.bool()?, input.raw(32)?);
    if !present {
        return Ok(None);
    }
    Secret::from_slice(bytes).map(Some).map_err(|_| CodecError::Length)
}
