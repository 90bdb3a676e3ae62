//! Talking to the daemon.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stvor_crypto::Secret;
use stvor_crypto::kdf::hmac_sha256;
use stvor_keys::KeyHolder;

use super::line::{Lines, json_of, line_of};
use super::{Action, AgentVerb, Answer, Entry, Failure, First, Hidden, OwnerVerb, Told, proof};
use crate::audit::hex;
use crate::keys::{VerbKey, change_second, rewrap, unwrap_root, unwrap_vaulted, unwrap_verbs};
use crate::{OwnerRecords, VaultError};

/// A connection to the daemon, as an agent or as the owner.
#[derive(Debug)]
pub struct Client {
    reader: Lines<UnixStream>,
    owner: Option<Owner>,
    /// What [`Client::name_for`] is keyed with.
    naming: Option<Secret<32>>,
}

#[derive(Debug)]
struct Owner {
    records: OwnerRecords,
    challenge: Vec<u8>,
    key: Option<VerbKey>,
}

/// What names are made with, from a secret of who asks.
fn naming(secret: &[u8]) -> Secret<32> {
    hmac_sha256(secret, &[b"STVOR vault names v1"])
}

fn unreadable(what: &'static str, error: &std::io::Error) -> VaultError {
    VaultError::Io { what, path: "the daemon".into(), reason: error.to_string() }
}

fn bytes(text: &str) -> Result<Vec<u8>, VaultError> {
    STANDARD.decode(text).map_err(|_| VaultError::invalid("the daemon sends what is not base64"))
}

impl Client {
    fn connect(socket: &Path) -> Result<Self, VaultError> {
        let stream =
            UnixStream::connect(socket).map_err(|error| VaultError::io("connecting to", socket, &error))?;
        Ok(Self { reader: Lines::new(stream), owner: None, naming: None })
    }

    /// Enters as an agent.
    ///
    /// # Errors
    /// [`VaultError::Io`] when no daemon answers; the outer result is the connection, the inner the daemon's word.
    pub fn agent(socket: &Path, credential: &str) -> Result<Result<Self, Failure>, VaultError> {
        let mut client = Self::connect(socket)?;
        let said = client.say(&Entry { credential: Hidden::new(credential.to_owned()) });
        // A daemon that is busy says so and hangs up, without listening first.
        match client.hear() {
            Ok(Answer::Ok(_)) => {
                client.naming = Some(naming(credential.as_bytes()));
                Ok(Ok(client))
            }
            Ok(Answer::Error(failure)) => Ok(Err(failure)),
            Err(error) => Err(said.err().unwrap_or(error)),
        }
    }

    /// Enters as the owner. What the owner may do takes [`Client::prove`].
    ///
    /// # Errors
    /// [`VaultError::Io`] when no daemon answers.
    pub fn owner(socket: &Path) -> Result<Self, VaultError> {
        let mut client = Self::connect(socket)?;
        let greeting = match client.hear()? {
            First::Greeting(greeting) => greeting,
            First::Refused(Answer::Error(_)) => return Err(VaultError::Crowded),
            First::Refused(Answer::Ok(_)) => {
                return Err(VaultError::invalid("the daemon's answer is not understood"));
            }
        };
        let records = OwnerRecords {
            root: bytes(&greeting.root)?,
            verbs: bytes(&greeting.verbs)?,
            vaulted: greeting.vaulted.as_deref().map(bytes).transpose()?,
        };
        client.owner = Some(Owner { records, challenge: bytes(&greeting.challenge)?, key: None });
        Ok(client)
    }

    /// The records that the owner's secret unwraps, on the owner's connection.
    #[must_use]
    pub fn records(&self) -> Option<&OwnerRecords> {
        self.owner.as_ref().map(|owner| &owner.records)
    }

    /// The user id of the process that serves this connection, where the system tells.
    #[must_use]
    pub fn served_by(&self) -> Option<u32> {
        super::peer(&self.reader.from).map(|(uid, _)| uid)
    }

