//! How an app is set up.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use stvor_base::{AppId, Suite};
use stvor_crypto::SecretBytes;
use stvor_keys::{KeyError, KeyHolder, RecoveryPhrase, SecretService};
use stvor_store::narrow::Adapters;
use stvor_store::{MemoryStores, SqliteStores, StoreProvider};
use stvor_wire::client::Credential;
use stvor_wire::token::{AppToken, TokenKind};
use stvor_wire::url::RelayUrl;

use crate::app::App;
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;
use crate::guards;
use crate::limits;
use crate::place::Place;
use crate::production::{self, Finding};
use crate::rollback::RollbackPolicy;
use crate::trust::{MismatchPolicy, TrustCallback, TrustPolicy, TrustQuestion};

/// How long a conversation keeps its messages on this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Retention {
    /// Until the conversation is deleted.
    Forever,
    /// For this long after a message was sent or received.
    For(Duration),
    /// Only as long as delivery needs them.
    None,
}

impl Retention {
    pub(crate) fn to_millis(self) -> u64 {
        match self {
            Self::Forever => crate::rows::FOREVER,
            // One millisecond short of for ever, and never the 0 that means none.
            Self::For(span) => u64::try_from(span.as_millis()).unwrap_or(u64::MAX).clamp(1, u64::MAX - 1),
            Self::None => 0,
        }
    }

    pub(crate) fn from_millis(millis: u64) -> Self {
        match millis {
            crate::rows::FOREVER => Self::Forever,
            0 => Self::None,
            millis => Self::For(Duration::from_millis(millis)),
        }
    }
}

/// Which receipts this client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReceiptPolicy {
    /// When a message is stored. Without them senders keep plaintexts for 30 days, for repairs.
    pub delivered: bool,
    /// When the application says that a message was read.
    pub read: bool,
}

impl Default for ReceiptPolicy {
    fn default() -> Self {
        Self { delivered: true, read: true }
    }
}

/// Where the key of the stores comes from.
#[derive(Clone)]
pub(crate) enum KeySource {
    /// A keyfile beside the store, made if need be.
    Beside,
    Passphrase(Arc<str>),
    Keyfile(PathBuf),
    Keyring(Arc<dyn SecretService>),
    Holder(Arc<dyn KeyHolder>),
}

/// The secret that a new identity follows from.
#[derive(Clone)]
pub(crate) enum IdentitySource {
    Phrase(Arc<RecoveryPhrase>),
    Passphrase(Arc<SecretBytes>),
}

/// Where this machine keeps what it keeps.
#[derive(Debug, Clone)]
pub(crate) enum Storage {
    Default,
    Directory(PathBuf),
    Memory,
}

/// Everything that an app's clients share.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) credential: Credential,
    pub(crate) replace_identity: bool,
    pub(crate) app: AppId,
    pub(crate) place: Place,
    pub(crate) stores: Arc<dyn StoreProvider>,
    pub(crate) timeout: Duration,
    pub(crate) trust: TrustPolicy,
    pub(crate) mismatch: MismatchPolicy,
    pub(crate) trust_callback: Option<TrustCallback>,
    pub(crate) keys: KeySource,
    pub(crate) retention: Retention,
    pub(crate) receipts: ReceiptPolicy,
    pub(crate) roots: Vec<Vec<u8>>,
    /// Stores of the application's own.
    pub(crate) adapters: Option<Adapters>,
    /// A minimal relay will do.
    pub(crate) minimal_relay: bool,
    pub(crate) clock: Arc<dyn Clock>,
    /// What a new identity follows from; random keys without it.
    pub(crate) identity: Option<IdentitySource>,
    /// An identity that is there already is an error.
    pub(crate) new_identity: bool,
    /// Who decides and does things, for the journal.
    pub(crate) actor: Arc<str>,
    /// What production would refuse, and what its owner should know.
    pub(crate) findings: Arc<[Finding]>,
    /// Whether the findings were told to a listener.
    pub(crate) told: Arc<AtomicBool>,
    /// What the server of the store says of its settings.
    pub(crate) settings: Arc<production::Settings>,
    pub(crate) lease: Duration,
    /// `None`: what the stored identity has, or the default.
    pub(crate) suite: Option<Suite>,
    pub(crate) executor: Executor,
    pub(crate) on_rollback: RollbackPolicy,
}

