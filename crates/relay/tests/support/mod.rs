//! What the tests of the relay share: a server to talk to, users with real keys, and a raw client over `stvor_wire`.

#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]

mod client;
mod client_token;
mod http;
mod raw;
mod server;
mod user;

use core::time::Duration;

use stvor_base::{AppId, MessageId};
use stvor_crypto::{Random as _, SystemRandom};
use stvor_wire::keys::{KemPrekey, OneTimePrekey, SignedPrekey};
use stvor_wire::limits::KEM_KEY_BYTES;
use stvor_wire::server::Deliver;

pub(crate) use client::{Client, Login, accepted, hello, key_set, refused};
pub(crate) use client_token::{Issuer, claims};
pub(crate) use http::{Answer, get, many, post, request};
pub(crate) use raw::{Heard, Raw};
pub(crate) use server::{Place, Server, process};
pub(crate) use user::{User, address};

/// Far longer than anything here takes: what is awaited for that long is not coming.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// The development token that tests use unless they say otherwise.
pub(crate) const TOKEN: &str = "stvor_dev_tests";

/// The app of [`TOKEN`].
pub(crate) fn app() -> AppId {
    stvor_wire::token::app_of(TOKEN).unwrap()
}

/// Awaits something that is certain to come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing within {SOON:?}"),
    }
}

/// Asks until there is an answer, for conditions that nothing announces.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    soon(what, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).unwrap();
    bytes
}

/// A random message id.
pub(crate) fn new_id() -> MessageId {
    MessageId::from_bytes(random())
}

/// A blob of a given size, told from others by its first bytes.
pub(crate) fn blob_of(text: &str, size: usize) -> Vec<u8> {
    let mut blob = text.as_bytes().to_vec();
    assert!(blob.len() <= size);
    blob.resize(size, 0);
    blob
}

/// A blob of the smallest bucket.
pub(crate) fn blob(text: &str) -> Vec<u8> {
    blob_of(text, 512)
}

/// What [`blob`] was made of.
pub(crate) fn text_of(blob: &[u8]) -> String {
    String::from_utf8(blob.iter().copied().take_while(|byte| *byte != 0).collect()).unwrap()
}

/// A signed prekey; the relay does not judge it.
pub(crate) fn signed_prekey(id: u32) -> SignedPrekey {
    SignedPrekey { id, key: random::<65>().into(), created_at: Default::default(), signature: random() }
}

/// A KEM prekey; the relay does not judge it.
pub(crate) fn kem_prekey(id: u32) -> KemPrekey {
    let key = random::<KEM_KEY_BYTES>().to_vec().into();
    KemPrekey { id, key, created_at: Default::default(), signature: random() }
}

/// One-time prekeys with these numbers.
pub(crate) fn one_time(ids: impl IntoIterator<Item = u32>) -> Vec<OneTimePrekey> {
    ids.into_iter().map(|id| OneTimePrekey { id, key: random::<65>().into() }).collect()
}

/// One-time KEM prekeys with these numbers.
pub(crate) fn kem_one_time(ids: impl IntoIterator<Item = u32>) -> Vec<KemPrekey> {
    ids.into_iter().map(kem_prekey).collect()
}

/// What messages say.
pub(crate) fn texts(messages: &[Deliver]) -> Vec<String> {
    messages.iter().map(|message| text_of(&message.blob)).collect()
}

/// Waits until an ACK took effect: what the connection said before a ping is done, or submitted to the store, when the
/// pong comes; what the store was given later happens later.
pub(crate) async fn settled(client: &mut Client) {
    client.until_pong().await;
}

/// A relay on each store.
pub(crate) async fn both() -> [Server; 2] {
    [Server::memory().await, Server::durable().await]
}
