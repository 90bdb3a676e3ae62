//! Tokens: enrolling them, taking their answers, and one-time codes.

use core::time::Duration;

use serde::{Deserialize, Serialize};
use stvor_crypto::p256::AgreementKey;
use stvor_crypto::{Random, Secret, SecretBytes};
use totp_rs::{Builder, Totp};

use super::Engine;
use super::agents::OWNER;
use super::recovery::escrow_name;
use crate::audit::{Event, Operation};
use crate::clock::Moment;
use crate::error::Refusal;
use crate::keys::{BaseKeys, RootKey, black_public_slot, black_slot};
use crate::memory::MemoryId;
use crate::recovery::escrow::{EscrowRecord, NewShares, check_name};
use crate::tokens::{Enrolment, NewCodes, Presented, TokenKind, TokenRecord};
use crate::{Level, VaultError, limits};

const TOKENS: &str = "tokens";
const CODES: &str = "codes";

/// The one-time-code app, sealed as a whole.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Codes {
    secret: Vec<u8>,
    confirmed: bool,
    /// The newest step whose code was used: neither it nor an older one is taken again.
    last_step: u64,
    wrong: u32,
    /// When the last wrong code came.
    last_wrong: Option<Moment>,
}

fn totp(secret: &[u8], account: &str) -> Result<Totp, VaultError> {
    let built = Builder::new()
        .with_secret(totp_rs::Secret::new(secret.into()))
        .with_account_name(account.replace(':', "/"))
        .with_issuer(Some("STVOR vault"))
        .build();
    built.map_err(|error| VaultError::invalid(format!("a one-time-code app can not be set up: {error}")))
}

impl Engine {
    pub(crate) fn tokens(&self) -> Result<Vec<TokenRecord>, VaultError> {
        self.sealed_slot(TOKENS).map(Option::unwrap_or_default)
    }

    /// Wraps the private key of level 5 with a secret, for a token or an escrow.
    pub(super) fn wrap_black(
        &mut self,
        (id, secret): (&str, &Secret<32>),
        private: &Secret<32>,
    ) -> Result<(), VaultError> {
        let held = self.held.as_ref().ok_or(VaultError::Refused(Refusal::Cold))?;
        let session = held.session.as_ref().ok_or(Refusal::Locked { level: Level::Black })?;
        let wrap = session.black_wrap(id, secret).ok_or(Refusal::NoVaultedKey)?;
        let name = black_slot(id);
        let sealed = wrap.seal(&mut self.rng, name.as_bytes(), private.expose())?;
        self.database.put_slot(&name, &sealed)
    }

    /// Checks an enrolment against the tokens that are there, and gives it a name.
    fn new_record(
        &mut self,
        token: &Enrolment,
        (known, added): (&[TokenRecord], u64),
    ) -> Result<TokenRecord, VaultError> {
        check_name(&token.name)?;
        if known.iter().any(|other| other.name == token.name) {
            return Err(VaultError::invalid(format!("there is a token {} already", token.name)));
        }
        if known.len() >= limits::MAX_TOKENS {
            return Err(VaultError::invalid("a vault has at most 16 tokens"));
        }
        let mut id = [0; 16];
        self.rng.fill(&mut id)?;
        let (name, kind) = (token.name.clone(), token.kind.clone());
        let (id, serial) = (MemoryId::from_bytes(id), token.serial);
        Ok(TokenRecord { id, name, kind, added, used: None, serial })
    }

    /// Refuses a token that answered what only one that is enrolled can, or is a part of the same device.
    fn is_another(&self, token: &Enrolment, known: &[TokenRecord]) -> Result<(), VaultError> {
        let of_device = |record: &&TokenRecord| token.serial.is_some() && record.serial == token.serial;
        if let Some(record) = known.iter().find(of_device) {
            let reason = format!(
                "this device is the token {} already, and all parts of it are lost together; take another device",
                record.name
            );
            return Err(VaultError::invalid(reason));
        }
        let session = self.held()?.session.as_ref().ok_or(Refusal::Locked { level: Level::Black })?;
        for (id, answer) in &token.answers {
            let Some(record) = known.iter().find(|record| record.id == *id) else { continue };
            let wrap = session.black_wrap(&id.to_string(), answer).ok_or(Refusal::NoVaultedKey)?;
            let name = black_slot(&id.to_string());
            let slot = self.database.slot(&name)?;
            if slot.is_some_and(|sealed| wrap.open(name.as_bytes(), &sealed).is_ok()) {
                let reason =
                    format!("this token is {} already; a lost token would be a lost level", record.name);
                return Err(VaultError::invalid(reason));
            }
        }
        Ok(())
    }

