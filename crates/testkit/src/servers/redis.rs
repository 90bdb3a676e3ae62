//! Redis servers.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{SOON, TRIES, find, free_port, missing};
use crate::process::{Process, Signal, Spawn, Stream, until};
use crate::proxy::ChaosProxy;
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

    /// Waits until it ended by itself, and returns what it said since its start.
    ///
    /// # Errors
    /// When it goes on, or was not running.
    pub fn wait_end(&self) -> io::Result<Vec<String>> {
        let running = self.lock();
        let process = running.as_ref().ok_or_else(|| io::Error::other("not running"))?;
        process.wait_exit(SOON)?;
        process.wait_log_end(SOON)?;
        Ok(process.lines(Stream::Out))
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

/// The port of the replica that hangs on this server; `None`: it has none, or is none itself.
fn replica_of(master: &Redis) -> Option<u16> {
    let about = master.cli(&["info", "replication"]).ok()?;
    let line = about.lines().find(|line| line.starts_with("slave0:"))?;
    line.split_once("port=")?.1.split(',').next()?.parse().ok()
}

/// Waits until a server follows another one and has everything of it.
fn follows(replica: &Redis, master: &Redis) -> io::Result<()> {
    until(SOON, || {
        let about = replica.cli(&["info", "replication"]).ok()?;
        let whole = about.contains("master_link_status:up");
        (whole && replica_of(master) == Some(replica.port())).then_some(())
    })
}

/// From now on a replica gets nothing of what its master takes, and its master takes it all the same. What was on its way is
/// cut off as well: it would be read later.
fn leave_behind(replica: &Redis, master: &Redis) -> io::Result<()> {
    master.cli(&["config", "set", "min-replicas-to-write", "0"])?;
    replica.pause(true)?;
    master.cli(&["client", "kill", "type", "replica"]).map(|_| ())
}

/// A Redis server with a replica, which takes writes only while that is there, behind one address that leads to whichever of
/// them is the primary.
pub struct RedisPair {
    nodes: [Redis; 2],
    /// What stands at the address.
    pub proxy: ChaosProxy,
    primary: Mutex<usize>,
}

impl RedisPair {
    /// Starts both; `None`, with a note, where Redis is not installed.
    ///
    /// # Errors
    /// When they do not find one another.
    ///
    /// # Panics
    /// In CI, when Redis is not installed.
    pub fn start() -> io::Result<Option<Self>> {
        let arguments = ["--repl-diskless-sync-delay", "0"].map(str::to_owned).to_vec();
        let settings = RedisSettings { arguments, tls_only: false };
        let (Some(primary), Some(replica)) =
            (Redis::start_with(settings.clone())?, Redis::start_with(settings)?)
        else {
            return Ok(None);
        };
        let proxy = ChaosProxy::start(([127, 0, 0, 1], primary.port()).into())?;
        let pair = Self { nodes: [primary, replica], proxy, primary: Mutex::new(0) };
        let (primary, replica) = pair.roles();
        follow(replica, primary)?;
        primary.cli(&["config", "set", "min-replicas-to-write", "1"])?;
        Ok(Some(pair))
    }

    /// The primary and the replica, as they are now.
    #[must_use]
    pub fn roles(&self) -> (&Redis, &Redis) {
        let [one, other] = &self.nodes;
        match *self.primary.lock().unwrap_or_else(PoisonError::into_inner) {
            0 => (one, other),
            _ => (other, one),
        }
    }

    /// `redis://` of the address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.proxy.address())
    }

    /// From now on the replica gets nothing of what the primary takes.
    ///
    /// # Errors
    /// When a server refuses it.
    pub fn leave_replica_behind(&self) -> io::Result<()> {
        let (primary, replica) = self.roles();
        leave_behind(replica, primary)
    }

    /// Ends the primary at once, promotes the replica and lets the address lead there. The former primary comes back as its
    /// replica.
    ///
    /// # Errors
    /// When a server does not do what it has to.
    pub fn fail_over(&self) -> io::Result<()> {
        let (before, after) = self.roles();
        before.kill()?;
        after.pause(false)?;
        after.cli(&["replicaof", "no", "one"])?;
        self.proxy.lead_to(([127, 0, 0, 1], after.port()).into());
        after.cli(&["config", "set", "min-replicas-to-write", "1"])?;
        before.restart()?;
        follow(before, after)?;
        let mut primary = self.primary.lock().unwrap_or_else(PoisonError::into_inner);
        *primary = 1 - *primary;
        Ok(())
    }
}

