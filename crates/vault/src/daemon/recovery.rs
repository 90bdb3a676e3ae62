//! What the owner can ask about backups, recovery, tokens and proofs.

use core::time::Duration;
use std::path::PathBuf;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};
use stvor_crypto::{Secret, SecretBytes};
use stvor_keys::fido2::Presence;
use stvor_keys::recipients::{Recipient, Sealing};
use stvor_tlog::Note;
use stvor_tlog::witness::CosignatureVerifier;

use super::outbox;
use super::verbs::{PROGRESS, value};
use crate::archive::ArchiveHead;
use crate::backup::{BackupKind, NewBackup};
use crate::memory::MemoryId;
use crate::proofs::Claim;
use crate::recovery::escrow::{Keeper, NewEscrow};
use crate::recovery::switch::{Heir, NewSwitch};
use crate::tokens::{Enrolment, Presented, TokenKind};
use crate::{Vault, VaultError};

/// A secret on its way over a socket, as text. It is wiped when it goes.
#[derive(PartialEq, Eq)]
pub struct Hidden(SecretBytes);

impl Hidden {
    /// Hides it from what is printed.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text.into_bytes().into())
    }

    /// A key, in base64.
    #[must_use]
    pub fn of_key(key: &Secret<32>) -> Self {
        Self::new(STANDARD.encode(key.expose()))
    }

    pub(super) fn text(&self) -> &str {
        // It was made of text.
        core::str::from_utf8(self.0.expose()).unwrap_or_default()
    }

    pub(super) fn key(&self) -> Result<Secret<32>, VaultError> {
        let malformed = || VaultError::invalid("a key is 32 bytes in base64");
        let bytes = SecretBytes::from(STANDARD.decode(self.0.expose()).map_err(|_| malformed())?);
        Secret::from_slice(bytes.expose()).map_err(|_| malformed())
    }
}

impl Clone for Hidden {
    fn clone(&self) -> Self {
        Self(self.0.duplicate())
    }
}

impl Serialize for Hidden {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text())
    }
}

impl<'de> Deserialize<'de> for Hidden {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl core::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A keeper of a share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeeperVerb {
    /// The name.
    pub name: String,
    /// The age key, `age1...`.
    pub recipient: String,
}

/// A set of shares that is to be made. It takes the keys, in base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EscrowVerb {
    /// The root key.
    pub root: Hidden,
    /// The key of level 4, where the vault has one.
    pub vaulted: Option<Hidden>,
    /// Who gets shares.
    pub keepers: Vec<KeeperVerb>,
    /// How many of them open the vault.
    pub needed: u8,
    /// What they are of.
    pub label: String,
    /// Where the sealed shares go.
    pub directory: PathBuf,
}

impl EscrowVerb {
    /// Makes it with the keys, in the directory that is meant.
    fn make<T>(
        self,
        vault: &Vault,
        make: impl FnOnce((&Secret<32>, Option<&Secret<32>>), &NewEscrow<'_>) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        let keeper = |one: KeeperVerb| {
            Ok::<_, VaultError>(Keeper { name: one.name, recipient: one.recipient.parse()? })
        };
        let keepers = self.keepers.into_iter().map(keeper).collect::<Result<Vec<_>, _>>()?;
        let directory = outbox::directory(vault, self.directory)?;
        let new =
            NewEscrow { keepers: &keepers, needed: self.needed, label: &self.label, directory: &directory };
        let vaulted = self.vaulted.as_ref().map(Hidden::key).transpose()?;
        make((&self.root.key()?, vaulted.as_ref()), &new)
    }
}

/// An heir.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeirVerb {
    /// The name.
    pub name: String,
    /// The age key, `age1...`.
    pub recipient: String,
    /// Which memories.
    pub memories: Vec<MemoryId>,
}

/// A token that is to be enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentVerb {
    name: String,
    kind: TokenKind,
    secret: Hidden,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    answers: Vec<(MemoryId, Hidden)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    serial: Option<u32>,
}