    /// Whether the daemon is still at the other end, as far as can be seen without asking.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        let stream = &self.reader.from;
        let mut byte = [0];
        let looked = stream.set_nonblocking(true).map(|()| {
            // Nothing was asked, so nothing may come: all but "nothing yet" is an end.
            let read = (&*stream).read(&mut byte);
            matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        });
        stream.set_nonblocking(false).is_ok() && looked.unwrap_or(false)
    }

    fn as_owner(&mut self) -> Result<&mut Owner, VaultError> {
        self.owner.as_mut().ok_or_else(|| VaultError::invalid("this connection is an agent's"))
    }

    /// Takes the owner's secret, to prove the actions that follow. The secret stays in this process.
    ///
    /// # Errors
    /// [`stvor_keys::KeyError::Wrong`] when it is another one.
    pub fn prove(&mut self, holder: &dyn KeyHolder) -> Result<(), VaultError> {
        let owner = self.as_owner()?;
        let key = unwrap_verbs(&owner.records.verbs, holder)?;
        let names = naming(key.expose());
        owner.key = Some(key);
        self.naming = Some(names);
        Ok(())
    }

    /// Begins the owner's session; with the second secret also for level 4.
    ///
    /// # Errors
    /// [`stvor_keys::KeyError::Wrong`]; as [`Client::call_owner`].
    pub fn unlock(
        &mut self,
        holder: &dyn KeyHolder,
        second: Option<&dyn KeyHolder>,
    ) -> Result<Result<Value, Failure>, VaultError> {
        let records = &self.as_owner()?.records;
        let root = Hidden::of_key(&unwrap_root(&records.root, holder)?);
        let vaulted = match (second, &records.vaulted) {
            (None, _) => None,
            (Some(_), None) => return Err(VaultError::invalid("this vault has no second secret")),
            (Some(second), Some(record)) => Some(Hidden::of_key(&unwrap_vaulted(record, second)?)),
        };
        self.call_owner(&OwnerVerb::Unlock { root, vaulted })
    }

    /// Ends the lockdown.
    ///
    /// # Errors
    /// [`stvor_keys::KeyError::Wrong`]; as [`Client::call_owner`].
    pub fn leave_lockdown(&mut self, holder: &dyn KeyHolder) -> Result<Result<Value, Failure>, VaultError> {
        self.prove(holder)?;
        let root = Hidden::of_key(&unwrap_root(&self.as_owner()?.records.root, holder)?);
        self.call_owner(&OwnerVerb::LeaveLockdown { root })
    }

    /// Changes the owner's secret. Neither secret leaves this process.
    ///
    /// # Errors
    /// [`stvor_keys::KeyError::Wrong`] when `old` is not it; as [`Client::call_owner`].
    pub fn change_secret(
        &mut self,
        old: &dyn KeyHolder,
        new: &dyn KeyHolder,
    ) -> Result<Result<Value, Failure>, VaultError> {
        let owner = self.as_owner()?;
        let root = unwrap_root(&owner.records.root, old)?;
        let verbs = unwrap_verbs(&owner.records.verbs, old)?;
        let (owner_root, owner_verbs) = rewrap((&root, &verbs), new)?;
        owner.key = Some(verbs);
        let encode = |record: &[u8]| STANDARD.encode(record);
        let verb = OwnerVerb::ChangeSecret {
            root: Hidden::of_key(&root),
            owner_root: encode(&owner_root),
            owner_verbs: encode(&owner_verbs),
        };
        let done = self.call_owner(&verb)?;
        if done.is_ok() {
            let records = &mut self.as_owner()?.records;
            (records.root, records.verbs) = (owner_root, owner_verbs);
        }
        Ok(done)
    }

    /// Changes the second secret, or gives the vault its first one (`old` is left out then). No secret leaves this process.
    ///
    /// # Errors
    /// As [`crate::Vault::change_second`] for what can be told here; as [`Client::call_owner`].
    pub fn change_second(
        &mut self,
        owner: &dyn KeyHolder,
        old: Option<&dyn KeyHolder>,
        new: &dyn KeyHolder,
    ) -> Result<Result<Value, Failure>, VaultError> {
        self.prove(owner)?;
        let records = &self.as_owner()?.records;
        let root = unwrap_root(&records.root, owner)?;
        let (vaulted, record) = change_second(records.vaulted.as_deref(), old, new)?;
        let (root, vaulted) = (Hidden::of_key(&root), Hidden::of_key(&vaulted));
        let act = super::KeysVerb::ChangeSecond { root, vaulted, record: STANDARD.encode(&record) };
        let done = self.call_owner(&OwnerVerb::Keys { act: Box::new(act) })?;
        if done.is_ok() {
            self.as_owner()?.records.vaulted = Some(record);
        }
        Ok(done)
    }

    /// Changes the root key and everything that follows from it. `tell` hears how much is done, and of how much.
    ///
    /// # Errors
    /// [`stvor_keys::KeyError::Wrong`]; as [`Client::call_owner`].
    pub fn rotate_root(
        &mut self,
        holder: &dyn KeyHolder,
        tell: impl FnMut(u64, u64),
    ) -> Result<Result<Value, Failure>, VaultError> {
        self.prove(holder)?;
        let root = unwrap_root(&self.as_owner()?.records.root, holder)?;
        let new = crate::NewRoot::generate(holder)?;
        let act = super::KeysVerb::RotateRootKey { root: Hidden::of_key(&root), new: (&new).into() };
        let done = self.call_owner_with(&OwnerVerb::Keys { act: Box::new(act) }, tell)?;
        if done.is_ok() {
            let owner = self.as_owner()?;
            (owner.records.root, owner.records.verbs) = new.records;
            owner.key = Some(new.verbs);
        }
        Ok(done)
    }

    /// A name of 32 hexadecimal digits for what consists of these parts, for who has no other: the same each time, and nobody
    /// without the secret of who asks can tell what it is a name for. Nothing before that secret was proved.
    #[must_use]
    pub fn name_for(&self, parts: &[&[u8]]) -> Option<String> {
        let mut out = stvor_base::codec::Writer::with_capacity(256);
        for part in parts {
            out.bytes(part);
        }
        let key = self.naming.as_ref()?;
        let whole = hmac_sha256(key.expose(), &[&out.finish()]);
        Some(hex(&whole.expose()[..16]))
    }

    /// Asks as an agent.
    ///
    /// # Errors
    /// [`VaultError::Io`] when the daemon is gone; the inner result is the daemon's word.
    pub fn call(&mut self, verb: &AgentVerb) -> Result<Result<Value, Failure>, VaultError> {
        self.say(verb)?;
        Ok(match self.hear()? {
            Answer::Ok(value) => Ok(value),
            Answer::Error(failure) => Err(failure),
        })
    }

    /// Asks as the owner.
    ///
    /// # Errors
    /// [`VaultError::Io`] when the daemon is gone; the inner result is the daemon's word.
    pub fn call_owner(&mut self, verb: &OwnerVerb) -> Result<Result<Value, Failure>, VaultError> {
        self.call_owner_with(verb, |_, _| ())
    }

    /// As [`Client::call_owner`]; `tell` hears how much is done, and of how much, where the verb says it.
    ///
    /// # Errors
    /// As [`Client::call_owner`].
    pub fn call_owner_with(
        &mut self,
        verb: &OwnerVerb,
        mut tell: impl FnMut(u64, u64),
    ) -> Result<Result<Value, Failure>, VaultError> {
        let owner = self.as_owner()?;
        let written = json_of(verb).map_err(|error| VaultError::Database(error.to_string()))?;
        let given = owner.key.as_ref().map(|key| proof(key, &owner.challenge, written.bytes()));
        let action = core::str::from_utf8(written.bytes());
        let action = action.map_err(|error| VaultError::Database(error.to_string()))?;
        let proof = given.map(|given| STANDARD.encode(given.expose())).unwrap_or_default();
        self.say(&Action { action, proof })?;
        let reply = loop {
            match self.hear()? {
                Told::Progress { progress: [done, total] } => tell(done, total),
                Told::Reply(reply) => break reply,
            }
        };
        self.as_owner()?.challenge = bytes(&reply.challenge)?;
        Ok(match reply.answer {
            Answer::Ok(value) => Ok(value),
            Answer::Error(failure) => Err(failure),
        })
    }

    fn say(&mut self, what: &impl Serialize) -> Result<(), VaultError> {
        let line = line_of(what).map_err(|error| VaultError::Database(error.to_string()))?;
        self.reader.from.write_all(line.bytes()).map_err(|error| unreadable("writing to", &error))
    }

    fn hear<T: DeserializeOwned>(&mut self) -> Result<T, VaultError> {
        // An answer is as long as it has to be: the daemon is no stranger.
        let line = self.reader.next_line(usize::MAX).map_err(|error| unreadable("reading from", &error))?;
        let gone = || unreadable("reading from", &std::io::ErrorKind::UnexpectedEof.into());
        serde_json::from_slice(line.ok_or_else(gone)?.bytes())
            .map_err(|_| VaultError::invalid("the daemon's answer is not understood"))
    }
}