impl Config {
    /// Whether several processes may have the store of a user open.
    pub(crate) fn is_shared(&self) -> bool {
        self.stores.facts().shared
    }
}

/// Sets up an [`App`].
pub struct AppBuilder {
    app_token: Option<String>,
    relay_url: Option<String>,
    client_token: Option<String>,
    replace_identity: bool,
    app_id: Option<String>,
    storage: Storage,
    stores: Option<Arc<dyn StoreProvider>>,
    timeout: Duration,
    trust: TrustPolicy,
    mismatch: MismatchPolicy,
    trust_callback: Option<TrustCallback>,
    keys: KeySource,
    retention: Retention,
    receipts: ReceiptPolicy,
    roots: Vec<Vec<u8>>,
    minimal_relay: Option<bool>,
    adapters: Option<Adapters>,
    clock: Arc<dyn Clock>,
    production: bool,
    require_atomic: bool,
    actor: Option<String>,
    identity: Option<Result<IdentitySource>>,
    lease: Duration,
    suite: Option<Suite>,
    executor: Executor,
    on_rollback: RollbackPolicy,
}

impl Default for AppBuilder {
    fn default() -> Self {
        Self {
            app_token: None,
            relay_url: None,
            client_token: None,
            replace_identity: false,
            app_id: None,
            storage: Storage::Default,
            stores: None,
            timeout: limits::DEFAULT_TIMEOUT,
            trust: TrustPolicy::FirstUse,
            mismatch: MismatchPolicy::Reject,
            trust_callback: None,
            keys: KeySource::Beside,
            retention: Retention::Forever,
            receipts: ReceiptPolicy::default(),
            roots: Vec::new(),
            minimal_relay: None,
            adapters: None,
            clock: Arc::new(SystemClock),
            production: false,
            require_atomic: false,
            actor: None,
            identity: None,
            lease: limits::INSTANCE_LEASE,
            suite: None,
            executor: Executor::default(),
            on_rollback: RollbackPolicy::default(),
        }
    }
}

impl AppBuilder {
    /// The token that names the app at the relay. Required, unless there is a client token.
    #[must_use]
    pub fn app_token(mut self, token: impl Into<String>) -> Self {
        self.app_token = Some(token.into());
        self
    }

    /// Where the relay is: `ws://`, `wss://`, `http://` or `https://`; the socket is found at the same origin. Required.
    #[must_use]
    pub fn relay_url(mut self, url: impl Into<String>) -> Self {
        self.relay_url = Some(url.into());
        self
    }

    /// A token that names one user, signed by your own backend, instead of the app token: what a device should hold in
    /// production. Needs [`app_id`](Self::app_id) unless the app token is given too.
    #[must_use]
    pub fn client_token(mut self, token: impl Into<String>) -> Self {
        self.client_token = Some(token.into());
        self
    }

    /// The app's id, where the relay's operator bound the token to a name. Without it the id follows from the token.
    #[must_use]
    pub fn app_id(mut self, id: impl Into<String>) -> Self {
        self.app_id = Some(id.into());
        self
    }

    /// Takes user ids over from identities that were lost, where the relay allows it (a development flag, or a client
    /// token that says so). Mail for the old identity is dropped, and peers are told that the identity changed.
    #[must_use]
    pub fn replace_identity(mut self, replace: bool) -> Self {
        self.replace_identity = replace;
        self
    }