    /// Makes the key of level 5, with the escrow that stands for a second token, if there is one: both or none.
    pub(crate) fn enable_black(
        &mut self,
        tokens: &[Enrolment],
        escrow: Option<NewShares>,
    ) -> Result<Option<EscrowRecord>, VaultError> {
        let mut event = Event::new(self.clock.now(), OWNER, Operation::EnrolToken);
        event.level = Some(Level::Black);
        self.audited(event, |engine, event| {
            if engine.database.slot(&black_public_slot())?.is_some() {
                return Err(VaultError::invalid("level 5 is open already; enrol further tokens one by one"));
            }
            let same = |at: usize, token: &Enrolment| {
                let of_device = |other: &Enrolment| token.serial.is_some() && other.serial == token.serial;
                tokens.iter().take(at).any(|other| other.secret == token.secret || of_device(other))
            };
            let needed = if escrow.is_some() { 1 } else { 2 };
            if tokens.len() < needed || tokens.iter().enumerate().any(|(at, token)| same(at, token)) {
                return Err(VaultError::invalid("level 5 takes two tokens, or one and an escrow"));
            }
            let key = AgreementKey::generate(&mut engine.rng)?;
            let private = key.to_bytes();
            let mut records = Vec::new();
            for token in tokens {
                let record = engine.new_record(token, (&records, event.at.wall))?;
                engine.wrap_black((&record.id.to_string(), &token.secret), &private)?;
                records.push(record);
            }
            let escrow = match escrow {
                None => None,
                Some(shares) => {
                    let mut escrow = Event::new(event.at.clone(), OWNER, Operation::Escrow);
                    let record = engine.put_escrow(shares, Some(&private), &mut escrow)?;
                    engine.log(&escrow)?;
                    Some(record)
                }
            };
            engine.put_sealed_slot(TOKENS, &records)?;
            let name = black_public_slot();
            let held = engine.held.as_mut().ok_or(VaultError::Refused(Refusal::Cold))?;
            let sealed = held.base.rows.seal(&mut engine.rng, name.as_bytes(), key.public().as_bytes())?;
            engine.database.put_slot(&name, &sealed)?;
            held.base.add_public(Level::Black, key.public().clone());
            engine.new_keys = true;
            event.count = Some(records.len() as u64);
            Ok(escrow)
        })
    }

    /// Whether a token is present, and with it the key of level 5.
    pub(crate) fn black_is_open(&mut self) -> bool {
        self.drop_stale_token();
        self.black_private().is_ok()
    }

