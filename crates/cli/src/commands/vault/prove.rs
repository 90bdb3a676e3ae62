//! `stvor vault property`, `witness`.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;
use stvor_base::Timestamp;
use stvor_crypto::{Secret, SystemRandom};
use stvor_keys::Keyfile;
use stvor_tlog::witness::Cosigner;
use stvor_tlog::{Note, Verifier};
use stvor_vault::SystemClock;
use stvor_vault::daemon::RecoveryVerb;
use stvor_vault::proofs::{Attestation, Claim, ContentOpening, PropertyProof};
use stvor_vault::witness::WitnessService;

use super::Call;
use super::backup::{absolute, ask, coded};
use super::draft::{draft, keep};
use crate::args::{ClaimArgs, PropertyCommand, WitnessCommand};
use crate::failure::{Failure, Result};
use crate::life::Ending;
use crate::render::{GOOD, paint, rfc3339, safe};

fn claim(args: &ClaimArgs) -> Claim {
    match (args.level_at_most, args.stored_by, args.stored_since) {
        (Some(level), _, _) => Claim::LevelAtMost(level),
        (_, Some(time), _) => Claim::StoredAtOrBefore(time),
        (_, _, Some(time)) => Claim::StoredAtOrAfter(time),
        _ => Claim::Exists,
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Failure::File { what: "can not read", path: path.into(), source })
}

pub(super) fn keys(texts: &[String]) -> Result<Vec<Verifier>> {
    texts.iter().map(|text| Verifier::parse(text).map_err(coded)).collect()
}

/// Proofs of properties.
pub(super) fn property(call: Call<'_>, command: &PropertyCommand) -> Result {
    let out = call.out();
    match command {
        PropertyCommand::Prove { memory, claim: args, audience, out: file } => {
            let verb =
                RecoveryVerb::ProveProperty { id: *memory, claim: claim(args), audience: audience.clone() };
            let proof = ask(&mut call.as_owner()?, verb)?;
            let failed = |source| Failure::File { what: "can not write", path: file.clone(), source };
            std::fs::write(file, format!("{proof:#}\n")).map_err(failed)?;
            out.either(&json!({ "proof": file.display().to_string() }), |_| file.display().to_string())
        }
        PropertyCommand::Open { memory, out: path } => {
            let mut file = draft(path)?;
            let opening = ask(&mut call.as_owner()?, RecoveryVerb::OpenContent { id: *memory })?;
            let failed = |source| Failure::File { what: "can not write", path: path.clone(), source };
            writeln!(file, "{opening}").map_err(failed)?;
            keep(file, path)?;
            out.either(&json!({ "opening": path.display().to_string() }), |_| path.display().to_string())
        }
        PropertyCommand::Check { proof, audience, verifier, content, opening } => {
            let trusted = keys(verifier)?;
            let origin = trusted.first().map(|key| key.name().to_owned()).unwrap_or_default();
            let bytes = read(proof)?;
            let content = content.as_deref().zip(opening.as_deref());
            if let Ok(note) = Note::parse(&bytes) {
                if content.is_some() {
                    return Err(Failure::Usage("an attestation is about no content".into()));
                }
                return attested(call, &Attestation::open(&note, (&origin, &trusted))?, &origin);
            }
            let proved: PropertyProof = serde_json::from_slice(&bytes).map_err(|_| Failure::Coded {
                code: "VAULT_UNPROVEN",
                message: format!("{} is neither a proof nor an attestation of a vault", proof.display()),
                retryable: false,
            })?;
            let Some(audience) = audience else {
                return Err(Failure::Usage(
                    "a proof is checked for whom it was made: give --audience".into(),
                ));
            };
            let checkpoint = proved.verify((&origin, &trusted), audience)?;
            if let Some((content, opening)) = content {
                is_content(&proved, &read(content)?, &read(opening)?)?;
            }
            let mut object =
                json!({ "ok": true, "claim": proved.claim, "log": origin, "size": checkpoint.size() });
            if content.is_some() {
                object["content"] = json!(true);
            }
            out.either(&object, |object| {
                let ok = paint(GOOD, "ok");
                let beside = if content.is_some() { ", and the content is that of the memory" } else { "" };
                format!(
                    "{ok}  {}, in {} signed at {} events{beside}",
                    object["claim"],
                    safe(&origin),
                    checkpoint.size()
                )
            })
        }
        PropertyCommand::Attest { statement } => {
            let made = ask(&mut call.as_owner()?, RecoveryVerb::Attest { statement: statement.clone() })?;
            out.either(&made, |made| made["note"].as_str().unwrap_or_default().trim_end().to_owned())
        }
    }
}

