//! The `stvor` command: end-to-end encrypted messages through a relay that nobody needs to trust, and a vault for agents'
//! memories.
//!
//! Data goes to standard output and talk to standard error; `--json` makes objects of both. Errors read
//! `message [CODE]`, and the exit code tells their class.

mod args;
mod ask;
mod commands;
mod config;
mod exit;
mod failure;
mod holder;
mod life;
mod policy;
mod progress;
mod render;
mod secrets;
mod session;
mod store;

use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Color, Command};
use crate::config::Settings;
use crate::failure::{Failure, Result};
use crate::render::Out;
use crate::session::Context;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = Out { json: cli.shared.json, quiet: cli.shared.quiet };
    match start(&cli, &mut out) {
        Ok(()) => ExitCode::from(exit::OK),
        Err(failure) => {
            out.failure(&failure);
            ExitCode::from(failure.exit())
        }
    }
}

/// Reads the settings, then does what was asked.
fn start(cli: &Cli, out: &mut Out) -> Result {
    if let Command::Completions(args) = &cli.command {
        return commands::completions::run(args);
    }
    let settings = Settings::load(&cli.shared, std::env::vars())?;
    out.json = settings.client.json;
    match settings.client.color {
        // A build machine is taken for a terminal with colours, whatever that terminal says of itself.
        Color::Auto if std::env::var_os("TERM").is_some_and(|term| term == "dumb") => {
            anstream::ColorChoice::Never.write_global();
        }
        Color::Auto => {}
        Color::Always => anstream::ColorChoice::Always.write_global(),
        Color::Never => anstream::ColorChoice::Never.write_global(),
    }
    log(cli, &settings);
    if let Command::Config(args) = &cli.command {
        return commands::config::run(args, &settings, *out);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("can not start the runtime", error))?;
    let done = runtime.block_on(run(cli, &settings, *out));
    // A read of standard input can not be cancelled: do not wait for it.
    runtime.shutdown_background();
    done
}

async fn run(cli: &Cli, settings: &Settings, out: Out) -> Result {
    let context = Context { shared: &cli.shared, settings, out };
    match &cli.command {
        Command::Demo(args) => commands::demo::run(args, out).await,
        Command::Up(args) => commands::up::run(context, args).await,
        Command::Relay(args) => commands::relay::run(context, args).await,
        Command::MockRelay(args) => commands::mock_relay::run(context, args).await,
        Command::Chat(args) => commands::chat::run(context, args).await,
        Command::Send(args) => commands::send::run(context, args).await,
        Command::Listen(args) => commands::listen::run(context, args).await,
        Command::History(args) => commands::history::run(context, args).await,
        Command::Identity(args) => commands::identity::run(context, args).await,
        Command::Peer(args) => commands::peer::run(context, args).await,
        Command::Group(args) => commands::group::run(context, args).await,
        Command::Account(args) => commands::account::run(context, args).await,
        #[cfg(unix)]
        Command::Vault(args) => Box::pin(commands::vault::run(context, args)).await,
        #[cfg(unix)]
        Command::Mcp(args) => Box::pin(commands::vault::mcp::run(context, args)).await,
        Command::Backup(args) => commands::backup::run(context, args).await,
        Command::Restore(args) => commands::backup::restore(context, args).await,
        Command::Journal(args) => commands::backup::journal(context, args).await,
        Command::Key(args) => commands::key::run(context, args).await,
        Command::Doctor(args) => commands::doctor::run(context, args).await,
        Command::Completions(_) | Command::Config(_) => Ok(()),
    }
}

/// Log lines go to standard error: warnings, more with `-v`, or what `STVOR_LOG` says.
fn log(cli: &Cli, settings: &Settings) {
    let mock = matches!(cli.command, Command::MockRelay(_)) && settings.mock.verbose;
    let usual = match cli.shared.verbose.max(u8::from(mock) * 2) {
        0 => "off",
        1 => "warn,stvor=info,stvor_relay=info",
        2 => "info,stvor=debug,stvor_relay=debug",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("STVOR_LOG").unwrap_or_else(|_| EnvFilter::new(usual));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if settings.client.json {
        subscriber.json().init();
    } else {
        subscriber.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_target(false).init();
    }
}
