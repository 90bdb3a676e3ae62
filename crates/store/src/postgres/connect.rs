//! Connections, the schema and its migrations, and what PostgreSQL's errors mean.

use crate::provider::Finding;
use crate::server::{ServerOptions, certificate_problem, is_local, read};
use crate::{StoreError, limits};
use core::time::Duration;
use deadpool::Runtime;
use deadpool::managed::{self, Metrics, PoolError, RecycleError, RecycleResult, Timeouts};
use deadpool_postgres::ClientWrapper;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::{Client, Config, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

mod migrations {
    refinery::embed_migrations!("migrations-postgres");
}

/// The newest migration.
const SCHEMA: i32 = 1;

/// Where refinery keeps its record, apart from the record of an application that uses it, too.
const RECORD: &str = "stvor_migrations";

/// Held while a process migrates: "STVORMIG".
const MIGRATION_LOCK: i64 = 0x5354_564f_524d_4947;

/// Connections to one server.
pub(super) type Pool = managed::Pool<Server>;
/// A connection, back in its pool when it is dropped.
pub(super) type Connection = managed::Object<Server>;

impl managed::Manager for Server {
    type Type = ClientWrapper;
    type Error = StoreError;

    async fn create(&self) -> Result<ClientWrapper, StoreError> {
        let (client, task) = self.connect_now().await?;
        Ok(ClientWrapper::new(client, task))
    }

    async fn recycle(&self, client: &mut ClientWrapper, _: &Metrics) -> RecycleResult<StoreError> {
        if client.is_closed() { Err(RecycleError::message("it is closed")) } else { Ok(()) }
    }
}

/// A server, as everything here knows it.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) config: Config,
    pub(super) options: ServerOptions,
    /// For messages: hosts and database, without user and password.
    pub(super) name: Arc<str>,
    /// By its own default it acknowledges commits that are not on a disk.
    lax: Arc<AtomicBool>,
}

