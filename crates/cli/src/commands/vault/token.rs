//! `stvor vault token`, `codes`.

use std::io::IsTerminal as _;
use std::path::Path;

use serde_json::json;
use stvor_base::Timestamp;
use stvor_crypto::{SecretBytes, SystemRandom};
use stvor_keys::challenge::{ChallengeToken, SoftwareToken};
use stvor_keys::fido2::{Ctap2, Fido2Token};
use stvor_keys::{KeyError, TokenKey, WrappedKey, token_credential};
use stvor_vault::daemon::{Client, EnrolmentVerb, Hidden, RecoveryVerb};
use stvor_vault::tokens::{Enrolment, Presented, TokenKind, TokenRecord};
use stvor_vault::{VaultError, unwrap_root};

use super::backup::{ask, coded, secret};
use super::carried::Carried;
use super::recovery::{KEEPERS, Shares, files};
use super::{Call, show};
use crate::args::{
    CodesCommand, CredentialsCommand, NewTokens, ShownCode, TokenHand, TokenHow, TokenOpen, VaultPlace,
    VaultTokenCommand,
};
use crate::failure::{Failure, Result};
use crate::render::{Hex, rfc3339, rows, safe, table};
use crate::secrets;

/// A token that is there.
enum Hand {
    Challenge(Box<dyn ChallengeToken + Send>),
    Fido2(Box<dyn Fido2Token + Send>),
}

fn software(path: &Path, make: bool) -> Result<SoftwareToken> {
    let made = make && !path.exists();
    let token =
        if made { SoftwareToken::create(path, &mut SystemRandom::new()) } else { SoftwareToken::read(path) };
    token.map_err(coded)
}

fn hand(place: &VaultPlace, given: &TokenHand, make: bool) -> Result<Hand> {
    if let Some(path) = &given.software_token {
        return Ok(Hand::Challenge(Box::new(software(path, make)?)));
    }
    if given.fido2 { fido2(place).map(Hand::Fido2) } else { yubikey(given.yubikey.unwrap_or(2)) }
}

/// The FIDO2 token: the one on USB, or the one that another program carries.
fn fido2(place: &VaultPlace) -> Result<Box<dyn Fido2Token + Send>> {
    match &place.fido2_socket {
        Some(socket) => Ok(Box::new(Ctap2::new(Carried::at(socket).map_err(coded)?))),
        None => on_usb(),
    }
}

#[cfg(feature = "fido2-hid")]
fn on_usb() -> Result<Box<dyn Fido2Token + Send>> {
    Ok(Box::new(stvor_keys::fido2::HidToken::find().map_err(coded)?))
}

#[cfg(not(feature = "fido2-hid"))]
fn on_usb() -> Result<Box<dyn Fido2Token + Send>> {
    Err(Failure::Usage("this build does not reach FIDO2 tokens; build it with the feature fido2-hid".into()))
}

#[cfg(feature = "yubikey")]
fn yubikey(slot: u8) -> Result<Hand> {
    use stvor_keys::challenge::YubiKeySlot;
    Ok(Hand::Challenge(Box::new(if slot == 1 { YubiKeySlot::One } else { YubiKeySlot::Two })))
}

#[cfg(not(feature = "yubikey"))]
fn yubikey(_: u8) -> Result<Hand> {
    Err(Failure::Usage("this build does not reach YubiKey slots; build it with the feature yubikey".into()))
}

/// The key that a token gives; `make`: a file that plays one is made if it is not there.
pub(super) fn key(place: &VaultPlace, how: &TokenHow, make: bool) -> Result<TokenKey> {
    let hand = match how {
        TokenHow::Software(path) => Hand::Challenge(Box::new(software(path, make)?)),
        TokenHow::YubiKey(slot) => yubikey(*slot)?,
        TokenHow::Fido2 => Hand::Fido2(fido2(place)?),
    };
    Ok(match hand {
        Hand::Challenge(token) => TokenKey::challenge(token),
        Hand::Fido2(token) => {
            TokenKey::fido2(token, asked_pin(place.token_pin_file.as_deref(), "--token-pin-file FILE")?)
        }
    })
}

/// The PIN of a FIDO2 token, which it has to have.
fn pin(file: Option<&Path>) -> Result<SecretBytes> {
    asked_pin(file, "--pin-file FILE")
}

/// The same, of a command whose flag for it has another name.
fn asked_pin(file: Option<&Path>, flag: &str) -> Result<SecretBytes> {
    if let Some(file) = file {
        return secret(file, "the token's PIN");
    }
    let asked = secrets::ask("PIN of the FIDO2 token", flag)?;
    Ok(SecretBytes::from_slice(asked.expose().as_bytes()))
}

