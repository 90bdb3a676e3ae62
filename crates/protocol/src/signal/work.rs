//! What a message that nobody sent costs, counted where the work is done.

use core::cell::Cell;

use stvor_base::Timestamp;
use stvor_crypto::random::DeterministicRandom;

use super::keys::PublicKey;
use super::wire::PreKeyFields;
use super::{
    Context, KeyPair, PreKeyBundleIn, PreKeyMessage, Prekeys, SessionRecord, SignalError, WhisperMessage,
    cipher, session,
};
use crate::limits::{MAX_ARCHIVED_SESSIONS, MAX_SIGNAL_MESSAGE, MAX_SKIP};

/// Work that was done on this thread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Work {
    /// Steps of chains.
    steps: usize,
    /// Diffie-Hellman agreements.
    agreements: usize,
    /// Bytes that a MAC was computed over.
    bytes: usize,
}

thread_local! {
    static DONE: Cell<Work> = const { Cell::new(Work { steps: 0, agreements: 0, bytes: 0 }) };
}

pub(crate) fn step() {
    DONE.with(|done| done.set(Work { steps: done.get().steps + 1, ..done.get() }));
}

pub(super) fn agreement() {
    DONE.with(|done| done.set(Work { agreements: done.get().agreements + 1, ..done.get() }));
}

pub(super) fn hashed(bytes: usize) {
    DONE.with(|done| done.set(Work { bytes: done.get().bytes + bytes, ..done.get() }));
}

/// What `work` costs.
fn cost<T>(work: impl FnOnce() -> T) -> (T, Work) {
    DONE.set(Work::default());
    let result = work();
    (result, DONE.get())
}

/// Bob, with as many sessions as a record holds, and who wrote them.
struct Bob {
    rng: DeterministicRandom,
    identity: KeyPair,
    signed: KeyPair,
    zero: KeyPair,
    record: SessionRecord,
    /// The ratchet key of the newest session.
    heard: PublicKey,
}

fn context(identity: &KeyPair) -> Context<'_> {
    Context { identity, registration_id: 1, now: Timestamp::from_millis(1) }
}

impl Bob {
    fn new() -> Self {
        let mut rng = DeterministicRandom::from_label("work");
        let [identity, signed, zero, alice] = [(); 4].map(|()| KeyPair::generate(&mut rng).unwrap());
        let heard = alice.public();
        let mut bob = Self { rng, identity, signed, zero, record: SessionRecord::new(), heard };
        let public = bob.signed.public().to_bytes();
        let bundle = PreKeyBundleIn {
            registration_id: 1,
            identity: bob.identity.public().to_bytes().to_vec(),
            signed_id: 1,
            signed: public.to_vec(),
            signature: bob.identity.sign(&public, &mut bob.rng).unwrap().to_vec(),
            one_time: None,
        };
        for _ in 0..=MAX_ARCHIVED_SESSIONS {
            let mut hers = SessionRecord::new();
            let _ = session::start(&mut hers, &context(&alice), &bundle.validate().unwrap(), &mut bob.rng)
                .unwrap();
            let first = cipher::encrypt(&mut hers, &context(&alice), b"first").unwrap();
            let first = PreKeyMessage::parse(&first.body).unwrap();
            bob.heard = first.message().ratchet_key();
            let prekeys = Prekeys { signed: Some(&bob.signed), one_time: None };
            let read = cipher::decrypt_prekey(
                &mut bob.record,
                &context(&bob.identity),
                (&first, prekeys),
                &mut bob.rng,
            );
            assert_eq!(read.unwrap().plaintext.expose(), b"first");
        }
        assert_eq!(bob.record.sessions().unwrap().len(), MAX_ARCHIVED_SESSIONS + 1);
        bob
    }

    /// What a message costs him that nobody sent, with this number and so many bytes.
    fn forged(&mut self, ratchet: &PublicKey, number: u32, bytes: usize) -> (SignalError, Work) {
        let mut body = WhisperMessage::build(ratchet, (number, 0), vec![1; bytes / 16 * 16]);
        body.extend_from_slice(&[2; 8]);
        let message = WhisperMessage::parse(&body).unwrap();
        let (verdict, work) =
            cost(|| cipher::decrypt(&mut self.record, &context(&self.identity), &message, &mut self.rng));
        (verdict.unwrap_err(), work)
    }

