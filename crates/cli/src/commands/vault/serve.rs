//! `stvor vault serve`: the process that holds the keys, in the foreground.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use stvor_vault::daemon::{
    AGENTS_SOCKET, Admitted, Daemon, OWNER_SOCKET, confine, harden, keep_memory, memory_limit,
};
use stvor_vault::gates::boundary::Boundary;
use stvor_vault::{Memory, Options, Vault};

use super::witnessing::Witnessing;
use super::{Call, alerts, show};
use crate::args::VaultServe;
use crate::commands::server::make_private;
use crate::failure::{Failure, Result};
use crate::life::{End, Ending};
use crate::render::{STRONG, paint};

/// Serves until the process is asked to end.
pub(super) async fn run(call: Call<'_>, args: &VaultServe) -> Result {
    // Before any key is in memory.
    let memory = keep_memory();
    let required = args.require_locked_memory || call.context.settings.vault.require_locked_memory;
    if required && memory == Memory::Exposed {
        return Err(exposed());
    }
    harden()?;
    let mut ending = Ending::watch(args.life)?;
    let (path, sockets) = (call.path()?, call.sockets()?);
    let options = Options { memory: Some(memory), ..options(call, args)? };
    let witnessing = Witnessing::of(args, &options.alerts, call.out())?;
    let vault = Arc::new(Vault::open(&path, options)?);
    if args.unlock {
        unlock(call, args, &vault)?;
    }
    let admitted = admitted(args)?;
    if sockets != path {
        make_private(&sockets)?;
    }
    if admitted != Admitted::default() {
        open_to_others(&sockets, &path)?;
    }
    let confined = !args.no_sandbox && confine()?;
    let daemon = Daemon::serve_to(&vault, &sockets, &admitted)?;
    let out = call.out();
    let status = vault.status()?;
    if out.json {
        out.object(&json!({
            "event": "serving", "vault": path.display().to_string(), "mode": status.mode, "memory": memory,
            "agents": sockets.join(AGENTS_SOCKET).display().to_string(),
            "owner": sockets.join(OWNER_SOCKET).display().to_string(),
        }))?;
    } else {
        out.line(format_args!("serving {}", paint(STRONG, path.display())))?;
    }
    out.say(format_args!("  state    {}", show::mode(status.mode)));
    out.say(format_args!("  agents   {}", sockets.join(AGENTS_SOCKET).display()));
    out.say(format_args!("  owner    {}", sockets.join(OWNER_SOCKET).display()));
    if admitted == Admitted::default() {
        out.say("  mode     same user: contains agents that talk to the socket, not those with a debugger or your secret");
    } else {
        out.say("  mode     isolated, if no agent runs as this daemon's user");
    }
    if !confined {
        out.warn("  NOTE the system does not keep this process from internet sockets and other programs");
    }
    if memory == Memory::Exposed {
        out.warn(format_args!(
            "  NOTE what this process holds in memory may come into the swap: {} (docs/vault/isolated.md)",
            why_not_locked()
        ));
    }
    let asking = witnessing.map(|one| tokio::spawn(one.go_on(Arc::downgrade(&vault))));
    let end = ending.wait().await;
    if let Some(asking) = asking {
        asking.abort();
    }
    out.say("Ending: keys are wiped");
    drop(daemon);
    close(vault);
    match end {
        // The terminal of a daemon is gone, and so is the daemon.
        End::HungUp => Ok(()),
        end => end.result(),
    }
}

/// Why the memory is not locked.
fn why_not_locked() -> String {
    match memory_limit() {
        Some(limit) => format!(
            "the system lets it lock {} KiB, and locking all takes `ulimit -l unlimited` or LimitMEMLOCK=infinity",
            limit >> 10
        ),
        None => "the system does not lock it".to_owned(),
    }
}

/// What a daemon says that must not serve so.
fn exposed() -> Failure {
    Failure::Coded {
        code: "VAULT_MEMORY_EXPOSED",
        message: format!(
            "what the daemon would hold in memory may come into the swap ({}), and the settings or --require-locked-memory forbid \
             that: raise the limit, or start it in a control group without swap (systemd: MemorySwapMax=0)",
            why_not_locked()
        ),
        retryable: false,
    }
}

/// The users that may connect besides this one.
fn admitted(args: &VaultServe) -> Result<Admitted> {
    let all = |names: &[String]| names.iter().map(|name| user(name)).collect::<Result<Vec<u32>>>();
    Ok(Admitted { owners: all(&args.owners)?, agents: all(&args.agent_users)? })
}

/// The id of a user, from its name or number.
fn user(name: &str) -> Result<u32> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    match nix::unistd::User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(Failure::Usage(format!("there is no user {name} on this machine"))),
        Err(error) => Err(Failure::Config(format!("can not look up the user {name}: {error}"))),
    }
}

/// Lets others pass through the directory of the sockets, but not list or change it.
fn open_to_others(sockets: &Path, path: &Path) -> Result {
    if sockets == path {
        return Err(Failure::Usage(
            "other users can not reach sockets inside the vault: name another directory with --sockets"
                .into(),
        ));
    }
    let mode = std::fs::Permissions::from_mode(0o711);
    let failed = |source| Failure::File { what: "can not open to others", path: sockets.into(), source };
    std::fs::set_permissions(sockets, mode).map_err(failed)
}

/// Waits for what is being done, and closes the vault, which is the last entry of its log.
fn close(vault: Arc<Vault>) {
    let _ = vault.shut();
    drop(vault);
}

fn options(call: Call<'_>, args: &VaultServe) -> Result<Options> {
    let settings = &call.context.settings.vault;
    let boundary = args.boundary.as_ref().zip(args.boundary_key.as_ref());
    let boundary = boundary.or(settings.boundary.as_ref().zip(settings.boundary_key.as_ref()));
    let boundary = boundary.map(|(socket, key)| {
        Ok::<_, Failure>(Boundary { socket: socket.clone(), key: show::public_key(key)? })
    });
    let checkpoints: Vec<PathBuf> = args.checkpoints.iter().chain(&settings.checkpoints).cloned().collect();
    let forgotten = args.forgotten.iter().chain(&settings.forgotten).cloned().collect();
    let mut options =
        Options { boundary: boundary.transpose()?, checkpoints, forgotten, ..Options::default() };
    if !args.allow_injections {
        options.auditors.push(Arc::new(stvor_vault::detect::refuse_injections));
    }
    options.alerts.push(alerts::hook(args.alerts.as_deref(), call.out())?);
    Ok(options)
}

fn unlock(call: Call<'_>, args: &VaultServe, vault: &Vault) -> Result {
    let records = vault.records()?;
    let kind = stvor_keys::WrappedKey::decode(&records.root).ok().map(|wrapped| wrapped.kind());
    let root = stvor_vault::unwrap_root(&records.root, &*call.owner(kind)?)?;
    let second = match (call.second(&args.second)?, &records.vaulted) {
        (Some(holder), Some(record)) => Some(stvor_vault::unwrap_vaulted(record, &*holder)?),
        (Some(_), None) => {
            return Err(Failure::Usage("this vault has no second secret".to_owned()));
        }
        (None, _) => None,
    };
    Ok(vault.unlock(root, second)?)
}
