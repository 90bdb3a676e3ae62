//! `stvor identity`: who you are, and whether they are who they say.

use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use serde_json::json;
use stvor::{Client, ConnectOptions, RecoveryPhrase, RotateOptions, SafetyNumber};

use crate::args::{IdentityArgs, IdentityCommand, IdentityFrom, Me};
use crate::ask::sure;
use crate::failure::{Failure, Result};
use crate::render::{GOOD, Hex, LOUD, Out, paint, rfc3339};
use crate::secrets;
use crate::session::Context;

/// Shows or changes what is known of identities.
pub(crate) async fn run(context: Context<'_>, args: &IdentityArgs) -> Result {
    let me = match &args.command {
        IdentityCommand::Replace { me, sure } => return replace(context, me, sure.yes).await,
        IdentityCommand::Rotate { me, sure, not_derived, accept_lossy_store } => {
            let options =
                RotateOptions { not_derived: *not_derived, accept_lossy_store: *accept_lossy_store };
            return rotate(context, me, (sure.yes, options)).await;
        }
        IdentityCommand::Create { me, from } => return create(context, me, from).await,
        IdentityCommand::Show { me, .. }
        | IdentityCommand::Verify { me, .. }
        | IdentityCommand::Unverify { me, .. }
        | IdentityCommand::Accept { me, .. } => me,
    };
    // A registered user needs no relay to look at identities.
    let client = context.connect(me, ConnectOptions::default()).await?;
    let out = context.out;
    let done = match &args.command {
        IdentityCommand::Show { peer: None, qr, .. } => show_own(&client, *qr, out),
        IdentityCommand::Show { peer: Some(peer), qr, .. } => show_shared(&client, peer, *qr, out).await,
        IdentityCommand::Verify { peer, number, qr_hex, .. } => {
            let claim = match (number, qr_hex) {
                (Some(number), _) => Claim::Number(number),
                (None, Some(hex)) => Claim::Code(hex),
                (None, None) => Claim::Ask,
            };
            verify(&client, peer, claim, out).await
        }
        IdentityCommand::Unverify { peer, .. } => match client.unverify(peer.as_str()).await {
            Ok(()) => out.either(&json!({ "peer": peer, "verified": false }), |_| {
                format!("{peer} is no longer verified")
            }),
            Err(error) => Err(error.into()),
        },
        IdentityCommand::Replace { .. } | IdentityCommand::Rotate { .. } | IdentityCommand::Create { .. } => {
            Ok(())
        }
        IdentityCommand::Accept { peer, fingerprint, .. } => match accept(&client, peer, fingerprint).await {
            Ok(()) => out.either(&json!({ "peer": peer, "accepted": true }), |_| {
                format!("The new identity of {peer} is accepted")
            }),
            Err(error) => Err(error.into()),
        },
    };
    client.close().await;
    done
}

async fn accept(client: &Client, peer: &str, fingerprint: &Option<String>) -> stvor::Result<()> {
    match fingerprint {
        Some(fingerprint) => client.accept_identity_named(peer, fingerprint).await,
        None => client.accept_identity(peer).await,
    }
}

