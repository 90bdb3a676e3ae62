//! Keys sealed by a TPM 2.0: they open on the machine that they were sealed on, with a PIN that the TPM itself counts wrong
//! tries of.
//!
//! For each key that is wrapped, the TPM seals a fresh key-encryption key under its storage root key (the P-256 primary of
//! the owner hierarchy, which it makes anew from its seed each time: nothing stays in the TPM, and nothing has to be
//! removed from it). The sealed object stands in the wrapped key's parameters. The PIN is the object's authorisation and
//! subject to the TPM's dictionary attack protection; it crosses the bus only as an HMAC, and what the TPM unseals only
//! encrypted, both under a session that is salted to the storage root key.
//!
//! Optionally a key is bound to registers (PCRs) too: then it opens only while the machine was started with the same firmware,
//! boot loader and settings. Because an update changes these, such a key always has a recovery passphrase, which opens it
//! without the TPM ([`TpmRecovery`]).
//!
//! `Tpm` needs the feature `tpm`, and with it the libraries of tpm2-tss; the recovery needs neither.

#[cfg(feature = "tpm")]
mod device;
#[cfg(feature = "tpm")]
mod sealed;

use stvor_base::codec::Reader;
#[cfg(any(test, feature = "tpm"))]
use stvor_base::codec::Writer;
use stvor_crypto::Random;

use crate::{DataKey, HolderKind, KeyError, KeyHolder, Passphrase, WrappedKey, limits};

#[cfg(feature = "tpm")]
pub use device::{Health, Place, self_test};
#[cfg(feature = "tpm")]
pub use sealed::Tpm;

const VERSION: u8 = 1;
/// What the recovery's wrap of a key-encryption key is bound to.
const RECOVERY: &[u8] = b"STVOR TPM recovery v1";

/// Registers of a TPM, as bits: bit n is PCR n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pcrs(u32);

impl Pcrs {
    /// These registers of the SHA-256 bank, each 0 to 23.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] for a number that is no register.
    pub fn new(numbers: &[u8]) -> Result<Self, KeyError> {
        numbers.iter().try_fold(Self::default(), |all, number| {
            if *number < limits::MAX_PCRS {
                Ok(Self(all.0 | 1 << number))
            } else {
                Err(KeyError::Malformed {
                    holder: HOLDER,
                    reason: "a register (PCR) has a number from 0 to 23",
                })
            }
        })
    }

    fn from_bits(bits: u32) -> Result<Self, KeyError> {
        if bits >> limits::MAX_PCRS == 0 { Ok(Self(bits)) } else { Err(KeyError::Corrupt("its registers")) }
    }

    /// Their numbers, lowest first.
    pub fn numbers(self) -> impl Iterator<Item = u8> {
        (0..limits::MAX_PCRS).filter(move |number| self.0 >> number & 1 == 1)
    }

    #[cfg(feature = "tpm")]
    fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[cfg(feature = "tpm")]
    fn list(self) -> String {
        self.numbers().map(|number| number.to_string()).collect::<Vec<_>>().join(", ")
    }
}

const HOLDER: &str = "key in the TPM";

/// What the TPM made: the two halves of a sealed object, as the TPM's own structures.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sealed {
    private: Vec<u8>,
    public: Vec<u8>,
}

/// The parameters of a wrapped key: version, registers (u32), private and public half, the recovery's wrap of the key (may
/// be empty).
#[derive(Debug, PartialEq, Eq)]
struct Parameters {
    pcrs: Pcrs,
    sealed: Sealed,
    recovery: Vec<u8>,
}

impl Parameters {
    #[cfg(any(test, feature = "tpm"))]
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(limits::MAX_PARAMETERS);
        out.u8(VERSION).u32(self.pcrs.0).bytes(&self.sealed.private).bytes(&self.sealed.public);
        out.bytes(&self.recovery);
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, KeyError> {
        let mut input = Reader::new(bytes);
        let version = input.u8().map_err(KeyError::codec)?;
        if version != VERSION {
            return Err(KeyError::TooNew { found: version, known: VERSION });
        }
        let pcrs = Pcrs::from_bits(input.u32().map_err(KeyError::codec)?)?;
        let private = input.bytes(limits::MAX_TPM_BLOB).map_err(KeyError::codec)?.to_vec();
        let public = input.bytes(limits::MAX_TPM_BLOB).map_err(KeyError::codec)?.to_vec();
        let recovery = input.bytes(limits::MAX_PARAMETERS).map_err(KeyError::codec)?.to_vec();
        input.finish().map_err(KeyError::codec)?;
        Ok(Self { pcrs, sealed: Sealed { private, public }, recovery })
    }
}

/// Opens what a `Tpm` with a recovery passphrase wrapped, without that TPM. Wraps nothing.
#[derive(Debug)]
pub struct TpmRecovery(Passphrase);

impl TpmRecovery {
    /// With this passphrase.
    #[must_use]
    pub fn new(passphrase: Passphrase) -> Self {
        Self(passphrase)
    }
}

impl KeyHolder for TpmRecovery {
    fn kind(&self) -> HolderKind {
        HolderKind::Tpm
    }

    fn wrap(&self, _: &DataKey, _: &[u8], _: &mut dyn Random) -> Result<WrappedKey, KeyError> {
        let reason = "a recovery passphrase seals nothing of its own; give the PIN";
        Err(KeyError::Malformed { holder: "recovery passphrase", reason })
    }

    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<DataKey, KeyError> {
        let parameters = Parameters::decode(wrapped.parameters_for(HolderKind::Tpm)?)?;
        if parameters.recovery.is_empty() {
            let name = "of this key (none was set when it was sealed)".into();
            return Err(KeyError::Missing { holder: "recovery passphrase", name });
        }
        let kek = self.0.unwrap(&WrappedKey::decode(&parameters.recovery)?, RECOVERY)?;
        wrapped.open(&kek, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_have_the_numbers_0_to_23() {
        let all: Vec<u8> = (0..limits::MAX_PCRS).collect();
        assert_eq!(Pcrs::new(&all).unwrap().numbers().collect::<Vec<_>>(), all);
        assert!(matches!(Pcrs::new(&[limits::MAX_PCRS]), Err(KeyError::Malformed { .. })));
        assert!(Pcrs::from_bits(1 << limits::MAX_PCRS).is_err());
        assert_eq!(Pcrs::new(&[7, 0, 7]).unwrap().numbers().collect::<Vec<_>>(), [0, 7]);
    }

    #[test]
    fn parameters_of_the_longest_object_fit_and_are_read_again() {
        let blob = |length| vec![7; length];
        let sealed = |length| Sealed { private: blob(length), public: blob(100) };
        let make = |length| Parameters { pcrs: Pcrs(1), sealed: sealed(length), recovery: blob(126) };
        let longest = make(limits::MAX_TPM_BLOB);
        assert!(longest.encode().len() <= limits::MAX_PARAMETERS);
        assert_eq!(Parameters::decode(&longest.encode()).unwrap(), longest);
        assert!(Parameters::decode(&make(limits::MAX_TPM_BLOB + 1).encode()).is_err());
        let encoded = longest.encode();
        for length in 0..encoded.len() {
            assert!(Parameters::decode(&encoded[..length]).is_err(), "{length}");
        }
        assert!(Parameters::decode(&[&encoded[..], &[0]].concat()).is_err());
    }
}
