//! `stvor mock-relay`: a relay for development, in memory.

use std::net::SocketAddr;

use stvor_relay::Config;

use super::server;
use crate::args::MockArgs;
use crate::failure::Result;
use crate::life::Ending;
use crate::session::Context;

/// Runs it until it is asked to end.
pub(crate) async fn run(context: Context<'_>, args: &MockArgs) -> Result {
    let ending = Ending::watch(args.life)?;
    let mut config = Config::mock(args.port.unwrap_or(context.settings.mock.port));
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    let handle = server::start(&config).await?;
    server::banner(&config, &handle, context.out)?;
    context.out.say(example(handle.local_addr(), &handle.url()));
    server::serve(handle, ending, (&config, context.out)).await
}

fn example(address: SocketAddr, url: &str) -> String {
    format!("\n  export STVOR_RELAY={url} STVOR_TOKEN=stvor_dev_test123\n  curl http://{address}/health\n")
}
