//! Connections to a server or a cluster, its settings, and what Redis's errors mean.

use crate::provider::Finding;
use crate::server::{ServerOptions, certificate_problem, is_local, read};
use crate::{StoreError, limits};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind,
    IntoConnectionInfo, Pipeline, RedisError, RedisResult, TlsCertificates, Value,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Mutex;

/// The library of server-side functions. Its name holds its version, so that programs of two versions can share a server.
const FUNCTIONS: &str = include_str!("functions.lua");

/// A connection that any number of tasks use at a time.
#[derive(Clone)]
pub(super) enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    pub(super) async fn query(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Single(connection) => command.query_async(connection).await,
            Self::Cluster(connection) => command.query_async(connection).await,
        }
    }

    /// An answer for each command; an error of one is a [`Value::ServerError`] in its place.
    pub(super) async fn pipeline(&mut self, commands: &Pipeline) -> RedisResult<Vec<Value>> {
        match self {
            Self::Single(connection) => commands.query_async(connection).await,
            Self::Cluster(connection) => commands.query_async(connection).await,
        }
    }

    /// What every master answers.
    async fn masters(&mut self, command: &Cmd) -> RedisResult<Vec<Value>> {
        self.each_master(command).await.into_iter().collect()
    }

    /// What each master answers, or why it does not.
    async fn each_master(&mut self, command: &Cmd) -> Vec<RedisResult<Value>> {
        match self {
            Self::Single(connection) => vec![command.query_async(connection).await],
            Self::Cluster(connection) => {
                let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                match connection.route_command(command.clone(), masters).await {
                    // Errors of some are answers in their places.
                    Ok(Value::Map(answers)) => answers
                        .into_iter()
                        .map(|(_, answer)| match answer {
                            Value::ServerError(error) => Err(RedisError::from(error)),
                            answer => Ok(answer),
                        })
                        .collect(),
                    other => vec![other],
                }
            }
        }
    }
}

struct Live {
    connection: Connection,
    /// Tells one connection from the next.
    number: u64,
}

#[derive(Default)]
struct State {
    /// How often a server was dialled.
    dials: u64,
    live: Option<Live>,
    /// The cluster: servers that were named may be away when it is dialled again.
    cluster: Cluster,
}

/// What a server of a cluster told of it.
#[derive(Default)]
struct Cluster {
    /// That server comes first.
    servers: Vec<ConnectionInfo>,
    /// The names that servers of a cluster give themselves and keep: no other cluster has one of them.
    ids: Vec<String>,
}

impl Cluster {
    fn is_the_same_as(&self, other: &Self) -> bool {
        self.ids.iter().any(|id| other.ids.contains(id))
    }
}

/// What a server is that was dialled.
enum Greeted {
    Single(MultiplexedConnection),
    Cluster(Cluster),
}

/// The way to a server: connected when it is first needed, and again after it broke.
pub(super) struct Link {
    urls: Vec<ConnectionInfo>,
    options: ServerOptions,
    /// For messages: hosts only.
    pub(super) name: Arc<str>,
    state: Mutex<State>,
    /// The way of reads, of a way of writes.
    reads: Option<Arc<Link>>,
}

impl Link {
    pub(super) fn new(urls: &[&str], options: ServerOptions) -> Result<Self, StoreError> {
        let parse = |url: &&str| {
            url.into_connection_info().map_err(|error| {
                let reason = error.detail().map_or_else(|| error.to_string(), ToOwned::to_owned);
                StoreError::Adapter(format!(
                    "the Redis URL can not be read: {reason}; it looks like rediss://host:6379"
                ))
            })
        };
        let urls: Vec<ConnectionInfo> = urls.iter().map(parse).collect::<Result<_, _>>()?;
        if urls.is_empty() {
            return Err(StoreError::Adapter("no Redis URL was given".into()));
        }
        if let Some(name) = options.assured_settings.keys().find(|name| !SETTINGS.contains(&name.as_str())) {
            return Err(StoreError::Adapter(format!(
                "nothing depends on the Redis setting {name} that is vouched for; those that count are {}",
                SETTINGS.join(", ")
            )));
        }
        let name: Vec<String> = urls.iter().map(|info| info.addr().to_string()).collect();
        Ok(Self { urls, options, name: name.join(",").into(), state: Mutex::default(), reads: None })
    }

