//! `stvor up`: a durable relay with a token of its own, and what to paste.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use stvor_relay::Config;

use super::relay::{self, NewToken};
use super::server;
use crate::args::{TokenKind, UpArgs};
use crate::config::relay_dir;
use crate::failure::{Failure, Result};
use crate::life::Ending;
use crate::render::{STRONG, paint};
use crate::session::Context;

/// The app of the token that `up` makes.
const APP: &str = "default";

/// The file that keeps the token from one start to the next.
const TOKEN_FILE: &str = "app-token";

/// Runs it until it is asked to end.
pub(crate) async fn run(context: Context<'_>, args: &UpArgs) -> Result {
    let ending = Ending::watch(args.life)?;
    let mut config: Config = relay::config(context, args.listen, false)?;
    // For trying out and small teams: who has the token may take a free name. With client keys, the backend decides.
    config.open_registration |= config.client_keys.is_empty();
    let directory = relay_dir(&context.settings.data_dir()?);
    server::make_private(&directory)?;
    let file = directory.join(TOKEN_FILE);
    let token = match std::fs::read_to_string(&file) {
        Ok(token) => token.trim_end().to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let issued = relay::issue(
                &config,
                &NewToken { app: APP, kind: TokenKind::Live, label: "stvor up", days: None },
            )?;
            keep(&file, &issued.token)?;
            issued.token
        }
        Err(source) => return Err(Failure::File { what: "can not read", path: file, source }),
    };
    let handle = server::start(&config).await?;
    let out = context.out;
    if out.json {
        let mut object = server::banner_object(&config, &handle);
        object["token_file"] = file.display().to_string().into();
        out.object(&object)?;
    } else {
        server::banner(&config, &handle, out)?;
        out.say(format_args!("\nPaste this in two other terminals, then talk:\n"));
        out.line(format_args!("  export STVOR_RELAY={} STVOR_TOKEN={token}", handle.url()))?;
        out.line(paint(STRONG, "  stvor chat --as alice --with bob"))?;
        out.line(paint(STRONG, "  stvor chat --as bob --with alice"))?;
        out.say(format_args!("\nThe token is kept in {} (--token-file)", file.display()));
    }
    server::serve(handle, ending, (&config, out)).await
}

/// Writes a secret into a file that its owner alone can read, and that did not exist.
fn keep(file: &Path, secret: &str) -> Result {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let write = || {
        let mut opened = options.open(file)?;
        writeln!(opened, "{secret}")?;
        opened.sync_all()
    };
    write().map_err(|source| Failure::File { what: "can not write", path: file.to_owned(), source })
}
