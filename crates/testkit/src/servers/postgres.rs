//! PostgreSQL servers.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::full_disk::FullDisk;
use super::{SOON, TRIES, find, free_port, give, missing, other_user};
use crate::process::{Finished, Process, Signal, Spawn, until};
use crate::temp::{TempDir, temp_dir};

/// A private PostgreSQL server, version 15 or later: on a free port of 127.0.0.1 and on a socket, without passwords.
/// Ends with the value, and with the test process however that ends.
pub struct Postgres {
    folder: TempDir,
    programs: PathBuf,
    user: Option<(u32, u32)>,
    port: u16,
    process: Mutex<Option<Process>>,
    databases: AtomicU32,
    disk: Option<FullDisk>,
}

/// A database of a test's own.
#[derive(Debug, Clone)]
pub struct Database {
    /// `postgres://` with everything that a client needs.
    pub url: String,
    /// Its name.
    pub name: String,
    /// Where the server listens.
    pub port: u16,
}

impl Postgres {
    /// Starts one whose settings keep what it acknowledged; `None`, with a note, where PostgreSQL is not installed.
    ///
    /// # Errors
    /// When it does not start.
    ///
    /// # Panics
    /// In CI, when it is not installed.
    pub fn start() -> io::Result<Option<Self>> {
        Self::start_with(&[])
    }

    /// [`Postgres::start`] with settings (`name=value`) of `postgresql.conf`.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    ///
    /// # Panics
    /// As [`Postgres::start`].
    pub fn start_with(settings: &[&str]) -> io::Result<Option<Self>> {
        Self::start_with_files(settings, &[])
    }

    /// [`Postgres::start_with`] with files (name, content) in its data directory that only it can read: certificates and
    /// keys.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    ///
    /// # Panics
    /// As [`Postgres::start`].
    pub fn start_with_files(settings: &[&str], files: &[(&str, &str)]) -> io::Result<Option<Self>> {
        use std::os::unix::fs::PermissionsExt as _;
        let Some(server) = Self::prepare()? else { return Ok(None) };
        server.run("initdb", &["--no-sync", "-A", "trust", "-U", "stvor", "-E", "UTF8", "-D"], &["data"])?;
        server.write_settings(settings)?;
        for (name, content) in files {
            let path = server.data().join(name);
            std::fs::write(&path, content)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            give(&path, server.user)?;
        }
        server.started().map(Some)
    }

    /// [`Postgres::start`] on a disk that [`Postgres::fill_disk`] fills; `None` also where no C compiler is.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    ///
    /// # Panics
    /// As [`Postgres::start`].
    pub fn start_on_a_disk_that_fills() -> io::Result<Option<Self>> {
        let Some(mut server) = Self::start()? else { return Ok(None) };
        server.disk = FullDisk::in_folder(server.folder.path())?;
        if server.disk.is_none() {
            return Ok(None);
        }
        server.stop()?;
        server.restart()?;
        Ok(Some(server))
    }

    /// Leaves no room for a longer file of a table or index, or makes room again. Only on a disk that fills.
    ///
    /// # Errors
    /// When the server is on another disk.
    pub fn fill_disk(&self, full: bool) -> io::Result<()> {
        let disk = self.disk.as_ref().ok_or_else(|| io::Error::other("the disk does not fill"))?;
        if full { std::fs::write(&disk.flag, "") } else { std::fs::remove_file(&disk.flag) }
    }

