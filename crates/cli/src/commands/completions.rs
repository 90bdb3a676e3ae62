//! `stvor completions`: the completion script of a shell, on standard output.

use std::io::Write as _;

use clap::CommandFactory as _;

use crate::args::{Cli, CompletionArgs};
use crate::failure::{Failure, Result};

/// Prints the script.
pub(crate) fn run(args: &CompletionArgs) -> Result {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "stvor", &mut script);
    let mut out = std::io::stdout().lock();
    out.write_all(&script)
        .and_then(|()| out.flush())
        .map_err(|error| Failure::io("can not write the output", error))
}
