//! Tokens on USB, through the library ctap-hid-fido2. Written to that library's documentation; nobody has run it with a token.

use core::fmt;

use ctap_hid_fido2::fidokey::get_assertion::get_assertion_params::{Extension, GetAssertionArgsBuilder};
use ctap_hid_fido2::fidokey::make_credential::make_credential_params::{
    CredentialSupportedKeyType, Extension as NewExtension, MakeCredentialArgsBuilder,
};
use ctap_hid_fido2::public_key_credential_descriptor::PublicKeyCredentialDescriptor;
use ctap_hid_fido2::public_key_credential_user_entity::PublicKeyCredentialUserEntity;
use ctap_hid_fido2::{FidoKeyHid, FidoKeyHidFactory, LibCfg};
use stvor_crypto::kdf::sha256;
use stvor_crypto::{Random, Secret, SecretBytes, SystemRandom};

use super::{Ask, Assertion, Credential, Fido2Token, Presence, RELYING_PARTY, ctap};
use crate::KeyError;

/// The one FIDO2 token that is plugged in.
pub struct HidToken(FidoKeyHid);

impl fmt::Debug for HidToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HidToken")
    }
}

/// What the library says failed. It has the status that a token answered in words only, its number before its name.
fn failed(error: impl fmt::Display) -> KeyError {
    let text = error.to_string();
    let status = text.split_once(" CTAP2_ERR_PIN_").and_then(|(before, _)| before.rsplit_once("0x"));
    let status = status.and_then(|(_, status)| u8::from_str_radix(status, 16).ok());
    // To 0x33 it comes with the right PIN, too, where a token knows a command in another form.
    match status.filter(|status| *status != 0x33).map(ctap::refused) {
        // Nobody may take it for a command that the token does not have, and give the PIN again: a token counts wrong ones.
        Some(KeyError::Pin(reason)) => KeyError::Pin(reason),
        // It is a part of a sentence here.
        _ => KeyError::Token(text.trim_end_matches('.').to_owned()),
    }
}

fn text(pin: &SecretBytes) -> Result<&str, KeyError> {
    core::str::from_utf8(pin.expose()).map_err(|_| KeyError::Pin("it is not text"))
}

impl HidToken {
    /// Finds the token.
    ///
    /// # Errors
    /// [`KeyError::Token`] when there is none, or more than one.
    pub fn find() -> Result<Self, KeyError> {
        let mut config = LibCfg::init().with_keep_alive_msg_to_stderr(true);
        config.keep_alive_msg = "touch the token".into();
        FidoKeyHidFactory::create(&config).map(Self).map_err(failed)
    }
}

impl Fido2Token for HidToken {
    fn register(&mut self, user: &str, pin: Option<&SecretBytes>) -> Result<Credential, KeyError> {
        let rng = &mut SystemRandom::new();
        let (mut challenge, mut id) = ([0; 32], [0; 16]);
        rng.fill(&mut challenge)?;
        rng.fill(&mut id)?;
        let user = PublicKeyCredentialUserEntity::new(Some(&id), Some(user), Some(user));
        let extensions = [NewExtension::HmacSecret(Some(true))];
        let wanted = MakeCredentialArgsBuilder::new(RELYING_PARTY, &challenge)
            .key_type(CredentialSupportedKeyType::Ecdsa256)
            .extensions(&extensions)
            .user_entity(&user)
            .resident_key();
        let wanted = match pin {
            Some(pin) => wanted.pin(text(pin)?),
            None => wanted.without_pin_and_uv(),
        };
        let made = self.0.make_credential_with_args(&wanted.build()).map_err(failed)?;
        ctap::credential(&made.auth_data)
    }

    fn ask(&mut self, ask: &Ask<'_>) -> Result<Assertion, KeyError> {
        let extensions = [Extension::HmacSecret(Some(*ask.salt))];
        let wanted = GetAssertionArgsBuilder::new(RELYING_PARTY, ask.challenge)
            .credential_id(ask.credential)
            .extensions(&extensions);
        let wanted = match ask.pin {
            Some(pin) => wanted.pin(text(pin)?),
            None => wanted.without_pin_and_uv(),
        };
        let answers = self.0.get_assertion_with_args(&wanted.build()).map_err(failed)?;
        let answer = answers.into_iter().next().ok_or_else(|| failed("it gave no answer"))?;
        let secret = answer.extensions.iter().find_map(|extension| match extension {
            Extension::HmacSecret(Some(secret)) => Some(Secret::new(*secret)),
            _ => None,
        });
        Ok(Assertion {
            secret: secret.ok_or_else(|| failed("it gave no secret"))?,
            presence: Presence { authenticator_data: answer.auth_data, signature: answer.signature },
        })
    }

    fn list(&mut self, pin: &SecretBytes) -> Result<Vec<Vec<u8>>, KeyError> {
        let party = sha256(&[RELYING_PARTY.as_bytes()]);
        let all = self.0.credential_management_enumerate_credentials(Some(text(pin)?), &party);
        let all = all.map_err(failed)?.into_iter();
        Ok(all.map(|one| one.public_key_credential_descriptor.id).filter(|id| !id.is_empty()).collect())
    }

    fn remove(&mut self, credential: &[u8], pin: &SecretBytes) -> Result<(), KeyError> {
        let descriptor =
            PublicKeyCredentialDescriptor { id: credential.to_vec(), ctype: "public-key".into() };
        self.0.credential_management_delete_credential(Some(text(pin)?), descriptor).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_that_a_token_refuses_is_no_failure_of_another_kind() {
        for wrong in [
            "0x31 CTAP2_ERR_PIN_INVALID   PIN Invalid.",
            "response_status err = 0x32 CTAP2_ERR_PIN_BLOCKED PIN Blocked.",
            "0x35 CTAP2_ERR_PIN_NOT_SET No PIN has been set.",
        ] {
            assert!(matches!(failed(wrong), KeyError::Pin(_)), "{wrong}");
        }
        let unknown = "0x01 CTAP1_ERR_INVALID_COMMAND The command is not a valid CTAP command.";
        for other in
            [unknown, "0x2E CTAP2_ERR_NO_CREDENTIALS    No valid credentials provided.", "CTAP2_ERR_PIN_"]
        {
            let said = other.trim_end_matches('.');
            assert!(matches!(failed(other), KeyError::Token(text) if text == said), "{other}");
        }
    }
}
