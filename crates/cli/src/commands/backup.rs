//! `stvor backup` and `stvor restore`.

use serde_json::json;
use stvor::recipients::{Identity, Opening, Recipient, Sealing};
use stvor::{Backup, BackupOptions, Client, SecretBytes};

use crate::args::{BackupArgs, BackupSecret, JournalArgs, RestoreArgs};
use crate::failure::{Failure, Result};
use crate::progress::Bar;
use crate::render::{FAINT, paint, rfc3339, safe};
use crate::secrets::{self, SecretText};
use crate::session::Context;

/// Writes a backup.
pub(crate) async fn run(context: Context<'_>, args: &BackupArgs) -> Result {
    if args.keep.is_some() && !args.path.is_dir() {
        return Err(Failure::Usage(
            "--keep counts the backups in a directory: give one in place of a file".to_owned(),
        ));
    }
    let sealing = sealing(args)?;
    let client = context.known(&args.me).await?;
    let made = make(context, &client, (args, sealing)).await;
    client.close().await;
    let made = made?;
    let object = json!({
        "path": made.path.display().to_string(),
        "bytes": made.bytes,
        "messages": made.messages,
        "conversations": made.conversations,
        "removed": made.removed.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
    });
    context.out.either(&object, |_| {
        let mut text = format!(
            "{}  {} bytes, {} messages of {} conversations",
            made.path.display(),
            made.bytes,
            made.messages,
            made.conversations
        );
        for path in &made.removed {
            text.push_str(&format!("\n{} {}", paint(FAINT, "removed"), path.display()));
        }
        text
    })
}

async fn make(
    context: Context<'_>,
    client: &Client,
    (args, sealing): (&BackupArgs, Sealing),
) -> Result<Backup> {
    let bar = Bar::new(context.out, "conversations");
    let told = bar.clone();
    let mut options = BackupOptions::default().on_progress(move |progress| told.at(progress));
    if let Some(keep) = args.keep {
        options = options.keep(keep.into());
    }
    let made = client.backup(&args.path, sealing, options).await;
    bar.end();
    Ok(made?)
}

fn key_error(error: stvor::KeyError) -> Failure {
    Failure::coded(&error)
}

fn bytes(text: &SecretText) -> SecretBytes {
    SecretBytes::from_slice(text.expose().as_bytes())
}

fn given(secret: &BackupSecret) -> Result<Option<SecretText>> {
    let (file, fd) = (secret.backup_passphrase_file.as_deref(), secret.backup_passphrase_fd);
    secrets::from_file_or_fd(file, fd, "the passphrase of the backup")
}

fn sealing(args: &BackupArgs) -> Result<Sealing> {
    let passphrase = given(&args.secret)?;
    match (&args.recipient[..], passphrase) {
        ([], Some(text)) => Sealing::passphrase(&bytes(&text)).map_err(key_error),
        ([], None) => {
            let text = secrets::ask_new(
                "Passphrase of the backup",
                "--backup-passphrase-file, --backup-passphrase-fd or --recipient",
            )?;
            Sealing::passphrase(&bytes(&text)).map_err(key_error)
        }
        (_, Some(_)) => Err(Failure::Usage(
            "a backup is sealed to recipients or to a passphrase, not to both: give one kind".to_owned(),
        )),
        (recipients, None) => {
            let all = recipients.iter().map(|text| text.parse::<Recipient>().map_err(key_error));
            Ok(Sealing::to(all.collect::<Result<_>>()?))
        }
    }
}

fn opening(args: &RestoreArgs) -> Result<Opening> {
    if let Some(file) = &args.identity_file {
        let text = std::fs::read(file).map(SecretBytes::from).map_err(|source| Failure::Secret {
            what: "the age key",
            from: file.display().to_string(),
            source,
        })?;
        return Ok(Opening::with(Identity::parse_file(&text).map_err(key_error)?));
    }
    let text = match given(&args.secret)? {
        Some(text) => text,
        None => secrets::ask(
            "Passphrase of the backup",
            "--backup-passphrase-file, --backup-passphrase-fd or --identity-file",
        )?,
    };
    Opening::passphrase(&bytes(&text)).map_err(key_error)
}

/// Restores a backup.
pub(crate) async fn restore(context: Context<'_>, args: &RestoreArgs) -> Result {
    let opening = opening(args)?;
    let app = context.app().await?;
    let bar = Bar::new(context.out, "bytes");
    let told = bar.clone();
    let progress: stvor::OnProgress = std::sync::Arc::new(move |progress| told.at(progress));
    let restored = app.restore(&args.file, opening, Some(progress)).await;
    bar.end();
    let restored = restored?;
    let object = json!({
        "user": restored.user.to_string(),
        "made_at": rfc3339(restored.made_at),
        "messages": restored.messages,
        "conversations": restored.conversations,
    });
    context.out.either(&object, |_| {
        format!(
            "{} is restored from {}: {} messages of {} conversations",
            restored.user,
            rfc3339(restored.made_at),
            restored.messages,
            restored.conversations
        )
    })?;
    context
        .out
        .say("Do not go on with the old store beside this one: two devices of one identity are a clone");
    Ok(())
}

/// Shows who did what.
pub(crate) async fn journal(context: Context<'_>, args: &JournalArgs) -> Result {
    let client = context.known(&args.me).await?;
    let entries = client.journal(args.limit.into()).await;
    client.close().await;
    let entries = entries?;
    for entry in entries.iter().rev() {
        let object = json!({
            "at": rfc3339(entry.at),
            "who": entry.who,
            "deed": entry.deed.name(),
            "subject": entry.subject,
            "detail": entry.detail,
        });
        context.out.either(&object, |_| {
            format!(
                "{}  {:<20} {}  {}  {}",
                paint(FAINT, rfc3339(entry.at)),
                entry.deed.name(),
                safe(&entry.who),
                safe(&entry.subject),
                paint(FAINT, safe(&entry.detail))
            )
        })?;
    }
    if entries.is_empty() {
        context.out.say("Nothing was noted");
    }
    Ok(())
}