    /// Opens the key of level 5 with the secret out of shares, and wraps it for new tokens in place of the old ones.
    pub(crate) fn recover_black(
        &mut self,
        (set, secret): (&str, &Secret<32>),
        tokens: &[Enrolment],
    ) -> Result<(), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::EnrolToken);
        self.audited(event, |engine, event| {
            engine.open_black((&escrow_name(set), secret), &event.at)?;
            let private = engine.black_private()?;
            engine.drop_token();
            for old in engine.tokens()? {
                engine.database.remove_slot(&black_slot(&old.id.to_string()))?;
            }
            let mut records = Vec::new();
            for token in tokens {
                let record = engine.new_record(token, (&records, event.at.wall))?;
                engine.wrap_black((&record.id.to_string(), &token.secret), &private)?;
                records.push(record);
            }
            engine.wipe = true;
            engine.put_sealed_slot(TOKENS, &records)
        })
    }

    fn open_black(&mut self, token: (&str, &Secret<32>), now: &Moment) -> Result<(), VaultError> {
        let slots = self.database.slots()?;
        let held = self.held.as_mut().ok_or(VaultError::Refused(Refusal::Cold))?;
        let session = held.session.as_mut().ok_or(Refusal::Locked { level: Level::Black })?;
        session.open_black(token, &slots, now.clone())
    }

    pub(super) fn black_private(&self) -> Result<Secret<32>, VaultError> {
        let session = self.held()?.session.as_ref();
        session.and_then(|session| session.black_private()).ok_or(Refusal::NoToken.into())
    }

    /// What a token signs next.
    pub(crate) fn next_token_challenge(&mut self) -> Result<[u8; 32], VaultError> {
        self.held()?;
        let mut challenge = [0; 32];
        self.rng.fill(&mut challenge)?;
        self.token_challenge = Some(challenge);
        Ok(challenge)
    }

    /// Takes a token's answer.
    pub(crate) fn present_token(&mut self, presented: &Presented) -> Result<(), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::PresentToken);
        let challenge = self.token_challenge.take();
        let done = self.audited(event, |engine, event| {
            let mut records = engine.tokens()?;
            let record = records.iter_mut().find(|record| record.id == presented.token);
            let record = record.ok_or(Refusal::NoToken)?;
            event.text = Some(record.name.clone());
            if let Some(public) = record.public()? {
                let (presence, challenge) =
                    presented.presence.as_ref().zip(challenge).ok_or(Refusal::NoToken)?;
                presence.verify(&public, &challenge).map_err(|_| Refusal::NoToken)?;
            }
            let id = record.id.to_string();
            engine.open_black((&id, &presented.secret), &event.at)?;
            record.used = Some(event.at.wall);
            if let (TokenKind::Challenge { challenge }, Some((next, secret))) =
                (&mut record.kind, &presented.next)
            {
                *challenge = *next;
                let private = engine.black_private()?;
                engine.wrap_black((&id, secret), &private)?;
            }
            engine.put_sealed_slot(TOKENS, &records)
        });
        if done.is_err() {
            self.drop_token();
        }
        done
    }

    /// Whether a token answered a short while ago.
    pub(crate) fn token_present(&self, now: &Moment) -> bool {
        let session = self.held.as_ref().and_then(|held| held.session.as_ref());
        let Some(since) = session.and_then(|session| session.presented.as_ref()) else { return false };
        let same_boot = !now.boot.is_empty() && now.boot == since.boot;
        let ran = if same_boot { now.uptime.saturating_sub(since.uptime) } else { 0 };
        let age = now.wall.saturating_sub(since.wall).max(ran);
        now.wall >= since.wall && Duration::from_millis(age) < limits::TOKEN_PRESENCE
    }

    /// Wipes the key of level 5.
    pub(crate) fn drop_token(&mut self) {
        if let Some(session) = self.held.as_mut().and_then(|held| held.session.as_mut()) {
            session.close_black();
        }
    }

    /// Wipes the key of level 5 when its token was not used in time.
    pub(crate) fn drop_stale_token(&mut self) {
        if !self.token_present(&self.clock.now()) {
            self.drop_token();
        }
    }

    pub(crate) fn add_token(&mut self, token: &Enrolment) -> Result<(), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::EnrolToken);
        self.audited(event, |engine, event| {
            engine.drop_stale_token();
            let private = engine.black_private()?;
            let mut records = engine.tokens()?;
            engine.is_another(token, &records)?;
            let record = engine.new_record(token, (&records, event.at.wall))?;
            event.text = Some(record.name.clone());
            engine.wrap_black((&record.id.to_string(), &token.secret), &private)?;
            records.push(record);
            engine.drop_token();
            engine.put_sealed_slot(TOKENS, &records)
        })
    }

    pub(crate) fn remove_token(&mut self, name: &str) -> Result<(), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::RemoveToken);
        self.audited(event, |engine, event| {
            let mut records = engine.tokens()?;
            let at = records.iter().position(|record| record.name == name);
            let at = at.ok_or_else(|| VaultError::unknown(format!("token {name}")))?;
            let gone = records.remove(at);
            event.text = Some(gone.name.clone());
            let spare = records.len() + usize::from(engine.black_escrowed()?);
            if records.is_empty() || spare < 2 {
                return Err(VaultError::invalid(
                    "two tokens stay, or one and an escrow; enrol another one first",
                ));
            }
            engine.database.remove_slot(&black_slot(&gone.id.to_string()))?;
            engine.drop_token();
            engine.wipe = true;
            engine.put_sealed_slot(TOKENS, &records)
        })
    }

    fn codes(&self) -> Result<Option<Codes>, VaultError> {
        self.sealed_slot(CODES)
    }

    pub(crate) fn new_codes(&mut self) -> Result<NewCodes, VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::EnrolToken);
        self.audited(event, |engine, _| {
            if engine.codes()?.is_some_and(|codes| codes.confirmed) {
                return Err(VaultError::invalid("a one-time-code app is enrolled; remove it first"));
            }
            let secret = Secret::<20>::random(&mut engine.rng)?;
            let account = engine.held()?.base.signer.verifier().name().to_owned();
            let url = totp(secret.expose(), &account)?.to_url();
            let url = url.map_err(|error| VaultError::invalid(error.to_string()))?;
            let secret = secret.expose().to_vec();
            let codes = Codes { secret, confirmed: false, last_step: 0, wrong: 0, last_wrong: None };
            engine.put_sealed_slot(CODES, &codes)?;
            Ok(NewCodes { url: SecretBytes::from(url.into_bytes()) })
        })
    }

    pub(crate) fn confirm_codes(&mut self, code: &str) -> Result<(), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::EnrolToken);
        let checked = match self.codes()? {
            Some(codes) => self.take_code(codes, code)?,
            None => return Err(VaultError::unknown("one-time-code app to confirm")),
        };
        self.audited(event, |engine, _| {
            let mut codes = checked?;
            codes.confirmed = true;
            engine.put_sealed_slot(CODES, &codes)
        })
    }

    pub(crate) fn remove_codes(&mut self, root: &RootKey) -> Result<(), VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::RemoveToken);
        self.audited(event, |engine, _| {
            BaseKeys::open(root, &engine.database.slots()?)?;
            if engine.codes()?.is_none() {
                return Err(VaultError::unknown("one-time-code app enrolled"));
            }
            engine.database.remove_slot(CODES)
        })
    }

    /// Looks at the code of an approval. The outer result is the database's, the inner the gate's.
    pub(super) fn check_code(&mut self, code: Option<&str>) -> Result<Result<(), VaultError>, VaultError> {
        if self.held.is_none() {
            return Ok(Ok(()));
        }
        match (self.codes()?.filter(|codes| codes.confirmed), code) {
            (None, _) => Ok(Ok(())),
            (Some(_), None) => Ok(Err(Refusal::OneTimeCode("missing").into())),
            (Some(codes), Some(code)) => Ok(self.take_code(codes, code)?.map(|_| ())),
        }
    }

    /// Takes a code, once; counts a wrong one. What it writes is not undone by a refusal.
    fn take_code(&mut self, mut codes: Codes, code: &str) -> Result<Result<Codes, VaultError>, VaultError> {
        let now = self.clock.now();
        if codes.wrong >= limits::MAX_WRONG_CODES {
            let since = codes.last_wrong.as_ref().map_or(Duration::MAX, |last| now.certainly_since(last));
            let left = limits::CODES_PAUSE.saturating_sub(since);
            if !left.is_zero() {
                return Ok(Err(Refusal::CodesBlocked { left }.into()));
            }
            codes.wrong = 0;
        }
        let step = totp(&codes.secret, "check")?.check(code, now.wall / 1_000);
        let fresh = step.filter(|step| *step > codes.last_step);
        let verdict = match (step, fresh) {
            (_, Some(step)) => {
                (codes.last_step, codes.wrong) = (step, 0);
                Ok(())
            }
            (step, None) => {
                codes.wrong = codes.wrong.saturating_add(1);
                codes.last_wrong = Some(now);
                let reason = if step.is_some() { "used already" } else { "wrong" };
                Err(Refusal::OneTimeCode(reason).into())
            }
        };
        self.put_sealed_slot(CODES, &codes)?;
        Ok(verdict.map(|()| codes))
    }
}
