//! Escrow: the vault's real key in n shares, each sealed to the age key of somebody who keeps it; any k of them open the vault
//! again. What is shared are up to three keys of 32 bytes: the root key, the key of level 4, and one that opens level 5 together
//! with that.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use std::io::Write;
use stvor_crypto::{Secret, SecretBytes, SystemRandom};
use stvor_keys::recipients::{Recipient, Sealing};
use stvor_keys::shares::{Plan, Share, combine, split};
use stvor_keys::{KeyError, KeyHolder};

use crate::keys::RootKey;
use crate::storage::{make_directory, write_private};
use crate::{Options, Vault, VaultError};

/// Somebody who keeps a share.
#[derive(Debug, Clone)]
pub struct Keeper {
    /// A name for people and for the share's file: letters, digits, `-` and `_`.
    pub name: String,
    /// The keeper's age key.
    pub recipient: Recipient,
}

/// An escrow that is to be made.
#[derive(Debug)]
pub struct NewEscrow<'a> {
    /// Who keeps the shares.
    pub keepers: &'a [Keeper],
    /// How many of them are needed, 2 or more.
    pub needed: u8,
    /// What the shares are of, for people.
    pub label: &'a str,
    /// The directory that the sealed shares are written into.
    pub directory: &'a Path,
}

/// A set of shares, as the vault remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EscrowRecord {
    /// The name of the set: 16 hexadecimal digits.
    pub set: String,
    /// When it was made, in milliseconds since the Unix epoch.
    pub made: u64,
    /// How many shares are needed.
    pub needed: u8,
    /// Who keeps one, in the order of their numbers.
    pub keepers: Vec<String>,
    /// Whether the key of level 4 is in it.
    pub vaulted: bool,
    /// Whether level 5 opens with it. A new escrow takes that from the older ones.
    pub black: bool,
}

/// Whether a name can be part of a file's name.
pub(crate) fn check_name(name: &str) -> Result<(), VaultError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        return Err(VaultError::invalid("a name has 1 to 64 letters, digits, - and _"));
    }
    Ok(())
}

/// Seals bytes to somebody, into a file that is not there yet.
pub(crate) fn seal_file(path: &Path, to: &Recipient, bytes: &[u8]) -> Result<(), VaultError> {
    let mut writer = Sealing::to(vec![to.clone()]).writer(Vec::new())?;
    let sealed = writer.write_all(bytes).and_then(|()| writer.finish());
    let sealed = sealed.map_err(|error| VaultError::io("sealing", path, &error))?;
    write_private(path, &sealed)
}

/// What the vault logs and keeps of a set of shares, before it leaves.
#[derive(Debug)]
pub(crate) struct NewShares {
    pub(crate) root: RootKey,
    pub(crate) vaulted: Option<Secret<32>>,
    /// What the private key of level 5 is to be wrapped with.
    pub(crate) black: Option<Secret<32>>,
    pub(crate) record: EscrowRecord,
}

/// Sealed shares on the disk, each with the name that it gets when the vault has logged the set. Until then they go when this
/// does.
#[derive(Debug)]
pub(crate) struct Drafts(Vec<(PathBuf, PathBuf)>);

impl Drop for Drafts {
    fn drop(&mut self) {
        for (draft, _) in &self.0 {
            let _ = std::fs::remove_file(draft);
        }
    }
}

impl Drafts {
    /// Gives the shares their names when the set was logged. Returns where they are.
    pub(crate) fn keep_if<T>(mut self, logged: &Result<T, VaultError>) -> Result<Vec<PathBuf>, VaultError> {
        match logged {
            Ok(_) => {}
            Err(VaultError::Closed) => {
                // Nobody knows whether it was logged. Shares that nobody needs are better than none.
                self.0.clear();
                return Err(VaultError::Closed);
            }
            Err(error) => return Err(error.clone()),
        }
        let named = core::mem::take(&mut self.0).into_iter().map(|(draft, path)| {
            // The set is logged: under which name it lies is no reason to say that it failed.
            match std::fs::rename(&draft, &path) {
                Ok(()) => path,
                Err(_) => draft,
            }
        });
        let named: Vec<PathBuf> = named.collect();
        if let Some(directory) = named.first().and_then(|path| path.parent()) {
            let _ = std::fs::File::open(directory).and_then(|directory| directory.sync_all());
        }
        Ok(named)
    }
}

impl Vault {
    /// Splits the vault's keys and writes one sealed share for each keeper. Level 5 is in it when one of its tokens was
    /// presented just before; older shares open that level no more. `vaulted` is the key of level 4; a vault that has
    /// one is not escrowed without it. Returns the record and the files. A failure leaves everything as it was, older shares
    /// too.
    ///
    /// # Errors
    /// [`VaultError::Invalid`] for names, numbers, or a missing key of level 4; [`VaultError::Tampered`] for another root key;
    /// [`VaultError::Exists`], [`VaultError::Io`]; [`crate::Refusal::NoToken`] when the token's time ran out meanwhile.
    pub fn escrow(
        &self,
        (root, vaulted): (&RootKey, Option<&Secret<32>>),
        new: &NewEscrow<'_>,
    ) -> Result<(EscrowRecord, Vec<PathBuf>), VaultError> {
        let black = vaulted.is_some() && self.ask(|engine| Ok(engine.black_is_open())).wait()?;
        let spare = black.then(|| Secret::<32>::random(&mut SystemRandom::new())).transpose()?;
        let (shares, drafts) = self.prepare_shares((root, vaulted, spare.as_ref()), new)?;
        let done = self.ask(move |engine| engine.escrow(shares)).wait();
        let files = drafts.keep_if(&done)?;
        Ok((done?, files))
    }

