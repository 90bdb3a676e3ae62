//! Serving the two sockets.

use core::time::Duration;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use stvor_crypto::kdf::constant_time_eq;
use stvor_crypto::{Random, SystemRandom};

use super::asked::asked;
use super::line::{Lines, line_of, unescaped};
use super::seats::{Seat, Seats};
use super::verbs::{AgentVerb, OwnerVerb};
use super::{Action, Answer, Entry, Failure, Greeting, Hidden, MAX_LINE, Reply, Told, answer, peer, proof};
use crate::{SessionId, Vault, VaultError, limits};

/// The name of the agents' socket in the vault's directory.
pub const AGENTS_SOCKET: &str = "agents.sock";
/// The name of the owner's socket in the vault's directory.
pub const OWNER_SOCKET: &str = "owner.sock";

/// Keeps other processes of the same user, and core files, from the memory of this one, as far as the system grants it.
///
/// # Errors
/// [`VaultError::Io`] when the system refuses.
pub fn harden() -> Result<(), VaultError> {
    let failed = |error: rustix::io::Errno| VaultError::Io {
        what: "hardening",
        path: "this process".into(),
        reason: error.to_string(),
    };
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, none).map_err(failed)?;
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).map_err(failed)?;
    Ok(())
}

/// Users that may open the sockets, by their ids, besides the daemon's own and root: *isolated* mode, where the daemon has a
/// user of its own. Nobody means: the daemon's own user only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admitted {
    /// At both sockets.
    pub owners: Vec<u32>,
    /// At the agents' socket.
    pub agents: Vec<u32>,
}

impl Admitted {
    fn is_empty(&self) -> bool {
        self.owners.is_empty() && self.agents.is_empty()
    }
}

/// Who may connect to a socket; nothing for whom its mode lets in.
type Guard = Option<Vec<u32>>;

/// Whether the process at the other end is of a user that may connect. Where the system does not tell, it may not.
fn may_connect(stream: &UnixStream, guard: &Guard) -> bool {
    let Some(admitted) = guard else { return true };
    let own = rustix::process::geteuid().as_raw();
    peer(stream).is_some_and(|(uid, _)| uid == own || uid == 0 || admitted.contains(&uid))
}

/// A vault that is served. Dropping it removes the sockets; connections end when their peers go, or with the process.
#[derive(Debug)]
pub struct Daemon {
    sockets: [PathBuf; 2],
}

impl Daemon {
    /// Serves a vault on two sockets, mode 0600, in `directory`. Who serves has the vault open, so sockets that are there are
    /// left over from a process that is gone.
    ///
    /// # Errors
    /// [`VaultError::Io`].
    pub fn serve(vault: &Arc<Vault>, directory: &Path) -> Result<Self, VaultError> {
        Self::serve_to(vault, directory, &Admitted::default())
    }

    /// As [`Daemon::serve`], for other users too: the sockets have mode 0666, and whoever connects is asked for by the
    /// system's word.
    ///
    /// # Errors
    /// [`VaultError::Io`].
    pub fn serve_to(vault: &Arc<Vault>, directory: &Path, admitted: &Admitted) -> Result<Self, VaultError> {
        let sockets = [directory.join(AGENTS_SOCKET), directory.join(OWNER_SOCKET)];
        let [agents, owner] = &sockets;
        let all: Vec<u32> = admitted.owners.iter().chain(&admitted.agents).copied().collect();
        let guard = |users: Vec<u32>| (!admitted.is_empty()).then_some(users);
        listen((agents, guard(all)), vault, serve_agent)?;
        listen((owner, guard(admitted.owners.clone())), vault, serve_owner)?;
        Ok(Self { sockets })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

type Serve = fn(&UnixStream, &Vault, &mut Seat) -> std::io::Result<()>;

fn listen((path, guard): (&Path, Guard), vault: &Arc<Vault>, serve: Serve) -> Result<(), VaultError> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(|error| VaultError::io("listening on", path, &error))?;
    let mode = std::fs::Permissions::from_mode(if guard.is_some() { 0o666 } else { 0o600 });
    std::fs::set_permissions(path, mode).map_err(|error| VaultError::io("protecting", path, &error))?;
    let vault = Arc::downgrade(vault);
    let accept = move || {
        let seats = Seats::default();
        for stream in listener.incoming() {
            // The vault is closed: nobody serves any more.
            let Some(vault) = vault.upgrade() else { return };
            let Ok(stream) = stream else { continue };
            if !may_connect(&stream, &guard) {
                continue;
            }
            let Some(mut seat) = seats.take(peer(&stream)) else {
                // Nothing was sent yet, so one line has room without anybody waiting for the peer.
                let _ = stream.set_nonblocking(true);
                let _ = say(&stream, &Answer::Error(Failure::from(&VaultError::Crowded)));
                continue;
            };
            let connection = move || {
                // A peer that goes away is no failure of anybody.
                let _ = serve(&stream, &vault, &mut seat);
            };
            let _ = std::thread::Builder::new().name("stvor-vault-peer".into()).spawn(connection);
        }
    };
    let started = std::thread::Builder::new().name("stvor-vault-accept".into()).spawn(accept);
    started.map(|_| ()).map_err(|error| VaultError::io("serving", path, &error))
}

/// What a peer sends, until a time after which nobody waits for it, however little comes now and then.
struct Heard<'a> {
    stream: &'a UnixStream,
    until: Option<Instant>,
}

