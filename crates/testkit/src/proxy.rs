//! A TCP proxy that makes the network bad on purpose.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// Bytes forwarded at a time.
const CHUNK: usize = 4096;

/// The way that bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

impl Direction {
    fn index(self) -> usize {
        match self {
            Self::Up => 0,
            Self::Down => 1,
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Weather {
    delay: Duration,
    bytes_per_second: Option<u32>,
    frozen: bool,
    refusing: bool,
    /// Where new connections lead, in the place of the first server.
    leads_to: Option<SocketAddr>,
    cut_after: [Option<u64>; 2],
}

/// One connection: the client's socket and ours to the server. Closed when both pumps are done.
struct Link {
    client: TcpStream,
    server: TcpStream,
}

#[derive(Default)]
struct Shared {
    weather: Mutex<Weather>,
    changed: Condvar,
    links: Mutex<Vec<Weak<Link>>>,
    accepted: AtomicU64,
    carried: [AtomicU64; 2],
    ended: AtomicBool,
}

impl Shared {
    fn weather(&self) -> MutexGuard<'_, Weather> {
        self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> MutexGuard<'_, Vec<Weak<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn thawed(&self) -> Weather {
        let frozen = |weather: &mut Weather| weather.frozen && !self.ended.load(Ordering::SeqCst);
        *self.changed.wait_while(self.weather(), frozen).unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self) {
        for link in self.links().drain(..).filter_map(|link| link.upgrade()) {
            // Either fails only for a socket that is closed already.
            let _closed = (link.client.shutdown(Shutdown::Both), link.server.shutdown(Shutdown::Both));
        }
    }
}

/// A proxy on a port of its own, in front of one server.
///
/// ```
/// use std::io::{Read, Write};
/// use std::net::{TcpListener, TcpStream};
/// use stvor_testkit::{ChaosProxy, Direction};
/// let server = TcpListener::bind("127.0.0.1:0")?;
/// let proxy = ChaosProxy::start(server.local_addr()?)?;
/// let mut client = TcpStream::connect(proxy.address())?;
/// let (mut served, _) = server.accept()?;
/// client.write_all(b"hello")?;
/// served.read_exact(&mut [0; 5])?;
/// assert_eq!(proxy.carried(Direction::Up), 5);
/// proxy.cut();
/// assert_eq!(client.read(&mut [0; 1])?, 0, "the client sees the end");
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct ChaosProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl ChaosProxy {
    /// Listens on a free port of 127.0.0.1 and forwards to `server`, faithfully until told otherwise.
    ///
    /// # Errors
    /// When no port can be opened.
    pub fn start(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                accepting.accepted.fetch_add(1, Ordering::SeqCst);
                let weather = *accepting.weather();
                if weather.refusing {
                    continue;
                }
                // A server that is down looks to the client like a connection that closes at once.
                let _refused = link(&accepting, client, weather.leads_to.unwrap_or(server));
            }
        });
        Ok(Self { address, shared })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn change(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.shared.weather());
        self.shared.changed.notify_all();
    }

    /// Holds every chunk back for `delay` before it is forwarded.
    pub fn delay(&self, delay: Duration) {
        self.change(|weather| weather.delay = delay);
    }

    /// Forwards about this many bytes a second in each direction of each connection; `None` for no bound.
    pub fn throttle(&self, bytes_per_second: Option<u32>) {
        self.change(|weather| weather.bytes_per_second = bytes_per_second);
    }

    /// Stops forwarding and keeps every socket open: the half-open connection of a peer that lost its network.
    pub fn freeze(&self) {
        self.change(|weather| weather.frozen = true);
    }

    /// Forwards again, beginning with what was held back.
    pub fn thaw(&self) {
        self.change(|weather| weather.frozen = false);
    }

    /// Closes new connections at once (`true`) or lets them through.
    pub fn refuse(&self, refuse: bool) {
        self.change(|weather| weather.refusing = refuse);
    }

    /// Leads new connections to another server, as an address does that moves in a failover. Those that are open stay.
    pub fn lead_to(&self, server: SocketAddr) {
        self.change(|weather| weather.leads_to = Some(server));
    }

    /// Closes all connections now, wherever in a frame they are. New ones are let through.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Cuts the connection that carries it right after `bytes` more bytes in `direction`, once: usually mid-frame.
    pub fn cut_after(&self, direction: Direction, bytes: u64) {
        self.change(|weather| weather.cut_after[direction.index()] = Some(bytes));
    }

    /// Connections that clients opened so far, refused ones included.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Bytes forwarded so far.
    #[must_use]
    pub fn carried(&self, direction: Direction) -> u64 {
        self.shared.carried[direction.index()].load(Ordering::SeqCst)
    }
}

