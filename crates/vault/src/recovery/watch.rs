//! The watcher of a dead-man switch. It runs where the owner's silence can not stop it, holds no key that opens anything, and
//! counts time on a clock that nobody can set, where the machine has been up for that long.

use core::time::Duration;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stvor_crypto::kdf::sha256;
use stvor_tlog::{Note, Verifier};

use super::switch::{CHECK_IN, CheckIn, package, read_package, replace_file};
use crate::audit::hex;
use crate::clock::{Moment, Pace, SLACK};
use crate::storage::make_directory;
use crate::{VaultError, limits};

/// How much time passes until the believed time is written again, in milliseconds.
const KEPT_EVERY: u64 = 3_600_000;
/// A clock that is behind the owner's by more than this, in milliseconds, may be the wrong one of the two.
const OWNERS_CLOCK: u64 = 3_600_000;

/// What a watcher knows. It is kept in a file, so that a restart does not begin the count anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// The key that check-ins are signed with.
    verifier: String,
    /// The newest check-in, and when the watcher first saw it.
    seen: Option<(CheckIn, Moment)>,
    /// When the packages that this check-in names were given out.
    released: Option<u64>,
    /// How far the clock on the wall is believed: what is given out can not be taken back.
    #[serde(default)]
    pace: Pace,
    /// The latest time that was ever believed, whatever a check-in made of it since.
    #[serde(default)]
    latest: u64,
    /// The clock was behind when the check-in came, so what it says after a restart says nothing of how long ago that was.
    #[serde(default)]
    doubted: bool,
    /// For how long the machine has certainly been up since the check-in, in milliseconds, and when that was looked at.
    #[serde(default)]
    up: u64,
    #[serde(default)]
    looked: Option<Moment>,
}

/// How a switch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Standing {
    /// No check-in was seen yet, so nothing is counted.
    Unarmed,
    /// The owner disarmed it.
    Disarmed,
    /// The owner has so many milliseconds left.
    Waiting {
        /// Milliseconds.
        left: u64,
    },
    /// The owner was silent for too long.
    Released,
}

impl Watch {
    /// A watcher of the switch whose check-ins this key signs.
    ///
    /// # Errors
    /// [`VaultError::Log`] for what is no key.
    pub fn new(verifier: &str) -> Result<Self, VaultError> {
        Verifier::parse(verifier)?;
        Ok(Self {
            verifier: verifier.to_owned(),
            seen: None,
            released: None,
            pace: Pace::default(),
            latest: 0,
            doubted: false,
            up: 0,
            looked: None,
        })
    }

    /// Takes a check-in, if it is newer than the last. Returns whether it was. A newer one begins the count anew, also after a
    /// release: the owner lives. What was given out stays given.
    ///
    /// # Errors
    /// [`VaultError::Log`] when it is not signed with the key, [`VaultError::Invalid`]; [`VaultError::Tampered`] when a newer
    /// one was seen.
    pub fn take(&mut self, note: &Note, now: &Moment) -> Result<bool, VaultError> {
        let verifier = Verifier::parse(&self.verifier)?;
        let check_in = CheckIn::parse(note.open(core::slice::from_ref(&verifier))?, verifier.name())?;
        let seen = self.seen.as_ref().map(|(seen, _)| seen.number);
        if let Some(seen) = seen.filter(|seen| check_in.number < *seen) {
            let reason =
                format!("its number is {}, and one with the number {seen} was seen", check_in.number);
            return Err(VaultError::tampered("the check-in", reason));
        }
        let newer = seen != Some(check_in.number);
        if newer {
            self.look_at_clocks(now);
            self.doubted = self.is_early(now) || Self::is_before_it_was_made(now.wall, &check_in);
            (self.seen, self.released) = (Some((check_in, now.clone())), None);
            (self.up, self.looked) = (0, Some(now.clone()));
            if self.pace.is_behind(now) {
                // What was believed is in the future: the clock was ahead then, and may be again after a restart.
                self.pace = Pace::from(Some(now.clone()));
            }
        }
        Ok(newer)
    }

