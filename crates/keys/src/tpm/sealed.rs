//! The key holder that asks the TPM.

use core::fmt;
use std::sync::{Mutex, PoisonError};

use stvor_crypto::kdf::sha256;
use stvor_crypto::{Random, Secret, SecretBytes};

use super::{HOLDER, Parameters, Pcrs, Place, RECOVERY, device};
use crate::{DataKey, HolderKind, KeyError, KeyHolder, Passphrase, WrappedKey, limits};

/// A key in a TPM, opened by a PIN.
///
/// Each operation talks to the TPM once and gives the PIN once: a wrong one is never tried again, because the TPM counts.
#[derive(Debug)]
pub struct Tpm {
    place: Place,
    pin: Secret<32>,
    pcrs: Pcrs,
    recovery: Option<Passphrase>,
    opened: Mutex<Opened>,
}

/// What was opened last with a recovery: what is sealed in its place has the same recovery and registers.
#[derive(Default)]
struct Opened(Option<(Secret<32>, Pcrs, Vec<u8>)>);

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened")
    }
}

impl Tpm {
    /// A key in the TPM at `place`. Whether that is there is seen when it is used.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] for an empty PIN, or one of more than [`limits::MAX_PASSPHRASE`] bytes.
    pub fn new(place: Place, pin: &SecretBytes) -> Result<Self, KeyError> {
        let malformed = |reason| KeyError::Malformed { holder: "PIN of the TPM", reason };
        if pin.is_empty() {
            return Err(malformed("it is empty"));
        }
        if pin.len() > limits::MAX_PASSPHRASE {
            return Err(malformed("it is longer than 4096 bytes"));
        }
        // An authorisation has 32 bytes at most; the TPM, not the hash, makes guesses slow.
        let pin = Secret::new(sha256(&[b"STVOR TPM PIN v1", pin.expose()]));
        Ok(Self { place, pin, pcrs: Pcrs::default(), recovery: None, opened: Mutex::default() })
    }

    /// What is wrapped from now on opens with this passphrase too, without the TPM.
    #[must_use]
    pub fn with_recovery(mut self, recovery: Passphrase) -> Self {
        self.recovery = Some(recovery);
        self
    }

    /// What is wrapped from now on opens only while these registers are as they are now.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] without a recovery passphrase: the next update of the firmware would lock its owner out.
    pub fn bound_to(mut self, pcrs: Pcrs) -> Result<Self, KeyError> {
        if self.recovery.is_none() && !pcrs.is_empty() {
            let reason = "bound to registers (PCRs) it needs a recovery passphrase: an update of the firmware changes them";
            return Err(KeyError::Malformed { holder: HOLDER, reason });
        }
        self.pcrs = pcrs;
        Ok(self)
    }
}

impl Tpm {
    fn keep(&self, kek: Secret<32>, pcrs: Pcrs, recovery: Vec<u8>) {
        let kept = (!recovery.is_empty()).then_some((kek, pcrs, recovery));
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).0 = kept;
    }
}

impl KeyHolder for Tpm {
    fn kind(&self) -> HolderKind {
        HolderKind::Tpm
    }

    fn wrap(&self, data_key: &DataKey, context: &[u8], rng: &mut dyn Random) -> Result<WrappedKey, KeyError> {
        let opened = match self.recovery {
            None => self.opened.lock().unwrap_or_else(PoisonError::into_inner).0.take(),
            Some(_) => None,
        };
        let (kek, pcrs, recovery) = match (opened, &self.recovery) {
            (Some(kept), _) => kept,
            (None, Some(recovery)) => {
                let kek = Secret::random(rng)?;
                let wrapped = recovery.wrap(&kek, RECOVERY, rng)?.encode();
                (kek, self.pcrs, wrapped)
            }
            (None, None) => (Secret::random(rng)?, self.pcrs, Vec::new()),
        };
        let sealed = device::seal(&self.place, (&kek, &self.pin), pcrs);
        let parameters =
            sealed.map(|sealed| Parameters { pcrs, sealed, recovery: recovery.clone() }.encode());
        let wrapped = parameters.and_then(|parameters| {
            if parameters.len() > limits::MAX_PARAMETERS {
                let reason = "it made a larger object than is known of TPMs".into();
                return Err(KeyError::Unavailable { holder: HOLDER, reason });
            }
            WrappedKey::seal((HolderKind::Tpm, &parameters), &kek, (data_key, context), rng)
        });
        // Also when it failed: a second try must not go without the recovery.
        self.keep(kek, pcrs, recovery);
        wrapped
    }

    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<DataKey, KeyError> {
        let parameters = Parameters::decode(wrapped.parameters_for(HolderKind::Tpm)?)?;
        let kek = device::unseal(&self.place, (&parameters.sealed, &self.pin), parameters.pcrs)?;
        let opened = wrapped.open(&kek, context);
        self.keep(kek, parameters.pcrs, parameters.recovery);
        opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_has_1_to_4096_bytes_and_registers_need_a_recovery() {
        let place = || "device:/dev/null".parse::<Place>().unwrap();
        let pin = |length| SecretBytes::from(vec![b'1'; length]);
        assert!(Tpm::new(place(), &pin(0)).is_err());
        assert!(Tpm::new(place(), &pin(limits::MAX_PASSPHRASE)).is_ok());
        assert!(Tpm::new(place(), &pin(limits::MAX_PASSPHRASE + 1)).is_err());
        let tpm = Tpm::new(place(), &pin(4)).unwrap();
        assert!(!format!("{tpm:?}").contains("1111"));
        assert!(tpm.bound_to(Pcrs::new(&[7]).unwrap()).is_err());
    }
}
