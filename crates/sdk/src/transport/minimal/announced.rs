//! What stands as `pub` in an announcement: the prekey bundle without one-time keys, as base64url.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Address, KeyBytes, Suite, Timestamp};
use stvor_wire::keys::{DeviceBundle, KemPrekey, SignedPrekey};

const MAGIC: &[u8; 4] = b"STVM";
const VERSION: u8 = 1;
/// Bytes of one part: device lists and keys are shorter.
const LONGEST: usize = 4_096;

/// Bytes as they stand in JSON.
pub(super) fn text_of(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(super) fn bytes_of(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// What somebody announced. Signatures are judged where a session is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Announced {
    pub(super) address: Address,
    pub(super) list: Vec<u8>,
    pub(super) list_signature: [u8; 64],
    pub(super) signed: SignedPrekey,
    /// Of the last resort.
    pub(super) kem: KemPrekey,
}

impl Announced {
    pub(super) fn encode(&self) -> String {
        let mut out = Writer::with_capacity(2_048);
        out.raw(MAGIC).u8(self.signed.key.suite().layout(VERSION));
        self.address.encode(&mut out);
        out.bytes(&self.list).raw(&self.list_signature);
        out.u32(self.signed.id).u64(self.signed.created_at.as_millis());
        out.raw(&self.signed.key).raw(&self.signed.signature);
        out.u32(self.kem.id).u64(self.kem.created_at.as_millis());
        out.bytes(&self.kem.key).raw(&self.kem.signature);
        text_of(&out.finish())
    }

    /// `None` for anything else: other programs announce other things at such a relay.
    pub(super) fn decode(text: &str) -> Option<Self> {
        Self::read(&bytes_of(text)?).ok()
    }

    fn read(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        if input.array()? != MAGIC {
            return Err(CodecError::Value);
        }
        let suite = Suite::of_layout(input.u8()?, VERSION)?;
        let address = Address::decode(&mut input)?;
        let list = input.bytes(LONGEST)?.to_vec();
        let list_signature = *input.array()?;
        let signed = SignedPrekey {
            id: input.u32()?,
            created_at: Timestamp::from_millis(input.u64()?),
            key: KeyBytes::read(&mut input, suite)?,
            signature: *input.array()?,
        };
        let kem = KemPrekey {
            id: input.u32()?,
            created_at: Timestamp::from_millis(input.u64()?),
            key: input.bytes(LONGEST)?.to_vec().into(),
            signature: *input.array()?,
        };
        input.finish()?;
        Ok(Self { address, list, list_signature, signed, kem })
    }

    pub(super) fn bundle(&self) -> DeviceBundle {
        DeviceBundle {
            device: self.address.device,
            signed_prekey: self.signed.clone(),
            one_time: None,
            kem: self.kem.clone(),
            kem_is_last_resort: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stvor_base::{DeviceId, UserId};

    #[test]
    fn what_was_announced_is_read_back_and_anything_else_is_nobodys() {
        let announced = Announced {
            address: Address::new(UserId::new("bob@example.com").unwrap(), DeviceId::FIRST),
            list: vec![1; 300],
            list_signature: [2; 64],
            signed: SignedPrekey {
                id: 7,
                key: [3; 65].into(),
                created_at: Timestamp::from_millis(8),
                signature: [4; 64],
            },
            kem: KemPrekey {
                id: 9,
                key: vec![5; 1_184].into(),
                created_at: Timestamp::from_millis(10),
                signature: [6; 64],
            },
        };
        let text = announced.encode();
        assert_eq!(Announced::decode(&text).as_ref(), Some(&announced));
        let cut = &text[..text.len() - 4];
        for other in ["", "stvor:hello:0", "04ab", cut, &format!("{text}AAAA")] {
            assert_eq!(Announced::decode(other), None);
        }
    }
}