/// Goes on when the person has plugged in another token.
fn plugged_in(name: &str) -> Result {
    if !std::io::stdin().is_terminal() {
        let text = "tokens on USB are plugged in one after the other: run this in a terminal, or add the second later";
        return Err(Failure::Usage(text.into()));
    }
    let question = format!("Plug in the token that is to be {name}, and no other. Is it there?");
    match dialoguer::Confirm::new().with_prompt(question).default(true).interact() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::Usage("nothing was done in the vault".to_owned())),
        Err(dialoguer::Error::IO(source)) => Err(Failure::io("can not ask", source)),
    }
}

fn already(name: &str) -> Failure {
    Failure::Usage(format!("this token is {name} already; a lost token would be a lost level"))
}

/// One of these credentials, if it is on the token: then the token is that one already. A token that keeps no list says nothing.
fn is_already<'a>(
    token: &mut dyn Fido2Token,
    known: impl Iterator<Item = (&'a str, &'a TokenKind)>,
    pin: &SecretBytes,
) -> Result {
    let on_it = match token.list(pin) {
        Err(KeyError::Token(_)) => Vec::new(),
        // A wrong PIN is not given a second time: the token counts each.
        listed => listed.map_err(coded)?,
    };
    for (name, kind) in known {
        if let TokenKind::Fido2 { credential, .. } = kind
            && on_it.contains(credential)
        {
            return Err(already(name));
        }
    }
    Ok(())
}

/// Enrols a challenge-response token that is none of those before it.
fn by_challenge(name: &str, token: &mut dyn ChallengeToken, before: &[Enrolment]) -> Result<Enrolment> {
    for one in before {
        if one.is_of(token)? {
            return Err(already(one.name()));
        }
    }
    Ok(Enrolment::challenge(name, token)?)
}

/// Enrols new tokens, one after the other.
pub(super) fn enrolments(place: &VaultPlace, given: &NewTokens) -> Result<Vec<Enrolment>> {
    let mut all: Vec<Enrolment> = Vec::new();
    for text in &given.software {
        let (name, file) =
            text.split_once('=').ok_or_else(|| Failure::Usage(format!("{text} is not NAME=FILE")))?;
        all.push(by_challenge(name, &mut software(Path::new(file), true)?, &all)?);
    }
    for (at, name) in given.fido2.iter().enumerate() {
        if at > 0 {
            plugged_in(name)?;
        }
        let mut token = fido2(place)?;
        // Each token has a PIN of its own.
        let pin = pin(given.pin_file.as_deref())?;
        let known = all.iter().map(|one| (one.name(), one.kind()));
        is_already(&mut *token, known, &pin)?;
        all.push(Enrolment::fido2(name, &mut *token, Some(&pin))?);
    }
    for (at, text) in given.yubikey.iter().enumerate() {
        let (name, slot) = match text.split_once('=') {
            None => (text.as_str(), 2),
            Some((name, "1")) => (name, 1),
            Some((name, "2")) => (name, 2),
            Some(_) => return Err(Failure::Usage(format!("{text} names no slot: 1 or 2"))),
        };
        if at > 0 {
            plugged_in(name)?;
        }
        if let Hand::Challenge(mut token) = yubikey(slot)? {
            all.push(by_challenge(name, &mut *token, &all)?);
        }
    }
    Ok(all)
}

fn tokens(client: &mut Client) -> Result<Vec<TokenRecord>> {
    show::parsed(ask(client, RecoveryVerb::Tokens {})?)
}

/// Physical tokens.
pub(super) fn run(call: Call<'_>, command: &VaultTokenCommand) -> Result {
    let out = call.out();
    let mut client = call.as_owner()?;
    match command {
        VaultTokenCommand::Open(args) => open(call, &mut client, args),
        VaultTokenCommand::Present { name, hand: given, pin_file } => {
            let record = tokens(&mut client)?.into_iter().find(|record| record.name == *name);
            let record = record.ok_or_else(|| VaultError::Unknown(format!("token {name}")))?;
            let answer = match hand(call.place, given, false)? {
                Hand::Challenge(mut token) => Presented::challenge(&record, &mut *token)?,
                Hand::Fido2(mut token) => {
                    let challenge: [u8; 32] =
                        show::parsed(ask(&mut client, RecoveryVerb::TokenChallenge {})?)?;
                    let pin = pin(pin_file.as_deref())?;
                    Presented::fido2(&record, &mut *token, (challenge, Some(&pin)))?
                }
            };
            ask(&mut client, RecoveryVerb::PresentToken { answer: (&answer).into() })?;
            out.either(&json!({ "present": name }), |_| {
                "present: one memory of level 5, within a minute".to_owned()
            })
        }
        VaultTokenCommand::Add { name, hand: given, pin_file } => {
            let token = match hand(call.place, given, true)? {
                Hand::Challenge(mut token) => {
                    Enrolment::challenge(name, &mut *token)?.beside(&tokens(&mut client)?, &mut *token)?
                }
                Hand::Fido2(mut token) => {
                    let (pin, known) = (pin(pin_file.as_deref())?, tokens(&mut client)?);
                    let known = known.iter().map(|record| (record.name.as_str(), &record.kind));
                    is_already(&mut *token, known, &pin)?;
                    Enrolment::fido2(name, &mut *token, Some(&pin))?
                }
            };
            ask(&mut client, RecoveryVerb::AddToken { token: (&token).into() })?;
            out.either(&json!({ "added": name }), |_| format!("{name} is enrolled"))
        }
        VaultTokenCommand::List => list(call, &tokens(&mut client)?),
        VaultTokenCommand::Remove { name } => {
            ask(&mut client, RecoveryVerb::RemoveToken { name: name.clone() })?;
            out.either(&json!({ "removed": name }), |_| format!("{name} opens nothing any more"))
        }
        VaultTokenCommand::Credentials { command, pin_file } => {
            let mut token = fido2(call.place)?;
            let pin = pin(pin_file.as_deref())?;
            credentials(call, (&mut *token, &pin), (command, &uses(&mut client)?))
        }
    }
}

