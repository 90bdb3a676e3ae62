//! `stvor vault escrow`, `recover`, `switch`, `watch`.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use stvor_base::Timestamp;
use stvor_keys::shares::Share;
use stvor_vault::daemon::{Client, EscrowVerb, HeirVerb, Hidden, KeeperVerb, RecoveryVerb};
use stvor_vault::recovery::escrow::{EscrowRecord, NewSecrets, recover as open_with_shares};
use stvor_vault::recovery::switch::{SwitchRecord, Untold};
use stvor_vault::recovery::watch::{Standing, Watcher};
use stvor_vault::{Clock as _, Options, SystemClock, VaultError, unwrap_root, unwrap_vaulted};

use super::backup::{absolute, ask, coded};
use super::holder::Holder;
use super::landing::{Landing, is_foreign};
use super::{Call, show};
use crate::args::{EscrowCommand, SecondSecret, SwitchCommand, VaultRecover, VaultWatch};
use crate::failure::{Failure, Result};
use crate::life::{End, Ending, hangup_is_ignored};
use crate::progress::Bar;
use crate::render::{BAD, GOOD, LOUD, paint, rfc3339, rows, safe, table};

fn pair(text: &str) -> Result<(String, String)> {
    let parts = text.split_once('=').map(|(name, rest)| (name.to_owned(), rest.to_owned()));
    parts.ok_or_else(|| Failure::Usage(format!("{text} is not NAME=RECIPIENT")))
}

/// Makes or lists sets of shares.
pub(super) fn escrow(call: Call<'_>, command: &EscrowCommand) -> Result {
    let out = call.out();
    let EscrowCommand::Make { keepers, needed, label, dir, second } = command else {
        let all: Vec<EscrowRecord> = show::parsed(ask(&mut call.as_owner()?, RecoveryVerb::Escrows {})?)?;
        if out.json {
            return all.iter().try_for_each(|record| out.object(record));
        }
        let mut lines = table(["set", "made", "needed", "keepers"]);
        for record in &all {
            let made = rfc3339(Timestamp::from_millis(record.made));
            lines.add_row([record.set.clone(), made, record.needed.to_string(), record.keepers.join(", ")]);
        }
        return out.line(rows(&lines));
    };
    let mut client = call.stranger()?;
    let owner = call.owner_of(&client)?;
    client.prove(&*owner)?;
    let shares = Shares::prepare(call, (&client, &owner), (keepers, *needed, label, dir, second))?;
    let mut made = ask(&mut client, RecoveryVerb::Escrow { new: shares.wanted.clone() })?;
    shares.take(&mut client, &mut made)?;
    out.either(&made, files)?;
    out.say(KEEPERS);
    Ok(())
}

/// What is to be done with shares.
pub(super) const KEEPERS: &str =
    "Give each keeper the own file, and keep none of them beside the vault. Practise: docs/vault/recovery.md";

/// The files of a set, a line each.
pub(super) fn files(made: &Value) -> String {
    let files = made["files"].as_array().into_iter().flatten().filter_map(Value::as_str);
    files.collect::<Vec<_>>().join("\n")
}

/// A set of shares, and where its files go.
pub(super) struct Shares {
    pub(super) wanted: EscrowVerb,
    landing: Landing,
}

impl Shares {
    /// What the arguments say, with the keys that the owner's secrets unwrap.
    pub(super) fn prepare(
        call: Call<'_>,
        (client, owner): (&Client, &Holder),
        (keepers, needed, label, dir, second): (&[String], u8, &str, &Path, &SecondSecret),
    ) -> Result<Self> {
        let second = call.second(second)?;
        let records = client.records().ok_or_else(|| Failure::Usage("no records of keys".into()))?;
        let root = unwrap_root(&records.root, &**owner)?;
        let vaulted = match (&records.vaulted, &second) {
            (Some(record), Some(holder)) => Some(unwrap_vaulted(record, &**holder)?),
            _ => None,
        };
        let keepers =
            keepers.iter().map(|text| pair(text).map(|(name, recipient)| KeeperVerb { name, recipient }));
        let landing = Landing::at(call.out(), client, dir)?;
        let wanted = EscrowVerb {
            root: Hidden::of_key(&root),
            vaulted: vaulted.as_ref().map(Hidden::of_key),
            keepers: keepers.collect::<Result<_>>()?,
            needed,
            label: label.to_owned(),
            directory: landing.directory(),
        };
        Ok(Self { wanted, landing })
    }

