//! What adapters of database servers share: how to reach one, and what waits to be written.

use crate::adapter::RowValue;
use crate::change::ChangeSet;
use crate::{Op, StoreError, limits};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stvor_base::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// How to reach a database server, beside its URL. Files are read again for every new connection, so that certificates
/// and passwords can be renewed without a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerOptions {
    /// Certificates (PEM) to trust instead of the public roots.
    pub root_certificate: Option<PathBuf>,
    /// Our own certificate chain and its key (PEM), for servers that ask for one.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// The password, instead of the one in the URL; white space at its end is left out.
    pub password_file: Option<PathBuf>,
    /// Redis: how many replicas must have a commit before it is acknowledged.
    pub replicas: usize,
    /// Redis: settings that the operator vouches for where the server does not tell them, by their names in `redis.conf`.
    pub assured_settings: BTreeMap<String, String>,
}

impl ServerOptions {
    /// The public roots, no certificate of our own, the password of the URL.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts these certificates (PEM) instead of the public roots.
    #[must_use]
    pub fn root_certificate(mut self, path: impl Into<PathBuf>) -> Self {
        self.root_certificate = Some(path.into());
        self
    }

    /// Shows this certificate chain (PEM) with this key (PEM).
    #[must_use]
    pub fn client_certificate(mut self, chain: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.client_certificate = Some((chain.into(), key.into()));
        self
    }

    /// Reads the password from this file.
    #[must_use]
    pub fn password_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.password_file = Some(path.into());
        self
    }

    /// Redis: waits until this many replicas have a commit.
    #[must_use]
    pub fn replicas(mut self, count: usize) -> Self {
        self.replicas = count;
        self
    }

    /// Redis: vouches for settings of a server that does not tell them, because it forbids `CONFIG`, as services that run Redis for others
    /// do. What the server tells counts, and these only where it says nothing. They are judged as if the server had said so, and
    /// `findings` lists them (`redis_settings_assured`): nothing can tell whether they are true.
    ///
    /// ```
    /// use stvor_store::ServerOptions;
    ///
    /// let vouched = [
    ///     ("appendonly", "yes"),
    ///     ("appendfsync", "always"),
    ///     ("no-appendfsync-on-rewrite", "no"),
    ///     ("maxmemory-policy", "noeviction"),
    /// ];
    /// let options = ServerOptions::new().assured_settings(vouched);
    /// # assert_eq!(options.assured_settings.len(), 4);
    /// ```
    #[must_use]
    pub fn assured_settings<N: Into<String>, V: Into<String>>(
        mut self,
        settings: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.assured_settings =
            settings.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        self
    }

    pub(crate) fn password(&self) -> Result<Option<String>, StoreError> {
        let read = |path: &PathBuf| {
            let text = std::fs::read_to_string(path);
            text.map_err(|error| StoreError::io("reading the password file", path, &error))
        };
        let text = self.password_file.as_ref().map(read).transpose()?;
        Ok(text.map(|text| text.trim_end().to_owned()))
    }
}

/// Reads a file that a TLS setting names.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(|error| StoreError::io("reading", path, &error))
}

/// Whether a name is of this machine, where nobody else can listen on the wire.
pub(crate) fn is_local(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || host.starts_with('/') || address.is_ok_and(|address| address.is_loopback())
}

/// What is wrong with the server's certificate, if that is what an error says.
pub(crate) fn certificate_problem(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(why)) = error.downcast_ref::<rustls::Error>() {
            return Some(why.to_string());
        }
        // What it wraps is not what it calls its source.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What a writer is asked for. Nobody minds if the asker went away: the work is done all the same.
pub(crate) enum Job {
    Commit(Waiting),
    Sweep { now: Timestamp, limit: usize, reply: Reply<usize> },
    Close,
}

/// A change set that waits to be written.
pub(crate) struct Waiting {
    pub(crate) changes: ChangeSet<RowValue>,
    pub(crate) reply: Reply<()>,
    /// The room that it takes until it is done.
    pub(crate) room: OwnedSemaphorePermit,
}