/// Opens level 5.
fn open(call: Call<'_>, client: &mut Client, args: &TokenOpen) -> Result {
    let (out, given) = (call.out(), &args.tokens);
    let count = given.software.len() + given.fido2.len() + given.yubikey.len();
    // Before anybody has to touch anything.
    if count == 0 || (count == 1 && args.keepers.is_empty()) {
        let text =
            "level 5 opens with two tokens (--fido2, --yubikey, --software-token), or with one and --keeper";
        return Err(Failure::Usage(text.into()));
    }
    let shares = match (args.needed, &args.dir) {
        (Some(needed), Some(dir)) => {
            let owner = call.owner_of(client)?;
            let wanted = (&args.keepers[..], needed, args.label.as_str(), dir.as_path(), &args.second);
            Some(Shares::prepare(call, (client, &owner), wanted)?)
        }
        _ => None,
    };
    let made = enrolments(call.place, given)?;
    let verb = RecoveryVerb::EnableBlack {
        tokens: made.iter().map(EnrolmentVerb::from).collect(),
        escrow: shares.as_ref().map(|shares| shares.wanted.clone()),
    };
    let mut answer = ask(client, verb)?;
    if let Some(shares) = &shares {
        shares.take(client, &mut answer)?;
    }
    let object = json!({ "level": 5, "tokens": count, "files": answer["files"] });
    out.either(&object, |_| {
        let said = format!("level 5 is open, with {count} tokens\n{}", files(&answer));
        said.trim_end().to_owned()
    })?;
    if !given.software.is_empty() {
        out.warn("files that play tokens are copied as easily as files");
    }
    if shares.is_some() {
        out.say(KEEPERS);
    }
    Ok(())
}

/// What a credential on a FIDO2 token opens in this vault.
enum Use {
    Level5(String),
    Owner,
    Profile(String),
}

impl Use {
    fn shown(&self) -> String {
        match self {
            Self::Level5(name) => format!("level 5 as {}", safe(name)),
            Self::Owner => "the vault: the owner's key".to_owned(),
            Self::Profile(name) => format!("the profile {}", safe(name)),
        }
    }

    /// Why it stays on the token, and what is to be done first.
    fn refused(&self) -> Failure {
        Failure::Usage(match self {
            Self::Level5(name) => format!("it opens level 5 as {name}: first stvor vault token remove {name}"),
            Self::Owner => "it opens the vault: first give the vault another owner's key, stvor vault passphrase; backups of before open with this one only".into(),
            Self::Profile(name) => format!(
                "it opens the profile {name}, and nothing else does: first give that another secret, stvor vault profile passphrase {name}; \
                 backups of before open with this one only"
            ),
        })
    }
}

/// What opens with which credential.
fn uses(client: &mut Client) -> Result<Vec<(Vec<u8>, Use)>> {
    let mut all = Vec::new();
    for record in tokens(client)? {
        if let TokenKind::Fido2 { credential, .. } = record.kind {
            all.push((credential, Use::Level5(record.name)));
        }
    }
    let credential = |record: &Vec<u8>| token_credential(&WrappedKey::decode(record).ok()?);
    if let Some(records) = client.records() {
        let owners = [Some(&records.root), Some(&records.verbs), records.vaulted.as_ref()];
        all.extend(owners.into_iter().flatten().filter_map(credential).map(|id| (id, Use::Owner)));
    }
    for (name, record) in super::profile::records(client)? {
        all.extend(credential(&record).map(|id| (id, Use::Profile(name))));
    }
    Ok(all)
}

