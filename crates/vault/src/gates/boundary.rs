//! The boundary daemon: a separate program that says whether the machine is cut off. It is asked for levels 3 to 5. Its mode
//! is what it declares; nobody measures it.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use serde::{Deserialize, Serialize};
use stvor_base::Timestamp;
use stvor_crypto::Random;
use stvor_crypto::ed25519::{PublicKey, SigningKey};
use stvor_crypto::kdf::sha256;

use crate::audit::hex;
use crate::level::Level;
use crate::{VaultError, limits};

/// How far the machine is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// On the network.
    Online,
    /// On the network, with some ways closed.
    Restricted,
    /// Off the network.
    Offline,
    /// Off the network, nobody else in the room.
    ColdRoom,
}

/// What the daemon is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// 16 random bytes in hexadecimal digits, which the answer repeats.
    pub request: String,
    /// The level of the memory.
    pub level: Level,
}

/// What the daemon answers, in one line. The signature is Ed25519, in base64, over [`Answer::signed_text`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The request that is answered.
    pub request: String,
    /// The level that it is about.
    pub level: Level,
    /// The mode of the machine.
    pub mode: Mode,
    /// Whether the recall may go on.
    pub permitted: bool,
    /// When, in milliseconds since the Unix epoch.
    pub at: u64,
    /// The signature.
    #[serde(default)]
    pub signature: String,
}

impl Answer {
    /// What is signed.
    #[must_use]
    pub fn signed_text(&self) -> String {
        let mode = match self.mode {
            Mode::Online => "online",
            Mode::Restricted => "restricted",
            Mode::Offline => "offline",
            Mode::ColdRoom => "cold-room",
        };
        let (level, permitted) = (self.level.number(), self.permitted);
        format!("STVOR boundary v1\n{}\n{level}\n{mode}\n{permitted}\n{}\n", self.request, self.at)
    }

    /// Answers a question: what a boundary daemon does.
    ///
    /// # Errors
    /// [`VaultError::Crypto`].
    pub fn sign(
        question: &Question,
        mode: Mode,
        at: Timestamp,
        key: &SigningKey,
    ) -> Result<Self, VaultError> {
        let permitted = match question.level {
            Level::Sealed => mode != Mode::Online,
            Level::Vaulted | Level::Black => matches!(mode, Mode::Offline | Mode::ColdRoom),
            _ => true,
        };
        let (request, level, at) = (question.request.clone(), question.level, at.as_millis());
        let mut answer = Self { request, level, mode, permitted, at, signature: String::new() };
        answer.signature = STANDARD.encode(key.sign(answer.signed_text().as_bytes())?);
        Ok(answer)
    }
}

/// An answer that was checked, or why there is none that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The daemon's answer, fresh, to this request, signed with the enrolled key.
    Answered {
        /// The declared mode.
        mode: Mode,
        /// Whether it permits the recall.
        permitted: bool,
        /// The level that it was asked about.
        level: Level,
    },
    /// There is none; all levels that need one stay closed.
    Unusable(String),
}

impl Verdict {
    /// Whether a memory of `level` may be recalled.
    pub(crate) fn admits(&self, wanted: Level) -> Result<(), String> {
        match self {
            Self::Unusable(why) => Err(why.clone()),
            Self::Answered { level, .. } if *level != wanted => {
                Err("it was asked about another level".into())
            }
            Self::Answered { permitted: false, mode, .. } => Err(format!("its mode is {mode:?}")),
            Self::Answered { mode, .. } => {
                let cut_off = matches!(mode, Mode::Offline | Mode::ColdRoom);
                if wanted >= Level::Vaulted && !cut_off {
                    return Err(format!(
                        "its mode is {mode:?}, and level {wanted} needs a machine off the network"
                    ));
                }
                Ok(())
            }
        }
    }
}

/// Checks the bytes of an answer to `question`.
#[must_use]
pub fn check(bytes: &[u8], question: &Question, key: &PublicKey, now: Timestamp) -> Verdict {
    let unusable = |why: &str| Verdict::Unusable(why.to_owned());
    let Some(line) = bytes.strip_suffix(b"\n") else { return unusable("its answer does not end") };
    let Ok(answer) = serde_json::from_slice::<Answer>(line) else {
        return unusable("its answer is not understood");
    };
    let Ok(signature) = STANDARD.decode(&answer.signature) else {
        return unusable("its answer is not signed");
    };
    if key.verify(answer.signed_text().as_bytes(), &signature).is_err() {
        return unusable("its answer is not signed with the enrolled key");
    }
    if answer.request != question.request || answer.level != question.level {
        return unusable("its answer is to another request");
    }
    let age = now.as_millis().abs_diff(answer.at);
    if u128::from(age) > limits::BOUNDARY_AGE.as_millis() {
        return unusable("its answer is of another time");
    }
    Verdict::Answered { mode: answer.mode, permitted: answer.permitted, level: answer.level }
}

