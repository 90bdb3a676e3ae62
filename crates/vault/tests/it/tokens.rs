//! Physical tokens and one-time codes.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use stvor_base::ErrorCode;
use stvor_crypto::{Secret, SecretBytes, SystemRandom};
use stvor_keys::KeyError;
use stvor_keys::challenge::{Challenge, ChallengeToken, SoftwareToken};
use stvor_keys::fido2::Ctap2;
use stvor_keys::recipients::{Identity, Opening};
use stvor_keys::shares::Share;
use stvor_testkit::SoftAuthenticator;
use stvor_vault::recovery::escrow::{Keeper, NewEscrow, NewSecrets, recover};
use stvor_vault::tokens::{Enrolment, Presented, TokenRecord};
use stvor_vault::{
    Caller, Level, MemoryId, NewMemory, Options, Refusal, Vault, limits, unwrap_root, unwrap_vaulted,
};

use crate::world::{World, agent, owner, refusal, second};

const OWNER: &Caller = &Caller::Owner;

fn software(world: &World, name: &str) -> SoftwareToken {
    let path = world.directory.path().join(name);
    if path.exists() {
        SoftwareToken::read(&path).unwrap()
    } else {
        SoftwareToken::create(&path, &mut SystemRandom::new()).unwrap()
    }
}

fn unlock(vault: &Vault) {
    let records = vault.records().unwrap();
    let root = unwrap_root(&records.root, &owner()).unwrap();
    let vaulted = unwrap_vaulted(&records.vaulted.unwrap(), &second()).unwrap();
    vault.unlock(root, Some(vaulted)).unwrap();
}

/// A vault with a boundary daemon that says cold room, unlocked with both secrets.
fn open(world: &World) -> Vault {
    let boundary = crate::gates::cold_room(world);
    let vault = Vault::open(&world.path(), Options { boundary: Some(boundary), ..world.options() }).unwrap();
    unlock(&vault);
    vault
}

fn record(vault: &Vault, name: &str) -> TokenRecord {
    vault.tokens().unwrap().into_iter().find(|record| record.name == name).unwrap()
}

fn black(vault: &Vault, text: &str) -> MemoryId {
    let mut memory = NewMemory::new(text.as_bytes(), Level::Black, "home");
    memory.cooldown = Some(Duration::ZERO);
    vault.store(OWNER, memory).unwrap()
}

