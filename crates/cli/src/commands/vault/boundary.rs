//! `stvor vault boundary`: the reference boundary daemon. Its mode is what it declares; nobody measures it.

use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use stvor_crypto::ed25519::SigningKey;
use stvor_crypto::{Secret, SecretBytes, SystemRandom};
use stvor_vault::gates::boundary::{Mode, serve};

use super::Call;
use crate::args::{BoundaryCommand, BoundaryMode};
use crate::failure::{Failure, Result};
use crate::life::Ending;
use crate::secrets;

/// Makes a key, or serves.
pub(super) async fn run(call: Call<'_>, command: &BoundaryCommand) -> Result {
    match command {
        BoundaryCommand::Key { file } => key(call, file),
        BoundaryCommand::Serve { key, socket, mode, mode_file, life } => {
            let ending = Ending::watch(*life)?;
            answer(call, (key, socket), (mode.map(declared), mode_file.clone()), ending).await
        }
    }
}

fn declared(mode: BoundaryMode) -> Mode {
    match mode {
        BoundaryMode::Online => Mode::Online,
        BoundaryMode::Restricted => Mode::Restricted,
        BoundaryMode::Offline => Mode::Offline,
        BoundaryMode::ColdRoom => Mode::ColdRoom,
    }
}

fn make(path: &Path, mode: u32, text: &str) -> Result {
    let failed = |source| Failure::File { what: "can not make", path: path.into(), source };
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = opened.map_err(failed)?;
    writeln!(file, "{text}").and_then(|()| file.sync_all()).map_err(failed)
}

fn key(call: Call<'_>, file: &Path) -> Result {
    let key = SigningKey::generate(&mut SystemRandom::new()).map_err(|error| Failure::coded(&error))?;
    make(file, 0o600, &STANDARD.encode(key.seed().expose()))?;
    let mut name = file.as_os_str().to_owned();
    name.push(".pub");
    let public = PathBuf::from(name);
    make(&public, 0o644, &STANDARD.encode(key.public().as_bytes()))?;
    let object = json!({ "key": file.display().to_string(), "public": public.display().to_string() });
    call.out().either(&object, |_| {
        format!("{}\n{} (for stvor vault serve --boundary-key)", file.display(), public.display())
    })
}

fn read_key(file: &Path) -> Result<SigningKey> {
    let text = secrets::private_line(file, "the boundary daemon's key")?;
    let malformed = || Failure::Config(format!("{} is not a key of a boundary daemon", file.display()));
    let bytes = SecretBytes::from(STANDARD.decode(text.expose()).map_err(|_| malformed())?);
    let seed = Secret::from_slice(bytes.expose()).map_err(|_| malformed())?;
    SigningKey::from_seed(&seed).map_err(|error| Failure::coded(&error))
}

/// The mode that a file holds. What is not understood counts as the least cut off.
fn mode_in(file: &Path) -> Mode {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    serde_json::from_value(text.trim().into()).unwrap_or(Mode::Online)
}

async fn answer(
    call: Call<'_>,
    (key, socket): (&Path, &Path),
    (mode, file): (Option<Mode>, Option<PathBuf>),
    mut ending: Ending,
) -> Result {
    let key = read_key(key)?;
    let failed = |source| Failure::File { what: "can not listen on", path: socket.into(), source };
    // What is there and answers belongs to a daemon that runs.
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        return Err(failed(std::io::ErrorKind::AddrInUse.into()));
    }
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).map_err(failed)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let out = call.out();
    let object = json!({ "event": "serving", "socket": socket.display().to_string() });
    out.either(&object, |_| format!("serving {}", socket.display()))?;
    out.say("The mode is declared, not measured: whoever runs this answers for it.");
    let serving = move || {
        let mode = || match (&mode, &file) {
            (Some(mode), _) => *mode,
            (None, Some(file)) => mode_in(file),
            (None, None) => Mode::Online,
        };
        serve(&listener, &key, mode)
    };
    let ended = ending.while_serving(serving).await;
    let _ = std::fs::remove_file(socket);
    ended
}