impl From<&Enrolment> for EnrolmentVerb {
    fn from(token: &Enrolment) -> Self {
        let secret = Hidden::of_key(&token.secret);
        let answers = token.answers.iter().map(|(id, answer)| (*id, Hidden::of_key(answer))).collect();
        let (name, kind, serial) = (token.name.clone(), token.kind.clone(), token.serial);
        Self { name, kind, secret, answers, serial }
    }
}

impl EnrolmentVerb {
    fn read(self) -> Result<Enrolment, VaultError> {
        let answers = self.answers.into_iter().map(|(id, answer)| Ok::<_, VaultError>((id, answer.key()?)));
        let (answers, secret) = (answers.collect::<Result<_, _>>()?, self.secret.key()?);
        Ok(Enrolment { name: self.name, kind: self.kind, secret, answers, serial: self.serial })
    }
}

/// A token's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PresentedVerb {
    token: MemoryId,
    secret: Hidden,
    next: Option<([u8; 32], Hidden)>,
    presence: Option<(Vec<u8>, Vec<u8>)>,
}

impl From<&Presented> for PresentedVerb {
    fn from(presented: &Presented) -> Self {
        let presence = presented.presence.as_ref();
        Self {
            token: presented.token,
            secret: Hidden::of_key(&presented.secret),
            next: presented.next.as_ref().map(|(challenge, secret)| (*challenge, Hidden::of_key(secret))),
            presence: presence.map(|one| (one.authenticator_data.clone(), one.signature.clone())),
        }
    }
}

impl PresentedVerb {
    fn read(self) -> Result<Presented, VaultError> {
        let next = self.next.map(|(challenge, secret)| Ok::<_, VaultError>((challenge, secret.key()?)));
        let presence =
            self.presence.map(|(data, signature)| Presence { authenticator_data: data, signature });
        Ok(Presented { token: self.token, secret: self.secret.key()?, next: next.transpose()?, presence })
    }
}

/// What the owner may ask about backups, recovery, tokens and proofs.
///
/// `directory` of [`RecoveryVerb::Backup`] and [`RecoveryVerb::Escrow`] and `path` of [`RecoveryVerb::Archive`] are whole paths that
/// the daemon writes to. An empty directory, or a mere file name, stands for one of its own, from which the owner's process takes
/// the files with [`RecoveryVerb::Fetch`] and [`RecoveryVerb::Taken`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are those of the functions of `Vault` of the same names")]
pub enum RecoveryVerb {
    /// Make a backup, sealed to recipients or a passphrase.
    Backup {
        directory: PathBuf,
        kind: BackupKind,
        recipients: Vec<String>,
        passphrase: Option<Hidden>,
        description: String,
    },
    /// Write the log to a file, sealed to recipients, perhaps with what was said to requests.
    Archive {
        path: PathBuf,
        recipients: Vec<String>,
        #[serde(default)]
        words: bool,
    },
    /// Remove events that an archive holds, which the asker has read.
    Prune {
        archive: ArchiveHead,
        #[serde(default)]
        lose_words: bool,
    },
    /// Accept that no checkpoint was left in files outside the database.
    AcceptCheckpoints {},
    /// Read a file that the daemon made for the owner's process, from a place on: `{"size", "bytes"}`, at most
    /// [`crate::limits::MAX_FETCH`] bytes in base64, or null when there is none.
    Fetch { name: PathBuf, offset: u64 },
    /// Say where such a file is now; the daemon's copy is removed.
    Taken { name: PathBuf, kept: PathBuf },
    /// Backups that were made.
    Backups {},
    /// Backups that still hold a memory.
    BackupsWith { id: MemoryId },
    /// One page of everything that can be read.
    Export { after: i64 },
    /// Split the keys.
    Escrow { new: EscrowVerb },
    /// Sets of shares that were made.
    Escrows {},
    /// Arm the dead-man switch, for some seconds of silence.
    ArmSwitch { seconds: u64, heirs: Vec<HeirVerb>, directory: PathBuf },
    /// Say to be there.
    CheckIn {},
    /// Disarm it.
    DisarmSwitch {},
    /// What it is set to, which watchers do not know it, and which heirs would get nothing.
    Switch {},
    /// Give up to tell a watcher whose directory is gone for good.
    GiveUpWatcher { directory: PathBuf },
    /// Open level 5 with two tokens or more, or with one and an escrow.
    EnableBlack { tokens: Vec<EnrolmentVerb>, escrow: Option<EscrowVerb> },
    /// Tokens that are enrolled.
    Tokens {},
    /// What a FIDO2 token signs next.
    TokenChallenge {},
    /// A token's answer.
    PresentToken { answer: PresentedVerb },
    /// Enrol a further token.
    AddToken { token: EnrolmentVerb },
    /// Remove one.
    RemoveToken { name: String },
    /// Make the secret of a one-time-code app.
    NewCodes {},
    /// Enrol it.
    ConfirmCodes { code: Hidden },
    /// Remove it; takes the root key, in base64.
    RemoveCodes { root: Hidden },
    /// Grant an approval with a one-time code, for some seconds.
    ApproveWithCode { id: MemoryId, seconds: u64, code: Hidden },
    /// Prove a claim of a memory.
    ProveProperty { id: MemoryId, claim: Claim, audience: String },
    /// What shows a content to be the one that a memory's commitment is to.
    OpenContent { id: MemoryId },
    /// Prove that the log of a signed checkpoint, of the newest where that is nothing, goes on from that of an earlier one.
    ProveConsistency { old: String, new: Option<String> },
    /// Sign a statement.
    Attest { statement: String },
    /// Have the log signed by a witness.
    AskWitness { socket: PathBuf, key: String },
    /// Hold the log against what a witness signed.
    VerifyWitness { socket: PathBuf, key: String },
}