    /// Whether the clock is behind what was ever believed.
    fn is_early(&self, now: &Moment) -> bool {
        now.wall.saturating_add(SLACK) < self.latest
    }

    /// Whether a check-in that came at this time was made later, by the owner's clock.
    fn is_before_it_was_made(came: u64, check_in: &CheckIn) -> bool {
        came.saturating_add(OWNERS_CLOCK) < check_in.at
    }

    /// Takes a look at the clocks. Returns whether it is known better now when the check-in came.
    fn look_at_clocks(&mut self, now: &Moment) -> bool {
        if self.pace.steady().is_none() {
            // It is not known yet, or the state is from before it was kept: the clock was believed when the check-in came.
            self.pace = Pace::from(self.seen.as_ref().map(|(_, seen)| seen.clone()));
        }
        let jumped = self.pace.jumped(now).is_some();
        self.pace.take(now);
        if let Some(steady) = self.pace.steady() {
            self.latest = self.latest.max(steady.wall);
        }
        (self.up, self.looked) = (self.up_until(now), self.seen.is_some().then(|| now.clone()));
        self.time_the_check_in(now, jumped)
    }

    /// For how many milliseconds the machine has certainly been up since the check-in, in all its starts.
    fn up_until(&self, now: &Moment) -> u64 {
        let before = self.looked.as_ref().or(self.seen.as_ref().map(|(_, seen)| seen));
        let Some(before) = before.filter(|_| now.names_its_boot()) else { return self.up };
        let more = now.surely_up_since(before).as_millis();
        self.up.saturating_add(u64::try_from(more).unwrap_or(u64::MAX))
    }

    /// Says by the clock on the wall as it is now when the check-in came: a clock that was wrong then is mended, as a rule. In the
    /// start of the machine in which it came that is exact. In a later one, when the clock is believed, no more is sure than what
    /// the machine was up: nobody knows by how much the clock was wrong.
    fn time_the_check_in(&mut self, now: &Moment, jumped: bool) -> bool {
        let (early, behind, settled) = (self.is_early(now), self.pace.is_behind(now), self.pace.is_settled());
        let Some((check_in, seen)) = self.seen.as_mut() else { return false };
        let doubted = self.doubted;
        let came = if now.same_boot(seen) {
            let came = now.wall.saturating_sub(now.uptime.saturating_sub(seen.uptime));
            if came < seen.wall && behind {
                return false;
            }
            // Where it did not look so when it came, the owner's clock was ahead, too.
            self.doubted = early || (doubted && Self::is_before_it_was_made(came, check_in));
            came
        } else {
            let in_the_future = now.wall.saturating_add(SLACK) < seen.wall;
            if behind || !settled || !(in_the_future || (jumped && doubted)) {
                return false;
            }
            self.doubted = early;
            now.wall.saturating_sub(self.up)
        };
        let known_better = came.abs_diff(seen.wall) > SLACK;
        if known_better {
            seen.wall = came;
        }
        known_better || self.doubted != doubted
    }

    /// How long the owner has certainly been silent. A clock on the wall that is ahead since the machine started, or was set,
    /// is not believed at once, and never where it was behind when the check-in came.
    fn silence(&self, seen: &Moment, now: &Moment) -> Duration {
        let mut pace = self.pace.clone();
        let unclear = self.doubted && pace.jumped(now).is_some();
        pace.take(now);
        let steady = if unclear { self.pace.steady() } else { pace.steady() };
        let since = match steady {
            Some(steady)
                if (unclear || !pace.is_settled()) && !now.same_boot(seen) && now.names_its_boot() =>
            {
                // What was believed last may be from before the check-in: how long the machine was up then says nothing.
                let before = match steady.same_boot(seen) {
                    true => steady.certainly_since(seen),
                    false => Duration::from_millis(steady.wall.saturating_sub(seen.wall)),
                };
                before + now.surely_up_since(steady)
            }
            _ => now.certainly_since(seen),
        };
        since.max(Duration::from_millis(self.up_until(now)))
    }

