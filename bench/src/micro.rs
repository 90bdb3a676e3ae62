//! One message in memory, beside its floor and beside Olm.

use std::hint::black_box;
use std::time::Duration;

use stvor_protocol::Plaintext;
use vodozemac::olm::Account;

use crate::floor::Floor;
use crate::ours::{self, Device, End, Hello, text};
use crate::report::{Row, Summary, Target};
use crate::timing::{Contender, Time, race};
use crate::{Outcome, olm};

/// The length of the plaintext.
pub(crate) const BODY: [u8; 100] = [b'x'; 100];

/// Messages after which the receiver answers.
const FORCED: u32 = stvor_protocol::limits::FORCED_RATCHET;

/// Where a message of an established session holds its header: after version, suite, kind, session id and time.
pub const HEADER_AT: usize = 27;

/// Length of a ratchet key; previous chain length and number, 4 bytes each, follow it.
pub const RATCHET_KEY: usize = 65;

/// A contender's step can not return an error, and one that failed must not count as fast.
pub(crate) fn must<T>(outcome: Outcome<T>) -> T {
    outcome.unwrap_or_else(|error| {
        eprintln!("a measured step failed: {error}");
        std::process::exit(1)
    })
}

pub(crate) fn microseconds(times: &[Time], name: &str) -> Outcome<f64> {
    let time = times.iter().find(|time| time.name == name).ok_or("a contender without a time")?;
    Ok(time.nanoseconds / 1_000.0)
}

/// One message, both sides; its control answer, if there is one, goes where `answer` says.
fn pass(
    message: &Plaintext,
    from: &mut End,
    to: &mut End,
    mut answer: impl FnMut(&mut End, Vec<u8>),
) -> Outcome<()> {
    let (blob, effects) = from.encrypt(message)?;
    drop(black_box(effects));
    let received = to.decrypt(&blob)?;
    if let Some(reply) = received.reply {
        answer(from, reply);
    }
    drop(black_box((received.plaintext, received.effects)));
    Ok(())
}

fn pair() -> Outcome<(End, End)> {
    Hello::new(b"hello")?.established()
}

/// Runs them all, each for about `budget`.
///
/// # Errors
/// When a party refuses what it should accept.
pub fn run(budget: Duration, summary: &mut Summary) -> Outcome<()> {
    messages(budget, summary)?;
    handshakes(budget, summary)?;
    forged(budget, summary)?;
    crate::signal::messages(budget, summary)?;
    crate::signal::forged(budget, summary)?;
    crate::signal::every_other_number(budget, summary)
}

fn messages(budget: Duration, summary: &mut Summary) -> Outcome<()> {
    let floor = Floor::new()?;
    let message = text(&BODY);
    let (mut a1, mut b1) = pair()?;
    let (mut a2, mut b2) = pair()?;
    let (mut a3, _) = pair()?;
    let (mut a4, mut b4) = pair()?;
    let (mut olm_a, mut olm_b) = olm::pair()?;
    let (mut olm_c, mut olm_d) = olm::pair()?;
    let contenders = vec![
        Contender::new("floor", || must(floor.one_way())),
        Contender::new("ours", || must(pass(&message, &mut a1, &mut b1, |_, reply| drop(black_box(reply))))),
        Contender::new("olm", || drop(black_box(must(olm::exchange(&mut olm_a, &mut olm_b, &BODY))))),
        Contender::new("ours forced", || {
            for _ in 0..FORCED {
                must(pass(&message, &mut a2, &mut b2, |from, reply| {
                    drop(black_box(must(from.decrypt(&reply).map_err(Into::into))));
                }));
            }
        }),
        Contender::new("floor seal", || drop(black_box(must(floor.seal())))),
        Contender::new("ours encrypt", || drop(black_box(must(a3.encrypt(&message))))),
        Contender::new("floor open", || drop(black_box(must(floor.open())))),
        Contender::prepared(
            "ours decrypt",
            || must(a4.encrypt(&message)).0,
            |blob| must(b4.decrypt(&blob).map_err(Into::into)),
        ),
    ];
    let times = race(budget, contenders);
    let of = |name: &str| microseconds(&times, name);
    let (mut a, mut b) = pair()?;
    let contenders = vec![
        Contender::new("floor", || {
            must(floor.ping_pong());
            must(floor.ping_pong());
        }),
        Contender::new("ours", || {
            must(pass(&message, &mut a, &mut b, |_, reply| drop(reply)));
            must(pass(&message, &mut b, &mut a, |_, reply| drop(reply)));
        }),
        Contender::new("olm", || {
            black_box(must(olm::exchange(&mut olm_c, &mut olm_d, &BODY)));
            black_box(must(olm::exchange(&mut olm_d, &mut olm_c, &BODY)));
        }),
    ];
    let turns = race(budget, contenders);
    let half =
        |name: &str| Ok::<_, Box<dyn std::error::Error + Send + Sync>>(microseconds(&turns, name)? / 2.0);
    summary.push(
        Row::new("one way, encrypt and decrypt, 100 B", "us", of("ours")?)
            .floor(of("floor")?)
            .peer("vodozemac Olm", of("olm")?)
            .target(Target::TimesFloor(1.5))
            .target(Target::FasterThan("vodozemac Olm", 3.0)),
    );
    summary.push(Row::new("  encrypt", "us", of("ours encrypt")?).floor(of("floor seal")?));
    summary.push(Row::new("  decrypt", "us", of("ours decrypt")?).floor(of("floor open")?));
    summary.push(
        Row::new(
            "  one way, with the forced answer of every 50th",
            "us",
            of("ours forced")? / f64::from(FORCED),
        )
        .floor(of("floor")? + half("floor")? / f64::from(FORCED)),
    );
    summary.push(
        Row::new("ping-pong, a message, 100 B", "us", half("ours")?)
            .floor(half("floor")?)
            .peer("vodozemac Olm", half("olm")?)
            .target(Target::TimesFloor(1.25)),
    );
    Ok(())
}