    /// Takes the files that were made; the answer then says where they are.
    pub(super) fn take(&self, client: &mut Client, made: &mut Value) -> Result {
        for file in made["files"].as_array_mut().into_iter().flatten() {
            let taken = self.landing.take(client, Path::new(file.as_str().unwrap_or_default()))?;
            *file = json!(taken.display().to_string());
        }
        Ok(())
    }
}

/// Opens the vault with shares.
pub(super) fn recover(call: Call<'_>, args: &VaultRecover) -> Result {
    let read = |path: &Path| {
        crate::secrets::private(path, "the share")?;
        let failed = |source| Failure::File { what: "can not read", path: path.into(), source };
        let bytes = stvor_crypto::SecretBytes::from(std::fs::read(path).map_err(failed)?);
        Share::parse(bytes.expose()).map_err(coded)
    };
    let shares = args.shares.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
    let owner = call.changed_owner(&args.new)?;
    let vaulted = call.new_second(&args.second, args.new.cost)?;
    let path = call.path()?;
    let tokens = super::token::enrolments(call.place, &args.tokens)?;
    let enrolled = tokens.len();
    let secrets = NewSecrets { owner, vaulted, tokens };
    let bar = Bar::working(call.out(), "opening and verifying it");
    let opened = open_with_shares(&path, &shares, (secrets, Options::default()));
    let verified = opened.and_then(|vault| vault.verify().map(|report| (vault, report)));
    bar.end();
    let (vault, report) = verified?;
    let level_4 = vault.status()?.vaulted;
    let sets: Vec<String> = shares.iter().map(Share::set).collect();
    let black = vault.escrows()?.iter().any(|record| record.black && sets.contains(&record.set));
    let object = json!({
        "vault": path.display().to_string(), "memories": report.memories, "problems": report.problems,
        "tokens": enrolled, "level_4_opens": level_4, "level_5_stays_shut": black && enrolled == 0,
    });
    let out = call.out();
    out.either(&object, |_| {
        let word = if report.problems.is_empty() { paint(GOOD, "ok") } else { paint(BAD, "NOT OK") };
        format!("{word}  the vault opens with the new secret; {} memories", report.memories)
    })?;
    if !level_4 && vault.records()?.vaulted.is_some() {
        out.warn("the shares do not hold the key of level 4 as it is in this vault: it opens with its second secret only");
    }
    if black && enrolled == 0 {
        out.warn(
            "the shares open level 5 too: run it again with --software-token, --fido2 or --yubikey, or it opens with the old tokens only",
        );
    }
    out.say("The shares open it still. Make a new escrow if they were seen by somebody.");
    Ok(())
}

/// A failure of writing, with who it was that could not write: it is the daemon that goes on writing check-ins.
fn written_by(client: &Client, failure: Failure) -> Failure {
    match (failure, client.served_by()) {
        (Failure::Coded { code: "VAULT_IO", message, retryable }, Some(uid)) if is_foreign(client) => {
            let message = format!(
                "{message}. The daemon writes there, as the user {uid}: make a directory that it owns (docs/vault/isolated.md)"
            );
            Failure::Coded { code: "VAULT_IO", message, retryable }
        }
        (failure, _) => failure,
    }
}

