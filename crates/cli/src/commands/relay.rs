//! `stvor relay`: runs a relay, or manages the tokens and users in its database, also while it runs.

use std::net::SocketAddr;
use std::time::Duration;

use figment::value::Value;
use serde_json::json;
use stvor_base::{AppId, Timestamp, UserId};
use stvor_relay::{Admin, Config};
use stvor_wire::token::{AppToken, TokenKind as Kind};

use super::server;
use crate::args::{RelayArgs, RelayCommand, RelayRun, TokenCommand, TokenKind, UserCommand, UserRef};
use crate::config::relay_dir;
use crate::failure::{Failure, Result};
use crate::life::Ending;
use crate::render::{GOOD, Out, paint, rfc3339, rows, safe, table};
use crate::secrets;
use crate::session::Context;

/// The file in the relay's directory that holds its database.
pub(crate) const DATABASE: &str = "relay.db";

/// Does what the arguments say.
pub(crate) async fn run(context: Context<'_>, args: &RelayArgs) -> Result {
    match &args.command {
        None => serve(context, &args.run).await,
        Some(RelayCommand::Token(command)) => token(context, command),
        Some(RelayCommand::User(command)) => user(context, command),
    }
}

/// The settings of `[relay]`, durable under the data directory unless they say otherwise.
pub(crate) fn config(context: Context<'_>, listen: Option<SocketAddr>, dev: bool) -> Result<Config> {
    let database = relay_dir(&context.settings.data_dir()?).join(DATABASE);
    let defaults = Config { database: Some(database), ..Config::default() };
    let mut flags = Vec::new();
    if let Some(listen) = listen {
        flags.push(("listen", Value::from(listen.to_string())));
    }
    if dev {
        flags.push(("development", Value::from(true)));
    }
    context.settings.relay(&defaults, flags)
}

async fn serve(context: Context<'_>, args: &RelayRun) -> Result {
    let ending = Ending::watch(args.life)?;
    let mut config = config(context, args.listen, args.dev)?;
    config.open_registration |= args.open_registration;
    let handle = server::start(&config).await?;
    server::banner(&config, &handle, context.out)?;
    let tokens = admin(&config)?.tokens().map_err(|error| Failure::coded(&error))?;
    if tokens.is_empty() && config.tokens.is_empty() && !config.development {
        context
            .out
            .warn("  NOTE no app token exists yet: make one with `stvor relay token create --app NAME`");
    }
    server::serve(handle, ending, (&config, context.out)).await
}

/// Opens the database for administration; a running relay notices what changes.
fn admin(config: &Config) -> Result<Admin> {
    let Some(database) = &config.database else {
        return Err(Failure::Config(
            "a relay without a database has no tokens or users to manage: set relay.database".into(),
        ));
    };
    if let Some(directory) = database.parent() {
        server::make_private(directory)?;
    }
    Admin::open(database).map_err(|error| Failure::coded(&error))
}

/// A token to be made.
pub(crate) struct NewToken<'a> {
    pub(crate) app: &'a str,
    pub(crate) kind: TokenKind,
    pub(crate) label: &'a str,
    pub(crate) days: Option<u32>,
}

/// A token that was just made.
pub(crate) struct Issued {
    pub(crate) id: String,
    pub(crate) token: String,
}

/// Makes an app token.
pub(crate) fn issue(config: &Config, wanted: &NewToken<'_>) -> Result<Issued> {
    let app = app_id(wanted.app)?;
    let kind = match wanted.kind {
        TokenKind::Live => Kind::Live,
        TokenKind::Test => Kind::Test,
        TokenKind::Dev => Kind::Development,
    };
    let life = wanted.days.map(|days| Duration::from_secs(u64::from(days) * 24 * 3600));
    let issued = admin(config)?
        .create_token(kind, &app, wanted.label, life)
        .map_err(|error| Failure::coded(&error))?;
    Ok(Issued { id: issued.record.id.clone(), token: issued.token.expose().to_owned() })
}