/// An id as it is shown.
fn digits(id: &[u8]) -> String {
    Hex(id).to_string().replace(' ', "")
}

/// What this program made on a FIDO2 token.
fn credentials(
    call: Call<'_>,
    (token, pin): (&mut dyn Fido2Token, &SecretBytes),
    (command, uses): (&CredentialsCommand, &[(Vec<u8>, Use)]),
) -> Result {
    let out = call.out();
    let on_it = token.list(pin).map_err(coded)?;
    let opens = |id: &[u8]| uses.iter().find(|(known, _)| known == id).map(|(_, opens)| opens);
    match command {
        CredentialsCommand::List => {
            if out.json {
                return on_it.iter().try_for_each(|id| {
                    let (mut level_5, mut owner, mut profile) = (None, false, None);
                    match opens(id) {
                        Some(Use::Level5(name)) => level_5 = Some(name),
                        Some(Use::Owner) => owner = true,
                        Some(Use::Profile(name)) => profile = Some(name),
                        None => {}
                    }
                    let object = json!({
                        "credential": digits(id), "token": level_5, "owner": owner, "profile": profile,
                    });
                    out.object(&object)
                });
            }
            let mut lines = table(["credential", "opens"]);
            for id in &on_it {
                let opens = opens(id).map_or_else(|| "nothing of this vault".to_owned(), Use::shown);
                lines.add_row([digits(id), opens]);
            }
            out.line(rows(&lines))
        }
        CredentialsCommand::Remove { credential } => {
            let id = on_it.iter().find(|id| digits(id) == *credential);
            let id = id.ok_or_else(|| Failure::Coded {
                code: "VAULT_NOT_FOUND",
                message: "there is no such credential on the token; see stvor vault token credentials list"
                    .into(),
                retryable: false,
            })?;
            if let Some(opens) = opens(id) {
                return Err(opens.refused());
            }
            token.remove(id, pin).map_err(coded)?;
            out.either(&json!({ "removed": credential }), |_| "it is not on the token any more".to_owned())
        }
    }
}

fn list(call: Call<'_>, all: &[TokenRecord]) -> Result {
    let out = call.out();
    if out.json {
        return all.iter().try_for_each(|record| out.object(record));
    }
    let mut lines = table(["name", "kind", "enrolled", "last used"]);
    for record in all {
        let kind = match record.kind {
            TokenKind::Challenge { .. } => "challenge-response",
            TokenKind::Fido2 { .. } => "FIDO2",
        };
        let time = |millis| rfc3339(Timestamp::from_millis(millis));
        let used = record.used.map(time).unwrap_or_default();
        lines.add_row([safe(&record.name), kind.into(), time(record.added), used]);
    }
    out.line(rows(&lines))
}

/// The code that the app shows now.
fn shown(given: &ShownCode) -> Result<Hidden> {
    let code = match secrets::from_file_or_fd(None, given.code_fd, "the one-time code")? {
        Some(code) => code,
        None => secrets::ask("Code that the app shows", "--code-fd FD")?,
    };
    Ok(Hidden::new(code.expose().trim().to_owned()))
}

/// One-time codes.
pub(super) fn codes(call: Call<'_>, command: &CodesCommand) -> Result {
    let out = call.out();
    match command {
        CodesCommand::New => {
            let made = ask(&mut call.as_owner()?, RecoveryVerb::NewCodes {})?;
            out.either(&made, |made| made["url"].as_str().unwrap_or_default().to_owned())?;
            out.say("It is secret. Put it into the app, then: stvor vault codes confirm");
            Ok(())
        }
        CodesCommand::Confirm { code } => {
            let code = shown(code)?;
            ask(&mut call.as_owner()?, RecoveryVerb::ConfirmCodes { code })?;
            out.either(&json!({ "codes": true }), |_| "approvals take a code from now on".to_owned())
        }
        CodesCommand::Remove => {
            let mut client = call.stranger()?;
            let owner = call.owner_of(&client)?;
            client.prove(&*owner)?;
            let record = client.records().map(|records| records.root.clone()).unwrap_or_default();
            let root = Hidden::of_key(&unwrap_root(&record, &*owner)?);
            ask(&mut client, RecoveryVerb::RemoveCodes { root })?;
            out.either(&json!({ "codes": false }), |_| "approvals take no code any more".to_owned())
        }
        CodesCommand::Approve { request, code, seconds } => {
            let code = shown(code)?;
            let verb = RecoveryVerb::ApproveWithCode { id: *request, seconds: *seconds, code };
            let mut client = call.as_owner()?;
            super::approvals::show_request(call, &mut client, *request)?;
            ask(&mut client, verb)?;
            out.either(&json!({ "granted": request.to_string() }), |_| "granted, once".to_owned())
        }
    }
}
