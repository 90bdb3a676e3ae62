//! The watcher against a model: whatever clocks, machine and owner do, it lets nothing go before the owner was silent for long
//! enough, and in the end it does.

use proptest::prelude::*;
use stvor_crypto::Secret;
use stvor_tlog::{Note, Signer};

use super::switch::{CHECK_IN, CheckIn};
use super::watch::{Standing, Watcher};
use crate::clock::{Moment, SLACK};

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// For how long the owner may be silent.
const EVERY: u64 = 3 * DAY;
const START: u64 = 1_800_000_000_000;
/// How far behind a clock is that is not ahead: before anything that was ever believed.
const BEHIND: u64 = 2_000 * DAY;

/// What the clock on the wall shows.
#[derive(Debug, Clone, Copy)]
enum Shown {
    Right,
    /// The same date at each start of the machine.
    Old,
    Behind,
    /// By so many days.
    Ahead(u64),
}

#[derive(Debug, Clone)]
enum Event {
    CheckIn,
    Set(Shown),
    /// The machine is off for so many hours.
    Restart(u64, Shown),
    /// The watcher's process alone is started anew.
    Again,
    /// So many hours pass.
    Up(u64),
    /// The machine starts with a clock that is behind, is up with it for so many hours, with a check-in or not, and starts again with
    /// the right one after so many.
    Behind {
        shown: Shown,
        check_in: bool,
        up: u64,
        off: u64,
    },
    /// The clock is ahead for less than an hour, as before the time came from the network, with a check-in meanwhile or not. A
    /// restart of the machine before it, and one after it.
    Ahead {
        days: u64,
        minutes: u64,
        check_in: bool,
        restarts: (bool, bool),
        then: Shown,
    },
}

fn shown() -> impl Strategy<Value = Shown> {
    prop_oneof![4 => Just(Shown::Right), 1 => Just(Shown::Old), 1 => Just(Shown::Behind)]
}

fn event() -> impl Strategy<Value = Event> {
    let days = prop_oneof![1..40_u64, 300..3_000_u64];
    let ahead = (days, 1..50_u64, any::<bool>(), any::<(bool, bool)>(), shown());
    let behind = (any::<bool>(), any::<bool>(), 0..4_u64, 0..200_u64);
    prop_oneof![
        3 => Just(Event::CheckIn),
        2 => shown().prop_map(Event::Set),
        4 => (0..900_u64, shown()).prop_map(|(hours, shown)| Event::Restart(hours, shown)),
        1 => Just(Event::Again),
        // A clock that gained years is believed after a day.
        6 => prop_oneof![1..30_u64, 24..40_u64].prop_map(Event::Up),
        2 => ahead.prop_map(|(days, minutes, check_in, restarts, then)| Event::Ahead {
            days, minutes, check_in, restarts, then
        }),
        2 => behind.prop_map(|(old, check_in, up, off)| Event::Behind {
            shown: if old { Shown::Old } else { Shown::Behind }, check_in, up, off
        }),
    ]
}

/// A machine, its watcher, and what really happened.
struct Model {
    directory: tempfile::TempDir,
    signer: Signer,
    watcher: Watcher,
    /// The owner's clock is the machine's, and not one of another machine, which is right.
    one_machine: bool,
    truth: u64,
    shown: Shown,
    boot: u32,
    booted: u64,
    number: u64,
    /// When the newest check-in was seen.
    seen: u64,
}

impl Model {
    fn new(one_machine: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let signer = Signer::from_seed("owner", &Secret::new([7; 32])).unwrap();
        let watcher = watcher(&directory, &signer);
        let mut model = Self {
            directory,
            signer,
            watcher,
            one_machine,
            truth: START,
            shown: Shown::Right,
            boot: 0,
            booted: START - HOUR,
            number: 0,
            seen: 0,
        };
        model.check_in();
        model
    }

    fn now(&self) -> Moment {
        let uptime = self.truth - self.booted;
        let wall = match self.shown {
            Shown::Right => self.truth,
            Shown::Old => START - BEHIND + uptime,
            Shown::Behind => self.truth - BEHIND,
            Shown::Ahead(days) => self.truth + days * DAY,
        };
        Moment { wall, uptime, boot: self.boot.to_string() }
    }

