//! Keys in a TPM, with swtpm in the place of a chip.
#![cfg(feature = "tpm")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use stvor_base::ErrorCode as _;
use stvor_crypto::{Secret, SecretBytes, SystemRandom};
use stvor_keys::tpm::{Pcrs, Place, Tpm, TpmRecovery, self_test};
use stvor_keys::{DataKey, HolderKind, KeyHolder, Passphrase, PassphraseCost, WrappedKey};
use stvor_testkit::Swtpm;
use tss_esapi::constants::CapabilityType;
use tss_esapi::handles::PcrHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::structures::{CapabilityData, Digest, DigestValues};
use tss_esapi::{Context, TctiNameConf};

fn place(tpm: &Swtpm) -> Place {
    tpm.place().parse().unwrap()
}

fn holder(tpm: &Swtpm, pin: &str) -> Tpm {
    Tpm::new(place(tpm), &SecretBytes::from_slice(pin.as_bytes())).unwrap()
}

fn phrase(text: &str) -> Passphrase {
    let cost = PassphraseCost { memory_kib: 64, iterations: 1, parallelism: 1 };
    Passphrase::new(SecretBytes::from_slice(text.as_bytes())).unwrap().with_cost(cost).unwrap()
}

fn wrapped_by(holder: &dyn KeyHolder) -> (DataKey, WrappedKey) {
    let mut rng = SystemRandom::new();
    let key = Secret::random(&mut rng).unwrap();
    let wrapped = holder.wrap(&key, b"vault", &mut rng).unwrap();
    (key, WrappedKey::decode(&wrapped.encode()).unwrap())
}

fn refusal(holder: &dyn KeyHolder, wrapped: &WrappedKey) -> &'static str {
    holder.unwrap(wrapped, b"vault").unwrap_err().code()
}

fn context(tpm: &Swtpm) -> Context {
    Context::new(tpm.place().parse::<TctiNameConf>().unwrap()).unwrap()
}

/// As firmware does with what it is about to start.
fn measure(tpm: &Swtpm) {
    let mut values = DigestValues::new();
    values.set(HashingAlgorithm::Sha256, Digest::try_from(vec![7; 32]).unwrap());
    let extended = context(tpm)
        .execute_with_nullauth_session(|context| context.pcr_extend(PcrHandle::Pcr7, values.clone()));
    extended.unwrap();
}

/// Handles of what is in the TPM: loaded, or for good.
fn objects(tpm: &Swtpm) -> usize {
    let mut context = context(tpm);
    // Transient objects begin at 0x80000000, persistent ones at 0x81000000, sessions at 0x02000000.
    let count =
        |context: &mut Context, first| match context.get_capability(CapabilityType::Handles, first, 64) {
            Ok((CapabilityData::Handles(handles), _)) => handles.len(),
            other => panic!("{other:?}"),
        };
    [0x8000_0000, 0x8100_0000, 0x0200_0000].into_iter().map(|first| count(&mut context, first)).sum()
}

#[test]
fn a_key_opens_with_its_pin_in_its_context_and_again_after_the_machine_was_started() {
    let Some(mut tpm) = Swtpm::start().unwrap() else { return };
    let (key, wrapped) = wrapped_by(&holder(&tpm, "1234"));
    assert_eq!(wrapped.kind(), HolderKind::Tpm);
    assert!(holder(&tpm, "1234").unwrap(&wrapped, b"vault").unwrap() == key);
    assert_eq!(holder(&tpm, "1234").unwrap(&wrapped, b"other").unwrap_err().code(), "WRONG_KEY");
    assert_eq!(refusal(&phrase("1234"), &wrapped), "KEY_REQUIRED");
    assert_eq!(refusal(&TpmRecovery::new(phrase("1234")), &wrapped), "KEY_MISSING");
    assert_eq!(objects(&tpm), 0, "nothing is left in the TPM");
    tpm.restart().unwrap();
    assert!(holder(&tpm, "1234").unwrap(&wrapped, b"vault").unwrap() == key);
    // Registers of the machine are nothing to a key that is not bound to them.
    measure(&tpm);
    assert!(holder(&tpm, "1234").unwrap(&wrapped, b"vault").unwrap() == key);
}

#[test]
fn another_tpm_and_a_cleared_one_are_told_from_a_wrong_pin() {
    let (Some(mut tpm), Some(other)) = (Swtpm::start().unwrap(), Swtpm::start().unwrap()) else { return };
    let recovery = || TpmRecovery::new(phrase("recovery"));
    let (key, wrapped) = wrapped_by(&holder(&tpm, "1234").with_recovery(phrase("recovery")));
    assert_eq!(refusal(&holder(&tpm, "4321"), &wrapped), "WRONG_KEY");
    assert_eq!(refusal(&holder(&other, "1234"), &wrapped), "TPM_FOREIGN");
    tpm.clear().unwrap();
    assert_eq!(refusal(&holder(&tpm, "1234"), &wrapped), "TPM_FOREIGN");
    // The recovery needs no TPM.
    drop((tpm, other));
    assert!(recovery().unwrap(&wrapped, b"vault").unwrap() == key);
    assert_eq!(refusal(&TpmRecovery::new(phrase("another")), &wrapped), "WRONG_KEY");
}

