//! `stvor vault token`, `codes`.

use std::path::Path;

use serde_json::json;
use stvor_base::Timestamp;
use stvor_crypto::{SecretBytes, SystemRandom};
use stvor_keys::challenge::{ChallengeToken, SoftwareToken};
use stvor_keys::fido2::Fido2Token;
use stvor_vault::daemon::{Client, EnrolmentVerb, Hidden, RecoveryVerb};
use stvor_vault::tokens::{Enrolment, Presented, TokenKind, TokenRecord};
use stvor_vault::unwrap_root;

use super::backup::{ask, coded, secret};
use super::{Call, show};
use crate::args::{CodesCommand, RecoveredTokens, TokenHand, VaultTokenCommand};
use crate::failure::{Failure, Result};
use crate::render::{rfc3339, rows, safe, table};

/// A token that is there.
enum Hand {
    Challenge(Box<dyn ChallengeToken>),
    #[cfg_attr(not(feature = "fido2-hid"), allow(dead_code, reason = "builds with USB make it"))]
    Fido2(Box<dyn Fido2Token>),
}

fn software(path: &Path, make: bool) -> Result<SoftwareToken> {
    let made = make && !path.exists();
    let token =
        if made { SoftwareToken::create(path, &mut SystemRandom::new()) } else { SoftwareToken::read(path) };
    token.map_err(coded)
}

fn hand(given: &TokenHand, make: bool) -> Result<Hand> {
    if let Some(path) = &given.software_token {
        return Ok(Hand::Challenge(Box::new(software(path, make)?)));
    }
    if given.fido2 { fido2() } else { yubikey(given.yubikey.unwrap_or(2)) }
}

#[cfg(feature = "fido2-hid")]
fn fido2() -> Result<Hand> {
    let token = stvor_keys::fido2::HidToken::find().map_err(coded)?;
    Ok(Hand::Fido2(Box::new(token)))
}

#[cfg(not(feature = "fido2-hid"))]
fn fido2() -> Result<Hand> {
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

fn pin(file: Option<&Path>) -> Result<Option<SecretBytes>> {
    file.map(|file| secret(file, "the token's PIN")).transpose()
}

fn enrolment(name: &str, hand: Hand, pin: Option<&SecretBytes>) -> Result<Enrolment> {
    Ok(match hand {
        Hand::Challenge(mut token) => Enrolment::challenge(name, &mut *token)?,
        Hand::Fido2(mut token) => Enrolment::fido2(name, &mut *token, pin)?,
    })
}

/// Tokens that a recovery enrols in place of those that were lost.
pub(super) fn recovered(given: &RecoveredTokens) -> Result<Vec<Enrolment>> {
    let mut all = Vec::new();
    for text in &given.software {
        let (name, file) =
            text.split_once('=').ok_or_else(|| Failure::Usage(format!("{text} is not NAME=FILE")))?;
        all.push(Enrolment::challenge(name, &mut software(Path::new(file), true)?)?);
    }
    let pin = pin(given.pin_file.as_deref())?;
    if let Some(name) = &given.fido2 {
        all.push(enrolment(name, fido2()?, pin.as_ref())?);
    }
    if let Some(name) = &given.yubikey {
        all.push(enrolment(name, yubikey(2)?, None)?);
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
        VaultTokenCommand::Open { tokens } => {
            let made = tokens.iter().map(|text| {
                let (name, file) =
                    text.split_once('=').ok_or_else(|| Failure::Usage(format!("{text} is not NAME=FILE")))?;
                let mut token = software(Path::new(file), true)?;
                Ok::<EnrolmentVerb, Failure>((&Enrolment::challenge(name, &mut token)?).into())
            });
            let tokens = made.collect::<Result<Vec<_>>>()?;
            let count = tokens.len();
            ask(&mut client, RecoveryVerb::EnableBlack { tokens })?;
            out.either(&json!({ "level": 5, "tokens": count }), |_| {
                format!("level 5 is open, with {count} tokens")
            })?;
            out.warn("files that play tokens are copied as easily as files");
            Ok(())
        }
        VaultTokenCommand::Present { name, hand: given, pin_file } => {
            let record = tokens(&mut client)?.into_iter().find(|record| record.name == *name);
            let record = record.ok_or_else(|| Failure::Usage(format!("there is no token {name}")))?;
            let answer = match hand(given, false)? {
                Hand::Challenge(mut token) => Presented::challenge(&record, &mut *token)?,
                Hand::Fido2(mut token) => {
                    let challenge: [u8; 32] =
                        show::parsed(ask(&mut client, RecoveryVerb::TokenChallenge {})?)?;
                    let pin = pin(pin_file.as_deref())?;
                    Presented::fido2(&record, &mut *token, (challenge, pin.as_ref()))?
                }
            };
            ask(&mut client, RecoveryVerb::PresentToken { answer: (&answer).into() })?;
            out.either(&json!({ "present": name }), |_| {
                "present: one memory of level 5, within a minute".to_owned()
            })
        }
        VaultTokenCommand::Add { name, hand: given, pin_file } => {
            let pin = pin(pin_file.as_deref())?;
            let token = enrolment(name, hand(given, true)?, pin.as_ref())?;
            ask(&mut client, RecoveryVerb::AddToken { token: (&token).into() })?;
            out.either(&json!({ "added": name }), |_| format!("{name} is enrolled"))
        }
        VaultTokenCommand::List => list(call, &tokens(&mut client)?),
        VaultTokenCommand::Remove { name } => {
            ask(&mut client, RecoveryVerb::RemoveToken { name: name.clone() })?;
            out.either(&json!({ "removed": name }), |_| format!("{name} opens nothing any more"))
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

/// One-time codes.
pub(super) fn codes(call: Call<'_>, command: &CodesCommand) -> Result {
    let out = call.out();
    match command {
        CodesCommand::New => {
            let made = ask(&mut call.as_owner()?, RecoveryVerb::NewCodes {})?;
            out.either(&made, |made| made["url"].as_str().unwrap_or_default().to_owned())?;
            out.say("It is secret. Put it into the app, then: stvor vault codes confirm CODE");
            Ok(())
        }
        CodesCommand::Confirm { code } => {
            ask(&mut call.as_owner()?, RecoveryVerb::ConfirmCodes { code: Hidden::new(code.clone()) })?;
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
            let code = Hidden::new(code.clone());
            let verb = RecoveryVerb::ApproveWithCode { id: *request, seconds: *seconds, code };
            ask(&mut call.as_owner()?, verb)?;
            out.either(&json!({ "granted": request.to_string() }), |_| "granted, once".to_owned())
        }
    }
}
