//! The peer: Olm, the double ratchet of Matrix, as `vodozemac` implements it.

use vodozemac::olm::{Account, OlmMessage, Session, SessionConfig};

use crate::Outcome;

/// A key bundle as a server would hand it out.
#[derive(Clone, Copy)]
pub struct Bundle {
    identity: vodozemac::Curve25519PublicKey,
    one_time: vodozemac::Curve25519PublicKey,
}

/// Publishes one one-time key of an account.
///
/// # Errors
/// When there is none.
pub fn publish(account: &mut Account) -> Outcome<Bundle> {
    account.generate_one_time_keys(1);
    let one_time = account.one_time_keys().into_values().next().ok_or("no one-time key")?;
    account.mark_keys_as_published();
    Ok(Bundle { identity: account.curve25519_key(), one_time })
}

/// The initiator's side of a handshake: a session, and the first message on it.
///
/// # Errors
/// When vodozemac refuses.
pub fn initiate(account: &Account, to: Bundle, text: &[u8]) -> Outcome<(Session, OlmMessage)> {
    let config = SessionConfig::version_1();
    let mut session = account.create_outbound_session(config, to.identity, to.one_time)?;
    let message = session.encrypt(text)?;
    Ok((session, message))
}

/// The responder's side of a handshake: a session, and the first message opened.
///
/// # Errors
/// When vodozemac refuses.
pub fn respond(account: &mut Account, from: &Account, first: &OlmMessage) -> Outcome<(Session, Vec<u8>)> {
    let OlmMessage::PreKey(first) = first else { return Err("not a first message".into()) };
    let config = SessionConfig::version_1();
    let result = account.create_inbound_session(config, from.curve25519_key(), first)?;
    Ok((result.session, result.plaintext))
}

/// Two ends of one established session; the first has had an answer.
///
/// # Errors
/// When vodozemac refuses.
pub fn pair() -> Outcome<(Session, Session)> {
    let (alice, mut bob) = (Account::new(), Account::new());
    let bundle = publish(&mut bob)?;
    let (mut ours, first) = initiate(&alice, bundle, b"hello")?;
    let (mut theirs, _) = respond(&mut bob, &alice, &first)?;
    exchange(&mut theirs, &mut ours, b"hello yourself")?;
    Ok((ours, theirs))
}

/// One message from `from` to `to`.
///
/// # Errors
/// When vodozemac refuses.
pub fn exchange(from: &mut Session, to: &mut Session, text: &[u8]) -> Outcome<Vec<u8>> {
    let message = from.encrypt(text)?;
    Ok(to.decrypt(&message)?)
}