    /// Starts a streaming replica of this server, named `name` for its `synchronous_standby_names`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_replica(&self, name: &str) -> io::Result<Self> {
        let replica = Self::prepare()?.ok_or_else(|| io::Error::other("PostgreSQL is gone"))?;
        let source = format!("host=127.0.0.1 port={} user=stvor application_name={name}", self.port);
        replica.run("pg_basebackup", &["--no-sync", "-c", "fast", "-R", "-d", &source, "-D"], &["data"])?;
        replica.write_settings(&["hot_standby=on"])?;
        replica.started()
    }

    fn prepare() -> io::Result<Option<Self>> {
        let mut folders: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
            .map(|versions| versions.filter_map(|one| Some(one.ok()?.path().join("bin"))).collect())
            .unwrap_or_default();
        folders.sort();
        folders.reverse();
        let Some(found) = find("initdb", "STVOR_POSTGRES_BIN", &folders) else {
            missing("PostgreSQL", "postgresql");
            return Ok(None);
        };
        // A link on the path leads to the folder that holds the other programs.
        let programs = found.canonicalize()?.parent().unwrap_or(Path::new("/")).to_owned();
        let folder = temp_dir()?;
        let user = other_user()?;
        give(folder.path(), user)?;
        let (process, databases) = (Mutex::new(None), AtomicU32::new(0));
        Ok(Some(Self { folder, programs, user, port: 0, process, databases, disk: None }))
    }

    fn started(mut self) -> io::Result<Self> {
        for _ in 1..TRIES {
            self.port = free_port()?;
            if self.restart().is_ok() {
                return Ok(self);
            }
        }
        self.port = free_port()?;
        self.restart().map(|()| self)
    }

    fn write_settings(&self, settings: &[&str]) -> io::Result<()> {
        use std::io::Write as _;
        let path = self.data().join("postgresql.conf");
        let mut file = std::fs::OpenOptions::new().append(true).open(path)?;
        let quiet = ["max_connections=200", "shared_buffers=32MB", "unix_socket_directories='..'"];
        for line in quiet.iter().chain(settings) {
            writeln!(file, "{line}")?;
        }
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn spawn(&self, program: &str) -> Spawn {
        let spawn = Spawn::new(self.programs.join(program)).dir(self.folder.path()).env("LC_ALL", "C");
        let spawn = match &self.disk {
            Some(disk) => spawn.env("LD_PRELOAD", &disk.library).env("STVOR_DISK_FULL_WHILE", &disk.flag),
            None => spawn,
        };
        match self.user {
            Some((user, group)) => spawn.user(user, group),
            None => spawn,
        }
    }

    fn run(&self, program: &str, arguments: &[&str], more: &[&str]) -> io::Result<Finished> {
        let done = self.spawn(program).args(arguments).args(more).run(SOON)?;
        if done.status.success() {
            return Ok(done);
        }
        Err(io::Error::other(format!("{program} failed: {} {}", done.out, done.err)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it again after [`Postgres::kill`] or [`Postgres::stop`], on the same data and the same port.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&self) -> io::Result<()> {
        let mut running = self.lock();
        drop(running.take());
        let port = self.port.to_string();
        let (deadline, mut tries) = (Instant::now() + SOON, 0);
        loop {
            let process =
                self.spawn("postgres").args(["-D", "data", "-p", &port, "-h", "127.0.0.1"]).start()?;
            let error = match process.wait_for("database system is ready to accept", SOON) {
                Ok(_) => {
                    *running = Some(process);
                    return Ok(());
                }
                Err(error) => error,
            };
            // After a kill the backends of the one before need a moment to see that it is gone, on a busy machine a long one.
            if error.to_string().contains("still in use") && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
            tries += 1;
            if tries == TRIES {
                return Err(error);
            }
        }
    }

    /// A fresh, empty database: from `template0` for the first time.
    ///
    /// # Errors
    /// When it can not be made.
    pub fn database(&self) -> io::Result<Database> {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name} TEMPLATE template0"))?;
        Ok(self.named(&name))
    }

    /// The database of this name, at this server.
    #[must_use]
    pub fn named(&self, name: &str) -> Database {
        let url = self.url_at(self.port, name);
        Database { url, name: name.to_owned(), port: self.port }
    }

    /// The URL of a database behind another port of 127.0.0.1: a proxy's.
    #[must_use]
    pub fn url_at(&self, port: u16, name: &str) -> String {
        format!("postgres://stvor@127.0.0.1:{port}/{name}?sslmode=disable")
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs a statement, as the superuser, and returns what it printed: rows in lines, columns apart by `|`.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn sql(&self, database: &str, statement: &str) -> io::Result<String> {
        let port = self.port.to_string();
        let connection = ["-h", "127.0.0.1", "-p", &port, "-U", "stvor", "-d", database, "-XAtq"];
        Ok(self.run("psql", &connection, &["-v", "ON_ERROR_STOP=1", "-c", statement])?.out)
    }

    /// Everything of a database, as text.
    ///
    /// # Errors
    /// When it can not be dumped.
    pub fn dump(&self, database: &str) -> io::Result<String> {
        let port = self.port.to_string();
        Ok(self.run("pg_dump", &["-h", "127.0.0.1", "-p", &port, "-U", "stvor", "-d"], &[database])?.out)
    }

    /// Keeps a copy of the tables of stores in a database, as a replica has them that lags from now on.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn keep_stores(&self, database: &str) -> io::Result<()> {
        let keep = "BEGIN ISOLATION LEVEL REPEATABLE READ;
             DROP SCHEMA IF EXISTS kept CASCADE; CREATE SCHEMA kept;
             CREATE TABLE kept.writers AS TABLE stvor_writers; CREATE TABLE kept.rows AS TABLE stvor_rows;
             COMMIT";
        self.sql(database, keep).map(|_| ())
    }

    /// Puts them back, as the promotion of that replica does.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn put_stores_back(&self, database: &str) -> io::Result<()> {
        // In the order in which a commit takes them.
        let put_back = "BEGIN; LOCK TABLE stvor_writers, stvor_rows;
             DELETE FROM stvor_writers; INSERT INTO stvor_writers TABLE kept.writers;
             DELETE FROM stvor_rows; INSERT INTO stvor_rows TABLE kept.rows;
             COMMIT";
        self.sql(database, put_back).map(|_| ())
    }

    /// The directory that holds all that it keeps.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends it at once, as a crash does.
    ///
    /// # Errors
    /// When it can not be ended.
    pub fn kill(&self) -> io::Result<()> {
        self.lock().take().map_or(Ok(()), |process| process.kill().map(|_| ()))
    }

    /// Ends it in good order.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&self) -> io::Result<()> {
        let Some(process) = self.lock().take() else { return Ok(()) };
        process.signal(Signal::Interrupt)?;
        process.wait_exit(SOON).map(|_| ())
    }

    /// Makes a replica the primary, and waits until it is.
    ///
    /// # Errors
    /// When it does not become one.
    pub fn promote(&self) -> io::Result<()> {
        self.sql("postgres", "SELECT pg_promote(true, 60)")?;
        until(SOON, || {
            let waiting = self.sql("postgres", "SELECT pg_is_in_recovery()").ok()?;
            (waiting.trim() == "f").then_some(())
        })
    }
}
