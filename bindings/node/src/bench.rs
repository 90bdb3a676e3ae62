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

/// Runs a call so many times: `encrypt`, `both` (encrypt and decrypt), `pingpong` (both, in both directions).
///
/// # Errors
/// `INVALID_ARGUMENT` for another name.
#[napi(catch_unwind)]
pub fn bench_ratchet(what: String, count: u32) -> napi::Result<()> {
    let [mut hers, mut his] = sides()?;
    for number in 0..count {
        match what.as_str() {
            // A turn now and then, as in JavaScript's loop.
            "encrypt" | "both" if number % 200 == 0 => {
                one(&mut hers, &mut his)?;
                one(&mut his, &mut hers)?;
            }
            "encrypt" => drop(sealed(&mut hers)?),
            "both" => one(&mut hers, &mut his)?,
            "pingpong" => {
                one(&mut hers, &mut his)?;
                one(&mut his, &mut hers)?;
            }
            _ => return Err(argument("there is no such call")),
        }
    }
    Ok(())
}