/// Makes an identity, once.
async fn create(context: Context<'_>, me: &Me, from: &IdentityFrom) -> Result {
    let user = context.user(me)?;
    let key = |error: stvor::KeyError| Failure::coded(&error);
    let mut builder = context.builder()?;
    let mut fresh = None;
    let (file, fd) = (from.phrase_file.as_deref(), from.phrase_fd);
    if from.phrase {
        fresh = Some(RecoveryPhrase::fresh().map_err(key)?);
    } else if let Some(words) = secrets::from_file_or_fd(file, fd, "the recovery phrase")? {
        builder = builder.identity_phrase(words.expose());
    } else if from.ask_phrase {
        builder = builder
            .identity_phrase(secrets::ask("Recovery phrase", "--phrase-file or --phrase-fd")?.expose());
    } else if let Some(file) = from.identity_passphrase_file.as_deref() {
        let text = secrets::from_file_or_fd(Some(file), None, "the passphrase of the identity")?;
        builder = builder.identity_passphrase(text.as_ref().map_or("", |text| text.expose()));
    }
    let words = fresh.as_ref().map(RecoveryPhrase::words);
    let words = words.as_ref().and_then(|words| core::str::from_utf8(words.expose()).ok());
    if let Some(words) = words {
        builder = builder.identity_phrase(words);
    }
    let app = builder.open().await?;
    if app.users().iter().any(|known| known.as_str() == user) {
        return Err(Failure::Coded {
            code: "IDENTITY_EXISTS",
            message: format!("{user} has an identity here already, and an identity is made once"),
            retryable: false,
        });
    }
    // Before the identity is made: whatever happens then, the words are not lost.
    if let Some(words) = words {
        context.out.either(&json!({ "user": user, "phrase": words }), |_| in_rows(words))?;
        context.out.say("Write the words on paper: they are shown this once, and who has them is you");
    }
    let options = ConnectOptions { new_identity: true, require_relay: true, ..ConnectOptions::default() };
    let client = app.connect_with(user.as_str(), options).await?;
    let own = client.identity();
    client.close().await;
    let object = json!({
        "user": own.user.to_string(),
        "fingerprint": own.fingerprint,
        "created_at": rfc3339(own.created_at),
    });
    context.out.either(&object, |_| format!("user         {}\nfingerprint  {}", own.user, own.fingerprint))
}

/// The words of a phrase, six a row, each row with the number of its first word.
fn in_rows(words: &str) -> String {
    let words: Vec<&str> = words.split(' ').collect();
    let row = |(row, words): (usize, &[&str])| format!("    {:>2}  {}", row * 6 + 1, words.join(" "));
    let rows: Vec<String> = words.chunks(6).enumerate().map(row).collect();
    format!("Recovery phrase\n\n{}\n", rows.join("\n"))
}

/// Takes the name over from a device that is lost.
async fn replace(context: Context<'_>, me: &Me, yes: bool) -> Result {
    let user = context.user(me)?;
    sure(
        yes,
        &format!(
            "Take {user} over with the identity of this device? Mail that waits for the old one is dropped, and everybody who knows {user} is warned."
        ),
    )?;
    let client = context.replace(me).await?;
    let done = show_own(&client, false, context.out);
    client.close().await;
    context.out.say("Compare safety numbers with your peers again: theirs are void");
    done
}

/// Hands over to a fresh identity that the old one signs.
async fn rotate(context: Context<'_>, me: &Me, (yes, options): (bool, RotateOptions)) -> Result {
    let user = context.user(me)?;
    sure(
        yes,
        &format!(
            "Replace the identity of {user}? Contacts follow it by themselves, safety numbers are others from then on, and older backups are of no use any more."
        ),
    )?;
    let app = context.builder()?.open().await?;
    let rotated = app.rotate_identity_with(&user, options).await?;
    rotated.client.close().await;
    let object = json!({ "user": user, "old_fingerprint": rotated.old, "fingerprint": rotated.new });
    context.out.either(&object, |_| {
        format!("user         {user}\nwas          {}\nfingerprint  {}", rotated.old, rotated.new)
    })?;
    context.out.say("Make a new backup, compare safety numbers with your peers again, and have a member of each of your groups add you again (stvor group add); if the old key was stolen, make groups anew that you made");
    Ok(())
}

fn show_own(client: &Client, qr: bool, out: Out) -> Result {
    let own = client.identity();
    let object = json!({
        "user": own.user.to_string(),
        "device": own.device.to_string(),
        "fingerprint": own.fingerprint,
        "created_at": rfc3339(own.created_at),
        "store": client.data_path().map(|path| path.display().to_string()),
    });
    out.either(&object, |_| {
        let mut text = format!(
            "user         {}\ndevice       {}\nfingerprint  {}\nsince        {}",
            own.user,
            own.device,
            own.fingerprint,
            rfc3339(own.created_at)
        );
        if let Some(path) = client.data_path() {
            text.push_str(&format!("\nstore        {}", path.display()));
        }
        text
    })?;
    if qr && !out.json {
        out.line(draw(own.fingerprint.as_bytes())?)?;
    }
    Ok(())
}

