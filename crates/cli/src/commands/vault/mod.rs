//! `stvor vault`: an owner's memories, and the agents that may use them. One module for each noun; each talks to the daemon
//! as the owner or as an agent ([`talk`]).

mod agents;
mod alerts;
mod approvals;
mod archive;
mod backup;
mod boundary;
mod carried;
mod doctor;
mod draft;
mod forgetting;
mod holder;
mod import;
mod init;
mod landing;
mod lockdown;
mod log;
pub(crate) mod mcp;
mod memories;
mod profile;
mod prove;
mod recovery;
mod serve;
mod session;
mod show;
mod taking;
mod talk;
mod token;
mod tpm;
mod verify;
mod witnessing;

use std::path::PathBuf;

use stvor_base::ErrorCode as _;
use stvor_vault::VaultError;
use stvor_vault::daemon;

use crate::args::{RecoveryCommand, VaultArgs, VaultCommand, VaultPlace};
use crate::failure::{Failure, Result};
use crate::render::Out;
use crate::session::Context;

/// A command on a vault: the settings, and which vault.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) context: Context<'a>,
    pub(crate) place: &'a VaultPlace,
}

impl Call<'_> {
    fn out(&self) -> Out {
        self.context.out
    }

    /// The directory of the vault.
    fn path(&self) -> Result<PathBuf> {
        let named = self.place.vault.clone().or_else(|| self.context.settings.vault.path.clone());
        match named {
            Some(path) => Ok(path),
            None => Ok(self.context.settings.data_dir()?.join("vault")),
        }
    }

    /// The directory of the daemon's sockets.
    fn sockets(&self) -> Result<PathBuf> {
        let named = self.place.sockets.clone().or_else(|| self.context.settings.vault.sockets.clone());
        named.map_or_else(|| self.path(), Ok)
    }
}

impl From<VaultError> for Failure {
    fn from(error: VaultError) -> Self {
        Self::Coded { code: error.code(), message: error.to_string(), retryable: error.retryable() }
    }
}

impl From<daemon::Failure> for Failure {
    fn from(failure: daemon::Failure) -> Self {
        // Codes live as long as the process; a command ends with its first failure.
        let code: &'static str = failure.code.leak();
        Self::Coded { code, message: failure.message, retryable: failure.retryable }
    }
}

/// Does what the arguments say.
pub(crate) async fn run(context: Context<'_>, args: &VaultArgs) -> Result {
    let call = Call { context, place: &args.place };
    match &args.command {
        VaultCommand::Init(args) => init::run(call, args),
        VaultCommand::Serve(args) => serve::run(call, args).await,
        VaultCommand::Unlock(args) => session::unlock(call, args),
        VaultCommand::Lock => session::lock(call),
        VaultCommand::Status => session::status(call),
        VaultCommand::Memories(command) => memories::run(call, command),
        VaultCommand::Recovery(command) => recover(call, command).await,
        VaultCommand::Agents { command } => agents::run(call, command),
        VaultCommand::Approvals { command } => approvals::run(call, command),
        VaultCommand::Lockdown { command } => lockdown::run(call, command),
        VaultCommand::Log(args) => log::run(call, args),
        VaultCommand::Verify(args) => verify::run(call, args),
        VaultCommand::Proof { command } => log::proof(call, command),
        VaultCommand::Passphrase(args) => session::change_secret(call, args),
        VaultCommand::Profile { command } => profile::run(call, command),
        VaultCommand::Rotate(args) => profile::rotate(call, args.key),
        VaultCommand::Boundary { command } => boundary::run(call, command).await,
        VaultCommand::Metrics => session::metrics(call),
        VaultCommand::Doctor { backups } => doctor::run(call, backups),
    }
}

/// What brings things back, and what that takes beforehand.
async fn recover(call: Call<'_>, command: &RecoveryCommand) -> Result {
    match command {
        RecoveryCommand::Backup { command } => backup::run(call, command),
        RecoveryCommand::Restore(args) => backup::restore(call, args),
        RecoveryCommand::Export { out } => backup::export(call, out.as_deref()),
        RecoveryCommand::Salvage { out, unlogged, second } => backup::salvage(call, out, (*unlogged, second)),
        RecoveryCommand::Archive(args) => archive::make(call, args),
        RecoveryCommand::Prune(args) => archive::prune(call, args),
        RecoveryCommand::Escrow { command } => recovery::escrow(call, command),
        RecoveryCommand::Recover(args) => recovery::recover(call, args),
        RecoveryCommand::Switch { command } => recovery::switch(call, command),
        RecoveryCommand::Watch(args) => recovery::watch(call, args).await,
        RecoveryCommand::Token { command } => token::run(call, command),
        RecoveryCommand::Codes { command } => token::codes(call, command),
        RecoveryCommand::Property { command } => prove::property(call, command),
        RecoveryCommand::Witness { command } => prove::witness(call, command).await,
        RecoveryCommand::Import(args) => import::lines(call, args),
        RecoveryCommand::ImportPython(args) => import::python(call, args),
    }
}
