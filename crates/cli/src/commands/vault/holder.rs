//! The owner's secrets: from a file, a descriptor, a keyfile, the keyring or a prompt, never from the command line.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use stvor_crypto::{SecretBytes, SystemRandom};
use stvor_keys::{HolderKind, KeyError, KeyHolder, Keyfile, Passphrase, PassphraseCost, TokenRecovery};

use super::{Call, token};
use crate::args::{Cost, PassphraseChange, ProfileSecret, SecondSecret, TokenHow, TpmBinding, VaultInit};
use crate::failure::{Failure, Result};
use crate::secrets;

/// A secret that can wrap and unwrap keys.
pub(super) type Holder = Box<dyn KeyHolder>;

/// Where the secret comes from.
enum Source {
    Text(secrets::SecretText),
    Keyfile(PathBuf),
    Keyring,
    Token(TokenHow),
    Prompt,
}

/// What the secret is for.
#[derive(Clone, Copy)]
pub(super) enum Purpose<'a> {
    /// To open what is there. With what kind of secret that is, where it is known.
    Open(Option<HolderKind>),
    /// To make something: a prompt asks twice, a keyfile that is not there is made. In the TPM, or by a token, where a binding is
    /// given.
    Create(Cost, Option<&'a TpmBinding>),
}

impl Purpose<'_> {
    /// Whether the secret is the PIN of a key in the TPM.
    fn in_tpm(self) -> bool {
        matches!(self, Self::Open(Some(HolderKind::Tpm)) | Self::Create(_, Some(_)))
    }
}

pub(super) fn cost(cost: Cost) -> PassphraseCost {
    let (memory_kib, iterations) = match cost {
        Cost::Sensitive => (1024 * 1024, 4),
        Cost::Moderate => (256 * 1024, 3),
        Cost::Interactive => (64 * 1024, 3),
    };
    PassphraseCost { memory_kib, iterations, parallelism: 1 }
}

pub(super) fn key(error: KeyError) -> Failure {
    Failure::coded(&error)
}

