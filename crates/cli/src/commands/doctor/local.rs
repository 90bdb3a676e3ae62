//! Checks of what keeps things: directory, key files, stores and their servers.

use std::path::Path;

use stvor::{ConnectOptions, ConnectionState};

use super::Check;
use crate::args::Me;
use crate::failure::Failure;
use crate::session::Context;

/// How deep key files stand under the data directory: relay and app, user, file.
const DEPTH: usize = 3;

/// Most files that are looked at.
const MAX_FILES: usize = 10_000;

/// The data directory: there, private, writable; key files private.
pub(crate) fn directory(data: &Path) -> Vec<Check> {
    const NAME: &str = "data";
    let shown = data.display();
    let Ok(metadata) = std::fs::metadata(data) else {
        return vec![Check::ok(NAME, format!("{shown} does not exist yet; the first command makes it"))];
    };
    if !metadata.is_dir() {
        return vec![Check::problem(
            NAME,
            "INVALID_CONFIG",
            format!("{shown} is not a directory"),
            "give another --data",
        )];
    }
    let mut checks = Vec::new();
    let probe = data.join(format!(".doctor-{}", std::process::id()));
    match std::fs::write(&probe, b"") {
        Ok(()) => {
            drop(std::fs::remove_file(&probe));
            checks.push(Check::ok(NAME, format!("{shown} can be written")));
        }
        Err(error) => checks.push(Check::problem(
            NAME,
            "FILE_ERROR",
            format!("{shown} can not be written: {error}"),
            "free some space, correct the owner (chown) or give another --data",
        )),
    }
    checks.extend(modes(data));
    checks
}

#[cfg(unix)]
fn modes(data: &Path) -> Vec<Check> {
    use std::os::unix::fs::PermissionsExt as _;

    let mut found = Vec::new();
    let mut left = MAX_FILES;
    files(data, DEPTH, &mut left, &mut found);
    let is_key = |path: &Path| {
        path.extension().is_some_and(|kind| kind == "key")
            || path.file_name().is_some_and(|name| name.to_string_lossy().contains("keyfile"))
    };
    let keys: Vec<_> = found.into_iter().filter(|path| is_key(path)).collect();
    let open: Vec<_> = keys
        .iter()
        .filter(|path| {
            std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
        })
        .collect();
    match open.first() {
        Some(path) => vec![Check::problem(
            "key files",
            "KEYFILE_PERMISSIONS",
            format!("others can read {}", path.display()),
            format!("chmod 600 {}; if others had access, treat what it sealed as seen", path.display()),
        )],
        None if keys.is_empty() => Vec::new(),
        None => vec![Check::ok("key files", format!("{} readable by you alone", keys.len()))],
    }
}

#[cfg(not(unix))]
fn modes(_data: &Path) -> Vec<Check> {
    Vec::new()
}

#[cfg(unix)]
fn files(directory: &Path, depth: usize, left: &mut usize, found: &mut Vec<std::path::PathBuf>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if *left == 0 {
            return;
        }
        *left -= 1;
        if path.is_dir() && depth > 1 {
            files(&path, depth - 1, left, found);
        } else {
            found.push(path);
        }
    }
}

/// What production would refuse: problems with `--production`, else warnings.
pub(crate) async fn production(context: Context<'_>) -> Vec<Check> {
    const NAME: &str = "production";
    let Ok(builder) = context.builder() else { return Vec::new() };
    let (findings, refused) = match builder.open().await {
        Ok(app) => (app.findings().to_vec(), false),
        Err(error) => match error.kind() {
            stvor::ErrorKind::NotForProduction { findings } => (findings.clone(), true),
            // What is wrong here the other checks say.
            _ => return Vec::new(),
        },
    };
    if findings.is_empty() {
        return vec![Check::ok(NAME, "nothing is missing or weak")];
    }
    findings
        .into_iter()
        .map(|found| {
            if refused && found.refused {
                Check::problem(NAME, "NOT_FOR_PRODUCTION", found.what, found.fix)
            } else {
                Check::warning(NAME, found.what, found.fix).named(found.code)
            }
        })
        .collect()
}

/// The server of the stores, if they are on one: whether it answers, what it is and how it is set. What is weak about it says
/// the check of production.
pub(crate) async fn server(context: Context<'_>) -> Vec<Check> {
    const NAME: &str = "store";
    let stores = match crate::store::configured(&context.settings.client) {
        Ok(None) => return Vec::new(),
        Ok(Some(stores)) => stores,
        Err(failure) => {
            return vec![Check::failure(NAME, &failure, "correct `store` in [client] (STVOR_STORE)")];
        }
    };
    match stores.status().await {
        Ok(status) => {
            let line = |(name, value): (&str, String)| Check::ok(NAME, format!("{name:<26} {value}"));
            let kind = [("kind", stores.facts().kind.to_owned())];
            kind.into_iter().chain(status).map(line).collect()
        }
        Err(error) => {
            let code = stvor_base::ErrorCode::code(&error);
            vec![Check::problem(NAME, code, error.to_string(), advice(code))]
        }
    }
}