    /// Keeps identities, sessions and messages under this directory. Relays, apps and users have directories of their
    /// own in it. Without it (and without [`in_memory`](Self::in_memory)) the platform's data directory is used.
    #[must_use]
    pub fn data_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.storage = Storage::Directory(directory.into());
        self
    }

    /// Keeps everything in memory: identities and messages are gone with the [`App`]. For tests.
    #[must_use]
    pub fn in_memory(mut self) -> Self {
        self.storage = Storage::Memory;
        self
    }

    /// Keeps identities, sessions and messages in these stores: PostgreSQL, Redis or your own. The rows are sealed before
    /// they leave the process. Without it they are in SQLite, in [`data_dir`](Self::data_dir).
    ///
    /// Nothing is written to this machine, unless no key is given: the default key is a keyfile in the data directory,
    /// which every process on the store needs a copy of. Give a [`passphrase`](Self::passphrase) or another key instead.
    #[must_use]
    pub fn store(mut self, stores: Arc<dyn StoreProvider>) -> Self {
        self.stores = Some(stores);
        self
    }

    /// How long an operation may wait; 10 seconds if not set. Zero: nothing waits.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(limits::LONGEST_WAIT);
        self
    }

    /// Whom to trust at first contact; [`TrustPolicy::FirstUse`] if not set.
    #[must_use]
    pub fn trust_policy(mut self, policy: TrustPolicy) -> Self {
        self.trust = policy;
        self
    }

    /// What to do when a user shows another identity; [`MismatchPolicy::Reject`] if not set.
    #[must_use]
    pub fn on_identity_change(mut self, policy: MismatchPolicy) -> Self {
        self.mismatch = policy;
        self
    }

    /// What to do when the store turns out to be an old copy; [`RollbackPolicy::Recover`] if not set.
    #[must_use]
    pub fn on_rollback(mut self, policy: RollbackPolicy) -> Self {
        self.on_rollback = policy;
        self
    }

    /// Who answers where a policy says "ask": `true` trusts. Without an answer within a minute the answer is no.
    #[must_use]
    pub fn trust_callback<F, A>(mut self, callback: F) -> Self
    where
        F: Fn(TrustQuestion) -> A + Send + Sync + 'static,
        A: Future<Output = bool> + Send + 'static,
    {
        self.trust_callback = Some(Arc::new(move |question| Box::pin(callback(question))));
        self
    }

    /// Seals the stores by a passphrase.
    #[must_use]
    pub fn passphrase(mut self, passphrase: impl AsRef<str>) -> Self {
        self.keys = KeySource::Passphrase(Arc::from(passphrase.as_ref()));
        self
    }

    /// Seals the stores by a keyfile, which is made if it does not exist.
    #[must_use]
    pub fn keyfile(mut self, path: impl Into<PathBuf>) -> Self {
        self.keys = KeySource::Keyfile(path.into());
        self
    }

    /// Seals the stores by keys in a keyring, one for each store, which is made if it does not exist. The item's service
    /// is `stvor`, its account the path of the store's directory: a store that was moved needs its item renamed.
    #[must_use]
    pub fn keyring(mut self, keyring: Arc<dyn SecretService>) -> Self {
        self.keys = KeySource::Keyring(keyring);
        self
    }

    /// Seals the stores by keys in the operating system's keyring: see [`AppBuilder::keyring`].
    #[cfg(feature = "os-keyring")]
    #[must_use]
    pub fn os_keyring(self) -> Self {
        self.keyring(Arc::new(stvor_keys::SystemKeyring))
    }

    /// How long conversations keep messages, unless [`crate::Client::set_retention`] says otherwise.
    #[must_use]
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Which receipts to send; all if not set.
    #[must_use]
    pub fn receipts(mut self, receipts: ReceiptPolicy) -> Self {
        self.receipts = receipts;
        self
    }

    /// Trusts another root certificate (PEM) for `wss://` and `https://`, beside those of the platform-independent set.
    #[must_use]
    pub fn root_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots.push(pem.into());
        self
    }

    /// Keeps everything in four narrow stores of the application's own, in place of a directory: see [`crate::narrow`] for what that
    /// promises, and what not. The identity store gives the user's signing key, so an app with adapters has one user.
    #[must_use]
    pub fn storage_adapters(mut self, adapters: Adapters) -> Self {
        self.adapters = Some(adapters);
        self
    }

    /// Whether a minimal relay will do: a WebSocket server that hands JSON on (`announce`, `message`) and keeps nothing. If not set,
    /// only on this machine (`ws://` to a loopback address). Never over TLS, and never for a store that has spoken with our own
    /// kind of relay at this address: nobody can force a client to a relay that promises less.
    ///
    /// There the bundle is announced without one-time keys, `send` ends when the message is written, and messages stay in the outbox
    /// until the receiver's device has acknowledged them; [`crate::Event::RelayNotDurable`] says so once.
    #[must_use]
    pub fn minimal_relay(mut self, allowed: bool) -> Self {
        self.minimal_relay = Some(allowed);
        self
    }

    /// How long an instance may be silent, on a store that several processes share, before the others take over what it
    /// did: 10 seconds if not set, half a second at least. The same in all instances.
    #[must_use]
    pub fn instance_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Another clock, for tests.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Refuses to start where something is missing or weak for production: no durable store, a keyfile beside the store, a
    /// relay without TLS, a token for development or tests. [`open`](Self::open) then fails with *one* error that lists
    /// all of it, each with the way to mend it. Without this the same list is a warning, told once
    /// ([`crate::Event::DevelopmentMode`], [`App::findings`]).
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let app = stvor::App::builder().app_token("stvor_dev_test123").relay_url("ws://localhost:4444").in_memory();
    /// let error = app.production(true).open().await.unwrap_err();
    /// assert_eq!(error.code(), "NOT_FOR_PRODUCTION");
    /// let stvor::ErrorKind::NotForProduction { findings } = error.kind() else { unreachable!() };
    /// let codes: Vec<_> = findings.iter().map(|finding| finding.code).collect();
    /// assert_eq!(codes, ["store_not_durable", "relay_without_tls", "development_token"]);
    /// # });
    /// ```
    #[must_use]
    pub fn production(mut self, production: bool) -> Self {
        self.production = production;
        self
    }

    /// Refuses stores that can not write a session and the prekey that it used up in one piece, in production and in
    /// development: those of the four narrow interfaces, for example, where a crash at the wrong moment can leave one
    /// without the other. Without this such a store is accepted, and [`App::findings`] states what it does not promise.
    #[must_use]
    pub fn require_atomic_session_and_prekey(mut self, require: bool) -> Self {
        self.require_atomic = require;
        self
    }

    /// Seals the stores by a key of any kind, a token's or a key management server's for example
    /// ([`crate::Managed`]).
    #[must_use]
    pub fn key_holder(mut self, holder: Arc<dyn KeyHolder>) -> Self {
        self.keys = KeySource::Holder(holder);
        self
    }

    /// Derives the identities of this app's users from a recovery phrase of 24 words, so that who types it on a new device is
    /// the same person there: the same safety numbers, the same name at the relay. Each user of each app has keys of their
    /// own. A user whose store holds another identity is refused (`IDENTITY_EXISTS`). Costs about a second and 64 MiB for
    /// each [`App::connect`].
    ///
    /// History, settings and pinned identities do not come back by this: that is what a
    /// [backup](crate::Client::backup) is for.
    #[must_use]
    pub fn identity_phrase(mut self, words: impl AsRef<str>) -> Self {
        let phrase = RecoveryPhrase::parse(words.as_ref()).map_err(Error::passed);
        self.identity = Some(phrase.map(|phrase| IdentitySource::Phrase(Arc::new(phrase))));
        self
    }

    /// Derives the identities of this app's users from a passphrase of at least 16 bytes, as
    /// [`identity_phrase`](Self::identity_phrase) does from a phrase; costs about two seconds and 256 MiB. **Who knows the
    /// public key (the relay and every contact) can test guesses for ever**: a phrase can not be guessed, a passphrase that
    /// a person thought of can.
    #[must_use]
    pub fn identity_passphrase(mut self, passphrase: impl AsRef<str>) -> Self {
        let text = passphrase.as_ref();
        let long = text.len() >= stvor_protocol::recovery::MIN_PASSPHRASE;
        self.identity = Some(if long {
            Ok(IdentitySource::Passphrase(Arc::new(SecretBytes::from_slice(text.as_bytes()))))
        } else {
            let reason = "one that stands for an identity has at least 16 bytes";
            Err(Error::passed(KeyError::Malformed { holder: "passphrase", reason }))
        });
        self
    }

    /// The primitives of new identities: [`Suite::P256`] if not set, or [`Suite::X25519`]. **All users of an app need the same
    /// one**: between two that differ nothing can be sent (`SUITE_MISMATCH`), whoever asks for it, so no relay can talk a
    /// client into the other. An identity keeps its suite for life: opening a store whose identity has another one is
    /// `SUITE_FIXED`.
    ///
    /// ```
    /// # async fn example() -> Result<(), stvor::Error> {
    /// let app = stvor::App::builder()
    ///     .app_token("stvor_dev_example")
    ///     .relay_url("ws://127.0.0.1:4443")
    ///     .in_memory()
    ///     .suite(stvor::Suite::X25519)
    ///     .open()
    ///     .await?;
    /// # drop(app); Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn suite(mut self, suite: Suite) -> Self {
        self.suite = Some(suite);
        self
    }

    /// How much work of the application its clients take in, and what happens past that.
    ///
    /// ```
    /// # async fn example() -> Result<(), stvor::Error> {
    /// use stvor::{Executor, OnPressure};
    ///
    /// let app = stvor::App::builder()
    ///     .app_token("stvor_dev_example")
    ///     .relay_url("ws://127.0.0.1:4443")
    ///     .in_memory()
    ///     .executor(Executor { max_queued: 4_096, on_pressure: OnPressure::Wait, ..Executor::default() })
    ///     .open()
    ///     .await?;
    /// # drop(app); Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn executor(mut self, executor: Executor) -> Self {
        self.executor = executor;
        self
    }

    /// Who decides and does things, for the journal ([`crate::Client::journal`]): the name of an operator or a service. The
    /// name of the account at the operating system if not set, `uid=` and its number where it has none.
    #[must_use]
    pub fn actor(mut self, name: impl Into<String>) -> Self {
        self.actor = Some(name.into());
        self
    }

    /// Checks the settings. Nothing is dialled: that is [`App::connect`].
    ///
    /// # Errors
    /// `INVALID_CONFIG` when a setting is missing or can not be used, `INVALID_APP_TOKEN` when the token can be none,
    /// `INVALID_NAME` when the app id can be none; `KEY_MALFORMED` when a phrase or passphrase can be none; `NOT_FOR_PRODUCTION` as [`production`](Self::production) says.
    #[allow(clippy::unused_async, reason = "opening may do I/O in later versions without a break")]
    pub async fn open(self) -> Result<App> {
        let relay_url = self.relay_url.ok_or_else(|| {
            Error::config("no relay URL was given: set one, wss://... (relay_url; relayUrl in JavaScript)")
        })?;
        let relay = relay_url.parse::<RelayUrl>().map_err(Error::passed)?;
        let app_id = self.app_id.as_deref().map(AppId::new).transpose()?;
        let (credential, app) = credential(self.app_token, self.client_token, app_id)?;
        for pem in &self.roots {
            crate::transport::tls::parse_roots(pem)?;
        }
        let minimal_relay = minimal_relay(self.minimal_relay, &relay, self.production)?;
        if self.adapters.is_some() {
            if !matches!(self.storage, Storage::Default) {
                return Err(Error::config("storage adapters exclude a data directory and storage in memory"));
            }
            if !matches!(self.keys, KeySource::Beside) {
                return Err(Error::config(
                    "storage adapters are sealed by their identity pair; a passphrase, keyfile or keyring is of no use there",
                ));
            }
        }
        if let KeySource::Passphrase(passphrase) = &self.keys {
            let secret = SecretBytes::from_slice(passphrase.as_bytes());
            stvor_keys::Passphrase::new(secret).map_err(Error::passed)?;
        }
        self.executor.check()?;
        if self.adapters.is_some() && self.suite.is_some_and(|suite| suite != Suite::P256) {
            return Err(Error::config(
                "storage adapters keep an identity pair of P256; another suite needs another store",
            ));
        }
        if self.adapters.is_some() && self.stores.is_some() {
            return Err(Error::config("storage adapters exclude another store"));
        }
        let stores: Arc<dyn StoreProvider> = match (self.stores, &self.storage) {
            (Some(stores), _) => stores,
            (None, _) if self.adapters.is_some() => Arc::new(MemoryStores),
            (None, Storage::Memory) => Arc::new(MemoryStores),
            (None, Storage::Default | Storage::Directory(_)) => Arc::new(SqliteStores),
        };
        let here = self.adapters.is_none()
            && (stores.facts().local || (stores.facts().durable && matches!(self.keys, KeySource::Beside)));
        let storage = if here { self.storage } else { Storage::Memory };
        let place = Place::new(storage, relay, &app)?;
        let facts = if self.adapters.is_some() { guards::FACTS } else { stores.facts() };
        let findings = production::judge(&production::Setup {
            store: facts,
            keys: &self.keys,
            directory: place.directory.as_deref(),
            secure_relay: place.relay.is_secure(),
            relay: place.relay.origin(),
            token: match &credential {
                Credential::AppToken(token) => Some(TokenKind::of(token)),
                Credential::ClientToken(_) => None,
            },
        });
        let of_store = match &self.adapters {
            Some(adapters) => Ok([adapters.findings(), guards::findings()].concat()),
            None => stores.findings().await,
        };
        let findings = production::with_store(findings, of_store, self.require_atomic);
        let findings = match findings {
            Ok(findings) => findings,
            // What keeps a server from being asked keeps a client from being opened, and is told then.
            Err((findings, _)) if !self.production => findings,
            Err((findings, error)) if findings.iter().any(|finding| finding.refused) => {
                // All at once, also what only a server that answers could tell more about.
                let fix = "see to that, and ask again: more may be found then";
                let silent = Finding::refused("store_not_asked", error.to_string(), fix);
                [vec![silent], findings].concat()
            }
            Err((_, error)) => return Err(Error::passed(error)),
        };
        let refused = |finding: &Finding| {
            finding.refused && (self.production || finding.code == production::NOT_ATOMIC)
        };
        if findings.iter().any(refused) {
            return Err(ErrorKind::NotForProduction { findings }.into());
        }
        if !findings.is_empty() {
            tracing::warn!("not for production:{}", production::list(&findings));
        }
        Ok(App::new(Config {
            findings: findings.into(),
            told: Arc::default(),
            settings: Arc::default(),
            identity: self.identity.transpose()?,
            new_identity: false,
            actor: self.actor.unwrap_or_else(account).into(),
            credential,
            replace_identity: self.replace_identity,
            app,
            place,
            stores,
            timeout: self.timeout,
            trust: self.trust,
            mismatch: self.mismatch,
            trust_callback: self.trust_callback,
            keys: self.keys,
            retention: self.retention,
            receipts: self.receipts,
            roots: self.roots,
            minimal_relay,
            adapters: self.adapters,
            clock: self.clock,
            lease: self.lease,
            suite: self.suite,
            executor: self.executor,
            on_rollback: self.on_rollback,
        }))
    }
}

