//! Redis servers.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{SOON, TRIES, find, free_port, missing};
use crate::process::{Process, Signal, Spawn, until};
use crate::temp::{TempDir, temp_dir};

/// How a [`Redis`] is set up, beside what a test needs of every one.
#[derive(Debug, Clone, Default)]
pub struct RedisSettings {
    /// Arguments after `redis-server`'s own, such as `--appendfsync everysec`.
    pub arguments: Vec<String>,
    /// No plain port: the arguments set up TLS on `tls-port 0`'s replacement, which is [`Redis::port`].
    pub tls_only: bool,
}

/// A private Redis server, version 7 or later, on a free port of 127.0.0.1. By default it keeps what it acknowledged.
/// Ends with the value, and with the test process however that ends.
pub struct Redis {
    folder: TempDir,
    program: PathBuf,
    port: u16,
    settings: RedisSettings,
    process: Mutex<Option<Process>>,
}

impl Redis {
    /// Starts one; `None`, with a note, where Redis is not installed.
    ///
    /// # Errors
    /// When it does not start.
    ///
    /// # Panics
    /// In CI, when it is not installed.
    pub fn start() -> io::Result<Option<Self>> {
        Self::start_with(RedisSettings::default())
    }

    /// [`Redis::start`] with settings.
    ///
    /// # Errors
    /// As [`Redis::start`].
    ///
    /// # Panics
    /// As [`Redis::start`].
    pub fn start_with(settings: RedisSettings) -> io::Result<Option<Self>> {
        let Some(program) = find("redis-server", "STVOR_REDIS_BIN", &[]) else {
            missing("Redis", "redis-server");
            return Ok(None);
        };
        let (folder, process) = (temp_dir()?, Mutex::new(None));
        let mut server = Self { folder, program, port: 0, settings, process };
        for _ in 1..TRIES {
            server.port = free_port()?;
            if server.restart().is_ok() {
                return Ok(Some(server));
            }
        }
        server.port = free_port()?;
        server.restart().map(|()| Some(server))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it again after [`Redis::kill`], on the same data and the same port.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&self) -> io::Result<()> {
        let mut running = self.lock();
        drop(running.take());
        let port = self.port.to_string();
        let (plain, tls) = if self.settings.tls_only { ("0", port.as_str()) } else { (port.as_str(), "0") };
        let process = Spawn::new(&self.program)
            .dir(self.folder.path())
            .args(["--bind", "127.0.0.1", "--port", plain, "--tls-port", tls, "--daemonize", "no"])
            .args(["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--loglevel", "notice"])
            .args(&self.settings.arguments)
            .start()?;
        process.wait_for("Ready to accept connections", SOON)?;
        *running = Some(process);
        Ok(())
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `redis://` with everything that a client needs.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Runs a command by `redis-cli`.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn cli(&self, arguments: &[&str]) -> io::Result<String> {
        let cli = self.program.with_file_name("redis-cli");
        let port = self.port.to_string();
        let done = Spawn::new(cli).args(["-e", "-p", &port]).args(arguments).run(SOON)?;
        if done.status.success() {
            return Ok(done.out);
        }
        Err(io::Error::other(format!("redis-cli {arguments:?}: {} {}", done.out, done.err)))
    }

    /// Keeps a copy of all stores, as a replica has them that lags from now on.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn keep_stores(&self) -> io::Result<()> {
        let keep = "for _, key in ipairs(redis.call('KEYS', 'stvor:*')) do
             redis.call('COPY', key, 'kept:' .. key, 'REPLACE') end";
        self.cli(&["eval", keep, "0"]).map(|_| ())
    }

    /// Puts them back, as the promotion of that replica does.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn put_stores_back(&self) -> io::Result<()> {
        let put_back = "for _, key in ipairs(redis.call('KEYS', 'stvor:*')) do redis.call('DEL', key) end
             for _, key in ipairs(redis.call('KEYS', 'kept:*')) do
             redis.call('COPY', key, string.sub(key, 6), 'REPLACE') end";
        self.cli(&["eval", put_back, "0"]).map(|_| ())
    }

    /// The bytes of everything that it has on disk.
    ///
    /// # Errors
    /// When a file can not be read.
    pub fn files(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder)? {
                let path = entry?.path();
                if path.is_dir() { folders.push(path) } else { bytes.extend(std::fs::read(path)?) }
            }
        }
        Ok(bytes)
    }

    /// Ends it at once, as a crash does.
    ///
    /// # Errors
    /// When it can not be ended.
    pub fn kill(&self) -> io::Result<()> {
        self.lock().take().map_or(Ok(()), |process| process.kill().map(|_| ()))
    }

    /// Stops its clock, or lets it go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self, pause: bool) -> io::Result<()> {
        let signal = if pause { Signal::Stop } else { Signal::Continue };
        self.lock().as_ref().map_or_else(|| Err(io::Error::other("not running")), |one| one.signal(signal))
    }
}

/// A Redis Cluster of three masters.
pub struct RedisCluster {
    /// Its servers.
    pub nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts three servers and joins them; `None`, with a note, where Redis is not installed.
    ///
    /// # Errors
    /// When they do not become a cluster.
    ///
    /// # Panics
    /// In CI, when Redis is not installed.
    pub fn start() -> io::Result<Option<Self>> {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let bus = free_port()?.to_string();
            let arguments =
                ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port", &bus];
            let arguments = arguments.map(str::to_owned).to_vec();
            match Redis::start_with(RedisSettings { arguments, tls_only: false })? {
                Some(node) => nodes.push(node),
                None => return Ok(None),
            }
        }
        let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        let first = nodes.first().ok_or_else(|| io::Error::other("no nodes"))?;
        let mut create = vec!["--cluster-yes", "--cluster", "create"];
        create.extend(addresses.iter().map(String::as_str));
        first.cli(&create)?;
        for node in &nodes {
            until(SOON, || {
                let info = node.cli(&["cluster", "info"]).ok()?;
                (info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")).then_some(())
            })?;
        }
        Ok(Some(Self { nodes }))
    }

    /// The URLs of its servers.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Redis::url).collect()
    }
}