fn app_id(app: &str) -> Result<AppId> {
    AppId::new(app).map_err(|error| Failure::Usage(error.to_string()))
}

fn token(context: Context<'_>, command: &TokenCommand) -> Result {
    let config = config(context, None, false)?;
    let out = context.out;
    match command {
        TokenCommand::Create { app, kind, label, days } => {
            let issued = issue(&config, &NewToken { app, kind: *kind, label, days: *days })?;
            out.say(format_args!("Token {} of app {app}. It is not shown again:", issued.id));
            out.either(&json!({ "id": issued.id, "app": app, "token": issued.token }), |_| {
                issued.token.clone()
            })
        }
        TokenCommand::List => {
            let tokens = admin(&config)?.tokens().map_err(|error| Failure::coded(&error))?;
            let now = Timestamp::system();
            if out.json {
                let list: Vec<_> = tokens
                    .iter()
                    .map(|token| {
                        json!({
                            "id": token.id, "app": token.app.to_string(), "label": token.label, "valid": token.is_valid(now),
                            "created_at": rfc3339(token.created_at),
                            "expires_at": token.expires_at.map(rfc3339),
                            "revoked_at": token.revoked_at.map(rfc3339),
                        })
                    })
                    .collect();
                return out.object(&list);
            }
            let mut lines = table(["id", "app", "label", "made", "state"]);
            for token in &tokens {
                let state = match (token.revoked_at, token.expires_at) {
                    (Some(at), _) => format!("revoked {}", rfc3339(at)),
                    (None, Some(at)) if at <= now => format!("expired {}", rfc3339(at)),
                    (None, Some(at)) => format!("valid until {}", rfc3339(at)),
                    (None, None) => paint(GOOD, "valid"),
                };
                lines.add_row([
                    token.id.clone(),
                    token.app.to_string(),
                    safe(&token.label),
                    rfc3339(token.created_at),
                    state,
                ]);
            }
            out.line(rows(&lines))
        }
        TokenCommand::Revoke { id } => {
            let known = admin(&config)?.revoke_token(id).map_err(|error| Failure::coded(&error))?;
            done(known, out, "UNKNOWN_TOKEN", &format!("token {id}"), "revoked")
        }
    }
}

fn user(context: Context<'_>, command: &UserCommand) -> Result {
    let config = config(context, None, false)?;
    let (UserCommand::Reset(of) | UserCommand::Delete(of)) = command;
    let user = UserId::new(&of.user).map_err(|error| Failure::Usage(error.to_string()))?;
    let app = app_of(context, of)?;
    let mut admin = admin(&config)?;
    let (known, verb) = match command {
        UserCommand::Reset(_) => (admin.reset_user(&app, &user), "reset"),
        UserCommand::Delete(_) => (admin.delete_user(&app, &user), "deleted"),
    };
    let known = known.map_err(|error| Failure::coded(&error))?;
    done(known, context.out, "UNKNOWN_USER", &format!("user {user} of app {app}"), verb)
}

/// The app that was named, or the one of the token.
fn app_of(context: Context<'_>, of: &UserRef) -> Result<AppId> {
    if let Some(app) = of.app.as_ref().or(context.settings.client.app_id.as_ref()) {
        return app_id(app);
    }
    let token = secrets::app_token(context.settings)
        .map_err(|_| Failure::Usage("which app? Give --app, or a token of it".to_owned()))?;
    Ok(AppToken::parse(token.expose()).map_err(|error| Failure::coded(&error))?.app())
}

fn done(known: bool, out: Out, code: &'static str, what: &str, verb: &str) -> Result {
    if !known {
        return Err(Failure::Coded {
            code,
            message: format!("there is no {what} in this relay"),
            retryable: false,
        });
    }
    out.either(&json!({ "done": true }), |_| format!("{what} is {verb}"))
}
