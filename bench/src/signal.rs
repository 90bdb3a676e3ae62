//! The Signal profile, version 3: what a message costs, one that nobody sent, and one of a sender that leaves numbers out.

use std::hint::black_box;
use std::time::Duration;

use stvor_base::Timestamp;
use stvor_crypto::SystemRandom;
use stvor_crypto::random::{DeterministicRandom, Random};
use stvor_protocol::signal::{
    Context, Decrypted, KeyPair, PreKeyBundle, PreKeyBundleIn, PreKeyMessage, Prekeys, SenderKeyDistribution,
    SenderKeyRecord, SessionRecord, SignalError, WhisperMessage, cipher, session,
};

use crate::floor::SignalFloor;
use crate::micro::{BODY, microseconds, must};
use crate::report::{Row, Summary, Target};
use crate::timing::{Contender, race};
use crate::{Outcome, olm};

/// Sessions that a record holds at most: the current one and the archived ones.
const SESSIONS: usize = stvor_protocol::limits::MAX_ARCHIVED_SESSIONS + 1;

/// Numbers that forgeries claim, and bytes that they have: each session may cost an agreement, as many steps and a MAC over the
/// bytes, up to a bound over all of them.
const CLAIMS: [(u32, usize); 9] = [
    (0, 16),
    (5, 16),
    (28, 16),
    (100, 16),
    (1_000, 16),
    (stvor_protocol::limits::MAX_SKIP - 1, 16),
    (0, 64 * 1024),
    (0, 512 * 1024 - 256),
    (stvor_protocol::limits::MAX_SKIP - 1, 512 * 1024 - 256),
];

/// The same of forged first messages that name no one-time prekey: they are tried without one and with the one of id 0.
const FIRST_CLAIMS: [(u32, usize); 4] = [
    (0, 512 * 1024 - 512),
    (488, 512 * 1024 - 512),
    (1_000, 16),
    (stvor_protocol::limits::MAX_SKIP - 1, 512 * 1024 - 512),
];

/// Messages of a group before the one that is measured.
const BEFORE: u32 = 4_000;

fn context(identity: &KeyPair) -> Context<'_> {
    Context { identity, registration_id: 7, now: Timestamp::from_millis(1_700_000_000_000) }
}

/// A bundle without a one-time prekey.
fn bundle(of: &KeyPair, signed: &KeyPair, rng: &mut dyn Random) -> Outcome<PreKeyBundle> {
    let public = signed.public().to_bytes();
    let bundle = PreKeyBundleIn {
        registration_id: 7,
        identity: of.public().to_bytes().to_vec(),
        signed_id: 1,
        signed: public.to_vec(),
        signature: of.sign(&public, rng)?.to_vec(),
        one_time: None,
    };
    Ok(bundle.validate()?)
}

/// One end of a session.
struct End {
    identity: KeyPair,
    record: SessionRecord,
}

impl End {
    fn new(rng: &mut dyn Random) -> Outcome<Self> {
        Ok(Self { identity: KeyPair::generate(rng)?, record: SessionRecord::new() })
    }

    /// One message to the other end.
    fn send(&mut self, to: &mut Self, rng: &mut dyn Random) -> Outcome<()> {
        let sealed = cipher::encrypt(&mut self.record, &context(&self.identity), &BODY)?;
        let message = WhisperMessage::parse(&sealed.body)?;
        drop(black_box(cipher::decrypt(&mut to.record, &context(&to.identity), &message, rng)?));
        Ok(())
    }
}

/// Both ends of a session that was answered.
fn pair(rng: &mut dyn Random) -> Outcome<(End, End)> {
    let (mut alice, mut bob) = (End::new(rng)?, End::new(rng)?);
    let signed = KeyPair::generate(rng)?;
    let bundle = bundle(&bob.identity, &signed, rng)?;
    let _ = session::start(&mut alice.record, &context(&alice.identity), &bundle, rng)?;
    let first = cipher::encrypt(&mut alice.record, &context(&alice.identity), &BODY)?;
    let message = PreKeyMessage::parse(&first.body)?;
    let prekeys = Prekeys { signed: Some(&signed), one_time: None };
    let _ = cipher::decrypt_prekey(&mut bob.record, &context(&bob.identity), (&message, prekeys), rng)?;
    bob.send(&mut alice, rng)?;
    Ok((alice, bob))
}

