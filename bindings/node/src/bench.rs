//! What the low-level calls cost without JavaScript: the same functions, called from here. For `./x bench node`; not in what is released.

use napi::bindgen_prelude::{Either, Uint8Array};
use napi_derive::napi;

use crate::failure::argument;
use crate::ratchet::{NativeSession, establish_session, generate_key_pair};

const TEXT: usize = 100;

/// Two sides that both have heard from the other.
fn sides() -> napi::Result<[NativeSession; 2]> {
    let (alice, bob) = (generate_key_pair()?, generate_key_pair()?);
    let mut hers = establish_session(&alice, bob.bundle())?;
    let mut his = establish_session(&bob, hers.handshake())?;
    one(&mut hers, &mut his)?;
    one(&mut his, &mut hers)?;
    Ok([hers, his])
}

fn sealed(from: &mut NativeSession) -> napi::Result<Uint8Array> {
    from.encrypt(Either::A("x".repeat(TEXT))).map(|sealed| sealed.message)
}

fn one(from: &mut NativeSession, to: &mut NativeSession) -> napi::Result<()> {
    let message = sealed(from)?;
    to.decrypt(message).map(drop)
}

/// Messages that are still to be decrypted.
#[napi]
pub struct BenchMail {
    to: NativeSession,
    messages: Vec<Vec<u8>>,
}

#[napi]
impl BenchMail {
    /// So many messages, in their order.
    ///
    /// # Errors
    /// What the engine met.
    #[napi(constructor, catch_unwind)]
    pub fn new(count: u32) -> napi::Result<Self> {
        let [mut hers, to] = sides()?;
        let messages = (0..count)
            .map(|_| sealed(&mut hers).map(|message| message.to_vec()))
            .collect::<napi::Result<_>>()?;
        Ok(Self { to, messages })
    }

    /// Decrypts them.
    ///
    /// # Errors
    /// What the engine met.
    #[napi(catch_unwind)]
    pub fn decrypt(&mut self) -> napi::Result<()> {
        for message in self.messages.drain(..) {
            self.to.decrypt(Uint8Array::from(message))?;
        }
        Ok(())
    }
}

/// Runs a call so many times: `encrypt`, or `pingpong` (encrypt and decrypt, in both directions).
///
/// # Errors
/// `INVALID_ARGUMENT` for another name.
#[napi(catch_unwind)]
pub fn bench_ratchet(what: String, count: u32) -> napi::Result<()> {
    let [mut hers, mut his] = sides()?;
    for number in 0..count {
        match what.as_str() {
            // A turn now and then, as in JavaScript's loop.
            "encrypt" if number % 200 == 0 => {
                one(&mut hers, &mut his)?;
                one(&mut his, &mut hers)?;
            }
            "encrypt" => drop(sealed(&mut hers)?),
            "pingpong" => {
                one(&mut hers, &mut his)?;
                one(&mut his, &mut hers)?;
            }
            _ => return Err(argument("there is no such call")),
        }
    }
    Ok(())
}