/// The name of the account that this process runs under: as the system has it, else as the environment tells it. In a container an
/// account may have no name, and nobody set any.
fn account() -> String {
    let names = ["USER", "LOGNAME", "USERNAME"].into_iter().filter_map(|name| std::env::var(name).ok());
    system_account().or_else(|| names.into_iter().find(|name| !name.is_empty())).unwrap_or_else(nameless)
}

#[cfg(unix)]
fn system_account() -> Option<String> {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).ok().flatten();
    user.map(|user| user.name).filter(|name| !name.is_empty())
}

#[cfg(unix)]
fn nameless() -> String {
    format!("uid={}", nix::unistd::Uid::effective())
}

#[cfg(not(unix))]
fn system_account() -> Option<String> {
    None
}

#[cfg(not(unix))]
fn nameless() -> String {
    "unknown".to_owned()
}

/// Whether a minimal relay will do at this address.
fn minimal_relay(wish: Option<bool>, relay: &RelayUrl, production: bool) -> Result<bool> {
    match wish {
        Some(true) if production => Err(Error::config(
            "a minimal relay keeps nothing and is not for production: leave minimal_relay (legacyRelay in JavaScript) out",
        )),
        None if production => Ok(false),
        Some(true) if relay.is_secure() => Err(Error::config(
            "a minimal relay is never spoken to over TLS: write ws://, or leave minimal_relay (legacyRelay in JavaScript) out",
        )),
        Some(wish) => Ok(wish),
        None => Ok(!relay.is_secure() && relay.is_loopback()),
    }
}

