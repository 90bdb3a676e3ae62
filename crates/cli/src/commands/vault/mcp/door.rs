//! The connection to the daemon. It is made when it is first needed and again after the daemon was restarted.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use stvor_base::ErrorCode as _;
use stvor_vault::daemon::{AgentVerb, Client, Failure};

use crate::secrets::SecretText;

struct Inner {
    socket: PathBuf,
    credential: SecretText,
    client: Mutex<Option<Client>>,
}

/// One agent's way to the daemon.
#[derive(Clone)]
pub(super) struct Door(Arc<Inner>);

fn unreachable(message: String) -> Failure {
    Failure { code: "VAULT_NOT_SERVED".into(), message, retryable: true }
}

impl Door {
    pub(super) fn new(socket: PathBuf, credential: SecretText) -> Self {
        Self(Arc::new(Inner { socket, credential, client: Mutex::new(None) }))
    }

    /// Asks the daemon. Requests go one after the other.
    ///
    /// A request that was handed over is never sent twice: should the daemon go away before it answers, the answer is that
    /// nobody knows.
    pub(super) async fn ask(&self, verb: AgentVerb) -> Result<Value, Failure> {
        let inner = Arc::clone(&self.0);
        let asked = tokio::task::spawn_blocking(move || inner.ask(&verb)).await;
        asked.unwrap_or_else(|_| Err(unreachable("the request was given up".into())))
    }
}

impl Inner {
    fn ask(&self, verb: &AgentVerb) -> Result<Value, Failure> {
        let mut held = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let mut client = match held.take().filter(Client::is_connected) {
            Some(client) => client,
            None => self.connect()?,
        };
        match client.call(verb) {
            Ok(answer) => {
                *held = Some(client);
                answer
            }
            Err(error) => Err(unreachable(format!(
                "the daemon went away before it answered, so nobody knows whether it was done ({error}); look before you \
                 ask again"
            ))),
        }
    }

    fn connect(&self) -> Result<Client, Failure> {
        match Client::agent(&self.socket, self.credential.expose()) {
            Ok(entered) => entered,
            Err(error) if error.code() == "VAULT_IO" => Err(unreachable(format!(
                "the vault's daemon does not answer ({error}); the user starts it with `stvor vault serve`"
            ))),
            Err(error) => Err(Failure::from(&error)),
        }
    }
}