/// A message on a chain, and one that answers, beside their floor and Olm. Records are decoded and stay so.
pub(crate) fn messages(budget: Duration, summary: &mut Summary) -> Outcome<()> {
    let floor = SignalFloor::new(&BODY)?;
    let (mut chain, mut turns) = (SystemRandom::new(), SystemRandom::new());
    let (mut alice, mut bob) = pair(&mut chain)?;
    let (mut carol, mut dave) = pair(&mut turns)?;
    let (mut olm_a, mut olm_b) = olm::pair()?;
    let (mut olm_c, mut olm_d) = olm::pair()?;
    let one_way = race(
        budget,
        vec![
            Contender::new("floor", || must(floor.one_way())),
            Contender::new("ours", || must(alice.send(&mut bob, &mut chain))),
            Contender::new("olm", || drop(black_box(must(olm::exchange(&mut olm_a, &mut olm_b, &BODY))))),
        ],
    );
    let ping_pong = race(
        budget,
        vec![
            Contender::new("floor", || {
                must(floor.ping_pong());
                must(floor.ping_pong());
            }),
            Contender::new("ours", || {
                must(carol.send(&mut dave, &mut turns));
                must(dave.send(&mut carol, &mut turns));
            }),
            Contender::new("olm", || {
                black_box(must(olm::exchange(&mut olm_c, &mut olm_d, &BODY)));
                black_box(must(olm::exchange(&mut olm_d, &mut olm_c, &BODY)));
            }),
        ],
    );
    for (name, times, messages, target) in [
        ("one way, encrypt and decrypt", one_way, 1.0, Target::TimesFloor(1.6)),
        ("ping-pong, a message", ping_pong, 2.0, Target::TimesFloor(1.25)),
    ] {
        let of = |who: &str| {
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(microseconds(&times, who)? / messages)
        };
        summary.push(
            Row::new(&format!("Signal V3: {name}, 100 B"), "us", of("ours")?)
                .floor(of("floor")?)
                .peer("vodozemac Olm", of("olm")?)
                .target(target),
        );
    }
    Ok(())
}

/// A record with as many sessions as one may hold, and whose it is.
fn full(rng: &mut DeterministicRandom) -> Outcome<(KeyPair, SessionRecord)> {
    let (bob, signed) = (KeyPair::generate(rng)?, KeyPair::generate(rng)?);
    let alice = KeyPair::generate(rng)?;
    let bundle = bundle(&bob, &signed, rng)?;
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

/// A number as protobuf has it.
fn varint(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push(u8::try_from(number & 0x7f).unwrap_or_default() | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).unwrap_or_default());
}

/// A message with a ratchet key that nobody knows.
fn forgery(ratchet: &KeyPair, (counter, size): (u32, usize)) -> Vec<u8> {
    let mut bytes = [&[0x33, 0x0a, 33][..], &ratchet.public().to_bytes()].concat();
    for (tag, number) in [(0x10, usize::try_from(counter).unwrap_or_default()), (0x18, 0), (0x22, size)] {
        bytes.push(tag);
        varint(&mut bytes, number);
    }
    bytes.resize(bytes.len() + size, 1);
    bytes.extend_from_slice(&[2; 8]);
    bytes
}

/// The same within a first message that names the signed prekey 1 and no one-time prekey.
fn first_forgery(ratchet: &KeyPair, claim: (u32, usize)) -> Vec<u8> {
    let (key, inner) = (ratchet.public().to_bytes(), forgery(ratchet, claim));
    let mut bytes = [&[0x33, 0x12, 33][..], &key, &[0x1a, 33], &key, &[0x22]].concat();
    varint(&mut bytes, inner.len());
    bytes.extend_from_slice(&inner);
    bytes.extend_from_slice(&[0x28, 1, 0x30, 1]);
    bytes
}