    /// The way of writes beside this one, which may wait for replicas.
    pub(super) fn for_writes(reads: &Arc<Self>) -> Self {
        Self {
            urls: reads.urls.clone(),
            options: reads.options.clone(),
            name: Arc::clone(&reads.name),
            state: Mutex::default(),
            reads: Some(Arc::clone(reads)),
        }
    }

    pub(super) fn options(&self) -> &ServerOptions {
        &self.options
    }

    /// The connection, and its number for [`Link::broke`].
    pub(super) async fn connection(&self) -> Result<(Connection, u64), StoreError> {
        let mut state = self.state.lock().await;
        if let Some(live) = &state.live {
            return Ok((live.connection.clone(), live.number));
        }
        // Servers that were named are waited for before one is joined that is only remembered.
        let patience = limits::CONNECT_TIMEOUT + limits::SERVER_TIMEOUT;
        let dialling = tokio::time::timeout(patience, self.dial(&mut state.cluster));
        let connection = dialling.await.map_err(|_| self.unreachable("it did not answer in time"))??;
        state.dials += 1;
        let number = state.dials;
        state.live = Some(Live { connection: connection.clone(), number });
        Ok((connection, number))
    }

    /// The connection of this number is of no use any more.
    pub(super) async fn broke(&self, number: u64) {
        let gone = self.state.lock().await.live.take_if(|live| live.number == number).is_some();
        // A primary that became a replica refuses writes and goes on to answer reads with what it had. While reads are dialled
        // they have no connection.
        if gone && let Some(mut state) = self.reads.as_ref().and_then(|reads| reads.state.try_lock().ok()) {
            state.live = None;
        }
    }

    pub(super) fn unreachable(&self, reason: impl Into<String>) -> StoreError {
        StoreError::Unreachable { server: self.name.to_string(), reason: reason.into() }
    }

    /// Reads password and certificates anew and dials all servers at once. Of those that were named, one of a cluster is taken as soon
    /// as it answers, else the first that answers. One that is only remembered is taken when no other is left, and as one of that cluster
    /// only: its address may be somebody else's by now.
    async fn dial(&self, known: &mut Cluster) -> Result<Connection, StoreError> {
        let (password, certificates) = (self.options.password()?, self.certificates()?);
        let how = (password.as_deref(), certificates.as_ref());
        let others = known.servers.iter().filter(|one| !self.urls.iter().any(|url| url.addr() == one.addr()));
        let servers: Vec<ConnectionInfo> = self.urls.iter().chain(others).cloned().collect();
        let mut greetings: FuturesUnordered<_> = servers
            .into_iter()
            .enumerate()
            .map(|(place, info)| self.greet_in_time(place, info, how))
            .collect();
        let mut best: Result<(usize, MultiplexedConnection), StoreError> =
            Err(self.unreachable("it was not dialled"));
        let (mut named, mut remembered) = (self.urls.len(), None);
        while named > 0 || (best.is_err() && remembered.is_none()) {
            let Some((place, greeted)) = greetings.next().await else { break };
            if place >= self.urls.len() {
                remembered = remembered.or(match greeted {
                    Ok(Greeted::Cluster(cluster)) if cluster.is_the_same_as(known) => Some(cluster),
                    _ => None,
                });
                continue;
            }
            named -= 1;
            let before = best.as_ref().ok().map(|(before, _)| *before);
            match (greeted, before) {
                (Ok(Greeted::Cluster(cluster)), _) => {
                    return self.join(cluster, known, certificates.as_ref()).await;
                }
                (Ok(Greeted::Single(_)), Some(before)) if before < place => {}
                (Ok(Greeted::Single(connection)), _) => best = Ok((place, connection)),
                (Err(error), None) => best = Err(error),
                (Err(_), Some(_)) => {}
            }
        }
        match (best, remembered) {
            (Err(_), Some(cluster)) => self.join(cluster, known, certificates.as_ref()).await,
            (best, _) => best.map(|(_, connection)| Connection::Single(connection)),
        }
    }

    /// What a server is, and its place among those that are dialled.
    async fn greet_in_time(
        &self,
        place: usize,
        info: ConnectionInfo,
        how: (Option<&str>, Option<&TlsCertificates>),
    ) -> (usize, Result<Greeted, StoreError>) {
        let greeted = tokio::time::timeout(limits::CONNECT_TIMEOUT, self.greet(info, how)).await;
        (place, greeted.unwrap_or_else(|_| Err(self.unreachable("it did not answer in time"))))
    }