impl Call<'_> {
    fn owner_source(&self) -> Result<Source> {
        let (shared, vault) = (self.context.shared, &self.context.settings.vault);
        if let Some(how) = &self.place.owner_token {
            return Ok(Source::Token(how.clone()));
        }
        if let Some(fd) = shared.passphrase_fd {
            return secrets::from_descriptor(fd, "the passphrase").map(Source::Text);
        }
        if let Some(file) = &shared.passphrase_file {
            return secrets::private_line(file, "the passphrase").map(Source::Text);
        }
        if let Some(file) = &shared.keyfile {
            return Ok(Source::Keyfile(file.clone()));
        }
        if shared.os_keyring {
            return Ok(Source::Keyring);
        }
        if shared.ask_passphrase {
            return Ok(Source::Prompt);
        }
        match (&vault.passphrase_file, &vault.keyfile) {
            (Some(file), _) => secrets::private_line(file, "the passphrase").map(Source::Text),
            (None, Some(file)) => Ok(Source::Keyfile(file.clone())),
            (None, None) if vault.os_keyring => Ok(Source::Keyring),
            (None, None) => Ok(Source::Prompt),
        }
    }

    /// The owner's secret, to open a vault whose key is wrapped by `kind`.
    pub(super) fn owner(&self, kind: Option<HolderKind>) -> Result<Holder> {
        let named = self.place.tpm || self.place.tpm_recovery;
        let kind = kind.or(named.then_some(HolderKind::Tpm));
        let kind = kind.or(self.place.token_recovery.then_some(HolderKind::Token));
        let what = match kind {
            Some(HolderKind::Tpm) if self.place.tpm_recovery => "the recovery passphrase of the vault",
            Some(HolderKind::Tpm) => "the PIN of the vault's key in the TPM",
            Some(HolderKind::Token) => "the recovery passphrase of the vault",
            _ => "the vault's passphrase",
        };
        self.holder(self.owner_source()?, (what, Purpose::Open(kind)))
    }

    /// The owner's secret, for a vault that is made.
    pub(super) fn new_owner(&self, args: &VaultInit) -> Result<Holder> {
        let binding = (self.place.tpm || self.place.owner_token.is_some()).then_some(&args.binding);
        if binding.is_none() && args.binding.recovery_passphrase_file.is_some() {
            return Err(Failure::Usage("--recovery-passphrase-file goes with --tpm or --owner-token".into()));
        }
        let what = if self.place.tpm { "a PIN for the key in the TPM" } else { "a passphrase for the vault" };
        self.holder(self.owner_source()?, (what, Purpose::Create(args.cost, binding)))
    }

    /// The owner's new secret.
    pub(super) fn changed_owner(&self, args: &PassphraseChange) -> Result<Holder> {
        let source = if let Some(how) = &args.new_token {
            Source::Token(how.clone())
        } else if let Some(fd) = args.new_passphrase_fd {
            Source::Text(secrets::from_descriptor(fd, "the new passphrase")?)
        } else if let Some(file) = &args.new_passphrase_file {
            Source::Text(secrets::private_line(file, "the new passphrase")?)
        } else if let Some(file) = &args.new_keyfile {
            Source::Keyfile(file.clone())
        } else {
            Source::Prompt
        };
        let bound = args.new_tpm || args.new_token.is_some();
        if !bound && args.binding.recovery_passphrase_file.is_some() {
            return Err(Failure::Usage(
                "--recovery-passphrase-file goes with --new-tpm or --new-token".into(),
            ));
        }
        let what = if args.new_tpm { "the new PIN" } else { "the new passphrase" };
        self.holder(source, (what, Purpose::Create(args.cost, bound.then_some(&args.binding))))
    }

    fn second_source(args: &SecondSecret) -> Result<Option<Source>> {
        if let Some(fd) = args.second_passphrase_fd {
            return secrets::from_descriptor(fd, "the second passphrase")
                .map(|text| Some(Source::Text(text)));
        }
        if let Some(file) = &args.second_passphrase_file {
            return secrets::private_line(file, "the second passphrase").map(|text| Some(Source::Text(text)));
        }
        Ok(match &args.second_keyfile {
            Some(file) => Some(Source::Keyfile(file.clone())),
            None => args.second.then_some(Source::Prompt),
        })
    }

    /// The second secret, of level 4, if it was offered.
    pub(super) fn second(&self, args: &SecondSecret) -> Result<Option<Holder>> {
        let what = ("the second passphrase, of level 4", Purpose::Open(None));
        Self::second_source(args)?.map(|source| self.holder(source, what)).transpose()
    }

    /// The second secret for a vault that is made, if one is wanted.
    pub(super) fn new_second(&self, args: &SecondSecret, cost: Cost) -> Result<Option<Holder>> {
        let what = ("a second passphrase, for level 4", Purpose::Create(cost, None));
        Self::second_source(args)?.map(|source| self.holder(source, what)).transpose()
    }

    /// A profile's own secret, if one was offered: to open what `kind` wrapped, or to make it at a cost.
    pub(super) fn profile_secret(
        &self,
        args: &ProfileSecret,
        (kind, cost): (Option<HolderKind>, Option<Cost>),
    ) -> Result<Option<Holder>> {
        let source = if let Some(how) = &args.profile_token {
            Source::Token(how.clone())
        } else if let Some(file) = &args.profile_passphrase_file {
            Source::Text(secrets::private_line(file, "the profile's passphrase")?)
        } else if let Some(file) = &args.profile_keyfile {
            Source::Keyfile(file.clone())
        } else if args.profile_passphrase || cost.is_none() {
            Source::Prompt
        } else {
            return Ok(None);
        };
        let binding = TpmBinding::default();
        let purpose = match cost {
            Some(cost) => Purpose::Create(cost, args.profile_tpm.then_some(&binding)),
            None => Purpose::Open(kind),
        };
        self.holder(source, ("the profile's passphrase", purpose)).map(Some)
    }

    fn holder(&self, source: Source, (what, purpose): (&str, Purpose<'_>)) -> Result<Holder> {
        if let Source::Token(how) = source {
            return self.by_token(&how, purpose);
        }
        if matches!(purpose, Purpose::Open(Some(HolderKind::Token))) {
            return self.without_token(source, what);
        }
        if purpose.in_tpm() {
            let pin = match source {
                Source::Text(text) => text,
                Source::Prompt => {
                    secrets::SecretText::new(prompt(what, matches!(purpose, Purpose::Create(..)))?)
                }
                Source::Keyfile(_) | Source::Keyring | Source::Token(_) => {
                    return Err(Failure::Usage(
                        "a key in the TPM opens with a PIN: give --passphrase-file, --passphrase-fd, or type it".into(),
                    ));
                }
            };
            return self.in_tpm(&pin, purpose);
        }
        match source {
            Source::Text(text) => passphrase(text.expose(), purpose),
            Source::Keyfile(path) => keyfile(&path, purpose),
            Source::Keyring => self.keyring(purpose),
            Source::Token(how) => self.by_token(&how, purpose),
            Source::Prompt => match purpose {
                Purpose::Open(Some(HolderKind::Keyfile)) => Err(Failure::Usage(
                    "this vault opens with a keyfile: give --keyfile FILE (keyfile in [vault])".into(),
                )),
                Purpose::Open(Some(HolderKind::OsKeyring)) => self.keyring(purpose),
                _ => passphrase(&prompt(what, matches!(purpose, Purpose::Create(..)))?, purpose),
            },
        }
    }

    /// A key that a token gives, and where it is made, its recovery passphrase.
    fn by_token(&self, how: &TokenHow, purpose: Purpose<'_>) -> Result<Holder> {
        let token = token::key(self.place, how, matches!(purpose, Purpose::Create(..)))?;
        let Purpose::Create(wanted, Some(binding)) = purpose else { return Ok(Box::new(token)) };
        if !binding.tpm_pcrs.is_empty() {
            return Err(Failure::Usage("--tpm-pcrs goes with a key in the TPM".into()));
        }
        let Some(file) = &binding.recovery_passphrase_file else { return Ok(Box::new(token)) };
        let text = secrets::private_line(file, "the recovery passphrase")?;
        let recovery = Passphrase::new(SecretBytes::from_slice(text.expose().as_bytes()));
        let recovery = recovery.and_then(|one| one.with_cost(cost(wanted))).map_err(key)?;
        Ok(Box::new(token.with_recovery(recovery)))
    }

    /// Opens a key that a token gives with its recovery passphrase.
    fn without_token(&self, source: Source, what: &str) -> Result<Holder> {
        let text = match (self.place.token_recovery, source) {
            (true, Source::Text(text)) => text,
            (true, Source::Prompt) => secrets::SecretText::new(prompt(what, false)?),
            _ => {
                return Err(Failure::Usage(
                    "this opens with a physical token: give --owner-token fido2, yubikey or software=FILE \
                     (--profile-token for a profile); without it, its recovery passphrase with --token-recovery"
                        .into(),
                ));
            }
        };
        let recovery = Passphrase::new(SecretBytes::from_slice(text.expose().as_bytes())).map_err(key)?;
        Ok(Box::new(TokenRecovery::new(recovery)))
    }

    #[cfg(feature = "os-keyring")]
    fn keyring(&self, purpose: Purpose<'_>) -> Result<Holder> {
        use stvor_keys::{KeyringItem, OsKeyring, SystemKeyring};
        let path = std::path::absolute(self.path()?).map_err(|error| Failure::io("can not name", error))?;
        let account = format!("vault {}", path.display());
        let item = KeyringItem { service: "stvor".into(), account };
        let held = match purpose {
            Purpose::Open(_) => OsKeyring::read(&SystemKeyring, &item),
            Purpose::Create(..) => OsKeyring::create(&SystemKeyring, &item, &mut SystemRandom::new()),
        };
        Ok(Box::new(held.map_err(key)?))
    }

    #[cfg(not(feature = "os-keyring"))]
    #[expect(clippy::unused_self, reason = "the other build needs it")]
    fn keyring(&self, _: Purpose<'_>) -> Result<Holder> {
        Err(crate::session::no_keyring())
    }
}