#[test]
fn level_five_takes_two_tokens_and_opens_with_either_once_for_each_answer() {
    let world = World::new();
    let vault = open(&world);
    let (mut first, mut spare) = (software(&world, "first"), software(&world, "spare"));
    let enrol = |name: &str, token: &mut SoftwareToken| Enrolment::challenge(name, token).unwrap();
    let one = vault.enable_black(vec![enrol("first", &mut first)], None);
    assert_eq!(one.unwrap_err().code(), "VAULT_BAD_REQUEST", "one token is one loss from none");
    assert_eq!(refusal(vault.store(OWNER, NewMemory::new(b"x", Level::Black, "home"))), Refusal::NoToken);
    let both = vec![enrol("first", &mut first), enrol("spare", &mut spare)];
    vault.enable_black(both, None).unwrap();

    let id = black(&vault, "very black");
    assert_eq!(refusal(vault.recall(OWNER, id, "drill")), Refusal::NoToken);
    for (name, token) in
        [("first", &mut first), ("spare", &mut spare), ("first", &mut software(&world, "first"))]
    {
        vault.present_token(Presented::challenge(&record(&vault, name), token).unwrap()).unwrap();
        assert_eq!(vault.recall(OWNER, id, "drill").unwrap().content.expose(), b"very black");
        assert_eq!(refusal(vault.recall(OWNER, id, "drill")), Refusal::NoToken, "one answer, one recall");
    }
    // Time runs out.
    vault.present_token(Presented::challenge(&record(&vault, "first"), &mut first).unwrap()).unwrap();
    world.clock.pass(Duration::from_secs(60));
    assert_eq!(refusal(vault.recall(OWNER, id, "drill")), Refusal::NoToken);
    // An answer that was overheard is of no use after it was used.
    let old = record(&vault, "first");
    vault.present_token(Presented::challenge(&old, &mut first).unwrap()).unwrap();
    let replayed = vault.present_token(Presented::challenge(&old, &mut first).unwrap());
    assert_eq!(refusal(replayed), Refusal::NoToken);
    // Another token's answer neither.
    let mut other = software(&world, "other");
    let wrong = vault.present_token(Presented::challenge(&record(&vault, "first"), &mut other).unwrap());
    assert_eq!(refusal(wrong), Refusal::NoToken);
    assert_eq!(refusal(vault.recall(OWNER, id, "drill")), Refusal::NoToken);
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn a_fido2_token_has_to_be_there_now() {
    let world = World::new();
    let vault = open(&world);
    let pin = SecretBytes::from_slice(b"1234");
    let mut token = SoftAuthenticator::new(Some("1234"), true).unwrap();
    let mut spare = SoftAuthenticator::new(Some("1234"), false).unwrap();
    let first = Enrolment::fido2("first", &mut Ctap2::new(&mut token), Some(&pin)).unwrap();
    let second = Enrolment::fido2("spare", &mut Ctap2::new(&mut spare), Some(&pin)).unwrap();
    vault.enable_black(vec![first, second], None).unwrap();
    let id = black(&vault, "very black");
    let record = record(&vault, "first");
    let mut answer =
        |challenge| Presented::fido2(&record, &mut Ctap2::new(&mut token), (challenge, Some(&pin))).unwrap();
    let challenge = vault.token_challenge().unwrap();
    vault.present_token(answer(challenge)).unwrap();
    assert_eq!(vault.recall(OWNER, id, "drill").unwrap().content.expose(), b"very black");
    // The same answer, or one to a challenge of somebody else's, shows no presence.
    assert_eq!(
        refusal(vault.present_token(answer(challenge))),
        Refusal::NoToken,
        "no challenge was asked for"
    );
    vault.token_challenge().unwrap();
    assert_eq!(refusal(vault.present_token(answer(challenge))), Refusal::NoToken, "an older challenge");
    assert_eq!(refusal(vault.recall(OWNER, id, "drill")), Refusal::NoToken);
}

#[test]
fn a_token_that_answered_while_the_records_were_doubted_answers_anew_after_that() {
    let world = World::new();
    let vault = open(&world);
    let mut tokens = ["first", "spare"].map(|name| software(&world, name));
    let enrolments = ["first", "spare"].iter().zip(&mut tokens);
    let enrolments = enrolments.map(|(name, token)| Enrolment::challenge(name, token).unwrap());
    vault.enable_black(enrolments.collect(), None).unwrap();
    let id = black(&vault, "very black");
    drop(vault);
    let database = rusqlite::Connection::open(world.path().join("vault.db")).unwrap();
    assert_eq!(database.execute("UPDATE checkpoint SET bound = x''", []).unwrap(), 1);
    drop(database);
    let vault = open(&world);
    assert_eq!(vault.recall(OWNER, id, "drill").unwrap_err().code(), "VAULT_TAMPERED");
    let mut present =
        || vault.present_token(Presented::challenge(&record(&vault, "first"), &mut tokens[0]).unwrap());
    present().unwrap();
    vault.leave_lockdown(&owner()).unwrap();
    assert_eq!(refusal(vault.recall(OWNER, id, "drill")), Refusal::NoToken);
    present().unwrap();
    assert_eq!(vault.recall(OWNER, id, "drill").unwrap().content.expose(), b"very black");
}

/// A slot of a device that has a serial number, or keeps it to itself.
#[derive(Debug)]
struct Slot(SoftwareToken, Option<u32>);

impl ChallengeToken for Slot {
    fn respond(&mut self, challenge: &Challenge) -> Result<Secret<32>, KeyError> {
        self.0.respond(challenge)
    }

    fn serial(&mut self) -> Option<u32> {
        self.1
    }
}

#[test]
fn two_slots_of_one_device_are_one_token() {
    let world = World::new();
    let vault = open(&world);
    let slot = |name: &str, serial| Slot(software(&world, name), serial);
    let enrol = |slot: &mut Slot, name: &str| Enrolment::challenge(name, slot).unwrap();
    let (mut first, mut second) = (slot("first", Some(7)), slot("second", Some(7)));
    let made = enrol(&mut first, "first");
    assert!(made.is_of(&mut second).unwrap(), "other keys, and lost together");
    let refused = vault.enable_black(vec![made, enrol(&mut second, "second")], None).unwrap_err();
    assert!(refused.to_string().contains("two tokens"), "{refused}");
    let mut other = slot("other", Some(8));
    assert!(!enrol(&mut first, "first").is_of(&mut other).unwrap());
    vault.enable_black(vec![enrol(&mut first, "first"), enrol(&mut other, "other")], None).unwrap();
    // What it was is known later, too.
    drop(vault);
    let vault = open(&world);
    let mut present =
        || vault.present_token(Presented::challenge(&record(&vault, "other"), &mut other).unwrap());
    present().unwrap();
    let refused = vault.add_token(enrol(&mut second, "second")).unwrap_err();
    assert!(refused.to_string().contains("this device is the token first"), "{refused}");
    present().unwrap();
    vault.add_token(enrol(&mut slot("third", None), "third")).unwrap();
    // Devices that tell nothing are not taken for one.
    present().unwrap();
    vault.add_token(enrol(&mut slot("fourth", None), "fourth")).unwrap();
    assert_eq!(vault.tokens().unwrap().len(), 4);
}

#[test]
fn tokens_are_added_with_another_one_and_two_always_stay() {
    let world = World::new();
    let vault = open(&world);
    let mut tokens = ["a", "b", "c"].map(|name| software(&world, name));
    let [a, b, c] = &mut tokens;
    let both = vec![Enrolment::challenge("a", a).unwrap(), Enrolment::challenge("b", b).unwrap()];
    vault.enable_black(both, None).unwrap();
    let id = black(&vault, "very black");
    assert_eq!(vault.remove_token("a").unwrap_err().code(), "VAULT_BAD_REQUEST");
    assert_eq!(refusal(vault.add_token(Enrolment::challenge("c", c).unwrap())), Refusal::NoToken);
    vault.present_token(Presented::challenge(&record(&vault, "b"), b).unwrap()).unwrap();
    vault.add_token(Enrolment::challenge("c", c).unwrap()).unwrap();
    vault.remove_token("a").unwrap();
    assert_eq!(vault.tokens().unwrap().len(), 2);
    // Also after a restart the new one opens it; the removed one does not.
    drop(vault);
    let vault = open(&world);
    vault.present_token(Presented::challenge(&record(&vault, "c"), c).unwrap()).unwrap();
    assert_eq!(vault.recall(OWNER, id, "drill").unwrap().content.expose(), b"very black");
    // Level 5 needs level 4.
    drop(vault);
    let boundary = crate::gates::cold_room(&world);
    let vault = Vault::open(&world.path(), Options { boundary: Some(boundary), ..world.options() }).unwrap();
    vault.unlock_with(&owner()).unwrap();
    let without = vault.present_token(Presented::challenge(&record(&vault, "c"), c).unwrap());
    assert_eq!(refusal(without), Refusal::NoVaultedKey);
}

fn code_of(url: &SecretBytes, wall: u64) -> String {
    let url = std::str::from_utf8(url.expose()).unwrap();
    totp_rs::Totp::from_url(url).unwrap().generate(wall / 1_000).to_string()
}

#[test]
fn a_token_is_there_for_a_minute() {
    let world = World::new();
    let vault = open(&world);
    let (mut first, mut spare) = (software(&world, "first"), software(&world, "spare"));
    let both = [("first", &mut first), ("spare", &mut spare)];
    let both = both.map(|(name, token)| Enrolment::challenge(name, token).unwrap());
    vault.enable_black(both.into(), None).unwrap();
    let id = black(&vault, "very black");
    let mut after = |time: Duration| {
        vault.present_token(Presented::challenge(&record(&vault, "first"), &mut first).unwrap()).unwrap();
        world.clock.pass(time);
        vault.recall(OWNER, id, "drill")
    };
    after(limits::TOKEN_PRESENCE - Duration::from_millis(1)).unwrap();
    assert_eq!(refusal(after(limits::TOKEN_PRESENCE)), Refusal::NoToken);
}

#[test]
fn a_token_that_was_there_before_a_lockdown_has_to_be_presented_again() {
    let world = World::new();
    let vault = open(&world);
    let (mut first, mut spare) = (software(&world, "first"), software(&world, "spare"));
    let both = [("first", &mut first), ("spare", &mut spare)];
    let both = both.map(|(name, token)| Enrolment::challenge(name, token).unwrap());
    vault.enable_black(both.into(), None).unwrap();
    let id = black(&vault, "very black");
    let mut present = || {
        vault.present_token(Presented::challenge(&record(&vault, "first"), &mut first).unwrap()).unwrap();
    };
    present();
    vault.enter_lockdown(OWNER, "stop").unwrap();
    vault.leave_lockdown(&owner()).unwrap();
    assert_eq!(refusal(vault.recall(OWNER, id, "drill")), Refusal::NoToken);
    present();
    vault.recall(OWNER, id, "drill").unwrap();
}

#[test]
fn a_one_time_code_is_taken_once_and_guesses_are_slowed_down() {
    let world = World::new();
    let vault = world.open();
    let caller = agent(&vault, "helper", Level::Sealed);
    let id = vault.store(OWNER, NewMemory::new(b"sealed", Level::Sealed, "home")).unwrap();
    let url = vault.new_codes().unwrap().url;
    let ask = |purpose: &str| vault.request_approval(&caller, id, purpose).unwrap();
    let valid = Duration::from_secs(60);
    vault.decide_approval(ask("before it is confirmed"), Some(valid)).unwrap();
    assert_eq!(refusal(vault.confirm_codes("000000")), Refusal::OneTimeCode("wrong"));
    vault.confirm_codes(&code_of(&url, world.clock.wall())).unwrap();

    let request = ask("report");
    assert_eq!(refusal(vault.decide_approval(request, Some(valid))), Refusal::OneTimeCode("missing"));
    let used = code_of(&url, world.clock.wall());
    assert_eq!(
        refusal(vault.approve_with_code(request, valid, &used)),
        Refusal::OneTimeCode("used already"),
        "the code that confirmed it"
    );
    world.clock.pass(Duration::from_secs(60));
    let code = code_of(&url, world.clock.wall());
    vault.approve_with_code(request, valid, &code).unwrap();
    let next = ask("another");
    assert_eq!(refusal(vault.approve_with_code(next, valid, &code)), Refusal::OneTimeCode("used already"));
    for _ in 0..4 {
        assert!(matches!(refusal(vault.approve_with_code(next, valid, "123")), Refusal::OneTimeCode(_)));
    }
    world.clock.pass(Duration::from_secs(60));
    let right = code_of(&url, world.clock.wall());
    assert!(matches!(refusal(vault.approve_with_code(next, valid, &right)), Refusal::CodesBlocked { .. }));
    // A restart does not forgive, the pause does.
    vault.lock().unwrap();
    unlock(&vault);
    assert!(matches!(refusal(vault.approve_with_code(next, valid, &right)), Refusal::CodesBlocked { .. }));
    // A minute has passed since the last wrong one.
    world.clock.pass(limits::CODES_PAUSE - Duration::from_secs(61));
    assert!(matches!(refusal(vault.approve_with_code(next, valid, &right)), Refusal::CodesBlocked { .. }));
    world.clock.pass(Duration::from_secs(1));
    vault.approve_with_code(next, valid, &code_of(&url, world.clock.wall())).unwrap();
    world.clock.pass(Duration::from_secs(60));
    let outdated = ask("for what is another one then");
    vault.set_intent(OWNER, id, ("other", true)).unwrap();
    let last = code_of(&url, world.clock.wall());
    let refused = refusal(vault.approve_with_code(outdated, valid, &last));
    assert!(matches!(refused, Refusal::RequestOutdated(_)), "{refused:?}");
    vault.approve_with_code(ask("what did not use up the code"), valid, &last).unwrap();
    vault.decide_approval(ask("a denial needs no code"), None).unwrap();
    let root = unwrap_root(&vault.records().unwrap().root, &owner()).unwrap();
    vault.remove_codes(root).unwrap();
    vault.decide_approval(ask("without"), Some(valid)).unwrap();
}

/// Keepers with these names, and their keys.
fn keepers(names: &[&str]) -> (Vec<Identity>, Vec<Keeper>) {
    let identities: Vec<_> = names.iter().map(|_| Identity::generate()).collect();
    let keeper = |(name, identity): (&&str, &Identity)| Keeper {
        name: (*name).to_owned(),
        recipient: identity.recipient(),
    };
    let keepers = names.iter().zip(&identities).map(keeper).collect();
    (identities, keepers)
}

fn share(path: &Path, identity: &Identity) -> Share {
    let opening = Opening::with(Identity::parse_file(&identity.to_secret_line()).unwrap());
    let mut text = Vec::new();
    opening.reader(std::fs::File::open(path).unwrap()).unwrap().read_to_end(&mut text).unwrap();
    Share::parse(&text).unwrap()
}

#[test]
fn an_escrow_that_fails_leaves_the_one_before_and_counts_for_nothing() {
    let world = World::new();
    let vault = open(&world);
    let records = vault.records().unwrap();
    let root = unwrap_root(&records.root, &owner()).unwrap();
    let vaulted = unwrap_vaulted(&records.vaulted.unwrap(), &second()).unwrap();
    let directory = world.directory.path().join("shares");
    let (identities, sound) = keepers(&["ada", "bob"]);
    let (_, twice) = keepers(&["ada", "ada"]);
    let file = world.directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let inside = file.join("shares");
    let new = |keepers, needed, directory| NewEscrow { keepers, needed, label: "drill", directory };
    let failing = [new(&twice, 2, &directory), new(&sound, 3, &directory), new(&sound, 2, &inside)];
    let (mut a, mut b) = (software(&world, "a"), software(&world, "b"));

    // Opening level 5 with one token and an escrow: both, or none.
    for new in &failing {
        let token = Enrolment::challenge("a", &mut a).unwrap();
        vault.enable_black(vec![token], Some(((&root, &vaulted), new))).unwrap_err();
        assert_eq!(refusal(vault.store(OWNER, NewMemory::new(b"x", Level::Black, "home"))), Refusal::NoToken);
    }
    assert_eq!((vault.tokens().unwrap(), vault.escrows().unwrap()), (vec![], vec![]));
    let token = Enrolment::challenge("a", &mut a).unwrap();
    let escrow = ((&root, &vaulted), &new(&sound, 2, &directory));
    let (first, files) = vault.enable_black(vec![token], Some(escrow)).unwrap().unwrap();
    assert!(first.black);
    let id = black(&vault, "very black");

    // With a token there, so that level 5 would be in it.
    for new in &failing {
        vault.present_token(Presented::challenge(&record(&vault, "a"), &mut a).unwrap()).unwrap();
        vault.escrow((&root, Some(&vaulted)), new).unwrap_err();
    }
    vault.present_token(Presented::challenge(&record(&vault, "a"), &mut a).unwrap()).unwrap();
    let other = World::new().open().records().unwrap();
    let wrong = unwrap_root(&other.root, &owner()).unwrap();
    vault.escrow((&wrong, Some(&vaulted)), &new(&sound, 2, &directory)).unwrap_err();
    assert_eq!(vault.escrows().unwrap(), std::slice::from_ref(&first));
    // Nor does a new root key, with which the shares would end, leave the level with one token.
    assert_eq!(vault.rotate_root(&owner()).unwrap_err().code(), "VAULT_BAD_REQUEST");
    assert_eq!(vault.escrows().unwrap(), std::slice::from_ref(&first));
    let left = std::fs::read_dir(&directory).unwrap().count();
    assert_eq!(left, 2, "the shares of the first set, and no drafts");

    // The shares of before open level 5 still.
    drop(vault);
    let shares: Vec<_> = files.iter().zip(&identities).map(|(file, key)| share(file, key)).collect();
    let tokens = vec![Enrolment::challenge("b", &mut b).unwrap()];
    let secrets = NewSecrets { owner: owner(), vaulted: Some(second()), tokens };
    let boundary = crate::gates::cold_room(&world);
    let options = Options { boundary: Some(boundary), ..world.options() };
    let vault = recover(&world.path(), &shares, (secrets, options)).unwrap();
    vault.present_token(Presented::challenge(&record(&vault, "b"), &mut b).unwrap()).unwrap();
    assert_eq!(vault.recall(OWNER, id, "drill").unwrap().content.expose(), b"very black");

    // A new set takes level 5 from the old one, in one step.
    vault.present_token(Presented::challenge(&record(&vault, "b"), &mut b).unwrap()).unwrap();
    let (second_set, _) = vault.escrow((&root, Some(&vaulted)), &new(&sound, 2, &directory)).unwrap();
    let black: Vec<_> = vault.escrows().unwrap().into_iter().map(|set| (set.set, set.black)).collect();
    assert_eq!(black, [(first.set, false), (second_set.set, true)]);
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn two_tokens_stay_after_an_escrow_that_failed() {
    let world = World::new();
    let vault = open(&world);
    let records = vault.records().unwrap();
    let root = unwrap_root(&records.root, &owner()).unwrap();
    let vaulted = unwrap_vaulted(&records.vaulted.unwrap(), &second()).unwrap();
    let (mut a, mut b) = (software(&world, "a"), software(&world, "b"));
    let both = vec![Enrolment::challenge("a", &mut a).unwrap(), Enrolment::challenge("b", &mut b).unwrap()];
    vault.enable_black(both, None).unwrap();
    vault.present_token(Presented::challenge(&record(&vault, "a"), &mut a).unwrap()).unwrap();
    let (_, twice) = keepers(&["ada", "ada"]);
    let directory = world.directory.path().join("shares");
    let new = NewEscrow { keepers: &twice, needed: 2, label: "drill", directory: &directory };
    vault.escrow((&root, Some(&vaulted)), &new).unwrap_err();
    assert_eq!(vault.remove_token("b").unwrap_err().code(), "VAULT_BAD_REQUEST");
}
