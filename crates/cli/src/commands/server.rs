//! What `up`, `relay` and `mock-relay` share: the banner, and the life of a server.

use std::time::Duration;

use serde_json::{Value, json};
use stvor_relay::{Config, Handle, Relay, StartError};

use crate::failure::{Failure, Result};
use crate::life::{End, Ending};
use crate::render::{Out, STRONG, paint};

/// Clients that are told to go elsewhere do so within this time.
const SPREAD: Duration = Duration::from_millis(500);

/// How long a relay that ends waits for its clients to leave.
const GRACE: Duration = Duration::from_secs(2);

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::coded(&error)
    }
}

/// Starts a relay. Makes the directory of its database, for its owner alone, if there is none.
pub(crate) async fn start(config: &Config) -> Result<Handle> {
    if let Some(directory) = config.database.as_deref().and_then(std::path::Path::parent) {
        make_private(directory)?;
    }
    Ok(Relay::start(config.clone()).await?)
}

/// Makes a directory that its owner alone can enter.
pub(crate) fn make_private(directory: &std::path::Path) -> Result {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory).map_err(|source| Failure::File {
        what: "can not make",
        path: directory.to_owned(),
        source,
    })
}

/// The banner as an object.
pub(crate) fn banner_object(config: &Config, handle: &Handle) -> Value {
    json!({
        "event": "listening",
        "address": handle.local_addr().to_string(),
        "relay": handle.url(),
        "metrics": handle.metrics_addr().map(|address| format!("http://{address}/metrics")),
        "database": config.database.as_ref().map(|path| path.display().to_string()),
        "tls": config.tls.is_some(),
        "development": config.development,
        "version": stvor_relay::VERSION,
    })
}

/// Tells where the relay is and what it does: the address on standard output, first of all; the rest, and anything
/// insecure loudly, on standard error.
pub(crate) fn banner(config: &Config, handle: &Handle, out: Out) -> Result {
    if out.json {
        out.object(&banner_object(config, handle))?;
    } else {
        out.line(format_args!("listening on {}", paint(STRONG, handle.url())))?;
    }
    let http = handle.url().replacen("ws", "http", 1);
    out.say(format_args!("  health   {http}/health, {http}/livez, {http}/readyz"));
    match handle.metrics_addr() {
        Some(address) => out.say(format_args!("  metrics  http://{address}/metrics")),
        None => out.say("  metrics  off (metrics_listen in [relay])"),
    }
    match &config.database {
        Some(path) => out.say(format_args!("  store    SQLite, {}", path.display())),
        None => out.say("  store    memory: everything is forgotten at the end"),
    }
    match &config.tls {
        Some(tls) => out.say(format_args!("  TLS      {}", tls.certificate.display())),
        None => out.say("  TLS      off"),
    }
    if config.registration_is_open() {
        out.say("  users    OPEN: whoever has an app token may register a name that is free");
    } else if config.client_keys.is_empty() {
        out.warn(
            "  NOTE nobody can register: name the keys of your backend (client_keys in [relay]), or let every holder of \
             an app token in (--open-registration, or open_registration = true in [relay])",
        );
    } else {
        out.say("  users    registered with client tokens of your backend only");
    }
    let public = !handle.local_addr().ip().is_loopback();
    if config.development {
        out.warn("  INSECURE development mode: any stvor_ token is let in, and a name can be taken over from a lost device");
    }
    if public && config.tls.is_none() {
        out.warn(
            "  INSECURE no TLS on a public address: tokens, and who talks to whom, can be seen on the way",
        );
    }
    if public && config.origins.is_empty() && !config.development {
        out.warn("  NOTE no origins are set: clients that dial a public name can not log in; set origins in [relay]");
    }
    Ok(())
}

/// Runs a relay until it is asked to end, and ends it gently. A second Ctrl-C ends it at once. SIGHUP reads the
/// certificate again where there is one.
pub(crate) async fn serve(handle: Handle, mut ending: Ending, (config, out): (&Config, Out)) -> Result {
    let end = loop {
        match ending.wait().await {
            End::HungUp if config.tls.is_some() => match handle.reload_tls() {
                Ok(()) => out.say("The certificate is read again"),
                Err(error) => out.warn(format_args!("the certificate stays as it was: {error}")),
            },
            end => break end,
        }
    };
    out.say("Ending: clients are told to reconnect; Ctrl-C again ends at once");
    tokio::select! {
        () = handle.drain(SPREAD, GRACE) => {}
        _ = ending.wait() => {}
    }
    end.result()
}
