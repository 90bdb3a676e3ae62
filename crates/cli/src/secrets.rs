//! Passphrases come from files, descriptors, variables or a prompt, never from the command line; tokens may stand there.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Read as _};
use std::path::Path;

use stvor_wire::client::Credential;

use crate::args::Shared;
use crate::config::Settings;
use crate::failure::{Failure, Result};

/// Longest secret that is read, in bytes.
const MAX_SECRET_BYTES: u64 = 4096;

/// A secret on its way from where it was read to who needs it.
pub(crate) struct SecretText(String);

impl SecretText {
    /// A secret that was read elsewhere.
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The app token: the literal one, or the first line of the token file.
pub(crate) fn app_token(settings: &Settings) -> Result<SecretText> {
    if let Some(token) = &settings.client.token {
        return Ok(SecretText(token.clone()));
    }
    match &settings.client.token_file {
        Some(file) => first_line(file, "the app token"),
        None => Err(Failure::NoToken),
    }
}

/// The client token, if one was given: the literal one, or the first line of its file.
pub(crate) fn client_token(settings: &Settings) -> Result<Option<SecretText>> {
    if let Some(token) = &settings.client.client_token {
        return Ok(Some(SecretText(token.clone())));
    }
    settings.client.client_token_file.as_deref().map(|file| first_line(file, "the client token")).transpose()
}

/// What lets this client in: the client token, else the app token.
pub(crate) fn credential(settings: &Settings) -> Result<Credential> {
    match client_token(settings)? {
        Some(token) => Ok(Credential::ClientToken(token.0)),
        None => Ok(Credential::AppToken(app_token(settings)?.0)),
    }
}

/// The passphrase of the store, if one was offered.
pub(crate) fn passphrase(shared: &Shared, settings: &Settings) -> Result<Option<SecretText>> {
    if let Some(fd) = shared.passphrase_fd {
        return from_descriptor(fd, "the passphrase").map(Some);
    }
    if shared.ask_passphrase {
        return ask("Passphrase of the store", "--passphrase-file or --passphrase-fd").map(Some);
    }
    settings.client.passphrase_file.as_deref().map(|file| private_line(file, "the passphrase")).transpose()
}

/// A secret from a file that is its owner's alone, or from a descriptor, if either was given.
pub(crate) fn from_file_or_fd(
    file: Option<&Path>,
    fd: Option<u32>,
    what: &'static str,
) -> Result<Option<SecretText>> {
    match (file, fd) {
        (Some(file), _) => private_line(file, what).map(Some),
        (None, Some(fd)) => first_line(Path::new(&format!("/dev/fd/{fd}")), what).map(Some),
        (None, None) => Ok(None),
    }
}

/// Asks at the terminal without showing what is typed; `others` are the options that say it without one.
pub(crate) fn ask(what: &str, others: &str) -> Result<SecretText> {
    ask_with(dialoguer::Password::new().with_prompt(what), others)
}

/// Asks for a new secret, twice.
pub(crate) fn ask_new(what: &str, others: &str) -> Result<SecretText> {
    let again = format!("{what}, once more");
    let prompt = dialoguer::Password::new()
        .with_prompt(what)
        .with_confirmation(again, "The two are not the same; try again");
    ask_with(prompt, others)
}

fn ask_with(prompt: dialoguer::Password<'_>, others: &str) -> Result<SecretText> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(format!("nobody is here to be asked for a secret: use {others}")));
    }
    match prompt.interact() {
        Ok(text) => Ok(SecretText(text)),
        Err(dialoguer::Error::IO(source)) => Err(Failure::io("can not ask for the passphrase", source)),
    }
}

/// The first line that a descriptor gives.
pub(crate) fn from_descriptor(fd: u32, what: &'static str) -> Result<SecretText> {
    first_line(Path::new(&format!("/dev/fd/{fd}")), what)
}

/// As [`first_line`], of a file that nobody but its owner may read. What is no file (a pipe of the shell) has no such mode.
#[cfg(unix)]
pub(crate) fn private_line(file: &Path, what: &'static str) -> Result<SecretText> {
    private(file, what)?;
    first_line(file, what)
}

/// Refuses a file with a secret that others may read or write to. One that is not there is for its reader to tell of.
#[cfg(unix)]
pub(crate) fn private(file: &Path, what: &'static str) -> Result {
    use std::os::unix::fs::PermissionsExt as _;
    let about = std::fs::metadata(file).ok().filter(std::fs::Metadata::is_file);
    match about.map(|about| about.permissions().mode() & 0o777) {
        Some(mode) if mode & 0o077 != 0 => {
            let reason = format!(
                "others may read it or write to it (mode {mode:o}): run `chmod 600 {}`, and change what is in it if somebody did",
                file.display()
            );
            Err(Failure::Secret {
                what,
                from: file.display().to_string(),
                source: std::io::Error::other(reason),
            })
        }
        _ => Ok(()),
    }
}

/// As [`first_line`]: here files have no mode that says who may read them.
#[cfg(not(unix))]
pub(crate) fn private_line(file: &Path, what: &'static str) -> Result<SecretText> {
    first_line(file, what)
}

/// The first line of a file, without its end.
pub(crate) fn first_line(file: &Path, what: &'static str) -> Result<SecretText> {
    let failed = |source| Failure::Secret { what, from: file.display().to_string(), source };
    let opened = std::fs::File::open(file).map_err(failed)?;
    let mut line = String::new();
    BufReader::new(opened.take(MAX_SECRET_BYTES)).read_line(&mut line).map_err(failed)?;
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    if line.is_empty() {
        return Err(failed(std::io::Error::other("its first line is empty")));
    }
    Ok(SecretText(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_the_first_line_and_never_shows_in_debug() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "stvor_dev_x\r\nmore\n").unwrap();
        let secret = first_line(&file, "the app token").unwrap();
        assert_eq!(secret.expose(), "stvor_dev_x");
        assert_eq!(format!("{secret:?}"), "[redacted]");
    }

    #[cfg(unix)]
    #[test]
    fn a_passphrase_that_others_may_read_or_change_is_refused_with_what_to_run() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("passphrase");
        std::fs::write(&file, "correct horse\n").unwrap();
        let read = |mode| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            from_file_or_fd(Some(&file), None, "the passphrase")
        };
        for mode in [0o600, 0o400, 0o700] {
            assert_eq!(read(mode).unwrap().unwrap().expose(), "correct horse", "{mode:o}");
        }
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o666] {
            let failure = read(mode).unwrap_err();
            let code = stvor_base::ErrorCode::code(&failure);
            assert_eq!((failure.exit(), code), (3, "SECRET_UNREADABLE"), "{mode:o}");
            let said = failure.to_string();
            assert!(said.contains(&format!("chmod 600 {}", file.display())), "{said}");
        }
        let (reader, mut writer) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut writer, b"from a pipe\n").unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&reader);
        let piped = private_line(Path::new(&format!("/dev/fd/{fd}")), "the passphrase").unwrap();
        assert_eq!(piped.expose(), "from a pipe");
    }

    #[test]
    fn an_empty_file_is_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "\n").unwrap();
        let failure = first_line(&file, "the app token").unwrap_err();
        assert_eq!(failure.exit(), 3);
    }
}