/// The dearest forgery against a record with all the sessions that it may hold.
pub(crate) fn forged(budget: Duration, summary: &mut Summary) -> Outcome<()> {
    let mut rng = DeterministicRandom::from_label("a forged message of version 3");
    let (bob, mut record) = full(&mut rng)?;
    let unknown = KeyPair::generate(&mut rng)?;
    let mut worst = Worst::default();
    for claim in CLAIMS {
        let bytes = forgery(&unknown, claim);
        worst.refused(budget, claim, || {
            WhisperMessage::parse(&bytes)
                .and_then(|message| cipher::decrypt(&mut record, &context(&bob), &message, &mut rng))
        })?;
    }
    worst.tell(summary, &format!("forged message refused by a record of {SESSIONS} sessions"));

    let (signed, zero) = (KeyPair::generate(&mut rng)?, KeyPair::generate(&mut rng)?);
    let prekeys = Prekeys { signed: Some(&signed), one_time: Some(&zero) };
    let mut worst = Worst::default();
    for claim in FIRST_CLAIMS {
        let bytes = first_forgery(&unknown, claim);
        worst.refused(budget, claim, || {
            PreKeyMessage::parse(&bytes).and_then(|message| {
                cipher::decrypt_prekey(&mut record, &context(&bob), (&message, prekeys), &mut rng)
            })
        })?;
    }
    worst.tell(summary, "forged first message refused");
    Ok(())
}

/// The dearest of several forgeries.
#[derive(Default)]
struct Worst {
    milliseconds: f64,
    claim: (u32, usize),
    code: String,
}

impl Worst {
    fn refused(
        &mut self,
        budget: Duration,
        claim: (u32, usize),
        mut act: impl FnMut() -> Result<Decrypted, SignalError>,
    ) -> Outcome<()> {
        let mut code = String::new();
        let contender = Contender::new("forged", || match act() {
            Err(error) => code = error.to_string(),
            Ok(_) => must(Err("a forged message was accepted".into())),
        });
        let milliseconds = microseconds(&race(budget / 4, vec![contender]), "forged")? / 1_000.0;
        if milliseconds > self.milliseconds {
            *self = Self { milliseconds, claim, code };
        }
        Ok(())
    }

    fn tell(&self, summary: &mut Summary, what: &str) {
        let row = Row::new(&format!("Signal V3: {what}, at worst"), "ms", self.milliseconds);
        summary.push(row.target(Target::AtMost(2.0)));
        let (number, bytes) = self.claim;
        summary.note(format!(
            "the dearest of version 3 ({what}): an unknown ratchet key, number {number}, {bytes} bytes ({})",
            self.code
        ));
    }
}

/// A sender, and the row of a member that has read many messages of it, each after so many that were never sent.
fn group(unused: u32, rng: &mut DeterministicRandom) -> Outcome<(SenderKeyRecord, Vec<u8>)> {
    let (mut own, mut member) = (SenderKeyRecord::new(), SenderKeyRecord::new());
    let distribution = own.distribution(rng)?.encode();
    member.process(&SenderKeyDistribution::parse(&distribution)?)?;
    for _ in 0..BEFORE {
        let _ = member.decrypt(&next(&mut own, unused, rng)?)?;
    }
    Ok((own, member.encode().expose().to_vec()))
}

fn next(own: &mut SenderKeyRecord, unused: u32, rng: &mut DeterministicRandom) -> Outcome<Vec<u8>> {
    for _ in 0..unused {
        let _ = own.encrypt(&BODY, rng)?;
    }
    Ok(own.encrypt(&BODY, rng)?)
}

/// Reading a group message from the row of its sender to the row after it: of a sender that uses every other number only, as
/// some clients do, beside one that uses all.
pub(crate) fn every_other_number(budget: Duration, summary: &mut Summary) -> Outcome<()> {
    let mut times = Vec::new();
    for unused in [0, 1] {
        let mut rng = DeterministicRandom::from_label("a group of version 3");
        let (mut own, mut row) = group(unused, &mut rng)?;
        let contender = Contender::prepared(
            "read",
            || must(next(&mut own, unused, &mut rng)),
            |message| {
                let mut member = must(SenderKeyRecord::decode(&row).map_err(Into::into));
                let plaintext = must(member.decrypt(&message).map_err(Into::into));
                row = member.encode().expose().to_vec();
                plaintext
            },
        );
        times.push(microseconds(&race(budget, vec![contender]), "read")?);
    }
    let [all, every_other] = times[..] else { return Err("a contender without a time".into()) };
    summary.push(
        Row::new("Signal V3: group message read, row to row, of a sender of even numbers", "us", every_other)
            .floor(all)
            .target(Target::TimesFloor(1.5)),
    );
    Ok(())
}