    /// What is known of the clocks.
    fn clocks(&self) -> (Pace, Option<Moment>) {
        (self.pace.clone(), self.looked.clone())
    }

    /// Whether that is to be written again.
    fn clocks_are_on(&self, (pace, looked): &(Pace, Option<Moment>)) -> bool {
        let up = match (&self.looked, looked) {
            (Some(now), Some(then)) => {
                now.boot != then.boot || now.uptime.abs_diff(then.uptime) >= KEPT_EVERY
            }
            (now, then) => now.is_some() != then.is_some(),
        };
        up || self.pace.differs_by(KEPT_EVERY, pace)
    }

    /// How the switch stands. A pure function of what was seen and the time.
    #[must_use]
    pub fn standing(&self, now: &Moment) -> Standing {
        if self.released.is_some() {
            return Standing::Released;
        }
        let Some((check_in, seen)) = &self.seen else { return Standing::Unarmed };
        if check_in.every == 0 {
            return Standing::Disarmed;
        }
        let silent = self.silence(seen, now);
        let left = Duration::from_millis(check_in.every).saturating_sub(silent);
        match u64::try_from(left.as_millis()).unwrap_or(u64::MAX) {
            0 => Standing::Released,
            left => Standing::Waiting { left },
        }
    }
}

/// A watcher at work: a directory that is watched, one that packages are given out in, and a file for what it knows.
#[derive(Debug)]
pub struct Watcher {
    directory: PathBuf,
    release: PathBuf,
    state: PathBuf,
    watch: Watch,
    /// The file does not have the newest check-in, or the release.
    unsaved: bool,
    /// The file could not be written at the last look.
    behind: bool,
    /// The clocks as the file has them.
    kept: (Pace, Option<Moment>),
    /// The number of the check-in whose packages were read whole.
    read: Option<u64>,
}

