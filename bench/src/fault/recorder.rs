//! A TCP proxy that keeps what clients and relay say, and reads the blobs out of it afterwards.

use std::io::{self, Cursor, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use stvor_base::Address;
use stvor_wire::frame::{self, Phase};
use stvor_wire::{ClientMessage, ServerMessage, client};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

use crate::Outcome;

type Tape = Arc<Mutex<Vec<u8>>>;

/// Who sent which blob, in the order of delivery on one connection.
pub(super) type Delivered = Vec<(Address, Vec<u8>)>;

/// What went up and what came down on one connection.
#[derive(Clone, Default)]
struct Tapes {
    up: Tape,
    down: Tape,
}

/// The proxy. It listens until the process ends.
pub(super) struct Recorder {
    /// Where clients connect.
    pub(super) address: SocketAddr,
    tapes: Arc<Mutex<Vec<Tapes>>>,
}

impl Recorder {
    /// Stands in front of `server`, which need not listen yet.
    pub(super) fn start(server: SocketAddr) -> Outcome<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let tapes: Arc<Mutex<Vec<Tapes>>> = Arc::default();
        let all = Arc::clone(&tapes);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A relay that is down looks to the client like a connection that closes at once.
                let Ok(server) = TcpStream::connect(server) else { continue };
                let tape = Tapes::default();
                all.lock().unwrap_or_else(PoisonError::into_inner).push(tape.clone());
                // A socket that broke meanwhile breaks the connection, as it should.
                let _broken = pump_both(client, server, tape);
            }
        });
        Ok(Self { address, tapes })
    }

    /// Every blob that a client sent so far, repeats included.
    pub(super) fn blobs(&self) -> Outcome<Vec<Vec<u8>>> {
        let tapes = self.tapes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut blobs = Vec::new();
        for tape in tapes.iter() {
            let tape = tape.up.lock().unwrap_or_else(PoisonError::into_inner);
            read_blobs(&tape, &mut blobs)?;
        }
        Ok(blobs)
    }

    /// What the relay delivered, connection by connection.
    pub(super) fn deliveries(&self) -> Outcome<Vec<Delivered>> {
        let tapes = self.tapes.lock().unwrap_or_else(PoisonError::into_inner);
        let of_one = |tape: &Tapes| {
            let tape = tape.down.lock().unwrap_or_else(PoisonError::into_inner);
            let mut delivered = Vec::new();
            messages(&tape, Role::Client, |bytes| {
                if let ServerMessage::Deliver(deliver) = frame::decode_server(bytes, Phase::LoggedIn)? {
                    delivered.push((deliver.from, deliver.blob.to_vec()));
                }
                Ok(())
            })?;
            Ok(delivered)
        };
        tapes.iter().map(of_one).collect()
    }
}

fn pump_both(client: TcpStream, server: TcpStream, tapes: Tapes) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (back_from, back_to) = (server.try_clone()?, client.try_clone()?);
    let Tapes { up, down } = tapes;
    std::thread::spawn(move || pump(client, server, &up));
    std::thread::spawn(move || pump(back_from, back_to, &down));
    Ok(())
}

fn pump(mut from: TcpStream, mut to: TcpStream, tape: &Tape) {
    let mut chunk = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        // Before it goes on: whatever the other side has seen is on the tape.
        tape.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..length]);
        if to.write_all(&chunk[..length]).is_err() {
            break;
        }
    }
    // Either fails only for a socket that is closed already.
    let _closed = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// A recording as a stream. What the WebSocket would answer goes nowhere.
struct Playback<'a>(Cursor<&'a [u8]>);

impl Read for Playback<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

impl Write for Playback<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The blobs that a client sent on one connection.
fn read_blobs(tape: &[u8], blobs: &mut Vec<Vec<u8>>) -> Outcome<()> {
    messages(tape, Role::Server, |bytes| {
        if let ClientMessage::Send(client::Send { blob, .. })
        | ClientMessage::SendMany(client::SendMany { blob, .. }) =
            frame::decode_client(bytes, Phase::LoggedIn)?
        {
            blobs.push(blob.to_vec());
        }
        Ok(())
    })
}

/// The binary messages of a recording, as the side that heard them reads them. It may end in the middle of anything.
fn messages(tape: &[u8], heard_by: Role, mut each: impl FnMut(Bytes) -> Outcome<()>) -> Outcome<()> {
    const END_OF_HTTP: &[u8] = b"\r\n\r\n";
    let Some(at) = tape.windows(END_OF_HTTP.len()).position(|window| window == END_OF_HTTP) else {
        return Ok(());
    };
    let frames = Playback(Cursor::new(&tape[at + END_OF_HTTP.len()..]));
    let mut socket = WebSocket::from_raw_socket(frames, heard_by, None);
    loop {
        match socket.read() {
            Ok(Message::Binary(bytes)) => each(bytes)?,
            Ok(_) => {}
            Err(Error::Io(_) | Error::ConnectionClosed | Error::AlreadyClosed | Error::Protocol(_)) => {
                return Ok(());
            }
            Err(other) => return Err(other.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stvor_wire::client::{Lane, Recipient};

    fn sent(blob: &[u8]) -> Vec<u8> {
        use stvor_base::{Address, DeviceId, MessageId, UserId};
        let to = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
        let lane = Some(Lane { epoch: 1, number: 1.try_into().unwrap() });
        let recipient = Recipient { to, msg_id: MessageId::from_bytes([1; 16]), lane };
        let ttl = std::time::Duration::ZERO;
        let send = client::Send { recipient, blob: blob.to_vec().into(), counter: 1, counter_mac: None, ttl };
        let mut socket = WebSocket::from_raw_socket(Cursor::new(Vec::new()), Role::Client, None);
        socket.send(Message::Binary(frame::encode_client(&ClientMessage::Send(send)))).unwrap();
        socket.get_ref().get_ref().clone()
    }

    #[test]
    fn blobs_are_read_up_to_where_the_recording_breaks_off() {
        let mut tape = b"GET /v1/socket HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
        tape.extend(sent(&[7; 512]));
        tape.extend(sent(&[8; 512]));
        let third = sent(&[9; 512]);
        tape.extend(&third[..third.len() - 1]);
        let mut blobs = Vec::new();
        read_blobs(&tape, &mut blobs).unwrap();
        assert_eq!(blobs, [vec![7; 512], vec![8; 512]]);
    }
}