    /// Checks everything that can be checked before, and writes the sealed shares under names that are not theirs yet.
    pub(crate) fn prepare_shares(
        &self,
        (root, vaulted, black): (&RootKey, Option<&Secret<32>>, Option<&Secret<32>>),
        new: &NewEscrow<'_>,
    ) -> Result<(NewShares, Drafts), VaultError> {
        for (at, keeper) in new.keepers.iter().enumerate() {
            check_name(&keeper.name)?;
            if new.keepers.iter().take(at).any(|other| other.name == keeper.name) {
                return Err(VaultError::invalid(format!("two keepers are called {}", keeper.name)));
            }
        }
        if vaulted.is_none() && self.records()?.vaulted.is_some() {
            return Err(VaultError::invalid("the key of level 4 is escrowed too: give the second secret"));
        }
        let total = u8::try_from(new.keepers.len()).unwrap_or(u8::MAX);
        if new.needed < 2 || new.needed > total {
            return Err(VaultError::invalid(format!(
                "{} shares can not be needed of {total}: 2 or more are, and no more than there are keepers",
                new.needed
            )));
        }
        let plan = Plan { label: new.label.to_owned(), needed: new.needed, total };
        let mut secret = root.expose().to_vec();
        secret.extend(vaulted.into_iter().chain(black).flat_map(|key| key.expose()));
        let shares = split(&SecretBytes::from(secret), &plan, &mut SystemRandom::new())?;
        make_directory(new.directory)?;
        let mut drafts = Drafts(Vec::new());
        for (share, keeper) in shares.iter().zip(new.keepers) {
            let name = format!("share-{}-{}-{}.age", share.set(), share.number(), keeper.name);
            let path = new.directory.join(&name);
            if path.exists() {
                return Err(VaultError::Exists(path));
            }
            let draft = new.directory.join(name + ".new");
            drafts.0.push((draft.clone(), path));
            seal_file(&draft, &keeper.recipient, share.to_text().expose())?;
        }
        let record = EscrowRecord {
            set: shares.first().map(Share::set).unwrap_or_default(),
            made: 0,
            needed: new.needed,
            keepers: new.keepers.iter().map(|keeper| keeper.name.clone()).collect(),
            vaulted: vaulted.is_some(),
            black: black.is_some(),
        };
        let (vaulted, black) = (vaulted.map(Secret::duplicate), black.map(Secret::duplicate));
        Ok((NewShares { root: root.duplicate(), vaulted, black, record }, drafts))
    }

    /// Sets of shares that were made.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn escrows(&self) -> Result<Vec<EscrowRecord>, VaultError> {
        self.ask(|engine| engine.escrows()).wait()
    }
}

/// The secrets that a vault opens with after [`recover`].
#[derive(Debug)]
pub struct NewSecrets<H> {
    /// The owner's.
    pub owner: H,
    /// That of level 4. Without one it stays what it was.
    pub vaulted: Option<H>,
    /// Tokens in place of the old ones, if the shares open level 5.
    pub tokens: Vec<crate::tokens::Enrolment>,
}

/// Opens the vault at `path` with shares, gives it new secrets, and returns it open. The old ones open nothing any more. The
/// daemon must not run. Where the shares' key of level 4 is not that of the vault, as of a backup that is older than they are, and
/// nothing is asked for that takes it, that level stays shut ([`crate::Status::vaulted`]).
///
/// # Errors
/// As [`combine`]; [`KeyError::Wrong`] when the shares are of another vault, or of a key that was changed since;
/// [`VaultError::Invalid`] when there are tokens and the shares do not open level 5, or a second secret and they do not open
/// level 4.
pub fn recover<H: KeyHolder + 'static>(
    path: &Path,
    shares: &[Share],
    (secrets, options): (NewSecrets<H>, Options),
) -> Result<Vault, VaultError> {
    let secret = combine(shares)?;
    let set = shares.first().map(Share::set).unwrap_or_default();
    let wrong = || VaultError::Key(KeyError::Wrong { holder: "set of shares" });
    let mut keys = secret.expose().chunks(32).map(Secret::<32>::from_slice);
    let mut next = || keys.next().transpose().map_err(|_| wrong());
    let (root, vaulted, black) = (next()?.ok_or_else(wrong)?, next()?, next()?);
    if black.is_none() && !secrets.tokens.is_empty() {
        return Err(VaultError::invalid(
            "these shares do not open level 5, so no token can be enrolled with them",
        ));
    }
    if vaulted.is_none() && secrets.vaulted.is_some() {
        return Err(VaultError::invalid(
            "these shares hold no key of level 4, so they can not change the second secret: the vault had none when they were \
             made. Recover it without, then `stvor vault passphrase --new-second`",
        ));
    }
    let vault = Vault::open(path, options)?;
    let asked = root.duplicate();
    if !vault.ask(move |engine| engine.opens_with(&asked)).wait()? {
        return Err(wrong());
    }
    let mut vaulted = vaulted;
    if let Some(key) = vaulted.as_ref().filter(|_| secrets.vaulted.is_none() && secrets.tokens.is_empty()) {
        // An older backup may have no level 4 yet, or another key of it: what does not need that key opens all the same.
        let key = key.duplicate();
        if !vault.ask(move |engine| engine.opens_level_4(&key)).wait()? {
            vaulted = None;
        }
    }
    vault.unlock(root.duplicate(), vaulted.as_ref().map(Secret::duplicate))?;
    let mut secrets = secrets;
    let tokens = core::mem::take(&mut secrets.tokens);
    vault.ask(move |engine| engine.recover((&root, vaulted.as_ref()), &secrets)).wait()?;
    if let Some(black) = black.filter(|_| !tokens.is_empty()) {
        vault.ask(move |engine| engine.recover_black((&set, &black), &tokens)).wait()?;
    }
    Ok(vault)
}