impl Drop for ChaosProxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.cut();
        // Under the lock, so that a pump between its check and its wait can not miss it.
        self.change(|_| ());
        // Wakes the accepting thread, which then sees the end.
        let _woken = TcpStream::connect(self.address);
    }
}

fn link(shared: &Arc<Shared>, client: TcpStream, server: SocketAddr) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let link = Arc::new(Link { client, server });
    let mut links = shared.links();
    links.retain(|link| link.strong_count() > 0);
    links.push(Arc::downgrade(&link));
    drop(links);
    for direction in [Direction::Up, Direction::Down] {
        let (shared, link) = (Arc::clone(shared), Arc::clone(&link));
        std::thread::spawn(move || {
            let (from, to) = match direction {
                Direction::Up => (&link.client, &link.server),
                Direction::Down => (&link.server, &link.client),
            };
            if pump(&shared, direction, from, to).is_err() {
                // The other side learns of a broken socket as of a closed one.
                let _closed = from.shutdown(Shutdown::Both);
            }
            let _closed = to.shutdown(Shutdown::Write);
        });
    }
    Ok(())
}

fn pump(shared: &Shared, direction: Direction, mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let mut chunk = [0; CHUNK];
    loop {
        let length = from.read(&mut chunk)?;
        let weather = shared.thawed();
        if length == 0 {
            return Ok(());
        }
        std::thread::sleep(weather.delay);
        if let Some(rate) = weather.bytes_per_second {
            std::thread::sleep(Duration::from_secs_f64(length as f64 / f64::from(rate.max(1))));
        }
        let cut_at = {
            let left = &mut shared.weather().cut_after[direction.index()];
            let cut_at = left.filter(|left| *left <= length as u64);
            *left = left.filter(|_| cut_at.is_none()).map(|left| left - length as u64);
            cut_at
        };
        let carried = cut_at.map_or(length, |at| usize::try_from(at).unwrap_or(length));
        // Counted first: whoever has received bytes finds them counted.
        shared.carried[direction.index()].fetch_add(carried as u64, Ordering::SeqCst);
        to.write_all(&chunk[..carried])?;
        if cut_at.is_some() {
            from.shutdown(Shutdown::Both)?;
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    /// A server that sends back what it gets, one connection after the other.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || io::copy(&mut (&stream), &mut (&stream)));
            }
        });
        address
    }

    fn said(stream: &mut TcpStream, text: &[u8]) -> Vec<u8> {
        stream.write_all(text).unwrap();
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).unwrap();
        answer
    }

    #[test]
    fn proxy_forwards_both_ways_and_counts() {
        let proxy = ChaosProxy::start(echo()).unwrap();
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(said(&mut client, b"hello"), b"hello");
        assert_eq!((proxy.connections(), proxy.carried(Direction::Up)), (1, 5));
    }

    #[test]
    fn cut_ends_open_connections_and_lets_new_ones_through() {
        let proxy = ChaosProxy::start(echo()).unwrap();
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        said(&mut client, b"hello");
        proxy.cut();
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(said(&mut client, b"again"), b"again");
    }

    #[test]
    fn new_connections_lead_to_another_server_and_open_ones_stay() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let proxy = ChaosProxy::start(echo()).unwrap();
        let mut before = TcpStream::connect(proxy.address()).unwrap();
        said(&mut before, b"hello");
        proxy.lead_to(closed);
        assert_eq!(said(&mut before, b"still"), b"still");
        let mut after = TcpStream::connect(proxy.address()).unwrap();
        assert!(matches!(after.read(&mut [0; 1]), Ok(0) | Err(_)));
        proxy.lead_to(echo());
        let mut after = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(said(&mut after, b"there"), b"there");
    }

    #[test]
    fn cut_after_drops_the_connection_inside_a_frame() {
        let proxy = ChaosProxy::start(echo()).unwrap();
        proxy.cut_after(Direction::Down, 7);
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        client.write_all(b"0123456789").unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"0123456");
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(said(&mut client, b"0123456789"), b"0123456789", "it cuts once");
    }

    #[test]
    fn frozen_connection_stays_open_and_silent_until_thawed() {
        let proxy = ChaosProxy::start(echo()).unwrap();
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        said(&mut client, b"hello");
        proxy.freeze();
        client.write_all(b"held").unwrap();
        client.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
        let silence = client.read(&mut [0; 1]).unwrap_err().kind();
        assert!(matches!(silence, ErrorKind::WouldBlock | ErrorKind::TimedOut));
        proxy.thaw();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"held");
    }

    #[test]
    fn refused_connection_closes_at_once() {
        let proxy = ChaosProxy::start(echo()).unwrap();
        proxy.refuse(true);
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        assert!(matches!(client.read(&mut [0; 1]), Ok(0) | Err(_)));
    }
}
