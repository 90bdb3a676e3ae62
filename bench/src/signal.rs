//! The Signal profile, version 3: what a message costs that nobody sent.

use std::time::Duration;

use stvor_base::Timestamp;
use stvor_crypto::random::DeterministicRandom;
use stvor_protocol::signal::{
    Context, KeyPair, PreKeyBundleIn, PreKeyMessage, Prekeys, SessionRecord, WhisperMessage, cipher, session,
};

use crate::Outcome;
use crate::micro::{microseconds, must};
use crate::report::{Row, Summary, Target};
use crate::timing::{Contender, race};

/// Sessions that a record holds at most: the current one and the archived ones.
const SESSIONS: usize = stvor_protocol::limits::MAX_ARCHIVED_SESSIONS + 1;

/// Numbers that forgeries claim: each session may cost an agreement and as many steps, up to a bound over all of them.
const CLAIMS: [u32; 10] = [0, 10, 30, 45, 48, 49, 100, 500, 1_000, stvor_protocol::limits::MAX_SKIP - 1];

fn context(identity: &KeyPair) -> Context<'_> {
    Context { identity, registration_id: 7, now: Timestamp::from_millis(1_700_000_000_000) }
}

/// A record with as many sessions as one may hold, and whose it is.
fn full(rng: &mut DeterministicRandom) -> Outcome<(KeyPair, SessionRecord)> {
    let (bob, signed) = (KeyPair::generate(rng)?, KeyPair::generate(rng)?);
    let alice = KeyPair::generate(rng)?;
    let public = signed.public().to_bytes();
    let signature = bob.sign(&public, rng)?.to_vec();
    let bundle = PreKeyBundleIn {
        registration_id: 7,
        identity: bob.public().to_bytes().to_vec(),
        signed_id: 1,
        signed: public.to_vec(),
        signature,
        one_time: None,
    }
    .validate()?;
    let mut his = SessionRecord::new();
    for _ in 0..SESSIONS {
        let mut hers = SessionRecord::new();
        let _ = session::start(&mut hers, &context(&alice), &bundle, rng)?;
        let first = cipher::encrypt(&mut hers, &context(&alice), b"first")?;
        let prekeys = Prekeys { signed: Some(&signed), one_time: None };
        let message = PreKeyMessage::parse(&first.body)?;
        let _ = cipher::decrypt_prekey(&mut his, &context(&bob), (&message, prekeys), rng)?;
    }
    if his.sessions()?.len() != SESSIONS {
        return Err("the record does not hold what it should".into());
    }
    Ok((bob, his))
}

/// A message with a ratchet key that nobody knows.
fn forgery(ratchet: &KeyPair, counter: u32) -> Vec<u8> {
    let mut number = counter;
    let mut bytes = [&[0x33, 0x0a, 33][..], &ratchet.public().to_bytes(), &[0x10]].concat();
    while number >= 0x80 {
        bytes.push(u8::try_from(number & 0x7f).unwrap_or_default() | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).unwrap_or_default());
    bytes.extend_from_slice(&[0x18, 0, 0x22, 16]);
    bytes.extend_from_slice(&[1; 16]);
    bytes.extend_from_slice(&[2; 8]);
    bytes
}

/// The dearest forgery against a record with all the sessions that it may hold.
pub(crate) fn forged(budget: Duration, summary: &mut Summary) -> Outcome<()> {
    let mut rng = DeterministicRandom::from_label("a forged message of version 3");
    let (bob, mut record) = full(&mut rng)?;
    let unknown = KeyPair::generate(&mut rng)?;
    let mut worst = (0.0, 0, String::new());
    for counter in CLAIMS {
        let bytes = forgery(&unknown, counter);
        let mut code = String::new();
        let contender = Contender::new("forged", || {
            let refused = WhisperMessage::parse(&bytes)
                .and_then(|message| cipher::decrypt(&mut record, &context(&bob), &message, &mut rng));
            match refused {
                Err(error) => code = error.to_string(),
                Ok(_) => must(Err("a forged message was accepted".into())),
            }
        });
        let milliseconds = microseconds(&race(budget / 4, vec![contender]), "forged")? / 1_000.0;
        if milliseconds > worst.0 {
            worst = (milliseconds, counter, code);
        }
    }
    let name = format!("Signal V3: forged message refused by a record of {SESSIONS} sessions, at worst");
    summary.push(Row::new(&name, "ms", worst.0).target(Target::AtMost(2.0)));
    summary.note(format!(
        "the dearest forgery of version 3: an unknown ratchet key, number {} ({})",
        worst.1, worst.2
    ));
    Ok(())
}