fn passphrase(text: &str, purpose: Purpose<'_>) -> Result<Holder> {
    let passphrase = Passphrase::new(SecretBytes::from_slice(text.as_bytes())).map_err(key)?;
    Ok(Box::new(match purpose {
        Purpose::Open(_) => passphrase,
        Purpose::Create(wanted, _) => passphrase.with_cost(cost(wanted)).map_err(key)?,
    }))
}

fn keyfile(path: &Path, purpose: Purpose<'_>) -> Result<Holder> {
    let held = match purpose {
        Purpose::Create(..) if !path.exists() => Keyfile::create(path, &mut SystemRandom::new()),
        _ => Keyfile::read(path),
    };
    Ok(Box::new(held.map_err(key)?))
}

/// Asks at the terminal, twice for a secret that is new.
fn prompt(what: &str, new: bool) -> Result<String> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(format!(
            "{what} is asked for at a terminal; here give --passphrase-file, --passphrase-fd, --keyfile or --os-keyring"
        )));
    }
    let mut chars = what.chars();
    let title = chars.next().map(|first| first.to_uppercase().collect::<String>() + chars.as_str());
    let mut question = dialoguer::Password::new().with_prompt(title.unwrap_or_default());
    if new {
        question = question.with_confirmation("Once more", "They are not the same");
    }
    match question.interact() {
        Ok(text) => Ok(text),
        Err(dialoguer::Error::IO(source)) => Err(Failure::io("can not ask for the passphrase", source)),
    }
}
