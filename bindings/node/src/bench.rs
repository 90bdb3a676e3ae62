//! What calls cost without JavaScript: the same functions, called from here. For `./x bench node`; not in what is released.

use futures::future::try_join_all;
use napi::Env;
use napi::bindgen_prelude::PromiseRaw;
use napi_derive::napi;

use crate::failure::{argument, failed};
use crate::ratchet::{NativeSession, establish_session, generate_key_pair};
use crate::task::promise;

const TEXT: usize = 100;

/// Calls of one run.
const MOST: u32 = 50_000;

/// Two sides that both have heard from the other.
fn sides() -> napi::Result<[NativeSession; 2]> {
    let (alice, bob) = (generate_key_pair()?, generate_key_pair()?);
    let mut hers = establish_session(&alice, bob.bundle())?;
    let mut his = establish_session(&bob, hers.handshake())?;
    one(&mut hers, &mut his)?;
    one(&mut his, &mut hers)?;
    Ok([hers, his])
}

/// Room for the answer to a call.
type Room = [u8; 8_192];

fn sealed<'a>(from: &mut NativeSession, room: &'a mut Room) -> napi::Result<&'a [u8]> {
    let length = from.text("x".repeat(TEXT), room)?;
    usize::try_from(length).ok().and_then(|end| room.get(4..end)).ok_or_else(|| argument("there is no room"))
}

fn one(from: &mut NativeSession, to: &mut NativeSession) -> napi::Result<()> {
    let (mut room, mut out) = ([0; 8_192], [0; 8_192]);
    to.read(sealed(from, &mut room)?, &mut out).map(drop)
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
        let ([mut hers, to], mut room) = (sides()?, [0; 8_192]);
        let count = count.min(MOST);
        let messages = (0..count)
            .map(|_| sealed(&mut hers, &mut room).map(<[u8]>::to_vec))
            .collect::<napi::Result<_>>()?;
        Ok(Self { to, messages })
    }

    /// Decrypts them.
    ///
    /// # Errors
    /// What the engine met.
    #[napi(catch_unwind)]
    pub fn decrypt(&mut self) -> napi::Result<()> {
        let mut room = [0; 8_192];
        for message in self.messages.drain(..) {
            self.to.read(&message, &mut room)?;
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
    let ([mut hers, mut his], mut room) = (sides()?, [0; 8_192]);
    for number in 0..count.min(MOST) {
        match what.as_str() {
            // A turn now and then, as in JavaScript's loop.
            "encrypt" if number % 200 == 0 => {
                one(&mut hers, &mut his)?;
                one(&mut his, &mut hers)?;
            }
            "encrypt" => drop(sealed(&mut hers, &mut room)?.len()),
            "pingpong" => {
                one(&mut hers, &mut his)?;
                one(&mut his, &mut hers)?;
            }
            _ => return Err(argument("there is no such call")),
        }
    }
    Ok(())
}

/// Sends so many messages from one client in memory to another, a hundred at a time and a call for each, as `soak.mjs` does from
/// JavaScript; ends when all were taken out. `to`: a user who takes them elsewhere, whom nobody waits for here.
///
/// # Errors
/// What the SDK met.
#[napi(catch_unwind)]
pub fn bench_sends(
    env: &Env,
    url: String,
    count: u32,
    to: Option<String>,
) -> napi::Result<PromiseRaw<'_, ()>> {
    promise(env, None, async move {
        let app = app(&url).await?;
        let from = app.connect("rust-from").await.map_err(failed)?;
        let sent = async |to: &str| {
            let text = "x".repeat(TEXT);
            for _ in 0..count.min(MOST) / 100 {
                let each = (0..100).map(|_| from.send(to, text.as_str()));
                try_join_all(each).await.map_err(failed)?;
            }
            Ok::<_, napi::Error>(())
        };
        match to {
            Some(to) => sent(&to).await?,
            None => {
                let to = app.connect("rust-to").await.map_err(failed)?;
                futures::try_join!(taken(&to, count), sent("rust-to"))?;
            }
        }
        app.close().await.map_err(failed)
    })
}

/// Takes so many messages out as the user `rust-taker`.
///
/// # Errors
/// What the SDK met.
#[napi(catch_unwind)]
pub fn bench_takes(env: &Env, url: String, count: u32) -> napi::Result<PromiseRaw<'_, ()>> {
    promise(env, None, async move {
        let app = app(&url).await?;
        let to = app.connect("rust-taker").await.map_err(failed)?;
        taken(&to, count).await?;
        app.close().await.map_err(failed)
    })
}

async fn app(url: &str) -> napi::Result<stvor::App> {
    stvor::App::builder().app_token("stvor_bench").relay_url(url).in_memory().open().await.map_err(failed)
}

async fn taken(to: &stvor::Client, count: u32) -> napi::Result<()> {
    let mut inbox = to.messages();
    for _ in 0..count.min(MOST) {
        if inbox.next().await.is_none() {
            return Err(argument("the inbox ended early"));
        }
    }
    Ok(())
}