fn handshakes(budget: Duration, summary: &mut Summary) -> Outcome<()> {
    let mut alice = Device::new("alice@example.com")?;
    let mut bundles = Device::new("bob@example.com")?;
    let bundle = bundles.bundle()?;
    let bob_address = bundles.address().clone();
    let Hello { alice: writer, mut bob, first } = Hello::new(&BODY)?;
    let from = writer.device.address().clone();
    let stranger = Device::new("bob@example.com")?;
    let blank = || must(ours::blank(&stranger, &from));
    let mut batch = Device::new("carol@example.com")?;
    let (olm_alice, mut olm_bob) = (Account::new(), Account::new());
    let olm_bundle = olm::publish(&mut olm_bob)?;
    let (_, olm_first) = olm::initiate(&olm_alice, olm_bundle, &BODY)?;
    let olm_kept = olm_bob.pickle().encrypt(&[1; 32]);
    let restored = || {
        let pickle = vodozemac::olm::AccountPickle::from_encrypted(&olm_kept, &[1; 32]);
        Account::from_pickle(must(pickle.map_err(Into::into)))
    };
    let contenders = vec![
        Contender::new("ours initiate", || {
            let (conversation, effects) = must(alice.initiate(&bundle, &bob_address));
            drop(black_box(effects));
            black_box(must(alice.first_message(conversation, &text(&BODY))));
        }),
        Contender::new("olm initiate", || {
            black_box(must(olm::initiate(&olm_alice, olm_bundle, &BODY)));
        }),
        Contender::prepared("ours respond", blank, |blank| {
            must(ours::respond(&mut bob, blank, &first).map_err(Into::into))
        }),
        Contender::prepared("olm respond", restored, |mut account| {
            let result = must(olm::respond(&mut account, &olm_alice, &olm_first));
            (result, account)
        }),
        Contender::new("prekeys", || drop(black_box(must(ours::prekey_batch(&mut batch))))),
    ];
    let times = race(budget, contenders);
    let of = |name: &str| microseconds(&times, name);
    summary.push(
        Row::new("handshake, initiator: bundle to first message", "us", of("ours initiate")?)
            .peer("vodozemac Olm", of("olm initiate")?),
    );
    summary.push(
        Row::new("handshake, responder: first message opened", "us", of("ours respond")?)
            .peer("vodozemac Olm", of("olm respond")?),
    );
    summary.push(Row::new("prekeys of a new device (100 P-256, 51 ML-KEM)", "ms", of("prekeys")? / 1_000.0));
    summary.note(
        "Olm's handshake has three X25519 agreements, no KEM and no signatures to check; ours has four P-256 \
         agreements, ML-KEM-768 and three signatures",
    );
    Ok(())
}

/// A message that claims the worst: a new ratchet key and as many skipped messages as are looked at, here and there.
fn forge(genuine: &[u8], key: &[u8], previous: u32, number: u32) -> Outcome<Vec<u8>> {
    let mut forged = genuine.to_vec();
    let fields =
        forged.get_mut(HEADER_AT..HEADER_AT + RATCHET_KEY + 8).ok_or("a message without a header")?;
    let (ratchet_key, numbers) = fields.split_at_mut(RATCHET_KEY);
    ratchet_key.copy_from_slice(key);
    numbers[..4].copy_from_slice(&previous.to_be_bytes());
    numbers[4..].copy_from_slice(&number.to_be_bytes());
    Ok(forged)
}

fn forged(budget: Duration, summary: &mut Summary) -> Outcome<()> {
    let (mut alice, mut bob) = pair()?;
    // Bob reads a message of Alice, so that her chain has a position to skip from.
    alice.send_stored(&mut bob, &BODY)?;
    let (genuine, _dropped) = alice.encrypt(&text(&BODY))?;
    let mut rng = stvor_crypto::SystemRandom::new();
    let fresh = stvor_crypto::p256::AgreementKey::generate(&mut rng)?;
    let key = fresh.public().as_bytes();
    let old = genuine.get(HEADER_AT..HEADER_AT + RATCHET_KEY).ok_or("a message without a header")?.to_vec();
    let skip = stvor_protocol::limits::MAX_SKIP;
    let claims = [
        ("known key, 2,000 ahead", forge(&genuine, &old, 0, skip)?),
        ("new key, 2,000 ahead", forge(&genuine, key, 0, skip)?),
        ("new key, 2,000 left behind", forge(&genuine, key, skip, 0)?),
        ("new key, 1,000 left behind, 1,000 ahead", forge(&genuine, key, skip / 2, skip / 2)?),
        ("new key, 2,000 left behind, 2,000 ahead", forge(&genuine, key, skip, skip)?),
    ];
    let mut worst = (0.0, "none", String::new());
    for (claim, blob) in &claims {
        let mut code = String::new();
        let contender = Contender::new("forged", || match bob.decrypt(blob) {
            Err(error) => code = error.to_string(),
            Ok(_) => must(Err("a forged message was accepted".into())),
        });
        let milliseconds = microseconds(&race(budget / 4, vec![contender]), "forged")? / 1_000.0;
        if milliseconds > worst.0 {
            worst = (milliseconds, claim, code);
        }
    }
    summary.push(Row::new("forged message refused, at worst", "ms", worst.0).target(Target::AtMost(2.0)));
    summary.note(format!("the dearest forgery: {} ({})", worst.1, worst.2));
    Ok(())
}
