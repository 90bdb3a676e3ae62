//! Times that hold on a busy machine.
//!
//! Contenders take turns in short batches, so that a slow spell of the machine hits all of them, and the least time of
//! all batches counts: noise only ever adds. A ratio between two contenders of one race is steadier than either.

use std::time::{Duration, Instant};

/// How long one batch runs, about: long against the clock's resolution, short against the scheduler's slice.
const BATCH: Duration = Duration::from_millis(1);

/// Fewest batches of a contender, however slow it is.
const FEWEST_BATCHES: u32 = 20;

/// Something to time.
pub struct Contender<'a> {
    name: &'a str,
    /// Runs it this many times and returns how long that took, without what it had to prepare.
    batch: Box<dyn FnMut(u32) -> Duration + 'a>,
}

impl<'a> Contender<'a> {
    /// Times `step` as it stands.
    pub fn new(name: &'a str, mut step: impl FnMut() + 'a) -> Self {
        let batch = Box::new(move |times| {
            let start = Instant::now();
            (0..times).for_each(|_| step());
            start.elapsed()
        });
        Self { name, batch }
    }

    /// Times `step` on inputs that `prepare` makes outside of the clock. All inputs of a batch exist at once.
    pub fn prepared<I, O>(
        name: &'a str,
        mut prepare: impl FnMut() -> I + 'a,
        mut step: impl FnMut(I) -> O + 'a,
    ) -> Self {
        let batch = Box::new(move |times| {
            let inputs: Vec<I> = (0..times).map(|_| prepare()).collect();
            let mut outputs = Vec::with_capacity(inputs.len());
            let start = Instant::now();
            outputs.extend(inputs.into_iter().map(&mut step));
            start.elapsed()
        });
        Self { name, batch }
    }
}

/// The least time of one contender's step.
#[derive(Clone, Debug, PartialEq)]
pub struct Time {
    /// The contender.
    pub name: String,
    /// Nanoseconds.
    pub nanoseconds: f64,
}

/// Lets the contenders run in turns for about `budget` each and returns their least times, in the order given.
///
/// ```
/// use std::time::Duration;
/// use stvor_bench::timing::{Contender, race};
/// let times = race(Duration::from_millis(5), vec![Contender::new("nothing", || ())]);
/// assert!(times[0].nanoseconds >= 0.0);
/// ```
#[must_use]
pub fn race(budget: Duration, mut contenders: Vec<Contender<'_>>) -> Vec<Time> {
    let sizes: Vec<u32> = contenders.iter_mut().map(|contender| batch_size(&mut contender.batch)).collect();
    let mut least = vec![f64::INFINITY; contenders.len()];
    let deadline = Instant::now() + budget * u32::try_from(contenders.len()).unwrap_or(u32::MAX);
    let mut round = 0;
    while round < FEWEST_BATCHES || Instant::now() < deadline {
        for ((contender, times), least) in contenders.iter_mut().zip(&sizes).zip(&mut least) {
            let each = (contender.batch)(*times).as_secs_f64() * 1e9 / f64::from(*times);
            *least = least.min(each);
        }
        round += 1;
    }
    let named = contenders.iter().zip(least);
    named.map(|(contender, nanoseconds)| Time { name: contender.name.to_owned(), nanoseconds }).collect()
}

/// Doubles the batch until it is long enough; this warms caches up too.
fn batch_size(batch: &mut dyn FnMut(u32) -> Duration) -> u32 {
    let mut times = 1_u32;
    // The least of three: one that was interrupted must not end the search.
    let mut least = |times| (0..3).map(|_| batch(times)).min().unwrap_or_default();
    while least(times) < BATCH && times < 1 << 20 {
        times *= 2;
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;

    fn spin(rounds: u32) {
        for round in 0..rounds {
            black_box(round);
        }
    }

    #[test]
    fn longer_work_takes_longer_and_names_keep_their_order() {
        let contenders =
            vec![Contender::new("long", || spin(100_000)), Contender::new("short", || spin(1_000))];
        let times = race(Duration::from_millis(2), contenders);
        assert_eq!(times.iter().map(|time| time.name.as_str()).collect::<Vec<_>>(), ["long", "short"]);
        assert!(times[0].nanoseconds > times[1].nanoseconds);
    }

    #[test]
    fn preparation_does_not_count() {
        let contenders = vec![
            Contender::prepared("late", || spin(1_000_000), |()| spin(1_000)),
            Contender::new("early", || spin(1_000_000)),
        ];
        let times = race(Duration::from_millis(1), contenders);
        assert!(times[0].nanoseconds < times[1].nanoseconds);
    }
}