    /// Looks, and says whether everything was given out: never too early.
    fn look(&mut self) -> bool {
        let (standing, unbelieved) = self.watcher.look(&self.now()).unwrap();
        assert!(unbelieved.is_none(), "{unbelieved:?}");
        let silent = self.truth - self.seen;
        let released = standing == Standing::Released;
        assert!(!released || silent + 2 * SLACK >= EVERY, "released after {} hours", silent / HOUR);
        released
    }

    fn check_in(&mut self) {
        self.number += 1;
        let at = if self.one_machine { self.now().wall } else { self.truth };
        let text = CheckIn { number: self.number, at, every: EVERY, packages: Vec::new() }.to_text("owner");
        let note = Note::sign(&text, &[&self.signer]).unwrap();
        std::fs::write(self.directory.path().join(CHECK_IN), note.to_string()).unwrap();
        self.seen = self.truth;
        self.look();
    }

    fn again(&mut self) {
        self.watcher = watcher(&self.directory, &self.signer);
    }

    fn restart(&mut self, off: u64, shown: Shown) {
        self.truth += off;
        (self.boot, self.booted, self.shown) = (self.boot + 1, self.truth, shown);
        self.truth += MINUTE;
        self.again();
        self.look();
    }

    fn up(&mut self, hours: u64) -> bool {
        (0..hours).fold(false, |_, _| {
            self.truth += HOUR;
            self.look()
        })
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::CheckIn => self.check_in(),
            Event::Set(shown) => {
                self.shown = shown;
                self.look();
            }
            Event::Restart(hours, shown) => self.restart(hours * HOUR, shown),
            Event::Again => self.again(),
            Event::Up(hours) => {
                self.up(hours);
            }
            Event::Behind { shown, check_in, up, off } => {
                self.restart(HOUR, shown);
                if check_in {
                    self.check_in();
                }
                self.up(up);
                self.restart(off * HOUR, Shown::Right);
            }
            Event::Ahead { days, minutes, check_in, restarts: (before, after), then } => {
                match before {
                    true => self.restart(MINUTE, Shown::Ahead(days)),
                    false => self.happen(&Event::Set(Shown::Ahead(days))),
                }
                if check_in {
                    self.check_in();
                }
                self.truth += minutes * MINUTE;
                self.look();
                match after {
                    true => self.restart(MINUTE, then),
                    false => self.happen(&Event::Set(then)),
                }
            }
        }
    }
}

fn watcher(directory: &tempfile::TempDir, signer: &Signer) -> Watcher {
    let path = directory.path();
    Watcher::open((path, &path.join("released")), &path.join("state"), &signer.verifier().to_string())
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_given_out_too_early_and_everything_in_the_end(
        one_machine in any::<bool>(),
        events in proptest::collection::vec(event(), 0..24),
    ) {
        let mut model = Model::new(one_machine);
        events.iter().for_each(|event| model.happen(event));
        // From here on the clock is right, and the machine is up for two hours a day: it takes those of a day until a clock that
        // gained years is believed, and from then on no longer than the owner has.
        let days = EVERY / DAY + 14;
        let released = (0..days).any(|_| {
            model.restart(22 * HOUR - MINUTE, Shown::Right);
            model.up(2)
        });
        prop_assert!(released, "not given out after {days} days");
    }
}

#[test]
fn a_check_in_that_is_seen_while_the_clock_is_behind_and_before_a_restart_counts_from_no_earlier() {
    for (wrong, one_machine) in [(Shown::Old, true), (Shown::Behind, true), (Shown::Old, false)] {
        let mut model = Model::new(one_machine);
        model.restart(HOUR, wrong);
        model.check_in();
        model.restart(HOUR, Shown::Right);
        let hours = (0..200).take_while(|_| !model.up(1)).count();
        // Two hours between the starts are not sure.
        assert!((70..=74).contains(&hours), "{wrong:?}: {hours}");
    }
}
