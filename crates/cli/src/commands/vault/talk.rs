//! Talking to the daemon, as the owner or as an agent.

use std::path::Path;

use serde_json::Value;
use stvor_keys::WrappedKey;
use stvor_vault::VaultError;
use stvor_vault::daemon::{AGENTS_SOCKET, AgentVerb, Client, OWNER_SOCKET, OwnerVerb};

use super::Call;
use super::holder::Holder;
use crate::failure::{Failure, Result};
use crate::secrets::{self, SecretText};

/// Who asks for memories.
pub(super) enum Asker {
    Owner(Client),
    Agent(Client),
}

fn unserved(error: VaultError) -> Failure {
    match error {
        VaultError::Io { what, path, reason } => Failure::Coded {
            code: "VAULT_NOT_SERVED",
            message: format!(
                "{what} {}: {reason}; is `stvor vault serve` running, and may this user talk to it?",
                path.display()
            ),
            retryable: true,
        },
        other => other.into(),
    }
}

impl Call<'_> {
    /// The agent's credential, if one was given: from the flag, a variable or the settings.
    pub(super) fn credential(&self) -> Result<Option<SecretText>> {
        let vault = &self.context.settings.vault;
        if let Some(file) = &self.place.credential_file {
            return secrets::private_line(file, "the agent's credential").map(Some);
        }
        if let Some(credential) = &vault.credential {
            return Ok(Some(SecretText::new(credential.clone())));
        }
        let file = vault.credential_file.as_deref();
        file.map(|file| secrets::private_line(file, "the agent's credential")).transpose()
    }

    /// The owner's connection, without any secret: good for the status.
    pub(super) fn stranger(&self) -> Result<Client> {
        Client::owner(&self.sockets()?.join(OWNER_SOCKET)).map_err(unserved)
    }

    /// The owner's secret, of the kind that this vault wants.
    pub(super) fn owner_of(&self, client: &Client) -> Result<Holder> {
        let kind = client.records().and_then(|records| WrappedKey::decode(&records.root).ok());
        self.owner(kind.map(|wrapped| wrapped.kind()))
    }

    /// The owner's connection, with the secret that each action is proved with.
    pub(super) fn as_owner(&self) -> Result<Client> {
        let mut client = self.stranger()?;
        let holder = self.owner_of(&client)?;
        client.prove(&*holder)?;
        Ok(client)
    }

    /// An agent's connection.
    pub(super) fn as_agent(&self, credential: &SecretText) -> Result<Client> {
        let socket = self.sockets()?.join(AGENTS_SOCKET);
        Ok(enter(&socket, credential)??)
    }

    /// An agent where a credential was given, else the owner.
    pub(super) fn asker(&self) -> Result<Asker> {
        match self.credential()? {
            Some(credential) => self.as_agent(&credential).map(Asker::Agent),
            None => self.as_owner().map(Asker::Owner),
        }
    }
}

/// Enters as an agent; the inner result is the daemon's word.
pub(super) fn enter(
    socket: &Path,
    credential: &SecretText,
) -> Result<core::result::Result<Client, stvor_vault::daemon::Failure>> {
    Client::agent(socket, credential.expose()).map_err(unserved)
}

impl Asker {
    pub(super) fn is_owner(&self) -> bool {
        matches!(self, Self::Owner(_))
    }

    /// [`Client::name_for`].
    pub(super) fn name_for(&self, parts: &[&[u8]]) -> Option<String> {
        match self {
            Self::Owner(client) | Self::Agent(client) => client.name_for(parts),
        }
    }

    /// Asks what agents may ask.
    pub(super) fn ask(&mut self, verb: AgentVerb) -> Result<Value> {
        match self {
            Self::Owner(client) => ask_owner(client, &OwnerVerb::Act { act: verb }),
            Self::Agent(client) => Ok(client.call(&verb).map_err(unserved)??),
        }
    }
}

/// Asks as the owner.
pub(super) fn ask_owner(client: &mut Client, verb: &OwnerVerb) -> Result<Value> {
    Ok(client.call_owner(verb).map_err(unserved)??)
}