async fn show_shared(client: &Client, peer: &str, qr: bool, out: Out) -> Result {
    let number = client.safety_number(peer).await?;
    let object = json!({
        "user": client.user().to_string(),
        "peer": peer,
        "safety_number": number.to_string(),
        "digits": number.digits(),
        "qr_hex": Hex(&number.qr()).to_string().replace(' ', ""),
        "verified": number.verified(),
    });
    out.either(&object, |_| {
        let mark = if number.verified() {
            paint(GOOD, "verified")
        } else {
            paint(LOUD, "not verified: compare it with theirs by voice or in person")
        };
        format!("Safety number of {} and {peer} ({mark})\n\n{}", client.user(), grid(&number))
    })?;
    if qr && !out.json {
        out.line(draw(&number.qr())?)?;
    }
    Ok(())
}

/// Twelve groups of five digits, four a line, as people read them to each other.
pub(crate) fn grid(number: &SafetyNumber) -> String {
    let text = number.to_string();
    let groups: Vec<&str> = text.split_whitespace().collect();
    groups.chunks(4).map(|row| format!("    {}", row.join(" "))).collect::<Vec<_>>().join("\n")
}

/// What somebody says their number is.
enum Claim<'a> {
    Number(&'a str),
    Code(&'a str),
    Ask,
}

async fn verify(client: &Client, peer: &str, claim: Claim<'_>, out: Out) -> Result {
    let number = client.safety_number(peer).await?;
    let matches = match claim {
        Claim::Number(theirs) => digits(theirs)? == digits(&number.to_string())?,
        Claim::Code(hex) => number.matches_qr(&bytes(hex)?).ok_or_else(|| {
            Failure::Usage("that code is not one of a safety number of this version".to_owned())
        })?,
        Claim::Ask => ask(peer, &number)?,
    };
    if !matches {
        return Err(Failure::Coded {
            code: "SAFETY_NUMBER_MISMATCH",
            message: format!(
                "the safety numbers of you and {peer} differ: somebody may sit between you; do not send secrets, and compare again over another channel"
            ),
            retryable: false,
        });
    }
    client.verify_number(peer, &number).await?;
    out.either(&json!({ "peer": peer, "verified": true }), |_| {
        paint(GOOD, format_args!("{peer} is verified"))
    })
}

fn ask(peer: &str, number: &SafetyNumber) -> Result<bool> {
    if !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        return Err(Failure::Usage(
            "without a terminal, give the number that they see with --number".to_owned(),
        ));
    }
    let asked = format!("{}\n\nDoes {peer} see the same number?", grid(number));
    dialoguer::Confirm::new().with_prompt(asked).default(false).interact().map_err(|error| {
        let dialoguer::Error::IO(source) = error;
        Failure::io("can not ask", source)
    })
}

/// The 60 digits of a safety number, however they are spaced.
fn digits(text: &str) -> Result<String> {
    let digits: String = text.chars().filter(|c| !c.is_whitespace() && *c != '-').collect();
    if digits.len() != 60 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Failure::Usage("a safety number has 60 digits, in 12 groups of 5".to_owned()));
    }
    Ok(digits)
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    let wrong = || Failure::Usage("--qr-hex takes pairs of hexadecimal digits".to_owned());
    if !hex.len().is_multiple_of(2) || !hex.is_ascii() {
        return Err(wrong());
    }
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).map_err(|_| wrong()))
        .collect()
}

/// A code of half blocks, dark on light whatever the colours of the terminal are.
fn draw(content: &[u8]) -> Result<String> {
    let code = QrCode::new(content)
        .map_err(|error| Failure::io("can not draw the code", std::io::Error::other(error.to_string())))?;
    let drawn = code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build();
    Ok(format!("\n{drawn}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_may_be_spaced_in_any_way_but_must_be_whole() {
        let groups = ["12345"; 12];
        assert_eq!(digits(&groups.join(" ")).unwrap(), digits(&groups.join("-")).unwrap());
        assert!(digits(&["12345"; 11].join(" ")).is_err());
        assert!(digits(&"a".repeat(60)).is_err());
    }

    #[test]
    fn codes_are_read_from_hexadecimal_digits() {
        assert_eq!(bytes("00ff10").unwrap(), [0, 255, 16]);
        assert!(bytes("0").is_err() && bytes("zz").is_err() && bytes("é0").is_err());
    }

    #[test]
    fn a_drawn_code_is_a_square_of_half_blocks() {
        let drawn = draw(b"12345").unwrap();
        assert!(drawn.contains('█') && drawn.lines().count() > 8);
    }
}
