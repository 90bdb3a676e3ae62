//! From settings to a connected client.

use serde_json::{Value, json};
use stvor::{App, AppBuilder, Client, ConnectOptions, ConnectionState, ErrorKind, Event};

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
        Self::Coded { code: error.code(), message: message(&error), retryable: error.retryable() }
    }
}

/// What happened, in words of the command line: where the SDK names a call, this names a command.
fn message(error: &stvor::Error) -> String {
    match error.kind() {
        ErrorKind::RelayUnavailable { reason } => {
            format!(
                "{reason}: check that the relay runs and that its URL is right (`stvor doctor` says more)"
            )
        }
        ErrorKind::RollbackDetected { relay, own } => format!(
            "the relay saw send {relay} of this device, the store knows {own}: the data directory is an old copy, and its sessions would reuse keys. Go back to the newest copy, or run `stvor account recover` to start fresh sessions"
        ),
        ErrorKind::UserIdTaken { user } => format!(
            "user id \"{user}\" belongs to another identity at this relay: give the data directory that holds it (--data). If that is lost, have the operator run `stvor relay user reset {user}`, or run `stvor identity replace --as {user}` where the relay allows it"
        ),
        ErrorKind::IdentityChanged { user } => format!(
            "the identity of \"{user}\" changed: compare safety numbers (stvor identity show --with {user}), then run `stvor identity accept --with {user}` or `stvor peer block --with {user}`"
        ),
        ErrorKind::IdentityNotVerified { user } => format!(
            "the identity of \"{user}\" is not verified, and the settings ask for it: run `stvor identity verify --with {user}`"
        ),
        ErrorKind::PeerBlocked { user } => {
            format!("\"{user}\" is blocked: run `stvor peer unblock --with {user}` first")
        }
        ErrorKind::NotForProduction { .. } => error.message(),
        _ if error.code() == "KEY_REQUIRED" => format!(
            "{} (--passphrase-file, --passphrase-fd or --ask-passphrase; --keyfile; --os-keyring)",
            error.message()
        ),
        _ => error.message(),
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

    /// Refuses a conversation with oneself.
    pub(crate) fn not_oneself(&self, me: &Me, peer: &str) -> Result {
        let user = self.user(me)?;
        if user == peer {
            return Err(Failure::Usage(format!("{user} can not write to {user}: name somebody else")));
        }
        Ok(())
    }

    /// Opens the app that the settings name. Nothing is dialled.
    pub(crate) async fn app(&self) -> Result<App> {
        Ok(self.builder()?.open().await?)
    }

    pub(crate) fn builder(&self) -> Result<AppBuilder> {
        let client = &self.settings.client;
        let mut builder = App::builder()
            .relay_url(&client.relay)
            .data_dir(self.settings.data_dir()?)
            .timeout(self.settings.timeout())
            .trust_policy(client.trust.into())
            .on_identity_change(client.identity_change.into())
            .receipts(client.receipts.into())
            .retention(client.retention.0)
            // A person may have the newest copy somewhere.
            .on_rollback(stvor::RollbackPolicy::Ask)
            .production(client.production);
        if let Some(name) = &client.suite {
            let suite = name.parse().map_err(|error| Failure::Config(format!("suite: {error}")))?;
            builder = builder.suite(suite);
        }
        if let Some(stores) = crate::store::configured(client)? {
            builder = builder.store(stores);
        }
        let client_token = secrets::client_token(self.settings)?;
        match (&client_token, secrets::app_token(self.settings)) {
            (_, Ok(token)) => builder = builder.app_token(token.expose()),
            // A client token is enough, together with the id of the app.
            (Some(_), Err(Failure::NoToken)) if client.app_id.is_some() => {}
            (Some(_), Err(Failure::NoToken)) => {
                return Err(Failure::Config(
                    "a client token does not name its app here: give --app-id (app_id in [client])"
                        .to_owned(),
                ));
            }
            (_, Err(failure)) => return Err(failure),
        }
        if let Some(token) = client_token {
            builder = builder.client_token(token.expose());
        }
        if let Some(app) = &client.app_id {
            builder = builder.app_id(app);
        }
        if let Some(actor) = &client.actor {
            builder = builder.actor(actor);
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
            return Ok(builder.passphrase(passphrase.expose()));
        }
        if let Some(holder) = crate::holder::configured(client)? {
            return Ok(builder.key_holder(holder));
        }
        match (&client.keyfile, client.os_keyring) {
            (Some(_), true) => Err(Failure::Config(
                "the key of the store has one place: set either keyfile or os_keyring".to_owned(),
            )),
            (Some(keyfile), false) => Ok(builder.keyfile(keyfile)),
            (None, true) => in_keyring(builder),
            (None, false) => Ok(builder),
        }
    }

    /// Connects the user under a new identity, which takes the name over where the relay allows it.
    pub(crate) async fn replace(&self, me: &Me) -> Result<Client> {
        let user = self.user(me)?;
        let app = self.builder()?.replace_identity(true).open().await?;
        let options = ConnectOptions { require_relay: true, ..ConnectOptions::default() };
        Ok(app.connect_with(user.as_str(), options).await?)
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

    /// Connects a user who was here before, for what looks at things or keeps them: a mistyped name makes nothing.
    pub(crate) async fn known(&self, me: &Me) -> Result<Client> {
        self.connect(me, ConnectOptions { existing: true, ..ConnectOptions::default() }).await
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

#[cfg(feature = "os-keyring")]
fn in_keyring(builder: AppBuilder) -> Result<AppBuilder> {
    Ok(builder.os_keyring())
}

#[cfg(not(feature = "os-keyring"))]
fn in_keyring(_builder: AppBuilder) -> Result<AppBuilder> {
    Err(no_keyring())
}

/// This build knows no keyring.
#[cfg(not(feature = "os-keyring"))]
pub(crate) fn no_keyring() -> Failure {
    Failure::Coded {
        code: "KEYRING_UNAVAILABLE",
        message: "this stvor was built without the system's keyring: install it with `cargo install --locked --path crates/cli --features os-keyring`, or use a passphrase or key file".to_owned(),
        retryable: false,
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
        Event::IdentityRotated { peer, was_verified, .. } => {
            let then = if *was_verified { "; it is not verified any more" } else { "" };
            let peer = safe(peer.as_str());
            format!(
                "{peer} rotated their identity, and the old one vouches for the new one{then}: safety numbers are others (stvor identity show --with {peer})"
            )
        }
        Event::IdentitySuperseded { peer } => format!(
            "Somebody shows an identity that {} rotated away from: an old copy of it is in use; it was refused [IDENTITY_SUPERSEDED]",
            safe(peer.as_str())
        ),
        Event::IdentityForked { peer, .. } => format!(
            "An old key of {0} handed over to two identities, so somebody else has that key: ask {0} by another way and compare safety numbers [IDENTITY_FORKED]",
            safe(peer.as_str())
        ),
        Event::SuiteMismatch { peer, ours, theirs } => format!(
            "{} has the suite {theirs} and you {ours}: nothing can be sent or read; all users of an app need one suite [SUITE_MISMATCH]",
            safe(peer.as_str())
        ),
        Event::MessageUndecryptable { peer, code, repair_requested } => {
            let then = if *repair_requested { "; asked for it again" } else { "" };
            format!("A message from {peer} was rejected [{code}]{then}")
        }
        Event::Repaired { peer, .. } => format!("A message from {peer} that was rejected came again, unharmed"),
        Event::RollbackDetected { .. } => {
            "This data directory is an old copy: nothing is sent, because sessions would reuse keys; go back to the newest copy, or run `stvor account recover` [ROLLBACK_DETECTED]"
                .to_owned()
        }
        Event::MailLost => "Mail for you expired at the relay before this device fetched it: conversations may lack messages".to_owned(),
        Event::CounterForged { .. } => {
            "The relay told a send counter that this device never proved: it, or its database, is not to be relied on".to_owned()
        }
        Event::DeliveryFailed { peer, id, code } => format!("Message {id} to {peer} was given up [{code}]"),
        Event::KeyfileCreated { path } => format!(
            "The store is sealed by a new key file, {}: whoever copies both can read it (--passphrase-file is stronger)",
            path.display()
        ),
        Event::GroupJoined { group, by } => format!("{} added you to a group ({group}): stvor group show {group}", safe(by.as_str())),
        Event::GroupLeft { group, by } => format!("You are not in group {group} any more, by {}", safe(by.as_str())),
        Event::GroupChanged { by, joined, gone, name, .. } => {
            let names = |users: &[stvor::UserId]| {
                users.iter().map(|user| safe(user.as_str())).collect::<Vec<_>>().join(", ")
            };
            let what = match (joined.is_empty(), gone.is_empty()) {
                (true, true) => "changed it".to_owned(),
                (false, true) => format!("added {}", names(joined)),
                (true, false) if gone.iter().all(|user| user == by) => "left".to_owned(),
                (true, false) => format!("removed {}", names(gone)),
                (false, false) => format!("added {} and removed {}", names(joined), names(gone)),
            };
            format!("{}: {} {what}", safe(name), safe(by.as_str()))
        }
        Event::GroupMemberUnknown { peer } => format!(
            "{} has another identity than the member of that name: nothing of the group goes to them; compare safety numbers, then add them again (stvor group add)",
            safe(peer.as_str())
        ),
        Event::ConversationFailed { peer, retry_after, .. } => format!(
            "The conversation with {} met a fault in the program and is begun afresh in {} s; nothing that was stored is lost",
            safe(peer.as_str()),
            retry_after.as_secs()
        ),
        Event::ConversationRevived { peer } => format!("The conversation with {} goes on", safe(peer.as_str())),
        Event::SenderKeyMissing { peer, messages } => format!(
            "{messages} message(s) of {} to a group can not be read yet: their key did not come, and is asked for",
            safe(peer.as_str())
        ),
        Event::StoreFailing { code: "STORE_EMPTIED" } => {
            "The store was emptied while it was in use, and takes nothing more [STORE_EMPTIED]: restore it".to_owned()
        }
        Event::StoreFailing { code } => format!("The store can not be written [{code}]: is the disk full?"),
        Event::StoreWeakened { findings } => findings.iter().fold(
            "The server of the store is set otherwise now:".to_owned(),
            |text, finding| format!("{text}\n  {finding} ({})", finding.code),
        ),
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
        Event::IdentityRotated { peer, old, new, was_verified } => {
            object["peer"] = peer.to_string().into();
            object["old_fingerprint"] = old.as_str().into();
            object["fingerprint"] = new.as_str().into();
            object["was_verified"] = (*was_verified).into();
        }
        Event::SuiteMismatch { peer, ours, theirs } => {
            object["peer"] = peer.to_string().into();
            object["ours"] = ours.name().into();
            object["theirs"] = theirs.name().into();
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
        Event::CounterForged { relay } => object["relay"] = (*relay).into(),
        Event::DevelopmentMode { findings } | Event::StoreWeakened { findings } => {
            object["findings"] = findings.iter().map(finding).collect::<Vec<_>>().into();
        }
        Event::KeyfileCreated { path } => object["path"] = path.display().to_string().into(),
        Event::GroupJoined { group, by } | Event::GroupLeft { group, by } => {
            object["group"] = group.to_string().into();
            object["by"] = by.to_string().into();
        }
        Event::GroupChanged { group, by, joined, gone, name } => {
            let names = |users: &[stvor::UserId]| users.iter().map(ToString::to_string).collect::<Vec<_>>();
            object["group"] = group.to_string().into();
            object["by"] = by.to_string().into();
            object["joined"] = names(joined).into();
            object["gone"] = names(gone).into();
            object["name"] = name.clone().into();
        }
        Event::GroupMemberUnknown { peer } | Event::ConversationRevived { peer } => {
            object["peer"] = peer.to_string().into();
        }
        Event::ConversationFailed { peer, attempt, .. } => {
            object["peer"] = peer.to_string().into();
            object["attempt"] = (*attempt).into();
        }
        Event::TaskFailed { task, attempt, .. } => {
            object["task"] = (*task).into();
            object["attempt"] = (*attempt).into();
        }
        Event::SenderKeyMissing { peer, messages } => {
            object["peer"] = peer.to_string().into();
            object["messages"] = (*messages).into();
        }
        Event::GroupReceipt { group, peer, ids, state } => {
            object["group"] = group.to_string().into();
            object["peer"] = peer.to_string().into();
            object["ids"] = ids.iter().map(ToString::to_string).collect::<Vec<_>>().into();
            object["state"] = state.name().into();
        }
        _ => {}
    }
    object
}

/// A finding about the set-up as an object.
pub(crate) fn finding(finding: &stvor::Finding) -> Value {
    json!({ "code": finding.code, "what": finding.what, "fix": finding.fix, "refused": finding.refused })
}

/// A message as an object: `id`, `from`, `sent_at`, `group` for one of a group, and `text`, `json` or `base64`.
pub(crate) fn message_object(message: &stvor::Message) -> Value {
    let mut object = json!({
        "id": message.id.to_string(),
        "from": message.from.to_string(),
        "sent_at": crate::render::rfc3339(message.sent_at),
    });
    if let Some(group) = message.group {
        object["group"] = group.to_string().into();
    }
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