impl<'a> Heard<'a> {
    fn within(stream: &'a UnixStream, span: Duration) -> Lines<Self> {
        Lines::new(Self { stream, until: Some(Instant::now() + span) })
    }
}

impl Read for Heard<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(left)?;
        let mut stream = self.stream;
        stream.read(buffer)
    }
}

fn say(mut stream: &UnixStream, what: &impl Serialize) -> std::io::Result<()> {
    stream.write_all(line_of(what)?.bytes())
}

fn not_understood(error: &serde_json::Error) -> VaultError {
    VaultError::invalid(format!("the request is not understood: {error}"))
}

fn serve_agent(stream: &UnixStream, vault: &Vault, seat: &mut Seat) -> std::io::Result<()> {
    let mut reader = Heard::within(stream, limits::ENTRY_DEADLINE);
    let Some(line) = reader.next_line(limits::MAX_ENTRY)? else { return Ok(()) };
    let entered = serde_json::from_slice::<Entry>(line.bytes()).map_err(|error| not_understood(&error));
    let entered = entered.and_then(|Entry { credential }| {
        let caller = vault.authenticate(credential.text().as_bytes())?;
        Ok((caller.name().to_owned(), credential))
    });
    let (name, credential) = match entered {
        Ok(entered) => entered,
        Err(error) => return say(stream, &Answer::Error(Failure::from(&error))),
    };
    if !seat.known_as(&name) {
        let many = VaultError::invalid(format!(
            "the agent {name} has {} connections, which is all that it may have; end one first",
            limits::MAX_CONNECTIONS_OF_ONE
        ));
        return say(stream, &Answer::Error(Failure::from(&many)));
    }
    say(stream, &Answer::Ok(json!({ "agent": name })))?;
    reader.from.until = None;
    let session = vault.begin_session();
    let served = serve_session(stream, &mut reader, (vault, session), &credential);
    // A vault that is cold or closed has ended all sessions already.
    let _ = vault.end_session(session);
    served
}

fn serve_session(
    stream: &UnixStream,
    reader: &mut Lines<Heard<'_>>,
    (vault, session): (&Vault, SessionId),
    credential: &Hidden,
) -> std::io::Result<()> {
    while let Some(line) = reader.next_line(MAX_LINE)? {
        // Looked up each time: an agent that was removed is out at once.
        let caller = vault.authenticate(credential.text().as_bytes());
        let done = caller.and_then(|caller| match serde_json::from_slice::<AgentVerb>(line.bytes()) {
            Ok(verb) => verb.run(vault, (&caller, session)),
            Err(error) => vault.refuse_request(&caller, asked(line.bytes()), not_understood(&error)).wait(),
        });
        say(stream, &answer(done))?;
    }
    Ok(())
}

fn serve_owner(stream: &UnixStream, vault: &Vault, seat: &mut Seat) -> std::io::Result<()> {
    let mut rng = SystemRandom::new();
    let mut challenge = [0; 32];
    let mut renew = |challenge: &mut [u8; 32]| rng.fill(challenge).map_err(std::io::Error::other);
    renew(&mut challenge)?;
    let records = vault.records().map_err(std::io::Error::other)?;
    let greeting = Greeting {
        root: STANDARD.encode(&records.root),
        verbs: STANDARD.encode(&records.verbs),
        vaulted: records.vaulted.map(|record| STANDARD.encode(record)),
        challenge: STANDARD.encode(challenge),
    };
    say(stream, &greeting)?;
    // Who proves nothing has a while to do it, and what it sends in the meantime adds nothing to that.
    let mut reader = Heard::within(stream, limits::UNPROVED_DEADLINE);
    while let Some(line) = reader.next_line(MAX_LINE)? {
        let done =
            serde_json::from_slice::<Action<&RawValue>>(line.bytes()).map_err(|error| not_understood(&error));
        let mut proved = false;
        let done = done.and_then(|action| {
            act((vault, &mut proved), &action, &challenge, |done, total| {
                // Who does not listen to the progress will not hear the answer either.
                let _ = say(stream, &Told::Progress { progress: [done, total] });
            })
        });
        if proved && seat.known_as("owner") {
            reader.from.until = Some(Instant::now() + limits::OWNER_DEADLINE);
        }
        // A challenge is answered once, rightly or not.
        renew(&mut challenge)?;
        let reply = Reply { answer: answer(done), challenge: STANDARD.encode(challenge) };
        say(stream, &Told::Reply(reply))?;
    }
    Ok(())
}

fn act(
    (vault, proved): (&Vault, &mut bool),
    action: &Action<&RawValue>,
    challenge: &[u8],
    tell: impl FnMut(u64, u64),
) -> Result<serde_json::Value, VaultError> {
    let written = unescaped(action.action.get())
        .ok_or_else(|| VaultError::invalid("the request is not understood: an action is JSON in a string"))?;
    let verb =
        serde_json::from_slice::<OwnerVerb>(written.bytes()).map_err(|error| not_understood(&error))?;
    if !verb.is_open() {
        let wanted = proof(&vault.verb_key()?, challenge, written.bytes());
        let given = STANDARD.decode(&action.proof).unwrap_or_default();
        if !constant_time_eq(wanted.expose(), &given) {
            return vault.refuse_owner();
        }
        *proved = true;
    }
    verb.run(vault, tell)
}