/// Refuses a content that is not that of the memory. `recall` ends a text that it writes to a file with a line end.
fn is_content(proved: &PropertyProof, content: &[u8], opening: &[u8]) -> Result {
    let opening: ContentOpening = serde_json::from_slice(opening).map_err(|_| Failure::Coded {
        code: "VAULT_UNPROVEN",
        message: "the file of --opening is not what `stvor vault property open` writes".into(),
        retryable: false,
    })?;
    let whole = proved.verify_content(&opening, content);
    match content.strip_suffix(b"\n") {
        Some(line) => whole.or_else(|_| proved.verify_content(&opening, line))?,
        None => whole?,
    }
    Ok(())
}

/// Tells what somebody signed.
fn attested(call: Call<'_>, signed: &Attestation, origin: &str) -> Result {
    let at = rfc3339(Timestamp::from_millis(signed.at));
    let object = json!({ "ok": true, "statement": signed.statement, "at": at, "log": origin });
    call.out().either(&object, |_| {
        format!("{}  {} says, at {at}: {}", paint(GOOD, "ok"), safe(origin), safe(&signed.statement))
    })
}

/// A failure of reaching the witness has a code of its own.
fn unreached(failure: Failure, socket: &Path) -> Failure {
    match failure {
        Failure::Coded { code: "VAULT_IO", message, .. }
            if message.contains(&socket.display().to_string()) =>
        {
            let message = format!("the witness does not answer: {message}");
            Failure::Coded { code: "WITNESS_UNREACHABLE", message, retryable: true }
        }
        other => other,
    }
}

/// Witnesses.
pub(super) async fn witness(call: Call<'_>, command: &WitnessCommand) -> Result {
    let out = call.out();
    let told = |socket: &Path, verb: RecoveryVerb, word: &str| {
        let answer = ask(&mut call.as_owner()?, verb).map_err(|failure| unreached(failure, socket))?;
        out.either(&answer, |answer| format!("{}  {word} {} events", paint(GOOD, "ok"), answer["size"]))
    };
    match command {
        WitnessCommand::Ask { socket, key } => told(
            socket,
            RecoveryVerb::AskWitness { socket: absolute(socket)?, key: key.clone() },
            "the witness signed",
        ),
        WitnessCommand::Verify { socket, key } => {
            let verb = RecoveryVerb::VerifyWitness { socket: absolute(socket)?, key: key.clone() };
            told(socket, verb, "the log continues what the witness signed:")
        }
        WitnessCommand::Serve { dir, name, socket, shared, logs, life } => {
            let mut ending = Ending::watch(*life)?;
            std::fs::create_dir_all(dir).map_err(|source| Failure::File {
                what: "can not make",
                path: dir.clone(),
                source,
            })?;
            let file = dir.join("key");
            if !file.exists() {
                Keyfile::create(&file, &mut SystemRandom::new()).map_err(coded)?;
            }
            // The checks of a keyfile, then its bytes as the seed.
            Keyfile::read(&file).map_err(coded)?;
            let seed = Secret::from_slice(stvor_crypto::SecretBytes::from(read(&file)?).expose());
            let cosigner = Cosigner::from_seed(name, &seed.map_err(coded)?).map_err(coded)?;
            let mut service = WitnessService::open(dir, cosigner)?;
            for key in keys(logs)? {
                let name = key.name().to_owned();
                service.trust(&name, key)?;
            }
            let _ = std::fs::remove_file(socket);
            let failed = |source| Failure::File { what: "can not listen on", path: socket.clone(), source };
            let listener = std::os::unix::net::UnixListener::bind(socket).map_err(failed)?;
            let mode = std::fs::Permissions::from_mode(if *shared { 0o666 } else { 0o600 });
            let failed = |source| Failure::File { what: "can not protect", path: socket.clone(), source };
            std::fs::set_permissions(socket, mode).map_err(failed)?;
            let key = service.verifier().to_string();
            let object = json!({ "event": "serving", "socket": socket.display().to_string(), "key": key });
            out.either(&object, |_| format!("serving {}\n{key}", socket.display()))?;
            let serving = move || service.serve(&listener, &SystemClock::new());
            let ended = ending.while_serving(serving).await;
            let _ = std::fs::remove_file(socket);
            ended
        }
    }
}