impl Watcher {
    /// Takes up the watch, where it was left if `state` is there. `state` should be where only the watcher writes.
    ///
    /// # Errors
    /// [`VaultError::Tampered`] for a state that is not understood, or of another key; [`VaultError::Io`], [`VaultError::Log`].
    pub fn open(
        (directory, release): (&Path, &Path),
        state: &Path,
        verifier: &str,
    ) -> Result<Self, VaultError> {
        let fresh = Watch::new(verifier)?;
        let watch = match fs::read(state) {
            Ok(bytes) => {
                serde_json::from_slice::<Watch>(&bytes).ok().filter(|known| known.verifier == verifier)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(fresh),
            Err(error) => return Err(VaultError::io("reading", state, &error)),
        };
        let other = || VaultError::tampered(state.display().to_string(), "it is not the state of this watch");
        let watch = watch.ok_or_else(other)?;
        let (directory, release, state) = (directory.into(), release.into(), state.into());
        let kept = watch.clocks();
        Ok(Self { directory, release, state, watch, unsaved: false, behind: false, kept, read: None })
    }

    /// Looks once: reads the newest check-in, and gives the packages out when the owner was silent for too long. Call it from
    /// time to time, also after a release: an owner who checks in again begins the count anew. A check-in that does not verify is
    /// passed over, and named; so is a package that is missing, from when the check-in comes that names it.
    ///
    /// # Errors
    /// [`VaultError::Io`] when the packages can not be given out; the next look tries again.
    pub fn look(&mut self, now: &Moment) -> Result<(Standing, Option<VaultError>), VaultError> {
        let mut unbelieved = None;
        self.unsaved |= self.watch.look_at_clocks(now);
        let path = self.directory.join(CHECK_IN);
        let short = fs::metadata(&path).is_ok_and(|about| about.len() <= limits::MAX_CHECK_IN);
        if let Some(bytes) = short.then(|| fs::read(&path).ok()).flatten() {
            let taken = Note::parse(&bytes).map_err(VaultError::from);
            match taken.and_then(|note| self.watch.take(&note, now)) {
                Ok(newer) => self.unsaved |= newer,
                Err(error) => unbelieved = Some(error),
            }
        }
        let standing = self.watch.standing(now);
        if standing == Standing::Released && self.watch.released.is_none() {
            // What is missing may still come: the next look tries again.
            match self.give_out()? {
                None => {
                    self.watch.released = Some(now.wall);
                    self.unsaved = true;
                }
                missing => unbelieved = missing,
            }
        }
        if matches!(standing, Standing::Waiting { .. }) && unbelieved.is_none() {
            unbelieved = self.missing();
        }
        self.behind = false;
        if self.unsaved || self.watch.clocks_are_on(&self.kept) {
            // What is not in the file is counted from later on after a restart, or given out once more: that stops nothing here.
            match self.save() {
                Ok(()) => (self.unsaved, self.kept) = (false, self.watch.clocks()),
                Err(error) => (self.behind, unbelieved) = (true, Some(error)),
            }
        }
        Ok((standing, unbelieved))
    }

    /// Whether the file of the state could be written at the last look, as far as there was something to write. A watcher that is
    /// started anew for each look counts nothing without it.
    #[must_use]
    pub const fn is_saved(&self) -> bool {
        !self.behind
    }

    fn save(&self) -> Result<(), VaultError> {
        let bytes =
            serde_json::to_vec(&self.watch).map_err(|error| VaultError::Database(error.to_string()))?;
        replace_file(&self.state, &bytes)
    }

    /// Copies the packages that the newest check-in names, and no others. Doing it twice is the same as once; what an earlier
    /// release gave to an heir of the same name stays there under another name. Returns what is wrong with one that is not there
    /// as it was signed.
    fn give_out(&self) -> Result<Option<VaultError>, VaultError> {
        make_directory(&self.release)?;
        let packages = self.watch.seen.as_ref().map(|(seen, _)| &seen.packages[..]).unwrap_or_default();
        let mut wrong = None;
        for (heir, hash) in packages {
            match read_package(&self.directory, (heir, hash)) {
                Some(bytes) => self.give(heir, &bytes)?,
                None => wrong = Some(self.wrong((heir, hash))),
            }
        }
        Ok(wrong)
    }

    /// A package that the newest check-in names and that could not be given out: while the owner lives, the switch can be armed
    /// anew. Whether all of them are there is looked at each time, and what is in them once for each check-in.
    fn missing(&mut self) -> Option<VaultError> {
        let (seen, _) = self.watch.seen.as_ref()?;
        let unread = self.read != Some(seen.number);
        let right = |heir: &str, hash: &str| match unread {
            true => read_package(&self.directory, (heir, hash)).is_some(),
            false => package(&self.directory, (heir, hash)).is_file(),
        };
        let wrong = seen.packages.iter().find(|(heir, hash)| !right(heir, hash));
        let wrong = wrong.map(|(heir, hash)| self.wrong((heir, hash)));
        self.read = wrong.is_none().then_some(seen.number);
        wrong
    }

    fn wrong(&self, (heir, hash): (&str, &str)) -> VaultError {
        let path = package(&self.directory, (heir, hash));
        let reason = "it is missing, or is not the one that the owner signed";
        VaultError::tampered(format!("the package {}", path.display()), reason)
    }

    fn give(&self, heir: &str, package: &[u8]) -> Result<(), VaultError> {
        let path = self.release.join(format!("heir-{heir}.age"));
        if let Some(before) = fs::read(&path).ok().filter(|before| before != package) {
            let digest = hex(&sha256(&[&before]));
            let aside =
                self.release.join(format!("heir-{heir}-{}.age", digest.get(..16).unwrap_or_default()));
            fs::rename(&path, &aside).map_err(|error| VaultError::io("renaming", &path, &error))?;
        }
        replace_file(&path, package)
    }
}
