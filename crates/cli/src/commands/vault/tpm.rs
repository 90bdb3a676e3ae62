//! The owner's key in a TPM, which takes a build with the feature `tpm`; its recovery passphrase takes none.

use stvor_crypto::SecretBytes;
use stvor_keys::Passphrase;
use stvor_keys::tpm::TpmRecovery;

use super::Call;
use super::holder::{Holder, Purpose, key};
use crate::commands::doctor::Check;
use crate::failure::Result;
use crate::secrets::SecretText;

fn bytes(text: &SecretText) -> SecretBytes {
    SecretBytes::from_slice(text.expose().as_bytes())
}

impl Call<'_> {
    /// A key in the TPM, opened by this PIN; or by a recovery passphrase, which needs no TPM.
    pub(super) fn in_tpm(&self, secret: &SecretText, purpose: Purpose<'_>) -> Result<Holder> {
        if self.place.tpm_recovery && matches!(purpose, Purpose::Open(_)) {
            let recovery = Passphrase::new(bytes(secret)).map_err(key)?;
            return Ok(Box::new(TpmRecovery::new(recovery)));
        }
        self.sealed(secret, purpose)
    }
}

#[cfg(feature = "tpm")]
mod with {
    use stvor_keys::Passphrase;
    use stvor_keys::tpm::{Pcrs, Place, Tpm, self_test};

    use super::super::holder::{cost, key};
    use super::{Call, Check, Holder, Purpose, Result, SecretText, bytes};
    use crate::failure::Failure;
    use crate::secrets;

    impl Call<'_> {
        /// Where the TPM is, and whether somebody said so.
        fn tpm_place(&self) -> Result<(Place, bool)> {
            let named = self.place.tpm_place.as_ref().or(self.context.settings.vault.tpm_place.as_ref());
            match named {
                Some(named) => Ok((named.parse().map_err(key)?, true)),
                None => Ok((Place::default(), false)),
            }
        }

        /// A key in the TPM, opened by this PIN.
        pub(super) fn sealed(&self, pin: &SecretText, purpose: Purpose<'_>) -> Result<Holder> {
            let mut tpm = Tpm::new(self.tpm_place()?.0, &bytes(pin)).map_err(key)?;
            if let Purpose::Create(wanted, Some(binding)) = purpose {
                if let Some(file) = &binding.recovery_passphrase_file {
                    let text = secrets::private_line(file, "the recovery passphrase")?;
                    let recovery = Passphrase::new(bytes(&text)).and_then(|one| one.with_cost(cost(wanted)));
                    tpm = tpm.with_recovery(recovery.map_err(key)?);
                }
                tpm = Pcrs::new(&binding.tpm_pcrs).and_then(|pcrs| tpm.bound_to(pcrs)).map_err(key)?;
            }
            Ok(Box::new(tpm))
        }

        /// Has the TPM of this machine test itself.
        pub(in super::super) fn tpm_check(&self) -> Check {
            const NAME: &str = "TPM";
            let (place, named) = match self.tpm_place() {
                Ok(place) => place,
                Err(failure) => return Check::failure(NAME, &failure, "see tpm_place under [vault]"),
            };
            if !named && std::fs::metadata("/dev/tpmrm0").is_err() {
                return Check::ok(NAME, "there is none on this machine");
            }
            match self_test(&place) {
                Ok(health) if health.wrong_tries > 0 => {
                    let found = format!(
                        "it works, and counts {} of {} wrong PINs; it forgets one in {} s",
                        health.wrong_tries, health.allowed_tries, health.forgets_after
                    );
                    Check::warning(NAME, found, "if these tries were not yours, find out whose")
                }
                Ok(health) => {
                    Check::ok(NAME, format!("it tested itself and seals keys (made by {})", health.maker))
                }
                Err(error) => {
                    let fix = "may this user open /dev/tpmrm0 (group tss)? see docs/vault/tpm.md";
                    Check::failure(NAME, &Failure::coded(&error), fix)
                }
            }
        }
    }
}

#[cfg(not(feature = "tpm"))]
#[expect(clippy::unused_self, reason = "the other build needs it")]
impl Call<'_> {
    /// This build knows no TPM.
    fn sealed(&self, _: &SecretText, _: Purpose<'_>) -> Result<Holder> {
        Err(crate::failure::Failure::Coded {
            code: "KEY_UNAVAILABLE",
            message: "this stvor was built without TPM support: install libtss2-dev, then `cargo install --locked --path crates/cli --features tpm`; the recovery passphrase, if there is one, opens it without (--tpm-recovery)"
                .to_owned(),
            retryable: false,
        })
    }

    /// Whether there is a TPM that this build can not use.
    pub(super) fn tpm_check(&self) -> Check {
        match std::fs::metadata("/dev/tpmrm0") {
            Ok(_) => {
                Check::ok("TPM", "there is one on this machine; this build can not use it (feature tpm)")
            }
            Err(_) => Check::ok("TPM", "there is none on this machine"),
        }
    }
}