    async fn greet(
        &self,
        mut info: ConnectionInfo,
        (password, certificates): (Option<&str>, Option<&TlsCertificates>),
    ) -> Result<Greeted, StoreError> {
        let failed = |error: RedisError| self.error(&error);
        if let Some(password) = password {
            let settings = info.redis_settings().clone().set_password(password);
            info = info.set_redis_settings(settings);
        }
        let secure = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
        let client = match certificates.filter(|_| secure) {
            Some(certificates) => Client::build_with_tls(info.clone(), certificates.clone()),
            None => Client::open(info.clone()),
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limits::CONNECT_TIMEOUT))
            .set_response_timeout(Some(limits::SERVER_TIMEOUT));
        let connected = client.map_err(failed)?.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = connected.map_err(failed)?;
        let about: String =
            redis::cmd("INFO").arg("everything").query_async(&mut connection).await.map_err(failed)?;
        let version = fact(&about, "redis_version").unwrap_or_default();
        if version.split('.').next().and_then(|major| major.parse().ok()).is_none_or(|major: u32| major < 7) {
            return Err(self.unreachable(format!("it runs Redis {version}; version 7 or later is needed")));
        }
        if fact(&about, "cluster_enabled") == Some("1") {
            let slots: Value =
                redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await.map_err(failed)?;
            let mut cluster = cluster_of(&slots, &info);
            if cluster.servers.is_empty() {
                return Err(self.unreachable("it is of a cluster and knows no server of it"));
            }
            cluster.servers.insert(0, info);
            return Ok(Greeted::Cluster(cluster));
        }
        if fact(&about, "role") == Some("slave") {
            return Err(self.unreachable("it is a replica"));
        }
        let loaded: RedisResult<()> = load_functions().query_async(&mut connection).await;
        match loaded {
            // One that takes no writes just now is read all the same.
            Err(error) if error.code().is_none_or(|code| !takes_no_writes(code)) => Err(failed(error)),
            _ => Ok(Greeted::Single(connection)),
        }
    }

    /// A cluster, by the first of its servers: others may be silent, and would be waited for. It is remembered.
    async fn join(
        &self,
        cluster: Cluster,
        known: &mut Cluster,
        certificates: Option<&TlsCertificates>,
    ) -> Result<Connection, StoreError> {
        *known = cluster;
        let failed = |error: RedisError| self.error(&error);
        let mut builder = ClusterClientBuilder::new(known.servers.iter().take(1).cloned())
            .connection_timeout(limits::CONNECT_TIMEOUT)
            .response_timeout(limits::SERVER_TIMEOUT);
        if let Some(certificates) = certificates {
            builder = builder.certs(certificates.clone());
        }
        let client = builder.build().map_err(failed)?;
        let connection = Connection::Cluster(client.get_async_connection().await.map_err(failed)?);
        // A master of other slots may be away or take nothing just now. Who needs it hears that from it.
        let mut loading = connection.clone();
        tokio::spawn(async move {
            if let Err(error) = loading.masters(&load_functions()).await {
                tracing::debug!(%error, "a master of the cluster was not given the functions");
            }
        });
        Ok(connection)
    }

    /// Makes the functions known to the server that has this key.
    pub(super) async fn load(&self, connection: &mut Connection, key: &str) -> Result<(), StoreError> {
        let loaded: RedisResult<()> = match connection {
            Connection::Single(connection) => load_functions().query_async(connection).await,
            Connection::Cluster(connection) => {
                let route = SingleNodeRoutingInfo::SpecificNode(Route::with_key(key, SlotAddr::Master));
                connection.route_command(load_functions(), RoutingInfo::SingleNode(route)).await.map(|_| ())
            }
        };
        loaded.map_err(|error| self.error(&error))
    }

    fn certificates(&self) -> Result<Option<TlsCertificates>, StoreError> {
        let client_tls = match &self.options.client_certificate {
            Some((chain, key)) => Some(ClientTlsConfig { client_cert: read(chain)?, client_key: read(key)? }),
            None => None,
        };
        let root_cert = self.options.root_certificate.as_deref().map(read).transpose()?;
        let any = client_tls.is_some() || root_cert.is_some();
        Ok(any.then_some(TlsCertificates { client_tls, root_cert }))
    }

    /// What an error means.
    pub(super) fn error(&self, failure: &RedisError) -> StoreError {
        let (code, detail) = (failure.code().unwrap_or_default(), failure.detail().unwrap_or_default());
        match (code, failure.kind()) {
            ("STVORDAMAGED", _) => StoreError::corrupt(detail),
            ("STVOREMPTIED", _) => StoreError::Emptied,
            (code, ErrorKind::Server(_) | ErrorKind::Extension) => self.said(code, detail),
            _ => match refused_certificate(failure) {
                Some(reason) => StoreError::Untrusted { server: self.name.to_string(), reason },
                None => self.unreachable(failure.to_string()),
            },
        }
    }

    /// What an error that the server sent means.
    pub(super) fn said(&self, code: &str, detail: &str) -> StoreError {
        match code {
            "OOM" => StoreError::Full,
            "MISCONF" if detail.contains("No space left") => StoreError::Full,
            "MISCONF" => {
                StoreError::Io { what: format!("a write of {}", self.name), reason: detail.to_owned() }
            }
            "STVORDAMAGED" => StoreError::corrupt(detail),
            "STVOREMPTIED" => StoreError::Emptied,
            code if is_passing(code) || ["NOAUTH", "WRONGPASS", "NOPERM"].contains(&code) => {
                self.unreachable(format!("{code} {detail}"))
            }
            code => StoreError::Adapter(format!("Redis says: {code} {detail}")),
        }
    }

    /// Where and what the server is, and its settings; of a cluster, those of one master.
    pub(super) async fn status(&self) -> Result<Vec<(&'static str, String)>, StoreError> {
        let failed = |error: RedisError| self.error(&error);
        let (mut connection, _) = self.connection().await?;
        let about = connection.each_master(redis::cmd("INFO").arg("everything")).await;
        let masters = about.len();
        let about = about.into_iter().next().unwrap_or(Ok(Value::Nil)).map_err(failed)?;
        let about: String = redis::from_redis_value(about).map_err(|error| failed(error.into()))?;
        let mut status = vec![("server", self.name.to_string()), ("masters", masters.to_string())];
        for (name, line) in [("server_version", "redis_version"), ("replicas", "connected_slaves")] {
            status.push((name, fact(&about, line).unwrap_or("unknown").to_owned()));
        }
        status.push(("replicas_awaited", self.options.replicas.to_string()));
        let mut ask = redis::cmd("CONFIG");
        ask.arg("GET").arg(SETTINGS);
        // A user may not be allowed to see them; `findings` says so.
        let mut told = Settings::new();
        if let Some(Ok(first)) = connection.each_master(&ask).await.into_iter().next() {
            told = redis::from_redis_value(first).map_err(|error| failed(error.into()))?;
        }
        for name in SETTINGS {
            let assured = || Some(format!("{} (vouched for)", self.options.assured_settings.get(*name)?));
            status.extend(told.get(*name).cloned().or_else(assured).map(|value| (*name, value)));
        }
        Ok(status)
    }

    /// Which settings of the servers would lose what they acknowledged, or tell others what they hold.
    pub(super) async fn findings(&self) -> Result<Vec<Finding>, StoreError> {
        let (mut connection, _) = self.connection().await?;
        let mut found: BTreeMap<&'static str, Finding> = BTreeMap::new();
        let mut ask = redis::cmd("CONFIG");
        ask.arg("GET").arg(SETTINGS);
        let assured = &self.options.assured_settings;
        let mut told: Vec<Settings> = Vec::new();
        for answer in connection.each_master(&ask).await {
            match answer {
                Ok(settings) => {
                    let settings = redis::from_redis_value(settings);
                    told.push(settings.map_err(|error| self.error(&error.into()))?);
                }
                // It did not refuse to tell: whoever asks again may hear it.
                Err(error) if is_passing_failure(&error) => return Err(self.error(&error)),
                Err(_) if !assured.is_empty() => told.push(Settings::new()),
                Err(error) => {
                    let what = format!("the settings of Redis can not be read ({error})");
                    let fix = "allow CONFIG GET to this user; where the provider of the server forbids it, vouch for those settings that \
                               you know of (assured_settings; assuredSettings in JavaScript, store_assured_settings at the command line)";
                    found.insert("redis_settings_hidden", Finding::new("redis_settings_hidden", what, fix));
                }
            }
        }
        let judged = told.iter().flat_map(|told| judge(told, assured));
        found.extend(judged.map(|finding| (finding.code, finding)));
        let replication = connection.masters(redis::cmd("INFO").arg("replication")).await;
        for master in replication.map_err(|error| self.error(&error))? {
            let about: String = redis::from_redis_value(master).map_err(|error| self.error(&error.into()))?;
            let replicas = fact(&about, "connected_slaves").unwrap_or("0") != "0";
            // `min-replicas-to-write` does not help: it says that a replica was heard from, not that it has the commit.
            if replicas && self.options.replicas == 0 {
                let finding = Finding::new(
                    "redis_no_synchronous_replica",
                    "Redis has replicas and commits wait for none: promoting one rolls back what was acknowledged",
                    "set replicas(1) in the options of the store: a commit then waits until a replica has it",
                );
                found.insert(finding.code, finding);
            }
        }
        let open =
            |info: &ConnectionInfo| matches!(info.addr(), ConnectionAddr::Tcp(host, _) if !is_local(host));
        if self.urls.iter().any(open) {
            let what = "the connection to Redis is not encrypted";
            let finding = Finding::new("redis_no_tls", what, "use a rediss:// URL");
            found.insert(finding.code, finding);
        }
        Ok(found.into_values().collect())
    }
}

