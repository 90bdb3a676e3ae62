//! From settings to a connected client.

use serde_json::{Value, json};
use stvor::{App, Client, ConnectOptions, ConnectionState, Event};

use crate::args::{Me, Shared};
use crate::config::Settings;
use crate::failure::{Failure, Result};
use crate::render::{Out, safe};
use crate::secrets;

/// What every command of a user needs.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    /// The shared flags.
    pub(crate) shared: &'a Shared,
    /// The settings that they and everything below them give.
    pub(crate) settings: &'a Settings,
    /// How to talk.
    pub(crate) out: Out,
}

impl From<stvor::Error> for Failure {
    fn from(error: stvor::Error) -> Self {
        Self::Coded { code: error.code(), message: error.message(), retryable: error.retryable() }
    }
}

impl Context<'_> {
    /// The user that speaks.
    pub(crate) fn user(&self, me: &Me) -> Result<String> {
        me.user
            .clone()
            .or_else(|| self.settings.client.user.clone())
            .ok_or_else(|| Failure::Usage("who are you? Give --as USER, or set STVOR_AS".to_owned()))
    }

    /// Opens the app that the settings name. Nothing is dialled.
    pub(crate) async fn app(&self) -> Result<App> {
        let client = &self.settings.client;
        let mut builder = App::builder()
            .app_token(secrets::app_token(self.settings)?.expose())
            .relay_url(&client.relay)
            .data_dir(self.settings.data_dir()?)
            .timeout(self.settings.timeout());
        if let Some(app) = &client.app_id {
            builder = builder.app_id(app);
        }
        if let Some(file) = &client.root_certificate {
            let pem = std::fs::read(file).map_err(|source| Failure::File {
                what: "can not read",
                path: file.clone(),
                source,
            })?;
            builder = builder.root_certificate(pem);
        }
        if let Some(passphrase) = secrets::passphrase(self.shared, self.settings)? {
            builder = builder.passphrase(passphrase.expose());
        } else if let Some(keyfile) = &client.keyfile {
            builder = builder.keyfile(keyfile);
        }
        Ok(builder.open().await?)
    }

    /// Connects the user. A user who never registered needs the relay; one who did can work while it is away, unless
    /// `options` ask for more.
    pub(crate) async fn connect(&self, me: &Me, options: ConnectOptions) -> Result<Client> {
        let user = self.user(me)?;
        let app = self.app().await?;
        let client = app.connect_with(user.as_str(), options).await?;
        if self.settings.client.relay.starts_with("ws://")
            || self.settings.client.relay.starts_with("http://")
        {
            self.out.say(format_args!("{user} at {} (no TLS)", app.relay_url()));
        } else {
            self.out.say(format_args!("{user} at {}", app.relay_url()));
        }
        if client.state() == ConnectionState::Offline {
            self.out.say("The relay is away; trying on");
        }
        Ok(client)
    }

    /// Tells of what happens to the client until it closes.
    pub(crate) fn tell_events(&self, client: &Client) -> tokio::task::JoinHandle<()> {
        let mut events = client.events();
        let out = self.out;
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match sentence(&event) {
                    Some(human) => out.event(&object(&event), human),
                    None if out.json => out.event(&object(&event), ""),
                    None => {}
                }
            }
        })
    }
}

/// What a person should know of an event; nothing for the ordinary course of things.
pub(crate) fn sentence(event: &Event) -> Option<String> {
    Some(match event {
        Event::Reconnecting { attempt: 1, .. } => "The relay is away; trying on".to_owned(),
        Event::Superseded => "Another process took over as this user: this one gets no more messages".to_owned(),
        Event::IdentityChanged { peer, accepted: false } => format!(
            "The identity of {peer} CHANGED: messages wait. Compare safety numbers (stvor identity show --with {peer}), then stvor identity accept --with {peer}"
        ),
        Event::IdentityChanged { peer, accepted: true } => format!("The identity of {peer} changed and was accepted"),
        Event::MessageUndecryptable { peer, code, repair_requested } => {
            let then = if *repair_requested { "; asked for it again" } else { "" };
            format!("A message from {peer} was rejected [{code}]{then}")
        }
        Event::Repaired { peer, .. } => format!("A message from {peer} that was rejected came again, unharmed"),
        Event::RollbackDetected { .. } => {
            "This data directory is an old copy: nothing is sent, because sessions would reuse keys [ROLLBACK_DETECTED]"
                .to_owned()
        }
        Event::DeliveryFailed { peer, id, code } => format!("Message {id} to {peer} was given up [{code}]"),
        Event::KeyfileCreated { path } => format!(
            "The store is sealed by a new key file, {}: whoever copies both can read it (--passphrase-file is stronger)",
            path.display()
        ),
        Event::StoreFailing { code } => format!("The store can not be written [{code}]: is the disk full?"),
        _ => return None,
    })
}

/// An event as an object.
pub(crate) fn object(event: &Event) -> Value {
    let mut object = json!({ "event": event.name() });
    match event {
        Event::Reconnecting { attempt, after } => {
            object["attempt"] = (*attempt).into();
            object["after_ms"] = u64::try_from(after.as_millis()).unwrap_or(u64::MAX).into();
        }
        Event::Offline { code } | Event::StoreFailing { code } => object["code"] = (*code).into(),
        Event::IdentityChanged { peer, accepted } => {
            object["peer"] = peer.to_string().into();
            object["accepted"] = (*accepted).into();
        }
        Event::MessageUndecryptable { peer, code, repair_requested } => {
            object["peer"] = peer.to_string().into();
            object["code"] = (*code).into();
            object["repair_requested"] = (*repair_requested).into();
        }
        Event::Repaired { peer, id } => {
            object["peer"] = peer.to_string().into();
            object["id"] = id.to_string().into();
        }
        Event::DeliveryFailed { peer, id, code } => {
            object["peer"] = peer.to_string().into();
            object["id"] = id.to_string().into();
            object["code"] = (*code).into();
        }
        Event::Receipt { peer, ids, state } => {
            object["peer"] = peer.to_string().into();
            object["ids"] = ids.iter().map(ToString::to_string).collect::<Vec<_>>().into();
            object["state"] = state.name().into();
        }
        Event::RollbackDetected { relay, own } => {
            object["relay"] = (*relay).into();
            object["own"] = (*own).into();
        }
        Event::KeyfileCreated { path } => object["path"] = path.display().to_string().into(),
        _ => {}
    }
    object
}

/// A message as an object: `id`, `from`, `sent_at`, and `text`, `json` or `base64`.
pub(crate) fn message_object(message: &stvor::Message) -> Value {
    let mut object = json!({
        "id": message.id.to_string(),
        "from": message.from.to_string(),
        "sent_at": crate::render::rfc3339(message.sent_at),
    });
    put_content(&mut object, &message.content);
    object["verified"] = message.verified.into();
    object
}

/// Puts a content into an object under the name of its kind.
pub(crate) fn put_content(object: &mut Value, content: &stvor::Content) {
    use base64::Engine as _;
    match content {
        stvor::Content::Text(text) => object["text"] = text.clone().into(),
        stvor::Content::Json(_) => {
            object["json"] = content.as_json().cloned().unwrap_or_default();
        }
        other => {
            object["base64"] = base64::engine::general_purpose::STANDARD.encode(other.as_bytes()).into();
        }
    }
}

/// A content as a person reads it.
pub(crate) fn readable(content: &stvor::Content) -> String {
    match content {
        stvor::Content::Text(text) => safe(text),
        stvor::Content::Json(json) => safe(json.text()),
        other => format!("({} bytes)", other.as_bytes().len()),
    }
}
