//! A FIDO2 token that another program carries: CTAP messages over a Unix socket, each with its length before it.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use stvor_keys::KeyError;
use stvor_keys::fido2::Ctap2Transport;

/// Bytes of an answer.
const MAX_ANSWER: u32 = 64 << 10;

/// The way to such a token.
#[derive(Debug)]
pub(super) struct Carried(UnixStream);

fn failed(error: impl core::fmt::Display) -> KeyError {
    KeyError::Token(format!("the program that carries it does not answer: {error}"))
}

impl Carried {
    pub(super) fn at(socket: &Path) -> Result<Self, KeyError> {
        UnixStream::connect(socket).map(Self).map_err(failed)
    }
}

impl Ctap2Transport for Carried {
    fn exchange(&mut self, request: &[u8]) -> Result<Vec<u8>, KeyError> {
        let length = u32::try_from(request.len()).map_err(failed)?;
        let sent = self.0.write_all(&length.to_be_bytes()).and_then(|()| self.0.write_all(request));
        sent.map_err(failed)?;
        let mut length = [0; 4];
        self.0.read_exact(&mut length).map_err(failed)?;
        let length = u32::from_be_bytes(length);
        if length > MAX_ANSWER {
            return Err(failed("its answer is too long"));
        }
        let mut answer = vec![0; usize::try_from(length).map_err(failed)?];
        self.0.read_exact(&mut answer).map_err(failed)?;
        Ok(answer)
    }
}