/// What lets the client in, and its app. What no relay would take is refused before anything is dialled, and no message
/// repeats a token.
fn credential(
    app_token: Option<String>,
    client_token: Option<String>,
    app_id: Option<AppId>,
) -> Result<(Credential, AppId)> {
    let refuse = |reason: &str| Error::from(ErrorKind::InvalidAppToken { reason: reason.to_owned() });
    let of_token = app_token
        .as_deref()
        .map(AppToken::parse)
        .transpose()
        .map_err(|error| refuse(&error.to_string()))?
        .map(|token| token.app());
    if client_token.as_ref().is_some_and(|token| token.len() > stvor_wire::limits::MAX_CLIENT_TOKEN_BYTES) {
        return Err(refuse("the client token is longer than 2048 bytes"));
    }
    let app = app_id.or(of_token);
    match (client_token, app_token, app) {
        (Some(token), _, Some(app)) => Ok((Credential::ClientToken(token), app)),
        (Some(_), None, None) => Err(Error::config("a client token needs the id of its app beside it")),
        (None, Some(token), Some(app)) => Ok((Credential::AppToken(token), app)),
        _ => Err(Error::config("no app token was given: it is the one that the relay's operator made")),
    }
}

impl core::fmt::Debug for AppBuilder {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("AppBuilder")
            .field("relay_url", &self.relay_url)
            .field("storage", &self.storage)
            .field("stores", &self.stores)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder() -> AppBuilder {
        App::builder().app_token("stvor_dev_test123").relay_url("ws://localhost:4444").in_memory()
    }