impl Waiting {
    /// Tells what became of it, and gives its room to others.
    pub(crate) fn answer(self, result: Result<(), StoreError>) {
        drop(self.room);
        // Who went away meanwhile needs no answer.
        let _ = self.reply.send(result);
    }
}

/// The way to the one task that writes for an opening. Bounded in bytes.
pub(crate) struct Queue {
    jobs: mpsc::UnboundedSender<Job>,
    room: Arc<Semaphore>,
    writer: tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Queue {
    /// Starts the writer.
    pub(crate) fn start<F>(work: impl FnOnce(Jobs) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (jobs, inbox) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(limits::MAX_QUEUE_BYTES / limits::QUEUE_UNIT_BYTES));
        let jobs_of = Jobs { inbox, held: None };
        let writer = tokio::sync::Mutex::new(Some(tokio::spawn(work(jobs_of))));
        Self { jobs, room, writer }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.room.is_closed()
    }

    pub(crate) async fn commit(&self, changes: ChangeSet<RowValue>) -> Result<(), StoreError> {
        let room = Arc::clone(&self.room).acquire_many_owned(weight(&changes)).await;
        let room = room.map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        self.ask(Job::Commit(Waiting { changes, reply, room }), answer).await
    }

    pub(crate) async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        if self.is_closed() {
            return Err(StoreError::Closed);
        }
        let (reply, answer) = oneshot::channel();
        self.ask(Job::Sweep { now, limit, reply }, answer).await
    }

    async fn ask<T>(
        &self,
        job: Job,
        answer: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.jobs.send(job).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Lets the writer finish what was handed in, and waits for its end.
    pub(crate) async fn close(&self) {
        self.room.close();
        // It ended already if nobody hears this.
        let _ = self.jobs.send(Job::Close);
        if let Some(writer) = self.writer.lock().await.take() {
            let _ = writer.await;
        }
    }
}

/// How much of the queue's room a change set takes.
fn weight(changes: &ChangeSet<RowValue>) -> u32 {
    let bytes: usize = changes
        .ops
        .iter()
        .map(|op| match op {
            Op::Put { key, value, .. } => key.partition.len() + key.sort.len() + value.bytes.len(),
            _ => limits::MAX_KEY_PART,
        })
        .sum();
    u32::try_from(bytes / limits::QUEUE_UNIT_BYTES + 1).unwrap_or(u32::MAX)
}

/// What the writer takes from the queue next.
pub(crate) enum Next {
    Commits(Vec<Waiting>),
    Sweep { now: Timestamp, limit: usize, reply: Reply<usize> },
}

/// The writer's end of the queue.
pub(crate) struct Jobs {
    inbox: mpsc::UnboundedReceiver<Job>,
    /// A job that could not join the group before it.
    held: Option<Job>,
}

impl Jobs {
    /// The change sets that wait now, at most [`limits::MAX_GROUP`] of them, or a sweep; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Next> {
        // Whoever stops waiting for this loses nothing.
        if self.held.is_none() {
            self.held = Some(self.inbox.recv().await?);
        }
        if matches!(self.held, Some(Job::Commit(_))) {
            // Those that the group before woke are about to come back.
            tokio::task::yield_now().await;
        }
        let mut group = match self.held.take()? {
            Job::Commit(one) => vec![one],
            Job::Sweep { now, limit, reply } => return Some(Next::Sweep { now, limit, reply }),
            Job::Close => return None,
        };
        let mut bytes: u32 = group.iter().map(|one| weight(&one.changes)).sum();
        let most = u32::try_from(limits::MAX_GROUP_BYTES / limits::QUEUE_UNIT_BYTES).unwrap_or(u32::MAX);
        while group.len() < limits::MAX_GROUP && bytes < most {
            match self.inbox.try_recv() {
                Ok(Job::Commit(one)) => {
                    bytes = bytes.saturating_add(weight(&one.changes));
                    group.push(one);
                }
                Ok(other) => {
                    self.held = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        Some(Next::Commits(group))
    }
}

/// A pause before the next try, longer each time.
pub(crate) async fn back_off(tries: &mut u32) {
    let millis = (10_u64 << (*tries).min(6)).min(500);
    *tries += 1;
    tokio::time::sleep(core::time::Duration::from_millis(millis)).await;
}