/// What the header of a user's store on a server says; the user is not opened, and not made.
async fn shared_store(app: &stvor::App, user: &str) -> Check {
    const NAME: &str = "user";
    match app.store_info(user).await {
        Ok(None) => Check::ok(NAME, format!("{user} has no store there yet; the first command makes it")),
        Ok(Some(info)) => {
            let id: String = info.id.iter().map(|byte| format!("{byte:02x}")).collect();
            let rotating = if info.rotating { ", one is under way" } else { "" };
            let (holder, rotations) = (info.holder.name(), info.rotations);
            Check::ok(
                NAME,
                format!("{user}: store {id}, opens with a {holder}, {rotations} rotations{rotating}"),
            )
        }
        Err(error) => {
            Check::problem(NAME, error.code(), format!("{user}: {}", error.message()), advice(error.code()))
        }
    }
}

/// The stores of the users at this relay and in this app: each opens, and the relay knows its identity.
pub(crate) async fn stores(context: Context<'_>, me: &Me, data: &Path, reached: bool) -> Vec<Check> {
    const NAME: &str = "user";
    let app = match context.app().await {
        Ok(app) => app,
        Err(Failure::NoToken) => return Vec::new(),
        Err(failure) => return vec![Check::failure(NAME, &failure, "see the message")],
    };
    let wanted = context.user(me).ok();
    if let (Some(_), Some(wanted)) = (&context.settings.client.store, &wanted) {
        let there = shared_store(&app, wanted).await;
        let opens = there.is_good() && app.store_info(wanted).await.is_ok_and(|info| info.is_some());
        let mut checks = vec![there];
        if opens {
            checks.push(open(&app, wanted, reached).await);
        }
        return checks;
    }
    let users: Vec<String> = app.users().iter().map(ToString::to_string).collect();
    if let Some(wanted) = wanted.as_ref().filter(|wanted| !users.contains(wanted)) {
        return vec![Check::ok(
            NAME,
            format!("{wanted} has no identity in {} yet; the first command makes it", data.display()),
        )];
    }
    let mut checks = Vec::new();
    for user in users.iter().filter(|user| wanted.as_ref().is_none_or(|wanted| *user == wanted)) {
        checks.push(open(&app, user, reached).await);
    }
    checks
}

/// Whether a user's store opens with the key that is given, and whether the relay knows its identity.
async fn open(app: &stvor::App, user: &str, reached: bool) -> Check {
    const NAME: &str = "user";
    let options =
        ConnectOptions { require_relay: reached, allow_unregistered: !reached, ..ConnectOptions::default() };
    match app.connect_with(user, options).await {
        Ok(client) => {
            let pending = client.pending();
            let state = client.state();
            client.close().await;
            let found =
                format!("{user}: the store opens, {}, {pending} messages wait to be sent", state.name());
            match state {
                ConnectionState::Failed(code) => Check::problem(NAME, code, found, advice(code)),
                _ => Check::ok(NAME, found),
            }
        }
        Err(error) => {
            let failure = Failure::from(error);
            let code = stvor_base::ErrorCode::code(&failure);
            let found = format!("{user}: {failure}");
            match code {
                "STORE_LOCKED" => Check::warning(
                    NAME,
                    found,
                    "fine if `stvor chat` or `stvor listen` runs as this user; else end it",
                ),
                code => Check::problem(NAME, code, found, advice(code)),
            }
        }
    }
}

fn advice(code: &str) -> &'static str {
    match code {
        "USER_ID_TAKEN" => {
            "give the data directory that holds the identity; if it is lost, run `stvor identity replace` or have the operator run `stvor relay user reset`"
        }
        "IDENTITY_HANDED_OVER" => {
            "if you rotated, use the data directory with the new identity; if you did not, somebody has your key: warn your contacts and have the operator run `stvor relay user reset`"
        }
        "ROLLBACK_DETECTED" => "this is an old copy: use the newest one, or run `stvor account recover`",
        "STORE_TOO_NEW" => "a newer stvor wrote it: update this one",
        "WRONG_KEY" | "KEY_REQUIRED" => {
            "give the passphrase (--passphrase-file) or key file that it was made with"
        }
        "STORE_UNREACHABLE" => {
            "is the server running, and are host, port, user and password of `store` right? A password can stand in store_password_file"
        }
        "STORE_SERVER_UNTRUSTED" => {
            "give store_root_certificate, and the host name that the certificate is for"
        }
        "RELAY_UNAVAILABLE" => "see the check of the relay",
        _ => "see the message; the page of the code in the documentation says more",
    }
}