fn sealing_to(recipients: &[String]) -> Result<Sealing, VaultError> {
    let recipients = recipients.iter().map(|one| one.parse::<Recipient>());
    Ok(Sealing::to(recipients.collect::<Result<Vec<_>, _>>()?))
}

fn done((): ()) -> Value {
    Value::Null
}

fn signed((size, time): (u64, u64)) -> Value {
    json!({ "size": size, "time": time })
}

fn text(secret: &SecretBytes) -> String {
    String::from_utf8_lossy(secret.expose()).into_owned()
}

/// Passes on what is told, as often as other verbs tell how far they are: now and then, and at the end.
fn seldom(mut tell: impl FnMut(u64, u64)) -> impl FnMut(u64, u64) {
    let mut last = Instant::now();
    move |done, total| {
        if done >= total || last.elapsed() >= PROGRESS {
            last = Instant::now();
            tell(done, total);
        }
    }
}

impl RecoveryVerb {
    pub(super) fn run(self, vault: &Vault, tell: impl FnMut(u64, u64)) -> Result<Value, VaultError> {
        match self {
            Self::Backup { directory, kind, recipients, passphrase, description } => {
                let sealing = match passphrase {
                    Some(phrase) => Sealing::passphrase(&phrase.0)?,
                    None => sealing_to(&recipients)?,
                };
                let directory = outbox::directory(vault, directory)?;
                let new = NewBackup { directory, kind, sealing, description };
                value(vault.backup_telling(&new, seldom(tell))?)
            }
            Self::Archive { path, recipients, words } => {
                let (sealing, path) = (sealing_to(&recipients)?, outbox::file(vault, path)?);
                let events = vault.archive_telling(&path, (&sealing, words), seldom(tell))?;
                Ok(json!({ "events": events }))
            }
            Self::Prune { archive, lose_words } => {
                let (pending, state) = vault.begin_prune(&archive, lose_words);
                value(pending.wait_telling(PROGRESS, &state, tell)?)
            }
            Self::AcceptCheckpoints {} => Ok(json!({ "accepted": vault.accept_checkpoints()? })),
            Self::Fetch { name, offset } => outbox::fetch(vault, &name, offset),
            Self::Taken { name, kept } => outbox::taken(vault, &name, kept).map(done),
            Self::Backups {} => value(vault.backups()?),
            Self::BackupsWith { id } => value(vault.backups_with(id)?),
            Self::Export { after } => {
                let (page, next) = vault.export(after)?;
                let lines: Vec<Value> = page.iter().map(crate::export::Exported::to_json).collect();
                Ok(json!({ "memories": lines, "next": next }))
            }
            Self::Escrow { new } => {
                let (record, files) = new.make(vault, |keys, new| vault.escrow(keys, new))?;
                Ok(json!({ "escrow": record, "files": files }))
            }
            Self::Escrows {} => value(vault.escrows()?),
            Self::ArmSwitch { seconds, heirs, directory } => {
                let heir = |one: HeirVerb| {
                    let (name, recipient) = (one.name, one.recipient.parse()?);
                    Ok::<_, VaultError>(Heir { name, recipient, memories: one.memories })
                };
                let heirs = heirs.into_iter().map(heir).collect::<Result<Vec<_>, _>>()?;
                let every = Duration::from_secs(seconds);
                let verifier =
                    vault.arm_switch(&NewSwitch { every, heirs: &heirs, directory: &directory })?;
                Ok(json!({ "verifier": verifier, "untold": vault.untold_watchers()? }))
            }
            Self::CheckIn {} => {
                let made = vault.make_check_in()?;
                Ok(json!({ "check_in": made.note.to_string(), "untold": made.untold }))
            }
            Self::DisarmSwitch {} => vault.disarm_switch().map(done),
            Self::Switch {} => {
                let mut switch = value(vault.switch()?)?;
                if let Some(fields) = switch.as_object_mut() {
                    fields.insert("untold".into(), value(vault.untold_watchers()?)?);
                    fields.insert("without_package".into(), value(vault.heirs_without_package()?)?);
                }
                Ok(switch)
            }
            Self::GiveUpWatcher { directory } => vault.give_up_watcher(&directory).map(done),
            Self::EnableBlack { tokens, escrow } => {
                let tokens = tokens.into_iter().map(EnrolmentVerb::read).collect::<Result<_, _>>()?;
                let Some(escrow) = escrow else {
                    return vault.enable_black(tokens, None).map(|_| Value::Null);
                };
                let made = escrow.make(vault, |(root, vaulted), new| {
                    let missing =
                        || VaultError::invalid("level 5 opens with that of level 4: give the second secret");
                    vault.enable_black(tokens, Some(((root, vaulted.ok_or_else(missing)?), new)))
                })?;
                Ok(made.map_or(Value::Null, |(record, files)| json!({ "escrow": record, "files": files })))
            }
            Self::Tokens {} => value(vault.tokens()?),
            Self::TokenChallenge {} => value(vault.token_challenge()?),
            Self::PresentToken { answer } => vault.present_token(answer.read()?).map(done),
            Self::AddToken { token } => vault.add_token(token.read()?).map(done),
            Self::RemoveToken { name } => vault.remove_token(&name).map(done),
            Self::NewCodes {} => Ok(json!({ "url": text(&vault.new_codes()?.url) })),
            Self::ConfirmCodes { code } => vault.confirm_codes(code.text()).map(done),
            Self::RemoveCodes { root } => vault.remove_codes(root.key()?).map(done),
            Self::ApproveWithCode { id, seconds, code } => {
                vault.approve_with_code(id, Duration::from_secs(seconds), code.text()).map(done)
            }
            Self::ProveProperty { id, claim, audience } => value(vault.prove_property(id, claim, &audience)?),
            Self::OpenContent { id } => value(vault.content_opening(id)?),
            Self::ProveConsistency { old, new } => {
                let new = new.map(|note| Note::parse(note.as_bytes())).transpose()?;
                let proof = vault.prove_consistency(Note::parse(old.as_bytes())?, new)?;
                Ok(json!({ "proof": proof.to_string(), "old": proof.old_size }))
            }
            Self::Attest { statement } => Ok(json!({ "note": vault.attest(&statement)?.to_string() })),
            Self::AskWitness { socket, key } => {
                vault.ask_witness(&socket, &CosignatureVerifier::parse(&key)?).map(signed)
            }
            Self::VerifyWitness { socket, key } => {
                vault.verify_with_witness(&socket, &CosignatureVerifier::parse(&key)?).map(signed)
            }
        }
    }
}