    /// The same, with a handshake that nobody began and no one-time prekey named.
    fn forged_handshake(&mut self, number: u32, bytes: usize) -> (SignalError, Work) {
        let [base, identity, ratchet] = [(); 3].map(|()| KeyPair::generate(&mut self.rng).unwrap().public());
        let mut message = WhisperMessage::build(&ratchet, (number, 0), vec![1; bytes / 16 * 16]);
        message.extend_from_slice(&[2; 8]);
        let body = PreKeyMessage::build(PreKeyFields {
            prekey: None,
            signed: 1,
            registration_id: 1,
            base_key: &base,
            identity: &identity,
            message,
        });
        let message = PreKeyMessage::parse(&body).unwrap();
        let prekeys = Prekeys { signed: Some(&self.signed), one_time: Some(&self.zero) };
        let (verdict, work) = cost(|| {
            let read = (&message, prekeys);
            cipher::decrypt_prekey(&mut self.record, &context(&self.identity), read, &mut self.rng)
        });
        (verdict.unwrap_err(), work)
    }
}

/// Numbers around every place at which one session more or less is paid for.
fn numbers() -> impl Iterator<Item = u32> {
    (0..120).chain([400, 900, 999, 1_000, 1_001, MAX_SKIP - 1, MAX_SKIP, MAX_SKIP + 1, u32::MAX])
}

#[test]
fn whatever_nobody_sent_costs_no_more_than_so_many_steps_agreements_and_bytes() {
    let mut bob = Bob::new();
    let strange = KeyPair::generate(&mut bob.rng).unwrap().public();
    let mut most = Work::default();
    for bytes in [16, 4_096, 64 * 1_024, MAX_SIGNAL_MESSAGE - 256] {
        for number in numbers() {
            let (verdict, work) = bob.forged(&strange, number, bytes);
            let far = matches!(verdict, SignalError::TooFarAhead { .. });
            assert_eq!(far, number > MAX_SKIP, "number {number}: {verdict:?}");
            assert!(!far || work == Work::default(), "what is too far ahead costs nothing: {work:?}");
            most.steps = most.steps.max(work.steps);
            most.agreements = most.agreements.max(work.agreements);
            most.bytes = most.bytes.max(work.bytes);
            // An agreement takes the time of 145 steps, 512 bytes of a MAC that of one, and 3,500 steps 1.2 ms.
            let whole = work.steps + 145 * work.agreements + work.bytes / 512;
            assert!(whole < 3_500, "number {number}, {bytes} bytes: {work:?}");
        }
    }
    // That these are reached shows that they are counted. Each session takes one step more for the message's own key.
    let steps = usize::try_from(MAX_SKIP).unwrap();
    assert!(most.steps >= steps && most.steps <= steps + 21, "{most:?}");
    assert_eq!(most.agreements, 21, "of 41 sessions: {most:?}");
    assert!(most.bytes <= 2 * MAX_SIGNAL_MESSAGE, "{most:?}");
}

#[test]
fn a_ratchet_key_that_was_overheard_buys_no_more_work() {
    let mut bob = Bob::new();
    let heard = bob.heard;
    for number in numbers().filter(|number| *number > 0) {
        let (verdict, work) = bob.forged(&heard, number, 16);
        match verdict {
            SignalError::TooFarAhead { .. } => assert_eq!(work, Work::default(), "{number}"),
            _ => assert!(work.steps <= usize::try_from(MAX_SKIP).unwrap() + 21, "{number}: {work:?}"),
        }
        assert!(work.agreements <= 21, "{number}: {work:?}");
    }
}

#[test]
fn a_handshake_that_nobody_began_costs_two_attempts_that_share_their_steps() {
    let mut bob = Bob::new();
    for bytes in [16, 64 * 1_024, MAX_SIGNAL_MESSAGE - 512] {
        for number in numbers().chain([488, 489]) {
            let (verdict, work) = bob.forged_handshake(number, bytes);
            assert!(!matches!(verdict, SignalError::Replay), "{number}");
            assert!(work.steps <= usize::try_from(MAX_SKIP).unwrap() + 2, "{number}: {work:?}");
            assert!(work.agreements <= 9, "{number}: {work:?}");
            // With the two looks at the encoding of the base key, which cost as much as an agreement each: 1.6 ms.
            let whole = work.steps + 145 * (work.agreements + 2) + work.bytes / 512;
            assert!(whole < 4_700, "number {number}, {bytes} bytes: {work:?}");
        }
    }
}