/// The dead-man switch, from the owner's side.
pub(super) fn switch(call: Call<'_>, command: &SwitchCommand) -> Result {
    let out = call.out();
    let mut client = call.as_owner()?;
    match command {
        SwitchCommand::Arm { days, heirs, memories, dir } => {
            let heir = |text: &String| {
                pair(text).map(|(name, recipient)| HeirVerb { name, recipient, memories: memories.clone() })
            };
            let heirs = heirs.iter().map(heir).collect::<Result<_>>()?;
            let seconds = days.saturating_mul(24 * 60 * 60);
            let verb = RecoveryVerb::ArmSwitch { seconds, heirs, directory: absolute(dir)? };
            let made = ask(&mut client, verb).map_err(|failure| written_by(&client, failure))?;
            out.either(&made, |made| {
                format!("armed; check-ins are signed with\n{}", made["verifier"].as_str().unwrap_or_default())
            })?;
            out.say("An heir who can read that directory can open the own package at any time.");
            all_told(&made)
        }
        SwitchCommand::CheckIn => {
            let made = ask(&mut client, RecoveryVerb::CheckIn {})?;
            // It is made, and for watchers elsewhere: what this one lacks is told after it.
            out.either(&made, |_| "checked in".to_owned())?;
            all_told(&made)
        }
        SwitchCommand::Disarm => {
            ask(&mut client, RecoveryVerb::DisarmSwitch {})?;
            out.either(&json!({ "armed": false }), |_| "disarmed".to_owned())
        }
        SwitchCommand::GiveUp { dir } => {
            ask(&mut client, RecoveryVerb::GiveUpWatcher { directory: absolute(dir)? })?;
            out.either(&json!({ "done": true }), |_| "nothing is owed to it any more".to_owned())?;
            out.warn("a watcher that still has that directory goes on as before");
            Ok(())
        }
        SwitchCommand::Status => {
            let found = ask(&mut client, RecoveryVerb::Switch {})?;
            if out.json {
                return out.object(&found);
            }
            let untold = untold(&found["untold"])?;
            let mut found = found;
            let without = found.as_object_mut().and_then(|fields| {
                fields.remove("untold");
                fields.remove("without_package")
            });
            let without: Vec<String> = without.map(show::parsed).transpose()?.unwrap_or_default();
            let record: Option<SwitchRecord> = show::parsed(found)?;
            out.line(match record {
                Some(record) if record.every > 0 => format!(
                    "armed: {} days of silence, last check-in {}, heirs: {}",
                    record.every / 86_400_000,
                    rfc3339(Timestamp::from_millis(record.checked_in)),
                    record.heirs.iter().map(|heir| heir.name.as_str()).collect::<Vec<_>>().join(", ")
                ),
                _ => paint(LOUD, "not armed"),
            })?;
            untold.iter().filter(|one| one.without.is_none()).try_for_each(|one| out.line(not_told(one)))?;
            without.iter().try_for_each(|heir| {
                let found = "is not there as it was signed; arm the switch anew";
                out.line(format!("{} the package of {} {found}", paint(BAD, "MISSING"), safe(heir)))
            })
        }
    }
}

fn untold(value: &Value) -> Result<Vec<Untold>> {
    if value.is_null() { Ok(Vec::new()) } else { show::parsed(value.clone()) }
}

/// Fails when a watcher does not know what was decided, or has no package of an heir.
fn all_told(made: &Value) -> Result {
    match untold(&made["untold"])?.into_iter().next() {
        Some(untold) => Err(coded(VaultError::from(untold))),
        None => Ok(()),
    }
}

fn not_told(untold: &Untold) -> String {
    let what = if untold.disarmed { "to stop; it counts and gives out" } else { "of the last check-in" };
    let (directory, reason) = (safe(&untold.directory.display().to_string()), safe(&untold.reason));
    format!("{} the watcher of {directory} does not know {what}: {reason}", paint(BAD, "NOT TOLD"))
}

/// Watches somebody's switch.
pub(super) async fn watch(call: Call<'_>, args: &VaultWatch) -> Result {
    // Under `nohup` it is to watch on when whoever started it logs out.
    let stays = hangup_is_ignored();
    let mut ending = Ending::watch(args.life)?;
    let clock = SystemClock::new();
    let mut watcher = Watcher::open((&args.dir, &args.release), &args.state, &args.verifier)?;
    let (mut last, mut warned) = (None, None);
    loop {
        let (standing, wrong) = match watcher.look(&clock.now()) {
            Ok((standing, wrong)) => (Some(standing), wrong),
            // A disk that is full or away may be back at the next look.
            Err(error) if !args.once => (None, Some(error)),
            Err(error) => return Err(error.into()),
        };
        // Who looks once and ends has nothing but the file to count on.
        let (lost, wrong) = if args.once && !watcher.is_saved() { (wrong, None) } else { (None, wrong) };
        let wrong = wrong.map(|error| error.to_string());
        if let Some(text) = wrong.as_ref().filter(|_| wrong != warned) {
            call.out().warn(text);
        }
        warned = wrong;
        let told = standing.as_ref().map(core::mem::discriminant);
        if let Some(standing) = standing.filter(|_| last != told || args.once) {
            last = told;
            let said = call.out().either(&standing, |standing| match standing {
                Standing::Unarmed => "no check-in was seen yet".to_owned(),
                Standing::Disarmed => "the owner disarmed the switch".to_owned(),
                Standing::Waiting { left } => format!("waiting: {} hours are left", left / 3_600_000),
                Standing::Released => format!("released: the packages are in {}", args.release.display()),
            });
            match said {
                // Heirs count on it also when whoever read along is gone, or the disk with its log is full.
                Err(failure) if !args.once => call.out().warn(failure),
                said => said?,
            }
        }
        if args.once {
            return lost.map_or(Ok(()), |error| Err(error.into()));
        }
        tokio::select! {
            end = ending.wait() => match end {
                End::HungUp if stays => {}
                end => return end.result(),
            },
            () = tokio::time::sleep(Duration::from_secs(args.every)) => {}
        }
    }
}