fn load_functions() -> Cmd {
    let mut command = redis::cmd("FUNCTION");
    command.arg("LOAD").arg("REPLACE").arg(FUNCTIONS);
    command
}

/// The servers that a cluster's answer to CLUSTER SLOTS names, reached as the one that gave it.
fn cluster_of(slots: &Value, answered: &ConnectionInfo) -> Cluster {
    let mut found = Cluster::default();
    let own = match answered.addr() {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.as_str(),
        _ => return found,
    };
    let ranges = slots.as_sequence().unwrap_or_default().iter().filter_map(Value::as_sequence);
    for node in ranges.flat_map(|range| range.iter().skip(2)).filter_map(Value::as_sequence) {
        let [host, port, ..] = node else { continue };
        let (Ok(host), Ok(port)) =
            (redis::from_redis_value_ref::<Option<String>>(host), redis::from_redis_value_ref::<u16>(port))
        else {
            continue;
        };
        // Without a name it is the one that was asked, by another port; `?` is one that nobody knows the name of.
        let host = host.filter(|host| !host.is_empty()).unwrap_or_else(|| own.to_owned());
        if host == "?" {
            continue;
        }
        let address = match answered.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        if found.servers.len() < limits::CLUSTER_SERVERS
            && !found.servers.iter().any(|one| *one.addr() == address)
        {
            found.servers.push(answered.clone().set_addr(address));
            if let Some(Ok(id)) = node.get(2).map(redis::from_redis_value_ref::<String>) {
                found.ids.push(id);
            }
        }
    }
    found
}