#[test]
fn wrong_pins_lock_the_tpm_and_then_the_right_one_is_refused_too() {
    let Some(tpm) = Swtpm::start().unwrap() else { return };
    let (_, wrapped) = wrapped_by(&holder(&tpm, "1234"));
    let allowed = self_test(&place(&tpm)).unwrap().allowed_tries;
    let (mut wrong, mut locked) = (0, 0);
    for _ in 0..=allowed {
        match refusal(&holder(&tpm, "4321"), &wrapped) {
            "WRONG_KEY" => wrong += 1,
            "TPM_LOCKED" => locked += 1,
            other => panic!("{other}"),
        }
    }
    // Each try was counted once: nothing tries a wrong PIN again.
    assert_eq!((wrong, locked), (allowed, 1));
    assert_eq!(refusal(&holder(&tpm, "1234"), &wrapped), "TPM_LOCKED");
    let message = holder(&tpm, "1234").unwrap(&wrapped, b"vault").unwrap_err().to_string();
    assert!(message.contains("wait"), "{message}");
    assert_eq!(self_test(&place(&tpm)).unwrap_err().code(), "TPM_LOCKED");
}

#[test]
fn a_key_that_is_bound_to_registers_opens_only_while_they_are_the_same() {
    let Some(mut tpm) = Swtpm::start().unwrap() else { return };
    let pcrs = Pcrs::new(&[0, 7]).unwrap();
    let bound = |pin| holder(&tpm, pin).with_recovery(phrase("recovery")).bound_to(pcrs).unwrap();
    let (key, wrapped) = wrapped_by(&bound("1234"));
    assert!(holder(&tpm, "1234").unwrap(&wrapped, b"vault").unwrap() == key);
    assert_eq!(refusal(&holder(&tpm, "4321"), &wrapped), "WRONG_KEY", "the PIN is asked for beside them");
    measure(&tpm);
    assert_eq!(refusal(&holder(&tpm, "1234"), &wrapped), "TPM_STATE");
    let message = holder(&tpm, "1234").unwrap(&wrapped, b"vault").unwrap_err().to_string();
    assert!(message.contains("PCR 0, 7"), "{message}");
    assert!(TpmRecovery::new(phrase("recovery")).unwrap(&wrapped, b"vault").unwrap() == key);
    tpm.restart().unwrap();
    assert!(holder(&tpm, "1234").unwrap(&wrapped, b"vault").unwrap() == key, "as it was at first");
}

#[test]
fn what_is_sealed_in_the_place_of_a_bound_key_is_bound_and_has_its_recovery() {
    let Some(tpm) = Swtpm::start().unwrap() else { return };
    let pcrs = Pcrs::new(&[0, 7]).unwrap();
    let made = holder(&tpm, "1234").with_recovery(phrase("recovery")).bound_to(pcrs).unwrap();
    let (_, before) = wrapped_by(&made);
    // The TPM as it is asked every day, without the passphrase.
    let daily = holder(&tpm, "1234");
    assert!(daily.unwrap(&before, b"vault").is_ok());
    let (key, after) = wrapped_by(&daily);
    assert!(TpmRecovery::new(phrase("recovery")).unwrap(&after, b"vault").unwrap() == key);
    assert!(holder(&tpm, "1234").unwrap(&after, b"vault").unwrap() == key);
    measure(&tpm);
    assert_eq!(refusal(&holder(&tpm, "1234"), &after), "TPM_STATE");
}

#[test]
fn a_tpm_that_is_not_there_is_said_and_one_that_is_there_tests_itself() {
    let Some(tpm) = Swtpm::start().unwrap() else { return };
    let health = self_test(&place(&tpm)).unwrap();
    assert_eq!((health.maker.as_str(), health.wrong_tries), ("IBM", 0));
    assert!(health.allowed_tries > 0);
    assert_eq!(objects(&tpm), 0, "the test leaves nothing");
    let (_, wrapped) = wrapped_by(&holder(&tpm, "1234"));
    let gone = holder(&tpm, "1234");
    drop(tpm);
    assert_eq!(refusal(&gone, &wrapped), "KEY_UNAVAILABLE");
    assert_eq!(self_test(&"device:/nonexistent/tpm".parse().unwrap()).unwrap_err().code(), "KEY_UNAVAILABLE");
    assert_eq!("nonsense".parse::<Place>().unwrap_err().code(), "KEY_MALFORMED");
}

#[test]
fn a_changed_record_does_not_open() {
    let Some(tpm) = Swtpm::start().unwrap() else { return };
    let (_, wrapped) = wrapped_by(&holder(&tpm, "1234"));
    let encoded = wrapped.encode();
    // Every part of what the TPM sealed is covered by the record's checksum, and behind it by the TPM.
    for at in (0..encoded.len()).step_by(7) {
        let mut changed = encoded.clone();
        changed[at] ^= 1;
        assert!(WrappedKey::decode(&changed).is_err(), "{at}");
    }
}
