//! The health tests of randomness, with sources that are good, stuck and biased.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use stvor_base::ErrorCode;
use stvor_crypto::random::{
    DeterministicRandom, FALSE_ALARM_BITS, HealthState, PROPORTION_CUTOFF, PROPORTION_WINDOW,
    REPETITION_CUTOFF, Random, RawSource, STARTUP_SAMPLES, SystemRandom,
};
use stvor_crypto::{CryptoError, random};

/// A good stream into which a fault is written from some byte on.
struct Faulty<F> {
    good: DeterministicRandom,
    position: usize,
    reads: Arc<AtomicUsize>,
    fault: F,
}

impl<F: FnMut(usize, u8) -> Result<u8, CryptoError> + Send> RawSource for Faulty<F> {
    fn read(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.good.fill(out)?;
        for byte in out {
            *byte = (self.fault)(self.position, *byte)?;
            self.position += 1;
        }
        Ok(())
    }
}

struct Bench {
    rng: SystemRandom,
    state: Arc<HealthState>,
    reads: Arc<AtomicUsize>,
}

fn bench(fault: impl FnMut(usize, u8) -> Result<u8, CryptoError> + Send + 'static) -> Bench {
    let (state, reads) = (Arc::new(HealthState::new()), Arc::new(AtomicUsize::new(0)));
    let good = DeterministicRandom::from_label("raw source");
    let source = Faulty { good, position: 0, reads: reads.clone(), fault };
    Bench { rng: SystemRandom::with_source(Box::new(source), state.clone()), state, reads }
}

/// The first byte after the start-up test, at which an instance begins to hand out bytes.
const USE: usize = STARTUP_SAMPLES;

#[test]
fn a_good_source_passes_and_a_nonce_does_not_cost_a_read() {
    let mut bench = bench(|_, byte| Ok(byte));
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1000 {
        let mut nonce = [0; 12];
        bench.rng.fill(&mut nonce).unwrap();
        assert!(seen.insert(nonce));
    }
    let windows = (STARTUP_SAMPLES + 12_000).div_ceil(PROPORTION_WINDOW);
    assert_eq!(bench.reads.load(Ordering::Relaxed), windows);
    let health = bench.state.health();
    assert!(!health.failed);
    assert_eq!(health.samples, (windows * PROPORTION_WINDOW) as u64);
    assert!(!format!("{:?}", bench.rng).contains("pool"));
}

#[test]
fn what_is_handed_out_is_the_source_after_the_start_up_test() {
    let mut bench = bench(|_, byte| Ok(byte));
    let mut expected = vec![0; USE + 2000];
    DeterministicRandom::from_label("raw source").fill(&mut expected).unwrap();
    let mut out = vec![0; 2000];
    for part in out.chunks_mut(700) {
        bench.rng.fill(part).unwrap();
    }
    assert_eq!(out[..], expected[USE..]);
}

#[test]
fn a_source_stuck_from_the_start_gives_nothing() {
    let mut bench = bench(|_, _| Ok(0));
    let mut out = [7; 16];
    assert_eq!(bench.rng.fill(&mut out), Err(CryptoError::RandomnessUnhealthy));
    assert_eq!(out, [7; 16]);
    let health = bench.state.health();
    assert!(health.failed);
    assert_eq!((health.repetition_failures, health.proportion_failures, health.samples), (1, 0, 0));
}

#[test]
fn a_run_one_below_the_cut_off_passes_and_the_cut_off_fails() {
    let run = |length: usize| {
        // The run crosses a window border; the bytes around it differ from it.
        let start = USE + PROPORTION_WINDOW - 3;
        let mut bench = bench(move |position, byte| {
            Ok(match position {
                at if at + 1 == start || at == start + length => 0x55,
                at if (start..start + length).contains(&at) => 0xaa,
                _ => byte,
            })
        });
        bench.rng.fill(&mut [0; 1024]).map(|()| bench.state.health())
    };
    let cutoff = REPETITION_CUTOFF as usize;
    assert!(!run(cutoff - 1).unwrap().failed);
    assert_eq!(run(cutoff).err(), Some(CryptoError::RandomnessUnhealthy));
}

#[test]
fn a_proportion_one_below_the_cut_off_passes_and_the_cut_off_fails() {
    let occurrences = |count: usize| {
        let mut bench = bench(move |position, byte| {
            let Some(at) = position.checked_sub(USE) else { return Ok(byte) };
            // Every third byte of the first window is 0xaa, `count` times; no other byte is.
            let marked = at < PROPORTION_WINDOW && at % 3 == 0 && at / 3 < count;
            Ok(if marked { 0xaa } else { byte & 0x7f })
        });
        bench.rng.fill(&mut [0; 512]).map(|()| bench.state.health())
    };
    let cutoff = PROPORTION_CUTOFF as usize;
    assert!(!occurrences(cutoff - 1).unwrap().failed);
    assert_eq!(occurrences(cutoff).err(), Some(CryptoError::RandomnessUnhealthy));
}