/// What is wrong with the server's certificate. The library keeps what it met as text, in the words of rustls.
fn refused_certificate(failure: &RedisError) -> Option<String> {
    let text = failure.to_string();
    let said = text.split_once("invalid peer certificate: ").map(|(_, why)| why.to_owned());
    certificate_problem(failure).or(said)
}

const SETTINGS: &[&str] =
    &["appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory", "maxmemory-policy"];

/// Settings of a server, or what somebody says of them.
type Settings = BTreeMap<String, String>;

/// What is weak in the settings that a server told, and in those that are vouched for where it told nothing.
fn judge(told: &Settings, assured: &Settings) -> Vec<Finding> {
    let value = |name: &str| told.get(name).or_else(|| assured.get(name)).map(String::as_str);
    let is = |name: &str, wanted: &str| value(name) == Some(wanted);
    let now = |name: &str| value(name).unwrap_or("unknown").to_owned();
    let mut found = Vec::new();
    if !is("appendonly", "yes") {
        found.push(Finding::new(
            "redis_appendonly",
            format!(
                "Redis runs with appendonly {}: a crash loses everything since the last snapshot, or everything",
                now("appendonly")
            ),
            "set appendonly yes",
        ));
    }
    if !is("appendfsync", "always") {
        found.push(Finding::new(
            "redis_appendfsync",
            format!(
                "Redis runs with appendfsync {}: a crash of its machine loses the last second or more",
                now("appendfsync")
            ),
            "set appendfsync always",
        ));
    }
    if !is("no-appendfsync-on-rewrite", "no") {
        found.push(Finding::new(
            "redis_no_appendfsync_on_rewrite",
            format!(
                "Redis runs with no-appendfsync-on-rewrite {}: what is acknowledged during a rewrite is not synced",
                now("no-appendfsync-on-rewrite")
            ),
            "set no-appendfsync-on-rewrite no",
        ));
    }
    let evicts = value("maxmemory-policy").is_none_or(|policy| policy.starts_with("allkeys"));
    if evicts && !is("maxmemory", "0") {
        found.push(Finding::new(
            "redis_maxmemory_policy",
            format!(
                "Redis evicts keys when its memory is full (maxmemory-policy {}): whole stores would vanish",
                now("maxmemory-policy")
            ),
            "set maxmemory-policy noeviction",
        ));
    }
    let untold: Vec<String> = assured
        .iter()
        .filter(|(name, _)| !told.contains_key(*name))
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    if !untold.is_empty() {
        found.push(Finding::new(
            "redis_settings_assured",
            format!(
                "Redis does not tell these settings, and nothing but your word stands for them: {}",
                untold.join(", ")
            ),
            "make sure of them with whoever runs the server, and again when its plan or version changes",
        ));
    }
    found
}