    async fn code(builder: AppBuilder) -> &'static str {
        builder.open().await.unwrap_err().code()
    }

    #[tokio::test]
    async fn what_is_missing_or_malformed_is_named_before_anything_is_dialled() {
        assert!(builder().open().await.is_ok());
        assert_eq!(code(App::builder().relay_url("ws://localhost:1").in_memory()).await, "INVALID_CONFIG");
        assert_eq!(code(App::builder().app_token("stvor_dev_test123").in_memory()).await, "INVALID_CONFIG");
        assert_eq!(code(builder().app_token("")).await, "INVALID_APP_TOKEN");
        assert_eq!(code(builder().app_token("stvor_dev_test123\n")).await, "INVALID_APP_TOKEN");
        assert_eq!(code(builder().app_token("x".repeat(257))).await, "INVALID_APP_TOKEN");
        assert_eq!(code(builder().relay_url("ftp://localhost")).await, "INVALID_RELAY_URL");
        assert_eq!(code(builder().relay_url("localhost:4444")).await, "INVALID_RELAY_URL");
        assert_eq!(
            code(App::builder().client_token("jwt").relay_url("ws://localhost:1").in_memory()).await,
            "INVALID_CONFIG"
        );
        assert_eq!(code(builder().app_id("a/b")).await, "INVALID_NAME");
        assert_eq!(code(builder().root_certificate("nonsense")).await, "INVALID_CONFIG");
        for production in [false, true] {
            assert_eq!(code(builder().passphrase("").production(production)).await, "KEY_MALFORMED");
        }
    }

    #[test]
    fn errors_never_repeat_the_token() {
        let error = credential(Some("secret token".to_owned()), None, None).unwrap_err();
        assert!(!error.to_string().contains("secret token"));
        assert!(!format!("{:?}", builder().app_token("verysecrettoken")).contains("verysecret"));
    }

    #[cfg(unix)]
    #[test]
    fn whoever_runs_this_has_a_name_without_any_variable() {
        let by_number = nameless();
        assert!(by_number.starts_with("uid="), "{by_number}");
        let named = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).unwrap();
        assert_eq!(account(), named.map_or(by_number, |user| user.name));
    }

    #[test]
    fn retention_survives_its_number() {
        for retention in [Retention::Forever, Retention::None, Retention::For(Duration::from_secs(5))] {
            assert_eq!(Retention::from_millis(retention.to_millis()), retention);
        }
        assert_ne!(Retention::For(Duration::ZERO).to_millis(), 0);
        assert_ne!(Retention::For(Duration::MAX).to_millis(), crate::rows::FOREVER);
    }
}