#[test]
fn a_source_of_four_bits_a_byte_is_found() {
    let mut bench = bench(|_, byte| Ok(byte & 0x0f));
    let mut out = vec![0; 64 * 1024];
    assert_eq!(bench.rng.fill(&mut out), Err(CryptoError::RandomnessUnhealthy));
    assert_eq!(bench.state.health().proportion_failures, 1);
}

#[test]
fn once_failed_every_generator_over_the_source_refuses_for_good() {
    let mut bench = bench(|position, byte| Ok(if (8192..8300).contains(&position) { 1 } else { byte }));
    assert_eq!(bench.rng.fill(&mut vec![0; 8192]), Err(CryptoError::RandomnessUnhealthy));
    let reads = bench.reads.load(Ordering::Relaxed);
    assert_eq!(bench.rng.fill(&mut [0; 1]), Err(CryptoError::RandomnessUnhealthy));
    assert_eq!(bench.rng.fill(&mut []), Err(CryptoError::RandomnessUnhealthy));
    assert_eq!(bench.reads.load(Ordering::Relaxed), reads);
    let mut other = SystemRandom::with_source(Box::new(Good), bench.state.clone());
    assert_eq!(other.fill(&mut [0; 1]), Err(CryptoError::RandomnessUnhealthy));
    assert_eq!(CryptoError::RandomnessUnhealthy.code(), "RNG_UNHEALTHY");
}

struct Good;

impl RawSource for Good {
    fn read(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        SystemRandom::new().fill(out)
    }
}

#[test]
fn a_failed_generator_makes_no_key_signature_or_ciphertext() {
    use stvor_crypto::p256::{AgreementKey, SigningKey};
    use stvor_crypto::{Secret, kem::DecapsulationKey};
    let good = &mut SystemRandom::new();
    let signer = SigningKey::generate(good).unwrap();
    let kem = DecapsulationKey::generate(good).unwrap();
    let rng = &mut bench(|_, _| Ok(9)).rng;
    let failed = Some(CryptoError::RandomnessUnhealthy);
    assert_eq!(AgreementKey::generate(rng).err(), failed);
    assert_eq!(SigningKey::generate(rng).err(), failed);
    assert_eq!(DecapsulationKey::generate(rng).err(), failed);
    assert_eq!(Secret::<32>::random(rng).err(), failed);
    assert_eq!(signer.sign_with(rng, b"label", b"message").err(), failed);
    assert_eq!(kem.public().encapsulate(rng).err(), failed);
}

#[test]
fn an_unreadable_source_is_an_error_that_may_pass_by() {
    let mut attempts = 0;
    let mut bench = bench(move |_, byte| {
        attempts += 1;
        if attempts == 1 { Err(CryptoError::RandomnessUnavailable) } else { Ok(byte) }
    });
    assert_eq!(bench.rng.fill(&mut [0; 8]), Err(CryptoError::RandomnessUnavailable));
    assert!(CryptoError::RandomnessUnavailable.retryable());
    assert!(!bench.state.health().failed);
    assert_eq!(bench.rng.fill(&mut [0; 8]), Ok(()));
}

#[test]
fn the_operating_system_is_in_health() {
    let mut out = [[0; 700]; 2];
    for part in &mut out {
        SystemRandom::default().fill(part).unwrap();
    }
    assert_ne!(out[0], out[1]);
    assert!(!SystemRandom::new().deterministic());
    let health = random::health();
    assert!(!health.failed);
    assert!(health.samples >= STARTUP_SAMPLES as u64);
}

#[test]
fn the_cut_offs_are_the_smallest_with_the_stated_false_alarm() {
    // Repetition: C - 1 further equal bytes of 2^-8 each.
    let equal = FALSE_ALARM_BITS as usize;
    let least = (1..).find(|count| (count - 1) * 8 >= equal);
    assert_eq!(least, Some(REPETITION_CUTOFF as usize));
    // Proportion: log2 of P[Binomial(W - 1, 2^-8) >= c], terms summed from the small end.
    let trials = PROPORTION_WINDOW - 1;
    let mut terms = vec![(255f64 / 256.0).log2() * trials as f64];
    for k in 1..=trials {
        terms.push(terms[k - 1] + ((trials - k + 1) as f64 / k as f64 / 255.0).log2());
    }
    let tail = |least: usize| terms[least..].iter().rev().map(|term| term.exp2()).sum::<f64>().log2();
    let cutoff = PROPORTION_CUTOFF as usize;
    let bound = -f64::from(FALSE_ALARM_BITS);
    assert!(tail(cutoff - 1) <= bound, "{}", tail(cutoff - 1));
    assert!(tail(cutoff - 2) > bound, "{}", tail(cutoff - 2));
}