/// The value of a line of INFO.
fn fact<'a>(about: &'a str, name: &str) -> Option<&'a str> {
    about.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Whether a primary takes no writes just now: for want of replicas, of memory or of a disk.
fn takes_no_writes(code: &str) -> bool {
    ["NOREPLICAS", "OOM", "MISCONF"].contains(&code)
}

/// Errors of a server that restarts, fails over or waits for replicas: the call did nothing and may be repeated.
pub(super) fn is_passing(code: &str) -> bool {
    [
        "LOADING",
        "READONLY",
        "CLUSTERDOWN",
        "MASTERDOWN",
        "TRYAGAIN",
        "NOREPLICAS",
        "MOVED",
        "ASK",
        "UNBLOCKED",
    ]
    .contains(&code)
}

/// Whether a call failed for want of an answer, or because the server is not ready.
fn is_passing_failure(error: &RedisError) -> bool {
    error.is_timeout()
        || error.is_io_error()
        || error.is_connection_dropped()
        || error.is_connection_refusal()
        || error.code().is_some_and(is_passing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn codes(told: &Settings, assured: &Settings) -> Vec<&'static str> {
        judge(told, assured).iter().map(|finding| finding.code).collect()
    }

    const GOOD: [(&str, &str); 5] = [
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("no-appendfsync-on-rewrite", "no"),
        ("maxmemory", "1000"),
        ("maxmemory-policy", "noeviction"),
    ];

    fn found(changes: &[(&str, &str)]) -> Vec<&'static str> {
        codes(&settings(&[&GOOD, changes].concat()), &Settings::new())
    }

    #[test]
    fn each_setting_that_loses_data_is_found_and_no_other() {
        assert!(found(&[]).is_empty());
        assert_eq!(found(&[("appendonly", "no")]), ["redis_appendonly"]);
        assert_eq!(found(&[("appendfsync", "everysec")]), ["redis_appendfsync"]);
        assert_eq!(found(&[("no-appendfsync-on-rewrite", "yes")]), ["redis_no_appendfsync_on_rewrite"]);
        assert_eq!(found(&[("maxmemory-policy", "allkeys-lru")]), ["redis_maxmemory_policy"]);
        // No key of a store has a time to live.
        assert!(found(&[("maxmemory-policy", "volatile-lru")]).is_empty());
        assert!(found(&[("maxmemory-policy", "allkeys-lru"), ("maxmemory", "0")]).is_empty());
    }

    #[test]
    fn a_word_stands_for_what_the_server_does_not_tell_is_judged_alike_and_always_listed() {
        let (none, good) = (Settings::new(), settings(&GOOD));
        let weak = [
            "redis_appendonly",
            "redis_appendfsync",
            "redis_no_appendfsync_on_rewrite",
            "redis_maxmemory_policy",
        ];
        assert_eq!(codes(&none, &none), weak, "what nobody says is not taken for good");
        assert_eq!(codes(&none, &good), ["redis_settings_assured"]);
        let second = settings(&[&GOOD[..], &[("appendfsync", "everysec")]].concat());
        assert_eq!(codes(&none, &second), ["redis_appendfsync", "redis_settings_assured"]);
        // What the server tells counts.
        assert_eq!(codes(&second, &good), ["redis_appendfsync"]);
        let told = settings(&[("appendfsync", "no"), ("maxmemory-policy", "noeviction")]);
        assert_eq!(codes(&told, &good), ["redis_appendfsync", "redis_settings_assured"]);
        let listed = judge(&none, &settings(&GOOD[..1]));
        let listed = &listed.last().unwrap().what;
        assert!(listed.ends_with(": appendonly yes"), "each with its value, and no other: {listed}");
    }
}