/// How to ask the daemon.
#[derive(Debug, Clone)]
pub struct Boundary {
    /// Its socket.
    pub socket: PathBuf,
    /// The key that it signs with, enrolled by the owner.
    pub key: PublicKey,
}

impl Boundary {
    /// The fingerprint of the key: SHA-256 of its 32 bytes, in hexadecimal digits.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex(&sha256(&[self.key.as_bytes()]))
    }

    /// Asks. Everything that is not a valid answer within [`limits::BOUNDARY_DEADLINE`] in all is a no.
    pub fn ask(&self, level: Level, now: Timestamp, rng: &mut dyn Random) -> Verdict {
        let mut id = [0; 16];
        if rng.fill(&mut id).is_err() {
            return Verdict::Unusable("no random request id could be made".into());
        }
        let question = Question { request: hex(&id), level };
        match exchange(&self.socket, &question) {
            Ok(bytes) => check(&bytes, &question, &self.key, now),
            Err(error) => Verdict::Unusable(format!("it does not answer: {error}")),
        }
    }
}

/// Serves as a boundary daemon on a socket that is bound already, one question at a time, until accepting fails: the smallest
/// one that works. `mode` is asked anew for each question.
///
/// # Errors
/// What accepting says.
pub fn serve(
    listener: &UnixListener,
    key: &SigningKey,
    mut mode: impl FnMut() -> Mode,
) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        // A peer that is slow or talks nonsense gets no answer, which is a no.
        let _ = answer_one(&stream, key, mode());
    }
}

fn answer_one(mut stream: &UnixStream, key: &SigningKey, mode: Mode) -> std::io::Result<()> {
    let deadline = Deadline::begin();
    let question: Question = serde_json::from_slice(&deadline.read_line(stream)?)?;
    let answer = Answer::sign(&question, mode, Timestamp::system(), key).map_err(std::io::Error::other)?;
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    stream.set_write_timeout(Some(deadline.left()?))?;
    stream.write_all(&line)
}

/// For one question with its answer, all together: who sends a byte now and then keeps nobody else waiting.
struct Deadline(Instant);

impl Deadline {
    fn begin() -> Self {
        Self(Instant::now())
    }

    fn left(&self) -> std::io::Result<core::time::Duration> {
        let left = limits::BOUNDARY_DEADLINE.checked_sub(self.0.elapsed()).filter(|left| !left.is_zero());
        left.ok_or_else(|| std::io::ErrorKind::TimedOut.into())
    }

    /// What comes until a line ends, or all of it.
    fn read_line(&self, mut stream: &UnixStream) -> std::io::Result<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            stream.set_read_timeout(Some(self.left()?))?;
            let mut part = [0; 512];
            let count = stream.read(&mut part)?;
            line.extend_from_slice(part.get(..count).unwrap_or_default());
            if line.len() > limits::MAX_BOUNDARY_ANSWER {
                return Err(std::io::Error::other("its line is too long"));
            }
            if count == 0 || line.ends_with(b"\n") {
                return Ok(line);
            }
        }
    }
}

/// How long a full queue of a daemon is left alone.
const AGAIN: core::time::Duration = core::time::Duration::from_millis(5);

/// Connects as long as `in_time`: connecting itself waits without end when a daemon hangs and its queue is full.
fn connect(socket: &Path, in_time: impl Fn() -> std::io::Result<()>) -> std::io::Result<UnixStream> {
    let address = SocketAddrUnix::new(socket)?;
    let stream = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&stream, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&stream, true)?;
    while let Err(error) = rustix::net::connect(&stream, &address) {
        if error != rustix::io::Errno::AGAIN {
            return Err(error.into());
        }
        in_time()?;
        std::thread::sleep(AGAIN);
    }
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn exchange(socket: &Path, question: &Question) -> std::io::Result<Vec<u8>> {
    let deadline = Deadline::begin();
    let mut stream = connect(socket, || deadline.left().map(drop))?;
    stream.set_write_timeout(Some(deadline.left()?))?;
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    deadline.read_line(&stream)
}