impl Server {
    pub(super) fn new(url: &str, options: ServerOptions) -> Result<Self, StoreError> {
        let mut config: Config = url.parse().map_err(|error: tokio_postgres::Error| {
            // The error names an option, never a value.
            let reason =
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            StoreError::Adapter(format!(
                "the PostgreSQL URL can not be read: {reason}; it looks like postgres://user@host/database"
            ))
        })?;
        // What stands before the last `@` is a secret, and the parser ends it at the first.
        if config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(name) if name.contains('@'))) {
            return Err(StoreError::Adapter(
                "the PostgreSQL URL has an @ in its user or password: write it as %40".to_owned(),
            ));
        }
        if config.get_application_name().is_none() {
            config.application_name("stvor");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(limits::CONNECT_TIMEOUT);
        }
        // A server that is cut off without a word is noticed while an answer is waited for.
        config.tcp_user_timeout(limits::SERVER_TIMEOUT);
        let hosts = config.get_hosts().iter().zip(config.get_ports().iter().chain(core::iter::repeat(&5432)));
        let hosts: Vec<String> = hosts
            .map(|(host, port)| match host {
                Host::Tcp(host) => format!("{host}:{port}"),
                #[cfg(unix)]
                Host::Unix(path) => path.display().to_string(),
            })
            .collect();
        let name = format!("{}/{}", hosts.join(","), config.get_dbname().unwrap_or_default());
        Ok(Self { config, options, name: name.into(), lax: Arc::default() })
    }

    pub(super) fn pool(&self, size: usize) -> Result<Pool, StoreError> {
        let timeouts = Timeouts {
            wait: Some(limits::SERVER_TIMEOUT),
            create: Some(limits::SERVER_TIMEOUT),
            recycle: Some(limits::CONNECT_TIMEOUT),
        };
        Pool::builder(self.clone())
            .max_size(size)
            .timeouts(timeouts)
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| StoreError::Adapter(format!("{}: {error}", self.name)))
    }

    fn tls(&self) -> Result<MakeRustlsConnect, StoreError> {
        let bad = |error: String| StoreError::Adapter(format!("TLS can not be set up: {error}"));
        let mut roots = rustls::RootCertStore::empty();
        match &self.options.root_certificate {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(path) => {
                for certificate in CertificateDer::pem_slice_iter(&read(path)?) {
                    let certificate = certificate.map_err(|error| bad(error.to_string()))?;
                    roots.add(certificate).map_err(|error| bad(error.to_string()))?;
                }
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(error.to_string()))?
            .with_root_certificates(roots);
        let config = match &self.options.client_certificate {
            None => config.with_no_client_auth(),
            Some((chain, key)) => {
                let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(chain)?).collect();
                let key = PrivateKeyDer::from_pem_slice(&read(key)?);
                let (chain, key) = (
                    chain.map_err(|error| bad(error.to_string()))?,
                    key.map_err(|error| bad(error.to_string()))?,
                );
                config.with_client_auth_cert(chain, key).map_err(|error| bad(error.to_string()))?
            }
        };
        Ok(MakeRustlsConnect::new(config))
    }

    async fn connect_now(&self) -> Result<(Client, JoinHandle<()>), StoreError> {
        let mut config = self.config.clone();
        if let Some(password) = self.options.password()? {
            config.password(password);
        }
        let (client, connection) =
            config.connect(self.tls()?).await.map_err(|failure| self.error(&failure))?;
        let name = Arc::clone(&self.name);
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, server = %name, "a connection to the store server ended");
            }
        });
        // Acknowledged is durable, whatever the server's default is; a connection that was cut off does not hold its lock for
        // long; and what takes its time, a migration or a sweep, is bounded here and not by what a role is set to.
        let settings = format!(
            "SET idle_in_transaction_session_timeout = {idle};
             SET statement_timeout = 0;
             SELECT set_config('synchronous_commit', 'on', false)
             WHERE current_setting('synchronous_commit') IN ('off', 'local')",
            idle = limits::SERVER_TIMEOUT.as_millis()
        );
        let said = client.simple_query(&settings).await.map_err(|failure| self.error(&failure))?;
        if said.iter().any(|message| matches!(message, SimpleQueryMessage::Row(_))) {
            self.lax.store(true, Ordering::Relaxed);
        }
        Ok((client, task))
    }

    /// Whether the server's own settings would acknowledge what is not durable, so that each transaction has to ask for more.
    pub(super) fn is_lax(&self) -> bool {
        self.lax.load(Ordering::Relaxed)
    }

    /// How a transaction begins. A pooler between us and the server may give each of them another session, which does not
    /// know what was set in the first.
    pub(super) fn begin(&self) -> &'static str {
        match self.is_lax() {
            true => "BEGIN; SET LOCAL synchronous_commit = on",
            false => "BEGIN",
        }
    }

    /// What an error means.
    pub(super) fn error(&self, failure: &tokio_postgres::Error) -> StoreError {
        let unreachable = |reason: String| StoreError::Unreachable { server: self.name.to_string(), reason };
        let Some(said) = failure.as_db_error() else {
            if let Some(reason) = certificate_problem(failure) {
                return StoreError::Untrusted { server: self.name.to_string(), reason };
            }
            let reason = std::error::Error::source(failure).map(ToString::to_string);
            return unreachable(match reason {
                Some(reason) => format!("{failure}: {reason}"),
                None => failure.to_string(),
            });
        };
        let code = said.code();
        if *code == SqlState::DISK_FULL {
            return StoreError::Full;
        }
        if [SqlState::DATA_CORRUPTED, SqlState::INDEX_CORRUPTED].contains(code) {
            return StoreError::corrupt(format!("PostgreSQL says: {}", said.message()));
        }
        if *code == SqlState::UNDEFINED_TABLE || *code == SqlState::UNDEFINED_COLUMN {
            return StoreError::corrupt("its tables in PostgreSQL are gone or changed");
        }
        if *code == SqlState::IO_ERROR {
            return StoreError::Io {
                what: format!("a write of {}", self.name),
                reason: said.message().to_owned(),
            };
        }
        // Classes: connection, authorization, database, no resources, intervention; and a standby that takes no writes.
        let class = code.code().get(..2).unwrap_or_default();
        if ["08", "28", "3D", "53", "57"].contains(&class) || *code == SqlState::READ_ONLY_SQL_TRANSACTION {
            return unreachable(said.message().to_owned());
        }
        StoreError::Adapter(format!("PostgreSQL says: {} ({})", said.message(), code.code()))
    }

    /// A server that is silent and keeps its connections is one that can not be reached.
    pub(super) async fn in_time<T>(
        &self,
        patience: Duration,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let late = || StoreError::Unreachable {
            server: self.name.to_string(),
            reason: "it did not answer in time".to_owned(),
        };
        tokio::time::timeout(patience, work).await.unwrap_or_else(|_| Err(late()))
    }

    pub(super) fn pool_error(&self, failure: PoolError<StoreError>) -> StoreError {
        match failure {
            PoolError::Backend(met) => met,
            PoolError::Closed => StoreError::Closed,
            other => StoreError::Unreachable { server: self.name.to_string(), reason: other.to_string() },
        }
    }

    /// Refuses a schema of a newer version, untouched; says whether it is the newest.
    pub(super) async fn is_migrated(&self, client: &Client) -> Result<bool, StoreError> {
        let found = self.schema(client).await?;
        if found > SCHEMA {
            let number = |version: i32| u32::try_from(version).unwrap_or(0);
            return Err(StoreError::TooNew { found: number(found), known: number(SCHEMA) });
        }
        Ok(found == SCHEMA)
    }

    /// Brings the schema to the newest version. The header's row is read before this, so every version of the schema has to
    /// read it as the newest does.
    pub(super) async fn migrate(&self, client: &mut Connection) -> Result<(), StoreError> {
        if self.is_migrated(client).await? {
            return Ok(());
        }
        let lock = client.execute("SELECT pg_advisory_lock($1)", &[&MIGRATION_LOCK]).await;
        lock.map_err(|failure| self.error(&failure))?;
        let mut runner = migrations::migrations::runner();
        runner.set_migration_table_name(RECORD);
        let wrapper: &mut ClientWrapper = client;
        let inner: &mut Client = wrapper;
        let ran = runner.run_async(inner).await;
        let unlocked = client.execute("SELECT pg_advisory_unlock($1)", &[&MIGRATION_LOCK]).await;
        ran.map_err(|failure| match failure.kind() {
            // What the server said, or that it is gone, may stand several errors below.
            refinery::error::Kind::Connection(_, source) => {
                let first: &(dyn std::error::Error + 'static) = &**source;
                let mut below = core::iter::successors(Some(first), |error| error.source());
                match below.find_map(|error| error.downcast_ref::<tokio_postgres::Error>()) {
                    Some(said) => self.error(said),
                    None => StoreError::Adapter(failure.to_string()),
                }
            }
            _ => StoreError::corrupt("its record of migrations does not match this program"),
        })?;
        unlocked.map(|_| ()).map_err(|failure| self.error(&failure))
    }

    /// The newest migration that was applied; 0: none.
    async fn schema(&self, client: &Client) -> Result<i32, StoreError> {
        let there = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&RECORD]).await;
        if !there.and_then(|row| row.try_get::<_, bool>(0)).map_err(|failure| self.error(&failure))? {
            return Ok(0);
        }
        let newest =
            client.query_one("SELECT coalesce(max(version), 0)::int4 FROM stvor_migrations", &[]).await;
        newest.and_then(|row| row.try_get(0)).map_err(|failure| self.error(&failure))
    }

    /// Where and what the server is, its settings, and the version of the schema.
    pub(super) async fn status(&self, client: &Client) -> Result<Vec<(&'static str, String)>, StoreError> {
        const SETTINGS: [&str; 5] = [
            "server_version",
            "fsync",
            "full_page_writes",
            "synchronous_commit",
            "synchronous_standby_names",
        ];
        let mut status = vec![("server", self.name.to_string())];
        for name in SETTINGS {
            let asked = client.query_one("SELECT current_setting($1)", &[&name]).await;
            let value = asked.and_then(|row| row.try_get::<_, String>(0));
            status.push((name, value.map_err(|failure| self.error(&failure))?));
        }
        let schema = self.schema(client).await?;
        status.push(("schema", format!("{schema} (this program writes {SCHEMA})")));
        Ok(status)
    }

    /// Which settings of the server would lose what it acknowledged, or tell others what it holds.
    pub(super) async fn findings(&self, client: &Client) -> Result<Vec<Finding>, StoreError> {
        let asked = client
            .query_one(
                "SELECT current_setting('fsync'), current_setting('full_page_writes'),
                        current_setting('synchronous_commit'), current_setting('synchronous_standby_names'),
                        (SELECT count(*) FROM pg_stat_replication WHERE application_name <> 'pg_basebackup'),
                        coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)",
                &[],
            )
            .await;
        let row = asked.map_err(|failure| self.error(&failure))?;
        let text = |index: usize| row.try_get::<_, String>(index).unwrap_or_default();
        let mut found = Vec::new();
        let mut off = |name: &str, code, loss: &str| {
            if text(usize::from(name != "fsync")) == "off" {
                found.push(Finding::new(
                    code,
                    format!("PostgreSQL runs with {name} = off: {loss}"),
                    format!("set {name} = on in postgresql.conf and restart the server"),
                ));
            }
        };
        off("fsync", "postgres_fsync_off", "a crash of its machine loses or damages what it acknowledged");
        off(
            "full_page_writes",
            "postgres_full_page_writes_off",
            "a torn page after a crash damages the database",
        );
        // More was asked for when the connection was made: it is another session by now.
        if ["off", "local"].contains(&text(2).as_str()) {
            found.push(Finding::new(
                "postgres_synchronous_commit",
                format!(
                    "synchronous_commit is {} though more was asked for: a connection pooler hands out other sessions",
                    text(2)
                ),
                "set synchronous_commit = on for this user and database, or connect without that pooler",
            ));
        }
        if row.try_get::<_, i64>(4).unwrap_or(0) > 0 && text(3).is_empty() {
            found.push(Finding::new(
                "postgres_no_synchronous_standby",
                "PostgreSQL has replicas and none is synchronous: promoting one rolls back what was acknowledged",
                "name a replica in synchronous_standby_names",
            ));
        }
        let local = self.config.get_hosts().iter().all(|host| match host {
            Host::Tcp(host) => is_local(host),
            #[cfg(unix)]
            Host::Unix(_) => true,
        });
        let encrypted = row.try_get(5).unwrap_or(false) && self.config.get_ssl_mode() == SslMode::Require;
        if !local && !encrypted {
            found.push(Finding::new(
                "postgres_no_tls",
                "the connection to PostgreSQL is not bound to TLS",
                "add sslmode=require to the URL (the certificate is always checked)",
            ));
        }
        Ok(found)
    }
}

/// Whether a store was ever made in the database.
pub(super) async fn has_tables(client: &Client) -> Result<bool, tokio_postgres::Error> {
    client.query_one("SELECT to_regclass('stvor_rows') IS NOT NULL", &[]).await?.try_get(0)
}

/// Whether it is worth trying again: the server may be restarting or failing over, or broke a deadlock.
pub(super) fn is_transient(failure: &tokio_postgres::Error) -> bool {
    let Some(said) = failure.as_db_error() else { return true };
    let class = said.code().code().get(..2).unwrap_or_default();
    ["08", "57"].contains(&class)
        || [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::READ_ONLY_SQL_TRANSACTION,
            SqlState::TOO_MANY_CONNECTIONS,
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        ]
        .contains(said.code())
}

/// Whether a failed COMMIT certainly committed nothing: the server said so and lives on.
pub(super) fn is_refused(failure: &tokio_postgres::Error) -> bool {
    failure.as_db_error().is_some_and(|said| said.parsed_severity() == Some(Severity::Error))
}