fn follow(replica: &Redis, primary: &Redis) -> io::Result<()> {
    replica.cli(&["replicaof", "127.0.0.1", &primary.port().to_string()])?;
    follows(replica, primary)
}

/// How the replica of a killed master takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promotion {
    /// At once, by order of an operator.
    Ordered,
    /// By a vote of the other masters, after they noticed.
    Voted,
}

/// A Redis Cluster of three masters.
pub struct RedisCluster {
    /// Its servers: three masters, and three replicas where there are any.
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
        Self::start_of(3, &[])
    }

    /// [`RedisCluster::start`], each master with a replica without which it takes no writes.
    ///
    /// # Errors
    /// As [`RedisCluster::start`].
    ///
    /// # Panics
    /// As [`RedisCluster::start`].
    pub fn start_with_replicas() -> io::Result<Option<Self>> {
        let arguments = ["--min-replicas-to-write", "1", "--repl-diskless-sync-delay", "0"];
        let Some(cluster) = Self::start_of(6, &arguments)? else { return Ok(None) };
        until(SOON, || {
            let whole = cluster.nodes.iter().filter(|node| replica_of(node).is_some()).count() == 3;
            whole.then_some(())
        })?;
        Ok(Some(cluster))
    }

    fn start_of(count: usize, more: &[&str]) -> io::Result<Option<Self>> {
        let mut nodes = Vec::new();
        for _ in 0..count {
            let bus = free_port()?.to_string();
            let arguments =
                ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port", &bus];
            let arguments = arguments.iter().chain(more).map(|one| (*one).to_owned()).collect();
            match Redis::start_with(RedisSettings { arguments, tls_only: false })? {
                Some(node) => nodes.push(node),
                None => return Ok(None),
            }
        }
        let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        let first = nodes.first().ok_or_else(|| io::Error::other("no nodes"))?;
        let mut create = vec!["--cluster-yes", "--cluster", "create"];
        create.extend(addresses.iter().map(String::as_str));
        let replicas = (count / 3 - 1).to_string();
        create.extend(["--cluster-replicas", &replicas]);
        first.cli(&create)?;
        let known = format!("cluster_known_nodes:{count}");
        for node in &nodes {
            until(SOON, || {
                let info = node.cli(&["cluster", "info"]).ok()?;
                (info.contains("cluster_state:ok") && info.contains(&known)).then_some(())
            })?;
        }
        Ok(Some(Self { nodes }))
    }

    /// The URLs of its servers.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Redis::url).collect()
    }

    /// The master that holds the rows of stores, and its replica: a master knows a replica as such only after a while.
    fn holders(&self) -> io::Result<(&Redis, &Redis)> {
        let found = |master: &Redis| {
            let keys = master.cli(&["dbsize"]).ok()?;
            let nodes = master.cli(&["cluster", "nodes"]).ok()?;
            let lines = || nodes.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            let own = lines().find(|line| line.get(2) == Some(&"myself,master"))?;
            let replica = lines().find(|line| line.get(3) == own.first())?;
            let port = replica.get(1)?.split('@').next()?.rsplit(':').next()?.parse::<u16>().ok()?;
            (keys.trim() != "0").then_some(port)
        };
        until(SOON, || {
            self.nodes.iter().find_map(|master| {
                let port = found(master)?;
                Some((master, self.nodes.iter().find(|node| node.port() == port)?))
            })
        })
    }

    /// The URL of the master that holds stores.
    ///
    /// # Errors
    /// When no master holds any.
    pub fn url_of_holder(&self) -> io::Result<String> {
        self.holders().map(|(master, _)| master.url())
    }

    /// From now on the replica of the master that holds stores gets nothing of what that takes.
    ///
    /// # Errors
    /// When a server refuses it.
    pub fn leave_replica_behind(&self) -> io::Result<()> {
        let (master, replica) = self.holders()?;
        leave_behind(replica, master)
    }

    /// Ends the master that holds stores at once and waits until its replica has its place. It comes back as a replica of that.
    ///
    /// # Errors
    /// When a server does not do what it has to.
    pub fn fail_over(&self, by: Promotion) -> io::Result<()> {
        let (master, replica) = self.holders()?;
        master.kill()?;
        replica.pause(false)?;
        if by == Promotion::Ordered {
            replica.cli(&["cluster", "failover", "takeover"])?;
        }
        until(SOON, || replica.cli(&["info", "replication"]).ok()?.contains("role:master").then_some(()))?;
        master.restart()?;
        follows(master, replica)
    }
}
